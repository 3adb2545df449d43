//! Reserving, zeroing, punching, copying and searching ranges of files, in the random test of the namespace.

use super::*;

impl Run {
    /// A range: mostly a few bytes around a slot's border, sometimes many slots.
    pub(super) fn range(&mut self) -> ByteRange {
        let offset = (self.random.below(3) * SLOT_BYTES + self.random.below(900)).saturating_sub(400);
        match self.random.below(8) {
            0 => ByteRange { offset, length: (1 + self.random.below(2000)) * SLOT_BYTES / 4 },
            _ => ByteRange { offset, length: 1 + self.random.below(900) },
        }
    }

    /// Goes on until the range is done, as clients do.
    pub(super) fn in_slices(&mut self, length: u64, op: impl Fn(u64) -> Op) -> (u64, Result<(), Status>) {
        let mut done = 0;
        while done < length {
            match self.op(op(done)) {
                Ok(Replied::Ranged { done: 0, .. }) => break,
                Ok(Replied::Ranged { done: more, .. }) => done += more,
                Err(status) => return (done, Err(status)),
                other => panic!("{other:?}"),
            }
            self.slices += u64::from(done < length);
        }
        (done, Ok(()))
    }

    pub(super) fn allocate(&mut self) {
        let (ino, mut range, mut keep_size) = (self.pick(false), self.range(), self.random.chance(1, 2));
        let mode =
            [AllocateMode::Reserve { keep_size }, AllocateMode::Zero { keep_size }, AllocateMode::Punch][self.random.below(3) as usize];
        let (done, outcome) = self.in_slices(range.length, |done| {
            let range = ByteRange { offset: range.offset + done, length: range.length - done };
            Op::Allocate { ino: InodeId(ino), range, mode, kill_privileges: false }
        });
        if !self.nodes.contains_key(&ino) {
            return assert_eq!(outcome, Err(Status::Stale));
        }
        if outcome == Err(Status::NoSpace) && mode != AllocateMode::Punch {
            // What was done until then stays, and the size as it was.
            self.full += 1;
            assert!(self.world.namespace.usage().charged_bytes + range.length > self.world.namespace.capacity());
            (range.length, keep_size) = (done, true);
        } else {
            assert_eq!((done, outcome), (range.length, Ok(())));
        }
        if range.length == 0 {
            return;
        }
        let (start, end) = (range.offset, range.end());
        // What was written as zeros may be a hole or bytes; only the namespace knows.
        let data = self.data(ino);
        let Some(Node { kind: Kind::File { bytes, size, reserved }, .. }) = self.nodes.get_mut(&ino) else { panic!() };
        if mode != AllocateMode::Punch && !keep_size {
            *size = (*size).max(end);
        }
        if let AllocateMode::Zero { .. } | AllocateMode::Punch = mode {
            let mut tail = bytes.split_off(&start);
            bytes.append(&mut tail.split_off(&end));
        }
        match mode {
            AllocateMode::Punch => reserved.remove(start, end),
            AllocateMode::Zero { .. } => reserved.add(start, end),
            AllocateMode::Reserve { .. } => {
                reserved.add(start, end);
                data.into_iter().for_each(|(start, end)| reserved.remove(start, end));
            }
        }
    }

    pub(super) fn copy(&mut self) {
        let (from, to, mut source, target) = (self.pick(false), self.pick(false), self.range(), self.range().offset);
        if let (true, Some(Node { kind: Kind::File { size, .. }, .. })) = (from == to, self.nodes.get(&from)) {
            // As the kernel does; else the end of the source would run away from the copy.
            source.length = source.length.min(size.saturating_sub(source.offset));
        }
        let length = source.length;
        if length == 0 {
            return;
        }
        let (done, outcome) = self.in_slices(length, |done| Op::Copy {
            from: InodeId(from),
            from_offset: source.offset + done,
            to: InodeId(to),
            to_offset: target + done,
            length: length - done,
            kill_privileges: false,
        });
        let file = |run: &Run, ino| match run.nodes.get(&ino).map(|node| &node.kind) {
            Some(Kind::File { bytes, size, .. }) => Some((bytes.clone(), *size)),
            _ => None,
        };
        let (Some((from_bytes, from_size)), true) = (file(self, from), self.nodes.contains_key(&to)) else {
            return assert_eq!(outcome, Err(Status::Stale));
        };
        if from == to && source.offset < target + length && target < source.end() {
            return assert_eq!(outcome, Err(Status::InvalidArgument));
        }
        assert_eq!((done, outcome), (source.end().min(from_size).saturating_sub(source.offset), Ok(())));
        let data: Vec<(u64, u64)> = self.data(to);
        let Some(Node { kind: Kind::File { bytes, size, reserved }, .. }) = self.nodes.get_mut(&to) else { panic!() };
        if done == 0 {
            return;
        }
        *size = (*size).max(target + done);
        let mut tail = bytes.split_off(&target);
        bytes.append(&mut tail.split_off(&(target + done)));
        bytes.extend(from_bytes.range(source.offset..source.offset + done).map(|(at, byte)| (at - source.offset + target, *byte)));
        for (start, end) in data {
            let (start, end) = (start.max(target), end.min(target + done));
            if start < end {
                reserved.remove(start, end);
            }
        }
    }

    /// Where the namespace has bytes, be they zero or not.
    pub(super) fn data(&self, ino: u64) -> Vec<(u64, u64)> {
        self.pieces(ino).into_iter().filter(|piece| !piece.2).map(|piece| (piece.0, piece.1)).collect()
    }

    /// What the namespace has reserved.
    pub(super) fn reserved(&self, ino: u64) -> Ranges {
        let mut ranges = Ranges::default();
        self.pieces(ino).into_iter().filter(|piece| piece.2).for_each(|piece| ranges.add(piece.0, piece.1));
        ranges
    }

    /// Visible pieces: start, end, and whether it is reserved space.
    pub(super) fn pieces(&self, ino: u64) -> Vec<(u64, u64, bool)> {
        let Some(Body::File(file)) = self.world.namespace.body(InodeId(ino)) else { return Vec::new() };
        let slots = self.world.namespace.store.slots_from(InodeId(ino), 0).filter(|(index, slot)| !file.hides(*index, slot.born));
        let at = |index: u64, offset: u32| index * SLOT_BYTES + u64::from(offset);
        let pieces = slots.flat_map(|(index, slot)| {
            slot.pieces().iter().map(move |piece| (at(index, piece.start), at(index, piece.end()), piece.is_reserved()))
        });
        pieces.collect()
    }

    /// SEEK_DATA and SEEK_HOLE, which must agree with where the pieces are.
    pub(super) fn seek(&mut self) {
        let (ino, offset) = (self.pick(false), self.range().offset);
        let Some(Node { kind: Kind::File { size, .. }, .. }) = self.nodes.get(&ino) else { return };
        let mut holes = Ranges(BTreeMap::from([(0, *size)]));
        for (start, end) in self.data(ino) {
            holes.remove(start, end);
        }
        let mut data = Ranges(BTreeMap::from([(0, *size)]));
        holes.0.iter().for_each(|(start, end)| data.remove(*start, *end));
        let next = |ranges: &Ranges| ranges.0.iter().find(|(_, end)| **end > offset).map(|(start, _)| (*start).max(offset));
        let hole = next(&holes).unwrap_or(*size);
        for (what, expected) in [(Sought::Data, next(&data)), (Sought::Hole, Some(hole))] {
            let mut at = offset;
            let answer = loop {
                match self.world.namespace.query(&Query::Seek { ino: InodeId(ino), offset: at, what }) {
                    Ok(Answer::Sought { offset, found: false }) => at = offset,
                    Ok(Answer::Sought { offset, found: true }) => break Ok(offset),
                    Ok(other) => panic!("{other:?}"),
                    Err(status) => break Err(status),
                }
            };
            let expected = if offset < *size { expected.ok_or(Status::NoSuchDeviceAddress) } else { Err(Status::NoSuchDeviceAddress) };
            assert_eq!(answer, expected, "{what:?} from {offset} of {size}");
        }
    }
}
