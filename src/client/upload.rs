//! Chunks to nodes: to all owners at once, past the full and the unreachable, until there are receipts enough.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::limits;
use crate::links::Ticket;
use crate::placement;
use crate::status::Status;
use crate::time::Time;
use crate::types::{ChunkHash, Epoch, Instance, NodeId};
use crate::wire::message::{Request, Response};
use crate::wire::namespace::ChunkClaim;

use super::core::{Alarm, Core, Internal, Phase, Purpose};

struct Attempt {
    node: NodeId,
    /// The map by which the node was chosen.
    epoch: Epoch,
    sent: Time,
    /// Names bytes that the node should already have, without sending them.
    linked: bool,
}

/// One chunk on its way to its holders.
pub(super) struct Upload {
    job: u64,
    hash: ChunkHash,
    pub(super) bytes: Bytes,
    instance: Instance,
    receipts: BTreeSet<NodeId>,
    tried: BTreeSet<NodeId>,
    pending: BTreeMap<Ticket, Attempt>,
    link_first: bool,
    full: bool,
    unreachable: bool,
    rounds: u32,
    /// When a new round over the nodes may begin.
    retry_at: Time,
    deadline: Time,
    pub(super) started: bool,
    /// Until then nodes that say "full" are asked again.
    full_until: Time,
}

/// What became of an upload.
pub(super) struct Uploaded {
    pub(super) hash: ChunkHash,
    pub(super) result: Result<ChunkClaim, Status>,
}

impl Upload {
    /// Bytes sent and not yet acknowledged.
    pub(super) fn outstanding(&self) -> u64 {
        self.bytes.len() as u64 * self.pending.len() as u64
    }
}

impl Core {
    /// Puts a chunk; `Internal::Uploaded` follows. `receipts`: nodes that hold this instance already.
    pub(super) fn upload(&mut self, now: Time, job: u64, hash: ChunkHash, bytes: Bytes, instance: Instance, receipts: &[NodeId]) {
        let id = self.fresh_id();
        let upload = Upload {
            job,
            hash,
            bytes,
            instance,
            receipts: receipts.iter().copied().collect(),
            tried: BTreeSet::new(),
            pending: BTreeMap::new(),
            link_first: self.put_lately.0.contains(&hash),
            full: false,
            unreachable: false,
            rounds: 0,
            retry_at: now,
            deadline: Time::NEVER,
            started: false,
            full_until: Time::NEVER,
        };
        self.uploads.insert(id, upload);
        self.uploads_waiting.push_back(id);
        self.start_uploads(now);
    }

    /// Starts what fits into the bound; one always may.
    fn start_uploads(&mut self, now: Time) {
        while let Some(&id) = self.uploads_waiting.front() {
            let Some(upload) = self.uploads.get_mut(&id) else {
                self.uploads_waiting.pop_front();
                continue;
            };
            let length = upload.bytes.len();
            if self.upload_bytes > 0 && self.upload_bytes + length > limits::CLIENT_UPLOAD_BYTES_MAX {
                return;
            }
            self.uploads_waiting.pop_front();
            upload.started = true;
            upload.deadline = now + self.config.op_timeout;
            upload.full_until = now + limits::FULL_PATIENCE;
            self.upload_bytes += length;
            self.advance_upload(now, id);
        }
    }

    pub(super) fn on_upload_answer(&mut self, now: Time, id: u64, ticket: Ticket, result: Result<Response, Status>) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        let Some(Attempt { node, epoch, linked, .. }) = upload.pending.remove(&ticket) else { return };
        let length = upload.bytes.len() as u64;
        match result {
            // The receipt names its incarnation, and it must be the one that was asked.
            Ok(Response::Receipt { node: named }) if named == node => {
                upload.receipts.insert(node);
                upload.deadline = now + self.config.op_timeout;
            }
            Err(Status::UnknownChunk) if linked => {
                upload.link_first = false;
                upload.tried.remove(&node);
            }
            Err(Status::Full) => upload.full = true,
            Err(Status::StaleMap) => {
                upload.unreachable = true;
                // The newer map may have come meanwhile.
                if self.map.as_ref().is_some_and(|map| map.epoch <= epoch) {
                    self.refresh_map(now);
                }
            }
            _ => upload.unreachable = true,
        }
        match result {
            Err(Status::TimedOut | Status::Disconnected) => self.note_silence(now, node),
            _ => self.note_answer(now, node),
        }
        self.lighten(node, length);
        self.advance_upload(now, id);
    }

    /// Decides from what is: enough receipts, or whom to ask next, or that it cannot be done.
    pub(super) fn advance_upload(&mut self, now: Time, id: u64) {
        let Some(upload) = self.uploads.get(&id) else { return };
        if !upload.started {
            return;
        }
        let Some(map) = &self.map else { return };
        let needed = map.receipts_needed();
        let living = upload.receipts.iter().filter(|node| map.is_living(**node)).count();
        if needed > 0 && living >= needed {
            return self.end_upload(now, id, Ok(()));
        }
        if needed == 0 {
            return self.end_upload(now, id, Err(Status::NoSpace));
        }
        let late: Vec<NodeId> =
            upload.pending.values().filter(|attempt| self.is_late(now, attempt.node, attempt.sent)).map(|attempt| attempt.node).collect();
        let at_work = upload.pending.len() - late.len();
        late.into_iter().for_each(|node| self.note_silence(now, node));
        self.ask_owners(now, id, needed.saturating_sub(living + at_work));
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        if now >= upload.deadline {
            let status = if upload.full && upload.pending.is_empty() { Status::NoSpace } else { Status::Unavailable };
            return self.end_upload(now, id, Err(status));
        }
        if upload.pending.is_empty() && now >= upload.retry_at {
            // Nodes drop what was deleted a moment after it counts as free, so full is believed only when it lasts.
            if upload.full && !upload.unreachable && now >= upload.full_until {
                return self.end_upload(now, id, Err(Status::NoSpace));
            }
            // Everyone was asked in vain: once more from the first, after a pause.
            upload.tried.clear();
            (upload.full, upload.unreachable) = (false, false);
            upload.rounds += 1;
            let rounds = upload.rounds;
            let retry_at = now + self.backoff(rounds);
            self.uploads.get_mut(&id).expect("looked up above").retry_at = retry_at;
        }
        let upload = &self.uploads[&id];
        let check = now + self.config.timing.attempt / 2;
        let at = if upload.pending.is_empty() { upload.retry_at } else { check };
        self.arm(at.min(upload.deadline), Alarm::Upload(id));
    }

    /// Sends to the next `count` nodes in the chunk's order: those that answer before those that were silent, and among them those of a
    /// zone that holds no copy yet before the others, as the order itself has it while nobody is passed over.
    fn ask_owners(&mut self, now: Time, id: u64, count: usize) {
        let upload = &self.uploads[&id];
        // What belongs to no session that the cluster knows is garbage: a node would drop it after having given its receipt.
        if count == 0 || now < upload.retry_at || self.phase != Phase::Ready {
            return;
        }
        let Some(map) = &self.map else { return };
        let order = self.placement.order(map, placement::group_of(&upload.hash));
        let mut left: Vec<NodeId> =
            order.iter().copied().filter(|node| !upload.tried.contains(node) && !upload.receipts.contains(node)).collect();
        let zone = |node: &NodeId| map.member(*node).map(|member| member.zone.clone()).filter(|zone| !zone.is_empty());
        let silent = |node: &NodeId| self.loads.get(node).is_some_and(|load| load.suspect_until > now);
        let at_work = upload.pending.values().map(|attempt| attempt.node).filter(|node| !silent(node));
        let mut covered: BTreeSet<String> = upload.receipts.iter().copied().chain(at_work).filter_map(|node| zone(&node)).collect();
        let mut chosen = Vec::new();
        while chosen.len() < count
            && let Some(best) =
                (0..left.len()).min_by_key(|&at| (silent(&left[at]), zone(&left[at]).is_some_and(|zone| covered.contains(&zone)), at))
        {
            let node = left.remove(best);
            covered.extend(zone(&node));
            chosen.push(node);
        }
        let epoch = map.epoch;
        for node in chosen {
            self.put(now, id, node, epoch);
        }
    }

    /// The session is open: what was asked for before may begin.
    pub(super) fn wake_uploads(&mut self, now: Time) {
        for id in self.uploads.keys().copied().collect::<Vec<_>>() {
            if let Some(upload) = self.uploads.get_mut(&id) {
                upload.retry_at = now;
            }
            self.advance_upload(now, id);
        }
    }

    fn put(&mut self, now: Time, id: u64, node: NodeId, epoch: Epoch) {
        let Some(peer) = self.peer(node) else { return };
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        upload.tried.insert(node);
        let (hash, instance, linked) = (upload.hash, upload.instance, upload.link_first);
        let (request, payload) = if linked {
            (Request::LinkChunk { epoch, hash, instance }, Bytes::new())
        } else {
            (Request::Put { epoch, hash, instance }, upload.bytes.clone())
        };
        let length = upload.bytes.len() as u64;
        let timeout = self.config.op_timeout;
        let ticket = self.send(now, &peer, request, payload, timeout, Purpose::Upload(id));
        self.loads.entry(node).or_default().outstanding += length;
        if let Some(upload) = self.uploads.get_mut(&id) {
            upload.pending.insert(ticket, Attempt { node, epoch, sent: now, linked });
        }
    }

    fn end_upload(&mut self, now: Time, id: u64, result: Result<(), Status>) {
        let Some(upload) = self.drop_upload(id) else { return };
        if result.is_ok() {
            self.remember_put(upload.hash);
        }
        let living: Vec<NodeId> = upload.receipts.into_iter().filter(|node| self.peer(*node).is_some()).take(limits::HOLDERS_MAX).collect();
        let length = upload.bytes.len() as u32;
        let claim = ChunkClaim { hash: upload.hash, length, instance: upload.instance, receipts: living };
        let uploaded = Uploaded { hash: upload.hash, result: result.map(|()| claim) };
        self.internal.push_back(Internal::Uploaded { job: upload.job, uploaded });
        self.start_uploads(now);
    }

    /// Ends the uploads of a job that nobody waits for any more.
    pub(super) fn drop_uploads_of(&mut self, now: Time, job: u64) {
        let of_job: Vec<u64> = self.uploads.iter().filter(|(_, upload)| upload.job == job).map(|(id, _)| *id).collect();
        if of_job.is_empty() {
            return;
        }
        for id in of_job {
            self.drop_upload(id);
        }
        self.start_uploads(now);
    }

    fn drop_upload(&mut self, id: u64) -> Option<Upload> {
        let upload = self.uploads.remove(&id)?;
        self.disarm(Alarm::Upload(id));
        for (ticket, attempt) in &upload.pending {
            self.links.cancel(*ticket);
            self.tickets.remove(ticket);
            self.lighten(attempt.node, upload.bytes.len() as u64);
        }
        if upload.started {
            self.upload_bytes -= upload.bytes.len();
        }
        Some(upload)
    }

    fn remember_put(&mut self, hash: ChunkHash) {
        let (known, order) = &mut self.put_lately;
        if !known.insert(hash) {
            return;
        }
        order.push_back(hash);
        if order.len() > limits::CLIENT_UPLOADS_REMEMBERED {
            let oldest = order.pop_front().expect("it is over its bound");
            known.remove(&oldest);
        }
    }
}
