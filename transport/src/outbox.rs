//! Messages that wait to be written on a link's control connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::wire::control::Message;

pub struct Outbox {
    waiting: Mutex<Waiting>,
    limit_bytes: usize,
    notify: Notify,
    closing: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Outbox {
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            limit_bytes,
            notify: Notify::new(),
            closing: AtomicBool::new(false),
        }
    }

    /// Queues a message. Those of sessions are bounded by what is kept until it is heard; the transport's own are few and
    /// short, and a peer that makes us answer without reading meets [`Outbox::is_flooded`].
    pub fn push(&self, message: &Message) {
        if let Some(bytes) = encoded(message) {
            self.push_encoded(bytes);
        }
    }

    pub fn push_encoded(&self, bytes: Vec<u8>) {
        let mut waiting = self.lock();
        waiting.bytes += bytes.len();
        waiting.messages.push_back(bytes);
        drop(waiting);
        self.notify.notify_one();
    }

    /// More waits than a peer that reads could have caused.
    pub fn is_flooded(&self) -> bool {
        self.lock().bytes > 2 * self.limit_bytes
    }

    pub fn take(&self) -> VecDeque<Vec<u8>> {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.messages)
    }

    /// This is the last message; the writer ends after it.
    pub fn push_last(&self, message: &Message) {
        self.push(message);
        self.closing.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn notify(&self) {
        self.notify.notify_one();
    }

    pub async fn notified(&self) {
        self.notify.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message's bytes. `None`, and loud: it could not be encoded. (Every length was checked against a limit that fits; so
/// this is a defect.)
pub fn encoded(message: &Message) -> Option<Vec<u8>> {
    message
        .encode()
        .inspect_err(|error| tracing::error!(%error, "a control message could not be encoded"))
        .ok()
}
