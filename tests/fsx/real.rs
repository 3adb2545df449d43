//! The same operations on real mounts, and what can be seen of a path.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::model::{Model, Out, Outcome};
use super::ops::{Allocate, Locking, Op, Replacing, SLOTS, Setting, Step, pattern};

/// One directory as two mounts show it, with the files open there.
pub struct Real {
    pub roots: [PathBuf; 2],
    pub slots: [Option<File>; SLOTS],
}

/// What a mount shows of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    pub links: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    pub ctime: (i64, i64),
    pub content: Out,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_string(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}

fn c_name(name: &str) -> std::ffi::CString {
    std::ffi::CString::new(name).expect("no NUL in a name")
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_else(|| panic!("not from the kernel: {error}"))
}

impl Real {
    /// Nothing open.
    pub fn new(roots: [PathBuf; 2]) -> Self {
        Real { roots, slots: [const { None }; SLOTS] }
    }

    /// Does an operation. The model, not yet changed, tells what a slot is and where a mapping may be touched.
    pub fn apply(&mut self, step: &Step, model: &Model) -> Outcome {
        self.perform(step, model).map_err(|error| errno(&error))
    }

    fn perform(&mut self, step: &Step, model: &Model) -> io::Result<Out> {
        match &step.op {
            Op::Open { slot, .. } if self.slots[*slot].is_some() => return Ok(Out::Skipped),
            Op::Open { slot, path, how } => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).append(how.append).mode(0o644);
                let mut flags = libc::O_NOFOLLOW;
                flags |= if how.create { libc::O_CREAT } else { 0 };
                flags |= if how.exclusive { libc::O_EXCL } else { 0 };
                flags |= if how.truncate { libc::O_TRUNC } else { 0 };
                self.slots[*slot] = Some(options.custom_flags(flags).open(self.roots[step.mount].join(path))?);
                return Ok(Out::Done);
            }
            Op::Copy { from, to, from_offset, to_offset, length } => {
                let (Some(source), Some(target)) = (&self.slots[*from], &self.slots[*to]) else { return Ok(Out::Skipped) };
                let handles = (model.slots[*from].expect("as in the model"), model.slots[*to].expect("as in the model"));
                let mut length = *length;
                if handles.0.ino == handles.1.ino {
                    // A copy to the end of the same file would find more to copy there when it asks for the rest.
                    length = length.min((model.bytes(handles.0.ino).len() as u64).saturating_sub(*from_offset));
                    let overlap = length > 0 && to_offset + length > *from_offset && *to_offset < from_offset + length;
                    if handles.0.mount != handles.1.mount && !handles.1.append && overlap {
                        return Ok(Out::Skipped);
                    }
                    if length == 0 && !handles.1.append {
                        return Ok(Out::Count(0));
                    }
                    // The count must not be 0, or the kernel would not look at the descriptors.
                    length = length.max(1);
                }
                // As cp(1) does: Linux goes by the size that it knows, which another mount may have changed since this was opened.
                source.metadata()?;
                return copy(source, target, *from_offset, *to_offset, length);
            }
            Op::Close { slot } => return Ok(self.slots[*slot].take().map_or(Out::Skipped, |_| Out::Done)),
            Op::Write { slot, .. }
            | Op::Read { slot, .. }
            | Op::SetLength { slot, .. }
            | Op::MapWrite { slot, .. }
            | Op::MapRead { slot }
            | Op::Sync { slot }
            | Op::Allocate { slot, .. }
            | Op::Lock { slot, .. } => match &self.slots[*slot] {
                Some(file) => return on_slot(*slot, file, &step.op, model),
                None => return Ok(Out::Skipped),
            },
            _ => {}
        }
        on_name(&self.roots[step.mount], &step.op)
    }

    /// What a mount shows of a path.
    pub fn view(&self, mount: usize, path: &str, xattrs: bool) -> Result<View, i32> {
        view(&self.roots[mount].join(path), xattrs).map_err(|error| errno(&error))
    }
}

fn on_slot(slot: usize, file: &File, op: &Op, model: &Model) -> io::Result<Out> {
    let ino = model.slots[slot].expect("as in the model").ino;
    match op {
        Op::Write { offset, length, seed, .. } => file.write_all_at(&pattern(*seed, *length), *offset)?,
        Op::Read { offset, length, .. } => {
            let mut bytes = vec![0; *length];
            let mut read = 0;
            while read < bytes.len() {
                match file.read_at(&mut bytes[read..], offset + read as u64)? {
                    0 => break,
                    count => read += count,
                }
            }
            bytes.truncate(read);
            return Ok(Out::Bytes(bytes));
        }
        Op::SetLength { length, .. } => file.set_len(*length)?,
        Op::MapWrite { offset, length, seed, .. } => {
            let Some((offset, length)) = model.mapped_part(ino, *offset, *length) else { return Ok(Out::Skipped) };
            map_write(file, model.bytes(ino).len(), offset as usize, &pattern(*seed, length))?;
        }
        Op::MapRead { .. } => {
            let length = model.bytes(ino).len();
            return if length == 0 { Ok(Out::Skipped) } else { Ok(Out::Bytes(map_read(file, length)?)) };
        }
        Op::Sync { .. } => file.sync_all()?,
        Op::Allocate { how, offset, length, .. } => {
            let mode = match how {
                Allocate::Plain => 0,
                Allocate::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
                Allocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                Allocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
            };
            // SAFETY: plain system call with numbers.
            check(unsafe { libc::fallocate(file.as_raw_fd(), mode, *offset as i64, *length as i64) })?;
        }
        Op::Lock { kind, .. } => {
            let lock = if *kind == Locking::Shared { libc::LOCK_SH } else { libc::LOCK_EX };
            let operation = if model.locked(slot) { libc::LOCK_UN } else { lock };
            // SAFETY: plain system call with numbers.
            check(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) })?;
        }
        _ => panic!("not on a slot: {op:?}"),
    }
    Ok(Out::Done)
}

fn copy(source: &File, target: &File, from: u64, to: u64, length: u64) -> io::Result<Out> {
    let (mut from, mut to, mut done) = (from as i64, to as i64, 0);
    while done < length {
        let left = (length - done) as usize;
        // SAFETY: the offsets live through the call.
        let copied = unsafe { libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, left, 0) };
        match copied {
            0 => break,
            count if count < 0 => return Err(io::Error::last_os_error()),
            count => done += count as u64,
        }
    }
    Ok(Out::Count(done))
}

/// A shared mapping of a whole file. Its memory is only touched through system calls on an anonymous file, which fail where a plain access
/// beyond the end would kill the process.
struct Mapping {
    address: *mut libc::c_void,
    length: usize,
    scratch: File,
}

impl Mapping {
    fn new(file: &File, length: usize) -> io::Result<Self> {
        // The kernel asks nobody for the size when it maps or faults; programs look at it to know how much to map.
        file.metadata()?;
        // SAFETY: plain calls; the results are checked, the descriptor is ours.
        unsafe {
            let scratch = libc::memfd_create(c"mapped".as_ptr(), 0);
            check(scratch)?;
            let scratch = File::from_raw_fd(scratch);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let address = libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Mapping { address, length, scratch })
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody has a reference into it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn map_write(file: &File, length: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let mapping = Mapping::new(file, length)?;
    mapping.scratch.write_all_at(bytes, 0)?;
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: offset and length lie within the mapping.
        let moved = unsafe {
            let at = mapping.address.cast::<u8>().add(offset + done);
            libc::pread(mapping.scratch.as_raw_fd(), at.cast(), bytes.len() - done, done as i64)
        };
        if moved <= 0 {
            return Err(io::Error::last_os_error());
        }
        done += moved as usize;
    }
    // SAFETY: the whole mapping.
    check(unsafe { libc::msync(mapping.address, length, libc::MS_SYNC) })
}

fn map_read(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let mapping = Mapping::new(file, length)?;
    let mut done = 0;
    while done < length {
        // SAFETY: the rest of the mapping.
        let moved = unsafe {
            let at = mapping.address.cast::<u8>().add(done);
            libc::pwrite(mapping.scratch.as_raw_fd(), at.cast(), length - done, done as i64)
        };
        if moved <= 0 {
            return Err(io::Error::last_os_error());
        }
        done += moved as usize;
    }
    let mut bytes = vec![0; length];
    mapping.scratch.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn on_name(root: &Path, op: &Op) -> io::Result<Out> {
    match op {
        Op::Truncate { path, length } => {
            // SAFETY: a NUL-terminated path that lives through the call.
            check(unsafe { libc::truncate(c_string(&root.join(path)).as_ptr(), *length as i64) })?;
        }
        Op::OverwriteSilently { path, seed } => {
            let file = OpenOptions::new().write(true).open(root.join(path))?;
            let before = file.metadata()?;
            file.write_all_at(&pattern(*seed, before.len() as usize), 0)?;
            let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
            let times = [omit, libc::timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() }];
            // SAFETY: the times live through the call.
            check(unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) })?;
        }
        Op::Append { path, length, seed } => {
            OpenOptions::new().append(true).open(root.join(path))?.write_all(&pattern(*seed, *length))?;
        }
        Op::Rename { from, to, replacing } => {
            let flags = match replacing {
                Replacing::Replace => 0,
                Replacing::NoReplace => libc::RENAME_NOREPLACE,
                Replacing::Exchange => libc::RENAME_EXCHANGE,
            };
            let (from, to) = (c_string(&root.join(from)), c_string(&root.join(to)));
            // SAFETY: NUL-terminated paths that live through the call.
            check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })?;
        }
        Op::Link { from, to } => fs::hard_link(root.join(from), root.join(to))?,
        Op::Unlink { path } => fs::remove_file(root.join(path))?,
        Op::Mkdir { path } => fs::create_dir(root.join(path))?,
        Op::Rmdir { path } => fs::remove_dir(root.join(path))?,
        Op::Symlink { path, target } => symlink(target, root.join(path))?,
        Op::ReadLink { path } => return Ok(Out::Target(fs::read_link(root.join(path))?.to_string_lossy().into_owned())),
        Op::ReadDir { path } => return Ok(Out::Names(names(&root.join(path))?)),
        Op::Chmod { path, mode } => fs::set_permissions(root.join(path), Permissions::from_mode(*mode))?,
        Op::SetTimes { path, seconds, nanos } => {
            let times = [libc::timespec { tv_sec: *seconds, tv_nsec: *nanos }; 2];
            let path = c_string(&root.join(path));
            // SAFETY: path and times live through the call.
            check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) })?;
        }
        Op::SyncDir { path } => {
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(root.join(path))?.sync_all()?;
        }
        op => return on_xattr(root, op),
    }
    Ok(Out::Done)
}

fn on_xattr(root: &Path, op: &Op) -> io::Result<Out> {
    match op {
        Op::SetXattr { path, name, length, seed, setting } => {
            let value = pattern(*seed, *length);
            let flags = match setting {
                Setting::Any => 0,
                Setting::Create => libc::XATTR_CREATE,
                Setting::Replace => libc::XATTR_REPLACE,
            };
            let (path, name) = (c_string(&root.join(path)), c_name(name));
            // SAFETY: strings and value live through the call.
            check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) })?;
        }
        Op::GetXattr { path, name } => return Ok(Out::Bytes(xattr(&root.join(path), name)?)),
        Op::RemoveXattr { path, name } => {
            // SAFETY: both strings live through the call.
            check(unsafe { libc::lremovexattr(c_string(&root.join(path)).as_ptr(), c_name(name).as_ptr()) })?;
        }
        _ => panic!("not of this kind: {op:?}"),
    }
    Ok(Out::Done)
}

/// Value of an extended attribute.
pub fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 65536];
    // SAFETY: strings and buffer live through the call.
    let length = unsafe { libc::lgetxattr(c_string(path).as_ptr(), c_name(name).as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(length as usize);
    Ok(value)
}

fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0u8; 65536];
    // SAFETY: string and buffer live through the call.
    let length = unsafe { libc::llistxattr(c_string(path).as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let list = String::from_utf8_lossy(&list[..length as usize]).into_owned();
    let mut names: Vec<&str> = list.split('\0').filter(|name| name.starts_with("user.")).collect();
    names.sort();
    names.into_iter().map(|name| Ok((name.to_string(), xattr(path, name)?))).collect()
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn view(path: &Path, with_xattrs: bool) -> io::Result<View> {
    let metadata = fs::symlink_metadata(path)?;
    let content = if metadata.is_dir() {
        Out::Names(names(path)?)
    } else if metadata.is_symlink() {
        Out::Target(fs::read_link(path)?.to_string_lossy().into_owned())
    } else {
        Out::Bytes(fs::read(path)?)
    };
    Ok(View {
        ino: metadata.ino(),
        mode: metadata.mode(),
        links: metadata.nlink(),
        size: metadata.len(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        ctime: (metadata.ctime(), metadata.ctime_nsec()),
        content,
        xattrs: if with_xattrs && !metadata.is_symlink() { xattrs(path)? } else { Vec::new() },
    })
}
