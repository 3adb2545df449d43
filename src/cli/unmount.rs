//! `dfs umount DIR`: unmounts, then waits until the process that served the mount has flushed and ended.
//!
//! Plain `umount` may return before the last flush; FUSE has no hook for it. The end of the process is the proof.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failure::{Failure, reason};

/// How often to look whether the process is gone.
const POLL: Duration = Duration::from_millis(20);

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    point: PathBuf,
    kind: String,
    source: String,
    /// Minor number of the file system's device: for FUSE, the number of its connection.
    minor: u32,
}

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    pid: u32,
    /// The program's name.
    name: String,
    started: String,
}

/// Unmounts `directory` and waits for its process at most `patience`.
pub fn run(directory: &Path, patience: Duration) -> Result<(), Failure> {
    let shown = directory.display();
    let mounted = find(directory)?;
    let servers = servers(&mounted);
    if !is_ours(&mounted, &servers) {
        return Err(Failure::new(format!("{shown} is a {} mount, not one of dfs; use umount", mounted.kind)));
    }
    detach(&mounted.point)?;
    wait_gone(&servers, patience).map_err(|pid| {
        Failure::new(format!(
            "{shown} is unmounted, but its process {pid} has not ended within {patience:?}; see its log, raise --op-timeout to wait longer"
        ))
    })
}

/// The topmost mount at `directory`. Does not touch the directory itself first, as a dead mount would answer with an error or not at all.
fn find(directory: &Path) -> Result<Mounted, Failure> {
    let shown = directory.display();
    let table = fs::read("/proc/self/mountinfo").map_err(|error| Failure::local("/proc/self/mountinfo", &error))?;
    let mounts = parse_mounts(&table);
    let at = |point: &Path| mounts.iter().rev().find(|mounted| mounted.point == point).cloned();
    if let Some(mounted) = beside_parent(directory).and_then(|point| at(&point)) {
        return Ok(mounted);
    }
    let point = fs::canonicalize(directory).map_err(|error| Failure::local(format!("cannot unmount {shown}"), &error))?;
    at(&point).ok_or_else(|| Failure::new(format!("{shown} is not a mount point; `findmnt` lists the mounts")))
}

/// The directory's full name, resolving only its parent.
fn beside_parent(directory: &Path) -> Option<PathBuf> {
    let name = directory.file_name()?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::canonicalize(parent).ok()?.join(name))
}

/// By its type, its source, or (mount options can change both) by the program that serves it.
fn is_ours(mounted: &Mounted, servers: &[Served]) -> bool {
    let named = mounted.kind == "fuse.dfs-mount" || mounted.source == "dfs";
    mounted.kind.starts_with("fuse") && (named || servers.iter().any(|served| served.name == "dfs-mount"))
}

fn parse_mounts(table: &[u8]) -> Vec<Mounted> {
    table.split(|&byte| byte == b'\n').filter_map(parse_mount).collect()
}

/// `36 35 0:42 / /mnt/dfs rw,noatime shared:1 - fuse.dfs-mount dfs rw,user_id=0`
fn parse_mount(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| field == b"-")? + 6;
    let minor = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?.1.parse().ok()?;
    let text = |index: usize| fields.get(index).map(|field| String::from_utf8_lossy(&unescape(field)).into_owned());
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?)));
    Some(Mounted { point, kind: text(dash + 1)?, source: text(dash + 2)?, minor })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if byte == b'\\' => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Processes that serve the mount. Where the kernel names the connection in `fdinfo` that decides; else the mount point must stand on
/// the command line of a process that has /dev/fuse open.
fn servers(mounted: &Mounted) -> Vec<Served> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != std::process::id() && serves(pid, mounted))
        .filter_map(|pid| Some(Served { pid, name: program_name(pid)?, started: start_time(pid)? }))
        .collect()
}

fn serves(pid: u32, mounted: &Mounted) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let open = descriptors.flatten().filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == Path::new("/dev/fuse")));
    let connections: Vec<Option<u32>> = open.map(|entry| connection(pid, &entry.file_name().to_string_lossy())).collect();
    match connections.iter().flatten().next() {
        Some(_) => connections.contains(&Some(mounted.minor)),
        None => !connections.is_empty() && names_on_command_line(pid, &mounted.point),
    }
}

/// The FUSE connection behind a descriptor, on kernels that tell.
fn connection(pid: u32, descriptor: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

fn names_on_command_line(pid: u32, point: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let Some(name) = point.file_name() else { return false };
    line.split(|&byte| byte == 0).any(|word| Path::new(std::ffi::OsStr::from_bytes(word)).file_name() == Some(name))
}

fn program_name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_string())
}

/// Field 22 of `/proc/PID/stat`; `None` when the process is gone or only waits to be collected.
fn start_time(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19).map(|field| field.to_string())
}

fn detach(point: &Path) -> Result<(), Failure> {
    let shown = point.display();
    let path = CString::new(point.as_os_str().as_bytes()).map_err(|_| Failure::new(format!("{shown}: a path has no NUL byte")))?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM) => detach_as_user(point),
        Some(libc::EBUSY) => Err(busy(point)),
        _ => Err(Failure::local(format!("cannot unmount {shown}"), &error)),
    }
}

fn busy(point: &Path) -> Failure {
    let shown = point.display();
    Failure::new(format!("cannot unmount {shown}: it is in use; leave it and close its files (`fuser -vm {shown}` lists who uses it)"))
}

/// Without root, the set-uid helper of fuse3 unmounts what this user mounted.
fn detach_as_user(point: &Path) -> Result<(), Failure> {
    let shown = point.display();
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(point).output().map_err(|error| {
        Failure::new(format!("cannot unmount {shown}: not root, and fusermount3 did not run ({}); install fuse3", reason(&error)))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(busy(point));
    }
    Err(Failure::new(format!("cannot unmount {shown}: {}", said.lines().next().unwrap_or("fusermount3 failed"))))
}

/// Waits until every process is gone; the number of one that is not.
#[allow(clippy::disallowed_methods)] // A driver: waits by the clock.
fn wait_gone(servers: &[Served], patience: Duration) -> Result<(), u32> {
    let end = Instant::now() + patience;
    loop {
        let left = servers.iter().find(|served| start_time(served.pid).as_ref() == Some(&served.started));
        let Some(left) = left else { return Ok(()) };
        if Instant::now() >= end {
            return Err(left.pid);
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_understood() {
        let line = b"36 35 0:42 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.dfs-mount dfs rw,user_id=0";
        let mounted = parse_mount(line).expect("a mount");
        assert_eq!(mounted, Mounted { point: "/mnt/a b".into(), kind: "fuse.dfs-mount".into(), source: "dfs".into(), minor: 42 });
        assert!(is_ours(&mounted, &[]));
        let other = parse_mount(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw").expect("a mount");
        assert!(!is_ours(&other, &[]));
        let renamed = Mounted { kind: "fuse.s".into(), source: "f".into(), ..mounted };
        let served = Served { pid: 1, name: "dfs-mount".into(), started: String::new() };
        assert!(is_ours(&renamed, &[served]) && !is_ours(&renamed, &[]));
        assert_eq!(parse_mount(b"garbage"), None);
        assert_eq!(parse_mount(b""), None);
    }

    #[test]
    fn what_is_not_mounted_is_said() {
        let said = run(Path::new("/proc/self"), Duration::ZERO).expect_err("not a mount").to_string();
        assert!(said.contains("not a mount point"), "{said}");
        let said = run(Path::new("/proc"), Duration::ZERO).expect_err("not ours").to_string();
        assert!(said.contains("not one of dfs"), "{said}");
        let said = run(Path::new("/no/such/place"), Duration::ZERO).expect_err("missing").to_string();
        assert!(said.contains("no such file"), "{said}");
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = start_time(std::process::id()).expect("we live");
        let gone = Served { pid: std::process::id(), name: String::new(), started: "0".into() };
        assert_ne!(own, gone.started);
        assert_eq!(wait_gone(&[gone], Duration::ZERO), Ok(()));
        let here = Served { pid: std::process::id(), name: String::new(), started: own };
        assert_eq!(wait_gone(&[here], Duration::ZERO), Err(std::process::id()));
    }
}
