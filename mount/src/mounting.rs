//! Mounts and unmounts: /dev/fuse, mount(2) or the setuid helper `fusermount3`, and the messages for everything that can go wrong.
//!
//! Done here and not by fuser, whose 0.18.0 unmounts by path even after somebody else has unmounted, and so may hit a later mount at the same
//! place: a [`Mount`] remembers the device number of its own superblock and touches nothing else. Once mounted, nothing here may look
//! at the mount point itself: that would ask this very process.
#![allow(clippy::disallowed_methods)] // A driver: waits by the clock.

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::MountOptions;
use crate::leftover::{self, Found};

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// Readahead of the mount in KiB; the kernel's default of 128 makes small reads of mapped files.
const READ_AHEAD_KIB: u32 = 1024;
/// Mounting takes others some milliseconds.
const TURN_PATIENCE: Duration = Duration::from_secs(2);
const TURN_RETRY: Duration = Duration::from_millis(5);
/// Dead mounts on top of one another that are cleared at most.
const LEFTOVERS_MAX: usize = 16;

/// A mount that this process made.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    /// `major:minor` of its superblock, as in /proc/self/mountinfo.
    device: String,
}

/// How an unmount went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Gone, or somebody else had done it.
    Gone,
    /// It was busy: detached, and gone when the last user leaves or this process ends.
    Detached,
}

/// Checks that a file system can be mounted there, and answers the absolute path. What a mount left whose process is gone is cleared first.
/// Call it before other threads exist.
pub fn check_point(point: &Path) -> Result<PathBuf, String> {
    let shown = point.display();
    // Resolving the name asks the kernel only; a look at the directory would ask whatever is mounted there.
    let path = fs::canonicalize(point).map_err(|error| unreachable(point, &error))?;
    for _ in 0..LEFTOVERS_MAX {
        let Some(top) = mounts()?.into_iter().rev().find(|mount| mount.point == path) else { break };
        if !top.is_fuse || leftover::look(&path) != Found::Dead {
            return Err(taken(point));
        }
        // Before the first line of a log: this is news for whoever started the command.
        eprintln!("dfs-mount: {shown}: clearing a mount whose process is gone");
        clear_leftover(&path)?;
    }
    let metadata = fs::metadata(&path).map_err(|error| unreachable(point, &error))?;
    if !metadata.is_dir() {
        return Err(format!("{shown}: not a directory; a mount point has to be one"));
    }
    Ok(path)
}

fn taken(point: &Path) -> String {
    let shown = point.display();
    format!("{shown}: something is mounted there already; unmount it first (umount {shown}), or choose another directory")
}

fn unreachable(point: &Path, error: &io::Error) -> String {
    let shown = point.display();
    match error.kind() {
        _ if error.raw_os_error() == Some(libc::ENOTCONN) => {
            format!("{shown}: it lies in a mount whose process is gone; remove that first (findmnt lists it, umount -l removes it)")
        }
        io::ErrorKind::NotFound => format!("{shown}: no such directory; create it first: mkdir -p {shown}"),
        _ => format!("{shown}: {}; choose a directory you can reach", text(error)),
    }
}

fn clear_leftover(point: &Path) -> Result<(), String> {
    match leftover::clear(point) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && run_helper(&["-u", "-q", "-z"], point)? => Ok(()),
        Err(error) => {
            let shown = point.display();
            Err(format!(
                "{shown}: a mount whose process is gone is still there and cannot be removed ({}); as root: umount -l {shown}",
                text(&error)
            ))
        }
    }
}

/// Runs the setuid helper quietly on a mount point; whether it succeeded.
fn run_helper(flags: &[&str], point: &Path) -> Result<bool, String> {
    let mut command = Command::new(HELPER);
    command.args(flags).arg("--").arg(point).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map(|status| status.success()).map_err(|error| format!("cannot run {HELPER}: {}", text(&error)))
}

/// Checks that FUSE is there and may be used.
pub fn check_device() -> Result<(), String> {
    match fs::metadata(DEVICE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("{DEVICE} is missing; load the kernel module (modprobe fuse), or start the container with --device {DEVICE}"))
        }
        Err(error) => Err(format!("{DEVICE}: {}", text(&error))),
        Ok(_) => Ok(()),
    }
}

/// Mounts on a path that was checked; answers the connection to the kernel. The mount waits in the kernel until it is served.
pub fn mount(point: &Path, options: &MountOptions) -> Result<(OwnedFd, Mount), String> {
    // Which new mount is ours can be told only if no other process mounts here meanwhile; and whoever did since the check was first. Looked at
    // before the directory is opened, too: that would ask who serves it.
    devices_with_free(point)?;
    let _turn = Turn::take(point);
    let before = devices_with_free(point)?;
    let connection = if is_root() { mount_directly(point, options)? } else { mount_by_helper(point, options)? };
    let mine = mounts()?.into_iter().rev().find(|mount| mount.point == point && !before.contains(&mount.device));
    let Some(mine) = mine else { return Err(format!("{}: mounted, but it does not show in /proc/self/mountinfo", point.display())) };
    Ok((connection, Mount { point: point.to_path_buf(), device: mine.device }))
}

/// The device numbers of all mounts; an error if one of them is at that point.
fn devices_with_free(point: &Path) -> Result<Vec<String>, String> {
    let mounts = mounts()?;
    if mounts.iter().any(|mount| mount.point == point) {
        return Err(taken(point));
    }
    Ok(mounts.into_iter().map(|mount| mount.device).collect())
}

/// The only process of ours that mounts at a point just now: a lock of the directory below.
struct Turn(Option<File>);

impl Turn {
    /// Who may not read the directory mounts without a turn, and so does who waits in vain: others may lock it for other reasons.
    fn take(point: &Path) -> Self {
        let Ok(directory) = File::open(point) else { return Turn(None) };
        let until = Instant::now() + TURN_PATIENCE;
        while let Err(error) = flock(&directory, libc::LOCK_EX | libc::LOCK_NB) {
            if error.kind() != io::ErrorKind::WouldBlock || Instant::now() > until {
                return Turn(None);
            }
            thread::sleep(TURN_RETRY);
        }
        Turn(Some(directory))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Closing might not do it: a child that was forked meanwhile keeps the descriptor.
        self.0.iter().for_each(|directory| _ = flock(directory, libc::LOCK_UN));
    }
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: a system call on a descriptor that is open.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Mount {
    /// Number of its connection to the kernel.
    pub fn connection(&self) -> Option<u32> {
        self.device.split_once(':')?.1.parse().ok()
    }

    /// Whether it is still mounted, and on top at its place.
    pub fn is_there(&self) -> bool {
        let on_top = mounts().ok().and_then(|mounts| mounts.into_iter().rev().find(|mount| mount.point == self.point));
        on_top.is_some_and(|mount| mount.device == self.device)
    }

    /// Unmounts if it is there. A busy mount is detached.
    pub fn unmount(&self) -> Result<Unmounted, String> {
        if !self.is_there() {
            return Ok(Unmounted::Gone);
        }
        if !is_root() {
            return self.unmount_by_helper();
        }
        let failed = |error: io::Error| format!("cannot unmount {}: {}", self.point.display(), text(&error));
        match umount(&self.point, libc::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(Unmounted::Gone),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                umount(&self.point, libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH).map_err(failed)?;
                Ok(Unmounted::Detached)
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.unmount_by_helper(),
            Err(_) if !self.is_there() => Ok(Unmounted::Gone),
            Err(error) => Err(failed(error)),
        }
    }

    /// Raises the readahead; needs root, and only matters for speed.
    pub fn set_read_ahead(&self) {
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(%error, path, "readahead stays as it is");
        }
    }

    fn unmount_by_helper(&self) -> Result<Unmounted, String> {
        if run_helper(&["-u", "-q"], &self.point)? {
            return Ok(Unmounted::Gone);
        }
        if run_helper(&["-u", "-q", "-z"], &self.point)? {
            return Ok(Unmounted::Detached);
        }
        if !self.is_there() {
            return Ok(Unmounted::Gone);
        }
        Err(format!("cannot unmount {}: {HELPER} refuses", self.point.display()))
    }
}

fn umount(point: &Path, flags: i32) -> io::Result<()> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: a NUL-terminated path that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn mount_directly(point: &Path, options: &MountOptions) -> Result<OwnedFd, String> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
        format!("cannot open {DEVICE}: {}; in a container it has to be allowed (--device {DEVICE} --cap-add SYS_ADMIN)", text(&error))
    })?;
    let mode = fs::metadata(point).map_err(|error| format!("{}: {}", point.display(), text(&error)))?.mode();
    // SAFETY: plain getters.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let mut data = format!("fd={},rootmode={:o},user_id={uid},group_id={gid},default_permissions", device.as_raw_fd(), mode & libc::S_IFMT);
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let flag = |wanted: bool, bit: libc::c_ulong| if wanted { bit } else { 0 };
    let flags = flag(options.read_only, libc::MS_RDONLY)
        | flag(!options.suid, libc::MS_NOSUID)
        | flag(!options.dev, libc::MS_NODEV)
        | flag(!options.exec, libc::MS_NOEXEC)
        | flag(!options.atime, libc::MS_NOATIME);
    let string = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a mount option contains a NUL byte".to_string());
    let kind = string(format!("fuse.{}", options.subtype).as_bytes())?;
    let (source, target, data) = (string(options.fsname.as_bytes())?, string(point.as_os_str().as_bytes())?, string(data.as_bytes())?);
    // SAFETY: NUL-terminated strings that outlive the call.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if done == 0 {
        return Ok(device.into());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EPERM) => {
            format!("no permission to mount on {}; a container needs --cap-add SYS_ADMIN --device {DEVICE}", point.display())
        }
        Some(libc::ENODEV) => "the kernel has no FUSE; load its module: modprobe fuse".into(),
        _ => format!("cannot mount on {}: {}", point.display(), text(&error)),
    })
}

fn mount_by_helper(point: &Path, options: &MountOptions) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("cannot make a socket pair: {}", text(&error)))?;
    let mut command = Command::new(HELPER);
    command.arg("-o").arg(helper_options(options)).arg("--").arg(point);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let inherited = theirs.as_raw_fd();
    // SAFETY: only fcntl, which is async-signal-safe, runs between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command
        .spawn()
        .map_err(|error| format!("cannot run {HELPER}, which mounting without root needs (package fuse3): {}", text(&error)))?;
    drop(theirs);
    let connection = receive_descriptor(&ours);
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut complaint);
    }
    let _ = child.wait();
    connection.map_err(|_| {
        let complaint = complaint.lines().next().unwrap_or("it gave no reason").trim().trim_start_matches("fusermount3: ").to_string();
        let hint = match &complaint {
            complaint if complaint.contains("user_allow_other") => "; leave -o allow_other out, or set user_allow_other there",
            complaint if complaint.contains(DEVICE) => "; let users open it (as root: chmod 666 /dev/fuse), or mount as root",
            _ => "",
        };
        format!("cannot mount on {} without root: {complaint}{hint}", point.display())
    })
}

fn helper_options(options: &MountOptions) -> OsString {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut list = vec![format!("fsname={}", escape(&options.fsname)), format!("subtype={}", escape(&options.subtype))];
    let flags = [
        (true, "default_permissions"),
        (true, "nosuid"),
        (true, "nodev"),
        (options.read_only, "ro"),
        (options.allow_other, "allow_other"),
        (!options.exec, "noexec"),
        (!options.atime, "noatime"),
    ];
    list.extend(flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, name)| name.to_string()));
    list.join(",").into()
}

/// Receives the one descriptor that the helper passes.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 8];
    // SAFETY: msghdr is plain data; all pointers live until recvmsg returns, and the control message is read only within its checked length.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control) as _;
        let received = loop {
            let received = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
            if received >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break received;
            }
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        let expected = libc::CMSG_LEN(mem::size_of::<i32>() as u32) as usize;
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS || ((*header).cmsg_len as usize) < expected {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let descriptor = libc::CMSG_DATA(header).cast::<i32>().read_unaligned();
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

#[derive(Debug, PartialEq)]
struct Mounted {
    device: String,
    point: PathBuf,
    is_fuse: bool,
}

/// All mounts of this process's namespace, in the order in which they were made.
fn mounts() -> Result<Vec<Mounted>, String> {
    let mut table = Vec::new();
    File::open("/proc/self/mountinfo")
        .and_then(|mut file| file.read_to_end(&mut table))
        .map_err(|error| format!("/proc/self/mountinfo: {}", text(&error)))?;
    Ok(parse_mounts(&table))
}

fn parse_mounts(table: &[u8]) -> Vec<Mounted> {
    let lines = table.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let device = fields.nth(2)?;
            let point = fields.nth(1)?;
            // Any number of optional fields ends with a dash; the type follows.
            let kind = fields.skip_while(|&field| field != b"-").nth(1)?;
            let device = String::from_utf8_lossy(device).into_owned();
            Some(Mounted { device, point: OsString::from_vec(unescape(point)).into(), is_fuse: kind.starts_with(b"fuse") })
        })
        .collect()
}

/// Undoes the octal escapes of mountinfo (`\040` is a space).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn is_root() -> bool {
    // SAFETY: a plain getter.
    unsafe { libc::geteuid() == 0 }
}

/// The error without Rust's "(os error N)".
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_escapes() {
        let table = b"22 27 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n99 27 0:53 / /mnt/a\\040b\\134 rw - fuse.dfs dfs rw\n";
        let expected = [("0:21", "/proc", false), ("0:53", "/mnt/a b\\", true)];
        let expected: Vec<Mounted> =
            expected.into_iter().map(|(device, point, is_fuse)| Mounted { device: device.into(), point: point.into(), is_fuse }).collect();
        assert_eq!(parse_mounts(table), expected);
    }

    #[test]
    fn bad_mount_points_are_named_with_what_to_do() {
        let missing = check_point(Path::new("/nonexistent/dfs")).unwrap_err();
        assert!(missing.contains("mkdir -p /nonexistent/dfs"), "{missing}");
        let file = check_point(Path::new("/proc/self/stat")).unwrap_err();
        assert!(file.contains("not a directory"), "{file}");
        let busy = check_point(Path::new("/proc")).unwrap_err();
        assert!(busy.contains("umount /proc"), "{busy}");
    }
}
