//! The replicated log of the namespace: a pure wrapper around the `raft` library.
//!
//! Owns the library's node, the log in RAM, the conversion of its messages and the proof of leadership; decides when a follower needs
//! a snapshot and how much log is kept. Refuses forged messages before the library sees them, and proposals of others. Knows nothing
//! of what the log says: bytes go in, committed bytes come out in order. Snapshots travel outside; only their place in the log
//! (index, term, configuration) is handled here.
//!
//! The library's panics are the node's death. `check` is there so that no peer can cause one.

mod check;
mod convert;
mod log;
mod proof;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use ::raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use ::raft::{Config, Error, ProgressState, RawNode, StateRole};

use dfs::limits;
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{NodeId, Term};
use dfs::wire::message::{RaftEntry, RaftKind, RaftMessage};

pub use convert::Configuration;
use log::Log;
use proof::Proof;

/// How a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first node of a cluster: the only voter.
    Founder,
    /// Knows nobody; waits until a leader sends it a snapshot.
    Joiner,
    /// The first node of a cluster that goes on with the state of another one: the only voter. Its log begins behind that place, and its
    /// term above that one.
    Survivor { index: u64, term: Term },
}

/// Time and size as the group sees them.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The library's unit of time.
    pub tick: Duration,
    /// Between heartbeats of a leader.
    pub heartbeat: Duration,
    /// A follower waits at least this long, at most twice as long, before it asks for votes.
    pub election: Duration,
    /// Beyond these the log drops what is applied.
    pub log_bytes: usize,
    pub log_entries: usize,
}

impl Settings {
    /// For a node that lends so much: its log takes a part of that, as far as that is known.
    pub fn lending(memory: u64) -> Self {
        let part = usize::try_from(memory / limits::RAFT_LOG_MEMORY_SHARE).unwrap_or(usize::MAX);
        let log_bytes = if memory == 0 { limits::RAFT_LOG_BYTES_MAX } else { part };
        Settings { log_bytes: log_bytes.clamp(limits::RAFT_LOG_BYTES_MIN, limits::RAFT_LOG_BYTES_MAX), ..Settings::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            tick: limits::RAFT_TICK,
            heartbeat: limits::HEARTBEAT_INTERVAL,
            election: limits::ELECTION_TIMEOUT,
            log_bytes: limits::RAFT_LOG_BYTES_MAX,
            log_entries: limits::RAFT_LOG_ENTRIES_MAX,
        }
    }
}

/// What the group wants done or known. Every committed index comes exactly once and in order, as `Commit` or `Configured`; the node
/// applies it and says so by [`Group::applied_to`].
#[derive(Debug)]
pub enum Output {
    /// Deliver, or lose.
    Send { to: NodeId, message: RaftMessage },
    /// An entry is committed. `data` is empty for a leader's first entry.
    Commit { index: u64, term: Term, data: Bytes },
    /// The configuration changed at this index, or came with a snapshot of it.
    Configured { index: u64, term: Term, configuration: Configuration },
    /// As leader: this follower is behind the log. Answer by [`Group::snapshot_begun`] and then, however it ends,
    /// [`Group::snapshot_sent`].
    NeedSnapshot { to: NodeId },
    /// Another leader, or none, or the same one in another term.
    LeaderChanged { leader: Option<NodeId>, term: Term },
}

/// A snapshot on its way to a follower.
#[derive(Debug, Default)]
struct Transfer {
    /// Its place in the log, once begun: later entries are kept for the follower.
    index: Option<u64>,
    /// Set when it ended: if the follower is still behind by then, it is asked for again.
    again_at: Option<Time>,
}

/// One member of the replicated log.
pub struct Group {
    me: NodeId,
    node: RawNode<Log>,
    settings: Settings,
    random: Random,
    /// Time of the latest call; the send time of what it caused.
    now: Time,
    next_tick: Time,
    /// Election timeout in ticks. The library draws its own from the thread's generator; this one replaces it after every call.
    timeout_ticks: usize,
    /// Term, role and leader when `timeout_ticks` was drawn and the node was last told.
    seen: (u64, StateRole, u64),
    proof: Proof,
    /// The library's, in our own form. Changes take effect when they are committed, before they are applied.
    configuration: Configuration,
    /// As leader, by follower.
    transfers: BTreeMap<NodeId, Transfer>,
    /// Drained by the node in the same turn; bounded by what one call can cause (the log's bound).
    outputs: VecDeque<Output>,
}

impl Group {
    /// A group that has just begun.
    pub fn new(me: NodeId, start: Start, mut random: Random, now: Time, settings: Settings) -> Self {
        assert!(me.0 != 0, "0 names nobody");
        let (log, configuration) = match start {
            // History begins after entry 1, which nobody can be sent: hence every joiner begins with a snapshot, and knows the voters.
            Start::Founder => (Log::new(1, 1, Configuration::founder(me).to_library()), Configuration::founder(me)),
            Start::Joiner => (Log::new(0, 0, Default::default()), Configuration::default()),
            // Likewise: nothing that came before can be sent to anybody but as a snapshot.
            Start::Survivor { index, term } => {
                (Log::new(index, term.0, Configuration::founder(me).to_library()), Configuration::founder(me))
            }
        };
        let applied = log.last();
        let ticks = |duration: Duration| duration.as_nanos().div_ceil(settings.tick.as_nanos().max(1)).max(1) as usize;
        let config = Config {
            id: me.0,
            heartbeat_tick: ticks(settings.heartbeat),
            // One more, since the first tick after a message may follow at once: a voter's silence lasts at least `election`.
            election_tick: ticks(settings.election) + 1,
            applied,
            max_size_per_msg: limits::RAFT_MESSAGE_BYTES_MAX as u64,
            max_inflight_msgs: limits::RAFT_INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            // Followers answer no reads, so they may learn of a commit with the next entry or heartbeat: two messages less for each entry.
            skip_bcast_commit: true,
            batch_append: true,
            max_uncommitted_size: limits::RAFT_UNCOMMITTED_BYTES_MAX as u64,
            max_committed_size_per_ready: limits::RAFT_MESSAGE_BYTES_MAX as u64,
            ..Default::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).expect("the configuration is constant and valid");
        // Nodes that start together must not tick together.
        let next_tick = now + Duration::from_nanos(random.below(settings.tick.as_nanos().max(1) as u64) + 1);
        let mut group = Group {
            me,
            node,
            settings,
            random,
            now,
            next_tick,
            timeout_ticks: config.election_tick,
            seen: (0, StateRole::Follower, 0),
            proof: Proof::default(),
            configuration,
            transfers: BTreeMap::new(),
            outputs: VecDeque::new(),
        };
        group.draw_timeout();
        if start != Start::Joiner {
            let campaign = group.node.campaign();
            assert!(campaign.is_ok(), "a single voter elects itself");
        }
        if start == Start::Founder {
            let configuration = group.configuration.clone();
            group.outputs.push_back(Output::Configured { index: applied, term: Term(1), configuration });
        }
        group.settle();
        group
    }

    /// Appends to the log as leader. `NotLeader`; `Busy`: too much is uncommitted, or leadership is being handed over.
    pub fn propose(&mut self, now: Time, data: Bytes) -> Result<(), Status> {
        self.now = self.now.max(now);
        if !self.is_leader() {
            return Err(Status::NotLeader);
        }
        if data.len() > limits::RAFT_MESSAGE_BYTES_MAX {
            return Err(Status::TooLong);
        }
        let mut message = Message { from: self.me.0, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![Entry { data, ..Default::default() }].into());
        // Not settled before outputs are asked for, so that proposals of one turn travel together.
        self.node.raft.step(message).map_err(|_| Status::Busy)
    }

    /// Proposes the change from the present configuration to this one; nothing if it is so already. `Busy` while a change is under
    /// way; `InvalidArgument` without voters, with a node in both sets, or without the leader itself, who must hand over first.
    pub fn propose_voters(&mut self, now: Time, voters: &BTreeSet<NodeId>, learners: &BTreeSet<NodeId>) -> Result<(), Status> {
        self.now = self.now.max(now);
        if !self.is_leader() {
            return Err(Status::NotLeader);
        }
        let wanted = Configuration { voters: voters.clone(), learners: learners.clone(), ..Default::default() };
        if wanted.check().is_err() || !voters.contains(&self.me) {
            return Err(Status::InvalidArgument);
        }
        if self.is_changing() {
            return Err(Status::Busy);
        }
        let changes = self.configuration.plan_changes(voters, learners);
        if changes.is_empty() {
            return Ok(());
        }
        let form = convert::encode_changes(&changes);
        let proposed = self.node.propose_conf_change(form, convert::changes_to_library(&changes));
        proposed.map_err(|_| Status::Busy)
    }

    /// Hands leadership to a voter, if it answers within an election timeout. Until then proposals are refused as `Busy`.
    pub fn transfer(&mut self, now: Time, to: NodeId) -> Result<(), Status> {
        self.now = self.now.max(now);
        if !self.is_leader() {
            return Err(Status::NotLeader);
        }
        if to == self.me || !self.configuration.voters.contains(&to) {
            return Err(Status::InvalidArgument);
        }
        self.proof.drop_lease();
        self.node.transfer_leader(to.0);
        Ok(())
    }

    /// Takes a peer's message. An error says why it was refused; nothing else follows from it.
    pub fn receive(&mut self, now: Time, from: NodeId, message: RaftMessage) -> Result<(), Status> {
        // Ticks that are due come first: after this message its sender counts on a whole election timeout of silence.
        self.advance(now);
        check::check(&self.node.raft, &self.configuration, from, &message)?;
        let (kind, term, sent, echo) = (message.kind, message.term, message.sent, message.echo);
        let rejected = message.reject;
        let stepped = self.node.step(convert::message_from_wire(self.me, from, message)?);
        let raft = &self.node.raft;
        if matches!(kind, RaftKind::Append | RaftKind::Heartbeat) && raft.leader_id == from.0 && raft.term == term {
            // Before the answer goes out, which carries the echo.
            self.proof.on_leader(term, from, sent);
        }
        self.settle();
        if self.is_leader() && self.node.raft.term == term && self.configuration.contains(from) {
            self.proof.on_follower(now, from, echo);
            if kind == RaftKind::AppendResponse && rejected {
                self.plan_snapshots();
            }
        }
        match stepped {
            Ok(()) => Ok(()),
            Err(Error::StepPeerNotFound) => Err(Status::NotMember),
            Err(_) => Err(Status::Conflict),
        }
    }

    /// Lets time pass.
    pub fn on_deadline(&mut self, now: Time) {
        self.advance(now);
    }

    /// When [`Group::on_deadline`] has something to do.
    pub fn next_deadline(&self) -> Time {
        self.next_tick
    }

    /// The next thing to do or to know.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.settle();
        }
        self.outputs.pop_front()
    }

    /// Whom this node follows; itself when it leads.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.node.raft.leader_id;
        (leader != 0).then_some(NodeId(leader))
    }

    /// Whether this node believes to lead. Reads need [`Group::can_read`].
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The present term.
    pub fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    /// Last entry known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Last entry that the node said it has applied.
    pub fn applied_index(&self) -> u64 {
        self.node.raft.raft_log.applied
    }

    /// Last entry of the log.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Term and index of the last entry of the log: of two logs the one with the greater has all that was ever committed and is in either.
    pub fn position(&self) -> (Term, u64) {
        (Term(self.node.raft.raft_log.last_term()), self.last_index())
    }

    /// What lies in the log behind the last applied entry: index, term, and the data; `None` for a change of the configuration.
    pub fn tail(&self) -> Vec<(u64, Term, Option<Bytes>)> {
        let entry = |entry: &Entry| {
            let command = entry.get_entry_type() == EntryType::EntryNormal;
            (entry.index, Term(entry.term), command.then(|| entry.data.clone()))
        };
        self.node.store().behind(self.applied_index()).map(entry).collect()
    }

    /// The configuration as of the last committed change.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether a change of the configuration is under way (or may be: a new leader first commits what it found).
    pub fn is_changing(&self) -> bool {
        self.configuration.is_joint() || self.node.raft.has_pending_conf()
    }

    /// The node has applied everything up to `index`. What lies before may be dropped from the log.
    pub fn applied_to(&mut self, index: u64) {
        if index <= self.applied_index() {
            return;
        }
        assert!(index <= self.commit_index(), "applied {index}, committed {}", self.commit_index());
        self.node.advance_apply_to(index);
        self.compact();
    }

    /// As leader: whether a read that arrived at `received` may be answered from the applied state. If not, [`Group::confirm`] and
    /// ask again later.
    pub fn can_read(&self, now: Time, received: Time) -> bool {
        let raft = &self.node.raft;
        // The rest is for clocks whose rates differ.
        let lease = self.settings.election * 9 / 10;
        raft.state == StateRole::Leader
            && raft.apply_to_current_term()
            && raft.raft_log.applied >= raft.raft_log.committed
            && self.proof.covers(now, received, self.me, &self.configuration, lease)
    }

    /// As leader: asks everybody for an echo now instead of at the next heartbeat. Once per batch of waiting reads.
    pub fn confirm(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.node.ping();
    }

    /// As leader: when the peer was last heard in this term.
    pub fn heard_at(&self, node: NodeId) -> Option<Time> {
        self.proof.heard_at(node).filter(|_| self.is_leader())
    }

    /// As leader: whether the peer is heard and close to the end of the log, so that it could vote without holding anybody up.
    pub fn caught_up(&self, node: NodeId) -> bool {
        if !self.is_leader() || node == self.me {
            return self.is_leader();
        }
        let Some(progress) = self.node.raft.prs().get(node.0) else { return false };
        progress.state == ProgressState::Replicate
            && progress.matched + limits::RAFT_CAUGHT_UP_ENTRIES >= self.last_index()
            && self.heard_at(node).is_some_and(|at| self.now.since(at) <= self.settings.election)
    }

    /// As leader: whether the peer is known to have the log up to that entry.
    pub fn has(&self, node: NodeId, index: u64) -> bool {
        node == self.me || self.node.raft.prs().get(node.0).is_some_and(|progress| progress.matched >= index)
    }

    /// As leader: the follower is being sent a snapshot of the state at `index`; the entries after it are kept for it, within reason.
    pub fn snapshot_begun(&mut self, to: NodeId, index: u64) {
        if let Some(transfer) = self.transfers.get_mut(&to) {
            *transfer = Transfer { index: Some(index), again_at: None };
        }
    }

    /// As leader: the sending of a snapshot has ended. If the follower stays behind, `NeedSnapshot` comes again, later if all was sent.
    pub fn snapshot_sent(&mut self, to: NodeId, delivered: bool) {
        let wait = if delivered { self.settings.election } else { self.settings.heartbeat };
        if let Some(transfer) = self.transfers.get_mut(&to) {
            transfer.again_at = Some(self.now + wait);
        }
    }

    /// A whole snapshot of the state at (`index`, `term`) has arrived. `Ok(true)`: replace the applied state by it now; commits not yet
    /// polled are gone, `Configured` follows. `Ok(false)`: the log already covers it, keep the state. `Conflict`: this node leads.
    pub fn install_snapshot(&mut self, now: Time, index: u64, term: Term, configuration: Configuration) -> Result<bool, Status> {
        self.advance(now);
        configuration.check()?;
        check::check_place(&self.node.raft, index, term.0)?;
        if !configuration.contains(self.me) {
            return Err(Status::Malformed);
        }
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            return Err(Status::Conflict);
        }
        // The library restores followers only, and its term is never below that of an entry.
        if raft.state != StateRole::Follower || raft.term < term.0 {
            let term = raft.term.max(term.0);
            raft.become_follower(term, 0);
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term.0;
        snapshot.mut_metadata().set_conf_state(configuration.to_library());
        let installed = raft.restore(snapshot);
        if raft.leader_id != 0 {
            // The acceptance: from it the leader knows where to go on.
            let mut message = Message { from: self.me.0, to: raft.leader_id, term: raft.term, ..Default::default() };
            message.set_msg_type(MessageType::MsgAppendResponse);
            message.index = if installed { index } else { raft.raft_log.committed };
            raft.msgs.push(message);
        }
        if installed {
            self.outputs.retain(|output| !matches!(output, Output::Commit { .. } | Output::Configured { .. }));
            self.configuration = configuration.clone();
            self.outputs.push_back(Output::Configured { index, term, configuration });
        }
        self.settle();
        if installed {
            self.node.advance_apply_to(index);
        }
        Ok(installed)
    }

    // --- time

    /// Delivers the ticks that are due: after a jump at most an election timeout's worth, since what was not observed is not silence.
    fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
        let ticks_max = self.node.raft.election_timeout();
        let mut ticks = 0;
        while self.next_tick <= now {
            if ticks == ticks_max {
                self.next_tick = now + self.settings.tick;
                break;
            }
            ticks += 1;
            self.next_tick = self.next_tick + self.settings.tick;
            if self.node.tick() && !self.is_leader() {
                self.draw_timeout();
            }
            self.settle();
        }
        if ticks > 0 {
            self.leave_joint();
            self.plan_snapshots();
        }
    }

    /// Another election timeout, from the seeded generator.
    fn draw_timeout(&mut self) {
        let shortest = self.node.raft.election_timeout();
        self.timeout_ticks = shortest + self.random.below(shortest as u64) as usize;
    }

    // --- the library's outputs

    /// Takes everything out of the library: the log is in RAM, so what it wants persisted is persisted at once.
    fn settle(&mut self) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.send(ready.take_messages());
            if !ready.snapshot().is_empty() {
                let metadata = ready.snapshot().get_metadata();
                let (index, term) = (metadata.index, metadata.term);
                self.node.mut_store().restart_at(index, term);
            }
            self.node.mut_store().append(ready.take_entries());
            let persisted = ready.take_persisted_messages();
            let committed = ready.take_committed_entries();
            let mut light = self.node.advance_append(ready);
            self.send(persisted);
            self.send(light.take_messages());
            committed.into_iter().for_each(|entry| self.commit(entry));
            light.take_committed_entries().into_iter().for_each(|entry| self.commit(entry));
        }
        let raft = &self.node.raft;
        let seen = (raft.term, raft.state, raft.leader_id);
        if seen != self.seen {
            let told = (self.seen.0, self.seen.2);
            self.seen = seen;
            self.draw_timeout();
            self.proof.set_leading(if self.is_leader() { seen.0 } else { 0 });
            if !self.is_leader() {
                self.transfers.clear();
            }
            if told != (seen.0, seen.2) && (told.1, seen.2) != (0, 0) {
                self.outputs.push_back(Output::LeaderChanged { leader: self.leader(), term: self.term() });
            }
        }
        self.node.raft.set_randomized_election_timeout(self.timeout_ticks);
    }

    /// One committed entry goes out; a change of the configuration takes effect here, at once and in log order.
    fn commit(&mut self, entry: Entry) {
        let (index, term) = (entry.index, Term(entry.term));
        if entry.get_entry_type() == EntryType::EntryNormal {
            self.outputs.push_back(Output::Commit { index, term, data: entry.data });
            return;
        }
        let changes = convert::decode_changes(&entry.context).expect("checked on arrival");
        let Ok(state) = self.node.apply_conf_change(&convert::changes_to_library(&changes)) else {
            // Refused by every member alike, since it depends on nothing but the configuration.
            self.outputs.push_back(Output::Commit { index, term, data: Bytes::new() });
            return;
        };
        self.configuration = Configuration::from_library(&state);
        self.proof.retain(&self.configuration);
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Follower && !self.configuration.is_voter(self.me) {
            // The library leaves a removed leader in office, and panics when it commits again.
            let term = raft.term;
            raft.become_follower(term, 0);
        }
        self.outputs.push_back(Output::Configured { index, term, configuration: self.configuration.clone() });
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let Some((to, message)) = convert::message_to_wire(message) else { continue };
            for message in split(message) {
                self.push_send(to, message);
            }
        }
    }

    fn push_send(&mut self, to: NodeId, mut message: RaftMessage) {
        message.sent = self.now;
        message.echo = self.proof.echo_for(message.term, to);
        self.outputs.push_back(Output::Send { to, message });
    }

    // --- housekeeping of a leader

    /// The library leaves a joint configuration when it applies the change, but not in every order of elections.
    fn leave_joint(&mut self) {
        if self.is_leader() && self.configuration.is_joint() && !self.node.raft.has_pending_conf() {
            let proposed = self.node.propose_conf_change(Vec::new(), convert::changes_to_library(&[]));
            if proposed.is_ok() {
                self.settle();
            }
        }
    }

    /// Asks for a snapshot for every follower that is heard and needs entries which the log no longer has.
    fn plan_snapshots(&mut self) {
        if !self.is_leader() {
            return;
        }
        let first = self.node.store().first();
        let behind = |progress: &::raft::Progress| progress.next_idx < first;
        let progress = self.node.raft.prs();
        self.transfers.retain(|to, _| progress.get(to.0).is_some_and(behind));
        let wanting: BTreeSet<NodeId> = progress
            .iter()
            .filter(|(id, peer)| **id != self.me.0 && peer.recent_active && behind(peer))
            .map(|(&id, _)| NodeId(id))
            .collect();
        for to in wanting {
            let now = self.now;
            let waiting = self.transfers.get(&to).is_some_and(|transfer| transfer.again_at.is_none_or(|at| now < at));
            if !waiting {
                self.transfers.insert(to, Transfer::default());
                self.outputs.push_back(Output::NeedSnapshot { to });
            }
        }
    }

    /// Keeps the log within its bound; entries that a follower will need after its snapshot stay until it is four times that.
    fn compact(&mut self) {
        let (bytes, entries) = (self.settings.log_bytes, self.settings.log_entries);
        let applied = self.applied_index();
        let held = self.transfers.values().filter_map(|transfer| transfer.index).min().unwrap_or(u64::MAX);
        let log = self.node.mut_store();
        if log.bytes() > bytes || log.len() > entries {
            // Down to half, so that not every entry pays for the next.
            log.compact(applied.min(held), bytes / 2, entries / 2);
        }
        if log.bytes() > 4 * bytes || log.len() > 4 * entries {
            log.compact(applied, bytes / 2, entries / 2);
        }
    }
}

/// The library batches without a limit: cuts an append into messages that fit a frame. Each part is an append of its own.
fn split(mut message: RaftMessage) -> Vec<RaftMessage> {
    let cost = |entry: &RaftEntry| entry.data.len() + 64;
    let mut parts = Vec::new();
    loop {
        let mut bytes = 0;
        let fits = |entry: &&RaftEntry| {
            bytes += cost(entry);
            bytes <= limits::RAFT_MESSAGE_BYTES_MAX + 64
        };
        let count = message.entries.iter().take_while(fits).count().max(1);
        if count >= message.entries.len() {
            parts.push(message);
            return parts;
        }
        let rest = message.entries.split_off(count);
        let last = &message.entries[count - 1];
        let next = RaftMessage { index: last.index, log_term: last.term, entries: rest, ..message.clone() };
        parts.push(message);
        message = next;
    }
}
