//! Chunk bytes from holders: one round over them per fetch, verified, shared by everyone who wants the same bytes.
//!
//! A holder is given time while it answers anything at all; one that is silent is left for the next, not cancelled.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::chunk_tree;
use crate::links::Ticket;
use crate::status::Status;
use crate::time::Time;
use crate::types::{ByteRange, ChunkHash, NodeId};
use crate::wire::message::{Request, Response};
use crate::wire::namespace::ChunkPlace;

use super::core::{Alarm, Core, Internal, Purpose};

/// One range of one chunk on its way.
pub(super) struct Fetch {
    hash: ChunkHash,
    total: u64,
    range: ByteRange,
    holders: Vec<NodeId>,
    tried: BTreeSet<NodeId>,
    pending: BTreeMap<Ticket, (NodeId, Time)>,
    /// Whether every holder so far said that it cannot serve these bytes, as opposed to nothing.
    definitive: bool,
    waiters: BTreeSet<u64>,
    deadline: Time,
}

impl Fetch {
    /// Bytes asked for and not yet come.
    pub(super) fn outstanding(&self) -> u64 {
        self.range.length * self.pending.len() as u64
    }
}

impl Core {
    /// Fetches part of a chunk; for a job `Internal::Fetched` follows. `range` is widened to what can be verified.
    pub(super) fn fetch(&mut self, now: Time, job: Option<u64>, place: &ChunkPlace, range: ByteRange) {
        let total = place.length as u64;
        let range = chunk_tree::widen(range, total);
        let covers = |fetch: &Fetch| {
            fetch.hash == place.hash && fetch.range.offset <= range.offset && fetch.range.end() >= range.end() && fetch.total == total
        };
        if let Some(fetch) = self.fetches.values_mut().find(|fetch| covers(fetch)) {
            fetch.waiters.extend(job);
            return;
        }
        let id = self.fresh_id();
        let fetch = Fetch {
            hash: place.hash,
            total,
            range,
            holders: place.holders.clone(),
            tried: BTreeSet::new(),
            pending: BTreeMap::new(),
            definitive: true,
            waiters: job.into_iter().collect(),
            deadline: now + self.config.op_timeout,
        };
        self.fetches.insert(id, fetch);
        self.advance_fetch(now, id);
    }

    /// Bytes on their way for reads.
    pub(super) fn fetching_bytes(&self) -> u64 {
        self.fetches.values().map(Fetch::outstanding).sum()
    }

    pub(super) fn on_fetch_answer(&mut self, now: Time, id: u64, ticket: Ticket, from: NodeId, response: Response, payload: Bytes) {
        self.note_answer(now, from);
        let Some((node, _)) = self.settle_fetch(id, ticket) else { return };
        let fetch = &self.fetches[&id];
        let (hash, range, wanted) = match &response {
            Response::Bytes { range, total, .. } if *total as u64 == fetch.total => (fetch.hash, *range, fetch.range),
            _ => return self.on_bad_bytes(now, id, node),
        };
        let Response::Bytes { proof, .. } = &response else { return };
        let covers = range.offset <= wanted.offset && range.end() >= wanted.end();
        if !covers || chunk_tree::verify(&hash, fetch.total, range, &payload, proof).is_err() {
            return self.on_bad_bytes(now, id, node);
        }
        self.cache.insert(hash, range.offset, payload.clone());
        self.end_fetch(id, Ok((range.offset, payload)));
    }

    /// The copy does not match: pass it over, and have its holder look at it.
    fn on_bad_bytes(&mut self, now: Time, id: u64, node: NodeId) {
        let hash = self.fetches[&id].hash;
        tracing::warn!(?hash, %node, "bytes do not match their hash; passing the copy over");
        if let Some(peer) = self.peer(node) {
            let timeout = self.config.op_timeout;
            self.send(now, &peer, Request::Suspect { hash }, Bytes::new(), timeout, Purpose::Told);
        }
        self.advance_fetch(now, id);
    }

    pub(super) fn on_fetch_failure(&mut self, now: Time, id: u64, ticket: Ticket, status: Status) {
        let Some((node, _)) = self.settle_fetch(id, ticket) else { return };
        match status {
            Status::UnknownChunk | Status::Corrupt => self.note_answer(now, node),
            _ => {
                self.note_silence(now, node);
                if let Some(fetch) = self.fetches.get_mut(&id) {
                    fetch.definitive = false;
                }
            }
        }
        self.advance_fetch(now, id);
    }

    pub(super) fn on_fetch_alarm(&mut self, now: Time, id: u64) {
        self.advance_fetch(now, id);
    }

    /// Asks the best holder left, unless one that was asked is still at work.
    fn advance_fetch(&mut self, now: Time, id: u64) {
        let Some(fetch) = self.fetches.get(&id) else { return };
        let late: Vec<NodeId> =
            fetch.pending.values().filter(|(node, sent)| self.is_late(now, *node, *sent)).map(|(node, _)| *node).collect();
        let at_work = fetch.pending.len() - late.len();
        late.iter().for_each(|node| self.note_silence(now, *node));
        if at_work == 0 {
            self.ask_next_holder(now, id);
        }
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        if fetch.pending.is_empty() {
            let status = if fetch.definitive { Status::UnknownChunk } else { Status::Unavailable };
            return self.end_fetch(id, Err(status));
        }
        if now >= fetch.deadline {
            return self.end_fetch(id, Err(Status::TimedOut));
        }
        let at = (now + self.config.timing.attempt / 2).min(fetch.deadline);
        self.arm(at, Alarm::Fetch(id));
    }

    fn ask_next_holder(&mut self, now: Time, id: u64) {
        let fetch = &self.fetches[&id];
        let mut left: Vec<(bool, u64, u64, NodeId)> = Vec::new();
        let mut unknown = false;
        for node in fetch.holders.iter().copied().filter(|node| !fetch.tried.contains(node)) {
            unknown |= self.map.as_ref().is_none_or(|map| map.member(node).is_none());
            if self.peer(node).is_some() {
                let load = self.loads.get(&node).copied().unwrap_or_default();
                left.push((load.suspect_until > now, load.outstanding, self.random.next(), node));
            }
        }
        if unknown {
            // A holder that the map does not list may be newer than the map.
            self.fetches.get_mut(&id).expect("looked up above").definitive = false;
            self.refresh_map(now);
        }
        let Some((_, _, _, node)) = left.into_iter().min() else { return };
        let peer = self.peer(node).expect("listed above as living");
        let fetch = self.fetches.get_mut(&id).expect("looked up above");
        fetch.tried.insert(node);
        let request = Request::Get { hash: fetch.hash, range: fetch.range };
        let (length, timeout) = (fetch.range.length, fetch.deadline.since(now));
        let ticket = self.send(now, &peer, request, Bytes::new(), timeout, Purpose::Fetch(id));
        self.loads.entry(node).or_default().outstanding += length;
        self.fetches.get_mut(&id).expect("looked up above").pending.insert(ticket, (node, now));
    }

    fn settle_fetch(&mut self, id: u64, ticket: Ticket) -> Option<(NodeId, Time)> {
        let fetch = self.fetches.get_mut(&id)?;
        let settled = fetch.pending.remove(&ticket)?;
        let length = fetch.range.length;
        self.lighten(settled.0, length);
        Some(settled)
    }

    fn end_fetch(&mut self, id: u64, result: Result<(u64, Bytes), Status>) {
        let Some(fetch) = self.drop_fetch(id) else { return };
        for job in fetch.waiters {
            let (offset, result) = match &result {
                Ok((offset, bytes)) => (*offset, Ok(bytes.clone())),
                Err(status) => (fetch.range.offset, Err(*status)),
            };
            self.internal.push_back(Internal::Fetched { job, hash: fetch.hash, offset, result });
        }
    }

    /// Takes a fetch away with everything that it had under way.
    pub(super) fn drop_fetch(&mut self, id: u64) -> Option<Fetch> {
        let fetch = self.fetches.remove(&id)?;
        self.disarm(Alarm::Fetch(id));
        for (ticket, (node, _)) in &fetch.pending {
            self.links.cancel(*ticket);
            self.tickets.remove(ticket);
            self.lighten(*node, fetch.range.length);
        }
        Some(fetch)
    }

    /// Whether a request has waited long while its node answered nothing at all.
    pub(super) fn is_late(&self, now: Time, node: NodeId, sent: Time) -> bool {
        let answered = self.loads.get(&node).map_or(Time(0), |load| load.answered);
        now.since(sent.max(answered)) >= self.config.timing.attempt
    }

    pub(super) fn note_answer(&mut self, now: Time, node: NodeId) {
        let load = self.loads.entry(node).or_default();
        load.answered = now;
        load.suspect_until = Time(0);
    }

    pub(super) fn note_silence(&mut self, now: Time, node: NodeId) {
        let until = now + 2 * self.config.timing.attempt;
        self.loads.entry(node).or_default().suspect_until = until;
    }

    pub(super) fn lighten(&mut self, node: NodeId, bytes: u64) {
        if let Some(load) = self.loads.get_mut(&node) {
            assert!(load.outstanding >= bytes, "more came from {node} than was asked");
            load.outstanding -= bytes;
        }
    }
}
