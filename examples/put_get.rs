//! Stores and retrieves a stream through `dfs::Client`.
//!
//! Start a node (`cargo run --release --bin dfs-node`), then: `cargo run --example put_get`

use dfs::Client;
use dfs::client::{Error, Options};

fn main() -> Result<(), Error> {
    let nodes = ["127.0.0.1:7400".parse().expect("an address")];
    let client = Client::connect(&nodes, Options::default())?;
    let text = "a stream of bytes, kept in the memory of other machines\n".repeat(100_000);

    let stored = client.put(b"/stream", &mut text.as_bytes())?; // Returns when the bytes are replicated.
    println!("stored {} bytes", stored.size);

    let mut back = Vec::new();
    client.get(b"/stream", &mut back)?; // Every byte is checked against its hash.
    assert!(back == text.as_bytes());
    println!("fetched {} bytes, the same", back.len());
    client.remove(b"/stream")
}
