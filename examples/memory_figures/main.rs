//! Measures memory: what nodes and mounts have resident while files of all sizes come and go, while much passes through one mount, and
//! with a million files. Real processes; checks on the way that errors come where they belong and that every byte read is right.
//!
//!     cargo build --release --workspace
//!     cargo run --release --example memory_figures -- churn --minutes 30
//!     cargo run --release --example memory_figures -- passage --gib 50
//!     cargo run --release --example memory_figures -- files --count 1000000 --bytes 0
#![allow(clippy::disallowed_methods)]

use clap::Parser;

mod churn;
mod files;
mod passage;
mod pauses;
#[path = "../common/programs.rs"]
mod programs;
mod stored;
mod watch;

/// What to measure.
#[derive(Parser)]
enum Figure {
    /// Files from 1 byte to 32 MiB are made, changed, read, and deleted; now and then until nothing fits.
    Churn(churn::Options),
    /// That much is written, read and deleted through one mount.
    Passage(passage::Options),
    /// That many small files are made, then walked over; a node joins, and dies.
    Files(files::Options),
}

fn main() -> programs::Result<()> {
    match Figure::parse() {
        Figure::Churn(options) => churn::run(&options),
        Figure::Passage(options) => passage::run(&options),
        Figure::Files(options) => files::run(&options),
    }
}
