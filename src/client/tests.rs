//! Scripts against fake nodes: what the core sends, resends, counts and gives up.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::chunk_tree::{self, GroupHashes};
use crate::cluster_map::MemberState;
use crate::link::{Frame, Hello, LinkEvent, LinkId, Role};
use crate::time::Time;
use crate::types::{Attributes, ChunkHash, Cookie, Epoch, FileKind, NodeId, RequestNumber, Rights, Term, Timestamp};
use crate::wire::message::{Body, Failure, Grant, Request, Response};
use crate::wire::namespace::{ChunkClaim, DirectoryEntry, LayoutVersion, Patch, SetAttributes, Source};
use crate::xattr::{CAPABILITY, XattrFlags};

mod behind;
mod cached;
mod control;
mod zones;

#[derive(Default)]
struct Node {
    dead: bool,
    /// Takes requests and never answers.
    silent: bool,
    full: bool,
    /// Takes no more of this session.
    busy: bool,
    chunks: BTreeMap<ChunkHash, Bytes>,
    suspected: u32,
}

#[derive(Default)]
struct File {
    size: u64,
    extents: Vec<Extent>,
    version: LayoutVersion,
}

/// Three nodes, the first of which leads at first, and a namespace of files that need no names.
struct World {
    core: Core,
    now: Time,
    nodes: Vec<Node>,
    leader: usize,
    term: u64,
    map: ClusterMap,
    links: BTreeMap<LinkId, usize>,
    files: BTreeMap<InodeId, File>,
    places: BTreeMap<ChunkHash, ChunkPlace>,
    outcomes: BTreeMap<RequestNumber, Result<Response, Failure>>,
    /// Every request with the node that got it.
    log: Vec<(usize, Request)>,
    /// Answers of the namespace that come out of nowhere, once each.
    refuse: Vec<Status>,
    /// Applies operations without answering, once each.
    swallow: u32,
    reclaims: u32,
    done: BTreeMap<u64, Result<Reply, Status>>,
    events: Vec<Event>,
    next_token: u64,
    // --- for clients that cache
    names: BTreeMap<Name, InodeId>,
    /// What is granted with each answer, and the era of renewals.
    grants: Rights,
    era: u64,
    /// Answers that are kept back until they are let go.
    held_back: Option<Vec<(LinkId, Frame)>>,
    invalidated: Vec<(u64, Invalidation)>,
    // --- for clients that write behind
    /// Files that the client may write alone.
    written: BTreeSet<InodeId>,
    /// Bytes that it may reserve; none: nor may it write.
    room: u64,
}

const INO: InodeId = InodeId(5);
const DIRECTORY: InodeId = InodeId(1);

impl World {
    fn new() -> Self {
        World::with(false)
    }

    fn with(caches: bool) -> Self {
        World::made(caches, false)
    }

    fn made(caches: bool, behind: bool) -> Self {
        let members = (0..3).map(|n| Member {
            id: NodeId(n + 100),
            address: address(n as u16),
            memory: 1 << 30,
            zone: String::new(),
            state: MemberState::Live,
        });
        let map = ClusterMap {
            cluster: ClusterId(9),
            epoch: Epoch(1),
            replicas: 2,
            members: members.collect(),
            voters: (100..103).map(NodeId).collect(),
            had_three: true,
            awaited: Vec::new(),
        };
        let config = Config { caches, behind, ..Config::new((0..3).map(address).collect(), SessionId(77)) };
        let now = Time(1_000_000_000);
        let mut world = World {
            core: Core::new(config, now, 1),
            now,
            nodes: (0..3).map(|_| Node::default()).collect(),
            leader: 0,
            term: 1,
            map,
            links: BTreeMap::new(),
            files: [(INO, File::default())].into(),
            places: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            log: Vec::new(),
            refuse: Vec::new(),
            swallow: 0,
            reclaims: 0,
            done: BTreeMap::new(),
            events: Vec::new(),
            next_token: 1,
            names: BTreeMap::new(),
            grants: if caches { Rights::READ.with(Rights::NAMES) } else { Rights::NONE },
            era: 1,
            held_back: None,
            invalidated: Vec::new(),
            written: BTreeSet::new(),
            room: 1 << 40,
        };
        world.run_until(|world| !world.events.is_empty());
        assert_eq!(world.events, [Event::Ready { cluster: ClusterId(9) }]);
        world
    }

    fn submit(&mut self, call: Call) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.core.submit(self.now, token, call);
        token
    }

    fn call(&mut self, call: Call) -> Result<Reply, Status> {
        let token = self.submit(call);
        self.wait(token)
    }

    fn wait(&mut self, token: u64) -> Result<Reply, Status> {
        self.run_until(|world| world.done.contains_key(&token));
        self.done.remove(&token).unwrap()
    }

    fn write(&mut self, at: WriteAt, bytes: impl Into<Bytes>) -> Result<Reply, Status> {
        self.call(Call::Write { ino: INO, at, bytes: bytes.into(), kill_privileges: false })
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes, Status> {
        match self.call(Call::Read { ino: INO, range: ByteRange { offset, length } })? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => panic!("{other:?}"),
        }
    }

    fn run_until(&mut self, done: impl Fn(&World) -> bool) {
        for _ in 0..200_000 {
            self.drain();
            self.core.check_invariants();
            if done(self) {
                return;
            }
            let next = self.core.next_deadline();
            assert_ne!(next, Time::NEVER, "nothing will ever happen");
            self.now = self.now.max(next);
            self.core.on_deadline(self.now);
        }
        panic!("no end in sight");
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.core.next_deadline() <= end {
            self.now = self.now.max(self.core.next_deadline());
            self.core.on_deadline(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Done { token, result } => assert!(self.done.insert(token, result).is_none()),
                Output::Event(event) => self.events.push(event),
                Output::Invalidate { id, what } => {
                    assert!(self.core.config.caches, "a client without caches has nothing to forget");
                    self.invalidated.push((id, what));
                }
                Output::Link(action) => self.act(action),
            }
        }
    }

    fn act(&mut self, action: LinkAction) {
        match action {
            LinkAction::Connect { link, address, hello } => {
                let Address::Tcp { port, .. } = address else { panic!() };
                let index = port as usize;
                if self.nodes[index].dead {
                    let down = LinkEvent::Down { link, reason: Status::Disconnected, found: None };
                    return self.core.on_link(self.now, down);
                }
                self.links.insert(link, index);
                let sender = index as u64 + 100;
                let peer = Hello { cluster: self.map.cluster, role: Role::Node, sender, lane: hello.lane, expect: None };
                self.core.on_link(self.now, LinkEvent::Up { link, peer });
            }
            LinkAction::Close { link } => drop(self.links.remove(&link)),
            LinkAction::Send { link, frame } => {
                let Some(&index) = self.links.get(&link) else { return };
                let Body::Request(request) = frame.body else { panic!("clients only ask") };
                self.log.push((index, request.clone()));
                if self.nodes[index].silent {
                    return;
                }
                let Some((result, payload)) = self.serve(index, request, frame.payload) else { return };
                let frame = Frame { request: frame.request, body: Body::Response(result), payload };
                if let Some(held_back) = &mut self.held_back {
                    return held_back.push((link, frame));
                }
                self.core.on_link(self.now, LinkEvent::Received { link, frame });
            }
        }
    }

    fn kill(&mut self, index: usize) {
        self.nodes[index].dead = true;
        self.nodes[index].chunks.clear();
        let links: Vec<LinkId> = self.links.iter().filter(|(_, at)| **at == index).map(|(link, _)| *link).collect();
        for link in links {
            self.links.remove(&link);
            self.core.on_link(self.now, LinkEvent::Down { link, reason: Status::Disconnected, found: None });
        }
    }

    fn serve(&mut self, index: usize, request: Request, payload: Bytes) -> Option<(Result<Response, Failure>, Bytes)> {
        let epoch = self.map.epoch;
        let fail = |status: Status| Some((Err(status.into()), Bytes::new()));
        let node = &mut self.nodes[index];
        let response = match request {
            Request::Map { known } => Response::Map((known < epoch).then(|| self.map.clone())),
            Request::Put { .. } if node.busy => return fail(Status::Busy),
            Request::Put { hash, .. } if node.full && !node.chunks.contains_key(&hash) => return fail(Status::Full),
            Request::Put { hash, .. } => {
                assert_eq!(ChunkHash::of(&payload), hash);
                node.chunks.insert(hash, payload);
                Response::Receipt { node: NodeId(index as u64 + 100) }
            }
            Request::LinkChunk { hash, .. } if !node.chunks.contains_key(&hash) => return fail(Status::UnknownChunk),
            Request::LinkChunk { .. } => Response::Receipt { node: NodeId(index as u64 + 100) },
            Request::Suspect { .. } => {
                node.suspected += 1;
                Response::Done
            }
            Request::Get { hash, range } => {
                let Some(bytes) = node.chunks.get(&hash) else { return fail(Status::UnknownChunk) };
                let range = chunk_tree::widen(range, bytes.len() as u64);
                let part = bytes.slice(range.offset as usize..range.end() as usize);
                let whole = part.len() == bytes.len();
                let proof = GroupHashes::of(bytes).filter(|_| !whole).map(|groups| groups.proof(range)).unwrap_or_default();
                return Some((Ok(Response::Bytes { range, total: bytes.len() as u32, proof }), part));
            }
            _ if index != self.leader => {
                let leader = Some((NodeId(self.leader as u64 + 100), address(self.leader as u16)));
                return Some((Err(Failure { status: Status::NotLeader, leader, epoch }), Bytes::new()));
            }
            Request::OpenSession { .. } | Request::EndSession | Request::Recalled { .. } | Request::GiveUp { .. } => Response::Done,
            Request::Renew { .. } => Response::Renewed { term: Term(self.term), epoch, time: Timestamp::default(), era: self.era },
            Request::Namespace { number, op, answered_below, .. } => {
                assert!(number >= answered_below);
                let result = match self.outcomes.get(&number) {
                    Some(outcome) => outcome.clone(),
                    None => self
                        .apply(op)
                        .map(|replied| {
                            let grants = self.grants_with(replied_attributes(&replied));
                            Response::Replied { replied, grants, term: Term(self.term), epoch }
                        })
                        .map_err(Failure::from),
                };
                self.outcomes.insert(number, result.clone());
                if self.swallow > 0 {
                    self.swallow -= 1;
                    return None;
                }
                return Some((result, Bytes::new()));
            }
            Request::Query(query) => {
                let answer = self.answer(query);
                let grants = self.grants_with(attributes_within(&answer));
                Response::Answered { answer, grants, term: Term(self.term), epoch }
            }
            _ => return fail(Status::NotSupported),
        };
        Some((Ok(response), Bytes::new()))
    }

    fn apply(&mut self, op: Op) -> Result<Replied, Status> {
        if let Some(status) = self.refuse.pop() {
            return Err(status);
        }
        match op {
            Op::Write { behind: None, .. } if self.room == 0 => Err(Status::NoSpace),
            Op::Write { ino, behind: Some(_), .. } if !self.written.contains(&ino) => Err(Status::RightLost),
            Op::Write { ino, patches, chunks, behind, .. } => {
                self.take_chunks(&chunks)?;
                if behind.is_some_and(|behind| behind.yields) {
                    self.written.remove(&ino);
                }
                let file = self.files.get_mut(&ino).unwrap();
                let mut first = None;
                for patch in patches {
                    let at = file.patch(patch);
                    first.get_or_insert(at);
                }
                file.version.data += 1;
                Ok(Replied::Written { offset: first.unwrap(), attributes: attributes(ino, file) })
            }
            Op::Fold { ino, slot_version, patches, chunks, .. } => {
                self.take_chunks(&chunks)?;
                let file = self.files.get_mut(&ino).unwrap();
                if slot_version != file.version.data {
                    return Err(Status::Conflict);
                }
                patches.into_iter().for_each(|patch| assert!(file.patch(patch) < limits::FILE_BYTES_MAX));
                file.version.layout += 1;
                Ok(Replied::Done)
            }
            Op::Create { name, write, .. } => {
                let ino = InodeId(1000 + self.names.len() as u64);
                self.names.insert(name, ino);
                self.files.insert(ino, File::default());
                if write {
                    self.written.insert(ino);
                }
                Ok(Replied::Entry { attributes: attributes(ino, &self.files[&ino]), created: true, writer: write })
            }
            Op::Acquire { ino } => {
                self.written.insert(ino);
                Ok(Replied::Acquired { granted: true, attributes: attributes(ino, &self.files[&ino]) })
            }
            Op::Yield { ino } => {
                self.written.remove(&ino);
                Ok(Replied::Done)
            }
            Op::Reserve { bytes } => Ok(Replied::Reserved { bytes: bytes.min(self.room) }),
            Op::Unlink { name, .. } => self.names.remove(&name).map(|_| Replied::Done).ok_or(Status::NotFound),
            Op::Rename { from_name, to_name, .. } => {
                let moved = self.names.remove(&from_name).ok_or(Status::NotFound)?;
                self.names.insert(to_name, moved);
                Ok(Replied::Done)
            }
            Op::SetAttributes { ino, .. } => Ok(Replied::Attributes(attributes(ino, &self.files[&ino]))),
            _ => Ok(Replied::Done),
        }
    }

    fn take_chunks(&mut self, claims: &[ChunkClaim]) -> Result<(), Status> {
        for claim in claims {
            let living = claim.receipts.iter().filter(|node| self.map.is_living(**node)).count();
            if living < self.map.receipts_needed() {
                return Err(Status::MissingReceipts);
            }
            let holders = claim.receipts.clone();
            let place = ChunkPlace { hash: claim.hash, length: claim.length, instance: claim.instance, holders };
            self.places.insert(claim.hash, place);
        }
        Ok(())
    }

    fn answer(&mut self, query: Query) -> Answer {
        match query {
            Query::Extents { ino, range, known } => {
                let file = &self.files[&ino];
                if known == Some(file.version) {
                    return Answer::Unchanged { attributes: attributes(ino, file) };
                }
                let within: Vec<Extent> = file
                    .extents
                    .iter()
                    .filter(|extent| extent.offset < range.end() && extent.offset + extent.length > range.offset)
                    .cloned()
                    .collect();
                let hashes: BTreeSet<ChunkHash> = within
                    .iter()
                    .filter_map(|extent| if let Source::Chunk { hash, .. } = extent.source { Some(hash) } else { None })
                    .collect();
                let chunks = hashes.iter().map(|hash| self.places[hash].clone()).collect();
                let slot = range.offset / limits::SLOT_BYTES;
                let fold = if within.len() > 8 { vec![(slot, file.version.data)] } else { Vec::new() };
                let version = file.version;
                Answer::Extents { attributes: attributes(ino, file), version, extents: within, chunks, truncated: false, fold }
            }
            Query::Reclaim { .. } => {
                self.reclaims += 1;
                Answer::Done
            }
            Query::Attributes { ino } | Query::Hold { ino, .. } => Answer::Attributes(attributes(ino, &self.files[&ino])),
            Query::Lookup { name, .. } => {
                self.names.get(&name).map_or(Answer::Absent, |ino| Answer::Attributes(attributes(*ino, &self.files[ino])))
            }
            Query::ReadDirectory { after, limit, .. } => {
                let line = |(name, ino): (&Name, &InodeId)| DirectoryEntry {
                    name: name.clone(),
                    cookie: Cookie(ino.0),
                    attributes: attributes(*ino, &self.files[ino]),
                    current: true,
                };
                let mut entries: Vec<_> = self.names.iter().map(line).filter(|entry| entry.cookie > after).collect();
                entries.sort_by_key(|entry| entry.cookie);
                let end = entries.len() <= limit as usize;
                entries.truncate(limit as usize);
                let directory = Attributes { kind: FileKind::Directory, ..attributes(DIRECTORY, &File::default()) };
                Answer::Directory { entries, end, attributes: directory }
            }
            Query::ReadLink { .. } => Answer::Target(b"target".to_vec()),
            Query::Xattr { .. } => Answer::Xattr(Bytes::from_static(b"value")),
            _ => Answer::Done,
        }
    }

    /// What this world grants on the inodes that an answer names; the names of the directory with each.
    fn grants_with(&self, answered: Vec<InodeId>) -> Vec<Grant> {
        let directory = (!answered.contains(&DIRECTORY)).then_some(DIRECTORY);
        let all = answered.into_iter().chain(directory).map(|ino| Grant { ino, rights: self.grants });
        all.filter(|grant| !grant.rights.is_empty()).collect()
    }

    fn count(&self, wanted: impl Fn(&Request) -> bool) -> usize {
        self.log.iter().filter(|(_, request)| wanted(request)).count()
    }
}

impl File {
    /// Overlays one patch, and keeps the extents without gaps.
    fn patch(&mut self, patch: Patch) -> u64 {
        let at = match patch.at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => self.size,
        };
        let end = at + patch.length;
        if at > self.size {
            self.extents.push(Extent { offset: self.size, length: at - self.size, source: Source::Hole });
        }
        let mut extents = Vec::new();
        for extent in &self.extents {
            let extent_end = extent.offset + extent.length;
            if extent.offset < at {
                extents.push(cut(extent, extent.offset, extent_end.min(at)));
            }
            if extent_end > end {
                extents.push(cut(extent, extent.offset.max(end), extent_end));
            }
        }
        extents.push(Extent { offset: at, length: patch.length, source: patch.source });
        extents.sort_by_key(|extent| extent.offset);
        self.extents = extents;
        self.size = self.size.max(end);
        at
    }
}

fn attributes_within(answer: &Answer) -> Vec<InodeId> {
    match answer {
        Answer::Attributes(attributes) | Answer::Extents { attributes, .. } | Answer::Unchanged { attributes } => vec![attributes.ino],
        Answer::Directory { entries, attributes, .. } => entries.iter().map(|entry| entry.attributes.ino).chain([attributes.ino]).collect(),
        Answer::Target(_) => vec![INO],
        _ => Vec::new(),
    }
}

fn replied_attributes(replied: &Replied) -> Vec<InodeId> {
    match replied {
        Replied::Entry { attributes, .. }
        | Replied::Attributes(attributes)
        | Replied::Written { attributes, .. }
        | Replied::Acquired { attributes, .. } => vec![attributes.ino],
        _ => Vec::new(),
    }
}

fn cut(extent: &Extent, from: u64, until: u64) -> Extent {
    let skip = from - extent.offset;
    let source = match &extent.source {
        Source::Hole => Source::Hole,
        Source::Inline(bytes) => Source::Inline(bytes.slice(skip as usize..(until - extent.offset) as usize)),
        Source::Chunk { hash, offset } => Source::Chunk { hash: *hash, offset: offset + skip as u32 },
    };
    Extent { offset: from, length: until - from, source }
}

fn address(port: u16) -> Address {
    Address::Tcp { host: "n".into(), port }
}

/// The one inode that has an extended attribute.
const WITH_CAPABILITY: InodeId = InodeId(12);

fn attributes(ino: InodeId, file: &File) -> Attributes {
    let zero = Timestamp::default();
    Attributes {
        ino,
        kind: FileKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        links: 1,
        size: file.size,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        rdev: 0,
        version: file.version.data,
        data_version: file.version.data,
        parent: InodeId(1),
        xattrs: if ino == WITH_CAPABILITY { XattrFlags::of_name(CAPABILITY) } else { XattrFlags::default() },
    }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = crate::random::Random::new(seed);
    (0..length).map(|_| random.next() as u8).collect()
}

fn touch() -> Call {
    Call::Op(Op::SetAttributes { ino: INO, set: SetAttributes::default() })
}

fn is_namespace(request: &Request) -> bool {
    matches!(request, Request::Namespace { .. })
}

#[test]
fn writes_are_on_two_nodes_and_read_back() {
    let mut world = World::new();
    let bytes = noise(5 << 20, 1);
    let Ok(Reply::Replied(Replied::Written { offset: 1000, attributes })) = world.write(WriteAt::Offset(1000), bytes.clone()) else {
        panic!("the write failed");
    };
    assert_eq!(attributes.size, 1000 + bytes.len() as u64);
    for place in world.places.values() {
        let holders: BTreeSet<_> = place.holders.iter().collect();
        assert_eq!(holders.len(), 2);
        assert!(place.holders.iter().all(|node| world.nodes[node.0 as usize - 100].chunks.contains_key(&place.hash)));
    }
    let mut expected = vec![0; 1000];
    expected.extend_from_slice(&bytes);
    assert!(world.read(0, 10 << 20).unwrap() == expected);
    assert!(world.read(70_001, 5000).unwrap() == expected[70_001..75_001]);
    assert!(world.read(9 << 20, 10).unwrap().is_empty());
    world.write(WriteAt::End, &b"tail"[..]).unwrap();
    world.write(WriteAt::Offset(500), &b"head"[..]).unwrap();
    expected[500..504].copy_from_slice(b"head");
    expected.extend_from_slice(b"tail");
    assert!(world.read(0, 10 << 20).unwrap() == expected);
}

#[test]
fn a_repeated_read_is_one_control_message() {
    let mut world = World::new();
    world.write(WriteAt::Offset(0), noise(3 << 20, 1)).unwrap();
    world.read(0, 2 << 20).unwrap();
    let before = world.core.counters();
    world.read(0, 2 << 20).unwrap();
    let after = world.core.counters();
    assert_eq!(after.control_requests - before.control_requests, 1);
    assert_eq!(after.bulk_requests, before.bulk_requests);
}

#[test]
fn a_cold_page_costs_little_on_the_wire() {
    let mut world = World::new();
    let bytes = noise(3 << 20, 1);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    let before = world.core.counters();
    assert!(world.read((1 << 20) + 4096 * 7, 4096).unwrap() == bytes[(1 << 20) + 4096 * 7..][..4096]);
    let after = world.core.counters();
    assert_eq!(after.bulk_requests - before.bulk_requests, 1);
    assert!(after.bulk_bytes_received - before.bulk_bytes_received <= 32 << 10);
}

#[test]
fn a_dead_or_corrupt_holder_is_passed_over() {
    let mut world = World::new();
    let bytes = noise(2 << 20, 1);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    for node in 0..3 {
        let Some((hash, chunk)) = world.nodes[node].chunks.iter().next().map(|(hash, chunk)| (*hash, chunk.clone())) else { continue };
        let mut bad = chunk.to_vec();
        bad[77] ^= 1;
        world.nodes[node].chunks.insert(hash, bad.into());
        break;
    }
    assert!(world.read(0, 2 << 20).unwrap() == bytes);
    world.kill(1);
    let again = world.read(0, 2 << 20);
    let survivors = world.places.values().all(|place| place.holders.iter().any(|node| node.0 != 101));
    assert!(survivors);
    assert!(again.is_err() || again.unwrap() == bytes, "never a wrong byte");
}

#[test]
fn bytes_that_no_holder_has_end_as_unavailable_at_once() {
    let mut world = World::new();
    world.write(WriteAt::Offset(0), noise(2 << 20, 1)).unwrap();
    world.nodes.iter_mut().for_each(|node| node.chunks.clear());
    let begun = world.now;
    assert_eq!(world.read(0, 4096), Err(Status::Unavailable));
    assert!(world.now.since(begun) < Duration::from_secs(1));
}

#[test]
fn a_silent_holder_costs_an_attempt() {
    let mut world = World::new();
    let bytes = noise(4 << 20, 1);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    world.nodes[2].silent = true;
    let begun = world.now;
    assert!(world.read(0, 4 << 20).unwrap() == bytes);
    assert!(world.now.since(begun) <= 2 * limits::ATTEMPT_TIMEOUT, "{:?}", world.now.since(begun));
    let begun = world.now;
    world.write(WriteAt::Offset(0), noise(4 << 20, 2)).unwrap();
    assert!(world.now.since(begun) <= 2 * limits::ATTEMPT_TIMEOUT, "{:?}", world.now.since(begun));
}

#[test]
fn full_nodes_are_passed_over_until_all_are() {
    let mut world = World::new();
    world.nodes[0].full = true;
    world.write(WriteAt::Offset(0), noise(6 << 20, 1)).unwrap();
    assert!(world.nodes[0].chunks.is_empty());
    world.nodes[1].full = true;
    assert_eq!(world.write(WriteAt::Offset(0), noise(1 << 20, 2)).err(), Some(Status::NoSpace));
    world.nodes[0].full = false;
    world.write(WriteAt::Offset(0), noise(1 << 20, 2)).unwrap();
}

#[test]
fn missing_receipts_are_gathered_under_the_new_map() {
    let mut world = World::new();
    let bytes = noise(3 << 20, 1);
    world.kill(1);
    world.map.members[1].state = MemberState::Dead;
    world.map.epoch = Epoch(2);
    world.refuse.push(Status::MissingReceipts);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    assert!(world.read(0, 3 << 20).unwrap() == bytes);
    assert_eq!(world.core.map().unwrap().epoch, Epoch(2));
    assert!(world.places.values().all(|place| !place.holders.contains(&NodeId(101))));
}

#[test]
fn the_same_bytes_are_linked_instead_of_sent_again() {
    let mut world = World::new();
    let bytes = noise(4 << 20, 1);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    let before = world.core.counters();
    world.write(WriteAt::Offset(4 << 20), bytes.clone()).unwrap();
    assert_eq!(world.core.counters().bulk_bytes_sent, before.bulk_bytes_sent);
    assert_eq!(world.count(|request| matches!(request, Request::LinkChunk { .. })), 8);
}

#[test]
fn many_small_writes_are_folded_and_too_many_fold_first() {
    let mut world = World::new();
    world.write(WriteAt::Offset(0), noise(1 << 20, 1)).unwrap();
    for n in 0..limits::FOLD_AFTER_WRITES as u64 + 2 {
        world.write(WriteAt::Offset(n * 8192 + 5), &b"small"[..]).unwrap();
    }
    world.run_for(Duration::from_millis(900));
    assert_eq!(world.count(|request| matches!(request, Request::Namespace { op: Op::Fold { .. }, .. })), 1);
    assert!(world.files[&INO].extents.len() < 8);
    assert_eq!(&world.read(8192 * 20 + 5, 5).unwrap()[..], b"small");
    // A slot that is too full is folded by whoever meets it.
    for n in 0..20 {
        world.write(WriteAt::Offset(n * 8192 + 50), &b"other"[..]).unwrap();
    }
    world.refuse.push(Status::Busy);
    world.write(WriteAt::Offset(3), &b"busy"[..]).unwrap();
    assert_eq!(world.count(|request| matches!(request, Request::Namespace { op: Op::Fold { .. }, .. })), 2);
    assert_eq!(&world.read(3, 4).unwrap()[..], b"busy");
}

#[test]
fn a_write_whose_fold_finds_no_room_is_out_of_space_unless_there_may_be_some_soon() {
    let mut world = World::new();
    world.write(WriteAt::Offset(0), noise(1 << 20, 1)).unwrap();
    for n in 0..20 {
        world.write(WriteAt::Offset(n * 8192 + 50), &b"small"[..]).unwrap();
    }
    let write = |world: &mut World, refusals: &[Status]| {
        world.refuse = refusals.iter().rev().copied().collect();
        let result = world.write(WriteAt::Offset(3), &b"busy"[..]).map(|_| ());
        assert_eq!(world.refuse, []);
        result
    };
    assert_eq!(write(&mut world, &[Status::Busy, Status::NoSpace]), Err(Status::NoSpace));
    assert_eq!(write(&mut world, &[Status::Busy, Status::Reclaiming]), Ok(()));
    let for_ever = [Status::Busy, Status::Reclaiming].repeat(super::write::RETRIES_MAX as usize);
    assert_eq!(write(&mut world, &[&for_ever[..], &[Status::Busy]].concat()), Err(Status::NoSpace));
}

#[test]
fn the_upload_mark_rises_soon_after_a_write_ends() {
    let mut world = World::new();
    world.write(WriteAt::Offset(0), noise(3 << 20, 1)).unwrap();
    world.run_for(Duration::from_millis(1100));
    let marks = world
        .log
        .iter()
        .filter_map(|(_, request)| if let Request::Renew { uploads_from, .. } = request { Some(*uploads_from) } else { None });
    assert_eq!(marks.max(), Some(4));
}

#[test]
fn sequential_reads_fetch_ahead() {
    let mut world = World::new();
    let bytes = noise(6 << 20, 1);
    world.core.cache = super::cache::ChunkCache::new(64 << 20);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    for n in 0..48 {
        assert!(world.read(n * (128 << 10), 128 << 10).unwrap() == bytes[n as usize * (128 << 10)..][..128 << 10]);
    }
    let gets = world.count(|request| matches!(request, Request::Get { .. }));
    assert!(gets <= 8, "{gets} requests for 6 chunks");
}

#[test]
fn an_evicted_session_says_so_and_fails_everything() {
    let mut world = World::new();
    world.refuse.push(Status::SessionGone);
    assert_eq!(world.call(touch()).err(), Some(Status::SessionGone));
    assert_eq!(world.events.last(), Some(&Event::SessionLost));
    assert_eq!(world.call(Call::Query(Query::Space)).err(), Some(Status::SessionGone));
}

#[test]
fn flush_waits_for_what_came_before() {
    let mut world = World::new();
    world.nodes[0].silent = true;
    let write = world.submit(Call::Write { ino: INO, at: WriteAt::End, bytes: Bytes::from_static(b"x"), kill_privileges: false });
    let flush = world.submit(Call::Flush);
    world.drain();
    assert!(!world.done.contains_key(&flush));
    world.nodes[0].silent = false;
    world.wait(flush).unwrap();
    assert!(world.done.contains_key(&write));
    let located = world.call(Call::Locate { ino: INO, range: ByteRange { offset: 0, length: 100 } });
    let Ok(Reply::Located(located)) = located else { panic!("{located:?}") };
    assert_eq!((located.extents.len(), located.members.len()), (1, 3));
    world.call(Call::EndSession).unwrap();
    assert_eq!(world.call(touch()).err(), Some(Status::SessionGone));
}

#[test]
fn an_upload_that_counts_as_given_up_is_made_anew() {
    let mut world = World::new();
    let bytes = noise(1 << 20, 1);
    world.refuse.push(Status::Conflict);
    world.write(WriteAt::Offset(0), bytes.clone()).unwrap();
    assert!(world.read(0, 1 << 20).unwrap() == bytes);
    assert!(world.places.values().all(|place| place.instance.counter == 2));
}
