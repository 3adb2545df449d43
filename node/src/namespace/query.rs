//! Reads of the tree. The node makes sure that it leads; here the answer is only computed.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, Cookie, InodeId, Name, ROOT};
use dfs::wire::namespace::{Answer, ChunkPlace, DirectoryEntry, Extent, LayoutVersion, Query, Source};

use super::Namespace;
use super::extents::{Content, Piece, Slot};
use super::inode::{Body, File};

/// Slots that one answer looks at; most are visible, hidden ones wait to be trimmed.
const SLOTS_VISITED_MAX: usize = 4 * limits::COMMAND_VISITS_MAX;

/// An answer about a layout, being gathered.
#[derive(Default)]
struct Layout {
    extents: Vec<Extent>,
    chunks: Vec<ChunkPlace>,
    fold: Vec<(u64, u64)>,
    /// Everything before it is covered.
    at: u64,
    inline_bytes: usize,
}

impl Namespace {
    /// Answers a query. Those that need what only the node knows, or who asks, are answered elsewhere: `NotSupported` here.
    pub fn query(&self, query: &Query) -> Result<Answer, Status> {
        match query {
            Query::Lookup { parent, name } => match self.lookup(*parent, name) {
                Err(Status::NotFound) if self.store.inode(*parent).is_some() => Ok(Answer::Absent),
                found => found.map(Answer::Attributes),
            },
            Query::Resolve { path } => {
                if path.len() > limits::COMMAND_VISITS_MAX {
                    return Err(Status::NameTooLong);
                }
                let mut found = self.attributes(ROOT)?;
                for name in path {
                    found = self.lookup(found.ino, name)?;
                }
                Ok(Answer::Attributes(found))
            }
            Query::Attributes { ino } => Ok(Answer::Attributes(self.attributes(*ino)?)),
            Query::ReadLink { ino } => match &self.store.inode(*ino).ok_or(Status::Stale)?.body {
                Body::Symlink(target) => Ok(Answer::Target(target.to_vec())),
                _ => Err(Status::InvalidArgument),
            },
            Query::ReadDirectory { ino, after, limit } => self.read_directory(*ino, *after, *limit),
            Query::Extents { ino, range, known } => self.extents(*ino, *range, *known),
            Query::Seek { ino, offset, what } => self.seek(*ino, *offset, *what),
            Query::Xattr { ino, name } => self.xattr(*ino, name),
            Query::Xattrs { ino } => self.xattrs(*ino),
            Query::Hold { .. } | Query::Release { .. } | Query::Reclaim { .. } | Query::Space | Query::Settle { .. } => {
                Err(Status::NotSupported)
            }
            Query::TestLock { .. } | Query::LeaveLockQueue { .. } => Err(Status::NotSupported),
        }
    }

    /// Attributes of an inode; `Stale` if it is gone.
    pub fn attributes(&self, ino: InodeId) -> Result<Attributes, Status> {
        Ok(self.store.inode(ino).ok_or(Status::Stale)?.attributes(ino))
    }

    /// Whether the inode exists, with or without a name.
    pub fn exists(&self, ino: InodeId) -> bool {
        self.store.inode(ino).is_some()
    }

    /// Whether the inode exists without a name.
    pub fn is_orphan(&self, ino: InodeId) -> bool {
        self.store.inode(ino).is_some_and(|inode| inode.links == 0)
    }

    /// The inode of that name, if there is one.
    pub fn child(&self, parent: InodeId, name: &Name) -> Option<InodeId> {
        self.store.entry(parent, name.as_bytes()).map(|entry| entry.ino)
    }

    fn lookup(&self, parent: InodeId, name: &Name) -> Result<Attributes, Status> {
        name.check()?;
        let inode = self.store.inode(parent).ok_or(Status::NotFound)?;
        if !inode.is_directory() {
            return Err(Status::NotDirectory);
        }
        let entry = self.store.entry(parent, name.as_bytes()).ok_or(Status::NotFound)?;
        self.attributes(entry.ino)
    }

    fn read_directory(&self, ino: InodeId, after: Cookie, limit: u32) -> Result<Answer, Status> {
        let inode = self.store.inode(ino).ok_or(Status::NotFound)?;
        if !inode.is_directory() {
            return Err(Status::NotDirectory);
        }
        let limit = (limit as usize).clamp(1, limits::READDIR_ENTRIES_MAX);
        let mut entries = Vec::new();
        let mut end = true;
        for (cookie, bytes) in self.store.entries_after(ino, after) {
            if entries.len() == limit {
                end = false;
                break;
            }
            let entry = self.store.entry(ino, bytes).expect("the index of cookies names entries");
            let name = Name::new(bytes.to_vec()).expect("stored names were checked");
            entries.push(DirectoryEntry { name, cookie, attributes: self.attributes(entry.ino)?, current: true });
        }
        Ok(Answer::Directory { entries, end, attributes: inode.attributes(ino) })
    }

    fn extents(&self, ino: InodeId, range: ByteRange, known: Option<LayoutVersion>) -> Result<Answer, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        let file = inode.file().ok_or(if inode.is_directory() { Status::IsDirectory } else { Status::InvalidArgument })?;
        let attributes = inode.attributes(ino);
        let version = file.layout_version();
        if known == Some(version) {
            return Ok(Answer::Unchanged { attributes });
        }
        let (layout, truncated) = self.layout(ino, file, range);
        let Layout { extents, mut chunks, fold, .. } = layout;
        chunks.sort_by_key(|place| place.hash);
        chunks.dedup_by_key(|place| place.hash);
        Ok(Answer::Extents { attributes, version, extents, chunks, truncated, fold })
    }

    fn layout(&self, ino: InodeId, file: &File, range: ByteRange) -> (Layout, bool) {
        let end = range.end().min(file.size);
        let mut layout = Layout { at: range.offset, ..Layout::default() };
        if range.offset >= end {
            return (layout, false);
        }
        for (visited, (index, slot)) in self.store.slots_from(ino, range.offset / limits::SLOT_BYTES).enumerate() {
            let base = index * limits::SLOT_BYTES;
            if base >= end {
                break;
            }
            if visited >= SLOTS_VISITED_MAX {
                layout.hole_until(base);
                return (layout, true);
            }
            if file.hides(index, slot.born) {
                continue;
            }
            if slot.gains_by_folding() {
                layout.fold.push((index, slot.version));
            }
            for piece in slot.pieces().iter().filter(|piece| !piece.is_reserved()) {
                let wanted = (base + u64::from(piece.start)).max(range.offset)..(base + u64::from(piece.end())).min(end);
                if wanted.is_empty() {
                    continue;
                }
                // Room for the hole before it, the piece, and the hole after.
                if layout.extents.len() + 3 > limits::EXTENTS_ANSWER_MAX || layout.inline_bytes > limits::EXTENTS_INLINE_BYTES_MAX {
                    return (layout, true);
                }
                layout.hole_until(wanted.start);
                self.add_piece(&mut layout, piece, base, wanted.end);
            }
        }
        layout.hole_until(end);
        (layout, false)
    }

    /// Adds the part of the piece from where the layout stands up to `end`.
    fn add_piece(&self, layout: &mut Layout, piece: &Piece, base: u64, end: u64) {
        let skip = (layout.at - base) as u32 - piece.start;
        let length = end - layout.at;
        let source = match &piece.content {
            Content::Inline(bytes) => {
                layout.inline_bytes += length as usize;
                Source::Inline(bytes.slice(skip as usize..skip as usize + length as usize))
            }
            Content::Chunk { hash, offset } => {
                let chunk = self.store.chunk(hash).expect("an extent refers to a chunk with a record");
                if layout.chunks.last().is_none_or(|last| last.hash != *hash) {
                    let (length, instance, holders) = (chunk.length, chunk.instance, chunk.holders.to_vec());
                    layout.chunks.push(ChunkPlace { hash: *hash, length, instance, holders });
                }
                Source::Chunk { hash: *hash, offset: offset + skip }
            }
            Content::Reserved => Source::Hole,
        };
        layout.extents.push(Extent { offset: layout.at, length, source });
        layout.at = end;
    }
}

impl Layout {
    fn hole_until(&mut self, end: u64) {
        if end > self.at {
            self.extents.push(Extent { offset: self.at, length: end - self.at, source: Source::Hole });
            self.at = end;
        }
    }
}

impl Slot {
    fn gains_by_folding(&self) -> bool {
        let end = self.content_end();
        let rest = (u64::from(end) / limits::FOLD_INLINE_SHARE).max(limits::INLINE_REST_BYTES_MAX as u64);
        // Between reserved runs that stay there are as many others, however often it is folded.
        let left = 2 * self.kept_by_folds(end).count();
        self.pieces().len() > limits::FOLD_EXTENTS_MIN + left || self.inline_bytes() > rest
    }
}
