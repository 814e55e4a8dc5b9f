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

pub fn engine(config: &Config, workers: &Workers, arguments: &MigrateArguments, hold: Hold) -> Source {
    let delta = match arguments.delta {
        wire::Delta::Off => Delta::Off,
        wire::Delta::Always => Delta::Always { base_budget_bytes: config.memory.bases as usize },
    };
    let source = SourceConfig {
        staging_bytes: config.memory.staging as usize,
        encode_jobs: 2 * workers.count(),
        delta,
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
