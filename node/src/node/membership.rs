//! Who should vote and who should listen: a pure function of who is there.
//!
//! One voter below three nodes, three from then on, five from five on. A dead voter is replaced by a caught-up listener in the same change
//! that removes it.

use std::collections::{BTreeSet, VecDeque};

use dfs::cluster_map::voters_wanted;
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

/// Voters and learners as they should be, `standings` by id. At most `most` voters, unless there are more already.
///
/// A voter that is gone gives its place to a spare. Without one it keeps it, so that an even number of voters never arises, until two of
/// five are gone: then both go at once, and the three that are left may lose another. Nobody else ever loses the vote.
pub(super) fn plan_configuration(
    me: NodeId,
    present: &Configuration,
    standings: &[Standing],
    most: usize,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let standing = |node: NodeId| standings.iter().find(|standing| standing.node == node);
    let mut voters = present.voters.clone();
    let eligible = |standing: &&Standing| standing.living && !standing.leaving;
    let mut spares =
        standings.iter().filter(eligible).filter(|spare| spare.caught_up && !present.is_voter(spare.node)).map(|spare| spare.node);
    let gone = |node: NodeId| node != me && standing(node).is_none_or(|standing| standing.replaceable || standing.leaving);
    let mut going: Vec<NodeId> = present.voters.iter().copied().filter(|&voter| gone(voter)).collect();
    // The dead first: who is only leaving still votes.
    going.sort_by_key(|&voter| standing(voter).is_some_and(|standing| standing.living));
    let mut unreplaced = VecDeque::new();
    for voter in going {
        match spares.next() {
            Some(spare) => {
                voters.remove(&voter);
                voters.insert(spare);
            }
            None => unreplaced.push_back(voter),
        }
    }
    if voters.len() == 2 {
        // Two voters cannot lose one; this only happens while the last voter hands over.
        unreplaced.pop_front().iter().for_each(|voter| _ = voters.remove(voter));
    }
    while voters.len() > limits::VOTERS {
        let step = if voters.len().is_multiple_of(2) { 1 } else { 2 };
        if unreplaced.len() < step {
            break;
        }
        let mut left = voters.clone();
        unreplaced.drain(..step).for_each(|voter| _ = left.remove(&voter));
        // Those that leave still vote, and others may be silent: without them there might be no majority.
        let living = left.iter().filter(|&&voter| voter == me || standing(voter).is_some_and(|standing| standing.living)).count();
        if 2 * living <= left.len() {
            break;
        }
        voters = left;
    }
    let wanted = voters_wanted(standings.iter().filter(eligible).count()).min(most);
    let spares: Vec<NodeId> = spares.collect();
    let reachable = [limits::VOTERS_MAX, limits::VOTERS].into_iter().find(|&count| count <= wanted && count <= voters.len() + spares.len());
    if let Some(count) = reachable {
        let missing = count.saturating_sub(voters.len());
        voters.extend(spares.into_iter().take(missing));
    }
    let learners = standings.iter().filter(|standing| standing.living && !voters.contains(&standing.node));
    let learners = learners.map(|standing| standing.node).filter(|&node| node != me).collect();
    (voters, learners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs::random::Random;

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
        plan_configuration(NodeId(1), present, standings, limits::VOTERS_MAX)
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

    #[test]
    fn five_vote_once_there_are_five() {
        let five: Vec<Standing> = (1..=5).map(well).collect();
        assert_eq!(plan(&present(&[1, 2, 3], &[4, 5]), &five).0, ids(&[1, 2, 3, 4, 5]));
        assert_eq!(plan(&present(&[1], &[2, 3, 4, 5]), &five).0, ids(&[1, 2, 3, 4, 5]));
        // Four never vote, however many there are.
        let late = Standing { caught_up: false, ..well(5) };
        assert_eq!(plan(&present(&[1, 2, 3], &[4, 5]), &[well(1), well(2), well(3), well(4), late]).0, ids(&[1, 2, 3]));
        assert_eq!(plan(&present(&[1], &[2, 3, 4, 5]), &[well(1), well(2), well(3), well(4), late]).0, ids(&[1, 2, 3]));
        let leaving = Standing { leaving: true, ..well(5) };
        assert_eq!(plan(&present(&[1, 2, 3], &[4, 5]), &[well(1), well(2), well(3), well(4), leaving]).0, ids(&[1, 2, 3]));
        let seven: Vec<Standing> = (1..=7).map(well).collect();
        assert_eq!(plan(&present(&[1, 2, 3, 4, 5], &[6, 7]), &seven), (ids(&[1, 2, 3, 4, 5]), ids(&[6, 7])));
        assert_eq!(plan_configuration(NodeId(1), &present(&[1], &[2, 3]), &seven, 1).0, ids(&[1]), "while the cluster is formed");
    }

    #[test]
    fn five_become_three_when_two_are_gone_and_nobody_replaces_them() {
        let five = present(&[1, 2, 3, 4, 5], &[]);
        // One dead: four living of five may lose one more, as three of three may.
        assert_eq!(plan(&five, &[well(1), dead(2), well(3), well(4), well(5)]).0, five.voters);
        assert_eq!(plan(&five, &[well(1), dead(2), dead(3), well(4), well(5)]).0, ids(&[1, 4, 5]));
        let patient = Standing { replaceable: false, ..dead(3) };
        assert_eq!(plan(&five, &[well(1), dead(2), patient, well(4), well(5)]).0, five.voters, "it may come back");
        let spare = present(&[1, 2, 3, 4, 5], &[6]);
        assert_eq!(plan(&spare, &[well(1), dead(2), well(3), well(4), well(5), well(6)]).0, ids(&[1, 3, 4, 5, 6]));
        assert_eq!(plan(&spare, &[well(1), dead(2), dead(3), well(4), well(5), well(6)]).0, ids(&[1, 3, 4, 5, 6]), "still five");
        // Who leaves is alive: the dead go before it.
        let leaving = Standing { leaving: true, ..well(2) };
        assert_eq!(plan(&five, &[well(1), leaving, well(3), well(4), well(5)]).0, five.voters);
        assert_eq!(plan(&spare, &[well(1), leaving, dead(3), well(4), well(5), well(6)]).0, ids(&[1, 2, 4, 5, 6]));
        assert_eq!(plan(&five, &[well(1), leaving, dead(3), dead(4), well(5)]).0, ids(&[1, 2, 5]));
        assert_eq!(plan(&present(&[1, 2, 3, 4], &[]), &[well(1), dead(2), well(3), well(4)]).0, ids(&[1, 3, 4]));
    }

    /// Nodes in random states, and some of them voting; of the voters a majority lives, or there would be no leader to plan.
    fn draw(random: &mut Random) -> (Configuration, Vec<Standing>) {
        loop {
            let count = 1 + random.below(8);
            let mut standings: Vec<Standing> = vec![well(1)];
            for node in 2..=count {
                let mut standing = if random.chance(1, 3) { dead(node) } else { well(node) };
                standing.replaceable &= random.chance(2, 3);
                standing.caught_up &= random.chance(3, 4);
                standing.leaving = standing.living && random.chance(1, 6);
                standings.push(standing);
            }
            let mut voters = ids(&[1]);
            let size = [1, 3, 3, 5, 5, 2, 4][random.below(7) as usize];
            (0..20).for_each(|_| {
                if voters.len() < size {
                    // One beyond the list is no member any more.
                    voters.insert(NodeId(1 + random.below(count + 1)));
                }
            });
            let living = voters.iter().filter(|&&voter| lives(&standings, voter)).count();
            if 2 * living > voters.len() {
                return (Configuration { voters, ..Default::default() }, standings);
            }
        }
    }

    fn lives(standings: &[Standing], node: NodeId) -> bool {
        standings.iter().any(|standing| standing.node == node && standing.living)
    }

    #[test]
    fn no_step_loses_the_majority_and_all_steps_end() {
        let mut random = Random::new(7);
        for round in 0..20_000 {
            let (mut present, mut standings) = draw(&mut random);
            let mut steps = 0;
            loop {
                let (voters, learners) = plan(&present, &standings);
                let context = format!("round {round}: {present:?} became {voters:?} of {standings:?}");
                let living = voters.iter().filter(|&&voter| lives(&standings, voter)).count();
                assert!(2 * living > voters.len(), "a majority of the new voters lives: {context}");
                assert!(voters.contains(&NodeId(1)) && voters.is_disjoint(&learners), "{context}");
                assert!(!voters.len().is_multiple_of(2) || present.voters.len().is_multiple_of(2), "{context}");
                assert!(voters.len() >= present.voters.len().min(limits::VOTERS) || present.voters.len() == 2, "{context}");
                let find = |node: &NodeId| standings.iter().find(|standing| standing.node == *node);
                let may_go = |node: &NodeId| find(node).is_none_or(|standing| standing.replaceable || standing.leaving);
                assert!(present.voters.difference(&voters).all(may_go), "only who is gone loses the vote: {context}");
                let may_come = |node: &NodeId| find(node).is_some_and(|one| one.living && !one.leaving && one.caught_up);
                assert!(voters.difference(&present.voters).all(may_come), "{context}");
                if voters == present.voters {
                    break;
                }
                (present.voters, present.learners) = (voters, learners);
                steps += 1;
                assert!(steps <= 2, "{context}");
            }
            // Once everybody has caught up, and the silent are given up, the number is right.
            standings.iter_mut().for_each(|standing| (standing.caught_up, standing.replaceable) = (standing.living, !standing.living));
            let eligible = standings.iter().filter(|standing| standing.living && !standing.leaving).count();
            (0..3).for_each(|_| (present.voters, present.learners) = plan(&present, &standings));
            assert_eq!(plan(&present, &standings).0, present.voters, "at rest");
            assert!(present.voters.len() >= voters_wanted(eligible), "{present:?} of {standings:?}");
            let unfit = |voter: &&NodeId| !standings.iter().any(|one| one.node == **voter && one.living && !one.leaving);
            let others = present.voters.iter().filter(|&&voter| voter != NodeId(1)).filter(unfit).count();
            let spare = standings.iter().any(|one| one.living && !one.leaving && !present.voters.contains(&one.node));
            assert!(others == 0 || !spare, "a spare has every place that is free: {present:?} of {standings:?}");
        }
    }
}
