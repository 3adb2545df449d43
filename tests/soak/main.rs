//! Soak: real processes in network namespaces, real faults one after the other, and programs that must notice none of them.
//!
//! Five nodes and two mounts, each in a network of its own. All the while workers record what they see, git, sqlite and fio check what
//! they stored, and a fault drawn from the seed is let loose whenever the cluster is whole again. At the end everything is compared, checked and
//! stopped. `DFS_SOAK_SECONDS=3600 cargo test --release --test soak -- --nocapture` goes on for an hour; `DFS_SOAK_SEED=n` draws other
//! faults; `DFS_SOAK_FAULTS=loss,kill` only such, `none` none; `DFS_SOAK_LOGS=DIRECTORY` keeps the logs of all processes if it fails.
#![allow(clippy::disallowed_methods)]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod faults;
// A soak lists and exchanges no names, the simulation does.
#[allow(dead_code)]
#[path = "../sim/linear.rs"]
mod linear;
mod load;
mod machines;
mod namespaces;
mod programs;
mod proxy;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use calls::{PROGRAM_WITHIN, Run};
use common::{program, wait_until};
use dfs::random::Random;
use faults::Faults;
use load::Load;
use machines::{Cluster, NODES};
use namespaces::Turn;
use programs::Programs;

/// Length if none is named.
const SHORT_SECONDS: u64 = 40;
/// Before the first fault, so that there is something to compare with.
const CALM: Duration = Duration::from_secs(4);
/// What the soak needs of the machine, and which package has it.
const TOOLS: [(&str, &str); 5] = [("ip", "iproute2"), ("nft", "nftables"), ("git", "git"), ("sqlite3", "sqlite3"), ("fio", "fio")];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

#[test]
fn p4_p5_p6_nothing_is_lost_stale_or_slow_while_machines_and_wires_fail() {
    if let Some(missing) = namespaces::missing_tools(&TOOLS) {
        panic!("{missing}");
    }
    // SAFETY: plain system call without arguments.
    assert_eq!(unsafe { libc::geteuid() }, 0, "the soak makes network namespaces and mounts: run it as root");
    let seconds = number("DFS_SOAK_SECONDS").unwrap_or(SHORT_SECONDS);
    let seed = number("DFS_SOAK_SEED").unwrap_or(1);
    println!("DFS_SOAK_SECONDS={seconds} DFS_SOAK_SEED={seed}");
    program("dfs-node");
    let turn = Turn::take();
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(&behind_proxies(&mut random));
    soak(&mut cluster, Duration::from_secs(seconds), &mut random);
    cluster.end();
    wait_until(Duration::from_secs(5), "no namespace is left", || namespaces::left_behind().is_empty());
    drop(turn);
}

/// Some nodes have a slow wire before them and some have not, whatever the seed.
fn behind_proxies(random: &mut Random) -> Vec<usize> {
    let first = random.below(NODES as u64) as usize;
    let mut chosen: Vec<usize> = (0..NODES).filter(|_| random.chance(1, 3)).collect();
    chosen.push(first);
    chosen.sort_unstable();
    chosen.dedup();
    chosen.truncate(NODES - 1);
    chosen
}

/// Load and faults until the time is over or something fails, then all the checks. The test fails with what was found.
fn soak(cluster: &mut Cluster, length: Duration, random: &mut Random) {
    cluster.until_whole().expect("it forms");
    let mounts: Vec<PathBuf> = cluster.mounts.iter().map(|mount| mount.path().to_path_buf()).collect();
    let run = Run::new();
    let load = Load::start(&run, &mounts, random);
    let programs = Programs::start(&run, &mounts);
    let only = std::env::var("DFS_SOAK_FAULTS").unwrap_or_default();
    let only = only.split(',').filter(|kind| !kind.is_empty()).map(str::to_string).collect();
    let mut faults = Faults::new(random.next(), only);
    watch_for_hangs(&run);
    std::thread::sleep(CALM);
    while !run.is_over() && run.now() < length.as_nanos() as u64 {
        faults.once(&run, cluster);
    }
    run.say("the load ends");
    run.end();
    if !end_of(&run, &load, &programs) {
        // Only without their mount will they end: what hangs is said, and the cluster goes with this panic.
        give_up(&run);
    }
    programs.judge(&run, &mounts[1]);
    load.judge(&run, &mounts[0]);
    compare(&run, &mounts);
    if let Err(wanting) = cluster.until_whole() {
        run.fail(wanting);
    }
    let fsck = cluster.dfs(&["fsck"]);
    if fsck.code() != 0 {
        run.fail(format!("dfs fsck: {}{}", fsck.stdout(), fsck.stderr()));
    }
    faults::casualties(&run, cluster);
    calls::report(&run.samples(), &faults.windows).into_iter().for_each(|broken| run.fail(broken));
    run.counted().iter().for_each(|(what, count)| println!("{count:>9} {what}"));
    if !run.failures().is_empty() {
        give_up(&run);
    }
}

/// Says what has hung as soon as it is known, and ends the soak then: faults go on meanwhile.
fn watch_for_hangs(run: &Arc<Run>) {
    let run = run.clone();
    std::thread::spawn(move || {
        while !run.is_over() {
            std::thread::sleep(Duration::from_secs(1));
            run.hung().into_iter().for_each(|what| run.fail(what));
        }
    });
}

/// Waits for the end of all workers and programs; `false` if some hang.
fn end_of(run: &Run, load: &Load, programs: &Programs) -> bool {
    let end = run.now() + PROGRAM_WITHIN.as_nanos() as u64;
    while !(load.has_ended() && programs.has_ended()) {
        let hung = run.hung();
        if !hung.is_empty() || run.now() > end {
            hung.into_iter().for_each(|what| run.fail(what));
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

fn give_up(run: &Run) -> ! {
    let failures = run.failures();
    panic!("{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// All mounts show the same tree with the same content.
fn compare(run: &Run, mounts: &[PathBuf]) {
    let trees: Vec<_> = mounts.iter().map(|root| tree(root)).collect();
    for (tree, root) in trees.iter().zip(mounts) {
        match tree {
            Ok(tree) if trees[0].as_ref().is_ok_and(|first| first == tree) => println!("{} entries at {}", tree.len(), root.display()),
            Ok(_) => run.fail(format!("{} shows another tree than {}", root.display(), mounts[0].display())),
            Err(error) => run.fail(format!("reading the tree at {}: {error}", root.display())),
        }
    }
}

/// Every path below a directory, with size, mode, time of change and the hash of its bytes.
fn tree(root: &Path) -> std::io::Result<BTreeMap<PathBuf, (u64, u32, i64, blake3::Hash)>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let bytes = if metadata.is_file() { fs::read(&path)? } else { Vec::new() };
            let short = path.strip_prefix(root).expect("below it").to_path_buf();
            found.insert(short, (metadata.size(), metadata.mode(), metadata.mtime_nsec(), blake3::hash(&bytes)));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(found)
}
