//! Clusters that form from a fixed list (`--peers`) while nodes start late, die, stop and are cut off. There is never a second cluster
//! beside one that was formed, and when the faults end there is one.

use std::collections::BTreeSet;

use dfs::client::Event as ClientEvent;
use dfs::limits;
use dfs::random::Random;
use dfs::types::{Address, ClusterId, NodeId};
use dfs_node::node::{Node, NodeConfig, Start};

use super::network::{Host, Pid, Speed};
use super::run::address;
use super::world::{Death, MILLISECOND, News, SECOND, World};

/// Some nodes with a list each.
pub struct Formation {
    world: World,
    lists: Vec<Vec<Address>>,
    /// Clusters that were formed, in order.
    formed: Vec<ClusterId>,
    clients_ready: BTreeSet<Pid>,
}

impl Formation {
    /// So many nodes, none started, all with the same list.
    fn new(seed: u64, nodes: usize) -> Self {
        let speed = match seed % 3 {
            0 => Speed { latency_ns: 20_000, jitter_ns: 30_000, ns_per_byte: 1 },
            1 => Speed { latency_ns: MILLISECOND, jitter_ns: 8 * MILLISECOND, ns_per_byte: 8 },
            _ => Speed { latency_ns: 20 * MILLISECOND, jitter_ns: 150 * MILLISECOND, ns_per_byte: 8 },
        };
        let lists = vec![(0..nodes).map(address).collect(); nodes];
        Formation { world: World::new(seed, speed), lists, formed: Vec::new(), clients_ready: BTreeSet::new() }
    }

    fn start(&mut self, host: Host) {
        let start = Start::Peers { peers: self.lists[host].clone(), replicas: limits::REPLICAS_DEFAULT };
        let config =
            NodeConfig { address: address(host), memory: 64 << 20, rate: None, zone: String::new(), start, id: None, sabotage: None };
        self.world.start_node(host, address(host), config);
    }

    fn start_all(&mut self) {
        (0..self.lists.len()).for_each(|host| self.start(host));
    }

    fn kill(&mut self, host: Host, death: Death) {
        if let Some(pid) = self.world.pid_on(host) {
            self.world.kill(pid, death);
        }
    }

    fn node(&self, host: Host) -> Option<&Node> {
        self.world.processes.get(&self.world.pid_on(host)?)?.as_node()
    }

    fn is_forming(&self, host: Host) -> bool {
        self.node(host).is_some_and(|node| node.map().is_forming())
    }

    /// Clusters that nodes alive now know as formed.
    fn living(&self) -> BTreeSet<ClusterId> {
        let maps = self.world.nodes().map(|(_, node)| node.map());
        maps.filter(|map| map.cluster.0 != 0 && !map.is_forming()).map(|map| map.cluster).collect()
    }

    /// One event, and what must hold after each.
    fn step(&mut self, until: u64) -> bool {
        let moved = self.world.step(until);
        if self.world.touched.is_empty() {
            return moved;
        }
        for pid in std::mem::take(&mut self.world.touched) {
            if let Some(node) = self.world.processes.get(&pid).and_then(|process| process.as_node()) {
                node.check_invariants();
                let map = node.map();
                assert!(!map.is_forming() || (map.voters.len() == 1 && !node.is_ready()), "the founder alone votes, nobody is ready");
                assert!(!map.is_forming() || node.namespace().sessions().next().is_none(), "nobody is served before all are in");
            }
        }
        let living = self.living();
        assert!(living.len() <= 1, "two clusters beside each other: {living:?}");
        for cluster in living {
            if !self.formed.contains(&cluster) {
                self.formed.push(cluster);
            }
        }
        while let Some(news) = self.world.news.pop_front() {
            match news {
                News::Client { client, event: ClientEvent::Ready { .. } } => _ = self.clients_ready.insert(client),
                News::NodeStopped { pid, reason } => panic!("node {pid} stopped: {reason}"),
                _ => {}
            }
        }
        moved
    }

    fn run_for(&mut self, length: u64) {
        let until = self.world.now + length;
        while self.step(until) {}
    }

    fn until(&mut self, what: &str, done: impl Fn(&Formation) -> bool) {
        let until = self.world.now + 90 * SECOND;
        while !done(self) {
            assert!(self.step(until), "never came: {what}; {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let one = |node: &Node| {
            let map = node.map();
            let awaited = map.awaited.len();
            format!("{} at epoch {} of {} awaits {awaited}, voters {:?}", node.id(), map.epoch, map.cluster, map.voters)
        };
        self.world.nodes().map(|(_, node)| one(node)).collect::<Vec<_>>().join("; ")
    }

    /// All are ready, in one cluster that knows all of them.
    fn until_formed(&mut self) -> ClusterId {
        self.until("one cluster of all", |one| {
            let ids: BTreeSet<NodeId> = one.world.nodes().map(|(_, node)| node.id()).collect();
            let knows = |node: &Node| node.is_ready() && ids.iter().all(|&id| node.map().is_living(id));
            ids.len() == one.lists.len() && one.world.nodes().all(|(_, node)| knows(node))
        });
        let clusters = self.living();
        assert_eq!(clusters.len(), 1);
        clusters.into_iter().next().expect("just counted")
    }

    fn partition(&mut self, one: &[Host], other: &[Host], cut: bool) {
        for (&a, &b) in one.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            for (from, to) in [(a, b), (b, a)] {
                if cut { self.world.block(from, to) } else { self.world.unblock(from, to) }
            }
        }
    }
}

/// In any order, with pauses in between; nothing happens before the last is up. Then one more, whose list is longer, joins.
pub fn in_any_order(seed: u64) {
    let mut random = Random::new(seed);
    let nodes = 1 + (seed % 6) as usize;
    let mut one = Formation::new(seed, nodes);
    let mut hosts: Vec<Host> = (0..nodes).collect();
    while !hosts.is_empty() {
        assert!(one.world.nodes().all(|(_, node)| node.map().cluster.0 == 0), "nothing forms before all are up");
        let host = hosts.swap_remove(random.below(hosts.len() as u64) as usize);
        one.start(host);
        one.run_for(random.below(3 * SECOND));
    }
    let cluster = one.until_formed();
    one.lists.push((0..=nodes).map(address).collect());
    one.start(nodes);
    assert_eq!(one.until_formed(), cluster, "who comes later joins");
}

/// The founder dies when some have joined (`joined` of them), with or without their hearing of it, and comes back.
pub fn the_founder_dies(seed: u64, joined: usize, death: Death) {
    let mut one = Formation::new(seed, 4);
    one.start_all();
    one.until("the founding", |one| {
        let joined_by_now = one.node(0).map_or(0, |node| node.map().members.len());
        assert!(one.formed.is_empty(), "too late");
        one.is_forming(0) && joined_by_now > joined
    });
    let lost = one.node(0).expect("it founded").map().cluster;
    one.kill(0, death);
    one.run_for(seed % 4 * SECOND);
    assert!(one.formed.is_empty());
    one.start(0);
    assert_ne!(one.until_formed(), lost, "what was never formed is gone with its founder");
}

/// Another than the founder dies when it has joined. Until it is back nobody is served, however long that takes.
pub fn a_peer_restarts_meanwhile(seed: u64, stays_away: u64) {
    let mut one = Formation::new(seed, 4);
    one.start_all();
    one.until("some have joined", |one| (1..4).any(|host| one.is_forming(host)));
    let cluster = one.node(0).expect("it founded").map().cluster;
    let host = (1..4).find(|&host| one.is_forming(host)).expect("just seen");
    one.kill(host, if seed.is_multiple_of(2) { Death::Killed } else { Death::Silent });
    let client = one.world.start_client(10, (0..4).map(address).collect());
    one.run_for(stays_away);
    // With a fast network the others may have been in before the death.
    if one.formed.is_empty() {
        assert!(!one.clients_ready.contains(&client), "nobody is served before all are in");
    }
    one.start(host);
    assert_eq!(one.until_formed(), cluster);
    one.until("the client is served", |one| one.clients_ready.contains(&client));
}

/// One node has another list: nothing forms, until it is started anew with the right one.
pub fn lists_differ(seed: u64) {
    let mut one = Formation::new(seed, 3);
    let odd = (seed % 3) as usize;
    let right = std::mem::replace(&mut one.lists[odd], [0, 1, 2, 3].map(address).into());
    one.start_all();
    one.run_for(15 * SECOND);
    assert!(one.world.nodes().all(|(_, node)| node.map().cluster.0 == 0));
    one.kill(odd, Death::Killed);
    one.lists[odd] = right;
    one.start(odd);
    one.until_formed();
}

/// One of a formed cluster is cut off while all others start anew: they must not form a second one, neither then nor afterwards. If only
/// the founder starts anew, it comes back to the cluster.
pub fn one_is_cut_off_while_others_restart(seed: u64) {
    let mut one = Formation::new(seed, 3);
    one.start_all();
    let cluster = one.until_formed();
    one.partition(&[2], &[0, 1], true);
    one.kill(0, Death::Killed);
    one.start(0);
    one.run_for(10 * SECOND);
    if seed.is_multiple_of(2) {
        one.partition(&[2], &[0, 1], false);
        assert_eq!(one.until_formed(), cluster);
        return;
    }
    one.kill(1, Death::Killed);
    one.start(1);
    one.run_for(20 * SECOND);
    one.partition(&[2], &[0, 1], false);
    one.run_for(20 * SECOND);
    assert_eq!(one.formed, [cluster], "no second cluster");
    assert!([0, 1].iter().all(|&host| one.node(host).is_some_and(|node| !node.is_ready())));
    // Its majority is lost for good. Once the last one that knows it is gone, too, there may be another.
    one.kill(2, Death::Killed);
    one.start(2);
    assert_ne!(one.until_formed(), cluster);
}

/// One that has joined is cut off before it hears that the cluster was formed, and the founder is started anew. It must not take the cluster
/// for one that never came to be: neither when it hears from the others that it was, nor when it hears from the new founder only, which
/// belongs to nothing. Tells whether it came to that.
pub fn one_has_not_heard_that_it_was_formed(seed: u64) -> bool {
    let mut one = Formation::new(seed, 4);
    // The last to join.
    one.world.network.slow.insert(2, 150 * MILLISECOND);
    one.start_all();
    one.until("it has joined", |one| one.is_forming(3) || !one.formed.is_empty());
    if !one.formed.is_empty() {
        return false;
    }
    one.partition(&[3], &[0, 1, 2], true);
    one.until("the others are formed and vote", |one| {
        let settled = |node: &Node| node.group().is_some_and(|group| !group.configuration().is_joint()) && node.map().voters.len() == 3;
        [0, 1, 2].iter().all(|&host| one.node(host).is_some_and(|node| node.is_ready() && settled(node)))
    });
    assert!(one.is_forming(3), "it has not heard");
    let (cluster, id) = (one.formed[0], one.node(3).expect("it runs").id());
    let votes = one.node(1).is_some_and(|node| node.map().voters.contains(&id));
    if votes {
        return false;
    }
    one.kill(0, Death::Killed);
    one.partition(&[0], &[1, 2], true);
    one.start(0);
    one.partition(&[3], &[0], false);
    if seed.is_multiple_of(2) {
        one.partition(&[3], &[1, 2], false);
    }
    one.run_for(10 * SECOND);
    assert_eq!(one.node(3).expect("it runs").id(), id, "it has forgotten a cluster that lives");
    if !seed.is_multiple_of(2) {
        one.partition(&[3], &[1, 2], false);
    }
    one.partition(&[0], &[1, 2], false);
    assert_eq!(one.until_formed(), cluster);
    assert_eq!(one.node(3).expect("it runs").id(), id);
    true
}

/// Random faults while nodes start. `wild`: they go on after the cluster was formed, so that it may be lost; there must still never be
/// two. Otherwise one must come of it.
pub fn random_faults(seed: u64, wild: bool) -> usize {
    let mut random = Random::new(seed ^ 0xf0);
    let nodes = 2 + random.below(4) as usize;
    let mut one = Formation::new(seed, nodes);
    let mut starts: Vec<(u64, Host)> = (0..nodes).map(|host| (random.below(2 * SECOND), host)).collect();
    let mut heals: Vec<(u64, Host, Host)> = Vec::new();
    let mut wakes: Vec<(u64, Pid)> = Vec::new();
    let (end, mut next_fault) = (15 * SECOND, random.below(3 * SECOND));
    loop {
        let now = one.world.now;
        for (_, host) in starts.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            if one.world.pid_on(host).is_none() {
                one.start(host);
            }
        }
        heals.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>().into_iter().for_each(|(_, from, to)| one.world.unblock(from, to));
        wakes.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>().into_iter().for_each(|(_, pid)| one.world.resume(pid));
        if now >= end && starts.is_empty() && heals.is_empty() && wakes.is_empty() {
            break;
        }
        if now >= next_fault && now < end {
            // Dense at first: forming takes only some round trips.
            next_fault = now + random.below(700 * MILLISECOND);
            let (host, other) = (random.below(nodes as u64) as usize, random.below(nodes as u64) as usize);
            match random.below(5) {
                0..=2 if wild || one.living().is_empty() => {
                    let death = if random.chance(1, 2) { Death::Killed } else { Death::Silent };
                    one.kill(host, death);
                    starts.push((now + random.below(1500 * MILLISECOND), host));
                }
                3 if host != other => {
                    one.world.block(host, other);
                    heals.push((now + random.below(3 * SECOND), host, other));
                }
                4 => {
                    if let Some(pid) = one.world.pid_on(host).filter(|pid| !one.world.is_paused(*pid)) {
                        one.world.pause(pid);
                        wakes.push((now + random.below(1500 * MILLISECOND), pid));
                    }
                }
                _ => {}
            }
        }
        one.run_for(20 * MILLISECOND);
    }
    if wild {
        one.run_for(20 * SECOND);
    } else {
        one.until_formed();
        assert_eq!(one.formed.len(), 1, "{:?}", one.formed);
    }
    one.formed.len()
}
