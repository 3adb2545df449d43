//! A network of its own for each machine of a soak: Linux network namespaces, a bridge between them, and rules that drop what must not pass.
//!
//! All of it lies in namespaces with one prefix, so nothing of the machine's own network is touched, and what a killed soak left behind
//! is known by its name.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::time::Duration;

use crate::common::send_signal;

const PREFIX: &str = "dfs-soak-";
/// Namespace of the bridge.
const SWITCH: &str = "dfs-soak-switch";
/// The first three numbers of all addresses: they are seen only inside the namespaces.
const SUBNET: &str = "10.74.0";

/// Only one soak at a time: names and addresses are the same for all. The name ends with the process, whatever becomes of it.
pub struct Turn(#[allow(dead_code)] UnixListener);

impl Turn {
    /// Waits for the end of other soaks on this machine.
    pub fn take() -> Self {
        let name = SocketAddr::from_abstract_name("dfs-soak").expect("a short name");
        let mut said = false;
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(listener) => return Turn(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("cannot take the name that keeps soaks apart: {error}"),
            }
            if !said {
                println!("another soak is under way on this machine; waiting for its end");
                said = true;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Runs a command of the machine that must succeed; gives its output.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {} failed: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Space-separated arguments of `ip`.
fn ip(line: &str) -> String {
    tool("ip", &line.split(' ').collect::<Vec<_>>())
}

/// Names of all namespaces that a soak has made.
pub fn left_behind() -> Vec<String> {
    let listed = ip("netns list");
    listed.lines().filter_map(|line| line.split(' ').next()).filter(|name| name.starts_with(PREFIX)).map(str::to_string).collect()
}

/// Removes what a soak left behind that was killed. The caller has the [`Turn`], so no living soak owns it.
fn clear() {
    for name in left_behind() {
        for pid in ip(&format!("netns pids {name}")).lines().filter_map(|line| line.parse().ok()) {
            send_signal(pid, libc::SIGKILL);
        }
        ip(&format!("netns del {name}"));
    }
}

/// The network of one soak; all gone when dropped.
pub struct Network {
    pub hosts: Vec<Host>,
}

/// One machine in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    pub address: String,
}

impl Network {
    /// Makes one machine per name, each with a cable to one switch.
    pub fn new(names: &[String]) -> Self {
        clear();
        let mut network = Network { hosts: Vec::new() };
        ip(&format!("netns add {SWITCH}"));
        ip(&format!("-n {SWITCH} link add switch type bridge"));
        ip(&format!("-n {SWITCH} link set switch up"));
        for (index, name) in names.iter().enumerate() {
            let host = Host { namespace: format!("{PREFIX}{name}"), address: format!("{SUBNET}.{}", index + 1) };
            let inside = &host.namespace;
            ip(&format!("netns add {inside}"));
            ip(&format!("-n {inside} link add cable type veth peer name {name} netns {SWITCH}"));
            ip(&format!("-n {SWITCH} link set {name} master switch up"));
            ip(&format!("-n {inside} address add {}/24 dev cable", host.address));
            ip(&format!("-n {inside} link set cable up"));
            ip(&format!("-n {inside} link set lo up"));
            host.rules("add table ip soak; add chain ip soak arriving { type filter hook input priority 0; }");
            network.hosts.push(host);
        }
        network
    }

    /// The machine of that name.
    pub fn host(&self, name: &str) -> &Host {
        let wanted = format!("{PREFIX}{name}");
        self.hosts.iter().find(|host| host.namespace == wanted).unwrap_or_else(|| panic!("there is no machine {name}"))
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.hosts.iter().for_each(Host::heal);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().map(|host| host.namespace.as_str()).chain([SWITCH]) {
            let _ = Command::new("ip").args(["netns", "del", name]).output(); // Another failure may be what ends the soak.
        }
    }
}

impl Host {
    /// Does something as on this machine: sockets that it makes and processes that it starts are here.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            self.enter();
            work()
        };
        // A thread has a namespace of its own; the caller's stays as it is.
        let result = std::thread::scope(|scope| scope.spawn(entered).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread to this machine.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.namespace)).expect("the namespace is there");
        // SAFETY: plain system call with an open descriptor; it changes the calling thread alone.
        let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "cannot enter {}: {}", self.namespace, std::io::Error::last_os_error());
    }

    /// Drops that share of what arrives here from those machines. Dropped at the receiver, the sender's kernel sees what it would see of a
    /// broken wire: nothing.
    pub fn refuse(&self, from: &[&Host], percent: u32) {
        let senders = from.iter().map(|host| host.address.as_str()).collect::<Vec<_>>().join(", ");
        let share = if percent < 100 { format!("numgen random mod 100 < {percent} ") } else { String::new() };
        self.rules(&format!("add rule ip soak arriving ip saddr {{ {senders} }} {share}drop"));
    }

    /// Everything arrives again.
    pub fn heal(&self) {
        self.rules("flush chain ip soak arriving");
    }

    fn rules(&self, rules: &str) {
        tool("ip", &["netns", "exec", &self.namespace, "nft", rules]);
    }
}

/// Whether the tools are there, else which one is wanted and what to do.
pub fn missing_tools(names: &[(&str, &str)]) -> Option<String> {
    let lacks = |program: &str| Command::new(program).arg("--version").output().is_err();
    let missing: Vec<String> =
        names.iter().filter(|(program, _)| lacks(program)).map(|(program, package)| format!("{program} (package {package})")).collect();
    (!missing.is_empty()).then(|| format!("the soak needs {}; install it", missing.join(", ")))
}
