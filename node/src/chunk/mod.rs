//! Chunks that this node holds in RAM, the uploads that keep them alive, when to ask the namespace about those, what sessions are charged
//! for them until they commit, and when to look whether the bytes are still good.

mod audit;
mod instances;
mod scrub;
mod store;
mod uncommitted;

pub use store::{ChunkStore, InstanceCheck, Part, Usage};
