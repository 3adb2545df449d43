//! How much fits into a cluster: pure arithmetic over the rooms that its nodes lend.
//!
//! One formula serves `df`, the refusal of writes with "no space", and the nodes' own budgets, so that they agree.

use crate::cluster_map::ClusterMap;
use crate::limits;

/// The smallest step between sizes of allocations.
const ALLOCATION_STEP_MIN: u64 = 16;

/// What a node lends that may use so much memory: what its own working takes is left out, but no more than half.
pub fn lent(memory: u64) -> u64 {
    memory - (limits::OWN_MEMORY_BYTES + memory / limits::OWN_MEMORY_SHARE).min(memory / 2)
}

/// Memory that a node is charged for one upload of a chunk of that length: its bytes as the allocator keeps them, its group hashes, its
/// place in the tables.
pub fn chunk_charge(length: u64) -> u64 {
    allocation(length) + group_hashes(length) + limits::CHUNK_OVERHEAD_BYTES + limits::INSTANCE_OVERHEAD_BYTES
}

/// What an allocation of that length takes: allocators without headers have four sizes between one power of two and the next (jemalloc(3),
/// "size classes"), so up to a quarter more than asked for. What was once used stays resident to the end.
pub fn allocation(length: u64) -> u64 {
    let step = (length.max(1).next_power_of_two() / 8).max(ALLOCATION_STEP_MIN);
    length.next_multiple_of(step)
}

/// Memory for the hashes of a chunk's groups.
pub fn group_hashes(length: u64) -> u64 {
    length.div_ceil(limits::VERIFY_GROUP_BYTES as u64) * limits::GROUP_HASH_BYTES
}

/// What a reserved run of a file is charged for: as much as a chunk of its length written there, with its record in the namespace. Not what an
/// allocation is rounded up to, or a run that is divided would cost more than it did.
pub fn reservation_charge(length: u64) -> u64 {
    let overhead = limits::CHUNK_OVERHEAD_BYTES + limits::INSTANCE_OVERHEAD_BYTES + limits::RESERVATION_OVERHEAD_BYTES;
    length + group_hashes(length) + overhead
}

/// What the cluster will be fuller by at most once so many bytes in so many runs are committed: a client reserves that before it accepts
/// them. A commit that came to more would find a full cluster.
pub fn behind_charge(bytes: u64, runs: u64) -> u64 {
    // However the bytes will be divided among chunks.
    bytes + bytes / 4 + group_hashes(bytes) + runs * limits::BEHIND_RUN_CHARGE
}

/// What of a capacity is left for changes of what is there.
pub fn kept_for_changes(capacity: u64) -> u64 {
    (capacity / limits::CHANGES_SHARE).min(limits::CHANGES_BYTES_MAX)
}

/// The largest amount that fits `copies` times into rooms, no two copies of anything in one room.
pub fn fitting(rooms: &[u64], copies: u64) -> u64 {
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

/// What the cluster holds after replication and can still hold when its largest node is lost (or all that fits, while there are no
/// more nodes than replicas).
pub fn capacity(map: &ClusterMap) -> u64 {
    capacity_of(map.storage_nodes().map(|member| member.memory).collect(), map.replicas)
}

fn capacity_of(mut rooms: Vec<u64>, replicas: u8) -> u64 {
    rooms.sort_unstable();
    let copies = (replicas as usize).min(rooms.len());
    if rooms.len() > replicas as usize {
        rooms.pop();
    }
    fitting(&rooms, copies as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lends_what_its_own_working_leaves() {
        assert_eq!([0, 1, 32 << 20, 512 << 20].map(lent), [0, 1, 16 << 20, 472 << 20]);
    }

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
    fn allocations_come_in_four_sizes_between_powers_of_two() {
        let sizes = [(0, 0), (1, 16), (100, 112), (128, 128), (129, 160), (161, 192), (4096, 4096), (4097, 5120), (65_537, 80 << 10)];
        sizes.into_iter().for_each(|(length, taken)| assert_eq!(allocation(length), taken, "{length}"));
        assert_eq!((allocation(1 << 20), allocation((1 << 20) - 1), allocation(700 << 10)), (1 << 20, 1 << 20, 768 << 10));
        assert!((1..100_000).all(|length| behind_charge(length, 1) >= chunk_charge(length)));
    }

    #[test]
    fn one_node_may_die_once_there_are_more_than_replicas() {
        assert_eq!(capacity_of(vec![10, 10], 2), 10);
        assert_eq!(capacity_of(vec![10, 10, 10], 2), 10);
        assert_eq!(capacity_of(vec![10, 10, 10, 10], 2), 15);
        assert_eq!(capacity_of(vec![10], 2), 10);
        assert_eq!(capacity_of(vec![], 2), 0);
        assert_eq!(capacity_of(vec![10], 1), 10);
        assert_eq!(capacity_of(vec![10, 10, 10], 1), 20);
        assert_eq!(capacity_of(vec![10, 10, 10], 3), 10);
        assert_eq!(capacity_of(vec![10, 10, 10, 10], 3), 10);
        assert_eq!(capacity_of(vec![10, 10], 3), 10);
    }
}
