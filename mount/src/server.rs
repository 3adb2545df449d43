//! What the loop thread of a mount runs: the [`Fs`] with the reply objects of the requests in flight, and the mount process's own calls.
//!
//! A [`Machine`] for the client driver. Replies are sent from here, so no other thread ever waits for the network.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam_channel::Sender;
use dfs::client::{self, driver::Machine};
use dfs::link::{LinkAction, LinkEvent};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::InodeId;
use dfs::wire::namespace::LockWait;

use crate::fs::{Fs, FsOutput};
use crate::fuse::{Permit, Slot};
use crate::requests::{Context, Reply, Request, Request as Asked};
use crate::waiters::Watch;

/// Result of one of the mount process's own calls.
pub type OwnResult = Result<client::Reply, Status>;

/// What other threads send to the loop thread.
pub enum Input {
    /// A request of the kernel with the object that its reply goes to.
    Request { context: Context, request: Request, slot: Slot, permit: Permit },
    /// A signal is pending for whoever waits for the answer to that token.
    Interrupt(u64),
    /// The kernel forgot inodes.
    Forget(Vec<(InodeId, u64)>),
    /// A call of the mount process itself; the result goes to the channel, which must have room.
    Own { call: client::Call, answer: Sender<OwnResult> },
    /// Who looks for signals to those that wait.
    Watch(Watch),
    /// End the loop thread.
    Stop,
}

/// The machine.
pub struct Server {
    fs: Fs,
    slots: BTreeMap<u64, (Slot, Permit)>,
    own: BTreeMap<u64, Sender<OwnResult>>,
    next_token: u64,
    stopped: bool,
    /// Looks after those that wait for locks, once there is a way back from it.
    watch: Option<Watch>,
    /// Requests that are being watched.
    watched: BTreeSet<u64>,
    /// Never used: that it is dropped tells the main thread that this one has ended, whatever the reason.
    _alive: Sender<()>,
}

impl Server {
    /// Nothing in flight. `alive` is dropped when the machine is.
    pub fn new(fs: Fs, alive: Sender<()>) -> Self {
        Server {
            fs,
            slots: BTreeMap::new(),
            own: BTreeMap::new(),
            next_token: 1,
            stopped: false,
            watch: None,
            watched: BTreeSet::new(),
            _alive: alive,
        }
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    fn on_reply(&mut self, token: u64, reply: &Reply) {
        if let Some(watch) = self.watch.as_ref().filter(|_| self.watched.remove(&token)) {
            watch.remove(token);
        }
        let (slot, _permit) = self.slots.remove(&token).expect("every request is answered once, and only while its slot waits");
        let taken = slot.send(reply);
        if let Reply::Listing(listing) = reply {
            self.fs.on_listing_taken(listing, taken);
        }
    }
}

impl Machine for Server {
    type Input = Input;

    fn on_input(&mut self, now: Time, input: Input) {
        match input {
            Input::Request { context, request, slot, permit } => {
                let token = self.token();
                self.slots.insert(token, (slot, permit));
                if let (Some(watch), Asked::SetLock { lock, .. }) = (&self.watch, &request)
                    && lock.wait != LockWait::Never
                {
                    self.watched.insert(token);
                    watch.add(token, context.pid);
                }
                self.fs.on_request(now, token, context, request);
            }
            Input::Interrupt(token) => self.fs.on_interrupt(now, token),
            Input::Watch(watch) => self.watch = Some(watch),
            Input::Forget(inodes) => inodes.into_iter().for_each(|(ino, count)| self.fs.on_forget(ino, count)),
            Input::Own { call, answer } => {
                let token = self.token();
                self.own.insert(token, answer);
                self.fs.submit(now, token, call);
            }
            Input::Stop => self.stopped = true,
        }
    }

    fn on_link(&mut self, now: Time, event: LinkEvent) {
        self.fs.on_link(now, event);
    }

    fn on_deadline(&mut self, now: Time) {
        self.fs.on_deadline(now);
    }

    fn next_deadline(&self) -> Time {
        self.fs.next_deadline()
    }

    fn poll_action(&mut self) -> Option<LinkAction> {
        while let Some(output) = self.fs.poll_output() {
            match output {
                FsOutput::Link(action) => return Some(action),
                FsOutput::Notify { .. } => {}
                FsOutput::Reply { token, reply } => self.on_reply(token, &reply),
                FsOutput::Done { token, result } => {
                    if let Some(answer) = self.own.remove(&token) {
                        let _ = answer.try_send(result);
                    }
                }
                FsOutput::Event(event) => log_event(event),
            }
        }
        None
    }

    fn is_done(&self) -> bool {
        self.stopped
    }
}

fn log_event(event: client::Event) {
    match event {
        client::Event::Ready { cluster } => tracing::info!(%cluster, "the session is open"),
        client::Event::SessionLost => tracing::warn!("the cluster ended the session; a new one begins"),
        client::Event::WrongCluster => tracing::error!("another cluster answers at the known addresses; calls fail, mount anew"),
        client::Event::Stopping => tracing::warn!("the cluster stops"),
    }
}
