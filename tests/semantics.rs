//! POSIX through the kernel: real node processes, real mounts, the calls that programs make and the errno they must see.
//!
//! Each test runs on two mounts of one cluster, because what one mount did must be true on the other when the call has returned.
#![allow(clippy::disallowed_methods)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, wait_until};

/// A cluster of three nodes with two mounts of it.
fn two_mounts() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    (cluster, a, b)
}

/// The errno that a call failed with.
fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("the call should fail").raw_os_error().expect("an errno")
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn rename2(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: both strings are NUL-terminated and live through the call.
    let code = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().to_string()).collect();
    names.sort();
    names
}

/// Bytes that no two offsets share by accident.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = dfs::random::Random::new(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length).collect()
}

#[test]
fn p2_what_one_mount_did_the_other_sees() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("file"), b.path().join("file"));
    assert_eq!(errno(fs::metadata(&at_b)), libc::ENOENT);
    fs::write(&at_a, b"one").unwrap();
    assert_eq!(fs::read(&at_b).unwrap(), b"one");
    let reader = File::open(&at_b).unwrap();
    for round in 0..50u8 {
        let content = pattern(1000 * (round as usize + 1), round as u64);
        fs::write(&at_a, &content).unwrap();
        assert_eq!(fs::metadata(&at_b).unwrap().len(), content.len() as u64);
        let mut seen = vec![0; content.len()];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, content, "a handle that was open before sees the new bytes");
    }
    fs::rename(&at_a, a.path().join("moved")).unwrap();
    assert_eq!(errno(fs::metadata(&at_b)), libc::ENOENT);
    assert_eq!(names(b.path()), ["moved"]);
    fs::set_permissions(b.path().join("moved"), Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(a.path().join("moved")).unwrap().mode() & 0o7777, 0o4711);
    fs::remove_file(b.path().join("moved")).unwrap();
    assert_eq!(errno(fs::metadata(a.path().join("moved"))), libc::ENOENT);
}

#[test]
fn unlinked_files_live_until_the_last_close_on_any_mount() {
    let (cluster, a, b) = two_mounts();
    let content = pattern(300_000, 1);
    fs::write(a.path().join("doomed"), &content).unwrap();
    let at_a = OpenOptions::new().read(true).write(true).open(a.path().join("doomed")).unwrap();
    let at_b = File::open(b.path().join("doomed")).unwrap();
    fs::remove_file(b.path().join("doomed")).unwrap();
    assert_eq!(errno(fs::metadata(a.path().join("doomed"))), libc::ENOENT);
    let check = |file: &File| {
        let mut seen = vec![0; content.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, content);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    };
    check(&at_a);
    drop(at_a);
    // So does a directory; nothing is found in it, and nothing can be made.
    let gone = a.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let directory = File::open(&gone).unwrap();
    fs::read_dir(&gone).unwrap().for_each(drop);
    fs::remove_dir(b.path().join("gone")).unwrap();
    let inside = PathBuf::from(format!("/proc/self/fd/{}/file", directory.as_raw_fd()));
    assert_eq!(errno(File::create(&inside)), libc::ENOENT);
    // What is unlinked now and held by nobody goes later than the directory would have gone.
    fs::write(a.path().join("later"), b"x").unwrap();
    let inodes = || cluster.dfs_json(&["status"])["inodes"].as_u64().expect("a count");
    let before = inodes();
    fs::remove_file(a.path().join("later")).unwrap();
    wait_until(Duration::from_secs(10), "a file that nobody holds is reaped", || inodes() < before);
    assert_eq!(directory.metadata().unwrap().nlink(), 0);
    assert_eq!(errno(File::create(&inside)), libc::ENOENT);
    check(&at_b);
    at_b.metadata().unwrap();
    drop(at_b);
    // Another life of the name is another file.
    fs::write(a.path().join("doomed"), b"new").unwrap();
    let replaced = File::open(b.path().join("doomed")).unwrap();
    fs::write(a.path().join("other"), b"other").unwrap();
    fs::rename(a.path().join("other"), a.path().join("doomed")).unwrap();
    let mut seen = String::new();
    (&replaced).read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "new", "a file replaced by rename lives on for who has it open");
    assert_eq!(fs::read(b.path().join("doomed")).unwrap(), b"other");
}

#[test]
fn open_flags_and_offsets() {
    let (_cluster, a, b) = two_mounts();
    let path = a.path().join("f");
    let exclusive = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    exclusive(&path).unwrap();
    assert_eq!(errno(exclusive(&path)), libc::EEXIST);
    assert_eq!(errno(exclusive(&b.path().join("f"))), libc::EEXIST);

    let mut first = OpenOptions::new().append(true).open(&path).unwrap();
    let mut second = OpenOptions::new().append(true).open(b.path().join("f")).unwrap();
    for _ in 0..20 {
        first.write_all(b"aaaa").unwrap();
        second.write_all(b"bbbb").unwrap();
    }
    let seen = fs::read(&path).unwrap();
    assert_eq!(seen.len(), 160, "appends of two mounts never overwrite each other");
    assert!(seen.chunks(8).all(|pair| pair == b"aaaabbbb"));

    OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(fs::metadata(b.path().join("f")).unwrap().len(), 0);

    let mut sparse = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    sparse.seek(SeekFrom::Start(5_000_000)).unwrap();
    sparse.write_all(b"end").unwrap();
    let meta = fs::metadata(b.path().join("f")).unwrap();
    assert_eq!(meta.len(), 5_000_003);
    assert!(meta.blocks() * 512 < 100_000, "holes take no space: {} blocks", meta.blocks());
    let seen = fs::read(b.path().join("f")).unwrap();
    assert!(seen[..5_000_000].iter().all(|&byte| byte == 0) && &seen[5_000_000..] == b"end");
    // Cut short and grown again, the old bytes do not come back.
    sparse.set_len(5_000_001).unwrap();
    sparse.set_len(5_000_003).unwrap();
    assert_eq!(&fs::read(b.path().join("f")).unwrap()[5_000_000..], b"e\0\0");
    sparse.set_len(0).unwrap();

    // Overwrites of every alignment against a plain array.
    let mut model = pattern(3_000_000, 2);
    sparse.write_all_at(&model, 0).unwrap();
    let mut random = dfs::random::Random::new(3);
    for round in 0..120 {
        let offset = random.below(3_000_000) as usize;
        let length = (1 + random.below([10, 5_000, 200_000][round % 3])) as usize;
        let length = length.min(model.len() - offset);
        let bytes = pattern(length, round as u64);
        sparse.write_all_at(&bytes, offset as u64).unwrap();
        model[offset..offset + length].copy_from_slice(&bytes);
    }
    assert!(fs::read(b.path().join("f")).unwrap() == model, "overwritten file differs from the model");

    assert_eq!(errno(sparse.write_at(b"x", i64::MAX as u64 - 1)), libc::EFBIG);
    assert_eq!(errno(OpenOptions::new().write(true).open(a.path())), libc::EISDIR);
    assert_eq!(errno(File::open(path.join("below"))), libc::ENOTDIR);
}

#[test]
fn names_directories_and_renames() {
    let (_cluster, a, b) = two_mounts();
    let at = |name: &str| a.path().join(name);
    fs::create_dir(at("d")).unwrap();
    assert_eq!(errno(fs::create_dir(b.path().join("d"))), libc::EEXIST);
    assert_eq!(fs::metadata(a.path()).unwrap().nlink(), 3);
    fs::write(at("d/f"), b"x").unwrap();
    assert_eq!(errno(fs::remove_dir(b.path().join("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(at("d/f"))), libc::ENOTDIR);

    // Any bytes but NUL and '/'; 255 of them, not 256.
    let odd = a.path().join(OsStr::from_bytes(b"\xff\xfe \n\x01*?"));
    fs::write(&odd, b"odd").unwrap();
    assert_eq!(fs::read(b.path().join(odd.file_name().unwrap())).unwrap(), b"odd");
    fs::write(at(&"n".repeat(255)), b"").unwrap();
    assert_eq!(errno(fs::write(at(&"n".repeat(256)), b"")), libc::ENAMETOOLONG);

    // Renames.
    fs::create_dir_all(at("x/y/z")).unwrap();
    assert_eq!(errno(fs::rename(at("x"), at("x/y/z/x"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(at("x"), at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(at("d/f"), at("x"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(at("x"), at("d/f"))), libc::ENOTDIR);
    fs::write(at("one"), b"1").unwrap();
    fs::write(at("two"), b"2").unwrap();
    assert_eq!(errno(rename2(&at("one"), &at("two"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename2(&at("one"), &at("three"), libc::RENAME_NOREPLACE).unwrap();
    fs::rename(at("three"), at("two")).unwrap();
    assert_eq!(fs::read(b.path().join("two")).unwrap(), b"1");
    fs::rename(at("x/y"), at("d/y")).unwrap();
    assert_eq!((fs::metadata(at("x")).unwrap().nlink(), fs::metadata(at("d")).unwrap().nlink()), (2, 3));

    // Links.
    fs::hard_link(at("two"), at("d/link")).unwrap();
    let (one, two) = (fs::metadata(at("two")).unwrap(), fs::metadata(b.path().join("d/link")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    assert_eq!(errno(fs::hard_link(at("d"), at("dirlink"))), libc::EPERM);
    symlink("../some where/\u{e9}", at("d/sym")).unwrap();
    assert_eq!(fs::read_link(b.path().join("d/sym")).unwrap(), Path::new("../some where/\u{e9}"));
    fs::remove_file(at("two")).unwrap();
    assert_eq!(fs::metadata(b.path().join("d/link")).unwrap().nlink(), 1);
}

#[test]
fn modes_times_and_setgid_directories() {
    let (_cluster, a, b) = two_mounts();
    let path = a.path().join("f");
    fs::write(&path, b"x").unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let meta = fs::metadata(b.path().join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    let times = [libc::timespec { tv_sec: -5, tv_nsec: 123_456_789 }, libc::timespec { tv_sec: 1 << 33, tv_nsec: 987_654_321 }];
    // SAFETY: path and times live through the call.
    assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, c_path(&path).as_ptr(), times.as_ptr(), 0) }, 0);
    let meta = fs::metadata(b.path().join("f")).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), (-5, 123_456_789));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1 << 33, 987_654_321));

    let directory = a.path().join("shared");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(0), Some(77)).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o2775)).unwrap();
    fs::write(directory.join("file"), b"").unwrap();
    fs::create_dir(directory.join("sub")).unwrap();
    assert_eq!(fs::metadata(b.path().join("shared/file")).unwrap().gid(), 77);
    let sub = fs::metadata(b.path().join("shared/sub")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (77, 0o2000));

    // Creation honours the umask and the mode; writing moves mtime and ctime.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(a.path().join("moded")).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
    let before = file.metadata().unwrap();
    wait_until(Duration::from_secs(5), "a write moves mtime", || {
        (&file).write_all(b"y").unwrap();
        let after = fs::metadata(b.path().join("moded")).unwrap();
        (after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec())
    });
}

#[test]
fn readdir_is_stable_while_others_change_the_directory() {
    let (_cluster, a, b) = two_mounts();
    let directory = a.path().join("many");
    fs::create_dir(&directory).unwrap();
    let kept: Vec<PathBuf> = (0..1500).map(|index| directory.join(format!("keep{index:04}"))).collect();
    for (index, path) in kept.iter().enumerate() {
        fs::write(path, b"").unwrap();
        fs::write(directory.join(format!("drop{index:04}")), b"").unwrap();
    }
    let mut seen = Vec::new();
    for (index, entry) in fs::read_dir(b.path().join("many")).unwrap().enumerate() {
        seen.push(entry.unwrap().file_name().to_string_lossy().to_string());
        if index < 1500 {
            let _ = fs::remove_file(directory.join(format!("drop{index:04}")));
            fs::write(directory.join(format!("new{index:04}")), b"").unwrap();
        }
    }
    let mut kept_seen: Vec<&String> = seen.iter().filter(|name| name.starts_with("keep")).collect();
    kept_seen.sort();
    assert_eq!(kept_seen.len(), 1500, "each entry that stayed is listed");
    kept_seen.dedup();
    assert_eq!(kept_seen.len(), 1500, "and listed once");
    assert_eq!(names(&b.path().join("many")).len(), 3000);
}

/// Names in the order of getdents64(2), read a few at a time with `between` after each call.
fn listed(directory: &Path, mut between: impl FnMut()) -> Vec<String> {
    let directory = File::open(directory).unwrap();
    let mut buffer = [0u8; 512];
    let mut names = Vec::new();
    loop {
        // SAFETY: a buffer of the length that is passed.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
        assert!(length >= 0, "{}", io::Error::last_os_error());
        if length == 0 {
            return names;
        }
        let mut line = &buffer[..length as usize];
        while !line.is_empty() {
            let end = usize::from(u16::from_le_bytes([line[16], line[17]]));
            let name = line[19..end].split(|&byte| byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            line = &line[end..];
        }
        between();
    }
}

#[test]
fn each_name_is_listed_once_while_others_are_moved_made_and_removed() {
    const NAMES: usize = 300;
    let (_cluster, a, b) = two_mounts();
    for directory in ["d", "aside"] {
        fs::create_dir(a.path().join(directory)).unwrap();
    }
    let at = |mount: &Mount, name: String| mount.path().join("d").join(name);
    for number in 0..NAMES {
        fs::write(at(&a, format!("keep{number}")), b"").unwrap();
        fs::write(at(&b, format!("move{number}")), b"").unwrap();
    }
    let kept: Vec<String> = (0..NAMES).map(|number| format!("keep{number}")).collect();
    for (lister, changer) in [(&a, &b), (&b, &a), (&a, &a)] {
        let mut turn = 0;
        let seen = listed(&lister.path().join("d"), || {
            let number = turn * 7 % NAMES;
            // Moved within, moved out and in again, made and removed.
            fs::rename(at(changer, format!("move{number}")), at(changer, format!("moved{number}"))).unwrap();
            fs::rename(at(changer, format!("moved{number}")), changer.path().join("aside/one")).unwrap();
            fs::rename(changer.path().join("aside/one"), at(changer, format!("move{number}"))).unwrap();
            fs::write(at(changer, format!("new{turn}")), b"").unwrap();
            if turn % 2 == 1 {
                fs::remove_file(at(changer, format!("new{}", turn - 1))).unwrap();
            }
            turn += 1;
        });
        let mut found: Vec<&String> = seen.iter().filter(|name| name.starts_with("keep")).collect();
        assert_eq!(found.len(), NAMES, "each name that stayed is listed once");
        found.sort();
        found.dedup();
        assert_eq!(found.len(), kept.len());
        for turn in 0..turn {
            let _ = fs::remove_file(at(&a, format!("new{turn}")));
        }
        assert_eq!(names(&a.path().join("d")), names(&b.path().join("d")));
        assert_eq!(names(&a.path().join("d")).len(), 2 * NAMES);
    }
}

#[test]
fn a_large_directory_is_made_listed_and_removed() {
    // Heavy on demand: a million takes some minutes with a release build.
    let entries: usize = std::env::var("DFS_ENTRIES").map_or(5_000, |count| count.parse().expect("a number"));
    let cluster = Cluster::start_with(3, common::Options { memory: "4GiB", ..common::Options::default() });
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    fs::create_dir(a.path().join("large")).unwrap();
    let timed = |what: &str, begun: Instant| println!("{what} {entries} entries: {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (first, mount) in [&a, &b].into_iter().enumerate() {
            let create = move |number: usize| drop(File::create_new(mount.path().join(format!("large/{number:07}"))).unwrap());
            scope.spawn(move || (first..entries).step_by(2).for_each(create));
        }
    });
    timed("created", begun);
    for mount in [&a, &b] {
        let begun = Instant::now();
        let mut seen = names(&mount.path().join("large"));
        assert_eq!(seen.len(), entries);
        seen.dedup();
        assert_eq!((seen.len(), seen.last()), (entries, Some(&format!("{:07}", entries - 1))));
        timed("listed", begun);
    }
    let begun = Instant::now();
    fs::metadata(b.path().join(format!("large/{:07}", entries / 2))).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "one look-up takes {:?}", begun.elapsed());
    let begun = Instant::now();
    fs::remove_dir_all(b.path().join("large")).unwrap();
    timed("removed", begun);
    assert!(names(a.path()).is_empty());
    let inodes = || cluster.dfs_json(&["status"])["inodes"].as_u64().expect("a count");
    wait_until(Duration::from_secs(60), "all of it is reaped", || inodes() <= 1);
}

#[test]
fn mapped_files_and_descriptors_work() {
    let (_cluster, a, b) = two_mounts();
    let content = pattern(2_500_000, 9);
    fs::write(a.path().join("mapped"), &content).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(b.path().join("mapped")).unwrap();
    // SAFETY: the mapping is as long as the file, used and unmapped in this block only.
    unsafe {
        let length = content.len();
        let map = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), length);
        assert!(bytes == content, "mapped bytes differ");
        bytes[1_234_567] ^= 0xff;
        assert_eq!(libc::msync(map, length, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, length), 0);
    }
    let seen = fs::read(a.path().join("mapped")).unwrap();
    assert_eq!(seen[1_234_567], content[1_234_567] ^ 0xff);
    file.sync_all().unwrap();
    File::open(a.path()).unwrap().sync_all().unwrap();
}

#[test]
fn statfs_shows_the_clusters_size_after_replication() {
    let cluster = Cluster::start(3);
    let mount = Mount::new(&cluster);
    let space = || {
        // SAFETY: an all-zero statvfs is valid, the path lives through the call.
        unsafe {
            let mut space: libc::statvfs = std::mem::zeroed();
            assert_eq!(libc::statvfs(c_path(mount.path()).as_ptr(), &mut space), 0);
            space
        }
    };
    let before = space();
    assert!(before.f_blocks > 0 && before.f_namemax == 255);
    fs::write(mount.path().join("big"), pattern(20 << 20, 4)).unwrap();
    let after = space();
    let taken = (before.f_bavail - after.f_bavail) * after.f_frsize;
    assert!((20 << 20..24 << 20).contains(&taken), "20 MiB of data take {taken} bytes");
    fs::remove_file(mount.path().join("big")).unwrap();
    wait_until(Duration::from_secs(5), "deleted space counts as free", || space().f_bavail + 64 >= before.f_bavail);
}
