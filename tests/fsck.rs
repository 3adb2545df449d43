//! `dfs fsck` on real clusters: what it finds, what it has repaired, and that it takes nothing for an error while clients write.
#![allow(clippy::disallowed_methods)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Cluster, Options, random_bytes, wait_until};
use dfs::Client;

const MIB: usize = 1 << 20;

fn cluster(nodes: usize) -> Cluster {
    let cluster = Cluster::start_with(nodes, Options { extra: vec!["--debug-faults"], ..Options::default() });
    wait_until(Duration::from_secs(10), "not degraded", || cluster.dfs_json(&["status"])["degraded"].is_null());
    cluster
}

/// The chunk of the file's extent of that number.
fn chunk(cluster: &Cluster, path: &str, number: usize) -> String {
    cluster.dfs_json(&["locate", path])["extents"][number]["chunk"].as_str().expect("a chunk").to_string()
}

/// What `fsck --json` says, whatever its exit code; and that code.
fn fsck(cluster: &Cluster, arguments: &[&str]) -> (serde_json::Value, i32) {
    let finished = cluster.dfs(&[&["--json", "fsck"][..], arguments].concat());
    let code = finished.code();
    assert!(code == 0 || finished.stderr().lines().count() == 1, "one line: {}", finished.stderr());
    (serde_json::from_slice(&finished.output.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr())), code)
}

#[test]
fn a_sound_cluster_is_clean() {
    let cluster = cluster(3);
    cluster.dfs_ok(&["mkdir", "/dir"]);
    for number in 0..20u64 {
        cluster.dfs_input(&["put", "-", &format!("/dir/f{number}")], &random_bytes(number, 1000 * number as usize * 10)).ok();
    }
    let (report, code) = fsck(&cluster, &[]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["clean"], true);
    assert_eq!((report["inodes"].as_u64(), report["names"].as_u64()), (Some(22), Some(21)));
    assert_eq!(report["copies"].as_u64(), report["chunks"].as_u64().map(|chunks| 2 * chunks));
    assert_eq!(report["sums_compared"], true);
    let text = String::from_utf8(cluster.dfs_ok(&["fsck"])).expect("text");
    assert!(text.starts_with("checked ") && text.ends_with("clean\n"), "{text}");
}

#[test]
fn exactly_the_lost_files_are_listed() {
    let cluster = cluster(3);
    cluster.dfs_ok(&["mkdir", "/dir"]);
    cluster.dfs_input(&["put", "-", "/dir/lost"], &random_bytes(1, 2 * MIB + 7)).ok();
    cluster.dfs_input(&["put", "-", "/whole"], &random_bytes(2, 2 * MIB)).ok();
    let hash = chunk(&cluster, "/dir/lost", 1);
    for holder in cluster.holders("/dir/lost") {
        // Not every holder of the file holds this chunk.
        cluster.dfs(&["debug", "flip", &hash, "--node", &holder]);
    }
    cluster.dfs_ok(&["debug", "scrub"]);
    wait_until(Duration::from_secs(10), "the losses are known", || fsck(&cluster, &["--op-timeout", "2s"]).0["dark_chunks"] == 1);
    let finished = cluster.dfs(&["--op-timeout", "2s", "fsck"]);
    assert_eq!(finished.code(), 1);
    assert!(finished.stderr().contains("no living node holds it"), "{}", finished.stderr());
    let listed: Vec<String> = finished.stdout().lines().filter(|line| line.starts_with('/')).map(str::to_string).collect();
    assert_eq!(listed, ["/dir/lost"], "{}", finished.stdout());
    assert_eq!(cluster.dfs_ok(&["cat", "/whole"]), random_bytes(2, 2 * MIB));
    // Without the file all is well again.
    cluster.dfs_ok(&["rm", "/dir/lost"]);
    wait_until(Duration::from_secs(20), "clean after the lost file is removed", || fsck(&cluster, &["--op-timeout", "2s"]).1 == 0);
}

#[test]
fn a_copy_that_is_not_where_it_should_be_is_reported_lost() {
    let cluster = cluster(3);
    let bytes = random_bytes(3, 3 * MIB);
    cluster.dfs_input(&["put", "-", "/file"], &bytes).ok();
    let hash = chunk(&cluster, "/file", 1);
    cluster.dfs_ok(&["debug", "drop", &hash]);
    let (report, _) = fsck(&cluster, &["--op-timeout", "1s"]);
    assert_eq!(report["missing_copies"], 1, "{report}");
    assert_eq!(report["missing_copies_left"], 0, "the leader knows: {report}");
    assert!(report["flaws"].as_array().expect("flaws").is_empty() && report["dark_chunks"] == 0, "{report}");
    let (again, code) = fsck(&cluster, &["--op-timeout", "1s"]);
    assert_eq!(again["missing_copies"], 0, "{again}");
    // Until a copy has been made again, the chunk is short of one, and that is said.
    assert_eq!(code, i32::from(again["short_chunks_left"] != 0), "{again}");
    assert!(cluster.dfs_ok(&["cat", "/file"]) == bytes);
}

#[test]
fn nothing_is_an_error_because_clients_write() {
    let cluster = cluster(3);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.address.parse().expect("an address")).collect();
    let writers: Vec<_> = (0..3u64)
        .map(|writer| {
            let (stop, written, nodes) = (stop.clone(), written.clone(), nodes.clone());
            std::thread::spawn(move || {
                let client = Client::connect(&nodes, Default::default()).expect("a session");
                let path = |name: u64| format!("/w{writer}-{name}").into_bytes();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    // Some bytes come again and again, under several names at once.
                    client.put(&path(round % 7), &mut &random_bytes(round % 5, 30_000)[..]).expect("a put");
                    client.rename(&path(round % 7), &path(round % 3 + 10)).expect("a rename");
                    if round % 4 == 0 {
                        client.remove(&path(round % 3 + 10)).expect("a removal");
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    wait_until(Duration::from_secs(20), "clients write", || written.load(Ordering::Relaxed) > 20);
    for round in 0..8 {
        let before = written.load(Ordering::Relaxed);
        let (report, code) = fsck(&cluster, &[]);
        assert_eq!(code, 0, "round {round}: {report}");
        wait_until(Duration::from_secs(20), "clients go on", || written.load(Ordering::Relaxed) > before + 10);
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("no operation failed"));
    let (report, code) = fsck(&cluster, &[]);
    assert_eq!((code, &report["sums_compared"], &report["moving"]), (0, &true.into(), &0.into()), "{report}");
}
