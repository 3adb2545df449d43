//! The command line of `dfs`: what it accepts. Parses and checks; does nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use dfs::args::{self, LogFormat};
use dfs::types::{Address, ChunkHash};

/// Work with a dfs cluster: store, fetch, look, stop.
#[derive(Debug, Parser)]
#[command(name = "dfs", version, about, max_term_width = 100, subcommand_required = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that may stand before or after the subcommand.
#[derive(Args, Debug)]
pub struct Global {
    /// Nodes to begin with; the cluster map tells the rest
    #[arg(long, global = true, value_name = "ADDR,...", env = "DFS_NODES", value_delimiter = ',', default_value = args::DEFAULT_ADDRESS)]
    pub nodes: Vec<Address>,
    /// Answer in JSON (ls, locate, df, status, fsck)
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up on an operation after this long without progress
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = args::parse_duration)]
    pub op_timeout: Duration,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL", default_value = "error")]
    pub log: String,
    /// How log lines look: text or json
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log into this file instead of stderr
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// The cluster's secret (not yet)
    #[arg(long, global = true, value_name = "FILE", env = "DFS_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
}

/// What to do. Paths are inside the file system (`/a/b`) unless they say otherwise.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store a local file; returns when it is replicated (`-` is standard input)
    Put {
        /// Local file, or - for standard input
        src: PathBuf,
        /// Where to store it; into it, if it is a directory
        path: OsString,
    },
    /// Fetch a file to a local file (`-` is standard output)
    Get {
        path: OsString,
        /// Local file, a directory to put it into, or - for standard output
        dst: PathBuf,
    },
    /// Write a file to standard output
    Cat { path: OsString },
    /// List a directory, one name per line
    Ls {
        /// Show on which nodes each file lies
        #[arg(long = "where")]
        holders: bool,
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Make a directory
    Mkdir { path: OsString },
    /// Remove a file or an empty directory
    Rm {
        /// Remove a directory with all that is in it
        #[arg(short = 'r', long = "recursive")]
        recursive: bool,
        path: OsString,
    },
    /// Rename or move; into the target, if that is a directory
    Mv { from: OsString, to: OsString },
    /// Show what is known of a file
    Stat { path: OsString },
    /// Show where the bytes of a file lie: one line per extent
    Locate { path: OsString },
    /// Show size and free space after replication
    Df,
    /// Show nodes, voters, leader, memory and health
    Status,
    /// Return when what was written so far is safe
    Sync,
    /// Unmount a directory and wait until all is flushed and its process has ended
    Umount {
        /// A local directory, a dfs mount
        dir: PathBuf,
    },
    /// Stop the whole cluster; what it holds is gone
    Shutdown,
    /// Watch nodes and traffic (not yet)
    Top,
    /// Check the tree and all copies, and repair what can be; lists the files that are lost
    Fsck,
    /// Move a node's data and vote elsewhere; returns when it has left
    Drain {
        /// Its address or its id, as `status` shows them
        node: String,
    },
    /// Tell whether a node can stop at once without loss: exit code 0 if so
    CanStop {
        /// Its address or its id, as `status` shows them
        node: String,
    },
    /// When a majority of voters is lost for good: go on with what the surviving nodes have, as a new cluster
    Recover {
        /// Do it; without this it is only said what would be done
        #[arg(long)]
        yes: bool,
    },
    /// Make a cluster secret (not yet)
    Keygen { file: PathBuf },
    /// Work interactively (not yet)
    Shell,
    /// Harm a cluster whose nodes were started with --debug-faults, to see what it does about it
    #[command(hide = true)]
    Debug {
        #[command(subcommand)]
        action: Debug,
    },
}

/// What `dfs debug` does.
#[derive(Debug, Subcommand)]
pub enum Debug {
    /// Flip a bit of one copy of a chunk
    Flip {
        /// The chunk, as `dfs locate` shows it
        hash: ChunkHash,
        /// Which bit
        #[arg(long, default_value_t = 0)]
        bit: u64,
        /// Incarnation or address of the node [default: the first that holds the chunk]
        #[arg(long)]
        node: Option<String>,
    },
    /// Forget one copy of a chunk without a word
    Drop {
        /// The chunk, as `dfs locate` shows it
        hash: ChunkHash,
        /// Incarnation or address of the node [default: the first that holds the chunk]
        #[arg(long)]
        node: Option<String>,
    },
    /// Hash every chunk again now, instead of in the course of time
    Scrub {
        /// Incarnation or address of the node [default: all nodes]
        #[arg(long)]
        node: Option<String>,
    },
}

impl Command {
    /// Name of a command that is part of the contract but not built.
    pub fn not_yet(&self) -> Option<&'static str> {
        match self {
            Command::Top => Some("top"),
            Command::Keygen { .. } => Some("keygen"),
            Command::Shell => Some("shell"),
            _ => None,
        }
    }

    /// Whether `--json` means something for it.
    pub fn speaks_json(&self) -> bool {
        matches!(self, Command::Ls { .. } | Command::Locate { .. } | Command::Df | Command::Status | Command::Fsck)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_whole_contract_parses() {
        let lines = "put a /b|put - /b|get /a -|cat /a|ls|ls /|ls --where /|mkdir /d|rm /a|rm -r /a|mv /a /b|stat /a|locate /a|df|status|sync|\
                     umount d|shutdown|top|fsck|drain n|can-stop n|recover|recover --yes|keygen f|shell|debug scrub --node n";
        for line in lines.split('|') {
            assert!(parse(&format!("dfs {line}")).is_ok(), "{line}");
            assert!(parse(&format!("dfs --nodes unix:/x,[::1]:7 --json {line} --op-timeout 500ms --log info")).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in ["", "nonsense", "put a", "put a b c", "cat", "--nodes nowhere ls", "--op-timeout soon ls", "rm", "ls --from /"] {
            assert!(parse(&format!("dfs {line}")).is_err(), "{line}");
        }
    }
}
