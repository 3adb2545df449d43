//! Real processes for tests: nodes, mounts, commands. Everything started here ends with its test.
//!
//! Each test binary uses a part of this, hence the allowance for dead code.
#![allow(dead_code, clippy::disallowed_methods)]

pub mod posix;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

/// How long a node may take to become ready; the contract says 10 s on an idle machine, test machines are not idle.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a command may take before a test calls it a hang.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Path of one of the programs, built if it is missing or stale.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let own = Path::new(env!("CARGO_BIN_EXE_dfs"));
    let directory = own.parent().expect("a program lies in a directory");
    if name == "dfs" {
        return own.to_path_buf();
    }
    // Cargo builds only the own package's programs for a test. Cargo itself locks and decides what is stale.
    BUILT.call_once(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.arg("--target-dir").arg(directory.parent().expect("target directory"));
        if directory.ends_with("release") {
            command.arg("--release");
        }
        let status = command.status().expect("cargo runs");
        assert!(status.success(), "cannot build the programs under test");
    });
    let path = directory.join(name);
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// Waits until the condition holds; the test fails with `what` when it does not in time.
pub fn wait_until(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < end, "after {within:?} still not: {what}");
        std::thread::sleep(POLL);
    }
}

/// A directory of one test, removed at its end.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes it below the system's temporary directory.
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("dfs-test-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return TempDir(path),
                // Of a run that was killed, by a process with the same number.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("temporary directory {}: {error}", path.display()),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("test file");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A leftover mount below would make removal walk into the cluster; mounts are dropped first, see `Mount`.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that no compression or deduplication finds anything in, the same for the same seed.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = dfs::random::Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound").port()
}

/// How a test's nodes are started.
#[derive(Clone, Debug)]
pub struct Options {
    pub memory: &'static str,
    pub unix: bool,
    pub extra: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory: "256MiB", unix: false, extra: Vec::new() }
    }
}

/// One `dfs-node` process.
pub struct Node {
    child: Child,
    pub address: String,
    pub id: String,
    pub cluster: String,
    pub log: PathBuf,
}

/// A started node whose `ready` line has not come yet.
pub struct Starting {
    /// `None` once it was ready.
    child: Option<Child>,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Starting {
    /// Starts `dfs-node` with these arguments, its log going to `log`.
    pub fn spawn(arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(program("dfs-node"));
        command.args(arguments).env_remove("RUST_LOG").env_remove("DFS_NODES").stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(log).expect("log file"));
        let mut child = command.spawn().expect("dfs-node starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Starting { child: Some(child), lines, log: log.to_path_buf() }
    }

    /// Whether it has become ready within the time; consumes the line.
    pub fn is_ready_within(&self, within: Duration) -> Option<String> {
        self.lines.recv_timeout(within).ok()
    }

    /// Waits for the `ready` line.
    pub fn ready(mut self) -> Node {
        let Ok(line) = self.lines.recv_timeout(READY_WITHIN) else {
            panic!("dfs-node not ready within {READY_WITHIN:?}; its log:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        };
        let field = |key: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {key} in {line:?}")).to_string()
        };
        assert!(line.starts_with("ready "), "{line:?}");
        Node {
            address: field("listen"),
            id: field("node"),
            cluster: field("cluster"),
            child: self.child.take().expect("taken once"),
            log: self.log.clone(),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // A test that fails before its nodes are ready leaves none behind.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Node {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// `kill -9`, and collects it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: alive but silent.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        wait_child(&mut self.child, within, "dfs-node ends")
    }

    /// What it logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that a test started. When SIGSTOP returns, none of its threads does anything more: the system call does not wait
/// for that, and a busy machine lets them go on for milliseconds.
pub fn send_signal(pid: u32, signal: i32) {
    // SAFETY: plain system call with numbers; the process is a child of ours that has not been collected.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
    if signal == libc::SIGSTOP {
        wait_until(Duration::from_secs(10), "every thread has stopped", || threads_rest(pid));
    }
}

/// Whether no thread of the process runs or is about to; one that waits in the kernel beyond the reach of signals (D) rests, too.
fn threads_rest(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        // "id (name) state ...", and a name may hold anything. A thread that ended meanwhile has none.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'D', 'Z', 'X']))
    })
}

fn wait_child(child: &mut Child, within: Duration, what: &str) -> ExitStatus {
    let end = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("after {within:?} still not: {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// Runs calls that might hang in a thread of their own; gives what they gave and how long they took. A hang fails the test, and not its process.
pub fn ends_within<T: Send + 'static>(within: Duration, what: &str, calls: impl FnOnce() -> T + Send + 'static) -> (T, Duration) {
    let begun = Instant::now();
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(calls());
    });
    match result.recv_timeout(within) {
        Ok(value) => (value, begun.elapsed()),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("after {within:?} still not ended: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("failed: {what}"),
    }
}

/// Node processes that form one cluster.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub options: Options,
    pub temp: TempDir,
    started: usize,
}

impl Cluster {
    /// Starts a cluster of `count` nodes and waits until all are ready.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, Options::default())
    }

    /// As [`Cluster::start`], with options.
    pub fn start_with(count: usize, options: Options) -> Self {
        let mut cluster = Cluster { nodes: Vec::new(), options, temp: TempDir::new(), started: 0 };
        for _ in 0..count {
            cluster.add();
        }
        cluster
    }

    /// Adds one node: the first forms the cluster, others join it.
    pub fn add(&mut self) -> usize {
        let number = self.started;
        self.started += 1;
        let listen = if self.options.unix {
            format!("unix:{}", self.temp.path().join(format!("node{number}.sock")).display())
        } else {
            "127.0.0.1:0".to_string()
        };
        let log = self.temp.path().join(format!("node{number}.log"));
        let join = self.addresses();
        let mut arguments = vec!["--listen", &listen, "--memory", self.options.memory, "--log", "info"];
        if self.nodes.is_empty() {
            arguments.push("--bootstrap");
        } else {
            arguments.extend(["--join", &join]);
        }
        arguments.extend(self.options.extra.iter().copied());
        self.nodes.push(Starting::spawn(&arguments, &log).ready());
        self.nodes.len() - 1
    }

    /// Addresses of all nodes that were started, for `--nodes` and `--join`.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The node with that incarnation.
    pub fn node(&mut self, id: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).unwrap_or_else(|| panic!("no node {id} was started"))
    }

    /// A `dfs` command on this cluster.
    pub fn dfs(&self, arguments: &[&str]) -> Finished {
        dfs_with(&self.addresses(), arguments, None)
    }

    /// As [`Cluster::dfs`], with bytes on standard input.
    pub fn dfs_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        dfs_with(&self.addresses(), arguments, Some(input))
    }

    /// As [`Cluster::dfs`]; the test fails if the command does. Gives its standard output.
    pub fn dfs_ok(&self, arguments: &[&str]) -> Vec<u8> {
        self.dfs(arguments).ok()
    }

    /// The JSON answer of a command.
    pub fn dfs_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let out = self.dfs_ok(&all);
        serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&out)))
    }

    /// Incarnations that hold chunks of the file.
    pub fn holders(&self, path: &str) -> Vec<String> {
        let located = self.dfs_json(&["locate", path]);
        let extents = located["extents"].as_array().expect("extents").clone();
        let nodes = extents.iter().flat_map(|extent| extent["holders"].as_array().expect("holders").clone());
        let mut ids: Vec<String> = nodes.map(|holder| holder["node"].as_str().expect("node").to_string()).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Incarnation of the leader, once there is one.
    pub fn leader(&self) -> String {
        let mut leader = None;
        wait_until(Duration::from_secs(15), "a leader is known", || {
            let status = self.dfs(&["--json", "status"]);
            let value: Option<serde_json::Value> = serde_json::from_slice(&status.output.stdout).ok();
            leader = value.and_then(|value| Some(value["leader"].as_str()?.to_string()));
            leader.is_some()
        });
        leader.expect("waited for")
    }
}

/// A command that has ended.
pub struct Finished {
    pub line: String,
    pub output: Output,
}

impl Finished {
    /// Exit code; -1 for a signal.
    pub fn code(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    /// Standard error as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Standard output as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Standard output of a command that succeeded, else the test fails with what it said.
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.code(), 0, "`{}` failed: {}", self.line, self.stderr());
        self.output.stdout
    }

    /// The one line on stderr of a command that failed with exit code 1 and wrote nothing to stdout.
    pub fn failed(&self) -> String {
        assert_eq!(self.code(), 1, "`{}`: exit code {}: {}", self.line, self.code(), self.stderr());
        assert!(self.output.stdout.is_empty(), "`{}`: a failure prints no result", self.line);
        assert_eq!(self.stderr().lines().count(), 1, "`{}`: one line, not {:?}", self.line, self.stderr());
        self.stderr()
    }
}

/// Runs `dfs` with `--nodes`.
pub fn dfs_with(nodes: &str, arguments: &[&str], input: Option<&[u8]>) -> Finished {
    let mut all = vec!["--nodes", nodes];
    all.extend(arguments);
    run("dfs", &all, input)
}

/// Runs one of the programs to its end, which must come within [`COMMAND_WITHIN`].
pub fn run(name: &str, arguments: &[&str], input: Option<&[u8]>) -> Finished {
    let mut command = Command::new(program(name));
    command.args(arguments).env_remove("RUST_LOG").env_remove("DFS_NODES").env_remove("DFS_SECRET_FILE");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("program starts");
    let feeder = child.stdin.take().zip(input.map(<[u8]>::to_vec)).map(|(mut stdin, bytes)| {
        std::thread::spawn(move || {
            let _ = stdin.write_all(&bytes); // The command may stop reading: its exit code tells.
        })
    });
    let stdout = drain(child.stdout.take().expect("piped"));
    let stderr = drain(child.stderr.take().expect("piped"));
    let line = format!("{name} {}", arguments.join(" "));
    let status = wait_child(&mut child, COMMAND_WITHIN, &format!("`{line}` ends"));
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    let output = Output { status, stdout: stdout.join().expect("reader"), stderr: stderr.join().expect("reader") };
    Finished { line, output }
}

fn drain(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// A mounted cluster, served by a `dfs-mount -f` of the test.
pub struct Mount {
    child: Child,
    directory: PathBuf,
    /// As in mountinfo.
    device: String,
    _temp: TempDir,
    pub log: PathBuf,
}

impl Mount {
    /// Mounts the cluster in a directory of its own.
    pub fn new(cluster: &Cluster) -> Self {
        Self::with(&["--nodes", &cluster.addresses()])
    }

    /// Mounts with these arguments (`--embedded`, `-o`, ...).
    pub fn with(arguments: &[&str]) -> Self {
        let temp = TempDir::new();
        let directory = temp.path().join("mnt");
        fs::create_dir(&directory).expect("mount point");
        Self::start(temp, directory, arguments)
    }

    /// Mounts at a directory of the test's own.
    pub fn at(directory: &Path, arguments: &[&str]) -> Self {
        Self::start(TempDir::new(), directory.to_path_buf(), arguments)
    }

    fn start(temp: TempDir, directory: PathBuf, arguments: &[&str]) -> Self {
        assert!(
            fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
            "cannot open /dev/fuse: the tests that mount need it; run them as root on a machine (or container) that has FUSE"
        );
        let log = temp.path().join("mount.log");
        let mut command = Command::new(program("dfs-mount"));
        command.args(["-f", "--log", "info"]).args(arguments).arg(&directory).env_remove("RUST_LOG").env_remove("DFS_NODES");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).expect("log file"));
        let mut child = command.spawn().expect("dfs-mount starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut mount = Mount { child, directory, device: String::new(), _temp: temp, log };
        let line = lines.recv_timeout(READY_WITHIN);
        let ready = line.as_ref().is_ok_and(|line| line.starts_with("ready mount="));
        assert!(ready, "dfs-mount not ready ({line:?}); its log:\n{}", mount.log_text());
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mine = table.lines().rev().find(|line| line.split(' ').nth(4) == mount.directory.to_str());
        mount.device = mine.and_then(|line| line.split(' ').nth(2)).unwrap_or_default().to_string();
        mount
    }

    /// The mounted directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What the kernel has asked of the mount so far, and what went over the network: numbers by name, as the mount reports them.
    pub fn report(&self) -> BTreeMap<String, u64> {
        let lines = || self.log_text().lines().filter(|line| line.contains(": report ")).map(str::to_string).collect::<Vec<_>>();
        let before = lines().len();
        self.signal(libc::SIGUSR1);
        wait_until(Duration::from_secs(10), "the mount reports", || lines().len() > before);
        let line = lines().pop().expect("waited for");
        line.split_whitespace().filter_map(|word| word.split_once('=')).map(|(key, value)| (key.into(), value.parse().unwrap())).collect()
    }

    /// Unmounts with `umount` and waits for the end of the process.
    pub fn unmount(mut self) -> ExitStatus {
        self.end()
    }

    /// The same, and its directory and log stay.
    pub fn end(&mut self) -> ExitStatus {
        let status = Command::new("umount").arg(&self.directory).status().expect("umount runs");
        assert!(status.success(), "umount {}", self.directory.display());
        self.wait(Duration::from_secs(10))
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(
                Instant::now() < end,
                "after {within:?} dfs-mount has not ended:\n{}\nits log:\n{}",
                self.why_it_lives(),
                self.log_text()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Where its threads are, and which processes still have the mount: a mount namespace that was copied before the unmounting keeps it.
    pub fn why_it_lives(&self) -> String {
        let mut lines = Vec::new();
        let entries = |directory: String| fs::read_dir(directory).into_iter().flatten().flatten();
        for thread in entries(format!("/proc/{}/task", self.pid())) {
            let told = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default().trim().to_string();
            let state = told("stat").rsplit_once(") ").map_or(String::new(), |(_, rest)| rest[..1].to_string());
            lines.push(format!("thread {} {state} in {}: {}", told("comm"), told("wchan"), told("syscall")));
        }
        for process in entries("/proc".to_string()).filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()) {
            let table = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
            if table.lines().any(|line| line.split(' ').nth(2) == Some(&self.device)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                lines.push(format!("process {} {} has the mount", process.file_name().display(), name.trim()));
            }
        }
        lines.join("\n")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// Whether its directory is a mount point, whoever made it.
    pub fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let wanted = self.directory.to_str();
        table.lines().any(|line| line.split(' ').nth(4) == wanted)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that a failed test never leaves a mount behind, whatever still uses it; and by force, so that nothing waits for a process
        // that is killed, not even its own threads. Not by umount(8), which looks at the mount before.
        let path = std::ffi::CString::new(self.directory.as_os_str().as_encoded_bytes()).expect("no NUL in a path");
        // SAFETY: a NUL-terminated path that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
        let _ = self.child.kill();
        // One whose thread waits in the kernel has failed its test already, and must not keep it from saying so.
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(POLL);
        }
    }
}
