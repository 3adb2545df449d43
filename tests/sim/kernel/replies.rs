//! Replies of the `Fs` as the kernel reads them.

use std::time::Duration;

use dfs::status::Status;
use dfs::types::Attributes;
use dfs_mount::requests::{Content, Handle, Keep, Listing, Reply};

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

pub fn entry((reply, keep): (Reply, Keep)) -> Result<Found, Status> {
    match reply {
        Reply::Entry(attributes) => Ok(Found { attributes: Some(attributes), names: keep.entry, lifetime: keep.attributes }),
        Reply::Absent => Ok(Found { attributes: None, names: keep.entry, lifetime: Duration::ZERO }),
        Reply::Error(status) => Err(status),
        other => panic!("a look-up answered {other:?}"),
    }
}

pub fn attributes((reply, keep): (Reply, Keep)) -> Result<(Attributes, Duration), Status> {
    match reply {
        Reply::Attributes(attributes) => Ok((attributes, keep.attributes)),
        Reply::Error(status) => Err(status),
        other => panic!("attributes answered {other:?}"),
    }
}

fn opening(handle: Handle, keep: &Keep) -> Opened {
    Opened { handle, direct: keep.content == Content::Direct, keep: keep.content == Content::Kept }
}

pub fn opened((reply, keep): (Reply, Keep)) -> Result<Opened, Status> {
    match reply {
        Reply::Opened(handle) => Ok(opening(handle, &keep)),
        Reply::Error(status) => Err(status),
        other => panic!("an open answered {other:?}"),
    }
}

pub fn created((reply, keep): (Reply, Keep)) -> Result<(Found, Opened), Status> {
    match reply {
        Reply::Created(handle, attributes) => {
            // fuser has one lifetime for both.
            let lifetime = keep.entry.min(keep.attributes);
            let found = Found { attributes: Some(attributes), names: lifetime, lifetime };
            Ok((found, opening(handle, &keep)))
        }
        Reply::Error(status) => Err(status),
        other => panic!("a create answered {other:?}"),
    }
}

pub fn lines(listing: &Listing, keep: &Keep) -> Vec<Line> {
    let mut lifetimes = keep.lines.iter().copied();
    let line = |line: dfs_mount::requests::Line<'_>| {
        let lifetime = if line.dot { Duration::ZERO } else { lifetimes.next().unwrap_or_default() };
        let found = Found { attributes: Some(line.attributes), names: lifetime, lifetime };
        Line { name: line.name.to_vec(), next: line.next, found: (!line.dot).then_some(found), shown: !line.dot }
    };
    listing.lines().map(line).collect()
}
