//! What a leader does besides answering: heartbeats, declaring nodes dead, voters, sessions, and what unlinking and deleting leave behind.
//!
//! Everything here is volatile and level-triggered: a new leader starts with nothing and asks the replicated state what is to be done.
//! A duty whose command is in the log is not proposed again until it was applied, or a while has passed.

use std::collections::{BTreeMap, BTreeSet};

use dfs::cluster_map::MemberState;
use dfs::limits;
use dfs::time::Time;
use dfs::types::{ChunkHash, ClusterId, InodeId, Instance, NodeId, SessionId, Term, Timestamp};
use dfs::wire::message::{Request, Scrubbed};

use super::gate::Gate;
use super::holds::Holds;
use super::locks::LockQueues;
use super::membership::{self, Standing};
use super::rights::RightsTable;
use super::sessions::{Leases, Shortage};
use super::{Node, Purpose, Sabotage, Start};
use crate::namespace::{Command, Effect, SessionState, SpaceLimits};

/// What a node says of itself with every heartbeat.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub stored: u64,
    pub chunks: u64,
    pub resident: u64,
    /// `None`: it has not said so yet.
    pub room: Option<u64>,
    pub scrubbed: Scrubbed,
}

/// What the leader knows of one member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    pub heard: Time,
    pub load: Load,
    ping_at: Time,
    pinging: bool,
}

/// A command that the leader proposes of its own accord; one of each may be in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Duty {
    Found,
    Limits,
    Member,
    Configuration,
    Dead(NodeId),
    Expire(SessionId),
    Evict(SessionId),
    Revive(SessionId),
    Progress(SessionId),
    Trim,
    DropLocks(SessionId),
}

/// Deletions that wait for readers on their way, by time; the number keeps equal times apart.
type Deletions = BTreeMap<(Time, u64), Deletion>;

struct Deletion {
    holder: NodeId,
    item: (ChunkHash, Instance),
    attempts: u32,
}

/// Deletions that travel together.
struct Batch {
    holder: NodeId,
    attempts: u32,
    items: Vec<(ChunkHash, Instance)>,
}

/// A leader's memory of its term.
pub(super) struct Leading {
    term: Term,
    /// Cluster time when this term began, and the clock then: from there it advances at the clock's rate.
    began: (Time, Timestamp),
    /// Whether the wall clock is off, which has been said.
    clock_is_off: bool,
    contacts: BTreeMap<NodeId, Contact>,
    /// The leader before, and when it was last heard: its silence began before this term, and was observed.
    predecessor: Option<(NodeId, Time)>,
    /// Incarnations of which another one has been met at their address.
    proven_dead: BTreeSet<NodeId>,
    /// When voters that are dead or gone were last heard, or first missed.
    missed_since: BTreeMap<NodeId, Time>,
    pub(super) leases: Leases,
    pub(super) holds: Holds,
    pub(super) rights: RightsTable,
    pub(super) gate: Gate,
    pub(super) shortage: Shortage,
    pub(super) locks: LockQueues,
    /// Duties under way, until when.
    proposed: BTreeMap<Duty, Time>,
    /// Inodes in a `Reap` that is not yet applied.
    pub(super) reaping: BTreeSet<InodeId>,
    /// Inodes that lost their last name a moment ago, and until when they are spared: who looked one up before may still open it.
    spared: BTreeMap<InodeId, Time>,
    deletions: Deletions,
    deletion_number: u64,
    next_duties: Time,
}

impl Leading {
    fn new(term: Term, now: Time, time: Timestamp, predecessor: Option<(NodeId, Time)>) -> Self {
        Leading {
            term,
            began: (now, time),
            clock_is_off: false,
            contacts: BTreeMap::new(),
            predecessor,
            proven_dead: BTreeSet::new(),
            missed_since: BTreeMap::new(),
            leases: Leases::new(now),
            holds: Holds::default(),
            rights: RightsTable::default(),
            gate: Gate::default(),
            shortage: Shortage::default(),
            locks: LockQueues::default(),
            proposed: BTreeMap::new(),
            reaping: BTreeSet::new(),
            spared: BTreeMap::new(),
            deletions: BTreeMap::new(),
            deletion_number: 0,
            next_duties: now,
        }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    pub fn next_deadline(&self) -> Time {
        self.deletions.first_key_value().map_or(Time::NEVER, |(&(at, _), _)| at).min(self.next_duties)
    }

    /// Whether every session of the term before has lost what it could cache, unless it has told this leader.
    pub fn is_grace_over(&self, now: Time) -> bool {
        now.since(self.began.0) > limits::SESSION_LEASE + limits::SESSION_MARGIN
    }

    /// Look at everything in this turn.
    pub fn wake(&mut self, now: Time) {
        self.next_duties = now;
    }

    pub fn contact(&self, node: NodeId) -> Option<&Contact> {
        self.contacts.get(&node)
    }

    pub fn on_pong(&mut self, now: Time, node: NodeId, load: Load) {
        if let Some(contact) = self.contacts.get_mut(&node) {
            (contact.heard, contact.load, contact.pinging) = (now, load, false);
        }
    }

    pub fn on_ping_failed(&mut self, node: NodeId) {
        if let Some(contact) = self.contacts.get_mut(&node) {
            contact.pinging = false;
        }
    }

    /// The inode lost its last name. Beyond the bound nothing is spared.
    fn spare(&mut self, now: Time, ino: InodeId) {
        if self.spared.len() < limits::SPARED_MAX {
            self.spared.insert(ino, now + limits::REAP_GRACE);
        }
    }

    /// Any sign of life counts.
    pub fn on_heard(&mut self, now: Time, node: NodeId) {
        if let Some(contact) = self.contacts.get_mut(&node) {
            contact.heard = now;
        }
    }

    /// Another incarnation answers where this one did.
    pub fn on_proof_of_death(&mut self, node: NodeId) {
        if self.proven_dead.insert(node) {
            self.next_duties = Time(0);
        }
    }

    /// This process stood still, so everybody else seemed silent.
    pub fn forgive(&mut self, now: Time) {
        for contact in self.contacts.values_mut() {
            contact.heard = now;
        }
        self.predecessor = None;
        for missed in self.missed_since.values_mut() {
            *missed = now;
        }
        self.leases.forgive(now);
    }

    /// Whether the duty may be proposed now; if so it counts as proposed.
    pub fn take_up(&mut self, now: Time, duty: Duty) -> bool {
        if self.proposed.get(&duty).is_some_and(|&until| now < until) {
            return false;
        }
        self.proposed.insert(duty, now + limits::DUTY_RETRY);
        true
    }

    /// The duty's command has been applied.
    pub fn settle(&mut self, duty: Duty) {
        self.proposed.remove(&duty);
    }

    /// A holder did not confirm a deletion: a few more attempts, then its audit finds out.
    pub fn retry_deletion(&mut self, now: Time, holder: NodeId, items: Vec<(ChunkHash, Instance)>, attempts: u32) {
        if attempts < limits::DELETE_ATTEMPTS_MAX {
            items.into_iter().for_each(|item| self.delete_later(now + limits::DELETE_RETRY, holder, item, attempts));
        }
    }

    fn delete_later(&mut self, at: Time, holder: NodeId, item: (ChunkHash, Instance), attempts: u32) {
        if self.deletions.len() < limits::DELETIONS_MAX {
            self.deletion_number += 1;
            self.deletions.insert((at, self.deletion_number), Deletion { holder, item, attempts });
        }
    }

    /// Deletions that are due, by holder and number of attempts, in batches.
    fn due_deletions(&mut self, now: Time) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut open: BTreeMap<(NodeId, u32), usize> = BTreeMap::new();
        while let Some(entry) = self.deletions.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let Deletion { holder, item, attempts } = entry.remove();
            let index = open.get(&(holder, attempts)).copied().filter(|&index| batches[index].items.len() < limits::CHUNK_ITEMS_MAX);
            match index {
                Some(index) => batches[index].items.push(item),
                None => {
                    open.insert((holder, attempts), batches.len());
                    batches.push(Batch { holder, attempts, items: vec![item] });
                }
            }
        }
        batches
    }

    /// Asserts that indexes agree and bounds hold.
    pub fn check_invariants(&self) {
        self.holds.check_invariants();
        self.rights.check_invariants();
        self.gate.check_invariants();
        self.locks.check_invariants();
        assert!(self.deletions.len() <= limits::DELETIONS_MAX && self.spared.len() <= limits::SPARED_MAX);
        assert!(self.contacts.len() <= limits::NODES_MAX);
    }
}

impl Node {
    pub(super) fn begin_leading(&mut self, term: Term) {
        tracing::info!(term = term.0, node = %self.id, "leads the namespace");
        let time = self.choose_time();
        if self.sabotaged(Sabotage::ForgetRequestTable) {
            self.namespace.forget_outcomes_for_test();
        }
        let predecessor = self.followed.map(|leader| (leader, self.leader_heard));
        let mut leading = Leading::new(term, self.now, time, predecessor);
        let caching = self.namespace.sessions().filter(|(_, session)| session.caches);
        let (open, expired): (Vec<_>, Vec<_>) = caching.partition(|(_, session)| session.state == SessionState::Open);
        leading.gate.set_unknown(open.into_iter().map(|(id, _)| id));
        // What they cached was void before this term, and may have changed since.
        expired.into_iter().for_each(|(id, _)| leading.rights.void(id));
        self.leading = Some(leading);
        self.pushed = dfs::types::Epoch(0);
    }

    /// Cluster time at the beginning of a term: what it was when this node last heard of it, and what has passed since on a clock that never
    /// steps. The wall clock has a say only in the first term of a cluster, and to make up for what was lost on the way.
    fn choose_time(&self) -> Timestamp {
        let (at, told) = self.time_heard;
        if self.map.cluster == ClusterId(0) {
            return self.wall;
        }
        let expected = told.after(self.now.since(at));
        if self.wall > expected && self.wall <= expected.after(limits::CLOCK_OFF_MAX) { self.wall } else { expected }
    }

    /// Takes note of cluster time as an applied entry tells it. One that comes late, after a pause say, tells less than what was known before.
    /// A new leader may have begun before it had applied what is in its log.
    pub(super) fn hear_time(&mut self) {
        let told = self.namespace.time();
        let (at, before) = self.time_heard;
        if told > before.after(self.now.since(at)) {
            self.time_heard = (self.now, told);
        }
        let ahead = self.leading.is_some() && told > self.cluster_time();
        if let Some(leading) = self.leading.as_mut().filter(|_| ahead) {
            leading.began = (self.now, told);
        }
    }

    /// Says it, once, if this machine's clock is wrong. Nothing follows from it.
    fn watch_clock(&mut self) {
        let (wall, time) = (self.wall, self.cluster_time());
        let off = wall > time.after(limits::CLOCK_OFF_MAX) || time > wall.after(limits::CLOCK_OFF_MAX);
        let Some(leading) = &mut self.leading else { return };
        if off && !leading.clock_is_off {
            tracing::warn!(seconds = wall.seconds - time.seconds, "this machine's clock is off; times of files go on by cluster time");
        }
        leading.clock_is_off = off;
    }

    /// Cluster time now: from the beginning of the term on it advances at the clock's rate, whatever is done to the wall clock.
    pub fn cluster_time(&self) -> Timestamp {
        let Some(leading) = &self.leading else { return self.wall };
        let (began, time) = leading.began;
        time.after(self.now.since(began))
    }

    /// Everything that a leader finds to do.
    pub(super) fn pursue_duties(&mut self) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        let due = leading.due_deletions(now);
        let look = leading.next_duties <= now;
        if look {
            leading.next_duties = now + limits::DUTY_INTERVAL;
        }
        due.into_iter().for_each(|batch| self.send_deletion(batch));
        if look {
            self.watch_clock();
            self.pursue_founding();
            self.pursue_contacts();
            self.pursue_configuration();
            self.pursue_sessions();
            self.pursue_locks();
            self.pursue_orphans();
            self.pursue_recalls();
        }
    }

    /// Proposes a command of the leader's own, once.
    pub(super) fn pursue(&mut self, duty: Duty, command: Command) {
        let now = self.now;
        if self.leading.as_mut().is_some_and(|leading| leading.take_up(now, duty))
            && let Err(status) = self.propose(command)
        {
            tracing::debug!(?duty, %status, "not proposed");
        }
    }

    /// A new cluster gets its name, its first member, and the bound of its metadata.
    fn pursue_founding(&mut self) {
        if self.map.cluster.0 == 0 || self.namespace.map().cluster.0 == 0 {
            let (replicas, awaited) = match &self.config.start {
                Start::Bootstrap { replicas } => (*replicas, Vec::new()),
                Start::Peers { replicas, .. } if self.forming.founded => (*replicas, self.forming.peers().iter().cloned().collect()),
                Start::Peers { .. } | Start::Join(_) => return,
            };
            let replicas = if self.sabotaged(Sabotage::OneReceipt) { 1 } else { replicas };
            return self.pursue(Duty::Found, Command::Found { cluster: self.cluster, replicas, awaited });
        }
        let founds = matches!(self.config.start, Start::Bootstrap { .. }) || self.forming.founded;
        if self.namespace.map().member(self.id).is_none() && founds {
            return self.pursue(Duty::Member, Command::SetMember(self.member()));
        }
        let limits = self.choose_limits();
        if limits != self.namespace.limits() {
            self.pursue(Duty::Limits, Command::SetLimits(limits));
        }
    }

    /// The voters' smallest budget: a quarter of what a node lends. A floor keeps small test clusters usable; a node that lends
    /// nothing only votes, and is trusted with the floor's eightfold.
    fn choose_limits(&self) -> SpaceLimits {
        let floor = limits::NAMESPACE_BYTES_MIN;
        let voters = self.map.voters.iter().filter_map(|&voter| self.map.member(voter));
        let budget = |memory: u64| if memory == 0 { 8 * floor } else { (memory / 4).max(floor) };
        let namespace_bytes_max = voters.map(|member| budget(member.memory)).min().unwrap_or(floor);
        SpaceLimits { namespace_bytes_max, inline_bytes_max: namespace_bytes_max / 2 }
    }

    /// Heartbeats, and what silence means.
    fn pursue_contacts(&mut self) {
        let (now, me) = (self.now, self.id);
        let members: BTreeMap<NodeId, MemberState> =
            self.map.members.iter().filter(|member| member.id != me).map(|member| (member.id, member.state)).collect();
        let Some(leading) = &mut self.leading else { return };
        leading.contacts.retain(|node, _| members.get(node).is_some_and(|state| *state != MemberState::Dead));
        leading.proven_dead.retain(|node| members.contains_key(node));
        let (mut ping, mut dead) = (Vec::new(), Vec::new());
        for (&node, _) in members.iter().filter(|(_, state)| **state != MemberState::Dead) {
            // Some of the silence must fall into this term: who was cut off for a moment has to be given the time to answer.
            let window = now - (limits::NODE_DEAD_AFTER - limits::PREDECESSOR_PATIENCE);
            let heard = leading.predecessor.filter(|&(leader, _)| leader == node).map_or(now, |(_, at)| at.max(window));
            let fresh = Contact { heard, load: Load::default(), ping_at: now, pinging: false };
            let contact = leading.contacts.entry(node).or_insert(fresh);
            if let Some(at) = self.group.as_ref().and_then(|group| group.heard_at(node)) {
                contact.heard = contact.heard.max(at);
            }
            if leading.proven_dead.contains(&node) || now.since(contact.heard) >= limits::NODE_DEAD_AFTER {
                dead.push(node);
            } else if !contact.pinging && now >= contact.ping_at {
                (contact.pinging, contact.ping_at) = (true, now + limits::HEARTBEAT_INTERVAL);
                ping.push(node);
            }
        }
        let (term, epoch) = (leading.term, self.map.epoch);
        let crowded = self.crowded_members();
        self.repair.crowded = crowded.iter().copied().collect();
        for node in ping {
            let request = Request::Ping { term, epoch, sent: now, crowded: crowded.clone() };
            self.ask(node, request, Purpose::Ping(node), limits::PING_TIMEOUT);
        }
        // A leader that is cut off hears nobody and knows nothing about them. What it proposed in that state would come true when it
        // leads again: it would take every voter out of the cluster at once.
        if !self.group.as_ref().is_some_and(|group| group.can_read(now, now)) {
            return;
        }
        for node in dead {
            tracing::warn!(%node, "declaring dead");
            self.pursue(Duty::Dead(node), Command::MarkDead { node });
        }
    }

    /// Voters and learners as they should be.
    fn pursue_configuration(&mut self) {
        let (now, me) = (self.now, self.id);
        let (Some(leading), Some(group)) = (&mut self.leading, &mut self.group) else { return };
        if group.is_changing() || self.map.epoch != self.namespace.map().epoch || !self.map.is_living(me) {
            return;
        }
        let present = group.configuration().clone();
        let mut standings = Vec::new();
        for member in &self.map.members {
            let living = member.state != MemberState::Dead;
            if living {
                leading.missed_since.remove(&member.id);
            }
            let heard = *leading.missed_since.entry(member.id).or_insert(now);
            // A voter that is only silent may come back with its memory; one that was met anew cannot.
            let replaceable = !living
                && (leading.proven_dead.contains(&member.id) || now.since(heard) >= limits::VOTER_REPLACE_AFTER - limits::NODE_DEAD_AFTER);
            let caught_up = living && group.caught_up(member.id) && group.has(member.id, self.forming.formed_index);
            let leaving = member.state == MemberState::Leaving;
            standings.push(Standing { node: member.id, living, leaving, caught_up, replaceable });
        }
        leading.missed_since.retain(|node, _| self.map.member(*node).is_some_and(|member| member.state == MemberState::Dead));
        // While the cluster is being formed its founder alone votes, so that with the founder it is gone for certain.
        let most = if self.map.is_forming() { 1 } else { limits::VOTERS_MAX };
        let (voters, learners) = membership::plan_configuration(me, &present, &standings, most);
        if (voters == present.voters && learners == present.learners) || !leading.take_up(now, Duty::Configuration) {
            return;
        }
        match group.propose_voters(now, &voters, &learners) {
            Ok(()) => tracing::info!(?voters, ?learners, "changing the configuration"),
            Err(status) => tracing::debug!(%status, "configuration not changed"),
        }
    }

    /// Unlinked inodes that nobody holds are freed, and so is what truncations cut off, in slices.
    fn pursue_orphans(&mut self) {
        let (now, roomy) = (self.now, self.is_roomy());
        let Some(leading) = &mut self.leading else { return };
        leading.spared.retain(|_, until| roomy && now < *until);
        let leading = &*leading;
        let told = self.namespace.sessions().all(|(session, _)| leading.holds.is_whole(session));
        let free = |ino: &InodeId| !leading.holds.is_held(*ino) && !leading.spared.contains_key(ino);
        let reap: Vec<InodeId> =
            if told { self.namespace.orphans().filter(free).take(limits::REAP_BATCH_MAX).collect() } else { Vec::new() };
        let trim: Vec<InodeId> = self.namespace.cuts_pending().take(limits::REAP_BATCH_MAX).collect();
        // One at a time: until it is applied nobody may open what it names.
        if !reap.is_empty()
            && leading.reaping.is_empty()
            && self.propose(Command::Reap { inos: reap.clone() }).is_ok()
            && let Some(leading) = &mut self.leading
        {
            leading.reaping = reap.into_iter().collect();
        }
        if !trim.is_empty() {
            self.pursue(Duty::Trim, Command::Trim { inos: trim });
        }
    }

    /// Whether unlinked inodes may keep their space for a moment: writes are refused by what is stored, theirs included.
    fn is_roomy(&self) -> bool {
        let usage = self.namespace.usage();
        usage.charged_bytes + usage.namespace_bytes <= self.namespace.capacity() / 2
    }

    /// Whether space is about to be freed that counts as used, so that whoever was refused should ask again.
    pub(super) fn is_reclaiming(&self) -> bool {
        let Some(leading) = &self.leading else { return false };
        let free = |ino: InodeId| !leading.holds.is_held(ino);
        self.namespace.cuts_pending().next().is_some() || self.namespace.orphans().take(limits::COMMAND_VISITS_MAX).any(free)
    }

    /// What applying an entry asks of a leader.
    pub(super) fn on_effect(&mut self, effect: Effect) {
        if effect == Effect::MapChanged {
            let map = self.namespace.map().clone();
            self.adopt_map(&map);
        }
        let (now, roomy) = (self.now, self.is_roomy());
        let Some(leading) = &mut self.leading else { return };
        match effect {
            Effect::Deleted { hash, instance, holders } => {
                for holder in holders {
                    leading.delete_later(now + limits::DELETE_GRACE, holder, (hash, instance), 0);
                }
            }
            Effect::SessionOpened(session) => leading.leases.renew(now, session),
            Effect::SessionEnded(session) => {
                leading.leases.end(session);
                leading.holds.end(session);
                leading.rights.end(session);
                leading.gate.end(now, session);
                leading.locks.on_session_ended(session);
                leading.wake(now);
            }
            Effect::Unlocked(ino) => leading.locks.on_changed(ino),
            Effect::Orphaned(ino) if roomy => leading.spare(now, ino),
            Effect::MapChanged | Effect::Orphaned(_) | Effect::Cut(_) => leading.wake(now),
        }
    }

    fn send_deletion(&mut self, batch: Batch) {
        let Batch { holder, attempts, items } = batch;
        if holder == self.id {
            return self.forget_uploads(&items);
        }
        if self.map.is_living(holder) {
            let purpose = Purpose::Delete { holder, items: items.clone(), attempts: attempts + 1 };
            self.ask(holder, Request::Delete { items }, purpose, limits::ATTEMPT_TIMEOUT);
        }
    }
}
