//! What must hold between the tables. For tests and simulation: a walk over everything.

use std::collections::BTreeMap;

use dfs::limits;
use dfs::types::{ChunkHash, InodeId, ROOT};

use super::Namespace;
use super::extents::Content;
use super::inode::{Body, Cut, Inode};
use super::store::{Key, Record};

/// What the tables say about one inode.
#[derive(Default)]
struct Seen {
    names: u32,
    entries: u64,
    subdirectories: u32,
    blocks: u64,
}

pub(super) fn check(namespace: &Namespace) {
    let mut seen: BTreeMap<InodeId, Seen> = BTreeMap::new();
    let mut references: BTreeMap<ChunkHash, u64> = BTreeMap::new();
    let mut outcomes = BTreeMap::new();
    for (key, record) in namespace.store.records() {
        match (key, record) {
            (Key::Entry(directory, name), Record::Entry(entry)) => {
                dfs::types::Name::new(name.to_vec()).expect("a stored name is a name");
                let body = namespace.body(entry.ino).expect("an entry names an inode");
                let Some(Body::Directory(parent)) = namespace.body(directory) else { panic!("an entry outside a directory") };
                assert!(entry.cookie.0 <= parent.cookie && entry.cookie.0 > 0, "a cookie was given out by its directory");
                seen.entry(entry.ino).or_default().names += 1;
                seen.entry(directory).or_default().entries += 1;
                if let Body::Directory(child) = body {
                    assert_eq!(child.parent, directory, "a directory knows its parent");
                    seen.entry(directory).or_default().subdirectories += 1;
                }
            }
            (Key::Slot(ino, index), Record::Slot(slot)) => {
                let Some(Body::File(file)) = namespace.body(ino) else { panic!("a slot outside a file") };
                assert!(!slot.pieces().is_empty() && slot.is_well_formed(), "a stored slot is well formed and not empty");
                assert!(slot.version <= file.layout && slot.born <= slot.version, "versions come from the file's counter");
                // Only reserved space may lie beyond the end.
                let end = index * limits::SLOT_BYTES + u64::from(slot.content_end());
                assert!(
                    slot.content_end() == 0 || end <= file.size || file.hides(index, slot.born) || namespace.is_orphan(ino),
                    "content beyond the end"
                );
                let mut fresh = slot.clone();
                fresh.restore_sums();
                assert_eq!(fresh, slot, "sums of a slot");
                seen.entry(ino).or_default().blocks += slot.blocks();
                for piece in slot.pieces() {
                    if let Content::Chunk { hash, .. } = piece.content {
                        *references.entry(hash).or_default() += 1;
                    }
                }
            }
            (Key::Outcome(id, number), Record::Outcome(_)) => {
                let session = namespace.store.session(id).expect("an outcome belongs to a session");
                let window = session.answered_below..session.answered_below.saturating_add(limits::SESSION_WINDOW);
                assert!(window.contains(&number), "outcomes lie in the window");
                *outcomes.entry(id).or_default() += 1;
            }
            (Key::Xattr(ino, name), Record::Xattr(value)) => {
                assert!(namespace.exists(ino), "an extended attribute of an inode that is gone");
                let name = dfs::xattr::XattrName::new(name.to_vec()).expect("a stored name is a name");
                assert!(name.class().is_ok() && value.len() <= limits::XATTR_VALUE_BYTES_MAX, "stored attributes were checked");
            }
            _ => {}
        }
    }
    let mut writers = BTreeMap::new();
    for (key, record) in namespace.store.records() {
        match (key, record) {
            (Key::Inode(ino), Record::Inode(inode)) => {
                assert_eq!(inode.xattrs, namespace.store.xattr_flags(ino), "flags of extended attributes");
                check_inode(ino, &inode, &seen.remove(&ino).unwrap_or_default());
                assert!(ino.0 <= namespace.header.last_inode, "inode numbers come from the counter");
            }
            (Key::Chunk(hash), Record::Chunk(chunk)) => {
                assert_eq!(references.remove(&hash), Some(chunk.references), "references of a chunk");
                assert!(chunk.holders.len() <= limits::HOLDERS_MAX, "holders are bounded");
                assert!(chunk.holders.windows(2).all(|pair| pair[0] < pair[1]), "holders are sorted");
            }
            (Key::Session(id), Record::Session(session)) => {
                assert_eq!(outcomes.remove(&id).unwrap_or(0), session.outcomes, "outcomes of a session");
            }
            (Key::Writer(ino), Record::Writer(session)) => {
                assert!(matches!(namespace.body(ino), Some(Body::File(_))), "only files are written alone");
                assert!(namespace.store.session(session).is_some_and(|session| session.caches), "a writer is a session that takes rights");
                *writers.entry(session).or_default() += 1;
            }
            _ => {}
        }
    }
    assert!(writers.values().all(|count: &usize| *count <= limits::SESSION_WRITERS_MAX), "files that one session writes alone");
    assert!(references.is_empty(), "an extent refers to a chunk without a record");
    assert!(seen.is_empty(), "names or content of an inode that is gone");
}

fn check_inode(ino: InodeId, inode: &Inode, seen: &Seen) {
    match &inode.body {
        Body::Directory(directory) => {
            let names = u32::from(inode.links > 0 && ino != ROOT);
            assert_eq!(seen.names, names, "a directory has one name until it is removed");
            let links = if inode.links == 0 { 0 } else { 2 + seen.subdirectories };
            assert_eq!(inode.links, links, "links of a directory");
            assert_eq!(seen.entries, directory.entries, "entries of a directory");
        }
        Body::File(file) => {
            assert_eq!(inode.links, seen.names, "links of a file");
            assert_eq!(file.blocks, seen.blocks, "blocks of a file");
            assert!(file.cuts.len() <= limits::CUTS_MAX, "cuts are bounded");
            let ordered = |pair: &[Cut]| pair[0].from < pair[1].from && pair[0].generation < pair[1].generation;
            assert!(file.cuts.windows(2).all(ordered), "cuts are ordered");
        }
        _ => assert_eq!(inode.links, seen.names, "links of an inode"),
    }
}
