//! Many weak nodes make one fast store: nodes held to 20 MiB/s each, and what 1, 2, 4 and 8 of them do together.
//!
//! `cargo run --release --example weak_nodes`. Each byte is stored twice where there are two nodes, so N nodes take N x 20 / 2 MiB/s.

#![allow(clippy::disallowed_methods)]

mod common;

use std::thread;
use std::time::Instant;

use dfs::Client;
use dfs::client::{Error, Options};
use dfs::random::Random;
use dfs::types::Address;

const RATE: u64 = 20 << 20;
const MEMORY: u64 = 256 << 20;
/// Programs that store and fetch at the same time.
const CLIENTS: u64 = 4;
/// How long each run should about take.
const SECONDS: u64 = 3;

fn main() -> Result<(), Error> {
    common::serve_if_node();
    println!("nodes  write MiB/s  (limit)  read MiB/s  (limit)");
    for count in [1, 2, 4, 8] {
        let copies = count.min(2);
        let (write, read) = measure(count, RATE * count / copies * SECONDS / CLIENTS)?;
        let limit = |bytes: u64| format!("({})", bytes >> 20);
        println!("{count:5}  {write:11.1}  {:>7}  {read:10.1}  {:>7}", limit(RATE * count / copies), limit(RATE * count));
    }
    Ok(())
}

/// MiB/s written and read by all clients together, each with a file of its own.
fn measure(count: u64, file_bytes: u64) -> Result<(f64, f64), Error> {
    let mut nodes = vec![common::start(MEMORY, RATE, None)];
    for _ in 1..count {
        let founder = nodes[0].address.clone();
        nodes.push(common::start(MEMORY, RATE, Some(&founder)));
    }
    let addresses: Vec<Address> = nodes.iter().map(|node| node.address.clone()).collect();
    let files: Vec<Vec<u8>> = (0..CLIENTS).map(|seed| random_bytes(seed, file_bytes)).collect();
    let write = all_clients(&addresses, &files, |client, path, bytes| client.put(path.as_bytes(), &mut &bytes[..]).map(drop))?;
    // New clients, so that nothing comes from a cache.
    let read = all_clients(&addresses, &files, |client, path, bytes| {
        let mut back = Vec::with_capacity(bytes.len());
        client.get(path.as_bytes(), &mut back)?;
        assert!(back == bytes, "{path} came back changed");
        Ok(())
    })?;
    Ok((write, read))
}

fn random_bytes(seed: u64, length: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn all_clients(
    addresses: &[Address],
    files: &[Vec<u8>],
    work: impl Fn(&Client, &str, &[u8]) -> Result<(), Error> + Sync,
) -> Result<f64, Error> {
    let clients = files.iter().map(|_| Client::connect(addresses, Options::default())).collect::<Result<Vec<_>, _>>()?;
    let work = &work;
    let begun = Instant::now();
    thread::scope(|scope| {
        let pairs = clients.iter().zip(files).enumerate();
        let running: Vec<_> =
            pairs.map(|(number, (client, bytes))| scope.spawn(move || work(client, &format!("/file{number}"), bytes))).collect();
        running.into_iter().try_for_each(|one| one.join().expect("a client thread"))
    })?;
    let bytes: usize = files.iter().map(Vec::len).sum();
    Ok(bytes as f64 / (1 << 20) as f64 / begun.elapsed().as_secs_f64())
}
