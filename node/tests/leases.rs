//! Rights and recalls as a leader gives and takes them: one node, fed by hand with what several sessions send.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use dfs::limits;
use dfs::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{
    Address, Attributes, ChunkHash, Cookie, InodeId, Instance, Name, ROOT, RequestNumber, Rights, SessionId, Term, Timestamp,
};
use dfs::wire::message::{Body, Failure, Grant, Notice, Recall, Request, Response};
use dfs::wire::namespace::{Answer, Behind, ChunkClaim, NewKind, Op, Patch, Query, Replied, SetAttributes, Source, WriteAt};
use dfs_node::node::{Node, NodeConfig, NodeOutput, Start};

const A: u64 = 0xa;
const B: u64 = 0xb;
const C: u64 = 0xc;

/// A lone leader and what it sent to each session.
struct Leader {
    node: Node,
    now: Time,
    links: BTreeMap<u64, LinkId>,
    next_link: u64,
    next_request: u64,
    numbers: BTreeMap<u64, u64>,
    /// Answers by session and request.
    answers: BTreeMap<(u64, u64), Result<Response, Failure>>,
    /// Notices of recalls, oldest first.
    recalls: BTreeMap<u64, Vec<(Term, u64, Vec<Recall>)>>,
    /// How often each was asked for what it has reserved.
    asked: BTreeMap<u64, u32>,
    messages: usize,
}

impl Leader {
    /// With these sessions, which cache.
    fn with(sessions: &[u64]) -> Leader {
        let address = Address::Tcp { host: "n".into(), port: 1 };
        let start = Start::Bootstrap { replicas: 1 };
        let config = NodeConfig { address, memory: 64 << 20, rate: None, zone: String::new(), start, id: None, sabotage: None };
        let now = Time(1_000_000_000);
        let mut leader = Leader {
            node: Node::new(config, now, Timestamp { seconds: 1_000, nanos: 0 }, 7),
            now,
            links: BTreeMap::new(),
            next_link: LinkId::INCOMING,
            next_request: 0,
            numbers: BTreeMap::new(),
            answers: BTreeMap::new(),
            recalls: BTreeMap::new(),
            asked: BTreeMap::new(),
            messages: 0,
        };
        leader.pass(Duration::from_secs(1));
        assert!(leader.node.is_ready());
        for &session in sessions {
            leader.connect(session);
            let opened = leader.ask(session, Request::OpenSession { caches: true }).unwrap();
            assert!(matches!(opened, Response::Renewed { era: 1, .. }), "{opened:?}");
        }
        leader
    }

    fn wall(&self) -> Timestamp {
        Timestamp { seconds: 1_000 + (self.now.0 / 1_000_000_000) as i64, nanos: 0 }
    }

    fn connect(&mut self, session: u64) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.links.insert(session, link);
        let peer = Hello { cluster: Default::default(), role: Role::Client, sender: session, lane: Lane::Control, expect: None };
        self.feed(LinkEvent::Up { link, peer });
    }

    fn disconnect(&mut self, session: u64) {
        let link = self.links.remove(&session).expect("connected");
        self.feed(LinkEvent::Down { link, reason: Status::Disconnected, found: None });
    }

    fn feed(&mut self, event: LinkEvent) {
        let wall = self.wall();
        self.node.handle(self.now, wall, event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            let NodeOutput::Link(LinkAction::Send { link, frame }) = output else { continue };
            let Some(session) = self.links.iter().find(|(_, known)| **known == link).map(|(session, _)| *session) else { continue };
            self.messages += 1;
            match frame.body {
                Body::Response(response) => _ = self.answers.insert((session, frame.request), response),
                Body::Notice(Notice::Recall { term, number, items }) => {
                    self.recalls.entry(session).or_default().push((term, number, items));
                }
                Body::Notice(Notice::SpaceShort) => *self.asked.entry(session).or_default() += 1,
                _ => {}
            }
        }
        self.node.check_invariants();
    }

    /// Lets time pass in steps that no leader takes for a pause of its own; nobody renews.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(50)).min(end);
            let wall = self.wall();
            self.node.on_deadline(self.now, wall);
            self.drain();
        }
    }

    /// The same while these sessions renew.
    fn pass_alive(&mut self, duration: Duration, sessions: &[u64]) {
        let end = self.now + duration;
        while self.now < end {
            sessions.iter().for_each(|&session| _ = self.renew(session));
            self.pass(Duration::from_millis(500).min(end.since(self.now)));
        }
    }

    fn send(&mut self, session: u64, request: Request) -> u64 {
        self.next_request += 1;
        let frame = Frame { request: self.next_request, body: Body::Request(request), payload: Bytes::new() };
        let link = self.links[&session];
        self.feed(LinkEvent::Received { link, frame });
        self.next_request
    }

    fn answer(&mut self, session: u64, request: u64) -> Option<Result<Response, Status>> {
        self.answers.remove(&(session, request)).map(|answer| answer.map_err(|failure| failure.status))
    }

    fn ask(&mut self, session: u64, request: Request) -> Result<Response, Status> {
        let text = format!("{request:?}");
        let request = self.send(session, request);
        self.answer(session, request).unwrap_or_else(|| panic!("{session:x} waits: {text}"))
    }

    fn renew(&mut self, session: u64) -> Result<u64, Status> {
        self.renew_flushing(session, Term(0), Vec::new())
    }

    /// The same by a session that says that it is busy obeying recalls of that term.
    fn renew_flushing(&mut self, session: u64, term: Term, flushing: Vec<u64>) -> Result<u64, Status> {
        match self.ask(session, Request::Renew { answered_below: RequestNumber(1), uploads_from: 1, term, flushing })? {
            Response::Renewed { era, .. } => Ok(era),
            other => panic!("{other:?}"),
        }
    }

    fn namespace(&mut self, session: u64, op: Op) -> Request {
        let number = self.numbers.entry(session).or_default();
        *number += 1;
        Request::Namespace { number: RequestNumber(*number), answered_below: RequestNumber(1), uploads_from: 1, op }
    }

    fn start(&mut self, session: u64, op: Op) -> u64 {
        let request = self.namespace(session, op);
        self.send(session, request)
    }

    fn op(&mut self, session: u64, op: Op) -> Result<(Replied, Vec<Grant>), Status> {
        let request = self.namespace(session, op);
        self.ask(session, request).map(replied)
    }

    fn query(&mut self, session: u64, query: Query) -> Result<(Answer, Vec<Grant>), Status> {
        self.ask(session, Request::Query(query)).map(answered)
    }

    fn create(&mut self, session: u64, text: &str, write: bool) -> Attributes {
        match self.op(session, create(text, write)).unwrap() {
            (Replied::Entry { attributes, created: true, writer }, _) if writer == write => attributes,
            other => panic!("{other:?}"),
        }
    }

    /// The recalls that the session has been sent since it was last asked for.
    fn recalls(&mut self, session: u64) -> Vec<Recall> {
        self.recalls.get(&session).into_iter().flatten().flat_map(|(_, _, items)| items.clone()).collect()
    }

    /// The session obeys everything that it was sent.
    fn obey(&mut self, session: u64) {
        for (term, number, _) in self.recalls.remove(&session).unwrap_or_default() {
            assert_eq!(self.ask(session, Request::Recalled { term, number }), Ok(Response::Done));
        }
    }
}

fn replied(response: Response) -> (Replied, Vec<Grant>) {
    match response {
        Response::Replied { replied, grants, .. } => (replied, grants),
        other => panic!("{other:?}"),
    }
}

fn answered(response: Response) -> (Answer, Vec<Grant>) {
    match response {
        Response::Answered { answer, grants, .. } => (answer, grants),
        other => panic!("{other:?}"),
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn create(text: &str, write: bool) -> Op {
    Op::Create {
        parent: ROOT,
        name: name(text),
        kind: NewKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        exclusive: true,
        hold: false,
        write,
        umask: 0,
    }
}

fn unlink(text: &str) -> Op {
    Op::Unlink { parent: ROOT, name: name(text) }
}

fn lookup(text: &str) -> Query {
    Query::Lookup { parent: ROOT, name: name(text) }
}

fn chmod(ino: InodeId, mode: u16) -> Op {
    Op::SetAttributes { ino, set: SetAttributes { mode: Some(mode), ..SetAttributes::default() } }
}

fn write(ino: InodeId, text: &str, behind: Option<Behind>) -> Op {
    let source = Source::Inline(Bytes::copy_from_slice(text.as_bytes()));
    let patches = vec![Patch { at: WriteAt::Offset(0), length: text.len() as u64, source }];
    Op::Write { ino, patches, chunks: Vec::new(), kill_privileges: false, behind }
}

/// Claims a chunk of a MiB, different ones for different counters.
fn write_chunk(leader: &Leader, session: u64, ino: InodeId, counter: u64, behind: Option<Behind>) -> Op {
    let (hash, length) = (ChunkHash::of(&counter.to_le_bytes()), 1 << 20);
    let instance = Instance { session: SessionId(session), counter };
    let chunks = vec![ChunkClaim { hash, length, instance, receipts: vec![leader.node.id()] }];
    let patches = vec![Patch { at: WriteAt::Offset(counter << 20), length: u64::from(length), source: Source::Chunk { hash, offset: 0 } }];
    Op::Write { ino, patches, chunks, kill_privileges: false, behind }
}

fn grant(ino: InodeId, rights: Rights) -> Grant {
    Grant { ino, rights }
}

#[test]
fn answers_grant_and_nobody_is_recalled_without_need() {
    let mut leader = Leader::with(&[A, B]);
    let (_, grants) = leader.query(B, lookup("x")).unwrap();
    assert_eq!(grants, [grant(ROOT, Rights::NAMES)], "an absent name may be cached as well");
    let before = leader.messages;
    let file = leader.create(B, "x", false);
    assert_eq!(leader.messages - before, 1, "own rights are in nobody's way");
    let (_, grants) = leader.query(A, lookup("x")).unwrap();
    assert_eq!(grants, [grant(ROOT, Rights::NAMES), grant(file.ino, Rights::READ)]);
    let (answer, grants) = leader.query(A, Query::ReadDirectory { ino: ROOT, after: Cookie(0), limit: 10 }).unwrap();
    assert_eq!(grants, [grant(ROOT, Rights::NAMES.with(Rights::READ)), grant(file.ino, Rights::READ)]);
    assert!(matches!(answer, Answer::Directory { entries, .. } if entries[0].current));
    assert!(leader.recalls.is_empty());
}

#[test]
fn a_change_waits_until_whoever_caches_has_obeyed() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", false);
    leader.query(B, lookup("x")).unwrap();
    let before = leader.messages;
    let request = leader.start(A, chmod(file.ino, 0o600));
    assert_eq!(leader.answer(A, request), None);
    assert_eq!(leader.recalls(B), [Recall::Inode { ino: file.ino, keep: Rights::NONE }]);
    // Nothing is granted on it meanwhile, and what is answered is the old state.
    let (answer, grants) = leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    assert!(matches!(answer, Answer::Attributes(seen) if seen.mode == 0o644) && grants.is_empty());
    leader.obey(B);
    assert!(matches!(leader.answer(A, request), Some(Ok(Response::Replied { .. }))));
    assert_eq!(leader.messages - before, 4, "a notice and the answer to its obeying, beside the answers to query and change");
    let (answer, grants) = leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    assert!(matches!(answer, Answer::Attributes(seen) if seen.mode == 0o600));
    assert_eq!(grants, [grant(file.ino, Rights::READ)]);
}

#[test]
fn a_lost_recall_is_said_again_and_a_double_or_foreign_obedience_is_nothing() {
    let mut leader = Leader::with(&[A, B, C]);
    let file = leader.create(A, "x", false);
    leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    leader.disconnect(B);
    let request = leader.start(A, chmod(file.ino, 0o600));
    assert!(leader.recalls(B).is_empty());
    leader.connect(B);
    let (term, number, _) = leader.recalls[&B][0].clone();
    leader.pass_alive(2 * limits::RECALL_RESEND, &[B]);
    assert!(leader.recalls[&B].len() >= 2, "said again");
    leader.ask(C, Request::Recalled { term, number }).unwrap();
    leader.ask(B, Request::Recalled { term: Term(term.0 + 1), number }).unwrap();
    leader.ask(B, Request::Recalled { term, number: number + 1 }).unwrap();
    assert_eq!(leader.answer(A, request), None);
    leader.obey(B);
    assert!(leader.answer(A, request).is_some());
}

#[test]
fn a_new_name_is_told_to_those_who_know_the_directory() {
    let mut leader = Leader::with(&[A, B]);
    leader.query(B, lookup("y")).unwrap();
    leader.query(B, Query::Attributes { ino: ROOT }).unwrap();
    let request = leader.start(A, create("x", false));
    assert_eq!(leader.recalls(B), [Recall::Name { directory: ROOT, name: name("x") }]);
    let (_, grants) = leader.query(B, lookup("x")).unwrap();
    assert!(grants.is_empty(), "the directory is closed");
    leader.obey(B);
    assert!(leader.answer(A, request).is_some());
    // The right to the other names stays, that to the attributes went.
    let other = leader.start(A, create("z", false));
    assert_eq!(leader.recalls(B), [Recall::Name { directory: ROOT, name: name("z") }]);
    leader.obey(B);
    assert!(leader.answer(A, other).is_some());
    let change = leader.start(A, chmod(ROOT, 0o700));
    assert!(leader.answer(A, change).is_some(), "attributes were given back with the name");
}

#[test]
fn who_never_asks_again_is_told_no_more_names() {
    let mut leader = Leader::with(&[A, B]);
    leader.query(B, lookup("y")).unwrap();
    for index in 0..limits::NAME_NOTICES_MAX {
        let request = leader.start(A, create(&format!("f{index}"), false));
        leader.obey(B);
        assert!(leader.answer(A, request).is_some());
    }
    leader.start(A, create("last", false));
    assert_eq!(leader.recalls(B), [Recall::Inode { ino: ROOT, keep: Rights::NONE }]);
    leader.obey(B);
    leader.create(A, "free", false);
}

#[test]
fn a_look_waits_for_whoever_writes_alone() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    let (answer, grants) = leader.query(B, Query::ReadDirectory { ino: ROOT, after: Cookie(0), limit: 10 }).unwrap();
    assert!(matches!(answer, Answer::Directory { entries, .. } if !entries[0].current), "a listing does not wait");
    assert_eq!(grants, [grant(ROOT, Rights::NAMES.with(Rights::READ))]);
    let request = leader.send(B, Request::Query(lookup("x")));
    assert_eq!(leader.recalls(A), [Recall::Inode { ino: file.ino, keep: Rights::READ }]);
    // To say so is not enough: the log must know it.
    leader.recalls(A);
    let (term, number, _) = leader.recalls[&A][0].clone();
    leader.ask(A, Request::Recalled { term, number }).unwrap();
    assert_eq!(leader.answer(B, request), None);
    let written = Timestamp { seconds: 2_000_000, nanos: 5 };
    leader.op(A, write(file.ino, "text", Some(Behind { written, yields: true }))).unwrap();
    leader.obey(A);
    let Some(Ok(response)) = leader.answer(B, request) else { panic!("still waits") };
    let (Answer::Attributes(seen), grants) = answered(response) else { panic!("no attributes") };
    assert_eq!((seen.size, seen.mtime, seen.ctime), (4, written, written));
    assert!(grants.contains(&grant(file.ino, Rights::READ)));
    assert_eq!(leader.op(A, write(file.ino, "late", Some(Behind { written, yields: false }))), Err(Status::RightLost));
}

#[test]
fn writing_alone_is_given_when_nobody_is_in_the_way() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", false);
    leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    let request = leader.start(A, Op::Acquire { ino: file.ino });
    assert_eq!(leader.recalls(B), [Recall::Inode { ino: file.ino, keep: Rights::NONE }]);
    let change = leader.start(B, chmod(file.ino, 0o600));
    assert_eq!(leader.answer(B, change), None, "another's change waits until it is decided");
    leader.obey(B);
    let Some(Ok(Response::Replied { replied: Replied::Acquired { granted: true, .. }, .. })) = leader.answer(A, request) else {
        panic!("not granted")
    };
    assert_eq!(leader.recalls(A), [Recall::Inode { ino: file.ino, keep: Rights::NONE }], "and then takes it back");
    let (refused, _) = leader.op(A, Op::Acquire { ino: file.ino }).unwrap();
    assert!(matches!(refused, Replied::Acquired { granted: false, .. }), "not while it is being recalled");
    leader.op(A, Op::Yield { ino: file.ino }).unwrap();
    leader.obey(A);
    assert!(leader.answer(B, change).is_some());
    leader.query(B, Query::Hold { ino: file.ino, sequence: 1 }).unwrap();
    let (refused, grants) = leader.op(A, Op::Acquire { ino: file.ino }).unwrap();
    assert!(matches!(refused, Replied::Acquired { granted: false, .. }) && grants.is_empty(), "another has it open");
}

#[test]
fn a_retry_takes_the_place_of_the_first_attempt() {
    let mut leader = Leader::with(&[A, B]);
    leader.query(B, lookup("x")).unwrap();
    let request = leader.namespace(A, create("x", false));
    let first = leader.send(A, request.clone());
    let entries = leader.node.namespace().applied();
    let second = leader.send(A, request.clone());
    leader.obey(B);
    assert_eq!(leader.answer(A, first), None);
    let (_, grants) = replied(leader.answer(A, second).expect("answered").unwrap());
    assert!(!grants.is_empty());
    assert_eq!(leader.node.namespace().applied() - entries, 1, "one entry");
    // Later ones are answered as the first was, and grant nothing: the file may have changed.
    let (again, grants) = leader.ask(A, request).map(replied).unwrap();
    assert!(matches!(again, Replied::Entry { created: true, .. }) && grants.is_empty());
}

#[test]
fn operations_on_one_name_queue_and_others_do_not() {
    let mut leader = Leader::with(&[A, B, C]);
    leader.query(B, lookup("x")).unwrap();
    let made = leader.start(A, create("x", false));
    let gone = leader.start(C, unlink("x"));
    assert_eq!(leader.recalls(B).len(), 1, "the second does not recall before its turn");
    let other = leader.start(C, create("other", false));
    assert_eq!(leader.recalls(B).len(), 2);
    leader.obey(B);
    leader.obey(B);
    // What the first one made was granted to its session.
    leader.obey(A);
    leader.obey(B);
    for (session, request) in [(A, made), (C, gone), (C, other)] {
        assert!(matches!(leader.answer(session, request), Some(Ok(_))), "{session:x}");
    }
}

#[test]
fn a_silent_session_is_waited_for_no_longer_than_its_lease() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", false);
    leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    let request = leader.start(A, chmod(file.ino, 0o600));
    leader.pass_alive(limits::SESSION_LEASE, &[A]);
    assert_eq!(leader.answer(A, request), None);
    leader.pass_alive(Duration::from_secs(1), &[A]);
    assert!(leader.answer(A, request).is_some());
    assert_eq!(leader.renew(B), Ok(2), "it comes back and learns that what it had is void");
    let (_, grants) = leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    assert_eq!(grants, [grant(file.ino, Rights::READ)]);
}

#[test]
fn a_silent_writer_is_evicted() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    let request = leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    leader.pass_alive(limits::SESSION_LEASE + Duration::from_secs(1), &[B]);
    assert!(leader.answer(B, request).is_some());
    assert_eq!(leader.renew(A), Err(Status::SessionGone));
    assert_eq!(leader.node.namespace().writer(file.ino), None);
}

#[test]
fn a_session_that_renews_but_does_not_obey_runs_out() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", false);
    leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    let request = leader.start(A, chmod(file.ino, 0o600));
    leader.pass_alive(limits::SESSION_LEASE, &[A, B]);
    assert_eq!(leader.answer(A, request), None);
    leader.pass_alive(limits::SESSION_LEASE + Duration::from_millis(1_200), &[A, B]);
    assert!(leader.answer(A, request).is_some(), "within the operation deadline");
    assert!(leader.renew(B).is_ok_and(|era| era == 2));
}

#[test]
fn a_flush_that_goes_on_is_waited_for() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    for _ in 0..6 {
        leader.pass_alive(Duration::from_secs(2), &[A, B]);
        let behind = Behind { written: Timestamp::default(), yields: false };
        leader.op(A, write(file.ino, "text", Some(behind))).unwrap();
    }
    let request = leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    assert_eq!(leader.answer(B, request), None);
    leader.op(A, Op::Yield { ino: file.ino }).unwrap();
    leader.obey(A);
    assert!(leader.answer(B, request).is_some());
}

#[test]
fn a_session_that_says_that_it_commits_is_waited_for_and_not_for_ever() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    let (term, number, _) = leader.recalls[&A][0];
    let said = |leader: &mut Leader, duration: Duration, term: Term, number: u64| {
        let end = leader.now + duration;
        while leader.now < end && leader.renew_flushing(A, term, vec![number]).is_ok() {
            _ = leader.renew(B);
            leader.pass(Duration::from_millis(500));
        }
    };
    said(&mut leader, limits::FLUSH_PATIENCE, term, number);
    assert_eq!(leader.node.namespace().writer(file.ino), Some(SessionId(A)), "an upload may take long");
    let behind = Behind { written: Timestamp::default(), yields: false };
    leader.op(A, write(file.ino, "text", Some(behind))).unwrap();
    said(&mut leader, limits::FLUSH_PATIENCE, term, number);
    assert_eq!(leader.node.namespace().writer(file.ino), Some(SessionId(A)), "it has committed something");
    // Words of another term or about another recall are none, and without a commit the right one wears out, too.
    said(&mut leader, 3 * limits::SESSION_LEASE, term, number);
    assert_eq!(leader.node.namespace().writer(file.ino), None);
    assert_eq!(leader.renew(A), Err(Status::SessionGone));

    for (told, named) in [(Term(term.0 + 1), 1), (term, 7)] {
        let mut leader = Leader::with(&[A, B]);
        let file = leader.create(A, "x", true);
        leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
        said(&mut leader, 3 * limits::SESSION_LEASE, told, named);
        assert_eq!(leader.node.namespace().writer(file.ino), None, "{told:?} {named}");
    }
}

#[test]
fn who_looked_is_told_to_ask_again_while_a_recall_goes_on() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    let look = leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    let (term, number, _) = leader.recalls[&A][0];
    let end = leader.now + limits::OP_TIMEOUT + Duration::from_secs(1);
    while leader.now < end {
        assert!(leader.renew_flushing(A, term, vec![number]).is_ok() && leader.renew(B).is_ok());
        leader.pass(Duration::from_millis(500));
    }
    assert!(matches!(leader.answer(B, look), Some(Err(Status::Unavailable))), "its asker has asked again, or given up");
    leader.op(A, Op::Yield { ino: file.ino }).unwrap();
    leader.obey(A);
    assert!(leader.query(B, Query::Attributes { ino: file.ino }).is_ok());
}

#[test]
fn contended_rights_are_not_given_for_a_while() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", false);
    let mut granted = 0;
    for mode in 0..limits::COOL_RECALLS {
        granted += leader.query(B, Query::Attributes { ino: file.ino }).unwrap().1.len();
        leader.start(A, chmod(file.ino, mode as u16));
        leader.obey(B);
    }
    assert_eq!(granted, limits::COOL_RECALLS as usize);
    assert!(leader.query(B, Query::Attributes { ino: file.ino }).unwrap().1.is_empty());
    leader.pass_alive(limits::COOL_TIME + Duration::from_millis(100), &[A, B]);
    assert_eq!(leader.query(B, Query::Attributes { ino: file.ino }).unwrap().1.len(), 1);
}

#[test]
fn the_end_of_a_session_is_obedience() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(B, "x", true);
    leader.query(B, Query::Attributes { ino: file.ino }).unwrap();
    let request = leader.start(A, chmod(file.ino, 0o600));
    assert_eq!(leader.answer(A, request), None);
    leader.ask(B, Request::EndSession).unwrap();
    assert!(leader.answer(A, request).is_some());
}

#[test]
fn commands_without_a_cache_are_given_nothing_and_recall_like_others() {
    let mut leader = Leader::with(&[B]);
    leader.connect(A);
    leader.ask(A, Request::OpenSession { caches: false }).unwrap();
    let (replied, grants) = leader.op(A, create("x", true)).unwrap();
    let Replied::Entry { attributes, writer: false, .. } = replied else { panic!("{replied:?}") };
    assert!(grants.is_empty());
    leader.query(B, lookup("x")).unwrap();
    let request = leader.start(A, unlink("x"));
    assert!(leader.recalls(B).contains(&Recall::Inode { ino: attributes.ino, keep: Rights::NONE }));
    leader.obey(B);
    assert!(leader.answer(A, request).is_some());
}

#[test]
fn what_is_reserved_is_kept_from_others() {
    let mut leader = Leader::with(&[A, B]);
    let reserve = |leader: &mut Leader, session, bytes| match leader.op(session, Op::Reserve { bytes }).unwrap().0 {
        Replied::Reserved { bytes } => bytes,
        other => panic!("{other:?}"),
    };
    let all = reserve(&mut leader, A, u64::MAX);
    assert!(all > 32 << 20);
    assert_eq!(reserve(&mut leader, B, 1 << 20), 0);
    let Answer::Space(space) = leader.query(B, Query::Space).unwrap().0 else { panic!("no sizes") };
    assert!(space.available > all - (2 << 20), "who has reserved it is asked for it before anybody is refused: df counts it as free");
    assert_eq!(reserve(&mut leader, A, 1 << 20), 1 << 20);
    assert_eq!(reserve(&mut leader, B, 1 << 20), 1 << 20);
    leader.ask(A, Request::EndSession).unwrap();
    assert!(reserve(&mut leader, B, u64::MAX) > all - (2 << 20));
}

#[test]
fn commits_of_what_is_reserved_never_meet_a_full_cluster() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    let other = leader.create(B, "y", false);
    let reserve = |leader: &mut Leader, session, bytes| leader.op(session, Op::Reserve { bytes }).unwrap().0;
    let Replied::Reserved { bytes: all } = reserve(&mut leader, A, u64::MAX) else { panic!("no room told") };
    let behind = Some(Behind { written: Timestamp::default(), yields: false });
    let op = write_chunk(&leader, A, file.ino, 1, behind);
    leader.op(A, op).unwrap();
    let Replied::Reserved { bytes: left } = reserve(&mut leader, A, all) else { panic!("no room told") };
    assert!(left <= all - (1 << 20), "what is stored is no longer reserved");
    // Another one, who has reserved nothing, is told to wait while the first one is asked, and then that there is no space.
    let op = write_chunk(&leader, B, other.ino, 2, None);
    assert_eq!(leader.op(B, op), Err(Status::Reclaiming));
    assert_eq!((leader.asked.contains_key(&A), leader.asked.get(&B)), (true, None));
    leader.pass_alive(limits::SPACE_ASK_TIME, &[A, B]);
    let op = write_chunk(&leader, B, other.ino, 3, None);
    assert_eq!(leader.op(B, op), Err(Status::NoSpace));
    reserve(&mut leader, A, 0);
    let op = write_chunk(&leader, B, other.ino, 4, None);
    leader.op(B, op).unwrap();
}

/// Names are nobody's reservation: whoever wants one and has reserved all the rest is asked to give back what it does not need.
#[test]
fn a_session_that_has_reserved_everything_still_makes_names() {
    let mut leader = Leader::with(&[A]);
    let Replied::Reserved { bytes } = leader.op(A, Op::Reserve { bytes: u64::MAX }).unwrap().0 else { panic!("no room told") };
    let long = |index: u64| {
        let mut op = create(&index.to_string(), false);
        if let Op::Create { kind, .. } = &mut op {
            *kind = NewKind::Symlink { target: vec![b'x'; 4000] };
        }
        op
    };
    let refused = (0..).find_map(|index| leader.op(A, long(index)).err());
    assert_eq!((refused, leader.asked.get(&A)), (Some(Status::Reclaiming), Some(&1)));
    leader.op(A, Op::Reserve { bytes: bytes / 2 }).unwrap();
    leader.op(A, long(1 << 40)).unwrap();
}

#[test]
fn a_grant_is_given_only_where_a_recall_follows_it() {
    let mut leader = Leader::with(&[A, B]);
    let file = leader.create(A, "x", true);
    let old = leader.links[&B];
    leader.send(B, Request::Query(Query::Attributes { ino: file.ino }));
    leader.connect(B);
    leader.renew(B).unwrap();
    // The query came over the old link, which is still up; recalls go over the new one now.
    leader.op(A, Op::Yield { ino: file.ino }).unwrap();
    leader.links.insert(B, old);
    leader.obey(A);
    let answers: Vec<_> = leader.answers.values().cloned().collect();
    assert!(matches!(&answers[..], [Ok(Response::Answered { grants, .. })] if grants.is_empty()), "{answers:?}");
}
