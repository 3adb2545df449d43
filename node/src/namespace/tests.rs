//! Rules of the namespace, one by one.

use bytes::Bytes;
use dfs::cluster_map::{Member, MemberState};
use dfs::limits;
use dfs::types::*;
use dfs::wire::message::Verdict;
use dfs::wire::namespace::*;

use super::*;

mod fsck;
mod space;

const SESSION: SessionId = SessionId(7);

/// A namespace with two storage nodes and a session, and the log that made it.
pub(super) struct World {
    pub namespace: Namespace,
    pub log: Vec<(u64, LogEntry)>,
    number: u64,
    last: Option<Command>,
}

pub(super) fn member(id: u64, port: u16) -> Member {
    let address = Address::Tcp { host: "node".into(), port };
    Member { id: NodeId(id), address, memory: 1 << 30, zone: String::new(), state: MemberState::Live }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    pub fn new() -> World {
        World::with_limits(SpaceLimits::default())
    }

    fn with_limits(limits: SpaceLimits) -> World {
        let mut world = World { namespace: Namespace::new(limits), log: Vec::new(), number: 0, last: None };
        world.apply(Command::Found { cluster: ClusterId(9), replicas: 2, awaited: Vec::new() }).unwrap();
        world.apply(Command::SetMember(member(1, 1))).unwrap();
        world.apply(Command::SetMember(member(2, 2))).unwrap();
        world.apply(Command::OpenSession { session: SESSION, caches: true }).unwrap();
        world
    }

    pub fn apply(&mut self, command: Command) -> Result<Replied, Status> {
        let index = self.namespace.applied() + 1;
        let entry = LogEntry { time: Timestamp { seconds: index as i64, nanos: 5 }, command };
        let outcome = self.namespace.apply(index, &entry);
        self.log.push((index, entry));
        outcome
    }

    pub fn op(&mut self, op: Op) -> Result<Replied, Status> {
        self.number += 1;
        let (number, answered_below) = (RequestNumber(self.number), RequestNumber(self.number.saturating_sub(10).max(1)));
        let command = Command::Request { session: SESSION, number, answered_below, uploads_from: 1, op };
        self.last = Some(command.clone());
        self.apply(command)
    }

    /// The last request once more.
    pub fn repeat(&mut self) -> Result<Replied, Status> {
        self.apply(self.last.clone().unwrap())
    }

    fn create(&mut self, parent: InodeId, text: &str, kind: NewKind) -> Result<Attributes, Status> {
        let op = Op::Create {
            parent,
            name: name(text),
            kind,
            mode: 0o644,
            uid: 10,
            gid: 20,
            exclusive: true,
            hold: false,
            write: false,
            umask: 0,
        };
        match self.op(op)? {
            Replied::Entry { attributes, created: true, .. } => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn file(&mut self, text: &str) -> InodeId {
        self.create(ROOT, text, NewKind::File).unwrap().ino
    }

    fn write(&mut self, ino: InodeId, at: WriteAt, bytes: &[u8]) -> Result<Attributes, Status> {
        let patches = vec![Patch { at, length: bytes.len() as u64, source: Source::Inline(Bytes::copy_from_slice(bytes)) }];
        self.patch(ino, patches, Vec::new())
    }

    fn patch(&mut self, ino: InodeId, patches: Vec<Patch>, chunks: Vec<ChunkClaim>) -> Result<Attributes, Status> {
        match self.op(Op::Write { ino, patches, chunks, kill_privileges: false, behind: None })? {
            Replied::Written { attributes, .. } => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn write_chunk(&mut self, ino: InodeId, offset: u64, claim: ChunkClaim) -> Result<Attributes, Status> {
        let source = Source::Chunk { hash: claim.hash, offset: 0 };
        let patches = vec![Patch { at: WriteAt::Offset(offset), length: u64::from(claim.length), source }];
        self.patch(ino, patches, vec![claim])
    }

    fn unlink(&mut self, text: &str) -> Result<Replied, Status> {
        self.op(Op::Unlink { parent: ROOT, name: name(text) })
    }

    fn truncate(&mut self, ino: InodeId, size: u64) -> Result<Attributes, Status> {
        let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
        match self.op(Op::SetAttributes { ino, set })? {
            Replied::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn layout(&self, ino: InodeId) -> (Vec<Extent>, Vec<ChunkPlace>, Vec<(u64, u64)>) {
        let range = ByteRange { offset: 0, length: u64::MAX };
        match self.namespace.query(&Query::Extents { ino, range, known: None }).unwrap() {
            Answer::Extents { extents, chunks, truncated: false, fold, .. } => (extents, chunks, fold),
            other => panic!("{other:?}"),
        }
    }

    fn deleted(&mut self) -> Vec<(ChunkHash, Instance, Vec<NodeId>)> {
        let deleted =
            |effect| if let Effect::Deleted { hash, instance, holders } = effect { Some((hash, instance, holders)) } else { None };
        self.namespace.drain_effects().into_iter().filter_map(deleted).collect()
    }
}

fn claim(fill: u8, counter: u64, receipts: &[u64]) -> ChunkClaim {
    let bytes = vec![fill; 1000];
    let instance = Instance { session: SESSION, counter };
    ChunkClaim { hash: ChunkHash::of(&bytes), length: 1000, instance, receipts: receipts.iter().map(|&id| NodeId(id)).collect() }
}

#[test]
fn a_late_or_doubled_request_gets_the_first_outcome() {
    let mut world = World::new();
    let made = world.create(ROOT, "a", NewKind::File).unwrap();
    let hash = world.namespace.tables_hash();
    assert_eq!(world.repeat(), Ok(Replied::Entry { attributes: made, created: true, writer: false }));
    assert_eq!(world.namespace.tables_hash(), hash, "the second time nothing happened");
    // An error is an outcome as well: the name is gone meanwhile, the answer stays.
    let op = Op::Create {
        parent: ROOT,
        name: name("a"),
        kind: NewKind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        exclusive: true,
        hold: false,
        write: false,
        umask: 0,
    };
    assert_eq!(world.op(op), Err(Status::Exists));
    let refused = world.last.clone().unwrap();
    world.unlink("a").unwrap();
    assert_eq!(world.apply(refused.clone()), Err(Status::Exists));
    // Once the client has it, it is forgotten, and a late copy still does nothing.
    world.apply(Command::Progress { session: SESSION, answered_below: RequestNumber(world.number + 1), uploads_from: 1 }).unwrap();
    assert_eq!(world.namespace.outcome(SESSION, RequestNumber(1)), None);
    assert_eq!(world.apply(refused), Err(Status::TooOld));
    world.namespace.check_invariants();
}

#[test]
fn a_passing_refusal_is_not_remembered() {
    let mut world = World::new();
    let ino = world.file("a");
    assert_eq!(world.write_chunk(ino, 0, claim(1, 1, &[1])), Err(Status::MissingReceipts));
    assert_eq!(world.namespace.outcome(SESSION, RequestNumber(world.number)), None);
    // With the other node dead one receipt is all there can be, and the same request succeeds.
    world.apply(Command::MarkDead { node: NodeId(2) }).unwrap();
    assert!(world.repeat().is_ok());
    world.namespace.check_invariants();
}

#[test]
fn the_window_is_bounded() {
    let mut world = World::new();
    let mut request = |number| {
        let op = Op::Unlink { parent: ROOT, name: name("x") };
        let (number, answered_below) = (RequestNumber(number), RequestNumber(1));
        world.apply(Command::Request { session: SESSION, number, answered_below, uploads_from: 1, op })
    };
    assert_eq!(request(limits::SESSION_WINDOW), Err(Status::NotFound));
    assert_eq!(request(limits::SESSION_WINDOW + 1), Err(Status::Busy));
    assert_eq!(request(u64::MAX), Err(Status::Busy));
    assert_eq!(request(0), Err(Status::TooOld));
}

#[test]
fn sessions_end_for_good() {
    let mut world = World::new();
    assert_eq!(world.apply(Command::EvictSession { session: SESSION }), Err(Status::Conflict));
    world.apply(Command::ExpireSession { session: SESSION }).unwrap();
    assert_eq!(world.namespace.session(SESSION).unwrap().state, SessionState::Expired);
    world.file("a");
    assert_eq!(world.namespace.session(SESSION).unwrap().state, SessionState::Open, "a request revives");
    world.apply(Command::ExpireSession { session: SESSION }).unwrap();
    world.apply(Command::EvictSession { session: SESSION }).unwrap();
    assert_eq!(world.unlink("a"), Err(Status::SessionGone));
    assert_eq!(world.apply(Command::OpenSession { session: SESSION, caches: true }), Err(Status::SessionGone));
    world.namespace.check_invariants();
}

#[test]
fn a_chunk_lives_as_long_as_an_extent_refers_to_it() {
    let mut world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.write_chunk(a, 0, claim(1, 1, &[1, 2])).unwrap();
    world.write_chunk(b, limits::SLOT_BYTES - 500, claim(1, 2, &[1, 2])).unwrap();
    let place = world.layout(a).1.remove(0);
    assert_eq!((place.instance.counter, place.holders), (1, vec![NodeId(1), NodeId(2)]), "the first upload stays live");
    assert_eq!(world.namespace.usage().referenced_bytes, 1000, "stored once");
    // Overwriting it with itself deletes nothing, not even for a moment.
    world.write_chunk(a, 0, claim(1, 3, &[1, 2])).unwrap();
    world.unlink("a").unwrap();
    world.apply(Command::Reap { inos: vec![a] }).unwrap();
    assert_eq!(world.deleted(), vec![]);
    world.truncate(b, limits::SLOT_BYTES - 100).unwrap();
    assert_eq!(world.deleted(), vec![]);
    world.apply(Command::MarkDead { node: NodeId(1) }).unwrap();
    world.truncate(b, 0).unwrap();
    let instance = Instance { session: SESSION, counter: 1 };
    assert_eq!(world.deleted(), vec![(claim(1, 1, &[]).hash, instance, vec![NodeId(2)])]);
    world.namespace.check_invariants();
}

#[test]
fn an_upload_that_was_deleted_cannot_be_named_again() {
    let mut world = World::new();
    let ino = world.file("a");
    world.write_chunk(ino, 0, claim(1, 1, &[1, 2])).unwrap();
    world.truncate(ino, 0).unwrap();
    assert_eq!(world.deleted().len(), 1);
    // The deletion is on its way to the holders: the same receipts prove nothing any more.
    let item = (claim(1, 1, &[]).hash, Instance { session: SESSION, counter: 1 });
    assert_eq!(world.namespace.verdicts(NodeId(1), &[item]), [Verdict::Garbage]);
    assert_eq!(world.write_chunk(ino, 0, claim(1, 1, &[1, 2])), Err(Status::Conflict));
    world.write_chunk(ino, 0, claim(1, 2, &[1, 2])).unwrap();
    world.namespace.check_invariants();
    // What is remembered of it is bounded, by the client's mark or by raising it.
    for counter in 3..limits::SPENT_UPLOADS_MAX as u64 + 10 {
        world.truncate(ino, 0).unwrap();
        world.write_chunk(ino, 0, claim(1, counter, &[1, 2])).unwrap();
    }
    let session = world.namespace.session(SESSION).unwrap();
    assert_eq!((session.spent.len(), session.uploads_from), (limits::SPENT_UPLOADS_MAX, 9));
    world.apply(Command::Progress { session: SESSION, answered_below: RequestNumber(1), uploads_from: u64::MAX }).unwrap();
    assert!(world.namespace.session(SESSION).unwrap().spent.is_empty());
    world.namespace.check_invariants();
}

#[test]
fn claims_are_checked() {
    let mut world = World::new();
    let ino = world.file("a");
    let before = world.namespace.attributes(ino).unwrap();
    assert_eq!(world.write_chunk(ino, 0, claim(1, 1, &[1, 1])), Err(Status::MissingReceipts), "one node twice is one");
    assert_eq!(world.write_chunk(ino, 0, claim(1, 1, &[1, 9])), Err(Status::MissingReceipts), "a stranger's receipt");
    let mut foreign = claim(1, 1, &[1, 2]);
    foreign.instance.session = SessionId(8);
    assert_eq!(world.write_chunk(ino, 0, foreign), Err(Status::InvalidArgument));
    let hash = claim(1, 1, &[]).hash;
    let patch = |offset, length| vec![Patch { at: WriteAt::Offset(0), length, source: Source::Chunk { hash, offset } }];
    assert_eq!(world.patch(ino, patch(0, 1000), vec![]), Err(Status::InvalidArgument), "nobody knows the chunk");
    assert_eq!(world.patch(ino, patch(1, 1000), vec![claim(1, 1, &[1, 2])]), Err(Status::InvalidArgument), "beyond the chunk");
    assert_eq!(world.patch(ino, patch(u32::MAX, 1000), vec![claim(1, 1, &[1, 2])]), Err(Status::InvalidArgument));
    world.apply(Command::Progress { session: SESSION, answered_below: RequestNumber(1), uploads_from: 5 }).unwrap();
    assert_eq!(world.write_chunk(ino, 0, claim(1, 4, &[1, 2])), Err(Status::Conflict), "given up");
    assert_eq!(world.namespace.attributes(ino).unwrap(), before);
    world.write_chunk(ino, 0, claim(1, 5, &[1, 2])).unwrap();
    for node in [1, 2] {
        world.apply(Command::RemoveMember { node: NodeId(node) }).unwrap();
    }
    assert_eq!(world.write_chunk(ino, 0, claim(2, 6, &[1, 2])), Err(Status::NoSpace), "nowhere to store");
    world.namespace.check_invariants();
}

#[test]
fn verdicts_tell_nodes_what_counts() {
    let mut world = World::new();
    world.apply(Command::SetMember(member(3, 3))).unwrap();
    let ino = world.file("a");
    // A chunk that node 3 is not to hold.
    let owned = |fill: &u8| dfs::placement::owners(world.namespace.map(), dfs::placement::group_of(&claim(*fill, 1, &[]).hash));
    let fill = (1..=255).find(|fill| !owned(fill).contains(&NodeId(3))).unwrap();
    world.write_chunk(ino, 0, claim(fill, 1, &[1, 2])).unwrap();
    let ask = |world: &mut World, node, counter| {
        let item = (claim(fill, 1, &[]).hash, Instance { session: SESSION, counter });
        world.namespace.verdicts(NodeId(node), &[item])[0]
    };
    let live = Verdict::Live(Instance { session: SESSION, counter: 1 });
    assert_eq!((ask(&mut world, 1, 1), ask(&mut world, 3, 1)), (live, Verdict::Pending));
    assert_eq!((ask(&mut world, 1, 2), ask(&mut world, 3, 2)), (Verdict::Pending, Verdict::Pending));
    world.apply(Command::Progress { session: SESSION, answered_below: RequestNumber(1), uploads_from: 3 }).unwrap();
    assert_eq!((ask(&mut world, 1, 2), ask(&mut world, 1, 3)), (live, Verdict::Pending));
    assert_eq!((ask(&mut world, 3, 1), ask(&mut world, 3, 2)), (Verdict::Garbage, Verdict::Garbage), "no unrecorded holder is kept");
    // A receipt records the node, whatever upload is live.
    world.write_chunk(ino, 5000, claim(fill, 3, &[3, 1])).unwrap();
    world.apply(Command::EndSession { session: SESSION }).unwrap();
    assert_eq!((ask(&mut world, 3, 3), ask(&mut world, 3, 99)), (live, live));
    let lost = vec![(claim(fill, 1, &[]).hash, Instance { session: SESSION, counter: 1 })];
    world.apply(Command::Lost { node: NodeId(3), items: lost }).unwrap();
    assert_eq!(ask(&mut world, 3, 3), Verdict::Garbage);
    // Of what has too few copies any is welcome, and so is one with an owner, or with somebody who is only thought to be dead.
    let lost = vec![(claim(fill, 1, &[]).hash, Instance { session: SESSION, counter: 1 })];
    world.apply(Command::MarkDead { node: NodeId(3) }).unwrap();
    assert_eq!(ask(&mut world, 3, 3), Verdict::Pending);
    world.apply(Command::SetMember(member(3, 3))).unwrap();
    assert_eq!(ask(&mut world, 3, 3), Verdict::Garbage);
    world.apply(Command::Lost { node: NodeId(1), items: lost }).unwrap();
    assert_eq!((ask(&mut world, 3, 3), ask(&mut world, 1, 1)), (Verdict::Pending, Verdict::Pending));
    world.namespace.check_invariants();
}

#[test]
fn copies_are_recorded_where_they_are_wanted_and_surplus_ones_go() {
    let mut world = World::new();
    (3..=4).for_each(|node| _ = world.apply(Command::SetMember(member(node, node as u16))).unwrap());
    let ino = world.file("a");
    let chunk = claim(1, 1, &[]);
    let order = dfs::placement::order(world.namespace.map(), dfs::placement::group_of(&chunk.hash));
    let ids: Vec<u64> = order.iter().map(|node| node.0).collect();
    let copied = |world: &mut World, node: u64, counter| {
        let items = vec![(chunk.hash, Instance { session: SESSION, counter })];
        world.namespace.drain_effects();
        world.apply(Command::Copied { node: NodeId(node), items }).unwrap();
        let gone: Vec<u64> = world
            .namespace
            .drain_effects()
            .into_iter()
            .flat_map(|effect| match effect {
                Effect::Deleted { holders, .. } => holders.into_iter().map(|node| node.0).collect(),
                _ => Vec::new(),
            })
            .collect();
        let mut holders: Vec<u64> = world.namespace.chunk_held(&chunk.hash).unwrap().holders.iter().map(|node| node.0).collect();
        holders.sort_by_key(|node| ids.iter().position(|other| other == node));
        (holders, gone)
    };
    // Both holders are no owners. One owner after the other takes over.
    world.write_chunk(ino, 0, claim(1, 1, &[ids[2], ids[3]])).unwrap();
    assert_eq!(copied(&mut world, ids[0], 7), (vec![ids[2], ids[3]], vec![]), "another upload says nothing of this one");
    assert_eq!(copied(&mut world, 99, 1), (vec![ids[2], ids[3]], vec![]), "a stranger");
    assert_eq!(copied(&mut world, ids[0], 1), (vec![ids[0], ids[2]], vec![ids[3]]));
    assert_eq!(copied(&mut world, ids[3], 1), (vec![ids[0], ids[2]], vec![]), "enough without it");
    assert_eq!(copied(&mut world, ids[1], 1), (vec![ids[0], ids[1]], vec![ids[2]]));
    assert_eq!(copied(&mut world, ids[1], 1), (vec![ids[0], ids[1]], vec![]), "twice is once");
    // One dies: anybody's copy is welcome, but his that is too late.
    world.apply(Command::MarkDead { node: order[1] }).unwrap();
    assert_eq!(copied(&mut world, ids[3], 1), (vec![ids[0], ids[3]], vec![]));
    assert_eq!(copied(&mut world, ids[2], 1), (vec![ids[0], ids[2]], vec![ids[3]]), "an owner, now that one is gone");
    // It was alive: its copy is the better one, as long as it has it.
    world.apply(Command::SetMember(member(ids[1], ids[1] as u16))).unwrap();
    assert_eq!(copied(&mut world, ids[1], 1), (vec![ids[0], ids[1]], vec![ids[2]]));
    // A node that drains counts no more, and goes when another has come.
    let leaving = Member { state: MemberState::Leaving, ..member(ids[0], ids[0] as u16) };
    world.apply(Command::SetMember(leaving)).unwrap();
    assert_eq!(copied(&mut world, ids[2], 1), (vec![ids[1], ids[2]], vec![ids[0]]));
    world.namespace.check_invariants();
}

#[test]
fn truncating_a_large_file_is_atomic_and_freed_in_slices() {
    let mut world = World::new();
    let ino = world.file("a");
    let slots = 3000;
    for base in (0..slots).step_by(60) {
        let patch = |index: u64| {
            let at = WriteAt::Offset((base + index) * limits::SLOT_BYTES);
            Patch { at, length: 1000, source: Source::Chunk { hash: claim(1, 1, &[]).hash, offset: 0 } }
        };
        world.patch(ino, (0..60).map(patch).collect(), vec![claim(1, 1, &[1, 2])]).unwrap();
    }
    assert_eq!(world.namespace.attributes(ino).unwrap().blocks, 2 * slots);
    assert_eq!(world.truncate(ino, 500).unwrap().blocks, 1);
    assert_eq!(world.truncate(ino, slots * limits::SLOT_BYTES).unwrap().size, slots * limits::SLOT_BYTES);
    world.write(ino, WriteAt::Offset(2000 * limits::SLOT_BYTES + 5), b"new").unwrap();
    let read = |world: &World, index: u64| {
        let range = ByteRange { offset: index * limits::SLOT_BYTES, length: limits::SLOT_BYTES };
        let Ok(Answer::Extents { extents, .. }) = world.namespace.query(&Query::Extents { ino, range, known: None }) else { panic!() };
        extents.iter().map(|extent| (extent.length, extent.source.clone())).collect::<Vec<_>>()
    };
    let mut trims = 0;
    while world.namespace.cuts_pending().count() > 0 {
        assert_eq!(read(&world, 7), vec![(limits::SLOT_BYTES, Source::Hole)]);
        assert_eq!(read(&world, 2000)[1], (3, Source::Inline(Bytes::from_static(b"new"))));
        world.namespace.check_invariants();
        world.apply(Command::Trim { inos: vec![ino] }).unwrap();
        trims += 1;
    }
    assert_eq!(trims, 6, "3000 slots with an extent each, 1024 visits a command");
    assert_eq!(world.namespace.attributes(ino).unwrap().blocks, 2);
    world.namespace.check_invariants();
}

#[test]
fn names_follow_the_rules_of_linux() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", NewKind::Directory).unwrap();
    assert_eq!((d.links, d.parent, world.namespace.attributes(ROOT).unwrap().links), (2, ROOT, 3));
    let e = world.create(d.ino, "e", NewKind::Directory).unwrap().ino;
    let f = world.file("f");
    assert_eq!(world.create(f, "x", NewKind::File), Err(Status::NotDirectory));
    assert_eq!(world.unlink("d"), Err(Status::IsDirectory));
    assert_eq!(world.op(Op::Rmdir { parent: ROOT, name: name("f") }), Err(Status::NotDirectory));
    assert_eq!(world.op(Op::Rmdir { parent: ROOT, name: name("d") }), Err(Status::NotEmpty));
    let mut rename = |from: InodeId, a: &str, to: InodeId, b: &str, mode| {
        let op = Op::Rename { from_parent: from, from_name: name(a), to_parent: to, to_name: name(b), mode };
        world.op(op)
    };
    assert_eq!(rename(ROOT, "d", e, "x", RenameMode::Replace), Err(Status::InvalidArgument));
    assert_eq!(rename(d.ino, "e", ROOT, "d", RenameMode::Replace), Err(Status::NotEmpty));
    assert_eq!(rename(ROOT, "f", ROOT, "d", RenameMode::Replace), Err(Status::IsDirectory));
    assert_eq!(rename(ROOT, "d", ROOT, "f", RenameMode::Replace), Err(Status::NotDirectory));
    assert_eq!(rename(ROOT, "d", ROOT, "f", RenameMode::NoReplace), Err(Status::Exists));
    assert_eq!(rename(ROOT, "d", ROOT, "nothing", RenameMode::Exchange), Err(Status::NotFound));
    assert_eq!(rename(d.ino, "e", ROOT, "f", RenameMode::Exchange), Ok(Replied::Done));
    assert_eq!(world.namespace.attributes(e).unwrap().parent, ROOT);
    assert_eq!(world.namespace.attributes(d.ino).unwrap().links, 2);
    assert_eq!(world.namespace.attributes(ROOT).unwrap().links, 4);
    assert_eq!(world.op(Op::Link { ino: e, parent: ROOT, name: name("l") }), Err(Status::NotPermitted));
    // A removed directory that somebody is in stays until it is reaped, and takes nothing new.
    world.op(Op::Rmdir { parent: ROOT, name: name("f") }).unwrap();
    assert!(world.namespace.is_orphan(e));
    assert_eq!(world.namespace.attributes(e).unwrap().links, 0);
    assert_eq!(world.create(e, "x", NewKind::File), Err(Status::NotFound));
    world.apply(Command::Reap { inos: vec![e, f, d.ino] }).unwrap();
    assert!(!world.namespace.exists(e) && world.namespace.exists(f), "only orphans are reaped");
    world.namespace.check_invariants();
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", NewKind::Directory).unwrap().ino;
    let set = SetAttributes { mode: Some(0o2775), gid: Some(55), ..SetAttributes::default() };
    world.op(Op::SetAttributes { ino: d, set }).unwrap();
    let file = world.create(d, "f", NewKind::File).unwrap();
    let directory = world.create(d, "g", NewKind::Directory).unwrap();
    assert_eq!((file.gid, file.mode, directory.gid, directory.mode), (55, 0o644, 55, 0o2644));
}

#[test]
fn attributes_change_as_asked_and_times_never_run_backwards() {
    let mut world = World::new();
    let ino = world.file("a");
    let made = world.namespace.attributes(ino).unwrap();
    let old = Timestamp { seconds: -5, nanos: 999_999_999 };
    let set = SetAttributes { mode: Some(0o6755), mtime: Some(SetTime::At(old)), atime: Some(SetTime::Now), ..Default::default() };
    let Ok(Replied::Attributes(changed)) = world.op(Op::SetAttributes { ino, set }) else { panic!() };
    assert_eq!((changed.mode, changed.mtime), (0o6755, old));
    assert!(changed.ctime > made.ctime && changed.atime == changed.ctime);
    let set = SetAttributes { uid: Some(3), kill_privileges: true, ..Default::default() };
    let Ok(Replied::Attributes(changed)) = world.op(Op::SetAttributes { ino, set }) else { panic!() };
    assert_eq!((changed.mode, changed.uid), (0o755, 3));
    let bad = SetAttributes { mtime: Some(SetTime::At(Timestamp { seconds: 0, nanos: 1_000_000_000 })), ..Default::default() };
    assert_eq!(world.op(Op::SetAttributes { ino, set: bad }), Err(Status::InvalidArgument));
    assert_eq!(world.truncate(ino, limits::FILE_BYTES_MAX + 1), Err(Status::FileTooLarge));
    assert_eq!(world.truncate(ROOT, 0), Err(Status::IsDirectory));
    assert_eq!(world.write(ino, WriteAt::Offset(limits::FILE_BYTES_MAX), b"x"), Err(Status::FileTooLarge));
    assert_eq!(world.write(ino, WriteAt::Offset(u64::MAX), b"x"), Err(Status::FileTooLarge));
    let index = world.namespace.applied() + 1;
    let entry = LogEntry { time: Timestamp::default(), command: Command::Noop };
    world.namespace.apply(index, &entry).unwrap();
    assert!(world.namespace.time() > Timestamp::default());
}

#[test]
fn holes_and_zeros_occupy_nothing() {
    let mut world = World::new();
    let ino = world.file("a");
    assert_eq!(world.write(ino, WriteAt::Offset(5 << 30), b"end").unwrap().blocks, 1);
    assert_eq!(world.write(ino, WriteAt::End, &[0; 5000]).unwrap().size, (5 << 30) + 5003);
    let (extents, _, _) = world.layout(ino);
    let lengths: Vec<u64> = extents.iter().map(|extent| extent.length).collect();
    assert_eq!(lengths, [5 << 30, 3, 5000]);
    assert_eq!(world.namespace.usage().inline_bytes, 3);
    let Ok(Answer::Extents { version, .. }) =
        world.namespace.query(&Query::Extents { ino, range: ByteRange { offset: 0, length: 1 }, known: None })
    else {
        panic!()
    };
    let again = world.namespace.query(&Query::Extents { ino, range: ByteRange { offset: 0, length: 1 }, known: Some(version) });
    assert!(matches!(again, Ok(Answer::Unchanged { .. })));
}

#[test]
fn a_scattered_slot_asks_for_folding_and_refuses_at_its_bound() {
    let mut world = World::new();
    let ino = world.file("a");
    let mut refused = None;
    for index in 0..=limits::SLOT_EXTENTS_MAX as u64 {
        let before = world.namespace.attributes(ino).unwrap();
        if let Err(status) = world.write(ino, WriteAt::Offset(index * 10), b"x") {
            refused = Some((index, status));
            assert_eq!(world.namespace.attributes(ino).unwrap(), before);
        }
    }
    assert_eq!(refused, Some((limits::SLOT_EXTENTS_MAX as u64, Status::Busy)));
    let (slot, slot_version) = world.layout(ino).2[0];
    let size = world.namespace.attributes(ino).unwrap().size;
    let bytes: Vec<u8> = (0..size).map(|at| if at % 10 == 0 { b'x' } else { 0 }).collect();
    let fold = |length: u64| {
        let source = Source::Inline(Bytes::copy_from_slice(&bytes[..length as usize]));
        let patches = vec![Patch { at: WriteAt::Offset(0), length, source }];
        Op::Fold { ino, slot, slot_version, patches, chunks: vec![] }
    };
    assert_eq!(world.op(fold(size - 1)), Err(Status::InvalidArgument), "the last byte would be lost");
    assert_eq!(world.op(fold(size)), Ok(Replied::Done));
    assert_eq!(world.op(fold(size)), Err(Status::Conflict), "the slot has moved");
    assert_eq!(world.layout(ino).0.len(), 1);
    world.namespace.check_invariants();
}

#[test]
fn a_full_namespace_refuses_new_things_and_lets_go_of_old_ones() {
    let mut world = World::with_limits(SpaceLimits { namespace_bytes_max: 20_000, inline_bytes_max: 3000 });
    let a = world.file("a");
    world.write(a, WriteAt::Offset(0), &[1; 2000]).unwrap();
    assert_eq!(world.write(a, WriteAt::End, &[1; 2000]), Err(Status::NoSpace));
    world.write_chunk(a, 2000, claim(1, 1, &[1, 2])).unwrap();
    let refused = (0..100).find_map(|index| world.create(ROOT, &format!("f{index}"), NewKind::File).err());
    assert_eq!(refused, Some(Status::NoSpace));
    world.unlink("a").unwrap();
    world.unlink("f0").unwrap();
    world.unlink("f1").unwrap();
    let orphans = world.namespace.orphans().collect();
    world.apply(Command::Reap { inos: orphans }).unwrap();
    world.file("again");
    world.namespace.check_invariants();
}

#[test]
fn readdir_never_misses_or_repeats_what_stays() {
    let mut world = World::new();
    for index in 0..10 {
        world.file(&format!("f{index}"));
    }
    let list = |world: &World, after: Cookie| {
        let Ok(Answer::Directory { entries, end, .. }) = world.namespace.query(&Query::ReadDirectory { ino: ROOT, after, limit: 4 }) else {
            panic!()
        };
        (entries.iter().map(|entry| entry.name.to_string()).collect::<Vec<_>>(), entries.last().map(|entry| entry.cookie), end)
    };
    let (first, cookie, end) = list(&world, Cookie(0));
    assert_eq!((first, end), (vec!["f0".into(), "f1".into(), "f2".into(), "f3".into()], false));
    world.unlink("f3").unwrap();
    let (from_name, to_name) = (name("f0"), name("f5"));
    let op = Op::Rename { from_parent: ROOT, from_name, to_parent: ROOT, to_name, mode: RenameMode::Replace };
    world.op(op).unwrap();
    let (second, cookie, _) = list(&world, cookie.unwrap());
    assert_eq!(second, ["f4", "f5", "f6", "f7"]);
    let (third, cookie, end) = list(&world, cookie.unwrap());
    assert_eq!((third, end), (vec!["f8".into(), "f9".into()], true));
    assert_eq!(list(&world, cookie.unwrap()), (vec![], None, true));
}

#[test]
fn a_new_incarnation_replaces_the_old_one_for_good() {
    let mut world = World::new();
    let epoch = world.namespace.map().epoch;
    world.apply(Command::SetMember(member(9, 1))).unwrap();
    let map = world.namespace.map();
    assert!(map.epoch > epoch && map.is_well_formed() && !map.had_three);
    assert_eq!((map.member(NodeId(1)), map.member(NodeId(9)).map(|member| member.id)), (None, Some(NodeId(9))));
    assert_eq!(world.apply(Command::SetMember(member(1, 1))), Err(Status::Conflict), "a late message of an earlier life");
    world.apply(Command::SetMember(member(3, 3))).unwrap();
    assert!(world.namespace.map().had_three);
    world.apply(Command::MarkDead { node: NodeId(3) }).unwrap();
    assert!(!world.namespace.map().is_living(NodeId(3)));
    world.apply(Command::SetMember(member(3, 3))).unwrap();
    assert!(world.namespace.map().is_living(NodeId(3)), "it was only silent");
    let epoch = world.namespace.map().epoch;
    let index = world.namespace.applied() + 1;
    world.namespace.set_voters(index, vec![NodeId(9), NodeId(2)]);
    assert_eq!(world.namespace.map().voters, [NodeId(2), NodeId(9)]);
    assert!(world.namespace.map().epoch > epoch);
}

#[test]
fn damaged_snapshots_are_refused() {
    let mut world = World::new();
    let ino = world.file("a");
    world.write(ino, WriteAt::Offset(0), b"some bytes that are kept inline").unwrap();
    world.namespace.begin_snapshot();
    let (bytes, last) = world.namespace.next_snapshot_slice(1 << 20).unwrap();
    assert!(last);
    let load = |bytes: &[u8]| {
        let mut loader = SnapshotLoader::new();
        loader.push(bytes)?;
        loader.finish().map(|namespace| namespace.state_hash())
    };
    assert_eq!(load(&bytes), Ok(world.namespace.state_hash()));
    for length in 0..bytes.len() {
        assert!(load(&bytes[..length]).is_err());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        if let Ok(hash) = load(&damaged) {
            panic!("byte {at} of {} is not covered: {hash:x}", bytes.len());
        }
    }
}

#[test]
fn who_goes_on_with_the_tree_of_a_lost_cluster_forgets_its_nodes_and_clients_and_keeps_the_files() {
    let mut world = World::new();
    let ino = world.file("file");
    let kept = claim(1, 1, &[1, 2]);
    world.write_chunk(ino, 0, kept.clone()).unwrap();
    let (applied, epoch, time) = (world.namespace.applied(), world.namespace.map().epoch, world.namespace.time());
    world.namespace.go_on(ClusterId(10), member(5, 1), Epoch(epoch.0 + 3));
    world.namespace.check_invariants();
    let map = world.namespace.map();
    assert_eq!((map.cluster, map.epoch, &map.voters[..], map.replicas), (ClusterId(10), Epoch(epoch.0 + 3), &[NodeId(5)][..], 2));
    assert!(map.members == [member(5, 1)] && world.namespace.sessions().len() == 0);
    assert_eq!((world.namespace.applied(), world.namespace.time()), (applied + 1, time));
    assert!(world.namespace.lineage().eq([ClusterId(9)]) && world.namespace.drain_effects().is_empty());
    // Nobody is known to hold the bytes: a copy that is found must stay until it is announced. What was never committed goes.
    let stray = claim(2, 2, &[]);
    let items = [(kept.hash, kept.instance), (stray.hash, stray.instance)];
    assert_eq!(world.namespace.verdicts(NodeId(5), &items), [Verdict::Pending, Verdict::Garbage]);
    world.apply(Command::Copied { node: NodeId(5), items: vec![items[0]] }).unwrap();
    assert_eq!(world.namespace.verdicts(NodeId(5), &items[..1]), [Verdict::Live(kept.instance)]);
    // Incarnations of the old cluster are not taken in; another one at their address is, and its copy counts, too.
    assert_eq!(world.apply(Command::SetMember(member(2, 2))), Err(Status::Conflict));
    world.apply(Command::SetMember(member(6, 2))).unwrap();
    assert_eq!(world.namespace.verdicts(NodeId(6), &items[..1]), [Verdict::Pending]);
    world.apply(Command::Copied { node: NodeId(6), items: vec![items[0]] }).unwrap();
    assert_eq!(world.namespace.chunk_held(&kept.hash).unwrap().holders, [NodeId(5), NodeId(6)]);
    world.namespace.check_invariants();
}
