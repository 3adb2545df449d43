//! What comes in over links that others dialled: who may ask what, and which room answers.
//!
//! The sender is whoever the handshake named. Nodes of another cluster, and clients that ask what only nodes may, are refused.

use bytes::Bytes;

use dfs::cluster_map::{ClusterMap, MemberState};
use dfs::link::{Frame, Lane, LinkAction, LinkId, Role};
use dfs::placement;
use dfs::status::Status;
use dfs::types::{ChunkHash, Epoch, Instance, NodeId, SessionId};
use dfs::wire::message::{Body, Notice, RaftKind, Request, Response};
use dfs::wire::namespace::{Op, Query};
use dfs::{cluster_map::Member, limits};

use super::joining::Stage;
use super::reads::Read;
use super::{Asker, Node, NodeOutput};
use crate::namespace::Command;

impl Node {
    pub(super) fn on_frame(&mut self, link: LinkId, frame: Frame) {
        let Some(peer) = self.incoming.get(&link).copied() else { return };
        let asker = Asker { link, request: frame.request };
        match frame.body {
            Body::Request(request) => match peer.role {
                Role::Client => self.on_client_request(asker, SessionId(peer.sender), request, frame.payload),
                Role::Node => {
                    let open = matches!(
                        request,
                        Request::Identify | Request::Muster | Request::Map { .. } | Request::Status | Request::Join { .. }
                    );
                    if !open && peer.cluster != self.cluster {
                        return self.fail(asker, Status::WrongCluster);
                    }
                    self.on_node_request(asker, NodeId(peer.sender), request, frame.payload);
                }
            },
            Body::Notice(notice) if peer.role == Role::Node => {
                // A leader may speak to a joining node before that has heard which cluster took it in.
                if peer.cluster == self.cluster && self.cluster.0 != 0 {
                    self.on_notice(NodeId(peer.sender), notice, frame.payload);
                }
            }
            Body::Notice(_) | Body::Response(_) => {
                // Whoever dials asks; it has nothing to answer here.
                tracing::warn!(sender = peer.sender, role = ?peer.role, "closing a link that sent what it may not");
                self.incoming.remove(&link);
                self.on_link_down(link, peer.sender);
                self.outputs.push_back(NodeOutput::Link(LinkAction::Close { link }));
            }
        }
    }

    fn on_client_request(&mut self, asker: Asker, session: SessionId, request: Request, payload: Bytes) {
        match request {
            Request::Identify | Request::Status => self.on_open_request(asker, request),
            Request::Recover { cluster } => self.on_recover(asker, cluster),
            Request::Rejoin { cluster, to } => self.on_rejoin(asker, cluster, to),
            // Not even the map: whoever takes it clings to a cluster that may be forgotten.
            _ if self.map.is_forming() => self.fail(asker, Status::NotMember),
            Request::Map { .. } => self.on_open_request(asker, request),
            _ if self.stage == Stage::Joining => self.fail(asker, Status::NotMember),
            Request::Debug(action) => self.on_debug(asker, action),
            Request::Check(check) => self.on_check(asker, check),
            request if request.lane() == Lane::Control => self.on_session_request(asker, session, request),
            Request::Put { instance, .. } | Request::LinkChunk { instance, .. } if instance.session != session => {
                self.fail(asker, Status::InvalidArgument);
            }
            request => {
                self.repair.budget.on_client(self.now);
                self.on_bulk_request(asker, request, payload);
            }
        }
    }

    /// What goes to the leader. Recalls go to the session over the link by which it asks: what was granted there before, it gets before.
    fn on_session_request(&mut self, asker: Asker, session: SessionId, request: Request) {
        self.on_session_link(session, asker.link);
        match request {
            Request::OpenSession { caches } => _ = self.propose_for(asker, Command::OpenSession { session, caches }),
            Request::EndSession => _ = self.propose_for(asker, Command::EndSession { session }),
            Request::Renew { answered_below, uploads_from, term, flushing } => {
                self.read_for(asker, Read::Renew { session, answered_below, uploads_from, term, flushing });
            }
            Request::Namespace { number, answered_below, uploads_from, op } => {
                let now = self.now;
                if let Some(leading) = self.leading.as_mut().filter(|leading| !leading.gate.is_stalled(now, session)) {
                    leading.leases.heard_if_known(now, session);
                }
                // One that waits at the gate goes into the log; it must not be answered otherwise meanwhile.
                let waits = self.leading.as_mut().is_some_and(|leading| leading.gate.passage((session, number)).is_some());
                if let Op::SetLock { ino, lock } = &op
                    && !waits
                    && !self.admit_lock(asker, session, *ino, lock)
                {
                    return;
                }
                self.admit(asker, Command::Request { session, number, answered_below, uploads_from, op });
            }
            // At once: what the client asks next must find the queue without it.
            Request::Query(Query::LeaveLockQueue { ino, kind, key, range }) => {
                self.leave_lock_queue(session, ino, kind, key, range);
                self.answer(asker, Ok(Response::Done), Bytes::new());
            }
            Request::Query(query) => self.read_for(asker, Read::Query { session, query }),
            Request::Recalled { term, number } => {
                self.on_recalled(session, term, number);
                self.answer(asker, Ok(Response::Done), Bytes::new());
            }
            Request::GiveUp { rights } => {
                self.on_given_up(session, &rights);
                self.answer(asker, Ok(Response::Done), Bytes::new());
            }
            Request::Shutdown => self.on_shutdown(asker),
            Request::Drain { node } => self.on_drain(asker, node),
            _ => self.fail(asker, Status::NotPermitted),
        }
    }

    fn on_node_request(&mut self, asker: Asker, node: NodeId, request: Request, payload: Bytes) {
        let now = self.now;
        if let Some(leading) = &mut self.leading {
            leading.on_heard(now, node);
        }
        match request {
            Request::Identify | Request::Muster | Request::Map { .. } | Request::Status => self.on_open_request(asker, request),
            _ if self.stage == Stage::Joining => self.fail(asker, Status::NotMember),
            Request::Join { member } => self.on_join(asker, node, member),
            Request::Ping { term, epoch, sent, crowded } => {
                if self.group.as_ref().is_some_and(|group| term >= group.term()) {
                    (self.leader_heard, self.pinged) = (now, now);
                }
                self.repair.crowded = crowded.into_iter().collect();
                if epoch > self.map.epoch {
                    self.ask(node, Request::Map { known: self.map.epoch }, super::Purpose::FetchMap, limits::ATTEMPT_TIMEOUT);
                }
                let usage = self.chunks.usage();
                let (stored, chunks, memory) = (usage.stored, usage.chunks, self.config.memory);
                let (epoch, resident, room, scrubbed) = (self.map.epoch, self.resident, self.room(), self.chunks.scrubbed());
                let pong = Response::Pong { sent, epoch, stored, chunks, memory, resident, room, scrubbed };
                self.answer(asker, Ok(pong), Bytes::new());
            }
            Request::Delete { items } => {
                self.forget_uploads(&items);
                self.answer(asker, Ok(Response::Done), Bytes::new());
            }
            Request::Audit { items } => self.read_for(asker, Read::Audit { node, items }),
            Request::Lost { items } => _ = self.propose_for(asker, Command::Lost { node, items }),
            Request::Copied { items } => _ = self.propose_for(asker, Command::Copied { node, items }),
            Request::Leave => self.on_leave(asker, node),
            // Other nodes fetch copies here; clients go first.
            Request::Get { range, .. } if !self.repair.budget.admit(now, range.length) => self.fail(asker, Status::Busy),
            request => self.on_bulk_request(asker, request, payload),
        }
    }

    /// What anybody may ask at any time.
    fn on_open_request(&mut self, asker: Asker, request: Request) {
        let response = match request {
            Request::Map { known } => Response::Map((self.map.epoch > known).then(|| self.map.clone())),
            Request::Status => Response::Status(Box::new(self.report())),
            Request::Muster => Response::Mustered { cluster: self.cluster, allegiance: self.forming.allegiance(self.cluster) },
            _ => Response::Identity { cluster: self.cluster, node: self.id, address: self.config.address.clone() },
        };
        self.answer(asker, Ok(response), Bytes::new());
    }

    fn on_bulk_request(&mut self, asker: Asker, request: Request, payload: Bytes) {
        let result = match request {
            Request::Put { epoch, hash, instance } => self.put(epoch, hash, instance, payload),
            Request::LinkChunk { epoch, hash, instance } => {
                self.check_placement(epoch, &hash).and_then(|()| self.chunks.upload(self.now, hash, instance, None))
            }
            Request::Get { hash, range } => match self.chunks.get(&hash, range) {
                Ok(part) => {
                    let response = Response::Bytes { range: part.range, total: part.total, proof: part.proof };
                    return self.answer(asker, Ok(response), part.bytes);
                }
                Err(status) => Err(status),
            },
            Request::Suspect { hash } => {
                let dropped = self.chunks.suspect(&hash);
                if dropped {
                    tracing::warn!(%hash, "dropped a copy that did not match its hash");
                }
                return self.answer(asker, Ok(Response::Done), Bytes::new());
            }
            _ => Err(Status::NotPermitted),
        };
        match result {
            Ok(()) => self.answer(asker, Ok(Response::Receipt { node: self.id }), Bytes::new()),
            Err(status) => self.fail(asker, status),
        }
    }

    fn put(&mut self, epoch: Epoch, hash: ChunkHash, instance: Instance, bytes: Bytes) -> Result<(), Status> {
        self.check_placement(epoch, &hash)?;
        // The copy of the namespace lives inside the same budget.
        if !self.has_room_for_upload(bytes.len() as u64) && !self.chunks.contains(&hash) {
            return Err(Status::Full);
        }
        self.chunks.upload(self.now, hash, instance, Some(bytes))
    }

    /// A sender with an older map that chose a node which is no owner by now is told so. One with the newest map may have passed over
    /// full or dead owners, and is right.
    fn check_placement(&mut self, epoch: Epoch, hash: &ChunkHash) -> Result<(), Status> {
        if epoch >= self.map.epoch || self.placement.owners(&self.map, placement::group_of(hash)).contains(&self.id) {
            return Ok(());
        }
        Err(Status::StaleMap)
    }

    /// A node wants to be a member. The address and incarnation are its own to say; the state is not.
    fn on_join(&mut self, asker: Asker, node: NodeId, member: Member) {
        if member.id != node || member.state != MemberState::Live {
            return self.fail(asker, Status::InvalidArgument);
        }
        if self.leads().is_none() {
            return self.fail(asker, Status::NotLeader);
        }
        let map: &ClusterMap = self.namespace.map();
        match map.member(node) {
            // What was said of its state stays said, but for its death.
            Some(known) if known.state != MemberState::Dead && *known == (Member { state: known.state, ..member.clone() }) => {
                let map = map.clone();
                self.answer(asker, Ok(Response::Joined { map }), Bytes::new());
            }
            // Until the listed nodes are in, nobody else is let in: they decide together whether the cluster ever came to be.
            _ if map.cluster.0 == 0 || !map.admits(&member.address) => self.fail(asker, Status::Busy),
            _ => {
                tracing::info!(%node, address = %member.address, "joins");
                _ = self.propose_for(asker, Command::SetMember(member));
            }
        }
    }

    pub(super) fn on_notice(&mut self, from: NodeId, notice: Notice, payload: Bytes) {
        let now = self.now;
        if let Some(leading) = &mut self.leading {
            leading.on_heard(now, from);
        }
        match notice {
            Notice::Raft(message) => {
                let Some(group) = &mut self.group else { return };
                let from_leader = matches!(message.kind, RaftKind::Append | RaftKind::Heartbeat);
                match group.receive(now, from, message) {
                    Ok(()) if from_leader && group.leader() == Some(from) => self.leader_heard = now,
                    Ok(()) => {}
                    Err(status) => tracing::debug!(%from, %status, "raft message refused"),
                }
            }
            Notice::Snapshot { id, index, term, sequence, last } => {
                let slice = super::transfer::Slice { id, index, term, sequence, last };
                self.on_snapshot_slice(from, slice, &payload);
            }
            Notice::SnapshotProgress { id, next } => self.transfers.on_progress(now, from, id, next),
            Notice::Map(map) => self.adopt_map(&map),
            Notice::Stop if self.map.is_living(from) => self.stop_soon("the cluster was shut down"),
            Notice::Stop | Notice::Recall { .. } | Notice::SpaceShort | Notice::LockFree { .. } => {}
        }
    }
}
