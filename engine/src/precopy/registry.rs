//! The policies by the names that users, the laboratory and the simulator choose them by.

use std::time::Duration;

use crate::precopy::{
    Adaptive, AdaptiveConfig, OnDeadline, Policy, Qemu, QemuConfig, SmartStop, SmartStopConfig, Xen3,
    Xen3Config, Xen3Limiter, Xen46, Xen46Config,
};

/// Every policy that ships, the default first.
pub const NAMES: [&str; 7] =
    ["adaptive", "xen-3", "xen-3-limited", "xen-4.6", "qemu", "qemu-uncapped", "smart-stop"];

/// What is asked of a policy, whichever it is. A policy whose original has no such thing does not heed it.
#[derive(Debug, Clone)]
pub struct Common {
    /// The stop the user asked for: `adaptive`, and QEMU's downtime limit.
    pub downtime_target: Duration,
    /// `adaptive` alone: none of the others gives up, so whoever runs them has a deadline of his own.
    pub deadline: Duration,
    pub on_deadline: OnDeadline,
}

impl Default for Common {
    fn default() -> Self {
        let AdaptiveConfig { downtime_target, deadline, on_deadline, .. } = AdaptiveConfig::default();
        Common { downtime_target, deadline, on_deadline }
    }
}

/// The policy of this name; None if it is none of [`NAMES`].
pub fn by_name(name: &str, common: &Common) -> Option<Box<dyn Policy>> {
    let Common { downtime_target, deadline, on_deadline } = *common;
    let qemu = QemuConfig { downtime_limit: downtime_target, ..QemuConfig::default() };
    Some(match name {
        "adaptive" => Box::new(Adaptive::new(AdaptiveConfig {
            downtime_target,
            deadline,
            on_deadline,
            ..AdaptiveConfig::default()
        })),
        "xen-3" => Box::new(Xen3::new(Xen3Config::default())),
        "xen-3-limited" => {
            let limiter = Some(Xen3Limiter::default());
            Box::new(Xen3::new(Xen3Config { limiter, ..Xen3Config::default() }))
        }
        "xen-4.6" => Box::new(Xen46::new(Xen46Config::default())),
        "qemu" => Box::new(Qemu::new(qemu)),
        "qemu-uncapped" => Box::new(Qemu::new(QemuConfig { max_bandwidth: None, ..qemu })),
        "smart-stop" => Box::new(SmartStop::new(SmartStopConfig::default())),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_policy_that_answers_to_it() {
        for name in NAMES {
            assert_eq!(by_name(name, &Common::default()).map(|policy| policy.name()), Some(name));
        }
        assert!(by_name("post-copy", &Common::default()).is_none());
    }
}
