//! Sealed chunks between two daemons: one control connection and many lanes over a long fat pipe.
//!
//! This crate knows sessions, keys, lanes and sockets. It does not know what a chunk means: order, versions and
//! completeness are its users' business, and so are files, configuration texts and what a session is for.
//!
//! ```text
//!  sender                                                     receiver
//!  Node::link ── Noise IK ─────────── control ──────────────  Node (listening)
//!  Link::open ── hello ─────────────────────────────────────▶ Acceptor::open → Incoming::accept
//!  TxSession::send → TxQueue → lanes ═══ sealed frames ═════▶ lanes → RxEvents::chunk
//!  TxEvents::acked ◀── cumulative, ranges, credit ─────────── RxSession::applied
//!  TxSession::message ◀────────────── control ──────────────▶ RxSession::message
//! ```
//!
//! What always holds:
//! * A chunk reaches `RxEvents::chunk` as it was sent, at most once, from a peer that proved its key; or not at all.
//! * Chunks come in any order; messages in the order they were sent; the two in no order.
//! * A receiver's memory for a session is bounded by the credit it gave; a sender's queue by its user.
//! * Peers that have not authenticated hold at most 256 connections, with some KiB each, and keep nobody else out.
//! * Every wait is bounded by [`Timeouts`]; a link that ends tells every session why, once.
//!
//! How it works and what can be tuned: `docs/transport.md`. Bytes: `docs/wire-format.md`.
#![deny(unsafe_code)]

mod account;
mod bond;
mod bucket;
mod calm;
pub mod config;
mod control;
mod crypto;
mod dial;
mod early;
mod ebb;
mod error;
mod events;
mod fit;
mod gate;
pub mod handshake;
pub mod hello;
mod hold;
mod incoming;
mod keep;
mod key;
mod lane;
mod lane_stats;
mod lanes;
mod lead;
mod limit;
mod link;
mod listen;
mod meter;
#[cfg(test)]
mod model;
mod names;
mod node;
mod noise;
mod outbox;
mod outgrown;
mod queue;
mod ranges;
mod replay;
mod resume;
mod rx_session;
mod schedule;
pub mod seal;
mod session;
mod socket;
pub mod suite;
mod sys;
mod tend;
mod throttle;
mod under_way;
mod voice;
mod warm;
pub mod wire;

pub use config::{Congestion, Io, Limits, NodeConfig, Peer, Sockets, Suites, Timeouts};
pub use ebb::Ebb;
pub use error::{AcceptError, LinkError, Lost, MessageError, OpenError, SendError, StartError, Versions};
pub use events::{Acceptor, RxEvents, TxEvents};
pub use incoming::Incoming;
pub use key::{KeyError, PublicKey, StaticKey};
pub use lane_stats::LaneStats;
pub use limit::{Limit, Reading, what_limits};
pub use link::Opening;
pub use names::{Epoch, LaneId, PeerName, SessionId};
pub use node::{Link, Node};
pub use schedule::Priority;
pub use session::{Chunk, LinkStats, Payload, RxSession, Share, TxSession};
pub use suite::Suite;
pub use sys::{keep_freed_buffers, release_freed_buffers};
pub use warm::Probe;

/// Codes that the transport itself puts into refusals and closes. The daemons use those below 0xff00.
pub mod code {
    /// Every handle of the session was dropped without closing it.
    pub const DROPPED: u16 = 0xff00;
    /// The acceptor dropped the question without answering.
    pub const NOT_ANSWERED: u16 = 0xff01;
    /// The opener stopped waiting.
    pub const GAVE_UP: u16 = 0xff02;
    /// More sessions than the receiver's limit.
    pub const TOO_MANY: u16 = 0xff03;
    /// After an outage the other side did not hold the session any more.
    pub const NOT_HELD: u16 = 0xff04;
}
