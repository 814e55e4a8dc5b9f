//! How long the guest would stand still if it were stopped now.
//!
//! `D = pause + forward delay + max(residual_encoded / goodput, residual_raw / encode speed) + state + resume`
//!
//! There is no term for windows that are not open: the lanes have carried the guest until now, and goodput is what they carry.
//! The forward delay is half the least round trip plus all of the queueing (`rtt - min_rtt`): what fills a queue at the
//! bottleneck is ours, on the way out. What is in flight is paid for by that delay; only what exceeds one
//! round trip's worth of goodput counts as residual.

use std::time::Duration;

use crate::precopy::Residual;
use crate::types::LinkStats;

/// What the caller has measured, or believes, of the stop outside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From the wish to stop until QEMU has emitted its last dirty page. Default 15 ms: `stop` and a last bitmap
    /// sync on a 1 GiB guest.
    pub pause: Duration,
    /// Device state: saved, carried, loaded. Default 20 ms: QEMU 10 with a handful of devices.
    pub state: Duration,
    /// From the loaded state until the guest runs: `cont` and a durable record. Default 10 ms.
    pub resume: Duration,
    /// Raw bytes that all workers together encode per second. Default 600 MB/s: LZ4 on one core.
    pub encode_bytes_per_s: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Terms {
            pause: Duration::from_millis(15),
            state: Duration::from_millis(20),
            resume: Duration::from_millis(10),
            encode_bytes_per_s: 600_000_000,
        }
    }
}

/// A predicted stop, term by term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prediction {
    /// All terms together. `u64::MAX` as long as the link's goodput is not known.
    pub total_ns: u64,
    /// Of it: until the last byte sent now arrives.
    pub forward_ns: u64,
    /// Of it: until the residual is on the wire.
    pub residual_ns: u64,
}

impl Prediction {
    /// Predicts the stop.
    pub fn of(terms: &Terms, link: &LinkStats, residual: &Residual) -> Prediction {
        let forward_ns = link.min_rtt_ns / 2 + link.rtt_ns.saturating_sub(link.min_rtt_ns);
        let residual_ns = if residual.encoded_bytes == 0 {
            0
        } else if link.goodput_bytes_per_s == 0 {
            return Prediction { total_ns: u64::MAX, forward_ns, residual_ns: u64::MAX };
        } else {
            let wire = time_ns(residual.encoded_bytes, link.goodput_bytes_per_s);
            let encode = time_ns(residual.raw_bytes, terms.encode_bytes_per_s);
            wire.max(encode)
        };
        let fixed = terms.pause + terms.state + terms.resume;
        let fixed_ns = u64::try_from(fixed.as_nanos()).unwrap_or(u64::MAX);
        let total_ns = fixed_ns.saturating_add(forward_ns).saturating_add(residual_ns);
        Prediction { total_ns, forward_ns, residual_ns }
    }
}

fn time_ns(bytes: u64, bytes_per_s: u64) -> u64 {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
