//! What may be sent per second, where a policy sets that: a historical one has the limit of its original.
//!
//! A chunk leaves when nothing is owed, and is then owed as a whole: so the rate is met on average, chunk by chunk.

use crate::types::Time;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    bytes_per_s: Option<u64>,
    owed_bytes: f64,
    at: Time,
}

impl Limiter {
    pub(super) fn set(&mut self, now: Time, bytes_per_s: Option<u64>) {
        let paid = self.bytes_per_s.unwrap_or(0) as f64 * now.since(self.at) as f64 / 1e9;
        self.owed_bytes = (self.owed_bytes - paid).max(0.0);
        (self.bytes_per_s, self.at) = (bytes_per_s, now);
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        if self.bytes_per_s.is_some() {
            self.owed_bytes += bytes as f64;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.bytes_per_s.is_none() || self.owed_bytes <= 0.0
    }

    /// When it opens, if it is closed.
    pub(super) fn opens_at(&self) -> Option<Time> {
        let rate = self.bytes_per_s.filter(|_| !self.is_open())?.max(1);
        Some(self.at.plus_ns((self.owed_bytes * 1e9 / rate as f64) as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_met_and_no_limit_is_none() {
        let mut limiter = Limiter::default();
        limiter.sent(1 << 30);
        assert!(limiter.is_open() && limiter.opens_at().is_none());
        let (mut now, mut sent) = (Time(0), 0);
        while now < Time(2_000_000_000) {
            limiter.set(now, Some(1_000_000));
            if limiter.is_open() {
                limiter.sent(30_000);
                sent += 30_000;
            }
            now = limiter.opens_at().unwrap_or(now);
        }
        assert!((1_970_000..=2_030_000).contains(&sent), "{sent}");
    }
}
