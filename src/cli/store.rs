//! The file system as the commands see it: paths, directories, whole files, on top of the blocking client.
//!
//! Paths are resolved one by one by the leader; symbolic links are shown, never followed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use dfs::client::{Call, Client, Error, Options, Reply};
use dfs::cluster_map::ClusterMap;
use dfs::limits;
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, ChunkHash, Cookie, FileKind, InodeId, Name, NodeId};
use dfs::wire::fsck::{Check, Checked};
use dfs::wire::message::{DebugAction, StatusReport};
use dfs::wire::namespace::{Answer, DirectoryEntry, NewKind, Op, Query, RenameMode, Source, Space};

use crate::args::Global;
use crate::failure::Failure;
use crate::show::{Holder, Run};

/// Bytes asked of the layout at once.
const LOCATE_BYTES: u64 = 256 << 20;

/// A path inside the file system, as names from the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreePath {
    names: Vec<Name>,
    shown: String,
}

impl TreePath {
    /// Splits at slashes; empty parts and `.` mean nothing, `..` is refused because the tree's links are not followed here.
    pub fn parse(text: &OsStr) -> Result<Self, Failure> {
        let shown = text.to_string_lossy().into_owned();
        let mut names = Vec::new();
        for part in text.as_bytes().split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(Failure::new(format!("{shown}: `..` is not resolved here; write the path from the root")));
            }
            names.push(Name::new(part).map_err(|status| Failure::status(&shown, status))?);
        }
        Ok(TreePath { names, shown })
    }

    /// The path as the user wrote it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The last name; `None` for the root.
    pub fn name(&self) -> Option<&Name> {
        self.names.last()
    }

    /// The names joined by slashes, as the client takes them.
    fn bytes(&self) -> Vec<u8> {
        self.names.iter().flat_map(|name| [b"/", name.as_bytes()].concat()).collect()
    }

    /// The path of an entry below this one.
    pub fn join(&self, name: &Name) -> Self {
        let mut names = self.names.clone();
        names.push(name.clone());
        TreePath { names, shown: format!("{}/{name}", self.shown.trim_end_matches('/')) }
    }

    fn parent(&self) -> Self {
        let names = self.names[..self.names.len().saturating_sub(1)].to_vec();
        let shown = names.iter().map(|name| format!("/{name}")).collect::<String>();
        TreePath { names, shown: if shown.is_empty() { "/".to_string() } else { shown } }
    }
}

/// An open cluster.
pub struct Store {
    client: Client,
}

impl Store {
    /// Connects, within the operation deadline.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        Client::connect(&global.nodes, options(global)).map(|client| Store { client }).map_err(|error| unreachable(global, error))
    }

    /// Begins to connect: for looking at a cluster that may have no leader.
    pub fn open_later(global: &Global) -> Result<Self, Failure> {
        Client::connect_later(&global.nodes, options(global)).map(|client| Store { client }).map_err(|error| unreachable(global, error))
    }

    fn query(&self, query: Query) -> Result<Answer, Status> {
        self.client.query(query)
    }

    fn change(&self, op: Op) -> Result<(), Status> {
        self.client.call(Call::Op(op)).map(drop)
    }

    /// What is at the path.
    pub fn find(&self, path: &TreePath) -> Result<Attributes, Failure> {
        self.look(path).map_err(|status| Failure::status(path.shown(), status))
    }

    /// As [`Store::find`], with the bare status.
    pub fn look(&self, path: &TreePath) -> Result<Attributes, Status> {
        match self.query(Query::Resolve { path: path.names.clone() })? {
            Answer::Attributes(attributes) => Ok(attributes),
            _ => Err(Status::Internal),
        }
    }

    /// A regular file at the path.
    pub fn find_file(&self, path: &TreePath) -> Result<Attributes, Failure> {
        let attributes = self.find(path)?;
        match attributes.kind {
            FileKind::File => Ok(attributes),
            FileKind::Directory => Err(Failure::new(format!("{}: is a directory; name a file in it (`dfs ls` lists them)", path.shown()))),
            FileKind::Symlink => Err(Failure::new(format!("{}: is a symbolic link, not followed here; name its target", path.shown()))),
            _ => Err(Failure::new(format!("{}: is a special file without content; use a mount", path.shown()))),
        }
    }

    /// The directory that holds (or will hold) the path's last name.
    fn place<'path>(&self, path: &'path TreePath) -> Result<(InodeId, &'path Name), Failure> {
        let Some(name) = path.name() else {
            return Err(Failure::new(format!("{}: the root is always there and cannot be replaced or removed", path.shown())));
        };
        let parent = path.parent();
        let attributes = self.find(&parent)?;
        if attributes.kind != FileKind::Directory {
            return Err(Failure::status(parent.shown(), Status::NotDirectory));
        }
        Ok((attributes.ino, name))
    }

    /// All entries of a directory, in the order of the directory.
    pub fn entries(&self, ino: InodeId) -> Result<Vec<DirectoryEntry>, Status> {
        let mut all: Vec<DirectoryEntry> = Vec::new();
        let mut after = Cookie(0);
        loop {
            let limit = limits::READDIR_ENTRIES_MAX as u32;
            let Answer::Directory { entries, end, .. } = self.query(Query::ReadDirectory { ino, after, limit })? else {
                return Err(Status::Internal);
            };
            let last = entries.last().map(|entry| entry.cookie);
            all.extend(entries);
            match last {
                Some(cookie) if !end => after = cookie,
                _ => return Ok(all),
            }
        }
    }

    /// Makes a directory.
    pub fn make_directory(&self, path: &TreePath) -> Result<(), Failure> {
        let (parent, name) = self.place(path)?;
        let (uid, gid, umask) = caller();
        let (name, kind, mode) = (name.clone(), NewKind::Directory, 0o777 & !umask);
        let op = Op::Create { parent, name, kind, mode, uid, gid, exclusive: true, hold: false, write: false, umask: 0 };
        self.change(op).map_err(|status| Failure::status(format!("cannot make {}", path.shown()), status))
    }

    /// Removes a name: of a directory if it is one (which must be empty), else of a file.
    pub fn remove(&self, path: &TreePath, kind: FileKind) -> Result<(), Failure> {
        let (parent, name) = self.place(path)?;
        self.remove_entry(parent, name, kind).map_err(|status| Failure::status(format!("cannot remove {}", path.shown()), status))
    }

    /// As [`Store::remove`], within a directory that is known.
    pub fn remove_entry(&self, parent: InodeId, name: &Name, kind: FileKind) -> Result<(), Status> {
        let name = name.clone();
        let op = if kind == FileKind::Directory { Op::Rmdir { parent, name } } else { Op::Unlink { parent, name } };
        self.change(op)
    }

    /// Renames; an existing file at the target is replaced.
    pub fn rename(&self, from: &TreePath, to: &TreePath) -> Result<(), Failure> {
        let (from_parent, from_name) = self.place(from)?;
        let (to_parent, to_name) = self.place(to)?;
        let (from_name, to_name) = (from_name.clone(), to_name.clone());
        let op = Op::Rename { from_parent, from_name, to_parent, to_name, mode: RenameMode::Replace };
        self.change(op).map_err(|status| Failure::status(format!("cannot move {} to {}", from.shown(), to.shown()), status))
    }

    /// Stores a stream; the path shows it whole or not at all. On return it is replicated.
    pub fn put(&self, path: &TreePath, source: &mut dyn Read, source_name: &str) -> Result<(), Failure> {
        self.place(path)?;
        let mut source = Watched { inner: source, error: None };
        let result = self.client.put(&path.bytes(), &mut source);
        match (result, source.error) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(error)) => Err(Failure::local(format!("cannot read {source_name}"), &error)),
            (Err(error), None) => Err(Failure::status(format!("cannot write {}", path.shown()), error.status)),
        }
    }

    /// Writes a file's bytes to a stream.
    pub fn fetch(&self, path: &TreePath, target: &mut dyn Write, target_name: &str) -> Result<(), Failure> {
        let mut target = Watched { inner: target, error: None };
        let result = self.client.get(&path.bytes(), &mut target);
        let flushed = if result.is_ok() { target.flush() } else { Ok(()) };
        match (result, target.error.or(flushed.err())) {
            (_, Some(error)) => Err(Failure::local(format!("cannot write {target_name}"), &error)),
            (Err(error), None) => Err(Failure::status(format!("cannot read {}", path.shown()), error.status)),
            (Ok(_), None) => Ok(()),
        }
    }

    /// The runs of a file and who holds each.
    pub fn locate(&self, attributes: &Attributes, map: &ClusterMap) -> Result<Vec<Run>, Status> {
        let mut runs = Vec::new();
        let mut offset = 0;
        while offset < attributes.size {
            let range = ByteRange { offset, length: LOCATE_BYTES.min(attributes.size - offset) };
            let query = Query::Extents { ino: attributes.ino, range, known: None };
            let Answer::Extents { extents, chunks, .. } = self.query(query)? else { return Err(Status::Internal) };
            let holders: BTreeMap<ChunkHash, Vec<NodeId>> = chunks.into_iter().map(|place| (place.hash, place.holders)).collect();
            let Some(end) = extents.last().map(|extent| extent.offset.saturating_add(extent.length)) else { break };
            for extent in extents {
                let nodes = match &extent.source {
                    Source::Chunk { hash, .. } => holders.get(hash).cloned().unwrap_or_default(),
                    _ => Vec::new(),
                };
                runs.push(Run { extent, holders: nodes.into_iter().map(|node| Holder::of(map, node)).collect() });
            }
            if end <= offset {
                return Err(Status::Internal); // An answer that does not advance would be asked for ever.
            }
            offset = end;
        }
        Ok(runs)
    }

    /// The newest cluster map.
    pub fn map(&self) -> Result<ClusterMap, Failure> {
        match self.client.call(Call::Map) {
            Ok(Reply::Map(map)) => Ok(map),
            Ok(_) => Err(Failure::status("cluster map", Status::Internal)),
            Err(status) => Err(Failure::status("cluster map", status)),
        }
    }

    /// The leader's view of the cluster, or any node's while there is no leader.
    pub fn report(&self) -> Result<StatusReport, Error> {
        self.client.status().map(|report| *report)
    }

    /// Checks the whole cluster. What is being repaired is waited for, and `patience` beyond.
    pub fn fsck(&self, patience: Duration) -> Result<dfs::fsck::Report, Failure> {
        dfs::fsck::run(&mut Checking(&self.client), patience).map_err(|status| Failure::status("fsck", status))
    }

    /// Harms or hurries one node.
    pub fn debug(&self, node: NodeId, action: DebugAction) -> Result<(), Status> {
        self.client.debug(node, action)
    }

    /// Size and free space.
    pub fn space(&self) -> Result<Space, Failure> {
        self.client.space().map_err(|error| Failure::status("df", error.status))
    }

    /// Returns when all that mounts had accepted is safe.
    pub fn sync(&self) -> Result<(), Failure> {
        self.client.sync().map_err(|error| Failure::status("sync", error.status))
    }

    /// Has a node's data moved elsewhere; returns when that has begun.
    pub fn drain(&self, node: NodeId) -> Result<(), Status> {
        self.client.drain(node).map_err(|error| error.status)
    }

    /// Stops the whole cluster.
    pub fn shutdown(&self) -> Result<(), Failure> {
        self.client.shutdown().map_err(|error| Failure::status("shutdown", error.status))
    }
}

/// A check by way of a client.
struct Checking<'a>(&'a Client);

impl dfs::fsck::Probe for Checking<'_> {
    fn map(&mut self) -> Result<ClusterMap, Status> {
        match self.0.call(Call::Map)? {
            Reply::Map(map) => Ok(map),
            _ => Err(Status::Malformed),
        }
    }

    fn check(&mut self, node: Option<NodeId>, check: Check) -> Result<Checked, Status> {
        self.0.check(node, check)
    }

    #[allow(clippy::disallowed_methods)] // The command waits with its user.
    fn pause(&mut self, length: Duration) {
        std::thread::sleep(length);
    }
}

fn options(global: &Global) -> Options {
    Options { op_timeout: global.op_timeout, ..Options::default() }
}

/// What to say when no cluster answers.
pub fn unreachable(global: &Global, error: Error) -> Failure {
    let list = global.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match error.status {
        Status::Unavailable | Status::TimedOut | Status::Disconnected | Status::NotMember => Failure::new(format!(
            "no cluster answers at {list} ({}); start a node with dfs-node, or name one with --nodes or DFS_NODES",
            error.status
        )),
        status => Failure::status(format!("cannot use the cluster at {list}"), status),
    }
}

/// A stream of this machine that remembers its error, so that it is not taken for one of the cluster.
struct Watched<S> {
    inner: S,
    error: Option<io::Error>,
}

impl<S> Watched<S> {
    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            // An interrupted call is repeated by whoever called.
            if error.kind() != io::ErrorKind::Interrupted {
                self.error = Some(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
            }
        })
    }
}

impl Read for Watched<&mut dyn Read> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        self.noted(result)
    }
}

impl Write for Watched<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        self.noted(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.noted(result)
    }
}

/// Who calls: user, group, and the permission bits that new files do without.
fn caller() -> (u32, u32, u16) {
    // SAFETY: these calls cannot fail and touch no memory; this process has no other thread that makes files.
    unsafe {
        let umask = libc::umask(0o022);
        libc::umask(umask);
        (libc::geteuid(), libc::getegid(), umask as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> TreePath {
        TreePath::parse(OsStr::new(text)).expect("a path")
    }

    #[test]
    fn paths_are_names_from_the_root() {
        assert_eq!(parse("/a//b/./c/").names, parse("a/b/c").names);
        assert!(parse("/").name().is_none());
        assert_eq!(parse("/a/b").parent().shown(), "/a");
        assert_eq!(parse("/a").parent().shown(), "/");
        assert_eq!(parse("/").join(&Name::new("x").unwrap()).shown(), "/x");
        assert!(TreePath::parse(OsStr::new("/a/../b")).is_err());
        assert!(TreePath::parse(OsStr::new(&"x".repeat(256))).is_err());
        assert!(TreePath::parse(OsStr::from_bytes(b"/\xff\n")).is_ok());
    }
}
