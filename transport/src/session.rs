//! The two ends of a session, as their users hold them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::code;
use crate::ebb::Ebb;
use crate::error::{MessageError, SendError};
use crate::link::LinkCore;
use crate::names::SessionId;
use crate::rx_session::RxAccount;
use crate::schedule::Priority;
use crate::throttle::socket_bytes;

/// How a session shares the link from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// See [`TxSession::set_limit`].
    pub limit_bytes_per_s: Option<u64>,
    /// See [`TxSession::set_priority`].
    pub priority: Priority,
}

/// Bytes of a chunk, shared and immutable. Cheap to clone.
#[derive(Clone)]
pub struct Payload(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Payload {
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bytes))
    }

    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl From<Arc<[u8]>> for Payload {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

/// What a session carries: immutable from the moment it is sent.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Session-wide, from 1, rising; numbers may not be left out, or they are never acknowledged cumulatively.
    pub seq: u64,
    /// Carried, not interpreted: everything up to this is to be applied first.
    pub after: u64,
    pub payload: Payload,
}

/// What a chunk costs of its session's credit: its payload, and something for the receiver's bookkeeping, so that
/// empty chunks are not free.
pub(crate) fn charge(payload_bytes: usize) -> u64 {
    payload_bytes as u64 + CHUNK_OVERHEAD_BYTES
}

pub(crate) const CHUNK_OVERHEAD_BYTES: u64 = 64;

/// How a link, and one session on it, does.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkStats {
    /// Smoothed round trip of the control connection, with the queues of the path as they are.
    pub rtt: Option<Duration>,
    /// The last one.
    pub rtt_latest: Option<Duration>,
    /// The smallest seen lately: the path with empty queues.
    pub min_rtt: Option<Duration>,
    /// Acknowledged payload, smoothed over 1 s or one round trip, and never more than the limits let through. At a
    /// sender: of this session; as long as it never had enough to send to tell, what the last warm-up found.
    pub goodput_bytes_per_s: Option<u64>,
    /// What the last warm-up found that the path carries, bytes per second. `None`: nothing, or a limit holds.
    pub path_bytes_per_s: Option<u64>,
    /// Payload acknowledged (sender) or received (receiver) in this session.
    pub delivered_bytes: u64,
    /// Lanes that are up.
    pub lanes: u16,
    /// Bytes that the lanes gave to their sockets, headers and tags included. 0 at a receiver.
    pub lane_bytes_sent: u64,
    /// How much of them was padding.
    pub padding_bytes: u64,
    /// What this session sends as on the wire at most, bytes per second: the least of its own limit, the link's and the
    /// host's.
    pub limit_bytes_per_s: Option<u64>,
    pub priority: Priority,
}

/// A session's sending end. Clones are the same session; when the last one is dropped it is closed ([`code::DROPPED`]).
#[derive(Clone)]
pub struct TxSession(Arc<TxHandle>);

struct TxHandle {
    link: Arc<LinkCore>,
    wire: u32,
    id: SessionId,
}

impl TxSession {
    pub(crate) fn new(link: Arc<LinkCore>, wire: u32, id: SessionId) -> Self {
        Self(Arc::new(TxHandle { link, wire, id }))
    }

    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// Queues a chunk and returns at once. How much is queued is the caller's to watch ([`TxSession::unsent_bytes`],
    /// `TxEvents::room`).
    pub fn send(&self, chunk: Chunk) -> Result<(), SendError> {
        let limit = self.chunk_bytes_max();
        if chunk.payload.len() > limit {
            return Err(SendError::TooLong { bytes: chunk.payload.len(), limit });
        }
        self.0.link.queue.push(self.0.wire, chunk)
    }

    /// The longest payload this link takes.
    pub fn chunk_bytes_max(&self) -> usize {
        self.0.link.agreed.chunk_bytes_max as usize
    }

    /// Sends a message to the session's other end: reliable and in order among messages, in no order with chunks.
    pub fn message(&self, message: Vec<u8>) -> Result<(), MessageError> {
        if self.0.link.queue.figures(self.0.wire).is_none() {
            return Err(MessageError::Closed);
        }
        self.0.link.user_message(self.0.wire, message)
    }

    /// Payload queued that no lane has taken.
    pub fn unsent_bytes(&self) -> u64 {
        self.figures().unsent_bytes
    }

    /// Payload that lanes took and the peer has not acknowledged.
    pub fn in_flight_bytes(&self) -> u64 {
        self.figures().in_flight_bytes
    }

    /// What may still be taken before the peer gives credit; every chunk costs its payload and 64 bytes.
    pub fn credit_left(&self) -> u64 {
        self.figures().credit_left
    }

    pub fn stats(&self) -> LinkStats {
        let figures = self.figures();
        let link = self.0.link.stats();
        let most = figures.limit_bytes_per_s.map_or(u64::MAX, socket_bytes);
        let path = link.path_bytes_per_s.filter(|_| figures.goodput_is_least).map(|path| path.min(most));
        LinkStats {
            path_bytes_per_s: link.path_bytes_per_s.filter(|_| figures.limit_bytes_per_s.is_none()),
            goodput_bytes_per_s: figures.goodput_bytes_per_s.map(|goodput| goodput.max(path.unwrap_or(0))),
            delivered_bytes: figures.delivered_bytes,
            limit_bytes_per_s: figures.limit_bytes_per_s,
            priority: figures.priority,
            ..link
        }
    }

    /// How it shares the link with other sessions, from the next chunk on. Chunks that lanes hold go on.
    pub fn set_priority(&self, priority: Priority) {
        self.0.link.queue.set_priority(self.0.wire, priority);
    }

    /// At most so many bytes per second on the wire, from now on; `None`: no limit of its own. What counts is in
    /// `docs/transport.md`; less than 100 kbit/s counts as that.
    pub fn set_limit(&self, bytes_per_s: Option<u64>) {
        self.0.link.queue.set_limit(self.0.wire, bytes_per_s, Instant::now());
    }

    /// For whoever is about to stand still until what it sends has arrived: leaves the queue on the path to run empty, by
    /// sending less than the path carries, and holds the whole link to that until the answer is dropped. Returns within three
    /// round trips and twice the queue, without one at once; where lanes look for the shortest round trip, some 200 ms later.
    pub async fn ebb(&self) -> Ebb {
        crate::ebb::ebb(&self.0.link).await
    }

    /// Ends the session and tells the other end. What is unsent is dropped. Nothing is called on the events afterwards
    /// (a call that is under way may still end).
    pub fn close(&self, code: u16, text: &str) {
        self.0.close(code, text);
    }

    /// The same; and what was said and has not been heard is not said any more when the link is back. The other end then learns that this
    /// one does not hold the session ([`code::NOT_HELD`]).
    pub fn abandon(&self, code: u16, text: &str) {
        if !self.0.link.unsay(self.0.wire) {
            return self.close(code, text);
        }
        self.0.link.queue.remove_session(self.0.wire);
    }

    fn figures(&self) -> crate::queue::Figures {
        self.0.link.queue.figures(self.0.wire).unwrap_or_default()
    }
}

impl TxHandle {
    fn close(&self, code: u16, text: &str) {
        if self.link.queue.remove_session(self.wire).is_some() {
            self.link.send_close(self.wire, code, text);
        }
    }
}

impl Drop for TxHandle {
    fn drop(&mut self) {
        self.close(code::DROPPED, "the sender dropped the session");
    }
}

/// A session's receiving end. Clones are the same session; when the last one is dropped it is closed
/// ([`code::DROPPED`]).
#[derive(Clone)]
pub struct RxSession(Arc<RxHandle>);

struct RxHandle {
    link: Arc<LinkCore>,
    account: Arc<RxAccount>,
}

impl RxSession {
    pub(crate) fn new(link: Arc<LinkCore>, account: Arc<RxAccount>) -> Self {
        Self(Arc::new(RxHandle { link, account }))
    }

    pub fn id(&self) -> SessionId {
        self.0.account.id
    }

    /// Chunk `seq`, whose payload had `payload_bytes`, is done with and its memory free: it is acknowledged, and the
    /// sender gets the credit back, within `Timeouts::ack`. Once per chunk that `RxEvents::chunk` gave.
    pub fn applied(&self, seq: u64, payload_bytes: u64) {
        if self.0.account.applied(seq, payload_bytes) {
            self.0.link.ack_soon();
        }
    }

    pub fn message(&self, message: Vec<u8>) -> Result<(), MessageError> {
        if self.0.account.is_closed() {
            return Err(MessageError::Closed);
        }
        self.0.link.user_message(self.0.account.wire, message)
    }

    pub fn stats(&self) -> LinkStats {
        LinkStats { delivered_bytes: self.0.account.received_bytes(), ..self.0.link.stats() }
    }

    /// Ends the session and tells the sender. Nothing is called on the events afterwards (a call that is under way may
    /// still end).
    pub fn close(&self, code: u16, text: &str) {
        self.0.close(code, text);
    }
}

impl RxHandle {
    fn close(&self, code: u16, text: &str) {
        if self.account.close() {
            // What was applied before is acknowledged before the end is told.
            self.link.last_ack(&self.account);
            self.link.forget_rx(self.account.wire);
            self.link.send_close(self.account.wire, code, text);
        }
    }
}

impl Drop for RxHandle {
    fn drop(&mut self) {
        self.close(code::DROPPED, "the receiver dropped the session");
    }
}

/// For whom no events are.
pub(crate) struct Deaf;

impl crate::TxEvents for Deaf {
    fn acked(&self, _: u64, _: &[(u64, u64)]) {}
    fn room(&self) {}
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, _: crate::Lost) {}
    fn closed(&self, _: u16, _: String) {}
}
