//! Who waits for locks: a leader's volatile memory of those that asked and were refused, in order.
//!
//! The leader never gives a lock to somebody who is not asking at that moment: it tells waiters that their turn has come, and they ask
//! again. So a waiter that is gone, or a word that is lost, costs others a moment and nobody a lock, and a new leader needs to know
//! nothing: everybody who waits asks again within a second anyway. Refuses to grant; the log does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use dfs::limits;
use dfs::link::{Frame, Lane, LinkAction, LinkId, Role};
use dfs::locks::{LockKind, LockMode, LockOwner, LockRange};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{InodeId, SessionId};
use dfs::wire::message::{Body, Notice, Response};
use dfs::wire::namespace::{Grant, LockWait, Op, Replied, SetLock};

use super::leader::Duty;
use super::{Asker, Node, NodeOutput};
use crate::namespace::{Command, Namespace, SessionState};

/// Owners that the search for a circle of waiters looks at.
const CIRCLE_VISITS_MAX: usize = limits::COMMAND_VISITS_MAX;

/// One that was refused and asks again.
#[derive(Clone, Debug)]
struct Waiter {
    owner: LockOwner,
    range: LockRange,
    mode: LockMode,
    /// Whether circles are to be found.
    checked: bool,
    /// Since when nothing but those before it keeps it waiting.
    aside: Option<Time>,
    /// When it last asked.
    heard: Time,
    told: Option<Time>,
}

/// All waiters, per inode in order of arrival.
#[derive(Debug, Default)]
pub(super) struct LockQueues {
    queues: BTreeMap<InodeId, Vec<Waiter>>,
    /// Index: where each owner waits.
    by_owner: BTreeMap<LockOwner, BTreeSet<InodeId>>,
    count: usize,
    /// Inodes of which the locks or the queue have changed.
    changed: BTreeSet<InodeId>,
}

/// What becomes of a request that may wait.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Put it into the log.
    Now,
    Later,
    Deadlock,
}

impl Waiter {
    /// Whether both cannot be served.
    fn excludes(&self, other: &Waiter) -> bool {
        self.owner != other.owner
            && self.owner.kind == other.owner.kind
            && self.mode.excludes(other.mode)
            && self.range.overlaps(&other.range)
    }

    fn is(&self, owner: LockOwner, range: LockRange) -> bool {
        self.owner == owner && self.range == range
    }
}

impl LockQueues {
    /// Locks of the inode have changed.
    pub fn on_changed(&mut self, ino: InodeId) {
        if self.queues.contains_key(&ino) {
            self.changed.insert(ino);
        }
    }

    /// Whether another session waits for a lock of the inode.
    pub fn is_wanted_by_other(&self, session: SessionId, ino: InodeId) -> bool {
        self.queues.get(&ino).into_iter().flatten().any(|waiter| waiter.owner.session != session)
    }

    /// The session is gone.
    pub fn on_session_ended(&mut self, session: SessionId) {
        let inos: Vec<InodeId> = self.queues.keys().copied().collect();
        for ino in inos {
            self.retain(ino, |waiter| waiter.owner.session != session);
        }
    }

    /// Puts the waiter at the end of the queue, unless it is in it; beyond the bound it is not remembered, and just asks again.
    fn enter(&mut self, now: Time, ino: InodeId, owner: LockOwner, lock: &SetLock, mode: LockMode) {
        self.changed.insert(ino);
        let known = self.queues.get_mut(&ino).and_then(|queue| queue.iter_mut().find(|waiter| waiter.is(owner, lock.range)));
        if let Some(waiter) = known {
            (waiter.heard, waiter.mode) = (now, mode);
        } else if self.count < limits::LOCK_WAITERS_MAX {
            let checked = lock.wait == LockWait::Checked;
            let waiter = Waiter { owner, range: lock.range, mode, checked, aside: None, heard: now, told: None };
            self.queues.entry(ino).or_default().push(waiter);
            self.by_owner.entry(owner).or_default().insert(ino);
            self.count += 1;
        }
    }

    /// The owner does not wait for that range any more.
    fn leave(&mut self, ino: InodeId, owner: LockOwner, range: LockRange) {
        self.retain(ino, |waiter| !waiter.is(owner, range));
    }

    fn retain(&mut self, ino: InodeId, keep: impl Fn(&Waiter) -> bool) {
        let Some(queue) = self.queues.get_mut(&ino) else { return };
        let before = queue.len();
        let gone: Vec<LockOwner> = queue.iter().filter(|waiter| !keep(waiter)).map(|waiter| waiter.owner).collect();
        if gone.is_empty() {
            return;
        }
        queue.retain(keep);
        self.count -= before - queue.len();
        for owner in gone {
            if !queue.iter().any(|waiter| waiter.owner == owner)
                && let Some(inos) = self.by_owner.get_mut(&owner)
            {
                inos.remove(&ino);
                if inos.is_empty() {
                    self.by_owner.remove(&owner);
                }
            }
        }
        if queue.is_empty() {
            self.queues.remove(&ino);
        }
        self.changed.insert(ino);
    }

    /// Whether somebody stands before that waiter who has to be served first. Not for long, and not for one that holds locks here: it
    /// could be what that somebody waits for.
    fn must_step_aside(&self, namespace: &Namespace, now: Time, ino: InodeId, waiter: &Waiter) -> bool {
        let Some(queue) = self.queues.get(&ino) else { return false };
        let before = queue.iter().take_while(|other| !other.is(waiter.owner, waiter.range));
        waiter.aside.is_none_or(|since| now.since(since) < limits::LOCK_PATIENCE)
            && before.into_iter().any(|other| other.excludes(waiter))
            && !namespace.has_lock(ino, waiter.owner)
    }

    /// Whether an owner that began to wait for this would wait for itself.
    fn closes_circle(&self, namespace: &Namespace, ino: InodeId, waiter: &Waiter) -> bool {
        let blockers = |ino: InodeId, waiter: &Waiter| -> Vec<LockOwner> {
            namespace.lock_blockers(ino, waiter.owner, waiter.range, waiter.mode).map(|lock| lock.owner).collect()
        };
        let mut todo = blockers(ino, waiter);
        let mut seen = BTreeSet::new();
        while let Some(owner) = todo.pop() {
            if owner == waiter.owner {
                return true;
            }
            if !seen.insert(owner) || seen.len() > CIRCLE_VISITS_MAX {
                continue;
            }
            for &ino in self.by_owner.get(&owner).into_iter().flatten() {
                let waits = self.queues.get(&ino).into_iter().flatten().filter(|other| other.owner == owner && other.checked);
                todo.extend(waits.flat_map(|other| blockers(ino, other)));
            }
        }
        false
    }

    /// Waiters whose turn it is and who have not just been told.
    fn due(&mut self, namespace: &Namespace, now: Time, ino: InodeId) -> Vec<LockOwner> {
        for waiter in self.queues.get_mut(&ino).into_iter().flatten() {
            let blocked = namespace.lock_blockers(ino, waiter.owner, waiter.range, waiter.mode).next().is_some();
            waiter.aside = if blocked { None } else { waiter.aside.or(Some(now)) };
        }
        let queue = self.queues.get(&ino).map_or(&[][..], Vec::as_slice);
        let ready = |waiter: &Waiter| {
            let told = waiter.told.is_some_and(|told| now.since(told) < limits::LOCK_NOTICE_INTERVAL);
            !told && waiter.aside.is_some() && !self.must_step_aside(namespace, now, ino, waiter)
        };
        let due: Vec<usize> = (0..queue.len()).filter(|&at| ready(&queue[at])).collect();
        let Some(queue) = self.queues.get_mut(&ino) else { return Vec::new() };
        due.iter().for_each(|&at| queue[at].told = Some(now));
        due.iter().map(|&at| queue[at].owner).collect()
    }

    /// Asserts that the index equals what it indexes, and the bound.
    pub fn check_invariants(&self) {
        let mut by_owner: BTreeMap<LockOwner, BTreeSet<InodeId>> = BTreeMap::new();
        for (&ino, queue) in &self.queues {
            assert!(!queue.is_empty(), "no queue is empty");
            queue.iter().for_each(|waiter| _ = by_owner.entry(waiter.owner).or_default().insert(ino));
        }
        assert_eq!(by_owner, self.by_owner);
        assert_eq!(self.count, self.queues.values().map(Vec::len).sum::<usize>());
        assert!(self.count <= limits::LOCK_WAITERS_MAX);
    }
}

impl Node {
    /// A client asks for a lock, or gives one up. Tells whether the request is to go into the log; else it has been answered.
    pub(super) fn admit_lock(&mut self, asker: Asker, session: SessionId, ino: InodeId, lock: &SetLock) -> bool {
        let Some(mode) = lock.mode else { return true };
        let owner = crate::namespace::owner_of(session, lock);
        self.evict_silent_blockers(ino, owner, lock.range, mode);
        let now = self.now;
        let known = self.namespace.session(session).is_some();
        let Some(leading) = self.leading.as_mut().filter(|_| known && lock.wait != LockWait::Never) else { return true };
        let turn = leading.locks.turn(&self.namespace, now, ino, owner, lock, mode);
        if turn == Turn::Later {
            leading.locks.enter(now, ino, owner, lock, mode);
        }
        match turn {
            Turn::Now => return true,
            Turn::Later => {
                let (term, epoch) = (self.leads().unwrap_or_default(), self.map.epoch);
                let response = Response::Replied { replied: Replied::Lock(Grant::Refused), grants: Vec::new(), term, epoch };
                self.answer(asker, Ok(response), Bytes::new());
            }
            Turn::Deadlock => self.fail(asker, Status::Deadlock),
        }
        false
    }

    /// A lock request was applied.
    pub(super) fn on_lock_applied(&mut self, session: SessionId, op: &Op, result: &Result<Replied, Status>) {
        let Op::SetLock { ino, lock } = op else { return };
        let (Some(leading), Some(mode)) = (&mut self.leading, lock.mode) else { return };
        let owner = crate::namespace::owner_of(session, lock);
        match result {
            Ok(Replied::Lock(Grant::Refused)) if lock.wait != LockWait::Never => leading.locks.enter(self.now, *ino, owner, lock, mode),
            _ => leading.locks.leave(*ino, owner, lock.range),
        }
        leading.locks.on_changed(*ino);
    }

    /// A client stopped waiting.
    pub(super) fn leave_lock_queue(&mut self, session: SessionId, ino: InodeId, kind: LockKind, key: u64, range: LockRange) {
        if let Some(leading) = &mut self.leading {
            leading.locks.leave(ino, LockOwner { kind, session, key }, range);
        }
    }

    /// Sessions whose lease ran out and that stand in the way are ended; the entry precedes the request's own.
    fn evict_silent_blockers(&mut self, ino: InodeId, owner: LockOwner, range: LockRange, mode: LockMode) {
        let blocking: BTreeSet<SessionId> = self.namespace.lock_blockers(ino, owner, range, mode).map(|lock| lock.owner.session).collect();
        for id in blocking {
            if self.namespace.session(id).is_some_and(|session| session.state == SessionState::Expired) {
                tracing::info!(session = %id, %ino, "a silent session stands in the way of a lock");
                self.pursue(Duty::Evict(id), Command::EvictSession { session: id });
            }
        }
    }

    /// At intervals: forgets waiters that have fallen silent, ends silent sessions that others wait for, clears away what ended ones left.
    pub(super) fn pursue_locks(&mut self) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        let inos: Vec<InodeId> = leading.locks.queues.keys().copied().collect();
        for ino in inos {
            let Some(leading) = &mut self.leading else { return };
            leading.locks.retain(ino, |waiter| now.since(waiter.heard) < limits::LOCK_WAITER_SILENCE);
            leading.locks.changed.insert(ino);
            // Those behind wait for the same: the first few are enough.
            let first: Vec<Waiter> = leading.locks.queues.get(&ino).into_iter().flatten().take(4).cloned().collect();
            for waiter in first {
                self.evict_silent_blockers(ino, waiter.owner, waiter.range, waiter.mode);
            }
        }
        let left = self.namespace.sessions_to_unlock().next();
        if let Some(session) = left {
            self.pursue(Duty::DropLocks(session), Command::DropLocks { session });
        }
    }

    /// Tells those whose turn has come.
    pub(super) fn wake_lock_waiters(&mut self) {
        let now = self.now;
        loop {
            let Some(leading) = &mut self.leading else { return };
            let Some(ino) = leading.locks.changed.pop_first() else { return };
            for owner in leading.locks.due(&self.namespace, now, ino) {
                self.tell_client(owner.session, Notice::LockFree { ino, kind: owner.kind, key: owner.key });
            }
        }
    }

    /// Tells a client, at best effort.
    fn tell_client(&mut self, session: SessionId, notice: Notice) {
        let is_it = |peer: &dfs::link::Hello| peer.role == Role::Client && peer.lane == Lane::Control && peer.sender == session.0;
        let links: Vec<LinkId> = self.incoming.iter().filter(|(_, peer)| is_it(peer)).map(|(&link, _)| link).collect();
        for link in links {
            let frame = Frame { request: 0, body: Body::Notice(notice.clone()), payload: Bytes::new() };
            self.outputs.push_back(NodeOutput::Link(LinkAction::Send { link, frame }));
        }
    }
}

impl LockQueues {
    /// What becomes of a request that may wait.
    fn turn(&self, namespace: &Namespace, now: Time, ino: InodeId, owner: LockOwner, lock: &SetLock, mode: LockMode) -> Turn {
        let known = self.queues.get(&ino).into_iter().flatten().find(|waiter| waiter.is(owner, lock.range));
        let aside = known.and_then(|waiter| waiter.aside);
        let checked = lock.wait == LockWait::Checked;
        let waiter = Waiter { owner, range: lock.range, mode, checked, aside, heard: now, told: None };
        let blocked = namespace.lock_blockers(ino, owner, lock.range, mode).next().is_some();
        // Converting a flock lets the old one go, which the log must say.
        if !blocked && !self.must_step_aside(namespace, now, ino, &waiter) || lock.kind == LockKind::Flock && namespace.has_lock(ino, owner)
        {
            return Turn::Now;
        }
        if blocked && checked && lock.kind == LockKind::Fcntl && self.closes_circle(namespace, ino, &waiter) {
            return Turn::Deadlock;
        }
        Turn::Later
    }
}
