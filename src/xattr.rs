//! Extended attributes: their names and namespaces, and what an inode's attributes tell about them without asking further.
//!
//! Pure vocabulary of library, nodes and mounts. Who may read or set what is checked by the kernel; what the values mean, by the namespace.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::status::Status;
use crate::types::serde_bytes_vec;

/// The POSIX ACL that decides about access.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The POSIX ACL that what is made in a directory inherits.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// File capabilities; every change of a file's content takes them away.
pub const CAPABILITY: &[u8] = b"security.capability";
/// Names of this namespace are shown to privileged processes only.
pub const TRUSTED_PREFIX: &[u8] = b"trusted.";

/// Name of an extended attribute: 1 to 255 bytes without NUL. Checked by [`XattrName::new`] and again after decoding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct XattrName(#[serde(with = "serde_bytes_vec")] Vec<u8>);

/// What kind of attribute a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrClass {
    /// `user.`: of regular files and directories only.
    User,
    Trusted,
    Security,
    AccessAcl,
    DefaultAcl,
}

/// Whether an attribute has to be new, or there already, for it to be set. Both cannot hold, which Linux allows to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrCondition {
    /// XATTR_CREATE: `Exists` if it is there.
    pub create: bool,
    /// XATTR_REPLACE: `NoData` if it is not.
    pub replace: bool,
}

/// Which extended attributes an inode has, as far as somebody asks often for some that most inodes lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrFlags(u8);

impl XattrFlags {
    /// At least one.
    pub const ANY: XattrFlags = XattrFlags(1);
    /// `security.capability`.
    pub const CAPABILITY: XattrFlags = XattrFlags(2);
    /// An access ACL that says more than the mode.
    pub const ACCESS_ACL: XattrFlags = XattrFlags(4);
    /// A default ACL.
    pub const DEFAULT_ACL: XattrFlags = XattrFlags(8);

    /// What the presence of an attribute of that name sets.
    pub fn of_name(name: &[u8]) -> Self {
        XattrFlags::ANY.with(match name {
            CAPABILITY => XattrFlags::CAPABILITY,
            ACCESS_ACL => XattrFlags::ACCESS_ACL,
            DEFAULT_ACL => XattrFlags::DEFAULT_ACL,
            _ => XattrFlags::ANY,
        })
    }

    /// These and those.
    pub fn with(self, other: XattrFlags) -> Self {
        XattrFlags(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub fn has(self, other: XattrFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits, for digests.
    pub fn bits(self) -> u8 {
        self.0
    }
}

impl XattrName {
    /// Checks and takes a name. Errors: `Range` over 255 bytes, `InvalidArgument` for an empty one or one with a NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Status> {
        let name = XattrName(bytes.into());
        name.check()?;
        Ok(name)
    }

    /// The check of [`XattrName::new`] for a name that came over the wire.
    pub fn check(&self) -> Result<(), Status> {
        match self.0.len() {
            0 => Err(Status::InvalidArgument),
            length if length > limits::XATTR_NAME_BYTES_MAX => Err(Status::Range),
            _ if self.0.contains(&0) => Err(Status::InvalidArgument),
            _ => Ok(()),
        }
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its kind. Errors: `NotSupported` for a namespace that does not exist, `InvalidArgument` for a namespace without a name.
    pub fn class(&self) -> Result<XattrClass, Status> {
        match &self.0[..] {
            ACCESS_ACL => return Ok(XattrClass::AccessAcl),
            DEFAULT_ACL => return Ok(XattrClass::DefaultAcl),
            _ => {}
        }
        let prefixes: [(&[u8], XattrClass); 3] =
            [(b"user.", XattrClass::User), (TRUSTED_PREFIX, XattrClass::Trusted), (b"security.", XattrClass::Security)];
        for (prefix, class) in prefixes {
            match self.0.strip_prefix(prefix) {
                Some([]) => return Err(Status::InvalidArgument),
                Some(_) => return Ok(class),
                None => {}
            }
        }
        Err(Status::NotSupported)
    }
}

impl fmt::Debug for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_namespaces() {
        let class = |name: &[u8]| XattrName::new(name).and_then(|name| name.class());
        assert_eq!(class(b"user.a"), Ok(XattrClass::User));
        assert_eq!(class(b"user./ \xff"), Ok(XattrClass::User));
        assert_eq!(class(b"trusted.overlay.opaque"), Ok(XattrClass::Trusted));
        assert_eq!(class(CAPABILITY), Ok(XattrClass::Security));
        assert_eq!(class(ACCESS_ACL), Ok(XattrClass::AccessAcl));
        assert_eq!(class(DEFAULT_ACL), Ok(XattrClass::DefaultAcl));
        for unknown in [&b"user"[..], b"system.other", b"other.a", b"."] {
            assert_eq!(class(unknown), Err(Status::NotSupported), "{unknown:?}");
        }
        for empty in [&b"user."[..], b"security.", b"trusted.", b"", b"user.a\0b"] {
            assert_eq!(class(empty), Err(Status::InvalidArgument), "{empty:?}");
        }
        assert_eq!(XattrName::new(vec![b'a'; 256]), Err(Status::Range));
        assert!(XattrName::new([&b"user."[..], &[b'a'; 250]].concat()).is_ok());
    }

    #[test]
    fn flags_tell_what_is_there() {
        let flags = XattrFlags::of_name(b"user.a");
        assert!(flags.has(XattrFlags::ANY) && !flags.has(XattrFlags::CAPABILITY));
        let flags = flags.with(XattrFlags::of_name(CAPABILITY));
        assert!(flags.has(XattrFlags::CAPABILITY) && !flags.has(XattrFlags::ACCESS_ACL));
        assert!(!XattrFlags::default().has(XattrFlags::ANY));
    }
}
