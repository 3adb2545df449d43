//! What files must contain: every version that each file with a single writer ever had, and which of them a reader may see.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use dfs::types::{ByteRange, InodeId};

use super::kernel::PAGE;

/// One file, written by one actor, one operation at a time.
#[derive(Debug)]
pub struct File {
    pub name: String,
    pub ino: InodeId,
    /// Contents from version `base` on; the last may be in flight.
    versions: VecDeque<Rc<Vec<u8>>>,
    base: u64,
    /// The newest version whose write was answered.
    completed: u64,
    /// An operation of unknown outcome: nothing more is expected of the file.
    pub tainted: bool,
    /// Set before the unlink is sent.
    pub unlinked: bool,
    /// Versions that readers under way began with.
    readers: BTreeMap<u64, u32>,
}

impl File {
    pub fn new(name: String, ino: InodeId) -> Self {
        File {
            name,
            ino,
            versions: VecDeque::from([Rc::new(Vec::new())]),
            base: 0,
            completed: 0,
            tainted: false,
            unlinked: false,
            readers: BTreeMap::new(),
        }
    }

    /// The content that the next operation starts from.
    pub fn content(&self) -> Rc<Vec<u8>> {
        self.versions.back().expect("a file has a version").clone()
    }

    /// An operation that leads to this content was sent.
    pub fn begin(&mut self, content: Vec<u8>) {
        self.versions.push_back(Rc::new(content));
    }

    /// It was answered.
    pub fn complete(&mut self) {
        self.completed = self.base + self.versions.len() as u64 - 1;
        let needed = self.readers.keys().next().copied().unwrap_or(self.completed).min(self.completed);
        while self.base < needed {
            self.versions.pop_front();
            self.base += 1;
        }
    }

    /// A reader begins; it must see this version or a newer one.
    pub fn reader_begins(&mut self) -> u64 {
        *self.readers.entry(self.completed).or_default() += 1;
        self.completed
    }

    /// A reader ends: `Err` if what it saw is no version that it may see.
    /// `pages`: the reader's kernel asked page by page, so that each page may be of another version if there was a choice.
    pub fn reader_ends(&mut self, began: u64, range: ByteRange, seen: &[u8], pages: bool) -> Result<(), String> {
        self.reader_leaves(began);
        if self.tainted {
            return Ok(());
        }
        let allowed = self.versions.iter().skip((began - self.base) as usize);
        if allowed.clone().any(|content| slice(content, range) == seen) {
            return Ok(());
        }
        if pages && self.is_torn(began, range, seen) {
            return Ok(());
        }
        let differences: Vec<String> = allowed.map(|content| difference(slice(content, range), seen)).collect();
        let older = self.versions.iter().take((began - self.base) as usize).any(|content| slice(content, range) == seen);
        Err(format!(
            "file {} ({}): a read of {range:?} saw {} bytes that are none of the versions {began}..={}{}: {differences:?}",
            self.name,
            self.ino,
            seen.len(),
            self.base + self.versions.len() as u64 - 1,
            if older { " but an OLDER one" } else { "" },
        ))
    }

    /// Whether each page is of a version that the reader may see, and the length is not beyond theirs.
    fn is_torn(&self, began: u64, range: ByteRange, seen: &[u8]) -> bool {
        let allowed: Vec<&Rc<Vec<u8>>> = self.versions.iter().skip((began - self.base) as usize).collect();
        let lengths = || allowed.iter().map(|content| slice(content, range).len());
        if Some(seen.len()) < lengths().min() || Some(seen.len()) > lengths().max() {
            return false;
        }
        let end = range.offset + seen.len() as u64;
        let mut at = range.offset;
        while at < end {
            let next = (at / PAGE * PAGE + PAGE).min(end);
            let page = &seen[(at - range.offset) as usize..(next - range.offset) as usize];
            let of = |content: &Rc<Vec<u8>>| (at..next).map(|at| content.get(at as usize).copied().unwrap_or(0)).eq(page.iter().copied());
            if !allowed.iter().any(|content| of(content)) {
                return false;
            }
            at = next;
        }
        true
    }

    pub fn reader_leaves(&mut self, began: u64) {
        let count = self.readers.get_mut(&began).expect("every reader began");
        *count -= 1;
        if *count == 0 {
            self.readers.remove(&began);
        }
    }
}

fn slice(content: &[u8], range: ByteRange) -> &[u8] {
    let start = (range.offset as usize).min(content.len());
    &content[start..(range.end() as usize).min(content.len())]
}

fn difference(expected: &[u8], seen: &[u8]) -> String {
    if expected.len() != seen.len() {
        return format!("{} bytes expected", expected.len());
    }
    let wrong: Vec<usize> = (0..seen.len()).filter(|&at| expected[at] != seen[at]).collect();
    format!("{} bytes differ from {} to {}", wrong.len(), wrong[0], wrong[wrong.len() - 1])
}
