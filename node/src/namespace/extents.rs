//! One slot of a file: a sorted list of pieces that never overlap. Gaps are holes. Reserved pieces read like holes, but hold their space.
//!
//! Keeps its own sums (inline bytes, blocks, digest) by difference, so that a change costs what it touches and not the slot.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use dfs::capacity::reservation_charge;
use dfs::limits;
use dfs::types::ChunkHash;
use dfs::wire::namespace::Source;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// What a piece takes; the same on every build, since it decides what fits.
const PIECE_BYTES: u64 = 64;
const _: () = assert!(size_of::<Piece>() + 8 <= PIECE_BYTES as usize);

/// By how much a command changes the references to chunks. Gathered first and applied at once, so that a chunk which loses
/// its last reference and gains another in the same command is not deleted in between.
pub(super) type References = BTreeMap<ChunkHash, i64>;

/// What a piece is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    Inline(Bytes),
    Chunk {
        hash: ChunkHash,
        offset: u32,
    },
    /// Zeros that are charged for as if they were bytes, so that writing there finds its space.
    Reserved,
}

/// A run of bytes within a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub start: u32,
    pub length: u32,
    /// Digest of the piece, position included; not sent in snapshots but computed anew.
    #[serde(skip)]
    digest: u64,
    pub content: Content,
}

/// The pieces of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// The file's layout counter when the slot last changed; never repeats for a slot, not even after it was freed.
    pub version: u64,
    /// The file's layout counter when the slot was made; compared with cuts.
    pub born: u64,
    pieces: Vec<Piece>,
    #[serde(skip)]
    inline_bytes: u64,
    #[serde(skip)]
    occupied: u64,
    #[serde(skip)]
    reserved: Reservations,
    #[serde(skip)]
    digest: u64,
}

/// What is reserved, for writes to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    pub bytes: u64,
    /// What it is charged for in the space of chunks.
    pub charge: u64,
    pub pieces: usize,
}

impl Content {
    /// A part of it; bytes are copied, so that a small rest does not keep a large run alive.
    pub fn part(&self, skip: u32, length: u32) -> Content {
        match self {
            Content::Inline(bytes) if skip == 0 && length as usize == bytes.len() => Content::Inline(bytes.clone()),
            Content::Inline(bytes) => Content::Inline(Bytes::copy_from_slice(&bytes[skip as usize..(skip + length) as usize])),
            Content::Chunk { hash, offset } => Content::Chunk { hash: *hash, offset: offset + skip },
            Content::Reserved => Content::Reserved,
        }
    }

    /// What a patch brings for part of its range; `None` is a hole.
    pub fn of_source(source: &Source, skip: u32, length: u32) -> Option<Content> {
        match source {
            Source::Hole => None,
            Source::Inline(bytes) => Some(Content::Inline(bytes.clone()).part(skip, length)),
            Source::Chunk { hash, offset } => Some(Content::Chunk { hash: *hash, offset: offset + skip }),
        }
    }
}

impl Piece {
    fn new(start: u32, length: u32, content: Content) -> Piece {
        let mut piece = Piece { start, length, digest: 0, content };
        piece.digest = piece.computed_digest();
        piece
    }

    fn computed_digest(&self) -> u64 {
        let digest = Digest::new(7).word(u64::from(self.start) << 32 | u64::from(self.length));
        match &self.content {
            Content::Inline(bytes) => digest.bytes(bytes).end(),
            Content::Chunk { hash, offset } => digest.word(u64::from(*offset)).bytes(&hash.0).end(),
            Content::Reserved => digest.word(u64::MAX).end(),
        }
    }

    pub fn end(&self) -> u32 {
        self.start + self.length
    }

    /// Whether it holds space only: it reads as zeros.
    pub fn is_reserved(&self) -> bool {
        self.content == Content::Reserved
    }

    /// The part of the piece within `start..end`, which must overlap it.
    fn clipped(&self, start: u32, end: u32) -> Piece {
        if start <= self.start && end >= self.end() {
            return self.clone();
        }
        let (start, end) = (start.max(self.start), end.min(self.end()));
        Piece::new(start, end - start, self.content.part(start - self.start, end - start))
    }

    fn inline_bytes(&self) -> u64 {
        if matches!(self.content, Content::Inline(_)) { u64::from(self.length) } else { 0 }
    }

    /// The two as one piece, if they continue each other.
    fn joined(&self, next: &Piece) -> Option<Piece> {
        if self.end() != next.start {
            return None;
        }
        let length = self.length + next.length;
        match (&self.content, &next.content) {
            (Content::Inline(a), Content::Inline(b)) if length as usize <= limits::INLINE_RUN_BYTES_MAX => {
                let mut bytes = BytesMut::with_capacity(length as usize);
                bytes.extend_from_slice(a);
                bytes.extend_from_slice(b);
                Some(Piece::new(self.start, length, Content::Inline(bytes.freeze())))
            }
            (Content::Chunk { hash, offset }, Content::Chunk { hash: other, offset: then })
                if hash == other && offset + self.length == *then =>
            {
                Some(Piece::new(self.start, length, self.content.clone()))
            }
            (Content::Reserved, Content::Reserved) => Some(Piece::new(self.start, length, Content::Reserved)),
            _ => None,
        }
    }
}

impl Slot {
    /// An empty slot made by the change that takes the layout counter to `layout`.
    pub fn new(layout: u64) -> Slot {
        Slot { version: layout, born: layout, ..Slot::default() }
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn inline_bytes(&self) -> u64 {
        self.inline_bytes
    }

    /// Units of 512 bytes that it occupies. Rounded once, not by piece: a file without holes has as many however it was written.
    pub fn blocks(&self) -> u64 {
        self.occupied.div_ceil(512)
    }

    /// What of it is reserved.
    pub fn reserved(&self) -> Reservations {
        self.reserved
    }

    /// Where the last piece ends that is more than reserved space; 0 if there is none.
    pub fn content_end(&self) -> u32 {
        self.pieces.iter().rev().find(|piece| !piece.is_reserved()).map_or(0, Piece::end)
    }

    /// Replaces `start..end` by the content, or by a hole.
    pub fn splice(&mut self, start: u32, end: u32, content: Option<Content>, references: &mut References) {
        assert!(start < end && u64::from(end) <= limits::SLOT_BYTES, "a range within a slot");
        // Neighbours that only touch are taken along: they may continue the new piece.
        let first = self.pieces.partition_point(|piece| piece.end() < start);
        let last = self.pieces.partition_point(|piece| piece.start <= end);
        let old = &self.pieces[first..last];
        let mut new: Vec<Piece> = Vec::with_capacity(3);
        let before = old.iter().filter(|piece| piece.start < start).map(|piece| piece.clipped(0, start));
        let after = old.iter().filter(|piece| piece.end() > end).map(|piece| piece.clipped(end, u32::MAX));
        let middle = content.map(|content| Piece::new(start, end - start, content));
        for piece in before.chain(middle).chain(after) {
            match new.last().and_then(|last| last.joined(&piece)) {
                Some(joined) => *new.last_mut().expect("a piece to join with") = joined,
                None => new.push(piece),
            }
        }
        for piece in &new {
            self.count(piece, true, references);
        }
        for piece in self.pieces.splice(first..last, new).collect::<Vec<_>>() {
            self.count(&piece, false, references);
        }
        // Most slots have one piece, and the first one makes room for four.
        if self.pieces.capacity() > 2 * self.pieces.len() {
            self.pieces.shrink_to_fit();
        }
    }

    /// How many pieces there are at most after a splice of that range.
    pub fn pieces_after(&self, start: u32, end: u32) -> usize {
        let first = self.pieces.partition_point(|piece| piece.end() <= start);
        let last = self.pieces.partition_point(|piece| piece.start < end);
        let within = &self.pieces[first..last];
        let before = within.first().is_some_and(|piece| piece.start < start);
        let after = within.last().is_some_and(|piece| piece.end() > end);
        self.pieces.len() - within.len() + usize::from(before) + 1 + usize::from(after)
    }

    /// The parts of `start..end` outside the pieces that are kept.
    fn outside(&self, start: u32, end: u32, kept: impl Fn(&Piece) -> bool) -> Vec<(u32, u32)> {
        let (mut parts, mut at) = (Vec::new(), start);
        let first = self.pieces.partition_point(|piece| piece.end() <= start);
        for piece in self.pieces[first..].iter().take_while(|piece| piece.start < end).filter(|piece| kept(piece)) {
            if piece.start > at {
                parts.push((at, piece.start));
            }
            at = piece.end();
        }
        if at < end {
            parts.push((at, end));
        }
        parts
    }

    /// Makes `start..end` read as zeros: what is reserved there stays so, the rest becomes a hole.
    pub fn zero(&mut self, start: u32, end: u32, references: &mut References) {
        for (start, end) in self.outside(start, end, Piece::is_reserved) {
            self.splice(start, end, None, references);
        }
    }

    /// Reserves what of `start..end` is a hole.
    pub fn reserve(&mut self, start: u32, end: u32, references: &mut References) {
        for (start, end) in self.outside(start, end, |_| true) {
            self.splice(start, end, Some(Content::Reserved), references);
        }
    }

    /// Reserved runs that a fold leaves in place, so that its result is bounded: all while they are few, else those that are too long
    /// for one small write. What lies beyond `end`, the end of the file, no fold can name.
    pub fn kept_by_folds(&self, end: u32) -> impl Iterator<Item = (u32, u32)> {
        let few = self.reserved.pieces <= limits::FOLD_RESERVATIONS_MAX;
        let keep = move |piece: &&Piece| few || piece.length as usize >= limits::INLINE_WRITE_BYTES_MAX;
        let reserved = self.pieces.iter().filter(|piece| piece.is_reserved());
        reserved.filter(move |piece| keep(piece) || piece.end() > end).map(move |piece| {
            let start = if keep(&piece) { piece.start } else { piece.start.max(end) };
            (start, piece.end())
        })
    }

    /// Takes all references back, before the slot goes.
    pub fn unreference(&self, references: &mut References) {
        for piece in &self.pieces {
            if let Content::Chunk { hash, .. } = piece.content {
                *references.entry(hash).or_default() -= 1;
            }
        }
    }

    fn count(&mut self, piece: &Piece, comes: bool, references: &mut References) {
        let sign = if comes { 1 } else { -1 };
        if comes {
            self.inline_bytes += piece.inline_bytes();
            self.occupied += u64::from(piece.length);
            self.reserved.add(piece);
            self.digest = self.digest.wrapping_add(piece.digest);
        } else {
            self.inline_bytes -= piece.inline_bytes();
            self.occupied -= u64::from(piece.length);
            self.reserved.subtract(piece);
            self.digest = self.digest.wrapping_sub(piece.digest);
        }
        if let Content::Chunk { hash, .. } = piece.content {
            *references.entry(hash).or_default() += sign;
        }
    }

    /// Computes the sums anew, after the slot came without them from a snapshot.
    pub fn restore_sums(&mut self) {
        (self.inline_bytes, self.occupied, self.reserved, self.digest) = (0, 0, Reservations::default(), 0);
        for piece in &mut self.pieces {
            piece.digest = piece.computed_digest();
            self.inline_bytes += piece.inline_bytes();
            self.occupied += u64::from(piece.length);
            self.reserved.add(piece);
            self.digest = self.digest.wrapping_add(piece.digest);
        }
    }

    /// Whether a slot that came from outside keeps the rules on which the arithmetic here relies.
    pub fn is_well_formed(&self) -> bool {
        let fits = |piece: &Piece| {
            piece.length > 0
                && u64::from(piece.start) + u64::from(piece.length) <= limits::SLOT_BYTES
                && match &piece.content {
                    Content::Inline(bytes) => bytes.len() == piece.length as usize,
                    Content::Chunk { offset, .. } => u64::from(*offset) + u64::from(piece.length) <= limits::CHUNK_BYTES_MAX as u64,
                    Content::Reserved => true,
                }
        };
        self.pieces.len() <= limits::SLOT_EXTENTS_MAX
            && self.pieces.iter().all(fits)
            && self.pieces.windows(2).all(|pair| pair[0].end() <= pair[1].start)
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Memory that the record takes, about.
    pub fn weight(&self) -> u64 {
        const RECORD: u64 = 128;
        RECORD + PIECE_BYTES * self.pieces.len() as u64 + self.inline_bytes
    }
}

impl Reservations {
    fn add(&mut self, piece: &Piece) {
        if piece.is_reserved() {
            self.bytes += u64::from(piece.length);
            self.charge += reservation_charge(u64::from(piece.length));
            self.pieces += 1;
        }
    }

    fn subtract(&mut self, piece: &Piece) {
        if piece.is_reserved() {
            self.bytes -= u64::from(piece.length);
            self.charge -= reservation_charge(u64::from(piece.length));
            self.pieces -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs::random::Random;

    #[test]
    fn a_slot_with_one_piece_has_room_for_no_more_than_two() {
        let mut slot = Slot::new(1);
        slot.splice(0, 100, Some(Content::Inline(vec![7; 100].into())), &mut References::new());
        assert!(slot.pieces.capacity() <= 2, "room for {} pieces", slot.pieces.capacity());
    }

    /// Every splice against an array of (chunk, offset) per byte, with merges, cuts and sums.
    #[test]
    fn a_slot_is_an_array_of_bytes() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut slot = Slot::new(1);
            let mut model: Vec<Option<(u8, u32)>> = vec![None; 600];
            let mut references = References::new();
            for _ in 0..60 {
                let start = random.below(599) as u32;
                let end = start + 1 + random.below(u64::from((600 - start).min(100))) as u32;
                let fill = random.below(7) as u8;
                let content = match fill {
                    0 => None,
                    4 => Some(Content::Reserved),
                    5 => {
                        slot.zero(start, end, &mut references);
                        let range = &mut model[start as usize..end as usize];
                        range.iter_mut().filter(|byte| **byte != Some((4, 0))).for_each(|byte| *byte = None);
                        assert!(slot.is_well_formed());
                        continue;
                    }
                    6 => {
                        slot.reserve(start, end, &mut references);
                        model[start as usize..end as usize].iter_mut().for_each(|byte| *byte = byte.or(Some((4, 0))));
                        assert!(slot.is_well_formed());
                        continue;
                    }
                    1 => Some(Content::Inline((start..end).map(|at| at as u8).collect::<Vec<_>>().into())),
                    _ => Some(Content::Chunk { hash: ChunkHash([fill; 32]), offset: start }),
                };
                let most = slot.pieces_after(start, end);
                slot.splice(start, end, content, &mut references);
                assert!(slot.pieces().len() <= most);
                for at in start..end {
                    model[at as usize] = (fill > 0).then_some((fill, if fill == 4 { 0 } else { at }));
                }
                assert!(slot.is_well_formed());
            }
            let mut seen = vec![None; 600];
            let mut counted = References::new();
            for piece in slot.pieces() {
                for index in 0..piece.length {
                    let at = piece.start + index;
                    seen[at as usize] = Some(match &piece.content {
                        Content::Inline(bytes) => {
                            assert_eq!(bytes[index as usize], at as u8);
                            (1, at)
                        }
                        Content::Chunk { hash, offset } => (hash.0[0], offset + index),
                        Content::Reserved => (4, 0),
                    });
                }
                if let Content::Chunk { hash, .. } = piece.content {
                    *counted.entry(hash).or_default() += 1;
                }
            }
            assert_eq!(seen, model, "seed {seed}");
            references.retain(|_, count| *count != 0);
            assert_eq!(counted, references, "seed {seed}");
            let mut fresh = slot.clone();
            fresh.restore_sums();
            assert_eq!(fresh, slot, "seed {seed}");
        }
    }

    #[test]
    fn appended_bytes_become_one_run() {
        let mut slot = Slot::new(1);
        for at in 0..1000 {
            slot.splice(at, at + 1, Some(Content::Inline(Bytes::from_static(b"x"))), &mut References::new());
        }
        assert_eq!(slot.pieces().len(), 1);
        assert_eq!((slot.inline_bytes(), slot.blocks()), (1000, 2));
    }
}
