//! The words every module uses: pages, chunk numbers, time.

use std::time::Duration;

/// QEMU's target page: what a page record carries, also for blocks backed by larger pages.
pub const PAGE_BYTES: usize = 4096;

/// The content of one page.
pub type PageBytes = [u8; PAGE_BYTES];

/// A page of the guest: its index over all RAM blocks in the order in which they were registered. The caller
/// maps blocks and offsets to ids and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// The number of a chunk within its session, from 1. It is also the version of every page the chunk
/// carries. 0 means *never*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChunkSeq(pub u32);

impl ChunkSeq {
    /// No chunk: what `after` says when nothing has to come first.
    pub const NONE: ChunkSeq = ChunkSeq(0);

    /// The chunk before this one; [`ChunkSeq::NONE`] before the first.
    pub fn previous(self) -> ChunkSeq {
        ChunkSeq(self.0.saturating_sub(1))
    }
}

/// A moment, in nanoseconds of a monotonic clock that the caller reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// Nanoseconds since `earlier`; 0 if `earlier` is later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment plus `ns` nanoseconds.
    pub fn plus_ns(self, ns: u64) -> Time {
        Time(self.0.saturating_add(ns))
    }

    /// This moment plus `duration`.
    pub fn plus(self, duration: Duration) -> Time {
        self.plus_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What the transport knows of the way to the peer.
///
/// Taken when every [`crate::Action::Send`] polled so far has been handed to the transport: the engine adds to it what it
/// sends from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// Smoothed round trip, the queue at the bottleneck included. 0 = not known yet.
    pub rtt_ns: u64,
    /// The least round trip seen. 0 = not known yet.
    pub min_rtt_ns: u64,
    /// Payload the path carries per second, smoothed: what was acknowledged while there was enough to send. Must not fall because
    /// the sender had little. 0 = not known yet.
    pub goodput_bytes_per_s: u64,
    /// What the path was found to carry, with nothing of the guest's: bytes per second. 0 = not known. It may have changed since.
    pub path_bytes_per_s: u64,
    /// Payload handed to the transport that no lane has taken yet.
    pub unsent_bytes: u64,
    /// Payload taken by a lane and not acknowledged.
    pub in_flight_bytes: u64,
    /// Payload the peer still allows beyond what was handed to the transport.
    pub credit_bytes: u64,
}

impl Default for LinkStats {
    /// Nothing is known: no estimate, and no bound from credit.
    fn default() -> Self {
        LinkStats {
            rtt_ns: 0,
            min_rtt_ns: 0,
            goodput_bytes_per_s: 0,
            path_bytes_per_s: 0,
            unsent_bytes: 0,
            in_flight_bytes: 0,
            credit_bytes: u64::MAX,
        }
    }
}
