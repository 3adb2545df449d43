//! Files of all sizes come and go for a while, at about 90 % of what fits and now and then until nothing fits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs::random::Random;

use crate::programs::{Mount, Node, Result, Scratch};
use crate::stored::{self, Done, Stored};
use crate::watch::{Sample, Watch, median};

const SAMPLES: Duration = Duration::from_secs(5);
/// Files become at most this large, for so long each: the space that large ones leave is taken by small ones, and the other way round.
const SIZES: [u64; 4] = [stored::RUN_BYTES_MAX, 64 << 10, stored::RUN_BYTES_MAX, 1 << 20];
const SIZES_FOR: Duration = Duration::from_secs(75);
/// Beyond this share of the space, in percent, more is deleted than written.
const FULL_PERCENT: u64 = 90;
/// This often everything is filled until nothing fits.
const FILL_EVERY: Duration = Duration::from_secs(60);
/// What was deleted can be written again within this time.
const FREED_WITHIN: Duration = Duration::from_secs(10);
const COUNTERS: &[&str] = &["used %", "stored MiB", "operations", "refused"];

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    #[arg(long, default_value = "512MiB")]
    memory: String,
    #[arg(long, default_value = "256MiB")]
    cache: String,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Threads that change files, each in its own directory.
    #[arg(long, default_value_t = 2)]
    workers: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the workers and the sampler share.
struct Shared {
    root: PathBuf,
    begun: Instant,
    end: Instant,
    /// Somebody fills the space: nobody deletes.
    filling: AtomicBool,
    failed: AtomicBool,
    stored: AtomicU64,
    operations: AtomicU64,
    refused: AtomicU64,
    fills: AtomicU64,
    verified: AtomicU64,
}

struct Worker {
    shared: Arc<Shared>,
    random: Random,
    directory: PathBuf,
    files: Vec<Stored>,
    names: u64,
    used_percent: u64,
    filled: Instant,
}

impl Worker {
    fn new(shared: &Arc<Shared>, number: u64, seed: u64) -> Result<Worker> {
        let directory = shared.root.join(number.to_string());
        std::fs::create_dir(&directory)?;
        let random = Random::new(seed + number);
        Ok(Worker { shared: shared.clone(), random, directory, files: Vec::new(), names: 0, used_percent: 0, filled: shared.begun })
    }

    /// Works until the time is over; gives back what is stored then.
    fn run(mut self, fills: bool) -> Result<Vec<Stored>> {
        let worked = loop {
            if Instant::now() >= self.shared.end || self.shared.failed.load(Ordering::Relaxed) {
                break Ok(());
            }
            let step = if fills && self.filled.elapsed() >= FILL_EVERY { self.fill() } else { self.step() };
            if let Err(error) = step {
                self.shared.failed.store(true, Ordering::Relaxed);
                break Err(error);
            }
        };
        worked.map(|()| self.files)
    }

    /// Log-uniform: as many files between 1 and 2 KiB as between 1 and 2 MiB.
    fn size(&mut self, largest: u64) -> u64 {
        let share = self.random.below(1 << 32) as f64 / (1u64 << 32) as f64;
        (largest as f64).powf(share) as u64
    }

    fn largest(&self) -> u64 {
        SIZES[(self.shared.begun.elapsed().as_secs() / SIZES_FOR.as_secs()) as usize % SIZES.len()]
    }

    fn step(&mut self) -> Result<()> {
        let count = self.shared.operations.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(16) || self.used_percent >= FULL_PERCENT {
            let (all, free) = stored::space(&self.shared.root)?;
            self.used_percent = (all - free) * 100 / all;
        }
        let filling = self.shared.filling.load(Ordering::Relaxed);
        let deletes = match (filling, self.used_percent >= FULL_PERCENT) {
            (true, _) => 0,
            (false, true) => 60,
            (false, false) => 15,
        };
        let largest = self.largest();
        match self.random.below(100) {
            choice if choice < deletes => self.delete(),
            choice if choice < 70 => {
                let size = self.size(largest);
                self.create(size).map(drop)
            }
            choice if choice < 82 => self.change(largest),
            _ => self.verify_some(),
        }
    }

    fn account(&self, before: u64, after: u64, done: Done) {
        self.shared.stored.fetch_add(after, Ordering::Relaxed);
        self.shared.stored.fetch_sub(before, Ordering::Relaxed);
        self.shared.refused.fetch_add(u64::from(done == Done::NoSpace), Ordering::Relaxed);
    }

    /// A new file, or sometimes an old one written anew.
    fn create(&mut self, size: u64) -> Result<Done> {
        if self.files.is_empty() || self.random.chance(7, 8) {
            self.names += 1;
            self.files.push(Stored::new(self.directory.join(format!("f{}", self.names))));
        } else {
            let index = self.random.below(self.files.len() as u64) as usize;
            let last = self.files.len() - 1;
            self.files.swap(index, last);
        }
        let file = self.files.last_mut().ok_or("just pushed")?;
        let before = file.length;
        let done = file.rewrite(&mut self.random, size)?;
        let after = file.length;
        // Without space for its name there is no file.
        if done == Done::NoSpace && after == 0 && !file.path.exists() {
            self.files.pop();
        }
        self.account(before, after, done);
        Ok(done)
    }

    fn change(&mut self, largest: u64) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let size = self.size(largest.min(1 << 20));
        let index = self.random.below(self.files.len() as u64) as usize;
        let file = &mut self.files[index];
        let before = file.length;
        let done = match self.random.below(4) {
            0 => {
                let length = self.random.below(before + before / 4 + 2);
                file.truncate(length)?
            }
            1 => file.append(&mut self.random, size)?,
            _ => {
                let at = self.random.below(before + 1);
                file.write_at(&mut self.random, at, size)?
            }
        };
        let after = file.length;
        self.account(before, after, done);
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.files.len() as u64) as usize;
        let file = self.files.swap_remove(index);
        std::fs::remove_file(&file.path).map_err(|error| format!("unlink of {}: {error}", file.path.display()))?;
        self.account(file.length, 0, Done::Whole);
        Ok(())
    }

    fn verify_some(&mut self) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.files.len() as u64) as usize;
        let read = self.files[index].verify(Some(&mut self.random))?;
        self.shared.verified.fetch_add(read, Ordering::Relaxed);
        Ok(())
    }

    /// Writes until nothing fits; then what is stored is intact, and what is deleted makes room.
    fn fill(&mut self) -> Result<()> {
        self.shared.filling.store(true, Ordering::Relaxed);
        loop {
            let size = self.size(4 << 20).max(4 << 10);
            if self.create(size)? == Done::NoSpace {
                break;
            }
        }
        for _ in 0..50 {
            self.verify_some()?;
        }
        self.shared.filling.store(false, Ordering::Relaxed);
        for _ in 0..self.files.len() / 2 {
            self.delete()?;
        }
        let deleted = Instant::now();
        while self.create(1 << 20)? == Done::NoSpace {
            if deleted.elapsed() > FREED_WITHIN {
                return Err("nothing fits although much was deleted".into());
            }
        }
        self.shared.fills.fetch_add(1, Ordering::Relaxed);
        self.filled = Instant::now();
        Ok(())
    }
}

pub fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::new("churn")?;
    let nodes = Node::start_all(&options.memory, options.nodes)?;
    let mount = Mount::start(&nodes[0].address, &["--cache", &options.cache], &scratch.path().join("mount"))?;
    let begun = Instant::now();
    let shared = Arc::new(Shared {
        root: mount.directory.clone(),
        begun,
        end: begun + Duration::from_secs_f64(options.minutes * 60.0),
        filling: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        stored: AtomicU64::new(0),
        operations: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        fills: AtomicU64::new(0),
        verified: AtomicU64::new(0),
    });
    let mut processes: Vec<(String, u32)> = (1..).zip(&nodes).map(|(index, node)| (format!("node {index}"), node.pid())).collect();
    processes.push(("mount".into(), mount.pid()));
    let counted = shared.clone();
    let watch = Watch::start(SAMPLES, &processes, COUNTERS, move || {
        let (all, free) = stored::space(&counted.root).unwrap_or((1, 1));
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let stored = load(&counted.stored) / f64::from(1 << 20);
        vec![(all - free) as f64 * 100.0 / all as f64, stored, load(&counted.operations), load(&counted.refused)]
    });
    let workers: Vec<_> = (0..options.workers)
        .map(|number| Worker::new(&shared, number, options.seed).map(|worker| std::thread::spawn(move || worker.run(number == 0))))
        .collect::<Result<_>>()?;
    let mut files = Vec::new();
    for worker in workers {
        files.append(&mut worker.join().map_err(|_| "a worker died")??);
    }
    let samples = watch.stop()?;
    report(&shared, &samples, options.nodes);
    mount.unmount()?;
    let mount = Mount::start(&nodes[0].address, &["--cache", &options.cache], &scratch.path().join("mount"))?;
    check_the_end(&mount.directory, &files)
}

fn report(shared: &Shared, samples: &[Sample], nodes: usize) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (operations, refused, fills) = (load(&shared.operations), load(&shared.refused), load(&shared.fills));
    println!(
        "{operations} operations, {refused} refused for want of space, filled {fills} times, {} MiB compared",
        load(&shared.verified) >> 20
    );
    let full = samples.iter().filter(|sample| sample.counted[0] >= 80.0 && sample.counted[1] > 0.0);
    let copies = nodes.min(2) as f64;
    let shares = full.map(|sample| sample.resident_mib[..nodes].iter().sum::<f64>() / (copies * sample.counted[1])).collect();
    println!("nodes have {:.2} bytes resident per byte stored on them, in the middle of all samples with 80 % used", median(shares));
}

/// Every file is as it must be, on a mount that has nothing cached; without files nothing is used.
fn check_the_end(root: &Path, files: &[Stored]) -> Result<()> {
    let mut bytes = 0;
    for file in files {
        bytes += file.verify(None)?;
    }
    for file in files {
        std::fs::remove_file(&file.path)?;
    }
    println!("{} files with {} MiB intact on a fresh mount", files.len(), bytes >> 20);
    let deleted = Instant::now();
    loop {
        let (all, free) = stored::space(root)?;
        if all - free < 8 << 20 {
            println!("all space is free {:.1} s after the last deletion", deleted.elapsed().as_secs_f64());
            return Ok(());
        }
        if deleted.elapsed() > FREED_WITHIN {
            return Err(format!("{} MiB are still used", (all - free) >> 20).into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
