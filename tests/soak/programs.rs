//! Programs of other people at work on both mounts of a soak: git, sqlite and fio, each of which knows what it has stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::calls::Run;
use crate::common::random_bytes;

const BETWEEN: Duration = Duration::from_millis(150);
const COMMITS_PER_GC: u64 = 8;
const COMMITS_PER_REPOSITORY: u64 = 24;
/// How long sqlite waits for the lock of a writer on the other mount, whose call may last as long as a fault.
const BUSY_MS: u64 = 60_000;
const FIO_FILE: &str = "8m";

/// All programs, and what they must leave.
pub struct Programs {
    threads: Vec<std::thread::JoinHandle<()>>,
    git: Arc<Git>,
    /// Transactions acknowledged, by writer.
    added: Vec<Arc<AtomicU64>>,
}

/// What the one who commits and the one who looks on know of each other.
#[derive(Default)]
struct Git {
    /// Held by who changes a repository and by `git fsck`, which takes for missing what came after it has listed all objects.
    quiet: Mutex<()>,
    /// Number of the newest repository, and of its commits so far in the lower half.
    newest: AtomicU64,
}

impl Git {
    fn tell(&self, repository: u64, commits: u64) {
        self.newest.store(repository << 32 | commits, Ordering::SeqCst);
    }

    fn newest(&self) -> (u64, u64) {
        let newest = self.newest.load(Ordering::SeqCst);
        (newest >> 32, newest & u64::from(u32::MAX))
    }
}

impl Programs {
    /// Starts them on two mounts.
    pub fn start(run: &Arc<Run>, mounts: &[PathBuf]) -> Self {
        let mut programs = Programs { threads: Vec::new(), git: Arc::default(), added: Vec::new() };
        let (a, b) = (&mounts[0], &mounts[1]);
        let git = programs.git.clone();
        programs.spawn(run, a, move |run, root| commit(run, root, &git));
        let git = programs.git.clone();
        programs.spawn(run, b, move |run, root| look_at_commits(run, root, &git));
        if let Err(what) = sqlite(run, a, "CREATE TABLE counter(writer INTEGER PRIMARY KEY, n INTEGER); CREATE TABLE entry(text TEXT);") {
            run.fail(what);
        }
        for (writer, root) in mounts.iter().enumerate() {
            let added = Arc::new(AtomicU64::new(0));
            programs.added.push(added.clone());
            programs.spawn(run, root, move |run, root| count(run, root, writer, &added));
        }
        for (index, (own, other)) in [(a, b), (b, a)].into_iter().enumerate() {
            let other = other.clone();
            programs.spawn(run, own, move |run, root| write_and_verify(run, root, &other, index));
        }
        programs
    }

    fn spawn(&mut self, run: &Arc<Run>, root: &Path, work: impl FnOnce(&Run, &Path) -> Result<(), String> + Send + 'static) {
        let (run, root) = (run.clone(), root.to_path_buf());
        self.threads.push(std::thread::spawn(move || work(&run, &root).unwrap_or_else(|what| run.fail(what))));
    }

    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(|thread| thread.is_finished())
    }

    /// Has each program check what it left, on that mount. They have ended.
    pub fn judge(self, run: &Run, root: &Path) {
        for thread in self.threads {
            if thread.join().is_err() {
                run.fail("a thread that runs programs panicked".to_string());
            }
        }
        let added: u64 = self.added.iter().map(|added| added.load(Ordering::Relaxed)).sum();
        let check = || -> Result<(), String> {
            check_database(run, root)?;
            let sums = sqlite(run, root, "SELECT sum(n) FROM counter; SELECT count(*) FROM entry;")?;
            if sums != format!("{added}\n{added}\n") {
                return Err(format!("{added} transactions were acknowledged; counted and entered are {sums:?}"));
            }
            let (number, commits) = self.git.newest();
            let newest = repository(root, number);
            git(run, &newest, &["fsck", "--full", "--strict", "--no-dangling"])?;
            expect_commits(run, &newest, commits)?;
            (0..2).try_for_each(|index| fio(run, root, &verify_arguments(index)))
        };
        match check() {
            Ok(()) => println!("{added} transactions, the newest repository and the files of fio are as they were left"),
            Err(what) => run.fail(what),
        }
    }
}

/// Runs a program; its standard output if it ended well.
fn finish(run: &Run, mut command: Command) -> Result<String, String> {
    let line = format!("{command:?}");
    command.stdin(Stdio::null());
    let output = run.program(&line, || command.output()).map_err(|error| format!("{line}: {error}"))?;
    let (out, said) = (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out) } else { Err(format!("{line}: {}: {said}{out}", output.status)) }
}

fn git(run: &Run, repository: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"]).args(arguments);
    // Whatever this machine's user has configured, the soak does the same.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "soak").env(format!("GIT_{who}_EMAIL"), "soak@localhost");
    }
    finish(run, command)
}

fn repository(root: &Path, number: u64) -> PathBuf {
    root.join(format!("git-{number}"))
}

/// Makes one repository after the other, and commits to it; the one before the newest is removed.
fn commit(run: &Run, root: &Path, shared: &Git) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("git's files: {error}");
    for number in 1.. {
        let path = repository(root, number);
        fs::create_dir(&path).map_err(wrong)?;
        git(run, &path, &["init", "--quiet"])?;
        for commit in 1..=COMMITS_PER_REPOSITORY {
            let quiet = shared.quiet.lock().expect("no panic holds it");
            for file in 0..4 {
                let directory = path.join(format!("d{}", (commit + file) % 5));
                fs::create_dir_all(&directory).map_err(wrong)?;
                let bytes = random_bytes(number << 32 | commit << 8 | file, 200 + 3000 * file as usize);
                fs::write(directory.join(format!("f{file}")), bytes).map_err(wrong)?;
            }
            git(run, &path, &["add", "--all"])?;
            git(run, &path, &["commit", "--quiet", "--message", &format!("commit {commit}")])?;
            run.count("git commit");
            // From the first on the other mount looks at this repository.
            shared.tell(number, commit);
            if commit % COMMITS_PER_GC == 0 {
                git(run, &path, &["gc", "--quiet"])?;
                git(run, &path, &["fsck", "--full", "--strict", "--no-dangling"])?;
                run.count("git gc");
            }
            drop(quiet);
            if run.is_over() {
                return Ok(());
            }
            std::thread::sleep(BETWEEN);
        }
        if number > 1 {
            let _quiet = shared.quiet.lock().expect("no panic holds it");
            fs::remove_dir_all(repository(root, number - 1)).map_err(wrong)?;
        }
    }
    Ok(())
}

/// On the other mount: every commit that was acknowledged is there, and whole.
fn look_at_commits(run: &Run, root: &Path, shared: &Git) -> Result<(), String> {
    for round in 0u64.. {
        if run.is_over() {
            break;
        }
        let (number, commits) = shared.newest();
        if number > 0 {
            // `git log` finds its way also while somebody commits and packs.
            expect_commits(run, &repository(root, number), commits)?;
            run.count("git log on the other mount");
        }
        if round % 4 == 3 && number > 0 {
            let _quiet = shared.quiet.lock().expect("no panic holds it");
            let (number, _) = shared.newest();
            git(run, &repository(root, number), &["fsck", "--full", "--strict", "--no-dangling"])?;
            run.count("git fsck on the other mount");
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}

fn expect_commits(run: &Run, path: &Path, at_least: u64) -> Result<(), String> {
    let found = git(run, path, &["log", "--oneline"])?.lines().count() as u64;
    if found < at_least { Err(format!("{}: {at_least} commits were made, {found} are there", path.display())) } else { Ok(()) }
}

fn sqlite(run: &Run, root: &Path, statements: &str) -> Result<String, String> {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-cmd", &format!(".timeout {BUSY_MS}")]).arg(root.join("counter.db")).arg(statements);
    finish(run, command)
}

fn check_database(run: &Run, root: &Path) -> Result<(), String> {
    let said = sqlite(run, root, "PRAGMA integrity_check;")?;
    run.count("sqlite integrity_check");
    if said == "ok\n" { Ok(()) } else { Err(format!("sqlite finds its database damaged: {said}")) }
}

/// Adds one to the own counter and an entry to the table of all, in one transaction after the other.
fn count(run: &Run, root: &Path, writer: usize, added: &AtomicU64) -> Result<(), String> {
    sqlite(run, root, &format!("INSERT INTO counter VALUES({writer}, 0);"))?;
    while !run.is_over() {
        let next = added.load(Ordering::Relaxed) + 1;
        let entry = format!("INSERT INTO entry VALUES('{writer} {next}');");
        let update = format!("UPDATE counter SET n = n + 1 WHERE writer = {writer};");
        let found =
            sqlite(run, root, &format!("BEGIN IMMEDIATE; {entry} {update} SELECT n FROM counter WHERE writer = {writer}; COMMIT;"))?;
        if found != format!("{next}\n") {
            return Err(format!("sqlite's writer {writer} has counted to {found:?} after {next} transactions"));
        }
        added.store(next, Ordering::Relaxed);
        run.count("sqlite transaction");
        if next.is_multiple_of(20) {
            check_database(run, root)?;
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}

fn fio(run: &Run, root: &Path, arguments: &[String]) -> Result<(), String> {
    let mut command = Command::new("fio");
    // Without `--thread` each job would share memory of a System V segment, which outlives a soak that is killed.
    command.args(["--name=soak", "--thread", "--ioengine=psync", "--bs=16k", "--verify=crc32c", "--verify_fatal=1"]);
    command.args(["--verify_state_save=0", "--output-format=terse", &format!("--size={FIO_FILE}")]).arg("--directory").arg(root);
    command.args(arguments).current_dir(std::env::temp_dir());
    finish(run, command).map(drop)
}

fn verify_arguments(index: usize) -> Vec<String> {
    vec!["--rw=read".to_string(), format!("--filename=fio-{index}")]
}

/// Writes a file at random and reads it back, then has the other mount read it.
fn write_and_verify(run: &Run, own: &Path, other: &Path, index: usize) -> Result<(), String> {
    for round in 0u64.. {
        if run.is_over() {
            break;
        }
        let direct = u64::from(round % 3 == 2);
        let arguments = ["--rw=randwrite", "--do_verify=1", "--fsync=64"].map(str::to_string);
        let own_arguments = [format!("--filename=fio-{index}"), format!("--direct={direct}"), format!("--randseed={}", round + 1)];
        fio(run, own, &[arguments.as_slice(), own_arguments.as_slice()].concat())?;
        fio(run, other, &verify_arguments(index))?;
        run.count("fio write, verify, verify on the other mount");
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}
