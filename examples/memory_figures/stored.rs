//! A file that is changed through a mount, and beside it what it must contain.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use dfs::random::Random;

use crate::programs::Result;

/// Longest run of bytes from the source, so the largest file that is written at once.
pub const RUN_BYTES_MAX: u64 = 32 << 20;
const SOURCE_BYTES: u64 = 2 * RUN_BYTES_MAX;
const READ_BYTES_MAX: u64 = 4 << 20;
/// What is written in one go is written in so many pieces, about.
const WRITES_MAX: u64 = 200;

/// All content is some part of these: two that begin at different places have no chunk in common.
static SOURCE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    (0..SOURCE_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// Bytes `from..to` of a file: those of the source from there on, or zeros.
struct Run {
    from: u64,
    to: u64,
    source: Option<u64>,
}

/// A file, and what it must contain.
pub struct Stored {
    pub path: PathBuf,
    pub length: u64,
    /// Without gaps up to the length.
    runs: Vec<Run>,
}

/// How far a change came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Whole,
    /// `ENOSPC`, told by the call that brought the bytes. What earlier calls brought is there.
    NoSpace,
}

/// Whether it was no more than want of space.
pub fn no_space(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

/// close(2), whose errors `drop` would hide.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is ours alone, and nobody uses it after this.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Stored {
    pub fn new(path: PathBuf) -> Stored {
        Stored { path, length: 0, runs: Vec::new() }
    }

    /// Empties the file, or makes it, and writes as much from the beginning.
    pub fn rewrite(&mut self, random: &mut Random, length: u64) -> Result<Done> {
        let file = match OpenOptions::new().write(true).create(true).truncate(true).open(&self.path) {
            Err(error) if no_space(&error) => return Ok(Done::NoSpace),
            opened => opened?,
        };
        self.cut(0);
        self.finish(random, file, 0, length)
    }

    /// Writes as much somewhere in the file, or behind its end.
    pub fn write_at(&mut self, random: &mut Random, at: u64, length: u64) -> Result<Done> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        self.finish(random, file, at, length)
    }

    pub fn append(&mut self, random: &mut Random, length: u64) -> Result<Done> {
        let file = OpenOptions::new().append(true).open(&self.path)?;
        self.finish(random, file, self.length, length)
    }

    pub fn truncate(&mut self, length: u64) -> Result<Done> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        match file.set_len(length) {
            Err(error) if no_space(&error) => return Ok(Done::NoSpace),
            done => done?,
        }
        self.cut(length);
        self.fill(length);
        close(file).map_err(|error| format!("close after truncate: {error}"))?;
        Ok(Done::Whole)
    }

    /// Writes in pieces, then closes, sometimes after fsync. Only write may say that there is no space.
    fn finish(&mut self, random: &mut Random, file: File, at: u64, length: u64) -> Result<Done> {
        let piece_max = 1 << (10 + random.below(11));
        let piece = (1 + random.below(piece_max)).max(length / WRITES_MAX);
        let source = random.below(SOURCE_BYTES - length + 1);
        let (mut written, mut done) = (0, Done::Whole);
        while written < length {
            let from = (source + written) as usize;
            let bytes = &SOURCE[from..from + piece.min(length - written) as usize];
            match file.write_at(bytes, at + written) {
                Ok(0) => return Err("a write of some bytes wrote none".into()),
                Ok(count) => {
                    self.note(at + written, count as u64, source + written);
                    written += count as u64;
                }
                Err(error) if no_space(&error) => {
                    done = Done::NoSpace;
                    break;
                }
                Err(error) => return Err(format!("write to {}: {error}", self.path.display()).into()),
            }
        }
        if random.chance(1, 8) || done == Done::NoSpace {
            file.sync_all().map_err(|error| format!("fsync of {}: {error}", self.path.display()))?;
        }
        close(file).map_err(|error| format!("close of {}: {error}", self.path.display()))?;
        Ok(done)
    }

    /// Reads some part of the file, or all of it, and compares.
    pub fn verify(&self, random: Option<&mut Random>) -> Result<u64> {
        let file = File::open(&self.path).map_err(|error| format!("open of {}: {error}", self.path.display()))?;
        let found = file.metadata()?.len();
        if found != self.length {
            return Err(format!("{} has {found} bytes instead of {}", self.path.display(), self.length).into());
        }
        let (mut at, end) = match random {
            Some(random) => {
                let at = random.below(self.length + 1);
                (at, (at + 1 + random.below(READ_BYTES_MAX)).min(self.length))
            }
            None => (0, self.length),
        };
        let read = end - at;
        let mut bytes = vec![0; READ_BYTES_MAX as usize];
        while at < end {
            let piece = &mut bytes[..(end - at).min(READ_BYTES_MAX) as usize];
            file.read_exact_at(piece, at).map_err(|error| format!("read of {} at {at}: {error}", self.path.display()))?;
            self.compare(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(read)
    }

    fn compare(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at + bytes.len() as u64;
        let first = self.runs.partition_point(|run| run.to <= at);
        for run in self.runs[first..].iter().take_while(|run| run.from < end) {
            let (from, to) = (run.from.max(at), run.to.min(end));
            let found = &bytes[(from - at) as usize..(to - at) as usize];
            let same = match run.source {
                Some(source) => {
                    let source = (source + from - run.from) as usize;
                    *found == SOURCE[source..source + found.len()]
                }
                None => found.iter().all(|&byte| byte == 0),
            };
            if !same {
                return Err(format!("{} has wrong bytes within {from}..{to}", self.path.display()).into());
            }
        }
        Ok(())
    }

    /// These bytes are now those of the source from there on.
    fn note(&mut self, at: u64, length: u64, source: u64) {
        self.fill(at);
        let first = self.runs.partition_point(|run| run.to <= at);
        let last = self.runs.partition_point(|run| run.from < at + length);
        let mut news = vec![Run { from: at, to: at + length, source: Some(source) }];
        for run in self.runs.drain(first..last) {
            if run.from < at {
                news.insert(0, Run { from: run.from, to: at, source: run.source });
            }
            if run.to > at + length {
                let source = run.source.map(|source| source + at + length - run.from);
                news.push(Run { from: at + length, to: run.to, source });
            }
        }
        self.runs.splice(first..first, news);
        self.length = self.length.max(at + length);
    }

    /// Nothing is left from there on.
    fn cut(&mut self, length: u64) {
        self.runs.retain(|run| run.from < length);
        if let Some(last) = self.runs.last_mut() {
            last.to = last.to.min(length);
        }
        self.length = self.length.min(length);
    }

    /// Zeros up to there, if it ends before.
    fn fill(&mut self, length: u64) {
        if self.length < length {
            self.runs.push(Run { from: self.length, to: length, source: None });
            self.length = length;
        }
    }
}

/// Space of the file system at this path: all of it, and what is free, in bytes.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a zeroed statvfs is a valid one, and the path ends with a NUL.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers live through the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}
