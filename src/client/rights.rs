//! What the session may keep without asking: rights by inode, the lease under which they may be used, and what was learnt under them.
//!
//! A pure table. Owns attributes and link targets, which live exactly as long as the right under which they were told; names are kept in
//! [`super::names`]. Refuses to answer from anything once the lease is over: what the leader then does to the session's rights is unknown, so
//! `READ` and `NAMES` are void when the next renewal arrives. `WRITE` is part of the replicated state and ends only through the log.

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
    /// The leader's that first gave the volatile ones.
    term: Term,
    used: u64,
    /// Only under [`CONTENT`].
    attributes: Option<Attributes>,
    target: Option<Vec<u8>>,
}

/// Until when rights may be used.
#[derive(Debug)]
struct Lease {
    /// The term in which it was renewed last.
    term: Term,
    until: Time,
    /// Volatile rights of earlier terms, while the present leader has not been told of all of them: it waits for this session at least as
    /// long as the leader before would have.
    former_until: Time,
    unconfirmed: bool,
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
        let lease = Lease { term: Term(0), until: Time(0), former_until: Time(0), unconfirmed: false };
        RightsBook { lease, held: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, inodes_max: limits::CLIENT_RIGHTS_MAX }
    }

    // --- the lease

    /// A renewal that was sent at `sent` has been answered. Returns the inodes on which volatile rights became void meanwhile.
    pub(super) fn on_renewed(&mut self, now: Time, sent: Time, term: Term) -> Vec<(InodeId, Rights)> {
        let until = sent + LEASE;
        if term < self.lease.term {
            return Vec::new();
        }
        if term > self.lease.term {
            let former = self.lease.until;
            self.lease.former_until = if self.lease.unconfirmed { former.min(self.lease.former_until) } else { former };
            self.lease.unconfirmed = true;
            self.lease.term = term;
            self.lease.until = until;
            return self.void_former(now);
        }
        let mut void = self.void_former(now);
        if now >= self.lease.until {
            void.extend(self.void(|_| true));
        }
        self.lease.until = self.lease.until.max(until);
        void
    }

    /// The leader of that term knows all rights that were held when the telling began. Returns what became void before it did.
    pub(super) fn on_reclaimed(&mut self, now: Time, term: Term) -> Vec<(InodeId, Rights)> {
        let void = self.void_former(now);
        if term == self.lease.term {
            self.lease.unconfirmed = false;
        }
        void
    }

    fn void_former(&mut self, now: Time) -> Vec<(InodeId, Rights)> {
        if !self.lease.unconfirmed || now < self.lease.former_until {
            return Vec::new();
        }
        let term = self.lease.term;
        self.void(|held| held.term < term)
    }

    fn void(&mut self, which: impl Fn(&Held) -> bool) -> Vec<(InodeId, Rights)> {
        let all = self.held.iter().filter(|(_, held)| held.rights.intersects(VOLATILE) && which(held));
        let all: Vec<(InodeId, Rights)> = all.map(|(ino, held)| (*ino, held.rights.without(Rights::WRITE))).collect();
        all.iter().for_each(|(ino, _)| drop(self.revoke(*ino, Rights::WRITE)));
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
        let usable = held.rights.without(Rights(!wanted.0));
        if usable.is_empty() {
            return None;
        }
        let former = self.lease.unconfirmed && held.term < self.lease.term && !usable.contains(Rights::WRITE);
        Some(if former { self.lease.former_until.min(self.lease.until) } else { self.lease.until })
    }

    /// Whether any of `wanted` may be used now.
    pub(super) fn may(&self, now: Time, ino: InodeId, wanted: Rights) -> bool {
        self.until(ino, wanted).is_some_and(|until| now < until)
    }

    /// What is held, whether the lease lives or not.
    pub(super) fn held(&self, ino: InodeId) -> Rights {
        self.held.get(&ino).map_or(Rights::NONE, |held| held.rights)
    }

    /// What an answer of a leader of that term gave. `WRITE` comes by [`RightsBook::grant_write`].
    pub(super) fn grant(&mut self, term: Term, grant: Grant) {
        let rights = Rights(grant.rights.0 & VOLATILE.0);
        if !rights.is_empty() {
            self.add(term, grant.ino, rights);
        }
    }

    /// The log gave the session the `WRITE` right on the inode.
    pub(super) fn grant_write(&mut self, ino: InodeId) {
        self.add(self.lease.term, ino, Rights::WRITE);
    }

    fn add(&mut self, term: Term, ino: InodeId, rights: Rights) {
        self.clock += 1;
        let used = self.clock;
        let held = self.held.entry(ino).or_insert(Held { rights: Rights::NONE, term, used, attributes: None, target: None });
        self.by_use.remove(&held.used);
        // Rights of an earlier term stay so until they are confirmed; all of one inode go by the oldest.
        if !held.rights.intersects(VOLATILE) {
            held.term = term;
        }
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

    /// The least recently used inode, if there are more than may be kept. Those with `WRITE` stay.
    pub(super) fn surplus(&self) -> Option<InodeId> {
        if self.held.len() <= self.inodes_max {
            return None;
        }
        self.by_use.values().find(|ino| !self.held[ino].rights.contains(Rights::WRITE)).copied()
    }

    /// Inodes on which the session has the `WRITE` right.
    pub(super) fn writers(&self) -> impl Iterator<Item = InodeId> {
        self.held.iter().filter(|(_, held)| held.rights.contains(Rights::WRITE)).map(|(ino, _)| *ino)
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
    fn rights_are_used_only_under_the_lease_and_void_after_it() {
        let mut book = RightsBook::new();
        book.grant(Term(1), read(A));
        assert!(!book.may(second(0), A, CONTENT), "no lease yet");
        assert!(book.on_renewed(second(0), second(0), Term(1)).is_empty());
        book.on_reclaimed(second(0), Term(1));
        assert_eq!(book.until(A, CONTENT), Some(second(0) + LEASE));
        book.grant_write(B);
        assert!(!book.may(second(4), A, CONTENT) && !book.may(second(4), B, CONTENT));
        assert_eq!(book.held(A), Rights::READ, "nothing is discarded by mere time");
        assert_eq!(book.on_renewed(second(5), second(4), Term(1)), [(A, Rights::READ)]);
        assert!(!book.may(second(5), A, CONTENT) && book.may(second(5), B, Rights::WRITE));
        book.check_invariants();
    }

    #[test]
    fn a_new_leader_extends_only_what_it_was_told_of() {
        let mut book = RightsBook::new();
        book.on_renewed(second(0), second(0), Term(1));
        book.on_reclaimed(second(0), Term(1));
        book.grant(Term(1), read(A));
        book.on_renewed(second(2), second(2), Term(2));
        book.grant(Term(2), read(B));
        assert_eq!(book.until(A, CONTENT), Some(second(0) + LEASE));
        assert_eq!(book.until(B, CONTENT), Some(second(2) + LEASE));
        assert!(book.on_reclaimed(second(3), Term(2)).is_empty());
        assert_eq!(book.until(A, CONTENT), Some(second(2) + LEASE));
        // Too late: the leader may have stopped waiting.
        book.on_renewed(second(4), second(4), Term(3));
        assert_eq!(book.on_reclaimed(second(6), Term(3)), [(A, Rights::READ), (B, Rights::READ)]);
        assert!(!book.may(second(6), A, CONTENT));
        book.check_invariants();
    }
}
