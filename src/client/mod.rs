//! The client core: a session with a cluster, namespace calls, and file content over chunks.
//!
//! [`Core`] is a state machine: fed with calls, link events and time, drained of link actions and results. It owns the session, the exact
//! bookkeeping of request numbers, the routing to the leader, and bounded caches, which answer without a message what the session has a right to
//! know. What it may write alone it commits a little later; other writes are on their nodes and committed when they are answered. It never
//! moves to another cluster by itself.

pub mod api;
mod asks;
mod behind;
mod cache;
mod changes;
mod core;
mod delegated;
pub mod driver;
mod fetch;
mod flush;
mod fold;
mod holds;
mod layout;
mod local;
mod locks;
mod names;
mod pass;
mod read;
mod recall;
mod rights;
mod router;
mod session;
mod space;
#[cfg(test)]
mod tests;
mod unnamed;
mod upload;
mod write;

use std::time::Duration;

use bytes::Bytes;

use crate::cluster_map::{ClusterMap, Member};
use crate::limits;
use crate::link::LinkAction;
use crate::status::Status;
use crate::types::{Address, Attributes, ByteRange, ClusterId, InodeId, Name, NodeId, SessionId};
use crate::wire::fsck::{Check, Checked};
use crate::wire::message::{DebugAction, StatusReport};
use crate::wire::namespace::{AllocateMode, Answer, ChunkPlace, Extent, Op, Query, Replied, SetLock, Sought, WriteAt};

pub use self::api::{Client, Error, Options};
pub use self::core::Core;

/// What a client core is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to begin; the cluster map tells the rest, so all of them may die later.
    pub nodes: Vec<Address>,
    /// Every call ends within this time without progress.
    pub op_timeout: Duration,
    /// Drawn at random by the caller, never 0, never used again.
    pub session: SessionId,
    /// Bound of the chunk cache.
    pub cache_bytes: usize,
    /// Whether the session asks for rights, keeps what it has learnt under them, and obeys recalls. Its owner must then answer every
    /// [`Output::Invalidate`].
    pub caches: bool,
    /// Whether writes are answered before they are committed, where the session may write the file alone. Only with `caches`.
    pub behind: bool,
    pub timing: Timing,
    pub sabotage: Option<Sabotage>,
}

/// A bug planted to show that the simulator finds it. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The leader hears that a recall was obeyed before the caches above have forgotten.
    RecallObeyedEarly,
    /// `WRITE` goes back before what was written under it is committed.
    FlushForgotten,
    /// A commit of bytes written behind counts as done when it is sent, so that the next one of the file may overtake it.
    ChainIgnored,
    /// Planted in the mount: attributes are given a lifetime under a right that an invalidation has taken meanwhile.
    AttributesOvertake,
}

/// Intervals, apart so that a simulation can vary them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Turn to another node after this long without an answer.
    pub attempt: Duration,
    pub renew: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            attempt: limits::ATTEMPT_TIMEOUT,
            renew: limits::SESSION_RENEW_INTERVAL,
            backoff_min: limits::CLIENT_BACKOFF_MIN,
            backoff_max: limits::CLIENT_BACKOFF_MAX,
        }
    }
}

impl Config {
    /// The usual bounds.
    pub fn new(nodes: Vec<Address>, session: SessionId) -> Self {
        Config {
            nodes,
            op_timeout: limits::OP_TIMEOUT,
            session,
            cache_bytes: limits::CLIENT_CACHE_BYTES_DEFAULT,
            caches: false,
            behind: false,
            timing: Timing::default(),
            sabotage: None,
        }
    }
}

/// What a client can ask for.
#[derive(Clone, Debug)]
pub enum Call {
    Op(Op),
    Query(Query),
    /// Bytes of a file, verified; fewer than asked only at its end.
    Read {
        ino: InodeId,
        range: ByteRange,
    },
    /// New bytes; answered when they are replicated and committed, or kept to be written behind if the session has the `WRITE` right.
    Write {
        ino: InodeId,
        at: WriteAt,
        bytes: Bytes,
        kill_privileges: bool,
    },
    /// fallocate(2), as many commands as it takes; answers `Replied::Ranged`. What fails half way has reserved, zeroed or punched a
    /// first part of the range, and has not changed the size.
    Allocate {
        ino: InodeId,
        range: ByteRange,
        mode: AllocateMode,
        kill_privileges: bool,
    },
    /// copy_file_range(2), as many commands as it takes; answers `Replied::Ranged` with how much was copied before the source's end or
    /// a failure.
    Copy {
        from: InodeId,
        from_offset: u64,
        to: InodeId,
        to_offset: u64,
        length: u64,
        kill_privileges: bool,
    },
    /// The next data or hole; answers `Answer::Sought` with `found`.
    Seek {
        ino: InodeId,
        offset: u64,
        what: Sought,
    },
    /// Where a file's bytes lie.
    Locate {
        ino: InodeId,
        range: ByteRange,
    },
    /// The newest cluster map.
    Map,
    /// The report of the leader if it can be reached, else of any node; or of the node at that address.
    Status(Option<Address>),
    /// The next slice of a check, by the leader or by the node that is meant.
    Check {
        node: Option<NodeId>,
        check: Check,
    },
    /// Harms or hurries a node that was started to bear it.
    Debug {
        node: NodeId,
        action: DebugAction,
    },
    /// Answered when every change submitted before is safe, bytes written behind included.
    Flush,
    /// Answered when every change of that inode submitted before is safe.
    Sync {
        ino: InodeId,
    },
    /// Ends the session; the core is finished with it.
    EndSession,
    /// Stops the whole cluster.
    Shutdown,
    /// Has a node's data moved to others; answered when that has begun.
    Drain(NodeId),
    /// Has the node at that address go on as a new cluster with the tree of one that has lost its majority. Of a fresh core: one that has
    /// found the old cluster cannot speak to the new one.
    Recover {
        address: Address,
        cluster: ClusterId,
    },
    /// Has the node at that address give up its copy of that cluster's tree and join the one at `to`.
    Rejoin {
        address: Address,
        cluster: ClusterId,
        to: Address,
    },
    /// Takes, converts or gives up a lock. `WouldBlock` if it is not free; waits for it without a deadline if told to.
    Lock {
        ino: InodeId,
        lock: SetLock,
    },
}

/// What a call answered.
#[derive(Clone, Debug)]
pub enum Reply {
    Replied(Replied),
    Answer(Answer),
    Bytes(Bytes),
    Located(Located),
    Map(ClusterMap),
    Status(Box<StatusReport>),
    Checked(Checked),
    Done,
}

/// Where a file's bytes lie.
#[derive(Clone, Debug)]
pub struct Located {
    pub attributes: Attributes,
    pub extents: Vec<Extent>,
    /// The chunks that the extents name, each once, sorted by hash.
    pub chunks: Vec<ChunkPlace>,
    /// The members of the cluster, for the holders' addresses.
    pub members: Vec<Member>,
}

/// What befell the core as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open.
    Ready { cluster: ClusterId },
    /// The session was ended or evicted; every call fails from now on. A new core may begin a new session.
    SessionLost,
    /// All nodes that can be found belong to another cluster; every call fails from now on.
    WrongCluster,
    /// The cluster says that it stops.
    Stopping,
}

/// What caches above the core (the kernel's) must forget. Attributes, names and bytes were given to them with a lifetime, see
/// [`Core::lifetime`] and its kin; what is invalidated here was given before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Attributes and bytes of the inode; for a directory also its listing.
    Inode { ino: InodeId },
    /// One name, there or absent, and listing and attributes of the directory.
    Name { directory: InodeId, name: Name },
    /// All names of the directory, and its listing.
    Names { directory: InodeId },
}

/// An output of the core.
#[derive(Debug)]
pub enum Output {
    Link(LinkAction),
    /// To be obeyed, then acknowledged with [`Core::on_invalidated`]: somebody waits for it. From this output on nothing that falls under it
    /// may be given to the caches above with a lifetime, unless the core grants one anew.
    Invalidate {
        id: u64,
        what: Invalidation,
    },
    Done {
        token: u64,
        result: Result<Reply, Status>,
    },
    Event(Event),
}

/// What a core has sent and received, for tests and figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests on the control lane, renewals apart.
    pub control_requests: u64,
    pub renewals: u64,
    pub bulk_requests: u64,
    pub bulk_bytes_sent: u64,
    pub bulk_bytes_received: u64,
}
