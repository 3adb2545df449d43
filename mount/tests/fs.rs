//! The file system of a mount over one real node, in memory and under virtual time: what a kernel would ask, and what survives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use dfs::client::{Config, Event};
use dfs::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Attributes, ByteRange, InodeId, ROOT, SessionId, Timestamp};
use dfs::wire::message::{Body, Request as Wire};
use dfs_mount::fs::{Fs, FsOutput};
use dfs_mount::requests::{Context, Handle, OpenMode, Reply, Request, WriteKind};
use dfs_mount::translate::Options;
use dfs_node::node::{Node, NodeConfig, NodeOutput, Start};

const USER: Context = Context { uid: 1000, gid: 1000, pid: 1 };

/// One node, one mount, and a network that delivers at once and in order.
struct World {
    now: Time,
    node: Node,
    identity: Option<Hello>,
    fs: Fs,
    /// Links of the mount, by the number under which the node knows them.
    links: BTreeSet<LinkId>,
    to_node: VecDeque<LinkEvent>,
    to_fs: VecDeque<LinkEvent>,
    replies: BTreeMap<u64, Reply>,
    events: Vec<Event>,
    token: u64,
}

fn incoming(link: LinkId) -> LinkId {
    LinkId(link.0 | LinkId::INCOMING)
}

impl World {
    fn new() -> Self {
        let now = Time(1_000_000_000);
        let config = NodeConfig {
            address: "node:1".parse().unwrap(),
            memory: 64 << 20,
            rate: None,
            zone: String::new(),
            start: Start::Bootstrap { replicas: 2 },
            id: None,
            sabotage: None,
        };
        let node = Node::new(config, now, Timestamp::default(), 7);
        let config = Config::new(vec!["node:1".parse().unwrap()], SessionId(42));
        let fs = Fs::new(config, Options::default(), now, 8);
        World {
            now,
            node,
            identity: None,
            fs,
            links: BTreeSet::new(),
            to_node: VecDeque::new(),
            to_fs: VecDeque::new(),
            replies: BTreeMap::new(),
            events: Vec::new(),
            token: 0,
        }
    }

    fn wall(&self) -> Timestamp {
        Timestamp { seconds: 1_700_000_000 + (self.now.0 / 1_000_000_000) as i64, nanos: (self.now.0 % 1_000_000_000) as u32 }
    }

    fn on_fs_action(&mut self, action: LinkAction) {
        match action {
            LinkAction::Connect { link, hello, .. } => match self.identity {
                Some(identity) => {
                    self.links.insert(link);
                    self.to_node.push_back(LinkEvent::Up { link: incoming(link), peer: hello });
                    self.to_fs.push_back(LinkEvent::Up { link, peer: Hello { lane: hello.lane, ..identity } });
                }
                None => self.to_fs.push_back(LinkEvent::Down { link, reason: Status::Disconnected, found: None }),
            },
            LinkAction::Send { link, frame } => self.to_node.push_back(LinkEvent::Received { link: incoming(link), frame }),
            LinkAction::Close { link } => {
                self.links.remove(&link);
                self.to_node.push_back(LinkEvent::Down { link: incoming(link), reason: Status::Disconnected, found: None });
            }
        }
    }

    /// Moves everything that can move without time passing; then the earliest deadline. At most a minute passes.
    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = self.now + Duration::from_secs(60);
        loop {
            let wall = self.wall();
            while let Some(event) = self.to_node.pop_front() {
                self.node.handle(self.now, wall, event);
            }
            while let Some(event) = self.to_fs.pop_front() {
                self.fs.on_link(self.now, event);
            }
            while let Some(output) = self.fs.poll_output() {
                match output {
                    FsOutput::Link(action) => self.on_fs_action(action),
                    FsOutput::Reply { token, reply, .. } => assert!(self.replies.insert(token, reply).is_none(), "one reply each"),
                    FsOutput::Event(event) => self.events.push(event),
                    FsOutput::Notify { id, .. } => self.fs.on_notified(self.now, id),
                    FsOutput::Done { .. } => {}
                }
            }
            while let Some(output) = self.node.poll_output() {
                match output {
                    NodeOutput::Identity(hello) => self.identity = Some(hello),
                    NodeOutput::Link(LinkAction::Send { link, frame }) if link.is_incoming() => {
                        let link = LinkId(link.0 & !LinkId::INCOMING);
                        // An answer to a link that was closed goes nowhere, or to whoever speaks for a stranger.
                        if self.links.contains(&link) {
                            self.to_fs.push_back(LinkEvent::Received { link, frame });
                        }
                    }
                    NodeOutput::Link(_) | NodeOutput::Ready { .. } => {}
                    NodeOutput::Stopped { reason } => panic!("the node stopped: {reason}"),
                }
            }
            self.fs.check_invariants();
            if !self.to_node.is_empty() || !self.to_fs.is_empty() {
                continue;
            }
            if done(self) {
                return;
            }
            let next = self.node.next_deadline().min(self.fs.next_deadline());
            assert!(next <= end, "{what}: nothing more happens");
            self.now = next.max(self.now);
            let wall = self.wall();
            self.node.on_deadline(self.now, wall);
            self.fs.on_deadline(self.now);
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.token += 1;
        let token = self.token;
        let what = format!("{request:?}");
        self.fs.on_request(self.now, token, USER, request);
        self.run_until(&what, |world| world.replies.contains_key(&token));
        self.replies.remove(&token).unwrap()
    }

    fn create(&mut self, name: &str) -> (Handle, Attributes) {
        let mode = OpenMode { truncate: false, exclusive: true, write: true, ..OpenMode::default() };
        match self.ask(Request::Create { parent: ROOT, name: name.into(), permissions: 0o644, umask: 0, mode }) {
            Reply::Created(handle, attributes) => (handle, attributes),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, ino: InodeId, handle: Handle, offset: u64, bytes: &[u8], kind: WriteKind) {
        let reply = self.ask(Request::Write { ino, handle, offset, bytes: Bytes::copy_from_slice(bytes), kind, sync: false });
        assert_eq!(reply, Reply::Written(bytes.len() as u32));
    }

    fn read(&mut self, ino: InodeId, handle: Handle, offset: u64, length: u64) -> Reply {
        self.ask(Request::Read { ino, handle, range: ByteRange { offset, length } })
    }

    fn pause(&mut self, duration: Duration) {
        let until = self.now + duration;
        self.run_until("a pause", |world| world.now >= until);
    }
}

#[test]
fn a_file_lives_until_its_last_close() {
    let mut world = World::new();
    let (handle, made) = world.create("f");
    world.write(made.ino, handle, 0, b"hello", WriteKind::At);
    world.write(made.ino, handle, 0, b" world", WriteKind::Append);
    assert_eq!(world.ask(Request::Unlink { parent: ROOT, name: b"f".to_vec() }), Reply::Done);
    assert_eq!(world.ask(Request::Lookup { parent: ROOT, name: b"f".to_vec() }), Reply::Absent);
    world.pause(Duration::from_secs(3));
    assert_eq!(world.read(made.ino, handle, 0, 100), Reply::Bytes(Bytes::from_static(b"hello world")));
    assert!(matches!(world.ask(Request::GetAttributes { ino: made.ino }), Reply::Attributes(found) if found.links == 0));
    assert_eq!(world.ask(Request::Release { handle }), Reply::Done);
    world.pause(Duration::from_secs(3));
    assert_eq!(world.ask(Request::GetAttributes { ino: made.ino }), Reply::Error(Status::Stale));
    assert_eq!(world.ask(Request::Open { ino: made.ino, mode: OpenMode::default() }), Reply::Error(Status::Stale));
}

#[test]
fn a_whole_chunk_and_a_large_directory() {
    let mut world = World::new();
    let (handle, made) = world.create("big");
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    world.write(made.ino, handle, 1 << 20, &bytes, WriteKind::At);
    assert_eq!(world.read(made.ino, handle, (1 << 20) + 5000, 4096), Reply::Bytes(Bytes::copy_from_slice(&bytes[5000..9096])));
    assert_eq!(world.read(made.ino, handle, 100, 10), Reply::Bytes(Bytes::from_static(&[0; 10])));
    for number in 0..1200 {
        let (handle, _) = world.create(&format!("n{number}"));
        world.ask(Request::Release { handle });
    }
    let Reply::Opened(stream) = world.ask(Request::OpenDirectory { ino: ROOT }) else { panic!() };
    let (mut offset, mut names) = (0, Vec::new());
    loop {
        let Reply::Listing(listing) = world.ask(Request::ReadDirectory { handle: stream, offset, plus: false }) else { panic!() };
        // A kernel buffer takes so many; entries come and go meanwhile.
        let lines: Vec<_> = listing.lines().take(100).map(|line| (String::from_utf8(line.name.to_vec()).unwrap(), line.next)).collect();
        let Some((_, next)) = lines.last() else { break };
        offset = *next;
        names.extend(lines.into_iter().map(|(name, _)| name));
        let (handle, _) = world.create(&format!("later{offset}"));
        world.ask(Request::Release { handle });
    }
    names.retain(|name| !name.starts_with("later"));
    let expected: BTreeSet<String> =
        [".", "..", "big"].into_iter().map(String::from).chain((0..1200).map(|number| format!("n{number}"))).collect();
    assert_eq!(names.len(), expected.len(), "nothing twice");
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_lost_session_is_followed_by_a_new_one_that_keeps_files_open() {
    let mut world = World::new();
    let (handle, made) = world.create("f");
    world.write(made.ino, handle, 0, b"kept", WriteKind::At);
    // Somebody ends the session in its name, as an eviction would.
    let link = LinkId(LinkId::INCOMING | 1 << 62);
    let cluster = world.identity.unwrap().cluster;
    let peer = Hello { cluster, role: Role::Client, sender: 42, lane: Lane::Control, expect: None };
    world.to_node.push_back(LinkEvent::Up { link, peer });
    let frame = Frame { request: 1, body: Body::Request(Wire::EndSession), payload: Bytes::new() };
    world.to_node.push_back(LinkEvent::Received { link, frame });
    world.run_until("the loss", |world| world.events.contains(&Event::SessionLost));
    let ready = |world: &World| world.events.iter().filter(|event| matches!(event, Event::Ready { .. })).count();
    world.run_until("the new session", |world| ready(world) == 2);
    assert_eq!(world.read(made.ino, handle, 0, 10), Reply::Bytes(Bytes::from_static(b"kept")));
    assert_eq!(world.ask(Request::Unlink { parent: ROOT, name: b"f".to_vec() }), Reply::Done);
    world.pause(Duration::from_secs(3));
    assert_eq!(world.read(made.ino, handle, 0, 10), Reply::Bytes(Bytes::from_static(b"kept")), "the new session holds it");
    assert_eq!(world.ask(Request::Release { handle }), Reply::Done);
    world.pause(Duration::from_secs(3));
    assert_eq!(world.ask(Request::GetAttributes { ino: made.ino }), Reply::Error(Status::Stale));
}
