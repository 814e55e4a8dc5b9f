//! The moment before the guest is stopped: what queues on the path would be part of its stop, and is let go ahead.

use super::{Migration, SourceError};

impl Migration {
    /// False: the link went down meanwhile, and it is to be copied on. True: the guest may be stopped at once.
    pub(super) async fn ebb(&mut self) -> Result<bool, SourceError> {
        if !self.runs || self.gone_on {
            // It stands already, and waits.
            return Ok(true);
        }
        let session = self.session.clone();
        let mut ebbing = std::pin::pin!(session.ebb());
        while self.down.is_none() {
            tokio::select! {
                biased;
                ebb = &mut ebbing => {
                    tracing::debug!(id = %self.entry.id.short(), ?ebb, "the guest may be stopped");
                    self.ebb = Some(ebb);
                    return Ok(true);
                }
                step = self.next() => drop(step?),
            }
        }
        Ok(false)
    }
}
