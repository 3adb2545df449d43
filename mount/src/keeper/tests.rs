//! The keeper by scripts: the test plays the core's rights, the translator's replies and the kernel.

use dfs::status::Status;
use dfs::types::{Cookie, Name, ROOT, Timestamp};
use dfs::wire::namespace::{DirectoryEntry, SetAttributes};

use super::*;
use crate::requests::OpenMode;

const INO: InodeId = InodeId(9);
const HANDLE: Handle = Handle(1);

/// What the core would say, and a clock.
struct Script {
    keeper: Keeper,
    now: Time,
    content: Option<Time>,
    names: Option<Time>,
    /// What the session knows: attributes of that version; with `named`, every name as it is told.
    version: u64,
    named: bool,
    known: u64,
    token: u64,
}

fn seconds(seconds: u64) -> Time {
    Time(seconds * 1_000_000_000)
}

fn attributes(data_version: u64) -> Attributes {
    let time = Timestamp::default();
    Attributes {
        ino: INO,
        kind: FileKind::File,
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
        data_version,
        parent: ROOT,
        xattrs: Default::default(),
    }
}

impl Script {
    /// A session whose lease ends at second 104, and that has every right.
    fn new() -> Self {
        let mut keeper = Keeper::new(Duration::ZERO);
        keeper.set_epoch(true);
        let lease = Some(seconds(104));
        Script { keeper, now: seconds(100), content: lease, names: lease, version: 1, named: true, known: 1, token: 0 }
    }

    fn with<R>(&mut self, then: impl FnOnce(&mut Keeper, Time, &Lease) -> R) -> R {
        let (content, names, version, named) = (self.content, self.names, self.version, self.named);
        let attributes = |_, told| content.filter(|_| told == version);
        let name = |_, _: &Name, _| names.filter(|_| named);
        let lease = Lease { content: &|_| content, attributes: &attributes, listing: &|_| names, name: &name };
        let done = then(&mut self.keeper, self.now, &lease);
        self.keeper.check_invariants();
        done
    }

    fn ask(&mut self, request: &Request) -> u64 {
        self.token += 1;
        let token = self.token;
        self.with(|keeper, now, lease| keeper.on_request(now, token, 1, request, Some(INO), lease));
        token
    }

    fn answer(&mut self, token: u64, reply: Reply) {
        let known = self.known;
        self.with(|keeper, now, lease| keeper.on_reply(now, token, reply, |_| known, lease));
    }

    fn poll(&mut self) -> Option<Kept> {
        self.with(|keeper, _, _| keeper.poll())
    }

    /// Asks and answers; what the kernel may keep of it.
    fn keep(&mut self, request: &Request, reply: Reply) -> Keep {
        let token = self.ask(request);
        self.answer(token, reply);
        match self.poll() {
            Some(Kept::Reply { token: of, keep, .. }) if of == token => keep,
            other => panic!("{other:?}"),
        }
    }

    fn notice(&mut self) -> (u64, KernelNotice) {
        match self.poll() {
            Some(Kept::Notify { id, notice }) => (id, notice),
            other => panic!("{other:?}"),
        }
    }

    fn notified(&mut self, id: u64) {
        self.with(|keeper, now, _| keeper.on_notified(now, id));
    }

    fn invalidate(&mut self, id: u64, what: Invalidation) {
        let known = self.known;
        self.with(|keeper, now, _| keeper.on_invalidate(now, id, what, |_| known));
    }

    fn read(&mut self) {
        let range = dfs::types::ByteRange { offset: 0, length: 4096 };
        self.keep(&Request::Read { ino: INO, handle: HANDLE, range }, Reply::Bytes(bytes::Bytes::new()));
    }

    fn stat(&mut self, data_version: u64) -> Keep {
        self.keep(&Request::GetAttributes { ino: INO }, Reply::Attributes(attributes(data_version)))
    }

    fn open(&mut self) -> Content {
        self.keep(&Request::Open { ino: INO, mode: OpenMode::default() }, Reply::Opened(HANDLE)).content
    }

    fn quiet(&mut self) {
        let next = self.poll();
        assert!(next.is_none(), "{next:?}");
    }
}

fn lookup() -> Request {
    Request::Lookup { parent: ROOT, name: b"a".to_vec() }
}

#[test]
fn lifetimes_end_with_the_right_and_with_their_bound() {
    let mut script = Script::new();
    let keep = script.keep(&lookup(), Reply::Entry(attributes(1)));
    assert_eq!((keep.entry, keep.attributes), (Duration::from_secs(1), Duration::from_secs(4)));
    script.content = Some(seconds(200));
    assert_eq!(script.stat(1).attributes, Duration::from_secs(5));
    script.names = Some(script.now + Duration::from_millis(300));
    assert_eq!(script.keep(&lookup(), Reply::Absent).entry, Duration::from_millis(300));
    (script.names, script.content) = (None, None);
    assert_eq!(script.keep(&lookup(), Reply::Entry(attributes(1))), Keep::default());
    script.keeper.relaxed = Duration::from_secs(60);
    let keep = script.keep(&lookup(), Reply::Entry(attributes(1)));
    assert_eq!((keep.entry, keep.attributes), (Duration::from_secs(60), Duration::from_secs(60)), "if one asked for it");
}

#[test]
fn what_is_told_and_not_known_has_no_lifetime_although_the_right_is_held() {
    let mut script = Script::new();
    script.named = false;
    let keep = script.keep(&lookup(), Reply::Entry(attributes(1)));
    assert_eq!((keep.entry, keep.attributes), (Duration::ZERO, Duration::from_secs(4)), "somebody is changing the name");
    assert_eq!(script.keep(&lookup(), Reply::Absent).entry, Duration::ZERO);
    let list = Request::ReadDirectory { handle: HANDLE, offset: 0, plus: true };
    let entry = DirectoryEntry { name: Name::new("a").unwrap(), cookie: Cookie(1), attributes: attributes(1), current: true };
    let entries = std::sync::Arc::new(vec![entry]);
    let directory = Attributes { kind: FileKind::Directory, ..attributes(1) };
    let listing = Listing { plus: true, offset: 2, directory, entries, start: 0 };
    assert_eq!(script.keep(&list, Reply::Listing(listing.clone())).lines, [Duration::ZERO]);
    script.named = true;
    assert_eq!(script.keep(&list, Reply::Listing(listing.clone())).lines, [Duration::from_secs(1)]);
    script.version = 2;
    let keep = script.keep(&lookup(), Reply::Entry(attributes(1)));
    assert_eq!((keep.entry, keep.attributes), (Duration::from_secs(1), Duration::ZERO), "there are newer attributes");
    assert_eq!(script.stat(1).attributes, Duration::ZERO);
    assert_eq!(script.keep(&list, Reply::Listing(listing)).lines, [Duration::ZERO]);
}

#[test]
fn replies_that_the_kernel_takes_unconditionally_give_attributes_no_lifetime() {
    let mut script = Script::new();
    let set = Request::SetAttributes { ino: INO, set: SetAttributes::default() };
    assert_eq!(script.keep(&set, Reply::Attributes(attributes(1))), Keep::default());
    let link = Request::Link { ino: INO, parent: ROOT, name: b"b".to_vec() };
    let keep = script.keep(&link, Reply::Entry(attributes(1)));
    assert_eq!((keep.entry, keep.attributes), (Duration::from_secs(1), Duration::ZERO));
    let create = Request::Create { parent: ROOT, name: b"a".to_vec(), permissions: 0o600, umask: 0, mode: OpenMode::default() };
    assert!(!script.keep(&create, Reply::Created(HANDLE, attributes(1))).attributes.is_zero(), "a new inode");
    script.known = 2;
    assert!(script.keep(&create, Reply::Created(HANDLE, attributes(1))).attributes.is_zero(), "one that the kernel knew");
}

#[test]
fn pages_are_kept_over_close_and_open_while_nobody_else_changes_the_file() {
    let mut script = Script::new();
    script.stat(1);
    assert_eq!(script.open(), Content::Fresh);
    script.read();
    assert_eq!(script.open(), Content::Kept);
    script.content = None;
    assert_eq!(script.open(), Content::Direct, "without a right nothing is cached");
    script.content = Some(seconds(104));
    let direct = OpenMode { direct: true, ..OpenMode::default() };
    assert_eq!(script.keep(&Request::Open { ino: INO, mode: direct }, Reply::Opened(HANDLE)).content, Content::Direct);
}

#[test]
fn a_recall_is_obeyed_when_the_kernel_has_dropped_the_pages() {
    let mut script = Script::new();
    script.stat(1);
    script.read();
    script.content = None;
    script.invalidate(7, Invalidation::Inode { ino: INO });
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Inode { ino: INO });
    script.quiet();
    script.notified(id);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 7 }));
    assert!(!script.keeper.pages.is_suspect(INO));
    // Of what the kernel does not know there is nothing to forget.
    script.known = 0;
    script.invalidate(8, Invalidation::Inode { ino: INO });
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 8 }));
}

#[test]
fn suspect_pages_are_not_used_whatever_attributes_say() {
    let mut script = Script::new();
    script.stat(1);
    script.read();
    script.invalidate(7, Invalidation::Inode { ino: INO });
    let (blocked, _) = script.notice();
    script.now = script.now + limits::RECALL_PATIENCE;
    script.with(|keeper, now, _| keeper.on_deadline(now, |_| 1));
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Attributes { ino: INO });
    script.notified(id);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 7 }), "somebody waits for it");
    // The right is back, the pages are still there.
    assert!(script.stat(2).attributes.is_zero(), "programs may see attributes, the kernel asks again");
    let refreshed = [script.refresh(), script.refresh()];
    let times = refreshed.map(|attributes| attributes.mtime);
    assert!(times[0] != times[1] && times.iter().all(|time| *time != attributes(2).mtime), "each time the kernel drops its pages");
    let other = script.keep(&lookup(), Reply::Entry(attributes(2)));
    assert!(other.attributes.is_zero() && !other.entry.is_zero());
    assert_eq!(script.open(), Content::Fresh);
    script.notified(blocked);
    // The open asked for another one meanwhile.
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Inode { ino: INO });
    script.notified(id);
    assert!(!script.stat(2).attributes.is_zero());
    assert_eq!(script.refresh(), attributes(2));
}

impl Script {
    /// The kernel asks on its own account.
    fn refresh(&mut self) -> Attributes {
        let token = self.ask(&Request::Refresh { ino: INO });
        self.answer(token, Reply::Attributes(attributes(2)));
        match self.poll() {
            Some(Kept::Reply { reply: Reply::Attributes(attributes), .. }) => attributes,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_read_without_a_right_is_dropped_at_once() {
    let mut script = Script::new();
    script.content = None;
    script.read();
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Inode { ino: INO });
    // More is read meanwhile: one more notice for all of it.
    script.read();
    script.read();
    script.notified(id);
    let (id, _) = script.notice();
    assert!(script.keeper.pages.is_suspect(INO));
    script.notified(id);
    script.quiet();
    assert!(!script.keeper.pages.is_suspect(INO));
    // Bytes that go to a program directly are in no page.
    let range = dfs::types::ByteRange { offset: 5, length: 100 };
    script.keep(&Request::Read { ino: INO, handle: HANDLE, range }, Reply::Bytes(bytes::Bytes::new()));
    script.quiet();
}

#[test]
fn no_notice_overtakes_the_answers_of_a_reader_that_keeps_asking() {
    let mut script = Script::new();
    script.content = None;
    let due = |script: &mut Script| script.with(|keeper, now, _| keeper.on_deadline(now, |_| 1));
    // As under steady sharing: each read asks first, and its pages are suspect as soon as it has them. 200 ms of that.
    for _ in 0..20 {
        script.refresh();
        script.read();
        script.now = script.now + limits::SUSPECT_PAGES_MAX_AGE / 5;
        due(&mut script);
        script.quiet();
    }
    // Once it asks no more, what it left behind is dropped: a mapping would show it for ever.
    script.now = script.now + limits::SUSPECT_PAGES_MAX_AGE;
    due(&mut script);
    assert_eq!(script.notice().1, KernelNotice::Inode { ino: INO });
}

#[test]
fn the_version_is_learnt_before_a_read_whose_right_was_not_used_for_long() {
    let mut script = Script::new();
    script.stat(1);
    script.now = seconds(110);
    script.content = Some(seconds(114));
    let range = dfs::types::ByteRange { offset: 0, length: 4096 };
    let read = Request::Read { ino: INO, handle: HANDLE, range };
    assert_eq!(script.with(|keeper, now, lease| keeper.wants(now, &read, lease)), Some(INO));
    script.with(|keeper, now, lease| keeper.on_attributes(now, &attributes(1), lease));
    assert_eq!(script.with(|keeper, now, lease| keeper.wants(now, &read, lease)), None);
    script.read();
    assert_eq!(script.open(), Content::Kept);
}

#[test]
fn bytes_that_were_appended_elsewhere_than_the_kernel_believes_are_dropped_at_once() {
    let mut script = Script::new();
    script.stat(1);
    assert_eq!(script.open(), Content::Fresh);
    let bytes = bytes::Bytes::from_static(b"abc");
    let write = Request::Write { ino: INO, handle: HANDLE, offset: 5, bytes, kind: WriteKind::Append, sync: false };
    for (offset, moved) in [(5, false), (8, true)] {
        let token = script.ask(&write);
        script.with(|keeper, now, lease| keeper.on_written(now, token, offset, &attributes(offset), lease));
        script.answer(token, Reply::Written(3));
        assert!(matches!(script.poll(), Some(Kept::Reply { .. })));
        assert_eq!(script.keeper.pages.is_suspect(INO), moved);
    }
    assert_ne!(script.refresh().mtime, attributes(2).mtime);
    script.now = script.keeper.next_deadline();
    script.with(|keeper, now, _| keeper.on_deadline(now, |_| 1));
    assert!(matches!(script.notice(), (_, KernelNotice::Inode { .. })), "for mappings");
}

#[test]
fn names_are_recalled_one_by_one_or_by_epoch_when_the_directory_is_locked() {
    let mut script = Script::new();
    let name = || Invalidation::Name { directory: ROOT, name: Name::new("a").unwrap() };
    // Nothing was given with a lifetime: attributes and listing only.
    script.invalidate(1, name());
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Inode { ino: ROOT });
    script.notified(id);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 1 }));

    script.keep(&lookup(), Reply::Absent);
    script.invalidate(2, name());
    let (first, _) = script.notice();
    let (second, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Entry { parent: ROOT, name: b"a".to_vec() });
    script.notified(first);
    script.quiet();
    script.notified(second);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 2 }));

    // A creation here waits at the leader with the directory's lock in the kernel.
    let create = Request::Create { parent: ROOT, name: b"b".to_vec(), permissions: 0o600, umask: 0, mode: OpenMode::default() };
    let token = script.ask(&create);
    script.invalidate(3, name());
    let mut notices = Vec::new();
    while let Some(Kept::Notify { id, notice }) = script.poll() {
        notices.push(notice.clone());
        if !matches!(notice, KernelNotice::Inode { .. }) {
            script.notified(id);
        }
    }
    let expected = [KernelNotice::Inode { ino: ROOT }, KernelNotice::Attributes { ino: ROOT }, KernelNotice::Epoch];
    assert_eq!(notices, expected);
    script.answer(token, Reply::Error(Status::Exists));
    script.invalidate(4, Invalidation::Names { directory: ROOT });
    assert!(matches!(script.poll(), Some(Kept::Obeyed { id: 3 }) | Some(Kept::Reply { .. })));
}

#[test]
fn listings_tell_only_current_attributes_with_a_lifetime() {
    let mut script = Script::new();
    let entry = |number: u64, current| DirectoryEntry {
        name: Name::new(format!("n{number}")).unwrap(),
        cookie: Cookie(number),
        attributes: Attributes { ino: InodeId(100 + number), ..attributes(1) },
        current,
    };
    let entries = std::sync::Arc::new(vec![entry(1, true), entry(2, false), entry(3, true)]);
    let directory = Attributes { kind: FileKind::Directory, ..attributes(1) };
    let listing = || Listing { plus: true, offset: 3, directory, entries: entries.clone(), start: 1 };
    let list = Request::ReadDirectory { handle: HANDLE, offset: 3, plus: true };
    assert_eq!(script.keep(&list, Reply::Listing(listing())).lines, [Duration::ZERO, Duration::from_secs(1)]);
    script.names = None;
    assert_eq!(script.keep(&list, Reply::Listing(listing())).lines, [Duration::ZERO; 2]);
}

#[test]
fn a_directory_is_cached_under_its_right_until_it_is_lost() {
    let mut script = Script::new();
    let open = Request::OpenDirectory { ino: INO };
    assert_eq!(script.keep(&open, Reply::Opened(HANDLE)).content, Content::Kept);
    let list = Request::ReadDirectory { handle: HANDLE, offset: 0, plus: false };
    let token = script.ask(&list);
    script.names = None;
    script.invalidate(1, Invalidation::Names { directory: INO });
    let directory = Attributes { kind: FileKind::Directory, ..attributes(1) };
    script.answer(token, Reply::Listing(Listing { plus: false, offset: 0, directory, entries: Default::default(), start: 0 }));
    assert!(script.keeper.pages.is_suspect(INO), "the listing is of before");
    assert_eq!(script.keep_after_notices(&open).content, Content::Direct);
    script.names = Some(seconds(104));
    assert_eq!(script.keep(&open, Reply::Opened(HANDLE)).content, Content::Fresh);
}

impl Script {
    fn keep_after_notices(&mut self, open: &Request) -> Keep {
        while self.poll().is_some() {}
        self.keep(open, Reply::Opened(HANDLE))
    }
}

#[test]
fn a_lost_session_leaves_no_jobs_and_nothing_to_trust() {
    let mut script = Script::new();
    script.stat(1);
    script.read();
    script.invalidate(1, Invalidation::Inode { ino: INO });
    let (id, _) = script.notice();
    (script.content, script.names) = (None, None);
    script.with(|keeper, now, _| keeper.on_session_lost(now));
    script.notified(id);
    script.quiet();
    script.now = script.keeper.next_deadline();
    script.with(|keeper, now, _| keeper.on_deadline(now, |_| 1));
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Inode { ino: INO });
    script.notified(id);
    script.keeper.on_forget(INO);
    assert!(script.keeper.is_empty());
}

#[test]
fn notices_do_not_wait_in_the_kernel_for_requests_that_are_under_way() {
    let mut script = Script::new();
    script.stat(1);
    script.read();
    let range = dfs::types::ByteRange { offset: 0, length: 4096 };
    let read = script.ask(&Request::Read { ino: INO, handle: HANDLE, range });
    script.content = None;
    script.invalidate(7, Invalidation::Inode { ino: INO });
    let (id, notice) = script.notice();
    assert_eq!(notice, KernelNotice::Attributes { ino: INO }, "its pages are locked: attributes first");
    script.notified(id);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 7 }));
    script.answer(read, Reply::Bytes(bytes::Bytes::new()));
    assert!(matches!(script.poll(), Some(Kept::Reply { token, .. }) if token == read));
    while let Some(kept) = script.poll() {
        match kept {
            Kept::Notify { id, notice } => {
                assert_eq!(notice, KernelNotice::Inode { ino: INO });
                script.notified(id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!script.keeper.pages.is_suspect(INO));
    // A request that takes long postpones it no longer than the patience.
    script.ask(&Request::Read { ino: INO, handle: HANDLE, range });
    script.keeper.pages.doubt(INO);
    script.invalidate(8, Invalidation::Inode { ino: INO });
    let (id, _) = script.notice();
    script.notified(id);
    assert_eq!(script.poll(), Some(Kept::Obeyed { id: 8 }));
    script.now = script.keeper.next_deadline();
    script.with(|keeper, now, _| keeper.on_deadline(now, |_| 1));
    assert!(matches!(script.notice(), (_, KernelNotice::Inode { .. })));
}
