//! Real `dfs-node` processes: ready lines, one thread each, one clear line when something is wrong, orderly ends.

// A test of real processes waits by the real clock.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process that does not outlive its test.
struct Process {
    child: Child,
    /// What `ready` said: address, cluster, node.
    ready: Vec<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfs-node"));
    command.args(line.split_whitespace()).env_remove("RUST_LOG").env_remove("DFS_SECRET_FILE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Process {
    /// Starts a node and waits for its ready line.
    fn start(line: &str) -> Process {
        let mut child = command(line).stderr(Stdio::null()).spawn().expect("the binary is built");
        let (sender, receiver) = std::sync::mpsc::channel();
        let out = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(out).read_line(&mut text);
            let _ = sender.send(text);
        });
        let mut process = Process { child, ready: Vec::new() };
        let text = receiver.recv_timeout(Duration::from_secs(15)).expect("ready in time");
        let values = ["listen=", "cluster=", "node="].map(|key| {
            let value = text.split_whitespace().find_map(|word| word.strip_prefix(key));
            value.unwrap_or_else(|| panic!("no {key} in '{text}'")).to_string()
        });
        assert!(text.starts_with("ready "), "{text}");
        process.ready = values.to_vec();
        process
    }

    fn address(&self) -> &str {
        &self.ready[0]
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs").count()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Waits until the signal is no longer pending: a second one sent earlier would merge with it.
    fn until_taken(&self, signal: libc::c_int) {
        let begun = Instant::now();
        let is_pending = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("not collected yet");
            let sets = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:").or(line.strip_prefix("SigPnd:")));
            sets.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok()).any(|set| set & (1 << (signal - 1)) != 0)
        };
        while is_pending() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the signal is still pending");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(&mut self, at_most: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < at_most, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Runs to the end: exit code and what stood on stderr.
fn refused(line: &str) -> (i32, String) {
    let mut child = command(line).spawn().expect("the binary is built");
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("readable");
    (child.wait().expect("a child").code().expect("no signal"), text)
}

#[test]
fn three_processes_form_a_cluster_of_one_thread_each() {
    let mut first = Process::start("--listen 127.0.0.1:0 --memory 64MiB");
    let join = first.address().to_string();
    let second = Process::start(&format!("--listen 127.0.0.1:0 --memory 64MiB --join {join}"));
    let begun = Instant::now();
    let mut third = Process::start(&format!("--listen 127.0.0.1:0 --memory 64MiB --join 127.0.0.1:1,{join}"));
    assert!(begun.elapsed() < Duration::from_secs(10));
    for node in [&first, &second, &third] {
        assert_eq!(node.ready[1], first.ready[1], "one cluster");
        assert_eq!(node.threads(), 1);
    }
    first.signal(libc::SIGKILL);
    first.end(Duration::from_secs(1));
    let again = Process::start(&format!("--listen {join} --memory 64MiB --join {}", second.address()));
    assert_eq!(again.ready[1], first.ready[1]);
    assert_ne!(again.ready[2], first.ready[2], "another incarnation");
    third.signal(libc::SIGTERM);
    assert!(third.end(Duration::from_secs(10)).success());
}

#[test]
fn a_unix_socket_is_an_address_too() {
    let path = std::env::temp_dir().join(format!("dfs-node-{}.sock", std::process::id()));
    let mut node = Process::start(&format!("--listen unix:{} --memory 64MiB", path.display()));
    let mut other = Process::start(&format!("--listen 127.0.0.1:0 --memory 64MiB --join unix:{}", path.display()));
    assert_eq!(node.ready[1], other.ready[1]);
    other.signal(libc::SIGINT);
    assert!(other.end(Duration::from_secs(2)).success());
    node.signal(libc::SIGTERM);
    node.until_taken(libc::SIGTERM);
    node.signal(libc::SIGTERM);
    assert!(node.end(Duration::from_secs(2)).success(), "the second SIGTERM ends at once");
    assert!(!path.exists(), "nothing is left behind");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let node = Process::start("--listen 127.0.0.1:0 --memory 64MiB");
    let (code, text) = refused(&format!("--listen {}", node.address()));
    assert_eq!(code, 1);
    assert!(text.lines().count() == 1 && text.contains("in use") && text.contains("--listen"), "{text}");
    for line in ["--http 127.0.0.1:1", "--listen 10.0.0.1:7400", "--secret-file x"] {
        let (code, text) = refused(line);
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    }
    assert_eq!(refused("--memory lots").0, 2);
}
