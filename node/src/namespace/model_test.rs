//! The namespace against a simple tree of byte maps: random operations, doubled requests, snapshots taken meanwhile and replayed.

mod space;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs::limits::SLOT_BYTES;
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::{ByteRange, ChunkHash, FileKind, InodeId, Instance, Name, NodeId, SessionId};
use dfs::wire::namespace::*;
use dfs::xattr::{CAPABILITY, XattrCondition, XattrFlags, XattrName};

mod fsck;
mod rights;

use super::tests::World;
use super::*;

#[derive(Clone, Debug)]
enum Kind {
    Directory {
        parent: u64,
        entries: BTreeMap<Vec<u8>, u64>,
    },
    /// Bytes that are not zero, the size, and what is reserved.
    File {
        bytes: BTreeMap<u64, u8>,
        size: u64,
        reserved: Ranges,
    },
}

/// Byte ranges that neither overlap nor touch, end by start.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn remove(&mut self, start: u64, end: u64) {
        let hit: Vec<(u64, u64)> = self.0.range(..end).filter(|(_, until)| **until > start).map(|(from, until)| (*from, *until)).collect();
        for (from, until) in hit {
            self.0.remove(&from);
            self.0.extend([(from, start.min(until)), (end.max(from), until)].into_iter().filter(|(from, until)| from < until));
        }
    }

    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&from, &until)) = self.0.range(..=end).next_back().filter(|(_, until)| **until >= start) {
            (start, end) = (start.min(from), end.max(until));
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    links: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    fn new(kind: Kind, links: u32) -> Node {
        Node { kind, links, xattrs: BTreeMap::new() }
    }
}

struct Run {
    world: World,
    random: Random,
    nodes: BTreeMap<u64, Node>,
    /// What the storage nodes have: uploads that were not deleted.
    chunks: BTreeMap<ChunkHash, Vec<u8>>,
    counter: u64,
    /// Files that the session writes alone.
    writes: BTreeSet<u64>,
    snapshot: Option<(SnapshotLoader, u64, usize)>,
    /// Snapshots loaded, truncations that had to cut, ranges that took several commands, ranges that did not fit: the test must reach all.
    loaded: u64,
    cuts: u64,
    slices: u64,
    full: u64,
}

impl Node {
    fn entries(&self) -> Option<&BTreeMap<Vec<u8>, u64>> {
        if let Kind::Directory { entries, .. } = &self.kind { Some(entries) } else { None }
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let root = Node::new(Kind::Directory { parent: 1, entries: BTreeMap::new() }, 2);
        let nodes = BTreeMap::from([(1, root)]);
        Run {
            world: World::new(),
            random: Random::new(seed),
            nodes,
            chunks: BTreeMap::new(),
            counter: 0,
            writes: BTreeSet::new(),
            snapshot: None,
            loaded: 0,
            cuts: 0,
            slices: 0,
            full: 0,
        }
    }

    fn pick(&mut self, directory: bool) -> u64 {
        let all: Vec<u64> = self.nodes.iter().filter(|(_, node)| node.entries().is_some() == directory).map(|(ino, _)| *ino).collect();
        match all.len() {
            0 => 999_999,
            length => all[self.random.below(length as u64) as usize],
        }
    }

    fn name(&mut self) -> Name {
        Name::new(vec![b'a' + self.random.below(5) as u8]).unwrap()
    }

    fn entry(&self, directory: u64, name: &Name) -> Option<u64> {
        self.nodes[&directory].entries().unwrap().get(name.as_bytes()).copied()
    }

    fn set_entry(&mut self, directory: u64, name: &Name, ino: Option<u64>) {
        let Kind::Directory { entries, .. } = &mut self.nodes.get_mut(&directory).unwrap().kind else { panic!() };
        let old = match ino {
            Some(ino) => entries.insert(name.as_bytes().to_vec(), ino),
            None => entries.remove(name.as_bytes()),
        };
        for (ino, step) in [(ino, 1), (old, -1)] {
            let Some(node) = ino.map(|ino| self.nodes.get_mut(&ino).unwrap()) else { continue };
            if let Kind::Directory { parent, .. } = &mut node.kind {
                if step > 0 {
                    *parent = directory;
                }
                self.nodes.get_mut(&directory).unwrap().links = self.nodes[&directory].links.wrapping_add_signed(step);
            } else {
                node.links = node.links.wrapping_add_signed(step);
            }
        }
    }

    fn bury(&mut self, ino: u64) {
        let node = self.nodes.get_mut(&ino).unwrap();
        if node.entries().is_some() {
            node.links = 0;
        }
    }

    fn is_above(&self, ino: u64, mut directory: u64) -> bool {
        while directory != ino {
            let Kind::Directory { parent, .. } = self.nodes[&directory].kind else { panic!() };
            if parent == directory || self.nodes[&directory].links == 0 {
                return false;
            }
            directory = parent;
        }
        true
    }

    fn step(&mut self) {
        match self.random.below(31) {
            0..4 => self.create(),
            4 => self.link(),
            5 => self.remove(false),
            6 => self.remove(true),
            7..10 => self.rename(),
            10..14 => self.write(),
            14 => self.spray(),
            15 => self.truncate(),
            16 | 17 => self.fold(),
            18 => self.clean(),
            19 | 20 => {
                self.allocate();
                self.lose_capabilities();
            }
            21 | 22 => {
                self.copy();
                self.lose_capabilities();
            }
            23 => self.seek(),
            24 | 25 => self.set_xattr(),
            26 => self.remove_xattr(),
            27 | 28 => {
                self.right();
                self.lose_capabilities();
            }
            _ => self.snapshot(),
        }
        for effect in self.world.namespace.drain_effects() {
            if let Effect::Deleted { hash, .. } = effect {
                assert!(self.chunks.remove(&hash).is_some(), "deleted twice");
            }
        }
    }

    /// A request, sometimes doubled: the second time nothing happens.
    fn op(&mut self, op: Op) -> Result<Replied, Status> {
        let outcome = self.world.op(op);
        if self.random.chance(1, 4) {
            let before = self.world.namespace.tables_hash();
            assert_eq!(self.world.repeat(), outcome);
            assert_eq!(self.world.namespace.tables_hash(), before);
        }
        outcome
    }

    fn create(&mut self) {
        let (parent, name, exclusive) = (self.pick(true), self.name(), self.random.chance(1, 2));
        let directory = self.random.chance(1, 3);
        let kind = if directory { NewKind::Directory } else { NewKind::File };
        let (parent_ino, new_name, write) = (InodeId(parent), name.clone(), self.random.chance(1, 2));
        let op =
            Op::Create { parent: parent_ino, name: new_name, kind, mode: 0o644, uid: 1, gid: 1, exclusive, hold: false, write, umask: 0 };
        let outcome = self.op(op);
        let existing = self.entry(parent, &name);
        if self.nodes[&parent].links == 0 {
            assert_eq!(outcome, Err(Status::NotFound));
        } else if let Some(existing) = existing {
            match outcome {
                Ok(Replied::Entry { attributes, created: false, .. }) => {
                    assert!(!exclusive && !directory && attributes.ino.0 == existing);
                }
                outcome => assert!((exclusive || directory) && outcome == Err(Status::Exists)),
            }
        } else {
            let Ok(Replied::Entry { attributes, created: true, writer }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(writer, write && !directory, "a file that is made may be written alone");
            if writer {
                self.writes.insert(attributes.ino.0);
            }
            let kind = match directory {
                true => Kind::Directory { parent, entries: BTreeMap::new() },
                false => Kind::File { bytes: BTreeMap::new(), size: 0, reserved: Ranges::default() },
            };
            assert!(self.nodes.insert(attributes.ino.0, Node::new(kind, if directory { 2 } else { 0 })).is_none());
            self.set_entry(parent, &name, Some(attributes.ino.0));
        }
    }

    fn link(&mut self) {
        let directory = self.random.chance(1, 8);
        let (ino, parent, name) = (self.pick(directory), self.pick(true), self.name());
        let outcome = self.op(Op::Link { ino: InodeId(ino), parent: InodeId(parent), name: name.clone() });
        let expected = match self.nodes.get(&ino) {
            None => Err(Status::Stale),
            Some(_) if self.nodes[&parent].links == 0 => Err(Status::NotFound),
            Some(_) if self.entry(parent, &name).is_some() => Err(Status::Exists),
            Some(node) if node.entries().is_some() => Err(Status::NotPermitted),
            Some(node) if node.links == 0 => Err(Status::NotFound),
            Some(_) => Ok(()),
        };
        assert_eq!(outcome.map(|_| ()), expected);
        if expected.is_ok() {
            self.set_entry(parent, &name, Some(ino));
        }
    }

    fn remove(&mut self, directory: bool) {
        let (parent, name) = (self.pick(true), self.name());
        let outcome = match directory {
            true => self.op(Op::Rmdir { parent: InodeId(parent), name: name.clone() }),
            false => self.op(Op::Unlink { parent: InodeId(parent), name: name.clone() }),
        };
        let found = self.entry(parent, &name);
        let expected = match found.map(|ino| self.nodes[&ino].entries()) {
            None => Err(Status::NotFound),
            Some(Some(_)) if !directory => Err(Status::IsDirectory),
            Some(None) if directory => Err(Status::NotDirectory),
            Some(Some(entries)) if !entries.is_empty() => Err(Status::NotEmpty),
            Some(_) => Ok(Replied::Done),
        };
        assert_eq!(outcome, expected);
        if let (Ok(_), Some(ino)) = (expected, found) {
            self.set_entry(parent, &name, None);
            self.bury(ino);
        }
    }

    fn rename(&mut self) {
        let (from, from_name, to, to_name) = (self.pick(true), self.name(), self.pick(true), self.name());
        let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][self.random.below(3) as usize];
        let outcome = self.op(Op::Rename {
            from_parent: InodeId(from),
            from_name: from_name.clone(),
            to_parent: InodeId(to),
            to_name: to_name.clone(),
            mode,
        });
        let (source, target) = (self.entry(from, &from_name), self.entry(to, &to_name));
        let expected = self.expected_of_rename((from, source), (to, target), mode);
        assert_eq!(outcome, expected);
        let Some(source) = source.filter(|&source| expected.is_ok() && Some(source) != target) else { return };
        self.set_entry(from, &from_name, None);
        if let Some(target) = target {
            self.set_entry(to, &to_name, None);
            if mode == RenameMode::Exchange {
                self.set_entry(from, &from_name, Some(target));
            } else {
                self.bury(target);
            }
        }
        self.set_entry(to, &to_name, Some(source));
    }

    fn expected_of_rename(&self, from: (u64, Option<u64>), to: (u64, Option<u64>), mode: RenameMode) -> Result<Replied, Status> {
        let Some(source) = from.1 else { return Err(Status::NotFound) };
        let source_entries = self.nodes[&source].entries();
        let target_entries = to.1.map(|target| self.nodes[&target].entries());
        if self.nodes[&to.0].links == 0 || mode == RenameMode::Exchange && to.1.is_none() {
            return Err(Status::NotFound);
        }
        if mode == RenameMode::NoReplace && to.1.is_some() {
            return Err(Status::Exists);
        }
        if source_entries.is_some() && self.is_above(source, to.0) {
            return Err(Status::InvalidArgument);
        }
        if let (Some(target), Some(Some(_))) = (to.1, target_entries)
            && self.is_above(target, from.0)
        {
            return Err(if mode == RenameMode::Exchange { Status::InvalidArgument } else { Status::NotEmpty });
        }
        if Some(source) == to.1 || mode == RenameMode::Exchange {
            return Ok(Replied::Done);
        }
        match (source_entries, target_entries) {
            (Some(_), Some(None)) => Err(Status::NotDirectory),
            (None, Some(Some(_))) => Err(Status::IsDirectory),
            (Some(_), Some(Some(entries))) if !entries.is_empty() => Err(Status::NotEmpty),
            _ => Ok(Replied::Done),
        }
    }

    fn claim(&mut self, bytes: Vec<u8>) -> ChunkClaim {
        self.counter += 1;
        let hash = ChunkHash::of(&bytes);
        let instance = Instance { session: SessionId(7), counter: self.counter };
        let claim = ChunkClaim { hash, length: bytes.len() as u32, instance, receipts: vec![NodeId(1), NodeId(2)] };
        self.chunks.insert(hash, bytes);
        claim
    }

    /// Bytes to write as a patch's source: the patch covers `length` of them.
    fn source(&mut self, length: u64, claims: &mut Vec<ChunkClaim>) -> (Source, Vec<u8>) {
        let fill = 1 + self.random.below(5) as u8;
        match self.random.below(4) {
            0 => (Source::Hole, vec![0; length as usize]),
            1 => {
                let bytes: Vec<u8> = (0..length).map(|at| fill.wrapping_add(at as u8)).collect();
                (Source::Inline(bytes.clone().into()), bytes)
            }
            _ => {
                let bytes: Vec<u8> = (0..1000u32).map(|at| (at as u8).wrapping_mul(fill)).collect();
                let claim = self.claim(bytes.clone());
                let offset = self.random.below(1000 - length) as u32;
                let hash = claim.hash;
                if !claims.iter().any(|other| other.hash == hash) {
                    claims.push(claim);
                }
                (Source::Chunk { hash, offset }, bytes[offset as usize..offset as usize + length as usize].to_vec())
            }
        }
    }

    fn xattr_name(&mut self) -> XattrName {
        let text = ["user.a", "user.b", "trusted.c", "security.capability"][self.random.below(4) as usize];
        XattrName::new(text).unwrap()
    }

    fn set_xattr(&mut self) {
        let directory = self.random.chance(1, 4);
        let (ino, name) = (self.pick(directory), self.xattr_name());
        let condition = XattrCondition { create: self.random.chance(1, 4), replace: self.random.chance(1, 4) };
        let value = vec![self.random.below(250) as u8; self.random.below(50) as usize];
        let bytes = Bytes::from(value.clone());
        let outcome = self.op(Op::SetXattr { ino: InodeId(ino), name: name.clone(), value: bytes, condition, drop_setgid: false });
        let Some(node) = self.nodes.get_mut(&ino) else { return assert_eq!(outcome, Err(Status::Stale)) };
        let exists = node.xattrs.contains_key(name.as_bytes());
        match outcome {
            Err(Status::Exists) => assert!(exists && condition.create),
            Err(Status::NoData) => assert!(!exists && condition.replace),
            outcome => {
                assert!(outcome.is_ok() && !(exists && condition.create) && (exists || !condition.replace));
                node.xattrs.insert(name.as_bytes().to_vec(), value);
            }
        }
    }

    fn remove_xattr(&mut self) {
        let directory = self.random.chance(1, 4);
        let (ino, name) = (self.pick(directory), self.xattr_name());
        let outcome = self.op(Op::RemoveXattr { ino: InodeId(ino), name: name.clone() });
        let Some(node) = self.nodes.get_mut(&ino) else { return assert_eq!(outcome, Err(Status::Stale)) };
        let removed = node.xattrs.remove(name.as_bytes());
        assert_eq!(outcome.err(), removed.is_none().then_some(Status::NoData));
    }

    /// Whether a range that was changed in slices lost its capability depends on whether a slice succeeded; a test of its own tells.
    fn lose_capabilities(&mut self) {
        for (ino, node) in &mut self.nodes {
            let flags = self.world.namespace.attributes(InodeId(*ino)).unwrap().xattrs;
            if !flags.has(XattrFlags::CAPABILITY) {
                node.xattrs.remove(CAPABILITY);
            }
        }
    }

    fn compare_xattrs(&self, ino: u64, node: &Node) {
        let Ok(Answer::Xattrs(names)) = self.world.namespace.query(&Query::Xattrs { ino: InodeId(ino) }) else { panic!() };
        let names: Vec<&[u8]> = names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        assert!(names.iter().eq(node.xattrs.keys()), "names of inode {ino}");
        for (name, value) in &node.xattrs {
            let name = XattrName::new(name.clone()).unwrap();
            let answer = self.world.namespace.query(&Query::Xattr { ino: InodeId(ino), name });
            assert_eq!(answer, Ok(Answer::Xattr(value.clone().into())), "inode {ino}");
        }
    }

    fn write(&mut self) {
        let ino = self.pick(false);
        let (mut patches, mut claims, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(3) {
            let length = 1 + self.random.below(300);
            let at = match self.random.below(5) {
                0 => WriteAt::End,
                _ => WriteAt::Offset((self.random.below(3) * SLOT_BYTES + self.random.below(600)).saturating_sub(300)),
            };
            let (source, bytes) = self.source(length, &mut claims);
            patches.push(Patch { at, length, source });
            writes.push((at, bytes));
        }
        self.write_patches(ino, patches, claims, writes);
    }

    /// Many slots at once, so that truncations have to cut.
    fn spray(&mut self) {
        let ino = self.pick(false);
        for group in 0..5 {
            let (mut patches, mut writes) = (Vec::new(), Vec::new());
            for index in 0..64 {
                let at = WriteAt::Offset((group * 64 + index) * SLOT_BYTES + 10);
                patches.push(Patch { at, length: 1, source: Source::Inline(Bytes::from_static(b"s")) });
                writes.push((at, b"s".to_vec()));
            }
            self.write_patches(ino, patches, Vec::new(), writes);
        }
    }

    fn write_patches(&mut self, ino: u64, patches: Vec<Patch>, chunks: Vec<ChunkClaim>, writes: Vec<(WriteAt, Vec<u8>)>) {
        let named: Vec<ChunkHash> = chunks.iter().map(|claim| claim.hash).collect();
        let outcome = self.op(Op::Write { ino: InodeId(ino), patches, chunks, kill_privileges: false, behind: None });
        let Some(Node { kind: Kind::File { bytes, size, reserved }, xattrs, .. }) = self.nodes.get_mut(&ino) else {
            assert_eq!(outcome, Err(Status::Stale));
            return self.drop_unreferenced(named);
        };
        let Ok(Replied::Written { attributes, .. }) = outcome else { panic!("{outcome:?}") };
        xattrs.remove(CAPABILITY);
        for (at, new) in writes {
            let at = if let WriteAt::Offset(offset) = at { offset } else { *size };
            *size = (*size).max(at + new.len() as u64);
            if new.iter().any(|byte| *byte != 0) {
                reserved.remove(at, at + new.len() as u64);
            }
            for (index, byte) in new.into_iter().enumerate() {
                match byte {
                    0 => bytes.remove(&(at + index as u64)),
                    byte => bytes.insert(at + index as u64, byte),
                };
            }
        }
        assert_eq!(attributes.size, *size);
        self.drop_unreferenced(named);
    }

    /// Uploads that were not needed after all are garbage, which nodes find by asking; here at once.
    fn drop_unreferenced(&mut self, named: Vec<ChunkHash>) {
        for effect in self.world.namespace.drain_effects() {
            if let Effect::Deleted { hash, .. } = effect {
                assert!(self.chunks.remove(&hash).is_some(), "deleted twice");
            }
        }
        for hash in named {
            if self.world.namespace.store.chunk(&hash).is_none() {
                self.chunks.remove(&hash);
            }
        }
    }

    fn truncate(&mut self) {
        let ino = self.pick(false);
        let slots = if self.random.chance(1, 2) { 4 } else { 320 };
        let new = self.random.below(slots) * SLOT_BYTES + self.random.below(20);
        let set = SetAttributes { size: Some(new), ..SetAttributes::default() };
        let outcome = self.op(Op::SetAttributes { ino: InodeId(ino), set });
        match self.nodes.get_mut(&ino) {
            Some(Node { kind: Kind::File { bytes, size, reserved }, xattrs, .. }) if outcome.is_ok() => {
                xattrs.remove(CAPABILITY);
                bytes.split_off(&new);
                if new <= *size {
                    reserved.remove(new, u64::MAX);
                }
                self.cuts += self.world.namespace.cuts_pending().count() as u64;
                *size = new;
            }
            Some(_) => assert_eq!(outcome, Err(Status::Busy)),
            None => assert_eq!(outcome, Err(Status::Stale)),
        }
    }

    fn fold(&mut self) {
        let ino = self.pick(false);
        let Some(Body::File(file)) = self.world.namespace.body(InodeId(ino)) else { return };
        let size = file.size;
        let slots: Vec<(u64, u64)> = self
            .world
            .namespace
            .store
            .slots_from(InodeId(ino), 0)
            .filter(|(index, slot)| !file.hides(*index, slot.born) && index * SLOT_BYTES < size)
            .map(|(index, slot)| (index, slot.version))
            .collect();
        if slots.is_empty() {
            return;
        }
        let (slot, version) = slots[self.random.below(slots.len() as u64) as usize];
        let base = slot * SLOT_BYTES;
        let length = (size - base).min(SLOT_BYTES).min(4000);
        let content = self.read(ino, base, length);
        let bytes: Vec<u8> = (0..length).map(|at| content.get(&(base + at)).copied().unwrap_or(0)).collect();
        let claim = self.claim(bytes);
        let hash = claim.hash;
        let mut patches = vec![Patch { at: WriteAt::Offset(base), length, source: Source::Chunk { hash, offset: 0 } }];
        // What lies beyond the first bytes is only there in slots at whose end a write crossed over: inline, to cover it.
        let rest = self.read(ino, base + length, (size - base).min(SLOT_BYTES) - length);
        if let (Some((first, _)), Some((last, _))) = (rest.first_key_value(), rest.last_key_value()) {
            let tail: Vec<u8> = (*first..=*last).map(|at| rest.get(&at).copied().unwrap_or(0)).collect();
            patches.push(Patch { at: WriteAt::Offset(*first), length: tail.len() as u64, source: Source::Inline(tail.into()) });
        }
        let end = (size - base).min(SLOT_BYTES);
        patches.insert(0, Patch { at: WriteAt::Offset(base), length: end, source: Source::Hole });
        let stale = self.random.chance(1, 4);
        let slot_version = if stale { version - 1 } else { version };
        let before = self.world.namespace.attributes(InodeId(ino)).unwrap().data_version;
        let outcome = self.op(Op::Fold { ino: InodeId(ino), slot, slot_version, patches, chunks: vec![claim] });
        // With so few runs in a slot none is given up.
        assert_eq!(outcome, if stale { Err(Status::Conflict) } else { Ok(Replied::Done) });
        assert_eq!(self.world.namespace.attributes(InodeId(ino)).unwrap().data_version, before);
        self.drop_unreferenced(vec![hash]);
    }

    fn clean(&mut self) {
        let cuts: Vec<InodeId> = self.world.namespace.cuts_pending().collect();
        self.world.apply(Command::Trim { inos: cuts }).unwrap();
        let orphans: Vec<InodeId> = self.world.namespace.orphans().collect();
        self.world.apply(Command::Reap { inos: orphans.clone() }).unwrap();
        for ino in orphans {
            self.writes.remove(&ino.0);
            assert_eq!(self.nodes[&ino.0].links, 0);
            if !self.world.namespace.exists(ino) {
                self.nodes.remove(&ino.0);
            } else if let Kind::File { bytes, .. } = &mut self.nodes.get_mut(&ino.0).unwrap().kind {
                // Half freed: nobody holds it, nobody looks at it any more.
                bytes.clear();
                self.nodes.remove(&ino.0);
                while self.world.namespace.exists(ino) {
                    self.world.apply(Command::Reap { inos: vec![ino] }).unwrap();
                }
            }
        }
    }

    /// Begins a snapshot, takes a slice, or loads what was taken and replays the log on it.
    fn snapshot(&mut self) {
        let Some((loader, hash, log)) = &mut self.snapshot else {
            self.snapshot = Some((SnapshotLoader::new(), self.world.namespace.state_hash(), self.world.log.len()));
            self.world.namespace.begin_snapshot();
            return;
        };
        let bytes_max = 1 + self.random.below(9000) as usize;
        let (slice, last) = self.world.namespace.next_snapshot_slice(bytes_max).expect("it has not ended");
        assert!(slice.len() <= bytes_max);
        loader.push(&slice).unwrap();
        if !last {
            return;
        }
        let (hash, log) = (*hash, *log);
        let (loader, _, _) = self.snapshot.take().unwrap();
        self.loaded += 1;
        assert!(self.world.namespace.next_snapshot_slice(1).is_none());
        self.world.namespace.end_snapshot();
        let mut restored = loader.finish().unwrap();
        restored.check_invariants();
        assert_eq!(restored.state_hash(), hash);
        for (index, entry) in &self.world.log[log..] {
            let _ = restored.apply(*index, entry);
        }
        assert_eq!(restored.state_hash(), self.world.namespace.state_hash());
    }

    /// Bytes of a range that are not zero, read by the layout.
    fn read(&self, ino: u64, offset: u64, length: u64) -> BTreeMap<u64, u8> {
        let (mut bytes, mut at, end) = (BTreeMap::new(), offset, offset + length);
        while at < end {
            let query = Query::Extents { ino: InodeId(ino), range: ByteRange { offset: at, length: end - at }, known: None };
            let Ok(Answer::Extents { extents, chunks, truncated, .. }) = self.world.namespace.query(&query) else { panic!() };
            for extent in extents {
                assert_eq!(extent.offset, at);
                at += extent.length;
                let run = match extent.source {
                    Source::Hole => continue,
                    Source::Inline(bytes) => bytes.to_vec(),
                    Source::Chunk { hash, offset } => {
                        assert!(chunks.iter().any(|place| place.hash == hash && place.holders == [NodeId(1), NodeId(2)]));
                        self.chunks[&hash][offset as usize..offset as usize + extent.length as usize].to_vec()
                    }
                };
                let placed = run.into_iter().enumerate().map(|(index, byte)| (extent.offset + index as u64, byte));
                bytes.extend(placed.filter(|(_, byte)| *byte != 0));
            }
            if !truncated {
                break;
            }
        }
        bytes
    }

    fn compare(&self) {
        self.world.namespace.check_invariants();
        assert_eq!(self.world.namespace.usage().inodes, self.nodes.len() as u64);
        for (ino, node) in &self.nodes {
            let attributes = self.world.namespace.attributes(InodeId(*ino)).unwrap();
            assert_eq!(attributes.links, node.links);
            assert_eq!(self.world.namespace.writer(InodeId(*ino)).is_some(), self.writes.contains(ino));
            self.compare_xattrs(*ino, node);
            match &node.kind {
                Kind::File { bytes, size, reserved } => {
                    assert_eq!((attributes.kind, attributes.size), (FileKind::File, *size));
                    assert_eq!(self.read(*ino, 0, *size), *bytes, "inode {ino}");
                    assert_eq!(self.reserved(*ino), *reserved, "inode {ino}");
                }
                Kind::Directory { entries, .. } => {
                    let query = Query::ReadDirectory { ino: InodeId(*ino), after: Default::default(), limit: 500 };
                    let Ok(Answer::Directory { entries: seen, end: true, .. }) = self.world.namespace.query(&query) else { panic!() };
                    let seen: BTreeMap<Vec<u8>, u64> =
                        seen.into_iter().map(|entry| (entry.name.as_bytes().to_vec(), entry.attributes.ino.0)).collect();
                    assert_eq!(seen, *entries);
                }
            }
        }
    }

    /// With every name gone and everything freed, nothing is left.
    fn empty(&mut self) {
        while let Some((parent, name, ino)) = self.leaf() {
            let directory = self.nodes[&ino].entries().is_some();
            let (parent, name) = (InodeId(parent), Name::new(name).unwrap());
            let op = if directory { Op::Rmdir { parent, name: name.clone() } } else { Op::Unlink { parent, name: name.clone() } };
            self.world.op(op).unwrap();
            self.set_entry(parent.0, &name, None);
            self.bury(ino);
        }
        while self.world.namespace.orphans().count() > 0 {
            self.clean();
        }
        self.world.namespace.check_invariants();
        let usage = self.world.namespace.usage();
        assert_eq!((usage.inodes, usage.referenced_chunks, usage.inline_bytes, usage.charged_bytes), (1, 0, 0, 0));
    }

    fn leaf(&self) -> Option<(u64, Vec<u8>, u64)> {
        self.nodes.iter().find_map(|(parent, node)| {
            let is_leaf = |ino: u64| self.nodes[&ino].entries().is_none_or(BTreeMap::is_empty);
            let (name, ino) = node.entries()?.iter().find(|(_, ino)| is_leaf(**ino))?;
            Some((*parent, name.clone(), *ino))
        })
    }
}

#[test]
fn behaves_like_a_simple_tree() {
    let seeds: u64 = std::env::var("DFS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
    let (mut loaded, mut cuts, mut slices, mut full) = (0, 0, 0, 0);
    let first: Option<u64> = std::env::var("DFS_SEED").ok().and_then(|text| text.parse().ok());
    for seed in first.map_or(0..seeds, |seed| seed..seed + 1) {
        let failure = format!("replay with DFS_SEED={seed}");
        let guard = Announce(&failure);
        let mut run = Run::new(seed);
        for step in 0..250 {
            run.step();
            if step % 50 == 49 {
                run.compare();
            }
        }
        run.empty();
        std::mem::forget(guard);
        (loaded, cuts, slices, full) = (loaded + run.loaded, cuts + run.cuts, slices + run.slices, full + run.full);
    }
    let enough = loaded > seeds / 4 && cuts > seeds / 4 && slices > seeds / 4 && full > 0;
    assert!(first.is_some() || enough, "{loaded} snapshots, {cuts} cuts, {slices} slices, {full} full");
}

/// Says which seed failed.
struct Announce<'a>(&'a str);

impl Drop for Announce<'_> {
    fn drop(&mut self) {
        eprintln!("{}", self.0);
    }
}
