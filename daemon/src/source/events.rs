//! What the transport tells of a session, sorted: acknowledgements and room to the pump, the rest to the controller.

use super::pump::ToPump;
use crate::inbox::Inbox;
use crate::mailbox::{Mailbox, Slot, mailbox};
use hikyaku_transport::{Lost, TxEvents};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct PeerEvents {
    inbox: Arc<Inbox<ToPump>>,
    room_told: Arc<AtomicBool>,
    controller: Slot,
}

impl PeerEvents {
    pub fn new(inbox: Arc<Inbox<ToPump>>) -> (PeerEvents, Mailbox) {
        let (controller, mailbox) = mailbox();
        (PeerEvents { inbox, room_told: Arc::default(), controller }, mailbox)
    }
}

impl TxEvents for PeerEvents {
    fn acked(&self, cumulative: u64, ranges: &[(u64, u64)]) {
        self.inbox.push(ToPump::Acked { cumulative, ranges: ranges.to_vec() });
    }

    fn room(&self) {
        // One that waits is enough.
        if !self.room_told.swap(true, Ordering::AcqRel) {
            self.inbox.push(ToPump::Room(self.room_told.clone()));
        }
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
