//! `dfs fsck`, as this node answers it: the tables by the leader, its own chunks by every node.

use bytes::Bytes;

use dfs::limits::COMMAND_VISITS_MAX;
use dfs::status::Status;
use dfs::wire::fsck::{Check, Checked, Upload};
use dfs::wire::message::{Response, Verdict};

use super::reads::Read;
use super::{Asker, Node};

impl Node {
    /// Somebody wants to know whether all is well.
    pub(super) fn on_check(&mut self, asker: Asker, check: Check) {
        if check.is_for_leader() {
            return self.read_for(asker, Read::Check(check));
        }
        match self.check_chunks(check) {
            Ok(checked) => self.answer(asker, Ok(Response::Checked(checked)), Bytes::new()),
            Err(status) => self.fail(asker, status),
        }
    }

    /// What a storage node is asked: its replica of the namespace against what it keeps. That lags a little, so the asker confirms.
    fn check_chunks(&mut self, check: Check) -> Result<Checked, Status> {
        if let Check::Missing { applied, .. } | Check::Unnamed { applied, .. } = check
            && self.namespace.applied() < applied
        {
            return Err(Status::Busy);
        }
        match check {
            Check::Missing { after, .. } => {
                let (items, next) = self.namespace.records_of(self.id, after);
                let visited = items.len() as u64;
                let missing = items.into_iter().filter(|(hash, _)| !self.chunks.contains(hash)).collect();
                Ok(Checked::Missing { visited, missing, next })
            }
            Check::NoteLost { items } => {
                Ok(Checked::Items(items.into_iter().filter(|(hash, instance)| self.chunks.note_missing(hash, *instance)).collect()))
            }
            Check::Unnamed { after, .. } => {
                let items: Vec<Upload> = self.chunks.uploads_after(after).take(COMMAND_VISITS_MAX).collect();
                let next = items.last().copied().filter(|_| items.len() == COMMAND_VISITS_MAX);
                let verdicts = self.namespace.verdicts(self.id, &items);
                let pending = verdicts.iter().filter(|verdict| **verdict == Verdict::Pending).count() as u64;
                let visited = items.len() as u64;
                Ok(Checked::Unnamed { visited, pending, unnamed: self.garbage(items, &verdicts), next })
            }
            Check::StillUnnamed { items } => {
                let held: Vec<Upload> = items.into_iter().filter(|(hash, instance)| self.chunks.holds(hash, *instance)).collect();
                let verdicts = self.namespace.verdicts(self.id, &held);
                Ok(Checked::Items(self.garbage(held, &verdicts)))
            }
            Check::Audit => {
                self.chunks.restart_audit(self.now);
                Ok(Checked::Done)
            }
            _ => Err(Status::InvalidArgument),
        }
    }

    /// What nobody refers to or will, a copy that this node has just announced aside.
    fn garbage(&self, items: Vec<Upload>, verdicts: &[Verdict]) -> Vec<Upload> {
        let uploads = items.into_iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Garbage).map(|(item, _)| item);
        uploads.filter(|(hash, instance)| !self.is_spoken_for(hash, *instance)).collect()
    }
}
