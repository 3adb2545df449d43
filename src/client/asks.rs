//! Control requests until they are answered: resent elsewhere, under the same number, until the deadline.
//!
//! A node that is silent, gone or no leader costs an attempt, not the request. An operation keeps its number over all attempts, so that it
//! happens once; a number given up at the deadline counts as answered, and what still arrives under it is refused by the cluster.

use std::time::Duration;

use bytes::Bytes;

use crate::cluster_map::ClusterMap;
use crate::limits;
use crate::links::{Peer, Ticket};
use crate::status::Status;
use crate::time::Time;
use crate::types::{ClusterId, Epoch, InodeId, ROOT, RequestNumber, Rights, Term};
use crate::wire::message::{Failure, Request, Response};
use crate::wire::namespace::{Op, Query};

use super::changes::Touched;
use super::core::{Alarm, Core, Internal, Phase, Purpose};
use super::local::{Change, Freshness};
use super::write::RETRIES_MAX;
use super::{Event, Output};

/// Times that hints are followed without a pause; two nodes may name each other.
const HINTS_IN_A_ROW: u32 = 4;
/// `Busy` for a write whose fate is unclear: after so many the cluster's answer stands.
const BUSY_IN_A_ROW: u32 = 3;

#[derive(Clone, Debug)]
pub(super) enum Target {
    Leader,
    Node(Peer),
}

/// Who waits for the answer.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    Job(u64),
    Open,
    Renew,
    Map,
    /// The term that is reclaimed in, and what is to be named after this slice.
    Reclaim(Term, Belongings),
    /// The leader is being told that the inode is open, since that term.
    Said(InodeId, Term),
    /// A closed inode is given back under that number.
    Released(InodeId, u64),
    /// Rights go back.
    Errand(u64),
    /// `WRITE` goes back.
    Yielded(InodeId),
    /// `WRITE` is wanted.
    Acquired(InodeId),
    /// Whether a file without a name is still there.
    Unnamed(InodeId),
    /// Room for what is written behind.
    Reserved,
    /// A change of nothing, after which the cluster refuses what was given up before it.
    Laying,
    Nobody,
}

/// What a new leader is told of: inodes that are open, and volatile rights.
#[derive(Clone, Debug, Default)]
pub(super) struct Belongings {
    held: Vec<InodeId>,
    rights: Vec<(InodeId, Rights)>,
}

#[derive(Clone, Debug)]
enum Kind {
    Op(Op),
    Plain(Request),
}

/// One control request and its attempts.
#[derive(Debug)]
pub(super) struct Ask {
    kind: Kind,
    target: Target,
    owner: Owner,
    deadline: Time,
    number: Option<RequestNumber>,
    /// Below which number the first attempt told the cluster to refuse all.
    told_below: RequestNumber,
    /// What an operation changes, for a session that caches.
    touched: Option<Touched>,
    /// The attempt under way, and when it was sent.
    sent: Option<(Ticket, Peer, Time)>,
    attempts: u32,
    hints: u32,
    busy: u32,
    /// Times that there was no room yet.
    refused: u32,
    /// Whether an attempt may have had its effect without our hearing of it.
    uncertain: bool,
    /// Which way the attempt under way took, see [`super::router::Router::way_to`].
    way: u64,
    /// Whether the answer came from a leader of the past, or over a link that was given up for another: what that one told may be newer.
    late: bool,
    last: Status,
}

impl Core {
    /// Asks until answered or `timeout` is over; `Internal::Asked` follows exactly once.
    pub(super) fn ask(&mut self, now: Time, request: Request, target: Target, owner: Owner, timeout: Duration) {
        self.add_ask(now, Kind::Plain(request), target, owner, timeout);
    }

    /// The same for a change of the tree, which gets a number.
    pub(super) fn ask_op(&mut self, now: Time, op: Op, owner: Owner) {
        self.add_ask(now, Kind::Op(op), Target::Leader, owner, self.config.op_timeout);
    }

    fn add_ask(&mut self, now: Time, kind: Kind, target: Target, owner: Owner, timeout: Duration) {
        let deadline = now + timeout;
        let touched = if let Kind::Op(op) = &kind { self.touched_by(now, op) } else { None };
        let ask = Ask {
            kind,
            target,
            owner,
            deadline,
            number: None,
            told_below: RequestNumber(0),
            touched,
            sent: None,
            attempts: 0,
            hints: 0,
            busy: 0,
            refused: 0,
            uncertain: false,
            way: 0,
            late: false,
            last: Status::Unavailable,
        };
        let id = self.fresh_id();
        self.asks.insert(id, ask);
        self.arm(deadline, Alarm::Ask(id));
        self.send_ask(now, id);
    }

    pub(super) fn on_ask_alarm(&mut self, now: Time, id: u64) {
        let Some(ask) = self.asks.get(&id) else { return };
        if now < ask.deadline {
            return self.send_ask(now, id);
        }
        let status = match ask.last {
            _ if ask.uncertain || ask.sent.is_some() => Status::TimedOut,
            Status::WrongCluster => Status::WrongCluster,
            Status::Busy => Status::Busy,
            Status::Reclaiming => Status::NoSpace,
            _ => Status::Unavailable,
        };
        self.end_ask(now, id, Err(status));
    }

    pub(super) fn on_ask_answer(&mut self, now: Time, id: u64, response: Response) {
        let Some(ask) = self.asks.get_mut(&id) else { return };
        let Some((_, peer, sent)) = ask.sent.take() else { return };
        if matches!(ask.target, Target::Leader) && ask.needs_leader() {
            self.router.on_leader(&peer);
        }
        if let Response::Renewed { term, epoch, .. } | Response::Answered { term, epoch, .. } | Response::Replied { term, epoch, .. } =
            &response
        {
            let (term, epoch) = (*term, *epoch);
            ask.late = term < self.session.term || !self.router.is_way(ask.way);
            self.session.term = self.session.term.max(term);
            if !ask.late && self.config.caches {
                self.on_news(now, id, sent, &response);
            }
            self.want_epoch(now, epoch);
        }
        self.end_ask(now, id, Ok(response));
        self.reclaim(now);
    }

    /// What an answer of the newest term teaches a session that caches.
    fn on_news(&mut self, now: Time, id: u64, sent: Time, response: &Response) {
        match response {
            Response::Renewed { term, era, time, .. } => {
                self.cluster_time = Some((now, *time));
                if self.rights.on_renewed(sent, *term, *era) {
                    self.void_rights(now);
                }
                self.prolonged = *era != 0;
            }
            Response::Answered { answer, grants, .. } => {
                self.take_grants(grants);
                let Some(Ask { kind: Kind::Plain(Request::Query(query)), .. }) = self.asks.get(&id) else { return };
                let query = query.clone();
                self.learn(&query, answer, grants);
            }
            Response::Replied { grants, .. } => self.take_grants(grants),
            _ => {}
        }
    }

    /// Whether an operation under way may give the session `WRITE` on the inode.
    pub(super) fn is_acquiring(&self, wanted: InodeId) -> bool {
        self.asks.values().any(|ask| match &ask.kind {
            Kind::Op(Op::Create { write, .. }) => *write,
            Kind::Op(Op::Acquire { ino }) => *ino == wanted,
            _ => false,
        })
    }

    /// Whether `WRITE` of the inode is on its way back; [`Core::on_yielded`] follows.
    pub(super) fn is_yielding(&self, wanted: InodeId) -> bool {
        self.asks.values().any(|ask| matches!(ask.owner, Owner::Yielded(ino) if ino == wanted))
    }

    pub(super) fn on_ask_failure(&mut self, now: Time, id: u64, failure: Failure) {
        let Some(ask) = self.asks.get_mut(&id) else { return };
        let Some((_, peer, _)) = ask.sent.take() else { return };
        let status = failure.status;
        let leads = matches!(ask.target, Target::Leader);
        ask.last = status;
        ask.attempts += 1;
        let is_write = matches!(ask.kind, Kind::Op(Op::Write { .. } | Op::Fold { .. } | Op::Allocate { .. } | Op::Copy { .. }));
        match status {
            Status::NotLeader if leads => {
                ask.hints += 1;
                let tired = ask.hints.is_multiple_of(HINTS_IN_A_ROW);
                if self.router.on_not_leader(&peer, failure.leader) && !tired {
                    return self.send_ask(now, id);
                }
            }
            Status::TimedOut | Status::Disconnected | Status::Unavailable => {
                ask.uncertain |= ask.number.is_some();
                self.router.on_failure(&peer);
                // Another node may be fine: the first failure turns to it without delay.
                if leads && ask.attempts == 1 {
                    return self.send_ask(now, id);
                }
            }
            // It was asked before, by this core or another.
            Status::ShuttingDown if matches!(ask.kind, Kind::Plain(Request::Shutdown)) => return self.end_ask(now, id, Ok(Response::Done)),
            Status::WrongNode | Status::NotMember | Status::ShuttingDown | Status::WrongVersion => self.router.on_failure(&peer),
            Status::WrongCluster if leads => {
                let nothing_left = self.router.on_foreign(&peer) && self.map.is_none();
                if nothing_left {
                    return self.end(now, Status::WrongCluster, Some(Event::WrongCluster));
                }
            }
            Status::Busy => {
                ask.busy += 1;
                if is_write && (!ask.uncertain || ask.busy >= BUSY_IN_A_ROW) {
                    return self.end_ask(now, id, Err(status));
                }
            }
            // What was refused is asked for anew, under another number; whoever brings bytes does that itself.
            Status::Reclaiming if !is_write => {
                ask.refused += 1;
                if ask.refused > RETRIES_MAX {
                    return self.end_ask(now, id, Err(Status::NoSpace));
                }
                if let Some(number) = ask.number.take() {
                    (ask.told_below, ask.uncertain) = (RequestNumber(0), false);
                    self.close_number(now, number);
                }
            }
            Status::SessionGone if self.phase == Phase::Ready && ask.needs_session() && !matches!(ask.owner, Owner::Open) => {
                if matches!(ask.kind, Kind::Plain(Request::EndSession)) {
                    return self.end_ask(now, id, Ok(Response::Done));
                }
                return self.end(now, Status::SessionGone, Some(Event::SessionLost));
            }
            _ => return self.end_ask(now, id, Err(status)),
        }
        let Some(ask) = self.asks.get(&id) else { return };
        let (attempts, deadline) = (ask.attempts, ask.deadline);
        let at = now + self.backoff(attempts);
        self.arm(at.min(deadline), Alarm::Ask(id));
    }

    fn send_ask(&mut self, now: Time, id: u64) {
        let Some(deadline) = self.asks.get(&id).map(|ask| ask.deadline) else { return };
        self.arm(deadline, Alarm::Ask(id));
        let ask = &self.asks[&id];
        if ask.sent.is_some() || (ask.needs_session() && self.phase != Phase::Ready) {
            return; // sent once the session is open
        }
        let peer = match &ask.target {
            Target::Node(peer) => Some(peer.clone()),
            Target::Leader => self.router.target(self.map.as_ref()),
        };
        let Some(peer) = peer else {
            let at = now + self.config.timing.backoff_max;
            return self.arm(at.min(ask.deadline), Alarm::Ask(id));
        };
        // What it tells must be as of now, not as of the first attempt.
        let renewal = matches!(self.asks[&id].kind, Kind::Plain(Request::Renew { .. })).then(|| self.renewal());
        let ask = self.asks.get_mut(&id).expect("looked up above");
        if matches!(ask.target, Target::Leader) {
            ask.way = self.router.way_to(&peer);
        }
        let request = match &ask.kind {
            Kind::Plain(request) => renewal.unwrap_or_else(|| request.clone()),
            Kind::Op(op) => {
                if ask.number.is_none() {
                    ask.number = self.session.open_number();
                }
                let Some(number) = ask.number else {
                    if !self.ops_waiting.contains(&id) {
                        self.ops_waiting.push_back(id);
                    }
                    return;
                };
                let (answered_below, uploads_from) = (self.session.answered_below(), self.session.uploads_from());
                if ask.told_below.0 == 0 {
                    ask.told_below = answered_below;
                }
                Request::Namespace { number, answered_below, uploads_from, op: op.clone() }
            }
        };
        let timeout = self.config.timing.attempt.min(ask.deadline.since(now));
        let ticket = self.send(now, &peer, request, Bytes::new(), timeout, Purpose::Ask(id));
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.sent = Some((ticket, peer, now));
        }
    }

    fn end_ask(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let Some(ask) = self.asks.remove(&id) else { return };
        self.disarm(Alarm::Ask(id));
        if let Some((ticket, ..)) = &ask.sent {
            self.links.cancel(*ticket);
            self.tickets.remove(ticket);
        }
        let uncertain = ask.is_uncertain(&result);
        if let (Kind::Op(op), Some(touched)) = (ask.kind, ask.touched) {
            let freshness = if ask.attempts == 0 && !ask.late { Freshness::Fresh } else { Freshness::Old };
            let number = ask.number.map(|number| (number, ask.told_below));
            self.settle_change(now, Change { op, touched, number, uncertain, freshness }, &result);
        }
        self.internal.push_back(Internal::Asked(ask.owner, result));
        if let Some(number) = ask.number {
            self.close_number(now, number);
        }
    }

    fn close_number(&mut self, now: Time, number: RequestNumber) {
        self.session.close_number(number);
        // A closed number may let waiting operations into the window; those that gave up meanwhile are passed over.
        while let Some(next) = self.ops_waiting.pop_front() {
            if !self.asks.contains_key(&next) {
                continue;
            }
            self.send_ask(now, next);
            if self.ops_waiting.back() == Some(&next) {
                let next = self.ops_waiting.pop_back().expect("just seen");
                self.ops_waiting.push_front(next);
                break;
            }
        }
    }

    /// The cluster stops, which is what a request to stop it waits for.
    pub(super) fn on_stop(&mut self, now: Time) {
        let asked = |ask: &Ask| matches!(ask.kind, Kind::Plain(Request::Shutdown));
        for id in self.asks.iter().filter(|(_, ask)| asked(ask)).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_ask(now, id, Ok(Response::Done));
        }
    }

    /// Asks every configured node for the map, those that already owe an answer aside.
    pub(super) fn probe(&mut self, now: Time) {
        if self.phase != Phase::Finding {
            return;
        }
        let asked: Vec<_> =
            self.tickets.values().filter_map(|purpose| if let Purpose::Probe(address) = purpose { Some(address) } else { None }).collect();
        let due: Vec<_> = self.router.configured().filter(|address| !asked.contains(address)).cloned().collect();
        for address in due.into_iter().take(limits::UNAUTHENTICATED_MAX) {
            let peer = Peer { address: address.clone(), node: None };
            let timeout = self.config.timing.attempt;
            self.send(now, &peer, Request::Map { known: Epoch(0) }, Bytes::new(), timeout, Purpose::Probe(address));
        }
        let at = now + self.backoff(4);
        self.arm(at, Alarm::Probe);
    }

    pub(super) fn open_session(&mut self, now: Time) {
        if self.phase == Phase::Opening {
            let caches = self.config.caches;
            self.ask(now, Request::OpenSession { caches }, Target::Leader, Owner::Open, self.config.op_timeout);
        }
    }

    pub(super) fn on_opened(&mut self, now: Time, result: Result<Response, Status>) {
        match result {
            Ok(_) => {
                self.phase = Phase::Ready;
                let cluster = self.map.as_ref().map_or(ClusterId(0), |map| map.cluster);
                self.output(Output::Event(Event::Ready { cluster }));
                // The first renewal tells the term, in which the leader must hear what this session holds: nothing yet.
                self.renew(now);
                for id in self.asks.keys().copied().collect::<Vec<_>>() {
                    self.send_ask(now, id);
                }
                self.wake_uploads(now);
            }
            Err(Status::SessionGone) => self.end(now, Status::SessionGone, Some(Event::SessionLost)),
            Err(status) => {
                tracing::debug!(%status, "the session could not be opened yet");
                let at = now + self.backoff(10);
                self.arm(at, Alarm::Open);
            }
        }
    }

    fn renewal(&self) -> Request {
        self.session.renewal(self.flushing_recalls())
    }

    pub(super) fn renew(&mut self, now: Time) {
        if self.phase == Phase::Ready {
            let renewal = self.renewal();
            self.ask(now, renewal, Target::Leader, Owner::Renew, self.config.op_timeout);
        }
    }

    pub(super) fn on_renewed(&mut self, now: Time, result: Result<Response, Status>) {
        if let Err(status) = result {
            tracing::warn!(%status, "the session could not be renewed; trying on");
        }
        // A leader that prolongs no rights waits for something that is under way.
        let hasty = self.config.caches && !self.prolonged;
        self.tidy_behind(now);
        let at = now + if hasty { self.config.timing.renew / 4 } else { self.config.timing.renew };
        self.arm(at, Alarm::Renew);
        if self.changes.is_haunted() && !self.laying {
            self.laying = true;
            self.ask_op(now, Op::Yield { ino: ROOT }, Owner::Laying);
        }
    }

    /// Tells a new leader what this session holds, in slices.
    pub(super) fn reclaim(&mut self, now: Time) {
        let term = self.session.term;
        if self.reclaiming || self.phase != Phase::Ready || self.session.reclaimed >= term {
            return;
        }
        if self.rights.are_doubtful(now, term) {
            // Tells again, and nothing of them.
            return self.void_rights(now);
        }
        self.reclaiming = true;
        self.session.released.clear();
        let belongings = Belongings { held: self.holds.tell_all(), rights: self.rights.volatile() };
        self.reclaim_slice(now, term, belongings);
    }

    /// What was held when the list was made is not all.
    pub(super) fn reclaim_again(&mut self, now: Time) {
        self.reclaim_stale = self.reclaiming;
        self.session.reclaimed = Term(0);
        self.reclaim(now);
    }

    fn reclaim_slice(&mut self, now: Time, term: Term, belongings: Belongings) {
        let Belongings { mut held, mut rights } = belongings;
        let rest = Belongings {
            held: held.split_off(held.len().min(limits::RECLAIM_ITEMS_MAX)),
            rights: rights.split_off(rights.len().min(limits::RECLAIM_ITEMS_MAX)),
        };
        let query = Query::Reclaim { term, held, rights, last: rest.is_empty() };
        let owner = Owner::Reclaim(term, rest);
        self.ask(now, Request::Query(query), Target::Leader, owner, self.config.op_timeout);
    }

    pub(super) fn on_reclaimed(&mut self, now: Time, term: Term, rest: Belongings, result: Result<Response, Status>) {
        let told = match result {
            Ok(Response::Answered { term, .. }) => Some(term),
            _ => None,
        };
        // Each slice must have reached the leader of the same term, or it is all told again.
        if told == Some(term) && !rest.is_empty() {
            return self.reclaim_slice(now, term, rest);
        }
        self.reclaiming = false;
        if told == Some(term) && !self.reclaim_stale {
            self.session.reclaimed = term;
        }
        self.reclaim_stale = false;
        for (ino, sequence) in std::mem::take(&mut self.session.released) {
            let release = Request::Query(Query::Release { ino, sequence });
            self.ask(now, release, Target::Leader, Owner::Nobody, self.config.op_timeout);
        }
        if told.is_some() {
            self.reclaim(now);
        }
    }

    /// Someone knows a newer map.
    pub(super) fn want_epoch(&mut self, now: Time, epoch: Epoch) {
        self.epoch_wanted = self.epoch_wanted.max(epoch);
        if self.map.as_ref().is_some_and(|map| map.epoch < self.epoch_wanted) {
            self.refresh_map(now);
        }
    }

    pub(super) fn refresh_map(&mut self, now: Time) {
        if self.map_asked || matches!(self.phase, Phase::Over(_)) {
            return;
        }
        self.map_asked = true;
        self.disarm(Alarm::Map);
        let known = self.map.as_ref().map_or(Epoch(0), |map| map.epoch);
        self.ask(now, Request::Map { known }, Target::Leader, Owner::Map, self.config.op_timeout);
    }

    /// The job goes on (`Internal::MapSettled`) once the map has been asked for.
    pub(super) fn await_map(&mut self, now: Time, job: u64) {
        self.map_waiters.push(job);
        self.refresh_map(now);
    }

    pub(super) fn on_map_answer(&mut self, now: Time, result: Result<Response, Status>) {
        self.map_asked = false;
        if let Ok(Response::Map(Some(map))) = result {
            self.adopt_map(now, map);
        }
        for job in std::mem::take(&mut self.map_waiters) {
            self.internal.push_back(Internal::MapSettled { job });
        }
        // Who answered may lag behind who spoke of the epoch.
        if self.map.as_ref().is_some_and(|map| map.epoch < self.epoch_wanted) {
            let at = now + self.config.timing.backoff_max;
            self.arm(at, Alarm::Map);
        }
    }

    /// Takes a newer map of the same cluster.
    pub(super) fn adopt_map(&mut self, now: Time, map: ClusterMap) {
        if !map.is_well_formed() {
            return;
        }
        if let Some(own) = &self.map {
            if own.cluster != map.cluster || own.epoch >= map.epoch {
                return;
            }
            // Whatever waits for the dead turns elsewhere now.
            let gone: Vec<_> = own.members.iter().filter(|member| !map.is_living(member.id)).map(|member| member.address.clone()).collect();
            for address in gone {
                if !map.members.iter().any(|member| member.address == address && map.is_living(member.id)) {
                    self.links.forget(&address);
                }
            }
        }
        self.router.on_map(&map);
        self.epoch_wanted = self.epoch_wanted.max(map.epoch);
        self.map = Some(map);
        for id in self.uploads.keys().copied().collect::<Vec<_>>() {
            self.advance_upload(now, id);
        }
    }
}

impl Belongings {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.rights.is_empty()
    }
}

impl Ask {
    /// Whether an operation that ends like this may have happened, or may happen later.
    fn is_uncertain(&self, result: &Result<Response, Status>) -> bool {
        match result {
            Ok(_) => false,
            Err(Status::TimedOut) => true,
            Err(Status::Unavailable | Status::Busy | Status::Disconnected) => self.uncertain,
            Err(_) => false,
        }
    }

    /// Whether only the leader can have answered.
    fn needs_leader(&self) -> bool {
        !matches!(self.kind, Kind::Plain(Request::Map { .. } | Request::Status))
    }

    /// Whether the session must be open first.
    fn needs_session(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Plain(
                Request::Map { .. }
                    | Request::Status
                    | Request::OpenSession { .. }
                    | Request::Shutdown
                    | Request::Recover { .. }
                    | Request::Rejoin { .. }
            )
        )
    }
}
