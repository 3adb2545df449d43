//! Turns requests of the kernel into calls of the client core and their results into replies.
//!
//! A pure state machine without clock and network: [`Translator::on_request`] and [`Translator::on_done`] in, [`Effect`]s out. Owns the open
//! handles and what has to happen when a call ends. Every request gets exactly one reply, except those that want none.

mod locks;
mod space;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dfs::client;
use dfs::limits;
use dfs::locks::LockKind;
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, Cookie, InodeId, Name};
use dfs::wire::namespace::{Answer, NewKind, Op, Query, Replied, SetAttributes, WriteAt};

use crate::handles::{Handles, Opening};
use crate::requests::{Context, Handle, Listing, OpenMode, POSITION_SHIFT, Reply, Request, WriteKind};

mod xattr;

/// How this mount behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Every change is refused.
    pub read_only: bool,
    /// Names and attributes may be this old.
    pub relaxed: Duration,
    pub keeps_setgid: KeepsSetgid,
}

/// Whether who asks may leave setgid on files of a group. What FUSE tells of a process does not suffice; it is asked only about files with
/// setgid.
#[derive(Clone, Copy, Debug)]
pub struct KeepsSetgid(pub fn(&Context, u32) -> bool);

impl Default for KeepsSetgid {
    fn default() -> Self {
        KeepsSetgid(|context, group| context.uid == 0 || context.gid == group)
    }
}

/// What the translator wants done.
#[derive(Debug)]
pub enum Effect {
    /// Submit the call; its result comes back to `on_done` under `step`.
    Call { step: u64, call: client::Call },
    /// The call that has that step is not waited for any longer.
    Interrupt { step: u64 },
    /// Answer the request.
    Reply { token: u64, reply: Reply },
    /// The write of that request went there and left these attributes; its reply follows.
    Written { token: u64, offset: u64, attributes: Attributes },
}

/// What one call that ends in one reply answers with.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Of a look-up: that there is none is an answer that may be kept.
    Found,
    Entry,
    Attributes,
    Target,
    Bytes,
    Space,
    Xattr,
    Done,
    Lock,
    /// Of fallocate's kin, see `space`.
    Range,
}

/// An open that waits for its hold or its truncation.
#[derive(Debug)]
struct Opener {
    token: u64,
    /// Truncate before answering, in whose name.
    truncate: Option<Context>,
    /// The request was Create; the attributes that it found.
    created: Option<Attributes>,
}

/// What a call in flight is for.
#[derive(Debug)]
enum Step {
    Answer {
        token: u64,
        shape: Shape,
    },
    /// As `Answer`, of a request that names an entry of a directory.
    Named {
        token: u64,
        shape: Shape,
    },
    Write {
        token: u64,
        length: u32,
        /// To be safe before it is answered: the file.
        sync: Option<InodeId>,
    },
    /// A write that was done is made safe.
    Safe {
        token: u64,
        length: u32,
    },
    Create {
        token: u64,
        truncate: Option<Context>,
    },
    Hold {
        ino: InodeId,
    },
    Truncate {
        ino: InodeId,
        opener: Opener,
    },
    Release {
        ino: InodeId,
        sequence: u64,
    },
    /// A hold for a directory stream, or taken again by a new session; its failure shows when the inode is used. Or setgid taken away.
    Unawaited,
    List {
        token: u64,
        handle: Handle,
        offset: u64,
        plus: bool,
    },
    Lock {
        token: u64,
    },
    /// What an open file took with it; the core sees to it that it is done.
    Unlocked,
}

/// The state machine.
#[derive(Debug)]
pub struct Translator {
    options: Options,
    handles: Handles<Opener>,
    locks: locks::HandleLocks,
    steps: BTreeMap<u64, Step>,
    next_step: u64,
    xattrs: xattr::Known,
    effects: VecDeque<Effect>,
    /// Grows whenever something may have changed, here or elsewhere: attributes that were fetched before are not shown again.
    changes: u64,
}

impl Translator {
    /// Nothing open, nothing in flight.
    pub fn new(options: Options) -> Self {
        Translator {
            options,
            handles: Handles::default(),
            locks: locks::HandleLocks::default(),
            steps: BTreeMap::new(),
            next_step: 1,
            xattrs: xattr::Known::default(),
            effects: VecDeque::new(),
            changes: 0,
        }
    }

    /// Takes a request; `token` comes back with its reply.
    pub fn on_request(&mut self, token: u64, context: Context, request: Request) {
        if let Err(status) = self.start(token, context, request) {
            self.reply(token, Reply::Error(status));
        }
    }

    /// Takes the result of a call.
    pub fn on_done(&mut self, step: u64, result: Result<client::Reply, Status>) {
        let Some(step) = self.steps.remove(&step) else { return };
        self.changes += u64::from(!matches!(result, Ok(client::Reply::Answer(_))));
        if let Ok(reply) = &result {
            self.note_xattrs(reply);
        }
        match step {
            Step::Answer { token, shape } => self.on_answer(token, shape, result),
            Step::Named { token, shape } => self.on_answer(token, shape, result.map_err(of_name)),
            Step::Write { token, length, sync } => match (result, sync) {
                (Ok(client::Reply::Replied(Replied::Written { offset, attributes })), sync) => {
                    self.effects.push_back(Effect::Written { token, offset, attributes });
                    match sync {
                        Some(ino) => self.call(Step::Safe { token, length }, client::Call::Sync { ino }),
                        None => self.reply(token, Reply::Written(length)),
                    }
                }
                (result, _) => self.reply(token, Reply::Error(result.err().unwrap_or(Status::Internal))),
            },
            Step::Safe { token, length } => self.reply(token, result.map_or_else(Reply::Error, |_| Reply::Written(length))),
            Step::Create { token, truncate } => self.on_created(token, truncate, result.map_err(of_name)),
            Step::Hold { ino } => self.on_hold(ino, result),
            Step::Truncate { ino, opener } => self.on_truncated(ino, opener, result),
            Step::Release { ino, sequence } => self.on_released(ino, sequence, result),
            Step::Unawaited | Step::Unlocked => {}
            Step::Lock { token } => self.on_lock_set(token, result),
            Step::List { token, handle, offset, plus } => self.on_listed(token, handle, offset, plus, result),
        }
    }

    /// The kernel took the first `taken` lines of a listing.
    pub fn on_listing_taken(&mut self, listing: &Listing, taken: usize) {
        if listing.plus {
            for line in listing.lines().take(taken).filter(|line| !line.dot) {
                self.handles.know(line.attributes.ino);
                self.xattrs.note(&line.attributes);
            }
        }
    }

    /// The kernel was given an inode otherwise than by a reply.
    pub fn on_known(&mut self, ino: InodeId) {
        self.handles.know(ino);
    }

    /// The kernel forgot an inode `count` times. True: it has dropped it.
    pub fn on_forget(&mut self, ino: InodeId, count: u64) -> bool {
        let gone = self.handles.forget(ino, count);
        if gone {
            self.xattrs.forget(ino);
        }
        gone
    }

    /// Somebody else changes the inode.
    pub fn on_foreign_change(&mut self, ino: InodeId) {
        self.on_change();
        self.xattrs.forget(ino);
    }

    /// Somebody else may have changed something.
    pub fn on_change(&mut self) {
        self.changes += 1;
    }

    /// The directory of a stream.
    pub fn directory(&self, handle: Handle) -> Option<InodeId> {
        self.handles.stream(handle)
    }

    /// How often the kernel has been given the inode and has not forgotten it.
    pub fn known(&self, ino: InodeId) -> u64 {
        self.handles.known(ino)
    }

    /// A new session has begun that holds nothing: takes again what is open.
    pub fn on_session_lost(&mut self) {
        self.on_change();
        for (ino, sequence) in self.handles.hold_again() {
            self.call(Step::Unawaited, client::Call::Query(Query::Hold { ino, sequence }));
        }
    }

    /// The next effect, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.steps.len()
    }

    /// Panics if the state contradicts itself; for tests and simulation.
    pub fn check_invariants(&self) {
        self.handles.check_invariants();
    }

    fn start(&mut self, token: u64, context: Context, request: Request) -> Result<(), Status> {
        if self.options.read_only && is_change(&request) {
            return Err(Status::ReadOnly);
        }
        match request {
            Request::Lookup { parent, name } => {
                let query = Query::Lookup { parent, name: Name::new(name)? };
                self.call(Step::Named { token, shape: Shape::Found }, client::Call::Query(query));
            }
            Request::GetAttributes { ino } | Request::Refresh { ino } => self.query(token, Shape::Attributes, Query::Attributes { ino }),
            Request::ReadLink { ino } => self.query(token, Shape::Target, Query::ReadLink { ino }),
            Request::Space => self.query(token, Shape::Space, Query::Space),
            Request::SetAttributes { ino, set } => {
                let set = self.complete_set(ino, context, set);
                if set.size.is_some_and(|size| size > limits::FILE_BYTES_MAX) {
                    return Err(Status::FileTooLarge);
                }
                self.op(token, Shape::Attributes, Op::SetAttributes { ino, set });
            }
            Request::Make { parent, name, kind, mode, umask } => {
                if matches!(&kind, NewKind::Symlink { target } if target.len() > limits::SYMLINK_BYTES_MAX) {
                    return Err(Status::NameTooLong);
                }
                let op = create(parent, Name::new(name)?, kind, (mode, umask), context, Making::Node);
                self.name_op(token, Shape::Entry, op);
            }
            Request::Unlink { parent, name } => self.name_op(token, Shape::Done, Op::Unlink { parent, name: Name::new(name)? }),
            Request::RemoveDirectory { parent, name } => self.name_op(token, Shape::Done, Op::Rmdir { parent, name: Name::new(name)? }),
            Request::Rename { from_parent, from_name, to_parent, to_name, mode } => {
                let (from_name, to_name) = (Name::new(from_name)?, Name::new(to_name)?);
                self.name_op(token, Shape::Done, Op::Rename { from_parent, from_name, to_parent, to_name, mode });
            }
            Request::Link { ino, parent, name } => self.name_op(token, Shape::Entry, Op::Link { ino, parent, name: Name::new(name)? }),
            Request::Open { ino, mode } => {
                let opener = Opener { token, truncate: truncation(mode, context), created: None };
                self.open(ino, opener);
            }
            Request::Create { parent, name, permissions, umask, mode } => {
                let making = Making::Open { exclusive: mode.exclusive, write: mode.write };
                let op = create(parent, Name::new(name)?, NewKind::File, (permissions, umask), context, making);
                let truncate = truncation(mode, context);
                self.call(Step::Create { token, truncate }, client::Call::Op(op));
            }
            Request::Xattr { ino, name } => return self.xattr(token, ino, name),
            Request::Xattrs { ino } => self.query(token, Shape::Xattr, Query::Xattrs { ino }),
            Request::SetXattr { ino, new } => return self.set_xattr(token, context, ino, new),
            Request::RemoveXattr { ino, name } => return self.remove_xattr(token, ino, name),
            Request::Read { ino, handle, range } => return self.read(token, ino, handle, range),
            Request::Write { ino, handle, offset, bytes, kind, sync } => {
                return self.write(token, context, (ino, handle), offset, bytes, kind, sync);
            }
            Request::Sync { ino, handle, directory: false } => {
                // What was lost with a session must not be called safe by the next one.
                handle.map_or(Ok(()), |handle| self.check_handle(handle, ino))?;
                self.call(Step::Answer { token, shape: Shape::Done }, client::Call::Sync { ino });
            }
            // Changes of names are safe when they are answered; the bytes that they publish may not be.
            Request::Sync { directory: true, .. } => self.call(Step::Answer { token, shape: Shape::Done }, client::Call::Flush),
            Request::Release { handle } => {
                let ino = self.handles.close(handle).ok_or(Status::BadHandle)?;
                self.release_locks(ino, handle);
                self.reply(token, Reply::Done);
                self.leave(ino);
            }
            Request::Flush { ino, handle, owner } => self.flush(token, ino, handle, owner),
            Request::SetLock { ino, handle, lock } => return self.set_lock(token, ino, handle, lock),
            Request::TestLock { ino, key, range, mode } => {
                self.test_lock(token, Query::TestLock { ino, kind: LockKind::Fcntl, key, range, mode });
            }
            Request::OpenDirectory { ino } => {
                let handle = self.handles.open_stream(ino);
                self.reply(token, Reply::Opened(handle));
                // Nobody waits for it: what is removed just now is spared for a moment anyway.
                if let Some(sequence) = self.handles.begin_stream(ino) {
                    self.call(Step::Unawaited, client::Call::Query(Query::Hold { ino, sequence }));
                }
            }
            Request::Allocate { ino, handle, range, mode } => return self.allocate(token, context, (ino, handle), range, mode),
            Request::Seek { ino, handle, offset, what } => return self.seek(token, (ino, handle), offset, what),
            Request::Copy { from, from_offset, to, to_offset, length } => {
                return self.copy(token, context, (from, from_offset), (to, to_offset), length);
            }
            Request::ReadDirectory { handle, offset, plus } => return self.list(token, handle, offset, plus),
            Request::ReleaseDirectory { handle } => {
                let ino = self.handles.close_stream(handle).ok_or(Status::BadHandle)?;
                self.reply(token, Reply::Done);
                self.leave(ino);
            }
        }
        Ok(())
    }

    fn read(&mut self, token: u64, ino: InodeId, handle: Handle, range: ByteRange) -> Result<(), Status> {
        self.check_handle(handle, ino)?;
        // Past the largest file there is nothing, as behind the end of any file.
        let length = range.length.min(limits::FILE_BYTES_MAX.saturating_sub(range.offset));
        if length == 0 {
            self.reply(token, Reply::Bytes(bytes::Bytes::new()));
            return Ok(());
        }
        let range = ByteRange { length, ..range };
        self.call(Step::Answer { token, shape: Shape::Bytes }, client::Call::Read { ino, range });
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // The fields of one request.
    fn write(
        &mut self,
        token: u64,
        context: Context,
        (ino, handle): (InodeId, Handle),
        offset: u64,
        bytes: bytes::Bytes,
        kind: WriteKind,
        sync: bool,
    ) -> Result<(), Status> {
        self.check_handle(handle, ino)?;
        if offset.saturating_add(bytes.len() as u64) > limits::FILE_BYTES_MAX {
            return Err(Status::FileTooLarge);
        }
        if bytes.is_empty() {
            self.reply(token, Reply::Written(0));
            return Ok(());
        }
        let at = if kind == WriteKind::Append { WriteAt::End } else { WriteAt::Offset(offset) };
        // The kernel leaves this to the file system for direct I/O. Mapped pages come in the daemon's name; mapping them cleared nothing either.
        let kill_privileges = kind != WriteKind::Mapped && context.uid != 0;
        self.kill_setgid_before_write(ino, context, kind);
        let length = bytes.len() as u32;
        self.call(Step::Write { token, length, sync: sync.then_some(ino) }, client::Call::Write { ino, at, bytes, kill_privileges });
        Ok(())
    }

    fn open(&mut self, ino: InodeId, opener: Opener) {
        let (opening, opener) = self.handles.begin_open(ino, opener);
        match opening {
            Opening::Ask { sequence } => self.call(Step::Hold { ino }, client::Call::Query(Query::Hold { ino, sequence })),
            Opening::Queued => {}
            Opening::Held => opener.into_iter().for_each(|opener| self.proceed_open(ino, opener)),
        }
    }

    fn on_hold(&mut self, ino: InodeId, result: Result<client::Reply, Status>) {
        match result {
            Ok(_) => {
                for opener in self.handles.on_held(ino) {
                    self.proceed_open(ino, opener);
                }
            }
            Err(status) => {
                for opener in self.handles.on_refused(ino) {
                    self.reply(opener.token, Reply::Error(status));
                }
            }
        }
    }

    fn proceed_open(&mut self, ino: InodeId, opener: Opener) {
        let Some(context) = opener.truncate else { return self.finish_open(ino, opener) };
        let (kill_privileges, kill_setgid) = (context.uid != 0, self.strips_idle_setgid(ino, context));
        let set = SetAttributes { size: Some(0), kill_privileges, kill_setgid, ..SetAttributes::default() };
        self.call(Step::Truncate { ino, opener }, client::Call::Op(Op::SetAttributes { ino, set }));
    }

    fn on_truncated(&mut self, ino: InodeId, mut opener: Opener, result: Result<client::Reply, Status>) {
        let attributes = result.and_then(attributes_of);
        match attributes {
            Ok(attributes) => {
                opener.created = opener.created.map(|_| attributes);
                self.finish_open(ino, opener);
            }
            Err(status) => {
                self.reply(opener.token, Reply::Error(status));
                self.leave(ino);
            }
        }
    }

    fn finish_open(&mut self, ino: InodeId, opener: Opener) {
        let handle = self.handles.finish_open(ino);
        match opener.created {
            Some(attributes) => {
                self.handles.know(ino);
                self.reply(opener.token, Reply::Created(handle, attributes));
            }
            None => self.reply(opener.token, Reply::Opened(handle)),
        }
    }

    fn on_created(&mut self, token: u64, truncate: Option<Context>, result: Result<client::Reply, Status>) {
        match result {
            Ok(client::Reply::Replied(Replied::Entry { attributes, created: true, .. })) => {
                self.handles.begin_created(attributes.ino);
                self.finish_open(attributes.ino, Opener { token, truncate: None, created: Some(attributes) });
            }
            // Somebody else made the file meanwhile. A release of an earlier open may still be on its way, so the hold is asked for by number.
            Ok(client::Reply::Replied(Replied::Entry { attributes, created: false, .. })) => {
                self.open(attributes.ino, Opener { token, truncate, created: Some(attributes) });
            }
            Ok(_) => self.reply(token, Reply::Error(Status::Internal)),
            Err(status) => self.reply(token, Reply::Error(status)),
        }
    }

    fn leave(&mut self, ino: InodeId) {
        if let Some(sequence) = self.handles.leave(ino) {
            self.call(Step::Release { ino, sequence }, client::Call::Query(Query::Release { ino, sequence }));
        }
    }

    fn on_released(&mut self, ino: InodeId, sequence: u64, result: Result<client::Reply, Status>) {
        // A release that is lost would keep a deleted file's space until the session ends. Asked again as long as the cluster is away: the
        // core answers each time only after the operation deadline.
        if matches!(result, Err(Status::TimedOut | Status::Unavailable)) {
            self.call(Step::Release { ino, sequence }, client::Call::Query(Query::Release { ino, sequence }));
        }
    }

    fn list(&mut self, token: u64, handle: Handle, offset: u64, plus: bool) -> Result<(), Status> {
        let ino = self.handles.stream(handle).ok_or(Status::BadHandle)?;
        if offset == 0 {
            self.handles.rewind(handle);
        }
        if let Some(listing) = self.handles.listing(handle, offset, plus, self.changes) {
            self.reply(token, Reply::Listing(listing));
            return Ok(());
        }
        let after = Cookie(offset.saturating_sub(POSITION_SHIFT));
        let query = Query::ReadDirectory { ino, after, limit: limits::READDIR_ENTRIES_MAX as u32 };
        self.call(Step::List { token, handle, offset, plus }, client::Call::Query(query));
        Ok(())
    }

    fn on_listed(&mut self, token: u64, handle: Handle, offset: u64, plus: bool, result: Result<client::Reply, Status>) {
        let reply = match result {
            Ok(client::Reply::Answer(Answer::Directory { entries, end, attributes })) => {
                let after = Cookie(offset.saturating_sub(POSITION_SHIFT));
                let end = end || entries.is_empty();
                self.handles.fill(handle, after, entries, end, attributes, self.changes);
                self.handles.listing(handle, offset, plus, self.changes).map_or(Reply::Error(Status::BadHandle), Reply::Listing)
            }
            Ok(_) => Reply::Error(Status::Internal),
            // The directory was removed while it was open.
            Err(status) => Reply::Error(of_name(status)),
        };
        self.reply(token, reply);
    }

    fn on_answer(&mut self, token: u64, shape: Shape, result: Result<client::Reply, Status>) {
        let reply = match result.and_then(|reply| shaped(shape, reply)) {
            Ok(reply) => reply,
            Err(Status::NotFound) if matches!(shape, Shape::Found) => Reply::Absent,
            Err(status) => Reply::Error(status),
        };
        if let Reply::Entry(attributes) = &reply {
            self.handles.know(attributes.ino);
        }
        self.reply(token, reply);
    }

    fn query(&mut self, token: u64, shape: Shape, query: Query) {
        self.call(Step::Answer { token, shape }, client::Call::Query(query));
    }

    fn op(&mut self, token: u64, shape: Shape, op: Op) {
        self.call(Step::Answer { token, shape }, client::Call::Op(op));
    }

    fn name_op(&mut self, token: u64, shape: Shape, op: Op) {
        self.call(Step::Named { token, shape }, client::Call::Op(op));
    }

    fn call(&mut self, step: Step, call: client::Call) {
        self.changes += u64::from(matches!(call, client::Call::Op(_) | client::Call::Write { .. }));
        let number = self.next_step;
        self.next_step += 1;
        self.steps.insert(number, step);
        self.effects.push_back(Effect::Call { step: number, call });
    }

    fn reply(&mut self, token: u64, reply: Reply) {
        self.effects.push_back(Effect::Reply { token, reply });
    }
}

/// A directory that is gone has no entries, and none can be made in it; Linux says so in these words.
fn of_name(status: Status) -> Status {
    if status == Status::Stale { Status::NotFound } else { status }
}

/// Brings the core's reply into the form that the request wants.
fn shaped(shape: Shape, reply: client::Reply) -> Result<Reply, Status> {
    Ok(match (shape, reply) {
        (Shape::Found | Shape::Entry, reply) => Reply::Entry(attributes_of(reply)?),
        (Shape::Attributes, reply) => Reply::Attributes(attributes_of(reply)?),
        (Shape::Target, client::Reply::Answer(Answer::Target(target))) => Reply::Target(target),
        (Shape::Bytes, client::Reply::Bytes(bytes)) => Reply::Bytes(bytes),
        (Shape::Space, client::Reply::Answer(Answer::Space(space))) => Reply::Space(space),
        (Shape::Xattr, reply) => xattr::shaped(reply)?,
        (Shape::Done, _) => Reply::Done,
        (Shape::Lock, reply) => locks::shaped(reply)?,
        (Shape::Range, reply) => space::shaped(reply)?,
        _ => return Err(Status::Internal),
    })
}

fn attributes_of(reply: client::Reply) -> Result<Attributes, Status> {
    match reply {
        client::Reply::Answer(Answer::Attributes(attributes))
        | client::Reply::Replied(Replied::Attributes(attributes) | Replied::Entry { attributes, .. }) => Ok(attributes),
        _ => Err(Status::Internal),
    }
}

/// What an inode is made for.
#[derive(Clone, Copy)]
enum Making {
    /// Only to be there.
    Node,
    /// To be opened.
    Open { exclusive: bool, write: bool },
}

fn create(parent: InodeId, name: Name, kind: NewKind, (mode, umask): (u16, u16), context: Context, making: Making) -> Op {
    let (exclusive, hold, write) = match making {
        Making::Open { exclusive, write } => (exclusive, true, write),
        Making::Node => (true, false, false),
    };
    Op::Create { parent, name, kind, mode, uid: context.uid, gid: context.gid, exclusive, hold, write, umask }
}

/// In whose name an open truncates.
fn truncation(mode: OpenMode, context: Context) -> Option<Context> {
    mode.truncate.then_some(context)
}

/// What a read-only mount refuses.
fn is_change(request: &Request) -> bool {
    match request {
        Request::SetAttributes { .. }
        | Request::Make { .. }
        | Request::Unlink { .. }
        | Request::RemoveDirectory { .. }
        | Request::Rename { .. }
        | Request::Link { .. }
        | Request::Create { .. }
        | Request::Write { .. }
        | Request::Allocate { .. }
        | Request::Copy { .. }
        | Request::SetXattr { .. }
        | Request::RemoveXattr { .. } => true,
        Request::Open { mode, .. } => mode.write || mode.truncate,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
