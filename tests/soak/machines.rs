//! The cluster of a soak: one node and one network namespace per machine, two machines that mount, one that looks on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::common::{self, Finished, Mount, Node, Starting, TempDir, wait_until};
use crate::namespaces::{Host, Network};
use crate::proxy::Proxy;

pub const NODES: usize = 5;
pub const MOUNTS: usize = 2;
/// Where others reach a node.
const PORT: u16 = 7400;
/// Where it listens if there is a proxy before it.
const PORT_BEHIND: u16 = 7401;
const MEMORY: &str = "512MiB";
/// After a fault is mended: copies of what little a soak stores, a voter taken in again, on a loaded machine.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// From a node that has not been heard for longer nobody knows whether it is well.
const SILENT_MS_MAX: u64 = 1000;

/// One machine with a node.
pub struct Machine {
    pub host: Host,
    pub proxy: Option<Proxy>,
    /// `None` between its death and its next life.
    pub node: Option<Node>,
    lives: usize,
}

/// All machines. Fields are dropped in this order: mounts and processes before the network that they are in.
pub struct Cluster {
    pub mounts: Vec<Mount>,
    pub machines: Vec<Machine>,
    pub network: Network,
    temp: TempDir,
}

impl Cluster {
    /// Starts all nodes and mounts; the machines named in `behind_proxies` have a slow wire.
    pub fn start(behind_proxies: &[usize]) -> Self {
        let nodes = (0..NODES).map(|index| format!("n{index}"));
        let mounts = (0..MOUNTS).map(|index| format!("m{index}"));
        let names: Vec<String> = nodes.chain(mounts).chain(["looker".to_string()]).collect();
        let network = Network::new(&names);
        let machine = |index: usize| {
            let host = network.hosts[index].clone();
            let proxy = behind_proxies.contains(&index).then(|| Proxy::start(&host, PORT, PORT_BEHIND));
            Machine { host, proxy, node: None, lives: 0 }
        };
        let machines = (0..NODES).map(machine).collect();
        let mut cluster = Cluster { mounts: Vec::new(), machines, network, temp: TempDir::new() };
        (0..NODES).for_each(|index| cluster.start_node(index));
        for index in 0..MOUNTS {
            let addresses = cluster.addresses();
            let mount = cluster.mount_host(index).inside(|| Mount::with(&["--nodes", &addresses]));
            cluster.mounts.push(mount);
        }
        cluster
    }

    pub fn mount_host(&self, index: usize) -> &Host {
        self.network.host(&format!("m{index}"))
    }

    fn address(&self, index: usize) -> String {
        format!("{}:{PORT}", self.machines[index].host.address)
    }

    /// Addresses of all nodes.
    pub fn addresses(&self) -> String {
        (0..NODES).map(|index| self.address(index)).collect::<Vec<_>>().join(",")
    }

    /// The first life of the first node forms the cluster; every other joins it. Returns when it is ready.
    pub fn start_node(&mut self, index: usize) {
        let (address, all) = (self.address(index), self.addresses());
        let behind = format!("{}:{PORT_BEHIND}", self.machines[index].host.address);
        let log = self.log(index, self.machines[index].lives);
        let mut arguments = vec!["--insecure", "--memory", MEMORY, "--log", "info", "--advertise", &address];
        arguments.extend(["--listen", if self.machines[index].proxy.is_some() { &behind } else { &address }]);
        if index == 0 && self.machines[0].lives == 0 {
            arguments.push("--bootstrap");
        } else {
            arguments.extend(["--join", &all]);
        }
        let machine = &mut self.machines[index];
        machine.node = Some(machine.host.inside(|| Starting::spawn(&arguments, &log).ready()));
        machine.lives += 1;
    }

    fn log(&self, index: usize, life: usize) -> PathBuf {
        self.temp.path().join(format!("node{index}-{life}.log"))
    }

    /// A `dfs` command, from the machine that looks on.
    pub fn dfs(&self, arguments: &[&str]) -> Finished {
        let addresses = self.addresses();
        self.network.host("looker").inside(|| common::dfs_with(&addresses, arguments, None))
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_slice(&self.dfs(&["--json", "status"]).output.stdout).ok()
    }

    /// The machine whose node leads.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.status()?["leader"].as_str()?.to_string();
        self.machines.iter().position(|machine| machine.node.as_ref().is_some_and(|node| node.id == leader))
    }

    /// Waits until every copy is made and all nodes live, vote and are heard: the promise bears another fault. Gives what is wanting if it takes too long.
    pub fn until_whole(&self) -> Result<(), String> {
        let end = std::time::Instant::now() + WHOLE_WITHIN;
        loop {
            let status = self.status().unwrap_or_default();
            if is_whole(&status) {
                return Ok(());
            }
            if std::time::Instant::now() > end {
                return Err(format!("{WHOLE_WITHIN:?} after the last fault was mended the cluster is not whole: {status}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Nodes and mounts whose process has ended unasked, and what any of them said of a panic.
    pub fn casualties(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (index, machine) in self.machines.iter_mut().enumerate() {
            if machine.node.as_mut().is_some_and(|node| !node.is_running()) {
                found.push(format!("node {index} ended by itself"));
            }
        }
        let lives = self.machines.iter().enumerate().flat_map(|(index, machine)| (0..machine.lives).map(move |life| (index, life)));
        let logs = lives.map(|(index, life)| self.log(index, life)).chain(self.mounts.iter().map(|mount| mount.log.clone()));
        for log in logs {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let panics = text.lines().filter(|line| line.contains("panicked")).map(str::to_string);
            found.extend(panics.map(|line| format!("{}: {line}", log.display())));
        }
        found
    }

    /// Copies all logs to a directory, for whoever looks into a failure.
    fn keep_logs(&self, directory: &Path) {
        let _ = std::fs::create_dir_all(directory);
        for (index, machine) in self.machines.iter().enumerate() {
            for life in 0..machine.lives {
                let log = self.log(index, life);
                let _ = std::fs::copy(&log, directory.join(log.file_name().expect("a file")));
            }
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            let _ = std::fs::copy(&mount.log, directory.join(format!("mount{index}.log")));
        }
    }

    /// Unmounts, stops the cluster by the command for it, and waits for the end of every process.
    pub fn end(mut self) {
        for mount in &mut self.mounts {
            assert!(mount.end().success(), "dfs-mount of {} ends well", mount.path().display());
        }
        self.dfs(&["shutdown"]).ok();
        for (index, machine) in self.machines.iter_mut().enumerate() {
            let mut node = machine.node.take().expect("all nodes live at the end");
            assert!(node.wait(Duration::from_secs(20)).success(), "node {index} ends well");
        }
        let inside = |host: &Host| host.inside(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default());
        let listens = |text: &str| text.lines().any(|line| line.split_whitespace().nth(3) == Some("0A"));
        wait_until(Duration::from_secs(5), "nobody listens any more", || {
            self.machines.iter().filter(|machine| machine.proxy.is_none()).all(|machine| !listens(&inside(&machine.host)))
        });
    }
}

fn is_whole(status: &Value) -> bool {
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let live = nodes.iter().filter(|node| {
        node["state"] == "live" && node["voter"] == true && node["silent_ms"].as_u64().is_none_or(|silent| silent <= SILENT_MS_MAX)
    });
    let repair = &status["repair"];
    status["from_leader"] == true
        && live.count() == NODES
        && status["degraded"].is_null()
        && repair["known"] == true
        && ["weak_chunks", "misplaced_chunks", "lost_chunks"].iter().all(|what| repair[what] == 0)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(directory) = std::env::var_os("DFS_SOAK_LOGS").filter(|_| std::thread::panicking()) {
            self.keep_logs(Path::new(&directory));
        }
    }
}
