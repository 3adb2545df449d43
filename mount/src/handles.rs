//! What the kernel has open here: files, directory streams, and how often it has been told of each inode.
//!
//! A pure table. Whether an inode is held at the leader is decided by counting: the first handle takes the hold, the last one gives it back;
//! each of these is numbered by one counter of the mount, so that the leader can order a late release against a newer hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs::types::{Attributes, Cookie, InodeId};
use dfs::wire::namespace::DirectoryEntry;

use crate::requests::{Handle, Listing, POSITION_SHIFT};

/// An inode that is open, or being opened.
#[derive(Debug)]
struct OpenInode<W> {
    /// Handles and openers together; never 0.
    users: u64,
    /// Openers that wait for the hold; `None` once it is granted.
    waiting: Option<Vec<W>>,
}

/// A directory stream: the one batch of entries that it keeps between two calls.
#[derive(Debug)]
struct Stream {
    ino: InodeId,
    batch: Option<Batch>,
}

/// Entries that follow the cookie `after`, without a gap.
#[derive(Debug)]
struct Batch {
    after: Cookie,
    entries: Arc<Vec<DirectoryEntry>>,
    /// Whether nothing follows the last entry.
    end: bool,
    directory: Attributes,
    /// The translator's count of changes when it was fetched.
    changes: u64,
}

/// What an opener has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// The inode is held already.
    Held,
    /// Ask for the hold under this number; the opener was queued.
    Ask { sequence: u64 },
    /// The hold is on its way; the opener was queued.
    Queued,
}

/// The table. `W` is whatever an opener that waits wants to remember.
#[derive(Debug)]
pub struct Handles<W> {
    files: BTreeMap<Handle, InodeId>,
    streams: BTreeMap<Handle, Stream>,
    inodes: BTreeMap<InodeId, OpenInode<W>>,
    /// How often the kernel has been given each inode and has not forgotten it.
    known: BTreeMap<InodeId, u64>,
    next_handle: u64,
    next_sequence: u64,
}

impl<W> Default for Handles<W> {
    fn default() -> Self {
        Handles {
            files: BTreeMap::new(),
            streams: BTreeMap::new(),
            inodes: BTreeMap::new(),
            known: BTreeMap::new(),
            next_handle: 1,
            next_sequence: 1,
        }
    }
}

impl<W> Handles<W> {
    /// Counts an opener in.
    pub fn begin_open(&mut self, ino: InodeId, opener: W) -> (Opening, Option<W>) {
        match self.inodes.get_mut(&ino) {
            Some(open) => {
                open.users += 1;
                match &mut open.waiting {
                    Some(waiting) => {
                        waiting.push(opener);
                        (Opening::Queued, None)
                    }
                    None => (Opening::Held, Some(opener)),
                }
            }
            None => {
                self.inodes.insert(ino, OpenInode { users: 1, waiting: Some(vec![opener]) });
                (Opening::Ask { sequence: self.sequence() }, None)
            }
        }
    }

    /// Counts a directory stream in, which does not wait for the hold. `Some`: ask for it under this number.
    pub fn begin_stream(&mut self, ino: InodeId) -> Option<u64> {
        if let Some(open) = self.inodes.get_mut(&ino) {
            open.users += 1;
            return None;
        }
        self.inodes.insert(ino, OpenInode { users: 1, waiting: None });
        Some(self.sequence())
    }

    /// Counts an opener in whose hold was granted together with the inode's creation.
    pub fn begin_created(&mut self, ino: InodeId) {
        self.inodes.entry(ino).or_insert(OpenInode { users: 0, waiting: None }).users += 1;
    }

    /// The hold was granted: who waited for it.
    pub fn on_held(&mut self, ino: InodeId) -> Vec<W> {
        self.inodes.get_mut(&ino).and_then(|open| open.waiting.take()).unwrap_or_default()
    }

    /// The hold was refused: whom to tell. Nobody has the inode open.
    pub fn on_refused(&mut self, ino: InodeId) -> Vec<W> {
        self.inodes.remove(&ino).and_then(|open| open.waiting).unwrap_or_default()
    }

    /// Gives an opener that was counted in its handle.
    pub fn finish_open(&mut self, ino: InodeId) -> Handle {
        assert!(self.inodes.contains_key(&ino), "an opener is counted before it gets its handle");
        let handle = self.handle();
        self.files.insert(handle, ino);
        handle
    }

    /// Counts one user out; the last one's answer is the number under which the hold is given back.
    pub fn leave(&mut self, ino: InodeId) -> Option<u64> {
        let open = self.inodes.get_mut(&ino)?;
        open.users -= 1;
        if open.users > 0 {
            return None;
        }
        self.inodes.remove(&ino);
        Some(self.sequence())
    }

    /// Ends a handle; answers its inode.
    pub fn close(&mut self, handle: Handle) -> Option<InodeId> {
        self.files.remove(&handle)
    }

    /// Whether the handle is open on that inode.
    pub fn is_open(&self, handle: Handle, ino: InodeId) -> bool {
        self.files.get(&handle) == Some(&ino)
    }

    /// All open files.
    pub fn files(&self) -> impl Iterator<Item = (Handle, InodeId)> {
        self.files.iter().map(|(&handle, &ino)| (handle, ino))
    }

    /// The inode of an open file.
    pub fn inode(&self, handle: Handle) -> Option<InodeId> {
        self.files.get(&handle).copied()
    }

    /// Inodes that this mount holds or is about to.
    pub fn held(&self) -> impl Iterator<Item = InodeId> {
        self.inodes.keys().copied()
    }

    /// The holds that were granted, each under a new number.
    pub fn hold_again(&mut self) -> Vec<(InodeId, u64)> {
        let granted = self.inodes.iter().filter(|(_, open)| open.waiting.is_none());
        let granted: Vec<InodeId> = granted.map(|(&ino, _)| ino).collect();
        granted.into_iter().map(|ino| (ino, self.sequence())).collect()
    }

    /// Opens a directory stream.
    pub fn open_stream(&mut self, ino: InodeId) -> Handle {
        let handle = self.handle();
        self.streams.insert(handle, Stream { ino, batch: None });
        handle
    }

    /// Ends a directory stream; answers its inode.
    pub fn close_stream(&mut self, handle: Handle) -> Option<InodeId> {
        self.streams.remove(&handle).map(|stream| stream.ino)
    }

    /// The directory of a stream.
    pub fn stream(&self, handle: Handle) -> Option<InodeId> {
        self.streams.get(&handle).map(|stream| stream.ino)
    }

    /// Forgets the batch: a rewind must see the directory anew.
    pub fn rewind(&mut self, handle: Handle) {
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.batch = None;
        }
    }

    /// Stores what follows `after`.
    pub fn fill(&mut self, handle: Handle, after: Cookie, entries: Vec<DirectoryEntry>, end: bool, directory: Attributes, changes: u64) {
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.batch = Some(Batch { after, entries: Arc::new(entries), end, directory, changes });
        }
    }

    /// A listing from that position on, if the batch covers it; with attributes only if there were no changes since it was fetched.
    pub fn listing(&self, handle: Handle, offset: u64, plus: bool, changes: u64) -> Option<Listing> {
        let batch = self.streams.get(&handle)?.batch.as_ref()?;
        let after = Cookie(offset.saturating_sub(POSITION_SHIFT));
        let last = batch.entries.last().map_or(batch.after, |entry| entry.cookie);
        if after < batch.after || (after >= last && !batch.end) {
            return None;
        }
        let start = batch.entries.partition_point(|entry| entry.cookie <= after);
        // That nothing follows is as true as it was: a stream that has come to its end stays there.
        if plus && batch.changes != changes && start < batch.entries.len() {
            return None;
        }
        Some(Listing { plus, offset, directory: batch.directory, entries: batch.entries.clone(), start })
    }

    /// The kernel was given the inode once more.
    pub fn know(&mut self, ino: InodeId) {
        *self.known.entry(ino).or_default() += 1;
    }

    /// The kernel forgot it that many times. True: it has dropped it.
    pub fn forget(&mut self, ino: InodeId, count: u64) -> bool {
        let Some(known) = self.known.get_mut(&ino) else { return true };
        *known = known.saturating_sub(count);
        let gone = *known == 0;
        if gone {
            self.known.remove(&ino);
        }
        gone
    }

    /// How often the kernel knows the inode.
    pub fn known(&self, ino: InodeId) -> u64 {
        self.known.get(&ino).copied().unwrap_or(0)
    }

    /// How many inodes it knows.
    pub fn known_inodes(&self) -> usize {
        self.known.len()
    }

    /// Panics if the tables contradict each other; O(n), for tests and simulation.
    pub fn check_invariants(&self) {
        for ino in self.files.values() {
            assert!(self.inodes.contains_key(ino), "an open file's inode is counted");
        }
        for (ino, open) in &self.inodes {
            let handles = self.files.values().filter(|&of| of == ino).count() as u64;
            assert!(open.users >= handles && open.users > 0, "users of {ino} cover its handles");
            let waiting = open.waiting.as_ref().map_or(0, Vec::len) as u64;
            assert!(handles + waiting <= open.users, "waiters of {ino} are counted");
        }
    }

    fn handle(&mut self) -> Handle {
        let handle = Handle(self.next_handle);
        self.next_handle += 1;
        handle
    }

    fn sequence(&mut self) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeId = InodeId(7);

    #[test]
    fn the_first_opener_asks_and_the_last_gives_back() {
        let mut handles: Handles<u8> = Handles::default();
        assert_eq!(handles.begin_open(INO, 1), (Opening::Ask { sequence: 1 }, None));
        assert_eq!(handles.begin_open(INO, 2), (Opening::Queued, None));
        assert_eq!(handles.on_held(INO), vec![1, 2]);
        let (first, second) = (handles.finish_open(INO), handles.finish_open(INO));
        assert_eq!(handles.begin_open(INO, 3), (Opening::Held, Some(3)));
        handles.check_invariants();
        assert_eq!(handles.leave(INO), None);
        for (handle, sequence) in [(first, None), (second, Some(2))] {
            assert_eq!(handles.close(handle), Some(INO));
            assert_eq!(handles.leave(INO), sequence);
        }
        assert_eq!(handles.held().count(), 0);
        assert_eq!(handles.begin_open(INO, 4), (Opening::Ask { sequence: 3 }, None));
        assert_eq!(handles.on_refused(INO), vec![4]);
        handles.check_invariants();
    }

    #[test]
    fn forgetting_more_than_was_known_is_harmless() {
        let mut handles: Handles<u8> = Handles::default();
        handles.know(INO);
        handles.know(INO);
        handles.forget(INO, 1);
        assert_eq!(handles.known(INO), 1);
        handles.forget(INO, 9);
        handles.forget(INO, 9);
        assert_eq!(handles.known(INO), 0);
    }
}
