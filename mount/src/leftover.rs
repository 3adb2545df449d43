//! What an earlier mount left at the mount point: a mount whose process is gone answers ENOTCONN for ever, and is taken away here.
//!
//! Owns the question whether a mount is dead and how it is cleared. Never touches a mount that is served, or one that may be: a connection
//! that the kernel has closed cannot come back, so nothing is lost with it.
#![allow(clippy::disallowed_methods)] // A driver: waits by the clock.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A mount that does not answer so long is alive but stopped or stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// What a mount answers when its root is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The process that served it is gone.
    Dead,
    /// It is served, or something else than a connection is wrong with it.
    Served,
    /// No answer in time.
    Silent,
}

/// Looks at the root of a mount from a child process: one whose process is stopped may never answer, and then whoever asked cannot even
/// be killed. Call it before other threads exist.
pub fn look(point: &Path) -> Found {
    let Ok(path) = CString::new(point.as_os_str().as_bytes()) else { return Found::Served };
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: between fork and _exit the child makes one system call, on memory that was there before.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let failed = libc::stat(path.as_ptr(), status.as_mut_ptr()) != 0;
            libc::_exit((failed && *libc::__errno_location() == libc::ENOTCONN).into());
        }
        child
    };
    if child < 0 {
        return Found::Served;
    }
    let end = Instant::now() + ANSWER_WITHIN;
    loop {
        let mut code = 0;
        // SAFETY: a child of ours that has not been collected, and a place for its code.
        match unsafe { libc::waitpid(child, &mut code, libc::WNOHANG) } {
            0 if Instant::now() < end => std::thread::sleep(POLL),
            0 => {
                // Not waited for: it ends when the mount answers.
                // SAFETY: as above.
                unsafe { libc::kill(child, libc::SIGKILL) };
                return Found::Silent;
            }
            _ if libc::WIFEXITED(code) && libc::WEXITSTATUS(code) == 1 => return Found::Dead,
            _ => return Found::Served,
        }
    }
}

/// Takes the topmost mount away from there, whoever still has something of it open: with a dead connection they get errors anyway.
pub fn clear(point: &Path) -> io::Result<()> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: a NUL-terminated path that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_served() {
        assert_eq!(look(Path::new("/proc")), Found::Served);
        assert_eq!(look(Path::new("/nonexistent/dfs")), Found::Served);
    }
}
