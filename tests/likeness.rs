//! The same calls on tmpfs and on a mount must give the same results: extended attributes, ACLs, what writing and chown do to setuid and
//! setgid, sticky directories, special files. Whatever Linux does is right; nothing here says what that is.
#![allow(clippy::disallowed_methods)]

mod common;

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use common::posix::*;
use common::{Cluster, Mount, TempDir};

const ANN: User = User { uid: 1001, gid: 2001, groups: &[], umask: 0o022 };
const BOB: User = User { uid: 1002, gid: 2002, groups: &[2001, 2003], umask: 0o027 };

/// A tmpfs of the test's own.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new() -> Self {
        let directory = TempDir::new();
        let (kind, target) = (c_path(Path::new("tmpfs")), c_path(directory.path()));
        // SAFETY: NUL-terminated strings that outlive the call.
        let code = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        assert_eq!(code, 0, "mounting a tmpfs needs root");
        Tmpfs(directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let target = c_path(self.0.path());
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// What the calls gave, in order.
struct Run {
    root: PathBuf,
    log: Vec<String>,
}

impl Run {
    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A call in that user's name, and what it gave.
    fn call<T: Debug + Send>(&mut self, user: User, label: &str, call: impl FnOnce() -> io::Result<T> + Send) {
        let result = match as_user(user, call) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("{} ({error})", error.raw_os_error().unwrap_or(0)),
        };
        self.log.push(format!("uid {} {label}: {result}", user.uid));
    }

    /// What an inode looks like now.
    fn state(&mut self, name: &str) {
        let path = self.at(name);
        let seen =
            fs::symlink_metadata(&path).map(|seen| (format!("{:o}", seen.mode()), seen.uid(), seen.gid(), seen.nlink(), seen.rdev()));
        let names = xattrs(&path).unwrap_or_default();
        let values: Vec<_> = names.iter().map(|name| (name, xattr(&path, name).map(|value| digest(&value)))).collect();
        self.log.push(format!("    {name}: {:?} {values:?}", seen.map_err(|error| error.raw_os_error())));
    }

    fn file(&mut self, name: &str, user: User, gid: u32, mode: u32) {
        let path = self.at(name);
        fs::write(&path, b"content").unwrap();
        lchown(&path, Some(user.uid), Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    fn directory(&mut self, name: &str, user: User, gid: u32, mode: u32) {
        let path = self.at(name);
        fs::create_dir(&path).unwrap();
        lchown(&path, Some(user.uid), Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

fn digest(value: &[u8]) -> String {
    if value.len() > 64 { format!("{} bytes {}", value.len(), blake3::hash(value)) } else { format!("{value:?}") }
}

/// Runs the calls on both, and compares.
fn compare(calls: impl Fn(&mut Run)) {
    let cluster = Cluster::start(3);
    let (mount, tmpfs) = (Mount::with(&["--nodes", &cluster.addresses(), "-o", "allow_other,dev"]), Tmpfs::new());
    // Others than root have to get to the mount point.
    fs::set_permissions(mount.path().parent().expect("in a directory"), Permissions::from_mode(0o755)).unwrap();
    let run = |root: &Path| {
        // tmpfs and the mount begin with roots of different modes.
        fs::set_permissions(root, Permissions::from_mode(0o755)).unwrap();
        let mut run = Run { root: root.to_path_buf(), log: Vec::new() };
        calls(&mut run);
        run.log
    };
    let (expected, seen) = (run(tmpfs.0.path()), run(mount.path()));
    assert_eq!(expected.len(), seen.len());
    let different: Vec<String> = expected
        .iter()
        .zip(&seen)
        .enumerate()
        .filter(|(_, (expected, seen))| expected != seen)
        .map(|(index, (expected, seen))| format!("call {index}\n  tmpfs {expected}\n  mount {seen}"))
        .collect();
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), expected.len(), different.join("\n"));
}

#[test]
fn extended_attributes_are_those_of_tmpfs() {
    compare(|run| {
        run.file("f", ANN, 2001, 0o644);
        run.directory("d", ANN, 2001, 0o755);
        run.directory("sticky", ROOT, 0, 0o1777);
        symlink("f", run.at("l")).unwrap();
        mknod(&run.at("p"), libc::S_IFIFO | 0o666, 0).unwrap();
        mknod(&run.at("s"), libc::S_IFSOCK | 0o666, 0).unwrap();
        mknod(&run.at("c"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
        let long = format!("user.{}", "n".repeat(250));
        let too_long = format!("user.{}", "n".repeat(251));
        let names = ["user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "user", "trusted.", ".", &long, &too_long];
        for name in names {
            for file in ["f", "d", "sticky", "l", "p", "s", "c"] {
                for user in [ROOT, ANN, BOB] {
                    let path = run.at(file);
                    let value = format!("{}-{file}", user.uid);
                    run.call(user, &format!("set {name} {file}"), || set_xattr(&path, name, value.as_bytes(), 0));
                    run.call(user, &format!("get {name} {file}"), || xattr(&path, name));
                    run.call(user, &format!("list {file}"), || xattrs(&path));
                }
                run.state(file);
            }
        }
        for name in names {
            for file in ["f", "d", "sticky", "l", "p", "s", "c"] {
                for user in [BOB, ANN, ROOT, ROOT] {
                    let path = run.at(file);
                    run.call(user, &format!("remove {name} {file}"), || remove_xattr(&path, name));
                }
                run.state(file);
            }
        }
        let path = run.at("f");
        for flags in [
            libc::XATTR_REPLACE,
            libc::XATTR_CREATE | libc::XATTR_REPLACE,
            libc::XATTR_CREATE,
            libc::XATTR_CREATE,
            libc::XATTR_REPLACE,
            3,
            4,
        ] {
            run.call(ROOT, &format!("set with {flags}"), || set_xattr(&path, "user.flags", &[flags as u8], flags));
            run.state("f");
        }
        for (length, size) in
            [(0, 0), (0, 10), (1, 0), (5, 4), (5, 5), (5, 6), (65_536, 0), (65_536, 65_535), (65_536, 65_536), (65_537, 0)]
        {
            run.call(ROOT, &format!("set {length} bytes"), || set_xattr(&path, "user.sized", &vec![b'v'; length], 0));
            run.call(ROOT, &format!("get into {size} bytes"), || xattr_sized(&path, "user.sized", size).map(|value| digest(&value)));
        }
        run.call(ROOT, "get none", || xattr(&path, "user.none"));
        run.call(ROOT, "remove none", || remove_xattr(&path, "user.none"));
        // They go along with the inode, not with the name.
        fs::rename(&path, run.at("g")).unwrap();
        fs::hard_link(run.at("g"), run.at("h")).unwrap();
        run.state("h");
    });
}

#[test]
fn acls_are_those_of_tmpfs() {
    compare(|run| {
        run.file("f", ANN, 2001, 0o2755);
        run.file("foreign", ANN, 2003, 0o2755);
        run.directory("d", ANN, 2001, 0o2775);
        symlink("f", run.at("l")).unwrap();
        mknod(&run.at("p"), libc::S_IFIFO | 0o666, 0).unwrap();
        let many: Vec<(u16, u16, u32)> = [(1, 7, u32::MAX)]
            .into_iter()
            .chain((0..500).map(|user| (2, 7, 3000 + user)))
            .chain([(4, 7, u32::MAX), (16, 7, u32::MAX), (32, 7, u32::MAX)])
            .collect();
        let lists = [
            acl_minimal(7, 5, 1),
            acl_with_user(7, (BOB.uid, 7), 5, 5, 0),
            acl(&[(1, 6, 0), (2, 7, 1002), (4, 4, 0), (8, 6, 2003), (16, 6, 0), (32, 0, 0)]),
            acl(&many),
            acl(&[]),
            acl_with_user(6, (BOB.uid, 6), 4, 6, 0),
            acl(&[(1, 6, 0)]),
            acl(&[(1, 6, 0), (2, 7, 1002), (4, 4, 0), (32, 0, 0)]),
            acl(&[(4, 6, 0), (1, 4, 0), (32, 0, 0)]),
            acl(&[(1, 9, 0), (4, 4, 0), (32, 0, 0)]),
            b"x".to_vec(),
            vec![3, 0, 0, 0],
            Vec::new(),
        ];
        for name in [ACCESS_ACL, DEFAULT_ACL] {
            for (index, list) in lists.iter().enumerate() {
                for file in ["f", "foreign", "d", "l", "p"] {
                    // No list is a removal; for that tmpfs, unlike file systems on disks, looks at setgid too.
                    if file == "foreign" && (index == 4 || index == 12) {
                        continue;
                    }
                    for user in [BOB, ANN, ROOT] {
                        let path = run.at(file);
                        run.call(user, &format!("set {name} {index} {file}"), || set_xattr(&path, name, list, 0));
                        run.state(file);
                    }
                    fs::set_permissions(run.at(file), Permissions::from_mode(0o2754)).unwrap();
                    run.state(file);
                }
            }
        }
        for name in [ACCESS_ACL, DEFAULT_ACL] {
            for file in ["f", "d", "l", "p"] {
                for user in [BOB, ANN, ANN] {
                    let path = run.at(file);
                    run.call(user, &format!("remove {name} {file}"), || remove_xattr(&path, name));
                }
                run.state(file);
            }
        }
    });
}

#[test]
fn acls_are_enforced_and_inherited_as_on_tmpfs() {
    compare(|run| {
        run.file("f", ANN, 2001, 0o600);
        let path = run.at("f");
        let read = |path: &Path| fs::read(path).map(|bytes| bytes.len());
        let write = |path: &Path| OpenOptions::new().append(true).open(path).map(drop);
        for list in [
            acl_with_user(6, (BOB.uid, 4), 0, 4, 0),
            acl_with_user(6, (BOB.uid, 6), 0, 7, 0),
            acl_with_user(6, (BOB.uid, 6), 0, 4, 0),
            acl_minimal(6, 4, 0),
        ] {
            set_xattr(&path, ACCESS_ACL, &list, 0).unwrap();
            for user in [ANN, BOB, User { uid: 1003, gid: 2003, ..BOB }] {
                run.call(user, "read", || read(&path));
                run.call(user, "write", || write(&path));
            }
        }
        let wide = acl_with_user(7, (BOB.uid, 7), 7, 7, 5);
        let defaults = [None, Some(wide), Some(acl_minimal(7, 5, 0)), Some(acl_with_user(7, (BOB.uid, 5), 0, 5, 0))];
        for (index, default) in defaults.iter().enumerate() {
            let parent = format!("d{index}");
            run.directory(&parent, ANN, 2001, 0o2777);
            let parent = run.at(&parent);
            if let Some(default) = default {
                set_xattr(&parent, DEFAULT_ACL, default, 0).unwrap();
            }
            for user in [ANN, BOB, User { umask: 0o077, ..ROOT }] {
                for mode in [0o666, 0o777, 0o640, 0o2775, 0o4700] {
                    let name = |kind: &str| format!("{index}-{kind}-{}-{mode:o}", user.uid);
                    let at = |kind: &str| parent.join(name(kind));
                    let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(at("file")).map(drop);
                    run.call(user, "create", create);
                    run.call(user, "mknod", || mknod(&at("fifo"), libc::S_IFIFO | mode, 0));
                    run.call(user, "mknod of a file", || mknod(&at("plain"), libc::S_IFREG | mode, 0));
                    run.call(user, "mkdir", || make_directory(&at("directory"), mode));
                    run.call(user, "symlink", || symlink("f", at("link")));
                    for kind in ["file", "fifo", "plain", "directory", "link"] {
                        run.state(&format!("d{index}/{}", name(kind)));
                    }
                }
            }
        }
    });
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(mode).create(path)
}

fn capability() -> Vec<u8> {
    // Version 2, cap_net_raw permitted and effective.
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn privileges_are_taken_away_as_on_tmpfs() {
    compare(|run| {
        type Change = fn(&Path) -> io::Result<()>;
        let changes: [(&str, Change); 12] = [
            ("write", |path| OpenOptions::new().write(true).open(path)?.write_at(b"x", 3).map(drop)),
            ("append", |path| OpenOptions::new().append(true).open(path)?.write_all(b"x")),
            ("write nothing", |path| OpenOptions::new().write(true).open(path)?.write_at(b"", 3).map(drop)),
            ("truncate by path", |path| {
                let path = c_path(path);
                // SAFETY: a NUL-terminated string that outlives the call.
                if unsafe { libc::truncate(path.as_ptr(), 3) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            }),
            ("truncate to the same size", |path| OpenOptions::new().write(true).open(path)?.set_len(7)),
            ("truncate", |path| OpenOptions::new().write(true).open(path)?.set_len(2)),
            ("open to truncate", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
            ("chown to oneself", |path| lchown(path, Some(fs::metadata(path)?.uid()), None)),
            ("chown to nobody", |path| lchown(path, None, None)),
            ("chgrp", |path| lchown(path, None, Some(2001))),
            ("chmod", |path| fs::set_permissions(path, Permissions::from_mode(0o6777))),
            ("link", |path| {
                let other = path.with_extension("link");
                fs::hard_link(path, &other)?;
                fs::remove_file(&other)
            }),
        ];
        let mut number = 0;
        for (label, change) in changes {
            for user in [ROOT, ANN, BOB] {
                for mode in [0o6777, 0o6767, 0o2767, 0o4777] {
                    for owner in [ANN, BOB] {
                        // FUSE shows only that it is a change by somebody, who may be writing to the file.
                        if label == "chown to nobody" && user.uid != 0 && user.uid != owner.uid {
                            continue;
                        }
                        number += 1;
                        let name = format!("f{number}");
                        run.file(&name, owner, 2003, mode);
                        let path = run.at(&name);
                        set_xattr(&path, "security.capability", &capability(), 0).unwrap();
                        run.call(user, &format!("{label} of {mode:o} of {}", owner.uid), || change(&path));
                        run.state(&name);
                    }
                }
            }
        }
        for user in [ROOT, ANN, BOB] {
            let name = format!("d{}", user.uid);
            run.directory(&name, user, 2003, 0o6777);
            let path = run.at(&name);
            run.call(user, "chown of a directory", || lchown(&path, None, Some(user.gid)));
            run.state(&name);
        }
    });
}

#[test]
fn sticky_directories_are_those_of_tmpfs() {
    compare(|run| {
        let mut number = 0;
        for (owner, mode) in [(ROOT, 0o1777), (ANN, 0o1777), (ANN, 0o777), (ROOT, 0o1775), (ROOT, 0o3777)] {
            for user in [ROOT, ANN, BOB] {
                for of in [ANN, BOB] {
                    number += 1;
                    let directory = format!("d{number}");
                    run.directory(&directory, owner, 2001, mode);
                    for name in ["remove", "from", "to", "left", "right"] {
                        run.file(&format!("{directory}/{name}"), of, 2001, 0o666);
                    }
                    run.file(&format!("{directory}/mine"), user, 2001, 0o666);
                    run.directory(&format!("{directory}/empty"), of, 2001, 0o777);
                    run.directory(&format!("{directory}/full"), of, 2001, 0o777);
                    let at = |name: &str| run.root.join(&directory).join(name);
                    let (remove, from, to, left, right) = (at("remove"), at("from"), at("to"), at("left"), at("right"));
                    let (mine, empty, full, new) = (at("mine"), at("empty"), at("full"), at("new"));
                    run.call(user, "unlink", || fs::remove_file(&remove));
                    run.call(user, "rename", || fs::rename(&from, &new));
                    run.call(user, "rename over", || fs::rename(&mine, &to));
                    run.call(user, "exchange", || rename2(&left, &right, libc::RENAME_EXCHANGE));
                    run.call(user, "rmdir", || fs::remove_dir(&empty));
                    run.call(user, "move a directory", || fs::rename(&full, full.with_extension("moved")));
                    run.call(user, "create", || File::create(new.with_extension("created")).map(drop));
                    run.call(user, "append to another's", || OpenOptions::new().append(true).open(&left).map(drop));
                    run.call(user, "O_CREAT of another's", || OpenOptions::new().append(true).create(true).open(&right).map(drop));
                    let mut names: Vec<_> = fs::read_dir(run.at(&directory)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                    names.sort();
                    run.log.push(format!("    {names:?}"));
                }
            }
        }
    });
}

#[test]
fn special_files_are_those_of_tmpfs() {
    compare(|run| {
        let null = libc::makedev(1, 3);
        let kinds = [
            ("fifo", libc::S_IFIFO, 0),
            ("socket", libc::S_IFSOCK, 0),
            ("char", libc::S_IFCHR, null),
            ("block", libc::S_IFBLK, libc::makedev(7, 255)),
            ("wide", libc::S_IFCHR, libc::makedev(0xfff, 0xfffff)),
            ("file", libc::S_IFREG, 0),
            ("directory", libc::S_IFDIR, 0),
            ("none", 0, 0),
            ("link", libc::S_IFLNK, 0),
        ];
        run.directory("d", ROOT, 0, 0o777);
        for (name, kind, device) in kinds {
            for user in [ROOT, BOB] {
                let path = run.at("d").join(format!("{name}-{}", user.uid));
                run.call(user, &format!("mknod {name}"), || mknod(&path, kind | 0o666, device));
                run.call(user, &format!("mknod {name} again"), || mknod(&path, kind | 0o666, device));
                run.state(&format!("d/{name}-{}", user.uid));
            }
        }
        let device = run.at("d/char-0");
        run.call(ROOT, "write to the null device", || OpenOptions::new().write(true).open(&device)?.write(b"gone"));
        run.call(BOB, "read from it", || File::open(&device)?.read(&mut [0; 4]));
        let fifo = run.at("d/fifo-0");
        run.call(ROOT, "through a fifo", || {
            let writer = std::thread::spawn({
                let fifo = fifo.clone();
                move || OpenOptions::new().write(true).open(fifo)?.write_all(b"through")
            });
            let mut text = String::new();
            File::open(&fifo)?.read_to_string(&mut text)?;
            writer.join().expect("the writer ends")?;
            Ok(text)
        });
        let open_nonblocking = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).map(drop);
        run.call(ROOT, "a fifo that nobody reads", open_nonblocking);
        let (socket, plain) = (run.at("sock"), run.at("d/socket-0"));
        run.call(ROOT, "through a socket", || {
            let listener = UnixListener::bind(&socket)?;
            let mut client = UnixStream::connect(&socket)?;
            client.write_all(b"through")?;
            drop(client);
            let mut text = String::new();
            listener.accept()?.0.read_to_string(&mut text)?;
            Ok((text, fs::symlink_metadata(&socket)?.file_type().is_socket()))
        });
        run.call(ROOT, "a socket that nobody listens to", || UnixStream::connect(&plain).map(drop));
        run.call(ROOT, "bind over it", || UnixListener::bind(&plain).map(drop));
        run.call(ROOT, "open a socket", || File::open(&plain).map(drop));
        for flags in [libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE, 1 << 7] {
            let (from, to, missing) = (run.at("d/fifo-0"), run.at("d/char-0"), run.at("missing"));
            run.call(ROOT, &format!("rename {flags}"), || rename2(&from, &to, flags));
            run.call(ROOT, &format!("rename {flags} to nothing"), || rename2(&from, &missing, flags));
            run.call(ROOT, &format!("rename {flags} of nothing"), || rename2(&missing.with_extension("too"), &to, flags));
            run.state("d/fifo-0");
            run.state("d/char-0");
            run.state("missing");
        }
    });
}

#[test]
fn names_of_any_bytes_and_deep_paths_are_those_of_tmpfs() {
    compare(|run| {
        let names: [&[u8]; 7] = [b"\xff\xfe", b"caf\xe9", "caf\u{e9}".as_bytes(), b"new\nline", b" ", b"...", &[0x80; 255]];
        run.directory("d", ROOT, 0, 0o777);
        for name in names {
            let path = run.at("d").join(OsStr::from_bytes(name));
            run.call(BOB, "create", || fs::write(&path, name));
            run.call(BOB, "read", || fs::read(&path));
            run.call(BOB, "link to it", || symlink(OsStr::from_bytes(name), path.with_extension("l")));
        }
        let long = run.at("d").join(OsStr::from_bytes(&[b'n'; 256]));
        run.call(BOB, "a name of 256 bytes", || File::create(&long).map(drop));
        let mut listed: Vec<_> = fs::read_dir(run.at("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        listed.sort();
        run.log.push(format!("{listed:?}"));
        let root = run.root.clone();
        run.call(ROOT, "a path deeper than PATH_MAX", || deep(&root));
    });
}

/// Makes a path of more than PATH_MAX bytes step by step, writes and reads at its end, and removes it.
fn deep(root: &Path) -> io::Result<(usize, String)> {
    const LEVELS: usize = 200;
    let name = format!("{:030}", 7);
    let step = c_path(Path::new(&name));
    let opened = |code: i32| if code >= 0 { Ok(code) } else { Err(io::Error::last_os_error()) };
    let mut directories = vec![File::open(root)?];
    for _ in 0..LEVELS {
        let parent = directories.last().expect("not empty").as_raw_fd();
        // SAFETY: a NUL-terminated string that outlives the calls, and a descriptor that nobody else has.
        unsafe {
            opened(libc::mkdirat(parent, step.as_ptr(), 0o755))?;
            directories.push(OwnedFd::from_raw_fd(opened(libc::openat(parent, step.as_ptr(), libc::O_DIRECTORY | libc::O_RDONLY))?).into());
        }
    }
    let last = PathBuf::from(format!("/proc/self/fd/{}/file", directories.last().expect("not empty").as_raw_fd()));
    fs::write(&last, b"deep")?;
    let text = fs::read_to_string(&last)?;
    let long = (0..LEVELS).fold(root.to_path_buf(), |path, _| path.join(&name));
    let refused = fs::metadata(&long).expect_err("the whole path is too long").raw_os_error();
    fs::remove_file(&last)?;
    while directories.len() > 1 {
        directories.pop();
        let parent = directories.last().expect("not empty").as_raw_fd();
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { opened(libc::unlinkat(parent, step.as_ptr(), libc::AT_REMOVEDIR))? };
    }
    Ok((LEVELS, format!("{text} {refused:?}")))
}
