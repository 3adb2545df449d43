//! The chunk cache: verified bytes by hash, whole or in parts, least recently used first out.
//!
//! What is here never goes stale: a hash names its bytes for ever.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::limits;
use crate::types::{ByteRange, ChunkHash};

struct Entry {
    /// Runs by their offset in the chunk. A whole chunk is one run at 0.
    runs: BTreeMap<u64, Bytes>,
    /// What the runs take.
    bytes: usize,
    used: u64,
}

/// What a run takes: its bytes, and its place in the tables, where each chunk has most often one.
fn cost(run: &Bytes) -> usize {
    run.len() + limits::CLIENT_CACHE_RUN_BYTES
}

/// Bounded by what it takes.
pub(super) struct ChunkCache {
    bytes_max: usize,
    bytes: usize,
    entries: BTreeMap<ChunkHash, Entry>,
    by_use: BTreeMap<u64, ChunkHash>,
    clock: u64,
}

impl ChunkCache {
    pub(super) fn new(bytes_max: usize) -> Self {
        ChunkCache { bytes_max, bytes: 0, entries: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    /// The bytes of a range, if one run holds them all.
    pub(super) fn find(&mut self, hash: &ChunkHash, range: ByteRange) -> Option<Bytes> {
        let entry = self.entries.get_mut(hash)?;
        let (&start, run) = entry.runs.range(..=range.offset).next_back()?;
        if start + (run.len() as u64) < range.end() {
            return None;
        }
        let from = (range.offset - start) as usize;
        let found = run.slice(from..from + range.length as usize);
        self.by_use.remove(&entry.used);
        self.clock += 1;
        entry.used = self.clock;
        self.by_use.insert(self.clock, *hash);
        Some(found)
    }

    /// Keeps verified bytes that begin at `offset` of the chunk, and drops what they cover.
    pub(super) fn insert(&mut self, hash: ChunkHash, offset: u64, bytes: Bytes) {
        if bytes.is_empty() || cost(&bytes) > self.bytes_max {
            return;
        }
        self.clock += 1;
        let entry = self.entries.entry(hash).or_insert_with(|| Entry { runs: BTreeMap::new(), bytes: 0, used: 0 });
        self.by_use.remove(&entry.used);
        entry.used = self.clock;
        self.by_use.insert(self.clock, hash);
        let end = offset + bytes.len() as u64;
        let before = entry.bytes;
        entry.runs.retain(|start, run| *start < offset || start + run.len() as u64 > end);
        entry.runs.insert(offset, bytes);
        entry.bytes = entry.runs.values().map(cost).sum();
        self.bytes = self.bytes + entry.bytes - before;
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(gone) = self.entries.remove(&oldest) {
                self.bytes -= gone.bytes;
            }
        }
    }

    /// What it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.bytes <= self.bytes_max);
        assert_eq!(self.bytes, self.entries.values().flat_map(|entry| entry.runs.values()).map(cost).sum::<usize>());
        assert_eq!(self.entries.len(), self.by_use.len());
        assert!(self.by_use.iter().all(|(used, hash)| self.entries[hash].used == *used));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERHEAD: usize = limits::CLIENT_CACHE_RUN_BYTES;

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange { offset, length }
    }

    #[test]
    fn runs_are_found_covered_and_evicted() {
        let mut cache = ChunkCache::new(100 + 2 * OVERHEAD);
        let hash = |n: u8| ChunkHash([n; 32]);
        cache.insert(hash(1), 10, Bytes::from(vec![1; 20]));
        assert_eq!(cache.find(&hash(1), range(15, 5)).unwrap(), vec![1; 5]);
        assert!(cache.find(&hash(1), range(5, 6)).is_none());
        assert!(cache.find(&hash(1), range(25, 6)).is_none());
        cache.insert(hash(1), 0, Bytes::from(vec![2; 40]));
        cache.check_invariants();
        assert_eq!(cache.bytes(), 40 + OVERHEAD);
        cache.insert(hash(2), 0, Bytes::from(vec![3; 50]));
        assert!(cache.find(&hash(1), range(0, 40)).is_some());
        cache.insert(hash(3), 0, Bytes::from(vec![4; 50]));
        assert!(cache.find(&hash(2), range(0, 1)).is_none(), "the least recently used goes first");
        assert!(cache.find(&hash(1), range(0, 1)).is_some());
        cache.insert(hash(4), 0, Bytes::from(vec![4; 101 + 2 * OVERHEAD]));
        cache.check_invariants();
    }

    #[test]
    fn small_chunks_count_with_what_it_takes_to_keep_them() {
        let mut cache = ChunkCache::new(100 * OVERHEAD);
        for n in 0..1000u64 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_le_bytes());
            cache.insert(ChunkHash(hash), 0, Bytes::from(vec![n as u8; 1]));
        }
        cache.check_invariants();
        assert!(cache.entries.len() < 100, "{} entries in the room of a hundred", cache.entries.len());
    }
}
