//! The session's books: request numbers, upload counters, terms seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits;
use crate::types::{InodeId, Instance, RequestNumber, SessionId, Term};
use crate::wire::message::Request;

/// Everything that must be exact about a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    next_number: u64,
    /// Numbers given out whose outcome is not known yet. The lowest bounds what the cluster may forget.
    unanswered: BTreeSet<u64>,
    next_upload: u64,
    /// Upload counters that an operation may still name. The lowest bounds what the cluster may collect.
    uploads: BTreeSet<u64>,
    /// Releases sent while a reclaim was under way, which may have listed the inode: they are said again afterwards.
    pub(super) released: BTreeMap<InodeId, u64>,
    /// Highest term heard of.
    pub(super) term: Term,
    /// Term in which everything held was reclaimed.
    pub(super) reclaimed: Term,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Self {
        Session {
            id,
            next_number: 1,
            unanswered: BTreeSet::new(),
            next_upload: 1,
            uploads: BTreeSet::new(),
            released: BTreeMap::new(),
            term: Term(0),
            reclaimed: Term(0),
        }
    }

    /// The next number, unless the cluster could no longer remember the outcomes of all that are open.
    pub(super) fn open_number(&mut self) -> Option<RequestNumber> {
        if self.next_number - self.answered_below().0 >= limits::SESSION_WINDOW {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.unanswered.insert(number);
        Some(RequestNumber(number))
    }

    /// The number's outcome is known, or nobody waits for it any more.
    pub(super) fn close_number(&mut self, number: RequestNumber) {
        assert!(self.unanswered.remove(&number.0), "request {number} was closed twice");
    }

    pub(super) fn answered_below(&self) -> RequestNumber {
        RequestNumber(self.unanswered.first().copied().unwrap_or(self.next_number))
    }

    /// A new upload, which an operation may name until [`Session::close_upload`].
    pub(super) fn open_upload(&mut self) -> Instance {
        let counter = self.next_upload;
        self.next_upload += 1;
        self.uploads.insert(counter);
        Instance { session: self.id, counter }
    }

    /// No unanswered or future operation names the upload.
    pub(super) fn close_upload(&mut self, instance: Instance) {
        self.uploads.remove(&instance.counter);
    }

    pub(super) fn uploads_from(&self) -> u64 {
        self.uploads.first().copied().unwrap_or(self.next_upload)
    }

    /// `flushing`: recalls of this term that wait for commits.
    pub(super) fn renewal(&self, flushing: Vec<u64>) -> Request {
        Request::Renew { answered_below: self.answered_below(), uploads_from: self.uploads_from(), term: self.term, flushing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_bounds_open_numbers() {
        let mut session = Session::new(SessionId(1));
        let numbers: Vec<_> = std::iter::from_fn(|| session.open_number()).collect();
        assert_eq!(numbers.len() as u64, limits::SESSION_WINDOW);
        session.close_number(numbers[5]);
        assert_eq!(session.open_number(), None, "the oldest still waits");
        assert_eq!(session.answered_below(), RequestNumber(1));
        session.close_number(numbers[0]);
        assert_eq!(session.answered_below(), RequestNumber(2));
        assert_eq!(session.open_number(), Some(RequestNumber(limits::SESSION_WINDOW + 1)));
        assert_eq!(session.open_number(), None);
    }

    #[test]
    fn the_upload_mark_rises_when_nothing_names_what_is_below() {
        let mut session = Session::new(SessionId(1));
        let (first, second) = (session.open_upload(), session.open_upload());
        session.close_upload(second);
        assert_eq!(session.uploads_from(), 1);
        session.close_upload(first);
        assert_eq!(session.uploads_from(), 3);
    }
}
