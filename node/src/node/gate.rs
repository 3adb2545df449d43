//! The gate at the leader: which operations may go into the log now, and whom the others wait for.
//!
//! Volatile book-keeping only, without clock or links: names and inodes that are taken, recalls that are not obeyed yet, who waits for
//! which, and where rights are recalled so often that none are given for a while. What follows from it is done in `admission`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::limits;
use dfs::time::Time;
use dfs::types::{InodeId, Name, RequestNumber, SessionId};
use dfs::wire::message::Recall;
use dfs::wire::namespace::Query;

use super::Asker;
use super::claims::{Claim, NameKey};
use crate::namespace::Command;
use dfs::types::Rights;

/// An operation of a client.
pub(super) type OpId = (SessionId, RequestNumber);

/// Whoever waits for a recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    Op(OpId),
    Query(u64),
}

/// An operation between its arrival and its application.
#[derive(Debug)]
pub(super) struct Passage {
    pub asker: Asker,
    /// Until it is in the log.
    pub command: Option<Command>,
    names: Vec<NameKey>,
    /// Once its names are its own.
    pub claim: Option<Claim>,
    /// Names that sessions have forgotten for it: they keep the right to the others.
    pub told: Vec<(SessionId, Recall)>,
}

/// A query that waits for another session's writes.
#[derive(Debug)]
pub(super) struct Look {
    pub asker: Asker,
    pub session: SessionId,
    pub query: Query,
    pub since: Time,
}

/// A recall that is not obeyed yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub session: SessionId,
    pub items: Vec<Recall>,
    /// When it was first sent, or its session last showed that it is busy obeying it.
    pub since: Time,
    /// When it was first sent, or some of what was written under a recalled right was last committed.
    committed: Time,
    pub send_at: Time,
    waiters: BTreeSet<Waiter>,
}

/// How often rights on an inode were recalled lately.
#[derive(Clone, Copy, Debug)]
struct Heat {
    count: u32,
    since: Time,
    /// Nothing is granted before.
    until: Time,
}

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    passages: BTreeMap<OpId, Passage>,
    /// Operations by the names that they need; the first of each list has it.
    names: BTreeMap<NameKey, VecDeque<OpId>>,
    /// Sessions with an operation on its way that changes the inode, one entry each.
    closed: BTreeMap<InodeId, Vec<SessionId>>,
    /// Files that somebody is about to write alone; operations of others wait until it is decided.
    acquiring: BTreeMap<InodeId, OpId>,
    behind_acquire: BTreeMap<InodeId, Vec<OpId>>,
    looks: BTreeMap<u64, Look>,
    outstanding: BTreeMap<u64, Outstanding>,
    /// Index of `outstanding`.
    wanted: BTreeMap<(SessionId, Recall), u64>,
    heats: BTreeMap<InodeId, Heat>,
    /// Sessions older than the term that have not told what they may cache.
    unknown: BTreeSet<SessionId>,
    waiting_for_unknown: BTreeSet<OpId>,
    /// Operations that came before the log of earlier terms was applied.
    early: BTreeSet<OpId>,
    /// To be looked at again.
    ready: VecDeque<Waiter>,
    number: u64,
}

/// Operations.
impl Gate {
    /// Those that wait, and those in the log.
    pub fn len(&self) -> usize {
        self.passages.len() + self.looks.len()
    }

    pub fn looks_waiting(&self) -> usize {
        self.looks.len()
    }

    pub fn passage(&mut self, id: OpId) -> Option<&mut Passage> {
        self.passages.get_mut(&id)
    }

    /// Takes an operation in; it queues for each of its names.
    pub fn enter(&mut self, id: OpId, asker: Asker, command: Command, names: Vec<NameKey>) {
        for name in &names {
            self.names.entry(name.clone()).or_default().push_back(id);
        }
        let passage = Passage { asker, command: Some(command), names, claim: None, told: Vec::new() };
        let old = self.passages.insert(id, passage);
        assert!(old.is_none(), "an operation enters once");
    }

    /// Whether all its names are its own.
    pub fn has_names(&self, id: OpId) -> bool {
        let Some(passage) = self.passages.get(&id) else { return false };
        passage.names.iter().all(|name| self.names.get(name).and_then(VecDeque::front) == Some(&id))
    }

    /// From here on nothing is granted on what the operation changes.
    pub fn close(&mut self, id: OpId, claim: Claim) {
        for (ino, _) in &claim.changes {
            self.closed.entry(*ino).or_default().push(id.0);
        }
        if let Some(ino) = claim.acquires {
            self.acquiring.insert(ino, id);
        }
        if let Some(passage) = self.passages.get_mut(&id) {
            passage.claim = Some(claim);
        }
    }

    /// The operation was applied, or will never be: opens what it closed, and wakes who waited behind it.
    pub fn leave(&mut self, id: OpId) -> Option<Passage> {
        let passage = self.passages.remove(&id)?;
        for name in &passage.names {
            let Some(queue) = self.names.get_mut(name) else { continue };
            queue.retain(|other| *other != id);
            match queue.front() {
                Some(next) => self.ready.push_back(Waiter::Op(*next)),
                None => _ = self.names.remove(name),
            }
        }
        for (ino, _) in passage.claim.iter().flat_map(|claim| &claim.changes) {
            let Some(sessions) = self.closed.get_mut(ino) else { continue };
            if let Some(index) = sessions.iter().position(|session| *session == id.0) {
                sessions.swap_remove(index);
            }
            if sessions.is_empty() {
                self.closed.remove(ino);
            }
        }
        if let Some(ino) = passage.claim.as_ref().and_then(|claim| claim.acquires)
            && self.acquiring.get(&ino) == Some(&id)
        {
            self.acquiring.remove(&ino);
            let behind = self.behind_acquire.remove(&ino).unwrap_or_default();
            self.ready.extend(behind.into_iter().map(Waiter::Op));
        }
        self.waiting_for_unknown.remove(&id);
        self.early.remove(&id);
        Some(passage)
    }

    pub fn is_closed(&self, ino: InodeId) -> bool {
        self.closed.contains_key(&ino)
    }

    /// Whether an operation of another session that changes the inode is on its way.
    pub fn is_closed_by_other(&self, session: SessionId, ino: InodeId) -> bool {
        self.closed.get(&ino).is_some_and(|sessions| sessions.iter().any(|other| *other != session))
    }

    /// Queues the operation behind another session's wish to write alone what it changes, if there is one.
    pub fn waits_for_acquire(&mut self, id: OpId) -> bool {
        let Some(claim) = self.passages.get(&id).and_then(|passage| passage.claim.as_ref()) else { return false };
        let taken = |ino: &InodeId| self.acquiring.get(ino).is_some_and(|other| other.0 != id.0);
        let Some(ino) = claim.changes.iter().map(|(ino, _)| *ino).find(taken) else { return false };
        let behind = self.behind_acquire.entry(ino).or_default();
        if !behind.contains(&id) {
            behind.push(id);
        }
        true
    }

    /// Everything that waits, at the end of the term.
    pub fn take_askers(&mut self) -> Vec<Asker> {
        let waiting = self.passages.values().filter(|passage| passage.command.is_some()).map(|passage| passage.asker);
        let askers = waiting.chain(self.looks.values().map(|look| look.asker)).collect();
        *self = Gate::default();
        askers
    }

    pub fn next_ready(&mut self) -> Option<Waiter> {
        self.ready.pop_front()
    }

    pub fn add_look(&mut self, look: Look) -> Waiter {
        self.number += 1;
        self.looks.insert(self.number, look);
        Waiter::Query(self.number)
    }

    pub fn take_look(&mut self, number: u64) -> Option<Look> {
        self.looks.remove(&number)
    }

    /// Queries that have waited for an operation deadline: whoever asked has asked again since, or has given up.
    pub fn take_old_looks(&mut self, now: Time) -> Vec<Look> {
        // Numbers, and so arrivals, grow.
        let mut old = Vec::new();
        while let Some(first) = self.looks.first_entry().filter(|look| now.since(look.get().since) > limits::OP_TIMEOUT) {
            old.push(first.remove());
        }
        old
    }
}

/// Sessions of which nothing is known.
impl Gate {
    pub fn set_unknown(&mut self, sessions: impl Iterator<Item = SessionId>) {
        self.unknown = sessions.collect();
    }

    /// Another session of the term before, of which the log tells only now.
    pub fn add_unknown(&mut self, session: SessionId) {
        self.unknown.insert(session);
    }

    /// Lets an operation wait until the log of earlier terms is applied.
    pub fn wait_for_start(&mut self, id: OpId) {
        self.early.insert(id);
    }

    /// The log of earlier terms is applied.
    pub fn start(&mut self) {
        self.ready.extend(std::mem::take(&mut self.early).into_iter().map(Waiter::Op));
    }

    /// The session has told, or what it has is void.
    pub fn know(&mut self, session: SessionId) {
        if self.unknown.remove(&session) {
            self.ready.extend(std::mem::take(&mut self.waiting_for_unknown).into_iter().map(Waiter::Op));
        }
    }

    pub fn unknown(&self) -> Vec<SessionId> {
        self.unknown.iter().copied().collect()
    }

    /// Lets a change wait while it may be in conflict with rights that are not known yet.
    pub fn waits_for_unknown(&mut self, id: OpId) -> bool {
        let waits = self.unknown.iter().any(|session| *session != id.0)
            && self.passages.get(&id).and_then(|passage| passage.claim.as_ref()).is_some_and(|claim| !claim.changes.is_empty());
        if waits {
            self.waiting_for_unknown.insert(id);
        }
        waits
    }
}

/// Recalls.
impl Gate {
    /// Makes the waiter wait for these; gives those that were not under way yet, by number.
    pub fn want(&mut self, now: Time, waiter: Waiter, items: Vec<(SessionId, Recall)>) -> Vec<u64> {
        let mut fresh: BTreeMap<SessionId, Vec<Recall>> = BTreeMap::new();
        for (session, item) in items {
            let known = self.wanted.get(&(session, item.clone())).or_else(|| match item {
                // Who gives everything back gives also this.
                Recall::Inode { ino, .. } => self.wanted.get(&(session, Recall::Inode { ino, keep: Rights::NONE })),
                Recall::Name { .. } => None,
            });
            match known.and_then(|number| self.outstanding.get_mut(number)) {
                Some(outstanding) => _ = outstanding.waiters.insert(waiter),
                None => fresh.entry(session).or_default().push(item),
            }
        }
        let mut numbers = Vec::new();
        for (session, items) in fresh {
            for items in items.chunks(limits::RECALL_ITEMS_MAX) {
                self.number += 1;
                items.iter().for_each(|item| _ = self.wanted.insert((session, item.clone()), self.number));
                let waiters = BTreeSet::from([waiter]);
                let outstanding = Outstanding { session, items: items.to_vec(), since: now, committed: now, send_at: now, waiters };
                self.outstanding.insert(self.number, outstanding);
                numbers.push(self.number);
            }
        }
        numbers
    }

    pub fn outstanding(&self, number: u64) -> Option<&Outstanding> {
        self.outstanding.get(&number)
    }

    /// Recalls of the session that are not obeyed, by number.
    pub fn outstanding_of(&self, session: SessionId) -> Vec<u64> {
        self.outstanding.iter().filter(|(_, outstanding)| outstanding.session == session).map(|(number, _)| *number).collect()
    }

    /// Whether the session is to give back what it writes alone.
    pub fn is_recalled_from(&self, session: SessionId, ino: InodeId) -> bool {
        let wanted = |keep| self.wanted.contains_key(&(session, Recall::Inode { ino, keep }));
        wanted(Rights::NONE) || wanted(Rights::READ)
    }

    /// Whether a recall that the session has not obeyed takes any of these rights. It takes what the session has when it obeys, and the
    /// session knows only of what it had when it was told: whatever were granted between would be gone here and not there.
    pub fn is_losing(&self, session: SessionId, ino: InodeId, rights: Rights) -> bool {
        let inode = |keep| (session, Recall::Inode { ino, keep: Rights(keep) });
        let taken = |item: &Recall| matches!(item, Recall::Inode { keep, .. } if !keep.contains(rights));
        let mut inodes = self.wanted.range(inode(0)..=inode(u8::MAX));
        let first = Name::new([1]).expect("the least name");
        let mut names = self.wanted.range((session, Recall::Name { directory: ino, name: first })..);
        let of_directory = |item: &Recall| matches!(item, Recall::Name { directory, .. } if *directory == ino);
        inodes.any(|((_, item), _)| taken(item)) || names.next().is_some_and(|((of, item), _)| *of == session && of_directory(item))
    }

    /// Sessions that have not obeyed yet.
    pub fn recalled_sessions(&self) -> BTreeSet<SessionId> {
        self.outstanding.values().map(|outstanding| outstanding.session).collect()
    }

    /// The recall is obeyed, or has lost its object. Wakes who waited for it.
    pub fn settle(&mut self, now: Time, number: u64) -> Option<Outstanding> {
        let outstanding = self.outstanding.remove(&number)?;
        for item in &outstanding.items {
            self.wanted.remove(&(outstanding.session, item.clone()));
            match item {
                // A look takes no cache away; whoever writes on does not ask for the right again at once.
                Recall::Inode { keep, .. } if keep.contains(Rights::READ) => {}
                Recall::Inode { ino, .. } => self.heat(now, *ino),
                Recall::Name { .. } => {}
            }
        }
        for waiter in &outstanding.waiters {
            if let Waiter::Op(id) = waiter
                && let Some(passage) = self.passages.get_mut(id)
            {
                let names = outstanding.items.iter().filter(|item| matches!(item, Recall::Name { .. }));
                passage.told.extend(names.map(|name| (outstanding.session, name.clone())));
            }
            self.ready.push_back(*waiter);
        }
        Some(outstanding)
    }

    /// The session is gone: nobody waits for it any more.
    pub fn end(&mut self, now: Time, session: SessionId) {
        self.know(session);
        for number in self.outstanding_of(session) {
            self.settle(now, number);
        }
    }

    /// Recalls that are to be sent now, again or for the first time.
    pub fn take_due(&mut self, now: Time) -> Vec<u64> {
        let due = self.outstanding.iter_mut().filter(|(_, outstanding)| outstanding.send_at <= now);
        let taken = due.map(|(number, outstanding)| {
            outstanding.send_at = now + limits::RECALL_RESEND;
            *number
        });
        taken.collect()
    }

    /// The session can be reached over a new link.
    pub fn send_again(&mut self, now: Time, session: SessionId) {
        self.outstanding
            .values_mut()
            .filter(|outstanding| outstanding.session == session)
            .for_each(|outstanding| outstanding.send_at = now);
    }

    /// The session says that it is committing what was written under the rights that this recall takes. That alone is believed only for so
    /// long: a session that commits nothing must not keep a file from all others for ever.
    pub fn on_flushing(&mut self, now: Time, session: SessionId, number: u64) {
        if let Some(outstanding) = self.outstanding.get_mut(&number).filter(|outstanding| outstanding.session == session) {
            outstanding.since = outstanding.since.max(now.min(outstanding.committed + limits::FLUSH_PATIENCE));
        }
    }

    /// The session has committed bytes of the file.
    pub fn on_flushed(&mut self, now: Time, session: SessionId, ino: InodeId) {
        let of_file = |item: &Recall| matches!(item, Recall::Inode { ino: recalled, .. } if *recalled == ino);
        for outstanding in self.outstanding.values_mut().filter(|outstanding| outstanding.session == session) {
            if outstanding.items.iter().any(of_file) {
                (outstanding.since, outstanding.committed) = (now, now);
            }
        }
    }

    /// Whether the session has had a whole lease to obey and has not: from then on its life is not prolonged.
    pub fn is_stalled(&self, now: Time, session: SessionId) -> bool {
        self.outstanding.values().any(|outstanding| outstanding.session == session && now.since(outstanding.since) > limits::SESSION_LEASE)
    }

    fn heat(&mut self, now: Time, ino: InodeId) {
        if self.heats.len() >= limits::HEATS_MAX && !self.heats.contains_key(&ino) {
            return;
        }
        let heat = self.heats.entry(ino).or_insert(Heat { count: 0, since: now, until: Time(0) });
        if now.since(heat.since) > limits::COOL_WINDOW {
            (heat.count, heat.since) = (0, now);
        }
        heat.count += 1;
        if heat.count >= limits::COOL_RECALLS {
            *heat = Heat { count: 0, since: now, until: now + limits::COOL_TIME };
        }
    }

    /// Whether rights on the inode were recalled too often lately to be given again.
    pub fn is_cooling(&self, now: Time, ino: InodeId) -> bool {
        self.heats.get(&ino).is_some_and(|heat| now < heat.until)
    }

    /// Forgets what has cooled down.
    pub fn cool(&mut self, now: Time) {
        self.heats.retain(|_, heat| now < heat.until || now.since(heat.since) <= limits::COOL_WINDOW);
    }

    /// Asserts that indexes agree and bounds hold.
    pub fn check_invariants(&self) {
        assert!(
            self.passages.len() <= limits::GATE_OPS_MAX
                && self.looks.len() <= limits::NODE_READS_MAX
                && self.heats.len() <= limits::HEATS_MAX
        );
        let mut closed: BTreeMap<InodeId, usize> = BTreeMap::new();
        for (id, passage) in &self.passages {
            for name in &passage.names {
                assert!(self.names.get(name).is_some_and(|queue| queue.contains(id)), "an operation queues for its names");
            }
            let changes = passage.claim.iter().flat_map(|claim| &claim.changes);
            changes.for_each(|(ino, _)| *closed.entry(*ino).or_default() += 1);
        }
        assert_eq!(closed, self.closed.iter().map(|(ino, sessions)| (*ino, sessions.len())).collect(), "what is closed");
        for (number, outstanding) in &self.outstanding {
            for item in &outstanding.items {
                assert_eq!(self.wanted.get(&(outstanding.session, item.clone())), Some(number), "index of recalls");
            }
        }
        assert_eq!(self.wanted.len(), self.outstanding.values().map(|outstanding| outstanding.items.len()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use dfs::link::LinkId;
    use dfs::types::ROOT;

    use super::*;

    const A: OpId = (SessionId(1), RequestNumber(1));
    const B: OpId = (SessionId(2), RequestNumber(1));
    const FILE: InodeId = InodeId(7);
    const NOW: Time = Time(1_000_000_000);

    fn enter(gate: &mut Gate, id: OpId, names: &[&str]) {
        let asker = Asker { link: LinkId(LinkId::INCOMING), request: id.1.0 };
        let mut names: Vec<NameKey> = names.iter().map(|text| (ROOT, Name::new(*text).unwrap())).collect();
        names.sort();
        gate.enter(id, asker, Command::Noop, names);
    }

    fn changes(ino: InodeId) -> Claim {
        Claim { changes: vec![(ino, Rights::NONE)], ..Claim::default() }
    }

    fn ready(gate: &mut Gate) -> Vec<Waiter> {
        std::iter::from_fn(|| gate.next_ready()).collect()
    }

    fn back(session: SessionId, keep: Rights) -> (SessionId, Recall) {
        (session, Recall::Inode { ino: FILE, keep })
    }

    #[test]
    fn names_are_taken_in_order_and_never_half() {
        let (mut gate, c) = (Gate::default(), (SessionId(3), RequestNumber(1)));
        enter(&mut gate, A, &["x"]);
        enter(&mut gate, B, &["x", "y"]);
        enter(&mut gate, c, &["y"]);
        assert!(gate.has_names(A) && !gate.has_names(B) && !gate.has_names(c), "the third queues behind the second");
        gate.leave(A);
        assert_eq!(ready(&mut gate), [Waiter::Op(B)]);
        assert!(gate.has_names(B));
        gate.leave(B);
        assert!(gate.has_names(c));
        gate.check_invariants();
    }

    #[test]
    fn an_inode_is_closed_as_long_as_any_change_is_on_its_way() {
        let mut gate = Gate::default();
        for id in [A, B] {
            enter(&mut gate, id, &[]);
            gate.close(id, changes(FILE));
        }
        gate.leave(A);
        assert!(gate.is_closed(FILE) && gate.is_closed_by_other(A.0, FILE) && !gate.is_closed_by_other(B.0, FILE));
        gate.leave(B);
        assert!(!gate.is_closed(FILE));
        gate.check_invariants();
    }

    #[test]
    fn nothing_is_given_to_a_session_that_is_still_giving_it_back() {
        let mut gate = Gate::default();
        enter(&mut gate, A, &[]);
        let name = Recall::Name { directory: ROOT, name: Name::new("x").unwrap() };
        let of_file = gate.want(NOW, Waiter::Op(A), vec![back(B.0, Rights::NAMES)]);
        let of_name = gate.want(NOW, Waiter::Op(A), vec![(B.0, name)]);
        let losing = |gate: &Gate, session, ino, rights| gate.is_losing(session, ino, rights);
        // Whoever wanted it back has gone on without it.
        gate.leave(A);
        assert!(losing(&gate, B.0, FILE, Rights::READ) && !losing(&gate, B.0, FILE, Rights::NAMES));
        assert!(losing(&gate, B.0, ROOT, Rights::NAMES) && !losing(&gate, A.0, FILE, Rights::READ));
        assert!(!losing(&gate, B.0, InodeId(6), Rights::READ) && !losing(&gate, B.0, InodeId(8), Rights::READ));
        gate.settle(NOW, of_file[0]);
        gate.settle(NOW, of_name[0]);
        assert!(!losing(&gate, B.0, FILE, Rights::READ) && !losing(&gate, B.0, ROOT, Rights::NAMES));
    }

    #[test]
    fn one_recall_serves_all_who_wait_for_it() {
        let (mut gate, holder) = (Gate::default(), SessionId(9));
        enter(&mut gate, A, &[]);
        enter(&mut gate, B, &[]);
        let first = gate.want(NOW, Waiter::Op(A), vec![back(holder, Rights::NONE)]);
        assert_eq!(first.len(), 1);
        assert!(gate.want(NOW, Waiter::Op(B), vec![back(holder, Rights::READ)]).is_empty(), "who gives all back gives this as well");
        assert_eq!(gate.take_due(NOW), first);
        assert!(gate.take_due(NOW).is_empty());
        assert_eq!(gate.take_due(NOW + limits::RECALL_RESEND), first, "said again");
        gate.send_again(NOW, holder);
        assert_eq!(gate.take_due(NOW), first, "and at once over a new link");
        gate.check_invariants();
        assert!(gate.settle(NOW, first[0]).is_some() && gate.settle(NOW, first[0]).is_none());
        assert_eq!(ready(&mut gate), [Waiter::Op(A), Waiter::Op(B)]);
        gate.check_invariants();
    }

    #[test]
    fn a_recall_without_progress_stalls_its_session() {
        let (mut gate, holder) = (Gate::default(), SessionId(9));
        gate.want(NOW, Waiter::Query(1), vec![back(holder, Rights::NONE)]);
        let late = NOW + limits::SESSION_LEASE + limits::RECALL_RESEND;
        assert!(gate.is_stalled(late, holder) && !gate.is_stalled(late, A.0));
        gate.on_flushed(late, holder, ROOT);
        assert!(gate.is_stalled(late, holder), "bytes of another file are no progress");
        gate.on_flushed(late, holder, FILE);
        assert!(!gate.is_stalled(late, holder));
        gate.end(late, holder);
        assert!(gate.recalled_sessions().is_empty());
        gate.check_invariants();
    }

    #[test]
    fn words_without_a_commit_keep_a_recall_alive_for_a_while_only() {
        let (mut gate, holder) = (Gate::default(), SessionId(9));
        let number = gate.want(NOW, Waiter::Query(1), vec![back(holder, Rights::NONE)])[0];
        let (lease, patience) = (limits::SESSION_LEASE, limits::FLUSH_PATIENCE);
        gate.on_flushing(NOW + lease, A.0, number);
        assert!(gate.is_stalled(NOW + lease + lease, holder), "said by another session");
        let say = |gate: &mut Gate, from: Time, until: Time| {
            let mut at = from;
            while at < until {
                gate.on_flushing(at, holder, number);
                assert!(!gate.is_stalled(at, holder));
                at = at + lease;
            }
            at
        };
        let at = say(&mut gate, NOW, NOW + patience);
        gate.on_flushed(at, holder, FILE);
        let end = at + patience;
        say(&mut gate, at, end);
        gate.on_flushing(end + lease + lease, holder, number);
        assert!(gate.is_stalled(end + lease + lease, holder), "nothing was committed for so long");
        gate.on_flushed(end + lease + lease, holder, FILE);
        assert!(!gate.is_stalled(end + lease + lease, holder));
    }

    #[test]
    fn changes_wait_for_sessions_of_which_nothing_is_known() {
        let mut gate = Gate::default();
        gate.set_unknown([A.0, B.0].into_iter());
        enter(&mut gate, A, &[]);
        gate.close(A, changes(FILE));
        assert!(gate.waits_for_unknown(A));
        gate.know(B.0);
        assert_eq!(ready(&mut gate), [Waiter::Op(A)]);
        assert!(!gate.waits_for_unknown(A), "its own session is in nobody's way");
    }

    #[test]
    fn often_recalled_rights_cool_down() {
        let (mut gate, holder) = (Gate::default(), SessionId(9));
        for _ in 0..limits::COOL_RECALLS {
            assert!(!gate.is_cooling(NOW, FILE));
            let numbers = gate.want(NOW, Waiter::Query(1), vec![back(holder, Rights::NONE)]);
            gate.settle(NOW, numbers[0]);
        }
        assert!(gate.is_cooling(NOW, FILE) && !gate.is_cooling(NOW + limits::COOL_TIME, FILE));
        gate.cool(NOW + limits::COOL_TIME + limits::COOL_WINDOW + limits::COOL_WINDOW);
        assert!(gate.heats.is_empty());
    }
}
