//! Scripted scenarios: races too narrow to be left to chance.

use bytes::Bytes;

use dfs::client::{Call, Reply};
use dfs::types::{ByteRange, InodeId, ROOT};
use dfs::wire::namespace::{NewKind, Op, Replied, WriteAt};

use super::checks::unrest;
use super::network::Pid;
use super::plan::Plan;
use super::run::Run;
use super::workload::{create, name};
use super::world::{MILLISECOND, SECOND};

fn file(run: &mut Run, client: Pid, text: &str) -> InodeId {
    match run.call(client, create(ROOT, text, NewKind::File, 0)) {
        Ok(Reply::Replied(Replied::Entry { attributes, .. })) => attributes.ino,
        other => panic!("create answered {other:?}"),
    }
}

fn write(ino: InodeId, bytes: &Bytes) -> Call {
    Call::Write { ino, at: WriteAt::Offset(0), bytes: bytes.clone(), kill_privileges: false }
}

fn unlink(text: &str) -> Call {
    Call::Op(Op::Unlink { parent: ROOT, name: name(text) })
}

fn read(run: &mut Run, client: Pid, ino: InodeId) -> Bytes {
    match run.call(client, Call::Read { ino, range: ByteRange { offset: 0, length: 1 << 20 } }) {
        Ok(Reply::Bytes(bytes)) => bytes,
        other => panic!("read answered {other:?}"),
    }
}

/// A client that has uploaded some bytes before writes them again, without sending them, while their last reference goes away
/// and every deletion comes twice, the second time up to three seconds late. The race is run with many offsets.
pub fn upload_races_deletion(plan: Plan) {
    let mut run = Run::new(plan.calm(), None);
    run.world.echoes = 4;
    run.form();
    let (one, other) = (run.start_client(0), run.start_client(1));
    let bytes = Bytes::from(vec![0x5a; 50_000]);
    for round in 0..40u64 {
        let (first, second, third) = (format!("first{round}"), format!("second{round}"), format!("third{round}"));
        // Both clients know that the nodes have the bytes.
        let (a, b) = (file(&mut run, one, &first), file(&mut run, other, &second));
        run.call(one, write(a, &bytes)).expect("a write");
        run.call(other, write(b, &bytes)).expect("a write");
        run.call(other, unlink(&second)).expect("an unlink");
        let c = file(&mut run, other, &third);
        // The last reference goes; around the deletion that follows, the bytes are uploaded again.
        let gone = run.send(one, unlink(&first));
        run.run_for(round * 15 * MILLISECOND);
        let again = run.send(other, write(c, &bytes));
        run.wait(gone).expect("an unlink");
        run.wait(again).expect("a write");
        for _ in 0..4 {
            assert_eq!(read(&mut run, one, c), bytes, "round {round}");
            run.run_for(400 * MILLISECOND);
        }
        run.call(other, unlink(&third)).expect("an unlink");
        if round % 2 == 0 {
            run.run_for(SECOND);
        }
    }
    run.run_until(60 * SECOND, "collecting the garbage", |run| {
        let stored: u64 = run.world.nodes().map(|(_, node)| node.chunks().usage().stored).sum();
        let left = (stored > 0).then(|| format!("{stored} bytes are stored though everything was deleted"));
        unrest(&run.world, &run.expected(false)).or(left)
    });
}
