//! Random operations that alternate between two real mounts, against one tree in memory: after each of them both mounts must agree with it.
//!
//! `DFS_SEED=n cargo test --test two_mounts -- --nocapture` replays one run; `DFS_SECONDS=600` runs new seeds that long, from
//! `DFS_SEEDS_FROM=n` on. `DFS_STEPS=n` is the length of a run. A failure is shrunk by leaving operations out, and printed with its seed.
#![allow(clippy::disallowed_methods)]

mod common;
mod fsx;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::{Cluster, Mount};
use fsx::model::{Body, Model, Mtime, Out};
use fsx::ops::{Allocate, FEATURES, Feature, Op, SUPPORTED, Step, draw};
use fsx::real::{Real, View, xattr};

/// Seeds of a short run; those that found something stay.
const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];
const STEPS: usize = 150;
/// A time of last change that is said to be recent lies within this of now.
const RECENT: Duration = Duration::from_secs(120);
/// A call that takes longer on an idle cluster is a hang or a wait for a lease that nobody holds.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// Effort spent on making a failure smaller.
const SHRINK_WITHIN: Duration = Duration::from_secs(120);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

struct World {
    _cluster: Cluster,
    mounts: [Mount; 2],
    features: Vec<Feature>,
    runs: u64,
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::start(3);
        let mounts = [Mount::new(&cluster), Mount::new(&cluster)];
        let features = FEATURES.into_iter().filter(|feature| works(*feature, mounts[0].path(), mounts[1].path())).collect();
        World { _cluster: cluster, mounts, features, runs: 0 }
    }

    /// Runs the steps in a directory of their own; where and how it went wrong, if it did.
    fn run(&mut self, steps: &[Step]) -> Result<(), (usize, String)> {
        self.runs += 1;
        let name = format!("run{}", self.runs);
        let roots = [self.mounts[0].path().join(&name), self.mounts[1].path().join(&name)];
        fs::create_dir(&roots[0]).map_err(|error| (0, format!("mkdir of the run's directory: {error}")))?;
        let mut run = Run { model: Model::new(), real: Real::new(roots.clone()), xattrs: self.features.contains(&Feature::Xattr) };
        for (index, step) in steps.iter().enumerate() {
            run.step(step).map_err(|complaint| (index, complaint))?;
        }
        run.finish().map_err(|complaint| (steps.len(), complaint))?;
        fs::remove_dir_all(&roots[0]).map_err(|error| (steps.len(), format!("rm -r at the end: {error}")))?;
        match fs::symlink_metadata(&roots[1]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => Err((steps.len(), format!("after rm -r on mount 0, mount 1 shows {other:?}"))),
        }
    }
}

struct Run {
    model: Model,
    real: Real,
    xattrs: bool,
}

impl Run {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        // Before and after: a name that goes away must be looked at too, and so must what it named.
        let mut touched = self.touched(step);
        let begun = Instant::now();
        let seen = self.real.apply(step, &self.model);
        let took = begun.elapsed();
        let expected = self.model.apply(step);
        if seen != expected {
            return Err(format!("gave {}, should have given {}", short(&seen), short(&expected)));
        }
        if took > CALL_WITHIN {
            return Err(format!("took {took:?}"));
        }
        if step.check {
            touched.extend(self.touched(step));
            for path in touched {
                // The other mount first: it has the older picture.
                self.check(1 - step.mount, &path).and_then(|_| self.check(step.mount, &path)).map_err(|why| format!("then {why}"))?;
            }
            self.check_open()?;
        }
        Ok(())
    }

    /// Paths that an operation may change, with the directories that they are in.
    fn touched(&self, step: &Step) -> BTreeSet<String> {
        let mut paths: Vec<String> = match &step.op {
            Op::Rename { from, to, .. } | Op::Link { from, to } => vec![from.clone(), to.clone()],
            op => path_of(op).map(str::to_string).into_iter().collect(),
        };
        let found: Vec<usize> = paths.iter().filter_map(|path| self.model.find(path).ok()).collect();
        let opened = slots_of(&step.op).into_iter().filter_map(|slot| self.model.slots[slot]).map(|handle| handle.ino);
        for ino in found.into_iter().chain(opened) {
            paths.extend(self.model.paths_of(ino));
        }
        let above = |path: &String| path.rsplit_once('/').map_or("", |(above, _)| above).to_string();
        let directories: Vec<String> = paths.iter().map(above).collect();
        paths.into_iter().chain(directories).collect()
    }

    /// Compares what a mount shows of a path with the model.
    fn check(&self, mount: usize, path: &str) -> Result<(), String> {
        let complain = |what: String| Err(format!("mount {mount} shows of {path:?}: {what}"));
        let begun = Instant::now();
        let seen = self.real.view(mount, path, self.xattrs);
        let took = begun.elapsed();
        if took > 2 * CALL_WITHIN {
            return complain(format!("took {took:?}"));
        }
        let (view, ino) = match (seen, self.model.find(path)) {
            (Ok(view), Ok(ino)) => (view, ino),
            (Err(seen), Err(expected)) if seen == expected => return Ok(()),
            (seen, expected) => return complain(format!("{:?}, should be {:?}", seen.map(|view| view.mode), expected)),
        };
        if let Some(difference) = self.difference(&view, ino) {
            return complain(difference);
        }
        // What the model cannot know, the mounts must show alike.
        match self.real.view(1 - mount, path, self.xattrs) {
            Ok(other) if other == view => Ok(()),
            Ok(other) => complain(format!("{}; mount {}: {}", stamps(&view), 1 - mount, stamps(&other))),
            Err(errno) => complain(format!("it, but mount {} gives errno {errno}", 1 - mount)),
        }
    }

    fn difference(&self, view: &View, ino: usize) -> Option<String> {
        let inode = &self.model.inodes[ino];
        let (kind, size, content) = match &inode.body {
            Body::File(bytes) => (libc::S_IFREG, Some(bytes.len() as u64), Out::Bytes(bytes.clone())),
            Body::Directory(entries) => (libc::S_IFDIR, None, Out::Names(entries.keys().cloned().collect())),
            Body::Link(target) => (libc::S_IFLNK, Some(target.len() as u64), Out::Target(target.clone())),
        };
        let mode = kind | inode.mode;
        if view.mode != mode {
            return Some(format!("mode {:o}, should be {mode:o}", view.mode));
        }
        if view.links != inode.links {
            return Some(format!("{} links, should be {}", view.links, inode.links));
        }
        if size.is_some_and(|size| size != view.size) {
            return Some(format!("{} bytes, should be {}", view.size, size.unwrap_or_default()));
        }
        if view.content != content {
            return Some(difference(&view.content, &content));
        }
        if self.xattrs && view.xattrs != inode.xattrs.clone().into_iter().collect::<Vec<_>>() {
            return Some(format!("attributes {:?}, should be {:?}", view.xattrs, inode.xattrs));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        match inode.mtime {
            Mtime::Set(seconds, nanos) if view.mtime != (seconds, nanos) => {
                Some(format!("mtime {:?}, was set to {seconds}.{nanos}", view.mtime))
            }
            Mtime::Recent if view.mtime.0.abs_diff(now) > RECENT.as_secs() => Some(format!("mtime {:?}, was changed just now", view.mtime)),
            _ => None,
        }
    }

    /// Open files, whatever became of their names.
    fn check_open(&self) -> Result<(), String> {
        for (slot, (file, handle)) in self.real.slots.iter().zip(&self.model.slots).enumerate() {
            let (Some(file), Some(handle)) = (file, handle) else { continue };
            let (inode, bytes) = (&self.model.inodes[handle.ino], self.model.bytes(handle.ino));
            let complain = |what: String| Err(format!("then slot {slot} of mount {} shows {what}", handle.mount));
            let metadata = match file.metadata() {
                Ok(metadata) => metadata,
                Err(error) => return complain(error.to_string()),
            };
            if (metadata.len(), metadata.nlink()) != (bytes.len() as u64, inode.links) {
                let (size, links) = (metadata.len(), metadata.nlink());
                return complain(format!("{size} bytes and {links} links, should be {} and {}", bytes.len(), inode.links));
            }
            let mut seen = vec![0; bytes.len()];
            if let Err(error) = file.read_exact_at(&mut seen, 0) {
                return complain(error.to_string());
            }
            if seen != bytes {
                return complain(difference(&Out::Bytes(seen), &Out::Bytes(bytes.to_vec())));
            }
        }
        Ok(())
    }

    /// Everything on both mounts, and again when all is closed.
    fn finish(&mut self) -> Result<(), String> {
        for _ in 0..2 {
            let mut paths = Vec::new();
            self.model.walk(0, "", &mut |path, _| paths.push(path.to_string()));
            for path in &paths {
                self.check(0, path).and_then(|_| self.check(1, path)).map_err(|why| format!("at the end {why}"))?;
            }
            self.check_open()?;
            self.real.slots.iter_mut().for_each(|slot| *slot = None);
            self.model.slots.iter_mut().for_each(|slot| *slot = None);
        }
        Ok(())
    }
}

fn slots_of(op: &Op) -> Vec<usize> {
    match op {
        Op::Open { slot, .. }
        | Op::Close { slot }
        | Op::Write { slot, .. }
        | Op::Read { slot, .. }
        | Op::SetLength { slot, .. }
        | Op::MapWrite { slot, .. }
        | Op::MapRead { slot }
        | Op::Sync { slot }
        | Op::Allocate { slot, .. }
        | Op::Lock { slot, .. } => vec![*slot],
        Op::Copy { from, to, .. } => vec![*from, *to],
        _ => Vec::new(),
    }
}

fn path_of(op: &Op) -> Option<&str> {
    match op {
        Op::Open { path, .. }
        | Op::Truncate { path, .. }
        | Op::OverwriteSilently { path, .. }
        | Op::Append { path, .. }
        | Op::Unlink { path }
        | Op::Mkdir { path }
        | Op::Rmdir { path }
        | Op::Symlink { path, .. }
        | Op::ReadLink { path }
        | Op::ReadDir { path }
        | Op::Chmod { path, .. }
        | Op::SetTimes { path, .. }
        | Op::SyncDir { path }
        | Op::SetXattr { path, .. }
        | Op::GetXattr { path, .. }
        | Op::RemoveXattr { path, .. } => Some(path),
        _ => None,
    }
}

fn short(outcome: &Result<Out, i32>) -> String {
    match outcome {
        Ok(Out::Bytes(bytes)) => format!("{} bytes (hash {:016x})", bytes.len(), hash(bytes)),
        Ok(out) => format!("{out:?}"),
        Err(errno) => std::io::Error::from_raw_os_error(*errno).to_string(),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn stamps(view: &View) -> String {
    format!("ino {} mode {:o} links {} size {} mtime {:?} ctime {:?}", view.ino, view.mode, view.links, view.size, view.mtime, view.ctime)
}

fn difference(seen: &Out, expected: &Out) -> String {
    let (Out::Bytes(seen), Out::Bytes(expected)) = (seen, expected) else { return format!("{seen:?}, should be {expected:?}") };
    let differ: Vec<usize> = (0..seen.len().max(expected.len())).filter(|&at| seen.get(at) != expected.get(at)).collect();
    let (first, last) = (differ.first().copied().unwrap_or(0), differ.last().copied().unwrap_or(0));
    let zeros = differ.iter().filter(|&&at| seen.get(at) == Some(&0)).count();
    format!("{} wrong bytes from {first} to {last}, {zeros} of them zero, of {}", differ.len(), expected.len())
}

/// Whether a feature is there, tried in the smallest way.
fn works(feature: Feature, a: &Path, b: &Path) -> bool {
    let name = format!("probe-{feature:?}");
    let (at_a, at_b) = (a.join(&name), b.join(&name));
    fs::write(&at_a, vec![1u8; 8192]).expect("a probe's file");
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).expect("a probe's file");
    let result = match feature {
        Feature::MappedReads => mapped_reads_work(&open(&at_a), &open(&at_b)),
        // SAFETY: a plain system call with numbers.
        Feature::Fallocate => unsafe { libc::fallocate(open(&at_a).as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, 100_000) == 0 },
        Feature::Xattr => {
            let path = std::ffi::CString::new(at_a.to_str().expect("UTF-8")).expect("no NUL");
            // SAFETY: strings and value live through the call.
            let set = unsafe { libc::setxattr(path.as_ptr(), c"user.probe".as_ptr(), c"x".as_ptr().cast(), 1, 0) } == 0;
            set && xattr(&at_b, "user.probe").is_ok_and(|value| value == b"x")
        }
        Feature::Flock => {
            let (first, second) = (open(&at_a), open(&at_b));
            // SAFETY: plain system calls with numbers.
            unsafe {
                libc::flock(first.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0
                    && libc::flock(second.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) != 0
            }
        }
    };
    fs::remove_file(&at_a).expect("a probe's file");
    result
}

/// The second mapping must not find the pages of the first.
fn mapped_reads_work(a: &File, b: &File) -> bool {
    let mut model = Model::new();
    let open = |slot, path: &str, mount| Step {
        mount,
        op: Op::Open { slot, path: path.into(), how: fsx::ops::How { create: true, ..Default::default() } },
        check: false,
    };
    let write = Step { mount: 0, op: Op::Write { slot: 0, offset: 0, length: 8192, seed: 1 }, check: false };
    let read = Step { mount: 1, op: Op::MapRead { slot: 1 }, check: false };
    let mut real = Real::new([Default::default(), Default::default()]);
    real.slots[0] = Some(a.try_clone().expect("a descriptor"));
    real.slots[1] = Some(b.try_clone().expect("a descriptor"));
    for step in [open(0, "f", 0), open(1, "f", 1)] {
        model.apply(&step).expect("the model opens");
    }
    a.write_all_at(&[7; 8192], 0).expect("a probe's file");
    model.apply(&Step { mount: 0, op: Op::SetLength { slot: 0, length: 8192 }, check: false }).expect("the model's size");
    let _ = real.apply(&read, &model);
    let written = real.apply(&write, &model);
    let _ = model.apply(&write);
    written.is_ok() && real.apply(&read, &model) == model.apply(&read)
}

/// Leaves out what the failure does not need: halves first, then less, as long as there is time.
fn shrink(world: &mut World, mut steps: Vec<Step>) -> Vec<Step> {
    let end = Instant::now() + SHRINK_WITHIN;
    let mut part = steps.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < steps.len() {
            if Instant::now() > end {
                return steps;
            }
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            match world.run(&fewer) {
                Err((index, _)) => {
                    fewer.truncate(index + 1);
                    steps = fewer;
                }
                Ok(()) => at += part,
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    steps
}

fn run_seed(world: &mut World, seed: u64, count: usize) {
    let mut steps = draw(seed, &world.features, count);
    let Err((index, complaint)) = world.run(&steps) else { return };
    eprintln!("seed {seed}, step {index}: {:?}\n  {complaint}\nshrinking...", steps.get(index));
    steps.truncate(index + 1);
    let again = (0..3).any(|_| world.run(&steps).is_err());
    if again {
        steps = shrink(world, steps);
    }
    let last = (0..5).find_map(|_| world.run(&steps).err());
    let log: Vec<String> = steps.iter().enumerate().map(|(index, step)| format!("{index:4} mount {} {:?}", step.mount, step.op)).collect();
    let logs: Vec<String> = world.mounts.iter().map(|mount| mount.log_text()).collect();
    panic!(
        "two mounts differ; replay with DFS_SEED={seed} DFS_STEPS={count}\n{}\n{}\nfirst seen: step {index}: {complaint}\nmounts' logs:\n{}",
        log.join("\n"),
        match last {
            Some((index, complaint)) => format!("step {index}: {complaint}"),
            None => "replayed, it does not fail every time".into(),
        },
        logs.join("\n--\n")
    );
}

#[test]
fn p2_two_mounts_agree_with_one_model() {
    let mut world = World::new();
    for feature in SUPPORTED {
        assert!(world.features.contains(feature), "{feature:?} is promised and does not work");
    }
    eprintln!("with {:?}", world.features);
    let steps = number("DFS_STEPS").map_or(STEPS, |steps| steps as usize);
    if let Some(seed) = number("DFS_SEED") {
        return run_seed(&mut world, seed, steps);
    }
    let Some(seconds) = number("DFS_SECONDS") else {
        return SEEDS.iter().for_each(|&seed| run_seed(&mut world, seed, steps));
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = number("DFS_SEEDS_FROM").unwrap_or(1000);
    while Instant::now() < end {
        run_seed(&mut world, seed, steps);
        seed += 1;
    }
    eprintln!("seeds up to {} passed", seed - 1);
}

/// The model is right about a local file system: the same runs on two names of one tmpfs directory.
#[test]
fn the_model_agrees_with_tmpfs() {
    let mut features = FEATURES.to_vec();
    let shm = Path::new("/dev/shm");
    let directory = shm.join(format!("dfs-two-mounts-{}", std::process::id()));
    fs::create_dir(&directory).expect("a tmpfs at /dev/shm");
    features.retain(|feature| works(*feature, &directory, &directory));
    let outcome = std::panic::catch_unwind(|| {
        for seed in 0..number("DFS_SEEDS").unwrap_or(40) {
            let root = directory.join(format!("run{seed}"));
            fs::create_dir(&root).expect("a directory");
            let mut run = Run { model: Model::new(), real: Real::new([root.clone(), root]), xattrs: features.contains(&Feature::Xattr) };
            for (index, step) in draw(seed, &features, STEPS).iter().enumerate() {
                // Two names of one directory are one file system: there the kernel refuses what it does between mounts.
                let between = matches!(&step.op, Op::Copy { from, to, .. } if {
                    let slots = (run.model.slots[*from], run.model.slots[*to]);
                    matches!(slots, (Some(a), Some(b)) if a.mount != b.mount)
                });
                let zeroes = matches!(&step.op, Op::Allocate { how: Allocate::ZeroRange, .. }); // Which tmpfs does not know.
                if !between && !zeroes {
                    run.step(step).unwrap_or_else(|complaint| panic!("seed {seed} step {index} {step:?}: {complaint}"));
                }
            }
            run.finish().unwrap_or_else(|complaint| panic!("seed {seed}: {complaint}"));
        }
    });
    let _ = fs::remove_dir_all(&directory);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
