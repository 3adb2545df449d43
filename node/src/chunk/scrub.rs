//! When to hash a resident chunk again. Memory decays without a word: a copy that nobody reads must be looked at all the same, before it
//! is the last one.
//!
//! Owns a schedule and its books. Which chunks exist, and whether one is sound, is the store's to say. The walk goes through all chunks in
//! the order of their hashes, one per turn, in short bursts, so that an idle node sleeps between them.

use std::time::Duration;

use dfs::limits::{SCRUB_BYTES_PER_SECOND, SCRUB_CHUNK_BYTES, SCRUB_CYCLE_MIN, SCRUB_INTERVAL};
use dfs::time::Time;
use dfs::types::ChunkHash;
use dfs::wire::message::Scrubbed;

/// The schedule of one store.
#[derive(Debug)]
pub(super) struct Scrub {
    /// The chunk last looked at; the walk goes on behind it.
    position: Option<ChunkHash>,
    /// When the next chunk is due, if there is one.
    due: Time,
    /// When the burst under way began, and what it has cost so far.
    began: Time,
    spent: u64,
    /// Chunks that are to be looked at without a pause, because somebody asked.
    hasty: u64,
    done: Scrubbed,
}

/// What hashing so many chunks of so many bytes in all costs, in bytes of hashing.
pub(super) fn cost(chunks: u64, bytes: u64) -> u64 {
    bytes.saturating_add(chunks.saturating_mul(SCRUB_CHUNK_BYTES))
}

impl Scrub {
    pub(super) fn new() -> Self {
        Scrub { position: None, due: Time(0), began: Time(0), spent: 0, hasty: 0, done: Scrubbed::default() }
    }

    /// What was done so far.
    pub(super) fn done(&self) -> Scrubbed {
        self.done
    }

    /// When the next chunk is due. An empty store is never looked at.
    pub(super) fn next(&self, chunks: u64) -> Time {
        if chunks == 0 {
            return Time::NEVER;
        }
        if self.hasty > 0 { Time(0) } else { self.due }
    }

    /// Behind which chunk to go on; nothing is due otherwise.
    pub(super) fn position(&self, now: Time, chunks: u64) -> Option<Option<ChunkHash>> {
        (self.next(chunks) <= now).then_some(self.position)
    }

    /// The walk has passed the last chunk.
    pub(super) fn wrap(&mut self) {
        self.position = None;
        self.done.cycles += 1;
    }

    /// A chunk of that length has been hashed; `all` is what the whole store costs.
    pub(super) fn visited(&mut self, now: Time, hash: ChunkHash, length: u64, all: u64) {
        self.position = Some(hash);
        self.done.chunks += 1;
        self.done.bytes += length;
        if self.hasty > 0 {
            self.hasty -= 1;
            return;
        }
        if self.due > self.began {
            // The first of a burst. What was due while the process stood still is not made up for.
            (self.began, self.spent) = (now, 0);
        }
        self.spent += cost(1, length);
        let pause = pace(self.spent, all);
        // Until the burst has used up its time it goes on with the next turn.
        self.due = if pause < SCRUB_INTERVAL { self.began } else { self.began + pause };
    }

    /// A bad copy was found, by whomever.
    pub(super) fn found_corrupt(&mut self) {
        self.done.corrupt += 1;
    }

    /// Look at all chunks now, one per turn.
    pub(super) fn hasten(&mut self, chunks: u64) {
        self.hasty = chunks;
    }
}

/// The time that `spent` takes at the store's rate: what the thread may give, or less if a whole cycle would be shorter than it need be.
fn pace(spent: u64, all: u64) -> Duration {
    let by_rate = u128::from(spent) * 1_000_000_000 / u128::from(SCRUB_BYTES_PER_SECOND);
    let by_cycle = u128::from(spent) * SCRUB_CYCLE_MIN.as_nanos() / u128::from(all.max(1));
    Duration::from_nanos(by_rate.max(by_cycle).min(u128::from(u64::MAX)) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Walks over chunks `0..count` of that length until `until`; gives what was visited, the wake-ups and the bytes.
    fn walk(scrub: &mut Scrub, from: Time, until: Time, count: u8, length: u64) -> (BTreeSet<ChunkHash>, u64, u64) {
        let (mut seen, mut wakes, mut bytes, mut now) = (BTreeSet::new(), 0, 0, from);
        let all = cost(u64::from(count), u64::from(count) * length);
        loop {
            let due = scrub.next(u64::from(count));
            if due > now {
                wakes += 1;
                now = due;
            }
            if now > until {
                return (seen, wakes, bytes);
            }
            let Some(position) = scrub.position(now, u64::from(count)) else { panic!("nothing at its own deadline") };
            let next = position.map_or(0, |ChunkHash(hash)| hash[0] + 1);
            if next == count {
                scrub.wrap();
                continue;
            }
            let hash = ChunkHash([next; 32]);
            seen.insert(hash);
            bytes += length;
            scrub.visited(now, hash, length, all);
            now = now + Duration::from_micros(400);
        }
    }

    #[test]
    fn an_empty_store_wakes_nobody() {
        let scrub = Scrub::new();
        assert_eq!(scrub.next(0), Time::NEVER);
        assert_eq!(scrub.position(Time(1 << 60), 0), None);
    }

    #[test]
    fn a_full_store_is_hashed_at_the_rate_with_few_wake_ups() {
        // A store so large that a cycle takes much longer than it need.
        let mut scrub = Scrub::new();
        let (start, all) = (Time(0) + Duration::from_secs(5), u64::MAX / 2);
        let (mut now, mut bytes, mut wakes) = (start, 0u64, 0u64);
        while now < start + Duration::from_secs(10) {
            if scrub.next(1) > now {
                now = scrub.next(1);
                wakes += 1;
            }
            scrub.visited(now, ChunkHash([1; 32]), 1 << 20, all);
            bytes += 1 << 20;
        }
        let most = 10 * SCRUB_BYTES_PER_SECOND;
        assert!(bytes <= most + (8 << 20) && bytes > most * 8 / 10, "{bytes} bytes in ten seconds");
        assert!(wakes <= 10 * 1_000 / SCRUB_INTERVAL.as_millis() as u64 + 1, "{wakes} wake-ups in ten seconds");
    }

    #[test]
    fn a_cycle_visits_every_chunk_in_its_time() {
        for count in [1, 7, 250] {
            let mut scrub = Scrub::new();
            let start = Time(0) + Duration::from_secs(100);
            let slack = Duration::from_secs(1);
            let (seen, wakes, _) = walk(&mut scrub, start, start + SCRUB_CYCLE_MIN + slack, count, 3000);
            assert_eq!(seen.len(), usize::from(count));
            assert!((1..=2).contains(&scrub.done().cycles) || count == 1, "{:?}", scrub.done());
            assert!(wakes <= u64::from(count) + 3, "{wakes} wake-ups for {count} chunks");
        }
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut scrub = Scrub::new();
        let start = Time(0) + Duration::from_secs(100);
        walk(&mut scrub, start, start + Duration::from_secs(10), 100, 1000);
        let done = scrub.done().chunks;
        let later = start + Duration::from_secs(5000);
        walk(&mut scrub, later, later + Duration::from_secs(1), 100, 1000);
        assert!(scrub.done().chunks - done < 10, "{} chunks at once", scrub.done().chunks - done);
    }

    #[test]
    fn in_haste_all_are_visited_without_a_pause() {
        let mut scrub = Scrub::new();
        let start = Time(0) + Duration::from_secs(100);
        walk(&mut scrub, start, start + Duration::from_secs(10), 100, 1000);
        scrub.hasten(100);
        let now = start + Duration::from_secs(11);
        let (seen, ..) = walk(&mut scrub, now, now + Duration::from_millis(100), 100, 1000);
        assert_eq!(seen.len(), 100);
    }
}
