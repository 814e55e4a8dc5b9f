//! What the transport tells of a session, sorted: chunks to the apply thread, the rest to the controller.

use super::apply::ToApply;
use crate::inbox::Inbox;
use hikyaku_transport::{Lost, RxEvents};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Messages that wait to be handled; a peer that sends more has lost its senses.
const MAX_WAITING: usize = 64;

#[derive(Debug)]
pub enum FromSource {
    Message(Vec<u8>),
    Lost(Lost),
    Closed {
        code: u16,
        text: String,
    },
    /// More messages than can wait.
    Flood,
}

pub struct SourceEvents {
    inbox: Arc<Inbox<ToApply>>,
    controller: UnboundedSender<FromSource>,
    waiting: Arc<AtomicUsize>,
}

/// The controller's end.
pub struct Mailbox {
    from: UnboundedReceiver<FromSource>,
    waiting: Arc<AtomicUsize>,
    over: bool,
}

impl SourceEvents {
    pub fn new(inbox: Arc<Inbox<ToApply>>) -> (SourceEvents, Mailbox) {
        let (controller, from) = unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mailbox = Mailbox { from, waiting: waiting.clone(), over: false };
        (SourceEvents { inbox, controller, waiting }, mailbox)
    }

    fn tell(&self, what: FromSource) {
        let _ = self.controller.send(what);
    }
}

impl Mailbox {
    /// None, once: the transport dropped the session without a word. After the session's end it waits for ever.
    pub async fn next(&mut self) -> Option<FromSource> {
        if self.over {
            return std::future::pending().await;
        }
        let what = self.from.recv().await;
        match what {
            Some(FromSource::Message(_)) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            _ => self.over = true,
        }
        what
    }
}

impl RxEvents for SourceEvents {
    fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>) {
        self.inbox.push(ToApply::Chunk { seq, after, payload });
    }

    fn message(&self, message: Vec<u8>) {
        match self.waiting.fetch_add(1, Ordering::Relaxed) {
            0..MAX_WAITING => self.tell(FromSource::Message(message)),
            MAX_WAITING => self.tell(FromSource::Flood),
            _ => {}
        }
    }

    fn lost(&self, lost: Lost) {
        self.tell(FromSource::Lost(lost));
    }

    fn closed(&self, code: u16, text: String) {
        self.tell(FromSource::Closed { code, text });
    }
}
