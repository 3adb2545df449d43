//! Every message between processes. The codec (`wire::codec`) is the only room that turns them into bytes.
//!
//! Requests get exactly one response on the same link; notices get none. A lost link loses both, so whoever asked asks again:
//! what must not happen twice carries a request number (namespace operations), or is idempotent (everything else).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster_map::{ClusterMap, Member};
use crate::link::Lane;
use crate::locks::LockKind;
use crate::status::Status;
use crate::time::Time;
use crate::types::{
    Address, ByteRange, ChunkHash, ClusterId, Epoch, InodeId, Instance, Name, NodeId, RequestNumber, Rights, SessionId, Term, Timestamp,
};
use crate::wire::fsck::{Check, Checked};
use crate::wire::namespace::{Answer, Op, Query, Replied};

/// What a frame carries besides its payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    Request(Request),
    Response(Result<Response, Failure>),
    Notice(Notice),
}

/// Why a request failed, and what helps the requester to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub status: Status,
    /// `NotLeader`: who leads, as far as the answering node knows.
    pub leader: Option<(NodeId, Address)>,
    /// The answering node's map epoch; with `StaleMap` newer than the request's.
    pub epoch: Epoch,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure { status, leader: None, epoch: Epoch(0) }
    }
}

/// A request; `Lane::Bulk` for those marked so, control otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    // --- clients to any node
    /// The cluster map, if newer than `known`.
    Map { known: Epoch },
    /// The node's view of itself and the cluster.
    Status,

    // --- clients to the leader
    /// Opens the sender's session (idempotent). `caches`: it wants rights, and will answer recalls.
    OpenSession { caches: bool },
    /// Keeps the session alive. `uploads_from`: the lowest upload counter that an unanswered or future operation may name. `flushing`: recalls
    /// of that term that wait here for nothing but bytes to be committed.
    Renew { answered_below: RequestNumber, uploads_from: u64, term: Term, flushing: Vec<u64> },
    /// Ends the session: everything it held is released.
    EndSession,
    /// A change of the tree, exactly once per (session, number). Outcomes below `answered_below` may be forgotten.
    Namespace { number: RequestNumber, answered_below: RequestNumber, uploads_from: u64, op: Op },
    /// A read of the tree.
    Query(Query),
    /// The recall of that number in that term has been obeyed. Idempotent.
    Recalled { term: Term, number: u64 },
    /// The session gives up these rights of its own accord (`READ` and `NAMES`; `WRITE` goes back through the log). Until it is answered,
    /// grants of these rights that arrive are void: they were given before.
    GiveUp { rights: Vec<(InodeId, Rights)> },
    /// Stop the whole cluster.
    Shutdown,
    /// Move what that node holds to others; then it leaves. `NoSpace`: they have no room for it. `Degraded`: they would be too few.
    Drain { node: NodeId },

    // --- bulk lane: clients and nodes to storage nodes
    /// Keep the payload under its hash for this upload. `epoch`: the map by which the sender chose this node.
    Put { epoch: Epoch, hash: ChunkHash, instance: Instance },
    /// Count this upload as one of bytes the node already has; `UnknownChunk` if it has not.
    LinkChunk { epoch: Epoch, hash: ChunkHash, instance: Instance },
    /// Bytes of a chunk. The response's range is the asked one widened to verify groups.
    Get { hash: ChunkHash, range: ByteRange },
    /// The sender received bytes that did not match: check your copy, drop it if it is bad.
    Suspect { hash: ChunkHash },

    // --- control lane: nodes to nodes
    /// Whoever answers tells who it is (also the dialler's way to learn a new incarnation).
    Identify,
    /// To the leader (others answer `NotLeader`): make me a member. Idempotent.
    Join { member: Member },
    /// Leader to members, every heartbeat interval; tells the newest epoch, and how much room those have that hardly have any.
    Ping { term: Term, epoch: Epoch, sent: Time, crowded: Vec<(NodeId, u64)> },
    /// Leader to holders: forget these uploads. Idempotent.
    Delete { items: Vec<(ChunkHash, Instance)> },
    /// Storage node to leader: what are these uploads of mine?
    Audit { items: Vec<(ChunkHash, Instance)> },
    /// Storage node to leader: these copies were bad or are gone here.
    Lost { items: Vec<(ChunkHash, Instance)> },
    /// Storage node to leader: I have copies of these chunks, under their live uploads. Idempotent.
    Copied { items: Vec<(ChunkHash, Instance)> },
    /// Node to leader: I am leaving, replace me.
    Leave,
    /// Node to node: do you belong to a cluster? Asked while one is being formed from a fixed list.
    Muster,

    // --- clients to any node
    /// Harm the node, or hurry it; `NotPermitted` unless it was started to bear that.
    Debug(DebugAction),
    /// Check the next slice of something.
    Check(Check),
    /// The majority of that cluster's voters is lost for good: go on with the tree as it is here, as the first node of a new cluster.
    /// `Conflict`: a leader was heard a moment ago, or there is nothing to go on with. Idempotent.
    Recover { cluster: ClusterId },
    /// Another node has gone on with the tree of that cluster: forget it, keep the chunks, and join whoever is there. `Conflict` as above.
    Rejoin { cluster: ClusterId, to: Address },
}

/// What is done to a node to see whether it copes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DebugAction {
    /// Flip that bit of the copy of a chunk, counted modulo its bits. `UnknownChunk` if the node has none.
    Flip { hash: ChunkHash, bit: u64 },
    /// Hash every chunk again now.
    Scrub,
    /// Forget the copy of a chunk and tell nobody, as a fault of the program would. `UnknownChunk` if the node has none.
    Drop { hash: ChunkHash },
}

impl Request {
    /// Which of a pair's two connections carries it.
    pub fn lane(&self) -> Lane {
        match self {
            Request::Put { .. } | Request::LinkChunk { .. } | Request::Get { .. } | Request::Suspect { .. } => Lane::Bulk,
            _ => Lane::Control,
        }
    }
}

impl Notice {
    /// Which of a pair's two connections carries it.
    pub fn lane(&self) -> Lane {
        match self {
            Notice::Snapshot { .. } => Lane::Bulk,
            _ => Lane::Control,
        }
    }
}

/// The answer to a request of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    Done,
    /// `None`: the asker's epoch is the newest.
    Map(Option<ClusterMap>),
    Status(Box<StatusReport>),
    /// `time`: cluster time now. `era`: which `READ` and `NAMES` rights of the session this renewal prolongs. 0: none, their lease goes on to
    /// run out (the leader waits for a `Reclaim`, or for a recall to be obeyed). Else all that were granted or reclaimed in this term, if
    /// it is the era that the session knows, which is 1 in a new term; a greater one says that all from before it are void.
    Renewed {
        term: Term,
        epoch: Epoch,
        time: Timestamp,
        era: u64,
    },
    Replied {
        replied: Replied,
        grants: Vec<Grant>,
        term: Term,
        epoch: Epoch,
    },
    Answered {
        answer: Answer,
        grants: Vec<Grant>,
        term: Term,
        epoch: Epoch,
    },
    /// The node keeps the bytes until the instance is deleted.
    Receipt {
        node: NodeId,
    },
    /// Payload: the chunk's bytes in `range`. `total`: the chunk's length. `proof`: subtree hashes beside the range, in the
    /// order in which [`crate::chunk_tree`] merges them; empty for a whole chunk.
    Bytes {
        range: ByteRange,
        total: u32,
        proof: Vec<[u8; 32]>,
    },
    Identity {
        cluster: ClusterId,
        node: NodeId,
        address: Address,
    },
    Joined {
        map: ClusterMap,
    },
    Pong {
        sent: Time,
        epoch: Epoch,
        stored: u64,
        chunks: u64,
        memory: u64,
        resident: u64,
        /// Bytes of chunks, with all that keeping them takes, that it has room for.
        room: u64,
        scrubbed: Scrubbed,
    },
    /// The log is applied up to there, with what was announced.
    Copied {
        applied: u64,
    },
    Audited {
        verdicts: Vec<Verdict>,
    },
    /// `cluster`: the one that the node belongs to, 0 for none.
    Mustered {
        cluster: ClusterId,
        allegiance: Allegiance,
    },
    Checked(Checked),
}

/// Where a node stands while a cluster is being formed from a fixed list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allegiance {
    /// It belongs to no cluster. `peers`: the list that it was started with, sorted; empty if with none.
    None { peers: Vec<Address> },
    /// It has joined a cluster that, as far as it knows, is still being formed by this founder.
    Forming { founder: NodeId },
    /// It belongs to a cluster that was formed.
    Formed,
}

/// Rights that the session has from this answer on, in addition to those it has already. A client that knows a higher term discards it.
///
/// What an answer tells may be kept only as far as the same answer grants it, whatever the session has already: attributes under `READ`
/// of the inode, an entry or its absence under `NAMES` of the directory. An answer without the grant was given while a change was on its
/// way, or repeats what was answered long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub ino: InodeId,
    pub rights: Rights,
}

/// What a session must forget before somebody else's change or look goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Recall {
    /// Afterwards the session has at most `keep` on the inode. `WRITE` goes back through the log, once all that was written is committed.
    Inode { ino: InodeId, keep: Rights },
    /// The name changes: forget it, and the directory's listing and attributes (its `READ`); `NAMES` stays.
    Name { directory: InodeId, name: Name },
}

/// What the namespace says about an upload that a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Referenced, under this live instance: file the bytes under it.
    Live(Instance),
    /// The session may still commit it.
    Pending,
    /// Nobody will ever name it: delete.
    Garbage,
}

/// A message that wants no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// Leader to a session, on the link that it dialled: obey, then send `Request::Recalled`. Said again until it is obeyed, so it may come
    /// twice. Answers that were given before it on the same link are older than it.
    Recall { term: Term, number: u64, items: Vec<Recall> },
    /// Leader to a session: space is short, give back what is reserved and not needed.
    SpaceShort,
    /// One Raft message in the project's own form.
    Raft(RaftMessage),
    /// A slice of a namespace snapshot on its way to `to`; the bytes are the payload. Bulk lane.
    Snapshot { id: u64, index: u64, term: Term, sequence: u32, last: bool },
    /// How far the receiver of a snapshot is: slices below `next` have arrived. Paces the sender.
    SnapshotProgress { id: u64, next: u32 },
    /// The newest cluster map. Leader to members and to clients with sessions.
    Map(ClusterMap),
    /// The cluster stops now.
    Stop,
    /// Leader to a client: a lock that this owner waits for may be free, ask again. At best effort: clients ask by themselves now and then.
    LockFree { ino: InodeId, kind: LockKind, key: u64 },
}

/// Kinds of Raft messages that peers may send each other; anything else is refused by having no form here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftKind {
    Append,
    AppendResponse,
    Vote,
    VoteResponse,
    PreVote,
    PreVoteResponse,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    Snapshot,
    Unreachable,
}

/// A Raft log entry as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftEntry {
    pub term: u64,
    pub index: u64,
    /// A change of the voters (protobuf-free form in `data`) instead of a command.
    pub configuration: bool,
    pub data: Bytes,
    pub context: Bytes,
}

/// A Raft message as it travels. Sender and receiver come from the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    pub kind: RaftKind,
    pub term: u64,
    pub log_term: u64,
    pub index: u64,
    pub commit: u64,
    pub commit_term: u64,
    pub reject: bool,
    pub reject_hint: u64,
    pub request_snapshot: u64,
    pub priority: i64,
    pub entries: Vec<RaftEntry>,
    /// Opaque heartbeat context of the Raft library.
    pub context: Bytes,
    /// Sender's clock when it sent; a follower echoes the newest it has seen from the leader of this term. Leadership is proven by
    /// a majority's echoes, hence by send time, hence safely across suspension of either side.
    pub sent: Time,
    /// The echo; 0 if none.
    pub echo: Time,
}

/// What a node has done since its start to find copies that went bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Chunks that were hashed again, and their bytes; each counts as often as it was.
    pub chunks: u64,
    pub bytes: u64,
    /// Times that the walk has passed all chunks.
    pub cycles: u64,
    /// Copies that did not match their hash and were dropped, whoever found them.
    pub corrupt: u64,
}

/// How a node sees one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    pub member: Member,
    pub voter: bool,
    pub leader: bool,
    /// Bytes of chunks stored, as last reported.
    pub stored: u64,
    pub chunks: u64,
    /// Chunks that the namespace records on it.
    pub recorded: u64,
    /// Resident memory of the process, bytes.
    pub resident: u64,
    pub scrubbed: Scrubbed,
    /// Milliseconds since the leader last heard of it; `None` when unknown to the answering node.
    pub silent_ms: Option<u64>,
}

/// `dfs status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub epoch: Epoch,
    pub term: Term,
    pub leader: Option<NodeId>,
    /// Whether the answer comes from the leader (then the numbers below are whole).
    pub from_leader: bool,
    pub members: Vec<MemberReport>,
    pub degraded: Option<String>,
    pub applied: u64,
    pub inodes: u64,
    pub sessions: Vec<SessionId>,
    /// Distinct bytes referenced, once per chunk, before replication.
    pub referenced_bytes: u64,
    pub referenced_chunks: u64,
    pub namespace_bytes: u64,
    pub replicas: u8,
    /// Voters of the namespace by its configuration, the dead included.
    pub voters: usize,
    pub repair: RepairReport,
    pub standing: Standing,
}

/// What decides whether the cluster can go on, and with whose copy of the tree, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Sets of voters, by id: of each a majority must agree. Two while the voters are being changed.
    pub quorums: Vec<Vec<NodeId>>,
    /// The last entry of this node's log, by term and index; (0, 0) if it has no copy of the tree.
    pub log: (Term, u64),
    /// Milliseconds since it last heard a leader; 0 from one.
    pub leaderless_ms: u64,
    /// The clusters whose tree this one has gone on with, oldest first.
    pub lineage: Vec<ClusterId>,
}

/// How far the cluster is from having every copy where it should be, as the answering node's last walk over all chunks found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Whether there was a whole walk since the cluster map last changed; if not, nothing below says anything.
    pub known: bool,
    /// Chunks with fewer replicas than promised, and bytes of the copies to be made.
    pub weak_chunks: u64,
    pub weak_bytes: u64,
    /// Chunks that are to move, and bytes of those copies.
    pub misplaced_chunks: u64,
    pub misplaced_bytes: u64,
    /// Chunks that no living node holds.
    pub lost_chunks: u64,
    /// At the present pace; `None` when nothing is left, or nothing moves.
    pub seconds_left: Option<u64>,
}
