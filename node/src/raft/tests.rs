//! Groups on a small network under virtual time: delay, loss, pauses, crashes with a new incarnation, handovers, snapshots.

mod forged;
mod scripts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{NodeId, Term};
use dfs::wire::message::RaftMessage;

use super::{Configuration, Group, Output, Settings, Start};

const MS: u64 = 1_000_000;

/// Small bounds, so that compaction and snapshots happen all the time.
fn settings() -> Settings {
    Settings { log_bytes: 1 << 20, log_entries: 40, ..Settings::default() }
}

/// What a node has applied, and where a snapshot of it stands in the log.
#[derive(Clone, Default)]
struct State {
    index: u64,
    term: Term,
    configuration: Configuration,
    /// A chain over everything applied: equal at equal indexes on all nodes.
    digest: u64,
}

fn mix(digest: u64, index: u64, term: u64, data: &[u8]) -> u64 {
    let step = |sum: u64, part: u64| (sum ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    data.iter().fold(step(step(digest, index), term), |sum, &byte| step(sum, byte as u64 + 1))
}

struct Member {
    group: Group,
    state: State,
    paused_until: Time,
    /// Reads that wait for proof: when they came, and what was committed anywhere by then.
    reads: Vec<(Time, u64)>,
}

enum Event {
    Message { from: NodeId, to: NodeId, message: RaftMessage },
    Snapshot { from: NodeId, to: NodeId, state: State },
}

/// The network and all checks.
struct World {
    random: Random,
    now: Time,
    sequence: u64,
    members: BTreeMap<NodeId, Member>,
    events: BTreeMap<(Time, u64), Event>,
    /// Nodes that were crashed and are to be replaced.
    dead: BTreeSet<NodeId>,
    /// Of 100 messages so many are lost, others take up to so many ms.
    loss: u64,
    delay_ms: u64,
    /// Nothing passes between these and the others.
    cut: BTreeSet<NodeId>,
    voters_wanted: usize,
    next_id: u64,
    leaders: BTreeMap<u64, NodeId>,
    /// Digest at every committed index, by whoever applied it first.
    history: BTreeMap<u64, u64>,
    proposals: u64,
    reads_served: u64,
    reads_by_echo: u64,
    snapshots: u64,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut world = World {
            random: Random::new(seed),
            now: Time(1_000 * MS),
            sequence: 0,
            members: BTreeMap::new(),
            events: BTreeMap::new(),
            dead: BTreeSet::new(),
            loss: 0,
            delay_ms: 2,
            cut: BTreeSet::new(),
            voters_wanted: nodes,
            next_id: 0,
            leaders: BTreeMap::new(),
            history: BTreeMap::new(),
            proposals: 0,
            reads_served: 0,
            reads_by_echo: 0,
            snapshots: 0,
        };
        world.start(Start::Founder);
        for _ in 1..nodes {
            world.start(Start::Joiner);
        }
        world
    }

    fn start(&mut self, start: Start) -> NodeId {
        self.next_id += 1;
        let id = NodeId(self.next_id);
        let group = Group::new(id, start, self.random.fork(), self.now, settings());
        let state = State::default();
        self.members.insert(id, Member { group, state, paused_until: Time(0), reads: Vec::new() });
        self.drain(id);
        id
    }

    fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    fn passes(&mut self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&from) == self.cut.contains(&to) && !self.random.chance(self.loss, 100)
    }

    fn arrival(&mut self) -> Time {
        // Now and then a message is very late, across elections.
        let ms = if self.random.chance(1, 200) { self.random.below(3000) } else { self.random.below(self.delay_ms) };
        self.now + Duration::from_nanos(ms * MS + self.random.below(MS) + 1)
    }

    /// Does what the group asks for, applying commits at once.
    fn drain(&mut self, id: NodeId) {
        while let Some(output) = self.members.get_mut(&id).and_then(|member| member.group.poll_output()) {
            match output {
                Output::Send { to, message } => {
                    if self.passes(id, to) {
                        let at = self.arrival();
                        self.schedule(at, Event::Message { from: id, to, message });
                    }
                }
                Output::Commit { index, term, data } => self.apply(id, index, term, None, &data),
                Output::Configured { index, term, configuration } => self.apply(id, index, term, Some(configuration), &[]),
                Output::NeedSnapshot { to } => self.send_snapshot(id, to),
                Output::LeaderChanged { leader, term } => {
                    let group = &self.members[&id].group;
                    assert!(term.0 <= group.term().0 && leader != Some(NodeId(0)));
                }
            }
        }
        self.check(id);
    }

    fn apply(&mut self, id: NodeId, index: u64, term: Term, configuration: Option<Configuration>, data: &[u8]) {
        let member = self.members.get_mut(&id).expect("it has just spoken");
        if index == member.state.index && configuration.is_some() {
            // Told again, with the snapshot that was installed.
            assert_eq!(Some(&member.state.configuration), configuration.as_ref());
            return;
        }
        assert_eq!(index, member.state.index + 1, "{id} skipped or repeated an entry");
        member.state.index = index;
        member.state.term = term;
        member.state.digest = mix(member.state.digest, index, term.0, data);
        if let Some(configuration) = configuration {
            member.state.configuration = configuration;
        }
        let first = *self.history.entry(index).or_insert(member.state.digest);
        assert_eq!(first, member.state.digest, "{id} committed something else at {index}");
        member.group.applied_to(index);
    }

    fn send_snapshot(&mut self, from: NodeId, to: NodeId) {
        self.snapshots += 1;
        let delivered = self.passes(from, to) && self.random.chance(2, 3);
        let at = self.now + Duration::from_nanos((20 + self.random.below(400)) * MS);
        let member = self.members.get_mut(&from).expect("it has just spoken");
        let state = member.state.clone();
        member.group.snapshot_begun(to, state.index);
        if delivered {
            self.schedule(at, Event::Snapshot { from, to, state });
        } else {
            member.group.snapshot_sent(to, false);
        }
    }

    fn check(&mut self, id: NodeId) {
        let group = &self.members[&id].group;
        if group.is_leader() {
            let first = *self.leaders.entry(group.term().0).or_insert(id);
            assert_eq!(first, id, "two leaders in term {}", group.term());
            assert_eq!(group.leader(), Some(id));
        }
        assert!(group.commit_index() <= group.last_index());
    }

    fn is_running(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.paused_until <= self.now)
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Message { from, to, message } => {
                if let Some(member) = self.members.get(&to) {
                    if member.paused_until > self.now {
                        let at = member.paused_until + Duration::from_nanos(1);
                        return self.schedule(at, Event::Message { from, to, message });
                    }
                    let refused = self.members.get_mut(&to).expect("looked up").group.receive(self.now, from, message.clone()).err();
                    assert_ne!(refused, Some(Status::Malformed), "an honest message was refused: {message:?}");
                    self.drain(to);
                }
            }
            Event::Snapshot { from, to, state } => {
                if self.is_running(to) {
                    let member = self.members.get_mut(&to).expect("it runs");
                    let installed = member.group.install_snapshot(self.now, state.index, state.term, state.configuration.clone());
                    if installed == Ok(true) {
                        assert!(state.index >= member.state.index, "a snapshot took back what was applied");
                        member.state = state;
                    }
                    self.drain(to);
                }
                if let Some(member) = self.members.get_mut(&from) {
                    member.group.snapshot_sent(to, true);
                }
            }
        }
    }

    /// Lets everything happen until `until`.
    fn run(&mut self, until: Time) {
        loop {
            let wake = |member: &Member| member.group.next_deadline().max(member.paused_until);
            let (due, id) = self.members.iter().map(|(&id, member)| (wake(member), id)).min().expect("somebody lives");
            let next = self.events.first_key_value().map_or(Time::NEVER, |(&(at, _), _)| at);
            if due.min(next) > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(due.min(next));
            if next <= due {
                let (_, event) = self.events.pop_first().expect("it is due");
                self.deliver(event);
            } else {
                self.members.get_mut(&id).expect("it is due").group.on_deadline(self.now);
                self.drain(id);
            }
        }
    }

    /// The leaders' part: keeps as many living voters as wanted.
    fn manage(&mut self) {
        let living: BTreeSet<NodeId> = self.members.keys().copied().collect();
        for id in living.clone() {
            let group = &mut self.members.get_mut(&id).expect("living").group;
            if !self.cut.contains(&id) && group.is_leader() && !group.is_changing() {
                let mut voters: BTreeSet<NodeId> = group.configuration().voters.intersection(&living).copied().collect();
                let before = voters.len();
                let spares = living.iter().filter(|&&node| !group.configuration().voters.contains(&node) && group.caught_up(node));
                voters.extend(spares.take(self.voters_wanted.saturating_sub(before)));
                if before < group.configuration().voters.len() && voters.len() == before {
                    // A dead voter leaves only together with its replacement.
                    voters = group.configuration().voters.clone();
                }
                let learners = living.difference(&voters).copied().collect();
                if voters.contains(&id) {
                    let proposed = group.propose_voters(self.now, &voters, &learners);
                    assert!(matches!(proposed, Ok(()) | Err(Status::Busy)), "{proposed:?}");
                }
                self.drain(id);
            }
        }
    }

    fn propose(&mut self) {
        let ids: Vec<NodeId> = self.members.keys().copied().filter(|&id| self.is_running(id)).collect();
        for id in ids {
            let count = 1 + self.random.below(4);
            for _ in 0..count {
                self.proposals += 1;
                let data = Bytes::from(self.proposals.to_le_bytes().to_vec());
                let group = &mut self.members.get_mut(&id).expect("running").group;
                let proposed = group.propose(self.now, data);
                assert!(matches!(proposed, Ok(()) | Err(Status::NotLeader | Status::Busy)));
                assert!(proposed != Ok(()) || group.is_leader());
            }
            self.drain(id);
        }
    }

    /// Reads come in everywhere; whoever has proof answers from a state that has everything committed before the read came.
    fn read(&mut self) {
        let committed = self.history.last_key_value().map_or(0, |(&index, _)| index);
        let ids: Vec<NodeId> = self.members.keys().copied().filter(|&id| self.is_running(id)).collect();
        for id in ids {
            let member = self.members.get_mut(&id).expect("running");
            if !member.group.is_leader() {
                member.reads.clear();
                continue;
            }
            member.reads.push((self.now, committed));
            let now = self.now;
            let (group, state) = (&member.group, &member.state);
            let mut served = 0;
            let mut old = 0;
            member.reads.retain(|&(received, committed)| {
                let ready = group.can_read(now, received);
                if ready {
                    assert!(state.index >= committed, "{id} answered from {} although {committed} was committed", state.index);
                    served += 1;
                    old += u64::from(received < now);
                }
                !ready
            });
            if !member.reads.is_empty() {
                member.group.confirm(self.now);
            }
            self.reads_served += served;
            self.reads_by_echo += old;
            self.drain(id);
        }
    }

    fn leader(&self) -> Option<NodeId> {
        let leading = self.members.iter().filter(|(_, member)| member.group.is_leader());
        leading.max_by_key(|(_, member)| member.group.term()).map(|(&id, _)| id)
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.leader().map(|id| self.members[&id].group.configuration().voters.clone()).unwrap_or_default()
    }

    /// A majority of the voters, by any member's configuration, lives without this one.
    fn may_crash(&self, id: NodeId) -> bool {
        self.members.len() > 1
            && self.members.values().filter(|member| !member.state.configuration.voters.is_empty()).all(|member| {
                let configuration = &member.group.configuration();
                let lives = |voters: &BTreeSet<NodeId>| {
                    let left = voters.iter().filter(|&&voter| voter != id && self.members.contains_key(&voter)).count();
                    voters.is_empty() || left > voters.len() / 2
                };
                lives(&configuration.voters) && lives(&configuration.outgoing)
            })
    }

    fn any(&mut self) -> NodeId {
        let ids: Vec<NodeId> = self.members.keys().copied().collect();
        ids[self.random.below(ids.len() as u64) as usize]
    }

    fn fault(&mut self) {
        let id = self.any();
        match self.random.below(10) {
            0 | 1 => self.loss = self.random.below(30),
            2 => self.delay_ms = 1 + self.random.below(60),
            3 => self.cut = BTreeSet::from([id]),
            4 => self.cut = BTreeSet::from_iter(self.leader()),
            5 => self.cut.clear(),
            6 => {
                let pause = Duration::from_nanos(self.random.below(4000) * MS);
                self.members.get_mut(&id).expect("chosen").paused_until = self.now + pause;
            }
            7 | 8 => {
                let crash_all_right = self.cut.is_empty() && self.dead.iter().all(|dead| !self.voters().contains(dead));
                if crash_all_right && self.leader().is_some() && self.may_crash(id) {
                    self.members.remove(&id);
                    self.dead.insert(id);
                    self.start(Start::Joiner);
                }
            }
            _ => {
                if let Some(leader) = self.leader().filter(|&leader| self.is_running(leader)) {
                    let _ = self.members.get_mut(&leader).expect("it leads").group.transfer(self.now, id);
                    self.drain(leader);
                }
            }
        }
    }

    /// Drives the world for some virtual time, in steps of 50 ms.
    fn live(&mut self, duration: Duration, faults: bool) {
        let until = self.now + duration;
        while self.now < until {
            self.propose();
            self.read();
            if faults && self.random.chance(1, 8) {
                self.fault();
            }
            if self.random.chance(1, 4) {
                self.manage();
            }
            let next = self.now + Duration::from_nanos(50 * MS);
            self.run(next);
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0;
        self.delay_ms = 2;
        self.members.values_mut().for_each(|member| member.paused_until = Time(0));
    }

    /// Everybody applied the same, and all wanted voters vote.
    fn assert_converged(&mut self) {
        let leader = self.leader().expect("a healed group has a leader");
        let committed = self.members[&leader].state.index;
        self.run(self.now + Duration::from_nanos(1500 * MS));
        let configuration = &self.members[&leader].state.configuration;
        assert_eq!(configuration.voters.len(), self.voters_wanted, "voters after healing: {configuration:?}");
        assert!(!configuration.is_joint());
        for (id, member) in &self.members {
            assert!(member.state.index >= committed, "{id} stays behind at {} of {committed}", member.state.index);
            assert_eq!(member.group.leader(), Some(leader), "{id} follows somebody else");
            assert!(member.group.node.store().len() <= 4 * settings().log_entries + 8);
        }
    }
}

/// Names what failed.
struct Replay(String);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay: {}", self.0);
        }
    }
}

/// One whole history: form, suffer, heal, converge.
fn suffer(seed: u64) -> World {
    let nodes = [1, 3, 5][(seed % 3) as usize];
    let mut world = World::new(seed, nodes);
    world.live(Duration::from_secs(4), false);
    assert_eq!(world.voters().len(), nodes, "seed {seed}: the group did not grow");
    world.live(Duration::from_secs(12), true);
    world.heal();
    world.live(Duration::from_secs(8), false);
    let before = world.history.len();
    world.live(Duration::from_secs(1), false);
    assert!(world.history.len() > before, "seed {seed}: nothing commits after healing");
    world.assert_converged();
    world
}

#[test]
fn groups_stay_consistent_through_faults_and_heal() {
    let seeds = match std::env::var("DFS_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).expect("DFS_SEED is a number"),
        Err(_) => 0..std::env::var("DFS_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(120),
    };
    let (mut reads, mut by_echo, mut snapshots, mut replaced) = (0, 0, 0, 0);
    for seed in seeds {
        let _replay = Replay(format!("DFS_SEED={seed} cargo test -p dfs-node raft::tests::groups"));
        let world = suffer(seed);
        reads += world.reads_served;
        by_echo += world.reads_by_echo;
        snapshots += world.snapshots;
        replaced += world.dead.len();
    }
    println!("{reads} reads, {by_echo} of them waited for proof, {snapshots} snapshots, {replaced} nodes replaced");
    assert!(std::env::var("DFS_SEED").is_ok() || (reads > 1000 && by_echo > 100 && snapshots > 100 && replaced > 20));
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let end = |seed| {
        let world = suffer(seed);
        (world.now, world.sequence, world.history)
    };
    assert_eq!(end(4), end(4));
}

#[test]
fn a_survivor_leads_alone_behind_the_place_where_it_stood() {
    let start = Start::Survivor { index: 40, term: Term(5) };
    let mut group = Group::new(NodeId(7), start, Random::new(1), Time(1_000 * MS), settings());
    assert!(group.is_leader() && group.term() == Term(6));
    assert_eq!((group.position(), group.applied_index()), ((Term(6), 41), 40));
    assert_eq!(group.tail(), [(41, Term(6), Some(Bytes::new()))]);
    let mut committed = Vec::new();
    while let Some(output) = group.poll_output() {
        match output {
            Output::Commit { index, term, .. } => committed.push((index, term)),
            Output::Send { .. } | Output::Configured { .. } => panic!("{output:?}"),
            _ => {}
        }
    }
    assert_eq!(committed, [(41, Term(6))]);
    group.applied_to(41);
    assert!(group.tail().is_empty());
}
