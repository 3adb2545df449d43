//! Members, voters, and the cluster map that they make.

use dfs::cluster_map::{Member, MemberState};
use dfs::limits;
use dfs::status::Status;
use dfs::types::{Address, ClusterId, Epoch, NodeId, SessionId};
use dfs::wire::namespace::Replied;

use super::Namespace;
use super::command::Effect;

impl Namespace {
    pub(super) fn found(&mut self, cluster: ClusterId, replicas: u8, awaited: &[Address]) -> Result<Replied, Status> {
        if self.header.map.cluster != ClusterId::default() {
            return Err(Status::Conflict);
        }
        if cluster == ClusterId::default() || awaited.len() > limits::NODES_MAX || !(1..=limits::HOLDERS_MAX).contains(&(replicas as usize))
        {
            return Err(Status::InvalidArgument);
        }
        (self.header.map.cluster, self.header.map.replicas) = (cluster, replicas);
        self.header.map.awaited = awaited.to_vec();
        self.header.map.awaited.sort_unstable();
        self.header.map.awaited.dedup();
        self.advance_epoch();
        Ok(Replied::Done)
    }

    /// Goes on with the tree as it stands, as a new cluster whose only member and voter is `founder`. Outside the log, but in the place of an
    /// entry, so that a state of before and one of after never share an index. All sessions end: their clients belong to the old cluster,
    /// and what they had uploaded without committing it is garbage. Chunk records keep naming nodes of the old cluster; whoever has the
    /// bytes says so anew.
    pub fn go_on(&mut self, cluster: ClusterId, founder: Member, epoch: Epoch) {
        assert!(epoch > self.header.map.epoch, "epochs only grow");
        let sessions: Vec<SessionId> = self.sessions().map(|(session, _)| session).collect();
        for session in sessions {
            self.end_session(session).expect("it was just listed");
        }
        let members: Vec<NodeId> = self.header.map.members.iter().map(|member| member.id).collect();
        members.into_iter().for_each(|member| self.drop_member(member));
        if self.header.lineage.len() >= limits::LINEAGE_MAX {
            self.header.lineage.pop_front();
        }
        self.header.lineage.push_back(self.header.map.cluster);
        self.header.applied += 1;
        let map = &mut self.header.map;
        (map.cluster, map.epoch, map.voters, map.members) = (cluster, epoch, vec![founder.id], vec![founder]);
        map.awaited.clear();
        self.capacity = dfs::capacity::capacity(&self.header.map);
        // They were for a leader of the old cluster.
        self.effects.clear();
    }

    /// The clusters whose tree this one has gone on with, oldest first.
    pub fn lineage(&self) -> impl Iterator<Item = ClusterId> {
        self.header.lineage.iter().copied()
    }

    /// Voters as a configuration change in the log left them; in log order with [`Namespace::apply`].
    pub fn set_voters(&mut self, index: u64, mut voters: Vec<NodeId>) {
        assert!(index > self.header.applied, "the log is applied in order");
        self.header.applied = index;
        voters.sort_unstable();
        voters.dedup();
        if voters != self.header.map.voters {
            self.header.map.voters = voters;
            self.advance_epoch();
        }
    }

    pub(super) fn set_member(&mut self, member: &Member) -> Result<Replied, Status> {
        check_member(member)?;
        if self.header.dead_nodes.contains(&member.id) {
            return Err(Status::Conflict);
        }
        // One declared dead may come back as long as nobody has taken its place: it has forgotten nothing, neither what it promised
        // as a voter nor its chunks. What records said of it meanwhile, its audit finds out. Nor is it forgotten that it was told to go:
        // nothing new comes to it, and what it holds is moved off.
        let old = self.header.map.member(member.id);
        let leaving = old.is_some_and(|old| old.state == MemberState::Leaving) || self.header.leaving_dead.contains(&member.id);
        let member = &Member { state: if leaving { MemberState::Leaving } else { member.state }, ..member.clone() };
        if old == Some(member) {
            return Ok(Replied::Done);
        }
        let replaced: Vec<NodeId> = self.header.map.members.iter().filter(|other| other.address == member.address).map(|m| m.id).collect();
        for node in replaced.into_iter().filter(|&node| node != member.id) {
            self.drop_member(node);
        }
        if self.header.map.members.len() >= limits::NODES_MAX && self.header.map.member(member.id).is_none() {
            let dead = self.header.map.members.iter().find(|other| other.state == MemberState::Dead).map(|other| other.id);
            self.drop_member(dead.ok_or(Status::Busy)?);
        }
        let members = &mut self.header.map.members;
        match members.binary_search_by_key(&member.id, |other| other.id) {
            Ok(index) => members[index] = member.clone(),
            Err(index) => members.insert(index, member.clone()),
        }
        self.header.leaving_dead.remove(&member.id);
        self.header.map.awaited.retain(|address| *address != member.address);
        let members = &self.header.map.members;
        self.header.map.had_three |= members.iter().filter(|other| other.state != MemberState::Dead).count() >= 3;
        self.advance_epoch();
        Ok(Replied::Done)
    }

    /// Chunk records keep naming the dead node: a walk over all of them would stop the cluster, and readers pass it over.
    pub(super) fn mark_dead(&mut self, node: NodeId) -> Result<Replied, Status> {
        let members = &mut self.header.map.members;
        let index = members.binary_search_by_key(&node, |member| member.id).map_err(|_| Status::NotMember)?;
        if members[index].state != MemberState::Dead {
            if members[index].state == MemberState::Leaving {
                self.header.leaving_dead.insert(node);
            }
            members[index].state = MemberState::Dead;
            let address = members[index].address.clone();
            self.await_again(address);
            self.advance_epoch();
        }
        Ok(Replied::Done)
    }

    pub(super) fn remove_member(&mut self, node: NodeId) -> Result<Replied, Status> {
        let address = self.header.map.member(node).ok_or(Status::NotMember)?.address.clone();
        self.drop_member(node);
        self.await_again(address);
        self.advance_epoch();
        Ok(Replied::Done)
    }

    /// While the cluster is being formed, who is gone again has to come again.
    fn await_again(&mut self, address: Address) {
        let awaited = &mut self.header.map.awaited;
        if !awaited.is_empty()
            && awaited.len() < limits::NODES_MAX
            && let Err(index) = awaited.binary_search(&address)
        {
            awaited.insert(index, address);
        }
    }

    /// Takes a member off the map for good: its id is remembered, so that a late message of its life cannot bring it back.
    fn drop_member(&mut self, node: NodeId) {
        self.header.map.members.retain(|member| member.id != node);
        self.header.leaving_dead.remove(&node);
        if self.header.dead_nodes.len() >= limits::ENDED_IDS_MAX {
            self.header.dead_nodes.pop_front();
        }
        self.header.dead_nodes.push_back(node);
    }

    fn advance_epoch(&mut self) {
        self.header.map.epoch = Epoch(self.header.map.epoch.0 + 1);
        self.capacity = dfs::capacity::capacity(&self.header.map);
        if self.effects.last() != Some(&Effect::MapChanged) {
            self.effects.push(Effect::MapChanged);
        }
    }
}

fn check_member(member: &Member) -> Result<(), Status> {
    let address_fits = match &member.address {
        Address::Tcp { host, .. } => host.len() <= 255,
        Address::Unix(path) => path.as_os_str().len() <= 255,
    };
    if member.id == NodeId(0) || member.state == MemberState::Dead || member.zone.len() > limits::ZONE_BYTES_MAX || !address_fits {
        return Err(Status::InvalidArgument);
    }
    Ok(())
}
