//! Scripted scenarios: races too narrow to be left to chance.

use bytes::Bytes;

use dfs::client::{Call, Reply, Sabotage};
use dfs::limits;
use dfs::types::{ByteRange, InodeId, ROOT};
use dfs::wire::namespace::{NewKind, Op, Query, Replied, WriteAt};
use dfs::xattr::{XattrCondition, XattrName};

use super::checks::{is_whole, unrest};
use super::linear::{self, Finding, Operation, Register, RegisterCall};
use super::network::{Pid, Speed};
use super::plan::{Fault, LEADER, Plan};
use super::run::Run;
use super::workload::{create, name};
use super::world::{Death, MILLISECOND, SECOND};

pub fn file(run: &mut Run, client: Pid, text: &str) -> InodeId {
    match run.call(client, create(ROOT, text, NewKind::File, 0)) {
        Ok(Reply::Replied(Replied::Entry { attributes, .. })) => attributes.ino,
        other => panic!("create answered {other:?}"),
    }
}

pub fn write(ino: InodeId, bytes: &Bytes) -> Call {
    Call::Write { ino, at: WriteAt::Offset(0), bytes: bytes.clone(), kill_privileges: false }
}

pub fn unlink(text: &str) -> Call {
    Call::Op(Op::Unlink { parent: ROOT, name: name(text) })
}

fn read(run: &mut Run, client: Pid, ino: InodeId) -> Bytes {
    match run.call(client, Call::Read { ino, range: ByteRange { offset: 0, length: 1 << 20 } }) {
        Ok(Reply::Bytes(bytes)) => bytes,
        other => panic!("read answered {other:?}"),
    }
}

/// The machine of whoever leads is suspended again and again, as long as any brief fault, and nobody is declared dead for that.
pub fn the_leader_is_cut_off_for_a_moment(plan: Plan) {
    let others: Vec<usize> = (0..plan.nodes.len()).collect();
    let client = plan.client_host(0);
    let mut run = Run::new(plan.calm(), None);
    run.form();
    for round in 0..20 {
        run.begin(Fault::Suspend { host: LEADER, client, others: others.clone(), length: 2 * SECOND, later: 400 * MILLISECOND });
        run.run_for(6 * SECOND + round * 10 * MILLISECOND);
        assert!(run.checks.dead.is_empty(), "{:?} declared dead in round {round}", run.checks.dead);
    }
    assert!(run.checks.terms() > 20, "each time another one leads");
}

/// While a client is stopped, every node is replaced by another at the same address, twice: what the nodes it knows have told it
/// meanwhile does not help it either. Then it goes on.
pub fn every_node_is_replaced_while_a_client_sleeps(plan: Plan) {
    let mut run = Run::new(Plan { nodes: vec![256 << 20; 3], zones: vec![""; 3], ..plan.calm() }, None);
    run.form();
    let sleeper = run.start_client(0);
    let ino = file(&mut run, sleeper, "file");
    run.call(sleeper, write(ino, &Bytes::from_static(b"before"))).expect("a write");
    run.call(sleeper, Call::Sync { ino }).expect("a sync");
    run.world.pause(sleeper);
    for host in [0, 1, 2, 0, 1, 2] {
        run.begin(Fault::Crash { host, death: Death::Killed, back_after: SECOND });
        run.run_until(60 * SECOND, "getting over a death", |run| {
            (!is_whole(&run.world, run.plan.nodes.len())).then(|| format!("node {host} was replaced"))
        });
    }
    run.world.resume(sleeper);
    let until = run.world.now + 2 * limits::OP_TIMEOUT.as_nanos() as u64;
    let query = || Call::Query(Query::Lookup { parent: ROOT, name: name("file") });
    while run.call(sleeper, query()).is_err() {
        assert!(run.world.now < until, "it does not find the cluster again");
        run.run_for(SECOND);
    }
}

/// A voter sleeps until it is declared dead and the log has forgotten what it missed, and the namespace takes more slices than may be on
/// their way at once. It comes back as itself.
pub fn a_voter_sleeps_past_the_log(plan: Plan) {
    let mut run = Run::new(Plan { nodes: vec![256 << 20; 3], zones: vec![""; 3], ..plan.calm() }, None);
    run.form();
    let client = run.start_client(0);
    // Attributes are the largest records that are made by one call.
    let set = |run: &mut Run, ino: InodeId, round: usize| {
        let value = Bytes::from(vec![round as u8; limits::XATTR_VALUE_BYTES_MAX]);
        let (name, condition) = (XattrName::new(b"user.large").expect("a good name"), XattrCondition::default());
        run.call(client, Call::Op(Op::SetXattr { ino, name, value, condition, drop_setgid: false })).expect("an attribute");
    };
    let files = (limits::SNAPSHOT_WINDOW as usize + 4) * limits::SNAPSHOT_SLICE_BYTES / limits::XATTR_VALUE_BYTES_MAX;
    let inos: Vec<InodeId> = (0..files).map(|number| file(&mut run, client, &format!("file{number}"))).collect();
    inos.iter().for_each(|&ino| set(&mut run, ino, 0));
    let (sleeper, _) = run.world.nodes().find(|(_, node)| node.leads().is_none()).expect("somebody follows");
    let host = run.world.processes[&sleeper].host;
    let ways: Vec<_> = (0..3).filter(|&other| other != host).flat_map(|other| [(host, other), (other, host)]).collect();
    run.world.pause(sleeper);
    ways.iter().for_each(|&(from, to)| run.world.block(from, to));
    (0..2 * limits::RAFT_LOG_BYTES_MIN / limits::XATTR_VALUE_BYTES_MAX).for_each(|round| set(&mut run, inos[round % files], round));
    run.run_until(60 * SECOND, "noticing its silence", |run| run.checks.dead.is_empty().then(|| "nobody is dead".into()));
    run.run_for(SECOND);
    // Nobody keeps for ever what a process does not read.
    ways.iter().for_each(|&(from, to)| run.world.lose_held_up(from, to));
    ways.iter().for_each(|&(from, to)| run.world.unblock(from, to));
    run.world.resume(sleeper);
    run.run_until(60 * SECOND, "taking it in again", |run| (!is_whole(&run.world, 3)).then(|| format!("{sleeper} is not back")));
}

/// A client that has uploaded some bytes before writes them again, without sending them, while their last reference goes away
/// and every deletion comes twice, the second time up to three seconds late. The race is run with many offsets.
pub fn upload_races_deletion(plan: Plan) {
    let mut run = Run::new(plan.calm(), None);
    run.world.echoes = 4;
    run.form();
    let (one, other) = (run.start_client(0), run.start_client(1));
    let bytes = Bytes::from(vec![0x5a; 50_000]);
    for round in 0..40u64 {
        let (first, second, third) = (format!("first{round}"), format!("second{round}"), format!("third{round}"));
        // Both clients know that the nodes have the bytes.
        let (a, b) = (file(&mut run, one, &first), file(&mut run, other, &second));
        run.call(one, write(a, &bytes)).expect("a write");
        run.call(other, write(b, &bytes)).expect("a write");
        run.call(other, unlink(&second)).expect("an unlink");
        let c = file(&mut run, other, &third);
        // The last reference goes; around the deletion that follows, the bytes are uploaded again.
        let gone = run.send(one, unlink(&first));
        run.run_for(round * 15 * MILLISECOND);
        let again = run.send(other, write(c, &bytes));
        run.wait(gone).expect("an unlink");
        run.wait(again).expect("a write");
        for _ in 0..4 {
            assert_eq!(read(&mut run, one, c), bytes, "round {round}");
            run.run_for(400 * MILLISECOND);
        }
        run.call(other, unlink(&third)).expect("an unlink");
        if round % 2 == 0 {
            run.run_for(SECOND);
        }
    }
    run.run_until(60 * SECOND, "collecting the garbage", |run| {
        let stored: u64 = run.world.nodes().map(|(_, node)| node.chunks().usage().stored).sum();
        let left = (stored > 0).then(|| format!("{stored} bytes are stored though everything was deleted"));
        unrest(&run.world, &run.expected(false)).or(left)
    });
}

/// One mount appends to a file, another looks at it again and again, also while an append is on its way: it must see all that was answered.
pub fn a_growing_file_is_watched(plan: Plan, sabotage: Option<Sabotage>) {
    let speed = Speed { latency_ns: 200_000, jitter_ns: 2 * MILLISECOND, ns_per_byte: 8 };
    let mut run = Run::new(Plan { clients: 2, mounts: true, speed, ..plan.calm() }, None);
    run.world.sabotage = sabotage;
    run.form();
    let (writer, watcher) = (run.start_client(0), run.start_client(1));
    run.run_for(3 * SECOND);
    let ino = file(&mut run, writer, "growing");
    let mut expected = Vec::new();
    for round in 0..150u8 {
        let bytes = Bytes::from(vec![round; 100]);
        expected.extend_from_slice(&bytes);
        let append = run.send(writer, Call::Write { ino, at: WriteAt::End, bytes, kill_privileges: false });
        let looks: Vec<u64> = (0..6)
            .map(|turn| {
                let pause = run.world.random.below(3 * MILLISECOND);
                run.run_for(pause);
                let whole = ByteRange { offset: 0, length: 1 << 20 };
                run.send(watcher, if turn % 2 == 0 { Call::Query(Query::Attributes { ino }) } else { Call::Read { ino, range: whole } })
            })
            .collect();
        run.wait(append).expect("an append");
        for look in looks {
            run.wait(look).expect("a look");
        }
        let seen = read(&mut run, watcher, ino);
        assert!(seen == expected, "round {round}: a read saw {} bytes, {} had been written", seen.len(), expected.len());
    }
}

/// Three programs on each of two mounts read and write one register without a pause, mostly through descriptors that stay open. What each saw
/// must fit into one order.
pub fn a_register_is_shared(plan: Plan) {
    const ACTORS: u64 = 6;
    const OPERATIONS: usize = 900;
    let speed = Speed { latency_ns: 50_000, jitter_ns: 300_000, ns_per_byte: 1 };
    let mut run = Run::new(Plan { clients: 2, mounts: true, speed, ..plan.calm() }, None);
    run.form();
    let mounts = [run.start_client(0), run.start_client(1)];
    let ino = file(&mut run, mounts[0], "register");
    let record = |value: u64| Bytes::copy_from_slice(&value.to_le_bytes());
    run.call(mounts[0], write(ino, &record(0))).expect("a write");
    let look = || Call::Read { ino, range: ByteRange { offset: 0, length: 8 } };
    for mount in mounts {
        // Nobody contends yet, so these descriptors use the page cache.
        run.run_for(3 * SECOND);
        run.world.keep_open(mount);
        let looks: Vec<u64> = (0..ACTORS / 2).map(|_| run.send(mount, look())).collect();
        looks.into_iter().for_each(|token| _ = run.wait(token).expect("a read"));
    }
    let (mut seen, mut value) = (Vec::new(), 0);
    // What each does, since when, and its token; or when it goes on.
    let mut doing: Vec<Option<(RegisterCall, u64, u64)>> = vec![None; ACTORS as usize];
    let mut idle_until = vec![run.world.now; ACTORS as usize];
    while seen.len() < OPERATIONS || doing.iter().any(Option::is_some) {
        for actor in 0..ACTORS as usize {
            let mount = mounts[actor % 2];
            if let Some((call, called, token)) = doing[actor].take_if(|(_, _, token)| run.is_answered(*token)) {
                let answer = match run.wait(token) {
                    Ok(Reply::Bytes(bytes)) => u64::from_le_bytes(bytes[..].try_into().unwrap_or_else(|_| panic!("a read saw {bytes:?}"))),
                    Ok(_) => 0,
                    Err(status) => panic!("{call:?} answered {status}"),
                };
                seen.push(Operation { call, called, answer: Some((run.world.now, answer)) });
                idle_until[actor] = run.world.now + run.world.random.below(3 * MILLISECOND);
            }
            if doing[actor].is_none() && idle_until[actor] <= run.world.now && seen.len() < OPERATIONS {
                let call = if run.world.random.chance(1, 4) {
                    value += 1;
                    (RegisterCall::Write(value), write(ino, &record(value)))
                } else {
                    (RegisterCall::Read, look())
                };
                let now = run.world.now;
                doing[actor] = Some((call.0, now, run.send(mount, call.1)));
            }
        }
        run.run_for(20_000);
    }
    let finding = linear::check(&Register, 0, &seen);
    assert_eq!(finding, Finding::Linearizable, "not linearizable:\n{}", linear::told(&Register, 0, &seen));
}

/// One mount makes and removes a name; the kernel of another, which is far away and looks up other names of the directory all the time, must
/// never believe what was so before.
pub fn a_name_that_comes_and_goes_is_watched(plan: Plan, sabotage: Option<Sabotage>) {
    let speed = Speed { latency_ns: 50_000, jitter_ns: 50_000, ns_per_byte: 1 };
    let mut run = Run::new(Plan { clients: 2, mounts: true, speed, ..plan.calm() }, None);
    run.world.sabotage = sabotage;
    run.form();
    let (changer, watcher) = (run.start_client(0), run.start_client(1));
    let far = run.plan.client_host(1);
    run.world.network.slow.insert(far, 4 * MILLISECOND);
    run.run_for(3 * SECOND);
    let directory = match run.call(changer, create(ROOT, "directory", NewKind::Directory, 0)) {
        Ok(Reply::Replied(Replied::Entry { attributes, .. })) => attributes.ino,
        other => panic!("mkdir answered {other:?}"),
    };
    let look = |text: &str| Call::Query(Query::Lookup { parent: directory, name: name(text) });
    for round in 0..60 {
        _ = run.call(watcher, look("x"));
        let there = round % 2 == 0;
        let removal = Call::Op(Op::Unlink { parent: directory, name: name("x") });
        let change = run.send(changer, if there { create(directory, "x", NewKind::File, 0) } else { removal });
        let mut others = Vec::new();
        while !run.is_answered(change) {
            others.push(run.send(watcher, look(&format!("{round}-{}", others.len()))));
            run.run_for(MILLISECOND);
        }
        run.wait(change).expect("a change");
        let seen = run.call(watcher, look("x"));
        assert_eq!(seen.is_ok(), there, "round {round}: a name is believed that had been changed before: {seen:?}");
        for other in others {
            _ = run.wait(other);
        }
        run.run_for(200 * MILLISECOND);
    }
}

/// Four nodes in two zones: the copies of what a client writes lie in both, before and after a node has died.
pub fn copies_lie_apart(plan: Plan) {
    let (nodes, zones) = (vec![256 << 20; 4], vec!["east", "east", "west", "west"]);
    let mut run = Run::new(Plan { nodes, zones, ..plan.calm() }, None);
    run.form();
    let client = run.start_client(0);
    let put = |run: &mut Run, from: u8| {
        for number in from..from + 40 {
            let ino = file(run, client, &format!("file{number}"));
            let bytes: Vec<u8> = (0..40_000u32).map(|at| (at % 251) as u8 ^ number).collect();
            run.call(client, write(ino, &Bytes::from(bytes))).expect("a write");
            run.call(client, Call::Flush).expect("a flush");
        }
    };
    put(&mut run, 0);
    let chunks = check_apart(&run);
    assert!(chunks >= 40, "{chunks} chunks");
    // The bytes that are written now lie apart although one owner of some of them does not answer, and later is counted out.
    let died = run.world.pid_on(3).expect("it runs");
    run.world.kill(died, Death::Silent);
    put(&mut run, 40);
    assert!(check_apart(&run) >= 80);
    run.run_for(5 * SECOND);
    put(&mut run, 80);
    assert!(check_apart(&run) >= 120);
}

/// Every chunk is held in two zones. Gives their number.
fn check_apart(run: &Run) -> usize {
    let leader = run.world.nodes().map(|(_, node)| node).find(|node| node.leads().is_some()).expect("a leader");
    let zone = |holder| leader.map().member(holder).map(|member| member.zone.clone()).expect("a member");
    let places: Vec<_> = leader.namespace().chunk_places().collect();
    for place in &places {
        let zones: std::collections::BTreeSet<String> = place.holders.iter().map(|holder| zone(*holder)).collect();
        assert_eq!(zones.len(), 2, "{:?} lies on {:?} of {:?}", place.hash, place.holders, leader.map());
    }
    places.len()
}

/// One copy, or three: each chunk lies on as many nodes as was asked for, `df` counts so, and three bear two deaths.
pub fn as_many_copies_as_asked_for(plan: Plan, replicas: u8) {
    let (nodes, zones) = (vec![64 << 20; 4], vec![""; 4]);
    let mut run = Run::new(Plan { nodes, zones, replicas, ..plan.calm() }, None);
    run.form();
    let client = run.start_client(0);
    let mut files = Vec::new();
    for number in 0..20u8 {
        let ino = file(&mut run, client, &format!("file{number}"));
        let bytes: Bytes = (0..100_000u32).map(|at| (at % 249) as u8 ^ number).collect::<Vec<u8>>().into();
        run.call(client, write(ino, &bytes)).expect("a write");
        run.call(client, Call::Flush).expect("a flush");
        files.push((ino, bytes));
    }
    let leader = |run: &Run| run.world.nodes().find(|(_, node)| node.leads().is_some()).map(|(pid, _)| pid).expect("a leader");
    let state = run.world.processes[&leader(&run)].as_node().expect("a node");
    let holders: Vec<usize> = state.namespace().chunk_places().map(|place| place.holders.len()).collect();
    assert!(holders.len() >= 20 && holders.iter().all(|&count| count == replicas as usize), "{holders:?}");
    // Three of the four nodes survive the largest.
    assert_eq!(state.namespace().capacity(), 3 * (64 << 20) / u64::from(replicas));
    assert_eq!(state.map().degraded(), None);
    for _ in 1..replicas {
        let died = leader(&run);
        run.world.kill(died, Death::Killed);
        run.run_for(10 * SECOND);
        for (ino, bytes) in &files {
            assert!(read(&mut run, client, *ino) == bytes, "a copy is left");
        }
    }
}
