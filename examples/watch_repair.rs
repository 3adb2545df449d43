//! Runs a cluster of four node processes, stores some data, kills one node with `kill -9`, and prints how the lost copies are made again.
//!
//! `cargo run --release --example watch_repair -- [MIB]` (default 256)

#![allow(clippy::disallowed_methods)]

mod common;

use std::time::{Duration, Instant};

use dfs::Client;
use dfs::client::{Error, Options};
use dfs::cluster_map::MemberState;
use dfs::random::Random;

const NODES: usize = 4;
const FILE_MIB: usize = 16;

fn main() -> Result<(), Error> {
    common::serve_if_node();
    let mib: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(256);
    let memory = (mib as u64 * 2 + 256) << 20;
    let mut nodes = vec![common::start(memory, 0, None)];
    for _ in 1..NODES {
        let founder = nodes[0].address.clone();
        nodes.push(common::start(memory, 0, Some(&founder)));
    }
    let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
    let client = Client::connect(&addresses, Options::default())?;
    let mut random = Random::new(1);
    for file in 0..mib.div_ceil(FILE_MIB) {
        let bytes: Vec<u8> = (0..FILE_MIB << 17).flat_map(|_| random.next().to_le_bytes()).collect();
        client.put(format!("/{file}").as_bytes(), &mut bytes.as_slice())?;
    }
    println!("{NODES} nodes, {} MiB stored, each chunk on two of them", mib.div_ceil(FILE_MIB) * FILE_MIB);

    nodes[NODES - 1].kill();
    let begun = Instant::now();
    println!("killed {}\n   time  nodes  chunks on two  on one  to copy   left", nodes[NODES - 1].address);
    loop {
        let report = client.status()?;
        let living = report.members.iter().filter(|member| member.member.state == MemberState::Live).count();
        let (repair, chunks) = (report.repair, report.referenced_chunks);
        let known = living < NODES && repair.known && report.from_leader;
        let left = repair.seconds_left.map_or("-".to_string(), |seconds| format!("{seconds} s"));
        let (weak, to_copy) = if known { (repair.weak_chunks, repair.weak_bytes >> 20) } else { (0, 0) };
        let note = if living == NODES { "  (nobody has noticed yet)" } else { "" };
        println!("{:6.2}s  {living:5}  {:13}  {weak:6}  {to_copy:4} MiB  {left:>5}{note}", begun.elapsed().as_secs_f64(), chunks - weak);
        if known && weak == 0 {
            println!("full strength again after {:.2?}", begun.elapsed());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
