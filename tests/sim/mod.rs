//! Whole clusters in one process under virtual time, with a seeded, faulty network and the production cores.

pub mod attrition;
pub mod checks;
pub mod files;
pub mod forming;
pub mod kernel;
pub mod linear;
pub mod network;
pub mod plan;
pub mod process;
pub mod recovery;
pub mod run;
pub mod scripts;
pub mod workload;
pub mod world;
