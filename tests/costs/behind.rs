//! What writing behind costs: nothing at the write, one commit for what came together, nothing for what was temporary.

use super::*;

impl Cluster {
    /// A client that caches and writes behind; a first file has made it reserve room.
    fn client_behind(&mut self) -> Pid {
        (self.run.world.caches, self.run.world.behind) = (true, true);
        let client = self.client();
        self.run.world.caches = false;
        // As a kernel does before it creates: from now on the client may keep names.
        self.cost(client, &[Call::Query(Query::Lookup { parent: ROOT, name: name("absent") })]);
        let (ino, text) = self.create_to_write(client);
        self.write(client, ino, 0, &content(77, 100));
        self.unlink(client, ino, &text);
        self.run.run_for(3 * SECOND);
        client
    }

    /// A file that the client has open and may write alone.
    fn create_to_write(&mut self, client: Pid) -> (InodeId, String) {
        self.names += 1;
        let text = format!("own{}", self.names);
        let op = Op::Create {
            parent: ROOT,
            name: name(&text),
            kind: NewKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            exclusive: true,
            hold: true,
            write: true,
            umask: 0,
        };
        match self.try_call(client, Call::Op(op)) {
            Reply::Replied(Replied::Entry { attributes, writer: true, .. }) => (attributes.ino, text),
            other => panic!("create answered {other:?}"),
        }
    }

    /// What the work costs: control requests, bulk requests, log entries.
    fn costs(&mut self, client: Pid, work: impl FnOnce(&mut Cluster)) -> (u64, u64, u64) {
        let (before, entries) = (self.counters(client), self.entries());
        work(self);
        let (control, bulk) = self.since(client, before);
        (control, bulk, self.entries() - entries)
    }

    /// Writes without waiting for one answer before the next; virtual time stands.
    fn write_at_once(&mut self, client: Pid, ino: InodeId, writes: impl Iterator<Item = (u64, Bytes)>) {
        let call = |(offset, bytes)| Call::Write { ino, at: WriteAt::Offset(offset), bytes, kill_privileges: false };
        let tokens: Vec<u64> = writes.map(|write| self.run.send(client, call(write))).collect();
        for token in tokens {
            self.run.wait(token).expect("a write");
        }
    }
}

/// Longer than bytes stay dirty.
const AGE: u64 = 1500 * MILLISECOND;

#[test]
fn a_small_file_written_behind_costs_one_message_and_its_commit_later() {
    let mut cluster = Cluster::new(20, 3);
    let client = cluster.client_behind();
    let bytes = content(1, 4096);
    let now = cluster.costs(client, |cluster| {
        let (ino, _) = cluster.create_to_write(client);
        cluster.write(client, ino, 0, &bytes);
        assert_eq!(cluster.read(client, ino, 0, 8192), bytes);
        cluster.close(client, ino);
    });
    assert_eq!(now, (1, 0, 1), "the creation");
    let later = cluster.costs(client, |cluster| cluster.run.run_for(AGE));
    let marks = 1; // The log is told that the session names its upload no more.
    assert_eq!(later, (1, 2, 1 + marks), "a chunk on two nodes, and its commit, which gives the right back");
    let after = cluster.costs(client, |cluster| cluster.run.run_for(10 * SECOND));
    println!("ten seconds after: {after:?}");
    assert!(after.1 == 0 && after.0 <= 2 && after.2 <= 3, "nothing to be folded: {after:?}");
    assert_eq!((cluster.inline_bytes(), cluster.stored()), (0, 2 * 4096));
}

#[test]
fn small_writes_to_one_file_are_one_commit() {
    let mut cluster = Cluster::new(21, 3);
    let client = cluster.client_behind();
    let (ino, _) = cluster.create_to_write(client);
    let bytes = content(2, 256 * 4096);
    let now = cluster.costs(client, |cluster| {
        let part = |at: usize| (at as u64, bytes.slice(at..at + 4096));
        cluster.write_at_once(client, ino, (0..bytes.len()).step_by(4096).map(part));
    });
    assert!(now.0 <= 1 && now.1 == 0 && now.2 <= 1, "more room is reserved once half of the first MiB is used: {now:?}");
    let later = cluster.costs(client, |cluster| cluster.run.run_for(AGE));
    let marks = 1;
    assert_eq!((later.0 + now.0, later.1, later.2 + now.2), (2, 2, 2 + marks), "one chunk on two nodes, one commit");
    assert_eq!(cluster.locate(client, ino).extents.len(), 1);
    let reader = cluster.client();
    assert_eq!(cluster.read(reader, ino, 0, MIB), bytes);
}

#[test]
fn what_is_overwritten_within_a_second_is_committed_once() {
    let mut cluster = Cluster::new(22, 3);
    let client = cluster.client_behind();
    let (ino, _) = cluster.create_to_write(client);
    let cost = cluster.costs(client, |cluster| {
        for turn in 0..100 {
            cluster.write_at_once(client, ino, std::iter::once((0, content(turn, 4096))));
        }
        cluster.run.run_for(AGE);
    });
    assert_eq!((cost.0, cost.1), (1, 2));
    assert!(cost.2 <= 3, "the commit, and the session's marks: {} entries", cost.2);
    assert_eq!(cluster.stored(), 2 * 4096);
    let reader = cluster.client();
    assert_eq!(cluster.read(reader, ino, 0, 4096), content(99, 4096));
}

#[test]
fn a_file_that_lives_less_than_a_second_uploads_nothing() {
    let mut cluster = Cluster::new(23, 3);
    let client = cluster.client_behind();
    let cost = cluster.costs(client, |cluster| {
        let (ino, text) = cluster.create_to_write(client);
        cluster.write(client, ino, 0, &content(3, 40_000));
        cluster.run.run_for(300 * MILLISECOND);
        cluster.unlink(client, ino, &text);
        cluster.run.run_for(5 * SECOND);
    });
    println!("{cost:?}");
    assert_eq!(cost.1, 0, "bulk requests");
    assert!(cost.0 <= 5 && cost.2 <= 5, "creation, removal, closing, and that it is gone: {cost:?}");
    let left = cluster.leader().namespace().usage();
    assert_eq!((left.inodes, left.charged_bytes, cluster.stored()), (1, 0, 0));
}

#[test]
fn a_synced_append_is_one_message_and_one_entry() {
    let mut cluster = Cluster::new(24, 3);
    let client = cluster.client_behind();
    let (ino, _) = cluster.create_to_write(client);
    for turn in 0..5 {
        let cost = cluster.costs(client, |cluster| {
            let call = Call::Write { ino, at: WriteAt::End, bytes: content(turn, 4096), kill_privileges: false };
            cluster.try_call(client, call);
            cluster.try_call(client, Call::Sync { ino });
        });
        assert_eq!(cost, (1, 0, 1), "turn {turn}");
        assert_eq!(cluster.inline_bytes(), (turn + 1) * 4096);
    }
    // The other way round: nothing to be made safe costs nothing.
    assert_eq!(cluster.costs(client, |cluster| _ = cluster.try_call(client, Call::Sync { ino })), (0, 0, 0));
}
