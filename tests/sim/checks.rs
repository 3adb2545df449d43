//! What must hold all along, and what must hold once everything is healed.

use std::collections::{BTreeMap, BTreeSet};

use dfs::cluster_map::{ClusterMap, MemberState};
use dfs::types::{ByteRange, ChunkHash, ClusterId, Epoch, Instance, NodeId, SessionId, Term, Timestamp};
use dfs::wire::namespace::ChunkPlace;
use dfs_node::node::Node;

use super::network::Pid;
use super::process::{Machine, WALL_SECONDS};
use super::world::{SECOND, World};

/// How far cluster time may be off: a founder's clock, another's that is right within a second, what is lost from leader to leader.
const CLUSTER_TIME_OFF_MAX: i64 = 5;

/// Facts about the whole history of a cluster.
#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<(ClusterId, Term), NodeId>,
    /// State hash after each applied index, as the first node that got there had it.
    states: BTreeMap<(ClusterId, u64), (NodeId, u64)>,
    /// Where each incarnation was when last looked at.
    applied: BTreeMap<NodeId, u64>,
    /// The newest epoch applied anywhere, and who lived in it.
    epoch: Epoch,
    living: BTreeSet<NodeId>,
    /// Incarnations that a leader declared dead.
    pub dead: BTreeSet<NodeId>,
    turns: u64,
}

impl Checks {
    /// The last entry that was applied anywhere.
    pub fn newest(&self) -> u64 {
        self.states.keys().map(|(_, index)| *index).max().unwrap_or(0)
    }

    /// How many terms had a leader.
    pub fn terms(&self) -> usize {
        self.leaders.keys().map(|(_, term)| term).collect::<BTreeSet<_>>().len()
    }

    /// After every event: looks at the nodes that took a turn.
    pub fn look(&mut self, world: &mut World) {
        for pid in std::mem::take(&mut world.touched) {
            let Some(node) = world.processes.get(&pid).and_then(|process| process.as_node()) else { continue };
            self.look_at(node, world.now);
            self.turns += 1;
            if self.turns.is_multiple_of(64) {
                node.check_invariants();
            }
        }
    }

    fn look_at(&mut self, node: &Node, now: u64) {
        let (id, applied, cluster) = (node.id(), node.namespace().applied(), node.namespace().map().cluster);
        if let Some(term) = node.leads() {
            let leader = *self.leaders.entry((cluster, term)).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {term}");
            // What it stamps, once it is known that there is a cluster.
            let off = node.cluster_time().seconds - WALL_SECONDS - (now / SECOND) as i64;
            let told = node.namespace().time() != Timestamp::default();
            assert!(!told || off.abs() <= CLUSTER_TIME_OFF_MAX, "cluster time of {id} is off by {off} s");
        }
        if self.applied.insert(id, applied) != Some(applied) {
            let state_hash = node.namespace().state_hash();
            let (first, hash) = *self.states.entry((cluster, applied)).or_insert((id, state_hash));
            self.look_at_map(node.namespace().map());
            assert_eq!(hash, state_hash, "{id} and {first} differ after applying entry {applied}");
        }
    }

    /// Who left the living from one epoch to a later one is dead.
    fn look_at_map(&mut self, map: &ClusterMap) {
        if map.epoch <= self.epoch {
            return;
        }
        let living: BTreeSet<NodeId> = map.members.iter().filter(|member| map.is_living(member.id)).map(|member| member.id).collect();
        if std::env::var_os("DFS_SIM_LOG").is_some() {
            eprintln!("epoch {}: living {living:x?}, voters {:x?}", map.epoch, map.voters);
        }
        self.dead.extend(self.living.difference(&living));
        (self.epoch, self.living) = (map.epoch, living);
    }

    pub fn check_all_invariants(&self, world: &World) {
        world.nodes().for_each(|(_, node)| node.check_invariants());
        world.processes.values().for_each(|process| {
            if let Machine::Client(core) = &process.machine {
                core.check_invariants();
            }
        });
    }
}

/// What a cluster at rest looks like.
#[derive(Clone, Debug)]
pub struct Expected {
    pub nodes: usize,
    /// Living holders of each referenced chunk, at least.
    pub copies: usize,
    /// Nodes are so small that a chunk may fit on none.
    pub tight: bool,
    /// Uploads of these may linger.
    pub dead_sessions: BTreeSet<SessionId>,
}

/// Whether another node may die: all are members, three living ones vote, and every chunk really is on two of them.
pub fn is_whole(world: &World, nodes: usize) -> bool {
    let living: Vec<&Node> = world.nodes().map(|(_, node)| node).collect();
    let leaders: Vec<&&Node> = living.iter().filter(|node| node.leads().is_some()).collect();
    let [leader] = leaders[..] else { return false };
    let map = leader.namespace().map();
    let by_id: BTreeMap<NodeId, &&Node> = living.iter().map(|node| (node.id(), node)).collect();
    let members = map.members.iter().filter(|member| map.is_living(member.id));
    let here = |node: &NodeId| by_id.contains_key(node) && map.is_living(*node);
    let ready = living.len() == nodes && living.iter().all(|node| node.is_ready()) && members.map(|member| member.id).all(|id| here(&id));
    let voting = map.voters.len() >= 3 && map.voters.iter().all(here);
    let kept = |place: &ChunkPlace, holder: &NodeId| here(holder) && by_id[holder].chunks().contains(&place.hash);
    ready
        && voting
        && leader.namespace().chunk_places().all(|place| place.holders.iter().filter(|holder| kept(&place, holder)).count() >= 2)
}

/// Whether those nodes are a majority of the voters and have a true copy of everything, so that no answered change is lost without the
/// others. `newest` is the last entry that was applied anywhere.
pub fn is_enough(world: &World, staying: &BTreeMap<NodeId, &Node>, newest: u64) -> bool {
    let leaders: Vec<&Node> = world.nodes().map(|(_, node)| node).filter(|node| node.leads().is_some()).collect();
    let [leader] = leaders[..] else { return false };
    let (map, Some(group)) = (leader.namespace().map(), leader.group()) else { return false };
    // What it does not know yet might need the others.
    if leader.namespace().applied() < newest || group.is_changing() {
        return false;
    }
    let running: BTreeSet<NodeId> = world.nodes().map(|(_, node)| node.id()).collect();
    // Who died and still counts as living may stand for one of the two copies of what is being written.
    let all_known = map.members.iter().filter(|member| map.is_living(member.id)).all(|member| running.contains(&member.id));
    let voters = &group.configuration().voters;
    let majority = voters.iter().filter(|voter| staying.contains_key(voter)).count() * 2 > voters.len();
    let kept = |place: &ChunkPlace, holder: &NodeId| {
        map.is_living(*holder) && staying.get(holder).is_some_and(|node| node.chunks().contains(&place.hash))
    };
    all_known
        && majority
        && map.receipts_needed() > 1
        && leader.namespace().chunk_places().all(|place| place.holders.iter().any(|holder| kept(&place, holder)))
}

/// A chunk of that node's which without it has fewer true copies than it needs; `None` if all have enough. Others' chunks may be weak
/// for other reasons.
pub fn copies_elsewhere(world: &World, without: Pid) -> Option<String> {
    let (_, leaving) = world.nodes().find(|(pid, _)| *pid == without)?;
    let others: BTreeMap<NodeId, &Node> = world.nodes().filter(|(pid, _)| *pid != without).map(|(_, node)| (node.id(), node)).collect();
    // Whoever has applied most knows what has been answered.
    let newest = others.values().max_by_key(|node| node.namespace().applied())?;
    let needed = newest.namespace().map().receipts_needed();
    newest.namespace().chunk_places().find_map(|place| {
        let kept = |holder: &&NodeId| others.get(holder).is_some_and(|node| node.chunks().contains(&place.hash));
        let kept: Vec<NodeId> = place.holders.iter().filter(kept).copied().collect();
        let its_own = leaving.chunks().contains(&place.hash) || place.holders.contains(&leaving.id());
        (its_own && kept.len() < needed).then(|| format!("{:?} is on {kept:?} of {:?}, {needed} needed", place.hash, place.holders))
    })
}

/// Why the cluster is not at rest yet; `None` when it is.
pub fn unrest(world: &World, expected: &Expected) -> Option<String> {
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
    if living != ids || ids.len() != expected.nodes {
        return Some(format!("the map has {living:?} living, in fact there are {ids:?} of {}", expected.nodes));
    }
    if let Some(leaving) = map.members.iter().find(|member| member.state == MemberState::Leaving) {
        return Some(format!("{} is leaving", leaving.id));
    }
    let voters: BTreeSet<NodeId> = map.voters.iter().copied().collect();
    if voters.len() != dfs::cluster_map::voters_wanted(ids.len()) || !voters.is_subset(&ids) {
        return Some(format!("voters are {voters:?} of {ids:?}"));
    }
    unrest_of_chunks(leader, &nodes, expected)
}

/// A copy that does not match its hash, although the scrubber had the time to find it.
pub fn bad_copy(world: &World) -> Option<String> {
    world.nodes().find_map(|(_, node)| {
        let mut hashes: Vec<ChunkHash> = node.chunks().uploads().map(|(hash, _)| hash).collect();
        hashes.dedup();
        hashes.into_iter().find_map(|hash| {
            let part = node.chunks().get(&hash, ByteRange { offset: 0, length: u64::MAX }).ok()?;
            (ChunkHash::of(&part.bytes) != hash).then(|| format!("{} holds a bad copy of {hash:?}", node.id()))
        })
    })
}

/// A chunk is stored whole: among nodes as small as chunks there may be none that has room for another copy of one.
fn fits_nowhere(record: &ChunkPlace, living: &[NodeId], nodes: &BTreeMap<NodeId, &Node>) -> bool {
    let fits = |id: &NodeId, node: &Node| {
        let usage = node.chunks().usage();
        let taken = usage.charged + node.namespace().usage().namespace_bytes;
        !living.contains(id) && taken + dfs::capacity::chunk_charge(u64::from(record.length)) <= usage.budget
    };
    !nodes.iter().any(|(id, node)| fits(id, node))
}

/// How many chunks lack a copy for want of a node that has room for one; the cluster has a leader.
pub fn stuck(world: &World, copies: usize) -> u64 {
    let nodes: BTreeMap<NodeId, &Node> = world.nodes().map(|(_, node)| (node.id(), node)).collect();
    let leader = nodes.values().find(|node| node.leads().is_some()).expect("a leader");
    let living = |place: &ChunkPlace| place.holders.iter().copied().filter(|holder| nodes.contains_key(holder)).collect::<Vec<_>>();
    let places = leader.namespace().chunk_places().map(|place| (living(&place), place));
    places.filter(|(living, place)| living.len() < copies && fits_nowhere(place, living, &nodes)).count() as u64
}

/// Referenced bytes are where the namespace says, and nothing else is anywhere.
fn unrest_of_chunks(leader: &Node, nodes: &[&Node], expected: &Expected) -> Option<String> {
    let records: Vec<ChunkPlace> = leader.namespace().chunk_places().collect();
    let by_id: BTreeMap<NodeId, &Node> = nodes.iter().map(|node| (node.id(), *node)).collect();
    let mut wanted: BTreeMap<NodeId, BTreeSet<(ChunkHash, Instance)>> = BTreeMap::new();
    for record in &records {
        let living: Vec<NodeId> = record.holders.iter().copied().filter(|holder| by_id.contains_key(holder)).collect();
        let stuck = expected.tight && !living.is_empty() && fits_nowhere(record, &living, &by_id);
        if living.len() < expected.copies && !stuck {
            let rooms: Vec<_> =
                by_id.values().map(|node| (node.id(), node.chunks().usage(), node.namespace().usage().namespace_bytes)).collect();
            return Some(format!("{:?} ({}) has living holders {living:?} of {:?}; {rooms:?}", record.hash, record.length, record.holders));
        }
        living.iter().for_each(|holder| _ = wanted.entry(*holder).or_default().insert((record.hash, record.instance)));
    }
    for (id, node) in &by_id {
        let held: BTreeSet<(ChunkHash, Instance)> = node.chunks().uploads().collect();
        let wanted = wanted.remove(id).unwrap_or_default();
        // An upload of a dead session stands for the live one as long as the namespace expects that it may be committed.
        let stands_in =
            |hash: &ChunkHash| held.iter().any(|(other, instance)| other == hash && expected.dead_sessions.contains(&instance.session));
        if let Some(missing) = wanted.difference(&held).find(|(hash, _)| !stands_in(hash)) {
            return Some(format!("{id} should hold {missing:?} and does not ({} of {} held)", held.len(), wanted.len()));
        }
        if let Some(garbage) = held.difference(&wanted).find(|(_, instance)| !expected.dead_sessions.contains(&instance.session)) {
            return Some(format!("{id} holds {garbage:?}, which is garbage ({} held, {} wanted)", held.len(), wanted.len()));
        }
    }
    None
}
