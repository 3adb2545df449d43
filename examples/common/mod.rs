//! What the examples share: this program, started again as a storage node in a process of its own, so that it can be killed.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio, exit};

use dfs::types::Address;
use dfs_node::args::Options;
use dfs_node::event_loop::{self, Stop};
use dfs_node::node::Start;

/// The word that turns this program into a node.
const NODE: &str = "as-node";

/// A node process; killed when dropped.
pub struct NodeProcess {
    child: Child,
    pub address: Address,
}

/// Call first in `main`: a process started by [`start`] serves here and never returns.
pub fn serve_if_node() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [word, memory, rate, join] = words.as_slice() else { return };
    if word != NODE {
        return;
    }
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let start = match join.as_str() {
        "" => Start::Bootstrap { replicas: 2 },
        address => Start::Join(vec![address.parse().expect("an address")]),
    };
    let mut options = Options::loopback(start, number(memory));
    options.rate = Some(number(rate)).filter(|&rate| rate > 0);
    let served = event_loop::serve(&options, &Stop::default(), |address, _, _| {
        println!("{address}");
        std::io::stdout().flush().expect("our parent listens");
    });
    if let Err(line) = served {
        eprintln!("{line}");
    }
    exit(0);
}

/// Starts a node that forms a cluster, or joins that of `join`. `rate`: bytes per second of bulk traffic, 0 for as fast as it goes.
pub fn start(memory: u64, rate: u64, join: Option<&Address>) -> NodeProcess {
    let own = std::env::current_exe().expect("this program");
    let join = join.map_or(String::new(), ToString::to_string);
    let mut command = Command::new(own);
    command.args([NODE, &memory.to_string(), &rate.to_string(), &join]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a process");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the node's address");
    let address = line.trim().parse().expect("the node is ready");
    NodeProcess { child, address }
}

impl NodeProcess {
    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
