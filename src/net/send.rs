//! From frames to bytes: small frames are encoded behind one another, payloads are queued as they are and never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::link::{Frame, Hello, Lane};
use crate::net::stream::Stream;
use crate::status::Status;
use crate::wire::frame::{self, Names};

/// Encoded frames gather in one buffer up to this length.
const GATHER_BYTES_MAX: usize = 32 << 10;
/// A payload up to this length is copied behind its header, which is cheaper than one more part of a write.
const COPIED_PAYLOAD_BYTES_MAX: usize = 2 << 10;
/// Parts of one write; Linux takes up to 1024.
const PARTS_MAX: usize = 64;

#[derive(Debug)]
enum Segment {
    Encoded(Vec<u8>),
    Payload(Bytes),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Encoded(bytes) => bytes,
            Segment::Payload(bytes) => bytes,
        }
    }
}

/// What waits to be written to one peer.
#[derive(Debug, Default)]
pub struct Sender {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that have been written.
    written: usize,
    /// Bytes that have not been written.
    queued: usize,
}

impl Sender {
    /// Bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// Queues the first frame of a connection.
    pub fn push_hello(&mut self, hello: &Hello, receiver: u64) -> Result<usize, Status> {
        self.append(|out| frame::append_hello(out, hello, receiver))
    }

    /// Queues a frame; its length. Errors (`TooLong`) leave the queue as it was.
    pub fn push(&mut self, names: Names, lane: Lane, frame: Frame) -> Result<usize, Status> {
        let copied = frame.payload.len() <= COPIED_PAYLOAD_BYTES_MAX;
        let mut length = self.append(|out| {
            frame::append_message(out, names, lane, &frame)?;
            if copied {
                out.extend_from_slice(&frame.payload);
            }
            Ok(())
        })?;
        if !copied {
            length += frame.payload.len();
            self.queued += frame.payload.len();
            self.segments.push_back(Segment::Payload(frame.payload));
        }
        Ok(length)
    }

    fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), Status>) -> Result<usize, Status> {
        if let Some(Segment::Encoded(last)) = self.segments.back_mut()
            && last.len() < GATHER_BYTES_MAX
        {
            let before = last.len();
            encode(last)?;
            let added = last.len() - before;
            self.queued += added;
            return Ok(added);
        }
        let mut bytes = Vec::with_capacity(256);
        encode(&mut bytes)?;
        let added = bytes.len();
        self.queued += added;
        self.segments.push_back(Segment::Encoded(bytes));
        Ok(added)
    }

    /// Writes once, at most `limit` bytes; 0 when nothing waits.
    pub fn write(&mut self, stream: &Stream, limit: usize) -> io::Result<usize> {
        let mut parts = [IoSlice::new(&[]); PARTS_MAX];
        let mut count = 0;
        let mut left = limit;
        for (index, segment) in self.segments.iter().take(PARTS_MAX).enumerate() {
            let bytes = segment.bytes();
            let bytes = if index == 0 { &bytes[self.written..] } else { bytes };
            let taken = bytes.len().min(left);
            parts[count] = IoSlice::new(&bytes[..taken]);
            count += 1;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        if limit - left == 0 {
            return Ok(0);
        }
        let written = stream.write(&parts[..count])?;
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, written: usize) {
        assert!(written <= self.queued, "the kernel took more than it was given");
        self.queued -= written;
        let mut left = self.written + written;
        while let Some(front) = self.segments.front() {
            let length = front.bytes().len();
            if left < length {
                break;
            }
            left -= length;
            self.segments.pop_front();
        }
        self.written = left;
    }
}
