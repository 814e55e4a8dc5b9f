//! What was foretold of a move, beside what came of it.
//!
//! The stop is measured on two clocks that are never compared. The source times from the order to stop until the verdict is
//! here; the destination says how long before its verdict the guest began to run. What is left beside these is the verdict's way
//! back, taken to be half the least round trip: nothing queues there.
//!
//! ```text
//! source       stop ──pause──▶ last page read ──state saved──▶ ──rest sent──▶ GO ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▶ verdict
//! destination                                                                  └─forward─▶ all here ──loaded──▶ runs ─told─┘
//! ```
//!
//! Pure: times are arguments.

use crate::api::wire::StopTimes;
use crate::estimate::Estimate;
use crate::protocol::ArrivalTimes;
use hikyaku_engine::precopy::{Prediction, Terms};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Of a move that was made, at its source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// By `hikyaku check`, if it was asked about this guest and this peer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// When the guest was about to be stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Stop>,
    /// Not there if the verdict had to be asked for, or the guest arrived stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Stop>,
    /// From the request until the guest was released here.
    pub total_ms: u64,
    /// Payload; the wire adds headers.
    pub sent_bytes: u64,
    pub passes: u64,
    /// Of the guest's CPU time, the most that was taken on the way.
    pub throttle_percent: u64,
}

/// How long the guest stood, and for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stop {
    pub total_ms: f64,
    /// Until its last page was read.
    pub pause_ms: f64,
    /// Until the rest of its pages had left.
    pub residual_ms: f64,
    /// The way: half the round trip and what queues on it. Measured: what the others leave of the total.
    pub forward_ms: f64,
    /// Its device state, saved and loaded.
    pub state_ms: f64,
    /// From loaded to running.
    pub resume_ms: f64,
}

/// None: not enough was known.
pub fn predicted(terms: &Terms, prediction: &Prediction) -> Option<Stop> {
    (prediction.total_ns != u64::MAX).then(|| Stop {
        total_ms: prediction.total_ns as f64 / 1e6,
        pause_ms: ms(terms.pause),
        residual_ms: prediction.residual_ns as f64 / 1e6,
        forward_ms: prediction.forward_ns as f64 / 1e6,
        state_ms: ms(terms.state),
        resume_ms: ms(terms.resume),
    })
}

pub fn measured(here: &StopTimes, there: &ArrivalTimes, min_rtt: Duration) -> Stop {
    let us = |us: u64| us as f64 / 1e3;
    let until_go = here.pause_ms + here.drain_ms + here.tail_ms + here.go_ms;
    let total_ms = (until_go + here.verdict_ms - us(there.told_us) - ms(min_rtt) / 2.0).max(until_go);
    let stop = Stop {
        total_ms,
        pause_ms: here.pause_ms + here.drain_ms,
        residual_ms: here.tail_ms - here.save_ms + here.go_ms,
        forward_ms: 0.0,
        state_ms: here.save_ms + us(there.load_us),
        resume_ms: us(there.resume_us),
    };
    let others_ms = stop.pause_ms + stop.residual_ms + stop.state_ms + stop.resume_ms;
    Stop { forward_ms: (total_ms - others_ms).max(0.0), ..stop }
}

impl Report {
    /// For people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(estimate) = &self.estimate {
            lines.push(format!("estimate: {}", estimate.words()));
        }
        let terms = |stop: &Stop| {
            format!(
                "{:.0} ms (pause {:.0}, rest {:.0}, way {:.0}, state {:.0}, resume {:.0})",
                stop.total_ms,
                stop.pause_ms,
                stop.residual_ms,
                stop.forward_ms,
                stop.state_ms,
                stop.resume_ms
            )
        };
        if let Some(stop) = &self.predicted {
            lines.push(format!("stop foretold: {}", terms(stop)));
        }
        if let Some(stop) = &self.measured {
            lines.push(format!("stop measured: {}", terms(stop)));
        }
        if self.throttle_percent > 0 {
            lines
                .push(format!("slowed down on the way by up to {} % of its CPU time", self.throttle_percent));
        }
        lines
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: StopTimes = StopTimes {
        pause_ms: 5.0,
        drain_ms: 3.0,
        tail_ms: 12.0,
        save_ms: 8.0,
        go_ms: 1.0,
        verdict_ms: 160.0,
    };
    const THERE: ArrivalTimes = ArrivalTimes { load_us: 20_000, resume_us: 2_000, told_us: 4_000 };

    #[test]
    fn the_stop_is_from_the_order_until_the_guest_runs_and_not_until_that_is_known() {
        let stop = measured(&HERE, &THERE, Duration::from_millis(120));
        // 21 until GO; 160 until the verdict, of which 4 were spent on a record and 60 on the way back.
        assert_eq!(stop.total_ms, 117.0);
        assert_eq!((stop.pause_ms, stop.residual_ms, stop.state_ms, stop.resume_ms), (8.0, 5.0, 28.0, 2.0));
        assert_eq!(stop.forward_ms, 74.0);
    }

    #[test]
    fn the_terms_add_up() {
        let terms = Terms { pause: Duration::from_millis(8), ..Terms::default() };
        let prediction = Prediction { total_ns: 103_000_000, forward_ns: 60_000_000, residual_ns: 5_000_000 };
        let stop = predicted(&terms, &prediction).unwrap();
        let sum = stop.pause_ms + stop.residual_ms + stop.forward_ms + stop.state_ms + stop.resume_ms;
        assert_eq!((stop.total_ms, sum), (103.0, 103.0));
        assert_eq!(predicted(&terms, &Prediction { total_ns: u64::MAX, ..prediction }), None);
    }

    #[test]
    fn a_destination_whose_clock_runs_wild_makes_no_negative_time() {
        let wild = ArrivalTimes { load_us: 1 << 40, resume_us: 0, told_us: 1 << 40 };
        let stop = measured(&HERE, &wild, Duration::from_millis(120));
        assert_eq!((stop.total_ms, stop.forward_ms), (21.0, 0.0));
    }
}
