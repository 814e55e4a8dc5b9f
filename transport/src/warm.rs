//! Filling the pipe before there is anything to send, and finding out what the pipe is.
//!
//! ```text
//!            a session is asked for                its first chunk is queued (padding has given way at once);
//!  Resting ─────────────────────────▶ Warming ───  or the windows fill the path; or nothing grows; or a queue builds; or nobody wants it any more ──▶ Resting
//! ```
//! While it warms, lanes that have nothing else send padding, so that TCP's windows grow before the first page needs them.
//! How much: until the windows, when all that is under way has been acknowledged, hold [`FILL`] × bandwidth × round trip. In
//! slow start a window is what was acknowledged, so that costs about as many bytes; [`MOST`] times is never passed. The
//! bandwidth is known long before the path is full: what slow start sends in a round trip arrives in one piece, and that
//! as fast as the narrowest place lets it. More is not better: windows larger than path and queue leave in one burst, which
//! overflows the queue. [`Lead`](crate::lead::Lead) sees to what follows.
//!
//! [`Warmth`] is told times and figures and answers with orders: no socket, no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::lane_stats::{Adder, LaneStats, Sums};
use crate::lead::{begun, share};
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

/// What the windows are to hold, of bandwidth × round trip: something more, for they are not used evenly.
const FILL: f64 = 1.25;
/// Padding of one warm-up, of bandwidth × round trip, besides the first windows: not all of it grows a window. With what is
/// found too much, for acknowledgements come unevenly, it is still less than 2.
const MOST: f64 = 1.75;
/// Looks per round trip. What arrives between two tells the bandwidth, as soon as a piece is that long.
const LOOKS: u32 = 10;
/// The bandwidth is known when a round found no more than this much more: the pieces of both were longer than two looks.
const KNOWN: f64 = 1.25;
/// Of a filled path's rate in its best round. That may bring little more than half of what the path carries: as much is under way in slow start
/// when the windows are found to fill it.
const PEAK_MOST: f64 = 2.0;
/// A queue in most of so many looks is one; what is held up for a moment is none.
const QUEUED_LOOKS: usize = 5;
/// Of what is known: the pace of padding.
const PACE: f64 = 1.15;
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
    /// The most that was delivered over a fifth of a round trip, bytes of payload, padding and frames per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Packets sent again, of all that were sent.
    pub loss: f64,
    /// How long it took.
    pub took: Duration,
    /// What it sent.
    pub padding_bytes: u64,
    /// The windows hold as much as the path.
    pub filled: bool,
    /// The bandwidth was no more in the last round trip than in the one before: it is the path's.
    pub known: bool,
    /// There was a queue in the end, so it is for sure: a path or a machine that stands still for a moment brings no more either, and has none.
    pub queued: bool,
}

impl Probe {
    /// What the path carries, bytes per second, if that was found, and not only what these lanes can.
    pub fn path(&self) -> Option<u64> {
        self.bandwidth_bytes_per_s.filter(|_| self.filled && self.known)
    }
}

/// Figures of one instant.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub at: Instant,
    pub lanes: &'a [LaneStats],
    pub padding_bytes: u64,
    /// Chunks that were ever queued on this link.
    pub chunks_queued: u64,
    /// Somebody still asks for it.
    pub wanted: bool,
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
    /// At which rate.
    arrived: f64,
    /// The most that arrived in two looks, bytes per second.
    peak: f64,
    /// The same when this round began.
    peak_before: f64,
    /// It is the path's bandwidth, or all that these lanes can.
    known: bool,
    /// The last round trips that were seen, one a look.
    rtts: VecDeque<Duration>,
    /// Nothing more is sent; what is under way still arrives, at the rate of the path.
    last: Option<Last>,
    filled: bool,
}

struct Last {
    begun: Instant,
    until: Instant,
    acked_before: u64,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Padding may be sent until there are so many bytes of it, in all; come again after this.
    /// As fast as lanes can, or paced, each at so many bytes per second.
    Pad {
        up_to_bytes: u64,
        pace: Option<u64>,
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
            arrived: 0.0,
            peak: 0.0,
            peak_before: 0.0,
            known: false,
            rtts: VecDeque::new(),
            last: None,
            filled: false,
        });
        true
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The most that was seen to arrive so far, bytes per second.
    pub fn peak(&self) -> Option<f64> {
        self.under_way.as_ref().map(|round| round.peak)
    }

    pub fn step(&mut self, sight: Sight<'_>) -> Step {
        let Some(round) = &mut self.under_way else { return Step::Done(Probe::default()) };
        let sums = self.adder.add(sight.lanes);
        let min = min_rtt(sight.lanes);
        let rtt = usual_rtt(sight.lanes);
        let length = min.unwrap_or_default().max(ROUND_LEAST);
        let since_look = sight.at.saturating_duration_since(round.looked.0);
        if since_look >= length / LOOKS {
            let arrived = (sums.acked_bytes - round.looked.1) as f64 / since_look.as_secs_f64();
            // One look alone may have got what was held up before.
            round.peak = round.peak.max((arrived + round.arrived) / 2.0);
            round.arrived = arrived;
            // Without an acknowledgement it is what it was.
            if let Some(rtt) = rtt.filter(|_| arrived > 0.0) {
                round.rtts.truncate(QUEUED_LOOKS - 1);
                round.rtts.push_front(rtt);
            }
            round.looked = (sight.at, sums.acked_bytes);
        }
        let lanes = sight.lanes.len() as u64;
        let (first_windows, unsent) = (FIRST_WINDOW * lanes, UNSENT * lanes);
        let holds = round.peak * min.unwrap_or_default().as_secs_f64();
        let sent = sight.padding_bytes.saturating_sub(round.padding_before);
        let (wanted, most) =
            (first_windows + (FILL * holds) as u64, 2 * first_windows + (MOST * holds) as u64);
        let windows: u64 = sight.lanes.iter().map(will_hold).sum();
        let filled = round.known && (windows >= wanted || sent >= most + unsent);
        let elapsed = sight.at.saturating_duration_since(round.round_begun);
        if elapsed >= length {
            let rate = (sums.acked_bytes - round.acked_before) as f64 / elapsed.as_secs_f64();
            // The first round has no acknowledgements.
            round.flat = if rate > round.best * GROWTH || round.rounds == 0 { 0 } else { round.flat + 1 };
            round.best = round.best.max(rate);
            round.rounds += 1;
            round.known |=
                round.rounds > 2 && round.peak_before > 0.0 && round.peak <= round.peak_before * KNOWN;
            round.peak_before = round.peak;
            (round.round_begun, round.acked_before) = (sight.at, sums.acked_bytes);
        }
        let queued = rtt.zip(min).and_then(|(rtt, min)| queue_in(rtt, min.max(ROUND_LEAST)));
        let full = filled
            || round.flat >= FLAT_ROUNDS
            || round.rounds >= ROUNDS_MOST
            || queued.is_some() && round.rounds > 1;
        if full && round.last.is_none() {
            let (begun, acked_before) = (sight.at, sums.acked_bytes);
            round.last = Some(Last { begun, until: sight.at + length, acked_before });
            round.filled = filled || queued.is_some();
        }
        let over = !sight.wanted
            || sight.chunks_queued != round.chunks_before
            || sight.lanes.is_empty()
            || round.last.as_ref().is_some_and(|last| last.until <= sight.at);
        if over {
            let went = sums.since(&round.first);
            round.rtts.make_contiguous().sort();
            let most = round.rtts.get(QUEUED_LOOKS / 2).copied();
            let probe = Probe {
                rtt,
                min_rtt: min,
                bandwidth_bytes_per_s: (round.peak > 0.0)
                    .then(|| round.bandwidth(sums.acked_bytes, sight.at) as u64),
                loss: went.loss(),
                took: sight.at.saturating_duration_since(round.begun),
                padding_bytes: sent,
                filled: round.filled,
                known: round.known,
                queued: most.zip(min).is_some_and(|(rtt, min)| rtt > min + begun(min)),
            };
            self.under_way = None;
            return Step::Done(probe);
        }
        // What is sent faster than it arrives queues, and TCP takes that for a full path. A little faster, for there may be more.
        let pace = round.known.then(|| share(PACE * round.peak, sight.lanes));
        if round.last.is_some() {
            return Step::Pad { up_to_bytes: 0, pace, again: length / LOOKS };
        }
        let more = if round.known { wanted.saturating_sub(windows) } else { windows };
        Step::Pad {
            up_to_bytes: round.padding_before + (sent + more).min(most + unsent),
            pace,
            again: (length / LOOKS).max(ROUND_LEAST / LOOKS),
        }
    }
}

impl Round {
    /// What arrived in a moment is the path's rate, unless it was held up before it. Over a round in which the path was full that cannot be.
    fn bandwidth(&self, acked_bytes: u64, at: Instant) -> f64 {
        // One that was cut short says nothing.
        let Some(last) = self.last.as_ref().filter(|last| self.filled && last.until <= at) else {
            return self.peak;
        };
        let took = at.saturating_duration_since(last.begun).as_secs_f64();
        let of_last = (acked_bytes - last.acked_before) as f64 / took;
        self.peak.min(PEAK_MOST * self.best.max(of_last))
    }
}

/// A lane's window when everything it has was acknowledged: in slow start that much is added to it.
fn will_hold(lane: &LaneStats) -> u64 {
    let grows = if lane.slow_start { lane.in_flight_bytes + lane.unsent_bytes } else { 0 };
    lane.window_bytes + grows
}

pub fn min_rtt(lanes: &[LaneStats]) -> Option<Duration> {
    lanes.iter().map(|lane| lane.min_rtt).filter(|rtt| !rtt.is_zero()).min()
}

/// The median of the lanes'.
pub fn usual_rtt(lanes: &[LaneStats]) -> Option<Duration> {
    let mut rtts: Vec<_> = lanes.iter().map(|lane| lane.rtt).collect();
    rtts.sort();
    rtts.get(rtts.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane_stats::some_lane;

    const MS: Duration = Duration::from_millis(1);

    /// Eight lanes in slow start over a path of `rate` bytes/s, and of 120 ms if nothing else is said.
    struct Path {
        now: Instant,
        lanes: Vec<LaneStats>,
        rate: f64,
        rtt: Duration,
        sent: u64,
        chunks: u64,
        /// Nothing passes just now.
        stands: bool,
        /// What comes next was held up for so long.
        stood: Duration,
        /// It is seen late only: what arrived meanwhile comes in one piece.
        catches_up: bool,
    }

    impl Path {
        fn new(rate: f64) -> Self {
            Path::over(rate, 120 * MS)
        }

        fn over(rate: f64, rtt: Duration) -> Self {
            let mut lanes: Vec<_> = (0..8).map(some_lane).collect();
            for lane in &mut lanes {
                (lane.window_bytes, lane.slow_start) = (14_480, true);
                (lane.rtt, lane.min_rtt) = (rtt, rtt);
            }
            Self {
                now: Instant::now(),
                lanes,
                rate,
                rtt,
                sent: 0,
                chunks: 0,
                stands: false,
                stood: Duration::ZERO,
                catches_up: false,
            }
        }

        fn sight(&self) -> Sight<'_> {
            let (padding_bytes, chunks_queued) = (self.sent, self.chunks);
            Sight { at: self.now, lanes: &self.lanes, padding_bytes, chunks_queued, wanted: true }
        }

        /// Passes `time` with so much padding allowed: a window per round trip is sent, and doubles what was acknowledged.
        fn pass(&mut self, time: Duration, up_to: u64) {
            self.now += time;
            if self.stands {
                self.stood += time;
                return;
            }
            let stood = std::mem::take(&mut self.stood);
            let windows: u64 = self.lanes.iter().map(|lane| lane.window_bytes).sum();
            let full = self.rate * self.rtt.as_secs_f64();
            let rtt = self.rtt.mul_f64((windows as f64 / full).max(1.0));
            let rate = (windows as f64 / rtt.as_secs_f64()).min(self.rate);
            let for_so_long = if self.catches_up { time + stood } else { time };
            let carries = (rate * for_so_long.as_secs_f64()) as u64;
            // In the end what is under way still arrives.
            let goes = if up_to == 0 { carries } else { carries.min(up_to.saturating_sub(self.sent)) };
            self.sent += if up_to == 0 { 0 } else { goes };
            for lane in &mut self.lanes {
                lane.acked_bytes += goes / 8;
                lane.window_bytes += goes / 8;
                lane.sent_segments += goes / 8 / 1448;
                lane.rtt = rtt + stood;
            }
        }

        fn warm(&mut self, mut each: impl FnMut(&mut Path)) -> Probe {
            let mut warmth = Warmth::default();
            assert!(warmth.begin(self.sight(), false));
            loop {
                match warmth.step(self.sight()) {
                    Step::Pad { up_to_bytes, again, .. } => self.pass(again, up_to_bytes),
                    Step::Done(probe) => return probe,
                }
                each(self);
            }
        }
    }

    /// For most of a round trip: on a machine whose processors are taken from it.
    #[test]
    fn what_a_path_that_stands_still_while_it_is_filled_seems_to_carry_is_not_for_sure() {
        for from_ms in (250..700).step_by(25) {
            for for_ms in [40, 80, 110] {
                let mut path = Path::new(125e6);
                let begun = path.now;
                let probe = path.warm(|path| {
                    let since = path.now - begun;
                    path.stands = (from_ms * MS..(from_ms + for_ms) * MS).contains(&since);
                });
                let found = probe.path().filter(|_| probe.queued).map_or(f64::MAX, |found| found as f64);
                assert!(found > 0.7 * 125e6, "{from_ms} ms, {for_ms} ms: {probe:?}");
            }
        }
    }

    /// Acknowledgements that a machine took in late, in one piece.
    #[test]
    fn what_was_held_up_is_not_taken_for_what_the_path_carries() {
        for (rate, rtt_ms) in [(125e6, 120), (12.5e6, 20), (125e6, 20)] {
            for (from, share) in (10..60).flat_map(|from| [0.2, 0.5, 0.8].map(|share| (from, share))) {
                let mut path = Path::over(rate, rtt_ms * MS);
                path.catches_up = true;
                let (begun, from) = (path.now, from * rtt_ms * MS / 10);
                let held_up = from..from + (rtt_ms * MS).mul_f64(share);
                let probe = path.warm(|path| path.stands = held_up.contains(&(path.now - begun)));
                let found = probe.bandwidth_bytes_per_s.unwrap() as f64;
                // Half of the bound is what the last round brings with what was held up before it.
                let most = 2.02 * (1.0 + share) * rate;
                assert!(
                    found < most,
                    "{rtt_ms} ms, at {from:?} {share} of it: {found:.0} of {rate}: {probe:?}"
                );
            }
        }
    }

    #[test]
    fn a_path_that_was_filled_has_a_queue_in_the_end() {
        let mut path = Path::new(125e6);
        let mut queued = Duration::ZERO;
        let probe = path.warm(|path| {
            if path.sent > 15_000_000 {
                queued += 2 * MS;
            }
            path.lanes
                .iter_mut()
                .for_each(|lane| (lane.acked_bytes, lane.rtt) = (lane.acked_bytes + 1, 120 * MS + queued));
        });
        assert!(probe.queued && probe.path().is_some(), "{probe:?}");
    }

    #[test]
    fn a_cold_path_is_filled_and_measured_with_less_than_two_bandwidths_times_round_trips() {
        let mut path = Path::new(125e6);
        let probe = path.warm(|_| {});
        let bdp = 125e6 * 0.12;
        let windows: u64 = path.lanes.iter().map(|lane| lane.window_bytes).sum();
        assert!(windows as f64 > bdp, "{windows}");
        let found = probe.bandwidth_bytes_per_s.unwrap() as f64 / 125e6;
        assert!((0.9..1.05).contains(&found), "{found}");
        let first = (8 * (2 * FIRST_WINDOW + UNSENT)) as f64;
        assert!((probe.padding_bytes as f64) < 2.0 * bdp + first, "{probe:?}");
        assert!(probe.filled && probe.took < 2000 * MS, "{probe:?}");
        assert_eq!(probe.min_rtt, Some(120 * MS));
    }

    #[test]
    fn lanes_that_stop_growing_early_leave_the_path_to_the_others_within_the_same_bound() {
        let mut path = Path::new(125e6);
        let probe = path.warm(|path| {
            for lane in path.lanes.iter_mut().take(5).filter(|lane| lane.window_bytes > 500_000) {
                (lane.window_bytes, lane.slow_start) = (500_000, false);
            }
        });
        let first = (8 * (2 * FIRST_WINDOW + UNSENT)) as f64;
        assert!((probe.padding_bytes as f64) < 2.0 * 125e6 * 0.12 + first, "{probe:?}");
    }

    #[test]
    fn once_the_bandwidth_is_known_padding_is_paced() {
        let mut path = Path::new(125e6);
        let mut warmth = Warmth::default();
        assert!(warmth.begin(path.sight(), false));
        let mut last = None;
        while let Step::Pad { up_to_bytes, pace, again } = warmth.step(path.sight()) {
            assert!(last.is_none() || pace.is_some());
            last = pace;
            path.pass(again, up_to_bytes);
            path.lanes.iter_mut().for_each(|lane| lane.rtt = 120 * MS);
        }
        let all = last.unwrap() as f64 * 8.0;
        assert!((1.0..1.3).contains(&(all / 125e6)), "{all}");
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
        let sight =
            Sight { at: Instant::now(), lanes: &lanes, padding_bytes: 0, chunks_queued: 0, wanted: true };
        let mut warmth = Warmth::default();
        assert!(!warmth.begin(sight, false));
        assert!(warmth.begin(sight, true));
    }

    #[test]
    fn it_ends_when_nobody_wants_it_any_more() {
        let path = Path::new(125e6);
        let mut warmth = Warmth::default();
        assert!(warmth.begin(path.sight(), false));
        assert!(matches!(warmth.step(path.sight()), Step::Pad { .. }));
        assert!(matches!(warmth.step(Sight { wanted: false, ..path.sight() }), Step::Done(_)));
        assert!(!warmth.is_under_way());
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
