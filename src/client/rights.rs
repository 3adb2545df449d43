//! What the session may keep without asking: rights by inode, the lease under which they may be used, and what was learnt under them.
//!
//! A pure table. Owns attributes and link targets, which live exactly as long as the right under which they were told; names are kept in
//! [`super::names`]. Refuses to answer from anything once the lease is over, but discards nothing: the next renewal tells whether the leader
//! let the rights stand. `WRITE` is part of the replicated state and ends only through the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits;
use crate::time::Time;
use crate::types::{Attributes, InodeId, Rights, Term};
use crate::wire::message::Grant;

/// From the sending of a renewal on, so long may rights be used. The leader counts from its arrival and adds the margin instead.
const LEASE: Duration = limits::SESSION_LEASE.saturating_sub(limits::SESSION_MARGIN);
/// Rights that a leader keeps in memory: gone with it unless they are reclaimed.
pub(super) const VOLATILE: Rights = Rights(Rights::READ.0 | Rights::NAMES.0);
/// Rights under which attributes, layout and bytes may be kept.
pub(super) const CONTENT: Rights = Rights(Rights::READ.0 | Rights::WRITE.0);

/// What is held on one inode, and known under it.
#[derive(Debug)]
struct Held {
    /// Never empty.
    rights: Rights,
    used: u64,
    /// Only under [`CONTENT`].
    attributes: Option<Attributes>,
    target: Option<Vec<u8>>,
    /// A name of the directory was recalled, and no grant since has told that its change is over: what is told meanwhile may be of before.
    unsettled: bool,
}

/// Until when rights may be used, and which of them the renewals of which leader prolong.
#[derive(Debug)]
struct Lease {
    term: Term,
    era: u64,
    until: Time,
}

/// The table.
pub(super) struct RightsBook {
    lease: Lease,
    held: BTreeMap<InodeId, Held>,
    by_use: BTreeMap<u64, InodeId>,
    clock: u64,
    inodes_max: usize,
}

impl RightsBook {
    pub(super) fn new() -> Self {
        let lease = Lease { term: Term(0), era: 0, until: Time(0) };
        RightsBook { lease, held: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, inodes_max: limits::CLIENT_RIGHTS_MAX }
    }

    // --- the lease

    /// A renewal that was sent at `sent` has been answered. Returns whether the volatile rights held are void.
    pub(super) fn on_renewed(&mut self, sent: Time, term: Term, era: u64) -> bool {
        if term < self.lease.term || era == 0 {
            return false; // the lease runs out if nothing better comes
        }
        // In a new term era 1 means that the leader was told of everything in time.
        let known = if term > self.lease.term { 1 } else { self.lease.era };
        if era < known {
            return false; // overtaken by a later answer
        }
        self.lease.term = term;
        self.lease.era = era;
        self.lease.until = self.lease.until.max(sent + LEASE);
        era > known
    }

    /// Whether a leader of that term must not be told of the volatile rights held: their lease is over, and the leader that prolonged it last,
    /// or one between, may have voided them and died before it could say so.
    pub(super) fn are_doubtful(&self, now: Time, term: Term) -> bool {
        term > self.lease.term && now >= self.lease.until && self.held.values().any(|held| held.rights.intersects(VOLATILE))
    }

    /// Drops all volatile rights; tells which they were.
    pub(super) fn void(&mut self) -> Vec<(InodeId, Rights)> {
        let all = self.volatile();
        all.iter().for_each(|(ino, _)| _ = self.revoke(*ino, Rights::WRITE));
        all
    }

    /// Volatile rights, for a new leader.
    pub(super) fn volatile(&self) -> Vec<(InodeId, Rights)> {
        let all = self.held.iter().map(|(ino, held)| (*ino, held.rights.without(Rights::WRITE)));
        all.filter(|(_, rights)| !rights.is_empty()).collect()
    }

    // --- what is held

    /// Until when any of `wanted` may be used on the inode; that may be over.
    pub(super) fn until(&self, ino: InodeId, wanted: Rights) -> Option<Time> {
        let held = self.held.get(&ino)?;
        held.rights.intersects(wanted).then_some(self.lease.until)
    }

    /// Whether any of `wanted` may be used now.
    pub(super) fn may(&self, now: Time, ino: InodeId, wanted: Rights) -> bool {
        self.until(ino, wanted).is_some_and(|until| now < until)
    }

    /// What is held, whether the lease lives or not.
    pub(super) fn held(&self, ino: InodeId) -> Rights {
        self.held.get(&ino).map_or(Rights::NONE, |held| held.rights)
    }

    /// What an answer gave. `WRITE` comes by [`RightsBook::grant_write`].
    pub(super) fn grant(&mut self, grant: Grant) {
        let rights = Rights(grant.rights.0 & VOLATILE.0);
        if !rights.is_empty() {
            self.add(grant.ino, rights);
        }
        if rights.contains(Rights::NAMES)
            && let Some(held) = self.held.get_mut(&grant.ino)
        {
            held.unsettled = false;
        }
    }

    /// The log gave the session the `WRITE` right on the inode.
    pub(super) fn grant_write(&mut self, ino: InodeId) {
        self.add(ino, Rights::WRITE);
    }

    fn add(&mut self, ino: InodeId, rights: Rights) {
        self.clock += 1;
        let used = self.clock;
        let held = self.held.entry(ino).or_insert(Held { rights: Rights::NONE, used, attributes: None, target: None, unsettled: false });
        self.by_use.remove(&held.used);
        held.rights = held.rights.with(rights);
        held.used = used;
        self.by_use.insert(used, ino);
    }

    /// Keeps at most `keep`, and what is known only while that is allowed. Returns what was lost.
    pub(super) fn revoke(&mut self, ino: InodeId, keep: Rights) -> Rights {
        let Some(held) = self.held.get_mut(&ino) else { return Rights::NONE };
        let lost = held.rights.without(keep);
        held.rights = held.rights.without(lost);
        if !held.rights.intersects(CONTENT) {
            (held.attributes, held.target) = (None, None);
        }
        if held.rights.is_empty() {
            self.by_use.remove(&held.used);
            self.held.remove(&ino);
        }
        lost
    }

    /// Somebody is changing a name of the directory. While that is so the leader grants nothing on it.
    pub(super) fn unsettle(&mut self, directory: InodeId) {
        if let Some(held) = self.held.get_mut(&directory) {
            held.unsettled = true;
        }
    }

    /// Whether no name of the directory is known to be changing.
    pub(super) fn is_settled(&self, directory: InodeId) -> bool {
        self.held.get(&directory).is_some_and(|held| !held.unsettled)
    }

    /// The least recently used inodes, at most `count`, if there are more than may be kept. Those with `WRITE` stay.
    pub(super) fn surplus(&self, count: usize) -> Vec<(InodeId, Rights)> {
        if self.held.len() <= self.inodes_max {
            return Vec::new();
        }
        let old = self.by_use.values().map(|ino| (*ino, self.held[ino].rights));
        old.filter(|(_, rights)| !rights.contains(Rights::WRITE)).take(count.min(self.inodes_max / 4).max(1)).collect()
    }

    /// Files with `WRITE` that are not `busy`, least recently used first, if there are many: some of them.
    pub(super) fn idle_writers(&self, busy: impl Fn(InodeId) -> bool) -> Vec<InodeId> {
        let writers = || self.by_use.values().copied().filter(|ino| self.held[ino].rights.contains(Rights::WRITE));
        if writers().take(limits::IDLE_WRITERS_MAX + 1).count() <= limits::IDLE_WRITERS_MAX {
            return Vec::new();
        }
        writers().filter(|ino| !busy(*ino)).take(limits::IDLE_WRITERS_YIELDED).collect()
    }

    // --- what is known

    /// Attributes that are true now, before anything written behind.
    pub(super) fn attributes(&mut self, now: Time, ino: InodeId) -> Option<Attributes> {
        if !self.may(now, ino, CONTENT) {
            return None;
        }
        self.touch(ino);
        self.held.get(&ino)?.attributes
    }

    /// Attributes as an answer told them under the right. Never older for newer.
    pub(super) fn learn_attributes(&mut self, attributes: &Attributes) {
        if let Some(held) = self.held.get_mut(&attributes.ino).filter(|held| held.rights.intersects(CONTENT))
            && held.attributes.is_none_or(|known| known.version <= attributes.version)
        {
            held.attributes = Some(*attributes);
        }
    }

    /// Whether attributes of that version are those that are known.
    pub(super) fn knows(&self, ino: InodeId, version: u64) -> bool {
        self.held.get(&ino).and_then(|held| held.attributes).is_some_and(|known| known.version == version)
    }

    /// They may have changed by this session's own doing.
    pub(super) fn forget_attributes(&mut self, ino: InodeId) {
        if let Some(held) = self.held.get_mut(&ino) {
            held.attributes = None;
        }
    }

    /// All attributes may have changed.
    pub(super) fn forget_all_attributes(&mut self) {
        self.held.values_mut().for_each(|held| held.attributes = None);
    }

    pub(super) fn target(&mut self, now: Time, ino: InodeId) -> Option<Vec<u8>> {
        if !self.may(now, ino, CONTENT) {
            return None;
        }
        self.touch(ino);
        self.held.get(&ino)?.target.clone()
    }

    pub(super) fn learn_target(&mut self, ino: InodeId, target: &[u8]) {
        if let Some(held) = self.held.get_mut(&ino).filter(|held| held.rights.intersects(CONTENT)) {
            held.target = Some(target.to_vec());
        }
    }

    /// The inode was used.
    pub(super) fn touch(&mut self, ino: InodeId) {
        if let Some(held) = self.held.get_mut(&ino) {
            self.by_use.remove(&held.used);
            self.clock += 1;
            held.used = self.clock;
            self.by_use.insert(self.clock, ino);
        }
    }

    #[cfg(test)]
    pub(super) fn inodes_max_for_test(&mut self, inodes_max: usize) {
        self.inodes_max = inodes_max;
    }

    /// Asserts that the index agrees and nothing is known without a right.
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.held.len(), self.by_use.len());
        assert!(self.by_use.iter().all(|(used, ino)| self.held[ino].used == *used));
        for held in self.held.values() {
            assert!(!held.rights.is_empty());
            assert!(held.rights.intersects(CONTENT) || (held.attributes.is_none() && held.target.is_none()));
        }
    }
}

#[cfg(test)]
pub(super) fn blank_for_test(ino: InodeId) -> Attributes {
    let zero = crate::types::Timestamp::default();
    let kind = crate::types::FileKind::File;
    let (mode, uid, gid, links, size, blocks, rdev) = (0, 0, 0, 1, 0, 0, 0);
    let (version, data_version, parent) = (0, 0, InodeId(1));
    Attributes {
        ino,
        kind,
        mode,
        uid,
        gid,
        links,
        size,
        blocks,
        atime: zero,
        mtime: zero,
        ctime: zero,
        rdev,
        version,
        data_version,
        parent,
        xattrs: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(11);

    fn second(n: u64) -> Time {
        Time((100 + n) * 1_000_000_000)
    }

    fn read(ino: InodeId) -> Grant {
        Grant { ino, rights: Rights::READ }
    }

    #[test]
    fn rights_are_used_only_under_the_lease() {
        let mut book = RightsBook::new();
        book.grant(read(A));
        assert!(!book.may(second(0), A, CONTENT), "no lease yet");
        assert!(!book.on_renewed(second(0), Term(1), 1));
        assert_eq!(book.until(A, CONTENT), Some(second(0) + LEASE));
        book.grant_write(B);
        assert!(!book.may(second(4), A, CONTENT) && !book.may(second(4), B, CONTENT));
        assert_eq!(book.held(A), Rights::READ, "nothing is discarded by mere time");
        assert!(!book.on_renewed(second(4), Term(1), 1), "the leader says that they stand");
        assert!(book.may(second(5), A, CONTENT));
        assert!(book.on_renewed(second(5), Term(1), 2), "the leader says that they are void");
        assert_eq!(book.void(), [(A, Rights::READ)]);
        assert!(!book.may(second(5), A, CONTENT) && book.may(second(5), B, Rights::WRITE));
        book.check_invariants();
    }

    #[test]
    fn a_new_leader_prolongs_only_what_it_was_told_of() {
        let mut book = RightsBook::new();
        book.on_renewed(second(0), Term(1), 3);
        book.grant(read(A));
        assert!(!book.on_renewed(second(2), Term(2), 0));
        assert_eq!(book.until(A, CONTENT), Some(second(0) + LEASE));
        assert!(!book.on_renewed(second(3), Term(2), 1), "told in time");
        assert_eq!(book.until(A, CONTENT), Some(second(3) + LEASE));
        assert!(!book.on_renewed(second(9), Term(1), 3), "a word from the past");
        assert_eq!(book.until(A, CONTENT), Some(second(3) + LEASE));
        assert!(book.on_renewed(second(4), Term(3), 2), "too late: the leader had stopped waiting");
        book.check_invariants();
    }

    #[test]
    fn attributes_live_as_long_as_their_right_and_never_grow_older() {
        let mut book = RightsBook::new();
        book.on_renewed(second(0), Term(1), 1);
        book.grant(Grant { ino: A, rights: VOLATILE });
        let attributes = |version| Attributes { version, ..blank_for_test(A) };
        book.learn_attributes(&attributes(5));
        book.learn_attributes(&attributes(4));
        assert_eq!(book.attributes(second(1), A).map(|known| known.version), Some(5));
        assert_eq!(book.revoke(A, Rights::NAMES.with(Rights::WRITE)), Rights::READ);
        book.learn_attributes(&attributes(6));
        assert_eq!(book.attributes(second(1), A), None);
        assert!(book.may(second(1), A, Rights::NAMES));
        book.check_invariants();
    }

    #[test]
    fn the_least_recently_used_go_first_and_writers_stay() {
        let mut book = RightsBook::new();
        book.inodes_max = 3;
        book.grant_write(InodeId(1));
        (2..=4).for_each(|n| book.grant(read(InodeId(n))));
        book.touch(InodeId(2));
        assert_eq!(book.surplus(1), [(InodeId(3), Rights::READ)]);
        book.revoke(InodeId(3), Rights::NONE);
        assert!(book.surplus(1).is_empty());
    }
}
