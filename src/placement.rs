//! Which nodes should hold a chunk: hash -> placement group -> nodes in order, by weighted rendezvous over the cluster map.
//!
//! Pure integer arithmetic: every machine computes the same owners from the same map, which floats would not give.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::cluster_map::{ClusterMap, Member};
use crate::limits::PLACEMENT_GROUPS;
use crate::types::{Address, ChunkHash, ClusterId, Epoch, NodeId};

/// One of [`PLACEMENT_GROUPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u32);

/// The group of a chunk.
pub fn group_of(hash: &ChunkHash) -> Group {
    let word = u32::from_le_bytes([hash.0[0], hash.0[1], hash.0[2], hash.0[3]]);
    Group(word % PLACEMENT_GROUPS)
}

/// All storage nodes in the order in which they should be asked to hold the group; the first R are its owners. The best node of
/// each zone comes before the second of any, so that owners lie in different zones as far as there are zones.
pub fn order(map: &ClusterMap, group: Group) -> Vec<NodeId> {
    let keyed: Vec<(u64, &Member)> = map.storage_nodes().map(|member| (key_of(&member.address), member)).collect();
    order_of(&keyed, group)
}

/// [`order`] of storage nodes whose keys are known.
fn order_of(keyed: &[(u64, &Member)], group: Group) -> Vec<NodeId> {
    let mut ranked: Vec<(u64, &Member)> = keyed.iter().map(|&(key, member)| (cost(key, group), member)).collect();
    ranked.sort_by(|a, b| compare(*a, *b));
    let mut zones = BTreeSet::new();
    let (first, rest): (Vec<_>, Vec<_>) =
        ranked.into_iter().map(|(_, member)| member).partition(|member| member.zone.is_empty() || zones.insert(member.zone.as_str()));
    first.into_iter().chain(rest).map(|member| member.id).collect()
}

/// The nodes that should hold the group: the first R of its order, all where there are fewer.
pub fn owners(map: &ClusterMap, group: Group) -> Vec<NodeId> {
    let mut nodes = order(map, group);
    nodes.truncate(map.replicas as usize);
    nodes
}

/// What stands for a node in placement: its address, so that a process that is started anew at the same place, empty or with what it
/// held, is asked for the same groups as before, and a death with a return moves nothing that it need not.
fn key_of(address: &Address) -> u64 {
    let hash = ChunkHash::of(address.to_string().as_bytes());
    u64::from_le_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"))
}

/// Orders of one map, computed as they are asked for. Holds at most one order per group.
#[derive(Debug, Default)]
pub struct PlacementTable {
    /// The map that `keys` and `orders` belong to.
    version: (ClusterId, Epoch),
    /// By position in the map's members.
    keys: Vec<u64>,
    orders: Vec<Option<Box<[NodeId]>>>,
}

impl PlacementTable {
    /// An empty table.
    pub fn new() -> Self {
        PlacementTable::default()
    }

    /// [`order`], remembered until the map's epoch changes.
    pub fn order(&mut self, map: &ClusterMap, group: Group) -> &[NodeId] {
        let version = (map.cluster, map.epoch);
        if self.version != version || self.orders.is_empty() {
            self.version = version;
            self.orders.clear();
            self.orders.resize(PLACEMENT_GROUPS as usize, None);
            self.keys = map.members.iter().map(|member| key_of(&member.address)).collect();
        }
        let keys = &self.keys;
        self.orders[(group.0 % PLACEMENT_GROUPS) as usize].get_or_insert_with(|| {
            let keyed = keys.iter().copied().zip(&map.members).filter(|(_, member)| member.stores());
            order_of(&keyed.collect::<Vec<_>>(), group).into_boxed_slice()
        })
    }

    /// [`owners`], remembered until the map's epoch changes.
    pub fn owners(&mut self, map: &ClusterMap, group: Group) -> &[NodeId] {
        let nodes = self.order(map, group);
        &nodes[..nodes.len().min(map.replicas as usize)]
    }
}

/// Compares `cost / weight` without dividing; the id breaks ties.
fn compare(a: (u64, &Member), b: (u64, &Member)) -> Ordering {
    let left = a.0 as u128 * b.1.memory as u128;
    let right = b.0 as u128 * a.1.memory as u128;
    left.cmp(&right).then(a.1.id.cmp(&b.1.id))
}

/// -log2 of a pseudo-random number in (0, 1) that belongs to the pair: exponentially distributed, so that the smallest of
/// `cost / weight` falls on each node in proportion to its weight (weighted rendezvous hashing).
fn cost(key: u64, group: Group) -> u64 {
    negative_log2(mix(key ^ mix(group.0 as u64 + 1)))
}

/// The finalizer of SplitMix64; a bijection, so different nodes never share a number within a group.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `-log2(word / 2^64)` with 32 fractional bits, never 0.
fn negative_log2(word: u64) -> u64 {
    const FRACTION_BITS: u32 = 32;
    let word = word.max(1);
    let zeros = word.leading_zeros();
    // word = mantissa * 2^(-zeros - 1) of the whole range, mantissa in [1, 2) with 63 fractional bits.
    let mut mantissa = word << zeros;
    let mut fraction = 0u64;
    for _ in 0..FRACTION_BITS {
        let square = (mantissa as u128 * mantissa as u128) >> 63;
        let carry = (square >> 64) as u64 & 1;
        mantissa = (square >> carry) as u64;
        fraction = fraction << 1 | carry;
    }
    (((zeros + 1) as u64) << FRACTION_BITS) - fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_map::MemberState;

    fn map(nodes: &[(u64, u64, &str)]) -> ClusterMap {
        let mut members: Vec<Member> = nodes
            .iter()
            .map(|&(id, memory, zone)| Member {
                id: NodeId(id),
                address: Address::Tcp { host: "h".into(), port: id as u16 },
                memory,
                zone: zone.into(),
                state: MemberState::Live,
            })
            .collect();
        members.sort_by_key(|member| member.id);
        ClusterMap { replicas: 2, epoch: Epoch(1), members, ..ClusterMap::default() }
    }

    fn equal(count: u64) -> Vec<(u64, u64, &'static str)> {
        (1..=count).map(|index| (mix(index), 1 << 30, "")).collect()
    }

    fn first_counts(map: &ClusterMap) -> std::collections::BTreeMap<NodeId, u32> {
        let mut counts = std::collections::BTreeMap::new();
        (0..PLACEMENT_GROUPS).for_each(|group| *counts.entry(order(map, Group(group))[0]).or_default() += 1);
        counts
    }

    #[test]
    fn logarithm_is_exact_where_it_can_be_and_close_elsewhere() {
        assert_eq!(negative_log2(1 << 63), 1 << 32);
        assert_eq!(negative_log2(1), 64 << 32);
        assert_eq!(negative_log2(0), 64 << 32);
        assert_eq!(negative_log2(u64::MAX), 1);
        for word in [3u64, 12345, 0x1234_5678_9abc_def0, 1 << 40, (1 << 63) + 12345678912345, u64::MAX - (1 << 50)] {
            let exact = 64.0 - (word as f64).log2();
            let ours = negative_log2(word) as f64 / 4294967296.0;
            assert!((exact - ours).abs() < 1e-8, "{word}: {exact} {ours}");
        }
    }

    #[test]
    fn golden_values() {
        // What every machine of every version must compute, or clients and nodes disagree about owners.
        assert_eq!(cost(1, Group(0)), GOLDEN_COSTS[0]);
        assert_eq!(cost(0xdead_beef, Group(4095)), GOLDEN_COSTS[1]);
        let map = map(&[(1, 100, ""), (2, 200, ""), (3, 300, ""), (4, 0, "")]);
        let orders: Vec<Vec<u64>> = (0..4).map(|group| order(&map, Group(group)).iter().map(|node| node.0).collect()).collect();
        assert_eq!(orders, GOLDEN_ORDERS);
        let hash = ChunkHash::of(b"dfs");
        assert_eq!(group_of(&hash), Group(u32::from_le_bytes(hash.0[..4].try_into().unwrap()) % 4096));
    }
    const GOLDEN_COSTS: [u64; 2] = [557050703, 5611003453];
    const GOLDEN_ORDERS: [[u64; 3]; 4] = [[3, 2, 1], [3, 2, 1], [2, 1, 3], [3, 2, 1]];

    #[test]
    fn groups_spread_evenly_over_equal_nodes() {
        for nodes in [2, 3, 5, 8] {
            let map = map(&equal(nodes));
            let share = PLACEMENT_GROUPS as f64 / nodes as f64;
            for (node, count) in first_counts(&map) {
                assert!((count as f64 / share - 1.0).abs() < 0.12, "{nodes} nodes: {node} leads {count} of {share}");
            }
        }
    }

    #[test]
    fn weights_are_honoured() {
        let map = map(&[(11, 1 << 30, ""), (22, 2 << 30, ""), (33, 4 << 30, ""), (44, 1 << 30, "")]);
        let counts = first_counts(&map);
        for (id, parts) in [(11, 1.0), (22, 2.0), (33, 4.0), (44, 1.0)] {
            let expected = PLACEMENT_GROUPS as f64 * parts / 8.0;
            let count = counts[&NodeId(id)] as f64;
            assert!((count / expected - 1.0).abs() < 0.12, "{id}: {count} of {expected}");
        }
    }

    #[test]
    fn only_what_must_move_moves() {
        let small = map(&equal(5));
        let large = map(&equal(6));
        let joined = NodeId(mix(6));
        let mut moved = 0;
        for group in (0..PLACEMENT_GROUPS).map(Group) {
            let before = order(&small, group);
            let mut after = order(&large, group);
            moved += u32::from(after[..2].contains(&joined));
            // The others keep their order: a node that joins or leaves never shuffles the rest.
            after.retain(|node| *node != joined);
            assert_eq!(before, after);
        }
        let expected = PLACEMENT_GROUPS as f64 * 2.0 / 6.0;
        assert!((moved as f64 / expected - 1.0).abs() < 0.12, "{moved} of {expected}");
    }

    #[test]
    fn owners_lie_in_different_zones() {
        let map = map(&[(1, 900, "a"), (2, 900, "a"), (3, 900, "a"), (4, 10, "b")]);
        for group in (0..PLACEMENT_GROUPS).map(Group) {
            let owners = owners(&map, group);
            assert!(owners.contains(&NodeId(4)), "{group:?}: {owners:?}");
            assert_eq!(order(&map, group).len(), 4);
        }
    }

    #[test]
    fn dead_leaving_and_voting_only_nodes_own_nothing() {
        let mut map = map(&[(1, 5, ""), (2, 5, ""), (3, 0, ""), (4, 5, "")]);
        map.members[0].state = MemberState::Dead;
        map.members[1].state = MemberState::Leaving;
        assert_eq!(owners(&map, Group(7)), vec![NodeId(4)]);
        assert!(owners(&ClusterMap::default(), Group(7)).is_empty());
    }

    #[test]
    fn the_table_follows_the_epoch() {
        let mut table = PlacementTable::new();
        let mut map = map(&equal(4));
        for group in (0..64).map(Group) {
            assert_eq!(table.order(&map, group), order(&map, group));
            assert_eq!(table.owners(&map, group), owners(&map, group));
        }
        map.members[0].state = MemberState::Dead;
        map.epoch = Epoch(2);
        assert_eq!(table.order(&map, Group(3)), order(&map, Group(3)));
        assert_eq!(table.order(&map, Group(3)).len(), 3);
    }
}
