//! Sessions as the leader sees them: leases, their courteous expiry, and eviction.
//!
//! Renewal times are volatile. A new leader, or one that stood still, gives everybody a fresh lease.

use std::collections::BTreeMap;

use dfs::capacity;
use dfs::limits;
use dfs::time::Time;
use dfs::types::{RequestNumber, SessionId, Term};
use dfs::wire::message::Notice;
use dfs::wire::namespace::Op;

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

    pub fn heard(&self, session: SessionId) -> Time {
        self.renewed.get(&session).copied().unwrap_or(self.floor).max(self.floor)
    }
}

/// Requests refused for want of space while others have reserved some.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Of this run of refusals, and of the last one.
    first: Option<(Time, Time)>,
    told: Option<Time>,
}

impl Shortage {
    /// A refusal. Tells whether to ask for what is reserved now, and whether there was no time yet to give it back. Who goes on asking for room that
    /// is not there makes others give theirs back rarely.
    fn on_refusal(&mut self, now: Time) -> (bool, bool) {
        let began = match self.first {
            Some((began, last)) if now.since(last) <= 2 * limits::SPACE_ASK_TIME => began,
            _ => now,
        };
        self.first = Some((began, now));
        let early = now.since(began) < limits::SPACE_ASK_TIME;
        let interval = if early { limits::SPACE_ASK_INTERVAL } else { limits::SPACE_ASK_AGAIN };
        let ask = self.told.is_none_or(|told| now.since(told) >= interval);
        if ask {
            self.told = Some(now);
        }
        (ask, early)
    }

    fn is_recent(&self, now: Time) -> bool {
        self.first.is_some_and(|(_, last)| now.since(last) <= 2 * limits::SPACE_ASK_TIME)
    }
}

impl Node {
    /// A session is about to be told that there is no space for what it asked for. Asks those who have reserved some and may not need it,
    /// also the session itself if this is for something else than more of that; tells whether the answer should wait for theirs.
    pub(super) fn ask_for_reserved(&mut self, session: SessionId, op: &Op) -> bool {
        let (usage, most, now) = (self.namespace.usage(), self.namespace.limits(), self.now);
        let asker = matches!(op, Op::Reserve { .. }).then_some(session);
        // Where that much would fit the reason is another one; and what would not fit then either is not worth asking for.
        let least = match op {
            Op::Fold { .. } => capacity::chunk_charge(limits::CHUNK_BYTES_MAX as u64),
            Op::Reserve { bytes } => *bytes,
            Op::Allocate { range, .. } if range.length > self.namespace.spare_for_new() + usage.reserved_bytes => return false,
            Op::Allocate { range, .. } => range.length + range.length / 8,
            _ => capacity::behind_charge((limits::WRITE_CHUNKS_MAX * limits::CHUNK_BYTES_MAX) as u64, limits::WRITE_PATCHES_MAX as u64),
        };
        if self.namespace.spare_for_new() >= least {
            return false;
        }
        let metadata_is_full = usage.namespace_bytes >= most.namespace_bytes_max
            || usage.inline_bytes + limits::INLINE_WRITE_BYTES_MAX as u64 > most.inline_bytes_max;
        if metadata_is_full || usage.reserved_bytes == asker.map_or(0, |session| self.namespace.reserved(session)) {
            return false;
        }
        let Some(leading) = &mut self.leading else { return false };
        let (ask, early) = leading.shortage.on_refusal(now);
        if ask {
            let reserving = self.namespace.sessions().filter(|(other, known)| Some(*other) != asker && known.reserved > 0);
            let reserving: Vec<SessionId> = reserving.map(|(other, _)| other).collect();
            reserving.into_iter().for_each(|other| self.tell_session(other, Notice::SpaceShort));
        }
        early
    }

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
            if let Duty::Expire(session) = duty {
                self.void_rights(session);
            }
            self.pursue(duty, command);
        }
    }

    /// Whether nine tenths of the room for chunks are taken, or what sessions have reserved was in somebody's way.
    fn is_short_of_space(&self) -> bool {
        let room: u64 = self.map.storage_nodes().map(|member| member.memory).sum();
        let stored: u64 = self.map.storage_nodes().map(|member| self.stored_on(member.id)).sum();
        stored > room / 10 * 9 || self.leading.as_ref().is_some_and(|leading| leading.shortage.is_recent(self.now))
    }

    /// The session says which recalls of that term it is busy obeying. One of another term tells nothing: numbers begin anew with each.
    pub(super) fn on_flushing(&mut self, session: SessionId, term: Term, recalls: &[u64], heard: Time) {
        if let Some(leading) = self.leading.as_mut().filter(|leading| leading.term() == term) {
            recalls.iter().for_each(|&number| leading.gate.on_flushing(heard, session, number));
        }
    }

    /// A session's sign of life, once leadership is proven. Gives the era of the rights that it prolongs, 0 for none; `None` if the session
    /// does not exist.
    pub(super) fn renew(&mut self, session: SessionId, answered_below: RequestNumber, uploads_from: u64, heard: Time) -> Option<u64> {
        let known = self.namespace.session(session)?;
        let (expired, known_uploads, known_answered) = (known.state == SessionState::Expired, known.uploads_from, known.answered_below);
        let caches = known.caches;
        let now = self.now;
        let leading = self.leading.as_mut()?;
        // Who does not obey a recall is waited for no longer than who is silent.
        let stalled = leading.gate.is_stalled(now, session);
        if !stalled {
            leading.leases.renew(heard, session);
        }
        let era = match caches {
            true if stalled => 0,
            true => leading.rights.era(session),
            false => 1,
        };
        if expired {
            self.pursue(Duty::Revive(session), Command::OpenSession { session, caches });
        }
        if uploads_from > known_uploads || answered_below.0 > known_answered {
            self.pursue(Duty::Progress(session), Command::Progress { session, answered_below, uploads_from });
        }
        Some(era)
    }
}
