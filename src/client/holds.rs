//! What is open here, and what the leader has been told of it.
//!
//! A pure table. A right on a file protects it as well as a hold does: who unlinks it recalls the right first, and only then the hold is
//! said, if the file is open at that moment. After the last close a hold that was said stays until the right goes, so that the next open says
//! nothing either.

use std::collections::BTreeMap;

use crate::types::InodeId;

/// Whether the leader knows of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Said {
    No,
    /// It may: a hold is on its way, or its answer was lost. To be said again if it matters, and to be given back.
    Perhaps,
    Yes,
}

#[derive(Debug)]
struct Open {
    /// Of the newest open or close.
    sequence: u64,
    open: bool,
    said: Said,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Holds {
    inodes: BTreeMap<InodeId, Open>,
}

impl Holds {
    /// The inode was opened. Whatever was said before stays said.
    pub(super) fn open(&mut self, ino: InodeId, sequence: u64, said: Said) {
        let open = self.inodes.entry(ino).or_insert(Open { sequence, open: true, said });
        open.open = true;
        open.sequence = open.sequence.max(sequence);
        open.said = open.said.max(said);
    }

    /// The inode was closed, and is given back to the leader now.
    pub(super) fn close(&mut self, ino: InodeId) {
        self.inodes.remove(&ino);
    }

    /// The inode was closed; what was said stays said.
    pub(super) fn close_later(&mut self, ino: InodeId, sequence: u64) {
        if let Some(open) = self.inodes.get_mut(&ino) {
            (open.open, open.sequence) = (false, sequence);
        }
    }

    pub(super) fn said(&self, ino: InodeId) -> Said {
        self.inodes.get(&ino).map_or(Said::No, |open| open.said)
    }

    pub(super) fn is_open(&self, ino: InodeId) -> bool {
        self.inodes.get(&ino).is_some_and(|open| open.open)
    }

    /// The sequence under which the leader must be told that the inode is open, if it does not know.
    pub(super) fn unsaid(&self, ino: InodeId) -> Option<u64> {
        self.inodes.get(&ino).filter(|open| open.open && open.said != Said::Yes).map(|open| open.sequence)
    }

    /// The leader is being told, or was.
    pub(super) fn say(&mut self, ino: InodeId, said: Said) {
        if let Some(open) = self.inodes.get_mut(&ino) {
            open.said = open.said.max(said);
        }
    }

    /// A closed inode of which the leader may still believe that it is open: it is to be given back under this number.
    pub(super) fn take_closed(&mut self, ino: InodeId) -> Option<u64> {
        let closed = self.inodes.get(&ino).filter(|open| !open.open)?;
        let sequence = closed.sequence;
        self.inodes.remove(&ino);
        Some(sequence)
    }

    /// Everything open, for a leader that is told all of it: from now on all of it counts as said.
    pub(super) fn tell_all(&mut self) -> Vec<InodeId> {
        let open = self.inodes.iter_mut().filter(|(_, open)| open.open);
        open.map(|(ino, open)| (open.said = Said::Yes, *ino).1).collect()
    }

    /// Closed inodes of which the leader may still believe that they are open.
    pub(super) fn closed(&self) -> Vec<InodeId> {
        self.inodes.iter().filter(|(_, open)| !open.open).map(|(ino, _)| *ino).collect()
    }

    /// Whether anything is open that the leader may not know of.
    pub(super) fn has_unsaid(&self) -> bool {
        self.inodes.values().any(|open| open.open && open.said != Said::Yes)
    }

    /// Asserts that nothing is remembered without a reason.
    pub(super) fn check_invariants(&self) {
        assert!(self.inodes.values().all(|open| open.open || open.said != Said::No));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(7);

    #[test]
    fn a_hold_is_said_late_and_given_back_late() {
        let mut holds = Holds::default();
        holds.open(FILE, 1, Said::No);
        assert_eq!(holds.unsaid(FILE), Some(1));
        holds.say(FILE, Said::Perhaps);
        assert_eq!(holds.unsaid(FILE), Some(1), "until it is sure");
        holds.say(FILE, Said::Yes);
        assert_eq!(holds.unsaid(FILE), None);
        assert_eq!(holds.take_closed(FILE), None);
        holds.close_later(FILE, 2);
        holds.open(FILE, 3, Said::No);
        assert_eq!((holds.said(FILE), holds.unsaid(FILE)), (Said::Yes, None));
        holds.close_later(FILE, 4);
        holds.check_invariants();
        assert_eq!(holds.take_closed(FILE), Some(4));
        assert_eq!(holds.said(FILE), Said::No);
    }

    #[test]
    fn a_new_leader_is_told_what_is_open() {
        let mut holds = Holds::default();
        holds.open(FILE, 1, Said::No);
        holds.open(InodeId(8), 2, Said::Yes);
        holds.close_later(InodeId(8), 3);
        assert_eq!(holds.tell_all(), [FILE]);
        assert_eq!(holds.said(FILE), Said::Yes);
    }
}
