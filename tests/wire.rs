//! Two networks in one thread: frames round trip over every transport, unharmed and in order.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use dfs::net::Net;
use dfs::status::Status;
use dfs::types::{Address, ByteRange, ChunkHash, ClusterId, Epoch, InodeId, Instance, Name, NodeId, RequestNumber, SessionId, Term};
use dfs::wire::codec;
use dfs::wire::fsck::{Check, Checked, Flaw, Position, Rule, TablesSlice};
use dfs::wire::message::{Allegiance, Body, DebugAction, Notice, Request, Response, Standing};
use dfs::wire::namespace::{Op, Patch, Query, Source, WriteAt};

const CLUSTER: ClusterId = ClusterId(0xabcdef);
const SERVER: u64 = 11;
const CLIENT: u64 = 22;
/// Numbers of late variants, as they travel.
const DEBUG: &str = "18000000";
const CHECK: &str = "19000000";
const CHECKED: &str = "0e000000";

fn hello(sender: u64, lane: Lane) -> Hello {
    Hello { cluster: CLUSTER, role: Role::Node, sender, lane, expect: None }
}

fn tcp() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

fn unix(name: &str) -> Address {
    Address::Unix(std::env::temp_dir().join(format!("dfs-wire-{}-{name}", std::process::id())))
}

/// A server and a client, and what has happened to each.
struct Pair {
    server: Net,
    client: Net,
    address: Address,
    at_server: Vec<LinkEvent>,
    at_client: Vec<LinkEvent>,
}

impl Pair {
    fn new(address: &Address) -> Pair {
        let mut server = Net::new().unwrap();
        server.set_identity(hello(SERVER, Lane::Control));
        let address = server.listen(address).unwrap();
        Pair { server, client: Net::new().unwrap(), address, at_server: Vec::new(), at_client: Vec::new() }
    }

    fn turn(&mut self) {
        self.client.poll(Some(Duration::from_millis(1)), &mut self.at_client).unwrap();
        self.server.poll(Some(Duration::from_millis(1)), &mut self.at_server).unwrap();
    }

    /// Runs both until the condition holds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Pair) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{what} never happened: {:?} {:?}",
                self.at_client.len(),
                self.at_server.len()
            );
            self.turn();
        }
    }

    fn connect(&mut self, link: LinkId, hello: Hello) {
        self.client.act(LinkAction::Connect { link, address: self.address.clone(), hello });
    }

    /// Dials and waits for both sides; the server's name of the link.
    fn link(&mut self, link: LinkId, hello: Hello) -> LinkId {
        self.connect(link, hello);
        self.until("the handshake", |pair| ups(&pair.at_client).len() == 1 && ups(&pair.at_server).len() == 1);
        assert_eq!(ups(&self.at_client)[0].1.sender, SERVER);
        let (incoming, seen) = ups(&self.at_server)[0];
        assert_eq!((seen.sender, seen.lane, seen.role), (hello.sender, hello.lane, hello.role));
        assert!(incoming.is_incoming());
        self.at_client.clear();
        self.at_server.clear();
        incoming
    }
}

fn ups(events: &[LinkEvent]) -> Vec<(LinkId, Hello)> {
    let up = |event: &LinkEvent| match event {
        LinkEvent::Up { link, peer } => Some((*link, *peer)),
        _ => None,
    };
    events.iter().filter_map(up).collect()
}

fn downs(events: &[LinkEvent]) -> Vec<(LinkId, Status, Option<NodeId>)> {
    let down = |event: &LinkEvent| match event {
        LinkEvent::Down { link, reason, found } => Some((*link, *reason, *found)),
        _ => None,
    };
    events.iter().filter_map(down).collect()
}

fn frames(events: &[LinkEvent]) -> Vec<&Frame> {
    fn frame(event: &LinkEvent) -> Option<&Frame> {
        match event {
            LinkEvent::Received { frame, .. } => Some(frame),
            _ => None,
        }
    }
    events.iter().filter_map(frame).collect()
}

fn received_on(events: &[LinkEvent]) -> Vec<LinkId> {
    let link = |event: &LinkEvent| match event {
        LinkEvent::Received { link, .. } => Some(*link),
        _ => None,
    };
    events.iter().filter_map(link).collect()
}

fn pattern(seed: usize, length: usize) -> Bytes {
    (0..length).map(|index| (index.wrapping_mul(31) ^ (index >> 8) ^ seed) as u8).collect::<Vec<_>>().into()
}

fn put(request: u64, payload: Bytes) -> Frame {
    let instance = Instance { session: SessionId(CLIENT), counter: request };
    let body = Body::Request(Request::Put { epoch: Epoch(1), hash: ChunkHash([request as u8; 32]), instance });
    Frame { request, body, payload }
}

fn round_trip(address: &Address) {
    let mut pair = Pair::new(address);
    let link = LinkId(1);
    let incoming = pair.link(link, hello(CLIENT, Lane::Bulk));
    let lengths = [0, 1, 100, 2048, 2049, 65_536, 1 << 20, 3, (1 << 20) - 1, 0, 300_000];
    for (index, &length) in lengths.iter().enumerate() {
        let frame = put(index as u64, pattern(index, length));
        pair.client.act(LinkAction::Send { link, frame });
    }
    pair.until("every request", |pair| frames(&pair.at_server).len() == lengths.len());
    for (index, frame) in frames(&pair.at_server).iter().enumerate() {
        assert_eq!(frame.request, index as u64);
        assert_eq!(frame.body, put(index as u64, Bytes::new()).body);
        assert!(frame.payload == pattern(index, lengths[index]), "payload {index}");
    }
    let body = Body::Response(Ok(Response::Bytes { range: ByteRange { offset: 0, length: 5 }, total: 5, proof: Vec::new() }));
    pair.server.act(LinkAction::Send { link: incoming, frame: Frame { request: 4, body: body.clone(), payload: pattern(9, 5) } });
    pair.until("the response", |pair| !frames(&pair.at_client).is_empty());
    assert_eq!((frames(&pair.at_client)[0].request, &frames(&pair.at_client)[0].body), (4, &body));

    let (sent, received) = (pair.client.counters().bulk, pair.server.counters().bulk);
    assert_eq!((sent.frames_out, sent.frames_in), (lengths.len() as u64, 1));
    assert_eq!((sent.bytes_out, sent.bytes_in), (received.bytes_in, received.bytes_out));
    assert_eq!(pair.server.counters().control, Default::default());

    pair.client.act(LinkAction::Close { link });
    pair.until("the end", |pair| downs(&pair.at_server) == [(incoming, Status::Disconnected, None)]);
    pair.until("the closing side to let go", |pair| pair.client.connections() == 0);
    assert!(downs(&pair.at_client).is_empty());
}

#[test]
fn frames_round_trip_over_tcp() {
    round_trip(&tcp());
}

#[test]
fn frames_round_trip_over_unix_sockets_and_the_file_goes() {
    let address = unix("round-trip");
    let Address::Unix(path) = &address else { unreachable!() };
    // A socket file whose listener died is taken over; a listener that lives is not.
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    round_trip(&address);
    assert!(!path.exists());
    let mut first = Net::new().unwrap();
    first.listen(&address).unwrap();
    let refused = Net::new().unwrap().listen(&address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    assert!(!path.exists());
}

#[test]
fn a_port_in_use_is_an_error() {
    let mut first = Net::new().unwrap();
    let address = first.listen(&tcp()).unwrap();
    assert_eq!(Net::new().unwrap().listen(&address).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn many_large_payloads_both_ways_at_once() {
    let mut pair = Pair::new(&tcp());
    let link = LinkId(5);
    let incoming = pair.link(link, hello(CLIENT, Lane::Bulk));
    let (count, payload) = (24, pattern(3, 1 << 20));
    for request in 0..count {
        pair.client.act(LinkAction::Send { link, frame: put(request, payload.clone()) });
        pair.server.act(LinkAction::Send { link: incoming, frame: put(request, payload.clone()) });
    }
    pair.until("all", |pair| frames(&pair.at_server).len() as u64 == count && frames(&pair.at_client).len() as u64 == count);
    for frame in frames(&pair.at_server).into_iter().chain(frames(&pair.at_client)) {
        assert!(frame.payload == payload);
    }
}

#[test]
fn small_frames_keep_their_order_and_the_waker_wakes() {
    let mut pair = Pair::new(&tcp());
    let link = LinkId(1);
    pair.link(link, Hello { role: Role::Client, ..hello(CLIENT, Lane::Control) });
    for request in 0..20_000 {
        let body = Body::Request(Request::Query(Query::Attributes { ino: InodeId(request) }));
        pair.client.act(LinkAction::Send { link, frame: Frame { request, body, payload: Bytes::new() } });
    }
    pair.until("all", |pair| frames(&pair.at_server).len() == 20_000);
    assert!(frames(&pair.at_server).iter().enumerate().all(|(index, frame)| frame.request == index as u64));

    let waker = pair.server.waker();
    let waking = std::thread::spawn(move || waker.wake().unwrap());
    pair.server.poll(None, &mut Vec::new()).unwrap();
    waking.join().unwrap();
}

#[test]
fn the_dialler_learns_why_it_is_refused() {
    let mut pair = Pair::new(&tcp());
    pair.connect(LinkId(1), Hello { expect: Some(NodeId(99)), ..hello(CLIENT, Lane::Control) });
    pair.connect(LinkId(2), Hello { cluster: ClusterId(5), ..hello(CLIENT, Lane::Control) });
    pair.until("refusals", |pair| downs(&pair.at_client).len() == 2);
    let reasons: BTreeMap<LinkId, _> = downs(&pair.at_client).into_iter().map(|(link, reason, found)| (link, (reason, found))).collect();
    assert_eq!(reasons[&LinkId(1)], (Status::WrongNode, Some(NodeId(SERVER))));
    assert_eq!(reasons[&LinkId(2)], (Status::WrongCluster, None));
    assert!(pair.at_server.is_empty());
    pair.at_client.clear();
    // Whoever belongs to no cluster yet is let in, and stays when it joins one: its frames name what its Hello said.
    let link = LinkId(3);
    let incoming = pair.link(link, Hello { cluster: ClusterId(0), expect: Some(NodeId(SERVER)), ..hello(CLIENT, Lane::Control) });
    pair.server.set_identity(Hello { cluster: ClusterId(77), ..hello(SERVER, Lane::Control) });
    let frame = Frame { request: 0, body: Body::Notice(Notice::Stop), payload: Bytes::new() };
    pair.client.act(LinkAction::Send { link, frame: frame.clone() });
    pair.server.act(LinkAction::Send { link: incoming, frame });
    pair.until("both", |pair| frames(&pair.at_client).len() == 1 && frames(&pair.at_server).len() == 1);
    pair.until("nothing left of the refused", |pair| pair.server.connections() == 1 && pair.server.unauthenticated() == 0);
}

#[test]
fn a_dial_to_nobody_is_down_and_so_is_a_link_whose_peer_dies() {
    let mut net = Net::new().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (number, address) in [closed.to_string().parse().unwrap(), unix("nobody")].into_iter().enumerate() {
        net.act(LinkAction::Connect { link: LinkId(number as u64), address, hello: hello(CLIENT, Lane::Bulk) });
    }
    let mut events = Vec::new();
    while downs(&events).len() < 2 {
        net.poll(Some(Duration::from_secs(5)), &mut events).unwrap();
    }
    assert!(downs(&events).iter().all(|(_, reason, _)| *reason == Status::Disconnected));

    let mut pair = Pair::new(&tcp());
    pair.link(LinkId(1), hello(CLIENT, Lane::Bulk));
    let Pair { server, mut client, mut at_client, .. } = pair;
    drop(server);
    while downs(&at_client).is_empty() {
        client.poll(Some(Duration::from_secs(5)), &mut at_client).unwrap();
    }
    assert_eq!(downs(&at_client), [(LinkId(1), Status::Disconnected, None)]);
}

#[test]
fn the_rate_caps_bulk_and_not_control() {
    let mut pair = Pair::new(&tcp());
    let bulk = LinkId(1);
    pair.link(bulk, hello(CLIENT, Lane::Bulk));
    let control = LinkId(2);
    pair.link(control, hello(CLIENT, Lane::Control));
    let rate = 8 << 20;
    pair.server.set_rate(Some(rate));
    let begin = Instant::now();
    let payload = pattern(1, 1 << 20);
    for request in 0..4 {
        pair.client.act(LinkAction::Send { link: bulk, frame: put(request, payload.clone()) });
    }
    let frame = Frame { request: 100, body: Body::Request(Request::Status), payload: Bytes::new() };
    pair.client.act(LinkAction::Send { link: control, frame });
    pair.until("control", |pair| frames(&pair.at_server).iter().any(|frame| frame.request == 100));
    assert!(frames(&pair.at_server).len() < 5, "control waits for bulk");
    pair.until("bulk", |pair| frames(&pair.at_server).len() == 5);
    assert!(begin.elapsed() > Duration::from_millis(420), "4 MiB at 8 MiB/s came in {:?}", begin.elapsed());
}

#[test]
fn the_rate_is_shared_by_all_links_and_holds_for_answers() {
    let mut pair = Pair::new(&tcp());
    let links: Vec<(LinkId, LinkId)> =
        (1..4).map(|number| (LinkId(number), pair.link(LinkId(number), hello(CLIENT, Lane::Bulk)))).collect();
    pair.server.set_rate(Some(16 << 20));
    let begin = Instant::now();
    for request in 0..2 {
        for &(_, incoming) in &links {
            pair.server.act(LinkAction::Send { link: incoming, frame: put(request, pattern(0, 1 << 20)) });
        }
    }
    pair.until("the first of each", |pair| frames(&pair.at_client).len() >= 3);
    let first: std::collections::BTreeSet<LinkId> = received_on(&pair.at_client).into_iter().take(3).collect();
    assert_eq!(first.len(), 3, "one link was served before the others");
    pair.until("all", |pair| frames(&pair.at_client).len() == 6);
    assert!(begin.elapsed() > Duration::from_millis(300), "6 MiB at 16 MiB/s came in {:?}", begin.elapsed());
    // Without a rate whoever waited goes on.
    pair.server.act(LinkAction::Send { link: links[0].1, frame: put(9, pattern(0, 1 << 20)) });
    pair.server.flush();
    pair.server.set_rate(None);
    pair.until("the rest", |pair| frames(&pair.at_client).len() == 7);
}

#[test]
fn closing_delivers_what_was_sent_before() {
    let mut pair = Pair::new(&tcp());
    let link = LinkId(1);
    let incoming = pair.link(link, hello(CLIENT, Lane::Bulk));
    for request in 0..12 {
        pair.client.act(LinkAction::Send { link, frame: put(request, pattern(0, 1 << 20)) });
        // What the other side sends at the same time must not break the closing connection.
        pair.server.act(LinkAction::Send { link: incoming, frame: put(request, pattern(0, 4096)) });
    }
    pair.client.act(LinkAction::Close { link });
    // What is sent to a link that is gone goes nowhere.
    pair.client.act(LinkAction::Send { link, frame: put(99, Bytes::new()) });
    pair.until("the end", |pair| !downs(&pair.at_server).is_empty());
    assert_eq!(frames(&pair.at_server).len(), 12);
    pair.until("the closing side to let go", |pair| pair.client.connections() == 0);
    assert!(pair.at_client.is_empty());
}

#[test]
fn finishing_delivers_what_is_queued() {
    let mut pair = Pair::new(&tcp());
    let link = LinkId(1);
    pair.link(link, hello(CLIENT, Lane::Bulk));
    let Pair { mut server, mut client, mut at_server, .. } = pair;
    for request in 0..20 {
        client.act(LinkAction::Send { link, frame: put(request, pattern(0, 1 << 20)) });
    }
    let leaving = std::thread::spawn(move || client.finish(Duration::from_secs(20)).unwrap());
    while downs(&at_server).is_empty() {
        server.poll(Some(Duration::from_secs(5)), &mut at_server).unwrap();
    }
    leaving.join().unwrap();
    assert_eq!(frames(&at_server).len(), 20);
}

#[test]
fn messages_keep_their_bytes() {
    // A change of these is a change of protocol: raise PROTOCOL_VERSION with it.
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let encode = |body: &Body| hex(codec::encode(body, 4096).unwrap());
    assert_eq!(
        encode(&Body::Request(Request::Query(Query::Lookup { parent: InodeId(1), name: Name::new("ab").unwrap() }))),
        "00000000060000000000000001000000000000000200000000000000".to_string() + "6162"
    );
    assert_eq!(encode(&Body::Response(Err(Status::NotLeader.into()))), "01000000010000002b00000000000000000000");
    let write = Op::Write {
        ino: InodeId(2),
        patches: vec![Patch { at: WriteAt::End, length: 3, source: Source::Inline(Bytes::from_static(b"xyz")) }],
        chunks: Vec::new(),
        kill_privileges: true,
        behind: None,
    };
    let namespace = Request::Namespace { number: RequestNumber(7), answered_below: RequestNumber(6), uploads_from: 5, op: write };
    assert_eq!(
        encode(&Body::Request(namespace.clone())),
        "00000000050000000700000000000000060000000000000005000000000000000600000002000000000000000100000000000000010000000300000000000000\
         01000000030000000000000078797a00000000000000000100"
    );
    let hash = ChunkHash([0xab; 32]);
    let item = (hash, Instance { session: SessionId(3), counter: 4 });
    let (hash_hex, item_hex) = ("ab".repeat(32), "ab".repeat(32) + "0300000000000000" + "0400000000000000");
    let request = |request| encode(&Body::Request(request));
    assert_eq!(request(Request::Debug(DebugAction::Flip { hash, bit: 5 })), format!("00000000{}00000000{hash_hex}0500000000000000", DEBUG));
    assert_eq!(request(Request::Debug(DebugAction::Scrub)), format!("00000000{DEBUG}01000000"));
    assert_eq!(request(Request::Debug(DebugAction::Drop { hash })), format!("00000000{DEBUG}02000000{hash_hex}"));
    let after = Some(Position::Entry(InodeId(1), b"ab".to_vec()));
    assert_eq!(
        request(Request::Check(Check::Tables { after })),
        format!("00000000{CHECK}000000000101000000010000000000000002000000000000006162")
    );
    assert_eq!(
        request(Request::Check(Check::Missing { applied: 9, after: Some(hash) })),
        format!("00000000{CHECK}07000000090000000000000001{hash_hex}")
    );
    assert_eq!(
        request(Request::Check(Check::NoteLost { items: vec![item] })),
        format!("00000000{CHECK}080000000100000000000000{item_hex}")
    );
    assert_eq!(
        encode(&Body::Response(Ok(Response::Checked(Checked::Unnamed { visited: 3, pending: 1, unnamed: vec![item], next: None })))),
        format!("0100000000000000{CHECKED}08000000030000000000000001000000000000000100000000000000{item_hex}00")
    );
    let slice = TablesSlice {
        applied: 7,
        flaws: vec![Flaw { at: Position::Inode(InodeId(2)), rule: Rule::CutsAreOrdered }],
        ..TablesSlice::default()
    };
    assert_eq!(
        encode(&Body::Response(Ok(Response::Checked(Checked::Tables(Box::new(slice)))))),
        format!(
            "0100000000000000{CHECKED}000000000700000000000000{}010000000000000000000000020000000000000008000000{}",
            "0".repeat(64),
            "0".repeat(322)
        )
    );
    assert_eq!(encode(&Body::Request(Request::Muster)), "0000000017000000");
    let peers = vec!["a:1".parse().unwrap(), "unix:/b".parse().unwrap()];
    let mustered = Response::Mustered { cluster: ClusterId(0), allegiance: Allegiance::None { peers } };
    assert_eq!(
        encode(&Body::Response(Ok(mustered))),
        "01000000000000000d000000000000000000000000000000000000000000000002000000000000000000000001000000000000006101000100000002000000000000002f62"
    );
    let mustered = Response::Mustered { cluster: ClusterId(7), allegiance: Allegiance::Forming { founder: NodeId(5) } };
    assert_eq!(encode(&Body::Response(Ok(mustered))), "01000000000000000d00000007000000000000000000000000000000010000000500000000000000");
    let seven = format!("07{}", "0".repeat(30));
    assert_eq!(request(Request::Recover { cluster: ClusterId(7) }), format!("000000001a000000{seven}"));
    let rejoin = Request::Rejoin { cluster: ClusterId(7), to: "a:1".parse().unwrap() };
    assert_eq!(request(rejoin), format!("000000001b000000{seven}000000000100000000000000610100"));
    let standing = Standing { quorums: vec![vec![NodeId(2)]], log: (Term(3), 4), leaderless_ms: 5, lineage: vec![ClusterId(7)] };
    let one = "0100000000000000";
    assert_eq!(
        hex(codec::encode(&standing, 4096).unwrap()),
        format!("{one}{one}0200000000000000030000000000000004000000000000000500000000000000{one}{seven}")
    );
    let hello = codec::encode(&hello(CLIENT, Lane::Bulk), 4096).unwrap();
    assert_eq!(hex(hello), "efcdab0000000000000000000000000000000000160000000000000001000000".to_string() + "00");

    let bytes = codec::encode(&Body::Request(namespace.clone()), 4096).unwrap();
    assert_eq!(codec::decode_body(&bytes, Lane::Control), Ok(Body::Request(namespace)));
    assert_eq!(codec::decode_body(&bytes[..bytes.len() - 1], Lane::Control), Err(Status::Malformed));
    let longer = [&bytes[..], b"x"].concat();
    assert_eq!(codec::decode_body(&longer, Lane::Control), Err(Status::Malformed));
    assert_eq!(codec::encode(&vec![0u64; 100], 807), Err(Status::TooLong));
    let record = codec::encode_record(&vec![7u64; 100]).unwrap();
    assert_eq!(codec::decode_record::<Vec<u64>>(&record), Ok(vec![7; 100]));
}
