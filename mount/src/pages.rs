//! What the kernel's page cache may hold of each file, and whether that can be trusted.
//!
//! A pure table. For each inode it knows the data version of all pages, or that they are *suspect*: some may be of another version. Pages are
//! good if their READ was asked and answered under one and the same right. Whoever shows attributes for which the kernel would go on
//! using suspect pages has them dropped first. Refuses to guess: what it cannot prove is suspect.

use std::collections::BTreeMap;

use dfs::time::Time;
use dfs::types::InodeId;

/// The data version that was learnt last under a right, and until when that right is sure to have been held without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    data_version: u64,
    until: Time,
}

/// What is known of one inode.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    seen: Option<Seen>,
    /// Data version of all good pages; `None` while there are none.
    version: Option<u64>,
    /// The doubt that was raised last, if none of its pages has been dropped since.
    suspect: Option<Doubt>,
}

/// Orders doubts against the notices that settle them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doubt(u64);

/// The table.
#[derive(Debug, Default)]
pub struct Pages {
    contents: BTreeMap<InodeId, Content>,
    /// Reads and writes that came without a right, or have lost it since.
    in_flight: BTreeMap<(InodeId, u64), Flight>,
    doubts: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    tainted: bool,
}

impl Pages {
    /// Attributes of the inode were learnt; `right`: until when the right is held under which they may be kept.
    pub fn learn(&mut self, now: Time, ino: InodeId, data_version: u64, right: Option<Time>) {
        let doubt = Doubt(self.doubts + 1);
        let content = self.contents.entry(ino).or_default();
        let unbroken = right.is_some() && content.seen.is_some_and(|seen| now <= seen.until);
        let newest = content.seen.filter(|_| unbroken).map_or(data_version, |seen| seen.data_version.max(data_version));
        if content.version.is_some_and(|version| version != newest) {
            if unbroken {
                // Nobody else can have changed it: this mount's own write, which the kernel's pages hold too.
                content.version = Some(newest);
            } else {
                content.version = None;
                content.suspect = Some(doubt);
                self.doubts = doubt.0;
            }
        }
        content.seen = right.map(|until| Seen { data_version: newest, until });
        self.tidy(ino);
    }

    /// Whether attributes of that data version, learnt now, would find or make the pages suspect.
    pub fn would_doubt(&self, now: Time, ino: InodeId, data_version: u64, right: Option<Time>) -> bool {
        let Some(content) = self.contents.get(&ino) else { return false };
        let unbroken = right.is_some() && content.seen.is_some_and(|seen| now <= seen.until);
        content.suspect.is_some() || (!unbroken && content.version.is_some_and(|version| version != data_version))
    }

    /// Whether the kernel has good pages.
    pub fn has_some(&self, ino: InodeId) -> bool {
        self.contents.get(&ino).is_some_and(|content| content.version.is_some())
    }

    /// Whether the present data version is known, so that a read that begins now can be judged.
    pub fn is_current(&self, now: Time, ino: InodeId) -> bool {
        self.contents.get(&ino).and_then(|content| content.seen).is_some_and(|seen| now <= seen.until)
    }

    /// A read or a write of the kernel begins.
    pub fn begin(&mut self, now: Time, ino: InodeId, token: u64, right: Option<Time>) {
        let current = self.is_current(now, ino);
        if let (true, Some(until)) = (current, right)
            && let Some(seen) = self.contents.get_mut(&ino).and_then(|content| content.seen.as_mut())
        {
            seen.until = until;
        }
        self.in_flight.insert((ino, token), Flight { tainted: right.is_none() || !current });
    }

    /// It ends, and the kernel's pages may now hold what it moved. False: they are suspect from now on.
    pub fn end(&mut self, ino: InodeId, token: u64, right: Option<Time>) -> bool {
        let tainted = self.in_flight.remove(&(ino, token)).is_none_or(|flight| flight.tainted);
        let content = self.contents.entry(ino).or_default();
        match (content.seen, right) {
            (Some(seen), Some(_)) if !tainted => {
                content.version = Some(seen.data_version);
                true
            }
            _ => {
                self.doubt(ino);
                false
            }
        }
    }

    /// It ends, and moved nothing into the kernel's pages.
    pub fn end_without(&mut self, ino: InodeId, token: u64) {
        self.in_flight.remove(&(ino, token));
    }

    /// The right is gone: whatever the kernel holds, or is about to be given, may be of the past.
    pub fn lose(&mut self, ino: InodeId) {
        for (_, flight) in self.in_flight.range_mut((ino, 0)..=(ino, u64::MAX)) {
            flight.tainted = true;
        }
        if self.contents.contains_key(&ino) {
            self.doubt(ino);
            self.contents.entry(ino).or_default().seen = None;
        }
    }

    /// All rights are gone.
    pub fn lose_all(&mut self) {
        self.in_flight.values_mut().for_each(|flight| flight.tainted = true);
        self.doubts += 1;
        let doubt = Doubt(self.doubts);
        self.contents.retain(|_, content| content.version.is_some() || content.suspect.is_some());
        for content in self.contents.values_mut() {
            *content = Content { seen: None, version: None, suspect: Some(doubt) };
        }
    }

    /// The pages may be of another version than the inode.
    pub fn doubt(&mut self, ino: InodeId) {
        self.doubts += 1;
        let content = self.contents.entry(ino).or_default();
        content.version = None;
        content.suspect = Some(Doubt(self.doubts));
    }

    /// Whether the pages are suspect.
    pub fn is_suspect(&self, ino: InodeId) -> bool {
        self.contents.get(&ino).is_some_and(|content| content.suspect.is_some())
    }

    /// Whether all pages, if there are any, are of the present version.
    pub fn may_be_kept(&self, now: Time, ino: InodeId) -> bool {
        self.contents.get(&ino).is_some_and(|content| {
            content.suspect.is_none() && content.seen.is_some_and(|seen| now <= seen.until && content.version == Some(seen.data_version))
        })
    }

    /// Inodes with suspect pages.
    pub fn suspects(&self) -> Vec<InodeId> {
        self.contents.iter().filter(|(_, content)| content.suspect.is_some()).map(|(&ino, _)| ino).collect()
    }

    /// The newest doubt; a notice that is sent now settles it and all before.
    pub fn newest_doubt(&self) -> Doubt {
        Doubt(self.doubts)
    }

    /// A notice that was sent at `doubt` has dropped all pages.
    pub fn settle(&mut self, ino: InodeId, doubt: Doubt) {
        if let Some(content) = self.contents.get_mut(&ino)
            && content.suspect.is_some_and(|raised| raised <= doubt)
        {
            content.suspect = None;
            self.tidy(ino);
        }
    }

    /// The kernel has dropped the inode, and its pages with it.
    pub fn forget(&mut self, ino: InodeId) {
        self.contents.remove(&ino);
    }

    /// Inodes in the table.
    pub fn len(&self) -> usize {
        self.contents.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    fn tidy(&mut self, ino: InodeId) {
        if self.contents.get(&ino).is_some_and(|content| content.seen.is_none() && content.version.is_none() && content.suspect.is_none()) {
            self.contents.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeId = InodeId(5);
    const LEASE: Option<Time> = Some(Time(100));

    fn read(pages: &mut Pages, now: u64, right: Option<Time>) -> bool {
        pages.begin(Time(now), INO, 1, right);
        pages.end(INO, 1, right)
    }

    #[test]
    fn pages_read_under_a_right_may_be_kept_while_the_version_stands() {
        let mut pages = Pages::default();
        pages.learn(Time(1), INO, 7, LEASE);
        assert!(read(&mut pages, 2, LEASE));
        assert!(pages.may_be_kept(Time(3), INO) && !pages.may_be_kept(Time(101), INO), "what happened after the lease is unknown");
        // The lease is over, but the version is the same: nothing was changed meanwhile.
        pages.learn(Time(200), INO, 7, Some(Time(300)));
        assert!(pages.may_be_kept(Time(201), INO));
        // And now it is not.
        pages.learn(Time(400), INO, 8, Some(Time(500)));
        assert!(pages.is_suspect(INO));
    }

    #[test]
    fn own_writes_move_the_version_of_the_pages() {
        let mut pages = Pages::default();
        pages.learn(Time(1), INO, 7, LEASE);
        read(&mut pages, 2, LEASE);
        pages.begin(Time(3), INO, 2, LEASE);
        pages.learn(Time(3), INO, 9, LEASE);
        assert!(pages.end(INO, 2, LEASE));
        assert!(pages.may_be_kept(Time(4), INO) && !pages.is_suspect(INO));
        pages.learn(Time(5), INO, 8, LEASE);
        assert!(!pages.is_suspect(INO), "an older answer says nothing new");
    }

    #[test]
    fn what_is_read_without_a_right_or_across_its_loss_is_suspect() {
        let mut pages = Pages::default();
        assert!(!read(&mut pages, 1, None));
        let doubt = pages.newest_doubt();
        pages.learn(Time(2), INO, 7, LEASE);
        assert!(pages.is_suspect(INO), "attributes do not make pages good");
        pages.settle(INO, doubt);
        assert!(!pages.is_suspect(INO));
        // Lost and granted anew between question and answer.
        pages.begin(Time(3), INO, 1, LEASE);
        pages.lose(INO);
        let before = pages.newest_doubt();
        pages.learn(Time(4), INO, 8, LEASE);
        assert!(!pages.end(INO, 1, LEASE));
        pages.settle(INO, before);
        assert!(pages.is_suspect(INO), "the notice was sent before the answer");
        pages.settle(INO, pages.newest_doubt());
        assert!(!pages.is_suspect(INO) && read(&mut pages, 5, LEASE) && pages.may_be_kept(Time(6), INO));
    }

    #[test]
    fn good_pages_that_come_while_old_ones_are_being_dropped_stay_good() {
        let mut pages = Pages::default();
        pages.learn(Time(1), INO, 7, LEASE);
        read(&mut pages, 2, LEASE);
        pages.lose(INO);
        let doubt = pages.newest_doubt();
        pages.learn(Time(3), INO, 8, LEASE);
        assert!(read(&mut pages, 3, LEASE) && !pages.may_be_kept(Time(3), INO), "old pages are still there");
        pages.settle(INO, doubt);
        assert!(pages.may_be_kept(Time(3), INO));
    }

    #[test]
    fn a_lost_session_makes_everything_suspect_and_forgetting_leaves_nothing() {
        let mut pages = Pages::default();
        pages.learn(Time(1), INO, 7, LEASE);
        pages.learn(Time(1), InodeId(6), 7, LEASE);
        read(&mut pages, 2, LEASE);
        pages.lose_all();
        assert_eq!(pages.suspects(), [INO]);
        assert_eq!(pages.len(), 1, "of the other there are no pages");
        pages.forget(INO);
        assert!(pages.is_empty());
    }
}
