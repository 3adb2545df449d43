//! Operations of the two-mount test, and how they are drawn. Each says everything about itself, so that any part of a run can be replayed.

use dfs::random::Random;

/// What not every stage of the project can do. A feature that works is exercised; one of [`SUPPORTED`] must work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A mapping made after another mount's write shows it, also of pages that were mapped before.
    MappedReads,
    Fallocate,
    Xattr,
    /// flock excludes across mounts.
    Flock,
}

/// All of them.
pub const FEATURES: [Feature; 4] = [Feature::MappedReads, Feature::Fallocate, Feature::Xattr, Feature::Flock];

/// What is promised. Whoever builds a feature adds it here; from then on its absence is a failure.
pub const SUPPORTED: &[Feature] = &FEATURES;

/// Open files of a run.
pub const SLOTS: usize = 6;
/// Longest file, a little over a slot of 1 MiB.
const FILE_MAX: u64 = 1_100_000;

/// Flags of an open; always for reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    pub create: bool,
    pub exclusive: bool,
    pub truncate: bool,
    pub append: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacing {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    Plain,
    KeepSize,
    PunchHole,
    ZeroRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    Shared,
    Exclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Any,
    Create,
    Replace,
}

/// One operation. Paths are relative to the directory of the run, slots number open files; what a seed stands for says `pattern`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Open {
        slot: usize,
        path: String,
        how: How,
    },
    Close {
        slot: usize,
    },
    Write {
        slot: usize,
        offset: u64,
        length: usize,
        seed: u64,
    },
    Read {
        slot: usize,
        offset: u64,
        length: usize,
    },
    SetLength {
        slot: usize,
        length: u64,
    },
    MapWrite {
        slot: usize,
        offset: u64,
        length: usize,
        seed: u64,
    },
    MapRead {
        slot: usize,
    },
    Sync {
        slot: usize,
    },
    Copy {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        length: u64,
    },
    Allocate {
        slot: usize,
        how: Allocate,
        offset: u64,
        length: u64,
    },
    /// Non-blocking; a slot that holds a lock lets go of it.
    Lock {
        slot: usize,
        kind: Locking,
    },
    Truncate {
        path: String,
        length: u64,
    },
    /// As many bytes as are there, and then the old mtime again.
    OverwriteSilently {
        path: String,
        seed: u64,
    },
    Append {
        path: String,
        length: usize,
        seed: u64,
    },
    Rename {
        from: String,
        to: String,
        replacing: Replacing,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    ReadLink {
        path: String,
    },
    ReadDir {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    SetTimes {
        path: String,
        seconds: i64,
        nanos: i64,
    },
    SyncDir {
        path: String,
    },
    SetXattr {
        path: String,
        name: String,
        length: usize,
        seed: u64,
        setting: Setting,
    },
    GetXattr {
        path: String,
        name: String,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
}

/// An operation on one of the two mounts. A slot belongs to the mount that opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub mount: usize,
    pub op: Op,
    /// Whether both mounts are looked at afterwards. Not always, so that changes pile up on one mount.
    pub check: bool,
}

/// The bytes of a seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn pick<T: Clone>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u64) as usize].clone()
}

/// Few names, so that operations meet: files f*, directories d*, symbolic links s*.
fn path(random: &mut Random, leaves: &[&str]) -> String {
    let mut path = String::new();
    for _ in 0..pick(random, &[0, 0, 0, 1, 1, 2]) {
        path.push_str(pick(random, &["d0/", "d1/"]));
    }
    path + pick(random, leaves)
}

const FILES: [&str; 4] = ["f0", "f1", "f2", "f3"];
const DIRECTORIES: [&str; 2] = ["d0", "d1"];
const BOTH: [&str; 6] = ["f0", "f1", "f2", "f3", "d0", "d1"];
const LINKS: [&str; 2] = ["s0", "s1"];
const NAMES: [&str; 2] = ["user.a", "user.b"];

fn length(random: &mut Random) -> usize {
    let most = pick(random, &[10, 10, 1000, 5000, 5000, 20_000, 70_000, 300_000]);
    1 + random.below(most) as usize
}

fn offset(random: &mut Random, length: u64) -> u64 {
    let most = pick(random, &[1, 1, 500, 5000, 20_000, 100_000, 700_000]);
    let at = match random.below(6) {
        0 => random.below(4) * 4096,
        1 => (1 << 20) - random.below(10_000),
        _ => random.below(most),
    };
    at.min(FILE_MAX - length)
}

fn op_on_slot(random: &mut Random, features: &[Feature]) -> Op {
    let slot = random.below(SLOTS as u64) as usize;
    let bytes = length(random);
    let at = offset(random, bytes as u64);
    let has = |feature: Feature| features.contains(&feature);
    match random.below(24) {
        0..=7 => Op::Write { slot, offset: at, length: bytes, seed: random.below(1 << 32) },
        8..=11 => Op::Read { slot, offset: at, length: bytes },
        12..=13 => Op::SetLength { slot, length: at },
        14..=15 => Op::MapWrite { slot, offset: at, length: bytes, seed: random.below(1 << 32) },
        16 if has(Feature::MappedReads) => Op::MapRead { slot },
        17 => Op::Sync { slot },
        18..=19 => {
            let (to, length) = (random.below(SLOTS as u64) as usize, bytes as u64);
            Op::Copy { from: slot, to, from_offset: at, to_offset: offset(random, length), length }
        }
        20..=21 if has(Feature::Fallocate) => {
            let how = pick(random, &[Allocate::Plain, Allocate::KeepSize, Allocate::PunchHole, Allocate::ZeroRange]);
            Op::Allocate { slot, how, offset: at, length: bytes as u64 }
        }
        22 if has(Feature::Flock) => Op::Lock { slot, kind: pick(random, &[Locking::Shared, Locking::Exclusive]) },
        _ => Op::Close { slot },
    }
}

fn op_on_name(random: &mut Random, features: &[Feature]) -> Op {
    let bytes = length(random);
    match random.below(36) {
        0..=1 => Op::Truncate { path: path(random, &BOTH), length: offset(random, 0) },
        2..=4 => Op::OverwriteSilently { path: path(random, &FILES), seed: random.below(1 << 32) },
        5..=7 => Op::Append { path: path(random, &FILES), length: bytes.min(20_000), seed: random.below(1 << 32) },
        8..=12 => {
            let replacing = pick(random, &[Replacing::Replace, Replacing::Replace, Replacing::NoReplace, Replacing::Exchange]);
            let names: &[&str] = pick(random, &[&FILES[..], &FILES[..], &DIRECTORIES[..], &BOTH[..], &LINKS[..]]);
            Op::Rename { from: path(random, names), to: path(random, names), replacing }
        }
        13..=15 => Op::Link { from: path(random, &BOTH), to: path(random, &FILES) },
        16..=18 => Op::Unlink { path: path(random, &[&BOTH[..], &LINKS[..]].concat()) },
        19..=22 => Op::Mkdir { path: path(random, &DIRECTORIES) },
        23 => Op::Rmdir { path: path(random, &BOTH) },
        24 => Op::Symlink { path: path(random, &LINKS), target: format!("t{}", random.below(1000)) },
        25 => Op::ReadLink { path: path(random, &LINKS) },
        26..=27 => Op::ReadDir { path: path(random, &DIRECTORIES) },
        28 => Op::Chmod { path: path(random, &BOTH), mode: 0o600 + random.below(0o200) as u32 },
        29..=30 => {
            let (seconds, nanos) = (pick(random, &[-1000, 0, 1_000_000_000, 1 << 33]), random.below(1_000_000_000) as i64);
            Op::SetTimes { path: path(random, &BOTH), seconds, nanos }
        }
        31 => Op::SyncDir { path: path(random, &DIRECTORIES) },
        number if features.contains(&Feature::Xattr) => {
            let (path, name) = (path(random, &BOTH), pick(random, &NAMES).to_string());
            match number {
                32..=33 => {
                    let setting = pick(random, &[Setting::Any, Setting::Create, Setting::Replace]);
                    Op::SetXattr { path, name, length: random.below(300) as usize, seed: random.below(1 << 32), setting }
                }
                34 => Op::GetXattr { path, name },
                _ => Op::RemoveXattr { path, name },
            }
        }
        _ => Op::ReadDir { path: path(random, &DIRECTORIES) },
    }
}

fn open(random: &mut Random) -> Op {
    let slot = random.below(SLOTS as u64) as usize;
    let how =
        How { create: random.below(4) != 0, exclusive: random.below(8) == 0, truncate: random.below(8) == 0, append: random.below(5) == 0 };
    // Without O_CREAT, O_EXCL means nothing.
    let how = How { exclusive: how.exclusive && how.create, ..how };
    Op::Open { slot, path: path(random, &[&FILES[..], &FILES[..], &DIRECTORIES[..], &LINKS[..1]].concat()), how }
}

/// A run of that many operations. The same seed and features give the same run.
pub fn draw(seed: u64, features: &[Feature], count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut mount = 0;
    let step = |random: &mut Random| {
        // Mostly alternating, sometimes several in a row.
        if random.below(3) != 0 {
            mount = 1 - mount;
        }
        let op = match random.below(10) {
            0..=2 => open(random),
            3..=6 => op_on_slot(random, features),
            _ => op_on_name(random, features),
        };
        Step { mount, op, check: random.below(10) < 7 }
    };
    std::iter::repeat_with({
        let mut step = step;
        move || step(&mut random)
    })
    .take(count)
    .collect()
}
