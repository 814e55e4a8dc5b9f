//! What an end of a transfer is told, on its standard input, and what it says, a line each.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.

use std::net::SocketAddr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::series::Series;

/// Everything an end needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub role: Role,
    /// Where the receiver listens.
    pub address: SocketAddr,
    pub secret_key: String,
    /// The other end's public key.
    pub peer: String,
    pub manner: Manner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Send,
    Receive,
}

/// How both ends go about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manner {
    pub amount: Amount,
    /// Sessions that are open at once on the one link.
    pub sessions: u8,
    /// From the last session's opening to the first chunk.
    pub preparation: Duration,
    /// After this, wait until the link is warm.
    pub warm: bool,
    /// Of the first session: bytes per second on the wire.
    pub limit_bytes_per_s: Option<u64>,
    /// Leave the sockets' buffers to the kernel's autotuning.
    pub autotune: bool,
    /// `None`: the transport's choice.
    pub congestion: Option<String>,
    /// `None`: the transport's default; so below.
    pub lanes: Option<u16>,
    pub lane_threads: Option<usize>,
    /// Number of the cipher suite that alone is offered.
    pub suite: Option<u8>,
    /// Every chunk in memory of its own, as a daemon's are, instead of a piece of shared noise.
    pub own_memory: bool,
    /// Both ends add up a hash of every chunk.
    pub checked: bool,
}

impl Default for Manner {
    /// One session with the transport's defaults.
    fn default() -> Self {
        Self {
            amount: Amount::Time(Duration::from_secs(8)),
            sessions: 1,
            preparation: Duration::ZERO,
            warm: false,
            limit_bytes_per_s: None,
            autotune: false,
            congestion: None,
            lanes: None,
            lane_threads: None,
            suite: None,
            own_memory: false,
            checked: false,
        }
    }
}

/// How much each session sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// As much as goes in this time; what is under way then is not waited for.
    Time(Duration),
    /// All of it, acknowledged.
    Bytes(u64),
}

/// A line that an end says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// The receiver listens.
    Ready,
    /// The receiver accepted the first session: before a byte of it could have come.
    Started {
        at_ns: u64,
    },
    Received(Received),
    Sent(Sent),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Received {
    pub sessions: Vec<Arrivals>,
    pub usage: Usage,
}

/// What one session applied, since the first was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    pub series: Series,
    pub chunks: u64,
    /// Sum of the hashes of its chunks; 0 unless asked for.
    pub hash: u64,
}

impl Received {
    /// Of all sessions together.
    pub fn series(&self) -> Series {
        let mut all = Series::default();
        self.sessions.iter().for_each(|session| all.merge(&session.series));
        all
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Sent {
    pub lanes: u16,
    pub io: String,
    /// When the first chunk was queued.
    pub first_chunk_ns: u64,
    /// Padding that was sent before it and later.
    pub padding_bytes: u64,
    /// Payload that the receiver acknowledged, all sessions together.
    pub delivered_bytes: u64,
    pub hashes: Vec<u64>,
    pub usage: Usage,
}

/// What an end has taken of the machine since it was ready for the link.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    pub rss_before_bytes: u64,
    pub rss_peak_bytes: u64,
    /// CPU time of the threads that drive lanes, and of the kernel's that work for them.
    pub lane_cpu: Duration,
    /// Of all threads.
    pub cpu: Duration,
}

pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
        .unwrap_or_default()
}
