//! What a receiver keeps of a session: credit given and used, what was applied, and whom to tell.
//!
//! A chunk may come more than once (a connection died after it came and before the sender knew); it is given to the user
//! once.
//!
//! Invariant: payload received and not applied, with its overhead, never passes the credit; a peer that sends more has
//! broken the protocol.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::error::Lost;
use crate::events::RxEvents;
use crate::names::SessionId;
use crate::ranges::RangeSet;
use crate::session::{CHUNK_OVERHEAD_BYTES, charge};
use crate::wire::control::{Message, RANGES_MAX};

pub struct RxAccount {
    pub wire: u32,
    pub id: SessionId,
    credit_bytes: u64,
    gaps_max: usize,
    /// Charged bytes that came.
    charged: AtomicU64,
    /// Payload bytes that came.
    received: AtomicU64,
    /// Charged bytes that may come, absolute.
    allowed: AtomicU64,
    arrived: Mutex<RangeSet>,
    applied: Mutex<Applied>,
    /// Read-locked while a handler runs, so that nothing follows `lost` or `closed`. Written only by the control task,
    /// which no handler waits for.
    events: RwLock<Option<Arc<dyn RxEvents>>>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Applied {
    set: RangeSet,
    /// Something was applied since the last acknowledgement.
    news: bool,
    too_many_gaps: bool,
}

impl RxAccount {
    pub fn new(
        wire: u32,
        id: SessionId,
        credit_bytes: u64,
        gaps_max: usize,
        events: Arc<dyn RxEvents>,
    ) -> Self {
        Self {
            wire,
            id,
            credit_bytes,
            gaps_max,
            charged: AtomicU64::new(0),
            received: AtomicU64::new(0),
            allowed: AtomicU64::new(credit_bytes),
            arrived: Mutex::default(),
            applied: Mutex::default(),
            events: RwLock::new(Some(events)),
            closed: AtomicBool::new(false),
        }
    }

    /// A chunk came, on a lane thread.
    pub fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>) -> Result<(), String> {
        if seq == 0 {
            return Err(format!("session {}: chunks are numbered from 1", self.id));
        }
        {
            let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            if !arrived.insert(seq) {
                return Ok(());
            }
            if arrived.gaps() > self.gaps_max {
                return Err(format!("session {}: too many numbers were left out", self.id));
            }
        }
        let cost = charge(payload.len());
        let charged = self.charged.fetch_add(cost, Ordering::Relaxed) + cost;
        if charged > self.allowed.load(Ordering::Relaxed) {
            return Err(format!("session {}: more was sent than credit was given for", self.id));
        }
        self.received.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.tell(|events| events.chunk(seq, after, payload));
        Ok(())
    }

    pub fn message(&self, message: Vec<u8>) {
        self.tell(|events| events.message(message));
    }

    /// True: an acknowledgement is due that was not before.
    pub fn applied(&self, seq: u64, payload_bytes: u64) -> bool {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.set.insert(seq);
        applied.too_many_gaps |= applied.set.gaps() > self.gaps_max;
        self.allowed.fetch_add(payload_bytes + CHUNK_OVERHEAD_BYTES, Ordering::Relaxed);
        !std::mem::replace(&mut applied.news, true)
    }

    /// The acknowledgement that is due, if one is.
    pub fn ack(&self) -> Result<Option<Message>, String> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied.too_many_gaps {
            return Err(format!("session {}: too many numbers were left out", self.id));
        }
        if !std::mem::take(&mut applied.news) {
            return Ok(None);
        }
        Ok(Some(Message::Ack {
            session: self.wire,
            cumulative: applied.set.cumulative(),
            credit: self.allowed.load(Ordering::Relaxed),
            ranges: applied.set.above().take(RANGES_MAX).collect(),
        }))
    }

    /// The acknowledgement is to be said in any case, on a new connection.
    pub fn acknowledge_again(&self) {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).news = true;
    }

    /// What came, applied or not: everything up to a number, and ranges above it.
    pub fn arrived(&self) -> (u64, Vec<(u64, u64)>) {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        (arrived.cumulative(), arrived.above().collect())
    }

    pub fn credit_bytes(&self) -> u64 {
        self.credit_bytes
    }

    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Closed by its user: no further event. False: it was closed before.
    pub fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closed by the peer.
    pub fn closed_by_peer(&self, code: u16, text: String) {
        if let Some(events) = self.end() {
            events.closed(code, text);
        }
    }

    pub fn link_down(&self, why: &Lost) {
        self.tell(|events| events.link_down(why.clone()));
    }

    pub fn link_up(&self) {
        self.tell(|events| events.link_up());
    }

    pub fn lost(&self, lost: Lost) {
        if let Some(events) = self.end() {
            events.lost(lost);
        }
    }

    /// Waits for handlers that run; gives the events to whoever ends the session first, unless its user did.
    fn end(&self) -> Option<Arc<dyn RxEvents>> {
        let events = self.events.write().unwrap_or_else(PoisonError::into_inner).take();
        if self.close() { events } else { None }
    }

    fn tell(&self, what: impl FnOnce(&dyn RxEvents)) {
        if self.is_closed() {
            return;
        }
        if let Some(events) = &*self.events.read().unwrap_or_else(PoisonError::into_inner) {
            what(&**events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf;

    impl RxEvents for Deaf {
        fn chunk(&self, _: u64, _: u64, _: Vec<u8>) {}
        fn message(&self, _: Vec<u8>) {}
        fn lost(&self, _: Lost) {}
        fn closed(&self, _: u16, _: String) {}
    }

    fn account(credit_bytes: u64) -> RxAccount {
        RxAccount::new(1, SessionId([0; 16]), credit_bytes, 3, Arc::new(Deaf))
    }

    #[test]
    fn credit_is_what_was_given_plus_what_was_applied() {
        let account = account(2 * charge(100));
        account.chunk(1, 0, vec![0; 100]).unwrap();
        account.chunk(2, 0, vec![0; 100]).unwrap();
        account.applied(2, 100);
        account.chunk(3, 0, vec![0; 100]).unwrap();
        assert!(account.chunk(4, 0, vec![0; 100]).is_err());
    }

    #[test]
    fn empty_chunks_are_not_free() {
        let account = account(1000);
        let taken = (1..).take_while(|seq| account.chunk(*seq, 0, Vec::new()).is_ok()).count();
        assert_eq!(taken, 15);
    }

    #[test]
    fn a_chunk_that_comes_twice_is_charged_and_given_once() {
        let account = account(charge(100));
        account.chunk(1, 0, vec![0; 100]).unwrap();
        account.chunk(1, 0, vec![0; 100]).unwrap();
        assert_eq!((account.received_bytes(), account.arrived()), (100, (1, vec![])));
    }

    #[test]
    fn numbers_left_out_are_bounded_as_they_come() {
        let account = account(10_000);
        let came: Vec<_> = (1..=5).map(|n| account.chunk(2 * n, 0, Vec::new()).is_ok()).collect();
        assert_eq!(came, [true, true, true, false, false]);
    }

    #[test]
    fn an_acknowledgement_is_due_once() {
        let account = account(1000);
        assert!(account.applied(1, 10));
        assert!(!account.applied(3, 10));
        let credit = 1000 + 2 * charge(10);
        let ack = Message::Ack { session: 1, cumulative: 1, credit, ranges: vec![(3, 3)] };
        assert_eq!(account.ack(), Ok(Some(ack)));
        assert_eq!(account.ack(), Ok(None));
        assert!(account.applied(2, 10));
    }

    #[test]
    fn numbers_left_out_on_purpose_are_bounded() {
        let account = account(1000);
        for seq in [2, 4, 6] {
            account.applied(seq, 0);
        }
        assert!(account.ack().is_ok());
        account.applied(8, 0);
        assert!(account.ack().is_err());
    }
}
