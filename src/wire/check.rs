//! What a well-formed message must satisfy beyond its types: bounded lists, legal names, ranges that stay inside a chunk.
//!
//! Only what would make a later computation overflow or a queue grow is refused here, as `Malformed`, and costs the sender its
//! connection. What a program may ask for and be told off about (a file too large, a missing name) is left to who answers.

use crate::cluster_map::{ClusterMap, Member};
use crate::limits;
use crate::status::Status;
use crate::types::{Address, ByteRange, InodeId, Name, Rights, Timestamp};
use crate::wire::fsck::{Check, Checked, Position};
use crate::wire::message::{Allegiance, Body, Failure, Grant, Notice, RaftMessage, Recall, Request, Response, StatusReport};
use crate::wire::namespace::{Answer, ChunkClaim, ChunkPlace, Extent, NewKind, Op, Patch, Query, SetTime, Source, WriteAt};
use crate::xattr::XattrName;

/// Subtree hashes that the range of one chunk can need: two per level of the tree.
const PROOF_HASHES_MAX: usize = 2 * (usize::BITS - (limits::CHUNK_BYTES_MAX / limits::VERIFY_GROUP_BYTES).leading_zeros()) as usize;
/// Longest zone name, host name or explanation.
const TEXT_BYTES_MAX: usize = 255;
/// Longest path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Checks the body of a frame.
pub fn body(body: &Body) -> Result<(), Status> {
    match body {
        Body::Request(request) => self::request(request),
        Body::Response(Ok(response)) => self::response(response),
        Body::Response(Err(failure)) => self::failure(failure),
        Body::Notice(notice) => self::notice(notice),
    }
}

/// Checks a change of the tree. `apply` relies on it for nothing, it is total; this keeps nonsense out of the log.
pub fn op(op: &Op) -> Result<(), Status> {
    match op {
        Op::Create { name, kind, .. } => {
            if let NewKind::Symlink { target } = kind {
                require(target.len() <= limits::SYMLINK_BYTES_MAX)?;
            }
            self::name(name)
        }
        Op::Link { name, .. } | Op::Unlink { name, .. } | Op::Rmdir { name, .. } => self::name(name),
        Op::Rename { from_name, to_name, .. } => {
            name(from_name)?;
            name(to_name)
        }
        Op::SetAttributes { set, .. } => [set.atime, set.mtime, set.ctime].iter().flatten().try_for_each(|time| match time {
            SetTime::Now => Ok(()),
            SetTime::At(timestamp) => self::timestamp(timestamp),
        }),
        Op::Write { patches, chunks, .. } | Op::Fold { patches, chunks, .. } => {
            require(patches.len() <= limits::WRITE_PATCHES_MAX && chunks.len() <= limits::WRITE_PATCHES_MAX)?;
            patches.iter().try_for_each(patch)?;
            chunks.iter().try_for_each(claim)?;
            let Op::Write { behind: Some(behind), .. } = op else { return Ok(()) };
            timestamp(&behind.written)
        }
        Op::SetXattr { name, value, .. } => {
            require(value.len() <= limits::XATTR_VALUE_BYTES_MAX)?;
            xattr_name(name)
        }
        Op::RemoveXattr { name, .. } => xattr_name(name),
        Op::Acquire { .. } | Op::Yield { .. } | Op::Reserve { .. } => Ok(()),
        Op::SetLock { lock, .. } => require(lock.range.is_well_formed()),
        Op::Allocate { range, .. } => no_overflow(range.offset, range.length),
        Op::Copy { from_offset, to_offset, length, .. } => {
            no_overflow(*from_offset, *length)?;
            no_overflow(*to_offset, *length)
        }
    }
}

fn request(request: &Request) -> Result<(), Status> {
    match request {
        Request::Namespace { op, .. } => self::op(op),
        Request::Query(query) => self::query(query),
        Request::Get { range, .. } => chunk_range(range),
        Request::Join { member } => self::member(member),
        Request::Rejoin { to, .. } => address(to),
        Request::Delete { items } | Request::Audit { items } | Request::Lost { items } | Request::Copied { items } => {
            require(items.len() <= limits::UPLOADS_LIST_MAX)
        }
        Request::Ping { crowded, .. } => require(crowded.len() <= limits::NODES_MAX),
        Request::GiveUp { rights } => self::rights(rights),
        Request::Renew { flushing, .. } => require(flushing.len() <= limits::CLIENT_RECALLS_MAX),
        Request::Check(check) => self::check(check),
        Request::Map { .. }
        | Request::Status
        | Request::OpenSession { .. }
        | Request::Recalled { .. }
        | Request::EndSession
        | Request::Shutdown
        | Request::Drain { .. }
        | Request::Put { .. }
        | Request::LinkChunk { .. }
        | Request::Suspect { .. }
        | Request::Identify
        | Request::Leave
        | Request::Recover { .. }
        | Request::Debug(_)
        | Request::Muster => Ok(()),
    }
}

fn query(query: &Query) -> Result<(), Status> {
    match query {
        Query::Lookup { name, .. } => self::name(name),
        Query::Resolve { path } => {
            require(path.len() <= limits::PATH_NAMES_MAX)?;
            path.iter().try_for_each(name)
        }
        Query::Extents { range, .. } => no_overflow(range.offset, range.length),
        Query::Xattr { name, .. } => xattr_name(name),
        Query::Attributes { .. }
        | Query::ReadLink { .. }
        | Query::ReadDirectory { .. }
        | Query::Hold { .. }
        | Query::Release { .. }
        | Query::Space
        | Query::Settle { .. }
        | Query::Seek { .. }
        | Query::Xattrs { .. } => Ok(()),
        Query::Reclaim { held, rights, .. } => {
            require(held.len() <= limits::RECLAIM_ITEMS_MAX)?;
            self::rights(rights)
        }
        Query::TestLock { range, .. } | Query::LeaveLockQueue { range, .. } => require(range.is_well_formed()),
    }
}

fn rights(rights: &[(InodeId, Rights)]) -> Result<(), Status> {
    require(rights.len() <= limits::RECLAIM_ITEMS_MAX && rights.iter().all(|(_, rights)| rights.is_well_formed()))
}

fn grants(grants: &[Grant]) -> Result<(), Status> {
    require(grants.len() <= limits::GRANTS_MAX && grants.iter().all(|grant| grant.rights.is_well_formed()))
}

fn response(response: &Response) -> Result<(), Status> {
    match response {
        Response::Map(Some(map)) | Response::Joined { map } => self::map(map),
        Response::Status(report) => self::report(report),
        Response::Answered { answer, grants, .. } => {
            self::grants(grants)?;
            self::answer(answer)
        }
        Response::Replied { grants, .. } => self::grants(grants),
        Response::Renewed { time, .. } => timestamp(time),
        Response::Bytes { range, total, proof } => {
            chunk_range(range)?;
            require(*total as usize <= limits::CHUNK_BYTES_MAX && range.end() <= u64::from(*total) && proof.len() <= PROOF_HASHES_MAX)
        }
        Response::Identity { address, .. } => self::address(address),
        Response::Checked(checked) => self::checked(checked),
        Response::Mustered { allegiance: Allegiance::None { peers }, .. } => {
            require(peers.len() <= limits::NODES_MAX)?;
            peers.iter().try_for_each(self::address)
        }
        Response::Mustered { .. } => Ok(()),
        Response::Audited { verdicts } => require(verdicts.len() <= limits::UPLOADS_LIST_MAX),
        Response::Done | Response::Map(None) | Response::Receipt { .. } | Response::Pong { .. } | Response::Copied { .. } => Ok(()),
    }
}

fn check(check: &Check) -> Result<(), Status> {
    let most = limits::COMMAND_VISITS_MAX;
    match check {
        Check::Tables { after: Some(Position::Entry(_, name) | Position::Xattr(_, name)) } => require(name.len() <= limits::NAME_BYTES_MAX),
        Check::Tables { .. } | Check::Dark { .. } | Check::Missing { .. } | Check::Unnamed { .. } | Check::Audit => Ok(()),
        Check::Stamps { inos } => require(inos.len() <= most),
        Check::Weak { hashes } | Check::Untouched { hashes, .. } => require(hashes.len() <= most),
        Check::Names { after, wanted } => {
            require(wanted.len() <= most)?;
            after.iter().try_for_each(|(_, name)| self::name(name))
        }
        Check::Ascribed { items, .. } | Check::NoteLost { items } | Check::StillUnnamed { items } => require(items.len() <= most),
    }
}

/// How many records an answer speaks of is bounded by its frame; who adds them up bounds the sum.
fn checked(checked: &Checked) -> Result<(), Status> {
    match checked {
        Checked::Names { names, next } => {
            names.iter().try_for_each(|found| name(&found.name))?;
            next.iter().try_for_each(|(_, name)| self::name(name))
        }
        Checked::Tables(_)
        | Checked::Stamps(_)
        | Checked::Untouched(_)
        | Checked::Weak { .. }
        | Checked::Dark { .. }
        | Checked::Items(_)
        | Checked::Missing { .. }
        | Checked::Unnamed { .. }
        | Checked::Done => Ok(()),
    }
}

fn failure(failure: &Failure) -> Result<(), Status> {
    failure.leader.iter().try_for_each(|(_, address)| self::address(address))
}

fn notice(notice: &Notice) -> Result<(), Status> {
    match notice {
        Notice::Raft(message) => raft(message),
        Notice::Map(map) => self::map(map),
        Notice::Recall { items, .. } => {
            require(items.len() <= limits::RECALL_ITEMS_MAX)?;
            items.iter().try_for_each(|item| match item {
                Recall::Inode { keep, .. } => require(keep.is_well_formed()),
                Recall::Name { name, .. } => self::name(name),
            })
        }
        Notice::Snapshot { .. } | Notice::SnapshotProgress { .. } | Notice::SpaceShort | Notice::Stop | Notice::LockFree { .. } => Ok(()),
    }
}

/// Form only: whether a message makes sense for its term and sender is for who steps it.
fn raft(message: &RaftMessage) -> Result<(), Status> {
    require(message.entries.iter().all(|entry| entry.data.len() <= limits::RECORD_BYTES_MAX))
}

fn answer(answer: &Answer) -> Result<(), Status> {
    match answer {
        Answer::Target(target) => require(target.len() <= limits::SYMLINK_BYTES_MAX),
        Answer::Directory { entries, .. } => {
            require(entries.len() <= limits::READDIR_ENTRIES_MAX)?;
            entries.iter().try_for_each(|entry| name(&entry.name))
        }
        Answer::Extents { extents, chunks, fold, .. } => {
            let most = limits::EXTENTS_ANSWER_MAX;
            require(extents.len() <= most && chunks.len() <= most && fold.len() <= most)?;
            extents.iter().try_for_each(extent)?;
            chunks.iter().try_for_each(place)
        }
        Answer::Xattr(value) => require(value.len() <= limits::XATTR_VALUE_BYTES_MAX),
        Answer::Xattrs(names) => require(names.len() <= limits::XATTR_LIST_BYTES_MAX),
        Answer::Lock(found) => require(found.is_none_or(|(range, ..)| range.is_well_formed())),
        Answer::Done | Answer::Absent | Answer::Attributes(_) | Answer::Unchanged { .. } | Answer::Space(_) | Answer::Sought { .. } => {
            Ok(())
        }
    }
}

fn patch(patch: &Patch) -> Result<(), Status> {
    match patch.at {
        WriteAt::Offset(offset) => no_overflow(offset, patch.length)?,
        WriteAt::End => require(patch.length <= limits::FILE_BYTES_MAX)?,
    }
    source(&patch.source, patch.length)
}

fn extent(extent: &Extent) -> Result<(), Status> {
    no_overflow(extent.offset, extent.length)?;
    source(&extent.source, extent.length)
}

fn source(source: &Source, length: u64) -> Result<(), Status> {
    match source {
        Source::Hole => Ok(()),
        Source::Inline(bytes) => require(bytes.len() as u64 == length && bytes.len() <= limits::CHUNK_BYTES_MAX),
        Source::Chunk { offset, .. } => chunk_range(&ByteRange { offset: u64::from(*offset), length }),
    }
}

fn claim(claim: &ChunkClaim) -> Result<(), Status> {
    require(claim.receipts.len() <= limits::HOLDERS_MAX)?;
    chunk_length(claim.length)
}

fn place(place: &ChunkPlace) -> Result<(), Status> {
    require(place.holders.len() <= limits::HOLDERS_MAX)?;
    chunk_length(place.length)
}

fn map(map: &ClusterMap) -> Result<(), Status> {
    require(map.is_well_formed())?;
    map.awaited.iter().try_for_each(address)?;
    map.members.iter().try_for_each(member)
}

fn member(member: &Member) -> Result<(), Status> {
    require(member.zone.len() <= TEXT_BYTES_MAX)?;
    address(&member.address)
}

fn address(address: &Address) -> Result<(), Status> {
    match address {
        Address::Tcp { host, .. } => require((1..=TEXT_BYTES_MAX).contains(&host.len())),
        Address::Unix(path) => require((1..=SOCKET_PATH_BYTES_MAX).contains(&path.as_os_str().len())),
    }
}

fn report(report: &StatusReport) -> Result<(), Status> {
    require(report.members.len() <= limits::NODES_MAX && report.sessions.len() <= limits::SESSIONS_MAX)?;
    let standing = &report.standing;
    require(standing.quorums.len() <= 2 && standing.quorums.iter().all(|voters| voters.len() <= limits::NODES_MAX))?;
    require(standing.lineage.len() <= limits::LINEAGE_MAX)?;
    report.members.iter().try_for_each(|one| member(&one.member))
}

fn name(name: &Name) -> Result<(), Status> {
    name.check().map_err(|_| Status::Malformed)
}

fn xattr_name(name: &XattrName) -> Result<(), Status> {
    name.check().map_err(|_| Status::Malformed)
}

fn timestamp(timestamp: &Timestamp) -> Result<(), Status> {
    require(timestamp.nanos < 1_000_000_000)
}

fn chunk_length(length: u32) -> Result<(), Status> {
    require((1..=limits::CHUNK_BYTES_MAX).contains(&(length as usize)))
}

fn chunk_range(range: &ByteRange) -> Result<(), Status> {
    no_overflow(range.offset, range.length)?;
    require(range.end() <= limits::CHUNK_BYTES_MAX as u64)
}

fn no_overflow(offset: u64, length: u64) -> Result<(), Status> {
    require(offset.checked_add(length).is_some())
}

fn require(holds: bool) -> Result<(), Status> {
    if holds { Ok(()) } else { Err(Status::Malformed) }
}
