//! Requests for extended attributes, and what the kernel leaves to the file system of setgid.
//!
//! The kernel asks for a few names again and again that most inodes lack: for the access ACL with permission checks by others than the
//! owner, for `security.capability` before cached writes. The client core answers from the attributes what is absent, as long as it has a
//! right on the inode; here nothing is answered from memory. Whether the kernel learned in time that a file has capabilities does not
//! matter: the namespace takes them away with every change of content, in the same log entry.

use std::collections::BTreeMap;

use dfs::client;
use dfs::status::Status;
use dfs::types::{Attributes, FileKind, InodeId, ROOT};
use dfs::wire::namespace::{Answer, Op, Query, Replied, SetAttributes, SetTime};
use dfs::xattr::{ACCESS_ACL, XattrName};

use super::{Shape, Step, Translator};
use crate::requests::{Context, NewXattr, Reply, WriteKind};

/// Inodes remembered although the kernel does not know them: it was not told, or has forgotten them before the answer came.
const UNKNOWN_KEPT_MAX: usize = 1024;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o0010;

/// What the newest attributes of an inode said.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u64,
    kind: FileKind,
    mode: u16,
    gid: u32,
}

/// What is known of the inodes that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    inodes: BTreeMap<InodeId, Seen>,
}

impl Known {
    /// Takes in attributes, unless newer ones are there.
    pub fn note(&mut self, attributes: &Attributes) {
        let Attributes { ino, version, kind, mode, gid, .. } = *attributes;
        let new = Seen { version, kind, mode, gid };
        let seen = self.inodes.entry(ino).or_insert(new);
        if seen.version <= version {
            *seen = new;
        }
    }

    /// Takes in what a call answered.
    pub fn note_reply(&mut self, reply: &client::Reply) {
        match reply {
            client::Reply::Answer(Answer::Attributes(attributes))
            | client::Reply::Replied(
                Replied::Attributes(attributes) | Replied::Entry { attributes, .. } | Replied::Written { attributes, .. },
            ) => self.note(attributes),
            client::Reply::Answer(Answer::Directory { attributes, .. }) => self.note(attributes),
            _ => {}
        }
    }

    pub fn forget(&mut self, ino: InodeId) {
        self.inodes.remove(&ino);
    }

    /// The group of an inode with setgid.
    fn setgid_group(&self, ino: InodeId) -> Option<u32> {
        self.inodes.get(&ino).filter(|seen| seen.mode & SET_GROUP_ID != 0).map(|seen| seen.gid)
    }

    /// The same of a file that its group may not execute.
    fn idle_setgid_group(&self, ino: InodeId) -> Option<u32> {
        let idle = |seen: &&Seen| seen.kind != FileKind::Directory && seen.mode & (SET_GROUP_ID | GROUP_EXECUTE) == SET_GROUP_ID;
        self.inodes.get(&ino).filter(idle).map(|seen| seen.gid)
    }
}

impl Translator {
    /// Takes in what a call answered. Of inodes that the kernel does not know after all, little is kept.
    pub(super) fn note_xattrs(&mut self, reply: &client::Reply) {
        self.xattrs.note_reply(reply);
        if self.xattrs.inodes.len() > 2 * self.handles.known_inodes() + UNKNOWN_KEPT_MAX {
            let handles = &self.handles;
            self.xattrs.inodes.retain(|&ino, _| ino == ROOT || handles.known(ino) > 0);
        }
    }

    pub(super) fn xattr(&mut self, token: u64, ino: InodeId, name: Vec<u8>) -> Result<(), Status> {
        let name = XattrName::new(name)?;
        name.class()?;
        self.query(token, Shape::Xattr, Query::Xattr { ino, name });
        Ok(())
    }

    /// What the kernel leaves out of a SETATTR. Without any field it comes from chown(2) to nobody, which changes the ctime nevertheless.
    pub(super) fn complete_set(&self, ino: InodeId, context: Context, set: SetAttributes) -> SetAttributes {
        let owns = set.size.is_some() || set.uid.is_some() || set.gid.is_some();
        let empty = set == SetAttributes::default();
        let mut set = set;
        if empty {
            set.ctime = Some(SetTime::Now);
        }
        if (owns || empty) && self.strips_idle_setgid(ino, context) {
            set.kill_setgid = true;
            // The kernel's own part of it: the mode without setuid.
            set.mode = set.mode.map(|mode| mode & !SET_GROUP_ID);
        }
        set
    }

    /// Whether a change by that process takes setgid away that means nothing, since the group may not execute the file. Linux looks at the
    /// process's groups then, and FUSE, other than for setuid and for setgid that means something, leaves all of it to the file system.
    pub(super) fn strips_idle_setgid(&self, ino: InodeId, context: Context) -> bool {
        self.xattrs.idle_setgid_group(ino).is_some_and(|group| !self.options.keeps_setgid.0(&context, group))
    }

    /// Such setgid goes before the write. Rare enough for a request of its own.
    pub(super) fn kill_setgid_before_write(&mut self, ino: InodeId, context: Context, kind: WriteKind) {
        if kind != WriteKind::Mapped && self.strips_idle_setgid(ino, context) {
            let set = SetAttributes { kill_setgid: true, ..SetAttributes::default() };
            self.call(Step::Unawaited, client::Call::Op(Op::SetAttributes { ino, set }));
        }
    }

    pub(super) fn set_xattr(&mut self, token: u64, context: Context, ino: InodeId, new: NewXattr) -> Result<(), Status> {
        let NewXattr { name, value, condition } = new;
        // As in the kernel itself, the group is the one of the attributes that the permission to set was checked with. The kernel would
        // tell what becomes of setgid in a flag that fuser 0.18.0 cannot decode.
        let group = if name == ACCESS_ACL { self.xattrs.setgid_group(ino) } else { None };
        let drop_setgid = group.is_some_and(|group| !self.options.keeps_setgid.0(&context, group));
        let name = XattrName::new(name)?;
        name.class()?;
        self.op(token, Shape::Done, Op::SetXattr { ino, name, value, condition, drop_setgid });
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, token: u64, ino: InodeId, name: Vec<u8>) -> Result<(), Status> {
        let name = XattrName::new(name)?;
        name.class()?;
        self.op(token, Shape::Done, Op::RemoveXattr { ino, name });
        Ok(())
    }
}

/// The value or the names in the form that the kernel wants.
pub(super) fn shaped(reply: client::Reply) -> Result<Reply, Status> {
    match reply {
        client::Reply::Answer(Answer::Xattr(value)) => Ok(Reply::Xattr(value)),
        client::Reply::Answer(Answer::Xattrs(names)) => Ok(Reply::Xattrs(names)),
        _ => Err(Status::Internal),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dfs::xattr::{DEFAULT_ACL, XattrCondition};

    use super::super::tests::{INO, Script, attributes};
    use super::*;
    use crate::requests::{OpenMode, Request};

    /// The answer to `stat`, as the leader gives it.
    fn see(script: &mut Script, change: impl FnOnce(&mut Attributes)) {
        let mut seen = attributes(INO, FileKind::File);
        change(&mut seen);
        script.ask(Request::GetAttributes { ino: INO });
        let (step, _) = script.call();
        script.answer(step, Answer::Attributes(seen));
        script.reply();
    }

    #[test]
    fn what_the_kernel_forgot_is_forgotten() {
        let mut script = Script::new();
        see(&mut script, |_| {});
        script.translator.on_forget(INO, 1);
        assert!(script.translator.xattrs.inodes.is_empty());
        // Answers about inodes that the kernel never gets to know do not pile up.
        for number in 0..2 * UNKNOWN_KEPT_MAX as u64 {
            script.translator.note_xattrs(&client::Reply::Answer(Answer::Attributes(attributes(InodeId(number), FileKind::File))));
        }
        assert!(script.translator.xattrs.inodes.len() <= UNKNOWN_KEPT_MAX + 1);
    }

    #[test]
    fn setgid_that_means_nothing_goes_with_changes_by_strangers() {
        let mut script = Script::new();
        let handle = script.open();
        let write = || Request::Write { ino: INO, handle, offset: 0, bytes: Bytes::from_static(b"x"), kind: WriteKind::At, sync: false };
        let clears = |call: client::Call| match call {
            client::Call::Op(Op::SetAttributes { set, .. }) => set.kill_setgid,
            client::Call::Write { .. } => false,
            call => panic!("{call:?}"),
        };
        // (mode, group): the script's user is in group 100.
        for (version, (mode, gid, goes)) in
            [(0o2644, 5, true), (0o2644, 100, false), (0o2654, 5, false), (0o644, 5, false)].into_iter().enumerate()
        {
            see(&mut script, |seen| (seen.version, seen.mode, seen.gid) = (10 + version as u64, mode, gid));
            script.ask(write());
            let (_, call) = script.call();
            assert_eq!(clears(call), goes);
            if goes {
                assert!(!clears(script.call().1), "the write itself follows");
            }
            let changes = [
                SetAttributes { uid: Some(3), ..SetAttributes::default() },
                SetAttributes { size: Some(3), ..SetAttributes::default() },
                SetAttributes::default(),
            ];
            for set in changes {
                script.ask(Request::SetAttributes { ino: INO, set });
                assert_eq!(clears(script.call().1), goes);
            }
            let set = SetAttributes { mode: Some(0o2644), ..SetAttributes::default() };
            script.ask(Request::SetAttributes { ino: INO, set });
            assert!(!clears(script.call().1), "chmod says what it wants");
            script.ask(Request::Open { ino: INO, mode: OpenMode { truncate: true, write: true, exclusive: false, direct: false } });
            assert_eq!(clears(script.call().1), goes);
        }
    }

    #[test]
    fn an_access_acl_set_by_a_stranger_clears_setgid() {
        let mut script = Script::new();
        let new = |name: &[u8]| NewXattr { name: name.to_vec(), value: Bytes::new(), condition: XattrCondition::default() };
        for (version, (gid, goes)) in [(5, true), (100, false)].into_iter().enumerate() {
            see(&mut script, |seen| (seen.version, seen.mode, seen.gid) = (10 + version as u64, 0o2755, gid));
            for (name, goes) in [(ACCESS_ACL, goes), (DEFAULT_ACL, false), (&b"user.a"[..], false)] {
                script.ask(Request::SetXattr { ino: INO, new: new(name) });
                let (_, client::Call::Op(Op::SetXattr { drop_setgid, .. })) = script.call() else { panic!() };
                assert_eq!(drop_setgid, goes);
            }
        }
        let token = script.ask(Request::SetXattr { ino: INO, new: new(b"other.a") });
        assert_eq!(script.reply(), (token, Reply::Error(Status::NotSupported)));
        let token = script.ask(Request::RemoveXattr { ino: INO, name: b"user.".to_vec() });
        assert_eq!(script.reply(), (token, Reply::Error(Status::InvalidArgument)));
    }
}
