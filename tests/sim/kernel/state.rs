//! What the model of one machine's kernel keeps of a mount: names, attributes and pages with their lifetimes, and its locks.
//!
//! After Linux 6.18, fs/fuse: what matters is which answer may be used for how long, what a notification waits for, and which late
//! answers are discarded. Time is the daemon's clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Attributes, InodeId};
use dfs_mount::requests::{Context, Handle, Keep, Reply, Request};

/// Unit of the page cache.
pub const PAGE: u64 = 4096;

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Shared,
    Exclusive,
}

/// What a lock protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lockable {
    /// `i_rwsem`: of a directory for look-ups and changes of its names, of a file for writes.
    Inode(InodeId),
    /// The lock of one folio.
    Page(InodeId, u64),
}

/// A fair lock: whoever asked first gets it first, readers together.
#[derive(Debug, Default)]
struct Lock {
    holders: Vec<(u64, Mode)>,
    waiting: VecDeque<(u64, Mode)>,
}

/// A name as the kernel knows it.
#[derive(Clone, Debug)]
pub struct Dentry {
    /// Tells this one from a later one of the same name.
    pub serial: u64,
    /// `None`: known to be absent.
    pub ino: Option<InodeId>,
    pub valid_until: Time,
    pub epoch: u64,
}

/// An inode as the kernel knows it.
#[derive(Clone, Debug)]
pub struct Inode {
    pub attributes: Attributes,
    pub valid_until: Time,
    /// Grows with every change of the attributes; answers to questions asked before the last one are not used.
    pub version: u64,
    pub size: u64,
    pub pages: BTreeMap<u64, Vec<u8>>,
    /// Pages that a shared mapping changed and nobody wrote back.
    pub dirty: BTreeSet<u64>,
    pub lookups: u64,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub handle: Handle,
    pub ino: InodeId,
    pub direct: bool,
}

/// Everything of one mount.
#[derive(Debug, Default)]
pub struct State {
    pub now: Time,
    /// The task that runs; each stands for a thread.
    pub thread: u32,
    pub dentries: BTreeMap<(InodeId, Vec<u8>), Dentry>,
    pub inodes: BTreeMap<InodeId, Inode>,
    pub epoch: u64,
    pub attribute_version: u64,
    pub open: Vec<Open>,
    /// Programs never close a descriptor that they have, and open none beside it.
    pub keeps_open: bool,
    locks: BTreeMap<Lockable, Lock>,
    next: u64,
    /// Requests that the daemon has not read yet.
    pub requests: VecDeque<(u64, Context, Request)>,
    pub forgets: Vec<(InodeId, u64)>,
    /// Inodes that a system call names and no reply has brought: the workload knows them by number.
    pub adopted: Vec<InodeId>,
    /// Replies, and when the daemon wrote them. Whoever waits may run only a while later.
    pub replies: BTreeMap<u64, ((Reply, Keep), Time)>,
    pub scheduled: BTreeMap<u64, Time>,
    /// Files that are mapped, with the descriptor that keeps them open.
    pub mapped: BTreeMap<InodeId, Handle>,
    /// Files of which pages could not be written back when they were dropped, until somebody is told.
    pub unwritten: BTreeMap<InodeId, Status>,
    /// Counts everything that may let a task go on.
    pub changes: u64,
}

impl State {
    pub fn new(now: Time) -> Self {
        State { now, ..State::default() }
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Asks for a lock; [`State::try_lock`] with the number tells when it is held.
    pub fn ask_lock(&mut self, what: Lockable, mode: Mode) -> u64 {
        let number = self.number();
        self.locks.entry(what).or_default().waiting.push_back((number, mode));
        number
    }

    pub fn try_lock(&mut self, what: Lockable, number: u64) -> bool {
        let lock = self.locks.get_mut(&what).expect("asked before");
        let Some(&(first, mode)) = lock.waiting.front() else { return false };
        let free = lock.holders.is_empty() || (mode == Mode::Shared && lock.holders.iter().all(|(_, held)| *held == Mode::Shared));
        if first != number || !free {
            return false;
        }
        lock.waiting.pop_front();
        lock.holders.push((number, mode));
        self.changes += 1;
        true
    }

    pub fn unlock(&mut self, what: Lockable, number: u64) {
        let lock = self.locks.get_mut(&what).expect("held");
        let before = lock.holders.len();
        lock.holders.retain(|(held, _)| *held != number);
        assert_eq!(before, lock.holders.len() + 1, "what is released was held");
        if lock.holders.is_empty() && lock.waiting.is_empty() {
            self.locks.remove(&what);
        }
        self.changes += 1;
    }

    /// Whether somebody holds that lock.
    pub fn is_locked(&self, what: Lockable) -> bool {
        self.locks.get(&what).is_some_and(|lock| !lock.holders.is_empty())
    }

    /// Pages that somebody has locked or waits for.
    pub fn locked_pages(&self, ino: InodeId) -> Vec<u64> {
        let of = |what: &Lockable| if let Lockable::Page(inode, page) = what { (*inode == ino).then_some(*page) } else { None };
        self.locks.keys().filter_map(of).collect()
    }

    /// Sends a request to the daemon; its reply comes under the number.
    pub fn ask(&mut self, context: Context, request: Request) -> u64 {
        // A nodeid is part of an inode: after its FORGET the kernel has nothing to put into a request. The daemon rests on that: what it
        // remembers of a directory goes with it, and all names in it are taken to be gone.
        let unknown = subjects(&request).into_iter().flatten().find(|ino| !self.inodes.contains_key(ino));
        assert_eq!(unknown, None, "the kernel does not have what it asks about: {request:?}");
        let number = self.number();
        self.requests.push_back((number, Context { pid: self.thread, ..context }, request));
        self.changes += 1;
        number
    }

    /// The reply to that request, if it is there and the requester has been scheduled.
    pub fn take_reply(&mut self, number: u64) -> Option<((Reply, Keep), Time)> {
        if self.scheduled.get(&number).is_some_and(|at| *at > self.now) {
            return None;
        }
        self.scheduled.remove(&number);
        self.replies.remove(&number)
    }

    /// The kernel has the inode, whatever it is.
    pub fn adopt(&mut self, ino: InodeId, blank: Attributes) {
        if self.inodes.contains_key(&ino) {
            return;
        }
        let (pages, dirty) = Default::default();
        let inode = Inode { attributes: Attributes { ino, ..blank }, valid_until: Time(0), version: 0, size: 0, pages, dirty, lookups: 1 };
        self.inodes.insert(ino, inode);
        self.adopted.push(ino);
        self.changes += 1;
    }

    /// Drops an inode that is not open, as memory pressure does; no system call is under way.
    pub fn evict(&mut self, ino: InodeId) {
        let busy = self.open.iter().any(|open| open.ino == ino)
            || self.locks.keys().any(|what| matches!(what, Lockable::Inode(other) | Lockable::Page(other, _) if *other == ino));
        if busy || ino == dfs::types::ROOT || self.mapped.contains_key(&ino) {
            return;
        }
        if let Some(inode) = self.inodes.remove(&ino) {
            // Each name keeps its directory, so a directory goes after all its names.
            self.dentries.retain(|(parent, _), dentry| *parent != ino && dentry.ino != Some(ino));
            self.forgets.push((ino, inode.lookups));
            self.changes += 1;
        }
    }

    /// A name that may be used now, without asking.
    pub fn dentry(&self, parent: InodeId, name: &[u8]) -> Option<&Dentry> {
        let dentry = self.dentries.get(&(parent, name.to_vec()))?;
        (dentry.epoch == self.epoch && self.now < dentry.valid_until).then_some(dentry)
    }

    /// Puts a name in place of whatever was known.
    pub fn instantiate(&mut self, parent: InodeId, name: &[u8], ino: Option<InodeId>, valid_until: Time, epoch: u64) {
        let serial = self.number();
        self.dentries.insert((parent, name.to_vec()), Dentry { serial, ino, valid_until, epoch });
        self.changes += 1;
    }

    pub fn drop_dentry(&mut self, parent: InodeId, name: &[u8]) {
        self.dentries.remove(&(parent, name.to_vec()));
        self.changes += 1;
    }

    /// Takes attributes from a reply to a question asked when `attribute_version` was `asked`. `false`: they are older than what is known.
    /// `true` with changed size or time: the caller drops the pages.
    pub fn take_attributes(&mut self, attributes: Attributes, valid_until: Time, asked: u64) -> Freshness {
        self.attribute_version += 1;
        let version = self.attribute_version;
        self.changes += 1;
        let Some(inode) = self.inodes.get_mut(&attributes.ino) else {
            let size = attributes.size;
            // Only a look-up brings an inode, and is the first to be forgotten.
            let inode = Inode { attributes, valid_until, version, size, pages: BTreeMap::new(), dirty: BTreeSet::new(), lookups: 1 };
            self.inodes.insert(attributes.ino, inode);
            return Freshness::New;
        };
        if inode.version > asked {
            return Freshness::Older;
        }
        // AUTO_INVAL_DATA: another size or time means other bytes.
        let changed = inode.size != attributes.size || inode.attributes.mtime != attributes.mtime;
        inode.version = version;
        (inode.attributes, inode.valid_until, inode.size) = (attributes, valid_until, attributes.size);
        if changed { Freshness::Changed } else { Freshness::Same }
    }

    /// What the kernel knows of the attributes must not be used any more.
    pub fn forget_attributes(&mut self, ino: InodeId) {
        self.attribute_version += 1;
        let version = self.attribute_version;
        self.changes += 1;
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.version = version;
            inode.valid_until = Time(0);
        }
    }

    /// Attributes that may be used now, without asking.
    pub fn attributes(&self, ino: InodeId) -> Option<Attributes> {
        let inode = self.inodes.get(&ino)?;
        (self.now < inode.valid_until).then_some(Attributes { size: inode.size, ..inode.attributes })
    }
}

/// The inodes that a request names; those with a handle are open, so that nothing can take them away.
fn subjects(request: &Request) -> [Option<InodeId>; 2] {
    match *request {
        Request::Lookup { parent, .. } | Request::Make { parent, .. } | Request::Create { parent, .. } | Request::Unlink { parent, .. } => {
            [Some(parent), None]
        }
        Request::Rename { from_parent, to_parent, .. } => [Some(from_parent), Some(to_parent)],
        Request::Link { ino, parent, .. } => [Some(ino), Some(parent)],
        Request::GetAttributes { ino } | Request::Refresh { ino } | Request::SetAttributes { ino, .. } => [Some(ino), None],
        Request::Open { ino, .. } | Request::OpenDirectory { ino } | Request::Sync { ino, .. } => [Some(ino), None],
        _ => [None, None],
    }
}

/// What attributes from a reply told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    New,
    Same,
    Changed,
    Older,
}
