//! Reserved, punched and shared extents.

use dfs::locks::{LockKind, LockMode, LockRange};

use super::*;

const SLOT: u64 = limits::SLOT_BYTES;

/// A whole slot's chunk; nobody looks at its bytes.
fn large(counter: u64) -> ChunkClaim {
    let instance = Instance { session: SESSION, counter };
    let hash = ChunkHash::of(&counter.to_le_bytes());
    ChunkClaim { hash, length: SLOT as u32, instance, receipts: vec![NodeId(1), NodeId(2)] }
}

impl World {
    fn allocate(&mut self, ino: InodeId, offset: u64, length: u64, mode: AllocateMode) -> Result<u64, Status> {
        let range = ByteRange { offset, length };
        match self.op(Op::Allocate { ino, range, mode, kill_privileges: false })? {
            Replied::Ranged { done, .. } => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    fn reserve(&mut self, ino: InodeId, offset: u64, length: u64) -> Result<u64, Status> {
        self.allocate(ino, offset, length, AllocateMode::Reserve { keep_size: true })
    }

    fn copy(&mut self, from: (InodeId, u64), to: (InodeId, u64), length: u64) -> Result<u64, Status> {
        let ((from, from_offset), (to, to_offset)) = (from, to);
        match self.op(Op::Copy { from, from_offset, to, to_offset, length, kill_privileges: false })? {
            Replied::Ranged { done, .. } => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    fn attributes(&self, ino: InodeId) -> Attributes {
        self.namespace.attributes(ino).unwrap()
    }

    fn seek(&self, ino: InodeId, offset: u64, what: Sought) -> Result<u64, Status> {
        match self.namespace.query(&Query::Seek { ino, offset, what })? {
            Answer::Sought { offset, found: true } => Ok(offset),
            Answer::Sought { offset: further, found: false } if further > offset => self.seek(ino, further, what),
            other => panic!("{other:?}"),
        }
    }

    /// Reserves until not one more slot fits; tells how many bytes did.
    fn fill(&mut self, ino: InodeId) -> u64 {
        let (mut at, mut length) = (0, 256 * SLOT);
        while length >= 512 {
            match self.reserve(ino, at, length) {
                Ok(done) => at += done,
                Err(status) => {
                    assert_eq!(status, Status::NoSpace);
                    length /= 2;
                }
            }
        }
        at
    }
}

#[test]
fn what_is_reserved_can_be_written_when_nothing_else_can() {
    let mut world = World::new();
    let (reserved, other) = (world.file("reserved"), world.file("other"));
    let length = world.fill(reserved);
    assert!(length > 1000 * SLOT && length < 1024 * SLOT, "about all of a GiB: {}", length / SLOT);
    assert_eq!((world.attributes(reserved).size, world.attributes(reserved).blocks), (0, length.div_ceil(512)));
    let full = world.namespace.usage();
    // The records of a command itself are counted once it is applied.
    assert!(full.charged_bytes + full.namespace_bytes <= world.namespace.capacity() + 300 * 256);
    assert_eq!(world.write_chunk(other, 0, large(1)).map(|_| ()), Err(Status::NoSpace));
    // Across the end of what is reserved: refused as a whole.
    assert_eq!(world.write_chunk(reserved, length - SLOT / 2, large(2)).map(|_| ()), Err(Status::NoSpace));
    for slot in 0..4 {
        world.write_chunk(reserved, slot * SLOT, large(3 + slot)).unwrap();
    }
    // Inside one slot, in pieces: each costs more than its part of the one run, and none may be refused.
    for index in 0..200 {
        let at = 10 * SLOT + index * 5000;
        match index % 2 {
            0 => world.write(reserved, WriteAt::Offset(at), &[1; 100]).map(|_| ()).unwrap(),
            _ => world.write_chunk(reserved, at, claim(index as u8, 100 + index, &[1, 2])).map(|_| ()).unwrap(),
        }
    }
    let after = world.namespace.usage();
    assert!(after.charged_bytes < full.charged_bytes + SLOT / 4, "what was written is not charged twice");
    assert_eq!(world.attributes(reserved).blocks, length.div_ceil(512), "and occupies what was reserved");
    assert_eq!(world.write_chunk(other, 0, large(1000)).map(|_| ()), Err(Status::NoSpace));
    // Given back by punching and by truncation.
    world.allocate(reserved, 20 * SLOT, 8 * SLOT, AllocateMode::Punch).unwrap();
    world.write_chunk(other, 0, large(1001)).unwrap();
    world.truncate(reserved, 0).unwrap();
    let cuts: Vec<InodeId> = world.namespace.cuts_pending().collect();
    while world.namespace.cuts_pending().next().is_some() {
        world.apply(Command::Trim { inos: cuts.clone() }).unwrap();
    }
    assert_eq!(world.attributes(reserved).blocks, 0);
    assert!(world.namespace.usage().charged_bytes < 2 * SLOT);
    world.namespace.check_invariants();
}

/// What the session has reserved is enough for what it was promised, whatever else wants room meanwhile, and however the bytes come.
#[test]
fn neither_names_nor_small_runs_eat_what_is_reserved() {
    let mut world = World::new();
    let files: Vec<InodeId> = (0..4).map(|index| world.file(&format!("f{index}"))).collect();
    for &ino in &files {
        assert!(matches!(world.op(Op::Acquire { ino }), Ok(Replied::Acquired { granted: true, .. })));
    }
    let used = |world: &World| world.namespace.capacity() - world.namespace.spare();
    let Ok(Replied::Reserved { bytes }) = world.op(Op::Reserve { bytes: u64::MAX }) else { panic!("nothing was reserved") };
    let kept = dfs::capacity::kept_for_changes(world.namespace.capacity());
    assert!(bytes > world.namespace.capacity() / 64 * 61 && world.namespace.spare() + 1000 > 2 * kept, "names find some room");
    let target = vec![b'x'; 3000];
    let refused = (0..).find_map(|index| world.create(ROOT, &format!("s{index}"), NewKind::Symlink { target: target.clone() }).err());
    assert_eq!((refused, world.namespace.spare() < kept + 4000), (Some(Status::NoSpace), true));
    assert_eq!(world.write(files[0], WriteAt::Offset(0), &[1; 4000]).map(|_| ()), Err(Status::NoSpace), "nor does it fit unreserved");
    // Runs of chunks and of inline bytes that split each other, in one commit and in many.
    let (mut promised, mut left) = (0, bytes);
    for round in 0..400_u64 {
        let mut patches = Vec::new();
        let mut chunks = Vec::new();
        for run in 0..1 + round % 7 {
            let at = WriteAt::Offset((round * 7919 + run * 104_729) % (3 * SLOT));
            if (round + run) % 2 == 0 {
                let claim = claim((round * 7 + run) as u8, 1 + round * 7 + run, &[1, 2]);
                let source = Source::Chunk { hash: claim.hash, offset: 0 };
                patches.push(Patch { at, length: u64::from(claim.length), source });
                if chunks.iter().all(|other: &ChunkClaim| other.hash != claim.hash) {
                    chunks.push(claim);
                }
            } else {
                patches.push(Patch { at, length: 100, source: Source::Inline(Bytes::from(vec![round as u8 | 1; 100])) });
            }
        }
        let bytes = patches.iter().map(|patch| patch.length).sum();
        promised += dfs::capacity::behind_charge(bytes, patches.len() as u64);
        let behind = Some(Behind { written: Timestamp::default(), yields: false });
        let ino = files[(round % 4) as usize];
        world.op(Op::Write { ino, patches, chunks, kill_privileges: false, behind }).unwrap();
        let now = world.namespace.reserved(SESSION);
        assert!(left - now <= dfs::capacity::behind_charge(bytes, 1 + round % 7), "more than was promised, round {round}");
        left = now;
    }
    assert!(bytes - left <= promised && bytes - left > 100_000);
    assert!(used(&world) <= world.namespace.capacity(), "the books are balanced");
    world.unlink("s0").unwrap();
    world.op(Op::Reserve { bytes: 0 }).unwrap();
    world.write(files[0], WriteAt::Offset(0), &[1; 4000]).unwrap();
    world.namespace.check_invariants();
}

/// Makes room, or tells what was granted already: neither is refused where nothing new finds room.
#[test]
fn a_full_cluster_lets_holes_be_punched_and_locks_be_told() {
    let mut world = World::new();
    let (file, other) = (world.file("a"), world.file("b"));
    assert!(matches!(world.op(Op::Acquire { ino: file }), Ok(Replied::Acquired { granted: true, .. })));
    world.write_chunk(file, 0, large(1)).unwrap();
    world.op(Op::Reserve { bytes: u64::MAX }).unwrap();
    for length in [3000, 10] {
        let target = vec![b'x'; length];
        while world.create(ROOT, &format!("s{}", world.number), NewKind::Symlink { target: target.clone() }).is_ok() {}
    }
    let long = "x".repeat(200);
    while world.op(Op::Link { ino: file, parent: ROOT, name: name(&format!("{}{long}", world.number)) }).is_ok() {}
    assert!(world.namespace.spare_for_new() < 1000);
    let lock =
        |key| SetLock { kind: LockKind::Fcntl, key, range: LockRange::WHOLE, mode: Some(LockMode::Shared), wait: LockWait::Never, pid: 1 };
    for key in 0..50 {
        assert_eq!(world.op(Op::SetLock { ino: file, lock: lock(key) }), Ok(Replied::Lock(Grant::Granted)));
        assert_eq!(world.allocate(file, key * 8192, 4096, AllocateMode::Punch), Ok(4096));
        world.write(file, WriteAt::Offset(500_000 + key * 8192), &[0; 4096]).unwrap();
    }
    assert_eq!(world.op(Op::SetLock { ino: other, lock: lock(1) }), Ok(Replied::Lock(Grant::Granted)));
    assert_eq!(world.copy((file, 0), (other, 0), SLOT), Err(Status::NoSpace));
    assert_eq!(world.write(other, WriteAt::Offset(0), b"x").map(|_| ()), Err(Status::NoSpace));
    world.unlink("a").unwrap();
    world.namespace.check_invariants();
}

#[test]
fn what_cannot_fit_is_refused_at_once_and_what_fits_goes_in_slices() {
    let mut world = World::new();
    let ino = world.file("a");
    assert_eq!(world.reserve(ino, 0, 1 << 40), Err(Status::NoSpace));
    assert_eq!(world.attributes(ino).blocks, 0);
    let (mut done, mut commands) = (0, 0);
    while done < 1000 * SLOT {
        done += world.reserve(ino, done, 1000 * SLOT - done).unwrap();
        commands += 1;
    }
    assert_eq!((done, commands), (1000 * SLOT, 1));
    // Only the slice that ends the range changes the size.
    let grow = AllocateMode::Reserve { keep_size: false };
    let first = world.allocate(ino, 0, 1000 * SLOT, grow).unwrap();
    assert!(first < 1000 * SLOT && world.attributes(ino).size == 0);
    world.allocate(ino, first, 1000 * SLOT - first, grow).unwrap();
    assert_eq!(world.attributes(ino).size, 1000 * SLOT);
    assert_eq!(world.attributes(ino).blocks, 1000 * SLOT / 512);
    for (range, status) in [((0, 0), Status::InvalidArgument), ((limits::FILE_BYTES_MAX, 1), Status::FileTooLarge)] {
        assert_eq!(world.reserve(ino, range.0, range.1), Err(status));
    }
    let directory = world.create(ROOT, "d", NewKind::Directory).unwrap().ino;
    assert_eq!(world.reserve(directory, 0, 1), Err(Status::IsDirectory));
    world.namespace.check_invariants();
}

#[test]
fn zeros_written_into_reserved_space_leave_it_reserved() {
    let mut world = World::new();
    let ino = world.file("a");
    world.allocate(ino, 1000, 5000, AllocateMode::Reserve { keep_size: false }).unwrap();
    let before = world.namespace.usage().charged_bytes;
    let hole = Patch { at: WriteAt::Offset(2000), length: 1000, source: Source::Hole };
    world.patch(ino, vec![hole], Vec::new()).unwrap();
    world.write(ino, WriteAt::Offset(4000), &[0; 100]).unwrap();
    assert_eq!(world.namespace.usage().charged_bytes, before);
    assert_eq!((world.seek(ino, 0, Sought::Data), world.seek(ino, 0, Sought::Hole)), (Err(Status::NoSuchDeviceAddress), Ok(0)));
    world.write(ino, WriteAt::Offset(4000), b"x").unwrap();
    assert_eq!((world.seek(ino, 0, Sought::Data), world.seek(ino, 4000, Sought::Hole)), (Ok(4000), Ok(4001)));
    world.allocate(ino, 3900, 200, AllocateMode::Zero { keep_size: true }).unwrap();
    assert_eq!((world.namespace.usage().charged_bytes, world.attributes(ino).blocks), (before, 10));
    assert_eq!(world.seek(ino, 6000, Sought::Hole), Err(Status::NoSuchDeviceAddress));
    assert_eq!(world.seek(ino, 5999, Sought::Hole), Ok(5999));
    world.namespace.check_invariants();
}

#[test]
fn space_reserved_beyond_the_end_goes_with_any_truncation() {
    let mut world = World::new();
    let ino = world.file("a");
    world.write(ino, WriteAt::Offset(0), b"abc").unwrap();
    for (size, offset) in [(3, 3), (3, 7 * SLOT), (2, 100)] {
        world.reserve(ino, offset, 3 * SLOT).unwrap();
        assert!(world.attributes(ino).blocks > 6000 && world.attributes(ino).size == 3);
        world.namespace.check_invariants();
        world.truncate(ino, size).unwrap();
        assert_eq!((world.attributes(ino).size, world.attributes(ino).blocks), (size, 1));
    }
    assert_eq!(world.namespace.usage().charged_bytes, 0);
    world.namespace.check_invariants();
}

#[test]
fn folding_leaves_reservations_where_they_are() {
    let mut world = World::new();
    let ino = world.file("a");
    world.allocate(ino, 0, SLOT, AllocateMode::Reserve { keep_size: false }).unwrap();
    for at in 0..20 {
        world.write(ino, WriteAt::Offset(at * 40_000), &[1; 100]).unwrap();
    }
    let reserved = |world: &World| world.namespace.store.slot(ino, 0).unwrap().reserved();
    let (before, (_, _, fold)) = (reserved(&world), world.layout(ino));
    assert_eq!((before.bytes, before.pieces), (SLOT - 2000, 20));
    assert_eq!(fold, [], "fragments between reservations are as few as a fold could make them");
    let version = world.namespace.store.slot(ino, 0).unwrap().version;
    let whole = Patch { at: WriteAt::Offset(0), length: SLOT, source: Source::Chunk { hash: large(1).hash, offset: 0 } };
    world.op(Op::Fold { ino, slot: 0, slot_version: version, patches: vec![whole.clone()], chunks: vec![large(1)] }).unwrap();
    assert_eq!(reserved(&world), before);
    // Beyond a number of runs the short ones become part of the chunk, or folding would have no end.
    for at in 0..150 {
        world.write(ino, WriteAt::Offset(500_000 + at * 200), &[1; 100]).unwrap();
    }
    let version = world.namespace.store.slot(ino, 0).unwrap().version;
    assert_eq!(world.layout(ino).2, [(0, version)]);
    world.op(Op::Fold { ino, slot: 0, slot_version: version, patches: vec![whole], chunks: vec![large(2), large(1)] }).unwrap();
    let after = reserved(&world);
    assert!(after.pieces <= limits::FOLD_RESERVATIONS_MAX && after.bytes > SLOT - 80_000, "{after:?}");
    assert_eq!(world.layout(ino).2, []);
    world.namespace.check_invariants();
}

#[test]
fn a_copy_names_the_same_chunks() {
    let mut world = World::new();
    let (from, to) = (world.file("from"), world.file("to"));
    for slot in 0..900 {
        world.write_chunk(from, slot * SLOT, large(1 + slot % 300)).unwrap();
    }
    world.write(from, WriteAt::Offset(10), b"inline").unwrap();
    world.write_chunk(to, 5 * SLOT, claim(1, 5000, &[1, 2])).unwrap();
    world.deleted();
    let before = world.namespace.usage();
    let (mut done, mut commands) = (0, 0);
    while done < 900 * SLOT {
        let more = world.copy((from, done), (to, done), 1 << 40).unwrap();
        assert!(more > 0);
        (done, commands) = (done + more, commands + 1);
    }
    assert!((2..=3).contains(&commands), "{commands} commands");
    assert_eq!(world.copy((from, done), (to, done), 1 << 40), Ok(0), "the source's end");
    let after = world.namespace.usage();
    let lost = dfs::capacity::chunk_charge(1000);
    assert_eq!((after.charged_bytes, after.inline_bytes), (before.charged_bytes - lost, before.inline_bytes + 6));
    assert_eq!(world.deleted().len(), 1, "what the copy replaced is gone");
    assert_eq!(world.layout(from).1.len(), 300);
    assert_eq!(world.layout(from).0, world.layout(to).0);
    assert_eq!(world.attributes(from).blocks, world.attributes(to).blocks);
    world.namespace.check_invariants();
    // The source may go: the bytes stay as long as anything names them.
    world.unlink("from").unwrap();
    while world.namespace.exists(from) {
        world.apply(Command::Reap { inos: vec![from] }).unwrap();
    }
    assert_eq!(world.deleted(), []);
    world.namespace.check_invariants();
}

#[test]
fn copies_are_refused_as_on_linux() {
    let mut world = World::new();
    let (from, to) = (world.file("from"), world.file("to"));
    world.write_chunk(from, 0, large(1)).unwrap();
    assert_eq!(world.copy((from, 0), (from, 100), 101), Err(Status::InvalidArgument));
    assert_eq!(world.copy((from, 0), (from, 100), 100), Ok(100));
    assert_eq!(world.copy((from, 0), (to, limits::FILE_BYTES_MAX), 1), Err(Status::FileTooLarge));
    // A target with as many extents as a slot may have: fold it first. One that covers them all is welcome.
    for index in 0..limits::SLOT_EXTENTS_MAX as u64 {
        world.write(to, WriteAt::Offset(index * 100), b"x").unwrap();
    }
    assert_eq!(world.copy((from, 5000), (to, 50), 10), Err(Status::Busy));
    assert_eq!(world.copy((from, 0), (to, 0), SLOT), Ok(SLOT));
    assert_eq!(world.namespace.store.slot(to, 0).unwrap().pieces().len(), 3);
    // Many extents into one slot: as many as fit, then it has to be folded.
    let scattered = world.file("scattered");
    for index in 0..500 {
        world.write(scattered, WriteAt::Offset(index * 200), b"x").unwrap();
        world.write(scattered, WriteAt::Offset(SLOT + index * 200), b"x").unwrap();
    }
    let squeezed = world.file("squeezed");
    assert_eq!(world.copy((scattered, 0), (squeezed, 0), 100_000), Ok(100_000));
    let done = world.copy((scattered, SLOT), (squeezed, 100_000), 100_000).unwrap();
    assert!(done > 0 && done < 100_000);
    assert_eq!(world.copy((scattered, SLOT + done), (squeezed, 100_000 + done), 100_000 - done), Err(Status::Busy));
    world.namespace.check_invariants();
    let mut world = World::with_limits(SpaceLimits { inline_bytes_max: 100, ..SpaceLimits::default() });
    let (from, to) = (world.file("from"), world.file("to"));
    world.write_chunk(from, 0, claim(1, 1, &[1, 2])).unwrap();
    world.write(from, WriteAt::End, &[1; 60]).unwrap();
    assert_eq!(world.copy((from, 0), (to, 0), 1 << 40), Ok(1000));
    assert_eq!(world.copy((from, 1000), (to, 1000), 1 << 40), Err(Status::NotSupported));
    world.namespace.check_invariants();
}

#[test]
fn seeking_in_a_large_sparse_file_visits_what_is_there() {
    let mut world = World::new();
    let ino = world.file("a");
    world.truncate(ino, 1 << 40).unwrap();
    world.write(ino, WriteAt::Offset(1 << 39), b"x").unwrap();
    assert_eq!(world.seek(ino, 5, Sought::Data), Ok(1 << 39));
    assert_eq!(world.seek(ino, 5, Sought::Hole), Ok(5));
    assert_eq!(world.seek(ino, 1 << 39, Sought::Hole), Ok((1 << 39) + 1));
    assert_eq!(world.seek(ino, (1 << 39) + 1, Sought::Data), Err(Status::NoSuchDeviceAddress));
    for what in [Sought::Data, Sought::Hole] {
        assert_eq!(world.seek(ino, 1 << 40, what), Err(Status::NoSuchDeviceAddress));
    }
    // Data to the end of the file ends in the hole that every file ends with.
    world.write(ino, WriteAt::Offset((1 << 40) - 1), b"y").unwrap();
    assert_eq!(world.seek(ino, (1 << 40) - 1, Sought::Hole), Ok(1 << 40));
    // Many slots: an answer says how far it looked.
    let many = world.file("many");
    for group in 0..100 {
        let patch = |index: u64| Patch {
            at: WriteAt::Offset((group * 50 + index) * SLOT),
            length: SLOT,
            source: Source::Chunk { hash: large(1).hash, offset: 0 },
        };
        world.patch(many, (0..50).map(patch).collect(), vec![large(1)]).unwrap();
    }
    match world.namespace.query(&Query::Seek { ino: many, offset: 0, what: Sought::Hole }).unwrap() {
        Answer::Sought { offset, found: false } => assert_eq!(world.seek(many, offset, Sought::Hole), Ok(5000 * SLOT)),
        other => panic!("{other:?}"),
    }
}
