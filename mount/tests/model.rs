//! Two `Fs` over one real node, in memory and under virtual time, against a plain tree: random requests, and the replies they must get.
//!
//! The operations and the model are those of the two-mount test; here no kernel stands between, so what is asked is what the file system
//! itself has to answer. `DFS_SEED=n cargo test -p dfs-mount --test model` replays one run, `DFS_SEEDS=n` runs so many. Failures are shrunk.

#[allow(dead_code)]
#[path = "../../tests/fsx/mod.rs"]
mod fsx;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use dfs::client::Config;
use dfs::link::{Hello, LinkAction, LinkEvent, LinkId};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Attributes, ByteRange, FileKind, InodeId, ROOT, SessionId, Timestamp};
use dfs::wire::namespace::{NewKind, RenameMode, SetAttributes, SetTime};
use dfs_mount::fs::{Fs, FsOutput};
use dfs_mount::requests::{Context, Handle, OpenMode, Reply, Request, WriteKind};
use dfs_mount::translate::Options;
use dfs_node::node::{Node, NodeConfig, NodeOutput, Start};

use fsx::model::{Body, Model, Mtime, Out, Outcome};
use fsx::ops::{Op, Replacing, SLOTS, Step, draw, pattern};
use fsx::shrink;

const SEEDS: u64 = 60;
const STEPS: usize = 200;
const ROOT_USER: Context = Context { uid: 0, gid: 0, pid: 1 };
/// Each file system has its links here.
const LINKS_EACH: u64 = 1 << 50;

/// One node, two mounts, and a network that delivers at once and in order.
struct World {
    now: Time,
    node: Node,
    identity: Option<Hello>,
    mounts: Vec<Fs>,
    links: BTreeSet<LinkId>,
    to_node: VecDeque<LinkEvent>,
    to_mounts: VecDeque<(usize, LinkEvent)>,
    replies: BTreeMap<u64, Reply>,
    token: u64,
    slots: [Option<Open>; SLOTS],
}

#[derive(Clone, Copy)]
struct Open {
    mount: usize,
    ino: InodeId,
    handle: Handle,
    append: bool,
}

/// A link of a mount, as the node knows it.
fn incoming(mount: usize, link: LinkId) -> LinkId {
    LinkId((link.0 + mount as u64 * LINKS_EACH) | LinkId::INCOMING)
}

fn errno(status: Status) -> i32 {
    status.errno()
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Time(1_000_000_000);
        let config = NodeConfig {
            address: "node:1".parse().expect("an address"),
            memory: 256 << 20,
            rate: None,
            zone: String::new(),
            start: Start::Bootstrap { replicas: 2 },
            id: None,
            sabotage: None,
        };
        let node = Node::new(config, now, Timestamp::default(), seed);
        let fs = |number: u64| {
            let config = Config::new(vec!["node:1".parse().expect("an address")], SessionId(41 + number));
            Fs::new(config, Options::default(), now, seed ^ number)
        };
        World {
            now,
            node,
            identity: None,
            mounts: vec![fs(1), fs(2)],
            links: BTreeSet::new(),
            to_node: VecDeque::new(),
            to_mounts: VecDeque::new(),
            replies: BTreeMap::new(),
            token: 0,
            slots: [None; SLOTS],
        }
    }

    fn wall(&self) -> Timestamp {
        Timestamp { seconds: 1_700_000_000 + (self.now.0 / 1_000_000_000) as i64, nanos: (self.now.0 % 1_000_000_000) as u32 }
    }

    fn on_action(&mut self, mount: usize, action: LinkAction) {
        match action {
            LinkAction::Connect { link, hello, .. } => match self.identity {
                Some(identity) => {
                    self.links.insert(incoming(mount, link));
                    self.to_node.push_back(LinkEvent::Up { link: incoming(mount, link), peer: hello });
                    self.to_mounts.push_back((mount, LinkEvent::Up { link, peer: Hello { lane: hello.lane, ..identity } }));
                }
                None => self.to_mounts.push_back((mount, LinkEvent::Down { link, reason: Status::Disconnected, found: None })),
            },
            LinkAction::Send { link, frame } => self.to_node.push_back(LinkEvent::Received { link: incoming(mount, link), frame }),
            LinkAction::Close { link } => {
                self.links.remove(&incoming(mount, link));
                self.to_node.push_back(LinkEvent::Down { link: incoming(mount, link), reason: Status::Disconnected, found: None });
            }
        }
    }

    fn drain(&mut self) {
        for mount in 0..self.mounts.len() {
            while let Some(output) = self.mounts[mount].poll_output() {
                match output {
                    FsOutput::Link(action) => self.on_action(mount, action),
                    FsOutput::Reply { token, reply, .. } => assert!(self.replies.insert(token, reply).is_none(), "one reply each"),
                    FsOutput::Notify { id, .. } => self.mounts[mount].on_notified(self.now, id),
                    _ => {}
                }
            }
            self.mounts[mount].check_invariants();
        }
        while let Some(output) = self.node.poll_output() {
            match output {
                NodeOutput::Identity(hello) => self.identity = Some(hello),
                NodeOutput::Link(LinkAction::Send { link, frame }) if self.links.contains(&link) => {
                    let number = link.0 & !LinkId::INCOMING;
                    let mount = (number / LINKS_EACH) as usize;
                    self.to_mounts.push_back((mount, LinkEvent::Received { link: LinkId(number % LINKS_EACH), frame }));
                }
                NodeOutput::Stopped { reason } => panic!("the node stopped: {reason}"),
                _ => {}
            }
        }
    }

    /// Asks a mount and waits for its reply; at most the time of an operation passes.
    fn ask(&mut self, mount: usize, request: Request) -> Result<Reply, i32> {
        self.token += 1;
        let token = self.token;
        let end = self.now + Duration::from_secs(15);
        let what = format!("{request:?}");
        self.mounts[mount].on_request(self.now, token, ROOT_USER, request);
        loop {
            self.drain();
            if let Some(reply) = self.replies.remove(&token) {
                return if let Reply::Error(status) = reply { Err(errno(status)) } else { Ok(reply) };
            }
            if self.to_node.is_empty() && self.to_mounts.is_empty() {
                let deadlines = self.mounts.iter().map(Fs::next_deadline);
                self.now = deadlines.fold(self.node.next_deadline(), Time::min).max(self.now);
                assert!(self.now <= end, "no reply in time: {}", &what[..what.len().min(200)]);
                let wall = self.wall();
                self.node.on_deadline(self.now, wall);
                self.mounts.iter_mut().for_each(|fs| fs.on_deadline(self.now));
            }
            let wall = self.wall();
            while let Some(event) = self.to_node.pop_front() {
                self.node.handle(self.now, wall, event);
            }
            while let Some((mount, event)) = self.to_mounts.pop_front() {
                self.mounts[mount].on_link(self.now, event);
            }
        }
    }

    fn entry(&mut self, mount: usize, request: Request) -> Result<Attributes, i32> {
        match self.ask(mount, request)? {
            Reply::Entry(attributes) | Reply::Attributes(attributes) => Ok(attributes),
            Reply::Absent => Err(libc::ENOENT),
            other => panic!("not attributes: {other:?}"),
        }
    }

    /// What is at a path, name by name as a kernel asks that has cached nothing.
    fn walk(&mut self, mount: usize, path: &str) -> Result<Attributes, i32> {
        let mut at = self.entry(mount, Request::GetAttributes { ino: ROOT })?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if at.kind != FileKind::Directory {
                return Err(libc::ENOTDIR);
            }
            at = self.entry(mount, Request::Lookup { parent: at.ino, name: name.into() })?;
        }
        Ok(at)
    }

    /// The directory of the last name, and that name.
    fn parent(&mut self, mount: usize, path: &str) -> Result<(InodeId, Vec<u8>), i32> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = self.walk(mount, above)?;
        if directory.kind == FileKind::Directory { Ok((directory.ino, name.into())) } else { Err(libc::ENOTDIR) }
    }

    fn file(&mut self, mount: usize, path: &str) -> Result<Attributes, i32> {
        let found = self.walk(mount, path)?;
        if found.kind == FileKind::Directory { Err(libc::EISDIR) } else { Ok(found) }
    }

    fn set(&mut self, mount: usize, ino: InodeId, set: SetAttributes) -> Result<(), i32> {
        self.entry(mount, Request::SetAttributes { ino, set }).map(drop)
    }

    fn opened(&mut self, mount: usize, ino: InodeId, mode: OpenMode) -> Result<Handle, i32> {
        match self.ask(mount, Request::Open { ino, mode })? {
            Reply::Opened(handle) => Ok(handle),
            other => panic!("not opened: {other:?}"),
        }
    }

    fn write(&mut self, open: Open, offset: u64, bytes: Vec<u8>, kind: WriteKind) -> Result<(), i32> {
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u32;
        let reply = self
            .ask(open.mount, Request::Write { ino: open.ino, handle: open.handle, offset, bytes: Bytes::from(bytes), kind, sync: false })?;
        assert_eq!(reply, Reply::Written(length), "all or nothing");
        Ok(())
    }

    fn read(&mut self, open: Open, offset: u64, length: u64) -> Result<Vec<u8>, i32> {
        match self.ask(open.mount, Request::Read { ino: open.ino, handle: open.handle, range: ByteRange { offset, length } })? {
            Reply::Bytes(bytes) => Ok(bytes.to_vec()),
            other => panic!("not bytes: {other:?}"),
        }
    }

    fn release(&mut self, open: Open) {
        assert_eq!(self.ask(open.mount, Request::Release { handle: open.handle }), Ok(Reply::Done));
    }

    fn names(&mut self, mount: usize, ino: InodeId) -> Result<Vec<String>, i32> {
        let Reply::Opened(handle) = self.ask(mount, Request::OpenDirectory { ino })? else { panic!("not opened") };
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let Reply::Listing(listing) = self.ask(mount, Request::ReadDirectory { handle, offset, plus: offset == 0 })? else {
                panic!("not a listing")
            };
            let lines: Vec<_> = listing.lines().map(|line| (String::from_utf8_lossy(line.name).into_owned(), line.next)).collect();
            let Some((_, next)) = lines.last() else { break };
            offset = *next;
            names.extend(lines.into_iter().map(|(name, _)| name).filter(|name| !name.starts_with('.')));
        }
        assert_eq!(self.ask(mount, Request::ReleaseDirectory { handle }), Ok(Reply::Done));
        names.sort();
        Ok(names)
    }

    fn apply(&mut self, step: &Step, model: &Model) -> Outcome {
        let mount = step.mount;
        match &step.op {
            Op::Open { slot, .. } if self.slots[*slot].is_some() => return Ok(Out::Skipped),
            Op::Open { slot, path, how } => {
                let mode = OpenMode { truncate: how.truncate, exclusive: how.exclusive, write: true, direct: false };
                let (parent, name) = self.parent(mount, path)?;
                let found = self.entry(mount, Request::Lookup { parent, name: name.clone() });
                // Whether the kernel asks for a creation depends on what it has cached, so of an existing file both must work.
                let create = how.create && (found == Err(libc::ENOENT) || how.append || how.exclusive);
                let (ino, handle) = match found {
                    Ok(found) if found.kind != FileKind::File && !how.exclusive => {
                        return Err(if found.kind == FileKind::Directory { libc::EISDIR } else { libc::ELOOP });
                    }
                    _ if create => match self.ask(mount, Request::Create { parent, name, permissions: 0o644, umask: 0, mode })? {
                        Reply::Created(handle, attributes) => (attributes.ino, handle),
                        other => panic!("not created: {other:?}"),
                    },
                    found => {
                        let ino = found?.ino;
                        (ino, self.opened(mount, ino, mode)?)
                    }
                };
                self.slots[*slot] = Some(Open { mount, ino, handle, append: how.append });
            }
            Op::Close { slot } => match self.slots[*slot].take() {
                Some(open) => self.release(open),
                None => return Ok(Out::Skipped),
            },
            Op::Write { slot, .. } | Op::Read { slot, .. } | Op::SetLength { slot, .. } | Op::MapWrite { slot, .. } => {
                match self.slots[*slot] {
                    Some(open) => return self.on_slot(open, &step.op, model.slots[*slot].expect("as in the model").ino, model),
                    None => return Ok(Out::Skipped),
                }
            }
            Op::MapRead { slot } | Op::Sync { slot } => match self.slots[*slot] {
                Some(open) => return self.on_slot(open, &step.op, model.slots[*slot].expect("as in the model").ino, model),
                None => return Ok(Out::Skipped),
            },
            op => return self.on_name(mount, op),
        }
        Ok(Out::Done)
    }

    fn on_slot(&mut self, open: Open, op: &Op, ino: usize, model: &Model) -> Outcome {
        match op {
            Op::Write { offset, length, seed, .. } => {
                let kind = if open.append { WriteKind::Append } else { WriteKind::At };
                self.write(open, *offset, pattern(*seed, *length), kind)?;
            }
            Op::Read { offset, length, .. } => return Ok(Out::Bytes(self.read(open, *offset, *length as u64)?)),
            Op::SetLength { length, .. } => {
                self.set(open.mount, open.ino, SetAttributes { size: Some(*length), ..SetAttributes::default() })?;
            }
            Op::MapWrite { offset, length, seed, .. } => match model.mapped_part(ino, *offset, *length) {
                Some((offset, length)) => self.write(open, offset, pattern(*seed, length), WriteKind::Mapped)?,
                None => return Ok(Out::Skipped),
            },
            Op::MapRead { .. } if model.bytes(ino).is_empty() => return Ok(Out::Skipped),
            Op::MapRead { .. } => return Ok(Out::Bytes(self.read(open, 0, model.bytes(ino).len() as u64)?)),
            _ => assert_eq!(self.ask(open.mount, Request::Sync { ino: open.ino, handle: None, directory: false })?, Reply::Done),
        }
        Ok(Out::Done)
    }

    fn on_name(&mut self, mount: usize, op: &Op) -> Outcome {
        match op {
            Op::Truncate { path, length } => {
                let ino = self.file(mount, path)?.ino;
                self.set(mount, ino, SetAttributes { size: Some(*length), ..SetAttributes::default() })?;
            }
            Op::OverwriteSilently { path, seed } => {
                let found = self.file(mount, path)?;
                let handle = self.opened(mount, found.ino, OpenMode { write: true, ..OpenMode::default() })?;
                let open = Open { mount, ino: found.ino, handle, append: false };
                self.write(open, 0, pattern(*seed, found.size as usize), WriteKind::At)?;
                let mtime = Some(SetTime::At(found.mtime));
                self.set(mount, found.ino, SetAttributes { mtime, ..SetAttributes::default() })?;
                self.release(open);
            }
            Op::Append { path, length, seed } => {
                let found = self.file(mount, path)?;
                let handle = self.opened(mount, found.ino, OpenMode { write: true, ..OpenMode::default() })?;
                let open = Open { mount, ino: found.ino, handle, append: true };
                self.write(open, found.size, pattern(*seed, *length), WriteKind::Append)?;
                self.release(open);
            }
            Op::Rename { from, to, replacing } => {
                let (from_parent, from_name) = self.parent(mount, from)?;
                let (to_parent, to_name) = self.parent(mount, to)?;
                let mode = match replacing {
                    Replacing::Replace => RenameMode::Replace,
                    Replacing::NoReplace => RenameMode::NoReplace,
                    Replacing::Exchange => RenameMode::Exchange,
                };
                let reply = self.ask(mount, Request::Rename { from_parent, from_name, to_parent, to_name, mode })?;
                assert_eq!(reply, Reply::Done);
            }
            Op::Link { from, to } => {
                let ino = self.walk(mount, from)?.ino;
                let (parent, name) = self.parent(mount, to)?;
                let linked = self.entry(mount, Request::Link { ino, parent, name })?;
                assert_eq!(linked.ino, ino);
            }
            Op::Unlink { path } => {
                let (parent, name) = self.parent(mount, path)?;
                assert_eq!(self.ask(mount, Request::Unlink { parent, name })?, Reply::Done);
            }
            Op::Rmdir { path } => {
                let (parent, name) = self.parent(mount, path)?;
                assert_eq!(self.ask(mount, Request::RemoveDirectory { parent, name })?, Reply::Done);
            }
            Op::Mkdir { path } => self.make(mount, path, NewKind::Directory, 0o755)?,
            Op::Symlink { path, target } => self.make(mount, path, NewKind::Symlink { target: target.clone().into() }, 0o777)?,
            Op::ReadLink { path } => {
                let found = self.walk(mount, path)?;
                return Ok(Out::Target(self.target(mount, found.ino)?));
            }
            Op::ReadDir { path } => {
                let found = self.walk(mount, path)?;
                return if found.kind == FileKind::Directory { Ok(Out::Names(self.names(mount, found.ino)?)) } else { Err(libc::ENOTDIR) };
            }
            Op::Chmod { path, mode } => {
                let ino = self.walk(mount, path)?.ino;
                self.set(mount, ino, SetAttributes { mode: Some(*mode as u16), ..SetAttributes::default() })?;
            }
            Op::SetTimes { path, seconds, nanos } => {
                let ino = self.walk(mount, path)?.ino;
                let mtime = Some(SetTime::At(Timestamp { seconds: *seconds, nanos: *nanos as u32 }));
                self.set(mount, ino, SetAttributes { mtime, ..SetAttributes::default() })?;
            }
            Op::SyncDir { path } => {
                let found = self.walk(mount, path)?;
                if found.kind != FileKind::Directory {
                    return Err(libc::ENOTDIR);
                }
                assert_eq!(self.ask(mount, Request::Sync { ino: found.ino, handle: None, directory: true })?, Reply::Done);
            }
            op => panic!("not drawn: {op:?}"),
        }
        Ok(Out::Done)
    }

    fn make(&mut self, mount: usize, path: &str, kind: NewKind, mode: u16) -> Result<(), i32> {
        let (parent, name) = self.parent(mount, path)?;
        self.entry(mount, Request::Make { parent, name, kind, mode, umask: 0 }).map(drop)
    }

    fn target(&mut self, mount: usize, ino: InodeId) -> Result<String, i32> {
        match self.ask(mount, Request::ReadLink { ino })? {
            Reply::Target(target) => Ok(String::from_utf8_lossy(&target).into_owned()),
            other => panic!("not a target: {other:?}"),
        }
    }

    /// Everything that the mount shows against the model.
    fn check(&mut self, mount: usize, model: &Model) {
        let mut all = Vec::new();
        model.walk(0, "", &mut |path, ino| all.push((path.to_string(), ino)));
        for (path, ino) in all {
            let inode = &model.inodes[ino];
            let found = self.walk(mount, &path).unwrap_or_else(|errno| panic!("mount {mount}: {path:?}: errno {errno}"));
            let content = match &inode.body {
                Body::File(bytes) => {
                    assert_eq!((found.kind, found.size), (FileKind::File, bytes.len() as u64), "mount {mount}: {path:?}");
                    let handle = self.opened(mount, found.ino, OpenMode::default()).expect("opens");
                    let open = Open { mount, ino: found.ino, handle, append: false };
                    let seen = self.read(open, 0, 2 << 20);
                    self.release(open);
                    seen.as_ref() == Ok(bytes)
                }
                Body::Directory(entries) => self.names(mount, found.ino) == Ok(entries.keys().cloned().collect()),
                Body::Link(target) => self.target(mount, found.ino).as_ref() == Ok(target),
            };
            assert!(content, "mount {mount}: the content of {path:?} differs");
            let mode = u32::from(found.mode);
            assert_eq!((mode, u64::from(found.links)), (inode.mode, inode.links), "mount {mount}: mode and links of {path:?}");
            if let Mtime::Set(seconds, nanos) = inode.mtime {
                assert_eq!((found.mtime.seconds, i64::from(found.mtime.nanos)), (seconds, nanos), "mount {mount}: mtime of {path:?}");
            }
        }
        for (slot, handle) in model.slots.iter().enumerate() {
            let (Some(open), Some(handle)) = (self.slots[slot], handle) else { continue };
            let bytes = model.bytes(handle.ino);
            let found = self.entry(open.mount, Request::GetAttributes { ino: open.ino }).expect("an open file");
            assert_eq!((found.size, u64::from(found.links)), (bytes.len() as u64, model.inodes[handle.ino].links), "slot {slot}");
            assert!(self.read(open, 0, 2 << 20).as_deref() == Ok(bytes), "slot {slot}: the content differs");
        }
    }
}

/// What `Fs` has requests for today. A new request gets its arm in `on_slot` or `on_name`, and its operation goes from here.
fn is_drawn(op: &Op) -> bool {
    !matches!(
        op,
        Op::Copy { .. } | Op::Allocate { .. } | Op::Lock { .. } | Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. }
    )
}

fn run(seed: u64, steps: &[Step]) -> Result<(), (usize, String)> {
    let mut at = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let (mut world, mut model) = (World::new(seed), Model::new());
        let root = SetAttributes { mode: Some(0o755), ..SetAttributes::default() };
        world.set(0, ROOT, root).expect("the root's mode");
        for (index, step) in steps.iter().enumerate() {
            at = index;
            let seen = world.apply(step, &model);
            let expected = model.apply(step);
            assert!(seen == expected, "gave {:.200}, should have given {:.200}", format!("{seen:?}"), format!("{expected:?}"));
            if step.check {
                world.check(1 - step.mount, &model);
            }
        }
        at = steps.len();
        world.check(0, &model);
        world.check(1, &model);
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        (at, text.unwrap_or_default())
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

#[test]
fn replies_are_those_of_a_plain_tree() {
    let seeds = match number("DFS_SEED") {
        Some(seed) => seed..=seed,
        None => 0..=number("DFS_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut steps = draw(seed, &[fsx::ops::Feature::MappedReads], STEPS);
        steps.retain(|step| is_drawn(&step.op));
        let Err((index, _)) = run(seed, &steps) else { continue };
        steps.truncate(index + 1);
        let steps = shrink(steps, Duration::from_secs(60), |steps| run(seed, steps).err().map(|(index, _)| index));
        let log: Vec<String> =
            steps.iter().enumerate().map(|(index, step)| format!("{index:4} mount {} {:?}", step.mount, step.op)).collect();
        panic!("seed {seed}\n{}\n{:?}", log.join("\n"), run(seed, &steps));
    }
}
