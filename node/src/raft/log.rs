//! The Raft log, in RAM only: entries since the last compaction, and what it takes to be the library's [`Storage`].
//!
//! Owns entries and their bound. Knows no snapshot bytes: whoever lags behind the log is told by [`super::Group`], never served from here.

use std::collections::VecDeque;

use ::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use ::raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

/// What an entry costs beside its data: the struct, its place in the queue, allocator overhead.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Entries `first..=last`, and the term of the entry before `first`.
pub(super) struct Log {
    /// Entry `i` has index `base_index + 1 + i`.
    entries: VecDeque<Entry>,
    /// Sum of [`cost`] over `entries`.
    bytes: usize,
    /// The last entry that compaction or a snapshot replaced; 0 in an empty log.
    base_index: u64,
    base_term: u64,
    /// What the library reads once, when the group starts.
    initial: RaftState,
}

/// What an entry takes of the bound.
fn cost(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES
}

impl Log {
    /// A log whose history up to `base_index` is already part of the state machine.
    pub(super) fn new(base_index: u64, base_term: u64, configuration: ConfState) -> Self {
        let hard = HardState { term: base_term, commit: base_index, ..Default::default() };
        Log { entries: VecDeque::new(), bytes: 0, base_index, base_term, initial: RaftState::new(hard, configuration) }
    }

    /// Index of the first entry that is still here.
    pub(super) fn first(&self) -> u64 {
        self.base_index + 1
    }

    /// Index of the last entry, compacted or not.
    pub(super) fn last(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }

    /// Bytes held, overhead included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of entries held.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries behind that index.
    pub(super) fn behind(&self, index: u64) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.index > index)
    }

    /// Appends; an entry whose index is taken replaces that one and everything after it.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(start) = entries.first().map(|entry| entry.index) else { return };
        assert!(start > self.base_index, "entry {start} would rewrite compacted history up to {}", self.base_index);
        assert!(start <= self.last() + 1, "entry {start} would leave a gap after {}", self.last());
        while self.last() >= start {
            let dropped = self.entries.pop_back().expect("last() counts entries");
            self.bytes -= cost(&dropped);
        }
        for entry in entries {
            assert!(entry.index == self.last() + 1, "entries of one append are contiguous");
            self.bytes += cost(&entry);
            self.entries.push_back(entry);
        }
    }

    /// Forgets everything: the state machine now stands at `index`.
    pub(super) fn restart_at(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.base_index = index;
        self.base_term = term;
    }

    /// Drops the oldest entries, none beyond `upto`, until what is left fits both bounds.
    pub(super) fn compact(&mut self, upto: u64, bytes_max: usize, entries_max: usize) {
        while (self.bytes > bytes_max || self.entries.len() > entries_max) && self.base_index < upto {
            let Some(dropped) = self.entries.pop_front() else { return };
            self.bytes -= cost(&dropped);
            self.base_index = dropped.index;
            self.base_term = dropped.term;
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> ::raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} asked, the last is {}", self.last());
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut size = 0;
        let mut found = Vec::new();
        for entry in self.entries.range(range) {
            size += cost(entry) as u64;
            // At least one, or replication would stand still at an entry above the size.
            if size > max_size && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        if index == self.base_index {
            return Ok(self.base_term);
        }
        if index < self.base_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let place = (index - self.first()) as usize;
        self.entries.get(place).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> ::raft::Result<Snapshot> {
        // Snapshots travel outside the library. A follower behind the log stays in its probing state until it reports the index of
        // the snapshot it installed, which is an ordinary acknowledgement to the library.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 10].into(), ..Default::default() }
    }

    #[test]
    fn a_conflicting_suffix_is_replaced_and_the_bytes_are_counted() {
        let mut log = Log::new(1, 1, ConfState::default());
        log.append((2..10).map(|index| entry(index, 1)).collect());
        log.append(vec![entry(5, 2), entry(6, 2)]);
        assert_eq!((log.last(), log.term(4).unwrap(), log.term(6).unwrap()), (6, 1, 2));
        assert_eq!(log.bytes(), 5 * (10 + ENTRY_OVERHEAD_BYTES));
        assert!(log.term(7).is_err());
    }

    #[test]
    fn compaction_keeps_the_bound_and_the_term_before_the_first_entry() {
        let mut log = Log::new(0, 0, ConfState::default());
        log.append((1..101).map(|index| entry(index, index / 10 + 1)).collect());
        log.compact(50, usize::MAX, 20);
        assert_eq!((log.first(), log.len()), (51, 50), "never beyond what was allowed");
        log.compact(100, usize::MAX, 20);
        assert_eq!((log.first(), log.term(80).unwrap()), (81, 9));
        assert!(matches!(log.entries(80, 82, None, GetEntriesContext::empty(false)), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(log.entries(90, 95, 1, GetEntriesContext::empty(false)).unwrap().len(), 1);
    }
}
