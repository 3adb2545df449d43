//! `dfs`: the command line for people and scripts.
//!
//! Results go to stdout and nothing else does. Exit code 0: done; 1: failed, with one line on stderr; 2: wrong usage.

mod args;
mod commands;
mod debug;
mod failure;
mod fsck;
mod members;
mod recover;
mod show;
mod store;
mod unmount;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;

/// What a shell reports for a process that ended by SIGPIPE.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

fn main() -> ExitCode {
    let cli = Cli::parse(); // Exits with 2 on wrong usage, 0 after --help.
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::BrokenPipe) => ExitCode::from(EXIT_BROKEN_PIPE),
        Err(failure @ Failure::Usage(_)) => {
            eprintln!("dfs: {failure}");
            ExitCode::from(2)
        }
        Err(failure) => {
            eprintln!("dfs: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    if let Some(name) = cli.command.not_yet() {
        return Err(Failure::new(format!("not yet: `dfs {name}` is not built; `dfs --help` shows what is")));
    }
    if cli.global.secret_file.is_some() {
        return Err(Failure::new("not yet: --secret-file (DFS_SECRET_FILE) is not built; run without it on a network you trust"));
    }
    if cli.global.json && !cli.command.speaks_json() {
        return Err(Failure::Usage("--json goes with ls, locate, df, status and fsck".to_string()));
    }
    dfs::args::init_logging(&cli.global.log, cli.global.log_format, cli.global.log_file.as_deref()).map_err(Failure::new)?;
    commands::run(cli)
}
