//! `dfs debug`: faults on purpose, on nodes that were started with `--debug-faults`.

use dfs::cluster_map::{ClusterMap, Member};
use dfs::status::Status;
use dfs::types::ChunkHash;
use dfs::wire::message::DebugAction;

use crate::args::Debug;
use crate::failure::Failure;
use crate::store::Store;

/// Does it; gives what to print: one line for each node that did something.
pub fn run(store: &Store, action: &Debug) -> Result<String, Failure> {
    let map = store.map()?;
    match action {
        Debug::Flip { hash, bit, node } => {
            let action = DebugAction::Flip { hash: *hash, bit: *bit };
            harm_one(store, &map, (hash, action), node.as_deref(), &format!("flipped bit {bit} of"))
        }
        Debug::Drop { hash, node } => harm_one(store, &map, (hash, DebugAction::Drop { hash: *hash }), node.as_deref(), "dropped"),
        Debug::Scrub { node } => {
            let mut said = String::new();
            for member in chosen(&map, node.as_deref())? {
                store.debug(member.id, DebugAction::Scrub).map_err(|status| refused(member, status))?;
                said += &format!("scrubbing {}@{}\n", member.id, member.address);
            }
            Ok(said)
        }
    }
}

/// Harms the copy of the first of the nodes that has one.
fn harm_one(
    store: &Store,
    map: &ClusterMap,
    (hash, action): (&ChunkHash, DebugAction),
    node: Option<&str>,
    done: &str,
) -> Result<String, Failure> {
    for member in chosen(map, node)? {
        match store.debug(member.id, action) {
            Ok(()) => return Ok(format!("{done} {hash} on {}@{}\n", member.id, member.address)),
            Err(Status::UnknownChunk) => {}
            Err(status) => return Err(refused(member, status)),
        }
    }
    let place = node.map_or("no node holds that chunk".to_string(), |node| format!("{node} does not hold that chunk"));
    Err(Failure::new(format!("{hash}: {place}; `dfs locate PATH` shows chunks and holders")))
}

/// The living members that are meant: all, or the one of that incarnation or address.
fn chosen<'map>(map: &'map ClusterMap, node: Option<&str>) -> Result<Vec<&'map Member>, Failure> {
    let meant = |member: &&Member| node.is_none_or(|node| member.id.to_string() == node || member.address.to_string() == node);
    let members: Vec<&Member> = map.members.iter().filter(|member| map.is_living(member.id)).filter(meant).collect();
    match node {
        Some(node) if members.is_empty() => {
            Err(Failure::new(format!("{node}: no living node has that incarnation or address; see `dfs status`")))
        }
        _ => Ok(members),
    }
}

fn refused(member: &Member, status: Status) -> Failure {
    let name = format!("{}@{}", member.id, member.address);
    match status {
        Status::NotPermitted => {
            Failure::new(format!("{name}: refuses to be harmed; start the node with `dfs-node --debug-faults` if that is what you want"))
        }
        status => Failure::status(name, status),
    }
}
