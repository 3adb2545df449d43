//! How much the cluster can still store: what `statfs` shows. Pure arithmetic over rooms.

use dfs::cluster_map::ClusterMap;
use dfs::types::NodeId;
use dfs::wire::namespace::Space;

/// Metadata that one more inode is expected to take, for `statfs`'s count of free inodes.
const INODE_BYTES_TYPICAL: u64 = 512;

/// The largest amount that fits `copies` times into rooms, no two copies of anything in one room.
pub(super) fn fitting(rooms: &[u64], copies: u64) -> u64 {
    if copies == 0 || (rooms.len() as u64) < copies {
        return 0;
    }
    let fits = |amount: u64| {
        let sum: u128 = rooms.iter().map(|&room| u128::from(room.min(amount))).sum();
        sum >= u128::from(copies) * u128::from(amount)
    };
    let total: u128 = rooms.iter().map(|&room| u128::from(room)).sum();
    let (mut low, mut high) = (0, (total / u128::from(copies)).min(u128::from(u64::MAX - 1)) as u64);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// What survives the loss of the largest node, or of none while there are no more than replicas.
fn capacity_of(mut rooms: Vec<u64>, replicas: u8) -> u64 {
    rooms.sort_unstable();
    let copies = (replicas as usize).min(rooms.len());
    if rooms.len() > replicas as usize {
        rooms.pop();
    }
    fitting(&rooms, copies as u64)
}

/// What the namespace takes and may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metadata {
    pub inodes: u64,
    /// Memory it takes on every node, inside what the node lends.
    pub taken: u64,
    pub free: u64,
}

/// Sizes after replication. `stored`: what a node is known to store; `used`: bytes of content, once.
pub(super) fn space(map: &ClusterMap, stored: impl Fn(NodeId) -> u64, used: u64, metadata: Metadata) -> Space {
    let room = |memory: u64| memory.saturating_sub(metadata.taken);
    let rooms: Vec<u64> = map.storage_nodes().map(|member| room(member.memory)).collect();
    let free: Vec<u64> = map.storage_nodes().map(|member| room(member.memory).saturating_sub(stored(member.id))).collect();
    let capacity = capacity_of(rooms, map.replicas).max(used);
    // Deletions take a moment to reach the nodes; what is deleted counts as free only where it is free, or writes would be refused.
    let free_now = fitting(&free, map.receipts_needed() as u64);
    let available = (capacity - used).min(free_now);
    Space { capacity, used, available, inodes: metadata.inodes, inodes_available: metadata.free / INODE_BYTES_TYPICAL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_copies_in_one_room() {
        assert_eq!(fitting(&[10, 10], 2), 10);
        assert_eq!(fitting(&[10, 30], 2), 10);
        assert_eq!(fitting(&[10, 10, 10], 2), 15);
        assert_eq!(fitting(&[10, 20, 100], 2), 30);
        assert_eq!(fitting(&[10], 2), 0);
        assert_eq!(fitting(&[], 0), 0);
        assert_eq!(fitting(&[u64::MAX, u64::MAX], 1), u64::MAX - 1);
    }

    #[test]
    fn one_node_may_die_once_there_are_more_than_replicas() {
        assert_eq!(capacity_of(vec![10, 10], 2), 10);
        assert_eq!(capacity_of(vec![10, 10, 10], 2), 10);
        assert_eq!(capacity_of(vec![10, 10, 10, 10], 2), 15);
        assert_eq!(capacity_of(vec![10], 2), 10);
        assert_eq!(capacity_of(vec![], 2), 0);
    }
}
