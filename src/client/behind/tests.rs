//! Runs that merge, marks that are reached, and random writes against a plain array.

use super::*;
use crate::random::Random;

const INO: InodeId = InodeId(9);
const NOW: Time = Time(1 << 40);

fn book() -> Behind {
    Behind::new(64 << 20)
}

fn write(book: &mut Behind, offset: u64, bytes: &[u8]) {
    book.write(NOW, INO, offset, Bytes::copy_from_slice(bytes), Timestamp::default(), false);
    book.check_invariants();
}

/// The file as a reader sees it over `base`.
fn read(book: &Behind, base: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    bytes.resize(length.max(base.len()), 0);
    let range = ByteRange { offset: 0, length: bytes.len() as u64 };
    lay(&mut bytes, 0, &book.within(INO, range));
    bytes
}

#[test]
fn small_writes_become_one_run_and_the_newest_byte_wins() {
    let mut book = book();
    write(&mut book, 10, b"aaaa");
    write(&mut book, 14, b"bb");
    write(&mut book, 12, b"cccccc");
    write(&mut book, 8, b"dd");
    assert_eq!(read(&book, b"0123456789", 18), b"01234567ddaacccccc");
    let taken = book.take(INO, Cut::All, 1).unwrap();
    assert_eq!(taken.runs, [(8, Bytes::from_static(b"ddaacccccc"))], "what touches goes as one");
    write(&mut book, 9, b"X");
    assert_eq!(read(&book, b"", 18)[8..12], *b"dXaa", "what is on its way is older");
    book.on_failed(NOW, INO, Status::TimedOut, false);
    book.check_invariants();
    assert_eq!(read(&book, b"", 18)[8..12], *b"dXaa");
    assert_eq!(book.take(INO, Cut::All, 2).unwrap().runs, [(8, Bytes::from_static(b"dXaacccccc"))]);
    book.on_done(NOW, INO);
    assert!(book.is_empty() && book.charge() == 0);
    book.check_invariants();
}

#[test]
fn no_commit_is_charged_for_more_than_was_reserved() {
    for length in [1, 16 << 10, (16 << 10) + 1, 363_279, limits::SLOT_BYTES as usize, 3 * limits::SLOT_BYTES as usize] {
        let mut book = book();
        write(&mut book, 5, &vec![7; length]);
        let dirty = book.charge();
        assert!(dirty <= charge(length), "what a write is admitted for is no less than what is counted afterwards");
        let runs = book.take(INO, Cut::All, 1).unwrap().runs;
        let stored: u64 = runs.iter().map(|(_, bytes)| crate::capacity::chunk_charge(bytes.len() as u64)).sum();
        assert!(stored <= dirty, "{length} bytes: {stored} charged, {dirty} reserved");
        assert_eq!(book.on_part(INO, u64::MAX), dirty);
    }
}

#[test]
fn marks_are_reached_only_when_everything_before_is_committed() {
    let mut book = book();
    write(&mut book, 0, &vec![1; limits::SLOT_BYTES as usize]);
    write(&mut book, limits::SLOT_BYTES, b"tail");
    let mark = book.mark(INO).unwrap();
    assert_eq!(book.whole_slots(INO), 1);
    assert_eq!(book.take(INO, Cut::WholeSlots, 1).unwrap().runs.len(), 1);
    assert!(book.take(INO, Cut::All, 2).is_none(), "one job at a time");
    book.on_part(INO, limits::SLOT_BYTES);
    book.on_done(NOW, INO);
    assert!(!book.is_committed(INO, mark), "the tail is not");
    assert_eq!(book.take(INO, Cut::All, 3).unwrap().runs, [(limits::SLOT_BYTES, Bytes::from_static(b"tail"))]);
    write(&mut book, 5, b"later");
    let later = book.mark(INO).unwrap();
    book.on_done(NOW, INO);
    assert!(book.is_committed(INO, mark) && !book.is_committed(INO, later) && book.is_dirty(INO));
    book.check_invariants();
}

#[test]
fn attributes_show_what_was_written() {
    let mut book = book();
    let mut attributes = Attributes { size: 3, mode: 0o6755, ..super::super::rights::blank_for_test(INO) };
    book.overlay(&mut attributes);
    assert_eq!(attributes.size, 3);
    let written = Timestamp { seconds: 7, nanos: 0 };
    book.write(NOW, INO, 1000, Bytes::from_static(b"x"), written, true);
    book.overlay(&mut attributes);
    assert_eq!((attributes.size, attributes.mtime, attributes.blocks), (1001, written, 1));
    assert_eq!(attributes.mode, 0o755, "a write by others than root takes setuid and setgid away at once");
}

#[test]
fn random_writes_read_as_a_plain_array_does() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut book = book();
        let length = 3 * limits::SLOT_BYTES as usize;
        let (mut model, mut committed) = (vec![0u8; length], vec![0u8; length]);
        let mut taken: Option<Taken> = None;
        for step in 0..60u8 {
            let scale = if random.chance(1, 3) { 2 << 20 } else { 5000 };
            let offset = random.below(length as u64 - 1) as usize;
            let bytes = vec![step + 1; (1 + random.below(scale) as usize).min(length - offset)];
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            write(&mut book, offset as u64, &bytes);
            match random.below(6) {
                0 if taken.is_none() => {
                    let cut = if random.chance(1, 2) { Cut::All } else { Cut::WholeSlots };
                    taken = book.take(INO, cut, 1);
                }
                1 => {
                    if let Some(taken) = taken.take() {
                        lay(&mut committed, 0, &taken.runs);
                        book.on_done(NOW, INO);
                    }
                }
                2 => {
                    if let Some(taken) = taken.take() {
                        let (first, _) = taken.runs.split_at(random.below(taken.runs.len() as u64 + 1) as usize);
                        lay(&mut committed, 0, first);
                        if let Some((at, bytes)) = first.last() {
                            book.on_part(INO, at + bytes.len() as u64);
                        }
                        book.on_failed(NOW, INO, Status::TimedOut, false);
                    }
                }
                _ => {}
            }
            book.check_invariants();
            assert_eq!(read(&book, &committed, length), model, "seed {seed}, step {step}");
        }
    }
}
