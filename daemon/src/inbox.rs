//! A queue into a thread that sleeps in `poll`: what is pushed wakes it, at the cost of one system call per sleep.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub struct Inbox<T> {
    waiting: Mutex<Vec<T>>,
    wake: EventFd,
}

impl<T> Inbox<T> {
    pub fn new() -> io::Result<Inbox<T>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Inbox { waiting: Mutex::new(Vec::new()), wake })
    }

    /// Never blocks.
    pub fn push(&self, item: T) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = waiting.is_empty();
        waiting.push(item);
        drop(waiting);
        // Whoever finds it filled has been woken by whoever filled it.
        if was_empty {
            // Only a full counter could refuse, and then the reader is awake.
            let _ = self.wake.write(1);
        }
    }

    /// Moves everything that waits to the end of `out`.
    pub fn take(&self, out: &mut Vec<T>) {
        // Before the queue is emptied: a push in between wakes once more for nothing, but none is missed.
        let _ = self.wake.read();
        out.append(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Readable while something waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::sync::Arc;

    fn readable(inbox: &Inbox<u32>) -> bool {
        poll(&mut [PollFd::new(inbox.fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_push_wakes_and_taking_all_lets_sleep_again() {
        let inbox = Inbox::new().unwrap();
        assert!(!readable(&inbox));
        inbox.push(1);
        inbox.push(2);
        assert!(readable(&inbox));
        let mut out = vec![0];
        inbox.take(&mut out);
        assert_eq!(out, [0, 1, 2]);
        assert!(!readable(&inbox));
        inbox.push(3);
        assert!(readable(&inbox));
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let sender = {
            let inbox = inbox.clone();
            std::thread::spawn(move || (0..100_000).for_each(|i| inbox.push(i)))
        };
        let mut seen = Vec::new();
        while seen.len() < 100_000 {
            poll(&mut [PollFd::new(inbox.fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            inbox.take(&mut seen);
        }
        sender.join().unwrap();
        assert!(seen.into_iter().eq(0..100_000));
    }
}
