//! What a seed means: size of the cluster, speed of the network, which faults come when. All drawn before anything runs.
//!
//! Faults stay within the promise: at most one storage node at a time (the *victim*) is killed, corrupted or cut off for long, the next
//! one only when what is left is enough without it (see [`super::attrition`]); whoever else is disturbed comes back before it is declared
//! dead: [`DEPOSED_FOR`] after another one began to lead, at the latest.

use dfs::limits;
use dfs::random::Random;

use super::network::Speed;
use super::world::{Death, MILLISECOND, SECOND};

/// Stands for the host of whoever leads when the fault begins.
pub const LEADER: usize = usize::MAX;

/// For so long another one leads before a leader is back that was cut off for a moment.
pub const DEPOSED_FOR: u64 = 500 * MILLISECOND;
/// Then it still takes time to be heard: a dial may sleep through the end of a partition until it is given up, the next one waits after
/// failures, and it is made when there is something to say.
const HEARD_AGAIN: u64 = (limits::DIAL_TIMEOUT.as_nanos()
    + (limits::REDIAL_DELAY_MIN.as_nanos() << (limits::DIALS_IMPATIENT - 1))
    + limits::HEARTBEAT_INTERVAL.as_nanos()) as u64;
/// What the network adds to that.
const LATENCIES: u64 = 100 * MILLISECOND;
const _: () = assert!(DEPOSED_FOR + HEARD_AGAIN + LATENCIES < limits::PREDECESSOR_PATIENCE.as_nanos() as u64);
/// A leader is cut off for a moment if for less than this.
const BRIEF_MAX: u64 = 2 * SECOND;

/// One disturbance. Nodes are named by their index in the plan, `clients` follow behind them as hosts.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Kill, and start a new incarnation at the same address after a while.
    Crash {
        host: usize,
        death: Death,
        back_after: u64,
    },
    Pause {
        host: usize,
        length: u64,
    },
    /// Nothing passes from any of `from` to any of `to`; with `both` also not back.
    Partition {
        from: Vec<usize>,
        to: Vec<usize>,
        both: bool,
        length: u64,
    },
    /// Every packet of the host takes longer.
    Slow {
        host: usize,
        by: u64,
        length: u64,
    },
    /// Some connections are lost.
    Resets {
        count: u64,
    },
    /// Nothing leaves the host towards the others for a while; then it is killed, or stopped for `stop`, and what was held up is lost.
    /// So are answers to requests that were carried out.
    Mute {
        host: usize,
        towards: Vec<usize>,
        length: u64,
        stop: Option<u64>,
    },
    /// A machine with a node and a client is suspended; its way to the other nodes comes back a little later than it does.
    Suspend {
        host: usize,
        client: usize,
        others: Vec<usize>,
        length: u64,
        later: u64,
    },
    /// A bit flips in some chunks of a node.
    Corrupt {
        host: usize,
        count: u64,
    },
}

impl Fault {
    /// Whether it is over soon, and sooner when another node leads.
    pub fn is_brief(&self) -> bool {
        match self {
            Fault::Partition { length, .. } => *length < BRIEF_MAX,
            Fault::Suspend { .. } => true,
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Memory of each node; 0 only votes.
    pub nodes: Vec<u64>,
    /// Whether the nodes form from a fixed list, and come back by it; otherwise one bootstraps and the others join.
    pub listed: bool,
    /// Copies of each chunk.
    pub replicas: u8,
    /// Zone of each node; empty where none is named.
    pub zones: Vec<&'static str>,
    pub clients: usize,
    pub actors_per_client: usize,
    pub speed: Speed,
    /// Sorted by time since the workload began.
    pub faults: Vec<(u64, Fault)>,
    /// How long phase 1 lasts.
    pub length: u64,
    /// Largest write.
    pub write_max: u64,
    /// Whether clients are mounted machines that cache; of three or more the last is a plain client all the same.
    pub mounts: bool,
    /// Whether nodes go one after another, each as soon as the cluster can do without it.
    pub attrition: bool,
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed ^ 0x5eed);
        let choices = if random.chance(1, 4) { 5 } else { 2 };
        let count = 3 + random.below(choices) as usize;
        let small = seed % 8 == 5;
        let memory = if small { 1 << 20 } else { 256 << 20 };
        let mut nodes = vec![memory; count];
        // Sometimes a node only votes; three that store remain where a victim may be lost.
        if count > 3 && random.chance(1, 3) {
            nodes[random.below(count as u64) as usize] = 0;
        }
        let clients = 2 + random.below(3) as usize;
        let speed = match random.below(3) {
            0 => Speed { latency_ns: 20_000, jitter_ns: 30_000, ns_per_byte: 1 },
            1 => Speed { latency_ns: 200_000, jitter_ns: 2 * MILLISECOND, ns_per_byte: 8 },
            _ => Speed { latency_ns: MILLISECOND, jitter_ns: 8 * MILLISECOND, ns_per_byte: 8 },
        };
        let length = (12 + random.below(14)) * SECOND;
        let attrition = seed % 5 == 2;
        let faults = draw_faults(&mut random, &nodes, clients, length, attrition);
        let write_max = if random.chance(1, 6) { 1_500_000 } else { 60_000 };
        let actors_per_client = 1 + random.below(2) as usize;
        // By the number, so that a seed means the same as before there were mounts.
        let mounts = matches!(seed % 6, 3 | 4);
        let zones = (0..count).map(|node| if seed % 7 == 3 { ["east", "west", "north"][node % 3] } else { "" }).collect();
        // One copy would not survive the faults.
        let replicas = if seed % 9 == 7 && nodes.iter().filter(|&&memory| memory > 0).count() > 3 { 3 } else { limits::REPLICAS_DEFAULT };
        Plan {
            seed,
            nodes,
            listed: seed % 4 == 1,
            replicas,
            zones,
            clients,
            actors_per_client,
            speed,
            faults,
            length,
            write_max,
            mounts,
            attrition,
        }
    }

    /// The same cluster without any fault.
    pub fn calm(mut self) -> Plan {
        self.faults.clear();
        self.attrition = false;
        self
    }

    /// Whether chunks are so large for the nodes that they may not fit although their bytes do: space is counted in bytes, and a chunk is
    /// stored whole. With more memory than this the room of one node, which is never promised, makes up for what remains unused of all.
    pub fn is_tight(&self) -> bool {
        let least = self.nodes.iter().copied().filter(|memory| *memory > 0).min().unwrap_or(0);
        least < self.nodes.len() as u64 * 2 * limits::CHUNK_BYTES_MAX as u64
    }

    /// Whether that client is a mounted machine.
    pub fn is_mount(&self, client: usize) -> bool {
        self.mounts && client < self.clients && !(self.clients > 2 && client == self.clients - 1)
    }

    pub fn client_host(&self, client: usize) -> usize {
        self.nodes.len() + client
    }
}

impl Fault {
    /// The host whose own silence this is, if it is one's.
    fn silenced(&self) -> Option<usize> {
        match self {
            Fault::Pause { host, .. } | Fault::Suspend { host, .. } | Fault::Mute { host, stop: Some(_), .. } => Some(*host),
            Fault::Partition { from, to, .. } if to.len() > 1 => from.first().copied().filter(|_| from.len() == 1),
            Fault::Partition { from, to, .. } => to.first().copied().filter(|_| from.len() > 1),
            _ => None,
        }
    }

    /// Whether the two together cost two nodes. Two that are cut from each other for long may each declare the other dead if it leads. So
    /// the one that leads is not deposed meanwhile: the other, declared dead before, could lead next, and would hear nothing of it.
    pub fn may_not_join(&self, under_way: &Fault, nodes: usize) -> bool {
        let Fault::Partition { from, to, length, .. } = under_way else { return false };
        let (&[from], &[to]) = (from.as_slice(), to.as_slice()) else { return false };
        let long_between_nodes = from < nodes && to < nodes && *length >= BRIEF_MAX;
        long_between_nodes && self.silenced().is_some_and(|host| host == from || host == to)
    }
}

fn draw_faults(random: &mut Random, nodes: &[u64], clients: usize, length: u64, attrition: bool) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let victim = if random.chance(1, 2) { LEADER } else { random.below(nodes.len() as u64) as usize };
    let all: Vec<usize> = (0..nodes.len()).collect();
    let hosts = nodes.len() + clients;
    let when = |random: &mut Random| SECOND + random.below(length * 2 / 3);
    // The one that may last.
    let begins = when(random);
    let others: Vec<usize> = (0..hosts).filter(|&host| host != victim).collect();
    let client_hosts: Vec<usize> = (nodes.len()..hosts).collect();
    match random.below(10) {
        8 | 9 => {
            let length = 20 * MILLISECOND + random.below(900 * MILLISECOND);
            faults.push((begins, Fault::Mute { host: LEADER, towards: client_hosts.clone(), length, stop: None }));
        }
        0..=2 => {
            let death = if random.chance(1, 2) { Death::Killed } else { Death::Silent };
            faults.push((begins, Fault::Crash { host: victim, death, back_after: random.below(6 * SECOND) }));
        }
        3 => faults.push((begins, Fault::Pause { host: victim, length: random.below(8 * SECOND) })),
        4 => {
            let (from, to) = if random.chance(1, 2) { (vec![victim], others) } else { (others, vec![victim]) };
            faults.push((begins, Fault::Partition { from, to, both: random.chance(1, 2), length: random.below(9 * SECOND) }));
        }
        5 => {
            let peer = all[(victim.wrapping_add(1)) % all.len()];
            faults.push((
                begins,
                Fault::Partition { from: vec![victim], to: vec![peer], both: random.chance(2, 3), length: random.below(9 * SECOND) },
            ));
        }
        6 => faults.push((begins, Fault::Corrupt { host: victim, count: 1 + random.below(5) })),
        _ => {}
    }
    // One victim at a time.
    faults.retain(|_| !attrition);
    // Short ones, one after another, so that together they are short too.
    let mut at = SECOND;
    while at < length * 4 / 5 {
        at += random.below(2500 * MILLISECOND);
        let brief = 50 * MILLISECOND + random.below(900 * MILLISECOND);
        let host = random.below(hosts as u64) as usize;
        // Long enough for another leader; cut short when there is one.
        let deposing = 1000 * MILLISECOND + random.below(1000 * MILLISECOND);
        let fault = match random.below(12) {
            10 | 11 => Fault::Suspend {
                host: LEADER,
                client: nodes.len() + random.below(clients as u64) as usize,
                others: all.clone(),
                length: 1400 * MILLISECOND + random.below(600 * MILLISECOND),
                later: 200 * MILLISECOND + random.below(200 * MILLISECOND),
            },
            7 => Fault::Pause { host: LEADER, length: deposing },
            8 => {
                // With some clients on its side.
                let rest = (0..hosts).filter(|&host| host < nodes.len() || random.chance(2, 3)).collect();
                Fault::Partition { from: vec![LEADER], to: rest, both: random.chance(3, 4), length: deposing }
            }
            9 => Fault::Mute {
                host: LEADER,
                towards: client_hosts.clone(),
                length: 20 * MILLISECOND + random.below(500 * MILLISECOND),
                stop: Some(deposing),
            },
            0 => Fault::Pause { host: random.below(nodes.len() as u64) as usize, length: brief },
            1 | 2 => {
                let rest = (0..hosts).filter(|&other| other != host).collect();
                let (from, to) = if random.chance(1, 2) { (vec![host], rest) } else { (rest, vec![host]) };
                Fault::Partition { from, to, both: random.chance(1, 2), length: brief }
            }
            3 => Fault::Slow { host, by: random.below(300 * MILLISECOND), length: brief },
            _ => Fault::Resets { count: 1 + random.below(4) },
        };
        faults.push((at, fault));
        at += deposing + 1700 * MILLISECOND;
    }
    // Clients may be stopped, cut off and killed as long as anyone likes.
    for client in 0..clients {
        if random.chance(1, 3) {
            let host = nodes.len() + client;
            let length = random.below(14 * SECOND);
            let fault = match random.below(4) {
                0 => Fault::Pause { host, length },
                1 => Fault::Partition { from: vec![host], to: all.clone(), both: random.chance(1, 2), length },
                2 => Fault::Partition { from: vec![host], to: vec![victim], both: true, length },
                _ => Fault::Crash { host, death: Death::Killed, back_after: random.below(3 * SECOND) },
            };
            faults.push((when(random), fault));
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}
