//! A slow wire in front of one node: everything that is sent to it goes through here, and may be told to take longer, or to wait.
//!
//! The kernel's own emulation of slow networks (netem) is not in every kernel. Connections that the node itself makes do not pass here.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::namespaces::Host;

const POLL: Duration = Duration::from_millis(5);
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on the wire, per direction of a connection: what a long wire holds.
const PIECES_MAX: usize = 32;

#[derive(Default)]
struct Wire {
    delay_us: AtomicU64,
    is_stalled: AtomicBool,
    is_over: AtomicBool,
    /// Both ends of each connection, to be closed at the end.
    ends: Mutex<Vec<TcpStream>>,
}

/// The wire; all connections through it end when dropped.
pub struct Proxy {
    wire: Arc<Wire>,
}

impl Proxy {
    /// Listens on that machine, and passes on to another port of it.
    pub fn start(host: &Host, listen: u16, target: u16) -> Self {
        let wire = Arc::new(Wire::default());
        let listener = host.inside(|| TcpListener::bind((host.address.as_str(), listen))).expect("the port is free");
        listener.set_nonblocking(true).expect("a plain socket");
        let (shared, host) = (wire.clone(), host.clone());
        std::thread::spawn(move || {
            host.enter();
            accept(&listener, &shared, (&host.address, target));
        });
        Proxy { wire }
    }

    /// From now on each piece takes that long.
    pub fn delay(&self, delay: Duration) {
        self.wire.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Nothing arrives while it is stalled, and nothing is lost.
    pub fn stall(&self, is_stalled: bool) {
        self.wire.is_stalled.store(is_stalled, Ordering::Relaxed);
    }

    /// A short wire again.
    pub fn heal(&self) {
        self.delay(Duration::ZERO);
        self.stall(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wire.is_over.store(true, Ordering::Relaxed);
        self.heal();
        for end in self.wire.ends.lock().expect("no panic holds it").iter() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, wire: &Arc<Wire>, target: (&str, u16)) {
    while !wire.is_over.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(POLL);
            continue;
        };
        // Who dials a dead node finds the connection closed at once.
        let Ok(far) = TcpStream::connect(target) else { continue };
        let _ = near.set_nonblocking(false);
        let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
        let mut ends = wire.ends.lock().expect("no panic holds it");
        ends.retain(|end| end.peer_addr().is_ok());
        ends.extend([clone(&near), clone(&far)]);
        drop(ends);
        for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
            let _ = from.set_nodelay(true);
            carry(from, to, wire.clone());
        }
    }
}

/// Carries one direction: one thread takes what comes, the other hands it over when its time has come.
fn carry(mut from: TcpStream, mut to: TcpStream, wire: Arc<Wire>) {
    let (sender, pieces) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let delay = wire.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + Duration::from_micros(delay.delay_us.load(Ordering::Relaxed));
            if sender.send((due, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Read);
    });
    std::thread::spawn(move || {
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            while wire.is_stalled.load(Ordering::Relaxed) {
                std::thread::sleep(POLL);
            }
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
