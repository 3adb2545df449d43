//! A model of the kernel above one `Fs`: what a mounted machine is to the simulation.
//!
//! [`Mount`] takes the workload's calls as system calls, answers from the model's caches what the kernel would answer from its own, and asks
//! the `Fs` the rest. It runs on while the daemon is stopped, as a kernel does. System calls and notifications are tasks that wait for
//! replies and locks; a task that waits for ever shows as a call that is never answered.

mod replies;
mod state;
mod syscalls;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Poller, Poll, Waker};
use std::time::Duration;

use dfs::client::{Call, Config, Event, Reply};
use dfs::link::LinkEvent;
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::InodeId;
use dfs_mount::fs::{Fs, FsOutput, KernelNotice};
use dfs_mount::requests::{Context, Request};
use dfs_mount::translate::Options;

use super::process::Wish;
pub use state::PAGE;
use state::{Freshness, Lockable, Mode, State};

/// The state, shared by the tasks of one mount.
#[derive(Clone)]
pub struct Kernel(Rc<RefCell<State>>);

type Task = Pin<Box<dyn Future<Output = Outcome>>>;

/// How a task ends.
#[expect(clippy::large_enum_variant, reason = "made once a call")]
enum Outcome {
    Call {
        token: u64,
        result: Result<Reply, Status>,
    },
    Notified {
        id: u64,
    },
    /// The kernel does not have the inode of that notice.
    Missed {
        id: u64,
    },
}

/// One mount.
pub struct Mount {
    fs: Fs,
    kernel: Kernel,
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    done: Vec<Wish>,
    /// Whether the daemon is stopped; the kernel is not.
    stopped: bool,
    random: Random,
}

/// Calls of the mount process itself: from this number on.
const OWN: u64 = 1 << 61;

impl Mount {
    pub fn new(config: Config, now: Time, seed: u64) -> Self {
        let mut fs = Fs::new(config, Options::default(), now, seed);
        // Kernels of either kind.
        fs.set_epoch(!seed.is_multiple_of(3));
        let kernel = Kernel(Rc::new(RefCell::new(State::new(now))));
        Mount { fs, kernel, tasks: BTreeMap::new(), next_task: 1, done: Vec::new(), stopped: false, random: Random::new(seed ^ 0x6b65) }
    }

    /// From now on programs keep what they open.
    pub fn keep_open(&mut self) {
        self.kernel.0.borrow_mut().keeps_open = true;
    }

    /// A system call, or a call of the mount process itself where there is none for it.
    pub fn submit(&mut self, now: Time, token: u64, call: Call) {
        self.kernel.0.borrow_mut().now = now;
        if matches!(call, Call::Flush | Call::EndSession | Call::Map | Call::Status(_) | Call::Shutdown | Call::Locate { .. }) {
            self.fs.submit(now, token | OWN, call);
        } else {
            let kernel = self.kernel.clone();
            let luck = self.random.next();
            if luck.is_multiple_of(16) && self.tasks.is_empty() {
                let mut state = kernel.0.borrow_mut();
                let inodes: Vec<InodeId> = state.inodes.keys().copied().filter(|ino| ino.0 % 4 == luck / 16 % 4).collect();
                inodes.into_iter().for_each(|ino| state.evict(ino));
            }
            self.spawn(Box::pin(async move { Outcome::Call { token, result: kernel.call(call, luck).await } }));
        }
        self.run(now);
    }

    pub fn on_link(&mut self, now: Time, event: LinkEvent) {
        self.fs.on_link(now, event);
        self.run(now);
    }

    /// The present session.
    pub fn session(&self) -> dfs::types::SessionId {
        self.fs.session()
    }

    pub fn on_deadline(&mut self, now: Time) {
        if !self.stopped && self.fs.next_deadline() <= now {
            self.fs.on_deadline(now);
        }
        self.run(now);
    }

    pub fn next_deadline(&self) -> Time {
        let scheduled = self.kernel.0.borrow().scheduled.values().copied().min();
        let daemon = if self.stopped { Time::NEVER } else { self.fs.next_deadline() };
        daemon.min(scheduled.unwrap_or(Time::NEVER))
    }

    /// The daemon is stopped or goes on.
    pub fn set_stopped(&mut self, now: Time, stopped: bool) {
        self.stopped = stopped;
        if !stopped {
            self.run(now);
        }
    }

    /// The next thing for the world; of a stopped daemon only what the kernel itself does.
    pub fn poll(&mut self) -> Option<Wish> {
        if !self.done.is_empty() {
            return Some(self.done.remove(0));
        }
        None
    }

    fn spawn(&mut self, task: Task) {
        self.tasks.insert(self.next_task, task);
        self.next_task += 1;
    }

    /// Lets kernel and daemon work until both wait.
    fn run(&mut self, now: Time) {
        self.kernel.0.borrow_mut().now = now;
        loop {
            let before = self.kernel.0.borrow().changes;
            self.poll_tasks(now);
            let moved = !self.stopped && self.run_daemon(now);
            if !moved && self.kernel.0.borrow().changes == before {
                return;
            }
        }
    }

    fn poll_tasks(&mut self, now: Time) {
        let mut poller = Poller::from_waker(Waker::noop());
        let ids: Vec<u64> = self.tasks.keys().copied().collect();
        for id in ids {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            self.kernel.0.borrow_mut().thread = id as u32;
            let Poll::Ready(outcome) = task.as_mut().poll(&mut poller) else { continue };
            self.tasks.remove(&id);
            self.kernel.0.borrow_mut().changes += 1;
            match outcome {
                Outcome::Call { token, result } => self.done.push(Wish::Done { token, result }),
                Outcome::Notified { id } => self.fs.on_notified(now, id),
                Outcome::Missed { id } => self.fs.on_notice_missed(now, id),
            }
        }
    }

    /// The daemon reads its requests and writes its replies. Tells whether it did anything.
    fn run_daemon(&mut self, now: Time) -> bool {
        let mut moved = false;
        let adopted = std::mem::take(&mut self.kernel.0.borrow_mut().adopted);
        adopted.into_iter().for_each(|ino| self.fs.on_known(ino));
        loop {
            let request = self.kernel.0.borrow_mut().requests.pop_front();
            let Some((token, context, request)) = request else { break };
            moved = true;
            if std::env::var("KLOG").is_ok() {
                eprintln!("K {now:?} {:p} req {token} {context:?} {request:?}", &self.kernel.0);
            }
            self.fs.on_request(now, token, context, request);
        }
        let forgets = std::mem::take(&mut self.kernel.0.borrow_mut().forgets);
        forgets.into_iter().for_each(|(ino, count)| self.fs.on_forget(ino, count));
        while let Some(output) = self.fs.poll_output() {
            moved = true;
            if std::env::var("KLOG").is_ok() {
                eprintln!("K {now:?} {:p} out {output:?}", &self.kernel.0);
            }
            match output {
                FsOutput::Reply { token, reply, keep } => {
                    if let dfs_mount::requests::Reply::Listing(listing) = &reply {
                        self.fs.on_listing_taken(listing, listing.lines().count());
                    }
                    let mut state = self.kernel.0.borrow_mut();
                    // The requester is woken, but others may run before it. Not so a writer: Linux puts the bytes into its pages before it asks,
                    // which others on the machine see too early (a limit that README.md names), the model when it is answered.
                    let delayed = self.random.chance(1, 3) && !matches!(reply, dfs_mount::requests::Reply::Written(_));
                    state.replies.insert(token, ((reply, keep), now));
                    if delayed {
                        let most = if self.random.chance(1, 20) { 30_000_000 } else { 200_000 };
                        state.scheduled.insert(token, now + Duration::from_nanos(self.random.below(most)));
                    }
                    state.changes += 1;
                }
                FsOutput::Done { token, result } => self.done.push(Wish::Done { token: token & !OWN, result }),
                FsOutput::Notify { id, notice } => {
                    let kernel = self.kernel.clone();
                    self.spawn(Box::pin(async move {
                        match kernel.notice(notice).await {
                            true => Outcome::Notified { id },
                            false => Outcome::Missed { id },
                        }
                    }));
                }
                FsOutput::Link(action) => self.done.push(Wish::Link(action)),
                FsOutput::Event(event) => self.on_event(event),
            }
        }
        moved
    }

    fn on_event(&mut self, event: Event) {
        self.done.push(Wish::Client(event));
    }
}

/// Waits until the function has something.
struct When<F>(F);

impl<T, F: FnMut() -> Option<T> + Unpin> Future for When<F> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<T> {
        match (self.0)() {
            Some(value) => Poll::Ready(value),
            None => Poll::Pending,
        }
    }
}

/// A lock that is held until this is dropped.
struct Guard {
    kernel: Kernel,
    what: Lockable,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kernel.0.borrow_mut().unlock(self.what, self.number);
    }
}

impl Kernel {
    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }

    async fn lock(&self, what: Lockable, mode: Mode) -> Guard {
        let number = self.state(|state| state.ask_lock(what, mode));
        let kernel = self.clone();
        When(move || kernel.state(|state| state.try_lock(what, number)).then_some(())).await;
        Guard { kernel: self.clone(), what, number }
    }

    async fn ask(&self, context: Context, request: Request) -> ((dfs_mount::requests::Reply, dfs_mount::requests::Keep), Time) {
        let number = self.state(|state| state.ask(context, request));
        let kernel = self.clone();
        When(move || kernel.state(|state| state.take_reply(number))).await
    }

    /// What the daemon wants forgotten; ends when the kernel has. False: it does not have the inode.
    async fn notice(&self, notice: KernelNotice) -> bool {
        if let KernelNotice::Inode { ino } | KernelNotice::Attributes { ino } = notice
            && !self.state(|state| state.inodes.contains_key(&ino))
        {
            return false;
        }
        match notice {
            KernelNotice::Entry { parent, name } => {
                // fuse_reverse_inval_entry takes the directory's lock, which a look-up or a change of it holds until it has its reply.
                let _lock = self.lock(Lockable::Inode(parent), Mode::Exclusive).await;
                self.state(|state| {
                    state.drop_dentry(parent, &name);
                    state.forget_attributes(parent);
                });
            }
            KernelNotice::Inode { ino } => {
                self.state(|state| state.forget_attributes(ino));
                self.drop_pages(ino).await;
            }
            KernelNotice::Attributes { ino } => self.state(|state| state.forget_attributes(ino)),
            KernelNotice::Epoch => self.state(|state| {
                state.epoch += 1;
                state.changes += 1;
            }),
        }
        true
    }

    /// Takes all pages out of the cache, dirty ones back to the daemon first; waits for those that are locked.
    async fn drop_pages(&self, ino: InodeId) {
        let pages: Vec<u64> = self.state(|state| {
            let held = state.inodes.get(&ino).map(|inode| inode.pages.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
            held.into_iter().chain(state.locked_pages(ino)).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
        });
        for page in pages {
            let _lock = self.lock(Lockable::Page(ino, page), Mode::Exclusive).await;
            // An error of a write-back shows at the next fsync; here the page is gone either way.
            let written = self.launder(ino, page).await;
            self.state(|state| {
                state.changes += 1;
                state.unwritten.extend(written.err().map(|status| (ino, status)));
                if let Some(inode) = state.inodes.get_mut(&ino) {
                    inode.pages.remove(&page);
                }
            });
        }
    }

    /// False: they were overtaken on their way.
    async fn take_attributes(&self, attributes: dfs::types::Attributes, valid_until: Time, asked: u64) -> bool {
        let ino = attributes.ino;
        let freshness = self.state(|state| state.take_attributes(attributes, valid_until, asked));
        if freshness == Freshness::Changed {
            self.drop_pages(ino).await;
        }
        freshness != Freshness::Older
    }
}
