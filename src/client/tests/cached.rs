//! Scripts about rights: what costs no message, what a recall takes, what is not believed.

use super::*;
use crate::wire::message::{Notice, Recall};
use crate::wire::namespace::{NewKind, RenameMode};
use crate::xattr::{ACCESS_ACL, XattrName};

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn lookup(text: &str) -> Call {
    Call::Query(Query::Lookup { parent: DIRECTORY, name: name(text) })
}

pub(super) fn stat(ino: InodeId) -> Call {
    Call::Query(Query::Attributes { ino })
}

fn list(after: u64, limit: u32) -> Call {
    Call::Query(Query::ReadDirectory { ino: DIRECTORY, after: Cookie(after), limit })
}

pub(super) fn create(text: &str) -> Call {
    let (kind, mode, uid, gid, exclusive, hold, write) = (NewKind::File, 0o644, 0, 0, true, true, false);
    Call::Op(Op::Create { parent: DIRECTORY, name: name(text), kind, mode, uid, gid, exclusive, hold, write, umask: 0 })
}

fn unlink(text: &str) -> Call {
    Call::Op(Op::Unlink { parent: DIRECTORY, name: name(text) })
}

pub(super) fn rename(from: &str, to: &str) -> Call {
    let (from_name, to_name, mode) = (name(from), name(to), RenameMode::Replace);
    Call::Op(Op::Rename { from_parent: DIRECTORY, from_name, to_parent: DIRECTORY, to_name, mode })
}

fn hold(ino: InodeId, sequence: u64) -> Call {
    Call::Query(Query::Hold { ino, sequence })
}

fn release(ino: InodeId, sequence: u64) -> Call {
    Call::Query(Query::Release { ino, sequence })
}

fn is_hold(request: &Request) -> bool {
    matches!(request, Request::Query(Query::Hold { .. }))
}

fn is_release(request: &Request) -> bool {
    matches!(request, Request::Query(Query::Release { .. }))
}

pub(super) fn is_recalled(request: &Request) -> bool {
    matches!(request, Request::Recalled { .. })
}

impl World {
    /// A client with caches, and files `a`, `b` and `c` beside the one without a name.
    fn caching() -> World {
        let mut world = World::with(true);
        for (text, ino) in [("a", 10), ("b", 11), ("c", 12)] {
            world.names.insert(name(text), InodeId(ino));
            world.files.insert(InodeId(ino), File::default());
        }
        world.run_for(Duration::from_millis(10));
        world
    }

    /// What the call costs in control messages.
    pub(super) fn cost(&mut self, call: Call) -> u64 {
        let before = self.core.counters().control_requests;
        let text = format!("{call:?}");
        if let Err(status) = self.call(call) {
            assert_eq!(status, Status::NotFound, "{text}");
        }
        self.core.counters().control_requests - before
    }

    pub(super) fn recall(&mut self, number: u64, items: Vec<Recall>) {
        let term = Term(self.term);
        let notice = Notice::Recall { term, number, items };
        let control = |link: &&LinkId| self.links[*link] == self.leader;
        let link = *self.links.keys().find(control).expect("a link to the leader");
        let frame = Frame { request: 0, body: Body::Notice(notice), payload: Bytes::new() };
        self.core.on_link(self.now, LinkEvent::Received { link, frame });
        self.drain();
    }

    pub(super) fn recall_inode(&mut self, number: u64, ino: InodeId) {
        self.recall(number, vec![Recall::Inode { ino, keep: Rights::NONE }]);
    }

    /// The caches above have forgotten all that they were told to forget.
    pub(super) fn obey(&mut self) -> Vec<Invalidation> {
        let all = std::mem::take(&mut self.invalidated);
        all.iter().for_each(|(id, _)| self.core.on_invalidated(self.now, *id));
        self.drain();
        all.into_iter().map(|(_, what)| what).collect()
    }

    pub(super) fn let_go(&mut self) {
        for (link, frame) in self.held_back.take().unwrap_or_default() {
            self.core.on_link(self.now, LinkEvent::Received { link, frame });
        }
        self.drain();
    }
}

#[test]
fn what_is_known_under_a_right_costs_no_message() {
    let mut world = World::caching();
    world.write(WriteAt::Offset(0), noise(100_000, 1)).unwrap();
    world.read(0, 1 << 20).unwrap();
    world.call(Call::Query(Query::ReadLink { ino: INO })).unwrap();
    assert_eq!(world.cost(lookup("a")), 1);
    assert_eq!(world.cost(lookup("x")), 1);
    assert_eq!(world.cost(list(0, 512)), 1);
    let before = world.core.counters();
    for _ in 0..3 {
        for call in [lookup("a"), lookup("x"), lookup("b"), lookup("y"), stat(InodeId(10)), stat(INO), list(0, 512), list(11, 512)] {
            assert_eq!(world.cost(call), 0);
        }
        assert_eq!(world.cost(Call::Query(Query::ReadLink { ino: INO })), 0);
        assert_eq!(world.read(0, 1 << 20).unwrap(), noise(100_000, 1));
        assert_eq!(world.read(50_000, 1 << 20).unwrap(), noise(100_000, 1)[50_000..]);
        assert_eq!((world.cost(hold(INO, 1)), world.cost(release(INO, 2))), (0, 0));
    }
    assert_eq!(world.core.counters(), before);
    let Ok(Reply::Answer(Answer::Directory { entries, end, .. })) = world.call(list(10, 1)) else { panic!() };
    assert_eq!((entries.len(), entries[0].name.clone(), entries[0].current, end), (1, name("b"), true, false));
    assert!(world.core.lifetime(INO).is_some() && world.core.listing_lifetime(DIRECTORY).is_some());
}

#[test]
fn extended_attributes_that_are_known_to_be_absent_cost_no_message() {
    let mut world = World::caching();
    let ask = |ino, name: &[u8]| Call::Query(Query::Xattr { ino, name: XattrName::new(name).unwrap() });
    let absent = |result| matches!(result, Err(Status::NoData));
    let there = |result| matches!(result, Ok(Reply::Answer(Answer::Xattr(value))) if value == b"value"[..]);
    // What is not known is asked; so is what is there, and what shares the one bit with it.
    assert!(there(world.call(ask(InodeId(10), CAPABILITY))));
    for ino in [10, 12] {
        assert_eq!(world.cost(stat(InodeId(ino))), 1);
    }
    let before = world.core.counters();
    for name in [CAPABILITY, ACCESS_ACL, b"user.a"] {
        assert!(absent(world.call(ask(InodeId(10), name))));
    }
    assert!(absent(world.call(ask(InodeId(12), ACCESS_ACL))));
    let listed = world.call(Call::Query(Query::Xattrs { ino: InodeId(10) }));
    assert!(matches!(listed, Ok(Reply::Answer(Answer::Xattrs(names))) if names.is_empty()));
    assert_eq!(world.core.counters(), before);
    for name in [CAPABILITY, b"user.a"] {
        assert!(there(world.call(ask(InodeId(12), name))));
    }
    // Absence ends with the right.
    world.recall_inode(1, InodeId(10));
    assert!(there(world.call(ask(InodeId(10), CAPABILITY))));
}

#[test]
fn an_answer_without_a_grant_is_not_kept() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.grants = Rights::NONE;
    assert_eq!((world.cost(lookup("b")), world.cost(lookup("b"))), (1, 1));
    assert_eq!((world.cost(stat(INO)), world.cost(stat(INO))), (1, 1));
    assert_eq!(world.core.lifetime(INO), None);
    assert_eq!(world.cost(lookup("a")), 0);
}

#[test]
fn what_is_told_while_somebody_changes_it_has_no_lifetime_above() {
    let mut world = World::caching();
    let until = |world: &World, text: &str, told: u64| world.core.name_lifetime(DIRECTORY, &name(text), Some(InodeId(told)));
    let absent = |world: &World, text: &str| world.core.name_lifetime(DIRECTORY, &name(text), None);
    world.cost(list(0, 512));
    assert!(until(&world, "a", 10).is_some() && until(&world, "a", 11).is_none() && absent(&world, "a").is_none());
    assert!(absent(&world, "x").is_some() && world.core.listing_lifetime(DIRECTORY).is_some());
    world.recall(1, vec![Recall::Name { directory: DIRECTORY, name: name("a") }]);
    world.obey();
    // The leader answers, and grants nothing: `a` is about to go.
    world.grants = Rights::NONE;
    assert_eq!((world.cost(lookup("a")), world.cost(list(0, 512))), (1, 1));
    assert!(until(&world, "a", 10).is_none() && until(&world, "b", 11).is_some());
    assert_eq!(world.core.listing_lifetime(DIRECTORY), None);
    // It is gone, and the next answer says that nothing is under way any more.
    world.names.remove(&name("a"));
    world.grants = Rights::READ.with(Rights::NAMES);
    assert_eq!(world.cost(lookup("a")), 1);
    assert!(absent(&world, "a").is_some() && world.core.listing_lifetime(DIRECTORY).is_some());
    // Attributes likewise.
    let version = world.call(stat(InodeId(11))).map(|reply| match reply {
        Reply::Answer(Answer::Attributes(attributes)) => attributes.version,
        other => panic!("{other:?}"),
    });
    let version = version.unwrap();
    assert!(world.core.attributes_lifetime(InodeId(11), version).is_some());
    assert_eq!(world.core.attributes_lifetime(InodeId(11), version + 1), None);
}

#[test]
fn a_recall_takes_what_it_names_and_is_answered_after_the_caches_above() {
    let mut world = World::caching();
    world.cost(list(0, 512));
    world.recall(1, vec![Recall::Name { directory: DIRECTORY, name: name("a") }]);
    assert_eq!((world.core.lifetime(DIRECTORY), world.core.listing_lifetime(DIRECTORY)), (None, None));
    assert_eq!(world.core.name_lifetime(DIRECTORY, &name("a"), Some(InodeId(10))), None);
    assert!(world.core.name_lifetime(DIRECTORY, &name("b"), Some(InodeId(11))).is_some(), "the right to the others stays");
    assert_eq!(world.count(is_recalled), 0);
    world.recall(1, vec![Recall::Name { directory: DIRECTORY, name: name("a") }]);
    assert_eq!(world.obey(), [Invalidation::Name { directory: DIRECTORY, name: name("a") }], "a doubled notice is one");
    assert_eq!(world.count(is_recalled), 1);
    assert_eq!((world.cost(lookup("b")), world.cost(lookup("y"))), (0, 0));
    // Said again after it was obeyed, since the answer was lost.
    world.recall(1, vec![Recall::Name { directory: DIRECTORY, name: name("a") }]);
    world.obey();
    assert_eq!(world.count(is_recalled), 2);
    assert_eq!(world.cost(list(0, 512)), 1);
    world.recall_inode(2, InodeId(11));
    assert_eq!(world.core.lifetime(InodeId(11)), None);
    assert_eq!((world.cost(stat(InodeId(10))), world.cost(stat(InodeId(11)))), (0, 1));
    world.obey();
    assert_eq!(world.count(is_recalled), 3);
    // A line whose attributes are not known takes one question about all lines.
    world.recall_inode(3, InodeId(12));
    world.obey();
    assert_eq!((world.cost(list(0, 512)), world.cost(list(0, 512))), (1, 0));
}

#[test]
fn an_answer_to_a_name_that_is_closed_is_not_kept() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.recall(1, vec![Recall::Name { directory: DIRECTORY, name: name("a") }]);
    world.obey();
    world.grants = Rights::NONE;
    assert_eq!(world.cost(lookup("a")), 1);
    world.names.remove(&name("a"));
    assert_eq!(world.call(lookup("a")).err(), Some(Status::NotFound), "although names may still be kept");
}

#[test]
fn nothing_is_used_after_the_lease_until_the_leader_says_that_it_stands() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.nodes[0].silent = true;
    world.run_for(limits::SESSION_LEASE - limits::SESSION_MARGIN - limits::SESSION_RENEW_INTERVAL);
    assert_eq!(world.cost(lookup("a")), 0);
    world.run_for(limits::SESSION_RENEW_INTERVAL);
    assert!(world.core.lifetime(InodeId(10)).is_some_and(|until| until < world.now));
    let token = world.submit(lookup("a"));
    world.drain();
    assert!(!world.done.contains_key(&token), "the leader is asked");
    world.nodes[0].silent = false;
    world.wait(token).unwrap();
    world.run_for(Duration::from_secs(3));
    assert_eq!(world.cost(lookup("a")), 0, "the leader had let the rights stand");
    world.era = 2;
    world.run_for(Duration::from_secs(2));
    let gone = world.obey();
    assert!(gone.contains(&Invalidation::Inode { ino: InodeId(10) }) && gone.contains(&Invalidation::Names { directory: DIRECTORY }));
    assert_eq!((world.cost(lookup("a")), world.cost(lookup("a"))), (1, 0));
}

#[test]
fn a_new_leader_is_told_of_rights_and_prolongs_them_then() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.cost(hold(INO, 1));
    world.kill(0);
    (world.leader, world.term, world.era) = (2, 2, 0);
    world.run_for(Duration::from_millis(1500));
    let told = |request: &Request| match request {
        Request::Query(Query::Reclaim { term: Term(2), held, rights, last: true }) => {
            held == &[INO] && rights.contains(&(InodeId(10), Rights::READ.with(Rights::NAMES)))
        }
        _ => false,
    };
    assert_eq!(world.count(told), 1);
    let until = world.core.lifetime(InodeId(10)).unwrap();
    world.run_for(Duration::from_millis(500));
    assert_eq!(world.core.lifetime(InodeId(10)), Some(until), "not prolonged by a leader that is not whole");
    assert_eq!(world.cost(lookup("a")), 0);
    world.era = 1;
    world.run_for(Duration::from_millis(300));
    assert!(world.core.lifetime(InodeId(10)).unwrap() > until);
    assert_eq!(world.cost(lookup("a")), 0);
}

#[test]
fn a_new_leader_is_not_told_of_rights_whose_lease_is_over() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.nodes.iter_mut().for_each(|node| node.silent = true);
    world.run_for(limits::SESSION_LEASE);
    world.kill(0);
    world.nodes.iter_mut().for_each(|node| node.silent = false);
    (world.leader, world.term, world.era) = (2, 2, 0);
    world.run_for(Duration::from_secs(3));
    let told = |request: &Request| matches!(request, Request::Query(Query::Reclaim { term: Term(2), rights, .. }) if !rights.is_empty());
    assert_eq!(world.count(told), 0, "a leader between may have voided them");
    assert!(world.obey().contains(&Invalidation::Inode { ino: InodeId(10) }));
    world.era = 1;
    world.run_for(Duration::from_secs(1));
    assert_eq!((world.cost(lookup("a")), world.cost(lookup("a"))), (1, 0));
}

#[test]
fn own_changes_are_seen_when_they_are_answered() {
    let mut world = World::caching();
    world.cost(list(0, 512));
    world.call(create("new")).unwrap();
    let Ok(Reply::Answer(Answer::Attributes(found))) = world.call(lookup("new")) else { panic!() };
    assert_eq!(found.ino, InodeId(1003));
    assert_eq!((world.cost(lookup("new")), world.cost(lookup("y"))), (0, 0));
    assert_eq!(world.cost(list(0, 512)), 1, "its cookie is only known to the leader");
    world.call(unlink("a")).unwrap();
    assert_eq!((world.cost(lookup("a")), world.cost(lookup("b"))), (0, 0));
    world.call(rename("b", "a")).unwrap();
    assert_eq!(world.call(lookup("b")).err(), Some(Status::NotFound));
    let Ok(Reply::Answer(Answer::Attributes(found))) = world.call(lookup("a")) else { panic!() };
    assert_eq!(found.ino, InodeId(11));
    world.write(WriteAt::Offset(0), &b"bytes"[..]).unwrap();
    let before = world.core.counters();
    let Ok(Reply::Answer(Answer::Attributes(found))) = world.call(stat(INO)) else { panic!() };
    assert_eq!((found.size, world.core.counters()), (5, before));
}

#[test]
fn the_leader_is_asked_about_what_an_own_change_is_changing() {
    let mut world = World::caching();
    world.files.insert(DIRECTORY, File::default());
    world.cost(list(0, 512));
    world.held_back = Some(Vec::new());
    let change = world.submit(unlink("a"));
    let looks = [lookup("a"), stat(InodeId(10)), stat(DIRECTORY), list(0, 512)].map(|call| world.submit(call));
    world.drain();
    assert!(world.done.is_empty(), "somebody may have seen the new state already");
    assert_eq!(world.cost(lookup("b")), 0);
    world.let_go();
    world.wait(change).unwrap();
    assert_eq!(world.wait(looks[0]).err(), Some(Status::NotFound));
    assert_eq!(world.cost(lookup("a")), 0);
}

#[test]
fn a_change_that_was_given_up_is_not_believed_either_way() {
    let mut world = World::caching();
    world.cost(list(0, 512));
    world.nodes[0].silent = true;
    let change = world.submit(unlink("a"));
    assert_eq!(world.wait(change).err(), Some(Status::TimedOut));
    world.nodes[0].silent = false;
    world.swallow = u32::MAX;
    world.run_for(Duration::from_millis(100));
    assert_eq!((world.cost(lookup("a")), world.cost(lookup("a"))), (1, 1), "it may happen yet");
    assert_eq!(world.core.listing_lifetime(DIRECTORY), None);
    world.names.remove(&name("a"));
    world.swallow = 0;
    world.run_for(Duration::from_secs(12));
    assert_eq!(world.cost(lookup("a")), 1, "what was known while it could happen is forgotten");
    assert_eq!(world.call(lookup("a")).err(), Some(Status::NotFound));
    assert!(world.core.listing_lifetime(DIRECTORY).is_some());
}

#[test]
fn answers_of_an_earlier_term_teach_nothing() {
    let mut world = World::caching();
    world.cost(lookup("a"));
    world.recall_inode(1, InodeId(10));
    world.obey();
    world.held_back = Some(Vec::new());
    let token = world.submit(stat(InodeId(10)));
    world.drain();
    // Its successor speaks first.
    (world.core.session.term, world.term) = (Term(9), 9);
    world.let_go();
    world.wait(token).unwrap();
    assert_eq!(world.core.lifetime(InodeId(10)), None);
}

#[test]
fn a_hold_is_said_when_the_right_goes_and_given_back_late() {
    let mut world = World::caching();
    world.cost(stat(INO));
    assert_eq!(world.cost(hold(INO, 1)), 0);
    let grants = std::mem::take(&mut world.grants);
    world.held_back = Some(Vec::new());
    world.recall_inode(1, INO);
    world.obey();
    assert_eq!((world.count(is_hold), world.count(is_recalled)), (1, 0), "the leader must know first that it is open");
    world.let_go();
    assert_eq!(world.count(is_recalled), 1);
    // With the right again, it stays said beyond the close.
    world.grants = grants;
    assert_eq!(world.cost(stat(INO)), 1);
    assert_eq!((world.cost(release(INO, 2)), world.cost(hold(INO, 3)), world.cost(release(INO, 4))), (0, 0, 0));
    world.recall_inode(2, INO);
    world.obey();
    assert_eq!((world.count(is_hold), world.count(is_release)), (1, 1));
    let late = |request: &Request| matches!(request, Request::Query(Query::Release { ino: INO, sequence: 4 }));
    assert_eq!(world.count(late), 1);
    // Without a right both are said at once.
    world.grants = Rights::NONE;
    assert_eq!((world.cost(hold(INO, 5)), world.cost(release(INO, 6))), (1, 1));
}

#[test]
fn an_open_file_is_held_before_this_session_takes_its_name() {
    let mut world = World::caching();
    world.cost(list(0, 512));
    assert_eq!(world.cost(hold(InodeId(10), 1)), 0);
    world.call(unlink("a")).unwrap();
    let order: Vec<bool> = world.log.iter().map(|(_, request)| request).filter(|r| is_hold(r) || is_namespace(r)).map(is_hold).collect();
    assert_eq!(order, [true, false]);
    assert_eq!(world.cost(release(InodeId(10), 2)), 1, "nothing keeps a file without a name once it is closed");
    // One that was closed, but not yet given back, is so with its name.
    world.call(create("new")).unwrap();
    assert_eq!(world.cost(release(InodeId(1002), 3)), 0);
    world.call(unlink("new")).unwrap();
    world.run_for(Duration::from_millis(1));
    assert_eq!(world.count(is_release), 2);
}

#[test]
fn too_many_rights_are_given_up_after_the_caches_above_have_forgotten() {
    let mut world = World::caching();
    world.core.rights.inodes_max_for_test(10);
    for n in 100..120 {
        world.files.insert(InodeId(n), File::default());
        world.cost(stat(InodeId(n)));
    }
    let given_up = |request: &Request| matches!(request, Request::GiveUp { .. });
    assert_eq!(world.count(given_up), 0);
    let forgotten = world.obey();
    assert!(forgotten.contains(&Invalidation::Inode { ino: InodeId(100) }));
    assert!(world.count(given_up) >= 1);
    assert_eq!(world.cost(stat(InodeId(119))), u64::from(forgotten.contains(&Invalidation::Inode { ino: InodeId(119) })));
    assert_eq!((world.cost(stat(InodeId(100))), world.cost(stat(InodeId(100)))), (1, 0));
}

#[test]
fn a_layout_is_trusted_only_for_the_bytes_that_it_described() {
    let mut world = World::caching();
    world.write(WriteAt::Offset(0), noise(50_000, 1)).unwrap();
    world.read(0, 50_000).unwrap();
    world.recall_inode(1, INO);
    world.obey();
    // Somebody else writes.
    let other = Patch { at: WriteAt::Offset(0), length: 3, source: Source::Inline(Bytes::from_static(b"new")) };
    let file = world.files.get_mut(&INO).unwrap();
    file.patch(other);
    file.version.data += 1;
    assert_eq!(world.cost(stat(INO)), 1);
    let mut expected = noise(50_000, 1);
    expected[..3].copy_from_slice(b"new");
    let before = world.core.counters();
    assert_eq!(world.read(0, 50_000).unwrap(), expected);
    assert_eq!(world.read(0, 50_000).unwrap(), expected);
    assert_eq!(world.core.counters().control_requests - before.control_requests, 1);
    // A fold by somebody else moves the bytes: the extents are asked for again when they are not found.
    let bytes = Bytes::from(expected.clone());
    let hash = ChunkHash::of(&bytes);
    world.nodes.iter_mut().for_each(|node| {
        node.chunks.clear();
        node.chunks.insert(hash, bytes.clone());
    });
    let place = ChunkPlace {
        hash,
        length: 50_000,
        instance: crate::types::Instance { session: SessionId(1), counter: 1 },
        holders: vec![NodeId(101)],
    };
    world.places.insert(hash, place);
    let file = world.files.get_mut(&INO).unwrap();
    file.extents = vec![Extent { offset: 0, length: 50_000, source: Source::Chunk { hash, offset: 0 } }];
    file.version.layout += 1;
    world.core.cache = super::super::cache::ChunkCache::new(0);
    assert_eq!(world.read(0, 50_000).unwrap(), expected);
}
