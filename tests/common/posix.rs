//! System calls that the standard library lacks, and threads that make them in another user's name.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Who makes a call.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
    pub umask: u32,
}

/// All that root may.
pub const ROOT: User = User { uid: 0, gid: 0, groups: &[], umask: 0o022 };

/// Runs the closure as that user: in a thread of its own, because the kernel's credentials and umask belong to threads.
pub fn as_user<T: Send>(user: User, run: impl FnOnce() -> T + Send) -> T {
    let worker = move || {
        // SAFETY: raw calls that change this thread only; the C library's wrappers would change all of them.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_FS), 0, "a umask of its own");
            libc::umask(user.umask);
            if user.uid != 0 || user.gid != 0 {
                let keep = u32::MAX;
                assert_eq!(libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, keep, user.gid, keep), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, keep, user.uid, keep), 0);
            }
        }
        run()
    };
    std::thread::scope(|scope| scope.spawn(worker).join().expect("the calls do not panic"))
}

/// A path for the kernel.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("no NUL")
}

fn checked(code: i64) -> io::Result<usize> {
    usize::try_from(code).map_err(|_| io::Error::last_os_error())
}

/// lsetxattr(2).
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_path(path), c_name(name));
    // SAFETY: NUL-terminated strings and a buffer of the length that is passed; all outlive the call.
    checked(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) }.into()).map(drop)
}

/// lremovexattr(2).
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path), c_name(name));
    // SAFETY: NUL-terminated strings that outlive the call.
    checked(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }.into()).map(drop)
}

/// lgetxattr(2) into a buffer of that size; 0 asks for the length, which is then that of the answer.
pub fn xattr_sized(path: &Path, name: &str, size: usize) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), c_name(name));
    let mut buffer = vec![0u8; size];
    // SAFETY: NUL-terminated strings and a buffer of the size that is passed; all outlive the call.
    let length = checked(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), size) } as i64)?;
    buffer.resize(length, 0);
    Ok(buffer)
}

/// The value of an extended attribute.
pub fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    xattr_sized(path, name, 1 << 16)
}

/// fgetxattr(2).
pub fn xattr_of_file(file: &impl std::os::fd::AsRawFd, name: &str) -> io::Result<Vec<u8>> {
    let name = c_name(name);
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: a NUL-terminated string and a buffer of the size that is passed; both outlive the call.
    let length = checked(unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) } as i64)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// llistxattr(2), sorted.
pub fn xattrs(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path);
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: a NUL-terminated string and a buffer of the size that is passed; both outlive the call.
    let length = checked(unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) } as i64)?;
    buffer.truncate(length);
    let mut names: Vec<String> = String::from_utf8_lossy(&buffer).split_terminator('\0').map(str::to_string).collect();
    names.sort();
    Ok(names)
}

/// mknod(2): file type and permissions in `mode`.
pub fn mknod(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: a NUL-terminated string that outlives the call.
    checked(unsafe { libc::mknod(path.as_ptr(), mode, device) }.into()).map(drop)
}

/// renameat2(2).
pub fn rename2(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: NUL-terminated strings that outlive the call.
    checked(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }.into()).map(drop)
}

/// The stored form of an ACL: (tag, permissions, id).
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// An ACL that gives one user more: owner, that user, owning group, mask, other.
pub fn acl_with_user(owner: u16, (uid, user): (u32, u16), group: u16, mask: u16, other: u16) -> Vec<u8> {
    let none = u32::MAX;
    acl(&[(1, owner, none), (2, user, uid), (4, group, none), (16, mask, none), (32, other, none)])
}

/// An ACL that says what a mode says.
pub fn acl_minimal(owner: u16, group: u16, other: u16) -> Vec<u8> {
    let none = u32::MAX;
    acl(&[(1, owner, none), (4, group, none), (32, other, none)])
}

pub const ACCESS_ACL: &str = "system.posix_acl_access";
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
