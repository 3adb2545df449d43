//! Copies that this node has made and that the namespace may not know of yet.
//!
//! Between saying so and seeing it in the log a copy must not be deleted: a deletion that arrives meanwhile was decided before.

use std::collections::{BTreeMap, BTreeSet};

use dfs::limits::{COMMAND_VISITS_MAX, REPAIR_ANNOUNCE_AFTER, REPAIR_ANNOUNCED_MAX};
use dfs::time::Time;
use dfs::types::{ChunkHash, Instance};

type Item = (ChunkHash, Instance);

/// What is to be said, what has been said, and up to where the log must be applied here until it is settled.
#[derive(Debug, Default)]
pub struct Announcements {
    /// Not said yet, or said without an answer.
    waiting: BTreeSet<Item>,
    /// In the request that is under way.
    said: Vec<Item>,
    /// Answered: settled once this entry is applied here.
    answered: BTreeMap<Item, u64>,
    due: Option<Time>,
}

impl Announcements {
    /// The copy is here. Tells whether there was room to keep that in mind.
    pub fn add(&mut self, now: Time, item: Item) -> bool {
        if self.holds(&item) {
            return true;
        }
        if self.waiting.len() + self.said.len() + self.answered.len() >= REPAIR_ANNOUNCED_MAX {
            return false;
        }
        self.waiting.insert(item);
        self.due.get_or_insert(now + REPAIR_ANNOUNCE_AFTER);
        true
    }

    /// Whether the copy must be left alone.
    pub fn holds(&self, item: &Item) -> bool {
        self.waiting.contains(item) || self.answered.contains_key(item) || self.said.contains(item)
    }

    /// When [`Self::take`] has something.
    pub fn next_deadline(&self) -> Time {
        match self.due {
            Some(due) if self.said.is_empty() => due,
            _ => Time::NEVER,
        }
    }

    /// What to say now, if it is time or enough has come together. One request is under way at a time.
    pub fn take(&mut self, now: Time) -> Vec<Item> {
        let full = self.waiting.len() >= COMMAND_VISITS_MAX;
        if !self.said.is_empty() || !(full || self.due.is_some_and(|due| now >= due)) {
            return Vec::new();
        }
        while self.said.len() < COMMAND_VISITS_MAX
            && let Some(item) = self.waiting.pop_first()
        {
            self.said.push(item);
        }
        self.due = (!self.waiting.is_empty()).then_some(now);
        self.said.clone()
    }

    /// What was said is in the log at or before `index`.
    pub fn on_answer(&mut self, index: u64) {
        self.answered.extend(std::mem::take(&mut self.said).into_iter().map(|item| (item, index)));
    }

    /// Nobody knows whether what was said is in the log: say it again.
    pub fn on_failure(&mut self, retry_at: Time) {
        if !self.said.is_empty() {
            self.waiting.extend(std::mem::take(&mut self.said));
            self.due = Some(retry_at);
        }
    }

    /// The log is applied here up to `index`: from now on the records tell.
    pub fn on_applied(&mut self, index: u64) {
        self.answered.retain(|_, at| *at > index);
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        assert!(self.waiting.len() + self.said.len() + self.answered.len() <= REPAIR_ANNOUNCED_MAX);
        assert!(self.waiting.is_empty() || self.due.is_some());
    }
}
