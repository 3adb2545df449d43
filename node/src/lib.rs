//! Storage node of dfs.

pub mod raft;
