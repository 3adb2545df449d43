//! What each session has uploaded here and, as far as this node has heard, not committed. It is charged to the session, within a bound,
//! so that nobody fills a node's memory with what no file will ever name.
//!
//! Owns charges only. Which uploads exist is the store's fact; that one is committed, or garbage, is the namespace's.

use std::collections::BTreeMap;
use std::ops::Range;

use dfs::limits::{UNCOMMITTED_BYTES_MAX, UNCOMMITTED_BYTES_MIN, UNCOMMITTED_SHARE};
use dfs::status::Status;
use dfs::types::{ChunkHash, Instance, SessionId};

#[derive(Debug)]
pub(super) struct Uncommitted {
    /// What each upload is charged, in the order of sessions and their counters.
    uploads: BTreeMap<(Instance, ChunkHash), u64>,
    /// Their sums; no session with nothing.
    sessions: BTreeMap<SessionId, u64>,
    /// Most that one session may have.
    bytes_max: u64,
}

impl Uncommitted {
    /// For a store of that budget.
    pub(super) fn new(budget: u64) -> Self {
        let bytes_max = (budget / UNCOMMITTED_SHARE).clamp(UNCOMMITTED_BYTES_MIN, UNCOMMITTED_BYTES_MAX);
        Uncommitted { uploads: BTreeMap::new(), sessions: BTreeMap::new(), bytes_max }
    }

    /// Whether the session may bring so much more. Errors: `Busy` until it has committed or given up some of what it has here.
    pub(super) fn check(&self, session: SessionId, charge: u64) -> Result<(), Status> {
        if self.of(session).saturating_add(charge) > self.bytes_max { Err(Status::Busy) } else { Ok(()) }
    }

    /// Charges a new upload to its session.
    pub(super) fn add(&mut self, hash: ChunkHash, instance: Instance, charge: u64) {
        self.settle(&hash, instance);
        self.uploads.insert((instance, hash), charge);
        *self.sessions.entry(instance.session).or_default() += charge;
    }

    /// The upload is committed, or gone. Nothing, if it was charged to nobody.
    pub(super) fn settle(&mut self, hash: &ChunkHash, instance: Instance) {
        let Some(charge) = self.uploads.remove(&(instance, *hash)) else { return };
        let session = instance.session;
        let left = self.of(session) - charge;
        if left == 0 {
            self.sessions.remove(&session)
        } else {
            self.sessions.insert(session, left)
        };
    }

    /// What is charged to the session.
    pub(super) fn of(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).copied().unwrap_or(0)
    }

    /// The session's uploads with counters in that range.
    pub(super) fn between(&self, session: SessionId, counters: Range<u64>) -> Vec<(ChunkHash, Instance)> {
        let first = |counter| (Instance { session, counter }, ChunkHash([0; 32]));
        if counters.is_empty() {
            return Vec::new();
        }
        self.uploads.range(first(counters.start)..first(counters.end)).map(|((instance, hash), _)| (*hash, *instance)).collect()
    }

    pub(super) fn check_invariants(&self, holds: impl Fn(&ChunkHash, Instance) -> bool) {
        let mut sums: BTreeMap<SessionId, u64> = BTreeMap::new();
        for ((instance, hash), charge) in &self.uploads {
            assert!(holds(hash, *instance), "only what is here is charged");
            *sums.entry(instance.session).or_default() += charge;
        }
        assert_eq!(self.sessions, sums, "sessions are charged the sum of their uploads");
        assert!(sums.values().all(|sum| *sum <= self.bytes_max), "the bound is kept");
    }
}
