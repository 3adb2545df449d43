//! Storage node of dfs.
