//! Deadlock hunt: processes do mixed operations on two mounts of one directory, while one mount or one node is stopped and woken at random.
//!
//! Every call on a running mount has to end within the operation deadline, every call on a stopped one after it woke. At the end both mounts show the
//! same tree. `DFS_SECONDS=300 cargo test --release --test deadlock_hunt -- --nocapture` hunts that long; `DFS_SEED=n` draws other operations.
//! The workers are processes of their own (this same program), so that a call that never returns hangs nothing else.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, wait_until};
use dfs::limits;
use dfs::random::Random;

/// Length of the run in `cargo test`.
const SHORT: Duration = Duration::from_secs(15);
const WORKERS_PER_MOUNT: usize = 8;
/// What a loaded machine may add to a call's end.
const SLACK: Duration = Duration::from_secs(5);
/// Longest stop: some outlast a lease, none a voter's patience by much.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Set for the processes that do the work: the directory that they work in.
const WORKER: &str = "DFS_HUNT_WORKER";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// What a worker says on its standard output: a line when a call begins, a line when it has ended.
struct Said {
    what: String,
    /// Since when it is in that call; `None` between two.
    since: Option<Instant>,
    calls: u64,
    /// Time that the worker's mount was stopped during this call.
    stopped: Duration,
    longest: (Duration, String),
    errors: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

struct Worker {
    child: Child,
    mount: usize,
    said: Arc<Mutex<Said>>,
}

impl Worker {
    fn start(mount: usize, root: &Path, seed: u64) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["work_of_one_process", "--exact", "--nocapture", "--test-threads=1"]).env(WORKER, root);
        command.env("DFS_SEED", seed.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a worker starts");
        let said = Arc::new(Mutex::new(Said {
            what: String::new(),
            since: None,
            calls: 0,
            stopped: Duration::ZERO,
            longest: (Duration::ZERO, String::new()),
            errors: BTreeMap::new(),
            wrong: Vec::new(),
        }));
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().expect("no panic holds it").hear(&line);
            }
        });
        Worker { child, mount, said }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

impl Said {
    fn hear(&mut self, line: &str) {
        let Some((kind, rest)) = line.split_once(' ') else { return };
        match kind {
            "begin" => {
                (self.what, self.since, self.stopped) = (rest.to_string(), Some(Instant::now()), Duration::ZERO);
            }
            "end" => {
                let Some(since) = self.since.take() else { return };
                let took = since.elapsed().saturating_sub(self.stopped);
                self.calls += 1;
                if took > self.longest.0 {
                    self.longest = (took, format!("{} ({rest})", self.what));
                }
                if rest != "ok" {
                    *self.errors.entry(rest.to_string()).or_default() += 1;
                }
            }
            "wrong" => self.wrong.push(rest.to_string()),
            _ => {}
        }
    }
}

/// One worker process: random calls on few names until standard input ends. Started by the hunt; in a plain test run it does nothing.
#[test]
fn work_of_one_process() {
    let Some(root) = std::env::var_os(WORKER).map(PathBuf::from) else { return };
    let mut random = Random::new(number("DFS_SEED").unwrap_or(0));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = done.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        told.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!();
    let mut open: Vec<File> = Vec::new();
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        call(&mut random, &root, &mut open);
    }
}

/// What may come of calls that race with others for the same names, and of a cluster without a leader for a moment.
const EXPECTED: [i32; 10] = [
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::EINVAL,
    libc::ESTALE,
    libc::EAGAIN,
    libc::ELOOP,
    libc::EMLINK,
];

fn call(random: &mut Random, root: &Path, open: &mut Vec<File>) {
    let name = |random: &mut Random| {
        let directory = if random.chance(1, 2) { format!("d{}/", random.below(3)) } else { String::new() };
        root.join(format!("{directory}f{}", random.below(6)))
    };
    let (one, two) = (name(random), name(random));
    let directory = root.join(format!("d{}", random.below(3)));
    let length = [10u64, 3000, 20_000, 200_000][random.below(4) as usize];
    let bytes = vec![random.next() as u8; 1 + random.below(length) as usize];
    let offset = random.below(100_000);
    let file = (!open.is_empty()).then(|| random.below(open.len() as u64) as usize);
    let draw = random.below(22);
    let what = format!("{draw} {}", one.strip_prefix(root).expect("below").display());
    println!("begin {what}");
    let result: io::Result<()> = match (draw, file) {
        (0..=2, _) => OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&one).map(|file| {
            open.push(file);
            if open.len() > 4 {
                open.remove(0);
            }
        }),
        (3..=5, Some(index)) => open[index].write_all_at(&bytes, offset),
        (6..=7, Some(index)) => open[index].read_at(&mut vec![0; bytes.len()], offset).map(drop),
        (8, Some(index)) => open[index].sync_all(),
        (9, Some(index)) => open[index].set_len(offset),
        (10, Some(index)) => map(&open[index], bytes[0]),
        (11, Some(index)) => drop_ok(open.remove(index)),
        (12, Some(index)) => lock(&open[index]),
        (13, _) => fs::write(&one, &bytes),
        (14, _) => fs::read(&one).map(drop),
        (15, _) => fs::rename(&one, &two),
        (16, _) => fs::hard_link(&one, &two),
        (17, _) => fs::remove_file(&one),
        (18, _) => fs::create_dir(&directory).or_else(|_| fs::remove_dir(&directory)),
        (19, _) => fs::read_dir(&directory).map(|entries| entries.flatten().for_each(|entry| drop(entry.metadata()))),
        (20, _) => fs::metadata(&one).map(drop),
        _ => fs::remove_file(root.join("link")).or(Ok(())).and_then(|()| symlink(&two, root.join("link"))),
    };
    match result {
        Ok(()) => println!("end ok"),
        Err(error) => {
            println!("end {error}");
            // EIO of a file whose mount had lost its session with unsynced data; the next open is fine.
            open.clear();
            if !error.raw_os_error().is_some_and(|errno| EXPECTED.contains(&errno) || errno == libc::EIO || errno == libc::ETIMEDOUT) {
                println!("wrong {what}: {error}");
            }
        }
    }
}

fn drop_ok(file: File) -> io::Result<()> {
    drop(file);
    Ok(())
}

/// Changes a byte of the first page through a shared mapping, by a system call that fails where a plain store would kill.
fn map(file: &File, byte: u8) -> io::Result<()> {
    let length = file.metadata()?.len().min(4096) as usize;
    if length == 0 {
        return Ok(());
    }
    // SAFETY: the mapping is used by a system call only and unmapped below; the pipe's ends are closed.
    unsafe {
        let mut pipe = [0; 2];
        let map = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if map == libc::MAP_FAILED || libc::pipe(pipe.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::write(pipe[1], (&raw const byte).cast(), 1);
        // Another mount may cut the file meanwhile: EFAULT then, and no harm.
        libc::read(pipe[0], map, 1);
        let synced = libc::msync(map, length, libc::MS_SYNC);
        let error = io::Error::last_os_error();
        libc::munmap(map, length);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        if synced == 0 { Ok(()) } else { Err(error) }
    }
}

/// Takes a lock without waiting, and gives it back.
fn lock(file: &File) -> io::Result<()> {
    // SAFETY: plain system calls with numbers.
    unsafe {
        if libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::flock(file.as_raw_fd(), libc::LOCK_UN);
    }
    Ok(())
}

/// What is stopped just now, and since when the hunt last looked.
struct Hunt {
    mounts: [Mount; 2],
    workers: Vec<Worker>,
    stopped_mount: Option<usize>,
    looked: Instant,
}

impl Hunt {
    /// Adds the time that a mount is stopped to the calls that wait for it; a call on a running mount must not last too long.
    fn look(&mut self) {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        for worker in &self.workers {
            let mut said = worker.said.lock().expect("no panic holds it");
            if self.stopped_mount == Some(worker.mount) {
                said.stopped += passed;
            }
            let Some(since) = said.since else { continue };
            let lasts = since.elapsed().saturating_sub(said.stopped);
            let within = limits::OP_TIMEOUT + SLACK;
            // A call of several parts (write: open, truncate, write, close) may wait in each of them.
            assert!(lasts < 3 * within, "mount {}: a call lasts {lasts:?}: {}", worker.mount, said.what);
            assert!(said.wrong.is_empty(), "mount {}: {:?}", worker.mount, said.wrong);
        }
    }

    fn watch(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        wait_until(duration + 10 * SLACK, "a moment passed", || {
            self.look();
            Instant::now() >= end
        });
    }
}

/// Everything below a directory: path, and what can be compared.
fn tree(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(root.join(below)).expect("readable").map(|entry| entry.expect("an entry")) {
        let path = below.join(entry.file_name());
        let metadata = fs::symlink_metadata(root.join(&path)).expect("an entry");
        let content = if metadata.is_dir() {
            tree(root, &path, found);
            String::new()
        } else if metadata.is_symlink() {
            format!("{:?}", fs::read_link(root.join(&path)).expect("a link").file_name())
        } else {
            let bytes = fs::read(root.join(&path)).expect("a file");
            bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)).to_string()
        };
        let (mtime, size) = ((metadata.mtime(), metadata.mtime_nsec()), metadata.len());
        found.insert(path, format!("{} {:o} {} {size} {mtime:?} {content}", metadata.ino(), metadata.mode(), metadata.nlink()));
    }
}

#[test]
fn p4_no_deadlock_while_mounts_and_nodes_stop_and_wake() {
    if std::env::var_os(WORKER).is_some() {
        return;
    }
    let duration = number("DFS_SECONDS").map_or(SHORT, Duration::from_secs);
    let seed = number("DFS_SEED").unwrap_or(1);
    let mut random = Random::new(seed);
    let cluster = Cluster::start(3);
    let mounts = [Mount::new(&cluster), Mount::new(&cluster)];
    fs::create_dir(mounts[0].path().join("hunt")).unwrap();
    let roots = [mounts[0].path().join("hunt"), mounts[1].path().join("hunt")];
    let workers = (0..2 * WORKERS_PER_MOUNT).map(|index| Worker::start(index % 2, &roots[index % 2], random.next())).collect();
    let mut hunt = Hunt { mounts, workers, stopped_mount: None, looked: Instant::now() };
    let end = Instant::now() + duration;
    let mut stops = 0;
    while Instant::now() < end {
        hunt.watch(Duration::from_millis(random.below(3000)));
        let rest = Duration::from_millis([300, 2000, STOP_MAX.as_millis() as u64][random.below(3) as usize]);
        let rest = Duration::from_millis(1 + random.below(rest.as_millis() as u64));
        if random.chance(1, 2) {
            let mount = random.below(2) as usize;
            hunt.mounts[mount].signal(libc::SIGSTOP);
            hunt.look();
            hunt.stopped_mount = Some(mount);
            hunt.watch(rest);
            hunt.mounts[mount].signal(libc::SIGCONT);
            hunt.look();
            hunt.stopped_mount = None;
        } else {
            // Shorter than what gets a voter declared dead: one that is replaced leaves two, and the hunt goes on for long.
            let node = &cluster.nodes[random.below(3) as usize];
            node.stop();
            hunt.watch(rest.min(Duration::from_millis(1500)));
            node.cont();
        }
        stops += 1;
    }
    hunt.workers.iter_mut().for_each(|worker| drop(worker.child.stdin.take()));
    let within = 4 * (limits::OP_TIMEOUT + SLACK);
    let mut hunt = hunt;
    wait_until(within, "all workers have ended", || {
        hunt.look();
        hunt.workers.iter_mut().all(|worker| matches!(worker.child.try_wait(), Ok(Some(_))))
    });
    report(&hunt, stops, seed);
    let mut trees = [BTreeMap::new(), BTreeMap::new()];
    for (root, found) in roots.iter().zip(&mut trees) {
        tree(root, Path::new(""), found);
    }
    assert_eq!(trees[0], trees[1], "both mounts show the same tree");
    let _ = io::stderr().flush();
}

fn report(hunt: &Hunt, stops: u32, seed: u64) {
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let mut calls = 0;
    let mut longest = (Duration::ZERO, String::new());
    for worker in &hunt.workers {
        let said = worker.said.lock().expect("no panic holds it");
        calls += said.calls;
        if said.longest.0 > longest.0 {
            longest = said.longest.clone();
        }
        for (error, count) in &said.errors {
            *errors.entry(error.clone()).or_default() += count;
        }
    }
    assert!(calls > 1000, "the workers did next to nothing: {calls} calls");
    eprintln!("seed {seed}: {calls} calls, {stops} stops; longest on a running mount {:?}: {}; errors {errors:?}", longest.0, longest.1);
    let unexpected: u64 =
        ["Input/output error (os error 5)", "Connection timed out (os error 110)"].iter().filter_map(|name| errors.get(*name)).sum();
    assert!(unexpected * 100 <= calls, "{unexpected} of {calls} calls failed");
    assert!(longest.0 < 3 * (limits::OP_TIMEOUT + SLACK), "{longest:?}");
}
