//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::ClockId;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Bytes that wait in a socket's receive queue.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given, which is `waiting`'s; the descriptor is open while borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(waiting.max(0) as u64) }
}

/// What this thread has had of the processor. Zero, where that cannot be told.
pub fn thread_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}

/// A Ctrl-C is for a child of this process, and not for it.
pub fn ignore_interrupts() {
    // SAFETY: no handler of ours runs: the signal is ignored.
    let _ = unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) };
}

/// What a socket to a QEMU may hold: several times what the kernel's default lets it, so that neither side has to be woken for each
/// hundred kilobytes.
pub const QEMU_SOCKET_BYTES: usize = 1 << 20;

/// Lets a socket hold so much that was written and not read, where the process may; otherwise as much as it may.
pub fn hold_unread(socket: &impl AsFd, bytes: usize) {
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &bytes);
    }
}

/// The first of those that a service manager passes on.
const LISTEN_FDS_START: i32 = 3;

/// So many descriptors that were passed to this process, from the first one on; none, where that one is not open. They are not passed on by it.
pub fn passed_descriptors(count: u32) -> impl Iterator<Item = Option<OwnedFd>> {
    (LISTEN_FDS_START..).take(count.min(4096) as usize).map(|number| {
        // SAFETY: it is only asked whether it is open, and borrowed no longer than that.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let is_open = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok();
        // SAFETY: whoever passed it has left it to this process, which takes it once, before it opens any of its own.
        is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
    })
}
