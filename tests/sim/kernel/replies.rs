//! Replies of the `Fs` as the kernel reads them.

use std::time::Duration;

use dfs::status::Status;
use dfs::types::Attributes;
use dfs_mount::requests::{Handle, Listing, Reply};

/// What a look-up told.
pub struct Found {
    /// `None`: the name is absent.
    pub attributes: Option<Attributes>,
    /// How long the name may be used, and the attributes.
    pub names: Duration,
    pub lifetime: Duration,
}

pub struct Opened {
    pub handle: Handle,
    pub direct: bool,
    pub keep: bool,
}

/// A line of a listing.
pub struct Line {
    pub name: Vec<u8>,
    pub next: u64,
    /// `None` for `.` and `..`.
    pub found: Option<Found>,
    /// Whether the attributes may be used.
    pub shown: bool,
}

pub fn entry(reply: Reply) -> Result<Found, Status> {
    match reply {
        Reply::Entry(attributes) => Ok(Found { attributes: Some(attributes), names: Duration::ZERO, lifetime: Duration::ZERO }),
        Reply::Error(status) => Err(status),
        other => panic!("a look-up answered {other:?}"),
    }
}

pub fn attributes(reply: Reply) -> Result<(Attributes, Duration), Status> {
    match reply {
        Reply::Attributes(attributes) => Ok((attributes, Duration::ZERO)),
        Reply::Error(status) => Err(status),
        other => panic!("attributes answered {other:?}"),
    }
}

pub fn opened(reply: Reply) -> Result<Opened, Status> {
    match reply {
        Reply::Opened(handle) => Ok(Opened { handle, direct: true, keep: false }),
        Reply::Error(status) => Err(status),
        other => panic!("an open answered {other:?}"),
    }
}

pub fn created(reply: Reply) -> Result<(Found, Opened), Status> {
    match reply {
        Reply::Created(handle, attributes) => {
            let found = Found { attributes: Some(attributes), names: Duration::ZERO, lifetime: Duration::ZERO };
            Ok((found, Opened { handle, direct: true, keep: false }))
        }
        Reply::Error(status) => Err(status),
        other => panic!("a create answered {other:?}"),
    }
}

pub fn lines(listing: &Listing) -> Vec<Line> {
    let line = |line: dfs_mount::requests::Line<'_>| {
        let found = Found { attributes: Some(line.attributes), names: Duration::ZERO, lifetime: Duration::ZERO };
        Line { name: line.name.to_vec(), next: line.next, found: (!line.dot).then_some(found), shown: !line.dot }
    };
    listing.lines().map(line).collect()
}
