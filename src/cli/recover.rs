//! `dfs recover`, and what `dfs status` says of a cluster without a leader: asks all nodes that can be found, decides by
//! [`dfs::recovery`], and tells the survivors one after the other.
#![allow(clippy::disallowed_methods)] // A command waits in real time.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use dfs::client::{Call, Client, Options, Reply};
use dfs::recovery::{self, Plan, Seen, Straggler};
use dfs::status::Status;
use dfs::types::{Address, ClusterId};
use dfs::wire::message::StatusReport;

use crate::args::Global;
use crate::failure::Failure;

/// A node that does not answer for so long counts as gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A node that was told to join takes a copy of the tree, which may be large.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Says in the report why nobody leads, if so.
pub fn explain(global: &Global, report: &mut StatusReport) {
    if report.from_leader || report.cluster.0 == 0 {
        return;
    }
    let mut start: Vec<Address> = report.members.iter().map(|member| member.member.address.clone()).collect();
    start.extend(global.nodes.iter().cloned());
    let seen = survey(&start);
    if seen.iter().any(|(_, other)| other.from_leader && other.cluster == report.cluster) {
        return;
    }
    report.degraded = recovery::explain(&seen, report.cluster).or(report.degraded.take());
}

/// What there is to do, done if told to. Text only when it is whole: a failure prints no result.
pub fn run(global: &Global, yes: bool) -> Result<String, Failure> {
    let seen = survey(&global.nodes);
    if seen.is_empty() {
        let list = global.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        return Err(Failure::new(format!("no node answers at {list}; name surviving nodes with --nodes")));
    }
    let plan = recovery::plan(&seen).map_err(|why| Failure::new(format!("cannot recover: {why}")))?;
    let last = if yes {
        let new = carry_out(&plan)?;
        format!("done     cluster {new}; mount it anew, and see dfs fsck for the files whose content is lost\n")
    } else {
        "nothing was done: if the nodes that do not answer are gone for good, run it again with --yes\n".to_string()
    };
    Ok(describe(&plan, &seen) + &last)
}

fn describe(plan: &Plan, seen: &[Seen]) -> String {
    let answer: BTreeSet<&Address> = seen.iter().map(|(address, _)| address).collect();
    let silent: BTreeSet<String> = named(seen).into_iter().filter(|address| !answer.contains(address)).map(|one| one.to_string()).collect();
    let mut out = String::new();
    if !silent.is_empty() {
        out += &format!("silent   {}\n", silent.into_iter().collect::<Vec<_>>().join(" "));
    }
    match plan.lost {
        Some(cluster) => {
            out += &format!("lost     cluster {cluster}; what its mounts have open ends with an error\n");
            out += &format!("goes on  {} with the tree up to entry {}, as a new cluster\n", plan.address, plan.entry);
        }
        None => out += &format!("goes on  {} has the tree and a leader\n", plan.address),
    }
    let joins = plan.stragglers.iter().map(|straggler| format!("joins    {} with the chunks that it holds\n", straggler.address));
    out + &joins.collect::<String>()
}

/// Tells the survivors; gives the new cluster.
fn carry_out(plan: &Plan) -> Result<ClusterId, Failure> {
    if let Some(cluster) = plan.lost {
        let call = Call::Recover { address: plan.address.clone(), cluster };
        tell(&plan.address, call, "cannot go on there")
            .or_else(|failure| if has_gone_on(plan, cluster) { Ok(()) } else { Err(failure) })?;
    }
    let new = wait(&plan.address, "the new cluster has no leader yet", |report| report.from_leader)?.cluster;
    for Straggler { address, cluster } in &plan.stragglers {
        let call = Call::Rejoin { address: address.clone(), cluster: *cluster, to: plan.address.clone() };
        let told = tell(address, call, "does not join");
        if cluster.0 == 0 {
            // It holds nothing that could be lost, and comes when it comes.
            continue;
        }
        // One after the other: until it has the tree anew, only the others have it. An answer may have been lost.
        let joined = |report: &StatusReport| report.cluster == new && report.standing.log.1 > 0;
        if told.is_err() && !look(address).is_some_and(|report| report.cluster == new || report.cluster.0 == 0) {
            return told.map(|()| new).map_err(|failure| Failure::new(format!("{failure}; run dfs recover again")));
        }
        wait(address, "it has not joined yet; see its log, then run dfs recover again", joined)?;
    }
    Ok(new)
}

/// Whether the node did go on although its answer was lost.
fn has_gone_on(plan: &Plan, cluster: ClusterId) -> bool {
    look(&plan.address).is_some_and(|report| report.standing.lineage.contains(&cluster))
}

/// Waits until the node's report is as wanted.
fn wait(address: &Address, what: &str, done: impl Fn(&StatusReport) -> bool) -> Result<StatusReport, Failure> {
    let begun = Instant::now();
    loop {
        match look(address).filter(&done) {
            Some(report) => return Ok(report),
            None if begun.elapsed() > PATIENCE => return Err(Failure::new(format!("{address}: {what}"))),
            None => thread::sleep(LOOK_EVERY),
        }
    }
}

/// One request to one node. With a client of its own, since one that has found the old cluster cannot speak to the new one.
fn ask(address: &Address, call: Call) -> Result<Reply, Status> {
    let options = Options { op_timeout: ANSWER_WITHIN, ..Options::default() };
    let client = Client::connect_later(std::slice::from_ref(address), options).map_err(|error| error.status)?;
    client.call(call)
}

fn tell(address: &Address, call: Call, what: &str) -> Result<(), Failure> {
    ask(address, call).map(drop).map_err(|status| match status {
        Status::Conflict => Failure::new(format!("{address}: {what}: it has heard a leader a moment ago; see dfs status")),
        status => Failure::status(format!("{address}: {what}"), status),
    })
}

fn look(address: &Address) -> Option<StatusReport> {
    match ask(address, Call::Status(Some(address.clone()))) {
        Ok(Reply::Status(report)) => Some(*report),
        _ => None,
    }
}

/// The report of every node that answers: of those given, and of all that the maps name.
fn survey(start: &[Address]) -> Vec<Seen> {
    let mut asked: BTreeSet<Address> = BTreeSet::new();
    let mut next: BTreeSet<Address> = start.iter().cloned().collect();
    let mut seen: Vec<Seen> = Vec::new();
    while !next.is_empty() {
        asked.extend(next.iter().cloned());
        let found: Vec<Seen> = thread::scope(|scope| {
            let each: Vec<_> = next.iter().map(|address| scope.spawn(move || Some((address.clone(), look(address)?)))).collect();
            each.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
        });
        // One node may be known under two addresses.
        for one in found {
            if seen.iter().all(|(_, other)| other.node != one.1.node) {
                seen.push(one);
            }
        }
        next = named(&seen).into_iter().filter(|address| !asked.contains(address)).collect();
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    seen
}

/// The addresses in the maps of those who answered.
fn named(seen: &[Seen]) -> BTreeSet<Address> {
    seen.iter().flat_map(|(_, report)| &report.members).map(|member| member.member.address.clone()).collect()
}
