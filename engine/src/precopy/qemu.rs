//! QEMU's own rule, as a baseline: stop as soon as what is dirty crosses within the downtime limit at the present rate.
//!
//! QEMU measures its rate every 100 ms by what went into its socket; here it is the link's goodput, or the cap where that is less.
//! What is dirty counts in whole pages, as in QEMU, and with no regard to the round trip, to the device state, or to
//! what is still in the socket.
//!
//! QEMU passes a bitmap sync before it believes that little is left. So the end of the first pass counts only if it was told what had
//! become dirty meanwhile ([`crate::SyncInfo`]).

use std::time::Duration;

use crate::precopy::historical as h;
use crate::precopy::{Decision, Encodings, Policy, View};

/// QEMU's parameters.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// `downtime-limit`.
    pub downtime_limit: Duration,
    /// `max-bandwidth`, in bytes per second; None is QEMU's 0. With the guest stopped there is none.
    pub max_bandwidth: Option<u64>,
    /// Staging, in bytes.
    pub staging_bytes: usize,
}

impl Default for QemuConfig {
    fn default() -> Self {
        QemuConfig {
            downtime_limit: h::QEMU_DOWNTIME,
            max_bandwidth: Some(h::QEMU_MOST_BYTES_PER_S),
            staging_bytes: h::STAGING_BYTES,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
}

impl Qemu {
    pub fn new(config: QemuConfig) -> Self {
        Qemu { config }
    }
}

impl Policy for Qemu {
    fn name(&self) -> &'static str {
        if self.config.max_bandwidth.is_some() { "qemu" } else { "qemu-uncapped" }
    }

    fn decide(&mut self, view: &View) -> Decision {
        let synced = view.pass_ended && view.pass.last.dirty.is_some();
        if !(synced || view.whole_guest_seen) {
            return Decision::Continue;
        }
        let cap = self.config.max_bandwidth.unwrap_or(u64::MAX);
        let bandwidth = u128::from(view.link.goodput_bytes_per_s.min(cap));
        let threshold_bytes = bandwidth * self.config.downtime_limit.as_nanos() / 1_000_000_000;
        if view.residual.raw_bytes == 0 || u128::from(view.residual.raw_bytes) < threshold_bytes {
            Decision::SwitchOver
        } else {
            Decision::Continue
        }
    }

    fn encodings(&self) -> Encodings {
        Encodings { zero: true, ..Encodings::NONE }
    }

    fn paces_passes(&self) -> bool {
        false
    }

    fn limit_bytes_per_s(&self) -> Option<u64> {
        self.config.max_bandwidth
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.config.staging_bytes.min(configured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::testing::view;

    fn decides(config: QemuConfig, goodput_bytes_per_s: u64, raw_bytes: u64) -> Decision {
        let mut view = view(32_768);
        view.pass.ended = 3;
        view.whole_guest_seen = true;
        view.link.goodput_bytes_per_s = goodput_bytes_per_s;
        view.residual.raw_bytes = raw_bytes;
        Qemu::new(config).decide(&view)
    }

    #[test]
    fn what_crosses_in_less_than_the_downtime_limit_is_little_enough() {
        let uncapped = || QemuConfig { max_bandwidth: None, ..QemuConfig::default() };
        assert_eq!(decides(uncapped(), 1_000_000_000, 300_000_000), Decision::Continue);
        assert_eq!(decides(uncapped(), 1_000_000_000, 299_999_999), Decision::SwitchOver);
    }

    #[test]
    fn the_cap_bounds_the_rate_it_believes_in() {
        let capped = QemuConfig::default;
        let within = (h::QEMU_MOST_BYTES_PER_S as f64 * 0.3) as u64;
        assert_eq!(decides(capped(), 1_000_000_000, within + 4096), Decision::Continue);
        assert_eq!(decides(capped(), 1_000_000_000, within - 4096), Decision::SwitchOver);
        assert_eq!(Qemu::new(capped()).limit_bytes_per_s(), Some(128 << 20));
    }

    #[test]
    fn the_first_pass_must_be_over_and_the_bitmap_synced() {
        let mut view = view(32_768);
        view.link.goodput_bytes_per_s = 1_000_000_000;
        let mut qemu = Qemu::new(QemuConfig::default());
        assert_eq!(qemu.decide(&view), Decision::Continue, "what is dirty was not told");
        view.pass.last.dirty = Some(0);
        assert_eq!(qemu.decide(&view), Decision::SwitchOver);
        view.pass_ended = false;
        assert_eq!(qemu.decide(&view), Decision::Continue);
    }
}
