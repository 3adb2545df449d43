//! Snapshots as a stream of bytes, cut anywhere into slices: records with their length in front, header first, state hash last.
//!
//! Taken while commands go on being applied: the store keeps the old state of what changes before it is sent.

use dfs::limits;
use dfs::locks::LockTable;
use dfs::status::Status;
use dfs::types::{ChunkHash, Cookie, InodeId, SessionId};
use dfs::wire::codec;
use serde::{Deserialize, Serialize};

use super::chunks::ChunkRecord;
use super::extents::Slot;
use super::inode::Inode;
use super::session::{Outcome, Session};
use super::store::{Entry, Key, Record};
use super::{Header, Namespace};

/// One record of the stream.
#[derive(Debug, Serialize, Deserialize)]
enum Row {
    Header(Box<Header>),
    Inode(InodeId, Box<Inode>),
    Entry {
        directory: InodeId,
        #[serde(with = "dfs::types::serde_bytes_vec")]
        name: Vec<u8>,
        ino: InodeId,
        cookie: Cookie,
    },
    Slot(InodeId, u64, Box<Slot>),
    Chunk(ChunkHash, ChunkRecord),
    Session(SessionId, Session),
    Outcome(SessionId, u64, Box<Outcome>),
    Writer(InodeId, SessionId),
    /// The state hash that all rows together must give.
    End(u64),
    Locks(InodeId, Box<LockTable>),
    Xattr {
        ino: InodeId,
        #[serde(with = "dfs::types::serde_bytes_vec")]
        name: Vec<u8>,
        #[serde(with = "dfs::types::serde_bytes_vec")]
        value: Vec<u8>,
    },
}

/// A snapshot on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Bytes encoded but not in a slice yet.
    pending: Vec<u8>,
    state_hash: u64,
    ended: bool,
}

/// The one place that turns rows into bytes.
fn encode(row: &Row, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; 4]);
    codec::append(into, row, limits::SNAPSHOT_RECORD_BYTES_MAX).expect("a row is far smaller than its bound");
    let length = (into.len() - start - 4) as u32;
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The one place that turns bytes into rows.
fn decode(bytes: &[u8]) -> Result<Row, Status> {
    codec::decode(bytes, limits::SNAPSHOT_RECORD_BYTES_MAX)
}

fn row_of(key: Key, record: Record) -> Row {
    match (key, record) {
        (Key::Inode(ino), Record::Inode(inode)) => Row::Inode(ino, inode),
        (Key::Entry(directory, name), Record::Entry(entry)) => {
            Row::Entry { directory, name: name.to_vec(), ino: entry.ino, cookie: entry.cookie }
        }
        (Key::Slot(ino, index), Record::Slot(slot)) => Row::Slot(ino, index, slot),
        (Key::Chunk(hash), Record::Chunk(chunk)) => Row::Chunk(hash, chunk),
        (Key::Session(id), Record::Session(session)) => Row::Session(id, session),
        (Key::Outcome(id, number), Record::Outcome(outcome)) => Row::Outcome(id, number, outcome),
        (Key::Writer(ino), Record::Writer(session)) => Row::Writer(ino, session),
        (Key::Locks(ino), Record::Locks(table)) => Row::Locks(ino, table),
        (Key::Xattr(ino, name), Record::Xattr(value)) => Row::Xattr { ino, name: name.to_vec(), value: value.into() },
        _ => unreachable!("a record under a key of another table"),
    }
}

impl Namespace {
    /// Begins a snapshot of the present state, and gives the index it includes. One is taken at a time: an unfinished one is dropped.
    pub fn begin_snapshot(&mut self) -> u64 {
        let mut outgoing = Outgoing { pending: Vec::new(), state_hash: self.state_hash(), ended: false };
        encode(&Row::Header(Box::new(self.header.clone())), &mut outgoing.pending);
        self.store.begin_capture();
        self.outgoing = Some(outgoing);
        self.header.applied
    }

    /// The next slice, of at most `bytes_max` bytes, and whether it is the last; `None` without a snapshot or after the last slice.
    pub fn next_snapshot_slice(&mut self, bytes_max: usize) -> Option<(Vec<u8>, bool)> {
        let bytes_max = bytes_max.max(1);
        let outgoing = self.outgoing.as_mut()?;
        while outgoing.pending.len() <= bytes_max && !outgoing.ended {
            match self.store.next_captured() {
                Some((key, record)) => encode(&row_of(key, record), &mut outgoing.pending),
                None => {
                    encode(&Row::End(outgoing.state_hash), &mut outgoing.pending);
                    outgoing.ended = true;
                }
            }
        }
        if outgoing.pending.is_empty() {
            return None;
        }
        let rest = outgoing.pending.split_off(outgoing.pending.len().min(bytes_max));
        let slice = std::mem::replace(&mut outgoing.pending, rest);
        let last = outgoing.ended && outgoing.pending.is_empty();
        Some((slice, last))
    }

    /// Lets go of what the snapshot kept.
    pub fn end_snapshot(&mut self) {
        self.store.end_capture();
        self.outgoing = None;
    }

    /// Whether a snapshot has begun and not been ended.
    pub fn is_taking_snapshot(&self) -> bool {
        self.outgoing.is_some()
    }
}

/// Builds a namespace from slices in order.
#[derive(Debug, Default)]
pub struct SnapshotLoader {
    /// The beginning of a record whose end has not arrived.
    pending: Vec<u8>,
    namespace: Option<Box<Namespace>>,
    end: Option<u64>,
}

impl SnapshotLoader {
    /// An empty loader.
    pub fn new() -> Self {
        SnapshotLoader::default()
    }

    /// Takes the next slice. Errors: `Malformed`; the loader is then of no more use.
    pub fn push(&mut self, slice: &[u8]) -> Result<(), Status> {
        self.pending.extend_from_slice(slice);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        while let Some((head, tail)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > limits::SNAPSHOT_RECORD_BYTES_MAX {
                return Err(Status::Malformed);
            }
            let Some((row, tail)) = tail.split_at_checked(length) else { break };
            self.take(decode(row)?)?;
            rest = tail;
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    fn take(&mut self, row: Row) -> Result<(), Status> {
        if self.end.is_some() {
            return Err(Status::Malformed);
        }
        if let Row::Header(header) = row {
            if self.namespace.is_some() || !header.map.is_well_formed() && header.map.replicas != 0 {
                return Err(Status::Malformed);
            }
            self.namespace = Some(Box::new(Namespace::of_header(*header)));
            return Ok(());
        }
        let store = &mut self.namespace.as_mut().ok_or(Status::Malformed)?.store;
        match row {
            Row::Header(_) => return Err(Status::Malformed),
            Row::Inode(ino, inode) => store.put(Key::Inode(ino), Some(Record::Inode(inode))),
            Row::Entry { directory, name, ino, cookie } => store.put_entry(directory, &name, Some(Entry { ino, cookie })),
            Row::Slot(ino, index, mut slot) => {
                if !slot.is_well_formed() {
                    return Err(Status::Malformed);
                }
                slot.restore_sums();
                store.put(Key::Slot(ino, index), Some(Record::Slot(slot)));
            }
            Row::Chunk(hash, chunk) => store.put_chunk(hash, Some(chunk)),
            Row::Session(id, session) => store.put_session(id, Some(session)),
            Row::Outcome(id, number, outcome) => store.put(Key::Outcome(id, number), Some(Record::Outcome(outcome))),
            Row::Writer(ino, session) => store.put_writer(ino, Some(session)),
            Row::Xattr { ino, name, value } => store.put_xattr(ino, &name, Some(&value)),
            Row::End(hash) => self.end = Some(hash),
            Row::Locks(_, table) if !table.is_well_formed() => return Err(Status::Malformed),
            Row::Locks(ino, table) => store.put(Key::Locks(ino), Some(Record::Locks(table))),
        }
        Ok(())
    }

    /// The namespace. Errors: `Malformed` if the stream is not whole, `Corrupt` if the state hash differs.
    pub fn finish(self) -> Result<Namespace, Status> {
        let (Some(namespace), Some(end), true) = (self.namespace, self.end, self.pending.is_empty()) else {
            return Err(Status::Malformed);
        };
        if namespace.state_hash() != end {
            return Err(Status::Corrupt);
        }
        Ok(*namespace)
    }
}
