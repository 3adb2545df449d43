//! dfs: a `/dev/shm` that spans machines.
//!
//! This library is what nodes, mounts and the command line share: types, wire protocol, placement, the client core and its blocking API.

pub mod args;
pub mod capacity;
pub mod chunk_tree;
pub mod client;
pub mod cluster_map;
pub mod fsck;
pub mod limits;
pub mod link;
pub mod links;
pub mod locks;
pub mod net;
pub mod placement;
pub mod random;
pub mod recovery;
pub mod status;
pub mod time;
pub mod types;
pub mod wire;
pub mod xattr;

pub use client::Client;
