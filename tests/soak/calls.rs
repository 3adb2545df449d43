//! What all workers of a soak share: the clock, the end, what failed, and how long each system call took.
//!
//! A call that fails, other than as its caller expects, fails the soak. So does one that takes longer than the operation deadline. What is
//! still under way is known too, so that a hang is told by name and does not hang the soak.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dfs::limits;

/// Beyond that a call that is still under way is called a hang, and the soak ends without it.
const HANG_AFTER: Duration = Duration::from_secs(30);
/// The same for a whole program, which makes many calls.
pub const PROGRAM_WITHIN: Duration = Duration::from_secs(180);
/// So many samples make a p99.9 worth asserting.
const SAMPLES_MIN: usize = 2000;
/// How long the death of a node may pause what is done at that moment.
const DEATH_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Stands for "no call is under way".
const IDLE: u64 = u64::MAX;

/// One system call of a worker, in nanoseconds since the soak began.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub begun: u64,
    pub ended: u64,
    pub what: &'static str,
}

/// Something that may hang.
struct Watched {
    who: String,
    limit: Duration,
    /// Since when a call is under way, or [`IDLE`].
    since: Arc<AtomicU64>,
}

/// One soak.
pub struct Run {
    begun: Instant,
    over: AtomicBool,
    failures: Mutex<Vec<String>>,
    watched: Mutex<Vec<Watched>>,
    samples: Mutex<Vec<Sample>>,
    /// What programs and whole checks were done how often.
    done: Mutex<BTreeMap<&'static str, u64>>,
}

impl Run {
    pub fn new() -> Arc<Self> {
        Arc::new(Run {
            begun: Instant::now(),
            over: AtomicBool::new(false),
            failures: Mutex::default(),
            watched: Mutex::default(),
            samples: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// Nanoseconds since the soak began: one order for all workers.
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Whether the workers are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Tells the workers to end.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Says what is wrong, and ends the soak.
    pub fn fail(&self, what: String) {
        println!("{:>8.3} s  FAILED  {what}", self.begun.elapsed().as_secs_f64());
        self.failures.lock().expect("no panic holds it").push(what);
        self.end();
    }

    /// Prints a line with the time.
    pub fn say(&self, what: &str) {
        println!("{:>8.3} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic holds it").clone()
    }

    /// Counts something done.
    pub fn count(&self, what: &'static str) {
        *self.done.lock().expect("no panic holds it").entry(what).or_default() += 1;
    }

    /// All that was counted.
    pub fn counted(&self) -> BTreeMap<&'static str, u64> {
        self.done.lock().expect("no panic holds it").clone()
    }

    /// The watch over one worker.
    pub fn calls(self: &Arc<Self>, who: &str) -> Calls {
        Calls { run: self.clone(), who: who.to_string(), since: self.watch(who, HANG_AFTER), samples: Vec::new() }
    }

    /// The watch over something that may take `limit`.
    fn watch(&self, who: &str, limit: Duration) -> Arc<AtomicU64> {
        let since = Arc::new(AtomicU64::new(IDLE));
        self.watched.lock().expect("no panic holds it").push(Watched { who: who.to_string(), limit, since: since.clone() });
        since
    }

    /// Watches over a whole program.
    pub fn program<T>(&self, who: &str, work: impl FnOnce() -> T) -> T {
        let since = self.watch(who, PROGRAM_WITHIN);
        since.store(self.now(), Ordering::Relaxed);
        let result = work();
        since.store(IDLE, Ordering::Relaxed);
        self.watched.lock().expect("no panic holds it").retain(|watched| !Arc::ptr_eq(&watched.since, &since));
        result
    }

    /// What has hung, if anything.
    pub fn hung(&self) -> Vec<String> {
        let now = self.now();
        let watched = self.watched.lock().expect("no panic holds it");
        let age = |watched: &Watched| Duration::from_nanos(now.saturating_sub(watched.since.load(Ordering::Relaxed)));
        watched.iter().filter(|one| age(one) > one.limit).map(|one| format!("{}: under way for {:?}", one.who, age(one))).collect()
    }

    /// All calls of workers that have ended.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no panic holds it").clone()
    }
}

/// The calls of one worker.
pub struct Calls {
    pub run: Arc<Run>,
    pub who: String,
    since: Arc<AtomicU64>,
    samples: Vec<Sample>,
}

/// Why a worker ends before the others: it has been said to the run.
#[derive(Debug)]
pub struct Failed;

impl Calls {
    /// Does a system call, and gives what it gave, or the expected error number, with when it began and ended.
    pub fn call<T>(
        &mut self,
        what: &'static str,
        expected: &[i32],
        work: impl FnOnce() -> io::Result<T>,
    ) -> Result<(Result<T, i32>, u64, u64), Failed> {
        let begun = self.run.now();
        self.since.store(begun, Ordering::Relaxed);
        let result = work();
        let ended = self.run.now();
        self.since.store(IDLE, Ordering::Relaxed);
        self.samples.push(Sample { begun, ended, what });
        let took = Duration::from_nanos(ended - begun);
        if took > limits::OP_TIMEOUT {
            self.run.fail(format!("{}: {what} took {took:?}", self.who));
        }
        match result.map_err(|error| (error.raw_os_error().unwrap_or(0), error)) {
            Ok(value) => Ok((Ok(value), begun, ended)),
            Err((errno, _)) if expected.contains(&errno) => Ok((Err(errno), begun, ended)),
            Err((_, error)) => {
                self.run.fail(format!("{}: {what} after {took:?}: {error}", self.who));
                Err(Failed)
            }
        }
    }

    /// As [`Calls::call`] where no error is expected.
    pub fn done<T>(&mut self, what: &'static str, work: impl FnOnce() -> io::Result<T>) -> Result<T, Failed> {
        let (result, ..) = self.call(what, &[], work)?;
        Ok(result.expect("every other error has been said"))
    }

    /// What a worker reports that found something wrong.
    pub fn wrong<T>(&self, what: String) -> Result<T, Failed> {
        self.run.fail(format!("{}: {what}", self.who));
        Err(Failed)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.run.samples.lock().expect("no panic holds it").append(&mut self.samples);
    }
}

/// Time in which one fault was there and mended, in nanoseconds since the soak began.
#[derive(Clone, Debug)]
pub struct Window {
    pub kind: &'static str,
    pub begun: u64,
    pub ended: u64,
}

/// Prints how long calls took, apart for each kind of fault that they overlap and for each kind of call; gives what breaks the promise.
pub fn report(samples: &[Sample], windows: &[Window]) -> Vec<String> {
    let mut by_fault: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut by_call: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for sample in samples {
        let first = windows.partition_point(|window| window.ended < sample.begun);
        let kind = windows.get(first).filter(|window| window.begun <= sample.ended).map_or("(none)", |window| window.kind);
        by_fault.entry(kind).or_default().push(sample.ended - sample.begun);
        by_call.entry(sample.what).or_default().push(sample.ended - sample.begun);
    }
    let head = format!("{:>9} {:>12} {:>12} {:>12} {:>12}", "count", "p50", "p99", "p99.9", "max");
    let mut broken = Vec::new();
    println!("\n{:<16} {:>7} {head}", "fault", "times");
    for (kind, mut times) in by_fault {
        let injected = windows.iter().filter(|window| window.kind == kind).count();
        let line = Line::of(&mut times);
        println!("{kind:<16} {injected:>7} {}", line.text());
        if kind == "kill" && line.count >= SAMPLES_MIN && line.p999 > DEATH_PAUSE_MAX {
            broken.push(format!("p99.9 of {} calls while a node died is {:?}, more than {DEATH_PAUSE_MAX:?}", line.count, line.p999));
        }
    }
    println!("\n{:<24} {head}", "call");
    for (what, mut times) in by_call {
        println!("{what:<24} {}", Line::of(&mut times).text());
    }
    println!();
    broken
}

/// One line of the report.
struct Line {
    count: usize,
    p50: Duration,
    p99: Duration,
    p999: Duration,
    max: Duration,
}

impl Line {
    fn of(times: &mut [u64]) -> Self {
        times.sort_unstable();
        let at = |share: f64| Duration::from_nanos(times[((times.len() as f64 * share) as usize).min(times.len() - 1)]);
        Line { count: times.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }

    fn text(&self) -> String {
        let millis = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        format!("{:>9} {:>12} {:>12} {:>12} {:>12}", self.count, millis(self.p50), millis(self.p99), millis(self.p999), millis(self.max))
    }
}
