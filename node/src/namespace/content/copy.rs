//! copy_file_range: the target's extents come to name the source's chunks. No data moves; inline bytes are copied.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{InodeId, Timestamp};
use dfs::wire::namespace::Replied;

use super::super::chunks::Claims;
use super::super::extents::{Content, Piece};
use super::{Namespace, Plan, by_slot};

/// What is copied where.
#[derive(Clone, Copy)]
pub(in crate::namespace) struct CopyRange {
    pub from: InodeId,
    pub from_offset: u64,
    pub to: InodeId,
    pub to_offset: u64,
    pub length: u64,
}

/// A copy being planned.
struct Copying<'a> {
    plan: &'a mut Plan,
    range: CopyRange,
    /// Position in the source: everything before it is planned.
    at: u64,
    /// Extents and slots looked at.
    visits: usize,
    inline: u64,
    /// Of inline bytes that still may come to the namespace.
    inline_room: u64,
}

/// Why a plan ends before the range does.
enum Stop {
    /// It is large enough for one command.
    Enough,
    /// The next slot of the target has too many extents.
    Fragmented,
    /// There is no room for the next inline bytes.
    NoInlineRoom,
}

impl CopyRange {
    /// The position in the target that a position in the source goes to.
    fn target(&self, at: u64) -> u64 {
        self.to_offset + (at - self.from_offset)
    }

    fn source(&self, at: u64) -> u64 {
        self.from_offset + (at - self.to_offset)
    }

    fn check(&self) -> Result<(), Status> {
        let end = |offset: u64| offset.checked_add(self.length).filter(|&end| end <= limits::FILE_BYTES_MAX);
        let (Some(from_end), Some(to_end)) = (end(self.from_offset), end(self.to_offset)) else { return Err(Status::FileTooLarge) };
        let overlap = self.from == self.to && self.from_offset < to_end && self.to_offset < from_end;
        if overlap { Err(Status::InvalidArgument) } else { Ok(()) }
    }
}

impl Namespace {
    /// Does the first part of the range and tells how much: nothing at the source's end. Errors: `Busy` if the target's first slot is
    /// too fragmented, `NotSupported` if there is no room for inline bytes but may be for chunks.
    pub(in crate::namespace) fn copy(&mut self, range: CopyRange, kill_privileges: bool, now: Timestamp) -> Result<Replied, Status> {
        let (source, target) = (self.file(range.from)?, self.file(range.to)?);
        range.check()?;
        let end = source.size.min(range.from_offset + range.length);
        if range.from_offset >= end {
            return Ok(Replied::Ranged { done: 0, inline: 0, attributes: self.attributes(range.to)? });
        }
        self.check_records()?;
        let mut plan = Plan { shares: true, ..Plan::new(range.to, target) };
        let inline_room = self.header.limits.inline_bytes_max.saturating_sub(self.store.usage().inline_bytes);
        let mut copying = Copying { plan: &mut plan, range, at: range.from_offset, visits: 0, inline: 0, inline_room };
        let stop = self.plan_copy(&mut copying, end);
        let (done, inline) = (copying.at - range.from_offset, copying.inline);
        match stop {
            Err(Stop::Fragmented) if done == 0 => return Err(Status::Busy),
            Err(Stop::NoInlineRoom) if done == 0 => return Err(Status::NotSupported),
            _ => {}
        }
        plan.file.size = plan.file.size.max(range.to_offset + done);
        plan.file.data_version += 1;
        self.check_plan(&plan, &Claims::new(), None)?;
        let file = self.store_plan(plan, &Claims::new());
        self.finish_change(range.to, file, kill_privileges, now);
        Ok(Replied::Ranged { done, inline, attributes: self.attributes(range.to)? })
    }

    fn plan_copy(&self, copying: &mut Copying, end: u64) -> Result<(), Stop> {
        let range = copying.range;
        let Some(source) = self.store.inode(range.from).and_then(|inode| inode.file()) else { return Ok(()) };
        for (index, slot) in self.store.slots_from(range.from, range.from_offset / limits::SLOT_BYTES) {
            let base = index * limits::SLOT_BYTES;
            if base >= end {
                break;
            }
            if copying.visits > limits::COMMAND_VISITS_MAX && base > copying.at {
                self.plan_zeros(copying, base)?;
                return Err(Stop::Enough);
            }
            copying.visits += 1;
            if source.hides(index, slot.born) {
                continue;
            }
            let first = slot.pieces().partition_point(|piece| base + u64::from(piece.end()) <= copying.at);
            for piece in slot.pieces()[first..].iter().filter(|piece| !piece.is_reserved()) {
                let start = base + u64::from(piece.start);
                if start >= end {
                    break;
                }
                self.plan_zeros(copying, start)?;
                self.plan_piece(copying, piece, start, end)?;
            }
        }
        self.plan_zeros(copying, end)
    }

    /// What lies in the target where the source has a hole up to there.
    fn plan_zeros(&self, copying: &mut Copying, until: u64) -> Result<(), Stop> {
        if until <= copying.at {
            return Ok(());
        }
        let (start, end) = (copying.range.target(copying.at), copying.range.target(until));
        for (index, _) in self.store.slots_from(copying.range.to, start / limits::SLOT_BYTES) {
            let base = index * limits::SLOT_BYTES;
            if base >= end {
                break;
            }
            // Everything before this slot reads as zeros already.
            copying.at = copying.at.max(copying.range.source(base.max(start)));
            let (from, until) = ((start.max(base) - base) as u32, (end - base).min(limits::SLOT_BYTES) as u32);
            self.enter_slot(copying, index, (from, until))?;
            copying.plan.with(index, |slot, references| slot.zero(from, until, references));
        }
        copying.at = until;
        Ok(())
    }

    /// The source's piece, from where the plan stands.
    fn plan_piece(&self, copying: &mut Copying, piece: &Piece, start: u64, end: u64) -> Result<(), Stop> {
        let end = end.min(start + u64::from(piece.length));
        let (from, until) = (copying.range.target(copying.at), copying.range.target(end));
        for (index, from, until) in by_slot(from, until) {
            let length = u64::from(until - from);
            let inline = matches!(piece.content, Content::Inline(_));
            if inline && copying.inline + length > copying.inline_room {
                return Err(Stop::NoInlineRoom);
            }
            if inline && copying.inline >= limits::EXTENTS_INLINE_BYTES_MAX as u64 {
                return Err(Stop::Enough);
            }
            self.enter_slot(copying, index, (from, until))?;
            let content = piece.content.part((copying.at - start) as u32, length as u32);
            copying.plan.with(index, |slot, references| slot.splice(from, until, Some(content), references));
            copying.at += length;
            copying.inline += if inline { length } else { 0 };
        }
        Ok(())
    }

    /// Takes a slot of the target into the plan, if the plan may go on there.
    fn enter_slot(&self, copying: &mut Copying, index: u64, (from, until): (u32, u32)) -> Result<(), Stop> {
        let planned = copying.plan.slots.get(&index);
        let stored = self.store.slot(copying.range.to, index).filter(|_| planned.is_none());
        copying.visits += 1 + stored.map_or(0, |slot| slot.pieces().len());
        if copying.visits > limits::COMMAND_VISITS_MAX && copying.at > copying.range.from_offset {
            return Err(Stop::Enough);
        }
        let pieces = self.plan_slot(copying.plan, index).pieces_after(from, until);
        if pieces > limits::SLOT_EXTENTS_MAX { Err(Stop::Fragmented) } else { Ok(()) }
    }
}
