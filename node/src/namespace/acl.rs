//! POSIX access control lists: the form that Linux stores and reads them in, and how they and the permission bits of a mode keep in step.
//!
//! Pure values. Who may set one, and what one means for a process that opens a file, is the kernel's business.

use dfs::limits;
use dfs::status::Status;

/// First word of the form; Linux knows no other.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The id of an entry that names nobody.
const NOBODY: u32 = u32::MAX;

const READ_WRITE_EXECUTE: u16 = 0o7;
const PERMISSIONS: u16 = 0o777;

/// Whom an entry is about. The numbers are those of the stored form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u16,
    id: u32,
}

/// A valid list: owner, users, owning group, groups, the mask if anybody is named, other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

impl Tag {
    fn of(number: u16) -> Option<Tag> {
        [Tag::Owner, Tag::User, Tag::OwningGroup, Tag::Group, Tag::Mask, Tag::Other].into_iter().find(|tag| *tag as u16 == number)
    }

    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }

    /// Whether an entry with this tag may stand before one with that.
    fn precedes(self, next: Tag) -> bool {
        (self as u16) < next as u16 || self == next && self.is_named()
    }
}

fn class(mode: u16, shift: u16) -> u16 {
    mode >> shift & READ_WRITE_EXECUTE
}

impl Acl {
    /// Reads the stored form. `None`: a list without entries, which stands for no list. Errors: `NotSupported` for another version,
    /// `InvalidArgument` for anything else that is not valid, `TooLong` beyond what the kernel reads.
    pub fn parse(bytes: &[u8]) -> Result<Option<Acl>, Status> {
        if bytes.len() > limits::ACL_BYTES_MAX {
            return Err(Status::TooLong);
        }
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Status::InvalidArgument)?;
        if u32::from_le_bytes(*header) != VERSION {
            return Err(Status::NotSupported);
        }
        let (chunks, tail) = rest.as_chunks::<ENTRY_BYTES>();
        if !tail.is_empty() {
            return Err(Status::InvalidArgument);
        }
        let entries = chunks.iter().map(parse_entry).collect::<Option<Vec<Entry>>>().ok_or(Status::InvalidArgument)?;
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Acl { entries };
        if acl.is_valid() { Ok(Some(acl)) } else { Err(Status::InvalidArgument) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let ordered = self.entries.windows(2).all(|pair| pair[0].tag.precedes(pair[1].tag));
        let named = self.entries.iter().any(|entry| entry.tag.is_named());
        ordered && count(Tag::Owner) == 1 && count(Tag::OwningGroup) == 1 && count(Tag::Other) == 1 && (!named || count(Tag::Mask) == 1)
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend_from_slice(&(entry.tag as u16).to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether it says no more than a mode does.
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, Tag::Owner | Tag::OwningGroup | Tag::Other))
    }

    /// The entry that the group bits of a mode stand for: the mask, if there is one.
    fn group_class(&self) -> Tag {
        if self.entries.iter().any(|entry| entry.tag == Tag::Mask) { Tag::Mask } else { Tag::OwningGroup }
    }

    /// The mode with the permission bits that the list stands for.
    pub fn apply_to_mode(&self, mode: u16) -> u16 {
        let group_class = self.group_class();
        self.entries.iter().fold(mode & !PERMISSIONS, |mode, entry| match entry.tag {
            Tag::Owner => mode | entry.permissions << 6,
            tag if tag == group_class => mode | entry.permissions << 3,
            Tag::Other => mode | entry.permissions,
            _ => mode,
        })
    }

    /// Takes over the permission bits of a mode that was set.
    pub fn change_mode(&mut self, mode: u16) {
        let group_class = self.group_class();
        for entry in &mut self.entries {
            match entry.tag {
                Tag::Owner => entry.permissions = class(mode, 6),
                tag if tag == group_class => entry.permissions = class(mode, 3),
                Tag::Other => entry.permissions = class(mode, 0),
                _ => {}
            }
        }
    }

    /// The access list of something made with that mode where this list is the default, and the mode that it then has.
    pub fn inherit(&self, mode: u16) -> (Acl, u16) {
        let mut acl = self.clone();
        let group_class = acl.group_class();
        for entry in &mut acl.entries {
            match entry.tag {
                Tag::Owner => entry.permissions &= class(mode, 6),
                tag if tag == group_class => entry.permissions &= class(mode, 3),
                Tag::Other => entry.permissions &= class(mode, 0),
                _ => {}
            }
        }
        let mode = acl.apply_to_mode(mode);
        (acl, mode)
    }
}

fn parse_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<Entry> {
    let [tag_low, tag_high, low, high, id @ ..] = *bytes;
    let tag = Tag::of(u16::from_le_bytes([tag_low, tag_high]))?;
    let permissions = u16::from_le_bytes([low, high]);
    let id = u32::from_le_bytes(id);
    let sound = permissions & !READ_WRITE_EXECUTE == 0 && (!tag.is_named() || id != NOBODY);
    // What an entry that names nobody carries as id means nothing; one form is stored.
    sound.then_some(Entry { tag, permissions, id: if tag.is_named() { id } else { NOBODY } })
}

/// The stored form of a list, for tests of other rooms.
#[cfg(test)]
pub(super) fn bytes_for_test(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: u16 = 1;
    const USER: u16 = 2;
    const OWNING_GROUP: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;

    fn parse(entries: &[(u16, u16)]) -> Result<Option<Acl>, Status> {
        let id = |tag| if tag == USER || tag == GROUP { 1000 } else { NOBODY };
        let entries: Vec<(u16, u16, u32)> = entries.iter().map(|&(tag, permissions)| (tag, permissions, id(tag))).collect();
        Acl::parse(&bytes_for_test(&entries))
    }

    fn acl(entries: &[(u16, u16)]) -> Acl {
        parse(entries).unwrap().unwrap()
    }

    #[test]
    fn only_valid_lists_are_taken() {
        assert!(parse(&[(OWNER, 6), (OWNING_GROUP, 4), (OTHER, 0)]).unwrap().unwrap().is_minimal());
        assert!(!acl(&[(OWNER, 6), (USER, 6), (USER, 4), (OWNING_GROUP, 4), (GROUP, 1), (MASK, 7), (OTHER, 0)]).is_minimal());
        assert!(!acl(&[(OWNER, 6), (OWNING_GROUP, 4), (MASK, 7), (OTHER, 0)]).is_minimal());
        assert_eq!(parse(&[]), Ok(None));
        let wrong: [&[(u16, u16)]; 9] = [
            &[(OWNER, 6)],
            &[(OWNER, 6), (OTHER, 0)],
            &[(OWNER, 6), (OWNING_GROUP, 4)],
            &[(OWNER, 6), (OTHER, 0), (OWNING_GROUP, 4)],
            &[(OWNER, 6), (OWNER, 6), (OWNING_GROUP, 4), (OTHER, 0)],
            &[(OWNER, 6), (USER, 6), (OWNING_GROUP, 4), (OTHER, 0)],
            &[(OWNER, 6), (OWNING_GROUP, 4), (USER, 6), (MASK, 7), (OTHER, 0)],
            &[(OWNER, 8), (OWNING_GROUP, 4), (OTHER, 0)],
            &[(OWNER, 6), (OWNING_GROUP, 4), (64, 0), (OTHER, 0)],
        ];
        for entries in wrong {
            assert_eq!(parse(entries), Err(Status::InvalidArgument), "{entries:?}");
        }
        let whole = acl(&[(OWNER, 6), (OWNING_GROUP, 4), (OTHER, 0)]).to_bytes();
        assert_eq!(Acl::parse(&whole[..whole.len() - 1]), Err(Status::InvalidArgument));
        assert_eq!(Acl::parse(&whole[..3]), Err(Status::InvalidArgument));
        assert_eq!(Acl::parse(&[3, 0, 0, 0]), Err(Status::NotSupported));
        assert_eq!(Acl::parse(&[0; limits::ACL_BYTES_MAX + 1]), Err(Status::TooLong));
        let nameless = bytes_for_test(&[(OWNER, 6, 0), (USER, 6, NOBODY), (OWNING_GROUP, 4, 0), (MASK, 7, 0), (OTHER, 0, 0)]);
        assert_eq!(Acl::parse(&nameless), Err(Status::InvalidArgument));
    }

    #[test]
    fn the_stored_form_comes_back() {
        let list = acl(&[(OWNER, 6), (USER, 5), (OWNING_GROUP, 4), (GROUP, 1), (MASK, 7), (OTHER, 2)]);
        assert_eq!(list.to_bytes().len(), 4 + 6 * 8);
        assert_eq!(Acl::parse(&list.to_bytes()), Ok(Some(list)));
    }

    #[test]
    fn the_group_bits_of_the_mode_are_the_mask() {
        let mut list = acl(&[(OWNER, 6), (USER, 7), (OWNING_GROUP, 4), (MASK, 5), (OTHER, 1)]);
        assert_eq!(list.apply_to_mode(0o4000), 0o4651);
        list.change_mode(0o1724);
        assert_eq!(list, acl(&[(OWNER, 7), (USER, 7), (OWNING_GROUP, 4), (MASK, 2), (OTHER, 4)]));
        let mut minimal = acl(&[(OWNER, 6), (OWNING_GROUP, 4), (OTHER, 1)]);
        assert_eq!(minimal.apply_to_mode(0o777), 0o641);
        minimal.change_mode(0o750);
        assert_eq!(minimal, acl(&[(OWNER, 7), (OWNING_GROUP, 5), (OTHER, 0)]));
    }

    #[test]
    fn what_is_made_inherits_no_more_than_its_mode_allows() {
        let default = acl(&[(OWNER, 7), (USER, 7), (OWNING_GROUP, 5), (MASK, 7), (OTHER, 5)]);
        let (access, mode) = default.inherit(0o2664);
        assert_eq!((access, mode), (acl(&[(OWNER, 6), (USER, 7), (OWNING_GROUP, 5), (MASK, 6), (OTHER, 4)]), 0o2664));
        let (access, mode) = acl(&[(OWNER, 7), (OWNING_GROUP, 0), (OTHER, 1)]).inherit(0o666);
        assert!(access.is_minimal());
        assert_eq!(mode, 0o600);
    }
}
