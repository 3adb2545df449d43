//! Measures how fast a cluster gets over the death of a node, and what its clients keep meanwhile: four node processes, `kill -9` of one.
//!
//!     cargo run --release --example repair_figures -- --mib 1024 [--rate 64] [--load read|write] [--rounds 5]
//!
//! With `--rate` each node moves at most so many MiB a second, each way, so that the processors of the machine are not what is measured;
//! the time is then compared to the formula `T = detection + lost / (survivors x rate)`. With `--load` a client reads or writes without
//! a pause; its throughput is counted for five seconds before the death, while copies are being made, and for five seconds after.
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use dfs::Client;
use dfs::client::{Error, Options as ClientOptions};
use dfs::cluster_map::MemberState;
use dfs::random::Random;
use dfs::types::Address;

const NODES: u64 = 4;
const FILE_MIB: u64 = 64;
const WINDOW: Duration = Duration::from_secs(5);

/// Options of the measurement.
#[derive(Parser)]
struct Options {
    /// What is stored on the node that dies, MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// What each node may move, MiB per second.
    #[arg(long)]
    rate: Option<u64>,
    /// What a client does meanwhile.
    #[arg(long)]
    load: Option<Load>,
    /// How often all of it is done.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Load {
    Read,
    Write,
}

/// One file's bytes, different for each seed in every chunk, made as they are read; counts them.
struct Source<'a> {
    left: u64,
    random: Random,
    counted: &'a AtomicU64,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        // A word in each page is enough to make chunks differ, and costs next to nothing.
        for page in buffer[..length].chunks_mut(4096).filter(|page| page.len() >= 8) {
            page[..8].copy_from_slice(&self.random.next().to_le_bytes());
        }
        self.left -= length as u64;
        self.counted.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Forgets bytes, but counts them.
struct Sink<'a>(&'a AtomicU64);

impl Write for Sink<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What one death cost: seconds until it was noticed and until all copies were made, and the load's MiB per second before, during, after.
struct Death {
    noticed: f64,
    whole: f64,
    before: f64,
    during: f64,
    after: f64,
}

fn main() -> Result<(), Error> {
    common::serve_if_node();
    let options = Options::parse();
    let mut deaths = Vec::new();
    println!("noticed    whole  copied at    before    during     after  share");
    for round in 0..options.rounds {
        let death = measure(&options, round as u64)?;
        let pace = options.mib as f64 / (death.whole - death.noticed);
        print!("{:6.2}s  {:6.2}s  {pace:5.0}MiB/s", death.noticed, death.whole);
        if options.load.is_some() {
            print!("  {:8.0}  {:8.0}  {:8.0}  {:5.2}", death.before, death.during, death.after, share(&death));
        }
        println!();
        deaths.push(death);
    }
    let (noticed, whole) = (median(deaths.iter().map(|death| death.noticed)), median(deaths.iter().map(|death| death.whole)));
    println!("medians: noticed after {noticed:.2} s, {} MiB on two nodes again after {whole:.2} s", options.mib);
    if options.load.is_some() {
        println!(
            "the client kept {:.2} of its throughput (median; against the mean of before and after)",
            median(deaths.iter().map(share))
        );
    } else if let Some(rate) = options.rate {
        let formula = noticed + options.mib as f64 / ((NODES - 1) * rate) as f64;
        println!("the formula says {formula:.2} s: {:.2} of its speed", (formula - noticed) / (whole - noticed));
    }
    Ok(())
}

fn share(death: &Death) -> f64 {
    death.during / ((death.before + death.after) / 2.0)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// One cluster, filled, and one death.
fn measure(options: &Options, round: u64) -> Result<Death, Error> {
    // Two copies on four nodes; what one node loses the others must take.
    let (stored, memory) = (options.mib * NODES / 2, (options.mib * 2 + 1024) << 20);
    let rate = options.rate.unwrap_or(0) << 20;
    let mut nodes = vec![common::start(memory, rate, None)];
    let founder = nodes[0].address.clone();
    for _ in 1..NODES {
        nodes.push(common::start(memory, rate, Some(&founder)));
    }
    let addresses: Vec<Address> = nodes.iter().map(|node| node.address.clone()).collect();
    let client = Client::connect(&addresses, ClientOptions::default())?;
    let (stop, counted, ignored) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    for number in 0..stored / FILE_MIB {
        let random = Random::new(round << 32 | number);
        client.put(format!("/{number}").as_bytes(), &mut Source { left: FILE_MIB << 20, random, counted: &ignored })?;
    }
    client.sync()?;
    thread::scope(|scope| {
        let load = options.load.map(|load| {
            let (stop, counted, addresses) = (&stop, &counted, &addresses);
            scope.spawn(move || run_load(load, addresses, stored / FILE_MIB, round, stop, counted))
        });
        let death = watch(&client, &mut nodes[NODES as usize - 1], &counted, load.is_some());
        stop.store(true, Ordering::Relaxed);
        load.map_or(Ok(()), |thread| thread.join().expect("the load does not panic"))?;
        death
    })
}

/// Reads all files in turn, or overwrites four others, until it is stopped.
fn run_load(load: Load, nodes: &[Address], files: u64, round: u64, stop: &AtomicBool, counted: &AtomicU64) -> Result<(), Error> {
    let client = Client::connect(nodes, ClientOptions::default())?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        match load {
            Load::Read => _ = client.get(format!("/{}", number % files).as_bytes(), &mut Sink(counted))?,
            Load::Write => {
                let random = Random::new(1 << 63 | round << 32 | number);
                client.put(format!("/load{}", number % 4).as_bytes(), &mut Source { left: FILE_MIB << 20, random, counted })?;
            }
        }
    }
    Ok(())
}

/// Kills the node and watches until every chunk is on two nodes again.
fn watch(client: &Client, victim: &mut common::NodeProcess, counted: &AtomicU64, load: bool) -> Result<Death, Error> {
    let rate = |window: Duration| {
        if !load {
            return 0.0;
        }
        let (from, begun) = (counted.load(Ordering::Relaxed), Instant::now());
        thread::sleep(window);
        (counted.load(Ordering::Relaxed) - from) as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20)
    };
    // The load has begun, and the cluster is at rest.
    rate(Duration::from_secs(1));
    let before = rate(WINDOW);
    victim.kill();
    let killed = Instant::now();
    let mut noticed: Option<(f64, u64)> = None;
    let (whole, moved) = loop {
        let report = client.status()?;
        let living = report.members.iter().filter(|member| member.member.state == MemberState::Live).count() as u64;
        if living < NODES && noticed.is_none() {
            noticed = Some((killed.elapsed().as_secs_f64(), counted.load(Ordering::Relaxed)));
        }
        if let Some((_, from)) = noticed
            && report.from_leader
            && report.repair.known
            && report.repair.weak_chunks == 0
        {
            break (killed.elapsed().as_secs_f64(), counted.load(Ordering::Relaxed) - from);
        }
        thread::sleep(Duration::from_millis(50));
    };
    let noticed = noticed.map_or(0.0, |(after, _)| after);
    let during = moved as f64 / (whole - noticed) / f64::from(1 << 20);
    Ok(Death { noticed, whole, before, during, after: rate(WINDOW) })
}
