//! Space through the kernel: fallocate, holes, sharing copies, O_DIRECT, shared mappings. Real nodes, real mounts.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Cluster, Mount, Options, random_bytes, wait_until};

const MIB: u64 = 1 << 20;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn result(code: i64) -> Result<u64, i32> {
    u64::try_from(code).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap())
}

fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> Result<u64, i32> {
    // SAFETY: the descriptor is open.
    result(i64::from(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) }))
}

fn seek(file: &File, offset: i64, whence: i32) -> Result<u64, i32> {
    // SAFETY: the descriptor is open.
    result(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> Result<u64, i32> {
    let (mut from_offset, mut to_offset) = (from_offset as i64, to_offset as i64);
    // SAFETY: both descriptors are open, and the offsets live through the call.
    let copied =
        unsafe { libc::copy_file_range(from.as_raw_fd(), &raw mut from_offset, to.as_raw_fd(), &raw mut to_offset, length as usize, 0) };
    result(copied as i64)
}

/// Bytes that are free, as `df` says.
fn free(path: &Path) -> u64 {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: an all-zero statvfs is a valid one; the string is NUL-terminated and both live through the call.
    let (code, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    assert_eq!(code, 0);
    stat.f_bavail * stat.f_frsize
}

fn sizes(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.len(), metadata.blocks() * 512)
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn fallocate_reserves_zeroes_and_punches() {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    let (at_a, at_b) = (a.path().join("file"), b.path().join("file"));
    let file = open(&at_a);
    let empty = free(a.path());
    fallocate(&file, 0, 0, 10 * MIB).unwrap();
    assert_eq!((sizes(&at_a), sizes(&at_b)), ((10 * MIB, 10 * MIB), (10 * MIB, 10 * MIB)));
    assert!(empty - free(b.path()) >= 10 * MIB, "df counts what is reserved");
    fallocate(&file, KEEP, 20 * MIB, 5 * MIB).unwrap();
    assert_eq!(sizes(&at_b), (10 * MIB, 15 * MIB));
    let bytes = random_bytes(1, 3 * MIB as usize);
    file.write_all_at(&bytes, MIB / 2).unwrap();
    assert_eq!(sizes(&at_b), (10 * MIB, 15 * MIB), "writing there takes what was reserved");
    let mut expected = vec![0; 10 * MIB as usize];
    expected[MIB as usize / 2..7 * MIB as usize / 2].copy_from_slice(&bytes);
    assert!(fs::read(&at_b).unwrap() == expected);
    fallocate(&file, ZERO | KEEP, MIB, MIB / 3).unwrap();
    expected[MIB as usize..(MIB + MIB / 3) as usize].fill(0);
    assert_eq!(sizes(&at_b), (10 * MIB, 15 * MIB), "still occupied");
    fallocate(&file, PUNCH, 2 * MIB + 7, 3 * MIB).unwrap();
    expected[2 * MIB as usize + 7..5 * MIB as usize + 7].fill(0);
    assert!(sizes(&at_b).1 < 12 * MIB + 4096);
    assert!(fs::read(&at_b).unwrap() == expected && fs::read(&at_a).unwrap() == expected);
    fallocate(&file, ZERO, 10 * MIB - 5, 10).unwrap();
    assert_eq!(sizes(&at_b).0, 10 * MIB + 5);
    fallocate(&file, PUNCH, 0, 1 << 60).unwrap();
    assert_eq!(sizes(&at_b), (10 * MIB + 5, 0));
    file.set_len(1).unwrap();
    // Where Linux refuses.
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_PUNCH_HOLE] {
        assert_eq!(fallocate(&file, mode, 0, MIB), Err(libc::EOPNOTSUPP), "mode {mode}");
    }
    assert_eq!(fallocate(&file, 0, 0, 0), Err(libc::EINVAL));
    assert_eq!(fallocate(&file, 0, i64::MAX as u64 - 10, 10), Err(libc::EFBIG));
    assert_eq!(fallocate(&File::open(&at_a).unwrap(), 0, 0, 10), Err(libc::EBADF));
    // What is far too large is refused before anything is taken.
    let (before, began) = (free(a.path()), Instant::now());
    assert_eq!(fallocate(&file, 0, 0, 1 << 40), Err(libc::ENOSPC));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!((sizes(&at_a), free(a.path())), ((1, 0), before));
    // The mtime moves, as with a write.
    file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    fallocate(&file, KEEP, 0, 10).unwrap();
    assert!(fs::metadata(&at_b).unwrap().mtime() > 1_000_000);
}

#[test]
fn p7_what_is_reserved_can_be_written_when_the_cluster_is_full() {
    let cluster = Cluster::start_with(3, Options { memory: "64MiB", ..Options::default() });
    let mount = Mount::new(&cluster);
    let reserved = open(&mount.path().join("reserved"));
    let length = 24 * MIB;
    fallocate(&reserved, 0, 0, length).unwrap();
    let filler = open(&mount.path().join("filler"));
    let full = (0..100).find_map(|round| filler.write_all_at(&random_bytes(100 + round, MIB as usize), round * MIB).err());
    assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    assert_eq!(fallocate(&filler, KEEP, 200 * MIB, 2 * MIB), Err(libc::ENOSPC));
    let content = random_bytes(7, length as usize);
    let mut random = dfs::random::Random::new(3);
    // In large and small writes, out of order; and through a mapping at the end.
    let mut blocks: Vec<(u64, u64)> =
        (0..16).map(|index| (index * MIB, MIB)).chain((0..1024).map(|index| (16 * MIB + index * 4096, 4096))).collect();
    for index in (1..blocks.len()).rev() {
        blocks.swap(index, random.below(index as u64 + 1) as usize);
    }
    for (offset, length) in blocks {
        reserved
            .write_all_at(&content[offset as usize..(offset + length) as usize], offset)
            .unwrap_or_else(|error| panic!("at {offset}: {error}"));
    }
    let (start, rest) = (20 * MIB as usize, 4 * MIB as usize);
    // SAFETY: a fresh mapping of an open file, within its size, unmapped before the slice is used again.
    unsafe {
        let flags = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), rest, flags, libc::MAP_SHARED, reserved.as_raw_fd(), start as i64);
        assert_ne!(map, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(map.cast::<u8>(), rest).copy_from_slice(&content[start..]);
        assert_eq!(libc::msync(map, rest, libc::MS_SYNC), 0, "{}", io::Error::last_os_error());
        assert_eq!(libc::munmap(map, rest), 0);
    }
    reserved.sync_all().unwrap();
    let other = Mount::new(&cluster);
    assert!(fs::read(other.path().join("reserved")).unwrap() == content);
}

/// A slot of very many pieces has to be folded before it takes another one, and its old chunk stays because another file has it, too.
#[test]
fn p7_a_shared_chunk_in_many_pieces_is_out_of_space_and_nothing_else_when_the_cluster_is_full() {
    let cluster = Cluster::start_with(2, Options { memory: "64MiB", ..Options::default() });
    let mount = Mount::new(&cluster);
    let mut content = random_bytes(1, MIB as usize);
    for name in ["file", "twin"] {
        let file = open(&mount.path().join(name));
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
    }
    let filler = open(&mount.path().join("filler"));
    for size in [MIB, 5000] {
        let (start, fill) = (filler.metadata().unwrap().len(), random_bytes(size, size as usize));
        let full = (0..100_000).find_map(|round| {
            let bytes: Vec<u8> = fill.iter().map(|byte| byte.wrapping_add(round as u8)).collect();
            filler.write_all_at(&bytes, (start + round * size).next_multiple_of(MIB / 64)).and_then(|()| filler.sync_all()).err()
        });
        assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    }
    let file = open(&mount.path().join("file"));
    let mut write = |count: u64| {
        let places = (0..count).map(|n| n * 1493 % MIB);
        places.enumerate().try_for_each(|(n, at)| {
            file.write_all_at(b"Z", at)?;
            content[at as usize] = b'Z';
            if n % 20 == 19 { file.sync_all() } else { Ok(()) }
        })
    };
    let refused = write(600).expect_err("no room for another copy of the chunk");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    fs::remove_file(mount.path().join("filler")).unwrap();
    drop(filler);
    wait_until(Duration::from_secs(15), "the same writes pass once something is deleted", || write(600).is_ok());
    file.sync_all().unwrap();
    let other = Mount::new(&cluster);
    assert!(fs::read(other.path().join("file")).unwrap() == content);
}

#[test]
fn holes_are_where_nothing_was_written() {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    let path = a.path().join("sparse");
    let file = open(&path);
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"far out", 700 << 30).unwrap();
    let other = File::open(b.path().join("sparse")).unwrap();
    assert_eq!(sizes(&b.path().join("sparse")), (1 << 40, 512));
    let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
    assert_eq!((seek(&other, 0, data), seek(&other, 5, hole)), (Ok(700 << 30), Ok(5)));
    assert_eq!((seek(&other, 700 << 30, hole), seek(&other, (700 << 30) + 3, data)), (Ok((700 << 30) + 7), Ok((700 << 30) + 3)));
    assert_eq!(seek(&other, 800 << 30, data), Err(libc::ENXIO));
    for whence in [data, hole] {
        assert_eq!((seek(&other, 1 << 40, whence), seek(&other, -1, whence)), (Err(libc::ENXIO), Err(libc::ENXIO)));
    }
    // Reserved space is a hole until it is written; the end of the file is one.
    fallocate(&file, 0, MIB, MIB).unwrap();
    assert_eq!(seek(&other, 0, data), Ok(700 << 30));
    file.set_len(MIB).unwrap();
    file.write_all_at(&random_bytes(1, MIB as usize), 0).unwrap();
    assert_eq!((seek(&other, 0, hole), seek(&other, MIB as i64 - 1, hole)), (Ok(MIB), Ok(MIB)));
    // Programs that look for holes find them.
    let directory = a.path();
    let sparse = open(&directory.join("a"));
    sparse.write_all_at(&random_bytes(2, 100_000), 50 << 30).unwrap();
    sparse.set_len(100 << 30).unwrap();
    let began = Instant::now();
    run("cp", &["--sparse=always", "--reflink=never", "a", "b"], directory);
    run("cp", &["a", "c"], directory);
    run("tar", &["-Scf", "a.tar", "a"], directory);
    fs::create_dir(directory.join("out")).unwrap();
    run("tar", &["-Sxf", "../a.tar"], &directory.join("out"));
    assert!(began.elapsed() < Duration::from_secs(10), "a sparse file costs what is in it");
    for copy in ["b", "c", "out/a"] {
        let (size, blocks) = sizes(&directory.join(copy));
        assert!(size == 100 << 30 && blocks < MIB, "{copy} occupies {blocks} bytes");
        let mut bytes = vec![0; 100_001];
        open(&directory.join(copy)).read_exact_at(&mut bytes, 50 << 30).unwrap();
        assert!(bytes[..100_000] == random_bytes(2, 100_000) && bytes[100_000] == 0);
    }
}

#[test]
fn copies_share_what_they_copy() {
    let cluster = Cluster::start_with(3, Options { memory: "96MiB", ..Options::default() });
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    let bytes = random_bytes(1, 60 * MIB as usize);
    fs::write(a.path().join("from"), &bytes).unwrap();
    let before = free(a.path());
    run("cp", &["from", "to"], a.path());
    // Shifted by an odd number of bytes, so that nothing but sharing could store it: the cluster has no room for a second copy.
    let shifted = open(&b.path().join("shifted"));
    shifted.write_all_at(b"abc", 0).unwrap();
    assert_eq!(copy_range(&open(&b.path().join("from")), 0, &shifted, 3, 1 << 40), Ok(bytes.len() as u64));
    assert!(before - free(b.path()) < MIB, "copies take records only");
    fs::remove_file(a.path().join("from")).unwrap();
    assert!(fs::read(b.path().join("to")).unwrap() == bytes);
    let content = fs::read(a.path().join("shifted")).unwrap();
    assert!(content[..3] == *b"abc" && content[3..] == bytes);
    // A change of one is none of the other.
    open(&b.path().join("to")).write_all_at(b"changed", 10 * MIB + 5).unwrap();
    assert!(fs::read(a.path().join("shifted")).unwrap() == content);
    drop(shifted);
    fs::remove_file(a.path().join("shifted")).unwrap();
    fs::remove_file(a.path().join("to")).unwrap();
    wait_until(Duration::from_secs(10), "the space comes back with the last name", || free(a.path()) > before + 59 * MIB);
}

#[test]
fn copy_file_range_follows_linux() {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    let (from, to) = (open(&a.path().join("from")), open(&a.path().join("to")));
    let bytes = random_bytes(1, 5_000_000);
    from.write_all_at(&bytes, 0).unwrap();
    assert_eq!(copy_range(&from, 0, &from, 100, 101), Err(libc::EINVAL));
    assert_eq!(copy_range(&from, 5_000_000, &to, 0, 10), Ok(0));
    assert_eq!(copy_range(&from, 4_999_995, &to, 3, 10), Ok(5));
    assert_eq!(fs::read(b.path().join("to")).unwrap(), [&[0; 3], &bytes[4_999_995..]].concat());
    // Random ranges between two files, within one, and over holes, against a model.
    let mut random = dfs::random::Random::new(9);
    let (mut first, mut second) = (bytes, vec![0; 8]);
    second[3..].copy_from_slice(&first[4_999_995..]);
    let reader = File::open(b.path().join("to")).unwrap();
    for round in 0..200 {
        let (source, target, length) = (random.below(4_000_000), random.below(6_000_000), 1 + random.below(1_500_000));
        match round % 4 {
            0 => {
                let (source, target) = (source / 4, 2_600_000 + target / 4);
                let end = (source + length) as usize;
                assert_eq!(copy_range(&from, source, &from, target, length), Ok(length), "{source} {target} {length}");
                let part = first[source as usize..end].to_vec();
                overwrite(&mut first, target, &part);
            }
            1 => {
                fallocate(&from, PUNCH, source, length).unwrap();
                let end = first.len().min((source + length) as usize);
                first[source as usize..end].fill(0);
            }
            2 => {
                let part = random_bytes(round, (length % 40_000) as usize + 1);
                to.write_all_at(&part, target).unwrap();
                overwrite(&mut second, target, &part);
            }
            _ => {
                let length = length.min(first.len() as u64 - source);
                assert_eq!(copy_range(&from, source, &to, target, length), Ok(length));
                let part = first[source as usize..(source + length) as usize].to_vec();
                overwrite(&mut second, target, &part);
            }
        }
        if round % 20 == 19 {
            let mut seen = vec![0; second.len()];
            reader.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == second, "round {round}");
            assert_eq!(reader.metadata().unwrap().len(), second.len() as u64);
        }
    }
    assert!(fs::read(b.path().join("from")).unwrap() == first);
}

fn overwrite(bytes: &mut Vec<u8>, offset: u64, part: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + part.len());
    bytes.resize(bytes.len().max(end), 0);
    bytes[start..end].copy_from_slice(part);
}

#[test]
fn direct_and_synchronous_writes_work() {
    let cluster = Cluster::start(3);
    let (a, b) = (Mount::new(&cluster), Mount::new(&cluster));
    for (name, flags) in
        [("direct", libc::O_DIRECT), ("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC), ("both", libc::O_DIRECT | libc::O_SYNC)]
    {
        let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(a.path().join(name)).unwrap();
        fallocate(&file, 0, 0, MIB).unwrap();
        let mut whole = vec![0; MIB as usize];
        let page = std::alloc::Layout::from_size_align(64 << 10, 4096).unwrap();
        // SAFETY: the layout is not empty; the buffer is freed once, after its last use.
        let buffer = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(page), page.size()) };
        for (round, offset) in [0, 128 << 10, 4096, 900 << 10].into_iter().enumerate() {
            buffer.copy_from_slice(&random_bytes(round as u64, page.size()));
            file.write_all_at(buffer, offset).unwrap();
            whole[offset as usize..offset as usize + page.size()].copy_from_slice(buffer);
            file.read_exact_at(buffer, offset).unwrap();
            assert!(*buffer == whole[offset as usize..offset as usize + page.size()]);
            assert!(fs::read(b.path().join(name)).unwrap() == whole, "{name} on the other mount, round {round}");
        }
        // SAFETY: allocated above with this layout.
        unsafe { std::alloc::dealloc(buffer.as_mut_ptr(), page) };
    }
    run("dd", &["if=/dev/zero", "of=direct", "bs=4096", "seek=3", "count=2", "conv=notrunc,fsync", "oflag=direct"], a.path());
    let bytes = fs::read(b.path().join("direct")).unwrap();
    assert!(bytes.len() == MIB as usize && bytes[12288..20480].iter().all(|&byte| byte == 0));
}
