//! What travels: messages, their encoding, and the frames around them.

pub mod check;
pub mod codec;
pub mod frame;
pub mod fsck;
pub mod handshake;
pub mod message;
pub mod namespace;
