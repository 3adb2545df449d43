//! Extended attributes and ACLs, rule by rule.

use dfs::types::{Attributes, ByteRange, Name, ROOT};
use dfs::wire::namespace::{AllocateMode, Op, Patch, Query, SetAttributes, Source, WriteAt};

use super::*;
use crate::namespace::acl::bytes_for_test;
use crate::namespace::command::{Command, SpaceLimits};
use crate::namespace::tests::World;

fn xattr_name(text: &str) -> XattrName {
    XattrName::new(text).unwrap()
}

fn make(world: &mut World, parent: InodeId, text: &str, kind: NewKind, (mode, umask): (u16, u16)) -> Attributes {
    let name = Name::new(text).unwrap();
    let op = Op::Create { parent, name, kind, mode, uid: 10, gid: 20, exclusive: true, hold: false, write: false, umask };
    match world.op(op).unwrap() {
        Replied::Entry { attributes, created: true, .. } => attributes,
        other => panic!("{other:?}"),
    }
}

fn file(world: &mut World, text: &str) -> InodeId {
    make(world, ROOT, text, NewKind::File, (0o644, 0)).ino
}

fn set_as(world: &mut World, ino: InodeId, name: &str, value: &[u8], condition: XattrCondition) -> Result<Attributes, Status> {
    let value = Bytes::copy_from_slice(value);
    match world.op(Op::SetXattr { ino, name: xattr_name(name), value, condition, drop_setgid: false })? {
        Replied::Attributes(attributes) => Ok(attributes),
        other => panic!("{other:?}"),
    }
}

fn set(world: &mut World, ino: InodeId, name: &str, value: &[u8]) -> Result<Attributes, Status> {
    set_as(world, ino, name, value, XattrCondition::default())
}

fn remove(world: &mut World, ino: InodeId, name: &str) -> Result<Replied, Status> {
    world.op(Op::RemoveXattr { ino, name: xattr_name(name) })
}

fn value(world: &World, ino: InodeId, name: &str) -> Result<Vec<u8>, Status> {
    match world.namespace.query(&Query::Xattr { ino, name: xattr_name(name) })? {
        Answer::Xattr(value) => Ok(value.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn list(world: &World, ino: InodeId) -> Vec<String> {
    let Answer::Xattrs(names) = world.namespace.query(&Query::Xattrs { ino }).unwrap() else { panic!() };
    let names = String::from_utf8(names.to_vec()).unwrap();
    names.split_terminator('\0').map(str::to_string).collect()
}

fn attributes(world: &World, ino: InodeId) -> Attributes {
    world.namespace.attributes(ino).unwrap()
}

#[test]
fn set_get_list_remove_with_conditions() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    let before = attributes(&world, ino);
    let after = set(&mut world, ino, "user.b", b"1").unwrap();
    assert!(after.ctime > before.ctime && after.mtime == before.mtime && after.version > before.version);
    assert!(after.data_version == before.data_version && after.xattrs == XattrFlags::ANY);
    let (create, replace) = (XattrCondition { create: true, replace: false }, XattrCondition { create: false, replace: true });
    let both = XattrCondition { create: true, replace: true };
    assert_eq!(set_as(&mut world, ino, "user.b", b"2", create), Err(Status::Exists));
    assert_eq!(set_as(&mut world, ino, "user.c", b"2", replace), Err(Status::NoData));
    assert_eq!(set_as(&mut world, ino, "user.b", b"2", both), Err(Status::Exists));
    assert_eq!(set_as(&mut world, ino, "user.c", b"2", both), Err(Status::NoData));
    assert_eq!(value(&world, ino, "user.b"), Ok(b"1".to_vec()));
    set_as(&mut world, ino, "user.b", b"22", replace).unwrap();
    set_as(&mut world, ino, "trusted.a", b"", create).unwrap();
    assert_eq!(value(&world, ino, "user.b"), Ok(b"22".to_vec()));
    assert_eq!(value(&world, ino, "trusted.a"), Ok(Vec::new()));
    assert_eq!(list(&world, ino), ["trusted.a", "user.b"]);
    assert_eq!(remove(&mut world, ino, "user.c"), Err(Status::NoData));
    remove(&mut world, ino, "user.b").unwrap();
    remove(&mut world, ino, "trusted.a").unwrap();
    assert_eq!(value(&world, ino, "user.b"), Err(Status::NoData));
    assert!(list(&world, ino).is_empty() && attributes(&world, ino).xattrs == XattrFlags::default());
    assert_eq!(set(&mut world, ino, "other.a", b""), Err(Status::NotSupported));
    assert_eq!(value(&world, ino, "system.other"), Err(Status::NotSupported));
    assert_eq!(set(&mut world, InodeId(999), "user.a", b""), Err(Status::Stale));
    world.namespace.check_invariants();
}

#[test]
fn user_attributes_are_of_files_and_directories() {
    let mut world = World::new();
    let link = make(&mut world, ROOT, "l", NewKind::Symlink { target: b"a".to_vec() }, (0o777, 0)).ino;
    let fifo = make(&mut world, ROOT, "f", NewKind::Fifo, (0o644, 0)).ino;
    for ino in [link, fifo] {
        assert_eq!(set(&mut world, ino, "user.a", b"1"), Err(Status::NotPermitted));
        assert_eq!(remove(&mut world, ino, "user.a"), Err(Status::NotPermitted));
        assert_eq!(value(&world, ino, "user.a"), Err(Status::NoData));
        set(&mut world, ino, "trusted.a", b"1").unwrap();
        set(&mut world, ino, "security.a", b"1").unwrap();
    }
    set(&mut world, ROOT, "user.a", b"1").unwrap();
    assert_eq!(set(&mut world, link, "system.posix_acl_access", &minimal(6, 6, 6)), Err(Status::NotSupported));
}

#[test]
fn one_inode_has_no_more_than_its_share() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    let usage = world.namespace.usage();
    assert_eq!(set(&mut world, ino, "user.a", &vec![0; limits::XATTR_VALUE_BYTES_MAX + 1]), Err(Status::TooLong));
    let largest = vec![7; limits::XATTR_VALUE_BYTES_MAX];
    let whole = limits::XATTR_INODE_BYTES_MAX / limits::XATTR_VALUE_BYTES_MAX - 1;
    (0..whole).for_each(|index| _ = set(&mut world, ino, &format!("user.{index}"), &largest).unwrap());
    assert_eq!(set(&mut world, ino, "user.more", &largest), Err(Status::TooManyAttributes));
    // What replaces another needs only the difference.
    set(&mut world, ino, "user.0", &largest).unwrap();
    assert!(world.namespace.usage().namespace_bytes > usage.namespace_bytes + 900_000);
    let many = file(&mut world, "b");
    (0..limits::XATTRS_PER_INODE_MAX).for_each(|index| _ = set(&mut world, many, &format!("user.{index}"), b"").unwrap());
    assert_eq!(set(&mut world, many, "user.more", b""), Err(Status::TooManyAttributes));
    set(&mut world, many, "user.0", b"2").unwrap();
    let long = file(&mut world, "c");
    let name = |index: usize| format!("user.{index:0250}");
    let fit = limits::XATTR_LIST_BYTES_MAX / 256;
    (0..fit).for_each(|index| _ = set(&mut world, long, &name(index), b"").unwrap());
    assert_eq!(set(&mut world, long, &name(fit), b""), Err(Status::TooManyAttributes));
    let Answer::Xattrs(names) = world.namespace.query(&Query::Xattrs { ino: long }).unwrap() else { panic!() };
    assert_eq!(names.len(), limits::XATTR_LIST_BYTES_MAX);
    world.namespace.check_invariants();
}

#[test]
fn attributes_are_freed_in_slices_with_their_inodes() {
    let mut world = World::new();
    let usage = world.namespace.usage();
    for text in ["a", "b", "c"] {
        let ino = file(&mut world, text);
        (0..700).for_each(|index| _ = set(&mut world, ino, &format!("user.{index}"), b"v").unwrap());
        world.op(Op::Unlink { parent: ROOT, name: Name::new(text).unwrap() }).unwrap();
    }
    let orphans: Vec<InodeId> = world.namespace.orphans().collect();
    let mut commands = 0;
    while world.namespace.orphans().next().is_some() {
        world.apply(Command::Reap { inos: orphans.clone() }).unwrap();
        world.namespace.check_invariants();
        commands += 1;
    }
    assert!(commands >= 3, "a command frees a bounded part");
    let left = world.namespace.usage();
    assert_eq!(left.inodes, usage.inodes);
    // Remembered outcomes are all that may be more.
    assert!(left.namespace_bytes < usage.namespace_bytes + 10_000);
}

#[test]
fn a_full_namespace_takes_no_more() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    set(&mut world, ino, "user.a", b"1").unwrap();
    let limits = SpaceLimits { namespace_bytes_max: 100, inline_bytes_max: 100 };
    world.apply(Command::SetLimits(limits)).unwrap();
    assert_eq!(set(&mut world, ino, "user.b", b"1"), Err(Status::NoSpace));
    remove(&mut world, ino, "user.a").unwrap();
}

fn minimal(owner: u16, group: u16, other: u16) -> Vec<u8> {
    bytes_for_test(&[(1, owner, u32::MAX), (4, group, u32::MAX), (32, other, u32::MAX)])
}

fn with_user(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    let none = u32::MAX;
    bytes_for_test(&[(1, owner, none), (2, user, 1000), (4, group, none), (16, mask, none), (32, other, none)])
}

fn chmod(world: &mut World, ino: InodeId, mode: u16) {
    let set = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
    world.op(Op::SetAttributes { ino, set }).unwrap();
}

#[test]
fn an_access_acl_and_the_mode_are_one() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    let name = "system.posix_acl_access";
    let set_to = set(&mut world, ino, name, &minimal(7, 5, 1)).unwrap();
    assert_eq!((set_to.mode, set_to.xattrs), (0o751, XattrFlags::default()));
    assert_eq!(value(&world, ino, name), Err(Status::NoData));
    let set_to = set(&mut world, ino, name, &with_user(6, 7, 4, 5, 0)).unwrap();
    assert_eq!(set_to.mode, 0o650);
    assert!(set_to.xattrs.has(XattrFlags::ACCESS_ACL));
    chmod(&mut world, ino, 0o1421);
    assert_eq!(value(&world, ino, name), Ok(with_user(4, 7, 4, 2, 1)));
    assert_eq!(list(&world, ino), [name]);
    remove(&mut world, ino, name).unwrap();
    assert_eq!(attributes(&world, ino).mode, 0o1421);
    remove(&mut world, ino, name).unwrap();
    set(&mut world, ino, name, &with_user(6, 7, 4, 5, 0)).unwrap();
    set(&mut world, ino, name, &bytes_for_test(&[])).unwrap();
    assert_eq!((attributes(&world, ino).mode, value(&world, ino, name)), (0o1650, Err(Status::NoData)));
    assert_eq!(set(&mut world, ino, name, b"x"), Err(Status::InvalidArgument));
    world.namespace.check_invariants();
}

#[test]
fn an_access_acl_takes_setgid_away_from_strangers() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    for (drop_setgid, mode) in [(false, 0o2654), (true, 0o654)] {
        chmod(&mut world, ino, 0o2755);
        let (name, condition) = (xattr_name("system.posix_acl_access"), XattrCondition::default());
        let value = Bytes::from(with_user(6, 7, 4, 5, 4));
        world.op(Op::SetXattr { ino, name, value, condition, drop_setgid }).unwrap();
        assert_eq!(attributes(&world, ino).mode, mode);
    }
}

#[test]
fn a_default_acl_is_inherited_instead_of_the_umask() {
    let mut world = World::new();
    assert_eq!(make(&mut world, ROOT, "masked", NewKind::File, (0o666, 0o027)).mode, 0o640);
    let directory = make(&mut world, ROOT, "d", NewKind::Directory, (0o2777, 0o022));
    assert_eq!(directory.mode, 0o2755);
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let parent = directory.ino;
    set(&mut world, parent, default, &with_user(7, 7, 5, 7, 5)).unwrap();
    assert_eq!(attributes(&world, parent).mode, 0o2755);
    let made = make(&mut world, parent, "f", NewKind::File, (0o666, 0o077));
    assert_eq!((made.mode, made.xattrs), (0o664, XattrFlags::of_name(access.as_bytes())));
    assert_eq!(value(&world, made.ino, access), Ok(with_user(6, 7, 5, 6, 4)));
    assert_eq!(value(&world, made.ino, default), Err(Status::NoData));
    let made = make(&mut world, parent, "e", NewKind::Directory, (0o777, 0o077));
    assert_eq!(made.mode, 0o2775);
    assert_eq!(value(&world, made.ino, default), Ok(with_user(7, 7, 5, 7, 5)));
    assert_eq!(value(&world, made.ino, access), Ok(with_user(7, 7, 5, 7, 5)));
    let made = make(&mut world, parent, "l", NewKind::Symlink { target: b"f".to_vec() }, (0o777, 0o077));
    assert_eq!((made.mode, made.xattrs), (0o777, XattrFlags::default()));
    set(&mut world, parent, default, &minimal(7, 5, 0)).unwrap();
    let made = make(&mut world, parent, "g", NewKind::Fifo, (0o666, 0o077));
    assert_eq!((made.mode, made.xattrs), (0o640, XattrFlags::default()));
    assert_eq!(set(&mut world, made.ino, default, &minimal(7, 5, 0)), Err(Status::AccessDenied));
    world.namespace.check_invariants();
}

#[test]
fn changed_content_takes_capabilities_away() {
    let mut world = World::new();
    let ino = file(&mut world, "a");
    let name = "security.capability";
    let set_again = |world: &mut World| assert!(set(world, ino, name, b"caps").unwrap().xattrs.has(XattrFlags::CAPABILITY));
    set_again(&mut world);
    let patch = Patch { at: WriteAt::End, length: 1, source: Source::Inline(Bytes::from_static(b"x")) };
    world.op(Op::Write { ino, patches: vec![patch], chunks: Vec::new(), kill_privileges: false, behind: None }).unwrap();
    assert_eq!((value(&world, ino, name), attributes(&world, ino).xattrs), (Err(Status::NoData), XattrFlags::default()));
    let size = SetAttributes { size: Some(0), ..SetAttributes::default() };
    let owner = SetAttributes { uid: Some(7), ..SetAttributes::default() };
    for change in [size, owner] {
        set_again(&mut world);
        world.op(Op::SetAttributes { ino, set: change }).unwrap();
        assert_eq!(value(&world, ino, name), Err(Status::NoData));
    }
    let range = ByteRange { offset: 0, length: 10 };
    let other = file(&mut world, "b");
    let keep_size = false;
    let changes = [
        Op::Allocate { ino, range, mode: AllocateMode::Zero { keep_size }, kill_privileges: false },
        Op::Copy { from: ino, from_offset: 0, to: other, to_offset: 0, length: 10, kill_privileges: false },
        Op::Copy { from: other, from_offset: 0, to: ino, to_offset: 0, length: 10, kill_privileges: false },
    ];
    for (change, keeps) in changes.into_iter().zip([false, true, false]) {
        set_again(&mut world);
        world.op(change).unwrap();
        assert_eq!(value(&world, ino, name).is_ok(), keeps);
    }
    set_again(&mut world);
    chmod(&mut world, ino, 0o755);
    assert_eq!(value(&world, ino, name), Ok(b"caps".to_vec()));
    let mut clear = |mode: u16, set: SetAttributes| {
        chmod(&mut world, ino, mode);
        world.op(Op::SetAttributes { ino, set }).unwrap();
        attributes(&world, ino).mode
    };
    let (privileges, setgid) = (
        SetAttributes { kill_privileges: true, ..SetAttributes::default() },
        SetAttributes { kill_setgid: true, ..SetAttributes::default() },
    );
    assert_eq!((clear(0o6755, privileges), clear(0o6745, privileges)), (0o755, 0o2745));
    assert_eq!((clear(0o6755, setgid), clear(0o6745, setgid)), (0o4755, 0o4745));
}
