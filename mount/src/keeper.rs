//! What the kernel may keep, and what it has been given: the lifetimes of replies, and how an invalidation of the core reaches the kernel.
//!
//! Stands between the translator's replies and the kernel. Pure: the core's rights are asked for through [`Lease`]. Owns the table of pages, the
//! notices on their way, and until when names were given. Every lifetime ends with the right that it rests on.
//!
//! Facts of Linux 6.18 that this rests on (fs/fuse/dir.c, inode.c, file.c, readdir.c):
//! - An attribute reply is dropped if its question is older than the last invalidation of the inode. Not so SETATTR, LINK and CREATE replies: they
//!   are taken as they are, so attributes of inodes that the kernel may know already get no lifetime there.
//! - Names are protected by the directory's lock, which a lookup, a listing or a change holds and an invalidation of a name takes. An invalidation
//!   therefore comes after the reply that it might have missed. After an epoch each name is looked up anew; a lookup or a creation remembers the
//!   epoch of its question, but a listing with attributes that of its answer, so an epoch does not reach a listing that is being taken.
//! - A cached read asks for attributes first if theirs have ended, naming its handle (stat and fstat do not), and drops all pages if size or mtime
//!   have changed before it goes on. Hence pages that are suspect do no harm while attributes have no lifetime, and the reply to such a
//!   question shows another mtime, as long as no reader's reply is overtaken by another one: [`Turns`] sees to that.
//! - What is said about an inode that the kernel does not have is lost on it; so it is said again until the reply that brings it, or the
//!   FORGET that tells of its end, has arrived.
//! - An open without FOPEN_KEEP_CACHE drops the pages, some time after its reply.
//! - A link target never changes and numbers are never reused, so targets may be cached for ever.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dfs::client::Invalidation;
use dfs::limits;
use dfs::time::Time;
use dfs::types::{Attributes, FileKind, InodeId, Name};

use crate::fs::KernelNotice;
use crate::pages::{Doubt, Pages};
use crate::recalls::{Names, Recalled, Recalls};
use crate::requests::{Content, Handle, Keep, Listing, Reply, Request, WriteKind};
use crate::turns::{self, Turned, Turns};

/// Unit of the kernel's pages.
const PAGE_BYTES: u64 = 4096;

/// Until when the kernel may use what the session tells it.
pub struct Lease<'a> {
    /// Bytes of the inode.
    pub content: &'a dyn Fn(InodeId) -> Option<Time>,
    /// Attributes of that version.
    pub attributes: &'a dyn Fn(InodeId, u64) -> Option<Time>,
    /// A listing of the directory.
    pub listing: &'a dyn Fn(InodeId) -> Option<Time>,
    /// That the name in the directory stands for this inode, or for none.
    pub name: LeaseOfName<'a>,
}

type LeaseOfName<'a> = &'a dyn Fn(InodeId, &Name, Option<InodeId>) -> Option<Time>;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Kept {
    Reply {
        token: u64,
        reply: Reply,
        keep: Keep,
    },
    Notify {
        id: u64,
        notice: KernelNotice,
    },
    /// Tell the core.
    Obeyed {
        id: u64,
    },
}

/// What matters of a request that is not answered.
#[derive(Clone, Debug)]
enum Asked {
    Attributes,
    Refresh {
        ino: InodeId,
    },
    Changed {
        ino: InodeId,
    },
    /// Written without bytes: allocated, or copied from another file.
    Resized {
        ino: InodeId,
    },
    /// An entry of that directory is looked up, made, removed; the kernel holds its lock. `dated`: the kernel would drop the attributes of
    /// the reply if they were overtaken, or they are of a new inode.
    Name {
        parents: [InodeId; 2],
        /// The name in the first one that the reply is about.
        name: Option<Name>,
        dated: bool,
    },
    Open {
        ino: InodeId,
        direct: bool,
        truncate: bool,
    },
    OpenDirectory {
        ino: InodeId,
    },
    Create {
        parent: InodeId,
        name: Option<Name>,
        direct: bool,
    },
    Read {
        ino: InodeId,
        paged: bool,
    },
    Write {
        ino: InodeId,
        offset: u64,
        /// Whether the kernel's pages hold it too.
        paged: bool,
        mapped: bool,
    },
    List {
        ino: InodeId,
        paged: bool,
    },
}

/// The state machine.
#[derive(Debug)]
pub struct Keeper {
    relaxed: Duration,
    pages: Pages,
    recalls: Recalls,
    /// Requests under way, with the thread that makes each.
    asked: BTreeMap<u64, (u32, Asked)>,
    /// Handles through which the kernel fills its pages.
    paged: BTreeSet<Handle>,
    /// When the last name ends that was given of each directory.
    names_until: BTreeMap<InodeId, Time>,
    /// When a listing with lifetimes was last given.
    listed: BTreeMap<InodeId, Time>,
    /// Requests under way that hold the lock of that directory.
    locked: BTreeMap<InodeId, usize>,
    /// Requests under way that hold locks of pages of that inode.
    moving: BTreeMap<InodeId, usize>,
    /// Notices that would wait for those locks: sent when the requests are answered, or after a while. A thread that waits in the kernel
    /// for an answer of this process outlives a SIGKILL of it, and the mount with it.
    postponed: BTreeMap<InodeId, Time>,
    /// When the kernel last asked for attributes to use suspect pages of that inode.
    refreshed: BTreeMap<InodeId, Time>,
    turns: Turns,
    /// The doubt to be settled before somebody may go on whose turn waits for a notice.
    dropped_by: BTreeMap<InodeId, Doubt>,
    /// Makes each false time another one.
    falsified: u32,
    /// Suspect pages that nobody asks about.
    sweeps: BTreeSet<(Time, InodeId)>,
    swept: BTreeMap<InodeId, Time>,
    /// Pages to be dropped after the reply that brings them.
    dropping: Vec<InodeId>,
    /// Only of a keeper that is sabotaged: the last right on each inode, lost or not.
    overtaken: Option<BTreeMap<InodeId, Time>>,
    outputs: VecDeque<Kept>,
}

impl Keeper {
    /// The kernel has nothing. `relaxed`: lifetimes that are given without a right.
    pub fn new(relaxed: Duration) -> Self {
        Keeper {
            relaxed,
            pages: Pages::default(),
            recalls: Recalls::new(false),
            asked: BTreeMap::new(),
            paged: BTreeSet::new(),
            names_until: BTreeMap::new(),
            listed: BTreeMap::new(),
            locked: BTreeMap::new(),
            moving: BTreeMap::new(),
            postponed: BTreeMap::new(),
            refreshed: BTreeMap::new(),
            turns: Turns::default(),
            dropped_by: BTreeMap::new(),
            falsified: 0,
            sweeps: BTreeSet::new(),
            swept: BTreeMap::new(),
            dropping: Vec::new(),
            overtaken: None,
            outputs: VecDeque::new(),
        }
    }

    /// Whether the kernel knows [`KernelNotice::Epoch`]; else names are waited out.
    pub fn set_epoch(&mut self, epoch: bool) {
        self.recalls.set_epoch(epoch);
    }

    /// The inode whose data version must be learnt before this request begins, for its pages to be good.
    pub fn wants(&self, now: Time, request: &Request, lease: &Lease) -> Option<InodeId> {
        let ino = match request {
            Request::Read { ino, .. } | Request::Write { ino, .. } => *ino,
            Request::Open { ino, mode } if !mode.direct && self.pages.has_some(*ino) => *ino,
            _ => return None,
        };
        ((lease.content)(ino).is_some() && !self.pages.is_current(now, ino)).then_some(ino)
    }

    /// Plants a bug for tests: attributes are given lifetimes under rights that were lost meanwhile.
    pub fn sabotage(&mut self) {
        self.overtaken = Some(BTreeMap::new());
    }

    /// The kernel asks, for that thread. `directory`: of the stream that it names.
    pub fn on_request(&mut self, now: Time, token: u64, thread: u32, request: &Request, directory: Option<InodeId>, lease: &Lease) {
        // Whoever drops pages may have to write those first that a mapping has changed, and has not gone on then.
        if !matches!(request, Request::Write { kind: WriteKind::Mapped, .. }) {
            self.turns.on_thread(now, thread);
            self.turn(now);
        }
        let named = |parent: InodeId, name: &[u8], dated| Asked::Name { parents: [parent, parent], name: Name::new(name).ok(), dated };
        let asked = match request {
            Request::Lookup { parent, name } | Request::Make { parent, name, .. } => named(*parent, name, true),
            Request::Link { parent, name, .. } => named(*parent, name, false),
            Request::Unlink { parent, .. } | Request::RemoveDirectory { parent, .. } => {
                Asked::Name { parents: [*parent, *parent], name: None, dated: false }
            }
            Request::Rename { from_parent, to_parent, .. } => Asked::Name { parents: [*from_parent, *to_parent], name: None, dated: false },
            Request::GetAttributes { .. } => Asked::Attributes,
            Request::Refresh { ino } => {
                if self.pages.is_suspect(*ino) || (lease.content)(*ino).is_none() {
                    self.refreshed.insert(*ino, now);
                }
                self.turns.on_asked(*ino, token);
                Asked::Refresh { ino: *ino }
            }
            Request::SetAttributes { ino, .. } => Asked::Changed { ino: *ino },
            Request::Allocate { ino, .. } | Request::Copy { to: (ino, _), .. } => Asked::Resized { ino: *ino },
            Request::Open { ino, mode } => Asked::Open { ino: *ino, direct: mode.direct, truncate: mode.truncate },
            Request::OpenDirectory { ino } => Asked::OpenDirectory { ino: *ino },
            Request::Create { parent, name, mode, .. } => {
                Asked::Create { parent: *parent, name: Name::new(name.as_slice()).ok(), direct: mode.direct }
            }
            Request::Read { ino, handle, range } => {
                self.pages.begin(now, *ino, token, (lease.content)(*ino));
                // Through a direct handle whole pages come for a mapping, too; the kernel does not tell which it is.
                let pages = range.offset.is_multiple_of(PAGE_BYTES) && range.length.is_multiple_of(PAGE_BYTES);
                Asked::Read { ino: *ino, paged: pages || self.paged.contains(handle) }
            }
            Request::Write { ino, handle, offset, kind, .. } => {
                self.pages.begin(now, *ino, token, (lease.content)(*ino));
                let mapped = *kind == WriteKind::Mapped;
                let paged = mapped || self.paged.contains(handle);
                Asked::Write { ino: *ino, offset: *offset, paged, mapped }
            }
            Request::ReadDirectory { handle, .. } => {
                let Some(ino) = directory else { return };
                let right = (lease.listing)(ino);
                // Listings have no version: what was kept under the right is good as long as that is held.
                self.pages.learn(now, ino, 0, right);
                self.pages.begin(now, ino, token, right);
                Asked::List { ino, paged: self.paged.contains(handle) }
            }
            Request::Release { handle } | Request::ReleaseDirectory { handle } => {
                self.paged.remove(handle);
                return;
            }
            _ => return,
        };
        locks(&asked).for_each(|directory| *self.locked.entry(directory).or_default() += 1);
        moves(&asked).for_each(|ino| *self.moving.entry(ino).or_default() += 1);
        self.asked.insert(token, (thread, asked));
    }

    /// A write has been done there, before its reply.
    pub fn on_written(&mut self, now: Time, token: u64, offset: u64, attributes: &Attributes, lease: &Lease) {
        let Some(&(_, Asked::Write { ino, offset: believed, paged, .. })) = self.asked.get(&token) else { return };
        self.pages.learn(now, ino, attributes.data_version, (lease.content)(ino));
        if paged && offset != believed {
            // The kernel believes its bytes elsewhere.
            self.pages.doubt(ino);
            self.sweep(now, ino);
        }
    }

    /// Attributes were learnt otherwise.
    pub fn on_attributes(&mut self, now: Time, attributes: &Attributes, lease: &Lease) {
        self.pages.learn(now, attributes.ino, attributes.data_version, (lease.content)(attributes.ino));
    }

    /// A reply is ready. `known`: how often the kernel has been given an inode.
    pub fn on_reply(&mut self, now: Time, token: u64, reply: Reply, known: impl Fn(InodeId) -> u64, lease: &Lease) {
        match (self.asked.get(&token), &reply) {
            (Some(&(thread, Asked::Refresh { ino })), Reply::Attributes(attributes)) if attributes.kind == FileKind::File => {
                self.attributes(now, attributes, lease);
                if self.is_contested(ino, lease) {
                    self.turns.answer(now, turns::Answer { token, thread, attributes: *attributes });
                    return self.turn(now);
                }
            }
            (Some((_, asked)), _) => {
                if let Some((ino, patience)) = overtakes(asked, &reply)
                    && self.turns.is_busy(ino)
                    && self.is_contested(ino, lease)
                {
                    self.turns.wait(now, ino, now + patience, turns::Late::Reply { token, reply });
                    return self.turn(now);
                }
            }
            _ => {}
        }
        self.reply(now, token, reply, known, lease);
        self.turn(now);
    }

    /// Whether readers of the file must ask before they use its pages, and have them dropped.
    fn is_contested(&self, ino: InodeId, lease: &Lease) -> bool {
        self.pages.is_suspect(ino) || (self.relaxed.is_zero() && (lease.content)(ino).is_none())
    }

    /// Does what [`Turns`] wants done.
    fn turn(&mut self, now: Time) {
        while let Some(turned) = self.turns.poll() {
            match turned {
                Turned::Answer(turns::Answer { token, mut attributes, .. }) => {
                    self.asked.remove(&token);
                    self.falsify(&mut attributes);
                    self.outputs.push_back(Kept::Reply { token, reply: Reply::Attributes(attributes), keep: Keep::default() });
                }
                Turned::Drop(ino) => {
                    self.pages.doubt(ino);
                    self.dropped_by.insert(ino, self.pages.newest_doubt());
                    self.drop_pages(now, ino);
                }
                // Whatever right it had when it was ready, it has none now.
                Turned::Late(turns::Late::Reply { token, reply }) => {
                    let nothing = Lease { content: &|_| None, attributes: &|_, _| None, listing: &|_| None, name: &|_, _, _| None };
                    self.reply(now, token, reply, |_| u64::MAX, &nothing);
                }
                Turned::Late(turns::Late::Recall { id, what, known }) => self.recall(now, id, what, known),
            }
            self.pump(now);
        }
    }

    /// Something about the inode goes to the kernel that overtakes readers who have asked, as a reply to that thread.
    fn overtake(&mut self, now: Time, ino: InodeId, thread: u32, paged: bool, lease: &Lease) {
        if paged && self.turns.has_leader(ino) {
            // It may have been overtaken now before it has dropped the pages.
            self.pages.doubt(ino);
            self.recalls.drop_pages(ino, self.pages.newest_doubt());
            self.pump(now);
        }
        let contested = self.is_contested(ino, lease);
        self.turns.overtake(now, ino, contested.then_some(thread));
    }

    fn reply(&mut self, now: Time, token: u64, mut reply: Reply, known: impl Fn(InodeId) -> u64, lease: &Lease) {
        let (thread, asked) = self.asked.remove(&token).unzip();
        asked.iter().flat_map(locks).for_each(|directory| _ = lower(&mut self.locked, directory));
        if let Some((ino, patience)) = asked.as_ref().and_then(|asked| overtakes(asked, &reply)) {
            self.overtake(now, ino, thread.unwrap_or_default(), patience == limits::PAGED_WRITE_PATIENCE, lease);
        }
        let mut keep = Keep::default();
        match (asked.as_ref(), &mut reply) {
            (Some(Asked::Attributes), Reply::Attributes(attributes)) => keep.attributes = self.attributes(now, attributes, lease),
            (Some(&Asked::Refresh { ino }), reply) => {
                self.turns.on_answered(now, ino, token);
                if let Reply::Attributes(attributes) = reply {
                    keep.attributes = self.attributes(now, attributes, lease);
                    self.turns.overtake(now, ino, None);
                }
            }
            (Some(Asked::Changed { .. }), Reply::Attributes(attributes)) => _ = self.attributes(now, attributes, lease),
            (Some(Asked::Name { parents: [parent, _], name, dated }), Reply::Entry(attributes)) => {
                let lifetime = self.attributes(now, attributes, lease);
                keep.entry = self.name(now, *parent, name.as_ref(), Some(attributes.ino), lease);
                keep.attributes = if *dated { lifetime } else { Duration::ZERO };
            }
            (Some(Asked::Name { parents: [parent, _], name, .. }), Reply::Absent) => {
                keep.entry = self.name(now, *parent, name.as_ref(), None, lease);
            }
            (Some(Asked::Create { parent, name, direct }), Reply::Created(handle, attributes)) => {
                let lifetime = self.attributes(now, attributes, lease);
                if known(attributes.ino) <= 1 {
                    keep.entry = self.name(now, *parent, name.as_ref(), Some(attributes.ino), lease).min(lifetime);
                    keep.attributes = keep.entry;
                }
                keep.content = self.content(now, attributes.ino, *direct, lease);
                self.opened(*handle, keep.content);
            }
            (Some(&Asked::Open { ino, direct, truncate }), Reply::Opened(handle)) => {
                keep.content = self.content(now, ino, direct, lease);
                if truncate && keep.content == Content::Kept {
                    keep.content = Content::Fresh;
                }
                self.opened(*handle, keep.content);
            }
            (Some(&Asked::OpenDirectory { ino }), Reply::Opened(handle)) => {
                keep.content = match (lease.listing)(ino) {
                    None => Content::Direct,
                    Some(_) if self.pages.is_suspect(ino) => Content::Fresh,
                    Some(_) => Content::Kept,
                };
                self.opened(*handle, keep.content);
            }
            (Some(&Asked::Read { ino, paged: true }), Reply::Bytes(_)) => self.moved(now, ino, token, (lease.content)(ino)),
            // Whoever wrote may read next, by the size that the kernel asks for then: no notice now, see `moved`.
            (Some(&Asked::Write { ino, paged: true, .. }), Reply::Written(_)) => self.wrote(now, ino, token, (lease.content)(ino)),
            (Some(&Asked::List { ino, paged }), Reply::Listing(listing)) => {
                if paged {
                    self.moved(now, ino, token, (lease.listing)(ino));
                } else {
                    self.pages.end_without(ino, token);
                }
                if listing.plus {
                    keep.lines = self.lines(now, ino, listing, lease);
                    let (thread, entries) = (thread.unwrap_or_default(), &listing.entries[listing.start..]);
                    entries.iter().for_each(|entry| self.overtake(now, entry.attributes.ino, thread, false, lease));
                }
            }
            (Some(&(Asked::Read { ino, .. } | Asked::Write { ino, .. } | Asked::List { ino, .. })), _) => {
                self.pages.end_without(ino, token)
            }
            _ => {}
        }
        self.outputs.push_back(Kept::Reply { token, reply, keep });
        for ino in asked.iter().flat_map(moves) {
            if lower(&mut self.moving, ino) {
                self.send_postponed(ino);
            }
        }
        while let Some(ino) = self.dropping.pop() {
            self.drop_pages(now, ino);
        }
        self.pump(now);
    }

    /// The core wants something forgotten.
    pub fn on_invalidate(&mut self, now: Time, id: u64, what: Invalidation, known: impl Fn(InodeId) -> u64) {
        let (Invalidation::Inode { ino } | Invalidation::Name { directory: ino, .. } | Invalidation::Names { directory: ino }) = what;
        self.pages.lose(ino);
        let known = known(ino) > 0 || ino == dfs::types::ROOT;
        if matches!(what, Invalidation::Inode { .. }) && self.turns.has_leader(ino) {
            self.turns.wait(now, ino, now + limits::READER_PATIENCE, turns::Late::Recall { id, what, known });
        } else {
            self.recall(now, id, what, known);
        }
        self.turn(now);
    }

    fn recall(&mut self, now: Time, id: u64, what: Invalidation, known: bool) {
        let (ino, name) = match what {
            Invalidation::Inode { ino } => (ino, None),
            Invalidation::Name { directory, name } => (directory, Some(Some(name))),
            Invalidation::Names { directory } => (directory, Some(None)),
        };
        let inodes = if known { vec![ino] } else { Vec::new() };
        let mut names = Names::default();
        if name.is_some() {
            names.until = self.names_until.get(&ino).copied();
            // An epoch would not reach a listing that the kernel is still taking; its lock says when it is through.
            let listing = self.listed.get(&ino).is_some_and(|&at| now < at + limits::RECALL_PATIENCE);
            names.locked = self.locked.contains_key(&ino) && !listing;
        }
        names.busy = self.moving.contains_key(&ino);
        let name = name.flatten().map(|name| KernelNotice::Entry { parent: ino, name: name.as_bytes().to_vec() });
        if self.recalls.begin(now, id, self.pages.newest_doubt(), inodes, name, names) && self.pages.is_suspect(ino) {
            self.drop_pages(now, ino);
        }
        self.pump(now);
    }

    /// The kernel took a notice.
    pub fn on_notified(&mut self, now: Time, id: u64) {
        self.recalls.on_notified(id, self.pages.newest_doubt());
        self.pump(now);
        self.turn(now);
    }

    /// The kernel does not have the inode of that notice.
    pub fn on_missed(&mut self, now: Time, id: u64) {
        self.recalls.on_missed(now, id);
    }

    /// The kernel forgot an inode for good.
    pub fn on_forget(&mut self, ino: InodeId) {
        self.pages.forget(ino);
        self.names_until.remove(&ino);
        self.listed.remove(&ino);
        self.refreshed.remove(&ino);
    }

    /// The session is over, and all rights with it.
    pub fn on_session_lost(&mut self, now: Time) {
        self.recalls.forget_jobs();
        self.turns.forget_recalls();
        self.pages.lose_all();
        self.pages.suspects().into_iter().for_each(|ino| self.sweep(now, ino));
    }

    /// Something is due.
    pub fn on_deadline(&mut self, now: Time, known: impl Fn(InodeId) -> u64) {
        self.recalls.retry(now, self.pages.newest_doubt(), |ino| known(ino) > 0);
        self.recalls.on_deadline(now, self.pages.newest_doubt());
        while let Some(&(at, ino)) = self.sweeps.first()
            && at <= now
        {
            self.sweeps.pop_first();
            self.swept.remove(&ino);
            // Each time that the kernel asks before it uses suspect pages, it drops them all by itself.
            let asks = self.refreshed.get(&ino).is_some_and(|&at| now < at + limits::SUSPECT_PAGES_MAX_AGE);
            if asks || self.recalls.outstanding() >= limits::MOUNT_NOTICES_MAX / 2 {
                self.sweep(now, ino);
            } else if self.pages.is_suspect(ino) && !self.recalls.is_dropping(ino) {
                self.drop_pages(now, ino);
            }
        }
        let overdue: Vec<InodeId> = self.postponed.iter().filter(|(_, until)| **until <= now).map(|(&ino, _)| ino).collect();
        overdue.into_iter().for_each(|ino| self.send_postponed(ino));
        self.turns.on_deadline(now);
        self.pump(now);
        self.turn(now);
    }

    /// When something is due.
    pub fn next_deadline(&self) -> Time {
        let sweep = self.sweeps.first().map_or(Time::NEVER, |&(at, _)| at);
        // As many as there are inodes with requests under way: few.
        let postponed = self.postponed.values().copied().min().unwrap_or(Time::NEVER);
        self.recalls.next_deadline().min(sweep).min(postponed).min(self.turns.next_deadline())
    }

    /// What is to be done, in order.
    pub fn poll(&mut self) -> Option<Kept> {
        self.outputs.pop_front()
    }

    /// Inodes of which something is remembered.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Panics if the state contradicts itself.
    pub fn check_invariants(&self) {
        self.recalls.check_invariants();
        self.turns.check_invariants();
        assert!(self.postponed.keys().all(|ino| self.moving.contains_key(ino)), "what is postponed waits for something");
        assert_eq!(self.sweeps.len(), self.swept.len(), "each sweep is planned once");
    }

    /// Gives the attributes a modification time which the kernel does not have, so that it drops all pages before it goes on to use them. A
    /// notice would not do: it would have the kernel throw the reply away as overtaken, and go on with the size that it has.
    fn falsify(&mut self, attributes: &mut Attributes) {
        self.falsified = self.falsified % 999_983 + 1;
        attributes.mtime.nanos = (attributes.mtime.nanos + self.falsified) % 1_000_000_000;
    }

    /// Lifetime of attributes that are told now.
    fn attributes(&mut self, now: Time, attributes: &Attributes, lease: &Lease) -> Duration {
        let ino = attributes.ino;
        if attributes.kind == FileKind::File {
            self.pages.learn(now, ino, attributes.data_version, (lease.content)(ino));
            if self.pages.is_suspect(ino) {
                return Duration::ZERO;
            }
        }
        let mut right = (lease.attributes)(ino, attributes.version);
        if let Some(overtaken) = &mut self.overtaken {
            match right {
                Some(until) => _ = overtaken.insert(ino, until),
                None => right = overtaken.get(&ino).copied(),
            }
        }
        self.lifetime(now, right, limits::KERNEL_ATTRIBUTES_TTL)
    }

    /// Lifetime of a name in the directory that is told now.
    fn name(&mut self, now: Time, directory: InodeId, name: Option<&Name>, told: Option<InodeId>, lease: &Lease) -> Duration {
        let right = name.and_then(|name| (lease.name)(directory, name, told));
        let lifetime = self.lifetime(now, right, limits::KERNEL_NAMES_TTL);
        if !lifetime.is_zero() {
            // The kernel rounds up to its ticks.
            let until = now + lifetime + limits::RECALL_PATIENCE;
            let known = self.names_until.entry(directory).or_insert(until);
            *known = until.max(*known);
        }
        lifetime
    }

    fn lifetime(&self, now: Time, right: Option<Time>, max: Duration) -> Duration {
        right.map_or(Duration::ZERO, |until| until.since(now)).min(max).max(self.relaxed)
    }

    fn lines(&mut self, now: Time, directory: InodeId, listing: &Listing, lease: &Lease) -> Vec<Duration> {
        let entries = &listing.entries[listing.start..];
        let mut lifetime = |entry: &dfs::wire::namespace::DirectoryEntry| {
            let (ino, attributes) = (entry.attributes.ino, &entry.attributes);
            if !entry.current {
                return Duration::ZERO;
            }
            if attributes.kind == FileKind::File && self.pages.would_doubt(now, ino, attributes.data_version, (lease.content)(ino)) {
                return Duration::ZERO;
            }
            let lifetime = self.lifetime(now, (lease.attributes)(ino, attributes.version), limits::KERNEL_ATTRIBUTES_TTL);
            // Attributes and name are given as one.
            if lifetime.is_zero() { lifetime } else { self.name(now, directory, Some(&entry.name), Some(ino), lease).min(lifetime) }
        };
        let lifetimes: Vec<Duration> = entries.iter().map(&mut lifetime).collect();
        if lifetimes.iter().any(|lifetime| !lifetime.is_zero()) {
            self.listed.insert(directory, now);
        }
        lifetimes
    }

    /// How a file is opened.
    fn content(&mut self, now: Time, ino: InodeId, direct: bool, lease: &Lease) -> Content {
        if direct || ((lease.content)(ino).is_none() && self.relaxed.is_zero()) {
            return Content::Direct;
        }
        if self.pages.is_suspect(ino) {
            self.drop_pages(now, ino);
        }
        if self.pages.may_be_kept(now, ino) { Content::Kept } else { Content::Fresh }
    }

    fn opened(&mut self, handle: Handle, content: Content) {
        if content != Content::Direct {
            self.paged.insert(handle);
        }
    }

    /// Bytes or entries go into the kernel's pages. What is there without a right is dropped as soon as it has been used: nobody will recall
    /// it, and a mapping shows it without asking.
    fn moved(&mut self, now: Time, ino: InodeId, token: u64, right: Option<Time>) {
        if self.pages.end(ino, token, right) {
            return;
        }
        // A notice makes the kernel throw away attributes that it is asking for, and it would read on with an old size. So where it asks, it is
        // left to drop the pages by itself.
        let asks = self.refreshed.get(&ino).is_some_and(|&at| now < at + limits::KERNEL_NAMES_TTL);
        if asks || self.recalls.outstanding() >= limits::MOUNT_NOTICES_MAX / 2 {
            self.sweep(now, ino);
        } else {
            self.dropping.push(ino);
        }
    }

    fn wrote(&mut self, now: Time, ino: InodeId, token: u64, right: Option<Time>) {
        if !self.pages.end(ino, token, right) {
            self.sweep(now, ino);
        }
    }

    fn sweep(&mut self, now: Time, ino: InodeId) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.swept.entry(ino) {
            let at = now + limits::SUSPECT_PAGES_MAX_AGE;
            entry.insert(at);
            self.sweeps.insert((at, ino));
        }
    }

    fn drop_pages(&mut self, now: Time, ino: InodeId) {
        if self.moving.contains_key(&ino) {
            self.postponed.entry(ino).or_insert(now + limits::RECALL_PATIENCE);
        } else {
            self.recalls.drop_pages(ino, self.pages.newest_doubt());
        }
    }

    fn send_postponed(&mut self, ino: InodeId) {
        if self.postponed.remove(&ino).is_some() {
            self.recalls.drop_pages(ino, self.pages.newest_doubt());
        }
    }

    fn pump(&mut self, now: Time) {
        while let Some(recalled) = self.recalls.poll() {
            match recalled {
                Recalled::Notify { id, notice } => {
                    if let KernelNotice::Inode { ino } | KernelNotice::Attributes { ino } = notice {
                        self.turns.overtake(now, ino, None);
                    }
                    self.outputs.push_back(Kept::Notify { id, notice });
                }
                Recalled::Obeyed { id } => self.outputs.push_back(Kept::Obeyed { id }),
                Recalled::Settled { ino, doubt } => {
                    self.pages.settle(ino, doubt);
                    if self.dropped_by.get(&ino).is_some_and(|&raised| raised <= doubt) {
                        self.dropped_by.remove(&ino);
                        self.turns.on_dropped(now, ino);
                    }
                    if self.pages.is_suspect(ino) {
                        self.sweep(now, ino);
                    }
                }
            }
        }
    }
}

/// The file whose readers the kernel takes to be overtaken by that reply, and how long it may wait for them.
fn overtakes(asked: &Asked, reply: &Reply) -> Option<(InodeId, Duration)> {
    match (asked, reply) {
        (Asked::Write { mapped: true, .. }, _) => None,
        (&Asked::Write { ino, paged: true, .. }, _) => Some((ino, limits::PAGED_WRITE_PATIENCE)),
        (&(Asked::Write { ino, .. } | Asked::Changed { ino } | Asked::Resized { ino }), _) => Some((ino, limits::OVERTAKING_MAX)),
        (
            Asked::Attributes | Asked::Name { .. } | Asked::Create { .. },
            Reply::Attributes(told) | Reply::Entry(told) | Reply::Created(_, told),
        ) if told.kind == FileKind::File => Some((told.ino, limits::OVERTAKING_MAX)),
        _ => None,
    }
}

/// The inode of whose pages the kernel holds some locked for that request.
fn moves(asked: &Asked) -> impl Iterator<Item = InodeId> + use<> {
    match *asked {
        Asked::Read { ino, paged: true } | Asked::Write { ino, paged: true, .. } => Some(ino),
        _ => None,
    }
    .into_iter()
}

/// Counts down; true when none is left.
fn lower(counts: &mut BTreeMap<InodeId, usize>, ino: InodeId) -> bool {
    let count = counts.get_mut(&ino).expect("counted up before");
    *count -= 1;
    let none = *count == 0;
    if none {
        counts.remove(&ino);
    }
    none
}

/// Directories whose lock the kernel holds for that request.
fn locks(asked: &Asked) -> impl Iterator<Item = InodeId> + use<> {
    let [first, second] = match *asked {
        Asked::Name { parents: [first, second], .. } => [Some(first), (first != second).then_some(second)],
        Asked::Create { parent, .. } => [Some(parent), None],
        Asked::List { ino, .. } => [Some(ino), None],
        _ => [None, None],
    };
    first.into_iter().chain(second)
}

#[cfg(test)]
mod tests;
