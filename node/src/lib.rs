//! Storage node of dfs.

pub mod namespace;
