//! The one tree that both mounts must show: a plain file system in memory with Linux's errors.

use std::collections::BTreeMap;

use super::ops::{Allocate, Locking, Op, Replacing, SLOTS, Setting, Step, pattern};

/// What an operation gives. `Skipped` when the slot it names is not as it needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    Done,
    Skipped,
    Bytes(Vec<u8>),
    Names(Vec<String>),
    Target(String),
    Count(u64),
}

/// With the errno that the call fails with.
pub type Outcome = Result<Out, i32>;

/// What is known of a time of last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtime {
    Set(i64, i64),
    /// Just now, give or take.
    Recent,
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<String, usize>),
    Link(String),
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub body: Body,
    pub mode: u32,
    pub links: u64,
    pub mtime: Mtime,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    locks: BTreeMap<usize, Locking>,
}

impl Inode {
    fn new(body: Body, mode: u32) -> Self {
        let links = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        Inode { body, mode, links, mtime: Mtime::Recent, xattrs: BTreeMap::new(), locks: BTreeMap::new() }
    }
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Handle {
    pub ino: usize,
    pub mount: usize,
    pub append: bool,
}

pub struct Model {
    pub inodes: Vec<Inode>,
    pub slots: [Option<Handle>; SLOTS],
}

const ROOT: usize = 0;

impl Model {
    /// An empty directory.
    pub fn new() -> Self {
        Model { inodes: vec![Inode::new(Body::Directory(BTreeMap::new()), 0o755)], slots: [None; SLOTS] }
    }

    fn entries(&self, ino: usize) -> Result<&BTreeMap<String, usize>, i32> {
        match &self.inodes[ino].body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, ino: usize) -> &mut BTreeMap<String, usize> {
        self.inodes[ino].mtime = Mtime::Any;
        match &mut self.inodes[ino].body {
            Body::Directory(entries) => entries,
            _ => panic!("looked up as a directory"),
        }
    }

    fn is_directory(&self, ino: usize) -> bool {
        matches!(self.inodes[ino].body, Body::Directory(_))
    }

    /// The directory of the last name, and that name.
    fn parent<'a>(&self, path: &'a str) -> Result<(usize, &'a str), i32> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = self.find(above)?;
        self.entries(directory)?;
        Ok((directory, name))
    }

    /// What is at a path; the empty one is the root.
    pub fn find(&self, path: &str) -> Result<usize, i32> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| self.entries(at)?.get(name).copied().ok_or(libc::ENOENT))
    }

    fn is_above(&self, above: usize, below: usize) -> bool {
        above == below || self.entries(above).is_ok_and(|entries| entries.values().any(|&child| self.is_above(child, below)))
    }

    /// All paths of an inode.
    pub fn paths_of(&self, ino: usize) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(ROOT, "", &mut |path, at| {
            if at == ino {
                found.push(path.to_string());
            }
        });
        found
    }

    /// Calls with every path and its inode.
    pub fn walk(&self, from: usize, path: &str, visit: &mut impl FnMut(&str, usize)) {
        visit(path, from);
        for (name, &child) in self.entries(from).into_iter().flatten() {
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.walk(child, &below, visit);
        }
    }

    fn add(&mut self, path: &str, inode: Inode) -> Result<usize, i32> {
        let (directory, name) = self.parent(path)?;
        if self.entries(directory)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let (ino, is_directory) = (self.inodes.len(), matches!(inode.body, Body::Directory(_)));
        self.inodes.push(inode);
        self.entries_mut(directory).insert(name.to_string(), ino);
        self.inodes[directory].links += u64::from(is_directory);
        Ok(ino)
    }

    /// Content of a file that the model has open or has found.
    pub fn bytes(&self, ino: usize) -> &[u8] {
        match &self.inodes[ino].body {
            Body::File(bytes) => bytes,
            _ => &[],
        }
    }

    fn set_length(&mut self, ino: usize, length: u64) {
        let inode = &mut self.inodes[ino];
        if let Body::File(bytes) = &mut inode.body {
            inode.mtime = if bytes.len() as u64 == length { Mtime::Any } else { Mtime::Recent };
            bytes.resize(length as usize, 0);
        }
    }

    fn write(&mut self, ino: usize, offset: u64, new: &[u8]) {
        let inode = &mut self.inodes[ino];
        if let Body::File(bytes) = &mut inode.body {
            let (from, to) = (offset as usize, offset as usize + new.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(new);
            inode.mtime = Mtime::Recent;
        }
    }

    /// The part of a range that lies within the file, for mappings.
    pub fn mapped_part(&self, ino: usize, offset: u64, length: usize) -> Option<(u64, usize)> {
        let size = self.bytes(ino).len() as u64;
        let from = offset % size.max(1);
        (size > 0).then(|| (from, length.min((size - from) as usize)))
    }

    /// Applies an operation.
    pub fn apply(&mut self, step: &Step) -> Outcome {
        match &step.op {
            Op::Open { slot, .. } if self.slots[*slot].is_some() => Ok(Out::Skipped),
            Op::Open { slot, path, how } => {
                let ino = match self.find(path) {
                    Ok(_) if how.exclusive => return Err(libc::EEXIST),
                    Ok(ino) => match &self.inodes[ino].body {
                        Body::File(_) => ino,
                        Body::Directory(_) => return Err(libc::EISDIR),
                        Body::Link(_) => return Err(libc::ELOOP),
                    },
                    Err(libc::ENOENT) if how.create => self.add(path, Inode::new(Body::File(Vec::new()), 0o644))?,
                    Err(errno) => return Err(errno),
                };
                if how.truncate {
                    self.set_length(ino, 0);
                }
                self.slots[*slot] = Some(Handle { ino, mount: step.mount, append: how.append });
                Ok(Out::Done)
            }
            Op::Close { slot }
            | Op::Write { slot, .. }
            | Op::Read { slot, .. }
            | Op::SetLength { slot, .. }
            | Op::MapWrite { slot, .. }
            | Op::MapRead { slot }
            | Op::Sync { slot }
            | Op::Allocate { slot, .. }
            | Op::Lock { slot, .. } => match self.slots[*slot] {
                Some(handle) => self.on_slot(*slot, handle, &step.op),
                None => Ok(Out::Skipped),
            },
            Op::Copy { from, to, from_offset, to_offset, length } => match (self.slots[*from], self.slots[*to]) {
                (Some(source), Some(target)) => self.copy(source, target, *from_offset, *to_offset, *length),
                _ => Ok(Out::Skipped),
            },
            op => self.on_name(op),
        }
    }

    fn on_slot(&mut self, slot: usize, handle: Handle, op: &Op) -> Outcome {
        let ino = handle.ino;
        match op {
            Op::Close { .. } => {
                self.slots[slot] = None;
                self.inodes[ino].locks.remove(&slot);
            }
            Op::Write { offset, length, seed, .. } => {
                let at = if handle.append { self.bytes(ino).len() as u64 } else { *offset };
                self.write(ino, at, &pattern(*seed, *length));
            }
            Op::Read { offset, length, .. } => {
                let bytes = self.bytes(ino);
                let from = bytes.len().min(*offset as usize);
                return Ok(Out::Bytes(bytes[from..bytes.len().min(from + length)].to_vec()));
            }
            Op::SetLength { length, .. } => self.set_length(ino, *length),
            Op::MapWrite { offset, length, seed, .. } => match self.mapped_part(ino, *offset, *length) {
                Some((offset, length)) => self.write(ino, offset, &pattern(*seed, length)),
                None => return Ok(Out::Skipped),
            },
            Op::MapRead { .. } if self.bytes(ino).is_empty() => return Ok(Out::Skipped),
            Op::MapRead { .. } => return Ok(Out::Bytes(self.bytes(ino).to_vec())),
            Op::Allocate { how, offset, length, .. } => self.allocate(ino, *how, *offset, *length),
            Op::Lock { kind, .. } => {
                let locks = &mut self.inodes[ino].locks;
                if locks.remove(&slot).is_some() {
                    return Ok(Out::Done);
                }
                if locks.values().any(|held| *held == Locking::Exclusive || *kind == Locking::Exclusive) {
                    return Err(libc::EWOULDBLOCK);
                }
                locks.insert(slot, *kind);
            }
            _ => {}
        }
        Ok(Out::Done)
    }

    /// What a slot has locked.
    pub fn locked(&self, slot: usize) -> bool {
        self.slots[slot].is_some_and(|handle| self.inodes[handle.ino].locks.contains_key(&slot))
    }

    fn allocate(&mut self, ino: usize, how: Allocate, offset: u64, length: u64) {
        let size = self.bytes(ino).len() as u64;
        let end = offset + length;
        if matches!(how, Allocate::Plain | Allocate::ZeroRange) && end > size {
            self.set_length(ino, end);
        }
        if matches!(how, Allocate::PunchHole | Allocate::ZeroRange) {
            let to = end.min(self.bytes(ino).len() as u64);
            if offset < to {
                self.write(ino, offset, &vec![0; (to - offset) as usize]);
            }
        }
        self.inodes[ino].mtime = Mtime::Any;
    }

    fn copy(&mut self, source: Handle, target: Handle, from: u64, to: u64, length: u64) -> Outcome {
        if target.append {
            return Err(libc::EBADF);
        }
        let bytes = self.bytes(source.ino);
        let length = length.min((bytes.len() as u64).saturating_sub(from));
        if length == 0 {
            return Ok(Out::Count(0));
        }
        if source.ino == target.ino && to + length > from && to < from + length {
            // Each mount is a file system of its own to the kernel, so it copies in pieces over itself.
            return if source.mount == target.mount { Err(libc::EINVAL) } else { Ok(Out::Skipped) };
        }
        let bytes = bytes[from as usize..(from + length) as usize].to_vec();
        self.write(target.ino, to, &bytes);
        Ok(Out::Count(length))
    }

    fn on_name(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Truncate { path, length } => {
                let ino = self.find(path)?;
                if self.is_directory(ino) {
                    return Err(libc::EISDIR);
                }
                self.set_length(ino, *length);
            }
            Op::OverwriteSilently { path, seed } => {
                let ino = self.file(path)?;
                let mtime = self.inodes[ino].mtime;
                self.write(ino, 0, &pattern(*seed, self.bytes(ino).len()));
                self.inodes[ino].mtime = mtime;
            }
            Op::Append { path, length, seed } => {
                let ino = self.file(path)?;
                self.write(ino, self.bytes(ino).len() as u64, &pattern(*seed, *length));
            }
            Op::Rename { from, to, replacing } => self.rename(from, to, *replacing)?,
            Op::Link { from, to } => {
                let ino = self.find(from)?;
                let (directory, name) = self.parent(to)?;
                if self.entries(directory)?.contains_key(name) {
                    return Err(libc::EEXIST);
                }
                if self.is_directory(ino) {
                    return Err(libc::EPERM);
                }
                self.entries_mut(directory).insert(name.to_string(), ino);
                self.inodes[ino].links += 1;
            }
            Op::Unlink { path } => {
                let (directory, name) = self.parent(path)?;
                let ino = self.find(path)?;
                if self.is_directory(ino) {
                    return Err(libc::EISDIR);
                }
                self.entries_mut(directory).remove(name);
                self.inodes[ino].links -= 1;
            }
            Op::Mkdir { path } => drop(self.add(path, Inode::new(Body::Directory(BTreeMap::new()), 0o755))?),
            Op::Rmdir { path } => {
                let (directory, name) = self.parent(path)?;
                let ino = self.find(path)?;
                if !self.entries(ino)?.is_empty() {
                    return Err(libc::ENOTEMPTY);
                }
                self.entries_mut(directory).remove(name);
                self.inodes[directory].links -= 1;
                self.inodes[ino].links = 0;
            }
            Op::Symlink { path, target } => drop(self.add(path, Inode::new(Body::Link(target.clone()), 0o777))?),
            Op::ReadLink { path } => match &self.inodes[self.find(path)?].body {
                Body::Link(target) => return Ok(Out::Target(target.clone())),
                _ => return Err(libc::EINVAL),
            },
            Op::ReadDir { path } => return Ok(Out::Names(self.entries(self.find(path)?)?.keys().cloned().collect())),
            Op::Chmod { path, mode } => {
                let ino = self.find(path)?;
                self.inodes[ino].mode = *mode;
            }
            Op::SetTimes { path, seconds, nanos } => {
                let ino = self.find(path)?;
                self.inodes[ino].mtime = Mtime::Set(*seconds, *nanos);
            }
            Op::SyncDir { path } => drop(self.entries(self.find(path)?)?),
            op => return self.on_xattr(op),
        }
        Ok(Out::Done)
    }

    fn file(&self, path: &str) -> Result<usize, i32> {
        let ino = self.find(path)?;
        if self.is_directory(ino) { Err(libc::EISDIR) } else { Ok(ino) }
    }

    fn on_xattr(&mut self, op: &Op) -> Outcome {
        match op {
            Op::SetXattr { path, name, length, seed, setting } => {
                let ino = self.find(path)?;
                let xattrs = &mut self.inodes[ino].xattrs;
                match (setting, xattrs.contains_key(name)) {
                    (Setting::Create, true) => return Err(libc::EEXIST),
                    (Setting::Replace, false) => return Err(libc::ENODATA),
                    _ => drop(xattrs.insert(name.clone(), pattern(*seed, *length))),
                }
            }
            Op::GetXattr { path, name } => {
                return self.inodes[self.find(path)?].xattrs.get(name).map(|value| Out::Bytes(value.clone())).ok_or(libc::ENODATA);
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.find(path)?;
                self.inodes[ino].xattrs.remove(name).ok_or(libc::ENODATA)?;
            }
            _ => panic!("not of this kind: {op:?}"),
        }
        Ok(Out::Done)
    }

    fn rename(&mut self, from: &str, to: &str, replacing: Replacing) -> Result<(), i32> {
        let (source_directory, source_name) = self.parent(from)?;
        let (target_directory, target_name) = self.parent(to)?;
        let source = self.find(from)?;
        let target = self.entries(target_directory)?.get(target_name).copied();
        match (replacing, target) {
            (Replacing::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (Replacing::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if self.is_above(source, target_directory) {
            return Err(libc::EINVAL);
        }
        let Some(target) = target else {
            self.entries_mut(source_directory).remove(source_name);
            self.entries_mut(target_directory).insert(target_name.to_string(), source);
            self.on_moved(source, source_directory, target_directory);
            return Ok(());
        };
        if self.is_above(target, source_directory) {
            return Err(if replacing == Replacing::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if source == target {
            return Ok(());
        }
        if replacing == Replacing::Exchange {
            self.entries_mut(source_directory).insert(source_name.to_string(), target);
            self.entries_mut(target_directory).insert(target_name.to_string(), source);
            self.on_moved(source, source_directory, target_directory);
            self.on_moved(target, target_directory, source_directory);
            return Ok(());
        }
        match (self.is_directory(source), self.is_directory(target)) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) if !self.entries(target)?.is_empty() => return Err(libc::ENOTEMPTY),
            (true, true) => {
                self.inodes[target].links = 0;
                self.inodes[target_directory].links -= 1;
            }
            (false, false) => self.inodes[target].links -= 1,
        }
        self.entries_mut(source_directory).remove(source_name);
        self.entries_mut(target_directory).insert(target_name.to_string(), source);
        self.on_moved(source, source_directory, target_directory);
        Ok(())
    }

    fn on_moved(&mut self, ino: usize, from: usize, to: usize) {
        if self.is_directory(ino) {
            self.inodes[ino].mtime = Mtime::Any;
            self.inodes[from].links -= 1;
            self.inodes[to].links += 1;
        }
    }
}
