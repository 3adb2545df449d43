//! Every bound of the system, named once. Const assertions tie them together.

use std::time::Duration;

/// Version of the wire protocol; peers of another version are refused.
pub const PROTOCOL_VERSION: u16 = 3;
/// Longest file name.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symbolic link target.
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest name of an extended attribute, and its longest value.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// All names of one inode, each with a terminating NUL, as listxattr(2) gives them.
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// Most extended attributes of one inode, and most bytes of their names and values.
pub const XATTRS_PER_INODE_MAX: usize = 1000;
pub const XATTR_INODE_BYTES_MAX: usize = 1 << 20;
/// Largest POSIX ACL: the kernel reads them into one page.
pub const ACL_BYTES_MAX: usize = 4096;
/// Largest file: what a signed 64-bit offset less a slot can express.
pub const FILE_BYTES_MAX: u64 = (1 << 62) - 1;
/// Most links of one inode.
pub const LINKS_MAX: u32 = 1_000_000;
/// Largest chunk; also the size of a file's slot.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file that one slot covers.
pub const SLOT_BYTES: u64 = CHUNK_BYTES_MAX as u64;
/// Unit in which part of a chunk can be verified.
pub const VERIFY_GROUP_BYTES: usize = 16 << 10;
/// What a node keeps of each such group to verify it by.
pub const GROUP_HASH_BYTES: u64 = 32;
/// Largest write that rides inside its COMMIT.
pub const INLINE_WRITE_BYTES_MAX: usize = 16 << 10;
/// Largest file content that stays in the inode at rest.
pub const INLINE_REST_BYTES_MAX: usize = 1 << 10;
/// Most extents one slot may list; a writer folds long before.
pub const SLOT_EXTENTS_MAX: usize = 512;
/// Most extents or entries that one command visits.
pub const COMMAND_VISITS_MAX: usize = 1024;
/// Most truncations of one file whose slots are still to be freed.
pub const CUTS_MAX: usize = 8;
/// Neighbouring inline extents are merged up to this size, so that an append copies no more.
pub const INLINE_RUN_BYTES_MAX: usize = 16 << 10;
/// A slot with more extents is offered for folding.
pub const FOLD_EXTENTS_MIN: usize = 8;
/// So is one of which more than this part is inline, if that is more than may rest inline.
pub const FOLD_INLINE_SHARE: u64 = 16;
/// Inline bytes in one answer about a file's layout.
pub const EXTENTS_INLINE_BYTES_MAX: usize = 1 << 20;
/// Uploads of one session that were live and deleted while the session might still name them.
pub const SPENT_UPLOADS_MAX: usize = 1024;
/// Ended sessions, and replaced nodes, whose ids are remembered so that a late message cannot bring them back.
pub const ENDED_IDS_MAX: usize = 1024;
/// Largest record in a namespace snapshot: a slot full of inline bytes, or a cluster map full of members.
pub const SNAPSHOT_RECORD_BYTES_MAX: usize = 4 << 20;
/// Most patches in one write.
pub const WRITE_PATCHES_MAX: usize = 64;
/// Most outcomes remembered per session, hence most unanswered requests of one session.
pub const SESSION_WINDOW: u64 = 1024;
/// Most sessions known at once.
pub const SESSIONS_MAX: usize = 4096;
/// Longest name of a fault zone.
pub const ZONE_BYTES_MAX: usize = 255;
/// Most nodes of one cluster.
pub const NODES_MAX: usize = 1024;
/// Placement groups of a cluster.
pub const PLACEMENT_GROUPS: u32 = 4096;
/// Replicas of a chunk.
pub const REPLICAS_DEFAULT: u8 = 2;
/// Most holders recorded for one chunk.
pub const HOLDERS_MAX: usize = 8;
/// Most entries in one readdir answer.
pub const READDIR_ENTRIES_MAX: usize = 512;
/// Most extents in one answer about a file's layout.
pub const EXTENTS_ANSWER_MAX: usize = 1024;
/// Largest body of a frame on the control lane.
pub const CONTROL_BODY_BYTES_MAX: usize = 4 << 20;
/// Largest body of a frame on the bulk lane (snapshot slices; chunks travel as payload).
pub const BULK_BODY_BYTES_MAX: usize = 4 << 20;
/// Largest payload of a frame.
pub const PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX;
/// Largest record that is kept or replicated as a unit (a log entry); several fit one control frame.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// Most items in one list of uploads (deletion, audit, loss).
pub const UPLOADS_LIST_MAX: usize = 4096;
/// Most names in one path.
pub const PATH_NAMES_MAX: usize = 4096;
/// Bytes read from one connection before others get their turn.
pub const CONNECTION_TURN_BYTES_MAX: usize = 1 << 20;
/// Bytes read from all connections before what they brought is handled.
pub const READ_TURN_BYTES_MAX: usize = 16 << 20;
/// Connections accepted in one turn.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;
/// A connection that is being closed may take this long to deliver what is queued.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// Lines about refused connections written per second; the rest is counted.
pub const REFUSAL_LINES_PER_SECOND_MAX: u32 = 10;
/// Bytes queued towards one peer before reading from it stops.
pub const SEND_QUEUE_BYTES_MAX: usize = 32 << 20;
/// The same towards a client on the control lane: its answers are small, and there may be many clients that read none.
pub const CLIENT_ANSWERS_BYTES_MAX: usize = 1 << 20;
/// Requests read from a client's control connection before others get their turn: hundreds, each of which costs microseconds.
pub const CLIENT_TURN_BYTES_MAX: usize = 64 << 10;
/// Unanswered requests on one link.
pub const LINK_REQUESTS_MAX: usize = 8192;
/// Notices kept for a link that is being dialled; the oldest are dropped first.
pub const LINK_NOTICES_QUEUED_MAX: usize = 256;
/// Peers (address, incarnation, lane) that one process remembers; idle ones are forgotten first.
pub const LINK_PEERS_MAX: usize = 4 * NODES_MAX;
/// Time between two attempts to dial a peer, at first and at most.
pub const REDIAL_DELAY_MIN: Duration = Duration::from_millis(20);
pub const REDIAL_DELAY_MAX: Duration = Duration::from_millis(500);
/// A link that has not given a sign of life for this long while it owes an answer is given up and dialled anew.
pub const LINK_SILENCE_MAX: Duration = Duration::from_secs(3);
/// Connections that have not finished their handshake.
pub const UNAUTHENTICATED_MAX: usize = 64;
/// Connections of one thread, in any state.
pub const CONNECTIONS_MAX: usize = 8192;
/// Time for a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for each of the first dials to a peer, `DIALS_IMPATIENT` of them, since it was last heard.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
pub const DIALS_IMPATIENT: u32 = 4;
/// Time for one frame to arrive once begun, counted anew on progress.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a peer that never reads its answers is dropped.
pub const SEND_STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Leader to node heartbeat, and the Raft heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);
/// Raft tick.
pub const RAFT_TICK: Duration = Duration::from_millis(100);
/// Election timeout, at least; the jitter adds up to as much again.
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);
/// Silence after which a node is declared dead.
pub const NODE_DEAD_AFTER: Duration = Duration::from_millis(2000);
/// A new leader gives the one before it at least this long to answer, however long it had been silent.
pub const PREDECESSOR_PATIENCE: Duration = Duration::from_millis(1500);
/// Silence after which a voter may be replaced by a spare without proof of its death.
pub const VOTER_REPLACE_AFTER: Duration = Duration::from_secs(5);
/// A machine's clock that differs by more from cluster time is wrong: that is said, and nothing else follows.
pub const CLOCK_OFF_MAX: Duration = Duration::from_secs(1);
/// Lease of a session.
pub const SESSION_LEASE: Duration = Duration::from_secs(4);
/// A client renews this often.
pub const SESSION_RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Both sides' allowance for clock rates and scheduling.
pub const SESSION_MARGIN: Duration = Duration::from_millis(500);
/// A node goes on alone, or gives its copy of the tree up for another's, only after this long without a leader.
pub const LEADERLESS_MIN: Duration = Duration::from_secs(3);
/// Clusters whose tree was taken over that are remembered.
pub const LINEAGE_MAX: usize = 16;
/// An expired session keeps what it holds this long unless it stands in the way.
pub const SESSION_COURTESY: Duration = Duration::from_secs(600);
/// Operation deadline, default.
pub const OP_TIMEOUT: Duration = Duration::from_secs(10);
/// A client turns to another node after this long without an answer.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1000);
/// A client asks nodes that are full again for so long before it reports "no space": what was deleted is dropped within it.
pub const FULL_PATIENCE: Duration = Duration::from_millis(3000);
/// How long a loop keeps asking for events without sleeping after the last one.
pub const SPIN_AFTER_ACTIVITY: Duration = Duration::from_micros(200);
/// A deleted chunk stays readable this long for readers on their way.
pub const DELETE_GRACE: Duration = Duration::from_millis(300);
/// A client without a leader asks again after this long, at first and at most.
pub const CLIENT_BACKOFF_MIN: Duration = Duration::from_millis(10);
pub const CLIENT_BACKOFF_MAX: Duration = Duration::from_millis(200);
/// Chunk cache of a client, default.
pub const CLIENT_CACHE_BYTES_DEFAULT: usize = 256 << 20;
/// What a run of cached bytes takes beside them.
pub const CLIENT_CACHE_RUN_BYTES: usize = 384;
/// Unanswered calls of one client.
pub const CLIENT_CALLS_MAX: usize = 8192;
/// Bytes of unanswered writes of one client.
pub const CLIENT_WRITE_BYTES_MAX: usize = 256 << 20;
/// Bytes of chunks that one client has on their way to nodes.
pub const CLIENT_UPLOAD_BYTES_MAX: usize = 16 << 20;
/// Bytes on their way to a client beyond which it reads nothing ahead.
pub const CLIENT_READ_AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Chunks that a sequential reader is ahead.
pub const CLIENT_READ_AHEAD_CHUNKS: u64 = 4;
/// Longest read in one call.
pub const CLIENT_READ_BYTES_MAX: u64 = 64 << 20;
/// Files whose layout a client remembers.
pub const CLIENT_LAYOUTS_MAX: usize = 1 << 14;
/// Layouts, and names with their overhead, take this part of a client's cache each, and at most so much.
pub const CLIENT_TABLE_SHARE: usize = 8;
pub const CLIENT_TABLE_BYTES_MAX: usize = 32 << 20;
/// Uploads whose hash a client remembers, to link instead of sending them again.
pub const CLIENT_UPLOADS_REMEMBERED: usize = 4096;
/// Slots for which a client counts its small writes, and slots that wait to be folded by it.
pub const CLIENT_FOLDS_MAX: usize = 4096;
/// A client folds a slot after this many separate small writes, or this many bytes of them.
pub const FOLD_AFTER_WRITES: u32 = 64;
pub const FOLD_AFTER_BYTES: u64 = 256 << 10;
/// A slot that rests with too many inline bytes is folded once it was left alone for this long; by readers after twice that.
pub const FOLD_REST_AFTER: Duration = Duration::from_secs(2);
/// Slots that a client remembers to fold at rest; what is beyond is left to whoever reads it.
pub const FOLD_REST_SLOTS_MAX: usize = 1 << 16;
/// Time between two folds at rest, while nobody waits for the client and while somebody does.
pub const FOLD_PACE_IDLE: Duration = Duration::from_millis(1);
pub const FOLD_PACE_BUSY: Duration = Duration::from_millis(20);
/// Slots that one command of a copy gives to folding at rest, if it copied inline bytes; others are left to whoever reads them.
pub const FOLDS_NOTED_PER_COPY_MAX: usize = 16;
/// Folds of one client that are under way.
pub const FOLDS_RUNNING_MAX: usize = 4;
/// A client that was told that there is no room for inline content sends chunks for this long without trying.
pub const INLINE_FULL_PAUSE: Duration = Duration::from_secs(5);
/// Most chunks that one write commits.
pub const WRITE_CHUNKS_MAX: usize = 16;
/// Run of zeros that a large write turns into a hole.
pub const HOLE_BYTES_MIN: usize = 64 << 10;
/// Extents that one answer of `locate` lists.
pub const LOCATE_EXTENTS_MAX: usize = 1 << 18;
/// Memory that a chunk is charged for beside its bytes: map entries.
pub const CHUNK_OVERHEAD_BYTES: u64 = 256;
/// Memory that each upload of a chunk is charged for.
pub const INSTANCE_OVERHEAD_BYTES: u64 = 128;
/// What a node keeps of its memory for its own working: its program, the Raft log, the allocator's tables, half-used pages, and what is under way.
/// So much, and this part of it.
pub const OWN_MEMORY_BYTES: u64 = 24 << 20;
pub const OWN_MEMORY_SHARE: u64 = 32;
/// A node takes chunks of clients until what it lends is exceeded by this part of it: what was accepted must find its place although
/// records that nobody reserves room for (of outcomes, rights and locks) have come meanwhile.
pub const ROOM_TOLERANCE_SHARE: u64 = 128;
/// Memory that a reserved run of a file is charged for beside what a chunk of its length is: the chunk's record on a voter.
pub const RESERVATION_OVERHEAD_BYTES: u64 = 256;
/// Reserved runs of one slot that a fold leaves alone; where there are more, only those that are too long to be written inline.
pub const FOLD_RESERVATIONS_MAX: usize = 64;
/// What one session may have on one node without having committed it: this part of what the node lends, at least and at most so much. Beyond
/// it the node takes nothing more of the session and is `Busy`. A client that has as much under way as it may, and a whole commit besides, stays below.
pub const UNCOMMITTED_SHARE: u64 = 4;
pub const UNCOMMITTED_BYTES_MIN: u64 = 40 << 20;
pub const UNCOMMITTED_BYTES_MAX: u64 = 256 << 20;
/// Most uploads of one chunk that a node remembers at once; more are refused as `Busy` until an audit has settled some.
pub const INSTANCES_PER_CHUNK_MAX: usize = 4096;
/// Most bad copies that a node keeps in mind until the leader has acknowledged their loss.
pub const LOST_REPORTS_MAX: usize = 65_536;
/// Most uploads in one audit, deletion or loss report.
pub const CHUNK_ITEMS_MAX: usize = 4096;
/// A node asks about a new upload after this time.
pub const AUDIT_FIRST_AFTER: Duration = Duration::from_secs(1);
/// A node asks again about an upload that may still be committed, or that nobody answered for.
pub const AUDIT_RETRY_AFTER: Duration = Duration::from_secs(2);
/// Time in which a node asks once about everything it keeps.
pub const AUDIT_CYCLE: Duration = Duration::from_secs(60);
/// The same after a change of leader, when deletions may have been lost.
pub const AUDIT_CYCLE_HASTY: Duration = Duration::from_secs(4);
/// Between two audit questions of one node, so that a slow walk over many uploads asks in batches.
pub const AUDIT_INTERVAL: Duration = Duration::from_millis(100);
/// Repair: records that one step of the walk over all chunks visits, and the pause after it, so that a thread is never held up.
pub const REPAIR_WALK_VISITS: usize = 1024;
pub const REPAIR_WALK_STEP: Duration = Duration::from_millis(1);
/// Between two walks while something is wanting, and while nothing is.
pub const REPAIR_WALK_AGAIN: Duration = Duration::from_millis(500);
pub const REPAIR_CYCLE: Duration = Duration::from_secs(30);
/// Copies to be made that a node keeps in mind; the next walk finds the rest.
pub const REPAIR_TASKS_MAX: usize = 1 << 16;
/// Copies on their way to one node at once, and what keeping them takes (one more chunk may begin below that).
pub const REPAIR_PULLS_MAX: usize = 64;
pub const REPAIR_PULL_BYTES_MAX: u64 = 8 << 20;
/// A copy that has not arrived by then is asked for elsewhere.
pub const REPAIR_PULL_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes per second that a node moves for repair while clients use it, and after how long without them it may go as fast as it can.
pub const REPAIR_RATE_BUSY: u64 = 64 << 20;
pub const REPAIR_CLIENT_QUIET: Duration = Duration::from_millis(300);
/// A node that was told that a source is busy asks for nothing this long.
pub const REPAIR_BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Copies are announced together: those of this time, and so many may wait to be seen in the log.
pub const REPAIR_ANNOUNCE_AFTER: Duration = Duration::from_millis(20);
pub const REPAIR_ANNOUNCED_MAX: usize = 1 << 14;
/// Copies are moved to where they belong only if this part of the node's memory stays free there; ones that are wanting fill the last byte.
pub const REPAIR_MARGIN_SHARE: u64 = 64;
/// Over this long the pace of repair is measured.
pub const REPAIR_PACE_INTERVAL: Duration = Duration::from_millis(500);
/// Bytes that a node hashes again per second to find copies that have gone bad: about 1 % of the thread at 2 to 3 GB/s, which is what BLAKE3
/// does on one processor of today.
pub const SCRUB_BYTES_PER_SECOND: u64 = 24 << 20;
/// What looking at one chunk costs besides hashing, in bytes of hashing: a turn of the node.
pub const SCRUB_CHUNK_BYTES: u64 = 32 << 10;
/// The scrubber wakes an idle node at most this often, and then works as long as it may for that time.
pub const SCRUB_INTERVAL: Duration = Duration::from_millis(250);
/// A small store is walked through slower: once in this time.
pub const SCRUB_CYCLE_MIN: Duration = Duration::from_secs(60);
/// Flaws that `dfs fsck` lists, and copies, chunks, uploads and files of each kind that it keeps in mind.
pub const FSCK_FLAWS_MAX: usize = 1000;
pub const FSCK_ITEMS_MAX: usize = 1 << 20;
/// Chunks of which a node notes that references to them came or went, for a check that is under way; where there are more, what was
/// open is counted again.
pub const FSCK_TOUCHED_MAX: usize = 1 << 16;
/// Walks over all tables before it gives up on what keeps changing.
pub const FSCK_WALKS_MAX: u32 = 6;
/// Uploads that nobody will name for a moment are no finding: what is deleted waits for readers on their way.
pub const FSCK_GARBAGE_AFTER: Duration = Duration::from_millis(1000);
/// It looks this often whether what is being repaired gets on.
pub const FSCK_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Voters wanted once there are as many nodes, and once there are many.
pub const VOTERS: usize = 3;
pub const VOTERS_MAX: usize = 5;
/// Largest run of log entries in one Raft message, and largest single entry.
pub const RAFT_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Unacknowledged appends to one follower.
pub const RAFT_INFLIGHT_MAX: usize = 256;
/// Proposed but not committed; beyond it a leader is busy.
pub const RAFT_UNCOMMITTED_BYTES_MAX: usize = 64 << 20;
/// The log drops applied entries beyond this; up to four times as much is kept for a follower that is receiving a snapshot.
pub const RAFT_LOG_BYTES_MAX: usize = 32 << 20;
/// It is at most this part of what a node lends, and at least so much.
pub const RAFT_LOG_MEMORY_SHARE: u64 = 64;
pub const RAFT_LOG_BYTES_MIN: usize = 8 << 20;
/// The same in entries.
pub const RAFT_LOG_ENTRIES_MAX: usize = 1 << 16;
/// A follower at most this far behind counts as caught up.
pub const RAFT_CAUGHT_UP_ENTRIES: u64 = 256;
/// Clients and nodes that wait for a command to be applied.
pub const NODE_PROPOSALS_MAX: usize = 1 << 16;
/// Reads that wait for proof of leadership.
pub const NODE_READS_MAX: usize = 1 << 14;
/// A node that was not scheduled for this long judges nobody's silence.
pub const NODE_PAUSE_MIN: Duration = Duration::from_millis(700);
/// A leader gives up one heartbeat after this long, and sends the next.
pub const PING_TIMEOUT: Duration = Duration::from_millis(600);
/// Between two rounds of asking for a leader.
pub const JOIN_RETRY: Duration = Duration::from_millis(200);
/// A node that waits for a cluster to be formed says why again after this long.
pub const FORMING_SAY_INTERVAL: Duration = Duration::from_secs(10);
/// A joining node waits this long for the vote that is wanting, then serves without.
pub const VOTE_WAIT_MAX: Duration = Duration::from_secs(8);
/// A leader looks at all that there is to do this often, or when something changed.
pub const DUTY_INTERVAL: Duration = Duration::from_millis(100);
/// A leader proposes a command of its own again if it was not applied by then.
pub const DUTY_RETRY: Duration = Duration::from_secs(1);
/// An inode without a name is not reaped before this long after it lost its last one: who looked the name up just before may still open it.
pub const REAP_GRACE: Duration = Duration::from_millis(400);
/// Inodes that enjoy that grace at once; the others are reaped as soon as nobody holds them.
pub const SPARED_MAX: usize = 16_384;
/// Unlinked or truncated files in one command that frees part of them.
pub const REAP_BATCH_MAX: usize = 64;
/// Uploads to be deleted that a leader keeps in mind; the rest is found by audits.
pub const DELETIONS_MAX: usize = 1 << 20;
/// A deletion is sent this often, this far apart, before it is left to audits.
pub const DELETE_ATTEMPTS_MAX: u32 = 3;
pub const DELETE_RETRY: Duration = Duration::from_millis(500);
/// The least that a voter gives to the namespace.
pub const NAMESPACE_BYTES_MIN: u64 = 64 << 20;
/// One slice of a namespace snapshot, and how many may be on their way.
pub const SNAPSHOT_SLICE_BYTES: usize = 256 << 10;
pub const SNAPSHOT_WINDOW: u32 = 8;
/// A snapshot of which nothing arrives for this long is begun anew.
pub const SNAPSHOT_STALL_MAX: Duration = Duration::from_secs(3);
/// A node that leaves hands over for at most this long.
pub const LEAVE_TIME_MAX: Duration = Duration::from_secs(30);
/// What a stopping node said last is given this long to arrive.
pub const STOP_GRACE: Duration = Duration::from_millis(200);
/// Bytes of a mount's writes that are handed over by the kernel and not yet answered.
pub const MOUNT_WRITE_BYTES_MAX: usize = 64 << 20;
/// Requests that the kernel has handed over to a mount and that are not yet answered.
pub const MOUNT_REQUESTS_MAX: usize = 2048;
/// Background requests (readahead, asynchronous I/O) that the kernel keeps in flight towards a mount.
pub const MOUNT_BACKGROUND_MAX: u16 = 64;
/// Locks of one inode, and of one session in all.
pub const LOCKS_PER_INODE_MAX: usize = 4096;
pub const LOCKS_PER_SESSION_MAX: u64 = 1 << 16;
/// Requests for locks that one client has waiting.
pub const CLIENT_LOCK_WAITS_MAX: usize = 4096;
/// A client that waits for a lock asks again after this long, if the leader does not tell it to earlier.
pub const LOCK_POLL: Duration = Duration::from_millis(1000);
/// A leader forgets a waiter that has not asked for this long.
pub const LOCK_WAITER_SILENCE: Duration = Duration::from_millis(3500);
/// A waiter steps aside for those that came before it for this long at most; longer, it could wait for who waits for it.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(1000);
/// The same waiter is not told again that its lock may be free before this time has passed.
pub const LOCK_NOTICE_INTERVAL: Duration = Duration::from_millis(200);
/// Waiters that a leader keeps in order; those beyond just ask again.
pub const LOCK_WAITERS_MAX: usize = 1 << 14;
/// Who was interrupted while a lock request of his was on its way gets its outcome if it comes within this time.
pub const LOCK_INTERRUPT_GRACE: Duration = Duration::from_millis(400);
/// A mount looks this often for signals to the processes that wait for locks.
pub const SIGNAL_LOOK_INTERVAL: Duration = Duration::from_millis(150);
/// Nodes inside one mount process.
pub const EMBEDDED_NODES_MAX: usize = 64;

/// Most inodes in one list of what a session has.
pub const RECLAIM_ITEMS_MAX: usize = 1024;
/// Most grants in one answer: each entry of a listing, and the directory.
pub const GRANTS_MAX: usize = READDIR_ENTRIES_MAX + 8;
/// Most items in one recall.
pub const RECALL_ITEMS_MAX: usize = 64;
/// Inodes on which one session may have `READ` or `NAMES`; a client keeps fewer, the leader grants no more.
pub const SESSION_RIGHTS_MAX: usize = 1 << 17;
pub const CLIENT_RIGHTS_MAX: usize = 1 << 16;
/// Rights that a client gives up in one go when it has too many.
pub const CLIENT_GIVE_UP_MAX: usize = 256;
/// Lines of one listing that a client keeps.
pub const CLIENT_LISTING_LINES_MAX: usize = 1 << 14;
/// Operations that a client gave up without an answer and keeps apart until it is sure that they will not happen.
pub const CLIENT_GHOSTS_MAX: usize = 1024;
/// Recalls that a client obeys at a time; the leader says the others again.
pub const CLIENT_RECALLS_MAX: usize = 1024;
/// Closed files that a client gives back to the leader at a time.
pub const CLIENT_RELEASES_MAX: usize = 64;
/// Files on which one session may have `WRITE`.
pub const SESSION_WRITERS_MAX: usize = 1 << 14;
/// Operations of clients between their arrival at the leader and their application, and queries that wait for somebody's writes.
pub const GATE_OPS_MAX: usize = 1 << 15;
/// A recall that is not obeyed is said again this often.
pub const RECALL_RESEND: Duration = Duration::from_millis(300);
/// A session that says that it is committing what was recalled is waited for so long after it last did commit some of it. Who waits ends
/// long before; this bounds how long a session that only says so keeps a file from all others.
pub const FLUSH_PATIENCE: Duration = Duration::from_secs(60);
/// A session that was told to forget so many names of a directory without asking for any loses the right to the others.
pub const NAME_NOTICES_MAX: u32 = 8;
/// Rights on an inode that were recalled so often within the window are not given again for a while.
pub const COOL_RECALLS: u32 = 3;
pub const COOL_WINDOW: Duration = Duration::from_secs(2);
pub const COOL_TIME: Duration = Duration::from_secs(1);
/// Before somebody is told that there is no space, those who have reserved some are asked to give back what they do not need, this often
/// and for so long.
pub const SPACE_ASK_INTERVAL: Duration = Duration::from_millis(300);
pub const SPACE_ASK_TIME: Duration = Duration::from_millis(1500);
/// How often after that, while refusals go on.
pub const SPACE_ASK_AGAIN: Duration = Duration::from_secs(5);
/// Inodes whose recalls are counted at once; on others rights are given however contended.
pub const HEATS_MAX: usize = 1 << 14;

/// Memory for bytes that a client has accepted and not committed: a part of its cache, and at most so much.
pub const BEHIND_CACHE_SHARE: usize = 4;
pub const BEHIND_BYTES_MAX: usize = 64 << 20;
/// Longest write that is accepted before it is committed.
pub const BEHIND_WRITE_BYTES_MAX: usize = 4 << 20;
/// Bytes are committed when they are that old, or were left alone so long; and tried again after this long.
pub const BEHIND_AGE: Duration = Duration::from_millis(1000);
pub const BEHIND_IDLE: Duration = Duration::from_millis(500);
pub const BEHIND_RETRY: Duration = Duration::from_millis(500);
/// How often it is asked, after that time each, whether a file that lost its name is gone before its bytes are committed.
pub const UNNAMED_ASKS_MAX: u32 = 3;
/// What one run of such bytes may cost in the cluster besides its bytes and their hashes: records of its chunk, of its upload, of what it
/// splits, and that each of them begins another group.
pub const BEHIND_RUN_CHARGE: u64 = 1024;
/// A file with so many whole slots is committed up to them.
pub const BEHIND_SLOTS: usize = 4;
/// Files whose bytes are being committed at a time because they are old enough. Those that somebody waits for come on top.
pub const BEHIND_FLUSHES_MAX: usize = 64;
/// Runs up to this size share a chunk.
pub const BEHIND_PACK_BYTES_MAX: usize = 64 << 10;
/// Where no two nodes have room for a chunk, what was accepted is committed in chunks of this part of it, and so on, down to this size.
pub const CROWDED_CHUNK_SHARE: usize = 8;
pub const CROWDED_CHUNK_BYTES_MIN: usize = 16 << 10;
/// A client whose chunks found no room folds nothing for this long that it was only advised to fold.
pub const CROWDED_PAUSE: Duration = Duration::from_secs(10);
/// Room that a client has reserved ahead of what it has accepted: at first, and at most.
pub const RESERVE_STEP_MIN: u64 = 1 << 20;
pub const RESERVE_STEP_MAX: u64 = 64 << 20;
/// What is left for changes of what is there, which take some room until they are folded: this part of all space, and at most so much. Twice as
/// much cannot be reserved ahead, so that names can still be made.
pub const CHANGES_SHARE: u64 = 64;
pub const CHANGES_BYTES_MAX: u64 = 16 << 20;
/// A client that was given less than it wanted, or was asked to give back, asks for more after this long.
pub const RESERVE_PAUSE: Duration = Duration::from_millis(2000);
/// A client that has nothing to commit gives back what it has reserved after this long.
pub const RESERVE_IDLE: Duration = Duration::from_secs(5);
/// A client asks for `WRITE` on a file at its second write within this time.
pub const ACQUIRE_WINDOW: Duration = Duration::from_secs(2);
/// Files of which a client counts such writes.
pub const ACQUIRE_WISHES_MAX: usize = 4096;
/// Files with `WRITE` and nothing to commit, beyond which a client gives the right back; and how many at a time.
pub const IDLE_WRITERS_MAX: usize = 1024;
pub const IDLE_WRITERS_YIELDED: usize = 64;

/// Lifetimes that the kernel is given, at most: of names, and of attributes.
pub const KERNEL_NAMES_TTL: Duration = Duration::from_secs(1);
pub const KERNEL_ATTRIBUTES_TTL: Duration = Duration::from_secs(5);
/// A mount waits so long for the kernel to forget by way of its locks, then it uses means that take none.
pub const RECALL_PATIENCE: Duration = Duration::from_millis(20);
/// A reader that was answered is taken to be still on its way for so long, unless it does something else, and answers wait so long for others.
pub const READER_PATIENCE: Duration = Duration::from_millis(5);
/// A reply to a write of pages waits so long for readers: the kernel keeps those pages locked, which readers may wait for.
pub const PAGED_WRITE_PATIENCE: Duration = Duration::from_millis(1);
/// What the kernel was told is taken to have arrived after this long, even if whoever asked has done nothing since.
pub const OVERTAKING_MAX: Duration = Duration::from_millis(20);
/// A notice about an inode that the kernel was given and does not have is sent again after this long.
pub const NOTICE_RETRY: Duration = Duration::from_millis(1);
/// Notices to the kernel that have not returned, beyond which only those are sent that take no lock.
pub const MOUNT_NOTICES_MAX: usize = 1024;
/// Suspect pages that nobody asks about are dropped after this long if they could not be at once: mappings would show them for ever.
pub const SUSPECT_PAGES_MAX_AGE: Duration = Duration::from_millis(50);

const _: () =
    assert!(OP_TIMEOUT.as_millis() >= 2 * (SESSION_LEASE.as_millis() + SESSION_MARGIN.as_millis()) + ELECTION_TIMEOUT.as_millis());
const _: () = assert!(VOTERS % 2 == 1 && VOTERS_MAX == VOTERS + 2);
// An upload may fail at its deadline, and be tried again.
const _: () = assert!(FLUSH_PATIENCE.as_millis() > 2 * OP_TIMEOUT.as_millis());
const _: () = assert!(SESSION_RENEW_INTERVAL.as_millis() * 3 < SESSION_LEASE.as_millis());
const _: () = assert!(HEARTBEAT_INTERVAL.as_millis() * 4 < ELECTION_TIMEOUT.as_millis());
const _: () = assert!(SNAPSHOT_RECORD_BYTES_MAX > 2 * SLOT_BYTES as usize);
const _: () = assert!(FOLD_EXTENTS_MIN < SLOT_EXTENTS_MAX && SLOT_EXTENTS_MAX <= COMMAND_VISITS_MAX);
const _: () = assert!(SLOT_BYTES / FOLD_INLINE_SHARE >= INLINE_WRITE_BYTES_MAX as u64);
const _: () = assert!(INLINE_REST_BYTES_MAX <= INLINE_WRITE_BYTES_MAX);
const _: () = assert!(WRITE_PATCHES_MAX <= COMMAND_VISITS_MAX);
const _: () = assert!(XATTRS_PER_INODE_MAX <= COMMAND_VISITS_MAX && XATTR_VALUE_BYTES_MAX < XATTR_INODE_BYTES_MAX);
const _: () = assert!(4 * XATTR_VALUE_BYTES_MAX < RECORD_BYTES_MAX && 4 * XATTR_LIST_BYTES_MAX < CONTROL_BODY_BYTES_MAX);
const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(VERIFY_GROUP_BYTES));
const _: () = assert!(2 * RECORD_BYTES_MAX <= CONTROL_BODY_BYTES_MAX);
const _: () = assert!(CLIENT_TURN_BYTES_MAX < CONNECTION_TURN_BYTES_MAX && CONNECTION_TURN_BYTES_MAX <= READ_TURN_BYTES_MAX);
const _: () = assert!(CLIENT_ANSWERS_BYTES_MAX < SEND_QUEUE_BYTES_MAX);
const _: () = assert!(2 * RAFT_MESSAGE_BYTES_MAX < CONTROL_BODY_BYTES_MAX);
const _: () = assert!(RAFT_MESSAGE_BYTES_MAX < RAFT_UNCOMMITTED_BYTES_MAX);
const _: () = assert!(RAFT_LOG_BYTES_MIN >= 4 * RECORD_BYTES_MAX && RAFT_LOG_BYTES_MIN <= RAFT_LOG_BYTES_MAX);
const _: () = assert!(SEND_QUEUE_BYTES_MAX > 2 * (PAYLOAD_BYTES_MAX + BULK_BODY_BYTES_MAX));
const _: () = assert!(SNAPSHOT_SLICE_BYTES <= PAYLOAD_BYTES_MAX && SNAPSHOT_WINDOW as usize <= LINK_NOTICES_QUEUED_MAX);
const _: () = assert!(RAFT_TICK.as_millis() * 2 < NODE_PAUSE_MIN.as_millis() && NODE_PAUSE_MIN.as_millis() < NODE_DEAD_AFTER.as_millis());
const _: () = assert!(NODE_DEAD_AFTER.as_millis() < VOTER_REPLACE_AFTER.as_millis());
// Beyond the longest wait before an election: who lives elects somebody within it, as a rule.
const _: () = assert!(LEADERLESS_MIN.as_millis() > 2 * ELECTION_TIMEOUT.as_millis());
const _: () = assert!(CLIENT_GIVE_UP_MAX <= RECLAIM_ITEMS_MAX && RECLAIM_ITEMS_MAX < CLIENT_RIGHTS_MAX);
const _: () = assert!(CLIENT_RIGHTS_MAX < SESSION_RIGHTS_MAX && SESSION_WRITERS_MAX <= CLIENT_RIGHTS_MAX);
const _: () = assert!(SLOT_BYTES / INLINE_WRITE_BYTES_MAX as u64 <= FOLD_RESERVATIONS_MAX as u64);
const _: () = assert!(4 * FOLD_RESERVATIONS_MAX <= SLOT_EXTENTS_MAX);
const _: () = assert!(WRITE_CHUNKS_MAX <= WRITE_PATCHES_MAX);
// Uploads begin in the order of their commits: the oldest commit gets all that it needs, and then makes room for the next.
const _: () = assert!(UNCOMMITTED_BYTES_MIN > (CLIENT_UPLOAD_BYTES_MAX + WRITE_CHUNKS_MAX * CHUNK_BYTES_MAX) as u64);
const _: () = assert!(UNCOMMITTED_BYTES_MIN <= UNCOMMITTED_BYTES_MAX);
const _: () = assert!(FOLD_AFTER_WRITES as usize * 4 <= SLOT_EXTENTS_MAX);
const _: () = assert!(SPACE_ASK_TIME.as_millis() < FULL_PATIENCE.as_millis());
const _: () = assert!(LOCK_POLL.as_millis() * 3 < LOCK_WAITER_SILENCE.as_millis());
const _: () = assert!(2 * SIGNAL_LOOK_INTERVAL.as_millis() + LOCK_INTERRUPT_GRACE.as_millis() < 1000);
const _: () = assert!(CLIENT_LOCK_WAITS_MAX < CLIENT_CALLS_MAX);
const _: () = assert!(MOUNT_WRITE_BYTES_MAX >= CHUNK_BYTES_MAX);
const _: () = assert!(BEHIND_WRITE_BYTES_MAX >= 4 * CHUNK_BYTES_MAX && BEHIND_PACK_BYTES_MAX <= CHUNK_BYTES_MAX);
const _: () =
    assert!(BEHIND_RUN_CHARGE >= CHUNK_OVERHEAD_BYTES + INSTANCE_OVERHEAD_BYTES + 2 * RESERVATION_OVERHEAD_BYTES + 3 * GROUP_HASH_BYTES);
// Two steps, so that they are taken within an operation deadline; and the first does not ask for folding.
const _: () = assert!(CHUNK_BYTES_MAX / CROWDED_CHUNK_SHARE / CROWDED_CHUNK_SHARE <= CROWDED_CHUNK_BYTES_MIN);
const _: () = assert!(CROWDED_CHUNK_SHARE <= FOLD_EXTENTS_MIN && SLOT_BYTES as usize / CROWDED_CHUNK_BYTES_MIN < SLOT_EXTENTS_MAX / 4);
const _: () = assert!(2 * (FULL_PATIENCE.as_millis() + BEHIND_RETRY.as_millis()) < OP_TIMEOUT.as_millis());
const _: () = assert!(IDLE_WRITERS_MAX < SESSION_WRITERS_MAX);
const _: () = assert!(SCRUB_BYTES_PER_SECOND * SCRUB_INTERVAL.as_millis() as u64 / 1000 >= CHUNK_BYTES_MAX as u64);
const _: () = assert!(FSCK_GARBAGE_AFTER.as_millis() > DELETE_GRACE.as_millis() + DELETE_RETRY.as_millis());
const _: () = assert!(REAP_GRACE.as_millis() < BEHIND_RETRY.as_millis());
