//! Nodes that go one after another: killed, told to leave as by SIGTERM, or drained by a client. Most go as soon as the cluster has got
//! over the one before; some are killed while it is at that, if what is left is enough. Whoever goes is started anew later.

use std::collections::BTreeMap;

use dfs::client::{Call, Reply};
use dfs::limits;
use dfs::status::Status;
use dfs::types::NodeId;
use dfs_node::node::Node;

use super::checks::{copies_elsewhere, is_enough, is_whole};
use super::network::{Host, Pid};
use super::plan::Fault;
use super::run::{Alarm, Run};
use super::world::{Death, MILLISECOND, SECOND};

/// A node under SIGTERM goes after so long at the latest, also if it was stopped for a moment meanwhile.
const LEAVE_MAX: u64 = limits::LEAVE_TIME_MAX.as_nanos() as u64 + 5 * SECOND;

/// A node that was asked to go.
#[derive(Clone, Copy, Debug)]
struct Going {
    node: NodeId,
    since: u64,
    back_after: u64,
    /// The token of the request to drain it, if it was not a signal.
    drain: Option<u64>,
    /// How many had gone when it was asked.
    gone: usize,
}

/// Who goes, and how many went.
#[derive(Debug, Default)]
pub struct Attrition {
    /// Nodes that were asked to go, with those that refused: a request whose answer was lost may be heeded later.
    asked: BTreeMap<Pid, Going>,
    /// Who asks for drains.
    operator: Option<Pid>,
    /// Nodes that went or were killed.
    pub gone: usize,
    /// Those of them that were killed while copies were missing, or a voter, or another was on its way out.
    pub early: usize,
    pub left: usize,
    pub drained: usize,
}

impl Run {
    pub(super) fn wear_out(&mut self) {
        self.hear_drains();
        let host = self.world.random.below(self.plan.nodes.len() as u64) as usize;
        let whole = is_whole(&self.world, self.plan.nodes.len());
        if (whole || self.world.random.chance(1, 3)) && self.may_go(host) {
            let back_after = self.world.random.below(5 * SECOND);
            match self.world.random.below(4) {
                _ if !whole => {
                    (self.attrition.gone, self.attrition.early) = (self.attrition.gone + 1, self.attrition.early + 1);
                    self.begin(Fault::Crash { host, death: Death::Killed, back_after });
                }
                0 => self.ask_to_leave(host, back_after),
                // Among nodes as small as a chunk a copy may fit nowhere, and a drain then waits until somebody deletes.
                1 if !self.plan.is_tight() => self.ask_to_drain(host, back_after),
                _ => {
                    self.attrition.gone += 1;
                    self.begin(Fault::Crash { host, death: Death::Killed, back_after });
                }
            }
        }
    }

    /// Whether the cluster can do without that node and all that are on their way out already.
    fn may_go(&self, host: Host) -> bool {
        let Some(pid) = self.world.pid_on(host) else { return false };
        let goes = |other: Pid| other == pid || self.attrition.asked.contains_key(&other);
        let staying = self.world.nodes().filter(|(other, _)| !goes(*other)).map(|(_, node)| (node.id(), node)).collect();
        is_enough(&self.world, &staying, self.checks.newest())
    }

    fn ask_to_leave(&mut self, host: Host, back_after: u64) {
        let Some(pid) = self.world.pid_on(host).filter(|pid| !self.world.is_paused(*pid)) else { return };
        self.note_asked(pid, back_after, None);
        self.world.leave(pid);
    }

    fn ask_to_drain(&mut self, host: Host, back_after: u64) {
        let Some(pid) = self.world.pid_on(host) else { return };
        let Some(node) = self.world.processes[&pid].as_node().map(Node::id) else { return };
        let operator = match self.attrition.operator {
            Some(operator) => operator,
            None => self.start_client(self.plan.clients + 1),
        };
        self.attrition.operator = Some(operator);
        let token = self.send(operator, Call::Drain(node));
        self.note_asked(pid, back_after, Some(token));
    }

    fn note_asked(&mut self, pid: Pid, back_after: u64, drain: Option<u64>) {
        let Some(node) = self.world.processes[&pid].as_node().map(Node::id) else { return };
        if self.world.log {
            eprintln!("{:>13} {} {pid}, {node}", self.world.now, if drain.is_some() { "DRAIN" } else { "LEAVE" });
        }
        let going = Going { node, since: self.world.now, back_after, drain, gone: self.attrition.gone };
        self.attrition.asked.entry(pid).or_insert(going);
    }

    /// Takes note of answers to requests to drain.
    fn hear_drains(&mut self) {
        for pid in self.attrition.asked.keys().copied().collect::<Vec<_>>() {
            let Some(token) = self.attrition.asked[&pid].drain.filter(|token| self.is_answered(*token)) else { continue };
            match self.wait(token) {
                Ok(Reply::Done) => {}
                Ok(other) => panic!("a drain answered {other:?}"),
                Err(status) => {
                    let allowed = status == Status::NoSpace || status.number() >= 40;
                    assert!(allowed, "a drain was refused: {status:?}");
                }
            }
        }
    }

    /// A node says that it has stopped.
    pub(super) fn on_stopped(&mut self, pid: Pid, reason: &str) {
        let going = self.attrition.asked.remove(&pid);
        let going = going.unwrap_or_else(|| panic!("node {pid} stopped: {reason}"));
        if self.world.log {
            eprintln!("{:>13} {pid} STOPPED, {reason}", self.world.now);
        }
        let took = self.world.now - going.since;
        let alone = self.attrition.gone == going.gone;
        match going.drain {
            None => assert!(took < LEAVE_MAX, "{} took {} ms to leave", going.node, took / MILLISECOND),
            // If nobody else went meanwhile, there was nothing that it could not have handed over.
            Some(_) if alone => {
                if let Some(weak) = copies_elsewhere(&self.world, pid) {
                    panic!("{} was drained and left early: {weak}", going.node);
                }
            }
            Some(_) => {}
        }
        let count = if going.drain.is_some() { &mut self.attrition.drained } else { &mut self.attrition.left };
        *count += 1;
        self.attrition.gone += 1;
        let host = self.world.processes[&pid].host;
        self.world.kill(pid, Death::Killed);
        self.alarm(going.back_after, Alarm::Restart(host));
    }

    /// A node that was killed goes no more.
    pub(super) fn forget_going(&mut self, pid: Pid) {
        self.attrition.asked.remove(&pid);
    }
}
