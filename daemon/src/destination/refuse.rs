//! The guest is not taken; or nobody can tell yet whether it is.

use super::apply::ToApply;
use super::{DestinationError, Held, Reception, part, restart_starting, say};
use crate::fail;
use crate::hooks::Hook;
use crate::ownership::{Destination, DestinationStep, Phase};
use crate::protocol::Verdict;
use crate::records;
use std::time::Duration;

/// Between two attempts to write a record to a disk that does not take it.
pub(super) const RECORD_INTERVAL: Duration = Duration::from_secs(5);

impl Reception {
    /// QEMU was told to run the guest and does not say whether it does: neither refused nor taken until that is seen.
    pub(super) async fn find_out(self, error: DestinationError) {
        tracing::error!(guest = %self.arguments.guest, %error, "looking until it is known");
        self.inbox.push(ToApply::End);
        let record = self.record(records::Phase::Starting, "");
        let Reception { daemon, entry, guest, session, mut mailbox, owner, .. } = self;
        // QEMU speaks to one client at a time.
        drop(guest);
        match restart_starting(&daemon, &entry, &record, owner, Held::NoMore).await {
            Ok(verdict) => say(&session, verdict),
            Err(defect) => tracing::error!(%defect, "the guest and its record are left as they are"),
        }
        part(session, &mut mailbox).await;
    }

    /// The guest is not taken, and never will be under this id: durable before it is said.
    pub(super) async fn refuse(mut self, error: DestinationError) {
        let outcome = error.outcome(self.go.is_some());
        if let Err(defect) = self.owner.step(DestinationStep::Refuse) {
            tracing::error!(%defect, %error, "the guest and its record are left as they are");
            return;
        }
        if let Some(writing) = self.starting.take() {
            // The two must not overtake each other.
            let _ = writing.await;
        }
        self.inbox.push(ToApply::End);
        // The apply thread may be waiting for QEMU to take more.
        self.way_back.shutdown();
        if self.owner == Destination::Refusing {
            self.refuse_durably(&outcome.desc).await;
        }
        self.session.close(error.code() as u16, &outcome.desc);
        self.entry.finish(Phase::Refused, outcome);
        self.call_beside(Hook::AfterFailure);
        // Last: one that hangs answers late, and nobody is to wait for that, nor be told until then that the guest may be started.
        let Reception { daemon, guest, _receives: receives, .. } = self;
        drop(receives);
        if daemon.config.guest.quit_refused {
            guest.quit().await;
        }
    }

    /// What was let go is refused for good. One that was not is not ours to speak of; a source that asks all the same is answered then.
    async fn refuse_durably(&mut self, why: &str) {
        fail::point("destination.refusing");
        let refused = self.record(records::Phase::Refused, why);
        while let Err(error) = self.daemon.records.write(&refused).await {
            tracing::error!(%error, "the refusal cannot be recorded, so it is not said");
            tokio::time::sleep(RECORD_INTERVAL).await;
        }
        fail::point("destination.refused");
        match self.owner.step(DestinationStep::RefusedDurable) {
            Ok(()) => say(&self.session, Verdict::Refused { why: why.to_owned() }),
            Err(defect) => tracing::error!(%defect, "the source will have to ask"),
        }
    }
}
