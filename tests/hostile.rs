//! Bytes from people who mean no good: they lose their connection with a logged reason, nobody else notices, memory stays flat.
#![allow(clippy::disallowed_methods)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs::limits;
use dfs::link::{Frame, Hello, Lane, LinkAction, LinkEvent, LinkId, Role};
use dfs::net::Net;
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::{Address, ByteRange, ChunkHash, ClusterId, NodeId};
use dfs::wire::codec;
use dfs::wire::frame::{self, FrameKind, HEADER_BYTES, Header, Names, Rules};
use dfs::wire::message::{Body, Request, Response};

const CLUSTER: ClusterId = ClusterId(0xabcdef);
const SERVER: u64 = 11;
const STRANGER: u64 = 22;
const NAMES: Names = Names { cluster: CLUSTER, sender: STRANGER, receiver: SERVER };

fn hello() -> Hello {
    Hello { cluster: CLUSTER, role: Role::Client, sender: STRANGER, lane: Lane::Bulk, expect: None }
}

fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append_hello(&mut bytes, hello, hello.expect.map_or(0, |node| node.0)).unwrap();
    bytes
}

fn message_bytes(names: Names, body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append_message(&mut bytes, names, Lane::Bulk, &Frame { request: 1, body, payload: Bytes::new() }).unwrap();
    bytes
}

struct Server {
    net: Net,
    port: u16,
    events: Vec<LinkEvent>,
}

impl Server {
    fn new() -> Server {
        let mut net = Net::new().unwrap();
        net.set_identity(Hello { role: Role::Node, sender: SERVER, ..hello() });
        let Address::Tcp { port, .. } = net.listen(&"127.0.0.1:0".parse().unwrap()).unwrap() else { unreachable!() };
        Server { net, port, events: Vec::new() }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Server) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < Duration::from_secs(40), "{what} never happened");
            self.net.poll(Some(Duration::from_millis(2)), &mut self.events).unwrap();
        }
    }

    /// Lets a well-behaved stranger in; the raw stream and the server's link.
    fn admit(&mut self) -> (TcpStream, LinkId) {
        let mut stream = self.connect();
        stream.write_all(&hello_bytes(&hello())).unwrap();
        let before = self.events.len();
        self.until("admission", |server| server.events.len() > before);
        let LinkEvent::Up { link, peer } = self.events[before] else { panic!("{:?}", self.events) };
        assert_eq!(peer, hello());
        (stream, link)
    }

    /// What the stranger reads until the server closes.
    fn read_to_end(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        self.until("the end of the stream", |_| {
            match stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
            false
        });
        bytes
    }

    fn down_reason(&self, link: LinkId) -> Option<Status> {
        self.events.iter().find_map(|event| match event {
            LinkEvent::Down { link: down, reason, .. } if *down == link => Some(*reason),
            _ => None,
        })
    }
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn garbage_costs_the_connection_and_nothing_else() {
    let mut server = Server::new();
    let (mut friend, friend_link) = server.admit();
    let mut random = Random::new(1);
    for round in 0..200 {
        let length = 1 + random.below(5000) as usize;
        let mut garbage: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if round % 4 == 1 {
            // Begins well.
            let good = hello_bytes(&hello());
            let kept = random.below(good.len() as u64) as usize;
            garbage.splice(0..0, good[..kept].iter().copied());
        }
        let mut stream = server.connect();
        drop(stream.write_all(&garbage));
        if round % 4 == 2 {
            drop(stream);
            continue;
        }
        stream.shutdown(std::net::Shutdown::Write).ok();
        server.read_to_end(&mut stream);
    }
    // After a proper handshake too, in every byte of a valid frame.
    let valid = message_bytes(NAMES, Body::Request(Request::Get { hash: ChunkHash([1; 32]), range: ByteRange { offset: 0, length: 9 } }));
    for at in 0..valid.len() {
        let (mut stream, link) = server.admit();
        let mut bytes = valid.clone();
        bytes[at] ^= 0xff;
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).ok();
        server.until("a verdict", |server| server.down_reason(link).is_some());
        server.events.retain(|event| !matches!(event, LinkEvent::Received { .. }));
    }
    friend.write_all(&valid).unwrap();
    server.until(
        "the friend's frame",
        |server| matches!(server.events.last(), Some(LinkEvent::Received { link, .. }) if *link == friend_link),
    );
    server.until("nothing left behind", |server| server.net.connections() == 1);
}

#[test]
fn another_version_is_told_ours() {
    let mut server = Server::new();
    let mut stream = server.connect();
    let names = Names { receiver: 0, ..NAMES };
    let header = Header { kind: FrameKind::Hello, body_bytes: 3, payload_bytes: 0, request: 0, names };
    stream.write_all(&header.to_bytes_of_version(limits::PROTOCOL_VERSION + 1)).unwrap();
    stream.write_all(b"new").unwrap();
    let answer = server.read_to_end(&mut stream);
    let head: [u8; HEADER_BYTES] = answer[..HEADER_BYTES].try_into().unwrap();
    assert_eq!(Header::parse(&head, &Rules::Hello).unwrap().names.sender, SERVER);
    assert!(server.events.is_empty());
    assert_eq!(server.net.counters().refused, 1);

    // And a dialler that finds another version says so.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let link = LinkId(1);
    server.net.act(LinkAction::Connect { link, address, hello: Hello { sender: 5, ..hello() } });
    server.net.flush();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(&header.to_bytes_of_version(limits::PROTOCOL_VERSION + 1)).unwrap();
    server.until("the verdict", |server| server.down_reason(link) == Some(Status::WrongVersion));
}

#[test]
fn wrong_cluster_and_wrong_node_get_the_nodes_hello_and_are_closed() {
    let mut server = Server::new();
    for wrong in [Hello { cluster: ClusterId(1), ..hello() }, Hello { expect: Some(NodeId(1)), ..hello() }] {
        let mut stream = server.connect();
        stream.write_all(&hello_bytes(&wrong)).unwrap();
        let answer = server.read_to_end(&mut stream);
        let seen: Hello = codec::decode(&answer[HEADER_BYTES..], 200).unwrap();
        assert_eq!((seen.sender, seen.cluster, seen.lane), (SERVER, CLUSTER, Lane::Bulk));
    }
    assert!(server.events.is_empty());
    assert_eq!(server.net.counters().refused, 2);
}

#[test]
fn frames_that_name_somebody_else_are_not_taken() {
    let mut server = Server::new();
    for names in [Names { sender: 23, ..NAMES }, Names { receiver: 12, ..NAMES }, Names { cluster: ClusterId(1), ..NAMES }] {
        let (mut stream, link) = server.admit();
        stream.write_all(&message_bytes(names, Body::Request(Request::Status))).unwrap();
        server.until("a verdict", |server| server.down_reason(link) == Some(Status::WrongNode));
    }
}

#[test]
fn ranges_beyond_a_chunk_are_malformed() {
    let mut server = Server::new();
    let beyond = ByteRange { offset: u64::MAX, length: 2 };
    let proof = Body::Response(Ok(Response::Bytes { range: ByteRange { offset: 0, length: 1 }, total: 1, proof: vec![[0; 32]; 1000] }));
    for body in [Body::Request(Request::Get { hash: ChunkHash([0; 32]), range: beyond }), proof] {
        let (mut stream, link) = server.admit();
        stream.write_all(&message_bytes(NAMES, body)).unwrap();
        server.until("a verdict", |server| server.down_reason(link) == Some(Status::Malformed));
    }
}

#[test]
fn promises_of_large_frames_take_no_memory() {
    let mut server = Server::new();
    let header = Header { kind: FrameKind::Message, body_bytes: 1000, payload_bytes: limits::PAYLOAD_BYTES_MAX, request: 1, names: NAMES };
    let before = resident_bytes();
    let mut streams = Vec::new();
    for _ in 0..200 {
        let (mut stream, _) = server.admit();
        stream.write_all(&header.to_bytes()).unwrap();
        stream.write_all(&[0; 2000]).unwrap();
        streams.push(stream);
    }
    for _ in 0..50 {
        server.net.poll(Some(Duration::from_millis(1)), &mut server.events).unwrap();
    }
    assert_eq!(server.net.connections(), 200);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 40 << 20, "200 promises of a MiB took {} MiB", grown >> 20);
    // A length beyond the limit is refused on sight.
    let (mut stream, link) = server.admit();
    let huge = Header { payload_bytes: u32::MAX as usize, ..header };
    stream.write_all(&huge.to_bytes()).unwrap();
    server.until("a verdict", |server| server.down_reason(link) == Some(Status::TooLong));
}

#[test]
fn an_idle_stranger_is_closed_and_a_flood_of_them_is_bounded() {
    let mut server = Server::new();
    let mut idle = server.connect();
    let begin = Instant::now();
    assert!(server.read_to_end(&mut idle).is_empty());
    assert!(begin.elapsed() >= limits::HANDSHAKE_TIMEOUT - Duration::from_millis(200));

    let (_friend, friend_link) = server.admit();
    let mut flood = Vec::new();
    for _ in 0..3 * limits::UNAUTHENTICATED_MAX {
        flood.push(server.connect());
        server.net.poll(Some(Duration::ZERO), &mut server.events).unwrap();
        assert!(server.net.unauthenticated() <= limits::UNAUTHENTICATED_MAX);
    }
    server.until("all accepted", |server| server.net.counters().refused > 2 * limits::UNAUTHENTICATED_MAX as u64);
    // Amid the flood somebody who speaks is let in, and who was in stays.
    server.admit();
    assert_eq!(server.down_reason(friend_link), None);
}

#[test]
fn a_peer_that_reads_nothing_is_not_read_and_then_dropped() {
    let mut server = Server::new();
    let (mut stream, link) = server.admit();
    let payload = Bytes::from(vec![7; 1 << 20]);
    let body = Body::Response(Ok(Response::Done));
    let answers = limits::SEND_QUEUE_BYTES_MAX / payload.len() + 20;
    for request in 0..answers as u64 {
        server.net.act(LinkAction::Send { link, frame: Frame { request, body: body.clone(), payload: payload.clone() } });
    }
    // Beyond the bound its requests stay in the socket.
    stream.write_all(&message_bytes(NAMES, Body::Request(Request::Status))).unwrap();
    for _ in 0..50 {
        server.net.poll(Some(Duration::from_millis(2)), &mut server.events).unwrap();
    }
    assert!(server.events.iter().all(|event| !matches!(event, LinkEvent::Received { .. })));
    // It begins to read: it is heard again.
    let mut buffer = vec![0; 1 << 20];
    server.until("to be heard", |server| {
        while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {}
        server.events.iter().any(|event| matches!(event, LinkEvent::Received { .. }))
    });
    // It stops again: with twice the bound queued it is dropped at once.
    for request in 0..2 * answers as u64 + 20 {
        server.net.act(LinkAction::Send { link, frame: Frame { request, body: body.clone(), payload: payload.clone() } });
    }
    server.until("the drop", |server| server.down_reason(link) == Some(Status::Busy));

    // With little queued it is dropped when it has made no progress for a while.
    let (_stalled, link) = server.admit();
    for request in 0..20 {
        server.net.act(LinkAction::Send { link, frame: Frame { request, body: body.clone(), payload: payload.clone() } });
    }
    let (_halfway, cut) = server.admit();
    (&_halfway).write_all(&message_bytes(NAMES, Body::Request(Request::Status))[..HEADER_BYTES + 1]).unwrap();
    server.until("stall and cut frame to be noticed", |server| {
        server.down_reason(link) == Some(Status::TimedOut) && server.down_reason(cut) == Some(Status::TimedOut)
    });
}
