//! A few nodes under virtual time on a network of a hundred lines, and two clients that ask.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use dfs::limits;
use dfs::link::{Hello, LinkAction, LinkEvent, LinkId, Role};
use dfs::links::{Links, LinksOutput, Peer, Ticket};
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Address, InodeId, Name, ROOT, RequestNumber, Rights, Term, Timestamp};
use dfs::wire::handshake;
use dfs::wire::message::{Failure, Notice, Request, Response};
use dfs::wire::namespace::{Answer, NewKind, Op, Query, Replied};
use dfs_node::node::{Node, NodeConfig, NodeOutput, Start};

pub const DELAY: Duration = Duration::from_millis(1);
/// What each node lends.
pub const MEMORY: u64 = 64 << 20;

pub fn address(port: u16) -> Address {
    Address::Tcp { host: "n".into(), port }
}

/// One end of a connection: who, and under which name.
pub type End = (u16, LinkId);

/// The nodes that run, what is under way between them, and what the clients were told.
pub struct World {
    pub now: Time,
    pub sequence: u64,
    pub queue: BTreeMap<(Time, u64), (u16, LinkEvent)>,
    pub nodes: BTreeMap<u16, (Node, Hello)>,
    pub paused: Option<u16>,
    pub clients: BTreeMap<u16, Links>,
    /// The client that asks.
    pub speaker: u16,
    /// Recalls that clients were sent: by whom, term, number.
    pub recalls: Vec<(u16, Term, u64)>,
    pub answers: BTreeMap<(u16, Ticket), Result<(Response, Bytes), Failure>>,
    pub pairs: BTreeMap<End, End>,
    pub next_incoming: u64,
    pub number: u64,
    pub seed: u64,
    /// Seconds by which wall clocks are wrong.
    pub wrong_by: BTreeMap<u16, i64>,
}

/// The ports under which the test's clients appear in events.
pub const CLIENT: u16 = 0;
pub const OTHER: u16 = 100;
pub const SESSION: u64 = 77;

impl World {
    /// Nobody but two clients.
    pub fn new(seed: u64) -> Self {
        World {
            now: Time(1_000_000_000),
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: BTreeMap::new(),
            paused: None,
            clients: [CLIENT, OTHER]
                .map(|port| (port, Links::new(Role::Client, SESSION + u64::from(port), Random::new(seed + u64::from(port)))))
                .into(),
            speaker: CLIENT,
            recalls: Vec::new(),
            answers: BTreeMap::new(),
            pairs: BTreeMap::new(),
            next_incoming: LinkId::INCOMING,
            number: 0,
            seed,
            wrong_by: BTreeMap::new(),
        }
    }

    /// A client with a session of its own, by that name.
    pub fn meet(&mut self, port: u16, session: u64) {
        let session = SESSION + session + u64::from(port);
        self.clients.insert(port, Links::new(Role::Client, session, Random::new(self.seed + u64::from(port))));
    }

    /// What a right clock shows.
    pub fn true_wall(&self) -> i64 {
        1_000_000 + (self.now.0 / 1_000_000_000) as i64
    }

    fn wall(&self, port: u16) -> Timestamp {
        Timestamp { seconds: self.true_wall() + self.wrong_by.get(&port).copied().unwrap_or(0), nanos: 0 }
    }

    pub fn start(&mut self, port: u16, start: Start) {
        self.seed += 1;
        let config =
            NodeConfig { address: address(port), memory: MEMORY, rate: None, zone: String::new(), start, id: None, sabotage: None };
        let node = Node::new(config, self.now, self.wall(port), self.seed * 7919);
        let hello =
            Hello { cluster: Default::default(), role: Role::Node, sender: node.id().0, lane: dfs::link::Lane::Control, expect: None };
        self.nodes.insert(port, (node, hello));
        self.drain(port);
    }

    pub fn join(&mut self, port: u16, to: &[u16]) {
        self.start(port, Start::Join(to.iter().map(|&port| address(port)).collect()));
    }

    /// Three ready nodes, a session of the client.
    pub fn three(seed: u64) -> Self {
        let mut world = World::new(seed);
        world.start(1, Start::Bootstrap { replicas: 2 });
        world.join(2, &[1]);
        world.join(3, &[2, 1]);
        world.until("three ready nodes", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
        assert!(world.nodes.values().all(|(node, _)| node.map().voters.len() == 3));
        world.ask(Request::OpenSession { caches: false }).unwrap();
        world
    }

    pub fn kill(&mut self, port: u16) {
        self.nodes.remove(&port);
        let ends: Vec<(End, End)> = self.pairs.iter().filter(|(end, _)| end.0 == port).map(|(end, other)| (*end, *other)).collect();
        for (end, other) in ends {
            self.disconnect(end, other);
        }
    }

    pub fn disconnect(&mut self, end: End, other: End) {
        self.pairs.remove(&end);
        self.pairs.remove(&other);
        self.later(other.0, LinkEvent::Down { link: other.1, reason: Status::Disconnected, found: None });
    }

    pub fn later(&mut self, to: u16, event: LinkEvent) {
        self.sequence += 1;
        self.queue.insert((self.now + DELAY, self.sequence), (to, event));
    }

    pub fn act(&mut self, from: u16, action: LinkAction) {
        match action {
            LinkAction::Connect { link, address: Address::Tcp { port, .. }, hello } => self.connect(from, link, port, hello),
            LinkAction::Connect { .. } => unreachable!("the test uses ports only"),
            LinkAction::Send { link, frame } => {
                if let Some(&(to, link)) = self.pairs.get(&(from, link)) {
                    self.later(to, LinkEvent::Received { link, frame });
                }
            }
            LinkAction::Close { link } => {
                if let Some(&other) = self.pairs.get(&(from, link)) {
                    self.disconnect((from, link), other);
                }
            }
        }
    }

    pub fn connect(&mut self, from: u16, link: LinkId, port: u16, hello: Hello) {
        let down = |reason, found| LinkEvent::Down { link, reason, found };
        let Some((_, identity)) = self.nodes.get(&port) else { return self.later(from, down(Status::Disconnected, None)) };
        let answer = handshake::answer(identity, hello.lane);
        let accepted = handshake::check_dialler(identity, &hello);
        if let Err(mismatch) = handshake::check_accepter(&hello, &answer) {
            return self.later(from, down(mismatch.reason, mismatch.found));
        }
        if accepted.is_err() {
            return self.later(from, down(Status::Disconnected, None));
        }
        self.next_incoming += 1;
        let incoming = LinkId(self.next_incoming);
        self.pairs.insert((from, link), (port, incoming));
        self.pairs.insert((port, incoming), (from, link));
        self.later(port, LinkEvent::Up { link: incoming, peer: hello });
        self.later(from, LinkEvent::Up { link, peer: answer });
    }

    pub fn drain(&mut self, port: u16) {
        if let Some(client) = self.clients.get_mut(&port) {
            let mut actions = Vec::new();
            while let Some(action) = client.poll_action() {
                actions.push(action);
            }
            while let Some(output) = client.poll_output() {
                match output {
                    LinksOutput::Answered { ticket, response, payload, .. } => {
                        self.answers.insert((port, ticket), Ok((response, payload)));
                    }
                    LinksOutput::Failed { ticket, failure } => _ = self.answers.insert((port, ticket), Err(failure)),
                    LinksOutput::Noticed { notice: Notice::Recall { term, number, .. }, .. } => self.recalls.push((port, term, number)),
                    _ => {}
                }
            }
            return actions.into_iter().for_each(|action| self.act(port, action));
        }
        let mut actions = VecDeque::new();
        let Some((node, identity)) = self.nodes.get_mut(&port) else { return };
        let mut stopped = false;
        while let Some(output) = node.poll_output() {
            match output {
                NodeOutput::Link(action) => actions.push_back(action),
                NodeOutput::Identity(hello) => *identity = hello,
                NodeOutput::Ready { .. } => {}
                NodeOutput::Stopped { .. } => stopped = true,
            }
        }
        node.check_invariants();
        actions.into_iter().for_each(|action| self.act(port, action));
        if stopped {
            self.kill(port);
        }
    }

    /// One event or deadline, whichever is first.
    pub fn step(&mut self) {
        let wake = |world: &World, port: u16, node: &Node| if world.paused == Some(port) { Time::NEVER } else { node.next_deadline() };
        let deadline = self.nodes.iter().map(|(&port, (node, _))| (wake(self, port, node), port)).min().unwrap_or((Time::NEVER, 1));
        let clients = self.clients.iter().map(|(&port, client)| (client.next_deadline(), port)).min();
        let deadline = clients.map_or(deadline, |client| deadline.min(client));
        let arrival = self.queue.first_key_value().map_or(Time::NEVER, |(&(at, _), _)| at);
        if arrival <= deadline.0 {
            let (_, (to, event)) = self.queue.pop_first().expect("just seen");
            self.now = self.now.max(arrival);
            if self.paused == Some(to) {
                return self.later(to, event);
            }
            self.deliver(to, event);
            return self.drain(to);
        }
        self.now = self.now.max(deadline.0);
        let wall = self.wall(deadline.1);
        if let Some(client) = self.clients.get_mut(&deadline.1) {
            client.on_deadline(self.now);
        } else if let Some((node, _)) = self.nodes.get_mut(&deadline.1) {
            node.on_deadline(self.now, wall);
        }
        self.drain(deadline.1);
    }

    pub fn deliver(&mut self, to: u16, event: LinkEvent) {
        let wall = self.wall(to);
        if let Some(client) = self.clients.get_mut(&to) {
            client.on_event(self.now, event);
        } else if let Some((node, _)) = self.nodes.get_mut(&to) {
            node.handle(self.now, wall, event);
        }
    }

    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    pub fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now + Duration::from_secs(30);
        while !done(self) {
            assert!(self.now < end, "never came: {what}");
            self.step();
        }
    }

    pub fn leader(&self) -> Option<u16> {
        self.nodes.iter().filter(|(_, (node, _))| node.leads().is_some()).max_by_key(|(_, (node, _))| node.leads()).map(|(&port, _)| port)
    }

    pub fn ask_at(&mut self, port: u16, request: Request, payload: Bytes) -> Result<(Response, Bytes), Failure> {
        let peer = Peer { address: address(port), node: None };
        let speaker = self.speaker;
        let client = self.clients.get_mut(&speaker).expect("a client speaks");
        let ticket = client.request(self.now, &peer, request, payload, limits::ATTEMPT_TIMEOUT);
        self.drain(speaker);
        loop {
            if let Some(answer) = self.answers.remove(&(speaker, ticket)) {
                return answer;
            }
            self.step();
        }
    }

    /// Asks whoever leads until somebody answers for good.
    pub fn ask(&mut self, request: Request) -> Result<Response, Status> {
        let end = self.now + limits::OP_TIMEOUT;
        loop {
            assert!(self.now < end, "no answer within the operation deadline: {request:?}");
            let Some(port) = self.leader() else {
                self.run(Duration::from_millis(50));
                continue;
            };
            match self.ask_at(port, request.clone(), Bytes::new()) {
                Ok((response, _)) => return Ok(response),
                Err(failure) if failure.status.is_transient() => self.run(Duration::from_millis(50)),
                Err(failure) => return Err(failure.status),
            }
        }
    }

    pub fn request(&mut self, op: Op) -> Request {
        self.number += 1;
        let number = RequestNumber(self.number);
        Request::Namespace { number, answered_below: number, uploads_from: 1, op }
    }

    pub fn op(&mut self, op: Op) -> Result<Replied, Status> {
        let request = self.request(op);
        match self.ask(request)? {
            Response::Replied { replied, .. } => Ok(replied),
            other => panic!("{other:?}"),
        }
    }

    pub fn query(&mut self, query: Query) -> Result<Answer, Status> {
        match self.ask(Request::Query(query))? {
            Response::Answered { answer, .. } => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    /// Tells the leader all, as of so many terms ago.
    pub fn reclaim(&mut self, back: u64, held: &[InodeId], rights: &[(InodeId, Rights)]) {
        let term = Term(self.nodes[&self.leader().unwrap()].0.leads().unwrap().0 - back);
        self.query(Query::Reclaim { term, held: held.to_vec(), rights: rights.to_vec(), last: true }).unwrap();
    }

    pub fn create(&mut self, text: &str, hold: bool) -> InodeId {
        match self.op(create(text, hold)).unwrap() {
            Replied::Entry { attributes, created: true, .. } => attributes.ino,
            other => panic!("{other:?}"),
        }
    }

    pub fn lookup(&mut self, text: &str) -> Result<InodeId, Status> {
        match self.query(Query::Lookup { parent: ROOT, name: name(text) })? {
            Answer::Attributes(attributes) => Ok(attributes.ino),
            Answer::Absent => Err(Status::NotFound),
            other => panic!("{other:?}"),
        }
    }

    pub fn exists(&self, ino: InodeId) -> bool {
        self.leader().is_some_and(|leader| self.nodes[&leader].0.namespace().exists(ino))
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn create(text: &str, hold: bool) -> Op {
    Op::Create {
        parent: ROOT,
        name: name(text),
        kind: NewKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        exclusive: true,
        hold,
        write: false,
        umask: 0,
    }
}

/// Of a session that has given up all uploads below that counter, and owes the leader nothing.
pub fn renewal(uploads_from: u64) -> Request {
    Request::Renew { answered_below: RequestNumber(1), uploads_from, term: Term(0), flushing: Vec::new() }
}
