//! When to ask the namespace about which upload. A node never deletes on its own judgement, and it may miss every message about
//! a chunk: whatever nobody has confirmed is asked about until somebody answers, whatever was confirmed is asked about again in a slow cycle.
//!
//! Owns schedules only; which uploads exist is the store's fact, told by `insert` and `remove`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use dfs::limits::{AUDIT_CYCLE, AUDIT_CYCLE_HASTY, AUDIT_FIRST_AFTER, AUDIT_RETRY_AFTER};
use dfs::time::Time;
use dfs::types::{ChunkHash, Instance};

pub(super) type Upload = (ChunkHash, Instance);

/// The schedule of one store.
#[derive(Debug)]
pub(super) struct Audit {
    /// Every upload, and when it is due; `NEVER` once confirmed, until the cycle comes by.
    due: BTreeMap<Upload, Time>,
    /// The same by time, without the confirmed ones.
    queue: BTreeSet<(Time, Upload)>,
    cycle: Cycle,
}

/// A walk over all confirmed uploads, paced to take `length`.
#[derive(Debug)]
struct Cycle {
    started: Time,
    length: Duration,
    /// The upload last visited; the walk goes on behind it.
    position: Option<Upload>,
    visited: u64,
    finished: bool,
}

impl Audit {
    pub(super) fn new() -> Self {
        let cycle = Cycle { started: Time(0), length: AUDIT_CYCLE, position: None, visited: 0, finished: false };
        Audit { due: BTreeMap::new(), queue: BTreeSet::new(), cycle }
    }

    /// A new upload. One already known keeps its schedule.
    pub(super) fn insert(&mut self, now: Time, upload: Upload) {
        if !self.due.contains_key(&upload) {
            self.schedule(upload, now + AUDIT_FIRST_AFTER);
        }
    }

    pub(super) fn remove(&mut self, upload: &Upload) {
        if let Some(due) = self.due.remove(upload) {
            self.queue.remove(&(due, *upload));
            // The pace is a share of what there is: what the walk has passed must not count once it is gone, or finding garbage would
            // slow the walk down until a cycle's time brings it only half way.
            if self.cycle.position.is_some_and(|position| *upload <= position) {
                self.cycle.visited = self.cycle.visited.saturating_sub(1);
            }
        }
    }

    /// The upload is referenced: the slow cycle is enough from now on.
    pub(super) fn confirm(&mut self, upload: Upload) {
        self.schedule(upload, Time::NEVER);
    }

    /// The upload may still be committed: ask again soon.
    pub(super) fn postpone(&mut self, now: Time, upload: Upload) {
        self.schedule(upload, now + AUDIT_RETRY_AFTER);
    }

    /// Walk over everything quickly, from the start.
    pub(super) fn restart(&mut self, now: Time) {
        self.cycle = Cycle { started: now, length: AUDIT_CYCLE_HASTY, position: None, visited: 0, finished: false };
    }

    /// The uploads to ask about now. Each comes again after a while, unless an answer settles it first.
    pub(super) fn batch(&mut self, now: Time, max: usize) -> Vec<Upload> {
        let mut batch = Vec::new();
        while batch.len() < max {
            match self.queue.first() {
                Some(&(due, upload)) if due <= now => {
                    self.postpone(now, upload);
                    batch.push(upload);
                }
                _ => break,
            }
        }
        self.walk(now, max, &mut batch);
        batch
    }

    /// When `batch` will next have something; a store with uploads always has such a time.
    pub(super) fn next(&self, now: Time) -> Time {
        if self.due.is_empty() {
            return Time::NEVER;
        }
        let queued = self.queue.first().map_or(Time::NEVER, |(due, _)| *due);
        let all = self.due.len() as u64;
        let share = self.cycle.length.as_nanos() as u64 / all;
        let step = Duration::from_nanos(share.saturating_mul(self.cycle.visited + 1));
        let walk = if self.cycle.finished { self.cycle.started + self.cycle.length } else { self.cycle.started + step };
        queued.min(walk.max(now))
    }

    fn walk(&mut self, now: Time, max: usize, batch: &mut Vec<Upload>) {
        if self.cycle.finished {
            if now < self.cycle.started + self.cycle.length {
                return;
            }
            self.cycle = Cycle { started: now, length: AUDIT_CYCLE, position: None, visited: 0, finished: false };
        }
        let elapsed = now.since(self.cycle.started).as_nanos();
        let target = (self.due.len() as u128 * elapsed).div_ceil(self.cycle.length.as_nanos().max(1));
        while batch.len() < max && (self.cycle.visited as u128) < target {
            let from = self.cycle.position.map_or(Bound::Unbounded, Bound::Excluded);
            let Some((&upload, &due)) = self.due.range((from, Bound::Unbounded)).next() else {
                self.cycle.finished = true;
                return;
            };
            self.cycle.position = Some(upload);
            self.cycle.visited += 1;
            if due == Time::NEVER {
                // Unconfirmed from now on, so that it is asked about again if the question or its answer is lost.
                self.postpone(now, upload);
                batch.push(upload);
            }
        }
    }

    fn schedule(&mut self, upload: Upload, due: Time) {
        if let Some(before) = self.due.insert(upload, due) {
            self.queue.remove(&(before, upload));
        }
        if due != Time::NEVER {
            self.queue.insert((due, upload));
        }
    }

    /// The queue is an index of `due`, which lists exactly the uploads of the store.
    pub(super) fn check_invariants(&self, uploads: impl Iterator<Item = Upload>) {
        let queued = self.due.iter().filter(|(_, due)| **due != Time::NEVER).count();
        assert_eq!(self.queue.len(), queued, "the audit queue lists every unconfirmed upload once");
        for (due, upload) in &self.queue {
            assert_eq!(self.due.get(upload), Some(due), "the audit queue agrees with the schedule");
        }
        assert!(self.due.keys().copied().eq(uploads), "the audit knows exactly the uploads of the store");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs::types::SessionId;

    #[test]
    fn a_cycle_visits_everything_even_if_all_of_it_is_garbage() {
        let mut audit = Audit::new();
        let start = Time(0);
        for counter in 0..100u64 {
            let upload = (ChunkHash([counter as u8; 32]), Instance { session: SessionId(1), counter });
            audit.insert(start, upload);
            audit.confirm(upload);
        }
        let mut now = start;
        while !audit.due.is_empty() {
            assert!(now <= start + AUDIT_CYCLE + Duration::from_secs(1), "{} were not visited", audit.due.len());
            now = now.max(audit.next(now)) + Duration::from_millis(1);
            for upload in audit.batch(now, 10) {
                audit.remove(&upload);
            }
        }
        audit.check_invariants(std::iter::empty());
    }
}
