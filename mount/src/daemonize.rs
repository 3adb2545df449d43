//! Goes to the background: forks before any thread exists, and lets the first process return only when the mount is usable or has failed.
//!
//! The child does all the work and reports over a pipe: nothing yet, then "ready" or one line that says what went wrong.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// The child's end: whoever started the command waits for it.
#[derive(Debug)]
pub struct Reporter {
    pipe: File,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that was started: it ends with this answer.
    Parent(Result<(), String>),
    Child(Reporter),
}

/// Forks. Call it before anything has started a thread. The parent's call returns when the child has reported or ended.
pub fn fork() -> Result<Side, String> {
    let (read, write) = pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    // SAFETY: the process has one thread, so the child may go on as if nothing had happened.
    match unsafe { libc::fork() } {
        -1 => Err(format!("cannot fork: {}", io::Error::last_os_error())),
        0 => {
            drop(read);
            close_inherited(write.as_raw_fd());
            // SAFETY: plain system call; it fails only for a group leader, which a fresh child is not.
            unsafe { libc::setsid() };
            Ok(Side::Child(Reporter { pipe: File::from(write) }))
        }
        _ => {
            drop(write);
            Ok(Side::Parent(await_report(File::from(read))))
        }
    }
}

fn await_report(mut pipe: File) -> Result<(), String> {
    let mut report = Vec::new();
    let read = pipe.read_to_end(&mut report);
    match (read, report.split_first()) {
        (Ok(_), Some((&READY, _))) => Ok(()),
        (Ok(_), Some((&FAILED, line))) => Err(String::from_utf8_lossy(line).into_owned()),
        _ => Err("the background process ended without a word; run it with -f to see why".into()),
    }
}

impl Reporter {
    /// Lets go of terminal and directory, then tells that the mount is usable. An error means that nobody waits any more.
    pub fn ready(mut self) -> io::Result<()> {
        detach()?;
        self.pipe.write_all(&[READY])
    }

    /// Tells in one line what went wrong.
    pub fn failed(mut self, line: &str) {
        let mut report = vec![FAILED];
        report.extend_from_slice(line.as_bytes());
        let _ = self.pipe.write_all(&report);
    }
}

/// Points the standard descriptors to /dev/null and leaves the working directory, so that nothing of the starter is kept busy.
fn detach() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: both descriptors are open.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes what the starter left open, except the standard descriptors and the pipe.
fn close_inherited(keep: i32) {
    let keep = keep as u32;
    // SAFETY: nothing in this process owns a descriptor beyond 2 yet, but the pipe. An old kernel without close_range changes nothing.
    unsafe {
        if keep > 3 {
            libc::syscall(libc::SYS_close_range, 3u32, keep - 1, 0u32);
        }
        libc::syscall(libc::SYS_close_range, keep + 1, u32::MAX, 0u32);
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both; on success they are ours.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
