//! Which slots to fold: those that gathered many small writes here, those that the leader hints at, those that a write found too full.
//!
//! One fold at a time and in the background; one that loses a race is dropped, its slot will be hinted at again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits;
use crate::time::Time;
use crate::types::{ByteRange, InodeId};
use crate::wire::namespace::{Patch, Source, WriteAt};

use super::core::{Core, Phase, Work};
use super::read::{Purpose, ReadJob};

#[derive(Clone, Copy, Debug)]
struct Count {
    writes: u32,
    bytes: u64,
    /// Where the last one ended: a write that goes on there is merged with it.
    end: u64,
}

/// The books of folding.
pub(super) struct FoldBook {
    counts: BTreeMap<(InodeId, u64), Count>,
    sizes: BTreeMap<InodeId, u64>,
    queue: VecDeque<(InodeId, u64, Option<u64>)>,
    queued: BTreeSet<(InodeId, u64)>,
    running: bool,
}

impl FoldBook {
    pub(super) fn new() -> Self {
        FoldBook { counts: BTreeMap::new(), sizes: BTreeMap::new(), queue: VecDeque::new(), queued: BTreeSet::new(), running: false }
    }

    /// Counts the small patches of a commit whose first patch went to `offset`.
    pub(super) fn note_written(&mut self, ino: InodeId, offset: u64, patches: &[Patch], size: u64) {
        self.sizes.insert(ino, size);
        if self.sizes.len() > limits::CLIENT_FOLDS_MAX {
            self.sizes.pop_first();
        }
        let mut at = offset;
        for patch in patches {
            if let WriteAt::Offset(offset) = patch.at {
                at = offset;
            }
            if matches!(patch.source, Source::Inline(_)) {
                self.count(ino, at, patch.length);
            }
            at += patch.length;
        }
    }

    fn count(&mut self, ino: InodeId, at: u64, length: u64) {
        let key = (ino, at / limits::SLOT_BYTES);
        let count = self.counts.entry(key).or_insert(Count { writes: 0, bytes: 0, end: u64::MAX });
        count.writes += u32::from(count.end != at);
        count.bytes += length;
        count.end = at + length;
        if count.writes > limits::FOLD_AFTER_WRITES || count.bytes > limits::FOLD_AFTER_BYTES {
            self.counts.remove(&key);
            self.enqueue(key.0, key.1);
        } else if self.counts.len() > limits::CLIENT_FOLDS_MAX {
            self.counts.pop_first();
        }
    }

    /// The leader says that these slots would gain.
    pub(super) fn hint(&mut self, ino: InodeId, slots: &[(u64, u64)]) {
        slots.iter().for_each(|(slot, _)| self.enqueue(ino, *slot));
    }

    /// A write cannot go on before the slot is folded. False if too much waits already.
    pub(super) fn demand(&mut self, ino: InodeId, slot: u64, job: u64) -> bool {
        let room = self.queue.len() < 2 * limits::CLIENT_FOLDS_MAX;
        if room {
            self.queue.push_front((ino, slot, Some(job)));
        }
        room
    }

    /// The file's size as a write last reported it.
    pub(super) fn size(&self, ino: InodeId) -> Option<u64> {
        self.sizes.get(&ino).copied()
    }

    /// The running fold is over.
    pub(super) fn on_ended(&mut self) {
        self.running = false;
    }

    fn enqueue(&mut self, ino: InodeId, slot: u64) {
        if self.queue.len() < limits::CLIENT_FOLDS_MAX && self.queued.insert((ino, slot)) {
            self.queue.push_back((ino, slot, None));
        }
    }

    fn next(&mut self) -> Option<(InodeId, u64, Option<u64>)> {
        if self.running {
            return None;
        }
        let (ino, slot, waiter) = self.queue.pop_front()?;
        if waiter.is_none() {
            self.queued.remove(&(ino, slot));
        }
        self.running = true;
        Some((ino, slot, waiter))
    }
}

impl Core {
    /// Begins the next fold unless one is under way. Returns whether it did.
    pub(super) fn start_fold(&mut self, now: Time) -> bool {
        if self.phase != Phase::Ready {
            return false;
        }
        let Some((ino, slot, waiter)) = self.folds.next() else { return false };
        let range = ByteRange { offset: slot.saturating_mul(limits::SLOT_BYTES), length: limits::SLOT_BYTES };
        let deadline = now + self.config.op_timeout;
        let read = ReadJob::new(ino, range, Purpose::Fold { slot, waiter });
        let job = self.add_job(None, deadline, Work::Read(Box::new(read)), false);
        self.ask_layout(now, job, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn patch(at: u64, length: usize) -> Patch {
        let bytes = Bytes::from(vec![1; length]);
        Patch { at: WriteAt::Offset(at), length: length as u64, source: Source::Inline(bytes) }
    }

    #[test]
    fn scattered_writes_fold_by_number_and_appends_by_size() {
        let mut book = FoldBook::new();
        for n in 0..=limits::FOLD_AFTER_WRITES as u64 {
            assert!(book.queue.is_empty());
            book.note_written(InodeId(1), n * 100, &[patch(n * 100, 10)], 1 << 20);
        }
        assert_eq!(book.next(), Some((InodeId(1), 0, None)));
        book.on_ended();
        let mut at = 0;
        while book.queue.is_empty() {
            book.note_written(InodeId(2), at, &[patch(at, 1000)], 1 << 20);
            at += 1000;
        }
        assert!(at > limits::FOLD_AFTER_BYTES && at <= limits::FOLD_AFTER_BYTES + 1000);
        book.hint(InodeId(2), &[(0, 1)]);
        assert_eq!(book.queue.len(), 1, "queued once");
        assert!(book.demand(InodeId(2), 5, 9));
        assert_eq!(book.next(), Some((InodeId(2), 5, Some(9))), "who waits goes first");
        assert_eq!(book.next(), None, "one at a time");
    }
}
