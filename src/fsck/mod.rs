//! Checks a whole cluster, slice by slice, and has repaired what can be: the rules of the tree, every record of a chunk against what its
//! holders keep, the number of copies, uploads that nobody refers to, and which files are lost.
//!
//! Pure: it asks through a [`Probe`], names no clock and waits by way of it. While clients write nothing is taken for an error because it
//! was under way: what does not fit is asked for again until it does, is gone, or has stood still and is wrong.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster_map::ClusterMap;
use crate::limits::{COMMAND_VISITS_MAX, FSCK_FLAWS_MAX, FSCK_GARBAGE_AFTER, FSCK_ITEMS_MAX, FSCK_LOOK_INTERVAL, FSCK_WALKS_MAX};
use crate::status::Status;
use crate::types::{ChunkHash, InodeId, NodeId, ROOT};
use crate::wire::fsck::{Check, Checked, FoundName, Position, Sums, Tally, Upload};

use ledger::{Judgement, Ledger, Suspects};

/// How a check reaches the cluster.
pub trait Probe {
    /// The newest cluster map.
    fn map(&mut self) -> Result<ClusterMap, Status>;
    /// Asks the leader, or a node.
    fn check(&mut self, node: Option<NodeId>, check: Check) -> Result<Checked, Status>;
    /// Lets that much time pass.
    fn pause(&mut self, length: Duration);
}

/// Something that is wrong and cannot be repaired here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The record, as in `inode 17`.
    pub about: String,
    /// What is wrong with it.
    pub what: String,
}

/// A file, by its names from the root.
pub type Path = Vec<u8>;

/// What a check has found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub inodes: u64,
    pub names: u64,
    pub chunks: u64,
    /// Copies that nodes are recorded to hold, and uploads that they keep.
    pub copies: u64,
    pub uploads: u64,
    pub nodes: u64,
    /// Inodes without a name, and uploads that may yet be committed: neither is an error.
    pub orphans: u64,
    pub pending: u64,
    pub flaws: Vec<Flaw>,
    /// Flaws beyond those that are listed.
    pub flaws_more: u64,
    /// Inodes and chunks that kept changing, so that they could not be counted.
    pub moving: u64,
    /// Whether the sums over all records could be compared with what is kept of them: nothing may change meanwhile.
    pub summed: bool,
    /// Copies that were not where they were recorded: reported lost, so that others are made.
    pub missing: u64,
    /// Those of them of which the leader has not heard in time.
    pub missing_left: u64,
    /// Chunks with fewer living holders than they need: at first, and at the end.
    pub short: u64,
    pub short_left: u64,
    /// Uploads that nobody will name: those that were not just being deleted, and what is left of them at the end.
    pub unnamed: u64,
    pub unnamed_left: u64,
    /// Chunks that no living node holds.
    pub dark_chunks: u64,
    /// The files with such chunks, sorted: every name of each.
    pub lost_files: Vec<Path>,
    /// Such files without a name.
    pub lost_orphans: u64,
    /// Nodes that did not answer, and why.
    pub silent: Vec<(NodeId, Status)>,
}

impl Report {
    /// Whether all is well now.
    pub fn is_clean(&self) -> bool {
        let whole = self.flaws.is_empty() && self.dark_chunks == 0 && self.lost_files.is_empty() && self.lost_orphans == 0;
        whole && self.missing_left == 0 && self.short_left == 0 && self.unnamed_left == 0 && self.silent.is_empty()
    }

    fn flaw(&mut self, about: String, what: String) {
        let flaw = Flaw { about, what };
        if self.flaws.contains(&flaw) {
            return; // Met in an earlier walk.
        }
        if self.flaws.len() < FSCK_FLAWS_MAX {
            self.flaws.push(flaw);
        } else {
            self.flaws_more += 1;
        }
    }
}

/// Checks the cluster. What is being repaired is waited for as long as that gets on, and `patience` beyond. An error only if the leader
/// cannot be asked.
pub fn run(probe: &mut impl Probe, patience: Duration) -> Result<Report, Status> {
    let mut run = Run { probe, report: Report::default(), applied: 0, open: Open::default() };
    run.walk_tables()?;
    run.ask_nodes()?;
    run.settle(patience)?;
    run.find_lost_files()?;
    Ok(run.report)
}

/// What is wrong and may come right.
#[derive(Debug, Default)]
struct Open {
    missing: BTreeMap<NodeId, Vec<Upload>>,
    unnamed: BTreeMap<NodeId, Vec<Upload>>,
    short: BTreeSet<ChunkHash>,
    dark: BTreeSet<ChunkHash>,
}

impl Open {
    fn missing(&self) -> usize {
        self.missing.values().map(Vec::len).sum()
    }

    fn unnamed(&self) -> usize {
        self.unnamed.values().map(Vec::len).sum()
    }

    /// What will come right if it is waited for.
    fn count(&self) -> usize {
        self.missing() + self.unnamed() + self.short.len()
    }
}

struct Run<'p, P> {
    probe: &'p mut P,
    report: Report,
    /// The log index that the walk ended at: nodes must have come as far.
    applied: u64,
    open: Open,
}

impl<P: Probe> Run<'_, P> {
    fn ask(&mut self, check: Check) -> Result<Checked, Status> {
        self.probe.check(None, check)
    }

    /// All tables, and what did not fit again.
    fn walk_tables(&mut self) -> Result<(), Status> {
        let mut only: Option<Suspects> = None;
        for walk in 0..FSCK_WALKS_MAX {
            let judgement = self.walk_once(only.take(), walk == 0)?;
            for tally in &judgement.inodes {
                let (about, what) = (format!("inode {}", tally.ino.0), complaint(tally));
                self.report.flaw(about, what);
            }
            for (hash, difference) in &judgement.chunks {
                let (about, what) = (format!("chunk {hash}"), format!("{difference:+} extents refer to it against its own count"));
                self.report.flaw(about, what);
            }
            if let Some((kept, found)) = judgement.sums {
                self.report.flaw("sums of all records".into(), sums_complaint(&kept, &found));
            }
            self.report.summed |= judgement.still;
            self.report.moving = judgement.suspects.len() as u64;
            // Sums are worth one more walk, not all of them.
            if judgement.suspects.is_empty() && (self.report.summed || walk > 0) {
                break;
            }
            only = Some(judgement.suspects);
        }
        Ok(())
    }

    fn walk_once(&mut self, only: Option<Suspects>, first: bool) -> Result<Judgement, Status> {
        let mut ledger = Ledger::new(only);
        let mut after = None;
        loop {
            let Checked::Tables(slice) = self.ask(Check::Tables { after })? else { return Err(Status::Malformed) };
            ledger.add(&slice);
            self.applied = self.applied.max(slice.applied);
            for flaw in &slice.flaws {
                self.report.flaw(place(&flaw.at), flaw.rule.complaint().into());
            }
            if first {
                self.report.inodes += slice.inodes;
                self.report.orphans += slice.orphans;
                self.report.names += slice.names;
                self.report.chunks += slice.chunks;
                let room = FSCK_ITEMS_MAX.saturating_sub(self.open.short.len() + self.open.dark.len());
                self.open.short.extend(slice.short.iter().take(room));
                self.open.dark.extend(slice.dark.iter().take(room));
            }
            match slice.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let mut stamps = BTreeMap::new();
        for inos in ledger.open_inodes().chunks(COMMAND_VISITS_MAX) {
            let Checked::Stamps(found) = self.ask(Check::Stamps { inos: inos.to_vec() })? else { return Err(Status::Malformed) };
            stamps.extend(inos.iter().copied().zip(found));
        }
        let (mut untouched, since) = (BTreeSet::new(), ledger.began());
        for hashes in ledger.open_chunks().chunks(COMMAND_VISITS_MAX) {
            let check = Check::Untouched { since, hashes: hashes.to_vec() };
            let Checked::Untouched(found) = self.ask(check)? else { return Err(Status::Malformed) };
            untouched.extend(found);
        }
        Ok(ledger.judge(&stamps, &untouched))
    }

    /// What every node keeps.
    fn ask_nodes(&mut self) -> Result<(), Status> {
        let map = self.probe.map()?;
        let nodes: Vec<NodeId> = map.members.iter().map(|member| member.id).filter(|&node| map.is_living(node)).collect();
        for node in nodes {
            self.report.nodes += 1;
            let asked = self.compare_records(node).and_then(|()| self.compare_uploads(node));
            if let Err(status) = asked {
                self.on_silent(node, status)?;
            }
        }
        self.report.missing = self.open.missing() as u64;
        Ok(())
    }

    /// A node that has died meanwhile is no news: its chunks are short of a copy, and that is looked at.
    fn on_silent(&mut self, node: NodeId, status: Status) -> Result<(), Status> {
        self.open.missing.remove(&node);
        self.open.unnamed.remove(&node);
        if self.probe.map()?.is_living(node) && !self.report.silent.iter().any(|(silent, _)| *silent == node) {
            self.report.silent.push((node, status));
        }
        Ok(())
    }

    fn compare_records(&mut self, node: NodeId) -> Result<(), Status> {
        let (applied, mut after) = (self.applied, None);
        loop {
            let checked = self.probe.check(Some(node), Check::Missing { applied, after })?;
            let Checked::Missing { visited, missing, next } = checked else { return Err(Status::Malformed) };
            self.report.copies += visited;
            if !missing.is_empty() {
                // The node may lag: what the leader no longer says of it is not missing.
                let missing = self.ascribed(node, missing)?;
                let room = FSCK_ITEMS_MAX.saturating_sub(self.open.missing());
                self.open.missing.entry(node).or_default().extend(missing.into_iter().take(room));
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn ascribed(&mut self, node: NodeId, items: Vec<Upload>) -> Result<Vec<Upload>, Status> {
        if items.is_empty() {
            return Ok(items);
        }
        match self.ask(Check::Ascribed { node, items })? {
            Checked::Items(items) => Ok(items),
            _ => Err(Status::Malformed),
        }
    }

    fn compare_uploads(&mut self, node: NodeId) -> Result<(), Status> {
        let (applied, mut after) = (self.applied, None);
        loop {
            let checked = self.probe.check(Some(node), Check::Unnamed { applied, after })?;
            let Checked::Unnamed { visited, pending, unnamed, next } = checked else { return Err(Status::Malformed) };
            self.report.uploads += visited;
            self.report.pending += pending;
            if !unnamed.is_empty() {
                let room = FSCK_ITEMS_MAX.saturating_sub(self.open.unnamed());
                self.open.unnamed.entry(node).or_default().extend(unnamed.into_iter().take(room));
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if self.open.unnamed.contains_key(&node) {
            self.probe.check(Some(node), Check::Audit)?;
        }
        Ok(())
    }

    /// Looks at what is wrong and may come right until it has, or nothing gets on for too long.
    fn settle(&mut self, patience: Duration) -> Result<(), Status> {
        let (mut least, mut waited, mut passed) = (usize::MAX, Duration::ZERO, Duration::ZERO);
        loop {
            self.look_at_missing()?;
            self.look_at_unnamed()?;
            self.look_at_holders()?;
            self.report.short = self.report.short.max(self.open.short.len() as u64);
            let count = self.open.count();
            if count < least {
                (least, waited) = (count, Duration::ZERO);
            }
            if passed <= FSCK_GARBAGE_AFTER {
                // What goes before it is that old is no finding.
                self.report.unnamed = self.open.unnamed() as u64;
            }
            if count == 0 || waited >= patience {
                break;
            }
            self.probe.pause(FSCK_LOOK_INTERVAL);
            waited += FSCK_LOOK_INTERVAL;
            passed += FSCK_LOOK_INTERVAL;
        }
        self.report.missing_left = self.open.missing() as u64;
        self.report.unnamed_left = self.open.unnamed() as u64;
        self.report.short_left = self.open.short.len() as u64;
        self.report.dark_chunks = self.open.dark.len() as u64;
        Ok(())
    }

    /// Has the nodes report what is not there, until the leader knows.
    fn look_at_missing(&mut self) -> Result<(), Status> {
        for (node, items) in std::mem::take(&mut self.open.missing) {
            // Short of a copy from the moment on at which the leader knows.
            self.open.short.extend(items.iter().map(|(hash, _)| *hash));
            let mut left = Vec::new();
            for part in items.chunks(COMMAND_VISITS_MAX) {
                match self.probe.check(Some(node), Check::NoteLost { items: part.to_vec() }) {
                    Ok(Checked::Items(absent)) => left.extend(self.ascribed(node, absent)?),
                    Ok(_) => return Err(Status::Malformed),
                    Err(status) => {
                        self.on_silent(node, status)?;
                        break;
                    }
                }
            }
            if !left.is_empty() {
                self.open.missing.insert(node, left);
            }
        }
        Ok(())
    }

    fn look_at_unnamed(&mut self) -> Result<(), Status> {
        for (node, items) in std::mem::take(&mut self.open.unnamed) {
            let mut left = Vec::new();
            for part in items.chunks(COMMAND_VISITS_MAX) {
                match self.probe.check(Some(node), Check::StillUnnamed { items: part.to_vec() }) {
                    Ok(Checked::Items(items)) => left.extend(items),
                    Ok(_) => return Err(Status::Malformed),
                    Err(status) => {
                        self.on_silent(node, status)?;
                        break;
                    }
                }
            }
            if !left.is_empty() {
                self.open.unnamed.insert(node, left);
            }
        }
        Ok(())
    }

    fn look_at_holders(&mut self) -> Result<(), Status> {
        let hashes: Vec<ChunkHash> = std::mem::take(&mut self.open.short).union(&std::mem::take(&mut self.open.dark)).copied().collect();
        for part in hashes.chunks(COMMAND_VISITS_MAX) {
            let Checked::Weak { short, dark } = self.ask(Check::Weak { hashes: part.to_vec() })? else { return Err(Status::Malformed) };
            self.open.short.extend(short);
            self.open.dark.extend(dark);
        }
        Ok(())
    }

    /// Names the files with content that nobody holds. They are looked for anew: what was found earlier may be gone or healed.
    fn find_lost_files(&mut self) -> Result<(), Status> {
        if self.report.dark_chunks == 0 && self.report.flaws.is_empty() {
            return Ok(());
        }
        let (mut inos, mut after) = (BTreeSet::new(), None);
        loop {
            let Checked::Dark { inos: found, next } = self.ask(Check::Dark { after })? else { return Err(Status::Malformed) };
            let room = FSCK_ITEMS_MAX.saturating_sub(inos.len());
            inos.extend(found.into_iter().take(room));
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let inos: Vec<InodeId> = inos.into_iter().collect();
        for part in inos.chunks(COMMAND_VISITS_MAX) {
            self.name_files(part)?;
        }
        self.report.lost_files.sort();
        Ok(())
    }

    fn name_files(&mut self, wanted: &[InodeId]) -> Result<(), Status> {
        // One name of each directory, and all of the files.
        let (mut above, mut files): (BTreeMap<InodeId, FoundName>, Vec<FoundName>) = Default::default();
        let mut after = None;
        loop {
            let check = Check::Names { after, wanted: wanted.to_vec() };
            let Checked::Names { names, next } = self.ask(check)? else { return Err(Status::Malformed) };
            for found in names {
                if wanted.binary_search(&found.ino).is_ok() {
                    files.push(found);
                } else {
                    above.insert(found.ino, found);
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let named: BTreeSet<InodeId> = files.iter().map(|found| found.ino).collect();
        self.report.lost_orphans += (wanted.len() - named.len()) as u64;
        self.report.lost_files.extend(files.iter().map(|found| path_of(found, &above)));
        Ok(())
    }
}

/// The path of a name; `?` stands for directories that moved while names were read.
fn path_of(found: &FoundName, above: &BTreeMap<InodeId, FoundName>) -> Path {
    let mut names = vec![found.name.as_bytes()];
    let mut directory = found.directory;
    while directory != ROOT {
        match above.get(&directory) {
            Some(found) if names.len() <= above.len() => {
                names.push(found.name.as_bytes());
                directory = found.directory;
            }
            _ => {
                names.push(b"?");
                break;
            }
        }
    }
    names.iter().rev().flat_map(|name| [b"/", *name].concat()).collect()
}

fn complaint(tally: &Tally) -> String {
    let counts = [
        (tally.names, "names"),
        (tally.entries, "entries"),
        (tally.subdirectories, "subdirectories"),
        (tally.blocks, "blocks of 512 bytes"),
    ];
    let wrong = counts.iter().filter(|(count, _)| *count != 0).map(|(count, what)| format!("{count:+} {what}"));
    format!("{} against its own count", wrong.collect::<Vec<_>>().join(", "))
}

fn sums_complaint(kept: &Sums, found: &Sums) -> String {
    format!("kept as {kept:?}, but they come to {found:?}")
}

/// A record in words.
fn place(position: &Position) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match position {
        Position::Inode(ino) => format!("inode {}", ino.0),
        Position::Entry(directory, name) => format!("name {:?} in directory {}", text(name), directory.0),
        Position::Slot(ino, index) => format!("slot {index} of inode {}", ino.0),
        Position::Chunk(hash) => format!("chunk {hash}"),
        Position::Session(id) => format!("session {id}"),
        Position::Outcome(id, number) => format!("request {number} of session {id}"),
        Position::Writer(ino) => format!("writer of inode {}", ino.0),
        Position::Locks(ino) => format!("locks of inode {}", ino.0),
        Position::Xattr(ino, name) => format!("attribute {:?} of inode {}", text(name), ino.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Name;

    #[test]
    fn paths_go_up_to_the_root_and_end_even_in_a_circle() {
        let found = |directory: u64, name: &str, ino: u64| FoundName {
            directory: InodeId(directory),
            name: Name::new(name).unwrap(),
            ino: InodeId(ino),
        };
        let mut above = BTreeMap::new();
        for one in [found(1, "a", 2), found(2, "b", 3), found(5, "x", 6), found(6, "y", 5)] {
            above.insert(one.ino, one);
        }
        assert_eq!(path_of(&found(3, "file", 4), &above), b"/a/b/file");
        assert_eq!(path_of(&found(1, "file", 4), &above), b"/file");
        assert!(path_of(&found(9, "file", 4), &above).starts_with(b"/?/"));
        assert!(path_of(&found(5, "file", 4), &above).starts_with(b"/?/"));
    }
}
