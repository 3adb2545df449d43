//! The budget and the announcements of repair.

use std::time::Duration;

use dfs::limits::{COMMAND_VISITS_MAX, REPAIR_ANNOUNCE_AFTER, REPAIR_ANNOUNCED_MAX, REPAIR_CLIENT_QUIET, REPAIR_RATE_BUSY};
use dfs::time::Time;
use dfs::types::{ChunkHash, Instance, SessionId};

use super::*;

fn item(number: usize) -> (ChunkHash, Instance) {
    (ChunkHash::of(&number.to_le_bytes()), Instance { session: SessionId(1), counter: number as u64 })
}

#[test]
fn without_clients_repair_is_free_and_beside_them_it_keeps_its_share() {
    let mut budget = Budget::new(None);
    let start = Time(1_000_000_000);
    assert!((0..10_000).all(|_| budget.admit(start, 1 << 20)), "nobody is disturbed");
    let (mut now, mut passed) = (start, 0);
    while now < start + Duration::from_secs(10) {
        budget.on_client(now);
        if budget.admit(now, 1 << 20) {
            passed += 1 << 20;
            continue;
        }
        assert!(budget.patience() <= REPAIR_CLIENT_QUIET);
        now = now + budget.patience();
    }
    let share = REPAIR_RATE_BUSY * 10;
    assert!(passed >= share * 9 / 10 && passed <= share * 11 / 10, "{passed} of {share}");
    // After a pause no burst, and when clients are gone no limit.
    now = now + REPAIR_CLIENT_QUIET / 2;
    budget.on_client(now);
    let burst = (0..1000).take_while(|_| budget.admit(now, 1 << 20)).count() as u64;
    assert!(burst << 20 <= REPAIR_RATE_BUSY / 10 + (1 << 20), "{burst} MiB at once");
    now = now + REPAIR_CLIENT_QUIET + Duration::from_millis(1);
    assert!((0..1000).all(|_| budget.admit(now, 1 << 20)));
}

#[test]
fn a_slow_node_gives_repair_a_quarter() {
    let mut budget = Budget::new(Some(4 << 20));
    let (mut now, mut passed) = (Time(5_000_000_000), 0u64);
    let end = now + Duration::from_secs(20);
    while now < end {
        budget.on_client(now);
        if budget.admit(now, 100_000) {
            passed += 100_000;
        } else {
            now = now + budget.patience();
        }
    }
    assert!((18 << 20..=23 << 20).contains(&passed), "{passed}");
}

#[test]
fn announcements_are_said_together_and_kept_until_the_log_tells() {
    let mut all = Announcements::default();
    let start = Time(1000);
    assert!(all.add(start, item(1)) && all.add(start, item(2)) && all.add(start, item(1)));
    assert!(all.take(start).is_empty(), "others may follow");
    let due = start + REPAIR_ANNOUNCE_AFTER;
    assert_eq!(all.next_deadline(), due);
    assert_eq!(all.take(due).len(), 2);
    assert!(all.add(due, item(3)));
    assert!(all.take(due + Duration::from_secs(1)).is_empty(), "one request at a time");
    all.on_failure(due + Duration::from_secs(2));
    let again = all.take(due + Duration::from_secs(2));
    assert_eq!(again.len(), 3, "said again, with what has come since");
    all.on_answer(70);
    assert!(all.holds(&item(1)), "what is recorded may not be seen here yet");
    all.on_applied(69);
    assert!(all.holds(&item(3)));
    all.on_applied(70);
    assert!(!all.holds(&item(3)) && all.next_deadline() == Time::NEVER);
    all.on_answer(71);
    all.on_failure(due);
    assert!(all.take(due + Duration::from_secs(9)).is_empty(), "nothing was under way");
    all.check_invariants();
}

#[test]
fn announcements_are_bounded_and_travel_in_bounded_requests() {
    let mut all = Announcements::default();
    let added = (0..REPAIR_ANNOUNCED_MAX + 10).filter(|&number| all.add(Time(1), item(number))).count();
    assert_eq!(added, REPAIR_ANNOUNCED_MAX);
    let mut said = 0;
    while said < added {
        let batch = all.take(Time(1));
        assert!(!batch.is_empty() && batch.len() <= COMMAND_VISITS_MAX);
        said += batch.len();
        all.on_answer(5);
        all.check_invariants();
    }
    all.on_applied(5);
    assert!(all.add(Time(2), item(0)));
}
