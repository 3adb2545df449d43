//! What a check finds: every rule broken once.

use std::time::Duration;

use dfs::fsck::{self, Probe, Report};
use dfs::wire::fsck::{Check, Checked, Position};

use super::super::chunks::ChunkRecord;
use super::super::extents::{Content, Slot};
use super::super::store::{Entry, Key, Record};
use super::*;

struct AtRest<'a>(&'a mut Namespace);

impl Probe for AtRest<'_> {
    fn map(&mut self) -> Result<ClusterMap, Status> {
        Ok(self.0.map().clone())
    }

    fn check(&mut self, _: Option<NodeId>, check: Check) -> Result<Checked, Status> {
        match check {
            Check::Missing { .. } => Ok(Checked::Missing { visited: 0, missing: Vec::new(), next: None }),
            Check::Unnamed { .. } => Ok(Checked::Unnamed { visited: 0, pending: 0, unnamed: Vec::new(), next: None }),
            check => self.0.check(&check),
        }
    }

    fn pause(&mut self, _: Duration) {}
}

fn check(world: &mut World) -> Report {
    fsck::run(&mut AtRest(&mut world.namespace), Duration::ZERO).unwrap()
}

/// `/file` with a chunk, `/link` to it, `/dir` with `/dir/inner`, `/small` with a few bytes.
fn world() -> (World, InodeId, InodeId) {
    let mut world = World::new();
    let file = world.file("file");
    world.write_chunk(file, 0, claim(1, 1, &[1, 2])).unwrap();
    world.op(Op::Link { ino: file, parent: ROOT, name: name("link") }).unwrap();
    let directory = world.create(ROOT, "dir", NewKind::Directory).unwrap().ino;
    world.create(directory, "inner", NewKind::File).unwrap();
    let small = world.file("small");
    world.write(small, WriteAt::Offset(0), b"bytes").unwrap();
    (world, file, directory)
}

#[test]
fn every_rule_that_is_broken_is_found() {
    let hash = claim(1, 1, &[]).hash;
    let gone = InodeId(99);
    type Damage = Box<dyn Fn(&mut Namespace, InodeId, InodeId)>;
    let damages: Vec<(&str, Damage)> = vec![
        ("+1 names", Box::new(|tree, file, _| tree.store.update_inode(file, |inode| inode.links -= 1))),
        ("-1 names", Box::new(|tree, _, _| tree.store.put_entry(ROOT, b"link", None))),
        ("-1 entries", Box::new(|tree, _, directory| tree.store.put_entry(directory, b"inner", None))),
        ("+1 subdirectories", Box::new(|tree, _, _| tree.store.update_inode(ROOT, |inode| inode.links -= 1))),
        (
            "blocks of 512 bytes",
            Box::new(|tree, file, _| {
                tree.store.update_inode(file, |inode| inode.file_mut().unwrap().blocks += 3);
            }),
        ),
        (
            "names an inode that is gone",
            Box::new(move |tree, _, _| tree.store.put_entry(ROOT, b"x", Some(Entry { ino: gone, cookie: Cookie(1) }))),
        ),
        (
            "another parent",
            Box::new(|tree, _, directory| {
                tree.store.update_inode(directory, |inode| inode.directory_mut().unwrap().parent = directory);
            }),
        ),
        ("cookie", Box::new(|tree, file, _| tree.store.put_entry(ROOT, b"link", Some(Entry { ino: file, cookie: Cookie(1 << 40) })))),
        (
            "-1 extents",
            Box::new(move |tree, _, _| {
                let chunk = tree.store.chunk(&hash).unwrap().clone();
                tree.store.put_chunk(hash, Some(ChunkRecord { references: chunk.references + 1, ..chunk }));
            }),
        ),
        ("chunk that has no record", Box::new(move |tree, _, _| tree.store.put_chunk(hash, None))),
        ("content beyond the end", Box::new(|tree, file, _| tree.store.update_inode(file, |inode| inode.file_mut().unwrap().size = 10))),
        (
            "belongs to no file",
            Box::new(move |tree, _, _| {
                let mut slot = Slot::new(1);
                slot.splice(0, 5, Some(Content::Inline(Bytes::from_static(b"stray"))), &mut Default::default());
                tree.store.put_slot(gone, 0, Some(slot));
            }),
        ),
        ("extended attribute of an inode that is gone", Box::new(move |tree, _, _| tree.store.put_xattr(gone, b"user.x", Some(b"1")))),
        ("flags do not agree", Box::new(|tree, file, _| tree.store.put_xattr(file, b"user.x", Some(b"1")))),
        (
            "holders are out of order",
            Box::new(move |tree, _, _| {
                let chunk = tree.store.chunk(&hash).unwrap().clone();
                tree.store.put_chunk(hash, Some(ChunkRecord { holders: [NodeId(2), NodeId(1)].into(), ..chunk }));
            }),
        ),
        ("writer is no session", Box::new(move |tree, file, _| tree.store.put_writer(file, Some(SessionId(12345))))),
        (
            "outside its window",
            Box::new(|tree, _, _| {
                let Some((Key::Outcome(_, number), Record::Outcome(outcome))) = tree.store.first_after(Some(&Key::Outcome(SESSION, 0)))
                else {
                    panic!("an outcome is remembered")
                };
                tree.store.put_outcome(SessionId(12345), number, Some(*outcome));
            }),
        ),
        ("never given out", Box::new(|tree, _, _| tree.header.last_inode = 3)),
        ("sums", Box::new(|tree, _, _| tree.store.skew_for_test())),
    ];
    let (mut sound, ..) = world();
    let report = check(&mut sound);
    assert!(report.is_clean() && report.summed, "{report:?}");
    assert_eq!((report.inodes, report.names, report.chunks), (5, 5, 1));
    for (complaint, damage) in damages {
        let (mut world, file, directory) = world();
        damage(&mut world.namespace, file, directory);
        let report = check(&mut world);
        let found = report.flaws.iter().any(|flaw| format!("{} {}", flaw.about, flaw.what).contains(complaint));
        assert!(found && !report.is_clean(), "{complaint}: {:?}", report.flaws);
    }
}

#[test]
fn exactly_the_files_without_a_living_holder_are_named() {
    let (mut world, file, directory) = world();
    let healthy = world.file("healthy");
    world.write_chunk(healthy, 0, claim(2, 2, &[1, 2])).unwrap();
    let deep = world.create(directory, "deep", NewKind::Directory).unwrap().ino;
    let lost = world.create(deep, "lost", NewKind::File).unwrap().ino;
    world.write_chunk(lost, 5000, claim(3, 3, &[1, 2])).unwrap();
    assert!(check(&mut world).is_clean());
    // One chunk has lost one of its holders, two have lost both.
    let items = |fill: u8| vec![(claim(fill, 1, &[]).hash, Instance { session: SESSION, counter: u64::from(fill) })];
    for (node, fill) in [(1, 1), (2, 1), (1, 2), (1, 3), (2, 3)] {
        world.apply(Command::Lost { node: NodeId(node), items: items(fill) }).unwrap();
    }
    let report = check(&mut world);
    assert_eq!(report.lost_files, [&b"/dir/deep/lost"[..], b"/file", b"/link"]);
    assert_eq!((report.dark_chunks, report.short, report.short_left), (2, 1, 1));
    assert!(report.flaws.is_empty() && !report.is_clean());
    // What is cut off is not lost, and a file without a name is only counted.
    world.truncate(lost, 0).unwrap();
    world.unlink("file").unwrap();
    world.unlink("link").unwrap();
    let report = check(&mut world);
    assert!(report.lost_files.is_empty(), "{:?}", report.lost_files);
    assert_eq!((report.lost_orphans, report.orphans), (1, 1));
    assert_eq!(world.namespace.attributes(file).unwrap().links, 0);
}

#[test]
fn slices_are_bounded_and_go_on_from_anywhere() {
    let mut world = World::new();
    for number in 0..3000 {
        world.file(&format!("f{number}"));
    }
    let (mut after, mut inodes, mut names, mut count) = (None, 0, 0, 0);
    loop {
        let Ok(Checked::Tables(slice)) = world.namespace.check(&Check::Tables { after }) else { panic!() };
        let visited = slice.tallies.len() as u64 + slice.names + slice.chunks;
        assert!(visited <= 3 * limits::COMMAND_VISITS_MAX as u64, "{visited} in one slice");
        (inodes, names, count) = (inodes + slice.inodes, names + slice.names, count + 1);
        after = slice.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((inodes, names), (3001, 3000));
    assert!((6..12).contains(&count), "{count} slices");
    // A place that is no record, or of a table that is empty.
    for position in
        [Position::Entry(InodeId(1), b"f25x".to_vec()), Position::Writer(InodeId(7)), Position::Xattr(InodeId(u64::MAX), vec![255; 255])]
    {
        assert!(matches!(world.namespace.check(&Check::Tables { after: Some(position) }), Ok(Checked::Tables(_))));
    }
}
