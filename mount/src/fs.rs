//! The file system of one mount as a pure core: requests of the kernel and events of the network in, replies and actions out.
//!
//! Owns a client core and the translation to it; names no FUSE, socket, thread or clock, so that simulations can run it.

use std::collections::VecDeque;

use dfs::client;
use dfs::link::{LinkAction, LinkEvent};
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::InodeId;

use crate::requests::{Context, Listing, Reply, Request};
use crate::translate::{Effect, Options, Translator};

/// What the file system wants done.
#[derive(Debug)]
pub enum FsOutput {
    /// Answer the request of that token.
    Reply { token: u64, reply: Reply },
    /// A call of [`Fs::submit`] ended.
    Done { token: u64, result: Result<client::Reply, Status> },
    /// Move something on the network.
    Link(LinkAction),
    /// The core has news for people.
    Event(client::Event),
}

/// Marks calls of the mount process itself, apart from those that serve the kernel.
const OWN: u64 = 1 << 63;

/// The state machine.
pub struct Fs {
    core: client::Core,
    translator: Translator,
    outputs: VecDeque<FsOutput>,
}

impl Fs {
    /// A file system over a core that is already looking for its cluster.
    pub fn new(core: client::Core, options: Options) -> Self {
        Fs { core, translator: Translator::new(options), outputs: VecDeque::new() }
    }

    /// A request of the kernel; exactly one reply with `token` follows.
    pub fn on_request(&mut self, now: Time, token: u64, context: Context, request: Request) {
        self.translator.on_request(token, context, request);
        self.drain(now);
    }

    /// The kernel forgot an inode.
    pub fn on_forget(&mut self, ino: InodeId, count: u64) {
        self.translator.on_forget(ino, count);
    }

    /// The kernel took that many lines of a listing that was replied.
    pub fn on_listing_taken(&mut self, listing: &Listing, taken: usize) {
        self.translator.on_listing_taken(listing, taken);
    }

    /// A call of the mount process itself (flush, end of session, ...).
    pub fn submit(&mut self, now: Time, token: u64, call: client::Call) {
        assert!(token & OWN == 0, "the upper bit tells own calls apart");
        self.core.submit(now, OWN | token, call);
        self.drain(now);
    }

    /// Something happened on the network.
    pub fn on_link(&mut self, now: Time, event: LinkEvent) {
        self.core.on_link(now, event);
        self.drain(now);
    }

    /// A deadline has passed.
    pub fn on_deadline(&mut self, now: Time) {
        self.core.on_deadline(now);
        self.drain(now);
    }

    /// When to call [`Fs::on_deadline`].
    pub fn next_deadline(&self) -> Time {
        self.core.next_deadline()
    }

    /// The next output, if any.
    pub fn poll_output(&mut self) -> Option<FsOutput> {
        self.outputs.pop_front()
    }

    /// Panics if the state contradicts itself; for tests and simulation.
    pub fn check_invariants(&self) {
        self.translator.check_invariants();
    }

    /// Moves results from the core to the translator and its calls to the core, until both are quiet.
    fn drain(&mut self, now: Time) {
        loop {
            while let Some(effect) = self.translator.poll_effect() {
                match effect {
                    Effect::Call { step, call } => self.core.submit(now, step, call),
                    Effect::Reply { token, reply } => self.outputs.push_back(FsOutput::Reply { token, reply }),
                }
            }
            let Some(output) = self.core.poll_output() else { return };
            match output {
                client::Output::Link(action) => self.outputs.push_back(FsOutput::Link(action)),
                client::Output::Event(event) => self.outputs.push_back(FsOutput::Event(event)),
                client::Output::Done { token, result } if token & OWN != 0 => {
                    self.outputs.push_back(FsOutput::Done { token: token & !OWN, result });
                }
                client::Output::Done { token, result } => self.translator.on_done(token, result),
            }
        }
    }
}
