//! Storage node of dfs.

pub mod chunk;
