//! Files that lost a name here while they were dirty. Most were temporary and are gone when their bytes are due: the cluster is asked first,
//! which costs less than an upload for nothing. Whoever else still has such a file open keeps it there, and then it is committed as any other.

use std::collections::BTreeMap;

use crate::limits;
use crate::status::Status;
use crate::time::Time;
use crate::types::InodeId;
use crate::wire::message::{Request, Response};
use crate::wire::namespace::{Answer, Query};

use super::asks::{Owner, Target};
use super::core::Core;

/// Such files, and how often it may still be asked about each.
#[derive(Debug, Default)]
pub(super) struct Unnamed(BTreeMap<InodeId, u32>);

impl Core {
    /// Names of these were taken or moved by this session.
    pub(super) fn note_unnamed(&mut self, inos: &[InodeId]) {
        let behind = &self.behind;
        self.unnamed.0.retain(|ino, _| behind.is_dirty(*ino));
        let dirty = inos.iter().copied().filter(|ino| behind.is_dirty(*ino));
        self.unnamed.0.extend(dirty.map(|ino| (ino, limits::UNNAMED_ASKS_MAX)));
    }

    /// The bytes of the file are due. Whether the cluster is asked first if it is still there.
    pub(super) fn ask_whether_there(&mut self, now: Time, ino: InodeId) -> bool {
        if self.holds.is_open(ino) || self.is_wanted_clean(ino) {
            return false;
        }
        match self.unnamed.0.get_mut(&ino) {
            Some(asks) if *asks > 0 => *asks -= 1,
            _ => {
                self.unnamed.0.remove(&ino);
                return false;
            }
        }
        self.behind.postpone(now, ino);
        let query = Request::Query(Query::Attributes { ino });
        self.ask(now, query, Target::Leader, Owner::Unnamed(ino), self.config.op_timeout);
        true
    }

    pub(super) fn on_whether_there(&mut self, now: Time, ino: InodeId, result: Result<Response, Status>) {
        match result {
            // Nobody can open it any more. A commit that has begun meanwhile finds out by itself.
            Err(Status::Stale | Status::NotFound) if !self.behind.is_flying(ino) && !self.is_wanted_clean(ino) => {
                self.unnamed.0.remove(&ino);
                self.behind.forget(ino);
                self.on_yielded(now, ino, true);
            }
            // It is spared for a moment, or open elsewhere.
            Ok(Response::Answered { answer: Answer::Attributes(attributes), .. }) if attributes.links == 0 => {}
            _ => {
                self.unnamed.0.remove(&ino);
                self.behind.hasten(now, ino);
            }
        }
    }
}
