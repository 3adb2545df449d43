//! A fuzzer that forges messages of every kind: the library must never see one that makes it panic.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use dfs::random::Random;
use dfs::time::Time;
use dfs::types::{NodeId, Term};
use dfs::wire::message::{RaftEntry, RaftKind, RaftMessage};

use super::{Configuration, Group, MS, Output, Replay, Start, settings};

fn forged_number(random: &mut Random, near: u64) -> u64 {
    match random.below(8) {
        0 => random.next(),
        1 => u64::MAX - random.below(3),
        2 => random.below(4),
        3 => 1 << random.below(64),
        _ => near.saturating_add(random.below(7)).saturating_sub(3),
    }
}

fn forged_entry(random: &mut Random, index: u64, term: u64) -> RaftEntry {
    let configuration = random.chance(1, 3);
    let mut data = Vec::new();
    for _ in 0..random.below(4) {
        let kinds = if random.chance(1, 20) { 256 } else { 3 };
        data.push((1 + random.below(kinds)) as u8);
        data.extend_from_slice(&(1 + random.below(6)).to_le_bytes());
    }
    RaftEntry { term, index, configuration, data: data.into(), context: Bytes::new() }
}

/// What an honest peer might send, as far as a liar can guess.
fn draft(random: &mut Random, group: &Group) -> RaftMessage {
    const KINDS: [RaftKind; 11] = [
        RaftKind::Append,
        RaftKind::AppendResponse,
        RaftKind::Vote,
        RaftKind::VoteResponse,
        RaftKind::PreVote,
        RaftKind::PreVoteResponse,
        RaftKind::Heartbeat,
        RaftKind::HeartbeatResponse,
        RaftKind::TimeoutNow,
        RaftKind::Snapshot,
        RaftKind::Unreachable,
    ];
    let mut kind = KINDS[random.below(KINDS.len() as u64) as usize];
    if random.chance(1, 4) {
        kind = RaftKind::Append;
    }
    let ahead = u64::from(random.chance(1, 4)) + u64::from(matches!(kind, RaftKind::Vote | RaftKind::PreVote | RaftKind::PreVoteResponse));
    let term = (group.term().0 + ahead).max(1);
    let index = group.last_index().saturating_sub(random.below(4).saturating_sub(1));
    let known = group.node.raft.raft_log.term(index).unwrap_or(0);
    let log_term = if random.chance(4, 5) { known } else { random.below(term) };
    let mut entry_term = log_term.max(1);
    let mut entries = Vec::new();
    if kind == RaftKind::Append {
        for place in 1..=random.below(5) {
            entry_term = entry_term.max(term - random.below(term.min(3)));
            entries.push(forged_entry(random, index + place, entry_term));
        }
    }
    RaftMessage {
        kind,
        term,
        log_term,
        index,
        commit: (group.commit_index() + random.below(3)).min(group.last_index()).min(index),
        commit_term: random.below(log_term + 1),
        reject: random.chance(1, 2),
        reject_hint: random.below(group.last_index() + 1),
        request_snapshot: 0,
        priority: random.next() as i64,
        entries,
        context: if random.chance(1, 5) { Bytes::from_static(b"CampaignTransfer") } else { Bytes::new() },
        sent: Time(random.next()),
        echo: Time(random.next()),
    }
}

/// A draft with some of its fields forged.
fn forge(random: &mut Random, group: &Group) -> RaftMessage {
    let mut message = draft(random, group);
    for _ in 0..random.below(4).saturating_sub(1) {
        match random.below(10) {
            0 => message.term = forged_number(random, message.term),
            1 => message.log_term = forged_number(random, message.log_term),
            2 => message.index = forged_number(random, message.index),
            3 => message.commit = forged_number(random, message.commit),
            4 => message.commit_term = forged_number(random, message.commit_term),
            5 => message.reject_hint = forged_number(random, message.reject_hint),
            6 => message.request_snapshot = forged_number(random, message.index),
            7 => message.entries.push(forged_entry(random, message.index.wrapping_add(1), message.term)),
            8 => drop(message.entries.pop()),
            _ => {
                if let Some(entry) = message.entries.last_mut() {
                    entry.index = forged_number(random, entry.index);
                    entry.term = forged_number(random, entry.term);
                    entry.context = Bytes::from_static(b"?");
                }
            }
        }
    }
    message
}

/// A group in some state, lied to by everybody.
fn lie_to(seed: u64, messages: usize) -> usize {
    let mut random = Random::new(seed);
    let me = NodeId(1 + random.below(5));
    let mut now = Time(MS);
    let start = if random.chance(1, 3) { Start::Founder } else { Start::Joiner };
    let mut group = Group::new(me, start, random.fork(), now, settings());
    let mut accepted = 0;
    for _ in 0..messages {
        now = now + Duration::from_nanos(random.below(60 * MS));
        let from = NodeId(random.below(6));
        let message = forge(&mut random, &group);
        accepted += usize::from(group.receive(now, from, message).is_ok());
        let set = |random: &mut Random| (0..random.below(4)).map(|_| NodeId(random.below(6))).collect::<BTreeSet<_>>();
        match random.below(12) {
            0 => {
                let _ = group.propose(now, Bytes::from_static(b"data"));
            }
            1 => {
                let _ = group.propose_voters(now, &set(&mut random), &set(&mut random));
            }
            2 => {
                let _ = group.transfer(now, NodeId(random.below(6)));
            }
            3 => group.confirm(now),
            4 => {
                let (voters, outgoing) = (set(&mut random), set(&mut random));
                let (learners, learners_next) = (set(&mut random), set(&mut random));
                let configuration = Configuration { voters, outgoing, learners, learners_next };
                let index = forged_number(&mut random, group.commit_index());
                let term = Term(forged_number(&mut random, group.term().0));
                let _ = group.install_snapshot(now, index, term, configuration);
            }
            _ => {}
        }
        if random.chance(1, 50) {
            now = now + Duration::from_secs(random.below(20));
        }
        group.on_deadline(now);
        while let Some(output) = group.poll_output() {
            match output {
                Output::Commit { index, .. } | Output::Configured { index, .. } if random.chance(9, 10) => group.applied_to(index),
                Output::NeedSnapshot { to } => {
                    group.snapshot_begun(to, group.applied_index());
                    group.snapshot_sent(to, random.chance(1, 2));
                }
                _ => {}
            }
        }
        let _ = group.can_read(now, now);
    }
    accepted
}

#[test]
fn forged_messages_cannot_make_the_library_panic() {
    let seeds = std::env::var("DFS_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    let mut accepted = 0;
    for seed in 0..seeds {
        let _replay = Replay(format!("forged with seed {seed}"));
        accepted += lie_to(seed, 200);
    }
    println!("{accepted} of {} forged messages passed the check", seeds * 200);
    assert!(accepted > seeds as usize * 20, "nearly everything is refused, so nothing is tested: {accepted}");
}
