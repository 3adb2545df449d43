//! One seed from beginning to end: form a cluster, work under faults, heal, demand that everything is right.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use dfs::client::{Call, Event as ClientEvent, Reply};
use dfs::cluster_map::ClusterMap;
use dfs::fsck;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{Address, InodeId, NodeId, ROOT, SessionId};
use dfs::wire::fsck::{Check, Checked};
use dfs::wire::namespace::{NewKind, Replied, WriteAt};
use dfs_node::node::{NodeConfig, Sabotage, Start};

use super::attrition::Attrition;
use super::checks::{Checks, Expected, bad_copy, stuck, unrest};
use super::network::{Host, Pid};
use super::plan::{DEPOSED_FOR, Fault, LEADER, Plan};
use super::workload::{Ground, REGISTERS, Stats, Workload, create};
use super::world::{Death, MILLISECOND, News, SECOND, World};

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub trace: u64,
    pub stats: Stats,
    pub frames: u64,
    pub virtual_seconds: u64,
    pub declared_dead: usize,
    /// Nodes that went one after another: all of them, those killed during repair, and those that left or were drained.
    pub worn_out: usize,
    pub early: usize,
    pub left: usize,
    pub drained: usize,
}

/// What the alarms of a run mean.
#[derive(Clone, Debug)]
pub enum Alarm {
    Begin(usize),
    /// Of the fault under way that has this number.
    End(usize),
    Resume(Pid),
    Restart(Host),
    Act(usize),
    /// Have a node go, if the cluster can do without it.
    Attrition,
}

pub struct Run {
    pub plan: Plan,
    pub world: World,
    pub checks: Checks,
    sabotage: Option<Sabotage>,
    alarms: Vec<Alarm>,
    /// Faults that last, by the number of the alarm that ends them.
    under_way: BTreeMap<usize, Fault>,
    clients: Vec<Option<Pid>>,
    workload: Option<Workload>,
    /// Whether actors begin new work.
    working: bool,
    sent: u64,
    answers: Vec<(u64, Result<Reply, Status>)>,
    started: BTreeMap<(Pid, u64), u64>,
    ready: BTreeSet<Pid>,
    /// When processes that were stopped went on.
    slept: BTreeMap<Pid, u64>,
    /// Sessions of clients that died. Their uploads are kept as long as the sessions.
    killed_sessions: BTreeSet<SessionId>,
    /// Sessions of living clients that the cluster has ended: what they had not made safe is lost from then on.
    evicted_sessions: BTreeSet<SessionId>,
    pub attrition: Attrition,
}

/// Tokens of calls that are not of the workload.
const OWN_TOKEN: u64 = 1 << 60;

pub fn address(host: Host) -> Address {
    Address::Tcp { host: format!("node{host}"), port: 7400 }
}

impl Run {
    pub fn new(plan: Plan, sabotage: Option<Sabotage>) -> Self {
        let mut world = World::new(plan.seed, plan.speed.clone());
        // Sessions that keep what they have a right to, and sessions that ask each time.
        world.caches = plan.seed % 2 == 1;
        world.behind = !plan.seed.is_multiple_of(3);
        let clients = vec![None; plan.clients];
        Run {
            plan,
            world,
            checks: Checks::default(),
            sabotage,
            alarms: Vec::new(),
            under_way: BTreeMap::new(),
            clients,
            workload: None,
            working: false,
            answers: Vec::new(),
            sent: 0,
            started: Default::default(),
            ready: Default::default(),
            slept: BTreeMap::new(),
            killed_sessions: BTreeSet::new(),
            evicted_sessions: BTreeSet::new(),
            attrition: Attrition::default(),
        }
    }

    pub fn alarm(&mut self, after: u64, alarm: Alarm) {
        self.alarms.push(alarm);
        self.world.alarm(after, self.alarms.len() as u64 - 1);
    }

    fn addresses(&self) -> Vec<Address> {
        (0..self.plan.nodes.len()).map(address).collect()
    }

    pub fn start_node(&mut self, host: Host, start: Start) -> Pid {
        let reused = self.sabotage == Some(Sabotage::ReuseRaftId);
        let config = NodeConfig {
            address: address(host),
            memory: self.plan.nodes[host],
            rate: None,
            zone: self.plan.zones.get(host).copied().unwrap_or_default().into(),
            start,
            id: reused.then_some(NodeId(host as u64 + 1)),
            sabotage: self.sabotage,
        };
        self.world.start_node(host, address(host), config)
    }

    pub fn start_client(&mut self, client: usize) -> Pid {
        let (host, nodes) = (self.plan.client_host(client), self.addresses());
        let pid = match self.plan.is_mount(client) {
            true => self.world.start_mount(host, nodes),
            false => self.world.start_client(host, nodes),
        };
        if client < self.clients.len() {
            self.clients[client] = Some(pid);
        }
        pid
    }

    /// Lets one thing happen, and looks at it.
    fn step(&mut self, until: u64) -> bool {
        let moved = self.world.step(until);
        let terms = self.checks.terms();
        self.checks.look(&mut self.world);
        if self.checks.terms() > terms {
            self.on_new_leader();
        }
        while let Some(news) = self.world.news.pop_front() {
            self.on_news(news);
        }
        moved
    }

    pub fn run_for(&mut self, length: u64) {
        let until = self.world.now + length;
        while self.step(until) {}
    }

    /// Runs until the condition holds; panics with what it says if it does not in time.
    pub fn run_until(&mut self, length: u64, what: &str, mut missing: impl FnMut(&Run) -> Option<String>) {
        let until = self.world.now + length;
        loop {
            let Some(why) = missing(self) else { return };
            assert!(self.world.now < until, "{what} took too long: {why}");
            self.run_for(20 * MILLISECOND);
        }
    }

    /// One call of a client, to its end.
    pub fn call(&mut self, client: Pid, call: Call) -> Result<Reply, Status> {
        let token = self.send(client, call);
        self.wait(token)
    }

    /// Begins a call.
    pub fn send(&mut self, client: Pid, call: Call) -> u64 {
        self.sent += 1;
        let token = OWN_TOKEN + self.sent;
        self.started.insert((client, token), self.world.now);
        self.world.submit(client, token, call);
        token
    }

    /// Whether the answer of [`Run::send`] is there.
    pub fn is_answered(&self, token: u64) -> bool {
        self.answers.iter().any(|(answered, _)| *answered == token)
    }

    /// Waits for the answer of [`Run::send`].
    pub fn wait(&mut self, token: u64) -> Result<Reply, Status> {
        let until = self.world.now + 60 * SECOND;
        loop {
            if let Some(at) = self.answers.iter().position(|(answered, _)| *answered == token) {
                return self.answers.swap_remove(at).1;
            }
            assert!(self.world.now < until, "a call was never answered");
            self.step(until);
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Alarm(token) => {
                let alarm = self.alarms[token as usize].clone();
                self.on_alarm(alarm);
            }
            News::Done { client, token, result } => self.on_done(client, token, result),
            News::Client { client, event: ClientEvent::Ready { .. } } => _ = self.ready.insert(client),
            News::Client { client, event: ClientEvent::SessionLost } => {
                let Some(index) = self.clients.iter().position(|pid| *pid == Some(client)) else { return };
                if self.plan.is_mount(index) {
                    // The mount goes on with a new session; what nobody had made safe is lost.
                    self.killed_sessions.extend(self.world.session_of(client));
                    return self.workload.iter_mut().for_each(|workload| workload.on_loss(index));
                }
                self.kill_client(index, 100 * MILLISECOND);
            }
            News::Client { event, .. } => panic!("nothing gave reason for {event:?}"),
            News::NodeStopped { pid, reason } => self.on_stopped(pid, &reason),
        }
    }

    /// A client may sleep while its session is ended, and others see then that its latest writes never happened.
    fn look_for_evictions(&mut self) {
        for (index, pid) in self.clients.iter().enumerate() {
            let Some(session) = pid.and_then(|pid| self.world.session_of(pid)) else { continue };
            let ended = self.world.nodes().any(|(_, node)| node.namespace().has_ended(session));
            if ended && self.evicted_sessions.insert(session) {
                self.workload.iter_mut().for_each(|workload| workload.on_loss(index));
            }
        }
    }

    fn on_done(&mut self, client: Pid, token: u64, result: Result<Reply, Status>) {
        let began = self.started.remove(&(client, token)).expect("every answer has its call, once");
        let took = self.world.now - began;
        if token >= OWN_TOKEN {
            return self.answers.push((token, result));
        }
        self.look_for_evictions();
        let Some(workload) = &mut self.workload else { return };
        // A call that its own process slept through may take longer.
        if self.slept.get(&client).is_none_or(|woke| *woke < began) {
            workload.stats.slowest_ns = workload.stats.slowest_ns.max(took);
            // The deadline counts anew from progress: an upload done, a part of a large write, what was written before committed.
            let limit = 3 * limits::OP_TIMEOUT.as_nanos() as u64;
            assert!(took <= limit, "call {token} of {client} took {} ms: {result:?}", took / MILLISECOND);
        }
        if let Some(actor) = workload.on_answer(token, result) {
            let pause = self.world.random.below(200 * MILLISECOND);
            self.alarm(pause, Alarm::Act(actor));
        }
    }

    fn on_alarm(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Begin(index) => {
                let fault = self.plan.faults[index].1.clone();
                self.begin(fault);
            }
            Alarm::End(number) => {
                // Unless it was ended early.
                if let Some(fault) = self.under_way.remove(&number) {
                    self.end(&fault);
                }
            }
            Alarm::Resume(pid) => {
                self.slept.insert(pid, self.world.now);
                self.world.resume(pid);
            }
            Alarm::Restart(host) => self.restart(host),
            Alarm::Act(actor) => self.act(actor),
            Alarm::Attrition if self.working => {
                self.wear_out();
                let pause = 50 * MILLISECOND + self.world.random.below(400 * MILLISECOND);
                self.alarm(pause, Alarm::Attrition);
            }
            Alarm::Attrition => {}
        }
    }

    fn act(&mut self, actor: usize) {
        let Some(workload) = &mut self.workload else { return };
        // After a death an actor may have two alarms under way.
        if !self.working || workload.is_busy(actor) {
            return;
        }
        let index = workload.actors[actor].client;
        let client = self.clients[index];
        // Of a stopped mount the kernel goes on.
        let Some(pid) = client.filter(|pid| self.plan.is_mount(index) || !self.world.is_paused(*pid)) else {
            return self.alarm(500 * MILLISECOND, Alarm::Act(actor));
        };
        let (token, call) = workload.next_call(actor);
        if self.world.log {
            eprintln!("{:>13} {pid} actor {actor} #{token} {:.160}", self.world.now, format!("{call:?}"));
        }
        self.started.insert((pid, token), self.world.now);
        self.world.submit(pid, token, call);
    }

    /// The host of the leader of the highest term.
    fn leader_host(&self) -> Option<Host> {
        let leaders = self.world.processes.values().filter_map(|process| Some((process.as_node()?.leads()?, process.host)));
        leaders.max().map(|(_, host)| host)
    }

    /// Puts the leader's host in its place. `None`: nobody leads. Another node in its place might be silent for as long as a leader may be.
    fn resolve(&self, fault: Fault) -> Option<Fault> {
        let one = |host: Host| if host == LEADER { self.leader_host() } else { Some(host) };
        let many = |hosts: Vec<Host>| hosts.into_iter().map(one).collect::<Option<Vec<_>>>();
        Some(match fault {
            Fault::Crash { host, death, back_after } => Fault::Crash { host: one(host)?, death, back_after },
            Fault::Pause { host, length } => Fault::Pause { host: one(host)?, length },
            Fault::Partition { from, to, both, length } => Fault::Partition { from: many(from)?, to: many(to)?, both, length },
            Fault::Slow { host, by, length } => Fault::Slow { host: one(host)?, by, length },
            Fault::Resets { count } => Fault::Resets { count },
            Fault::Mute { host, towards, length, stop } => Fault::Mute { host: one(host)?, towards, length, stop },
            Fault::Suspend { host, client, others, length, later } => Fault::Suspend { host: one(host)?, client, others, length, later },
            Fault::Corrupt { host, count } => Fault::Corrupt { host: one(host)?, count },
        })
    }

    /// Has a fault end after a while.
    fn end_after(&mut self, length: u64, fault: &Fault) {
        self.under_way.insert(self.alarms.len(), fault.clone());
        self.alarm(length, Alarm::End(self.alarms.len()));
    }

    /// Who was cut off for a moment, for another to lead, comes back now. How long it had been silent does not tell whether the new leader
    /// has reason to declare it dead: that one counts from the beginning of its term, and it began when chance would have it.
    fn on_new_leader(&mut self) {
        let under_way: Vec<(usize, Fault)> = self.under_way.iter().map(|(number, fault)| (*number, fault.clone())).collect();
        for (number, fault) in under_way.into_iter().filter(|(_, fault)| fault.is_brief()) {
            self.alarm(DEPOSED_FOR, Alarm::End(number));
            if let Fault::Suspend { host, client, later, .. } = fault {
                let pids: Vec<Pid> = [host, client].into_iter().filter_map(|host| self.world.pid_on(host)).collect();
                pids.into_iter().for_each(|pid| self.alarm(DEPOSED_FOR - later, Alarm::Resume(pid)));
            }
        }
    }

    pub fn begin(&mut self, fault: Fault) {
        let Some(fault) = self.resolve(fault) else { return };
        let nodes = self.plan.nodes.len();
        if self.under_way.values().any(|other| fault.may_not_join(other, nodes)) {
            return;
        }
        if self.world.log {
            eprintln!("{:>13} FAULT {fault:?}", self.world.now);
        }
        match &fault {
            Fault::Crash { host, death, back_after } => match host.checked_sub(self.plan.nodes.len()) {
                Some(client) => self.kill_client(client, *back_after),
                None => {
                    if let Some(pid) = self.world.pid_on(*host) {
                        self.world.kill(pid, *death);
                        self.forget_going(pid);
                        self.alarm(*back_after, Alarm::Restart(*host));
                    }
                }
            },
            Fault::Pause { host, length } => {
                if let Some(pid) = self.world.pid_on(*host).filter(|pid| !self.world.is_paused(*pid)) {
                    self.world.pause(pid);
                    self.alarm(*length, Alarm::Resume(pid));
                }
            }
            Fault::Partition { from, to, both, length } => {
                for (from, to) in pairs(from, to, *both) {
                    self.world.block(from, to);
                }
                self.end_after(*length, &fault);
            }
            Fault::Slow { host, by, length } => {
                self.world.network.slow.insert(*host, *by);
                self.end_after(*length, &fault);
            }
            Fault::Mute { host, towards, length, .. } => {
                towards.iter().for_each(|to| self.world.block(*host, *to));
                self.end_after(*length, &fault);
            }
            Fault::Suspend { host, client, others, length, later } => {
                for (from, to) in pairs(&[*host], others, true) {
                    self.world.block(from, to);
                }
                self.end_after(length + later, &fault);
                self.begin(Fault::Pause { host: *client, length: *length });
                self.begin(Fault::Pause { host: *host, length: *length });
            }
            Fault::Resets { count } => {
                for _ in 0..*count {
                    let ids: Vec<_> = self.world.network.connections.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = ids[self.world.random.below(ids.len() as u64) as usize];
                        self.world.reset(id);
                    }
                }
            }
            Fault::Corrupt { host, count } => {
                let random = self.world.random.fork();
                if let Some(pid) = self.world.pid_on(*host) {
                    self.corrupt(pid, *count, random);
                }
            }
        }
    }

    fn corrupt(&mut self, pid: Pid, count: u64, mut random: dfs::random::Random) {
        let Some(node) = self.world.processes.get_mut(&pid).and_then(|process| process.as_node_mut()) else { return };
        let hashes: Vec<_> = node.chunks().uploads().map(|(hash, _)| hash).collect();
        for _ in 0..count.min(hashes.len() as u64) {
            let hash = hashes[random.below(hashes.len() as u64) as usize];
            node.chunks_mut().flip_bit(&hash, random.next());
        }
    }

    fn end(&mut self, fault: &Fault) {
        match fault {
            Fault::Partition { from, to, both, .. } => {
                for (from, to) in pairs(from, to, *both) {
                    self.world.unblock(from, to);
                }
            }
            Fault::Suspend { host, others, .. } => {
                for (from, to) in pairs(&[*host], others, true) {
                    self.world.unblock(from, to);
                }
            }
            Fault::Slow { host, .. } => _ = self.world.network.slow.remove(host),
            Fault::Mute { host, towards, stop, .. } => {
                match stop {
                    // One that leads no more has to be heard by the one that does, sooner than such a pause ends.
                    Some(length) if self.leader_host() == Some(*host) => self.begin(Fault::Pause { host: *host, length: *length }),
                    Some(_) => {}
                    None => self.begin(Fault::Crash { host: *host, death: Death::Silent, back_after: SECOND }),
                }
                for to in towards {
                    self.world.lose_held_up(*host, *to);
                    self.world.unblock(*host, *to);
                }
            }
            _ => {}
        }
    }

    fn restart(&mut self, host: Host) {
        if self.world.pid_on(host).is_some() {
            return;
        }
        match host.checked_sub(self.plan.nodes.len()) {
            Some(client) => _ = self.start_client(client),
            None => {
                let start = self.joining();
                self.start_node(host, start);
            }
        }
    }

    /// How a node starts that finds a cluster, or is one of a list.
    fn joining(&self) -> Start {
        let addresses = self.addresses();
        if self.plan.listed { Start::Peers { peers: addresses, replicas: self.plan.replicas } } else { Start::Join(addresses) }
    }

    fn kill_client(&mut self, client: usize, back_after: u64) {
        let Some(pid) = self.clients[client].take() else { return };
        self.killed_sessions.extend(self.world.session_of(pid));
        self.world.kill(pid, Death::Killed);
        self.started.retain(|(of, _), _| *of != pid);
        if let Some(workload) = &mut self.workload {
            workload.on_death(client);
            let actors: Vec<usize> = (0..workload.actors.len()).filter(|&actor| workload.actors[actor].client == client).collect();
            for actor in actors {
                self.alarm(back_after + 10 * MILLISECOND, Alarm::Act(actor));
            }
        }
        self.alarm(back_after, Alarm::Restart(self.plan.client_host(client)));
    }

    /// Starts all nodes and waits until they are one cluster.
    pub fn form(&mut self) {
        // In any order.
        let mut hosts: Vec<Host> = (0..self.plan.nodes.len()).collect();
        while !hosts.is_empty() {
            let host = hosts.swap_remove(self.world.random.below(hosts.len() as u64) as usize);
            let founder = Start::Bootstrap { replicas: self.plan.replicas };
            let start = if host == 0 && !self.plan.listed { founder } else { self.joining() };
            self.start_node(host, start);
            let pause = self.world.random.below(500 * MILLISECOND);
            self.run_for(pause);
        }
        self.run_until(30 * SECOND, "forming the cluster", |run| {
            let waiting = run.world.processes.values().find(|process| !process.ready);
            waiting.map(|process| format!("process {} is not ready", process.pid)).or_else(|| unrest(&run.world, &run.expected(true)))
        });
    }

    /// What the cluster looks like at rest.
    pub fn expected(&self, linger: bool) -> Expected {
        Expected {
            nodes: self.plan.nodes.len(),
            copies: self.plan.replicas as usize,
            tight: self.plan.is_tight(),
            dead_sessions: if linger { self.killed_sessions.clone() } else { BTreeSet::new() },
        }
    }

    fn make(&mut self, client: Pid, parent: InodeId, name: &str, kind: NewKind) -> InodeId {
        match self.call(client, create(parent, name, kind, 0)) {
            Ok(Reply::Replied(Replied::Entry { attributes, .. })) => attributes.ino,
            other => panic!("making {name} answered {other:?}"),
        }
    }

    /// Makes what the workload works on.
    pub fn prepare(&mut self) -> Pid {
        let client = self.start_client(0);
        let mut ground = Ground {
            names: self.make(client, ROOT, "names", NewKind::Directory),
            links: self.make(client, ROOT, "links", NewKind::Directory),
            files: self.make(client, ROOT, "files", NewKind::Directory),
            log: self.make(client, ROOT, "log", NewKind::File),
            token: self.make(client, ROOT, "token", NewKind::File),
            ..Ground::default()
        };
        for register in 0..REGISTERS {
            let ino = self.make(client, ROOT, &format!("register{register}"), NewKind::File);
            let bytes = bytes::Bytes::from_static(&[0; 8]);
            self.call(client, Call::Write { ino, at: WriteAt::Offset(0), bytes, kill_privileges: false }).expect("a write to a new file");
            ground.registers[register] = ino;
        }
        let plan = &self.plan;
        let actors = (plan.clients, plan.actors_per_client);
        let mut workload = Workload::new(plan.seed, ground, actors, plan.write_max, plan.mounts);
        workload.tight = plan.is_tight();
        self.workload = Some(workload);
        (1..self.plan.clients).for_each(|other| _ = self.start_client(other));
        client
    }

    /// Phase 1: work while faults come and go.
    fn work(&mut self) {
        self.working = true;
        self.world.let_clocks_step();
        for index in 0..self.plan.faults.len() {
            let at = self.plan.faults[index].0;
            self.alarm(at, Alarm::Begin(index));
        }
        for actor in 0..self.workload.as_ref().map_or(0, |workload| workload.actors.len()) {
            self.alarm(10 * MILLISECOND, Alarm::Act(actor));
        }
        if self.plan.attrition {
            self.alarm(SECOND, Alarm::Attrition);
        }
        self.run_for(self.plan.length);
    }

    /// Phase 2: no more faults; everything must come right.
    fn heal(&mut self) {
        // Faults end by their own alarms; the longest takes less than this.
        self.run_for(10 * SECOND);
        self.working = false;
        // As long as any call may take, see `on_done`.
        let deadline = 3 * limits::OP_TIMEOUT.as_nanos() as u64 + 5 * SECOND;
        self.run_until(deadline, "answering every call", |run| {
            let busy = run.workload.as_ref().map_or(0, Workload::busy);
            (busy > 0).then(|| format!("{busy} calls wait"))
        });
        self.run_until(150 * SECOND, "coming to rest", |run| unrest(&run.world, &run.expected(true)));
        if self.plan.seed.is_multiple_of(16) && !self.killed_sessions.is_empty() {
            // Sooner or later dead sessions are given up, too.
            let patience = limits::SESSION_COURTESY.as_nanos() as u64 + 150 * SECOND;
            self.run_until(patience, "forgetting dead sessions", |run| unrest(&run.world, &run.expected(false)));
        }
        if self.plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Corrupt { .. })) {
            let patience = limits::SCRUB_CYCLE_MIN.as_nanos() as u64 * 2;
            self.run_until(patience, "finding bad copies", |run| bad_copy(&run.world));
            self.run_until(30 * SECOND, "coming to rest", |run| unrest(&run.world, &run.expected(true)));
        }
        self.checks.check_all_invariants(&self.world);
        let dead = &self.checks.dead;
        assert!(dead.len() <= 1 + self.attrition.gone, "no fault gave reason to declare {dead:?} dead");
    }

    /// Reads everything back through a client that knows nothing.
    fn audit(&mut self) {
        let reader = self.start_client(self.plan.clients);
        let Some(mut workload) = self.workload.take() else { return };
        for (check, call) in workload.final_calls() {
            let result = self.call(reader, call);
            workload.on_final(&check, result);
        }
        workload.check_histories();
        self.workload = Some(workload);
        self.fsck(reader);
    }

    /// A check of everything finds nothing wrong, but for copies that fit nowhere.
    fn fsck(&mut self, client: Pid) {
        let mut report = fsck::run(&mut Probing { run: self, client }, Duration::from_secs(20)).expect("the leader answers");
        if self.plan.is_tight() && report.short_left == stuck(&self.world, self.plan.replicas.into()) {
            report.short_left = 0;
        }
        assert!(report.is_clean() && report.moving == 0, "fsck is not clean: {report:?}");
        assert!(report.missing == 0, "fsck: copies are not where they should be: {report:?}");
    }

    pub fn whole(&mut self) -> Report {
        self.form();
        self.prepare();
        self.work();
        self.heal();
        self.audit();
        Report {
            trace: self.world.trace,
            stats: self.workload.as_ref().map(|workload| workload.stats).unwrap_or_default(),
            frames: self.world.frames,
            virtual_seconds: self.world.now / SECOND,
            declared_dead: self.checks.dead.len(),
            worn_out: self.attrition.gone,
            early: self.attrition.early,
            left: self.attrition.left,
            drained: self.attrition.drained,
        }
    }
}

/// A check by way of a client of the simulation.
struct Probing<'a> {
    run: &'a mut Run,
    client: Pid,
}

impl fsck::Probe for Probing<'_> {
    fn map(&mut self) -> Result<ClusterMap, Status> {
        match self.run.call(self.client, Call::Map)? {
            Reply::Map(map) => Ok(map),
            other => panic!("the map was asked for, and {other:?} answered"),
        }
    }

    fn check(&mut self, node: Option<NodeId>, check: Check) -> Result<Checked, Status> {
        match self.run.call(self.client, Call::Check { node, check })? {
            Reply::Checked(checked) => Ok(checked),
            other => panic!("a check was asked for, and {other:?} answered"),
        }
    }

    fn pause(&mut self, length: Duration) {
        self.run.run_for(length.as_nanos() as u64);
    }
}

fn pairs(from: &[Host], to: &[Host], both: bool) -> Vec<(Host, Host)> {
    // Nobody is cut off from itself.
    let there = from.iter().flat_map(|&from| to.iter().map(move |&to| (from, to)));
    let back = from.iter().flat_map(|&from| to.iter().map(move |&to| (to, from))).filter(|_| both);
    there.chain(back).filter(|(from, to)| from != to).collect()
}

thread_local! {
    /// The message of the panic that ended a simulation, kept here instead of printed.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

fn catch_panics_quietly() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with(|quiet| *quiet.borrow()) {
                LAST_PANIC.with(|last| *last.borrow_mut() = Some(info.to_string()));
            } else {
                usual(info);
            }
        }));
    });
}

/// Does something that may panic; the panic's message is the error.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_panics_quietly();
    QUIET.with(|quiet| *quiet.borrow_mut() = true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.with(|quiet| *quiet.borrow_mut() = false);
    result.map_err(|_| LAST_PANIC.with(|last| last.borrow_mut().take()).unwrap_or_else(|| "a panic without a message".into()))
}

/// Runs one seed with a bug planted in its clients and mounts.
pub fn run_client_seed(seed: u64, sabotage: dfs::client::Sabotage) -> Result<Report, String> {
    caught(|| {
        let mut run = Run::new(Plan::draw(seed), None);
        run.world.sabotage = Some(sabotage);
        run.whole()
    })
}

/// Runs one seed; the error says what went wrong.
pub fn run_seed(seed: u64, sabotage: Option<Sabotage>) -> Result<Report, String> {
    caught(|| Run::new(Plan::draw(seed), sabotage).whole())
}
