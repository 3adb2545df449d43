//! What the loop thread of a mount runs: the [`Fs`] with the reply objects of the requests in flight, and the mount process's own calls.
//!
//! A [`Machine`] for the client driver. Replies are sent from here, so no other thread ever waits for the network.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam_channel::Sender;
use dfs::client::{self, driver::Machine};
use dfs::link::{LinkAction, LinkEvent};
use dfs::net::clock;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::InodeId;
use dfs::wire::namespace::LockWait;

use crate::fs::{Fs, FsOutput};
use crate::fuse::{Permit, Slot};
use crate::notifier::Notifier;
use crate::requests::{Context, Keep, Reply, Request, Request as Asked};
use crate::waiters::Watch;

/// Result of one of the mount process's own calls.
pub type OwnResult = Result<client::Reply, Status>;

/// What other threads send to the loop thread.
pub enum Input {
    /// A request of the kernel with the object that its reply goes to.
    Request {
        context: Context,
        request: Request,
        slot: Slot,
        permit: Permit,
    },
    /// A signal is pending for whoever waits for the answer to that token.
    Interrupt(u64),
    /// The kernel forgot inodes.
    Forget(Vec<(InodeId, u64)>),
    /// What the kernel can do, and the way to tell it something.
    Epoch(bool),
    Notifier(Notifier),
    /// The kernel took that notice.
    Notified(u64),
    /// It does not have the inode of that notice.
    Missed(u64),
    /// Log what was asked and sent so far.
    Report,
    /// A call of the mount process itself; the result goes to the channel, which must have room.
    Own {
        call: client::Call,
        answer: Sender<OwnResult>,
    },
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
    notifier: Option<Notifier>,
    /// Requests of the kernel so far, by kind.
    counts: BTreeMap<&'static str, u64>,
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
            notifier: None,
            counts: BTreeMap::new(),
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

    fn on_reply(&mut self, token: u64, reply: &Reply, keep: &Keep) {
        if let Some(watch) = self.watch.as_ref().filter(|_| self.watched.remove(&token)) {
            watch.remove(token);
        }
        let (slot, _permit) = self.slots.remove(&token).expect("every request is answered once, and only while its slot waits");
        let taken = slot.send(reply, keep);
        if let Reply::Listing(listing) = reply {
            self.fs.on_listing_taken(listing, taken);
        }
    }

    /// One line with what the kernel asked and what went over the network.
    fn report(&self) {
        let requests: Vec<String> = self.counts.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let client::Counters { control_requests, renewals, bulk_requests, .. } = self.fs.counters();
        let (requests, remembered, dirty) = (requests.join(" "), self.fs.remembered(), self.fs.dirty());
        tracing::info!(
            "report {requests} control={control_requests} bulk={bulk_requests} renewals={renewals} remembered={remembered} dirty={dirty}"
        );
    }
}

/// Name of a request's kind, as FUSE calls it.
fn kind(request: &Request) -> &'static str {
    match request {
        Request::Lookup { .. } => "lookup",
        Request::GetAttributes { .. } | Request::Refresh { .. } => "getattr",
        Request::SetAttributes { .. } => "setattr",
        Request::ReadLink { .. } => "readlink",
        Request::Open { .. } => "open",
        Request::Create { .. } => "create",
        Request::Read { .. } => "read",
        Request::Write { .. } => "write",
        Request::Flush { .. } => "flush",
        Request::Release { .. } => "release",
        Request::OpenDirectory { .. } => "opendir",
        Request::ReadDirectory { plus: false, .. } => "readdir",
        Request::ReadDirectory { plus: true, .. } => "readdirplus",
        Request::ReleaseDirectory { .. } => "releasedir",
        _ => "other",
    }
}

impl Machine for Server {
    type Input = Input;

    fn on_input(&mut self, now: Time, input: Input) {
        match input {
            Input::Request { context, request, slot, permit } => {
                let token = self.token();
                *self.counts.entry(kind(&request)).or_default() += 1;
                self.slots.insert(token, (slot, permit));
                if let (Some(watch), Asked::SetLock { lock, .. }) = (&self.watch, &request)
                    && lock.wait != LockWait::Never
                {
                    self.watched.insert(token);
                    watch.add(token, context.pid);
                }
                self.fs.on_request(now, token, context, request);
            }
            Input::Epoch(epoch) => self.fs.set_epoch(epoch),
            Input::Notifier(notifier) => self.notifier = Some(notifier),
            Input::Notified(id) => self.fs.on_notified(now, id),
            Input::Missed(id) => self.fs.on_notice_missed(now, id),
            Input::Report => self.report(),
            Input::Interrupt(token) => self.fs.on_interrupt(now, token),
            Input::Watch(watch) => self.watch = Some(watch),
            Input::Forget(inodes) => inodes.into_iter().for_each(|(ino, count)| self.fs.on_forget(ino, count)),
            Input::Own { call, answer } => {
                let token = self.token();
                self.own.insert(token, answer);
                self.fs.submit(now, token, call);
            }
            Input::Stop => {
                self.report();
                self.stopped = true;
            }
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
                FsOutput::Notify { id, notice } => match &self.notifier {
                    Some(notifier) => notifier.notify(id, notice),
                    None => self.fs.on_notified(clock::now(), id),
                },
                FsOutput::Reply { token, reply, keep } => self.on_reply(token, &reply, &keep),
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
