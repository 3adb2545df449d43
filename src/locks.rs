//! Locks of one inode as a pure table, with the meaning that POSIX gives to ranges: splitting, merging, converting.
//!
//! Owned by the namespace for all sessions, and by a client for what it has been granted. Knows nothing of waiting, sessions' lives and
//! bounds: whoever keeps a table sees to them.

use serde::{Deserialize, Serialize};

use crate::types::SessionId;

/// The two families of locks; they never exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2): belongs to an open file and covers all of the file.
    Flock,
    /// fcntl(2): ranges of bytes, that belong to a process, or to an open file (OFD).
    Fcntl,
}

/// How much a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockMode {
    Shared,
    Exclusive,
}

/// Bytes from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockRange {
    pub first: u64,
    pub last: u64,
}

/// Who owns locks: within its session the kernel's name of the process or open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    pub kind: LockKind,
    pub session: SessionId,
    pub key: u64,
}

/// One lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub owner: LockOwner,
    pub range: LockRange,
    pub mode: LockMode,
    /// The process that took it, for F_GETLK.
    pub pid: u32,
}

/// The locks of one inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTable {
    /// Sorted by owner, then place. Those of one owner do not overlap; where they touch, their modes differ.
    locks: Vec<Lock>,
}

impl LockRange {
    /// The last byte that a lock can name: the largest offset.
    pub const LAST: u64 = i64::MAX as u64;
    /// All bytes that there can ever be.
    pub const WHOLE: LockRange = LockRange { first: 0, last: LockRange::LAST };

    /// Whether it is one that the kernel can have asked for.
    pub fn is_well_formed(&self) -> bool {
        self.first <= self.last && self.last <= LockRange::LAST
    }

    /// Whether some byte is in both.
    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl LockMode {
    /// Whether two owners cannot have these at the same byte.
    pub fn excludes(self, other: LockMode) -> bool {
        self == LockMode::Exclusive || other == LockMode::Exclusive
    }
}

impl Lock {
    /// Whether this lock and one that `owner` wants cannot both be.
    pub fn blocks(&self, owner: LockOwner, range: &LockRange, mode: LockMode) -> bool {
        self.owner != owner && self.owner.kind == owner.kind && self.mode.excludes(mode) && self.range.overlaps(range)
    }
}

impl LockTable {
    /// How many locks there are.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// All locks, by owner and place.
    pub fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.locks.iter()
    }

    /// Locks that keep `owner` from having that range in that mode.
    pub fn blockers(&self, owner: LockOwner, range: LockRange, mode: LockMode) -> impl Iterator<Item = &Lock> {
        self.locks.iter().filter(move |lock| lock.blocks(owner, &range, mode))
    }

    /// Locks of one owner, by place.
    pub fn of_owner(&self, owner: LockOwner) -> &[Lock] {
        let start = self.locks.partition_point(|lock| lock.owner < owner);
        let length = self.locks[start..].partition_point(|lock| lock.owner == owner);
        &self.locks[start..start + length]
    }

    /// Whether the owner has a lock that touches a byte of the range.
    pub fn holds_in(&self, owner: LockOwner, range: LockRange) -> bool {
        self.of_owner(owner).iter().any(|lock| lock.range.overlaps(&range))
    }

    /// The range as the owner has it, piece by piece without gaps: locked in a mode, or not at all.
    pub fn pieces(&self, owner: LockOwner, range: LockRange) -> Vec<(LockRange, Option<LockMode>)> {
        let mut pieces = Vec::new();
        let mut next = Some(range.first);
        for lock in self.of_owner(owner).iter().filter(|lock| lock.range.overlaps(&range)) {
            let first = lock.range.first.max(range.first);
            if let Some(at) = next.filter(|&at| at < first) {
                pieces.push((LockRange { first: at, last: first - 1 }, None));
            }
            let last = lock.range.last.min(range.last);
            pieces.push((LockRange { first, last }, Some(lock.mode)));
            next = (last < range.last).then(|| last + 1);
        }
        if let Some(first) = next {
            pieces.push((LockRange { first, last: range.last }, None));
        }
        pieces
    }

    /// Gives the owner the range in that mode, whatever others have; without a mode takes it away. Locks are split and merged as needed.
    pub fn set(&mut self, owner: LockOwner, range: LockRange, mode: Option<LockMode>, pid: u32) {
        let own = self.locks.partition_point(|lock| lock.owner < owner);
        let own_end = own + self.locks[own..].partition_point(|lock| lock.owner == owner);
        // What overlaps or touches the range; the rest of the owner's locks stays as it is.
        let touched = own + self.locks[own..own_end].partition_point(|lock| lock.range.last < range.first.saturating_sub(1));
        let touched_end = touched + self.locks[touched..own_end].partition_point(|lock| lock.range.first <= range.last.saturating_add(1));
        let mut new = mode.map(|mode| Lock { owner, range, mode, pid });
        let (mut before, mut after) = (None, None);
        for lock in &self.locks[touched..touched_end] {
            if let Some(new) = new.as_mut().filter(|new| new.mode == lock.mode) {
                new.range.first = new.range.first.min(lock.range.first);
                new.range.last = new.range.last.max(lock.range.last);
                continue;
            }
            if lock.range.first < range.first {
                before = Some(Lock { range: LockRange { first: lock.range.first, last: lock.range.last.min(range.first - 1) }, ..*lock });
            }
            if lock.range.last > range.last {
                after = Some(Lock { range: LockRange { first: lock.range.first.max(range.last + 1), last: lock.range.last }, ..*lock });
            }
        }
        self.locks.splice(touched..touched_end, [before, new, after].into_iter().flatten());
    }

    /// Takes everything away that the session's owners have.
    pub fn remove_session(&mut self, session: SessionId) {
        self.locks.retain(|lock| lock.owner.session != session);
    }

    /// How many locks each session has; one that has both kinds comes twice.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, u32)> {
        let runs = self.locks.chunk_by(|a, b| (a.owner.kind, a.owner.session) == (b.owner.kind, b.owner.session));
        runs.map(|run| (run[0].owner.session, run.len() as u32))
    }

    /// Whether the table is as its fields promise, and nothing excluded is there twice. For tests, and for tables that come from outside.
    pub fn is_well_formed(&self) -> bool {
        let ordered = |pair: &[Lock]| {
            let [a, b] = pair else { return false };
            let apart = a.range.last < b.range.first && (a.mode != b.mode || a.range.last + 1 < b.range.first);
            a.owner < b.owner || (a.owner == b.owner && apart)
        };
        self.locks.iter().all(|lock| lock.range.is_well_formed()) && self.locks.windows(2).all(ordered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const BYTES: usize = 24;

    /// What a range lock means, byte by byte: who has each byte in which mode.
    #[derive(Default)]
    struct Model {
        bytes: [Vec<(LockOwner, LockMode)>; BYTES],
    }

    impl Model {
        fn is_free(&self, owner: LockOwner, range: LockRange, mode: LockMode) -> bool {
            let held = |byte: &Vec<(LockOwner, LockMode)>| {
                byte.iter().any(|(other, has)| *other != owner && other.kind == owner.kind && has.excludes(mode))
            };
            !self.bytes[range.first as usize..=range.last as usize].iter().any(held)
        }

        fn set(&mut self, owner: LockOwner, range: LockRange, mode: Option<LockMode>) {
            for byte in &mut self.bytes[range.first as usize..=range.last as usize] {
                byte.retain(|(other, _)| *other != owner);
                byte.extend(mode.map(|mode| (owner, mode)));
            }
        }

        fn of(&self, owner: LockOwner, byte: usize) -> Option<LockMode> {
            self.bytes[byte].iter().find(|(other, _)| *other == owner).map(|(_, mode)| *mode)
        }
    }

    fn owner(kind: LockKind, session: u64, key: u64) -> LockOwner {
        LockOwner { kind, session: SessionId(session), key }
    }

    fn check(table: &LockTable, model: &Model, owners: &[LockOwner]) {
        assert!(table.is_well_formed(), "{table:?}");
        for &owner in owners {
            for byte in 0..BYTES {
                let at = LockRange { first: byte as u64, last: byte as u64 };
                let has = table.of_owner(owner).iter().find(|lock| lock.range.overlaps(&at)).map(|lock| lock.mode);
                assert_eq!(has, model.of(owner, byte), "{owner:?} at {byte}");
                assert_eq!(table.pieces(owner, at), vec![(at, has)]);
            }
            let whole = LockRange { first: 0, last: BYTES as u64 - 1 };
            let pieces = table.pieces(owner, whole);
            assert_eq!((pieces[0].0.first, pieces[pieces.len() - 1].0.last), (whole.first, whole.last));
            assert!(pieces.windows(2).all(|pair| pair[0].0.last + 1 == pair[1].0.first && pair[0].1 != pair[1].1), "{pieces:?}");
        }
    }

    #[test]
    fn ranges_mean_what_they_mean_byte_by_byte() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let owners: Vec<LockOwner> =
                [(LockKind::Fcntl, 1, 1), (LockKind::Fcntl, 1, 2), (LockKind::Fcntl, 2, 1), (LockKind::Flock, 1, 1)]
                    .map(|(kind, session, key)| owner(kind, session, key))
                    .to_vec();
            let (mut table, mut model) = (LockTable::default(), Model::default());
            for _ in 0..200 {
                let owner = owners[random.below(owners.len() as u64) as usize];
                let first = random.below(BYTES as u64);
                let range = LockRange { first, last: first + random.below(BYTES as u64 - first) };
                let mode = [None, Some(LockMode::Shared), Some(LockMode::Exclusive)][random.below(3) as usize];
                if let Some(mode) = mode {
                    let free = table.blockers(owner, range, mode).next().is_none();
                    assert_eq!(free, model.is_free(owner, range, mode), "seed {seed}");
                    if !free {
                        continue;
                    }
                }
                table.set(owner, range, mode, 7);
                model.set(owner, range, mode);
                check(&table, &model, &owners);
            }
            table.remove_session(SessionId(1));
            assert!(table.iter().all(|lock| lock.owner.session == SessionId(2)));
            let counted: u32 = table.sessions().map(|(_, count)| count).sum();
            assert_eq!(counted as usize, table.len());
        }
    }

    #[test]
    fn the_ends_of_what_can_be_locked_are_no_special_case() {
        let me = owner(LockKind::Fcntl, 1, 1);
        let mut table = LockTable::default();
        table.set(me, LockRange::WHOLE, Some(LockMode::Shared), 1);
        table.set(me, LockRange { first: LockRange::LAST, last: LockRange::LAST }, Some(LockMode::Exclusive), 1);
        table.set(me, LockRange { first: 0, last: 0 }, None, 1);
        let ranges: Vec<_> = table.iter().map(|lock| (lock.range.first, lock.range.last, lock.mode)).collect();
        let last = LockRange::LAST;
        assert_eq!(ranges, vec![(1, last - 1, LockMode::Shared), (last, last, LockMode::Exclusive)]);
        table.set(me, LockRange { first: last, last }, Some(LockMode::Shared), 1);
        assert_eq!(table.len(), 1, "what touches in one mode is one lock");
        table.set(me, LockRange::WHOLE, None, 1);
        assert!(table.is_empty() && table.is_well_formed());
    }
}
