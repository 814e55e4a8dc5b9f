//! A controller's mailbox: what the transport tells of its session, except the bytes of the guest.
//!
//! Bounded, though the peer is authenticated: more messages than can wait end the session as a flood.

use hikyaku_transport::Lost;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Messages of at most 32 KiB that may wait. A controller handles one in microseconds, except while it waits for QMP.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
pub enum FromPeer {
    Message(Vec<u8>),
    /// The peer is not reached just now; the session lives on.
    LinkDown(Lost),
    LinkUp,
    Lost(Lost),
    Closed {
        code: u16,
        text: String,
    },
    /// More messages than can wait.
    Flood,
}

/// The transport's end. Never blocks.
#[derive(Debug)]
pub struct Slot {
    to: UnboundedSender<FromPeer>,
    waiting: Arc<AtomicUsize>,
}

/// The controller's end.
#[derive(Debug)]
pub struct Mailbox {
    from: UnboundedReceiver<FromPeer>,
    waiting: Arc<AtomicUsize>,
    over: bool,
}

pub fn mailbox() -> (Slot, Mailbox) {
    let (to, from) = unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Slot { to, waiting: waiting.clone() }, Mailbox { from, waiting, over: false })
}

impl Slot {
    pub fn message(&self, message: Vec<u8>) {
        match self.waiting.fetch_add(1, Ordering::Relaxed) {
            0..MAX_WAITING => self.put(FromPeer::Message(message)),
            MAX_WAITING => self.put(FromPeer::Flood),
            // The flood has been told of; nothing more is taken.
            _ => {}
        }
    }

    pub fn link_down(&self, why: Lost) {
        self.put(FromPeer::LinkDown(why));
    }

    pub fn link_up(&self) {
        self.put(FromPeer::LinkUp);
    }

    pub fn lost(&self, lost: Lost) {
        self.put(FromPeer::Lost(lost));
    }

    pub fn closed(&self, code: u16, text: String) {
        self.put(FromPeer::Closed { code, text });
    }

    fn put(&self, what: FromPeer) {
        // A controller that is gone has ended the migration.
        let _ = self.to.send(what);
    }
}

impl Mailbox {
    /// None, once: the transport dropped the session without a word. After the session's end it waits for ever.
    pub async fn next(&mut self) -> Option<FromPeer> {
        if self.over {
            return std::future::pending().await;
        }
        let what = self.from.recv().await;
        self.took(what.as_ref());
        what
    }

    /// What is there already. None: nothing, or the session has ended before.
    pub fn waiting(&mut self) -> Option<FromPeer> {
        if self.over {
            return None;
        }
        let what = self.from.try_recv().ok()?;
        self.took(Some(&what));
        Some(what)
    }

    fn took(&mut self, what: Option<&FromPeer>) {
        match what {
            Some(FromPeer::Message(_)) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            Some(FromPeer::LinkDown(_) | FromPeer::LinkUp) => {}
            _ => self.over = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_bounded_and_ends_the_session() {
        let (slot, mut mailbox) = mailbox();
        (0..10 * MAX_WAITING).for_each(|_| slot.message(vec![0]));
        for _ in 0..MAX_WAITING {
            assert!(matches!(mailbox.next().await, Some(FromPeer::Message(_))));
        }
        assert!(matches!(mailbox.next().await, Some(FromPeer::Flood)));
        let more = tokio::time::timeout(std::time::Duration::from_millis(10), mailbox.next()).await;
        assert!(more.is_err(), "after the end it waits");
    }

    #[tokio::test]
    async fn an_outage_is_not_the_end() {
        let (slot, mut mailbox) = mailbox();
        slot.link_down(Lost::Stopped);
        slot.message(vec![1]);
        slot.link_up();
        slot.lost(Lost::Stopped);
        assert!(matches!(mailbox.next().await, Some(FromPeer::LinkDown(_))));
        assert!(matches!(mailbox.next().await, Some(FromPeer::Message(_))));
        assert!(matches!(mailbox.next().await, Some(FromPeer::LinkUp)));
        assert!(matches!(mailbox.next().await, Some(FromPeer::Lost(_))));
    }

    #[tokio::test]
    async fn any_number_passes_if_it_is_read() {
        let (slot, mut mailbox) = mailbox();
        for _ in 0..10 * MAX_WAITING {
            slot.message(vec![0]);
            assert!(matches!(mailbox.next().await, Some(FromPeer::Message(_))));
        }
        slot.closed(7, "enough".into());
        assert!(matches!(mailbox.next().await, Some(FromPeer::Closed { code: 7, .. })));
    }
}
