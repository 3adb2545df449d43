//! What must hold all along, and what must hold once everything is healed.

use std::collections::{BTreeMap, BTreeSet};

use dfs::types::{ChunkHash, Instance, NodeId, Term};
use dfs_node::node::Node;

use super::network::Pid;
use super::world::World;

/// Facts about the whole history of a cluster.
#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    /// State hash after each applied index, as the first node that got there had it.
    states: BTreeMap<u64, (NodeId, u64)>,
    /// Incarnations that some map declared dead.
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
        let seen = node.inspect();
        if seen.is_leader {
            let leader = *self.leaders.entry(seen.term).or_insert(seen.id);
            assert_eq!(leader, seen.id, "two leaders in term {}", seen.term);
        }
        if seen.applied > 0 {
            let (first, hash) = *self.states.entry(seen.applied).or_insert((seen.id, seen.state_hash));
            assert_eq!(hash, seen.state_hash, "{} and {first} differ after applying entry {}", seen.id, seen.applied);
        }
    }

    pub fn check_all_invariants(&self, world: &World) {
        world.nodes().for_each(|(_, node)| node.check_invariants());
    }
}

/// Why the cluster is not at rest yet; `None` when it is.
pub fn unrest(world: &World, expected_nodes: usize) -> Option<String> {
    let nodes: Vec<(Pid, &Node)> = world.nodes().collect();
    let seen: Vec<_> = nodes.iter().map(|(_, node)| node.inspect()).collect();
    let leaders: Vec<_> = seen.iter().filter(|seen| seen.is_leader).collect();
    let [leader] = leaders[..] else { return Some(format!("{} leaders", leaders.len())) };
    if let Some(lagging) = seen.iter().find(|one| one.term != leader.term || one.applied != leader.applied) {
        return Some(format!("{} is at {}, the leader {} at {}", lagging.id, lagging.applied, leader.id, leader.applied));
    }
    if let Some(other) = seen.iter().find(|one| one.state_hash != leader.state_hash) {
        return Some(format!("the states of {} and {} differ", other.id, leader.id));
    }
    let (_, node) = nodes.iter().find(|(_, node)| node.inspect().id == leader.id)?;
    let map = node.map();
    let ids: BTreeSet<NodeId> = seen.iter().map(|one| one.id).collect();
    let living: BTreeSet<NodeId> = map.members.iter().filter(|member| map.is_living(member.id)).map(|member| member.id).collect();
    if living != ids || ids.len() != expected_nodes {
        return Some(format!("the map has {living:?} living, in fact there are {ids:?} of {expected_nodes}"));
    }
    let voters: BTreeSet<NodeId> = map.voters.iter().copied().collect();
    if voters.len() != 3 || !voters.is_subset(&ids) {
        return Some(format!("voters are {voters:?} of {ids:?}"));
    }
    unrest_of_chunks(node, &nodes)
}

/// Referenced bytes are where the namespace says, and nothing else is anywhere.
fn unrest_of_chunks(leader: &Node, nodes: &[(Pid, &Node)]) -> Option<String> {
    let records = leader.chunk_records();
    let by_id: BTreeMap<NodeId, &Node> = nodes.iter().map(|(_, node)| (node.inspect().id, *node)).collect();
    let mut wanted: BTreeMap<NodeId, BTreeSet<(ChunkHash, Instance)>> = BTreeMap::new();
    for record in &records {
        let living: Vec<NodeId> = record.holders.iter().copied().filter(|holder| by_id.contains_key(holder)).collect();
        if living.is_empty() {
            return Some(format!("nobody alive holds {:?}, which is referenced; its holders were {:?}", record.hash, record.holders));
        }
        living.iter().for_each(|holder| _ = wanted.entry(*holder).or_default().insert((record.hash, record.instance)));
    }
    for (id, node) in &by_id {
        let held: BTreeSet<(ChunkHash, Instance)> = node.chunk_store().uploads().collect();
        let wanted = wanted.remove(id).unwrap_or_default();
        if let Some(missing) = wanted.difference(&held).next() {
            return Some(format!("{id} should hold {missing:?} and does not ({} of {} held)", held.len(), wanted.len()));
        }
        if let Some(garbage) = held.difference(&wanted).next() {
            return Some(format!("{id} holds {garbage:?}, which is garbage ({} held, {} wanted)", held.len(), wanted.len()));
        }
    }
    None
}
