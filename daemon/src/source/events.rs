//! What the transport tells of a session, sorted: acknowledgements and room to the pump, the rest to the controller.

use super::pump::ToPump;
use crate::inbox::Inbox;
use hikyaku_transport::{Lost, TxEvents};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Messages that wait to be handled; a peer that sends more has lost its senses.
const MAX_WAITING: usize = 1024;

#[derive(Debug)]
pub enum FromPeer {
    Message(Vec<u8>),
    Lost(Lost),
    Closed {
        code: u16,
        text: String,
    },
    /// More messages than can wait.
    Flood,
}

pub struct PeerEvents {
    inbox: Arc<Inbox<ToPump>>,
    room_told: Arc<AtomicBool>,
    controller: UnboundedSender<FromPeer>,
    waiting: Arc<AtomicUsize>,
}

/// The controller's end.
pub struct Mailbox {
    from: UnboundedReceiver<FromPeer>,
    waiting: Arc<AtomicUsize>,
}

impl PeerEvents {
    pub fn new(inbox: Arc<Inbox<ToPump>>) -> (PeerEvents, Mailbox) {
        let (controller, from) = unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let events = PeerEvents { inbox, room_told: Arc::default(), controller, waiting: waiting.clone() };
        (events, Mailbox { from, waiting })
    }

    fn tell(&self, what: FromPeer) {
        // A controller that is gone has ended the migration.
        let _ = self.controller.send(what);
    }
}

impl Mailbox {
    /// None: the transport dropped the session without a word.
    pub async fn next(&mut self) -> Option<FromPeer> {
        let what = self.from.recv().await?;
        if matches!(what, FromPeer::Message(_)) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Some(what)
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
        match self.waiting.fetch_add(1, Ordering::Relaxed) {
            0..MAX_WAITING => self.tell(FromPeer::Message(message)),
            MAX_WAITING => self.tell(FromPeer::Flood),
            _ => {}
        }
    }

    fn lost(&self, lost: Lost) {
        self.tell(FromPeer::Lost(lost));
    }

    fn closed(&self, code: u16, text: String) {
        self.tell(FromPeer::Closed { code, text });
    }
}
