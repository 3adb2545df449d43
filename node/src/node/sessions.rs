//! Sessions as the leader sees them: leases, their courteous expiry, and eviction.
//!
//! Renewal times are volatile. A new leader, or one that stood still, gives everybody a fresh lease.

use std::collections::BTreeMap;

use dfs::limits;
use dfs::time::Time;
use dfs::types::{RequestNumber, SessionId};

use super::Node;
use super::leader::Duty;
use crate::namespace::{Command, SessionState};

/// When each session was last heard.
#[derive(Debug)]
pub(super) struct Leases {
    /// What counts for sessions not heard in this term.
    floor: Time,
    renewed: BTreeMap<SessionId, Time>,
}

impl Leases {
    pub fn new(now: Time) -> Self {
        Leases { floor: now, renewed: BTreeMap::new() }
    }

    pub fn renew(&mut self, now: Time, session: SessionId) {
        self.renewed.insert(session, now);
    }

    /// A request is a sign of life of a session that is known already; others must open first.
    pub fn heard_if_known(&mut self, now: Time, session: SessionId) {
        if let Some(renewed) = self.renewed.get_mut(&session) {
            *renewed = now;
        }
    }

    pub fn end(&mut self, session: SessionId) {
        self.renewed.remove(&session);
    }

    pub fn forgive(&mut self, now: Time) {
        self.floor = now;
    }

    fn heard(&self, session: SessionId) -> Time {
        self.renewed.get(&session).copied().unwrap_or(self.floor).max(self.floor)
    }
}

impl Node {
    /// Expires sessions whose lease ran out; evicts those that stay away, early if they stand between others and space.
    pub(super) fn pursue_sessions(&mut self) {
        let now = self.now;
        let Some(leading) = &self.leading else { return };
        let short = self.is_short_of_space();
        let mut duties = Vec::new();
        for (id, session) in self.namespace.sessions() {
            let silent = now.since(leading.leases.heard(id));
            let lease = limits::SESSION_LEASE + limits::SESSION_MARGIN;
            match session.state {
                SessionState::Open if silent > lease => duties.push((Duty::Expire(id), Command::ExpireSession { session: id })),
                SessionState::Expired if silent > limits::SESSION_COURTESY || (short && silent > 2 * lease) => {
                    duties.push((Duty::Evict(id), Command::EvictSession { session: id }));
                }
                _ => {}
            }
        }
        for (duty, command) in duties {
            tracing::info!(?duty, "session is silent");
            self.pursue(duty, command);
        }
    }

    /// Whether nine tenths of the room for chunks are taken.
    fn is_short_of_space(&self) -> bool {
        let room: u64 = self.map.storage_nodes().map(|member| member.memory).sum();
        let stored: u64 = self.map.storage_nodes().map(|member| self.stored_on(member.id)).sum();
        stored > room / 10 * 9
    }

    /// A session's sign of life, once leadership is proven. Tells whether the session exists.
    pub(super) fn renew(&mut self, session: SessionId, answered_below: RequestNumber, uploads_from: u64, heard: Time) -> bool {
        let Some(state) = self.namespace.session(session).cloned() else { return false };
        let Some(leading) = &mut self.leading else { return false };
        leading.leases.renew(heard, session);
        if state.state == SessionState::Expired {
            self.pursue(Duty::Revive(session), Command::OpenSession { session });
        }
        if uploads_from > state.uploads_from || answered_below.0 > state.answered_below {
            self.pursue(Duty::Progress(session), Command::Progress { session, answered_below, uploads_from });
        }
        true
    }
}
