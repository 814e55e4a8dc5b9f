//! Sealed chunks between two daemons.
#![deny(unsafe_code)]

pub mod config;
mod error;
mod events;
mod key;
mod names;
mod node;
mod session;

pub use config::{Congestion, Io, Limits, NodeConfig, Peer, Sockets, Timeouts};
pub use error::{LinkError, Lost, MessageError, OpenError, SendError, StartError, Versions};
pub use events::{Acceptor, RxEvents, TxEvents};
pub use key::{KeyError, PublicKey, StaticKey};
pub use names::{Epoch, LaneId, PeerName, SessionId};
pub use node::{Incoming, Link, Node};
pub use session::{Chunk, LinkStats, Payload, RxSession, TxSession};

/// Codes that the transport itself puts into refusals and closes. The daemons use those below 0xff00.
pub mod code {
    /// Every handle of the session was dropped without closing it.
    pub const DROPPED: u16 = 0xff00;
    /// The acceptor dropped the question without answering.
    pub const NOT_ANSWERED: u16 = 0xff01;
    /// The opener stopped waiting.
    pub const GAVE_UP: u16 = 0xff02;
}
