//! FUSE mount of dfs.
