//! Storage node of dfs.

pub mod chunk;
pub mod namespace;
pub mod raft;
