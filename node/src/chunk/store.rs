//! The chunks of one node: bytes under their hash, kept while any upload (*instance*) of them lives, within a budget.
//!
//! Owns bytes, instances and accounting. It verifies what comes in, and deletes only what the namespace names: an instance dies by
//! a deletion or a verdict, bytes die with their last instance. Refuses bytes that do not match their hash, and growth beyond the budget.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

use bytes::Bytes;
use dfs::capacity::{allocation, chunk_charge};
use dfs::chunk_tree::{GroupHashes, widen};
use dfs::limits::{CHUNK_BYTES_MAX, CHUNK_OVERHEAD_BYTES, INSTANCE_OVERHEAD_BYTES, INSTANCES_PER_CHUNK_MAX, LOST_REPORTS_MAX};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ByteRange, ChunkHash, Instance, SessionId};
use dfs::wire::message::{Scrubbed, Verdict};

use super::audit::{Audit, Upload};
use super::instances::Instances;
use super::scrub::{self, Scrub};
use super::uncommitted::Uncommitted;

/// Whether a deletion looks for other uploads of the same bytes. `Skipped` is a planted bug for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceCheck {
    Kept,
    Skipped,
}

/// Part of a chunk and what proves it.
#[derive(Clone, Debug)]
pub struct Part {
    /// The asked range, widened to what can be verified.
    pub range: ByteRange,
    /// Length of the chunk.
    pub total: u32,
    /// Subtree values beside the range, as [`dfs::chunk_tree::verify`] wants them.
    pub proof: Vec<[u8; 32]>,
    /// The bytes, shared with the store.
    pub bytes: Bytes,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of chunks.
    pub stored: u64,
    /// Bytes counted against the budget: those of chunks, and an allowance for keeping them.
    pub charged: u64,
    pub chunks: u64,
    pub instances: u64,
    pub budget: u64,
}

/// All chunks of one node.
#[derive(Debug)]
pub struct ChunkStore {
    chunks: BTreeMap<ChunkHash, Chunk>,
    /// Which uploads to ask the namespace about, and when.
    audit: Audit,
    /// What sessions have brought and not committed.
    uncommitted: Uncommitted,
    /// When to hash which chunk again.
    scrub: Scrub,
    /// Copies that were bad or are gone, until the leader has acknowledged to know.
    lost: BTreeSet<(ChunkHash, Instance)>,
    usage: Usage,
}

#[derive(Debug)]
struct Chunk {
    /// Owns an allocation of (nearly) its own length.
    bytes: Bytes,
    /// `None` for a chunk of a single group.
    groups: Option<GroupHashes>,
    /// Never empty.
    instances: Instances,
}

impl Chunk {
    fn charge(&self) -> u64 {
        let groups = self.groups.as_ref().map_or(0, GroupHashes::heap_bytes) as u64;
        allocation(self.bytes.len() as u64) + groups + CHUNK_OVERHEAD_BYTES + self.instances.len() as u64 * INSTANCE_OVERHEAD_BYTES
    }

    /// Whether the bytes still match their hash.
    fn is_sound(&self, hash: &ChunkHash) -> bool {
        ChunkHash::of(&self.bytes) == *hash
    }
}

impl ChunkStore {
    /// An empty store that charges at most `budget` bytes.
    pub fn new(budget: u64) -> Self {
        let usage = Usage { budget, ..Usage::default() };
        let (uncommitted, lost) = (Uncommitted::new(budget), BTreeSet::new());
        ChunkStore { chunks: BTreeMap::new(), audit: Audit::new(), uncommitted, scrub: Scrub::new(), lost, usage }
    }

    /// A client brings a chunk, or (without bytes) refers to one that should be here. As [`Self::put`] and [`Self::link`], and charged to
    /// the upload's session until the upload is committed or gone. Errors: also `Busy` for a session that has too much uncommitted.
    pub fn upload(&mut self, now: Time, hash: ChunkHash, instance: Instance, bytes: Option<Bytes>) -> Result<(), Status> {
        let here = self.chunks.get(&hash).map(|chunk| chunk.bytes.len());
        // Uploads of the same bytes are charged in full each: whichever is committed or given up first, the others keep the bytes here.
        let charge = chunk_charge(bytes.as_ref().map(Bytes::len).or(here).ok_or(Status::UnknownChunk)? as u64);
        let known = self.holds(&hash, instance);
        if !known {
            self.uncommitted.check(instance.session, charge)?;
        }
        match bytes {
            Some(bytes) => self.put(now, hash, instance, bytes)?,
            None => self.link(now, hash, instance)?,
        }
        if !known {
            self.uncommitted.add(hash, instance, charge);
        }
        Ok(())
    }

    /// The namespace keeps these bytes here, whatever becomes of that upload: its session is charged no longer.
    pub fn settle_upload(&mut self, hash: &ChunkHash, instance: Instance) {
        self.uncommitted.settle(hash, instance);
    }

    /// What is charged to the session of its uploads with counters in that range.
    pub fn uncommitted(&self, session: SessionId, counters: Range<u64>) -> Vec<(ChunkHash, Instance)> {
        self.uncommitted.between(session, counters)
    }

    /// What the session has here that it has not committed.
    pub fn uncommitted_of(&self, session: SessionId) -> u64 {
        self.uncommitted.of(session)
    }

    /// Keeps the bytes under their hash for this upload. Idempotent. Errors: `Corrupt`, `Full`, `InvalidArgument` for a length that
    /// no chunk has, `Busy` for too many uploads of the same bytes.
    pub fn put(&mut self, now: Time, hash: ChunkHash, instance: Instance, bytes: Bytes) -> Result<(), Status> {
        if bytes.is_empty() || bytes.len() > CHUNK_BYTES_MAX {
            return Err(Status::InvalidArgument);
        }
        // Equal to what is there already: a comparison is cheaper than a hash. Unequal: one of the two is bad.
        if self.chunks.get(&hash).is_some_and(|chunk| chunk.bytes == bytes) {
            return self.link(now, hash, instance);
        }
        let groups = GroupHashes::of(&bytes);
        let found = groups.as_ref().map_or_else(|| ChunkHash::of(&bytes), GroupHashes::root);
        if found != hash {
            return Err(Status::Corrupt);
        }
        if let Some(chunk) = self.chunks.get_mut(&hash) {
            chunk.bytes = owned(bytes);
            return self.link(now, hash, instance);
        }
        let mut chunk = Chunk { bytes, groups, instances: Instances::of(instance) };
        if self.usage.charged + chunk.charge() > self.usage.budget {
            return Err(Status::Full);
        }
        chunk.bytes = owned(std::mem::take(&mut chunk.bytes));
        self.usage.charged += chunk.charge();
        self.usage.stored += chunk.bytes.len() as u64;
        self.usage.chunks += 1;
        self.usage.instances += 1;
        self.chunks.insert(hash, chunk);
        self.audit.insert(now, (hash, instance));
        self.forget_loss(&hash);
        Ok(())
    }

    /// Counts one more upload of bytes that are here already. Idempotent. Errors: `UnknownChunk`, `Full`, `Busy`.
    pub fn link(&mut self, now: Time, hash: ChunkHash, instance: Instance) -> Result<(), Status> {
        let chunk = self.chunks.get_mut(&hash).ok_or(Status::UnknownChunk)?;
        if chunk.instances.contains(&instance) {
            return Ok(());
        }
        if chunk.instances.len() >= INSTANCES_PER_CHUNK_MAX {
            return Err(Status::Busy);
        }
        if self.usage.charged + INSTANCE_OVERHEAD_BYTES > self.usage.budget {
            return Err(Status::Full);
        }
        chunk.instances.insert(instance);
        self.usage.charged += INSTANCE_OVERHEAD_BYTES;
        self.usage.instances += 1;
        self.audit.insert(now, (hash, instance));
        Ok(())
    }

    /// Bytes of a chunk, widened to what can be verified. Errors: `UnknownChunk`, `InvalidArgument` for a range without a byte of it.
    pub fn get(&self, hash: &ChunkHash, range: ByteRange) -> Result<Part, Status> {
        let chunk = self.chunks.get(hash).ok_or(Status::UnknownChunk)?;
        let range = widen(range, chunk.bytes.len() as u64);
        if range.length == 0 {
            return Err(Status::InvalidArgument);
        }
        let proof = chunk.groups.as_ref().map(|groups| groups.proof(range)).unwrap_or_default();
        let bytes = chunk.bytes.slice(range.offset as usize..range.end() as usize);
        Ok(Part { range, total: chunk.bytes.len() as u32, proof, bytes })
    }

    /// Forgets an upload, and the bytes with the last one. Idempotent; tells whether the upload was known.
    pub fn delete(&mut self, hash: &ChunkHash, instance: Instance, check: InstanceCheck) -> bool {
        if check == InstanceCheck::Skipped {
            return self.drop_chunk(hash).is_some();
        }
        let Some(chunk) = self.chunks.get_mut(hash) else { return false };
        if !chunk.instances.contains(&instance) {
            return false;
        }
        if chunk.instances.len() == 1 {
            self.drop_chunk(hash);
            return true;
        }
        chunk.instances.remove(&instance);
        self.usage.charged -= INSTANCE_OVERHEAD_BYTES;
        self.usage.instances -= 1;
        self.forget_upload((*hash, instance));
        true
    }

    /// The namespace references these bytes under `live`: an upload that turned out surplus becomes that one.
    pub fn refile(&mut self, hash: &ChunkHash, surplus: Instance, live: Instance) {
        let Some(chunk) = self.chunks.get_mut(hash) else { return };
        if surplus == live || !chunk.instances.remove(&surplus) {
            return;
        }
        if !chunk.instances.insert(live) {
            self.usage.charged -= INSTANCE_OVERHEAD_BYTES;
            self.usage.instances -= 1;
        }
        self.forget_upload((*hash, surplus));
        self.confirm((*hash, live));
    }

    /// A reader received bytes that did not match. Hashes the copy again; a bad one is dropped, and listed as lost. Tells whether it was.
    pub fn suspect(&mut self, hash: &ChunkHash) -> bool {
        if self.chunks.get(hash).is_none_or(|chunk| chunk.is_sound(hash)) {
            return false;
        }
        let Some(chunk) = self.drop_chunk(hash) else { return false };
        self.scrub.found_corrupt();
        for &instance in chunk.instances.iter() {
            // Beyond the bound the reader's next attempt finds the copy missing, which is as good, only later.
            if self.lost.len() < LOST_REPORTS_MAX {
                self.lost.insert((*hash, instance));
            }
        }
        true
    }

    /// Hashes the next chunk again, if one is due: at most one per call. Gives the hash of a bad copy, which is dropped and listed as lost.
    pub fn scrub(&mut self, now: Time) -> Option<ChunkHash> {
        let position = self.scrub.position(now, self.usage.chunks)?;
        let from = position.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = self.chunks.range((from, Bound::Unbounded)).next();
        if next.is_none() {
            self.scrub.wrap();
            next = self.chunks.first_key_value();
        }
        let (hash, length) = next.map(|(hash, chunk)| (*hash, chunk.bytes.len() as u64))?;
        self.scrub.visited(now, hash, length, scrub::cost(self.usage.chunks, self.usage.stored));
        self.suspect(&hash).then_some(hash)
    }

    /// When [`Self::scrub`] next has something to do.
    pub fn next_scrub(&self) -> Time {
        self.scrub.next(self.usage.chunks)
    }

    /// What was hashed again so far, and how many copies were bad.
    pub fn scrubbed(&self) -> Scrubbed {
        self.scrub.done()
    }

    /// Hash all chunks again as fast as turns allow.
    pub fn scrub_all(&mut self) {
        self.scrub.hasten(self.usage.chunks);
    }

    /// Copies to report as lost, at most `max`; the same ones until acknowledged.
    pub fn lost(&self, max: usize) -> Vec<(ChunkHash, Instance)> {
        self.lost.iter().take(max).copied().collect()
    }

    /// The leader knows of these losses.
    pub fn acknowledge_lost(&mut self, items: &[(ChunkHash, Instance)]) {
        items.iter().for_each(|item| _ = self.lost.remove(item));
    }

    /// Uploads to ask the namespace about now. Ask once per call: they come again after a while unless [`Self::on_verdicts`] settles them.
    pub fn audit_batch(&mut self, now: Time, max: usize) -> Vec<(ChunkHash, Instance)> {
        self.audit.batch(now, max)
    }

    /// When [`Self::audit_batch`] next has something.
    pub fn next_audit(&self, now: Time) -> Time {
        self.audit.next(now)
    }

    /// Ask about everything soon: a new leader may have lost what the old one meant to delete.
    pub fn restart_audit(&mut self, now: Time) {
        self.audit.restart(now);
    }

    /// What the namespace said about `items`, one verdict each; missing ones count as unanswered.
    pub fn on_verdicts(&mut self, now: Time, items: &[(ChunkHash, Instance)], verdicts: &[Verdict], check: InstanceCheck) {
        for (&(hash, instance), verdict) in items.iter().zip(verdicts) {
            // Deleted since it was asked about: scheduling it would bring it back.
            if !self.holds(&hash, instance) {
                continue;
            }
            match *verdict {
                Verdict::Live(live) if live == instance => self.confirm((hash, instance)),
                Verdict::Live(live) => self.refile(&hash, instance, live),
                Verdict::Pending => self.audit.postpone(now, (hash, instance)),
                Verdict::Garbage => _ = self.delete(&hash, instance, check),
            }
        }
    }

    /// Ask the namespace about this upload soon.
    pub fn ask_about(&mut self, now: Time, hash: &ChunkHash, instance: Instance) {
        if self.holds(hash, instance) {
            self.audit.postpone(now, (*hash, instance));
        }
    }

    /// Whether this upload of the chunk is kept here.
    pub fn holds(&self, hash: &ChunkHash, instance: Instance) -> bool {
        self.chunks.get(hash).is_some_and(|chunk| chunk.instances.contains(&instance))
    }

    /// Whether the chunk's bytes are here, under whichever upload.
    pub fn contains(&self, hash: &ChunkHash) -> bool {
        self.chunks.contains_key(hash)
    }

    /// What is held and charged.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Takes note that the chunk is not here though the namespace says so: it is listed as lost, if it really is not. Tells whether.
    pub fn note_missing(&mut self, hash: &ChunkHash, instance: Instance) -> bool {
        if self.contains(hash) {
            return false;
        }
        if self.lost.len() < LOST_REPORTS_MAX {
            self.lost.insert((*hash, instance));
        }
        true
    }

    /// The uploads behind that one, in order.
    pub fn uploads_after(&self, after: Option<(ChunkHash, Instance)>) -> impl Iterator<Item = (ChunkHash, Instance)> {
        let from = after.map_or(Bound::Unbounded, |(hash, _)| Bound::Included(hash));
        self.chunks.range((from, Bound::Unbounded)).flat_map(move |(hash, chunk)| {
            let behind = after.filter(|(first, _)| first == hash).map(|(_, instance)| instance);
            chunk.instances.behind(behind).map(|instance| (*hash, *instance))
        })
    }

    /// Every upload of every chunk, in order.
    pub fn uploads(&self) -> impl Iterator<Item = (ChunkHash, Instance)> {
        self.chunks.iter().flat_map(|(hash, chunk)| chunk.instances.iter().map(|instance| (*hash, *instance)))
    }

    /// Flips one bit of a chunk, as bad memory would; for tests, and for `dfs debug flip`. Tells whether the chunk is here.
    pub fn flip_bit(&mut self, hash: &ChunkHash, bit: u64) -> bool {
        let Some(chunk) = self.chunks.get_mut(hash) else { return false };
        let mut bytes = chunk.bytes.to_vec();
        let at = (bit / 8 % bytes.len() as u64) as usize;
        bytes[at] ^= 1 << (bit % 8);
        chunk.bytes = Bytes::from(bytes);
        true
    }

    /// Forgets a chunk without a word, as a fault of the program would; for `dfs debug drop`. Tells whether the chunk was here.
    pub fn forget(&mut self, hash: &ChunkHash) -> bool {
        self.drop_chunk(hash).is_some()
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        let sum = |of: fn(&Chunk) -> u64| self.chunks.values().map(of).sum::<u64>();
        assert_eq!(self.usage.stored, sum(|chunk| chunk.bytes.len() as u64), "stored bytes equal the sum of chunks");
        assert_eq!(self.usage.charged, sum(Chunk::charge), "charged bytes equal the sum of charges");
        assert_eq!(self.usage.instances, sum(|chunk| chunk.instances.len() as u64), "instances are counted");
        assert_eq!(self.usage.chunks, self.chunks.len() as u64, "chunks are counted");
        assert!(self.usage.charged <= self.usage.budget, "the budget is kept");
        assert!(self.chunks.values().all(|chunk| !chunk.instances.is_empty()), "no bytes without an upload");
        assert!(self.lost.len() <= LOST_REPORTS_MAX, "reports of losses are bounded");
        self.audit.check_invariants(self.uploads());
        self.uncommitted.check_invariants(|hash, instance| self.holds(hash, instance));
    }

    fn drop_chunk(&mut self, hash: &ChunkHash) -> Option<Chunk> {
        let chunk = self.chunks.remove(hash)?;
        self.usage.charged -= chunk.charge();
        self.usage.stored -= chunk.bytes.len() as u64;
        self.usage.chunks -= 1;
        self.usage.instances -= chunk.instances.len() as u64;
        chunk.instances.iter().for_each(|instance| self.forget_upload((*hash, *instance)));
        Some(chunk)
    }

    /// The upload is referenced.
    fn confirm(&mut self, upload: Upload) {
        self.audit.confirm(upload);
        self.uncommitted.settle(&upload.0, upload.1);
    }

    /// The upload is here no more.
    fn forget_upload(&mut self, upload: Upload) {
        self.audit.remove(&upload);
        self.uncommitted.settle(&upload.0, upload.1);
    }

    /// Good bytes are here again: a loss reported now would take this copy out of the namespace's list of holders.
    fn forget_loss(&mut self, hash: &ChunkHash) {
        let lowest = Instance { session: SessionId(0), counter: 0 };
        let highest = Instance { session: SessionId(u64::MAX), counter: u64::MAX };
        let reported: Vec<_> = self.lost.range((*hash, lowest)..=(*hash, highest)).copied().collect();
        reported.iter().for_each(|item| _ = self.lost.remove(item));
    }
}

/// Bytes in an allocation of their own that takes no more than it is charged for: a slice of a receive buffer would keep all of it alive. To
/// shorten a long one costs no copy as a rule: the allocator cuts it at a page.
fn owned(bytes: Bytes) -> Bytes {
    let mut vec = Vec::from(bytes); // Reuses the allocation if nobody shares it, copies otherwise.
    if allocation(vec.capacity() as u64) > allocation(vec.len() as u64) {
        vec.shrink_to_fit();
    }
    Bytes::from(vec)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
