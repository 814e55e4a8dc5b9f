//! From a warm-up into work: the rate at which lanes begin.
//!
//! ```text
//!            a warm-up filled the path              the windows hold the rate by themselves, for two round trips
//!  (none) ─────────────────────────────▶ leading ────────────────────────────────────────────────────▶ (none)
//!                                         │  ▲      or nobody needs it any more ([`Lead::BOUND`])
//!     used, and no queue for three rounds: └──┘ a queue: as much as arrives,
//!                     half as much again           and a twentieth
//! ```
//! A window that was filled with padding leaves in one burst, and goes on doubling, until the path's queue overflows. With a
//! loss of that size a lane stands still for a round trip. So each lane is paced by the kernel at its share of what
//! was found, and a little more: that queue grows slowly, and TCP leaves slow start when it sees it. Where the path has more
//! than was found, no queue grows, and the ceiling does.
//!
//! [`Lead`] is told times and figures: no socket, no clock.

use std::time::{Duration, Instant};

use crate::lane_stats::{Adder, LaneStats, Sums};
use crate::warm::{Probe, min_rtt, usual_rtt};

/// Of the bandwidth that was found: enough for a queue to show within two round trips, too little to fill it in one.
const AHEAD: f64 = 1.1;
/// Of the ceiling, from which on it is used.
const USED: f64 = 0.85;
const MORE: f64 = 1.5;
/// Rounds in which it is used and no queue shows, after which there must be more than was found: with as much, one shows in two.
const ROUNDS_USED: u32 = 3;
/// Of what arrives when there is a queue, which is the path's bandwidth.
const AHEAD_OF_QUEUE: f64 = 1.05;
/// Of the windows, from which on they hold the rate, not the ceiling.
const BINDING: f64 = 0.9;
const ROUNDS_BINDING: u32 = 2;
/// A queue that has begun to grow, of the shortest round trip and at least and at most. TCP's slow start ends by the same.
const BEGUN: u32 = 8;
const BEGUN_LEAST: Duration = Duration::from_millis(4);
const BEGUN_MOST: Duration = Duration::from_millis(16);
const ROUND_LEAST: Duration = Duration::from_millis(10);

pub struct Lead {
    begun: Instant,
    found: f64,
    ceiling: f64,
    adder: Adder,
    round_begun: Instant,
    before: Sums,
    used: u32,
    binding: u32,
}

impl Lead {
    /// From the first look on. Whatever the path is like by then, it has no use for what was found so long ago.
    pub const BOUND: Duration = Duration::from_secs(30);

    /// `None`: too little was found.
    pub fn new(found: &Probe, at: Instant, lanes: &[LaneStats]) -> Option<Self> {
        let bandwidth = found.bandwidth_bytes_per_s.filter(|_| found.filled)?;
        let mut adder = Adder::default();
        let before = adder.add(lanes);
        let found = bandwidth as f64;
        Some(Self {
            begun: at,
            found,
            ceiling: found * AHEAD,
            adder,
            round_begun: at,
            before,
            used: 0,
            binding: 0,
        })
    }

    /// What each lane is to be paced at, bytes per second.
    pub fn pace(&self, lanes: &[LaneStats]) -> u64 {
        share(self.ceiling, lanes)
    }

    /// When to look again: lanes in slow start take their share within a round trip.
    pub fn again(lanes: &[LaneStats]) -> Duration {
        round(lanes) / 4
    }

    /// How the lanes do. False: they need it no longer.
    pub fn look(&mut self, at: Instant, lanes: &[LaneStats]) -> bool {
        let sums = self.adder.add(lanes);
        let round = round(lanes);
        let elapsed = at.saturating_duration_since(self.round_begun);
        if elapsed < round {
            return true;
        }
        let went = sums.since(&self.before);
        let rate = went.acked_bytes as f64 / elapsed.as_secs_f64();
        (self.round_begun, self.before) = (at, sums);
        let (windows, in_flight) = lanes.iter().fold((0, 0), |(windows, in_flight), lane| {
            (windows + lane.window_bytes, in_flight + lane.in_flight_bytes)
        });
        let queued = usual_rtt(lanes).is_some_and(|rtt| rtt > round + begun(round));
        let used = !queued && rate >= USED * self.ceiling;
        self.used = if used { self.used + 1 } else { 0 };
        if self.used >= ROUNDS_USED {
            self.ceiling *= MORE;
        } else if queued && went.resent_segments == 0 {
            // With losses acknowledgements come late and all at once.
            self.ceiling = self.ceiling.min(self.found.max(rate * AHEAD_OF_QUEUE));
        }
        let binds = queued && in_flight as f64 >= BINDING * windows as f64;
        self.binding = if binds { self.binding + 1 } else { 0 };
        self.binding < ROUNDS_BINDING && at.saturating_duration_since(self.begun) < Self::BOUND
    }
}

/// Longer than this, a queue has begun to grow.
pub fn begun(round: Duration) -> Duration {
    (round / BEGUN).clamp(BEGUN_LEAST, BEGUN_MOST)
}

pub fn round(lanes: &[LaneStats]) -> Duration {
    min_rtt(lanes).unwrap_or_default().max(ROUND_LEAST)
}

/// What no lane is to pass so that all send `bytes_per_s` together: those whose window is too small for an even share leave
/// the rest to the others.
pub fn share(bytes_per_s: f64, lanes: &[LaneStats]) -> u64 {
    let round = round(lanes).as_secs_f64();
    let mut can: Vec<_> = lanes.iter().map(|lane| lane.window_bytes as f64 / round).collect();
    can.sort_by(f64::total_cmp);
    let (mut left, mut share) = (bytes_per_s, bytes_per_s);
    for (before, can) in can.iter().enumerate() {
        share = left / (lanes.len() - before) as f64;
        if *can > share {
            break;
        }
        left -= can;
    }
    share.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane_stats::some_lane;

    const MS: Duration = Duration::from_millis(1);
    const FOUND: f64 = 125e6;

    /// Eight lanes over a path of `rate` bytes/s and 120 ms, which send as fast as their pace lets them.
    struct Path {
        now: Instant,
        lanes: Vec<LaneStats>,
        rate: f64,
        queued: f64,
        lead: Lead,
    }

    impl Path {
        fn new(rate: f64) -> Self {
            let (now, lanes): (_, Vec<_>) = (Instant::now(), (0..8).map(some_lane).collect());
            let lead = Lead::new(&found(), now, &lanes).unwrap();
            Self { now, lanes, rate, queued: 0.0, lead }
        }

        fn round(&mut self) -> bool {
            let round = Duration::from_millis(120);
            self.now += round;
            let sent = self.lead.ceiling * round.as_secs_f64() + self.queued;
            let arrived = sent.min(self.rate * round.as_secs_f64());
            self.queued = sent - arrived;
            for lane in &mut self.lanes {
                lane.acked_bytes += (arrived / 8.0) as u64;
                lane.rtt = round + Duration::from_secs_f64(self.queued / self.rate);
                lane.in_flight_bytes = (sent / 8.0) as u64;
            }
            self.lead.look(self.now, &self.lanes)
        }

        fn ahead(&self) -> f64 {
            self.lead.ceiling / self.rate
        }
    }

    fn found() -> Probe {
        Probe { bandwidth_bytes_per_s: Some(FOUND as u64), filled: true, ..Probe::default() }
    }

    #[test]
    fn a_queue_is_let_grow_slowly() {
        let mut path = Path::new(FOUND);
        assert!((1.05..1.15).contains(&path.ahead()));
        path.lanes.iter_mut().for_each(|lane| lane.window_bytes = 1 << 30);
        assert!((0..8).all(|_| path.round()));
        assert!((1.0..1.06).contains(&path.ahead()), "{}", path.ahead());
        let queue = path.lanes[0].rtt - 120 * MS;
        assert!((15 * MS..100 * MS).contains(&queue), "{queue:?}");
    }

    #[test]
    fn a_path_with_more_than_was_found_is_filled_all_the_same() {
        let mut path = Path::new(2.0 * FOUND);
        path.lanes.iter_mut().for_each(|lane| lane.window_bytes = 1 << 30);
        assert!((0..10).all(|_| path.round()));
        assert!(path.ahead() > 1.0, "{}", path.ahead());
        // What arrives late, and all at once, says nothing.
        let before = path.ahead();
        path.lanes[0].resent_segments += 1;
        path.now += 500 * MS;
        assert!(path.lead.look(path.now, &path.lanes) && path.ahead() == before);
    }

    #[test]
    fn it_ends_when_the_windows_hold_the_rate_or_after_its_time() {
        let mut path = Path::new(FOUND);
        path.lanes.iter_mut().for_each(|lane| lane.window_bytes = 2_100_000);
        assert!((0..20).any(|_| !path.round()));
        let mut path = Path::new(FOUND);
        path.now += Lead::BOUND;
        assert!(!path.round());
    }

    #[test]
    fn only_a_path_that_was_filled_is_led() {
        let (now, lanes) = (Instant::now(), [some_lane(0)]);
        assert!(Lead::new(&Probe { filled: false, ..found() }, now, &lanes).is_none());
        assert!(Lead::new(&Probe { bandwidth_bytes_per_s: None, ..found() }, now, &lanes).is_none());
    }

    #[test]
    fn lanes_with_small_windows_leave_their_share_to_the_others() {
        let mut lanes: Vec<_> = (0..4).map(some_lane).collect();
        lanes.iter_mut().for_each(|lane| lane.window_bytes = 1 << 30);
        assert_eq!(share(40e6, &lanes), 10_000_000);
        lanes.iter_mut().take(2).for_each(|lane| lane.window_bytes = 120_000);
        assert_eq!(share(40e6, &lanes), 19_000_000);
        lanes.iter_mut().for_each(|lane| lane.window_bytes = 120_000);
        assert_eq!(share(40e6, &lanes), 37_000_000, "the last may have all the rest");
        assert!(share(40e6, &[]) > 0);
    }
}
