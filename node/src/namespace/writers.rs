//! Who may write a file alone, and the room that is reserved for what they have accepted and not committed.
//!
//! Both are replicated: after a failover nobody has to be asked who writes, and nobody is promised the same room twice.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{InodeId, SessionId};
use dfs::wire::namespace::{Behind, Replied};

use super::Namespace;

impl Namespace {
    /// The session that has the `WRITE` right on the file.
    pub fn writer(&self, ino: InodeId) -> Option<SessionId> {
        self.store.writer(ino)
    }

    /// All files that some session may write alone.
    pub fn writers(&self) -> impl Iterator<Item = (InodeId, SessionId)> {
        self.store.writers()
    }

    /// Whether the session has the `WRITE` right on any file.
    pub fn writes_any(&self, session: SessionId) -> bool {
        self.store.written_by(session).is_some()
    }

    /// Bytes that the session has reserved.
    pub fn reserved(&self, session: SessionId) -> u64 {
        self.store.session(session).map_or(0, |session| session.reserved)
    }

    /// The answer to a creation: gives the right on what was made if that is wanted, and says whether the session has it.
    pub(super) fn tell_writer(&mut self, session: SessionId, replied: Replied, wanted: bool) -> Replied {
        let Replied::Entry { attributes, created, .. } = replied else { return replied };
        if created && wanted && self.may_write_alone(session, attributes.ino) {
            self.store.put_writer(attributes.ino, Some(session));
        }
        Replied::Entry { attributes, created, writer: self.store.writer(attributes.ino) == Some(session) }
    }

    pub(super) fn acquire(&mut self, session: SessionId, ino: InodeId) -> Result<Replied, Status> {
        let attributes = self.attributes(ino)?;
        if self.store.writer(ino).is_none() && self.may_write_alone(session, ino) {
            self.store.put_writer(ino, Some(session));
        }
        Ok(Replied::Acquired { granted: self.store.writer(ino) == Some(session), attributes })
    }

    pub(super) fn yield_writer(&mut self, session: SessionId, ino: InodeId) -> Result<Replied, Status> {
        if self.store.writer(ino) == Some(session) {
            self.store.put_writer(ino, None);
        }
        Ok(Replied::Done)
    }

    /// Gives back at once; gives more only as far as nobody else counts on it, and leaves something for the names of files that the bytes
    /// will go to: those are nobody's reservation.
    pub(super) fn reserve(&mut self, session: SessionId, bytes: u64) -> Result<Replied, Status> {
        let own = self.reserved(session);
        let left = 2 * dfs::capacity::kept_for_changes(self.capacity());
        let bytes = bytes.min(own + self.spare().saturating_sub(left));
        if bytes != own {
            self.change_session(session, |session| session.reserved = bytes);
        }
        Ok(Replied::Reserved { bytes })
    }

    /// After a commit of bytes written behind: they have taken their room, their records included, and the right goes back if that was said.
    pub(super) fn settle_behind(&mut self, session: SessionId, ino: InodeId, behind: Option<Behind>, added: u64) {
        let Some(behind) = behind else { return };
        if added > 0 && self.reserved(session) > 0 {
            self.change_session(session, |session| session.reserved = session.reserved.saturating_sub(added));
        }
        if behind.yields {
            self.store.put_writer(ino, None);
        }
    }

    /// A session that ends leaves nothing behind.
    pub(super) fn free_writers(&mut self, session: SessionId) {
        let written: Vec<InodeId> = self.store.written_by(session).into_iter().flatten().copied().collect();
        written.into_iter().for_each(|ino| self.store.put_writer(ino, None));
    }

    fn may_write_alone(&self, session: SessionId, ino: InodeId) -> bool {
        !self.is_locked_by_other(session, ino)
            && self.body(ino).is_some_and(|body| matches!(body, super::Body::File(_)))
            && self.store.session(session).is_some_and(|session| session.caches)
            && self.store.written_by(session).is_none_or(|written| written.len() < limits::SESSION_WRITERS_MAX)
    }
}
