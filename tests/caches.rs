//! What the kernel keeps under leases, on real mounts: that it costs nothing to look again, and that no other mount ever notices.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::posix::rename2;
use common::{Cluster, Mount, random_bytes, wait_until};

fn two_mounts() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    (cluster, a, b)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().to_string()).collect();
    names.sort();
    names
}

/// What was asked between two reports, without what was not.
fn spent(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let spent = after.iter().map(|(key, count)| (key.clone(), count - before.get(key).unwrap_or(&0).min(count)));
    spent.filter(|(key, count)| *count > 0 && key != "remembered" && key != "dirty" && key != "renewals").collect()
}

/// As `ls -l` and `cat *` do.
fn look(directory: &Path) {
    for name in names(directory) {
        let path = directory.join(name);
        fs::metadata(&path).unwrap();
        fs::read(&path).unwrap();
    }
}

#[test]
fn looking_again_costs_no_message_and_no_request_but_open_and_close() {
    let (_cluster, a, b) = two_mounts();
    let directory = a.path().join("d");
    fs::create_dir(&directory).unwrap();
    for number in 0..5 {
        fs::write(directory.join(format!("f{number}")), random_bytes(number, 20_000)).unwrap();
    }
    symlink("f1", directory.join("link")).unwrap();
    let directory = b.path().join("d");
    // The first look learns, the second one fills what was opened before its right had come.
    look(&directory);
    look(&directory);
    // Lifetimes of names end after a second, whatever is done: a round may fall on that.
    let mut cheapest = None;
    for _ in 0..10 {
        look(&directory);
        let before = b.report();
        look(&directory);
        fs::read_link(directory.join("link")).unwrap();
        assert!(fs::metadata(directory.join("absent")).is_err() && fs::metadata(directory.join("absent")).is_err());
        let spent = spent(&before, &b.report());
        if cheapest.as_ref().is_none_or(|cheapest: &BTreeMap<String, u64>| spent.values().sum::<u64>() < cheapest.values().sum::<u64>()) {
            cheapest = Some(spent);
        }
    }
    let spent = cheapest.unwrap();
    let always = ["open", "flush", "release", "opendir", "releasedir", "lookup"];
    let others: Vec<_> = spent.iter().filter(|(key, _)| !always.contains(&key.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(spent.get("lookup").is_none_or(|&count| count <= 2), "the absent name at most: {spent:?}");
    assert!(!spent.contains_key("control") && !spent.contains_key("bulk"), "{spent:?}");
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn locks_and_small_writes_that_nobody_contends_cost_no_message() {
    let (_cluster, a, b) = two_mounts();
    let file = File::create(a.path().join("f")).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    // From here on there is room that is reserved, and nothing that is due.
    file.sync_all().unwrap();
    let before = a.report();
    for _ in 0..100 {
        flock(&file, libc::LOCK_EX).unwrap();
        flock(&file, libc::LOCK_SH).unwrap();
        flock(&file, libc::LOCK_UN).unwrap();
    }
    flock(&file, libc::LOCK_EX).unwrap();
    let spent = spent(&before, &a.report());
    assert!(!spent.contains_key("control"), "{spent:?}");
    // The other mount finds what was locked there all the same, and what is written under the lock.
    let other = OpenOptions::new().read(true).write(true).open(b.path().join("f")).unwrap();
    assert_eq!(flock(&other, libc::LOCK_EX | libc::LOCK_NB).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    file.write_all_at(b"second", 0).unwrap();
    flock(&file, libc::LOCK_UN).unwrap();
    flock(&other, libc::LOCK_EX).unwrap();
    assert_eq!(fs::read(b.path().join("f")).unwrap(), b"second");
    assert_eq!(flock(&file, libc::LOCK_SH | libc::LOCK_NB).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn no_mount_sees_the_old_state_once_a_call_has_returned() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("f"), b.path().join("f"));
    fs::write(&at_a, b"0000").unwrap();
    let reader = OpenOptions::new().read(true).write(true).open(&at_b).unwrap();
    let stamp = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for round in 1..30u32 {
        // The other mount caches everything.
        let mut seen = [0; 4];
        reader.read_exact_at(&mut seen, 0).unwrap();
        fs::metadata(&at_b).unwrap();
        assert!(fs::metadata(b.path().join(format!("new{round}"))).is_err());
        // Bytes of the same size, and a time that was set back.
        let bytes = format!("{round:04}");
        fs::write(&at_a, &bytes).unwrap();
        File::options().write(true).open(&at_a).unwrap().set_modified(stamp).unwrap();
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, bytes.as_bytes(), "an open handle");
        assert_eq!(fs::read(&at_b).unwrap(), bytes.as_bytes(), "a new one");
        assert_eq!(fs::metadata(&at_b).unwrap().modified().unwrap(), stamp);
        // Modes, owners, links, names that were absent.
        fs::set_permissions(&at_a, Permissions::from_mode(0o600 + (round % 8))).unwrap();
        assert_eq!(fs::metadata(&at_b).unwrap().mode() & 0o777, 0o600 + (round % 8));
        std::os::unix::fs::chown(&at_a, Some(round), Some(round)).unwrap();
        assert_eq!(reader.metadata().unwrap().uid(), round);
        fs::hard_link(&at_a, a.path().join(format!("new{round}"))).unwrap();
        assert_eq!(fs::metadata(b.path().join(format!("new{round}"))).unwrap().nlink(), 2);
        fs::remove_file(a.path().join(format!("new{round}"))).unwrap();
        assert_eq!((fs::metadata(&at_b).unwrap().nlink(), names(b.path())), (1, vec!["f".to_string()]));
    }
    // The other way round, through the handle that was open all the time.
    assert_eq!(fs::read(&at_a).unwrap(), b"0029");
    reader.write_all_at(b"back", 0).unwrap();
    assert_eq!(fs::read(&at_a).unwrap(), b"back");
}

#[test]
fn truncation_and_replacement_under_a_reader() {
    let (_cluster, a, b) = two_mounts();
    let (at_a, at_b) = (a.path().join("f"), b.path().join("f"));
    let bytes = random_bytes(1, 300_000);
    for round in 0..10 {
        fs::write(&at_a, &bytes).unwrap();
        let mut reader = File::open(&at_b).unwrap();
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, bytes);
        let size = 1000 + round * 7777;
        OpenOptions::new().write(true).open(&at_a).unwrap().set_len(size).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), size);
        let mut after = vec![0; 5000];
        let count = reader.read_at(&mut after, size - 500).unwrap();
        assert_eq!(&after[..count], &bytes[size as usize - 500..size as usize], "nothing behind the end");
        OpenOptions::new().write(true).open(&at_a).unwrap().set_len(300_000).unwrap();
        reader.read_exact_at(&mut after, size).unwrap();
        assert!(after.iter().all(|&byte| byte == 0), "grown again, it holds zeros");
        let other = a.path().join("other");
        fs::write(&other, format!("replaced {round}")).unwrap();
        fs::rename(&other, &at_a).unwrap();
        assert_eq!(fs::read_to_string(&at_b).unwrap(), format!("replaced {round}"));
        assert_eq!(reader.metadata().unwrap().nlink(), 0, "the open one has lost its name");
    }
}

/// A shared mapping of the first bytes of a file.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn new(file: &File, length: usize, protection: i32) -> Self {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Mapping(at.cast(), length)
    }

    fn byte(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: inside the mapping; volatile, since others change it.
        unsafe { self.0.add(at).read_volatile() }
    }

    fn set(&self, at: usize, value: u8) {
        assert!(at < self.1);
        // SAFETY: as above, and only writable mappings are set.
        unsafe { self.0.add(at).write_volatile(value) };
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) }, 0, "{}", io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and not used after.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

#[test]
fn a_mapping_sees_what_another_mount_wrote_or_synced() {
    let (_cluster, a, b) = two_mounts();
    let length = 8 << 10;
    let open = |mount: &Mount, name: &str| OpenOptions::new().read(true).write(true).open(mount.path().join(name)).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    for round in 1..=20u8 {
        let name = format!("m{round}");
        fs::write(a.path().join(&name), vec![0; length]).unwrap();
        let (file_a, file_b) = (open(&a, &name), open(&b, &name));
        let (map_a, map_b) = (Mapping::new(&file_a, length, both), Mapping::new(&file_b, length, libc::PROT_READ));
        assert_eq!(map_b.byte(5000), 0);
        map_a.set(5000, round);
        map_a.sync();
        assert_eq!(map_b.byte(5000), round, "after msync");
        file_a.write_all_at(&[round + 100], 5001).unwrap();
        assert_eq!(map_b.byte(5001), round + 100, "after write");
        file_b.write_all_at(&[round], 5002).unwrap();
        assert_eq!(map_a.byte(5002), round, "and the other way");
    }
    // Under steady contention no right is granted for a while. Pages are dropped right after use, with nobody waiting for that.
    let (file_a, file_b) = (open(&a, "m1"), open(&b, "m1"));
    let map = Mapping::new(&file_b, length, libc::PROT_READ);
    for round in 1..=100u8 {
        file_a.write_all_at(&[round], 0).unwrap();
        wait_until(Duration::from_secs(1), "the mapping shows it", || map.byte(0) == round);
        let mut seen = [0];
        file_b.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [round], "a read waits for nothing");
    }
}

#[test]
fn appended_records_from_two_mounts_are_neither_lost_nor_torn() {
    const RECORDS: usize = 40;
    let (_cluster, a, b) = two_mounts();
    fs::write(a.path().join("log"), b"").unwrap();
    let record = |writer: usize, number: usize| {
        // Up to what one request of the kernel carries from a buffer at any address.
        let length = 16 + ((writer * 31 + number * 7919) % ((1 << 20) - 4096 - 16));
        let mut bytes = vec![(writer * RECORDS + number) as u8; length];
        bytes[..8].copy_from_slice(&(length as u64).to_le_bytes());
        bytes[8..16].copy_from_slice(&((writer * RECORDS + number) as u64).to_le_bytes());
        bytes
    };
    std::thread::scope(|scope| {
        for (writer, mount) in [&a, &b, &a, &b].into_iter().enumerate() {
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).open(mount.path().join("log")).unwrap();
                for number in 0..RECORDS {
                    let bytes = record(writer, number);
                    assert_eq!(log.write(&bytes).unwrap(), bytes.len());
                }
            });
        }
    });
    for mount in [&a, &b] {
        let log = fs::read(mount.path().join("log")).unwrap();
        let mut seen = vec![0; 4 * RECORDS];
        let mut at = 0;
        while at < log.len() {
            let length = u64::from_le_bytes(log[at..at + 8].try_into().unwrap()) as usize;
            let id = u64::from_le_bytes(log[at + 8..at + 16].try_into().unwrap()) as usize;
            assert!(id < seen.len() && at + length <= log.len(), "torn at {at}");
            assert!(log[at + 16..at + length].iter().all(|&byte| byte == id as u8), "record {id} is torn");
            seen[id] += 1;
            at += length;
        }
        assert!(seen.iter().all(|&count| count == 1), "{seen:?}");
    }
}

#[test]
fn an_append_descriptor_that_was_opened_without_the_flag_keeps_its_pages_right() {
    let (_cluster, a, b) = two_mounts();
    fs::write(a.path().join("f"), b"12345").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(b.path().join("f")).unwrap();
    let mut seen = Vec::new();
    (&file).read_to_end(&mut seen).unwrap();
    // SAFETY: plain system call on an open descriptor.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) }, 0);
    OpenOptions::new().append(true).open(a.path().join("f")).unwrap().write_all(b"67").unwrap();
    (&file).write_all(b"89").unwrap();
    let mut seen = [0; 16];
    assert_eq!(file.read_at(&mut seen, 0).unwrap(), 9);
    assert_eq!(&seen[..9], b"123456789");
}

#[test]
fn races_between_mounts_have_one_winner() {
    let (_cluster, a, b) = two_mounts();
    for round in 0..40 {
        let name = format!("race{round}");
        let create = |mount: &Mount| OpenOptions::new().write(true).create_new(true).open(mount.path().join(&name)).is_ok();
        let won = std::thread::scope(|scope| {
            let other = scope.spawn(|| create(&b));
            usize::from(create(&a)) + usize::from(other.join().unwrap())
        });
        assert_eq!(won, 1, "{name}");
    }
    let mut sources = Vec::new();
    for (number, mount) in [&a, &b].into_iter().enumerate() {
        for round in 0..20 {
            fs::write(mount.path().join(format!("from{number}-{round}")), format!("{number}")).unwrap();
        }
        sources.push(mount);
    }
    std::thread::scope(|scope| {
        for (number, mount) in sources.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..20 {
                    fs::rename(mount.path().join(format!("from{number}-{round}")), mount.path().join("target")).unwrap();
                    let winner = fs::read_to_string(mount.path().join("target")).unwrap();
                    assert!(winner == "0" || winner == "1");
                }
            });
        }
    });
    let seen = [&a, &b].map(|mount| (fs::read(mount.path().join("target")).unwrap(), names(mount.path())));
    assert_eq!(seen[0], seen[1]);
}

/// Four contenders, two on each mount, act at once, round after round. For each round the errno of each; 0 for success.
fn contend(mounts: [&Mount; 2], rounds: usize, act: impl Fn(usize, &Path, usize) -> io::Result<()> + Sync) -> Vec<Vec<i32>> {
    let barrier = std::sync::Barrier::new(4);
    let contender = |who: usize| {
        let root = mounts[who % 2].path();
        let acted = (0..rounds).map(|round| {
            barrier.wait();
            act(who, root, round).err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
        });
        acted.collect::<Vec<i32>>()
    };
    let came: Vec<Vec<i32>> = std::thread::scope(|scope| {
        let contenders: Vec<_> = (0..4).map(|who| scope.spawn(move || contender(who))).collect();
        contenders.into_iter().map(|contender| contender.join().unwrap()).collect()
    });
    (0..rounds).map(|round| came.iter().map(|of_one| of_one[round]).collect()).collect()
}

#[test]
fn each_name_is_won_by_one_of_four_on_two_mounts() {
    const ROUNDS: usize = 40;
    let (_cluster, a, b) = two_mounts();
    let one_wins = |what: &str, others: &[i32], act: &(dyn Fn(usize, &Path, usize) -> io::Result<()> + Sync)| -> Vec<usize> {
        let came = contend([&a, &b], ROUNDS, act);
        let winner = |round: &Vec<i32>| {
            let losers = round.iter().filter(|errno| others.contains(errno)).count();
            assert!(round.iter().filter(|errno| **errno == 0).count() == 1 && losers == 3, "{what}: {round:?}");
            round.iter().position(|errno| *errno == 0).unwrap()
        };
        came.iter().map(winner).collect()
    };
    one_wins("mkdir", &[libc::EEXIST], &|_, root, round| fs::create_dir(root.join(format!("d{round}"))));
    one_wins("rmdir", &[libc::ENOENT], &|_, root, round| fs::remove_dir(root.join(format!("d{round}"))));
    for who in 0..4 {
        fs::write(a.path().join(format!("own{who}")), b"").unwrap();
    }
    let won = one_wins("link", &[libc::EEXIST], &|who, root, round| {
        fs::hard_link(root.join(format!("own{who}")), root.join(format!("l{round}")))
    });
    for (who, mount) in [(0, &b), (1, &a), (2, &b), (3, &a)] {
        let wins = won.iter().filter(|&&winner| winner == who).count() as u64;
        assert_eq!(fs::metadata(mount.path().join(format!("own{who}"))).unwrap().nlink(), 1 + wins);
    }
    one_wins("rename of one file", &[libc::ENOENT], &|who, root, round| {
        fs::rename(root.join(format!("l{round}")), root.join(format!("r{round}-{who}")))
    });
    assert_eq!(names(a.path()).iter().filter(|name| name.starts_with('r')).count(), ROUNDS);
    for round in 0..ROUNDS {
        for who in 0..4 {
            fs::create_dir_all(b.path().join(format!("s{round}-{who}/{who}"))).unwrap();
        }
    }
    let won = one_wins("rename to a free name", &[libc::EEXIST], &|who, root, round| {
        rename2(&root.join(format!("s{round}-{who}")), &root.join(format!("t{round}")), libc::RENAME_NOREPLACE)
    });
    for (round, winner) in won.iter().enumerate() {
        assert_eq!(
            [names(&a.path().join(format!("t{round}"))), names(&b.path().join(format!("t{round}")))],
            [[winner.to_string()], [winner.to_string()]]
        );
    }
    one_wins("unlink", &[libc::ENOENT], &|_, root, round| {
        let listed = format!("r{round}-");
        let name = (0..4).map(|who| format!("{listed}{who}")).find(|name| root.join(name).exists());
        name.map_or(Err(io::Error::from_raw_os_error(libc::ENOENT)), |name| fs::remove_file(root.join(name)))
    });
    assert!(!names(b.path()).iter().any(|name| name.starts_with('r')));
}

#[test]
fn a_directory_is_removed_or_filled_and_no_circle_is_made() {
    const ROUNDS: usize = 40;
    let (_cluster, a, b) = two_mounts();
    for round in 0..ROUNDS {
        fs::create_dir_all(a.path().join(format!("d{round}"))).unwrap();
        fs::create_dir_all(a.path().join(format!("c{round}/x"))).unwrap();
        fs::create_dir_all(a.path().join(format!("c{round}/y"))).unwrap();
    }
    let came = contend([&a, &b], ROUNDS, |who, root, round| {
        let directory = root.join(format!("d{round}"));
        if who < 2 { fs::remove_dir(directory) } else { File::create_new(directory.join(who.to_string())).map(drop) }
    });
    for (round, came) in came.iter().enumerate() {
        let made: Vec<String> = (2..4).filter(|&who| came[who] == 0).map(|who| who.to_string()).collect();
        let removed = came[..2].iter().filter(|errno| **errno == 0).count();
        assert_eq!(removed, usize::from(made.is_empty()), "{came:?}");
        assert!(came.iter().all(|errno| [0, libc::ENOENT, libc::ENOTEMPTY].contains(errno)), "{came:?}");
        for mount in [&a, &b] {
            let directory = mount.path().join(format!("d{round}"));
            assert!(if removed == 1 { !directory.exists() } else { names(&directory) == made });
        }
    }
    // One directory into the other, and the other way round.
    let came = contend([&a, &b], ROUNDS, |who, root, round| {
        let (from, to) = if who % 2 == 0 { ("x", "y/x") } else { ("y", "x/y") };
        fs::rename(root.join(format!("c{round}/{from}")), root.join(format!("c{round}/{to}")))
    });
    for (round, came) in came.iter().enumerate() {
        assert!(came.iter().all(|errno| [0, libc::ENOENT, libc::EINVAL].contains(errno)), "{came:?}");
        for mount in [&a, &b] {
            let top = names(&mount.path().join(format!("c{round}")));
            assert!(top == ["x"] || top == ["y"], "{top:?}");
            assert_eq!(names(&mount.path().join(format!("c{round}/{}", top[0]))), [if top[0] == "x" { "y" } else { "x" }]);
        }
    }
}

#[test]
fn two_mounts_that_change_one_directory_never_wait_in_a_circle() {
    let (_cluster, a, b) = two_mounts();
    fs::create_dir(a.path().join("d")).unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (number, mount) in [&a, &b, &a, &b].into_iter().enumerate() {
            scope.spawn(move || {
                let directory = mount.path().join("d");
                for round in 0..50 {
                    let (own, shared) = (directory.join(format!("{number}-{round}")), directory.join(format!("shared{}", round % 5)));
                    fs::write(&own, random_bytes(round, 5000)).unwrap();
                    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&shared).unwrap();
                    file.write_all(&[number as u8; 100]).unwrap();
                    let _ = file.read(&mut [0; 100]).unwrap();
                    names(&directory);
                    fs::rename(&own, directory.join(format!("moved{number}-{round}"))).unwrap();
                    let _ = fs::remove_file(&shared);
                }
            });
        }
    });
    // 800 changes, each of which may have to wait for the other mount's kernel for 20 ms.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(names(&a.path().join("d")), names(&b.path().join("d")));
}

#[test]
fn what_is_remembered_shrinks_as_the_kernel_forgets() {
    let (_cluster, a, b) = two_mounts();
    fs::create_dir(a.path().join("d")).unwrap();
    for number in 0..300 {
        fs::write(a.path().join(format!("d/{number}")), b"x").unwrap();
    }
    look(&b.path().join("d"));
    assert!(b.report()["remembered"] >= 300);
    fs::remove_dir_all(b.path().join("d")).unwrap();
    wait_until(Duration::from_secs(10), "the table shrinks", || b.report()["remembered"] < 20);
}

#[test]
fn a_relaxed_mount_may_lag_for_the_time_it_was_given() {
    let cluster = Cluster::start(1);
    let a = Mount::new(&cluster);
    let b = Mount::with(&["--nodes", &cluster.addresses(), "-o", "relaxed=1"]);
    fs::write(a.path().join("f"), b"1").unwrap();
    assert_eq!(fs::read(b.path().join("f")).unwrap(), b"1");
    let mode = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(a.path().join("f")).unwrap();
    mode.write_all_at(b"22", 0).unwrap();
    wait_until(Duration::from_secs(5), "the change shows", || fs::read(b.path().join("f")).unwrap() == b"22");
}
