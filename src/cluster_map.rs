//! The cluster map: who is a member, where, and with what weight. Replicated in the namespace log, pushed to everyone.
//!
//! A pure value. Everything about placement is a pure function of it, so whoever has the same epoch computes the same owners.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::types::{Address, ClusterId, Epoch, NodeId};

/// What the cluster thinks of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Serves.
    Live,
    /// Serves what it has, gets nothing new (draining).
    Leaving,
    /// Declared dead: this incarnation is never heard again.
    Dead,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    /// Where clients and other nodes reach it.
    pub address: Address,
    /// RAM it lends for chunks, in bytes; 0 for a node that only votes. Also its weight in placement.
    pub memory: u64,
    /// Fault zone; empty where none was named.
    pub zone: String,
    pub state: MemberState,
}

impl Member {
    /// Whether new chunks may be placed on it.
    pub fn stores(&self) -> bool {
        self.state == MemberState::Live && self.memory > 0
    }
}

/// Members, epoch, replication. Members are sorted by id; the dead stay listed until their address is taken by a new incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    /// Replicas of each chunk.
    pub replicas: u8,
    pub members: Vec<Member>,
    /// Voters of the namespace group, by id, as the log last configured them.
    pub voters: Vec<NodeId>,
    /// Whether there were ever three nodes at once (decides whether fewer count as "degraded").
    pub had_three: bool,
}

impl ClusterMap {
    /// The member of that id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |member| member.id).ok().map(|index| &self.members[index])
    }

    /// Whether that incarnation is a member that has not been declared dead.
    pub fn is_living(&self, id: NodeId) -> bool {
        self.member(id).is_some_and(|member| member.state != MemberState::Dead)
    }

    /// Nodes on which new chunks may be placed.
    pub fn storage_nodes(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.stores())
    }

    /// Receipts that a commit needs: R, or all storage nodes while there are fewer.
    pub fn receipts_needed(&self) -> usize {
        (self.replicas as usize).min(self.storage_nodes().count())
    }

    /// Why the cluster keeps less than it promises, if so; one sentence.
    pub fn degraded(&self) -> Option<String> {
        let stores = self.storage_nodes().count();
        let living = self.members.iter().filter(|member| member.state != MemberState::Dead).count();
        let voting = self.voters.iter().filter(|&&voter| self.is_living(voter)).count();
        if stores < self.replicas as usize {
            return Some(format!("{stores} of {} storage nodes that replication needs", self.replicas));
        }
        if voting < limits::VOTERS {
            return Some(format!("{voting} of {} namespace voters, {living} nodes; start more nodes", limits::VOTERS));
        }
        None
    }

    /// Checks a map that came over the wire: sorted, bounded.
    pub fn is_well_formed(&self) -> bool {
        self.members.len() <= limits::NODES_MAX
            && self.voters.len() <= limits::NODES_MAX
            && self.members.windows(2).all(|pair| pair[0].id < pair[1].id)
            && (1..=limits::HOLDERS_MAX as u8).contains(&self.replicas)
    }
}
