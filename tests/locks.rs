//! Locks between real processes on real mounts: what flock(2) and fcntl(2) promise, also when processes, mounts and nodes die.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{Cluster, Mount, random_bytes, send_signal, wait_until};

/// How long an answer may take that needs nothing but the network.
const PROMPT: Duration = Duration::from_secs(10);
/// What a request that must wait is given to show that it does.
const QUIET: Duration = Duration::from_millis(300);
/// Marks a locker's answers among what the test harness prints.
const MARK: &str = "locker: ";

/// A process that locks what it is told to.
struct Locker {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Locker {
    fn new() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "a_locker", "--nocapture", "--test-threads=1", "--include-ignored"]).env("DFS_LOCKER", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a locker starts");
        let (orders, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(MARK) {
                    let _ = sender.send(answer.to_string());
                }
            }
        });
        Locker { child, orders, answers }
    }

    /// A locker with the file open for reading and writing, as descriptor 0 of its own.
    fn on(path: &Path) -> Self {
        let mut locker = Locker::new();
        locker.ok(&format!("open 0 rw {}", path.display()));
        locker
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order without waiting for its end.
    fn start(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the locker lives");
    }

    /// The answer to the oldest order that is not answered, if it comes within that time.
    fn answer(&self, within: Duration) -> Option<Result<String, i32>> {
        let answer = self.answers.recv_timeout(within).ok()?;
        Some(match answer.strip_prefix("errno ") {
            Some(errno) => Err(errno.parse().expect("a number")),
            None => Ok(answer),
        })
    }

    fn ask(&mut self, order: &str) -> Result<String, i32> {
        self.start(order);
        self.answer(PROMPT).unwrap_or_else(|| panic!("no answer to {order:?}"))
    }

    fn ok(&mut self, order: &str) -> String {
        self.ask(order).unwrap_or_else(|errno| panic!("{order:?}: {}", std::io::Error::from_raw_os_error(errno)))
    }

    fn refused(&mut self, order: &str, errno: i32) {
        assert_eq!(self.ask(order), Err(errno), "{order:?}");
    }

    /// Gives an order that must wait.
    fn waits(&mut self, order: &str) {
        self.start(order);
        assert_eq!(self.answer(QUIET), None, "{order:?} does not wait");
    }

    fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    fn is_gone(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a locker does: an order per line, an answer per line.
#[test]
#[ignore = "the other side of the tests of this file"]
fn a_locker() {
    if std::env::var_os("DFS_LOCKER").is_none() {
        return;
    }
    let mut files: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    for order in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = order.split_whitespace().collect();
        let answer = match obey(&words, &mut files) {
            Ok(answer) => answer,
            Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
        };
        println!("\n{MARK}{answer}");
    }
}

fn checked(code: i32) -> std::io::Result<i32> {
    if code < 0 { Err(std::io::Error::last_os_error()) } else { Ok(code) }
}

extern "C" fn on_signal(_: i32) {}

fn obey(words: &[&str], files: &mut BTreeMap<u32, OwnedFd>) -> std::io::Result<String> {
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
    let slot = number(1) as u32;
    let file = |files: &BTreeMap<u32, OwnedFd>| files.get(&slot).map_or(-1, AsRawFd::as_raw_fd);
    let done = Ok("ok".to_string());
    match words[0] {
        "open" => {
            let mut options = File::options();
            options.read(words[2].contains('r')).write(words[2].contains('w'));
            files.insert(slot, options.open(words[3])?.into());
            done
        }
        "close" => {
            files.remove(&slot);
            done
        }
        "dup" => {
            // SAFETY: a new descriptor that nobody else owns.
            let copy = unsafe { OwnedFd::from_raw_fd(checked(libc::dup(file(files)))?) };
            files.insert(number(2) as u32, copy);
            done
        }
        "flock" => {
            let mode = match words[2] {
                "sh" => libc::LOCK_SH,
                "ex" => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            let mode = if words.contains(&"wait") { mode } else { mode | libc::LOCK_NB };
            // SAFETY: no memory is involved.
            checked(unsafe { libc::flock(file(files), mode) })?;
            done
        }
        "fcntl" | "ofd" | "getlk" => {
            // SAFETY: a plain record of numbers.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = match words[2] {
                "sh" => libc::F_RDLCK as i16,
                "ex" => libc::F_WRLCK as i16,
                _ => libc::F_UNLCK as i16,
            };
            (lock.l_start, lock.l_len) = (number(3), number(4));
            let command = match (words[0], words.contains(&"wait")) {
                ("fcntl", false) => libc::F_SETLK,
                ("fcntl", true) => libc::F_SETLKW,
                ("ofd", false) => libc::F_OFD_SETLK,
                ("ofd", true) => libc::F_OFD_SETLKW,
                _ => libc::F_GETLK,
            };
            // SAFETY: the record lives through the call.
            checked(unsafe { libc::fcntl(file(files), command, &raw mut lock) })?;
            if words[0] != "getlk" || lock.l_type == libc::F_UNLCK as i16 {
                return done;
            }
            let mode = if lock.l_type == libc::F_RDLCK as i16 { "sh" } else { "ex" };
            Ok(format!("{mode} {} {} {}", lock.l_start, lock.l_len, lock.l_pid))
        }
        // A child that keeps what it inherits until it is killed.
        "fork" => {
            // SAFETY: the child makes no call but pause(2).
            match checked(unsafe { libc::fork() })? {
                0 => loop {
                    // SAFETY: no memory is involved.
                    unsafe { libc::pause() };
                },
                child => Ok(child.to_string()),
            }
        }
        "reap" => {
            // SAFETY: the status is not asked for.
            checked(unsafe { libc::waitpid(number(1) as i32, std::ptr::null_mut(), 0) })?;
            done
        }
        // From here on SIGUSR1 interrupts. Answers the number of the thread that obeys.
        "handle" => {
            // SAFETY: a handler that does nothing, and a record that is zero but for it.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                checked(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()))?;
                Ok(libc::gettid().to_string())
            }
        }
        // Becomes another program, with the open file.
        "exec" => {
            // SAFETY: no memory is involved; strings end with their zero.
            unsafe {
                libc::fcntl(file(files), libc::F_SETFD, 0);
                let arguments = [c"sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null()];
                libc::execvp(arguments[0], arguments.as_ptr());
            }
            Err(std::io::Error::last_os_error())
        }
        "read" => {
            let mut byte = [0u8; 1];
            // SAFETY: the buffer has that length.
            checked(unsafe { libc::read(file(files), byte.as_mut_ptr().cast(), 1) as i32 })?;
            done
        }
        other => panic!("unknown order {other:?}"),
    }
}

/// Three nodes with two mounts of them, and a file by its path on each.
fn two_mounts(nodes: usize) -> (Cluster, Mount, Mount) {
    let cluster = Cluster::start(nodes);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    std::fs::write(a.path().join("f"), b"content").unwrap();
    std::fs::write(a.path().join("g"), b"content").unwrap();
    (cluster, a, b)
}

#[test]
fn flocks_exclude_across_mounts_and_convert_as_on_linux() {
    let (_cluster, a, b) = two_mounts(1);
    let (mut x, mut y) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    x.ok("flock 0 ex");
    y.refused("flock 0 sh", libc::EWOULDBLOCK);
    x.ok("flock 0 sh");
    y.ok("flock 0 sh");
    // Linux lets the shared lock go before it finds that it cannot have the exclusive one.
    x.refused("flock 0 ex", libc::EWOULDBLOCK);
    y.ok("flock 0 ex");
    y.ok("flock 0 un");
    // Two that share and both want more do not wait for each other for ever.
    x.ok("flock 0 sh");
    y.ok("flock 0 sh");
    x.waits("flock 0 ex wait");
    y.ok("flock 0 ex wait");
    assert_eq!(x.answer(QUIET), None);
    y.ok("flock 0 un");
    assert_eq!(x.answer(PROMPT), Some(Ok("ok".into())));
    x.ok("flock 0 un");
    y.ok("flock 0 ex");

    // The same file opened twice is two owners, on one mount too; a duplicate is the same.
    y.ok(&format!("open 1 rw {}", b.path().join("f").display()));
    y.refused("flock 1 ex", libc::EWOULDBLOCK);
    y.ok("dup 0 2");
    y.ok("close 0");
    y.ok("flock 2 ex");
    x.refused("flock 0 sh", libc::EWOULDBLOCK);
    y.ok("close 2");
    wait_until(PROMPT, "the lock is gone with the last descriptor", || x.ask("flock 0 ex").is_ok());
}

#[test]
fn ranges_split_merge_and_show_across_mounts() {
    let (_cluster, a, b) = two_mounts(1);
    let (mut x, mut y) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    x.ok("fcntl 0 ex 0 100");
    y.ok("fcntl 0 ex 100 100");
    y.refused("fcntl 0 sh 99 1", libc::EAGAIN);
    x.refused("fcntl 0 sh 100 1", libc::EAGAIN);
    x.ok("fcntl 0 un 40 10");
    y.ok("fcntl 0 ex 40 10");
    y.refused("fcntl 0 ex 50 1", libc::EAGAIN);
    let pid = x.pid();
    assert_eq!(y.ok("getlk 0 sh 0 0"), format!("ex 0 40 {pid}"));
    assert_eq!(y.ok("getlk 0 sh 60 0"), format!("ex 50 50 {pid}"));
    assert_eq!(y.ok("getlk 0 ex 200 0"), "ok", "nobody else has it");
    // What touches and has one mode is one lock again; to the end means for ever.
    y.ok("fcntl 0 un 0 0");
    x.ok("fcntl 0 ex 40 10");
    assert_eq!(y.ok("getlk 0 ex 0 0"), format!("ex 0 100 {pid}"));
    x.ok("fcntl 0 sh 100 0");
    y.ok("fcntl 0 sh 5000 1");
    x.refused("fcntl 0 ex 200 0", libc::EAGAIN);
    assert_eq!(y.ok("getlk 0 ex 4000 0"), format!("sh 100 0 {pid}"), "a refused conversion keeps what there was");
    x.ok("fcntl 0 ex 100 100");
    assert_eq!(y.ok("getlk 0 sh 0 0"), format!("ex 0 200 {pid}"));

    // What the kernel refuses by itself.
    x.ok(&format!("open 1 r {}", a.path().join("f").display()));
    x.refused("fcntl 1 ex 0 1", libc::EBADF);
    x.refused("fcntl 0 ex -1 1", libc::EINVAL);

    // The two families do not know each other.
    y.ok("flock 0 ex");
    x.refused("flock 0 ex", libc::EWOULDBLOCK);
    x.ok("fcntl 0 ex 0 200");
    y.ok("fcntl 0 un 0 0");
    x.ok("fcntl 0 ex 0 0");
    y.refused("fcntl 0 sh 0 0", libc::EAGAIN);
}

#[test]
fn open_file_locks_belong_to_the_open_file() {
    let (_cluster, a, b) = two_mounts(1);
    let (mut x, mut y) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    x.ok("ofd 0 ex 0 10");
    y.refused("ofd 0 ex 5 1", libc::EAGAIN);
    y.refused("fcntl 0 sh 5 1", libc::EAGAIN);
    x.refused("fcntl 0 sh 5 1", libc::EAGAIN);
    // Another open of the file comes and goes without harm; so does one duplicate.
    x.ok(&format!("open 1 rw {}", a.path().join("f").display()));
    x.refused("ofd 1 ex 0 1", libc::EAGAIN);
    x.ok("close 1");
    x.ok("dup 0 2");
    x.ok("close 2");
    y.refused("ofd 0 sh 0 1", libc::EAGAIN);
    y.waits("ofd 0 ex 0 10 wait");
    x.ok("close 0");
    assert_eq!(y.answer(PROMPT), Some(Ok("ok".into())));
}

#[test]
fn closing_forking_and_executing_keep_or_drop_locks_as_posix_says() {
    let (_cluster, a, b) = two_mounts(1);
    let path = a.path().join("f");
    let (mut x, mut y) = (Locker::on(&path), Locker::on(&b.path().join("f")));
    // Any close of the file by the process drops its ranges, at once.
    x.ok("fcntl 0 ex 0 0");
    x.ok(&format!("open 1 r {}", path.display()));
    y.refused("fcntl 0 ex 0 0", libc::EAGAIN);
    x.ok("close 1");
    y.ok("fcntl 0 ex 0 0");
    y.ok("fcntl 0 un 0 0");
    x.ok("fcntl 0 ex 0 0");
    x.ok("dup 0 1");
    x.ok("close 1");
    y.ok("fcntl 0 ex 0 0");
    y.ok("fcntl 0 un 0 0");

    // A child has none of its parent's ranges, and takes none away; a flock is shared with it.
    x.ok("fcntl 0 ex 0 10");
    x.ok("flock 0 ex");
    let child: u32 = x.ok("fork").parse().unwrap();
    send_signal(child, libc::SIGKILL);
    x.ok(&format!("reap {child}"));
    y.refused("fcntl 0 ex 0 1", libc::EAGAIN);
    y.refused("flock 0 sh", libc::EWOULDBLOCK);
    let child: u32 = x.ok("fork").parse().unwrap();
    x.ok("close 0");
    y.ok("fcntl 0 ex 0 1");
    y.refused("flock 0 sh", libc::EWOULDBLOCK);
    send_signal(child, libc::SIGKILL);
    wait_until(PROMPT, "the flock is gone with its last descriptor", || y.ask("flock 0 sh").is_ok());

    // Another program in the same process keeps them.
    let mut z = Locker::on(&path);
    y.ok("flock 0 un");
    y.ok("fcntl 0 un 0 0");
    z.ok("fcntl 0 ex 0 10");
    z.ok("flock 0 ex");
    z.start("exec 0");
    let name = format!("/proc/{}/comm", z.pid());
    wait_until(PROMPT, "another program runs", || std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n"));
    y.refused("fcntl 0 ex 0 1", libc::EAGAIN);
    y.refused("flock 0 ex", libc::EWOULDBLOCK);
    z.kill();
    y.ok("fcntl 0 ex 0 1 wait");
    y.ok("flock 0 ex wait");
}

#[test]
fn waiters_get_the_lock_in_order_from_whoever_lets_it_go() {
    let (_cluster, a, b) = two_mounts(1);
    for family in ["flock 0 ex", "fcntl 0 ex 0 0"] {
        let wait = format!("{family} wait");
        let mut holder = Locker::on(&a.path().join("f"));
        holder.ok(family);
        let mut waiters: Vec<Locker> = (0..4).map(|at| Locker::on(&[&a, &b][at % 2].path().join("f"))).collect();
        waiters.iter_mut().for_each(|waiter| waiter.waits(&wait));
        // By closing, by dying, by unlocking: each time the next in order, and nobody else.
        let give_up: [fn(&mut Locker, &str); 4] = [
            |locker, _| drop(locker.ok("close 0")),
            |locker, _| locker.kill(),
            |locker, family| drop(locker.ok(&family.replace("ex", "un"))),
            |locker, _| locker.kill(),
        ];
        let mut holder = holder;
        for (at, give_up) in give_up.into_iter().enumerate() {
            give_up(&mut holder, family);
            assert_eq!(waiters[0].answer(PROMPT), Some(Ok("ok".into())), "{family}: waiter {at}");
            assert!(waiters[1..].iter().all(|waiter| waiter.answers.try_recv().is_err()), "{family}: one after the other");
            holder = waiters.remove(0);
        }
    }
}

#[test]
fn readers_are_served_together_and_a_writer_is_not_passed_for_ever() {
    let (_cluster, a, b) = two_mounts(1);
    let on = |mount: &Mount| Locker::on(&mount.path().join("f"));
    let (mut first, mut writer, mut second, mut third) = (on(&a), on(&b), on(&a), on(&b));
    first.ok("flock 0 ex");
    second.waits("flock 0 sh wait");
    third.waits("flock 0 sh wait");
    writer.waits("flock 0 ex wait");
    first.ok("flock 0 un");
    assert_eq!(second.answer(PROMPT), Some(Ok("ok".into())));
    assert_eq!(third.answer(PROMPT), Some(Ok("ok".into())), "with the other reader");
    assert_eq!(writer.answer(QUIET), None);
    second.ok("flock 0 un");
    third.ok("flock 0 un");
    assert_eq!(writer.answer(PROMPT), Some(Ok("ok".into())));
}

#[test]
fn circles_of_waiters_are_found_across_mounts() {
    let (_cluster, a, b) = two_mounts(1);
    let mut lockers: Vec<Locker> = (0..3).map(|at| Locker::on(&[&a, &b][at % 2].path().join("f"))).collect();
    let g = [&a, &b, &a].map(|mount| format!("open 1 rw {}", mount.path().join("g").display()));
    for (at, locker) in lockers.iter_mut().enumerate() {
        locker.ok(&g[at]);
        locker.ok(&format!("fcntl {} ex {at} 1", at % 2));
    }
    let [x, y, z] = &mut lockers[..] else { unreachable!() };
    // x has f:0, y has g:1, z has f:2. x waits for y, y for z; z for x would close the circle.
    x.waits("fcntl 1 ex 1 1 wait");
    y.waits("fcntl 0 ex 2 1 wait");
    z.refused("fcntl 0 ex 0 1 wait", libc::EDEADLK);
    // Nothing was lost, and whoever gives up lets the others on.
    z.ok("fcntl 0 un 2 1");
    assert_eq!(y.answer(PROMPT), Some(Ok("ok".into())));
    y.ok("fcntl 1 un 1 1");
    assert_eq!(x.answer(PROMPT), Some(Ok("ok".into())));

    // An open file's wait may be ended by another thread, so it is never called a deadlock.
    let (mut v, mut w) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    v.ok("ofd 0 ex 10 1");
    w.ok("ofd 0 ex 11 1");
    v.waits("ofd 0 ex 11 1 wait");
    w.waits("ofd 0 ex 10 1 wait");
}

#[test]
fn a_waiting_process_can_be_killed_and_interrupted() {
    let (_cluster, a, b) = two_mounts(1);
    for family in ["flock 0 ex", "fcntl 0 ex 0 0"] {
        let mut holder = Locker::on(&a.path().join("f"));
        holder.ok(family);
        let wait = format!("{family} wait");
        let mut killed = Locker::on(&b.path().join("f"));
        killed.waits(&wait);
        let begun = Instant::now();
        send_signal(killed.pid(), libc::SIGKILL);
        wait_until(PROMPT, "the killed process is gone", || killed.is_gone());
        assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());

        // A signal with a handler: one that another thread of the process takes, then one to the thread that waits.
        let mut handled = Locker::on(&b.path().join("f"));
        let thread: i32 = handled.ok("handle").parse().unwrap();
        handled.waits(&wait);
        send_signal(handled.pid(), libc::SIGUSR1);
        assert_eq!(handled.answer(QUIET), None, "it is not meant for this thread");
        // SAFETY: plain system call with numbers; the process is a child of ours that has not been collected.
        unsafe { libc::syscall(libc::SYS_tgkill, handled.pid(), thread, libc::SIGUSR1) };
        assert_eq!(handled.answer(PROMPT), Some(Err(libc::EINTR)));
        // A signal without a handler.
        let mut ended = Locker::on(&b.path().join("f"));
        ended.waits(&wait);
        send_signal(ended.pid(), libc::SIGTERM);
        let mut status = None;
        wait_until(PROMPT, "the ended process is gone", || {
            status = ended.child.try_wait().expect("it is ours");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.signal()), Some(libc::SIGTERM));

        // Stopping and going on is no interruption that a program sees.
        let mut stopped = Locker::on(&b.path().join("f"));
        stopped.waits(&wait);
        send_signal(stopped.pid(), libc::SIGSTOP);
        let state = format!("/proc/{}/stat", stopped.pid());
        wait_until(PROMPT, "the process stands still", || std::fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") T ")));
        send_signal(stopped.pid(), libc::SIGCONT);
        assert_eq!(stopped.answer(QUIET), None, "it waits again");
        holder.ok(&family.replace("ex", "un"));
        assert_eq!(stopped.answer(PROMPT), Some(Ok("ok".into())), "none of those that gave up got the lock");
        // And the one that was interrupted can go on.
        stopped.kill();
        handled.ok(&wait);
    }
}

#[test]
fn a_killed_mount_loses_its_locks_when_its_lease_ends_and_somebody_asks() {
    let (cluster, a, mut b) = two_mounts(1);
    let mut x = Locker::on(&a.path().join("f"));
    let (mut y, mut z) = (Locker::on(&b.path().join("f")), Locker::on(&b.path().join("f")));
    y.ok("flock 0 ex");
    z.ok("fcntl 0 ex 0 10");
    b.signal(libc::SIGKILL);
    b.wait(PROMPT);
    x.refused("flock 0 ex", libc::EWOULDBLOCK);
    let begun = Instant::now();
    x.ok("flock 0 ex wait");
    assert!(begun.elapsed() < dfs::limits::SESSION_LEASE + Duration::from_secs(3), "it took {:?}", begun.elapsed());
    x.ok("fcntl 0 ex 0 10");
    // Its place is usable again.
    let c = Mount::new(&cluster);
    Locker::on(&c.path().join("f")).refused("flock 0 ex", libc::EWOULDBLOCK);
}

/// What is synced of a file, and what is not, in a mount that is about to die; and a lock on it.
fn write_and_lock(path: &Path, lock: &str) -> (Vec<u8>, Locker) {
    let synced = random_bytes(lock.len() as u64, 300_000);
    let mut file = File::create(path).unwrap();
    file.write_all(&synced).unwrap();
    file.sync_all().unwrap();
    let mut locker = Locker::on(path);
    locker.ok(lock);
    file.write_all(b"a tail that nobody was told is safe").unwrap();
    (synced, locker)
}

#[test]
fn a_mount_killed_with_locks_and_unsynced_bytes_holds_nobody_up() {
    let (_cluster, a, mut b) = two_mounts(3);
    let files: Vec<(&str, &str)> = vec![("flocked", "flock 0 ex"), ("ranged", "fcntl 0 ex 0 10")];
    let kept: Vec<(Vec<u8>, Locker)> = files.iter().map(|(name, lock)| write_and_lock(&b.path().join(name), lock)).collect();
    b.signal(libc::SIGKILL);
    b.wait(PROMPT);
    let begun = Instant::now();
    for ((name, lock), (synced, _)) in files.iter().zip(&kept) {
        let path = a.path().join(name);
        let mut locker = Locker::on(&path);
        locker.ok(&format!("{lock} wait"));
        let found = std::fs::read(&path).expect("readable");
        assert!(found.starts_with(synced), "{name}: what was synced is there");
        let mut file = File::options().read(true).write(true).open(&path).expect("writable");
        file.write_all(b"new").and_then(|()| file.sync_all()).expect("written and synced");
        assert!(std::fs::read(&path).expect("readable") == [b"new", &found[3..]].concat(), "{name}");
    }
    let (took, slack) = (begun.elapsed(), Duration::from_secs(3));
    println!("after {took:?}");
    assert!(took < dfs::limits::SESSION_LEASE + 2 * dfs::limits::SESSION_MARGIN + slack, "it took {took:?}");
}

#[test]
fn a_mount_that_slept_through_its_lease_does_not_use_what_it_lost() {
    let (_cluster, a, b) = two_mounts(1);
    let (mut x, mut y) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    y.ok("fcntl 0 ex 0 10");
    y.ok(&format!("open 1 rw {}", b.path().join("g").display()));
    b.signal(libc::SIGSTOP);
    x.start("fcntl 0 ex 0 10 wait");
    assert_eq!(x.answer(2 * dfs::limits::SESSION_LEASE), Some(Ok("ok".into())), "others wait no longer than the lease");
    b.signal(libc::SIGCONT);
    wait_until(PROMPT, "the descriptor whose lock was lost fails", || y.ask("read 0") == Err(libc::EIO));
    y.refused("fcntl 0 ex 20 1", libc::EIO);
    y.ok("read 1");
    y.ok("close 0");
    y.ok(&format!("open 0 rw {}", b.path().join("f").display()));
    y.ok("read 0");
    y.refused("fcntl 0 ex 0 10", libc::EAGAIN);
    x.ok("close 0");
    y.ok("fcntl 0 ex 0 10");
}

#[test]
fn locks_and_those_that_wait_for_them_survive_the_leader() {
    let (mut cluster, a, b) = two_mounts(3);
    let (mut x, mut y) = (Locker::on(&a.path().join("f")), Locker::on(&b.path().join("f")));
    x.ok("flock 0 ex");
    y.ok("fcntl 0 ex 0 10");
    let mut waiters: Vec<Locker> = (0..4).map(|at| Locker::on(&[&a, &b][at % 2].path().join("f"))).collect();
    waiters.iter_mut().for_each(|waiter| waiter.waits("flock 0 ex wait"));
    let mut killed = Locker::on(&b.path().join("f"));
    killed.waits("flock 0 ex wait");
    let leader = cluster.leader();
    cluster.node(&leader).kill();
    // While there is no leader: a waiter is killed, and is gone.
    let begun = Instant::now();
    send_signal(killed.pid(), libc::SIGKILL);
    wait_until(PROMPT, "the killed process is gone", || killed.is_gone());
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    // Under the next leader everything is as it was.
    let mut fresh = Locker::on(&b.path().join("f"));
    fresh.refused("flock 0 ex", libc::EWOULDBLOCK);
    fresh.refused("fcntl 0 sh 0 1", libc::EAGAIN);
    assert!(waiters.iter().all(|waiter| waiter.answers.try_recv().is_err()), "nobody was given what is taken");
    x.ok("flock 0 un");
    // All get it, one at a time; who is first is for the new leader to say.
    for _ in 0..4 {
        let mut got = None;
        wait_until(PROMPT, "the next waiter has the lock", || {
            got = waiters.iter().position(|waiter| waiter.answers.try_recv().is_ok());
            got.is_some()
        });
        let mut holder = waiters.remove(got.expect("just found"));
        fresh.refused("flock 0 sh", libc::EWOULDBLOCK);
        assert!(waiters.iter().all(|waiter| waiter.answers.try_recv().is_err()), "one at a time");
        holder.ok("close 0");
    }
    wait_until(PROMPT, "the lock is free", || fresh.ask("flock 0 ex").is_ok());
}
