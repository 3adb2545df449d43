//! Whole programs as a user runs them: real processes, real sockets, `kill -9`.
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, Options, Starting, TempDir, dfs_with, free_port, program, random_bytes, run, wait_until};

const MIB: usize = 1 << 20;
/// Operation deadline of the commands, with room for a loaded machine.
const OPERATION_WITHIN: Duration = Duration::from_secs(20);

/// Puts, lists, fetches, moves and removes on a cluster of any size.
fn exercise(cluster: &Cluster) {
    let small = random_bytes(1, 700);
    let large = random_bytes(2, 5 * MIB + 333);
    let source = cluster.temp.file("large.bin", &large);
    cluster.dfs_ok(&["mkdir", "/dir"]);
    cluster.dfs_input(&["put", "-", "/dir/small"], &small).ok();
    cluster.dfs_ok(&["put", source.to_str().expect("UTF-8"), "/dir"]);
    assert_eq!(cluster.dfs_ok(&["ls", "/dir"]), b"large.bin\nsmall\n");
    assert!(cluster.dfs_ok(&["cat", "/dir/small"]) == small);
    cluster.dfs_ok(&["get", "/dir/large.bin", cluster.temp.path().join("back").to_str().expect("UTF-8")]);
    assert!(std::fs::read(cluster.temp.path().join("back")).expect("fetched") == large);
    std::fs::create_dir(cluster.temp.path().join("into")).expect("directory");
    cluster.dfs_ok(&["get", "/dir/small", cluster.temp.path().join("into").to_str().expect("UTF-8")]);
    assert!(std::fs::read(cluster.temp.path().join("into/small")).expect("fetched by name") == small);

    let listed = cluster.dfs_json(&["ls", "--where", "/dir"]);
    assert_eq!(listed[0]["name"], "large.bin");
    assert_eq!(listed[0]["size"], large.len());
    let copies = cluster.nodes.len().min(2);
    for run in cluster.dfs_json(&["locate", "/dir/large.bin"])["extents"].as_array().expect("extents") {
        if run["kind"] == "chunk" {
            assert!(run["holders"].as_array().expect("holders").len() >= copies, "{run}");
        }
    }
    assert!(cluster.dfs_json(&["df"])["used"].as_u64().expect("bytes") > 0);

    cluster.dfs_ok(&["mv", "/dir/small", "/moved"]);
    assert!(String::from_utf8_lossy(&cluster.dfs_ok(&["stat", "/moved"])).contains("size   700"));
    cluster.dfs_input(&["put", "-", "/moved"], b"shorter").ok();
    assert_eq!(cluster.dfs_ok(&["cat", "/moved"]), b"shorter");
    assert!(cluster.dfs(&["cat", "/dir/small"]).failed().contains("/dir/small: no such file or directory"));
    assert!(cluster.dfs(&["rm", "/dir"]).failed().contains("rm -r"));
    cluster.dfs_ok(&["rm", "-r", "/dir"]);
    cluster.dfs_ok(&["rm", "/moved"]);
    cluster.dfs_ok(&["sync"]);
    assert!(cluster.dfs_ok(&["ls"]).is_empty());
}

#[test]
fn one_node_serves() {
    exercise(&Cluster::start(1));
}

#[test]
fn three_nodes_serve_and_each_is_one_thread() {
    let cluster = Cluster::start(3);
    exercise(&cluster);
    assert!(cluster.nodes.iter().all(|node| node.cluster == cluster.nodes[0].cluster));
    for node in &cluster.nodes {
        let threads = std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("a running node").count();
        assert_eq!(threads, 1, "a node is one operating-system thread");
    }
    let status = cluster.dfs_json(&["status"]);
    assert_eq!(status["nodes"].as_array().expect("nodes").len(), 3);
    assert!(status["leader"].is_string());
    wait_until(Duration::from_secs(10), "three voters, not degraded", || {
        let status = cluster.dfs_json(&["status"]);
        let voters = status["nodes"].as_array().expect("nodes").iter().filter(|node| node["voter"] == true).count();
        voters == 3 && status["degraded"].is_null()
    });
    assert!(String::from_utf8_lossy(&cluster.dfs_ok(&["status"])).contains("leader"));
}

#[test]
fn unix_sockets_stand_wherever_an_address_does() {
    let cluster = Cluster::start_with(2, Options { unix: true, ..Options::default() });
    assert!(cluster.nodes[0].address.starts_with("unix:/"));
    exercise(&cluster);
}

/// P3. Kills each holder of a file right after `dfs put` returned; the bytes must come from the other.
#[test]
fn p3_safe_means_replicated() {
    for victim in 0..2 {
        let mut cluster = Cluster::start(3);
        let bytes = random_bytes(10 + victim as u64, 3 * MIB + 17);
        wait_until(Duration::from_secs(10), "three voters", || cluster.dfs_json(&["status"])["degraded"].is_null());
        cluster.dfs_input(&["put", "-", "/file"], &bytes).ok();
        let holders = cluster.holders("/file");
        assert!(holders.len() >= 2, "replicated on {holders:?}");
        cluster.node(&holders[victim]).kill();
        assert!(cluster.dfs_ok(&["cat", "/file"]) == bytes, "the bytes survive the death of holder {victim}");
    }
}

/// P4. Puts go on while the leader is killed, and again while the next one is only stopped.
#[test]
fn p4_no_hang_when_the_leader_dies() {
    let mut cluster = Cluster::start(4);
    wait_until(Duration::from_secs(10), "three voters", || cluster.dfs_json(&["status"])["degraded"].is_null());
    let leader = cluster.leader();
    let addresses = cluster.addresses();
    let putter = std::thread::spawn(move || {
        for number in 0..20u64 {
            let begun = Instant::now();
            dfs_with(&addresses, &["put", "-", &format!("/f{number}")], Some(&random_bytes(number, 200_000))).ok();
            assert!(begun.elapsed() < OPERATION_WITHIN, "a put took {:?}", begun.elapsed());
        }
    });
    wait_until(Duration::from_secs(10), "puts are under way", || cluster.dfs(&["stat", "/f1"]).code() == 0);
    cluster.node(&leader).kill();
    putter.join().expect("every put succeeded");
    for number in 0..20u64 {
        assert!(cluster.dfs_ok(&["cat", &format!("/f{number}")]) == random_bytes(number, 200_000), "/f{number}");
    }

    let is_dead = |status: &serde_json::Value| {
        status["nodes"].as_array().expect("nodes").iter().any(|node| node["node"] == leader.as_str() && node["state"] == "dead")
    };
    wait_until(Duration::from_secs(20), "a spare took the dead voter's place", || {
        let status = cluster.dfs_json(&["status"]);
        is_dead(&status) && status["degraded"].is_null()
    });
    // The new voters show as soon as the joint change begins; until it is left, the dead one still counts.
    // The entry that leaves it precedes whatever is committed from here on.
    cluster.dfs_input(&["put", "-", "/after"], b"three vote again").ok();
    let leader = cluster.leader();
    cluster.node(&leader).stop();
    let begun = Instant::now();
    cluster.dfs_input(&["put", "-", "/while-stopped"], b"still served").ok();
    assert!(begun.elapsed() < OPERATION_WITHIN);
    cluster.node(&leader).cont();
    assert_eq!(cluster.dfs_ok(&["cat", "/while-stopped"]), b"still served");
}

/// P7. A full cluster says so, keeps what it has, and serves again after deletions.
#[test]
fn p7_honest_memory() {
    let cluster = Cluster::start_with(2, Options { memory: "32MiB", ..Options::default() });
    let mut stored = Vec::new();
    let refused = loop {
        let number = stored.len() as u64;
        assert!(number < 64, "64 x 4 MiB on two copies do not fit into 2 x 32 MiB");
        let path = format!("/f{number}");
        let put = cluster.dfs_input(&["put", "-", &path], &random_bytes(number, 4 * MIB));
        if put.code() != 0 {
            break put;
        }
        stored.push(path);
    };
    assert!(refused.failed().contains("no space left"), "{}", refused.stderr());
    assert!(stored.len() >= 2, "{} files of 4 MiB fit", stored.len());
    for (number, path) in stored.iter().enumerate() {
        assert!(cluster.dfs_ok(&["cat", path]) == random_bytes(number as u64, 4 * MIB), "{path} is intact");
    }
    for path in &stored {
        cluster.dfs_ok(&["rm", path]);
    }
    wait_until(Duration::from_secs(15), "deleted space is free", || {
        cluster.dfs_json(&["df"])["used"].as_u64().expect("bytes") < MIB as u64
    });
    wait_until(Duration::from_secs(5), "a put fits again", || {
        cluster.dfs_input(&["put", "-", "/again"], &random_bytes(99, 4 * MIB)).code() == 0
    });
}

#[test]
fn the_same_content_is_stored_once() {
    let cluster = Cluster::start(2);
    let bytes = random_bytes(5, 6 * MIB);
    cluster.dfs_input(&["put", "-", "/one"], &bytes).ok();
    let once = cluster.dfs_json(&["status"])["referenced_bytes"].as_u64().expect("bytes");
    assert_eq!(once, bytes.len() as u64);
    cluster.dfs_input(&["put", "-", "/two"], &bytes).ok();
    assert_eq!(cluster.dfs_json(&["status"])["referenced_bytes"].as_u64(), Some(once));
    wait_until(Duration::from_secs(10), "each node stores it once", || {
        let status = cluster.dfs_json(&["status"]);
        status["nodes"].as_array().expect("nodes").iter().all(|node| node["stored"].as_u64() == Some(once))
    });
    cluster.dfs_ok(&["rm", "/one"]);
    assert!(cluster.dfs_ok(&["cat", "/two"]) == bytes);
}

#[test]
fn a_node_may_join_before_the_founder_starts() {
    let temp = TempDir::new();
    let founder = format!("127.0.0.1:{}", free_port());
    let own = format!("127.0.0.1:{}", free_port());
    let join = format!("{founder},{own},127.0.0.1:1"); // The founder, itself, and nobody.
    let joiner = Starting::spawn(&["--listen", &own, "--join", &join, "--memory", "64MiB"], &temp.path().join("joiner.log"));
    assert!(joiner.is_ready_within(Duration::from_millis(700)).is_none(), "--join never forms a cluster");
    let founder = Starting::spawn(&["--listen", &founder, "--memory", "64MiB"], &temp.path().join("founder.log")).ready();
    let joiner = joiner.ready();
    assert_eq!(joiner.cluster, founder.cluster);
    dfs_with(&joiner.address, &["put", "-", "/a"], Some(b"through the joiner")).ok();
    assert_eq!(dfs_with(&founder.address, &["cat", "/a"], None).ok(), b"through the joiner");
}

#[test]
fn a_port_in_use_is_said_in_one_line() {
    let cluster = Cluster::start(1);
    let failed = run("dfs-node", &["--listen", &cluster.nodes[0].address, "--memory", "64MiB", "--log", "off"], None);
    assert!(failed.failed().contains("in use"), "{}", failed.stderr());
}

#[test]
fn logs_are_json_when_asked() {
    let options = Options { extra: vec!["--log-format", "json"], ..Options::default() };
    let mut cluster = Cluster::start_with(1, options);
    let finished = cluster.dfs(&["--log", "debug", "--log-format", "json", "ls"]);
    cluster.nodes[0].signal(libc::SIGINT);
    cluster.nodes[0].wait(Duration::from_secs(10));
    let node_log = cluster.nodes[0].log_text();
    assert!(!node_log.is_empty(), "a node logs its start");
    for line in node_log.lines().chain(finished.stderr().lines()) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn what_is_not_built_says_not_yet() {
    for line in ["top", "keygen f", "shell", "--secret-file f ls"] {
        let finished = run("dfs", &line.split(' ').collect::<Vec<_>>(), None);
        assert!(finished.failed().contains("not yet"), "{line}: {}", finished.stderr());
    }
    for line in ["--http 127.0.0.1:0", "--secret-file f"] {
        let finished = run("dfs-node", &line.split(' ').collect::<Vec<_>>(), None);
        assert!(finished.failed().contains("not yet"), "{line}: {}", finished.stderr());
    }
}

#[test]
fn replicas_and_zone_of_real_nodes_are_kept_and_shown() {
    let options = Options { extra: vec!["--replicas", "3", "--zone", "rack7"], ..Options::default() };
    let mut cluster = Cluster::start_with(4, options);
    let bytes = random_bytes(5, 3 * MIB);
    cluster.dfs_input(&["put", "-", "/a"], &bytes).ok();
    let located = String::from_utf8(cluster.dfs_ok(&["locate", "/a"])).expect("UTF-8");
    assert!(located.lines().count() >= 3 && located.lines().all(|line| line.matches('@').count() == 3), "{located}");
    let status = String::from_utf8(cluster.dfs_ok(&["status"])).expect("UTF-8");
    assert!(status.contains("each on 3 nodes") && status.contains("ZONE") && status.contains("rack7"), "{status}");
    // Three copies bear two deaths, one after the other.
    for index in [3, 2] {
        cluster.nodes[index].signal(libc::SIGKILL);
        cluster.nodes[index].wait(Duration::from_secs(10));
        assert!(cluster.dfs_ok(&["cat", "/a"]) == bytes);
        wait_until(Duration::from_secs(20), "the death is noticed", || {
            let status = String::from_utf8(cluster.dfs_ok(&["status"])).expect("UTF-8");
            status.lines().filter(|line| line.contains(" dead ")).count() == 4 - index
        });
    }
    let status = String::from_utf8(cluster.dfs_ok(&["status"])).expect("UTF-8");
    assert!(status.contains("degraded: 2 of 3 storage nodes"), "{status}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for line in ["nonsense", "put a", "ls --frm", "--nodes nowhere ls", "--op-timeout soon df", "--json mkdir /a"] {
        let finished = run("dfs", &line.split(' ').collect::<Vec<_>>(), None);
        assert_eq!(finished.code(), 2, "{line}");
        assert!(finished.output.stdout.is_empty() && !finished.stderr().is_empty(), "{line}");
    }
    for line in ["--replicas 0", "--replicas 9", "--replicas two", "--zone="] {
        let finished = run("dfs-node", &line.split(' ').collect::<Vec<_>>(), None);
        assert_eq!(finished.code(), 2, "{line}");
        let option = line.split([' ', '=']).next().expect("a word");
        assert!(finished.output.stdout.is_empty() && finished.stderr().contains(option), "{line}: {}", finished.stderr());
    }
    for program in ["dfs-node", "dfs-mount"] {
        assert_eq!(run(program, &["--nonsense"], None).code(), 2, "{program}");
    }
}

#[test]
fn without_a_node_the_command_says_what_to_do() {
    let address = format!("127.0.0.1:{}", free_port());
    let begun = Instant::now();
    let finished = dfs_with(&address, &["--op-timeout", "1s", "ls"], None);
    assert!(finished.failed().contains("dfs-node"), "{}", finished.stderr());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_mount_that_cannot_be_is_said_in_one_line() {
    let cluster = Cluster::start(1);
    let path = |name: &str| cluster.temp.path().join(name).to_str().expect("UTF-8").to_string();
    let nodes = cluster.addresses();
    let mount = |nodes: &str, point: &str| run("dfs-mount", &["--nodes", nodes, "--op-timeout", "10s", point], None).failed();
    assert!(mount(&nodes, &path("missing")).contains("missing"));
    let file = cluster.temp.file("plain", b"x").to_str().expect("UTF-8").to_string();
    assert!(mount(&nodes, &file).contains("plain"));
    let mounted = Mount::new(&cluster);
    assert!(mount(&nodes, mounted.path().to_str().expect("UTF-8")).contains("mount"));
    let nobody = format!("127.0.0.1:{}", free_port());
    std::fs::create_dir(path("free")).expect("a directory");
    assert!(mount(&nobody, &path("free")).contains("dfs-node"), "says what to start");
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(&path("free")), "a mount that failed leaves none behind");
}

#[test]
fn directories_and_missing_files_are_said_in_one_line() {
    let cluster = Cluster::start(1);
    let directory = cluster.temp.path().to_str().expect("UTF-8").to_string();
    assert!(cluster.dfs(&["put", &directory, "/x"]).failed().contains("dfs-mount"));
    assert!(cluster.dfs(&["put", "/no/such/file", "/x"]).failed().contains("no such file"));
    assert!(cluster.dfs(&["cat", "/"]).failed().contains("directory"));
    assert!(cluster.dfs(&["rm", "/"]).failed().contains("root"));
    assert!(cluster.dfs(&["get", "/missing", "-"]).failed().contains("no such file"));
    assert!(cluster.dfs(&["put", &"x".repeat(256), "/"]).failed().contains("long"));
    assert!(cluster.dfs_ok(&["ls"]).is_empty(), "nothing half-made is left");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let cluster = Cluster::start(1);
    cluster.dfs_input(&["put", "-", "/big"], &random_bytes(3, 8 * MIB)).ok();
    let mut command = Command::new(program("dfs"));
    command.args(["--nodes", &cluster.addresses(), "cat", "/big"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("dfs starts");
    let mut first = [0u8; 10];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("the first bytes");
    let output = child.wait_with_output().expect("dfs ends");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(141));
}

fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("a running process");
    text.split(' ').nth(1).expect("resident").parse::<u64>().expect("a number") * 4096
}

/// P8, as far as it is built: what is no message closes its connection and nothing else.
#[test]
fn p8_hostile_bytes_harm_nobody() {
    let mut cluster = Cluster::start(1);
    let address = cluster.nodes[0].address.clone();
    let before = resident_bytes(cluster.nodes[0].pid());
    for round in 0..60u64 {
        let Ok(mut socket) = std::net::TcpStream::connect(&address) else { panic!("the node accepts") };
        let _ = socket.set_write_timeout(Some(Duration::from_secs(5)));
        let bytes = match round % 4 {
            0 => random_bytes(round, 100_000),
            1 => vec![0xff; 4096],
            2 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            _ => vec![0; 3],
        };
        let _ = socket.write_all(&bytes); // The node may close at any byte.
        if round % 10 == 0 {
            cluster.dfs_input(&["put", "-", &format!("/f{round}")], &random_bytes(round, 50_000)).ok();
        }
    }
    for round in (0..60u64).step_by(10) {
        assert!(cluster.dfs_ok(&["cat", &format!("/f{round}")]) == random_bytes(round, 50_000));
    }
    assert!(cluster.nodes[0].is_running());
    let grown = resident_bytes(cluster.nodes[0].pid()).saturating_sub(before);
    assert!(grown < 64 * MIB as u64, "garbage made the node grow by {grown} bytes");
}

/// P9. Stopping the cluster and unmounting leave no file, no mount, no process.
#[test]
fn p9_nothing_left_behind() {
    let mut cluster = Cluster::start_with(3, Options { unix: true, ..Options::default() });
    let mut mount = Mount::new(&cluster);
    std::fs::write(mount.path().join("file"), b"through the mount").expect("written");
    assert_eq!(cluster.dfs_ok(&["cat", "/file"]), b"through the mount");

    let held = std::fs::File::open(mount.path().join("file")).expect("opened");
    let shown = mount.path().to_str().expect("UTF-8").to_string();
    assert!(run("dfs", &["umount", &shown], None).failed().contains("in use"));
    drop(held);
    run("dfs", &["umount", &shown], None).ok();
    assert!(mount.wait(Duration::from_millis(500)).success(), "the process has ended when dfs umount returns");
    assert!(run("dfs", &["umount", &shown], None).failed().contains("not a mount point"));

    cluster.dfs_ok(&["shutdown"]);
    for node in &mut cluster.nodes {
        assert!(node.wait(Duration::from_secs(10)).success(), "{}", node.log_text());
    }
    let sockets = std::fs::read_dir(cluster.temp.path()).expect("directory").flatten();
    let left: Vec<_> = sockets.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().ends_with(".sock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// P5. A copy that decays is found though nobody reads it, is dropped, and no reader gets a wrong byte meanwhile.
#[test]
fn p5_a_flipped_bit_is_found_by_the_scrubber() {
    let cluster = Cluster::start_with(3, Options { extra: vec!["--debug-faults"], ..Options::default() });
    let bytes = random_bytes(7, 3 * MIB + 5);
    cluster.dfs_input(&["put", "-", "/file"], &bytes).ok();
    let located = cluster.dfs_json(&["locate", "/file"]);
    let hash = located["extents"][1]["chunk"].as_str().expect("a chunk").to_string();
    let holders: Vec<String> =
        located["extents"][1]["holders"].as_array().expect("holders").iter().map(|node| node["node"].as_str().unwrap().into()).collect();
    let said = cluster.dfs_ok(&["debug", "flip", &hash, "--node", &holders[1], "--bit", "4000001"]);
    assert!(String::from_utf8_lossy(&said).contains(&holders[1]), "{}", String::from_utf8_lossy(&said));
    assert!(cluster.dfs_ok(&["cat", "/file"]) == bytes, "no wrong byte while the copy is bad");
    // That read may have met the bad copy, or not: another one certainly is found by the scrubber alone.
    let victim = located["extents"][2]["chunk"].as_str().expect("a chunk").to_string();
    let first = cluster.dfs_ok(&["debug", "flip", &victim]);
    assert!(String::from_utf8_lossy(&first).starts_with("flipped bit 0"), "{}", String::from_utf8_lossy(&first));
    cluster.dfs_ok(&["debug", "scrub"]);
    let corrupt = |cluster: &Cluster| -> u64 {
        let status = cluster.dfs_json(&["status"]);
        status["nodes"].as_array().expect("nodes").iter().map(|node| node["corrupt"].as_u64().expect("a count")).sum()
    };
    wait_until(Duration::from_secs(10), "both bad copies are found and counted", || corrupt(&cluster) == 2);
    assert!(cluster.dfs_ok(&["cat", "/file"]) == bytes);
    assert!(cluster.dfs(&["debug", "flip", &"0".repeat(64)]).failed().contains("no node holds"));
    assert!(cluster.dfs(&["debug", "scrub", "--node", "nobody"]).failed().contains("no living node"));
}

#[test]
fn a_node_is_not_harmed_unless_it_was_started_for_that() {
    let cluster = Cluster::start(1);
    cluster.dfs_input(&["put", "-", "/file"], &random_bytes(8, MIB)).ok();
    let hash = cluster.dfs_json(&["locate", "/file"])["extents"][0]["chunk"].as_str().expect("a chunk").to_string();
    assert!(cluster.dfs(&["debug", "flip", &hash]).failed().contains("--debug-faults"));
    assert!(cluster.dfs(&["debug", "scrub"]).failed().contains("--debug-faults"));
    for program in ["dfs", "dfs-node"] {
        let help = String::from_utf8(run(program, &["--help"], None).ok()).expect("text");
        assert!(!help.contains("debug-faults") && !help.contains("Harm"), "{help}");
    }
    assert_eq!(cluster.dfs(&["debug", "flip", "xyz"]).code(), 2);
}

/// The same command line on every machine, in any order; and again for a node that was killed.
#[test]
fn listed_peers_form_one_cluster_and_come_back_to_it() {
    let temp = TempDir::new();
    let mut free: Vec<u16> = (0..3).map(|_| free_port()).collect();
    // The first is the one that founds, and knows what is waited for.
    free.sort_unstable();
    let ports: Vec<String> = free.into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let list = ports.join(",");
    let spawn = |at: usize, round: usize| {
        let arguments = ["--listen", &ports[at], "--peers", &list, "--memory", "64MiB", "--zone", ["a", "b", "c"][at]];
        Starting::spawn(&arguments, &temp.path().join(format!("node{at}-{round}.log")))
    };
    let (last, first) = (spawn(2, 0), spawn(0, 0));
    assert!(last.is_ready_within(Duration::from_secs(2)).is_none(), "nothing forms before all are up");
    let status = String::from_utf8(dfs_with(&ports[0], &["status"], None).ok()).expect("UTF-8");
    assert!(status.contains("no cluster yet") && status.contains(&ports[1]), "{status}");
    let refused = dfs_with(&ports[0], &["--op-timeout", "9.5s", "put", "-", "/early"], Some(b"x"));
    assert!(!refused.failed().is_empty());
    let mut nodes = vec![first, spawn(1, 0), last].into_iter().map(Starting::ready).collect::<Vec<_>>();
    assert!(nodes.iter().all(|node| node.cluster == nodes[0].cluster));
    dfs_with(&ports[1], &["put", "-", "/a"], Some(b"in a formed cluster")).ok();
    // The founder is no more than the others from now on.
    nodes[0].kill();
    let again = spawn(0, 1).ready();
    assert_eq!(again.cluster, nodes[1].cluster);
    assert_eq!(dfs_with(&ports[0], &["cat", "/a"], None).ok(), b"in a formed cluster");

    let own = format!("127.0.0.1:{}", free_port());
    let refused = run("dfs-node", &["--listen", &own, "--peers", &list], None);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr().contains(&own) && refused.stderr().contains(&list), "{}", refused.stderr());
    assert_eq!(refused.stderr().lines().count(), 1, "{}", refused.stderr());
}

/// A majority of voters is killed: `dfs status` says so, `dfs recover` goes on with what the survivor has, the old mount ends in errors.
#[test]
fn a_lost_majority_is_said_loudly_and_recovered_from() {
    let mut cluster = Cluster::start(3);
    assert!(cluster.dfs(&["recover", "--yes"]).failed().contains("has a leader"));
    let files: Vec<(String, Vec<u8>)> = (0..12).map(|number| (format!("/f{number}"), random_bytes(number, 200_000))).collect();
    files.iter().for_each(|(path, bytes)| _ = cluster.dfs_input(&["put", "-", path], bytes).ok());
    cluster.dfs_input(&["put", "-", "/small"], b"in the tree").ok();
    let survivor = cluster.nodes[0].id.clone();
    let kept: Vec<bool> = files.iter().map(|(path, _)| cluster.holders(path).contains(&survivor)).collect();
    let (address, old) = (cluster.nodes[0].address.clone(), cluster.nodes[0].cluster.clone());
    let mount = Mount::new(&cluster);
    assert_eq!(std::fs::read(mount.path().join("small")).expect("read"), b"in the tree");
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();

    let mut status = String::new();
    wait_until(Duration::from_secs(60), "the loss is said", || {
        status = String::from_utf8(dfs_with(&address, &["status"], None).ok()).expect("UTF-8");
        status.contains("no majority: 1 of 3 voters answers, no leader since ")
    });
    assert!(status.contains("1 node holds the tree up to entry ") && status.contains("`dfs recover`"), "{status}");
    let said = String::from_utf8(dfs_with(&address, &["recover"], None).ok()).expect("UTF-8");
    assert!(said.contains(&format!("goes on  {address} with the tree")) && said.contains("nothing was done"), "{said}");
    // For a moment after the last word of a leader it is refused.
    let mut asked = dfs_with(&address, &["recover", "--yes"], None);
    wait_until(Duration::from_secs(60), "the survivor goes on", || {
        let settled = asked.code() == 0 || !asked.failed().contains("a moment ago");
        if !settled {
            asked = dfs_with(&address, &["recover", "--yes"], None);
        }
        settled
    });
    let said = String::from_utf8(asked.ok()).expect("UTF-8");
    assert!(said.contains("done     cluster ") && !said.contains(&format!("done     cluster {old}")), "{said}");
    assert!(dfs_with(&address, &["recover", "--yes"], None).failed().contains("has a leader"), "once is enough");
    assert_eq!(dfs_with(&address, &["cat", "/small"], None).ok(), b"in the tree");
    for ((path, bytes), kept) in files.iter().zip(kept) {
        if !kept {
            assert!(dfs_with(&address, &["--op-timeout", "3s", "cat", path], None).code() == 1, "{path}: both holders are gone");
            continue;
        }
        wait_until(Duration::from_secs(30), "a copy that survived is found", || {
            let fetched = dfs_with(&address, &["cat", path], None);
            fetched.code() == 0 && fetched.ok() == *bytes
        });
    }
    dfs_with(&address, &["put", "-", "/new"], Some(b"goes on")).ok();
    std::fs::read(mount.path().join("f0")).expect_err("the old mount belongs to the old cluster");
    let again = Mount::with(&["--nodes", &address]);
    assert_eq!(std::fs::read(again.path().join("new")).expect("read"), b"goes on");
    assert!(again.unmount().success());
}
