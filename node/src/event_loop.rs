//! Runs one node on the calling thread: waits, stamps the time once, feeds what arrived, drains what follows.
//!
//! A driver: names sockets, clocks and signals, and decides nothing about the cluster.

use std::io;
use std::io::Read;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs::capacity;
use dfs::link::LinkEvent;
use dfs::net::{Net, clock};
use dfs::time::Time;
use dfs::types::{Address, ClusterId, NodeId};

use crate::args::Options;
use crate::node::{Node, NodeConfig, NodeOutput};

/// The loop looks at its stop flag at least this often.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Resident memory is read this often at most.
const RESIDENT_INTERVAL: Duration = Duration::from_millis(10);
/// While there is more of it than there should be, freed memory is given back this often, and whenever it grew by this part since, which is at
/// least so much.
const GIVE_BACK_INTERVAL: Duration = Duration::from_millis(100);
const GIVE_BACK_SHARE: u64 = 32;
const GIVE_BACK_BYTES_MIN: u64 = 4 << 20;

const RUN: u8 = 0;
const LEAVE: u8 = 1;
const STOP: u8 = 2;

/// Asks a running node to stop; shared with whoever may ask, a signal handler included.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    /// Hand over what can be, then stop. Asked a second time: stop at once.
    pub fn leave(&self) {
        if self.0.compare_exchange(RUN, LEAVE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.now();
        }
    }

    /// Stop at once.
    pub fn now(&self) {
        self.0.store(STOP, Ordering::SeqCst);
    }

    fn level(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

static SIGNALLED: OnceLock<Stop> = OnceLock::new();

extern "C" fn on_signal(signal: libc::c_int) {
    // Only atomics: anything else is forbidden in a signal handler.
    if let Some(stop) = SIGNALLED.get() {
        if signal == libc::SIGTERM { stop.leave() } else { stop.now() }
    }
}

/// SIGTERM leaves in order, SIGINT at once. For the `main` of a node only; a second call changes nothing.
pub fn stop_on_signals(stop: &Stop) {
    let _ = SIGNALLED.set(stop.clone());
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the action is fully initialised, and the handler touches nothing but atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Runs a node until it is stopped, or the cluster is. `ready` is called once, with the address that others reach it at.
/// Errors are one line for people.
pub fn serve(options: &Options, stop: &Stop, ready: impl FnOnce(&Address, ClusterId, NodeId)) -> Result<(), String> {
    let mut net = Net::new().map_err(|error| format!("cannot set up the network: {error}"))?;
    net.set_rate(options.rate);
    let listen = net.listen(&options.listen).map_err(|error| cannot_listen(&options.listen, &error))?;
    let config = NodeConfig {
        address: options.advertise.clone().unwrap_or_else(|| listen.clone()),
        memory: capacity::lent(options.memory),
        rate: options.rate,
        zone: options.zone.clone(),
        start: options.start.clone(),
        id: None,
        sabotage: None,
    };
    let seed = draw_seed().map_err(|error| format!("cannot read /dev/urandom: {error}"))?;
    let mut node = Node::new(config, clock::now(), clock::wall(), seed);
    if options.debug_faults {
        tracing::warn!("clients may flip bits here: --debug-faults");
        node.permit_faults();
    }
    tracing::info!(%listen, node = %node.id(), lends = capacity::lent(options.memory), "listening");
    let freed = options.give_back.filter(|_| options.memory > 0).map(|give_back| Freed {
        memory: options.memory,
        give_back,
        left: 0,
        next: Time(0),
    });
    run(net, node, stop, freed, |cluster, node| ready(&listen, cluster, node))
}

/// Freed memory: kept, because it is soon needed again, as long as the process stays within its memory.
struct Freed {
    memory: u64,
    give_back: fn(),
    /// What was resident when all of it had been given back.
    left: u64,
    next: Time,
}

impl Freed {
    fn look(&mut self, now: Time, resident: u64) {
        if resident > self.memory && (now >= self.next || resident > self.left + (self.memory / GIVE_BACK_SHARE).max(GIVE_BACK_BYTES_MIN)) {
            (self.give_back)();
            (self.left, self.next) = (resident_bytes(), now + GIVE_BACK_INTERVAL);
        }
    }
}

fn run(mut net: Net, mut node: Node, stop: &Stop, mut freed: Option<Freed>, ready: impl FnOnce(ClusterId, NodeId)) -> Result<(), String> {
    let mut ready = Some(ready);
    let mut events: Vec<LinkEvent> = Vec::new();
    let mut leaving = false;
    let mut resident_at = clock::now();
    loop {
        let (now, wall) = (clock::now(), clock::wall());
        events.drain(..).for_each(|event| node.handle(now, wall, event));
        match stop.level() {
            RUN => {}
            LEAVE if leaving => {}
            LEAVE => {
                leaving = true;
                node.leave(now);
            }
            _ => return Ok(()),
        }
        if now >= resident_at {
            resident_at = now + RESIDENT_INTERVAL;
            let resident = resident_bytes();
            node.set_resident(resident);
            freed.iter_mut().for_each(|freed| freed.look(now, resident));
        }
        if now >= node.next_deadline() {
            node.on_deadline(now, wall);
        }
        while let Some(output) = node.poll_output() {
            match output {
                NodeOutput::Link(action) => net.act(action),
                NodeOutput::Identity(hello) => net.set_identity(hello),
                NodeOutput::Ready { cluster, node } => {
                    // Said once, also when the node comes back later under another incarnation.
                    ready.take().into_iter().for_each(|ready| ready(cluster, node));
                }
                NodeOutput::Stopped { .. } => {
                    return net.finish(Duration::from_millis(500)).map_err(|error| format!("network failed: {error}"));
                }
            }
        }
        let wait = node.next_deadline().since(clock::now()).min(WAIT_MAX);
        net.poll(Some(wait), &mut events).map_err(|error| format!("network failed: {error}"))?;
    }
}

fn cannot_listen(address: &Address, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address}: the address is in use; stop the other program, or choose another with --listen")
        }
        io::ErrorKind::PermissionDenied => format!("cannot listen on {address}: permission denied; choose another with --listen"),
        _ => format!("cannot listen on {address}: {error}; choose another with --listen"),
    }
}

/// What an incarnation and all its random choices come from.
fn draw_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(u64::from_le_bytes(seed))
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    // SAFETY: sysconf reads a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * page.max(0) as u64
}
