//! P6 on real processes and real mounts: copies lost with a node are made again, nodes join, drain and leave while files are used.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, Starting, ends_within, random_bytes, wait_until};

const MIB: usize = 1 << 20;
/// Detection (2 s), a voter's replacement (5 s), and copies of what little these tests store, on a loaded machine.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);

/// Writes files of that many MiB each, different for each `seed`.
fn fill(directory: &Path, seed: u64, files: u64, mib: usize) {
    for number in 0..files {
        let bytes = random_bytes(seed << 16 | number, mib * MIB + number as usize);
        std::fs::write(directory.join(format!("{seed}-{number}")), bytes).expect("written");
    }
}

fn check(directory: &Path, seed: u64, files: u64, mib: usize) {
    for number in 0..files {
        let found = std::fs::read(directory.join(format!("{seed}-{number}"))).expect("read");
        assert!(found == random_bytes(seed << 16 | number, mib * MIB + number as usize), "file {seed}-{number} differs");
    }
}

/// Waits until every chunk has its copies where they belong, and `living` nodes are there of which as many vote as should.
fn until_whole(cluster: &Cluster, living: usize) {
    wait_until(WHOLE_WITHIN, "every copy is made and enough nodes vote", || {
        let finished = cluster.dfs(&["--json", "status"]);
        let Ok(status) = serde_json::from_slice::<serde_json::Value>(&finished.output.stdout) else { return false };
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let live: Vec<_> = nodes.iter().filter(|node| node["state"] == "live").collect();
        let repair = &status["repair"];
        status["from_leader"] == true
            && live.len() == living
            && live.iter().filter(|node| node["voter"] == true).count() == dfs::cluster_map::voters_wanted(living)
            && status["degraded"].is_null()
            && repair["known"] == true
            && repair["weak_chunks"] == 0
            && repair["misplaced_chunks"] == 0
    });
}

/// Keeps writing, syncing and reading small files until told to stop; any error fails it. Gives the longest call and how many there were.
struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(Duration, u64)>,
}

impl Load {
    fn start(directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, directory) = (stop.clone(), directory.to_path_buf());
        let thread = std::thread::spawn(move || {
            let (mut longest, mut rounds) = (Duration::ZERO, 0u64);
            while !told.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let path = directory.join(format!("load-{}", rounds % 20));
                let bytes = random_bytes(rounds, 20_000 + rounds as usize % 3000);
                std::fs::write(&path, &bytes).expect("a write under way does not fail");
                std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("nor does fsync");
                assert!(std::fs::read(&path).expect("nor a read") == bytes, "what was written is read");
                longest = longest.max(begun.elapsed());
                rounds += 1;
            }
            (longest, rounds)
        });
        Load { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (longest, rounds) = self.thread.join().expect("no call failed");
        println!("{rounds} rounds beside it, the longest took {longest:?}");
        assert!(rounds > 0);
    }
}

#[test]
fn p6_lost_copies_are_made_again_and_the_next_death_loses_nothing() {
    let mut cluster = Cluster::start(4);
    let mount = Mount::new(&cluster);
    fill(mount.path(), 1, 12, 4);
    cluster.dfs_ok(&["sync"]);
    until_whole(&cluster, 4);
    let load = Load::start(mount.path());
    let first = cluster.nodes.iter().map(|node| node.id.clone()).find(|id| *id != cluster.leader()).expect("four nodes");
    cluster.node(&first).kill();
    until_whole(&cluster, 3);
    let second = cluster.leader();
    cluster.node(&second).kill();
    let path = mount.path().to_path_buf();
    ends_within(Duration::from_secs(60), "reading after the second death", move || check(&path, 1, 12, 4));
    load.end();
}

#[test]
fn p6_a_node_that_joins_gets_its_share_and_one_that_is_drained_leaves_nothing_behind() {
    let mut cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    fill(mount.path(), 2, 12, 4);
    cluster.dfs_ok(&["sync"]);
    let load = Load::start(mount.path());
    let index = cluster.add();
    let joined = cluster.nodes[index].id.clone();
    until_whole(&cluster, 4);
    let status = cluster.dfs_json(&["status"]);
    let nodes = status["nodes"].as_array().expect("nodes").clone();
    let recorded = |id: &str| nodes.iter().find(|node| node["node"] == id).and_then(|node| node["recorded"].as_u64()).expect("a node");
    let total: u64 = nodes.iter().map(|node| node["recorded"].as_u64().expect("a number")).sum();
    assert!((total / 8..total * 3 / 8).contains(&recorded(&joined)), "{} of {total} chunks moved to a fourth node", recorded(&joined));

    let leaving = cluster.nodes[0].address.clone();
    cluster.dfs_ok(&["drain", &leaving]);
    assert!(cluster.nodes[0].wait(Duration::from_secs(10)).success(), "the drained node has left by itself");
    until_whole(&cluster, 3);
    check(mount.path(), 2, 12, 4);
    let refusal = cluster.dfs(&["can-stop", &leaving]).failed();
    assert!(refusal.contains("no living node"), "{refusal}");
    load.end();
}

#[test]
fn p6_every_node_may_be_restarted_one_after_the_other() {
    restart_each_of(3);
}

#[test]
fn p6_every_node_of_five_may_be_restarted_one_after_the_other() {
    restart_each_of(5);
}

fn restart_each_of(nodes: usize) {
    let mut cluster = Cluster::start(nodes);
    let mount = Mount::new(&cluster);
    fill(mount.path(), 3, 8, 4);
    cluster.dfs_ok(&["sync"]);
    let load = Load::start(mount.path());
    for index in 0..nodes {
        until_whole(&cluster, nodes);
        let address = cluster.nodes[index].address.clone();
        cluster.dfs_ok(&["can-stop", &address]);
        cluster.nodes[index].signal(libc::SIGTERM);
        assert!(cluster.nodes[index].wait(Duration::from_secs(40)).success());
        let others: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).filter(|other| *other != address).collect();
        let log = cluster.temp.path().join(format!("again{index}.log"));
        let join = others.join(",");
        let arguments = ["--listen", &address, "--memory", cluster.options.memory, "--join", &join, "--log", "info"];
        cluster.nodes[index] = Starting::spawn(&arguments, &log).ready();
    }
    until_whole(&cluster, nodes);
    check(mount.path(), 3, 8, 4);
    load.end();
}

#[test]
fn a_drain_that_the_others_have_no_room_for_is_refused_with_the_reason() {
    let cluster = Cluster::start(2);
    let address = cluster.nodes[1].address.clone();
    let refusal = cluster.dfs(&["drain", &address]).failed();
    assert!(refusal.contains("fewer nodes than the 2 copies"), "{refusal}");
    let needed = cluster.dfs(&["can-stop", &cluster.nodes[0].address]).failed();
    assert!(needed.contains("no majority"), "{needed}");
    assert!(cluster.dfs(&["drain", "nowhere:1"]).failed().contains("no living node"));
}

/// A node that stands still for longer than it may is counted out, and comes back as itself with all that it held.
#[test]
fn p6_a_node_that_was_stopped_returns_with_its_chunks() {
    let mut cluster = Cluster::start(4);
    let mount = Mount::new(&cluster);
    fill(mount.path(), 4, 8, 4);
    cluster.dfs_ok(&["sync"]);
    until_whole(&cluster, 4);
    let victim = cluster.nodes.iter().map(|node| node.id.clone()).find(|id| *id != cluster.leader()).expect("four nodes");
    cluster.node(&victim).stop();
    until_whole(&cluster, 3);
    cluster.node(&victim).cont();
    until_whole(&cluster, 4);
    let status = cluster.dfs_json(&["status"]);
    let back =
        status["nodes"].as_array().expect("nodes").iter().find(|node| node["node"] == victim.as_str()).cloned().expect("the same id");
    assert!(back["recorded"].as_u64().expect("a number") > 0, "{back}");
    check(mount.path(), 4, 8, 4);
}

/// Nodes that hold each extent of the file.
fn places(cluster: &Cluster, path: &str) -> Vec<BTreeSet<String>> {
    let located = cluster.dfs_json(&["locate", path]);
    let holders = |extent: &serde_json::Value| extent["holders"].as_array().expect("holders").clone();
    let id = |holder: &serde_json::Value| holder["node"].as_str().expect("a node").to_string();
    located["extents"].as_array().expect("extents").iter().map(|extent| holders(extent).iter().map(id).collect()).collect()
}

/// What a check lists as lost.
fn listed_as_lost(cluster: &Cluster) -> BTreeSet<String> {
    let finished = cluster.dfs(&["--op-timeout", "2s", "fsck"]);
    finished.stdout().lines().filter_map(|line| line.strip_prefix('/')).map(str::to_string).collect()
}

#[test]
fn when_both_holders_die_at_once_their_files_are_lost_and_nothing_else() {
    const FILES: u64 = 30;
    let mut cluster = Cluster::start(5);
    let (mount, cold) = (Mount::new(&cluster), Mount::new(&cluster));
    let content = |number: u64| random_bytes(9000 + number, 300_000 + number as usize);
    (0..FILES).for_each(|number| std::fs::write(mount.path().join(format!("f{number}")), content(number)).expect("written"));
    cluster.dfs_ok(&["sync"]);
    wait_until(WHOLE_WITHIN, "five nodes vote and each chunk has two copies", || {
        let status = cluster.dfs_json(&["status"]);
        let voters = status["nodes"].as_array().expect("nodes").iter().filter(|node| node["voter"] == true).count();
        voters == 5
            && status["repair"]["known"] == true
            && status["repair"]["weak_chunks"] == 0
            && status["repair"]["misplaced_chunks"] == 0
    });
    let held: Vec<BTreeSet<String>> = (0..FILES).map(|number| places(&cluster, &format!("/f{number}"))[0].clone()).collect();
    let pair = held.iter().find(|nodes| nodes.len() == 2).expect("two copies").clone();
    let lost: BTreeSet<String> = (0..FILES).filter(|&number| held[number as usize] == pair).map(|number| format!("f{number}")).collect();
    assert!((1..FILES as usize / 2).contains(&lost.len()), "{} files share two nodes", lost.len());
    pair.iter().for_each(|node| cluster.node(node).signal(libc::SIGKILL));
    pair.iter().for_each(|node| cluster.node(node).kill());

    // Whoever has nothing cached gets an error for exactly these, within the deadline.
    let readers: Vec<_> = (0..FILES)
        .map(|number| {
            let path = cold.path().join(format!("f{number}"));
            std::thread::spawn(move || ends_within(Duration::from_secs(20), "a read", move || std::fs::read(path)))
        })
        .collect();
    for (number, reader) in (0..FILES).zip(readers) {
        let (read, took) = reader.join().expect("it ended in time");
        match read {
            Ok(bytes) => assert!(bytes == content(number) && !lost.contains(&format!("f{number}")), "f{number}"),
            Err(error) => {
                assert!(lost.contains(&format!("f{number}")), "f{number}: {error} after {took:?}");
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "f{number}: {error}");
            }
        }
    }
    wait_until(WHOLE_WITHIN, "a check lists exactly what is lost", || listed_as_lost(&cluster) == lost);

    // All else goes on, with the lost files as well: they have names and attributes, and can be removed.
    let path = cold.path().to_path_buf();
    let names: Vec<String> = lost.iter().cloned().collect();
    let rest = move || {
        std::fs::write(path.join("new"), content(77)).expect("a new file");
        std::fs::File::open(path.join("new")).and_then(|file| file.sync_all()).expect("it is safe");
        assert!(std::fs::read(path.join("new")).expect("readable") == content(77));
        std::fs::rename(path.join("new"), path.join("renamed")).expect("renamed");
        for name in &names {
            assert!(std::fs::metadata(path.join(name)).expect("attributes").len() >= 300_000);
            std::fs::remove_file(path.join(name)).expect("a lost file can be removed");
        }
    };
    ends_within(Duration::from_secs(60), "everything else", rest);
    wait_until(WHOLE_WITHIN, "clean without the lost files", || cluster.dfs(&["--op-timeout", "2s", "fsck"]).code() == 0);
}
