//! The nouns of the system: identifiers, byte ranges, file attributes.
//!
//! Owns no behaviour beyond parsing and printing. Every id is a newtype, so that a node cannot be passed where an inode is meant.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::status::Status;
use crate::xattr::XattrFlags;

macro_rules! id_u64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    };
}

id_u64!(
    /// One life of one node process: a random non-zero number drawn at every start (its *incarnation*), also its Raft id.
    /// A node that restarts has forgotten its promises, therefore it never comes back under its old id. 0 means "nobody yet".
    NodeId
);
id_u64!(
    /// One session of one client (a mount, a command): a random non-zero number drawn by the client. 0 means "no session".
    SessionId
);
id_u64!(
    /// Inode number: the upper 16 bits name the namespace group, the rest is never reused. The root is 1.
    InodeId
);
id_u64!(
    /// Version of the cluster map; grows by one with every change of the map.
    Epoch
);
id_u64!(
    /// A Raft term.
    Term
);
id_u64!(
    /// Number of a request within its session; the key of exactly-once execution. Starts at 1.
    RequestNumber
);
id_u64!(
    /// Position of an entry within its directory: grows, is never reused, survives renames of other entries.
    Cookie
);

/// What a session may keep of an inode without asking, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rights(pub u8);

impl Rights {
    pub const NONE: Rights = Rights(0);
    /// Cache attributes, extended attributes, link target, layout and bytes.
    pub const READ: Rights = Rights(1);
    /// Alone: buffer writes, own size and times. Part of the replicated state, see `Op::Acquire`. Includes what `READ` allows.
    pub const WRITE: Rights = Rights(2);
    /// Cache a directory's entries, absent names included.
    pub const NAMES: Rights = Rights(4);
    const ALL: u8 = 7;

    /// Whether only known rights are named.
    pub fn is_well_formed(self) -> bool {
        self.0 & !Self::ALL == 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are here.
    pub fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is here.
    pub fn intersects(self, other: Rights) -> bool {
        self.0 & other.0 != 0
    }

    pub fn with(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    pub fn without(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }
}

/// Root directory of the tree.
pub const ROOT: InodeId = InodeId(1);

/// Identity of one cluster, drawn at random when it forms. 0 means "not known yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// BLAKE3 hash of a chunk's bytes: its name and its proof.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// Hashes a whole chunk.
    pub fn of(bytes: &[u8]) -> Self {
        ChunkHash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ChunkHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a chunk hash; write its 64 hexadecimal digits, as `dfs locate` shows them");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(ChunkHash(hash))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// One upload of a chunk. Never reused, so that a late or doubled deletion of one upload cannot harm another upload of the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// The session that uploaded.
    pub session: SessionId,
    /// Counts the session's uploads, from 1.
    pub counter: u64,
}

/// A point in wall-clock time as POSIX files carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// So much later.
    pub fn after(self, passed: Duration) -> Timestamp {
        let nanos = u64::from(self.nanos) + u64::from(passed.subsec_nanos());
        let whole = i64::try_from(passed.as_secs() + nanos / 1_000_000_000).unwrap_or(i64::MAX);
        Timestamp { seconds: self.seconds.saturating_add(whole), nanos: (nanos % 1_000_000_000) as u32 }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` shows of an inode, and the versions caches need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub ino: InodeId,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Bytes; for a directory a nominal value, for a symlink its target's length.
    pub size: u64,
    /// Units of 512 bytes that content occupies (one copy).
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Device number of a device node.
    pub rdev: u32,
    /// Grows with every change of the inode.
    pub version: u64,
    /// Grows with every change of the file's bytes or size; folding leaves it.
    pub data_version: u64,
    /// A directory's parent (the root's is the root itself); meaningless for other kinds.
    pub parent: InodeId,
    /// Which extended attributes there are.
    pub xattrs: XattrFlags,
}

/// A file name: any bytes but NUL and `/`, 1 to 255 of them. Checked by [`Name::new`] and again after decoding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name(#[serde(with = "serde_bytes_vec")] Vec<u8>);

impl Name {
    /// Checks and takes a name. Errors: `NameTooLong` over 255 bytes, `InvalidArgument` for empty, `.`, `..`, NUL or `/`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Status> {
        let bytes = bytes.into();
        let name = Name(bytes);
        name.check()?;
        Ok(name)
    }

    /// The check of [`Name::new`] for a name that came over the wire.
    pub fn check(&self) -> Result<(), Status> {
        if self.0.len() > crate::limits::NAME_BYTES_MAX {
            return Err(Status::NameTooLong);
        }
        if self.0.is_empty() || self.0 == b"." || self.0 == b".." || self.0.iter().any(|&byte| byte == 0 || byte == b'/') {
            return Err(Status::InvalidArgument);
        }
        Ok(())
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Serializes `Vec<u8>` as one run of bytes instead of element by element.
pub mod serde_bytes_vec {
    use serde::{Deserializer, Serializer, de::Visitor};
    use std::fmt;

    /// Writes the bytes as one length-prefixed run.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// Reads what [`serialize`] wrote.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Where a node listens: `host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Address {
    /// Host name or IP address (IPv6 without brackets), and port.
    Tcp { host: String, port: u16 },
    /// Path of a Unix stream socket.
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach the address.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.len() > 107 {
                return Err(format!("'{text}': a Unix socket path has 1 to 107 bytes; write unix:/path"));
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let wrong = || format!("'{text}' is not an address; write host:port or unix:/path");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().map_err(|_| wrong())?;
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.len() > 255 {
            return Err(wrong());
        }
        Ok(Address::Tcp { host: host.to_string(), port })
    }
}

/// A half-open range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset: u64,
    pub length: u64,
}

impl ByteRange {
    /// First byte after the range. Saturates, so that a peer's range cannot overflow.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["127.0.0.1:7400", "host.name:1", "[::1]:7400", "unix:/tmp/a b"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "host", ":1", "host:", "host:70000", "unix:"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_any_bytes_but_nul_and_slash() {
        assert!(Name::new(vec![0xff; 255]).is_ok());
        assert_eq!(Name::new(vec![b'a'; 256]), Err(Status::NameTooLong));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(Status::InvalidArgument));
        }
    }
}
