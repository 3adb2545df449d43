//! How long calls take while something else goes on: a small load of one call per millisecond on a mount of its own.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::programs::Result;

/// Calls take longer than this only in a pause.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Makes, looks at, and removes files until it is stopped.
pub struct Pauses {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<Duration>>>,
}

impl Pauses {
    pub fn start(directory: PathBuf) -> Pauses {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            std::fs::create_dir_all(&directory)?;
            let mut times = Vec::new();
            for index in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let path = directory.join((index / 4).to_string());
                let begun = Instant::now();
                match index % 4 {
                    0 => drop(File::create(path)?),
                    3 => std::fs::remove_file(path)?,
                    _ => drop(std::fs::symlink_metadata(directory.join(format!("absent {index}")))),
                }
                times.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(times)
        });
        Pauses { stop, thread }
    }

    /// Prints what the calls took.
    pub fn stop(self, while_what: &str) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().map_err(|_| "the measuring thread died")??;
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 1000).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        let longest = times.last().map_or(0.0, |time| time.as_secs_f64() * 1e3);
        let long = times.iter().filter(|&&time| time > PAUSE_MIN).count();
        println!(
            "{} calls {while_what}: {:.2} ms in the middle, {:.2} ms at 99.9 %, {longest:.1} ms at most, {long} of more than {} ms",
            times.len(),
            at(500),
            at(999),
            PAUSE_MIN.as_millis(),
        );
        Ok(())
    }
}
