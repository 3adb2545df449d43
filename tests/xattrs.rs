//! Extended attributes, ACLs, special and extreme files on two mounts of one cluster: what one mount did is true on the other when the
//! call has returned.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::posix::*;
use common::{Cluster, Mount};

const BOB: User = User { uid: 1002, gid: 2002, groups: &[], umask: 0o022 };

fn two_mounts() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::start(3);
    let with = || Mount::with(&["--nodes", &cluster.addresses(), "-o", "allow_other,dev"]);
    let (a, b) = (with(), with());
    for mount in [&a, &b] {
        // Others than root have to get to the mount point.
        fs::set_permissions(mount.path().parent().expect("in a directory"), Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(a.path(), Permissions::from_mode(0o777)).unwrap();
    (cluster, a, b)
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("the call should fail").raw_os_error().expect("an errno")
}

#[test]
fn p2_attributes_set_on_one_mount_are_seen_on_the_other() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("f"), b.path().join("f"));
    fs::write(&at_a, b"x").unwrap();
    let open = File::open(&at_b).unwrap();
    assert_eq!(errno(xattr(&at_b, "user.k")), libc::ENODATA);
    for round in 0..20u8 {
        let (writer, reader) = if round % 2 == 0 { (&at_a, &at_b) } else { (&at_b, &at_a) };
        let ctime = || fs::metadata(reader).map(|seen| (seen.ctime(), seen.ctime_nsec())).unwrap();
        let before = ctime();
        set_xattr(writer, "user.k", &[round; 100], 0).unwrap();
        assert_eq!(xattr(reader, "user.k").unwrap(), [round; 100]);
        assert_eq!(xattr_of_file(&open, "user.k").unwrap(), [round; 100]);
        assert!(ctime() > before, "setting one changes the ctime");
        assert_eq!(xattrs(reader).unwrap(), ["user.k"]);
        remove_xattr(reader, "user.k").unwrap();
        assert!(xattrs(writer).unwrap().is_empty());
        assert_eq!(errno(xattr(writer, "user.k")), libc::ENODATA);
    }
    // The largest there is, and as many as there may be.
    let largest: Vec<u8> = (0..65_536u32).map(|index| (index * 7) as u8).collect();
    set_xattr(&at_a, "user.large", &largest, libc::XATTR_CREATE).unwrap();
    assert_eq!(xattr(&at_b, "user.large").unwrap(), largest);
    fs::write(a.path().join("many"), b"").unwrap();
    let set = |name: usize| set_xattr(&a.path().join("many"), &format!("user.{name}"), b"v", 0);
    (0..dfs::limits::XATTRS_PER_INODE_MAX).for_each(|name| set(name).unwrap());
    assert_eq!(errno(set(dfs::limits::XATTRS_PER_INODE_MAX)), libc::ENOSPC);
    assert_eq!(xattrs(&b.path().join("many")).unwrap().len(), dfs::limits::XATTRS_PER_INODE_MAX);
}

#[test]
fn p2_acls_set_on_one_mount_decide_on_the_other() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("f"), b.path().join("f"));
    fs::write(&at_a, b"secret").unwrap();
    fs::set_permissions(&at_a, Permissions::from_mode(0o600)).unwrap();
    let read = || as_user(BOB, || fs::read(&at_b));
    for _ in 0..10 {
        assert_eq!(errno(read()), libc::EACCES);
        set_xattr(&at_a, ACCESS_ACL, &acl_with_user(6, (BOB.uid, 4), 0, 4, 0), 0).unwrap();
        assert_eq!(read().unwrap(), b"secret");
        assert_eq!(fs::metadata(&at_b).unwrap().mode() & 0o777, 0o640);
        // The mask is the group bits of the mode.
        fs::set_permissions(&at_a, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(errno(read()), libc::EACCES);
        assert_eq!(xattr(&at_b, ACCESS_ACL).unwrap(), acl_with_user(6, (BOB.uid, 4), 0, 0, 0));
        fs::set_permissions(&at_a, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read().unwrap(), b"secret");
        remove_xattr(&at_a, ACCESS_ACL).unwrap();
        assert_eq!(errno(read()), libc::EACCES);
        fs::set_permissions(&at_a, Permissions::from_mode(0o600)).unwrap();
    }
    fs::create_dir(a.path().join("d")).unwrap();
    set_xattr(&a.path().join("d"), DEFAULT_ACL, &acl_with_user(7, (BOB.uid, 7), 5, 7, 0), 0).unwrap();
    as_user(User { umask: 0o077, ..ROOT }, || fs::write(b.path().join("d/made"), b"")).unwrap();
    assert_eq!(xattr(&a.path().join("d/made"), ACCESS_ACL).unwrap(), acl_with_user(6, (BOB.uid, 7), 5, 6, 0));
    remove_xattr(&b.path().join("d"), DEFAULT_ACL).unwrap();
    as_user(User { umask: 0o077, ..ROOT }, || fs::write(a.path().join("d/bare"), b"")).unwrap();
    assert_eq!(fs::metadata(b.path().join("d/bare")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn trusted_names_are_shown_to_the_privileged_only() {
    let (_cluster, a, b) = two_mounts();
    let at = a.path().join("f");
    fs::write(&at, b"").unwrap();
    set_xattr(&at, "trusted.t", b"1", 0).unwrap();
    set_xattr(&at, "user.u", b"1", 0).unwrap();
    let at_b = b.path().join("f");
    assert_eq!(xattrs(&at_b).unwrap(), ["trusted.t", "user.u"]);
    assert_eq!(as_user(BOB, || xattrs(&at_b)).unwrap(), ["user.u"]);
    assert_eq!(errno(as_user(BOB, || xattr(&at_b, "trusted.t"))), libc::ENODATA);
}

#[test]
fn a_write_on_one_mount_takes_capabilities_away_on_the_other() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("f"), b.path().join("f"));
    fs::write(&at_a, b"program").unwrap();
    let capability: Vec<u8> = [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let open = OpenOptions::new().write(true).open(&at_a).unwrap();
    for _ in 0..10 {
        set_xattr(&at_b, "security.capability", &capability, 0).unwrap();
        assert!(xattr(&at_a, "security.capability").is_ok());
        open.write_at(b"x", 0).unwrap();
        assert_eq!(errno(xattr(&at_b, "security.capability")), libc::ENODATA);
        assert_eq!(errno(xattr(&at_a, "security.capability")), libc::ENODATA);
    }
}

#[test]
fn special_files_and_exchanges_on_both_mounts() {
    let (_cluster, a, b) = two_mounts();
    mknod(&a.path().join("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
    mknod(&a.path().join("socket"), libc::S_IFSOCK | 0o644, 0).unwrap();
    mknod(&a.path().join("null"), libc::S_IFCHR | 0o644, libc::makedev(1, 3)).unwrap();
    let kind = |name: &str| fs::symlink_metadata(b.path().join(name)).unwrap();
    assert!(kind("fifo").file_type().is_fifo() && kind("socket").file_type().is_socket());
    assert!(kind("null").file_type().is_char_device() && kind("null").rdev() == libc::makedev(1, 3));
    assert_eq!(File::open(b.path().join("null")).unwrap().read(&mut [0; 9]).unwrap(), 0);
    symlink("fifo", a.path().join("link")).unwrap();
    for (left, right) in [("fifo", "null"), ("socket", "link"), ("link", "fifo")] {
        let inode = |mount: &Mount, name: &str| fs::symlink_metadata(mount.path().join(name)).unwrap().ino();
        let (of_left, of_right) = (inode(&b, left), inode(&b, right));
        rename2(&a.path().join(left), &a.path().join(right), libc::RENAME_EXCHANGE).unwrap();
        assert_eq!((inode(&b, left), inode(&b, right)), (of_right, of_left));
        assert_eq!(errno(rename2(&b.path().join(left), &b.path().join(right), libc::RENAME_NOREPLACE)), libc::EEXIST);
    }
    // Names in any encoding.
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe caf\xe9\n");
    fs::write(a.path().join(name), b"bytes").unwrap();
    assert_eq!(fs::read(b.path().join(name)).unwrap(), b"bytes");
    assert!(fs::read_dir(b.path()).unwrap().any(|entry| entry.unwrap().file_name() == name));
}

#[test]
fn a_sparse_file_of_a_tebibyte() {
    let (_cluster, a, b) = two_mounts();
    const TEBIBYTE: u64 = 1 << 40;
    let (at_a, at_b) = (a.path().join("sparse"), b.path().join("sparse"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&at_a).unwrap();
    file.set_len(TEBIBYTE).unwrap();
    file.write_all_at(b"end", TEBIBYTE - 3).unwrap();
    file.write_all_at(b"middle", TEBIBYTE / 2).unwrap();
    file.sync_all().unwrap();
    let seen = fs::metadata(&at_b).unwrap();
    assert_eq!(seen.len(), TEBIBYTE);
    assert!(seen.blocks() * 512 < 1 << 20, "{} blocks", seen.blocks());
    let reader = File::open(&at_b).unwrap();
    let mut bytes = [1; 10];
    assert_eq!(reader.read_at(&mut bytes, TEBIBYTE - 7).unwrap(), 7);
    assert_eq!(&bytes[..7], b"\0\0\0\0end");
    reader.read_exact_at(&mut bytes, TEBIBYTE / 2 - 2).unwrap();
    assert_eq!(&bytes, b"\0\0middle\0\0");
    let mut zeros = vec![1; 1 << 20];
    reader.read_exact_at(&mut zeros, TEBIBYTE / 4).unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0));
    file.set_len(1).unwrap();
    assert_eq!(fs::metadata(&at_b).unwrap().blocks(), 0);
}

#[test]
fn ten_thousand_files_open_at_once() {
    let (_cluster, a, b) = two_mounts();
    const FILES: usize = 10_000;
    let wanted = libc::rlimit { rlim_cur: FILES as u64 + 1000, rlim_max: FILES as u64 + 1000 };
    // SAFETY: a plain call with a structure that outlives it; the limit of this test's own process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) }, 0);
    fs::create_dir(a.path().join("d")).unwrap();
    let path = |mount: &Mount, index: usize| mount.path().join(format!("d/{index}"));
    let create = |index: usize| OpenOptions::new().read(true).write(true).create_new(true).open(path(&a, index)).unwrap();
    let mut files: Vec<File> = (0..FILES).map(create).collect();
    for index in (0..FILES).step_by(500) {
        files[index].write_all(index.to_string().as_bytes()).unwrap();
        assert_eq!(fs::read(path(&b, index)).unwrap(), index.to_string().as_bytes());
        // Unlinked elsewhere, each of them lives on as long as it is open here.
        fs::remove_file(path(&b, index)).unwrap();
        let mut seen = vec![0; index.to_string().len()];
        files[index].read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, index.to_string().as_bytes());
    }
    assert_eq!(fs::read_dir(b.path().join("d")).unwrap().count(), FILES - FILES / 500);
}

/// An archive with everything, unpacked again, and a copy that finds nothing to do the second time.
#[test]
fn archives_and_copies_keep_attributes_and_acls() {
    let (_cluster, a, b) = two_mounts();
    let tree = a.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    for name in ["one", "sub/two"] {
        fs::write(tree.join(name), name).unwrap();
        set_xattr(&tree.join(name), "user.name", name.as_bytes(), 0).unwrap();
        set_xattr(&tree.join(name), ACCESS_ACL, &acl_with_user(6, (BOB.uid, 4), 0, 4, 0), 0).unwrap();
    }
    set_xattr(&tree.join("sub"), DEFAULT_ACL, &acl_with_user(7, (BOB.uid, 5), 0, 5, 0), 0).unwrap();
    fs::hard_link(tree.join("one"), tree.join("sub/three")).unwrap();
    let check = |root: &Path| {
        for name in ["one", "sub/two", "sub/three"] {
            let value = if name == "sub/three" { "one" } else { name };
            assert_eq!(xattr(&root.join(name), "user.name").unwrap(), value.as_bytes());
            assert_eq!(xattr(&root.join(name), ACCESS_ACL).unwrap(), acl_with_user(6, (BOB.uid, 4), 0, 4, 0));
        }
        assert_eq!(xattr(&root.join("sub"), DEFAULT_ACL).unwrap(), acl_with_user(7, (BOB.uid, 5), 0, 5, 0));
        assert_eq!(fs::metadata(root.join("one")).unwrap().nlink(), 2);
    };
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).to_string()
    };
    let at = |mount: &Mount, name: &str| mount.path().join(name).to_string_lossy().to_string();
    run("tar", &["--xattrs", "--acls", "-C", &at(&a, "tree"), "-cf", &at(&a, "tree.tar"), "."]);
    fs::create_dir(b.path().join("unpacked")).unwrap();
    run("tar", &["--xattrs", "--acls", "-C", &at(&b, "unpacked"), "-xf", &at(&b, "tree.tar")]);
    check(&a.path().join("unpacked"));
    run("cp", &["-a", &at(&a, "tree"), &at(&a, "copy")]);
    check(&b.path().join("copy"));
}
