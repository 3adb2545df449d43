//! Scripts about control requests: lost answers, new leaders, deadlines, the window.

use super::*;

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_number() {
    let mut world = World::new();
    world.swallow = 1;
    world.write(WriteAt::End, &b"once"[..]).unwrap();
    assert!(world.count(is_namespace) >= 2);
    let numbers: BTreeSet<_> = world
        .log
        .iter()
        .filter_map(|(_, request)| if let Request::Namespace { number, .. } = request { Some(*number) } else { None })
        .collect();
    assert_eq!(numbers.len(), 1);
    assert_eq!(world.files[&INO].size, 4);
    assert_eq!(&world.read(0, 10).unwrap()[..], b"once");
}

#[test]
fn a_new_leader_is_found_and_told_what_is_held() {
    let mut world = World::new();
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.reclaims, 1);
    world.call(Call::Query(Query::Hold { ino: INO, sequence: 1 })).unwrap();
    world.kill(0);
    (world.leader, world.term) = (2, 2);
    let begun = world.now;
    world.call(touch()).unwrap();
    assert!(world.now.since(begun) < Duration::from_secs(1));
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.reclaims, 2);
    let reclaim = |request: &Request| matches!(request, Request::Query(Query::Reclaim { held, last: true, .. }) if *held == [INO]);
    assert_eq!(world.count(reclaim), 1);
}

#[test]
fn without_any_node_calls_end_at_the_deadline() {
    let mut world = World::new();
    world.nodes.iter_mut().for_each(|node| node.silent = true);
    let begun = world.now;
    let tokens: Vec<u64> = vec![world.submit(touch()), world.submit(Call::Query(Query::Space))];
    let results: Vec<_> = tokens.into_iter().map(|token| world.wait(token).err()).collect();
    assert_eq!(results, [Some(Status::TimedOut), Some(Status::TimedOut)]);
    assert_eq!(world.now.since(begun), limits::OP_TIMEOUT);
    (0..3).for_each(|index| world.kill(index));
    assert!(matches!(world.call(touch()), Err(Status::Unavailable | Status::TimedOut)));
    assert_eq!(world.write(WriteAt::Offset(0), noise(1 << 20, 1)).err(), Some(Status::Unavailable));
}

#[test]
fn the_window_is_never_exceeded() {
    let mut world = World::new();
    world.nodes[0].silent = true;
    let tokens: Vec<u64> = (0..limits::SESSION_WINDOW + 50).map(|_| world.submit(touch())).collect();
    world.drain();
    let sent: BTreeSet<_> = world
        .log
        .iter()
        .filter_map(|(_, request)| if let Request::Namespace { number, .. } = request { Some(*number) } else { None })
        .collect();
    assert_eq!(sent.len() as u64, limits::SESSION_WINDOW);
    world.nodes[0].silent = false;
    for token in tokens {
        world.wait(token).unwrap();
    }
    let highest = world.outcomes.keys().next_back().unwrap();
    assert_eq!(world.outcomes.len() as u64, limits::SESSION_WINDOW + 50);
    assert_eq!(highest.0, limits::SESSION_WINDOW + 50);
}

#[test]
fn nodes_that_take_no_more_of_the_session_for_now_are_asked_again() {
    let mut world = World::new();
    world.nodes.iter_mut().for_each(|node| node.busy = true);
    let bytes = vec![3; 100_000];
    let token = world.submit(Call::Write { ino: INO, at: WriteAt::End, bytes: bytes.clone().into(), kill_privileges: false });
    world.run_for(Duration::from_secs(5));
    assert!(!world.done.contains_key(&token), "it waits");
    let puts = world.count(|request| matches!(request, Request::Put { .. }));
    assert!((15..150).contains(&puts), "{puts} attempts");
    world.nodes.iter_mut().for_each(|node| node.busy = false);
    world.wait(token).unwrap();
    assert_eq!(&world.read(0, 100_000).unwrap()[..], &bytes[..]);
}
