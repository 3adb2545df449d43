//! What the clients do, and what they saw: actors that each do one thing after another, and the histories that the checkers read.

use std::collections::BTreeMap;

use bytes::Bytes;

use dfs::client::{Call, Reply};
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::{ByteRange, Cookie, FileKind, InodeId, Name};
use dfs::wire::namespace::{Answer, NewKind, Op, Query, RenameMode, Replied, SetAttributes, WriteAt};

use super::files::File;
use super::linear::{self, Finding, Names, NamesAnswer, NamesCall, NamesState, Operation, Register, RegisterCall};

pub const REGISTERS: usize = 3;
pub const NAMES: [&str; 4] = ["w", "x", "y", "z"];
const RECORD: usize = 16;

/// Inodes that everybody works on, made before the workload begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ground {
    pub registers: [InodeId; REGISTERS],
    pub names: InodeId,
    pub log: InodeId,
    pub token: InodeId,
    pub links: InodeId,
    pub files: InodeId,
}

/// What an actor waits for.
#[derive(Clone, Debug)]
enum Doing {
    CreateFile {
        name: String,
    },
    ChangeFile {
        file: usize,
    },
    RenameFile {
        file: usize,
        name: String,
    },
    UnlinkFile {
        file: usize,
    },
    ReadFile {
        file: usize,
        began: u64,
        range: ByteRange,
    },
    Register {
        register: usize,
        operation: usize,
    },
    Names {
        operation: usize,
    },
    Append {
        record: u64,
    },
    Link {
        name: String,
    },
    ReadLog {
        known: usize,
    },
    /// What had been answered and was not safe when the sync began.
    Sync {
        unsafe_until: usize,
        ino: InodeId,
    },
}

/// An answered change that is lost with its client until a sync.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Register(usize, usize),
    File(usize),
    Append(u64),
}

/// One thread of a client.
pub struct Actor {
    pub client: usize,
    doing: Option<(u64, Doing)>,
    own: Option<usize>,
}

/// How an append ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Appended {
    Open,
    At(u64),
    /// Answered without the place.
    Somewhere,
    /// Unknown, so at most once.
    Perhaps,
    Never,
}

/// Counts for the report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub operations: u64,
    pub unknown: u64,
    pub no_space: u64,
    pub refused: u64,
    pub gave_up: u64,
    pub slowest_ns: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Stats) {
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.no_space += other.no_space;
        self.refused += other.refused;
        self.gave_up += other.gave_up;
        self.slowest_ns = self.slowest_ns.max(other.slowest_ns);
    }
}

pub struct Workload {
    random: Random,
    pub ground: Ground,
    pub actors: Vec<Actor>,
    write_max: u64,
    /// Position in the global order of calls and answers.
    clock: u64,
    next_token: u64,
    next_unique: u64,
    files: Vec<File>,
    registers: [Vec<Operation<RegisterCall, u64>>; REGISTERS],
    names: Vec<Operation<NamesCall, NamesAnswer>>,
    appends: BTreeMap<u64, Appended>,
    /// Records whose append had been answered, in order, for readers of the log.
    appended: Vec<u64>,
    links: BTreeMap<String, Option<bool>>,
    /// By client, in order of their answers; the number orders them against syncs.
    unsynced: BTreeMap<usize, Vec<(InodeId, usize, Unsynced)>>,
    answers: usize,
    pub stats: Stats,
    /// Whether clients read through kernels, page by page.
    pages: bool,
    /// Whether what was accepted may find no node with room for it: see [`super::plan::Plan::is_tight`].
    pub tight: bool,
}

/// Whether a failed operation certainly had no effect.
fn is_certain(status: Status) -> bool {
    status.number() < 40 && !matches!(status, Status::Interrupted | Status::WouldBlock)
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a good name")
}

pub fn create(parent: InodeId, text: &str, kind: NewKind, uid: u32) -> Call {
    Call::Op(Op::Create { parent, name: name(text), kind, mode: 0o644, uid, gid: 0, exclusive: true, hold: false, write: false, umask: 0 })
}

impl Workload {
    pub fn new(seed: u64, ground: Ground, (clients, per_client): (usize, usize), write_max: u64, mounts: bool) -> Self {
        let actors = (0..clients * per_client).map(|index| Actor { client: index % clients, doing: None, own: None });
        Workload {
            random: Random::new(seed ^ 0x0b5e),
            ground,
            actors: actors.collect(),
            write_max,
            clock: 0,
            next_token: 1,
            next_unique: 1,
            files: Vec::new(),
            registers: Default::default(),
            names: Vec::new(),
            appends: BTreeMap::new(),
            appended: Vec::new(),
            links: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            answers: 0,
            stats: Stats::default(),
            pages: mounts,
            tight: false,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn unique(&mut self) -> u64 {
        self.next_unique += 1;
        self.next_unique
    }

    /// Actors that wait for an answer.
    pub fn busy(&self) -> usize {
        self.actors.iter().filter(|actor| actor.doing.is_some()).count()
    }

    /// Whether the actor waits for an answer.
    pub fn is_busy(&self, actor: usize) -> bool {
        self.actors[actor].doing.is_some()
    }

    /// What the actor does next.
    pub fn next_call(&mut self, index: usize) -> (u64, Call) {
        let (doing, call) = match self.random.below(20) {
            0..=6 => self.own_file(index),
            7..=9 => self.read_some_file().unwrap_or_else(|| self.own_file(index)),
            10..=13 => self.register(),
            14..=16 => self.name(),
            17 => self.append(),
            18 if self.random.chance(1, 2) => self.sync(index),
            18 => self.read_log(),
            _ => self.link(),
        };
        let token = self.next_token;
        self.next_token += 1;
        self.actors[index].doing = Some((token, doing));
        (token, call)
    }

    fn own_file(&mut self, index: usize) -> (Doing, Call) {
        let Some(file) = self.actors[index].own.filter(|&file| !self.files[file].tainted && !self.files[file].unlinked) else {
            let text = format!("f{}", self.unique());
            return (Doing::CreateFile { name: text.clone() }, create(self.ground.files, &text, NewKind::File, 0));
        };
        let ino = self.files[file].ino;
        match self.random.below(12) {
            0 => {
                let size = self.random.below(self.write_max * 2);
                let mut content = self.files[file].content().to_vec();
                content.resize(size as usize, 0);
                self.files[file].begin(content);
                let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
                (Doing::ChangeFile { file }, Call::Op(Op::SetAttributes { ino, set }))
            }
            1 => {
                let text = format!("f{}", self.unique());
                let op = Op::Rename {
                    from_parent: self.ground.files,
                    from_name: name(&self.files[file].name),
                    to_parent: self.ground.files,
                    to_name: name(&text),
                    mode: RenameMode::NoReplace,
                };
                (Doing::RenameFile { file, name: text }, Call::Op(op))
            }
            2 => {
                self.files[file].unlinked = true;
                let op = Op::Unlink { parent: self.ground.files, name: name(&self.files[file].name) };
                (Doing::UnlinkFile { file }, Call::Op(op))
            }
            _ => self.write(file),
        }
    }

    fn write(&mut self, file: usize) -> (Doing, Call) {
        let random = &mut self.random;
        let length = if random.chance(1, 2) { 1 + random.below(3000) } else { 1 + random.below(self.write_max) } as usize;
        let mut content = self.files[file].content().to_vec();
        let offset = match random.below(3) {
            0 => content.len(),
            1 => random.below(content.len() as u64 + 1) as usize,
            _ => random.below(self.write_max) as usize,
        };
        // Often bytes that others write too, so that chunks are shared and their uploads race.
        let same = random.chance(1, 2);
        let (length, mut bytes) = if same {
            let length = [20_000, 40_000][random.below(2) as usize];
            (length, Random::new(random.below(3)))
        } else {
            (length, random.fork())
        };
        let bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| bytes.next().to_le_bytes()).take(length).collect();
        let end = offset + length;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(&bytes);
        self.files[file].begin(content);
        let at = WriteAt::Offset(offset as u64);
        let ino = self.files[file].ino;
        (Doing::ChangeFile { file }, Call::Write { ino, at, bytes: Bytes::from(bytes), kill_privileges: false })
    }

    fn read_some_file(&mut self) -> Option<(Doing, Call)> {
        let good: Vec<usize> = (0..self.files.len()).filter(|&file| !self.files[file].tainted && !self.files[file].unlinked).collect();
        if good.is_empty() {
            return None;
        }
        let file = good[self.random.below(good.len() as u64) as usize];
        let size = self.files[file].content().len() as u64;
        let range = if self.random.chance(1, 2) {
            ByteRange { offset: 0, length: 4 << 20 }
        } else {
            ByteRange { offset: self.random.below(size + 1), length: 1 + self.random.below(20_000) }
        };
        let began = self.files[file].reader_begins();
        Some((Doing::ReadFile { file, began, range }, Call::Read { ino: self.files[file].ino, range }))
    }

    fn register(&mut self) -> (Doing, Call) {
        let register = self.random.below(REGISTERS as u64) as usize;
        let ino = self.ground.registers[register];
        let (call, wire) = if self.random.chance(1, 2) {
            (RegisterCall::Read, Call::Read { ino, range: ByteRange { offset: 0, length: 100 } })
        } else {
            let value = self.unique();
            let bytes = Bytes::from(value.to_le_bytes().to_vec());
            (RegisterCall::Write(value), Call::Write { ino, at: WriteAt::Offset(0), bytes, kill_privileges: false })
        };
        let called = self.tick();
        self.registers[register].push(Operation { call, called, answer: None });
        (Doing::Register { register, operation: self.registers[register].len() - 1 }, wire)
    }

    fn name(&mut self) -> (Doing, Call) {
        let parent = self.ground.names;
        let at = self.random.below(NAMES.len() as u64) as usize;
        let to = (at + 1 + self.random.below(NAMES.len() as u64 - 1) as usize) % NAMES.len();
        let rename = |mode| {
            let (from_name, to_name) = (name(NAMES[at]), name(NAMES[to]));
            Call::Op(Op::Rename { from_parent: parent, from_name, to_parent: parent, to_name, mode })
        };
        let (call, wire) = match self.random.below(13) {
            0..=3 => {
                let file = self.unique() as u32;
                (NamesCall::Create(at, file), create(parent, NAMES[at], NewKind::File, file))
            }
            4 | 5 => (NamesCall::Unlink(at), Call::Op(Op::Unlink { parent, name: name(NAMES[at]) })),
            6 | 7 => (NamesCall::Lookup(at), Call::Query(Query::Lookup { parent, name: name(NAMES[at]) })),
            8 | 9 => (NamesCall::Rename(at, to), rename(RenameMode::Replace)),
            10 => (NamesCall::RenameNoReplace(at, to), rename(RenameMode::NoReplace)),
            11 => (NamesCall::Exchange(at, to), rename(RenameMode::Exchange)),
            _ => (NamesCall::List, Call::Query(Query::ReadDirectory { ino: parent, after: Cookie(0), limit: 100 })),
        };
        let called = self.tick();
        self.names.push(Operation { call, called, answer: None });
        (Doing::Names { operation: self.names.len() - 1 }, wire)
    }

    fn append(&mut self) -> (Doing, Call) {
        let record = self.unique();
        self.appends.insert(record, Appended::Open);
        let bytes = Bytes::from([record.to_le_bytes(), (!record).to_le_bytes()].concat());
        (Doing::Append { record }, Call::Write { ino: self.ground.log, at: WriteAt::End, bytes, kill_privileges: false })
    }

    fn read_log(&mut self) -> (Doing, Call) {
        let range = ByteRange { offset: 0, length: 1 << 20 };
        (Doing::ReadLog { known: self.appended.len() }, Call::Read { ino: self.ground.log, range })
    }

    fn sync(&mut self, index: usize) -> (Doing, Call) {
        let own = self.actors[index].own.map_or(self.ground.log, |file| self.files[file].ino);
        let which = self.random.below(3) as usize;
        let ino = [self.ground.registers[which], self.ground.log, own][self.random.below(3) as usize];
        (Doing::Sync { unsafe_until: self.answers, ino }, Call::Sync { ino })
    }

    fn link(&mut self) -> (Doing, Call) {
        let text = format!("l{}", self.unique());
        self.links.insert(text.clone(), None);
        let op = Op::Link { ino: self.ground.token, parent: self.ground.links, name: name(&text) };
        (Doing::Link { name: text }, Call::Op(op))
    }

    /// An answer arrived. Tells which actor is free now; `None` for calls that are not of the workload.
    pub fn on_answer(&mut self, token: u64, result: Result<Reply, Status>) -> Option<usize> {
        let index = self.actors.iter().position(|actor| actor.doing.as_ref().is_some_and(|(own, _)| *own == token))?;
        let (_, doing) = self.actors[index].doing.take().expect("found above");
        self.stats.operations += 1;
        if let Err(status) = &result {
            let stats = &mut self.stats;
            match status {
                Status::NoSpace => stats.no_space += 1,
                status if is_certain(*status) => stats.refused += 1,
                _ => stats.unknown += 1,
            }
        }
        self.answers += 1;
        let (client, answered) = (self.actors[index].client, result.is_ok());
        let unsynced = match &doing {
            Doing::Register { register, operation } => Some((self.ground.registers[*register], Unsynced::Register(*register, *operation))),
            Doing::ChangeFile { file } => Some((self.files[*file].ino, Unsynced::File(*file))),
            Doing::Append { record } => Some((self.ground.log, Unsynced::Append(*record))),
            Doing::Sync { unsafe_until, ino } if answered => {
                let (until, ino) = (*unsafe_until, *ino);
                self.unsynced.entry(client).or_default().retain(|(of, number, _)| *of != ino || *number > until);
                None
            }
            _ => None,
        };
        if let Some((ino, what)) = unsynced.filter(|_| answered) {
            self.unsynced.entry(client).or_default().push((ino, self.answers, what));
        }
        self.settle(index, doing, result);
        Some(index)
    }

    /// The client lost what it had not made safe: whether that happened is unknown from now on, and what it read of it says nothing.
    pub fn on_loss(&mut self, client: usize) {
        for (_, _, what) in self.unsynced.remove(&client).unwrap_or_default() {
            match what {
                Unsynced::Register(register, operation) => self.registers[register][operation].answer = None,
                Unsynced::File(file) => self.files[file].tainted = true,
                Unsynced::Append(record) => _ = self.appends.insert(record, Appended::Perhaps),
            }
        }
    }

    /// The actor's process died: the outcome stays unknown.
    pub fn on_death(&mut self, client: usize) {
        self.on_loss(client);
        for index in 0..self.actors.len() {
            if self.actors[index].client == client
                && let Some((_, doing)) = self.actors[index].doing.take()
            {
                self.settle(index, doing, Err(Status::Disconnected));
            }
        }
    }

    fn settle(&mut self, index: usize, doing: Doing, result: Result<Reply, Status>) {
        let at = self.tick();
        match doing {
            Doing::CreateFile { name } => match result {
                Ok(Reply::Replied(Replied::Entry { attributes, created, .. })) => {
                    assert!(created && attributes.kind == FileKind::File, "an exclusive create makes the file");
                    self.files.push(File::new(name, attributes.ino));
                    self.actors[index].own = Some(self.files.len() - 1);
                }
                Ok(other) => panic!("create answered {other:?}"),
                Err(Status::Exists) => panic!("the name {name} was never used before"),
                Err(_) => {}
            },
            Doing::ChangeFile { file } => match result {
                Ok(_) => self.files[file].complete(),
                Err(status) if is_certain(status) && status != Status::NoSpace => {
                    panic!("a change of {} was refused: {status:?}", self.files[file].name)
                }
                Err(_) => self.files[file].tainted = true,
            },
            Doing::RenameFile { file, name } => match result {
                Ok(_) => self.files[file].name = name,
                Err(status) if is_certain(status) => panic!("rename of {} to {name}: {status:?}", self.files[file].name),
                Err(_) => self.files[file].tainted = true,
            },
            Doing::UnlinkFile { file } => match result {
                Err(status) if is_certain(status) => panic!("unlink of {}: {status:?}", self.files[file].name),
                Ok(_) | Err(_) => {}
            },
            Doing::ReadFile { file, began, range } => self.settle_read(file, began, range, result),
            Doing::Register { register, operation } => self.settle_register(register, operation, at, result),
            Doing::Names { operation } => self.settle_name(operation, at, result),
            Doing::Append { record } => self.settle_append(record, result),
            Doing::Link { name } => match result {
                Ok(_) => _ = self.links.insert(name, Some(true)),
                // Names take room, too; on a full cluster they are refused.
                Err(status) if is_certain(status) && status != Status::NoSpace => panic!("link {name}: {status:?}"),
                Err(_) => _ = self.links.insert(name, Some(false)),
            },
            Doing::Sync { .. } => {
                if let Err(status) = result {
                    let allowed = status == Status::Stale || (self.tight && status == Status::NoSpace);
                    assert!(allowed || !is_certain(status), "sync: {status:?}");
                }
            }
            Doing::ReadLog { known } => {
                if let Ok(Reply::Bytes(bytes)) = result {
                    self.check_log(&bytes, known);
                }
            }
        }
    }

    fn settle_read(&mut self, file: usize, began: u64, range: ByteRange, result: Result<Reply, Status>) {
        match result {
            Ok(Reply::Bytes(bytes)) => {
                if let Err(why) = self.files[file].reader_ends(began, range, &bytes, self.pages) {
                    panic!("{why}");
                }
            }
            Ok(other) => panic!("read answered {other:?}"),
            Err(status) => {
                self.files[file].reader_leaves(began);
                let gone = matches!(status, Status::NotFound | Status::Stale) && self.files[file].unlinked;
                assert!(gone || !is_certain(status), "read of {}: {status:?}", self.files[file].name);
                assert!(!matches!(status, Status::Corrupt | Status::UnknownChunk | Status::Internal), "read failed: {status:?}");
            }
        }
    }

    fn settle_register(&mut self, register: usize, operation: usize, at: u64, result: Result<Reply, Status>) {
        let operation = &mut self.registers[register][operation];
        match (&operation.call, result) {
            (RegisterCall::Read, Ok(Reply::Bytes(bytes))) => {
                let value = u64::from_le_bytes(bytes[..].try_into().expect("a register holds eight bytes"));
                operation.answer = Some((at, value));
            }
            (RegisterCall::Write(_), Ok(_)) => operation.answer = Some((at, 0)),
            (call, Ok(other)) => panic!("{call:?} answered {other:?}"),
            (call, Err(status)) => {
                assert!(!is_certain(status) || status == Status::NoSpace, "{call:?} of a register: {status:?}")
            }
        }
    }

    fn settle_name(&mut self, operation: usize, at: u64, result: Result<Reply, Status>) {
        let operation = &mut self.names[operation];
        let answer = match result {
            Ok(Reply::Answer(Answer::Attributes(attributes))) => NamesAnswer::Found(attributes.uid),
            Ok(Reply::Answer(Answer::Directory { entries, end, .. })) => {
                assert!(end, "four names fit one answer");
                let mut listed: NamesState = [None; 4];
                for entry in entries {
                    let slot = NAMES.iter().position(|text| text.as_bytes() == entry.name.as_bytes()).expect("a known name");
                    assert!(listed[slot].replace(entry.attributes.uid).is_none(), "a name is listed once");
                }
                NamesAnswer::Listed(listed)
            }
            Ok(Reply::Replied(_)) => NamesAnswer::Done,
            Ok(other) => panic!("{:?} answered {other:?}", operation.call),
            Err(Status::NotFound) => NamesAnswer::NotFound,
            Err(Status::Exists) => NamesAnswer::Exists,
            Err(status) => {
                let full = status == Status::NoSpace && matches!(operation.call, NamesCall::Create(..));
                assert!(full || !is_certain(status), "{:?}: {status:?}", operation.call);
                return;
            }
        };
        operation.answer = Some((at, answer));
    }

    fn settle_append(&mut self, record: u64, result: Result<Reply, Status>) {
        let outcome = match result {
            Ok(Reply::Replied(Replied::Written { offset, .. })) => {
                self.appended.push(record);
                Appended::At(offset)
            }
            Ok(Reply::Done) => {
                self.appended.push(record);
                Appended::Somewhere
            }
            Ok(other) => panic!("append answered {other:?}"),
            Err(Status::NoSpace) => Appended::Never,
            Err(status) if is_certain(status) => panic!("append: {status:?}"),
            Err(_) => Appended::Perhaps,
        };
        self.appends.insert(record, outcome);
    }

    /// The log holds every answered record where the answer said, and no record twice.
    fn check_log(&self, bytes: &[u8], known: usize) {
        assert_eq!(bytes.len() % RECORD, 0, "the log consists of whole records");
        let mut found = BTreeMap::new();
        for (index, record) in bytes.chunks(RECORD).enumerate() {
            let number = u64::from_le_bytes(record[..8].try_into().expect("eight bytes"));
            assert_eq!(record[8..], (!number).to_le_bytes(), "a record is whole");
            let outcome = self.appends.get(&number).unwrap_or_else(|| panic!("record {number} was never written"));
            assert_ne!(*outcome, Appended::Never, "a refused append had an effect");
            assert!(found.insert(number, (index * RECORD) as u64).is_none(), "record {number} was appended twice");
        }
        for record in &self.appended[..known] {
            let at = match self.appends[record] {
                Appended::At(at) => Some(at),
                Appended::Somewhere => None,
                // Its client lost it, perhaps.
                Appended::Perhaps => continue,
                other => panic!("record {record} was answered, now it is {other:?}"),
            };
            let there = found.get(record).copied();
            assert!(there.is_some() && (at.is_none() || at == there), "record {record} was answered and is not where it was put");
        }
    }

    /// What remains to be read when everything is quiet, and how the answer is judged.
    pub fn final_calls(&self) -> Vec<(FinalCheck, Call)> {
        let whole = ByteRange { offset: 0, length: 8 << 20 };
        let list = |ino| Call::Query(Query::ReadDirectory { ino, after: Cookie(0), limit: 512 });
        let mut calls = Vec::new();
        for (index, file) in self.files.iter().enumerate().filter(|(_, file)| !file.tainted && !file.unlinked) {
            let lookup = Query::Lookup { parent: self.ground.files, name: name(&file.name) };
            calls.push((FinalCheck::FileName(index), Call::Query(lookup)));
            calls.push((FinalCheck::File(index), Call::Read { ino: file.ino, range: whole }));
        }
        for register in 0..REGISTERS {
            calls.push((FinalCheck::Register(register), Call::Read { ino: self.ground.registers[register], range: whole }));
        }
        calls.push((FinalCheck::Names, list(self.ground.names)));
        calls.push((FinalCheck::Log, Call::Read { ino: self.ground.log, range: whole }));
        calls.push((FinalCheck::Links, list(self.ground.links)));
        calls.push((FinalCheck::Token, Call::Query(Query::Attributes { ino: self.ground.token })));
        calls
    }

    /// Judges one answer of [`Workload::final_calls`].
    pub fn on_final(&mut self, check: &FinalCheck, result: Result<Reply, Status>) {
        let reply = result.unwrap_or_else(|status| panic!("after healing, {check:?} failed: {status:?}"));
        let at = self.tick();
        match (check, reply) {
            (FinalCheck::FileName(index), Reply::Answer(Answer::Attributes(attributes))) => {
                assert_eq!(attributes.ino, self.files[*index].ino, "the name {} leads to its file", self.files[*index].name);
            }
            (FinalCheck::File(index), reply @ Reply::Bytes(_)) => {
                let began = self.files[*index].reader_begins();
                self.settle_read(*index, began, ByteRange { offset: 0, length: 8 << 20 }, Ok(reply));
            }
            (FinalCheck::Register(register), reply @ Reply::Bytes(_)) => {
                self.registers[*register].push(Operation { call: RegisterCall::Read, called: at, answer: None });
                let last = self.registers[*register].len() - 1;
                let at = self.tick();
                self.settle_register(*register, last, at, Ok(reply));
            }
            (FinalCheck::Names, reply) => {
                self.names.push(Operation { call: NamesCall::List, called: at, answer: None });
                let (last, at) = (self.names.len() - 1, self.tick());
                self.settle_name(last, at, Ok(reply));
            }
            (FinalCheck::Log, Reply::Bytes(bytes)) => self.check_log(&bytes, self.appended.len()),
            (FinalCheck::Links, Reply::Answer(Answer::Directory { entries, .. })) => {
                let listed: Vec<String> = entries.iter().map(|entry| entry.name.to_string()).collect();
                for (name, outcome) in self.links.iter().filter(|_| listed.len() < 512) {
                    assert!(*outcome != Some(true) || listed.contains(name), "link {name} was answered and is gone");
                }
            }
            (FinalCheck::Token, Reply::Answer(Answer::Attributes(attributes))) => {
                let sure = self.links.values().filter(|outcome| **outcome == Some(true)).count() as u32;
                let most = self.links.len() as u32;
                assert!((1 + sure..=1 + most).contains(&attributes.links), "{} links, {sure} answered", attributes.links);
            }
            (check, other) => panic!("{check:?} answered {other:?}"),
        }
    }

    /// Is there an order that explains what was seen?
    pub fn check_histories(&mut self) {
        for history in &self.registers {
            match linear::check(&Register, 0, history) {
                Finding::Linearizable => {}
                Finding::GaveUp => self.stats.gave_up += 1,
                Finding::Violation => panic!("a register is not linearizable:\n{}", linear::told(&Register, 0, history)),
            }
        }
        match linear::check(&Names, [None; 4], &self.names) {
            Finding::Linearizable => {}
            Finding::GaveUp => self.stats.gave_up += 1,
            Finding::Violation => panic!("the names are not linearizable:\n{}", linear::told(&Names, [None; 4], &self.names)),
        }
    }
}

/// What is read at the end.
#[derive(Clone, Debug)]
pub enum FinalCheck {
    FileName(usize),
    File(usize),
    Register(usize),
    Names,
    Log,
    Links,
    Token,
}
