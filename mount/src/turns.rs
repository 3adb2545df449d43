//! Whose answer may be the next to make the kernel drop suspect pages of a file, and what waits meanwhile.
//!
//! Before a cached read Linux asks for attributes, takes the answer, and then drops the pages that it shows to be old. It takes no answer that
//! was overtaken since it asked: by the answer to somebody else, by a write of this mount, or by a notice (`fuse_change_attributes`,
//! `attr_version`). A reader whose answer is thrown away goes on with the pages and the size that are there, while whoever overtook it may
//! still be about to drop them. So while pages are suspect, readers take turns:
//!
//! - Answers wait until no question is left unanswered. One of them goes, that of the youngest question: if it is taken, all others are overtaken;
//!   if it is not, nor would they be, and whoever overtook it had its turn before.
//! - The others go when the pages are gone. That is known when the reader whose turn it is does something else, since each thread has one call
//!   at a time. If it does nothing for a while, a notice drops the pages.
//! - A question that may be overtaken by anything else is answered when a notice has dropped the pages.
//! - What overtakes (writes, attributes for programs, recalls) waits for those who asked before, if they are soon through.
//!
//! A pure table. Each wait is bounded, except that for a notice, which depends on the kernel and on replies to reads and writes of pages only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::client::Invalidation;
use dfs::limits;
use dfs::time::Time;
use dfs::types::{Attributes, InodeId};

use crate::requests::Reply;

/// Attributes for a reader that goes on to use pages.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub token: u64,
    /// Who asked; 0 if the kernel does not tell.
    pub thread: u32,
    pub attributes: Attributes,
}

/// What overtakes.
#[derive(Debug)]
pub enum Late {
    Reply {
        token: u64,
        reply: Reply,
    },
    /// `known`: whether the kernel had been given the inode.
    Recall {
        id: u64,
        what: Invalidation,
        known: bool,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Turned {
    /// Answer, so that the kernel drops the pages if it takes it.
    Answer(Answer),
    /// Drop the pages by a notice; [`Turns::on_dropped`] when it has returned.
    Drop(InodeId),
    /// It has waited long enough.
    Late(Late),
}

/// An answer that waits.
#[derive(Debug)]
struct Held {
    answer: Answer,
    overtaken: bool,
    since: Time,
}

/// The reader whose turn it is.
#[derive(Debug)]
struct Leader {
    thread: u32,
    /// The youngest question at that time.
    youngest: u64,
    until: Time,
    overtaken: bool,
}

#[derive(Debug)]
struct Waiting {
    /// It waits for nobody who asked later.
    youngest: u64,
    until: Time,
    late: Late,
}

/// One file.
#[derive(Debug, Default)]
struct File {
    /// Questions without an answer; true: overtaken.
    asked: BTreeMap<u64, bool>,
    held: BTreeMap<u64, Held>,
    leader: Option<Leader>,
    /// A notice is to drop the pages before anybody is answered who asked no later than this.
    dropping: Option<u64>,
    /// Readers that were answered and may not have gone on yet: the question, and until when they are taken into account.
    passing: BTreeMap<u32, (u64, Time)>,
    /// Those that were answered something that overtakes, which the kernel may not have taken yet. So may 0, for whom there is no proof.
    overtaking: BTreeMap<u32, Time>,
    waiting: Vec<Waiting>,
    /// What [`Turns::deadlines`] has for it.
    due: Option<Time>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Turns {
    files: BTreeMap<InodeId, File>,
    /// Where each thread was answered last.
    threads: BTreeMap<u32, InodeId>,
    deadlines: BTreeSet<(Time, InodeId)>,
    turned: VecDeque<Turned>,
    youngest: u64,
}

impl Turns {
    /// A reader asks.
    pub fn on_asked(&mut self, ino: InodeId, token: u64) {
        self.youngest = self.youngest.max(token);
        let file = self.files.entry(ino).or_default();
        let overtaken = !file.overtaking.is_empty();
        file.asked.insert(token, overtaken);
    }

    /// The question is answered by somebody else than [`Turned::Answer`], which does no harm.
    pub fn on_answered(&mut self, now: Time, ino: InodeId, token: u64) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.asked.remove(&token);
            self.advance(now, ino);
        }
    }

    /// Takes the answer to a question about suspect pages; it comes back when it may go.
    pub fn answer(&mut self, now: Time, answer: Answer) {
        let ino = answer.attributes.ino;
        let file = self.files.entry(ino).or_default();
        let overtaken = file.asked.remove(&answer.token).unwrap_or(false);
        file.held.insert(answer.token, Held { answer, overtaken, since: now });
        self.advance(now, ino);
    }

    /// Whether anybody has asked and not gone on, as far as is known.
    pub fn is_busy(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|file| file.is_busy(u64::MAX))
    }

    /// Has something that overtakes wait for those who asked before, but not longer than `until`. A recall waits only for the reader whose turn
    /// it is: the others may have to wait for whoever wants it obeyed.
    pub fn wait(&mut self, now: Time, ino: InodeId, until: Time, late: Late) {
        let youngest = if let Late::Recall { .. } = late { 0 } else { self.youngest };
        self.files.entry(ino).or_default().waiting.push(Waiting { youngest, until, late });
        self.advance(now, ino);
    }

    /// The session is over: no recall waits any more.
    pub fn forget_recalls(&mut self) {
        // What is due of them finds nothing.
        self.files.values_mut().for_each(|file| file.waiting.retain(|waiting| matches!(waiting.late, Late::Reply { .. })));
    }

    /// Something goes to the kernel by which it throws away the answers to all questions so far; if it is a reply about suspect pages, to that
    /// thread, which may take it later.
    pub fn overtake(&mut self, now: Time, ino: InodeId, thread: Option<u32>) {
        let file = match thread {
            Some(thread) => {
                let file = self.files.entry(ino).or_default();
                file.overtaking.insert(thread, now + limits::OVERTAKING_MAX);
                if thread != 0 {
                    self.threads.insert(thread, ino);
                }
                file
            }
            None => match self.files.get_mut(&ino) {
                Some(file) => file,
                None => return,
            },
        };
        file.asked.values_mut().for_each(|overtaken| *overtaken = true);
        file.held.values_mut().for_each(|held| held.overtaken = true);
        file.leader.iter_mut().for_each(|leader| leader.overtaken = true);
        self.advance(now, ino);
    }

    /// Whether a reader was told to drop the pages and may not have done so.
    pub fn has_leader(&self, ino: InodeId) -> bool {
        self.files.get(&ino).is_some_and(|file| file.leader.is_some())
    }

    /// A thread does something: it has gone on from where it was answered.
    pub fn on_thread(&mut self, now: Time, thread: u32) {
        let Some(ino) = self.threads.remove(&thread) else { return };
        let Some(file) = self.files.get_mut(&ino) else { return };
        file.passing.remove(&thread);
        file.overtaking.remove(&thread);
        if let Some(leader) = file.leader.take_if(|leader| leader.thread == thread) {
            if leader.overtaken {
                self.drop_pages(ino, leader.youngest);
            } else {
                self.release(now, ino, leader.youngest);
            }
        }
        self.advance(now, ino);
    }

    /// The notice has dropped the pages.
    pub fn on_dropped(&mut self, now: Time, ino: InodeId) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        if let Some(youngest) = file.dropping.take() {
            file.held.range_mut(..=youngest).for_each(|(_, held)| held.overtaken = false);
            self.release(now, ino, youngest);
        }
        self.advance(now, ino);
    }

    /// Some waits are over.
    pub fn on_deadline(&mut self, now: Time) {
        while let Some(&(at, ino)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            let file = self.files.get_mut(&ino).expect("what is due is there");
            file.due = None;
            let over = |until: &Time| *until <= now;
            let passed = file.passing.iter().filter(|(_, (_, until))| over(until)).map(|(&thread, _)| thread);
            let taken = file.overtaking.iter().filter(|(_, until)| over(until)).map(|(&thread, _)| thread);
            let threads: BTreeSet<u32> = passed.chain(taken).collect();
            file.passing.retain(|_, (_, until)| !over(until));
            file.overtaking.retain(|_, until| !over(until));
            threads.into_iter().for_each(|thread| self.forget(ino, thread));
            self.advance(now, ino);
        }
    }

    /// When to call [`Turns::on_deadline`].
    pub fn next_deadline(&self) -> Time {
        self.deadlines.first().map_or(Time::NEVER, |&(at, _)| at)
    }

    /// What is to be done, in order.
    pub fn poll(&mut self) -> Option<Turned> {
        self.turned.pop_front()
    }

    /// Panics if the tables contradict each other.
    pub fn check_invariants(&self) {
        for (ino, file) in &self.files {
            let bounded = file.due.is_some() || file.dropping.is_some() || !file.asked.is_empty();
            assert!(bounded, "whoever waits for {ino} goes some time");
            assert!(file.due.is_none_or(|due| self.deadlines.contains(&(due, *ino))), "what is due of {ino} is planned");
        }
        for (thread, ino) in &self.threads {
            assert!(
                self.files.get(ino).is_some_and(|file| file.knows(*thread)),
                "{thread} is remembered at {ino} only while it may be there"
            );
        }
        assert_eq!(self.deadlines.len(), self.files.values().filter(|file| file.due.is_some()).count(), "each file is planned once");
    }

    /// The thread is not waited for any longer at that file.
    fn forget(&mut self, ino: InodeId, thread: u32) {
        let file = self.files.get(&ino).expect("looked up before");
        if !file.knows(thread) && self.threads.get(&thread) == Some(&ino) {
            self.threads.remove(&thread);
        }
    }

    fn drop_pages(&mut self, ino: InodeId, youngest: u64) {
        let file = self.files.get_mut(&ino).expect("somebody waits");
        file.dropping = file.dropping.max(Some(youngest));
        self.turned.push_back(Turned::Drop(ino));
    }

    /// Answers all who asked no later than that and are not overtaken by anything but the leader.
    fn release(&mut self, now: Time, ino: InodeId, youngest: u64) {
        let file = self.files.get_mut(&ino).expect("somebody waits");
        let newest = newest(&file.held);
        let until = now + limits::READER_PATIENCE;
        let later = file.held.split_off(&(youngest + 1));
        for (token, held) in std::mem::replace(&mut file.held, later) {
            if held.overtaken {
                file.held.insert(token, held);
                continue;
            }
            if held.answer.thread != 0 {
                file.passing.insert(held.answer.thread, (token, until));
                self.threads.insert(held.answer.thread, ino);
            }
            let attributes = newest.unwrap_or(held.answer.attributes);
            self.turned.push_back(Turned::Answer(Answer { attributes, ..held.answer }));
        }
    }

    /// Does what can be done now.
    fn advance(&mut self, now: Time, ino: InodeId) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        if let Some(leader) = file.leader.take_if(|leader| leader.until <= now) {
            self.drop_pages(ino, leader.youngest);
            self.forget(ino, leader.thread);
        }
        let file = self.files.get_mut(&ino).expect("looked up just now");
        let waited = file.held.values().any(|held| held.since + limits::READER_PATIENCE <= now);
        if file.leader.is_none() && file.dropping.is_none() && !file.held.is_empty() && (file.asked.is_empty() || waited) {
            self.next_turn(now, ino);
        }
        let file = self.files.get_mut(&ino).expect("looked up just now");
        let (over, waiting) =
            std::mem::take(&mut file.waiting).into_iter().partition(|waiting| waiting.until <= now || !file.is_busy(waiting.youngest));
        let over: Vec<Waiting> = over;
        file.waiting = waiting;
        self.turned.extend(over.into_iter().map(|waiting| Turned::Late(waiting.late)));
        self.plan(ino);
    }

    fn next_turn(&mut self, now: Time, ino: InodeId) {
        let file = self.files.get_mut(&ino).expect("somebody waits");
        let newest = newest(&file.held).expect("somebody waits");
        let (&youngest, _) = file.held.last_key_value().expect("somebody waits");
        if file.held.values().any(|held| held.overtaken) {
            return self.drop_pages(ino, youngest);
        }
        let answer = Answer { attributes: newest, ..file.held.remove(&youngest).expect("looked up just now").answer };
        let thread = answer.thread;
        file.leader = Some(Leader { thread, youngest, until: now + limits::READER_PATIENCE, overtaken: false });
        if thread != 0 {
            self.threads.insert(thread, ino);
        }
        self.turned.push_back(Turned::Answer(answer));
    }

    /// Notes when the file is to be looked at again, or forgets it.
    fn plan(&mut self, ino: InodeId) {
        let file = self.files.get_mut(&ino).expect("looked up just now");
        let turns = file.leader.is_none() && file.dropping.is_none();
        let held = file.held.values().filter(|_| turns).map(|held| held.since + limits::READER_PATIENCE);
        let passing = file.passing.values().map(|&(_, until)| until).chain(file.overtaking.values().copied());
        let waiting = file.waiting.iter().map(|waiting| waiting.until);
        let due = held.chain(passing).chain(waiting).chain(file.leader.as_ref().map(|leader| leader.until)).min();
        if due != file.due {
            file.due.into_iter().for_each(|due| _ = self.deadlines.remove(&(due, ino)));
            self.deadlines.extend(due.map(|due| (due, ino)));
            file.due = due;
        }
        if file.is_idle() {
            self.files.remove(&ino);
        }
    }
}

impl File {
    /// Whether anybody who asked no later than that has not gone on, as far as is known.
    fn is_busy(&self, youngest: u64) -> bool {
        self.asked.range(..=youngest).next().is_some()
            || self.held.range(..=youngest).next().is_some()
            || self.leader.is_some()
            || self.dropping.is_some()
            || self.passing.values().any(|&(token, _)| token <= youngest)
    }

    fn knows(&self, thread: u32) -> bool {
        let leads = self.leader.as_ref().is_some_and(|leader| leader.thread == thread);
        leads || self.passing.contains_key(&thread) || self.overtaking.contains_key(&thread)
    }

    fn is_idle(&self) -> bool {
        !self.is_busy(u64::MAX) && self.overtaking.is_empty() && self.waiting.is_empty()
    }
}

/// The answers come in any order.
fn newest(held: &BTreeMap<u64, Held>) -> Option<Attributes> {
    held.values().map(|held| held.answer.attributes).max_by_key(|attributes| attributes.version)
}

#[cfg(test)]
mod tests {
    use dfs::types::{FileKind, ROOT, Timestamp};

    use super::*;

    const INO: InodeId = InodeId(9);

    /// Threads that have asked, by token; the clock stands still unless it is moved.
    struct Script {
        turns: Turns,
        now: Time,
    }

    fn told(version: u64) -> Attributes {
        let time = Timestamp::default();
        let (xattrs, parent) = (Default::default(), ROOT);
        let (uid, gid, rdev, size, blocks, links, mode) = (0, 0, 0, 0, 0, 1, 0o644);
        let (atime, mtime, ctime, data_version) = (time, time, time, version);
        let kind = FileKind::File;
        Attributes { ino: INO, kind, mode, uid, gid, links, size, blocks, atime, mtime, ctime, rdev, version, data_version, parent, xattrs }
    }

    impl Script {
        /// Readers that have asked: thread and token are the same.
        fn asked(readers: &[u64]) -> Self {
            let mut script = Script { turns: Turns::default(), now: Time(1) };
            readers.iter().for_each(|&reader| script.turns.on_asked(INO, reader));
            script
        }

        fn answer(&mut self, reader: u64, version: u64) -> &mut Self {
            self.turns.answer(self.now, Answer { token: reader, thread: reader as u32, attributes: told(version) });
            self.turns.check_invariants();
            self
        }

        fn goes_on(&mut self, reader: u32) -> &mut Self {
            self.turns.on_thread(self.now, reader);
            self.turns.check_invariants();
            self
        }

        fn wait(&mut self) -> &mut Self {
            self.now = self.turns.next_deadline();
            self.turns.on_deadline(self.now);
            self.turns.check_invariants();
            self
        }

        /// What is to be done: "9v3" answers 9 with version 3, "drop" drops the pages, "late" lets what waited go.
        fn done(&mut self) -> Vec<String> {
            let mut done = Vec::new();
            while let Some(turned) = self.turns.poll() {
                done.push(match turned {
                    Turned::Answer(answer) => format!("{}v{}", answer.token, answer.attributes.version),
                    Turned::Drop(ino) if ino == INO => "drop".into(),
                    Turned::Drop(ino) => panic!("{ino}"),
                    Turned::Late(_) => "late".into(),
                });
            }
            done
        }
    }

    fn write() -> Late {
        Late::Reply { token: 99, reply: Reply::Written(1) }
    }

    #[test]
    fn the_youngest_goes_first_with_the_newest_attributes_and_the_others_when_it_has_gone_on() {
        let mut script = Script::asked(&[1, 2, 3]);
        assert!(script.answer(1, 7).done().is_empty(), "others have asked later");
        assert!(script.answer(3, 5).done().is_empty());
        assert_eq!(script.answer(2, 6).done(), ["3v7"]);
        assert!(script.goes_on(2).done().is_empty(), "that is another one");
        assert_eq!(script.goes_on(3).done(), ["1v7", "2v7"]);
        script.goes_on(1).wait();
        assert!(script.turns.files.is_empty() && script.turns.threads.is_empty() && script.turns.next_deadline() == Time::NEVER);
    }

    #[test]
    fn who_asks_later_has_a_turn_of_its_own() {
        let mut script = Script::asked(&[1, 2]);
        assert_eq!(script.answer(1, 1).answer(2, 1).done(), ["2v1"]);
        script.turns.on_asked(INO, 3);
        assert!(script.answer(3, 2).done().is_empty());
        assert_eq!(script.goes_on(2).done(), ["1v2", "3v2"], "the other is answered, and the next turn begins");
        script.turns.on_asked(INO, 4);
        assert!(script.answer(4, 2).done().is_empty());
        assert_eq!(script.goes_on(3).done(), ["4v2"]);
    }

    #[test]
    fn a_reader_that_does_nothing_more_holds_nobody_up_for_long() {
        let mut script = Script::asked(&[1, 2]);
        assert_eq!(script.answer(1, 1).answer(2, 1).done(), ["2v1"]);
        assert_eq!(script.wait().done(), ["drop"]);
        script.turns.on_dropped(script.now, INO);
        assert_eq!(script.done(), ["1v1"]);
        // Nor does a question that is never answered.
        let mut script = Script::asked(&[1, 2]);
        script.answer(1, 1);
        assert_eq!(script.wait().done(), ["1v1"]);
        // And a question that came to nothing is not waited for.
        let mut script = Script::asked(&[1, 2]);
        script.answer(1, 1);
        script.turns.on_answered(script.now, INO, 2);
        assert_eq!(script.done(), ["1v1"]);
    }

    #[test]
    fn who_was_overtaken_is_answered_when_a_notice_has_dropped_the_pages() {
        let mut script = Script::asked(&[1]);
        script.turns.overtake(script.now, INO, None);
        assert_eq!(script.answer(1, 1).done(), ["drop"]);
        script.turns.on_dropped(script.now, INO);
        assert_eq!(script.done(), ["1v1"]);
        // Asked before a program's answer has arrived.
        let mut script = Script::asked(&[]);
        script.turns.overtake(script.now, INO, Some(8));
        script.turns.on_asked(INO, 2);
        assert_eq!(script.answer(2, 1).done(), ["drop"]);
        // And after that.
        let mut script = Script::asked(&[]);
        script.turns.overtake(script.now, INO, Some(8));
        script.goes_on(8).turns.on_asked(INO, 2);
        assert_eq!(script.answer(2, 1).done(), ["2v1"]);
    }

    #[test]
    fn a_leader_that_was_overtaken_has_dropped_nothing_for_the_others() {
        let mut script = Script::asked(&[1, 2]);
        assert_eq!(script.answer(1, 1).answer(2, 1).done(), ["2v1"]);
        script.turns.overtake(script.now, INO, None);
        assert_eq!(script.goes_on(2).done(), ["drop"]);
        script.turns.on_dropped(script.now, INO);
        assert_eq!(script.done(), ["1v1"]);
    }

    #[test]
    fn what_overtakes_waits_for_those_who_asked_before_but_not_for_ever() {
        let mut script = Script::asked(&[1, 2]);
        let until = script.now + limits::OVERTAKING_MAX;
        script.turns.wait(script.now, INO, until, write());
        script.turns.on_asked(INO, 3);
        assert_eq!(script.answer(3, 1).answer(1, 1).answer(2, 1).done(), ["3v1"]);
        assert_eq!(script.goes_on(3).done(), ["1v1", "2v1"]);
        assert!(script.goes_on(1).done().is_empty());
        assert_eq!(script.goes_on(2).done(), ["late"]);
        let mut script = Script::asked(&[1]);
        script.turns.wait(script.now, INO, until, write());
        assert_eq!(script.wait().done(), ["late"]);
        assert_eq!(script.now, until);
        // A recall waits only for the reader whose turn it is.
        let mut script = Script::asked(&[1, 2]);
        script.answer(2, 1).wait();
        assert_eq!(script.done(), ["2v1"]);
        let recall = || Late::Recall { id: 1, what: Invalidation::Inode { ino: INO }, known: true };
        script.turns.wait(script.now, INO, script.now + limits::READER_PATIENCE, recall());
        assert_eq!(script.goes_on(2).done(), ["late"]);
        // When its session is over it comes to nothing.
        let mut script = Script::asked(&[2]);
        script.answer(2, 1).done();
        script.turns.wait(script.now, INO, script.now + limits::READER_PATIENCE, recall());
        script.turns.forget_recalls();
        assert!(script.goes_on(2).done().is_empty() && script.turns.files.is_empty());
    }
}
