//! Snapshots of the namespace on their way to nodes that are behind the log, in slices paced by the receiver.
//!
//! One goes out at a time, since the namespace captures one state at a time. The first slice is the configuration, the rest the state.

use std::collections::BTreeSet;

use bytes::Bytes;

use dfs::limits;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{NodeId, Term};
use dfs::wire::codec;
use dfs::wire::message::Notice;

use super::Node;
use crate::namespace::SnapshotLoader;
use crate::raft::Configuration;

/// The header of one slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub id: u64,
    pub index: u64,
    pub term: Term,
    pub sequence: u32,
    pub last: bool,
}

#[derive(Debug)]
struct Outgoing {
    to: NodeId,
    id: u64,
    index: u64,
    term: Term,
    /// Slices below have been sent.
    next: u32,
    /// Slices below have arrived.
    arrived: u32,
    /// The last slice has been sent.
    ended: bool,
    heard: Time,
}

#[derive(Debug)]
struct Incoming {
    from: NodeId,
    id: u64,
    next: u32,
    configuration: Configuration,
    loader: SnapshotLoader,
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    wanted: BTreeSet<NodeId>,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
}

impl Transfers {
    /// The node is behind the log.
    pub fn want(&mut self, to: NodeId) {
        self.wanted.insert(to);
    }

    /// The receiver has taken the slices below `next`.
    pub fn on_progress(&mut self, now: Time, from: NodeId, id: u64, next: u32) {
        if let Some(outgoing) = self.outgoing.as_mut().filter(|outgoing| outgoing.to == from && outgoing.id == id) {
            outgoing.arrived = outgoing.arrived.max(next.min(outgoing.next));
            outgoing.heard = now;
        }
    }

    pub fn next_deadline(&self) -> Time {
        self.outgoing.as_ref().map_or(Time::NEVER, |outgoing| outgoing.heard + limits::SNAPSHOT_STALL_MAX)
    }
}

impl Node {
    /// Sends what the windows allow; begins and ends transfers.
    pub(super) fn pursue_transfers(&mut self) {
        if self.leading.is_none() {
            self.transfers.wanted.clear();
            if self.transfers.outgoing.take().is_some() {
                self.namespace.end_snapshot();
            }
            return;
        }
        if let Some(outgoing) = &self.transfers.outgoing {
            let delivered = outgoing.ended && outgoing.arrived == outgoing.next;
            if delivered || self.now >= outgoing.heard + limits::SNAPSHOT_STALL_MAX || !self.map.is_living(outgoing.to) {
                self.end_transfer(delivered);
            }
        }
        if self.transfers.outgoing.is_none() {
            self.begin_transfer();
        }
        self.send_slices();
    }

    fn begin_transfer(&mut self) {
        let Some(to) = self.transfers.wanted.pop_first() else { return };
        let Some(group) = &mut self.group else { return };
        let Ok(configuration) = codec::encode(group.configuration(), limits::CONTROL_BODY_BYTES_MAX) else { return };
        let index = self.namespace.begin_snapshot();
        group.snapshot_begun(to, index);
        let (id, term) = (self.random.next_id(), self.applied_term);
        tracing::info!(%to, index, "sending a snapshot");
        self.transfers.outgoing = Some(Outgoing { to, id, index, term, next: 1, arrived: 0, ended: false, heard: self.now });
        self.tell(to, Notice::Snapshot { id, index, term, sequence: 0, last: false }, Bytes::from(configuration));
    }

    fn end_transfer(&mut self, delivered: bool) {
        let Some(outgoing) = self.transfers.outgoing.take() else { return };
        tracing::info!(to = %outgoing.to, slices = outgoing.next, delivered, "snapshot sent");
        self.namespace.end_snapshot();
        if let Some(group) = &mut self.group {
            group.snapshot_sent(outgoing.to, delivered);
        }
    }

    fn send_slices(&mut self) {
        while let Some(outgoing) = &mut self.transfers.outgoing {
            if outgoing.ended || outgoing.next >= outgoing.arrived + limits::SNAPSHOT_WINDOW {
                return;
            }
            let Some((slice, last)) = self.namespace.next_snapshot_slice(limits::SNAPSHOT_SLICE_BYTES) else {
                outgoing.ended = true;
                return;
            };
            let notice = Notice::Snapshot { id: outgoing.id, index: outgoing.index, term: outgoing.term, sequence: outgoing.next, last };
            outgoing.next += 1;
            outgoing.ended = last;
            let to = outgoing.to;
            self.tell(to, notice, Bytes::from(slice));
        }
    }

    /// A slice arrived. Slices of one transfer come in order; after a gap the sender begins anew.
    pub(super) fn on_snapshot_slice(&mut self, from: NodeId, slice: Slice, payload: &[u8]) {
        if self.leading.is_some() || self.group.is_none() || !self.map.is_living(from) {
            return;
        }
        match self.take_slice(from, slice, payload) {
            Ok(next) => self.tell(from, Notice::SnapshotProgress { id: slice.id, next }, Bytes::new()),
            Err(status) => {
                tracing::warn!(%from, %status, "snapshot refused");
                self.transfers.incoming = None;
            }
        }
    }

    fn take_slice(&mut self, from: NodeId, slice: Slice, payload: &[u8]) -> Result<u32, Status> {
        if slice.sequence == 0 {
            let configuration = codec::decode(payload, limits::CONTROL_BODY_BYTES_MAX)?;
            self.transfers.incoming = Some(Incoming { from, id: slice.id, next: 1, configuration, loader: SnapshotLoader::new() });
            return Ok(1);
        }
        let expected = |incoming: &&mut Incoming| incoming.from == from && incoming.id == slice.id && incoming.next == slice.sequence;
        let incoming = self.transfers.incoming.as_mut().filter(expected).ok_or(Status::Conflict)?;
        incoming.loader.push(payload)?;
        incoming.next += 1;
        let next = incoming.next;
        if slice.last
            && let Some(incoming) = self.transfers.incoming.take()
        {
            self.install(slice, incoming)?;
        }
        Ok(next)
    }

    fn install(&mut self, slice: Slice, incoming: Incoming) -> Result<(), Status> {
        let namespace = incoming.loader.finish()?;
        if namespace.map().cluster != self.cluster || namespace.applied() != slice.index {
            return Err(Status::Malformed);
        }
        let now = self.now;
        let Some(group) = &mut self.group else { return Err(Status::NotMember) };
        if group.install_snapshot(now, slice.index, slice.term, incoming.configuration)? {
            tracing::info!(index = slice.index, "snapshot installed");
            self.namespace = namespace;
            self.applied_term = slice.term;
            self.hear_time();
            let map = self.namespace.map().clone();
            self.adopt_map(&map);
        }
        Ok(())
    }
}
