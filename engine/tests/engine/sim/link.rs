//! The way between the daemons: one bottleneck, several lanes that overtake one another, now and then a chunk twice.

use std::collections::{BTreeMap, VecDeque};

use hikyaku_engine::{Chunk, ChunkSeq, LinkStats};

use super::MS;
use super::guest::Rng;

#[derive(Clone)]
pub struct LinkConfig {
    pub bytes_per_s: u64,
    pub rtt_ns: u64,
    /// A lane may lag behind the others by so much.
    pub lag_ns: u64,
    /// Chunks that arrive twice, in 1/1000.
    pub repeat_permille: u64,
    pub credit_bytes: u64,
}

impl LinkConfig {
    pub fn new(mbit_per_s: u64, rtt_ms: u64) -> Self {
        LinkConfig {
            bytes_per_s: mbit_per_s * 125_000,
            rtt_ns: rtt_ms * MS,
            lag_ns: 0,
            repeat_permille: 0,
            credit_bytes: 64 << 20,
        }
    }

    pub fn unruly(self) -> Self {
        LinkConfig { lag_ns: self.rtt_ns / 2 + 5 * MS, repeat_permille: 20, ..self }
    }
}

pub struct Link {
    config: LinkConfig,
    /// When the bottleneck has sent what was given to it.
    free_at: u64,
    /// Sent and not acknowledged: when the bottleneck begins with it, and its size.
    under_way: BTreeMap<ChunkSeq, (u64, u64)>,
    acked: VecDeque<(u64, u64)>,
    credit_used: u64,
}

/// Goodput is measured over this.
const METER_NS: u64 = 500 * MS;

impl Link {
    pub fn new(config: LinkConfig) -> Self {
        Link { config, free_at: 0, under_way: BTreeMap::new(), acked: VecDeque::new(), credit_used: 0 }
    }

    /// When copies of the chunk arrive.
    pub fn send(&mut self, now: u64, chunk: Chunk, rng: &mut Rng) -> Vec<(u64, Chunk)> {
        let bytes = chunk.payload.len() as u64;
        self.credit_used += bytes;
        assert!(self.credit_used <= self.config.credit_bytes, "credit overrun");
        let begins = self.free_at.max(now);
        self.free_at = begins + (bytes + 60) * 1_000_000_000 / self.config.bytes_per_s;
        self.under_way.insert(chunk.seq, (begins, bytes));
        let mut copies = Vec::new();
        loop {
            let lag = rng.below(self.config.lag_ns.max(1));
            copies.push((self.free_at + self.config.rtt_ns / 2 + lag, chunk.clone()));
            if rng.below(1000) >= self.config.repeat_permille {
                return copies;
            }
        }
    }

    pub fn acked(&mut self, now: u64, seq: ChunkSeq, bytes: u64) {
        let (_, sent) = self.under_way.remove(&seq).expect("acknowledged once");
        assert_eq!(sent, bytes);
        self.credit_used -= bytes;
        self.acked.push_back((now, bytes));
    }

    pub fn stats(&mut self, now: u64) -> LinkStats {
        while self.acked.front().is_some_and(|(when, _)| when + METER_NS < now) {
            self.acked.pop_front();
        }
        let acked: u64 = self.acked.iter().map(|(_, bytes)| bytes).sum();
        let span = self.acked.front().map_or(METER_NS, |(when, _)| (now - when).clamp(20 * MS, METER_NS));
        // An idle link is not a slow one: what it carried when it was asked to is what counts.
        let busy = self.free_at > now;
        let goodput = if busy || acked == 0 { acked * 1_000_000_000 / span } else { self.config.bytes_per_s };
        let unsent =
            self.under_way.values().filter(|(begins, _)| *begins > now).map(|(_, bytes)| bytes).sum();
        let in_flight =
            self.under_way.values().filter(|(begins, _)| *begins <= now).map(|(_, bytes)| bytes).sum();
        LinkStats {
            rtt_ns: self.config.rtt_ns + self.config.lag_ns / 2,
            min_rtt_ns: self.config.rtt_ns,
            goodput_bytes_per_s: goodput,
            unsent_bytes: unsent,
            in_flight_bytes: in_flight,
            credit_bytes: self.config.credit_bytes - self.credit_used,
        }
    }
}
