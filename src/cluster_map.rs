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

/// Voters of the namespace that so many nodes should have. Always odd: an even number bears no more deaths than one less.
pub fn voters_wanted(nodes: usize) -> usize {
    match nodes {
        limits::VOTERS_MAX.. => limits::VOTERS_MAX,
        limits::VOTERS.. => limits::VOTERS,
        _ => 1,
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
    /// Listed addresses, sorted, whose nodes have not joined yet. While there are any the cluster is being formed: nobody is served, and
    /// the founder alone votes. Empty from then on for good.
    pub awaited: Vec<Address>,
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

    /// Whether nodes of the list from which the cluster is being formed are still missing.
    pub fn is_forming(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Whether a node at that address may join: anybody, once the cluster is formed; before that only who is listed.
    pub fn admits(&self, address: &Address) -> bool {
        !self.is_forming() || self.awaited.contains(address) || self.members.iter().any(|member| member.address == *address)
    }

    /// Receipts that a commit needs: R, or all storage nodes while there are fewer.
    pub fn receipts_needed(&self) -> usize {
        (self.replicas as usize).min(self.storage_nodes().count())
    }

    /// Why the cluster keeps less than it promises, if so; one sentence.
    pub fn degraded(&self) -> Option<String> {
        if self.is_forming() {
            let missing = self.awaited.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Some(format!("the cluster is being formed and waits for {missing}"));
        }
        let stores = self.storage_nodes().count();
        let living = self.members.iter().filter(|member| member.state != MemberState::Dead).count();
        let voting = self.voters.iter().filter(|&&voter| self.is_living(voter)).count();
        if stores < self.replicas as usize {
            return Some(format!("{stores} of {} storage nodes that replication needs", self.replicas));
        }
        // Any one voter must be able to die: more than a bare majority has to live.
        let voters = self.voters.len().max(limits::VOTERS);
        if voting <= voters / 2 + 1 && voting < voters {
            return Some(format!("{voting} of {voters} namespace voters, {living} nodes; start more nodes"));
        }
        None
    }

    /// Checks a map that came over the wire: sorted, bounded.
    pub fn is_well_formed(&self) -> bool {
        self.members.len() <= limits::NODES_MAX
            && self.voters.len() <= limits::NODES_MAX
            && self.awaited.len() <= limits::NODES_MAX
            && self.members.windows(2).all(|pair| pair[0].id < pair[1].id)
            && (1..=limits::HOLDERS_MAX as u8).contains(&self.replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of so many nodes, the first of which vote.
    fn map(replicas: u8, nodes: u64, voters: u64) -> ClusterMap {
        let member = |id| Member {
            id: NodeId(id),
            address: Address::Tcp { host: "n".into(), port: id as u16 },
            memory: 1 << 20,
            zone: String::new(),
            state: MemberState::Live,
        };
        let members = (1..=nodes).map(member).collect();
        ClusterMap { replicas, members, voters: (1..=voters).map(NodeId).collect(), ..ClusterMap::default() }
    }

    #[test]
    fn as_many_receipts_as_copies_or_nodes() {
        for (replicas, nodes, needed) in [(1, 0, 0), (1, 3, 1), (2, 1, 1), (2, 3, 2), (3, 2, 2), (3, 4, 3), (8, 9, 8)] {
            assert_eq!(map(replicas, nodes, 3).receipts_needed(), needed, "{replicas} copies, {nodes} nodes");
        }
    }

    #[test]
    fn degraded_is_what_no_voter_may_die_of() {
        let health = |nodes: u64, voters: u64, dead: &[usize]| {
            let mut map = map(1, nodes, voters);
            dead.iter().for_each(|&at| map.members[at].state = MemberState::Dead);
            map.degraded().map(|text| text.split(';').next().unwrap_or_default().to_string())
        };
        assert_eq!(health(3, 3, &[]), None);
        assert_eq!(health(3, 3, &[0]).unwrap(), "2 of 3 namespace voters, 2 nodes");
        assert_eq!(health(1, 1, &[]).unwrap(), "1 of 3 namespace voters, 1 nodes");
        assert_eq!(health(5, 3, &[]), None, "two more votes are on their way");
        assert_eq!(health(5, 5, &[4]), None);
        assert_eq!(health(5, 5, &[3, 4]).unwrap(), "3 of 5 namespace voters, 3 nodes");
        assert_eq!(health(5, 3, &[3, 4]), None, "the dead vote no more");
    }

    #[test]
    fn degraded_is_what_keeps_fewer_copies_than_promised() {
        assert_eq!(map(1, 3, 3).degraded(), None);
        assert_eq!(map(3, 3, 3).degraded(), None);
        assert!(map(3, 2, 1).degraded().unwrap().starts_with("2 of 3 storage nodes"));
        let mut three = map(3, 4, 3);
        three.members[3].memory = 0;
        assert_eq!(three.degraded(), None);
        three.members[2].state = MemberState::Dead;
        assert!(three.degraded().unwrap().starts_with("2 of 3 storage nodes"));
    }
}
