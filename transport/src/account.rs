//! What one session has to send, and what it has under way.
//!
//! ```text
//!  queued ─▶ unsent ──taken──▶ in_flight ──acknowledged──▶ (gone)
//!                      ▲            │ its connection died
//!                      └── again ◀──┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::events::TxEvents;
use crate::meter::{Departure, GoodputMeter};
use crate::queue::Carrier;
use crate::ranges::RangeSet;
use crate::schedule::Priority;
use crate::session::{Chunk, charge};
use crate::throttle::Throttle;

/// The peer acknowledged what it cannot have.
#[derive(Debug)]
pub struct NeverSent {
    pub seq: u64,
}

pub struct Account {
    pub events: Arc<dyn TxEvents>,
    pub unsent: VecDeque<Chunk>,
    pub unsent_bytes: u64,
    pub last_queued: u64,
    pub last_taken: u64,
    pub charged: u64,
    pub credit: u64,
    /// Taken and not acknowledged.
    pub in_flight: BTreeMap<u64, InFlight>,
    pub in_flight_bytes: u64,
    /// Nothing new is taken while so many are.
    pub under_way_most: u64,
    /// Those of them whose connection died: they are to be taken again.
    pub again: BTreeSet<u64>,
    pub again_bytes: u64,
    pub goodput: GoodputMeter,
    pub limit: Bucket,
}

/// A chunk that was taken and is not acknowledged.
pub struct InFlight {
    pub chunk: Chunk,
    /// `None`: to be taken again, or known to have arrived.
    pub carrier: Option<Carrier>,
    pub departure: Departure,
}

impl Account {
    /// Something waits to be taken, whether or not it may.
    pub fn has_some(&self) -> bool {
        !self.unsent.is_empty() || !self.again.is_empty()
    }

    /// It has something to send, or under way.
    pub fn is_at_work(&self) -> bool {
        self.has_some() || self.in_flight_bytes > 0
    }

    pub fn may_send(&self) -> bool {
        !self.again.is_empty()
            || self
                .unsent
                .front()
                .is_some_and(|chunk| self.charged + charge(chunk.payload.len()) <= self.credit)
    }

    /// As much is under way as there may be: what a lane takes now would only stand in a queue.
    pub fn is_full(&self) -> bool {
        self.in_flight_bytes >= self.under_way_most
    }

    /// When its next chunk may be taken. `None`: there is none, no credit for it, or nothing more may be under way.
    pub fn ready_at(&self, throttle: &Throttle, priority: Priority, now: Instant) -> Option<Instant> {
        // What is taken again is under way already. A guest that stands has what it needs, however little it had before.
        let full = self.is_full() && self.again.is_empty() && priority != Priority::Urgent;
        if full || !self.may_send() {
            return None;
        }
        let limited = self.limit.rate().is_some();
        Some(self.limit.free_at(now).max(throttle.free_at(limited, priority, now)))
    }

    pub fn take(&mut self, carrier: Carrier, now: Instant) -> Option<Chunk> {
        if !self.may_send() {
            return None;
        }
        let departure = self.goodput.depart(now, self.in_flight_bytes - self.again_bytes);
        if let Some(seq) = self.again.pop_first() {
            let in_flight = self.in_flight.get_mut(&seq)?;
            in_flight.carrier = Some(carrier);
            in_flight.departure = departure;
            self.again_bytes -= in_flight.chunk.payload.len() as u64;
            return Some(in_flight.chunk.clone());
        }
        let chunk = self.unsent.pop_front()?;
        let bytes = chunk.payload.len() as u64;
        self.unsent_bytes -= bytes;
        self.charged += charge(chunk.payload.len());
        self.in_flight_bytes += bytes;
        self.last_taken = chunk.seq;
        let in_flight = InFlight { chunk: chunk.clone(), carrier: Some(carrier), departure };
        self.in_flight.insert(chunk.seq, in_flight);
        if self.unsent.is_empty() {
            self.goodput.starved(self.in_flight_bytes);
        }
        Some(chunk)
    }

    pub fn give_back(&mut self, which: impl Fn(u64, &InFlight) -> bool) {
        for (seq, in_flight) in &mut self.in_flight {
            if which(*seq, in_flight) {
                in_flight.carrier = None;
                self.again.insert(*seq);
                self.again_bytes += in_flight.chunk.payload.len() as u64;
            }
        }
    }

    /// The peer has these, though it has not applied them yet: they are not taken again.
    pub fn arrived(&mut self, received: &RangeSet) {
        let there: Vec<u64> = self.again.iter().copied().filter(|seq| received.contains(*seq)).collect();
        for seq in there {
            self.again.remove(&seq);
            if let Some(in_flight) = self.in_flight.get(&seq) {
                self.again_bytes -= in_flight.chunk.payload.len() as u64;
            }
        }
        for (_, in_flight) in self.in_flight.iter_mut().filter(|(seq, _)| received.contains(**seq)) {
            in_flight.carrier = None;
        }
    }

    pub fn acked(
        &mut self,
        now: Instant,
        cumulative: u64,
        ranges: &[(u64, u64)],
        rtt: Option<Duration>,
    ) -> Result<(), NeverSent> {
        let highest = ranges.iter().map(|range| range.1).max().unwrap_or(0).max(cumulative);
        if highest > self.last_taken {
            return Err(NeverSent { seq: highest });
        }
        let mut bytes = 0;
        let mut newest = None;
        for (first, last) in std::iter::once((1, cumulative)).chain(ranges.iter().copied()) {
            // One at a time: each number is removed once in its life, whatever the peer repeats.
            while let Some(seq) = self.next_in_flight(first, last) {
                if let Some(gone) = self.in_flight.remove(&seq) {
                    let length = gone.chunk.payload.len() as u64;
                    bytes += length;
                    newest = Some(gone.departure);
                    if self.again.remove(&seq) {
                        self.again_bytes -= length;
                    }
                }
            }
        }
        self.in_flight_bytes -= bytes;
        if let Some(departure) = newest {
            self.goodput.delivered(now, bytes, departure, rtt);
        }
        Ok(())
    }

    fn next_in_flight(&self, first: u64, last: u64) -> Option<u64> {
        if first > last {
            return None;
        }
        self.in_flight.range(first..=last).next().map(|(&seq, _)| seq)
    }
}
