//! Whom to ask: the leader while it is known, else the candidates in turn.

use std::collections::BTreeSet;

use crate::cluster_map::ClusterMap;
use crate::links::Peer;
use crate::types::{Address, NodeId};

/// What is believed about who leads. Beliefs cost a detour when wrong, never correctness.
#[derive(Debug)]
pub(super) struct Router {
    configured: Vec<Address>,
    leader: Option<Peer>,
    /// Counts how often a candidate was given up.
    turn: usize,
    /// Configured addresses at which another cluster answered.
    foreign: BTreeSet<Address>,
    /// To whom a request for the leader went last, and how often that was another one than before.
    spoken_to: Option<Peer>,
    ways: u64,
}

impl Router {
    pub(super) fn new(configured: Vec<Address>) -> Self {
        Router { configured, leader: None, turn: 0, foreign: BTreeSet::new(), spoken_to: None, ways: 0 }
    }

    /// A request for the leader goes to that peer. Numbers the way: only over one link do answers and recalls come in order, and one node
    /// has two if it is asked as a member and as whoever answers at its address. So an answer that came over a way left meanwhile teaches
    /// nothing.
    pub(super) fn way_to(&mut self, peer: &Peer) -> u64 {
        if self.spoken_to.as_ref() != Some(peer) {
            self.spoken_to = Some(peer.clone());
            self.ways += 1;
        }
        self.ways
    }

    /// Whether requests still go that way.
    pub(super) fn is_way(&self, way: u64) -> bool {
        way == self.ways
    }

    /// Whom to send a request for the leader.
    pub(super) fn target(&self, map: Option<&ClusterMap>) -> Option<Peer> {
        if let Some(leader) = &self.leader {
            return Some(leader.clone());
        }
        let mut candidates = self.candidates(map);
        match candidates.len() {
            0 => None,
            count => Some(candidates.swap_remove(self.turn % count)),
        }
    }

    /// Configured addresses that may still belong to the cluster.
    pub(super) fn configured(&self) -> impl Iterator<Item = &Address> {
        self.configured.iter().filter(|address| !self.foreign.contains(address))
    }

    /// A leader's work was done by `peer`.
    pub(super) fn on_leader(&mut self, peer: &Peer) {
        if self.leader.as_ref() != Some(peer) {
            self.leader = Some(peer.clone());
        }
    }

    /// `from` does not lead. Returns whether the hint names somebody else, so that it is worth asking at once.
    pub(super) fn on_not_leader(&mut self, from: &Peer, hint: Option<(NodeId, Address)>) -> bool {
        match hint {
            Some((node, address)) if from.node != Some(node) && (from.node.is_some() || from.address != address) => {
                self.leader = Some(Peer { address, node: Some(node) });
                true
            }
            _ => {
                self.on_failure(from);
                false
            }
        }
    }

    /// `from` did not answer. Only the first of many requests that fail with it moves the turn.
    pub(super) fn on_failure(&mut self, from: &Peer) {
        match &self.leader {
            Some(leader) if leader == from => {
                self.leader = None;
                self.turn = self.turn.wrapping_add(1);
            }
            Some(_) => {}
            None => self.turn = self.turn.wrapping_add(1),
        }
    }

    /// Another cluster answers at that address. Returns whether no configured address is left.
    pub(super) fn on_foreign(&mut self, peer: &Peer) -> bool {
        self.foreign.insert(peer.address.clone());
        self.on_failure(peer);
        self.configured().next().is_none()
    }

    /// The map changed: a leader that is no longer alive is not worth a dial.
    pub(super) fn on_map(&mut self, map: &ClusterMap) {
        if self.leader.as_ref().and_then(|leader| leader.node).is_some_and(|node| !map.is_living(node)) {
            self.leader = None;
        }
    }

    /// Voters, then the other members; then whoever answers at the configured addresses and at theirs: while this client slept, each of
    /// them may have been replaced by another incarnation, and none that it knows is left.
    fn candidates(&self, map: Option<&ClusterMap>) -> Vec<Peer> {
        let mut peers = Vec::new();
        if let Some(map) = map {
            let living = || map.members.iter().filter(|member| map.is_living(member.id));
            let (voters, others): (Vec<_>, Vec<_>) = living().partition(|member| map.voters.contains(&member.id));
            let members = voters.into_iter().chain(others);
            peers.extend(members.map(|member| Peer { address: member.address.clone(), node: Some(member.id) }));
        }
        let known: Vec<Address> = peers.iter().map(|peer: &Peer| peer.address.clone()).collect();
        for address in self.configured().chain(known.iter().filter(|address| !self.foreign.contains(address))) {
            if !peers.iter().any(|peer| peer.node.is_none() && peer.address == *address) {
                peers.push(Peer { address: address.clone(), node: None });
            }
        }
        peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_map::{Member, MemberState};

    fn address(port: u16) -> Address {
        Address::Tcp { host: "n".into(), port }
    }

    #[test]
    fn who_replaced_the_members_is_found_at_their_addresses() {
        let member =
            |id: u64| Member { id: NodeId(id), address: address(id as u16), memory: 1, zone: String::new(), state: MemberState::Live };
        let map = ClusterMap { members: vec![member(1), member(2)], voters: vec![NodeId(2)], ..ClusterMap::default() };
        let mut router = Router::new(vec![address(1), address(3)]);
        let mut asked = Vec::new();
        for _ in 0..5 {
            let peer = router.target(Some(&map)).unwrap();
            router.on_failure(&peer);
            asked.push((peer.address, peer.node));
        }
        let expected = [(2, Some(NodeId(2))), (1, Some(NodeId(1))), (1, None), (3, None), (2, None)];
        assert_eq!(asked, expected.map(|(port, node)| (address(port), node)));
    }

    #[test]
    fn a_node_that_is_asked_under_another_name_is_another_way() {
        let mut router = Router::new(vec![address(1)]);
        let (anyone, member) = (Peer { address: address(1), node: None }, Peer { address: address(1), node: Some(NodeId(1)) });
        let first = router.way_to(&anyone);
        assert!(router.way_to(&anyone) == first && router.is_way(first));
        let second = router.way_to(&member);
        assert!(router.is_way(second) && !router.is_way(first));
        let third = router.way_to(&anyone);
        assert!(router.is_way(third) && !router.is_way(first), "it may have been left for long");
    }

    #[test]
    fn the_leader_is_followed_and_given_up() {
        let mut router = Router::new(vec![address(1), address(2)]);
        let first = router.target(None).unwrap();
        assert_eq!(first, Peer { address: address(1), node: None });
        assert!(router.on_not_leader(&first, Some((NodeId(7), address(7)))));
        let leader = router.target(None).unwrap();
        assert_eq!(leader, Peer { address: address(7), node: Some(NodeId(7)) });
        router.on_failure(&first);
        assert_eq!(router.target(None).unwrap(), leader, "another node's failure does not unseat the leader");
        router.on_failure(&leader);
        assert_eq!(router.target(None).unwrap().address, address(2));
        let second = router.target(None).unwrap();
        assert!(!router.on_foreign(&second));
        assert_eq!(router.target(None).unwrap().address, address(1));
        assert!(router.on_foreign(&first));
        assert!(router.target(None).is_none());
    }
}
