//! One subscriber's events: bounded, in order, floods merged.
//!
//! QEMU sends MIGRATION_PASS for every bitmap synchronisation, up to 25 000 a second while a switch-over is held
//! back. Events of that kind that nobody has taken yet become one, with a count and the newest data.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::Value;
use tokio::sync::Notify;

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
    /// Since the epoch, by the host's clock, as QEMU says.
    pub at_us: Option<u64>,
    /// How many events of this name stand in this one: 1, or more where a flood was merged.
    pub count: u64,
    /// Events that were dropped before this one because the subscriber was too slow.
    pub lost_before: u64,
}

/// A subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Events {
    queue: Arc<Queue>,
}

impl Events {
    /// The next event; `None` when the connection is gone and all events were taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let changed = self.queue.changed.notified();
            {
                let mut state = self.queue.lock();
                if let Some(event) = state.events.pop_front() {
                    return Some(event);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// The next event that is already there.
    pub fn try_next(&mut self) -> Option<Event> {
        self.queue.lock().events.pop_front()
    }
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    lost: u64,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: &Event) {
        const MERGED: &str = "MIGRATION_PASS";
        let mut state = self.lock();
        if event.name == MERGED
            && let Some(last) = state.events.iter_mut().rev().find(|e| e.name == MERGED)
        {
            last.count += event.count;
            last.data = event.data.clone();
            last.at_us = event.at_us;
            return;
        }
        if state.events.len() >= self.limit {
            let dropped = state.events.pop_front();
            state.lost += dropped.map_or(0, |e| e.count + e.lost_before);
            let lost = std::mem::take(&mut state.lost);
            match state.events.front_mut() {
                Some(front) => front.lost_before += lost,
                None => state.lost = lost,
            }
        }
        let mut event = event.clone();
        event.lost_before = std::mem::take(&mut state.lost);
        state.events.push_back(event);
        drop(state);
        self.changed.notify_one();
    }
}

/// All subscriptions of one client.
#[derive(Debug, Default)]
pub(super) struct Hub {
    queues: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    queues: Vec<Weak<Queue>>,
    closed: bool,
}

impl Hub {
    pub fn subscribe(&self, limit: usize) -> Events {
        let mut all = self.lock();
        let state = State { closed: all.closed, ..State::default() };
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Notify::new(), limit: limit.max(1) });
        all.queues.retain(|q| q.strong_count() > 0);
        all.queues.push(Arc::downgrade(&queue));
        Events { queue }
    }

    pub fn publish(&self, event: &Event) {
        for queue in self.lock().queues.iter().filter_map(Weak::upgrade) {
            queue.push(event);
        }
    }

    pub fn close(&self) {
        let mut all = self.lock();
        all.closed = true;
        for queue in all.queues.drain(..).filter_map(|q| q.upgrade()) {
            queue.lock().closed = true;
            queue.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, n: u64) -> Event {
        Event { name: name.into(), data: Value::from(n), at_us: None, count: 1, lost_before: 0 }
    }

    #[test]
    fn a_flood_becomes_one_event_with_a_count() {
        let hub = Hub::default();
        let mut events = hub.subscribe(4);
        for n in 0..100_000 {
            hub.publish(&event("MIGRATION_PASS", n));
        }
        hub.publish(&event("STOP", 0));
        assert_eq!(events.queue.lock().events.len(), 2);
        let pass = events.try_next().unwrap();
        assert_eq!((pass.count, pass.data), (100_000, Value::from(99_999)));
        assert_eq!(events.try_next().unwrap().name, "STOP");
        assert_eq!(events.try_next(), None);
    }

    #[test]
    fn a_slow_subscriber_is_told_how_much_it_lost() {
        let hub = Hub::default();
        let mut events = hub.subscribe(2);
        for n in 0..5 {
            hub.publish(&event("X", n));
        }
        let first = events.try_next().unwrap();
        assert_eq!((first.data, first.lost_before), (Value::from(3), 3));
        assert_eq!(events.try_next().unwrap().lost_before, 0);
    }

    #[tokio::test]
    async fn events_before_the_end_are_still_delivered() {
        let hub = Hub::default();
        let mut events = hub.subscribe(2);
        hub.publish(&event("SHUTDOWN", 0));
        hub.close();
        assert_eq!(events.next().await.unwrap().name, "SHUTDOWN");
        assert_eq!(events.next().await, None);
        assert_eq!(hub.subscribe(1).next().await, None);
    }
}
