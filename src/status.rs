//! Every way a request can fail, numbered for the wire and mapped to an errno for the kernel.
//!
//! One table: the number is stable, the errno is what a POSIX caller sees, the text says what happened.

use serde::{Deserialize, Serialize};

macro_rules! statuses {
    ($($name:ident = $number:literal, $errno:ident, $text:literal;)*) => {
        /// Why a request failed. Numbers are stable: they travel, and scripts may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "u16", try_from = "u16")]
        #[repr(u16)]
        pub enum Status {
            $(#[doc = $text] $name = $number,)*
        }

        impl Status {
            /// All statuses, for documentation and tests.
            pub const ALL: &'static [Status] = &[$(Status::$name),*];

            /// The Linux errno that a system call shows for it.
            pub fn errno(self) -> i32 {
                match self { $(Status::$name => libc::$errno,)* }
            }

            /// Symbolic name of that errno, as in `ENOENT`.
            pub fn errno_name(self) -> &'static str {
                match self { $(Status::$name => stringify!($errno),)* }
            }

            /// One sentence for people.
            pub fn text(self) -> &'static str {
                match self { $(Status::$name => $text,)* }
            }
        }
    };
}

statuses! {
    // What a program did; the answer is final.
    NotFound = 1, ENOENT, "no such file or directory";
    Exists = 2, EEXIST, "it exists already";
    NotDirectory = 3, ENOTDIR, "not a directory";
    IsDirectory = 4, EISDIR, "is a directory";
    NotEmpty = 5, ENOTEMPTY, "directory not empty";
    InvalidArgument = 6, EINVAL, "invalid argument";
    NameTooLong = 7, ENAMETOOLONG, "file name longer than 255 bytes";
    FileTooLarge = 8, EFBIG, "beyond the maximum file size";
    TooManyLinks = 9, EMLINK, "too many links";
    NotPermitted = 10, EPERM, "operation not permitted";
    AccessDenied = 11, EACCES, "permission denied";
    ReadOnly = 12, EROFS, "read-only file system";
    NoSpace = 13, ENOSPC, "no space left in the cluster";
    NotSupported = 14, EOPNOTSUPP, "not supported";
    Stale = 15, ESTALE, "the file is gone";
    BadHandle = 16, EBADF, "bad file handle";
    NoData = 17, ENODATA, "no such attribute";
    Range = 18, ERANGE, "result does not fit the buffer";
    TooLong = 19, E2BIG, "value too long";
    Loop = 20, ELOOP, "too many symbolic links";
    Interrupted = 21, EINTR, "interrupted";
    Deadlock = 22, EDEADLK, "would deadlock";
    WouldBlock = 23, EAGAIN, "would block";
    NoSuchDeviceAddress = 24, ENXIO, "no data there";
    NotYet = 25, ENOSYS, "not yet built";
    NoLocks = 26, ENOLCK, "no more locks";
    TooManyAttributes = 27, ENOSPC, "no more extended attributes of this file";
    // What befell the cluster; some are retried below the caller until the deadline.
    Busy = 40, EBUSY, "a bounded queue is full; try again";
    TimedOut = 41, ETIMEDOUT, "no answer within the operation deadline";
    Disconnected = 42, EIO, "the connection was lost";
    NotLeader = 43, EIO, "this node does not lead the namespace";
    StaleMap = 44, EIO, "the cluster map of the request is out of date";
    WrongCluster = 45, EIO, "that node belongs to another cluster";
    WrongNode = 46, EIO, "another incarnation answers at that address";
    SessionGone = 47, EIO, "the session was ended or evicted";
    MissingReceipts = 48, EIO, "too few living nodes hold the chunk";
    UnknownChunk = 49, EIO, "this node does not hold the chunk";
    Full = 50, ENOSPC, "the node's memory budget is used up";
    Corrupt = 51, EIO, "bytes do not match their hash";
    Unavailable = 52, EIO, "no majority of namespace voters, or no holder of the chunk, can be reached";
    Malformed = 53, EPROTO, "a message could not be decoded";
    WrongVersion = 54, EPROTO, "the peer speaks another protocol version";
    NotMember = 55, EIO, "the node is not a member of a cluster yet";
    ShuttingDown = 56, ESHUTDOWN, "shutting down";
    Degraded = 57, EIO, "too few nodes";
    Conflict = 58, EIO, "the state named by the request has moved";
    TooOld = 59, EIO, "a duplicate of a request whose outcome is already forgotten";
    Reclaiming = 61, ENOSPC, "no space yet: what was deleted is being freed";
    RightLost = 62, EIO, "the right to write was lost while bytes waited to be committed";
    Internal = 60, EIO, "internal error";
}

impl From<Status> for u16 {
    fn from(status: Status) -> u16 {
        status.number()
    }
}

impl TryFrom<u16> for Status {
    type Error = &'static str;

    fn try_from(number: u16) -> Result<Status, Self::Error> {
        Status::ALL.iter().copied().find(|status| status.number() == number).ok_or("no status has that number")
    }
}

impl Status {
    /// The stable number.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Whether the same request may succeed elsewhere or later without the caller changing anything.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Status::Busy
                | Status::TimedOut
                | Status::Disconnected
                | Status::NotLeader
                | Status::StaleMap
                | Status::WrongNode
                | Status::Unavailable
                | Status::NotMember
                | Status::ShuttingDown
                | Status::MissingReceipts
        )
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique() {
        let mut numbers: Vec<u16> = Status::ALL.iter().map(|status| status.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), Status::ALL.len());
    }
}
