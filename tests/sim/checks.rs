//! What must hold all along, and what must hold once everything is healed.

use std::collections::{BTreeMap, BTreeSet};

use dfs::cluster_map::MemberState;
use dfs::types::{ChunkHash, Instance, NodeId, SessionId, Term};
use dfs::wire::namespace::ChunkPlace;
use dfs_node::node::Node;

use super::world::World;

/// Facts about the whole history of a cluster.
#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    /// State hash after each applied index, as the first node that got there had it.
    states: BTreeMap<u64, (NodeId, u64)>,
    /// Where each incarnation was when last looked at.
    applied: BTreeMap<NodeId, u64>,
    /// Incarnations that a leader declared dead.
    pub dead: BTreeSet<NodeId>,
    turns: u64,
}

impl Checks {
    /// After every event: looks at the nodes that took a turn.
    pub fn look(&mut self, world: &mut World) {
        for pid in std::mem::take(&mut world.touched) {
            let Some(node) = world.processes.get(&pid).and_then(|process| process.as_node()) else { continue };
            self.look_at(node);
            self.turns += 1;
            if self.turns.is_multiple_of(64) {
                node.check_invariants();
            }
        }
    }

    fn look_at(&mut self, node: &Node) {
        let (id, applied) = (node.id(), node.namespace().applied());
        if let Some(term) = node.leads() {
            let leader = *self.leaders.entry(term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {term}");
        }
        if self.applied.insert(id, applied) != Some(applied) {
            let state_hash = node.namespace().state_hash();
            let (first, hash) = *self.states.entry(applied).or_insert((id, state_hash));
            let dead = node.map().members.iter().filter(|member| member.state == MemberState::Dead);
            self.dead.extend(dead.map(|member| member.id));
            assert_eq!(hash, state_hash, "{id} and {first} differ after applying entry {applied}");
        }
    }

    pub fn check_all_invariants(&self, world: &World) {
        world.nodes().for_each(|(_, node)| node.check_invariants());
    }
}

/// Why the cluster is not at rest yet; `None` when it is. Uploads of dead sessions may linger.
pub fn unrest(world: &World, expected_nodes: usize, dead_sessions: &BTreeSet<SessionId>) -> Option<String> {
    let nodes: Vec<&Node> = world.nodes().map(|(_, node)| node).collect();
    let leaders: Vec<&&Node> = nodes.iter().filter(|node| node.leads().is_some()).collect();
    let [leader] = leaders[..] else { return Some(format!("{} leaders", leaders.len())) };
    let applied = |node: &Node| node.namespace().applied();
    if let Some(lagging) = nodes.iter().find(|node| applied(node) != applied(leader)) {
        return Some(format!("{} is at {}, the leader {} at {}", lagging.id(), applied(lagging), leader.id(), applied(leader)));
    }
    if let Some(other) = nodes.iter().find(|node| node.namespace().state_hash() != leader.namespace().state_hash()) {
        return Some(format!("the states of {} and {} differ", other.id(), leader.id()));
    }
    let map = leader.map();
    let ids: BTreeSet<NodeId> = nodes.iter().map(|node| node.id()).collect();
    let living: BTreeSet<NodeId> = map.members.iter().filter(|member| map.is_living(member.id)).map(|member| member.id).collect();
    if living != ids || ids.len() != expected_nodes {
        return Some(format!("the map has {living:?} living, in fact there are {ids:?} of {expected_nodes}"));
    }
    let voters: BTreeSet<NodeId> = map.voters.iter().copied().collect();
    if voters.len() != 3 || !voters.is_subset(&ids) {
        return Some(format!("voters are {voters:?} of {ids:?}"));
    }
    unrest_of_chunks(leader, &nodes, dead_sessions)
}

/// Referenced bytes are where the namespace says, and nothing else is anywhere.
fn unrest_of_chunks(leader: &Node, nodes: &[&Node], dead_sessions: &BTreeSet<SessionId>) -> Option<String> {
    let records: Vec<ChunkPlace> = leader.namespace().chunk_places().collect();
    let by_id: BTreeMap<NodeId, &Node> = nodes.iter().map(|node| (node.id(), *node)).collect();
    let mut wanted: BTreeMap<NodeId, BTreeSet<(ChunkHash, Instance)>> = BTreeMap::new();
    for record in &records {
        let living: Vec<NodeId> = record.holders.iter().copied().filter(|holder| by_id.contains_key(holder)).collect();
        if living.is_empty() {
            return Some(format!("nobody alive holds {:?}, which is referenced; its holders were {:?}", record.hash, record.holders));
        }
        living.iter().for_each(|holder| _ = wanted.entry(*holder).or_default().insert((record.hash, record.instance)));
    }
    for (id, node) in &by_id {
        let held: BTreeSet<(ChunkHash, Instance)> = node.chunks().uploads().collect();
        let wanted = wanted.remove(id).unwrap_or_default();
        if let Some(missing) = wanted.difference(&held).next() {
            return Some(format!("{id} should hold {missing:?} and does not ({} of {} held)", held.len(), wanted.len()));
        }
        if let Some(garbage) = held.difference(&wanted).find(|(_, instance)| !dead_sessions.contains(&instance.session)) {
            return Some(format!("{id} holds {garbage:?}, which is garbage ({} held, {} wanted)", held.len(), wanted.len()));
        }
    }
    None
}
