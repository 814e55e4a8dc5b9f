//! What was asked for, in the engine's words.

use super::guest::Hold;
use crate::api::wire::{self, MigrateArguments};
use crate::config::Config;
use crate::workers::Workers;
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig, Xen3, Xen3Config};
use hikyaku_engine::{Delta, HoldBack, Policy, Source, SourceConfig};
use std::time::Duration;

/// The stop that is aimed at.
pub fn downtime(arguments: &MigrateArguments) -> Duration {
    arguments.downtime_ms.map_or(AdaptiveConfig::default().downtime_target, Duration::from_millis)
}

/// `dictionary_slots`: what the peer keeps.
pub fn engine(
    config: &Config,
    workers: &Workers,
    arguments: &MigrateArguments,
    hold: Hold,
    dictionary_slots: u16,
) -> Source {
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
        dictionary_slots: config.memory.dictionary_slots().min(dictionary_slots),
        hold_back: match hold {
            Hold::Ack => HoldBack::Ack,
            Hold::Gate => HoldBack::Rate(downtime(arguments)),
        },
        idle_pause: config.guest.sync_interval,
        ..SourceConfig::default()
    };
    Source::new(source, policy(arguments))
}

fn policy(arguments: &MigrateArguments) -> Box<dyn Policy> {
    match arguments.policy {
        wire::Policy::Adaptive => Box::new(Adaptive::new(AdaptiveConfig {
            downtime_target: downtime(arguments),
            // The controller's, whoever decides: `deadline.rs`.
            deadline: Duration::MAX,
            ..AdaptiveConfig::default()
        })),
        wire::Policy::Xen3 => Box::new(Xen3::new(Xen3Config::default())),
    }
}
