//! Becoming a member: forming, joining, catching up, and coming back under a new incarnation after having been declared dead.
//!
//! Level-triggered: every round asks everybody who may know the leader, until the map names this node and the log has caught up.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use dfs::cluster_map::{ClusterMap, MemberState, voters_wanted};
use dfs::limits;
use dfs::links::Peer;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Address, ClusterId, Epoch, NodeId, Timestamp};
use dfs::wire::message::{Failure, Request};

use super::leader::Duty;
use super::leaving::Leaving;
use super::{Node, NodeConfig, NodeOutput, Purpose, Start};
use crate::namespace::{Command, Namespace, SpaceLimits};
use crate::raft::{self, Group};

/// How far the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No member yet.
    Joining,
    /// A member whose log is behind, or whose vote is wanting.
    CatchingUp {
        since: Time,
    },
    /// Ready.
    Serving,
    Stopped,
}

/// Whom to ask, and when next.
#[derive(Debug)]
pub(super) struct Joining {
    /// Addresses from the command line, from hints, and from maps of an earlier life.
    candidates: BTreeSet<Address>,
    ask_at: Time,
}

/// What a map says of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Living,
    /// Declared dead. As long as nobody has taken its place it may come back, with all that it remembers.
    Dead,
    /// No member any more.
    Replaced,
}

impl Joining {
    pub fn new(config: &NodeConfig, now: Time) -> Self {
        let candidates = match &config.start {
            Start::Bootstrap { .. } => BTreeSet::new(),
            Start::Join(addresses) | Start::Peers { peers: addresses, .. } => {
                addresses.iter().filter(|&address| *address != config.address).cloned().collect()
            }
        };
        Joining { candidates, ask_at: now }
    }

    pub fn next_deadline(&self) -> Time {
        self.ask_at
    }

    /// Ask there; nobody else, if `only`.
    pub fn turn_to(&mut self, now: Time, address: Address, only: bool) {
        if only {
            self.candidates.clear();
        }
        if self.candidates.len() < limits::NODES_MAX {
            self.candidates.insert(address);
        }
        self.ask_at = now;
    }

    /// Look around in this turn.
    pub fn look_at(&mut self, now: Time) {
        self.ask_at = now;
    }
}

impl Node {
    /// Forms a new cluster with this node as the only voter.
    pub(super) fn found(&mut self) {
        self.cluster = self.draw_cluster();
        self.links.set_cluster(self.cluster);
        self.announce();
        self.namespace.set_voters(1, vec![self.id]);
        let random = self.random.fork();
        self.group = Some(Group::new(self.id, raft::Start::Founder, random, self.now, raft::Settings::lending(self.config.memory)));
        self.stage = Stage::CatchingUp { since: self.now };
    }

    /// A cluster id that nobody else has.
    pub(super) fn draw_cluster(&mut self) -> ClusterId {
        let (high, low) = (self.random.next_id(), self.random.next());
        ClusterId(u128::from(high) << 64 | u128::from(low))
    }

    /// What there is to do about the stage, now.
    pub(super) fn pursue_stage(&mut self) {
        let standing = self.standing();
        if self.stage != Stage::Joining && self.leaving.is_none() && standing == Standing::Replaced {
            return self.reincarnate();
        }
        if standing == Standing::Dead && self.leading.is_some() {
            // It was counted out, and elected all the same: nobody else can take it in again.
            self.pursue(Duty::Member, Command::SetMember(self.member()));
        }
        if let Stage::CatchingUp { since } = self.stage {
            self.check_ready(since);
        }
        self.pursue_leaving();
        if self.now < self.joining.ask_at || self.stage == Stage::Stopped {
            return;
        }
        self.joining.ask_at = self.now + limits::JOIN_RETRY;
        self.pursue_forming();
        let (silent, unpinged) = (self.now.since(self.leader_heard), self.now.since(self.pinged));
        match self.stage {
            Stage::Joining => self.ask_to_join(),
            // It goes on as a voter while it asks: the others may need its vote to take it in again.
            Stage::CatchingUp { .. } | Stage::Serving
                if standing == Standing::Dead && self.leading.is_none() && self.wants_back_in(silent) =>
            {
                self.ask_to_join()
            }
            Stage::CatchingUp { .. } if silent > limits::ELECTION_TIMEOUT && self.leading.is_none() => self.ask_to_join(),
            Stage::CatchingUp { .. } | Stage::Serving if unpinged > limits::NODE_DEAD_AFTER && self.leading.is_none() => self.ask_for_map(),
            _ => {}
        }
    }

    /// Whether this node, declared dead, is to be a member again. One that is leaving asks to be counted out, which leads there if it has to;
    /// but who leads it may not know any more.
    fn wants_back_in(&self, silent: Duration) -> bool {
        match &self.leaving {
            None => true,
            Some(Leaving::Handing { .. }) => silent > limits::NODE_DEAD_AFTER,
            Some(Leaving::Stopping { .. }) => false,
        }
    }

    /// The leader has made this node a member, or says that it is one already.
    pub(super) fn on_joined(&mut self, map: &ClusterMap) {
        let foreign = self.cluster != ClusterId(0) && self.cluster != map.cluster;
        if !map.is_well_formed() || foreign || map.cluster == ClusterId(0) || !map.is_living(self.id) {
            return;
        }
        if self.stage != Stage::Joining {
            return self.adopt_map(map);
        }
        tracing::info!(cluster = %map.cluster, node = %self.id, epoch = map.epoch.0, "joined");
        self.cluster = map.cluster;
        self.links.set_cluster(map.cluster);
        self.announce();
        self.adopt_map(map);
        let random = self.random.fork();
        self.group = Some(Group::new(self.id, raft::Start::Joiner, random, self.now, raft::Settings::lending(self.config.memory)));
        (self.leader_heard, self.pinged) = (self.now, self.now);
        self.stage = Stage::CatchingUp { since: self.now };
    }

    pub(super) fn on_join_refused(&mut self, failure: Failure) {
        if let Some((_, address)) = failure.leader
            && address != self.config.address
            && self.joining.candidates.len() < limits::NODES_MAX
            && self.joining.candidates.insert(address)
        {
            self.joining.ask_at = self.now;
        }
        if failure.status == Status::Conflict {
            // This incarnation was taken off the map while it asked.
            self.reincarnate();
        }
    }

    fn ask_to_join(&mut self) {
        let member = self.member();
        let mut addresses = self.joining.candidates.clone();
        addresses.extend(self.map.members.iter().filter(|other| other.id != self.id).map(|other| other.address.clone()));
        for address in addresses {
            let peer = Peer { address, node: None };
            let request = Request::Join { member: member.clone() };
            let ticket = self.links.request(self.now, &peer, request, Bytes::new(), limits::ATTEMPT_TIMEOUT);
            self.tickets.insert(ticket, Purpose::Join);
        }
    }

    /// No leader counts on this node any more: perhaps it was declared dead, or replaced, without hearing of it. That its vote still counts does
    /// not tell; and the log, which would, may have gone on too far.
    fn ask_for_map(&mut self) {
        let others: Vec<NodeId> = self.map.members.iter().map(|member| member.id).filter(|&node| node != self.id).collect();
        for node in others {
            let known = self.map.epoch;
            self.ask(node, Request::Map { known }, Purpose::FetchMap, limits::ATTEMPT_TIMEOUT);
        }
    }

    /// What the newest map says of this incarnation. A map from before the first one that named it says nothing.
    fn standing(&self) -> Standing {
        if self.map.epoch == Epoch(0) || self.map.cluster != self.cluster || self.map.voters == [self.id] {
            return Standing::Living;
        }
        match self.map.member(self.id).map(|member| member.state) {
            Some(MemberState::Dead) => Standing::Dead,
            Some(_) => Standing::Living,
            None => Standing::Replaced,
        }
    }

    /// Comes back under a new id: those who counted the old one out must stay right. The chunks stay, and are asked about.
    pub(super) fn reincarnate(&mut self) {
        let known = self.map.members.iter().filter(|member| member.state != MemberState::Dead && member.address != self.config.address);
        self.joining.candidates.extend(known.map(|member| member.address.clone()));
        self.joining.ask_at = self.now;
        self.take_new_id();
        self.group = None;
        self.namespace = Namespace::new(SpaceLimits::default());
        self.time_heard = (self.now, Timestamp::default());
        self.map = ClusterMap::default();
        self.stage = Stage::Joining;
    }

    /// Goes on under another id, without the links of the old one and all that was asked over them.
    pub(super) fn take_new_id(&mut self) {
        let old = self.id;
        self.id = NodeId(self.random.next_id());
        tracing::warn!(%old, new = %self.id, "goes on as a new incarnation");
        self.resign();
        for &link in self.incoming.keys() {
            self.outputs.push_back(NodeOutput::Link(dfs::link::LinkAction::Close { link }));
        }
        self.incoming.clear();
        self.session_links.clear();
        self.links.restart(self.id.0);
        self.links.set_cluster(self.cluster);
        self.tickets.clear();
        self.transfers = Default::default();
        self.storage = Default::default();
        self.repair.reset(self.config.rate);
        self.announce();
    }

    /// Ready: a member whose log has caught up, and a voter if one is wanting. The vote is waited for only so long: without it
    /// the node serves as well.
    fn check_ready(&mut self, since: Time) {
        if self.map.is_forming() {
            // Nobody is served before all are in.
            self.stage = Stage::CatchingUp { since: self.now };
            return;
        }
        let Some(group) = &self.group else { return };
        let heard = group.is_leader() || self.now.since(self.leader_heard) < limits::ELECTION_TIMEOUT;
        let caught_up = group.leader().is_some() && heard && group.applied_index() >= group.commit_index();
        let member = self.namespace.map().is_living(self.id) && self.namespace.map().epoch == self.map.epoch;
        // While two configurations decide together the old one must not lose anybody either: a node that says "ready" then would invite
        // its caller to stop the only old voter.
        let settled = !group.configuration().is_joint() && !self.vote_is_wanting();
        let voted = settled || self.now.since(since) >= limits::VOTE_WAIT_MAX;
        if caught_up && member && voted {
            self.stage = Stage::Serving;
            tracing::info!(cluster = %self.cluster, node = %self.id, "ready");
            self.outputs.push_back(NodeOutput::Ready { cluster: self.cluster, node: self.id });
        }
    }

    /// Whether the namespace has fewer voters than it should, and this node is none.
    fn vote_is_wanting(&self) -> bool {
        // Those that leave get no vote.
        let staying = self.map.members.iter().filter(|member| member.state == MemberState::Live).count();
        let voting = self.map.voters.iter().filter(|&&voter| self.map.is_living(voter)).count();
        voting < voters_wanted(staying) && !self.map.voters.contains(&self.id)
    }
}

/// Interval at which a node without a leader looks around must not outrun the links' own patience.
const _: () = assert!(limits::JOIN_RETRY.as_nanos() >= Duration::from_millis(50).as_nanos());
