//! Filling the pipe before there is anything to send, and finding out what the pipe is.
//!
//! ```text
//!            a session is asked for                its first chunk is queued (padding has given way at once);
//!  Resting ─────────────────────────▶ Warming ───  or nothing grows any more; or a queue builds; or it was enough ──▶ Resting
//! ```
//! While it warms, lanes that have nothing else send padding, so that TCP's windows grow before the first page needs them.
//! How much: two windows of all lanes as they are at the moment, and not more than three times rate × round trip, by the
//! rate at which it arrives just then. Slow start doubles in a round trip, so what it sent is two windows and 2.9 times what
//! arrives in a round trip: neither holds growth up. That a path is full is known a round trip after it is; so it is at
//! three times bandwidth × round trip that a warm-up ends.
//!
//! [`Warmth`] is told times and figures and answers with orders: no socket, no clock.

use std::time::{Duration, Instant};

use crate::lane_stats::{Adder, LaneStats, Sums};
use crate::limit::queue_in;

/// On a path this short slow start takes less time than it takes to notice: a session's opening does not warm it.
const WORTH_IT: Duration = Duration::from_millis(3);
/// Rounds are not shorter: it has to be looked at once in each, and a busy machine looks late.
const ROUND_LEAST: Duration = Duration::from_millis(10);
/// What a rate must gain in a round to count as growth.
const GROWTH: f64 = 1.1;
/// Rounds without growth after which there is none.
const FLAT_ROUNDS: u32 = 2;
/// Enough rounds for any slow start: from 8 × 14 kB to 1 GB are 13.
const ROUNDS_MOST: u32 = 24;

/// Of the rate at which padding arrives × round trip: what slow start needs (see above), and some for a late look.
const RATES: f64 = 3.2;
/// What a lane has of padding in its socket beyond its window.
const UNSENT: u64 = 48 * 1024;

/// What a lane starts with: ten segments, and the ten that they let follow.
const FIRST_WINDOW: u64 = 2 * 14_480;

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probe {
    /// As it was at the end, queues included.
    pub rtt: Option<Duration>,
    /// The path with empty queues.
    pub min_rtt: Option<Duration>,
    /// The most that was delivered over a round trip, bytes of payload, padding and frames per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Packets sent again, of all that were sent.
    pub loss: f64,
    /// How long it took.
    pub took: Duration,
    /// What it sent.
    pub padding_bytes: u64,
}

/// Figures of one instant.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub at: Instant,
    pub lanes: &'a [LaneStats],
    pub padding_bytes: u64,
    /// Chunks that were ever queued on this link.
    pub chunks_queued: u64,
}

#[derive(Default)]
pub struct Warmth {
    adder: Adder,
    under_way: Option<Round>,
}

struct Round {
    begun: Instant,
    first: Sums,
    padding_before: u64,
    chunks_before: u64,
    rounds: u32,
    /// Of this round.
    round_begun: Instant,
    acked_before: u64,
    best: f64,
    flat: u32,
    /// When it was looked last, and what had arrived then.
    looked: (Instant, u64),
    /// The most that arrived between two looks, bytes per second.
    peak: f64,
    /// Nothing more is sent; what is under way still arrives, at the rate of the path, until then.
    last_until: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Padding may be sent until there are so many bytes of it, in all; come again after this.
    Pad {
        up_to_bytes: u64,
        again: Duration,
    },
    Done(Probe),
}

impl Warmth {
    /// Begins, unless it has. False: it is not worth it.
    pub fn begin(&mut self, sight: Sight<'_>, whatever_it_takes: bool) -> bool {
        if self.under_way.is_some() {
            return true;
        }
        if sight.lanes.is_empty() || !whatever_it_takes && min_rtt(sight.lanes) < Some(WORTH_IT) {
            return false;
        }
        let first = self.adder.add(sight.lanes);
        self.under_way = Some(Round {
            begun: sight.at,
            first,
            padding_before: sight.padding_bytes,
            chunks_before: sight.chunks_queued,
            rounds: 0,
            round_begun: sight.at,
            acked_before: first.acked_bytes,
            best: 0.0,
            flat: 0,
            looked: (sight.at, first.acked_bytes),
            peak: 0.0,
            last_until: None,
        });
        true
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    pub fn step(&mut self, sight: Sight<'_>) -> Step {
        let Some(round) = &mut self.under_way else { return Step::Done(Probe::default()) };
        let sums = self.adder.add(sight.lanes);
        let min = min_rtt(sight.lanes);
        let rtt = usual_rtt(sight.lanes);
        let length = min.unwrap_or_default().max(ROUND_LEAST);
        let since_look = sight.at.saturating_duration_since(round.looked.0);
        if since_look >= length / 5 {
            let arrived = (sums.acked_bytes - round.looked.1) as f64 / since_look.as_secs_f64();
            round.peak = round.peak.max(arrived);
            round.looked = (sight.at, sums.acked_bytes);
        }
        let elapsed = sight.at.saturating_duration_since(round.round_begun);
        if elapsed >= length {
            let rate = (sums.acked_bytes - round.acked_before) as f64 / elapsed.as_secs_f64();
            // The first round has no acknowledgements.
            round.flat = if rate > round.best * GROWTH || round.rounds == 0 { 0 } else { round.flat + 1 };
            round.best = round.best.max(rate);
            round.rounds += 1;
            (round.round_begun, round.acked_before) = (sight.at, sums.acked_bytes);
        }
        let queued = rtt.zip(min).and_then(|(rtt, min)| queue_in(rtt, min.max(ROUND_LEAST)));
        let full =
            round.flat >= FLAT_ROUNDS || round.rounds >= ROUNDS_MOST || queued.is_some() && round.rounds > 1;
        if full && round.last_until.is_none() {
            round.last_until = Some(sight.at + length);
            (round.round_begun, round.acked_before) = (sight.at, sums.acked_bytes);
        }
        let over = sight.chunks_queued != round.chunks_before
            || sight.lanes.is_empty()
            || round.last_until.is_some_and(|until| until <= sight.at);
        if over {
            let went = sums.since(&round.first);
            let probe = Probe {
                rtt,
                min_rtt: min,
                bandwidth_bytes_per_s: (round.best > 0.0).then_some(round.best as u64),
                loss: went.loss(),
                took: sight.at.saturating_duration_since(round.begun),
                padding_bytes: sight.padding_bytes.saturating_sub(round.padding_before),
            };
            self.under_way = None;
            return Step::Done(probe);
        }
        if round.last_until.is_some() {
            return Step::Pad { up_to_bytes: 0, again: length / 4 };
        }
        let windows: u64 = sight.lanes.iter().map(|lane| lane.window_bytes).sum();
        let first_window = 2 * FIRST_WINDOW * sight.lanes.len() as u64;
        let by_rate = first_window.max((RATES * round.peak * min.unwrap_or_default().as_secs_f64()) as u64);
        let unsent = UNSENT * sight.lanes.len() as u64;
        Step::Pad {
            up_to_bytes: round.padding_before + unsent + by_rate.min(2 * windows),
            again: (length / 4).max(ROUND_LEAST / 4),
        }
    }
}

fn min_rtt(lanes: &[LaneStats]) -> Option<Duration> {
    lanes.iter().map(|lane| lane.min_rtt).filter(|rtt| !rtt.is_zero()).min()
}

/// The median of the lanes'.
fn usual_rtt(lanes: &[LaneStats]) -> Option<Duration> {
    let mut rtts: Vec<_> = lanes.iter().map(|lane| lane.rtt).collect();
    rtts.sort();
    rtts.get(rtts.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane_stats::some_lane;

    const MS: Duration = Duration::from_millis(1);

    /// Eight lanes in slow start over a path of `rate` bytes/s, 120 ms and `queue`.
    struct Path {
        now: Instant,
        lanes: Vec<LaneStats>,
        rate: f64,
        sent: u64,
        chunks: u64,
    }

    impl Path {
        fn new(rate: f64) -> Self {
            let mut lanes: Vec<_> = (0..8).map(some_lane).collect();
            lanes.iter_mut().for_each(|lane| lane.window_bytes = 14_480);
            Self { now: Instant::now(), lanes, rate, sent: 0, chunks: 0 }
        }

        fn sight(&self) -> Sight<'_> {
            Sight { at: self.now, lanes: &self.lanes, padding_bytes: self.sent, chunks_queued: self.chunks }
        }

        /// Passes `time` with so much padding allowed: a window per round trip is sent, and doubles what was acknowledged.
        fn pass(&mut self, time: Duration, up_to: u64) {
            self.now += time;
            let windows: u64 = self.lanes.iter().map(|lane| lane.window_bytes).sum();
            let full = self.rate * 0.12;
            let rtt = Duration::from_secs_f64(0.12 * (windows as f64 / full).max(1.0));
            let rate = (windows as f64 / rtt.as_secs_f64()).min(self.rate);
            let goes = ((rate * time.as_secs_f64()) as u64).min(up_to.saturating_sub(self.sent));
            self.sent += goes;
            for lane in &mut self.lanes {
                lane.acked_bytes += goes / 8;
                lane.window_bytes += goes / 8;
                lane.sent_segments += goes / 8 / 1448;
                lane.rtt = rtt;
            }
        }

        fn warm(&mut self, each: impl Fn(&mut Path)) -> Probe {
            let mut warmth = Warmth::default();
            assert!(warmth.begin(self.sight(), false));
            loop {
                match warmth.step(self.sight()) {
                    Step::Pad { up_to_bytes, again } => self.pass(again, up_to_bytes),
                    Step::Done(probe) => return probe,
                }
                each(self);
            }
        }
    }

    #[test]
    fn a_cold_path_is_filled_measured_and_left_within_three_bandwidths_times_round_trips() {
        let mut path = Path::new(125e6);
        let probe = path.warm(|_| {});
        let bdp = 125e6 * 0.12;
        let windows: u64 = path.lanes.iter().map(|lane| lane.window_bytes).sum();
        assert!(windows as f64 > bdp, "{windows}");
        let found = probe.bandwidth_bytes_per_s.unwrap() as f64 / 125e6;
        assert!((0.7..1.05).contains(&found), "{found}");
        assert!((probe.padding_bytes as f64) < 3.3 * bdp, "{probe:?}");
        assert!(probe.took < 2000 * MS, "{probe:?}");
        assert_eq!(probe.min_rtt, Some(120 * MS));
    }

    #[test]
    fn a_chunk_ends_it() {
        let mut path = Path::new(125e6);
        let probe = path.warm(|path| path.chunks = u64::from(path.sent > 1_000_000));
        assert!(probe.padding_bytes < 3_000_000, "{probe:?}");
    }

    #[test]
    fn a_path_that_does_not_grow_is_not_padded_for_long() {
        let mut path = Path::new(125e6);
        let probe = path.warm(|path| path.lanes.iter_mut().for_each(|lane| lane.window_bytes = 14_480));
        assert!(probe.padding_bytes <= 8 * (2 * 14_480 + UNSENT) && probe.took < 700 * MS, "{probe:?}");
    }

    #[test]
    fn a_short_path_is_warmed_only_when_it_must_be() {
        let mut lanes = vec![some_lane(0)];
        lanes[0].min_rtt = MS;
        let sight = Sight { at: Instant::now(), lanes: &lanes, padding_bytes: 0, chunks_queued: 0 };
        let mut warmth = Warmth::default();
        assert!(!warmth.begin(sight, false));
        assert!(warmth.begin(sight, true));
    }

    #[test]
    fn lanes_that_are_gone_end_it() {
        let path = Path::new(125e6);
        let mut warmth = Warmth::default();
        warmth.begin(path.sight(), false);
        let none = Sight { lanes: &[], ..path.sight() };
        assert!(matches!(warmth.step(none), Step::Done(_)));
    }
}
