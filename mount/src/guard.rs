//! Ends the kernel's side of a mount when the process that serves it dies, whatever its threads are doing then.
//!
//! The kernel closes a connection with its last descriptor. But a thread that carries a notice about a name is inside a write to it, and waits there
//! for the lock of a directory, beyond the reach of SIGKILL. A call of somebody else may hold that lock and wait for an answer of this very
//! process. If that dies now, the one waits for the other for ever, and everybody who comes to the mount for both. Only a third one can end
//! that: a child process which learns of the main thread's end, and aborts the connection through the kernel's control file of it.
//!
//! The child has that file, a pipe and nothing else; it sleeps until the end and then lives for some microseconds. It keeps no mount alive, and
//! cannot hit a later one: once a connection is gone its open control file does nothing, whoever has its number by then.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Where the control files are, if somebody has mounted them. They belong to whoever made the FUSE mount.
const CONTROL: &str = "/sys/fs/fuse/connections";
const CONTROL_KIND: &std::ffi::CStr = c"fusectl";
/// Of `fsconfig(2)`: makes the file system.
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// Tells the child of the main thread's end. A classic signal: those come with their sender even to who has as many pending as he may.
const ORPHANED: libc::c_int = libc::SIGUSR2;
/// The child's name, so that who ends all processes of the program's name leaves it to do its work.
const NAME: &std::ffi::CStr = c"dfs-guard";

/// A connection that ends with this process.
#[derive(Debug)]
pub struct Guard {
    control: File,
    child: libc::pid_t,
    /// Closed with this process; the child has the other end.
    _alive: PipeWriter,
}

impl Guard {
    /// Starts the child for the connection of that number, the minor one of the mount's device. Call it from the main thread: it is told of that one's end.
    pub fn start(connection: u32) -> io::Result<Guard> {
        let control = open_control(connection)?;
        let (ended, alive) = io::pipe()?;
        // SAFETY: the child only makes system calls, on memory that was there before.
        let child = unsafe {
            let parent = libc::getpid();
            match libc::fork() {
                0 => watch(parent, control.as_raw_fd(), ended.as_raw_fd()),
                child => child,
            }
        };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Guard { control, child, _alive: alive })
    }

    /// Aborts the connection, if it is still there: who waits for an answer or comes later gets an error. Then there is nothing left to guard.
    pub fn end(mut self) {
        if let Err(error) = self.control.write(b"1") {
            tracing::debug!(%error, "the connection to the kernel was not aborted");
        }
        // SAFETY: a child of ours that has not been collected.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
        }
    }
}

/// The child's whole life.
///
/// # Safety
/// Between fork and exit, in a process that had other threads: nothing but system calls.
unsafe fn watch(parent: libc::pid_t, control: RawFd, ended: RawFd) -> ! {
    const CONTROL: RawFd = 0;
    const ENDED: RawFd = 1;
    // SAFETY: system calls with numbers, and pointers to what lives on this stack.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        // What is sent to a whole group or terminal is meant for the mount, which may take its time to end.
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        // By the pipe one learns of the end of the last thread only, and that is the one that does not come.
        libc::prctl(libc::PR_SET_PDEATHSIG, ORPHANED);
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        // Above all not the connection itself.
        libc::dup2(control, CONTROL);
        libc::dup2(ended, ENDED);
        close_from(ENDED + 1);
        let signals = libc::signalfd(-1, &all, libc::SFD_CLOEXEC);
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut both = [poll(ENDED), poll(signals)];
        loop {
            libc::poll(both.as_mut_ptr(), 2, -1);
            if both[0].revents != 0 {
                break;
            }
            let mut signal = std::mem::zeroed::<libc::signalfd_siginfo>();
            let length = std::mem::size_of_val(&signal);
            let read = libc::read(signals, (&raw mut signal).cast(), length);
            if read == length as isize && signal.ssi_signo as i32 == ORPHANED && signal.ssi_pid as i32 == parent {
                break;
            }
        }
        libc::write(CONTROL, c"1".as_ptr().cast(), 1);
        libc::_exit(0)
    }
}

/// # Safety
/// Nobody may use one of those descriptors later.
unsafe fn close_from(first: RawFd) {
    // SAFETY: system calls with numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        // Linux before 5.9.
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        for descriptor in first..limit.rlim_cur.min(1 << 20) as RawFd {
            libc::close(descriptor);
        }
    }
}

/// Opens the file by which the connection is aborted: in a mount of the control file system that is in nobody's way, or, without root, where
/// it is mounted.
fn open_control(connection: u32) -> io::Result<File> {
    let file = format!("{connection}/abort");
    open_detached(&file).or_else(|_| File::options().write(true).open(format!("{CONTROL}/{file}")))
}

fn open_detached(file: &str) -> io::Result<File> {
    let file = CString::new(file)?;
    // SAFETY: system calls with NUL-terminated strings that outlive them; what they give is ours.
    unsafe {
        let kind = descriptor(libc::syscall(libc::SYS_fsopen, CONTROL_KIND.as_ptr(), 1))?;
        let none = std::ptr::null::<libc::c_void>();
        let made = libc::syscall(libc::SYS_fsconfig, kind.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0);
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let mounted = descriptor(libc::syscall(libc::SYS_fsmount, kind.as_raw_fd(), 1, 0))?;
        let opened = libc::openat(mounted.as_raw_fd(), file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        Ok(descriptor(opened.into())?.into())
    }
}

/// # Safety
/// The number is what a system call gave: negative, or a descriptor that is nobody else's.
unsafe fn descriptor(number: libc::c_long) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as demanded of the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}
