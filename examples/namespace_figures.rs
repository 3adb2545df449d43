//! What the namespace costs: memory per empty file, time per operation, the longest slice of a snapshot. A million files, no network.
//!
//!     cargo run --release --example namespace_figures
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use dfs::cluster_map::{Member, MemberState};
use dfs::status::Status;
use dfs::types::{Address, ClusterId, InodeId, Name, NodeId, ROOT, RequestNumber, SessionId, Timestamp};
use dfs::wire::namespace::{NewKind, Op, Patch, RenameMode, Replied, Source, WriteAt};
use dfs_node::namespace::{Command, LogEntry, Namespace, SpaceLimits};

const SESSION: SessionId = SessionId(7);
const FILES: u64 = 1_000_000;

struct World {
    namespace: Namespace,
    number: u64,
}

impl World {
    fn apply(&mut self, command: Command) -> Result<Replied, Status> {
        let index = self.namespace.applied() + 1;
        self.namespace.apply(index, &LogEntry { time: Timestamp { seconds: index as i64, nanos: 0 }, command })
    }

    fn op(&mut self, op: Op) -> Result<Replied, Status> {
        self.number += 1;
        let (number, answered_below) = (RequestNumber(self.number), RequestNumber(self.number.saturating_sub(10).max(1)));
        self.apply(Command::Request { session: SESSION, number, answered_below, uploads_from: 1, op })
    }

    fn create(&mut self, parent: InodeId, text: &str, kind: NewKind) -> Result<InodeId, Status> {
        let name = Name::new(text)?;
        match self.op(Op::Create {
            parent,
            name,
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            exclusive: true,
            hold: false,
            write: false,
            umask: 0,
        })? {
            Replied::Entry { attributes, .. } => Ok(attributes.ino),
            _ => Err(Status::Internal),
        }
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn snapshot(namespace: &mut Namespace) {
    let begin = Instant::now();
    namespace.begin_snapshot();
    let (mut longest, mut total) = (0.0f64, 0);
    loop {
        let slice_begin = Instant::now();
        let Some((slice, last)) = namespace.next_snapshot_slice(256 << 10) else { break };
        longest = longest.max(slice_begin.elapsed().as_secs_f64());
        total += slice.len();
        if last {
            break;
        }
    }
    namespace.end_snapshot();
    let seconds = begin.elapsed().as_secs_f64();
    println!("snapshot           {seconds:7.2} s, {} MiB in slices of 256 KiB, the longest {:.1} ms", total >> 20, longest * 1e3);
}

fn main() -> Result<(), Status> {
    let mut world = World { namespace: Namespace::new(SpaceLimits::default()), number: 0 };
    world.apply(Command::Found { cluster: ClusterId(9), replicas: 2, awaited: Vec::new() })?;
    let address = Address::Tcp { host: "node".into(), port: 1 };
    world.apply(Command::SetMember(Member { id: NodeId(1), address, memory: 1 << 30, zone: String::new(), state: MemberState::Live }))?;
    world.apply(Command::OpenSession { session: SESSION, caches: true })?;

    let (before, begin, mut directory) = (resident_bytes(), Instant::now(), ROOT);
    for index in 0..FILES {
        if index % 1000 == 0 {
            directory = world.create(ROOT, &format!("directory-{index}"), NewKind::Directory)?;
        }
        world.create(directory, &format!("file-{index:09}"), NewKind::File)?;
    }
    println!("create             {:7.2} us", begin.elapsed().as_secs_f64() * 1e6 / FILES as f64);
    let accounted = world.namespace.usage().namespace_bytes / FILES;
    println!("empty file         {:7} bytes resident, {accounted} accounted", (resident_bytes() - before) / FILES);

    let ino = world.create(ROOT, "appended", NewKind::File)?;
    let begin = Instant::now();
    for _ in 0..100_000 {
        let source = Source::Inline(vec![1; 100].into());
        let patches = vec![Patch { at: WriteAt::End, length: 100, source }];
        world.op(Op::Write { ino, patches, chunks: Vec::new(), kill_privileges: false, behind: None })?;
    }
    println!("append of 100 bytes{:7.2} us", begin.elapsed().as_secs_f64() * 10.0);

    let (from, to) = (Name::new("appended")?, Name::new("moved")?);
    let begin = Instant::now();
    for index in 0..100_000 {
        let (from_name, to_name) = if index % 2 == 0 { (from.clone(), to.clone()) } else { (to.clone(), from.clone()) };
        world.op(Op::Rename { from_parent: ROOT, from_name, to_parent: ROOT, to_name, mode: RenameMode::Replace })?;
    }
    println!("rename             {:7.2} us", begin.elapsed().as_secs_f64() * 10.0);
    snapshot(&mut world.namespace);
    Ok(())
}
