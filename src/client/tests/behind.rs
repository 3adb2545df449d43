//! Scripts about writing behind: when bytes are committed, what waits for them, and what becomes of them when something fails.

use super::cached::{is_recalled, name, rename, stat};
use super::*;
use crate::wire::message::Notice;
use crate::wire::namespace::{Behind, NewKind};

/// Longer than anything stays dirty on its own account.
const AGE: Duration = Duration::from_millis(1500);

fn is_commit(request: &Request) -> bool {
    matches!(request, Request::Namespace { op: Op::Write { behind: Some(_), .. }, .. })
}

fn is_through(request: &Request) -> bool {
    matches!(request, Request::Namespace { op: Op::Write { behind: None, .. }, .. })
}

fn is_yielding(request: &Request) -> bool {
    matches!(request, Request::Namespace { op: Op::Write { behind: Some(Behind { yields: true, .. }), .. }, .. })
}

fn is_yield(request: &Request) -> bool {
    matches!(request, Request::Namespace { op: Op::Yield { .. }, .. })
}

fn is_reserve(request: &Request) -> bool {
    matches!(request, Request::Namespace { op: Op::Reserve { .. }, .. })
}

fn call_write(ino: InodeId, offset: u64, bytes: &[u8]) -> Call {
    Call::Write { ino, at: WriteAt::Offset(offset), bytes: Bytes::copy_from_slice(bytes), kill_privileges: false }
}

fn chmod(ino: InodeId) -> Call {
    Call::Op(Op::SetAttributes { ino, set: SetAttributes::default() })
}

fn creation(text: &str) -> Call {
    let (kind, mode, uid, gid, exclusive, hold, write) = (NewKind::File, 0o644, 0, 0, true, true, true);
    Call::Op(Op::Create { parent: DIRECTORY, name: name(text), kind, mode, uid, gid, exclusive, hold, write, umask: 0 })
}

impl World {
    /// A client that writes behind, and a file that it may write alone and has open.
    fn behind() -> (World, InodeId) {
        let mut world = World::made(true, true);
        world.run_for(Duration::from_millis(10));
        let ino = world.create("f");
        (world, ino)
    }

    fn create(&mut self, text: &str) -> InodeId {
        match self.call(creation(text)) {
            Ok(Reply::Replied(Replied::Entry { attributes, writer: true, .. })) => attributes.ino,
            other => panic!("{other:?}"),
        }
    }

    /// A write that is accepted.
    fn put(&mut self, ino: InodeId, offset: u64, bytes: &[u8]) {
        let before = self.count(|request| is_commit(request) || is_through(request));
        self.call(call_write(ino, offset, bytes)).unwrap();
        assert_eq!(self.count(|request| is_commit(request) || is_through(request)), before, "it was accepted");
    }

    fn get(&mut self, ino: InodeId) -> Result<Bytes, Status> {
        match self.call(Call::Read { ino, range: ByteRange { offset: 0, length: 1 << 20 } })? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => panic!("{other:?}"),
        }
    }

    /// What the cluster has of the file, by another client's eyes: chunks are put together from the nodes.
    fn committed(&self, ino: InodeId) -> Vec<u8> {
        let file = &self.files[&ino];
        let mut bytes = vec![0; file.size as usize];
        for extent in &file.extents {
            let part = match &extent.source {
                Source::Hole => continue,
                Source::Inline(part) => part.clone(),
                Source::Chunk { hash, offset } => {
                    let chunk = self.nodes.iter().find_map(|node| node.chunks.get(hash)).expect("a holder");
                    chunk.slice(*offset as usize..*offset as usize + extent.length as usize)
                }
            };
            bytes[extent.offset as usize..][..part.len()].copy_from_slice(&part);
        }
        bytes
    }

    fn is_dirty(&self) -> bool {
        !self.core.dirty_files().is_empty()
    }
}

#[test]
fn what_is_accepted_is_committed_a_second_later() {
    let (mut world, ino) = World::behind();
    for at in 0..20 {
        world.put(ino, at * 100, &noise(100, at));
    }
    assert_eq!(world.get(ino).unwrap().len(), 2000);
    assert!(matches!(world.call(stat(ino)), Ok(Reply::Answer(Answer::Attributes(attributes))) if attributes.size == 2000));
    assert_eq!(world.count(is_commit), 0);
    let expected = world.get(ino).unwrap();
    world.run_for(AGE);
    assert_eq!((world.count(is_commit), world.is_dirty()), (1, false));
    assert_eq!(world.committed(ino), expected);
    assert_eq!(world.get(ino).unwrap(), expected);
}

#[test]
fn a_commit_without_enough_receipts_is_sent_again() {
    let (mut world, ino) = World::behind();
    let bytes = noise(100_000, 1);
    world.put(ino, 0, &bytes);
    world.refuse = vec![Status::MissingReceipts; 2];
    world.run_for(AGE * 3);
    assert_eq!((world.count(is_commit), world.is_dirty()), (3, false));
    assert_eq!(world.committed(ino), bytes);
}

#[test]
fn a_recall_commits_and_gives_back_in_one_message_and_is_answered_then() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"before");
    world.recall_inode(1, ino);
    assert_eq!(world.core.lifetime(ino), None, "the caches above are told nothing that may be kept");
    world.put(ino, 6, b" while they forget");
    assert_eq!((world.count(is_commit), world.count(is_recalled)), (0, 0));
    world.held_back = Some(Vec::new());
    world.obey();
    assert_eq!((world.count(is_yielding), world.count(is_recalled)), (1, 0));
    assert_eq!(world.core.lifetime(ino), None);
    world.let_go();
    assert_eq!((world.count(is_commit), world.count(is_yield), world.count(is_recalled)), (1, 0, 1));
    assert!(!world.written.contains(&ino) && !world.is_dirty());
    assert_eq!(world.committed(ino), b"before while they forget");
    // From now on it asks.
    world.call(call_write(ino, 0, b"B")).unwrap();
    assert_eq!(world.count(is_through), 1);
}

#[test]
fn a_commit_that_gave_the_right_back_unheard_counts_as_done() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"bytes");
    world.recall_inode(1, ino);
    world.swallow = u32::MAX;
    world.obey();
    world.run_for(limits::OP_TIMEOUT + Duration::from_millis(100));
    assert!(world.is_dirty() && !world.written.contains(&ino), "it happened, and nobody said so");
    world.swallow = 0;
    assert!(matches!(world.call(Call::Sync { ino }), Ok(Reply::Done)), "nothing is lost");
    assert!(!world.is_dirty());
    assert_eq!(world.committed(ino), b"bytes");
    // What came after it must not be hidden by what was dirty.
    world.files.get_mut(&ino).unwrap().patch(Patch {
        at: WriteAt::Offset(0),
        length: 5,
        source: Source::Inline(Bytes::from_static(b"other")),
    });
    world.files.get_mut(&ino).unwrap().version.data += 1;
    world.recall_inode(2, ino);
    world.obey();
    assert_eq!(world.get(ino).unwrap(), b"other"[..]);
}

#[test]
fn bytes_of_a_failing_commit_stay_and_are_tried_again() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"first");
    world.refuse = vec![Status::Internal; 4];
    world.run_for(AGE);
    assert!(world.count(is_commit) >= 1 && world.is_dirty());
    world.put(ino, 3, b"st write");
    assert_eq!(world.get(ino).unwrap(), b"first write"[..]);
    world.run_for(AGE * 3);
    assert!(!world.is_dirty());
    assert_eq!(world.committed(ino), b"first write");
}

#[test]
fn a_sync_fails_at_its_deadline_and_nothing_is_lost() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"bytes");
    world.nodes.iter_mut().for_each(|node| node.silent = true);
    let begun = world.now;
    assert!(matches!(world.call(Call::Sync { ino }), Err(Status::TimedOut)));
    assert!(world.now.since(begun) <= limits::OP_TIMEOUT + Duration::from_secs(1));
    assert!(world.is_dirty());
    world.nodes.iter_mut().for_each(|node| node.silent = false);
    assert!(matches!(world.call(Call::Sync { ino }), Ok(Reply::Done)));
    assert_eq!(world.committed(ino), b"bytes");
}

#[test]
fn own_bytes_are_not_read_without_a_lease() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"bytes");
    world.nodes.iter_mut().for_each(|node| node.silent = true);
    world.run_for(Duration::from_secs(5));
    let token = world.submit(Call::Read { ino, range: ByteRange { offset: 0, length: 5 } });
    world.drain();
    assert!(!world.done.contains_key(&token), "others may have changed the file meanwhile");
    world.nodes.iter_mut().for_each(|node| node.silent = false);
    assert!(matches!(world.wait(token), Ok(Reply::Bytes(bytes)) if bytes == b"bytes"[..]));
}

#[test]
fn a_rename_waits_for_the_bytes_that_it_publishes() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, &noise(50_000, 1));
    let other = world.create("other");
    world.put(other, 0, b"not published");
    world.call(rename("f", "g")).unwrap();
    let is_rename = |request: &Request| matches!(request, Request::Namespace { op: Op::Rename { .. }, .. });
    let order: Vec<bool> =
        world.log.iter().map(|(_, request)| request).filter(|one| is_commit(one) || is_rename(one)).map(is_commit).collect();
    assert_eq!(order, [true, false]);
    assert_eq!(world.core.dirty_files(), [other]);
}

#[test]
fn without_room_a_write_goes_through_and_says_so() {
    let (mut world, ino) = World::behind();
    world.room = 0;
    assert!(matches!(world.call(call_write(ino, 0, b"bytes")), Err(Status::NoSpace)));
    assert!(!world.is_dirty());
    world.room = 1 << 40;
    world.call(call_write(ino, 0, b"bytes")).unwrap();
    assert_eq!(world.committed(ino), b"bytes");
    // A while later it asks again.
    world.run_for(limits::RESERVE_PAUSE);
    world.put(ino, 5, b" more");
}

#[test]
fn whoever_is_asked_for_space_gives_back_what_it_does_not_need() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"bytes");
    let reserved = |world: &World| {
        let asked = world.log.iter().rev().find_map(|(_, request)| match request {
            Request::Namespace { op: Op::Reserve { bytes }, .. } => Some(*bytes),
            _ => None,
        });
        (asked.unwrap(), world.count(is_reserve))
    };
    let (first, count) = reserved(&world);
    assert!(first >= limits::RESERVE_STEP_MIN && count == 1);
    world.notice(Notice::SpaceShort);
    let (kept, count) = reserved(&world);
    assert!((5..10_000).contains(&kept) && count == 2, "{kept} kept");
    world.notice(Notice::SpaceShort);
    assert_eq!(reserved(&world).1, 2, "nothing left to give");
    // Nor is it kept from asking for more, once its own pause is over, by one who goes on wanting room.
    world.run_for(limits::RESERVE_PAUSE);
    world.notice(Notice::SpaceShort);
    let another = world.create("g");
    world.call(call_write(another, 0, &noise(100_000, 1))).unwrap();
    assert_eq!(reserved(&world).1, 3);
    world.run_for(AGE);
    assert!(!world.is_dirty());
}

#[test]
fn a_name_that_finds_no_room_yet_is_asked_for_again_under_another_number() {
    let (mut world, _) = World::behind();
    world.refuse = vec![Status::NoSpace, Status::Reclaiming, Status::Reclaiming];
    assert!(matches!(world.call(creation("g")), Err(Status::NoSpace)), "in the end the cluster says so");
    world.refuse = vec![Status::Reclaiming, Status::Reclaiming];
    let before = world.log.len();
    world.create("h");
    let numbers: Vec<_> = world.log[before..]
        .iter()
        .filter_map(|(_, request)| match request {
            Request::Namespace { number, op: Op::Create { .. }, .. } => Some(number.0),
            _ => None,
        })
        .collect();
    assert!(numbers.len() == 3 && numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
}

impl World {
    fn notice(&mut self, notice: Notice) {
        let link = *self.links.iter().find(|(_, at)| **at == self.leader).expect("a link to the leader").0;
        let frame = Frame { request: 0, body: Body::Notice(notice), payload: Bytes::new() };
        self.core.on_link(self.now, LinkEvent::Received { link, frame });
        self.drain();
    }
}

#[test]
fn a_change_is_not_kept_waiting_by_one_write_after_another() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"0");
    world.held_back = Some(Vec::new());
    let token = world.submit(chmod(ino));
    world.drain();
    for round in 0..6 {
        world.submit(call_write(ino, round, b"1"));
        world.drain();
        let answers = world.held_back.replace(Vec::new()).unwrap();
        for (link, frame) in answers {
            world.core.on_link(world.now, LinkEvent::Received { link, frame });
            world.drain();
        }
    }
    assert!(world.done.contains_key(&token), "it never came to its turn");
    world.let_go();
    world.run_for(AGE);
    assert_eq!(world.committed(ino), b"111111");
}

#[test]
fn a_right_that_was_not_given_back_after_all_is_given_back_when_recalled() {
    let (mut world, ino) = World::behind();
    world.put(ino, 0, b"bytes");
    world.call(Call::Query(Query::Release { ino, sequence: 1 << 40 })).unwrap();
    // The file is closed, so that its commit would give the right back; it is refused, and meanwhile the file is written on.
    world.refuse = vec![Status::Busy];
    world.run_until(|world| world.count(is_yielding) == 1);
    world.refuse.clear();
    world.call(call_write(ino, 5, b" more")).unwrap();
    world.run_for(AGE * 2);
    assert!(!world.is_dirty());
    assert_eq!(world.committed(ino), b"bytes more");
    if world.written.contains(&ino) {
        world.recall_inode(1, ino);
        world.obey();
        world.run_for(AGE);
        assert!(!world.written.contains(&ino), "a recall that is answered and not obeyed costs the session");
    }
}

#[test]
fn a_creation_without_an_answer_makes_recalls_no_dearer() {
    let (mut world, _) = World::behind();
    world.swallow = u32::MAX;
    let token = world.submit(creation("unheard"));
    assert_eq!(world.wait(token).err(), Some(Status::TimedOut));
    world.swallow = 0;
    world.run_for(Duration::from_secs(2));
    let unheard = world.names[&name("unheard")];
    assert!(world.written.contains(&unheard), "it happened");
    // An operation that names nothing has laid the ghost by now. Of all other files nothing has to be given back through the log.
    let laid = world.count(is_yield);
    for number in 1..=20 {
        let ino = InodeId(100 + number);
        world.files.insert(ino, File::default());
        world.call(stat(ino)).unwrap();
        world.recall_inode(number, ino);
        world.obey();
    }
    assert_eq!((world.count(is_recalled), world.count(is_yield) - laid), (20, 0));
    // The leader insists on the one that this client may write without knowing it.
    world.recall_inode(21, unheard);
    world.obey();
    assert_eq!((world.count(is_recalled), world.count(is_yield) - laid), (21, 0));
    world.recall_inode(21, unheard);
    world.obey();
    world.run_for(Duration::from_millis(10));
    assert_eq!((world.count(is_recalled), world.count(is_yield) - laid), (22, 1));
    assert!(!world.written.contains(&unheard));
}

/// Recalls that the last renewal named.
fn flushing(world: &World) -> Vec<u64> {
    let told = |(_, request): &(usize, Request)| if let Request::Renew { flushing, .. } = request { Some(flushing.clone()) } else { None };
    world.log.iter().rev().find_map(told).expect("it renews")
}

#[test]
fn the_leader_is_told_which_recalls_wait_for_a_commit() {
    let (mut world, ino) = World::behind();
    let renewal = limits::SESSION_RENEW_INTERVAL + Duration::from_millis(100);
    world.put(ino, 0, &noise(100_000, 1));
    world.nodes.iter_mut().for_each(|node| node.full = true);
    world.recall_inode(7, ino);
    world.run_for(renewal);
    assert_eq!(flushing(&world), [0; 0], "the caches above may be stuck, which is no commit");
    world.obey();
    world.run_for(renewal);
    assert_eq!(flushing(&world), [7]);
    world.nodes.iter_mut().for_each(|node| node.full = false);
    world.run_until(|world| world.count(is_recalled) == 1);
    world.run_for(renewal);
    assert_eq!(flushing(&world), [0; 0]);
    assert!(!world.is_dirty());
}

#[test]
fn a_recall_that_meets_a_right_on_its_way_back_is_answered_once_it_is_back() {
    for others_are_made in [false, true] {
        let (mut world, _) = World::behind();
        // What the answer to a retry grants may have been recalled since, so it goes back at once.
        world.swallow = 1;
        let unheard = world.submit(creation("unheard"));
        world.drain();
        world.held_back = Some(Vec::new());
        while world.count(is_yield) == 0 {
            world.run_until(|world| world.held_back.as_ref().is_some_and(|answers| !answers.is_empty()));
            let (link, frame) = world.held_back.as_mut().unwrap().remove(0);
            world.core.on_link(world.now, LinkEvent::Received { link, frame });
            world.drain();
        }
        assert!(world.done.contains_key(&unheard));
        if others_are_made {
            // This one may bring any right, as far as is known here.
            world.submit(creation("other"));
            world.drain();
        }
        world.recall_inode(1, world.names[&name("unheard")]);
        world.obey();
        assert_eq!(world.count(is_recalled), 0);
        world.let_go();
        assert_eq!((world.count(is_recalled), world.count(is_yield)), (1, 1), "else this session counts as one that does not obey");
        world.core.check_invariants();
    }
}

#[test]
fn files_that_are_committed_are_no_calls() {
    let (mut world, _) = World::behind();
    let files = limits::CLIENT_CALLS_MAX + 10;
    for n in 0..files {
        let ino = InodeId(100_000 + n as u64);
        world.files.insert(ino, File::default());
        world.written.insert(ino);
        world.core.rights.grant_write(ino);
        world.core.rights.learn_attributes(&attributes(ino, &world.files[&ino]));
        world.core.submit(world.now, u64::MAX - n as u64, call_write(ino, 0, b"x"));
        world.drain();
    }
    assert!(world.core.dirty_files().len() > limits::CLIENT_CALLS_MAX, "only {} are dirty", world.core.dirty_files().len());
    world.held_back = Some(Vec::new());
    let flush = world.submit(Call::Flush);
    world.drain();
    let look = world.submit(Call::Query(Query::Space));
    world.drain();
    assert!(!matches!(world.done.get(&look), Some(Err(Status::Busy))), "refused though nobody asked for anything else");
    world.let_go();
    assert!(matches!(world.wait(flush), Ok(Reply::Done)));
    assert!(!world.is_dirty());
}
