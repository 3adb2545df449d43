//! What this session's own operations are changing, which must not be answered from what is known.
//!
//! A pure table of counts. While an operation is under way its inodes and names may be in the old state or the new one, and somebody else may
//! have seen the new one already: the leader is asked. An operation given up without an answer may still happen later; it stays here as a
//! *ghost* until a later operation of the session has been answered, after which the cluster refuses it.

use std::collections::BTreeMap;

use crate::limits;
use crate::types::{InodeId, Name, RequestNumber};
use crate::wire::namespace::{Behind, Op};

/// What an operation changes, as far as the client can know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    pub(super) inodes: Vec<InodeId>,
    pub(super) names: Vec<(InodeId, Name)>,
    /// It changes one more inode, of which only the name is known.
    pub(super) others: bool,
}

impl Touched {
    /// `child`: which inode a name stands for, if that is known for sure.
    pub(super) fn by(op: &Op, mut child: impl FnMut(InodeId, &Name) -> Option<InodeId>) -> Touched {
        let mut touched = Touched::default();
        match op {
            Op::Create { parent, name, .. } => {
                touched.inodes.push(*parent);
                touched.names.push((*parent, name.clone()));
            }
            Op::Link { ino, parent, name } => {
                touched.inodes.extend([*ino, *parent]);
                touched.names.push((*parent, name.clone()));
            }
            Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
                touched.others = child(*parent, name).map(|child| touched.inodes.push(child)).is_none();
                touched.inodes.push(*parent);
                touched.names.push((*parent, name.clone()));
            }
            Op::Rename { from_parent, from_name, to_parent, to_name, .. } => {
                for (parent, name) in [(*from_parent, from_name), (*to_parent, to_name)] {
                    touched.others |= child(parent, name).map(|child| touched.inodes.push(child)).is_none();
                    touched.inodes.push(parent);
                    touched.names.push((parent, name.clone()));
                }
            }
            // Under `WRITE` all that it changes is known, up to the entry that gives the right back.
            Op::Write { behind: Some(Behind { yields: false, .. }), .. } => {}
            // Until it is answered nobody knows whether the right is still there.
            Op::Yield { ino } => touched.inodes.push(*ino),
            Op::SetAttributes { ino, .. } | Op::Write { ino, .. } | Op::Fold { ino, .. } | Op::Allocate { ino, .. } => {
                touched.inodes.push(*ino);
            }
            Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } => touched.inodes.push(*ino),
            Op::Copy { to, .. } => touched.inodes.push(*to),
            Op::Acquire { .. } | Op::Reserve { .. } | Op::SetLock { .. } => {}
        }
        touched
    }

    fn is_nothing(&self) -> bool {
        self.inodes.is_empty() && self.names.is_empty() && !self.others
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Changes {
    inodes: BTreeMap<InodeId, u32>,
    names: BTreeMap<(InodeId, Name), u32>,
    ghosts: BTreeMap<RequestNumber, Touched>,
    /// More ghosts than are kept apart, up to this number: nothing is known until it is laid.
    crowd: Option<RequestNumber>,
}

impl Changes {
    pub(super) fn begin(&mut self, touched: &Touched) {
        touched.inodes.iter().for_each(|ino| *self.inodes.entry(*ino).or_default() += 1);
        touched.names.iter().for_each(|name| *self.names.entry(name.clone()).or_default() += 1);
    }

    /// The operation was answered.
    pub(super) fn end(&mut self, touched: &Touched) {
        for ino in &touched.inodes {
            lower(&mut self.inodes, ino);
        }
        for name in &touched.names {
            lower(&mut self.names, name);
        }
    }

    /// The operation was given up under that number, and may still happen.
    pub(super) fn haunt(&mut self, number: RequestNumber, touched: Touched) {
        if touched.is_nothing() {
            return self.end(&touched);
        }
        if self.ghosts.len() >= limits::CLIENT_GHOSTS_MAX {
            self.end(&touched);
            self.crowd = self.crowd.max(Some(number));
        } else {
            self.ghosts.insert(number, touched);
        }
    }

    /// An operation was answered that told the cluster to refuse all numbers below: ghosts among them are laid. What they touched is to be
    /// forgotten once more; `None`: everything is.
    pub(super) fn lay(&mut self, below: RequestNumber) -> (Vec<Touched>, bool) {
        let later = self.ghosts.split_off(&below);
        let laid: Vec<Touched> = std::mem::replace(&mut self.ghosts, later).into_values().collect();
        laid.iter().for_each(|touched| self.end(touched));
        let crowd = self.crowd.is_some_and(|number| number < below);
        if crowd {
            self.crowd = None;
        }
        (laid, crowd)
    }

    /// Whether operations that were given up may still happen.
    pub(super) fn is_haunted(&self) -> bool {
        !self.ghosts.is_empty() || self.crowd.is_some()
    }

    /// Whether nothing that is known may be used.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowd.is_some()
    }

    pub(super) fn touch_inode(&self, ino: InodeId) -> bool {
        self.inodes.contains_key(&ino)
    }

    pub(super) fn touch_name(&self, directory: InodeId, name: &Name) -> bool {
        !self.names.is_empty() && self.names.contains_key(&(directory, name.clone()))
    }

    /// Asserts that ghosts are counted.
    pub(super) fn check_invariants(&self) {
        assert!(self.ghosts.len() <= limits::CLIENT_GHOSTS_MAX);
        for touched in self.ghosts.values() {
            assert!(touched.inodes.iter().all(|ino| self.inodes.contains_key(ino)));
            assert!(touched.names.iter().all(|name| self.names.contains_key(name)));
        }
    }
}

fn lower<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K) {
    let count = counts.get_mut(key).expect("what ends has begun");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(n: u64) -> Touched {
        Touched { inodes: vec![InodeId(n)], ..Touched::default() }
    }

    #[test]
    fn ghosts_touch_until_they_are_laid() {
        let mut changes = Changes::default();
        for n in 1..=3 {
            changes.begin(&touched(n));
        }
        changes.end(&touched(1));
        changes.haunt(RequestNumber(2), touched(2));
        changes.haunt(RequestNumber(3), touched(3));
        assert!(!changes.touch_inode(InodeId(1)) && changes.touch_inode(InodeId(2)));
        changes.check_invariants();
        assert_eq!(changes.lay(RequestNumber(3)), (vec![touched(2)], false));
        assert!(!changes.touch_inode(InodeId(2)) && changes.touch_inode(InodeId(3)) && changes.is_haunted());
        assert_eq!(changes.lay(RequestNumber(4)), (vec![touched(3)], false));
        assert!(!changes.is_haunted());
    }

    #[test]
    fn too_many_ghosts_are_one_crowd() {
        let mut changes = Changes::default();
        let count = limits::CLIENT_GHOSTS_MAX as u64 + 5;
        for n in 1..=count {
            changes.begin(&touched(n));
            changes.haunt(RequestNumber(n), touched(n));
            changes.check_invariants();
        }
        assert!(changes.is_crowded());
        let (laid, all) = changes.lay(RequestNumber(count));
        assert!(laid.len() == limits::CLIENT_GHOSTS_MAX && !all);
        assert!(changes.lay(RequestNumber(count + 1)).1);
        assert!(!changes.is_haunted());
    }
}
