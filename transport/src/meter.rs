//! Round trip, goodput and the most of the last seconds, from events with a time; no clock of its own.

use std::time::{Duration, Instant};

/// Weight of a new round trip in the smoothed one: 1/8, as TCP's (RFC 6298).
const RTT_WEIGHT: u32 = 8;
/// Goodput is smoothed over this or one round trip, whichever is longer.
const GOODPUT_WINDOW: Duration = Duration::from_secs(1);

/// What arrives in less than this from the first on is no rate.
const FIRST_LEAST: Duration = Duration::from_millis(20);

/// What was most is remembered for once to twice as long.
const REMEMBERED: Duration = Duration::from_secs(5);

/// So long after the last acknowledgement nothing is delivered any more, however long the path is.
const STANDS_AFTER: Duration = Duration::from_secs(3);

/// Quiet round trips in half a window of the smallest.
const QUIET_SAMPLES: u32 = 20;

/// Round trips of one link.
///
/// The smallest is that of a window, for the path may change. The window is counted in samples of a quiet link: one that is
/// kept full has a queue all the time, for minutes, and a window of time would take it for the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RttMeter {
    pub smoothed: Option<Duration>,
    pub min: Option<Duration>,
    pub latest: Option<Duration>,
    /// The smallest since the half window began, and how many quiet ones there were.
    half: Option<Duration>,
    quiet: u32,
}

impl RttMeter {
    /// `quiet`: nothing of ours is under way.
    pub fn sample(&mut self, rtt: Duration, quiet: bool) {
        self.latest = Some(rtt);
        self.min = Some(self.min.map_or(rtt, |min| min.min(rtt)));
        self.half = Some(self.half.map_or(rtt, |half| half.min(rtt)));
        self.quiet += u32::from(quiet);
        if self.quiet >= QUIET_SAMPLES {
            // What came before this half is forgotten.
            self.min = self.half.take();
            self.quiet = 0;
        }
        self.smoothed = Some(self.smoothed.map_or(rtt, |old| (old * (RTT_WEIGHT - 1) + rtt) / RTT_WEIGHT));
    }
}

/// What one session delivers per second, by the samples BBR takes: each chunk remembers how much was delivered when
/// it left, so that its acknowledgement tells a rate over its own flight. What arrived may have waited there, for a peer that is busy
/// acknowledges in bursts; so the time in which the same bytes left counts, where it is longer. A flight during which there was too little
/// to send says only that the path does *at least* so much.
#[derive(Debug, Default)]
pub struct GoodputMeter {
    delivered_bytes: u64,
    last_delivery: Option<Instant>,
    /// When the newest chunk left that was delivered.
    newest_left: Option<Instant>,
    /// When the first chunk left since nothing was under way.
    begun: Option<Instant>,
    /// A rate is known by other flights than the first.
    settled: bool,
    /// Flights that left before so much was delivered were short of data.
    starved_until: u64,
    rate: Option<f64>,
    rate_at: Option<Instant>,
    /// A flight was seen that was not short of data.
    full: bool,
}

/// What a chunk in flight remembers.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    delivered_bytes: u64,
    /// When the delivery before it came, or it left, if nothing was in flight.
    since: Instant,
    left: Instant,
    /// When the chunk left that was the newest one delivered then.
    before_left: Instant,
    /// When the first left of those that leave before anything has arrived: a round trip begins with it in which nothing does.
    begun: Option<Instant>,
    starved: bool,
}

impl GoodputMeter {
    /// A chunk leaves. `in_flight_bytes` does not count it.
    pub fn depart(&mut self, now: Instant, in_flight_bytes: u64) -> Departure {
        if in_flight_bytes == 0 {
            self.last_delivery = None;
            self.newest_left = None;
            self.begun = Some(now);
        }
        let begun = self.begun.filter(|_| self.last_delivery.is_none());
        Departure {
            delivered_bytes: self.delivered_bytes,
            since: self.last_delivery.unwrap_or(now),
            left: now,
            begun,
            before_left: self.newest_left.unwrap_or(now),
            starved: self.delivered_bytes < self.starved_until,
        }
    }

    /// Nothing is left to send while lanes would take more.
    pub fn starved(&mut self, in_flight_bytes: u64) {
        self.starved_until = self.delivered_bytes + in_flight_bytes.max(1);
    }

    /// One acknowledgement: `bytes` arrived, the newest of them departed at `departure`.
    pub fn delivered(&mut self, now: Instant, bytes: u64, departure: Departure, rtt: Option<Duration>) {
        self.delivered_bytes += bytes;
        self.last_delivery = Some(now);
        self.newest_left = self.newest_left.max(Some(departure.left));
        self.full |= !departure.starved && departure.begun.is_none();
        let first = departure.begun.map(|begun| {
            // What came since the first could have come, or left.
            let coming = now.saturating_duration_since(begun + rtt.unwrap_or_default());
            coming.max(departure.left.saturating_duration_since(begun)).max(FIRST_LEAST)
        });
        let leaving = departure.left.saturating_duration_since(departure.before_left);
        let elapsed = first.unwrap_or(now.saturating_duration_since(departure.since).max(leaving));
        if elapsed.is_zero() {
            return;
        }
        let sample = (self.delivered_bytes - departure.delivered_bytes) as f64 / elapsed.as_secs_f64();
        let rate = match (self.rate, self.rate_at) {
            (Some(_), _) if first.is_some() && !self.settled => sample,
            (Some(rate), Some(at)) => {
                self.settled |= first.is_none();
                if (departure.starved || first.is_some()) && sample < rate {
                    return;
                }
                let window = GOODPUT_WINDOW.max(rtt.unwrap_or_default()).as_secs_f64();
                let share = 1.0 - (-now.saturating_duration_since(at).as_secs_f64() / window).exp();
                rate + (sample - rate) * share
            }
            _ => sample,
        };
        self.rate = Some(rate);
        self.rate_at = Some(now);
    }

    pub fn bytes_per_s(&self) -> Option<u64> {
        self.rate.map(|rate| rate as u64)
    }

    /// Whether there was always too little to send: the path does as much, and nobody knows how much more.
    pub fn is_least(&self) -> bool {
        !self.full
    }

    /// Of one that has something under way: nothing, if nothing of it was acknowledged for long.
    pub fn bytes_per_s_at(&self, now: Instant) -> Option<u64> {
        let stands = self.last_delivery.is_some_and(|at| now.saturating_duration_since(at) > STANDS_AFTER);
        if stands { Some(0) } else { self.bytes_per_s() }
    }

    pub fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }
}

/// The most of the last seconds.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    since: Instant,
    now: f64,
    before: f64,
}

impl Most {
    pub fn new(at: Instant, rate: f64) -> Self {
        Self { since: at, now: rate, before: 0.0 }
    }

    pub fn add(&mut self, at: Instant, rate: f64) {
        if at.saturating_duration_since(self.since) >= REMEMBERED {
            (self.since, self.before, self.now) = (at, self.now, rate);
        }
        self.now = self.now.max(rate);
    }

    pub fn get(&self) -> f64 {
        self.now.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const CHUNK: u64 = 100_000;

    /// A path of `rate` bytes/s and `rtt`; `window` chunks in flight; acks every 10 ms.
    fn run(rate: f64, rtt: Duration, window: usize, seconds: f64, starved: bool) -> GoodputMeter {
        let start = Instant::now();
        let mut meter = GoodputMeter::default();
        let mut flying: VecDeque<(Duration, Departure)> = VecDeque::new();
        let mut free_at = Duration::ZERO;
        let mut now = Duration::ZERO;
        while now.as_secs_f64() < seconds {
            let mut arrived = 0;
            let mut newest = None;
            while flying.front().is_some_and(|(at, _)| *at <= now) {
                newest = flying.pop_front().map(|(_, departure)| departure);
                arrived += CHUNK;
            }
            if let Some(departure) = newest {
                meter.delivered(start + now, arrived, departure, Some(rtt));
            }
            while flying.len() < window {
                let departure = meter.depart(start + now, flying.len() as u64 * CHUNK);
                free_at = free_at.max(now) + Duration::from_secs_f64(CHUNK as f64 / rate);
                flying.push_back((free_at + rtt, departure));
            }
            if starved {
                meter.starved(flying.len() as u64 * CHUNK);
            }
            now += Duration::from_millis(10);
        }
        meter
    }

    #[test]
    fn a_full_path_reads_its_rate() {
        for rtt_ms in [0, 40, 200] {
            let meter = run(125e6, Duration::from_millis(rtt_ms), 600, 5.0, false);
            let read = meter.bytes_per_s().unwrap() as f64 / 125e6;
            assert!((0.93..1.07).contains(&read), "{read} at {rtt_ms} ms");
        }
    }

    #[test]
    fn who_never_had_enough_to_send_knows_the_least_alone() {
        let rtt = Duration::from_millis(40);
        let short = run(125e6, rtt, 2, 3.0, true);
        assert!(short.is_least() && short.bytes_per_s().unwrap() < 20_000_000);
        assert!(!run(125e6, rtt, 600, 3.0, false).is_least());
    }

    #[test]
    fn a_rate_is_known_two_round_trips_after_the_first_chunk() {
        let rtt = Duration::from_millis(120);
        for seconds in [0.26, 0.5, 1.0] {
            let read = run(125e6, rtt, 600, seconds, false).bytes_per_s().unwrap() as f64 / 125e6;
            assert!((0.85..1.07).contains(&read), "{read} after {seconds} s");
        }
    }

    /// 100 MB/s leave; the peer acknowledges nothing for a while, then all that came, again and again.
    #[test]
    fn a_peer_that_acknowledges_in_bursts_does_not_raise_the_estimate() {
        let start = Instant::now();
        let mut meter = GoodputMeter::default();
        let (mut flying, mut most) = (VecDeque::new(), 0);
        for ms in 0..5000 {
            let now = start + Duration::from_millis(ms);
            let in_flight = flying.len() as u64 * CHUNK;
            flying.push_back((ms + 60, meter.depart(now, in_flight)));
            // It stands for a fifth of each second and a half, and makes up for it at five times the rate.
            if ms % 1500 >= 300 {
                let come: Vec<_> =
                    std::iter::from_fn(|| flying.pop_front_if(|(at, _)| *at <= ms)).take(5).collect();
                if let Some((_, newest)) = come.last() {
                    meter.delivered(
                        now,
                        come.len() as u64 * CHUNK,
                        *newest,
                        Some(Duration::from_millis(120)),
                    );
                }
            }
            most = most.max(meter.bytes_per_s().unwrap_or(0));
        }
        assert!((90_000_000..108_000_000).contains(&most), "{most}");
    }

    #[test]
    fn a_sender_short_of_data_does_not_lower_the_estimate() {
        let mut meter = run(125e6, Duration::from_millis(40), 600, 3.0, false);
        let before = meter.bytes_per_s().unwrap();
        let mut now = Instant::now() + Duration::from_secs(100);
        for _ in 0..100 {
            meter.starved(0);
            let departure = meter.depart(now, 0);
            now += Duration::from_millis(40);
            meter.delivered(now, CHUNK, departure, None);
        }
        assert_eq!(meter.bytes_per_s().unwrap(), before);
    }

    #[test]
    fn the_smallest_round_trip_is_kept() {
        let mut meter = RttMeter::default();
        for ms in [50, 40, 140] {
            meter.sample(Duration::from_millis(ms), false);
        }
        assert_eq!(meter.min, Some(Duration::from_millis(40)));
        assert!(meter.smoothed.unwrap() < Duration::from_millis(70));
    }

    #[test]
    fn a_path_that_got_longer_is_believed_when_the_link_is_quiet_and_not_while_it_is_full() {
        let mut meter = RttMeter::default();
        let mut samples = |ms, quiet, count| {
            (0..count).for_each(|_| meter.sample(Duration::from_millis(ms), quiet));
            meter.min.unwrap().as_millis()
        };
        assert_eq!(samples(40, true, 30), 40);
        assert_eq!(samples(140, false, 10_000), 40, "a queue");
        assert_eq!(samples(120, true, 10), 40);
        assert_eq!(samples(120, true, 2 * QUIET_SAMPLES), 120);
        assert_eq!(samples(40, false, 1), 40);
    }
}
