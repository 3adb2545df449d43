//! Outgoing links of a core: dials on demand, pairs responses with requests, gives every request an end.
//!
//! Owns the links that this side dials, one per (address, expected incarnation, lane). Refuses incoming ones: their requests are answered
//! on the link they came by, which needs no state. Nothing is redialled without a reason: a request or a notice dials; while a dial has
//! just failed requests fail at once, so that whoever asked turns to another node instead of waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use crate::random::Random;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Address, ClusterId, NodeId};
use crate::wire::message::{Body, Failure, Notice, Request, Response};

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub address: Address,
    /// The incarnation that must be found there; `None`: whoever answers.
    pub node: Option<NodeId>,
}

/// Names one request until its one output, `Answered` or `Failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What came of it.
#[derive(Clone, Debug)]
pub enum LinksOutput {
    Answered {
        ticket: Ticket,
        from: NodeId,
        response: Response,
        payload: Bytes,
    },
    /// `TimedOut`, `Disconnected`, `WrongNode`, `WrongCluster`, `Busy`, or the peer's own failure.
    Failed {
        ticket: Ticket,
        failure: Failure,
    },
    Noticed {
        from: NodeId,
        notice: Notice,
        payload: Bytes,
    },
    /// A handshake told who is there. After a `WrongNode` it proves that the expected incarnation is dead.
    Found {
        address: Address,
        node: NodeId,
        cluster: ClusterId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Request(u64),
    Dial(LinkId),
}

#[derive(Debug)]
enum State {
    /// No link; may be dialled again from the given time on.
    Down {
        redial_at: Time,
    },
    Dialling {
        link: LinkId,
    },
    Up {
        link: LinkId,
        node: NodeId,
        heard: Time,
        proven: bool,
    },
}

enum Queued {
    Request { ticket: u64, request: Request, payload: Bytes },
    Notice { notice: Notice, payload: Bytes },
}

struct Slot {
    peer: Peer,
    lane: Lane,
    state: State,
    /// Dials that failed since the peer was last heard.
    failures: u32,
    /// Waits for the handshake; empty unless dialling.
    queue: VecDeque<Queued>,
    notices_queued: usize,
    /// Tickets that wait for an answer from this peer, sent or queued.
    waiting: BTreeSet<u64>,
}

struct Pending {
    slot: u64,
    asked: Time,
    deadline: Time,
}

/// The outgoing links of one core.
pub struct Links {
    role: Role,
    sender: u64,
    cluster: ClusterId,
    random: Random,
    slots: BTreeMap<u64, Slot>,
    by_address: BTreeMap<Address, Vec<(Option<NodeId>, Lane, u64)>>,
    by_link: BTreeMap<LinkId, u64>,
    pending: BTreeMap<u64, Pending>,
    alarms: BTreeSet<(Time, Alarm)>,
    next_ticket: u64,
    next_link: u64,
    next_slot: u64,
    actions: VecDeque<LinkAction>,
    outputs: VecDeque<LinksOutput>,
}

impl Links {
    /// `sender` is what the handshake names: a node's incarnation or a client's session.
    pub fn new(role: Role, sender: u64, random: Random) -> Self {
        Links {
            role,
            sender,
            cluster: ClusterId(0),
            random,
            slots: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_link: BTreeMap::new(),
            pending: BTreeMap::new(),
            alarms: BTreeSet::new(),
            next_ticket: 1,
            next_link: 1,
            next_slot: 1,
            actions: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Which cluster later handshakes name. Links made before, under cluster 0, keep working.
    pub fn set_cluster(&mut self, cluster: ClusterId) {
        self.cluster = cluster;
    }

    /// Asks `to`; exactly one output follows unless cancelled, at the latest after `timeout`.
    pub fn request(&mut self, now: Time, to: &Peer, request: Request, payload: Bytes, timeout: Duration) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let slot_id = self.slot_of(to, request.lane());
        let slot = self.slots.get_mut(&slot_id).expect("just found");
        if slot.waiting.len() >= limits::LINK_REQUESTS_MAX {
            return self.refuse(ticket, Status::Busy);
        }
        match slot.state {
            State::Down { redial_at } if now < redial_at => return self.refuse(ticket, Status::Disconnected),
            State::Down { .. } | State::Dialling { .. } => slot.queue.push_back(Queued::Request { ticket, request, payload }),
            State::Up { link, .. } => {
                let frame = Frame { request: ticket, body: Body::Request(request), payload };
                self.actions.push_back(LinkAction::Send { link, frame });
            }
        }
        slot.waiting.insert(ticket);
        let deadline = now + timeout;
        self.pending.insert(ticket, Pending { slot: slot_id, asked: now, deadline });
        self.alarms.insert((deadline, Alarm::Request(ticket)));
        self.dial(now, slot_id);
        Ticket(ticket)
    }

    /// Tells `to`, at best effort: dropped when the peer cannot be dialled or too much waits for its handshake.
    pub fn notify(&mut self, now: Time, to: &Peer, notice: Notice, payload: Bytes) {
        let slot_id = self.slot_of(to, notice.lane());
        let slot = self.slots.get_mut(&slot_id).expect("just found");
        match slot.state {
            State::Down { redial_at } if now < redial_at => return,
            State::Down { .. } | State::Dialling { .. } => slot.queue_notice(notice, payload),
            State::Up { link, .. } => {
                let frame = Frame { request: 0, body: Body::Notice(notice), payload };
                self.actions.push_back(LinkAction::Send { link, frame });
            }
        }
        self.dial(now, slot_id);
    }

    /// Forgets a request: no output follows, a late answer is dropped.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.settle(ticket.0);
    }

    /// Takes an event of an outgoing link. Events of links that were closed meanwhile are ignored.
    pub fn on_event(&mut self, now: Time, event: LinkEvent) {
        match event {
            LinkEvent::Up { link, peer } => self.on_up(now, link, peer),
            LinkEvent::Received { link, frame } => self.on_frame(now, link, frame),
            LinkEvent::Down { link, reason, found } => {
                let Some(slot_id) = self.by_link.remove(&link) else { return };
                if let Some(node) = found {
                    let address = self.slots[&slot_id].peer.address.clone();
                    self.outputs.push_back(LinksOutput::Found { address, node, cluster: self.cluster });
                }
                self.drop_link(now, slot_id, reason);
            }
        }
    }

    /// Ends what has waited too long.
    pub fn on_deadline(&mut self, now: Time) {
        while let Some(&(at, alarm)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            match alarm {
                Alarm::Request(ticket) => self.on_timeout(now, ticket),
                Alarm::Dial(link) => self.on_dial_timeout(now, link),
            }
        }
    }

    /// When [`Links::on_deadline`] has something to do.
    pub fn next_deadline(&self) -> Time {
        self.alarms.first().map_or(Time::NEVER, |&(at, _)| at)
    }

    /// The next thing that the network is to do.
    pub fn poll_action(&mut self) -> Option<LinkAction> {
        self.actions.pop_front()
    }

    /// The next result.
    pub fn poll_output(&mut self) -> Option<LinksOutput> {
        self.outputs.pop_front()
    }

    /// Closes all links to the address; what waits for them fails as `Disconnected`.
    pub fn forget(&mut self, address: &Address) {
        for (_, _, slot_id) in self.by_address.remove(address).unwrap_or_default() {
            let slot = self.slots.remove(&slot_id).expect("indexed slots exist");
            if let State::Dialling { link } | State::Up { link, .. } = slot.state {
                self.by_link.remove(&link);
                self.actions.push_back(LinkAction::Close { link });
            }
            for ticket in slot.waiting {
                self.fail(ticket, Status::Disconnected.into());
            }
        }
    }

    /// Goes on as somebody else, of no cluster yet: closes every link, fails what waits. Link numbers go on.
    pub fn restart(&mut self, sender: u64) {
        let addresses: Vec<Address> = self.by_address.keys().cloned().collect();
        addresses.iter().for_each(|address| self.forget(address));
        self.sender = sender;
        self.cluster = ClusterId(0);
    }

    /// Requests that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Asserts that the indexes agree with what they index.
    pub fn check_invariants(&self) {
        for (link, slot_id) in &self.by_link {
            let slot = &self.slots[slot_id];
            assert!(matches!(slot.state, State::Dialling { link: at } | State::Up { link: at, .. } if at == *link));
        }
        for (slot_id, slot) in &self.slots {
            assert!(slot.waiting.iter().all(|ticket| self.pending[ticket].slot == *slot_id));
            assert!(slot.queue.is_empty() || matches!(slot.state, State::Dialling { .. }));
            assert!(self.by_address[&slot.peer.address].contains(&(slot.peer.node, slot.lane, *slot_id)));
        }
        let waiting: usize = self.slots.values().map(|slot| slot.waiting.len()).sum();
        assert_eq!(waiting, self.pending.len());
    }

    fn slot_of(&mut self, to: &Peer, lane: Lane) -> u64 {
        let known = self.by_address.get(&to.address).and_then(|slots| slots.iter().find(|slot| slot.0 == to.node && slot.1 == lane));
        if let Some(&(_, _, slot_id)) = known {
            return slot_id;
        }
        if self.slots.len() >= limits::LINK_PEERS_MAX {
            self.prune();
        }
        let slot_id = self.next_slot;
        self.next_slot += 1;
        self.by_address.entry(to.address.clone()).or_default().push((to.node, lane, slot_id));
        let state = State::Down { redial_at: Time(0) };
        let slot = Slot { peer: to.clone(), lane, state, failures: 0, queue: VecDeque::new(), notices_queued: 0, waiting: BTreeSet::new() };
        self.slots.insert(slot_id, slot);
        slot_id
    }

    /// Forgets peers without a link: nothing waits for them.
    fn prune(&mut self) {
        let idle: Vec<u64> =
            self.slots.iter().filter(|(_, slot)| matches!(slot.state, State::Down { .. })).map(|(slot_id, _)| *slot_id).collect();
        for slot_id in idle {
            let slot = self.slots.remove(&slot_id).expect("just listed");
            if let Some(slots) = self.by_address.get_mut(&slot.peer.address) {
                slots.retain(|(_, _, id)| *id != slot_id);
            }
        }
        self.by_address.retain(|_, slots| !slots.is_empty());
    }

    /// Dials unless a link is there or on its way.
    fn dial(&mut self, now: Time, slot_id: u64) {
        let slot = self.slots.get_mut(&slot_id).expect("callers hold a live slot");
        if !matches!(slot.state, State::Down { .. }) {
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        slot.state = State::Dialling { link };
        self.by_link.insert(link, slot_id);
        let hello = Hello { cluster: self.cluster, role: self.role, sender: self.sender, lane: slot.lane, expect: slot.peer.node };
        self.actions.push_back(LinkAction::Connect { link, address: slot.peer.address.clone(), hello });
        // A dial that began in an outage sleeps on after it: TCP tries again after seconds, so the first dials are given up early
        // and made anew. Later ones are left their time, for a peer that is merely slow.
        let patience = if slot.failures < limits::DIALS_IMPATIENT { limits::DIAL_TIMEOUT } else { 2 * limits::HANDSHAKE_TIMEOUT };
        self.alarms.insert((now + patience, Alarm::Dial(link)));
    }

    fn on_up(&mut self, now: Time, link: LinkId, hello: Hello) {
        let Some(&slot_id) = self.by_link.get(&link) else { return };
        let slot = self.slots.get_mut(&slot_id).expect("indexed slots exist");
        let node = NodeId(hello.sender);
        let foreign = self.cluster.0 != 0 && hello.cluster.0 != 0 && self.cluster != hello.cluster;
        let other = hello.role != Role::Node || slot.peer.node.is_some_and(|expected| expected != node);
        if !foreign && hello.role == Role::Node {
            let address = slot.peer.address.clone();
            self.outputs.push_back(LinksOutput::Found { address, node, cluster: hello.cluster });
        }
        if foreign || other {
            return self.close(now, link, if foreign { Status::WrongCluster } else { Status::WrongNode });
        }
        slot.state = State::Up { link, node, heard: now, proven: false };
        slot.notices_queued = 0;
        for queued in std::mem::take(&mut slot.queue) {
            let frame = match queued {
                // Cancelled or timed out meanwhile: nobody waits for the answer.
                Queued::Request { ticket, .. } if !self.pending.contains_key(&ticket) => continue,
                Queued::Request { ticket, request, payload } => Frame { request: ticket, body: Body::Request(request), payload },
                Queued::Notice { notice, payload } => Frame { request: 0, body: Body::Notice(notice), payload },
            };
            self.actions.push_back(LinkAction::Send { link, frame });
        }
    }

    fn on_frame(&mut self, now: Time, link: LinkId, frame: Frame) {
        let Some(&slot_id) = self.by_link.get(&link) else { return };
        let slot = self.slots.get_mut(&slot_id).expect("indexed slots exist");
        let State::Up { node: from, heard, proven, .. } = &mut slot.state else { return };
        *heard = now;
        *proven = true;
        slot.failures = 0;
        let from = *from;
        match frame.body {
            Body::Response(result) => {
                // The ticket must be one that this peer owes, or any peer could answer for another.
                if !slot.waiting.contains(&frame.request) {
                    return;
                }
                self.settle(frame.request);
                let ticket = Ticket(frame.request);
                self.outputs.push_back(match result {
                    Ok(response) => LinksOutput::Answered { ticket, from, response, payload: frame.payload },
                    Err(failure) => LinksOutput::Failed { ticket, failure },
                });
            }
            Body::Notice(notice) => self.outputs.push_back(LinksOutput::Noticed { from, notice, payload: frame.payload }),
            // Who was dialled answers and tells; it does not ask.
            Body::Request(_) => self.close(now, link, Status::Malformed),
        }
    }

    fn on_timeout(&mut self, now: Time, ticket: u64) {
        let Some(pending) = self.settle(ticket) else { return };
        self.outputs.push_back(LinksOutput::Failed { ticket: Ticket(ticket), failure: Status::TimedOut.into() });
        // A connection whose other machine vanished looks healthy for minutes, and after a partition TCP itself waits as long.
        let Some(slot) = self.slots.get(&pending.slot) else { return };
        if let State::Up { link, heard, .. } = slot.state
            && heard <= pending.asked
            && now.since(heard) >= limits::LINK_SILENCE_MAX
        {
            self.close(now, link, Status::Disconnected);
        }
    }

    fn on_dial_timeout(&mut self, now: Time, link: LinkId) {
        let Some(slot_id) = self.by_link.get(&link) else { return };
        if matches!(self.slots[slot_id].state, State::Dialling { .. }) {
            self.close(now, link, Status::TimedOut);
        }
    }

    fn close(&mut self, now: Time, link: LinkId, reason: Status) {
        let Some(slot_id) = self.by_link.remove(&link) else { return };
        self.actions.push_back(LinkAction::Close { link });
        self.drop_link(now, slot_id, reason);
    }

    /// The slot's link is gone: what waited fails, and the next dial waits the longer the more have failed.
    fn drop_link(&mut self, now: Time, slot_id: u64, reason: Status) {
        let slot = self.slots.get_mut(&slot_id).expect("indexed slots exist");
        let proven = matches!(slot.state, State::Up { proven: true, .. });
        let delay = if proven { Duration::ZERO } else { redial_delay(slot.failures, &mut self.random) };
        slot.failures = if proven { 0 } else { slot.failures.saturating_add(1) };
        slot.state = State::Down { redial_at: now + delay };
        slot.queue.clear();
        slot.notices_queued = 0;
        let status = match reason {
            Status::WrongNode | Status::WrongCluster | Status::WrongVersion | Status::Busy => reason,
            _ => Status::Disconnected,
        };
        for ticket in std::mem::take(&mut slot.waiting) {
            self.fail(ticket, status.into());
        }
    }

    fn refuse(&mut self, ticket: u64, status: Status) -> Ticket {
        self.outputs.push_back(LinksOutput::Failed { ticket: Ticket(ticket), failure: status.into() });
        Ticket(ticket)
    }

    fn fail(&mut self, ticket: u64, failure: Failure) {
        if self.settle(ticket).is_some() {
            self.outputs.push_back(LinksOutput::Failed { ticket: Ticket(ticket), failure });
        }
    }

    fn settle(&mut self, ticket: u64) -> Option<Pending> {
        let pending = self.pending.remove(&ticket)?;
        self.alarms.remove(&(pending.deadline, Alarm::Request(ticket)));
        if let Some(slot) = self.slots.get_mut(&pending.slot) {
            slot.waiting.remove(&ticket);
        }
        Some(pending)
    }
}

impl Slot {
    fn queue_notice(&mut self, notice: Notice, payload: Bytes) {
        if self.notices_queued >= limits::LINK_NOTICES_QUEUED_MAX {
            let oldest = self.queue.iter().position(|queued| matches!(queued, Queued::Notice { .. }));
            self.queue.remove(oldest.expect("notices are counted"));
            self.notices_queued -= 1;
        }
        self.queue.push_back(Queued::Notice { notice, payload });
        self.notices_queued += 1;
    }
}

/// Doubles with every failure, and is jittered so that many clients of one node do not come back in step.
fn redial_delay(failures: u32, random: &mut Random) -> Duration {
    let full = limits::REDIAL_DELAY_MIN.saturating_mul(1 << failures.min(8)).min(limits::REDIAL_DELAY_MAX);
    full / 2 + Duration::from_nanos(random.below(full.as_nanos() as u64 / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    const TIMEOUT: Duration = Duration::from_millis(1000);

    fn at(milliseconds: u64) -> Time {
        Time(milliseconds * 1_000_000)
    }

    fn peer(port: u16, node: Option<u64>) -> Peer {
        Peer { address: Address::Tcp { host: "n".into(), port }, node: node.map(NodeId) }
    }

    fn hello(node: u64) -> Hello {
        Hello { cluster: ClusterId(7), role: Role::Node, sender: node, lane: Lane::Control, expect: None }
    }

    fn links() -> Links {
        Links::new(Role::Client, 5, Random::new(1))
    }

    fn dialled(links: &mut Links) -> LinkId {
        match links.poll_action() {
            Some(LinkAction::Connect { link, .. }) => link,
            other => panic!("expected a dial, got {other:?}"),
        }
    }

    fn sent(links: &mut Links) -> Frame {
        match links.poll_action() {
            Some(LinkAction::Send { frame, .. }) => frame,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    fn failed(links: &mut Links) -> (Ticket, Status) {
        loop {
            match links.poll_output() {
                Some(LinksOutput::Failed { ticket, failure }) => return (ticket, failure.status),
                Some(LinksOutput::Found { .. }) => continue,
                other => panic!("expected a failure, got {other:?}"),
            }
        }
    }

    #[test]
    fn a_request_dials_waits_for_the_handshake_and_is_answered() {
        let mut links = links();
        let ticket = links.request(at(0), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
        let link = dialled(&mut links);
        assert!(links.poll_action().is_none());
        links.on_event(at(1), LinkEvent::Up { link, peer: hello(9) });
        assert!(matches!(links.poll_output(), Some(LinksOutput::Found { node: NodeId(9), cluster: ClusterId(7), .. })));
        let frame = sent(&mut links);
        let answer = Frame { request: frame.request, body: Body::Response(Ok(Response::Done)), payload: Bytes::new() };
        links.on_event(at(2), LinkEvent::Received { link, frame: answer.clone() });
        let Some(LinksOutput::Answered { ticket: answered, from: NodeId(9), response: Response::Done, .. }) = links.poll_output() else {
            panic!("no answer");
        };
        assert_eq!(answered, ticket);
        links.on_event(at(3), LinkEvent::Received { link, frame: answer });
        assert!(links.poll_output().is_none(), "an answer counts once");
        links.on_deadline(at(2000));
        assert!(links.poll_output().is_none());
        links.check_invariants();
    }

    #[test]
    fn requests_time_out_and_a_silent_link_is_dialled_anew() {
        let mut links = links();
        links.request(at(0), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
        let link = dialled(&mut links);
        links.on_event(at(1), LinkEvent::Up { link, peer: hello(9) });
        for second in 0..4 {
            links.on_deadline(at(1000 * (second + 1)));
            assert_eq!(failed(&mut links).1, Status::TimedOut);
            links.request(at(1000 * (second + 1)), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
            links.check_invariants();
        }
        let closed =
            std::iter::from_fn(|| links.poll_action()).any(|action| matches!(action, LinkAction::Close { link: at } if at == link));
        assert!(closed);
    }

    #[test]
    fn another_incarnation_fails_the_request_and_is_reported() {
        let mut links = links();
        let ticket = links.request(at(0), &peer(1, Some(3)), Request::Identify, Bytes::new(), TIMEOUT);
        let link = dialled(&mut links);
        links.on_event(at(1), LinkEvent::Down { link, reason: Status::WrongNode, found: Some(NodeId(4)) });
        assert!(matches!(links.poll_output(), Some(LinksOutput::Found { node: NodeId(4), .. })));
        assert_eq!(failed(&mut links), (ticket, Status::WrongNode));
        // A peer that lies in the handshake fares no better.
        links.request(at(500), &peer(1, Some(3)), Request::Identify, Bytes::new(), TIMEOUT);
        let link = dialled(&mut links);
        links.on_event(at(501), LinkEvent::Up { link, peer: hello(4) });
        assert_eq!(failed(&mut links).1, Status::WrongNode);
        links.check_invariants();
    }

    #[test]
    fn failed_dials_back_off_and_fail_requests_at_once_meanwhile() {
        let mut links = links();
        let mut now = 0;
        for _ in 0..10 {
            links.request(at(now), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
            let link = dialled(&mut links);
            links.on_event(at(now), LinkEvent::Down { link, reason: Status::Disconnected, found: None });
            assert_eq!(failed(&mut links).1, Status::Disconnected);
            links.request(at(now), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
            assert_eq!(failed(&mut links).1, Status::Disconnected);
            assert!(links.poll_action().is_none(), "no second dial before the delay is over");
            now += 500;
        }
        links.check_invariants();
    }

    #[test]
    fn lanes_have_links_of_their_own_and_foreign_clusters_are_refused() {
        let mut links = links();
        links.set_cluster(ClusterId(8));
        links.request(at(0), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
        let get = Request::Get { hash: crate::types::ChunkHash([0; 32]), range: crate::types::ByteRange { offset: 0, length: 1 } };
        links.request(at(0), &peer(1, None), get, Bytes::new(), TIMEOUT);
        let (control, bulk) = (dialled(&mut links), dialled(&mut links));
        assert_ne!(control, bulk);
        links.on_event(at(1), LinkEvent::Up { link: control, peer: hello(9) });
        assert_eq!(failed(&mut links).1, Status::WrongCluster);
        links.check_invariants();
    }

    #[test]
    fn notices_wait_for_the_handshake_within_their_bound() {
        let mut links = links();
        for id in 0..limits::LINK_NOTICES_QUEUED_MAX as u64 + 3 {
            links.notify(at(0), &peer(1, None), Notice::SnapshotProgress { id, next: 0 }, Bytes::new());
        }
        let link = dialled(&mut links);
        links.on_event(at(1), LinkEvent::Up { link, peer: hello(9) });
        assert!(matches!(sent(&mut links).body, Body::Notice(Notice::SnapshotProgress { id: 3, .. })));
        assert_eq!(std::iter::from_fn(|| links.poll_action()).count(), limits::LINK_NOTICES_QUEUED_MAX - 1);
    }

    #[test]
    fn forgetting_and_cancelling_leave_nothing() {
        let mut links = links();
        let ticket = links.request(at(0), &peer(1, None), Request::Map { known: Epoch(0) }, Bytes::new(), TIMEOUT);
        links.request(at(0), &peer(1, None), Request::Identify, Bytes::new(), TIMEOUT);
        links.cancel(ticket);
        links.forget(&peer(1, None).address);
        assert_eq!(failed(&mut links).1, Status::Disconnected);
        assert!(links.poll_output().is_none());
        assert_eq!(links.waiting(), 0);
        links.check_invariants();
    }
}
