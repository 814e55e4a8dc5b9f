//! The way between the daemons: a window that the transport keeps full, one bottleneck with a queue before it, several lanes
//! that overtake one another, now and then a chunk twice.
//!
//! ```text
//!  send ─▶ unsent ─▶ bottleneck: rate, standing queue ─▶ half a round trip ─▶ arrives
//!             ▲                                                                  │
//!             └── window, until it is open ◀── half a round trip ◀── acknowledged ┘
//! ```
//!
//! TCP's stream of bytes fills an open window to the last byte; chunks, which are the units here, could not where they are large beside it.
//! So a chunk leaves when no more than the standing queue is left before it, and the window counts only while it opens.
//!
//! Losses are a factor of the rate; what they do to single lanes is not modelled.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hikyaku_engine::{Chunk, ChunkSeq, LinkStats};

use super::rng::Rng;

/// A link, one direction.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// TCP payload that gets through per second.
    pub bytes_per_s: f64,
    pub rtt: Duration,
    /// What the transport keeps standing in the bottleneck's queue, as time at the rate. Default none.
    pub standing_queue: Duration,
    /// Whether the transport knows the path and fills it at once. Otherwise its window begins small and doubles in every round trip.
    pub warm: bool,
    /// A lane may lag behind the others by so much. Default none.
    pub lag: Duration,
    /// Chunks that arrive twice, in 1/1000.
    pub repeat_permille: u32,
    /// What the peer holds for this session at most. Default 128 MiB, as the daemon.
    pub credit_bytes: u64,
    /// A cold window: eight lanes of ten packets.
    pub first_window_bytes: f64,
}

impl LinkConfig {
    pub fn new(bit_per_s: f64, rtt: Duration) -> Self {
        LinkConfig {
            bytes_per_s: bit_per_s / 8.0,
            rtt,
            standing_queue: Duration::ZERO,
            warm: true,
            lag: Duration::ZERO,
            repeat_permille: 0,
            credit_bytes: 128 << 20,
            first_window_bytes: 8.0 * 10.0 * 1448.0,
        }
    }

    /// Lanes that overtake one another and chunks that come twice.
    pub fn unruly(self) -> Self {
        LinkConfig { lag: self.rtt / 2 + Duration::from_millis(5), repeat_permille: 20, ..self }
    }

    fn full_window_bytes(&self) -> f64 {
        let path = self.rtt + self.standing_queue + self.lag;
        (self.bytes_per_s * path.as_secs_f64()).max(self.first_window_bytes)
    }
}

/// See the module.
pub struct Link {
    config: LinkConfig,
    unsent: VecDeque<Chunk>,
    unsent_bytes: u64,
    under_way: BTreeMap<ChunkSeq, u64>,
    in_flight_bytes: u64,
    window_bytes: f64,
    /// When the bottleneck has sent what was given to it.
    free_at: u64,
    ebbing: bool,
    /// While it ebbs, when the next chunk may leave.
    paced_until: u64,
    credit_used: u64,
    acked: VecDeque<(u64, u64)>,
    acked_bytes: u64,
    measured_bytes_per_s: u64,
    /// TCP payload that was sent, frames' headers included.
    pub sent_bytes: u64,
}

/// A frame's header and tag.
const FRAME_BYTES: u64 = 48;
/// The engine counts a chunk that is being encoded by its pages; their records come on top.
const RECORDS_BYTES: u64 = 64 << 10;
/// Goodput is measured over this.
const METER_NS: u64 = 500_000_000;
const LEAST_METER_NS: u64 = 20_000_000;

impl Link {
    pub fn new(config: LinkConfig) -> Self {
        Link {
            window_bytes: if config.warm { config.full_window_bytes() } else { config.first_window_bytes },
            config,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            under_way: BTreeMap::new(),
            in_flight_bytes: 0,
            free_at: 0,
            ebbing: false,
            paced_until: 0,
            credit_used: 0,
            acked: VecDeque::new(),
            acked_bytes: 0,
            measured_bytes_per_s: 0,
            sent_bytes: 0,
        }
    }

    /// Takes a chunk; false if the peer has no room for it, which is a defect of the engine.
    #[must_use]
    pub fn send(&mut self, chunk: Chunk) -> bool {
        self.credit_used += chunk.payload.len() as u64;
        self.unsent_bytes += chunk.payload.len() as u64;
        self.unsent.push_back(chunk);
        self.credit_used <= self.config.credit_bytes + RECORDS_BYTES
    }

    /// Copies of chunks that leave now, and when they arrive. When the next one may leave, if one waits for the bottleneck.
    pub fn leave(&mut self, now: u64, rng: &mut Rng, arrivals: &mut Vec<(u64, Chunk)>) -> Option<u64> {
        while let Some(chunk) = self.unsent.front() {
            let opens_at = self.opens_at();
            if opens_at > now {
                return Some(opens_at);
            }
            let bytes = chunk.payload.len() as u64;
            let opening = self.window_bytes < self.config.full_window_bytes();
            if opening
                && self.in_flight_bytes > 0
                && (self.in_flight_bytes + bytes) as f64 > self.window_bytes
            {
                return None;
            }
            let chunk = self.unsent.pop_front()?;
            self.unsent_bytes -= bytes;
            self.in_flight_bytes += bytes;
            self.sent_bytes += bytes + FRAME_BYTES;
            self.under_way.insert(chunk.seq, bytes);
            let serialised_ns = ((bytes + FRAME_BYTES) as f64 * 1e9 / self.config.bytes_per_s) as u64;
            self.free_at = self.free_at.max(now) + serialised_ns;
            self.paced_until = now + (serialised_ns as f64 / EBB_SHARE) as u64;
            loop {
                let lag = self.config.lag.mul_f64(rng.fraction() as f64 / 2f64.powi(32));
                arrivals.push((self.free_at + ns(self.config.rtt / 2 + lag), chunk.clone()));
                if rng.below(1000) >= self.config.repeat_permille {
                    break;
                }
            }
        }
        None
    }

    fn opens_at(&self) -> u64 {
        if self.ebbing {
            self.paced_until
        } else {
            self.free_at.saturating_sub(ns(self.config.standing_queue))
        }
    }

    pub fn acked(&mut self, now: u64, seq: ChunkSeq) {
        let Some(bytes) = self.under_way.remove(&seq) else { return };
        self.in_flight_bytes -= bytes;
        self.credit_used -= bytes;
        self.window_bytes = (self.window_bytes + bytes as f64).min(self.config.full_window_bytes());
        self.acked.push_back((now, bytes));
        self.acked_bytes += bytes;
    }

    /// From now on less is sent than arrives, until the queue is gone; then as before.
    pub fn ebb(&mut self, on: bool) {
        self.ebbing = on;
    }

    /// What stands in the bottleneck's queue now, as time.
    pub fn queue_ns(&self, now: u64) -> u64 {
        self.free_at.saturating_sub(now)
    }

    /// What the transport would say.
    pub fn stats(&mut self, now: u64) -> LinkStats {
        while let Some((when, bytes)) = self.acked.front().copied().filter(|(when, _)| when + METER_NS < now)
        {
            debug_assert!(when < now);
            self.acked.pop_front();
            self.acked_bytes -= bytes;
        }
        LinkStats {
            rtt_ns: ns(self.config.rtt + self.config.lag / 2) + self.queue_ns(now),
            min_rtt_ns: ns(self.config.rtt),
            goodput_bytes_per_s: self.goodput(now),
            path_bytes_per_s: 0,
            unsent_bytes: self.unsent_bytes,
            in_flight_bytes: self.in_flight_bytes,
            credit_bytes: self.config.credit_bytes.saturating_sub(self.credit_used),
        }
    }

    /// A warm path is known. One that is not shows itself while it is kept busy; an idle one is not slow.
    fn goodput(&mut self, now: u64) -> u64 {
        if self.config.warm {
            return self.config.bytes_per_s as u64;
        }
        let span = self.acked.front().map_or(METER_NS, |(when, _)| (now - when).max(LEAST_METER_NS));
        let measured = (self.acked_bytes as f64 * 1e9 / span as f64).min(self.config.bytes_per_s) as u64;
        if !self.unsent.is_empty() || measured > self.measured_bytes_per_s {
            self.measured_bytes_per_s = measured;
        }
        self.measured_bytes_per_s
    }
}

/// While the queue is let go, of the rate.
const EBB_SHARE: f64 = 0.5;

pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
