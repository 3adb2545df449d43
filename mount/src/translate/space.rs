//! fallocate, copy_file_range, SEEK_DATA and SEEK_HOLE.

use dfs::client::{self, Call};
use dfs::limits;
use dfs::status::Status;
use dfs::types::{ByteRange, InodeId};
use dfs::wire::namespace::{AllocateMode, Answer, Replied, Sought};

use super::{Shape, Step, Translator};
use crate::requests::{Context, Handle, Reply, WriteKind};

/// An open file.
type File = (InodeId, Handle);

impl Translator {
    pub(super) fn allocate(
        &mut self,
        token: u64,
        context: Context,
        file: File,
        range: ByteRange,
        mode: AllocateMode,
    ) -> Result<(), Status> {
        let ino = self.opened(file)?;
        let range = match mode {
            // Nothing lies behind the largest file.
            AllocateMode::Punch => within_files(range),
            _ if range.end() > limits::FILE_BYTES_MAX => return Err(Status::FileTooLarge),
            _ => range,
        };
        if range.length == 0 {
            self.reply(token, Reply::Done);
            return Ok(());
        }
        self.kill_setgid_before_write(ino, context, WriteKind::At);
        let call = Call::Allocate { ino, range, mode, kill_privileges: context.uid != 0 };
        self.call(Step::Answer { token, shape: Shape::Done }, call);
        Ok(())
    }

    pub(super) fn copy(&mut self, token: u64, context: Context, from: (File, u64), to: (File, u64), length: u64) -> Result<(), Status> {
        let ((from, from_offset), (to, to_offset)) = (from, to);
        let (from, to) = (self.opened(from)?, self.opened(to)?);
        let range = within_files(ByteRange { offset: from_offset, length });
        let target = within_files(ByteRange { offset: to_offset, length: range.length });
        if target.length == 0 && range.length > 0 {
            return Err(Status::FileTooLarge);
        }
        // The answer has 32 bits.
        let length = target.length.min(u64::from(u32::MAX));
        if length == 0 {
            self.reply(token, Reply::Written(0));
            return Ok(());
        }
        self.kill_setgid_before_write(to, context, WriteKind::At);
        let call = Call::Copy { from, from_offset, to, to_offset, length, kill_privileges: context.uid != 0 };
        self.call(Step::Answer { token, shape: Shape::Range }, call);
        Ok(())
    }

    pub(super) fn seek(&mut self, token: u64, file: File, offset: u64, what: Sought) -> Result<(), Status> {
        let ino = self.opened(file)?;
        self.call(Step::Answer { token, shape: Shape::Range }, Call::Seek { ino, offset, what });
        Ok(())
    }

    fn opened(&self, (ino, handle): File) -> Result<InodeId, Status> {
        if self.handles.is_open(handle, ino) { Ok(ino) } else { Err(Status::BadHandle) }
    }
}

fn within_files(range: ByteRange) -> ByteRange {
    ByteRange { length: range.length.min(limits::FILE_BYTES_MAX.saturating_sub(range.offset)), ..range }
}

/// The reply to a copy or a search.
pub(super) fn shaped(reply: client::Reply) -> Result<Reply, Status> {
    match reply {
        client::Reply::Replied(Replied::Ranged { done, .. }) => Ok(Reply::Written(u32::try_from(done).map_err(|_| Status::Internal)?)),
        client::Reply::Answer(Answer::Sought { offset, found: true }) => Ok(Reply::Sought(offset)),
        _ => Err(Status::Internal),
    }
}
