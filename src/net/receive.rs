//! From bytes to frames. Small frames are cut out of a scratch buffer that all connections share; what a frame still lacks after
//! that is received straight into the buffer in which it will live.
//!
//! A connection keeps no more than a header's bytes between frames. Buffers grow with what has arrived, so announcing much and
//! sending little gains an attacker nothing.

use std::borrow::Cow;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};

use crate::net::stream::Stream;
use crate::status::Status;
use crate::wire::frame::{HEADER_BYTES, Header, Rules};

/// A frame before its body is decoded. `body` is borrowed where the whole frame lay in the scratch buffer.
#[derive(Debug)]
pub struct RawFrame<'a> {
    pub header: Header,
    pub body: Cow<'a, [u8]>,
    pub payload: Bytes,
}

/// Capacity that a frame part gets on the word of its header alone.
const FIRST_CAPACITY_BYTES: usize = 64 << 10;
/// Capacity that it gets for every byte that has arrived.
const CAPACITY_PER_BYTE: usize = 16;
/// After a large payload another is likely: then little goes through the scratch buffer, and is copied.
const LARGE_PAYLOAD_BYTES: usize = 64 << 10;
const SCRATCH_AMID_LARGE_BYTES: usize = 4 << 10;

/// What has arrived of the frame under way.
#[derive(Debug)]
pub struct Receiver {
    /// The first `head_bytes` of a header.
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    partial: Option<Partial>,
    /// Largest payload that came whole; capacity up to here has been earned.
    payload_bytes_seen: usize,
    last_payload_bytes: usize,
}

/// A frame whose header is known and checked.
#[derive(Debug)]
struct Partial {
    header: Header,
    body: BytesMut,
    payload: BytesMut,
}

/// What one read brought.
#[derive(Clone, Copy, Debug)]
pub struct ReadCount {
    pub bytes: usize,
    /// Those of them that lie in the scratch buffer, for [`Receiver::next`].
    pub in_scratch: usize,
    /// Whether as much came as was asked for, so that there may be more.
    pub filled: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver { head: [0; HEADER_BYTES], head_bytes: 0, partial: None, payload_bytes_seen: 0, last_payload_bytes: 0 }
    }
}

impl Receiver {
    /// Whether a frame has begun and not ended.
    pub fn is_amid_frame(&self) -> bool {
        self.head_bytes > 0 || self.partial.is_some()
    }

    /// Reads once, at most `limit` bytes.
    pub fn read(&mut self, stream: &Stream, scratch: &mut [u8], limit: usize) -> io::Result<ReadCount> {
        let amid_large = self.last_payload_bytes >= LARGE_PAYLOAD_BYTES;
        let scratch_most = if amid_large { SCRATCH_AMID_LARGE_BYTES.min(scratch.len()) } else { scratch.len() };
        let earned = self.payload_bytes_seen;
        let Some(part) = self.partial.as_mut().map(|partial| partial.unfinished(earned)) else {
            let asked = scratch_most.min(limit);
            let bytes = stream.read(&mut [], &mut scratch[..asked])?;
            return Ok(ReadCount { bytes, in_scratch: bytes, filled: bytes == asked });
        };
        let missing = part.missing;
        let spare = part.bytes.spare_capacity_mut();
        let direct_asked = missing.min(limit).min(spare.len());
        let scratch_asked = scratch_most.min(limit - direct_asked);
        let bytes = stream.read(&mut spare[..direct_asked], &mut scratch[..scratch_asked])?;
        let direct = bytes.min(direct_asked);
        // SAFETY: `read` has initialized the first `bytes` over both slices, of which `direct` lie in this one.
        unsafe { part.bytes.advance_mut(direct) };
        Ok(ReadCount { bytes, in_scratch: bytes - direct, filled: bytes == direct_asked + scratch_asked })
    }

    /// The next whole frame, from what was received directly and the front of `input`, which advances. `None`: all is consumed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8], rules: &Rules) -> Result<Option<RawFrame<'a>>, Status> {
        if self.partial.is_none() {
            let Some(header) = self.next_header(input, rules)? else { return Ok(None) };
            let whole = header.body_bytes + header.payload_bytes;
            if input.len() >= whole {
                let (frame, rest) = input.split_at(whole);
                *input = rest;
                let (body, payload) = frame.split_at(header.body_bytes);
                self.note_payload(header.payload_bytes);
                // Copied, because a slice of a shared buffer would keep all of that buffer alive for as long as the payload lives.
                return Ok(Some(RawFrame { header, body: Cow::Borrowed(body), payload: Bytes::copy_from_slice(payload) }));
            }
            self.partial = Some(Partial { header, body: BytesMut::new(), payload: BytesMut::new() });
        }
        let earned = self.payload_bytes_seen;
        let Some(partial) = &mut self.partial else { return Ok(None) };
        if !partial.absorb(input, earned) {
            return Ok(None);
        }
        let Some(partial) = self.partial.take() else { return Ok(None) };
        self.note_payload(partial.header.payload_bytes);
        let body = Cow::Owned(Vec::from(partial.body));
        Ok(Some(RawFrame { header: partial.header, body, payload: partial.payload.freeze() }))
    }

    fn next_header(&mut self, input: &mut &[u8], rules: &Rules) -> Result<Option<Header>, Status> {
        let taken = (HEADER_BYTES - self.head_bytes).min(input.len());
        self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&input[..taken]);
        self.head_bytes += taken;
        *input = &input[taken..];
        if self.head_bytes < HEADER_BYTES {
            return Ok(None);
        }
        self.head_bytes = 0;
        Header::parse(&self.head, rules).map(Some)
    }

    fn note_payload(&mut self, bytes: usize) {
        self.last_payload_bytes = bytes;
        self.payload_bytes_seen = self.payload_bytes_seen.max(bytes);
    }
}

/// The part of a frame that is being received.
struct Part<'a> {
    bytes: &'a mut BytesMut,
    missing: usize,
}

impl Partial {
    /// The part that is not complete, body before payload, with capacity for some more of it.
    fn unfinished(&mut self, earned: usize) -> Part<'_> {
        let (bytes, whole) = if self.body.len() < self.header.body_bytes {
            (&mut self.body, self.header.body_bytes)
        } else {
            (&mut self.payload, self.header.payload_bytes)
        };
        let arrived = bytes.len();
        let capacity = whole.min(FIRST_CAPACITY_BYTES.max(earned).max(arrived * CAPACITY_PER_BYTE));
        if arrived == bytes.capacity() && arrived < whole {
            bytes.reserve(capacity.max(arrived + 1) - arrived);
        }
        Part { missing: whole - arrived, bytes }
    }

    /// Takes what belongs to this frame from the front of `input`; whether the frame is complete.
    fn absorb(&mut self, input: &mut &[u8], earned: usize) -> bool {
        loop {
            if self.body.len() == self.header.body_bytes && self.payload.len() == self.header.payload_bytes {
                return true;
            }
            if input.is_empty() {
                return false;
            }
            // Bytes at hand count as arrived: in a fast stream the buffer gets its full size at once.
            let earned = earned.max(input.len() * CAPACITY_PER_BYTE);
            let part = self.unfinished(earned);
            let taken = part.missing.min(input.len()).min(part.bytes.capacity() - part.bytes.len());
            part.bytes.extend_from_slice(&input[..taken]);
            *input = &input[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Frame, Lane};
    use crate::types::{ClusterId, Epoch};
    use crate::wire::frame::{Names, append_message};
    use crate::wire::message::{Body, Request};

    const NAMES: Names = Names { cluster: ClusterId(1), sender: 2, receiver: 3 };
    const RULES: Rules = Rules::Messages { lane: Lane::Bulk, names: NAMES };

    fn stream_of(payloads: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (request, &length) in payloads.iter().enumerate() {
            let payload = Bytes::from(vec![request as u8; length]);
            let frame = Frame { request: request as u64, body: Body::Request(Request::Map { known: Epoch(9) }), payload };
            append_message(&mut bytes, NAMES, Lane::Bulk, &frame).unwrap();
            bytes.extend_from_slice(&frame.payload);
        }
        bytes
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let lengths = [0, 1, 5000, 0, 300_000, 7];
        let bytes = stream_of(&lengths);
        for cut in [1, 13, 55, 56, 57, 4096, 100_000, bytes.len()] {
            let mut receiver = Receiver::default();
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(cut) {
                while let Some(frame) = receiver.next(&mut piece, &RULES).unwrap() {
                    assert!(frame.payload.iter().all(|&byte| byte == frame.header.request as u8));
                    seen.push(frame.payload.len());
                }
                assert!(piece.is_empty());
            }
            assert_eq!(seen, lengths, "cut every {cut} bytes");
            assert!(!receiver.is_amid_frame());
        }
    }

    #[test]
    fn a_header_alone_gets_little_memory() {
        let bytes = stream_of(&[1 << 20]);
        let mut receiver = Receiver::default();
        assert!(receiver.next(&mut &bytes[..100], &RULES).unwrap().is_none());
        let capacity = receiver.partial.as_mut().unwrap().unfinished(0).bytes.capacity();
        assert!(capacity <= FIRST_CAPACITY_BYTES, "{capacity}");
    }
}
