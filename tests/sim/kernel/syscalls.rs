//! System calls of the model kernel: the workload's calls, carried out as Linux would through FUSE.

use bytes::Bytes;

use dfs::client::{Call, Reply};
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, FileKind, InodeId, Name, Timestamp};
use dfs::wire::namespace::{Answer, DirectoryEntry, NewKind, Op, Query, Replied, SetAttributes, WriteAt};
use dfs_mount::requests::{Context, OpenMode, Reply as Fuse, Request, WriteKind};

use super::replies::{Opened, attributes, entry, opened};
use super::state::{Lockable, Mode, Open, PAGE};
use super::{Guard, Kernel};

/// The daemon reads at most so much in one request.
const READ_MAX: u64 = 32 * PAGE;

/// Writes of these lengths may be made through a mapping: those of files with one writer, since a mapping writes whole pages. Linux writes
/// neighbouring pages in one request, this model one by one: of more of them the refusals of a full cluster take longer than one call may.
const MAPPED_LENGTHS: std::ops::Range<usize> = 17..64 * PAGE as usize;

/// So often a program's stat finds a name whose inode is gone when its attributes are asked for, before it is told so.
const STALE_TRIES: usize = 4;

/// What is known of an inode before anything is.
fn blank() -> Attributes {
    let time = Timestamp::default();
    Attributes {
        ino: InodeId(0),
        kind: FileKind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        links: 1,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        rdev: 0,
        version: 0,
        data_version: 0,
        parent: InodeId(0),
        xattrs: Default::default(),
    }
}

/// The inodes that a call names by number.
fn named(call: &Call) -> [Option<InodeId>; 2] {
    match *call {
        Call::Query(Query::Attributes { ino } | Query::ReadDirectory { ino, .. })
        | Call::Read { ino, .. }
        | Call::Write { ino, .. }
        | Call::Sync { ino }
        | Call::Op(Op::SetAttributes { ino, .. }) => [Some(ino), None],
        Call::Query(Query::Lookup { parent, .. }) | Call::Op(Op::Create { parent, .. } | Op::Unlink { parent, .. }) => [Some(parent), None],
        Call::Op(Op::Link { ino, parent, .. }) => [Some(ino), Some(parent)],
        Call::Op(Op::Rename { from_parent, to_parent, .. }) => [Some(from_parent), Some(to_parent)],
        _ => [None, None],
    }
}

fn user(uid: u32) -> Context {
    Context { uid, gid: 0, pid: 1 }
}

fn missing(result: Result<Option<InodeId>, Status>) -> Result<InodeId, Status> {
    result.and_then(|ino| ino.ok_or(Status::NotFound))
}

impl Kernel {
    /// Carries out a call of the workload. `luck` decides what a program would: whether a file stays open.
    pub(super) async fn call(&self, call: Call, luck: u64) -> Result<Reply, Status> {
        // A path leads there: whatever was evicted is looked up again before anything is asked about it or about a name in it.
        for ino in named(&call).into_iter().flatten() {
            self.state(|state| state.adopt(ino, blank()));
        }
        match call {
            Call::Op(op) => self.change(op, luck).await,
            Call::Query(Query::Lookup { parent, name }) => self.stat(parent, &name).await,
            Call::Query(Query::Attributes { ino }) => Ok(Reply::Answer(Answer::Attributes(self.getattr(ino).await?))),
            Call::Query(Query::ReadDirectory { ino, .. }) => self.list(ino).await,
            Call::Read { ino, range } => {
                let open = self.open(ino, luck, OpenMode::default()).await?;
                let result = self.read(open, range).await;
                self.close(open, luck).await;
                Ok(Reply::Bytes(result?))
            }
            Call::Write { ino, at, bytes, .. } => {
                let open = self.open(ino, luck, OpenMode { write: true, ..OpenMode::default() }).await?;
                let result = match at {
                    WriteAt::Offset(offset) if MAPPED_LENGTHS.contains(&bytes.len()) && luck.is_multiple_of(7) => {
                        self.write_mapped(open, offset, &bytes).await
                    }
                    _ => self.write(open, at, &bytes).await,
                };
                self.close(open, luck).await;
                result.map(|()| Reply::Done)
            }
            Call::Sync { ino } => match self.ask(user(0), Request::Sync { ino, handle: None, directory: false }).await.0.0 {
                Fuse::Error(status) => Err(status),
                _ => Ok(Reply::Done),
            },
            other => panic!("no system call does {other:?}"),
        }
    }

    async fn change(&self, op: Op, luck: u64) -> Result<Reply, Status> {
        match op {
            Op::Create { parent, name, kind, uid, mode, .. } => self.create(parent, &name, kind, mode, uid, luck).await,
            Op::Unlink { parent, name } => self.unlink(parent, &name).await,
            Op::Link { ino, parent, name } => self.link(ino, parent, &name).await,
            Op::SetAttributes { ino, set } => self.setattr(ino, set).await,
            Op::Rename { from_parent, from_name, to_parent, to_name, mode } => {
                assert_eq!(from_parent, to_parent, "the workload renames within a directory");
                let _lock = self.lock(Lockable::Inode(from_parent), Mode::Exclusive).await;
                missing(self.lookup_locked(from_parent, from_name.as_bytes()).await)?;
                let (from, to) = (from_name.as_bytes().to_vec(), to_name.as_bytes().to_vec());
                let request = Request::Rename { from_parent, from_name: from.clone(), to_parent, to_name: to.clone(), mode };
                let reply = self.ask(user(0), request).await.0.0;
                self.state(|state| {
                    // fuse_rename_common: the moved names are looked up anew; d_move is left out, which only costs look-ups.
                    state.drop_dentry(from_parent, &from);
                    state.drop_dentry(to_parent, &to);
                    state.forget_attributes(from_parent);
                });
                done(reply)
            }
            other => panic!("no system call does {other:?}"),
        }
    }

    /// A name to its inode: from a valid dentry, by revalidating one that ran out, or by looking up under the directory's lock.
    async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, Status> {
        if let Some(known) = self.known(parent, name).await {
            return Ok(known);
        }
        let _lock = self.lock(Lockable::Inode(parent), Mode::Shared).await;
        self.ask_for_name(parent, name).await
    }

    /// The same for who has the directory's lock because he is about to change a name in it: Linux looks the name up only then (lock_rename,
    /// do_unlinkat), and so waits for changes that are under way.
    async fn lookup_locked(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, Status> {
        match self.known(parent, name).await {
            Some(known) => Ok(known),
            None => self.ask_for_name(parent, name).await,
        }
    }

    /// What a dentry says, if it is valid or is found to be when it is asked about.
    async fn known(&self, parent: InodeId, name: &[u8]) -> Option<Option<InodeId>> {
        if let Some(ino) = self.state(|state| state.dentry(parent, name).map(|dentry| dentry.ino)) {
            return Some(ino);
        }
        let known = self.state(|state| {
            let dentry = state.dentries.get(&(parent, name.to_vec())).cloned();
            dentry.filter(|dentry| dentry.ino.is_some() && dentry.epoch == state.epoch)
        });
        if let Some(known) = known {
            // d_revalidate asks without the directory's lock; its answer counts only while the same dentry is in place.
            let asked = self.state(|state| state.attribute_version);
            let (reply, at) = self.ask(user(0), Request::Lookup { parent, name: name.to_vec() }).await;
            if let Ok(found) = entry(reply)
                && found.attributes.map(|attributes| attributes.ino) == known.ino
                && let Some(attributes) = found.attributes
            {
                self.count_lookup(&found.attributes);
                let current = self.state(|state| {
                    let dentry = state.dentries.get_mut(&(parent, name.to_vec())).filter(|dentry| dentry.serial == known.serial)?;
                    dentry.valid_until = at + found.names;
                    Some(())
                });
                self.take_attributes(attributes, at + found.lifetime, asked).await;
                if current.is_some() {
                    return Some(Some(attributes.ino));
                }
            } else {
                self.state(|state| state.drop_dentry(parent, name));
            }
        }
        None
    }

    /// The directory's lock is held.
    async fn ask_for_name(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, Status> {
        if let Some(ino) = self.state(|state| state.dentry(parent, name).map(|dentry| dentry.ino)) {
            return Ok(ino);
        }
        let (epoch, asked) = self.state(|state| (state.epoch, state.attribute_version));
        let (reply, at) = self.ask(user(0), Request::Lookup { parent, name: name.to_vec() }).await;
        match entry(reply) {
            Ok(found) => {
                let ino = found.attributes.map(|attributes| attributes.ino);
                self.count_lookup(&found.attributes);
                self.state(|state| state.instantiate(parent, name, ino, at + found.names, epoch));
                if let Some(attributes) = found.attributes {
                    self.take_attributes(attributes, at + found.lifetime, asked).await;
                }
                Ok(ino)
            }
            Err(Status::NotFound) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// stat: a look-up, then the attributes of what it found. If another mount deletes that in between, Linux looks the name up anew
    /// (`retry_estale` with `LOOKUP_REVAL`): once. The model goes on a little longer, since the name may be replaced again.
    async fn stat(&self, parent: InodeId, name: &Name) -> Result<Reply, Status> {
        let mut told = Err(Status::Stale);
        for _ in 0..STALE_TRIES {
            let ino = missing(self.lookup(parent, name.as_bytes()).await)?;
            told = self.getattr(ino).await;
            if told != Err(Status::Stale) {
                break;
            }
            self.state(|state| state.drop_dentry(parent, name.as_bytes()));
        }
        told.map(|attributes| Reply::Answer(Answer::Attributes(attributes)))
    }

    fn count_lookup(&self, attributes: &Option<Attributes>) {
        let Some(attributes) = attributes else { return };
        self.state(|state| {
            if let Some(inode) = state.inodes.get_mut(&attributes.ino) {
                inode.lookups += 1;
            }
        });
    }

    async fn getattr(&self, ino: InodeId) -> Result<Attributes, Status> {
        if let Some(attributes) = self.state(|state| state.attributes(ino)) {
            return Ok(attributes);
        }
        let asked = self.state(|state| state.attribute_version);
        let (reply, at) = self.ask(user(0), Request::GetAttributes { ino }).await;
        let (told, lifetime) = attributes(reply)?;
        self.take_attributes(told, at + lifetime, asked).await;
        Ok(told)
    }

    /// The size by which pages are used; the kernel asks on its own account. If the reply was overtaken on its way to whoever asked, by a
    /// notice, a write or another reply, Linux goes on with the pages and the size that it has. So does the model with the pages. Where the
    /// sizes differ it asks again, so that the old size, which is one of the limits in README.md, does not hide other errors.
    async fn size(&self, ino: InodeId) -> Result<u64, Status> {
        if let Some(attributes) = self.state(|state| state.attributes(ino)) {
            return Ok(attributes.size);
        }
        loop {
            let asked = self.state(|state| state.attribute_version);
            let (reply, at) = self.ask(user(0), Request::Refresh { ino }).await;
            let (told, lifetime) = attributes(reply)?;
            let taken = self.take_attributes(told, at + lifetime, asked).await;
            if taken || self.state(|state| state.inodes.get(&ino).is_some_and(|inode| inode.size == told.size)) {
                return Ok(told.size);
            }
        }
    }

    async fn setattr(&self, ino: InodeId, set: SetAttributes) -> Result<Reply, Status> {
        let _lock = self.lock(Lockable::Inode(ino), Mode::Exclusive).await;
        let (reply, at) = self.ask(user(0), Request::SetAttributes { ino, set }).await;
        let (told, lifetime) = attributes(reply)?;
        // The reply to SETATTR is taken whatever came between, and drops no pages by itself.
        let before = self.state(|state| {
            let before = state.inodes.get(&ino).map(|inode| inode.size);
            state.take_attributes(told, at + lifetime, u64::MAX);
            before
        });
        if set.size.is_some() && before.is_some_and(|before| before != told.size) {
            self.drop_pages(ino).await;
        }
        Ok(Reply::Replied(Replied::Attributes(told)))
    }

    async fn create(&self, parent: InodeId, name: &Name, kind: NewKind, mode: u16, uid: u32, luck: u64) -> Result<Reply, Status> {
        let lock = self.lock(Lockable::Inode(parent), Mode::Exclusive).await;
        let (epoch, text) = (self.state(|state| state.epoch), name.as_bytes().to_vec());
        // lookup_open: a name that is known to be there is refused by the kernel itself.
        if self.state(|state| state.dentry(parent, &text).is_some_and(|dentry| dentry.ino.is_some())) {
            return Err(Status::Exists);
        }
        let asked = self.state(|state| state.attribute_version);
        let opens = matches!(kind, NewKind::File) && luck.is_multiple_of(2);
        let request = match opens {
            true => {
                let mode_of = OpenMode { exclusive: true, write: true, ..OpenMode::default() };
                Request::Create { parent, name: text.clone(), permissions: mode, umask: 0, mode: mode_of }
            }
            false => Request::Make { parent, name: text.clone(), kind, mode, umask: 0 },
        };
        let (reply, at) = self.ask(user(uid), request).await;
        self.state(|state| state.forget_attributes(parent));
        let (found, open) = match reply {
            (Fuse::Error(status), _) => {
                self.state(|state| state.drop_dentry(parent, &text));
                return Err(status);
            }
            reply if opens => {
                let (found, open) = super::replies::created(reply)?;
                (found, Some(open))
            }
            reply => (entry(reply)?, None),
        };
        let made = found.attributes.ok_or(Status::Internal)?;
        self.count_lookup(&found.attributes);
        self.state(|state| state.instantiate(parent, &text, Some(made.ino), at + found.names, epoch));
        self.take_attributes(made, at + found.lifetime, asked).await;
        drop(lock);
        if let Some(Opened { handle, direct, .. }) = open {
            let open = Open { handle, ino: made.ino, direct };
            self.state(|state| state.open.push(open));
            self.close(open, luck).await;
        }
        Ok(Reply::Replied(Replied::Entry { attributes: made, created: true, writer: false }))
    }

    async fn unlink(&self, parent: InodeId, name: &Name) -> Result<Reply, Status> {
        let _lock = self.lock(Lockable::Inode(parent), Mode::Exclusive).await;
        let ino = missing(self.lookup_locked(parent, name.as_bytes()).await)?;
        let reply = self.ask(user(0), Request::Unlink { parent, name: name.as_bytes().to_vec() }).await.0.0;
        self.state(|state| {
            state.drop_dentry(parent, name.as_bytes());
            state.forget_attributes(parent);
            state.forget_attributes(ino);
        });
        done(reply)
    }

    async fn link(&self, ino: InodeId, parent: InodeId, name: &Name) -> Result<Reply, Status> {
        let _lock = self.lock(Lockable::Inode(parent), Mode::Exclusive).await;
        let epoch = self.state(|state| state.epoch);
        let (reply, at) = self.ask(user(0), Request::Link { ino, parent, name: name.as_bytes().to_vec() }).await;
        self.state(|state| {
            state.forget_attributes(parent);
            state.forget_attributes(ino);
        });
        let found = entry(reply)?;
        let linked = found.attributes.ok_or(Status::Internal)?;
        self.count_lookup(&found.attributes);
        self.state(|state| state.instantiate(parent, name.as_bytes(), Some(linked.ino), at + found.names, epoch));
        Ok(Reply::Replied(Replied::Entry { attributes: linked, created: true, writer: false }))
    }

    /// opendir, readdirplus to the end, closedir.
    async fn list(&self, ino: InodeId) -> Result<Reply, Status> {
        let (reply, _) = self.ask(user(0), Request::OpenDirectory { ino }).await;
        let handle = opened(reply)?.handle;
        let mut entries: Vec<DirectoryEntry> = Vec::new();
        let mut offset = 0;
        let attributes = loop {
            let (epoch, asked) = self.state(|state| (state.epoch, state.attribute_version));
            let guard = self.lock(Lockable::Inode(ino), Mode::Shared).await;
            let ((reply, keep), at) = self.ask(user(0), Request::ReadDirectory { handle, offset, plus: true }).await;
            let listing = match reply {
                Fuse::Listing(listing) => listing,
                Fuse::Error(status) => return Err(status),
                other => panic!("a listing answered {other:?}"),
            };
            let lines = super::replies::lines(&listing, &keep);
            if lines.is_empty() {
                break listing.directory;
            }
            for line in lines {
                offset = line.next;
                let Some(found) = line.found else { continue };
                let told = found.attributes.expect("a line has an inode");
                let name = Name::new(line.name.clone()).expect("a listed name is good");
                if line.shown {
                    self.count_lookup(&found.attributes);
                    self.state(|state| state.instantiate(ino, &line.name, Some(told.ino), at + found.names, epoch));
                    self.take_attributes(told, at + found.lifetime, asked).await;
                }
                let cookie = dfs::types::Cookie(line.next);
                entries.push(DirectoryEntry { name, cookie, attributes: told, current: line.shown });
            }
            drop(guard);
        };
        self.ask(user(0), Request::ReleaseDirectory { handle }).await;
        Ok(Reply::Answer(Answer::Directory { entries, end: true, attributes }))
    }

    /// A descriptor: one that is open already, or a new one.
    async fn open(&self, ino: InodeId, luck: u64, mode: OpenMode) -> Result<Open, Status> {
        let held = self.state(|state| state.open.iter().copied().find(|open| open.ino == ino));
        if let Some(open) = held.filter(|_| luck.is_multiple_of(3) || self.state(|state| state.keeps_open)) {
            // Nobody else closes it meanwhile: it is taken out of the table.
            self.state(|state| state.open.retain(|other| other.handle != open.handle));
            return Ok(open);
        }
        let (reply, _) = self.ask(user(0), Request::Open { ino, mode }).await;
        let Opened { handle, direct, keep } = opened(reply)?;
        if !direct && !keep {
            self.drop_pages(ino).await;
        }
        Ok(Open { handle, ino, direct })
    }

    /// Closes a descriptor, or leaves it open for the next.
    async fn close(&self, open: Open, luck: u64) {
        self.state(|state| state.open.retain(|other| other.handle != open.handle));
        if self.state(|state| state.keeps_open || (luck % 5 < 2 && state.open.len() < 6)) {
            return self.state(|state| state.open.push(open));
        }
        self.ask(user(0), Request::Release { handle: open.handle }).await;
    }

    async fn read(&self, open: Open, range: ByteRange) -> Result<Bytes, Status> {
        if open.direct {
            return self.read_direct(open, range).await;
        }
        // AUTO_INVAL_DATA: attributes that ran out are asked for before any page is used.
        let size = self.size(open.ino).await?;
        let end = range.end().min(size);
        let mut bytes = Vec::new();
        let mut at = range.offset;
        while at < end {
            let page = at / PAGE;
            let content = self.page(open, page).await?;
            let from = (at - page * PAGE) as usize;
            let to = (end - page * PAGE).min(PAGE) as usize;
            // What the file is shorter by than its size said reads as zeros until the size is known.
            let mut content = content;
            content.resize(PAGE as usize, 0);
            bytes.extend_from_slice(&content[from..to]);
            at = page * PAGE + to as u64;
        }
        Ok(bytes.into())
    }

    async fn read_direct(&self, open: Open, range: ByteRange) -> Result<Bytes, Status> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < range.length {
            let length = (range.length - bytes.len() as u64).min(READ_MAX);
            let part = ByteRange { offset: range.offset + bytes.len() as u64, length };
            let part = self.read_request(open, part).await?;
            bytes.extend_from_slice(&part);
            if (part.len() as u64) < length {
                break;
            }
        }
        Ok(bytes.into())
    }

    async fn read_request(&self, open: Open, range: ByteRange) -> Result<Bytes, Status> {
        match self.ask(user(0), Request::Read { ino: open.ino, handle: open.handle, range }).await.0.0 {
            Fuse::Bytes(bytes) => Ok(bytes),
            Fuse::Error(status) => Err(status),
            other => panic!("a read answered {other:?}"),
        }
    }

    /// One page: from the cache, or read into it under its lock.
    async fn page(&self, open: Open, page: u64) -> Result<Vec<u8>, Status> {
        let cached = |kernel: &Kernel| kernel.state(|state| state.inodes.get(&open.ino).and_then(|inode| inode.pages.get(&page).cloned()));
        // While a page is being written Linux shows the new bytes, which nobody else has seen (a limit that README.md names), and the model
        // has the old ones, which somebody may have seen overwritten: here who reads waits.
        let locked = self.state(|state| state.is_locked(Lockable::Page(open.ino, page)));
        if let Some(content) = cached(self).filter(|_| !locked) {
            return Ok(content);
        }
        let _lock = self.lock(Lockable::Page(open.ino, page), Mode::Exclusive).await;
        if let Some(content) = cached(self) {
            return Ok(content);
        }
        let bytes = self.read_request(open, ByteRange { offset: page * PAGE, length: PAGE }).await?;
        let mut content = bytes.to_vec();
        content.resize(PAGE as usize, 0);
        self.state(|state| {
            state.changes += 1;
            if let Some(inode) = state.inodes.get_mut(&open.ino) {
                inode.pages.insert(page, content.clone());
            }
        });
        Ok(content)
    }

    async fn write(&self, open: Open, at: WriteAt, bytes: &Bytes) -> Result<(), Status> {
        let _lock = self.lock(Lockable::Inode(open.ino), Mode::Exclusive).await;
        let (offset, kind) = match at {
            WriteAt::Offset(offset) => (offset, WriteKind::At),
            // What the kernel believes to be the end.
            WriteAt::End => (self.state(|state| state.inodes.get(&open.ino).map_or(0, |inode| inode.size)), WriteKind::Append),
        };
        let pages: Vec<u64> = (offset / PAGE..(offset + bytes.len() as u64).div_ceil(PAGE)).collect();
        let mut locks: Vec<Guard> = Vec::new();
        if open.direct {
            // fuse_direct_io drops the pages before it asks, and not again afterwards.
            for page in &pages {
                let _lock = self.lock(Lockable::Page(open.ino, *page), Mode::Exclusive).await;
                self.launder(open.ino, *page).await?;
                self.state(|state| state.inodes.get_mut(&open.ino).map(|inode| inode.pages.remove(page)));
            }
        } else {
            // The folios are filled and stay locked until the daemon has answered.
            for page in &pages {
                locks.push(self.lock(Lockable::Page(open.ino, *page), Mode::Exclusive).await);
            }
        }
        let request = Request::Write { ino: open.ino, handle: open.handle, offset, bytes: bytes.clone(), kind, sync: false };
        let reply = self.ask(user(0), request).await.0.0;
        match reply {
            Fuse::Written(length) => assert_eq!(length as usize, bytes.len(), "a write is whole"),
            Fuse::Error(status) => return Err(status),
            other => panic!("a write answered {other:?}"),
        }
        self.state(|state| {
            state.forget_attributes(open.ino);
            let Some(inode) = state.inodes.get_mut(&open.ino) else { return };
            inode.size = inode.size.max(offset + bytes.len() as u64);
            for page in pages {
                let (start, end) = (page * PAGE, (page + 1) * PAGE);
                let (from, to) = (start.max(offset), end.min(offset + bytes.len() as u64));
                let part = &bytes[(from - offset) as usize..(to - offset) as usize];
                if open.direct {
                    continue;
                }
                if kind == WriteKind::Append {
                    inode.pages.remove(&page);
                } else if from == start && to == end {
                    inode.pages.insert(page, part.to_vec());
                } else if let Some(content) = inode.pages.get_mut(&page) {
                    content[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
                }
            }
        });
        Ok(())
    }

    /// The same through a shared mapping, then msync. What lies behind the file's end is written the usual way.
    async fn write_mapped(&self, open: Open, offset: u64, bytes: &Bytes) -> Result<(), Status> {
        let end = offset + bytes.len() as u64;
        let told = self.getattr(open.ino).await?.size;
        // An answer that a notice overtakes tells the program, and leaves the kernel with the size that it had: a store beyond that is SIGBUS.
        let believed = self.state(|state| state.inodes.get(&open.ino).map_or(0, |inode| inode.size));
        if told.min(believed) < end {
            return self.write(open, WriteAt::Offset(offset), bytes).await;
        }
        self.state(|state| state.mapped.insert(open.ino, open.handle));
        let result = self.store_mapped(open, offset, bytes).await;
        if result.is_err() {
            // munmap writes back what msync did not come to, while the file is still open.
            for page in offset / PAGE..end.div_ceil(PAGE) {
                let _lock = self.lock(Lockable::Page(open.ino, page), Mode::Exclusive).await;
                let _ = self.launder(open.ino, page).await;
            }
        }
        self.state(|state| state.mapped.remove(&open.ino));
        result
    }

    async fn store_mapped(&self, open: Open, offset: u64, bytes: &Bytes) -> Result<(), Status> {
        let end = offset + bytes.len() as u64;
        let pages: Vec<u64> = (offset / PAGE..end.div_ceil(PAGE)).collect();
        for &page in &pages {
            loop {
                self.page(open, page).await?;
                let _lock = self.lock(Lockable::Page(open.ino, page), Mode::Exclusive).await;
                let stored = self.state(|state| {
                    let inode = state.inodes.get_mut(&open.ino)?;
                    let content = inode.pages.get_mut(&page)?;
                    let (from, to) = ((page * PAGE).max(offset), (page * PAGE + PAGE).min(end));
                    let part = &bytes[(from - offset) as usize..(to - offset) as usize];
                    content[(from - page * PAGE) as usize..(to - page * PAGE) as usize].copy_from_slice(part);
                    inode.dirty.insert(page);
                    state.changes += 1;
                    Some(())
                });
                // The page may have been taken away between the fault and the store: it faults again.
                if stored.is_some() {
                    break;
                }
            }
        }
        for &page in &pages {
            let _lock = self.lock(Lockable::Page(open.ino, page), Mode::Exclusive).await;
            self.launder(open.ino, page).await?;
        }
        let synced = self.ask(user(0), Request::Sync { ino: open.ino, handle: Some(open.handle), directory: false }).await.0.0;
        match (self.state(|state| state.unwritten.remove(&open.ino)), synced) {
            (Some(status), _) | (None, Fuse::Error(status)) => Err(status),
            _ => Ok(()),
        }
    }

    /// Writes back a page that a shared mapping changed; its lock is held.
    pub(super) async fn launder(&self, ino: InodeId, page: u64) -> Result<(), Status> {
        let dirty = self.state(|state| {
            let inode = state.inodes.get_mut(&ino)?;
            if !inode.dirty.remove(&page) {
                return None;
            }
            let bytes = inode.pages.get(&page)?.clone();
            let length = inode.size.saturating_sub(page * PAGE).min(PAGE) as usize;
            let handle = state.mapped.get(&ino).copied().expect("a dirty page is mapped");
            Some((handle, Bytes::from(bytes[..length].to_vec())))
        });
        if let Some((handle, bytes)) = dirty.filter(|(_, bytes)| !bytes.is_empty()) {
            let request = Request::Write { ino, handle, offset: page * PAGE, bytes, kind: WriteKind::Mapped, sync: false };
            if let Fuse::Error(status) = self.ask(user(0), request).await.0.0 {
                return Err(status);
            }
        }
        Ok(())
    }
}

fn done(reply: Fuse) -> Result<Reply, Status> {
    match reply {
        Fuse::Error(status) => Err(status),
        _ => Ok(Reply::Replied(Replied::Done)),
    }
}
