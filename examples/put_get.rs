//! Stores and retrieves a stream through `dfs::Client`.
//!
//! Start a node (`cargo run --release --bin dfs-node`), then: `cargo run --example put_get`

use dfs::Client;
use dfs::status::Status;

fn main() -> Result<(), Status> {
    let client = Client::connect("127.0.0.1:7400")?;
    let text = "a stream of bytes, kept in the memory of other machines\n".repeat(100_000);

    let written = client.put("/stream", &mut text.as_bytes())?; // Returns when the bytes are replicated.
    println!("stored {written} bytes");

    let mut back = Vec::new();
    client.fetch("/stream", &mut back)?; // Every byte is checked against its hash.
    assert!(back == text.as_bytes());
    println!("fetched {} bytes, the same", back.len());
    client.remove("/stream")
}
