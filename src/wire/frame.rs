//! Frames: a fixed little-endian header, an encoded body, a raw payload.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic |
//! | 4..6 | protocol version |
//! | 6 | kind |
//! | 7 | zero |
//! | 8..12 | body length |
//! | 12..16 | payload length |
//! | 16..24 | request id |
//! | 24..40 | cluster |
//! | 40..48 | sender |
//! | 48..56 | receiver |
//!
//! Every frame names cluster, sender and receiver as its sender's Hello did, so that bytes which were meant for somebody else (a port
//! taken over, a proxy gone wrong) are noticed. Lengths are checked here, before anybody allocates.

use crate::limits;
use crate::link::{Frame, Hello, Lane};
use crate::status::Status;
use crate::types::ClusterId;
use crate::wire::codec;

/// Length of the header.
pub const HEADER_BYTES: usize = 56;
/// Largest body of a Hello; all that somebody unknown may make us keep.
pub const HELLO_BODY_BYTES_MAX: usize = 128;

const MAGIC: [u8; 4] = *b"dfs\x1a";

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The first frame each way.
    Hello,
    /// Everything after.
    Message,
}

/// Whom a frame is from and for, as the sender's Hello said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    pub cluster: ClusterId,
    pub sender: u64,
    /// 0 in the Hello of a dialler that expects nobody in particular.
    pub receiver: u64,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameKind,
    pub body_bytes: usize,
    pub payload_bytes: usize,
    pub request: u64,
    pub names: Names,
}

/// What a receiver takes at this point of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// A Hello, of whomever.
    Hello,
    /// Messages with these names.
    Messages { lane: Lane, names: Names },
}

impl Header {
    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        self.to_bytes_of_version(limits::PROTOCOL_VERSION)
    }

    /// The bytes that a peer of another protocol version would send.
    pub fn to_bytes_of_version(&self, version: u16) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&version.to_le_bytes());
        bytes[6] = match self.kind {
            FrameKind::Hello => 1,
            FrameKind::Message => 2,
        };
        bytes[8..12].copy_from_slice(&(self.body_bytes as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.payload_bytes as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.request.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.names.cluster.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.names.sender.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.names.receiver.to_le_bytes());
        bytes
    }

    /// Reads a header and holds it against the rules. Errors: `Malformed`, `WrongVersion`, `TooLong`, `WrongNode` for other names.
    pub fn parse(bytes: &[u8; HEADER_BYTES], rules: &Rules) -> Result<Header, Status> {
        if bytes[0..4] != MAGIC || bytes[7] != 0 {
            return Err(Status::Malformed);
        }
        if u16::from_le_bytes(field(bytes, 4)) != limits::PROTOCOL_VERSION {
            return Err(Status::WrongVersion);
        }
        let kind = match bytes[6] {
            1 => FrameKind::Hello,
            2 => FrameKind::Message,
            _ => return Err(Status::Malformed),
        };
        let header = Header {
            kind,
            body_bytes: u32::from_le_bytes(field(bytes, 8)) as usize,
            payload_bytes: u32::from_le_bytes(field(bytes, 12)) as usize,
            request: u64::from_le_bytes(field(bytes, 16)),
            names: Names {
                cluster: ClusterId(u128::from_le_bytes(field(bytes, 24))),
                sender: u64::from_le_bytes(field(bytes, 40)),
                receiver: u64::from_le_bytes(field(bytes, 48)),
            },
        };
        header.check(rules)?;
        Ok(header)
    }

    fn check(&self, rules: &Rules) -> Result<(), Status> {
        let (kind, body_bytes_max, payload_bytes_max) = match rules {
            Rules::Hello => (FrameKind::Hello, HELLO_BODY_BYTES_MAX, 0),
            Rules::Messages { lane, .. } => (FrameKind::Message, codec::body_bytes_max(*lane), limits::PAYLOAD_BYTES_MAX),
        };
        if self.kind != kind {
            return Err(Status::Malformed);
        }
        if self.body_bytes > body_bytes_max || self.payload_bytes > payload_bytes_max {
            return Err(Status::TooLong);
        }
        match rules {
            Rules::Messages { names, .. } if self.names != *names => Err(Status::WrongNode),
            _ => Ok(()),
        }
    }
}

/// Appends a whole Hello frame.
pub fn append_hello(out: &mut Vec<u8>, hello: &Hello, receiver: u64) -> Result<(), Status> {
    let names = Names { cluster: hello.cluster, sender: hello.sender, receiver };
    append(out, FrameKind::Hello, names, 0, hello, HELLO_BODY_BYTES_MAX, 0)
}

/// Appends header and body of a message; the payload follows as it is. `out` is left as it was on an error.
pub fn append_message(out: &mut Vec<u8>, names: Names, lane: Lane, frame: &Frame) -> Result<(), Status> {
    if frame.payload.len() > limits::PAYLOAD_BYTES_MAX {
        return Err(Status::TooLong);
    }
    append(out, FrameKind::Message, names, frame.request, &frame.body, codec::body_bytes_max(lane), frame.payload.len())
}

fn append<T: serde::Serialize>(
    out: &mut Vec<u8>,
    kind: FrameKind,
    names: Names,
    request: u64,
    body: &T,
    limit: usize,
    payload_bytes: usize,
) -> Result<(), Status> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    match codec::append(out, body, limit) {
        Ok(body_bytes) => {
            let header = Header { kind, body_bytes, payload_bytes, request, names };
            out[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes());
            Ok(())
        }
        Err(status) => {
            out.truncate(start);
            Err(status)
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_are_held_against_the_rules() {
        let names = Names { cluster: ClusterId(1), sender: 2, receiver: 3 };
        let header = Header { kind: FrameKind::Message, body_bytes: 4, payload_bytes: 5, request: 6, names };
        let rules = Rules::Messages { lane: Lane::Control, names };
        assert_eq!(Header::parse(&header.to_bytes(), &rules), Ok(header));
        assert_eq!(Header::parse(&header.to_bytes(), &Rules::Hello), Err(Status::Malformed));
        assert_eq!(Header::parse(&header.to_bytes_of_version(99), &rules), Err(Status::WrongVersion));
        let other = Rules::Messages { lane: Lane::Control, names: Names { receiver: 4, ..names } };
        assert_eq!(Header::parse(&header.to_bytes(), &other), Err(Status::WrongNode));
        let long = Header { payload_bytes: limits::PAYLOAD_BYTES_MAX + 1, ..header };
        assert_eq!(Header::parse(&long.to_bytes(), &rules), Err(Status::TooLong));
        for flip in [0, 3, 6, 7] {
            let mut bytes = header.to_bytes();
            bytes[flip] ^= 0x80;
            assert_eq!(Header::parse(&bytes, &rules), Err(Status::Malformed));
        }
    }
}
