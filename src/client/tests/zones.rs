//! Scripts about fault zones: copies lie apart, also when owners are full, silent or dead.

use super::*;

/// Four nodes, two in each of two zones.
fn zoned() -> World {
    let mut world = World::new();
    world.nodes.push(super::Node::default());
    let fourth = Member { id: NodeId(103), address: address(3), ..world.map.members[0].clone() };
    world.map.members.push(fourth);
    for (member, zone) in world.map.members.iter_mut().zip(["east", "east", "west", "west"]) {
        member.zone = zone.into();
    }
    world.map.epoch = Epoch(2);
    world.call(touch()).unwrap();
    world.run_until(|world| world.core.map().is_some_and(|map| map.epoch == Epoch(2)));
    world
}

/// Writes so many chunks; gives the holders of each, as indexes of nodes.
fn write(world: &mut World, chunks: usize, seed: u64) -> Vec<Vec<u64>> {
    world.places.clear();
    world.write(WriteAt::Offset(0), noise(chunks << 20, seed)).unwrap();
    world.places.values().map(|place| place.holders.iter().map(|node| node.0 - 100).collect()).collect()
}

fn lie_apart(holders: &[u64]) -> bool {
    holders.iter().any(|&node| node < 2) && holders.iter().any(|&node| node >= 2)
}

#[test]
fn copies_lie_in_different_zones() {
    let mut world = zoned();
    let holders = write(&mut world, 12, 1);
    assert!(holders.len() == 12 && holders.iter().all(|holders| lie_apart(holders)), "{holders:?}");
}

#[test]
fn a_full_owner_is_replaced_from_its_own_zone() {
    let mut world = zoned();
    world.nodes[2].full = true;
    let holders = write(&mut world, 12, 2);
    assert!(holders.iter().all(|holders| lie_apart(holders) && !holders.contains(&2)), "{holders:?}");
    // A zone without room is no reason to refuse.
    world.nodes[3].full = true;
    let holders = write(&mut world, 4, 3);
    assert!(holders.iter().all(|holders| holders.contains(&0) && holders.contains(&1)), "{holders:?}");
}

#[test]
fn a_dead_owner_is_replaced_from_its_own_zone() {
    let mut world = zoned();
    // Before the map knows of it, and after.
    world.kill(1);
    let holders = write(&mut world, 12, 4);
    assert!(holders.iter().all(|holders| lie_apart(holders) && !holders.contains(&1)), "{holders:?}");
    world.map.members[1].state = MemberState::Dead;
    world.map.epoch = Epoch(3);
    let holders = write(&mut world, 12, 5);
    assert!(holders.iter().all(|holders| lie_apart(holders)), "{holders:?}");
    // A living node of the same zone is better than a silent one of another.
    world.nodes[3].silent = true;
    world.kill(2);
    world.map.members.push(Member { id: NodeId(104), address: address(4), zone: "east".into(), ..world.map.members[0].clone() });
    world.nodes.push(super::Node::default());
    world.map.epoch = Epoch(4);
    let holders = write(&mut world, 3, 6);
    assert!(holders.iter().all(|holders| holders.contains(&0) && holders.contains(&4)), "{holders:?}");
}
