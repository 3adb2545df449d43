//! Runs a cluster of three node processes, kills one with `kill -9`, and reads on.
//!
//! `cargo run --release --example three_nodes`

#![allow(clippy::disallowed_methods)]

mod common;

use std::time::Instant;

use dfs::Client;
use dfs::random::Random;
use dfs::status::Status;

const MEMORY: u64 = 256 << 20;

fn main() -> Result<(), Status> {
    common::serve_if_node();
    let mut nodes = vec![common::start(MEMORY, 0, None)];
    for _ in 1..3 {
        let founder = nodes[0].address.clone();
        nodes.push(common::start(MEMORY, 0, Some(&founder)));
    }
    let addresses = nodes.iter().map(|node| node.address.to_string()).collect::<Vec<_>>().join(",");
    println!("three nodes: {addresses}");

    let client = Client::connect(&addresses)?;
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..4 << 20).flat_map(|_| random.next().to_le_bytes()).collect();
    client.put("/file", &mut bytes.as_slice())?;
    println!("stored {} MiB, each chunk on two nodes", bytes.len() >> 20);

    nodes[0].kill();
    println!("killed {}, the node that formed the cluster", nodes[0].address);

    let begun = Instant::now();
    let mut back = Vec::new();
    client.fetch("/file", &mut back)?;
    assert!(back == bytes, "every byte is still there");
    println!("read all of it back in {:.2?}", begun.elapsed());

    let begun = Instant::now();
    client.put("/after", &mut &bytes[..1 << 20])?;
    println!("and stored another MiB in {:.2?}", begun.elapsed());
    Ok(())
}
