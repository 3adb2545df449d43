//! What the log carries, and what applying it asks of the node around the namespace.

use dfs::cluster_map::Member;
use dfs::types::{Address, ChunkHash, ClusterId, InodeId, Instance, NodeId, RequestNumber, SessionId, Timestamp};
use dfs::wire::namespace::Op;
use serde::{Deserialize, Serialize};

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Cluster time as the leader stamped it; applying never lets time run backwards.
    pub time: Timestamp,
    pub command: Command,
}

/// How much memory the namespace may take. Replicated, because every voter must refuse the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceLimits {
    /// Of all records together; beyond it nothing new is made.
    pub namespace_bytes_max: u64,
    /// Of file content kept inline; beyond it content must come as chunks.
    pub inline_bytes_max: u64,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        SpaceLimits { namespace_bytes_max: 1 << 30, inline_bytes_max: 1 << 29 }
    }
}

/// A replicated change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Names the cluster; the first one counts. `awaited`: who must have joined before anybody is served.
    Found { cluster: ClusterId, replicas: u8, awaited: Vec<Address> },
    /// The voters' smallest budget.
    SetLimits(SpaceLimits),
    /// Adds or changes a member; a new incarnation at a known address replaces the old one.
    SetMember(Member),
    /// That incarnation is never heard again.
    MarkDead { node: NodeId },
    /// Takes the member off the map.
    RemoveMember { node: NodeId },
    /// Opens a session, or revives an expired one. `caches`: it takes rights and answers recalls.
    OpenSession { session: SessionId, caches: bool },
    /// The client ended it.
    EndSession { session: SessionId },
    /// Its lease ran out; it keeps everything until evicted.
    ExpireSession { session: SessionId },
    /// Ends an expired session; `Conflict` if it has been revived meanwhile.
    EvictSession { session: SessionId },
    /// One operation of a client, exactly once.
    Request { session: SessionId, number: RequestNumber, answered_below: RequestNumber, uploads_from: u64, op: Op },
    /// Raises the session's marks without an operation.
    Progress { session: SessionId, answered_below: RequestNumber, uploads_from: u64 },
    /// Frees a bounded part of unlinked inodes that nobody holds.
    Reap { inos: Vec<InodeId> },
    /// Frees a bounded part of what truncations cut off.
    Trim { inos: Vec<InodeId> },
    /// The node no longer has these chunks.
    Lost { node: NodeId, items: Vec<(ChunkHash, Instance)> },
    /// The node has made copies of these chunks, or found that it has them still.
    Copied { node: NodeId, items: Vec<(ChunkHash, Instance)> },
    /// A new leader's first entry.
    Noop,
    /// Frees a bounded part of the locks that an ended session left.
    DropLocks { session: SessionId },
}

/// What applying an entry makes necessary outside the namespace. Only the leader acts; others discard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// These holders may forget that upload: the last reference to the chunk went, or there are enough other copies.
    Deleted { hash: ChunkHash, instance: Instance, holders: Vec<NodeId> },
    /// The cluster map has a new epoch.
    MapChanged,
    /// The session exists and is open.
    SessionOpened(SessionId),
    /// The session is gone.
    SessionEnded(SessionId),
    /// The inode lost its last name.
    Orphaned(InodeId),
    /// A truncation left slots to be trimmed.
    Cut(InodeId),
    /// Locks of the inode were given up.
    Unlocked(InodeId),
}
