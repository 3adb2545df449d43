//! What `dfs fsck` asks of the tables: the rules of `invariants`, a slice at a time, told instead of asserted.
//!
//! Every answer is computed from one state and visits a bounded number of records. Panics for nothing: what it finds is bad already.

use std::collections::BTreeMap;
use std::ops::Bound;

use dfs::limits::{self, COMMAND_VISITS_MAX};
use dfs::status::Status;
use dfs::types::{ChunkHash, InodeId, Instance, Name, NodeId, ROOT};
use dfs::wire::fsck::{Check, Checked, Flaw, FoundName, Position, Rule, Sums, TablesSlice, Tally, Upload};
use dfs::xattr::{XattrFlags, XattrName};

use super::Namespace;
use super::chunks::ChunkRecord;
use super::extents::{Content, Slot};
use super::holders::replicas;
use super::inode::{Body, Cut, Inode};
use super::store::{Entry, Key, NameBytes, Record, Usage};

/// Bytes that are hashed or compared at the cost of one visit.
const BYTES_PER_VISIT: usize = 16 << 10;
/// Pieces of a slot that are looked at for one visit more.
const PIECES_PER_VISIT: usize = 4;

/// A slice while it grows.
#[derive(Default)]
struct Slice {
    done: TablesSlice,
    tallies: BTreeMap<InodeId, Tally>,
    references: BTreeMap<ChunkHash, i64>,
}

impl Slice {
    fn require(&mut self, holds: bool, key: &Key, rule: Rule) {
        if !holds {
            self.done.flaws.push(Flaw { at: position_of(key), rule });
        }
    }

    fn tally(&mut self, ino: InodeId) -> &mut Tally {
        self.tallies.entry(ino).or_insert(Tally { ino, ..Tally::default() })
    }
}

/// References to which chunks came or went since a check began. Known to this node alone; empty again when there are too many.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// The log index that it is complete from; `None` while nobody checks.
    since: Option<u64>,
    /// The log index of the latest change.
    chunks: BTreeMap<ChunkHash, u64>,
}

impl Touched {
    pub fn note(&mut self, hash: ChunkHash, index: u64) {
        if self.since.is_some() {
            self.chunks.insert(hash, index);
            if self.chunks.len() > limits::FSCK_TOUCHED_MAX {
                *self = Touched::default();
            }
        }
    }

    fn begin(&mut self, applied: u64) {
        self.since.get_or_insert(applied);
    }

    fn is_untouched(&self, hash: &ChunkHash, since: u64) -> bool {
        self.since.is_some_and(|begun| begun <= since) && self.chunks.get(hash).is_none_or(|&index| index <= since)
    }
}

impl Namespace {
    /// What only the leader can tell, or any node of what it has applied. Errors: `InvalidArgument` for what is asked of storage nodes.
    pub fn check(&mut self, check: &Check) -> Result<Checked, Status> {
        if let Check::Tables { after: None } = check {
            self.note_references();
        }
        Ok(match check {
            Check::Untouched { since, hashes } => {
                Checked::Untouched(hashes.iter().filter(|hash| self.touched.is_untouched(hash, *since)).copied().collect())
            }
            Check::Tables { after } => Checked::Tables(Box::new(self.check_tables(after.as_ref()))),
            Check::Stamps { inos } => Checked::Stamps(self.stamps(inos)),
            Check::Weak { hashes } => {
                let (short, dark) = self.weak(hashes);
                Checked::Weak { short, dark }
            }
            Check::Dark { after } => {
                let (inos, next) = self.dark_files(*after);
                Checked::Dark { inos, next }
            }
            Check::Names { after, wanted } => {
                let (names, next) = self.names_of(after.as_ref(), wanted);
                Checked::Names { names, next }
            }
            Check::Ascribed { node, items } => Checked::Items(self.ascribed(*node, items)),
            _ => return Err(Status::InvalidArgument),
        })
    }

    /// Takes note of changes of references from now on.
    pub(super) fn note_references(&mut self) {
        self.touched.begin(self.header.applied);
    }

    /// Checks and counts the next records.
    fn check_tables(&self, after: Option<&Position>) -> TablesSlice {
        self.check_some(after, COMMAND_VISITS_MAX)
    }

    /// The same for about so many records.
    pub(super) fn check_some(&self, after: Option<&Position>, visits_max: usize) -> TablesSlice {
        let mut slice = Slice::default();
        let mut last = after.map(key_of);
        let (mut visits, mut ended) = (0, false);
        while visits < visits_max {
            let Some((key, record)) = self.store.first_after(last.as_ref()) else {
                ended = true;
                break;
            };
            add_sums(&mut slice.done.sums, record.usage(&key), record.digest(&key));
            visits += self.check_record(&mut slice, &key, &record);
            last = Some(key);
        }
        let Slice { mut done, tallies, references } = slice;
        done.applied = self.applied();
        done.tallies = tallies.into_values().collect();
        done.references = references.into_iter().collect();
        add_sums(&mut done.kept, self.store.usage(), self.store.hash());
        done.next = last.filter(|_| !ended).as_ref().map(position_of);
        done
    }

    /// Gives how many visits it was worth. At most a few flaws come of one record.
    fn check_record(&self, slice: &mut Slice, key: &Key, record: &Record) -> usize {
        match (key, record) {
            (Key::Inode(ino), Record::Inode(inode)) => return self.check_inode(slice, key, *ino, inode),
            (Key::Entry(directory, name), Record::Entry(entry)) => self.check_entry(slice, key, *directory, name, *entry),
            (Key::Slot(ino, index), Record::Slot(slot)) => return self.check_slot(slice, key, (*ino, *index), slot),
            (Key::Chunk(hash), Record::Chunk(chunk)) => {
                slice.done.chunks += 1;
                *slice.references.entry(*hash).or_default() -= chunk.references as i64;
                slice.require(chunk.references > 0, key, Rule::ReferencesAreLeft);
                let sorted = chunk.holders.windows(2).all(|pair| pair[0] < pair[1]);
                slice.require(sorted && chunk.holders.len() <= limits::HOLDERS_MAX, key, Rule::HoldersAreSorted);
                self.sort_by_holders(hash, chunk, &mut slice.done.short, &mut slice.done.dark);
            }
            (Key::Session(_), Record::Session(_)) => {}
            (Key::Outcome(id, number), Record::Outcome(_)) => {
                let window =
                    self.store.session(*id).map(|one| one.answered_below..one.answered_below.saturating_add(limits::SESSION_WINDOW));
                slice.require(window.is_some_and(|window| window.contains(number)), key, Rule::OutcomeInWindow);
            }
            (Key::Writer(ino), Record::Writer(session)) => {
                let file = matches!(self.body(*ino), Some(Body::File(_)));
                let caches = self.store.session(*session).is_some_and(|session| session.caches);
                slice.require(file && caches, key, Rule::WriterIsSession);
            }
            (Key::Locks(ino), Record::Locks(table)) => {
                slice.require(self.exists(*ino) && table.is_well_formed(), key, Rule::LocksHaveInode);
                return 1 + table.len() / PIECES_PER_VISIT;
            }
            (Key::Xattr(ino, name), Record::Xattr(value)) => {
                slice.require(self.exists(*ino), key, Rule::XattrHasInode);
                let legal = XattrName::new(name.to_vec()).is_ok_and(|name| name.class().is_ok());
                slice.require(legal && value.len() <= limits::XATTR_VALUE_BYTES_MAX, key, Rule::XattrIsLegal);
                return 1 + value.len() / BYTES_PER_VISIT;
            }
            _ => unreachable!("a record under a key of another table"),
        }
        1
    }

    fn check_inode(&self, slice: &mut Slice, key: &Key, ino: InodeId, inode: &Inode) -> usize {
        slice.done.inodes += 1;
        slice.done.orphans += u64::from(inode.links == 0);
        slice.require(ino.0 <= self.header.last_inode && ino.0 > 0, key, Rule::NumberWasGiven);
        slice.require(self.store.is_indexed(ino, inode), key, Rule::OrphanIsListed);
        let (flags, attributes) = self
            .store
            .xattrs(ino)
            .fold((XattrFlags::default(), 0), |(flags, count), (name, _)| (flags.with(XattrFlags::of_name(name)), count + 1));
        slice.require(flags == inode.xattrs, key, Rule::AttributesAreFlagged);
        let tally = slice.tally(ino);
        tally.stamp = Some(inode.digest(ino));
        match &inode.body {
            Body::Directory(directory) => {
                tally.names -= i64::from(inode.links > 0 && ino != ROOT);
                tally.entries -= directory.entries as i64;
                tally.subdirectories -= i64::from(inode.links.saturating_sub(2));
                let parent = inode.links == 0 || matches!(self.body(directory.parent), Some(Body::Directory(_)));
                slice.require(parent, key, Rule::ParentIsKnown);
                slice.require(inode.links != 1, key, Rule::LinksArePossible);
            }
            Body::File(file) => {
                tally.names -= i64::from(inode.links);
                tally.blocks -= file.blocks as i64;
                let ordered = |pair: &[Cut]| pair[0].from < pair[1].from && pair[0].generation < pair[1].generation;
                slice.require(file.cuts.len() <= limits::CUTS_MAX && file.cuts.windows(2).all(ordered), key, Rule::CutsAreOrdered);
            }
            _ => tally.names -= i64::from(inode.links),
        }
        1 + attributes
    }

    fn check_entry(&self, slice: &mut Slice, key: &Key, directory: InodeId, name: &NameBytes, entry: Entry) {
        slice.done.names += 1;
        slice.require(Name::new(name.to_vec()).is_ok(), key, Rule::NameIsLegal);
        let body = self.body(entry.ino);
        slice.require(body.is_some(), key, Rule::NameHasInode);
        let parent = self.store.inode(directory).and_then(Inode::directory);
        slice.require(parent.is_some(), key, Rule::NameInDirectory);
        slice.require(parent.is_none_or(|parent| (1..=parent.cookie).contains(&entry.cookie.0)), key, Rule::CookieWasGiven);
        slice.tally(entry.ino).names += 1;
        let tally = slice.tally(directory);
        tally.entries += 1;
        if let Some(Body::Directory(child)) = body {
            tally.subdirectories += 1;
            slice.require(child.parent == directory, key, Rule::ParentIsKnown);
        }
    }

    fn check_slot(&self, slice: &mut Slice, key: &Key, (ino, index): (InodeId, u64), slot: &Slot) -> usize {
        let well_formed = !slot.pieces().is_empty() && slot.is_well_formed();
        slice.require(well_formed, key, Rule::SlotIsWellFormed);
        let Some(Body::File(file)) = self.body(ino) else {
            slice.require(false, key, Rule::SlotInFile);
            return 1;
        };
        slice.require(slot.version <= file.layout && slot.born <= slot.version, key, Rule::SlotVersionWasGiven);
        let end = index.saturating_mul(limits::SLOT_BYTES).saturating_add(u64::from(slot.content_end()));
        let within = slot.content_end() == 0 || end <= file.size || file.hides(index, slot.born) || self.is_orphan(ino);
        slice.require(within, key, Rule::ContentEndsInFile);
        let mut fresh = slot.clone();
        fresh.restore_sums();
        slice.require(fresh == *slot, key, Rule::SlotSumsAreRight);
        slice.tally(ino).blocks += slot.blocks() as i64;
        let mut bytes = 0;
        for piece in slot.pieces() {
            match &piece.content {
                Content::Chunk { hash, offset } => {
                    *slice.references.entry(*hash).or_default() += 1;
                    let end = u64::from(*offset) + u64::from(piece.length);
                    let there = self.store.chunk(hash).is_some_and(|chunk| end <= u64::from(chunk.length));
                    slice.require(there, key, Rule::ExtentHasChunk);
                }
                Content::Inline(inline) => bytes += inline.len(),
                Content::Reserved => {}
            }
        }
        1 + slot.pieces().len() / PIECES_PER_VISIT + bytes / BYTES_PER_VISIT
    }

    fn sort_by_holders(&self, hash: &ChunkHash, chunk: &ChunkRecord, short: &mut Vec<ChunkHash>, dark: &mut Vec<ChunkHash>) {
        let map = &self.header.map;
        if !chunk.holders.iter().any(|&holder| map.is_living(holder)) {
            dark.push(*hash);
        } else if replicas(map, &chunk.holders) < map.receipts_needed() {
            short.push(*hash);
        }
    }

    /// Each inode as one number, which changes with every change of the inode, of its names and of where its content lies.
    fn stamps(&self, inos: &[InodeId]) -> Vec<Option<u64>> {
        inos.iter().map(|&ino| self.store.inode(ino).map(|inode| inode.digest(ino))).collect()
    }

    /// Which of the chunks have some living holder but too few, and which have none.
    fn weak(&self, hashes: &[ChunkHash]) -> (Vec<ChunkHash>, Vec<ChunkHash>) {
        let (mut short, mut dark) = (Vec::new(), Vec::new());
        for hash in hashes {
            if let Some(chunk) = self.store.chunk(hash) {
                self.sort_by_holders(hash, chunk, &mut short, &mut dark);
            }
        }
        (short, dark)
    }

    /// The next files with visible content in a chunk that no living node holds, and behind which slot to go on.
    fn dark_files(&self, after: Option<(InodeId, u64)>) -> (Vec<InodeId>, Option<(InodeId, u64)>) {
        let (mut inos, mut last, mut visits): (Vec<InodeId>, _, _) = (Vec::new(), after, 0);
        for (ino, index, slot) in self.store.slots_after(after) {
            if visits >= COMMAND_VISITS_MAX {
                return (inos, last);
            }
            visits += 1 + slot.pieces().len() / PIECES_PER_VISIT;
            last = Some((ino, index));
            let hidden = self.store.inode(ino).and_then(Inode::file).is_none_or(|file| file.hides(index, slot.born));
            if !hidden && inos.last() != Some(&ino) && slot.pieces().iter().any(|piece| self.is_dark(&piece.content)) {
                inos.push(ino);
            }
        }
        (inos, None)
    }

    fn is_dark(&self, content: &Content) -> bool {
        let Content::Chunk { hash, .. } = content else { return false };
        self.store.chunk(hash).is_none_or(|chunk| !chunk.holders.iter().any(|&holder| self.header.map.is_living(holder)))
    }

    /// The next names of directories, and of the wanted inodes, which must be sorted; and behind which name to go on.
    fn names_of(&self, after: Option<&(InodeId, Name)>, wanted: &[InodeId]) -> (Vec<FoundName>, Option<(InodeId, Name)>) {
        let mut names = Vec::new();
        let after = after.map(|(directory, name)| (*directory, NameBytes::from(name.as_bytes())));
        for (visits, (directory, bytes, entry)) in self.store.entries_behind(after).enumerate() {
            let Ok(name) = Name::new(bytes.to_vec()) else { continue };
            if wanted.binary_search(&entry.ino).is_ok() || self.store.inode(entry.ino).is_some_and(Inode::is_directory) {
                names.push(FoundName { directory, name: name.clone(), ino: entry.ino });
            }
            if visits + 1 >= COMMAND_VISITS_MAX {
                return (names, Some((directory, name)));
            }
        }
        (names, None)
    }

    /// Which of the uploads the node is recorded to hold.
    fn ascribed(&self, node: NodeId, items: &[Upload]) -> Vec<Upload> {
        let holds = |(hash, instance): &&Upload| {
            self.store.chunk(hash).is_some_and(|chunk| chunk.instance == *instance && chunk.holders.binary_search(&node).is_ok())
        };
        items.iter().filter(holds).copied().collect()
    }

    /// The next chunks that the node is recorded to hold, and behind which hash to go on.
    pub fn records_of(&self, node: NodeId, after: Option<ChunkHash>) -> (Vec<(ChunkHash, Instance)>, Option<ChunkHash>) {
        let (mut items, from) = (Vec::new(), after.map_or(Bound::Unbounded, Bound::Excluded));
        for (visits, (hash, chunk)) in self.store.chunks_from(from).enumerate() {
            if chunk.holders.binary_search(&node).is_ok() {
                items.push((hash, chunk.instance));
            }
            if visits + 1 >= COMMAND_VISITS_MAX {
                return (items, Some(hash));
            }
        }
        (items, None)
    }
}

fn add_sums(sums: &mut Sums, usage: Usage, digest: u64) {
    let Usage { inodes, referenced_bytes, referenced_chunks, charged_bytes, namespace_bytes, inline_bytes, reserved_bytes } = usage;
    sums.add(&Sums { inodes, referenced_bytes, referenced_chunks, charged_bytes, namespace_bytes, inline_bytes, reserved_bytes, digest });
}

fn position_of(key: &Key) -> Position {
    match key {
        Key::Inode(ino) => Position::Inode(*ino),
        Key::Entry(directory, name) => Position::Entry(*directory, name.to_vec()),
        Key::Slot(ino, index) => Position::Slot(*ino, *index),
        Key::Chunk(hash) => Position::Chunk(*hash),
        Key::Session(id) => Position::Session(*id),
        Key::Outcome(id, number) => Position::Outcome(*id, *number),
        Key::Writer(ino) => Position::Writer(*ino),
        Key::Locks(ino) => Position::Locks(*ino),
        Key::Xattr(ino, name) => Position::Xattr(*ino, name.to_vec()),
    }
}

fn key_of(position: &Position) -> Key {
    match position {
        Position::Inode(ino) => Key::Inode(*ino),
        Position::Entry(directory, name) => Key::Entry(*directory, name.as_slice().into()),
        Position::Slot(ino, index) => Key::Slot(*ino, *index),
        Position::Chunk(hash) => Key::Chunk(*hash),
        Position::Session(id) => Key::Session(*id),
        Position::Outcome(id, number) => Key::Outcome(*id, *number),
        Position::Writer(ino) => Key::Writer(*ino),
        Position::Locks(ino) => Key::Locks(*ino),
        Position::Xattr(ino, name) => Key::Xattr(*ino, name.as_slice().into()),
    }
}
