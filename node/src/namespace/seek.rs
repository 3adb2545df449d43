//! SEEK_DATA and SEEK_HOLE: where the next bytes are, and where the next run of zeros that occupies nothing.

use dfs::limits;
use dfs::status::Status;
use dfs::types::InodeId;
use dfs::wire::namespace::{Answer, Sought};

use super::Namespace;

/// Slots and extents that one answer looks at; who asked asks on from there.
const VISITS_MAX: usize = 4 * limits::COMMAND_VISITS_MAX;

impl Namespace {
    /// Reserved space is a hole, as unwritten extents are on other file systems. Errors: `NoSuchDeviceAddress` if there is nothing
    /// of the kind, or the offset is not before the end.
    pub(super) fn seek(&self, ino: InodeId, offset: u64, what: Sought) -> Result<Answer, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        let file = inode.file().ok_or(if inode.is_directory() { Status::IsDirectory } else { Status::InvalidArgument })?;
        if offset >= file.size {
            return Err(Status::NoSuchDeviceAddress);
        }
        let found = |offset: u64| Ok(Answer::Sought { offset, found: true });
        // Everything from the offset up to here is data, when a hole is sought.
        let mut data_end = offset;
        let mut visits = 0;
        for (index, slot) in self.store.slots_from(ino, offset / limits::SLOT_BYTES) {
            let base = index * limits::SLOT_BYTES;
            if base >= file.size || what == Sought::Hole && base > data_end {
                break;
            }
            if visits > VISITS_MAX {
                let offset = if what == Sought::Data { base.max(offset) } else { data_end };
                return Ok(Answer::Sought { offset, found: false });
            }
            visits += 1;
            if file.hides(index, slot.born) {
                continue;
            }
            visits += slot.pieces().len();
            for piece in slot.pieces().iter().filter(|piece| !piece.is_reserved()) {
                let (start, end) = (base + u64::from(piece.start), base + u64::from(piece.end()));
                match what {
                    _ if end <= data_end => {}
                    Sought::Data => return found(start.max(offset)),
                    Sought::Hole if start > data_end => return found(data_end),
                    Sought::Hole => data_end = end,
                }
            }
        }
        match what {
            Sought::Data => Err(Status::NoSuchDeviceAddress),
            Sought::Hole => found(data_end.min(file.size)),
        }
    }
}
