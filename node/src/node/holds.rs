//! Which session has which inode open: what the leader remembers of its term so that unlinked files live until their last close.
//!
//! Volatile. A new leader knows nothing until every session has told it (`Reclaim`), and lets nothing be reaped before.

use std::collections::{BTreeMap, BTreeSet};

use dfs::status::Status;
use dfs::types::{InodeId, SessionId};

/// Releases remembered per session, so that an older `Hold` that arrives later does not stick.
const RELEASES_MAX: usize = 1024;
/// Inodes that one session may have open.
pub(super) const HOLDS_MAX: usize = 1 << 20;

#[derive(Default)]
struct Held {
    /// Sequence of the newest `Hold` of each open inode.
    open: BTreeMap<InodeId, u64>,
    /// Sequence of the newest `Release` of inodes closed lately.
    released: BTreeMap<InodeId, u64>,
    /// Whether the session has told this leader everything that it had open before.
    whole: bool,
}

/// The table.
#[derive(Default)]
pub(super) struct Holds {
    sessions: BTreeMap<SessionId, Held>,
    /// Index of `open`: who holds an inode.
    holders: BTreeSet<(InodeId, SessionId)>,
}

impl Holds {
    /// A session that opened in this term has nothing to tell from before.
    pub fn begin(&mut self, session: SessionId) {
        self.sessions.entry(session).or_default().whole = true;
    }

    /// Whether the session has told what it had open.
    pub fn is_whole(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|held| held.whole)
    }

    /// The session opened the inode. `Busy` if it holds too many.
    pub fn hold(&mut self, session: SessionId, ino: InodeId, sequence: u64) -> Result<(), Status> {
        let held = self.sessions.entry(session).or_default();
        if held.released.get(&ino).is_some_and(|&released| released >= sequence && sequence > 0) {
            return Ok(());
        }
        if held.open.len() >= HOLDS_MAX && !held.open.contains_key(&ino) {
            return Err(Status::Busy);
        }
        let newest = held.open.entry(ino).or_default();
        *newest = (*newest).max(sequence);
        self.holders.insert((ino, session));
        Ok(())
    }

    /// Whether the session has closed the inode lately.
    pub fn was_released(&self, session: SessionId, ino: InodeId) -> bool {
        self.sessions.get(&session).is_some_and(|held| held.released.contains_key(&ino))
    }

    /// The session closed the inode; ignored if it opened it again meanwhile.
    pub fn release(&mut self, session: SessionId, ino: InodeId, sequence: u64) {
        let Some(held) = self.sessions.get_mut(&session) else { return };
        if held.open.get(&ino).is_some_and(|&opened| opened > sequence) {
            return;
        }
        held.open.remove(&ino);
        if held.released.len() >= RELEASES_MAX {
            // The oldest by sequence is the one least likely to meet its `Hold` still on the way.
            let oldest = held.released.iter().min_by_key(|&(_, &sequence)| sequence).map(|(&ino, _)| ino);
            oldest.map(|ino| held.released.remove(&ino));
        }
        held.released.insert(ino, sequence);
        self.unindex(session, ino);
    }

    /// Part of what the session has open; `last` completes it.
    pub fn reclaim(&mut self, session: SessionId, inos: &[InodeId], last: bool) -> Result<(), Status> {
        for &ino in inos {
            self.hold(session, ino, 0)?;
        }
        let held = self.sessions.entry(session).or_default();
        held.whole |= last;
        Ok(())
    }

    /// The session is gone, and with it all that it held.
    pub fn end(&mut self, session: SessionId) {
        let Some(held) = self.sessions.remove(&session) else { return };
        for ino in held.open.into_keys() {
            self.unindex(session, ino);
        }
    }

    fn holders(&self, ino: InodeId) -> impl Iterator<Item = SessionId> {
        self.holders.range((ino, SessionId(0))..=(ino, SessionId(u64::MAX))).map(|&(_, session)| session)
    }

    /// Whether anybody has the inode open.
    pub fn is_held(&self, ino: InodeId) -> bool {
        self.holders(ino).next().is_some()
    }

    /// Whether another session has the inode open.
    pub fn is_held_by_other(&self, session: SessionId, ino: InodeId) -> bool {
        self.holders(ino).any(|other| other != session)
    }

    /// Asserts that the index equals what it indexes.
    pub fn check_invariants(&self) {
        let mut holders = BTreeSet::new();
        for (&session, held) in &self.sessions {
            for &ino in held.open.keys() {
                holders.insert((ino, session));
            }
            assert!(held.released.len() <= RELEASES_MAX && held.open.len() <= HOLDS_MAX);
        }
        assert_eq!(holders, self.holders);
    }

    fn unindex(&mut self, session: SessionId, ino: InodeId) {
        self.holders.remove(&(ino, session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(7);

    #[test]
    fn an_inode_is_held_until_its_last_holder_lets_go() {
        let mut holds = Holds::default();
        holds.hold(A, FILE, 1).unwrap();
        holds.hold(B, FILE, 1).unwrap();
        holds.release(A, FILE, 2);
        assert!(holds.is_held(FILE));
        holds.end(B);
        assert!(!holds.is_held(FILE));
        holds.check_invariants();
    }

    #[test]
    fn sequences_order_what_the_network_does_not() {
        let mut holds = Holds::default();
        holds.hold(A, FILE, 1).unwrap();
        holds.hold(A, FILE, 3).unwrap();
        holds.release(A, FILE, 2);
        assert!(holds.is_held(FILE), "opened again after that close");
        holds.release(A, FILE, 4);
        holds.hold(A, FILE, 3).unwrap();
        assert!(!holds.is_held(FILE), "a late open of what is closed");
        holds.check_invariants();
    }

    #[test]
    fn a_session_is_whole_after_the_last_part() {
        let mut holds = Holds::default();
        holds.reclaim(A, &[FILE], false).unwrap();
        assert!(!holds.is_whole(A));
        holds.reclaim(A, &[], true).unwrap();
        assert!(holds.is_whole(A) && holds.is_held(FILE));
        holds.begin(B);
        assert!(holds.is_whole(B));
        holds.check_invariants();
    }
}
