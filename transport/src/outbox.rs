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

    /// Queues one of the transport's own messages. They are few and short, and a peer that makes us answer without
    /// reading meets [`Outbox::is_flooded`].
    pub fn push(&self, message: &Message) {
        self.put(message, usize::MAX);
    }

    /// Queues a session's message; false if too much waits already.
    pub fn push_bounded(&self, message: &Message) -> bool {
        self.put(message, self.limit_bytes)
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

    fn put(&self, message: &Message, limit_bytes: usize) -> bool {
        let bytes = match message.encode() {
            Ok(bytes) => bytes,
            Err(error) => {
                // Every length was checked against a limit that fits; so this is a defect, and better loud than sent.
                tracing::error!(%error, "a control message could not be encoded");
                return true;
            }
        };
        let mut waiting = self.lock();
        if waiting.bytes.saturating_add(bytes.len()) > limit_bytes {
            return false;
        }
        waiting.bytes += bytes.len();
        waiting.messages.push_back(bytes);
        drop(waiting);
        self.notify.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
