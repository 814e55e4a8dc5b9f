//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that wait in a socket's receive queue.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given, which is `waiting`'s; the descriptor is open while borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(waiting.max(0) as u64) }
}
