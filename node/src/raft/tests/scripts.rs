//! Single properties, each by its own script.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use dfs::limits;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::NodeId;
use dfs::wire::message::{RaftKind, RaftMessage};

use super::{MS, Output, World};

/// Three voters, and who leads them.
fn three(seed: u64) -> (World, NodeId) {
    let mut world = World::new(seed, 3);
    world.live(Duration::from_secs(4), false);
    let leader = world.leader().expect("three healthy nodes have a leader");
    (world, leader)
}

fn message(kind: RaftKind, term: u64) -> RaftMessage {
    RaftMessage {
        kind,
        term,
        log_term: 0,
        index: 0,
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        request_snapshot: 0,
        priority: 0,
        entries: Vec::new(),
        context: Bytes::new(),
        sent: Time(0),
        echo: Time(0),
    }
}

#[test]
fn a_single_voter_commits_and_reads_in_the_same_turn() {
    let mut world = World::new(1, 1);
    let id = NodeId(1);
    let before = world.members[&id].state.index;
    let group = &mut world.members.get_mut(&id).unwrap().group;
    assert!(group.can_read(world.now, world.now));
    group.propose(world.now, Bytes::from_static(b"x")).unwrap();
    world.drain(id);
    assert_eq!(world.members[&id].state.index, before + 1);
}

#[test]
fn proposals_of_one_turn_travel_together_and_cut_to_fit_a_frame() {
    let mut world = World::new(2, 3);
    world.live(Duration::from_secs(4), false);
    let leader = world.leader().unwrap();
    let now = world.now;
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    for _ in 0..10 {
        group.propose(now, Bytes::from_static(b"small")).unwrap();
    }
    let mut sends = 0;
    while let Some(output) = group.poll_output() {
        if let Output::Send { message, .. } = output {
            assert_eq!((message.kind, message.entries.len()), (RaftKind::Append, 10));
            sends += 1;
        }
    }
    assert_eq!(sends, 2, "one message for each follower");
    for _ in 0..5 {
        group.propose(now, Bytes::from(vec![7; 700 << 10])).unwrap();
    }
    assert_eq!(group.propose(now, Bytes::from(vec![7; limits::RAFT_MESSAGE_BYTES_MAX + 1])), Err(Status::TooLong));
    while let Some(output) = group.poll_output() {
        let Output::Send { message, .. } = output else { continue };
        assert!(message.entries.iter().map(|entry| entry.data.len()).sum::<usize>() <= limits::RAFT_MESSAGE_BYTES_MAX);
    }
    world.run(now + Duration::from_secs(3));
    world.drain(leader);
}

#[test]
fn a_leader_is_busy_when_too_much_is_uncommitted() {
    let mut world = World::new(3, 3);
    world.live(Duration::from_secs(4), false);
    let leader = world.leader().unwrap();
    world.cut = BTreeSet::from([leader]);
    let data = Bytes::from(vec![0; limits::RAFT_MESSAGE_BYTES_MAX]);
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    let accepted = (0..100).take_while(|_| group.propose(world.now, data.clone()).is_ok()).count();
    assert_eq!(accepted, limits::RAFT_UNCOMMITTED_BYTES_MAX / limits::RAFT_MESSAGE_BYTES_MAX);
    assert_eq!(group.propose(world.now, data), Err(Status::Busy));
}

#[test]
fn a_cut_off_leader_stops_reading_before_another_can_commit() {
    let mut world = World::new(5, 3);
    world.live(Duration::from_secs(4), false);
    let old = world.leader().unwrap();
    world.cut = BTreeSet::from([old]);
    let mut lost_at = None;
    let start = world.now;
    while world.now < start + Duration::from_secs(4) {
        world.run(world.now + Duration::from_nanos(10 * MS));
        if lost_at.is_none() && !world.members[&old].group.can_read(world.now, world.now) {
            lost_at = Some(world.now);
            assert!(world.members[&old].group.is_leader(), "the lease ends before leadership does");
            assert_eq!(world.leader(), Some(old), "nobody may lead while the lease lasts");
        }
    }
    let silent = lost_at.expect("the lease ends").since(start);
    assert!(silent <= limits::ELECTION_TIMEOUT, "{silent:?}");
    assert!(world.leader().is_some_and(|leader| leader != old));
    assert!(!world.members[&old].group.is_leader());
}

#[test]
fn leadership_moves_on_request_and_reads_wait_for_it() {
    let mut world = World::new(6, 3);
    world.live(Duration::from_secs(4), false);
    let old = world.leader().unwrap();
    let to = *world.voters().iter().find(|&&voter| voter != old).unwrap();
    let now = world.now;
    let group = &mut world.members.get_mut(&old).unwrap().group;
    assert!(group.can_read(now, now));
    assert_eq!(group.transfer(now, NodeId(99)), Err(Status::InvalidArgument));
    group.transfer(now, to).unwrap();
    assert!(!group.can_read(now, now), "the lease is dropped before the offer goes out");
    assert_eq!(group.propose(now, Bytes::new()), Err(Status::Busy));
    world.drain(old);
    world.run(now + Duration::from_nanos(100 * MS));
    assert_eq!(world.leader(), Some(to));
}

#[test]
fn configuration_changes_are_refused_when_they_make_no_sense() {
    let mut world = World::new(7, 3);
    let founder = NodeId(1);
    let now = world.now;
    let set = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect::<BTreeSet<_>>();
    let group = &mut world.members.get_mut(&founder).unwrap().group;
    assert_eq!(group.propose_voters(now, &set(&[]), &set(&[1])), Err(Status::InvalidArgument));
    assert_eq!(group.propose_voters(now, &set(&[1, 2]), &set(&[2])), Err(Status::InvalidArgument));
    assert_eq!(group.propose_voters(now, &set(&[2]), &set(&[])), Err(Status::InvalidArgument));
    group.propose_voters(now, &set(&[1]), &set(&[])).unwrap();
    assert!(!group.is_changing(), "nothing to change");
    group.propose_voters(now, &set(&[1]), &set(&[2, 3])).unwrap();
    assert_eq!(group.propose_voters(now, &set(&[1]), &set(&[2])), Err(Status::Busy));
    world.drain(founder);
    let joiner = &mut world.members.get_mut(&NodeId(2)).unwrap().group;
    assert_eq!(joiner.propose_voters(now, &set(&[1]), &set(&[2])), Err(Status::NotLeader));
    assert_eq!(joiner.propose(now, Bytes::new()), Err(Status::NotLeader));
    assert_eq!(joiner.transfer(now, NodeId(1)), Err(Status::NotLeader));
}

#[test]
fn a_long_pause_is_not_taken_for_silence() {
    let mut world = World::new(8, 3);
    world.live(Duration::from_secs(4), false);
    let leader = world.leader().unwrap();
    let term = world.members[&leader].group.term();
    let sleeper = *world.voters().iter().find(|&&voter| voter != leader).unwrap();
    world.members.get_mut(&sleeper).unwrap().paused_until = world.now + Duration::from_secs(60);
    world.run(world.now + Duration::from_secs(61));
    assert_eq!((world.leader(), world.members[&leader].group.term()), (Some(leader), term));
    let group = &world.members[&sleeper].group;
    assert!(group.next_deadline() > world.now && group.leader() == Some(leader));
}

#[test]
fn after_a_long_pause_only_an_election_timeout_of_ticks_is_made_up() {
    let (mut world, leader) = three(9);
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    group.on_deadline(world.now + Duration::from_secs(3600));
    let sends = std::iter::from_fn(|| group.poll_output()).filter(|output| matches!(output, Output::Send { .. })).count();
    assert!(sends <= 2 * 6, "{sends} messages after a pause");
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_refused() {
    let (mut world, leader) = three(10);
    let from = *world.voters().iter().find(|&&voter| voter != leader).unwrap();
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    let forged = RaftMessage { index: group.last_index() + 1, ..message(RaftKind::AppendResponse, group.term().0) };
    assert_eq!(group.receive(world.now, from, forged.clone()), Err(Status::Malformed));
    assert_eq!(group.receive(world.now, NodeId(99), RaftMessage { index: 1, ..forged }), Err(Status::NotMember));
    assert_eq!(group.receive(world.now, leader, message(RaftKind::Heartbeat, group.term().0)), Err(Status::NotMember));
    assert_eq!(group.receive(world.now, from, message(RaftKind::Append, group.term().0)), Err(Status::NotMember));
}

#[test]
fn a_follower_leaves_a_leader_that_it_hears_only_for_another_leader() {
    let (mut world, leader) = three(11);
    let voters = world.voters();
    let mut others = voters.iter().copied().filter(|&voter| voter != leader);
    let (follower, candidate) = (others.next().unwrap(), others.next().unwrap());
    let group = &mut world.members.get_mut(&follower).unwrap().group;
    let term = group.term().0;
    for kind in [RaftKind::PreVoteResponse, RaftKind::VoteResponse, RaftKind::AppendResponse, RaftKind::HeartbeatResponse] {
        let late = RaftMessage { reject: true, ..message(kind, term + 1) };
        assert_eq!(group.receive(world.now, candidate, late), Err(Status::Conflict));
    }
    assert_eq!(group.receive(world.now, candidate, message(RaftKind::TimeoutNow, term)), Err(Status::Conflict));
    assert_eq!(group.receive(world.now, candidate, message(RaftKind::Vote, term + 1)), Ok(()));
    assert_eq!((group.term().0, group.leader()), (term, Some(leader)));
    assert_eq!(group.receive(world.now, candidate, message(RaftKind::Heartbeat, term + 1)), Ok(()));
    assert_eq!((group.term().0, group.leader()), (term + 1, Some(candidate)));
}

#[test]
fn a_leader_that_commits_its_own_removal_steps_down() {
    let (mut world, old) = three(12);
    let voters = world.voters();
    let mut others = voters.iter().copied().filter(|&voter| voter != old);
    let (removed, behind) = (others.next().unwrap(), others.next().unwrap());
    // Only the one to be removed hears of it, so nobody else can be elected; and the proposer falls silent.
    world.members.get_mut(&behind).unwrap().paused_until = world.now + Duration::from_nanos(50 * MS);
    let kept = voters.iter().copied().filter(|&voter| voter != removed).collect();
    let now = world.now;
    world.members.get_mut(&old).unwrap().group.propose_voters(now, &kept, &BTreeSet::new()).unwrap();
    world.drain(old);
    world.events.retain(|_, event| !matches!(event, super::Event::Message { to, .. } if *to == behind));
    world.members.get_mut(&old).unwrap().paused_until = now + Duration::from_secs(6);
    let mut led = false;
    while world.now < now + Duration::from_secs(5) {
        world.propose();
        world.run(world.now + Duration::from_nanos(MS / 2));
        let member = &world.members[&removed];
        led |= member.group.is_leader();
        assert!(!member.group.is_leader() || member.state.configuration.is_voter(removed), "it leads although it has no vote");
    }
    assert!(led, "the script elects the one that is removed");
    assert_eq!(world.members[&removed].state.configuration.voters, kept);
    world.live(Duration::from_secs(4), false);
    assert!(!world.members[&removed].group.is_leader() && world.leader().is_some());
}

#[test]
fn a_follower_that_overslept_promises_a_whole_election_timeout_from_the_next_heartbeat() {
    let (mut world, leader) = three(13);
    let voters = world.voters();
    let mut others = voters.iter().copied().filter(|&voter| voter != leader);
    let (follower, candidate) = (others.next().unwrap(), others.next().unwrap());
    let group = &mut world.members.get_mut(&follower).unwrap().group;
    let (term, last) = (group.term().0, group.last_index());
    let log_term = group.node.raft.raft_log.last_term();
    let vote = RaftMessage { index: last + 9, log_term, ..message(RaftKind::Vote, term + 1) };
    let woken = world.now + Duration::from_secs(2);
    assert_eq!(group.receive(woken, leader, message(RaftKind::Heartbeat, term)), Ok(()));
    let until = woken + limits::ELECTION_TIMEOUT;
    group.on_deadline(woken);
    while group.next_deadline() <= until {
        group.on_deadline(group.next_deadline());
        let _ = group.receive(group.now, candidate, vote.clone());
        assert_eq!((group.term().0, group.leader()), (term, Some(leader)), "it helped another {:?} later", group.now.since(woken));
    }
    let later = until + Duration::from_secs(1);
    let _ = group.receive(later, candidate, vote);
    assert_eq!(group.term().0, term + 1, "a silent leader is not waited for");
}

#[test]
fn the_log_is_kept_for_a_follower_that_receives_a_snapshot_but_not_without_bound() {
    let mut world = World::new(14, 1);
    let (leader, learner) = (NodeId(1), NodeId(99));
    let now = world.now;
    let propose = |world: &mut World, count: usize| {
        for _ in 0..count {
            world.members.get_mut(&leader).unwrap().group.propose(now, Bytes::from_static(b"entry")).unwrap();
            world.drain(leader);
        }
    };
    let first = |world: &World| world.members[&leader].group.node.store().first();
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    group.propose_voters(now, &BTreeSet::from([leader]), &BTreeSet::from([learner])).unwrap();
    world.drain(leader);
    // It has nothing: the library's probe is rejected, and what it needs was never in the log.
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    let empty = RaftMessage { index: group.last_index() - 1, reject: true, ..message(RaftKind::AppendResponse, group.term().0) };
    assert_eq!(group.receive(now, learner, empty), Ok(()));
    let needs = std::iter::from_fn(|| group.poll_output()).filter(|output| matches!(output, Output::NeedSnapshot { to } if *to == learner));
    assert_eq!(needs.count(), 1);
    let begun = group.applied_index();
    group.snapshot_begun(learner, begun);
    let bound = super::settings().log_entries;
    propose(&mut world, 2 * bound);
    assert!(first(&world) <= begun + 1, "the entries after the snapshot are kept");
    let group = &mut world.members.get_mut(&leader).unwrap().group;
    let accepted = RaftMessage { index: begun, ..message(RaftKind::AppendResponse, group.term().0) };
    assert_eq!(group.receive(now, learner, accepted), Ok(()));
    let sent = std::iter::from_fn(|| group.poll_output()).find_map(|output| match output {
        Output::Send { to, message } if to == learner && !message.entries.is_empty() => Some(message.entries[0].index),
        _ => None,
    });
    assert_eq!(sent, Some(begun + 1), "it goes on right after the snapshot");
    propose(&mut world, 5 * bound);
    assert!(first(&world) > begun + bound as u64, "a follower that never ends does not hold the log for ever");
}
