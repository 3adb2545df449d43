//! What the examples that measure share: real `dfs-node` and `dfs-mount` processes of this build, gone when dropped.
#![allow(dead_code)]

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Time for a mount to appear and to end.
const MOUNT_WITHIN: Duration = Duration::from_secs(30);

/// A directory of this process, gone when dropped.
pub struct Scratch(PathBuf);

/// A storage node.
pub struct Node {
    child: Child,
    pub address: String,
}

/// A mount.
pub struct Mount {
    child: Child,
    pub directory: PathBuf,
}

pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = std::env::current_exe()?.parent().and_then(Path::parent).ok_or("no target directory")?.to_path_buf();
    let path = directory.join(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is missing: cargo build --release --workspace", path.display()).into()) }
}

pub fn is_mounted(directory: &Path) -> Result<bool> {
    let wanted = directory.to_string_lossy().to_string();
    Ok(fs::read_to_string("/proc/mounts")?.lines().any(|line| line.split(' ').nth(1) == Some(wanted.as_str())))
}

pub fn cpu_seconds(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Resident MiB of a process now.
pub fn resident_mib(pid: u32) -> f64 {
    status_mib(pid, "VmRSS:")
}

/// The most that it ever was.
pub fn resident_mib_most(pid: u32) -> f64 {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> f64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0.0 };
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

impl Scratch {
    pub fn new(name: &str) -> Result<Scratch> {
        let directory = std::env::temp_dir().join(format!("dfs-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Scratch(directory))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Node {
    /// Starts a node that forms a cluster, or joins that of `join`; returns when it is ready.
    pub fn start(memory: &str, join: Option<&str>) -> Result<Node> {
        let mut command = Command::new(binary("dfs-node")?);
        command.args(["--listen", "127.0.0.1:0", "--memory", memory, "--log", "warn"]).stdout(Stdio::piped());
        if let Some(address) = join {
            command.args(["--join", address]);
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("listen=")).ok_or("the node printed no ready line")?;
        Ok(Node { address: address.to_string(), child })
    }

    /// A cluster of so many.
    pub fn start_all(memory: &str, count: usize) -> Result<Vec<Node>> {
        let mut nodes = vec![Node::start(memory, None)?];
        while nodes.len() < count {
            nodes.push(Node::start(memory, Some(&nodes[0].address))?);
        }
        Ok(nodes)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mount {
    /// Mounts the cluster at `directory`, which is made.
    pub fn start(nodes: &str, options: &[&str], directory: &Path) -> Result<Mount> {
        let mut command = Command::new(binary("dfs-mount")?);
        command.args(["-f", "--log", "warn", "--nodes", nodes]).args(options).arg(directory);
        Mount::with(command, directory)
    }

    /// Runs a command that mounts at `directory` and stays in the foreground.
    pub fn with(mut command: Command, directory: &Path) -> Result<Mount> {
        fs::create_dir_all(directory)?;
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let mut mount = Mount { child, directory: directory.to_path_buf() };
        let end = Instant::now() + MOUNT_WITHIN;
        while !is_mounted(directory)? {
            if let Some(status) = mount.child.try_wait()? {
                return Err(format!("{command:?} did not mount: {status}").into());
            }
            if Instant::now() > end {
                return Err(format!("{command:?} did not mount in time").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(mount)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Unmounts, and waits for the process to end. Returns the processor seconds that it took.
    pub fn unmount(mut self) -> Result<f64> {
        let cpu = cpu_seconds(self.pid());
        let done = Command::new("umount").arg(&self.directory).status()?;
        if !done.success() {
            return Err("umount failed".into());
        }
        self.child.wait()?;
        Ok(cpu)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = Command::new("umount").arg("-l").arg(&self.directory).stderr(Stdio::null()).status();
        let end = Instant::now() + MOUNT_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
