//! Many small files: what a voter has resident for them, what a mount has that walks over all, how long nodes pause for a snapshot of
//! them, and how fast their copies are made again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs::Client;
use dfs::cluster_map::MemberState;

use crate::pauses::Pauses;
use crate::programs::{Mount, Node, Result, Scratch, resident_mib, resident_mib_most};
use crate::watch::Watch;

const SAMPLES: Duration = Duration::from_secs(5);
const DIRECTORY_FILES: u64 = 5000;
const THREADS: u64 = 4;
/// What is measured beside something is measured for so long beside nothing.
const QUIET: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Bytes in each file; up to 1024 stay in the namespace, more go into chunks.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    #[arg(long, default_value = "4GiB")]
    memory: String,
    #[arg(long, default_value = "256MiB")]
    cache: String,
}

pub fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::new("files")?;
    let mut nodes = Node::start_all(&options.memory, 3)?;
    let (first, cache) = (nodes[0].address.clone(), ["--cache", options.cache.as_str()]);
    let client = Client::connect(&[first.parse()?], dfs::client::Options::default())?;
    let before: Vec<f64> = nodes.iter().map(|node| resident_mib(node.pid())).collect();
    let mount = Mount::start(&first, &cache, &scratch.path().join("maker"))?;
    create(&mount, &nodes, options)?;
    let report = client.status()?;
    println!("{} inodes, {} bytes each by the namespace's own account", report.inodes, report.namespace_bytes / report.inodes.max(1));
    for (node, before) in nodes.iter().zip(&before) {
        let grown = resident_mib(node.pid()) - before;
        println!("a voter: {grown:.0} MiB for them, {:.0} MiB per million", grown * 1e6 / options.count as f64);
    }
    mount.unmount()?;

    walk(&first, &cache, &scratch.path().join("walker"))?;

    let beside = Mount::start(&first, &cache, &scratch.path().join("beside"))?;
    let pauses = Pauses::start(beside.directory.join("beside"));
    std::thread::sleep(QUIET);
    pauses.stop("while nothing else happens")?;
    let pauses = Pauses::start(beside.directory.join("beside"));
    let begun = Instant::now();
    nodes.push(Node::start(&options.memory, Some(&first))?);
    println!("a fourth node has joined and caught up after {:.1} s", begun.elapsed().as_secs_f64());
    std::thread::sleep(QUIET);
    pauses.stop("while a node joins")?;
    for (index, node) in nodes.iter().enumerate() {
        println!("node {}: resident {:.0} MiB, {:.0} MiB at most", index + 1, resident_mib(node.pid()), resident_mib_most(node.pid()));
    }
    wait_for_copies(&client, "moved to where they belong", |repair| repair.misplaced_chunks == 0, 4)?;
    let pauses = Pauses::start(beside.directory.join("beside"));
    drop(nodes.remove(2));
    wait_for_copies(&client, "made again after a node died", |repair| repair.weak_chunks == 0, 3)?;
    pauses.stop("while a node is dead and its copies are made again")?;
    beside.unmount()?;
    Ok(())
}

/// Makes the files with several threads, each in directories of its own.
fn create(mount: &Mount, nodes: &[Node], options: &Options) -> Result<()> {
    let made = Arc::new(AtomicU64::new(0));
    let mut processes: Vec<(String, u32)> = (1..).zip(nodes).map(|(index, node)| (format!("node {index}"), node.pid())).collect();
    processes.push(("mount".into(), mount.pid()));
    let counted = made.clone();
    let watch = Watch::start(SAMPLES, &processes, &["files"], move || vec![counted.load(Ordering::Relaxed) as f64]);
    let begun = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (root, made, bytes) = (mount.directory.clone(), made.clone(), options.bytes);
            let mine = (thread..options.count).step_by(THREADS as usize);
            std::thread::spawn(move || create_some(&root, thread, mine, bytes, &made))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread died")??;
    }
    File::open(&mount.directory)?.sync_all()?;
    println!("made {} files of {} bytes in {:.0} s", options.count, options.bytes, begun.elapsed().as_secs_f64());
    watch.stop().map(drop)
}

fn create_some(root: &Path, thread: u64, mine: impl Iterator<Item = u64>, bytes: usize, made: &AtomicU64) -> Result<()> {
    let (mut content, mut directory) = (vec![7; bytes], PathBuf::new());
    for (index, number) in (0..).zip(mine) {
        if index % DIRECTORY_FILES == 0 {
            directory = root.join(format!("directory-{thread}-{}", index / DIRECTORY_FILES));
            std::fs::create_dir(&directory)?;
        }
        let mut file = File::create_new(directory.join(format!("file-{number:09}")))?;
        if bytes > 0 {
            let head = bytes.min(8);
            content[..head].copy_from_slice(&number.to_le_bytes()[..head]);
            file.write_all(&content)?;
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Looks at every file on a mount that knows nothing yet.
fn walk(nodes: &str, cache: &[&str], directory: &Path) -> Result<()> {
    let mount = Mount::start(nodes, cache, directory)?;
    let seen = Arc::new(AtomicU64::new(0));
    let counted = seen.clone();
    let processes = [("mount that walks".to_string(), mount.pid())];
    let watch = Watch::start(SAMPLES, &processes, &["files"], move || vec![counted.load(Ordering::Relaxed) as f64]);
    let begun = Instant::now();
    for entry in std::fs::read_dir(&mount.directory)? {
        for file in std::fs::read_dir(entry?.path())? {
            file?.metadata()?;
            seen.fetch_add(1, Ordering::Relaxed);
        }
    }
    println!("walked over {} files in {:.0} s", seen.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    watch.stop()?;
    mount.unmount().map(drop)
}

/// Waits until repair is done with so many nodes, and tells how long it took.
fn wait_for_copies(client: &Client, what: &str, done: impl Fn(&dfs::wire::message::RepairReport) -> bool, living: usize) -> Result<()> {
    let begun = Instant::now();
    let mut most = 0;
    loop {
        let report = client.status()?;
        let repair = &report.repair;
        let known = report.members.iter().filter(|member| member.member.state == MemberState::Live).count() == living && repair.known;
        most = most.max(if known { repair.weak_chunks + repair.misplaced_chunks } else { 0 });
        if known && report.from_leader && done(repair) {
            println!(
                "copies {what} after {:.1} s, {most} were wanting at most, of {} chunks",
                begun.elapsed().as_secs_f64(),
                report.referenced_chunks
            );
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
