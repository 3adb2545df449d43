//! Inodes: what is stored of a file, directory, symbolic link or special file besides names and content.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{Attributes, FileKind, InodeId, Timestamp};
use dfs::wire::namespace::{LayoutVersion, NewKind, SetAttributes, SetTime};
use dfs::xattr::XattrFlags;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

pub(super) const SET_USER_ID: u16 = 0o4000;
pub(super) const SET_GROUP_ID: u16 = 0o2000;
/// What a cut takes; the same on every build, since it decides what fits.
const CUT_BYTES: u64 = 24;
const _: () = assert!(size_of::<Cut>() <= CUT_BYTES as usize);
const GROUP_EXECUTE: u16 = 0o0010;
const MODE_BITS: u16 = 0o7777;
/// What `stat` shows as the size of a directory.
const DIRECTORY_BYTES: u64 = 4096;

/// A timestamp in 12 bytes instead of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp([u32; 3]);

impl From<Timestamp> for Stamp {
    fn from(time: Timestamp) -> Self {
        Stamp([(time.seconds as u64 >> 32) as u32, time.seconds as u32, time.nanos])
    }
}

impl From<Stamp> for Timestamp {
    fn from(stamp: Stamp) -> Self {
        Timestamp { seconds: (u64::from(stamp.0[0]) << 32 | u64::from(stamp.0[1])) as i64, nanos: stamp.0[2] }
    }
}

/// One inode. Kept small: a million empty files are a million of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inode {
    pub version: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub uid: u32,
    pub gid: u32,
    /// Names; for a directory 2 plus its subdirectories. 0 makes it an orphan.
    pub links: u32,
    pub mode: u16,
    /// Index of its extended attributes.
    pub xattrs: XattrFlags,
    pub body: Body,
}

/// What depends on the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    File(File),
    Directory(Directory),
    Symlink(Box<[u8]>),
    Special { kind: FileKind, rdev: u32 },
}

/// A regular file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    pub size: u64,
    /// Units of 512 bytes of all its slots, hidden ones included.
    pub blocks: u64,
    pub data_version: u64,
    /// Grows with every change of where bytes are; slots take their version and birth from it.
    pub layout: u64,
    /// Truncations whose slots are not all freed yet; `from` grows with `generation`.
    pub cuts: Box<[Cut]>,
}

/// A truncation still being worked off: slots at or after `from` born at or before `generation` read as holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cut {
    pub from: u64,
    pub generation: u64,
    /// No slot below this one is hidden by this cut any more: where trimming goes on.
    pub next: u64,
}

/// A directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub parent: InodeId,
    /// The last cookie given out.
    pub cookie: u64,
    pub entries: u64,
}

impl File {
    /// Whether a truncation hides the slot.
    pub fn hides(&self, index: u64, born: u64) -> bool {
        self.cuts.iter().any(|cut| index >= cut.from && born <= cut.generation)
    }

    pub fn layout_version(&self) -> LayoutVersion {
        LayoutVersion { data: self.data_version, layout: self.layout }
    }
}

impl Inode {
    /// A new inode with no name yet; directories begin with their two links.
    pub fn new(kind: NewKind, parent: InodeId, mode: u16, (uid, gid): (u32, u32), now: Timestamp) -> Self {
        let body = match kind {
            NewKind::File => Body::File(File::default()),
            NewKind::Directory => Body::Directory(Directory { parent, ..Directory::default() }),
            NewKind::Symlink { target } => Body::Symlink(target.into()),
            NewKind::Fifo => Body::Special { kind: FileKind::Fifo, rdev: 0 },
            NewKind::Socket => Body::Special { kind: FileKind::Socket, rdev: 0 },
            NewKind::CharDevice { rdev } => Body::Special { kind: FileKind::CharDevice, rdev },
            NewKind::BlockDevice { rdev } => Body::Special { kind: FileKind::BlockDevice, rdev },
        };
        let links = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        let now = now.into();
        let mode = mode & MODE_BITS;
        Inode { version: 1, atime: now, mtime: now, ctime: now, uid, gid, links, mode, xattrs: XattrFlags::default(), body }
    }

    pub fn kind(&self) -> FileKind {
        match &self.body {
            Body::File(_) => FileKind::File,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Special { kind, .. } => *kind,
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    pub fn file(&self) -> Option<&File> {
        if let Body::File(file) = &self.body { Some(file) } else { None }
    }

    pub fn file_mut(&mut self) -> Option<&mut File> {
        if let Body::File(file) = &mut self.body { Some(file) } else { None }
    }

    /// Replaces what is stored of a regular file.
    pub fn set_file(&mut self, new: File) {
        if let Body::File(file) = &mut self.body {
            *file = new;
        }
    }

    pub fn directory(&self) -> Option<&Directory> {
        if let Body::Directory(directory) = &self.body { Some(directory) } else { None }
    }

    pub fn directory_mut(&mut self) -> Option<&mut Directory> {
        if let Body::Directory(directory) = &mut self.body { Some(directory) } else { None }
    }

    pub fn has_cuts(&self) -> bool {
        self.file().is_some_and(|file| !file.cuts.is_empty())
    }

    pub fn attributes(&self, ino: InodeId) -> Attributes {
        let (size, blocks, data_version) = match &self.body {
            // What is cut off no longer shows, although it is still to be freed.
            Body::File(file) if !file.cuts.is_empty() => (file.size, file.blocks.min(file.size.div_ceil(512)), file.data_version),
            Body::File(file) => (file.size, file.blocks, file.data_version),
            Body::Directory(_) => (DIRECTORY_BYTES, 0, 0),
            Body::Symlink(target) => (target.len() as u64, 0, 0),
            Body::Special { .. } => (0, 0, 0),
        };
        Attributes {
            ino,
            kind: self.kind(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links,
            size,
            blocks,
            atime: self.atime.into(),
            mtime: self.mtime.into(),
            ctime: self.ctime.into(),
            rdev: if let Body::Special { rdev, .. } = self.body { rdev } else { 0 },
            version: self.version,
            data_version,
            parent: self.directory().map_or(InodeId(0), |directory| directory.parent),
            xattrs: self.xattrs,
        }
    }

    /// The times after a write now, or after one that was made a while ago and could not be told then.
    pub fn date_write(&mut self, written: Option<Timestamp>, now: Timestamp) {
        let ctime: Timestamp = self.ctime.into();
        // Not before the last change, by whatever clock that was; a modification time that was set into the future ends with a write.
        let time = written.map_or(now, |written| written.max(ctime));
        (self.mtime, self.ctime) = (time.into(), time.into());
    }

    /// What chown, truncate and write by others than root take away.
    pub fn kill_privileges(&mut self) {
        if self.is_directory() {
            return;
        }
        self.mode &= !SET_USER_ID;
        if self.mode & GROUP_EXECUTE != 0 {
            self.mode &= !SET_GROUP_ID;
        }
    }

    /// Everything of `set` but the size, which the caller has dealt with.
    pub fn set_attributes(&mut self, set: &SetAttributes, now: Timestamp) {
        if set.kill_privileges {
            self.kill_privileges();
        }
        if set.kill_setgid && !self.is_directory() {
            self.mode &= !SET_GROUP_ID;
        }
        if let Some(mode) = set.mode {
            self.mode = mode & MODE_BITS;
        }
        self.uid = set.uid.unwrap_or(self.uid);
        self.gid = set.gid.unwrap_or(self.gid);
        let stamp = |time: SetTime| Stamp::from(if let SetTime::At(time) = time { time } else { now });
        self.atime = set.atime.map_or(self.atime, stamp);
        let mtime = set.mtime.or(set.size.map(|_| SetTime::Now));
        self.mtime = mtime.map_or(self.mtime, stamp);
        self.ctime = stamp(set.ctime.unwrap_or(SetTime::Now));
        self.version += 1;
    }

    pub fn digest(&self, ino: InodeId) -> u64 {
        let time = |digest: Digest, Stamp([a, b, c]): Stamp| digest.word(u64::from(a) << 32 | u64::from(b)).word(u64::from(c));
        let mut digest = Digest::new(1).word(ino.0).word(self.version);
        digest = time(time(time(digest, self.atime), self.mtime), self.ctime);
        digest = digest.word(u64::from(self.uid) << 32 | u64::from(self.gid));
        digest = digest.word(u64::from(self.xattrs.bits()) << 48 | u64::from(self.links) << 16 | u64::from(self.mode));
        match &self.body {
            Body::File(file) => {
                digest = digest.word(0).word(file.size).word(file.blocks).word(file.data_version).word(file.layout);
                file.cuts.iter().fold(digest, |digest, cut| digest.word(cut.from).word(cut.generation).word(cut.next)).end()
            }
            Body::Directory(directory) => digest.word(1).word(directory.parent.0).word(directory.cookie).word(directory.entries).end(),
            Body::Symlink(target) => digest.word(2).bytes(target).end(),
            Body::Special { kind, rdev } => digest.word(3).word(*kind as u64).word(u64::from(*rdev)).end(),
        }
    }

    /// Memory that the record takes, about.
    pub fn weight(&self) -> u64 {
        const RECORD: u64 = 176;
        RECORD
            + match &self.body {
                Body::Symlink(target) => target.len() as u64 + 16,
                Body::File(file) => CUT_BYTES * file.cuts.len() as u64,
                _ => 0,
            }
    }
}

/// Checks what a peer asks to be set, for an inode of that kind.
pub(super) fn check_set(set: &SetAttributes, kind: FileKind) -> Result<(), Status> {
    let times = [set.atime, set.mtime, set.ctime];
    if times.iter().any(|time| matches!(time, Some(SetTime::At(at)) if at.nanos >= 1_000_000_000)) {
        return Err(Status::InvalidArgument);
    }
    match (set.size, kind) {
        (None, _) => Ok(()),
        (Some(_), FileKind::Directory) => Err(Status::IsDirectory),
        (Some(size), FileKind::File) if size > limits::FILE_BYTES_MAX => Err(Status::FileTooLarge),
        (Some(_), FileKind::File) => Ok(()),
        (Some(_), _) => Err(Status::InvalidArgument),
    }
}
