//! Much passes through one mount: files are written, read back from the nodes, and deleted.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs::random::Random;

use crate::programs::{Mount, Node, Result, Scratch};
use crate::watch::Watch;

const SAMPLES: Duration = Duration::from_secs(5);
const FILE_BLOCKS: u64 = 128;
const BLOCK_BYTES: usize = 1 << 20;
/// Every other file is read in pieces of that size, in no order.
const PIECE_BYTES: u64 = 64 << 10;

#[derive(clap::Args)]
pub struct Options {
    /// Bytes in all, half of them written and half of them read.
    #[arg(long, default_value_t = 50)]
    gib: u64,
    #[arg(long, default_value = "1GiB")]
    memory: String,
    #[arg(long, default_value = "256MiB")]
    cache: String,
    #[arg(long, default_value_t = 2)]
    workers: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::new("passage")?;
    let nodes = Node::start_all(&options.memory, 3)?;
    let mount = Mount::start(&nodes[0].address, &["--cache", &options.cache], &scratch.path().join("mount"))?;
    let passed = Arc::new(AtomicU64::new(0));
    let mut processes: Vec<(String, u32)> = (1..).zip(&nodes).map(|(index, node)| (format!("node {index}"), node.pid())).collect();
    processes.push(("mount".into(), mount.pid()));
    let counted = passed.clone();
    let watch =
        Watch::start(SAMPLES, &processes, &["passed MiB"], move || vec![counted.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)]);
    let begun = Instant::now();
    let rounds = (options.gib << 30).div_ceil(2 * FILE_BLOCKS * BLOCK_BYTES as u64 * options.workers);
    let workers: Vec<_> = (0..options.workers)
        .map(|number| {
            let (directory, passed) = (mount.directory.clone(), passed.clone());
            std::thread::spawn(move || (0..rounds).try_for_each(|round| pass(&directory, number, round, &passed)))
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker died")??;
    }
    watch.stop()?;
    let mib = passed.load(Ordering::Relaxed) >> 20;
    println!("{mib} MiB in all, {:.0} MiB/s", mib as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}

/// Writes a file, reads it, and deletes the one before.
fn pass(directory: &Path, worker: u64, round: u64, passed: &AtomicU64) -> Result<()> {
    let path = |round: u64| directory.join(format!("{worker}-{round}"));
    let mut random = Random::new(worker << 32 | round);
    let mut block: Vec<u8> = (0..BLOCK_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut file = File::create_new(path(round))?;
    for index in 0..FILE_BLOCKS {
        block[..8].copy_from_slice(&index.to_le_bytes()); // every chunk is another one: nothing to deduplicate
        file.write_all(&block)?;
        passed.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
    }
    file.sync_all()?;
    drop(file);
    let file = File::open(path(round))?;
    // SAFETY: advice about a descriptor of ours. What the kernel kept of the file is read from the mount again.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let piece = if round.is_multiple_of(2) { BLOCK_BYTES as u64 } else { PIECE_BYTES };
    let mut places: Vec<u64> = (0..FILE_BLOCKS * BLOCK_BYTES as u64 / piece).map(|index| index * piece).collect();
    if piece == PIECE_BYTES {
        (1..places.len()).for_each(|index| places.swap(index, random.below(index as u64 + 1) as usize));
    }
    let mut found = vec![0; piece as usize];
    for at in places {
        file.read_exact_at(&mut found, at)?;
        let (index, from) = (at / BLOCK_BYTES as u64, at as usize % BLOCK_BYTES);
        block[..8].copy_from_slice(&index.to_le_bytes());
        if found != block[from..from + piece as usize] {
            return Err(format!("wrong bytes at {at} of {}", path(round).display()).into());
        }
        passed.fetch_add(piece, Ordering::Relaxed);
    }
    if round > 0 {
        std::fs::remove_file(path(round - 1))?;
    }
    Ok(())
}
