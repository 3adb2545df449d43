//! What becomes of a cluster that has lost the majority of its voters for good: one survivor goes on with the tree as a new cluster, the
//! others give up their copies and join it. Both happen only when a person says so (`dfs recover`), who alone can know that the lost
//! voters do not live behind a broken wire.
//!
//! The new cluster has another id, which every handshake names: no node, client or message of the old one gets into it, whoever of the
//! old one comes back and whenever. Should its majority live after all, it finds a new incarnation at the survivor's address, counts the
//! old one out, and goes on beside the new cluster.

use std::time::Duration;

use bytes::Bytes;

use dfs::limits;
use dfs::status::Status;
use dfs::types::{Address, ClusterId, Epoch};
use dfs::wire::message::{Response, Standing};

use super::joining::Stage;
use super::{Asker, Node};
use crate::raft::{self, Group};

impl Node {
    /// What decides whether this cluster can go on, and with whose copy of the tree.
    pub(super) fn report_standing(&self) -> Standing {
        let Some(group) = &self.group else { return Standing::default() };
        let configuration = group.configuration();
        let sets = [&configuration.voters, &configuration.outgoing].into_iter().filter(|set| !set.is_empty());
        Standing {
            quorums: sets.map(|set| set.iter().copied().collect()).collect(),
            log: if self.has_tree() { group.position() } else { Default::default() },
            leaderless_ms: self.leaderless().as_millis() as u64,
            lineage: self.namespace.lineage().collect(),
        }
    }

    /// Whether what is applied here is the tree of this node's cluster. One that is being formed has none yet.
    fn has_tree(&self) -> bool {
        let map = self.namespace.map();
        self.group.is_some() && map.cluster.0 != 0 && map.cluster == self.cluster && !self.map.is_forming()
    }

    /// How long nobody has been heard to lead.
    fn leaderless(&self) -> Duration {
        if self.leading.is_some() { Duration::ZERO } else { self.now.since(self.leader_heard.max(self.led)) }
    }

    /// Whether this node may leave its cluster for another: there must be nobody who leads it.
    fn is_forsaken(&self) -> bool {
        self.leaderless() >= limits::LEADERLESS_MIN && self.leaving.is_none() && self.stage != Stage::Stopped
    }

    /// Somebody has decided that this node is to go on with the tree.
    pub(super) fn on_recover(&mut self, asker: Asker, cluster: ClusterId) {
        if cluster != self.cluster && self.has_tree() && self.namespace.lineage().any(|old| old == cluster) {
            // Asked before: the answer was lost, or two had the same idea.
            return self.answer(asker, Ok(Response::Done), Bytes::new());
        }
        if cluster != self.cluster || cluster.0 == 0 {
            return self.fail(asker, Status::WrongCluster);
        }
        if !self.has_tree() || !self.is_forsaken() {
            return self.fail(asker, Status::Conflict);
        }
        // Before the links are closed, this one among them.
        self.answer(asker, Ok(Response::Done), Bytes::new());
        self.go_on_alone();
    }

    /// Forms a new cluster with the tree as it is here. What is in the log and not known to be committed counts: it may have been, and been
    /// answered, and an election among the survivors would have kept it, too.
    fn go_on_alone(&mut self) {
        let Some(group) = &self.group else { return };
        let (tail, term) = (group.tail(), group.term());
        let old = self.cluster;
        // From here on nothing is said to the old cluster, and what follows is applied without it.
        self.resign();
        self.group = None;
        self.namespace.end_snapshot();
        for (index, term, data) in tail {
            match data {
                Some(data) => self.on_committed(index, term, &data),
                None => self.namespace.set_voters(index, self.namespace.map().voters.clone()),
            }
        }
        self.cluster = self.draw_cluster();
        self.take_new_id();
        let epoch = Epoch(self.map.epoch.max(self.namespace.map().epoch).0 + 1);
        self.namespace.go_on(self.cluster, self.member(), epoch);
        self.map = self.namespace.map().clone();
        self.applied_term = term;
        let start = raft::Start::Survivor { index: self.namespace.applied(), term };
        let random = self.random.fork();
        self.group = Some(Group::new(self.id, start, random, self.now, raft::Settings::lending(self.config.memory)));
        self.stage = Stage::CatchingUp { since: self.now };
        self.leader_heard = self.now;
        tracing::warn!(%old, new = %self.cluster, applied = self.namespace.applied(), "goes on alone as a new cluster");
    }

    /// Another node goes on with the tree of this one's cluster.
    pub(super) fn on_rejoin(&mut self, asker: Asker, cluster: ClusterId, to: Address) {
        if cluster != self.cluster {
            return self.fail(asker, Status::WrongCluster);
        }
        if to == self.config.address {
            return self.fail(asker, Status::InvalidArgument);
        }
        if self.cluster.0 == 0 {
            // It belongs to nothing: told before, or started anew. One more place to ask.
            self.joining.turn_to(self.now, to, false);
            return self.answer(asker, Ok(Response::Done), Bytes::new());
        }
        if !self.is_forsaken() {
            return self.fail(asker, Status::Conflict);
        }
        tracing::warn!(%cluster, %to, "gives up its copy of the tree and joins the cluster that goes on with it");
        self.answer(asker, Ok(Response::Done), Bytes::new());
        self.cluster = ClusterId(0);
        // Nobody of the old cluster is asked to take this node in, should one come back.
        self.map = Default::default();
        self.reincarnate();
        self.joining.turn_to(self.now, to, true);
    }
}
