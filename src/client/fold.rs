//! Which slots to fold: those that gathered many small writes here, those that the leader hints at, those that a write found too full;
//! and, without haste, those that were left alone with more inline bytes than may rest in the namespace.
//!
//! A few at a time and in the background; one that loses a race to a write is tried again when the slot rests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::limits;
use crate::time::Time;
use crate::types::{ByteRange, InodeId};
use crate::wire::namespace::{Extent, Patch, Source, WriteAt};

use super::core::{Alarm, Core, Phase, Work};
use super::read::{Purpose, ReadJob};

/// How far `next` looks for a slot that is not being folded already.
const LOOK_AHEAD: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Count {
    writes: u32,
    bytes: u64,
    /// Where the last one ended: a write that goes on there is merged with it.
    end: u64,
}

/// A slot to fold, and the job that waits for it.
type Wanted = (InodeId, u64, Option<u64>);

/// The books of folding.
pub(super) struct FoldBook {
    counts: BTreeMap<(InodeId, u64), Count>,
    sizes: BTreeMap<InodeId, u64>,
    queue: VecDeque<Wanted>,
    queued: BTreeSet<(InodeId, u64)>,
    running: BTreeSet<(InodeId, u64)>,
    /// Slots with much inline content, and when they will have been left alone long enough.
    resting: BTreeMap<(InodeId, u64), Time>,
    /// The same by time.
    rest_due: BTreeSet<(Time, InodeId, u64)>,
    /// When the last fold at rest began.
    rested: Time,
    /// Until then the cluster is believed to have no room for inline content.
    inline_full_until: Time,
    /// Until then nodes are believed to have no room for whole chunks.
    crowded_until: Time,
}

impl FoldBook {
    pub(super) fn new() -> Self {
        FoldBook {
            counts: BTreeMap::new(),
            sizes: BTreeMap::new(),
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            running: BTreeSet::new(),
            resting: BTreeMap::new(),
            rest_due: BTreeSet::new(),
            rested: Time(0),
            inline_full_until: Time(0),
            crowded_until: Time(0),
        }
    }

    /// Counts the small patches of a commit whose first patch went to `offset`.
    pub(super) fn note_written(&mut self, now: Time, ino: InodeId, offset: u64, patches: &[Patch], size: u64) {
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
                self.count(now, ino, at, patch.length, size);
            }
            at += patch.length;
        }
    }

    /// Slots of a range got inline bytes by copying, which nobody folds who only folds what he wrote.
    pub(super) fn note_copied(&mut self, now: Time, ino: InodeId, range: ByteRange) {
        let slots = range.offset / limits::SLOT_BYTES..range.end().div_ceil(limits::SLOT_BYTES);
        for slot in slots.take(limits::FOLDS_NOTED_PER_COPY_MAX) {
            self.rest((ino, slot), now + limits::FOLD_REST_AFTER);
        }
    }

    fn count(&mut self, now: Time, ino: InodeId, at: u64, length: u64, size: u64) {
        let key = (ino, at / limits::SLOT_BYTES);
        let count = self.counts.entry(key).or_insert(Count { writes: 0, bytes: 0, end: u64::MAX });
        count.writes += u32::from(count.end != at);
        count.bytes += length;
        count.end = at + length;
        let (writes, bytes) = (count.writes, count.bytes);
        if count.writes > limits::FOLD_AFTER_WRITES || count.bytes > limits::FOLD_AFTER_BYTES {
            self.forget(key);
            return self.enqueue(key.0, key.1);
        }
        if self.counts.len() > limits::CLIENT_FOLDS_MAX {
            self.counts.pop_first();
        }
        let in_slot = size.saturating_sub(key.1 * limits::SLOT_BYTES).min(limits::SLOT_BYTES);
        let much = bytes > (in_slot / limits::FOLD_INLINE_SHARE).max(limits::INLINE_REST_BYTES_MAX as u64);
        if much || writes as usize > limits::FOLD_EXTENTS_MIN {
            self.rest(key, now + limits::FOLD_REST_AFTER);
        }
    }

    /// The leader says that these slots would gain. What makes reading slow is folded soon, what only fills the namespace at rest, and
    /// later than the writer would.
    pub(super) fn hint(&mut self, now: Time, ino: InodeId, slots: &[(u64, u64)], extents: &[Extent]) {
        if now < self.crowded_until {
            return; // said again by the next answer about the file
        }
        for (slot, _) in slots {
            let start = slot.saturating_mul(limits::SLOT_BYTES);
            let first = extents.partition_point(|extent| extent.offset < start);
            let within = extents[first..].iter().take_while(|extent| extent.offset - start < limits::SLOT_BYTES);
            if within.filter(|extent| extent.source != Source::Hole).count() > limits::FOLD_EXTENTS_MIN {
                self.enqueue(ino, *slot);
            } else if !self.resting.contains_key(&(ino, *slot)) {
                self.rest((ino, *slot), now + 2 * limits::FOLD_REST_AFTER);
            }
        }
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

    /// The fold is over.
    pub(super) fn on_ended(&mut self, ino: InodeId, slot: u64) {
        self.running.remove(&(ino, slot));
    }

    /// The fold came too late, the slot was written meanwhile: once more when it rests.
    pub(super) fn on_overtaken(&mut self, now: Time, ino: InodeId, slot: u64) {
        self.rest((ino, slot), now + limits::FOLD_REST_AFTER);
    }

    /// The cluster refused inline content for want of room.
    pub(super) fn on_inline_full(&mut self, now: Time) {
        self.inline_full_until = now + limits::INLINE_FULL_PAUSE;
    }

    /// A chunk found no room.
    pub(super) fn on_no_room(&mut self, now: Time) {
        self.crowded_until = now + limits::CROWDED_PAUSE;
    }

    /// Up to which size a write rides inside its commit.
    pub(super) fn inline_max(&self, now: Time) -> usize {
        if now < self.inline_full_until { limits::INLINE_REST_BYTES_MAX } else { limits::INLINE_WRITE_BYTES_MAX }
    }

    /// Asserts that the indexes agree and the bounds hold.
    pub(super) fn check_invariants(&self) {
        assert!(self.running.len() <= limits::FOLDS_RUNNING_MAX);
        assert!(self.resting.len() <= limits::FOLD_REST_SLOTS_MAX);
        assert_eq!(self.resting.len(), self.rest_due.len());
    }

    fn enqueue(&mut self, ino: InodeId, slot: u64) {
        if self.queue.len() < limits::CLIENT_FOLDS_MAX && self.queued.insert((ino, slot)) {
            self.queue.push_back((ino, slot, None));
        }
    }

    fn rest(&mut self, key: (InodeId, u64), due: Time) {
        if self.resting.len() >= limits::FOLD_REST_SLOTS_MAX && !self.resting.contains_key(&key) {
            return;
        }
        if let Some(before) = self.resting.insert(key, due) {
            self.rest_due.remove(&(before, key.0, key.1));
        }
        self.rest_due.insert((due, key.0, key.1));
    }

    /// The slot is about to be folded: what was counted of it is of no interest any more.
    fn forget(&mut self, key: (InodeId, u64)) {
        self.counts.remove(&key);
        if let Some(due) = self.resting.remove(&key) {
            self.rest_due.remove(&(due, key.0, key.1));
        }
    }

    /// What to fold now. `busy`: somebody waits for this client, folds at rest keep out of the way.
    fn next(&mut self, now: Time, busy: bool) -> Option<Wanted> {
        if self.running.len() >= limits::FOLDS_RUNNING_MAX {
            return None;
        }
        let free = self.queue.iter().take(LOOK_AHEAD).position(|(ino, slot, _)| !self.running.contains(&(*ino, *slot)));
        if let Some(wanted) = free.and_then(|index| self.queue.remove(index)) {
            let key = (wanted.0, wanted.1);
            if wanted.2.is_none() {
                self.queued.remove(&key);
            }
            self.forget(key);
            self.running.insert(key);
            return Some(wanted);
        }
        let at = self.next_rest(busy)?;
        let &(_, ino, slot) = self.rest_due.first().filter(|_| at <= now)?;
        self.forget((ino, slot));
        self.rested = now;
        self.running.insert((ino, slot)).then_some((ino, slot, None))
    }

    /// When the next fold at rest may begin, if none of those running ends before.
    fn next_rest(&self, busy: bool) -> Option<Time> {
        let &(due, ..) = self.rest_due.first()?;
        let haste = !busy || self.resting.len() > limits::FOLD_REST_SLOTS_MAX / 2;
        let pace: Duration = if haste { limits::FOLD_PACE_IDLE } else { limits::FOLD_PACE_BUSY };
        (self.running.len() < limits::FOLDS_RUNNING_MAX).then(|| due.max(self.rested + pace))
    }
}

impl Core {
    /// Begins the next fold if one may begin now. Returns whether it did.
    pub(super) fn start_fold(&mut self, now: Time) -> bool {
        if self.phase != Phase::Ready {
            return false;
        }
        let busy = self.jobs.values().any(|job| job.token.is_some());
        let Some((ino, slot, waiter)) = self.folds.next(now, busy) else {
            match self.folds.next_rest(busy) {
                Some(at) => self.arm(at, Alarm::Fold),
                None => self.disarm(Alarm::Fold),
            }
            return false;
        };
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

    const NOW: Time = Time(1 << 40);

    fn patch(at: u64, length: usize) -> Patch {
        let bytes = Bytes::from(vec![1; length]);
        Patch { at: WriteAt::Offset(at), length: length as u64, source: Source::Inline(bytes) }
    }

    #[test]
    fn scattered_writes_fold_by_number_and_appends_by_size() {
        let mut book = FoldBook::new();
        for n in 0..=limits::FOLD_AFTER_WRITES as u64 {
            assert!(book.queue.is_empty());
            book.note_written(NOW, InodeId(1), n * 100, &[patch(n * 100, 10)], 1 << 20);
        }
        assert_eq!(book.next(NOW, true), Some((InodeId(1), 0, None)));
        book.on_ended(InodeId(1), 0);
        let mut at = 0;
        while book.queue.is_empty() {
            book.note_written(NOW, InodeId(2), at, &[patch(at, 1000)], 1 << 20);
            at += 1000;
        }
        assert!(at > limits::FOLD_AFTER_BYTES && at <= limits::FOLD_AFTER_BYTES + 1000);
        let extent = |n: u64| Extent { offset: 10 * n, length: 10, source: Source::Inline(Bytes::from_static(&[1; 10])) };
        let extents: Vec<_> = (0..=limits::FOLD_EXTENTS_MIN as u64).map(extent).collect();
        book.hint(NOW, InodeId(2), &[(0, 1)], &extents);
        assert_eq!(book.queue.len(), 1, "queued once");
        assert!(book.demand(InodeId(2), 5, 9) && book.demand(InodeId(2), 5, 10));
        assert_eq!(book.next(NOW, true), Some((InodeId(2), 5, Some(10))), "who waits goes first");
        assert_eq!(book.next(NOW, true), Some((InodeId(2), 0, None)), "no slot is folded twice at a time");
        assert_eq!(book.next(NOW, true), None);
        book.on_ended(InodeId(2), 5);
        assert_eq!(book.next(NOW, true), Some((InodeId(2), 5, Some(9))));
        book.check_invariants();
    }

    #[test]
    fn small_files_are_folded_once_left_alone_and_at_a_pace() {
        let mut book = FoldBook::new();
        book.note_written(NOW, InodeId(1), 0, &[patch(0, 1024)], 1024);
        assert_eq!(book.next_rest(false), None, "that much may stay");
        for n in 2..10 {
            book.note_written(NOW, InodeId(n), 0, &[patch(0, 4096)], 4096);
        }
        book.note_written(NOW, InodeId(10), 0, &[patch(0, 4096)], 1 << 20);
        let quiet = NOW + limits::FOLD_REST_AFTER;
        assert_eq!(book.next_rest(false), Some(quiet));
        assert_eq!(book.next(NOW, false), None);
        // Written again: its time begins anew. Hints change nothing for a slot that has its time.
        book.note_written(NOW + limits::FOLD_PACE_BUSY, InodeId(2), 0, &[patch(4096, 10)], 4106);
        book.hint(NOW, InodeId(3), &[(0, 1)], &[]);
        assert_eq!(book.next(quiet, true), Some((InodeId(3), 0, None)));
        assert_eq!(book.next(quiet, false), None, "not all at once");
        assert_eq!(book.next(quiet + limits::FOLD_PACE_IDLE, true), None, "and slower while somebody waits");
        let mut at = quiet;
        let mut begun = 1;
        while book.next_rest(false).is_some() {
            at = at + limits::FOLD_PACE_IDLE;
            begun += usize::from(book.next(at, false).is_some());
            book.check_invariants();
        }
        assert_eq!(begun, limits::FOLDS_RUNNING_MAX);
        for n in 2..10 {
            book.on_ended(InodeId(n), 0);
        }
        while begun < 8 {
            at = at + limits::FOLD_PACE_BUSY;
            if let Some((ino, slot, _)) = book.next(at, true) {
                assert_ne!(ino, InodeId(10), "a small part of a large slot may stay");
                book.on_ended(ino, slot);
                begun += 1;
            }
        }
        assert_eq!(book.next_rest(false), None);
    }
}
