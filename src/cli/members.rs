//! Taking nodes out: `drain` and `can-stop`.
#![allow(clippy::disallowed_methods)] // A command waits in real time.

use std::thread;
use std::time::{Duration, Instant};

use dfs::cluster_map::MemberState;
use dfs::status::Status;
use dfs::wire::message::{MemberReport, StatusReport};

use crate::failure::Failure;
use crate::store::Store;

/// Between two looks at a node that is being drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A drain that moves nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// A node that was silent for longer may be dead already.
const SILENCE_MAX_MS: u64 = 1000;

/// Moves what the node holds elsewhere, and returns when it has left. Given up, the node still leaves when its data has gone.
pub fn drain(store: &Store, name: &str) -> Result<(), Failure> {
    let report = leaders_report(store)?;
    let member = find(&report, name)?;
    let (node, address) = (member.member.id, member.member.address.clone());
    store.drain(node).map_err(|status| match status {
        Status::NoSpace => {
            Failure::new(format!("cannot drain {address}: the other nodes have no room for what is stored; add a node or remove files"))
        }
        Status::Degraded => Failure::new(format!(
            "cannot drain {address}: fewer nodes than the {} copies of each chunk would be left; add a node",
            report.replicas
        )),
        status => Failure::status(format!("cannot drain {address}"), status),
    })?;
    let mut left = u64::MAX;
    let mut moved = Instant::now();
    loop {
        // Leadership moves off, too: for a moment nobody may lead.
        match leaders_report(store) {
            Ok(report) => {
                // One that was declared dead on its way has not left: its copies are being made again, or it comes back and goes on.
                let gone = |other: &&MemberReport| other.member.state == MemberState::Dead && other.recorded == 0;
                let member = report.members.iter().find(|other| other.member.id == node).filter(|other| !gone(other));
                let Some(member) = member else { return Ok(()) };
                if member.recorded < left {
                    (left, moved) = (member.recorded, Instant::now());
                }
            }
            Err(failure) if moved.elapsed() > PATIENCE => return Err(failure),
            Err(_) => {}
        }
        if moved.elapsed() > PATIENCE {
            return Err(Failure::new(format!(
                "{address} still holds {left} chunks and nothing has moved for {} s; see dfs status, the drain goes on",
                PATIENCE.as_secs()
            )));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Prints nothing and succeeds if the node may be killed now without loss or loss of service; else says why not.
pub fn can_stop(store: &Store, name: &str) -> Result<(), Failure> {
    let report = leaders_report(store)?;
    match reason_to_stay(&report, find(&report, name)?) {
        Some(reason) => Err(Failure::new(format!("{name} must not stop now: {reason}"))),
        None => Ok(()),
    }
}

/// What only a leader knows is asked of one.
fn leaders_report(store: &Store) -> Result<StatusReport, Failure> {
    let report = store.report().map_err(|error| Failure::status("status", error.status))?;
    if !report.from_leader {
        return Err(Failure::new("the cluster has no leader now; try again in a few seconds"));
    }
    Ok(report)
}

/// The living member of that address or id.
fn find<'a>(report: &'a StatusReport, name: &str) -> Result<&'a MemberReport, Failure> {
    let living = |member: &&MemberReport| member.member.state != MemberState::Dead;
    let named = |member: &&MemberReport| member.member.address.to_string() == name || member.member.id.to_string() == name;
    let found = report.members.iter().filter(living).find(named);
    found.ok_or_else(|| Failure::new(format!("no living node {name}; dfs status lists addresses and ids")))
}

/// Why that node is needed, if it is.
fn reason_to_stay(report: &StatusReport, member: &MemberReport) -> Option<String> {
    let silent =
        |other: &&MemberReport| other.member.state != MemberState::Dead && other.silent_ms.is_none_or(|millis| millis > SILENCE_MAX_MS);
    if let Some(other) = report.members.iter().filter(|other| other.member.id != member.member.id).find(silent) {
        return Some(format!("nothing has been heard of {} for a moment", other.member.address));
    }
    // Voters that are no members any more count as dead.
    let voters = report.voters;
    let living = report.members.iter().filter(|other| other.voter && other.member.state != MemberState::Dead).count();
    if living - usize::from(member.voter) < voters / 2 + 1 {
        return Some(format!("{living} of {voters} voters live, and without it there is no majority"));
    }
    let repair = &report.repair;
    if member.recorded > 0 && report.replicas < 2 {
        return Some(format!("it holds the only copy of {} chunks", member.recorded));
    }
    if !repair.known {
        return Some("the leader has not looked at all chunks since the last change yet".to_string());
    }
    if member.recorded > 0 && repair.weak_chunks > 0 {
        return Some(format!("{} chunks lack a copy; repair is under way", repair.weak_chunks));
    }
    let others = report.members.iter().filter(|other| other.member.stores() && other.member.id != member.member.id).count();
    if member.recorded > 0 && others == 0 {
        return Some("it is the only node that holds data".to_string());
    }
    None
}

#[cfg(test)]
mod tests {
    use dfs::cluster_map::Member;
    use dfs::types::{Address, ClusterId, Epoch, NodeId, Term};
    use dfs::wire::message::RepairReport;

    use super::*;

    fn member(id: u64) -> MemberReport {
        let address = Address::Tcp { host: "h".into(), port: id as u16 };
        let member = Member { id: NodeId(id), address, memory: 1 << 30, zone: String::new(), state: MemberState::Live };
        let (leader, scrubbed, silent_ms) = (id == 1, Default::default(), Some(5));
        MemberReport { member, voter: true, leader, stored: 1, chunks: 1, recorded: 1, resident: 0, scrubbed, silent_ms }
    }

    fn report() -> StatusReport {
        StatusReport {
            cluster: ClusterId(1),
            node: NodeId(1),
            epoch: Epoch(1),
            term: Term(1),
            leader: Some(NodeId(1)),
            from_leader: true,
            members: (1..=3).map(member).collect(),
            degraded: None,
            applied: 1,
            inodes: 1,
            sessions: Vec::new(),
            referenced_bytes: 1,
            referenced_chunks: 1,
            namespace_bytes: 1,
            replicas: 2,
            voters: 3,
            repair: RepairReport { known: true, ..RepairReport::default() },
            standing: Default::default(),
        }
    }

    fn reason(change: impl Fn(&mut StatusReport)) -> String {
        let mut report = report();
        change(&mut report);
        reason_to_stay(&report, &report.members[1]).unwrap_or_default()
    }

    #[test]
    fn one_of_a_healthy_three_may_stop_and_no_other() {
        assert_eq!(reason(|_| {}), "");
        assert!(reason(|report| report.members[2].silent_ms = Some(1500)).contains("heard of h:3"));
        assert!(reason(|report| report.members[2].member.state = MemberState::Dead).contains("2 of 3 voters"));
        assert!(reason(|report| _ = report.members.pop()).contains("2 of 3 voters"));
        assert!(reason(|report| report.repair.weak_chunks = 7).contains("7 chunks lack"));
        assert!(reason(|report| report.repair.known = false).contains("not looked"));
        assert!(reason(|report| report.replicas = 1).contains("only copy"));
        // A node that holds and votes nothing is never needed.
        let idle = |report: &mut StatusReport| {
            (report.repair.weak_chunks, report.voters) = (7, 2);
            (report.members[1].recorded, report.members[1].voter) = (0, false);
        };
        assert_eq!(reason(idle), "");
    }

    #[test]
    fn nodes_are_found_by_address_and_id_if_they_live() {
        let mut report = report();
        let id = report.members[2].member.id.to_string();
        assert_eq!(find(&report, "h:3").unwrap().member.id, NodeId(3));
        assert_eq!(find(&report, &id).unwrap().member.id, NodeId(3));
        report.members[2].member.state = MemberState::Dead;
        assert!(find(&report, "h:3").is_err());
    }
}
