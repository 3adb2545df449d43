//! Answering from what is known, and learning from what is answered.
//!
//! Only an answer that grants a right fills what is kept under it: while the leader has somebody's change under way it answers without grants,
//! and such an answer may be older than the change. Answers and recalls come in order on one link, and those of an earlier term teach nothing.

use bytes::Bytes;

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::{Attributes, InodeId, Name, RequestNumber, Rights};
use crate::wire::message::{Grant, Response};
use crate::wire::namespace::{Answer, DirectoryEntry, NewKind, Op, Query, RenameMode, Replied};
use crate::xattr::XattrFlags;

use super::Reply;
use super::asks::Owner;
use super::changes::Touched;
use super::core::{Core, Phase};
use super::holds::Said;
use super::names::{Entry, Line};

/// What a rename made of its names.
#[derive(Clone, Copy, Debug)]
struct Moved {
    from: Entry,
    to: Entry,
}

/// How much of an operation's answer may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// The first answer to the only attempt, from the leader of the newest term: what it tells is true until the next recall.
    Fresh,
    /// It may tell of a state that others have changed since.
    Old,
}

/// An operation that has ended.
pub(super) struct Change {
    pub(super) op: Op,
    pub(super) touched: Touched,
    /// Its number, and the number below which it told the cluster to refuse all.
    pub(super) number: Option<(RequestNumber, RequestNumber)>,
    /// Whether it may have happened, or may happen later, although there is no answer.
    pub(super) uncertain: bool,
    pub(super) freshness: Freshness,
}

impl Core {
    // --- answering

    /// The answer, if it is known and may be used.
    pub(super) fn answer_known(&mut self, now: Time, query: &Query) -> Option<Result<Reply, Status>> {
        if !self.config.caches || self.phase != Phase::Ready || self.changes.is_crowded() {
            return None;
        }
        let answer = match query {
            Query::TestLock { .. } => return self.test_lock_here(now, query),
            Query::Lookup { parent, name } => match self.known_entry(now, *parent, name) {
                Entry::There(ino) => Answer::Attributes(self.known_attributes(now, ino)?),
                Entry::Absent => return Some(Err(Status::NotFound)),
                Entry::Unknown => return None,
            },
            Query::Attributes { ino } => Answer::Attributes(self.known_attributes(now, *ino)?),
            Query::ReadLink { ino } if !self.changes.touch_inode(*ino) => Answer::Target(self.rights.target(now, *ino)?),
            Query::ReadDirectory { ino, after, limit } => {
                let attributes = self.known_attributes(now, *ino)?;
                if !self.rights.may(now, *ino, Rights::NAMES) {
                    return None;
                }
                let limit = (*limit as usize).min(limits::READDIR_ENTRIES_MAX);
                let (lines, end) = self.names.lines(*ino, *after, limit)?;
                // One question about all of them is better than one about each whose attributes are not known.
                let entries = lines.into_iter().map(|line| self.known_line(now, line)).collect::<Option<Vec<_>>>()?;
                Answer::Directory { entries, end, attributes }
            }
            // What an inode lacks is told with its attributes; the kernel asks for some of it again and again.
            Query::Xattr { ino, name } => {
                let present = self.known_attributes(now, *ino)?.xattrs;
                return if present.has(XattrFlags::of_name(name.as_bytes())) { None } else { Some(Err(Status::NoData)) };
            }
            Query::Xattrs { ino } if !self.known_attributes(now, *ino)?.xattrs.has(XattrFlags::ANY) => Answer::Xattrs(Bytes::new()),
            _ => return None,
        };
        Some(Ok(Reply::Answer(answer)))
    }

    /// What the name stands for, if that may be used now.
    pub(super) fn known_entry(&mut self, now: Time, directory: InodeId, name: &Name) -> Entry {
        if self.changes.touch_name(directory, name) || !self.rights.may(now, directory, Rights::NAMES) {
            return Entry::Unknown;
        }
        self.rights.touch(directory);
        self.names.entry(directory, name)
    }

    /// Attributes that may be used now, with what was written behind.
    pub(super) fn known_attributes(&mut self, now: Time, ino: InodeId) -> Option<Attributes> {
        let mut attributes = self.committed_attributes(now, ino)?;
        self.behind.overlay(&mut attributes);
        Some(attributes)
    }

    /// Attributes that may be used now, as the leader would tell them.
    pub(super) fn committed_attributes(&mut self, now: Time, ino: InodeId) -> Option<Attributes> {
        if self.changes.touch_inode(ino) || self.changes.is_crowded() {
            return None;
        }
        self.rights.attributes(now, ino)
    }

    fn known_line(&mut self, now: Time, line: Line) -> Option<DirectoryEntry> {
        let Line { cookie, name, ino } = line;
        let attributes = self.known_attributes(now, ino)?;
        Some(DirectoryEntry { name, cookie, attributes, current: true })
    }

    /// Counts an open in without a word to the leader, if a right protects the inode.
    pub(super) fn open_silently(&mut self, now: Time, ino: InodeId, sequence: u64) -> Option<Attributes> {
        let attributes = self.known_attributes(now, ino).filter(|attributes| attributes.links > 0 && self.config.caches)?;
        self.holds.open(ino, sequence, Said::No);
        Some(attributes)
    }

    /// Counts a close out without a word to the leader, if it need not know, or need not know yet.
    pub(super) fn close_silently(&mut self, now: Time, ino: InodeId, sequence: u64) -> bool {
        if !self.config.caches {
            return false;
        }
        if self.holds.is_open(ino) && self.holds.said(ino) == Said::No {
            self.holds.close(ino);
            return true;
        }
        let linked = self.known_attributes(now, ino).is_some_and(|attributes| attributes.links > 0);
        if linked && !self.reclaiming {
            self.holds.close_later(ino, sequence);
        }
        linked && !self.reclaiming
    }

    // --- what caches above may keep

    /// Until when the caches above may use attributes that were told just now, as [`Core::lifetime`]: only if they are what is known here. An answer that granted nothing, was overtaken,
    /// or repeats what a first one said may be older than what somebody else has changed since.
    pub fn attributes_lifetime(&self, ino: InodeId, version: u64) -> Option<Time> {
        self.lifetime(ino).filter(|_| self.rights.knows(ino, version))
    }

    /// Until when they may take the name for what was told just now, `None` for absent: only if that is what is known here. The right to the
    /// others stays while one name is being changed, so by itself it says nothing about an answer.
    pub fn name_lifetime(&self, directory: InodeId, name: &Name, told: Option<InodeId>) -> Option<Time> {
        let known = self.names.knows(directory, name, told.map_or(Entry::Absent, Entry::There));
        self.names_until(directory).filter(|_| known && !self.changes.touch_name(directory, name))
    }

    /// Until when they may use a listing of the directory that they ask for now.
    pub fn listing_lifetime(&self, directory: InodeId) -> Option<Time> {
        self.names_until(directory).filter(|_| self.rights.is_settled(directory))
    }

    fn names_until(&self, directory: InodeId) -> Option<Time> {
        self.rights.until(directory, Rights::NAMES).filter(|_| !self.changes.is_haunted() && self.phase == Phase::Ready)
    }

    // --- learning

    /// Rights that came with an answer of the newest term.
    pub(super) fn take_grants(&mut self, grants: &[Grant]) {
        for grant in grants.iter().filter(|grant| self.recalls.may_grant(grant.ino)) {
            self.rights.grant(*grant);
        }
    }

    /// What the answer to a query tells, under the rights that came with it.
    pub(super) fn learn(&mut self, query: &Query, answer: &Answer, grants: &[Grant]) {
        let granted = |ino: InodeId, right: Rights| {
            self.recalls.may_grant(ino) && grants.iter().any(|grant| grant.ino == ino && grant.rights.contains(right))
        };
        match (query, answer) {
            (Query::Lookup { parent, name }, Answer::Attributes(attributes)) => {
                if granted(*parent, Rights::NAMES) {
                    self.names.learn(*parent, name, Entry::There(attributes.ino));
                }
                self.learn_attributes(attributes, grants);
            }
            (Query::Lookup { parent, name }, Answer::Absent) if granted(*parent, Rights::NAMES) => {
                self.names.learn(*parent, name, Entry::Absent);
            }
            (Query::ReadLink { ino }, Answer::Target(target)) if granted(*ino, Rights::READ) => self.rights.learn_target(*ino, target),
            (Query::ReadDirectory { ino, after, .. }, Answer::Directory { entries, end, attributes }) => {
                if granted(*ino, Rights::NAMES) {
                    self.names.learn_lines(*ino, *after, entries, *end);
                }
                self.learn_attributes(attributes, grants);
                let given: std::collections::BTreeMap<InodeId, Rights> = grants.iter().map(|grant| (grant.ino, grant.rights)).collect();
                for entry in entries.iter().filter(|entry| entry.current) {
                    let rights = given.get(&entry.attributes.ino).copied().unwrap_or_default();
                    let grant = Grant { ino: entry.attributes.ino, rights };
                    self.learn_attributes(&entry.attributes, &[grant]);
                }
            }
            (_, Answer::Attributes(attributes) | Answer::Extents { attributes, .. } | Answer::Unchanged { attributes }) => {
                self.learn_attributes(attributes, grants);
            }
            _ => {}
        }
    }

    fn learn_attributes(&mut self, attributes: &Attributes, grants: &[Grant]) {
        let ino = attributes.ino;
        let granted = grants.iter().any(|grant| grant.ino == ino && grant.rights.contains(Rights::READ)) && self.recalls.may_grant(ino);
        if granted || self.rights.held(ino).contains(Rights::WRITE) {
            self.rights.learn_attributes(attributes);
        }
    }

    // --- own changes

    /// What an operation that is about to be sent changes.
    pub(super) fn touched_by(&mut self, now: Time, op: &Op) -> Option<Touched> {
        if !self.config.caches {
            return None;
        }
        let touched = Touched::by(op, |directory, name| match self.known_entry(now, directory, name) {
            Entry::There(ino) => Some(ino),
            _ => None,
        });
        self.changes.begin(&touched);
        Some(touched)
    }

    /// An operation of this session has been answered, or was given up.
    pub(super) fn settle_change(&mut self, now: Time, change: Change, result: &Result<Response, Status>) {
        let Change { op, touched, number, uncertain, freshness } = change;
        let mut given_up = None;
        match result {
            Ok(Response::Replied { replied, grants, .. }) => {
                let moved = self.plan_move(&op);
                if !matches!(op, Op::Yield { .. }) {
                    self.forget_touched(&touched);
                }
                self.learn_change(now, &op, replied, grants, freshness, moved);
                self.settle_holds(now, &op, &touched);
            }
            Err(_) if uncertain => {
                self.forget_touched(&touched);
                given_up = number.map(|(number, _)| number);
            }
            _ => {}
        }
        match given_up {
            Some(number) => self.changes.haunt(number, touched),
            None => self.changes.end(&touched),
        }
        // Only what went through the log has told all voters to refuse what came before.
        let logged =
            matches!(result, Ok(Response::Replied { replied, .. }) if !matches!(replied, Replied::Acquired { granted: false, .. }));
        if let (true, Some((_, below))) = (logged, number) {
            let (laid, all) = self.changes.lay(below);
            laid.iter().for_each(|touched| self.forget_touched(touched));
            if all {
                self.names.clear();
                self.rights.forget_all_attributes();
            }
        }
    }

    /// What a rename that succeeded made of its two names, as far as that is known.
    fn plan_move(&mut self, op: &Op) -> Option<Moved> {
        let Op::Rename { from_parent, from_name, to_parent, to_name, mode } = op else { return None };
        let (before, over) = (self.names.entry(*from_parent, from_name), self.names.entry(*to_parent, to_name));
        match (before, over, mode) {
            // Two names of one inode: both stay.
            (Entry::There(moved), Entry::There(replaced), _) if moved == replaced => Some(Moved { from: before, to: over }),
            (Entry::There(_), Entry::There(_), RenameMode::Exchange) => Some(Moved { from: over, to: before }),
            (Entry::There(_), Entry::There(_) | Entry::Absent, _) => Some(Moved { from: Entry::Absent, to: before }),
            _ => None,
        }
    }

    /// What lost a name may have no other: closed files among it are given back to the leader, which else would keep their bytes.
    fn settle_holds(&mut self, now: Time, op: &Op, touched: &Touched) {
        let parents = match op {
            Op::Unlink { parent, .. } | Op::Rmdir { parent, .. } => [*parent; 2],
            Op::Rename { from_parent, to_parent, .. } => [*from_parent, *to_parent],
            _ => return,
        };
        self.note_unnamed(&touched.inodes);
        let mut closed: Vec<InodeId> = touched.inodes.iter().copied().filter(|ino| !parents.contains(ino)).collect();
        if touched.others {
            // Which inode it was is not known.
            closed = self.holds.closed();
            if self.holds.has_unsaid() {
                self.reclaim_again(now);
            }
        }
        for ino in closed {
            if let Some(sequence) = self.holds.take_closed(ino) {
                self.release_later(now, ino, sequence);
            }
        }
    }

    /// Whether an open file would lose its name by the operation without the leader knowing that it is open: then the leader is told first.
    /// Returns the inode that it is told of.
    pub(super) fn hold_before(&mut self, now: Time, op: &Op) -> Option<InodeId> {
        let (directory, name) = match op {
            Op::Unlink { parent, name } | Op::Rmdir { parent, name } => (*parent, name),
            Op::Rename { to_parent, to_name, mode: RenameMode::Replace, .. } => (*to_parent, to_name),
            _ => return None,
        };
        if !self.config.caches {
            return None;
        }
        let Entry::There(ino) = self.names.entry(directory, name) else { return None };
        let sequence = self.holds.unsaid(ino)?;
        self.say_hold(now, ino, sequence);
        Some(ino)
    }

    fn forget_touched(&mut self, touched: &Touched) {
        touched.inodes.iter().for_each(|ino| self.rights.forget_attributes(*ino));
        for (directory, name) in &touched.names {
            self.names.forget(*directory, name);
            self.names.forget_lines(*directory);
            self.rights.forget_attributes(*directory);
        }
        if touched.others {
            self.rights.forget_all_attributes();
        }
    }

    /// What is known after an operation of this session; all that it touched has been forgotten.
    fn learn_change(&mut self, now: Time, op: &Op, replied: &Replied, grants: &[Grant], freshness: Freshness, moved: Option<Moved>) {
        if let Replied::Entry { writer: true, attributes, .. } | Replied::Acquired { granted: true, attributes } = replied {
            if freshness == Freshness::Fresh {
                self.rights.grant_write(attributes.ino);
            } else if !self.rights.held(attributes.ino).contains(Rights::WRITE) {
                // It may have been recalled since, from a session that did not know of it.
                self.ask_op(now, Op::Yield { ino: attributes.ino }, Owner::Yielded(attributes.ino));
            }
        }
        if freshness == Freshness::Old {
            if let Op::Write { ino, behind: Some(_), .. } = op {
                // What is no longer dirty must not be missing from what is known.
                self.rights.forget_attributes(*ino);
            }
            return;
        }
        match (op, replied) {
            (Op::Create { parent, name, kind, .. }, Replied::Entry { attributes, created, .. }) => {
                self.learn_name(*parent, name, Entry::There(attributes.ino));
                let names = grants.iter().any(|grant| grant.ino == attributes.ino && grant.rights.contains(Rights::NAMES));
                if *created && names && *kind == NewKind::Directory {
                    self.names.learn_empty(attributes.ino);
                }
            }
            (Op::Link { parent, name, ino }, _) => self.learn_name(*parent, name, Entry::There(*ino)),
            (Op::Unlink { parent, name } | Op::Rmdir { parent, name }, _) => self.learn_name(*parent, name, Entry::Absent),
            (Op::Rename { from_parent, from_name, to_parent, to_name, .. }, _) => {
                if let Some(Moved { from, to }) = moved {
                    self.learn_name(*from_parent, from_name, from);
                    self.learn_name(*to_parent, to_name, to);
                }
            }
            _ => {}
        }
        if let Replied::Entry { attributes, .. }
        | Replied::Attributes(attributes)
        | Replied::Written { attributes, .. }
        | Replied::Acquired { attributes, .. } = replied
        {
            self.learn_attributes(attributes, grants);
        }
    }

    /// A name as this session's own change left it: whoever changes it next recalls it after this answer.
    fn learn_name(&mut self, directory: InodeId, name: &Name, entry: Entry) {
        if self.rights.held(directory).contains(Rights::NAMES) && self.recalls.may_grant(directory) {
            self.names.learn(directory, name, entry);
        }
    }
}
