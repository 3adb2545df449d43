//! Runs a cluster of three node processes, kills one with `kill -9`, and reads on.
//!
//! `cargo run --release --example three_nodes`

#![allow(clippy::disallowed_methods)]

mod common;

use std::time::Instant;

use dfs::Client;
use dfs::client::{Error, Options};
use dfs::random::Random;

const MEMORY: u64 = 256 << 20;

fn main() -> Result<(), Error> {
    common::serve_if_node();
    let mut nodes = vec![common::start(MEMORY, 0, None)];
    for _ in 1..3 {
        let founder = nodes[0].address.clone();
        nodes.push(common::start(MEMORY, 0, Some(&founder)));
    }
    let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
    println!("three nodes, the first formed the cluster: {}, {}, {}", addresses[0], addresses[1], addresses[2]);

    let client = Client::connect(&addresses, Options::default())?;
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..4 << 20).flat_map(|_| random.next().to_le_bytes()).collect();
    client.put(b"/file", &mut bytes.as_slice())?;
    println!("stored {} MiB, each chunk on two nodes", bytes.len() >> 20);

    nodes[0].kill();
    println!("killed {}", nodes[0].address);

    let begun = Instant::now();
    let mut back = Vec::new();
    client.get(b"/file", &mut back)?;
    assert!(back == bytes, "every byte is still there");
    println!("read all of it back in {:.2?}", begun.elapsed());

    let begun = Instant::now();
    client.put(b"/after", &mut &bytes[..1 << 20])?;
    println!("and stored another MiB in {:.2?}", begun.elapsed());
    Ok(())
}
