//! Writing behind: what is accepted under `WRITE` before it is committed, when it is committed, and who waits for that.
//!
//! A write is accepted if the session may write the file alone, its lease lives, the room that the bytes will take is reserved in the
//! cluster, and there is memory for them; else it goes through, after what was accepted before. One job at a time commits a file, so that its
//! commits keep their order. What fails is dirty as before and tried again: only a lost session loses bytes. Whatever else changes or
//! publishes a file waits until it is clean.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Attributes, InodeId, Rights, Timestamp};
use crate::wire::message::Response;
use crate::wire::namespace::{Answer, Op, Query, RenameMode, Replied, WriteAt};

use super::asks::Owner;
use super::behind::{self, Cut};
use super::core::{Alarm, Core, Phase, Work};
use super::names::Entry;
use super::write::Committing;
use super::{Call, Output, Reply, Sabotage};

/// A call that goes on once files are clean, or room is reserved.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) call: Call,
    /// The newest write of each file that has to be committed first.
    pub(super) files: BTreeMap<InodeId, u64>,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// As if it came now.
    Call,
    /// A write that goes through.
    Through,
    /// A write that waits for room.
    Room,
}

/// What becomes of a write.
enum Admission {
    Accepted(Replied),
    /// Room is being asked for.
    Later,
    Through,
}

/// How often this session wrote a file without the right to do so alone.
#[derive(Clone, Copy, Debug)]
struct Wish {
    writes: u32,
    last: Time,
    not_before: Time,
}

/// Books of what is reserved in the cluster, and of who waits.
#[derive(Debug, Default)]
pub(super) struct FlushBook {
    /// Room that is reserved at least. Commits that were answered have taken theirs.
    reserved: u64,
    /// What is being asked for, and what commits took since.
    asked: Option<(u64, u64)>,
    /// What was asked for last beyond what was needed.
    step: u64,
    not_before: Time,
    used: Time,
    /// Jobs that wait for files, and those that wait for room.
    waiting: BTreeMap<InodeId, BTreeSet<u64>>,
    thirsty: BTreeSet<u64>,
    /// Files whose `WRITE` goes back as soon as they are clean.
    leaving: BTreeSet<InodeId>,
    running: usize,
    wishes: BTreeMap<InodeId, Wish>,
    /// Files of which accepted bytes were lost, until somebody is told.
    lost: BTreeMap<InodeId, Status>,
    /// The newest time that was given to a write.
    clock: Timestamp,
}

impl FlushBook {
    /// Files that are being committed.
    pub(super) fn running(&self) -> usize {
        self.running
    }
}

impl Core {
    // --- writes

    /// Begins a write: accepted, waiting, or through.
    pub(super) fn begin_write(&mut self, now: Time, token: u64, call: Call) {
        let Call::Write { ino, at, bytes, kill_privileges } = &call else { return };
        match self.admit(now, *ino, *at, bytes, *kill_privileges) {
            Admission::Accepted(replied) => self.output(Output::Done { token, result: Ok(Reply::Replied(replied)) }),
            Admission::Later => {
                let job = self.wait(now, token, call, BTreeMap::new(), Then::Room);
                self.flushing.thirsty.insert(job);
            }
            Admission::Through => {
                // What was accepted before must not come after it.
                let files: BTreeMap<InodeId, u64> = self.behind.mark(*ino).map(|mark| (*ino, mark)).into_iter().collect();
                if files.is_empty() {
                    return self.write_through(now, token, call);
                }
                self.wait(now, token, call, files, Then::Through);
            }
        }
    }

    fn write_through(&mut self, now: Time, token: u64, call: Call) {
        if let Call::Write { ino, at, bytes, kill_privileges } = call {
            self.start_write(now, token, ino, at, bytes, kill_privileges);
        }
    }

    fn admit(&mut self, now: Time, ino: InodeId, at: WriteAt, bytes: &Bytes, kill_privileges: bool) -> Admission {
        let length = bytes.len();
        if !self.config.behind
            || length == 0
            || length > limits::BEHIND_WRITE_BYTES_MAX
            || !self.may_write_behind(now, ino)
            || self.is_waited_for(ino)
        {
            return Admission::Through;
        }
        // Its size, and what the write answers with.
        let Some(mut attributes) = self.known_attributes(now, ino) else { return Admission::Through };
        let offset = if let WriteAt::Offset(offset) = at { offset } else { attributes.size };
        let beyond = offset.saturating_add(length as u64) > limits::FILE_BYTES_MAX;
        if beyond || !self.behind.has_room(length) {
            return Admission::Through;
        }
        let Some(written) = self.cluster_now(now) else { return Admission::Through };
        match self.reserve_for(now, behind::charge(length)) {
            Some(true) => {}
            Some(false) => return Admission::Later,
            None => return Admission::Through,
        }
        // Times never step back, whoever wrote before.
        self.flushing.clock = self.flushing.clock.max(written).max(attributes.ctime);
        self.behind.write(now, ino, offset, bytes.clone(), self.flushing.clock, kill_privileges);
        self.flushing.used = now;
        self.behind.overlay(&mut attributes);
        if self.behind.whole_slots(ino) >= limits::BEHIND_SLOTS {
            self.start_flush(now, ino, Cut::WholeSlots);
        }
        if self.behind.is_pressed() {
            for ino in self.behind.files().collect::<Vec<_>>() {
                self.behind.hasten(now, ino);
            }
        }
        self.plan_flushes();
        Admission::Accepted(Replied::Written { offset, attributes })
    }

    /// Whether the session has the file for itself, and keeps it for the time being.
    pub(super) fn may_write_behind(&self, now: Time, ino: InodeId) -> bool {
        self.rights.may(now, ino, Rights::WRITE)
            && self.phase == Phase::Ready
            && !self.flushing.leaving.contains(&ino)
            && !self.behind.may_have_yielded(ino)
    }

    /// Whether a call waits for the file: it would do so for ever if one write after another were accepted.
    fn is_waited_for(&self, ino: InodeId) -> bool {
        let is_call = |id: &u64| self.jobs.get(id).is_some_and(|job| matches!(job.work, Work::Waiting(_)));
        self.flushing.waiting.get(&ino).is_some_and(|ids| ids.iter().any(is_call))
    }

    /// Cluster time as this session can know it.
    fn cluster_now(&self, now: Time) -> Option<Timestamp> {
        self.cluster_time.map(|(at, told)| told.after(now.since(at)))
    }

    /// A write went through: whoever writes on gets the right to do so alone.
    pub(super) fn on_written_through(&mut self, now: Time, ino: InodeId) {
        if !self.config.behind || self.rights.held(ino).contains(Rights::WRITE) {
            return;
        }
        if self.flushing.wishes.len() >= limits::ACQUIRE_WISHES_MAX {
            self.flushing.wishes.clear();
        }
        let wish = self.flushing.wishes.entry(ino).or_insert(Wish { writes: 0, last: now, not_before: Time(0) });
        wish.writes = if now.since(wish.last) <= limits::ACQUIRE_WINDOW { wish.writes + 1 } else { 1 };
        wish.last = now;
        if wish.writes < 2 || now < wish.not_before {
            return;
        }
        wish.writes = 0;
        // A right that was given back a moment ago might go with that once more.
        if !self.changes.touch_inode(ino) && self.rights.may(now, ino, Rights::READ) && !self.is_acquiring(ino) {
            self.ask_op(now, Op::Acquire { ino }, Owner::Acquired(ino));
        }
    }

    /// Others look at the file: writing it alone is not worth while for a moment.
    pub(super) fn postpone_wish(&mut self, now: Time, ino: InodeId) {
        if self.config.behind && self.flushing.wishes.len() < limits::ACQUIRE_WISHES_MAX {
            let wish = self.flushing.wishes.entry(ino).or_insert(Wish { writes: 0, last: now, not_before: now });
            (wish.writes, wish.not_before) = (0, now + limits::COOL_TIME);
        }
    }

    pub(super) fn on_acquired(&mut self, now: Time, ino: InodeId, result: Result<Response, Status>) {
        let granted = matches!(result, Ok(Response::Replied { replied: Replied::Acquired { granted: true, .. }, .. }));
        match self.flushing.wishes.get_mut(&ino) {
            _ if granted => drop(self.flushing.wishes.remove(&ino)),
            Some(wish) => wish.not_before = now + limits::COOL_TIME,
            None => {}
        }
    }

    // --- room

    /// Whether the room is reserved; `false`: it is being asked for. `None`: there is none to be had now.
    fn reserve_for(&mut self, now: Time, charge: u64) -> Option<bool> {
        let wanted = self.behind.charge() + charge;
        let step = self.flushing.step;
        if wanted + step / 2 > self.flushing.reserved && self.flushing.asked.is_none() && now >= self.flushing.not_before {
            // More each time that half of the last is used.
            self.flushing.step = (step * 2).clamp(limits::RESERVE_STEP_MIN, limits::RESERVE_STEP_MAX);
            self.ask_for_room(now, wanted + self.flushing.step);
        }
        if wanted <= self.flushing.reserved {
            return Some(true);
        }
        self.flushing.asked.is_some().then_some(false)
    }

    fn ask_for_room(&mut self, now: Time, bytes: u64) {
        self.flushing.asked = Some((bytes, 0));
        self.ask_op(now, Op::Reserve { bytes }, Owner::Reserved);
    }

    pub(super) fn on_reserved(&mut self, now: Time, result: Result<Response, Status>) {
        let Some((asked, taken)) = self.flushing.asked.take() else { return };
        match result {
            Ok(Response::Replied { replied: Replied::Reserved { bytes }, .. }) => {
                // Commits that were answered meanwhile may be in it or not.
                self.flushing.reserved = bytes.saturating_sub(taken);
                if bytes < asked {
                    self.pause_reserving(now);
                }
            }
            // Nobody knows which of the two it is now.
            _ => {
                self.flushing.reserved = self.flushing.reserved.min(asked);
                self.pause_reserving(now);
            }
        }
        for job in std::mem::take(&mut self.flushing.thirsty) {
            self.resume(now, job);
        }
    }

    fn pause_reserving(&mut self, now: Time) {
        self.flushing.not_before = now + limits::RESERVE_PAUSE;
        self.flushing.step = 0;
    }

    /// Somebody is about to be told that there is no space.
    pub(super) fn on_space_short(&mut self, now: Time) {
        if self.flushing.asked.is_none() && self.flushing.reserved > self.behind.charge() {
            self.pause_reserving(now);
            let needed = self.behind.charge();
            self.flushing.reserved = needed;
            self.ask_for_room(now, needed);
        }
    }

    /// With each renewal: gives back what is not used.
    pub(super) fn tidy_behind(&mut self, now: Time) {
        let idle = self.behind.is_empty() && now.since(self.flushing.used) > limits::RESERVE_IDLE;
        if idle && self.flushing.reserved > 0 && self.flushing.asked.is_none() {
            (self.flushing.reserved, self.flushing.step) = (0, 0);
            self.ask_for_room(now, 0);
        }
        for ino in
            self.rights.idle_writers(|ino| self.behind.is_dirty(ino) || self.delegated.has_any(ino) || self.flushing.leaving.contains(&ino))
        {
            self.surrender(now, ino);
        }
    }

    // --- committing

    /// Commits files that are due, as far as their number allows. Returns whether any was begun.
    pub(super) fn start_due_flushes(&mut self, now: Time) -> bool {
        if self.phase != Phase::Ready || self.flushing.running >= limits::BEHIND_FLUSHES_MAX {
            return false;
        }
        let Some(ino) = self.behind.next_due(now) else {
            self.plan_flushes();
            return false;
        };
        self.ask_whether_there(now, ino) || self.start_flush(now, ino, Cut::All)
    }

    /// Whether somebody waits until the file is clean.
    pub(super) fn is_wanted_clean(&self, ino: InodeId) -> bool {
        self.flushing.waiting.contains_key(&ino) || self.flushing.leaving.contains(&ino)
    }

    fn plan_flushes(&mut self) {
        match self.behind.due() {
            Some(at) if self.flushing.running < limits::BEHIND_FLUSHES_MAX => self.arm(at, Alarm::Behind),
            _ => self.disarm(Alarm::Behind),
        }
    }

    fn start_flush(&mut self, now: Time, ino: InodeId, cut: Cut) -> bool {
        let id = self.fresh_id();
        let Some(taken) = self.behind.take(ino, cut, id) else { return false };
        self.flushing.running += 1;
        let awaited = self.is_wanted_clean(ino);
        let idle = self.behind.is_idle(now, ino) || !self.holds.is_open(ino);
        let leaves = cut == Cut::All && (self.flushing.leaving.contains(&ino) || idle);
        let committing = Committing { written: taken.written, kill_privileges: taken.kill_privileges, leaves, chunk_max: taken.chunk_max };
        self.begin_flush(now, id, ino, taken.runs, committing, awaited);
        true
    }

    /// Whether the last commit of the file gives the right back: whatever is written from now on goes through.
    pub(super) fn yields_with(&self, ino: InodeId, leaves: bool) -> bool {
        leaves && self.behind.is_taken(ino) && !self.delegated.has_any(ino) && self.rights.held(ino).contains(Rights::WRITE)
    }

    /// A commit of a flush was answered; its patches end at `end`.
    pub(super) fn on_flush_part(&mut self, now: Time, ino: InodeId, end: u64) {
        let taken = self.behind.on_part(ino, end);
        self.flushing.reserved = self.flushing.reserved.saturating_sub(taken);
        if let Some((_, since)) = &mut self.flushing.asked {
            *since += taken;
        }
        let deadline = now + self.config.op_timeout;
        for id in self.flushing.waiting.get(&ino).into_iter().flatten() {
            if let Some(job) = self.jobs.get_mut(id) {
                job.deadline = deadline;
            }
        }
    }

    /// A flush has ended. `yielded`: its last commit gave the right back, or would have.
    pub(super) fn on_flush_ended(&mut self, now: Time, ino: InodeId, result: Result<(), Status>, yielded: bool) {
        self.flushing.running -= 1;
        if self.phase != Phase::Ready {
            return; // what is dirty now is lost, and asked for by who begins a new session
        }
        let had_gone = self.behind.may_have_yielded(ino);
        match result {
            Ok(()) => {
                self.behind.on_done(now, ino);
                if yielded {
                    self.on_yielded(now, ino, true);
                }
            }
            // The commit of which there was no answer took the right with it, and committed everything.
            Err(Status::RightLost) if had_gone || yielded => {
                self.behind.forget(ino);
                self.on_yielded(now, ino, true);
            }
            // The file is gone: nobody has it open, or this would be another answer.
            Err(Status::Stale | Status::NotFound) => {
                self.behind.forget(ino);
                self.on_yielded(now, ino, true);
            }
            Err(Status::RightLost) => {
                tracing::error!(%ino, bytes = self.behind.bytes(), "bytes that were written are lost: the cluster took the file away");
                if !self.refuse_waiting(now, ino, Status::RightLost) {
                    self.flushing.lost.insert(ino, Status::RightLost);
                }
                self.behind.forget(ino);
                self.on_yielded(now, ino, true);
            }
            Err(status) => {
                tracing::warn!(%ino, %status, "what was written could not be committed; trying on");
                let charge = self.behind.on_failed(now, ino, status, yielded);
                // A commit without an answer may have taken its room.
                self.flushing.reserved = self.flushing.reserved.saturating_sub(charge);
                if self.flushing.leaving.contains(&ino) {
                    self.on_yielded(now, ino, false);
                }
            }
        }
        self.go_on_waiting(now, ino);
        let awaited = self.is_wanted_clean(ino);
        if result.is_ok() && awaited {
            self.start_flush(now, ino, Cut::All);
            self.go_on_leaving(now, ino);
        } else if result.is_ok() && self.behind.whole_slots(ino) >= limits::BEHIND_SLOTS {
            self.start_flush(now, ino, Cut::WholeSlots);
        }
        self.plan_flushes();
    }

    /// Gives `WRITE` back once everything that was written under it is committed; [`Core::on_surrendered`] follows.
    pub(super) fn surrender(&mut self, now: Time, ino: InodeId) {
        if self.flushing.leaving.insert(ino) {
            self.tell_locks(now, ino);
        }
        if !self.is_sabotaged(Sabotage::FlushForgotten) {
            self.start_flush(now, ino, Cut::All);
        }
        self.go_on_leaving(now, ino);
    }

    /// Gives the right back if nothing is left to be committed or told under it.
    pub(super) fn go_on_leaving(&mut self, now: Time, ino: InodeId) {
        let clean = !self.behind.is_dirty(ino) || self.is_sabotaged(Sabotage::FlushForgotten);
        let ready = clean && !self.delegated.has_any(ino) && !self.is_yielding(ino);
        if ready && self.flushing.leaving.contains(&ino) {
            self.ask_op(now, Op::Yield { ino }, Owner::Yielded(ino));
        }
    }

    /// The right is gone, by a commit or a word of its own; or nobody knows, and the recall will be said again.
    pub(super) fn on_yielded(&mut self, now: Time, ino: InodeId, given_back: bool) {
        self.flushing.leaving.remove(&ino);
        if !given_back && !self.behind.is_dirty(ino) {
            // It may be gone all the same: nothing more is accepted under it.
            self.lose_write(now, ino);
        }
        self.on_surrendered(now, ino, given_back);
    }

    // --- who waits

    /// The files that must be clean before the call begins.
    pub(super) fn dirty_before(&mut self, call: &Call) -> BTreeMap<InodeId, u64> {
        let mut inos: Vec<InodeId> = Vec::new();
        match call {
            Call::Op(
                Op::SetAttributes { ino, .. }
                | Op::SetXattr { ino, .. }
                | Op::RemoveXattr { ino, .. }
                | Op::Link { ino, .. }
                | Op::Write { ino, .. },
            )
            | Call::Query(Query::Xattr { ino, .. } | Query::Xattrs { ino })
            | Call::Allocate { ino, .. }
            | Call::Seek { ino, .. }
            | Call::Locate { ino, .. } => inos.push(*ino),
            // What is dirty may be committed, and changed by others since.
            Call::Read { ino, .. } if self.behind.may_have_yielded(*ino) => inos.push(*ino),
            Call::Copy { from, to, .. } => inos.extend([*from, *to]),
            Call::Op(Op::Rename { from_parent, from_name, to_parent, to_name, mode }) => {
                let known = [self.names.entry(*from_parent, from_name), self.names.entry(*to_parent, to_name)];
                match known {
                    [Entry::There(from), _] if *mode != RenameMode::Exchange => inos.push(from),
                    [Entry::There(from), Entry::There(to)] => inos.extend([from, to]),
                    // What it publishes is not known.
                    _ => return self.behind.marks(),
                }
            }
            _ => {}
        }
        inos.into_iter().filter_map(|ino| Some((ino, self.behind.mark(ino)?))).collect()
    }

    /// Lets a call wait until the files are clean.
    pub(super) fn wait_for_files(&mut self, now: Time, token: u64, call: Call, files: BTreeMap<InodeId, u64>) -> u64 {
        self.wait(now, token, call, files, Then::Call)
    }

    fn wait(&mut self, now: Time, token: u64, call: Call, files: BTreeMap<InodeId, u64>, then: Then) -> u64 {
        let inos: Vec<InodeId> = files.keys().copied().collect();
        let deadline = now + self.config.op_timeout;
        let changes = !matches!(call, Call::Query(_) | Call::Seek { .. } | Call::Locate { .. } | Call::Lock { .. });
        let id = self.add_job(Some(token), deadline, Work::Waiting(Box::new(Waiting { call, files, then })), changes);
        self.arm(deadline, Alarm::Job(id));
        self.await_files(now, id, inos);
        id
    }

    /// The job waits for these files, which are committed without delay.
    pub(super) fn await_files(&mut self, now: Time, id: u64, inos: Vec<InodeId>) {
        for ino in inos {
            self.flushing.waiting.entry(ino).or_default().insert(id);
            self.start_flush(now, ino, Cut::All);
        }
    }

    /// Bytes of the file that were accepted and are lost; told once.
    pub(super) fn take_lost(&mut self, ino: InodeId) -> Option<Status> {
        self.flushing.lost.remove(&ino)
    }

    /// Part of the file was committed: who waited for no more goes on.
    fn go_on_waiting(&mut self, now: Time, ino: InodeId) {
        let waiting = self.flushing.waiting.get(&ino).cloned().unwrap_or_default();
        for id in waiting {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Work::Waiting(waiting) = &mut job.work else {
                self.on_flush_progress(now, id);
                continue;
            };
            waiting.files.retain(|ino, mark| !self.behind.is_committed(*ino, *mark));
            if waiting.files.is_empty() {
                self.resume(now, id);
            }
        }
        self.forget_waiting(ino);
    }

    /// Drops from the index whoever does not wait for the file any more.
    fn forget_waiting(&mut self, ino: InodeId) {
        let Some(waiting) = self.flushing.waiting.get_mut(&ino) else { return };
        let (jobs, behind) = (&self.jobs, &self.behind);
        waiting.retain(|id| match jobs.get(id).map(|job| &job.work) {
            Some(Work::Waiting(waiting)) => waiting.files.contains_key(&ino),
            Some(Work::Flush { files, .. }) => files.get(&ino).is_some_and(|mark| !behind.is_committed(ino, *mark)),
            _ => false,
        });
        if waiting.is_empty() {
            self.flushing.waiting.remove(&ino);
        }
    }

    /// Tells everybody who waits for the file; says whether there was anybody.
    fn refuse_waiting(&mut self, now: Time, ino: InodeId, status: Status) -> bool {
        let waiting = self.flushing.waiting.remove(&ino).unwrap_or_default();
        let any = !waiting.is_empty();
        waiting.into_iter().for_each(|id| self.finish(now, id, Err(status)));
        any
    }

    /// The call begins anew.
    pub(super) fn resume(&mut self, now: Time, id: u64) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.disarm(Alarm::Job(id));
        let (Work::Waiting(waiting), Some(token)) = (job.work, job.token) else { return };
        let first = self.next_id;
        match waiting.then {
            Then::Call => self.begin_call(now, token, waiting.call),
            Then::Through => self.write_through(now, token, waiting.call),
            Then::Room => self.begin_write(now, token, waiting.call),
        }
        // Whoever waits for the old job waits for the new one.
        let successor = self.jobs.range(first..).find(|(_, job)| job.token == Some(token)).map(|(&id, _)| id);
        self.succeed(now, id, successor);
    }

    pub(super) fn on_waiting_alarm(&mut self, now: Time, id: u64) {
        let Some((Work::Waiting(waiting), deadline)) = self.jobs.get(&id).map(|job| (&job.work, job.deadline)) else { return };
        if now < deadline {
            return self.arm(deadline, Alarm::Job(id));
        }
        // Room was reserved, so that "no space" is a matter of time; only who writes is told that it lasts.
        let writes = matches!(waiting.call, Call::Write { .. });
        let status = self.behind.failure(waiting.files.keys().copied()).filter(|_| writes);
        self.flushing.thirsty.remove(&id);
        self.finish(now, id, Err(status.unwrap_or(Status::TimedOut)));
    }

    /// A job is over that may have waited.
    pub(super) fn leave_waiting(&mut self, id: u64, inos: impl Iterator<Item = InodeId>) {
        self.flushing.thirsty.remove(&id);
        for ino in inos {
            if let Some(waiting) = self.flushing.waiting.get_mut(&ino) {
                waiting.remove(&id);
                if waiting.is_empty() {
                    self.flushing.waiting.remove(&ino);
                }
            }
        }
    }

    // --- answers

    /// Lays what was written behind over what the leader told.
    pub(super) fn overlay_reply(&self, reply: &mut Reply) {
        if self.behind.is_empty() {
            return;
        }
        let lay = |attributes: &mut Attributes| self.behind.overlay(attributes);
        match reply {
            Reply::Answer(Answer::Attributes(attributes))
            | Reply::Replied(
                Replied::Entry { attributes, .. }
                | Replied::Attributes(attributes)
                | Replied::Written { attributes, .. }
                | Replied::Ranged { attributes, .. }
                | Replied::Acquired { attributes, .. },
            ) => lay(attributes),
            Reply::Answer(Answer::Space(space)) => {
                let dirty = self.behind.bytes() as u64;
                space.used += dirty;
                space.capacity = space.capacity.max(space.used);
                space.available = space.available.saturating_sub(dirty);
            }
            Reply::Answer(Answer::Directory { entries, .. }) => entries.iter_mut().for_each(|entry| lay(&mut entry.attributes)),
            _ => {}
        }
    }

    /// Files with bytes that are not committed.
    pub fn dirty_files(&self) -> Vec<InodeId> {
        self.behind.files().collect()
    }

    pub(super) fn check_flush_invariants(&self) {
        self.behind.check_invariants();
        let flying = self.behind.files().filter(|ino| self.behind.is_flying(*ino)).count();
        assert!(flying <= self.flushing.running, "each job has its file");
        for (ino, waiting) in &self.flushing.waiting {
            assert!(!waiting.is_empty() && self.behind.is_dirty(*ino), "nobody waits for a clean file");
            assert!(waiting.iter().all(|id| self.jobs.contains_key(id)));
        }
        assert!(self.flushing.asked.is_some() || self.flushing.thirsty.is_empty(), "room is being asked for");
    }
}
