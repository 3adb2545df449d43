//! fallocate: space reserved, zeroed or given back, a bounded part of a range at a time.

use dfs::limits;
use dfs::status::Status;
use dfs::types::{ByteRange, InodeId, Timestamp};
use dfs::wire::namespace::{AllocateMode, Replied};

use super::super::chunks::Claims;
use super::super::extents::{Content, References};
use super::super::inode::File;
use super::{Namespace, Plan, by_slot};

/// Memory that the record of a slot takes which is reserved whole, about.
const RESERVED_SLOT_BYTES: u64 = 208;

impl Namespace {
    /// Does the first part of the range and tells how much. Only what ends the range makes the file grow, so that a range that
    /// was given up half way leaves nothing but space that is reserved. Errors: `Busy` if the first slot is too fragmented,
    /// `NoSpace` before anything is done if it is plain that the whole cannot fit.
    pub(in crate::namespace) fn allocate(
        &mut self,
        ino: InodeId,
        range: ByteRange,
        mode: AllocateMode,
        kill_privileges: bool,
        now: Timestamp,
    ) -> Result<Replied, Status> {
        let file = self.file(ino)?;
        let end = range.offset.checked_add(range.length).filter(|&end| end <= limits::FILE_BYTES_MAX).ok_or(Status::FileTooLarge)?;
        if range.length == 0 {
            return Err(Status::InvalidArgument);
        }
        let mut plan = Plan::new(ino, file);
        let reached = match mode {
            AllocateMode::Punch => self.plan_punch(&mut plan, range.offset, end)?,
            AllocateMode::Reserve { .. } | AllocateMode::Zero { .. } => {
                self.check_reservable(range.length.saturating_sub(file.blocks.saturating_mul(512)))?;
                self.plan_reservation(&mut plan, (range.offset, end), matches!(mode, AllocateMode::Zero { .. }))?
            }
        };
        let size = file.size;
        if reached == end && matches!(mode, AllocateMode::Reserve { keep_size: false } | AllocateMode::Zero { keep_size: false }) {
            plan.file.size = size.max(end);
        }
        if !matches!(mode, AllocateMode::Reserve { .. }) || plan.file.size != size {
            plan.file.data_version += 1;
        }
        self.check_plan(&plan, &Claims::new(), None)?;
        let file = self.store_plan(plan, &Claims::new());
        self.finish_change(ino, file, kill_privileges, now);
        Ok(Replied::Ranged { done: reached - range.offset, inline: 0, attributes: self.attributes(ino)? })
    }

    /// Stores the file of a plan that was carried out, with the marks of a change of content.
    pub(super) fn finish_change(&mut self, ino: InodeId, file: File, kill_privileges: bool, now: Timestamp) {
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            (inode.mtime, inode.ctime) = (now.into(), now.into());
            if kill_privileges {
                inode.kill_privileges();
            }
            inode.set_file(file);
        });
        self.drop_capability(ino);
    }

    /// Whether so many more bytes could be reserved at all: a range far too large is refused at once, not when all space is used up.
    fn check_reservable(&self, missing: u64) -> Result<(), Status> {
        self.check_records()?;
        let (usage, limits) = (self.store.usage(), self.header.limits);
        let records = missing / limits::SLOT_BYTES * RESERVED_SLOT_BYTES;
        let fits = missing.saturating_add(records) <= self.spare_for_new()
            && usage.namespace_bytes.saturating_add(records) <= limits.namespace_bytes_max;
        if fits || missing == 0 { Ok(()) } else { Err(Status::NoSpace) }
    }

    /// Plans holes in all slots there are, and gives where the plan ends.
    fn plan_punch(&self, plan: &mut Plan, offset: u64, end: u64) -> Result<u64, Status> {
        let mut visits = 0;
        for (index, stored) in self.store.slots_from(plan.ino, offset / limits::SLOT_BYTES) {
            let base = index * limits::SLOT_BYTES;
            if base >= end {
                break;
            }
            let (from, until) = (offset.max(base) - base, (end - base).min(limits::SLOT_BYTES));
            let too_full = stored.pieces_after(from as u32, until as u32) > limits::SLOT_EXTENTS_MAX;
            visits += 1 + stored.pieces().len();
            if !plan.slots.is_empty() && (too_full || visits > limits::COMMAND_VISITS_MAX) {
                return Ok(base);
            }
            if too_full {
                return Err(Status::Busy);
            }
            self.plan_slot(plan, index);
            plan.with(index, |slot, references| slot.splice(from as u32, until as u32, None, references));
        }
        Ok(end)
    }

    /// Plans that holes, or with `zero` everything, become reserved space, and gives where the plan ends.
    fn plan_reservation(&self, plan: &mut Plan, (offset, end): (u64, u64), zero: bool) -> Result<u64, Status> {
        let mut visits = 0;
        for (index, from, until) in by_slot(offset, end) {
            visits += 1 + self.store.slot(plan.ino, index).map_or(0, |stored| stored.pieces().len());
            if !plan.slots.is_empty() && visits > limits::COMMAND_VISITS_MAX {
                return Ok(index * limits::SLOT_BYTES);
            }
            let first = plan.slots.is_empty();
            self.plan_slot(plan, index);
            let before = plan.slots[&index].clone();
            let pieces = plan.with(index, |slot, references| {
                let mut trial = References::new();
                match zero {
                    true => slot.splice(from, until, Some(Content::Reserved), &mut trial),
                    false => slot.reserve(from, until, &mut trial),
                }
                let pieces = slot.pieces().len();
                if pieces <= limits::SLOT_EXTENTS_MAX {
                    trial.into_iter().for_each(|(hash, change)| *references.entry(hash).or_default() += change);
                }
                pieces
            });
            if pieces > limits::SLOT_EXTENTS_MAX {
                plan.slots.insert(index, before);
                return if first { Err(Status::Busy) } else { Ok(index * limits::SLOT_BYTES) };
            }
        }
        Ok(end)
    }
}
