//! What a daemon does first: finish what the one before it left unfinished.
//!
//! | record | the guest | what is done |
//! |---|---|---|
//! | `Stopped` | stopped here by us, ours | continue it, if it ran |
//! | `Ceded` | stopped here; perhaps the destination's | ask the destination until it answers |
//! | `Kept` | it is here, as somebody has said | tell the destination, until it has heard it |
//! | none, but settings | at the source, running | set QEMU's migration settings back |
//! | `Starting` | loaded here; perhaps running | see that it runs; `Arrived`, or `Refused` if it cannot |

use crate::api::wire::Role;
use crate::daemon::Daemon;
use crate::destination::{Held, restart_starting};
use crate::hooks::{self, Hook};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::{self, Destination, Forbidden, Source, SourceStep};
use crate::protocol::Verdict;
use crate::records::{self, Record, RecordError};
use crate::registry::Entry;
use crate::source::{
    GuestError, LEFT_COPY, STOPPED_COPY, Writing, continue_guest, doubt, forget, forget_behind, kept,
    stop_again_whoever_continues, stop_copy,
};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to continue a guest that is ours.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes up every unfinished migration. `Err`: a record cannot be read; the daemon must not run past it.
pub async fn take_up(daemon: &Rc<Daemon>) -> Result<(), RecordError> {
    // Before any of those that are taken up comes to be kept.
    for record in daemon.records.untold().await? {
        let desc = "somebody has said that it stays here (hikyaku resolve --here)";
        let outcome = Outcome::new(Ending::Failed, Whereabouts::AsItWas, desc);
        let entry = enter(daemon, &record, Role::Source, ownership::Phase::Ceded);
        entry.finish(ownership::Phase::Resumed, outcome);
        kept::tell(daemon, record);
    }
    let mut set = daemon.settings.all().await;
    for record in daemon.records.unfinished().await? {
        tracing::warn!(guest = %record.guest, id = %record.id, phase = ?record.phase, "left unfinished; taking it up");
        let its = record.qemu;
        set.retain(|process| Some(*process) != its);
        let (finishing, daemon) = (finish(daemon.clone(), record), daemon.clone());
        tokio::task::spawn_local(async move {
            finishing.await;
            if let Some(process) = its {
                daemon.settings.set_back(process, daemon.config.guest.qmp_timeout).await;
            }
        });
    }
    for process in set {
        let (settings, timeout) = (daemon.settings.clone(), daemon.config.guest.qmp_timeout);
        tokio::task::spawn_local(async move { settings.set_back(process, timeout).await });
    }
    Ok(())
}

async fn finish(daemon: Rc<Daemon>, record: Record) {
    if let Some(owner) = Source::found(record.phase) {
        if let Err(defect) = finish_source(&daemon, owner, record).await {
            tracing::error!(%defect, "the guest and its record are left as they are");
        }
    } else if let Some(owner) = Destination::found(record.phase) {
        let entry = enter(&daemon, &record, Role::Destination, ownership::Phase::Starting);
        if let Err(defect) = restart_starting(&daemon, &entry, &record, owner, Held::Yes).await {
            tracing::error!(%defect, "the guest and its record are left as they are");
        }
    }
}

async fn finish_source(daemon: &Rc<Daemon>, mut owner: Source, mut record: Record) -> Result<(), Forbidden> {
    if owner == Source::Returned {
        let entry = enter(daemon, &record, Role::Source, ownership::Phase::Stopped);
        let guest = keep(daemon, &entry, &record, owner, None).await?;
        let desc = "the daemon ended while the guest was stopped to be moved";
        entry.finish(ownership::Phase::Failed, Outcome::new(Ending::Failed, guest, desc));
        hooks::call_beside(&daemon.config.hooks, Hook::AfterFailure, &entry, &record.qmp, None);
        return Ok(());
    }
    let entry = enter(daemon, &record, Role::Source, ownership::Phase::Ceded);
    let timeout = daemon.config.guest.qmp_timeout;
    let verdict = tokio::select! {
        verdict = doubt::ask(daemon, &entry, &record) => verdict,
        () = stop_again_whoever_continues(&record.qmp, record.qemu, timeout) => unreachable!("it never ends"),
    };
    let whereabouts = match verdict {
        Verdict::Refused { why } => {
            owner.step(doubt::step(&entry))?;
            let mut writing = None;
            if owner == Source::Reclaiming {
                // A daemon that comes after us is not in doubt again.
                record = Record { phase: records::Phase::Stopped, resolved: true, ..record };
                writing = write_soon(daemon, &record).await;
                owner.step(SourceStep::Settled)?;
            }
            let guest = keep(daemon, &entry, &record, owner, writing).await?;
            let desc = format!("the destination did not take the guest: {why}");
            entry.finish(ownership::Phase::Resumed, Outcome::new(Ending::Failed, guest, desc));
            hooks::call_beside(&daemon.config.hooks, Hook::AfterFailure, &entry, &record.qmp, None);
            return Ok(());
        }
        Verdict::Running => Whereabouts::RunsAtDestination,
        Verdict::Paused => Whereabouts::StoppedAtDestination,
    };
    owner.step(SourceStep::Arrived)?;
    if let Err(error) = stop_copy(&record.qmp, record.qemu, timeout).await {
        tracing::debug!(%error, "the copy here is not seen");
    }
    owner.step(SourceStep::Released)?;
    forget(daemon, &record).await;
    let advice = if entry.told().is_some() { LEFT_COPY } else { STOPPED_COPY };
    let outcome = doubt::moved(&entry, &record.peer, whereabouts).advise(advice);
    entry.finish(ownership::Phase::Moved, outcome);
    hooks::call_beside(&daemon.config.hooks, Hook::AfterSwitchover, &entry, &record.qmp, None);
    Ok(())
}

fn enter(daemon: &Daemon, record: &Record, role: Role, phase: ownership::Phase) -> Arc<Entry> {
    daemon.registry.take_up(record.id, &record.guest, role, &record.peer, phase)
}

/// What is returned is still on its way to the disk, and the guest does not wait for that any longer.
async fn write_soon(daemon: &Rc<Daemon>, record: &Record) -> Option<Writing> {
    let (records, record) = (daemon.records.clone(), record.clone());
    let mut writing = tokio::task::spawn_local(async move { records.write(&record).await });
    match tokio::time::timeout(daemon.config.guest.qmp_timeout, &mut writing).await {
        Ok(Ok(Ok(()))) => None,
        Ok(error) => {
            tracing::error!(?error, "what was said of the guest is not on record");
            None
        }
        Err(_) => Some(writing),
    }
}

/// The guest is ours again: it runs if it ran before. Tries until it does; if this daemon ends before, the next one goes on.
async fn keep(
    daemon: &Rc<Daemon>,
    entry: &Entry,
    record: &Record,
    mut owner: Source,
    mut writing: Option<Writing>,
) -> Result<Whereabouts, Forbidden> {
    let mut said = String::new();
    loop {
        let error = match record.run {
            true => {
                let timeout = daemon.config.guest.qmp_timeout;
                continue_guest(&record.qmp, record.qemu, timeout).await.err()
            }
            false => None,
        };
        match error {
            None => {
                owner.step(SourceStep::Continued)?;
                forget_behind(daemon, writing.take(), record.clone()).await;
                return Ok(match record.run {
                    true => Whereabouts::RunsAtSource,
                    false => Whereabouts::StoppedAtSource,
                });
            }
            Some(error @ (GuestError::Ended | GuestError::NotHeld(_))) => {
                // Left as it is, the record would act on whatever QEMU answers on that socket one day.
                tracing::error!(guest = %record.guest, %error, "there is no stopped guest to continue");
                forget_behind(daemon, writing.take(), record.clone()).await;
                return Ok(match error {
                    GuestError::Ended => Whereabouts::EndedAtSource,
                    _ => Whereabouts::Untouched,
                });
            }
            Some(error) if error.to_string() != said => {
                said = error.to_string();
                tracing::error!(guest = %record.guest, %error, "the guest cannot be continued yet; trying again");
                let desc = format!("the guest cannot be continued yet: {error}");
                entry.set_outcome(Outcome::new(Ending::Failed, Whereabouts::StuckAtSource, desc));
            }
            Some(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}
