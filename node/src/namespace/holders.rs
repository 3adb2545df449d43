//! Who holds which chunk, and who should: what repair reads, and the command by which a node says that it has made a copy.
//!
//! Holders change in the log alone, so a copy is given up only in the entry in which enough others are known: no two nodes can each
//! count on the other. A copy that nobody recorded counts for nothing and harms nothing.

use std::ops::Bound;

use dfs::cluster_map::{ClusterMap, MemberState};
use dfs::limits;
use dfs::placement;
use dfs::types::{ChunkHash, Instance, NodeId};

use super::Namespace;
use super::chunks::ChunkRecord;
use super::command::Effect;

/// A chunk as repair sees it.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    pub hash: ChunkHash,
    pub length: u32,
    /// The upload under which holders keep it.
    pub instance: Instance,
    /// Recorded holders, the dead included.
    pub holders: &'a [NodeId],
}

/// How many of those nodes count as replicas: dead ones are gone, leaving ones are going.
pub fn replicas(map: &ClusterMap, holders: &[NodeId]) -> usize {
    holders.iter().filter(|&&holder| map.member(holder).is_some_and(|member| member.state == MemberState::Live)).count()
}

/// The nodes among `holders` that may give up their copies, because enough better ones are left: never an owner before all others, and
/// nobody while there are fewer replicas than needed.
fn surplus(map: &ClusterMap, order: &[NodeId], holders: &[NodeId]) -> Vec<NodeId> {
    let needed = map.receipts_needed();
    let present = replicas(map, holders);
    if needed == 0 || present < needed {
        return Vec::new();
    }
    let rank = |node: &NodeId| order.iter().position(|other| other == node).unwrap_or(usize::MAX);
    let mut by_rank: Vec<NodeId> = holders.to_vec();
    by_rank.sort_by_key(|node| (rank(node), *node));
    // Storage nodes come first in this order; what is left over leaves, or only votes.
    by_rank.split_off(needed.min(by_rank.len()))
}

impl Namespace {
    /// Chunks behind `after`, by hash.
    pub fn chunks_behind(&self, after: Option<ChunkHash>) -> impl Iterator<Item = Held<'_>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.store.chunks_from(from).map(|(hash, record)| held(hash, record))
    }

    /// One chunk, if anything refers to it.
    pub fn chunk_held(&self, hash: &ChunkHash) -> Option<Held<'_>> {
        self.store.chunk(hash).map(|record| held(*hash, record))
    }

    /// How many chunks are recorded to be on that node.
    pub fn chunks_on(&self, node: NodeId) -> u64 {
        self.store.chunks_on(node)
    }

    /// Bytes of copies that nodes have said to have made, since this process applies the log. Not replicated.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// The node has copies of these chunks. Those that are wanted are recorded; then whoever holds more than is needed may forget.
    pub(super) fn record_copies(&mut self, node: NodeId, items: &[(ChunkHash, Instance)]) {
        if !self.header.map.member(node).is_some_and(|member| member.stores()) {
            return;
        }
        for (hash, instance) in items.iter().take(limits::COMMAND_VISITS_MAX) {
            self.record_copy(node, hash, *instance);
        }
    }

    fn record_copy(&mut self, node: NodeId, hash: &ChunkHash, instance: Instance) {
        let map = &self.header.map;
        let Some(chunk) = self.store.chunk(hash).filter(|chunk| chunk.instance == instance) else { return };
        let order = self.placement.order(map, placement::group_of(hash));
        let mut holders: Vec<NodeId> = chunk.holders.iter().copied().filter(|&holder| map.is_living(holder)).collect();
        let known = holders.contains(&node);
        if !known {
            let wanted =
                replicas(map, &holders) < map.receipts_needed() || order.iter().take(map.replicas as usize).any(|&owner| owner == node);
            if !wanted || holders.len() >= limits::HOLDERS_MAX {
                return;
            }
            holders.push(node);
        }
        let surplus = surplus(map, order, &holders);
        holders.retain(|holder| !surplus.contains(holder));
        holders.sort_unstable();
        if holders[..] == chunk.holders[..] {
            return;
        }
        let mut chunk = chunk.clone();
        if !known {
            self.copied_bytes += u64::from(chunk.length);
        }
        chunk.holders = holders.into();
        self.store.put_chunk(*hash, Some(chunk));
        if !surplus.is_empty() {
            self.effects.push(Effect::Deleted { hash: *hash, instance, holders: surplus });
        }
    }

    /// Whether a copy on a node that is not recorded to hold the chunk may yet be wanted: it is not to be deleted then.
    pub(super) fn may_want_copy(&mut self, node: NodeId, hash: &ChunkHash) -> bool {
        let map = &self.header.map;
        let Some(chunk) = self.store.chunk(hash) else { return false };
        // Who is thought to be dead may turn out to be alive.
        !map.member(node).is_some_and(|member| member.stores())
            || replicas(map, &chunk.holders) < map.receipts_needed()
            || self.placement.owners(map, placement::group_of(hash)).contains(&node)
    }
}

fn held(hash: ChunkHash, record: &ChunkRecord) -> Held<'_> {
    Held { hash, length: record.length, instance: record.instance, holders: &record.holders }
}

/// Counts of records by holder, kept in step with the table of chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HolderIndex(std::collections::BTreeMap<NodeId, u64>);

impl HolderIndex {
    pub fn add(&mut self, record: &ChunkRecord) {
        record.holders.iter().for_each(|holder| *self.0.entry(*holder).or_default() += 1);
    }

    pub fn subtract(&mut self, record: &ChunkRecord) {
        for holder in &record.holders {
            let count = self.0.get_mut(holder).expect("counted when it was recorded");
            *count -= 1;
            if *count == 0 {
                self.0.remove(holder);
            }
        }
    }

    pub fn count(&self, node: NodeId) -> u64 {
        self.0.get(&node).copied().unwrap_or_default()
    }
}
