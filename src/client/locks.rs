//! Locks as a client asks for them: one step at a time per owner, again and again while one waits, and never left behind.
//!
//! The book says what the cluster has granted to this session. Steps of one owner on one inode go out one after the other, so the book
//! follows the log; a step whose outcome is in doubt is put right before the owner's next. An owner that holds nothing costs no message
//! to unlock. Locks that nobody contends are served without a message by [`super::delegated`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits;
use crate::locks::{LockKind, LockMode, LockOwner, LockRange, LockTable};
use crate::status::Status;
use crate::time::Time;
use crate::types::InodeId;
use crate::wire::message::{Request, Response};
use crate::wire::namespace::{Grant, LockWait, Op, Query, Replied, SetLock};

use super::asks::{Owner, Target};
use super::core::{Alarm, Core, Phase, Work};
use super::{Call, Output, Reply};

/// Who locks what: the steps of one such pair are in one line.
type LineKey = (InodeId, LockKind, u64);

/// Steps of one owner on one inode.
#[derive(Debug, Default)]
struct Line {
    /// The one on its way.
    busy: Option<u64>,
    queue: VecDeque<u64>,
    /// Those that were refused and wait.
    waiting: BTreeSet<u64>,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct LockBook {
    /// What was granted and not given up.
    tables: BTreeMap<InodeId, LockTable>,
    lines: BTreeMap<LineKey, Line>,
    /// Requests that may wait, in any stage.
    waits: usize,
}

/// Where a lock request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Behind others of its owner.
    Queued,
    Asking,
    /// Refused; asks again when told, or after a while.
    Waiting,
}

/// One request: usually one step, several when something is put right.
#[derive(Debug)]
pub(super) struct LockJob {
    ino: InodeId,
    kind: LockKind,
    key: u64,
    pid: u32,
    wait: LockWait,
    /// What is to be done, in order.
    steps: VecDeque<(LockRange, Option<LockMode>)>,
    stage: Stage,
    /// The caller has been interrupted.
    interrupted: bool,
    /// An earlier attempt may have been carried out unseen.
    doubt: bool,
    /// The lock was given here; it is told until it is in the log.
    told: bool,
}

impl LockJob {
    fn line(&self) -> LineKey {
        (self.ino, self.kind, self.key)
    }

    /// What gives locks up, or puts things right, is not let go of before it is done.
    fn is_persistent(&self) -> bool {
        self.told || self.steps.front().is_some_and(|(_, mode)| mode.is_none()) || self.steps.len() > 1
    }

    fn may_wait(&self) -> bool {
        self.wait != LockWait::Never
    }
}

impl LockBook {
    /// Whether the log has locks of this session on the file, or may have.
    pub(super) fn is_used(&self, ino: InodeId) -> bool {
        let first = (ino, LockKind::Flock, 0);
        self.tables.contains_key(&ino) || self.lines.range(first..).next().is_some_and(|((of, ..), _)| *of == ino)
    }

    fn holds_in(&self, ino: InodeId, owner: LockOwner, range: LockRange) -> bool {
        self.tables.get(&ino).is_some_and(|table| table.holds_in(owner, range))
    }

    fn set(&mut self, ino: InodeId, owner: LockOwner, range: LockRange, mode: Option<LockMode>, pid: u32) {
        let table = self.tables.entry(ino).or_default();
        table.set(owner, range, mode, pid);
        if table.is_empty() {
            self.tables.remove(&ino);
        }
    }

    fn pieces(&self, ino: InodeId, owner: LockOwner, range: LockRange) -> VecDeque<(LockRange, Option<LockMode>)> {
        self.tables.get(&ino).map_or_else(|| vec![(range, None)], |table| table.pieces(owner, range)).into()
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.waits <= limits::CLIENT_LOCK_WAITS_MAX);
        assert!(self.tables.values().all(|table| !table.is_empty() && table.is_well_formed()));
    }
}

impl Core {
    /// Whether the cluster has granted that owner a lock on the inode.
    pub fn holds_lock(&self, ino: InodeId, kind: LockKind, key: u64) -> bool {
        let owner = self.lock_owner(kind, key);
        self.locks.holds_in(ino, owner, LockRange::WHOLE)
            || self.delegated.holds_in(ino, owner, LockRange::WHOLE)
            || self.delegated.is_telling(ino)
    }

    /// The caller of a request for a lock was interrupted. Its answer follows: `Interrupted`, or the outcome that was on its way.
    pub fn interrupt(&mut self, now: Time, token: u64) {
        let found = self.jobs.iter().find(|(_, job)| job.token == Some(token)).map(|(id, _)| *id);
        let Some(id) = found else { return };
        let Some(job) = self.lock_job(id) else {
            if matches!(&self.jobs[&id].work, Work::Waiting(waiting) if matches!(waiting.call, Call::Lock { .. })) {
                self.finish(now, id, Err(Status::Interrupted));
            }
            return;
        };
        job.interrupted = true;
        match job.stage {
            // Its outcome is known in a moment. Who cannot wait for that is let go, and what was granted is put right.
            Stage::Asking => self.arm(now + limits::LOCK_INTERRUPT_GRACE, Alarm::Job(id)),
            Stage::Queued | Stage::Waiting => self.end_lock(now, id, Err(Status::Interrupted)),
        }
        self.pump(now);
    }

    pub(super) fn start_lock(&mut self, now: Time, token: u64, ino: InodeId, lock: SetLock) {
        if self.lock_here(now, token, ino, &lock) {
            return;
        }
        self.on_lock_asked(now, ino, lock.mode);
        let owner = self.lock_owner(lock.kind, lock.key);
        if lock.mode.is_none() && !self.locks.holds_in(ino, owner, lock.range) {
            // What of the owner is on its way has not been granted yet, and comes after this.
            return self.output(Output::Done { token, result: Ok(Reply::Done) });
        }
        let wait = if lock.mode.is_some() { lock.wait } else { LockWait::Never };
        if wait != LockWait::Never && self.locks.waits >= limits::CLIENT_LOCK_WAITS_MAX {
            return self.output(Output::Done { token, result: Err(Status::NoLocks) });
        }
        let job = LockJob {
            ino,
            kind: lock.kind,
            key: lock.key,
            pid: lock.pid,
            wait,
            steps: VecDeque::from([(lock.range, lock.mode)]),
            stage: Stage::Queued,
            interrupted: false,
            doubt: false,
            told: false,
        };
        self.locks.waits += usize::from(job.may_wait());
        self.add_lock_job(now, Some(token), job);
    }

    /// Puts locks of one owner that were given here into the log, however long it takes. Returns the job.
    pub(super) fn tell_lock(
        &mut self,
        now: Time,
        ino: InodeId,
        (kind, key, pid): (LockKind, u64, u32),
        steps: VecDeque<(LockRange, Option<LockMode>)>,
    ) -> u64 {
        let (wait, stage) = (LockWait::Never, Stage::Queued);
        self.add_lock_job(now, None, LockJob { ino, kind, key, pid, wait, steps, stage, interrupted: false, doubt: false, told: true })
    }

    fn add_lock_job(&mut self, now: Time, token: Option<u64>, job: LockJob) -> u64 {
        let line = job.line();
        let deadline = if job.may_wait() || job.told { Time::NEVER } else { now + self.config.op_timeout };
        let id = self.add_job(token, deadline, Work::Lock(Box::new(job)), false);
        if deadline != Time::NEVER {
            self.arm(deadline, Alarm::Job(id));
        }
        self.locks.lines.entry(line).or_default().queue.push_back(id);
        self.advance_line(now, line);
        id
    }

    /// Sends the owner's next step, if none is on its way.
    fn advance_line(&mut self, now: Time, key: LineKey) {
        let Some(line) = self.locks.lines.get_mut(&key).filter(|line| line.busy.is_none()) else { return };
        let Some(id) = line.queue.pop_front() else {
            if line.waiting.is_empty() {
                self.locks.lines.remove(&key);
            }
            return;
        };
        line.busy = Some(id);
        self.ask_lock(now, id);
    }

    fn ask_lock(&mut self, now: Time, id: u64) {
        let Some(job) = self.lock_job(id) else { return };
        let Some(&(range, mode)) = job.steps.front() else { return };
        job.stage = Stage::Asking;
        let lock = SetLock { kind: job.kind, key: job.key, range, mode, wait: job.wait, pid: job.pid };
        let op = Op::SetLock { ino: job.ino, lock };
        self.disarm(Alarm::Job(id));
        self.ask_op(now, op, Owner::Job(id));
    }

    pub(super) fn on_lock_answer(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let Some(job) = self.lock_job(id) else { return };
        let Some(&(range, mode)) = job.steps.front() else { return };
        let (ino, kind, key, pid) = (job.ino, job.kind, job.key, job.pid);
        let abandoned = job.interrupted && self.jobs.get(&id).is_some_and(|job| job.token.is_none());
        let owner = self.lock_owner(kind, key);
        match result {
            Ok(Response::Replied { replied: Replied::Lock(Grant::Refused), .. }) => {
                if kind == LockKind::Flock {
                    // The cluster lets go of a flock that it cannot convert, as Linux does.
                    self.locks.set(ino, owner, LockRange::WHOLE, None, 0);
                }
                self.on_lock_refused(now, id);
            }
            // The caller went away while this was under way: nobody knows of the lock, so it must not stay.
            Ok(_) if abandoned => {
                if let Some(job) = self.lock_job(id) {
                    job.doubt = true;
                }
                self.end_lock(now, id, Err(Status::Interrupted));
            }
            Ok(_) => {
                self.locks.set(ino, owner, range, mode, pid);
                let Some(job) = self.lock_job(id) else { return };
                job.steps.pop_front();
                job.doubt = false;
                if !job.steps.is_empty() {
                    return self.ask_lock(now, id);
                }
                self.end_lock(now, id, Ok(Reply::Done));
            }
            Err(Status::TimedOut | Status::Unavailable | Status::Busy | Status::TooOld) => self.on_lock_unanswered(now, id, result),
            Err(status) => {
                if status == Status::Stale {
                    self.locks.tables.remove(&ino);
                }
                self.end_lock(now, id, Err(status));
            }
        }
    }

    fn on_lock_refused(&mut self, now: Time, id: u64) {
        let Some(job) = self.lock_job(id) else { return };
        if job.interrupted {
            return self.end_lock(now, id, Err(Status::Interrupted));
        }
        if !job.may_wait() {
            return self.end_lock(now, id, Err(Status::WouldBlock));
        }
        self.wait_for_lock(now, id);
    }

    /// The outcome of a step is not known.
    fn on_lock_unanswered(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let status = result.err().unwrap_or(Status::TimedOut);
        let Some(job) = self.lock_job(id) else { return };
        job.doubt |= status != Status::Unavailable;
        if job.is_persistent() {
            // The caller is told; the step goes on behind him, and whatever else the owner wants comes after it.
            self.answer_lock(id, Err(status));
            let at = now + limits::LOCK_POLL;
            return self.arm(at, Alarm::Job(id));
        }
        if job.may_wait() && !job.interrupted {
            return self.wait_for_lock(now, id);
        }
        let status = if job.interrupted { Status::Interrupted } else { status };
        self.end_lock(now, id, Err(status));
    }

    fn wait_for_lock(&mut self, now: Time, id: u64) {
        let Some(job) = self.lock_job(id) else { return };
        job.stage = Stage::Waiting;
        let key = job.line();
        if let Some(line) = self.locks.lines.get_mut(&key) {
            line.busy = None;
            line.waiting.insert(id);
        }
        let at = now + limits::LOCK_POLL;
        self.arm(at, Alarm::Job(id));
        self.advance_line(now, key);
    }

    /// The leader says that this owner's turn may have come.
    pub(super) fn on_lock_free(&mut self, now: Time, key: LineKey) {
        let waiting = self.locks.lines.get(&key).map(|line| line.waiting.iter().copied().collect::<Vec<_>>());
        for id in waiting.unwrap_or_default() {
            self.ask_lock_again(now, id);
        }
    }

    fn ask_lock_again(&mut self, now: Time, id: u64) {
        let Some(job) = self.lock_job(id) else { return };
        job.stage = Stage::Queued;
        let key = job.line();
        self.disarm(Alarm::Job(id));
        let Some(line) = self.locks.lines.get_mut(&key) else { return };
        line.waiting.remove(&id);
        line.queue.push_back(id);
        self.advance_line(now, key);
    }

    pub(super) fn on_lock_alarm(&mut self, now: Time, id: u64) {
        let Some(job) = self.lock_job(id) else { return };
        match job.stage {
            Stage::Waiting => self.ask_lock_again(now, id),
            Stage::Queued if !job.is_persistent() => self.end_lock(now, id, Err(Status::TimedOut)),
            Stage::Queued => self.answer_lock(id, Err(Status::TimedOut)),
            Stage::Asking if job.is_persistent() => self.ask_lock(now, id),
            Stage::Asking if job.interrupted => self.answer_lock(id, Err(Status::Interrupted)),
            Stage::Asking => {}
        }
    }

    /// Answers the caller; the work goes on without him.
    fn answer_lock(&mut self, id: u64, result: Result<Reply, Status>) {
        if let Some(token) = self.jobs.get_mut(&id).and_then(|job| job.token.take()) {
            self.output(Output::Done { token, result });
        }
    }

    /// Ends a request, takes it out of all queues, and puts right what it may have left.
    fn end_lock(&mut self, now: Time, id: u64, result: Result<Reply, Status>) {
        let Some(job) = self.lock_job(id) else { return };
        let (ino, kind, key, pid, line_key) = (job.ino, job.kind, job.key, job.pid, job.line());
        let (doubt, range) = (job.doubt, job.steps.front().map(|(range, _)| *range));
        let was_waiting = job.may_wait() && matches!(result, Err(Status::Interrupted));
        if let Some(line) = self.locks.lines.get_mut(&line_key) {
            line.busy = line.busy.filter(|&busy| busy != id);
            line.queue.retain(|&queued| queued != id);
            line.waiting.remove(&id);
        }
        self.finish(now, id, result);
        self.on_locks_told(now, ino, id);
        if let (true, Some(range)) = (was_waiting, range) {
            let query = Query::LeaveLockQueue { ino, kind, key, range };
            self.ask(now, Request::Query(query), Target::Leader, Owner::Nobody, self.config.timing.attempt);
        }
        if let (true, Some(range)) = (doubt && self.phase == Phase::Ready, range) {
            let steps = self.locks.pieces(ino, self.lock_owner(kind, key), range);
            let (wait, stage) = (LockWait::Never, Stage::Queued);
            let job = LockJob { ino, kind, key, pid, wait, steps, stage, interrupted: false, doubt: false, told: false };
            let id = self.add_job(None, Time::NEVER, Work::Lock(Box::new(job)), false);
            // Before anything else that the owner wants.
            self.locks.lines.entry(line_key).or_default().queue.push_front(id);
        }
        self.advance_line(now, line_key);
    }

    /// What the books say of a job that ends.
    pub(super) fn forget_lock(&mut self, job: &LockJob) {
        self.locks.waits -= usize::from(job.may_wait());
    }

    fn lock_job(&mut self, id: u64) -> Option<&mut LockJob> {
        match &mut self.jobs.get_mut(&id)?.work {
            Work::Lock(job) => Some(job),
            _ => None,
        }
    }

    pub(super) fn lock_owner(&self, kind: LockKind, key: u64) -> LockOwner {
        LockOwner { kind, session: self.config.session, key }
    }
}
