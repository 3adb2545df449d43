//! Locks of files that this session may write alone: granted here without a message, and told to the cluster when somebody else comes.
//!
//! `WRITE` includes the authority over a file's locks, as long as the log has none of them. Whoever else asks for one recalls the right; then
//! the locks that were given here are put into the log, one after the other, and only then the right goes back. The same happens if owners
//! of this session are in each other's way: waiting, its order and its circles are the cluster's business alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits;
use crate::locks::{LockKind, LockMode, LockOwner, LockRange, LockTable};
use crate::status::Status;
use crate::time::Time;
use crate::types::InodeId;
use crate::wire::namespace::{Answer, Query, SetLock};

use super::core::Core;
use super::{Call, Output, Reply};

/// What an owner does to a range; `None` gives up.
type LockStep = (LockRange, Option<LockMode>);

/// Locks that the log does not know.
#[derive(Debug, Default)]
pub(super) struct Delegated {
    tables: BTreeMap<InodeId, LockTable>,
    /// Of files on their way into the log: the jobs that see to it, and the calls that wait for them.
    telling: BTreeMap<InodeId, (BTreeSet<u64>, Vec<u64>)>,
    count: u64,
}

impl Delegated {
    /// Whether the log does not know all locks of the file.
    pub(super) fn has_any(&self, ino: InodeId) -> bool {
        self.tables.contains_key(&ino) || self.telling.contains_key(&ino)
    }

    pub(super) fn is_telling(&self, ino: InodeId) -> bool {
        self.telling.contains_key(&ino)
    }

    pub(super) fn holds_in(&self, ino: InodeId, owner: LockOwner, range: LockRange) -> bool {
        self.tables.get(&ino).is_some_and(|table| table.holds_in(owner, range))
    }

    /// Sets what is free, within the bounds. Returns whether it did.
    fn set(&mut self, ino: InodeId, owner: LockOwner, lock: &SetLock) -> bool {
        let old = self.tables.get(&ino);
        if lock.mode.is_some_and(|mode| old.is_some_and(|table| table.blockers(owner, lock.range, mode).next().is_some())) {
            return false;
        }
        let mut table = old.cloned().unwrap_or_default();
        let before = table.len() as u64;
        table.set(owner, lock.range, lock.mode, lock.pid);
        let after = table.len() as u64;
        let full = table.len() > limits::LOCKS_PER_INODE_MAX || self.count - before + after > limits::LOCKS_PER_SESSION_MAX;
        if after > before && full {
            return false;
        }
        self.count = self.count - before + after;
        if table.is_empty() {
            self.tables.remove(&ino)
        } else {
            self.tables.insert(ino, table)
        };
        true
    }

    fn take(&mut self, ino: InodeId) -> LockTable {
        let table = self.tables.remove(&ino).unwrap_or_default();
        self.count -= table.len() as u64;
        table
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.count, self.tables.values().map(|table| table.len() as u64).sum::<u64>());
        assert!(self.tables.values().all(|table| !table.is_empty() && table.is_well_formed()));
        assert!(self.telling.iter().all(|(ino, (jobs, _))| !jobs.is_empty() && !self.tables.contains_key(ino)));
    }
}

impl Core {
    /// Serves a request for a lock here if that may be. False: the cluster has to be asked.
    pub(super) fn lock_here(&mut self, now: Time, token: u64, ino: InodeId, lock: &SetLock) -> bool {
        let owner = self.lock_owner(lock.kind, lock.key);
        // Giving up what was given here needs nobody's leave; the lease may be over.
        let may = match lock.mode {
            Some(_) => self.has_lock_authority(now, ino),
            None => self.delegated.holds_in(ino, owner, lock.range),
        };
        if may && !self.delegated.is_telling(ino) && self.delegated.set(ino, owner, lock) {
            self.rights.touch(ino);
            self.output(Output::Done { token, result: Ok(Reply::Done) });
            return true;
        }
        let unlocks_nothing = lock.mode.is_none() && !may && !self.delegated.is_telling(ino);
        !unlocks_nothing && self.wait_until_told(now, token, ino, Call::Lock { ino, lock: *lock })
    }

    /// The log is to know all locks of the file before the call goes on. False: it does.
    pub(super) fn wait_until_told(&mut self, now: Time, token: u64, ino: InodeId, call: Call) -> bool {
        self.tell_locks(now, ino);
        if !self.delegated.is_telling(ino) {
            return false;
        }
        let job = self.wait_for_files(now, token, call, BTreeMap::new());
        if let Some((_, waiting)) = self.delegated.telling.get_mut(&ino) {
            waiting.push(job);
        }
        true
    }

    /// F_GETLK of a file whose locks are given here.
    pub(super) fn test_lock_here(&mut self, now: Time, query: &Query) -> Option<Result<Reply, Status>> {
        let Query::TestLock { ino, kind, key, range, mode } = query else { return None };
        if !self.has_lock_authority(now, *ino) {
            return None;
        }
        let owner = self.lock_owner(*kind, *key);
        let found = self.delegated.tables.get(ino).and_then(|table| match mode {
            Some(mode) => table.blockers(owner, *range, *mode).min_by_key(|lock| lock.range.first),
            None => table.of_owner(owner).iter().find(|lock| lock.range.overlaps(range)),
        });
        Some(Ok(Reply::Answer(Answer::Lock(found.map(|lock| (lock.range, lock.mode, lock.pid))))))
    }

    /// Whether neither this session may answer what F_GETLK asks, nor the cluster knows all locks.
    pub(super) fn test_lock_waits(&self, now: Time, ino: InodeId) -> bool {
        self.delegated.has_any(ino) && !self.has_lock_authority(now, ino)
    }

    /// Whether this session decides about the file's locks: nobody else can have any, and the log has none of its own.
    fn has_lock_authority(&self, now: Time, ino: InodeId) -> bool {
        let free = !self.delegated.is_telling(ino) && !self.locks.is_used(ino) && !self.changes.touch_inode(ino);
        free && self.config.behind && self.may_write_behind(now, ino)
    }

    /// Puts the locks that were given here into the log.
    pub(super) fn tell_locks(&mut self, now: Time, ino: InodeId) {
        if self.delegated.is_telling(ino) {
            return;
        }
        let mut owners: BTreeMap<(LockKind, u64), (u32, VecDeque<LockStep>)> = BTreeMap::new();
        for lock in self.delegated.take(ino).iter() {
            let (_, steps) = owners.entry((lock.owner.kind, lock.owner.key)).or_insert((lock.pid, VecDeque::new()));
            steps.push_back((lock.range, Some(lock.mode)));
        }
        let mut jobs = BTreeSet::new();
        for ((kind, key), (pid, steps)) in owners {
            jobs.insert(self.tell_lock(now, ino, (kind, key, pid), steps));
        }
        if !jobs.is_empty() {
            self.delegated.telling.insert(ino, (jobs, Vec::new()));
        }
    }

    /// One owner's locks are in the log, or never will be.
    pub(super) fn on_locks_told(&mut self, now: Time, ino: InodeId, job: u64) {
        let Some((jobs, _)) = self.delegated.telling.get_mut(&ino) else { return };
        jobs.remove(&job);
        if !jobs.is_empty() {
            return;
        }
        let (_, waiting) = self.delegated.telling.remove(&ino).expect("just seen");
        self.go_on_leaving(now, ino);
        waiting.into_iter().for_each(|job| self.resume(now, job));
    }

    /// A lock was asked of the cluster: who locks on for himself gets the right to do so here.
    pub(super) fn on_lock_asked(&mut self, now: Time, ino: InodeId, mode: Option<LockMode>) {
        // Where locks are shared others read, and would lose what they keep.
        if mode == Some(LockMode::Exclusive) {
            self.on_written_through(now, ino);
        }
    }
}
