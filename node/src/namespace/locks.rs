//! File locks: a table per inode, owned by sessions. What waits for a lock is the leader's, and volatile.
//!
//! Locks of a session that has ended are void at once; they are cleared away in bounded steps.

use std::collections::BTreeMap;

use dfs::limits;
use dfs::locks::{Lock, LockKind, LockMode, LockOwner, LockRange, LockTable};
use dfs::status::Status;
use dfs::types::{InodeId, SessionId};
use dfs::wire::namespace::{Answer, Grant, Replied, SetLock};

use super::Namespace;
use super::command::Effect;
use super::digest::Digest;

/// What a lock takes; the same on every build, since it decides what fits.
const LOCK_BYTES: u64 = 48;
const _: () = assert!(size_of::<Lock>() <= LOCK_BYTES as usize);

/// Where each session has locks, and how many. Kept at the store's door.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LockIndex {
    by_inode: BTreeMap<(SessionId, InodeId), u64>,
    by_session: BTreeMap<SessionId, u64>,
}

impl LockIndex {
    pub fn add(&mut self, ino: InodeId, table: Option<&LockTable>) {
        for (session, count) in table.into_iter().flat_map(LockTable::sessions) {
            *self.by_inode.entry((session, ino)).or_default() += u64::from(count);
            *self.by_session.entry(session).or_default() += u64::from(count);
        }
    }

    pub fn subtract(&mut self, ino: InodeId, table: Option<&LockTable>) {
        fn less<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, count: u32) {
            if let Some(left) = counts.get_mut(&key) {
                *left -= u64::from(count);
                if *left == 0 {
                    counts.remove(&key);
                }
            }
        }
        for (session, count) in table.into_iter().flat_map(LockTable::sessions) {
            less(&mut self.by_inode, (session, ino), count);
            less(&mut self.by_session, session, count);
        }
    }

    /// Locks that the session has in all.
    fn count(&self, session: SessionId) -> u64 {
        self.by_session.get(&session).copied().unwrap_or(0)
    }

    /// Inodes on which the session has locks, with their number.
    fn inodes(&self, session: SessionId) -> impl Iterator<Item = (InodeId, u64)> {
        let range = (session, InodeId(0))..=(session, InodeId(u64::MAX));
        self.by_inode.range(range).map(|((_, ino), count)| (*ino, *count))
    }

    /// Sessions with locks.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.by_session.keys().copied()
    }
}

pub(super) fn digest(ino: InodeId, table: &LockTable) -> u64 {
    let mut digest = Digest::new(10).word(ino.0);
    for Lock { owner, range, mode, pid } in table.iter() {
        digest = digest.word(owner.session.0).word(owner.key).word(range.first).word(range.last);
        digest = digest.word((owner.kind as u64) << 40 | (*mode as u64) << 32 | u64::from(*pid));
    }
    digest.end()
}

pub(super) fn weight(table: &LockTable) -> u64 {
    96 + LOCK_BYTES * table.len() as u64
}

/// The owner that a session names.
pub(crate) fn owner_of(session: SessionId, lock: &SetLock) -> LockOwner {
    LockOwner { kind: lock.kind, session, key: lock.key }
}

impl Namespace {
    /// Carries out what is asked of a lock, now or not at all.
    pub(super) fn set_lock(&mut self, session: SessionId, ino: InodeId, lock: &SetLock) -> Result<Replied, Status> {
        self.store.inode(ino).ok_or(Status::Stale)?;
        let whole = lock.kind == LockKind::Fcntl || lock.range == LockRange::WHOLE;
        if !lock.range.is_well_formed() || !whole {
            return Err(Status::InvalidArgument);
        }
        // Who writes alone decides about locks, too, and may have been given the right after this was let in: it is let in once more.
        if lock.mode.is_some() && self.store.writer(ino).is_some_and(|writer| writer != session) {
            return Err(Status::Busy);
        }
        let owner = owner_of(session, lock);
        let old = self.store.locks(ino);
        let mut table = old.cloned().unwrap_or_default();
        let free = lock.mode.is_none_or(|mode| self.lock_blockers(ino, owner, lock.range, mode).next().is_none());
        if free {
            table.set(owner, lock.range, lock.mode, lock.pid);
        } else if lock.kind == LockKind::Flock && table.holds_in(owner, LockRange::WHOLE) {
            // Linux converts a flock by letting it go first. Two holders of shared locks that both want it exclusive depend on it.
            table.set(owner, LockRange::WHOLE, None, 0);
        } else {
            return Ok(Replied::Lock(Grant::Refused));
        }
        let grows = table.len() > old.map_or(0, LockTable::len);
        if grows {
            let full = table.len() > limits::LOCKS_PER_INODE_MAX || self.store.lock_index().count(session) >= limits::LOCKS_PER_SESSION_MAX;
            // Locks are bounded by themselves. What its only writer tells it has granted already, and an unlocking must not fail.
            let new = lock.mode.is_some() && self.store.writer(ino) != Some(session);
            if full || (new && self.check_records().is_err()) {
                return Err(Status::NoLocks);
            }
        }
        // Taking more frees nobody; everything else may.
        if lock.mode != Some(LockMode::Exclusive) || !free {
            self.effects.push(Effect::Unlocked(ino));
        }
        self.store.put_locks(ino, Some(table));
        Ok(match (lock.mode, free) {
            (None, _) => Replied::Done,
            (Some(_), true) => Replied::Lock(Grant::Granted),
            (Some(_), false) => Replied::Lock(Grant::Refused),
        })
    }

    /// Frees a bounded part of the locks of a session that has ended.
    pub(super) fn drop_locks(&mut self, session: SessionId) {
        if self.store.session(session).is_some() {
            return;
        }
        let mut visits = 0;
        let mut inos = Vec::new();
        for (ino, _) in self.store.lock_index().inodes(session) {
            visits += self.store.locks(ino).map_or(0, LockTable::len);
            inos.push(ino);
            if visits >= limits::COMMAND_VISITS_MAX {
                break;
            }
        }
        for ino in inos {
            let Some(mut table) = self.store.locks(ino).cloned() else { continue };
            table.remove_session(session);
            self.store.put_locks(ino, Some(table));
            self.effects.push(Effect::Unlocked(ino));
        }
    }

    /// Locks that keep the owner from having that range in that mode. Those of ended sessions do not.
    pub(crate) fn lock_blockers(&self, ino: InodeId, owner: LockOwner, range: LockRange, mode: LockMode) -> impl Iterator<Item = &Lock> {
        let blockers = self.store.locks(ino).into_iter().flat_map(move |table| table.blockers(owner, range, mode));
        blockers.filter(|lock| self.store.session(lock.owner.session).is_some())
    }

    /// Whether another living session has a lock on the inode.
    pub(crate) fn is_locked_by_other(&self, session: SessionId, ino: InodeId) -> bool {
        let sessions = self.store.locks(ino).into_iter().flat_map(LockTable::sessions);
        sessions.into_iter().any(|(other, _)| other != session && self.store.session(other).is_some())
    }

    /// Whether the owner has a lock on a byte of the inode.
    pub(crate) fn has_lock(&self, ino: InodeId, owner: LockOwner) -> bool {
        self.store.locks(ino).is_some_and(|table| table.holds_in(owner, LockRange::WHOLE))
    }

    /// What F_GETLK asks.
    pub(crate) fn test_lock(&self, ino: InodeId, owner: LockOwner, range: LockRange, mode: Option<LockMode>) -> Result<Answer, Status> {
        self.store.inode(ino).ok_or(Status::Stale)?;
        let found = match mode {
            Some(mode) => self.lock_blockers(ino, owner, range, mode).min_by_key(|lock| lock.range.first),
            None => self.store.locks(ino).and_then(|table| table.of_owner(owner).iter().find(|lock| lock.range.overlaps(&range))),
        };
        Ok(Answer::Lock(found.map(|lock| (lock.range, lock.mode, lock.pid))))
    }

    /// Ended sessions of which locks are still to be cleared away.
    pub(crate) fn sessions_to_unlock(&self) -> impl Iterator<Item = SessionId> {
        self.store.lock_index().sessions().filter(|session| self.store.session(*session).is_none())
    }
}

#[cfg(test)]
mod tests {
    use dfs::types::{Name, ROOT, RequestNumber};
    use dfs::wire::namespace::{LockWait, NewKind, Op};

    use super::super::tests::World;
    use super::super::{Command, SnapshotLoader};
    use super::*;

    const OTHER: SessionId = SessionId(8);
    const SELF: SessionId = SessionId(7);

    fn file(world: &mut World, text: &str) -> InodeId {
        let (name, kind) = (Name::new(text).unwrap(), NewKind::File);
        let op = Op::Create { parent: ROOT, name, kind, mode: 0o644, uid: 0, gid: 0, exclusive: true, hold: false, write: false, umask: 0 };
        match world.op(op) {
            Ok(Replied::Entry { attributes, .. }) => attributes.ino,
            other => panic!("{other:?}"),
        }
    }

    fn lock(kind: LockKind, key: u64, range: (u64, u64), mode: Option<LockMode>) -> SetLock {
        let range = LockRange { first: range.0, last: range.1 };
        SetLock { kind, key, range, mode, wait: LockWait::Never, pid: 1 }
    }

    /// As another session, under fresh numbers.
    fn other(world: &mut World, number: u64, ino: InodeId, lock: SetLock) -> Result<Replied, Status> {
        let (number, answered_below) = (RequestNumber(number), RequestNumber(number));
        world.apply(Command::Request { session: OTHER, number, answered_below, uploads_from: 1, op: Op::SetLock { ino, lock } })
    }

    fn freed(world: &mut World) -> Vec<InodeId> {
        let freed = |effect| if let Effect::Unlocked(ino) = effect { Some(ino) } else { None };
        world.namespace.drain_effects().into_iter().filter_map(freed).collect()
    }

    const GRANTED: Result<Replied, Status> = Ok(Replied::Lock(Grant::Granted));
    const REFUSED: Result<Replied, Status> = Ok(Replied::Lock(Grant::Refused));
    const EXCLUSIVE: Option<LockMode> = Some(LockMode::Exclusive);
    const SHARED: Option<LockMode> = Some(LockMode::Shared);
    const WHOLE: (u64, u64) = (0, LockRange::LAST);

    #[test]
    fn owners_exclude_each_other_and_kinds_do_not() {
        let mut world = World::new();
        world.apply(Command::OpenSession { session: OTHER, caches: false }).unwrap();
        let ino = file(&mut world, "f");
        let mut set = |lock| world.op(Op::SetLock { ino, lock });
        assert_eq!(set(lock(LockKind::Fcntl, 1, (0, 9), EXCLUSIVE)), GRANTED);
        assert_eq!(set(lock(LockKind::Fcntl, 2, (9, 9), SHARED)), REFUSED);
        assert_eq!(set(lock(LockKind::Fcntl, 2, (10, 10), EXCLUSIVE)), GRANTED);
        assert_eq!(set(lock(LockKind::Flock, 2, WHOLE, EXCLUSIVE)), GRANTED);
        assert_eq!(set(lock(LockKind::Flock, 3, (0, 5), EXCLUSIVE)), Err(Status::InvalidArgument), "a flock has no range");
        assert_eq!(other(&mut world, 1, ino, lock(LockKind::Fcntl, 1, (5, 5), EXCLUSIVE)), REFUSED, "the same key in another session");
        let seen = world.namespace.test_lock(ino, LockOwner { kind: LockKind::Fcntl, session: OTHER, key: 1 }, LockRange::WHOLE, SHARED);
        assert_eq!(seen, Ok(Answer::Lock(Some((LockRange { first: 0, last: 9 }, LockMode::Exclusive, 1)))));
        freed(&mut world);
        assert_eq!(world.op(Op::SetLock { ino, lock: lock(LockKind::Fcntl, 1, (5, 5), None) }), Ok(Replied::Done));
        assert_eq!(freed(&mut world), vec![ino]);
        assert_eq!(other(&mut world, 2, ino, lock(LockKind::Fcntl, 1, (5, 5), EXCLUSIVE)), GRANTED);
        assert_eq!(world.op(Op::SetLock { ino: InodeId(999), lock: lock(LockKind::Fcntl, 1, (5, 5), None) }), Err(Status::Stale));
        world.namespace.check_invariants();
    }

    #[test]
    fn a_refused_conversion_loses_a_flock_and_keeps_a_range() {
        let mut world = World::new();
        let ino = file(&mut world, "f");
        for kind in [LockKind::Flock, LockKind::Fcntl] {
            for key in [1, 2] {
                assert_eq!(world.op(Op::SetLock { ino, lock: lock(kind, key, WHOLE, SHARED) }), GRANTED);
            }
            assert_eq!(world.op(Op::SetLock { ino, lock: lock(kind, 1, WHOLE, EXCLUSIVE) }), REFUSED);
            assert_eq!(world.repeat(), REFUSED, "once");
            let second = world.op(Op::SetLock { ino, lock: lock(kind, 2, WHOLE, EXCLUSIVE) });
            assert_eq!(second, if kind == LockKind::Flock { GRANTED } else { REFUSED }, "as on Linux");
        }
        world.namespace.check_invariants();
    }

    #[test]
    fn locks_end_with_their_session_or_inode_in_bounded_steps() {
        let mut world = World::new();
        world.apply(Command::OpenSession { session: OTHER, caches: false }).unwrap();
        let inos: Vec<InodeId> = (0..1500).map(|number| file(&mut world, &format!("f{number}"))).collect();
        for &ino in &inos {
            assert_eq!(world.op(Op::SetLock { ino, lock: lock(LockKind::Flock, 1, WHOLE, EXCLUSIVE) }), GRANTED);
        }
        let unlinked = inos[3];
        world.op(Op::Unlink { parent: ROOT, name: Name::new("f3").unwrap() }).unwrap();
        world.apply(Command::Reap { inos: vec![unlinked] }).unwrap();
        world.namespace.check_invariants();

        freed(&mut world);
        world.apply(Command::ExpireSession { session: SELF }).unwrap();
        assert_eq!(other(&mut world, 1, inos[0], lock(LockKind::Flock, 1, WHOLE, SHARED)), REFUSED, "courtesy");
        world.apply(Command::EvictSession { session: SELF }).unwrap();
        let first = freed(&mut world);
        assert!(first.len() < inos.len() && first.len() >= 512, "{} at once", first.len());
        assert_eq!(other(&mut world, 2, inos[1499], lock(LockKind::Flock, 1, WHOLE, EXCLUSIVE)), GRANTED, "void before it is cleared away");
        world.namespace.check_invariants();
        while let Some(session) = {
            let mut left = world.namespace.sessions_to_unlock();
            left.next()
        } {
            world.apply(Command::DropLocks { session }).unwrap();
        }
        world.namespace.check_invariants();
        let own = LockOwner { kind: LockKind::Flock, session: OTHER, key: 1 };
        assert!(world.namespace.has_lock(inos[1499], own), "what was taken meanwhile stays");
        world.apply(Command::DropLocks { session: OTHER }).unwrap();
        assert!(world.namespace.has_lock(inos[1499], own), "a living session keeps its locks");
    }

    #[test]
    fn one_inode_holds_so_many_locks() {
        let mut world = World::new();
        let ino = file(&mut world, "f");
        let mut at = |first: u64, mode| world.op(Op::SetLock { ino, lock: lock(LockKind::Fcntl, 1, (first, first), mode) });
        for number in 0..limits::LOCKS_PER_INODE_MAX as u64 {
            assert_eq!(at(2 * number, EXCLUSIVE), GRANTED);
        }
        assert_eq!(at(2 * limits::LOCKS_PER_INODE_MAX as u64, EXCLUSIVE), Err(Status::NoLocks));
        assert_eq!(at(0, None), Ok(Replied::Done));
        assert_eq!(at(2 * limits::LOCKS_PER_INODE_MAX as u64, EXCLUSIVE), GRANTED);
        world.namespace.check_invariants();
    }

    #[test]
    fn a_snapshot_carries_locks_as_they_were() {
        let mut world = World::new();
        let inos: Vec<InodeId> = (0..5).map(|number| file(&mut world, &format!("f{number}"))).collect();
        for &ino in &inos {
            world.op(Op::SetLock { ino, lock: lock(LockKind::Fcntl, 1, (3, 7), SHARED) }).unwrap();
        }
        let hash = world.namespace.state_hash();
        world.namespace.begin_snapshot();
        let mut loader = SnapshotLoader::new();
        // Changes behind and before the snapshot's place, while it is being taken.
        let mut turn = 0;
        while let Some((slice, _)) = world.namespace.next_snapshot_slice(200) {
            loader.push(&slice).unwrap();
            let mode = [None, EXCLUSIVE][turn % 2];
            world.op(Op::SetLock { ino: inos[turn % 5], lock: lock(LockKind::Fcntl, 1, (3, 7), mode) }).unwrap();
            turn += 1;
        }
        assert!(turn > 5);
        let loaded = loader.finish().unwrap();
        assert_eq!(loaded.state_hash(), hash);
        loaded.check_invariants();
        assert!(inos.iter().all(|&ino| loaded.has_lock(ino, LockOwner { kind: LockKind::Fcntl, session: SELF, key: 1 })));
    }
}
