//! What the transport tells of a session, sorted: chunks to the apply thread, the rest to the controller.

use super::apply::ToApply;
use crate::inbox::Inbox;
use crate::mailbox::{Mailbox, Slot, mailbox};
use hikyaku_transport::{Lost, RxEvents};
use std::sync::Arc;

pub struct SourceEvents {
    inbox: Arc<Inbox<ToApply>>,
    controller: Slot,
}

impl SourceEvents {
    pub fn new(inbox: Arc<Inbox<ToApply>>) -> (SourceEvents, Mailbox) {
        let (controller, mailbox) = mailbox();
        (SourceEvents { inbox, controller }, mailbox)
    }
}

impl RxEvents for SourceEvents {
    fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>) {
        self.inbox.push(ToApply::Chunk { seq, after, payload });
    }

    fn message(&self, message: Vec<u8>) {
        self.controller.message(message);
    }

    fn link_down(&self, why: Lost) {
        self.controller.link_down(why);
    }

    fn link_up(&self) {
        self.controller.link_up();
    }

    fn lost(&self, lost: Lost) {
        self.controller.lost(lost);
    }

    fn closed(&self, code: u16, text: String) {
        self.controller.closed(code, text);
    }
}
