//! A guest that somebody has said to stay here (`hikyaku resolve --here`), while its destination was out of reach.
//!
//! That one may come back with a record which says that the guest is being started there, and would be in doubt for ever.
//! It is told, until it says itself that it does not have the guest: by then that is durable there.

use super::{doubt, forget};
use crate::awaited;
use crate::daemon::Daemon;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::protocol::{Answer, Note, Verdict};
use crate::records::Record;
use std::rc::Rc;
use std::time::Duration;

/// Between two attempts to tell it.
const AGAIN: Duration = Duration::from_secs(5);

/// `record`: of a guest that is kept. Beside everything else, for as long as it takes.
pub fn tell(daemon: &Rc<Daemon>, record: Record) {
    let daemon = daemon.clone();
    tokio::task::spawn_local(async move {
        loop {
            match doubt::ask_once(&daemon, &record).await {
                Ok(Answer::Pending) => {
                    let kept = Note::Kept { migration: record.id };
                    awaited::tell(&daemon.node, &record.peer, &kept);
                }
                Ok(Answer::Verdict(Verdict::Running | Verdict::Paused)) => {
                    warn(&daemon, &record);
                    break;
                }
                // It has refused it; or it has lost its records, and with them what it was to be told.
                Ok(Answer::Verdict(Verdict::Refused { .. }) | Answer::Unknown) => break,
                Err(error) => tracing::debug!(peer = %record.peer, %error, "to be told who keeps a guest"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        tracing::info!(guest = %record.guest, peer = %record.peer, "the peer knows that the guest was kept here");
        forget(&daemon, &Record { resolved: false, ..record }).await;
    });
}

/// Whoever said that the guest was here alone was mistaken.
fn warn(daemon: &Daemon, record: &Record) {
    let desc = format!(
        "somebody has said that {} is not {}'s (hikyaku resolve --here), and {} has it",
        record.guest, record.peer, record.peer
    );
    let outcome = Outcome::new(Ending::Failed, Whereabouts::AtBoth, desc)
        .advise("End one of its QEMUs now, and check its disks before the other goes on");
    tracing::error!(id = %record.id.short(), guest = %record.guest, "{outcome}");
    if let Some(entry) = daemon.registry.of(record.id) {
        entry.set_outcome(outcome);
    }
}
