//! Who may cache what: the `READ` and `NAMES` rights that the leader has given in its term, by inode and session.
//!
//! Volatile. Of a session that is older than the term nothing is known until it has told (`Reclaim`): its era is 0. Era 1 begins then;
//! every later era begins with nothing, because the session was too silent for anything that it had to be waited for.

use std::collections::{BTreeMap, BTreeSet};

use dfs::limits;
use dfs::types::{InodeId, Rights, SessionId};

/// What a session has of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub rights: Rights,
    /// Names of the directory that it was told to forget since it last asked for any.
    pub notices: u32,
}

#[derive(Debug, Default)]
struct Standing {
    era: u64,
    inos: BTreeSet<InodeId>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct RightsTable {
    sessions: BTreeMap<SessionId, Standing>,
    /// One table for all: with one for each inode a cached file would take three times as much.
    holders: BTreeMap<(InodeId, SessionId), Held>,
}

impl RightsTable {
    /// A session that opened in this term has nothing from before.
    pub fn begin(&mut self, session: SessionId) {
        let standing = self.sessions.entry(session).or_default();
        standing.era = standing.era.max(1);
    }

    /// The session's era; 0 while it has not told what it has.
    pub fn era(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).map_or(0, |standing| standing.era)
    }

    /// Part of what the session has from the term before; `last` completes it. Ignored once its era has begun: what it had is known, or void.
    pub fn reclaim(&mut self, session: SessionId, rights: &[(InodeId, Rights)], last: bool) {
        if self.era(session) > 0 {
            return;
        }
        for &(ino, rights) in rights {
            self.add(session, ino, rights);
        }
        if last {
            self.begin(session);
        }
    }

    /// Gives rights in addition to those held. Refused while the session's era has not begun, and beyond its bound.
    pub fn grant(&mut self, session: SessionId, ino: InodeId, rights: Rights) -> bool {
        self.era(session) > 0 && self.add(session, ino, rights)
    }

    fn add(&mut self, session: SessionId, ino: InodeId, rights: Rights) -> bool {
        let rights = rights.without(Rights::WRITE);
        let standing = self.sessions.entry(session).or_default();
        let full = standing.inos.len() >= limits::SESSION_RIGHTS_MAX && !standing.inos.contains(&ino);
        if full || rights.is_empty() {
            return false;
        }
        standing.inos.insert(ino);
        let held = self.holders.entry((ino, session)).or_default();
        held.rights = held.rights.with(rights);
        if rights.contains(Rights::NAMES) {
            held.notices = 0;
        }
        true
    }

    /// What the session has of the inode.
    pub fn held(&self, session: SessionId, ino: InodeId) -> Rights {
        self.holders.get(&(ino, session)).map_or(Rights::NONE, |held| held.rights)
    }

    /// Who has anything of the inode.
    pub fn holders(&self, ino: InodeId) -> impl Iterator<Item = (SessionId, Held)> {
        let all = (ino, SessionId(0))..=(ino, SessionId(u64::MAX));
        self.holders.range(all).map(|(&(_, session), held)| (session, *held))
    }

    /// The session is told to forget a name of the directory.
    pub fn count_notice(&mut self, session: SessionId, directory: InodeId) {
        if let Some(held) = self.holders.get_mut(&(directory, session)) {
            held.notices = held.notices.saturating_add(1);
        }
    }

    /// Takes rights away.
    pub fn remove(&mut self, session: SessionId, ino: InodeId, rights: Rights) {
        let Some(held) = self.holders.get_mut(&(ino, session)) else { return };
        held.rights = held.rights.without(rights);
        if !held.rights.is_empty() {
            return;
        }
        self.holders.remove(&(ino, session));
        if let Some(standing) = self.sessions.get_mut(&session) {
            standing.inos.remove(&ino);
        }
    }

    /// Everything that the session has is void; a new era begins for it.
    pub fn void(&mut self, session: SessionId) {
        self.clear(session);
        let standing = self.sessions.entry(session).or_default();
        standing.era = standing.era.max(1) + 1;
    }

    /// The session is gone.
    pub fn end(&mut self, session: SessionId) {
        self.clear(session);
        self.sessions.remove(&session);
    }

    fn clear(&mut self, session: SessionId) {
        let Some(standing) = self.sessions.get_mut(&session) else { return };
        for ino in std::mem::take(&mut standing.inos) {
            self.holders.remove(&(ino, session));
        }
    }

    /// Asserts that both sides of the table agree and bounds hold.
    pub fn check_invariants(&self) {
        let mut inos: BTreeMap<SessionId, BTreeSet<InodeId>> = BTreeMap::new();
        for (&(ino, session), held) in &self.holders {
            assert!(!held.rights.is_empty() && !held.rights.intersects(Rights::WRITE), "rights of the volatile kind");
            inos.entry(session).or_default().insert(ino);
        }
        for (session, standing) in &self.sessions {
            assert_eq!(inos.remove(session).unwrap_or_default(), standing.inos, "inodes of a session");
            assert!(standing.inos.len() <= limits::SESSION_RIGHTS_MAX);
        }
        assert!(inos.is_empty(), "rights of an unknown session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(7);
    const DIRECTORY: InodeId = InodeId(8);

    #[test]
    fn rights_add_up_and_go_one_by_one() {
        let mut table = RightsTable::default();
        table.begin(A);
        assert!(table.grant(A, DIRECTORY, Rights::READ) && table.grant(A, DIRECTORY, Rights::NAMES));
        table.remove(A, DIRECTORY, Rights::READ);
        assert_eq!(table.held(A, DIRECTORY), Rights::NAMES);
        table.remove(A, DIRECTORY, Rights::NAMES);
        assert_eq!(table.holders(DIRECTORY).count(), 0);
        table.check_invariants();
    }

    #[test]
    fn an_unknown_session_is_given_nothing_until_it_has_told() {
        let mut table = RightsTable::default();
        assert!(!table.grant(A, FILE, Rights::READ));
        table.reclaim(A, &[(FILE, Rights::READ.with(Rights::WRITE))], false);
        assert_eq!((table.era(A), table.held(A, FILE)), (0, Rights::READ));
        table.reclaim(A, &[(DIRECTORY, Rights::NAMES)], true);
        assert_eq!(table.era(A), 1);
        table.reclaim(A, &[(InodeId(9), Rights::READ)], true);
        assert_eq!(table.held(A, InodeId(9)), Rights::NONE, "a late double brings nothing back");
        table.check_invariants();
    }

    #[test]
    fn what_is_void_is_void_also_for_a_late_reclaim() {
        let mut table = RightsTable::default();
        table.void(A);
        assert_eq!(table.era(A), 2, "era 1 would say that what it had stands");
        table.reclaim(A, &[(FILE, Rights::READ)], true);
        assert_eq!(table.held(A, FILE), Rights::NONE);
        table.begin(B);
        table.grant(B, FILE, Rights::READ);
        table.void(B);
        assert_eq!((table.era(B), table.holders(FILE).count()), (2, 0));
        assert!(table.grant(B, FILE, Rights::READ), "the new era begins with nothing and goes on");
        table.end(B);
        table.check_invariants();
    }

    #[test]
    fn notices_count_until_the_session_asks_again() {
        let mut table = RightsTable::default();
        table.begin(A);
        table.grant(A, DIRECTORY, Rights::NAMES);
        table.count_notice(A, DIRECTORY);
        table.count_notice(A, DIRECTORY);
        assert_eq!(table.holders(DIRECTORY).next().map(|(_, held)| held.notices), Some(2));
        table.grant(A, DIRECTORY, Rights::NAMES);
        assert_eq!(table.holders(DIRECTORY).next().map(|(_, held)| held.notices), Some(0));
    }
}
