//! What only /proc tells of the processes that wait for a lock: a thread that looks for their signals, and how a lock was asked for.
//!
//! fuser answers the kernel's FUSE_INTERRUPT by itself, with "not implemented". A process in the kernel's hands would then wait for its lock
//! beyond SIGKILL. So whoever waits is looked at now and then, and answered EINTR once a signal is pending for it.
#![allow(clippy::disallowed_methods)] // A driver: waits by the clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use dfs::limits;

/// Who waits: threads by the token of their request.
#[derive(Debug, Default)]
struct Waiting {
    threads: BTreeMap<u64, Thread>,
}

#[derive(Debug, Clone, Copy)]
struct Thread {
    id: u32,
    /// Signals to the whole process that were pending at the last look.
    shared: u64,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

/// The way in. When it is dropped the thread ends.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// Starts the thread, which tells `interrupt` the tokens of requests whose thread has a signal to handle.
    pub fn start(interrupt: impl Fn(u64) + Send + 'static) -> std::io::Result<Watch> {
        let shared = Arc::new(Shared::default());
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("dfs-signals".into()).spawn(move || look_on(&weak, interrupt))?;
        Ok(Watch { shared })
    }

    /// The thread waits. One of a namespace that this process cannot see (0) is not looked at.
    pub fn add(&self, token: u64, thread: u32) {
        if thread != 0 {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.threads.insert(token, Thread { id: thread, shared: 0 });
            if waiting.threads.len() == 1 {
                self.shared.arrived.notify_one();
            }
        }
    }

    /// The request has been answered.
    pub fn remove(&self, token: u64) {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).threads.remove(&token);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.arrived.notify_one();
    }
}

fn look_on(shared: &Weak<Shared>, interrupt: impl Fn(u64)) {
    loop {
        {
            // Held only while nobody waits or for one interval, so that the end of the watch is noticed.
            let Some(shared) = shared.upgrade() else { return };
            let waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.threads.is_empty() {
                drop(shared.arrived.wait_timeout(waiting, 20 * limits::SIGNAL_LOOK_INTERVAL));
            }
        }
        std::thread::sleep(limits::SIGNAL_LOOK_INTERVAL);
        let Some(shared) = shared.upgrade() else { return };
        let threads = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).threads.clone();
        for (token, thread) in threads {
            match look(thread) {
                Look::Interrupted => interrupt(token),
                Look::Quiet { pending } => {
                    let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.threads.entry(token).and_modify(|thread| thread.shared = pending);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Interrupted,
    Quiet { pending: u64 },
}

fn look(thread: Thread) -> Look {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", thread.id)) else { return Look::Interrupted };
    let main_blocks = |process: u32| {
        std::fs::read_to_string(format!("/proc/{process}/status")).ok().and_then(|status| signals(&status, "SigBlk:")).unwrap_or(u64::MAX)
    };
    judge(thread, &status, main_blocks)
}

/// Whether the thread has a signal to handle. A signal to the thread itself is its own; SIGKILL is sent to every thread by the kernel. One
/// to the process is the main thread's if that takes it. Otherwise some thread is about to take it; if it is still there at the next
/// look, no other does, as far as can be seen. To be wrong here would show the program an error that it cannot know.
fn judge(thread: Thread, status: &str, main_blocks: impl Fn(u32) -> u64) -> Look {
    let field = |name| signals(status, name).unwrap_or(0);
    let (own, process, blocked) = (field("SigPnd:"), field("ShdPnd:"), field("SigBlk:"));
    let pending = process & !blocked;
    if own & !blocked != 0 {
        return Look::Interrupted;
    }
    if pending == 0 {
        return Look::Quiet { pending };
    }
    let leader = number(status, "Tgid:").unwrap_or(thread.id);
    let mine = if leader == thread.id { pending } else { pending & thread.shared & main_blocks(leader) };
    if mine != 0 { Look::Interrupted } else { Look::Quiet { pending } }
}

fn line<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn signals(status: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(line(status, name)?, 16).ok()
}

fn number(status: &str, name: &str) -> Option<u32> {
    line(status, name)?.parse().ok()
}

/// Whether the thread is in fcntl(F_OFD_SETLKW): an open file's wait, which several threads may end, is never called a deadlock. `false`
/// where that cannot be seen.
pub fn waits_for_open_file(thread: u32) -> bool {
    let Ok(line) = std::fs::read_to_string(format!("/proc/{thread}/syscall")) else { return false };
    let mut words = line.split_whitespace();
    let call = words.next().and_then(|word| word.parse::<i64>().ok());
    let command = words.nth(1).and_then(|word| i64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    call == Some(libc::SYS_fcntl) && command == Some(i64::from(libc::F_OFD_SETLKW))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(own: u64, process: u64, blocked: u64) -> String {
        format!("Name:\tx\nTgid:\t10\nPid:\t11\nSigPnd:\t{own:016x}\nShdPnd:\t{process:016x}\nSigBlk:\t{blocked:016x}\n")
    }

    #[test]
    fn only_signals_that_the_thread_will_handle_interrupt_it() {
        let main = Thread { id: 10, shared: 0 };
        let other = Thread { id: 11, shared: 0 };
        let seen = Thread { id: 11, shared: 4 };
        let none = |_| 0;
        let all = |_| u64::MAX;
        assert_eq!(judge(main, &status(0, 0, 0), none), Look::Quiet { pending: 0 });
        assert_eq!(judge(other, &status(1 << 8, 0, 0), none), Look::Interrupted);
        assert_eq!(judge(main, &status(4, 4, 4), none), Look::Quiet { pending: 0 });
        assert_eq!(judge(main, &status(0, 4, 0), none), Look::Interrupted);
        assert_eq!(judge(other, &status(0, 4, 0), all), Look::Quiet { pending: 4 });
        assert_eq!(judge(seen, &status(0, 4, 0), all), Look::Interrupted);
        assert_eq!(judge(seen, &status(0, 4, 0), none), Look::Quiet { pending: 4 }, "the main thread takes it");
    }

    #[test]
    fn this_process_is_readable() {
        // SAFETY: only reads the thread's id.
        let id = unsafe { libc::gettid() } as u32;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        assert!(number(&status, "Tgid:").is_some() && signals(&status, "ShdPnd:").is_some());
        assert!(!waits_for_open_file(id));
    }
}
