//! Makes the kernel forget: notices on their way to it, who waits for each, and what is done instead when one does not return.
//!
//! A pure table of notices and jobs. A job is one invalidation of the core, done when all its notices have returned. Notices that take locks
//! of the kernel may take for ever, since whoever holds such a lock may wait for this very mount; so after a short while a job turns to
//! notices that take none, and the rest is caught where it would show: suspect pages before attributes are told. Never waits in a circle:
//! a job depends on the kernel only, and after [`limits::RECALL_PATIENCE`] on no lock of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs::limits;
use dfs::time::Time;
use dfs::types::InodeId;

use crate::fs::KernelNotice;
use crate::pages::Doubt;

/// An invalidation of the core that waits for a notice; one that has turned to other notices waits for earlier ones no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    id: u64,
    turned: bool,
}

/// One notice that is with the kernel.
#[derive(Debug)]
struct Outstanding {
    /// What was in doubt when it was sent; what came later it has not settled.
    doubt: Doubt,
    waiters: Vec<Waiter>,
    /// Wanted again since it was sent: by these, or by nobody who waits.
    again: Option<Vec<Waiter>>,
}

/// An invalidation of the core.
#[derive(Debug)]
struct Job {
    /// Notices that have not returned.
    remaining: usize,
    turned: bool,
    /// Turn to notices that take no lock, or stop waiting, by then.
    deadline: Time,
    inodes: Vec<InodeId>,
    /// Names that were given with a lifetime are among what is to be forgotten; they all have ended by then.
    names_until: Option<Time>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Recalled {
    /// Hand to the kernel.
    Notify { id: u64, notice: KernelNotice },
    /// That invalidation has been obeyed.
    Obeyed { id: u64 },
    /// All pages of the inode that were in doubt by then are gone.
    Settled { ino: InodeId, doubt: Doubt },
}

/// The table.
#[derive(Debug)]
pub struct Recalls {
    /// Whether the kernel knows [`KernelNotice::Epoch`].
    epoch: bool,
    notices: BTreeMap<KernelNotice, Outstanding>,
    by_id: BTreeMap<u64, KernelNotice>,
    jobs: BTreeMap<u64, Job>,
    deadlines: BTreeSet<(Time, u64)>,
    /// Notices to be sent again.
    retries: BTreeSet<(Time, u64)>,
    next_id: u64,
    outputs: VecDeque<Recalled>,
}

impl Recalls {
    /// Nothing under way.
    pub fn new(epoch: bool) -> Self {
        Recalls {
            epoch,
            notices: BTreeMap::new(),
            by_id: BTreeMap::new(),
            jobs: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            retries: BTreeSet::new(),
            next_id: 1,
            outputs: VecDeque::new(),
        }
    }

    /// What the kernel turned out to be able to.
    pub fn set_epoch(&mut self, epoch: bool) {
        self.epoch = epoch;
    }

    /// Begins an invalidation: attributes and content of `inodes`, and names; `name` if it is about one only. True: the pages of the inodes
    /// are still there when it has been obeyed.
    pub fn begin(&mut self, now: Time, id: u64, doubt: Doubt, inodes: Vec<InodeId>, name: Option<KernelNotice>, names: Names) -> bool {
        let crowded = self.by_id.len() >= limits::MOUNT_NOTICES_MAX;
        let names_until = names.until.filter(|&until| now < until);
        let mut wanted: Vec<KernelNotice> = inodes.iter().map(|&ino| KernelNotice::Inode { ino }).collect();
        let entry = name.filter(|_| names_until.is_some());
        let turn_at_once = crowded || names.busy || (names_until.is_some() && (entry.is_none() || names.locked));
        wanted.extend(entry.filter(|_| !turn_at_once));
        let deadline = now + limits::RECALL_PATIENCE;
        self.jobs.insert(id, Job { remaining: wanted.len(), turned: false, deadline, inodes, names_until });
        self.deadlines.insert((deadline, id));
        let paged = !crowded && !names.busy;
        if paged {
            wanted.into_iter().for_each(|notice| self.want(notice, doubt, vec![Waiter { id, turned: false }]));
        }
        if turn_at_once {
            self.turn(now, id, doubt);
        } else {
            self.finish_if_done(id);
        }
        !paged
    }

    /// Has the kernel drop attributes and pages of the inode; nobody waits for it.
    pub fn drop_pages(&mut self, ino: InodeId, doubt: Doubt) {
        self.want(KernelNotice::Inode { ino }, doubt, Vec::new());
    }

    /// Whether a notice to drop that inode's pages is under way.
    pub fn is_dropping(&self, ino: InodeId) -> bool {
        self.notices.contains_key(&KernelNotice::Inode { ino })
    }

    /// The kernel does not have the inode of a notice. If it was given it, the reply or the FORGET is still on its way.
    pub fn on_missed(&mut self, now: Time, id: u64) {
        self.retries.insert((now + limits::NOTICE_RETRY, id));
    }

    /// Sends those again that the kernel missed. `known`: whether it was given the inode and has not forgotten it.
    pub fn retry(&mut self, now: Time, doubt: Doubt, known: impl Fn(InodeId) -> bool) {
        while let Some(&(at, id)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            match self.by_id.get(&id) {
                Some(KernelNotice::Inode { ino } | KernelNotice::Attributes { ino }) if known(*ino) => {
                    let notice = self.by_id[&id].clone();
                    self.outputs.push_back(Recalled::Notify { id, notice });
                }
                _ => self.on_notified(id, doubt),
            }
        }
    }

    /// A notice has returned. `doubt`: the newest by now.
    pub fn on_notified(&mut self, id: u64, doubt: Doubt) {
        let Some(notice) = self.by_id.remove(&id) else { return };
        let outstanding = self.notices.remove(&notice).expect("a notice is known by its number and by what it says");
        if let KernelNotice::Inode { ino } = notice {
            self.outputs.push_back(Recalled::Settled { ino, doubt: outstanding.doubt });
        }
        for Waiter { id, turned } in outstanding.waiters {
            if let Some(job) = self.jobs.get_mut(&id)
                && job.turned == turned
            {
                job.remaining -= 1;
                self.finish_if_done(id);
            }
        }
        if let Some(waiters) = outstanding.again {
            self.send(notice, doubt, waiters);
        }
    }

    /// Some jobs have waited long enough.
    pub fn on_deadline(&mut self, now: Time, doubt: Doubt) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.turned {
                // All names have ended by themselves.
                job.names_until = None;
                self.finish_if_done(id);
            } else {
                self.turn(now, id, doubt);
            }
        }
    }

    /// When to call [`Recalls::on_deadline`].
    pub fn next_deadline(&self) -> Time {
        let [deadline, retry] = [&self.deadlines, &self.retries].map(|times| times.first().map_or(Time::NEVER, |&(at, _)| at));
        deadline.min(retry)
    }

    /// The core that asked is gone: nobody is to be told.
    pub fn forget_jobs(&mut self) {
        self.jobs.clear();
        self.deadlines.clear();
    }

    /// What came of it all, in order.
    pub fn poll(&mut self) -> Option<Recalled> {
        self.outputs.pop_front()
    }

    /// Notices with the kernel.
    pub fn outstanding(&self) -> usize {
        self.by_id.len()
    }

    /// Panics if the tables contradict each other.
    pub fn check_invariants(&self) {
        assert_eq!(self.notices.len(), self.by_id.len(), "each notice has one number");
        for (id, job) in &self.jobs {
            let waits = !job.turned || job.names_until.is_some();
            assert_eq!(self.deadlines.contains(&(job.deadline, *id)), waits, "each job ends some time");
        }
    }

    /// Turns a job to what takes no lock.
    fn turn(&mut self, now: Time, id: u64, doubt: Doubt) {
        let job = self.jobs.get_mut(&id).expect("only a job that waits turns");
        self.deadlines.remove(&(job.deadline, id));
        job.turned = true;
        let inodes = job.inodes.clone();
        let names_until = job.names_until.filter(|&until| now < until);
        let by_epoch = names_until.is_some() && self.epoch;
        job.remaining = inodes.len() + usize::from(by_epoch);
        job.names_until = names_until.filter(|_| !by_epoch);
        // Without names to wait out, it only waits for notices that never block.
        job.deadline = job.names_until.unwrap_or(Time::NEVER);
        if job.names_until.is_some() {
            self.deadlines.insert((job.deadline, id));
        }
        for ino in inodes {
            self.want(KernelNotice::Attributes { ino }, doubt, vec![Waiter { id, turned: true }]);
        }
        if by_epoch {
            self.want(KernelNotice::Epoch, doubt, vec![Waiter { id, turned: true }]);
        }
        self.finish_if_done(id);
    }

    fn finish_if_done(&mut self, id: u64) {
        let done = self.jobs.get(&id).is_some_and(|job| job.remaining == 0 && (!job.turned || job.names_until.is_none()));
        if done {
            let job = self.jobs.remove(&id).expect("looked up just now");
            self.deadlines.remove(&(job.deadline, id));
            self.outputs.push_back(Recalled::Obeyed { id });
        }
    }

    /// Sends the notice, or has it sent again once the same one has returned that is under way: that one may have passed already what is
    /// to be forgotten now.
    fn want(&mut self, notice: KernelNotice, doubt: Doubt, waiters: Vec<Waiter>) {
        match self.notices.get_mut(&notice) {
            Some(outstanding) => outstanding.again.get_or_insert_default().extend(waiters),
            None => self.send(notice, doubt, waiters),
        }
    }

    fn send(&mut self, notice: KernelNotice, doubt: Doubt, waiters: Vec<Waiter>) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_id.insert(id, notice.clone());
        self.notices.insert(notice.clone(), Outstanding { doubt, waiters, again: None });
        self.outputs.push_back(Recalled::Notify { id, notice });
    }
}

/// Names that an invalidation is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names {
    /// When the last of them that was given with a lifetime ends.
    pub until: Option<Time>,
    /// The kernel holds the directory's lock for a call that is under way here.
    pub locked: bool,
    /// The kernel holds locks of pages for calls that are under way here.
    pub busy: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pages::Pages;

    const INO: InodeId = InodeId(5);
    const LATER: Duration = Duration::from_millis(500);

    fn doubt() -> Doubt {
        Pages::default().newest_doubt()
    }

    fn entry() -> KernelNotice {
        KernelNotice::Entry { parent: INO, name: b"a".to_vec() }
    }

    fn sent(recalls: &mut Recalls) -> Vec<(u64, KernelNotice)> {
        let mut notices = Vec::new();
        recalls.outputs.retain(|output| match output {
            Recalled::Notify { id, notice } => {
                notices.push((*id, notice.clone()));
                false
            }
            _ => true,
        });
        recalls.check_invariants();
        notices
    }

    fn obeyed(recalls: &mut Recalls) -> Vec<u64> {
        let mut ids = Vec::new();
        recalls.outputs.retain(|output| match output {
            Recalled::Obeyed { id } => {
                ids.push(*id);
                false
            }
            _ => true,
        });
        ids
    }

    fn named(now: Time) -> Names {
        Names { until: Some(now + LATER), ..Names::default() }
    }

    #[test]
    fn an_invalidation_is_obeyed_when_all_its_notices_have_returned() {
        let mut recalls = Recalls::new(true);
        recalls.begin(Time(1), 7, doubt(), vec![INO], Some(entry()), named(Time(1)));
        let notices = sent(&mut recalls);
        assert_eq!(notices.iter().map(|(_, notice)| notice.clone()).collect::<Vec<_>>(), [KernelNotice::Inode { ino: INO }, entry()]);
        recalls.on_notified(notices[0].0, doubt());
        assert!(obeyed(&mut recalls).is_empty());
        recalls.on_notified(notices[1].0, doubt());
        assert_eq!(obeyed(&mut recalls), [7]);
        assert_eq!(recalls.next_deadline(), Time::NEVER);
    }

    #[test]
    fn a_notice_that_does_not_return_is_replaced_by_those_that_take_no_lock() {
        let mut recalls = Recalls::new(true);
        recalls.begin(Time(1), 7, doubt(), vec![INO], Some(entry()), named(Time(1)));
        let blocked = sent(&mut recalls);
        recalls.on_deadline(recalls.next_deadline(), doubt());
        let notices = sent(&mut recalls);
        let expected = [KernelNotice::Attributes { ino: INO }, KernelNotice::Epoch];
        assert_eq!(notices.iter().map(|(_, notice)| notice.clone()).collect::<Vec<_>>(), expected);
        recalls.on_notified(notices[0].0, doubt());
        // A late return of the first ones does not count for the others.
        recalls.on_notified(blocked[0].0, doubt());
        assert!(obeyed(&mut recalls).is_empty());
        recalls.on_notified(notices[1].0, doubt());
        assert_eq!(obeyed(&mut recalls), [7]);
        recalls.on_notified(blocked[1].0, doubt());
        assert_eq!((obeyed(&mut recalls).len(), recalls.outstanding()), (0, 0));
    }

    #[test]
    fn without_epochs_names_are_waited_out_and_expired_names_need_nothing() {
        let mut recalls = Recalls::new(false);
        let names = Names { locked: true, ..named(Time(1)) };
        recalls.begin(Time(1), 7, doubt(), vec![], Some(entry()), names);
        assert!(sent(&mut recalls).is_empty() && obeyed(&mut recalls).is_empty());
        assert_eq!(recalls.next_deadline(), Time(1) + LATER);
        recalls.on_deadline(Time(1) + LATER, doubt());
        assert_eq!(obeyed(&mut recalls), [7]);
        recalls.begin(Time(1) + LATER, 8, doubt(), vec![], Some(entry()), named(Time(1)));
        assert_eq!(obeyed(&mut recalls), [8]);
    }

    #[test]
    fn what_is_wanted_again_while_it_is_under_way_is_sent_again() {
        let mut recalls = Recalls::new(true);
        recalls.drop_pages(INO, doubt());
        recalls.begin(Time(1), 7, doubt(), vec![INO], None, Names::default());
        let first = sent(&mut recalls);
        assert_eq!(first.len(), 1);
        recalls.on_notified(first[0].0, doubt());
        assert!(obeyed(&mut recalls).is_empty(), "that one may have passed already what is to be forgotten now");
        let second = sent(&mut recalls);
        recalls.on_notified(second[0].0, doubt());
        assert_eq!((obeyed(&mut recalls), recalls.outstanding()), (vec![7], 0));
    }

    #[test]
    fn a_notice_about_an_inode_that_is_still_on_its_way_is_sent_again() {
        let mut recalls = Recalls::new(true);
        recalls.begin(Time(1), 7, doubt(), vec![INO], None, Names::default());
        let first = sent(&mut recalls);
        recalls.on_missed(Time(1), first[0].0);
        assert!(obeyed(&mut recalls).is_empty());
        let at = recalls.next_deadline();
        recalls.retry(at, doubt(), |_| true);
        assert_eq!(sent(&mut recalls), first);
        recalls.on_missed(at, first[0].0);
        recalls.retry(recalls.next_deadline(), doubt(), |_| false);
        assert_eq!((obeyed(&mut recalls), recalls.outstanding()), (vec![7], 0), "the kernel has dropped it");
    }
}
