//! Clusters under simulated faults. `DFS_SEED=n` replays one seed, `DFS_SEEDS=n` runs n seeds beyond the fixed ones.

mod sim;

use dfs::client;
use dfs_node::node::Sabotage;

use sim::forming;
use sim::plan::Plan;
use sim::recovery;
use sim::run::{Report, Run, caught, run_client_seed, run_seed};
use sim::scripts::{
    a_growing_file_is_watched, a_name_that_comes_and_goes_is_watched, a_register_is_shared, a_voter_sleeps_past_the_log,
    as_many_copies_as_asked_for, copies_lie_apart, every_node_is_replaced_while_a_client_sleeps, the_leader_is_cut_off_for_a_moment,
    upload_races_deletion,
};
use sim::workload::Stats;
use sim::world::{Death, SECOND};

/// Seeds that every `cargo test` runs.
const FIXED_SEEDS: u64 = 60;
/// Seeds that once found a bug.
const FOUND_SEEDS: &[u64] = &[
    58, 1000, 1057, 1137, 1139, 1311, 5055, 20164, 20331, 20795, 21673, 22474, 23739, 30853, 40889, 41184, 41259, 41458, 50621, 66157,
    91725, 200397, 211867, 300247, 401842, 404667, 502480, 506167, 509381, 509630, 600133, 623197, 627682, 675789,
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn check_seeds(seeds: impl Iterator<Item = u64>, verbose: bool) {
    let (mut count, mut total, mut deaths, mut frames, mut seconds) = (0, Stats::default(), 0, 0, 0);
    let (mut worn_out, mut early, mut left, mut drained) = (0, 0, 0, 0);
    let mut failures = Vec::new();
    for seed in seeds {
        match run_seed(seed, None) {
            Ok(report) => {
                if verbose {
                    println!("seed {seed}: {report:?}");
                }
                count += 1;
                total.add(&report.stats);
                deaths += report.declared_dead;
                worn_out += report.worn_out;
                early += report.early;
                left += report.left;
                drained += report.drained;
                frames += report.frames;
                seconds += report.virtual_seconds;
            }
            Err(why) => {
                println!("DFS_SEED={seed} cargo test --test simulation one_seed -- --nocapture   # {why:.9000}");
                failures.push(seed);
            }
        }
    }
    println!(
        "{count} seeds, {seconds} virtual seconds, {frames} frames, {deaths} incarnations declared dead, {worn_out} went one after another, {early} of them killed during repair, {left} by SIGTERM, {drained} drained: {total:?}"
    );
    assert!(failures.is_empty(), "seeds {failures:?} failed");
}

#[test]
fn fixed_seeds() {
    if number("DFS_SEED").is_none() {
        check_seeds(FOUND_SEEDS.iter().copied().chain(0..FIXED_SEEDS), false);
    }
}

#[test]
fn one_seed() {
    if let Some(seed) = number("DFS_SEED") {
        check_seeds([seed].into_iter(), true);
    }
}

#[test]
fn soak() {
    if let Some(count) = number("DFS_SEEDS") {
        let from = number("DFS_SEEDS_FROM").unwrap_or(1000);
        check_seeds(from..from + count, false);
    }
}

#[test]
fn a_calm_cluster_answers_everything() {
    for seed in 0..4 {
        let report = caught(|| Run::new(Plan::draw(seed).calm(), None).whole()).unwrap_or_else(|why| panic!("calm seed {seed}: {why}"));
        assert_eq!(report.stats.unknown, 0, "seed {seed}: nothing stood in the way");
        assert_eq!(report.declared_dead, 0, "seed {seed}: whatever wall clocks show");
        assert!(report.stats.operations > 50);
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 7] {
        let traces: Vec<u64> = (0..2).map(|_| run_seed(seed, None).expect("a good seed").trace).collect();
        assert_eq!(traces[0], traces[1]);
    }
}

#[test]
fn a_deduplicated_upload_races_the_deletion_of_the_last_reference() {
    for seed in 0..3 {
        caught(|| upload_races_deletion(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_leader_that_was_cut_off_for_a_moment_is_not_declared_dead() {
    for seed in 0..10 {
        caught(|| the_leader_is_cut_off_for_a_moment(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_voter_that_slept_past_the_log_fetches_the_namespace_and_is_back() {
    for seed in 0..3 {
        caught(|| a_voter_sleeps_past_the_log(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_client_that_slept_finds_nodes_that_replaced_all_it_knew() {
    for seed in 0..4 {
        caught(|| every_node_is_replaced_while_a_client_sleeps(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_growing_file_is_seen_whole_by_another_mount() {
    for seed in 0..6 {
        caught(|| a_growing_file_is_watched(Plan::draw(seed), None)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_register_that_two_mounts_share_is_linearizable() {
    for seed in 0..number("DFS_SEEDS").unwrap_or(100) {
        caught(|| a_register_is_shared(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_name_that_was_changed_is_not_believed_by_another_mount() {
    for seed in 0..6 {
        caught(|| a_name_that_comes_and_goes_is_watched(Plan::draw(seed), None)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn copies_lie_in_different_zones_also_when_a_node_dies() {
    for seed in 0..4 {
        caught(|| copies_lie_apart(Plan::draw(seed))).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_chunk_has_as_many_copies_as_asked_for() {
    for (seed, replicas) in [(0, 1), (1, 1), (2, 3), (3, 3)] {
        caught(|| as_many_copies_as_asked_for(Plan::draw(seed), replicas)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// Of three and of four nodes two voters are lost, and a survivor goes on.
#[test]
fn a_minority_goes_on_with_all_that_it_has_when_it_is_told_to() {
    for seed in 0..number("DFS_SEEDS").unwrap_or(8) {
        caught(|| recovery::two_voters_die(seed, 3 + (seed % 2) as usize)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn an_old_voter_that_comes_back_after_a_recovery_mixes_with_nobody() {
    for seed in 0..number("DFS_SEEDS").unwrap_or(6) {
        caught(|| recovery::one_comes_back(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_survivor_that_dies_while_others_join_it_is_followed_by_another() {
    for seed in 0..number("DFS_SEEDS").unwrap_or(6) {
        caught(|| recovery::the_survivor_dies_again(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// Runs a script about `--peers` with many seeds; each decides about speeds, order and lengths.
fn formations(seeds: u64, script: impl Fn(u64)) {
    for seed in 0..number("DFS_SEEDS").unwrap_or(seeds) {
        caught(|| script(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn listed_peers_form_a_cluster_in_whatever_order_they_start() {
    formations(12, forming::in_any_order);
}

#[test]
fn a_founder_that_dies_before_all_are_in_is_forgotten() {
    formations(24, |seed| {
        let death = if seed % 2 == 0 { Death::Killed } else { Death::Silent };
        forming::the_founder_dies(seed, (seed / 2 % 3) as usize, death);
    });
}

#[test]
fn nobody_is_served_before_all_listed_peers_are_in() {
    formations(12, |seed| forming::a_peer_restarts_meanwhile(seed, (1 + seed % 20) * SECOND));
}

#[test]
fn peers_with_different_lists_form_nothing() {
    formations(6, forming::lists_differ);
}

#[test]
fn no_second_cluster_forms_beside_one_that_is_cut_off() {
    formations(12, forming::one_is_cut_off_while_others_restart);
}

#[test]
fn a_cluster_that_was_formed_is_not_forgotten_by_who_has_not_heard_of_it() {
    let (came, not) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    formations(40, |seed| {
        let count = if forming::one_has_not_heard_that_it_was_formed(seed) { &came } else { &not };
        count.set(count.get() + 1);
    });
    // With other seeds it votes already, or has heard: about one in four tells something.
    assert!(came.get() > 0 || not.get() < 16, "it came to that with {} seeds, and with {} not", came.get(), not.get());
}

#[test]
fn one_cluster_forms_whatever_happens_meanwhile() {
    formations(80, |seed| _ = forming::random_faults(seed, false));
}

#[test]
fn two_clusters_never_live_beside_each_other() {
    let formed = std::cell::Cell::new(0);
    formations(80, |seed| formed.set(formed.get() + forming::random_faults(seed, true)));
    assert!(formed.get() > 0);
}

/// Shows that the checks catch a planted bug, by what it does: by the seed that is known to, else by whichever does first.
fn planted_by(name: &str, run: impl Fn(u64) -> Result<Report, String>, known: u64, evidence: &[&str]) {
    for seed in std::iter::once(known).chain(0..300) {
        let Err(why) = run(seed) else { continue };
        if evidence.iter().any(|text| why.contains(text)) {
            println!("{name} was caught by seed {seed}: {why:.300}");
            return;
        }
    }
    panic!("{name} was not caught");
}

fn planted(sabotage: Sabotage, known: u64, evidence: &[&str]) {
    planted_by(&format!("{sabotage:?}"), |seed| run_seed(seed, Some(sabotage)), known, evidence);
}

/// The same for a bug in clients and mounts.
fn planted_in_client(sabotage: client::Sabotage, known: u64, evidence: &[&str]) {
    planted_by(&format!("{sabotage:?}"), |seed| run_client_seed(seed, sabotage), known, evidence);
}

/// A client saw what cannot be.
const SEEN: &[&str] =
    &["not linearizable", "none of the versions", "twice", "is not where it was put", "Stale", "NotFound", "never used before"];
/// Chunks are not where they must be.
const MISSING: &[&str] = &["living holders", "should hold"];

#[test]
fn planted_ack_before_commit() {
    planted(Sabotage::AckBeforeCommit, 0, SEEN);
}

#[test]
fn planted_one_receipt() {
    planted(Sabotage::OneReceipt, 2, MISSING);
}

#[test]
fn planted_reuse_raft_id() {
    planted(Sabotage::ReuseRaftId, 1, &["should hold", "differ after", "two leaders", "is at 0"]);
}

#[test]
fn planted_forget_request_table() {
    planted(Sabotage::ForgetRequestTable, 0, &["differ after", "twice", "NotFound", "never used before"]);
}

#[test]
fn planted_drop_instance_check() {
    planted(Sabotage::DropInstanceCheck, 0, MISSING);
}

#[test]
fn planted_repair_forgets_group() {
    planted(Sabotage::RepairForgetsGroup, 0, MISSING);
}

#[test]
fn planted_drain_leaves_early() {
    planted(Sabotage::DrainLeavesEarly, 1502, &["left early"]);
}

#[test]
fn planted_copy_announced_early() {
    planted(Sabotage::CopyAnnouncedEarly, 0, MISSING);
}

#[test]
fn planted_read_from_deposed() {
    planted(Sabotage::ReadFromDeposed, 1410, SEEN);
}

/// The same where one mount watches what another writes, which the usual workload does too seldom.
fn planted_in_watched_file(sabotage: client::Sabotage, known: u64) {
    let run = |seed| caught(|| a_growing_file_is_watched(Plan::draw(seed), Some(sabotage))).map(|_| Report::default());
    planted_by(&format!("{sabotage:?}"), run, known, &["had been written"]);
}

#[test]
fn planted_recall_ignored() {
    planted(Sabotage::RecallIgnored, 1, SEEN);
}

#[test]
fn planted_recall_obeyed_early() {
    let sabotage = client::Sabotage::RecallObeyedEarly;
    let run = |seed| caught(|| a_name_that_comes_and_goes_is_watched(Plan::draw(seed), Some(sabotage))).map(|_| Report::default());
    planted_by("RecallObeyedEarly", run, 0, &["is believed that had been changed"]);
}

#[test]
fn planted_flush_forgotten() {
    planted_in_client(client::Sabotage::FlushForgotten, 1, SEEN);
}

#[test]
fn planted_chain_ignored() {
    planted_in_client(client::Sabotage::ChainIgnored, 11, SEEN);
}

#[test]
fn planted_attributes_overtake() {
    planted_in_watched_file(client::Sabotage::AttributesOvertake, 0);
}

#[test]
fn one_formation() {
    if let Some(seed) = number("DFS_SEED") {
        forming::random_faults(seed, false);
    }
}
