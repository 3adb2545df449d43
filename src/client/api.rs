//! The blocking client: files by path over one session, for programs and the command line.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::limits;
use crate::link::{LinkAction, LinkEvent};
use crate::net::clock;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Address, Attributes, ByteRange, ClusterId, Cookie, FileKind, InodeId, Name, NodeId, ROOT, SessionId};
use crate::wire::fsck::{Check, Checked};
use crate::wire::message::{DebugAction, StatusReport};
use crate::wire::namespace::{Answer, DirectoryEntry, NewKind, Op, Query, RenameMode, Replied, Space, WriteAt};

use super::driver::{self, Handle, Machine};
use super::{Call, Config, Core, Event, Located, Output, Reply};

/// Bytes per call of a stream.
const STREAM_PIECE_BYTES: usize = limits::CHUNK_BYTES_MAX;
/// Calls of one stream in flight.
const STREAM_PIECES: usize = 8;

/// Why a call failed, and what it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub status: Status,
    /// What was tried, as in `get /a/b`.
    pub context: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.status)
    }
}

impl std::error::Error for Error {}

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Every call ends within this time without progress.
    pub op_timeout: Duration,
    /// Bound of the chunk cache.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { op_timeout: limits::OP_TIMEOUT, cache_bytes: 64 << 20 }
    }
}

/// A session with a cluster, in a thread of its own. Calls may come from any thread.
pub struct Client {
    handle: Handle<Input>,
    thread: Option<JoinHandle<()>>,
    sequence: AtomicU64,
    /// The system's random numbers for temporary names.
    salt: u64,
}

/// A call whose answer has not been waited for.
pub struct Pending(Receiver<Result<Reply, Status>>);

impl Pending {
    /// Waits for the answer; it comes within the operation deadline without progress.
    pub fn wait(self) -> Result<Reply, Status> {
        self.0.recv().unwrap_or(Err(Status::ShuttingDown))
    }
}

struct Input {
    call: Call,
    answer: Sender<Result<Reply, Status>>,
}

struct ClientMachine {
    core: Core,
    waiting: BTreeMap<u64, Sender<Result<Reply, Status>>>,
    ready: Option<Sender<Result<ClusterId, Status>>>,
    actions: VecDeque<LinkAction>,
    next_token: u64,
    ending: Option<u64>,
    done: bool,
}

impl Client {
    /// Opens a session with the cluster of any of the nodes; all are tried until the operation deadline.
    pub fn connect(nodes: &[Address], options: Options) -> Result<Client, Error> {
        let (client, ready) = Client::begin(nodes, options)?;
        let list = nodes.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        let context = || format!("connect to {list}");
        // A node that answers and has no leader yet shows as Unavailable after the same time.
        match ready.recv_timeout(options.op_timeout) {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(status)) => Err(Error { status, context: context() }),
            Err(_) => Err(Error { status: Status::Unavailable, context: context() }),
        }
    }

    /// Begins to connect and returns at once; each call waits for the session for itself. For looking at a cluster that has no leader.
    pub fn connect_later(nodes: &[Address], options: Options) -> Result<Client, Error> {
        Client::begin(nodes, options).map(|(client, _)| client)
    }

    fn begin(nodes: &[Address], options: Options) -> Result<(Client, Receiver<Result<ClusterId, Status>>), Error> {
        let (session, seed, salt) = (random_id(), random_id(), random_id());
        let mut config = Config::new(nodes.to_vec(), SessionId(session));
        config.op_timeout = options.op_timeout;
        config.cache_bytes = options.cache_bytes;
        let (sender, ready) = bounded(1);
        let machine = ClientMachine {
            core: Core::new(config, clock::now(), seed),
            waiting: BTreeMap::new(),
            ready: Some(sender),
            actions: VecDeque::new(),
            next_token: 1,
            ending: None,
            done: false,
        };
        let spawned = driver::spawn("dfs-client", machine);
        let (handle, thread) =
            spawned.map_err(|error| Error { status: Status::Internal, context: format!("start the client: {error}") })?;
        Ok((Client { handle, thread: Some(thread), sequence: AtomicU64::new(1), salt }, ready))
    }

    /// One raw call, answered.
    pub fn call(&self, call: Call) -> Result<Reply, Status> {
        self.submit(call)?.wait()
    }

    /// One raw call; many may be under way at once.
    pub fn submit(&self, call: Call) -> Result<Pending, Status> {
        let (answer, receiver) = bounded(1);
        self.handle.send_waiting(Input { call, answer })?;
        Ok(Pending(receiver))
    }

    /// Stores a stream under the path, which appears whole or not at all; on return it is replicated and committed.
    pub fn put(&self, path: &[u8], source: &mut impl Read) -> Result<Attributes, Error> {
        let context = context("put", path);
        let (parent, name) = self.parent_of(path).map_err(&context)?;
        let temporary = self.temporary(&name).map_err(&context)?;
        let (uid, gid) = ids();
        let (parent_ino, kind) = (parent.ino, NewKind::File);
        let create = Op::Create {
            parent: parent_ino,
            name: temporary.clone(),
            kind,
            mode: 0o644,
            uid,
            gid,
            exclusive: true,
            hold: false,
            write: false,
            umask: 0,
        };
        let created = self.entry(create).map_err(&context)?;
        let stored = self.write_stream(created.ino, source).map_err(|error| match error {
            StreamError::Cluster(status) => context(status),
            StreamError::Local(error) => {
                Error { status: Status::Internal, context: format!("{}: {error}", context(Status::Internal).context) }
            }
        });
        let renamed = stored.and_then(|size| {
            let mode = RenameMode::Replace;
            let rename =
                Op::Rename { from_parent: parent_ino, from_name: temporary.clone(), to_parent: parent_ino, to_name: name.clone(), mode };
            self.call(Call::Op(rename)).map(|_| size).map_err(&context)
        });
        match renamed {
            Ok(size) => Ok(Attributes { size, ..created }),
            Err(error) => {
                // What was stored so far must not stay behind under a name that nobody knows.
                let unlink = Op::Unlink { parent: parent_ino, name: temporary };
                if let Err(status) = self.call(Call::Op(unlink)) {
                    tracing::warn!(%status, "a temporary file of a failed put stays behind");
                }
                Err(error)
            }
        }
    }

    /// Writes the file's bytes to `target`; returns how many.
    pub fn get(&self, path: &[u8], target: &mut impl Write) -> Result<u64, Error> {
        let context = context("get", path);
        let attributes = self.resolve(path).map_err(&context)?;
        match attributes.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(context(Status::IsDirectory)),
            _ => return Err(context(Status::InvalidArgument)),
        }
        // Held, so that it can be read to its end even if someone removes it meanwhile.
        let ino = attributes.ino;
        let sequence = self.sequence.fetch_add(2, Ordering::Relaxed);
        self.query(Query::Hold { ino, sequence }).map_err(&context)?;
        let read = self.read_stream(ino, target).map_err(|error| match error {
            StreamError::Cluster(status) => context(status),
            StreamError::Local(error) => {
                Error { status: Status::Internal, context: format!("{}: {error}", context(Status::Internal).context) }
            }
        });
        // The session's end releases it too, so a failure here loses nothing.
        let _ = self.query(Query::Release { ino, sequence: sequence + 1 });
        read
    }

    /// The entries of a directory, in their own order.
    pub fn read_dir(&self, path: &[u8]) -> Result<Vec<DirectoryEntry>, Error> {
        let context = context("list", path);
        let ino = self.resolve(path).map_err(&context)?.ino;
        let (mut all, mut after) = (Vec::new(), Cookie(0));
        loop {
            let query = Query::ReadDirectory { ino, after, limit: limits::READDIR_ENTRIES_MAX as u32 };
            let Answer::Directory { entries, end, .. } = self.query(query).map_err(&context)? else {
                return Err(context(Status::Malformed));
            };
            let Some(last) = entries.last() else { return Ok(all) };
            after = last.cookie;
            all.extend(entries);
            if end {
                return Ok(all);
            }
        }
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: &[u8], mode: u16) -> Result<Attributes, Error> {
        let context = context("mkdir", path);
        let (parent, name) = self.parent_of(path).map_err(&context)?;
        let (uid, gid) = ids();
        let kind = NewKind::Directory;
        self.entry(Op::Create { parent: parent.ino, name, kind, mode, uid, gid, exclusive: true, hold: false, write: false, umask: 0 })
            .map_err(&context)
    }

    /// Removes a file or an empty directory.
    pub fn remove(&self, path: &[u8]) -> Result<(), Error> {
        let context = context("remove", path);
        let kind = self.resolve(path).map_err(&context)?.kind;
        let (parent, name) = self.parent_of(path).map_err(&context)?;
        let parent = parent.ino;
        let op = if kind == FileKind::Directory { Op::Rmdir { parent, name } } else { Op::Unlink { parent, name } };
        self.call(Call::Op(op)).map(|_| ()).map_err(&context)
    }

    /// Renames, replacing a target that may be replaced.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        let context = context("rename", from);
        let (from_parent, from_name) = self.parent_of(from).map_err(&context)?;
        let (to_parent, to_name) = self.parent_of(to).map_err(&context)?;
        let (from_parent, to_parent) = (from_parent.ino, to_parent.ino);
        let op = Op::Rename { from_parent, from_name, to_parent, to_name, mode: RenameMode::Replace };
        self.call(Call::Op(op)).map(|_| ()).map_err(&context)
    }

    /// What `stat` shows of the path itself (symbolic links are not followed).
    pub fn metadata(&self, path: &[u8]) -> Result<Attributes, Error> {
        self.resolve(path).map_err(context("stat", path))
    }

    /// On which nodes the file's bytes lie.
    pub fn locate(&self, path: &[u8]) -> Result<Located, Error> {
        let context = context("locate", path);
        let ino = self.resolve(path).map_err(&context)?.ino;
        let range = ByteRange { offset: 0, length: limits::FILE_BYTES_MAX };
        match self.call(Call::Locate { ino, range }).map_err(&context)? {
            Reply::Located(located) => Ok(located),
            _ => Err(context(Status::Malformed)),
        }
    }

    /// The cluster as its leader sees it, or any node if the leader cannot be reached.
    pub fn status(&self) -> Result<Box<StatusReport>, Error> {
        match self.call(Call::Status(None)) {
            Ok(Reply::Status(report)) => Ok(report),
            Ok(_) => Err(Error { status: Status::Malformed, context: "status".into() }),
            Err(status) => Err(Error { status, context: "status".into() }),
        }
    }

    /// The next slice of a check, by the leader or by the node that is meant. [`crate::fsck::run`] makes a whole of them.
    pub fn check(&self, node: Option<NodeId>, check: Check) -> Result<Checked, Status> {
        match self.call(Call::Check { node, check })? {
            Reply::Checked(checked) => Ok(checked),
            _ => Err(Status::Malformed),
        }
    }

    /// Flips a bit of a chunk on that node, or has it hash all its chunks again; `NotPermitted` unless it was started with `--debug-faults`.
    pub fn debug(&self, node: NodeId, action: DebugAction) -> Result<(), Status> {
        self.call(Call::Debug { node, action }).map(drop)
    }

    /// Capacity and free space after replication.
    pub fn space(&self) -> Result<Space, Error> {
        match self.query(Query::Space) {
            Ok(Answer::Space(space)) => Ok(space),
            Ok(_) => Err(Error { status: Status::Malformed, context: "df".into() }),
            Err(status) => Err(Error { status, context: "df".into() }),
        }
    }

    /// Returns when everything that this client did, and all that others had accepted, is replicated and committed.
    pub fn sync(&self) -> Result<(), Error> {
        let done = self.call(Call::Flush).and_then(|_| self.query(Query::Settle { told: false }));
        done.map(|_| ()).map_err(|status| Error { status, context: "sync".into() })
    }

    /// Stops the whole cluster.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.call(Call::Shutdown).map(|_| ()).map_err(|status| Error { status, context: "shutdown".into() })
    }

    /// Has what a node holds moved to others, after which it leaves by itself. Returns when that has begun. Errors: `NoSpace` if the
    /// others have no room for it, `Degraded` if they would be too few, `NotMember`.
    pub fn drain(&self, node: NodeId) -> Result<(), Error> {
        self.call(Call::Drain(node)).map(|_| ()).map_err(|status| Error { status, context: "drain".into() })
    }

    /// Attributes of what is at the path. An empty path and `/` are the root.
    pub fn resolve(&self, path: &[u8]) -> Result<Attributes, Status> {
        let path = names_of(path)?;
        match self.query(Query::Resolve { path })? {
            Answer::Attributes(attributes) => Ok(attributes),
            _ => Err(Status::Malformed),
        }
    }

    /// The directory that the path's last name is in, and that name.
    pub fn parent_of(&self, path: &[u8]) -> Result<(Attributes, Name), Status> {
        let mut path = names_of(path)?;
        // The root has no name.
        let name = path.pop().ok_or(Status::InvalidArgument)?;
        match self.query(Query::Resolve { path })? {
            Answer::Attributes(attributes) if attributes.kind == FileKind::Directory => Ok((attributes, name)),
            Answer::Attributes(_) => Err(Status::NotDirectory),
            _ => Err(Status::Malformed),
        }
    }

    /// One question about the tree.
    pub fn query(&self, query: Query) -> Result<Answer, Status> {
        match self.call(Call::Query(query))? {
            Reply::Answer(answer) => Ok(answer),
            _ => Err(Status::Malformed),
        }
    }

    fn entry(&self, op: Op) -> Result<Attributes, Status> {
        match self.call(Call::Op(op))? {
            Reply::Replied(Replied::Entry { attributes, .. }) => Ok(attributes),
            _ => Err(Status::Malformed),
        }
    }

    fn temporary(&self, name: &Name) -> Result<Name, Status> {
        let unique = self.salt ^ self.sequence.fetch_add(1, Ordering::Relaxed);
        let suffix = format!(".put-{unique:016x}");
        let mut bytes = vec![b'.'];
        bytes.extend_from_slice(name.as_bytes());
        bytes.truncate(limits::NAME_BYTES_MAX - suffix.len());
        bytes.extend_from_slice(suffix.as_bytes());
        Name::new(bytes)
    }

    /// Stores a stream from the file's beginning, several pieces in flight; returns its length.
    fn write_stream(&self, ino: InodeId, source: &mut impl Read) -> Result<u64, StreamError> {
        let mut offset = 0;
        let mut in_flight: VecDeque<Pending> = VecDeque::new();
        loop {
            let mut piece = Vec::with_capacity(STREAM_PIECE_BYTES);
            source.by_ref().take(STREAM_PIECE_BYTES as u64).read_to_end(&mut piece).map_err(StreamError::Local)?;
            let length = piece.len();
            if length > 0 {
                let at = WriteAt::Offset(offset);
                let call = Call::Write { ino, at, bytes: Bytes::from(piece), kill_privileges: false };
                in_flight.push_back(self.submit(call).map_err(StreamError::Cluster)?);
                offset += length as u64;
            }
            let last = length < STREAM_PIECE_BYTES;
            while in_flight.len() >= STREAM_PIECES || last {
                let Some(oldest) = in_flight.pop_front() else { break };
                oldest.wait().map_err(StreamError::Cluster)?;
            }
            if last {
                return Ok(offset);
            }
        }
    }

    fn read_stream(&self, ino: InodeId, target: &mut impl Write) -> Result<u64, StreamError> {
        let mut written = 0;
        let mut offset = 0;
        let mut in_flight: VecDeque<Pending> = VecDeque::new();
        loop {
            while in_flight.len() < STREAM_PIECES {
                let range = ByteRange { offset, length: STREAM_PIECE_BYTES as u64 };
                in_flight.push_back(self.submit(Call::Read { ino, range }).map_err(StreamError::Cluster)?);
                offset += STREAM_PIECE_BYTES as u64;
                // The first answer tells whether there is more than one piece at all.
                if written == 0 && in_flight.len() == 1 && offset == STREAM_PIECE_BYTES as u64 {
                    break;
                }
            }
            let Some(oldest) = in_flight.pop_front() else { return Ok(written) };
            let Reply::Bytes(bytes) = oldest.wait().map_err(StreamError::Cluster)? else {
                return Err(StreamError::Cluster(Status::Malformed));
            };
            target.write_all(&bytes).map_err(StreamError::Local)?;
            written += bytes.len() as u64;
            if bytes.len() < STREAM_PIECE_BYTES {
                return Ok(written);
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The end of the session frees what it held at once; without an answer the lease does so later.
        if let Ok(pending) = self.submit(Call::EndSession) {
            let _ = pending.0.recv_timeout(limits::ATTEMPT_TIMEOUT);
        }
        if let Some(thread) = self.thread.take() {
            // A second time: do not wait for the answer.
            let (answer, _) = bounded(1);
            let told = self.handle.send_waiting(Input { call: Call::EndSession, answer });
            if told.is_err() || thread.join().is_err() {
                tracing::debug!("the client's thread had ended before");
            }
        }
    }
}

enum StreamError {
    Cluster(Status),
    /// The caller's own source or target failed.
    Local(std::io::Error),
}

impl Machine for ClientMachine {
    type Input = Input;

    fn on_input(&mut self, now: Time, input: Input) {
        let token = self.next_token;
        self.next_token += 1;
        if matches!(input.call, Call::EndSession) {
            // Said a second time it means that nobody waits for the answer any more.
            self.done |= self.ending.is_some();
            self.ending = Some(token);
        }
        self.waiting.insert(token, input.answer);
        self.core.submit(now, token, input.call);
        self.settle();
    }

    fn on_link(&mut self, now: Time, event: LinkEvent) {
        self.core.on_link(now, event);
        self.settle();
    }

    fn on_deadline(&mut self, now: Time) {
        self.core.on_deadline(now);
        self.settle();
    }

    fn next_deadline(&self) -> Time {
        self.core.next_deadline()
    }

    fn poll_action(&mut self) -> Option<LinkAction> {
        self.settle();
        self.actions.pop_front()
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

impl ClientMachine {
    /// Hands out what the core has to say.
    fn settle(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Link(action) => self.actions.push_back(action),
                Output::Done { token, result } => {
                    self.done |= self.ending == Some(token);
                    if let Some(answer) = self.waiting.remove(&token) {
                        // Who asked may have gone.
                        let _ = answer.try_send(result);
                    }
                }
                Output::Event(event) => self.on_event(event),
                Output::Invalidate { .. } => unreachable!("a client without caches has nothing to forget"),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let told = match event {
            Event::Ready { cluster } => Ok(cluster),
            Event::SessionLost => Err(Status::SessionGone),
            Event::WrongCluster => Err(Status::WrongCluster),
            Event::Stopping => Err(Status::ShuttingDown),
        };
        if let Some(ready) = self.ready.take() {
            let _ = ready.try_send(told);
        }
    }
}

fn context<'a>(verb: &'a str, path: &'a [u8]) -> impl Fn(Status) -> Error + use<'a> {
    move |status| Error { status, context: format!("{verb} {}", String::from_utf8_lossy(path)) }
}

/// The names of a path from the root; empty ones and `.` are passed over, `..` is refused.
fn names_of(path: &[u8]) -> Result<Vec<Name>, Status> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(Name::new).collect()
}

fn ids() -> (u32, u32) {
    // SAFETY: both calls only read the process's credentials and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// A non-zero number from the operating system's randomness, by way of the keys of the standard hasher.
fn random_id() -> u64 {
    loop {
        let id = std::hash::RandomState::new().build_hasher().finish();
        if id != 0 && id != ROOT.0 {
            return id;
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Drives real sockets.
mod tests {
    use super::*;

    #[test]
    fn paths_are_names() {
        let names = |path: &str| names_of(path.as_bytes()).map(|names| names.iter().map(Name::to_string).collect::<Vec<_>>());
        assert_eq!(names("/a//b/./c/"), Ok(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(names("/"), Ok(vec![]));
        assert_eq!(names("/a/../b"), Err(Status::InvalidArgument));
        assert_ne!(random_id(), random_id());
    }

    #[test]
    fn without_a_node_connecting_fails_in_time() {
        let nodes = ["unix:/nonexistent/dfs-test.sock".parse().unwrap()];
        let options = Options { op_timeout: Duration::from_millis(300), ..Options::default() };
        let begun = std::time::Instant::now();
        let error = Client::connect(&nodes, options).err().unwrap();
        assert_eq!(error.status, Status::Unavailable);
        assert!(error.to_string().contains("nonexistent"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
