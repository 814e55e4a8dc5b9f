//! Why a move failed: of what a session's end brings with it, what is seen first may be what follows from it.

use super::guest::GuestError;
use super::{Migration, SourceError};
use std::time::{Duration, Instant};

/// From a session's end until all that hear of it have, on the threads of this daemon.
const CAUSE_SOON: Duration = Duration::from_millis(500);

impl Migration {
    pub(super) async fn cause(&mut self, error: SourceError) -> SourceError {
        let soon = Instant::now() + CAUSE_SOON;
        let error = self.behind_qemu(error, soon).await;
        self.unanswered(error, soon).await
    }

    /// A QEMU whose socket was closed at our end gives up, too. A guest that stands does not wait for a better word.
    async fn behind_qemu(&mut self, error: SourceError, soon: Instant) -> SourceError {
        if !matches!(error, SourceError::Guest(GuestError::Failed(_))) || self.owner.holds() {
            return error;
        }
        let ended = async {
            loop {
                let heard = tokio::select! {
                    biased;
                    message = self.mailbox.next() => self.handle_peer(message).err(),
                    told = self.from_pump.recv() => self.handle_pump(told).err(),
                };
                if let Some(ended) = heard {
                    return ended;
                }
            }
        };
        let ended = tokio::time::timeout_at(soon.into(), ended).await;
        ended.ok().filter(|ended| !ended.is_qemu_closed()).unwrap_or(error)
    }

    /// A session that nobody answers, or that is refused, is gone without a word: mailbox and pump may see it first.
    async fn unanswered(&mut self, error: SourceError, soon: Instant) -> SourceError {
        match &error {
            SourceError::Pump(_) | SourceError::Closed { .. } if !self.answer.is_had() => {
                let answer = tokio::time::timeout_at(soon.into(), self.answer.next(&self.welcome));
                answer.await.ok().and_then(Result::err).unwrap_or(error)
            }
            _ => error,
        }
    }
}
