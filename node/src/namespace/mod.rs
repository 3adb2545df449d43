//! The namespace: names, inodes, layouts, chunk references, sessions, members. A pure function of the log.
//!
//! [`Namespace::apply`] is total and deterministic: whatever was committed, it answers with an outcome or a status, equal on every
//! node, and on an error nothing has changed. It names no clock, randomness or unordered map. What is to be done outside comes out as
//! [`Effect`]s. Refuses to know about Raft, links, open files (the leader's volatile table) and where chunks should be placed.

mod acl;
mod chunks;
mod cluster;
mod command;
mod content;
mod digest;
mod directory;
mod extents;
mod fsck;
mod holders;
mod inode;
mod invariants;
mod locks;
mod query;
mod seek;
mod session;
mod snapshot;
mod store;
mod writers;
mod xattr;

#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use dfs::cluster_map::ClusterMap;
use dfs::limits;
use dfs::placement::PlacementTable;
use dfs::status::Status;
use dfs::types::{ClusterId, InodeId, NodeId, ROOT, SessionId, Timestamp};
use dfs::wire::codec;
use dfs::wire::namespace::{NewKind, Op, Replied};
use serde::{Deserialize, Serialize};

pub(crate) use locks::owner_of;

pub use command::{Command, Effect, LogEntry, SpaceLimits};
pub use holders::{Held, replicas};
pub use session::{Session, SessionState};
pub use snapshot::SnapshotLoader;
pub use store::Usage;

use content::{CopyRange, HowWritten, SlotAt};
use digest::Digest;
use directory::{NewInode, Place};
use inode::{Body, Inode};
use store::Store;
use xattr::NewXattr;

/// What is replicated besides the tables: small, copied whole into a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    /// Index of the last entry applied.
    applied: u64,
    /// The latest time applied; never goes back.
    time: Timestamp,
    /// Inode numbers are never reused.
    last_inode: u64,
    limits: SpaceLimits,
    map: ClusterMap,
    /// Sessions that ended lately, oldest first.
    ended_sessions: VecDeque<SessionId>,
    /// Incarnations taken off the map, oldest first.
    dead_nodes: VecDeque<NodeId>,
    /// Members declared dead while they were leaving: they go on leaving if they come back.
    leaving_dead: BTreeSet<NodeId>,
    /// Clusters whose tree this one has gone on with, oldest first.
    lineage: VecDeque<ClusterId>,
}

/// The replicated state.
#[derive(Debug)]
pub struct Namespace {
    header: Header,
    store: Store,
    effects: Vec<Effect>,
    outgoing: Option<snapshot::Outgoing>,
    /// Notes for a check that is under way.
    touched: fsck::Touched,
    /// Derived from the map: what chunks may be charged for in all.
    capacity: u64,
    /// Derived from the map: who should hold what.
    placement: PlacementTable,
    copied_bytes: u64,
}

impl Namespace {
    /// An empty tree without a cluster. `limits` must be the same on every node until a `SetLimits` is applied.
    pub fn new(limits: SpaceLimits) -> Self {
        let header = Header {
            applied: 0,
            time: Timestamp::default(),
            last_inode: ROOT.0,
            limits,
            map: ClusterMap::default(),
            ended_sessions: VecDeque::new(),
            dead_nodes: VecDeque::new(),
            leaving_dead: BTreeSet::new(),
            lineage: VecDeque::new(),
        };
        let mut namespace = Namespace::of_header(header);
        let root = Inode::new(NewKind::Directory, ROOT, 0o755, (0, 0), Timestamp::default());
        namespace.store.put_inode(ROOT, root);
        namespace
    }

    fn of_header(header: Header) -> Self {
        let capacity = dfs::capacity::capacity(&header.map);
        let placement = PlacementTable::new();
        let (store, touched) = (Store::default(), fsck::Touched::default());
        Namespace { header, store, effects: Vec::new(), outgoing: None, touched, capacity, placement, copied_bytes: 0 }
    }

    /// Applies the entry at `index`, which must be beyond all applied before.
    pub fn apply(&mut self, index: u64, entry: &LogEntry) -> Result<Replied, Status> {
        assert!(index > self.header.applied, "the log is applied in order");
        self.header.applied = index;
        if entry.time.nanos < 1_000_000_000 {
            self.header.time = self.header.time.max(entry.time);
        }
        let now = self.header.time;
        match &entry.command {
            Command::Found { cluster, replicas, awaited } => self.found(*cluster, *replicas, awaited).inspect(|_| self.date_root(now)),
            Command::SetLimits(limits) => {
                self.header.limits = *limits;
                Ok(Replied::Done)
            }
            Command::SetMember(member) => self.set_member(member),
            Command::MarkDead { node } => self.mark_dead(*node),
            Command::RemoveMember { node } => self.remove_member(*node),
            Command::OpenSession { session, caches } => self.open_session(*session, *caches),
            Command::EndSession { session } => self.end_session(*session),
            Command::ExpireSession { session } => self.expire_session(*session),
            Command::EvictSession { session } => self.evict_session(*session),
            Command::Request { session, number, answered_below, uploads_from, op } => {
                self.raise_marks(*session, answered_below.0, *uploads_from)?;
                self.request(*session, number.0, op, now)
            }
            Command::Progress { session, answered_below, uploads_from } => self.raise_marks(*session, answered_below.0, *uploads_from),
            Command::Reap { inos } => self.reap(inos),
            Command::Trim { inos } => self.trim(inos),
            Command::Lost { node, items } => {
                self.lose(*node, items);
                Ok(Replied::Done)
            }
            Command::Copied { node, items } => {
                self.record_copies(*node, items);
                Ok(Replied::Done)
            }
            Command::Noop => Ok(Replied::Done),
            Command::DropLocks { session } => {
                self.drop_locks(*session);
                Ok(Replied::Done)
            }
        }
    }

    /// Carries out one operation of a client.
    fn operate(&mut self, session: SessionId, op: &Op, now: Timestamp) -> Result<Replied, Status> {
        match op {
            Op::Create { parent, name, kind, mode, uid, gid, exclusive, hold: _, write, umask } => {
                let new = NewInode { kind, mode: *mode, umask: *umask, uid: *uid, gid: *gid, exclusive: *exclusive };
                let replied = self.create(Place { parent: *parent, name }, new, now)?;
                Ok(self.tell_writer(session, replied, *write))
            }
            Op::Link { ino, parent, name } => self.link(*ino, Place { parent: *parent, name }, now),
            Op::Unlink { parent, name } => self.unlink(Place { parent: *parent, name }, now),
            Op::Rmdir { parent, name } => self.rmdir(Place { parent: *parent, name }, now),
            Op::Rename { from_parent, from_name, to_parent, to_name, mode } => {
                let from = Place { parent: *from_parent, name: from_name };
                self.rename(from, Place { parent: *to_parent, name: to_name }, *mode, now)
            }
            Op::SetAttributes { ino, set } => self.set_attributes(*ino, set, now),
            Op::Write { ino, patches, chunks, kill_privileges, behind } => {
                let how = HowWritten { kill_privileges: *kill_privileges, behind: *behind, now };
                self.write(session, *ino, (patches, chunks), how)
            }
            Op::Fold { ino, slot, slot_version, patches, chunks } => {
                let at = SlotAt { ino: *ino, index: *slot, version: *slot_version };
                self.fold(session, at, (patches, chunks))
            }
            Op::Acquire { ino } => self.acquire(session, *ino),
            Op::Yield { ino } => self.yield_writer(session, *ino),
            Op::Reserve { bytes } => self.reserve(session, *bytes),
            Op::SetLock { ino, lock } => self.set_lock(session, *ino, lock),
            Op::Allocate { ino, range, mode, kill_privileges } => self.allocate(*ino, *range, *mode, *kill_privileges, now),
            Op::Copy { from, from_offset, to, to_offset, length, kill_privileges } => {
                let range = CopyRange { from: *from, from_offset: *from_offset, to: *to, to_offset: *to_offset, length: *length };
                self.copy(range, *kill_privileges, now)
            }
            Op::SetXattr { ino, name, value, condition, drop_setgid } => {
                self.set_xattr(*ino, NewXattr { name, value, condition: *condition, drop_setgid: *drop_setgid }, now)
            }
            Op::RemoveXattr { ino, name } => self.remove_xattr(*ino, name, now),
        }
    }

    /// The tree begins when the cluster does.
    fn date_root(&mut self, now: Timestamp) {
        self.store.update_inode(ROOT, |root| {
            (root.atime, root.mtime, root.ctime) = (now.into(), now.into(), now.into());
        });
    }

    /// What chunks and the namespace may be charged for in all, one copy each, in bytes: beyond it whatever adds something is refused.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What of it is neither used nor reserved by a session. The namespace counts: it lies in the same memory on every voter.
    pub fn spare(&self) -> u64 {
        let usage = self.store.usage();
        self.capacity.saturating_sub(usage.charged_bytes + usage.namespace_bytes + usage.reserved_bytes)
    }

    /// What of that new things may take: some is left for changes of what is there.
    pub fn spare_for_new(&self) -> u64 {
        self.spare().saturating_sub(dfs::capacity::kept_for_changes(self.capacity))
    }

    /// The cluster map.
    pub fn map(&self) -> &ClusterMap {
        &self.header.map
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> u64 {
        self.header.applied
    }

    /// The latest cluster time applied.
    pub fn time(&self) -> Timestamp {
        self.header.time
    }

    /// How much the namespace may take.
    pub fn limits(&self) -> SpaceLimits {
        self.header.limits
    }

    /// What it takes.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// What applying has made necessary since the last call. To be drained after every entry, by followers too.
    pub fn drain_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Inodes without a name, to be reaped once nobody holds them.
    pub fn orphans(&self) -> impl Iterator<Item = InodeId> {
        self.store.orphans()
    }

    /// Files of which truncated slots are to be trimmed.
    pub fn cuts_pending(&self) -> impl Iterator<Item = InodeId> {
        self.store.cuts()
    }

    /// Equal on all nodes that have applied the same entries.
    pub fn state_hash(&self) -> u64 {
        let header = codec::encode(&self.header, limits::SNAPSHOT_RECORD_BYTES_MAX).expect("a header is far smaller than its bound");
        Digest::new(8).bytes(&header).word(self.store.hash()).end()
    }

    /// The incremental part of the state hash: all tables without map and marks. O(1).
    pub fn tables_hash(&self) -> u64 {
        self.store.hash()
    }

    /// Panics if a rule of the state is broken. Walks over everything.
    pub fn check_invariants(&self) {
        self.store.check_invariants();
        invariants::check(self);
    }

    /// A file's layout, for the rooms beside this one.
    fn body(&self, ino: InodeId) -> Option<&Body> {
        self.store.inode(ino).map(|inode| &inode.body)
    }
}
