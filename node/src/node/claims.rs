//! What an operation changes and looks at, as the tree stands: what the gate has to close, and whose rights are in its way.

use dfs::types::{InodeId, Name, Rights, SessionId};
use dfs::wire::message::Recall;
use dfs::wire::namespace::{Op, Query, RenameMode};

use super::rights::{Held, RightsTable};
use crate::namespace::Namespace;
use dfs::limits;

/// A name in a directory.
pub(super) type NameKey = (InodeId, Name);

/// What an operation needs of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// Inodes that it changes, and what others may keep of each.
    pub changes: Vec<(InodeId, Rights)>,
    /// Inodes of which its answer tells the attributes.
    pub looks: Vec<InodeId>,
    /// Names that it makes, takes or moves.
    pub names: Vec<NameKey>,
    /// The file that it wants to write alone.
    pub acquires: Option<InodeId>,
}

/// Whether the operation passes without any look at rights: it changes nothing that others may cache.
pub(super) fn is_free(op: &Op) -> bool {
    // A fold moves bytes and leaves them: who reads by an older layout finds them for a while, and then asks anew. Bytes written behind
    // are refused unless nobody else has any right.
    // Giving up a lock is nobody's business.
    let unlocks = matches!(op, Op::SetLock { lock, .. } if lock.mode.is_none());
    unlocks || matches!(op, Op::Fold { .. } | Op::Yield { .. } | Op::Reserve { .. } | Op::Write { behind: Some(_), .. })
}

/// The names that an operation makes, takes or moves, sorted, each once.
pub(super) fn names(op: &Op) -> Vec<NameKey> {
    let mut names = match op {
        Op::Create { parent, name, .. } | Op::Link { parent, name, .. } | Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
            vec![(*parent, name.clone())]
        }
        Op::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            vec![(*from_parent, from_name.clone()), (*to_parent, to_name.clone())]
        }
        _ => Vec::new(),
    };
    names.sort();
    names.dedup();
    names
}

/// What the operation needs, once its names are its own.
pub(super) fn claim(namespace: &Namespace, op: &Op) -> Claim {
    let child = |parent: &InodeId, name: &Name| namespace.child(*parent, name);
    let mut claim = Claim::default();
    match op {
        Op::Create { parent, name, .. } => match child(parent, name) {
            Some(ino) => claim.looks.push(ino),
            None => claim.change_names(op),
        },
        Op::Link { ino, .. } => {
            claim.change_names(op);
            claim.change(*ino, Rights::NAMES);
        }
        Op::Unlink { parent, name } | Op::Rmdir { parent, name } => {
            claim.change_names(op);
            child(parent, name).into_iter().for_each(|ino| claim.change(ino, Rights::NONE));
        }
        Op::Rename { from_parent, from_name, to_parent, to_name, mode } => {
            claim.change_names(op);
            // A directory that moves takes its names along; one that is replaced is gone.
            child(from_parent, from_name).into_iter().for_each(|ino| claim.change(ino, Rights::NAMES));
            let kept = if *mode == RenameMode::Exchange { Rights::NAMES } else { Rights::NONE };
            child(to_parent, to_name).into_iter().for_each(|ino| claim.change(ino, kept));
        }
        Op::SetAttributes { ino, .. }
        | Op::Write { ino, .. }
        | Op::Allocate { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. } => claim.change(*ino, Rights::NAMES),
        Op::Copy { from, to, .. } => {
            claim.change(*to, Rights::NAMES);
            claim.looks.push(*from);
        }
        Op::Acquire { ino } => {
            claim.change(*ino, Rights::NONE);
            claim.acquires = Some(*ino);
        }
        // Who writes alone may have given locks that are not in the log.
        Op::SetLock { ino, .. } => claim.looks.push(*ino),
        Op::Fold { .. } | Op::Yield { .. } | Op::Reserve { .. } => {}
    }
    claim
}

impl Claim {
    fn change(&mut self, ino: InodeId, kept: Rights) {
        match self.changes.iter_mut().find(|(changed, _)| *changed == ino) {
            Some((_, keep)) => *keep = Rights(keep.0 & kept.0),
            None => self.changes.push((ino, kept)),
        }
    }

    /// Directories in which names change; their holders are told the names.
    fn change_names(&mut self, op: &Op) {
        self.names = names(op);
        for (directory, _) in self.names.clone() {
            self.change(directory, Rights::NAMES);
        }
    }

    /// What sessions other than `session` have to give back first, as far as this leader knows. `told`: names that they have forgotten
    /// for this very operation.
    pub fn in_way(
        &self,
        session: SessionId,
        told: &[(SessionId, Recall)],
        rights: &RightsTable,
        namespace: &Namespace,
    ) -> Vec<(SessionId, Recall)> {
        let other_writer = |ino: InodeId| namespace.writer(ino).filter(|&writer| writer != session);
        let mut found = Vec::new();
        for &(ino, kept) in &self.changes {
            let writer = other_writer(ino);
            found.extend(writer.map(|writer| (writer, Recall::Inode { ino, keep: Rights::NONE })));
            for (holder, held) in rights.holders(ino).filter(|&(holder, _)| holder != session && Some(holder) != writer) {
                self.find_holder((holder, held), (ino, kept), told, &mut found);
            }
        }
        let looked_at = self.looks.iter().filter_map(|&ino| Some((other_writer(ino)?, Recall::Inode { ino, keep: Rights::READ })));
        found.extend(looked_at);
        found
    }

    /// What one session has to give back of one inode that changes.
    fn find_holder(
        &self,
        (holder, held): (SessionId, Held),
        (ino, kept): (InodeId, Rights),
        told: &[(SessionId, Recall)],
        found: &mut Vec<(SessionId, Recall)>,
    ) {
        let names: Vec<(SessionId, Recall)> = self
            .names
            .iter()
            .filter(|(directory, _)| *directory == ino)
            .map(|(directory, name)| (holder, Recall::Name { directory: *directory, name: name.clone() }))
            .collect();
        let knows_names = held.rights.contains(Rights::NAMES) && kept.contains(Rights::NAMES);
        if knows_names && !names.is_empty() {
            let untold: Vec<_> = names.into_iter().filter(|name| !told.contains(name)).collect();
            if held.notices < limits::NAME_NOTICES_MAX || untold.is_empty() {
                found.extend(untold);
            } else {
                found.push((holder, Recall::Inode { ino, keep: Rights::NONE }));
            }
        } else if knows_names && held.rights.contains(Rights::READ) {
            found.push((holder, Recall::Inode { ino, keep: Rights::NAMES }));
        } else if !knows_names {
            found.push((holder, Recall::Inode { ino, keep: Rights::NONE }));
        }
    }
}

/// The inode of which the answer to a query tells what only its writer may know.
pub(super) fn looks_at(namespace: &Namespace, query: &Query) -> Option<InodeId> {
    match query {
        Query::Lookup { parent, name } => namespace.child(*parent, name),
        Query::Attributes { ino } | Query::Extents { ino, .. } | Query::Seek { ino, .. } | Query::TestLock { ino, .. } => Some(*ino),
        // Bytes that somebody has not committed yet take file capabilities away.
        Query::Xattr { ino, .. } | Query::Xattrs { ino } => Some(*ino),
        Query::Resolve { .. } => match namespace.query(query) {
            Ok(dfs::wire::namespace::Answer::Attributes(attributes)) => Some(attributes.ino),
            _ => None,
        },
        // A listing says of each entry whether it is current; opening tells nothing that is believed without a grant.
        _ => None,
    }
}
