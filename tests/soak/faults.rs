//! What goes wrong in a soak: one fault at a time, drawn from the seed, each within what is promised.

use std::time::Duration;

use dfs::random::Random;

use crate::calls::{Run, Window};
use crate::machines::{Cluster, MOUNTS, NODES};
use crate::namespaces::Host;

/// A mount that is cut off from the leader may lose what it has not synced once its lease (4 s) is over, and no other node passes its
/// requests on. Both are limits that the manual names, so such cuts are shorter.
const CUT_FROM_MOUNT: (u64, u64) = (200, 3_000);
/// Some stops and cuts outlast a lease, a voter's patience and what makes a node count as dead, others nothing of it.
const SILENCE: (u64, u64) = (200, 8_000);
const DEATH: (u64, u64) = (500, 8_000);
const LOSS_PERCENT: u32 = 20;
/// Between two faults.
const REST: (u64, u64) = (300, 2_000);

/// Kinds of faults, and how many of each are in a deck.
const DECK: [(&str, usize); 7] =
    [("kill", 3), ("stop", 2), ("cut", 2), ("cut one way", 2), ("cut from some", 2), ("loss", 1), ("slow or stalled", 2)];

/// Instead of a fault: nothing.
const NONE: &str = "none";

/// Draws faults until it is dropped.
pub struct Faults {
    random: Random,
    deck: Vec<&'static str>,
    /// Of these kinds only, if any are named.
    only: Vec<String>,
    pub windows: Vec<Window>,
}

impl Faults {
    /// `only`: kinds to be drawn, all if it is empty.
    pub fn new(seed: u64, only: Vec<String>) -> Self {
        for kind in &only {
            assert!(
                *kind == NONE || DECK.iter().any(|(known, _)| known == kind),
                "there is no fault {kind:?}; there are {DECK:?} and {NONE:?}"
            );
        }
        Faults { random: Random::new(seed), deck: Vec::new(), only, windows: Vec::new() }
    }

    /// The next kind: each comes in its turn, in an order of the seed's, so that a short soak sees most of them. A death is first.
    fn draw(&mut self) -> &'static str {
        if self.deck.is_empty() {
            let mut deck: Vec<_> = DECK.iter().flat_map(|&(kind, count)| std::iter::repeat_n(kind, count)).collect();
            for at in (1..deck.len()).rev() {
                deck.swap(at, self.random.below(at as u64 + 1) as usize);
            }
            let last = deck.len() - 1;
            let kill = deck.iter().position(|&kind| kind == "kill").expect("in the deck");
            deck.swap(kill, last);
            deck.retain(|kind| self.only.is_empty() || self.only.iter().any(|only| only == kind));
            self.deck = if deck.is_empty() { vec![NONE] } else { deck };
        }
        self.deck.pop().expect("filled above")
    }

    fn between(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(from + self.random.below(to - from))
    }

    /// Every second time the leader, else any.
    fn victim(&mut self, cluster: &Cluster) -> usize {
        let any = self.random.below(NODES as u64) as usize;
        if self.random.chance(1, 2) { cluster.leader().unwrap_or(any) } else { any }
    }

    /// Lets one thing go wrong, mends it, and waits until the cluster bears the next.
    pub fn once(&mut self, run: &Run, cluster: &mut Cluster) {
        let kind = self.draw();
        let begun = run.now();
        match kind {
            "kill" => self.kill(run, cluster),
            "stop" => self.stop(run, cluster),
            "loss" => self.lose(run, cluster),
            NONE => {}
            "slow or stalled" => self.slow(run, cluster),
            cut => self.cut(run, cluster, cut),
        }
        if let Err(wanting) = cluster.until_whole() {
            run.fail(wanting);
        }
        self.windows.push(Window { kind, begun, ended: run.now() });
        casualties(run, cluster);
        let rest = self.between(REST);
        pause(run, rest);
    }

    fn kill(&mut self, run: &Run, cluster: &mut Cluster) {
        let victim = self.victim(cluster);
        let down = self.between(DEATH);
        run.say(&format!("node {victim} is killed, and started again after {down:?}"));
        cluster.machines[victim].node.as_mut().expect("all live between faults").kill();
        cluster.machines[victim].node = None;
        // Also when the soak is over by then: it ends with all nodes.
        std::thread::sleep(down);
        cluster.start_node(victim);
    }

    fn stop(&mut self, run: &Run, cluster: &mut Cluster) {
        let victim = self.victim(cluster);
        let long = self.between(SILENCE);
        run.say(&format!("node {victim} is stopped for {long:?}"));
        let node = cluster.machines[victim].node.as_ref().expect("all live between faults");
        node.stop();
        pause(run, long);
        node.cont();
    }

    /// Machines of a cut: the victim, whether it leads, all others with their mounts.
    fn cut(&mut self, run: &Run, cluster: &mut Cluster, kind: &str) {
        let victim = self.victim(cluster);
        let mut peers: Vec<(String, &Host)> = (0..NODES)
            .filter(|&node| node != victim)
            .map(|node| (format!("node {node}"), &cluster.machines[node].host))
            .chain((0..MOUNTS).map(|mount| (format!("mount {mount}"), cluster.mount_host(mount))))
            .collect();
        let mut long = self.between(SILENCE);
        if kind == "cut from some" {
            let only_a_mount = self.random.chance(1, 3);
            let some = |random: &mut Random, name: &str| if only_a_mount { name.starts_with("mount") } else { random.chance(1, 2) };
            let any = self.random.below(peers.len() as u64) as usize;
            let chosen: Vec<bool> = peers.iter().enumerate().map(|(at, (name, _))| some(&mut self.random, name) || at == any).collect();
            let mut chosen = chosen.into_iter();
            // With mounts only, one of them is taken out below.
            peers.retain(|(name, _)| chosen.next() == Some(true) && (!only_a_mount || name.starts_with("mount")));
            if only_a_mount {
                peers.remove(self.random.below(MOUNTS as u64) as usize);
            }
            if peers.iter().any(|(name, _)| name.starts_with("mount")) {
                long = self.between(CUT_FROM_MOUNT);
            }
        }
        let directions: &[bool] = match kind {
            "cut one way" if self.random.chance(1, 2) => &[true],
            "cut one way" => &[false],
            _ => &[true, false],
        };
        let arrows = if directions.len() == 2 {
            "to and from"
        } else if directions[0] {
            "to"
        } else {
            "from"
        };
        let names = peers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        run.say(&format!("for {long:?} nothing passes {arrows} node {victim}, {arrows} the side of {names}"));
        refuse(cluster, victim, &peers.iter().map(|(_, host)| *host).collect::<Vec<_>>(), directions, 100);
        pause(run, long);
        cluster.network.heal();
    }

    fn lose(&mut self, run: &Run, cluster: &mut Cluster) {
        let victim = self.victim(cluster);
        let long = self.between(SILENCE);
        run.say(&format!("for {long:?} a packet in {} is lost to and from node {victim}", 100 / LOSS_PERCENT));
        let own = &cluster.machines[victim].host;
        let peers: Vec<&Host> = cluster.network.hosts.iter().filter(|host| *host != own).collect();
        refuse(cluster, victim, &peers, &[true, false], LOSS_PERCENT);
        pause(run, long);
        cluster.network.heal();
    }

    fn slow(&mut self, run: &Run, cluster: &mut Cluster) {
        let slow: Vec<usize> = (0..NODES).filter(|&node| cluster.machines[node].proxy.is_some()).collect();
        let leading = cluster.leader().filter(|leader| slow.contains(leader) && self.random.chance(1, 2));
        let victim = leading.unwrap_or_else(|| slow[self.random.below(slow.len() as u64) as usize]);
        let long = self.between(SILENCE);
        let delay = self.between((5, 50));
        let proxy = cluster.machines[victim].proxy.as_ref().expect("chosen for it");
        if self.random.chance(1, 2) {
            run.say(&format!("for {long:?} all that is sent to node {victim} takes {delay:?}"));
            proxy.delay(delay);
        } else {
            run.say(&format!("for {long:?} nothing that is sent to node {victim} arrives, and nothing is lost"));
            proxy.stall(true);
        }
        pause(run, long);
        proxy.heal();
    }
}

/// `true` among the directions: what the peers send to the victim. `false`: what it sends to them.
fn refuse(cluster: &Cluster, victim: usize, peers: &[&Host], directions: &[bool], percent: u32) {
    let own = &cluster.machines[victim].host;
    if directions.contains(&true) {
        own.refuse(peers, percent);
    }
    if directions.contains(&false) {
        peers.iter().for_each(|peer| peer.refuse(&[own], percent));
    }
}

/// Waits, shorter if the soak is over.
fn pause(run: &Run, long: Duration) {
    let end = run.now() + long.as_nanos() as u64;
    while run.now() < end && !run.is_over() {
        std::thread::sleep(Duration::from_millis(20).min(Duration::from_nanos(end.saturating_sub(run.now()))));
    }
}

/// Processes may end only when told to, and none may panic.
pub fn casualties(run: &Run, cluster: &mut Cluster) {
    cluster.casualties().into_iter().for_each(|what| run.fail(what));
}
