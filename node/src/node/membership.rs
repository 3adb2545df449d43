//! Who should vote and who should listen: a pure function of who is there.
//!
//! One voter below three nodes, three from then on. A dead voter is replaced by a caught-up listener in the same change that removes it.

use std::collections::BTreeSet;

use dfs::limits;
use dfs::types::NodeId;

use crate::raft::Configuration;

/// What the leader knows of one member, or of a voter that is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub node: NodeId,
    /// A member that has not been declared dead.
    pub living: bool,
    /// Wants to go.
    pub leaving: bool,
    /// Close to the end of the log.
    pub caught_up: bool,
    /// If a voter: its place may be given away.
    pub replaceable: bool,
}

/// Voters and learners as they should be, `standings` by id.
pub(super) fn plan_configuration(
    me: NodeId,
    present: &Configuration,
    standings: &[Standing],
    wanting: usize,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let standing = |node: NodeId| standings.iter().find(|standing| standing.node == node);
    let mut voters = present.voters.clone();
    let eligible = |standing: &&Standing| standing.living && !standing.leaving;
    let mut spares =
        standings.iter().filter(eligible).filter(|spare| spare.caught_up && !present.is_voter(spare.node)).map(|spare| spare.node);
    let gone = |node: NodeId| node != me && standing(node).is_none_or(|standing| standing.replaceable || standing.leaving);
    for voter in present.voters.iter().copied().filter(|&voter| gone(voter)) {
        if let Some(spare) = spares.next() {
            voters.remove(&voter);
            voters.insert(spare);
        } else if voters.len() == 2 {
            // Two voters cannot lose one; this only happens while the last voter hands over.
            voters.remove(&voter);
        }
    }
    let enough_nodes = standings.iter().filter(eligible).count() >= wanting;
    let spares: Vec<NodeId> = spares.collect();
    if enough_nodes && voters.len() < wanting && voters.len() + spares.len() >= wanting {
        let missing = wanting - voters.len();
        voters.extend(spares.into_iter().take(missing));
    }
    let learners = standings.iter().filter(|standing| standing.living && !voters.contains(&standing.node));
    let learners = learners.map(|standing| standing.node).filter(|&node| node != me).collect();
    (voters, learners)
}

/// Voters wanted.
pub(super) const WANTED: usize = limits::VOTERS;

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    fn present(voters: &[u64], learners: &[u64]) -> Configuration {
        Configuration { voters: ids(voters), learners: ids(learners), ..Default::default() }
    }

    fn well(node: u64) -> Standing {
        Standing { node: NodeId(node), living: true, leaving: false, caught_up: true, replaceable: false }
    }

    fn dead(node: u64) -> Standing {
        Standing { living: false, caught_up: false, replaceable: true, ..well(node) }
    }

    fn plan(present: &Configuration, standings: &[Standing]) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        plan_configuration(NodeId(1), present, standings, WANTED)
    }

    #[test]
    fn one_voter_below_three_nodes_three_from_then_on() {
        assert_eq!(plan(&present(&[1], &[]), &[well(1), well(2)]), (ids(&[1]), ids(&[2])));
        let late = Standing { caught_up: false, ..well(3) };
        assert_eq!(plan(&present(&[1], &[2]), &[well(1), well(2), late]), (ids(&[1]), ids(&[2, 3])));
        assert_eq!(plan(&present(&[1], &[2, 3]), &[well(1), well(2), well(3), well(4)]), (ids(&[1, 2, 3]), ids(&[4])));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_spare_and_kept_without_one() {
        let three = present(&[1, 2, 3], &[]);
        assert_eq!(plan(&three, &[well(1), dead(2), well(3)]), (ids(&[1, 2, 3]), ids(&[])));
        let spare = present(&[1, 2, 3], &[4]);
        assert_eq!(plan(&spare, &[well(1), dead(2), well(3), well(4)]), (ids(&[1, 3, 4]), ids(&[])));
        let patient = Standing { replaceable: false, ..dead(2) };
        assert_eq!(plan(&spare, &[well(1), patient, well(3), well(4)]), (ids(&[1, 2, 3]), ids(&[4])));
        // A voter that is no member any more: its address has a new incarnation.
        assert_eq!(plan(&spare, &[well(1), well(3), well(4)]), (ids(&[1, 3, 4]), ids(&[])));
    }

    #[test]
    fn who_leaves_gives_its_vote_away() {
        let leaving = Standing { leaving: true, ..well(2) };
        let (voters, _) = plan(&present(&[1, 2, 3], &[4]), &[well(1), leaving, well(3), well(4)]);
        assert_eq!(voters, ids(&[1, 3, 4]));
        assert_eq!(plan(&present(&[1, 2], &[]), &[well(1), leaving]).0, ids(&[1]));
        assert_eq!(plan(&present(&[1, 2, 3], &[]), &[well(1), leaving, well(3)]).0, ids(&[1, 2, 3]));
    }
}
