//! Figures from what came when. No clock of its own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What was applied, and when since the start.
#[derive(Debug, Default)]
pub struct Arrivals {
    all: Vec<(Duration, u64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Received {
    pub bytes: u64,
    /// Of them, those that came after slow start.
    pub steady_bytes: u64,
    /// From the end of slow start to the last byte.
    pub steady_s: f64,
    /// Of each whole second from the start on; what came in the last, begun one is left out.
    pub per_second_bytes: Vec<u64>,
}

impl Received {
    /// 0 if nothing came so late.
    pub fn steady_bytes_per_s(&self) -> f64 {
        if self.steady_s > 0.0 { self.steady_bytes as f64 / self.steady_s } else { 0.0 }
    }
}

impl Arrivals {
    /// In any order.
    pub fn add(&mut self, at: Duration, bytes: u64) {
        self.all.push((at, bytes));
    }

    pub fn figures(&self, steady_from: Duration) -> Received {
        let last = self.all.iter().map(|(at, _)| *at).max().unwrap_or_default();
        let late = self.all.iter().filter(|(at, _)| *at > steady_from);
        let mut per_second_bytes = vec![0; last.as_secs() as usize];
        for (at, bytes) in &self.all {
            if let Some(second) = per_second_bytes.get_mut(at.as_secs() as usize) {
                *second += bytes;
            }
        }
        Received {
            bytes: self.all.iter().map(|(_, bytes)| bytes).sum(),
            steady_bytes: late.map(|(_, bytes)| bytes).sum(),
            steady_s: last.saturating_sub(steady_from).as_secs_f64(),
            per_second_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_late_counts_and_silence_at_the_end_is_not_added() {
        let mut arrivals = Arrivals::default();
        for tenth in 1..=45 {
            let bytes = if tenth <= 30 { 1 } else { 100 };
            arrivals.add(Duration::from_millis(tenth * 100), bytes);
        }
        let figures = arrivals.figures(Duration::from_secs(3));
        assert_eq!((figures.bytes, figures.steady_bytes, figures.steady_s), (1530, 1500, 1.5));
        assert_eq!(figures.steady_bytes_per_s(), 1000.0);
        assert_eq!(figures.per_second_bytes, [9, 10, 10, 901]);
    }

    #[test]
    fn a_transfer_that_is_too_short_has_no_steady_rate() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.figures(Duration::from_secs(3)).steady_bytes_per_s(), 0.0);
        arrivals.add(Duration::from_secs(2), 1 << 30);
        assert_eq!(arrivals.figures(Duration::from_secs(3)).steady_bytes_per_s(), 0.0);
    }
}
