//! Sessions of clients: their marks, and the window of remembered outcomes that makes every request happen exactly once.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{RequestNumber, SessionId, Timestamp};
use dfs::wire::namespace::{Op, Replied};
use serde::{Deserialize, Serialize};

use super::Namespace;
use super::command::Effect;
use super::digest::Digest;

/// Whether the client was heard of in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionState {
    Open,
    /// The lease ran out; any request of the client revives it until it is evicted.
    Expired,
}

/// What is replicated of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub state: SessionState,
    /// Outcomes of requests below are forgotten: the client has them.
    pub answered_below: u64,
    /// Uploads below will not be named by any operation.
    pub uploads_from: u64,
    /// Remembered outcomes.
    pub outcomes: u32,
}

/// What a request was answered. A type of its own, for its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome(pub Result<Replied, Status>);

impl Session {
    pub(super) fn digest(&self, id: SessionId) -> u64 {
        let digest = Digest::new(5).word(id.0).word(self.state as u64).word(self.answered_below);
        digest.word(self.uploads_from).word(u64::from(self.outcomes)).end()
    }
}

impl Outcome {
    pub fn digest(&self, session: SessionId, number: u64) -> u64 {
        let digest = Digest::new(6).word(session.0).word(number);
        match &self.0 {
            Err(status) => digest.word(0).word(u64::from(status.number())).end(),
            Ok(Replied::Done) => digest.word(1).end(),
            Ok(Replied::Entry { attributes, created }) => {
                digest.word(2).word(u64::from(*created)).word(attributes.ino.0).word(attributes.version).end()
            }
            Ok(Replied::Attributes(attributes)) => digest.word(3).word(attributes.ino.0).word(attributes.version).end(),
            Ok(Replied::Written { offset, attributes }) => {
                digest.word(4).word(*offset).word(attributes.ino.0).word(attributes.version).end()
            }
        }
    }
}

/// Whether the same request under the same number may succeed later, so that its outcome must not be remembered.
fn is_passing(status: Status) -> bool {
    matches!(status, Status::Busy | Status::MissingReceipts)
}

impl Namespace {
    pub(super) fn open_session(&mut self, id: SessionId) -> Result<Replied, Status> {
        let session = match self.store.session(id) {
            Some(session) if session.state == SessionState::Open => return Ok(Replied::Done),
            Some(session) => Session { state: SessionState::Open, ..*session },
            // A late message must not bring a session back whose requests are forgotten.
            None if id == SessionId(0) || self.header.ended_sessions.contains(&id) => return Err(Status::SessionGone),
            None if self.store.sessions().len() >= limits::SESSIONS_MAX => return Err(Status::Busy),
            None => Session { state: SessionState::Open, answered_below: 1, uploads_from: 1, outcomes: 0 },
        };
        self.store.put_session(id, Some(session));
        self.effects.push(Effect::SessionOpened(id));
        Ok(Replied::Done)
    }

    pub(super) fn expire_session(&mut self, id: SessionId) -> Result<Replied, Status> {
        let session = *self.store.session(id).ok_or(Status::SessionGone)?;
        self.store.put_session(id, Some(Session { state: SessionState::Expired, ..session }));
        Ok(Replied::Done)
    }

    pub(super) fn evict_session(&mut self, id: SessionId) -> Result<Replied, Status> {
        match self.store.session(id) {
            Some(session) if session.state == SessionState::Open => Err(Status::Conflict),
            _ => self.end_session(id),
        }
    }

    pub(super) fn end_session(&mut self, id: SessionId) -> Result<Replied, Status> {
        self.store.session(id).ok_or(Status::SessionGone)?;
        for number in self.store.outcomes_below(id, u64::MAX) {
            self.store.put_outcome(id, number, None);
        }
        self.store.put_session(id, None);
        if self.header.ended_sessions.len() >= limits::ENDED_IDS_MAX {
            self.header.ended_sessions.pop_front();
        }
        self.header.ended_sessions.push_back(id);
        self.effects.push(Effect::SessionEnded(id));
        Ok(Replied::Done)
    }

    /// Raises the marks, forgets what the client has, revives an expired session.
    pub(super) fn raise_marks(&mut self, id: SessionId, answered_below: u64, uploads_from: u64) -> Result<Replied, Status> {
        let old = *self.store.session(id).ok_or(Status::SessionGone)?;
        let mut session = old;
        session.answered_below = old.answered_below.max(answered_below);
        session.uploads_from = old.uploads_from.max(uploads_from);
        session.state = SessionState::Open;
        if session.answered_below > old.answered_below && old.outcomes > 0 {
            for number in self.store.outcomes_below(id, session.answered_below) {
                self.store.put_outcome(id, number, None);
                session.outcomes -= 1;
            }
        }
        if session != old {
            self.store.put_session(id, Some(session));
        }
        if old.state == SessionState::Expired {
            self.effects.push(Effect::SessionOpened(id));
        }
        Ok(Replied::Done)
    }

    /// Executes a request, or answers what it was answered the first time.
    pub(super) fn request(&mut self, id: SessionId, number: u64, op: &Op, now: Timestamp) -> Result<Replied, Status> {
        let session = *self.store.session(id).ok_or(Status::SessionGone)?;
        if number < session.answered_below {
            return Err(Status::TooOld);
        }
        if let Some(outcome) = self.store.outcome(id, number) {
            return outcome.0.clone();
        }
        if number - session.answered_below >= limits::SESSION_WINDOW {
            return Err(Status::Busy);
        }
        let outcome = self.operate(id, session.uploads_from, op, now);
        if !outcome.as_ref().is_err_and(|status| is_passing(*status)) {
            self.store.put_outcome(id, number, Some(Outcome(outcome.clone())));
            self.store.put_session(id, Some(Session { outcomes: session.outcomes + 1, ..session }));
        }
        outcome
    }

    /// What the request was answered, if it has been executed and not forgotten.
    pub fn outcome(&self, session: SessionId, number: RequestNumber) -> Option<&Result<Replied, Status>> {
        self.store.outcome(session, number.0).map(|outcome| &outcome.0)
    }

    /// Forgets every remembered outcome: a planted bug for tests.
    pub fn forget_outcomes_for_test(&mut self) {
        let sessions: Vec<SessionId> = self.store.sessions().map(|(id, _)| id).collect();
        for id in sessions {
            for number in self.store.outcomes_below(id, u64::MAX) {
                self.store.put_outcome(id, number, None);
            }
            if let Some(session) = self.store.session(id).copied() {
                self.store.put_session(id, Some(Session { outcomes: 0, ..session }));
            }
        }
    }

    /// One session.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.store.session(id)
    }

    /// All sessions, by id.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = (SessionId, &Session)> {
        self.store.sessions()
    }
}
