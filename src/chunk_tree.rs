//! Parts of a chunk verified against the chunk's hash: BLAKE3 subtree values over groups of [`VERIFY_GROUP_BYTES`].
//!
//! A BLAKE3 hash is the root of a binary tree whose left subtrees are complete. Whoever gets the groups of a range, and the values
//! of the subtrees beside it, computes the root without the rest of the chunk. The proof lists those values from left to right.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::limits::{CHUNK_BYTES_MAX, VERIFY_GROUP_BYTES};
use crate::status::Status;
use crate::types::{ByteRange, ChunkHash};

const GROUP: u64 = VERIFY_GROUP_BYTES as u64;

/// The smallest range of whole groups around `range`, cut at the chunk's end. Empty if `range` covers no byte of the chunk.
pub fn widen(range: ByteRange, total: u64) -> ByteRange {
    let end = range.end().min(total);
    if range.offset >= end {
        return ByteRange { offset: range.offset.min(total), length: 0 };
    }
    let offset = range.offset / GROUP * GROUP;
    let end = end.div_ceil(GROUP).saturating_mul(GROUP).min(total);
    ByteRange { offset, length: end - offset }
}

/// The subtree value of each group of one chunk; what a holder keeps to prove ranges without hashing again. 32 bytes per 16 KiB.
/// Making it costs as much as hashing the chunk and gives the hash too, so a holder gets it for free when it verifies an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHashes {
    total: u64,
    groups: Box<[ChainingValue]>,
}

impl GroupHashes {
    /// Hashes a chunk of more than one group; `None` for smaller ones, which are only read whole.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.len() <= VERIFY_GROUP_BYTES {
            return None;
        }
        let groups =
            bytes.chunks(VERIFY_GROUP_BYTES).enumerate().map(|(index, group)| subtree_value(index as u64 * GROUP, group)).collect();
        Some(GroupHashes { total: bytes.len() as u64, groups })
    }

    /// The chunk's hash.
    pub fn root(&self) -> ChunkHash {
        let left = left_subtree_len(self.total);
        let right = self.value(Subtree { offset: left, length: self.total - left });
        root_of(&self.value(Subtree { offset: 0, length: left }), &right)
    }

    /// What proves a widened range: the values of the largest subtrees outside it, from left to right. Empty for the whole chunk.
    pub fn proof(&self, range: ByteRange) -> Vec<[u8; 32]> {
        let mut proof = Vec::new();
        self.collect(Subtree { offset: 0, length: self.total }, range, &mut proof);
        proof
    }

    /// Bytes of memory that it occupies beside its own struct.
    pub fn heap_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.groups)
    }

    fn collect(&self, tree: Subtree, range: ByteRange, proof: &mut Vec<[u8; 32]>) {
        if tree.is_inside(range) {
            return;
        }
        if tree.is_outside(range) {
            proof.push(self.value(tree));
            return;
        }
        // A widened range never cuts a group, so what is neither inside nor outside can be split.
        if let Some((left, right)) = tree.split() {
            self.collect(left, range, proof);
            self.collect(right, range, proof);
        }
    }

    fn value(&self, tree: Subtree) -> ChainingValue {
        match tree.split() {
            None => self.groups[(tree.offset / GROUP) as usize],
            Some((left, right)) => merge_subtrees_non_root(&self.value(left), &self.value(right), Mode::Hash),
        }
    }
}

/// Checks that `bytes` are the bytes of `range` in the chunk named `hash`. The range must be widened, `total` the chunk's length as
/// the namespace records it (a proof does not bind the length of what it leaves out). Anything else is `Corrupt`.
pub fn verify(hash: &ChunkHash, total: u64, range: ByteRange, bytes: &[u8], proof: &[[u8; 32]]) -> Result<(), Status> {
    let sane = (1..=CHUNK_BYTES_MAX as u64).contains(&total)
        && range.length > 0
        && range.length == bytes.len() as u64
        && range.end() <= total
        && widen(range, total) == range;
    if !sane {
        return Err(Status::Corrupt);
    }
    let mut proof = proof.iter();
    let root = if range.length == total {
        ChunkHash::of(bytes)
    } else {
        // More than one group, since a widened range covers a single group whole.
        let (left, right) = Subtree { offset: 0, length: total }.split().ok_or(Status::Corrupt)?;
        let left = rebuild(left, range, bytes, &mut proof)?;
        let right = rebuild(right, range, bytes, &mut proof)?;
        root_of(&left, &right)
    };
    if root != *hash || proof.next().is_some() {
        return Err(Status::Corrupt);
    }
    Ok(())
}

/// The value of a subtree from the bytes that came and the values beside them. As deep as the tree: 6 for the largest chunk.
fn rebuild(tree: Subtree, range: ByteRange, bytes: &[u8], proof: &mut std::slice::Iter<[u8; 32]>) -> Result<ChainingValue, Status> {
    if tree.is_outside(range) {
        return proof.next().copied().ok_or(Status::Corrupt);
    }
    if tree.is_inside(range) {
        let start = (tree.offset - range.offset) as usize;
        return Ok(subtree_value(tree.offset, &bytes[start..start + tree.length as usize]));
    }
    let (left, right) = tree.split().ok_or(Status::Corrupt)?;
    let left = rebuild(left, range, bytes, proof)?;
    let right = rebuild(right, range, bytes, proof)?;
    Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

fn subtree_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

fn root_of(left: &ChainingValue, right: &ChainingValue) -> ChunkHash {
    ChunkHash(*merge_subtrees_root(left, right, Mode::Hash).as_bytes())
}

/// A node of the tree, as the bytes that it covers; its offset is always a multiple of the group.
#[derive(Clone, Copy)]
struct Subtree {
    offset: u64,
    length: u64,
}

impl Subtree {
    /// Its children; `None` for a single group.
    fn split(self) -> Option<(Subtree, Subtree)> {
        if self.length <= GROUP {
            return None;
        }
        let left = left_subtree_len(self.length);
        Some((Subtree { offset: self.offset, length: left }, Subtree { offset: self.offset + left, length: self.length - left }))
    }

    fn is_inside(self, range: ByteRange) -> bool {
        self.offset >= range.offset && self.offset + self.length <= range.end()
    }

    fn is_outside(self, range: ByteRange) -> bool {
        self.offset + self.length <= range.offset || self.offset >= range.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn bytes(length: usize, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        (0..length).map(|_| random.next() as u8).collect()
    }

    fn sizes() -> Vec<usize> {
        let group = VERIFY_GROUP_BYTES;
        let mut sizes = vec![1, 1023, 1024, 1025, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX];
        for groups in [1, 2, 3, 4, 5, 7, 8, 9, 17, 31, 33, 63] {
            sizes.extend([groups * group - 1, groups * group, groups * group + 1, groups * group + 1025]);
        }
        sizes
    }

    #[test]
    fn every_range_of_every_size_verifies() {
        let mut random = Random::new(7);
        for total in sizes() {
            let chunk = bytes(total, total as u64);
            let hash = ChunkHash::of(&chunk);
            let groups = GroupHashes::of(&chunk);
            assert_eq!(groups.is_none(), total <= VERIFY_GROUP_BYTES);
            assert!(groups.as_ref().is_none_or(|groups| groups.root() == hash));
            for _ in 0..40 {
                let offset = random.below(total as u64);
                let length = 1 + random.below(total as u64 - offset);
                let length = if random.chance(1, 2) { length.min(4096) } else { length };
                let asked = ByteRange { offset, length };
                let range = widen(asked, total as u64);
                assert!(range.offset <= offset && range.end() >= asked.end() && range.end() <= total as u64);
                assert!(range.length < length + 2 * GROUP);
                assert_eq!(widen(range, total as u64), range);
                let part = &chunk[range.offset as usize..range.end() as usize];
                let proof = groups.as_ref().map(|groups| groups.proof(range)).unwrap_or_default();
                assert!(proof.len() <= 11);
                assert_eq!(proof.is_empty(), range.length == total as u64);
                assert_eq!(verify(&hash, total as u64, range, part, &proof), Ok(()), "{total} {range:?}");
            }
        }
    }

    #[test]
    fn tampering_is_caught() {
        let mut random = Random::new(3);
        for total in [20_000, 100_000, 16384 * 5, CHUNK_BYTES_MAX] {
            let chunk = bytes(total, 1);
            let hash = ChunkHash::of(&chunk);
            let groups = GroupHashes::of(&chunk).unwrap();
            for _ in 0..50 {
                let range = widen(ByteRange { offset: random.below(total as u64), length: 4096 }, total as u64);
                let mut part = chunk[range.offset as usize..range.end() as usize].to_vec();
                let mut proof = groups.proof(range);
                if proof.is_empty() {
                    continue;
                }
                let at = random.below(part.len() as u64) as usize;
                part[at] ^= 1 << random.below(8);
                assert_eq!(verify(&hash, total as u64, range, &part, &proof), Err(Status::Corrupt));
                part[at] = chunk[range.offset as usize + at];
                assert_eq!(verify(&hash, total as u64, range, &part, &proof), Ok(()));
                let sibling = random.below(proof.len() as u64) as usize;
                proof[sibling][5] ^= 1;
                assert_eq!(verify(&hash, total as u64, range, &part, &proof), Err(Status::Corrupt));
                proof[sibling][5] ^= 1;
                proof.push([0; 32]);
                assert_eq!(verify(&hash, total as u64, range, &part, &proof), Err(Status::Corrupt));
                proof.truncate(proof.len() - 2);
                assert_eq!(verify(&hash, total as u64, range, &part, &proof), Err(Status::Corrupt));
            }
        }
    }

    #[test]
    fn senseless_claims_are_refused() {
        let chunk = bytes(40_000, 1);
        let hash = ChunkHash::of(&chunk);
        let check = |total, offset, length, bytes: &[u8]| verify(&hash, total, ByteRange { offset, length }, bytes, &[]);
        assert_eq!(check(40_000, 0, 40_000, &chunk), Ok(()));
        assert_eq!(check(0, 0, 0, &[]), Err(Status::Corrupt));
        assert_eq!(check(40_000, 0, 0, &[]), Err(Status::Corrupt));
        assert_eq!(check(40_000, 5, 39_995, &chunk[5..]), Err(Status::Corrupt));
        assert_eq!(check(u64::MAX, 0, 40_000, &chunk), Err(Status::Corrupt));
        assert_eq!(check(40_000, u64::MAX, 40_000, &chunk), Err(Status::Corrupt));
        assert_eq!(check(40_000, 16384, u64::MAX, &chunk), Err(Status::Corrupt));
        assert_eq!(widen(ByteRange { offset: u64::MAX, length: u64::MAX }, 100).length, 0);
        assert_eq!(widen(ByteRange { offset: 0, length: u64::MAX }, 100), ByteRange { offset: 0, length: 100 });
    }

    #[test]
    fn an_aligned_page_costs_one_group_and_six_values() {
        let chunk = bytes(CHUNK_BYTES_MAX, 9);
        let groups = GroupHashes::of(&chunk).unwrap();
        for page in 0..CHUNK_BYTES_MAX as u64 / 4096 {
            let range = widen(ByteRange { offset: page * 4096, length: 4096 }, CHUNK_BYTES_MAX as u64);
            let wire = range.length + 32 * groups.proof(range).len() as u64;
            assert!(wire <= 17 << 10, "{wire}");
        }
    }
}
