//! What a storage node tells the leader about its chunks: audits of uploads, and copies that are lost. The scrubber finds some of those.

use bytes::Bytes;

use dfs::limits;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ChunkHash, Instance, NodeId, SessionId};
use dfs::wire::message::{DebugAction, Request, Response, Verdict};
use dfs::wire::namespace::Op;

use super::joining::Stage;
use super::{Asker, Node, Purpose};
use crate::namespace::Command;

/// One report of each kind is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Reports {
    auditing: bool,
    audit_after: Time,
    losing: bool,
    lose_after: Time,
}

impl Reports {
    pub fn new_leader(&mut self, now: Time) {
        *self = Reports { audit_after: now, lose_after: now, ..Reports::default() };
    }

    pub fn audit_done(&mut self) {
        self.auditing = false;
    }

    pub fn audit_failed(&mut self, now: Time) {
        (self.auditing, self.audit_after) = (false, now + limits::JOIN_RETRY);
    }

    pub fn lost_done(&mut self) {
        self.losing = false;
    }

    pub fn lost_failed(&mut self, now: Time) {
        (self.losing, self.lose_after) = (false, now + limits::JOIN_RETRY);
    }
}

impl Node {
    /// When there may be something to report. Without a leader nothing is: a new one is an event.
    pub(super) fn next_report(&self) -> Time {
        if self.leader_to_tell().is_none() {
            return Time::NEVER;
        }
        let audit = if self.storage.auditing { Time::NEVER } else { self.chunks.next_audit(self.now).max(self.storage.audit_after) };
        let nothing = self.storage.losing || self.chunks.lost(1).is_empty();
        audit.min(if nothing { Time::NEVER } else { self.storage.lose_after })
    }

    fn leader_to_tell(&self) -> Option<NodeId> {
        self.group.as_ref().filter(|_| matches!(self.stage, Stage::CatchingUp { .. } | Stage::Serving)).and_then(|group| group.leader())
    }

    /// Asks and tells what is due.
    pub(super) fn report_storage(&mut self) {
        let Some(leader) = self.leader_to_tell() else { return };
        let now = self.now;
        if !self.storage.losing && now >= self.storage.lose_after {
            self.report_lost(leader);
        }
        if self.storage.auditing || now < self.storage.audit_after {
            return;
        }
        if leader == self.id && !self.group.as_ref().is_some_and(|group| group.can_read(now, now)) {
            self.storage.audit_failed(now);
            return;
        }
        self.storage.audit_after = now + limits::AUDIT_INTERVAL;
        let items = self.chunks.audit_batch(now, limits::CHUNK_ITEMS_MAX);
        if items.is_empty() {
            return;
        }
        if leader == self.id {
            let verdicts = self.namespace.verdicts(self.id, &items);
            return self.on_verdicts(&items, verdicts);
        }
        let request = Request::Audit { items: items.clone() };
        self.storage.auditing = self.ask(leader, request, Purpose::Audit { items }, limits::ATTEMPT_TIMEOUT);
    }

    /// What the leader says of uploads here. It may have said so before it heard of a copy that was announced meanwhile.
    pub(super) fn on_verdicts(&mut self, items: &[(ChunkHash, Instance)], mut verdicts: Vec<Verdict>) {
        for ((hash, instance), verdict) in items.iter().zip(&mut verdicts) {
            if *verdict == Verdict::Garbage && self.is_spoken_for(hash, *instance) {
                *verdict = Verdict::Pending;
            }
        }
        let check = self.instance_check();
        self.chunks.on_verdicts(self.now, items, &verdicts, check);
    }

    /// The session of a command, and the lowest of its uploads that an operation might name before that was applied.
    pub(super) fn upload_mark(&self, command: &Command) -> Option<(SessionId, u64)> {
        let (Command::Request { session, .. } | Command::Progress { session, .. }) = command else { return None };
        self.namespace.session(*session).map(|known| (*session, known.uploads_from))
    }

    /// A command has been applied. What it made referenced here is charged to its session no longer. Nor are other uploads of referenced
    /// bytes, once no operation can name them: until then they would keep the bytes when the reference is gone.
    pub(super) fn settle_uploads(&mut self, command: &Command, mark: Option<(SessionId, u64)>) {
        let held_here = |hash: &ChunkHash| self.namespace.chunk_held(hash).filter(|held| held.holders.contains(&self.id));
        if let Command::Request { op: Op::Write { chunks: claims, .. } | Op::Fold { chunks: claims, .. }, .. } = command {
            for claim in claims {
                if held_here(&claim.hash).is_some_and(|held| held.instance == claim.instance) {
                    self.chunks.settle_upload(&claim.hash, claim.instance);
                }
            }
        }
        let Some((session, below)) = mark else { return };
        let raised = self.namespace.session(session).map_or(below, |known| known.uploads_from);
        for (hash, instance) in self.chunks.uncommitted(session, below..raised) {
            if held_here(&hash).is_some() {
                self.chunks.settle_upload(&hash, instance);
            }
        }
    }

    /// The namespace knows of lost copies.
    pub(super) fn on_lost_applied(&mut self, node: NodeId, items: &[(ChunkHash, Instance)]) {
        if node == self.id {
            self.chunks.acknowledge_lost(items);
            self.storage.lost_done();
        }
    }

    /// A leader says that these uploads are not wanted any more.
    pub(super) fn forget_uploads(&mut self, items: &[(ChunkHash, Instance)]) {
        let check = self.instance_check();
        for (hash, instance) in items {
            if self.is_spoken_for(hash, *instance) {
                self.chunks.ask_about(self.now, hash, *instance);
            } else {
                self.chunks.delete(hash, *instance, check);
            }
        }
    }

    /// Hashes the next chunk again if it is due: one per turn, so that nobody waits longer than that takes.
    pub(super) fn scrub(&mut self) {
        if let Some(hash) = self.chunks.scrub(self.now) {
            tracing::warn!(%hash, "the scrubber dropped a copy that did not match its hash");
        }
    }

    /// Somebody wants to see what the cluster does about a fault.
    pub(super) fn on_debug(&mut self, asker: Asker, action: DebugAction) {
        if !self.faults_permitted {
            return self.fail(asker, Status::NotPermitted);
        }
        match action {
            DebugAction::Flip { hash, bit } => {
                if !self.chunks.flip_bit(&hash, bit) {
                    return self.fail(asker, Status::UnknownChunk);
                }
                tracing::warn!(%hash, bit, "flipped a bit as told");
            }
            DebugAction::Drop { hash } => {
                if !self.chunks.forget(&hash) {
                    return self.fail(asker, Status::UnknownChunk);
                }
                tracing::warn!(%hash, "forgot a copy as told");
            }
            DebugAction::Scrub => self.chunks.scrub_all(),
        }
        self.answer(asker, Ok(Response::Done), Bytes::new());
    }

    fn report_lost(&mut self, leader: NodeId) {
        let items = self.chunks.lost(limits::CHUNK_ITEMS_MAX);
        if items.is_empty() {
            return;
        }
        if leader == self.id {
            // Until it is applied it may be lost with the leadership; a new leader is told again.
            match self.propose(Command::Lost { node: self.id, items }) {
                Ok(()) => self.storage.losing = true,
                Err(_) => self.storage.lost_failed(self.now),
            }
            return;
        }
        let request = Request::Lost { items: items.clone() };
        self.storage.lose_after = self.now + limits::JOIN_RETRY;
        self.storage.losing = self.ask(leader, request, Purpose::Lost { items }, limits::ATTEMPT_TIMEOUT);
    }
}
