//! Workers whose every call is timed: small registers and few names from both mounts, as histories that an order must explain, and a log
//! that both mounts append to.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs::random::Random;

use crate::calls::{Calls, Failed, Run};
use crate::linear::{self, Finding, Names, NamesAnswer, NamesCall, Operation, Register, RegisterCall};

const REGISTERS: usize = 8;
const REGISTER_WORKERS: u64 = 3;
const DIRECTORIES: usize = 3;
const NAME_WORKERS: u64 = 2;
const LOG_WRITERS: usize = 2;
/// Between two calls of a worker: the nodes, the mounts and their load share one machine.
const THINK_MS_MAX: u64 = 8;
const APPEND_EVERY: Duration = Duration::from_millis(25);
/// So much is told of a register that no order explains.
const TOLD_NS: u64 = 150_000_000;
const LOOK_EVERY: Duration = Duration::from_millis(700);

/// With the mount of each operation.
type RegisterHistory = Vec<(u64, Operation<RegisterCall, u64>)>;
type NamesHistory = Vec<(u64, Operation<NamesCall, NamesAnswer>)>;

/// What workers bring home: operations by the number of their object.
enum Seen {
    Registers(u64, Vec<(usize, Operation<RegisterCall, u64>)>),
    Names(u64, Vec<(usize, Operation<NamesCall, NamesAnswer>)>),
    Nothing,
}

/// All workers, and what must be there at the end.
pub struct Load {
    threads: Vec<std::thread::JoinHandle<Seen>>,
    /// Lines that are safe, by writer.
    appended: Vec<Arc<AtomicU64>>,
}

impl Load {
    /// Makes what they work on, and starts them on all mounts.
    pub fn start(run: &Arc<Run>, mounts: &[PathBuf], random: &mut Random) -> Self {
        prepare(&mounts[0]).expect("the cluster is whole");
        let mut load = Load { threads: Vec::new(), appended: Vec::new() };
        for (mount, root) in mounts.iter().enumerate() {
            for worker in 0..REGISTER_WORKERS {
                let number = mount as u64 * REGISTER_WORKERS + worker + 1;
                load.spawn(run, &format!("registers {number}"), root, random.fork(), move |work| work.registers(mount as u64, number));
            }
            for worker in 0..NAME_WORKERS {
                load.spawn(run, &format!("names {mount}.{worker}"), root, random.fork(), move |work| work.names(mount));
            }
            for _ in 0..LOG_WRITERS {
                let writer = load.appended.len();
                let safe = Arc::new(AtomicU64::new(0));
                load.appended.push(safe.clone());
                load.spawn(run, &format!("append {writer}"), root, random.fork(), move |work| work.append(writer, &safe));
            }
        }
        for (mount, root) in mounts.iter().enumerate() {
            let safe = load.appended.clone();
            load.spawn(run, &format!("look {mount}"), root, random.fork(), move |work| work.look(&safe));
        }
        load
    }

    fn spawn(
        &mut self,
        run: &Arc<Run>,
        who: &str,
        root: &Path,
        random: Random,
        work: impl FnOnce(&mut Worker) -> Result<Seen, Failed> + Send + 'static,
    ) {
        let mut worker = Worker { calls: run.calls(who), root: root.to_path_buf(), random };
        // A worker that fails has said so, and what it saw is of no use without its last call.
        self.threads.push(std::thread::spawn(move || work(&mut worker).unwrap_or(Seen::Nothing)));
    }

    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(|thread| thread.is_finished())
    }

    /// Judges what was seen, and what is there now on that mount. The workers have ended.
    pub fn judge(self, run: &Run, root: &Path) {
        let mut registers: BTreeMap<usize, RegisterHistory> = BTreeMap::new();
        let mut names: BTreeMap<usize, NamesHistory> = BTreeMap::new();
        for thread in self.threads {
            match thread.join() {
                Ok(Seen::Registers(mount, seen)) => {
                    seen.into_iter().for_each(|(object, one)| registers.entry(object).or_default().push((mount, one)));
                }
                Ok(Seen::Names(mount, seen)) => {
                    seen.into_iter().for_each(|(object, one)| names.entry(object).or_default().push((mount, one)));
                }
                Ok(Seen::Nothing) => {}
                Err(_) => run.fail("a worker panicked".to_string()),
            }
        }
        // Whoever failed took its operations with it: the others' histories are then full of holes.
        if !run.failures().is_empty() {
            return;
        }
        let mut operations = 0;
        for (object, history) in registers {
            operations += history.len();
            let judged =
                if is_direct(object) { history.iter().map(|(_, one)| one.clone()).collect() } else { without_early_reads(&history) };
            match linear::check(&Register, 0, &judged) {
                Finding::Linearizable => {}
                Finding::GaveUp => run.fail(format!("register {object}: too many orders to try")),
                Finding::Violation => run.fail(format!("register {object}: no order explains\n{}", before_the_end(&judged, &history))),
            }
        }
        for (object, history) in names {
            operations += history.len();
            let judged = without_late_lookups(&history);
            match linear::check(&Names, [None; 4], &judged) {
                Finding::Linearizable => {}
                Finding::GaveUp => run.fail(format!("directory {object}: too many orders to try")),
                Finding::Violation => {
                    let told = linear::told(&Names, [None; 4], &judged);
                    run.fail(format!("directory {object}: no order explains\n{told}"));
                }
            }
        }
        println!("{operations} operations on registers and names were put in order");
        let safe: Vec<u64> = self.appended.iter().map(|safe| safe.load(Ordering::Relaxed)).collect();
        match fs::read(log_path(root)).map_err(|error| error.to_string()).and_then(|bytes| last_lines(&bytes, safe.len())) {
            Ok(last) if last == safe => println!("{} appended lines are there once each, in order", safe.iter().sum::<u64>()),
            Ok(last) => run.fail(format!("the log ends with lines {last:?} of its writers; {safe:?} were acknowledged")),
            Err(wrong) => run.fail(wrong),
        }
    }
}

/// Every second register is used without the kernel's page cache.
fn is_direct(register: usize) -> bool {
    register % 2 == 1
}

/// Leaves out what the page cache shows too early: Linux puts a write there before it asks the mount, so whoever reads through the same mount
/// may see it while it is under way, and before other writes that come to be ordered first. The manual names that limit.
fn without_early_reads(history: &RegisterHistory) -> Vec<Operation<RegisterCall, u64>> {
    let ended = |one: &Operation<RegisterCall, u64>| one.answer.as_ref().map_or(u64::MAX, |answer| answer.0);
    let writes: BTreeMap<u64, (u64, u64, u64)> = history
        .iter()
        .filter_map(|(mount, one)| match one.call {
            RegisterCall::Write(value) => Some((value, (*mount, one.called, ended(one)))),
            RegisterCall::Read => None,
        })
        .collect();
    let is_early = |mount: u64, one: &Operation<RegisterCall, u64>| {
        let value = one.answer.as_ref().filter(|_| one.call == RegisterCall::Read).map(|answer| answer.1);
        let write = value.and_then(|value| writes.get(&value));
        write.is_some_and(|&(writer, begun, until)| writer == mount && begun < ended(one) && one.called < until)
    };
    history.iter().filter(|(mount, one)| !is_early(*mount, one)).map(|(_, one)| one.clone()).collect()
}

/// Leaves out what the kernel's names show too late: the mount that changes a name goes on with the old one until it has its answer, while
/// others may see the change done already. Only looking up waits for no lock meanwhile. The manual names that limit.
fn without_late_lookups(history: &NamesHistory) -> Vec<Operation<NamesCall, NamesAnswer>> {
    let ended = |one: &Operation<NamesCall, NamesAnswer>| one.answer.as_ref().map_or(u64::MAX, |answer| answer.0);
    // Begin and end of each change, by mount and name.
    let mut changes: BTreeMap<(u64, usize), Vec<(u64, u64)>> = BTreeMap::new();
    for (mount, one) in history {
        let names = match one.call {
            NamesCall::Unlink(name) | NamesCall::Create(name, _) => vec![name],
            NamesCall::Rename(from, to) | NamesCall::RenameNoReplace(from, to) | NamesCall::Exchange(from, to) => vec![from, to],
            NamesCall::Lookup(_) | NamesCall::List => Vec::new(),
        };
        for name in names {
            changes.entry((*mount, name)).or_default().push((one.called, ended(one)));
        }
    }
    // A mount does one change of a directory at a time, but a call may wait for its turn: so ends are in no order of begins.
    changes.values_mut().for_each(|spans| spans.sort_unstable());
    let is_late = |mount: u64, one: &Operation<NamesCall, NamesAnswer>| {
        let NamesCall::Lookup(name) = one.call else { return false };
        let Some(spans) = changes.get(&(mount, name)) else { return false };
        let before = spans.partition_point(|&(begun, _)| begun < ended(one));
        // No more than one of each worker of the mount is under way at once.
        spans[..before].iter().rev().take(NAME_WORKERS as usize).any(|&(_, until)| one.called < until)
    };
    history.iter().filter(|(mount, one)| !is_late(*mount, one)).map(|(_, one)| one.clone()).collect()
}

/// What all mounts did before a register showed what no order explains.
fn before_the_end(judged: &[Operation<RegisterCall, u64>], history: &RegisterHistory) -> String {
    let ended = |one: &Operation<RegisterCall, u64>| one.answer.as_ref().map_or(one.called, |answer| answer.0);
    let end = linear::shortest(&Register, 0, judged).iter().map(ended).max().unwrap_or(0);
    let mut lately: Vec<_> = history.iter().filter(|(_, one)| one.called <= end && ended(one) + TOLD_NS > end).collect();
    lately.sort_by_key(|(_, one)| ended(one));
    let line = |(mount, one): &&(u64, Operation<RegisterCall, u64>)| {
        let (from, to) = (one.called as f64 / 1e6, ended(one) as f64 / 1e6);
        let mark = if ended(one) == end { "  <-- here" } else { "" };
        match one.call {
            RegisterCall::Write(value) => format!("{from:.3}..{to:.3} ms: mount {mount} writes {value:x}{mark}"),
            RegisterCall::Read => {
                format!("{from:.3}..{to:.3} ms: mount {mount} reads  {:x}{mark}", one.answer.as_ref().map_or(0, |answer| answer.1))
            }
        }
    };
    lately.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn register_path(root: &Path, index: usize) -> PathBuf {
    root.join(format!("registers/{index}"))
}

fn log_path(root: &Path) -> PathBuf {
    root.join("log")
}

fn prepare(root: &Path) -> io::Result<()> {
    fs::create_dir(root.join("registers"))?;
    for index in 0..REGISTERS {
        fs::write(register_path(root, index), record(0))?;
    }
    for index in 0..DIRECTORIES {
        fs::create_dir(root.join(format!("names-{index}")))?;
    }
    fs::write(log_path(root), b"")
}

/// A number and its complement: a torn record is known as such.
fn record(value: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..].copy_from_slice(&(!value).to_le_bytes());
    bytes
}

fn line(writer: usize, number: u64) -> String {
    format!("{writer} {number} {:016x}\n", Random::new((writer as u64) << 48 | number).next())
}

/// The last line of each writer, if all lines are whole, and each writer's begin with 1 and leave nothing out.
fn last_lines(bytes: &[u8], writers: usize) -> Result<Vec<u64>, String> {
    let mut last = vec![0; writers];
    let mut at = 0;
    for found in bytes.split_inclusive(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(found);
        let writer = text.split(' ').next().and_then(|word| word.parse::<usize>().ok()).filter(|&writer| writer < writers);
        let expected = writer.map(|writer| line(writer, last[writer] + 1));
        match writer.filter(|_| expected.as_ref().is_some_and(|expected| expected.as_bytes() == found)) {
            Some(writer) => last[writer] += 1,
            None => return Err(format!("the log has {text:?} at {at}, after the lines {last:?} of its writers; wanted is {expected:?}")),
        }
        at += found.len();
    }
    Ok(last)
}

/// One thread on one mount.
struct Worker {
    calls: Calls,
    root: PathBuf,
    random: Random,
}

impl Worker {
    fn think(&mut self) {
        std::thread::sleep(Duration::from_micros(self.random.below(THINK_MS_MAX * 1000)));
    }

    /// Reads and writes registers; mostly through descriptors kept open, sometimes through one of the moment.
    fn registers(&mut self, mount: u64, number: u64) -> Result<Seen, Failed> {
        let open = |path: &Path, index: usize| {
            let flags = if is_direct(index) { libc::O_SYNC | libc::O_DIRECT } else { libc::O_SYNC };
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
        };
        let mut kept: Vec<File> = Vec::new();
        for index in 0..REGISTERS {
            let path = register_path(&self.root, index);
            kept.push(self.calls.done("open", || open(&path, index))?);
        }
        let mut seen = Vec::new();
        let mut written = 0;
        while !self.calls.run.is_over() {
            let index = self.random.below(REGISTERS as u64) as usize;
            let fresh = if self.random.chance(1, 8) {
                let path = register_path(&self.root, index);
                Some(self.calls.done("open", || open(&path, index))?)
            } else {
                None
            };
            let file = fresh.as_ref().unwrap_or(&kept[index]);
            if self.random.chance(1, 3) {
                written += 1;
                let value = number << 40 | written;
                let (_, called, at) = self.calls.call("pwrite O_SYNC", &[], || file.write_all_at(&record(value), 0))?;
                seen.push((index, Operation { call: RegisterCall::Write(value), called, answer: Some((at, 0)) }));
            } else {
                let mut bytes = [0; 16];
                let (_, called, at) = self.calls.call("pread", &[], || file.read_exact_at(&mut bytes, 0))?;
                let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                if bytes != record(value) {
                    return self.calls.wrong(format!("register {index} reads {bytes:02x?}, which nobody wrote"));
                }
                seen.push((index, Operation { call: RegisterCall::Read, called, answer: Some((at, value)) }));
            }
            self.think();
        }
        Ok(Seen::Registers(mount, seen))
    }

    /// Creates, removes, renames and looks up few names.
    fn names(&mut self, mount: usize) -> Result<Seen, Failed> {
        let mut seen = Vec::new();
        while !self.calls.run.is_over() {
            let directory = self.random.below(DIRECTORIES as u64) as usize;
            let root = self.root.join(format!("names-{directory}"));
            let path = |name: usize| root.join(["a", "b", "c", "d"][name]);
            let name = self.random.below(4) as usize;
            let operation = match self.random.below(10) {
                0..3 => self.create(name, &path(name))?,
                3 => self.answered("unlink", NamesCall::Unlink(name), || fs::remove_file(path(name)).map(|()| NamesAnswer::Done))?,
                4 | 5 => {
                    // No mount renames as the other does: Linux takes a rename for done when it finds the same file under both names, which
                    // it looks up one after the other. The manual names that limit.
                    let from = 2 * self.random.below(2) as usize + mount % 2;
                    let to = (from + 1) % 4;
                    if self.random.chance(1, 2) {
                        let work = || fs::rename(path(from), path(to)).map(|()| NamesAnswer::Done);
                        self.answered("rename", NamesCall::Rename(from, to), work)?
                    } else {
                        let work = || rename_noreplace(&path(from), &path(to)).map(|()| NamesAnswer::Done);
                        self.answered("rename NOREPLACE", NamesCall::RenameNoReplace(from, to), work)?
                    }
                }
                _ => {
                    let work = || fs::symlink_metadata(path(name)).map(|found| NamesAnswer::Found(file_number(&found)));
                    self.answered("stat", NamesCall::Lookup(name), work)?
                }
            };
            seen.push((directory, operation));
            self.think();
        }
        Ok(Seen::Names(mount as u64, seen))
    }

    fn answered(
        &mut self,
        what: &'static str,
        call: NamesCall,
        work: impl FnOnce() -> io::Result<NamesAnswer>,
    ) -> Result<Operation<NamesCall, NamesAnswer>, Failed> {
        let (result, called, at) = self.calls.call(what, &[libc::ENOENT, libc::EEXIST], work)?;
        let answer = result.unwrap_or_else(|errno| if errno == libc::EEXIST { NamesAnswer::Exists } else { NamesAnswer::NotFound });
        Ok(Operation { call, called, answer: Some((at, answer)) })
    }

    /// A file's number is that of its inode, which nobody knows before it is made.
    fn create(&mut self, name: usize, path: &Path) -> Result<Operation<NamesCall, NamesAnswer>, Failed> {
        let open = || OpenOptions::new().write(true).create_new(true).open(path);
        let (result, called, at) = self.calls.call("open O_EXCL", &[libc::EEXIST], open)?;
        let (number, answer) = match result {
            Ok(file) => (file_number(&self.calls.done("fstat", || file.metadata())?), NamesAnswer::Done),
            Err(_) => (0, NamesAnswer::Exists),
        };
        Ok(Operation { call: NamesCall::Create(name, number), called, answer: Some((at, answer)) })
    }

    /// Appends lines; each is safe before the next.
    fn append(&mut self, writer: usize, safe: &AtomicU64) -> Result<Seen, Failed> {
        let path = log_path(&self.root);
        let mut file = self.calls.done("open", || OpenOptions::new().append(true).open(&path))?;
        for number in 1.. {
            if self.calls.run.is_over() {
                break;
            }
            let line = line(writer, number);
            let written = self.calls.done("write O_APPEND", || file.write(line.as_bytes()))?;
            if written != line.len() {
                return self.calls.wrong(format!("an append of {} bytes wrote {written}", line.len()));
            }
            self.calls.done("fsync", || file.sync_all())?;
            safe.store(number, Ordering::SeqCst);
            std::thread::sleep(APPEND_EVERY);
        }
        Ok(Seen::Nothing)
    }

    /// Reads the log now and then: what was safe before is there, and nothing else than lines in order.
    fn look(&mut self, safe: &[Arc<AtomicU64>]) -> Result<Seen, Failed> {
        let path = log_path(&self.root);
        while !self.calls.run.is_over() {
            let before: Vec<u64> = safe.iter().map(|safe| safe.load(Ordering::SeqCst)).collect();
            let mut file = self.calls.done("open", || File::open(&path))?;
            let bytes = self.read_whole(&mut file)?;
            match last_lines(&bytes, safe.len()) {
                Ok(last) if last.iter().zip(&before).all(|(found, safe)| found >= safe) => {}
                Ok(last) => return self.calls.wrong(format!("the log has lines up to {last:?}; {before:?} were acknowledged before")),
                Err(wrong) => return self.calls.wrong(wrong),
            }
            self.calls.run.count("looks at the log");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(Seen::Nothing)
    }

    /// By calls of their own, so that each is timed.
    fn read_whole(&mut self, file: &mut File) -> Result<Vec<u8>, Failed> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; 256 << 10];
        loop {
            let length = self.calls.done("read", || io::Read::read(file, &mut piece))?;
            if length == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&piece[..length]);
        }
    }
}

fn file_number(metadata: &fs::Metadata) -> u32 {
    u32::try_from(metadata.ino()).expect("a soak makes fewer files")
}

fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    let text = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL in our names");
    let (from, to) = (text(from), text(to));
    // SAFETY: both strings end with NUL and outlive the call.
    let result = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::RENAME_NOREPLACE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_the_own_mount_are_early() {
        let write = |value, called, at| Operation { call: RegisterCall::Write(value), called, answer: Some((at, 0)) };
        let read = |value, called, at| Operation { call: RegisterCall::Read, called, answer: Some((at, value)) };
        let other = [(1, write(8, 3, 4)), (1, read(8, 5, 6))];
        let history = |early| [&[(0, write(7, 1, 9)), early], other.as_slice(), &[(0, read(7, 10, 11))]].concat();
        let check = |history| linear::check(&Register, 0, &without_early_reads(&history));
        assert_eq!(check(history((0, read(7, 1, 2)))), Finding::Linearizable);
        assert_eq!(check(history((1, read(7, 1, 2)))), Finding::Violation);
    }

    #[test]
    fn only_lookups_of_the_own_mount_and_name_are_late() {
        let one = |call, called, at, answer| Operation { call, called, answer: Some((at, answer)) };
        let history = |mount, from, to, lookup, found| {
            vec![
                (0, one(NamesCall::Create(0, 7), 1, 2, NamesAnswer::Done)),
                (0, one(NamesCall::Rename(0, 1), 3, 9, NamesAnswer::Done)),
                (1, one(NamesCall::Lookup(1), 4, 5, NamesAnswer::Found(7))),
                (mount, one(NamesCall::Lookup(lookup), from, to, found)),
            ]
        };
        let check = |history: NamesHistory| linear::check(&Names, [None; 4], &without_late_lookups(&history));
        assert_eq!(check(history(0, 6, 7, 0, NamesAnswer::Found(7))), Finding::Linearizable);
        assert_eq!(check(history(0, 6, 7, 2, NamesAnswer::Found(7))), Finding::Violation, "another name");
        assert_eq!(check(history(1, 6, 7, 0, NamesAnswer::Found(7))), Finding::Violation, "another mount");
        assert_eq!(check(history(0, 10, 11, 0, NamesAnswer::Found(7))), Finding::Violation, "after its end");
    }

    #[test]
    fn a_line_lost_doubled_or_torn_is_found() {
        let text = |lines: &[(usize, u64)]| lines.iter().map(|&(writer, number)| line(writer, number)).collect::<String>();
        assert_eq!(last_lines(text(&[(0, 1), (1, 1), (0, 2)]).as_bytes(), 2), Ok(vec![2, 1]));
        for wrong in [&[(0, 1), (0, 1)][..], &[(0, 1), (0, 3)], &[(0, 1), (2, 1)], &[(0, 2), (0, 1)]] {
            assert!(last_lines(text(wrong).as_bytes(), 2).is_err(), "{wrong:?}");
        }
        let torn = text(&[(0, 1), (0, 2)]);
        assert!(last_lines(&torn.as_bytes()[..torn.len() - 3], 2).is_err());
    }
}
