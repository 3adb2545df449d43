//! A check in small slices while the tree changes between them: it must find nothing wrong, and come to an end.

use std::time::Duration;

use dfs::cluster_map::ClusterMap;
use dfs::fsck::{self, Probe};
use dfs::status::Status;
use dfs::types::NodeId;
use dfs::wire::fsck::{Check, Checked};

use super::Run;

struct Probing<'a> {
    run: &'a mut Run,
    /// Of ten slices, before how many the tree changes.
    busy: u64,
    /// Changes that are left: the model is made for a few hundred.
    steps: u64,
    slices: u64,
}

impl Probe for Probing<'_> {
    fn map(&mut self) -> Result<ClusterMap, Status> {
        Ok(self.run.world.namespace.map().clone())
    }

    fn check(&mut self, node: Option<NodeId>, check: Check) -> Result<Checked, Status> {
        self.slices += 1;
        if self.steps > 0 && self.run.random.below(10) < self.busy {
            self.steps -= 1;
            self.run.step();
        }
        match check {
            // A slice of a few records instead of a thousand, so that everything happens between them.
            Check::Tables { after } => {
                self.run.world.namespace.note_references();
                Ok(Checked::Tables(Box::new(self.run.world.namespace.check_some(after.as_ref(), 7))))
            }
            Check::Missing { .. } => Ok(Checked::Missing { visited: 0, missing: Vec::new(), next: None }),
            Check::Unnamed { .. } => Ok(Checked::Unnamed { visited: 0, pending: 0, unnamed: Vec::new(), next: None }),
            check => {
                assert!(node.is_none() && check.is_for_leader());
                self.run.world.namespace.check(&check)
            }
        }
    }

    fn pause(&mut self, _: Duration) {}
}

#[test]
fn a_check_finds_nothing_wrong_in_a_sound_tree_that_changes_meanwhile() {
    let (mut slices, mut moving) = (0, 0);
    for seed in 0..60 {
        let mut run = Run::new(seed);
        (0..80).for_each(|_| run.step());
        for (busy, steps) in [(10, 120), (3, 50)] {
            let mut probing = Probing { run: &mut run, busy, steps, slices: 0 };
            let report = fsck::run(&mut probing, Duration::ZERO).unwrap();
            slices += probing.slices;
            moving += report.moving;
            assert!(report.is_clean(), "seed {seed}: {report:?}");
        }
        let report = fsck::run(&mut Probing { run: &mut run, busy: 0, steps: 0, slices: 0 }, Duration::ZERO).unwrap();
        assert!(report.is_clean() && report.summed && report.moving == 0, "seed {seed}, at rest: {report:?}");
        assert_eq!(report.inodes, run.nodes.len() as u64);
    }
    assert!(slices > 5000, "{slices} slices, {moving} not judged");
}
