//! A thread that drives one machine over the network: the only place on the client's side that names clocks, channels and threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use mio::Waker;

use crate::limits;
use crate::link::{LinkAction, LinkEvent};
use crate::net::{Net, clock};
use crate::status::Status;
use crate::time::Time;

/// Time for what is queued to be written before the thread ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// A pure core with whatever its owner wraps around it.
pub trait Machine {
    /// What other threads send it.
    type Input: Send + 'static;
    /// Takes an input.
    fn on_input(&mut self, now: Time, input: Self::Input);
    /// Takes an event of the network.
    fn on_link(&mut self, now: Time, event: LinkEvent);
    /// Does what is due.
    fn on_deadline(&mut self, now: Time);
    /// When something is due.
    fn next_deadline(&self) -> Time;
    /// What the network is to do; results for other threads are handed over by the machine itself.
    fn poll_action(&mut self) -> Option<LinkAction>;
    /// Whether the thread may end.
    fn is_done(&self) -> bool;
}

/// The way in to a running machine. Clones share it; when the last is gone the machine ends.
pub struct Handle<I> {
    sender: Sender<I>,
    doorbell: Arc<Doorbell>,
}

struct Doorbell {
    waker: Arc<Waker>,
    /// Set while the thread may be asleep without having seen the channel.
    asleep: AtomicBool,
}

impl<I> Clone for Handle<I> {
    fn clone(&self) -> Self {
        Handle { sender: self.sender.clone(), doorbell: self.doorbell.clone() }
    }
}

impl<I> Handle<I> {
    /// Hands an input over. `Busy` when too many wait, `ShuttingDown` when the machine has ended.
    pub fn send(&self, input: I) -> Result<(), Status> {
        self.sender.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => Status::Busy,
            TrySendError::Disconnected(_) => Status::ShuttingDown,
        })?;
        self.doorbell.ring();
        Ok(())
    }

    /// Hands an input over, waiting while too many wait already.
    pub fn send_waiting(&self, input: I) -> Result<(), Status> {
        self.sender.send(input).map_err(|_| Status::ShuttingDown)?;
        self.doorbell.ring();
        Ok(())
    }
}

impl<I> Drop for Handle<I> {
    fn drop(&mut self) {
        // The thread learns that nobody can speak to it only by looking.
        self.doorbell.ring();
    }
}

impl Doorbell {
    /// A system call only if the thread sleeps.
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake the network thread");
        }
    }
}

/// Runs the machine in a thread of that name until it is done or nobody holds its handle.
pub fn spawn<M: Machine + Send + 'static>(name: &str, machine: M) -> io::Result<(Handle<M::Input>, JoinHandle<()>)> {
    let net = Net::new()?;
    let doorbell = Arc::new(Doorbell { waker: net.waker(), asleep: AtomicBool::new(false) });
    let (sender, receiver) = bounded(limits::CLIENT_CALLS_MAX);
    let bell = doorbell.clone();
    let thread = std::thread::Builder::new().name(name.to_string()).spawn(move || {
        if let Err(error) = run(machine, net, receiver, &bell) {
            tracing::error!(%error, "the network thread failed");
        }
    })?;
    Ok((Handle { sender, doorbell }, thread))
}

fn run<M: Machine>(mut machine: M, mut net: Net, receiver: Receiver<M::Input>, bell: &Doorbell) -> io::Result<()> {
    let mut events = Vec::new();
    loop {
        let mut now = clock::now();
        let open = feed(&mut machine, &receiver, now);
        if machine.next_deadline() <= now {
            machine.on_deadline(now);
        }
        drain(&mut machine, &mut net);
        if machine.is_done() || !open {
            return net.finish(FINISH_TIMEOUT);
        }
        // Whoever sends from here on rings; whoever sent before is seen by this look.
        bell.asleep.store(true, Ordering::SeqCst);
        let wait = match machine.next_deadline() {
            _ if !receiver.is_empty() => Some(Duration::ZERO),
            Time::NEVER => None,
            at => Some(at.since(now)),
        };
        net.poll(wait, &mut events)?;
        bell.asleep.store(false, Ordering::SeqCst);
        now = clock::now();
        for event in events.drain(..) {
            machine.on_link(now, event);
        }
        drain(&mut machine, &mut net);
    }
}

/// Takes what waits in the channel, a bounded number per turn. False when nobody can send any more.
fn feed<M: Machine>(machine: &mut M, receiver: &Receiver<M::Input>, now: Time) -> bool {
    for _ in 0..limits::COMMAND_VISITS_MAX {
        match receiver.try_recv() {
            Ok(input) => machine.on_input(now, input),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
    true
}

fn drain<M: Machine>(machine: &mut M, net: &mut Net) {
    while let Some(action) = machine.poll_action() {
        net.act(action);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Drives real sockets.
mod tests {
    use super::*;
    use crate::client::{Client, Options};
    use crate::cluster_map::ClusterMap;
    use crate::link::{Frame, Hello, Lane, Role};
    use crate::types::{Address, ClusterId, Epoch, NodeId, Term};
    use crate::wire::message::{Body, Request, Response};
    use crate::wire::namespace::{Answer, Space};

    /// Answers what a node would on the control lane, until told to stop.
    fn serve(mut net: Net, stop: Arc<AtomicBool>) {
        let map = ClusterMap { cluster: ClusterId(3), epoch: Epoch(1), replicas: 1, voters: vec![NodeId(8)], ..ClusterMap::default() };
        let mut events = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            net.poll(Some(Duration::from_millis(20)), &mut events).unwrap();
            for event in events.drain(..) {
                let LinkEvent::Received { link, frame } = event else { continue };
                let Body::Request(request) = frame.body else { continue };
                let response = match request {
                    Request::Map { .. } => Response::Map(Some(map.clone())),
                    Request::Renew { .. } => {
                        Response::Renewed { term: Term(1), epoch: Epoch(1), time: crate::types::Timestamp::default(), era: 1 }
                    }
                    Request::Query(_) => {
                        let answer = Answer::Space(Space { capacity: 42, ..Space::default() });
                        Response::Answered { answer, grants: vec![], term: Term(1), epoch: Epoch(1) }
                    }
                    _ => Response::Done,
                };
                let body = Body::Response(Ok(response));
                net.act(LinkAction::Send { link, frame: Frame { request: frame.request, body, payload: bytes::Bytes::new() } });
            }
        }
    }

    #[test]
    fn a_client_talks_over_real_sockets_and_ends_in_order() {
        let mut net = Net::new().unwrap();
        let address = net.listen(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }).unwrap();
        net.set_identity(Hello { cluster: ClusterId(3), role: Role::Node, sender: 8, lane: Lane::Control, expect: None });
        let stop = Arc::new(AtomicBool::new(false));
        let node = std::thread::spawn({
            let stop = stop.clone();
            move || serve(net, stop)
        });
        let client = Client::connect(&[address], Options::default()).unwrap();
        let begun = clock::now();
        for _ in 0..100 {
            assert_eq!(client.space().unwrap().capacity, 42);
        }
        assert!(clock::now().since(begun) < Duration::from_secs(2), "the loop sleeps over its calls");
        client.sync().unwrap();
        drop(client);
        stop.store(true, Ordering::SeqCst);
        node.join().unwrap();
    }
}
