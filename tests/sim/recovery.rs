//! Clusters that lose the majority of their voters, and what `dfs recover` makes of the rest: decided by `dfs::recovery`, done by the nodes.

use std::collections::BTreeSet;

use bytes::Bytes;

use dfs::client::{Call, Reply};
use dfs::limits;
use dfs::recovery::{self, Plan as Recovery, Seen};
use dfs::status::Status;
use dfs::types::{ByteRange, ChunkHash, ClusterId, InodeId};
use dfs_node::node::Node;

use super::network::{Host, Pid, Speed};
use super::plan::Plan;
use super::run::{Run, address};
use super::scripts::{file, unlink, write};
use super::world::{Death, MILLISECOND, SECOND};

/// A cluster, what is stored in it, and the client that has stored it.
struct Loss {
    run: Run,
    client: Pid,
    /// How many clients there were: each has a host of its own.
    clients: usize,
    files: Vec<(InodeId, Bytes)>,
    old: ClusterId,
}

fn read(ino: InodeId) -> Call {
    Call::Read { ino, range: ByteRange { offset: 0, length: 1 << 20 } }
}

impl Loss {
    /// So many nodes with some files, each synced.
    fn new(seed: u64, nodes: usize) -> Self {
        let speed = Speed { latency_ns: 50_000 << (seed % 6), jitter_ns: (seed % 3) * 2 * MILLISECOND, ns_per_byte: 1 };
        let (memory, zones) = (vec![64 << 20; nodes], vec![""; nodes]);
        let drawn = Plan::draw(seed).calm();
        let mut run = Run::new(Plan { nodes: memory, zones, replicas: 2, listed: false, mounts: false, clients: 1, speed, ..drawn }, None);
        run.form();
        let client = run.start_client(0);
        let mut files = Vec::new();
        for number in 0..24u8 {
            let ino = file(&mut run, client, &format!("file{number}"));
            let bytes: Bytes = (0..50_000u32).map(|at| (at % 249) as u8 ^ number).collect::<Vec<u8>>().into();
            run.call(client, write(ino, &bytes)).expect("a write");
            run.call(client, Call::Flush).expect("a flush");
            files.push((ino, bytes));
        }
        let old = run.world.nodes().next().expect("nodes").1.map().cluster;
        Loss { run, client, clients: 1, files, old }
    }

    fn node(&self, host: Host) -> Option<&Node> {
        self.run.world.processes.get(&self.run.world.pid_on(host)?)?.as_node()
    }

    fn hosts(&self) -> Vec<Host> {
        (0..self.run.plan.nodes.len()).filter(|&host| self.node(host).is_some()).collect()
    }

    /// The hosts of two voters, by the seed also of the leader.
    fn two_voters(&mut self) -> [Host; 2] {
        let voters = self.node(0).expect("a node").map().voters.clone();
        let mut hosts: Vec<Host> =
            self.hosts().into_iter().filter(|&host| voters.contains(&self.node(host).expect("it runs").id())).collect();
        [(); 2].map(|()| hosts.swap_remove(self.run.world.random.below(hosts.len() as u64) as usize))
    }

    fn kill(&mut self, host: Host) {
        let death = if self.run.world.random.chance(1, 2) { Death::Killed } else { Death::Silent };
        self.run.world.kill(self.run.world.pid_on(host).expect("it runs"), death);
    }

    fn begin(&mut self, call: Call) -> (Pid, u64) {
        // It knows of that node alone: one that found another cluster first could not speak to this one.
        let (Call::Status(Some(to)) | Call::Recover { address: to, .. } | Call::Rejoin { address: to, .. }) = &call else {
            panic!("{call:?} is for no certain node");
        };
        let pid = self.run.world.start_client(self.run.plan.client_host(self.clients), vec![to.clone()]);
        self.clients += 1;
        (pid, self.run.send(pid, call))
    }

    fn end(&mut self, (pid, token): (Pid, u64)) -> Result<Reply, Status> {
        let result = self.run.wait(token);
        self.run.world.kill(pid, Death::Killed);
        result
    }

    /// One call of a client that has heard of nothing before.
    fn ask(&mut self, call: Call) -> Result<Reply, Status> {
        let begun = self.begin(call);
        self.end(begun)
    }

    /// What the nodes on these hosts say of themselves.
    fn survey(&mut self, hosts: &[Host]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for &host in hosts {
            if let Ok(Reply::Status(report)) = self.ask(Call::Status(Some(address(host)))) {
                seen.push((address(host), *report));
            }
        }
        seen
    }

    /// The same, once nobody there has heard a leader for so long that it may go on alone.
    fn survey_forsaken(&mut self, hosts: &[Host]) -> Vec<Seen> {
        let until = self.run.world.now + 30 * SECOND;
        loop {
            let seen = self.survey(hosts);
            let patience = limits::LEADERLESS_MIN.as_millis() as u64;
            if seen.len() == hosts.len() && seen.iter().all(|(_, report)| report.standing.leaderless_ms >= patience) {
                return seen;
            }
            assert!(self.run.world.now < until, "somebody leads: {seen:?}");
            self.run.run_for(200 * MILLISECOND);
        }
    }

    /// Has the survivor go on, told once or by two people at once.
    fn go_on(&mut self, plan: &Recovery) {
        let cluster = plan.lost.expect("there is something to recover");
        let call = Call::Recover { address: plan.address.clone(), cluster };
        let twice = self.run.world.random.chance(1, 2).then(|| self.begin(call.clone()));
        let mut results = vec![self.ask(call.clone())];
        results.extend(twice.map(|twice| self.end(twice)));
        // Who comes second may find his link closed; he has found the old cluster meanwhile, and cannot speak to the new one.
        assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Status::WrongCluster))), "{results:?}");
        let host = self.run.world.hosts[&plan.address];
        let new = self.node(host).expect("it runs").map().cluster;
        // It comes once more, late.
        self.ask(call).expect("the same answer");
        assert_eq!(self.node(host).expect("it runs").map().cluster, new, "it goes on once");
        assert_ne!(new, cluster);
    }

    fn rejoin(&mut self, plan: &Recovery) {
        for straggler in &plan.stragglers {
            let call = Call::Rejoin { address: straggler.address.clone(), cluster: straggler.cluster, to: plan.address.clone() };
            self.ask(call).expect("it joins");
        }
    }

    /// The nodes on these hosts are one cluster, which has found all copies and made the second ones again. Gives the hashes that are lost.
    fn settle(&mut self, hosts: &[Host]) -> BTreeSet<ChunkHash> {
        let hosts = hosts.to_vec();
        let wanted: Vec<ChunkHash> = self.files.iter().map(|(_, bytes)| ChunkHash::of(bytes)).collect();
        self.run.run_until(90 * SECOND, "going on", |run| {
            let nodes: Vec<&Node> = hosts.iter().filter_map(|&host| run.world.processes.get(&run.world.pid_on(host)?)?.as_node()).collect();
            let Some(leader) = nodes.iter().find(|node| node.leads().is_some()) else { return Some("nobody leads".to_string()) };
            let map = leader.map();
            let in_it = |node: &&Node| node.is_ready() && node.map().cluster == map.cluster && map.is_living(node.id());
            if nodes.len() != hosts.len() || !nodes.iter().all(in_it) || map.members.len() != hosts.len() {
                return Some(format!("not all are in: {map:?}"));
            }
            wanted.iter().find_map(|hash| {
                let Some(held) = leader.namespace().chunk_held(hash) else { return Some(format!("{hash:?} is not recorded")) };
                let having = nodes.iter().filter(|node| node.chunks().contains(hash)).count();
                let recorded = nodes.iter().filter(|node| held.holders.contains(&node.id()) && node.chunks().contains(hash)).count();
                let enough = having == 0 || recorded >= hosts.len().min(2);
                (!enough).then(|| format!("{hash:?} is on {having} nodes and recorded on {recorded}"))
            })
        });
        let nodes: Vec<&Node> = hosts.iter().filter_map(|&host| self.node(host)).collect();
        wanted.into_iter().filter(|hash| !nodes.iter().any(|node| node.chunks().contains(hash))).collect()
    }

    /// Everything works in the new cluster but what is lost.
    fn check(&mut self, lost: &BTreeSet<ChunkHash>) {
        let client = self.run.start_client(self.clients);
        self.clients += 1;
        for (ino, bytes) in self.files.clone() {
            match self.run.call(client, read(ino)) {
                Ok(Reply::Bytes(seen)) => assert!(seen == bytes && !lost.contains(&ChunkHash::of(&bytes)), "{ino:?}"),
                Err(status) => {
                    assert!(lost.contains(&ChunkHash::of(&bytes)), "{ino:?} answered {status} though a copy survived");
                    assert_eq!(status.errno(), libc::EIO, "{status}");
                }
                other => panic!("read answered {other:?}"),
            }
        }
        let bytes = Bytes::from(vec![7; 60_000]);
        let ino = file(&mut self.run, client, "new");
        self.run.call(client, write(ino, &bytes)).expect("a write");
        self.run.call(client, Call::Flush).expect("a flush");
        assert!(matches!(self.run.call(client, read(ino)), Ok(Reply::Bytes(seen)) if seen == bytes));
        self.run.call(client, unlink("new")).expect("an unlink");
        // A file whose bytes are lost is there all the same, to be seen and removed.
        let gone = self.files.iter().position(|(_, bytes)| lost.contains(&ChunkHash::of(bytes)));
        if let Some(number) = gone {
            self.run.call(client, unlink(&format!("file{number}"))).expect("an unlink");
        }
        self.run.world.kill(client, Death::Killed);
    }

    /// The client of the old cluster is told so, and never gets into the new one.
    fn check_old_client(&mut self) {
        let status = self.run.call(self.client, read(self.files[0].0)).expect_err("it belongs to the old cluster");
        assert_ne!(status.errno(), libc::ENOENT, "{status}");
    }
}

/// Two voters die at once. The survivor goes on with everything of which a copy survived.
pub fn two_voters_die(seed: u64, nodes: usize) {
    let mut loss = Loss::new(seed, nodes);
    let dead = loss.two_voters();
    dead.into_iter().for_each(|host| loss.kill(host));
    let hosts = loss.hosts();
    let all: BTreeSet<ChunkHash> = loss.files.iter().map(|(_, bytes)| ChunkHash::of(bytes)).collect();
    let survives = |hash: &ChunkHash| hosts.iter().any(|&host| loss.node(host).is_some_and(|node| node.chunks().contains(hash)));
    let lost: BTreeSet<ChunkHash> = all.into_iter().filter(|hash| !survives(hash)).collect();
    // Too early: the leader was heard a moment ago.
    let refused = loss.ask(Call::Recover { address: address(hosts[0]), cluster: loss.old });
    assert_eq!(refused.unwrap_err(), Status::Conflict);
    let seen = loss.survey_forsaken(&hosts);
    let said = recovery::explain(&seen, loss.old).expect("there is something to say");
    assert!(said.starts_with("no majority: 1 of 3 voters answers") && said.contains("`dfs recover`"), "{said}");
    let plan = recovery::plan(&seen).expect("a majority is lost");
    let entry = hosts.iter().map(|&host| loss.node(host).expect("it runs").namespace().applied()).max();
    assert!(Some(plan.entry) >= entry);
    let epoch = hosts.iter().map(|&host| loss.node(host).expect("it runs").map().epoch).max();
    loss.go_on(&plan);
    loss.rejoin(&plan);
    assert_eq!(loss.settle(&hosts), lost);
    assert!(loss.node(hosts[0]).map(|node| node.map().epoch) > epoch, "epochs only grow");
    loss.check(&lost);
    loss.check_old_client();
    let seen = loss.survey(&hosts);
    assert!(recovery::plan(&seen).unwrap_err().contains("has a leader"));
}

/// Of three voters one dies and one is stopped so long that it is given up. It comes back to nobody, and joins when it is told to.
pub fn one_comes_back(seed: u64) {
    let mut loss = Loss::new(seed, 3);
    let [dead, stopped] = loss.two_voters();
    loss.kill(dead);
    let sleeper = loss.run.world.pid_on(stopped).expect("it runs");
    loss.run.world.pause(sleeper);
    let survivor: Vec<Host> = loss.hosts().into_iter().filter(|&host| host != stopped).collect();
    let seen = loss.survey_forsaken(&survivor);
    let plan = recovery::plan(&seen).expect("a majority is lost");
    loss.go_on(&plan);
    let lost = loss.settle(&survivor);
    loss.run.world.resume(sleeper);
    loss.run.run_for(10 * SECOND);
    let old = loss.node(stopped).expect("it runs");
    assert!(old.map().cluster == loss.old && old.leads().is_none(), "alone it is no majority");
    let new = loss.node(survivor[0]).expect("it runs");
    assert!(new.leads().is_some() && new.map().members.len() == 1, "nobody has come");
    // Its copies come with it.
    let both = loss.hosts();
    let seen = loss.survey(&both);
    let rest = recovery::plan(&seen).expect("one has not heard of it");
    assert_eq!((rest.lost, rest.stragglers.len()), (None, 1));
    loss.rejoin(&rest);
    let still = loss.settle(&both);
    assert!(still.is_subset(&lost) && still.is_empty(), "each file was on two of three");
    loss.check(&still);
    loss.check_old_client();
}

/// Of five voters three die, a survivor goes on, and dies before or while the other joins it.
pub fn the_survivor_dies_again(seed: u64) {
    let mut loss = Loss::new(seed, 5);
    assert_eq!(loss.node(0).expect("it runs").map().voters.len(), 5);
    let [one, other] = loss.two_voters();
    let third = loss.hosts().into_iter().find(|host| ![one, other].contains(host)).expect("five");
    [one, other, third].into_iter().for_each(|host| loss.kill(host));
    let hosts = loss.hosts();
    let seen = loss.survey_forsaken(&hosts);
    let plan = recovery::plan(&seen).expect("a majority is lost");
    loss.go_on(&plan);
    let first = loss.run.world.hosts[&plan.address];
    if seed.is_multiple_of(2) {
        // The other has begun to join.
        loss.rejoin(&plan);
        let patience = loss.run.world.random.below(2 * SECOND);
        loss.run.run_for(patience);
    }
    loss.kill(first);
    loss.run.run_for(6 * SECOND);
    let hosts = loss.hosts();
    let seen = loss.survey(&hosts);
    let again = match recovery::plan(&seen) {
        Ok(again) => again,
        // It had given its copy up and had not got the new one: the first survivor had the only one.
        Err(why) => return assert!(seed.is_multiple_of(2) && why.contains("copy of the tree"), "{why}"),
    };
    loss.go_on(&again);
    let lost = loss.settle(&hosts);
    loss.check(&lost);
}
