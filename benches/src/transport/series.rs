//! What came when, in bins of 10 ms, and figures from it. No clock of its own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Fine enough for a tenth of the shortest round trip that is judged (40 ms) to be seen within a few.
pub const BIN: Duration = Duration::from_millis(10);

/// Bytes per bin since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    bins: Vec<u64>,
    /// When the last of it came.
    last_us: u64,
}

impl Series {
    /// In any order.
    pub fn add(&mut self, at: Duration, bytes: u64) {
        let index = (at.as_nanos() / BIN.as_nanos()) as usize;
        if self.bins.len() <= index {
            self.bins.resize(index + 1, 0);
        }
        if let Some(bin) = self.bins.get_mut(index) {
            *bin += bytes;
        }
        self.last_us = self.last_us.max(at.as_micros() as u64);
    }

    /// What came evenly from one time to another.
    pub fn spread(&mut self, from: Duration, to: Duration, bytes: u64) {
        let bins = ((to.saturating_sub(from)).as_secs_f64() / BIN.as_secs_f64()).round().max(1.0) as u64;
        for index in 0..bins {
            let part = bytes * (index + 1) / bins - bytes * index / bins;
            self.add(from + BIN * index as u32, part);
        }
    }

    /// Adds what another one has, bin by bin.
    pub fn merge(&mut self, other: &Series) {
        for (index, bytes) in other.bins.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
            self.add(BIN * index as u32, *bytes);
        }
        self.last_us = self.last_us.max(other.last_us);
    }

    pub fn bytes(&self) -> u64 {
        self.bins.iter().sum()
    }

    pub fn last(&self) -> Duration {
        Duration::from_micros(self.last_us)
    }

    /// Of the bins that begin in this time.
    pub fn between(&self, from: Duration, to: Duration) -> u64 {
        let count = self.bins.len() as u128;
        let index = |at: Duration| at.as_nanos().div_ceil(BIN.as_nanos()).min(count) as usize;
        self.bins.get(index(from)..index(to).max(index(from))).unwrap_or_default().iter().sum()
    }

    /// Bytes per second in this time; 0 if there is none.
    pub fn rate(&self, from: Duration, to: Duration) -> f64 {
        let seconds = to.saturating_sub(from).as_secs_f64();
        if seconds > 0.0 { self.between(from, to) as f64 / seconds } else { 0.0 }
    }

    /// From a time until the last byte; 0 if nothing came so late.
    pub fn rate_from(&self, from: Duration) -> f64 {
        let seconds = self.last().saturating_sub(from).as_secs_f64();
        if seconds > 0.0 { self.between(from, Duration::MAX) as f64 / seconds } else { 0.0 }
    }

    /// Of each whole second; what came in the last, begun one is left out.
    pub fn per_second(&self) -> Vec<u64> {
        self.per_second_from(Duration::ZERO)
    }

    /// The same, counted from a time on.
    pub fn per_second_from(&self, start: Duration) -> Vec<u64> {
        const SECOND: Duration = Duration::from_secs(1);
        let seconds = self.last().saturating_sub(start).as_secs() as u32;
        (0..seconds).map(|n| start + SECOND * n).map(|from| self.between(from, from + SECOND)).collect()
    }

    /// By when so many bytes had come, within a bin by its share.
    pub fn time_of(&self, bytes: u64) -> Option<Duration> {
        let mut before = 0;
        for (index, &bin) in self.bins.iter().enumerate() {
            if before + bin >= bytes && bin > 0 {
                let share = (bytes.saturating_sub(before)) as f64 / bin as f64;
                return Some(BIN * index as u32 + BIN.mul_f64(share));
            }
            before += bin;
        }
        None
    }

    /// The first time, not before `from`, after which the rate over `window` is so high.
    pub fn reaches(&self, bytes_per_s: f64, from: Duration, window: Duration) -> Option<Duration> {
        let first = from.as_nanos().div_ceil(BIN.as_nanos()) as u32;
        (first..self.bins.len() as u32)
            .map(|index| BIN * index)
            .take_while(|&at| at + window <= self.last() + BIN)
            .find(|&at| self.rate(at, at + window) >= bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_what_came_late_counts_and_silence_at_the_end_is_not_added() {
        let mut series = Series::default();
        for tenth in 1..=45 {
            series.add(ms(tenth * 100), if tenth < 30 { 1 } else { 100 });
        }
        assert_eq!(series.bytes(), 29 + 1600);
        assert_eq!(series.rate_from(ms(3000)), 1600.0 / 1.5);
        assert_eq!(series.per_second(), [9, 10, 10, 1000]);
        assert_eq!(series.rate(ms(3000), ms(4000)), 1000.0);
        assert_eq!(series.between(ms(2900), ms(3100)), 101);
    }

    #[test]
    fn a_transfer_that_is_too_short_has_no_steady_rate() {
        let mut series = Series::default();
        assert_eq!(series.rate_from(ms(3000)), 0.0);
        series.add(ms(2000), 1 << 30);
        assert_eq!(series.rate_from(ms(3000)), 0.0);
        assert_eq!(series.rate(ms(3000), ms(2000)), 0.0);
    }

    #[test]
    fn the_time_of_a_volume_lies_within_the_bin_that_brought_it() {
        let mut series = Series::default();
        series.add(ms(20), 100);
        series.add(ms(50), 100);
        assert_eq!(series.time_of(50), Some(ms(25)));
        assert_eq!(series.time_of(100), Some(ms(30)));
        assert_eq!(series.time_of(150), Some(ms(55)));
        assert_eq!(series.time_of(201), None);
    }

    #[test]
    fn what_came_evenly_is_spread_and_what_is_merged_adds_up() {
        let mut series = Series::default();
        series.spread(ms(100), ms(200), 1003);
        assert_eq!((series.bytes(), series.between(ms(100), ms(150))), (1003, 501));
        let mut other = Series::default();
        other.add(ms(105), 7);
        other.merge(&series);
        assert_eq!((other.bytes(), other.last()), (1010, ms(190)));
    }

    #[test]
    fn a_rate_is_reached_where_a_whole_window_has_it() {
        let mut series = Series::default();
        for bin in 0..100 {
            series.add(BIN * bin, if bin < 40 { 50 } else { 100 });
        }
        // 90 of 100: the window may begin while a fifth of it is still slow.
        assert_eq!(series.reaches(9000.0, ms(0), ms(100)), Some(ms(380)));
        assert_eq!(series.reaches(9000.0, ms(500), ms(100)), Some(ms(500)));
        assert_eq!(series.reaches(20_000.0, ms(0), ms(100)), None);
    }
}
