//! Reads of the namespace: they wait until leadership at the time of their arrival is proven, then see everything committed by then.

use std::collections::VecDeque;

use bytes::Bytes;

use dfs::limits;
use dfs::locks::LockOwner;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ChunkHash, InodeId, Instance, NodeId, RequestNumber, SessionId, Term};
use dfs::wire::fsck::Check;
use dfs::wire::message::Response;
use dfs::wire::namespace::{Answer, Query, Space};

use super::{Asker, Node, Sabotage};

/// What is asked.
#[derive(Debug)]
pub(super) enum Read {
    Query { session: SessionId, query: Query },
    Renew { session: SessionId, answered_below: RequestNumber, uploads_from: u64, term: Term, flushing: Vec<u64> },
    Audit { node: NodeId, items: Vec<(ChunkHash, Instance)> },
    Check(Check),
}

#[derive(Debug)]
struct Pending {
    asker: Asker,
    received: Time,
    read: Read,
}

/// Reads in order of arrival: what proves the later proves the earlier.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pending: VecDeque<Pending>,
    /// Arrival of the last read for which an early round was asked.
    confirming: Time,
}

impl Reads {
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn take_all(&mut self) -> Vec<Asker> {
        self.pending.drain(..).map(|pending| pending.asker).collect()
    }
}

/// Metadata that one more inode is expected to take, for the count of free inodes.
const INODE_BYTES_TYPICAL: u64 = 512;

impl Node {
    /// Queues a read, if this node leads.
    pub(super) fn read_for(&mut self, asker: Asker, read: Read) {
        if self.leading.is_none() {
            return self.fail(asker, Status::NotLeader);
        }
        let waiting = self.leading.as_ref().map_or(0, |leading| leading.gate.looks_waiting());
        if self.reads.len() + waiting >= limits::NODE_READS_MAX {
            return self.fail(asker, Status::Busy);
        }
        self.reads.pending.push_back(Pending { asker, received: self.now, read });
    }

    /// Answers what may be answered; asks for an early proof for the rest.
    pub(super) fn answer_reads(&mut self) {
        let anyway = self.sabotaged(Sabotage::ReadFromDeposed);
        while let Some(first) = self.reads.pending.front() {
            let Some(group) = &mut self.group else { return };
            if !group.can_read(self.now, first.received) && !anyway {
                let last = self.reads.pending.back().map_or(first.received, |last| last.received);
                if last > self.reads.confirming {
                    self.reads.confirming = last;
                    group.confirm(self.now);
                }
                return;
            }
            let Some(pending) = self.reads.pending.pop_front() else { return };
            if let Read::Query { session, query } = pending.read {
                self.answer_query(pending.asker, session, query);
                continue;
            }
            let result = self.read(pending.read, pending.received);
            match result {
                Ok(response) => self.answer(pending.asker, Ok(response), Bytes::new()),
                Err(status) => self.fail(pending.asker, status),
            }
        }
    }

    fn read(&mut self, read: Read, received: Time) -> Result<Response, Status> {
        let epoch = self.map.epoch;
        let term = self.leads().unwrap_or_default();
        match read {
            Read::Query { .. } => unreachable!("queries have their own way"),
            Read::Renew { session, answered_below, uploads_from, term: told, flushing } => {
                self.on_flushing(session, told, &flushing, received);
                let era = self.renew(session, answered_below, uploads_from, received).ok_or(Status::SessionGone)?;
                Ok(Response::Renewed { term, epoch, time: self.cluster_time(), era })
            }
            Read::Check(check) => self.namespace.check(&check).map(Response::Checked),
            Read::Audit { node, items } => Ok(Response::Audited { verdicts: self.namespace.verdicts(node, &items) }),
        }
    }

    pub(super) fn query(&mut self, session: SessionId, query: &Query) -> Result<Answer, Status> {
        match query {
            Query::Hold { ino, sequence } => self.hold(session, *ino, *sequence),
            Query::Release { ino, sequence } => {
                let now = self.now;
                if let Some(leading) = &mut self.leading {
                    leading.holds.release(session, *ino, *sequence);
                    if self.namespace.is_orphan(*ino) {
                        leading.wake(now);
                    }
                }
                Ok(Answer::Done)
            }
            Query::Reclaim { term, held, rights, last } => {
                self.namespace.session(session).ok_or(Status::SessionGone)?;
                let leading = self.leading.as_mut().ok_or(Status::NotLeader)?;
                if leading.term() != *term {
                    // Meant for another leader, so it may be old. The answer tells the session whose term it is, and it tells all again.
                    return Ok(Answer::Done);
                }
                leading.holds.reclaim(session, held, *last)?;
                leading.rights.reclaim(session, rights, *last);
                if *last {
                    leading.gate.know(session);
                }
                Ok(Answer::Done)
            }
            Query::Space => Ok(Answer::Space(self.space())),
            Query::Settle { .. } => Ok(Answer::Done),
            Query::TestLock { ino, kind, key, range, mode } => {
                self.namespace.test_lock(*ino, LockOwner { kind: *kind, session, key: *key }, *range, *mode)
            }
            query => self.namespace.query(query),
        }
    }

    /// From now on the inode outlives its last name. What is being reaped cannot be opened any more.
    fn hold(&mut self, session: SessionId, ino: InodeId, sequence: u64) -> Result<Answer, Status> {
        self.namespace.session(session).ok_or(Status::SessionGone)?;
        let leading = self.leading.as_mut().ok_or(Status::NotLeader)?;
        if leading.reaping.contains(&ino) || !self.namespace.exists(ino) {
            return Err(Status::Stale);
        }
        leading.holds.hold(session, ino, sequence)?;
        self.namespace.attributes(ino).map(Answer::Attributes)
    }

    fn space(&self) -> Space {
        let usage = self.namespace.usage();
        let namespace_free = self.namespace.limits().namespace_bytes_max.saturating_sub(usage.namespace_bytes);
        // What is deleted counts as free at once, although nodes take a moment to drop it: writers wait for that, see the client's uploads.
        // What sessions have reserved and not used is given back before anybody is told that there is no space: it counts as free.
        let (capacity, used) = (self.namespace.capacity(), usage.charged_bytes + usage.namespace_bytes);
        Space {
            capacity: capacity.max(used),
            used,
            available: capacity.saturating_sub(used + dfs::capacity::kept_for_changes(capacity)),
            inodes: usage.inodes,
            inodes_available: namespace_free / INODE_BYTES_TYPICAL,
        }
    }

    /// Bytes stored on a node, as far as known.
    pub(super) fn stored_on(&self, node: NodeId) -> u64 {
        if node == self.id {
            return self.chunks.usage().stored;
        }
        self.leading.as_ref().and_then(|leading| leading.contact(node)).map_or(0, |contact| contact.load.stored)
    }
}
