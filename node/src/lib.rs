//! Storage node of dfs.

pub mod namespace;
pub mod raft;
pub mod chunk;
