//! Extended attributes: a table of their own, the rules of their namespaces, and the ACLs among them that go together with the mode.
//!
//! An inode's flags are an index of its records here. Bounds are checked by walking over an inode's attributes, which are few.

use bytes::Bytes;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{FileKind, InodeId, Timestamp};
use dfs::wire::namespace::{Answer, NewKind, Replied};
use dfs::xattr::{ACCESS_ACL, CAPABILITY, DEFAULT_ACL, XattrClass, XattrCondition, XattrFlags, XattrName};

use super::Namespace;
use super::acl::Acl;
use super::inode::{Inode, SET_GROUP_ID};
use super::store::XATTR_RECORD_BYTES;

/// What a new inode gets from its parent, and from the umask of who makes it.
pub(super) struct Inherited {
    pub mode: u16,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Inherited {
    /// Memory that it takes, at most about.
    pub fn weight(&self) -> u64 {
        let acls = self.access.iter().chain(&self.default);
        acls.map(|acl| (2 * XATTR_RECORD_BYTES + acl.to_bytes().len()) as u64).sum()
    }
}

/// An attribute to be set.
#[derive(Clone, Copy)]
pub(super) struct NewXattr<'a> {
    pub name: &'a XattrName,
    pub value: &'a [u8],
    pub condition: XattrCondition,
    /// An access ACL takes setgid away.
    pub drop_setgid: bool,
}

/// Whether inodes of that kind have attributes of that class.
fn check_kind(class: XattrClass, kind: FileKind) -> Result<(), Status> {
    match class {
        XattrClass::User if !matches!(kind, FileKind::File | FileKind::Directory) => Err(Status::NotPermitted),
        XattrClass::AccessAcl | XattrClass::DefaultAcl if kind == FileKind::Symlink => Err(Status::NotSupported),
        _ => Ok(()),
    }
}

impl Namespace {
    pub(super) fn set_xattr(&mut self, ino: InodeId, new: NewXattr, now: Timestamp) -> Result<Replied, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        new.name.check()?;
        let class = new.name.class()?;
        check_kind(class, inode.kind())?;
        match class {
            XattrClass::AccessAcl => self.set_access_acl(ino, new, now)?,
            XattrClass::DefaultAcl => self.set_default_acl(ino, new, now)?,
            _ => {
                let exists = self.store.xattr(ino, new.name.as_bytes()).is_some();
                if exists && new.condition.create {
                    return Err(Status::Exists);
                }
                if !exists && new.condition.replace {
                    return Err(Status::NoData);
                }
                self.check_xattr_room(ino, new.name.as_bytes(), new.value.len())?;
                self.put_xattr(ino, new.name.as_bytes(), Some(new.value));
                self.note_xattrs(ino, now, |_| {});
            }
        }
        Ok(Replied::Attributes(self.attributes(ino)?))
    }

    pub(super) fn remove_xattr(&mut self, ino: InodeId, name: &XattrName, now: Timestamp) -> Result<Replied, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        name.check()?;
        let class = name.class()?;
        check_kind(class, inode.kind())?;
        if self.store.xattr(ino, name.as_bytes()).is_none() {
            // No ACL is what a removal asks for, and the kernel leaves it to the file system to say so.
            let is_acl = matches!(class, XattrClass::AccessAcl | XattrClass::DefaultAcl);
            return if is_acl { Ok(Replied::Attributes(self.attributes(ino)?)) } else { Err(Status::NoData) };
        }
        self.put_xattr(ino, name.as_bytes(), None);
        self.note_xattrs(ino, now, |_| {});
        Ok(Replied::Attributes(self.attributes(ino)?))
    }

    pub(super) fn xattr(&self, ino: InodeId, name: &XattrName) -> Result<Answer, Status> {
        self.store.inode(ino).ok_or(Status::Stale)?;
        name.check()?;
        name.class()?;
        let value = self.store.xattr(ino, name.as_bytes()).ok_or(Status::NoData)?;
        Ok(Answer::Xattr(Bytes::copy_from_slice(value)))
    }

    pub(super) fn xattrs(&self, ino: InodeId) -> Result<Answer, Status> {
        self.store.inode(ino).ok_or(Status::Stale)?;
        let mut names = Vec::new();
        for (name, _) in self.store.xattrs(ino) {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(Answer::Xattrs(names.into()))
    }

    /// An access ACL is the mode's permission bits, and is stored only for what it says beyond them.
    fn set_access_acl(&mut self, ino: InodeId, new: NewXattr, now: Timestamp) -> Result<(), Status> {
        let acl = Acl::parse(new.value)?;
        let stored = acl.as_ref().filter(|acl| !acl.is_minimal()).map(Acl::to_bytes);
        if let Some(value) = &stored {
            self.check_xattr_room(ino, ACCESS_ACL, value.len())?;
        }
        self.put_xattr(ino, ACCESS_ACL, stored.as_deref());
        self.note_xattrs(ino, now, |inode| {
            let Some(acl) = &acl else { return };
            inode.mode = acl.apply_to_mode(inode.mode);
            if new.drop_setgid {
                inode.mode &= !SET_GROUP_ID;
            }
        });
        Ok(())
    }

    fn set_default_acl(&mut self, ino: InodeId, new: NewXattr, now: Timestamp) -> Result<(), Status> {
        let acl = Acl::parse(new.value)?;
        if !self.store.inode(ino).is_some_and(Inode::is_directory) {
            return if acl.is_some() { Err(Status::AccessDenied) } else { Ok(()) };
        }
        let stored = acl.as_ref().map(Acl::to_bytes);
        if let Some(value) = &stored {
            self.check_xattr_room(ino, DEFAULT_ACL, value.len())?;
        }
        self.put_xattr(ino, DEFAULT_ACL, stored.as_deref());
        self.note_xattrs(ino, now, |_| {});
        Ok(())
    }

    /// The permission bits were set: an access ACL says the same from now on.
    pub(super) fn change_acl_mode(&mut self, ino: InodeId) {
        let Some(inode) = self.store.inode(ino).filter(|inode| inode.xattrs.has(XattrFlags::ACCESS_ACL)) else { return };
        let mode = inode.mode;
        let Some(mut acl) = self.acl(ino, ACCESS_ACL) else { return };
        acl.change_mode(mode);
        self.put_xattr(ino, ACCESS_ACL, Some(&acl.to_bytes()));
    }

    /// Changed content, or a new owner, takes file capabilities away, whoever did it.
    pub(super) fn drop_capability(&mut self, ino: InodeId) {
        if self.store.inode(ino).is_some_and(|inode| inode.xattrs.has(XattrFlags::CAPABILITY) && !inode.is_directory()) {
            self.put_xattr(ino, CAPABILITY, None);
            self.index_xattrs(ino);
        }
    }

    /// What something made in that directory inherits: its default ACL stands in for the umask.
    pub(super) fn inherit(&self, parent: InodeId, kind: &NewKind, mode: u16, umask: u16) -> Inherited {
        let alone = |mode| Inherited { mode, access: None, default: None };
        if matches!(kind, NewKind::Symlink { .. }) {
            return alone(mode);
        }
        let has_default = self.store.inode(parent).is_some_and(|inode| inode.xattrs.has(XattrFlags::DEFAULT_ACL));
        let Some(default) = has_default.then(|| self.acl(parent, DEFAULT_ACL)).flatten() else { return alone(mode & !(umask & 0o777)) };
        let (access, mode) = default.inherit(mode);
        let access = Some(access).filter(|access| !access.is_minimal());
        Inherited { mode, access, default: Some(default).filter(|_| matches!(kind, NewKind::Directory)) }
    }

    /// Gives a new inode what it inherits.
    pub(super) fn bequeath(&mut self, ino: InodeId, inherited: &Inherited) {
        for (name, acl) in [(ACCESS_ACL, &inherited.access), (DEFAULT_ACL, &inherited.default)] {
            if let Some(acl) = acl {
                self.put_xattr(ino, name, Some(&acl.to_bytes()));
            }
        }
        if inherited.access.is_some() || inherited.default.is_some() {
            self.index_xattrs(ino);
        }
    }

    /// Frees attributes of an inode that is being reaped, until the visits are used up. Whether none is left.
    pub(super) fn free_xattrs(&mut self, ino: InodeId, visits: &mut usize) -> bool {
        if !self.store.inode(ino).is_some_and(|inode| inode.xattrs.has(XattrFlags::ANY)) {
            return true;
        }
        let budget = limits::COMMAND_VISITS_MAX.saturating_sub(*visits);
        let names: Vec<Vec<u8>> = self.store.xattrs(ino).take(budget).map(|(name, _)| name.to_vec()).collect();
        *visits += names.len();
        names.iter().for_each(|name| self.put_xattr(ino, name, None));
        self.index_xattrs(ino);
        self.store.xattrs(ino).next().is_none()
    }

    fn acl(&self, ino: InodeId, name: &[u8]) -> Option<Acl> {
        Acl::parse(self.store.xattr(ino, name)?).ok().flatten()
    }

    /// Whether there is room for that value under that name, which it may have already.
    fn check_xattr_room(&self, ino: InodeId, name: &[u8], length: usize) -> Result<(), Status> {
        if length > limits::XATTR_VALUE_BYTES_MAX {
            return Err(Status::TooLong);
        }
        let others = || self.store.xattrs(ino).filter(|(other, _)| *other != name);
        let (mut count, mut list, mut bytes) = (1, name.len() + 1, name.len() + length);
        for (other, value) in others() {
            count += 1;
            list += other.len() + 1;
            bytes += other.len() + value.len();
        }
        if count > limits::XATTRS_PER_INODE_MAX || list > limits::XATTR_LIST_BYTES_MAX || bytes > limits::XATTR_INODE_BYTES_MAX {
            return Err(Status::TooManyAttributes);
        }
        let old = self.store.xattr(ino, name).map_or(0, |value| XATTR_RECORD_BYTES + name.len() + value.len());
        self.check_room((XATTR_RECORD_BYTES + name.len() + length).saturating_sub(old) as u64)
    }

    fn put_xattr(&mut self, ino: InodeId, name: &[u8], value: Option<&[u8]>) {
        self.store.put_xattr(ino, name, value);
    }

    /// Attributes of the inode changed; `change` is what changed with them.
    fn note_xattrs(&mut self, ino: InodeId, now: Timestamp, change: impl FnOnce(&mut Inode)) {
        self.index_xattrs(ino);
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            inode.ctime = now.into();
            change(inode);
        });
    }

    /// Brings the inode's flags in step with its records.
    fn index_xattrs(&mut self, ino: InodeId) {
        let flags = self.store.xattr_flags(ino);
        if self.store.inode(ino).is_some_and(|inode| inode.xattrs != flags) {
            self.store.update_inode(ino, |inode| inode.xattrs = flags);
        }
    }
}

#[cfg(test)]
mod tests;
