//! All tables of the namespace in one ordered keyed store with one door for changes.
//!
//! Every change passes [`Store::put`] or [`Store::update_inode`]: there the state hash and the usage are kept, the derived
//! indices follow, and a snapshot in progress gets its copy of what is about to change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use dfs::capacity::chunk_charge;
use dfs::locks::LockTable;
use dfs::types::{ChunkHash, Cookie, InodeId, NodeId, SessionId};
use dfs::xattr::XattrFlags;

use super::chunks::ChunkRecord;
use super::digest::Digest;
use super::extents::Slot;
use super::holders::HolderIndex;
use super::inode::Inode;
use super::locks::LockIndex;
use super::session::{Outcome, Session};

/// The bytes of a name, shared by the entry and the index by cookie.
pub(super) type NameBytes = Arc<[u8]>;

/// What an extended attribute takes besides its name and value.
pub(super) const XATTR_RECORD_BYTES: usize = 128;

/// Names one record. The order of the variants and of their fields is the order of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Inode(InodeId),
    Entry(InodeId, NameBytes),
    Slot(InodeId, u64),
    Chunk(ChunkHash),
    Session(SessionId),
    Outcome(SessionId, u64),
    Writer(InodeId),
    Locks(InodeId),
    Xattr(InodeId, NameBytes),
}

/// A record of any table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Inode(Box<Inode>),
    Entry(Entry),
    Slot(Box<Slot>),
    Chunk(ChunkRecord),
    Session(Session),
    Outcome(Box<Outcome>),
    /// The session that has the `WRITE` right on the file.
    Writer(SessionId),
    /// Never an empty table.
    Locks(Box<LockTable>),
    Xattr(Box<[u8]>),
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub ino: InodeId,
    pub cookie: Cookie,
}

/// What the namespace holds, kept by difference at the door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub inodes: u64,
    /// Bytes of all referenced chunks, once each.
    pub referenced_bytes: u64,
    pub referenced_chunks: u64,
    /// Memory that one copy of all referenced chunks is charged for on nodes, and what files have reserved for chunks to come.
    pub charged_bytes: u64,
    /// Memory that all records take, about; inline content included.
    pub namespace_bytes: u64,
    /// File content kept in the namespace itself.
    pub inline_bytes: u64,
    /// What all sessions together have reserved.
    pub reserved_bytes: u64,
}

/// A snapshot in progress: records up to `sent` are out; `before` keeps what changed or went since it began, for the rest.
#[derive(Debug, Default)]
struct Capture {
    sent: Option<Key>,
    before: BTreeMap<Key, Option<Record>>,
}

impl Capture {
    /// Whether the record under `key` is still to be sent and its old state is not kept yet.
    fn wants(&self, key: &Key) -> bool {
        self.sent.as_ref().is_none_or(|sent| sent < key) && !self.before.contains_key(key)
    }
}

/// The tables.
#[derive(Debug, Default)]
pub(super) struct Store {
    inodes: BTreeMap<InodeId, Box<Inode>>,
    entries: BTreeMap<(InodeId, NameBytes), Entry>,
    slots: BTreeMap<(InodeId, u64), Box<Slot>>,
    chunks: BTreeMap<ChunkHash, ChunkRecord>,
    holders: HolderIndex,
    sessions: BTreeMap<SessionId, Session>,
    outcomes: BTreeMap<(SessionId, u64), Box<Outcome>>,
    writers: BTreeMap<InodeId, SessionId>,
    locks: BTreeMap<InodeId, Box<LockTable>>,
    xattrs: BTreeMap<(InodeId, NameBytes), Box<[u8]>>,
    /// Derived: names by cookie.
    cookies: BTreeMap<(InodeId, Cookie), NameBytes>,
    /// Derived: inodes without a name.
    orphans: BTreeSet<InodeId>,
    /// Derived: files with cuts.
    cuts: BTreeSet<InodeId>,
    /// Derived: what each session may write alone.
    written: BTreeMap<SessionId, BTreeSet<InodeId>>,
    /// Derived: where each session has locks.
    lock_index: LockIndex,
    usage: Usage,
    /// Sum of the digests of all records.
    hash: u64,
    capture: Option<Capture>,
}

impl Record {
    pub fn digest(&self, key: &Key) -> u64 {
        match (key, self) {
            (Key::Inode(ino), Record::Inode(inode)) => inode.digest(*ino),
            (Key::Entry(directory, name), Record::Entry(entry)) => {
                Digest::new(2).word(directory.0).bytes(name).word(entry.ino.0).word(entry.cookie.0).end()
            }
            (Key::Slot(ino, index), Record::Slot(slot)) => {
                Digest::new(3).word(ino.0).word(*index).word(slot.version).word(slot.born).word(slot.digest()).end()
            }
            (Key::Chunk(hash), Record::Chunk(chunk)) => chunk.digest(hash),
            (Key::Session(id), Record::Session(session)) => session.digest(*id),
            (Key::Outcome(session, number), Record::Outcome(outcome)) => outcome.digest(*session, *number),
            (Key::Writer(ino), Record::Writer(session)) => Digest::new(9).word(ino.0).word(session.0).end(),
            (Key::Locks(ino), Record::Locks(table)) => super::locks::digest(*ino, table),
            (Key::Xattr(ino, name), Record::Xattr(value)) => Digest::new(10).word(ino.0).bytes(name).bytes(value).end(),
            _ => unreachable!("a record under a key of another table"),
        }
    }

    /// Memory that the record takes with its place in the tables, about.
    fn weight(&self, key: &Key) -> u64 {
        match (key, self) {
            (Key::Entry(_, name), _) => 168 + name.len() as u64,
            (Key::Xattr(_, name), Record::Xattr(value)) => (XATTR_RECORD_BYTES + name.len() + value.len()) as u64,
            (_, Record::Inode(inode)) => inode.weight(),
            (_, Record::Slot(slot)) => slot.weight(),
            (_, Record::Chunk(chunk)) => chunk.weight(),
            (_, Record::Session(session)) => session.weight(),
            (_, Record::Outcome(_)) => 256,
            (_, Record::Writer(_)) => 96,
            (_, Record::Locks(table)) => super::locks::weight(table),
            (_, Record::Entry(_) | Record::Xattr(_)) => unreachable!("a record under a key of another table"),
        }
    }

    pub fn usage(&self, key: &Key) -> Usage {
        let mut usage = Usage { namespace_bytes: self.weight(key), ..Usage::default() };
        match self {
            Record::Inode(_) => usage.inodes = 1,
            Record::Slot(slot) => (usage.inline_bytes, usage.charged_bytes) = (slot.inline_bytes(), slot.reserved().charge),
            Record::Chunk(chunk) => {
                let length = u64::from(chunk.length);
                (usage.referenced_chunks, usage.referenced_bytes, usage.charged_bytes) = (1, length, chunk_charge(length));
            }
            Record::Session(session) => usage.reserved_bytes = session.reserved,
            _ => {}
        }
        usage
    }
}

impl Usage {
    fn add(&mut self, other: Usage) {
        self.inodes += other.inodes;
        self.referenced_bytes += other.referenced_bytes;
        self.referenced_chunks += other.referenced_chunks;
        self.charged_bytes += other.charged_bytes;
        self.namespace_bytes += other.namespace_bytes;
        self.inline_bytes += other.inline_bytes;
        self.reserved_bytes += other.reserved_bytes;
    }

    fn subtract(&mut self, other: Usage) {
        self.inodes -= other.inodes;
        self.referenced_bytes -= other.referenced_bytes;
        self.referenced_chunks -= other.referenced_chunks;
        self.charged_bytes -= other.charged_bytes;
        self.namespace_bytes -= other.namespace_bytes;
        self.inline_bytes -= other.inline_bytes;
        self.reserved_bytes -= other.reserved_bytes;
    }
}

/// The door.
impl Store {
    /// Sets or removes one record.
    pub fn put(&mut self, key: Key, record: Option<Record>) {
        if let Some(record) = &record {
            self.hash = self.hash.wrapping_add(record.digest(&key));
            self.usage.add(record.usage(&key));
        }
        let old = self.replace(key.clone(), record);
        if let Some(old) = &old {
            self.hash = self.hash.wrapping_sub(old.digest(&key));
            self.usage.subtract(old.usage(&key));
        }
        if let Some(capture) = self.capture.as_mut().filter(|capture| capture.wants(&key)) {
            capture.before.insert(key, old);
        }
    }

    /// Changes an inode where it lies. Does nothing if there is none.
    pub fn update_inode(&mut self, ino: InodeId, change: impl FnOnce(&mut Inode)) {
        let key = Key::Inode(ino);
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        if let Some(capture) = self.capture.as_mut().filter(|capture| capture.wants(&key)) {
            capture.before.insert(key, Some(Record::Inode(inode.clone())));
        }
        self.hash = self.hash.wrapping_sub(inode.digest(ino));
        self.usage.namespace_bytes -= inode.weight();
        change(inode);
        self.hash = self.hash.wrapping_add(inode.digest(ino));
        self.usage.namespace_bytes += inode.weight();
        let (orphan, cut) = (inode.links == 0, inode.has_cuts());
        self.index_inode(ino, orphan, cut);
    }

    fn replace(&mut self, key: Key, record: Option<Record>) -> Option<Record> {
        match (key, record) {
            (Key::Inode(ino), Some(Record::Inode(inode))) => {
                self.index_inode(ino, inode.links == 0, inode.has_cuts());
                self.inodes.insert(ino, inode).map(Record::Inode)
            }
            (Key::Inode(ino), None) => {
                self.index_inode(ino, false, false);
                self.inodes.remove(&ino).map(Record::Inode)
            }
            (Key::Entry(directory, name), Some(Record::Entry(entry))) => {
                let old = self.entries.insert((directory, name.clone()), entry);
                if let Some(old) = old {
                    self.cookies.remove(&(directory, old.cookie));
                }
                self.cookies.insert((directory, entry.cookie), name);
                old.map(Record::Entry)
            }
            (Key::Entry(directory, name), None) => {
                let old = self.entries.remove(&(directory, name))?;
                self.cookies.remove(&(directory, old.cookie));
                Some(Record::Entry(old))
            }
            (Key::Slot(ino, index), Some(Record::Slot(slot))) => self.slots.insert((ino, index), slot).map(Record::Slot),
            (Key::Slot(ino, index), None) => self.slots.remove(&(ino, index)).map(Record::Slot),
            (Key::Chunk(hash), record) => {
                let chunk = record.map(|record| if let Record::Chunk(chunk) = record { chunk } else { unreachable!("no chunk") });
                chunk.iter().for_each(|chunk| self.holders.add(chunk));
                let old = if let Some(chunk) = chunk { self.chunks.insert(hash, chunk) } else { self.chunks.remove(&hash) };
                old.iter().for_each(|old| self.holders.subtract(old));
                old.map(Record::Chunk)
            }
            (Key::Session(id), Some(Record::Session(session))) => self.sessions.insert(id, session).map(Record::Session),
            (Key::Session(id), None) => self.sessions.remove(&id).map(Record::Session),
            (Key::Outcome(id, number), Some(Record::Outcome(outcome))) => self.outcomes.insert((id, number), outcome).map(Record::Outcome),
            (Key::Outcome(id, number), None) => self.outcomes.remove(&(id, number)).map(Record::Outcome),
            (Key::Writer(ino), Some(Record::Writer(session))) => {
                let old = self.writers.insert(ino, session);
                self.unindex_writer(ino, old);
                self.written.entry(session).or_default().insert(ino);
                old.map(Record::Writer)
            }
            (Key::Writer(ino), None) => {
                let old = self.writers.remove(&ino);
                self.unindex_writer(ino, old);
                old.map(Record::Writer)
            }
            (Key::Locks(ino), record) => {
                let table = record.map(|record| if let Record::Locks(table) = record { table } else { unreachable!("no locks") });
                self.lock_index.add(ino, table.as_deref());
                let old = if let Some(table) = table { self.locks.insert(ino, table) } else { self.locks.remove(&ino) };
                self.lock_index.subtract(ino, old.as_deref());
                old.map(Record::Locks)
            }
            (Key::Xattr(ino, name), Some(Record::Xattr(value))) => self.xattrs.insert((ino, name), value).map(Record::Xattr),
            (Key::Xattr(ino, name), None) => self.xattrs.remove(&(ino, name)).map(Record::Xattr),
            _ => unreachable!("a record under a key of another table"),
        }
    }

    fn unindex_writer(&mut self, ino: InodeId, old: Option<SessionId>) {
        let Some(session) = old else { return };
        if let Some(written) = self.written.get_mut(&session) {
            written.remove(&ino);
            if written.is_empty() {
                self.written.remove(&session);
            }
        }
    }

    fn index_inode(&mut self, ino: InodeId, orphan: bool, cut: bool) {
        for (set, member) in [(&mut self.orphans, orphan), (&mut self.cuts, cut)] {
            if member {
                set.insert(ino);
            } else if !set.is_empty() {
                set.remove(&ino);
            }
        }
    }
}

/// Shorthands for the door.
impl Store {
    pub fn put_inode(&mut self, ino: InodeId, inode: Inode) {
        self.put(Key::Inode(ino), Some(Record::Inode(Box::new(inode))));
    }

    pub fn put_entry(&mut self, directory: InodeId, name: &[u8], entry: Option<Entry>) {
        self.put(Key::Entry(directory, name.into()), entry.map(Record::Entry));
    }

    pub fn put_slot(&mut self, ino: InodeId, index: u64, slot: Option<Slot>) {
        self.put(Key::Slot(ino, index), slot.map(|slot| Record::Slot(Box::new(slot))));
    }

    pub fn put_chunk(&mut self, hash: ChunkHash, chunk: Option<ChunkRecord>) {
        self.put(Key::Chunk(hash), chunk.map(Record::Chunk));
    }

    pub fn put_session(&mut self, id: SessionId, session: Option<Session>) {
        self.put(Key::Session(id), session.map(Record::Session));
    }

    pub fn put_outcome(&mut self, id: SessionId, number: u64, outcome: Option<Outcome>) {
        self.put(Key::Outcome(id, number), outcome.map(|outcome| Record::Outcome(Box::new(outcome))));
    }

    pub fn put_writer(&mut self, ino: InodeId, session: Option<SessionId>) {
        self.put(Key::Writer(ino), session.map(Record::Writer));
    }

    /// An empty table is none.
    pub fn put_locks(&mut self, ino: InodeId, table: Option<LockTable>) {
        let table = table.filter(|table| !table.is_empty());
        if table.is_some() || self.locks.contains_key(&ino) {
            self.put(Key::Locks(ino), table.map(|table| Record::Locks(Box::new(table))));
        }
    }
}

/// Extended attributes.
impl Store {
    pub fn put_xattr(&mut self, ino: InodeId, name: &[u8], value: Option<&[u8]>) {
        self.put(Key::Xattr(ino, name.into()), value.map(|value| Record::Xattr(value.into())));
    }

    pub fn xattr(&self, ino: InodeId, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.get(&(ino, NameBytes::from(name))).map(|value| &**value)
    }

    /// Names and values of one inode, by name.
    pub fn xattrs(&self, ino: InodeId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let first = (ino, NameBytes::from(&b""[..]));
        self.xattrs.range(first..).take_while(move |((of, _), _)| *of == ino).map(|((_, name), value)| (&**name, &**value))
    }

    /// What the inode's flags have to say.
    pub fn xattr_flags(&self, ino: InodeId) -> XattrFlags {
        self.xattrs(ino).fold(XattrFlags::default(), |flags, (name, _)| flags.with(XattrFlags::of_name(name)))
    }
}

/// Reading.
impl Store {
    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn inode(&self, ino: InodeId) -> Option<&Inode> {
        self.inodes.get(&ino).map(|inode| &**inode)
    }

    pub fn entry(&self, directory: InodeId, name: &[u8]) -> Option<Entry> {
        self.entries.get(&(directory, NameBytes::from(name))).copied()
    }

    /// Entries after the cookie, in cookie order.
    pub fn entries_after(&self, directory: InodeId, after: Cookie) -> impl Iterator<Item = (Cookie, &NameBytes)> {
        let end = (directory, Cookie(u64::MAX));
        let range = (Excluded((directory, after)), std::ops::Bound::Included(end));
        // An excluded start equal to the included end is an empty range, and allowed.
        self.cookies.range(range).map(|((_, cookie), name)| (*cookie, name))
    }

    pub fn slot(&self, ino: InodeId, index: u64) -> Option<&Slot> {
        self.slots.get(&(ino, index)).map(|slot| &**slot)
    }

    /// Slots of the inode from the index on.
    pub fn slots_from(&self, ino: InodeId, index: u64) -> impl Iterator<Item = (u64, &Slot)> {
        self.slots.range((ino, index)..=(ino, u64::MAX)).map(|((_, index), slot)| (*index, &**slot))
    }

    pub fn chunk(&self, hash: &ChunkHash) -> Option<&ChunkRecord> {
        self.chunks.get(hash)
    }

    /// Chunks from a hash on.
    pub fn chunks_from(&self, from: std::ops::Bound<ChunkHash>) -> impl Iterator<Item = (ChunkHash, &ChunkRecord)> {
        self.chunks.range((from, std::ops::Bound::Unbounded)).map(|(hash, chunk)| (*hash, chunk))
    }

    /// How many chunks are recorded to be on that node.
    pub fn chunks_on(&self, node: NodeId) -> u64 {
        self.holders.count(node)
    }

    pub fn chunks(&self) -> impl Iterator<Item = (ChunkHash, &ChunkRecord)> {
        self.chunks.iter().map(|(hash, chunk)| (*hash, chunk))
    }

    /// Slots of all files, behind that one.
    pub fn slots_after(&self, after: Option<(InodeId, u64)>) -> impl Iterator<Item = (InodeId, u64, &Slot)> {
        self.slots.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|((ino, index), slot)| (*ino, *index, &**slot))
    }

    /// Names in all directories, behind that one, by name.
    pub fn entries_behind(&self, after: Option<(InodeId, NameBytes)>) -> impl Iterator<Item = (InodeId, &NameBytes, Entry)> {
        self.entries.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|((directory, name), entry)| (*directory, name, *entry))
    }

    /// Whether the lists of orphans and of cuts say of the inode what it says itself.
    pub fn is_indexed(&self, ino: InodeId, inode: &Inode) -> bool {
        self.orphans.contains(&ino) == (inode.links == 0) && self.cuts.contains(&ino) == inode.has_cuts()
    }

    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub fn sessions(&self) -> impl ExactSizeIterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    pub fn outcome(&self, id: SessionId, number: u64) -> Option<&Outcome> {
        self.outcomes.get(&(id, number)).map(|outcome| &**outcome)
    }

    /// Numbers of the remembered outcomes below `below`.
    pub fn outcomes_below(&self, id: SessionId, below: u64) -> Vec<u64> {
        self.outcomes.range((id, 0)..(id, below)).map(|((_, number), _)| *number).collect()
    }

    pub fn writer(&self, ino: InodeId) -> Option<SessionId> {
        self.writers.get(&ino).copied()
    }

    /// All files that some session may write alone.
    pub fn writers(&self) -> impl Iterator<Item = (InodeId, SessionId)> {
        self.writers.iter().map(|(&ino, &session)| (ino, session))
    }

    /// The files that the session may write alone.
    pub fn written_by(&self, session: SessionId) -> Option<&BTreeSet<InodeId>> {
        self.written.get(&session)
    }

    pub fn locks(&self, ino: InodeId) -> Option<&LockTable> {
        self.locks.get(&ino).map(|table| &**table)
    }

    pub fn lock_index(&self) -> &LockIndex {
        &self.lock_index
    }

    pub fn orphans(&self) -> impl Iterator<Item = InodeId> {
        self.orphans.iter().copied()
    }

    pub fn cuts(&self) -> impl Iterator<Item = InodeId> {
        self.cuts.iter().copied()
    }
}

/// Snapshots by copy-before-write.
impl Store {
    /// From here on [`Store::next_captured`] gives the state as it is now, whatever changes meanwhile.
    pub fn begin_capture(&mut self) {
        self.capture = Some(Capture::default());
    }

    pub fn end_capture(&mut self) {
        self.capture = None;
    }

    /// The next record of the captured state in key order; `None` at the end.
    pub fn next_captured(&mut self) -> Option<(Key, Record)> {
        loop {
            let capture = self.capture.as_ref()?;
            let current = self.first_after(capture.sent.as_ref());
            let capture = self.capture.as_mut()?;
            let kept = capture.before.first_key_value().map(|(key, _)| key);
            let use_kept = match (&current, kept) {
                (None, None) => return None,
                (Some((key, _)), Some(kept)) => kept <= key,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            let (key, record) = match current {
                _ if use_kept => capture.before.pop_first()?,
                Some((key, record)) => (key, Some(record)),
                None => return None,
            };
            capture.sent = Some(key.clone());
            if let Some(record) = record {
                return Some((key, record));
            }
        }
    }

    /// The first record with a greater key, tables in the order of [`Key`].
    pub fn first_after(&self, key: Option<&Key>) -> Option<(Key, Record)> {
        fn next<K: Ord, R>(table: &BTreeMap<K, R>, after: Option<K>) -> Option<(&K, &R)> {
            match after {
                None => table.first_key_value(),
                Some(key) => table.range((Excluded(key), Unbounded)).next(),
            }
        }
        // How far each table is: tables before the key's are done, tables after it are untouched.
        let rank = key.map_or(0, |key| match key {
            Key::Inode(_) => 0,
            Key::Entry(..) => 1,
            Key::Slot(..) => 2,
            Key::Chunk(_) => 3,
            Key::Session(_) => 4,
            Key::Outcome(..) => 5,
            Key::Writer(_) => 6,
            Key::Locks(_) => 7,
            Key::Xattr(..) => 8,
        });
        for table in rank..9 {
            let after = if table == rank { key.cloned() } else { None };
            let found = match (table, after) {
                (0, Some(Key::Inode(ino))) => next(&self.inodes, Some(ino)).map(inode_row),
                (0, _) => next(&self.inodes, None).map(inode_row),
                (1, Some(Key::Entry(directory, name))) => next(&self.entries, Some((directory, name))).map(entry_row),
                (1, _) => next(&self.entries, None).map(entry_row),
                (2, Some(Key::Slot(ino, index))) => next(&self.slots, Some((ino, index))).map(slot_row),
                (2, _) => next(&self.slots, None).map(slot_row),
                (3, Some(Key::Chunk(hash))) => next(&self.chunks, Some(hash)).map(chunk_row),
                (3, _) => next(&self.chunks, None).map(chunk_row),
                (4, Some(Key::Session(id))) => next(&self.sessions, Some(id)).map(session_row),
                (4, _) => next(&self.sessions, None).map(session_row),
                (5, Some(Key::Outcome(id, number))) => next(&self.outcomes, Some((id, number))).map(outcome_row),
                (5, _) => next(&self.outcomes, None).map(outcome_row),
                (6, Some(Key::Writer(ino))) => next(&self.writers, Some(ino)).map(writer_row),
                (6, _) => next(&self.writers, None).map(writer_row),
                (7, Some(Key::Locks(ino))) => next(&self.locks, Some(ino)).map(locks_row),
                (7, _) => next(&self.locks, None).map(locks_row),
                (_, Some(Key::Xattr(ino, name))) => next(&self.xattrs, Some((ino, name))).map(xattr_row),
                (_, _) => next(&self.xattrs, None).map(xattr_row),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[expect(clippy::borrowed_box, reason = "what the table's iterators give")]
fn inode_row((ino, inode): (&InodeId, &Box<Inode>)) -> (Key, Record) {
    (Key::Inode(*ino), Record::Inode(inode.clone()))
}

fn entry_row(((directory, name), entry): (&(InodeId, NameBytes), &Entry)) -> (Key, Record) {
    (Key::Entry(*directory, name.clone()), Record::Entry(*entry))
}

#[expect(clippy::borrowed_box, reason = "what the table's iterators give")]
fn slot_row(((ino, index), slot): (&(InodeId, u64), &Box<Slot>)) -> (Key, Record) {
    (Key::Slot(*ino, *index), Record::Slot(slot.clone()))
}

fn chunk_row((hash, chunk): (&ChunkHash, &ChunkRecord)) -> (Key, Record) {
    (Key::Chunk(*hash), Record::Chunk(chunk.clone()))
}

fn session_row((id, session): (&SessionId, &Session)) -> (Key, Record) {
    (Key::Session(*id), Record::Session(session.clone()))
}

#[expect(clippy::borrowed_box, reason = "what the table's iterators give")]
fn outcome_row(((id, number), outcome): (&(SessionId, u64), &Box<Outcome>)) -> (Key, Record) {
    (Key::Outcome(*id, *number), Record::Outcome(outcome.clone()))
}

fn writer_row((ino, session): (&InodeId, &SessionId)) -> (Key, Record) {
    (Key::Writer(*ino), Record::Writer(*session))
}

#[expect(clippy::borrowed_box, reason = "what the table's iterators give")]
fn locks_row((ino, table): (&InodeId, &Box<LockTable>)) -> (Key, Record) {
    (Key::Locks(*ino), Record::Locks(table.clone()))
}

#[expect(clippy::borrowed_box, reason = "what the table's iterators give")]
fn xattr_row(((ino, name), value): (&(InodeId, NameBytes), &Box<[u8]>)) -> (Key, Record) {
    (Key::Xattr(*ino, name.clone()), Record::Xattr(value.clone()))
}

/// Checks that cost a walk over everything.
impl Store {
    /// Every record, in key order.
    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.inodes
            .iter()
            .map(inode_row)
            .chain(self.entries.iter().map(entry_row))
            .chain(self.slots.iter().map(slot_row))
            .chain(self.chunks.iter().map(chunk_row))
            .chain(self.sessions.iter().map(session_row))
            .chain(self.outcomes.iter().map(outcome_row))
            .chain(self.writers.iter().map(writer_row))
            .chain(self.locks.iter().map(locks_row))
            .chain(self.xattrs.iter().map(xattr_row))
    }

    /// Breaks what the door keeps.
    #[cfg(test)]
    pub fn skew_for_test(&mut self) {
        self.usage.charged_bytes += 1;
    }

    /// What the door keeps equals what the records say.
    pub fn check_invariants(&self) {
        let (mut usage, mut hash) = (Usage::default(), 0u64);
        let (mut orphans, mut cuts, mut cookies) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let mut lock_index = LockIndex::default();
        let mut holders = HolderIndex::default();
        for (key, record) in self.records() {
            usage.add(record.usage(&key));
            hash = hash.wrapping_add(record.digest(&key));
            match (key, record) {
                (Key::Inode(ino), Record::Inode(inode)) => {
                    if inode.links == 0 {
                        orphans.insert(ino);
                    }
                    if inode.has_cuts() {
                        cuts.insert(ino);
                    }
                }
                (Key::Entry(directory, name), Record::Entry(entry)) => {
                    assert!(cookies.insert((directory, entry.cookie), name).is_none(), "a cookie names two entries");
                }
                (Key::Locks(ino), Record::Locks(table)) => {
                    assert!(table.is_well_formed() && !table.is_empty() && table.len() <= dfs::limits::LOCKS_PER_INODE_MAX);
                    assert!(self.inodes.contains_key(&ino), "locks go with their inode");
                    lock_index.add(ino, Some(&table));
                }
                (Key::Chunk(_), Record::Chunk(chunk)) => holders.add(&chunk),
                _ => {}
            }
        }
        assert_eq!(usage, self.usage, "usage as kept at the door");
        assert_eq!(hash, self.hash, "state hash as kept at the door");
        assert_eq!(orphans, self.orphans, "index of orphans");
        assert_eq!(cuts, self.cuts, "index of cuts");
        assert_eq!(lock_index, self.lock_index, "index of locks");
        assert_eq!(holders, self.holders, "index of holders");
        assert_eq!(cookies, self.cookies, "index of cookies");
        let mut written: BTreeMap<SessionId, BTreeSet<InodeId>> = BTreeMap::new();
        for (&ino, &session) in &self.writers {
            written.entry(session).or_default().insert(ino);
        }
        assert_eq!(written, self.written, "index of writers by session");
    }
}
