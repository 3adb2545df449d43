//! What to do about a cluster that has lost the majority of its voters for good: decided from what the nodes that answer say of themselves.
//!
//! Every node applies the log and so has a copy of the tree, voter or not. The one whose log reaches furthest goes on with it as a new
//! cluster, the others join that one. Whoever decides from the same answers decides the same, so that two people who do this at once do
//! not get in each other's way. Refuses to do anything where somebody leads, or could.

use std::collections::BTreeSet;

use crate::types::{Address, ClusterId, NodeId, Term};
use crate::wire::message::StatusReport;

/// A node that answered, and where.
pub type Seen = (Address, StatusReport);

/// A node that is to give up its copy of that cluster's tree; 0 for one that belongs to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Straggler {
    pub address: Address,
    pub cluster: ClusterId,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The cluster whose tree is to go on at `address` first; `None` if that has been done.
    pub lost: Option<ClusterId>,
    pub address: Address,
    pub stragglers: Vec<Straggler>,
    /// The last entry in the log there.
    pub entry: u64,
}

/// How many voters of one set answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turnout {
    answering: usize,
    voters: usize,
}

impl Turnout {
    fn is_majority(self) -> bool {
        self.answering > self.voters / 2
    }
}

/// What to do, or why nothing may be done.
pub fn plan(seen: &[Seen]) -> Result<Plan, String> {
    let leads = |one: &&Seen| one.1.from_leader && one.1.cluster.0 != 0;
    let clusters: BTreeSet<ClusterId> = seen.iter().filter(leads).map(|one| one.1.cluster).collect();
    if clusters.len() > 1 {
        let list = seen.iter().filter(leads).map(|(address, report)| format!("{} at {address}", report.cluster)).collect::<Vec<_>>();
        return Err(format!("several clusters have a leader: {}; name nodes of one with --nodes", list.join(", ")));
    }
    if let Some(leader) = seen.iter().find(leads) {
        return finish(seen, leader);
    }
    let Some(best) = furthest(seen.iter()) else {
        return Err("none of the nodes that answer has a copy of the tree".to_string());
    };
    let related = |cluster: ClusterId| cluster == best.1.cluster || best.1.standing.lineage.contains(&cluster);
    if let Some((address, report)) = seen.iter().find(|(_, report)| report.cluster.0 != 0 && !related(report.cluster)) {
        return Err(format!(
            "{} belongs to cluster {}, {address} to {}, and neither has gone on from the other; name nodes of one with --nodes",
            best.0, best.1.cluster, report.cluster
        ));
    }
    for cluster in seen.iter().map(|(_, report)| report.cluster).collect::<BTreeSet<_>>() {
        if let Some(Turnout { answering, voters }) = majority(seen, cluster) {
            return Err(format!("{answering} of {voters} voters answer, which is a majority: they elect a leader, wait for it"));
        }
    }
    let stragglers = stragglers(seen, &best.0, related);
    Ok(Plan { lost: Some(best.1.cluster), address: best.0.clone(), stragglers, entry: best.1.standing.log.1 })
}

/// Somebody leads. Perhaps nodes that are left of the cluster from which that one went on have not heard of it.
fn finish(seen: &[Seen], leader: &Seen) -> Result<Plan, String> {
    let (address, report) = leader;
    let stragglers = stragglers(seen, address, |cluster| report.standing.lineage.contains(&cluster));
    if stragglers.iter().all(|straggler| straggler.cluster.0 == 0) {
        return Err(format!("cluster {} has a leader, at {address}: there is nothing to recover", report.cluster));
    }
    Ok(Plan { lost: None, address: address.clone(), stragglers, entry: report.standing.log.1 })
}

/// The nodes that are to join the one at `address`.
fn stragglers(seen: &[Seen], address: &Address, related: impl Fn(ClusterId) -> bool) -> Vec<Straggler> {
    let others = seen.iter().filter(|(at, report)| at != address && (report.cluster.0 == 0 || related(report.cluster)));
    let mut stragglers: Vec<Straggler> =
        others.map(|(address, report)| Straggler { address: address.clone(), cluster: report.cluster }).collect();
    // Who has nothing to lose comes first.
    stragglers.sort_by(|a, b| (a.cluster.0 != 0, &a.address).cmp(&(b.cluster.0 != 0, &b.address)));
    stragglers
}

/// The node whose log reaches furthest: what was committed and is in anybody's log is in that one. The id decides between equals.
fn furthest<'a>(seen: impl Iterator<Item = &'a Seen>) -> Option<&'a Seen> {
    seen.filter(|(_, report)| report.standing.log != (Term(0), 0)).max_by_key(|(_, report)| (report.standing.log, report.node))
}

/// The sets of voters of a cluster, as who knows most of it says, and how many of each answer.
fn turnouts(seen: &[Seen], cluster: ClusterId) -> Vec<Turnout> {
    let members = || seen.iter().filter(|(_, report)| report.cluster == cluster);
    let present: BTreeSet<NodeId> = members().map(|(_, report)| report.node).collect();
    let quorums = furthest(members()).map(|(_, report)| &report.standing.quorums[..]).unwrap_or_default();
    let count = |voters: &Vec<NodeId>| voters.iter().filter(|voter| present.contains(voter)).count();
    quorums.iter().map(|voters| Turnout { answering: count(voters), voters: voters.len() }).collect()
}

/// Whether enough voters of the cluster answer to elect a leader.
fn majority(seen: &[Seen], cluster: ClusterId) -> Option<Turnout> {
    let turnouts = turnouts(seen, cluster);
    turnouts.iter().all(|turnout| turnout.is_majority()).then(|| turnouts.first().copied()).flatten()
}

/// What is wrong with a cluster that nobody leads, in one sentence, and what can be saved. `None` where there is no tree to save.
pub fn explain(seen: &[Seen], cluster: ClusterId) -> Option<String> {
    let members = || seen.iter().filter(|(_, report)| report.cluster == cluster);
    let since = members().map(|(_, report)| report.standing.leaderless_ms).min().unwrap_or_default() / 1000;
    let lacking = turnouts(seen, cluster).into_iter().find(|turnout| !turnout.is_majority());
    let Some(Turnout { answering, voters }) = lacking else {
        return (!turnouts(seen, cluster).is_empty()).then(|| format!("no leader since {since} s: the voters elect one"));
    };
    let (copies, entry) = members().fold((0, 0), |(copies, entry), (_, report)| match report.standing.log.1 {
        0 => (copies, entry),
        index => (copies + 1, entry.max(index)),
    });
    let (answer, hold) = (if answering == 1 { "answers" } else { "answer" }, if copies == 1 { "node holds" } else { "nodes hold" });
    Some(format!(
        "no majority: {answering} of {voters} voters {answer}, no leader since {since} s; {copies} {hold} the tree up to entry {entry}; start \
         the others' machines if they live, else `dfs recover` goes on with what is left"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;
    use crate::wire::message::{RepairReport, Standing};

    const OLD: ClusterId = ClusterId(7);
    const NEW: ClusterId = ClusterId(8);

    fn address(port: u16) -> Address {
        Address::Tcp { host: "n".into(), port }
    }

    /// Node `id` of a cluster of three voters, 1 to 3.
    fn seen(id: u64, cluster: ClusterId, log: (u64, u64)) -> Seen {
        let standing = Standing {
            quorums: vec![vec![NodeId(1), NodeId(2), NodeId(3)]],
            log: (Term(log.0), log.1),
            leaderless_ms: 5000 + id,
            lineage: if cluster == NEW { vec![OLD] } else { Vec::new() },
        };
        let report = StatusReport {
            cluster,
            node: NodeId(id),
            epoch: Epoch(1),
            term: Term(1),
            leader: None,
            from_leader: false,
            members: Vec::new(),
            degraded: None,
            applied: 1,
            inodes: 1,
            sessions: Vec::new(),
            referenced_bytes: 0,
            referenced_chunks: 0,
            namespace_bytes: 0,
            replicas: 2,
            voters: 3,
            repair: RepairReport::default(),
            standing,
        };
        (address(id as u16), report)
    }

    fn leading(id: u64, cluster: ClusterId) -> Seen {
        let mut one = seen(id, cluster, (9, 90));
        one.1.from_leader = true;
        one
    }

    fn straggler(id: u16, cluster: ClusterId) -> Straggler {
        Straggler { address: address(id), cluster }
    }

    #[test]
    fn the_node_whose_log_reaches_furthest_goes_on() {
        let nodes = [seen(1, OLD, (2, 30)), seen(4, OLD, (3, 20)), seen(5, OLD, (3, 20)), seen(6, OLD, (0, 0))];
        let done = plan(&nodes).unwrap();
        assert_eq!((done.lost, done.address, done.entry), (Some(OLD), address(5), 20));
        assert_eq!(done.stragglers, [straggler(1, OLD), straggler(4, OLD), straggler(6, OLD)]);
        let other_order: Vec<Seen> = nodes.into_iter().rev().collect();
        assert_eq!(plan(&other_order).unwrap().address, address(5));
    }

    #[test]
    fn nothing_is_done_where_somebody_leads_or_could() {
        assert!(plan(&[leading(1, OLD), seen(2, OLD, (1, 1))]).unwrap_err().contains("has a leader"));
        assert!(plan(&[seen(1, OLD, (1, 9)), seen(3, OLD, (1, 1))]).unwrap_err().contains("2 of 3 voters"));
        assert!(plan(&[seen(6, OLD, (0, 0))]).unwrap_err().contains("copy of the tree"));
        assert!(plan(&[]).is_err());
        assert!(plan(&[leading(1, OLD), leading(2, ClusterId(9))]).unwrap_err().contains("several clusters"));
        // A voter that was started anew has forgotten what it promised, and is another one.
        assert!(plan(&[seen(1, OLD, (1, 9)), seen(9, ClusterId(0), (0, 0))]).is_ok());
        // While the voters are being changed each set needs its majority.
        let mut joint = [seen(4, OLD, (1, 9)), seen(5, OLD, (1, 9)), seen(1, OLD, (1, 9))];
        joint.iter_mut().for_each(|(_, report)| report.standing.quorums.push(vec![NodeId(1), NodeId(4), NodeId(5)]));
        assert!(plan(&joint).is_ok(), "1 of 3 in the first");
        joint[1].1.node = NodeId(2);
        assert!(plan(&joint).is_err());
    }

    #[test]
    fn what_was_begun_is_finished_and_strangers_are_left_alone() {
        let nodes = [leading(9, NEW), seen(2, OLD, (3, 20)), seen(4, ClusterId(0), (0, 0))];
        let rest = plan(&nodes).unwrap();
        assert_eq!((rest.lost, rest.address), (None, address(9)));
        assert_eq!(rest.stragglers, [straggler(4, ClusterId(0)), straggler(2, OLD)]);
        // A cluster that somebody formed at the same addresses is not the one that was lost: the last copy must not be given up for it.
        assert!(plan(&[leading(9, ClusterId(5)), seen(2, OLD, (3, 20))]).unwrap_err().contains("has a leader"));
        assert!(plan(&[seen(9, ClusterId(5), (9, 9)), seen(2, OLD, (3, 20))]).unwrap_err().contains("neither"));
        // The survivor died again, after another had its tree: that one goes on.
        let again = plan(&[seen(8, NEW, (5, 40)), seen(2, OLD, (3, 20))]).unwrap();
        assert_eq!((again.lost, again.address), (Some(NEW), address(8)));
        assert_eq!(again.stragglers, [straggler(2, OLD)]);
    }

    #[test]
    fn what_is_lost_is_said_in_one_line() {
        let line = explain(&[seen(1, OLD, (2, 30)), seen(4, OLD, (3, 20)), seen(6, ClusterId(0), (0, 0))], OLD).unwrap();
        assert!(
            line.starts_with("no majority: 1 of 3 voters answers, no leader since 5 s; 2 nodes hold the tree up to entry 30; "),
            "{line}"
        );
        assert!(line.contains("`dfs recover`") && !line.contains('\n'));
        assert!(explain(&[seen(1, OLD, (2, 30)), seen(2, OLD, (3, 20))], OLD).unwrap().starts_with("no leader since 5 s"));
        assert_eq!(explain(&[seen(1, OLD, (0, 0))], OLD), None, "one that is being formed has nothing to lose");
    }
}
