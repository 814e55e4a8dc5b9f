//! What was asked for, in the engine's words.

use super::guest::Hold;
use crate::api::wire::{self, MigrateArguments, OnDeadline};
use crate::config::Config;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::workers::Workers;
use hikyaku_engine::precopy::{self, Adaptive, AdaptiveConfig, Common};
use hikyaku_engine::{Delta, HoldBack, Policy, Source, SourceConfig};
use std::time::Duration;

/// What `--policy` takes.
pub const POLICIES: [&str; 7] = precopy::NAMES;
const ADAPTIVE: &str = "adaptive";

/// What is taken of a guest's time at most, unless the operator says otherwise: a fifth of it is left.
const THROTTLE_MAX_PERCENT: u8 = 80;

/// The stop that is aimed at.
/// Who decides is the policy that can slow a guest down.
pub fn is_adaptive(arguments: &MigrateArguments) -> bool {
    policy_name(arguments) == ADAPTIVE
}

pub fn downtime(arguments: &MigrateArguments) -> Duration {
    arguments.downtime_ms.map_or(AdaptiveConfig::default().downtime_target, Duration::from_millis)
}

/// The guest's time may be taken from it.
pub fn may_throttle(arguments: &MigrateArguments) -> bool {
    arguments.on_deadline == OnDeadline::Throttle
}

/// The command has said it already, most of it; programs have not read it.
pub fn check(arguments: &MigrateArguments) -> Result<(), Outcome> {
    let usage = |desc: String| Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc));
    if policy(arguments).is_none() {
        let name = arguments.policy.as_deref().unwrap_or_default();
        return usage(format!("no policy \"{name}\"; there are: {}", POLICIES.join(", ")));
    }
    if arguments.throttle_max_percent.is_some_and(|percent| !(1..=99).contains(&percent)) {
        return usage("throttle_max_percent is 1 to 99".into());
    }
    match may_throttle(arguments) {
        // The others are what they were, and their authors had nothing of the kind.
        true if !is_adaptive(arguments) => {
            usage("only the policy \"adaptive\" slows a guest down (on_deadline throttle)".into())
        }
        true if arguments.raw => usage(
            "a guest whose stream is relayed raw is not slowed down: what is left of it is not known".into(),
        ),
        false if arguments.throttle_max_percent.is_some() => {
            usage("throttle_max_percent (--throttle-max) goes with on_deadline throttle".into())
        }
        _ => Ok(()),
    }
}

/// None: no such policy.
pub fn engine(
    config: &Config,
    workers: &Workers,
    arguments: &MigrateArguments,
    hold: Hold,
) -> Option<Source> {
    let delta = match arguments.delta {
        wire::Delta::Off => Delta::Off,
        wire::Delta::Auto => match config.memory.bases {
            None => Delta::Auto,
            Some(bytes) => Delta::Always { base_budget_bytes: usize::try_from(bytes).unwrap_or(usize::MAX) },
        },
    };
    let source = SourceConfig {
        staging_bytes: config.memory.staging as usize,
        workers: workers.count(),
        encode_jobs: 2 * workers.count(),
        delta,
        dictionary_slots: config.memory.dictionary_slots(),
        hold_back: match hold {
            Hold::Ack => HoldBack::Ack,
            Hold::Gate => HoldBack::Rate(downtime(arguments)),
        },
        idle_pause: config.guest.sync_interval,
        ..SourceConfig::default()
    };
    Some(Source::new(source, policy(arguments)?))
}

fn policy_name(arguments: &MigrateArguments) -> &str {
    arguments.policy.as_deref().unwrap_or(ADAPTIVE)
}

/// The one place where a name becomes a policy. None: there is none of this name.
fn policy(arguments: &MigrateArguments) -> Option<Box<dyn Policy>> {
    Some(match policy_name(arguments) {
        ADAPTIVE => {
            let most = arguments.throttle_max_percent.unwrap_or(THROTTLE_MAX_PERCENT);
            Box::new(Adaptive::new(AdaptiveConfig {
                downtime_target: downtime(arguments),
                // The controller's, whoever decides: `deadline.rs`.
                deadline: Duration::MAX,
                // Asked only when the controller says that it has come.
                on_deadline: precopy::OnDeadline::Throttle,
                throttle_most: f32::from(most) / 100.0,
                ..AdaptiveConfig::default()
            }))
        }
        // None of the others gives up by itself: the controller's deadline holds for them, too.
        name => {
            let common = Common { downtime_target: downtime(arguments), ..Common::default() };
            precopy::by_name(name, &common)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(more: &str) -> Result<(), Outcome> {
        let text = format!(r#"{{"guest": "w", "qmp": "/q", "to": "o"{more}}}"#);
        check(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn an_unknown_policy_is_refused_with_the_names_of_all() {
        let desc = asked(r#", "policy": "best""#).unwrap_err().desc;
        assert!(POLICIES.iter().all(|name| desc.contains(name)), "{desc}");
        for name in POLICIES {
            asked(&format!(r#", "policy": "{name}""#)).unwrap();
        }
        asked("").unwrap();
    }

    #[test]
    fn a_guest_is_slowed_down_where_that_means_something() {
        asked(r#", "on_deadline": "throttle", "throttle_max_percent": 50"#).unwrap();
        for more in [
            r#", "on_deadline": "throttle", "throttle_max_percent": 100"#,
            r#", "on_deadline": "throttle", "throttle_max_percent": 0"#,
            r#", "on_deadline": "throttle", "policy": "xen-3""#,
            r#", "on_deadline": "throttle", "raw": true"#,
            r#", "throttle_max_percent": 50"#,
        ] {
            assert_eq!(asked(more).unwrap_err().ending, Ending::Usage, "{more}");
        }
    }
}
