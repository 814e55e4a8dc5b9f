//! What can go wrong, one enum per operation. The variant says whose fault it is.

use std::time::Duration;

use crate::names::{LaneId, PeerName};

/// [`Node::start`](crate::Node::start).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: std::net::SocketAddr, error: std::io::Error },
    #[error("io_uring was asked for, but this kernel does not allow it: {0}")]
    NoUring(String),
    #[error("peer {0} is configured twice")]
    PeerTwice(PeerName),
    #[error("peers {0} and {1} have the same public key")]
    SameKey(PeerName, PeerName),
    #[error("{0}")]
    Config(&'static str),
    #[error("cannot start the transport's threads: {0}")]
    Threads(std::io::Error),
}

/// Why a link to a peer did not come about. Nothing was sent but greetings and handshakes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    #[error("no peer named {0} is configured")]
    UnknownPeer(PeerName),
    #[error("the configuration here does not allow sending to {0}")]
    NotAllowedHere(PeerName),
    /// The peer proved its key and said no.
    #[error("{peer} does not accept a link from us: {text}")]
    NotAllowedThere { peer: PeerName, text: String },
    #[error("{peer} cannot be reached: {}", list(.tried))]
    Unreachable { peer: PeerName, tried: Vec<(String, String)> },
    /// Whoever answers there does not hold the key that is configured for the peer, or something between changes bytes.
    #[error("{peer} at {address} does not hold the key configured for it: {text}")]
    WrongKey { peer: PeerName, address: String, text: String },
    #[error("{peer} at {address} speaks protocol {} and this node {}", .theirs, .ours)]
    Version { peer: PeerName, address: String, theirs: Versions, ours: Versions },
    /// (A refusal is not authenticated: whoever is on the path may have said so.)
    #[error("{peer} at {address} offers none of the cipher suites that this node does: {ours}")]
    Suite { peer: PeerName, address: String, ours: String },
    /// The peer answered in a way this protocol does not know.
    #[error("{peer} at {address} did not answer as a hikyaku daemon does: {text}")]
    Protocol { peer: PeerName, address: String, text: String },
    #[error("{peer} at {address} did not finish {what} within {} s", .after.as_secs_f32())]
    Timeout { peer: PeerName, address: String, what: &'static str, after: Duration },
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error("this node has stopped")]
    Stopped,
}

/// A span of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub oldest: u16,
    pub newest: u16,
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

fn list(tried: &[(String, String)]) -> String {
    if tried.is_empty() {
        return "it has no address".to_owned();
    }
    tried.iter().map(|(address, why)| format!("{address}: {why}")).collect::<Vec<_>>().join("; ")
}

/// [`Link::open`](crate::Link::open).
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer's acceptor said no. The code is the daemons' business, except those of [`crate::code`].
    #[error("the peer refused: {text} (code {code})")]
    Refused { code: u16, text: String },
    #[error("the hello has {bytes} bytes, the limit is {limit}")]
    HelloTooLong { bytes: usize, limit: usize },
    #[error("{0} sessions are open on this link, which is the limit")]
    TooManySessions(usize),
    #[error("the peer did not answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("{0}")]
    Lost(#[from] Lost),
}

/// [`Incoming::accept`](crate::Incoming::accept).
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the reply has {bytes} bytes, the limit is {limit}")]
    ReplyTooLong { bytes: usize, limit: usize },
    #[error("the opener stopped waiting")]
    Gone,
    #[error("{0}")]
    Lost(#[from] Lost),
}

/// A session's control message that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the message has {bytes} bytes, the limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    /// The peer does not read fast enough; try again when there was time.
    #[error("too many messages wait to be sent")]
    Full,
    #[error("the session is closed")]
    Closed,
}

/// A chunk that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the chunk has {bytes} bytes, this link's limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("chunk {0} was sent before, or comes after a later one")]
    Order(u64),
    #[error("the session is closed")]
    Closed,
}

/// Why a link, and every session on it, ended without being closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Bytes were changed on the way, or forged.
    #[error(
        "the link with {peer} was given up: {lane} failed authentication at its frame {frame}: bytes were changed on the way"
    )]
    Authentication { peer: PeerName, lane: LaneId, frame: u64 },
    #[error("the link with {peer} was given up: {what}")]
    Protocol { peer: PeerName, what: String },
    #[error("the link with {peer} is lost: {connection}: {what}")]
    Connection { peer: PeerName, connection: String, what: String },
    #[error("the link with {peer} is lost: nothing came for {} s", .silent_for.as_secs_f32())]
    Silent { peer: PeerName, silent_for: Duration },
    /// It was lost, and did not come back within `Timeouts::link`.
    #[error("{why}; it did not come back within {} s", .waited.as_secs_f32())]
    Outage { why: Box<Lost>, waited: Duration },
    /// The peer was reached again, and does not know the link: its daemon was restarted, or had given the link up.
    #[error(
        "{peer} is back and holds nothing of this link: its daemon was restarted, or had given the link up"
    )]
    Forgotten { peer: PeerName },
    /// The other side gave the link up and said why.
    #[error("{peer} gave the link up: {text}")]
    ByPeer { peer: PeerName, text: String },
    #[error("{peer} opened a new link in place of this one")]
    Replaced { peer: PeerName },
    #[error("this node has stopped")]
    Stopped,
}

impl Lost {
    /// Connections died, and nobody is to blame: the link may come back.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Lost::Connection { .. } | Lost::Silent { .. })
    }
}
