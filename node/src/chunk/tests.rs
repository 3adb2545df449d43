//! Tests of the chunk store.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs::chunk_tree::verify;
use dfs::limits::{AUDIT_CYCLE, AUDIT_CYCLE_HASTY, AUDIT_FIRST_AFTER, AUDIT_RETRY_AFTER, SCRUB_CYCLE_MIN};
use dfs::random::Random;
use dfs::types::SessionId;

use super::*;

const KEPT: InstanceCheck = InstanceCheck::Kept;

fn instance(counter: u64) -> Instance {
    Instance { session: SessionId(7), counter }
}

fn chunk(seed: u64, length: usize) -> (ChunkHash, Bytes) {
    let mut random = Random::new(seed);
    let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    (ChunkHash::of(&bytes), Bytes::from(bytes))
}

fn at(seconds: u64) -> Time {
    Time(0) + Duration::from_secs(seconds)
}

#[test]
fn bytes_live_as_long_as_any_upload_of_them() {
    let mut store = ChunkStore::new(1 << 20);
    let (hash, bytes) = chunk(1, 1000);
    assert_eq!(store.link(at(0), hash, instance(2)), Err(Status::UnknownChunk));
    store.put(at(0), hash, instance(1), bytes.clone()).unwrap();
    store.put(at(0), hash, instance(1), bytes.clone()).unwrap();
    store.link(at(0), hash, instance(2)).unwrap();
    assert_eq!((store.usage().stored, store.usage().instances), (1000, 2));
    assert!(store.delete(&hash, instance(1), KEPT));
    assert!(!store.delete(&hash, instance(1), KEPT), "a doubled deletion changes nothing");
    assert!(store.contains(&hash));
    store.put(at(0), hash, instance(3), bytes).unwrap();
    assert!(store.delete(&hash, instance(2), KEPT) && store.delete(&hash, instance(3), KEPT));
    assert_eq!(store.usage(), Usage { budget: 1 << 20, ..Usage::default() });
    store.check_invariants();
}

#[test]
fn wrong_bytes_are_refused_and_good_ones_replace_bad_ones() {
    let mut store = ChunkStore::new(1 << 20);
    let (hash, bytes) = chunk(1, 40_000);
    let (_, other) = chunk(2, 40_000);
    assert_eq!(store.put(at(0), hash, instance(1), other.clone()), Err(Status::Corrupt));
    assert_eq!(store.put(at(0), hash, instance(1), Bytes::new()), Err(Status::InvalidArgument));
    store.put(at(0), hash, instance(1), bytes.clone()).unwrap();
    assert_eq!(store.put(at(0), hash, instance(2), other), Err(Status::Corrupt));
    assert!(store.flip_bit(&hash, 12345));
    store.put(at(0), hash, instance(2), bytes.clone()).unwrap();
    assert!(!store.suspect(&hash), "the good upload replaced the bad copy");
    assert_eq!(store.get(&hash, ByteRange { offset: 0, length: 40_000 }).unwrap().bytes, bytes);
    store.check_invariants();
}

#[test]
fn a_bad_copy_is_dropped_and_reported_until_acknowledged() {
    let mut store = ChunkStore::new(1 << 20);
    let (hash, bytes) = chunk(1, 5000);
    store.put(at(0), hash, instance(1), bytes.clone()).unwrap();
    assert!(!store.suspect(&hash) && !store.suspect(&ChunkHash([0; 32])));
    store.flip_bit(&hash, 9);
    assert!(store.suspect(&hash));
    assert!(!store.contains(&hash));
    assert_eq!(store.lost(10), vec![(hash, instance(1))]);
    assert_eq!(store.lost(10).len(), 1);
    store.acknowledge_lost(&[(hash, instance(1))]);
    assert!(store.lost(10).is_empty());
    store.put(at(0), hash, instance(2), bytes.clone()).unwrap();
    store.flip_bit(&hash, 9);
    store.suspect(&hash);
    store.put(at(0), hash, instance(3), bytes).unwrap();
    assert!(store.lost(10).is_empty(), "what is here again is not lost");
    store.check_invariants();
}

#[test]
fn the_budget_is_kept_and_deleting_makes_room() {
    let mut store = ChunkStore::new(10_000);
    let chunks: Vec<_> = (0..4).map(|seed| chunk(seed, 3000)).collect();
    for (index, (hash, bytes)) in chunks.iter().enumerate() {
        let expected = if index < 2 { Ok(()) } else { Err(Status::Full) };
        assert_eq!(store.put(at(0), *hash, instance(index as u64), bytes.clone()), expected, "{index}");
        store.check_invariants();
    }
    store.delete(&chunks[0].0, instance(0), KEPT);
    assert_eq!(store.put(at(0), chunks[3].0, instance(9), chunks[3].1.clone()), Ok(()));
    let mut linked = 0;
    while store.link(at(0), chunks[3].0, instance(100 + linked)).is_ok() {
        linked += 1;
    }
    assert!(linked > 0 && store.usage().charged <= 10_000);
    store.check_invariants();
}

#[test]
fn parts_verify() {
    let mut store = ChunkStore::new(4 << 20);
    for length in [1, 16384, 16385, 300_000, CHUNK_BYTES_MAX] {
        let (hash, bytes) = chunk(length as u64, length);
        store.put(at(0), hash, instance(1), bytes).unwrap();
        let asked = ByteRange { offset: length as u64 / 2, length: 4096 };
        let part = store.get(&hash, asked).unwrap();
        assert_eq!(verify(&hash, part.total as u64, part.range, &part.bytes, &part.proof), Ok(()));
        assert!(part.range.length <= 32 << 10);
        assert_eq!(store.get(&hash, ByteRange { offset: length as u64, length: 1 }).unwrap_err(), Status::InvalidArgument);
    }
}

#[test]
fn a_slice_of_a_large_buffer_does_not_keep_it() {
    let (_, large) = chunk(1, 1 << 20);
    let slice = large.slice(100_000..101_000);
    drop(large);
    let kept = owned(slice.clone());
    assert_eq!(kept, slice);
    drop(slice);
    assert!(Vec::from(kept).capacity() < 2000);
    let mut buffer = Vec::with_capacity(1 << 20);
    buffer.extend_from_slice(&[1; 1000]);
    assert!(Vec::from(owned(Bytes::from(buffer))).capacity() < 2000);
}

#[test]
fn new_uploads_are_asked_about_until_settled() {
    let mut store = ChunkStore::new(1 << 20);
    let (hash, bytes) = chunk(1, 1000);
    store.put(at(10), hash, instance(1), bytes).unwrap();
    store.link(at(10), hash, instance(2)).unwrap();
    store.link(at(10), hash, instance(3)).unwrap();
    let first = at(10) + AUDIT_FIRST_AFTER;
    let _ = store.audit_batch(at(10), 10);
    assert_eq!(store.next_audit(at(10)), first);
    let asked = store.audit_batch(first, 10);
    assert_eq!(asked.len(), 3);
    assert!(store.audit_batch(first, 10).is_empty(), "asked once per turn");
    // No answer: asked again. Then: live under another upload, pending, garbage.
    let second = first + AUDIT_RETRY_AFTER;
    assert_eq!(store.audit_batch(second, 10), asked);
    store.on_verdicts(second, &asked, &[Verdict::Live(instance(50)), Verdict::Pending, Verdict::Garbage], KEPT);
    store.check_invariants();
    assert_eq!(store.uploads().collect::<Vec<_>>(), vec![(hash, instance(2)), (hash, instance(50))]);
    let third = second + AUDIT_RETRY_AFTER;
    assert_eq!(store.audit_batch(third, 10), vec![(hash, instance(2))]);
    store.on_verdicts(third, &[(hash, instance(2))], &[Verdict::Garbage], KEPT);
    assert!(store.contains(&hash));
    // A verdict about what has been deleted meanwhile brings nothing back.
    store.delete(&hash, instance(50), KEPT);
    store.on_verdicts(third, &[(hash, instance(50))], &[Verdict::Pending], KEPT);
    store.on_verdicts(third, &[(hash, instance(50))], &[Verdict::Live(instance(51))], KEPT);
    store.check_invariants();
    assert!(!store.contains(&hash) && store.audit_batch(at(1000), 10).is_empty());
    assert_eq!(store.next_audit(at(1000)), Time::NEVER);
}

/// Runs audits in steps and counts how often each upload is asked about; every one is confirmed.
fn count_audits(store: &mut ChunkStore, from: Time, length: Duration) -> BTreeMap<ChunkHash, u32> {
    let mut counts = BTreeMap::new();
    let mut now = from;
    while now < from + length {
        let batch = store.audit_batch(now, 64);
        let verdicts: Vec<Verdict> = batch.iter().map(|(_, instance)| Verdict::Live(*instance)).collect();
        batch.iter().for_each(|(hash, _)| *counts.entry(*hash).or_default() += 1);
        store.on_verdicts(now, &batch, &verdicts, KEPT);
        now = now + Duration::from_millis(100);
    }
    counts
}

#[test]
fn everything_is_asked_about_once_a_cycle_and_soon_after_a_restart() {
    let mut store = ChunkStore::new(1 << 20);
    for seed in 0..200 {
        let (hash, bytes) = chunk(seed, 100);
        store.put(at(100), hash, instance(seed), bytes).unwrap();
    }
    assert_eq!(count_audits(&mut store, at(100), Duration::from_secs(5)).len(), 200);
    let counts = count_audits(&mut store, at(105), 2 * AUDIT_CYCLE);
    assert_eq!(counts.len(), 200, "every upload comes up");
    assert!(counts.values().all(|&count| (1..=3).contains(&count)));
    store.restart_audit(at(300));
    let counts = count_audits(&mut store, at(300), AUDIT_CYCLE_HASTY + Duration::from_millis(200));
    assert_eq!(counts.len(), 200);
    assert!(counts.values().all(|&count| count == 1));
    store.check_invariants();
}

#[test]
fn random_work_keeps_the_invariants() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut store = ChunkStore::new(60_000);
        let chunks: Vec<_> = (0..6).map(|index| chunk(index, 2000 + 5000 * index as usize)).collect();
        for step in 0..400u64 {
            let (hash, bytes) = &chunks[random.below(6) as usize];
            let upload = instance(random.below(20));
            let now = at(step / 4);
            match random.below(9) {
                0 | 1 => _ = store.put(now, *hash, upload, bytes.clone()),
                2 => _ = store.link(now, *hash, upload),
                3 => _ = store.delete(hash, upload, KEPT),
                4 => store.refile(hash, upload, instance(random.below(20))),
                5 => _ = store.flip_bit(hash, random.next()),
                6 => _ = store.suspect(hash),
                7 => store.restart_audit(now),
                _ => {
                    let batch = store.audit_batch(now, 5);
                    let verdicts: Vec<Verdict> = batch
                        .iter()
                        .map(|_| match random.below(3) {
                            0 => Verdict::Live(instance(random.below(20))),
                            1 => Verdict::Pending,
                            _ => Verdict::Garbage,
                        })
                        .collect();
                    store.on_verdicts(now, &batch, &verdicts, KEPT);
                }
            }
            store.check_invariants();
        }
    }
}

#[test]
fn the_scrubber_drops_a_bad_copy_and_lists_it_as_lost() {
    let mut store = ChunkStore::new(1 << 24);
    assert_eq!(store.next_scrub(), Time::NEVER);
    let hashes: Vec<ChunkHash> = (0..50)
        .map(|seed| {
            let (hash, bytes) = chunk(seed, 1000 + seed as usize);
            store.put(at(0), hash, instance(seed), bytes).unwrap();
            hash
        })
        .collect();
    assert!(store.flip_bit(&hashes[17], 4321));
    let (mut now, mut found) = (at(1), Vec::new());
    while store.scrubbed().cycles == 0 {
        now = now.max(store.next_scrub());
        found.extend(store.scrub(now));
        assert!(now <= at(1) + SCRUB_CYCLE_MIN + Duration::from_secs(1), "the cycle takes too long");
    }
    assert_eq!(found, [hashes[17]]);
    assert_eq!(store.lost(10), [(hashes[17], instance(17))]);
    assert_eq!(store.scrubbed().corrupt, 1);
    assert!(!store.contains(&hashes[17]) && store.usage().chunks == 49);
    store.check_invariants();
    hashes.iter().enumerate().for_each(|(seed, hash)| _ = store.delete(hash, instance(seed as u64), KEPT));
    assert_eq!(store.next_scrub(), Time::NEVER, "an empty store wakes nobody");
}
