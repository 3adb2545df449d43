//! Locks as the kernel asks for them: which owner locked through which handle, and what a close takes away.
//!
//! The kernel says who closes (FLUSH, one per close(2)) and which open file is gone (RELEASE). A process loses its fcntl locks on a file with
//! any close of it; a flock or an OFD lock goes with its open file. Those of a process have all gone with a FLUSH before RELEASE
//! comes, so that RELEASE may take away whatever was locked through the handle, without telling the kinds apart.

use std::collections::{BTreeMap, BTreeSet};

use dfs::client;
use dfs::locks::{LockKind, LockMode, LockRange};
use dfs::status::Status;
use dfs::types::InodeId;
use dfs::wire::namespace::{Answer, LockWait, Query, SetLock};

use super::{Effect, Shape, Step, Translator};
use crate::requests::{Handle, Reply};

/// The books.
#[derive(Debug, Default)]
pub(super) struct HandleLocks {
    /// Who asked for locks through each handle and has not closed it.
    owners: BTreeMap<Handle, BTreeSet<(LockKind, u64)>>,
    /// Handles whose locks, or bytes, were lost with the session: what they protect may have changed hands.
    broken: BTreeSet<Handle>,
    /// Requests that may wait, with their step.
    waiting: BTreeMap<u64, u64>,
}

impl HandleLocks {
    /// Whether the handle may still be used.
    pub fn check(&self, handle: Handle) -> Result<(), Status> {
        if self.broken.contains(&handle) { Err(Status::SessionGone) } else { Ok(()) }
    }
}

impl Translator {
    /// The requester was interrupted; only one that waits for a lock takes notice.
    pub fn on_interrupt(&mut self, token: u64) {
        if let Some(&step) = self.locks.waiting.get(&token) {
            self.effects.push_back(Effect::Interrupt { step });
        }
    }

    /// The session is lost, and with it all locks; `held` tells which there were. Their handles fail until closed.
    pub fn on_locks_lost(&mut self, held: impl Fn(InodeId, LockKind, u64) -> bool) {
        for (&handle, owners) in &self.locks.owners {
            let Some(ino) = self.handles.inode(handle) else { continue };
            if owners.iter().any(|&(kind, key)| held(ino, kind, key)) {
                self.locks.broken.insert(handle);
            }
        }
    }

    /// The session is lost, and with it what was written and not committed of some files. Their handles fail until closed.
    pub fn on_writes_lost(&mut self, lost: impl Fn(InodeId) -> bool) {
        self.locks.broken.extend(self.handles.files().filter(|(_, ino)| lost(*ino)).map(|(handle, _)| handle));
    }

    pub(super) fn set_lock(&mut self, token: u64, ino: InodeId, handle: Handle, lock: SetLock) -> Result<(), Status> {
        self.check_handle(handle, ino)?;
        if lock.mode.is_some() {
            self.locks.owners.entry(handle).or_default().insert((lock.kind, lock.key));
        }
        if lock.mode.is_some() && lock.wait != LockWait::Never {
            self.locks.waiting.insert(token, self.next_step);
        }
        self.call(Step::Lock { token }, client::Call::Lock { ino, lock });
        Ok(())
    }

    pub(super) fn on_lock_set(&mut self, token: u64, result: Result<client::Reply, Status>) {
        self.locks.waiting.remove(&token);
        self.reply(token, result.map_or_else(Reply::Error, |_| Reply::Done));
    }

    pub(super) fn test_lock(&mut self, token: u64, query: Query) {
        self.call(Step::Answer { token, shape: Shape::Lock }, client::Call::Query(query));
    }

    /// A descriptor of the file was closed by `key`.
    pub(super) fn flush(&mut self, token: u64, ino: InodeId, handle: Handle, key: u64) {
        if let Some(owners) = self.locks.owners.get_mut(&handle) {
            owners.remove(&(LockKind::Fcntl, key));
        }
        // Costs nothing but this call if the owner has no lock there.
        self.call(Step::Lock { token }, unlock(ino, LockKind::Fcntl, key));
    }

    /// The open file is gone.
    pub(super) fn release_locks(&mut self, ino: InodeId, handle: Handle) {
        self.locks.broken.remove(&handle);
        for (kind, key) in self.locks.owners.remove(&handle).unwrap_or_default() {
            self.call(Step::Unlocked, unlock(ino, kind, key));
        }
    }

    /// Whether the handle is open on that inode and may be used.
    pub(super) fn check_handle(&self, handle: Handle, ino: InodeId) -> Result<(), Status> {
        if !self.handles.is_open(handle, ino) {
            return Err(Status::BadHandle);
        }
        self.locks.check(handle)
    }
}

/// A found lock as the request wants it.
pub(super) fn shaped(reply: client::Reply) -> Result<Reply, Status> {
    match reply {
        client::Reply::Answer(Answer::Lock(found)) => Ok(Reply::Lock(found)),
        _ => Err(Status::Internal),
    }
}

fn unlock(ino: InodeId, kind: LockKind, key: u64) -> client::Call {
    let (range, mode): (_, Option<LockMode>) = (LockRange::WHOLE, None);
    client::Call::Lock { ino, lock: SetLock { kind, key, range, mode, wait: LockWait::Never, pid: 0 } }
}
