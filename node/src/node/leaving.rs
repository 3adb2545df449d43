//! Going: at once, with the whole cluster, or after handing over leadership, the vote and all data; of its own accord or drained.

use bytes::Bytes;

use dfs::cluster_map::{Member, MemberState};
use dfs::limits;
use dfs::link::{Frame, Lane, LinkAction, Role};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::NodeId;
use dfs::wire::message::{Body, Failure, Notice, Request, Response};

use super::joining::Stage;
use super::{Asker, Node, NodeOutput, Purpose, Sabotage};
use crate::namespace::Command;

/// How far the leaving is.
#[derive(Debug)]
pub(super) enum Leaving {
    /// Leadership, vote and data are being handed over.
    Handing { until: Time, next_try: Time, asking: bool },
    /// What was said last is given time to reach the others.
    Stopping { at: Time, reason: String },
}

impl Leaving {
    pub fn next_deadline(&self) -> Time {
        match self {
            Leaving::Handing { until, next_try, asking } => {
                if *asking {
                    *until
                } else {
                    (*until).min(*next_try)
                }
            }
            Leaving::Stopping { at, .. } => *at,
        }
    }
}

impl Node {
    /// Hands over leadership, vote and data where somebody can take them, then stops; at most half a minute later.
    pub fn leave(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.dirty = true;
        self.begin_leaving(self.now + limits::LEAVE_TIME_MAX);
    }

    /// The cluster has been told to drain this node: it goes when everything else has gone, however long that takes.
    fn heed_drain(&mut self) {
        let drained = self.map.member(self.id).is_some_and(|member| member.state == MemberState::Leaving);
        if drained && self.stage == Stage::Serving {
            self.begin_leaving(Time::NEVER);
        }
    }

    fn begin_leaving(&mut self, until: Time) {
        if let Some(Leaving::Handing { until: present, .. }) = &mut self.leaving {
            *present = until.min(*present);
            return;
        }
        if self.leaving.is_some() || self.stage == Stage::Stopped {
            return;
        }
        // A cluster that is being formed holds nothing that could be handed over.
        if self.stage == Stage::Joining || self.map.is_forming() {
            return self.stop_soon("stopped before it joined");
        }
        tracing::info!("leaving");
        self.leaving = Some(Leaving::Handing { until, next_try: self.now, asking: false });
    }

    /// Stops after a moment, in which the last words are sent.
    pub(super) fn stop_soon(&mut self, reason: &str) {
        if matches!(self.leaving, Some(Leaving::Stopping { .. })) || self.stage == Stage::Stopped {
            return;
        }
        self.leaving = Some(Leaving::Stopping { at: self.now + limits::STOP_GRACE, reason: reason.to_string() });
    }

    pub(super) fn pursue_leaving(&mut self) {
        let now = self.now;
        if self.leaving.is_none() {
            self.heed_drain();
        }
        match &mut self.leaving {
            Some(Leaving::Stopping { at, reason }) if now >= *at => {
                let reason = reason.clone();
                tracing::info!(reason, "stopped");
                self.stage = Stage::Stopped;
                self.outputs.push_back(NodeOutput::Stopped { reason });
            }
            Some(Leaving::Handing { until, .. }) if now >= *until => self.leave_undone(),
            Some(Leaving::Handing { next_try, asking, .. }) if !*asking && now >= *next_try => {
                *next_try = now + limits::JOIN_RETRY;
                self.hand_over();
            }
            _ => {}
        }
    }

    fn hand_over(&mut self) {
        let now = self.now;
        let me = self.id;
        let others = self.map.members.iter().filter(|member| member.id != me && member.state == MemberState::Live);
        let others: Vec<NodeId> = others.map(|member| member.id).collect();
        let Some(group) = &mut self.group else { return self.stop_soon("left") };
        if !group.is_leader() {
            let leader = group.leader();
            let asked = leader.is_some_and(|leader| self.ask(leader, Request::Leave, Purpose::Leave, limits::ATTEMPT_TIMEOUT));
            if let Some(Leaving::Handing { asking, .. }) = &mut self.leaving {
                *asking = asked;
            }
            return;
        }
        let able = |node: &&NodeId| group.caught_up(**node);
        let voter = others.iter().filter(able).find(|&&node| group.configuration().voters.contains(&node)).copied();
        let spare = others.iter().filter(able).find(|&&node| group.configuration().learners.contains(&node)).copied();
        match (voter, spare) {
            (Some(voter), _) => _ = group.transfer(now, voter),
            (None, Some(spare)) => {
                let mut voters = group.configuration().voters.clone();
                let mut learners = group.configuration().learners.clone();
                learners.remove(&spare);
                voters.insert(spare);
                let _ = group.propose_voters(now, &voters, &learners);
            }
            (None, None) if others.is_empty() => self.stop_soon("left as the last node"),
            (None, None) => {}
        }
    }

    /// Time is up, and something is still here.
    fn leave_undone(&mut self) {
        let chunks = self.namespace.chunks_on(self.id);
        if chunks > 0 {
            tracing::warn!(
                chunks,
                "leaving before these chunks were copied elsewhere; the others make their copies from those that are left"
            );
        }
        self.stop_soon("left without a successor");
    }

    /// The leader has counted this node out.
    pub(super) fn on_left(&mut self) {
        let chunks = self.namespace.chunks_on(self.id);
        if chunks > 0 {
            tracing::warn!(chunks, "the others have no room for copies of these chunks");
        }
        self.stop_soon("left");
    }

    /// Somebody asks that a node be drained.
    pub(super) fn on_drain(&mut self, asker: Asker, node: NodeId) {
        if self.leads().is_none() {
            return self.fail(asker, Status::NotLeader);
        }
        let Some(member) = self.map.member(node).filter(|member| member.state != MemberState::Dead).cloned() else {
            return self.fail(asker, Status::NotMember);
        };
        if member.state == MemberState::Leaving {
            return self.answer(asker, Ok(Response::Done), Bytes::new());
        }
        match self.refusal_without(node) {
            Some(status) => self.fail(asker, status),
            None => {
                tracing::info!(%node, "draining");
                _ = self.propose_for(asker, Command::SetMember(Member { state: MemberState::Leaving, ..member }));
            }
        }
    }

    /// Why the cluster cannot do without what that node lends, if so.
    fn refusal_without(&self, node: NodeId) -> Option<Status> {
        let mut map = self.namespace.map().clone();
        map.members.retain(|member| member.id != node);
        let stores = map.storage_nodes().count();
        if stores < usize::from(map.replicas) && self.namespace.map().storage_nodes().count() > stores {
            return Some(Status::Degraded);
        }
        let usage = self.namespace.usage();
        let used = usage.charged_bytes + usage.namespace_bytes + usage.reserved_bytes;
        (used > dfs::capacity::capacity(&map)).then_some(Status::NoSpace)
    }

    /// Whether what that node holds is on its way to others who have room for it.
    fn is_moving_off(&self, node: NodeId) -> bool {
        !self.sabotaged(Sabotage::DrainLeavesEarly)
            && self.namespace.chunks_on(node) > 0
            && self.namespace.map().storage_nodes().next().is_some()
            && self.refusal_without(node) != Some(Status::NoSpace)
    }

    pub(super) fn on_leave_refused(&mut self, _failure: Failure) {
        if let Some(Leaving::Handing { asking, .. }) = &mut self.leaving {
            *asking = false;
        }
    }

    /// A member wants to go. It is marked first, so that its vote and its data are given away; asked again after that, it is counted out.
    /// Who was counted out with nothing left here is told so again.
    pub(super) fn on_leave(&mut self, asker: Asker, node: NodeId) {
        if self.leads().is_none() {
            return self.fail(asker, Status::NotLeader);
        }
        let Some(member) = self.map.member(node).cloned() else {
            return self.answer(asker, Ok(Response::Done), Bytes::new());
        };
        if member.state == MemberState::Dead && !self.is_moving_off(node) {
            return self.answer(asker, Ok(Response::Done), Bytes::new());
        }
        // One that was declared dead on its way has come back: what it alone may hold moves off only while it counts as there.
        if member.state != MemberState::Leaving {
            let _ = self.propose(Command::SetMember(Member { state: MemberState::Leaving, ..member }));
            return self.fail(asker, Status::Busy);
        }
        let Some(group) = &self.group else { return };
        let configuration = group.configuration();
        let spare = self.map.members.iter().any(|other| {
            other.state == MemberState::Live && group.caught_up(other.id) && !configuration.is_voter(other.id) && other.id != node
        });
        if configuration.is_voter(node) && (spare || configuration.voters.len() == 2) {
            return self.fail(asker, Status::Busy);
        }
        if self.is_moving_off(node) {
            return self.fail(asker, Status::Busy);
        }
        self.propose_for(asker, Command::MarkDead { node });
    }

    /// A client asks for the end of the whole cluster.
    pub(super) fn on_shutdown(&mut self, asker: Asker) {
        if self.leads().is_none() {
            return self.fail(asker, Status::NotLeader);
        }
        tracing::info!("shutting the cluster down");
        for node in self.others_living() {
            self.tell(node, Notice::Stop, Bytes::new());
        }
        self.answer(asker, Ok(Response::Done), Bytes::new());
        let clients = self.incoming.iter().filter(|(_, peer)| peer.role == Role::Client && peer.lane == Lane::Control);
        for (&link, _) in clients {
            let frame = Frame { request: 0, body: Body::Notice(Notice::Stop), payload: Bytes::new() };
            self.outputs.push_back(NodeOutput::Link(LinkAction::Send { link, frame }));
        }
        self.stop_soon("the cluster was shut down");
    }
}
