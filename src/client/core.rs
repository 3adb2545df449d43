//! The core itself: takes calls, hands each to its room, ends every one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster_map::ClusterMap;
use crate::limits;
use crate::link::{LinkEvent, Role};
use crate::links::{Links, LinksOutput, Peer, Ticket};
use crate::placement::PlacementTable;
use crate::random::Random;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Address, ChunkHash, ClusterId, Epoch, InodeId, NodeId, Rights, Term, Timestamp};
use crate::wire::message::{Failure, Notice, Request, Response, StatusReport};
use crate::wire::namespace::{Answer, Op, Query};

use super::asks::{Ask, Owner, Target};
use super::behind::Behind;
use super::cache::ChunkCache;
use super::changes::Changes;
use super::delegated::Delegated;
use super::fetch::Fetch;
use super::flush::{FlushBook, Waiting};
use super::fold::FoldBook;
use super::holds::Holds;
use super::layout::Layouts;
use super::locks::{LockBook, LockJob};
use super::names::Names;
use super::read::ReadJob;
use super::recall::Recalls;
use super::rights::RightsBook;
use super::router::Router;
use super::session::Session;
use super::space::SpaceJob;
use super::unnamed::Unnamed;
use super::upload::{Upload, Uploaded};
use super::write::WriteJob;
use super::{Call, Config, Counters, Event, Output, Reply, Sabotage};

/// Where the core stands with its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Looking for a node that knows the cluster.
    Finding,
    /// Opening the session.
    Opening,
    Ready,
    /// Nothing works any more, for this reason.
    Over(Status),
}

/// What a link ticket was for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Probe(Address),
    Ask(u64),
    Fetch(u64),
    Upload(u64),
    /// Nobody waits (a report of bad bytes).
    Told,
}

/// One alarm per thing that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    Probe,
    Open,
    Renew,
    Map,
    Ask(u64),
    Fetch(u64),
    Upload(u64),
    Job(u64),
    Fold,
    Behind,
}

/// A call in progress, or work of the core's own.
pub(super) enum Work {
    /// One request, one answer.
    Pass {
        held: Option<HeldChange>,
    },
    Status {
        first: Option<Box<StatusReport>>,
    },
    Read(Box<ReadJob>),
    Write(Box<WriteJob>),
    Space(Box<SpaceJob>),
    Flush {
        waits_for: BTreeSet<u64>,
        /// The newest write of each file that has to be committed.
        files: BTreeMap<InodeId, u64>,
    },
    /// A call that has not begun.
    Waiting(Box<Waiting>),
    EndSession,
    Lock(Box<LockJob>),
}

/// What an answered request means for the inodes held.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeldChange {
    /// A create that holds what it made, begun in that term.
    Created(Term),
    Held(InodeId, u64, Term),
}

pub(super) struct Job {
    /// `None` for work of the core's own.
    pub(super) token: Option<u64>,
    pub(super) deadline: Time,
    pub(super) work: Work,
    /// Whether a flush waits for it.
    pub(super) changes: bool,
}

/// Something that one room finished and another waits for; handled in turn rather than by recursion.
pub(super) enum Internal {
    Asked(Owner, Result<Response, Status>),
    Fetched {
        job: u64,
        hash: ChunkHash,
        offset: u64,
        result: Result<Bytes, Status>,
    },
    Uploaded {
        job: u64,
        uploaded: Uploaded,
    },
    MapSettled {
        job: u64,
    },
    /// What became of the fold that the job waits for.
    Folded {
        job: u64,
        result: Result<(), Status>,
    },
}

/// What the core knows of a node's responsiveness on the bulk lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NodeLoad {
    pub(super) outstanding: u64,
    pub(super) answered: Time,
    /// Others are preferred until then.
    pub(super) suspect_until: Time,
}

/// The client core.
pub struct Core {
    pub(super) config: Config,
    pub(super) random: Random,
    pub(super) phase: Phase,
    pub(super) links: Links,
    pub(super) router: Router,
    pub(super) session: Session,
    pub(super) map: Option<ClusterMap>,
    /// Newest epoch heard of.
    pub(super) epoch_wanted: Epoch,
    pub(super) map_asked: bool,
    pub(super) map_waiters: Vec<u64>,
    pub(super) placement: PlacementTable,
    pub(super) tickets: BTreeMap<Ticket, Purpose>,
    pub(super) asks: BTreeMap<u64, Ask>,
    /// Operations beyond the session's window, in order.
    pub(super) ops_waiting: VecDeque<u64>,
    pub(super) reclaiming: bool,
    /// What is being reclaimed was overtaken by a new hold: tell all again.
    pub(super) reclaim_stale: bool,
    pub(super) fetches: BTreeMap<u64, Fetch>,
    pub(super) uploads: BTreeMap<u64, Upload>,
    pub(super) uploads_waiting: VecDeque<u64>,
    pub(super) upload_bytes: usize,
    /// Hashes that this client put lately, oldest first.
    pub(super) put_lately: (BTreeSet<ChunkHash>, VecDeque<ChunkHash>),
    pub(super) loads: BTreeMap<NodeId, NodeLoad>,
    pub(super) cache: ChunkCache,
    pub(super) layouts: Layouts,
    /// What may be kept, what is known, and what of it is being lost or changed. Empty in a session that does not cache.
    pub(super) rights: RightsBook,
    pub(super) names: Names,
    pub(super) changes: Changes,
    pub(super) recalls: Recalls,
    /// Whether the last renewal prolonged the rights.
    pub(super) prolonged: bool,
    /// An operation to lay ghosts is under way.
    pub(super) laying: bool,
    /// Cluster time as told last, and when.
    pub(super) cluster_time: Option<(Time, Timestamp)>,
    pub(super) holds: Holds,
    /// Operations that wait until the leader has been told that an inode is open.
    pub(super) ops_held: Vec<(InodeId, u64, Op)>,
    pub(super) folds: FoldBook,
    pub(super) locks: LockBook,
    pub(super) delegated: Delegated,
    pub(super) jobs: BTreeMap<u64, Job>,
    /// Those of the jobs that are flushes.
    flushes: BTreeSet<u64>,
    pub(super) write_bytes: usize,
    pub(super) behind: Behind,
    pub(super) flushing: FlushBook,
    pub(super) unnamed: Unnamed,
    pub(super) next_id: u64,
    alarms: BTreeSet<(Time, Alarm)>,
    armed: BTreeMap<Alarm, Time>,
    pub(super) internal: VecDeque<Internal>,
    outputs: VecDeque<Output>,
    pub(super) counters: Counters,
}

impl Core {
    /// A core that begins to look for its cluster at once.
    pub fn new(config: Config, now: Time, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let links = Links::new(Role::Client, config.session.0, random.fork());
        let behind_max = if config.behind { (config.cache_bytes / limits::BEHIND_CACHE_SHARE).min(limits::BEHIND_BYTES_MAX) } else { 0 };
        let tables_max = limits::CLIENT_TABLE_BYTES_MAX.min(config.cache_bytes / limits::CLIENT_TABLE_SHARE);
        let mut core = Core {
            router: Router::new(config.nodes.clone()),
            session: Session::new(config.session),
            cache: ChunkCache::new(config.cache_bytes - behind_max - 2 * tables_max),
            random,
            phase: Phase::Finding,
            links,
            map: None,
            epoch_wanted: Epoch(0),
            map_asked: false,
            map_waiters: Vec::new(),
            placement: PlacementTable::new(),
            tickets: BTreeMap::new(),
            asks: BTreeMap::new(),
            ops_waiting: VecDeque::new(),
            reclaiming: false,
            reclaim_stale: false,
            fetches: BTreeMap::new(),
            uploads: BTreeMap::new(),
            uploads_waiting: VecDeque::new(),
            upload_bytes: 0,
            put_lately: Default::default(),
            loads: BTreeMap::new(),
            layouts: Layouts::new(tables_max),
            rights: RightsBook::new(),
            names: Names::new(tables_max),
            changes: Changes::default(),
            recalls: Recalls::default(),
            prolonged: true,
            laying: false,
            cluster_time: None,
            holds: Holds::default(),
            ops_held: Vec::new(),
            folds: FoldBook::new(),
            locks: LockBook::default(),
            delegated: Delegated::default(),
            jobs: BTreeMap::new(),
            flushes: BTreeSet::new(),
            write_bytes: 0,
            behind: Behind::new(behind_max),
            flushing: FlushBook::default(),
            unnamed: Unnamed::default(),
            next_id: 1,
            alarms: BTreeSet::new(),
            armed: BTreeMap::new(),
            internal: VecDeque::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
        };
        core.probe(now);
        core.pump(now);
        core
    }

    /// Begins a call; `Output::Done` with the token follows exactly once. Tokens are the caller's.
    pub fn submit(&mut self, now: Time, token: u64, call: Call) {
        if let Phase::Over(status) = self.phase {
            return self.output(Output::Done { token, result: Err(status) });
        }
        // Files that are committed are no calls, however many there are.
        if self.jobs.len() >= limits::CLIENT_CALLS_MAX + self.flushing.running() {
            return self.output(Output::Done { token, result: Err(Status::Busy) });
        }
        self.begin_call(now, token, call);
        self.pump(now);
    }

    pub(super) fn begin_call(&mut self, now: Time, token: u64, call: Call) {
        if !self.behind.is_empty() {
            if let Call::Query(query @ (Query::Xattr { .. } | Query::Xattrs { .. })) = &call
                && let Some(result) = self.answer_known(now, query)
            {
                return self.output(Output::Done { token, result });
            }
            let files = self.dirty_before(&call);
            if !files.is_empty() {
                self.wait_for_files(now, token, call, files);
                return;
            }
        }
        if let Call::Query(Query::TestLock { ino, .. }) = call
            && self.test_lock_waits(now, ino)
            && self.wait_until_told(now, token, ino, call.clone())
        {
            return;
        }
        let deadline = now + self.config.op_timeout;
        match call {
            Call::Op(op) => self.start_op(now, token, op),
            Call::Query(query) => self.start_query(now, token, query),
            Call::Read { ino, range } => self.start_read(now, token, ino, range),
            Call::Locate { ino, range } => self.start_locate(now, token, ino, range),
            call @ Call::Write { .. } => self.begin_write(now, token, call),
            call @ (Call::Allocate { .. } | Call::Copy { .. } | Call::Seek { .. }) => self.start_space(now, token, call),
            Call::Map => {
                let known = Epoch(0);
                self.start_pass(now, token, Request::Map { known }, Target::Leader, None);
            }
            Call::Status(address) => {
                let target = address.map_or(Target::Leader, |address| Target::Node(Peer { address, node: None }));
                let job = self.add_job(Some(token), deadline, Work::Status { first: None }, false);
                self.ask(now, Request::Status, target, Owner::Job(job), self.config.op_timeout);
            }
            Call::Flush => self.start_sync(now, token, self.behind.marks()),
            Call::Sync { ino } => {
                if let Some(status) = self.take_lost(ino) {
                    return self.output(Output::Done { token, result: Err(status) });
                }
                self.start_sync(now, token, self.behind.mark(ino).map(|mark| (ino, mark)).into_iter().collect());
            }
            Call::EndSession => {
                let job = self.add_job(Some(token), deadline, Work::EndSession, false);
                self.ask(now, Request::EndSession, Target::Leader, Owner::Job(job), self.config.op_timeout);
            }
            Call::Drain(node) => self.start_pass(now, token, Request::Drain { node }, Target::Leader, None),
            Call::Recover { address, cluster } => {
                let target = Target::Node(Peer { address, node: None });
                self.start_pass(now, token, Request::Recover { cluster }, target, None);
            }
            Call::Rejoin { address, cluster, to } => {
                let target = Target::Node(Peer { address, node: None });
                self.start_pass(now, token, Request::Rejoin { cluster, to }, target, None);
            }
            Call::Check { node: None, check } => self.start_pass(now, token, Request::Check(check), Target::Leader, None),
            Call::Check { node: Some(node), check } => self.start_pass_to(now, token, Request::Check(check), node),
            Call::Debug { node, action } => self.start_pass_to(now, token, Request::Debug(action), node),
            Call::Shutdown => self.start_pass(now, token, Request::Shutdown, Target::Leader, None),
            Call::Lock { ino, lock } => self.start_lock(now, token, ino, lock),
        }
    }

    fn start_sync(&mut self, now: Time, token: u64, files: BTreeMap<InodeId, u64>) {
        let waits_for: BTreeSet<u64> = self.jobs.iter().filter(|(_, job)| job.changes).map(|(id, _)| *id).collect();
        let inos = files.keys().copied().collect();
        let deadline = now + self.config.op_timeout;
        let job = self.add_job(Some(token), deadline, Work::Flush { waits_for, files }, false);
        self.flushes.insert(job);
        self.arm(deadline, Alarm::Job(job));
        self.await_files(now, job, inos);
        self.on_flush_progress(now, job);
    }

    /// A call goes on under another number.
    pub(super) fn succeed(&mut self, now: Time, before: u64, after: Option<u64>) {
        for flush in self.flushes.clone() {
            if let Some(Job { work: Work::Flush { waits_for, .. }, .. }) = self.jobs.get_mut(&flush)
                && waits_for.remove(&before)
            {
                waits_for.extend(after);
                self.on_flush_progress(now, flush);
            }
        }
    }

    /// Takes an event of a link that this core dialled.
    pub fn on_link(&mut self, now: Time, event: LinkEvent) {
        self.links.on_event(now, event);
        self.pump(now);
    }

    /// Does what is due.
    pub fn on_deadline(&mut self, now: Time) {
        self.links.on_deadline(now);
        while let Some(&(at, alarm)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.disarm(alarm);
            match alarm {
                Alarm::Probe => self.probe(now),
                Alarm::Open => self.open_session(now),
                Alarm::Renew => self.renew(now),
                Alarm::Map => self.refresh_map(now),
                Alarm::Ask(id) => self.on_ask_alarm(now, id),
                Alarm::Fetch(id) => self.on_fetch_alarm(now, id),
                Alarm::Upload(id) => self.advance_upload(now, id),
                Alarm::Job(id) => self.on_job_alarm(now, id),
                Alarm::Fold | Alarm::Behind => {} // the pump begins what is due
            }
        }
        self.pump(now);
    }

    /// When [`Core::on_deadline`] has something to do.
    pub fn next_deadline(&self) -> Time {
        let own = self.alarms.first().map_or(Time::NEVER, |&(at, _)| at);
        own.min(self.links.next_deadline())
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(action) = self.links.poll_action() {
            return Some(Output::Link(action));
        }
        self.outputs.pop_front()
    }

    /// Until when the caches above may use attributes and bytes of the inode as last told. `None`: not at all.
    pub fn lifetime(&self, ino: InodeId) -> Option<Time> {
        let settled = !self.changes.touch_inode(ino) && !self.changes.is_haunted();
        // Not under `WRITE`: it may be on its way back, and goes without another word to them.
        self.rights.until(ino, Rights::READ).filter(|_| settled && self.phase == Phase::Ready)
    }

    /// An [`Output::Invalidate`] has been obeyed.
    pub fn on_invalidated(&mut self, now: Time, id: u64) {
        self.on_obeyed(now, id);
        self.pump(now);
    }

    /// What was sent and received so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The cluster, once found.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.map.as_ref().map(|map| map.cluster)
    }

    /// The cluster map, once known.
    pub fn map(&self) -> Option<&ClusterMap> {
        self.map.as_ref()
    }

    /// Calls not answered yet.
    pub fn calls(&self) -> usize {
        self.jobs.values().filter(|job| job.token.is_some()).count()
    }

    /// Asserts what must hold between inputs.
    pub fn check_invariants(&self) {
        self.links.check_invariants();
        self.cache.check_invariants();
        self.folds.check_invariants();
        self.layouts.check_invariants();
        self.rights.check_invariants();
        self.names.check_invariants();
        self.changes.check_invariants();
        self.recalls.check_invariants();
        self.holds.check_invariants();
        self.locks.check_invariants();
        self.delegated.check_invariants();
        if !matches!(self.phase, Phase::Over(_)) {
            self.check_flush_invariants();
        }
        assert_eq!(self.alarms.len(), self.armed.len());
        assert!(self.internal.is_empty());
        let in_flight: usize = self.uploads.values().filter(|upload| upload.started).map(|upload| upload.bytes.len()).sum();
        assert_eq!(in_flight, self.upload_bytes);
        let outstanding: u64 = self.loads.values().map(|load| load.outstanding).sum();
        let fetching: u64 = self.fetches.values().map(Fetch::outstanding).sum();
        let putting: u64 = self.uploads.values().map(Upload::outstanding).sum();
        assert_eq!(outstanding, fetching + putting);
        if !matches!(self.phase, Phase::Over(_)) {
            let writes: usize =
                self.jobs.values().map(|job| if let Work::Write(write) = &job.work { write.bytes_charged } else { 0 }).sum();
            assert_eq!(writes, self.write_bytes);
        }
    }

    pub(super) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.config.sabotage == Some(sabotage)
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn arm(&mut self, at: Time, alarm: Alarm) {
        if self.armed.get(&alarm) == Some(&at) {
            return;
        }
        if let Some(before) = self.armed.insert(alarm, at) {
            self.alarms.remove(&(before, alarm));
        }
        self.alarms.insert((at, alarm));
    }

    pub(super) fn disarm(&mut self, alarm: Alarm) {
        if let Some(at) = self.armed.remove(&alarm) {
            self.alarms.remove(&(at, alarm));
        }
    }

    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Delay before attempt `attempt`, doubled each time and jittered.
    pub(super) fn backoff(&mut self, attempt: u32) -> Duration {
        let timing = &self.config.timing;
        let full = timing.backoff_min.saturating_mul(1 << attempt.min(10)).min(timing.backoff_max);
        full / 2 + Duration::from_nanos(self.random.below(full.as_nanos() as u64 / 2 + 1))
    }

    pub(super) fn send(&mut self, now: Time, to: &Peer, request: Request, payload: Bytes, timeout: Duration, purpose: Purpose) -> Ticket {
        match request {
            Request::Renew { .. } => self.counters.renewals += 1,
            Request::Put { .. } | Request::LinkChunk { .. } | Request::Get { .. } | Request::Suspect { .. } => {
                self.counters.bulk_requests += 1;
                self.counters.bulk_bytes_sent += payload.len() as u64;
            }
            _ => self.counters.control_requests += 1,
        }
        let ticket = self.links.request(now, to, request, payload, timeout);
        self.tickets.insert(ticket, purpose);
        ticket
    }

    pub(super) fn add_job(&mut self, token: Option<u64>, deadline: Time, work: Work, changes: bool) -> u64 {
        let id = self.fresh_id();
        self.jobs.insert(id, Job { token, deadline, work, changes });
        id
    }

    /// Ends a job: its result goes out, and flushes that waited for it go on.
    pub(super) fn finish(&mut self, now: Time, id: u64, mut result: Result<Reply, Status>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.disarm(Alarm::Job(id));
        self.flushes.remove(&id);
        if let Ok(reply) = &mut result {
            self.overlay_reply(reply);
        }
        self.abandon_work(now, id, job.work, result.as_ref().map(|_| ()).map_err(|status| *status));
        if let Some(token) = job.token {
            self.output(Output::Done { token, result });
        }
        if job.changes {
            for flush in self.flushes.clone() {
                if let Some(Job { work: Work::Flush { waits_for, .. }, .. }) = self.jobs.get_mut(&flush) {
                    waits_for.remove(&id);
                }
                self.on_flush_progress(now, flush);
            }
        }
    }

    /// The core can do nothing any more: every call ends.
    pub(super) fn end(&mut self, now: Time, status: Status, event: Option<Event>) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        self.phase = Phase::Over(status);
        for (ticket, _) in std::mem::take(&mut self.tickets) {
            self.links.cancel(ticket);
        }
        for id in self.asks.keys().copied().collect::<Vec<_>>() {
            self.disarm(Alarm::Ask(id));
        }
        self.asks.clear();
        self.ops_waiting.clear();
        self.ops_held.clear();
        for alarm in [Alarm::Probe, Alarm::Open, Alarm::Renew, Alarm::Map, Alarm::Fold, Alarm::Behind] {
            self.disarm(alarm);
        }
        self.internal.clear();
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.finish(now, id, Err(status));
        }
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            self.drop_fetch(id);
        }
        self.internal.clear();
        if let Some(event) = event {
            self.output(Output::Event(event));
        }
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<Peer> {
        let map = self.map.as_ref()?;
        let member = map.member(node)?;
        map.is_living(node).then(|| Peer { address: member.address.clone(), node: Some(node) })
    }

    /// Works until nothing is left to do without new input.
    pub(super) fn pump(&mut self, now: Time) {
        loop {
            if let Some(output) = self.links.poll_output() {
                self.on_links(now, output);
            } else if let Some(internal) = self.internal.pop_front() {
                self.on_internal(now, internal);
            } else if !self.start_fold(now) && !self.give_up_surplus(now) && !self.start_due_flushes(now) {
                break;
            }
        }
    }

    fn on_links(&mut self, now: Time, output: LinksOutput) {
        match output {
            LinksOutput::Answered { ticket, from, response, payload } => {
                self.counters.bulk_bytes_received += payload.len() as u64;
                match self.tickets.remove(&ticket) {
                    Some(Purpose::Probe(address)) => self.on_probe(now, address, Ok(response)),
                    Some(Purpose::Ask(id)) => self.on_ask_answer(now, id, response),
                    Some(Purpose::Fetch(id)) => self.on_fetch_answer(now, id, ticket, from, response, payload),
                    Some(Purpose::Upload(id)) => self.on_upload_answer(now, id, ticket, Ok(response)),
                    Some(Purpose::Told) | None => {}
                }
            }
            LinksOutput::Failed { ticket, failure } => {
                self.want_epoch(now, failure.epoch);
                if failure.status == Status::WrongNode {
                    // Another incarnation lives there: the map is about to say so, or says so already.
                    self.refresh_map(now);
                }
                match self.tickets.remove(&ticket) {
                    Some(Purpose::Probe(address)) => self.on_probe(now, address, Err(failure)),
                    Some(Purpose::Ask(id)) => self.on_ask_failure(now, id, failure),
                    Some(Purpose::Fetch(id)) => self.on_fetch_failure(now, id, ticket, failure.status),
                    Some(Purpose::Upload(id)) => self.on_upload_answer(now, id, ticket, Err(failure.status)),
                    Some(Purpose::Told) | None => {}
                }
            }
            LinksOutput::Noticed { notice: Notice::Map(map), .. } => self.adopt_map(now, map),
            LinksOutput::Noticed { notice: Notice::Recall { term, number, items }, .. } => self.on_recall(now, term, number, items),
            LinksOutput::Noticed { notice: Notice::Stop, .. } => {
                self.on_stop(now);
                self.output(Output::Event(Event::Stopping));
            }
            LinksOutput::Noticed { notice: Notice::SpaceShort, .. } => self.on_space_short(now),
            LinksOutput::Noticed { notice: Notice::LockFree { ino, kind, key }, .. } => self.on_lock_free(now, (ino, kind, key)),
            LinksOutput::Noticed { .. } | LinksOutput::Found { .. } => {}
        }
    }

    fn on_internal(&mut self, now: Time, internal: Internal) {
        match internal {
            Internal::Asked(Owner::Job(id), result) => self.on_job_answer(now, id, result),
            Internal::Asked(Owner::Open, result) => self.on_opened(now, result),
            Internal::Asked(Owner::Renew, result) => self.on_renewed(now, result),
            Internal::Asked(Owner::Map, result) => self.on_map_answer(now, result),
            Internal::Asked(Owner::Reclaim(term, rest), result) => self.on_reclaimed(now, term, rest, result),
            Internal::Asked(Owner::Said(ino, begun), result) => self.on_said(now, ino, begun, result),
            Internal::Asked(Owner::Released(ino, sequence), result) => self.on_released(now, ino, sequence, result),
            Internal::Asked(Owner::Errand(id), _) => self.on_errand_done(id),
            Internal::Asked(Owner::Yielded(ino), result) => self.on_yielded(now, ino, result.is_ok()),
            Internal::Asked(Owner::Acquired(ino), result) => self.on_acquired(now, ino, result),
            Internal::Asked(Owner::Unnamed(ino), result) => self.on_whether_there(now, ino, result),
            Internal::Asked(Owner::Reserved, result) => self.on_reserved(now, result),
            Internal::Asked(Owner::Laying, _) => self.laying = false,
            Internal::Asked(Owner::Nobody, _) => {}
            Internal::Fetched { job, hash, offset, result } => self.on_fetched(now, job, hash, offset, result),
            Internal::Uploaded { job, uploaded } => self.on_uploaded(now, job, uploaded),
            Internal::MapSettled { job } => self.on_map_settled(now, job),
            Internal::Folded { job, result } => self.on_folded(now, job, result),
        }
    }

    fn on_job_answer(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match &mut job.work {
            Work::Pass { held } => {
                let held = *held;
                if let (Some(held), Ok(response)) = (held, &result) {
                    self.note_held(now, held, response);
                }
                self.finish(now, id, result.and_then(reply_of));
            }
            Work::Status { first } => {
                let first = first.take();
                self.on_status(now, id, first, result);
            }
            Work::Read(_) => self.on_layout_answer(now, id, result),
            Work::Write(_) => self.on_commit_answer(now, id, result),
            Work::Space(_) => self.on_space_answer(now, id, result),
            Work::Flush { .. } | Work::Waiting(_) => {}
            Work::Lock(_) => self.on_lock_answer(now, id, result),
            Work::EndSession => {
                self.finish(now, id, result.map(|_| Reply::Done));
                self.end(now, Status::SessionGone, None);
            }
        }
    }

    fn on_job_alarm(&mut self, now: Time, id: u64) {
        match self.jobs.get(&id).map(|job| &job.work) {
            Some(Work::Read(_)) => self.retry_read(now, id),
            Some(Work::Write(_)) => self.retry_write(now, id),
            Some(Work::Lock(_)) => self.on_lock_alarm(now, id),
            Some(Work::Space(_)) => self.send_space(now, id),
            Some(Work::Waiting(_)) => self.on_waiting_alarm(now, id),
            Some(Work::Flush { .. }) => self.on_flush_alarm(now, id),
            _ => {}
        }
    }

    pub(super) fn on_flush_progress(&mut self, now: Time, id: u64) {
        let Some(Job { work: Work::Flush { waits_for, files }, .. }) = self.jobs.get_mut(&id) else { return };
        files.retain(|ino, mark| !self.behind.is_committed(*ino, *mark));
        if waits_for.is_empty() && files.is_empty() {
            self.finish(now, id, Ok(Reply::Done));
        }
    }

    /// Calls that a flush waits for end by their own deadlines; the commits of files are tried for ever.
    fn on_flush_alarm(&mut self, now: Time, id: u64) {
        let Some(Job { work: Work::Flush { files, .. }, deadline, .. }) = self.jobs.get(&id) else { return };
        match *deadline {
            deadline if now < deadline => self.arm(deadline, Alarm::Job(id)),
            _ if files.is_empty() => {}
            _ => {
                let status = self.behind.failure(files.keys().copied()).unwrap_or(Status::TimedOut);
                self.finish(now, id, Err(status));
            }
        }
    }

    pub(super) fn on_probe(&mut self, now: Time, address: Address, result: Result<Response, Failure>) {
        if self.phase != Phase::Finding {
            return;
        }
        match result {
            Ok(Response::Map(Some(map))) if map.cluster.0 != 0 && map.is_well_formed() => {
                self.links.set_cluster(map.cluster);
                self.adopt_map(now, map);
                self.disarm(Alarm::Probe);
                self.phase = Phase::Opening;
                self.open_session(now);
            }
            _ => tracing::debug!(%address, "no cluster there yet"),
        }
    }
}

/// A response as the caller of the core sees it.
pub(super) fn reply_of(response: Response) -> Result<Reply, Status> {
    Ok(match response {
        Response::Done => Reply::Done,
        Response::Map(Some(map)) => Reply::Map(map),
        Response::Status(report) => Reply::Status(report),
        Response::Checked(checked) => Reply::Checked(checked),
        Response::Replied { replied, .. } => Reply::Replied(replied),
        Response::Answered { answer: Answer::Absent, .. } => return Err(Status::NotFound),
        Response::Answered { answer, .. } => Reply::Answer(answer),
        _ => return Err(Status::Malformed),
    })
}
