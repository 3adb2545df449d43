//! What a core sees of the network: links that come up, carry frames and go down.
//!
//! A link is one connection after its handshake. Cores name links, never sockets; a driver (`net`) or a simulation moves the frames.
//! Frames of one link arrive in order or not at all; a link that lost one is down.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::status::Status;
use crate::types::{Address, ClusterId, NodeId};
use crate::wire::message::Body;

/// Name of a link. Outgoing ones are numbered by the core that dials, incoming ones by the driver, which sets [`LinkId::INCOMING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl LinkId {
    /// The bit that tells accepted links from dialled ones.
    pub const INCOMING: u64 = 1 << 63;

    /// Whether the other side dialled.
    pub fn is_incoming(self) -> bool {
        self.0 & Self::INCOMING != 0
    }
}

/// Two connections per pair, so that heartbeats never queue behind a MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    Control,
    Bulk,
}

/// What kind of process speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    Node,
    Client,
}

/// What each side says of itself in the handshake; the sender's identity is taken from here, never from a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// 0 while the sender belongs to no cluster yet.
    pub cluster: ClusterId,
    pub role: Role,
    /// A node's [`NodeId`] or a client's session id.
    pub sender: u64,
    pub lane: Lane,
    /// Which incarnation the dialler expects to find; `None`: whoever is there. The answer carries `None`.
    pub expect: Option<NodeId>,
}

/// One message on a link.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Pairs a response with its request; chosen by the requester, unique on its link. 0 for notices.
    pub request: u64,
    pub body: Body,
    /// Raw bytes that travel outside serde (a chunk, a range of one, a snapshot slice). Empty for most.
    pub payload: Bytes,
}

/// What happened on the network; an input of a core.
#[expect(clippy::large_enum_variant, reason = "moved once or twice; a box would be an allocation for every message")]
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// The handshake succeeded; `peer` is what the other side said.
    Up { link: LinkId, peer: Hello },
    /// A frame arrived.
    Received { link: LinkId, frame: Frame },
    /// The link is gone, or could not be made. Nothing more comes from it. `WrongNode` carries who was found instead.
    Down { link: LinkId, reason: Status, found: Option<NodeId> },
}

/// What a core wants of the network; an output.
#[expect(clippy::large_enum_variant, reason = "moved once or twice; a box would be an allocation for every message")]
#[derive(Clone, Debug)]
pub enum LinkAction {
    /// Dial. Answered by `Up` or `Down`.
    Connect { link: LinkId, address: Address, hello: Hello },
    /// Queue a frame. If the queue is beyond its bound the driver closes the link (`Down` with `Busy`).
    Send { link: LinkId, frame: Frame },
    /// Close after what is queued has been written, at most for a second. No `Down` follows.
    Close { link: LinkId },
}
