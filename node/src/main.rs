//! `dfs-node`: one storage node, one operating-system thread. Parses, then hands over to the event loop.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use dfs_node::args::{Args, Options};
use dfs_node::event_loop::{self, Stop};

mod allocator;

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
    let options = Options { give_back: Some(allocator::give_back), ..args.options()? };
    dfs::args::init_logging(&args.log, args.log_format, args.log_file.as_deref())?;
    let stop = Stop::default();
    event_loop::stop_on_signals(&stop);
    event_loop::serve(&options, &stop, |address, cluster, node| {
        // Scripts wait for this line through a pipe; a lost reader is no reason to stop serving.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "ready listen={address} cluster={cluster} node={node}").and_then(|()| out.flush());
    })
}
