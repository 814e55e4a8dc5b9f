//! When a QEMU ran its guest, in its own words: its RESUME and STOP events, by the host's clock.
//!
//! Heartbeats show that a guest worked; these show that it might have. QEMU says RESUME before the guest's first instruction, and STOP
//! after its last.

use std::ops::Range;
use std::time::Duration;

use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Since the epoch. The last one may be without an end.
    spans: Vec<(Duration, Option<Duration>)>,
}

impl Runs {
    /// Any message of QEMU's.
    pub fn hear(&mut self, message: &Value) {
        let (Some(name), at) = (message["event"].as_str(), &message["timestamp"]) else { return };
        let of = |unit: &str| at[unit].as_u64().unwrap_or(0);
        let at = Duration::from_secs(of("seconds")) + Duration::from_micros(of("microseconds"));
        match (name, self.spans.last_mut()) {
            ("RESUME", Some((_, None))) => {}
            ("RESUME", _) => self.spans.push((at, None)),
            ("STOP", Some((_, end @ None))) => *end = Some(at),
            _ => {}
        }
    }

    /// A time in which both ran their guests.
    pub fn overlap(&self, other: &Runs) -> Option<Range<Duration>> {
        let end = |end: &Option<Duration>| end.unwrap_or(Duration::MAX);
        self.spans.iter().find_map(|(began, ended)| {
            other.spans.iter().find_map(|(other_began, other_ended)| {
                let both = *began.max(other_began)..end(ended).min(end(other_ended));
                (both.start < both.end).then_some(both)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs(events: &[(&str, u64)]) -> Runs {
        let mut runs = Runs::default();
        for (name, ms) in events {
            let timestamp =
                json!({ "seconds": 1_700_000_000u64 + ms / 1000, "microseconds": ms % 1000 * 1000 });
            runs.hear(&json!({ "event": name, "timestamp": timestamp }));
        }
        runs
    }

    #[test]
    fn two_that_ran_one_after_the_other_did_not_run_together() {
        let here = runs(&[("RESUME", 0), ("STOP", 1500)]);
        assert_eq!(here.overlap(&runs(&[("RESUME", 1600)])), None);
        assert_eq!(here.overlap(&runs(&[])), None);
    }

    #[test]
    fn two_that_ran_together_are_found_though_both_stand_by_now() {
        let here =
            runs(&[("RESUME", 0), ("STOP", 1000), ("MIGRATION", 1100), ("RESUME", 2000), ("STOP", 2300)]);
        let there = runs(&[("RESUME", 1050), ("STOP", 1900)]);
        assert_eq!(here.overlap(&there), None);
        let both = here.overlap(&runs(&[("RESUME", 1050), ("STOP", 2001)])).unwrap();
        assert_eq!(both.end - both.start, Duration::from_millis(1));
        assert!(here.overlap(&runs(&[("RESUME", 2100)])).is_some());
    }
}
