//! Between the project's own forms and the library's protobuf structs. Protobuf bytes never travel and are never parsed.
//!
//! A configuration entry keeps the project's form of the change in its `context`, where the library does not look; the `data` that
//! the library needs while proposing stays on the proposing node. An empty form means: leave the joint configuration.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use ::raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType};

use dfs::limits::NODES_MAX;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::NodeId;
use dfs::wire::message::{RaftEntry, RaftKind, RaftMessage};

/// Context of a vote request that its leader has asked for; voters then do not wait for the leader's lease to run out.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// Bytes of one change: its kind and the node.
const CHANGE_BYTES: usize = 9;

/// Who decides, and who only listens. A snapshot of the namespace carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Voters; while joint the incoming ones.
    pub voters: BTreeSet<NodeId>,
    /// Voters of the configuration being left; empty unless joint. A majority of these and of `voters` decides.
    pub outgoing: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<NodeId>,
}

impl Configuration {
    /// A single voter.
    pub fn founder(node: NodeId) -> Self {
        Configuration { voters: BTreeSet::from([node]), ..Default::default() }
    }

    /// Whether two configurations decide together, on the way from one to the other.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the node's vote counts.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether the node takes part at all.
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// The check for one that came over the wire: the library dies of a contradictory one.
    pub fn check(&self) -> Result<(), Status> {
        let sets = [&self.voters, &self.outgoing, &self.learners, &self.learners_next];
        let sane = !self.voters.is_empty()
            && sets.iter().all(|set| set.len() <= NODES_MAX && !set.contains(&NodeId(0)))
            && self.learners.iter().all(|&node| !self.is_voter(node))
            && self.learners_next.iter().all(|node| self.outgoing.contains(node) && !self.voters.contains(node));
        if sane { Ok(()) } else { Err(Status::Malformed) }
    }

    pub(super) fn from_library(state: &ConfState) -> Self {
        let set = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect();
        Configuration {
            voters: set(state.get_voters()),
            outgoing: set(state.get_voters_outgoing()),
            learners: set(state.get_learners()),
            learners_next: set(state.get_learners_next()),
        }
    }

    pub(super) fn to_library(&self) -> ConfState {
        let list = |set: &BTreeSet<NodeId>| set.iter().map(|node| node.0).collect::<Vec<_>>();
        let mut state = ConfState::default();
        state.set_voters(list(&self.voters));
        state.set_voters_outgoing(list(&self.outgoing));
        state.set_learners(list(&self.learners));
        state.set_learners_next(list(&self.learners_next));
        // Every joint configuration of ours is left without being asked.
        state.auto_leave = self.is_joint();
        state
    }

    /// What turns `self` into the given sets; empty when it is so already.
    pub(super) fn plan_changes(&self, voters: &BTreeSet<NodeId>, learners: &BTreeSet<NodeId>) -> Vec<Change> {
        let add_voters = voters.difference(&self.voters).map(|&node| Change { node, kind: ChangeKind::Voter });
        let add_learners = learners.difference(&self.learners).map(|&node| Change { node, kind: ChangeKind::Learner });
        let known = self.voters.union(&self.learners);
        let gone = known.filter(|node| !voters.contains(node) && !learners.contains(node));
        add_voters.chain(add_learners).chain(gone.map(|&node| Change { node, kind: ChangeKind::Gone })).collect()
    }
}

/// What one node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    Voter,
    Learner,
    Gone,
}

/// One part of a configuration change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) node: NodeId,
    pub(super) kind: ChangeKind,
}

/// The form in which changes travel and are kept.
pub(super) fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut form = Vec::with_capacity(changes.len() * CHANGE_BYTES);
    for change in changes {
        form.push(match change.kind {
            ChangeKind::Voter => 1,
            ChangeKind::Learner => 2,
            ChangeKind::Gone => 3,
        });
        form.extend_from_slice(&change.node.0.to_le_bytes());
    }
    form
}

/// Reads what [`encode_changes`] wrote.
pub(super) fn decode_changes(form: &[u8]) -> Result<Vec<Change>, Status> {
    if !form.len().is_multiple_of(CHANGE_BYTES) || form.len() / CHANGE_BYTES > 4 * NODES_MAX {
        return Err(Status::Malformed);
    }
    let decode = |part: &[u8]| {
        let kind = match part[0] {
            1 => ChangeKind::Voter,
            2 => ChangeKind::Learner,
            3 => ChangeKind::Gone,
            _ => return Err(Status::Malformed),
        };
        let mut id = [0; 8];
        id.copy_from_slice(&part[1..]);
        let node = NodeId(u64::from_le_bytes(id));
        if node == NodeId(0) { Err(Status::Malformed) } else { Ok(Change { node, kind }) }
    };
    form.chunks_exact(CHANGE_BYTES).map(decode).collect()
}

/// The library's form. One change is made at once, several through a joint configuration that is left without being asked.
pub(super) fn changes_to_library(changes: &[Change]) -> ConfChangeV2 {
    let single = |change: &Change| {
        let mut single = ConfChangeSingle { node_id: change.node.0, ..Default::default() };
        single.set_change_type(match change.kind {
            ChangeKind::Voter => ConfChangeType::AddNode,
            ChangeKind::Learner => ConfChangeType::AddLearnerNode,
            ChangeKind::Gone => ConfChangeType::RemoveNode,
        });
        single
    };
    let mut library = ConfChangeV2::default();
    library.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    library
}

fn entry_to_wire(entry: Entry) -> RaftEntry {
    let configuration = entry.get_entry_type() != EntryType::EntryNormal;
    let data = if configuration { entry.context } else { entry.data };
    RaftEntry { term: entry.term, index: entry.index, configuration, data, context: Bytes::new() }
}

fn entry_from_wire(entry: RaftEntry) -> Entry {
    let mut library = Entry { term: entry.term, index: entry.index, ..Default::default() };
    if entry.configuration {
        library.set_entry_type(EntryType::EntryConfChangeV2);
        library.context = entry.data;
    } else {
        library.data = entry.data;
    }
    library
}

/// The message as it travels; `None` for kinds that peers do not send each other. Stamps are the caller's.
pub(super) fn message_to_wire(mut message: Message) -> Option<(NodeId, RaftMessage)> {
    let kind = match message.get_msg_type() {
        MessageType::MsgAppend => RaftKind::Append,
        MessageType::MsgAppendResponse => RaftKind::AppendResponse,
        MessageType::MsgRequestVote => RaftKind::Vote,
        MessageType::MsgRequestVoteResponse => RaftKind::VoteResponse,
        MessageType::MsgRequestPreVote => RaftKind::PreVote,
        MessageType::MsgRequestPreVoteResponse => RaftKind::PreVoteResponse,
        MessageType::MsgHeartbeat => RaftKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => RaftKind::HeartbeatResponse,
        MessageType::MsgTimeoutNow => RaftKind::TimeoutNow,
        _ => return None,
    };
    let entries = message.take_entries().into_iter().map(entry_to_wire).collect();
    let wire = RaftMessage {
        kind,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: 0,
        priority: 0,
        entries,
        context: message.context,
        sent: Time(0),
        echo: Time(0),
    };
    Some((NodeId(message.to), wire))
}

/// The library's form of a checked message. Fields that the kind does not use are left out, whatever the sender put there.
pub(super) fn message_from_wire(me: NodeId, from: NodeId, wire: RaftMessage) -> Result<Message, Status> {
    let mut message = Message { from: from.0, to: me.0, term: wire.term, ..Default::default() };
    let kind = match wire.kind {
        RaftKind::Append => {
            message.index = wire.index;
            message.log_term = wire.log_term;
            message.commit = wire.commit;
            message.set_entries(wire.entries.into_iter().map(entry_from_wire).collect::<Vec<_>>().into());
            MessageType::MsgAppend
        }
        RaftKind::AppendResponse => {
            message.index = wire.index;
            message.log_term = wire.log_term;
            message.reject = wire.reject;
            message.reject_hint = wire.reject_hint;
            MessageType::MsgAppendResponse
        }
        RaftKind::Vote | RaftKind::PreVote => {
            message.index = wire.index;
            message.log_term = wire.log_term;
            message.commit = wire.commit;
            message.commit_term = wire.commit_term;
            if wire.kind == RaftKind::PreVote {
                MessageType::MsgRequestPreVote
            } else {
                if wire.context == CAMPAIGN_TRANSFER {
                    message.context = wire.context;
                }
                MessageType::MsgRequestVote
            }
        }
        RaftKind::VoteResponse | RaftKind::PreVoteResponse => {
            message.reject = wire.reject;
            message.commit = wire.commit;
            message.commit_term = wire.commit_term;
            if wire.kind == RaftKind::PreVoteResponse {
                MessageType::MsgRequestPreVoteResponse
            } else {
                MessageType::MsgRequestVoteResponse
            }
        }
        RaftKind::Heartbeat => {
            message.commit = wire.commit;
            MessageType::MsgHeartbeat
        }
        RaftKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        RaftKind::TimeoutNow => MessageType::MsgTimeoutNow,
        // Snapshots travel outside the library, and reachability is what a node sees itself.
        RaftKind::Snapshot | RaftKind::Unreachable => return Err(Status::Malformed),
    };
    message.set_msg_type(kind);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    #[test]
    fn changes_round_trip_and_garbage_is_refused() {
        let from = Configuration { voters: nodes(&[1, 2, 3]), learners: nodes(&[4, 5]), ..Default::default() };
        let changes = from.plan_changes(&nodes(&[1, 2, 4]), &nodes(&[5, 6]));
        let voter = Change { node: NodeId(4), kind: ChangeKind::Voter };
        let learner = Change { node: NodeId(6), kind: ChangeKind::Learner };
        assert_eq!(changes, [voter, learner, Change { node: NodeId(3), kind: ChangeKind::Gone }]);
        assert_eq!(decode_changes(&encode_changes(&changes)), Ok(changes));
        assert_eq!(decode_changes(&[]), Ok(vec![]));
        for bad in [&[1, 2, 3][..], &[0; 9], &[4, 1, 0, 0, 0, 0, 0, 0, 0], &[1; 9 * 5000]] {
            assert_eq!(decode_changes(bad), Err(Status::Malformed));
        }
        assert!(from.plan_changes(&from.voters, &from.learners).is_empty());
    }

    #[test]
    fn contradictory_configurations_are_refused() {
        assert_eq!(Configuration::founder(NodeId(1)).check(), Ok(()));
        assert_eq!(Configuration::default().check(), Err(Status::Malformed));
        let both = Configuration { voters: nodes(&[1]), learners: nodes(&[1]), ..Default::default() };
        assert_eq!(both.check(), Err(Status::Malformed));
        let next = Configuration { voters: nodes(&[1]), learners_next: nodes(&[2]), ..Default::default() };
        assert_eq!(next.check(), Err(Status::Malformed));
        let joint = Configuration { voters: nodes(&[1]), outgoing: nodes(&[1, 2]), learners_next: nodes(&[2]), ..Default::default() };
        assert_eq!(joint.check(), Ok(()));
        assert_eq!(Configuration::from_library(&joint.to_library()), joint);
    }
}
