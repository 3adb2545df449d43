//! The file system of one mount as a pure core: requests of the kernel and events of the network in, replies and actions out.
//!
//! Owns a client core, the translation to it, and what follows when the cluster ended the session; names no FUSE, socket, thread or clock, so that simulations can run it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::client::{self, Call, Invalidation};
use dfs::link::{LinkAction, LinkEvent, LinkId};
use dfs::random::Random;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ClusterId, InodeId, Name, SessionId};
use dfs::wire::namespace::{Answer, Query};

use crate::keeper::{Keeper, Kept, Lease};
use crate::requests::{Context, Keep, Listing, Reply, Request};
use crate::translate::{Effect, Options, Translator};

/// What the file system wants done.
#[derive(Debug)]
pub enum FsOutput {
    /// Answer the request of that token.
    Reply { token: u64, reply: Reply, keep: Keep },
    /// A call of [`Fs::submit`] ended.
    Done { token: u64, result: Result<client::Reply, Status> },
    /// Tell the kernel; then [`Fs::on_notified`] with that number, whatever the kernel answered. It may take for ever.
    Notify { id: u64, notice: KernelNotice },
    /// Move something on the network.
    Link(LinkAction),
    /// The core has news for people.
    Event(client::Event),
}

/// What the kernel is to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelNotice {
    /// One name, there or absent. May block: the kernel takes the directory's lock.
    Entry { parent: InodeId, name: Vec<u8> },
    /// Attributes and all pages of the inode; dirty mapped pages come back as writes first. May block: the kernel waits for pages.
    Inode { ino: InodeId },
    /// Attributes only. Never blocks.
    Attributes { ino: InodeId },
    /// All names of the mount at once: each is looked up anew when it is used next. Never blocks.
    Epoch,
}

/// Marks calls of the mount process itself, apart from those that serve the kernel.
const OWN: u64 = 1 << 63;

/// Marks questions of the mount itself about attributes.
const PROBE: u64 = 1 << 62;

/// Links of the n-th session's core are numbered from n times this.
const LINKS_PER_SESSION: u64 = 1 << 40;

/// The state machine.
pub struct Fs {
    core: client::Core,
    translator: Translator,
    keeper: Keeper,
    outputs: VecDeque<FsOutput>,
    config: client::Config,
    random: Random,
    /// Sessions lost so far. Each has its own core, whose links must not be taken for another's.
    sessions_lost: u64,
    /// Links of the present core, as the network knows them.
    links: BTreeSet<LinkId>,
    /// The cluster of the first session: a mount never moves to another one.
    cluster: Option<ClusterId>,
    /// Questions of the kernel on their way: one that the session's end has cut off is asked again in the next session.
    asking: BTreeMap<u64, Call>,
    cut_off: Vec<(u64, Call)>,
    /// A later session found another cluster at the known addresses: everything is refused from then on.
    foreign: bool,
}

impl Fs {
    /// A file system that begins to look for its cluster at once.
    pub fn new(config: client::Config, options: Options, now: Time, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let core = client::Core::new(config.clone(), now, random.next());
        let mut keeper = Keeper::new(options.relaxed);
        if config.sabotage == Some(client::Sabotage::AttributesOvertake) {
            keeper.sabotage();
        }
        Fs {
            core,
            translator: Translator::new(options),
            keeper,
            outputs: VecDeque::new(),
            config,
            random,
            sessions_lost: 0,
            links: BTreeSet::new(),
            cluster: None,
            asking: BTreeMap::new(),
            cut_off: Vec::new(),
            foreign: false,
        }
    }

    /// A request of the kernel; exactly one reply with `token` follows.
    pub fn on_request(&mut self, now: Time, token: u64, context: Context, request: Request) {
        if let Some(ino) = leased(&self.core, now, |lease| self.keeper.wants(now, &request, lease)) {
            // Under the right for which it is asked, the core knows the answer.
            self.core.submit(now, PROBE, client::Call::Query(Query::Attributes { ino }));
            self.drain(now);
        }
        let directory = match &request {
            Request::ReadDirectory { handle, .. } => self.translator.directory(*handle),
            _ => None,
        };
        leased(&self.core, now, |lease| self.keeper.on_request(now, token, context.pid, &request, directory, lease));
        self.translator.on_request(token, context, request);
        self.drain(now);
    }

    /// Whoever waits for the answer to the request of that token has been interrupted; one that waits for a lock is answered soon.
    pub fn on_interrupt(&mut self, now: Time, token: u64) {
        self.translator.on_interrupt(token);
        self.drain(now);
    }

    /// The kernel was given an inode otherwise than by a reply: tests begin with such.
    pub fn on_known(&mut self, ino: InodeId) {
        self.translator.on_known(ino);
    }

    /// The kernel forgot an inode.
    pub fn on_forget(&mut self, ino: InodeId, count: u64) {
        if self.translator.on_forget(ino, count) {
            self.keeper.on_forget(ino);
        }
    }

    /// Whether the kernel knows [`KernelNotice::Epoch`]. Until this is said it is taken not to.
    pub fn set_epoch(&mut self, epoch: bool) {
        self.keeper.set_epoch(epoch);
    }

    /// The kernel took that many lines of a listing that was replied.
    pub fn on_listing_taken(&mut self, listing: &Listing, taken: usize) {
        self.translator.on_listing_taken(listing, taken);
    }

    /// A call of the mount process itself (flush, end of session, ...).
    pub fn submit(&mut self, now: Time, token: u64, call: client::Call) {
        assert!(token & (OWN | PROBE) == 0, "the upper bits tell own calls apart");
        self.core.submit(now, OWN | token, call);
        self.drain(now);
    }

    /// Something happened on the network.
    pub fn on_link(&mut self, now: Time, event: LinkEvent) {
        let (LinkEvent::Up { link, .. } | LinkEvent::Received { link, .. } | LinkEvent::Down { link, .. }) = &event;
        if !self.links.contains(link) {
            return; // A late word from a link of a session that is over.
        }
        if let LinkEvent::Down { link, .. } = &event {
            self.links.remove(link);
        }
        let base = self.sessions_lost * LINKS_PER_SESSION;
        let inner = |link: LinkId| LinkId(link.0 - base);
        self.core.on_link(
            now,
            match event {
                LinkEvent::Up { link, peer } => LinkEvent::Up { link: inner(link), peer },
                LinkEvent::Received { link, frame } => LinkEvent::Received { link: inner(link), frame },
                LinkEvent::Down { link, reason, found } => LinkEvent::Down { link: inner(link), reason, found },
            },
        );
        self.drain(now);
    }

    /// The kernel took a notice.
    pub fn on_notified(&mut self, now: Time, id: u64) {
        self.keeper.on_notified(now, id);
        self.drain(now);
    }

    /// The kernel does not have the inode that a notice is about. It comes again while the kernel should have it.
    pub fn on_notice_missed(&mut self, now: Time, id: u64) {
        self.keeper.on_missed(now, id);
        self.drain(now);
    }

    /// A deadline has passed.
    pub fn on_deadline(&mut self, now: Time) {
        if self.core.next_deadline() <= now {
            self.core.on_deadline(now);
        }
        let translator = &self.translator;
        self.keeper.on_deadline(now, |ino| translator.known(ino));
        self.drain(now);
    }

    /// When to call [`Fs::on_deadline`].
    pub fn next_deadline(&self) -> Time {
        self.core.next_deadline().min(self.keeper.next_deadline())
    }

    /// The present session.
    pub fn session(&self) -> SessionId {
        self.config.session
    }

    /// What was sent and received so far.
    pub fn counters(&self) -> client::Counters {
        self.core.counters()
    }

    /// Files with bytes that are accepted and not committed.
    pub fn dirty(&self) -> usize {
        self.core.dirty_files().len()
    }

    /// Inodes of which the mount remembers what the kernel keeps of them.
    pub fn remembered(&self) -> usize {
        self.keeper.len()
    }

    /// The next output, if any.
    pub fn poll_output(&mut self) -> Option<FsOutput> {
        self.outputs.pop_front()
    }

    /// Panics if the state contradicts itself; for tests and simulation.
    pub fn check_invariants(&self) {
        self.translator.check_invariants();
        self.keeper.check_invariants();
    }

    /// Moves results from the core to the translator and its calls to the core, until both are quiet.
    fn drain(&mut self, now: Time) {
        loop {
            while let Some(effect) = self.translator.poll_effect() {
                match effect {
                    Effect::Call { step, .. } if self.foreign => self.translator.on_done(step, Err(Status::WrongCluster)),
                    Effect::Call { step, call } => {
                        if asks_only(&call) {
                            self.asking.insert(step, call.clone());
                        }
                        self.core.submit(now, step, call);
                    }
                    Effect::Written { token, offset, attributes } => {
                        leased(&self.core, now, |lease| self.keeper.on_written(now, token, offset, &attributes, lease));
                    }
                    Effect::Reply { token, reply } => {
                        let translator = &self.translator;
                        let known = |ino| translator.known(ino);
                        leased(&self.core, now, |lease| self.keeper.on_reply(now, token, reply, known, lease));
                    }
                    Effect::Interrupt { step } => self.core.interrupt(now, step),
                }
            }
            let mut quiet = true;
            let mut lost = false;
            while let Some(kept) = self.keeper.poll() {
                match kept {
                    Kept::Reply { token, reply, keep } => self.outputs.push_back(FsOutput::Reply { token, reply, keep }),
                    Kept::Notify { id, notice } => self.outputs.push_back(FsOutput::Notify { id, notice }),
                    Kept::Obeyed { id } => {
                        quiet = false;
                        self.core.on_invalidated(now, id);
                    }
                }
            }
            while let Some(output) = self.core.poll_output() {
                quiet = false;
                match output {
                    client::Output::Link(action) => self.on_action(action),
                    client::Output::Invalidate { id, what } => {
                        let (Invalidation::Inode { ino }
                        | Invalidation::Name { directory: ino, .. }
                        | Invalidation::Names { directory: ino }) = &what;
                        self.translator.on_foreign_change(*ino);
                        let translator = &self.translator;
                        self.keeper.on_invalidate(now, id, what, |ino| translator.known(ino));
                    }
                    client::Output::Done { token: PROBE, result } => {
                        if let Ok(client::Reply::Answer(Answer::Attributes(attributes))) = result {
                            leased(&self.core, now, |lease| self.keeper.on_attributes(now, &attributes, lease));
                        }
                    }
                    client::Output::Event(event) => {
                        lost |= event == client::Event::SessionLost && !self.foreign;
                        self.note_cluster(event);
                        self.outputs.push_back(FsOutput::Event(event));
                    }
                    client::Output::Done { token, result } if token & OWN != 0 => {
                        self.outputs.push_back(FsOutput::Done { token: token & !OWN, result });
                    }
                    client::Output::Done { token, result } => match (self.asking.remove(&token), &result) {
                        (Some(call), Err(Status::SessionGone)) if !self.foreign => self.cut_off.push((token, call)),
                        _ => self.translator.on_done(token, result),
                    },
                }
            }
            if lost {
                self.begin_session(now);
            }
            // No session follows one that this mount has ended itself.
            for (step, _) in std::mem::take(&mut self.cut_off) {
                self.translator.on_done(step, Err(Status::SessionGone));
            }
            if quiet {
                return;
            }
        }
    }

    fn on_action(&mut self, mut action: LinkAction) {
        let (LinkAction::Connect { link, .. } | LinkAction::Send { link, .. } | LinkAction::Close { link }) = &mut action;
        link.0 += self.sessions_lost * LINKS_PER_SESSION;
        match &action {
            LinkAction::Connect { link, .. } => drop(self.links.insert(*link)),
            LinkAction::Close { link } => drop(self.links.remove(link)),
            LinkAction::Send { .. } => {}
        }
        self.outputs.push_back(FsOutput::Link(action));
    }

    fn note_cluster(&mut self, event: client::Event) {
        if let client::Event::Ready { cluster } = event {
            self.foreign |= *self.cluster.get_or_insert(cluster) != cluster;
        }
    }

    /// The cluster ended the session, as it may after a long sleep. What was written and not committed yet is lost with it: descriptors of such
    /// files fail until closed. The mount goes on with a new session that opens again what is open. What was deleted meanwhile answers `Stale`.
    fn begin_session(&mut self, now: Time) {
        for link in std::mem::take(&mut self.links) {
            self.outputs.push_back(FsOutput::Link(LinkAction::Close { link }));
        }
        self.translator.on_locks_lost(|ino, kind, key| self.core.holds_lock(ino, kind, key));
        let lost = self.core.dirty_files();
        if !lost.is_empty() {
            tracing::error!(files = lost.len(), "writes that were not synced are lost with the session");
        }
        self.translator.on_writes_lost(|ino| lost.binary_search(&ino).is_ok());
        self.sessions_lost += 1;
        self.config.session = SessionId(self.random.next_id());
        self.core = client::Core::new(self.config.clone(), now, self.random.next());
        self.keeper.on_session_lost(now);
        self.translator.on_session_lost();
        for (step, call) in std::mem::take(&mut self.cut_off) {
            match call {
                Call::Read { ino, .. } if lost.binary_search(&ino).is_ok() => self.translator.on_done(step, Err(Status::SessionGone)),
                call => {
                    self.asking.insert(step, call.clone());
                    self.core.submit(now, step, call);
                }
            }
        }
    }
}

/// Whether the call changes nothing, so that it may be made twice.
fn asks_only(call: &Call) -> bool {
    match call {
        Call::Query(query) => !matches!(query, Query::Release { .. } | Query::Reclaim { .. } | Query::LeaveLockQueue { .. }),
        call => matches!(call, Call::Read { .. } | Call::Seek { .. }),
    }
}

/// Shows the core's rights to the keeper.
fn leased<R>(core: &client::Core, now: Time, then: impl FnOnce(&Lease) -> R) -> R {
    let content = |ino: InodeId| core.lifetime(ino).filter(|&until| now < until);
    let attributes = |ino: InodeId, version: u64| core.attributes_lifetime(ino, version).filter(|&until| now < until);
    let listing = |ino: InodeId| core.listing_lifetime(ino).filter(|&until| now < until);
    let name =
        |directory: InodeId, name: &Name, told: Option<InodeId>| core.name_lifetime(directory, name, told).filter(|&until| now < until);
    then(&Lease { content: &content, attributes: &attributes, listing: &listing, name: &name })
}
