//! Work on ranges of files that is done in as many bounded commands as it takes: fallocate, copy_file_range, SEEK_DATA and SEEK_HOLE.

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Attributes, ByteRange, InodeId};
use crate::wire::message::{Request, Response};
use crate::wire::namespace::{Answer, Op, Query, Replied};

use super::asks::{Owner, Target};
use super::core::{Core, Work};
use super::write::RETRIES_MAX;
use super::{Call, Reply};

/// One call in progress.
#[derive(Debug)]
pub(super) struct SpaceJob {
    call: Call,
    /// Bytes of the range that are dealt with; commands go on from there.
    done: u64,
    inline: u64,
    attributes: Option<Attributes>,
    /// Refusals in a row that trying again may cure.
    pub(super) retries: u32,
}

/// What the next command is.
enum Next {
    Op(Op),
    Query(Query),
}

impl SpaceJob {
    /// The command for what is left.
    fn next(&self) -> Option<Next> {
        let done = self.done;
        Some(match self.call {
            Call::Allocate { ino, range, mode, kill_privileges } => {
                let range = ByteRange { offset: range.offset + done, length: range.length - done };
                Next::Op(Op::Allocate { ino, range, mode, kill_privileges })
            }
            Call::Copy { from, from_offset, to, to_offset, length, kill_privileges } => {
                let (from_offset, to_offset, length) = (from_offset + done, to_offset + done, length - done);
                Next::Op(Op::Copy { from, from_offset, to, to_offset, length, kill_privileges })
            }
            Call::Seek { ino, offset, what } => Next::Query(Query::Seek { ino, offset: offset + done, what }),
            _ => return None,
        })
    }

    /// Bytes to do in all.
    fn length(&self) -> u64 {
        match &self.call {
            Call::Allocate { range, .. } => range.length,
            Call::Copy { length, .. } => *length,
            _ => 0,
        }
    }

    /// The file that changes, and where.
    fn changed(&self) -> Option<(InodeId, u64)> {
        match self.call {
            Call::Allocate { ino, range, .. } => Some((ino, range.offset + self.done)),
            Call::Copy { to, to_offset, .. } => Some((to, to_offset + self.done)),
            _ => None,
        }
    }

    fn is_copy(&self) -> bool {
        matches!(self.call, Call::Copy { .. })
    }

    /// What was done so far, as an answer. `None` before the first command was carried out.
    fn reply(&self) -> Option<Reply> {
        let (done, inline) = (self.done, self.inline);
        self.attributes.map(|attributes| Reply::Replied(Replied::Ranged { done, inline, attributes }))
    }
}

impl Core {
    pub(super) fn start_space(&mut self, now: Time, token: u64, call: Call) {
        let deadline = now + self.config.op_timeout;
        let job = SpaceJob { call, done: 0, inline: 0, attributes: None, retries: 0 };
        let sound = match job.call {
            Call::Allocate { range, .. } => range.offset.checked_add(range.length).is_some(),
            Call::Copy { from_offset, to_offset, length, .. } => from_offset.max(to_offset).checked_add(length).is_some(),
            _ => true,
        };
        let changes = job.changed().is_some();
        let id = self.add_job(Some(token), deadline, Work::Space(Box::new(job)), changes);
        if !sound {
            return self.finish(now, id, Err(Status::FileTooLarge));
        }
        self.send_space(now, id);
    }

    pub(super) fn send_space(&mut self, now: Time, id: u64) {
        let Some(Work::Space(job)) = self.jobs.get(&id).map(|job| &job.work) else { return };
        match job.next() {
            Some(Next::Op(op)) => self.ask_op(now, op, Owner::Job(id)),
            Some(Next::Query(query)) => self.ask(now, Request::Query(query), Target::Leader, Owner::Job(id), self.config.op_timeout),
            None => self.finish(now, id, Err(Status::Internal)),
        }
    }

    pub(super) fn on_space_answer(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let deadline = now + self.config.op_timeout;
        let Some(running) = self.jobs.get_mut(&id) else { return };
        let Work::Space(job) = &mut running.work else { return };
        let answer = match result {
            Err(status) => return self.on_space_refused(now, id, status),
            Ok(answer) => answer,
        };
        running.deadline = deadline;
        match answer {
            Response::Replied { replied: Replied::Ranged { done, inline, attributes }, .. } if done <= job.length() - job.done => {
                let start = job.changed();
                job.done += done;
                job.inline += inline;
                job.attributes = Some(attributes);
                job.retries = 0;
                let over = job.done == job.length() || done == 0;
                // Of an allocation, which has no end but its own, something is done each time.
                let result = if done == 0 && !job.is_copy() { Err(Status::Malformed) } else { job.reply().ok_or(Status::Internal) };
                if let Some((ino, offset)) = start.filter(|_| inline > limits::INLINE_REST_BYTES_MAX as u64) {
                    self.folds.note_copied(now, ino, ByteRange { offset, length: done });
                }
                if over { self.finish(now, id, result) } else { self.send_space(now, id) }
            }
            Response::Answered { answer: Answer::Sought { offset, found }, .. } => {
                let Call::Seek { offset: from, .. } = job.call else { return self.finish(now, id, Err(Status::Malformed)) };
                if found {
                    return self.finish(now, id, Ok(Reply::Answer(Answer::Sought { offset, found })));
                }
                if offset <= from + job.done {
                    return self.finish(now, id, Err(Status::Malformed));
                }
                job.done = offset - from;
                self.send_space(now, id);
            }
            _ => self.finish(now, id, Err(Status::Malformed)),
        }
    }

    pub(super) fn on_space_refused(&mut self, now: Time, id: u64, status: Status) {
        let Some(Work::Space(job)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        job.retries += 1;
        match (status, job.changed()) {
            (Status::Busy, Some((ino, offset)))
                if job.retries <= RETRIES_MAX && self.folds.demand(ino, offset / limits::SLOT_BYTES, id) =>
            {
                return;
            }
            (Status::Reclaiming, Some(_)) if job.retries <= RETRIES_MAX => return self.retry_later(now, id),
            _ => {}
        }
        let status = if status == Status::Reclaiming { Status::NoSpace } else { status };
        // Of a copy the program is told how far it came; it will ask for the rest and hear the error then.
        let partial = job.reply().filter(|_| job.is_copy() && job.done > 0);
        self.finish(now, id, partial.ok_or(status));
    }
}
