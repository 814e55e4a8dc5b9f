//! The guest stays, or comes back: it is made what it was before the move.

use super::guest::{self, GuestError, continue_guest};
use super::{Migration, SourceError};
use crate::fail;
use crate::hooks::Hook;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::{Forbidden, Phase, Source, SourceStep};
use crate::protocol::Refusal;
use crate::records;
use std::time::Duration;

/// Between two attempts to continue a guest whose QEMU does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl Migration {
    /// The destination refused after GO: the guest is ours again.
    pub(super) async fn take_back(mut self, why: String) -> Result<(), Forbidden> {
        self.sharing.hurry(false);
        // A GO that was not heard is not to be heard any more, once the guest runs here.
        self.session.abandon(Refusal::Done as u16, "taken back");
        self.end_pump().await;
        if self.owner == Source::Reclaiming {
            // A daemon that comes after us is not in doubt again.
            if let Err(error) = self.write(records::Phase::Stopped).await {
                tracing::error!(%error, "what was said of the guest is not on record yet");
            }
            self.owner.step(SourceStep::Settled)?;
        }
        let guest = self.return_guest().await;
        let outcome =
            Outcome::new(Ending::Failed, guest, format!("the destination could not run the guest: {why}"));
        self.entry.finish(Phase::Resumed, outcome);
        self.call_beside(Hook::AfterFailure);
        Ok(())
    }

    /// Something failed before GO left. The guest was always ours, and is as it was before.
    pub(super) async fn give_back(mut self, mut error: SourceError) {
        self.ebb = None;
        self.sharing.hurry(false);
        let code = match &error {
            SourceError::Cancelled(_) => Refusal::Cancelled,
            SourceError::NotConverged { .. } => Refusal::NotConverged,
            _ => Refusal::Other,
        };
        // A guest that stands does not wait for a better word.
        if error.is_qemu_closed()
            && !self.owner.holds()
            && let Some(why) = self.guest.why_closed().await
        {
            error = why.into();
        }
        if let Err(defect) = self.owner.step(SourceStep::Fail) {
            tracing::error!(%defect, %error, "the guest and its record are left as they are");
            return;
        }
        let guest = self.undo(code, &error).await;
        // Ceded was durable, but GO was not taken and never left.
        let phase = if self.entry.phase() == Phase::Ceded { Phase::Resumed } else { Phase::Failed };
        self.entry.finish(phase, error.outcome(guest));
        self.call_beside(Hook::AfterFailure);
    }

    pub(super) async fn undo(&mut self, code: Refusal, error: &SourceError) -> Whereabouts {
        self.end_pump().await;
        let guest = self.return_guest().await;
        self.session.close(code as u16, &error.to_string());
        guest
    }

    /// Makes the guest what it was before the migration, as long as that takes. QEMU's socket has been closed.
    async fn return_guest(&mut self) -> Whereabouts {
        let (timeout, socket) = (self.daemon.config.guest.qmp_timeout, self.arguments.qmp.clone());
        // What we did not stop is not ours to continue: somebody else may have wanted it stopped.
        let ours = self.owner == Source::Returned;
        let run = self.runs && ours;
        fail::point("source.returning");
        let mut result = self.guest.give_back(run, timeout).await;
        let guest = loop {
            let error = match result {
                Ok(()) if self.runs => break Whereabouts::RunsAtSource,
                Ok(()) => break Whereabouts::StoppedAtSource,
                Err(error) => error,
            };
            if matches!(error, GuestError::Ended) || guest::has_ended(&error, &socket).await {
                break Whereabouts::EndedAtSource;
            }
            if !run {
                tracing::warn!(%error, "the guest's QEMU was not left as it was found");
                break if self.runs { Whereabouts::RunsAtSource } else { Whereabouts::StoppedAtSource };
            }
            let stuck = format!("the guest could not be continued yet: {error}; it is tried again");
            tracing::error!(guest = %self.arguments.guest, "{stuck}");
            self.entry.set_outcome(Outcome::new(Ending::Failed, Whereabouts::StuckAtSource, stuck));
            tokio::time::sleep(RETRY_INTERVAL).await;
            result = match error.is_gone() {
                true => continue_guest(&socket, self.guest.process, timeout).await,
                false => self.guest.give_back(run, timeout).await,
            };
        };
        fail::point("source.continued");
        if ours && let Err(defect) = self.owner.step(SourceStep::Continued) {
            tracing::error!(%defect, "it was continued");
        }
        if ours || self.recorded {
            self.forget_record().await;
        }
        if let Some(process) = self.guest.process {
            // What could not be set back yet.
            let settings = self.daemon.settings.clone();
            tokio::task::spawn_local(async move { settings.set_back(process, timeout).await });
        }
        guest
    }
}
