//! Repair as this node does it: walks the records, fetches what it is to hold, keeps it, and says so.
//!
//! Copies come from any living holder, the whole chunk at a time, over the bulk lane; the store checks the hash before it keeps one.

use std::collections::BTreeMap;

use bytes::Bytes;

use dfs::capacity::chunk_charge;
use dfs::cluster_map::MemberState;
use dfs::limits;
use dfs::placement;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{ByteRange, ChunkHash, Instance, NodeId};
use dfs::wire::message::{Failure, RepairReport, Request};

use super::joining::Stage;
use super::{Node, Purpose, Sabotage};
use crate::namespace::Command;
use crate::repair::{Announcements, Budget, Here, Planner, Task, room_needed};

/// What a node knows about its part in repair.
#[derive(Debug)]
pub(super) struct Repair {
    planner: Planner,
    announcements: Announcements,
    pub budget: Budget,
    /// Copies on their way to this node.
    pulls: BTreeMap<ChunkHash, Pull>,
    /// What keeping them will take.
    pulled_bytes: u64,
    /// Not before this time is another copy asked for.
    pull_after: Time,
    /// The rooms of nodes that have little, as the leader last said.
    pub crowded: BTreeMap<NodeId, u64>,
    pace: Pace,
}

/// How fast copies are made in the whole cluster, for the estimate of a leader.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    since: Time,
    copied: u64,
    /// Bytes per second.
    rate: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pull {
    instance: Instance,
    length: u32,
    source: NodeId,
}

impl Repair {
    pub fn new(rate: Option<u64>) -> Self {
        Repair {
            planner: Planner::default(),
            announcements: Announcements::default(),
            budget: Budget::new(rate),
            pulls: BTreeMap::new(),
            pulled_bytes: 0,
            pull_after: Time(0),
            crowded: BTreeMap::new(),
            pace: Pace::default(),
        }
    }

    /// Everything but the budget begins anew: this is another incarnation.
    pub fn reset(&mut self, rate: Option<u64>) {
        *self = Repair::new(rate);
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        self.planner.check_invariants();
        self.announcements.check_invariants();
        assert_eq!(self.pulled_bytes, self.pulls.values().map(|pull| chunk_charge(u64::from(pull.length))).sum::<u64>());
        assert!(self.pulls.len() <= limits::REPAIR_PULLS_MAX);
    }
}

impl Node {
    /// When [`Self::pursue_repair`] has something to do.
    pub(super) fn next_repair(&self) -> Time {
        if !self.may_repair() {
            return Time::NEVER;
        }
        let pull = if self.repair.planner.has_tasks() && self.may_pull() { self.repair.pull_after } else { Time::NEVER };
        self.repair.planner.next_deadline().min(self.repair.announcements.next_deadline()).min(pull)
    }

    /// Whether what the records say here is close to what is true.
    fn may_repair(&self) -> bool {
        let joined = matches!(self.stage, Stage::CatchingUp { .. } | Stage::Serving);
        joined && self.namespace.map().cluster == self.cluster && self.group.as_ref().is_some_and(|group| group.leader().is_some())
    }

    fn may_pull(&self) -> bool {
        self.repair.pulls.len() < limits::REPAIR_PULLS_MAX && self.repair.pulled_bytes < limits::REPAIR_PULL_BYTES_MAX
    }

    /// Bytes of chunks, with all that keeping them takes, for which there is room here. Copies that are on their way still count as room: they
    /// are this node's to make until they are here, and nobody else's.
    pub(super) fn room(&self) -> u64 {
        self.config.memory.saturating_sub(self.taken())
    }

    /// Whether a copy here is to stay although somebody said that it may go: he did not know what this node knows.
    pub(super) fn is_spoken_for(&self, hash: &ChunkHash, instance: Instance) -> bool {
        if self.repair.announcements.holds(&(*hash, instance)) {
            return true;
        }
        let recorded = self.namespace.chunk_held(hash);
        recorded.is_some_and(|held| held.instance == instance && held.holders.contains(&self.id))
    }

    /// Walks, fetches, announces: as much as this turn allows.
    pub(super) fn pursue_repair(&mut self) {
        if !self.may_repair() {
            return;
        }
        let now = self.now;
        self.repair.announcements.on_applied(self.namespace.applied());
        if self.repair.planner.is_due(now, self.namespace.map().epoch) {
            let room = self.room();
            let contains = |hash: &ChunkHash| self.chunks.contains(hash);
            let here = Here { id: self.id, room, crowded: &self.repair.crowded, contains: &contains };
            self.repair.planner.walk(now, &self.namespace, &here);
        }
        // Tasks that have become needless cost little, but there may be very many.
        for _ in 0..limits::REPAIR_WALK_VISITS {
            if now < self.repair.pull_after || !self.may_pull() {
                break;
            }
            let Some(task) = self.repair.planner.pop(now) else { break };
            self.pursue_task(task);
        }
        self.announce_copies();
        self.measure_pace();
    }

    /// One copy: found here, or asked for.
    fn pursue_task(&mut self, task: Task) {
        let Task { hash, instance, length } = task;
        if self.sabotaged(Sabotage::RepairForgetsGroup) && placement::group_of(&hash).0 % 4 == 1 {
            return;
        }
        // The log has gone on since the walk.
        let Some(held) = self.namespace.chunk_held(&hash).filter(|held| held.instance == instance) else { return };
        if self.repair.pulls.contains_key(&hash) || self.repair.announcements.holds(&(hash, instance)) {
            return;
        }
        if self.chunks.contains(&hash) {
            return self.keep_copy(hash, instance, None);
        }
        let sources: Vec<NodeId> = held.holders.iter().copied().filter(|&holder| holder != self.id && self.map.is_living(holder)).collect();
        if sources.is_empty() || held.holders.contains(&self.id) {
            return;
        }
        // What does not fit beside the copies on their way the next walk finds again, or leaves to another node.
        if room_needed(self.namespace.map(), self.id, &held) > self.room().saturating_sub(self.repair.pulled_bytes) {
            return;
        }
        if !self.repair.budget.admit(self.now, u64::from(length)) {
            self.repair.pull_after = self.now + self.repair.budget.patience();
            return self.repair.planner.put_back(task);
        }
        let source = sources[self.random.below(sources.len() as u64) as usize];
        let request = Request::Get { hash, range: ByteRange { offset: 0, length: u64::from(length) } };
        if self.ask(source, request, Purpose::Pull { hash }, limits::REPAIR_PULL_TIMEOUT) {
            self.repair.pulls.insert(hash, Pull { instance, length, source });
            self.repair.pulled_bytes += chunk_charge(u64::from(length));
            if self.sabotaged(Sabotage::CopyAnnouncedEarly) {
                self.repair.announcements.add(self.now, (hash, instance));
            }
        }
    }

    /// The bytes of a copy arrived.
    pub(super) fn on_pulled(&mut self, hash: ChunkHash, bytes: Bytes) {
        let Some(pull) = self.end_pull(&hash) else { return };
        // What was deleted meanwhile would be garbage.
        if self.namespace.chunk_held(&hash).is_none_or(|held| held.instance != pull.instance) {
            return;
        }
        self.keep_copy(hash, pull.instance, Some((bytes, pull.source)));
    }

    pub(super) fn on_pull_failed(&mut self, hash: ChunkHash, failure: &Failure) {
        let Some(pull) = self.end_pull(&hash) else { return };
        self.repair.planner.walk_again(self.now);
        if failure.status == Status::Busy {
            // The source serves clients.
            self.repair.planner.put_back(Task { hash, instance: pull.instance, length: pull.length });
            self.repair.pull_after = self.now + limits::REPAIR_BUSY_PAUSE;
        }
    }

    fn end_pull(&mut self, hash: &ChunkHash) -> Option<Pull> {
        let pull = self.repair.pulls.remove(hash)?;
        self.repair.pulled_bytes -= chunk_charge(u64::from(pull.length));
        Some(pull)
    }

    /// Keeps bytes (those that came, or those that are here) under the live upload, and announces that.
    fn keep_copy(&mut self, hash: ChunkHash, instance: Instance, came: Option<(Bytes, NodeId)>) {
        let source = came.as_ref().map(|(_, source)| *source);
        let kept = match came {
            Some((bytes, _)) if chunk_charge(bytes.len() as u64) <= self.room() => self.chunks.put(self.now, hash, instance, bytes),
            Some(_) => Err(Status::Full),
            None => self.chunks.link(self.now, hash, instance),
        };
        match (kept, source) {
            (Ok(()), _) if self.repair.announcements.add(self.now, (hash, instance)) => {}
            (Err(Status::Corrupt), Some(source)) => {
                tracing::warn!(%hash, %source, "a copy did not match its hash");
                self.ask(source, Request::Suspect { hash }, Purpose::Forgotten, limits::ATTEMPT_TIMEOUT);
                self.repair.planner.walk_again(self.now);
            }
            _ => self.repair.planner.walk_again(self.now),
        }
    }

    fn announce_copies(&mut self) {
        let Some(leader) = self.group.as_ref().and_then(|group| group.leader()) else { return };
        let items = self.repair.announcements.take(self.now);
        if items.is_empty() {
            return;
        }
        if leader == self.id {
            // Its own log: the entry to come is the next but what is on its way already, so the end of all that tells.
            match self.propose(Command::Copied { node: self.id, items }) {
                Ok(()) => self.repair.announcements.on_answer(self.group.as_ref().map_or(0, |group| group.last_index())),
                Err(_) => self.repair.announcements.on_failure(self.now + limits::JOIN_RETRY),
            }
            return;
        }
        if !self.ask(leader, Request::Copied { items }, Purpose::Copied, limits::ATTEMPT_TIMEOUT) {
            self.on_copied_failed();
        }
    }

    /// The leader has applied what was announced.
    pub(super) fn on_copied(&mut self, applied: u64) {
        self.repair.announcements.on_answer(applied);
    }

    pub(super) fn on_copied_failed(&mut self) {
        self.repair.announcements.on_failure(self.now + limits::JOIN_RETRY);
    }

    /// Some node has lost copies: whose part it is to make them again finds out now.
    pub(super) fn on_copies_lost(&mut self) {
        self.repair.planner.walk_again(self.now);
    }

    /// Copies per second in the whole cluster, as the log tells.
    fn measure_pace(&mut self) {
        let (now, copied) = (self.now, self.namespace.copied_bytes());
        let pace = &mut self.repair.pace;
        let passed = now.since(pace.since);
        if passed >= limits::REPAIR_PACE_INTERVAL {
            let rate = u128::from(copied.saturating_sub(pace.copied)) * 1_000_000_000 / passed.as_nanos();
            // Half of it is the newest: an estimate that neither jumps nor sleeps.
            *pace = Pace { since: now, copied, rate: if pace.rate == 0 { rate as u64 } else { (pace.rate + rate as u64) / 2 } };
        }
    }

    /// What is wanting in the cluster, as this node's last walk saw it.
    pub(super) fn repair_report(&self) -> RepairReport {
        let Some(survey) = self.repair.planner.survey() else { return RepairReport::default() };
        let rate = self.repair.pace.rate;
        let left = survey.weak_bytes + survey.misplaced_bytes;
        RepairReport {
            known: true,
            weak_chunks: survey.weak,
            weak_bytes: survey.weak_bytes,
            misplaced_chunks: survey.misplaced,
            misplaced_bytes: survey.misplaced_bytes,
            lost_chunks: survey.lost,
            seconds_left: (left > 0 && rate > 0).then(|| left.div_ceil(rate)),
        }
    }

    /// The rooms of members that may not have enough for every chunk, as far as the leader knows.
    pub(super) fn crowded_members(&self) -> Vec<(NodeId, u64)> {
        let Some(leading) = &self.leading else { return Vec::new() };
        let rooms = self.map.members.iter().filter(|member| member.state == MemberState::Live).filter_map(|member| {
            let room = if member.id == self.id { Some(self.room()) } else { leading.contact(member.id)?.load.room };
            let enough = chunk_charge(limits::CHUNK_BYTES_MAX as u64) + member.memory / limits::REPAIR_MARGIN_SHARE;
            Some((member.id, room.filter(|&room| room < enough)?))
        });
        rooms.collect()
    }

    /// Whether a chunk fits that a client brings, which may have reserved room for it in the cluster.
    pub(super) fn has_room_for_upload(&self, length: u64) -> bool {
        self.taken().saturating_add(chunk_charge(length)) <= self.config.memory + self.config.memory / limits::ROOM_TOLERANCE_SHARE
    }

    fn taken(&self) -> u64 {
        self.chunks.usage().charged.saturating_add(self.namespace.usage().namespace_bytes)
    }
}
