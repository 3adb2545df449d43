//! Measures the README's figures: a cluster of three node processes and a real mount, against a FUSE passthrough daemon over tmpfs.
//!
//!     cargo build --release --workspace && cargo run --release --example figures -- --tar tree.tar --baseline ./passthrough_ll
//!
//! Rounds alternate between the two systems, so that the machine's noise hits both; medians are printed. The baseline is libfuse's own
//! example `passthrough_ll` (any FUSE daemon that takes `-f -o source=DIR MOUNTPOINT` will do); without it only our figures are printed.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;

#[path = "common/programs.rs"]
mod programs;

use programs::{Mount, Node, Result, binary, cpu_seconds, resident_mib};

/// Options of the measurement.
#[derive(Parser)]
struct Options {
    /// Rounds; medians are taken over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the large file, MiB.
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Number of small files of 4 KiB.
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// Tar archive of a source tree.
    #[arg(long)]
    tar: Option<PathBuf>,
    /// A FUSE passthrough daemon.
    #[arg(long)]
    baseline: Option<PathBuf>,
}

/// Figure name -> one value per round.
type Figures = BTreeMap<&'static str, Vec<f64>>;

/// A file system under measurement: server processes, a mount that can be renewed to make caches cold.
struct System {
    name: &'static str,
    /// Ends before the nodes do.
    mount: Option<Mount>,
    nodes: Vec<Node>,
    mount_command: Vec<String>,
    directory: PathBuf,
    /// CPU seconds of mount processes that have ended.
    cpu_ended: f64,
}

impl System {
    fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        let mut command = Command::new(&self.mount_command[0]);
        command.args(&self.mount_command[1..]);
        self.mount = Some(Mount::with(command, &self.directory)?);
        // The kernel's page cache of the backing tmpfs is the storage itself; only dentries and pages above it are dropped.
        fs::write("/proc/sys/vm/drop_caches", "3").ok();
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        if let Some(mount) = self.mount.take() {
            self.cpu_ended += mount.unmount()?;
        }
        Ok(())
    }

    fn cpu(&self) -> f64 {
        let live: f64 = self.nodes.iter().map(Node::pid).chain(self.mount.iter().map(Mount::pid)).map(cpu_seconds).sum();
        live + self.cpu_ended
    }

    fn resident_nodes_mib(&self) -> f64 {
        self.nodes.iter().map(|node| resident_mib(node.pid())).sum()
    }
}

fn start_dfs(scratch: &Path) -> Result<System> {
    let directory = scratch.join("dfs");
    let nodes = Node::start_all("6GiB", 3)?;
    let mount_command = vec![
        binary("dfs-mount")?.display().to_string(),
        "-f".into(),
        "--log".into(),
        "warn".into(),
        "--nodes".into(),
        nodes[0].address.clone(),
        directory.display().to_string(),
    ];
    Ok(System { name: "dfs", nodes, mount: None, mount_command, directory, cpu_ended: 0.0 })
}

fn start_baseline(scratch: &Path, daemon: &Path) -> Result<System> {
    let directory = scratch.join("baseline");
    fs::create_dir_all(&directory)?;
    let source = PathBuf::from(format!("/dev/shm/figures-{}", std::process::id()));
    fs::create_dir_all(&source)?;
    let mount_command = vec![
        daemon.display().to_string(),
        "-f".into(),
        "-o".into(),
        format!("source={}", source.display()),
        directory.display().to_string(),
    ];
    Ok(System { name: "passthrough", nodes: Vec::new(), mount: None, mount_command, directory, cpu_ended: 0.0 })
}

/// Times `work` and notes `amount / seconds`, and the CPU seconds of all server processes per `amount`.
fn measure(
    system: &System,
    figures: &mut Figures,
    rate: &'static str,
    cost: (&'static str, f64),
    amount: f64,
    work: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let (cpu, start) = (system.cpu(), Instant::now());
    work(&system.directory)?;
    let seconds = start.elapsed().as_secs_f64();
    figures.entry(rate).or_default().push(amount / seconds);
    figures.entry(cost.0).or_default().push((system.cpu() - cpu) / amount * cost.1);
    Ok(())
}

fn large_write(directory: &Path, mib: usize, seed: u64) -> Result<()> {
    let mut block = vec![0u8; 1 << 20];
    let mut random = dfs::random::Random::new(seed);
    block.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&random.next().to_le_bytes()));
    let mut file = File::create(directory.join("large"))?;
    for index in 0..mib as u64 {
        block[..8].copy_from_slice(&index.to_le_bytes()); // every chunk is another one: nothing to deduplicate
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn large_read(directory: &Path, mib: usize) -> Result<()> {
    let mut block = vec![0u8; 1 << 20];
    let mut file = File::open(directory.join("large"))?;
    for index in 0..mib as u64 {
        file.read_exact(&mut block)?;
        if block[..8] != index.to_le_bytes() {
            return Err(format!("wrong bytes in MiB {index}").into());
        }
    }
    Ok(())
}

fn small_path(directory: &Path, index: usize) -> PathBuf {
    directory.join("small").join(format!("f{index}"))
}

fn small_create(directory: &Path, count: usize) -> Result<()> {
    fs::create_dir(directory.join("small"))?;
    let mut block = [7u8; 4096];
    for index in 0..count {
        block[..8].copy_from_slice(&(index as u64).to_le_bytes());
        File::create(small_path(directory, index))?.write_all(&block)?;
    }
    Ok(())
}

fn round(system: &mut System, figures: &mut Figures, options: &Options, seed: u64) -> Result<()> {
    let (mib, files) = (options.mib, options.files);
    system.remount()?;
    let gigabytes = (1u64 << 20) as f64 / 1e9;
    measure(system, figures, "write 1 file, MiB/s", ("write, CPU s/GB", 1.0 / gigabytes), mib as f64, |dir| large_write(dir, mib, seed))?;
    if !system.nodes.is_empty() {
        figures.entry("resident on nodes per stored MiB, both copies").or_default().push(system.resident_nodes_mib() / mib as f64);
    }
    system.remount()?;
    measure(system, figures, "cold read, MiB/s", ("read, CPU s/GB", 1.0 / gigabytes), mib as f64, |dir| large_read(dir, mib))?;
    measure(system, figures, "create+write+close, files/s", ("create, CPU us/file", 1e6), files as f64, |dir| small_create(dir, files))?;
    system.remount()?;
    measure(system, figures, "cold stat, files/s", ("stat, CPU us/file", 1e6), files as f64, |dir| {
        (0..files).try_for_each(|index| Ok(fs::metadata(small_path(dir, index)).map(drop)?))
    })?;
    system.remount()?;
    measure(system, figures, "cold open+read+close, files/s", ("small read, CPU us/file", 1e6), files as f64, |dir| {
        (0..files).try_for_each(|index| match fs::read(small_path(dir, index))? {
            content if content.len() == 4096 => Ok(()),
            content => Err(format!("file {index} has {} bytes", content.len()).into()),
        })
    })?;
    if let Some(tar) = &options.tar {
        let count = String::from_utf8_lossy(&Command::new("tar").arg("tf").arg(tar).output()?.stdout).lines().count();
        measure(system, figures, "untar, files/s", ("untar, CPU us/file", 1e6), count as f64, |dir| {
            fs::create_dir(dir.join("tree"))?;
            let done = Command::new("tar").arg("xf").arg(tar).arg("-C").arg(dir.join("tree")).status()?;
            if done.success() { Ok(()) } else { Err("tar failed".into()) }
        })?;
    }
    let done = Command::new("sh").arg("-c").arg("rm -rf -- \"$0\"/*").arg(&system.directory).status()?;
    if !done.success() {
        return Err("rm -rf failed".into());
    }
    system.unmount()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Resident memory that a voter of a fresh cluster takes for a million empty files, from a hundred thousand made through `dfs-mount`.
fn empty_files(scratch: &Path) -> Result<f64> {
    const COUNT: usize = 100_000;
    let mut system = start_dfs(scratch)?;
    system.remount()?;
    let directory = system.directory.join("empty");
    fs::create_dir(&directory)?;
    let before = system.resident_nodes_mib();
    (0..COUNT).try_for_each(|index| File::create(directory.join(format!("e{index}"))).map(drop))?;
    let grown = system.resident_nodes_mib() - before;
    system.unmount()?;
    Ok(grown / system.nodes.len() as f64 * (1_000_000.0 / COUNT as f64))
}

fn main() -> Result<()> {
    let options = Options::parse();
    let scratch = std::env::temp_dir().join(format!("dfs-figures-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let mut systems = vec![start_dfs(&scratch)?];
    if let Some(daemon) = &options.baseline {
        systems.push(start_baseline(&scratch, daemon)?);
    }
    let mut all: Vec<Figures> = systems.iter().map(|_| Figures::new()).collect();
    for number in 0..options.rounds {
        for (system, figures) in systems.iter_mut().zip(&mut all) {
            round(system, figures, &options, number as u64)?;
            eprintln!("round {} of {}: {} done", number + 1, options.rounds, system.name);
        }
    }
    println!("| figure (median of {} rounds) | dfs | passthrough | ratio of paired rounds |", options.rounds);
    println!("| --- | --- | --- | --- |");
    for (name, ours) in &all[0] {
        let theirs = all.get(1).and_then(|figures| figures.get(name));
        let ratio = theirs.map(|theirs| median(&ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>()));
        let show = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.2}"));
        println!("| {name} | {:.1} | {} | {} |", median(ours), show(theirs.map(|values| median(values))), show(ratio));
    }
    drop(systems);
    println!("| resident MiB of a voter per million empty files | {:.0} | - | - |", empty_files(&scratch)?);
    fs::remove_dir_all(&scratch).ok();
    fs::remove_dir_all(format!("/dev/shm/figures-{}", std::process::id())).ok();
    Ok(())
}
