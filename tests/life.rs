//! The life of a mount: how it ends, with what is open and what is not; how it dies, stops and wakes; and how it is asked for.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, TempDir, ends_within, program, random_bytes, run, wait_until};
use dfs::limits;
use dfs::random::Random;

/// What a loaded machine may add to a call's end.
const SLACK: Duration = Duration::from_secs(3);
/// One call on a running mount while another one is silent: its lease has to run out, not more.
const CONFLICT_WITHIN: Duration =
    Duration::from_millis((limits::SESSION_LEASE.as_millis() + 2 * limits::SESSION_MARGIN.as_millis() + SLACK.as_millis()) as u64);
/// Longer than any lease: who is silent so long has lost it.
const BEYOND_LEASE: Duration = Duration::from_millis((limits::SESSION_LEASE.as_millis() + 3 * limits::SESSION_MARGIN.as_millis()) as u64);
/// For whole groups of calls, so that a hang ends the test.
const GROUP_WITHIN: Duration = Duration::from_secs(120);
/// The contract: nothing dirty, and the process is gone so long after the unmount.
const END_WITHIN: Duration = Duration::from_secs(2);

fn command(words: &[&str]) -> Output {
    let output = Command::new(words[0]).args(&words[1..]).output();
    output.unwrap_or_else(|error| panic!("{}: {error}", words[0]))
}

fn umount(options: &[&str], mount: &Mount) -> bool {
    let mut words = vec!["umount"];
    words.extend(options);
    words.push(mount.path().to_str().expect("UTF-8"));
    command(&words).status.success()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("the call should fail").raw_os_error().expect("an errno")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readable").map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

#[test]
fn a_busy_mount_is_not_unmounted_and_goes_on() {
    let cluster = Cluster::start(3);
    let (mount, other) = (Mount::new(&cluster), Mount::new(&cluster));
    let mut file = File::create(mount.path().join("f")).unwrap();
    file.write_all(b"before ").unwrap();
    assert!(!umount(&[], &mount), "a mount with an open file is busy");
    file.write_all(b"and after").unwrap();
    assert_eq!(fs::read(mount.path().join("f")).unwrap(), b"before and after");
    assert_eq!(fs::read(other.path().join("f")).unwrap(), b"before and after");
    drop(file);
    let begun = Instant::now();
    assert!(mount.unmount().success());
    assert!(begun.elapsed() < END_WITHIN + SLACK, "{:?}", begun.elapsed());
    assert_eq!(fs::read(other.path().join("f")).unwrap(), b"before and after");
}

#[test]
fn what_was_written_just_before_an_unmount_is_there() {
    let cluster = Cluster::start(3);
    let other = Mount::new(&cluster);
    for round in 0..3 {
        let mount = Mount::new(&cluster);
        for number in 0..100 {
            // No fsync: the process flushes before it ends.
            fs::write(mount.path().join(format!("f{round}-{number}")), random_bytes(number, 1 + 517 * number as usize)).unwrap();
        }
        let large = random_bytes(1000 + round, 5 << 20);
        fs::write(mount.path().join(format!("large{round}")), &large).unwrap();
        assert!(mount.unmount().success());
        for number in 0..100 {
            let seen = fs::read(other.path().join(format!("f{round}-{number}"))).unwrap();
            assert!(seen == random_bytes(number, 1 + 517 * number as usize), "f{round}-{number}");
        }
        assert!(fs::read(other.path().join(format!("large{round}"))).unwrap() == large);
    }
}

#[test]
fn after_a_lazy_unmount_what_is_open_works_until_it_is_closed() {
    let cluster = Cluster::start(3);
    let (mut mount, other) = (Mount::new(&cluster), Mount::new(&cluster));
    fs::create_dir(mount.path().join("d")).unwrap();
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(mount.path().join("d/f")).unwrap();
    let directory = File::open(mount.path().join("d")).unwrap();
    file.write_all(b"before ").unwrap();
    assert!(umount(&["-l"], &mount));
    assert!(!mount.is_mounted());
    file.write_all(b"after").unwrap();
    assert_eq!(fs::read(other.path().join("d/f")).unwrap(), b"before after");
    fs::write(other.path().join("d/f"), b"replaced").unwrap();
    let mut seen = [0; 8];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"replaced");
    // The directory is open too: names below it can be reached and made.
    let below = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    fs::write(below.join("made"), b"late").unwrap();
    assert_eq!(names(&other.path().join("d")), ["f", "made"]);
    let last = random_bytes(3, 3 << 20);
    file.set_len(0).unwrap();
    file.write_all(&last).unwrap();
    // The place is free for another mount while the old one still serves what is open.
    let again = Mount::at(mount.path(), &["--nodes", &cluster.addresses()]);
    assert_eq!(names(&again.path().join("d")), ["f", "made"]);
    drop(directory);
    drop(file);
    assert!(mount.wait(END_WITHIN + SLACK).success());
    assert!(again.is_mounted(), "the end of the old mount does not touch the new one at its place");
    assert!(fs::read(other.path().join("d/f")).unwrap() == last);
    assert!(again.unmount().success());
}

#[test]
fn a_mount_of_which_another_namespace_has_a_copy_works_there_until_that_is_gone() {
    let cluster = Cluster::start(1);
    let mut mount = Mount::new(&cluster);
    fs::write(mount.path().join("f"), b"kept").unwrap();
    // It keeps no other mount than this one: other tests wait for the end of theirs.
    let shell = r#"
        findmnt -rn -o TARGET,FSTYPE | while read -r mounted kind; do
            case $kind in fuse.*) [ "$mounted" = "$0" ] || umount -l "$mounted" 2>/dev/null || true ;; esac
        done
        echo there && read -r line && cat "$0/f"
    "#;
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--mount", "sh", "-c", shell]).arg(mount.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut elsewhere = elsewhere.spawn().expect("unshare runs");
    let (mut stdin, mut stdout) = (elsewhere.stdin.take().expect("piped"), elsewhere.stdout.take().expect("piped"));
    let mut there = [0; 6];
    stdout.read_exact(&mut there).unwrap();
    assert!(umount(&[], &mount));
    assert!(!mount.is_mounted());
    let why = mount.why_it_lives();
    assert!(why.contains(&format!("process {} ", elsewhere.id())), "{why}");
    stdin.write_all(b"go on\n").unwrap();
    let mut read = String::new();
    stdout.read_to_string(&mut read).unwrap();
    assert_eq!(read, "kept");
    assert!(elsewhere.wait().unwrap().success());
    assert!(mount.wait(END_WITHIN + SLACK).success());
}

#[test]
fn a_forced_unmount_ends_everything_but_what_was_written() {
    let cluster = Cluster::start(3);
    let (mut mount, other) = (Mount::new(&cluster), Mount::new(&cluster));
    let written = random_bytes(1, 300_000);
    fs::write(mount.path().join("closed"), &written).unwrap();
    let mut file = File::create(mount.path().join("open")).unwrap();
    file.write_all(b"written").unwrap();
    // The kernel cuts the connection; umount itself may still call it busy, then the process detaches it.
    umount(&["-f"], &mount);
    assert!(mount.wait(END_WITHIN + SLACK).success());
    assert!(!mount.is_mounted());
    let after = file.write_all(b" too late").expect_err("the connection is cut").raw_os_error();
    assert!([Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&after), "{after:?}");
    drop(file);
    assert_eq!(fs::read(other.path().join("open")).unwrap(), b"written");
    assert!(fs::read(other.path().join("closed")).unwrap() == written);
    let again = Mount::at(mount.path(), &["--nodes", &cluster.addresses()]);
    assert_eq!(fs::read(again.path().join("open")).unwrap(), b"written");
}

#[test]
fn two_mounts_of_one_cluster_end_each_on_its_own() {
    let cluster = Cluster::start(3);
    let temp = TempDir::new();
    let nodes = cluster.addresses();
    let points: Vec<PathBuf> = (0..3).map(|number| temp.path().join(format!("m{number}"))).collect();
    points.iter().for_each(|point| fs::create_dir(point).unwrap());
    let mut mounts: Vec<Mount> = points.iter().map(|point| Mount::at(point, &["--nodes", &nodes])).collect();
    // A third one inside another mount.
    fs::create_dir(points[0].join("inner")).unwrap();
    let inner = Mount::at(&points[0].join("inner"), &["--nodes", &nodes]);
    fs::write(inner.path().join("f"), b"through the inner").unwrap();
    for point in &points {
        assert_eq!(fs::read(point.join("f")).unwrap(), b"through the inner");
    }
    assert!(!umount(&[], &mounts[0]), "another mount stands on it");
    assert!(inner.unmount().success());
    let last = mounts.pop().unwrap();
    for mount in mounts {
        assert!(mount.unmount().success());
        assert_eq!(fs::read(last.path().join("f")).unwrap(), b"through the inner");
    }
    assert!(last.unmount().success());
}

/// Names and files that a mount has looked at, has open and may have cached.
struct Seen {
    data: File,
    gone: File,
}

const OLD: &[u8] = b"the old content of the file";
const NEW: &[u8] = b"THE NEW CONTENT OF THE FILE";

fn prepare(root: &Path) {
    fs::create_dir(root.join("d")).unwrap();
    for name in ["data", "gone", "renamed", "mode", "cut", "d/inner", "grown"] {
        fs::write(root.join(name), OLD).unwrap();
    }
    symlink("old target", root.join("link")).unwrap();
}

/// Reads everything twice, so that whatever a mount caches it has cached now.
fn warm(root: &Path) -> Seen {
    for _ in 0..2 {
        for name in ["data", "gone", "renamed", "mode", "cut", "d/inner", "grown"] {
            assert_eq!(fs::read(root.join(name)).unwrap(), OLD, "{name}");
            fs::metadata(root.join(name)).unwrap();
        }
        assert_eq!(errno(fs::metadata(root.join("absent"))), libc::ENOENT);
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("old target"));
        assert_eq!(names(&root.join("d")), ["inner"]);
        names(root);
    }
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(root.join(name)).unwrap();
    let seen = Seen { data: open("data"), gone: open("gone") };
    check_open(&seen, OLD);
    seen
}

fn check_open(seen: &Seen, content: &[u8]) {
    let mut bytes = vec![0; content.len()];
    seen.data.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, content);
}

/// Changes everything that was looked at. Gives the longest that one call took.
fn change(root: &Path) -> Duration {
    let mut longest = Duration::ZERO;
    let mut timed = |what: &str, call: &dyn Fn() -> io::Result<()>| {
        let begun = Instant::now();
        call().unwrap_or_else(|error| panic!("{what}: {error}"));
        longest = longest.max(begun.elapsed());
    };
    let write = |name: &str| fs::write(root.join(name), NEW);
    timed("overwrite in place", &|| OpenOptions::new().write(true).open(root.join("data"))?.write_all_at(NEW, 0));
    timed("unlink", &|| fs::remove_file(root.join("gone")));
    timed("rename", &|| fs::rename(root.join("renamed"), root.join("d/moved")));
    timed("chmod", &|| fs::set_permissions(root.join("mode"), Permissions::from_mode(0o4600)));
    timed("truncate", &|| OpenOptions::new().write(true).open(root.join("cut"))?.set_len(3));
    timed("append", &|| OpenOptions::new().append(true).open(root.join("grown"))?.write_all(NEW));
    timed("create", &|| write("absent"));
    timed("unlink of a link", &|| fs::remove_file(root.join("link")));
    timed("symlink", &|| symlink("new target", root.join("link")));
    timed("replace by rename", &|| write("d/next").and_then(|()| fs::rename(root.join("d/next"), root.join("d/inner"))));
    longest
}

/// Everything as [`change`] left it.
fn check_changed(root: &Path) {
    assert_eq!(errno(fs::metadata(root.join("gone"))), libc::ENOENT);
    assert_eq!(fs::read(root.join("data")).unwrap(), NEW);
    assert_eq!(errno(File::open(root.join("gone"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(root.join("renamed"))), libc::ENOENT);
    assert_eq!(fs::read(root.join("d/moved")).unwrap(), OLD);
    assert_eq!(fs::metadata(root.join("mode")).unwrap().mode() & 0o7777, 0o4600);
    assert_eq!(fs::metadata(root.join("cut")).unwrap().len(), 3);
    assert_eq!(fs::read(root.join("cut")).unwrap(), &OLD[..3]);
    assert_eq!(fs::read(root.join("grown")).unwrap(), [OLD, NEW].concat());
    assert_eq!(fs::read(root.join("absent")).unwrap(), NEW);
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("new target"));
    assert_eq!(names(&root.join("d")), ["inner", "moved"]);
    assert_eq!(fs::read(root.join("d/inner")).unwrap(), NEW);
    assert_eq!(names(root), ["absent", "cut", "d", "data", "grown", "link", "mode"]);
}

#[test]
fn a_killed_mount_makes_nobody_wait_longer_than_its_lease() {
    let cluster = Cluster::start(3);
    let (mut victim, other) = (Mount::new(&cluster), Mount::new(&cluster));
    prepare(other.path());
    let seen = warm(victim.path());
    let unsynced = random_bytes(5, 200_000);
    let mut orphan = File::create(victim.path().join("orphan")).unwrap();
    orphan.write_all(&unsynced).unwrap();
    orphan.sync_all().unwrap();
    fs::remove_file(victim.path().join("orphan")).unwrap();
    victim.signal(libc::SIGKILL);
    victim.wait(SLACK);
    let root = other.path().to_path_buf();
    let (longest, _) = ends_within(GROUP_WITHIN, "changes while a mount is dead", move || change(&root));
    assert!(longest < CONFLICT_WITHIN, "one call took {longest:?}");
    check_changed(other.path());

    // Its mount point can be used again at once, although the dead mount still has files open.
    assert_eq!(errno(fs::metadata(victim.path())), libc::ENOTCONN);
    let begun = Instant::now();
    let again = Mount::at(victim.path(), &["--nodes", &cluster.addresses()]);
    assert!(begun.elapsed() < CONFLICT_WITHIN, "{:?}", begun.elapsed());
    check_changed(again.path());
    let mut byte = [0];
    assert_eq!(errno(seen.data.read_at(&mut byte, 0)), libc::ENOTCONN);
    drop((seen, orphan));
    assert!(again.unmount().success());
    assert!(!victim.is_mounted(), "the dead mount is not below the new one either");
}

/// Makes, renames and removes a few names in a directory, the same ones as all others that do so, until that gives an error. Counts.
fn quarrel(directory: &File, seed: u64, stop: &AtomicBool, count: &AtomicUsize) -> i32 {
    let mut random = Random::new(seed);
    // Not by the mount's name, which it may lose before its end.
    let directory = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    while !stop.load(Ordering::Relaxed) {
        let mut name = || directory.join(format!("n{}", random.below(4)));
        let (one, another) = (name(), name());
        let done = match random.below(4) {
            0 => File::create(&one).map(drop),
            1 => fs::rename(&one, &another),
            2 => fs::remove_file(&one),
            _ => fs::metadata(&one).map(drop),
        };
        count.fetch_add(1, Ordering::Relaxed);
        match done.map_err(|error| error.raw_os_error().expect("an errno")) {
            Ok(()) | Err(libc::ENOENT | libc::EEXIST) => {}
            Err(errno) => return errno,
        }
    }
    0
}

/// Has processes on two mounts quarrel about names, and ends one mount by that signal while notices are under way. Its users must get errors, and
/// the process must end. While the kernel carries out a notice about a name it waits for the directory's lock, which a call may hold that waits
/// for the very process that sent the notice: when that ends, somebody has to end the circle.
fn end_amid_notices(signal: i32, rounds: u64, mut ended: impl FnMut(&mut Mount)) {
    let cluster = Cluster::start(1);
    let other = Mount::new(&cluster);
    fs::create_dir(other.path().join("d")).unwrap();
    let mut random = Random::new(1);
    for round in 0..rounds {
        let mut victim = Mount::new(&cluster);
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |root: &Path, user: u64| {
            let (directory, stop, count) = (File::open(root.join("d")).unwrap(), stop.clone(), count.clone());
            std::thread::spawn(move || quarrel(&directory, 10 * round + user, &stop, &count))
        };
        let users: Vec<_> = (0..6).map(|user| start(victim.path(), user)).collect();
        let others: Vec<_> = (6..8).map(|user| start(other.path(), user)).collect();
        let enough = 200 + random.below(1000) as usize;
        wait_until(GROUP_WITHIN, "they quarrel", || count.load(Ordering::Relaxed) > enough);
        victim.signal(signal);
        wait_until(END_WITHIN + SLACK, "all users of the mount have their error", || users.iter().all(|user| user.is_finished()));
        for user in users {
            let errno = user.join().expect("it ends with an errno");
            assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&errno), "{errno}");
        }
        ended(&mut victim);
        stop.store(true, Ordering::Relaxed);
        others.into_iter().for_each(|other| assert_eq!(other.join().expect("it ends well"), 0));
    }
}

#[test]
fn a_mount_killed_amid_notices_leaves_nobody_waiting_and_can_be_unmounted() {
    end_amid_notices(libc::SIGKILL, 3, |victim| {
        victim.wait(SLACK);
        assert!(umount(&[], victim), "nobody uses it any more");
    });
}

#[test]
fn a_mount_told_to_end_amid_notices_ends() {
    end_amid_notices(libc::SIGTERM, 20, |victim| {
        assert!(victim.wait(SLACK).success());
        assert!(!victim.is_mounted());
    });
}

#[test]
fn a_mount_whose_cluster_is_gone_waits_for_it_once_and_ends() {
    let mut cluster = Cluster::start(1);
    let mut mount = Mount::new(&cluster);
    fs::write(mount.path().join("f"), random_bytes(1, 300_000)).unwrap();
    cluster.nodes[0].kill();
    mount.signal(libc::SIGTERM);
    assert!(mount.wait(limits::OP_TIMEOUT + END_WITHIN + SLACK).success());
    assert!(!mount.is_mounted());
    assert_eq!(mount.log_text().matches("not everything could be flushed").count(), 1, "{}", mount.log_text());
}

#[test]
fn a_dead_mount_is_cleared_in_the_background_too_and_through_a_link() {
    let cluster = Cluster::start(1);
    let mut victim = Mount::new(&cluster);
    victim.signal(libc::SIGKILL);
    victim.wait(SLACK);
    let link = cluster.temp.path().join("link");
    symlink(victim.path(), &link).unwrap();
    let link = link.to_str().expect("UTF-8");
    let mounted = run("dfs-mount", &["--nodes", &cluster.addresses(), link], None);
    assert_eq!(mounted.code(), 0, "{}", mounted.stderr());
    assert!(mounted.stderr().contains("process is gone"), "{}", mounted.stderr());
    assert!(victim.is_mounted());
    fs::write(victim.path().join("f"), b"alive").unwrap();
    run("dfs", &["umount", victim.path().to_str().expect("UTF-8")], None).ok();
    assert!(!victim.is_mounted());
}

#[test]
fn a_mount_point_whose_mount_is_stopped_is_refused_and_not_waited_for() {
    let cluster = Cluster::start(1);
    let mount = Mount::new(&cluster);
    mount.signal(libc::SIGSTOP);
    let (nodes, point) = (cluster.addresses(), mount.path().to_str().expect("UTF-8").to_string());
    let (second, _) = ends_within(GROUP_WITHIN, "a mount over a stopped one", move || run("dfs-mount", &["--nodes", &nodes, &point], None));
    assert!(second.failed().contains("mounted there already"), "{}", second.stderr());
    mount.signal(libc::SIGCONT);
    fs::write(mount.path().join("f"), b"alive").unwrap();
    assert!(mount.unmount().success());
}

#[test]
fn of_two_that_mount_at_one_point_at_once_one_does() {
    let cluster = Cluster::start(1);
    let temp = TempDir::new();
    let point = temp.path().to_str().expect("UTF-8").to_string();
    for round in 0..8 {
        let starts: Vec<_> = (0..3)
            .map(|_| {
                let (nodes, point) = (cluster.addresses(), point.clone());
                std::thread::spawn(move || run("dfs-mount", &["--nodes", &nodes, &point], None))
            })
            .collect();
        let ended: Vec<_> = starts.into_iter().map(|start| start.join().expect("a start ends")).collect();
        let (mounted, refused): (Vec<_>, Vec<_>) = ended.into_iter().partition(|end| end.code() == 0);
        let written = fs::write(temp.path().join("f"), b"alive");
        for _ in &mounted {
            run("dfs", &["umount", &point], None).ok();
        }
        assert_eq!(mounted.len(), 1, "round {round}");
        written.expect("the one that is there works");
        for end in &refused {
            assert!(end.stderr().contains("mounted there already"), "{}", end.stderr());
        }
        assert!(!temp.path().join("f").exists(), "nothing is mounted below it");
    }
}

#[test]
fn a_stopped_mount_neither_holds_others_up_nor_wakes_with_the_past() {
    let cluster = Cluster::start(3);
    let (sleeper, other, third) = (Mount::new(&cluster), Mount::new(&cluster), Mount::new(&cluster));
    prepare(other.path());
    let seen = warm(sleeper.path());
    drop(warm(third.path()));
    sleeper.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    // A call that begins while it is stopped ends when it wakes.
    let waiting = sleeper.path().join("data");
    let waiting = std::thread::spawn(move || fs::read(waiting).unwrap());
    let root = other.path().to_path_buf();
    let (longest, _) = ends_within(GROUP_WITHIN, "changes while a mount is stopped", move || change(&root));
    assert!(longest < CONFLICT_WITHIN, "one call took {longest:?}");
    let roots = [other.path().to_path_buf(), third.path().to_path_buf()];
    ends_within(GROUP_WITHIN, "looks while a mount is stopped", move || roots.iter().for_each(|root| check_changed(root)));
    // Calls that begin now, with all of this in the kernel's caches, wait for the sleeper rather than show what it saw.
    let root = sleeper.path().to_path_buf();
    let late = std::thread::spawn(move || check_changed(&root));
    wait_until(2 * BEYOND_LEASE, "its lease has run out", || stopped.elapsed() > BEYOND_LEASE);
    assert!(!late.is_finished(), "the kernel answers in the sleeper's place");
    sleeper.signal(libc::SIGCONT);
    late.join().expect("looks that began while it was stopped");
    let root = sleeper.path().to_path_buf();
    let (seen, took) = ends_within(GROUP_WITHIN, "looks of the mount that woke", move || {
        check_open(&seen, NEW);
        check_changed(&root);
        seen
    });
    assert!(took < limits::OP_TIMEOUT + SLACK, "{took:?}");
    assert_eq!(waiting.join().expect("the call that waited"), NEW);
    // What was open and is unlinked now lives for whoever has it open; the sleeper's word counts again.
    let mut bytes = vec![0; OLD.len()];
    match seen.gone.read_exact_at(&mut bytes, 0) {
        Ok(()) => assert_eq!(bytes, OLD),
        Err(error) => assert!([Some(libc::EIO), Some(libc::ESTALE)].contains(&error.raw_os_error()), "{error}"),
    }
    fs::write(sleeper.path().join("woken"), b"I am back").unwrap();
    assert_eq!(fs::read(other.path().join("woken")).unwrap(), b"I am back");
    fs::write(other.path().join("woken"), b"welcome").unwrap();
    assert_eq!(fs::read(sleeper.path().join("woken")).unwrap(), b"welcome");
}

#[test]
fn a_mount_that_sleeps_again_and_again_never_lies() {
    let cluster = Cluster::start(3);
    let (sleeper, other) = (Mount::new(&cluster), Mount::new(&cluster));
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(sleeper.path().join("f")).unwrap();
    let mut handle = open();
    let mut before = Vec::new();
    for round in 0..24u64 {
        // Most sleeps end while the others' calls wait for the sleeper; some outlast its lease. Then what was not synced may be lost.
        let (long, synced) = (round % 8 == 0 || round % 8 == 4, round % 8 != 4);
        let content = random_bytes(round, 3000);
        handle.write_all_at(&content, 0).unwrap();
        if long && synced {
            handle.sync_all().unwrap();
        }
        sleeper.signal(libc::SIGSTOP);
        let next = random_bytes(1000 + round, 3000);
        let (path, bytes) = (other.path().join("f"), next.clone());
        let changing = std::thread::spawn(move || {
            let begun = Instant::now();
            let seen = fs::read(&path).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
            (seen, begun.elapsed())
        });
        if long {
            wait_until(GROUP_WITHIN, "the other mount's calls ended", || changing.is_finished());
        }
        sleeper.signal(libc::SIGCONT);
        let (seen, took) = changing.join().expect("calls of the other mount");
        assert!(took < 2 * CONFLICT_WITHIN, "round {round}: {took:?}");
        let lost = !synced && seen == before;
        assert!(seen == content || lost, "round {round}: a write that had returned was not seen");
        let mut bytes = vec![0; next.len()];
        match handle.read_exact_at(&mut bytes, 0) {
            Ok(()) => assert!(bytes == next, "round {round}: the woken mount answered from the past"),
            // A handle whose unsynced data was lost says so until it is closed.
            Err(error) => assert!(lost && error.raw_os_error() == Some(libc::EIO), "round {round}: {error}"),
        }
        assert!(fs::read(sleeper.path().join("f")).unwrap() == next, "round {round}");
        if lost {
            handle = open();
        }
        before = next;
    }
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let cluster = Cluster::start(1);
    let writer = Mount::new(&cluster);
    prepare(writer.path());
    let nodes = cluster.addresses();
    let reader = Mount::with(&["--nodes", &nodes, "-o", "ro"]);
    let at = |name: &str| reader.path().join(name);
    drop(File::open(at("data")).unwrap());
    let refused = |what: &str, result: io::Result<()>| assert_eq!(errno(result), libc::EROFS, "{what}");
    refused("open for writing", OpenOptions::new().write(true).open(at("data")).map(drop));
    refused("open with O_TRUNC", OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(at("data")).map(drop));
    refused("create", File::create(at("new")).map(drop));
    refused("mkdir", fs::create_dir(at("new")));
    refused("rmdir", fs::remove_dir(at("d")));
    refused("unlink", fs::remove_file(at("data")));
    refused("rename", fs::rename(at("data"), at("new")));
    refused("link", fs::hard_link(at("data"), at("new")));
    refused("symlink", symlink("x", at("new")));
    refused("chmod", fs::set_permissions(at("data"), Permissions::from_mode(0o600)));
    refused("chown", std::os::unix::fs::chown(at("data"), Some(1), Some(1)));
    refused("utimens", File::open(at("data")).and_then(|file| file.set_modified(std::time::SystemTime::UNIX_EPOCH)));
    let path = std::ffi::CString::new(at("data").to_str().expect("UTF-8")).unwrap();
    let call = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: NUL-terminated strings that live through the calls.
    unsafe {
        refused("truncate", call(libc::truncate(path.as_ptr(), 0)));
        let node = std::ffi::CString::new(at("fifo").to_str().expect("UTF-8")).unwrap();
        refused("mknod", call(libc::mkfifo(node.as_ptr(), 0o600)));
        refused("setxattr", call(libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), c"v".as_ptr().cast(), 1, 0)));
        refused("removexattr", call(libc::removexattr(path.as_ptr(), c"user.x".as_ptr())));
        assert_eq!(libc::access(path.as_ptr(), libc::W_OK), -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EROFS));
    }
    // It is coherent like any other.
    assert_eq!(fs::read(at("data")).unwrap(), OLD);
    change(writer.path());
    check_changed(reader.path());
    assert!(reader.unmount().success());
}

/// Runs a shell script with `$1`, `$2`, ...; gives its output, on failure the test fails.
fn script(text: &str, arguments: &[&str]) -> String {
    let output = Command::new("bash").args(["-ec", text, "test"]).args(arguments).output().expect("bash runs");
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{said}{complaint}");
    said.into_owned()
}

#[test]
fn mount_options_have_effect() {
    let cluster = Cluster::start(1);
    let nodes = cluster.addresses();
    let plain = Mount::with(&["--nodes", &nodes, "-o", "allow_other"]);
    let strict = Mount::with(&["--nodes", &nodes, "-o", "allow_other,noexec,noatime,fsname=some where,subtype=kind"]);
    let open = Mount::with(&["--nodes", &nodes, "-o", "allow_other,suid,dev"]);
    let private = Mount::with(&["--nodes", &nodes]);
    for mount in [&plain, &strict, &open, &private] {
        // The directory of the mount point must not be what keeps others out.
        fs::set_permissions(mount.path().parent().expect("a parent"), Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(plain.path(), Permissions::from_mode(0o777)).unwrap();

    fs::copy("/usr/bin/id", plain.path().join("id")).unwrap();
    fs::set_permissions(plain.path().join("id"), Permissions::from_mode(0o4755)).unwrap();
    let effective = |mount: &Mount| {
        let output = nobody(&mount.path().join("id")).arg("-u").output().expect("setpriv runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    assert_eq!(effective(&plain), (Some(0), "65534".into()), "nosuid is the default");
    assert_eq!(effective(&open), (Some(0), "0".into()), "suid");
    assert_eq!(errno(Command::new(strict.path().join("id")).output()), libc::EACCES, "noexec");

    let device = std::ffi::CString::new(plain.path().join("null").to_str().expect("UTF-8")).unwrap();
    // SAFETY: a NUL-terminated path that lives through the call.
    assert_eq!(unsafe { libc::mknod(device.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) }, 0);
    assert_eq!(errno(File::open(plain.path().join("null"))), libc::EACCES, "nodev is the default");
    assert_eq!(fs::read(open.path().join("null")).unwrap(), b"", "dev");

    fs::write(plain.path().join("f"), b"x").unwrap();
    let atime = |mount: &Mount| {
        let metadata = fs::metadata(mount.path().join("f")).unwrap();
        (metadata.atime(), metadata.atime_nsec())
    };
    let before = atime(&strict);
    assert_eq!(fs::read(strict.path().join("f")).unwrap(), b"x");
    assert_eq!(atime(&strict), before, "noatime");

    let by_nobody = |mount: &Mount| nobody(Path::new("cat")).arg(mount.path().join("f")).output().expect("cat runs").status.success();
    assert!(by_nobody(&plain), "allow_other");
    assert!(!by_nobody(&private), "without it, the mount is for who made it");
    fs::set_permissions(plain.path().join("f"), Permissions::from_mode(0o600)).unwrap();
    assert!(!by_nobody(&plain), "default_permissions is always on");
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(strict.path().to_str().expect("UTF-8"))).expect("mounted");
    assert!(line.starts_with("some\\040where ") && line.contains(" fuse.kind "), "{line}");
    for option in ["noexec", "noatime", "nosuid", "nodev", "default_permissions", "allow_other"] {
        assert!(line.contains(option), "{option} in {line}");
    }
}

/// mount(8) knows no FUSE: it hands such types to a helper, without which it only says "wrong fs type, ..., or helper program".
fn check_mount_helper() {
    let there = ["/sbin/mount.fuse", "/usr/sbin/mount.fuse"].iter().any(|path| Path::new(path).exists());
    assert!(
        there,
        "/sbin/mount.fuse is missing, by which mount(8) and fstab find dfs-mount: install the package fuse3 (apt-get install fuse3)"
    );
    for tool in ["unshare", "findmnt"] {
        let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
        assert!(found, "{tool} is missing: install the package util-linux");
    }
}

#[test]
fn fstab_and_mount_work() {
    check_mount_helper();
    let cluster = Cluster::start(1);
    fs::create_dir(cluster.temp.path().join("mnt")).unwrap();
    let point = cluster.temp.path().join("mnt");
    let (point, source) = (point.to_str().expect("UTF-8"), cluster.nodes[0].address.clone());
    let fstab = cluster
        .temp
        .file("fstab", format!("{source} {point} fuse.dfs-mount noauto,user,_netdev,nofail,x-systemd.automount,ro 0 0\n").as_bytes());
    let program = program("dfs-mount");
    // The helper looks for the program where a login shell would; a mount namespace of its own keeps the machine as it is.
    let told = script(
        r#"
        mount=$1 source=$2 point=$3 fstab=$4 self=$0
        export mount source point fstab
        unshare --mount bash -ec '
            # A mount lives as long as any namespace has it: those of other tests, and of other people, must end when they are unmounted.
            findmnt -rn -o TARGET,FSTYPE | while read -r mounted kind; do
                [[ $kind != fuse.* ]] || umount -l "$mounted" 2>/dev/null || true
            done
            mount -t tmpfs none /usr/local/bin
            ln -s "$mount" /usr/local/bin/dfs-mount
            mount -t fuse.dfs-mount -o noexec,noatime "$source" "$point"
            echo hello >"$point/f"
            findmnt -n -o FSTYPE,SOURCE,OPTIONS "$point"
            umount "$point"
            mount -T "$fstab" "$point"
            cat "$point/f"
            ! touch "$point/g" 2>/dev/null
            findmnt -n -o OPTIONS "$point"
            umount "$point"
        '
        "#,
        &[program.to_str().expect("UTF-8"), &source, point, fstab.to_str().expect("UTF-8")],
    );
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("fuse.dfs-mount") && lines[0].contains(&source), "{told}");
    assert!(lines[0].contains("noexec") && lines[0].contains("noatime"), "{told}");
    assert_eq!(lines[1], "hello");
    assert!(lines[2].starts_with("ro,nosuid,nodev,noexec"), "{told}");
}
