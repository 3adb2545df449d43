//! The only room that turns values into bytes and back. No other names the serialization crate.
//!
//! Integers have a fixed width, so that what a decoder claims is what the encoder wrote: whatever encodes within a limit decodes
//! within it, and a body of n bytes never becomes a value of much more than n bytes. Decoding consumes every byte or fails.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits;
use crate::link::Lane;
use crate::status::Status;
use crate::wire::check;
use crate::wire::message::Body;

/// The most that any decoder may claim, hence the largest single allocation that hostile bytes can cause.
const CLAIM_BYTES_MAX: usize = limits::CONTROL_BODY_BYTES_MAX;

const _: () = assert!(limits::BULK_BODY_BYTES_MAX <= CLAIM_BYTES_MAX);
const _: () = assert!(limits::RECORD_BYTES_MAX <= CLAIM_BYTES_MAX);

const CONFIGURATION: Configuration<LittleEndian, Fixint, Limit<CLAIM_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<CLAIM_BYTES_MAX>();

/// Largest body of a frame on that lane.
pub fn body_bytes_max(lane: Lane) -> usize {
    match lane {
        Lane::Control => limits::CONTROL_BODY_BYTES_MAX,
        Lane::Bulk => limits::BULK_BODY_BYTES_MAX,
    }
}

/// Encodes a value. Errors: `TooLong` beyond `limit` bytes.
pub fn encode<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    append(&mut bytes, value, limit)?;
    Ok(bytes)
}

/// Appends the encoding of a value to `out`, which is left as it was on an error. Errors: `TooLong` beyond `limit` bytes.
pub fn append<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T, limit: usize) -> Result<usize, Status> {
    let start = out.len();
    let written = bincode::serde::encode_into_std_write(value, out, CONFIGURATION);
    match written {
        Ok(length) if length <= limit.min(CLAIM_BYTES_MAX) => Ok(length),
        Ok(_) => {
            out.truncate(start);
            Err(Status::TooLong)
        }
        Err(_) => {
            out.truncate(start);
            Err(Status::Internal)
        }
    }
}

/// Decodes a value from exactly these bytes. Errors: `TooLong` beyond `limit` bytes, `Malformed` for anything else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, Status> {
    if bytes.len() > limit {
        return Err(Status::TooLong);
    }
    match bincode::serde::decode_from_slice(bytes, CONFIGURATION) {
        Ok((value, consumed)) if consumed == bytes.len() => Ok(value),
        _ => Err(Status::Malformed),
    }
}

/// Decodes the body of a frame and checks what the types cannot say.
pub fn decode_body(bytes: &[u8], lane: Lane) -> Result<Body, Status> {
    let body = decode(bytes, body_bytes_max(lane))?;
    check::body(&body)?;
    Ok(body)
}

/// Encodes something that is kept or replicated as a unit, like a log entry.
pub fn encode_record<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Status> {
    encode(value, limits::RECORD_BYTES_MAX)
}

/// Decodes what [`encode_record`] wrote. Whoever decodes checks the value: only frames are checked here.
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    decode(bytes, limits::RECORD_BYTES_MAX)
}
