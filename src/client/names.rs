//! Names of directories on which the session has `NAMES`: entries, absent ones included, and listings with their cookies.
//!
//! A pure table, bounded by bytes; the least recently used directory is forgotten first. What is here may be used only while the right is
//! (see [`super::rights`]). An entry never tells more than a number: attributes have a right of their own.

use std::collections::BTreeMap;

use crate::limits;
use crate::types::{Cookie, InodeId, Name};
use crate::wire::namespace::DirectoryEntry;

/// Memory that an entry or a line takes beside its name.
const OVERHEAD_BYTES: usize = 96;

/// What is known of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    There(InodeId),
    Absent,
    Unknown,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) cookie: Cookie,
    pub(super) name: Name,
    pub(super) ino: InodeId,
}

#[derive(Debug, Default)]
struct Directory {
    entries: BTreeMap<Name, Entry>,
    /// Names that are not among the entries are absent.
    whole: bool,
    /// The lines from the first on, as far as they were read without a change between.
    lines: Vec<Line>,
    /// Whether `lines` goes on to the end of the directory.
    ended: bool,
    bytes: usize,
    used: u64,
}

impl Directory {
    fn of(&self, name: &Name) -> Entry {
        self.entries.get(name).copied().unwrap_or(if self.whole { Entry::Absent } else { Entry::Unknown })
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Names {
    directories: BTreeMap<InodeId, Directory>,
    by_use: BTreeMap<u64, InodeId>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Names {
    pub(super) fn new(bytes_max: usize) -> Self {
        Names { directories: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, bytes: 0, bytes_max }
    }

    pub(super) fn entry(&mut self, directory: InodeId, name: &Name) -> Entry {
        self.touch(directory);
        let Some(known) = self.directories.get(&directory) else { return Entry::Unknown };
        known.of(name)
    }

    /// Whether that is what is known of the name.
    pub(super) fn knows(&self, directory: InodeId, name: &Name, entry: Entry) -> bool {
        self.directories.get(&directory).is_some_and(|known| known.of(name) == entry)
    }

    /// The name is there, or absent.
    pub(super) fn learn(&mut self, directory: InodeId, name: &Name, entry: Entry) {
        let known = self.directories.entry(directory).or_default();
        if known.entries.insert(name.clone(), entry).is_none() {
            known.bytes += name.as_bytes().len() + OVERHEAD_BYTES;
            self.bytes += name.as_bytes().len() + OVERHEAD_BYTES;
        }
        self.shrink(directory);
    }

    /// The directory is new and empty.
    pub(super) fn learn_empty(&mut self, directory: InodeId) {
        self.forget_directory(directory);
        let known = self.directories.entry(directory).or_default();
        (known.whole, known.ended) = (true, true);
        self.shrink(directory);
    }

    /// A run of the directory that follows `after`.
    pub(super) fn learn_lines(&mut self, directory: InodeId, after: Cookie, entries: &[DirectoryEntry], end: bool) {
        if after == Cookie(0) {
            self.forget_lines(directory);
        }
        let known = self.directories.entry(directory).or_default();
        let reached = known.lines.last().map_or(Cookie(0), |line| line.cookie);
        if known.ended || reached != after || known.lines.len() + entries.len() > limits::CLIENT_LISTING_LINES_MAX {
            entries.iter().for_each(|entry| self.learn(directory, &entry.name, Entry::There(entry.attributes.ino)));
            return self.shrink(directory);
        }
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.name.as_bytes().len() + OVERHEAD_BYTES;
            let (cookie, name, ino) = (entry.cookie, entry.name.clone(), entry.attributes.ino);
            if known.entries.insert(name.clone(), Entry::There(ino)).is_none() {
                bytes += name.as_bytes().len() + OVERHEAD_BYTES;
            }
            known.lines.push(Line { cookie, name, ino });
        }
        if end {
            // All names have passed by: whatever else was believed about others is older.
            (known.ended, known.whole) = (true, true);
        }
        known.bytes += bytes;
        self.bytes += bytes;
        self.shrink(directory);
    }

    /// At most `limit` lines after the cookie, and whether nothing follows them, if that is known.
    pub(super) fn lines(&mut self, directory: InodeId, after: Cookie, limit: usize) -> Option<(Vec<Line>, bool)> {
        self.touch(directory);
        let known = self.directories.get(&directory)?;
        let first = known.lines.partition_point(|line| line.cookie <= after);
        let rest = &known.lines[first..];
        let (run, left) = rest.split_at(rest.len().min(limit.max(1)));
        if run.is_empty() && !known.ended {
            return None;
        }
        Some((run.to_vec(), left.is_empty() && known.ended))
    }

    /// The name may change.
    pub(super) fn forget(&mut self, directory: InodeId, name: &Name) {
        let Some(known) = self.directories.get_mut(&directory) else { return };
        if known.whole {
            return self.learn(directory, name, Entry::Unknown);
        }
        if known.entries.remove(name).is_some() {
            known.bytes -= name.as_bytes().len() + OVERHEAD_BYTES;
            self.bytes -= name.as_bytes().len() + OVERHEAD_BYTES;
        }
    }

    /// The listing may change. Entries stay.
    pub(super) fn forget_lines(&mut self, directory: InodeId) {
        let Some(known) = self.directories.get_mut(&directory) else { return };
        let bytes: usize = known.lines.iter().map(|line| line.name.as_bytes().len() + OVERHEAD_BYTES).sum();
        known.lines = Vec::new();
        known.ended = false;
        known.bytes -= bytes;
        self.bytes -= bytes;
    }

    pub(super) fn forget_directory(&mut self, directory: InodeId) {
        if let Some(known) = self.directories.remove(&directory) {
            self.bytes -= known.bytes;
            self.by_use.remove(&known.used);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Names::new(self.bytes_max);
    }

    /// Asserts that the sums and the index agree, and the bound holds.
    pub(super) fn check_invariants(&self) {
        assert!(self.bytes <= self.bytes_max);
        assert_eq!(self.directories.len(), self.by_use.len());
        assert!(self.by_use.iter().all(|(used, directory)| self.directories[directory].used == *used));
        assert_eq!(self.bytes, self.directories.values().map(|known| known.bytes).sum::<usize>());
        for known in self.directories.values() {
            let names = known.entries.keys().chain(known.lines.iter().map(|line| &line.name));
            assert_eq!(known.bytes, OVERHEAD_BYTES + names.map(|name| name.as_bytes().len() + OVERHEAD_BYTES).sum::<usize>());
            assert!(known.lines.is_sorted_by_key(|line| line.cookie));
        }
    }

    fn touch(&mut self, directory: InodeId) {
        if let Some(known) = self.directories.get_mut(&directory) {
            self.by_use.remove(&known.used);
            self.clock += 1;
            known.used = self.clock;
            self.by_use.insert(self.clock, directory);
        }
    }

    /// Counts a directory that is new, and keeps to the bound.
    fn shrink(&mut self, directory: InodeId) {
        if let Some(known) = self.directories.get_mut(&directory).filter(|known| known.used == 0) {
            known.bytes += OVERHEAD_BYTES;
            self.bytes += OVERHEAD_BYTES;
        }
        self.touch(directory);
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            self.forget_directory(*oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Attributes;

    const DIRECTORY: InodeId = InodeId(1);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn line(n: u64) -> DirectoryEntry {
        let attributes = Attributes { parent: DIRECTORY, ..super::super::rights::blank_for_test(InodeId(100 + n)) };
        DirectoryEntry { name: name(&n.to_string()), cookie: Cookie(n), attributes, current: true }
    }

    #[test]
    fn a_listing_is_gathered_in_runs_and_then_knows_absent_names() {
        let mut names = Names::new(1 << 20);
        names.learn_lines(DIRECTORY, Cookie(0), &[line(1), line(2)], false);
        assert_eq!(names.entry(DIRECTORY, &name("1")), Entry::There(InodeId(101)));
        assert_eq!(names.entry(DIRECTORY, &name("x")), Entry::Unknown);
        assert_eq!(names.lines(DIRECTORY, Cookie(2), 9), None);
        names.learn_lines(DIRECTORY, Cookie(7), &[line(8)], true);
        assert_eq!(names.entry(DIRECTORY, &name("x")), Entry::Unknown, "a gap is between");
        names.learn_lines(DIRECTORY, Cookie(2), &[line(3)], true);
        assert_eq!(names.entry(DIRECTORY, &name("x")), Entry::Absent);
        let (lines, end) = names.lines(DIRECTORY, Cookie(1), 1).unwrap();
        assert_eq!((lines.len(), lines[0].ino, end), (1, InodeId(102), false));
        let (lines, end) = names.lines(DIRECTORY, Cookie(2), 1).unwrap();
        assert_eq!((lines[0].ino, end), (InodeId(103), true));
        assert_eq!(names.lines(DIRECTORY, Cookie(3), 1), Some((Vec::new(), true)));
        names.check_invariants();
    }

    #[test]
    fn a_name_that_changes_is_unknown_and_the_others_stay() {
        let mut names = Names::new(1 << 20);
        names.learn_empty(DIRECTORY);
        assert_eq!(names.lines(DIRECTORY, Cookie(0), 5), Some((Vec::new(), true)));
        names.learn(DIRECTORY, &name("a"), Entry::There(InodeId(5)));
        names.forget_lines(DIRECTORY);
        assert_eq!(names.lines(DIRECTORY, Cookie(0), 5), None);
        names.forget(DIRECTORY, &name("b"));
        assert_eq!(names.entry(DIRECTORY, &name("b")), Entry::Unknown);
        assert_eq!(names.entry(DIRECTORY, &name("c")), Entry::Absent);
        assert_eq!(names.entry(DIRECTORY, &name("a")), Entry::There(InodeId(5)));
        names.check_invariants();
        names.forget_directory(DIRECTORY);
        assert_eq!(names.entry(DIRECTORY, &name("a")), Entry::Unknown);
        names.check_invariants();
    }

    #[test]
    fn the_bound_holds_and_the_least_recently_used_directory_goes_first() {
        let mut names = Names::new(10 * (OVERHEAD_BYTES + 1));
        names.learn(InodeId(1), &name("a"), Entry::Absent);
        names.learn(InodeId(2), &name("a"), Entry::Absent);
        names.entry(InodeId(1), &name("a"));
        for n in 0..6 {
            names.learn(InodeId(3), &name(&n.to_string()), Entry::Absent);
            names.check_invariants();
        }
        assert_eq!(names.entry(InodeId(2), &name("a")), Entry::Unknown);
        assert_eq!(names.entry(InodeId(1), &name("a")), Entry::Absent);
        for n in 0..9 {
            names.learn(InodeId(3), &name(&n.to_string()), Entry::Absent);
            names.check_invariants();
        }
        assert_eq!(names.entry(InodeId(1), &name("a")), Entry::Unknown);
    }
}
