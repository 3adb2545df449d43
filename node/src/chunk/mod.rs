//! Chunks that this node holds in RAM, the uploads that keep them alive, and when to ask the namespace about those.

mod audit;
mod store;

pub use store::{ChunkStore, InstanceCheck, Part, Usage};
