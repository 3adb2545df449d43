//! Sessions of clients: their marks, and the window of remembered outcomes that makes every request happen exactly once.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{Attributes, Instance, RequestNumber, SessionId, Timestamp};
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub state: SessionState,
    /// Outcomes of requests below are forgotten: the client has them.
    pub answered_below: u64,
    /// Uploads below will not be named by any operation.
    pub uploads_from: u64,
    /// Remembered outcomes.
    pub outcomes: u32,
    /// Uploads not below `uploads_from` that were live and lost their last reference, sorted. Their deletion may be on its way to
    /// the holders, so naming one again would refer to bytes about to go. Mostly empty, because the mark rises with every request.
    pub spent: Box<[u64]>,
    /// Whether it takes rights and answers recalls: after a failover changes wait for such a session to say what it has.
    pub caches: bool,
    /// Bytes that count as used for everybody else, so that what the session has accepted can be committed.
    pub reserved: u64,
}

/// What a request was answered. A type of its own, for its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome(pub Result<Replied, Status>);

impl Session {
    pub(super) fn digest(&self, id: SessionId) -> u64 {
        let digest = Digest::new(5).word(id.0).word(self.state as u64).word(self.answered_below);
        let digest = digest.word(self.uploads_from).word(u64::from(self.outcomes)).word(u64::from(self.caches)).word(self.reserved);
        self.spent.iter().fold(digest, |digest, counter| digest.word(*counter)).end()
    }

    pub(super) fn weight(&self) -> u64 {
        128 + 8 * self.spent.len() as u64
    }

    /// Whether an operation may still name that upload of the session.
    pub fn may_name(&self, counter: u64) -> bool {
        counter >= self.uploads_from && self.spent.binary_search(&counter).is_err()
    }
}

impl Outcome {
    pub fn digest(&self, session: SessionId, number: u64) -> u64 {
        let digest = Digest::new(6).word(session.0).word(number);
        match &self.0 {
            Err(status) => digest.word(0).word(u64::from(status.number())).end(),
            Ok(Replied::Done) => digest.word(1).end(),
            Ok(Replied::Entry { attributes, created, writer }) => {
                with_attributes(digest.word(2).word(u64::from(*created)).word(u64::from(*writer)), attributes)
            }
            Ok(Replied::Attributes(attributes)) => with_attributes(digest.word(3), attributes),
            Ok(Replied::Written { offset, attributes }) => with_attributes(digest.word(4).word(*offset), attributes),
            Ok(Replied::Acquired { granted, attributes }) => with_attributes(digest.word(5).word(u64::from(*granted)), attributes),
            Ok(Replied::Reserved { bytes }) => digest.word(6).word(*bytes).end(),
            Ok(Replied::Lock(grant)) => digest.word(7).word(*grant as u64).end(),
            Ok(Replied::Ranged { done, inline, attributes }) => with_attributes(digest.word(8).word(*done).word(*inline), attributes),
        }
    }
}

fn with_attributes(digest: Digest, attributes: &Attributes) -> u64 {
    // Taken apart by name, so that a field added later is not forgotten.
    let Attributes { ino, kind, mode, uid, gid, links, size, blocks, atime, mtime, ctime, rdev, version, data_version, parent, xattrs } =
        *attributes;
    let mut digest = digest.word(ino.0).word((kind as u64) << 48 | u64::from(mode) << 32 | u64::from(links));
    digest = digest.word(u64::from(uid) << 32 | u64::from(gid)).word(size).word(blocks);
    for time in [atime, mtime, ctime] {
        digest = digest.word(time.seconds as u64).word(u64::from(time.nanos));
    }
    digest.word(u64::from(xattrs.bits()) << 32 | u64::from(rdev)).word(version).word(data_version).word(parent.0).end()
}

/// Whether the same request under the same number may succeed later, so that its outcome must not be remembered.
fn is_passing(status: Status) -> bool {
    matches!(status, Status::Busy | Status::MissingReceipts)
}

impl Namespace {
    pub(super) fn open_session(&mut self, id: SessionId, caches: bool) -> Result<Replied, Status> {
        let session = match self.store.session(id) {
            Some(session) if session.state == SessionState::Open => return Ok(Replied::Done),
            Some(session) => Session { state: SessionState::Open, ..session.clone() },
            // A late message must not bring a session back whose requests are forgotten.
            None if id == SessionId(0) || self.header.ended_sessions.contains(&id) => return Err(Status::SessionGone),
            None if self.store.sessions().len() >= limits::SESSIONS_MAX => return Err(Status::Busy),
            None => Session {
                state: SessionState::Open,
                answered_below: 1,
                uploads_from: 1,
                outcomes: 0,
                spent: Box::default(),
                caches,
                reserved: 0,
            },
        };
        self.store.put_session(id, Some(session));
        self.effects.push(Effect::SessionOpened(id));
        Ok(Replied::Done)
    }

    /// Whether the session was ended or evicted; of the last ones it is remembered.
    pub fn has_ended(&self, id: SessionId) -> bool {
        self.header.ended_sessions.contains(&id)
    }

    pub(super) fn expire_session(&mut self, id: SessionId) -> Result<Replied, Status> {
        let session = self.store.session(id).ok_or(Status::SessionGone)?.clone();
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
        self.free_writers(id);
        self.store.put_session(id, None);
        self.drop_locks(id);
        if self.header.ended_sessions.len() >= limits::ENDED_IDS_MAX {
            self.header.ended_sessions.pop_front();
        }
        self.header.ended_sessions.push_back(id);
        self.effects.push(Effect::SessionEnded(id));
        Ok(Replied::Done)
    }

    /// Raises the marks, forgets what the client has, revives an expired session.
    pub(super) fn raise_marks(&mut self, id: SessionId, answered_below: u64, uploads_from: u64) -> Result<Replied, Status> {
        let old = self.store.session(id).ok_or(Status::SessionGone)?.clone();
        let mut session = old.clone();
        session.answered_below = old.answered_below.max(answered_below);
        session.uploads_from = old.uploads_from.max(uploads_from);
        session.state = SessionState::Open;
        if session.uploads_from > old.uploads_from && !old.spent.is_empty() {
            session.spent = old.spent.iter().copied().filter(|&counter| counter >= session.uploads_from).collect();
        }
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
        let session = self.store.session(id).ok_or(Status::SessionGone)?;
        if number < session.answered_below {
            return Err(Status::TooOld);
        }
        if let Some(outcome) = self.store.outcome(id, number) {
            return outcome.0.clone();
        }
        if number - session.answered_below >= limits::SESSION_WINDOW {
            return Err(Status::Busy);
        }
        let outcome = self.operate(id, op, now);
        if !outcome.as_ref().is_err_and(|status| is_passing(*status)) {
            self.store.put_outcome(id, number, Some(Outcome(outcome.clone())));
            self.change_session(id, |session| session.outcomes += 1);
        }
        outcome
    }

    pub(super) fn change_session(&mut self, id: SessionId, change: impl FnOnce(&mut Session)) {
        let Some(mut session) = self.store.session(id).cloned() else { return };
        change(&mut session);
        self.store.put_session(id, Some(session));
    }

    /// An upload that was live is deleted: its session must not name it again.
    pub(super) fn spend(&mut self, Instance { session: id, counter }: Instance) {
        if !self.store.session(id).is_some_and(|session| session.may_name(counter)) {
            return;
        }
        self.change_session(id, |session| {
            let mut spent = session.spent.to_vec();
            spent.insert(spent.partition_point(|&other| other < counter), counter);
            if spent.len() > limits::SPENT_UPLOADS_MAX {
                // A client that never raises its mark has it raised; what it still had below, it must upload anew.
                session.uploads_from = spent.remove(0) + 1;
            }
            session.spent = spent.into();
        });
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
            if let Some(session) = self.store.session(id).cloned() {
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
