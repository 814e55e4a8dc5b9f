//! How much may be under way: what fills the path, and no more.
//!
//! A chunk is kept until the peer has applied it, and what of it the socket has not delivered is kept there, too: each byte under
//! way costs two. What is under way beyond bandwidth × round trip only stands in queues.
//!
//! [`UnderWay`] is told times and figures: no socket, no clock.

use std::time::{Duration, Instant};

use crate::meter::Most;

const MIB: f64 = (1 << 20) as f64;
/// Chunks that the peer is about to apply and acknowledges 10 ms later, and those that lanes have begun.
const HELD: f64 = 12.0 * MIB;
/// More than what the rate needs lets a rate be found that is higher: half as much again, up to this.
const GROWS: f64 = 0.5;
const GROWS_MOST: f64 = 14.0 * MIB;
/// Before a rate is known, and where the peer applies nothing for a while.
const LEAST: f64 = 24.0 * MIB;

/// At most `2 × (bandwidth × shortest round trip + 26 MiB)` of memory, where no queue of the path holds more.
#[derive(Debug, Default)]
pub struct UnderWay {
    rate: Option<Most>,
}

/// Round trips, smoothed and shortest.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundTrips {
    pub smoothed: Duration,
    pub min: Duration,
}

impl UnderWay {
    /// What there may be under way, in bytes of payload. `rate`: what the peer applies of all sessions, or what the path was found to carry.
    pub fn most(&mut self, at: Instant, rate: Option<u64>, rtt: RoundTrips) -> u64 {
        if let Some(rate) = rate {
            self.rate.get_or_insert(Most::new(at, 0.0)).add(at, rate as f64);
        }
        let rate = self.rate.as_ref().map_or(0.0, Most::get);
        let fills = rate * rtt.min.as_secs_f64();
        let finds_more = fills + (fills * GROWS).min(GROWS_MOST);
        // The path's queue is part of the round trip: what stands in it takes nothing from what is on the way.
        let stands = rate * rtt.smoothed.as_secs_f64();
        (finds_more.max(stands) + HELD).max(LEAST) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt(min_ms: u64, smoothed_ms: u64) -> RoundTrips {
        RoundTrips { smoothed: Duration::from_millis(smoothed_ms), min: Duration::from_millis(min_ms) }
    }

    #[test]
    fn twice_what_is_under_way_is_within_two_bandwidths_times_round_trips_and_64_mib() {
        for rate in [12_500_000, 125_000_000, 1_250_000_000_u64] {
            for ms in [0, 1, 40, 120, 200] {
                let bdp = rate * ms / 1000;
                let most = UnderWay::default().most(Instant::now(), Some(rate), rtt(ms, ms));
                assert!(most >= bdp + (12 << 20), "{rate} x {ms}: {most}");
                assert!(2 * most <= 2 * bdp + (64 << 20), "{rate} x {ms}: {most}");
            }
        }
    }

    #[test]
    fn a_rate_that_is_not_known_yet_can_grow_to_any() {
        let (mut under_way, mut at, mut rate) = (UnderWay::default(), Instant::now(), None);
        // The path carries 10 Gbit/s x 200 ms; no more than what is under way arrives in a round trip.
        for _ in 0..12 {
            let most = under_way.most(at, rate, rtt(200, 200));
            rate = Some((most - (2 << 20)) * 5);
            at += Duration::from_millis(200);
        }
        assert!(rate.unwrap() > 1_250_000_000, "{rate:?}");
    }

    #[test]
    fn a_peer_that_stands_still_for_a_moment_lowers_nothing_and_one_that_is_slow_does() {
        let (mut under_way, at) = (UnderWay::default(), Instant::now());
        let full = under_way.most(at, Some(125_000_000), rtt(200, 200));
        assert_eq!(under_way.most(at + Duration::from_secs(4), Some(10), rtt(200, 200)), full);
        let slow = [11, 17].map(|s| under_way.most(at + Duration::from_secs(s), Some(10), rtt(200, 200)));
        assert_eq!(slow[1], 24 << 20);
    }

    #[test]
    fn a_queue_in_the_path_is_filled_beside_it() {
        let most = UnderWay::default().most(Instant::now(), Some(125_000_000), rtt(40, 540));
        assert_eq!(most, 125_000_000 * 54 / 100 + (12 << 20));
    }
}
