//! What the transport tells its user. Every method is called from a transport thread and **must not block**.

use crate::error::Lost;
use crate::incoming::Incoming;
use crate::names::PeerName;

/// Answers peers that want to open sessions to this node.
pub trait Acceptor: Send + Sync {
    /// `peer` (authenticated, allowed to send) wants to open the session `incoming.id()`. Answer with
    /// [`Incoming::accept`] or [`Incoming::refuse`], now or later, from any thread. Dropping it refuses.
    fn open(&self, peer: &PeerName, hello: Vec<u8>, incoming: Incoming);

    /// `peer` said something outside of any session ([`Node::note`](crate::Node::note)).
    fn note(&self, peer: &PeerName, note: Vec<u8>) {
        let _ = (peer, note);
    }
}

/// What happens to a session at its sender. After `lost` or `closed` nothing more is called, but for a `room` that was
/// under way.
pub trait TxEvents: Send + Sync {
    /// The peer applied every chunk up to and with `cumulative`, and those of `ranges` (both ends included).
    fn acked(&self, cumulative: u64, ranges: &[(u64, u64)]);
    /// There is less than `Limits::unsent_low_bytes` unsent, or credit grew: more may be sent. May come often.
    fn room(&self);
    fn message(&self, message: Vec<u8>);
    /// Nothing reaches the peer just now. The session lives on: what is sent waits, and goes when [`TxEvents::link_up`]
    /// says so; or `lost` comes after `Timeouts::link`.
    fn link_down(&self, why: Lost) {
        let _ = why;
    }
    /// The peer is reached again, and still holds the session.
    fn link_up(&self) {}
    /// The link ended; the session with it.
    fn lost(&self, lost: Lost);
    /// The peer closed the session.
    fn closed(&self, code: u16, text: String);
}

/// What happens to a session at its receiver. After `lost` or `closed` nothing more is called.
pub trait RxEvents: Send + Sync {
    /// A chunk, opened and authentic, in any order. Whoever takes it holds memory that `credit_bytes` of
    /// [`Incoming::accept`] stands for, until [`RxSession::applied`](crate::RxSession::applied).
    fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>);
    fn message(&self, message: Vec<u8>);
    /// The peer is not heard just now; as [`TxEvents::link_down`].
    fn link_down(&self, why: Lost) {
        let _ = why;
    }
    fn link_up(&self) {}
    fn lost(&self, lost: Lost);
    fn closed(&self, code: u16, text: String);
}
