//! `dfs-mount`: mounts a cluster as a directory through FUSE.
//!
//! The file system itself ([`fs::Fs`]) is a pure core; everything that names FUSE, threads, processes or mounts stands around it.

pub mod args;
pub mod caller;
pub mod daemonize;
pub mod embedded;
pub mod errno;
pub mod fs;
pub mod fuse;
pub mod guard;
pub mod handles;
pub mod keeper;
pub mod leftover;
pub mod lock_request;
pub mod mounting;
pub mod notifier;
pub mod pages;
pub mod recalls;
pub mod requests;
pub mod run;
pub mod server;
pub mod signals;
pub mod translate;
pub mod turns;
pub mod waiters;
