//! A daemon that finds `Starting` on record finishes it: the guest is ours, and was perhaps not yet continued. So does one
//! whose QEMU stopped answering while it started the guest.
//!
//! Refusing is allowed only if the guest cannot have run here: QEMU itself says that it never loaded all of it. A QEMU that
//! cannot be asked may have run the guest, and then the source's copy is stale: that is said, and asked again.

use crate::daemon::Daemon;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership;
use crate::protocol::Verdict;
use crate::records::{Phase, Record};
use crate::registry::Entry;
use hikyaku_qemu::qmp::{Client, ClientConfig, QmpError};
use std::time::Duration;

/// Between two attempts to see what became of the guest.
const INTERVAL: Duration = Duration::from_millis(200);
/// A QEMU whose stream was cut notices at once; one that still waits after this will never load.
const NEVER_LOADS_AFTER: Duration = Duration::from_secs(10);

enum Seen {
    /// It is as it was to be.
    Arrived,
    NeverLoaded(String),
    Unclear(String),
}

/// Sees that the guest runs (or stands, as asked), and records it; or refuses it, if it never got here whole. QEMU's QMP
/// socket must be free. What is returned is durable.
pub async fn restart_starting(daemon: &Daemon, entry: &Entry, record: &Record) -> Verdict {
    let begun = tokio::time::Instant::now();
    let mut said = String::new();
    let (phase, outcome, record) = loop {
        let seen = see(daemon, record, begun.elapsed() > NEVER_LOADS_AFTER).await;
        match seen.unwrap_or_else(|error| Seen::Unclear(error.to_string())) {
            Seen::Arrived => {
                let guest = if record.run {
                    Whereabouts::RunsAtDestination
                } else {
                    Whereabouts::StoppedAtDestination
                };
                let outcome = Outcome::new(Ending::Moved, guest, format!("arrived from {}", record.peer));
                break (
                    ownership::Phase::Running,
                    outcome,
                    Record { phase: Phase::Arrived, ..record.clone() },
                );
            }
            Seen::NeverLoaded(error) => {
                let why = format!("the destination's daemon ended while QEMU loaded the guest: {error}");
                let outcome = Outcome::new(Ending::Failed, Whereabouts::ReturnsToSource, why.clone());
                break (
                    ownership::Phase::Refused,
                    outcome,
                    Record { phase: Phase::Refused, why, ..record.clone() },
                );
            }
            Seen::Unclear(why) if why != said => {
                let desc = format!("the guest is this host's, but whether it runs cannot be seen: {why}");
                tracing::error!(guest = %record.guest, %why, "a guest that was being started cannot be seen");
                entry.set_outcome(
                    Outcome::new(Ending::InDoubt, Whereabouts::StoppedAtDestination, desc)
                        .advise("Look at its QEMU; the source's copy must not be started"),
                );
                said = why;
            }
            Seen::Unclear(_) => {}
        }
        tokio::time::sleep(INTERVAL).await;
    };
    // Until it is durable the answer to the source stays Pending.
    while let Err(error) = daemon.records.write(&record).await {
        tracing::error!(%error, "the end of a migration cannot be recorded; trying again");
        tokio::time::sleep(NEVER_LOADS_AFTER).await;
    }
    let verdict = match record.phase {
        Phase::Refused => Verdict::Refused { why: record.why },
        _ if record.run => Verdict::Running,
        _ => Verdict::Paused,
    };
    entry.finish(phase, outcome);
    verdict
}

async fn see(daemon: &Daemon, record: &Record, late: bool) -> Result<Seen, QmpError> {
    let timeout = daemon.config.guest.qmp_timeout;
    let qmp =
        Client::connect(&record.qmp, ClientConfig { command_timeout: timeout, ..ClientConfig::default() })
            .await?;
    if qmp.query_status().await?.running {
        return Ok(Seen::Arrived);
    }
    let migration = qmp.query_migrate().await?;
    match migration.status.as_deref() {
        Some("completed") if !record.run => Ok(Seen::Arrived),
        Some("completed") => {
            qmp.cont().await?;
            Ok(Seen::Unclear("it has been told to run".into()))
        }
        Some("failed") => {
            Ok(Seen::NeverLoaded(migration.error_desc.unwrap_or_else(|| "it does not say why".into())))
        }
        _ if late => Ok(Seen::NeverLoaded("QEMU still waits for it".into())),
        other => Ok(Seen::Unclear(format!("QEMU's migration is {}", other.unwrap_or("none")))),
    }
}
