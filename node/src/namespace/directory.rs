//! Names: create, link, unlink, rmdir, rename, with the rules and error codes of a local Linux file system.
//!
//! Every operation validates first and changes only when nothing can fail any more. The checks come in Linux's order.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{Cookie, InodeId, Name, Timestamp};
use dfs::wire::namespace::{NewKind, RenameMode, Replied};

use super::Namespace;
use super::command::Effect;
use super::inode::{Inode, SET_GROUP_ID};
use super::store::Entry;

/// What a new name and its inode take besides the bytes of the name: their records, and that of who may write the file alone.
const NAME_CHARGE: u64 = 512;

/// What `Create` makes, apart from where.
pub(super) struct NewInode<'a> {
    pub kind: &'a NewKind,
    pub mode: u16,
    /// Bits that the mode loses unless a default ACL stands in.
    pub umask: u16,
    pub uid: u32,
    pub gid: u32,
    pub exclusive: bool,
}

/// One end of a rename.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub parent: InodeId,
    pub name: &'a Name,
}

/// What an entry's coming or going changes in its directory.
#[derive(Default)]
struct Touch {
    entries: i64,
    subdirectories: i64,
}

impl Namespace {
    /// A directory in which names may be looked up or made: not one that is removed.
    fn living_directory(&self, ino: InodeId) -> Result<&Inode, Status> {
        let inode = self.store.inode(ino).ok_or(Status::NotFound)?;
        match inode.directory() {
            None => Err(Status::NotDirectory),
            Some(_) if inode.links == 0 => Err(Status::NotFound),
            Some(_) => Ok(inode),
        }
    }

    fn entry_inode(&self, place: Place) -> Result<(Entry, &Inode), Status> {
        place.name.check()?;
        self.living_directory(place.parent)?;
        let entry = self.store.entry(place.parent, place.name.as_bytes()).ok_or(Status::NotFound)?;
        let inode = self.store.inode(entry.ino).expect("an entry names an inode");
        Ok((entry, inode))
    }

    /// Records a change of a directory's entries, and gives the cookie for an entry that is added.
    fn touch(&mut self, directory: InodeId, touch: Touch, now: Timestamp) -> Cookie {
        let mut cookie = Cookie(0);
        self.store.update_inode(directory, |inode| {
            inode.version += 1;
            (inode.mtime, inode.ctime) = (now.into(), now.into());
            inode.links = inode.links.saturating_add_signed(touch.subdirectories as i32);
            if let Some(directory) = inode.directory_mut() {
                directory.entries = directory.entries.saturating_add_signed(touch.entries);
                directory.cookie += 1;
                cookie = Cookie(directory.cookie);
            }
        });
        cookie
    }

    /// An inode loses a name; a directory has only one.
    fn lose_name(&mut self, ino: InodeId, now: Timestamp) {
        let mut orphan = false;
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            inode.ctime = now.into();
            inode.links = if inode.is_directory() { 0 } else { inode.links - 1 };
            orphan = inode.links == 0;
        });
        if orphan {
            self.effects.push(Effect::Orphaned(ino));
        }
    }

    pub(super) fn create(&mut self, place: Place, new: NewInode, now: Timestamp) -> Result<Replied, Status> {
        place.name.check()?;
        let parent = self.living_directory(place.parent)?;
        let directory = matches!(new.kind, NewKind::Directory);
        if let Some(entry) = self.store.entry(place.parent, place.name.as_bytes()) {
            if new.exclusive || !matches!(new.kind, NewKind::File) {
                return Err(Status::Exists);
            }
            let inode = self.store.inode(entry.ino).expect("an entry names an inode");
            return Ok(Replied::Entry { attributes: inode.attributes(entry.ino), created: false, writer: false });
        }
        if let NewKind::Symlink { target } = new.kind {
            check_target(target)?;
        }
        if directory && parent.links >= limits::LINKS_MAX {
            return Err(Status::TooManyLinks);
        }
        let target = if let NewKind::Symlink { target } = new.kind { target.len() } else { 0 };
        let inherited = self.inherit(place.parent, new.kind, new.mode, new.umask);
        self.check_room((place.name.as_bytes().len() + target) as u64 + inherited.weight() + NAME_CHARGE)?;
        let (mut mode, mut gid) = (inherited.mode, new.gid);
        if parent.mode & SET_GROUP_ID != 0 {
            gid = parent.gid;
            mode |= if directory { SET_GROUP_ID } else { 0 };
        }
        let inode = Inode::new(new.kind.clone(), place.parent, mode, (new.uid, gid), now);
        self.header.last_inode += 1;
        let ino = InodeId(self.header.last_inode);
        self.store.put_inode(ino, inode);
        self.bequeath(ino, &inherited);
        let attributes = self.attributes(ino)?;
        let cookie = self.touch(place.parent, Touch { entries: 1, subdirectories: i64::from(directory) }, now);
        self.store.put_entry(place.parent, place.name.as_bytes(), Some(Entry { ino, cookie }));
        Ok(Replied::Entry { attributes, created: true, writer: false })
    }

    pub(super) fn link(&mut self, ino: InodeId, place: Place, now: Timestamp) -> Result<Replied, Status> {
        place.name.check()?;
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        self.living_directory(place.parent)?;
        if self.store.entry(place.parent, place.name.as_bytes()).is_some() {
            return Err(Status::Exists);
        }
        if inode.is_directory() {
            return Err(Status::NotPermitted);
        }
        if inode.links == 0 {
            return Err(Status::NotFound);
        }
        if inode.links >= limits::LINKS_MAX {
            return Err(Status::TooManyLinks);
        }
        self.check_room(place.name.as_bytes().len() as u64 + NAME_CHARGE)?;
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            inode.links += 1;
            inode.ctime = now.into();
        });
        let cookie = self.touch(place.parent, Touch { entries: 1, ..Touch::default() }, now);
        self.store.put_entry(place.parent, place.name.as_bytes(), Some(Entry { ino, cookie }));
        Ok(Replied::Entry { attributes: self.attributes(ino)?, created: true, writer: false })
    }

    pub(super) fn unlink(&mut self, place: Place, now: Timestamp) -> Result<Replied, Status> {
        let (entry, inode) = self.entry_inode(place)?;
        if inode.is_directory() {
            return Err(Status::IsDirectory);
        }
        self.remove_entry(place, entry, false, now);
        Ok(Replied::Done)
    }

    pub(super) fn rmdir(&mut self, place: Place, now: Timestamp) -> Result<Replied, Status> {
        let (entry, inode) = self.entry_inode(place)?;
        let directory = inode.directory().ok_or(Status::NotDirectory)?;
        if directory.entries > 0 {
            return Err(Status::NotEmpty);
        }
        self.remove_entry(place, entry, true, now);
        Ok(Replied::Done)
    }

    fn remove_entry(&mut self, place: Place, entry: Entry, directory: bool, now: Timestamp) {
        self.store.put_entry(place.parent, place.name.as_bytes(), None);
        self.touch(place.parent, Touch { entries: -1, subdirectories: -i64::from(directory) }, now);
        self.lose_name(entry.ino, now);
    }

    /// Whether `ino` is `directory` or lies above it.
    fn is_above(&self, ino: InodeId, mut directory: InodeId) -> bool {
        loop {
            if directory == ino {
                return true;
            }
            match self.store.inode(directory).and_then(Inode::directory) {
                Some(inode) if inode.parent != directory => directory = inode.parent,
                _ => return false,
            }
        }
    }

    pub(super) fn rename(&mut self, from: Place, to: Place, mode: RenameMode, now: Timestamp) -> Result<Replied, Status> {
        to.name.check()?;
        let (source, source_inode) = self.entry_inode(from)?;
        let target_parent = self.living_directory(to.parent)?;
        let target = self.store.entry(to.parent, to.name.as_bytes());
        let source_directory = source_inode.is_directory();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Status::Exists),
            (RenameMode::Exchange, None) => return Err(Status::NotFound),
            _ => {}
        }
        if source_directory && from.parent != to.parent && self.is_above(source.ino, to.parent) {
            return Err(Status::InvalidArgument);
        }
        let target_inode = target.and_then(|target| self.store.inode(target.ino));
        let target_directory = target_inode.is_some_and(Inode::is_directory);
        if let Some(target) = target.filter(|_| target_directory && from.parent != to.parent)
            && self.is_above(target.ino, from.parent)
        {
            return Err(if mode == RenameMode::Exchange { Status::InvalidArgument } else { Status::NotEmpty });
        }
        if target.is_some_and(|target| target.ino == source.ino) {
            return Ok(Replied::Done); // two names of one inode: POSIX wants both to stay
        }
        let exchange = mode == RenameMode::Exchange;
        if let Some(target) = target_inode.filter(|_| !exchange) {
            match (source_directory, target.directory()) {
                (true, None) => return Err(Status::NotDirectory),
                (false, Some(_)) => return Err(Status::IsDirectory),
                (true, Some(directory)) if directory.entries > 0 => return Err(Status::NotEmpty),
                _ => {}
            }
        }
        let moves_between = from.parent != to.parent;
        let gains = |comes: bool, goes: bool| moves_between && comes && !goes;
        if gains(source_directory, target_directory) && target_parent.links >= limits::LINKS_MAX {
            return Err(Status::TooManyLinks);
        }
        if exchange && gains(target_directory, source_directory) && self.living_directory(from.parent)?.links >= limits::LINKS_MAX {
            return Err(Status::TooManyLinks);
        }
        match target.filter(|_| exchange) {
            Some(target) => self.exchange((from, source, source_directory), (to, target, target_directory), now),
            None => self.move_entry((from, source), (to, target), source_directory, now),
        }
        Ok(Replied::Done)
    }

    fn move_entry(&mut self, (from, source): (Place, Entry), (to, target): (Place, Option<Entry>), directory: bool, now: Timestamp) {
        let step = i64::from(directory);
        self.store.put_entry(from.parent, from.name.as_bytes(), None);
        self.touch(from.parent, Touch { entries: -1, subdirectories: -step }, now);
        // A replaced directory takes its link of the parent along, as the moved one brings its own.
        let replaced = target.is_some();
        let touch = Touch { entries: i64::from(!replaced), subdirectories: if replaced { 0 } else { step } };
        let cookie = self.touch(to.parent, touch, now);
        // The name that is replaced existed throughout: a reader of the directory meets it once, under its old cookie.
        let cookie = target.map_or(cookie, |target| target.cookie);
        self.store.put_entry(to.parent, to.name.as_bytes(), Some(Entry { ino: source.ino, cookie }));
        self.settle(source.ino, to.parent, now);
        if let Some(target) = target {
            self.lose_name(target.ino, now);
        }
    }

    fn exchange(&mut self, (from, source, up): (Place, Entry, bool), (to, target, down): (Place, Entry, bool), now: Timestamp) {
        let step = if from.parent == to.parent { 0 } else { i64::from(up) - i64::from(down) };
        self.touch(from.parent, Touch { entries: 0, subdirectories: -step }, now);
        self.touch(to.parent, Touch { entries: 0, subdirectories: step }, now);
        self.store.put_entry(from.parent, from.name.as_bytes(), Some(Entry { ino: target.ino, cookie: source.cookie }));
        self.store.put_entry(to.parent, to.name.as_bytes(), Some(Entry { ino: source.ino, cookie: target.cookie }));
        self.settle(source.ino, to.parent, now);
        self.settle(target.ino, from.parent, now);
    }

    /// An inode has arrived at its new place.
    fn settle(&mut self, ino: InodeId, parent: InodeId, now: Timestamp) {
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            inode.ctime = now.into();
            if let Some(directory) = inode.directory_mut() {
                directory.parent = parent;
            }
        });
    }

    /// Whether records of so many bytes may be added: the namespace lies in the same memory as chunks, of which others may have reserved
    /// the rest.
    pub(super) fn check_room(&self, growth: u64) -> Result<(), Status> {
        self.check_records()?;
        if growth > self.spare_for_new() { Err(Status::NoSpace) } else { Ok(()) }
    }

    /// Whether the namespace may grow for itself.
    pub(super) fn check_records(&self) -> Result<(), Status> {
        let full = self.store.usage().namespace_bytes >= self.header.limits.namespace_bytes_max;
        if full { Err(Status::NoSpace) } else { Ok(()) }
    }
}

fn check_target(target: &[u8]) -> Result<(), Status> {
    match target.len() {
        0 => Err(Status::NotFound),
        length if length > limits::SYMLINK_BYTES_MAX => Err(Status::NameTooLong),
        _ if target.contains(&0) => Err(Status::InvalidArgument),
        _ => Ok(()),
    }
}
