//! The world: one queue of events ordered by (virtual time, sequence), the processes and what happens to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::client::{Call, Config, Event as ClientEvent, Reply, Sabotage};
use dfs::limits;
use dfs::link::{Frame, Hello, LinkAction, LinkEvent, LinkId};
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::{Address, SessionId};
use dfs::wire::frame::HEADER_BYTES;
use dfs::wire::message::{Body, Notice, Request, Response};
use dfs::wire::{codec, handshake};
use dfs_node::node::{Node, NodeConfig};

use super::network::{Arrival, ConnectionId, EndState, Host, Network, Pid, Speed};
use super::process::{Clock, Machine, Process, Wish};

pub const MILLISECOND: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;
/// A node that takes more turns than this within a virtual second is in a loop.
const TURNS_MAX: u32 = 200_000;

/// Requests from this number on are echoes, which nobody waits for.
const ECHO: u64 = 1 << 60;

/// What is going to happen.
enum Event {
    Wake(Pid),
    /// The dialler's Hello reaches the accepter.
    Dial(ConnectionId),
    DialAgain(ConnectionId),
    DialTimeout(ConnectionId),
    Arrive(ConnectionId, usize, Arrival),
    /// Has the partition outlasted what the connection bears?
    StallCheck(ConnectionId, usize),
    /// A request comes once more, long after the first.
    Echo(ConnectionId, usize, Frame),
    /// Something for whoever drives the world.
    Alarm(u64),
}

/// What the world tells its driver.
pub enum News {
    Done { client: Pid, token: u64, result: Result<Reply, Status> },
    Client { client: Pid, event: ClientEvent },
    NodeStopped { pid: Pid, reason: String },
    Alarm(u64),
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The kernel closes its connections.
    Killed,
    /// Power is cut: peers hear nothing.
    Silent,
}

pub struct World {
    pub now: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub random: Random,
    pub network: Network,
    pub processes: BTreeMap<Pid, Process>,
    next_pid: Pid,
    pub hosts: BTreeMap<Address, Host>,
    on_host: BTreeMap<Host, Pid>,
    /// Stopped processes and what they will find when they go on.
    paused: BTreeMap<Pid, VecDeque<Event>>,
    pub news: VecDeque<News>,
    /// Nodes that took a turn since the driver last looked.
    pub touched: BTreeSet<Pid>,
    /// Changes with everything that happens: the same seed must give the same one.
    pub trace: u64,
    pub frames: u64,
    /// How many of four deletions come twice, the second time late.
    pub echoes: u64,
    /// Whether clients that are started from now on keep what they have a right to.
    pub caches: bool,
    /// Whether those that cache, and mounts, write behind.
    pub behind: bool,
    /// A bug planted in clients and mounts that are started from now on.
    pub sabotage: Option<Sabotage>,
    pub log: bool,
    /// What each process sent so far, by kind.
    pub tally: BTreeMap<(Pid, &'static str), Sent>,
    /// Messages of this kind get lost.
    pub lossy: Option<&'static str>,
    /// Since when wall clocks are set wrong now and then.
    clocks_step_from: u64,
}

/// Messages of one kind from one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub frames: u64,
    /// Headers, bodies and payloads.
    pub bytes: u64,
}

/// Kinds of messages that are counted apart.
fn kind(body: &Body) -> &'static str {
    match body {
        Body::Request(Request::Map { .. }) => "Map",
        Body::Request(Request::Renew { .. }) => "Renew",
        Body::Request(Request::Namespace { .. }) => "Namespace",
        Body::Request(Request::Query(_)) => "Query",
        Body::Request(Request::Put { .. }) => "Put",
        Body::Request(Request::LinkChunk { .. }) => "LinkChunk",
        Body::Request(Request::Get { .. }) => "Get",
        Body::Request(Request::Suspect { .. }) => "Suspect",
        Body::Request(Request::Delete { .. }) => "Delete",
        Body::Request(_) => "other request",
        Body::Response(Ok(Response::Bytes { .. })) => "Bytes",
        Body::Response(_) => "other response",
        Body::Notice(Notice::Map(_)) => "map notice",
        Body::Notice(Notice::Recall { .. }) => "recall notice",
        Body::Notice(_) => "other notice",
    }
}

impl World {
    pub fn new(seed: u64, speed: Speed) -> Self {
        let mut random = Random::new(seed);
        let network = Network::new(speed, random.fork());
        World {
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            random,
            network,
            processes: BTreeMap::new(),
            next_pid: 1,
            hosts: BTreeMap::new(),
            on_host: BTreeMap::new(),
            paused: BTreeMap::new(),
            news: VecDeque::new(),
            touched: BTreeSet::new(),
            trace: seed,
            frames: 0,
            echoes: 1,
            caches: false,
            behind: false,
            sabotage: None,
            log: std::env::var_os("DFS_SIM_LOG").is_some(),
            tally: BTreeMap::new(),
            lossy: None,
            clocks_step_from: u64::MAX,
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    /// Tells the driver `token` after a while.
    pub fn alarm(&mut self, after: u64, token: u64) {
        self.schedule(self.now + after, Event::Alarm(token));
    }

    fn clock(&mut self) -> Clock {
        Clock {
            base: SECOND + self.random.below(1_000_000 * SECOND),
            drift_ppm: self.random.below(200) as i64 - 100,
            wall_seconds: self.random.below(3) as i64 - 1,
            steps_from: self.clocks_step_from,
        }
    }

    /// From now on wall clocks are set wrong now and then, also those of machines that come.
    pub fn let_clocks_step(&mut self) {
        self.clocks_step_from = self.now;
        self.processes.values_mut().for_each(|process| process.clock.steps_from = self.now);
    }

    pub fn start_node(&mut self, host: Host, address: Address, config: NodeConfig) -> Pid {
        let (pid, clock, seed) = (self.take_pid(), self.clock(), self.random.next());
        self.hosts.insert(address, host);
        let process = Process::node(pid, host, clock, self.now, config, seed);
        self.start(process)
    }

    pub fn start_client(&mut self, host: Host, nodes: Vec<Address>) -> Pid {
        let (pid, clock, seed) = (self.take_pid(), self.clock(), self.random.next());
        let session = SessionId(self.random.next_id());
        let (caches, sabotage) = (self.caches, self.sabotage);
        let config = Config { caches, behind: caches && self.behind, sabotage, ..Config::new(nodes, session) };
        let process = Process::client(pid, host, clock, self.now, config, seed);
        self.start(process)
    }

    /// A mounted machine.
    pub fn start_mount(&mut self, host: Host, nodes: Vec<Address>) -> Pid {
        let (pid, clock, seed) = (self.take_pid(), self.clock(), self.random.next());
        let session = SessionId(self.random.next_id());
        let config = Config { caches: true, behind: self.behind, sabotage: self.sabotage, ..Config::new(nodes, session) };
        let process = Process::mount(pid, host, clock, self.now, config, seed);
        self.start(process)
    }

    /// Programs on that mount keep what they open from now on.
    pub fn keep_open(&mut self, mount: Pid) {
        if let Some(Machine::Mount(mount)) = self.processes.get_mut(&mount).map(|process| &mut process.machine) {
            mount.keep_open();
        }
    }

    fn take_pid(&mut self) -> Pid {
        self.next_pid += 1;
        self.next_pid
    }

    fn start(&mut self, process: Process) -> Pid {
        let (pid, host) = (process.pid, process.host);
        assert!(self.on_host.insert(host, pid).is_none(), "a host runs one process");
        self.processes.insert(pid, process);
        self.note("start", pid as u64, host as u64);
        self.drain(pid);
        pid
    }

    /// Ends a process; what it kept in RAM is gone.
    pub fn kill(&mut self, pid: Pid, death: Death) {
        let Some(process) = self.processes.remove(&pid) else { return };
        self.note("kill", pid as u64, death as u64);
        self.on_host.remove(&process.host);
        self.paused.remove(&pid);
        for (id, end) in self.network.of(pid) {
            if death == Death::Killed {
                self.send(id, 1 - end, Arrival::Down(Status::Disconnected, None), 0);
            }
            self.network.close(id, end);
        }
    }

    /// Sends a node SIGTERM.
    pub fn leave(&mut self, pid: Pid) {
        self.note("leave", pid as u64, 0);
        self.turn(pid, |process, now| process.leave(now));
    }

    /// The session of a client.
    pub fn session_of(&self, pid: Pid) -> Option<SessionId> {
        self.processes.get(&pid)?.session()
    }

    pub fn pid_on(&self, host: Host) -> Option<Pid> {
        self.on_host.get(&host).copied()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (Pid, &Node)> {
        self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.as_node()?)))
    }

    pub fn is_paused(&self, pid: Pid) -> bool {
        self.paused.contains_key(&pid)
    }

    /// Stops a process: it takes no turns until it goes on, and finds that time has jumped.
    pub fn pause(&mut self, pid: Pid) {
        if self.processes.contains_key(&pid) && !self.is_paused(pid) {
            self.note("pause", pid as u64, 0);
            self.paused.insert(pid, VecDeque::new());
            self.turn(pid, |process, now| process.set_stopped(now, true));
        }
    }

    pub fn resume(&mut self, pid: Pid) {
        let Some(events) = self.paused.remove(&pid) else { return };
        self.note("resume", pid as u64, events.len() as u64);
        self.turn(pid, |process, now| process.set_stopped(now, false));
        // Before what it missed or after: the process may look at its clock first.
        if self.random.chance(1, 2) {
            self.turn(pid, |process, now| process.on_deadline(now));
        }
        for event in events {
            self.happen(event);
        }
        self.schedule(self.now, Event::Wake(pid));
        if let Some(process) = self.processes.get_mut(&pid) {
            process.wake_at = self.now;
        }
    }

    /// One way from host to host is cut.
    pub fn block(&mut self, from: Host, to: Host) {
        self.note("block", from as u64, to as u64);
        self.network.block(from, to);
    }

    pub fn unblock(&mut self, from: Host, to: Host) {
        self.note("unblock", from as u64, to as u64);
        if !self.network.unblock(from, to) {
            return;
        }
        for (id, end) in self.network.stalled_between(from, to) {
            if self.random.chance(1, 3) {
                self.reset(id);
                continue;
            }
            let Some(connection) = self.network.connections.get_mut(&id) else { continue };
            for arrival in std::mem::take(&mut connection.ends[end].stalled) {
                self.send(id, end, arrival, 0);
            }
        }
    }

    /// What a partition holds up on the way from one host to the other never arrives: the connections are lost.
    pub fn lose_held_up(&mut self, from: Host, to: Host) {
        for (id, end) in self.network.stalled_between(from, to) {
            if let Some(connection) = self.network.connections.get_mut(&id) {
                connection.ends[end].stalled.clear();
            }
            self.reset(id);
        }
    }

    /// Loses a connection; what is on its way may or may not arrive before the ends notice.
    pub fn reset(&mut self, id: ConnectionId) {
        self.note("reset", id, 0);
        for end in 0..2 {
            let at = self.now + self.random.below(5 * MILLISECOND);
            self.schedule(at, Event::Arrive(id, end, Arrival::Down(Status::Disconnected, None)));
        }
    }

    /// Hands a call to a client; the answer comes as news.
    pub fn submit(&mut self, client: Pid, token: u64, call: Call) {
        self.turn(client, |process, now| process.submit(now, token, call));
    }

    /// Lets the next thing happen, unless it lies behind `until`; tells whether it did.
    pub fn step(&mut self, until: u64) -> bool {
        let Some((&(at, _), _)) = self.queue.first_key_value() else {
            self.now = until;
            return false;
        };
        if at > until {
            self.now = until;
            return false;
        }
        let (_, event) = self.queue.pop_first().expect("looked at above");
        self.now = at;
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        if let Some(pid) = self.subject(&event)
            && let Some(missed) = self.paused.get_mut(&pid)
        {
            missed.push_back(event);
            return;
        }
        match event {
            Event::Wake(pid) => self.on_wake(pid),
            Event::Dial(id) => self.on_dial(id),
            Event::DialAgain(id) => {
                let Some(connection) = self.network.connections.get(&id) else { return };
                if !self.network.is_blocked(connection.ends[0].host, connection.ends[1].host) {
                    let latency = self.network.latency(id, 0);
                    self.schedule(self.now + latency, Event::Dial(id));
                }
            }
            Event::DialTimeout(id) => {
                let opening = self.network.connections.get(&id).is_some_and(|one| one.ends[0].state == EndState::Opening);
                if opening {
                    self.deliver(id, 0, Arrival::Down(Status::TimedOut, None));
                }
            }
            Event::Arrive(id, end, arrival) => self.deliver(id, end, arrival),
            Event::StallCheck(id, end) => {
                let stalled = self.network.connections.get(&id).is_some_and(|one| !one.ends[end].stalled.is_empty());
                if stalled {
                    self.deliver(id, 1 - end, Arrival::Down(Status::TimedOut, None));
                }
            }
            Event::Echo(id, end, frame) => self.deliver(id, end, Arrival::Frame(frame)),
            Event::Alarm(token) => self.news.push_back(News::Alarm(token)),
        }
    }

    /// Who must be running for the event to happen to it.
    fn subject(&self, event: &Event) -> Option<Pid> {
        let end = |id: &ConnectionId, end: usize| self.network.connections.get(id).map(|one| one.ends[end].pid);
        match event {
            Event::Wake(_) | Event::Alarm(_) | Event::DialAgain(_) => None,
            Event::Dial(id) => end(id, 1),
            Event::DialTimeout(id) => end(id, 0),
            Event::Arrive(id, to, _) | Event::Echo(id, to, _) => end(id, *to),
            Event::StallCheck(id, to) => end(id, 1 - to),
        }
    }

    fn on_wake(&mut self, pid: Pid) {
        let (now, paused) = (self.now, self.is_paused(pid));
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.wake_at != now || paused {
            return;
        }
        process.wake_at = u64::MAX;
        self.turn(pid, |process, now| {
            if process.next_deadline() <= now {
                process.on_deadline(now);
            }
        });
    }

    fn turn(&mut self, pid: Pid, work: impl FnOnce(&mut Process, u64)) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.turns.0 != now / SECOND {
            process.turns = (now / SECOND, 0);
        }
        process.turns.1 += 1;
        assert!(process.turns.1 < TURNS_MAX, "process {pid} is in a busy loop at {now}");
        work(process, now);
        self.drain(pid);
    }

    /// Does what the process wants, and arranges its next wake-up.
    fn drain(&mut self, pid: Pid) {
        let now = self.now;
        while let Some(wish) = self.processes.get_mut(&pid).and_then(|process| process.poll(now)) {
            self.grant(pid, wish);
        }
        self.touched.insert(pid);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        // A deadline that has passed comes again a little later: time must go on.
        let at = process.next_deadline().max(now + 1000);
        if at < process.wake_at {
            process.wake_at = at;
            self.schedule(at, Event::Wake(pid));
        }
    }

    fn grant(&mut self, pid: Pid, wish: Wish) {
        match wish {
            Wish::Link(LinkAction::Connect { link, address, hello }) => self.connect(pid, link, &address, hello),
            Wish::Link(LinkAction::Send { link, frame }) => self.send_frame(pid, link, frame),
            Wish::Link(LinkAction::Close { link }) => {
                if let Some(&(id, end)) = self.network.links.get(&(pid, link)) {
                    self.send(id, 1 - end, Arrival::Down(Status::Disconnected, None), 0);
                    self.network.close(id, end);
                }
            }
            Wish::Identity(hello) => {
                self.note("identity", pid as u64, hello.sender);
                self.process(pid).identity = Some(hello);
            }
            Wish::NodeReady => self.process(pid).ready = true,
            Wish::NodeStopped(reason) => self.news.push_back(News::NodeStopped { pid, reason }),
            Wish::Done { token, result } => self.news.push_back(News::Done { client: pid, token, result }),
            Wish::Client(event) => self.news.push_back(News::Client { client: pid, event }),
        }
    }

    fn process(&mut self, pid: Pid) -> &mut Process {
        self.processes.get_mut(&pid).expect("a process that speaks lives")
    }

    fn connect(&mut self, pid: Pid, link: LinkId, address: &Address, hello: Hello) {
        let host = self.process(pid).host;
        let to = self.hosts.get(address).copied();
        let accepter = to.and_then(|to| self.on_host.get(&to).copied());
        // Pid 0 is nobody: the kernel refuses, or the machine is off.
        let id = self.network.open((pid, host, link), (accepter.unwrap_or(0), to.unwrap_or(usize::MAX)), hello);
        let latency = self.network.latency(id, 0);
        self.schedule(self.now + limits::HANDSHAKE_TIMEOUT.as_nanos() as u64, Event::DialTimeout(id));
        let Some(to) = to else { return self.schedule(self.now + latency, refuse(id)) };
        if self.network.is_blocked(host, to) {
            // TCP asks again after a second.
            return self.schedule(self.now + SECOND, Event::DialAgain(id));
        }
        match accepter {
            Some(_) => self.schedule(self.now + latency, Event::Dial(id)),
            None if self.random.chance(1, 2) => self.schedule(self.now + latency, refuse(id)),
            None => {}
        }
    }

    fn on_dial(&mut self, id: ConnectionId) {
        let Some(connection) = self.network.connections.get_mut(&id) else { return };
        let (hello, pid, link) = (connection.hello, connection.ends[1].pid, connection.ends[1].link);
        if connection.ends[0].state == EndState::Closed {
            return self.network.close(id, 1);
        }
        let Some(identity) = self.processes.get(&pid).and_then(|process| process.identity) else {
            self.send(id, 0, Arrival::Down(Status::Disconnected, None), 0);
            return self.network.close(id, 1);
        };
        let answer = handshake::answer(&identity, hello.lane);
        let accepted = handshake::check_dialler(&identity, &hello).is_ok();
        self.send(id, 0, Arrival::Up(answer), 0);
        if !accepted {
            self.send(id, 0, Arrival::Down(Status::Disconnected, None), 0);
            return self.network.close(id, 1);
        }
        if let Some(connection) = self.network.connections.get_mut(&id) {
            connection.ends[1].state = EndState::Up;
        }
        self.turn(pid, |process, now| process.feed(now, LinkEvent::Up { link, peer: hello }));
    }

    fn send_frame(&mut self, pid: Pid, link: LinkId, frame: Frame) {
        let Some(&(id, end)) = self.network.links.get(&(pid, link)) else { return };
        let Some(connection) = self.network.connections.get(&id) else { return };
        let answers_an_echo = matches!(frame.body, Body::Response(_)) && frame.request >= ECHO;
        if connection.ends[end].state != EndState::Up || answers_an_echo {
            return;
        }
        // Through the codec, as in life: what does not encode or decode must not work here either.
        let lane = connection.lane();
        let bytes = codec::encode(&frame.body, codec::body_bytes_max(lane)).expect("a core sends only what fits a frame");
        let body = codec::decode_body(&bytes, lane).unwrap_or_else(|status| panic!("refused by its receiver ({status}): {:?}", frame.body));
        assert_eq!(body, frame.body, "a body survives its encoding");
        assert!(frame.payload.len() <= limits::PAYLOAD_BYTES_MAX, "a payload fits its bound");
        let digest = blake3::hash(&bytes);
        self.note("send", id, u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")));
        self.frames += 1;
        if self.log {
            let text = format!("{:?}", frame.body);
            eprintln!("{:>13} {pid} -> {} {:.200}", self.now, self.network.connections[&id].ends[1 - end].pid, text);
        }
        let size = bytes.len() + frame.payload.len();
        let kind = kind(&body);
        let sent = self.tally.entry((pid, kind)).or_default();
        (sent.frames, sent.bytes) = (sent.frames + 1, sent.bytes + (size + HEADER_BYTES) as u64);
        if self.lossy == Some(kind) {
            return;
        }
        if matches!(body, Body::Request(Request::Delete { .. })) && self.random.chance(self.echoes, 4) {
            let (after, echo) = (self.random.below(3 * SECOND), Frame { request: ECHO + self.sequence, ..frame.clone() });
            self.schedule(self.now + after, Event::Echo(id, 1 - end, echo));
        }
        self.send(id, 1 - end, Arrival::Frame(Frame { body, ..frame }), size);
    }

    /// Sends something towards an end, in order; a partition holds it up.
    fn send(&mut self, id: ConnectionId, to: usize, arrival: Arrival, size: usize) {
        let Some(connection) = self.network.connections.get(&id) else { return };
        let (there, here) = (&connection.ends[to], &connection.ends[1 - to]);
        let gone = !self.processes.contains_key(&there.pid);
        let blocked = self.network.is_blocked(here.host, there.host) || gone || !there.stalled.is_empty();
        if !blocked {
            let at = self.network.arrival_time(self.now, id, to, size);
            return self.schedule(at, Event::Arrive(id, to, arrival));
        }
        let first = there.stalled.is_empty();
        let host_lives = gone && self.on_host.contains_key(&there.host);
        if host_lives {
            // Another process answers there by now: its kernel knows no such connection.
            let at = self.now + MILLISECOND;
            return self.schedule(at, Event::Arrive(id, 1 - to, Arrival::Down(Status::Disconnected, None)));
        }
        if let Some(connection) = self.network.connections.get_mut(&id) {
            connection.ends[to].stalled.push_back(arrival);
        }
        if first {
            self.schedule(self.now + limits::SEND_STALL_TIMEOUT.as_nanos() as u64, Event::StallCheck(id, to));
        }
    }

    fn deliver(&mut self, id: ConnectionId, end: usize, arrival: Arrival) {
        let Some(connection) = self.network.connections.get_mut(&id) else { return };
        let hello = connection.hello;
        let (pid, link, state) = (connection.ends[end].pid, connection.ends[end].link, connection.ends[end].state);
        if state == EndState::Closed {
            return;
        }
        let event = match arrival {
            Arrival::Frame(frame) if state == EndState::Up => LinkEvent::Received { link, frame },
            Arrival::Frame(_) => return,
            Arrival::Up(answer) => match handshake::check_accepter(&hello, &answer) {
                Ok(()) => {
                    connection.ends[end].state = EndState::Up;
                    LinkEvent::Up { link, peer: answer }
                }
                Err(mismatch) => return self.lose(id, end, mismatch.reason, mismatch.found),
            },
            Arrival::Down(reason, found) => return self.lose(id, end, reason, found),
        };
        self.turn(pid, |process, now| process.feed(now, event));
    }

    /// One end notices that the connection is gone; the other hears of it in time.
    fn lose(&mut self, id: ConnectionId, end: usize, reason: Status, found: Option<dfs::types::NodeId>) {
        let Some(connection) = self.network.connections.get(&id) else { return };
        let (pid, link, state) = (connection.ends[end].pid, connection.ends[end].link, connection.ends[end].state);
        self.send(id, 1 - end, Arrival::Down(Status::Disconnected, None), 0);
        let other = connection_pid(&self.network, id, 1 - end);
        self.network.close(id, end);
        if other.is_none_or(|pid| !self.processes.contains_key(&pid)) {
            self.network.close(id, 1 - end);
        }
        self.note("down", id, end as u64);
        // An accepting side that never let the dialler in knows nothing of the link.
        if end == 0 || state == EndState::Up {
            self.turn(pid, |process, now| process.feed(now, LinkEvent::Down { link, reason, found }));
        }
    }

    fn note(&mut self, what: &str, a: u64, b: u64) {
        for word in [self.now, what.len() as u64 ^ what.as_bytes()[0] as u64, a, b] {
            self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        if self.log && what != "send" {
            eprintln!("{:>13} {what} {a} {b:x}", self.now);
        }
    }
}

fn connection_pid(network: &Network, id: ConnectionId, end: usize) -> Option<Pid> {
    network.connections.get(&id).map(|connection| connection.ends[end].pid)
}

fn refuse(id: ConnectionId) -> Event {
    Event::Arrive(id, 0, Arrival::Down(Status::Disconnected, None))
}
