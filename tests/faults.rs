//! Nodes die, stop and fill up under a live mount: real processes, real signals, and the promises that must hold meanwhile.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, Options, TempDir, random_bytes, wait_until};

/// Operation deadline of a mount with default options, and what a loaded machine may add to a call's end.
const OP_TIMEOUT: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(3);

/// A tree of `files` small and some larger files below `root`.
fn make_tree(root: &Path, files: usize) {
    let mut random = dfs::random::Random::new(7);
    for index in 0..files {
        let directory = root.join(format!("d{}/s{}", index % 7, index % 23));
        fs::create_dir_all(&directory).unwrap();
        let length = match random.below(20) {
            0 => 200_000 + random.below(3_000_000),
            1..=4 => 0,
            _ => random.below(12_000),
        };
        fs::write(directory.join(format!("file-{index}")), random_bytes(index as u64, length as usize)).unwrap();
    }
    std::os::unix::fs::symlink("d1/s1", root.join("link")).unwrap();
}

fn assert_same_tree(left: &Path, right: &Path) {
    let output = Command::new("diff").arg("-r").args([left, right]).output().expect("diff runs");
    assert!(output.status.success(), "trees differ:\n{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn p4_killing_the_leader_during_tar_shows_only_as_a_pause() {
    let scratch = TempDir::new();
    let source = scratch.path().join("tree");
    make_tree(&source, 1200);
    let tarball = scratch.path().join("tree.tar");
    let done = Command::new("tar").arg("cf").arg(&tarball).arg("-C").arg(&source).arg(".").status().unwrap();
    assert!(done.success());

    let mut cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    let leader = cluster.leader();
    let target = mount.path().join("tree");
    fs::create_dir(&target).unwrap();
    let tar = Command::new("tar").arg("xf").arg(&tarball).arg("-C").arg(&target).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(Duration::from_secs(60), "tar is under way", || target.join("d3").exists());
    cluster.node(&leader).kill();
    let finished = tar.wait_with_output().unwrap();
    assert!(finished.status.success(), "tar failed: {}", String::from_utf8_lossy(&finished.stderr));
    assert_same_tree(&source, &target);

    // A second life of the mount sees the same; and a new node takes the dead voter's place with nobody typing anything.
    assert!(mount.unmount().success());
    cluster.add();
    let mount = Mount::new(&cluster);
    assert_same_tree(&source, &mount.path().join("tree"));
    wait_until(Duration::from_secs(30), "three living voters again", || {
        let status = cluster.dfs_json(&["status"]);
        let members = status["nodes"].as_array().expect("nodes").clone();
        members.iter().filter(|member| member["voter"] == true && member["state"] == "live").count() == 3
    });
}

#[test]
fn p3_either_holder_may_die_right_after_fsync() {
    for which in 0..2 {
        let mut cluster = Cluster::start(3);
        let mount = Mount::new(&cluster);
        let content = random_bytes(11 + which as u64, 3 << 20);
        let mut file = File::create(mount.path().join("safe")).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        let holders = cluster.holders("/safe");
        assert!(holders.len() >= 2, "on two nodes when fsync returns: {holders:?}");
        cluster.node(&holders[which]).kill();
        assert!(fs::read(mount.path().join("safe")).unwrap() == content, "bytes survive the death of holder {which}");
        let other = Mount::new(&cluster);
        assert!(fs::read(other.path().join("safe")).unwrap() == content, "and a new mount reads them");
    }
}

#[test]
fn p3_dfs_sync_makes_safe_what_every_mount_has_accepted() {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    for round in 0..5 {
        fs::create_dir(a.path().join(round.to_string())).unwrap();
        for file in 0..100 {
            fs::write(a.path().join(format!("{round}/{file}")), random_bytes(100 * round + file, 5000)).unwrap();
        }
    }
    cluster.dfs_ok(&["sync"]);
    a.signal(libc::SIGKILL);
    for round in 0..5 {
        for file in 0..100 {
            let content = fs::read(b.path().join(format!("{round}/{file}"))).unwrap();
            assert!(content == random_bytes(100 * round + file, 5000), "{round}/{file}");
        }
    }
}

#[test]
fn p4_every_call_ends_while_a_node_is_stopped() {
    let mut cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    let leader = cluster.leader();
    fs::write(mount.path().join("before"), random_bytes(1, 2 << 20)).unwrap();
    for victim in [leader, cluster.leader()] {
        // The second time round another node may lead; either way one of three is silent.
        cluster.node(&victim).stop();
        for round in 0..20 {
            let start = Instant::now();
            let path = mount.path().join(format!("during{round}"));
            let content = random_bytes(round, 1 << 20);
            fs::write(&path, &content).unwrap();
            assert!(fs::read(&path).unwrap() == content);
            assert_eq!(fs::read(mount.path().join("before")).unwrap().len(), 2 << 20);
            fs::remove_file(&path).unwrap();
            assert!(start.elapsed() < OP_TIMEOUT + SLACK, "one round of calls took {:?}", start.elapsed());
        }
        cluster.node(&victim).cont();
        wait_until(Duration::from_secs(30), "the stopped node takes part again or is replaced", || {
            fs::write(mount.path().join("probe"), b"x").is_ok()
        });
    }
}

#[test]
fn p4_without_a_majority_calls_end_with_an_error() {
    let mut cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    fs::write(mount.path().join("file"), b"x").unwrap();
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let start = Instant::now();
    fs::write(mount.path().join("other"), b"y").expect_err("nobody can commit it");
    assert!(start.elapsed() < 2 * OP_TIMEOUT + SLACK, "open and write took {:?}", start.elapsed());
    let start = Instant::now();
    fs::metadata(mount.path().join("file")).expect_err("nobody can prove it");
    assert!(start.elapsed() < OP_TIMEOUT + SLACK, "stat took {:?}", start.elapsed());
}

#[test]
fn p7_a_full_cluster_says_so_and_deleting_makes_room() {
    let cluster = Cluster::start_with(3, Options { memory: "64MiB", ..Options::default() });
    let mount = Mount::new(&cluster);
    let kept = random_bytes(5, 4 << 20);
    fs::write(mount.path().join("kept"), &kept).unwrap();
    let mut filler = File::create(mount.path().join("filler")).unwrap();
    let mut errno = None;
    for round in 0..400u64 {
        if let Err(error) = filler.write_all(&random_bytes(100 + round, 1 << 20)) {
            errno = error.raw_os_error();
            break;
        }
    }
    assert_eq!(errno, Some(libc::ENOSPC));
    assert!(fs::read(mount.path().join("kept")).unwrap() == kept, "what was stored stays intact");
    drop(filler);
    fs::remove_file(mount.path().join("filler")).unwrap();
    wait_until(Duration::from_secs(10), "deleted space comes back", || {
        fs::write(mount.path().join("again"), random_bytes(6, 20 << 20)).is_ok()
    });
}

#[test]
fn p7_deleted_space_comes_back() {
    let cluster = Cluster::start_with(3, Options { memory: "64MiB", ..Options::default() });
    let mount = Mount::new(&cluster);
    // More than twice the cluster's memory passes through it, a file of a quarter of its capacity at a time.
    for round in 0..40u64 {
        let path = mount.path().join("churn");
        fs::write(&path, random_bytes(round, 13 << 20)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn p9_umount_ends_the_process_and_signals_unmount() {
    let cluster = Cluster::start(1);
    let mount = Mount::new(&cluster);
    fs::write(mount.path().join("f"), b"x").unwrap();
    let start = Instant::now();
    assert!(mount.unmount().success());
    assert!(start.elapsed() < Duration::from_secs(5));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut mount = Mount::new(&cluster);
        let busy = File::open(mount.path().join("f")).unwrap();
        mount.signal(signal);
        assert!(mount.wait(Duration::from_secs(15)).success());
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(&mount.path().display().to_string()), "still mounted after signal {signal}");
        drop(busy);
    }
}
