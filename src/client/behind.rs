//! Bytes that this session has accepted under `WRITE` and has not committed yet.
//!
//! A pure table. Owns the dirty runs of each file, those on their way included, and the room that they will take. It never answers for what it
//! does not hold: a reader lays its runs over what is committed. When they go is decided in [`super::flush`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use crate::capacity::behind_charge;
use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Attributes, ByteRange, InodeId, Timestamp};

const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// Bytes to be committed lie in allocations that are longer by this part of them at most.
const SPARE_SHARE: usize = 8;

/// A run of a file.
pub(super) type Run = (u64, Bytes);

/// How much of a file is taken to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    All,
    /// Only slots that are dirty from end to end: the others may still be completed.
    WholeSlots,
}

/// What is to be committed next of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// In order, none across a slot's border.
    pub(super) runs: Vec<Run>,
    pub(super) written: Timestamp,
    pub(super) kill_privileges: bool,
    /// No chunk may be longer.
    pub(super) chunk_max: usize,
}

/// One file.
#[derive(Debug)]
struct Dirty {
    /// Runs by offset. None overlaps another, or crosses a slot's border.
    segments: BTreeMap<u64, BytesMut>,
    segment_bytes: usize,
    /// Older runs in order, being committed by that job.
    flying: Vec<Run>,
    flying_bytes: usize,
    job: Option<u64>,
    /// The newest write that is in `segments`, the newest of the job, and the newest of which it is known that all up to it are committed.
    accepted: u64,
    flown: u64,
    committed: u64,
    /// When to commit at the latest.
    due: Time,
    last: Time,
    written: Timestamp,
    kill_privileges: bool,
    /// Behind the last dirty byte.
    end: u64,
    whole_slots: usize,
    /// A commit that would have given `WRITE` back had no answer: if the right is gone, it was by that commit.
    may_have_yielded: bool,
    /// Why the last job failed.
    failed: Option<Status>,
    /// Another number after each commit.
    commits: u64,
    /// For longer chunks no two nodes had room, since the file was last clean.
    chunk_max: usize,
}

/// The table.
#[derive(Debug)]
pub(super) struct Behind {
    files: BTreeMap<InodeId, Dirty>,
    /// Index of `due` of files without a job.
    due: BTreeSet<(Time, InodeId)>,
    /// Counts writes, over all files.
    writes: u64,
    /// Of all runs.
    bytes: usize,
    runs: usize,
    bytes_max: usize,
}

/// What a write of that length is charged for at most, until it is committed.
pub(super) fn charge(length: usize) -> u64 {
    behind_charge(length as u64, length as u64 / limits::SLOT_BYTES + 2)
}

impl Behind {
    pub(super) fn new(bytes_max: usize) -> Self {
        Behind { files: BTreeMap::new(), due: BTreeSet::new(), writes: 0, bytes: 0, runs: 0, bytes_max }
    }

    /// Whether so many more bytes may be accepted.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.bytes + self.runs * size_of::<(u64, BytesMut)>() + length <= self.bytes_max
    }

    /// Whether so much waits that files should go before they are due.
    pub(super) fn is_pressed(&self) -> bool {
        !self.has_room(self.bytes_max / 2)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The room that all of it will take at most.
    pub(super) fn charge(&self) -> u64 {
        behind_charge(self.bytes as u64, self.runs as u64)
    }

    /// Whether anything of the file is not committed.
    pub(super) fn is_dirty(&self, ino: InodeId) -> bool {
        self.files.contains_key(&ino)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = InodeId> {
        self.files.keys().copied()
    }

    /// The newest write of each dirty file, to wait for.
    pub(super) fn marks(&self) -> BTreeMap<InodeId, u64> {
        self.files.iter().map(|(&ino, dirty)| (ino, dirty.newest())).collect()
    }

    /// The newest write of the file, to wait for; `None` if all is committed.
    pub(super) fn mark(&self, ino: InodeId) -> Option<u64> {
        self.files.get(&ino).map(Dirty::newest)
    }

    /// Whether all writes up to that one are committed.
    pub(super) fn is_committed(&self, ino: InodeId, mark: u64) -> bool {
        self.files.get(&ino).is_none_or(|dirty| dirty.committed >= mark)
    }

    /// Changes whenever a part of what was dirty has been committed.
    pub(super) fn commits(&self, ino: InodeId) -> Option<u64> {
        self.files.get(&ino).map(|dirty| dirty.commits)
    }

    /// Whether a job commits a part of the file.
    pub(super) fn is_flying(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|dirty| dirty.job.is_some())
    }

    /// Whether nothing was written since the job took what there was.
    pub(super) fn is_taken(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_none_or(|dirty| dirty.segments.is_empty())
    }

    /// Whether the file was left alone for a while.
    pub(super) fn is_idle(&self, now: Time, ino: InodeId) -> bool {
        self.files.get(&ino).is_none_or(|dirty| now.since(dirty.last) >= limits::BEHIND_IDLE)
    }

    /// Whole slots that wait.
    pub(super) fn whole_slots(&self, ino: InodeId) -> usize {
        self.files.get(&ino).map_or(0, |dirty| dirty.whole_slots)
    }

    /// Takes a write in.
    pub(super) fn write(&mut self, now: Time, ino: InodeId, offset: u64, bytes: Bytes, written: Timestamp, kill_privileges: bool) {
        self.writes += 1;
        let writes = self.writes;
        let dirty = self.files.entry(ino).or_insert_with(|| Dirty { commits: writes, ..Dirty::new(now + limits::BEHIND_AGE) });
        if dirty.segments.is_empty() && dirty.job.is_none() {
            self.due.remove(&(dirty.due, ino));
            dirty.due = now + limits::BEHIND_AGE;
            self.due.insert((dirty.due, ino));
        }
        dirty.accepted = self.writes;
        dirty.last = now;
        dirty.written = dirty.written.max(written);
        dirty.kill_privileges |= kill_privileges;
        dirty.end = dirty.end.max(offset + bytes.len() as u64);
        let before = dirty.size();
        dirty.insert(offset, bytes);
        let after = dirty.size();
        self.resize(before, after);
    }

    /// Takes the oldest part of the file for a job, unless there is one already or nothing to take.
    pub(super) fn take(&mut self, ino: InodeId, cut: Cut, job: u64) -> Option<Taken> {
        let dirty = self.files.get_mut(&ino).filter(|dirty| dirty.job.is_none())?;
        let before = dirty.size();
        match cut {
            Cut::All => {
                dirty.flown = dirty.accepted;
                dirty.segment_bytes = 0;
                for (offset, bytes) in std::mem::take(&mut dirty.segments) {
                    dirty.fly(offset, bytes);
                }
            }
            Cut::WholeSlots => {
                let whole: Vec<u64> = dirty.segments.iter().filter(|(_, bytes)| is_whole(bytes)).map(|(&offset, _)| offset).collect();
                for offset in whole {
                    let bytes = dirty.remove(offset);
                    dirty.fly(offset, bytes);
                }
                dirty.flown = dirty.committed;
            }
        }
        dirty.whole_slots = 0;
        if dirty.flying.is_empty() {
            return None;
        }
        dirty.job = Some(job);
        self.due.remove(&(dirty.due, ino));
        let after = dirty.size();
        let (written, kill_privileges, chunk_max) = (dirty.written, dirty.kill_privileges, dirty.chunk_max);
        let taken = Taken { runs: dirty.flying.clone(), written, kill_privileges, chunk_max };
        self.resize(before, after);
        Some(taken)
    }

    /// The job has committed all of its runs up to `end`, of one that goes on beyond it the beginning: what is committed is never sent again,
    /// or a file whose last part finds no room would be committed without an end. Gives what it was charged for.
    pub(super) fn on_part(&mut self, ino: InodeId, end: u64) -> u64 {
        self.writes += 1;
        let Some(dirty) = self.files.get_mut(&ino) else { return 0 };
        let before = dirty.size();
        dirty.commits = self.writes;
        dirty.flying.retain(|(offset, bytes)| offset + bytes.len() as u64 > end);
        for (offset, bytes) in dirty.flying.iter_mut().filter(|(offset, _)| *offset < end) {
            *bytes = bytes.slice((end - *offset) as usize..);
            *offset = end;
        }
        dirty.flying_bytes = dirty.flying.iter().map(|(_, bytes)| bytes.len()).sum();
        let after = dirty.size();
        self.resize(before, after);
        behind_charge((before.0 - after.0) as u64, (before.1 - after.1) as u64)
    }

    /// The job has committed everything.
    pub(super) fn on_done(&mut self, now: Time, ino: InodeId) {
        let Some(dirty) = self.files.get_mut(&ino) else { return };
        let before = dirty.size();
        (dirty.job, dirty.flying, dirty.flying_bytes, dirty.may_have_yielded) = (None, Vec::new(), 0, false);
        dirty.failed = None;
        dirty.committed = dirty.committed.max(dirty.flown);
        let after = dirty.size();
        self.resize(before, after);
        self.settle(now, ino, limits::BEHIND_AGE);
    }

    /// The job has failed: what it did not commit is dirty as before. `yielding`: its last commit may have happened, and would have given
    /// the right back. Gives what those bytes were charged for.
    pub(super) fn on_failed(&mut self, now: Time, ino: InodeId, status: Status, yielding: bool) -> u64 {
        let Some(dirty) = self.files.get_mut(&ino) else { return 0 };
        let before = dirty.size();
        let flying = behind_charge(dirty.flying_bytes as u64, dirty.flying.len() as u64);
        (dirty.job, dirty.failed) = (None, Some(status));
        dirty.flown = dirty.committed;
        dirty.may_have_yielded |= yielding;
        let newer = std::mem::take(&mut dirty.segments);
        let older = std::mem::take(&mut dirty.flying);
        (dirty.segment_bytes, dirty.flying_bytes) = (0, 0);
        older.into_iter().for_each(|(offset, bytes)| dirty.insert(offset, bytes));
        newer.into_iter().for_each(|(offset, bytes)| dirty.insert(offset, bytes.freeze()));
        let after = dirty.size();
        self.resize(before, after);
        self.settle(now, ino, limits::BEHIND_RETRY);
        flying
    }

    /// No two nodes have room for a chunk of the file: bytes were reserved, and smaller chunks may find them.
    pub(super) fn on_no_room(&mut self, ino: InodeId) {
        if let Some(dirty) = self.files.get_mut(&ino) {
            dirty.chunk_max = (dirty.chunk_max / limits::CROWDED_CHUNK_SHARE).max(limits::CROWDED_CHUNK_BYTES_MIN);
        }
    }

    /// Why one of these files could not be committed when it was last tried.
    pub(super) fn failure(&self, mut inos: impl Iterator<Item = InodeId>) -> Option<Status> {
        inos.find_map(|ino| self.files.get(&ino)?.failed)
    }

    /// Whether the right went with a commit of which there was no answer.
    pub(super) fn may_have_yielded(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|dirty| dirty.may_have_yielded)
    }

    /// Nothing of the file can be committed any more, or everything is.
    pub(super) fn forget(&mut self, ino: InodeId) {
        if let Some(dirty) = self.files.remove(&ino) {
            self.due.remove(&(dirty.due, ino));
            self.resize(dirty.size(), (0, 0));
        }
    }

    /// The next file that is due, if it is by now.
    pub(super) fn next_due(&self, now: Time) -> Option<InodeId> {
        self.due.first().filter(|(at, _)| *at <= now).map(|&(_, ino)| ino)
    }

    /// When the next file is due.
    pub(super) fn due(&self) -> Option<Time> {
        self.due.first().map(|&(at, _)| at)
    }

    /// Brings a file's time forward.
    pub(super) fn hasten(&mut self, now: Time, ino: InodeId) {
        if let Some(dirty) = self.files.get_mut(&ino).filter(|dirty| dirty.job.is_none() && now < dirty.due) {
            self.due.remove(&(dirty.due, ino));
            dirty.due = now;
            self.due.insert((now, ino));
        }
    }

    /// Puts a file's time off a little.
    pub(super) fn postpone(&mut self, now: Time, ino: InodeId) {
        if let Some(dirty) = self.files.get_mut(&ino).filter(|dirty| dirty.job.is_none()) {
            self.due.remove(&(dirty.due, ino));
            dirty.due = now + limits::BEHIND_RETRY;
            self.due.insert((dirty.due, ino));
        }
    }

    /// Lays what was written over attributes of which the leader knows only what was committed.
    pub(super) fn overlay(&self, attributes: &mut Attributes) {
        let Some(dirty) = self.files.get(&attributes.ino) else { return };
        attributes.size = attributes.size.max(dirty.end);
        // As `apply` will date it.
        let written = dirty.written.max(attributes.ctime);
        (attributes.mtime, attributes.ctime) = (written, written);
        let dirty_blocks = dirty.size().0.div_ceil(512) as u64;
        let most = attributes.size.div_ceil(512);
        attributes.blocks = attributes.blocks.max(most.min(attributes.blocks + dirty_blocks));
        if dirty.kill_privileges {
            attributes.mode &= !SET_USER_ID;
            if attributes.mode & GROUP_EXECUTE != 0 {
                attributes.mode &= !SET_GROUP_ID;
            }
        }
    }

    /// The dirty runs that overlap the range, older ones first.
    pub(super) fn within(&self, ino: InodeId, range: ByteRange) -> Vec<Run> {
        let Some(dirty) = self.files.get(&ino) else { return Vec::new() };
        let first = dirty.flying.partition_point(|(offset, bytes)| offset + bytes.len() as u64 <= range.offset);
        let flying = dirty.flying[first..].iter().take_while(|(offset, _)| *offset < range.end());
        let flying = flying.filter_map(|(offset, bytes)| clip(*offset, bytes.len(), range).map(|(at, part)| (at, bytes.slice(part))));
        let from = range.offset / limits::SLOT_BYTES * limits::SLOT_BYTES;
        let segments = dirty.segments.range(from..range.end().max(from));
        let segments = segments
            .filter_map(|(&offset, bytes)| clip(offset, bytes.len(), range).map(|(at, part)| (at, Bytes::copy_from_slice(&bytes[part]))));
        flying.chain(segments).collect()
    }

    /// Where the file ends by what is dirty; 0 if nothing is.
    pub(super) fn end(&self, ino: InodeId) -> u64 {
        self.files.get(&ino).map_or(0, |dirty| dirty.end)
    }

    fn settle(&mut self, now: Time, ino: InodeId, after: std::time::Duration) {
        let Some(dirty) = self.files.get_mut(&ino) else { return };
        if dirty.segments.is_empty() {
            self.files.remove(&ino);
            return;
        }
        dirty.due = now + after;
        self.due.insert((dirty.due, ino));
    }

    fn resize(&mut self, before: (usize, usize), after: (usize, usize)) {
        self.bytes = self.bytes + after.0 - before.0;
        self.runs = self.runs + after.1 - before.1;
    }

    /// Asserts that sums and indexes agree, and that runs keep apart.
    pub(super) fn check_invariants(&self) {
        let (mut bytes, mut runs, mut due) = (0, 0, 0);
        for (ino, dirty) in &self.files {
            let size = dirty.size();
            bytes += size.0;
            runs += size.1;
            assert!(!dirty.segments.is_empty() || dirty.job.is_some(), "a file without dirty bytes is forgotten");
            assert_eq!(dirty.job.is_none(), self.due.contains(&(dirty.due, *ino)), "whatever waits has its time");
            due += usize::from(dirty.job.is_none());
            let mut last = 0;
            let sum = |flying: &Run| flying.1.len();
            assert_eq!(dirty.flying_bytes, dirty.flying.iter().map(sum).sum::<usize>());
            assert_eq!(dirty.segment_bytes, dirty.segments.values().map(BytesMut::len).sum::<usize>());
            for (&offset, bytes) in &dirty.segments {
                let end = offset + bytes.len() as u64;
                assert!(offset >= last && !bytes.is_empty() && offset / limits::SLOT_BYTES == (end - 1) / limits::SLOT_BYTES);
                last = end;
            }
            assert!(last <= dirty.end);
        }
        assert_eq!((bytes, runs, due), (self.bytes, self.runs, self.due.len()));
    }
}

impl Dirty {
    fn new(due: Time) -> Self {
        Dirty {
            segments: BTreeMap::new(),
            segment_bytes: 0,
            flying: Vec::new(),
            flying_bytes: 0,
            job: None,
            accepted: 0,
            flown: 0,
            committed: 0,
            due,
            last: due,
            written: Timestamp::default(),
            kill_privileges: false,
            end: 0,
            whole_slots: 0,
            may_have_yielded: false,
            failed: None,
            commits: 0,
            chunk_max: limits::CHUNK_BYTES_MAX,
        }
    }

    fn newest(&self) -> u64 {
        self.accepted
    }

    /// Bytes and runs.
    fn size(&self) -> (usize, usize) {
        (self.flying_bytes + self.segment_bytes, self.flying.len() + self.segments.len())
    }

    fn remove(&mut self, offset: u64) -> BytesMut {
        let bytes = self.segments.remove(&offset).expect("a run that was just seen");
        self.segment_bytes -= bytes.len();
        bytes
    }

    fn insert(&mut self, offset: u64, mut bytes: Bytes) {
        let mut at = offset;
        while !bytes.is_empty() {
            let room = (limits::SLOT_BYTES - at % limits::SLOT_BYTES) as usize;
            let part = bytes.split_to(room.min(bytes.len()));
            let next = at + part.len() as u64;
            self.insert_part(at, part);
            at = next;
        }
    }

    /// A part within one slot. It becomes one run with what it overlaps, and with what it continues; what begins where it ends stays apart,
    /// so that writing backwards does not copy everything each time.
    fn insert_part(&mut self, at: u64, part: Bytes) {
        let end = at + part.len() as u64;
        let slot = at / limits::SLOT_BYTES * limits::SLOT_BYTES;
        let before = self.segments.range(slot..=at).next_back().map(|(&start, bytes)| (start, start + bytes.len() as u64));
        let (start, mut run) = match before.filter(|&(_, until)| until >= at) {
            Some((start, until)) => {
                let from = (at - start) as usize;
                let run = self.segments.get_mut(&start).expect("just seen");
                if end <= until {
                    run[from..from + part.len()].copy_from_slice(&part);
                    return;
                }
                let mut run = self.remove(start);
                run.truncate(from);
                run.extend_from_slice(&part);
                (start, run)
            }
            None => (at, BytesMut::from(part)),
        };
        while let Some((&next, _)) = self.segments.range(at..end).next() {
            let old = self.remove(next);
            let covered = (end - next) as usize;
            if old.len() > covered {
                run.extend_from_slice(&old[covered..]);
            }
        }
        if is_whole(&run) {
            self.whole_slots += 1;
        }
        self.segment_bytes += run.len();
        self.segments.insert(start, run);
    }

    /// Adds to what is on its way; runs that touch within a slot become one.
    fn fly(&mut self, offset: u64, bytes: BytesMut) {
        self.flying_bytes += bytes.len();
        if let Some((start, last)) = self.flying.last_mut()
            && *start + last.len() as u64 == offset
            && !offset.is_multiple_of(limits::SLOT_BYTES)
        {
            let mut joined = BytesMut::from(std::mem::take(last));
            joined.extend_from_slice(&bytes);
            *last = fitted(joined);
        } else {
            self.flying.push((offset, fitted(bytes)));
        }
    }
}

/// In an allocation not much longer than the bytes: what grew piece by piece may have twice the room, and is kept while it is cached.
pub(super) fn fitted(bytes: BytesMut) -> Bytes {
    let mut vec = Vec::from(bytes);
    if vec.capacity() > vec.len() + vec.len() / SPARE_SHARE {
        vec.shrink_to_fit();
    }
    Bytes::from(vec)
}

fn is_whole(bytes: &BytesMut) -> bool {
    bytes.len() as u64 == limits::SLOT_BYTES
}

/// The part of a run that lies within the range: where it begins, and which of the run's bytes it is.
fn clip(offset: u64, length: usize, range: ByteRange) -> Option<(u64, std::ops::Range<usize>)> {
    let (from, until) = (offset.max(range.offset), (offset + length as u64).min(range.end()));
    (from < until).then(|| (from, (from - offset) as usize..(until - offset) as usize))
}

/// Lays runs over bytes that begin at `offset`, as far as they lie within; gives how far they cover it without a gap from its beginning.
pub(super) fn lay(bytes: &mut [u8], offset: u64, runs: &[Run]) {
    let range = ByteRange { offset, length: bytes.len() as u64 };
    for (start, run) in runs {
        if let Some((at, part)) = clip(*start, run.len(), range) {
            let from = (at - offset) as usize;
            bytes[from..from + part.len()].copy_from_slice(&run[part]);
        }
    }
}

/// Whether the runs cover all of the range.
pub(super) fn cover(range: ByteRange, runs: &[Run]) -> bool {
    let mut spans: Vec<(u64, u64)> = runs.iter().map(|(offset, bytes)| (*offset, *offset + bytes.len() as u64)).collect();
    spans.sort_unstable();
    let mut at = range.offset;
    for (from, until) in spans {
        if from > at {
            break;
        }
        at = at.max(until);
    }
    at >= range.end()
}

#[cfg(test)]
mod tests;
