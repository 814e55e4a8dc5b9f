//! How much may be under way: what fills the path, and no more.
//!
//! A chunk is kept until the peer has applied it, and what of it the socket has not delivered is kept there, too: each byte under
//! way costs two. What is under way beyond bandwidth × round trip only stands in queues.
//!
//! Each session has a share of its own, by what it delivers: one whose peer is slow to apply holds up nobody else.
//!
//! [`UnderWay`] is told times and figures: no socket, no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::meter::Most;

const MIB: f64 = (1 << 20) as f64;
/// Chunks that the peer is about to apply and acknowledges 10 ms later, and those that lanes have begun. These are of all sessions
/// together.
const HELD: f64 = 17.0 * MIB;
/// More than what the rate needs lets a rate be found that is higher: half as much again, up to this.
const GROWS: f64 = 0.5;
const GROWS_MOST: f64 = 14.0 * MIB;
/// Before a rate is known, and where the peer applies nothing for a while.
pub const LEAST: u64 = 24 << 20;

/// At most `2 × (bandwidth × shortest round trip + 31 MiB)` of memory, where no queue of the path holds more.
#[derive(Debug, Default)]
pub struct UnderWay {
    /// What each session at work delivered, and all together.
    sessions: HashMap<u32, Most>,
    all: Option<Most>,
}

/// What a session delivers that has something to send or under way.
#[derive(Clone, Copy, Debug)]
pub struct Goes {
    pub session: u32,
    pub bytes_per_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    /// What a warm-up found that it carries.
    pub found_bytes_per_s: Option<u64>,
    /// Smoothed, and the shortest.
    pub rtt: Duration,
    pub min_rtt: Duration,
}

impl UnderWay {
    /// What of each session there may be under way, in bytes of payload.
    pub fn most(
        &mut self,
        at: Instant,
        at_work: &mut dyn Iterator<Item = Goes>,
        path: Path,
    ) -> Vec<(u32, u64)> {
        let mut before = std::mem::take(&mut self.sessions);
        let at_work: Vec<Goes> = at_work.collect();
        for goes in &at_work {
            let mut most = before.remove(&goes.session).unwrap_or(Most::new(at, 0.0));
            most.add(at, goes.bytes_per_s.unwrap_or(0) as f64);
            self.sessions.insert(goes.session, most);
        }
        let now: Option<u64> = at_work.iter().filter_map(|goes| goes.bytes_per_s).reduce(u64::saturating_add);
        if let Some(rate) = now {
            self.all.get_or_insert(Most::new(at, 0.0)).add(at, rate as f64);
        }
        let found = path.found_bytes_per_s.map(|rate| rate as f64);
        let all = self.all.as_ref().map(Most::get).or(found).unwrap_or_default();
        let even = 1.0 / at_work.len().max(1) as f64;
        let rate_of = |goes: &Goes| match goes.bytes_per_s {
            None => all * even,
            Some(_) => self.sessions.get(&goes.session).map_or(0.0, Most::get),
        };
        // Each at its best, they may add up to more than there ever was.
        let sum: f64 = at_work.iter().map(rate_of).sum();
        let scale = if sum > all { all / sum } else { 1.0 };
        let bound = |goes: &Goes| {
            let rate = rate_of(goes);
            // Half of what is divided is divided evenly, half of it by what each delivers.
            let share = if sum > 0.0 { (even + rate / sum) / 2.0 } else { even };
            (goes.session, bytes(rate * scale, share, path))
        };
        at_work.iter().map(bound).collect()
    }
}

fn bytes(rate: f64, share: f64, path: Path) -> u64 {
    let fills = rate * path.min_rtt.as_secs_f64();
    let finds_more = fills + (fills * GROWS).min(GROWS_MOST * share);
    // The path's queue is part of the round trip: what stands in it takes nothing from what is on the way.
    let stands = rate * path.rtt.as_secs_f64();
    (finds_more.max(stands) + HELD * share).max(LEAST as f64 * share) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(min_rtt_ms: u64, rtt_ms: u64) -> Path {
        let ms = Duration::from_millis;
        Path { found_bytes_per_s: None, rtt: ms(rtt_ms), min_rtt: ms(min_rtt_ms) }
    }

    /// Of sessions that deliver so much, in their order. 0: that is not known yet.
    fn bounds(under_way: &mut UnderWay, at: Instant, rates: &[u64], path: Path) -> Vec<u64> {
        let known = |rate: u64| (rate > 0).then_some(rate);
        let mut goes =
            rates.iter().zip(1..).map(|(rate, session)| Goes { session, bytes_per_s: known(*rate) });
        let mut bounds = under_way.most(at, &mut goes, path);
        bounds.sort_unstable();
        bounds.into_iter().map(|(_, most)| most).collect()
    }

    #[test]
    fn twice_what_is_under_way_is_within_two_bandwidths_times_round_trips_and_64_mib() {
        for rate in [12_500_000, 125_000_000, 1_250_000_000_u64] {
            for (ms, sessions) in [0, 1, 40, 120, 200].into_iter().flat_map(|ms| [1, 2, 10].map(|n| (ms, n)))
            {
                let bdp = rate * ms / 1000;
                let rates = vec![rate / sessions; sessions as usize];
                let each = bounds(&mut UnderWay::default(), Instant::now(), &rates, path(ms, ms));
                let most: u64 = each.iter().sum();
                assert!(most >= bdp + (17 << 20) - 10 * sessions, "{rate} x {ms}, {sessions}: {most}");
                assert!(2 * most <= 2 * bdp + (64 << 20), "{rate} x {ms}, {sessions}: {most}");
            }
        }
    }

    #[test]
    fn a_rate_that_is_not_known_yet_can_grow_to_any() {
        let (mut under_way, mut at, mut rate) = (UnderWay::default(), Instant::now(), 0);
        // The path carries 10 Gbit/s x 200 ms; no more than what is under way arrives in a round trip.
        for _ in 0..12 {
            let most = bounds(&mut under_way, at, &[rate], path(200, 200))[0];
            rate = (most - (2 << 20)) * 5;
            at += Duration::from_millis(200);
        }
        assert!(rate > 1_250_000_000, "{rate:?}");
    }

    #[test]
    fn a_peer_that_stands_still_for_a_moment_lowers_nothing_and_one_that_is_slow_does() {
        let (mut under_way, at) = (UnderWay::default(), Instant::now());
        let mut most =
            |s, rate| bounds(&mut under_way, at + Duration::from_secs(s), &[rate], path(200, 200))[0];
        let full = most(0, 125_000_000);
        assert_eq!(most(4, 10), full);
        assert_eq!([most(11, 10), most(17, 10)][1], LEAST);
    }

    #[test]
    fn a_queue_in_the_path_is_filled_beside_it() {
        let most = bounds(&mut UnderWay::default(), Instant::now(), &[125_000_000], path(40, 540));
        assert_eq!(most, [125_000_000 * 54 / 100 + (17 << 20)]);
    }

    #[test]
    fn one_that_is_slow_has_little_and_the_other_what_fills_the_path() {
        let rates = [5_000_000, 120_000_000];
        let each = bounds(&mut UnderWay::default(), Instant::now(), &rates, path(120, 120));
        assert!(each[0] <= LEAST / 3 && each[1] > 24 << 20, "{each:?}");
        // On a short path, too, and beside nine.
        let mut rates = vec![1_000_000; 10];
        rates[0] = 1_000_000_000;
        let each = bounds(&mut UnderWay::default(), Instant::now(), &rates, path(0, 0));
        assert!(each[0] > 12 << 20, "{each:?}");
    }

    #[test]
    fn one_that_comes_has_its_part_at_once_and_both_together_no_more_than_the_path() {
        let (mut under_way, at, path) = (UnderWay::default(), Instant::now(), path(120, 120));
        let alone = bounds(&mut under_way, at, &[125_000_000], path)[0];
        let both = bounds(&mut under_way, at, &[125_000_000, 0], path);
        assert!(both[1] >= LEAST / 2 && both[0] < alone, "{both:?} after {alone}");
        // What it had at most is remembered, and does not count beside what the other has now.
        let later = at + Duration::from_secs(2);
        let both = bounds(&mut under_way, later, &[62_500_000, 62_500_000], path);
        assert!(both.iter().sum::<u64>() <= 125_000_000 * 12 / 100 + (27 << 20), "{both:?}");
        assert_eq!(bounds(&mut under_way, later, &[125_000_000], path), [alone], "the other is forgotten");
    }
}
