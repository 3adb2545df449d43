//! One connection: its handshake, its frames, its deadlines. Decides about itself only; [`crate::net::Net`] owns and feeds it.

use std::collections::VecDeque;
use std::io;

use crate::limits;
use crate::link::{Frame, Hello, Lane, LinkEvent, LinkId, Role};
use crate::net::Counters;
use crate::net::receive::{RawFrame, Receiver};
use crate::net::send::Sender;
use crate::net::stream::{Stream, Target};
use crate::status::Status;
use crate::time::Time;
use crate::types::NodeId;
use crate::wire::codec;
use crate::wire::frame::{HELLO_BODY_BYTES_MAX, Names, Rules};
use crate::wire::handshake;

/// Where a connection is in its life.
#[derive(Debug)]
pub enum Phase {
    /// Dialled; `others` are addresses still to be tried.
    Connecting { hello: Hello, others: VecDeque<Target> },
    /// Our Hello is under way, the answer is awaited.
    Greeting { hello: Hello },
    /// Accepted; the dialler speaks first.
    Waiting,
    /// Both sides know each other. What our frames name, and what the peer's must.
    Up { outgoing: Names, incoming: Names },
    /// Nobody listens any more; what is queued is still delivered.
    Closing { finished_writing: bool },
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Down {
        reason: Status,
        found: Option<NodeId>,
    },
    /// A dialler is turned away; our Hello is queued and tells it why.
    Refused(Status),
}

impl From<Status> for Fault {
    fn from(reason: Status) -> Self {
        Fault::Down { reason, found: None }
    }
}

/// What a connection needs of its surroundings to handle what arrives.
pub struct Surroundings<'a> {
    pub now: Time,
    pub scratch: &'a mut [u8],
    pub identity: Option<&'a Hello>,
    pub counters: &'a mut Counters,
    pub events: &'a mut Vec<LinkEvent>,
}

/// A connection and all that is known of it.
#[derive(Debug)]
pub struct Connection {
    pub link: LinkId,
    /// The other end, for the log.
    pub peer: String,
    pub stream: Stream,
    pub phase: Phase,
    /// Control until the handshake says otherwise.
    pub lane: Lane,
    /// Whether the peer said that it is a client.
    client: bool,
    pub receiver: Receiver,
    pub sender: Sender,
    /// The kernel may have bytes for us: it said so, and a read has not come back empty since.
    pub readable: bool,
    /// The kernel may take bytes from us.
    pub writable: bool,
    /// The peer has finished; a short read does not mean that there is nothing more to learn.
    pub read_closed: bool,
    /// Not read until enough of what is queued has been written.
    pub paused: bool,
    /// Waits for the rate meter.
    pub throttled: bool,
    /// Whether it is listed as ready to be read; at most once.
    pub listed_ready: bool,
    /// Whether it is listed as having something to write; at most once.
    pub listed_dirty: bool,
    /// When the phase began.
    pub since: Time,
    pub read_progress: Time,
    pub write_progress: Time,
}

impl Connection {
    /// A connection at its beginning.
    pub fn new(link: LinkId, peer: String, stream: Stream, phase: Phase, now: Time) -> Self {
        let lane = match &phase {
            Phase::Connecting { hello, .. } => hello.lane,
            _ => Lane::Control,
        };
        Connection {
            link,
            peer,
            stream,
            phase,
            lane,
            client: false,
            receiver: Receiver::default(),
            sender: Sender::default(),
            readable: false,
            writable: false,
            read_closed: false,
            paused: false,
            throttled: false,
            listed_ready: false,
            listed_dirty: false,
            since: now,
            read_progress: now,
            write_progress: now,
        }
    }

    /// Whether whoever asked for the link, or was told of it, must be told of its end.
    pub fn is_announced(&self) -> bool {
        !matches!(self.phase, Phase::Waiting | Phase::Closing { .. })
    }

    /// Bytes queued beyond which the peer is not read.
    pub fn queue_bytes_max(&self) -> usize {
        if self.asks_small() { limits::CLIENT_ANSWERS_BYTES_MAX } else { limits::SEND_QUEUE_BYTES_MAX }
    }

    /// Bytes read before others get their turn.
    pub fn turn_bytes_max(&self) -> usize {
        if self.asks_small() { limits::CLIENT_TURN_BYTES_MAX } else { limits::CONNECTION_TURN_BYTES_MAX }
    }

    fn asks_small(&self) -> bool {
        self.client && self.lane == Lane::Control
    }

    /// Whether both sides know each other.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// The dialled peer took the connection: greets it.
    pub fn on_connected(&mut self, now: Time) -> Result<(), Fault> {
        let Phase::Connecting { hello, .. } = &self.phase else { return Ok(()) };
        let hello = *hello;
        self.sender.push_hello(&hello, hello.expect.map_or(0, |node| node.0))?;
        self.phase = Phase::Greeting { hello };
        self.since = now;
        Ok(())
    }

    /// Queues a frame of the core.
    pub fn send(&mut self, frame: Frame, counters: &mut Counters, now: Time) -> Result<(), Status> {
        // A core hears of the link when it is up, and has no business with it before.
        let Phase::Up { outgoing, .. } = &self.phase else { return Err(Status::Internal) };
        if self.sender.queued_bytes() == 0 {
            self.write_progress = now;
        }
        let length = self.sender.push(*outgoing, self.lane, frame)?;
        let lane = counters.lane_mut(self.lane);
        lane.frames_out += 1;
        lane.bytes_out += length as u64;
        if self.sender.queued_bytes() > 2 * limits::SEND_QUEUE_BYTES_MAX {
            return Err(Status::Busy);
        }
        Ok(())
    }

    /// Begins to close: what is queued is delivered, nothing is heard any more.
    pub fn close(&mut self, now: Time) {
        self.phase = Phase::Closing { finished_writing: false };
        self.since = now;
    }

    /// Writes until nothing is queued, the kernel takes no more, or `limit` bytes are written. Answers how many were.
    pub fn write_turn(&mut self, limit: usize, now: Time) -> Result<usize, Fault> {
        let mut total = 0;
        while self.writable && total < limit && self.sender.queued_bytes() > 0 {
            match self.sender.write(&self.stream, limit - total) {
                Ok(0) => return Err(Status::Disconnected.into()),
                Ok(count) => {
                    total += count;
                    self.write_progress = now;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => return Err(Status::Disconnected.into()),
            }
        }
        if self.sender.queued_bytes() == 0
            && let Phase::Closing { finished_writing } = &mut self.phase
            && !*finished_writing
        {
            *finished_writing = true;
            self.stream.finish_writing();
        }
        Ok(total)
    }

    /// Reads until the kernel has no more or `limit` bytes have come; handles the frames. Answers how many bytes came.
    pub fn read_turn(&mut self, limit: usize, around: &mut Surroundings<'_>) -> Result<usize, Fault> {
        let mut total = 0;
        while self.readable && total < limit {
            let asked = limit - total;
            let count = match self.receiver.read(&self.stream, around.scratch, asked) {
                Ok(count) if count.bytes == 0 => return Err(Status::Disconnected.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(_) => return Err(Status::Disconnected.into()),
            };
            total += count.bytes;
            self.read_progress = around.now;
            // What comes after a short read is reported anew; only an end that was reported before is not.
            self.readable = count.filled || self.read_closed;
            if matches!(self.phase, Phase::Closing { .. }) {
                continue;
            }
            // The scratch buffer is lent out while its frames are handled, which need the rest of the surroundings.
            let scratch = std::mem::take(&mut around.scratch);
            let handled = self.handle(&scratch[..count.in_scratch], around);
            around.scratch = scratch;
            handled?;
        }
        Ok(total)
    }

    fn handle(&mut self, mut input: &[u8], around: &mut Surroundings<'_>) -> Result<(), Fault> {
        loop {
            let rules = match &self.phase {
                Phase::Up { incoming, .. } => Rules::Messages { lane: self.lane, names: *incoming },
                _ => Rules::Hello,
            };
            match self.receiver.next(&mut input, &rules) {
                Ok(Some(frame)) => self.on_frame(frame, around)?,
                Ok(None) => return Ok(()),
                Err(Status::WrongVersion) => return Err(self.on_wrong_version(around)),
                Err(status) => return Err(status.into()),
            }
        }
    }

    fn on_frame(&mut self, frame: RawFrame<'_>, around: &mut Surroundings<'_>) -> Result<(), Fault> {
        let length = crate::wire::frame::HEADER_BYTES + frame.body.len() + frame.payload.len();
        match &self.phase {
            Phase::Waiting => self.on_dialler(&frame, around),
            Phase::Greeting { hello } => {
                let hello = *hello;
                self.on_accepter(&hello, &frame, around)
            }
            Phase::Up { .. } => {
                let body = codec::decode_body(&frame.body, self.lane)?;
                let lane = around.counters.lane_mut(self.lane);
                lane.frames_in += 1;
                lane.bytes_in += length as u64;
                let frame = Frame { request: frame.header.request, body, payload: frame.payload };
                around.events.push(LinkEvent::Received { link: self.link, frame });
                Ok(())
            }
            Phase::Connecting { .. } | Phase::Closing { .. } => Err(Status::Malformed.into()),
        }
    }

    /// A dialler introduces itself.
    fn on_dialler(&mut self, frame: &RawFrame<'_>, around: &mut Surroundings<'_>) -> Result<(), Fault> {
        let Some(identity) = around.identity else { return Err(Status::NotMember.into()) };
        let dialler = decode_hello(frame, |hello| hello.expect.map_or(0, |node| node.0))?;
        let answer = handshake::answer(identity, dialler.lane);
        self.sender.push_hello(&answer, dialler.sender)?;
        if let Err(reason) = handshake::check_dialler(identity, &dialler) {
            return Err(Fault::Refused(reason));
        }
        self.come_up(answer, dialler, around);
        Ok(())
    }

    /// The accepter answers.
    fn on_accepter(&mut self, mine: &Hello, frame: &RawFrame<'_>, around: &mut Surroundings<'_>) -> Result<(), Fault> {
        let accepter = decode_hello(frame, |_| mine.sender)?;
        if let Err(mismatch) = handshake::check_accepter(mine, &accepter) {
            return Err(Fault::Down { reason: mismatch.reason, found: mismatch.found });
        }
        self.come_up(*mine, accepter, around);
        Ok(())
    }

    fn come_up(&mut self, mine: Hello, peer: Hello, around: &mut Surroundings<'_>) {
        self.phase = Phase::Up {
            outgoing: Names { cluster: mine.cluster, sender: mine.sender, receiver: peer.sender },
            incoming: Names { cluster: peer.cluster, sender: peer.sender, receiver: mine.sender },
        };
        self.lane = mine.lane;
        self.client = peer.role == Role::Client;
        self.since = around.now;
        around.events.push(LinkEvent::Up { link: self.link, peer });
    }

    /// A dialler of another version is told ours by the header of our Hello.
    fn on_wrong_version(&mut self, around: &Surroundings<'_>) -> Fault {
        match (&self.phase, around.identity) {
            (Phase::Waiting, Some(identity)) => {
                let answer = handshake::answer(identity, Lane::Control);
                match self.sender.push_hello(&answer, 0) {
                    Ok(_) => Fault::Refused(Status::WrongVersion),
                    Err(status) => status.into(),
                }
            }
            _ => Status::WrongVersion.into(),
        }
    }

    /// When it must have made progress; `Err` when that time has passed.
    pub fn check_deadlines(&mut self, now: Time) -> Result<Time, Status> {
        // What we ourselves keep waiting is not the peer's fault.
        if self.throttled {
            self.write_progress = now;
        }
        if self.throttled || self.paused || self.readable {
            self.read_progress = now;
        }
        let mut deadline = match &self.phase {
            Phase::Connecting { .. } | Phase::Greeting { .. } | Phase::Waiting => self.since + limits::HANDSHAKE_TIMEOUT,
            Phase::Closing { .. } => self.since + limits::CLOSE_LINGER,
            Phase::Up { .. } => Time::NEVER,
        };
        if self.is_up() && self.receiver.is_amid_frame() {
            deadline = deadline.min(self.read_progress + limits::FRAME_TIMEOUT);
        }
        if self.is_up() && self.sender.queued_bytes() > 0 {
            deadline = deadline.min(self.write_progress + limits::SEND_STALL_TIMEOUT);
        }
        if now >= deadline { Err(Status::TimedOut) } else { Ok(deadline) }
    }
}

/// Decodes a Hello and holds its frame's names against it.
fn decode_hello(frame: &RawFrame<'_>, receiver: impl FnOnce(&Hello) -> u64) -> Result<Hello, Status> {
    let hello: Hello = codec::decode(&frame.body, HELLO_BODY_BYTES_MAX)?;
    let names = Names { cluster: hello.cluster, sender: hello.sender, receiver: receiver(&hello) };
    if frame.header.names == names { Ok(hello) } else { Err(Status::Malformed) }
}
