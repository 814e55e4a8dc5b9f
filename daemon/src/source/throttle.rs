//! Slowing a guest down so that it dirties less: QEMU's auto-converge, made to take what it is told and no more.
//!
//! QEMU has no order for it. Its auto-converge acts at a bitmap sync, at least a second after the last one that counted, when more
//! was dirtied than `throttle-trigger-threshold` percent of what was sent, each second time; it takes `cpu-throttle-initial`
//! percent first, then `cpu-throttle-increment` more, `max-cpu-throttle` at most. So:
//!
//! | | threshold | initial | increment | max | what it takes |
//! |---|---|---|---|---|---|
//! | from the beginning | 100 | 1 | 1 | 1 | nothing, or 1 % |
//! | at `share` | 1 | `share` | 99 | `share` | `share`, less as well as more, two syncs later |
//!
//! The capability cannot be changed while a migration is under way: it is on from the beginning, and only where the deadline may
//! come to this. QEMU lifts it when the migration ends, whatever its end. What is really taken, `query-migrate` says.

use super::guest::{GuestError, SourceGuest};
use serde_json::{Value, json};

/// The capability.
pub const AUTO_CONVERGE: &str = "auto-converge";
/// What is set here, to be set back. The last one came with QEMU 5.1, the first with 5.0.
pub const PARAMETERS: [&str; 5] = [
    "throttle-trigger-threshold",
    "cpu-throttle-initial",
    "cpu-throttle-increment",
    "max-cpu-throttle",
    "cpu-throttle-tailslow",
];

impl SourceGuest {
    /// Whether its QEMU can be told how much to take. (3.1 and later.)
    pub(super) fn can_be_throttled(&self) -> bool {
        self.knows(AUTO_CONVERGE) && self.parameter("max-cpu-throttle").is_some()
    }

    /// With the capability on, and before the migration: it is to act when it is told to.
    pub(super) async fn hold_throttle(&self) -> Result<(), GuestError> {
        self.set_throttle(100, 1, 1).await
    }

    /// Takes this share of the guest's time, at QEMU's second bitmap sync from now; whether it does is `query-migrate`'s to say.
    pub(super) async fn throttle(&self, percent: u8) -> Result<(), GuestError> {
        self.set_throttle(1, percent.clamp(1, 99), 99).await
    }

    async fn set_throttle(&self, threshold: u8, most: u8, increment: u8) -> Result<(), GuestError> {
        let wanted = json!({
            "throttle-trigger-threshold": threshold,
            "cpu-throttle-initial": most,
            "cpu-throttle-increment": increment,
            "max-cpu-throttle": most,
            "cpu-throttle-tailslow": false,
        });
        let Value::Object(mut wanted) = wanted else { return Ok(()) };
        wanted.retain(|name, _| self.parameter(name).is_some());
        self.set_parameters(wanted).await
    }
}

/// As QEMU counts it.
pub fn percent(share: f32) -> u8 {
    (share * 100.0).round().clamp(1.0, 99.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_percents_that_qemu_takes() {
        assert_eq!([0.0, 0.2, 0.2 + 0.1 + 0.1, 0.995].map(percent), [1, 20, 40, 99]);
    }
}
