//! Reads: one question to the leader about where the bytes are, none under a right, then verified bytes from cache or holders.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Attributes, ByteRange, ChunkHash, FileKind, InodeId, Rights};
use crate::wire::message::{Request, Response};
use crate::wire::namespace::{Answer, ChunkPlace, Extent, LayoutVersion, Query, Source};

use super::asks::{Owner, Target};
use super::behind::{self, Run};
use super::core::{Alarm, Core, Work};
use super::layout::Layout;
use super::{Located, Output, Reply};

/// Rounds in which all holders said that they have no such bytes, after which unchanged extents are believed to be lost.
const DEFINITIVE_ROUNDS: u32 = 2;
/// Times that a read begins anew because what it was to lay over the committed bytes was committed meanwhile.
const OVERTAKEN_MAX: u32 = 4;
/// A chunk that small is read whole.
const WHOLE_BYTES_MAX: u64 = 64 << 10;

/// What is done with the layout or the bytes.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Read,
    Locate,
    /// Rewrite the slot, then tell the job that waits for it.
    Fold {
        slot: u64,
        waiter: Option<u64>,
    },
}

/// A read in progress.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) ino: InodeId,
    pub(super) range: ByteRange,
    pub(super) purpose: Purpose,
    /// The layout whose version the question named.
    asked: Option<Arc<Layout>>,
    /// Extents gathered so far, up to `gathered`; several answers where there are many.
    extents: Vec<Extent>,
    places: BTreeMap<ChunkHash, ChunkPlace>,
    gathered: u64,
    attributes: Option<Attributes>,
    version: LayoutVersion,
    fold: Vec<(u64, u64)>,
    parts: Vec<Part>,
    waiting: usize,
    failed: Option<Status>,
    /// Rounds without success, and what they were about.
    rounds: u32,
    definitive: u32,
    failed_places: Option<(LayoutVersion, Vec<ChunkPlace>)>,
    sequential: bool,
    /// What was dirty when the read began, and where the file ended by that: it may be committed before the read looks, or after.
    dirty: Vec<Run>,
    dirty_end: u64,
    commits: Option<u64>,
    restarts: u32,
}

/// A run of the answer.
#[derive(Clone, Debug)]
struct Part {
    length: u64,
    bytes: Option<Bytes>,
    /// Which part of which chunk is missing.
    chunk: Option<(ChunkHash, ByteRange)>,
}

impl ReadJob {
    pub(super) fn new(ino: InodeId, range: ByteRange, purpose: Purpose) -> Self {
        ReadJob {
            ino,
            range,
            purpose,
            asked: None,
            extents: Vec::new(),
            places: BTreeMap::new(),
            gathered: range.offset,
            attributes: None,
            version: LayoutVersion::default(),
            fold: Vec::new(),
            parts: Vec::new(),
            waiting: 0,
            failed: None,
            rounds: 0,
            definitive: 0,
            failed_places: None,
            sequential: false,
            dirty: Vec::new(),
            dirty_end: 0,
            commits: None,
            restarts: 0,
        }
    }

    /// Takes the extents from the layout.
    fn follow(&mut self, layout: &Layout) {
        self.version = layout.version;
        self.extents = layout.within(self.range).cloned().collect();
        for extent in &self.extents {
            if let Source::Chunk { hash, .. } = &extent.source {
                self.places.extend(layout.place(hash).map(|place| (*hash, place.clone())));
            }
        }
    }
}

impl Core {
    pub(super) fn start_read(&mut self, now: Time, token: u64, ino: InodeId, range: ByteRange) {
        let deadline = now + self.config.op_timeout;
        let mut read = ReadJob::new(ino, range, Purpose::Read);
        if self.behind.is_dirty(ino) && range.length <= limits::CLIENT_READ_BYTES_MAX && range.end() <= limits::FILE_BYTES_MAX {
            (read.dirty, read.dirty_end, read.commits) = (self.behind.within(ino, range), self.behind.end(ino), self.behind.commits(ino));
            // Without a lease somebody may have taken the file, and changed it.
            if self.rights.may(now, ino, Rights::WRITE) && behind::cover(range, &read.dirty) {
                let mut bytes = vec![0; range.length as usize];
                behind::lay(&mut bytes, range.offset, &read.dirty);
                return self.output(Output::Done { token, result: Ok(Reply::Bytes(bytes.into())) });
            }
        }
        let known = self.layouts.find(ino, range);
        read.sequential = self.layouts.note_read(ino, range);
        let sequential = read.sequential;
        let job = self.add_job(Some(token), deadline, Work::Read(Box::new(read)), false);
        if range.length > limits::CLIENT_READ_BYTES_MAX || range.end() > limits::FILE_BYTES_MAX {
            return self.finish(now, job, Err(Status::InvalidArgument));
        }
        if self.trust_layout(now, job, known.as_ref()) {
            return;
        }
        if let Some(layout) = &known {
            // The layout is most likely still right, and chunks are right for ever: fetch while the leader is asked.
            self.fetch_ahead(now, layout, range, sequential);
        }
        self.ask_layout(now, job, known);
    }

    /// Goes on without asking, if a right says that the file still is what the layout describes.
    fn trust_layout(&mut self, now: Time, id: u64, known: Option<&Arc<Layout>>) -> bool {
        let Some(Work::Read(read)) = self.jobs.get(&id).map(|job| &job.work) else { return false };
        let (ino, range) = (read.ino, read.range);
        let Some(attributes) = self.committed_attributes(now, ino).filter(|attributes| attributes.kind == FileKind::File) else {
            return false;
        };
        let wanted = ByteRange { offset: range.offset, length: range.end().min(attributes.size).saturating_sub(range.offset) };
        let layout = known.cloned().or_else(|| self.layouts.find(ino, wanted));
        let layout = layout.filter(|layout| layout.version.data == attributes.data_version);
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return false };
        match layout {
            Some(layout) => read.follow(&layout),
            None if wanted.length == 0 => {}
            None => return false,
        }
        read.attributes = Some(attributes);
        read.gathered = range.end();
        self.on_gathered(now, id);
        true
    }

    pub(super) fn start_locate(&mut self, now: Time, token: u64, ino: InodeId, range: ByteRange) {
        let deadline = now + self.config.op_timeout;
        let job = self.add_job(Some(token), deadline, Work::Read(Box::new(ReadJob::new(ino, range, Purpose::Locate))), false);
        self.ask_layout(now, job, None);
    }

    /// Asks for what of the range is not gathered yet.
    pub(super) fn ask_layout(&mut self, now: Time, job: u64, known: Option<Arc<Layout>>) {
        let Some(Work::Read(read)) = self.jobs.get_mut(&job).map(|job| &mut job.work) else { return };
        let version = known.as_ref().map(|layout| layout.version);
        read.asked = known;
        let mut range = ByteRange { offset: read.gathered, length: read.range.end().saturating_sub(read.gathered) };
        let large = read.range.length >= 128 << 10 || read.sequential;
        if version.is_none() && large && matches!(read.purpose, Purpose::Read) {
            // The reader will go on: learn where the next megabytes are with the same question.
            range.length = range.length.max(16 * limits::SLOT_BYTES).min(limits::FILE_BYTES_MAX - range.offset);
        }
        let query = Query::Extents { ino: read.ino, range, known: version };
        self.ask(now, Request::Query(query), Target::Leader, Owner::Job(job), self.config.op_timeout);
    }

    pub(super) fn on_layout_answer(&mut self, now: Time, id: u64, result: Result<Response, Status>) {
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let answer = match result {
            Ok(Response::Answered { answer, .. }) => answer,
            Ok(_) => return self.finish(now, id, Err(Status::Malformed)),
            Err(status) => return self.finish(now, id, Err(status)),
        };
        match answer {
            Answer::Unchanged { attributes } => {
                let Some(layout) = read.asked.take() else { return self.finish(now, id, Err(Status::Malformed)) };
                read.attributes = Some(attributes);
                read.gathered = read.range.end();
                read.follow(&layout);
                self.on_gathered(now, id);
            }
            Answer::Extents { attributes, version, extents, chunks, truncated, fold } => {
                let start = read.gathered;
                let asked_end = read.range.end();
                let end = extents.last().map_or(start, |extent| extent.offset.saturating_add(extent.length));
                if truncated && end <= start {
                    return self.finish(now, id, Err(Status::Malformed));
                }
                let covered_end = if truncated { end } else { end.max(asked_end) };
                let mut chunks = chunks;
                chunks.sort_by_key(|place| place.hash);
                read.attributes = Some(attributes);
                read.version = version;
                read.gathered = covered_end;
                read.fold.extend_from_slice(&fold);
                let (ino, whole) = (read.ino, matches!(read.purpose, Purpose::Read));
                let covered = ByteRange { offset: start, length: covered_end - start };
                read.places.extend(chunks.iter().map(|place| (place.hash, place.clone())));
                read.extents.extend(extents.iter().filter(|extent| extent.offset < asked_end).cloned());
                if read.extents.len() > limits::LOCATE_EXTENTS_MAX {
                    return self.finish(now, id, Err(Status::Range));
                }
                let more = covered_end < asked_end.min(attributes.size);
                if whole {
                    self.folds.hint(now, ino, &fold, &extents);
                    let layout = Layout { version, covered, extents, chunks };
                    self.layouts.insert(ino, Arc::new(layout));
                }
                if more { self.ask_layout(now, id, None) } else { self.on_gathered(now, id) }
            }
            _ => self.finish(now, id, Err(Status::Malformed)),
        }
    }

    /// All extents of the range are known.
    fn on_gathered(&mut self, now: Time, id: u64) {
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let Some(attributes) = read.attributes else { return };
        if let Purpose::Locate = read.purpose {
            let extents = std::mem::take(&mut read.extents);
            let chunks = std::mem::take(&mut read.places).into_values().collect();
            let members = self.map.as_ref().map(|map| map.members.clone()).unwrap_or_default();
            return self.finish(now, id, Ok(Reply::Located(Located { attributes, extents, chunks, members })));
        }
        if let Purpose::Fold { slot, waiter } = read.purpose {
            let gains = read.fold.iter().any(|(at, _)| *at == slot);
            // What was unlinked goes away by itself.
            if !gains || (attributes.links == 0 && waiter.is_none()) {
                return self.finish(now, id, Ok(Reply::Done));
            }
        }
        let end = read.range.end().min(attributes.size);
        let wanted = ByteRange { offset: read.range.offset, length: end.saturating_sub(read.range.offset) };
        let parts = match plan_parts(&read.extents, &read.places, wanted) {
            Ok(parts) => parts,
            Err(status) => return self.finish(now, id, Err(status)),
        };
        read.parts = parts;
        read.failed = None;
        read.waiting = 0;
        self.fetch_parts(now, id);
        self.read_further(now, id);
    }

    /// Takes parts from the cache and fetches the others.
    fn fetch_parts(&mut self, now: Time, id: u64) {
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        let sequential = read.sequential || !matches!(read.purpose, Purpose::Read);
        let mut fetches: BTreeMap<ChunkHash, ByteRange> = BTreeMap::new();
        for part in read.parts.iter_mut().filter(|part| part.bytes.is_none()) {
            let Some((hash, range)) = part.chunk else { continue };
            part.bytes = self.cache.find(&hash, range);
            if part.bytes.is_none() {
                let place = &read.places[&hash];
                let range = choose_range(range, place.length as u64, sequential);
                let union = fetches.entry(hash).or_insert(range);
                let end = union.end().max(range.end());
                union.offset = union.offset.min(range.offset);
                union.length = end - union.offset;
            }
        }
        read.waiting = fetches.len();
        if fetches.is_empty() {
            return self.on_parts(now, id);
        }
        let places: Vec<(ChunkPlace, ByteRange)> = fetches.into_iter().map(|(hash, range)| (read.places[&hash].clone(), range)).collect();
        for (place, range) in places {
            self.fetch(now, Some(id), &place, range);
        }
    }

    pub(super) fn on_fetched(&mut self, now: Time, id: u64, hash: ChunkHash, offset: u64, result: Result<Bytes, Status>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Work::Read(read) = &mut job.work else { return };
        if read.waiting == 0 {
            return;
        }
        read.waiting -= 1;
        match result {
            Ok(bytes) => {
                job.deadline = now + self.config.op_timeout;
                let end = offset + bytes.len() as u64;
                for part in read.parts.iter_mut().filter(|part| part.bytes.is_none()) {
                    if let Some((_, range)) = part.chunk.filter(|(at, range)| *at == hash && range.offset >= offset && range.end() <= end) {
                        let from = (range.offset - offset) as usize;
                        part.bytes = Some(bytes.slice(from..from + range.length as usize));
                    }
                }
            }
            Err(Status::UnknownChunk) if read.failed.is_none() => read.failed = Some(Status::UnknownChunk),
            Err(status) => read.failed = Some(if status == Status::UnknownChunk { Status::Unavailable } else { status }),
        }
        if read.waiting == 0 {
            self.on_parts(now, id);
        }
    }

    /// Nothing is on its way any more: done, or another round.
    fn on_parts(&mut self, now: Time, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let deadline = job.deadline;
        let Work::Read(read) = &mut job.work else { return };
        if read.parts.iter().all(|part| part.bytes.is_some()) {
            let bytes = assemble(&read.parts);
            return self.on_bytes(now, id, bytes);
        }
        read.rounds += 1;
        let missing: Vec<ChunkPlace> = read
            .parts
            .iter()
            .filter(|part| part.bytes.is_none())
            .filter_map(|part| part.chunk.and_then(|(hash, _)| read.places.get(&hash)).cloned())
            .collect();
        let about = Some((read.version, missing));
        let unchanged = read.failed_places == about;
        read.failed_places = about;
        let definitive = read.failed == Some(Status::UnknownChunk);
        read.definitive = if !definitive {
            0
        } else if unchanged {
            read.definitive + 1
        } else {
            1
        };
        if read.definitive >= DEFINITIVE_ROUNDS || now >= deadline {
            return self.finish(now, id, Err(Status::Unavailable));
        }
        let rounds = read.rounds;
        let at = now + self.backoff(rounds);
        self.arm(at.min(deadline), Alarm::Job(id));
    }

    /// Another round, from fresh extents: the bytes may have moved.
    pub(super) fn retry_read(&mut self, now: Time, id: u64) {
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return };
        read.gathered = read.range.offset;
        read.extents.clear();
        read.places.clear();
        read.fold.clear();
        read.parts.clear();
        self.ask_layout(now, id, None);
    }

    fn on_bytes(&mut self, now: Time, id: u64, bytes: Bytes) {
        let Some(Work::Read(read)) = self.jobs.get(&id).map(|job| &job.work) else { return };
        match read.purpose {
            Purpose::Fold { slot, .. } => {
                let version = read.fold.iter().find(|(at, _)| *at == slot).map_or(0, |(_, version)| *version);
                self.start_rewrite(now, id, slot, version, bytes);
            }
            _ => {
                if self.is_overtaken(id) {
                    return self.retry_read(now, id);
                }
                let bytes = self.lay_over(id, bytes);
                self.finish(now, id, Ok(Reply::Bytes(bytes)));
            }
        }
    }

    /// Whether some of what was dirty has been committed meanwhile: a later write may have gone through then, and what was read may have it or
    /// not. Begins anew with what is dirty now, a few times.
    fn is_overtaken(&mut self, id: u64) -> bool {
        let Some(Work::Read(read)) = self.jobs.get_mut(&id).map(|job| &mut job.work) else { return false };
        let (ino, range, now_at) = (read.ino, read.range, self.behind.commits(read.ino));
        if read.dirty.is_empty() || read.commits == now_at || read.restarts >= OVERTAKEN_MAX {
            return false;
        }
        read.restarts += 1;
        (read.dirty, read.dirty_end, read.commits) = (self.behind.within(ino, range), self.behind.end(ino), now_at);
        true
    }

    /// Lays over committed bytes what was dirty when the read began. Not what is dirty now: between the two something may have been written
    /// through, of which the committed bytes know nothing yet, and the reader would see a later write without an earlier one.
    fn lay_over(&self, id: u64, bytes: Bytes) -> Bytes {
        let Some(Work::Read(read)) = self.jobs.get(&id).map(|job| &job.work) else { return bytes };
        let end = read.dirty_end.min(read.range.end());
        let length = (end.saturating_sub(read.range.offset) as usize).max(bytes.len());
        if read.dirty.is_empty() && length == bytes.len() {
            return bytes;
        }
        let mut laid = BytesMut::with_capacity(length);
        laid.extend_from_slice(&bytes);
        laid.resize(length, 0);
        behind::lay(&mut laid, read.range.offset, &read.dirty);
        laid.freeze()
    }

    /// Fetches what a read of the range will want, for nobody in particular.
    fn fetch_ahead(&mut self, now: Time, layout: &Layout, range: ByteRange, whole: bool) {
        for extent in layout.within(range) {
            let Source::Chunk { hash, offset } = &extent.source else { continue };
            let Some(place) = layout.place(hash) else { continue };
            if self.fetching_bytes() >= limits::CLIENT_READ_AHEAD_BYTES_MAX {
                return;
            }
            let from = range.offset.saturating_sub(extent.offset).min(extent.length);
            let until = range.end().saturating_sub(extent.offset).min(extent.length);
            let part = ByteRange { offset: *offset as u64 + from, length: until.saturating_sub(from) };
            if part.length > 0 && part.end() <= place.length as u64 && self.cache.find(hash, part).is_none() {
                let part = choose_range(part, place.length as u64, whole);
                self.fetch(now, None, place, part);
            }
        }
    }

    /// A sequential reader finds the next chunks on their way.
    fn read_further(&mut self, now: Time, id: u64) {
        let Some(Work::Read(read)) = self.jobs.get(&id).map(|job| &job.work) else { return };
        if !read.sequential || !matches!(read.purpose, Purpose::Read) {
            return;
        }
        let ahead = ByteRange { offset: read.range.end(), length: limits::CLIENT_READ_AHEAD_CHUNKS * limits::SLOT_BYTES };
        if let Some(layout) = self.layouts.any(read.ino) {
            self.fetch_ahead(now, &layout, ahead, true);
        }
    }
}

/// Which range of a chunk to ask for: all of it where that is cheap, likely to be wanted, or most of it anyway.
fn choose_range(range: ByteRange, total: u64, sequential: bool) -> ByteRange {
    if sequential || total <= WHOLE_BYTES_MAX && range.length >= total / 4 || range.length >= total / 2 {
        return ByteRange { offset: 0, length: total };
    }
    crate::chunk_tree::widen(range, total)
}

/// Cuts the wanted range along the extents. What the leader sent must describe it without gaps and name chunks that exist.
fn plan_parts(extents: &[Extent], places: &BTreeMap<ChunkHash, ChunkPlace>, wanted: ByteRange) -> Result<Vec<Part>, Status> {
    let mut parts: Vec<Part> = Vec::new();
    let mut at = wanted.offset;
    for extent in extents {
        let extent_end = extent.offset.saturating_add(extent.length);
        if extent_end <= at || at >= wanted.end() {
            continue;
        }
        if extent.offset > at {
            return Err(Status::Malformed);
        }
        let skip = at - extent.offset;
        let length = extent_end.min(wanted.end()) - at;
        let part = match &extent.source {
            Source::Hole => Part { length, bytes: Some(Bytes::new()), chunk: None },
            Source::Inline(bytes) => {
                let (from, until) = (skip as usize, (skip + length) as usize);
                if until > bytes.len() {
                    return Err(Status::Malformed);
                }
                Part { length, bytes: Some(bytes.slice(from..until)), chunk: None }
            }
            Source::Chunk { hash, offset } => {
                let range = ByteRange { offset: *offset as u64 + skip, length };
                if places.get(hash).is_none_or(|place| range.end() > place.length as u64) {
                    return Err(Status::Malformed);
                }
                Part { length, bytes: None, chunk: Some((*hash, range)) }
            }
        };
        parts.push(part);
        at += length;
    }
    if at < wanted.end() {
        return Err(Status::Malformed);
    }
    Ok(parts)
}

/// One run is handed on as it is; several are copied together once. Holes carry no bytes.
fn assemble(parts: &[Part]) -> Bytes {
    if let [Part { length, bytes: Some(bytes), .. }] = parts
        && bytes.len() as u64 == *length
    {
        return bytes.clone();
    }
    let total: u64 = parts.iter().map(|part| part.length).sum();
    let mut whole = BytesMut::with_capacity(total as usize);
    for part in parts {
        let bytes = part.bytes.as_deref().unwrap_or_default();
        whole.extend_from_slice(bytes);
        whole.resize(whole.len() + part.length as usize - bytes.len(), 0);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Instance, SessionId};

    fn place(n: u8, length: u32) -> ChunkPlace {
        ChunkPlace { hash: ChunkHash([n; 32]), length, instance: Instance { session: SessionId(1), counter: 1 }, holders: Vec::new() }
    }

    fn extent(offset: u64, length: u64, source: Source) -> Extent {
        Extent { offset, length, source }
    }

    #[test]
    fn parts_follow_the_extents_and_gaps_are_refused() {
        let places: BTreeMap<_, _> = [(ChunkHash([1; 32]), place(1, 100))].into();
        let extents = vec![
            extent(0, 50, Source::Chunk { hash: ChunkHash([1; 32]), offset: 10 }),
            extent(50, 10, Source::Hole),
            extent(60, 4, Source::Inline(Bytes::from_static(b"abcd"))),
        ];
        let mut parts = plan_parts(&extents, &places, ByteRange { offset: 45, length: 18 }).unwrap();
        assert_eq!(parts[0].chunk, Some((ChunkHash([1; 32]), ByteRange { offset: 55, length: 5 })));
        parts[0].bytes = Some(Bytes::from_static(b"12345"));
        assert_eq!(&assemble(&parts)[..], b"12345\0\0\0\0\0\0\0\0\0\0abc");
        assert!(plan_parts(&extents, &places, ByteRange { offset: 60, length: 5 }).is_err());
        assert!(plan_parts(&extents[1..], &places, ByteRange { offset: 45, length: 8 }).is_err());
        let beyond = vec![extent(0, 95, Source::Chunk { hash: ChunkHash([1; 32]), offset: 10 })];
        assert!(plan_parts(&beyond, &places, ByteRange { offset: 0, length: 95 }).is_err());
        assert!(assemble(&plan_parts(&extents, &places, ByteRange { offset: 3, length: 0 }).unwrap()).is_empty());
    }

    #[test]
    fn a_page_of_a_large_chunk_is_read_in_groups() {
        let range = ByteRange { offset: 5000, length: 4096 };
        assert_eq!(choose_range(range, 1 << 20, false), ByteRange { offset: 0, length: 16 << 10 });
        assert_eq!(choose_range(range, 1 << 20, true), ByteRange { offset: 0, length: 1 << 20 });
        assert_eq!(choose_range(ByteRange { offset: 0, length: 600 << 10 }, 1 << 20, false).length, 1 << 20);
    }
}
