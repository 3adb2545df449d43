//! The simulated network: connections with latency, partitions, loss; in order within a connection, as TCP is.
//!
//! Owns connections and who cannot reach whom. Pure bookkeeping: the world moves time and feeds processes.

use std::collections::{BTreeMap, VecDeque};

use dfs::link::{Frame, Hello, Lane, LinkId};
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::NodeId;

/// A machine: keeps its place in the network while processes on it come and go.
pub type Host = usize;
/// One life of one process.
pub type Pid = usize;
/// A connection, ever.
pub type ConnectionId = u64;

/// What reaches one end of a connection.
#[allow(clippy::large_enum_variant)] // Nearly all are frames.
#[derive(Clone, Debug)]
pub enum Arrival {
    Up(Hello),
    Frame(Frame),
    Down(Status, Option<NodeId>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndState {
    /// Waits for the handshake.
    Opening,
    Up,
    /// Nothing is delivered any more.
    Closed,
}

/// One side of a connection.
#[derive(Debug)]
pub struct End {
    pub pid: Pid,
    pub host: Host,
    pub link: LinkId,
    pub state: EndState,
    /// Nothing arrives here before what was sent earlier.
    pub last_arrival: u64,
    /// On its way here when a partition began: TCP tries again until it heals.
    pub stalled: VecDeque<Arrival>,
}

/// End 0 dialled, end 1 accepted.
#[derive(Debug)]
pub struct Connection {
    pub ends: [End; 2],
    pub hello: Hello,
}

impl Connection {
    pub fn lane(&self) -> Lane {
        self.hello.lane
    }
}

/// How fast the network is; drawn per seed.
#[derive(Clone, Debug)]
pub struct Speed {
    pub latency_ns: u64,
    pub jitter_ns: u64,
    pub ns_per_byte: u64,
}

/// Connections and partitions.
pub struct Network {
    pub connections: BTreeMap<ConnectionId, Connection>,
    /// By process and link name.
    pub links: BTreeMap<(Pid, LinkId), (ConnectionId, usize)>,
    next: ConnectionId,
    next_incoming: u64,
    /// How many faults forbid the way from one host to another.
    blocked: BTreeMap<(Host, Host), u32>,
    /// Extra latency towards and from a host.
    pub slow: BTreeMap<Host, u64>,
    speed: Speed,
    random: Random,
}

impl Network {
    pub fn new(speed: Speed, random: Random) -> Self {
        Network {
            connections: BTreeMap::new(),
            links: BTreeMap::new(),
            next: 1,
            next_incoming: 1,
            blocked: BTreeMap::new(),
            slow: BTreeMap::new(),
            speed,
            random,
        }
    }

    pub fn open(&mut self, dialler: (Pid, Host, LinkId), accepter: (Pid, Host), hello: Hello) -> ConnectionId {
        let id = self.next;
        self.next += 1;
        let incoming = LinkId(LinkId::INCOMING | self.next_incoming);
        self.next_incoming += 1;
        let end = |pid, host, link| End { pid, host, link, state: EndState::Opening, last_arrival: 0, stalled: VecDeque::new() };
        let ends = [end(dialler.0, dialler.1, dialler.2), end(accepter.0, accepter.1, incoming)];
        self.links.insert((dialler.0, dialler.2), (id, 0));
        self.links.insert((accepter.0, incoming), (id, 1));
        self.connections.insert(id, Connection { ends, hello });
        id
    }

    /// Ends one side: nothing is delivered to it any more. A connection with two closed ends is forgotten.
    pub fn close(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ends[end].state = EndState::Closed;
        connection.ends[end].stalled.clear();
        self.links.remove(&(connection.ends[end].pid, connection.ends[end].link));
        if connection.ends.iter().all(|end| end.state == EndState::Closed) {
            self.connections.remove(&id);
        }
    }

    /// When something of that size, sent now, reaches the end. Later than everything sent before.
    pub fn arrival_time(&mut self, now: u64, id: ConnectionId, to: usize, size: usize) -> u64 {
        let base = self.latency(id, size);
        let Some(connection) = self.connections.get_mut(&id) else { return now };
        let at = (now + base).max(connection.ends[to].last_arrival + 1);
        connection.ends[to].last_arrival = at;
        at
    }

    pub fn latency(&mut self, id: ConnectionId, size: usize) -> u64 {
        let jitter = self.random.below(self.speed.jitter_ns.max(1));
        // Now and then a packet is lost and sent again.
        let spike = if self.random.chance(1, 400) { self.random.below(40_000_000) } else { 0 };
        let hosts = self.connections.get(&id).map(|connection| [connection.ends[0].host, connection.ends[1].host]);
        let slow: u64 = hosts.iter().flatten().filter_map(|host| self.slow.get(host)).sum();
        self.speed.latency_ns + jitter + spike + slow + size as u64 * self.speed.ns_per_byte
    }

    pub fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.blocked.contains_key(&(from, to))
    }

    pub fn block(&mut self, from: Host, to: Host) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    /// Takes one reason away; tells whether the way is free now.
    pub fn unblock(&mut self, from: Host, to: Host) -> bool {
        let Some(count) = self.blocked.get_mut(&(from, to)) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.blocked.remove(&(from, to));
        true
    }

    /// Ends with something that a partition held up on the way between the hosts.
    pub fn stalled_between(&self, from: Host, to: Host) -> Vec<(ConnectionId, usize)> {
        let mut found = Vec::new();
        for (id, connection) in &self.connections {
            for end in 0..2 {
                let (here, there) = (&connection.ends[end], &connection.ends[1 - end]);
                if here.host == to && there.host == from && !here.stalled.is_empty() {
                    found.push((*id, end));
                }
            }
        }
        found
    }

    /// Connections with an end in the process.
    pub fn of(&self, pid: Pid) -> Vec<(ConnectionId, usize)> {
        let ends = |id: &ConnectionId, connection: &Connection| {
            (0..2).filter(|&end| connection.ends[end].pid == pid).map(|end| (*id, end)).collect::<Vec<_>>()
        };
        self.connections.iter().flat_map(|(id, connection)| ends(id, connection)).collect()
    }
}
