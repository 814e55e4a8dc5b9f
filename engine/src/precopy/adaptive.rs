//! The default policy: switch when the predicted stop is short enough and waiting no longer shortens it.

use std::time::Duration;

use crate::precopy::{Decision, OnDeadline, Policy, View};

/// The knobs of [`Adaptive`].
#[derive(Debug, Clone)]
pub struct AdaptiveConfig {
    /// The stop the user asked for. Default 300 ms, as QEMU's.
    pub downtime_target: Duration,
    /// From the start until [`AdaptiveConfig::on_deadline`]. Default 10 min.
    pub deadline: Duration,
    /// Default [`OnDeadline::Abort`]: the guest stays where it runs.
    pub on_deadline: OnDeadline,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        AdaptiveConfig {
            downtime_target: Duration::from_millis(300),
            deadline: Duration::from_secs(600),
            on_deadline: OnDeadline::Abort,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    config: AdaptiveConfig,
}

impl Adaptive {
    pub fn new(config: AdaptiveConfig) -> Self {
        Adaptive { config }
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn decide(&mut self, view: &View) -> Decision {
        let target_ns = u64::try_from(self.config.downtime_target.as_nanos()).unwrap_or(u64::MAX);
        if view.whole_guest_seen && view.prediction.total_ns <= target_ns {
            return Decision::SwitchOver;
        }
        Decision::Continue
    }
}
