//! Calls that are one request and one answer: changes of names and attributes, questions, and the books of what is open.

use crate::status::Status;
use crate::time::Time;
use crate::types::{InodeId, NodeId};
use crate::wire::message::{Request, Response, StatusReport};
use crate::wire::namespace::{Answer, Op, Query, Replied};

use super::asks::{Owner, Target};
use super::core::{Core, HeldChange, Job, Work, reply_of};
use super::holds::Said;
use super::{Output, Reply};

impl Core {
    pub(super) fn start_pass(&mut self, now: Time, token: u64, request: Request, target: Target, held: Option<HeldChange>) {
        let deadline = now + self.config.op_timeout;
        let job = self.add_job(Some(token), deadline, Work::Pass { held }, false);
        self.ask(now, request, target, Owner::Job(job), self.config.op_timeout);
    }

    /// As [`Core::start_pass`], to a certain node. `Unavailable` if the map does not name it.
    pub(super) fn start_pass_to(&mut self, now: Time, token: u64, request: Request, node: NodeId) {
        match self.peer(node) {
            Some(peer) => self.start_pass(now, token, request, Target::Node(peer), None),
            None => self.output(Output::Done { token, result: Err(Status::Unavailable) }),
        }
    }

    pub(super) fn start_op(&mut self, now: Time, token: u64, op: Op) {
        let held = matches!(op, Op::Create { hold: true, .. }).then_some(HeldChange::Created(self.session.term));
        let deadline = now + self.config.op_timeout;
        let job = self.add_job(Some(token), deadline, Work::Pass { held }, true);
        self.send_op(now, job, op);
    }

    fn send_op(&mut self, now: Time, job: u64, op: Op) {
        match self.hold_before(now, &op) {
            Some(ino) => self.ops_held.push((ino, job, op)),
            None => self.ask_op(now, op, Owner::Job(job)),
        }
    }

    /// The leader knows now that the inode is open.
    pub(super) fn resume_held_ops(&mut self, now: Time, ino: InodeId) {
        for (_, job, op) in self.take_held_ops(ino) {
            self.send_op(now, job, op);
        }
    }

    /// The leader could not be told.
    pub(super) fn refuse_held_ops(&mut self, now: Time, ino: InodeId, status: Status) {
        for (_, job, _) in self.take_held_ops(ino) {
            self.finish(now, job, Err(status));
        }
    }

    fn take_held_ops(&mut self, ino: InodeId) -> Vec<(InodeId, u64, Op)> {
        let (due, others) = std::mem::take(&mut self.ops_held).into_iter().partition(|(waits_for, ..)| *waits_for == ino);
        self.ops_held = others;
        due
    }

    pub(super) fn start_query(&mut self, now: Time, token: u64, query: Query) {
        if let Some(result) = self.answer_known(now, &query) {
            return self.output(Output::Done { token, result });
        }
        let held = match &query {
            Query::Hold { ino, sequence } => {
                if let Some(attributes) = self.open_silently(now, *ino, *sequence) {
                    let result = Ok(Reply::Answer(Answer::Attributes(attributes)));
                    return self.output(Output::Done { token, result });
                }
                Some(HeldChange::Held(*ino, *sequence, self.session.term))
            }
            Query::Release { ino, sequence } => {
                if self.close_silently(now, *ino, *sequence) {
                    return self.output(Output::Done { token, result: Ok(Reply::Answer(Answer::Done)) });
                }
                // From now on a reclaim must not name it; one under way may have, so the release is then said once more.
                self.holds.close(*ino);
                if self.reclaiming {
                    self.session.released.insert(*ino, *sequence);
                }
                None
            }
            _ => None,
        };
        self.start_pass(now, token, Request::Query(query), Target::Leader, held);
    }

    pub(super) fn note_held(&mut self, now: Time, held: HeldChange, response: &Response) {
        let (ino, sequence, said, begun) = match (held, response) {
            (HeldChange::Created(begun), Response::Replied { replied: Replied::Entry { attributes, created, .. }, .. }) => {
                let said = if *created { Said::Yes } else { Said::Perhaps };
                (attributes.ino, 0, said, begun)
            }
            (HeldChange::Held(ino, sequence, begun), Response::Answered { .. }) => (ino, sequence, Said::Yes, begun),
            _ => return,
        };
        self.holds.open(ino, sequence, said);
        // Across a change of leader it is not known which one counted the hold; naming it again is harmless.
        if self.reclaiming || begun != self.session.term {
            self.reclaim_again(now);
        }
    }

    /// A node that is not the leader knows less; the leader is asked if the node names it.
    pub(super) fn on_status(&mut self, now: Time, id: u64, first: Option<Box<StatusReport>>, result: Result<Response, Status>) {
        let report = match (result, first) {
            (Ok(Response::Status(report)), None) => report,
            (Ok(Response::Status(report)), Some(first)) => return self.finish(now, id, Ok(Reply::Status(better(report, first)))),
            (_, Some(first)) => return self.finish(now, id, Ok(Reply::Status(first))),
            (result, None) => return self.finish(now, id, result.and_then(reply_of)),
        };
        let leader = report.leader.filter(|_| !report.from_leader).and_then(|leader| self.peer(leader));
        let Some(leader) = leader else { return self.finish(now, id, Ok(Reply::Status(report))) };
        if let Some(Job { work: Work::Status { first }, .. }) = self.jobs.get_mut(&id) {
            *first = Some(report);
        }
        let timeout = self.config.timing.attempt;
        self.ask(now, Request::Status, Target::Node(leader), Owner::Job(id), timeout);
    }
}

fn better(a: Box<StatusReport>, b: Box<StatusReport>) -> Box<StatusReport> {
    if a.from_leader || !b.from_leader { a } else { b }
}
