//! The network of one thread: dials, accepts, moves frames. The only room below the programs that names sockets.
//!
//! Owns every connection and tells its core of links only. Sends gather and are written at the end of a turn, with as few system calls
//! as it takes; reads are bounded per turn, so that no peer keeps the others waiting. Every queue has a bound: a peer that does not
//! read its answers is not read either, and is dropped if that lasts. What strangers send costs them their connection and us little.

pub mod clock;
mod connection;
mod rate;
mod receive;
mod refusals;
mod send;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use crate::limits;
use crate::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId};
use crate::net::connection::{Connection, Fault, Phase, Surroundings};
use crate::net::rate::RateMeter;
use crate::net::refusals::Refusals;
use crate::net::stream::{Listener, Stream, Target};
use crate::status::Status;
use crate::time::Time;
use crate::types::{Address, NodeId};

const WAKER: Token = Token(0);
/// Tokens below are listeners' and the waker's; above, each connection has one that is never used again.
const CONNECTION_TOKENS_FROM: usize = 1 << 16;
/// Buffer that all connections share for reading.
const SCRATCH_BYTES: usize = 256 << 10;
/// Readiness reports fetched at once.
const EVENTS_MAX: usize = 1024;
/// Pause after the system refused to accept (no descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What passed on one lane, handshakes aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    pub frames_in: u64,
    pub frames_out: u64,
    /// Headers, bodies and payloads; counted when queued.
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// What passed since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub control: LaneCounters,
    pub bulk: LaneCounters,
    /// Connections ended because of what the peer sent or failed to send.
    pub refused: u64,
}

impl Counters {
    fn lane_mut(&mut self, lane: Lane) -> &mut LaneCounters {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

#[derive(Debug)]
struct ListenerSlot {
    listener: Listener,
    /// Whether connections may be waiting.
    ready: bool,
}

/// All sockets of one thread.
#[derive(Debug)]
pub struct Net {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    listeners: Vec<ListenerSlot>,
    connections: BTreeMap<usize, Connection>,
    /// Links that the core may name; those being closed are not among them.
    links: BTreeMap<LinkId, usize>,
    /// Accepted, and not up; the oldest has the lowest token.
    unauthenticated: BTreeSet<usize>,
    /// Connections to be read, those to be written, and those that wait for the rate meter. May name some that are gone.
    ready: VecDeque<usize>,
    dirty: VecDeque<usize>,
    throttled: VecDeque<usize>,
    /// What the core has not been told yet.
    reports: Vec<LinkEvent>,
    identity: Option<Hello>,
    rate: Option<RateMeter>,
    counters: Counters,
    refusals: Refusals,
    scratch: Vec<u8>,
    next_token: usize,
    next_incoming: u64,
    /// No deadline of any connection passes before.
    sweep_at: Time,
    /// No accepting before, after the system refused to.
    accept_at: Time,
    now: Time,
    /// When anything last happened.
    active_at: Time,
}

impl Net {
    /// A network without listeners or links.
    pub fn new() -> io::Result<Net> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Net {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            listeners: Vec::new(),
            connections: BTreeMap::new(),
            links: BTreeMap::new(),
            unauthenticated: BTreeSet::new(),
            ready: VecDeque::new(),
            dirty: VecDeque::new(),
            throttled: VecDeque::new(),
            reports: Vec::new(),
            identity: None,
            rate: None,
            counters: Counters::default(),
            refusals: Refusals::default(),
            scratch: vec![0; SCRATCH_BYTES],
            next_token: CONNECTION_TOKENS_FROM,
            next_incoming: 1,
            sweep_at: Time::NEVER,
            accept_at: Time(0),
            now: clock::now(),
            active_at: Time(0),
        })
    }

    /// Listens, and says where: port 0 becomes a free one, which the answer names. May be called more than once.
    pub fn listen(&mut self, address: &Address) -> io::Result<Address> {
        let (mut listener, actual) = Listener::bind(address)?;
        let token = self.listeners.len() + 1;
        assert!(token < CONNECTION_TOKENS_FROM);
        listener.register(self.poll.registry(), Token(token))?;
        self.listeners.push(ListenerSlot { listener, ready: true });
        Ok(actual)
    }

    /// Who answers diallers from now on; nobody before the first call. Lane and expectation do not matter. Links that are up stay.
    pub fn set_identity(&mut self, identity: Hello) {
        self.identity = Some(identity);
    }

    /// Caps the bulk lane, both directions together, in bytes per second.
    pub fn set_rate(&mut self, bytes_per_second: Option<u64>) {
        self.rate = bytes_per_second.map(|rate| RateMeter::new(rate, clock::now()));
    }

    /// What another thread calls to end a [`Net::poll`] early.
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// What passed since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections of any state, for tests and reports.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections that were accepted and have not finished their handshake.
    pub fn unauthenticated(&self) -> usize {
        self.unauthenticated.len()
    }

    /// Does what a core asked for. Nothing is written before the next [`Net::poll`] or [`Net::flush`].
    pub fn act(&mut self, action: LinkAction) {
        match action {
            LinkAction::Connect { link, address, hello } => self.dial(link, &address, hello),
            LinkAction::Send { link, frame } => self.send(link, frame),
            LinkAction::Close { link } => self.close(link),
        }
    }

    /// One turn: writes what is queued, waits at most `timeout` (for ever without), reads, and appends what happened to `reports`.
    pub fn poll(&mut self, timeout: Option<Duration>, reports: &mut Vec<LinkEvent>) -> io::Result<()> {
        self.flush();
        let wait = self.plan_wait(timeout);
        self.wait(wait)?;
        self.now = clock::now();
        self.on_events();
        self.accept();
        self.serve_throttled();
        self.serve_ready();
        if self.now >= self.sweep_at {
            self.sweep();
        }
        self.write_dirty();
        reports.append(&mut self.reports);
        Ok(())
    }

    /// Waits for events. While something happened a moment ago it asks without sleeping, since answers come within microseconds
    /// and waking a sleeping processor costs more than the work that it wakes for; whoever else wants the processor goes first.
    fn wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let spin_until = self.active_at + limits::SPIN_AFTER_ACTIVITY;
        let mut next = if self.now < spin_until { Some(Duration::ZERO) } else { wait };
        loop {
            match self.poll.poll(&mut self.events, next) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                Err(error) => return Err(error),
                Ok(()) if !self.events.is_empty() => {
                    self.active_at = clock::now();
                    return Ok(());
                }
                Ok(()) if next == wait => return Ok(()),
                Ok(()) if clock::now() >= spin_until => next = wait,
                Ok(()) => std::thread::yield_now(),
            }
        }
    }

    /// Writes what is queued as far as the kernel takes it.
    pub fn flush(&mut self) {
        self.now = clock::now();
        self.write_dirty();
    }

    /// Before an orderly end: writes all that is queued, for at most this long. What arrives meanwhile is lost.
    pub fn finish(&mut self, at_most: Duration) -> io::Result<()> {
        let end = clock::now() + at_most;
        let mut ignored = Vec::new();
        loop {
            self.flush();
            let left = end.since(clock::now());
            if left.is_zero() || self.connections.values().all(|connection| connection.sender.queued_bytes() == 0) {
                return Ok(());
            }
            self.poll(Some(left), &mut ignored)?;
            ignored.clear();
        }
    }

    fn plan_wait(&self, timeout: Option<Duration>) -> Option<Duration> {
        let accept_now = self.now >= self.accept_at && self.listeners.iter().any(|slot| slot.ready);
        if accept_now || !self.ready.is_empty() || !self.dirty.is_empty() || !self.reports.is_empty() {
            return Some(Duration::ZERO);
        }
        let mut until = self.sweep_at;
        if !self.throttled.is_empty() {
            until = until.min(self.rate.as_ref().map_or(self.now, RateMeter::ready_at));
        }
        if self.listeners.iter().any(|slot| slot.ready) {
            until = until.min(self.accept_at);
        }
        let own = (until != Time::NEVER).then(|| until.since(self.now));
        match (timeout, own) {
            (Some(timeout), Some(own)) => Some(timeout.min(own)),
            (timeout, own) => timeout.or(own),
        }
    }

    fn on_events(&mut self) {
        let mut connecting = Vec::new();
        for event in &self.events {
            let Token(token) = event.token();
            if event.token() == WAKER {
                continue;
            }
            if token < CONNECTION_TOKENS_FROM {
                self.listeners[token - 1].ready = true;
                continue;
            }
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            let over = event.is_error() || event.is_read_closed() || event.is_write_closed();
            connection.read_closed |= over;
            connection.readable |= event.is_readable() || over;
            connection.writable |= event.is_writable() || over;
            if matches!(connection.phase, Phase::Connecting { .. }) {
                connecting.push(token);
                continue;
            }
            if connection.readable && !connection.listed_ready && !connection.throttled {
                connection.listed_ready = true;
                self.ready.push_back(token);
            }
            if connection.writable && connection.sender.queued_bytes() > 0 && !connection.listed_dirty && !connection.throttled {
                connection.listed_dirty = true;
                self.dirty.push_back(token);
            }
        }
        for token in connecting {
            self.on_connecting(token);
        }
    }

    // ---- dialling and accepting

    fn dial(&mut self, link: LinkId, address: &Address, hello: Hello) {
        assert!(!link.is_incoming(), "incoming links are numbered by the driver");
        assert!(!self.links.contains_key(&link), "a link's number is used once");
        let mut targets: VecDeque<Target> = match stream::resolve(address) {
            Ok(targets) => targets.into(),
            Err(error) => {
                tracing::debug!(%address, %error, "cannot resolve");
                return self.report_down(link, Status::Disconnected, None);
            }
        };
        let token = self.take_token();
        match self.connect_first(token, &mut targets) {
            Some(stream) => {
                let phase = Phase::Connecting { hello, others: targets };
                self.connections.insert(token, Connection::new(link, address.to_string(), stream, phase, self.now));
                self.links.insert(link, token);
                self.arm(limits::HANDSHAKE_TIMEOUT);
            }
            None => self.report_down(link, Status::Disconnected, None),
        }
    }

    /// Begins to connect to the first target that does not fail at once.
    fn connect_first(&self, token: usize, targets: &mut VecDeque<Target>) -> Option<Stream> {
        while let Some(target) = targets.pop_front() {
            let connected = Stream::connect(&target).and_then(|mut stream| {
                stream.register(self.poll.registry(), Token(token))?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => return Some(stream),
                Err(error) => tracing::debug!(?target, %error, "cannot connect"),
            }
        }
        None
    }

    fn on_connecting(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.stream.is_connected() {
            Ok(false) => {}
            Ok(true) => match connection.on_connected(self.now) {
                Ok(()) => {
                    self.arm(limits::HANDSHAKE_TIMEOUT);
                    self.mark_dirty(token);
                    self.mark_ready(token);
                }
                Err(fault) => self.end(token, fault),
            },
            Err(error) => {
                tracing::debug!(peer = %connection.peer, %error, "cannot connect");
                self.connect_next(token);
            }
        }
    }

    /// Turns to the next address of the host that is being dialled.
    fn connect_next(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let Phase::Connecting { others, .. } = &mut connection.phase else { return };
        let mut others = std::mem::take(others);
        let Some(stream) = self.connect_first(token, &mut others) else {
            return self.end(token, Status::Disconnected.into());
        };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if let Phase::Connecting { others: rest, .. } = &mut connection.phase {
            *rest = others;
        }
        connection.stream = stream;
        (connection.readable, connection.writable, connection.read_closed) = (false, false, false);
        connection.since = self.now;
        self.arm(limits::HANDSHAKE_TIMEOUT);
    }

    fn accept(&mut self) {
        if self.now < self.accept_at {
            return;
        }
        let mut left = limits::ACCEPTS_PER_TURN_MAX;
        for index in 0..self.listeners.len() {
            while self.listeners[index].ready && left > 0 {
                left -= 1;
                match self.listeners[index].listener.accept() {
                    Ok((stream, peer)) => self.welcome(stream, peer),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.listeners[index].ready = false,
                    Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        self.accept_at = self.now + ACCEPT_RETRY;
                        return;
                    }
                }
            }
        }
    }

    fn welcome(&mut self, mut stream: Stream, peer: String) {
        if self.connections.len() >= limits::CONNECTIONS_MAX {
            self.counters.refused += 1;
            return self.refusals.log(self.now, &peer, Status::Busy);
        }
        if self.unauthenticated.len() >= limits::UNAUTHENTICATED_MAX
            && let Some(&oldest) = self.unauthenticated.first()
        {
            self.end(oldest, Status::Busy.into());
        }
        let token = self.take_token();
        if let Err(error) = stream.register(self.poll.registry(), Token(token)) {
            tracing::warn!(%peer, %error, "cannot watch a connection");
            return;
        }
        let link = LinkId(LinkId::INCOMING | self.next_incoming);
        self.next_incoming += 1;
        self.connections.insert(token, Connection::new(link, peer, stream, Phase::Waiting, self.now));
        self.unauthenticated.insert(token);
        self.arm(limits::HANDSHAKE_TIMEOUT);
    }

    fn take_token(&mut self) -> usize {
        self.next_token += 1;
        self.next_token
    }

    // ---- what the core asks for

    fn send(&mut self, link: LinkId, frame: Frame) {
        // The link may have gone down while the core was deciding; it will hear of that, or has.
        let Some(&token) = self.links.get(&link) else { return };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.send(frame, &mut self.counters, self.now) {
            Ok(()) => self.mark_dirty(token),
            Err(status) => {
                tracing::error!(peer = %connection.peer, reason = %status, "a frame could not be queued");
                self.end(token, status.into());
            }
        }
    }

    fn close(&mut self, link: LinkId) {
        let Some(token) = self.links.remove(&link) else { return };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.is_up() {
            self.begin_close(token);
        } else {
            self.remove(token);
        }
    }

    fn begin_close(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.close(self.now);
        connection.paused = false;
        self.arm(limits::CLOSE_LINGER);
        self.mark_dirty(token);
        self.mark_ready(token);
    }

    // ---- reading and writing

    fn write_dirty(&mut self) {
        for _ in 0..self.dirty.len() {
            let Some(token) = self.dirty.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.listed_dirty = false;
            // Whoever waits for the meter has its turn first.
            if self.rate.is_some() && connection.lane == Lane::Bulk && !self.throttled.is_empty() {
                self.throttle(token);
                continue;
            }
            self.write(token);
        }
    }

    fn write(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let metered = connection.lane == Lane::Bulk;
        let allowance = match &mut self.rate {
            Some(rate) if metered => rate.allowance(self.now),
            _ => usize::MAX,
        };
        let result = connection.write_turn(allowance, self.now);
        let queued = connection.sender.queued_bytes();
        let starved = connection.writable && queued > 0;
        let resumes = connection.paused && queued <= connection.queue_bytes_max() / 2;
        connection.paused &= !resumes;
        match result {
            Ok(written) => {
                if let Some(rate) = &mut self.rate
                    && metered
                {
                    rate.take(written);
                }
            }
            Err(fault) => return self.end(token, fault),
        }
        if queued > 0 {
            self.arm(limits::SEND_STALL_TIMEOUT);
        }
        if resumes {
            self.mark_ready(token);
        }
        if starved {
            self.throttle(token);
        }
    }

    /// Reads everyone who has something, in turns, up to what one turn of the core should have to handle.
    fn serve_ready(&mut self) {
        let mut left = limits::READ_TURN_BYTES_MAX;
        for _ in 0..self.ready.len() {
            if left == 0 {
                break;
            }
            let Some(token) = self.ready.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.listed_ready = false;
            if self.rate.is_some() && connection.lane == Lane::Bulk && !self.throttled.is_empty() {
                self.throttle(token);
                continue;
            }
            let most = left.min(connection.turn_bytes_max());
            left -= self.read(token, most);
        }
    }

    /// Gives those who wait for the meter what has gathered, in the order in which they began to wait.
    fn serve_throttled(&mut self) {
        for _ in 0..self.throttled.len() {
            let now = self.now;
            if self.rate.as_mut().is_some_and(|rate| rate.allowance(now) == 0) {
                break;
            }
            let Some(token) = self.throttled.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.throttled = false;
            self.write(token);
            if self.connections.get(&token).is_some_and(|connection| connection.readable && !connection.throttled) {
                self.read(token, limits::CONNECTION_TURN_BYTES_MAX);
            }
        }
    }

    /// Reads one connection; how many bytes came.
    fn read(&mut self, token: usize, most: usize) -> usize {
        let Some(connection) = self.connections.get_mut(&token) else { return 0 };
        if !connection.readable || connection.paused || matches!(connection.phase, Phase::Connecting { .. }) {
            return 0;
        }
        if connection.is_up() && connection.sender.queued_bytes() > connection.queue_bytes_max() {
            connection.paused = true;
            return 0;
        }
        let metered = connection.lane == Lane::Bulk;
        let allowance = match &mut self.rate {
            Some(rate) if metered => rate.allowance(self.now),
            _ => usize::MAX,
        };
        if allowance == 0 {
            self.throttle(token);
            return 0;
        }
        let was_up = connection.is_up();
        let mut around = Surroundings {
            now: self.now,
            scratch: &mut self.scratch,
            identity: self.identity.as_ref(),
            counters: &mut self.counters,
            events: &mut self.reports,
        };
        let result = connection.read_turn(most.min(allowance), &mut around);
        let (is_up, link, amid_frame, again) =
            (connection.is_up(), connection.link, connection.receiver.is_amid_frame(), connection.readable);
        if is_up && !was_up {
            self.unauthenticated.remove(&token);
            self.links.insert(link, token);
        }
        match result {
            Ok(count) => {
                if let Some(rate) = &mut self.rate
                    && metered
                {
                    rate.take(count);
                }
                if amid_frame {
                    self.arm(limits::FRAME_TIMEOUT);
                }
                if again {
                    self.mark_ready(token);
                }
                self.mark_dirty(token);
                count
            }
            Err(fault) => {
                self.end(token, fault);
                0
            }
        }
    }

    fn mark_ready(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.listed_ready
            && !connection.throttled
        {
            connection.listed_ready = true;
            self.ready.push_back(token);
        }
    }

    fn mark_dirty(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(&token)
            && connection.writable
            && !connection.listed_dirty
            && !connection.throttled
        {
            connection.listed_dirty = true;
            self.dirty.push_back(token);
        }
    }

    fn throttle(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.throttled
        {
            connection.throttled = true;
            self.throttled.push_back(token);
        }
    }

    // ---- endings

    /// Looks at everyone's deadlines. Rare: connections that make progress move theirs without telling.
    fn sweep(&mut self) {
        let now = self.now;
        let mut late = Vec::new();
        let mut next = Time::NEVER;
        for (&token, connection) in &mut self.connections {
            match connection.check_deadlines(now) {
                Ok(deadline) => next = next.min(deadline),
                Err(_) => late.push(token),
            }
        }
        self.sweep_at = next;
        for token in late {
            let Some(connection) = self.connections.get(&token) else { continue };
            if matches!(&connection.phase, Phase::Connecting { others, .. } if !others.is_empty()) {
                self.connect_next(token);
            } else {
                self.end(token, Status::TimedOut.into());
            }
        }
    }

    fn arm(&mut self, after: Duration) {
        self.sweep_at = self.sweep_at.min(self.now + after);
    }

    fn end(&mut self, token: usize, fault: Fault) {
        let Some(connection) = self.connections.get(&token) else { return };
        let (reason, found) = match fault {
            Fault::Down { reason, found } => (reason, found),
            Fault::Refused(reason) => (reason, None),
        };
        if !matches!(connection.phase, Phase::Closing { .. }) {
            self.log_end(token, reason);
        }
        match fault {
            // Stays among the unauthenticated until the answer is delivered.
            Fault::Refused(_) => self.begin_close(token),
            Fault::Down { .. } => {
                let Some(connection) = self.remove(token) else { return };
                if connection.is_announced() {
                    self.report_down(connection.link, reason, found);
                }
            }
        }
    }

    fn log_end(&mut self, token: usize, reason: Status) {
        let Some(connection) = self.connections.get(&token) else { return };
        if matches!(connection.phase, Phase::Connecting { .. }) || reason == Status::Disconnected {
            tracing::debug!(peer = %connection.peer, link = connection.link.0, reason = %reason, "connection ended");
            return;
        }
        self.counters.refused += 1;
        self.refusals.log(self.now, &connection.peer, reason);
    }

    fn remove(&mut self, token: usize) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        self.unauthenticated.remove(&token);
        if self.links.get(&connection.link) == Some(&token) {
            self.links.remove(&connection.link);
        }
        Some(connection)
    }

    fn report_down(&mut self, link: LinkId, reason: Status, found: Option<NodeId>) {
        self.reports.push(LinkEvent::Down { link, reason, found });
    }
}
