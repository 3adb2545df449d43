//! One storage node as a pure state machine: it is fed link events and time, and drained of link actions.
//!
//! Owns the wiring of the rooms (raft group, namespace, chunk store, outgoing links) and this node's place in the cluster. What comes
//! in is only fed; everything that follows from it happens once per turn, when outputs are asked for, so that the events of one turn
//! share one round of the log.

mod admission;
mod claims;
mod forming;
mod fsck;
mod gate;
mod holds;
mod joining;
mod leader;
mod leaving;
mod locks;
mod membership;
mod proposals;
mod reads;
mod recovery;
mod repair;
mod report;
mod requests;
mod rights;
mod sessions;
mod storage;
mod transfer;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use dfs::cluster_map::{ClusterMap, Member, MemberState};
use dfs::limits;
use dfs::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use dfs::links::{Links, LinksOutput, Peer, Ticket};
use dfs::placement::PlacementTable;
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Address, ChunkHash, ClusterId, Epoch, Instance, NodeId, SessionId, Term, Timestamp};
use dfs::wire::message::{Body, Failure, Notice, Request, Response};

use crate::chunk::{ChunkStore, InstanceCheck};
use crate::namespace::{Namespace, SpaceLimits};
use crate::raft::{self, Group};

use forming::Forming;
use joining::{Joining, Stage};
use leader::Leading;
use leaving::Leaving;
use proposals::Waiters;
use reads::Reads;
use transfer::Transfers;

/// How a node begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// Forms a new cluster.
    Bootstrap { replicas: u8 },
    /// Becomes a member of the cluster that answers at one of the addresses; never forms one.
    Join(Vec<Address>),
    /// One of a fixed list: they form a cluster once all are up and none belongs to one; whoever finds one joins it.
    Peers { peers: Vec<Address>, replicas: u8 },
}

/// A bug planted to show that the simulator finds it. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Removals and renames are acknowledged when proposed instead of when committed.
    AckBeforeCommit,
    /// One copy of each chunk is enough.
    OneReceipt,
    /// A restarted node keeps its Raft id (the simulator gives the same `NodeConfig::id` again).
    ReuseRaftId,
    /// A new leader forgets what requests were answered.
    ForgetRequestTable,
    /// A late deletion of one upload takes other uploads of the same bytes with it.
    DropInstanceCheck,
    /// Reads are answered without proof of leadership.
    ReadFromDeposed,
    /// Repair leaves out some placement groups.
    RepairForgetsGroup,
    /// A copy is announced when it is asked for, not when it is here.
    CopyAnnouncedEarly,
    /// A node that is drained goes when its vote is gone.
    DrainLeavesEarly,
    /// Changes and looks do not wait until what others cache or write alone is given back.
    RecallIgnored,
}

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where others reach it.
    pub address: Address,
    /// Bytes of RAM lent; 0 for a node that only votes.
    pub memory: u64,
    pub zone: String,
    /// What the driver limits bulk traffic to, in bytes per second; repair takes only part of that beside clients.
    pub rate: Option<u64>,
    pub start: Start,
    /// The incarnation; `None`: drawn at random, as it must be outside tests.
    pub id: Option<NodeId>,
    pub sabotage: Option<Sabotage>,
}

/// What the driver is to do.
// Nearly all outputs are of the large variant: a box would cost an allocation per frame.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum NodeOutput {
    Link(LinkAction),
    /// What handshakes say of this node from now on.
    Identity(Hello),
    /// The node is a member, has caught up, and votes if a voter was wanting.
    Ready {
        cluster: ClusterId,
        node: NodeId,
    },
    /// Nothing more follows; flush and end.
    Stopped {
        reason: String,
    },
}

/// Why an outgoing request was made.
#[derive(Clone, Debug)]
enum Purpose {
    Join,
    Muster {
        round: u64,
        address: Address,
    },
    Ping(NodeId),
    FetchMap,
    Leave,
    Delete {
        holder: NodeId,
        items: Vec<(ChunkHash, Instance)>,
        attempts: u32,
    },
    Audit {
        items: Vec<(ChunkHash, Instance)>,
    },
    Lost {
        items: Vec<(ChunkHash, Instance)>,
    },
    Pull {
        hash: ChunkHash,
    },
    Copied,
    /// Nothing follows from the answer.
    Forgotten,
}

/// Who waits for an answer: a link and the request's number on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asker {
    link: LinkId,
    request: u64,
}

/// Rounds of "drain, then look what follows" in one turn.
const TURN_ROUNDS_MAX: usize = 32;

/// The node.
pub struct Node {
    config: NodeConfig,
    id: NodeId,
    random: Random,
    now: Time,
    wall: Timestamp,
    cluster: ClusterId,
    /// The newest map seen, from the log or pushed.
    map: ClusterMap,
    /// Epoch up to which the leader has pushed the map.
    pushed: Epoch,
    links: Links,
    /// Links that others dialled.
    incoming: BTreeMap<LinkId, Hello>,
    /// The newest control link of each client.
    session_links: BTreeMap<SessionId, LinkId>,
    tickets: BTreeMap<Ticket, Purpose>,
    /// `None` until the node is a member.
    group: Option<Group>,
    namespace: Namespace,
    /// Cluster time as applied entries last told it, and when that was.
    time_heard: (Time, Timestamp),
    /// Term of the entry last applied.
    applied_term: Term,
    chunks: ChunkStore,
    placement: PlacementTable,
    stage: Stage,
    joining: Joining,
    forming: Forming,
    leaving: Option<Leaving>,
    leading: Option<Leading>,
    waiters: Waiters,
    reads: Reads,
    transfers: Transfers,
    storage: storage::Reports,
    repair: repair::Repair,
    /// When a leader of the present term was last heard.
    leader_heard: Time,
    /// When the leader last said that it counts this node among the living.
    pinged: Time,
    /// When this node last led.
    led: Time,
    /// The leader last followed.
    followed: Option<NodeId>,
    resident: u64,
    /// Whether clients may flip bits here.
    faults_permitted: bool,
    dirty: bool,
    outputs: VecDeque<NodeOutput>,
}

impl Node {
    /// A node that has just been started. `seed` must be drawn anew for every process: its incarnation comes from it.
    pub fn new(config: NodeConfig, now: Time, wall: Timestamp, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let id = config.id.unwrap_or(NodeId(random.next_id()));
        let links = Links::new(Role::Node, id.0, random.fork());
        let chunks = ChunkStore::new(config.memory);
        let joining = Joining::new(&config, now);
        let repair = repair::Repair::new(config.rate);
        let forming = Forming::new(&config.start, &config.address, now);
        let mut node = Node {
            config,
            id,
            random,
            now,
            wall,
            cluster: ClusterId(0),
            map: ClusterMap::default(),
            pushed: Epoch(0),
            links,
            incoming: BTreeMap::new(),
            session_links: BTreeMap::new(),
            tickets: BTreeMap::new(),
            group: None,
            namespace: Namespace::new(SpaceLimits::default()),
            time_heard: (now, Timestamp::default()),
            applied_term: Term(0),
            chunks,
            placement: PlacementTable::new(),
            stage: Stage::Joining,
            joining,
            forming,
            leaving: None,
            leading: None,
            waiters: Waiters::default(),
            reads: Reads::default(),
            transfers: Transfers::default(),
            storage: storage::Reports::default(),
            repair,
            leader_heard: now,
            pinged: now,
            led: now,
            followed: None,
            resident: 0,
            faults_permitted: false,
            dirty: true,
            outputs: VecDeque::new(),
        };
        node.announce();
        if let Start::Bootstrap { .. } = node.config.start {
            node.found();
        }
        node
    }

    /// Takes an event of the network.
    pub fn handle(&mut self, now: Time, wall: Timestamp, event: LinkEvent) {
        self.stamp(now, wall);
        let link = match &event {
            LinkEvent::Up { link, .. } | LinkEvent::Received { link, .. } | LinkEvent::Down { link, .. } => *link,
        };
        if self.stage == Stage::Stopped {
            return;
        }
        if !link.is_incoming() {
            return self.links.on_event(now, event);
        }
        match event {
            LinkEvent::Up { link, peer } => {
                self.incoming.insert(link, peer);
                self.on_link_up(link, peer.role, peer.lane, peer.sender);
            }
            LinkEvent::Down { link, .. } => {
                if let Some(peer) = self.incoming.remove(&link) {
                    self.on_link_down(link, peer.sender);
                }
            }
            LinkEvent::Received { link, frame } => self.on_frame(link, frame),
        }
    }

    /// Lets time pass.
    pub fn on_deadline(&mut self, now: Time, wall: Timestamp) {
        self.stamp(now, wall);
        if self.stage == Stage::Stopped {
            return;
        }
        self.links.on_deadline(now);
        if let Some(group) = &mut self.group {
            group.on_deadline(now);
        }
    }

    /// When [`Node::on_deadline`] has something to do.
    pub fn next_deadline(&self) -> Time {
        if self.stage == Stage::Stopped {
            return Time::NEVER;
        }
        let group = self.group.as_ref().map_or(Time::NEVER, |group| group.next_deadline());
        let leading = self.leading.as_ref().map_or(Time::NEVER, |leading| leading.next_deadline());
        let leaving = self.leaving.as_ref().map_or(Time::NEVER, |leaving| leaving.next_deadline());
        let joining = self.joining.next_deadline();
        self.links
            .next_deadline()
            .min(group)
            .min(leading)
            .min(leaving)
            .min(joining)
            .min(self.next_report())
            .min(self.next_repair())
            .min(self.chunks.next_scrub())
            .min(self.transfers.next_deadline())
    }

    /// The next thing for the driver to do.
    pub fn poll_output(&mut self) -> Option<NodeOutput> {
        if self.outputs.is_empty() && self.dirty {
            self.turn();
        }
        self.outputs.pop_front()
    }

    /// Resident memory of the process, for `dfs status`; told by the driver now and then.
    pub fn set_resident(&mut self, bytes: u64) {
        self.resident = bytes;
    }

    /// From now on clients may harm this node by debug requests. For tests of whole programs.
    pub fn permit_faults(&mut self) {
        self.faults_permitted = true;
    }

    /// This incarnation. Changes when the node is declared dead and comes back.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The newest cluster map that the node knows.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The replicated tree.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The chunks held.
    pub fn chunks(&self) -> &ChunkStore {
        &self.chunks
    }

    /// The chunks held, for tests that corrupt them.
    pub fn chunks_mut(&mut self) -> &mut ChunkStore {
        &mut self.chunks
    }

    /// The raft group, once a member.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Whether the node said `Ready`.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether it believes to lead, and in which term.
    pub fn leads(&self) -> Option<Term> {
        self.group.as_ref().filter(|group| group.is_leader()).map(|group| group.term())
    }

    /// Asserts what must always hold. Costs time proportional to the state.
    pub fn check_invariants(&self) {
        self.links.check_invariants();
        self.namespace.check_invariants();
        self.chunks.check_invariants();
        self.repair.check_invariants();
        assert!(self.chunks.usage().charged <= self.config.memory, "the budget is never exceeded");
        assert!(self.waiters.len() <= limits::NODE_PROPOSALS_MAX);
        assert!(self.reads.len() <= limits::NODE_READS_MAX);
        assert!(self.map.epoch >= self.namespace.map().epoch, "the newest map known is at least the applied one");
        if let Some(leading) = &self.leading {
            leading.check_invariants();
        }
    }

    /// This node as a member.
    fn member(&self) -> Member {
        Member {
            id: self.id,
            address: self.config.address.clone(),
            memory: self.config.memory,
            zone: self.config.zone.clone(),
            state: MemberState::Live,
        }
    }

    fn sabotaged(&self, by: Sabotage) -> bool {
        self.config.sabotage == Some(by)
    }

    fn instance_check(&self) -> InstanceCheck {
        if self.sabotaged(Sabotage::DropInstanceCheck) { InstanceCheck::Skipped } else { InstanceCheck::Kept }
    }

    /// Takes over the time. After a pause of this process nobody's silence means anything: everyone gets a fresh window.
    fn stamp(&mut self, now: Time, wall: Timestamp) {
        if now.since(self.now) > limits::NODE_PAUSE_MIN {
            tracing::info!(milliseconds = now.since(self.now).as_millis() as u64, "paused");
            if let Some(leading) = &mut self.leading {
                leading.forgive(now);
            }
            self.leader_heard = now;
        }
        self.now = self.now.max(now);
        self.wall = wall;
        self.dirty = true;
    }

    /// Everything that follows from what was fed, until nothing more does.
    fn turn(&mut self) {
        self.dirty = false;
        if self.stage != Stage::Stopped {
            // Bounded, so that a long duty of a lone voter, whose commands are committed at once, leaves the network its turns.
            for _ in 0..TURN_ROUNDS_MAX {
                let mut moved = false;
                while let Some(output) = self.links.poll_output() {
                    self.on_links_output(output);
                    moved = true;
                }
                moved |= self.drain_group();
                moved |= self.pursue_gate();
                if !moved {
                    self.pursue_duties();
                    self.pursue_stage();
                    moved = self.drain_group();
                }
                if !moved {
                    break;
                }
            }
            self.wake_lock_waiters();
            self.answer_reads();
            self.pursue_gate();
            self.pursue_transfers();
            self.scrub();
            self.report_storage();
            self.pursue_repair();
            self.drain_group();
            self.push_map();
        }
        while let Some(action) = self.links.poll_action() {
            self.outputs.push_back(NodeOutput::Link(action));
        }
    }

    /// Takes out of the group what it decided. Tells whether there was anything.
    fn drain_group(&mut self) -> bool {
        let mut moved = false;
        while let Some(output) = self.group.as_mut().and_then(|group| group.poll_output()) {
            moved = true;
            match output {
                raft::Output::Send { to, message } => self.tell(to, Notice::Raft(message), Bytes::new()),
                raft::Output::Commit { index, term, data } => self.on_committed(index, term, &data),
                raft::Output::Configured { index, term, configuration } => self.on_configured(index, term, &configuration),
                raft::Output::NeedSnapshot { to } => self.transfers.want(to),
                raft::Output::LeaderChanged { leader, term } => self.on_leader_changed(leader, term),
            }
        }
        moved
    }

    fn on_leader_changed(&mut self, leader: Option<NodeId>, term: Term) {
        tracing::info!(leader = ?leader, term = term.0, "leader changed");
        let leads = self.leads();
        if self.leading.as_ref().map(|leading| leading.term()) != leads {
            if self.leading.is_some() {
                self.resign();
            }
            if let Some(term) = leads {
                self.begin_leading(term);
            }
        }
        if leader.is_some() {
            self.followed = leader.filter(|&leader| leader != self.id);
            self.leader_heard = self.now;
            self.storage.new_leader(self.now);
            self.chunks.restart_audit(self.now);
        }
    }

    /// Whoever waits for this node as leader is sent to the next one.
    fn resign(&mut self) {
        if self.leading.is_some() {
            self.led = self.now;
        }
        let failure = self.not_leader();
        for asker in self.leading.take().map(|mut leading| leading.gate.take_askers()).unwrap_or_default() {
            self.answer(asker, Err(failure.clone()), Bytes::new());
        }
        for asker in self.waiters.take_all() {
            self.answer(asker, Err(failure.clone()), Bytes::new());
        }
        for asker in self.reads.take_all() {
            self.answer(asker, Err(failure.clone()), Bytes::new());
        }
    }

    /// A newer map replaces the old one, and may tell this node that it was declared dead.
    fn adopt_map(&mut self, map: &ClusterMap) {
        if map.epoch <= self.map.epoch || !map.is_well_formed() || (self.cluster.0 != 0 && map.cluster != self.cluster) {
            return;
        }
        self.map = map.clone();
        self.forming.note_map(map, self.namespace.applied());
    }

    /// The peer of a member by its id, if its address is known.
    fn peer(&self, node: NodeId) -> Option<Peer> {
        self.map.member(node).map(|member| Peer { address: member.address.clone(), node: Some(node) })
    }

    /// Members beside this one that have not been declared dead.
    fn others_living(&self) -> Vec<NodeId> {
        let others = self.map.members.iter().filter(|member| member.id != self.id && member.state != MemberState::Dead);
        others.map(|member| member.id).collect()
    }

    /// Tells a node, at best effort.
    fn tell(&mut self, to: NodeId, notice: Notice, payload: Bytes) {
        if let Some(peer) = self.peer(to) {
            self.links.notify(self.now, &peer, notice, payload);
        }
    }

    /// Asks a node; the answer comes back with `purpose`. Tells whether its address is known.
    fn ask(&mut self, to: NodeId, request: Request, purpose: Purpose, timeout: std::time::Duration) -> bool {
        let Some(peer) = self.peer(to) else { return false };
        let ticket = self.links.request(self.now, &peer, request, Bytes::new(), timeout);
        self.tickets.insert(ticket, purpose);
        true
    }

    fn on_links_output(&mut self, output: LinksOutput) {
        match output {
            LinksOutput::Answered { ticket, from, response, payload } => {
                if let Some(purpose) = self.tickets.remove(&ticket) {
                    self.on_response(purpose, from, response, payload);
                }
            }
            LinksOutput::Failed { ticket, failure } => {
                if let Some(purpose) = self.tickets.remove(&ticket) {
                    self.on_failure(purpose, failure);
                }
            }
            LinksOutput::Noticed { from, notice, payload } => self.on_notice(from, notice, payload),
            LinksOutput::Found { address, node, .. } => self.on_found(&address, node),
        }
    }

    fn on_response(&mut self, purpose: Purpose, from: NodeId, response: Response, payload: Bytes) {
        match (purpose, response) {
            (Purpose::Join, Response::Joined { map }) => self.on_joined(&map),
            (Purpose::Muster { round, address }, Response::Mustered { cluster, allegiance }) => {
                self.on_mustered(round, &address, forming::Answer::Stands { node: from, cluster, allegiance });
            }
            (Purpose::Ping(node), Response::Pong { epoch, stored, chunks, resident, room, scrubbed, .. }) => {
                let own = self.map.epoch;
                if let Some(leading) = &mut self.leading {
                    leading.on_pong(self.now, node, leader::Load { stored, chunks, resident, room: Some(room), scrubbed });
                    if epoch < own {
                        self.tell(node, Notice::Map(self.map.clone()), Bytes::new());
                    }
                }
            }
            (Purpose::FetchMap, Response::Map(Some(map))) => self.adopt_map(&map),
            (Purpose::Leave, _) => self.on_left(),
            (Purpose::Audit { items }, Response::Audited { verdicts }) => {
                self.on_verdicts(&items, verdicts);
                self.storage.audit_done();
            }
            (Purpose::Audit { .. }, _) => self.storage.audit_done(),
            (Purpose::Lost { items }, Response::Done) => {
                self.chunks.acknowledge_lost(&items);
                self.storage.lost_done();
            }
            (Purpose::Lost { .. }, _) => self.storage.lost_done(),
            (Purpose::Pull { hash }, Response::Bytes { .. }) => self.on_pulled(hash, payload),
            (Purpose::Pull { hash }, _) => self.on_pull_failed(hash, &Status::Malformed.into()),
            (Purpose::Copied, Response::Copied { applied }) => self.on_copied(applied),
            (Purpose::Copied, _) => self.on_copied_failed(),
            (Purpose::Forgotten, _) => {}
            (purpose, response) => tracing::debug!(%from, ?purpose, ?response, "nothing follows from this answer"),
        }
    }

    fn on_failure(&mut self, purpose: Purpose, failure: Failure) {
        match purpose {
            Purpose::Join => self.on_join_refused(failure),
            Purpose::Muster { round, address } => self.on_mustered(round, &address, Node::muster_failure(failure.status)),
            Purpose::Ping(node) => {
                if let Some(leading) = &mut self.leading {
                    leading.on_ping_failed(node);
                }
            }
            Purpose::FetchMap | Purpose::Forgotten => {}
            Purpose::Pull { hash } => self.on_pull_failed(hash, &failure),
            Purpose::Copied => self.on_copied_failed(),
            Purpose::Leave => self.on_leave_refused(failure),
            Purpose::Delete { holder, items, attempts } => {
                if let Some(leading) = &mut self.leading {
                    leading.retry_deletion(self.now, holder, items, attempts);
                }
            }
            Purpose::Audit { .. } => self.storage.audit_failed(self.now),
            Purpose::Lost { .. } => self.storage.lost_failed(self.now),
        }
    }

    /// A handshake told who listens at an address.
    fn on_found(&mut self, address: &Address, node: NodeId) {
        let replaced = self.map.members.iter().find(|member| member.address == *address && member.id != node).map(|member| member.id);
        if let (Some(replaced), Some(leading)) = (replaced, &mut self.leading) {
            leading.on_proof_of_death(replaced);
        }
    }

    /// Answers a request that came over an incoming link; dropped if the link is gone.
    fn answer(&mut self, to: Asker, result: Result<Response, Failure>, payload: Bytes) {
        if self.incoming.contains_key(&to.link) {
            let frame = Frame { request: to.request, body: Body::Response(result), payload };
            self.outputs.push_back(NodeOutput::Link(LinkAction::Send { link: to.link, frame }));
        }
    }

    fn fail(&mut self, to: Asker, status: Status) {
        let failure = if status == Status::NotLeader { self.not_leader() } else { Failure { epoch: self.map.epoch, ..status.into() } };
        self.answer(to, Err(failure), Bytes::new());
    }

    /// "Not me", and who, as far as this node knows.
    fn not_leader(&self) -> Failure {
        let leader = self.group.as_ref().and_then(|group| group.leader()).filter(|&leader| leader != self.id);
        let known = leader.and_then(|leader| self.map.member(leader)).map(|member| (member.id, member.address.clone()));
        Failure { status: Status::NotLeader, leader: known, epoch: self.map.epoch }
    }

    /// The leader pushes a new map to every member, and to every client with a session.
    fn push_map(&mut self) {
        if self.leading.is_none() || self.pushed == self.map.epoch || self.map.epoch != self.namespace.map().epoch {
            return;
        }
        self.pushed = self.map.epoch;
        for node in self.others_living() {
            self.tell(node, Notice::Map(self.map.clone()), Bytes::new());
        }
        // Of a cluster that may still be forgotten clients hear nothing.
        let told = !self.map.is_forming();
        let clients = self.incoming.iter().filter(|(_, peer)| told && peer.role == Role::Client && peer.lane == Lane::Control);
        for (&link, _) in clients {
            let frame = Frame { request: 0, body: Body::Notice(Notice::Map(self.map.clone())), payload: Bytes::new() };
            self.outputs.push_back(NodeOutput::Link(LinkAction::Send { link, frame }));
        }
        while let Some(action) = self.links.poll_action() {
            self.outputs.push_back(NodeOutput::Link(action));
        }
    }

    /// Tells the driver what to say in handshakes.
    fn announce(&mut self) {
        let hello = Hello { cluster: self.cluster, role: Role::Node, sender: self.id.0, lane: Lane::Control, expect: None };
        self.outputs.push_back(NodeOutput::Identity(hello));
    }
}
