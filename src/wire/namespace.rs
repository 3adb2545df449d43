//! Namespace operations as clients send them: `Op` changes the tree (through the log, exactly once), `Query` reads it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::locks::{LockKind, LockMode, LockRange};
use crate::types::{Attributes, ByteRange, ChunkHash, Cookie, FileKind, InodeId, Instance, Name, NodeId, Rights, Term, Timestamp};
use crate::xattr::{XattrCondition, XattrName};

/// What `Create` makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewKind {
    File,
    Directory,
    Symlink {
        #[serde(with = "crate::types::serde_bytes_vec")]
        target: Vec<u8>,
    },
    Fifo,
    Socket,
    CharDevice {
        rdev: u32,
    },
    BlockDevice {
        rdev: u32,
    },
}

/// What a rename does when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// A new value for a time of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The time of the log entry.
    Now,
    At(Timestamp),
}

/// Attribute changes; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttributes {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<SetTime>,
    /// Clear setuid, and setgid where the group may execute, as the kernel asks on chown, truncate and write by others than root.
    pub kill_privileges: bool,
    /// Clear setgid whatever the group may do, as Linux does when the one who changes the file is not in its group.
    pub kill_setgid: bool,
}

/// Where a patch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    Offset(u64),
    /// The end of the file as `apply` finds it (O_APPEND).
    End,
}

/// Where bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Zeros that occupy nothing.
    Hole,
    /// The bytes themselves.
    Inline(Bytes),
    /// Part of a chunk, beginning at `offset` of it.
    Chunk { hash: ChunkHash, offset: u32 },
}

/// A run of new bytes. A patch may cross slot borders; `apply` splits it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    pub at: WriteAt,
    /// Bytes that the patch covers; for `Inline` the length of its bytes.
    pub length: u64,
    pub source: Source,
}

/// Claim that a chunk was uploaded: the instance, and the nodes that gave a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkClaim {
    pub hash: ChunkHash,
    /// Length of the whole chunk.
    pub length: u32,
    pub instance: Instance,
    /// Distinct incarnations that hold it.
    pub receipts: Vec<NodeId>,
}

/// A change of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes an inode and its entry. `exclusive`: an existing name is an error, else an existing regular file is the answer
    /// (`Replied::Entry.created` tells). `hold`: counts as [`Query::Hold`] by the session. `write`: a file that is made by this entry
    /// gives its `WRITE` right to the session, if that has not too many (`Replied::Entry.writer` tells).
    /// `umask`: bits that the mode loses unless the parent has a default ACL.
    Create {
        parent: InodeId,
        name: Name,
        kind: NewKind,
        mode: u16,
        uid: u32,
        gid: u32,
        exclusive: bool,
        hold: bool,
        umask: u16,
        write: bool,
    },
    Link {
        ino: InodeId,
        parent: InodeId,
        name: Name,
    },
    Unlink {
        parent: InodeId,
        name: Name,
    },
    Rmdir {
        parent: InodeId,
        name: Name,
    },
    Rename {
        from_parent: InodeId,
        from_name: Name,
        to_parent: InodeId,
        to_name: Name,
        mode: RenameMode,
    },
    SetAttributes {
        ino: InodeId,
        set: SetAttributes,
    },
    /// New bytes. Patches are merged in order. Every chunk that a patch names has its claim, or is referenced by the file already.
    Write {
        ino: InodeId,
        patches: Vec<Patch>,
        chunks: Vec<ChunkClaim>,
        kill_privileges: bool,
        behind: Option<Behind>,
    },
    /// Rewrites one slot with the same bytes in fewer extents; `Conflict` if the slot moved since `slot_version`. Changes no data version.
    Fold {
        ino: InodeId,
        slot: u64,
        slot_version: u64,
        patches: Vec<Patch>,
        chunks: Vec<ChunkClaim>,
    },
    /// `drop_setgid`: an access ACL takes setgid away, because its setter is not in the file's group.
    SetXattr {
        ino: InodeId,
        name: XattrName,
        value: Bytes,
        condition: XattrCondition,
        drop_setgid: bool,
    },
    RemoveXattr {
        ino: InodeId,
        name: XattrName,
    },
    /// Gives the session the `WRITE` right on a file, if nobody else has it (`Replied::Acquired`).
    Acquire {
        ino: InodeId,
    },
    /// Gives the `WRITE` right back; everything written under it has been committed. Without effect if the session has not got it.
    Yield {
        ino: InodeId,
    },
    /// Sets the bytes that are reserved for what the session has written and not committed, up to what there is
    /// (`Replied::Reserved`). Commits with `behind` use it up.
    Reserve {
        bytes: u64,
    },
    /// Takes, converts or gives up a lock of the session; refused (`Replied::Lock`) if it is not free. The leader answers one that may
    /// wait without the log while it is not free, and tells the session (`Notice::LockFree`) when to ask again.
    SetLock {
        ino: InodeId,
        lock: SetLock,
    },
    /// fallocate(2): does a part of the range from its beginning and tells how much (`Replied::Ranged`), so that each command is bounded.
    /// `Busy`: the range's first slot has too many extents, fold it.
    Allocate {
        ino: InodeId,
        range: ByteRange,
        mode: AllocateMode,
        kill_privileges: bool,
    },
    /// Names the source's bytes in the target: no data moves. Does a part of the range from its beginning and tells how much
    /// (`Replied::Ranged`), nothing at the source's end. `Busy`: the first slot of the target's range has too many extents, fold it.
    /// `NotSupported`: no room for inline bytes, copy them by reading and writing.
    Copy {
        from: InodeId,
        from_offset: u64,
        to: InodeId,
        to_offset: u64,
        length: u64,
        kill_privileges: bool,
    },
}

/// Of bytes that were written a while ago under the `WRITE` right: refused with `RightLost` if the session has it no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// When they were written, in cluster time as the session knows it: the inode's new mtime and ctime, unless its ctime is later.
    pub written: Timestamp,
    /// The right goes back with this entry.
    pub yields: bool,
}

/// What is asked of a lock. The owner is named by kind and key within the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLock {
    pub kind: LockKind,
    pub key: u64,
    pub range: LockRange,
    /// `None` gives the range up.
    pub mode: Option<LockMode>,
    pub wait: LockWait,
    /// The process that asks, for F_GETLK.
    pub pid: u32,
}

/// What whoever asks for a lock does if it is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockWait {
    /// Goes without.
    Never,
    /// Waits, unless that closes a circle of owners that wait for each other: `Deadlock`.
    Checked,
    /// Waits in any case.
    Unchecked,
}

/// Whether a lock was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    Granted,
    Refused,
}

/// What `Allocate` does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Holes are reserved: writes there find their space. `keep_size`: the file does not grow to the range's end.
    Reserve { keep_size: bool },
    /// All of it reads as zeros and is reserved.
    Zero { keep_size: bool },
    /// All of it becomes a hole; the size stays.
    Punch,
}

/// What `Seek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sought {
    Data,
    Hole,
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replied {
    Done,
    /// Create and Link: the entry's inode.
    Entry {
        attributes: Attributes,
        created: bool,
        /// Whether the session has the `WRITE` right on what it created.
        writer: bool,
    },
    /// SetAttributes, SetXattr, RemoveXattr.
    Attributes(Attributes),
    /// Write: where the first patch went, and the inode after it.
    Written {
        offset: u64,
        attributes: Attributes,
    },
    /// Acquire.
    Acquired {
        granted: bool,
        attributes: Attributes,
    },
    /// Reserve: what is reserved now.
    Reserved {
        bytes: u64,
    },
    /// SetLock.
    Lock(Grant),
    /// Allocate and Copy: bytes done from the beginning of the range, how many of them are inline copies, and the inode after it.
    Ranged {
        done: u64,
        inline: u64,
        attributes: Attributes,
    },
}

/// A read of the tree, answered by the leader under proven leadership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    Lookup {
        parent: InodeId,
        name: Name,
    },
    /// Resolves a whole path of names from the root without following symbolic links (for the command line).
    Resolve {
        path: Vec<Name>,
    },
    Attributes {
        ino: InodeId,
    },
    ReadLink {
        ino: InodeId,
    },
    /// Entries after the cookie, at most `limit`, in cookie order; each with its attributes.
    ReadDirectory {
        ino: InodeId,
        after: Cookie,
        limit: u32,
    },
    /// Layout of a byte range. With `known` equal to the data version and layout version, the answer is `Unchanged`.
    Extents {
        ino: InodeId,
        range: ByteRange,
        known: Option<LayoutVersion>,
    },
    /// The session has the inode open from now on: it outlives its last name until `Release` or the session's end.
    /// `sequence` orders it against releases of the same inode.
    Hold {
        ino: InodeId,
        sequence: u64,
    },
    /// The session closed the inode.
    Release {
        ino: InodeId,
        sequence: u64,
    },
    /// After a change of leader: what the session has open, and its `READ` and `NAMES` rights. `last` ends the list; the leader then
    /// knows the session whole. It is for the leader of `term` only: the list is of when it was made, and another leader to which the
    /// request comes in the end is to be told of what was given since, too.
    Reclaim {
        term: Term,
        held: Vec<InodeId>,
        rights: Vec<(InodeId, Rights)>,
        last: bool,
    },
    /// Sizes for `statfs`.
    Space,
    /// A lock that keeps the session's owner from having the range in that mode; without a mode, a lock that it has there itself.
    TestLock {
        ino: InodeId,
        kind: LockKind,
        key: u64,
        range: LockRange,
        mode: Option<LockMode>,
    },
    /// The session's owner no longer waits for that lock.
    LeaveLockQueue {
        ino: InodeId,
        kind: LockKind,
        key: u64,
        range: LockRange,
    },
    /// The next data or hole at or after the offset; the end of the file is a hole. `NoSuchDeviceAddress` if there is none.
    Seek {
        ino: InodeId,
        offset: u64,
        what: Sought,
    },
    /// Value of an extended attribute.
    Xattr {
        ino: InodeId,
        name: XattrName,
    },
    /// Names of all extended attributes.
    Xattrs {
        ino: InodeId,
    },
    /// Answered when all that sessions had accepted and not committed is committed. `told`: they have been asked already; clients say
    /// false.
    Settle {
        told: bool,
    },
}

/// Version of where a file's bytes are: data version, and a counter that folding and repair advance too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutVersion {
    pub data: u64,
    pub layout: u64,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    pub name: Name,
    pub cookie: Cookie,
    pub attributes: Attributes,
    /// False if another session may have changed the attributes since (it has the `WRITE` right): number and kind are true, the rest
    /// must not be shown.
    pub current: bool,
}

/// A located run of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Position in the file.
    pub offset: u64,
    pub length: u64,
    pub source: Source,
}

/// A chunk that an answer names: its length, and the nodes that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkPlace {
    pub hash: ChunkHash,
    pub length: u32,
    pub instance: Instance,
    pub holders: Vec<NodeId>,
}

/// Numbers for `statfs`, in bytes after replication, and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub capacity: u64,
    pub used: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_available: u64,
}

/// What a query answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// Lookup: the directory is there, the name is not.
    Absent,
    Attributes(Attributes),
    Target(#[serde(with = "crate::types::serde_bytes_vec")] Vec<u8>),
    Directory {
        entries: Vec<DirectoryEntry>,
        end: bool,
        attributes: Attributes,
    },
    /// Extents cover the asked range up to the file's size, without gaps; fewer than asked if `truncated`.
    /// `fold`: slots in the range that would gain by folding, with their versions.
    Extents {
        attributes: Attributes,
        version: LayoutVersion,
        extents: Vec<Extent>,
        chunks: Vec<ChunkPlace>,
        truncated: bool,
        fold: Vec<(u64, u64)>,
    },
    Unchanged {
        attributes: Attributes,
    },
    Space(Space),
    /// TestLock: range, mode and process of the lock that was found.
    Lock(Option<(LockRange, LockMode, u32)>),
    /// Seek: where it is if `found`, else how far was looked in vain.
    Sought {
        offset: u64,
        found: bool,
    },
    Xattr(Bytes),
    /// As listxattr(2) gives them: each with a NUL behind it.
    Xattrs(Bytes),
}

impl NewKind {
    /// The kind of the inode that it makes.
    pub fn file_kind(&self) -> FileKind {
        match self {
            NewKind::File => FileKind::File,
            NewKind::Directory => FileKind::Directory,
            NewKind::Symlink { .. } => FileKind::Symlink,
            NewKind::Fifo => FileKind::Fifo,
            NewKind::Socket => FileKind::Socket,
            NewKind::CharDevice { .. } => FileKind::CharDevice,
            NewKind::BlockDevice { .. } => FileKind::BlockDevice,
        }
    }
}
