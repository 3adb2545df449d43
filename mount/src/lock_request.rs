//! Locks as FUSE carries them, and the one thing about them that fuser does not hand on: whether flock(2) or fcntl(2) asks.
#![allow(clippy::disallowed_methods)] // Part of the FUSE shell.

use dfs::locks::{LockKind, LockMode, LockRange};
use dfs::wire::namespace::LockWait;

use crate::waiters;

/// `FUSE_LK_FLOCK`.
const LOCK_IS_FLOCK: u32 = 1;
/// Size of `struct fuse_in_header`.
const HEADER_BYTES: usize = 40;

/// The beginning of `struct fuse_in_header`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    opcode: u32,
    unique: u64,
}

/// `struct fuse_lk_in`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Body {
    handle: u64,
    owner: u64,
    start: u64,
    end: u64,
    mode: i32,
    pid: u32,
    flags: u32,
    padding: u32,
}

/// What fuser hands on of a request to set a lock.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    pub handle: u64,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub mode: i32,
    pub pid: u32,
}

/// Which family of locks the request is about. fuser 0.18.0 drops the flag that says so, but the request that it shows lies in the buffer in
/// which the kernel put it, and its body follows right behind. `None` if what lies there is not the request that was decoded.
pub fn kind_of(request: &fuser::Request, decoded: &Decoded) -> Option<LockKind> {
    const _: () = assert!(size_of::<Body>() == 48 && size_of::<fuser::Request>() == HEADER_BYTES);
    // SAFETY: a `Request` is a `struct fuse_in_header` (its size is checked above), which begins with these fields and has their alignment.
    let header = unsafe { std::ptr::from_ref(request).cast::<Header>().read() };
    if header.unique != request.unique().0 || (header.length as usize) < HEADER_BYTES + size_of::<Body>() {
        return None;
    }
    let address = std::ptr::from_ref(request).expose_provenance() + HEADER_BYTES;
    // SAFETY: fuser decodes requests where read(2) put them, in one buffer that outlives the call and to which read(2) was given a pointer.
    // The kernel's length, checked above, says that the body is there; all bit patterns are valid, and header and body are multiples of eight
    // bytes behind an aligned beginning. Should fuser ever copy the header elsewhere, the comparison below fails.
    let body = unsafe { std::ptr::with_exposed_provenance::<Body>(address).read() };
    let Decoded { handle, owner, start, end, mode, pid } = *decoded;
    let expected = Body { handle, owner, start, end, mode, pid, ..body };
    if body != expected {
        return None;
    }
    Some(if body.flags & LOCK_IS_FLOCK != 0 { LockKind::Flock } else { LockKind::Fcntl })
}

/// The mode that `F_RDLCK` and `F_WRLCK` name; `F_UNLCK` is none.
pub fn mode_of(mode: i32) -> Option<LockMode> {
    match mode {
        libc::F_RDLCK => Some(LockMode::Shared),
        libc::F_WRLCK => Some(LockMode::Exclusive),
        _ => None,
    }
}

/// The other way round.
pub fn number_of(mode: Option<LockMode>) -> i32 {
    match mode {
        Some(LockMode::Shared) => libc::F_RDLCK,
        Some(LockMode::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    }
}

/// The range as the kernel gives it; `None` for one that it cannot mean.
pub fn range_of(start: u64, end: u64) -> Option<LockRange> {
    let range = LockRange { first: start, last: end.min(LockRange::LAST) };
    range.is_well_formed().then_some(range)
}

/// How that thread waits.
pub fn wait_of(kind: LockKind, sleep: bool, thread: u32) -> LockWait {
    match kind {
        _ if !sleep => LockWait::Never,
        LockKind::Flock => LockWait::Unchecked,
        LockKind::Fcntl if waiters::waits_for_open_file(thread) => LockWait::Unchecked,
        LockKind::Fcntl => LockWait::Checked,
    }
}
