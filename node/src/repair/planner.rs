//! The walk over all chunk records: what is wanting in the whole cluster, and which copies this node is to make.
//!
//! A chunk with fewer replicas than needed is *weak*: the first nodes of its placement order that do not hold it make copies. One with
//! enough replicas of which one is not with its owner is *misplaced*: the owner makes a copy, and with its record somebody else's goes.
//! Weak ones first, those with the fewest readable copies before all others.

use std::collections::BTreeMap;

use dfs::capacity::chunk_charge;
use dfs::cluster_map::ClusterMap;
use dfs::limits::{REPAIR_CYCLE, REPAIR_MARGIN_SHARE, REPAIR_TASKS_MAX, REPAIR_WALK_AGAIN, REPAIR_WALK_STEP, REPAIR_WALK_VISITS};
use dfs::placement::{self, PlacementTable};
use dfs::time::Time;
use dfs::types::{ChunkHash, Epoch, Instance, NodeId};

use crate::namespace::{Held, Namespace, replicas};

/// What a walk has found in all records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Chunks with fewer replicas than needed, and the bytes of the copies that are wanting.
    pub weak: u64,
    pub weak_bytes: u64,
    /// Chunks with a copy elsewhere than where it should be, and bytes of those copies.
    pub misplaced: u64,
    pub misplaced_bytes: u64,
    /// Chunks that no living node is known to hold. Counted among the weak ones, too.
    pub lost: u64,
}

/// A copy that this node is to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub hash: ChunkHash,
    pub instance: Instance,
    pub length: u32,
}

/// Weak chunks by the number of readable copies; misplaced ones come behind all of them.
type Urgency = u8;
const MISPLACED: Urgency = u8::MAX;

/// The walk, and the tasks that it has found.
#[derive(Debug)]
pub struct Planner {
    placement: PlacementTable,
    /// The map that the present walk judges by.
    epoch: Epoch,
    position: Option<ChunkHash>,
    survey: Survey,
    /// What the last whole walk found, and when it ended, if it judged by the present map.
    finished: Option<(Survey, Time)>,
    began: Time,
    next: Time,
    tasks: BTreeMap<(Urgency, ChunkHash), Task>,
    /// Something went wrong: walk again soon.
    again: bool,
    /// More was found than could be kept in mind: walk again when most of that is done.
    overflowed: bool,
}

/// The node for which is planned.
pub struct Here<'a> {
    pub id: NodeId,
    /// Bytes of chunks, with all that keeping them takes, that it has room for; copies on their way are not there yet.
    pub room: u64,
    /// The same of those others that have room for little.
    pub crowded: &'a BTreeMap<NodeId, u64>,
    /// Whether the chunk's bytes are here.
    pub contains: &'a dyn Fn(&ChunkHash) -> bool,
}

impl Here<'_> {
    fn has_room(&self, node: NodeId, bytes: u64) -> bool {
        let room = if node == self.id { Some(&self.room) } else { self.crowded.get(&node) };
        room.is_none_or(|&room| room >= bytes)
    }
}

impl Default for Planner {
    fn default() -> Self {
        Planner {
            placement: PlacementTable::new(),
            epoch: Epoch(0),
            position: None,
            survey: Survey::default(),
            finished: None,
            began: Time(0),
            next: Time(0),
            tasks: BTreeMap::new(),
            again: false,
            overflowed: false,
        }
    }
}

impl Planner {
    /// When [`Self::walk`] goes on.
    pub fn next_deadline(&self) -> Time {
        self.next
    }

    /// Whether [`Self::walk`] has something to do: also when the map has changed.
    pub fn is_due(&self, now: Time, epoch: Epoch) -> bool {
        now >= self.next || epoch != self.epoch
    }

    /// What the last whole walk found; `None` while the first one by the present map is under way.
    pub fn survey(&self) -> Option<Survey> {
        self.finished.map(|(survey, _)| survey)
    }

    /// Whether this node has copies to make.
    pub fn has_tasks(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// The most urgent task; it is this caller's now.
    pub fn pop(&mut self, now: Time) -> Option<Task> {
        if self.overflowed && self.tasks.len() < REPAIR_TASKS_MAX / 4 && self.position.is_none() {
            self.next = self.next.min(now);
        }
        self.tasks.pop_first().map(|(_, task)| task)
    }

    /// A task must wait; it goes before all others.
    pub fn put_back(&mut self, task: Task) {
        add_task(&mut self.tasks, &mut self.overflowed, 0, task);
    }

    /// A task could not be done, or a copy was lost: a walk finds it soon, if it is still to be done.
    pub fn walk_again(&mut self, now: Time) {
        self.again = true;
        if self.position.is_none() {
            self.next = self.next.min(now + REPAIR_WALK_AGAIN);
        }
    }

    fn restart(&mut self, now: Time) {
        (self.position, self.survey, self.next) = (None, Survey::default(), now);
        (self.again, self.overflowed) = (false, false);
    }

    /// Visits some records, if it is time.
    pub fn walk(&mut self, now: Time, namespace: &Namespace, here: &Here) {
        let map = namespace.map();
        if map.epoch != self.epoch {
            self.epoch = map.epoch;
            self.finished = None;
            self.tasks.clear();
            self.restart(now);
        }
        if now < self.next {
            return;
        }
        if self.position.is_none() {
            self.began = now;
        }
        let mut visited = 0;
        let mut last = None;
        for held in namespace.chunks_behind(self.position).take(REPAIR_WALK_VISITS) {
            visited += 1;
            last = Some(held.hash);
            let order = self.placement.order(map, placement::group_of(&held.hash));
            if let Some((urgency, task)) = judge(map, order, &held, here, &mut self.survey) {
                add_task(&mut self.tasks, &mut self.overflowed, urgency, task);
            }
        }
        self.position = last.or(self.position);
        if visited == REPAIR_WALK_VISITS {
            self.next = now + REPAIR_WALK_STEP;
            return;
        }
        let found = self.survey;
        self.finished = Some((found, now));
        let unsettled = self.again || self.overflowed || found.weak > 0 || found.misplaced > 0;
        // A walk over very many records must not become all that the thread does.
        let pause = if unsettled { REPAIR_WALK_AGAIN.max(now.since(self.began) * 4) } else { REPAIR_CYCLE };
        let overflowed = self.overflowed;
        self.restart(now);
        (self.next, self.overflowed) = (now + pause, overflowed);
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        assert!(self.tasks.len() <= REPAIR_TASKS_MAX);
    }
}

/// Room that a node must have to make a copy: where enough exist its margin stays free.
pub fn room_needed(map: &ClusterMap, node: NodeId, held: &Held) -> u64 {
    let memory = map.member(node).map_or(0, |member| member.memory);
    let is_weak = replicas(map, held.holders) < map.receipts_needed();
    chunk_charge(u64::from(held.length)) + if is_weak { 0 } else { memory / REPAIR_MARGIN_SHARE }
}

/// Counts what is wrong with one chunk, and tells whether this node is to make a copy.
fn judge(map: &ClusterMap, order: &[NodeId], held: &Held, here: &Here, survey: &mut Survey) -> Option<(Urgency, Task)> {
    let needed = map.receipts_needed();
    let present = replicas(map, held.holders);
    let mine = held.holders.contains(&here.id);
    let task = Task { hash: held.hash, instance: held.instance, length: held.length };
    let length = u64::from(held.length);
    if present < needed {
        let readable = held.holders.iter().filter(|&&holder| map.is_living(holder)).count();
        survey.weak += 1;
        survey.weak_bytes += (needed - present) as u64 * length;
        survey.lost += u64::from(readable == 0);
        let urgency = readable.min(usize::from(MISPLACED) - 1) as Urgency;
        if mine || !order.contains(&here.id) {
            return None;
        }
        if (here.contains)(&held.hash) {
            return Some((urgency, task));
        }
        let able = |node: &&NodeId| !held.holders.contains(node) && here.has_room(**node, room_needed(map, **node, held));
        let called = order.iter().filter(able).take(needed - present).any(|&node| node == here.id);
        return (called && readable > 0).then_some((urgency, task));
    }
    let mut owners = order.iter().take(map.replicas as usize);
    let surplus = held.holders.iter().filter(|&&holder| map.is_living(holder)).count() > needed;
    let fits = |owner: NodeId| here.has_room(owner, room_needed(map, owner, held));
    let away = owners.clone().any(|&owner| !held.holders.contains(&owner) && fits(owner));
    if away || surplus {
        survey.misplaced += 1;
        survey.misplaced_bytes += length;
    }
    if !mine && owners.any(|&owner| owner == here.id) && ((here.contains)(&held.hash) || fits(here.id)) {
        return Some((MISPLACED, task));
    }
    // Whoever comes first says again that he holds it; with that entry the surplus goes.
    let first = order.iter().find(|node| held.holders.contains(node));
    (surplus && !away && first == Some(&here.id)).then_some((MISPLACED, task))
}

fn add_task(tasks: &mut BTreeMap<(Urgency, ChunkHash), Task>, overflowed: &mut bool, urgency: Urgency, task: Task) {
    if tasks.len() >= REPAIR_TASKS_MAX {
        *overflowed = true;
        match tasks.last_key_value() {
            Some((&last, _)) if last > (urgency, task.hash) => _ = tasks.remove(&last),
            _ => return,
        }
    }
    tasks.insert((urgency, task.hash), task);
}
