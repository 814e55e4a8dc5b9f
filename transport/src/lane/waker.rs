//! Waking a lane thread that sleeps, and only then.
//!
//! A thread that has a lane with nothing to send says it is hungry, looks at the queue once more, and sleeps. Whoever
//! queues a chunk looks for hungry threads afterwards. The queue's mutex stands between the two looks, so one of them
//! sees the other: no chunk is left lying, and a busy thread is never disturbed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

pub struct Waker {
    event: EventFd,
    hungry: AtomicBool,
}

impl Waker {
    pub fn new() -> std::io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, hungry: AtomicBool::new(false) })
    }

    /// Wakes the thread whatever it does.
    pub fn wake(&self) {
        // A full counter means that it was woken and has not looked yet.
        let _ = self.event.write(1);
    }

    pub fn wake_if_hungry(&self) {
        if self.hungry.load(Ordering::SeqCst) && self.hungry.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Called by the thread itself, before it looks at its queues for the last time.
    pub fn set_hungry(&self, hungry: bool) {
        self.hungry.store(hungry, Ordering::SeqCst);
    }

    /// Forgets all wake-ups so far.
    pub fn reset(&self) {
        let _ = self.event.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
