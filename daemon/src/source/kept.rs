//! A guest that somebody has said to stay here (`hikyaku resolve --here`), while its destination was out of reach.
//!
//! That one may come back with a record which says that the guest is being started there, and would be in doubt for ever.
//! It is told, until it says itself that it does not have the guest: by then that is durable there.

use super::{doubt, forget};
use crate::api::wire::Resolution;
use crate::awaited;
use crate::daemon::Daemon;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::protocol::{Answer, Note, Verdict};
use crate::records::Record;
use hikyaku_qemu::qmp::{Client, ClientConfig};
use std::rc::Rc;
use std::time::Duration;

/// Between two attempts to tell it, at first and at most.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// `record`: of a guest that is kept. Beside everything else, for as long as it takes.
pub fn tell(daemon: &Rc<Daemon>, record: Record) {
    let daemon = daemon.clone();
    tokio::task::spawn_local(async move {
        if daemon.config.peer(&record.peer).is_none() {
            // It may be a peer again when this daemon is started the next time.
            return tracing::warn!(guest = %record.guest, peer = %record.peer, "kept, and there is no such peer any more to be told");
        }
        tell_until_heard(&daemon, &record).await;
        forget(&daemon, &Record { resolved: false, ..record }).await;
    });
}

async fn tell_until_heard(daemon: &Daemon, record: &Record) {
    let mut again = AGAIN;
    loop {
        match doubt::ask_once(daemon, record).await {
            Ok(Answer::Pending) => {
                let kept = Note::Kept { migration: record.id };
                awaited::tell(&daemon.node, &record.peer, &kept);
                again = AGAIN;
            }
            Ok(Answer::Verdict(Verdict::Running)) if runs_here(daemon, record).await => {
                return until_settled(daemon, record).await;
            }
            // It has it, and nothing of it runs here.
            Ok(Answer::Verdict(Verdict::Running | Verdict::Paused)) => {
                return tracing::warn!(guest = %record.guest, peer = %record.peer, "said to be kept here, and the peer has it");
            }
            // It has refused it; or it has lost its records, and with them what it was to be told.
            Ok(Answer::Verdict(Verdict::Refused { .. }) | Answer::Unknown) => {
                return tracing::info!(guest = %record.guest, peer = %record.peer, "the peer knows that the guest was kept here");
            }
            Err(error) => {
                tracing::debug!(peer = %record.peer, %error, "to be told who keeps a guest");
                again = AGAIN_MOST.min(again * 2);
            }
        }
        tokio::time::sleep(again).await;
    }
}

/// As far as can be seen.
async fn runs_here(daemon: &Daemon, record: &Record) -> bool {
    if record.qemu.is_some_and(|process| !process.is_there()) {
        return false;
    }
    let config = ClientConfig { command_timeout: daemon.config.guest.qmp_timeout, ..ClientConfig::default() };
    let Ok(qmp) = Client::connect(&record.qmp, config).await else { return true };
    if record.qemu.is_some_and(|process| process.is_not_behind(&qmp)) {
        return true;
    }
    qmp.query_status().await.map_or(true, |state| state.lives())
}

/// Whoever said that the guest was here alone was mistaken. It is shown, by the daemons after this one too, until somebody says what has become of it.
async fn until_settled(daemon: &Daemon, record: &Record) {
    let (guest, peer) = (&record.guest, &record.peer);
    let desc =
        format!("somebody has said that {guest} is not {peer}'s (hikyaku resolve --here), and it runs there");
    let outcome = Outcome::new(Ending::Failed, Whereabouts::AtBoth, desc).advise(format!(
        "End one of its QEMUs now, and check its disks before the other goes on. Then say which one is left: hikyaku resolve {} --here or --there",
        record.id.short()
    ));
    tracing::error!(id = %record.id.short(), %guest, "{outcome}");
    let Some(entry) = daemon.registry.of(record.id) else { return };
    entry.unresolve();
    entry.set_outcome(outcome);
    let left = match entry.resolved().await {
        Resolution::Here => Whereabouts::AsItWas,
        Resolution::There => Whereabouts::LeftToDestination,
    };
    entry.set_outcome(Outcome::new(
        Ending::Failed,
        left,
        "it was at both, and somebody has ended one of them",
    ));
}
