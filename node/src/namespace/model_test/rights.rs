//! The right to write alone, in the random test against the simple tree.

use super::*;

impl Run {
    /// The right to write alone comes and goes, and bytes written behind need it.
    pub(super) fn right(&mut self) {
        let ino = self.pick(false);
        let (had, exists) = (self.writes.contains(&ino), self.nodes.contains_key(&ino));
        match self.random.below(3) {
            0 => match self.op(Op::Acquire { ino: InodeId(ino) }) {
                Ok(Replied::Acquired { granted, .. }) => {
                    assert!(granted && exists);
                    self.writes.insert(ino);
                }
                outcome => assert!(!exists && outcome == Err(Status::Stale)),
            },
            1 => {
                assert_eq!(self.op(Op::Yield { ino: InodeId(ino) }), Ok(Replied::Done));
                self.writes.remove(&ino);
            }
            _ => {
                let behind = Some(Behind { written: Timestamp { seconds: 3, nanos: 0 }, yields: true });
                // Of no length: what writing does to bytes is for the other steps.
                let patches = vec![Patch { at: WriteAt::Offset(0), length: 0, source: Source::Hole }];
                let op = Op::Write { ino: InodeId(ino), patches, chunks: Vec::new(), kill_privileges: false, behind };
                let expected = if !exists {
                    Err(Status::Stale)
                } else if had {
                    Ok(())
                } else {
                    Err(Status::RightLost)
                };
                assert_eq!(self.op(op).map(|_| ()), expected);
                self.writes.remove(&ino);
            }
        }
    }
}
