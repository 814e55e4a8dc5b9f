//! `check`: how a move would go, asked of the guest's QEMU and of the path. Nothing of the guest is changed.

use super::link::{self, LinkArguments, LinkReport};
use crate::daemon::{Daemon, check_limit, check_name};
use crate::estimate::{ASSUMED_RATIO, Estimate, Known, estimate};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::source::{self, Survey, survey};
use hikyaku_engine::precopy::AdaptiveConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What the destination would have to be asked, and is not: it takes a guest, or none.
const NOT_CHECKED: &str =
    "whether a QEMU awaits the guest there, of the same machine type and size (hikyaku receive)";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckArguments {
    pub peer: String,
    pub guest: String,
    pub qmp: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_s: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckReport {
    pub guest: String,
    pub peer: String,
    pub runs: bool,
    pub ram_bytes: u64,
    /// Of it, what its QEMU has in memory, or its balloon leaves it. Not there: that cannot be told, and all is reckoned with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub used_bytes: Option<u64>,
    /// In the second in which it was watched. Not there: its QEMU cannot tell (before 5.2), and none is reckoned with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dirty_bytes_per_s: Option<u64>,
    /// Encoded bytes per byte of its memory: nobody knows before.
    pub assumed_ratio: f64,
    pub goodput_bytes_per_s: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_rtt_us: Option<u64>,
    /// Migrations that share the link now.
    pub sessions: usize,
    pub estimate: Estimate,
    /// The estimate in a sentence.
    pub words: String,
    pub not_checked: Vec<String>,
}

/// Looks at guest and path at the same time. `Err`: for this reason it could not be moved now.
pub async fn report(daemon: &Daemon, arguments: CheckArguments) -> Result<CheckReport, Outcome> {
    check_name(&arguments.guest)?;
    check_limit(arguments.limit_bytes_per_s)?;
    if let Some(entry) = daemon.registry.unfinished().iter().find(|entry| entry.guest == arguments.guest) {
        let desc = format!("guest \"{}\" is on its way (migration {})", arguments.guest, entry.id.short());
        return Err(Outcome::new(Ending::Other, Whereabouts::AsItWas, desc));
    }
    let timeout = daemon.config.guest.qmp_timeout;
    let looked = async {
        let untouched = |error: source::SourceError| error.outcome(Whereabouts::Untouched);
        survey(&arguments.qmp, timeout, false).await.map_err(untouched)
    };
    let peer = LinkArguments { peer: arguments.peer.clone() };
    let (link, survey) = tokio::try_join!(link::report(daemon, peer), looked)?;
    let known = known(daemon, &arguments, &link, &survey);
    let estimate = estimate(&known);
    daemon.estimates.borrow_mut().remember(&arguments.guest, &arguments.peer, &estimate);
    Ok(CheckReport {
        words: estimate.words(),
        guest: arguments.guest,
        peer: arguments.peer,
        runs: survey.runs,
        ram_bytes: survey.ram_bytes,
        used_bytes: survey.used_bytes,
        dirty_bytes_per_s: survey.dirty_bytes_per_s,
        assumed_ratio: known.ratio,
        goodput_bytes_per_s: known.goodput_bytes_per_s,
        min_rtt_us: link.min_rtt_us,
        sessions: link.sessions,
        estimate,
        not_checked: vec![NOT_CHECKED.to_owned()],
    })
}

fn known(daemon: &Daemon, arguments: &CheckArguments, link: &LinkReport, survey: &Survey) -> Known {
    // What others move over it now is what this one would have beside them, by and large.
    let goodput_bytes_per_s = link.bytes_per_s.min(arguments.limit_bytes_per_s.unwrap_or(u64::MAX));
    Known {
        ram_bytes: survey.ram_bytes,
        used_bytes: survey.used_bytes.unwrap_or(survey.ram_bytes),
        dirty_bytes_per_s: survey.dirty_bytes_per_s,
        ratio: ASSUMED_RATIO,
        goodput_bytes_per_s,
        min_rtt: Duration::from_micros(link.min_rtt_us.or(link.rtt_us).unwrap_or(0)),
        terms: daemon.experience.borrow().terms(&arguments.peer, survey.ram_bytes),
        sync_interval: daemon.config.guest.sync_interval,
        downtime: arguments
            .downtime_ms
            .map_or(AdaptiveConfig::default().downtime_target, Duration::from_millis),
        deadline: arguments.deadline_ms.map(Duration::from_millis),
    }
}
