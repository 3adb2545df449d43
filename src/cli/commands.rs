//! What each command does. Streams files in bounded pieces; prints results only when they are whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use dfs::cluster_map::ClusterMap;
use dfs::status::Status;
use dfs::types::{Attributes, ByteRange, FileKind, InodeId};

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::show::{self, Entry, Holder};
use crate::store::{Store, TreePath};
use crate::unmount;

/// Bytes of a file that are on their way at once.
const PIECE_BYTES: usize = 8 << 20;

/// Does what the command line says.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    if let Command::Umount { dir } = &cli.command {
        return unmount::run(dir, cli.global.op_timeout);
    }
    if let Command::Put { src, .. } = &cli.command {
        refuse_directory(src)?;
    }
    let store = Store::open(&cli.global)?;
    let result = with_store(cli, &store);
    if !matches!(cli.command, Command::Shutdown) {
        store.close();
    }
    result
}

fn with_store(cli: &Cli, store: &Store) -> Result<(), Failure> {
    let json = cli.global.json;
    match &cli.command {
        Command::Put { src, path } => put(store, src, &TreePath::parse(path)?),
        Command::Get { path, dst } => get(store, &TreePath::parse(path)?, dst),
        Command::Cat { path } => get(store, &TreePath::parse(path)?, Path::new("-")),
        Command::Ls { holders, path } => list(store, &TreePath::parse(path)?, *holders, json),
        Command::Mkdir { path } => store.make_directory(&TreePath::parse(path)?),
        Command::Rm { recursive, path } => remove(store, &TreePath::parse(path)?, *recursive),
        Command::Mv { from, to } => rename(store, &TreePath::parse(from)?, &TreePath::parse(to)?),
        Command::Stat { path } => {
            let path = TreePath::parse(path)?;
            print(show::stat_text(path.shown(), &store.find(&path)?).as_bytes())
        }
        Command::Locate { path } => locate(store, &TreePath::parse(path)?, json),
        Command::Df => {
            let space = store.space()?;
            print_either(json, || show::space_json(&space), || show::space_text(&space))
        }
        Command::Status => {
            let report = store.report()?;
            print_either(json, || show::status_json(&report), || show::status_text(&report))
        }
        Command::Sync => store.sync(),
        Command::Shutdown => store.shutdown(),
        // `run` has done umount, `main` has refused the rest.
        _ => Err(Failure::status("command", Status::NotYet)),
    }
}

/// Results go to stdout whole, or the command fails.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::local("standard output", &error))
}

fn print_either(json: bool, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if json { print(format!("{}\n", value()).as_bytes()) } else { print(text().as_bytes()) }
}

fn refuse_directory(src: &Path) -> Result<(), Failure> {
    if src != Path::new("-") && src.is_dir() {
        return Err(Failure::new(format!("{}: is a directory; mount the cluster with dfs-mount and use cp -r or tar", src.display())));
    }
    Ok(())
}

fn put(store: &Store, src: &Path, path: &TreePath) -> Result<(), Failure> {
    let mut source: Box<dyn Read> = if src == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(src).map_err(|error| Failure::local(format!("cannot read {}", src.display()), &error))?)
    };
    let target = into_directory(store, path, src)?;
    let (ino, created) = store.create(&target)?;
    let result = copy_in(store, &mut source, ino, src, &target);
    if result.is_err() && created {
        // Half a file under the new name would pass for a whole one. If this fails too, the first failure is the one to tell.
        let _ = store.remove(&target, FileKind::File);
    }
    result
}

/// The path itself, or the source's name in it if it is a directory.
fn into_directory(store: &Store, path: &TreePath, src: &Path) -> Result<TreePath, Failure> {
    match store.look(path) {
        Ok(found) if found.kind == FileKind::Directory => {
            let name = src
                .file_name()
                .filter(|_| src != Path::new("-"))
                .ok_or_else(|| Failure::new(format!("{}: is a directory, and standard input has no name; name the file", path.shown())))?;
            let name = TreePath::parse(name)?;
            Ok(name.name().map_or_else(|| path.clone(), |name| path.join(name)))
        }
        Ok(_) | Err(Status::NotFound) => Ok(path.clone()),
        Err(status) => Err(Failure::status(path.shown(), status)),
    }
}

fn copy_in(store: &Store, mut source: &mut dyn Read, ino: InodeId, src: &Path, target: &TreePath) -> Result<(), Failure> {
    let mut offset = 0u64;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut source).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let length = read.map_err(|error| Failure::local(format!("cannot read {}", src.display()), &error))?;
        if length == 0 {
            return Ok(());
        }
        let failed = |status| Failure::status(format!("cannot write {}", target.shown()), status);
        store.write(ino, offset, Bytes::from(piece)).map_err(failed)?;
        offset += length as u64;
    }
}

fn get(store: &Store, path: &TreePath, dst: &Path) -> Result<(), Failure> {
    let attributes = store.find_file(path)?;
    if dst == Path::new("-") {
        return copy_out(store, path, attributes.ino, &mut io::stdout().lock(), "standard output");
    }
    let target = local_target(path, dst);
    let shown = target.display().to_string();
    let mut file = File::create(&target).map_err(|error| Failure::local(format!("cannot write {shown}"), &error))?;
    let result = copy_out(store, path, attributes.ino, &mut file, &shown);
    if result.is_err() && target.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
        // Half a file would pass for a whole one. If this fails too, the first failure is the one to tell.
        let _ = fs::remove_file(&target);
    }
    result
}

fn local_target(path: &TreePath, dst: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    match path.name() {
        Some(name) if dst.is_dir() => dst.join(std::ffi::OsStr::from_bytes(name.as_bytes())),
        _ => dst.to_path_buf(),
    }
}

fn copy_out(store: &Store, path: &TreePath, ino: InodeId, target: &mut dyn Write, shown: &str) -> Result<(), Failure> {
    let mut offset = 0u64;
    loop {
        let range = ByteRange { offset, length: PIECE_BYTES as u64 };
        let bytes = store.read(ino, range).map_err(|status| Failure::status(format!("cannot read {}", path.shown()), status))?;
        if bytes.is_empty() {
            return target.flush().map_err(|error| Failure::local(format!("cannot write {shown}"), &error));
        }
        target.write_all(&bytes).map_err(|error| Failure::local(format!("cannot write {shown}"), &error))?;
        offset += bytes.len() as u64;
    }
}

fn list(store: &Store, path: &TreePath, with_holders: bool, json: bool) -> Result<(), Failure> {
    let attributes = store.find(path)?;
    let map = if with_holders { Some(store.map()?) } else { None };
    let failed = |status| Failure::status(path.shown(), status);
    let found: Vec<(Vec<u8>, Attributes)> = if attributes.kind == FileKind::Directory {
        let entries = store.entries(attributes.ino).map_err(failed)?;
        entries.into_iter().map(|entry| (entry.name.as_bytes().to_vec(), entry.attributes)).collect()
    } else {
        vec![(path.shown().as_bytes().to_vec(), attributes)]
    };
    let mut listing = Vec::with_capacity(found.len());
    for (name, attributes) in found {
        let holders = match &map {
            Some(map) => match holders(store, &attributes, map) {
                Err(Status::NotFound | Status::Stale) => continue, // Removed since the directory was read.
                result => Some(result.map_err(failed)?),
            },
            None => None,
        };
        listing.push(Entry { name, attributes, holders });
    }
    listing.sort_by(|a, b| a.name.cmp(&b.name));
    if json { print(format!("{}\n", show::listing_json(&listing)).as_bytes()) } else { print(&show::listing_text(&listing)) }
}

/// Whoever holds any chunk of the file, sorted.
fn holders(store: &Store, attributes: &Attributes, map: &ClusterMap) -> Result<Vec<Holder>, Status> {
    if attributes.kind != FileKind::File {
        return Ok(Vec::new());
    }
    let runs = store.locate(attributes, map)?;
    let mut holders: Vec<Holder> = runs.into_iter().flat_map(|run| run.holders).collect();
    holders.sort();
    holders.dedup();
    Ok(holders)
}

fn locate(store: &Store, path: &TreePath, json: bool) -> Result<(), Failure> {
    let attributes = store.find_file(path)?;
    let map = store.map()?;
    let runs = store.locate(&attributes, &map).map_err(|status| Failure::status(path.shown(), status))?;
    print_either(json, || show::runs_json(path.shown(), attributes.size, &runs), || show::runs_text(&runs))
}

fn remove(store: &Store, path: &TreePath, recursive: bool) -> Result<(), Failure> {
    let attributes = store.find(path)?;
    if recursive && attributes.kind == FileKind::Directory {
        empty(store, path, attributes.ino)?;
        if path.name().is_none() {
            return Ok(()); // The root itself stays.
        }
    }
    store.remove(path, attributes.kind)
}

/// Removes all that is in a directory, deepest first. Keeps its own stack, as a tree can be deeper than a thread's.
fn empty(store: &Store, path: &TreePath, ino: InodeId) -> Result<(), Failure> {
    let mut open = vec![(path.clone(), ino, store.entries(ino).map_err(|status| Failure::status(path.shown(), status))?)];
    while let Some((path, ino, entries)) = open.last_mut() {
        let Some(entry) = entries.pop() else {
            let done = open.pop().map(|(path, ..)| path);
            if let (Some(done), Some((_, parent, _))) = (done, open.last()) {
                let Some(name) = done.name() else { continue };
                let removed = store.remove_entry(*parent, name, FileKind::Directory);
                gone_is_fine(removed).map_err(|status| Failure::status(format!("cannot remove {}", done.shown()), status))?;
            }
            continue;
        };
        let child = path.join(&entry.name);
        let failed = |status| Failure::status(format!("cannot remove {}", child.shown()), status);
        if entry.attributes.kind == FileKind::Directory {
            let inner = store.entries(entry.attributes.ino).map_err(failed)?;
            open.push((child, entry.attributes.ino, inner));
        } else {
            gone_is_fine(store.remove_entry(*ino, &entry.name, entry.attributes.kind)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Someone else removed it first: what was wanted has happened.
fn gone_is_fine(result: Result<(), Status>) -> Result<(), Status> {
    if result == Err(Status::NotFound) { Ok(()) } else { result }
}

fn rename(store: &Store, from: &TreePath, to: &TreePath) -> Result<(), Failure> {
    match store.look(to) {
        Ok(found) if found.kind == FileKind::Directory && from != to => match from.name() {
            Some(name) => store.rename(from, &to.join(name)),
            None => store.rename(from, to),
        },
        _ => store.rename(from, to),
    }
}
