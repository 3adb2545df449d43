//! A few nodes together: forming, joining, failover, exactly-once, leaving, garbage.

mod world;

use std::time::Duration;

use bytes::Bytes;

use dfs::cluster_map::MemberState;
use dfs::limits;
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ByteRange, ChunkHash, Epoch, InodeId, Instance, NodeId, ROOT, Rights, SessionId};
use dfs::wire::message::{Request, Response};
use dfs::wire::namespace::{ChunkClaim, Op, Patch, Query, Replied, Source, WriteAt};
use dfs_node::node::Start;

use world::{CLIENT, OTHER, SESSION, World, address, create, name, renewal};

#[test]
fn one_node_is_a_cluster() {
    let mut world = World::new(1);
    world.start(1, Start::Bootstrap { replicas: 2 });
    world.until("ready", |world| world.nodes[&1].0.is_ready());
    world.ask(Request::OpenSession { caches: false }).unwrap();
    let ino = world.create("a", false);
    assert_eq!(world.lookup("a"), Ok(ino));
    assert_eq!(world.lookup("b"), Err(Status::NotFound));
}

#[test]
fn nodes_join_in_any_order_past_dead_addresses() {
    let mut world = World::new(2);
    world.join(3, &[9, 3, 2]);
    world.join(2, &[8, 1]);
    world.run(Duration::from_secs(3));
    assert!(world.nodes.values().all(|(node, _)| !node.is_ready()), "joining never forms");
    world.start(1, Start::Bootstrap { replicas: 2 });
    world.until("three ready nodes", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
    world.until("three voters", |world| world.nodes.values().all(|(node, _)| node.map().voters.len() == 3));
}

#[test]
fn the_tree_survives_its_leader_and_a_new_voter_takes_the_place() {
    let mut world = World::three(3);
    world.join(4, &[1]);
    world.until("a fourth", |world| world.nodes[&4].0.is_ready());
    let ino = world.create("kept", false);
    let dead = world.leader().unwrap();
    world.kill(dead);
    let since = world.now;
    let more = world.create("more", false);
    assert_eq!((world.lookup("kept"), world.lookup("more")), (Ok(ino), Ok(more)));
    world.until("the death is noticed", |world| {
        world.nodes[&4].0.map().members.iter().any(|member| member.address == address(dead) && member.state == MemberState::Dead)
    });
    // Two seconds of silence, or an election of at most 2.1 s and then the patience that a deposed leader is given.
    assert!(world.now.since(since) < Duration::from_millis(3700), "{:?}", world.now.since(since));
    world.until("the spare votes", |world| world.nodes[&4].0.map().voters.iter().all(|&voter| world.nodes[&4].0.map().is_living(voter)));
    assert_eq!(world.nodes[&4].0.map().voters.len(), 3);
    // A new incarnation at the old address.
    world.join(dead, &[1, 2, 3, 4]);
    world.until("it is back", |world| world.nodes[&dead].0.is_ready());
    world.run(Duration::from_secs(1));
    let hashes: Vec<u64> = world.nodes.values().map(|(node, _)| node.namespace().state_hash()).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "equal states");
}

/// Nodes that are all ready and vote as they should.
fn grown(seed: u64, nodes: u16) -> World {
    let mut world = World::new(seed);
    world.start(1, Start::Bootstrap { replicas: 2 });
    (2..=nodes).for_each(|port| world.join(port, &[1]));
    world.until("all ready", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
    assert!(living_voters(&world, 5), "ready means that five vote");
    world.ask(Request::OpenSession { caches: false }).unwrap();
    world
}

/// Who leads knows so many voters, all of them alive, and no change of them is under way.
fn living_voters(world: &World, count: usize) -> bool {
    world.leader().is_some_and(|leader| {
        let map = world.nodes[&leader].0.map();
        let settled = world.nodes[&leader].0.group().is_some_and(|group| !group.configuration().is_joint());
        settled && map.voters.len() == count && map.voters.iter().all(|&voter| world.nodes.values().any(|(node, _)| node.id() == voter))
    })
}

#[test]
fn of_five_voters_two_may_die_at_once_and_then_another() {
    for seed in 0..6 {
        let mut world = grown(40 + seed, 5);
        let ino = world.create("kept", false);
        let leader = world.leader().unwrap();
        // Now and then the leader is one of them.
        let first = if seed % 2 == 0 { leader } else { leader % 5 + 1 };
        let second = (leader + 1) % 5 + 1;
        world.kill(first);
        world.kill(second);
        assert_eq!(world.lookup("kept"), Ok(ino));
        let report = |world: &World| world.nodes[&world.leader().unwrap()].0.map().degraded();
        world.until("the deaths are noticed", |world| {
            world.leader().is_some() && report(world).is_some_and(|text| text.starts_with("3 of 5 namespace voters"))
        });
        world.until("three are left to vote", |world| living_voters(world, 3));
        assert_eq!(report(&world), None);
        let third = world.leader().unwrap();
        world.kill(third);
        assert_eq!(world.lookup("kept"), Ok(ino));
        for port in [first, second, third] {
            world.join(port, &[1, 2, 3, 4, 5]);
        }
        world.until("all are back", |world| world.nodes.len() == 5 && world.nodes.values().all(|(node, _)| node.is_ready()));
        world.until("five vote again", |world| living_voters(world, 5));
    }
}

#[test]
fn a_sixth_node_takes_the_place_of_a_dead_voter() {
    let mut world = grown(50, 6);
    let voting = |world: &World, port: u16| world.nodes[&1].0.map().voters.contains(&world.nodes[&port].0.id());
    let spare = (1..=6).find(|&port| !voting(&world, port)).unwrap();
    let victim = (2..=6).find(|&port| port != spare && Some(port) != world.leader()).unwrap();
    world.kill(victim);
    world.until("the spare votes", |world| living_voters(world, 5));
    assert!(world.nodes[&world.leader().unwrap()].0.map().voters.contains(&world.nodes[&spare].0.id()));
    // With another death there is no spare: four of five are enough.
    let another = (2..=6).find(|&port| world.nodes.contains_key(&port) && Some(port) != world.leader()).unwrap();
    let gone = world.nodes[&another].0.id();
    world.kill(another);
    world.until("noticed", |world| world.leader().is_some_and(|leader| !world.nodes[&leader].0.map().is_living(gone)));
    world.run(limits::VOTER_REPLACE_AFTER);
    let map = world.nodes[&world.leader().unwrap()].0.map();
    assert_eq!((map.voters.len(), map.degraded()), (5, None));
    world.create("more", false);
}

#[test]
fn a_request_sent_again_to_the_next_leader_happens_once() {
    let mut world = World::three(4);
    let request = world.request(create("once", false));
    let first = world.ask(request.clone()).unwrap();
    let leader = world.leader().unwrap();
    world.kill(leader);
    let again = world.ask(request).unwrap();
    let replied = |response| match response {
        Response::Replied { replied, .. } => replied,
        other => panic!("{other:?}"),
    };
    assert_eq!(replied(first), replied(again));
}

#[test]
fn a_dead_voter_that_comes_back_replaces_itself_at_once() {
    let mut world = World::three(5);
    let leader = world.leader().unwrap();
    let victim = (1..=3).find(|&port| port != leader).unwrap();
    let old = world.nodes[&victim].0.id();
    world.kill(victim);
    world.join(victim, &[1, 2, 3]);
    let since = world.now;
    world.until("it votes", |world| {
        world.nodes[&victim].0.is_ready() && world.nodes[&leader].0.map().voters.contains(&world.nodes[&victim].0.id())
    });
    assert!(world.now.since(since) < Duration::from_secs(2));
    assert!(world.nodes[&leader].0.map().member(old).is_none());
}

#[test]
fn a_stopped_node_is_declared_dead_and_returns_with_its_memory() {
    let mut world = World::three(6);
    let leader = world.leader().unwrap();
    let victim = (1..=3).find(|&port| port != leader).unwrap();
    let old = world.nodes[&victim].0.id();
    world.paused = Some(victim);
    world.until("declared dead", |world| !world.nodes[&leader].0.map().is_living(old));
    world.paused = None;
    world.until("back", |world| world.nodes[&leader].0.map().is_living(old));
    assert_eq!(world.nodes[&victim].0.id(), old);
    assert_eq!(world.nodes[&leader].0.map().voters.len(), 3);
}

#[test]
fn a_voter_that_was_wrongly_declared_dead_still_votes() {
    let mut world = World::three(16);
    let leader = world.leader().unwrap();
    let others: Vec<u16> = (1..=3).filter(|&port| port != leader).collect();
    let old = world.nodes[&others[0]].0.id();
    world.paused = Some(others[0]);
    world.until("declared dead", |world| !world.nodes[&leader].0.map().is_living(old));
    // Now the second of three goes, for good. The first is back, and a majority with the leader, or nobody leads ever again.
    world.kill(others[1]);
    world.paused = None;
    world.until("back", |world| world.leader().is_some_and(|leader| world.nodes[&leader].0.map().is_living(old)));
    world.create("after", false);
}

#[test]
fn the_leader_after_its_own_pause_declares_nobody_dead() {
    let mut world = World::new(7);
    world.start(1, Start::Bootstrap { replicas: 2 });
    world.join(2, &[1]);
    world.until("ready", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
    let old = world.nodes[&2].0.id();
    world.paused = Some(1);
    world.run(Duration::from_secs(10));
    world.paused = None;
    world.run(Duration::from_secs(5));
    assert!(world.nodes[&1].0.map().is_living(old));
    assert_eq!(world.nodes[&2].0.id(), old);
}

#[test]
fn an_unlinked_file_lives_until_it_is_released() {
    let mut world = World::three(8);
    let ino = world.create("open", true);
    world.op(Op::Unlink { parent: ROOT, name: name("open") }).unwrap();
    world.run(Duration::from_secs(2));
    assert!(world.exists(ino), "held");
    let leader = world.leader().unwrap();
    world.kill(leader);
    world.until("another leader", |world| world.leader().is_some());
    world.run(Duration::from_secs(1));
    assert!(world.exists(ino), "the new leader waits for the session to say what it has open");
    world.reclaim(0, &[ino], &[]);
    world.run(Duration::from_secs(1));
    assert!(world.exists(ino));
    world.query(Query::Release { ino, sequence: 1 }).unwrap();
    world.until("reaped", |world| !world.exists(ino));
    assert_eq!(world.query(Query::Hold { ino, sequence: 2 }), Err(Status::Stale));
}

#[test]
fn who_looked_a_name_up_before_it_went_may_still_open_it() {
    let mut world = World::three(18);
    let (opened, left) = (world.create("opened", false), world.create("left", false));
    for text in ["opened", "left"] {
        world.op(Op::Unlink { parent: ROOT, name: name(text) }).unwrap();
    }
    world.run(limits::REAP_GRACE / 2);
    world.query(Query::Hold { ino: opened, sequence: 1 }).unwrap();
    world.until("reaped", |world| !world.exists(left));
    assert!(world.exists(opened));
    world.query(Query::Release { ino: opened, sequence: 2 }).unwrap();
    world.until("reaped", |world| !world.exists(opened));
}

#[test]
fn a_silent_session_expires_and_a_renewal_revives_it() {
    let mut world = World::three(9);
    world.run(Duration::from_secs(6));
    let state = |world: &World| world.nodes[&world.leader().unwrap()].0.namespace().session(SessionId(SESSION)).unwrap().state;
    assert_eq!(state(&world), dfs_node::namespace::SessionState::Expired);
    world.ask(renewal(1)).unwrap();
    world.until("revived", |world| state(world) == dfs_node::namespace::SessionState::Open);
    world.ask(Request::EndSession).unwrap();
    assert_eq!(world.ask(renewal(1)), Err(Status::SessionGone));
}

#[test]
fn chunks_are_kept_while_referenced_and_garbage_goes() {
    let mut world = World::three(10);
    let bytes = Bytes::from(vec![7; 100_000]);
    let hash = ChunkHash::of(&bytes);
    let instance = Instance { session: SessionId(SESSION), counter: 1 };
    let epoch = world.nodes[&1].0.map().epoch;
    let mut receipts = Vec::new();
    for port in [1, 2, 3] {
        let (response, _) = world.ask_at(port, Request::Put { epoch, hash, instance }, bytes.clone()).unwrap();
        let Response::Receipt { node } = response else { panic!("{response:?}") };
        receipts.push(node);
    }
    let ino = world.create("data", false);
    let patch = Patch { at: WriteAt::Offset(0), length: 100_000, source: Source::Chunk { hash, offset: 0 } };
    let claim = ChunkClaim { hash, length: 100_000, instance, receipts };
    world.op(Op::Write { ino, patches: vec![patch], chunks: vec![claim], kill_privileges: false, behind: None }).unwrap();
    // An upload that nobody commits, and that its session has given up.
    let garbage = Bytes::from(vec![8; 5000]);
    let other = Instance { counter: 2, ..instance };
    world.ask_at(2, Request::Put { epoch, hash: ChunkHash::of(&garbage), instance: other }, garbage.clone()).unwrap();
    world.ask(renewal(3)).unwrap();
    world.until("garbage is gone", |world| !world.nodes[&2].0.chunks().contains(&ChunkHash::of(&garbage)));
    assert!(world.nodes.values().all(|(node, _)| node.chunks().contains(&hash)));
    let range = ByteRange { offset: 20_000, length: 10 };
    let (response, payload) = world.ask_at(3, Request::Get { hash, range }, Bytes::new()).unwrap();
    let Response::Bytes { range, total, proof } = response else { panic!("{response:?}") };
    dfs::chunk_tree::verify(&hash, u64::from(total), range, &payload, &proof).unwrap();
    world.op(Op::Unlink { parent: ROOT, name: name("data") }).unwrap();
    let since = world.now;
    world.until("the space is back", |world| world.nodes.values().all(|(node, _)| node.chunks().usage().stored == 0));
    assert!(world.now.since(since) < Duration::from_secs(2));
}

/// A MiB that nobody else has.
fn bulk(number: u64) -> Bytes {
    let mut random = Random::new(number);
    (0..limits::CHUNK_BYTES_MAX / 8).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<u8>>().into()
}

/// The speaker puts a chunk under that number to nodes; gives what a commit claims of it.
fn upload(world: &mut World, ports: &[u16], counter: u64, bytes: &Bytes) -> Result<ChunkClaim, Status> {
    let (hash, epoch) = (ChunkHash::of(bytes), world.nodes[&1].0.map().epoch);
    let instance = Instance { session: SessionId(SESSION + u64::from(world.speaker)), counter };
    let mut receipts = Vec::new();
    for &port in ports {
        match world.ask_at(port, Request::Put { epoch, hash, instance }, bytes.clone()).map_err(|failure| failure.status)? {
            (Response::Receipt { node }, _) => receipts.push(node),
            (other, _) => panic!("{other:?}"),
        }
    }
    Ok(ChunkClaim { hash, length: bytes.len() as u32, instance, receipts })
}

fn commit(world: &mut World, ino: InodeId, claim: ChunkClaim) {
    let patch = Patch { at: WriteAt::Offset(0), length: u64::from(claim.length), source: Source::Chunk { hash: claim.hash, offset: 0 } };
    world.op(Op::Write { ino, patches: vec![patch], chunks: vec![claim], kill_privileges: false, behind: None }).unwrap();
}

/// Uploads of the speaker to node 2 until that takes no more; how many it took.
fn fill(world: &mut World, from: u64) -> u64 {
    let refused = (from..).find_map(|counter| Some((counter, upload(world, &[2], counter, &bulk(counter)).err()?)));
    let (counter, status) = refused.expect("counters do not end");
    assert_eq!(status, Status::Busy, "after {} uploads", counter - from);
    counter - from
}

fn stored(world: &World, port: u16) -> u64 {
    world.nodes[&port].0.chunks().usage().stored
}

#[test]
fn who_uploads_and_never_commits_gets_so_much_room_and_others_the_rest() {
    let mut world = World::three(30);
    let ino = world.create("data", false);
    let taken = fill(&mut world, 1);
    assert_eq!(taken, limits::UNCOMMITTED_BYTES_MIN / limits::CHUNK_BYTES_MAX as u64 - 1, "a node of 64 MiB");
    // What is here already may be said again.
    upload(&mut world, &[2], 1, &bulk(1)).expect("a repetition");
    // Others do not feel it.
    world.speaker = OTHER;
    world.ask(Request::OpenSession { caches: false }).unwrap();
    let other = upload(&mut world, &[2, 3], 1, &bulk(1000)).expect("room for others");
    world.speaker = CLIENT;
    // What is committed is charged no longer, and makes room for as much.
    let claim = upload(&mut world, &[1, 2], taken, &bulk(taken)).expect("a repetition");
    commit(&mut world, ino, claim);
    world.run(limits::HEARTBEAT_INTERVAL);
    assert_eq!(fill(&mut world, 100), 1);
    // What is given up goes, and with it the charge.
    let since = world.now;
    world.ask(renewal(200)).unwrap();
    world.until("garbage is gone", |world| stored(world, 2) == 2 << 20);
    assert!(world.now.since(since) < Duration::from_secs(4), "{:?}", world.now.since(since));
    assert_eq!(fill(&mut world, 200), taken);
    // So does what an ended session leaves behind.
    let since = world.now;
    world.ask(Request::EndSession).unwrap();
    world.until("the session's uploads are gone", |world| stored(world, 2) == 2 << 20);
    assert!(world.now.since(since) < Duration::from_secs(4), "{:?}", world.now.since(since));
    assert!(world.nodes[&3].0.chunks().contains(&other.hash) && world.nodes[&2].0.chunks().contains(&other.hash));
}

#[test]
fn what_a_dead_client_uploaded_goes_with_its_session_and_early_if_space_is_short() {
    for short in [false, true] {
        let mut world = World::three(31);
        fill(&mut world, 1);
        if short {
            // Other sessions have taken nearly all that there is.
            for session in [OTHER, OTHER + 1, OTHER + 2] {
                let ports = [1, 2, 3].into_iter().filter(|&port| port != 2 || session == OTHER);
                world.meet(session, 0);
                world.speaker = session;
                world.ask(Request::OpenSession { caches: false }).unwrap();
                for port in ports {
                    (1..=39).for_each(|counter| _ = upload(&mut world, &[port], counter, &bulk(u64::from(session) << 32 | counter)));
                }
            }
        }
        let since = world.now;
        let gone = if short { 3 * limits::SESSION_LEASE } else { limits::SESSION_COURTESY + 3 * limits::SESSION_LEASE };
        while world.nodes.values().any(|(node, _)| node.namespace().session(SessionId(SESSION)).is_some()) || stored(&world, 2) > 39 << 20 {
            assert!(world.now.since(since) < gone, "short: {short}");
            world.run(Duration::from_millis(500));
            if short {
                for session in [OTHER, OTHER + 1, OTHER + 2] {
                    world.speaker = session;
                    world.ask(renewal(1)).unwrap();
                }
            }
        }
    }
}

#[test]
fn uploads_of_the_same_bytes_are_charged_until_no_operation_can_name_them() {
    let mut world = World::three(32);
    let ino = world.create("data", false);
    let bytes = bulk(1);
    let charged = |world: &World| world.nodes[&2].0.chunks().uncommitted(SessionId(SESSION), 0..u64::MAX).len();
    for counter in 1..=3 {
        let claim = upload(&mut world, &[2, 3], counter, &bytes).unwrap();
        commit(&mut world, ino, claim);
        world.run(limits::HEARTBEAT_INTERVAL);
    }
    assert_eq!(charged(&world), 2, "the first is the live one");
    world.ask(renewal(3)).unwrap();
    world.run(limits::HEARTBEAT_INTERVAL);
    assert_eq!(charged(&world), 1, "the third may be named again");
    world.ask(renewal(4)).unwrap();
    world.run(limits::HEARTBEAT_INTERVAL);
    assert_eq!(charged(&world), 0);
}

#[test]
fn a_stale_map_is_answered_with_the_newer_epoch() {
    let mut world = World::three(11);
    let map = world.nodes[&1].0.map().clone();
    let bytes = Bytes::from_static(b"somewhere");
    let hash = ChunkHash::of(&bytes);
    let instance = Instance { session: SessionId(SESSION), counter: 1 };
    let owners = dfs::placement::owners(&map, dfs::placement::group_of(&hash));
    let ports: Vec<u16> = world.nodes.iter().filter(|(_, (node, _))| !owners.contains(&node.id())).map(|(&port, _)| port).collect();
    let old = Epoch(map.epoch.0 - 1);
    let failure = world.ask_at(ports[0], Request::Put { epoch: old, hash, instance }, bytes.clone()).unwrap_err();
    assert_eq!((failure.status, failure.epoch), (Status::StaleMap, map.epoch));
    assert!(world.ask_at(ports[0], Request::Put { epoch: map.epoch, hash, instance }, bytes).is_ok(), "passing over others is right");
}

#[test]
fn leaving_hands_over_and_shutdown_ends_all() {
    let mut world = World::three(12);
    world.join(4, &[1]);
    world.until("a fourth", |world| world.nodes[&4].0.is_ready());
    let leader = world.leader().unwrap();
    let left: NodeId = world.nodes[&leader].0.id();
    let now = world.now;
    world.nodes.get_mut(&leader).unwrap().0.leave(now);
    world.drain(leader);
    world.until("gone", |world| !world.nodes.contains_key(&leader));
    assert!(world.now.since(now) < Duration::from_secs(5));
    world.until("counted out", |world| {
        world.nodes.values().all(|(node, _)| node.map().member(left).is_none_or(|member| member.state == MemberState::Dead))
    });
    world.until("three voters", |world| {
        let map = world.nodes.values().next().unwrap().0.map();
        map.voters.len() == 3 && map.voters.iter().all(|&voter| map.is_living(voter))
    });
    world.create("after", false);
    world.ask(Request::Shutdown).unwrap();
    world.until("all stopped", |world| world.nodes.is_empty());
}

#[test]
fn wall_clocks_that_jump_by_hours_move_no_time_of_a_file() {
    const HOUR: i64 = 3600;
    let mut world = World::three(41);
    let mut last = 0;
    let mut step = 0;
    let mut look = |world: &mut World| {
        step += 1;
        match world.op(create(&format!("f{step}"), false)).unwrap() {
            Replied::Entry { attributes, .. } => {
                let off = attributes.mtime.seconds - world.true_wall();
                assert!(off.abs() <= 2, "{off} s off at step {step}");
                assert!(attributes.mtime.seconds >= last, "back by {} s at step {step}", last - attributes.mtime.seconds);
                last = attributes.mtime.seconds;
            }
            other => panic!("{other:?}"),
        }
    };
    look(&mut world);
    for hours in [5, -5, -30, 1] {
        (1..=5).for_each(|port| _ = world.wrong_by.insert(port, hours * HOUR));
        look(&mut world);
        world.run(Duration::from_secs(3));
        look(&mut world);
    }
    assert!(world.nodes.values().all(|(node, _)| node.map().members.iter().all(|member| member.state == MemberState::Live)));
    // Each with another wrong clock, new leaders go on from where time was, also after a quiet while.
    for (port, joins) in [(1, 4), (2, 5)] {
        (1..=5).for_each(|port| _ = world.wrong_by.insert(port, (i64::from(port) * 7 - 20) * HOUR));
        world.join(joins, &[1, 2, 3]);
        world.until("one more", |world| world.nodes[&joins].0.is_ready());
        world.run(Duration::from_secs(60));
        world.kill(world.leader().unwrap_or(port));
        world.until("another leader", |world| world.leader().is_some());
        look(&mut world);
        world.run(Duration::from_secs(10));
        look(&mut world);
    }
}

#[test]
fn a_drained_node_that_was_declared_dead_on_its_way_goes_on_when_it_returns() {
    for heard in [false, true] {
        let mut world = World::three(40);
        world.join(4, &[1]);
        world.until("a fourth node", |world| world.nodes[&4].0.is_ready());
        let ino = world.create("data", false);
        let claim = upload(&mut world, &[3, 4], 1, &bulk(1)).unwrap();
        let hash = claim.hash;
        commit(&mut world, ino, claim);
        let drained = world.nodes[&4].0.id();
        let state = |world: &World, port: u16| world.nodes[&port].0.map().member(drained).map(|member| member.state);
        if !heard {
            world.paused = Some(4);
        }
        world.ask(Request::Drain { node: drained }).unwrap();
        if heard {
            world.until("it has heard", |world| state(world, 4) == Some(MemberState::Leaving));
            world.paused = Some(4);
        }
        // The other holder dies, so that only what was drained has the bytes.
        world.kill(3);
        world.until("both are declared dead", |world| {
            let map = world.nodes[&1].0.map();
            map.members.iter().filter(|member| member.state == MemberState::Dead).count() == 2
        });
        world.paused = None;
        world.until("it has left", |world| !world.nodes.contains_key(&4));
        assert!([1, 2].iter().all(|port| world.nodes[port].0.chunks().contains(&hash)), "it moved all off first; heard: {heard}");
        assert_eq!(state(&world, 1), Some(MemberState::Dead));
    }
}

#[test]
fn a_ready_cluster_of_three_may_lose_any_node_at_that_moment() {
    for seed in 0..20 {
        let mut world = World::new(100 + seed);
        world.start(1, Start::Bootstrap { replicas: 2 });
        world.join(2, &[1]);
        world.until("two", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
        world.join(3, &[1, 2]);
        world.until("the third", |world| world.nodes[&3].0.is_ready());
        world.kill(1 + (seed % 3) as u16);
        world.ask(Request::OpenSession { caches: false }).unwrap();
        world.create("still here", false);
    }
}

#[test]
fn the_only_voter_of_two_hands_over_before_it_leaves() {
    let mut world = World::new(13);
    world.start(1, Start::Bootstrap { replicas: 2 });
    world.join(2, &[1]);
    world.until("ready", |world| world.nodes.values().all(|(node, _)| node.is_ready()));
    world.ask(Request::OpenSession { caches: false }).unwrap();
    let ino = world.create("kept", false);
    let now = world.now;
    world.nodes.get_mut(&1).unwrap().0.leave(now);
    world.drain(1);
    world.until("gone", |world| !world.nodes.contains_key(&1));
    assert!(world.now.since(now) < Duration::from_secs(5));
    assert_eq!(world.lookup("kept"), Ok(ino));
}

/// Two caching sessions, a file of the first, and a new leader that knows nothing of what they cache. Gives when that one began.
fn failover_with_rights(seed: u64) -> (World, InodeId, Time) {
    let mut world = World::three(seed);
    world.ask(Request::EndSession).unwrap();
    for port in [CLIENT, OTHER] {
        world.meet(port, 1);
        world.speaker = port;
        world.ask(Request::OpenSession { caches: true }).unwrap();
    }
    world.speaker = CLIENT;
    let ino = world.create("a", false);
    let old = world.leader().unwrap();
    world.kill(old);
    world.until("another leader", |world| world.leader().is_some());
    let began = world.now;
    (world, ino, began)
}

fn chmod(world: &mut World, ino: InodeId) -> Time {
    let set = dfs::wire::namespace::SetAttributes { mode: Some(0o600), ..Default::default() };
    world.op(Op::SetAttributes { ino, set }).unwrap();
    world.now
}

fn renew(world: &mut World) -> u64 {
    match world.ask(renewal(1)).unwrap() {
        Response::Renewed { era, .. } => era,
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_failover_changes_wait_until_every_caching_session_has_told_or_lost_what_it_has() {
    // The other session says nothing: its lease is waited for.
    let (mut world, ino, began) = failover_with_rights(31);
    let done = chmod(&mut world, ino);
    assert!(done.since(began) >= limits::SESSION_LEASE, "{:?}", done.since(began));
    world.speaker = OTHER;
    assert_eq!(renew(&mut world), 2, "what it had is void");
    world.reclaim(0, &[], &[(ino, Rights::READ)]);
    world.speaker = CLIENT;
    let before = world.now;
    let done = chmod(&mut world, ino);
    assert!(done.since(before) < Duration::from_millis(100) && world.recalls.is_empty(), "and stays void, however late it is claimed");

    // It has something on another inode: nobody waits.
    let (mut world, ino, began) = failover_with_rights(32);
    world.speaker = OTHER;
    assert_eq!(renew(&mut world), 0, "nothing is prolonged before it has told");
    world.reclaim(1, &[], &[]);
    assert_eq!(renew(&mut world), 0, "what it told the leader before, and comes late, may not be all");
    world.reclaim(0, &[], &[(InodeId(999), Rights::READ)]);
    assert_eq!(renew(&mut world), 1);
    world.speaker = CLIENT;
    assert!(chmod(&mut world, ino).since(began) < Duration::from_secs(3));

    // It has something on this one: it is recalled, and obeys.
    let (mut world, ino, _) = failover_with_rights(33);
    world.speaker = OTHER;
    world.reclaim(0, &[], &[(ino, Rights::READ)]);
    let leader = world.leader().unwrap();
    let set = dfs::wire::namespace::SetAttributes { mode: Some(0o600), ..Default::default() };
    world.speaker = CLIENT;
    let request = world.request(Op::SetAttributes { ino, set });
    assert_eq!(world.ask_at(leader, request.clone(), Bytes::new()).map_err(|failure| failure.status), Err(Status::TimedOut));
    let &(port, term, number) = world.recalls.first().expect("recalled");
    assert_eq!(port, OTHER);
    world.speaker = OTHER;
    world.ask(Request::Recalled { term, number }).unwrap();
    world.speaker = CLIENT;
    assert!(matches!(world.ask(request), Ok(Response::Replied { .. })));
}

#[test]
fn who_writes_alone_is_known_to_the_next_leader() {
    let mut world = World::three(34);
    world.ask(Request::EndSession).unwrap();
    for port in [CLIENT, OTHER] {
        world.meet(port, 1);
        world.speaker = port;
        world.ask(Request::OpenSession { caches: true }).unwrap();
    }
    world.speaker = CLIENT;
    let ino = world.create("a", false);
    assert!(matches!(world.op(Op::Acquire { ino }), Ok(Replied::Acquired { granted: true, .. })));
    let old = world.leader().unwrap();
    world.kill(old);
    world.until("another leader", |world| world.leader().is_some());
    renew(&mut world);
    // A look by the other recalls at once: nobody has to be asked who writes.
    world.speaker = OTHER;
    let leader = world.leader().unwrap();
    let look = Request::Query(Query::Attributes { ino });
    assert_eq!(world.ask_at(leader, look.clone(), Bytes::new()).map_err(|failure| failure.status), Err(Status::TimedOut));
    let &(port, term, number) = world.recalls.first().expect("recalled");
    assert_eq!(port, CLIENT);
    world.speaker = CLIENT;
    world.op(Op::Yield { ino }).unwrap();
    world.ask(Request::Recalled { term, number }).unwrap();
    world.speaker = OTHER;
    assert!(matches!(world.ask(look), Ok(Response::Answered { .. })));
}
