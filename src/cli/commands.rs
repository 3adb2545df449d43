//! What each command does. Results are printed only when they are whole; file content streams.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dfs::cluster_map::ClusterMap;
use dfs::status::Status;
use dfs::types::{Attributes, FileKind, InodeId};

use crate::args::{Cli, Command};
use crate::debug;
use crate::failure::Failure;
use crate::fsck;
use crate::members;
use crate::recover;
use crate::show::{self, Entry, Holder};
use crate::store::{self, Store, TreePath};
use crate::unmount;

/// Does what the command line says.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    if let Command::Umount { dir } = &cli.command {
        return unmount::run(dir, cli.global.op_timeout);
    }
    if let Command::Put { src, .. } = &cli.command {
        refuse_directory(src)?;
    }
    if let Command::Status = &cli.command {
        let mut report = Store::open_later(&cli.global)?.report().map_err(|error| store::unreachable(&cli.global, error))?;
        recover::explain(&cli.global, &mut report);
        return print_either(cli.global.json, || show::status_json(&report), || show::status_text(&report));
    }
    if let Command::Recover { yes } = &cli.command {
        return print(recover::run(&cli.global, *yes)?.as_bytes());
    }
    with_store(cli, &Store::open(&cli.global)?)
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
        Command::Fsck => {
            let report = store.fsck(cli.global.op_timeout)?;
            if json {
                print(format!("{}\n", fsck::json(&report)).as_bytes())?
            } else {
                print(&fsck::text(&report))?
            }
            fsck::verdict(&report)
        }
        Command::Sync => store.sync(),
        Command::Debug { action } => print(debug::run(store, action)?.as_bytes()),
        Command::Shutdown => store.shutdown(),
        Command::Drain { node } => members::drain(store, node),
        Command::CanStop { node } => members::can_stop(store, node),
        // `run` has done status, recover and umount, `main` has refused the rest.
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
    store.put(&target, &mut source, &src.display().to_string())
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

fn get(store: &Store, path: &TreePath, dst: &Path) -> Result<(), Failure> {
    store.find_file(path)?;
    if dst == Path::new("-") {
        return store.fetch(path, &mut io::stdout().lock(), "standard output");
    }
    let target = local_target(path, dst);
    let shown = target.display().to_string();
    let mut file = File::create(&target).map_err(|error| Failure::local(format!("cannot write {shown}"), &error))?;
    let result = store.fetch(path, &mut file, &shown);
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
