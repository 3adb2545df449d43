//! The gate before the library: every message of a peer is checked here, because the library panics on contradictory ones.
//!
//! Passes what an honest peer can send, however late. A message that passes can confuse only a group whose members lie.

use ::raft::{Raft, StateRole};

use dfs::status::Status;
use dfs::types::NodeId;
use dfs::wire::message::{RaftKind, RaftMessage};

use super::convert::{Configuration, decode_changes};
use super::log::Log;

/// No honest group gets near it, and one more never overflows.
const NUMBER_MAX: u64 = 1 << 62;
/// How far ahead of ours a term may plausibly be.
const TERM_JUMP_MAX: u64 = 1 << 40;

/// Refuses what no honest peer sends. `Malformed`: contradictory in itself; `NotMember`: from somebody who cannot say this;
/// `Conflict`: honest perhaps, but not to be heeded now.
pub(super) fn check(raft: &Raft<Log>, configuration: &Configuration, from: NodeId, message: &RaftMessage) -> Result<(), Status> {
    check_numbers(raft, message)?;
    if from.0 == 0 || from.0 == raft.id {
        return Err(Status::NotMember);
    }
    match message.kind {
        RaftKind::Append => {
            check_leader(raft, from, message)?;
            check_entries(message)
        }
        RaftKind::Heartbeat => {
            check_leader(raft, from, message)?;
            // A leader names no commit beyond what this node has acknowledged to it.
            if message.commit > raft.raft_log.last_index() { Err(Status::Malformed) } else { Ok(()) }
        }
        RaftKind::Vote | RaftKind::PreVote => {
            // Whoever believes to be a voter may ask: this node may not have heard of it yet.
            let sane = message.log_term < message.term && message.commit <= message.index && message.commit_term <= message.log_term;
            if sane { Ok(()) } else { Err(Status::Malformed) }
        }
        RaftKind::AppendResponse | RaftKind::HeartbeatResponse => {
            check_response(raft, configuration, from, message)?;
            check_acknowledgement(raft, message)
        }
        RaftKind::VoteResponse | RaftKind::PreVoteResponse => {
            check_response(raft, configuration, from, message)?;
            check_vote(raft, message)
        }
        RaftKind::TimeoutNow => {
            let mine = raft.state == StateRole::Follower && raft.leader_id == from.0 && raft.term == message.term;
            if mine { Ok(()) } else { Err(Status::Conflict) }
        }
        RaftKind::Snapshot | RaftKind::Unreachable => Err(Status::Malformed),
    }
}

/// The place of a snapshot in the log.
pub(super) fn check_place(raft: &Raft<Log>, index: u64, term: u64) -> Result<(), Status> {
    if index > 0 && index < NUMBER_MAX && is_plausible_term(raft, term) { Ok(()) } else { Err(Status::Malformed) }
}

/// Huge numbers would overflow.
fn check_numbers(raft: &Raft<Log>, message: &RaftMessage) -> Result<(), Status> {
    let numbers = [message.term, message.log_term, message.index, message.commit, message.commit_term, message.reject_hint];
    let sane = numbers.iter().all(|&number| number < NUMBER_MAX)
        && is_plausible_term(raft, message.term)
        && message.request_snapshot == 0
        && (message.entries.is_empty() || message.kind == RaftKind::Append);
    if sane { Ok(()) } else { Err(Status::Malformed) }
}

/// A message of term 0 would be taken for the library's own.
fn is_plausible_term(raft: &Raft<Log>, term: u64) -> bool {
    term > 0 && term < NUMBER_MAX && term <= raft.term.saturating_add(TERM_JUMP_MAX)
}

/// A term has one leader.
fn check_leader(raft: &Raft<Log>, from: NodeId, message: &RaftMessage) -> Result<(), Status> {
    let other = raft.term == message.term && raft.leader_id != 0 && raft.leader_id != from.0;
    if other { Err(Status::NotMember) } else { Ok(()) }
}

fn check_entries(message: &RaftMessage) -> Result<(), Status> {
    // The library reads "no entry at this index" as term 0, so an index beyond our log with term 0 would leave a gap.
    let mut sane = (message.index == 0) == (message.log_term == 0) && message.log_term <= message.term;
    let mut term = message.log_term.max(1);
    for (place, entry) in message.entries.iter().enumerate() {
        sane &= entry.index == message.index + 1 + place as u64 && entry.term >= term && entry.term <= message.term;
        sane &= entry.context.is_empty();
        term = entry.term;
        if entry.configuration {
            decode_changes(&entry.data)?;
        }
    }
    if sane { Ok(()) } else { Err(Status::Malformed) }
}

/// Only members answer, and an answer out of another term must not make this node leave a leader that it hears: the leader counts on
/// being followed for an election timeout. Once the leader falls silent such answers are heeded.
fn check_response(raft: &Raft<Log>, configuration: &Configuration, from: NodeId, message: &RaftMessage) -> Result<(), Status> {
    if !configuration.contains(from) {
        return Err(Status::NotMember);
    }
    let following = raft.state == StateRole::Follower && raft.leader_id != 0 && raft.election_elapsed < raft.election_timeout();
    let granted_ahead = message.kind == RaftKind::PreVoteResponse && !message.reject;
    if following && message.term > raft.term && !granted_ahead { Err(Status::Conflict) } else { Ok(()) }
}

/// In the term that I lead nobody has more than I sent.
fn check_acknowledgement(raft: &Raft<Log>, message: &RaftMessage) -> Result<(), Status> {
    let last = raft.raft_log.last_index();
    let leading = raft.state == StateRole::Leader && raft.term == message.term;
    let sane = !leading || (message.index <= last && message.reject_hint <= last);
    if sane { Ok(()) } else { Err(Status::Malformed) }
}

/// Votes are given in the term that was asked for; pre-votes in the one after.
fn check_vote(raft: &Raft<Log>, message: &RaftMessage) -> Result<(), Status> {
    let highest = if message.kind == RaftKind::PreVoteResponse { raft.term + 1 } else { raft.term };
    let sane = (message.reject || message.term <= highest) && message.commit_term <= message.term;
    if sane { Ok(()) } else { Err(Status::Malformed) }
}
