//! Clients that ask without end and read no answer: others go on, and the nodes' memory stays within what they may use.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, Mount, ends_within, random_bytes};
use dfs::link::{Frame, Hello, Lane, Role};
use dfs::types::{ByteRange, ChunkHash, ClusterId, InodeId, Name, NodeId, ROOT, RequestNumber};
use dfs::wire::codec;
use dfs::wire::frame::{self, HEADER_BYTES, Names};
use dfs::wire::message::{Body, Request, Response};
use dfs::wire::namespace::{NewKind, Op, Patch, Query, Replied, Source, WriteAt};

const MIB: usize = 1 << 20;
/// What each node may use, and what it may have resident.
const MEMORY: u64 = 256 << 20;
const RESIDENT_MAX: u64 = MEMORY + MEMORY / 10;
/// How long the flood lasts: longer than it takes to drop somebody who reads nothing.
const FLOOD: Duration = Duration::from_secs(14);
/// One small call beside it, on a machine that does other things, too.
const CALL_WITHIN: Duration = Duration::from_secs(3);

/// A connection without any of the manners of a client.
struct Raw {
    stream: TcpStream,
    names: Names,
    lane: Lane,
}

impl Raw {
    fn dial(address: &str, session: u64, lane: Lane) -> Raw {
        let mut stream = TcpStream::connect(address).expect("a node listens");
        let mut hello = Hello { cluster: ClusterId(0), role: Role::Client, sender: session, lane, expect: None };
        let mut bytes = Vec::new();
        frame::append_hello(&mut bytes, &hello, 0).unwrap();
        stream.write_all(&bytes).unwrap();
        let answer: Hello = codec::decode(&read_frame(&mut stream), 200).unwrap();
        if hello.cluster != answer.cluster {
            // Now that it is known which one it is.
            stream = TcpStream::connect(address).expect("a node listens");
            (hello.cluster, hello.expect) = (answer.cluster, Some(NodeId(answer.sender)));
            bytes.clear();
            frame::append_hello(&mut bytes, &hello, answer.sender).unwrap();
            stream.write_all(&bytes).unwrap();
            read_frame(&mut stream);
        }
        let names = Names { cluster: hello.cluster, sender: session, receiver: answer.sender };
        Raw { stream, names, lane }
    }

    fn encode(&self, bytes: &mut Vec<u8>, request: u64, body: Request) {
        let frame = Frame { request, body: Body::Request(body), payload: Bytes::new() };
        frame::append_message(bytes, self.names, self.lane, &frame).unwrap();
    }

    fn ask(&mut self, number: u64, request: Request) -> Response {
        let mut bytes = Vec::new();
        self.encode(&mut bytes, number, request);
        self.stream.write_all(&bytes).unwrap();
        match codec::decode_body(&read_frame(&mut self.stream), self.lane).unwrap() {
            Body::Response(Ok(response)) => response,
            other => panic!("{other:?}"),
        }
    }
}

/// The body of the next frame, which has no payload.
fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize];
    stream.read_exact(&mut body).unwrap();
    body
}

fn inline_write(ino: InodeId, byte: u8) -> Op {
    let patch = Patch { at: WriteAt::Offset(0), length: 4096, source: Source::Inline(Bytes::from(vec![byte; 4096])) };
    Op::Write { ino, patches: vec![patch], chunks: Vec::new(), kill_privileges: false, behind: None }
}

fn create(text: &str) -> Op {
    Op::Create {
        parent: ROOT,
        name: Name::new(text).unwrap(),
        kind: NewKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        exclusive: false,
        hold: false,
        write: false,
        umask: 0,
    }
}

/// Sends what `next` gives until it is told to stop, and reads nothing. Whoever is thrown out comes again.
fn flood(stop: Arc<AtomicBool>, sent: Arc<AtomicU64>, mut dial: impl FnMut() -> (Raw, Box<dyn FnMut(u64) -> Request>)) {
    while !stop.load(Ordering::Relaxed) {
        let (mut raw, mut next) = dial();
        raw.stream.set_nonblocking(true).unwrap();
        let mut number = 10;
        'connected: while !stop.load(Ordering::Relaxed) {
            let mut bytes = Vec::new();
            for _ in 0..50 {
                number += 1;
                raw.encode(&mut bytes, number, next(number));
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match raw.stream.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                    Err(_) => break 'connected,
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            sent.fetch_add(50, Ordering::Relaxed);
        }
    }
}

/// Creates, looks and small synchronous writes, over and over, in a session of its own.
fn flood_namespace(leader: &str, thread: u64, stop: &Arc<AtomicBool>, sent: &Arc<AtomicU64>) -> JoinHandle<()> {
    let (leader, stop, sent) = (leader.to_string(), stop.clone(), sent.clone());
    let mut life = 0;
    std::thread::spawn(move || {
        flood(stop, sent, || {
            life += 1;
            let mut raw = Raw::dial(&leader, 1_000_000 + thread * 1000 + life, Lane::Control);
            raw.ask(1, Request::OpenSession { caches: false });
            let request = move |number: u64, op| {
                let number = RequestNumber(number);
                Request::Namespace { number, answered_below: number, uploads_from: 1, op }
            };
            let made = raw.ask(2, request(1, create(&format!("flood-{thread}"))));
            let Response::Replied { replied: Replied::Entry { attributes, .. }, .. } = made else { panic!("{made:?}") };
            let next = move |number: u64| match number % 3 {
                0 => request(number, create(&format!("flood-{thread}-{}", number % 500))),
                1 => Request::Query(Query::Attributes { ino: attributes.ino }),
                _ => request(number, inline_write(attributes.ino, number as u8)),
            };
            (raw, Box::new(next))
        });
    })
}

/// Whole chunks, over and over.
fn flood_bulk(node: &str, chunk: ChunkHash, thread: u64, stop: &Arc<AtomicBool>, sent: &Arc<AtomicU64>) -> JoinHandle<()> {
    let (node, stop, sent) = (node.to_string(), stop.clone(), sent.clone());
    std::thread::spawn(move || {
        flood(stop, sent, || {
            let raw = Raw::dial(&node, 2_000_000 + thread, Lane::Bulk);
            let range = ByteRange { offset: 0, length: MIB as u64 };
            (raw, Box::new(move |_| Request::Get { hash: chunk, range }))
        });
    })
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Small calls, one after another, for that long; the longest of them and how many there were.
fn small_calls(directory: &Path, length: Duration) -> (Duration, u64) {
    let begun = Instant::now();
    let (mut longest, mut rounds) = (Duration::ZERO, 0);
    let mut timed = |call: &dyn Fn() -> std::io::Result<()>| {
        let begun = Instant::now();
        call().expect("no call fails");
        longest = longest.max(begun.elapsed());
    };
    while begun.elapsed() < length {
        let path = directory.join(format!("small-{}", rounds % 10));
        let bytes = random_bytes(rounds, 4096);
        timed(&|| fs::write(&path, &bytes));
        timed(&|| File::open(&path)?.sync_all());
        timed(&|| fs::metadata(&path).map(drop));
        timed(&|| fs::read(&path).map(|read| assert!(read == bytes)));
        timed(&|| fs::remove_file(&path));
        rounds += 1;
    }
    (longest, rounds)
}

/// Small calls on a mount while `flood` goes on.
fn beside(cluster: &Cluster, mount: &Mount, what: &str, flood: impl FnOnce(&Arc<AtomicBool>, &Arc<AtomicU64>) -> Vec<JoinHandle<()>>) {
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (quiet, calm_rounds) = small_calls(mount.path(), Duration::from_secs(2));
    let threads = flood(&stop, &sent);
    let path = mount.path().to_path_buf();
    let calls = std::thread::spawn(move || ends_within(3 * FLOOD, "small calls", move || small_calls(&path, FLOOD)).0);
    let mut most = 0;
    while !calls.is_finished() {
        most = cluster.nodes.iter().map(|node| resident(node.pid())).fold(most, u64::max);
        std::thread::sleep(Duration::from_millis(50));
    }
    let (longest, rounds) = calls.join().expect("no call failed");
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("the flood runs"));
    let (rate, before) = (rounds / FLOOD.as_secs(), calm_rounds / 2);
    println!(
        "{what}: {} requests; {rate} rounds/s beside it (alone {before}), longest call {longest:?} (alone {quiet:?}), {} MiB resident at most",
        sent.load(Ordering::Relaxed),
        most >> 20
    );
    assert!(longest < CALL_WITHIN, "{what}: a call took {longest:?}");
    assert!(most < RESIDENT_MAX, "{what}: {} MiB resident", most >> 20);
}

#[test]
fn who_floods_a_cluster_and_reads_no_answer_stops_nobody() {
    let mut cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    fs::write(mount.path().join("large"), random_bytes(1, 100 * MIB)).unwrap();
    cluster.dfs_ok(&["sync"]);
    let leader = cluster.leader();
    let leader = cluster.node(&leader).address.clone();
    beside(&cluster, &mount, "namespace", |stop, sent| (0..8).map(|thread| flood_namespace(&leader, thread, stop, sent)).collect());
    let located = cluster.dfs_json(&["locate", "/large"]);
    let extent = &located["extents"][0];
    let hash: ChunkHash = extent["chunk"].as_str().unwrap().parse().unwrap();
    let holder = extent["holders"][0]["node"].as_str().unwrap().to_string();
    let holder = cluster.node(&holder).address.clone();
    beside(&cluster, &mount, "bulk", |stop, sent| (0..8).map(|thread| flood_bulk(&holder, hash, thread, stop, sent)).collect());
    for node in &mut cluster.nodes {
        assert!(node.is_running());
    }
    let path = mount.path().join("large");
    assert!(ends_within(Duration::from_secs(60), "reading afterwards", move || fs::read(path).unwrap()).0 == random_bytes(1, 100 * MIB));
}
