//! How operations and queries pass the gate: what the leader recalls before they go on, and what its answers grant.

use dfs::limits;
use dfs::link::{Frame, Lane, LinkAction, LinkId, Role};
use dfs::status::Status;
use dfs::types::{InodeId, RequestNumber, Rights, SessionId, Term};
use dfs::wire::message::{Body, Grant, Notice, Recall, Response};
use dfs::wire::namespace::{Answer, NewKind, Op, Query, Replied};

use bytes::Bytes;

use super::claims::{self, Claim};
use super::gate::{Look, OpId, Waiter};
use super::leader::Duty;
use super::{Asker, Node, NodeOutput, Sabotage};
use crate::namespace::{Command, SessionState};

/// What is to be done with an operation that has come to the gate.
enum Verdict {
    Wait,
    Propose,
    /// It may not have what it asks for now.
    Refuse,
}

impl Node {
    /// An operation of a client: into the log at once, unless somebody has to give something back first.
    pub(super) fn admit(&mut self, asker: Asker, command: Command) {
        let Command::Request { session, number, op, .. } = &command else { unreachable!("only requests of clients are admitted") };
        let id = (*session, *number);
        let Some(leading) = &mut self.leading else { return self.fail(asker, Status::NotLeader) };
        if let Some(passage) = leading.gate.passage(id) {
            // A retry takes the place of the first attempt.
            passage.asker = asker;
            if passage.command.is_none() {
                self.waiters.replace(id.0, id.1, asker);
            }
            return;
        }
        if claims::is_free(op) {
            _ = self.propose_for(asker, command);
            return;
        }
        if leading.gate.len() >= limits::GATE_OPS_MAX {
            return self.fail(asker, Status::Busy);
        }
        let names = claims::names(op);
        leading.gate.enter(id, asker, command, names);
        self.pursue_op(id);
    }

    /// Looks again at whoever was woken. Tells whether there was anybody.
    pub(super) fn pursue_gate(&mut self) -> bool {
        let mut moved = false;
        while let Some(waiter) = self.leading.as_mut().and_then(|leading| leading.gate.next_ready()) {
            moved = true;
            match waiter {
                Waiter::Op(id) => self.pursue_op(id),
                Waiter::Query(number) => {
                    if let Some(look) = self.leading.as_mut().and_then(|leading| leading.gate.take_look(number)) {
                        self.answer_query(look.asker, look.session, look.query);
                    }
                }
            }
        }
        moved
    }

    fn pursue_op(&mut self, id: OpId) {
        let verdict = self.judge_op(id);
        let Some(passage) = self.leading.as_mut().and_then(|leading| leading.gate.passage(id)) else { return };
        let asker = passage.asker;
        match verdict {
            Verdict::Wait => {}
            Verdict::Propose => {
                let Some(command) = passage.command.take() else { return };
                if !self.propose_for(asker, command)
                    && let Some(leading) = &mut self.leading
                {
                    leading.gate.leave(id);
                }
            }
            Verdict::Refuse => {
                let claim = self.leading.as_mut().and_then(|leading| leading.gate.leave(id)).and_then(|passage| passage.claim);
                self.refuse_to_acquire(asker, claim);
            }
        }
    }

    /// Decides from what is: who has what, now.
    fn judge_op(&mut self, id: OpId) -> Verdict {
        let now = self.now;
        let ignorant = self.sabotaged(Sabotage::RecallIgnored);
        let executed = self.namespace.outcome(id.0, id.1).is_some() || self.namespace.session(id.0).is_none();
        let caught_up = self.has_caught_up();
        let Some(leading) = &mut self.leading else { return Verdict::Wait };
        // Before the entries of earlier terms are applied, the tree says neither what the operation changes nor who writes what.
        if !caught_up {
            leading.gate.wait_for_start(id);
            return Verdict::Wait;
        }
        if !leading.gate.has_names(id) {
            return Verdict::Wait;
        }
        if executed {
            return Verdict::Propose;
        }
        let Some(passage) = leading.gate.passage(id) else { return Verdict::Wait };
        let Some(Command::Request { op, .. }) = &passage.command else { return Verdict::Wait };
        if passage.claim.is_none() {
            let claim = claims::claim(&self.namespace, op);
            let refused = claim.acquires.is_some_and(|ino| {
                leading.gate.is_closed_by_other(id.0, ino)
                    || leading.gate.is_recalled_from(id.0, ino)
                    || leading.gate.is_cooling(now, ino)
                    || leading.holds.is_held_by_other(id.0, ino)
                    || leading.locks.is_wanted_by_other(id.0, ino)
                    || self.namespace.is_locked_by_other(id.0, ino)
                    || self.namespace.writer(ino).is_some_and(|writer| writer != id.0)
            });
            leading.gate.close(id, claim);
            if refused {
                return Verdict::Refuse;
            }
        }
        if leading.gate.waits_for_acquire(id) || leading.gate.waits_for_unknown(id) {
            return Verdict::Wait;
        }
        let items = self.op_in_way(id);
        if items.is_empty() || ignorant {
            self.want_recalls(Waiter::Op(id), items);
            return Verdict::Propose;
        }
        if self.want_recalls(Waiter::Op(id), items) { Verdict::Wait } else { Verdict::Propose }
    }

    /// Whether everything that earlier leaders put into the log is applied here.
    pub(super) fn has_caught_up(&self) -> bool {
        self.leading.as_ref().is_some_and(|leading| self.applied_term >= leading.term())
    }

    fn op_in_way(&mut self, id: OpId) -> Vec<(SessionId, Recall)> {
        let Some(leading) = &mut self.leading else { return Vec::new() };
        let Some(passage) = leading.gate.passage(id) else { return Vec::new() };
        let Some(claim) = &passage.claim else { return Vec::new() };
        claim.in_way(id.0, &passage.told, &leading.rights, &self.namespace)
    }

    /// Recalls what is in somebody's way. What silent sessions may cache is void instead. Tells whether there is anything to wait for.
    fn want_recalls(&mut self, waiter: Waiter, mut items: Vec<(SessionId, Recall)>) -> bool {
        let mut silent: Vec<SessionId> = items.iter().map(|(session, _)| *session).filter(|session| self.is_silent(*session)).collect();
        silent.dedup();
        for session in silent {
            self.void_rights(session);
            items.retain(|(other, item)| *other != session || self.is_of_writer(session, item));
        }
        let now = self.now;
        let Some(leading) = &mut self.leading else { return false };
        let waits = !items.is_empty();
        for number in leading.gate.want(now, waiter, items) {
            let Some(outstanding) = leading.gate.outstanding(number) else { continue };
            for item in &outstanding.items {
                if let Recall::Name { directory, .. } = item {
                    leading.rights.count_notice(outstanding.session, *directory);
                }
            }
        }
        if waits {
            self.send_recalls();
            self.pursue_silent();
        }
        waits
    }

    /// Whether the session's lease is over by this leader's clock, hence by its own.
    fn is_silent(&self, session: SessionId) -> bool {
        let Some(leading) = &self.leading else { return false };
        self.now.since(leading.leases.heard(session)) > limits::SESSION_LEASE + limits::SESSION_MARGIN
    }

    /// Whether the item takes the session's `WRITE` right away, which only the log can.
    fn is_of_writer(&self, session: SessionId, item: &Recall) -> bool {
        matches!(item, Recall::Inode { ino, keep } if !keep.contains(Rights::WRITE) && self.namespace.writer(*ino) == Some(session))
    }

    /// What the session may cache is void: it has not been heard for a lease. What it writes alone stands.
    pub(super) fn void_rights(&mut self, session: SessionId) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        leading.rights.void(session);
        leading.gate.know(session);
        for number in leading.gate.outstanding_of(session) {
            let writes = leading.gate.outstanding(number).is_some_and(|outstanding| {
                outstanding
                    .items
                    .iter()
                    .any(|item| matches!(item, Recall::Inode { ino, .. } if self.namespace.writer(*ino) == Some(session)))
            });
            if !writes {
                leading.gate.settle(now, number);
            }
        }
    }

    /// Sends what is due. Sessions without a link are told when they have one.
    fn send_recalls(&mut self) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        let term = leading.term();
        let mut notices = Vec::new();
        for number in leading.gate.take_due(now) {
            let Some(outstanding) = leading.gate.outstanding(number) else { continue };
            notices.push((outstanding.session, Notice::Recall { term, number, items: outstanding.items.clone() }));
        }
        for (session, notice) in notices {
            self.tell_session(session, notice);
        }
    }

    pub(super) fn tell_session(&mut self, session: SessionId, notice: Notice) {
        if let Some(&link) = self.session_links.get(&session) {
            let frame = Frame { request: 0, body: Body::Notice(notice), payload: Bytes::new() };
            self.outputs.push_back(NodeOutput::Link(LinkAction::Send { link, frame }));
        }
    }

    /// A link that was dialled to this node is there. A session that had none is told by it what it missed.
    pub(super) fn on_link_up(&mut self, link: LinkId, role: Role, lane: Lane, sender: u64) {
        let session = SessionId(sender);
        if role == Role::Client && lane == Lane::Control && !self.session_links.contains_key(&session) {
            self.on_session_link(session, link);
        }
    }

    /// The session listens on that link from now on.
    pub(super) fn on_session_link(&mut self, session: SessionId, link: LinkId) {
        if self.session_links.insert(session, link) == Some(link) {
            return;
        }
        if let Some(leading) = &mut self.leading {
            leading.gate.send_again(self.now, session);
            self.send_recalls();
        }
    }

    /// A link that was dialled to this node is gone.
    pub(super) fn on_link_down(&mut self, link: LinkId, sender: u64) {
        let session = SessionId(sender);
        if self.session_links.get(&session) == Some(&link) {
            self.session_links.remove(&session);
        }
    }

    /// Recalls that are to be said again, and sessions that are too silent to be waited for.
    pub(super) fn pursue_recalls(&mut self) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        leading.gate.cool(now);
        if leading.is_grace_over(now) {
            for session in leading.gate.unknown() {
                tracing::info!(%session, "has not told what it caches: void");
                leading.rights.void(session);
                leading.gate.know(session);
            }
        }
        // The recall goes on without them.
        for look in leading.gate.take_old_looks(now) {
            self.fail(look.asker, Status::Unavailable);
        }
        self.send_recalls();
        self.pursue_silent();
    }

    /// A silent session gives back what it caches by its silence; what it writes alone goes with it.
    fn pursue_silent(&mut self) {
        let Some(leading) = &self.leading else { return };
        let silent: Vec<SessionId> = leading.gate.recalled_sessions().into_iter().filter(|session| self.is_silent(*session)).collect();
        for session in silent {
            self.void_rights(session);
            let waited_for = self.leading.as_ref().is_some_and(|leading| !leading.gate.outstanding_of(session).is_empty());
            if waited_for {
                tracing::warn!(%session, "stands in the way and is silent");
                self.pursue(Duty::Evict(session), Command::EndSession { session });
            }
        }
    }

    /// The session says that it has obeyed.
    pub(super) fn on_recalled(&mut self, session: SessionId, term: Term, number: u64) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        let Some(outstanding) = leading.gate.outstanding(number).filter(|one| one.session == session && leading.term() == term) else {
            return;
        };
        let obeyed = outstanding.items.iter().all(|item| match item {
            Recall::Inode { ino, keep } => keep.contains(Rights::WRITE) || self.namespace.writer(*ino) != Some(session),
            Recall::Name { .. } => true,
        });
        if !obeyed {
            return tracing::debug!(%session, number, "has not given back what it writes alone");
        }
        let Some(outstanding) = leading.gate.settle(now, number) else { return };
        for item in &outstanding.items {
            match item {
                Recall::Inode { ino, keep } => leading.rights.remove(session, *ino, Rights::READ.with(Rights::NAMES).without(*keep)),
                Recall::Name { directory, .. } => leading.rights.remove(session, *directory, Rights::READ),
            }
        }
    }

    /// Answers a query whose leadership is proven, or lets it wait for another session's writes.
    pub(super) fn answer_query(&mut self, asker: Asker, session: SessionId, query: Query) {
        if let Query::Settle { told } = query
            && self.waits_for_writers(asker, session, told)
        {
            return;
        }
        let look = claims::looks_at(&self.namespace, &query);
        let writer = look.and_then(|ino| Some((ino, self.namespace.writer(ino).filter(|writer| *writer != session)?)));
        if let Some((ino, writer)) = writer.filter(|_| !self.sabotaged(Sabotage::RecallIgnored)) {
            let Some(leading) = &mut self.leading else { return self.fail(asker, Status::NotLeader) };
            let waiter = leading.gate.add_look(Look { asker, session, query, since: self.now });
            self.want_recalls(waiter, vec![(writer, Recall::Inode { ino, keep: Rights::READ })]);
            return;
        }
        match self.query(session, &query) {
            Ok(mut answer) => {
                let grants = self.grant_with_answer(asker, session, &query, &mut answer);
                let (term, epoch) = (self.leads().unwrap_or_default(), self.map.epoch);
                self.answer(asker, Ok(Response::Answered { answer, grants, term, epoch }), Bytes::new());
            }
            Err(status) => self.fail(asker, status),
        }
    }

    /// Recalls `WRITE` from whoever has it; with it comes what was written. Tells whether there is anybody to wait for: later, when they
    /// have been `told`, those who were given the right since do not count.
    fn waits_for_writers(&mut self, asker: Asker, session: SessionId, told: bool) -> bool {
        let Some(leading) = &mut self.leading else { return false };
        let writers =
            self.namespace.writers().filter(|&(ino, writer)| writer != session && (!told || leading.gate.is_recalled_from(writer, ino)));
        let items: Vec<(SessionId, Recall)> = writers.map(|(ino, writer)| (writer, Recall::Inode { ino, keep: Rights::READ })).collect();
        if items.is_empty() {
            return false;
        }
        // Nobody loses what he wrote for being silent while others only want to be sure.
        if items.iter().any(|(writer, _)| self.is_silent(*writer)) {
            self.fail(asker, Status::Unavailable);
            return true;
        }
        let Some(leading) = &mut self.leading else { return false };
        let waiter = leading.gate.add_look(Look { asker, session, query: Query::Settle { told: true }, since: self.now });
        self.want_recalls(waiter, items);
        true
    }

    /// Whether the session is given rights at all, by an answer over that link: only one that a later recall cannot overtake.
    fn may_cache(&self, asker: Asker, session: SessionId) -> bool {
        let open = |known: &crate::namespace::Session| known.caches && known.state == SessionState::Open;
        self.session_links.get(&session) == Some(&asker.link)
            && self.namespace.session(session).is_some_and(open)
            && self.leading.as_ref().is_some_and(|leading| !leading.gate.is_stalled(self.now, session))
            && !self.is_silent(session)
    }

    /// Gives a right, unless the inode is about to change, was contended lately, is written by another session, or the right is still on its
    /// way back from this one.
    fn grant(&mut self, session: SessionId, ino: InodeId, rights: Rights) -> Option<Grant> {
        let writer = self.namespace.writer(ino);
        let leading = self.leading.as_mut()?;
        let free = !leading.gate.is_closed(ino)
            && !leading.gate.is_cooling(self.now, ino)
            && !leading.gate.is_losing(session, ino, rights)
            && writer.is_none_or(|writer| writer == session);
        (free && leading.rights.grant(session, ino, rights)).then_some(Grant { ino, rights })
    }

    /// What the answer to a query lets the session cache. Says in a listing which entries may be shown.
    fn grant_with_answer(&mut self, asker: Asker, session: SessionId, query: &Query, answer: &mut Answer) -> Vec<Grant> {
        if let Answer::Directory { entries, .. } = answer {
            for entry in entries {
                entry.current = self.namespace.writer(entry.attributes.ino).is_none_or(|writer| writer == session);
            }
        }
        if !self.may_cache(asker, session) {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        match (query, answer) {
            (Query::Lookup { parent, .. }, Answer::Attributes(attributes)) => {
                wanted.extend([(*parent, Rights::NAMES), (attributes.ino, Rights::READ)]);
            }
            (Query::Lookup { parent, .. }, Answer::Absent) => wanted.push((*parent, Rights::NAMES)),
            (Query::ReadDirectory { ino, .. }, Answer::Directory { entries, .. }) => {
                wanted.push((*ino, Rights::NAMES.with(Rights::READ)));
                wanted.extend(entries.iter().filter(|entry| entry.current).map(|entry| (entry.attributes.ino, Rights::READ)));
            }
            (Query::Attributes { ino } | Query::ReadLink { ino } | Query::Extents { ino, .. } | Query::Hold { ino, .. }, _) => {
                wanted.push((*ino, Rights::READ));
            }
            _ => {}
        }
        wanted.into_iter().filter_map(|(ino, rights)| self.grant(session, ino, rights)).collect()
    }

    /// What the answer to an operation, just applied for the first time, lets the session cache.
    pub(super) fn grant_with_reply(&mut self, asker: Asker, session: SessionId, op: &Op, replied: &Replied) -> Vec<Grant> {
        if !self.may_cache(asker, session) {
            return Vec::new();
        }
        let mut grants = Vec::new();
        // The session knows by its own operation what became of the names: it goes on with what it had.
        for (directory, _) in claims::names(op) {
            let had = self.leading.as_ref().is_some_and(|leading| leading.rights.held(session, directory).contains(Rights::NAMES));
            grants.extend(if had { self.grant(session, directory, Rights::NAMES) } else { None });
        }
        let shown = match replied {
            Replied::Entry { attributes, .. }
            | Replied::Attributes(attributes)
            | Replied::Written { attributes, .. }
            | Replied::Ranged { attributes, .. } => Some(attributes.ino),
            Replied::Acquired { attributes, granted: true } => Some(attributes.ino),
            _ => None,
        };
        // Who makes a directory knows all its names.
        let made = matches!((op, replied), (Op::Create { kind: NewKind::Directory, .. }, Replied::Entry { created: true, .. }));
        let rights = if made { Rights::READ.with(Rights::NAMES) } else { Rights::READ };
        grants.extend(shown.and_then(|ino| self.grant(session, ino, rights)));
        grants
    }

    fn refuse_to_acquire(&mut self, asker: Asker, claim: Option<Claim>) {
        let Some(ino) = claim.and_then(|claim| claim.acquires) else { return };
        let (term, epoch) = (self.leads().unwrap_or_default(), self.map.epoch);
        match self.namespace.attributes(ino) {
            Ok(attributes) => {
                let replied = Replied::Acquired { granted: false, attributes };
                self.answer(asker, Ok(Response::Replied { replied, grants: Vec::new(), term, epoch }), Bytes::new());
            }
            Err(status) => self.fail(asker, status),
        }
    }

    /// The session gives up rights of its own accord.
    pub(super) fn on_given_up(&mut self, session: SessionId, rights: &[(InodeId, Rights)]) {
        if let Some(leading) = &mut self.leading {
            rights.iter().for_each(|&(ino, rights)| leading.rights.remove(session, ino, rights));
        }
    }

    /// A request was applied: what it closed is open again.
    pub(super) fn pass_gate(&mut self, session: SessionId, number: RequestNumber) {
        if let Some(leading) = &mut self.leading {
            leading.gate.leave((session, number));
        }
    }
}
