//! Signals to a mount, as messages: blocked in every thread, received by one. Some end it, SIGUSR1 has it report what was asked and sent.

use std::io;
use std::mem::MaybeUninit;

use crossbeam_channel::{Receiver, bounded};

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub i32);

const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const REPORT: i32 = libc::SIGUSR1;

/// What arrives.
pub struct Signals {
    pub ending: Receiver<Signal>,
    /// Somebody wants a report in the log.
    pub report: Receiver<()>,
}

/// Blocks the signals and starts the thread that waits for them. Call it before other threads exist, so that they inherit the mask.
pub fn listen() -> io::Result<Signals> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set; the other calls read it.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING.into_iter().chain([REPORT]) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let set = set.assume_init();
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        set
    };
    let (sender, ending) = bounded(ENDING.len());
    let (reporter, report) = bounded(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: an initialized set, and a place for the number.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                continue;
            }
            // Too many at once say no more than one.
            match signal {
                REPORT => drop(reporter.try_send(())),
                _ => drop(sender.try_send(Signal(signal))),
            }
        }
    })?;
    Ok(Signals { ending, report })
}
