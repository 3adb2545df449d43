//! `dfs-node`: one storage node, one operating-system thread. Parses, then hands over to the event loop.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use dfs_node::args::Args;
use dfs_node::event_loop::{self, Stop};

/// Chunks of all sizes come and go for weeks: the C library's allocator grew to 1.35 times of what was in use within a minute of that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One thread, one arena. What was freed is kept for the next chunk: first touch of memory is expensive, most of all in virtual machines (giving
/// it back after ten seconds cost a quarter of the write throughput).
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8] = b"narenas:1,dirty_decay_ms:-1\0";

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(line) = args.check_usage() {
        eprintln!("dfs-node: {line}");
        return ExitCode::from(2);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("dfs-node: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let options = args.options()?;
    dfs::args::init_logging(&args.log, args.log_format, args.log_file.as_deref())?;
    let stop = Stop::default();
    event_loop::stop_on_signals(&stop);
    event_loop::serve(&options, &stop, |address, cluster, node| {
        // Scripts wait for this line through a pipe; a lost reader is no reason to stop serving.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "ready listen={address} cluster={cluster} node={node}").and_then(|()| out.flush());
    })
}
