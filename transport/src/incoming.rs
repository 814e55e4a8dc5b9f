//! A peer's question whether it may open a session.

use std::sync::Arc;

use crate::code;
use crate::error::AcceptError;
use crate::events::RxEvents;
use crate::link::LinkCore;
use crate::names::{PeerName, SessionId};
use crate::session::RxSession;

/// Answer it once, from any thread, before the opener's `Timeouts::open` passes. Dropping it refuses.
pub struct Incoming {
    link: Arc<LinkCore>,
    wire: u32,
    id: SessionId,
    answered: bool,
}

impl Incoming {
    pub(crate) fn new(link: Arc<LinkCore>, wire: u32, id: SessionId) -> Self {
        Self { link, wire, id, answered: false }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    pub fn peer(&self) -> &PeerName {
        &self.link.peer
    }

    /// Lets the session in. `credit_bytes` of memory stand ready: so much payload (with 64 bytes per chunk) may have
    /// arrived and not be applied. Give it several times bandwidth x round trip; below two of the link's largest chunks
    /// it is raised to that, or nothing could move, and below `Limits::early_bytes` to that, for as much may have come. On `Err` nothing of the session exists and no event will come.
    pub fn accept(
        mut self,
        reply: Vec<u8>,
        credit_bytes: u64,
        events: Arc<dyn RxEvents>,
    ) -> Result<RxSession, AcceptError> {
        let limit = self.link.agreed.message_bytes_max as usize;
        if reply.len() > limit {
            return Err(AcceptError::ReplyTooLong { bytes: reply.len(), limit });
        }
        self.answered = true;
        let agreed = &self.link.agreed;
        let least = agreed.early_bytes.max(2 * crate::session::charge(agreed.chunk_bytes_max as usize));
        match self.link.accept(self.wire, self.id, reply, credit_bytes.max(least), events) {
            Ok(account) => Ok(RxSession::new(self.link.clone(), account)),
            Err(Some(lost)) => Err(AcceptError::Lost(lost)),
            Err(None) => Err(AcceptError::Gone),
        }
    }

    /// The opener gets [`OpenError::Refused`](crate::OpenError::Refused) with these.
    pub fn refuse(mut self, code: u16, text: &str) {
        self.answered = true;
        self.link.refuse(self.wire, code, text);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.answered {
            self.link.refuse(self.wire, code::NOT_ANSWERED, "nobody answered");
        }
    }
}
