//! The rules of the handshake, as pure functions: the socket driver and a simulated network apply the same ones.
//!
//! The dialler speaks first, the accepter answers with its own Hello, also when it refuses, so that the dialler learns why.

use crate::link::{Hello, Lane, Role};
use crate::status::Status;
use crate::types::NodeId;

/// Why a dialler gives a connection up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub reason: Status,
    /// With `WrongNode`: who answered instead.
    pub found: Option<NodeId>,
}

/// What the accepting side answers to a dialler.
pub fn answer(identity: &Hello, lane: Lane) -> Hello {
    Hello { lane, expect: None, ..*identity }
}

/// Whether the accepting side lets a dialler in.
pub fn check_dialler(identity: &Hello, dialler: &Hello) -> Result<(), Status> {
    if dialler.sender == 0 {
        return Err(Status::Malformed);
    }
    if dialler.expect.is_some_and(|expected| expected != NodeId(identity.sender)) {
        return Err(Status::WrongNode);
    }
    if clusters_differ(identity, dialler) {
        return Err(Status::WrongCluster);
    }
    Ok(())
}

/// Whether the dialler takes the answer of the accepting side.
pub fn check_accepter(mine: &Hello, accepter: &Hello) -> Result<(), Mismatch> {
    let refuse = |reason| Err(Mismatch { reason, found: None });
    if accepter.sender == 0 || accepter.role != Role::Node || accepter.lane != mine.lane || accepter.expect.is_some() {
        return refuse(Status::Malformed);
    }
    // First, because it proves most: whoever was expected at this address is gone, whichever cluster has the address now.
    if mine.expect.is_some_and(|expected| expected != NodeId(accepter.sender)) {
        return Err(Mismatch { reason: Status::WrongNode, found: Some(NodeId(accepter.sender)) });
    }
    if clusters_differ(mine, accepter) {
        return refuse(Status::WrongCluster);
    }
    Ok(())
}

/// Cluster 0 means "none yet", and meets everyone.
fn clusters_differ(one: &Hello, other: &Hello) -> bool {
    one.cluster.0 != 0 && other.cluster.0 != 0 && one.cluster != other.cluster
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClusterId;

    fn hello(cluster: u128, sender: u64, expect: Option<u64>) -> Hello {
        Hello { cluster: ClusterId(cluster), role: Role::Node, sender, lane: Lane::Bulk, expect: expect.map(NodeId) }
    }

    #[test]
    fn both_sides_come_to_the_same_verdict() {
        let node = hello(7, 1, None);
        for (dialler, verdict) in [
            (hello(7, 2, None), Ok(())),
            (hello(0, 2, Some(1)), Ok(())),
            (hello(8, 2, None), Err(Status::WrongCluster)),
            (hello(7, 2, Some(3)), Err(Status::WrongNode)),
            (hello(8, 2, Some(3)), Err(Status::WrongNode)),
        ] {
            assert_eq!(check_dialler(&node, &dialler), verdict);
            let seen = check_accepter(&dialler, &answer(&node, dialler.lane));
            assert_eq!(seen.map_err(|mismatch| mismatch.reason), verdict);
        }
        assert_eq!(check_accepter(&hello(7, 2, Some(3)), &node).unwrap_err().found, Some(NodeId(1)));
        assert_eq!(check_dialler(&node, &hello(7, 0, None)), Err(Status::Malformed));
    }
}
