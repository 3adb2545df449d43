//! What is counted of inodes and chunks over all slices of a walk, and what it says.
//!
//! Records of inodes and chunks claim how often they are named; names, slots and extents are what names them. Claims count negative, what is
//! found positive, so what is in order comes to nothing and is forgotten. The tables may change while they are walked through. So
//! what does not come to nothing is believed only if the inode is the same after the walk as when it was met, or if no reference to the chunk
//! has come or gone since the walk began; else it is counted again.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{ChunkHash, InodeId};
use crate::wire::fsck::{Sums, TablesSlice, Tally};

/// The sums of one walk.
#[derive(Debug, Default)]
pub struct Ledger {
    inodes: BTreeMap<InodeId, Tally>,
    chunks: BTreeMap<ChunkHash, i64>,
    /// What the walk before left open; `None`: everything is counted.
    only: Option<Suspects>,
    sums: Sums,
    /// Log index at the first slice, and at the last.
    applied: Option<(u64, u64)>,
    kept: Sums,
}

/// What is to be counted again.
#[derive(Debug, Default)]
pub struct Suspects {
    inodes: BTreeSet<InodeId>,
    chunks: BTreeSet<ChunkHash>,
}

/// What a walk has shown.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Inodes whose counts are wrong, by how much.
    pub inodes: Vec<Tally>,
    pub chunks: Vec<(ChunkHash, i64)>,
    /// What is kept of all records and what they come to, if those differ. `None` also where the tables changed under the walk.
    pub sums: Option<(Sums, Sums)>,
    /// Whether nothing changed under the walk.
    pub still: bool,
    pub suspects: Suspects,
}

impl Suspects {
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.chunks.is_empty()
    }

    /// Inodes and chunks that could not be judged.
    pub fn len(&self) -> usize {
        self.inodes.len() + self.chunks.len()
    }
}

impl Ledger {
    /// Begins a walk that counts what is open, or everything.
    pub fn new(only: Option<Suspects>) -> Self {
        Ledger { only, ..Ledger::default() }
    }

    /// Adds a slice.
    pub fn add(&mut self, slice: &TablesSlice) {
        let first = self.applied.map_or(slice.applied, |(first, _)| first);
        self.applied = Some((first, slice.applied));
        self.kept = slice.kept;
        self.sums.add(&slice.sums);
        for tally in &slice.tallies {
            if self.only.as_ref().is_none_or(|only| only.inodes.contains(&tally.ino)) {
                self.add_tally(tally);
            }
        }
        for (hash, count) in &slice.references {
            if self.only.as_ref().is_none_or(|only| only.chunks.contains(hash)) {
                let sum = self.chunks.entry(*hash).or_default();
                *sum = sum.wrapping_add(*count);
                if *sum == 0 {
                    self.chunks.remove(hash);
                }
            }
        }
    }

    fn add_tally(&mut self, tally: &Tally) {
        let sum = self.inodes.entry(tally.ino).or_insert(Tally { ino: tally.ino, ..Tally::default() });
        sum.names = sum.names.wrapping_add(tally.names);
        sum.entries = sum.entries.wrapping_add(tally.entries);
        sum.subdirectories = sum.subdirectories.wrapping_add(tally.subdirectories);
        sum.blocks = sum.blocks.wrapping_add(tally.blocks);
        sum.stamp = tally.stamp.or(sum.stamp);
        if (sum.names, sum.entries, sum.subdirectories, sum.blocks) == (0, 0, 0, 0) {
            self.inodes.remove(&tally.ino);
        }
    }

    /// The inodes that are to be looked at once more before they are judged.
    pub fn open_inodes(&self) -> Vec<InodeId> {
        self.inodes.keys().copied().collect()
    }

    /// The same of chunks.
    pub fn open_chunks(&self) -> Vec<ChunkHash> {
        self.chunks.keys().copied().collect()
    }

    /// The log index at which the walk began.
    pub fn began(&self) -> u64 {
        self.applied.map_or(0, |(first, _)| first)
    }

    /// Judges the walk, given the stamps of the open inodes after it, and those of the open chunks that were not touched since it began.
    pub fn judge(self, stamps: &BTreeMap<InodeId, Option<u64>>, untouched: &BTreeSet<ChunkHash>) -> Judgement {
        let mut judgement = Judgement { still: self.applied.is_some_and(|(first, last)| first == last), ..Judgement::default() };
        if judgement.still && self.sums != self.kept {
            judgement.sums = Some((self.kept, self.sums));
        }
        for (ino, tally) in self.inodes {
            match stamps.get(&ino).copied().flatten() {
                // It has been removed since, or what names it has: that would have been found in one slice.
                None => {}
                stamp if judgement.still || stamp == tally.stamp => judgement.inodes.push(tally),
                _ => _ = judgement.suspects.inodes.insert(ino),
            }
        }
        for (hash, difference) in self.chunks {
            if judgement.still || untouched.contains(&hash) {
                judgement.chunks.push((hash, difference));
            } else {
                judgement.suspects.chunks.insert(hash);
            }
        }
        judgement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(applied: u64, tallies: &[Tally], references: &[(ChunkHash, i64)]) -> TablesSlice {
        TablesSlice { applied, tallies: tallies.to_vec(), references: references.to_vec(), ..TablesSlice::default() }
    }

    fn tally(ino: u64, names: i64, stamp: Option<u64>) -> Tally {
        Tally { ino: InodeId(ino), names, stamp, ..Tally::default() }
    }

    fn stamps(of: &[(u64, Option<u64>)]) -> BTreeMap<InodeId, Option<u64>> {
        of.iter().map(|&(ino, stamp)| (InodeId(ino), stamp)).collect()
    }

    const HASH: ChunkHash = ChunkHash([7; 32]);

    #[test]
    fn what_comes_to_nothing_is_in_order() {
        let mut ledger = Ledger::new(None);
        ledger.add(&slice(5, &[tally(2, -2, Some(9))], &[(HASH, 1)]));
        ledger.add(&slice(6, &[tally(2, 1, None)], &[(HASH, 2)]));
        ledger.add(&slice(7, &[tally(2, 1, None)], &[(HASH, -3)]));
        let judgement = ledger.judge(&stamps(&[]), &BTreeSet::new());
        assert!(judgement.inodes.is_empty() && judgement.chunks.is_empty() && judgement.suspects.is_empty() && !judgement.still);
    }

    #[test]
    fn an_inode_is_judged_only_if_it_has_not_moved() {
        let walk = |only: Option<Suspects>| {
            let mut ledger = Ledger::new(only);
            ledger.add(&slice(5, &[tally(2, -2, Some(9)), tally(3, -1, Some(4)), tally(4, -1, Some(1))], &[]));
            ledger.add(&slice(6, &[tally(2, 1, None)], &[]));
            ledger
        };
        assert_eq!(walk(None).open_inodes(), [InodeId(2), InodeId(3), InodeId(4)]);
        // The second has the same stamp, the third moved, the fourth is gone.
        let judgement = walk(None).judge(&stamps(&[(2, Some(9)), (3, Some(5)), (4, None)]), &BTreeSet::new());
        assert_eq!(judgement.inodes, [tally(2, -1, Some(9))]);
        assert_eq!(judgement.suspects.len(), 1);
        // Only what is open is counted again.
        let again = walk(Some(judgement.suspects));
        assert_eq!(again.open_inodes(), [InodeId(3)]);
    }

    #[test]
    fn references_are_judged_when_nothing_moves_or_none_was_touched() {
        let walk = |only: Option<Suspects>, last: u64, untouched: &[ChunkHash]| {
            let mut ledger = Ledger::new(only);
            ledger.add(&slice(5, &[], &[(HASH, 1)]));
            ledger.add(&slice(last, &[], &[(HASH, -2)]));
            assert_eq!((ledger.open_chunks(), ledger.began()), (vec![HASH], 5));
            ledger.judge(&stamps(&[]), &untouched.iter().copied().collect())
        };
        assert_eq!(walk(None, 5, &[]).chunks, [(HASH, -1)]);
        assert_eq!(walk(None, 6, &[HASH]).chunks, [(HASH, -1)]);
        let open = walk(None, 6, &[]);
        assert_eq!((open.chunks.len(), open.suspects.len()), (0, 1));
        assert_eq!(walk(Some(open.suspects), 6, &[HASH]).chunks, [(HASH, -1)]);
    }

    #[test]
    fn sums_are_compared_when_nothing_moves() {
        let other = Sums { inodes: 1, ..Sums::default() };
        for (last, expected) in [(5, true), (6, false)] {
            let mut ledger = Ledger::new(None);
            ledger.add(&slice(5, &[], &[]));
            ledger.add(&TablesSlice { sums: other, ..slice(last, &[], &[]) });
            assert_eq!(ledger.judge(&stamps(&[]), &BTreeSet::new()).sums.is_some(), expected);
        }
    }
}
