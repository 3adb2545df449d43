//! A whole cluster inside the mount process: N nodes, each one thread with its own event loop, on free loopback ports.
//!
//! The same nodes that `dfs-node` runs; they talk over real sockets. The first forms the cluster, the others join it. All end with the mount.
#![allow(clippy::disallowed_methods)] // A driver: waits by the clock.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use dfs::limits;
use dfs::types::Address;
use dfs_node::args::Options;
use dfs_node::event_loop::{self, Stop};
use dfs_node::node::Start;

use crate::signals::Signal;

/// Time in which all nodes have to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// A node says where it serves, or why it ended.
type News = Result<Address, String>;

/// The nodes.
#[derive(Debug)]
pub struct Embedded {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<Address>,
}

impl Embedded {
    /// Starts `count` nodes that use `memory` together, and waits until all are ready. A signal gives up.
    pub fn start(count: usize, memory: u64, signals: &Receiver<Signal>) -> Result<Self, String> {
        assert!((1..=limits::EMBEDDED_NODES_MAX).contains(&count), "the command line bounds the number of nodes");
        let share = memory / count as u64;
        let (sender, news) = bounded(2 * count);
        let mut embedded = Embedded { stop: Stop::default(), threads: Vec::new(), addresses: Vec::new() };
        let started = embedded.start_all(count, share, &sender, &news, signals);
        match started {
            Ok(()) => Ok(embedded),
            Err(line) => {
                embedded.stop();
                Err(format!("the embedded cluster did not start: {line}"))
            }
        }
    }

    /// Where the nodes serve; the founder first.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Stops all nodes at once and waits for them.
    pub fn stop(self) {
        self.stop.now();
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    fn start_all(
        &mut self,
        count: usize,
        share: u64,
        sender: &Sender<News>,
        news: &Receiver<News>,
        signals: &Receiver<Signal>,
    ) -> Result<(), String> {
        let until = Instant::now() + READY_TIMEOUT;
        self.spawn(0, Start::Bootstrap { replicas: limits::REPLICAS_DEFAULT }, share, sender)?;
        self.await_ready(1, until, news, signals)?;
        let founder = self.addresses.clone();
        for number in 1..count {
            self.spawn(number, Start::Join(founder.clone()), share, sender)?;
        }
        self.await_ready(count, until, news, signals)
    }

    fn spawn(&mut self, number: usize, start: Start, memory: u64, sender: &Sender<News>) -> Result<(), String> {
        let (stop, sender) = (self.stop.clone(), sender.clone());
        let serve = move || {
            let options = Options::loopback(start, memory);
            let ready = |address: &Address, _, _| drop(sender.try_send(Ok(address.clone())));
            if let Err(line) = event_loop::serve(&options, &stop, ready) {
                tracing::error!(number, "an embedded node ended: {line}");
                let _ = sender.try_send(Err(line));
            }
        };
        let thread = std::thread::Builder::new().name(format!("node-{number}")).spawn(serve);
        self.threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
        Ok(())
    }

    fn await_ready(&mut self, count: usize, until: Instant, news: &Receiver<News>, signals: &Receiver<Signal>) -> Result<(), String> {
        while self.addresses.len() < count {
            select! {
                recv(news) -> address => self.addresses.push(address.unwrap_or_else(|_| Err("all nodes ended".into()))?),
                recv(signals) -> _ => return Err("interrupted".into()),
                default(until.saturating_duration_since(Instant::now())) => {
                    return Err(format!("{} of {count} nodes became ready within {READY_TIMEOUT:?}", self.addresses.len()));
                }
            }
        }
        Ok(())
    }
}
