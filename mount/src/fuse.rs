//! The FUSE shell: decodes requests, hands them with their reply objects to the loop thread, and sends the replies from there.
//!
//! Owns nothing of the file system. A FUSE thread only waits when the queue to the loop thread, or the allowance of unanswered requests, is
//! full; what needs no state is answered at once.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dfs::client::driver;
use dfs::limits;
use dfs::locks::{LockMode, LockRange};
use dfs::types::{ByteRange, InodeId};
use dfs::wire::namespace::{LockWait, NewKind, RenameMode, SetAttributes, SetLock, Sought, Space};
use dfs::xattr::{TRUSTED_PREFIX, XattrCondition};
use fuser::*;

use crate::caller::Caller;
use crate::errno::{allocate_mode, errno, file_attributes, file_type, inode, new_kind, permissions, set_time, timestamp_of_request};
use crate::lock_request;
use crate::requests::{Content, Context, Handle, Keep, Listing, NewXattr, OpenMode, Reply, Request as Asked, WriteKind};
use crate::server::Input;

/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// From this version on the kernel takes FUSE_NOTIFY_INC_EPOCH.
const EPOCH_SINCE: Version = Version(7, 44);
/// Unit in which `statfs` counts.
const BLOCK_BYTES: u64 = 4096;

/// A reply object of fuser that waits for its answer.
pub enum Slot {
    Empty(ReplyEmpty),
    Data(ReplyData),
    Entry(ReplyEntry),
    Attributes(ReplyAttr),
    Open {
        slot: ReplyOpen,
        directory: bool,
    },
    Create(ReplyCreate),
    Write(ReplyWrite),
    Space(ReplyStatfs),
    Directory(ReplyDirectory),
    DirectoryPlus(ReplyDirectoryPlus),
    Lock(ReplyLock),
    Seek(ReplyLseek),
    /// With the size of the caller's buffer; 0 asks for the length.
    Xattr(ReplyXattr, u32),
    Xattrs(ReplyXattr, u32, Caller),
}

impl Slot {
    /// Sends the answer. For a listing: how many lines the kernel took.
    pub fn send(self, reply: &Reply, keep: &Keep) -> usize {
        match (self, reply) {
            (Slot::Empty(slot), Reply::Done) => slot.ok(),
            (Slot::Data(slot), Reply::Bytes(bytes)) => slot.data(bytes),
            (Slot::Data(slot), Reply::Target(target)) => slot.data(target),
            (Slot::Entry(slot), Reply::Entry(attributes)) => {
                slot.entry_with_ttls(&keep.attributes, &keep.entry, &file_attributes(attributes), GENERATION);
            }
            (Slot::Entry(slot), Reply::Absent) if keep.entry.is_zero() => slot.error(Errno::ENOENT),
            // Inode number 0: the name is absent, and may be taken to be for so long.
            (Slot::Entry(slot), Reply::Absent) => slot.entry_with_ttls(&Duration::ZERO, &keep.entry, &no_attributes(), GENERATION),
            (Slot::Attributes(slot), Reply::Attributes(attributes)) => slot.attr(&keep.attributes, &file_attributes(attributes)),
            (Slot::Open { slot, directory }, Reply::Opened(handle)) => {
                slot.opened(FileHandle(handle.0), open_flags(directory, keep.content));
            }
            (Slot::Create(slot), Reply::Created(handle, attributes)) => {
                let attributes = file_attributes(attributes);
                let lifetime = keep.entry.min(keep.attributes);
                slot.created(&lifetime, &attributes, GENERATION, FileHandle(handle.0), open_flags(false, keep.content));
            }
            (Slot::Write(slot), Reply::Written(length)) => slot.written(*length),
            (Slot::Space(slot), Reply::Space(space)) => send_space(slot, space),
            (Slot::Directory(slot), Reply::Listing(listing)) => return send_listing(slot, listing),
            (Slot::DirectoryPlus(slot), Reply::Listing(listing)) => return send_listing_plus(slot, listing, &keep.lines),
            (Slot::Lock(slot), Reply::Lock(found)) => send_lock(slot, *found),
            (Slot::Seek(slot), Reply::Sought(offset)) => slot.offset(*offset as i64),
            (Slot::Xattr(slot, size), Reply::Xattr(value)) => send_sized(slot, size, value),
            (Slot::Xattrs(slot, size, caller), Reply::Xattrs(names)) => send_sized(slot, size, &visible(names, caller)),
            (slot, Reply::Error(status)) => slot.fail(errno(*status)),
            (slot, _) => slot.fail(Errno::EIO),
        }
        0
    }

    fn fail(self, errno: Errno) {
        match self {
            Slot::Empty(slot) => slot.error(errno),
            Slot::Data(slot) => slot.error(errno),
            Slot::Entry(slot) => slot.error(errno),
            Slot::Attributes(slot) => slot.error(errno),
            Slot::Open { slot, .. } => slot.error(errno),
            Slot::Create(slot) => slot.error(errno),
            Slot::Write(slot) => slot.error(errno),
            Slot::Space(slot) => slot.error(errno),
            Slot::Directory(slot) => slot.error(errno),
            Slot::DirectoryPlus(slot) => slot.error(errno),
            Slot::Lock(slot) => slot.error(errno),
            Slot::Seek(slot) => slot.error(errno),
            Slot::Xattr(slot, _) | Slot::Xattrs(slot, ..) => slot.error(errno),
        }
    }
}

fn open_flags(directory: bool, content: Content) -> FopenFlags {
    match (content, directory) {
        (Content::Direct, true) | (Content::Fresh, false) => FopenFlags::empty(),
        (Content::Direct, false) => FopenFlags::FOPEN_DIRECT_IO,
        (Content::Fresh, true) => FopenFlags::FOPEN_CACHE_DIR,
        (Content::Kept, false) => FopenFlags::FOPEN_KEEP_CACHE,
        (Content::Kept, true) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// What goes with an absent name: nobody looks at it.
fn no_attributes() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn send_space(slot: ReplyStatfs, space: &Space) {
    let blocks = |bytes: u64| bytes / BLOCK_BYTES;
    let free = space.capacity.saturating_sub(space.used);
    let files = space.inodes.saturating_add(space.inodes_available);
    let (size, name) = (BLOCK_BYTES as u32, limits::NAME_BYTES_MAX as u32);
    slot.statfs(blocks(space.capacity), blocks(free), blocks(space.available), files, space.inodes_available, size, name, size);
}

fn send_lock(slot: ReplyLock, found: Option<(LockRange, LockMode, u32)>) {
    match found {
        Some((range, mode, pid)) => slot.locked(range.first, range.last, lock_request::number_of(Some(mode)), pid),
        None => slot.locked(0, 0, lock_request::number_of(None), 0),
    }
}

/// A value for a buffer of that size, or its length if that is 0.
fn send_sized(slot: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => slot.size(value.len() as u32),
        size if size < value.len() => slot.error(Errno::ERANGE),
        _ => slot.data(value),
    }
}

/// The names that the caller may see. Others that it may not read are shown on local file systems too.
fn visible(names: &Bytes, caller: Caller) -> Bytes {
    let names_of = || names.split_inclusive(|&byte| byte == 0);
    if !names_of().any(|name| name.starts_with(TRUSTED_PREFIX)) || caller.sees_trusted() {
        return names.clone();
    }
    names_of().filter(|name| !name.starts_with(TRUSTED_PREFIX)).flatten().copied().collect()
}

fn send_listing(mut slot: ReplyDirectory, listing: &Listing) -> usize {
    let mut taken = 0;
    for line in listing.lines() {
        let (ino, kind) = (INodeNo(line.attributes.ino.0), file_type(line.attributes.kind));
        if slot.add(ino, line.next, kind, OsStr::from_bytes(line.name)) {
            break;
        }
        taken += 1;
    }
    slot.ok();
    taken
}

fn send_listing_plus(mut slot: ReplyDirectoryPlus, listing: &Listing, lifetimes: &[Duration]) -> usize {
    let mut taken = 0;
    let mut lifetimes = lifetimes.iter();
    for line in listing.lines() {
        let attributes = file_attributes(&line.attributes);
        // fuser gives names and attributes the same lifetime, and an entry its number both times. So attributes that are not current go with
        // none: the kernel asks before it shows them.
        let lifetime = if line.dot { Duration::ZERO } else { lifetimes.next().copied().unwrap_or_default() };
        if slot.add(attributes.ino, line.next, OsStr::from_bytes(line.name), &lifetime, &attributes, GENERATION) {
            break;
        }
        taken += 1;
    }
    slot.ok();
    taken
}

/// Bounds what the kernel has handed over and what is not answered yet: requests, and bytes of writes.
#[derive(Debug, Default)]
struct Allowance {
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: usize,
    bytes: usize,
}

/// The part of the allowance that one request takes until it is answered.
#[derive(Debug)]
pub struct Permit {
    allowance: Arc<Allowance>,
    requests: usize,
    bytes: usize,
}

impl Permit {
    /// For what may wait for others without bound: if it took a place, those that it waits for might find none.
    fn free(allowance: &Arc<Allowance>) -> Self {
        Permit { allowance: allowance.clone(), requests: 0, bytes: 0 }
    }

    fn take(allowance: &Arc<Allowance>, bytes: usize) -> Self {
        let mut used = allowance.used.lock().unwrap_or_else(PoisonError::into_inner);
        while used.requests >= limits::MOUNT_REQUESTS_MAX || (used.bytes > 0 && used.bytes + bytes > limits::MOUNT_WRITE_BYTES_MAX) {
            used = allowance.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        used.requests += 1;
        used.bytes += bytes;
        Permit { allowance: allowance.clone(), requests: 1, bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.allowance.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.requests -= self.requests;
        used.bytes -= self.bytes;
        drop(used);
        self.allowance.freed.notify_one();
    }
}

/// The `Filesystem` that fuser calls.
pub struct Shell {
    server: driver::Handle<Input>,
    allowance: Arc<Allowance>,
}

impl Shell {
    /// A shell that hands everything to that loop thread.
    pub fn new(server: driver::Handle<Input>) -> Self {
        Shell { server, allowance: Arc::default() }
    }

    fn ask(&self, req: &Request, request: Asked, slot: Slot) {
        let permit = Permit::take(&self.allowance, 0);
        self.ask_with(permit, req, request, slot);
    }

    fn ask_with(&self, permit: Permit, req: &Request, request: Asked, slot: Slot) {
        let context = Context { uid: req.uid(), gid: req.gid(), pid: req.pid() };
        // A loop thread that is gone drops the slot, which answers EIO.
        let _ = self.server.send_waiting(Input::Request { context, request, slot, permit });
    }
}

/// What is asked of the kernel, where it has it; each flag on its own, so that an older kernel without one still serves.
const CAPABILITIES: [InitFlags; 15] = [
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Not FUSE_ATOMIC_O_TRUNC: Linux then has a file truncated before it finds that the file is being executed, and must not be.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    // With the umask left to the namespace, which knows whether a default ACL stands in for it.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

#[allow(unused_variables)]
impl Filesystem for Shell {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if let Err(missing) = config.add_capabilities(capability) {
                tracing::info!(?missing, "the kernel lacks a FUSE capability");
            }
        }
        let _ = self.server.send_waiting(Input::Epoch(config.kernel_abi() >= EPOCH_SINCE));
        // Errors name the nearest value that works; these are within what every kernel takes, and smaller is fine too.
        let _ = config.set_max_write(limits::CHUNK_BYTES_MAX as u32);
        if let Err(nearest) = config.set_max_readahead(limits::CHUNK_BYTES_MAX as u32) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(limits::MOUNT_BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(limits::MOUNT_BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.ask(req, Asked::Lookup { parent: inode(parent), name: bytes_of(name) }, Slot::Entry(reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let _ = self.server.send_waiting(Input::Forget(vec![(inode(ino), nlookup)]));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        // stat and fstat never name a handle; a cached read does.
        let ino = inode(ino);
        let request = if fh.is_some() { Asked::Refresh { ino } } else { Asked::GetAttributes { ino } };
        self.ask(req, request, Slot::Attributes(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(|time| dfs::wire::namespace::SetTime::At(timestamp_of_request(time))),
            // Without FUSE_HANDLE_KILLPRIV the kernel itself sends the mode that chown and truncate leave, but for one case: see the
            // translator.
            kill_privileges: false,
            kill_setgid: false,
        };
        self.ask(req, Asked::SetAttributes { ino: inode(ino), set }, Slot::Attributes(reply));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.ask(req, Asked::ReadLink { ino: inode(ino) }, Slot::Data(reply));
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = new_kind(mode, rdev) else { return reply.error(Errno::EINVAL) };
        self.ask(req, make(parent, name, kind, mode, umask), Slot::Entry(reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.ask(req, make(parent, name, NewKind::Directory, mode, umask), Slot::Entry(reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = NewKind::Symlink { target: bytes_of(target.as_os_str()) };
        self.ask(req, make(parent, link_name, kind, 0o777, 0), Slot::Entry(reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(req, Asked::Unlink { parent: inode(parent), name: bytes_of(name) }, Slot::Empty(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(req, Asked::RemoveDirectory { parent: inode(parent), name: bytes_of(name) }, Slot::Empty(reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from_parent, to_parent) = (inode(parent), inode(newparent));
        let (from_name, to_name) = (bytes_of(name), bytes_of(newname));
        self.ask(req, Asked::Rename { from_parent, from_name, to_parent, to_name, mode }, Slot::Empty(reply));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let request = Asked::Link { ino: inode(ino), parent: inode(newparent), name: bytes_of(newname) };
        self.ask(req, request, Slot::Entry(reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.ask(req, Asked::Open { ino: inode(ino), mode: OpenMode::of(flags.0) }, Slot::Open { slot: reply, directory: false });
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let (parent, name, umask) = (inode(parent), bytes_of(name), permissions(umask));
        let request = Asked::Create { parent, name, permissions: permissions(mode), umask, mode: OpenMode::of(flags) };
        self.ask(req, request, Slot::Create(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let range = ByteRange { offset, length: size.into() };
        self.ask(req, Asked::Read { ino: inode(ino), handle: Handle(fh.0), range }, Slot::Data(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kind = if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            WriteKind::Mapped
        } else if flags.0 & libc::O_APPEND != 0 {
            WriteKind::Append
        } else {
            WriteKind::At
        };
        let permit = Permit::take(&self.allowance, data.len());
        // The only copy: the buffer belongs to fuser, which reuses it for the next request.
        let bytes = Bytes::copy_from_slice(data);
        let sync = flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let request = Asked::Write { ino: inode(ino), handle: Handle(fh.0), offset, bytes, kind, sync };
        self.ask_with(permit, req, request, Slot::Write(reply));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        self.ask(req, Asked::Release { handle: Handle(fh.0) }, Slot::Empty(reply));
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let request = Asked::Flush { ino: inode(ino), handle: Handle(fh.0), owner: lock_owner.0 };
        self.ask(req, request, Slot::Empty(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(range) = lock_request::range_of(start, end) else { return reply.error(Errno::EINVAL) };
        let request = Asked::TestLock { ino: inode(ino), key: lock_owner.0, range, mode: lock_request::mode_of(typ) };
        self.ask(req, request, Slot::Lock(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let decoded = lock_request::Decoded { handle: fh.0, owner: lock_owner.0, start, end, mode: typ, pid };
        let (Some(kind), Some(range)) = (lock_request::kind_of(req, &decoded), lock_request::range_of(start, end)) else {
            tracing::error!(?decoded, "a lock request that cannot be read");
            return reply.error(Errno::ENOLCK);
        };
        let mode = lock_request::mode_of(typ);
        let wait = lock_request::wait_of(kind, sleep && mode.is_some(), req.pid());
        let lock = SetLock { kind, key: lock_owner.0, range, mode, wait, pid };
        let request = Asked::SetLock { ino: inode(ino), handle: Handle(fh.0), lock };
        let waits = wait != LockWait::Never;
        let permit = if waits { Permit::free(&self.allowance) } else { Permit::take(&self.allowance, 0) };
        self.ask_with(permit, req, request, Slot::Empty(reply));
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.ask(req, Asked::Sync { ino: inode(ino), handle: Some(Handle(fh.0)), directory: false }, Slot::Empty(reply));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.ask(req, Asked::OpenDirectory { ino: inode(ino) }, Slot::Open { slot: reply, directory: true });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.ask(req, Asked::ReadDirectory { handle: Handle(fh.0), offset, plus: false }, Slot::Directory(reply));
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.ask(req, Asked::ReadDirectory { handle: Handle(fh.0), offset, plus: true }, Slot::DirectoryPlus(reply));
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, flags: OpenFlags, reply: ReplyEmpty) {
        self.ask(req, Asked::ReleaseDirectory { handle: Handle(fh.0) }, Slot::Empty(reply));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.ask(req, Asked::Sync { ino: inode(ino), handle: None, directory: true }, Slot::Empty(reply));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.ask(req, Asked::Space, Slot::Space(reply));
    }

    fn setxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty) {
        let condition = XattrCondition { create: flags & libc::XATTR_CREATE != 0, replace: flags & libc::XATTR_REPLACE != 0 };
        let permit = Permit::take(&self.allowance, value.len());
        let new = NewXattr { name: bytes_of(name), value: Bytes::copy_from_slice(value), condition };
        self.ask_with(permit, req, Asked::SetXattr { ino: inode(ino), new }, Slot::Empty(reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.ask(req, Asked::Xattr { ino: inode(ino), name: bytes_of(name) }, Slot::Xattr(reply, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ask(req, Asked::Xattrs { ino: inode(ino) }, Slot::Xattrs(reply, size, caller(req)));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(req, Asked::RemoveXattr { ino: inode(ino), name: bytes_of(name) }, Slot::Empty(reply));
    }

    // From here on: what is answered without the cluster. The kernel remembers ENOSYS and asks no more; to programs it says what belongs
    // there: ENOTTY for ioctl.
    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, ino: INodeNo, blocksize: u32, idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    #[allow(clippy::too_many_arguments)]
    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(&self, _req: &Request, ino: INodeNo, fh: FileHandle, ph: PollNotifier, events: PollEvents, flags: PollFlags, reply: ReplyPoll) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        // Taking a range out of a file or putting one in is refused, as tmpfs does.
        let Some(mode) = allocate_mode(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let range = ByteRange { offset, length };
        self.ask(req, Asked::Allocate { ino: inode(ino), handle: Handle(fh.0), range, mode }, Slot::Empty(reply));
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Sought::Data,
            libc::SEEK_HOLE => Sought::Hole,
            _ => return reply.error(Errno::EINVAL), // the kernel asks for no other
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.ask(req, Asked::Seek { ino: inode(ino), handle: Handle(fh.0), offset, what }, Slot::Seek(reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((inode(ino_in), Handle(fh_in.0)), (inode(ino_out), Handle(fh_out.0)));
        let request = Asked::Copy { from, from_offset: offset_in, to, to_offset: offset_out, length: len };
        self.ask(req, request, Slot::Write(reply));
    }
}

fn bytes_of(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn make(parent: INodeNo, name: &OsStr, kind: NewKind, mode: u32, umask: u32) -> Asked {
    Asked::Make { parent: InodeId(parent.0), name: bytes_of(name), kind, mode: permissions(mode), umask: permissions(umask) }
}
