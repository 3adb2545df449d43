//! Checking a cluster: what `dfs fsck` asks, slice by slice, and what nodes answer.
//!
//! A node keeps nothing of a check between two requests: where it stands travels in the request. Each answer is computed at one moment
//! from what the node has applied by then, and visits a bounded number of records. What belongs together over several slices is put
//! together, and looked at again if it changed meanwhile, by who asks ([`crate::fsck`]).

use serde::{Deserialize, Serialize};

use crate::types::{ChunkHash, InodeId, Instance, Name, NodeId, SessionId};

/// An upload of a chunk.
pub type Upload = (ChunkHash, Instance);

/// A record of the namespace, in the order in which they are visited.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Position {
    Inode(InodeId),
    Entry(InodeId, #[serde(with = "crate::types::serde_bytes_vec")] Vec<u8>),
    Slot(InodeId, u64),
    Chunk(ChunkHash),
    Session(SessionId),
    Outcome(SessionId, u64),
    Writer(InodeId),
    Locks(InodeId),
    Xattr(InodeId, #[serde(with = "crate::types::serde_bytes_vec")] Vec<u8>),
}

/// A question. Those of the first part are for the leader, those of the second for the storage node that is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// The next records of all tables.
    Tables { after: Option<Position> },
    /// What these inodes look like now, each as one number that changes with every change of the inode, of its names and of its content.
    Stamps { inos: Vec<InodeId> },
    /// Which of these chunks have gained and given up no reference since that log index, for certain. The node takes note of such changes from
    /// the first slice of `Tables` on.
    Untouched { since: u64, hashes: Vec<ChunkHash> },
    /// Which of these chunks have fewer living holders than they need.
    Weak { hashes: Vec<ChunkHash> },
    /// The next files with content that no living node holds.
    Dark { after: Option<(InodeId, u64)> },
    /// The next names of directories, and of what is wanted.
    Names { after: Option<(InodeId, Name)>, wanted: Vec<InodeId> },
    /// Which of these uploads that node is recorded to hold.
    Ascribed { node: NodeId, items: Vec<Upload> },

    /// The next chunks that the node is recorded to hold and does not. `applied`: `Busy` before the node has applied the log as far.
    Missing { applied: u64, after: Option<ChunkHash> },
    /// Take note that these copies are lost, unless they are here: the leader will hear of it. Answers those that are not here.
    NoteLost { items: Vec<Upload> },
    /// The next uploads that the node keeps and nobody refers to or may still name. `applied` as in `Missing`.
    Unnamed { applied: u64, after: Option<Upload> },
    /// Which of these uploads are still so.
    StillUnnamed { items: Vec<Upload> },
    /// Ask the leader about all uploads now, and delete what it says is garbage.
    Audit,
}

/// The answer to the check of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    Tables(Box<TablesSlice>),
    /// `None`: there is no such inode.
    Stamps(Vec<Option<u64>>),
    Untouched(Vec<ChunkHash>),
    /// `short` have some living holder, `dark` have none. What is referenced no more is neither.
    Weak {
        short: Vec<ChunkHash>,
        dark: Vec<ChunkHash>,
    },
    Dark {
        inos: Vec<InodeId>,
        next: Option<(InodeId, u64)>,
    },
    Names {
        names: Vec<FoundName>,
        next: Option<(InodeId, Name)>,
    },
    /// Ascribed, NoteLost, StillUnnamed.
    Items(Vec<Upload>),
    /// `visited`: chunks that the node is recorded to hold.
    Missing {
        visited: u64,
        missing: Vec<Upload>,
        next: Option<ChunkHash>,
    },
    /// `pending` of the `visited` uploads may yet be committed.
    Unnamed {
        visited: u64,
        pending: u64,
        unnamed: Vec<Upload>,
        next: Option<Upload>,
    },
    Done,
}

/// Some records, checked for what each must satisfy with those that it names, and counted for what must be equal in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablesSlice {
    /// Index of the last log entry applied: equal ones mean that nothing has changed between two slices.
    pub applied: u64,
    pub inodes: u64,
    /// Inodes without a name.
    pub orphans: u64,
    pub names: u64,
    pub chunks: u64,
    pub flaws: Vec<Flaw>,
    /// What records of inodes claim counts negative, what is found positive: over all slices each inode comes to nothing.
    pub tallies: Vec<Tally>,
    /// The same for references to chunks.
    pub references: Vec<(ChunkHash, i64)>,
    /// Chunks with too few living holders, and with none.
    pub short: Vec<ChunkHash>,
    pub dark: Vec<ChunkHash>,
    /// Of the records in this slice.
    pub sums: Sums,
    /// What the node keeps as the sums of all records.
    pub kept: Sums,
    /// Where to go on; `None` at the end.
    pub next: Option<Position>,
}

/// What the node adds up over all records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub inodes: u64,
    pub referenced_bytes: u64,
    pub referenced_chunks: u64,
    pub charged_bytes: u64,
    pub namespace_bytes: u64,
    pub inline_bytes: u64,
    pub reserved_bytes: u64,
    /// Of the digests, wrapping.
    pub digest: u64,
}

/// What was counted of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub ino: InodeId,
    pub names: i64,
    pub entries: i64,
    pub subdirectories: i64,
    pub blocks: i64,
    /// With the record of the inode: as [`Check::Stamps`] gives it.
    pub stamp: Option<u64>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundName {
    pub directory: InodeId,
    pub name: Name,
    pub ino: InodeId,
}

/// A record that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    pub at: Position,
    pub rule: Rule,
}

/// The rules that a record keeps with those that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    NameIsLegal,
    NameHasInode,
    NameInDirectory,
    CookieWasGiven,
    ParentIsKnown,
    NumberWasGiven,
    LinksArePossible,
    OrphanIsListed,
    CutsAreOrdered,
    AttributesAreFlagged,
    SlotInFile,
    SlotIsWellFormed,
    SlotVersionWasGiven,
    SlotSumsAreRight,
    ContentEndsInFile,
    ExtentHasChunk,
    ReferencesAreLeft,
    HoldersAreSorted,
    OutcomeInWindow,
    WriterIsSession,
    LocksHaveInode,
    XattrHasInode,
    XattrIsLegal,
}

impl Sums {
    /// Adds those of another part.
    pub fn add(&mut self, other: &Sums) {
        let Sums { inodes, referenced_bytes, referenced_chunks, charged_bytes, namespace_bytes, inline_bytes, reserved_bytes, digest } =
            *other;
        // Wrapping, because they come over the network.
        for (sum, part) in [
            (&mut self.inodes, inodes),
            (&mut self.referenced_bytes, referenced_bytes),
            (&mut self.referenced_chunks, referenced_chunks),
            (&mut self.charged_bytes, charged_bytes),
            (&mut self.namespace_bytes, namespace_bytes),
            (&mut self.inline_bytes, inline_bytes),
            (&mut self.reserved_bytes, reserved_bytes),
            (&mut self.digest, digest),
        ] {
            *sum = sum.wrapping_add(part);
        }
    }
}

impl Check {
    /// Whether only the leader can tell.
    pub fn is_for_leader(&self) -> bool {
        match self {
            Check::Tables { .. }
            | Check::Stamps { .. }
            | Check::Untouched { .. }
            | Check::Weak { .. }
            | Check::Dark { .. }
            | Check::Names { .. }
            | Check::Ascribed { .. } => true,
            Check::Missing { .. } | Check::NoteLost { .. } | Check::Unnamed { .. } | Check::StillUnnamed { .. } | Check::Audit => false,
        }
    }
}

impl Rule {
    /// What is wrong where the rule is broken.
    pub fn complaint(self) -> &'static str {
        match self {
            Rule::NameIsLegal => "its name is none",
            Rule::NameHasInode => "it names an inode that is gone",
            Rule::NameInDirectory => "it is not in a directory",
            Rule::CookieWasGiven => "its cookie was never given out by the directory",
            Rule::ParentIsKnown => "the directory knows another parent, or one that is gone",
            Rule::NumberWasGiven => "its number was never given out",
            Rule::LinksArePossible => "it has a number of links that no inode of its kind has",
            Rule::OrphanIsListed => "the lists of what is to be freed do not agree with it",
            Rule::CutsAreOrdered => "its truncations are out of order",
            Rule::AttributesAreFlagged => "its flags do not agree with its extended attributes",
            Rule::SlotInFile => "it belongs to no file",
            Rule::SlotIsWellFormed => "its pieces overlap, or are empty, or reach beyond it",
            Rule::SlotVersionWasGiven => "its version was never given out by the file",
            Rule::SlotSumsAreRight => "its sums do not agree with its pieces",
            Rule::ContentEndsInFile => "it has content beyond the end of the file",
            Rule::ExtentHasChunk => "it refers to bytes of a chunk that has no record, or is shorter",
            Rule::ReferencesAreLeft => "nothing refers to it by its own count",
            Rule::HoldersAreSorted => "its holders are out of order or too many",
            Rule::OutcomeInWindow => "it belongs to no session, or lies outside its window",
            Rule::WriterIsSession => "it is no file, or its writer is no session",
            Rule::LocksHaveInode => "locks of an inode that is gone, or in disorder",
            Rule::XattrHasInode => "an extended attribute of an inode that is gone",
            Rule::XattrIsLegal => "an extended attribute that nobody could have set",
        }
    }
}
