//! The command line of `dfs-node`: what it accepts, what it refuses and why. Parses and checks; does nothing.

use std::path::PathBuf;

use clap::Parser;

use dfs::args::{self, LogFormat, Size};
use dfs::limits;
use dfs::types::Address;

use crate::node::Start;

/// Lend this machine's RAM to a dfs cluster.
///
/// Alone it forms a new, empty cluster on loopback; with --join it becomes a member of an existing one; with --peers it does whichever
/// is right, and may be started anew by the same command line.
#[derive(Debug, Parser)]
#[command(name = "dfs-node", version, about, max_term_width = 100)]
pub struct Args {
    /// Where to listen: host:port (port 0 picks a free one) or unix:/path
    #[arg(long, value_name = "ADDR", default_value = args::DEFAULT_ADDRESS)]
    pub listen: Address,
    /// How others reach this node, if not by the listening address
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<Address>,
    /// Form a new cluster (implied on loopback unless --join or --peers is given)
    #[arg(long, conflicts_with_all = ["join", "peers"])]
    pub bootstrap: bool,
    /// Join the cluster of any of these nodes; they may be dead, or this node itself
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',', conflicts_with = "peers")]
    pub join: Vec<Address>,
    /// The same list of nodes on every machine, this one included: they form a cluster once all are up and none belongs to one, and
    /// join it otherwise
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',')]
    pub peers: Vec<Address>,
    /// RAM to use, such as 512MiB, of which 24 MiB and a 32nd are for the node's own working; 0 only votes [default: a quarter of the RAM]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Copies of each chunk, 1 to 8, decided by the node that forms the cluster; 1 loses data with any node
    #[arg(long, value_name = "N", default_value_t = limits::REPLICAS_DEFAULT,
          value_parser = clap::value_parser!(u8).range(1..=limits::HOLDERS_MAX as i64))]
    pub replicas: u8,
    /// Fault zone of this node, such as its rack: the copies of a chunk lie in different zones where there are several
    #[arg(long, value_name = "NAME", value_parser = parse_zone)]
    pub zone: Option<String>,
    /// Serve metrics over HTTP (not yet)
    #[arg(long, value_name = "ADDR")]
    pub http: Option<Address>,
    /// Cap bulk traffic at this many bytes per second, to play a weak node
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Size>,
    /// The cluster's secret (not yet)
    #[arg(long, value_name = "FILE", env = "DFS_SECRET_FILE", conflicts_with = "insecure")]
    pub secret_file: Option<PathBuf>,
    /// Listen beyond loopback without a secret: whoever reaches the port can read and write everything
    #[arg(long)]
    pub insecure: bool,
    /// Let clients flip bits of chunks here (`dfs debug`), to see what the cluster does about it
    #[arg(long, hide = true)]
    pub debug_faults: bool,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log into this file instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// What [`crate::event_loop::serve`] needs to run one node.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: Address,
    /// `None`: the address that listening resulted in.
    pub advertise: Option<Address>,
    pub start: Start,
    /// Bytes of RAM that the node may use, its own working included; 0 only votes.
    pub memory: u64,
    pub zone: String,
    /// Bytes per second of bulk traffic.
    pub rate: Option<u64>,
    /// Whether clients may flip bits of chunks.
    pub debug_faults: bool,
    /// Gives freed memory back to the system. For a process that is nothing but one node.
    pub give_back: Option<fn()>,
}

impl Options {
    /// A node on a free loopback port, for embedding and tests.
    pub fn loopback(start: Start, memory: u64) -> Self {
        let listen = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
        Options { listen, advertise: None, start, memory, zone: String::new(), rate: None, debug_faults: false, give_back: None }
    }
}

impl Args {
    /// Checks what is wrong usage whatever the machine looks like. The error is one line: what, why, what to do.
    pub fn check_usage(&self) -> Result<(), String> {
        let own = self.advertise.as_ref().unwrap_or(&self.listen);
        if self.peers.len() > limits::NODES_MAX {
            return Err(format!("--peers lists {} nodes; a cluster has at most {}", self.peers.len(), limits::NODES_MAX));
        }
        if !self.peers.is_empty() && !self.peers.contains(own) {
            let list = self.peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Err(format!(
                "--peers {list} does not contain this node's own address {own}; \
                 write the same complete list on every machine, and this node's address as it stands there with --listen or --advertise"
            ));
        }
        Ok(())
    }

    /// Checks the combination. The error is one line: what, why, what to do.
    pub fn options(&self) -> Result<Options, String> {
        self.check_usage()?;
        self.refuse_unbuilt()?;
        let beyond = !self.listen.is_local();
        if beyond && !self.insecure {
            return Err(format!(
                "{} can be reached from other machines, and --secret-file is not yet built; \
                 listen on loopback, or add --insecure if everybody on that network may read and write everything",
                self.listen
            ));
        }
        if let (Address::Tcp { host, .. }, None) = (&self.listen, &self.advertise)
            && host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified())
        {
            return Err(format!("{} is no address that others can dial; add --advertise HOST:PORT", self.listen));
        }
        let start = if !self.join.is_empty() {
            Start::Join(self.join.clone())
        } else if !self.peers.is_empty() {
            Start::Peers { peers: self.peers.clone(), replicas: self.replicas }
        } else if self.bootstrap || !beyond {
            Start::Bootstrap { replicas: self.replicas }
        } else {
            return Err(format!(
                "{} lies beyond loopback; say --bootstrap to form a new cluster, --join ADDR,... or --peers ADDR,...",
                self.listen
            ));
        };
        let memory = self.memory.map_or_else(args::memory_default, |size| size.0);
        Ok(Options {
            listen: self.listen.clone(),
            advertise: self.advertise.clone(),
            start,
            memory,
            zone: self.zone.clone().unwrap_or_default(),
            rate: self.rate.map(|size| size.0).filter(|&rate| rate > 0),
            debug_faults: self.debug_faults,
            give_back: None,
        })
    }

    fn refuse_unbuilt(&self) -> Result<(), String> {
        let unbuilt = [
            (self.http.is_some(), "--http is not yet built; leave it away"),
            (self.secret_file.is_some(), "--secret-file is not yet built; stay on loopback or a trusted network with --insecure"),
        ];
        match unbuilt.iter().find(|(asked, _)| *asked) {
            Some((_, line)) => Err((*line).to_string()),
            None => Ok(()),
        }
    }
}

/// A zone is one printable word, so that it fits into the columns of `dfs status`.
fn parse_zone(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > limits::ZONE_BYTES_MAX || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("'{text}' is no zone; write one word of at most {} bytes, such as rack7", limits::ZONE_BYTES_MAX));
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        Args::try_parse_from(std::iter::once("dfs-node").chain(line.split_whitespace())).map_err(|error| error.to_string())?.options()
    }

    #[test]
    fn alone_on_loopback_it_forms_a_cluster() {
        let options = options("").unwrap();
        assert_eq!(options.listen.to_string(), args::DEFAULT_ADDRESS);
        assert!(matches!(options.start, Start::Bootstrap { replicas: 2 }));
    }

    #[test]
    fn joining_never_forms() {
        let options = options("--listen 127.0.0.1:0 --join 127.0.0.1:7400,unix:/tmp/x --memory 64MiB --rate 20MiB").unwrap();
        assert!(matches!(options.start, Start::Join(addresses) if addresses.len() == 2));
        assert_eq!((options.memory, options.rate), (64 << 20, Some(20 << 20)));
    }

    #[test]
    fn beyond_loopback_asks_for_two_words() {
        assert!(options("--listen 10.0.0.1:7400").unwrap_err().contains("--insecure"));
        assert!(options("--listen 10.0.0.1:7400 --insecure").unwrap_err().contains("--bootstrap"));
        assert!(options("--listen 10.0.0.1:7400 --insecure --bootstrap").is_ok());
        assert!(options("--listen 0.0.0.0:7400 --insecure --bootstrap").unwrap_err().contains("--advertise"));
    }

    #[test]
    fn a_list_of_peers_contains_the_node_itself() {
        let peers = "10.0.0.1:7400,10.0.0.2:7400";
        let line = format!("--listen 10.0.0.2:7400 --insecure --replicas 3 --peers {peers}");
        assert!(matches!(options(&line).unwrap().start, Start::Peers { peers, replicas: 3 } if peers.len() == 2));
        assert!(options(&format!("--listen 0.0.0.0:7400 --advertise 10.0.0.1:7400 --insecure --peers {peers}")).is_ok());
        for own in ["10.0.0.3:7400", "10.0.0.1:7401", "localhost:0"] {
            let error = options(&format!("--listen {own} --insecure --peers {peers}")).unwrap_err();
            assert!(error.contains(own) && error.contains(peers), "{error}");
        }
        for other in ["--bootstrap", "--join 10.0.0.1:7400"] {
            assert!(options(&format!("--listen 10.0.0.2:7400 --insecure {other} --peers {peers}")).is_err(), "{other}");
        }
    }

    #[test]
    fn copies_are_counted_from_one_to_eight() {
        for (line, copies) in [("--replicas 1", 1), ("--replicas 3", 3), ("--replicas 8", 8)] {
            assert!(matches!(options(line).unwrap().start, Start::Bootstrap { replicas } if replicas == copies), "{line}");
        }
        for number in ["0", "9", "256", "-1", "two"] {
            let error = Args::try_parse_from(["dfs-node", "--replicas", number]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{number}");
        }
        assert!(Args::try_parse_from(["dfs-node", "--replicas", "9"]).unwrap_err().to_string().contains("1..=8"));
    }

    #[test]
    fn a_zone_is_one_word() {
        assert_eq!(options("--zone rack7").unwrap().zone, "rack7");
        assert_eq!(options("").unwrap().zone, "");
        for zone in ["", "two words", "tab\there", &"x".repeat(256)] {
            let error = Args::try_parse_from(["dfs-node", "--zone", zone]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{zone}");
        }
    }

    #[test]
    fn the_unbuilt_says_not_yet() {
        for line in ["--http 127.0.0.1:80", "--secret-file x"] {
            let error = options(line).unwrap_err();
            assert!(error.contains("not yet"), "{line}: {error}");
        }
        assert!(options("--bootstrap --join 127.0.0.1:1").is_err());
    }
}
