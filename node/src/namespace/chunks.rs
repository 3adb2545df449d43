//! Chunk records: which upload of a chunk is live, who holds it, how many extents refer to it; and what is said about other uploads.
//!
//! All holders are recorded by name. A node that is not recorded never hears of the chunk's deletion, therefore it is never told
//! that its copy counts.

use std::collections::BTreeMap;

use dfs::capacity::chunk_charge;
use dfs::cluster_map::ClusterMap;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{ChunkHash, Instance, NodeId, SessionId};
use dfs::wire::message::Verdict;
use dfs::wire::namespace::{ChunkClaim, ChunkPlace};
use serde::{Deserialize, Serialize};

use super::Namespace;
use super::command::Effect;
use super::content::{Kind, Shift};
use super::digest::Digest;
use super::extents::References;

/// A chunk that at least one extent refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkRecord {
    /// The upload under which holders keep it and by which it will be deleted.
    pub instance: Instance,
    pub length: u32,
    /// Extents that refer to it; never 0.
    pub references: u64,
    /// Incarnations that gave receipts, sorted; the dead stay until the list is touched.
    pub holders: Box<[NodeId]>,
}

/// The claims of one operation, by chunk.
pub(super) type Claims<'a> = BTreeMap<ChunkHash, &'a ChunkClaim>;

impl ChunkRecord {
    pub fn digest(&self, hash: &ChunkHash) -> u64 {
        let digest = Digest::new(4).bytes(&hash.0).word(self.instance.session.0).word(self.instance.counter);
        let digest = digest.word(u64::from(self.length)).word(self.references);
        self.holders.iter().fold(digest, |digest, node| digest.word(node.0)).end()
    }

    pub fn weight(&self) -> u64 {
        Self::weight_with(self.holders.len())
    }

    fn weight_with(holders: usize) -> u64 {
        176 + 8 * holders as u64
    }
}

/// Living nodes of both lists, sorted, without repetition, at most as many as are recorded.
fn living_holders(map: &ClusterMap, recorded: &[NodeId], receipts: &[NodeId]) -> Vec<NodeId> {
    let mut holders: Vec<NodeId> = Vec::with_capacity(recorded.len() + receipts.len());
    for &node in recorded.iter().chain(receipts) {
        // Recorded ones come first: a holder once recorded is not crowded out, or its copy would be forgotten.
        if holders.len() < limits::HOLDERS_MAX && map.is_living(node) && !holders.contains(&node) {
            holders.push(node);
        }
    }
    holders.sort_unstable();
    holders
}

/// Gathers claims by chunk. Errors: `InvalidArgument` for too many, malformed or contradicting ones, or uploads of others.
pub(super) fn gather_claims(claims: &[ChunkClaim], session: SessionId) -> Result<Claims<'_>, Status> {
    if claims.len() > limits::WRITE_PATCHES_MAX {
        return Err(Status::InvalidArgument);
    }
    let mut gathered = Claims::new();
    for claim in claims {
        let sound = (1..=limits::CHUNK_BYTES_MAX).contains(&(claim.length as usize))
            && claim.instance.session == session
            && claim.receipts.len() <= limits::HOLDERS_MAX;
        if !sound || gathered.insert(claim.hash, claim).is_some() {
            return Err(Status::InvalidArgument);
        }
    }
    Ok(gathered)
}

impl Namespace {
    /// Every chunk that is referenced, with the nodes recorded to hold it.
    pub fn chunk_places(&self) -> impl Iterator<Item = ChunkPlace> {
        self.store.chunks().map(|(hash, record)| ChunkPlace {
            hash,
            length: record.length,
            instance: record.instance,
            holders: record.holders.to_vec(),
        })
    }

    /// The length of a chunk that an operation may name: one that is referenced, or one that it claims.
    pub(super) fn chunk_length(&self, hash: &ChunkHash, claims: &Claims) -> Result<u32, Status> {
        match (self.store.chunk(hash), claims.get(hash)) {
            (Some(chunk), Some(claim)) if chunk.length != claim.length => Err(Status::InvalidArgument),
            (Some(chunk), _) => Ok(chunk.length),
            (None, Some(claim)) => Ok(claim.length),
            (None, None) => Err(Status::InvalidArgument),
        }
    }

    /// Whether the claims for those chunks that gain references hold. Errors: `NoSpace` without storage nodes, `Conflict` for an
    /// upload that was given up or is spent (upload anew), `MissingReceipts`.
    pub(super) fn check_claims(&self, claims: &Claims, references: &References) -> Result<(), Status> {
        for (hash, claim) in claims {
            if !references.contains_key(hash) {
                continue;
            }
            let needed = self.header.map.receipts_needed();
            if needed == 0 {
                return Err(Status::NoSpace);
            }
            let live = self.store.chunk(hash);
            // An upload that was given up, or was live and deleted, may be gone on its holders; the one that is live is not.
            let session = self.store.session(claim.instance.session);
            let nameable = session.is_some_and(|session| session.may_name(claim.instance.counter));
            if !nameable && live.is_none_or(|chunk| chunk.instance != claim.instance) {
                return Err(Status::Conflict);
            }
            let recorded = live.map_or(&[][..], |chunk| &chunk.holders);
            if living_holders(&self.header.map, recorded, &claim.receipts).len() < needed {
                return Err(Status::MissingReceipts);
            }
        }
        Ok(())
    }

    /// By how much the operation makes the cluster fuller, if that still fits beside everything that is reserved. What is paid was
    /// accepted within a reservation and is never refused: should its chunks have been cut much smaller than was thought, because no two
    /// nodes had room for larger ones, the books are exceeded by what they cost more. Nor is refused what brings no bytes: a hole that is
    /// punched adds a record, and is meant to make room. Errors: `NoSpace`.
    pub(super) fn check_capacity(&self, claims: &Claims, references: &References, shift: Shift, kind: Kind) -> Result<u64, Status> {
        let (mut added, mut freed, mut brought) = (shift.added, shift.freed, 0);
        for (hash, &change) in references {
            match (self.store.chunk(hash), claims.get(hash)) {
                (None, Some(claim)) if change > 0 => {
                    added += chunk_charge(u64::from(claim.length)) + ChunkRecord::weight_with(claim.receipts.len());
                    brought += u64::from(claim.length);
                }
                (Some(chunk), _) if chunk.references as i64 + change == 0 => {
                    freed += chunk_charge(u64::from(chunk.length)) + chunk.weight();
                }
                _ => {}
            }
        }
        // Reserved space takes all bytes that fit into it. That many small chunks cost more than the one run for which was charged is
        // bounded by the extents of a slot, and undone by the next fold.
        if shift.filled > 0 && brought <= shift.filled {
            return Ok(0);
        }
        let growth = added.saturating_sub(freed);
        let room = match kind {
            Kind::Paid => u64::MAX,
            // Inline bytes have a bound of their own. A small write over what is there must not fail: a fold may have made the space that it was
            // reserved for a part of a chunk.
            Kind::Change if brought == 0 && !shift.reserves => u64::MAX,
            Kind::Change => self.spare(),
            Kind::New => self.spare_for_new(),
        };
        if (shift.brings || brought > 0) && growth > room {
            return Err(Status::NoSpace);
        }
        Ok(growth)
    }

    /// Applies what an operation adds to and takes from the references; claims have been checked.
    pub(super) fn apply_references(&mut self, references: References, claims: &Claims) {
        for (hash, change) in references {
            // Also of changes that come to nothing: the reference may lie elsewhere now.
            self.touched.note(hash, self.header.applied);
            let claim = claims.get(&hash);
            let old = self.store.chunk(&hash);
            if change == 0 && (claim.is_none() || old.is_none()) {
                continue;
            }
            let count = old.map_or(0, |chunk| chunk.references as i64) + change;
            let recorded = old.map_or(&[][..], |chunk| &chunk.holders);
            let holders = match claim {
                Some(claim) => living_holders(&self.header.map, recorded, &claim.receipts),
                None => recorded.to_vec(),
            };
            let (instance, length) = match (old, claim) {
                (Some(chunk), _) => (chunk.instance, chunk.length),
                (None, Some(claim)) => (claim.instance, claim.length),
                (None, None) => unreachable!("a reference to a chunk that has neither record nor claim"),
            };
            assert!(count >= 0, "more references given up than held");
            if count > 0 {
                let record = ChunkRecord { instance, length, references: count as u64, holders: holders.into() };
                self.store.put_chunk(hash, Some(record));
            } else {
                self.store.put_chunk(hash, None);
                self.spend(instance);
                let holders = living_holders(&self.header.map, &holders, &[]);
                self.effects.push(Effect::Deleted { hash, instance, holders });
            }
        }
    }

    /// The node lost its copies of these uploads.
    pub(super) fn lose(&mut self, node: NodeId, items: &[(ChunkHash, Instance)]) {
        for (hash, instance) in items.iter().take(limits::COMMAND_VISITS_MAX) {
            let Some(chunk) = self.store.chunk(hash) else { continue };
            // A report about an earlier upload says nothing about a copy that came later.
            if chunk.instance == *instance && chunk.holders.contains(&node) {
                let mut chunk = chunk.clone();
                chunk.holders = chunk.holders.iter().copied().filter(|&holder| holder != node).collect();
                self.store.put_chunk(*hash, Some(chunk));
            }
        }
    }

    /// What `node` should do with uploads that it holds.
    pub fn verdicts(&mut self, node: NodeId, items: &[(ChunkHash, Instance)]) -> Vec<Verdict> {
        items.iter().map(|(hash, instance)| self.verdict(node, hash, instance)).collect()
    }

    fn verdict(&mut self, node: NodeId, hash: &ChunkHash, instance: &Instance) -> Verdict {
        let recorded = self.store.chunk(hash).filter(|chunk| chunk.holders.binary_search(&node).is_ok()).map(|chunk| chunk.instance);
        let nameable = self.store.session(instance.session).is_some_and(|session| session.may_name(instance.counter));
        match recorded {
            Some(live) if live == *instance => Verdict::Live(live),
            // The session may yet name it with this node's receipt, also one that lost its race against a recorded upload.
            _ if nameable => Verdict::Pending,
            Some(live) => Verdict::Live(live),
            None if self.may_want_copy(node, hash) => Verdict::Pending,
            None => Verdict::Garbage,
        }
    }
}
