//! CloudNet's Smart Stop, as a baseline: Xen 3's loop, ended at a local minimum of what is left.
//!
//! Passes go on while they gain: until one during which the guest dirtied at least as many pages as were sent. From then on a window of
//! passes is looked back on, and once it is full, the first pass that leaves fewer pages than each in the window is the last one. Xen's
//! own rules hold beside it. The window's length is assumed, see [`super::historical`].

use std::collections::VecDeque;

use crate::precopy::historical as h;
use crate::precopy::xen::dirtied;
use crate::precopy::{Decision, Encodings, Policy, View, Xen3, Xen3Config};

/// The knobs of [`SmartStop`].
#[derive(Debug, Clone)]
pub struct SmartStopConfig {
    /// Passes that are looked back on.
    pub window_passes: usize,
    /// The loop it ends.
    pub xen: Xen3Config,
}

impl Default for SmartStopConfig {
    fn default() -> Self {
        SmartStopConfig { window_passes: h::SMART_STOP_WINDOW_PASSES, xen: Xen3Config::default() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct SmartStop {
    window_passes: usize,
    xen: Xen3,
    /// A pass has gained nothing.
    crossed: bool,
    /// Pages left after each of the last passes, from the one that gained nothing on.
    left: VecDeque<u64>,
}

impl SmartStop {
    pub fn new(config: SmartStopConfig) -> Self {
        SmartStop {
            window_passes: config.window_passes.max(1),
            xen: Xen3::new(config.xen),
            crossed: false,
            left: VecDeque::new(),
        }
    }

    /// The pass that has just ended left fewer pages than each of a whole window before it, since passes ceased to gain.
    fn is_local_minimum(&mut self, sent: u64, left: u64) -> bool {
        let whole = self.left.len() == self.window_passes;
        let minimum = whole && self.left.iter().all(|before| left < *before);
        self.crossed |= left >= sent;
        if self.crossed {
            if whole {
                self.left.pop_front();
            }
            self.left.push_back(left);
        }
        minimum
    }
}

impl Policy for SmartStop {
    fn name(&self) -> &'static str {
        "smart-stop"
    }

    fn decide(&mut self, view: &View) -> Decision {
        if !view.pass_ended {
            return Decision::Continue;
        }
        let enough = self.xen.is_enough(view);
        if self.is_local_minimum(view.pass.last.sent, dirtied(view)) || enough {
            Decision::SwitchOver
        } else {
            Decision::Continue
        }
    }

    fn encodings(&self) -> Encodings {
        Encodings::NONE
    }

    fn paces_passes(&self) -> bool {
        false
    }

    fn skips_redirtied(&self) -> bool {
        true
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.xen.staging_bytes(configured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::Pass;
    use crate::precopy::testing::view;

    /// What each pass sends and leaves; after which one it stops.
    fn stops_after(passes: &[(u64, u64)]) -> Option<u32> {
        let mut policy = SmartStop::new(SmartStopConfig::default());
        let mut view = view(262_144);
        for (ended, (sent, left)) in (1..).zip(passes) {
            view.pass.ended = ended;
            view.pass.carried = *sent;
            view.pass.last = Pass { sent: *sent, skipped: 0, dirty: Some(*left), duration_ns: 1_000_000_000 };
            if policy.decide(&view) == Decision::SwitchOver {
                return Some(ended);
            }
        }
        None
    }

    #[test]
    fn as_long_as_passes_gain_it_goes_on() {
        assert_eq!(stops_after(&[(262_144, 60_000), (60_000, 20_000), (20_000, 9000), (9000, 6000)]), None);
    }

    #[test]
    fn after_a_pass_without_gain_a_window_is_filled_and_the_first_minimum_ends_it() {
        let mut passes = vec![(262_144, 9000), (9000, 5000), (5000, 5200), (5200, 4900), (4900, 4800)];
        assert_eq!(stops_after(&passes), None);
        passes.push((4800, 4700));
        assert_eq!(stops_after(&passes), Some(6));
    }

    #[test]
    fn what_lies_before_the_window_is_forgotten() {
        let mut passes = vec![(262_144, 9000), (9000, 4000), (4000, 4100)];
        passes.extend([(4100, 6000), (6000, 6100), (6100, 6200), (6200, 6300), (6300, 6400)]);
        assert_eq!(stops_after(&passes), None);
        passes.push((6400, 6150));
        assert_eq!(stops_after(&passes), Some(9));
    }

    #[test]
    fn xen_s_own_rules_hold() {
        assert_eq!(stops_after(&[(262_144, 300), (300, 49), (49, 60)]), Some(3));
        let rising: Vec<_> = (0..40).map(|pass| (262_144, 262_144 + pass)).collect();
        assert_eq!(stops_after(&rising), Some(29));
    }
}
