//! How fast chunks are encoded, and how the next one is to be compressed.

use std::time::Duration;

use crate::codec::Method;
use crate::codec::choice::{Chooser, ChooserConfig, Took, Wire};
use crate::source::job::Cost;
use crate::source::window::Window;

/// Weight of the newest chunk in the running speed: the last twenty or so count.
const WEIGHT: f64 = 0.05;

/// See the module.
#[derive(Debug)]
pub(super) struct Speed {
    chooser: Chooser,
    opening_bytes_per_s: u64,
    workers: usize,
    /// By the clock: while the guest runs.
    beside_guest: OneWorker,
    /// By what it took of the processor: with the guest stopped a worker shares its core with less.
    alone: OneWorker,
}

/// How fast it is, all of a chunk's pages counted.
#[derive(Debug, Default, Clone, Copy)]
struct OneWorker {
    raw_bytes_per_s: Option<f64>,
    /// The same of chunks whose pages came again, most of them: differences are made faster than whole pages are compressed.
    again_bytes_per_s: Option<f64>,
}

impl OneWorker {
    fn learn(&mut self, again: bool, raw_bytes: usize, took: Duration) {
        let newest = raw_bytes as f64 / took.as_secs_f64();
        let speed = if again { &mut self.again_bytes_per_s } else { &mut self.raw_bytes_per_s };
        let speed = speed.get_or_insert(newest);
        *speed += WEIGHT * (newest - *speed);
    }

    fn raw_bytes_per_s(&self, again: f64) -> Option<f64> {
        let fresh = self.raw_bytes_per_s.or(self.again_bytes_per_s)?;
        let each_s = (1.0 - again) / fresh + again / self.again_bytes_per_s.unwrap_or(fresh);
        Some(1.0 / each_s)
    }
}

impl Speed {
    pub(super) fn new(workers: usize, choice: ChooserConfig) -> Self {
        Speed {
            opening_bytes_per_s: choice.opening_bytes_per_s,
            chooser: Chooser::new(choice),
            workers: workers.max(1),
            beside_guest: OneWorker::default(),
            alone: OneWorker::default(),
        }
    }

    /// A chunk of `raw_bytes` of pages has come back.
    pub(super) fn learn(
        &mut self,
        raw_bytes: usize,
        cost: &Cost,
        took: Option<Duration>,
        spent: Option<Duration>,
    ) {
        let Some(took) = took.filter(|took| !took.is_zero()) else { return };
        let spent = spent.filter(|spent| !spent.is_zero()).unwrap_or(took);
        if raw_bytes > 0 {
            let again = cost.again_raw_bytes * 2 > raw_bytes;
            self.beside_guest.learn(again, raw_bytes, took);
            self.alone.learn(again, raw_bytes, spent);
        }
        // Deltas and pages that are not compressed take time of their own: such a chunk tells nothing of its method.
        if let Some(method) = cost.method
            && cost.body_bytes * 4 >= raw_bytes * 3
        {
            let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.chooser.record(
                method,
                cost.body_bytes,
                cost.packed_bytes,
                Took { ns: ns(took), spent_ns: ns(spent) },
            );
        }
    }

    /// Raw bytes that all workers together encode per second once the guest is stopped, where so much of them came again, of one. None: not
    /// known yet.
    pub(super) fn stopped_bytes_per_s(&self, again: f64) -> Option<u64> {
        self.alone.raw_bytes_per_s(again).map(|speed| (self.workers as f64 * speed) as u64)
    }

    /// The same of pages that came again, while the guest runs.
    pub(super) fn again_bytes_per_s(&self) -> Option<u64> {
        self.beside_guest.raw_bytes_per_s(1.0).map(|speed| (self.workers as f64 * speed) as u64)
    }

    /// `opening`: the wire carries less than it will.
    pub(super) fn method(&mut self, window: &Window, opening: bool) -> Method {
        let goodput = window.link.goodput_bytes_per_s;
        let path = if window.waits_for_more() { window.link.path_bytes_per_s } else { 0 };
        let opens = if opening { self.opening_bytes_per_s } else { 0 };
        self.chooser.choose(&Wire {
            goodput_bytes_per_s: goodput.max(path).max(opens),
            unsent_bytes: window.unsent_bytes(),
            workers: self.workers,
            idle_workers: self.workers.saturating_sub(window.jobs),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_again_has_a_speed_of_its_own() {
        let mut speed = Speed::new(2, ChooserConfig::default());
        assert_eq!(speed.stopped_bytes_per_s(0.0), None);
        let mut learn = |again_raw_bytes, took_ms, spent_ms: Option<u64>| {
            let cost = Cost { again_raw_bytes, ..Cost::default() };
            let spent = spent_ms.map(Duration::from_millis);
            speed.learn(100_000, &cost, Some(Duration::from_millis(took_ms)), spent);
            [0.0, 0.5, 1.0].map(|again| speed.stopped_bytes_per_s(again).unwrap() / 1_000_000)
        };
        assert_eq!(learn(0, 1, None), [200, 200, 200], "nothing is known of them yet");
        assert_eq!(learn(100_000, 0, None), [200, 200, 200]);
        // It shared its core with the guest, which will stand.
        assert_eq!(learn(51_000, 6, Some(2)), [200, 133, 100]);
        assert_eq!(speed.again_bytes_per_s().unwrap() / 1_000_000, 33);
    }
}
