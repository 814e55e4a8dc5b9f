//! A daemon that finds `Starting` on record finishes it: the guest is ours, and was perhaps not yet continued. So does one
//! whose QEMU stopped answering while it started the guest.
//!
//! Refusing is allowed only if the guest cannot have run here: QEMU itself says that it never loaded all of it. A QEMU that
//! cannot be asked may have run the guest, and then the source's copy is stale: that is said, and asked again.
//!
//! A hook that the guest waits for may not have come to its end when the daemon before this one did: it is called again.

use crate::api::wire::Resolution;
use crate::daemon::Daemon;
use crate::hooks::{self, Hook, HookError};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::{self, Destination, DestinationStep, Forbidden};
use crate::process::ProcessId;
use crate::protocol::Verdict;
use crate::records::{Phase, Record};
use crate::registry::Entry;
use hikyaku_qemu::qmp::{Client, ClientConfig, QmpError};
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to see what became of the guest.
const INTERVAL: Duration = Duration::from_millis(200);
/// A QEMU whose stream was cut notices at once; one that still waits after this will never load.
const NEVER_LOADS_AFTER: Duration = Duration::from_secs(10);
/// Between two calls of a hook that fails.
const HOOK_AGAIN: Duration = Duration::from_secs(5);

/// Whether the guest may have to wait for a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Yes,
    NoMore,
    /// Its source runs it: it is not to be run here.
    ForGood,
}

const KEPT: &str = "its source keeps it, as somebody has said there (hikyaku resolve --here)";

enum Seen {
    /// It is as it was to be.
    Arrived,
    /// All of it is here and stands, and may have to wait for a hook.
    Loaded,
    /// It has been told to run.
    Told,
    NeverLoaded(String),
    /// It was here, and its QEMU is gone.
    Ended,
    Unclear(String),
}

/// Sees that the guest runs (or stands, as asked), and records it; or refuses it, if it never got here whole. QEMU's QMP
/// socket must be free. What is returned is durable.
pub async fn restart_starting(
    daemon: &Daemon,
    entry: &Arc<Entry>,
    record: &Record,
    mut owner: Destination,
    mut held: Held,
) -> Result<Verdict, Forbidden> {
    let begun = tokio::time::Instant::now();
    let mut said = String::new();
    // A person who has looked.
    let mut told = None;
    let mut wait = INTERVAL;
    // To run.
    let mut ordered = false;
    let (step, phase, outcome, record) = loop {
        if entry.is_kept_at_source() {
            held = Held::ForGood;
        }
        let seen = match told {
            // A QEMU that hangs may run it when it wakes: whoever says that the guest is not here has to end it.
            Some(Resolution::There) => match record.qemu.filter(ProcessId::is_there) {
                Some(process) => {
                    told = None;
                    entry.unresolve();
                    Ok(Seen::Unclear(format!(
                        "it was said not to be here, but its QEMU is: end {process} first"
                    )))
                }
                None => Ok(Seen::NeverLoaded("somebody has said that it is not here".into())),
            },
            // QEMU has the last word, if it can be asked.
            Some(Resolution::Here) => {
                let seen = see(daemon, record, &mut owner, false, held).await;
                match seen {
                    Ok(Seen::Arrived) => Ok(Seen::Arrived),
                    // Whatever answers on its socket now.
                    _ if is_gone(record) => Ok(Seen::Ended),
                    Err(_) => Ok(Seen::Arrived),
                    other => {
                        told = None;
                        entry.unresolve();
                        other.map(|seen| match seen {
                            Seen::NeverLoaded(why) => Seen::Unclear(why),
                            seen => seen,
                        })
                    }
                }
            }
            None if held == Held::ForGood && is_gone(record) => Ok(Seen::NeverLoaded(KEPT.into())),
            None => see(daemon, record, &mut owner, begun.elapsed() > NEVER_LOADS_AFTER, held).await,
        };
        let seen = match seen {
            Ok(Seen::Loaded) => match hold(daemon, entry, record).await {
                Ok(()) => {
                    (held, wait) = (Held::NoMore, INTERVAL);
                    continue;
                }
                Err(error) => {
                    wait = HOOK_AGAIN;
                    Ok(Seen::Unclear(format!(
                        "it waits for a hook, which is called again until it succeeds: {error}"
                    )))
                }
            },
            Ok(Seen::Told) if std::mem::replace(&mut ordered, true) => {
                Ok(Seen::Unclear("it has been told to run, and does not run yet".into()))
            }
            seen => seen,
        };
        match seen.unwrap_or_else(|error| Seen::Unclear(error.to_string())) {
            Seen::Arrived => {
                entry.all_is_here();
                let guest = if record.run {
                    Whereabouts::RunsAtDestination
                } else {
                    Whereabouts::StoppedAtDestination
                };
                let outcome = Outcome::new(Ending::Moved, guest, format!("arrived from {}", record.peer));
                break (
                    DestinationStep::Seen,
                    ownership::Phase::Running,
                    outcome,
                    Record { phase: Phase::Arrived, ..record.clone() },
                );
            }
            Seen::Ended => {
                let desc = format!("arrived from {}, as somebody has said", record.peer);
                break (
                    DestinationStep::Seen,
                    ownership::Phase::Running,
                    Outcome::new(Ending::Moved, Whereabouts::EndedAtDestination, desc),
                    Record { phase: Phase::Arrived, run: false, ..record.clone() },
                );
            }
            Seen::NeverLoaded(why) => {
                let outcome = Outcome::new(Ending::Failed, Whereabouts::ReturnsToSource, why.clone());
                break (
                    DestinationStep::NeverLoaded,
                    ownership::Phase::Refused,
                    outcome,
                    Record { phase: Phase::Refused, why, ..record.clone() },
                );
            }
            Seen::Unclear(why) if why != said => {
                let desc = match held {
                    Held::ForGood => why.clone(),
                    _ => format!("the guest is this host's, but whether it runs cannot be seen: {why}"),
                };
                tracing::error!(guest = %record.guest, %why, "a guest that was being started cannot be seen");
                entry.set_outcome(
                    Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, desc)
                        .advise(format!(
                            "Look at its QEMU, and ask {0}: hikyaku status {1}. If somebody has let it go on there (hikyaku resolve --here), end its QEMU here: {0} says so by itself then, \
                             or you do (hikyaku resolve {1} --there). Otherwise the copy there must not be started",
                            record.peer,
                            record.id.short()
                        )),
                );
                said = why;
            }
            Seen::Unclear(_) | Seen::Loaded | Seen::Told => {}
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            resolution = entry.resolved(), if told.is_none() => told = Some(resolution),
        }
    };
    owner.step(step)?;
    // Until it is durable the answer to the source stays Pending.
    while let Err(error) = daemon.records.write(&record).await {
        tracing::error!(%error, "the end of a migration cannot be recorded; trying again");
        tokio::time::sleep(NEVER_LOADS_AFTER).await;
    }
    if owner == Destination::Refusing {
        owner.step(DestinationStep::RefusedDurable)?;
    }
    let verdict = match record.phase {
        Phase::Refused => Verdict::Refused { why: record.why.clone() },
        _ if record.run => Verdict::Running,
        _ => Verdict::Paused,
    };
    entry.finish(phase, outcome);
    let hook = if phase == ownership::Phase::Running { Hook::AfterSwitchover } else { Hook::AfterFailure };
    let behind = hooks::behind_orphans(&daemon.config.hooks, Hook::BeforeSwitchover, entry);
    hooks::call_beside(&daemon.config.hooks, hook, entry, &record.qmp, Some(behind));
    Ok(verdict)
}

async fn hold(daemon: &Daemon, entry: &Arc<Entry>, record: &Record) -> Result<(), HookError> {
    let hooks = &daemon.config.hooks;
    if !hooks.hold.contains(&Hook::BeforeSwitchover) {
        return Ok(());
    }
    match hooks::call(hooks, Hook::BeforeSwitchover, entry, &record.qmp) {
        Some(hook) => {
            hooks::orphans_end(hooks, Hook::BeforeSwitchover, entry).await;
            hook.run_for(entry).await
        }
        None => Ok(()),
    }
}

async fn see(
    daemon: &Daemon,
    record: &Record,
    owner: &mut Destination,
    late: bool,
    held: Held,
) -> Result<Seen, QmpError> {
    let timeout = daemon.config.guest.qmp_timeout;
    let qmp =
        Client::connect(&record.qmp, ClientConfig { command_timeout: timeout, ..ClientConfig::default() })
            .await?;
    if record.qemu.is_some_and(|process| process.is_not_behind(&qmp)) {
        return Ok(Seen::Unclear(
            "another QEMU answers on its socket; the one that had the guest has ended".into(),
        ));
    }
    let state = qmp.query_status().await?;
    // It has been moved on since.
    if state.status == "postmigrate" {
        return Ok(Seen::Arrived);
    }
    if state.lives() {
        // The daemon before this one may not have come to it.
        if let Err(error) = qmp.announce_self().await {
            tracing::warn!(%error, "the guest's arrival is not announced to its networks");
        }
        return Ok(Seen::Arrived);
    }
    let migration = qmp.query_migrate().await?;
    match migration.status.as_deref() {
        Some("completed") if held == Held::ForGood => {
            let process = record.qemu.map_or_else(|| "its QEMU".into(), |process| process.to_string());
            Ok(Seen::Unclear(format!("{KEPT}; so it is not run here: end {process}")))
        }
        Some("completed") if held == Held::Yes => Ok(Seen::Loaded),
        Some("completed") if !record.run => Ok(Seen::Arrived),
        Some("completed") => match owner.step(DestinationStep::Run) {
            Ok(()) => qmp.cont().await.map(|()| Seen::Told),
            Err(defect) => Ok(Seen::Unclear(defect.to_string())),
        },
        Some("failed") => Ok(never_loaded(migration.error_desc.as_deref().unwrap_or("it does not say why"))),
        _ if late => Ok(never_loaded("QEMU still waits for it")),
        other => Ok(Seen::Unclear(format!("QEMU's migration is {}", other.unwrap_or("none")))),
    }
}

/// The process that had the guest.
fn is_gone(record: &Record) -> bool {
    record.qemu.is_some_and(|process| !process.is_there())
}

fn never_loaded(why: &str) -> Seen {
    Seen::NeverLoaded(format!("the destination's daemon ended while QEMU loaded the guest: {why}"))
}
