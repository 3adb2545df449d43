//! Writes: cut into patches, chunks put to their holders, then committed. Small ones ride inside their commit.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{ChunkHash, InodeId, Instance, NodeId, Timestamp};
use crate::wire::message::{Request, Response};
use crate::wire::namespace::{Answer, Behind, ChunkClaim, Op, Patch, Query, Replied, Source, WriteAt};

use super::asks::{Owner, Target};
use super::behind::{Run, fitted};
use super::core::{Alarm, Core, Internal, Job, Work};
use super::read::Purpose;
use super::session::Session;
use super::upload::Uploaded;
use super::{Reply, Sabotage};

/// Commits of one batch that may be refused for reasons that trying again can cure.
pub(super) const RETRIES_MAX: u32 = 6;
/// Extents that a folded slot may keep for the sake of the holes between them.
const FOLDED_EXTENTS_MAX: usize = 4;
/// Unit in which zeros are looked for.
const ZERO_BLOCK_BYTES: usize = 4 << 10;
static ZEROS: [u8; ZERO_BLOCK_BYTES] = [0; ZERO_BLOCK_BYTES];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Hole,
    Inline(Bytes),
    Chunk(Bytes),
    /// Shares a chunk with others of its kind.
    Pack(Bytes),
}

/// The circumstances of bytes that were written a while ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Committing {
    pub(super) written: Timestamp,
    pub(super) kill_privileges: bool,
    /// The right goes back with the last commit, if nothing is written meanwhile.
    pub(super) leaves: bool,
    /// No chunk may be longer.
    pub(super) chunk_max: usize,
}

/// A run of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: WriteAt,
    pub(super) length: u64,
    pub(super) content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write { kill_privileges: bool },
    Behind(Committing),
    Fold { slot: u64, version: u64, waiter: Option<u64> },
}

#[derive(Debug)]
struct Chunk {
    hash: ChunkHash,
    bytes: Bytes,
    instance: Instance,
    claim: Option<ChunkClaim>,
}

/// What one commit carries.
#[derive(Debug, Default)]
struct Batch {
    patches: Vec<Patch>,
    chunks: Vec<Chunk>,
    committing: bool,
    /// The commit gives the right back.
    yields: bool,
}

/// What a refused commit needs before it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    Commit,
    /// Put again what too few living nodes hold.
    Put,
    /// The uploads count as given up: put all again under new ones.
    Anew,
}

/// A write or a fold in progress.
#[derive(Debug)]
pub(super) struct WriteJob {
    ino: InodeId,
    pub(super) kind: Kind,
    batches: VecDeque<Batch>,
    retry: Retry,
    retries: u32,
    /// Where the first patch went.
    offset: Option<u64>,
    pub(super) bytes_charged: usize,
    /// A commit gave `WRITE` back, or may have.
    yielded: bool,
    /// A fold that it waited for found no room.
    crowded: bool,
}

impl Core {
    pub(super) fn start_write(&mut self, now: Time, token: u64, ino: InodeId, at: WriteAt, bytes: Bytes, kill_privileges: bool) {
        let deadline = now + self.config.op_timeout;
        let length = bytes.len();
        let beyond = matches!(at, WriteAt::Offset(offset) if offset.saturating_add(length as u64) > limits::FILE_BYTES_MAX);
        let work = WriteJob::new(ino, Kind::Write { kill_privileges }, VecDeque::new());
        let id = self.add_job(Some(token), deadline, Work::Write(Box::new(work)), true);
        if beyond || length == 0 || self.write_bytes + length > limits::CLIENT_WRITE_BYTES_MAX {
            let status = match (beyond, length) {
                (true, _) => Status::FileTooLarge,
                (_, 0) => Status::InvalidArgument,
                _ => Status::Busy,
            };
            return self.finish(now, id, Err(status));
        }
        self.write_bytes += length;
        let pieces = plan(at, &bytes, self.folds.inline_max(now));
        self.begin_batches(now, id, pieces, length);
    }

    /// Commits runs of a file that were written behind. `awaited`: somebody waits for it.
    pub(super) fn begin_flush(&mut self, now: Time, id: u64, ino: InodeId, runs: Vec<Run>, how: Committing, awaited: bool) {
        let work = Work::Write(Box::new(WriteJob::new(ino, Kind::Behind(how), VecDeque::new())));
        self.jobs.insert(id, Job { token: None, deadline: now + self.config.op_timeout, work, changes: false });
        let total: usize = runs.iter().map(|(_, bytes)| bytes.len()).sum();
        // What nobody waits for goes where it can stay.
        let inline_max = if awaited { self.folds.inline_max(now) } else { limits::INLINE_REST_BYTES_MAX };
        self.begin_batches(now, id, plan_runs(&runs, total <= inline_max, how.chunk_max), 0);
    }

    /// Turns the read of a slot into its rewriting.
    pub(super) fn start_rewrite(&mut self, now: Time, id: u64, slot: u64, version: u64, bytes: Bytes) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Work::Read(read) = &job.work else { return };
        let Purpose::Fold { waiter, .. } = read.purpose else { return };
        let at = WriteAt::Offset(slot * limits::SLOT_BYTES);
        let mut pieces = plan(at, &bytes, limits::INLINE_REST_BYTES_MAX);
        if pieces.iter().filter(|piece| piece.content != Content::Hole).count() > FOLDED_EXTENTS_MAX {
            // As many extents as now would be offered for folding for ever; zeros cost less than that.
            pieces = vec![Piece { at, length: bytes.len() as u64, content: Content::Chunk(bytes.clone()) }];
        }
        job.work = Work::Write(Box::new(WriteJob::new(read.ino, Kind::Fold { slot, version, waiter }, VecDeque::new())));
        job.deadline = now + self.config.op_timeout;
        if bytes.is_empty() {
            return self.finish(now, id, Ok(Reply::Done));
        }
        self.begin_batches(now, id, pieces, 0);
    }

    fn begin_batches(&mut self, now: Time, id: u64, pieces: Vec<Piece>, charged: usize) {
        let total: u64 = pieces.iter().map(|piece| piece.length).sum();
        let keep = total <= limits::SLOT_BYTES;
        let how = self.jobs.get(&id).and_then(|job| if let Work::Write(write) = &job.work { Some(write.kind) } else { None });
        let chunk_max = if let Some(Kind::Behind(how)) = how { how.chunk_max } else { limits::CHUNK_BYTES_MAX };
        let mut batches = batch(pieces, chunk_max, &mut self.session);
        // A fold must be one commit, or the second would meet a slot that the first has moved.
        let one = batches.len() == 1;
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        write.bytes_charged = charged;
        let uploads: Vec<(ChunkHash, Bytes, Instance)> =
            batches.iter().flat_map(|batch| &batch.chunks).map(|chunk| (chunk.hash, chunk.bytes.clone(), chunk.instance)).collect();
        write.batches.append(&mut batches);
        if matches!(write.kind, Kind::Fold { .. }) && !one {
            return self.finish(now, id, Err(Status::NotSupported));
        }
        for (hash, bytes, instance) in uploads {
            if keep {
                self.cache.insert(hash, 0, bytes.clone());
            }
            self.upload(now, id, hash, bytes, instance, &[]);
        }
        self.commit(now, id);
    }

    pub(super) fn on_uploaded(&mut self, now: Time, id: u64, uploaded: Uploaded) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Work::Write(write) = &mut job.work else { return };
        match uploaded.result {
            Ok(claim) => {
                job.deadline = now + self.config.op_timeout;
                let chunks = write.batches.iter_mut().flat_map(|batch| &mut batch.chunks);
                for chunk in chunks.filter(|chunk| chunk.instance == claim.instance) {
                    chunk.claim = Some(claim.clone());
                }
                self.commit(now, id);
            }
            Err(status) => {
                tracing::debug!(hash = ?uploaded.hash, %status, "a chunk could not be stored");
                if status == Status::NoSpace {
                    let (ino, kind) = (write.ino, write.kind);
                    self.folds.on_no_room(now);
                    if matches!(kind, Kind::Behind(_)) {
                        self.behind.on_no_room(ino);
                    }
                }
                self.finish(now, id, Err(status));
            }
        }
    }

    /// Commits the first batch once all its chunks have their receipts.
    fn commit(&mut self, now: Time, id: u64) {
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let (ino, kind) = (write.ino, write.kind);
        let Some(batch) = write.batches.front_mut() else { return };
        if batch.committing || batch.chunks.iter().any(|chunk| chunk.claim.is_none()) {
            return;
        }
        let last = write.batches.len() == 1;
        let yields = matches!(kind, Kind::Behind(how) if last && self.yields_with(ino, how.leaves));
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let Some(batch) = write.batches.front_mut() else { return };
        (batch.committing, batch.yields) = (true, yields);
        let patches = batch.patches.clone();
        let chunks = batch.chunks.iter().filter_map(|chunk| chunk.claim.clone()).collect();
        let op = match kind {
            Kind::Write { kill_privileges } => Op::Write { ino, patches, chunks, kill_privileges, behind: None },
            Kind::Behind(Committing { written, kill_privileges, .. }) => {
                Op::Write { ino, patches, chunks, kill_privileges, behind: Some(Behind { written, yields }) }
            }
            Kind::Fold { slot, version, .. } => Op::Fold { ino, slot, slot_version: version, patches, chunks },
        };
        if self.is_sabotaged(Sabotage::ChainIgnored) && matches!(kind, Kind::Behind(_)) {
            return self.forget_commit(now, id, op);
        }
        self.ask_op(now, op, Owner::Job(id));
    }

    /// Sends the commit and takes it for answered.
    fn forget_commit(&mut self, now: Time, id: u64, op: Op) {
        self.ask_op(now, op, Owner::Nobody);
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let (ino, batch) = (write.ino, write.batches.pop_front());
        write.yielded = batch.as_ref().is_some_and(|batch| batch.yields);
        let over = write.batches.is_empty();
        self.on_flush_part(now, ino, batch.map_or(0, |batch| batch.end()));
        if over { self.finish(now, id, Ok(Reply::Done)) } else { self.commit(now, id) }
    }

    pub(super) fn on_commit_answer(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Work::Write(write) = &mut job.work else { return };
        let replied = match result {
            Ok(Response::Replied { replied, .. }) => replied,
            Ok(Response::Answered { answer: Answer::Attributes(attributes), .. }) => {
                return self.fold_for(now, id, attributes.size / limits::SLOT_BYTES);
            }
            Ok(_) => return self.finish(now, id, Err(Status::Malformed)),
            Err(status) => return self.on_commit_refused(now, id, status),
        };
        job.deadline = now + self.config.op_timeout;
        let Some(batch) = write.batches.pop_front() else { return };
        for chunk in &batch.chunks {
            self.session.close_upload(chunk.instance);
        }
        write.retries = 0;
        if let Replied::Written { offset, attributes } = replied {
            let offset = *write.offset.get_or_insert(offset);
            let (ino, kind, done) = (write.ino, write.kind, write.batches.is_empty());
            // This commit happened, whatever became of attempts before it.
            write.yielded = batch.yields;
            self.folds.note_written(now, ino, offset, &batch.patches, attributes.size);
            match kind {
                Kind::Behind(_) => self.on_flush_part(now, ino, batch.end()),
                _ if done => self.on_written_through(now, ino),
                _ => {}
            }
            if done {
                return self.finish(now, id, Ok(Reply::Replied(Replied::Written { offset, attributes })));
            }
        } else if write.batches.is_empty() {
            return self.finish(now, id, Ok(Reply::Done));
        }
        self.commit(now, id);
    }

    fn on_commit_refused(&mut self, now: Time, id: u64, status: Status) {
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let (ino, kind) = (write.ino, write.kind);
        let Some(batch) = write.batches.front_mut() else { return };
        batch.committing = false;
        // Of a refusal it is certain that the commit did not happen.
        write.yielded |= batch.yields && matches!(status, Status::TimedOut | Status::Unavailable | Status::Disconnected | Status::Busy);
        write.retries += 1;
        let hopeless = write.retries > RETRIES_MAX || matches!(kind, Kind::Fold { .. }) && status != Status::MissingReceipts;
        if hopeless {
            if let (Kind::Fold { slot, .. }, Status::Conflict) = (kind, status) {
                self.folds.on_overtaken(now, ino, slot);
            }
            // A fold tells whoever waits for it that there may be room soon; the program only hears that there is none.
            let no_space = match status {
                Status::Reclaiming => !matches!(kind, Kind::Fold { .. }),
                Status::Busy => write.crowded,
                _ => false,
            };
            return self.finish(now, id, Err(if no_space { Status::NoSpace } else { status }));
        }
        match status {
            Status::MissingReceipts | Status::StaleMap => {
                write.retry = Retry::Put;
                self.await_map(now, id);
            }
            Status::Conflict if !batch.chunks.is_empty() => {
                write.retry = Retry::Anew;
                self.retry_later(now, id);
            }
            Status::Reclaiming => {
                write.retry = Retry::Commit;
                self.retry_later(now, id);
            }
            Status::NoSpace if batch.patches.iter().any(|patch| matches!(patch.source, Source::Inline(_))) => {
                self.outline(now, id);
            }
            Status::Busy => {
                let slot = match batch.patches.first().map(|patch| patch.at) {
                    Some(WriteAt::Offset(offset)) => Some(offset / limits::SLOT_BYTES),
                    _ => self.folds.size(ino).map(|size| size / limits::SLOT_BYTES),
                };
                write.retry = Retry::Commit;
                match slot {
                    Some(slot) => self.fold_for(now, id, slot),
                    None => {
                        let query = Request::Query(Query::Attributes { ino });
                        self.ask(now, query, Target::Leader, Owner::Job(id), self.config.op_timeout);
                    }
                }
            }
            _ => self.finish(now, id, Err(status)),
        }
    }

    /// The slot has too many extents: fold it, then commit again.
    fn fold_for(&mut self, now: Time, id: u64, slot: u64) {
        let Some(Work::Write(write)) = self.jobs.get(&id).map(|job| &job.work) else { return };
        if !self.folds.demand(write.ino, slot, id) {
            self.finish(now, id, Err(Status::Busy));
        }
    }

    /// The fold that a refused commit waited for is over, one way or the other. Where it found no room the commit finds none.
    pub(super) fn on_folded(&mut self, now: Time, id: u64, result: Result<(), Status>) {
        let no_space = matches!(result, Err(Status::NoSpace | Status::Reclaiming));
        match self.jobs.get_mut(&id).map(|job| &mut job.work) {
            Some(Work::Space(_)) if no_space => self.on_space_refused(now, id, result.expect_err("a refusal")),
            Some(Work::Write(write)) if no_space => {
                write.crowded = true;
                // Another chunk that was done meanwhile may have sent the commit again: its own answer decides.
                let committing = write.batches.front().is_some_and(|batch| batch.committing);
                match result {
                    Err(Status::NoSpace) if !committing => self.finish(now, id, Err(Status::NoSpace)),
                    _ => self.retry_later(now, id),
                }
            }
            _ => self.retry_later(now, id),
        }
    }

    pub(super) fn on_map_settled(&mut self, now: Time, id: u64) {
        self.retry_later(now, id);
    }

    pub(super) fn retry_later(&mut self, now: Time, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        let retries = match &job.work {
            Work::Write(write) => write.retries,
            Work::Space(space) => space.retries,
            _ => return,
        };
        let deadline = job.deadline;
        let at = now + self.backoff(retries);
        self.arm(at.min(deadline), Alarm::Job(id));
    }

    pub(super) fn retry_write(&mut self, now: Time, id: u64) {
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let from_scratch = write.retries > 2;
        let Some(batch) = write.batches.front_mut() else { return };
        let mut uploads: Vec<(ChunkHash, Bytes, Instance, Vec<NodeId>)> = Vec::new();
        if write.retry != Retry::Commit {
            for chunk in &mut batch.chunks {
                if write.retry == Retry::Anew {
                    let anew = self.session.open_upload();
                    self.session.close_upload(std::mem::replace(&mut chunk.instance, anew));
                }
                // Receipts that still hold are kept at first; a node may be wrong about them, so later all is put again.
                let Some(claim) = chunk.claim.take() else { continue };
                let receipts = if from_scratch || write.retry == Retry::Anew { Vec::new() } else { claim.receipts };
                uploads.push((chunk.hash, chunk.bytes.clone(), chunk.instance, receipts));
            }
        }
        for (hash, bytes, instance, receipts) in uploads {
            self.upload(now, id, hash, bytes, instance, &receipts);
        }
        self.commit(now, id);
    }

    /// The cluster has no room for inline content: the same bytes as chunks.
    fn outline(&mut self, now: Time, id: u64) {
        self.folds.on_inline_full(now);
        let Some(Work::Write(write)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let Some(batch) = write.batches.front_mut() else { return };
        let mut uploads = Vec::new();
        for patch in &mut batch.patches {
            let Source::Inline(bytes) = &patch.source else { continue };
            let (hash, bytes) = (ChunkHash::of(bytes), bytes.clone());
            patch.source = Source::Chunk { hash, offset: 0 };
            if !batch.chunks.iter().any(|chunk| chunk.hash == hash) {
                let instance = self.session.open_upload();
                batch.chunks.push(Chunk { hash, bytes: bytes.clone(), instance, claim: None });
                uploads.push((hash, bytes, instance));
            }
        }
        for (hash, bytes, instance) in uploads {
            self.upload(now, id, hash, bytes, instance, &[]);
        }
        self.commit(now, id);
    }

    /// Gives back what the work of an ended job held.
    pub(super) fn abandon_work(&mut self, now: Time, id: u64, work: Work, result: Result<(), Status>) {
        let done = result.is_ok();
        let waiter = match work {
            Work::Write(write) => {
                self.write_bytes -= write.bytes_charged;
                self.drop_uploads_of(now, id);
                for chunk in write.batches.iter().flat_map(|batch| &batch.chunks) {
                    self.session.close_upload(chunk.instance);
                }
                match write.kind {
                    Kind::Fold { slot, waiter, .. } => Some((write.ino, slot, waiter)),
                    Kind::Behind(_) => {
                        self.on_flush_ended(now, write.ino, result, write.yielded);
                        None
                    }
                    Kind::Write { .. } => None,
                }
            }
            Work::Read(read) => match read.purpose {
                Purpose::Fold { slot, waiter } => Some((read.ino, slot, waiter)),
                _ => None,
            },
            Work::Lock(lock) => {
                self.forget_lock(&lock);
                None
            }
            Work::Waiting(waiting) => {
                self.leave_waiting(id, waiting.files.into_keys());
                None
            }
            Work::Flush { files, .. } => {
                self.leave_waiting(id, files.into_keys());
                None
            }
            _ => None,
        };
        if let Some((ino, slot, waiter)) = waiter {
            tracing::debug!(%ino, slot, done, "fold ended");
            self.folds.on_ended(ino, slot);
            self.internal.extend(waiter.map(|job| Internal::Folded { job, result }));
        }
    }
}

impl WriteJob {
    fn new(ino: InodeId, kind: Kind, batches: VecDeque<Batch>) -> Self {
        WriteJob { ino, kind, batches, retry: Retry::Commit, retries: 0, offset: None, bytes_charged: 0, yielded: false, crowded: false }
    }
}

impl Batch {
    /// Behind the last patch; patches that append have no place.
    fn end(&self) -> u64 {
        self.patches.last().map_or(0, |patch| if let WriteAt::Offset(offset) = patch.at { offset + patch.length } else { 0 })
    }
}

/// Groups pieces into commits within the bounds, and opens an upload for every distinct chunk of each.
fn batch(pieces: Vec<Piece>, chunk_max: usize, session: &mut Session) -> VecDeque<Batch> {
    let mut batches = VecDeque::new();
    let mut batch = Batch::default();
    let mut pack = Pack::default();
    let mut inline_bytes = 0;
    for piece in pieces {
        if let Content::Pack(bytes) = &piece.content
            && pack.bytes.len() + bytes.len() > chunk_max
        {
            pack.seal(&mut batch, session);
        }
        let full = batch.patches.len() >= limits::WRITE_PATCHES_MAX
            || batch.chunks.len() + usize::from(!pack.patches.is_empty()) >= limits::WRITE_CHUNKS_MAX
            || inline_bytes >= limits::INLINE_WRITE_BYTES_MAX;
        if full {
            pack.seal(&mut batch, session);
            batches.push_back(std::mem::take(&mut batch));
            inline_bytes = 0;
        }
        let source = match piece.content {
            Content::Hole => Source::Hole,
            Content::Inline(bytes) => {
                inline_bytes += bytes.len();
                Source::Inline(bytes)
            }
            Content::Chunk(bytes) => Source::Chunk { hash: batch.take_chunk(bytes, session), offset: 0 },
            Content::Pack(bytes) => pack.take(batch.patches.len(), &bytes),
        };
        batch.patches.push(Patch { at: piece.at, length: piece.length, source });
    }
    pack.seal(&mut batch, session);
    batches.push_back(batch);
    batches
}

impl Batch {
    fn take_chunk(&mut self, bytes: Bytes, session: &mut Session) -> ChunkHash {
        let hash = ChunkHash::of(&bytes);
        if !self.chunks.iter().any(|chunk| chunk.hash == hash) {
            self.chunks.push(Chunk { hash, bytes, instance: session.open_upload(), claim: None });
        }
        hash
    }
}

/// A chunk that grows by small runs, and the patches that wait for its hash.
#[derive(Default)]
struct Pack {
    bytes: BytesMut,
    patches: Vec<usize>,
}

impl Pack {
    fn take(&mut self, patch: usize, bytes: &[u8]) -> Source {
        let offset = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.patches.push(patch);
        Source::Chunk { hash: ChunkHash([0; 32]), offset }
    }

    fn seal(&mut self, batch: &mut Batch, session: &mut Session) {
        if self.patches.is_empty() {
            return;
        }
        let sealed = batch.take_chunk(fitted(std::mem::take(&mut self.bytes)), session);
        for patch in self.patches.drain(..) {
            if let Source::Chunk { hash, .. } = &mut batch.patches[patch].source {
                *hash = sealed;
            }
        }
    }
}

/// Cuts runs that were written behind; those of one call are in order and end at slot borders.
fn plan_runs(runs: &[Run], inline: bool, chunk_max: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (offset, bytes) in runs {
        for (part, hole) in self::runs(*offset, bytes).into_iter().flat_map(|run| parts(run, chunk_max)) {
            let (at, length) = (WriteAt::Offset(offset + part.start as u64), part.len() as u64);
            let part = bytes.slice(part);
            let content = match part.len() {
                _ if hole => Content::Hole,
                _ if inline => Content::Inline(part),
                0..=limits::BEHIND_PACK_BYTES_MAX => Content::Pack(part),
                _ => Content::Chunk(part),
            };
            pieces.push(Piece { at, length, content });
        }
    }
    pieces
}

/// A run that is no hole in parts of that length at most.
fn parts((run, hole): (std::ops::Range<usize>, bool), length: usize) -> impl Iterator<Item = (std::ops::Range<usize>, bool)> {
    let step = if hole { run.len() } else { length };
    run.clone().step_by(step).map(move |from| (from..run.end.min(from + step), hole))
}

/// Cuts a write into runs: small ones inline, long zeros as holes, the rest chunks that end at slot borders.
pub(super) fn plan(at: WriteAt, bytes: &Bytes, inline_max: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let position = match at {
            WriteAt::Offset(offset) => offset + from as u64,
            WriteAt::End => 0,
        };
        // A small write may cross a border, where it is split when applied.
        let small = bytes.len() <= inline_max;
        let room = if small { bytes.len() } else { (limits::SLOT_BYTES - position % limits::SLOT_BYTES) as usize };
        let until = bytes.len().min(from + room);
        for (run, hole) in runs(position, &bytes[from..until]) {
            let part = bytes.slice(from + run.start..from + run.end);
            let length = part.len() as u64;
            let at = match at {
                WriteAt::Offset(_) => WriteAt::Offset(position + run.start as u64),
                WriteAt::End => WriteAt::End,
            };
            let content = match (hole, part.len() <= inline_max) {
                (true, _) => Content::Hole,
                (false, true) => Content::Inline(part),
                (false, false) => Content::Chunk(part),
            };
            pieces.push(Piece { at, length, content });
        }
        from = until;
    }
    pieces
}

/// Cuts at the borders of long runs of zeros; all zeros are one hole however short.
fn runs(position: u64, bytes: &[u8]) -> Vec<(std::ops::Range<usize>, bool)> {
    let mut runs: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_border = ZERO_BLOCK_BYTES - (position + at as u64) as usize % ZERO_BLOCK_BYTES;
        let end = bytes.len().min(at + to_border);
        let zero = is_zero(&bytes[at..end]);
        match runs.last_mut() {
            Some((run, hole)) if *hole == zero => run.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    if runs.len() == 1 {
        return runs;
    }
    let mut merged: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    for (run, zero) in runs {
        let hole = zero && run.len() >= limits::HOLE_BYTES_MIN;
        match merged.last_mut() {
            Some((last, false)) if !hole => last.end = run.end,
            _ => merged.push((run, hole)),
        }
    }
    merged
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && *bytes == ZEROS[..bytes.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(pieces: &[Piece]) -> Vec<(u64, char)> {
        let letter = |content: &Content| match content {
            Content::Hole => 'h',
            Content::Inline(_) => 'i',
            Content::Chunk(_) => 'c',
            Content::Pack(_) => 'p',
        };
        pieces.iter().map(|piece| (piece.length, letter(&piece.content))).collect()
    }

    #[test]
    fn small_writes_are_inline_and_large_ones_end_at_slot_borders() {
        let inline = limits::INLINE_WRITE_BYTES_MAX;
        let bytes = Bytes::from(vec![1u8; 3 << 20]);
        assert_eq!(lengths(&plan(WriteAt::Offset(5), &bytes.slice(..inline), inline)), [(inline as u64, 'i')]);
        let pieces = plan(WriteAt::Offset(1000), &bytes, inline);
        assert_eq!(lengths(&pieces), [((1 << 20) - 1000, 'c'), (1 << 20, 'c'), (1 << 20, 'c'), (1000, 'i')]);
        assert_eq!(pieces[2].at, WriteAt::Offset(2 << 20));
        let pieces = plan(WriteAt::End, &bytes.slice(..(1 << 20) + inline + 1), inline);
        assert_eq!(lengths(&pieces), [(1 << 20, 'c'), (inline as u64 + 1, 'c')]);
        assert!(pieces.iter().all(|piece| piece.at == WriteAt::End));
    }

    #[test]
    fn long_zeros_become_holes() {
        let inline = limits::INLINE_WRITE_BYTES_MAX;
        assert_eq!(lengths(&plan(WriteAt::Offset(3), &Bytes::from(vec![0; 10]), inline)), [(10, 'h')]);
        let mut bytes = vec![0u8; 1 << 20];
        bytes[200 << 10..300 << 10].fill(1);
        bytes[320 << 10] = 1;
        let pieces = plan(WriteAt::Offset(0), &bytes.into(), inline);
        assert_eq!(lengths(&pieces), [(200 << 10, 'h'), (124 << 10, 'c'), (700 << 10, 'h')]);
        assert_eq!(pieces[2].at, WriteAt::Offset(324 << 10));
    }

    #[test]
    fn batches_stay_within_their_bounds_and_name_equal_chunks_once() {
        let mut session = Session::new(crate::types::SessionId(1));
        let bytes = Bytes::from(vec![7u8; 40 << 20]);
        let batches = batch(plan(WriteAt::Offset(0), &bytes, 0), limits::CHUNK_BYTES_MAX, &mut session);
        assert!(batches.iter().all(|batch| batch.chunks.len() == 1 && batch.patches.len() <= limits::WRITE_PATCHES_MAX));
        assert_eq!(batches.iter().flat_map(|batch| &batch.patches).map(|patch| patch.length).sum::<u64>(), 40 << 20);
    }

    #[test]
    fn where_chunks_find_no_room_they_are_cut_smaller() {
        let mut session = Session::new(crate::types::SessionId(1));
        let runs = [
            (5, (0..100_000u32).map(|at| (at / 1000) as u8 + 1).collect()),
            (200_000, Bytes::from(vec![0; 100_000])),
            (400_000, Bytes::from(vec![8; 9_000])),
        ];
        let small = limits::CROWDED_CHUNK_BYTES_MIN;
        let batches = batch(plan_runs(&runs, false, small), small, &mut session);
        let chunks = batches.iter().flat_map(|batch| &batch.chunks);
        assert!(chunks.clone().all(|chunk| chunk.bytes.len() <= small) && chunks.count() > 4);
        let mut ends = batches.iter().flat_map(|batch| &batch.patches).map(|patch| (patch.at, patch.length));
        let mut end = 0;
        assert!(ends.all(|(at, length)| matches!(at, WriteAt::Offset(at) if at >= std::mem::replace(&mut end, at + length))));
        assert_eq!(batches.iter().flat_map(|batch| &batch.patches).map(|patch| patch.length).sum::<u64>(), 209_000);
    }
}
