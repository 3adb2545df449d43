//! The translator by scripts: the test plays the core and answers each call by hand.

use super::*;
use crate::requests::NewXattr;
use dfs::types::{FileKind, ROOT, Timestamp};
use dfs::wire::namespace::{DirectoryEntry, RenameMode};

const USER: Context = Context { uid: 1000, gid: 100, pid: 1 };
pub(super) const INO: InodeId = InodeId(9);

pub(super) fn attributes(ino: InodeId, kind: FileKind) -> Attributes {
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
        xattrs: Default::default(),
    }
}

/// Plays the core: the test answers each call by hand.
pub(super) struct Script {
    pub(super) translator: Translator,
    token: u64,
}

impl Script {
    pub(super) fn new() -> Self {
        Script { translator: Translator::new(Options::default()), token: 0 }
    }

    pub(super) fn ask(&mut self, request: Request) -> u64 {
        self.token += 1;
        self.translator.on_request(self.token, USER, request);
        self.token
    }

    pub(super) fn call(&mut self) -> (u64, client::Call) {
        match self.translator.poll_effect() {
            Some(Effect::Call { step, call }) => (step, call),
            other => panic!("a call was due, not {other:?}"),
        }
    }

    pub(super) fn reply(&mut self) -> (u64, Reply) {
        match self.translator.poll_effect() {
            Some(Effect::Reply { token, reply }) => (token, reply),
            other => panic!("a reply was due, not {other:?}"),
        }
    }

    fn done(&mut self, step: u64, result: Result<client::Reply, Status>) {
        self.translator.on_done(step, result);
        self.translator.check_invariants();
    }

    pub(super) fn answer(&mut self, step: u64, answer: Answer) {
        self.done(step, Ok(client::Reply::Answer(answer)));
    }

    pub(super) fn quiet(&mut self) {
        assert!(self.translator.poll_effect().is_none());
    }

    pub(super) fn open(&mut self) -> Handle {
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
        Request::Make { parent: INO, name: name(), kind: NewKind::Fifo, mode: 0o600, umask: 0 },
        Request::Create { parent: INO, name: name(), permissions: 0o600, umask: 0, mode: OpenMode::default() },
        Request::Unlink { parent: INO, name: name() },
        Request::RemoveDirectory { parent: INO, name: name() },
        Request::Link { ino: InodeId(8), parent: INO, name: name() },
        Request::Rename { from_parent: INO, from_name: name(), to_parent: ROOT, to_name: name(), mode: RenameMode::Replace },
    ];
    for request in requests {
        let looks = matches!(request, Request::Lookup { .. });
        let token = script.ask(request);
        let (step, _) = script.call();
        script.done(step, Err(Status::Stale));
        assert_eq!(script.reply(), (token, if looks { Reply::Absent } else { Reply::Error(Status::NotFound) }));
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
    assert_eq!(script.reply(), (token, Reply::Absent));
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
    let mode = OpenMode { truncate: true, write: true, exclusive: false, ..OpenMode::default() };
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
    let mode = OpenMode { truncate: true, exclusive: false, write: true, ..OpenMode::default() };
    let create = || Request::Create { parent: ROOT, name: b"f".to_vec(), permissions: 0o600, umask: 0, mode };
    let made = attributes(INO, FileKind::File);
    let token = script.ask(create());
    let (step, call) = script.call();
    assert!(matches!(call, client::Call::Op(Op::Create { hold: true, exclusive: false, uid: 1000, gid: 100, mode: 0o600, .. })));
    script.done(step, Ok(client::Reply::Replied(Replied::Entry { attributes: made, created: true, writer: false })));
    assert!(matches!(script.reply(), (of, Reply::Created(_, _)) if of == token), "a new file needs no truncation");
    script.quiet();

    let found = attributes(InodeId(10), FileKind::File);
    let token = script.ask(create());
    let (step, _) = script.call();
    script.done(
        step,
        Ok(client::Reply::Replied(Replied::Entry { attributes: Attributes { size: 5, ..found }, created: false, writer: false })),
    );
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
    let write = |offset, kind| Request::Write { ino: INO, handle, offset, bytes: bytes.clone(), kind, sync: false };
    for (kind, end, kill) in [(WriteKind::At, false, true), (WriteKind::Append, true, true), (WriteKind::Mapped, false, false)] {
        let token = script.ask(write(7, kind));
        let (step, call) = script.call();
        let client::Call::Write { at, kill_privileges, .. } = call else { panic!("{call:?}") };
        assert_eq!((at == WriteAt::End, kill_privileges), (end, kill));
        let attributes = attributes(INO, FileKind::File);
        script.done(step, Ok(client::Reply::Replied(Replied::Written { offset: 9, attributes })));
        let told = script.translator.poll_effect();
        assert!(matches!(told, Some(Effect::Written { token: of, offset: 9, .. }) if of == token), "{told:?}");
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
        current: true,
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
    let (hold, call) = script.call();
    assert!(matches!(call, client::Call::Query(Query::Hold { ino: ROOT, sequence: 1 })), "it outlives its removal while it is open");
    script.ask(Request::OpenDirectory { ino: ROOT });
    let Reply::Opened(other) = script.reply().1 else { panic!() };
    script.quiet();
    script.answer(hold, Answer::Done);
    script.ask(Request::ReleaseDirectory { handle: other });
    script.reply();
    script.quiet();
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
    assert!(matches!(script.call().1, client::Call::Query(Query::Release { ino: ROOT, sequence: 2 })));
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
        Request::Make { parent: ROOT, name: name(), kind: NewKind::Directory, mode: 0o755, umask: 0 },
        Request::Unlink { parent: ROOT, name: name() },
        Request::RemoveDirectory { parent: ROOT, name: name() },
        Request::Link { ino: INO, parent: ROOT, name: name() },
        Request::Rename { from_parent: ROOT, from_name: name(), to_parent: ROOT, to_name: name(), mode: RenameMode::Replace },
        Request::SetXattr {
            ino: INO,
            new: NewXattr { name: b"user.a".to_vec(), value: bytes::Bytes::new(), condition: Default::default() },
        },
        Request::RemoveXattr { ino: INO, name: b"user.a".to_vec() },
        Request::Create { parent: ROOT, name: name(), permissions: 0o600, umask: 0, mode: OpenMode::default() },
        Request::Open { ino: INO, mode: OpenMode::of(libc::O_WRONLY) },
    ];
    for change in changes {
        let token = script.ask(change);
        assert_eq!(script.reply(), (token, Reply::Error(Status::ReadOnly)));
    }
    script.open();
}

#[test]
fn attributes_of_a_batch_are_not_shown_after_a_change() {
    let mut script = Script::new();
    script.ask(Request::OpenDirectory { ino: ROOT });
    let Reply::Opened(handle) = script.reply().1 else { panic!() };
    let (hold, _) = script.call();
    script.answer(hold, Answer::Done);
    let list = |offset, plus| Request::ReadDirectory { handle, offset, plus };
    let root = attributes(ROOT, FileKind::Directory);
    script.ask(list(0, true));
    let (step, _) = script.call();
    script.answer(step, Answer::Directory { entries: entries(1..9), end: true, attributes: root });
    script.reply();
    script.ask(list(4, true));
    assert_eq!(lines(&script.reply().1).len(), 6);
    script.translator.on_change();
    script.ask(list(4, false));
    assert_eq!(lines(&script.reply().1).len(), 6, "names alone are as they were");
    script.ask(list(4, true));
    let (step, call) = script.call();
    assert!(matches!(call, client::Call::Query(Query::ReadDirectory { after: Cookie(2), .. })));
    // Something changes while the answer is on its way.
    script.translator.on_change();
    script.answer(step, Answer::Directory { entries: entries(3..9), end: true, attributes: root });
    assert_eq!(lines(&script.reply().1).len(), 6);
    // What is made after the end of the stream is not listed by it: it may be a name that was listed already, removed and made anew.
    script.translator.on_change();
    script.ask(list(10, true));
    assert_eq!(lines(&script.reply().1), []);
}
