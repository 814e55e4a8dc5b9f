//! A token bucket that gives out times instead of tokens. Time is an argument; it never waits.
//!
//! What is taken pushes `paid_at`, the instant at which everything taken so far is paid for at the rate, into the
//! future. Who takes may go on at the `paid_at` from before: so takers are served in the order they came, each knows
//! when its turn is, and nobody has to look again and again.
//!
//! Invariants: in any span of time `t`, what may go is at most `rate * (t + depth)` and one taking; a change of the
//! rate changes how long a debt takes to pay, not how much it is.

use std::time::{Duration, Instant};

/// The smallest rate. Less would leave frames half sent for minutes, and a peer waits 30 s for the rest of one.
pub const RATE_BYTES_PER_S_MIN: u64 = 12_500;

#[derive(Clone, Debug)]
pub struct Bucket {
    rate_bytes_per_s: Option<u64>,
    /// How much of a time in which nothing was taken can be made up for.
    depth: Duration,
    paid_at: Option<Instant>,
}

impl Bucket {
    /// Without a limit.
    pub fn new(depth: Duration) -> Self {
        Self { rate_bytes_per_s: None, depth, paid_at: None }
    }

    pub fn rate(&self) -> Option<u64> {
        self.rate_bytes_per_s
    }

    /// `None`: no limit. Holds for what is owed, too.
    pub fn set_rate(&mut self, rate_bytes_per_s: Option<u64>, now: Instant) {
        let rate = rate_bytes_per_s.map(|rate| rate.max(RATE_BYTES_PER_S_MIN));
        if rate == self.rate_bytes_per_s {
            return;
        }
        self.paid_at = match (self.rate_bytes_per_s, rate, self.paid_at) {
            (Some(old), Some(new), Some(paid_at)) if paid_at > now => {
                Some(now + (paid_at - now).mul_f64(old as f64 / new as f64))
            }
            (_, Some(_), _) => Some(now),
            (_, None, _) => None,
        };
        self.rate_bytes_per_s = rate;
    }

    /// When the next taking may go.
    pub fn free_at(&self, now: Instant) -> Instant {
        self.paid_at.map_or(now, |paid_at| paid_at.max(now))
    }

    /// Takes, whatever is owed, and says when what was taken may go.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.rate_bytes_per_s else { return now };
        let due = self.free_at(now);
        let earliest = now.checked_sub(self.depth).unwrap_or(now);
        let from = self.paid_at.map_or(earliest, |paid_at| paid_at.max(earliest));
        self.paid_at = Some(from + Duration::from_secs_f64(bytes as f64 / rate as f64));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Takes `slice` bytes as early as allowed, but notices only every `step`; gives what went, by millisecond.
    fn run(bucket: &mut Bucket, from: Instant, until: Instant, slice: u64, step: Duration) -> u64 {
        let (mut now, mut gone) = (from, 0);
        while now < until {
            while bucket.free_at(now) <= now {
                bucket.take(slice, now);
                gone += slice;
            }
            now += step;
        }
        gone
    }

    #[test]
    fn the_rate_is_kept_within_a_hundredth_also_by_a_taker_that_oversleeps() {
        for step in [MS / 10, MS, 4 * MS] {
            let start = Instant::now();
            let mut bucket = Bucket::new(5 * MS);
            bucket.set_rate(Some(10_000_000), start);
            let gone = run(&mut bucket, start, start + 10_000 * MS, 20_000, step);
            let ratio = gone as f64 / 100e6;
            assert!((0.99..1.01).contains(&ratio), "{ratio} at {step:?}");
        }
    }

    #[test]
    fn what_was_not_used_is_lost_but_for_the_depth() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5 * MS);
        bucket.set_rate(Some(1_000_000), start);
        let now = start + 1000 * MS;
        let gone = run(&mut bucket, now, now + MS, 100, MS);
        assert!((5_000..=5_100).contains(&gone), "{gone}");
    }

    #[test]
    fn takers_are_served_in_turn() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Duration::ZERO);
        bucket.set_rate(Some(1_000_000), now);
        let due: Vec<_> = (0..3).map(|_| bucket.take(2_000, now) - now).collect();
        assert_eq!(due, [Duration::ZERO, 2 * MS, 4 * MS]);
    }

    #[test]
    fn another_rate_holds_at_once_and_for_debts() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5 * MS);
        bucket.set_rate(Some(1_000_000), start);
        bucket.take(1_000_000, start);
        bucket.set_rate(Some(100_000_000), start);
        assert!(bucket.free_at(start) - start <= 10 * MS);
        let changed = start + 20 * MS;
        bucket.set_rate(Some(500_000), changed);
        let gone = run(&mut bucket, changed, changed + 2_000 * MS, 1_000, MS);
        assert!((990_000..=1_010_000).contains(&gone), "{gone}");
        bucket.set_rate(None, changed);
        assert_eq!(bucket.take(u64::MAX / 2, changed), changed);
        assert_eq!(bucket.free_at(changed), changed);
    }

    #[test]
    fn no_rate_stops_everything() {
        let now = Instant::now();
        let mut bucket = Bucket::new(5 * MS);
        bucket.set_rate(Some(0), now);
        assert_eq!(bucket.rate(), Some(RATE_BYTES_PER_S_MIN));
        bucket.take(300 * 1024, now);
        assert!(bucket.free_at(now) - now < Duration::from_secs(30));
    }
}
