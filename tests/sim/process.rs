//! The processes of the simulation: a node, a client core or a mount below its kernel behind one face, each with a clock of its own.

use dfs::client::{Call, Config, Core, Event, Output, Reply};
use dfs::link::{Hello, LinkAction, LinkEvent};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{SessionId, Timestamp};
use dfs_node::node::{Node, NodeConfig, NodeOutput};

use super::kernel::Mount;
use super::network::{Host, Pid};

/// What a process wants of the world.
pub enum Wish {
    Link(LinkAction),
    /// What it says to whoever dials it.
    Identity(Hello),
    NodeReady,
    NodeStopped(String),
    Done {
        token: u64,
        result: Result<Reply, Status>,
    },
    Client(Event),
}

pub enum Machine {
    Node(Box<Node>),
    Client(Box<Core>),
    Mount(Box<Mount>),
}

/// A clock that is off, and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub base: u64,
    pub drift_ppm: i64,
    pub wall_seconds: i64,
    /// From then on the wall clock is set wrong by hours now and then, forth and back.
    pub steps_from: u64,
}

/// What right wall clocks show at the beginning.
pub const WALL_SECONDS: i64 = 1_700_000_000;
/// How long a wall clock shows the same wrong time.
const STEP_EVERY: u64 = 3_000_000_000;

impl Clock {
    pub fn local(&self, now: u64) -> Time {
        let drift = now as i128 * self.drift_ppm as i128 / 1_000_000;
        Time((self.base as i128 + now as i128 + drift) as u64)
    }

    /// The first instant at which the clock shows at least `local`.
    pub fn true_time(&self, local: Time) -> u64 {
        if local == Time::NEVER {
            return u64::MAX;
        }
        let shown = local.0.saturating_sub(self.base) as i128;
        let mut now = (shown * 1_000_000 / (1_000_000 + self.drift_ppm as i128)).max(0) as u64;
        now = now.saturating_sub(2);
        while self.local(now) < local {
            now += 1;
        }
        now
    }

    pub fn wall(&self, now: u64) -> Timestamp {
        let nanos = now + self.base % 1_000_000_000;
        // Of the clock's own numbers, so that a seed means the same with steps and without.
        let turn = if now < self.steps_from { 0 } else { (self.base ^ (now / STEP_EVERY).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 7 };
        let step = [0, 5, -5, 0, -9, 2, 0, 26][turn as usize % 8] * 3600;
        Timestamp {
            seconds: WALL_SECONDS + step + self.wall_seconds + (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        }
    }
}

/// One life of one process.
pub struct Process {
    pub pid: Pid,
    pub host: Host,
    pub machine: Machine,
    pub clock: Clock,
    /// That of a client without a mount.
    session: Option<SessionId>,
    pub identity: Option<Hello>,
    pub ready: bool,
    /// When the world will call `on_deadline`; `u64::MAX` for never.
    pub wake_at: u64,
    /// Turns since the virtual second began, to find a busy loop.
    pub turns: (u64, u32),
}

impl Process {
    pub fn node(pid: Pid, host: Host, clock: Clock, now: u64, config: NodeConfig, seed: u64) -> Self {
        let node = Node::new(config, clock.local(now), clock.wall(now), seed);
        Process::new(pid, host, clock, Machine::Node(Box::new(node)))
    }

    pub fn client(pid: Pid, host: Host, clock: Clock, now: u64, config: Config, seed: u64) -> Self {
        let session = config.session;
        let core = Core::new(config, clock.local(now), seed);
        Process { session: Some(session), ..Process::new(pid, host, clock, Machine::Client(Box::new(core))) }
    }

    /// A mounted machine: a daemon that caches, below a kernel that does.
    pub fn mount(pid: Pid, host: Host, clock: Clock, now: u64, config: Config, seed: u64) -> Self {
        let mount = Mount::new(config, clock.local(now), seed);
        Process::new(pid, host, clock, Machine::Mount(Box::new(mount)))
    }

    /// A client's present session.
    pub fn session(&self) -> Option<SessionId> {
        match &self.machine {
            Machine::Mount(mount) => Some(mount.session()),
            _ => self.session,
        }
    }

    fn new(pid: Pid, host: Host, clock: Clock, machine: Machine) -> Self {
        Process { pid, host, machine, clock, session: None, identity: None, ready: false, wake_at: u64::MAX, turns: (0, 0) }
    }

    pub fn feed(&mut self, now: u64, event: LinkEvent) {
        let (local, wall) = (self.clock.local(now), self.clock.wall(now));
        match &mut self.machine {
            Machine::Node(node) => node.handle(local, wall, event),
            Machine::Client(core) => core.on_link(local, event),
            Machine::Mount(mount) => mount.on_link(local, event),
        }
    }

    pub fn submit(&mut self, now: u64, token: u64, call: Call) {
        let local = self.clock.local(now);
        match &mut self.machine {
            Machine::Client(core) => core.submit(local, token, call),
            Machine::Mount(mount) => mount.submit(local, token, call),
            Machine::Node(_) => panic!("calls go to clients"),
        }
    }

    pub fn on_deadline(&mut self, now: u64) {
        let (local, wall) = (self.clock.local(now), self.clock.wall(now));
        match &mut self.machine {
            Machine::Node(node) => node.on_deadline(local, wall),
            Machine::Client(core) => core.on_deadline(local),
            Machine::Mount(mount) => mount.on_deadline(local),
        }
    }

    /// SIGTERM.
    pub fn leave(&mut self, now: u64) {
        let local = self.clock.local(now);
        match &mut self.machine {
            Machine::Node(node) => node.leave(local),
            Machine::Client(_) | Machine::Mount(_) => panic!("nodes leave"),
        }
    }

    pub fn next_deadline(&self) -> u64 {
        let local = match &self.machine {
            Machine::Node(node) => node.next_deadline(),
            Machine::Client(core) => core.next_deadline(),
            Machine::Mount(mount) => mount.next_deadline(),
        };
        self.clock.true_time(local)
    }

    /// There are no caches above the cores here, so that each invalidation is obeyed at once.
    pub fn poll(&mut self, now: u64) -> Option<Wish> {
        let local = self.clock.local(now);
        match &mut self.machine {
            Machine::Node(node) => node.poll_output().map(|output| match output {
                NodeOutput::Link(action) => Wish::Link(action),
                NodeOutput::Identity(hello) => Wish::Identity(hello),
                NodeOutput::Ready { .. } => Wish::NodeReady,
                NodeOutput::Stopped { reason } => Wish::NodeStopped(reason),
            }),
            Machine::Client(core) => loop {
                return Some(match core.poll_output()? {
                    Output::Link(action) => Wish::Link(action),
                    Output::Done { token, result } => Wish::Done { token, result },
                    Output::Event(event) => Wish::Client(event),
                    Output::Invalidate { id, .. } => {
                        core.on_invalidated(local, id);
                        continue;
                    }
                });
            },
            Machine::Mount(mount) => mount.poll(),
        }
    }

    /// The process is stopped or goes on; of a mounted machine only the daemon is, the kernel runs on.
    pub fn set_stopped(&mut self, now: u64, stopped: bool) {
        let local = self.clock.local(now);
        if let Machine::Mount(mount) = &mut self.machine {
            mount.set_stopped(local, stopped);
        }
    }

    pub fn as_node(&self) -> Option<&Node> {
        match &self.machine {
            Machine::Node(node) => Some(node),
            Machine::Client(_) | Machine::Mount(_) => None,
        }
    }

    pub fn as_node_mut(&mut self) -> Option<&mut Node> {
        match &mut self.machine {
            Machine::Node(node) => Some(node),
            Machine::Client(_) | Machine::Mount(_) => None,
        }
    }
}
