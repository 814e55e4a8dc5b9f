//! The limits of one link: what may leave now, in which pieces, and when the rest.
//!
//! ```text
//!  session's bucket      link's and host's buckets, and the smoother of limited sessions
//!  whole frames ───────▶ slices of about 2 ms ──▶ socket, paced by the kernel at an eighth more
//! ```
//! A frame is a quarter of a MiB and cannot be interrupted by another on its lane: at 10 Mbit/s it takes a fifth of a
//! second. So limits work on two scales. A *session* is charged for a whole frame before its lane takes it, and takes
//! the next when that is paid. The bytes leave in *slices*, each at a time of its own: by the link's and the host's
//! limits, and those of limited sessions by the sum of the limits of those that have something to send, and a tenth.
//! So a frame is never poured out at once; and while one of them waits for its next slice no other lane takes a frame
//! under the same limit, so that low limits do not hold all lanes. Under a low limit one lane carries everything, as long
//! as its socket takes it: lanes in turn would each have the window of one that has little to do, and burst.
//!
//! What counts is the wire: what lanes give to their sockets (headers and tags included, frames that are sent again,
//! too) and the headers of TCP, IP and Ethernet around it ([`wire_bytes`]). What TCP itself sends again, and control
//! connections, are not counted.
//!
//! Invariant: a lane in `waiting` holds a frame whose next slice is not due yet, and will ask again when it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::queue::Carrier;
use crate::schedule::Priority;

/// A slice is what may leave within this: smooth enough for a window of 10 ms, few enough system calls.
const SLICE: Duration = Duration::from_millis(2);
/// And at least two full packets.
const SLICE_BYTES_MIN: u64 = 2 * 1448;
/// What a thread that was late may make up for at once. With a slice and the smoother's tenth more it is less than
/// the 10 ms at the rate that make twice the rate in a window of 10 ms.
const DEPTH: Duration = Duration::from_millis(4);
/// The same for a session, whose bytes are smoothed afterwards: it may wait for lanes and for others.
const SESSION_DEPTH: Duration = Duration::from_millis(50);
/// Urgent frames are taken so much before they may leave: they are the next to leave in any case.
const URGENT_AHEAD: Duration = Duration::from_millis(10);

/// Bytes on an Ethernet wire, preamble and checksum included, of bytes in full packets of TCP over IPv4, with time
/// stamps and an MTU of 1500.
pub fn wire_bytes(socket_bytes: u64) -> u64 {
    socket_bytes + (socket_bytes * 78).div_ceil(1448)
}

/// The reverse, for rates: what a socket gets of so much of the wire.
pub fn socket_bytes(wire_bytes: u64) -> u64 {
    (u128::from(wire_bytes) * 1448 / (1448 + 78)) as u64
}

/// A session's own bucket, for whole frames.
pub fn session_bucket() -> Bucket {
    Bucket::new(SESSION_DEPTH)
}

/// One limit for all links of a node.
pub struct HostLimit(Mutex<Bucket>);

impl Default for HostLimit {
    fn default() -> Self {
        Self(Mutex::new(Bucket::new(DEPTH)))
    }
}

impl HostLimit {
    pub fn set_rate(&self, wire_bytes_per_s: Option<u64>, now: Instant) {
        self.with(|bucket| bucket.set_rate(wire_bytes_per_s, now));
    }

    fn with<R>(&self, work: impl FnOnce(&mut Bucket) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub struct Throttle {
    pub link: Bucket,
    pub host: Arc<HostLimit>,
    /// What the kernel is to pace each lane at, whatever the limits, bytes per second.
    pub pace: Option<u64>,
    /// The transport's own, for a moment; nobody's limit (`ebb.rs`). Urgent frames are for a guest that stands still already,
    /// and leave whatever others leave room for.
    ebb: Bucket,
    /// Who wants it, and how low; the lowest holds.
    ebbs: BTreeMap<Holder, u64>,
    smoother: Bucket,
    waiting: BTreeMap<Carrier, Waiting>,
}

/// One who wants an ebb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder(u64);

impl Holder {
    /// Unlike any other.
    pub fn new() -> Self {
        static HOLDERS: AtomicU64 = AtomicU64::new(0);
        Self(HOLDERS.fetch_add(1, Ordering::Relaxed))
    }
}

/// A lane that holds a frame whose next slice is not due.
struct Waiting {
    /// For the link or the host, not for the smoother.
    shared: bool,
}

/// What may leave next of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub bytes: usize,
    pub due: Instant,
    /// What the kernel is to pace the lane at, bytes per second. It can only smooth what the lane's socket held back:
    /// slices come more slowly.
    pub pace: Option<u64>,
    /// Under a limit: what the lane's socket may hold that was never sent. When its window opens it leaves beside the slices
    /// that other lanes got meanwhile.
    pub unsent_most: Option<u32>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            link: Bucket::new(DEPTH),
            host: Arc::default(),
            pace: None,
            ebb: Bucket::new(DEPTH),
            ebbs: BTreeMap::new(),
            smoother: Bucket::new(DEPTH),
            waiting: BTreeMap::new(),
        }
    }
}

impl Throttle {
    /// The least of the link's and the host's limits.
    pub fn shared_rate(&self) -> Option<u64> {
        least(self.link.rate(), self.host.with(|bucket| bucket.rate()))
    }

    /// `None`: the holder wants none any more; what others want goes on.
    pub fn set_ebb(&mut self, holder: Holder, wire_bytes_per_s: Option<u64>, now: Instant) {
        match wire_bytes_per_s {
            Some(rate) => self.ebbs.insert(holder, rate),
            None => self.ebbs.remove(&holder),
        };
        self.ebb.set_rate(self.ebbs.values().min().copied(), now);
    }

    /// When a lane may take a frame, its session's own bucket apart.
    pub fn free_at(&self, limited: bool, priority: Priority, now: Instant) -> Instant {
        let mut at = self.link.free_at(now).max(self.host.with(|bucket| bucket.free_at(now)));
        if limited {
            at = at.max(self.smoother.free_at(now));
        }
        if priority == Priority::Urgent {
            return at.checked_sub(URGENT_AHEAD).unwrap_or(at).max(now);
        }
        at = at.max(self.ebb.free_at(now));
        if self.waiting.values().any(|waiting| limited || waiting.shared) {
            // Whoever waits goes on first, unless its socket holds it up.
            at = at.max(now + SLICE);
        }
        at
    }

    /// The next slice of a frame that has `left` bytes. `limits`: the sum of the limits of those sessions that have
    /// something to send, if this one has a limit.
    pub fn slice(
        &mut self,
        carrier: Carrier,
        priority: Priority,
        limits: Option<u64>,
        left: usize,
        now: Instant,
    ) -> Slice {
        let ebbs = priority != Priority::Urgent;
        let ebb_rate = self.ebb.rate().filter(|_| ebbs);
        let smooth = limits.map(|sum| sum.saturating_add(sum / 10));
        let Some(rate) = least(smooth, least(self.shared_rate(), ebb_rate)) else {
            self.waiting.remove(&carrier);
            return Slice { bytes: left, due: now, pace: self.pace, unsent_most: None };
        };
        let slice_bytes = (rate as f64 * SLICE.as_secs_f64()) as u64;
        let slice_bytes = slice_bytes.max(SLICE_BYTES_MIN);
        let bytes = left.min(usize::try_from(slice_bytes).unwrap_or(usize::MAX));
        let wire = wire_bytes(bytes as u64);
        let shared = self.link.take(wire, now).max(self.host.with(|bucket| bucket.take(wire, now)));
        let shared = if ebbs { shared.max(self.ebb.take(wire, now)) } else { shared };
        let mut due = shared;
        if smooth.is_some() {
            self.smoother.set_rate(smooth, now);
            due = due.max(self.smoother.take(wire, now));
        }
        if due > now {
            self.waiting.insert(carrier, Waiting { shared: shared > now });
        } else {
            self.waiting.remove(&carrier);
        }
        let pace = least(Some(rate.saturating_add(rate / 8)), self.pace);
        Slice { bytes, due, pace, unsent_most: Some(u32::try_from(2 * slice_bytes).unwrap_or(u32::MAX)) }
    }

    /// A lane's slice is due, or the lane is gone.
    pub fn waits_no_more(&mut self, carrier: Carrier) {
        self.waiting.remove(&carrier);
    }
}

/// `None` is no limit.
pub fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
