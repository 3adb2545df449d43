//! Losing rights: recalls by the leader, rights given up for want of room, rights that became void.
//!
//! A right is marked gone at once. Then the caches above forget, the leader is told what is open here, what was written behind is committed;
//! when all of that is done, the leader hears that the recall has been obeyed. A recall is level-triggered: one that is under way already is
//! not begun twice, one that was answered before is obeyed and answered again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{InodeId, Rights, Term};
use crate::wire::message::{Recall, Request, Response};
use crate::wire::namespace::Query;

use super::asks::{Owner, Target};
use super::core::{Core, Phase};
use super::holds::Said;
use super::{Invalidation, Output, Sabotage};

/// Rights on their way back to the leader.
#[derive(Debug)]
enum Errand {
    /// A recall of that number in that term.
    Recall(Term, u64),
    GiveUp(Vec<(InodeId, Rights)>),
}

/// What has to happen before the leader is told.
#[derive(Debug)]
struct Waiting {
    errand: Errand,
    invalidations: BTreeSet<u64>,
    /// Inodes of which the leader is being told that they are open.
    holds: BTreeSet<InodeId>,
    /// Inodes whose `WRITE` goes back, once the caches above have handed over what they had.
    writers: BTreeSet<InodeId>,
    surrendering: bool,
}

/// The books of what is being lost.
#[derive(Debug, Default)]
pub(super) struct Recalls {
    waiting: BTreeMap<u64, Waiting>,
    /// Recalls under way, until the leader has taken the answer.
    known: BTreeMap<(Term, u64), u64>,
    /// Recalls that were answered lately. If one is said again, the log may say that the session writes alone what nobody here knows of.
    answered: BTreeSet<(Term, u64)>,
    /// Who waits for an output to be obeyed; nobody, for what became void.
    invalidations: BTreeMap<u64, Option<u64>>,
    /// Inodes that are being given up: what is granted on them meanwhile may be taken away with the rest.
    giving_up: BTreeMap<InodeId, u32>,
    /// Closed inodes to be given back to the leader, and how many are on their way.
    releases: VecDeque<(InodeId, u64)>,
    releasing: usize,
}

impl Recalls {
    /// Whether a grant on the inode may be believed.
    pub(super) fn may_grant(&self, ino: InodeId) -> bool {
        !self.giving_up.contains_key(&ino)
    }

    fn note_answered(&mut self, recall: (Term, u64)) {
        self.answered.insert(recall);
        if self.answered.len() > limits::CLIENT_RECALLS_MAX {
            // The oldest: it was not said again. If it is after all, it is answered once more in vain.
            self.answered.pop_first();
        }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.known.len() <= limits::CLIENT_RECALLS_MAX && self.releasing <= limits::CLIENT_RELEASES_MAX);
        assert!(self.answered.len() <= limits::CLIENT_RECALLS_MAX);
        for (id, waiting) in &self.waiting {
            assert!(waiting.invalidations.iter().all(|invalidation| self.invalidations.get(invalidation) == Some(&Some(*id))));
        }
    }
}

impl Core {
    /// The leader of that term wants rights back.
    pub(super) fn on_recall(&mut self, now: Time, term: Term, number: u64, items: Vec<Recall>) {
        let room = self.recalls.known.len() < limits::CLIENT_RECALLS_MAX;
        if term < self.session.term || self.phase != Phase::Ready || self.recalls.known.contains_key(&(term, number)) || !room {
            return;
        }
        self.session.term = term;
        let id = self.add_errand(Errand::Recall(term, number));
        self.recalls.known.insert((term, number), id);
        let insisted = self.recalls.answered.remove(&(term, number));
        for item in items {
            match item {
                Recall::Inode { ino, keep } => self.lose_inode(now, id, ino, keep, insisted),
                Recall::Name { directory, name } => {
                    self.names.forget(directory, &name);
                    self.names.forget_lines(directory);
                    self.rights.unsettle(directory);
                    self.lose(now, Some(id), directory, Rights::NAMES.with(Rights::WRITE));
                    self.invalidate(Some(id), Invalidation::Name { directory, name });
                }
            }
        }
        self.go_on(now, id);
        self.reclaim(now);
    }

    /// `insisted`: the leader was told that this was done, and says it again.
    fn lose_inode(&mut self, now: Time, errand: u64, ino: InodeId, keep: Rights, insisted: bool) {
        let writer = !keep.contains(Rights::WRITE) && (self.may_have_write(ino) || insisted);
        let lost = self.lose(now, Some(errand), ino, keep.with(Rights::WRITE));
        // A look at what only others change leaves all that may be kept as it is.
        if writer || !keep.contains(Rights::READ) {
            self.invalidate(Some(errand), Invalidation::Inode { ino });
        }
        // What is being given up was taken from the caches above a moment ago, and may not be gone from them yet.
        let names = lost.intersects(Rights::NAMES) || !self.recalls.may_grant(ino);
        if names && !keep.contains(Rights::NAMES) {
            self.names.forget_directory(ino);
            self.invalidate(Some(errand), Invalidation::Names { directory: ino });
        }
        if writer && let Some(waiting) = self.recalls.waiting.get_mut(&errand) {
            waiting.writers.insert(ino);
            self.postpone_wish(now, ino);
        }
    }

    /// Marks all but `keep` gone. If that leaves what is open here without protection, the leader is told; the errand waits for it.
    fn lose(&mut self, now: Time, errand: Option<u64>, ino: InodeId, keep: Rights) -> Rights {
        let lost = self.rights.revoke(ino, keep);
        // Whoever takes the last name recalls all rights, names of a directory included.
        if !self.rights.held(ino).is_empty() {
            return lost;
        }
        if let Some(sequence) = self.holds.unsaid(ino) {
            if let Some(waiting) = errand.and_then(|errand| self.recalls.waiting.get_mut(&errand)) {
                waiting.holds.insert(ino);
            }
            self.say_hold(now, ino, sequence);
        } else if let Some(sequence) = self.holds.take_closed(ino) {
            self.release_later(now, ino, sequence);
        }
        lost
    }

    /// Tells the leader that the inode is open here.
    pub(super) fn say_hold(&mut self, now: Time, ino: InodeId, sequence: u64) {
        self.holds.say(ino, Said::Perhaps);
        let query = Request::Query(Query::Hold { ino, sequence });
        self.ask(now, query, Target::Leader, Owner::Said(ino, self.session.term), self.config.op_timeout);
    }

    pub(super) fn on_said(&mut self, now: Time, ino: InodeId, begun: Term, result: Result<Response, Status>) {
        if let Ok(Response::Answered { .. }) = &result {
            self.holds.say(ino, Said::Yes);
            if self.reclaiming || begun != self.session.term {
                self.reclaim_again(now);
            }
        }
        // An inode that is gone needs no hold. Without an answer there is no leader, and the next one is told everything.
        let waiting = self.recalls.waiting.iter_mut().filter_map(|(id, waiting)| waiting.holds.remove(&ino).then_some(*id));
        for id in waiting.collect::<Vec<_>>() {
            self.go_on(now, id);
        }
        match result {
            Ok(_) => {}
            Err(Status::Stale | Status::NotFound) => self.holds.say(ino, Said::Yes),
            Err(status) => return self.refuse_held_ops(now, ino, status),
        }
        self.resume_held_ops(now, ino);
    }

    /// Gives a closed inode back to the leader, a few at a time.
    pub(super) fn release_later(&mut self, now: Time, ino: InodeId, sequence: u64) {
        if self.reclaiming {
            self.session.released.insert(ino, sequence);
        }
        self.recalls.releases.push_back((ino, sequence));
        self.release_more(now);
    }

    fn release_more(&mut self, now: Time) {
        while self.recalls.releasing < limits::CLIENT_RELEASES_MAX {
            let Some((ino, sequence)) = self.recalls.releases.pop_front() else { return };
            self.recalls.releasing += 1;
            let query = Request::Query(Query::Release { ino, sequence });
            self.ask(now, query, Target::Leader, Owner::Released(ino, sequence), self.config.op_timeout);
        }
    }

    pub(super) fn on_released(&mut self, now: Time, ino: InodeId, sequence: u64, result: Result<Response, Status>) {
        self.recalls.releasing -= 1;
        if matches!(result, Err(Status::TimedOut | Status::Unavailable)) {
            // One that is lost would keep a deleted file's space until the session ends.
            self.recalls.releases.push_back((ino, sequence));
        }
        self.release_more(now);
    }

    fn invalidate(&mut self, errand: Option<u64>, what: Invalidation) {
        let id = self.fresh_id();
        self.recalls.invalidations.insert(id, errand);
        if let Some(waiting) = errand.and_then(|errand| self.recalls.waiting.get_mut(&errand)) {
            waiting.invalidations.insert(id);
        }
        self.output(Output::Invalidate { id, what });
    }

    /// Recalls of this term that wait only for bytes to be committed: their leader has to know, or it would take this session for one that does
    /// not obey. Nobody is told while the caches above have not handed over what they have: they may be stuck.
    pub(super) fn flushing_recalls(&self) -> Vec<u64> {
        let flushes = |id: &u64| {
            let waiting = self.recalls.waiting.get(id)?;
            Some(waiting.surrendering && waiting.writers.iter().any(|ino| self.behind.is_dirty(*ino)))
        };
        let of_term = self.recalls.known.range((self.session.term, 0)..=(self.session.term, u64::MAX));
        of_term.filter(|(_, id)| flushes(id) == Some(true)).map(|((_, number), _)| *number).collect()
    }

    pub(super) fn on_obeyed(&mut self, now: Time, invalidation: u64) {
        let Some(Some(id)) = self.recalls.invalidations.remove(&invalidation) else { return };
        if let Some(waiting) = self.recalls.waiting.get_mut(&id) {
            waiting.invalidations.remove(&invalidation);
            self.go_on(now, id);
        }
    }

    fn add_errand(&mut self, errand: Errand) -> u64 {
        let id = self.fresh_id();
        let (invalidations, holds, writers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        self.recalls.waiting.insert(id, Waiting { errand, invalidations, holds, writers, surrendering: false });
        id
    }

    /// Tells the leader once nothing is left to wait for.
    fn go_on(&mut self, now: Time, id: u64) {
        let early = self.is_sabotaged(Sabotage::RecallObeyedEarly);
        let Some(waiting) = self.recalls.waiting.get_mut(&id) else { return };
        if !waiting.invalidations.is_empty() && !early {
            return;
        }
        // Pages that were written through a mapping came back as writes by now.
        if !std::mem::replace(&mut waiting.surrendering, true) {
            for ino in waiting.writers.clone() {
                self.surrender(now, ino);
            }
        }
        let Some(waiting) = self.recalls.waiting.get(&id) else { return };
        if !waiting.holds.is_empty() || !waiting.writers.is_empty() {
            return;
        }
        let request = match &waiting.errand {
            Errand::Recall(term, number) => Request::Recalled { term: *term, number: *number },
            Errand::GiveUp(rights) => Request::GiveUp { rights: rights.clone() },
        };
        self.ask(now, request, Target::Leader, Owner::Errand(id), self.config.op_timeout);
    }

    /// The leader took it, or there is none: then nobody waits for it any more, or will say so again.
    pub(super) fn on_errand_done(&mut self, id: u64) {
        let Some(waiting) = self.recalls.waiting.remove(&id) else { return };
        match waiting.errand {
            Errand::Recall(term, number) => {
                self.recalls.known.remove(&(term, number));
                self.recalls.note_answered((term, number));
            }
            Errand::GiveUp(rights) => {
                for (ino, _) in rights {
                    let count = self.recalls.giving_up.get_mut(&ino).expect("counted when it began");
                    *count -= 1;
                    if *count == 0 {
                        self.recalls.giving_up.remove(&ino);
                    }
                }
            }
        }
    }

    // --- `WRITE`

    /// Whether the log may say that this session has `WRITE` on the inode, as far as is known here. An operation that was given up may have
    /// brought it unknown: then the leader, which does know, says the recall again. To give back at every recall what is most probably not
    /// there would be a log entry each.
    fn may_have_write(&self, ino: InodeId) -> bool {
        self.rights.held(ino).contains(Rights::WRITE) || self.is_acquiring(ino) || self.is_yielding(ino)
    }

    /// The log says that the session has `WRITE` no more; or there is no answer, and the recall will be said again.
    pub(super) fn on_surrendered(&mut self, now: Time, ino: InodeId, given_back: bool) {
        if given_back {
            self.lose_write(now, ino);
        }
        let done = self.recalls.waiting.iter_mut().filter(|(_, waiting)| waiting.surrendering);
        let done: Vec<u64> = done.filter_map(|(id, waiting)| waiting.writers.remove(&ino).then_some(*id)).collect();
        for id in done {
            if given_back { self.go_on(now, id) } else { self.on_errand_done(id) }
        }
    }

    /// `WRITE` is gone.
    pub(super) fn lose_write(&mut self, now: Time, ino: InodeId) {
        self.lose(now, None, ino, Rights::READ.with(Rights::NAMES));
    }

    // --- too many rights, and void ones

    /// Gives the least recently used rights back if there are more than may be kept. Returns whether there were.
    pub(super) fn give_up_surplus(&mut self, now: Time) -> bool {
        let surplus = self.rights.surplus(limits::CLIENT_GIVE_UP_MAX);
        if surplus.is_empty() {
            return false;
        }
        let id = self.add_errand(Errand::GiveUp(surplus.clone()));
        for (ino, rights) in surplus {
            *self.recalls.giving_up.entry(ino).or_default() += 1;
            self.drop_rights(now, Some(id), ino, rights);
        }
        self.go_on(now, id);
        true
    }

    /// The leader let all of the session's volatile rights go: it had not heard of it for too long. What is open here has to be told anew.
    pub(super) fn void_rights(&mut self, now: Time) {
        self.names.clear();
        let void = self.rights.void();
        tracing::info!(inodes = void.len(), "rights are void");
        self.reclaim_again(now);
        for (ino, rights) in void {
            self.drop_rights(now, None, ino, rights);
        }
    }

    fn drop_rights(&mut self, now: Time, errand: Option<u64>, ino: InodeId, rights: Rights) {
        self.lose(now, errand, ino, Rights::WRITE);
        if rights.contains(Rights::READ) {
            self.invalidate(errand, Invalidation::Inode { ino });
        }
        if rights.contains(Rights::NAMES) {
            self.names.forget_directory(ino);
            self.invalidate(errand, Invalidation::Names { directory: ino });
        }
    }
}
