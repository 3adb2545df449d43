//! From the project's types to the kernel's: statuses to errnos, attributes and times to FUSE's forms and back.
//!
//! The errno table itself is `dfs::status`; here it only changes its type.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs::status::Status;
use dfs::types::{Attributes, FileKind, InodeId, Timestamp};
use dfs::wire::namespace::{AllocateMode, NewKind, SetTime};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

/// Preferred size of reads and writes, as `stat` tells programs: a slot, so that `cp` and others move whole chunks.
const PREFERRED_BYTES: u32 = dfs::limits::CHUNK_BYTES_MAX as u32;

/// The errno that a caller sees.
pub fn errno(status: Status) -> Errno {
    Errno::from_i32(status.errno())
}

/// Attributes as FUSE carries them.
pub fn file_attributes(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.mode & 0o7777,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: PREFERRED_BYTES,
        flags: 0,
    }
}

/// The kind as FUSE carries it.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What mknod(2) asks for. `None` for a type that cannot be made so.
pub fn new_kind(mode: u32, rdev: u32) -> Option<NewKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => NewKind::File,
        libc::S_IFIFO => NewKind::Fifo,
        libc::S_IFSOCK => NewKind::Socket,
        libc::S_IFCHR => NewKind::CharDevice { rdev },
        libc::S_IFBLK => NewKind::BlockDevice { rdev },
        _ => return None,
    })
}

/// What fallocate(2) asks for. `None` for what is not supported.
pub fn allocate_mode(mode: i32) -> Option<AllocateMode> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(AllocateMode::Reserve { keep_size }),
        libc::FALLOC_FL_ZERO_RANGE => Some(AllocateMode::Zero { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(AllocateMode::Punch),
        _ => None,
    }
}

/// Permission bits of a mode.
pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// An inode number as the kernel names it.
pub fn inode(ino: INodeNo) -> InodeId {
    InodeId(ino.0)
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp_of_request(time)),
    }
}

/// A time of a request. fuser 0.18.0 decodes times before 1970 wrongly: it subtracts the nanoseconds instead of adding them. What it
/// subtracted is known exactly, so the time that was asked for is too.
pub fn timestamp_of_request(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
        Err(error) => {
            let before = error.duration();
            Timestamp { seconds: 0i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

/// A time for the kernel; fuser encodes it rightly.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let second = if time.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    second.and_then(|second| second.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_an_errno_that_the_kernel_accepts() {
        for &status in Status::ALL {
            let code = errno(status).code();
            assert_eq!(code, status.errno());
            assert!((1..4096).contains(&code), "{status:?}");
        }
        assert_eq!(errno(Status::NotFound).code(), libc::ENOENT);
        assert_eq!(errno(Status::TimedOut).code(), libc::ETIMEDOUT);
        assert_eq!(errno(Status::Full).code(), libc::ENOSPC);
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        for (seconds, nanos) in [(0, 0), (1, 5), (1_700_000_000, 999_999_999), (-1, 0), (-2, 800_000_000), (i64::MAX, 0)] {
            let time = system_time(Timestamp { seconds, nanos });
            let expected = if seconds >= 0 {
                UNIX_EPOCH + Duration::new(seconds as u64, nanos)
            } else {
                UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::from_nanos(nanos.into())
            };
            assert_eq!(time, expected);
        }
        // What fuser makes of (-2 s, +800 ms).
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp_of_request(decoded), Timestamp { seconds: -2, nanos: 800_000_000 });
        assert_eq!(timestamp_of_request(UNIX_EPOCH + Duration::new(3, 4)), Timestamp { seconds: 3, nanos: 4 });
    }

    #[test]
    fn nodes_of_every_type() {
        assert_eq!(new_kind(libc::S_IFIFO | 0o644, 0), Some(NewKind::Fifo));
        assert_eq!(new_kind(libc::S_IFCHR, 259), Some(NewKind::CharDevice { rdev: 259 }));
        assert_eq!(new_kind(0o644, 0), Some(NewKind::File));
        assert_eq!(new_kind(libc::S_IFDIR, 0), None);
        assert_eq!(permissions(libc::S_IFREG | 0o4755), 0o4755);
    }
}
