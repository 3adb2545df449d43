//! Bytes that a mount has accepted and not committed yet: what the other mount sees, what deaths leave, what a full cluster says. Real
//! nodes, real mounts, real signals.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::{Cluster, Mount, Options, ends_within, random_bytes, wait_until};

/// Waits until the mount has committed what it accepted, which nobody asks it to.
fn wait_until_committed(mount: &Mount) {
    wait_until(Duration::from_secs(20), "what was accepted is committed by its age", || mount.report()["dirty"] == 0);
}

fn two() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::start(3);
    let (one, other) = (Mount::new(&cluster), Mount::new(&cluster));
    (cluster, one, other)
}

/// Size, time of last change in nanoseconds, blocks.
fn stat(path: &Path) -> (u64, i64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.size(), metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(), metadata.blocks())
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn assert_same(path: &Path, expected: &[u8]) {
    let seen = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(seen == expected, "{}: {} bytes that differ from {} expected", path.display(), seen.len(), expected.len());
}

#[test]
fn the_other_mount_sees_every_small_append_whole() {
    let (_cluster, one, other) = two();
    let mut log = OpenOptions::new().append(true).create_new(true).open(one.path().join("log")).unwrap();
    let mut expected = Vec::new();
    for turn in 0..300 {
        let line = format!("line {turn} {}\n", "x".repeat(turn % 97));
        log.write_all(line.as_bytes()).unwrap();
        expected.extend_from_slice(line.as_bytes());
        // Often enough that the right is given back and forth, and sometimes not for a while.
        if turn % 7 < 3 {
            assert_same(&other.path().join("log"), &expected);
        }
    }
    assert_same(&other.path().join("log"), &expected);
    assert_same(&one.path().join("log"), &expected);
}

#[test]
fn both_mounts_tell_the_same_of_a_file_before_and_after_its_commit() {
    let (_cluster, one, other) = two();
    for (name, pieces) in [("small", vec![700]), ("page", vec![4096, 4096]), ("large", vec![100_000, 5, 1 << 20])] {
        let (here, there) = (one.path().join(name), other.path().join(name));
        let mut file = File::create(&here).unwrap();
        for (seed, length) in pieces.into_iter().enumerate() {
            file.write_all(&random_bytes(seed as u64, length)).unwrap();
        }
        let dirty = stat(&here);
        wait_until_committed(&one);
        assert_eq!(stat(&here), dirty, "{name}: the commit changes nothing that shows");
        assert_eq!(stat(&there), dirty, "{name}");
        // Once more, looked at while it is dirty.
        file.write_all(b"more").unwrap();
        let dirty = stat(&here);
        assert_eq!(stat(&there), dirty, "{name}");
        wait_until_committed(&one);
        assert_eq!((stat(&here), stat(&there)), (dirty, dirty), "{name}");
    }
}

#[test]
fn what_was_synced_or_is_old_survives_the_mount() {
    let (_cluster, one, other) = two();
    let (old, synced) = (random_bytes(1, 300_000), random_bytes(2, 5_000_000));
    fs::write(one.path().join("old"), &old).unwrap();
    let mut open = File::create(one.path().join("open")).unwrap();
    open.write_all(&old).unwrap();
    wait_until_committed(&one);
    let mut file = File::create(one.path().join("synced")).unwrap();
    file.write_all(&synced).unwrap();
    file.sync_all().unwrap();
    file.write_all(b"a tail that may be lost").unwrap();
    one.signal(libc::SIGKILL);
    assert_same(&other.path().join("old"), &old);
    assert_same(&other.path().join("open"), &old);
    let seen = fs::read(other.path().join("synced")).unwrap();
    assert!(seen.starts_with(&synced), "{} bytes", seen.len());
}

#[test]
fn a_synchronous_write_survives_the_mount_at_once() {
    let (_cluster, one, other) = two();
    let mut file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_SYNC).open(one.path().join("f")).unwrap();
    let bytes = random_bytes(3, 70_000);
    for part in bytes.chunks(10_000) {
        file.write_all(part).unwrap();
    }
    one.signal(libc::SIGKILL);
    assert_same(&other.path().join("f"), &bytes);
}

#[test]
fn dirty_bytes_do_not_suffer_from_the_death_of_a_node() {
    for victim in ["leader", "another"] {
        let (mut cluster, one, other) = two();
        let leader = cluster.leader();
        let index = cluster.nodes.iter().position(|node| (node.id == leader) == (victim == "leader")).unwrap();
        let mut files = Vec::new();
        for n in 0..60u64 {
            let bytes = random_bytes(n, 1000 + n as usize * 9000);
            let mut file = File::create(one.path().join(format!("f{n}"))).unwrap();
            file.write_all(&bytes).unwrap();
            files.push((file, bytes));
            if n == 30 {
                cluster.nodes[index].kill();
            }
        }
        for (n, (file, bytes)) in files.iter().enumerate() {
            if n % 2 == 0 {
                file.sync_all().unwrap();
            }
            assert_same(&other.path().join(format!("f{n}")), bytes);
        }
    }
}

#[test]
fn a_full_cluster_says_so_at_the_write_and_keeps_what_it_accepted() {
    fill_with_files(3, 400_000, Duration::ZERO);
}

/// Names and records of small files take a good part of the room, and are made while earlier ones are being committed.
#[test]
fn a_cluster_full_of_small_files_keeps_what_it_accepted() {
    fill_with_files(2, 20_000, Duration::from_millis(2));
}

/// Writes files of that size at that pace until several calls were refused, and reads all that was accepted on another mount.
fn fill_with_files(nodes: usize, size: usize, pace: Duration) {
    let cluster = Cluster::start_with(nodes, Options { memory: "96MiB", ..Options::default() });
    let (one, other) = (Mount::new(&cluster), Mount::new(&cluster));
    let mut accepted = Vec::new();
    let mut refused = 0;
    while refused < 4 {
        let n = accepted.len() as u64;
        let bytes = random_bytes(n, size);
        let mut done = 0;
        let result = File::create(one.path().join(format!("f{n}"))).and_then(|mut file| {
            while done < size {
                done += file.write(&bytes[done..size.min(done + 50_000)])?;
            }
            Ok(())
        });
        if let Err(error) = result {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
            refused += 1;
        }
        accepted.push((bytes, done));
        thread::sleep(pace);
    }
    let total: usize = accepted.iter().map(|(_, done)| done).sum();
    println!("{total} bytes were accepted in {} files", accepted.len());
    assert!(total > 40_000_000, "{total} bytes were accepted");
    for (n, (bytes, done)) in accepted.iter().enumerate() {
        let (name, accepted) = (format!("f{n}"), &bytes[..*done]);
        match File::open(one.path().join(&name)) {
            Ok(file) => file.sync_all().unwrap_or_else(|error| panic!("fsync of {name}: {error}")),
            Err(error) => {
                assert_eq!((error.raw_os_error(), done), (Some(libc::ENOENT), &0), "{name}: {error}");
                continue;
            }
        }
        assert_same(&other.path().join(name), accepted);
    }
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_mount_stays_within_its_memory() {
    const CACHE: u64 = 64 << 20;
    let cluster = Cluster::start_with(3, Options { memory: "512MiB", ..Options::default() });
    let mount = Mount::with(&["--nodes", &cluster.addresses(), "--cache", "64MiB"]);
    let mut most = 0;
    for n in 0..8u64 {
        let path = mount.path().join(format!("f{n}"));
        let mut file = File::create(&path).unwrap();
        for part in 0..128u64 {
            file.write_all(&random_bytes(n * 1000 + part, 1 << 20)).unwrap();
            most = most.max(resident(mount.pid()));
        }
        drop(file);
        let file = File::open(&path).unwrap();
        let mut bytes = vec![0; 1 << 20];
        for part in 0..128u64 {
            file.read_exact_at(&mut bytes, part << 20).unwrap();
            assert!(part % 16 != 0 || bytes == random_bytes(n * 1000 + part, 1 << 20));
            most = most.max(resident(mount.pid()));
        }
        fs::remove_file(&path).unwrap();
    }
    println!("{} MiB resident at most", most >> 20);
    assert!(most <= CACHE + (100 << 20), "{} MiB resident", most >> 20);
}

#[test]
fn a_mount_that_slept_through_its_eviction_says_that_bytes_are_lost() {
    let (_cluster, one, other) = two();
    let (here, there) = (one.path().join("f"), other.path().join("f"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&here).unwrap();
    file.write_all_at(b"old", 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(b"new", 0).unwrap();
    one.signal(libc::SIGSTOP);
    let path = there.clone();
    let (seen, took) = ends_within(Duration::from_secs(20), "a read beside a stopped mount", move || fs::read(path));
    println!("read after {took:?}");
    one.signal(libc::SIGCONT);
    assert_eq!(seen.unwrap(), b"old");
    let (results, _) = ends_within(Duration::from_secs(20), "calls after the sleep", move || {
        let first = file.sync_all();
        (errno(first), errno(file.write_at(b"x", 0)), errno(file.sync_all()))
    });
    assert_eq!(results, (Some(libc::EIO), Some(libc::EIO), Some(libc::EIO)));
    wait_until(Duration::from_secs(10), "a new open works", || fs::read(&here).is_ok_and(|bytes| bytes == b"old"));
    fs::write(&here, b"next").unwrap();
    assert_same(&there, b"next");
}

#[test]
fn unmounting_commits_everything() {
    let (_cluster, one, other) = two();
    let files: Vec<Vec<u8>> = (0..40u64).map(|n| random_bytes(n, 100 + (n as usize) * 20_000)).collect();
    for (n, bytes) in files.iter().enumerate() {
        fs::write(one.path().join(format!("f{n}")), bytes).unwrap();
    }
    assert!(one.unmount().success());
    for (n, bytes) in files.iter().enumerate() {
        assert_same(&other.path().join(format!("f{n}")), bytes);
    }
}

#[test]
fn a_dirty_file_without_a_name_is_whole_as_long_as_it_is_open() {
    let (_cluster, one, other) = two();
    let path = one.path().join("f");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let bytes = random_bytes(9, 200_000);
    file.write_all_at(&bytes, 0).unwrap();
    // Somebody else has it open, too.
    let elsewhere = File::open(other.path().join("f")).unwrap();
    file.write_all_at(b"more", 200_000).unwrap();
    file.write_all_at(b"more", 200_004).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all_at(b"!", 0).unwrap();
    let expected = [b"!", &bytes[1..], b"moremore"].concat();
    let check = |file: &File| {
        let mut seen = vec![0; expected.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == expected);
    };
    check(&file);
    check(&elsewhere);
    drop(file);
    wait_until_committed(&one);
    check(&elsewhere);
}
