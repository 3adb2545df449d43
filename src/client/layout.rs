//! File layouts as last told by the leader: trusted while a right says that the data version is still theirs, else revalidated with one
//! message.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limits;
use crate::types::{ByteRange, ChunkHash, InodeId};
use crate::wire::namespace::{ChunkPlace, Extent, LayoutVersion, Source};

/// Where the bytes of a range of one file are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) version: LayoutVersion,
    /// What the extents describe, gaps beyond the file's end included.
    pub(super) covered: ByteRange,
    pub(super) extents: Vec<Extent>,
    /// Sorted by hash.
    pub(super) chunks: Vec<ChunkPlace>,
}

impl Layout {
    /// Memory that it takes, roughly.
    fn bytes(&self) -> usize {
        let inline = |extent: &Extent| if let Source::Inline(bytes) = &extent.source { bytes.len() } else { 0 };
        let extents: usize = self.extents.iter().map(|extent| size_of::<Extent>() + inline(extent)).sum();
        let chunks: usize = self.chunks.iter().map(|place| size_of::<ChunkPlace>() + size_of_val(&place.holders[..])).sum();
        size_of::<Known>() + extents + chunks
    }

    pub(super) fn covers(&self, range: ByteRange) -> bool {
        self.covered.offset <= range.offset && self.covered.end() >= range.end()
    }

    pub(super) fn place(&self, hash: &ChunkHash) -> Option<&ChunkPlace> {
        self.chunks.binary_search_by(|place| place.hash.cmp(hash)).ok().map(|index| &self.chunks[index])
    }

    /// Extents that overlap the range.
    pub(super) fn within(&self, range: ByteRange) -> impl Iterator<Item = &Extent> {
        let first = self.extents.partition_point(|extent| extent.offset.saturating_add(extent.length) <= range.offset);
        self.extents[first..].iter().take_while(move |extent| extent.offset < range.end())
    }
}

struct Known {
    layout: Arc<Layout>,
    /// Where the last read ended; the next one that begins there is sequential.
    read_end: u64,
    used: u64,
}

/// Bounded by files and by the memory that they take.
pub(super) struct Layouts {
    files: BTreeMap<InodeId, Known>,
    by_use: BTreeMap<u64, InodeId>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Layouts {
    pub(super) fn new(bytes_max: usize) -> Self {
        Layouts { files: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, bytes: 0, bytes_max }
    }

    /// The layout if it covers the range.
    pub(super) fn find(&self, ino: InodeId, range: ByteRange) -> Option<Arc<Layout>> {
        self.files.get(&ino).map(|known| &known.layout).filter(|layout| layout.covers(range)).cloned()
    }

    /// Whatever is known of the file.
    pub(super) fn any(&self, ino: InodeId) -> Option<Arc<Layout>> {
        self.files.get(&ino).map(|known| known.layout.clone())
    }

    pub(super) fn insert(&mut self, ino: InodeId, layout: Arc<Layout>) {
        self.clock += 1;
        let read_end = match self.files.remove(&ino) {
            Some(before) => {
                self.by_use.remove(&before.used);
                self.bytes -= before.layout.bytes();
                before.read_end
            }
            None => 0,
        };
        self.bytes += layout.bytes();
        self.files.insert(ino, Known { layout, read_end, used: self.clock });
        self.by_use.insert(self.clock, ino);
        while self.files.len() > limits::CLIENT_LAYOUTS_MAX || self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(gone) = self.files.remove(&oldest) {
                self.bytes -= gone.layout.bytes();
            }
        }
    }

    /// Notes a read, and tells whether it goes on where the last one ended.
    pub(super) fn note_read(&mut self, ino: InodeId, range: ByteRange) -> bool {
        let Some(known) = self.files.get_mut(&ino) else { return false };
        self.by_use.remove(&known.used);
        self.clock += 1;
        known.used = self.clock;
        self.by_use.insert(self.clock, ino);
        let sequential = range.offset != 0 && range.offset == known.read_end;
        known.read_end = range.end();
        sequential
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.files.len(), self.by_use.len());
        assert_eq!(self.bytes, self.files.values().map(|known| known.layout.bytes()).sum::<usize>());
    }
}
