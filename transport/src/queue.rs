//! The one queue of a link from which every lane takes its next chunk, and the accounts of the sessions in it.
//!
//! No chunk belongs to a lane before the lane takes it, so a lane that is slow takes less and holds nobody up. Whose
//! chunk is next is [`Schedule`]'s to say, and whether it may be taken yet, [`Throttle`]'s; a session that has nothing to
//! send, no credit, or to wait for its limit, is passed over.
//!
//! A chunk stays here until it is acknowledged. What a lane had when its connection died is taken again, with the same
//! number and the same bytes, before anything new.
//!
//! Invariants: a session's chunks are taken for the first time in the order they were queued; a chunk is charged once,
//! however often it is taken, and taken only when its charge fits the session's credit; `charged` never passes `credit`.
//! One mutex per link guards it all: it is held for a few dozen instructions per chunk, and never while an event handler
//! runs.

mod figures;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::account::{Account, NeverSent};
use crate::error::SendError;
use crate::events::TxEvents;
use crate::lane::waker::Waker;
use crate::meter::GoodputMeter;
use crate::ranges::RangeSet;
use crate::schedule::{Priority, Schedule};
use crate::session::Chunk;
use crate::throttle::{Holder, HostLimit, Slice, Throttle, session_bucket, wire_bytes};
use crate::under_way::{self, Goes};
use crate::wire::frame::{HEADER_BYTES, TAG_BYTES};

/// One connection of one lane, for as long as it lives: who has a chunk in flight. Never used twice on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carrier(u64);

/// What a lane took.
pub struct Taken {
    pub session: u32,
    pub chunk: Chunk,
    /// What may leave first of its frame.
    pub slice: Slice,
    /// To be told that there is room, once the queue is not locked.
    pub room: Option<Arc<dyn TxEvents>>,
}

/// What an acknowledgement changed.
pub struct Acked {
    pub events: Arc<dyn TxEvents>,
    pub room: bool,
}

pub use figures::Figures;

pub struct TxQueue {
    state: Mutex<State>,
    wakers: Mutex<Vec<Arc<Waker>>>,
    carriers: AtomicU64,
    low_bytes: u64,
}

#[derive(Default)]
struct State {
    sessions: HashMap<u32, Account>,
    schedule: Schedule,
    throttle: Throttle,
    /// Nothing is taken: what the peer has of what was in flight is not known.
    paused: bool,
    padding: Padding,
    /// Chunks that were ever queued.
    chunks_queued: u64,
}

/// Padding that lanes send when they have nothing else, in bytes of frames.
#[derive(Default)]
struct Padding {
    /// Until this much was sent, in all.
    allowed_bytes: u64,
    sent_bytes: u64,
}

/// Padding belongs to no session; they are numbered from 1.
pub const PADDING_SESSION: u32 = 0;

impl TxQueue {
    pub fn new(low_bytes: u64) -> Self {
        Self { state: Mutex::default(), wakers: Mutex::default(), carriers: AtomicU64::new(0), low_bytes }
    }

    /// `waker`'s thread has a lane of this link.
    pub fn add_waker(&self, waker: Arc<Waker>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|w| Arc::ptr_eq(w, &waker)) {
            wakers.push(waker);
        }
    }

    pub fn add_session(&self, session: u32, events: Arc<dyn TxEvents>) {
        let account = Account {
            events,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            last_queued: 0,
            last_taken: 0,
            charged: 0,
            credit: 0,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            under_way_most: under_way::LEAST,
            again: BTreeSet::new(),
            again_bytes: 0,
            goodput: GoodputMeter::default(),
            limit: session_bucket(),
        };
        let mut state = self.lock();
        state.sessions.insert(session, account);
        state.schedule.add(session);
    }

    /// Ends a session; what it had unsent is dropped. Gives its events to the first who asks.
    pub fn remove_session(&self, session: u32) -> Option<Arc<dyn TxEvents>> {
        let mut state = self.lock();
        state.schedule.remove(session);
        state.sessions.remove(&session).map(|account| account.events)
    }

    pub fn remove_all(&self) -> Vec<(u32, Arc<dyn TxEvents>)> {
        let mut state = self.lock();
        state.schedule.clear();
        state.sessions.drain().map(|(session, account)| (session, account.events)).collect()
    }

    pub fn all_events(&self) -> Vec<Arc<dyn TxEvents>> {
        self.lock().sessions.values().map(|account| account.events.clone()).collect()
    }

    pub fn events(&self, session: u32) -> Option<Arc<dyn TxEvents>> {
        self.lock().sessions.get(&session).map(|account| account.events.clone())
    }

    pub fn sessions(&self) -> usize {
        self.lock().sessions.len()
    }

    pub fn push(&self, session: u32, chunk: Chunk) -> Result<(), SendError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let account = state.sessions.get_mut(&session).ok_or(SendError::Closed)?;
        if chunk.seq <= account.last_queued {
            return Err(SendError::Order(chunk.seq));
        }
        account.last_queued = chunk.seq;
        state.chunks_queued += 1;
        state.padding.allowed_bytes = 0;
        account.unsent_bytes += chunk.payload.len() as u64;
        account.unsent.push_back(chunk);
        drop(guard);
        self.wake();
        Ok(())
    }

    // ---- padding

    /// Lanes that have nothing else may send padding until there are so many bytes of it, in all, or a chunk is queued.
    /// False: more chunks were queued than the `chunks_queued` that the caller has seen.
    pub fn allow_padding(&self, up_to_bytes: u64, chunks_queued: u64) -> bool {
        let mut state = self.lock();
        if state.chunks_queued != chunks_queued {
            return false;
        }
        state.padding.allowed_bytes = up_to_bytes;
        drop(state);
        self.wake();
        true
    }

    /// Bytes of padding that were sent, and chunks that were queued.
    pub fn padded(&self) -> (u64, u64) {
        let state = self.lock();
        (state.padding.sent_bytes, state.chunks_queued)
    }

    /// A frame of padding, for a lane that has nothing else.
    pub fn pad(&self, carrier: Carrier, frame_bytes: usize, now: Instant) -> Option<Slice> {
        let mut state = self.lock();
        if state.padding_at(now).is_none_or(|at| at > now) {
            return None;
        }
        state.padding.sent_bytes += frame_bytes as u64;
        Some(state.slice(carrier, PADDING_SESSION, frame_bytes, now))
    }

    /// Chunks wait, or are under way.
    pub fn has_work(&self) -> bool {
        self.lock().sessions.values().any(|account| account.has_some() || !account.in_flight.is_empty())
    }

    /// The link has no bond: nothing is taken until [`TxQueue::go_on`], and what was allowed of padding was for the old path.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.paused = true;
        state.padding.allowed_bytes = 0;
    }

    /// Every session was [resumed](TxQueue::resume).
    pub fn go_on(&self) {
        self.lock().paused = false;
        self.wake();
    }

    /// A lane's new connection.
    pub fn new_carrier(&self) -> Carrier {
        Carrier(self.carriers.fetch_add(1, Ordering::Relaxed))
    }

    /// The connection died: what it carried and nobody acknowledged is to be taken again.
    pub fn give_back(&self, carrier: Carrier) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.throttle.waits_no_more(carrier);
        for account in state.sessions.values_mut() {
            account.give_back(|_, in_flight| in_flight.carrier == Some(carrier));
        }
        drop(guard);
        self.wake();
    }

    /// Every connection died. `received` is what the peer says it has of this session.
    pub fn resume(&self, session: u32, received: &RangeSet) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(account) = state.sessions.get_mut(&session) else { return };
        account.arrived(received);
        account.give_back(|seq, in_flight| in_flight.carrier.is_some() && !received.contains(seq));
        drop(guard);
        self.wake();
    }

    /// The next chunk, for a lane that is ready to send it.
    pub fn take(&self, carrier: Carrier, now: Instant) -> Option<Taken> {
        let mut state = self.lock();
        let state = &mut *state;
        state.throttle.waits_no_more(carrier);
        if state.paused {
            return None;
        }
        let (sessions, throttle) = (&state.sessions, &state.throttle);
        let session = state.schedule.next(|session, priority| {
            let at = sessions.get(&session).and_then(|account| account.ready_at(throttle, priority, now));
            at.is_some_and(|at| at <= now)
        })?;
        let account = state.sessions.get_mut(&session)?;
        let chunk = account.take(carrier, now)?;
        let room = (account.unsent_bytes < self.low_bytes).then(|| account.events.clone());
        let frame_bytes = HEADER_BYTES + chunk.payload.len() + TAG_BYTES;
        account.limit.take(wire_bytes(frame_bytes as u64), now);
        state.schedule.went(session, frame_bytes as u64);
        let slice = state.slice(carrier, session, frame_bytes, now);
        Some(Taken { session, chunk, slice, room })
    }

    /// When [`TxQueue::take`] would give something, as things are: `now`, later, or not before somebody wakes the lanes.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        if state.paused {
            return None;
        }
        let ready = state.sessions.iter().filter_map(|(session, account)| {
            account.ready_at(&state.throttle, state.schedule.priority(*session), now)
        });
        ready.chain(state.padding_at(now)).min()
    }

    /// What may leave next of a frame of which `left` bytes are left.
    pub fn slice(&self, carrier: Carrier, session: u32, left: usize, now: Instant) -> Slice {
        self.lock().slice(carrier, session, left, now)
    }

    /// The lane's slice is due.
    pub fn waits_no_more(&self, carrier: Carrier) {
        self.lock().throttle.waits_no_more(carrier);
    }

    // ---- limits, in bytes per second on the wire

    pub fn set_priority(&self, session: u32, priority: Priority) {
        self.lock().schedule.set_priority(session, priority);
        self.wake();
    }

    pub fn set_limit(&self, session: u32, bytes_per_s: Option<u64>, now: Instant) {
        if let Some(account) = self.lock().sessions.get_mut(&session) {
            account.limit.set_rate(bytes_per_s, now);
        }
        self.wake();
    }

    /// For all sessions together.
    pub fn set_link_limit(&self, bytes_per_s: Option<u64>, now: Instant) {
        self.lock().throttle.link.set_rate(bytes_per_s, now);
        self.wake();
    }

    /// What the kernel is to pace each lane at, besides limits, from its next frame on.
    pub fn set_pace(&self, bytes_per_s: Option<u64>) {
        self.lock().throttle.pace = bytes_per_s;
    }

    /// How many bytes of payload of each session may be taken and not acknowledged, as `bound` says of what the sessions that have
    /// something to send or under way deliver.
    pub fn bound_under_way(
        &self,
        now: Instant,
        bound: impl FnOnce(&mut dyn Iterator<Item = Goes>) -> Vec<(u32, u64)>,
    ) {
        let mut state = self.lock();
        let at_work = state.sessions.iter().filter(|(_, account)| account.is_at_work());
        let mut at_work = at_work.map(|(session, account)| Goes {
            session: *session,
            bytes_per_s: account.goodput.bytes_per_s_at(now),
        });
        let mut goes_on = false;
        for (session, most) in bound(&mut at_work) {
            if let Some(account) = state.sessions.get_mut(&session) {
                let was_full = account.is_full();
                account.under_way_most = most;
                goes_on |= was_full && !account.is_full();
            }
        }
        drop(state);
        if goes_on {
            self.wake();
        }
    }

    /// For all that are not urgent, too, and no limit that anybody sees. `None`: no more for this holder.
    pub fn set_ebb(&self, holder: Holder, bytes_per_s: Option<u64>, now: Instant) {
        self.lock().throttle.set_ebb(holder, bytes_per_s, now);
        self.wake();
    }

    /// This link is one of those that `host` is the limit of.
    pub fn join_host(&self, host: Arc<HostLimit>) {
        self.lock().throttle.host = host;
    }

    /// Credit is absolute; an old acknowledgement that comes late does not lower it.
    pub fn grant(&self, session: u32, credit: u64) {
        if let Some(account) = self.lock().sessions.get_mut(&session) {
            account.credit = account.credit.max(credit);
        }
        self.wake();
    }

    /// `None`: the session is gone.
    pub fn acked(
        &self,
        now: Instant,
        session: u32,
        cumulative: u64,
        ranges: &[(u64, u64)],
        credit: u64,
        rtt: Option<Duration>,
    ) -> Result<Option<Acked>, NeverSent> {
        let mut state = self.lock();
        let Some(account) = state.sessions.get_mut(&session) else { return Ok(None) };
        let was_full = account.is_full();
        account.acked(now, cumulative, ranges, rtt)?;
        let grew = credit > account.credit;
        account.credit = account.credit.max(credit);
        let stuck = (was_full || grew) && !account.unsent.is_empty();
        let acked =
            Acked { events: account.events.clone(), room: grew && account.unsent_bytes < self.low_bytes };
        drop(state);
        if stuck {
            self.wake();
        }
        Ok(Some(acked))
    }

    /// Hungry lanes look again.
    pub fn wake(&self) {
        for waker in self.wakers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake_if_hungry();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What the sessions may send together. `None`: one of them has no limit, or there is none.
    fn limits_of_all(&self) -> Option<u64> {
        if self.sessions.is_empty() {
            return None;
        }
        self.sessions
            .values()
            .try_fold(0, |sum: u64, account| Some(sum.saturating_add(account.limit.rate()?)))
    }

    /// When padding may be sent. `None`: there is to be none.
    fn padding_at(&self, now: Instant) -> Option<Instant> {
        let limited = self.limits_of_all().is_some();
        (!self.paused && self.padding.sent_bytes < self.padding.allowed_bytes)
            .then(|| self.throttle.free_at(limited, Priority::Low, now))
    }

    fn slice(&mut self, carrier: Carrier, session: u32, left: usize, now: Instant) -> Slice {
        if session == PADDING_SESSION {
            // The smoother lets a tenth more through than the limits.
            let limits = self.limits_of_all().map(|sum| sum - sum / 11);
            return self.throttle.slice(carrier, Priority::Low, limits, left, now);
        }
        let limited = self.sessions.get(&session).is_some_and(|account| account.limit.rate().is_some());
        let limits = limited.then(|| {
            let at_work = self.sessions.iter().filter(|(id, account)| **id == session || account.has_some());
            at_work.filter_map(|(_, account)| account.limit.rate()).fold(0, u64::saturating_add)
        });
        self.throttle.slice(carrier, self.schedule.priority(session), limits, left, now)
    }
}

#[cfg(test)]
mod tests;
