//! A carriage's own session carries nothing: it lives as long as the carriage does, and is watched at both ends.

use crate::daemon::Daemon;
use crate::mailbox::{Mailbox, Slot, mailbox};
use hikyaku_transport::{LinkError, Lost, OpenError, RxEvents, SessionId, Share, TxEvents, TxSession};
use std::sync::Arc;

pub struct Watch(pub Slot);

/// A peer that could not be asked, or does not want to.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Such a session with a peer, and what the peer answers.
pub async fn ask_peer(
    daemon: &Daemon,
    peer: &str,
    id: SessionId,
    hello: Vec<u8>,
    share: Share,
) -> Result<(TxSession, Vec<u8>, Mailbox), AskError> {
    let mut again = false;
    loop {
        let (slot, mailbox) = mailbox();
        let link = daemon.link_to(peer).await?;
        match link.open_sharing(id, hello.clone(), Arc::new(Watch(slot)), share).await {
            // A link that stood for long may be one to a daemon that is gone, which shows when it is used.
            Err(OpenError::Lost(lost)) if !again => {
                tracing::info!(%peer, %lost, "asked again, by a new link");
                again = true;
            }
            opened => {
                let (session, reply) = opened?;
                return Ok((session, reply, mailbox));
            }
        }
    }
}

/// What both ends are told alike.
macro_rules! to_the_carriage {
    () => {
        fn message(&self, message: Vec<u8>) {
            self.0.message(message);
        }

        fn link_down(&self, why: Lost) {
            self.0.link_down(why);
        }

        fn link_up(&self) {
            self.0.link_up();
        }

        fn lost(&self, lost: Lost) {
            self.0.lost(lost);
        }

        fn closed(&self, code: u16, text: String) {
            self.0.closed(code, text);
        }
    };
}

impl TxEvents for Watch {
    fn acked(&self, _cumulative: u64, _ranges: &[(u64, u64)]) {}
    fn room(&self) {}
    to_the_carriage!();
}

impl RxEvents for Watch {
    fn chunk(&self, _seq: u64, _after: u64, _payload: Vec<u8>) {}
    to_the_carriage!();
}
