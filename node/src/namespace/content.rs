//! Content of files: write, fold, truncate, and the freeing in slices of what was unlinked or cut off.
//!
//! An operation is planned on copies of the slots that it touches; only a plan that passes every check is carried out.

mod allocate;
mod copy;

pub(super) use copy::CopyRange;

use std::collections::BTreeMap;

use dfs::limits;
use dfs::status::Status;
use dfs::types::{InodeId, SessionId, Timestamp};
use dfs::wire::namespace::{Behind, ChunkClaim, Patch, Replied, SetAttributes, Source, WriteAt};

use super::Namespace;
use super::chunks::{Claims, gather_claims};
use super::command::Effect;
use super::extents::{Content, References, Reservations, Slot};
use super::inode::{Cut, File, Inode, check_set};

/// Slots that one command may touch.
const SLOTS_TOUCHED_MAX: usize = 2 * limits::WRITE_PATCHES_MAX;
/// Slots that a truncation frees at once; more are cut off and freed in slices.
const TRUNCATE_VISITS_MAX: usize = limits::COMMAND_VISITS_MAX / 4;

/// A slot by its version, as a fold names it.
#[derive(Clone, Copy)]
pub(super) struct SlotAt {
    pub ino: InodeId,
    pub index: u64,
    pub version: u64,
}

/// The circumstances of a write.
#[derive(Clone, Copy)]
pub(super) struct HowWritten {
    pub kill_privileges: bool,
    pub behind: Option<Behind>,
    /// The time of the log entry.
    pub now: Timestamp,
}

/// The state that a command is about to make of a file.
struct Plan {
    ino: InodeId,
    file: File,
    slots: BTreeMap<u64, Slot>,
    references: References,
    /// Of the stored slots that the plan replaces.
    old_blocks: u64,
    old_inline: u64,
    old_weight: u64,
    old_reserved: Reservations,
    /// Whether what another file has is named here, too.
    shares: bool,
}

impl Plan {
    fn new(ino: InodeId, file: &File) -> Plan {
        let file = File { layout: file.layout + 1, ..file.clone() };
        let (slots, references) = (BTreeMap::new(), References::new());
        Plan {
            ino,
            file,
            slots,
            references,
            old_blocks: 0,
            old_inline: 0,
            old_weight: 0,
            old_reserved: Reservations::default(),
            shares: false,
        }
    }

    /// Changes a slot that was planned.
    fn with<R>(&mut self, index: u64, change: impl FnOnce(&mut Slot, &mut References) -> R) -> R {
        change(self.slots.get_mut(&index).expect("the slot was planned"), &mut self.references)
    }

    /// What the slots will take and give back of the space that is not chunks': the charge of reservations, and their own records with
    /// inline bytes.
    fn shift(&self) -> Shift {
        let mut shift = Shift { freed: self.old_reserved.charge + self.old_weight, ..Shift::default() };
        let (mut reserved, mut inline) = (Reservations::default(), 0);
        for slot in self.slots.values().filter(|slot| !slot.pieces().is_empty()) {
            reserved.bytes += slot.reserved().bytes;
            reserved.charge += slot.reserved().charge;
            inline += slot.inline_bytes();
            shift.added += slot.reserved().charge + slot.weight();
        }
        shift.filled = self.old_reserved.bytes.saturating_sub(reserved.bytes);
        shift.reserves = reserved.bytes > self.old_reserved.bytes;
        shift.brings = inline > self.old_inline || shift.reserves || self.shares;
        shift
    }
}

/// What a plan is for, which decides how much room there is for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes that were accepted within a reservation.
    Paid,
    /// No more bytes than the file had: they lie elsewhere, in smaller pieces, or as a hole.
    Change,
    New,
}

/// By how much a plan changes what is charged besides chunks.
#[derive(Clone, Copy, Default)]
pub(super) struct Shift {
    pub added: u64,
    pub freed: u64,
    /// Reserved bytes that are so no more.
    pub filled: u64,
    /// Whether there will be more inline bytes, more reserved ones, or another file's chunks.
    pub brings: bool,
    /// Whether there will be more reserved ones.
    pub reserves: bool,
}

/// `offset..end` by slots: index, and start and end within the slot.
fn by_slot(offset: u64, end: u64) -> impl Iterator<Item = (u64, u32, u32)> {
    let last = if end > offset { (end - 1) / limits::SLOT_BYTES + 1 } else { 0 };
    (offset / limits::SLOT_BYTES..last).map(move |index| {
        let base = index * limits::SLOT_BYTES;
        (index, (offset.max(base) - base) as u32, (end - base).min(limits::SLOT_BYTES) as u32)
    })
}

impl Namespace {
    fn file(&self, ino: InodeId) -> Result<&File, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        inode.file().ok_or(if inode.is_directory() { Status::IsDirectory } else { Status::InvalidArgument })
    }

    /// Takes the slot into the plan. What a truncation hides is dropped on the way: the slot is born anew.
    fn plan_slot<'a>(&self, plan: &'a mut Plan, index: u64) -> &'a mut Slot {
        plan.slots.entry(index).or_insert_with(|| {
            let Some(stored) = self.store.slot(plan.ino, index) else { return Slot::new(plan.file.layout) };
            plan.old_blocks += stored.blocks();
            plan.old_inline += stored.inline_bytes();
            plan.old_weight += stored.weight();
            plan.old_reserved.bytes += stored.reserved().bytes;
            plan.old_reserved.charge += stored.reserved().charge;
            if plan.file.hides(index, stored.born) {
                stored.unreference(&mut plan.references);
                return Slot::new(plan.file.layout);
            }
            let mut slot = stored.clone();
            slot.version = plan.file.layout;
            slot
        })
    }

    fn plan_patch(&self, plan: &mut Plan, patch: &Patch, claims: &Claims) -> Result<u64, Status> {
        let offset = if let WriteAt::Offset(offset) = patch.at { offset } else { plan.file.size };
        let end = offset.checked_add(patch.length).filter(|&end| end <= limits::FILE_BYTES_MAX).ok_or(Status::FileTooLarge)?;
        if patch.length == 0 {
            return Ok(offset);
        }
        self.check_source(patch, claims)?;
        let zeros = matches!(&patch.source, Source::Inline(bytes) if bytes.iter().all(|&byte| byte == 0));
        for (index, start, end) in by_slot(offset, end) {
            let hole = zeros || patch.source == Source::Hole;
            if hole && !plan.slots.contains_key(&index) && self.store.slot(plan.ino, index).is_none() {
                continue;
            }
            let skip = (index * limits::SLOT_BYTES + u64::from(start) - offset) as u32;
            let content = if hole { None } else { Content::of_source(&patch.source, skip, end - start) };
            self.plan_slot(plan, index);
            plan.with(index, |slot, references| match content {
                // Zeros written into reserved space leave it reserved: a later write there must find its space too.
                None => slot.zero(start, end, references),
                content => slot.splice(start, end, content, references),
            });
            if plan.slots.len() > SLOTS_TOUCHED_MAX {
                return Err(Status::InvalidArgument);
            }
        }
        plan.file.size = plan.file.size.max(end);
        Ok(offset)
    }

    fn check_source(&self, patch: &Patch, claims: &Claims) -> Result<(), Status> {
        let sound = match &patch.source {
            Source::Hole => patch.length <= SLOTS_TOUCHED_MAX as u64 * limits::SLOT_BYTES,
            Source::Inline(bytes) => bytes.len() as u64 == patch.length && bytes.len() <= limits::INLINE_WRITE_BYTES_MAX,
            Source::Chunk { hash, offset } => {
                u64::from(*offset).saturating_add(patch.length) <= u64::from(self.chunk_length(hash, claims)?)
            }
        };
        if sound { Ok(()) } else { Err(Status::InvalidArgument) }
    }

    /// Whether the plan may be carried out; gives by how much the cluster is fuller then. The payer has reserved that.
    fn check_plan(&self, plan: &Plan, claims: &Claims, payer: Option<SessionId>) -> Result<u64, Status> {
        if plan.slots.values().any(|slot| slot.pieces().len() > limits::SLOT_EXTENTS_MAX) {
            return Err(Status::Busy);
        }
        let inline: u64 = plan.slots.values().map(Slot::inline_bytes).sum();
        let usage = self.store.usage();
        if inline > plan.old_inline && usage.inline_bytes + (inline - plan.old_inline) > self.header.limits.inline_bytes_max {
            return Err(Status::NoSpace);
        }
        self.check_claims(claims, &plan.references)?;
        let blocks: u64 = plan.slots.values().map(Slot::blocks).sum();
        let kind = match payer {
            Some(_) => Kind::Paid,
            None if blocks <= plan.old_blocks => Kind::Change,
            None => Kind::New,
        };
        self.check_capacity(claims, &plan.references, plan.shift(), kind)
    }

    /// Carries the plan out, all but the inode.
    fn store_plan(&mut self, plan: Plan, claims: &Claims) -> File {
        let mut file = plan.file;
        file.blocks -= plan.old_blocks;
        for (index, slot) in plan.slots {
            file.blocks += slot.blocks();
            self.store.put_slot(plan.ino, index, Some(slot).filter(|slot| !slot.pieces().is_empty()));
        }
        self.apply_references(plan.references, claims);
        file
    }

    pub(super) fn write(
        &mut self,
        session: SessionId,
        ino: InodeId,
        (patches, claims): (&[Patch], &[ChunkClaim]),
        how: HowWritten,
    ) -> Result<Replied, Status> {
        let mut plan = Plan::new(ino, self.file(ino)?);
        if patches.is_empty() || patches.len() > limits::WRITE_PATCHES_MAX {
            return Err(Status::InvalidArgument);
        }
        if how.behind.is_some() && self.store.writer(ino) != Some(session) {
            return Err(Status::RightLost);
        }
        let claims = gather_claims(claims, session)?;
        let mut first = None;
        for patch in patches {
            let offset = self.plan_patch(&mut plan, patch, &claims)?;
            first.get_or_insert(offset);
        }
        // Bytes that were accepted a while ago have their room: it was reserved then.
        let payer = Some(session).filter(|_| how.behind.is_some());
        let added = self.check_plan(&plan, &claims, payer)?;
        // So has what is written into space that the file has reserved.
        if plan.shift().filled == 0 && payer.is_none() {
            self.check_records()?;
        }
        plan.file.data_version += 1;
        let file = self.store_plan(plan, &claims);
        self.store.update_inode(ino, |inode| {
            inode.version += 1;
            inode.date_write(how.behind.map(|behind| behind.written), how.now);
            if how.kill_privileges {
                inode.kill_privileges();
            }
            inode.set_file(file);
        });
        self.settle_behind(session, ino, how.behind, added);
        self.drop_capability(ino);
        Ok(Replied::Written { offset: first.unwrap_or(0), attributes: self.attributes(ino)? })
    }

    pub(super) fn fold(&mut self, session: SessionId, at: SlotAt, (patches, claims): (&[Patch], &[ChunkClaim])) -> Result<Replied, Status> {
        let file = self.file(at.ino)?;
        // Whoever writes alone has the layout in mind, and rewrites it soon.
        if self.store.writer(at.ino).is_some_and(|writer| writer != session) {
            return Err(Status::Conflict);
        }
        let visible = self.store.slot(at.ino, at.index).filter(|slot| !file.hides(at.index, slot.born));
        let old = visible.filter(|slot| slot.version == at.version).ok_or(Status::Conflict)?;
        if patches.len() > limits::WRITE_PATCHES_MAX || !covers(patches, old, at.index, file.size) {
            return Err(Status::InvalidArgument);
        }
        let claims = gather_claims(claims, session)?;
        let mut plan = Plan::new(at.ino, file);
        self.plan_slot(&mut plan, at.index).splice(0, limits::SLOT_BYTES as u32, None, &mut References::new());
        old.unreference(&mut plan.references);
        for patch in patches {
            self.plan_patch(&mut plan, patch, &claims)?;
        }
        let end = file.size.saturating_sub(at.index * limits::SLOT_BYTES).min(limits::SLOT_BYTES) as u32;
        self.plan_slot(&mut plan, at.index);
        for (start, end) in old.kept_by_folds(end) {
            plan.with(at.index, |slot, references| slot.splice(start, end, Some(Content::Reserved), references));
        }
        self.check_plan(&plan, &claims, None)?;
        let file = self.store_plan(plan, &claims);
        self.store.update_inode(at.ino, |inode| {
            inode.set_file(file);
        });
        Ok(Replied::Done)
    }

    pub(super) fn set_attributes(&mut self, ino: InodeId, set: &SetAttributes, now: Timestamp) -> Result<Replied, Status> {
        let inode = self.store.inode(ino).ok_or(Status::Stale)?;
        check_set(set, inode.kind())?;
        if let Some(size) = set.size {
            self.truncate(ino, size)?;
        }
        if *set != SetAttributes::default() {
            self.store.update_inode(ino, |inode| inode.set_attributes(set, now));
            if set.mode.is_some() {
                self.change_acl_mode(ino);
            }
            if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
                self.drop_capability(ino);
            }
        }
        Ok(Replied::Attributes(self.attributes(ino)?))
    }

    /// Atomic whatever the size: many slots are only cut off here and freed later.
    fn truncate(&mut self, ino: InodeId, size: u64) -> Result<(), Status> {
        let file = self.file(ino)?;
        // Space that is reserved beyond the end goes even if the size stays, as on other file systems.
        let beyond = |(index, slot): (u64, &Slot)| {
            slot.pieces().last().is_some_and(|last| index * limits::SLOT_BYTES + u64::from(last.end()) > size)
        };
        if size == file.size && !self.store.slots_from(ino, size / limits::SLOT_BYTES).take(2).any(beyond) {
            return Ok(());
        }
        let shrinks = size <= file.size;
        let mut plan = Plan::new(ino, file);
        plan.file.size = size;
        plan.file.data_version += 1;
        let (last, rest) = (size / limits::SLOT_BYTES, (size % limits::SLOT_BYTES) as u32);
        let from = size.div_ceil(limits::SLOT_BYTES);
        let mut cut = false;
        if shrinks {
            if rest > 0 && self.store.slot(ino, last).is_some() {
                self.plan_slot(&mut plan, last);
                // What lies beyond the end reads as zeros when the file grows again.
                plan.with(last, |slot, references| slot.splice(rest, limits::SLOT_BYTES as u32, None, references));
            }
            cut = !self.plan_removal(&mut plan, from);
            plan.file.cuts = cuts_after(&plan.file, from, cut)?;
        }
        let file = self.store_plan(plan, &Claims::new());
        self.store.update_inode(ino, |inode| {
            inode.set_file(file);
        });
        if cut {
            self.effects.push(Effect::Cut(ino));
        }
        Ok(())
    }

    /// Plans to free all slots from there on, if they are few; else plans nothing and answers false.
    fn plan_removal(&self, plan: &mut Plan, from: u64) -> bool {
        let mut visits = 0;
        for (_, slot) in self.store.slots_from(plan.ino, from) {
            visits += 1 + slot.pieces().len();
            if visits > TRUNCATE_VISITS_MAX {
                return false;
            }
        }
        for (index, slot) in self.store.slots_from(plan.ino, from) {
            plan.old_blocks += slot.blocks();
            slot.unreference(&mut plan.references);
            plan.slots.insert(index, Slot::default());
        }
        true
    }

    /// Frees a bounded part of unlinked inodes. The leader repeats it until they are gone, and knows that nobody holds them.
    pub(super) fn reap(&mut self, inos: &[InodeId]) -> Result<Replied, Status> {
        let mut visits = 0;
        for &ino in inos.iter().take(limits::COMMAND_VISITS_MAX) {
            let orphan = self.store.inode(ino).is_some_and(|inode| inode.links == 0);
            if !orphan {
                continue;
            }
            let (blocks, end) = self.free_slots(ino, 0, &mut visits, |_, _| true);
            if end.is_some() {
                self.store.update_inode(ino, |inode| {
                    if let Some(file) = inode.file_mut() {
                        file.blocks -= blocks;
                    }
                });
                break;
            }
            if !self.free_xattrs(ino, &mut visits) {
                break;
            }
            self.store.put(super::store::Key::Inode(ino), None);
            self.store.put_writer(ino, None);
            self.store.put_locks(ino, None);
            visits += 1;
            if visits >= limits::COMMAND_VISITS_MAX {
                break;
            }
        }
        Ok(Replied::Done)
    }

    /// Frees a bounded part of what truncations hid.
    pub(super) fn trim(&mut self, inos: &[InodeId]) -> Result<Replied, Status> {
        let mut visits = 0;
        for &ino in inos.iter().take(limits::COMMAND_VISITS_MAX) {
            while let Some(cut) = self.store.inode(ino).and_then(Inode::file).and_then(|file| file.cuts.first().copied()) {
                let hidden = |_index: u64, slot: &Slot| slot.born <= cut.generation;
                let (blocks, next) = self.free_slots(ino, cut.next, &mut visits, hidden);
                self.store.update_inode(ino, |inode| {
                    let Some(file) = inode.file_mut() else { return };
                    file.blocks -= blocks;
                    match next {
                        Some(next) => file.cuts[0].next = next,
                        None => file.cuts = file.cuts[1..].into(),
                    }
                });
                if next.is_some() {
                    return Ok(Replied::Done);
                }
            }
        }
        Ok(Replied::Done)
    }

    /// Frees slots from `from` on that `chosen` picks, until the visits are used up. Gives the blocks freed, and where to go on.
    fn free_slots(&mut self, ino: InodeId, from: u64, visits: &mut usize, chosen: impl Fn(u64, &Slot) -> bool) -> (u64, Option<u64>) {
        let (mut references, mut freed, mut blocks, mut next) = (References::new(), Vec::new(), 0, None);
        for (index, slot) in self.store.slots_from(ino, from) {
            if *visits >= limits::COMMAND_VISITS_MAX {
                next = Some(index);
                break;
            }
            *visits += 1;
            if chosen(index, slot) {
                *visits += slot.pieces().len();
                blocks += slot.blocks();
                slot.unreference(&mut references);
                freed.push(index);
            }
        }
        for index in freed {
            self.store.put_slot(ino, index, None);
        }
        self.apply_references(references, &Claims::new());
        (blocks, next)
    }
}

/// The cuts after a truncation from slot `from` on. What the new one hides as well is dropped. `Busy` while too many wait.
fn cuts_after(file: &File, from: u64, cut: bool) -> Result<Box<[Cut]>, Status> {
    let mut cuts: Vec<Cut> = file.cuts.iter().copied().filter(|cut| cut.from < from).collect();
    if cut {
        if cuts.len() >= limits::CUTS_MAX {
            return Err(Status::Busy);
        }
        cuts.push(Cut { from, generation: file.layout, next: from });
    }
    Ok(cuts.into())
}

/// Whether the patches of a fold stay within the slot and the file and leave nothing of the slot out. That the bytes are the
/// same is the client's word, as with every write.
fn covers(patches: &[Patch], slot: &Slot, index: u64, size: u64) -> bool {
    let base = index * limits::SLOT_BYTES;
    let limit = size.min(base + limits::SLOT_BYTES);
    let mut ranges = Vec::with_capacity(patches.len());
    for patch in patches {
        let WriteAt::Offset(offset) = patch.at else { return false };
        let Some(end) = offset.checked_add(patch.length).filter(|&end| offset >= base && end <= limit) else { return false };
        ranges.push((offset, end));
    }
    ranges.sort_unstable();
    let mut ranges = ranges.into_iter().peekable();
    let mut covered = (base, base);
    for piece in slot.pieces().iter().filter(|piece| !piece.is_reserved()) {
        let (start, end) = (base + u64::from(piece.start), base + u64::from(piece.end()));
        while covered.1 < end {
            match ranges.next_if(|range| range.0 <= covered.1.max(start)) {
                Some(range) if range.0 <= covered.1 => covered.1 = covered.1.max(range.1),
                Some(range) => covered = range,
                None => return false,
            }
        }
        if covered.0 > start {
            return false;
        }
    }
    true
}
