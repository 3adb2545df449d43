//! Turns requests of the kernel into calls of the client core and their results into replies.
//!
//! A pure state machine without clock and network: [`Translator::on_request`] and [`Translator::on_done`] in, [`Effect`]s out. Owns the open
//! handles and what has to happen when a call ends. Every request gets exactly one reply, except those that want none.

use std::collections::{BTreeMap, VecDeque};

use dfs::client;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, Cookie, InodeId, Name};
use dfs::wire::namespace::{Answer, NewKind, Op, Query, Replied, SetAttributes, WriteAt};

use crate::handles::{Handles, Opening};
use crate::requests::{Context, Handle, Listing, OpenMode, POSITION_SHIFT, Reply, Request, WriteKind};

/// How this mount behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Every change is refused.
    pub read_only: bool,
}

/// What the translator wants done.
#[derive(Debug)]
pub enum Effect {
    /// Submit the call; its result comes back to `on_done` under `step`.
    Call { step: u64, call: client::Call },
    /// Answer the request.
    Reply { token: u64, reply: Reply },
}

/// What one call that ends in one reply answers with.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Entry,
    Attributes,
    Target,
    Bytes,
    Space,
    Done,
}

/// An open that waits for its hold or its truncation.
#[derive(Debug)]
struct Opener {
    token: u64,
    /// Truncate before answering; the value tells whether setuid and setgid go.
    truncate: Option<bool>,
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
    },
    Create {
        token: u64,
        truncate: Option<bool>,
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
    /// A hold taken again by a new session; its failure shows when the file is used.
    HoldAgain,
    List {
        token: u64,
        handle: Handle,
        offset: u64,
        plus: bool,
    },
}

/// The state machine.
#[derive(Debug)]
pub struct Translator {
    options: Options,
    handles: Handles<Opener>,
    steps: BTreeMap<u64, Step>,
    next_step: u64,
    effects: VecDeque<Effect>,
}

impl Translator {
    /// Nothing open, nothing in flight.
    pub fn new(options: Options) -> Self {
        Translator { options, handles: Handles::default(), steps: BTreeMap::new(), next_step: 1, effects: VecDeque::new() }
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
        match step {
            Step::Answer { token, shape } => self.on_answer(token, shape, result),
            Step::Named { token, shape } => self.on_answer(token, shape, result.map_err(of_name)),
            Step::Write { token, length } => {
                let written = result.and_then(|reply| match reply {
                    client::Reply::Replied(Replied::Written { .. }) => Ok(Reply::Written(length)),
                    _ => Err(Status::Internal),
                });
                self.reply(token, written.unwrap_or_else(Reply::Error));
            }
            Step::Create { token, truncate } => self.on_created(token, truncate, result.map_err(of_name)),
            Step::Hold { ino } => self.on_hold(ino, result),
            Step::Truncate { ino, opener } => self.on_truncated(ino, opener, result),
            Step::Release { ino, sequence } => self.on_released(ino, sequence, result),
            Step::HoldAgain => {}
            Step::List { token, handle, offset, plus } => self.on_listed(token, handle, offset, plus, result),
        }
    }

    /// The kernel took the first `taken` lines of a listing.
    pub fn on_listing_taken(&mut self, listing: &Listing, taken: usize) {
        if listing.plus {
            let inodes = listing.lines().take(taken).filter(|line| !line.dot).map(|line| line.attributes.ino);
            inodes.for_each(|ino| self.handles.know(ino));
        }
    }

    /// The kernel forgot an inode `count` times.
    pub fn on_forget(&mut self, ino: InodeId, count: u64) {
        self.handles.forget(ino, count);
    }

    /// A new session has begun that holds nothing: takes again what is open.
    pub fn on_session_lost(&mut self) {
        for (ino, sequence) in self.handles.hold_again() {
            self.call(Step::HoldAgain, client::Call::Query(Query::Hold { ino, sequence }));
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
                self.call(Step::Named { token, shape: Shape::Entry }, client::Call::Query(query));
            }
            Request::GetAttributes { ino } => self.query(token, Shape::Attributes, Query::Attributes { ino }),
            Request::ReadLink { ino } => self.query(token, Shape::Target, Query::ReadLink { ino }),
            Request::Space => self.query(token, Shape::Space, Query::Space),
            Request::SetAttributes { ino, set } => {
                if set.size.is_some_and(|size| size > limits::FILE_BYTES_MAX) {
                    return Err(Status::FileTooLarge);
                }
                self.op(token, Shape::Attributes, Op::SetAttributes { ino, set });
            }
            Request::Make { parent, name, kind, mode } => {
                if matches!(&kind, NewKind::Symlink { target } if target.len() > limits::SYMLINK_BYTES_MAX) {
                    return Err(Status::NameTooLong);
                }
                let op = create(parent, Name::new(name)?, kind, mode, context, true, false);
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
            Request::Create { parent, name, permissions, mode } => {
                let op = create(parent, Name::new(name)?, NewKind::File, permissions, context, mode.exclusive, true);
                let truncate = truncation(mode, context);
                self.call(Step::Create { token, truncate }, client::Call::Op(op));
            }
            Request::Read { ino, handle, range } => return self.read(token, ino, handle, range),
            Request::Write { ino, handle, offset, bytes, kind } => return self.write(token, context, ino, handle, offset, bytes, kind),
            Request::Sync { .. } => self.call(Step::Answer { token, shape: Shape::Done }, client::Call::Flush),
            Request::Release { handle } => {
                let ino = self.handles.close(handle).ok_or(Status::BadHandle)?;
                self.reply(token, Reply::Done);
                self.leave(ino);
            }
            Request::OpenDirectory { ino } => {
                let handle = self.handles.open_stream(ino);
                self.reply(token, Reply::Opened(handle));
            }
            Request::ReadDirectory { handle, offset, plus } => return self.list(token, handle, offset, plus),
            Request::ReleaseDirectory { handle } => {
                let reply = if self.handles.close_stream(handle) { Reply::Done } else { Reply::Error(Status::BadHandle) };
                self.reply(token, reply);
            }
        }
        Ok(())
    }

    fn read(&mut self, token: u64, ino: InodeId, handle: Handle, range: ByteRange) -> Result<(), Status> {
        if !self.handles.is_open(handle, ino) {
            return Err(Status::BadHandle);
        }
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
        ino: InodeId,
        handle: Handle,
        offset: u64,
        bytes: bytes::Bytes,
        kind: WriteKind,
    ) -> Result<(), Status> {
        if !self.handles.is_open(handle, ino) {
            return Err(Status::BadHandle);
        }
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
        let length = bytes.len() as u32;
        self.call(Step::Write { token, length }, client::Call::Write { ino, at, bytes, kill_privileges });
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
        let Some(kill_privileges) = opener.truncate else { return self.finish_open(ino, opener) };
        let set = SetAttributes { size: Some(0), kill_privileges, ..SetAttributes::default() };
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

    fn on_created(&mut self, token: u64, truncate: Option<bool>, result: Result<client::Reply, Status>) {
        match result {
            Ok(client::Reply::Replied(Replied::Entry { attributes, created: true })) => {
                self.handles.begin_created(attributes.ino);
                self.finish_open(attributes.ino, Opener { token, truncate: None, created: Some(attributes) });
            }
            // Somebody else made the file meanwhile. A release of an earlier open may still be on its way, so the hold is asked for by number.
            Ok(client::Reply::Replied(Replied::Entry { attributes, created: false })) => {
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
        if let Some(listing) = self.handles.listing(handle, offset, plus) {
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
                self.handles.fill(handle, after, entries, end, attributes);
                self.handles.listing(handle, offset, plus).map_or(Reply::Error(Status::BadHandle), Reply::Listing)
            }
            Ok(_) => Reply::Error(Status::Internal),
            // The directory was removed while it was open.
            Err(status) => Reply::Error(of_name(status)),
        };
        self.reply(token, reply);
    }

    fn on_answer(&mut self, token: u64, shape: Shape, result: Result<client::Reply, Status>) {
        let reply = result.and_then(|reply| shaped(shape, reply)).unwrap_or_else(Reply::Error);
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
        (Shape::Entry, reply) => Reply::Entry(attributes_of(reply)?),
        (Shape::Attributes, reply) => Reply::Attributes(attributes_of(reply)?),
        (Shape::Target, client::Reply::Answer(Answer::Target(target))) => Reply::Target(target),
        (Shape::Bytes, client::Reply::Bytes(bytes)) => Reply::Bytes(bytes),
        (Shape::Space, client::Reply::Answer(Answer::Space(space))) => Reply::Space(space),
        (Shape::Done, _) => Reply::Done,
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

fn create(parent: InodeId, name: Name, kind: NewKind, mode: u16, context: Context, exclusive: bool, hold: bool) -> Op {
    Op::Create { parent, name, kind, mode, uid: context.uid, gid: context.gid, exclusive, hold }
}

/// Whether an open truncates, and whether that takes setuid and setgid away.
fn truncation(mode: OpenMode, context: Context) -> Option<bool> {
    mode.truncate.then_some(context.uid != 0)
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
        | Request::Write { .. } => true,
        Request::Open { mode, .. } => mode.write || mode.truncate,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs::types::{FileKind, ROOT, Timestamp};
    use dfs::wire::namespace::{DirectoryEntry, RenameMode};

    const USER: Context = Context { uid: 1000, gid: 100, pid: 1 };
    const INO: InodeId = InodeId(9);

    fn attributes(ino: InodeId, kind: FileKind) -> Attributes {
        let time = Timestamp::default();
        Attributes {
            ino,
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            links: 1,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            rdev: 0,
            version: 1,
            data_version: 1,
            parent: ROOT,
        }
    }

    /// Plays the core: the test answers each call by hand.
    struct Script {
        translator: Translator,
        token: u64,
    }

    impl Script {
        fn new() -> Self {
            Script { translator: Translator::new(Options::default()), token: 0 }
        }

        fn ask(&mut self, request: Request) -> u64 {
            self.token += 1;
            self.translator.on_request(self.token, USER, request);
            self.token
        }

        fn call(&mut self) -> (u64, client::Call) {
            match self.translator.poll_effect() {
                Some(Effect::Call { step, call }) => (step, call),
                other => panic!("a call was due, not {other:?}"),
            }
        }

        fn reply(&mut self) -> (u64, Reply) {
            match self.translator.poll_effect() {
                Some(Effect::Reply { token, reply }) => (token, reply),
                other => panic!("a reply was due, not {other:?}"),
            }
        }

        fn done(&mut self, step: u64, result: Result<client::Reply, Status>) {
            self.translator.on_done(step, result);
            self.translator.check_invariants();
        }

        fn answer(&mut self, step: u64, answer: Answer) {
            self.done(step, Ok(client::Reply::Answer(answer)));
        }

        fn quiet(&mut self) {
            assert!(self.translator.poll_effect().is_none());
        }

        fn open(&mut self) -> Handle {
            let token = self.ask(Request::Open { ino: INO, mode: OpenMode::default() });
            let (step, call) = self.call();
            assert!(matches!(call, client::Call::Query(Query::Hold { ino: INO, .. })));
            self.answer(step, Answer::Done);
            match self.reply() {
                (of, Reply::Opened(handle)) if of == token => handle,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn names_are_checked_before_anything_is_sent() {
        let mut script = Script::new();
        let token = script.ask(Request::Lookup { parent: ROOT, name: vec![b'a'; 256] });
        assert_eq!(script.reply(), (token, Reply::Error(Status::NameTooLong)));
        let token = script.ask(Request::Unlink { parent: ROOT, name: b"..".to_vec() });
        assert_eq!(script.reply(), (token, Reply::Error(Status::InvalidArgument)));
        script.quiet();
    }

    #[test]
    fn names_in_a_directory_that_is_gone_are_not_found() {
        let mut script = Script::new();
        let name = || b"a".to_vec();
        let requests = [
            Request::Lookup { parent: INO, name: name() },
            Request::Make { parent: INO, name: name(), kind: NewKind::Fifo, mode: 0o600 },
            Request::Create { parent: INO, name: name(), permissions: 0o600, mode: OpenMode::default() },
            Request::Unlink { parent: INO, name: name() },
            Request::RemoveDirectory { parent: INO, name: name() },
            Request::Link { ino: InodeId(8), parent: INO, name: name() },
            Request::Rename { from_parent: INO, from_name: name(), to_parent: ROOT, to_name: name(), mode: RenameMode::Replace },
        ];
        for request in requests {
            let token = script.ask(request);
            let (step, _) = script.call();
            script.done(step, Err(Status::Stale));
            assert_eq!(script.reply(), (token, Reply::Error(Status::NotFound)));
        }
        let token = script.ask(Request::GetAttributes { ino: INO });
        let (step, _) = script.call();
        script.done(step, Err(Status::Stale));
        assert_eq!(script.reply(), (token, Reply::Error(Status::Stale)));
    }

    #[test]
    fn a_lookup_counts_until_it_is_forgotten() {
        let mut script = Script::new();
        let token = script.ask(Request::Lookup { parent: ROOT, name: b"\xff".to_vec() });
        let (step, _) = script.call();
        let found = attributes(INO, FileKind::File);
        script.answer(step, Answer::Attributes(found));
        assert_eq!(script.reply(), (token, Reply::Entry(found)));
        assert_eq!(script.translator.handles.known(INO), 1);
        script.translator.on_forget(INO, 1);
        assert_eq!(script.translator.handles.known(INO), 0);
        let token = script.ask(Request::Lookup { parent: ROOT, name: b"b".to_vec() });
        let (step, _) = script.call();
        script.done(step, Err(Status::NotFound));
        assert_eq!(script.reply(), (token, Reply::Error(Status::NotFound)));
    }

    #[test]
    fn two_openers_share_one_hold_and_the_last_release_gives_it_back() {
        let mut script = Script::new();
        let first = script.ask(Request::Open { ino: INO, mode: OpenMode::default() });
        let second = script.ask(Request::Open { ino: INO, mode: OpenMode::default() });
        let (step, call) = script.call();
        assert!(matches!(call, client::Call::Query(Query::Hold { ino: INO, sequence: 1 })));
        script.quiet();
        script.answer(step, Answer::Done);
        let (a, b) = (script.reply(), script.reply());
        assert_eq!((a.0, b.0), (first, second));
        for (last, reply) in [(false, a.1), (true, b.1)] {
            let Reply::Opened(handle) = reply else { panic!("{reply:?}") };
            let token = script.ask(Request::Release { handle });
            assert_eq!(script.reply(), (token, Reply::Done));
            if last {
                let (step, call) = script.call();
                assert!(matches!(call, client::Call::Query(Query::Release { ino: INO, sequence: 2 })));
                script.done(step, Err(Status::TimedOut));
                let (step, call) = script.call();
                assert!(matches!(call, client::Call::Query(Query::Release { ino: INO, sequence: 2 })), "a lost release is said again");
                script.answer(step, Answer::Done);
            }
            script.quiet();
        }
        assert_eq!(script.translator.in_flight(), 0);
    }

    #[test]
    fn a_refused_hold_or_truncation_leaves_nothing_open() {
        let mut script = Script::new();
        let mode = OpenMode { truncate: true, write: true, exclusive: false };
        let token = script.ask(Request::Open { ino: INO, mode });
        let (step, _) = script.call();
        script.done(step, Err(Status::Stale));
        assert_eq!(script.reply(), (token, Reply::Error(Status::Stale)));
        let token = script.ask(Request::Open { ino: INO, mode });
        let (step, _) = script.call();
        script.answer(step, Answer::Done);
        let (step, call) = script.call();
        let truncates = matches!(call, client::Call::Op(Op::SetAttributes { set, .. }) if set.size == Some(0) && set.kill_privileges);
        assert!(truncates);
        script.done(step, Err(Status::NoSpace));
        assert_eq!(script.reply(), (token, Reply::Error(Status::NoSpace)));
        assert!(matches!(script.call().1, client::Call::Query(Query::Release { .. })));
        assert_eq!(script.translator.handles.held().count(), 0);
    }

    #[test]
    fn create_holds_what_it_made_and_asks_for_what_it_found() {
        let mut script = Script::new();
        let mode = OpenMode { truncate: true, exclusive: false, write: true };
        let create = || Request::Create { parent: ROOT, name: b"f".to_vec(), permissions: 0o600, mode };
        let made = attributes(INO, FileKind::File);
        let token = script.ask(create());
        let (step, call) = script.call();
        assert!(matches!(call, client::Call::Op(Op::Create { hold: true, exclusive: false, uid: 1000, gid: 100, mode: 0o600, .. })));
        script.done(step, Ok(client::Reply::Replied(Replied::Entry { attributes: made, created: true })));
        assert!(matches!(script.reply(), (of, Reply::Created(_, _)) if of == token), "a new file needs no truncation");
        script.quiet();

        let found = attributes(InodeId(10), FileKind::File);
        let token = script.ask(create());
        let (step, _) = script.call();
        script.done(step, Ok(client::Reply::Replied(Replied::Entry { attributes: Attributes { size: 5, ..found }, created: false })));
        let (step, call) = script.call();
        assert!(matches!(call, client::Call::Query(Query::Hold { ino: InodeId(10), .. })));
        script.answer(step, Answer::Done);
        let (step, _) = script.call();
        script.done(step, Ok(client::Reply::Replied(Replied::Attributes(found))));
        match script.reply() {
            (of, Reply::Created(_, attributes)) if of == token => assert_eq!(attributes.size, 0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn writes_and_reads_at_the_edges() {
        let mut script = Script::new();
        let handle = script.open();
        let bytes = bytes::Bytes::from_static(b"abc");
        let write = |offset, kind| Request::Write { ino: INO, handle, offset, bytes: bytes.clone(), kind };
        for (kind, end, kill) in [(WriteKind::At, false, true), (WriteKind::Append, true, true), (WriteKind::Mapped, false, false)] {
            let token = script.ask(write(7, kind));
            let (step, call) = script.call();
            let client::Call::Write { at, kill_privileges, .. } = call else { panic!("{call:?}") };
            assert_eq!((at == WriteAt::End, kill_privileges), (end, kill));
            let attributes = attributes(INO, FileKind::File);
            script.done(step, Ok(client::Reply::Replied(Replied::Written { offset: 7, attributes })));
            assert_eq!(script.reply(), (token, Reply::Written(3)));
        }
        let token = script.ask(write(limits::FILE_BYTES_MAX - 2, WriteKind::At));
        assert_eq!(script.reply(), (token, Reply::Error(Status::FileTooLarge)));
        let read = |offset, length| Request::Read { ino: INO, handle, range: ByteRange { offset, length } };
        let token = script.ask(read(limits::FILE_BYTES_MAX, 10));
        assert_eq!(script.reply(), (token, Reply::Bytes(bytes::Bytes::new())));
        script.ask(read(limits::FILE_BYTES_MAX - 4, 10));
        assert!(matches!(script.call().1, client::Call::Read { range: ByteRange { length: 4, .. }, .. }));
        let token = script.ask(Request::Read { ino: INO, handle: Handle(99), range: ByteRange { offset: 0, length: 1 } });
        assert_eq!(script.reply(), (token, Reply::Error(Status::BadHandle)));
        let size = Some(limits::FILE_BYTES_MAX + 1);
        let token = script.ask(Request::SetAttributes { ino: INO, set: SetAttributes { size, ..SetAttributes::default() } });
        assert_eq!(script.reply(), (token, Reply::Error(Status::FileTooLarge)));
    }

    fn entries(cookies: std::ops::Range<u64>) -> Vec<DirectoryEntry> {
        let entry = |cookie| DirectoryEntry {
            name: Name::new(format!("n{cookie}")).unwrap(),
            cookie: Cookie(cookie),
            attributes: attributes(InodeId(100 + cookie), FileKind::File),
        };
        cookies.map(entry).collect()
    }

    fn lines(reply: &Reply) -> Vec<(String, u64)> {
        let Reply::Listing(listing) = reply else { panic!("{reply:?}") };
        listing.lines().map(|line| (String::from_utf8(line.name.to_vec()).unwrap(), line.next)).collect()
    }

    #[test]
    fn a_directory_stream_keeps_one_batch_and_drops_it_on_rewind() {
        let mut script = Script::new();
        script.ask(Request::OpenDirectory { ino: ROOT });
        let Reply::Opened(handle) = script.reply().1 else { panic!() };
        let list = |offset| Request::ReadDirectory { handle, offset, plus: true };
        let root = attributes(ROOT, FileKind::Directory);

        script.ask(list(0));
        let (step, call) = script.call();
        assert!(matches!(call, client::Call::Query(Query::ReadDirectory { after: Cookie(0), .. })));
        script.answer(step, Answer::Directory { entries: entries(1..4), end: false, attributes: root });
        let reply = script.reply().1;
        let expected = [(".", 1), ("..", 2), ("n1", 3), ("n2", 4), ("n3", 5)].map(|(name, next)| (name.to_string(), next));
        assert_eq!(lines(&reply), expected);
        let Reply::Listing(listing) = &reply else { panic!() };
        script.translator.on_listing_taken(listing, 4);
        assert_eq!([101, 102, 103].map(|ino| script.translator.handles.known(InodeId(ino))), [1, 1, 0], "dots are no lookups");

        // The kernel took two of the three: the rest comes from the batch, what follows from the cluster.
        script.ask(list(4));
        assert_eq!(lines(&script.reply().1), [("n3".to_string(), 5)]);
        script.ask(list(5));
        let (step, call) = script.call();
        assert!(matches!(call, client::Call::Query(Query::ReadDirectory { after: Cookie(3), .. })));
        script.answer(step, Answer::Directory { entries: entries(4..5), end: true, attributes: root });
        assert_eq!(lines(&script.reply().1), [("n4".to_string(), 6)]);
        script.ask(list(6));
        assert_eq!(lines(&script.reply().1), []);
        script.quiet();

        // Seeking back before the batch, and rewinding, ask anew.
        for offset in [4, 0] {
            script.ask(list(offset));
            let (step, _) = script.call();
            script.done(step, Err(Status::Stale));
            assert_eq!(script.reply().1, Reply::Error(Status::NotFound), "a removed directory");
        }
        let token = script.ask(Request::ReleaseDirectory { handle });
        assert_eq!(script.reply(), (token, Reply::Done));
        let token = script.ask(list(0));
        assert_eq!(script.reply(), (token, Reply::Error(Status::BadHandle)));
    }

    #[test]
    fn a_read_only_mount_refuses_every_change() {
        let mut script = Script::new();
        script.translator.options.read_only = true;
        let name = || b"a".to_vec();
        let changes = [
            Request::SetAttributes { ino: INO, set: SetAttributes::default() },
            Request::Make { parent: ROOT, name: name(), kind: NewKind::Directory, mode: 0o755 },
            Request::Unlink { parent: ROOT, name: name() },
            Request::RemoveDirectory { parent: ROOT, name: name() },
            Request::Link { ino: INO, parent: ROOT, name: name() },
            Request::Rename { from_parent: ROOT, from_name: name(), to_parent: ROOT, to_name: name(), mode: RenameMode::Replace },
            Request::Create { parent: ROOT, name: name(), permissions: 0o600, mode: OpenMode::default() },
            Request::Open { ino: INO, mode: OpenMode::of(libc::O_WRONLY) },
        ];
        for change in changes {
            let token = script.ask(change);
            assert_eq!(script.reply(), (token, Reply::Error(Status::ReadOnly)));
        }
        script.open();
    }
}
