//! Storage node of dfs: one thread, non-blocking sockets, everything in RAM.

pub mod args;
pub mod chunk;
pub mod event_loop;
pub mod namespace;
pub mod node;
pub mod raft;
pub mod repair;
