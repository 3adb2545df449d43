//! The command line of `dfs-mount`.
//!
//! Parses and checks; what is not built yet answers so with exit code 1, what makes no sense is a usage error with exit code 2.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use dfs::args::{DEFAULT_ADDRESS, LogFormat, Size, parse_addresses, parse_duration};
use dfs::limits;
use dfs::types::Address;

/// Mounts a dfs cluster as a directory.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfs-mount", version, about = "Mounts a dfs cluster as a directory", max_term_width = 120)]
struct Raw {
    /// Where to begin: addresses of nodes, the cluster tells the rest [default: 127.0.0.1:7400; environment: DFS_NODES]
    #[arg(long, value_name = "ADDR,...", conflicts_with = "embedded")]
    nodes: Option<String>,
    /// Run a cluster of N nodes inside this process (3 if not said)
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "3",
          value_parser = clap::value_parser!(u16).range(1..=limits::EMBEDDED_NODES_MAX as i64))]
    embedded: Option<u16>,
    /// Memory of the embedded nodes together [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE", requires = "embedded")]
    memory: Option<Size>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPT,...")]
    options: Vec<String>,
    /// Every call ends within this time without progress
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    op_timeout: Duration,
    /// Memory for cached chunks
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    cache: Size,
    /// The cluster's secret (not yet)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter; RUST_LOG overrules it
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Append log lines to this file instead of stderr
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// [SOURCE] MOUNTPOINT; SOURCE is an address list, or `dfs` for the default
    #[arg(value_name = "[SOURCE] MOUNTPOINT", required = true, num_args = 1..=2)]
    place: Vec<PathBuf>,
}

/// Where the cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    Nodes(Vec<Address>),
    /// Inside this process.
    Embedded {
        nodes: usize,
        memory: u64,
    },
}

/// What `-o` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    pub read_only: bool,
    pub allow_other: bool,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub atime: bool,
    pub fsname: String,
    pub subtype: String,
}

/// A command line that makes sense.
#[derive(Clone, Debug)]
pub struct Args {
    pub cluster: Cluster,
    pub point: PathBuf,
    pub foreground: bool,
    pub options: MountOptions,
    pub op_timeout: Duration,
    pub cache: u64,
    pub log: String,
    pub log_format: LogFormat,
    pub log_file: Option<PathBuf>,
}

/// Why a command line is not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// Help, version, or wrong usage, as clap prints it.
    Usage(clap::Error),
    /// One line; exit code 1.
    NotYet(String),
}

/// Parses the command line; `environment` answers for DFS_NODES and DFS_SECRET_FILE.
pub fn parse(words: impl IntoIterator<Item = std::ffi::OsString>, environment: impl Fn(&str) -> Option<String>) -> Result<Args, Refusal> {
    let raw = Raw::try_parse_from(words).map_err(Refusal::Usage)?;
    let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
    if raw.secret_file.is_some() || environment("DFS_SECRET_FILE").is_some() {
        return Err(Refusal::NotYet("--secret-file (DFS_SECRET_FILE): not yet; run without a secret on a network you trust".into()));
    }
    let bound = 2 * (limits::SESSION_LEASE + limits::SESSION_MARGIN) + limits::ELECTION_TIMEOUT;
    if raw.op_timeout < bound {
        return usage(format!("--op-timeout {:?} is below {bound:?}, what a failover may take; give {bound:?} or more", raw.op_timeout));
    }
    let (source, point) = match raw.place.as_slice() {
        [source, point] => (Some(source.to_string_lossy().into_owned()), point.clone()),
        [point] => (None, point.clone()),
        _ => return usage("one MOUNTPOINT, or SOURCE and MOUNTPOINT".into()),
    };
    let fsname = source.clone().unwrap_or_else(|| "dfs".into());
    let options = mount_options(&raw.options.join(","), fsname)?;
    let cluster = match raw.embedded {
        Some(nodes) => {
            if source.as_deref().is_some_and(|source| source != "dfs") {
                return usage("--embedded brings its own nodes; leave SOURCE out".into());
            }
            Cluster::Embedded { nodes: nodes.into(), memory: raw.memory.map_or_else(dfs::args::memory_default, |size| size.0) }
        }
        None => {
            let named = source.filter(|source| source != "dfs");
            if named.is_some() && raw.nodes.is_some() {
                return usage("nodes are named twice: by SOURCE and by --nodes".into());
            }
            let text = named.or(raw.nodes).or_else(|| environment("DFS_NODES")).unwrap_or_else(|| DEFAULT_ADDRESS.into());
            Cluster::Nodes(parse_addresses(&text).or_else(usage)?)
        }
    };
    let Raw { foreground, op_timeout, log, log_format, log_file, .. } = raw;
    Ok(Args { cluster, point, foreground, options, op_timeout, cache: raw.cache.0, log, log_format, log_file })
}

fn usage<T>(text: String) -> Result<T, Refusal> {
    use clap::CommandFactory;
    Err(Refusal::Usage(Raw::command().error(ErrorKind::ValueValidation, text)))
}

fn mount_options(list: &str, fsname: String) -> Result<MountOptions, Refusal> {
    // Like every FUSE mount: no setuid and no devices unless asked for.
    let mut options = MountOptions {
        read_only: false,
        allow_other: false,
        suid: false,
        dev: false,
        exec: true,
        atime: true,
        fsname,
        subtype: "dfs-mount".into(),
    };
    for option in list.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        match option {
            "ro" => options.read_only = true,
            "rw" => options.read_only = false,
            "allow_other" => options.allow_other = true,
            "suid" => options.suid = true,
            "nosuid" => options.suid = false,
            "dev" => options.dev = true,
            "nodev" => options.dev = false,
            "exec" => options.exec = true,
            "noexec" => options.exec = false,
            "noatime" => options.atime = false,
            "atime" | "relatime" => options.atime = true,
            "default_permissions" | "defaults" | "auto" | "noauto" | "user" | "_netdev" | "nofail" => {}
            _ if option.starts_with("x-") => {}
            "remount" => {
                return Err(Refusal::NotYet(
                    "-o remount: not yet; unmount and mount anew, or change only kernel flags: mount -i -o remount,...".into(),
                ));
            }
            _ if option == "relaxed" || option.starts_with("relaxed=") => {
                return Err(Refusal::NotYet("-o relaxed: not yet; mounts are coherent without it".into()));
            }
            _ => match option.split_once('=') {
                Some(("fsname", name)) if !name.is_empty() => options.fsname = name.into(),
                Some(("subtype", name)) if !name.is_empty() => options.subtype = name.into(),
                _ => return usage(format!("unknown mount option '{option}'")),
            },
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, Refusal> {
        parse(line.split(' ').map(Into::into), |_| None)
    }

    fn is_usage(line: &str) -> bool {
        matches!(parsed(line), Err(Refusal::Usage(error)) if error.exit_code() == 2)
    }

    #[test]
    fn both_forms() {
        let short = parsed("dfs-mount --nodes a:1,unix:/b -o ro,nosuid -o allow_other /mnt").unwrap();
        let nodes: Vec<Address> = vec!["a:1".parse().unwrap(), "unix:/b".parse().unwrap()];
        assert_eq!(short.cluster, Cluster::Nodes(nodes.clone()));
        assert!(short.options.read_only && short.options.allow_other && !short.options.suid && !short.foreground);
        assert_eq!((short.options.fsname.as_str(), short.point), ("dfs", PathBuf::from("/mnt")));
        let long = parsed("dfs-mount a:1,unix:/b /mnt -o rw,noatime,_netdev,x-systemd.automount,fsname=f,subtype=s").unwrap();
        assert_eq!(long.cluster, Cluster::Nodes(nodes));
        assert_eq!((long.options.fsname.as_str(), long.options.subtype.as_str(), long.options.atime), ("f", "s", false));
        let default = parsed("dfs-mount dfs /mnt").unwrap();
        assert_eq!(default.cluster, Cluster::Nodes(vec![DEFAULT_ADDRESS.parse().unwrap()]));
        assert_eq!((default.op_timeout, default.cache), (Duration::from_secs(10), 256 << 20));
    }

    #[test]
    fn the_environment_stands_in() {
        let environment = |name: &str| (name == "DFS_NODES").then(|| "h:9".to_string());
        let args = parse(["dfs-mount".into(), "/mnt".into()], environment).unwrap();
        assert_eq!(args.cluster, Cluster::Nodes(vec!["h:9".parse().unwrap()]));
        let args = parse(["dfs-mount".into(), "--embedded".into(), "/mnt".into()], environment).unwrap();
        assert!(matches!(args.cluster, Cluster::Embedded { nodes: 3, .. }));
        let secret = |name: &str| (name == "DFS_SECRET_FILE").then(|| "f".to_string());
        assert!(matches!(parse(["dfs-mount".into(), "/mnt".into()], secret), Err(Refusal::NotYet(_))));
    }

    #[test]
    fn embedded() {
        let args = parsed("dfs-mount --embedded=5 --memory 1GiB -f /mnt").unwrap();
        assert_eq!(args.cluster, Cluster::Embedded { nodes: 5, memory: 1 << 30 });
        assert!(args.foreground);
        for line in ["--embedded=0 /mnt", "--embedded --nodes a:1 /mnt", "--memory 1G /mnt", "--embedded a:1 /mnt"] {
            assert!(is_usage(&format!("dfs-mount {line}")), "{line}");
        }
    }

    #[test]
    fn wrong_usage_and_not_yet() {
        for line in [
            "dfs-mount",
            "dfs-mount a:1 /mnt c",
            "dfs-mount --op-timeout 9s /mnt",
            "dfs-mount -o nonsense /mnt",
            "dfs-mount --nodes nonsense /mnt",
            "dfs-mount --nodes a:1 b:2 /mnt",
            "dfs-mount --cache many /mnt",
            "dfs-mount --frobnicate /mnt",
        ] {
            assert!(is_usage(line), "{line}");
        }
        for line in ["dfs-mount -o relaxed=5 /mnt", "dfs-mount dfs /mnt -o rw,remount", "dfs-mount --secret-file f /mnt"] {
            assert!(matches!(parsed(line), Err(Refusal::NotYet(_))), "{line}");
        }
    }
}
