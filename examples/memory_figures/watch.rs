//! Samples the resident memory of processes, and whatever else is counted, while something runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::programs::{Result, resident_mib, resident_mib_most};

/// One line of the curve.
pub struct Sample {
    pub resident_mib: Vec<f64>,
    pub counted: Vec<f64>,
}

/// Prints one line of comma-separated values per interval until it is stopped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    names: Vec<String>,
    pids: Vec<u32>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Watch {
    /// `counters` name what `count` returns.
    pub fn start(
        interval: Duration,
        processes: &[(String, u32)],
        counters: &'static [&'static str],
        count: impl Fn() -> Vec<f64> + Send + 'static,
    ) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let (names, pids): (Vec<String>, Vec<u32>) = processes.iter().cloned().unzip();
        println!("seconds,{}{}", counters.iter().map(|name| format!("{name},")).collect::<String>(), names.join(","));
        let (stopped, watched) = (stop.clone(), pids.clone());
        let thread = std::thread::spawn(move || {
            let (begun, mut samples) = (Instant::now(), Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let sample = Sample { resident_mib: watched.iter().map(|&pid| resident_mib(pid)).collect(), counted: count() };
                let columns = sample.counted.iter().chain(&sample.resident_mib);
                let columns = columns.map(|value| format!(",{value:.0}")).collect::<String>();
                println!("{:.0}{columns}", begun.elapsed().as_secs_f64());
                samples.push(sample);
                let next = interval * samples.len() as u32;
                while begun.elapsed() < next && !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            samples
        });
        Watch { stop, names, pids, thread }
    }

    /// Ends the curve and prints what each process had, at most and in the middle. The most is the kernel's, not that of the samples.
    pub fn stop(self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join().map_err(|_| "the sampling thread died")?;
        for (index, (name, &pid)) in self.names.iter().zip(&self.pids).enumerate() {
            let middle = median(samples.iter().map(|sample| sample.resident_mib[index]).collect());
            println!("{name}: resident {:.0} MiB at most, {middle:.0} MiB in the middle", resident_mib_most(pid));
        }
        Ok(samples)
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
