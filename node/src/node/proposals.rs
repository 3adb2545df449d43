//! Commands on their way through the log, and who waits for their outcome.
//!
//! Waiters are known by what they wait for, not by log position: a request retried over another link simply takes its own place over.

use std::collections::BTreeMap;

use bytes::Bytes;

use dfs::cluster_map::MemberState;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{NodeId, RequestNumber, SessionId, Term, Timestamp};
use dfs::wire::codec;
use dfs::wire::message::{Failure, Response};
use dfs::wire::namespace::{Op, Replied};

use super::leader::{Duty, Leading};
use super::{Asker, Node, Sabotage};
use crate::namespace::{Command, LogEntry};
use crate::raft::Configuration;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Awaited {
    Request(SessionId, RequestNumber),
    Open(SessionId),
    End(SessionId),
    Member(NodeId),
    Gone(NodeId),
    Lost(NodeId),
    Copied(NodeId),
}

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: BTreeMap<Awaited, Asker>,
}

impl Waiters {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the session waits for as many requests as it may. Looks at no more than those.
    fn is_full_of(&self, session: SessionId) -> bool {
        let all = Awaited::Request(session, RequestNumber(0))..=Awaited::Request(session, RequestNumber(u64::MAX));
        self.waiting.range(all).nth(limits::SESSION_WINDOW as usize - 1).is_some()
    }

    /// A retry of a request that is in the log already is answered instead of its first attempt.
    pub fn replace(&mut self, session: SessionId, number: RequestNumber, asker: Asker) {
        if let Some(waiting) = self.waiting.get_mut(&Awaited::Request(session, number)) {
            *waiting = asker;
        }
    }

    pub fn take_all(&mut self) -> Vec<Asker> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

fn awaited(command: &Command) -> Option<Awaited> {
    match command {
        Command::Request { session, number, .. } => Some(Awaited::Request(*session, *number)),
        Command::OpenSession { session, .. } => Some(Awaited::Open(*session)),
        Command::EndSession { session } => Some(Awaited::End(*session)),
        Command::SetMember(member) => Some(Awaited::Member(member.id)),
        Command::MarkDead { node } => Some(Awaited::Gone(*node)),
        Command::Lost { node, .. } => Some(Awaited::Lost(*node)),
        Command::Copied { node, .. } => Some(Awaited::Copied(*node)),
        _ => None,
    }
}

/// The duties that a command, once applied, has fulfilled.
fn duty(command: &Command) -> Option<Duty> {
    match command {
        Command::Found { .. } => Some(Duty::Found),
        Command::SetLimits(_) => Some(Duty::Limits),
        Command::SetMember(_) => Some(Duty::Member),
        Command::MarkDead { node } => Some(Duty::Dead(*node)),
        Command::ExpireSession { session } => Some(Duty::Expire(*session)),
        Command::EvictSession { session } => Some(Duty::Evict(*session)),
        Command::OpenSession { session, .. } => Some(Duty::Revive(*session)),
        Command::Progress { session, .. } => Some(Duty::Progress(*session)),
        Command::Trim { .. } => Some(Duty::Trim),
        Command::DropLocks { session } => Some(Duty::DropLocks(*session)),
        _ => None,
    }
}

impl Node {
    /// Puts a command into the log. `NotLeader`; `Busy` when too much is on its way.
    pub(super) fn propose(&mut self, command: Command) -> Result<(), Status> {
        let entry = LogEntry { time: self.cluster_time(), command };
        let data = codec::encode(&entry, limits::CONTROL_BODY_BYTES_MAX)?;
        let now = self.now;
        self.group.as_mut().ok_or(Status::NotMember)?.propose(now, Bytes::from(data))
    }

    /// Puts a command into the log; `asker` is answered when it has been applied here, or this node stops leading.
    /// Tells whether it is in the log now.
    pub(super) fn propose_for(&mut self, asker: Asker, command: Command) -> bool {
        let full = matches!(&command, Command::Request { session, .. } if self.waiters.is_full_of(*session));
        if full || self.waiters.len() >= limits::NODE_PROPOSALS_MAX {
            self.fail(asker, Status::Busy);
            return false;
        }
        let awaited = awaited(&command);
        let early = self.sabotaged(Sabotage::AckBeforeCommit) && is_removal(&command);
        match self.propose(command) {
            Ok(()) if early => {
                let response = Response::Replied {
                    replied: Replied::Done,
                    grants: Vec::new(),
                    term: self.leads().unwrap_or_default(),
                    epoch: self.map.epoch,
                };
                self.answer(asker, Ok(response), Bytes::new());
            }
            Ok(()) => _ = awaited.map(|awaited| self.waiters.waiting.insert(awaited, asker)),
            Err(status) => {
                self.fail(asker, status);
                return false;
            }
        }
        true
    }

    /// An entry is committed: applies it, answers who waits for it, and takes up what follows from it.
    pub(super) fn on_committed(&mut self, index: u64, term: Term, data: &[u8]) {
        let empty = LogEntry { time: Timestamp::default(), command: Command::Noop };
        // Every node decodes alike, so an entry that is none changes nothing anywhere.
        let entry = if data.is_empty() { empty } else { codec::decode(data, limits::CONTROL_BODY_BYTES_MAX).unwrap_or(empty) };
        let newborn = match &entry.command {
            Command::OpenSession { session, caches } if self.namespace.session(*session).is_none() => Some((*session, *caches)),
            _ => None,
        };
        // What was done long ago is answered as it was then: it tells nothing about now, so nothing may be kept of it.
        let repeated = match &entry.command {
            Command::Request { session, number, .. } => self.namespace.outcome(*session, *number).is_some(),
            _ => false,
        };
        let mark = self.upload_mark(&entry.command);
        let result = self.namespace.apply(index, &entry);
        self.applied(index, term);
        self.settle_uploads(&entry.command, mark);
        if let Some(leading) = &mut self.leading {
            match newborn.filter(|_| result.is_ok()) {
                Some((session, _)) if term == leading.term() => {
                    leading.holds.begin(session);
                    leading.rights.begin(session);
                }
                // It was opened under an earlier leader, who may have given it anything.
                Some((session, true)) => leading.gate.add_unknown(session),
                _ => {}
            }
            if term == leading.term() {
                leading.gate.start();
            }
            duty(&entry.command).into_iter().for_each(|duty| leading.settle(duty));
            if let Command::Reap { .. } = entry.command {
                leading.reaping.clear();
                leading.wake(self.now);
            }
            if let Command::Trim { .. } = entry.command {
                leading.wake(self.now);
            }
            hold_created(leading, &entry.command, &result);
        }
        if let Command::Lost { node, items } = &entry.command {
            self.on_lost_applied(*node, items);
            self.on_copies_lost();
        }
        if let Command::Request { session, op, .. } = &entry.command {
            self.on_lock_applied(*session, op, &result);
        }
        for effect in self.namespace.drain_effects() {
            self.on_effect(effect);
        }
        if let Command::Request { session, number, op, .. } = &entry.command {
            if let (Op::Write { ino, behind: Some(_), .. }, Some(leading), true) = (op, &mut self.leading, result.is_ok() && !repeated) {
                leading.gate.on_flushed(self.now, *session, *ino);
            }
            self.pass_gate(*session, *number);
        }
        if let Some(asker) = awaited(&entry.command).and_then(|awaited| self.waiters.waiting.remove(&awaited)) {
            let result = self.soften_no_space(&entry.command, result);
            let mut answer = self.response(&entry.command, result);
            if let (Command::Request { session, op, .. }, Ok(Response::Replied { replied, grants, .. })) = (&entry.command, &mut answer)
                && !repeated
            {
                *grants = self.grant_with_reply(asker, *session, op, replied);
            }
            self.answer(asker, answer, Bytes::new());
        }
    }

    /// "No space" is said only when waiting a moment would not help. Who gets less reserved than wanted has others asked as well.
    fn soften_no_space(&mut self, command: &Command, result: Result<Replied, Status>) -> Result<Replied, Status> {
        match (command, &result) {
            (_, Err(Status::NoSpace)) if self.is_reclaiming() => Err(Status::Reclaiming),
            (Command::Request { session, op, .. }, Err(Status::NoSpace)) if self.ask_for_reserved(*session, op) => Err(Status::Reclaiming),
            (Command::Request { session, op: op @ Op::Reserve { bytes: wanted }, .. }, Ok(Replied::Reserved { bytes }))
                if bytes < wanted =>
            {
                self.ask_for_reserved(*session, op);
                result
            }
            _ => result,
        }
    }

    /// The configuration changed in the log.
    pub(super) fn on_configured(&mut self, index: u64, term: Term, configuration: &Configuration) {
        if index > self.namespace.applied() {
            self.namespace.set_voters(index, configuration.voters.iter().copied().collect());
            self.applied(index, term);
        }
        for effect in self.namespace.drain_effects() {
            self.on_effect(effect);
        }
        if let Some(leading) = &mut self.leading {
            leading.settle(Duty::Configuration);
            leading.wake(self.now);
        }
    }

    fn applied(&mut self, index: u64, term: Term) {
        self.applied_term = term;
        self.hear_time();
        if let Some(group) = &mut self.group {
            group.applied_to(index);
        }
    }

    fn response(&self, command: &Command, result: Result<Replied, Status>) -> Result<Response, Failure> {
        let epoch = self.map.epoch;
        let failure = |status: Status| Failure { epoch, ..status.into() };
        let replied = result.map_err(failure)?;
        let term = self.leads().unwrap_or_default();
        Ok(match command {
            Command::Request { .. } => Response::Replied { replied, grants: Vec::new(), term, epoch },
            Command::OpenSession { session, caches } => {
                let known = self.leading.as_ref().map_or(0, |leading| leading.rights.era(*session));
                let era = if *caches { known } else { 1 };
                Response::Renewed { term, epoch, time: self.cluster_time(), era }
            }
            Command::Copied { .. } => Response::Copied { applied: self.namespace.applied() },
            Command::SetMember(member) if member.state == MemberState::Live => Response::Joined { map: self.map.clone() },
            _ => Response::Done,
        })
    }
}

/// A creation that opens what it makes counts as held from the very entry on, so that no removal can come between. Also the repetition
/// of one under a new leader, who has not seen the first; but not a late double of one whose file was closed meanwhile.
fn hold_created(leading: &mut Leading, command: &Command, result: &Result<Replied, Status>) {
    let (Command::Request { session, op: Op::Create { hold: true, .. }, .. }, Ok(Replied::Entry { attributes, created, .. })) =
        (command, result)
    else {
        return;
    };
    if *created && leading.holds.was_released(*session, attributes.ino) {
        return;
    }
    // A session beyond its bound loses this protection only; it is told `Busy` by its next `Hold`.
    let _ = leading.holds.hold(*session, attributes.ino, 0);
}

fn is_removal(command: &Command) -> bool {
    matches!(command, Command::Request { op: Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. }, .. })
}
