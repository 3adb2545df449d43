//! `dfs status`: what this node knows of itself and the cluster.

use dfs::cluster_map::MemberState;
use dfs::types::NodeId;
use dfs::wire::message::{MemberReport, Scrubbed, StatusReport};

use super::{Node, leader};

impl Node {
    pub(super) fn report(&self) -> StatusReport {
        let leader = self.group.as_ref().and_then(|group| group.leader());
        let usage = self.namespace.usage();
        StatusReport {
            cluster: self.cluster,
            node: self.id,
            epoch: self.map.epoch,
            term: self.group.as_ref().map(|group| group.term()).unwrap_or_default(),
            leader,
            from_leader: self.leading.is_some(),
            members: self.map.members.iter().map(|member| self.member_report(member.id, leader)).collect(),
            degraded: self.forming.explain(self.cluster).or_else(|| self.map.degraded()),
            applied: self.namespace.applied(),
            inodes: usage.inodes,
            sessions: self.namespace.sessions().map(|(session, _)| session).collect(),
            referenced_bytes: usage.referenced_bytes,
            referenced_chunks: usage.referenced_chunks,
            namespace_bytes: usage.namespace_bytes,
            replicas: self.map.replicas,
            voters: self.map.voters.len(),
            repair: self.repair_report(),
            standing: self.report_standing(),
        }
    }

    fn member_report(&self, node: NodeId, leader: Option<NodeId>) -> MemberReport {
        let member = self.map.member(node).expect("asked about members only").clone();
        let voter = self.map.voters.binary_search(&node).is_ok();
        let (leads, recorded, scrubbed) = (leader == Some(node), self.namespace.chunks_on(node), Scrubbed::default());
        let (stored, chunks, resident) = (0, 0, 0);
        let base = MemberReport { voter, leader: leads, stored, chunks, recorded, resident, scrubbed, silent_ms: None, member };
        if node == self.id {
            let usage = self.chunks.usage();
            let (stored, chunks, scrubbed) = (usage.stored, usage.chunks, self.chunks.scrubbed());
            return MemberReport { stored, chunks, resident: self.resident, scrubbed, silent_ms: Some(0), ..base };
        }
        if base.member.state == MemberState::Dead {
            return base;
        }
        match self.leading.as_ref().and_then(|leading| leading.contact(node)) {
            Some(contact) => {
                let silent = self.now.since(contact.heard).as_millis() as u64;
                let leader::Load { stored, chunks, resident, scrubbed, .. } = contact.load;
                MemberReport { stored, chunks, resident, scrubbed, silent_ms: Some(silent), ..base }
            }
            None => base,
        }
    }
}
