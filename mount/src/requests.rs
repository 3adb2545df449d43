//! What the kernel asks of the file system and what it is answered, decoded: no FUSE types, no reply objects.
//!
//! Owns the vocabulary between the FUSE shell and [`crate::fs::Fs`]. A name is raw bytes here; it is checked where it is used.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs::locks::{LockMode, LockRange};
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, InodeId};
use dfs::wire::namespace::{AllocateMode, DirectoryEntry, NewKind, RenameMode, SetAttributes, SetLock, Sought, Space};
use dfs::xattr::XattrCondition;

/// Who asks, as the kernel tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// Name of an open file or directory, as it is given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Open flags that matter here; the kernel has checked the access mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    pub truncate: bool,
    /// Only of `Create`: an existing name is an error.
    pub exclusive: bool,
    pub write: bool,
    /// The kernel keeps no pages of what goes through this handle. Asked for by O_DIRECT. Also where its pages would be of no use or
    /// wrong: with O_APPEND it puts the bytes where it believes the end to be, and nothing is read through O_WRONLY.
    pub direct: bool,
}

impl OpenMode {
    /// Reads the bits of open(2).
    pub fn of(flags: i32) -> Self {
        OpenMode {
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            direct: flags & (libc::O_APPEND | libc::O_DIRECT) != 0 || flags & libc::O_ACCMODE == libc::O_WRONLY,
        }
    }
}

/// How a write came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// write(2) at the offset.
    At,
    /// write(2) on a descriptor opened with O_APPEND: the offset is what the kernel believes to be the end.
    Append,
    /// Pages of a shared mapping: always at the offset, and not in the writer's name.
    Mapped,
}

/// One request of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Lookup {
        parent: InodeId,
        name: Vec<u8>,
    },
    GetAttributes {
        ino: InodeId,
    },
    /// Attributes for the kernel itself, which is about to use pages of the inode; no program sees them.
    Refresh {
        ino: InodeId,
    },
    SetAttributes {
        ino: InodeId,
        set: SetAttributes,
    },
    ReadLink {
        ino: InodeId,
    },
    Make {
        parent: InodeId,
        name: Vec<u8>,
        kind: NewKind,
        mode: u16,
        umask: u16,
    },
    Unlink {
        parent: InodeId,
        name: Vec<u8>,
    },
    RemoveDirectory {
        parent: InodeId,
        name: Vec<u8>,
    },
    Rename {
        from_parent: InodeId,
        from_name: Vec<u8>,
        to_parent: InodeId,
        to_name: Vec<u8>,
        mode: RenameMode,
    },
    Link {
        ino: InodeId,
        parent: InodeId,
        name: Vec<u8>,
    },
    Open {
        ino: InodeId,
        mode: OpenMode,
    },
    Create {
        parent: InodeId,
        name: Vec<u8>,
        permissions: u16,
        umask: u16,
        mode: OpenMode,
    },
    Read {
        ino: InodeId,
        handle: Handle,
        range: ByteRange,
    },
    Write {
        ino: InodeId,
        handle: Handle,
        offset: u64,
        bytes: Bytes,
        kind: WriteKind,
        /// To be safe when it is answered: O_SYNC or O_DSYNC, of the descriptor or of this call.
        sync: bool,
    },
    /// fsync of a file or a directory.
    Sync {
        ino: InodeId,
        /// The open file, if it is one.
        handle: Option<Handle>,
        directory: bool,
    },
    Release {
        handle: Handle,
    },
    /// close(2) of a descriptor by the process that the kernel calls `owner`.
    Flush {
        ino: InodeId,
        handle: Handle,
        owner: u64,
    },
    SetLock {
        ino: InodeId,
        handle: Handle,
        lock: SetLock,
    },
    /// F_GETLK; without a mode, about the owner's own locks.
    TestLock {
        ino: InodeId,
        key: u64,
        range: LockRange,
        mode: Option<LockMode>,
    },
    OpenDirectory {
        ino: InodeId,
    },
    /// Entries from the position `offset` on, which is 0 or was given with an entry.
    ReadDirectory {
        handle: Handle,
        offset: u64,
        plus: bool,
    },
    ReleaseDirectory {
        handle: Handle,
    },
    Space,
    /// fallocate(2).
    Allocate {
        ino: InodeId,
        handle: Handle,
        range: ByteRange,
        mode: AllocateMode,
    },
    /// SEEK_DATA and SEEK_HOLE.
    Seek {
        ino: InodeId,
        handle: Handle,
        offset: u64,
        what: Sought,
    },
    /// copy_file_range(2); may do a part.
    Copy {
        from: (InodeId, Handle),
        from_offset: u64,
        to: (InodeId, Handle),
        to_offset: u64,
        length: u64,
    },
    /// Value of an extended attribute.
    Xattr {
        ino: InodeId,
        name: Vec<u8>,
    },
    Xattrs {
        ino: InodeId,
    },
    SetXattr {
        ino: InodeId,
        new: NewXattr,
    },
    RemoveXattr {
        ino: InodeId,
        name: Vec<u8>,
    },
}

/// An extended attribute to be set.
#[derive(Clone, Debug, PartialEq)]
pub struct NewXattr {
    pub name: Vec<u8>,
    pub value: Bytes,
    pub condition: XattrCondition,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Error(Status),
    Done,
    Entry(Attributes),
    /// Lookup: the directory is there, the name is not.
    Absent,
    Attributes(Attributes),
    Target(Vec<u8>),
    Opened(Handle),
    Created(Handle, Attributes),
    Bytes(Bytes),
    Written(u32),
    Listing(Listing),
    Space(Space),
    /// TestLock: range, mode and process of the lock that was found.
    Lock(Option<(LockRange, LockMode, u32)>),
    /// Where the data or hole is.
    Sought(u64),
    Xattr(Bytes),
    /// Names, each with a NUL behind it.
    Xattrs(Bytes),
}

/// What the kernel may keep of a reply without asking again. Nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The name, there or absent.
    pub entry: Duration,
    pub attributes: Duration,
    /// Of what is opened.
    pub content: Content,
    /// One for each entry of a listing with attributes, from its start on: names and attributes alike.
    pub lines: Vec<Duration>,
}

/// What the kernel may keep of the content of what it opens: a file's bytes, a directory's listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Nothing: each read and write comes here.
    #[default]
    Direct,
    /// What it reads from now on.
    Fresh,
    /// Also what it has.
    Kept,
}

/// Entries of a directory from some position on; the kernel takes as many as fit its buffer and asks again from there.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// Whether the attributes are wanted too (readdirplus).
    pub plus: bool,
    /// The position that was asked for.
    pub offset: u64,
    /// The directory itself.
    pub directory: Attributes,
    /// A batch of entries in cookie order; those before `start` lie before the position.
    pub entries: Arc<Vec<DirectoryEntry>>,
    pub start: usize,
}

/// One line of a listing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'a> {
    pub name: &'a [u8],
    /// Number and kind are always true; the rest only if the entry is [`Line::current`].
    pub attributes: Attributes,
    pub current: bool,
    /// Where to go on after this entry.
    pub next: u64,
    /// `.` and `..`, which the kernel does not count as lookups.
    pub dot: bool,
}

/// Positions 1 and 2 lie behind `.` and `..`; behind an entry lies its cookie plus this.
pub const POSITION_SHIFT: u64 = 2;

impl Listing {
    /// The lines in order.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let here = Line { name: b".", attributes: self.directory, current: true, next: 1, dot: true };
        let parent = Attributes { ino: self.directory.parent, ..self.directory };
        let above = Line { name: b"..", attributes: parent, current: true, next: POSITION_SHIFT, dot: true };
        let dots = [here, above].into_iter().skip(self.offset.min(POSITION_SHIFT) as usize);
        dots.chain(self.entries[self.start..].iter().map(|entry| Line {
            name: entry.name.as_bytes(),
            attributes: entry.attributes,
            current: entry.current,
            next: entry.cookie.0.saturating_add(POSITION_SHIFT),
            dot: false,
        }))
    }
}
