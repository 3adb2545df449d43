//! What travels: messages, their encoding, and the frames around them.

pub mod message;
pub mod namespace;
