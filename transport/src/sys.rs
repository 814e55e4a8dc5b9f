//! Everything unsafe of this crate: receiving into memory that is not initialised, some socket options, a setting of the
//! allocator, wiping other crates' keys, and the ring that keeps buffers alive while the kernel uses them. All are safe to call.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem::{MaybeUninit, needs_drop};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};
use zeroize::Zeroize;

/// Appends what a non-blocking socket has to `buffer`, until it has `want` bytes. `Ok(0)`: the peer closed.
pub fn recv_append(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>, want: usize) -> io::Result<usize> {
    let missing = want.saturating_sub(buffer.len());
    buffer.reserve_exact(missing);
    let space = &mut buffer.spare_capacity_mut()[..missing];
    // SAFETY: `space` is `missing` bytes of memory that we own, and recv only writes to it.
    let got =
        unsafe { libc::recv(socket.as_raw_fd(), space.as_mut_ptr().cast(), space.len(), libc::MSG_DONTWAIT) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recv has initialised the first `got` bytes of the spare capacity, and `got <= missing`.
    unsafe { buffer.set_len(buffer.len() + got) };
    Ok(got)
}

/// `TCP_NOTSENT_LOWAT`, which `nix` does not have.
pub fn set_notsent_low(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and length describe `value`, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel says of a TCP connection: the beginning of its `struct tcp_info` (linux/tcp.h), which only ever grows.
/// Fields that a kernel does not know stay 0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RawTcpInfo {
    pub states: [u8; 8],
    pub rto_us: u32,
    pub ato_us: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub since_ms: [u32; 4],
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt_us: u32,
    pub rttvar_us: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt_us: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt_us: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_us: u64,
    pub rwnd_limited_us: u64,
    pub sndbuf_limited_us: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
}

pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<RawTcpInfo> {
    let mut info = RawTcpInfo::default();
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is plain numbers and lives across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// `SO_MAX_PACING_RATE`. `None`: as fast as congestion control lets it.
pub fn set_pacing(socket: BorrowedFd<'_>, bytes_per_s: Option<u64>) -> io::Result<()> {
    // All ones is no limit; kernels before 4.20 know 32 bits only, and refuse nothing longer.
    let value: u64 = bytes_per_s.unwrap_or(u64::MAX);
    // SAFETY: the pointer and length describe `value`, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives back to the kernel what the allocator keeps unused, after [`keep_freed_buffers`]: for a time when nothing is being
/// moved. Takes milliseconds.
pub fn release_freed_buffers() {
    // SAFETY: malloc_trim takes a plain number, and the allocator serialises it with its other work.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the C library's allocator keep what was freed instead of giving every buffer of a chunk back to the kernel and
/// faulting it in again, page by page: that costs a fifth of a receiver's CPU. For a process to call once, at its start;
/// up to 32 MiB per thread's heap stay mapped. Does nothing with another C library.
pub fn keep_freed_buffers() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT_BYTES: libc::c_int = 32 << 20;
        // No chunk's buffer is longer.
        const MAPPED_ALONE_BYTES: libc::c_int = 4 << 20;
        // SAFETY: mallopt takes plain numbers, and the allocator serialises it with its other work.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_ALONE_BYTES);
        }
    }
}

/// A value whose memory is overwritten with zeros when it is dropped: for keys of a crate that does not do so itself. It is
/// not moved while it is in here.
pub struct Wiped<T>(Box<MaybeUninit<T>>);

impl<T> Wiped<T> {
    pub fn new(value: T) -> Self {
        // What needs no drop owns no memory elsewhere, and nobody misses its bytes.
        const { assert!(!needs_drop::<T>()) };
        Self(Box::new(MaybeUninit::new(value)))
    }
}

impl<T> std::ops::Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote it, and nothing but `drop` changes it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// io_uring with owned buffers: an operation holds its buffer and its socket until the kernel is done with them, so no
/// caller can free either too early.
pub struct Ring {
    ring: IoUring,
    /// By index = `user_data`; `None` is free.
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
    unsubmitted: VecDeque<io_uring::squeue::Entry>,
}

struct Operation {
    key: u64,
    kind: OperationKind,
    buffer: Vec<u8>,
    /// Keeps the descriptor's number from being used for something else meanwhile.
    _socket: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    Send,
    Recv,
    Poll,
}

/// An operation that has ended, and its buffer. What was received is appended to it.
pub struct Completion {
    pub key: u64,
    pub kind: OperationKind,
    pub result: io::Result<usize>,
    pub buffer: Vec<u8>,
}

impl Ring {
    /// The ring belongs to the thread that makes it.
    pub fn new(entries: u32) -> io::Result<Self> {
        let fast = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(entries * 4)
            .build(entries);
        let ring = match fast {
            Ok(ring) => ring,
            Err(_) => IoUring::builder().setup_cqsize(entries * 4).build(entries)?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Send::CODE, opcode::Recv::CODE, opcode::PollAdd::CODE] {
            if !probe.is_supported(code) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "send, recv or poll is missing"));
            }
        }
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "waits cannot be bounded"));
        }
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "completions may be dropped"));
        }
        Ok(Self { ring, operations: Vec::new(), free: Vec::new(), unsubmitted: VecDeque::new() })
    }

    /// Sends all of `buffer[part]` (fewer bytes only at an error).
    pub fn send(&mut self, key: u64, socket: &Arc<OwnedFd>, buffer: Vec<u8>, part: std::ops::Range<usize>) {
        let bytes = &buffer[part];
        let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.start(key, OperationKind::Send, buffer, Some(socket.clone()), entry);
    }

    /// Appends to `buffer` until it has `want` bytes (fewer at the end or an error).
    pub fn recv(&mut self, key: u64, socket: &Arc<OwnedFd>, mut buffer: Vec<u8>, want: usize) {
        let missing = want.saturating_sub(buffer.len());
        buffer.reserve_exact(missing);
        let space = &mut buffer.spare_capacity_mut()[..missing];
        let entry = opcode::Recv::new(
            types::Fd(socket.as_raw_fd()),
            space.as_mut_ptr().cast(),
            u32::try_from(missing).unwrap_or(u32::MAX),
        )
        .flags(libc::MSG_WAITALL)
        .build();
        self.start(key, OperationKind::Recv, buffer, Some(socket.clone()), entry);
    }

    /// Completes once when `fd`, which must outlive the ring's thread, is readable.
    pub fn poll_readable(&mut self, key: u64, fd: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).build();
        self.start(key, OperationKind::Poll, Vec::new(), None, entry);
    }

    /// Submits what was started, waits for something to complete or for `timeout`, and appends what has completed. (Always
    /// waits: a ring with deferred task work completes nothing otherwise.)
    pub fn turn(&mut self, completed: &mut Vec<Completion>, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            self.fill_submissions();
            let want = usize::from(self.unsubmitted.is_empty());
            let submitted = match timeout {
                None => self.ring.submit_and_wait(want),
                Some(timeout) => {
                    let timeout = types::Timespec::from(timeout);
                    let until = types::SubmitArgs::new().timespec(&timeout);
                    self.ring.submitter().submit_with_args(want, &until)
                }
            };
            match submitted {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
            self.collect(completed);
            if self.unsubmitted.is_empty() {
                return Ok(());
            }
        }
    }

    /// Operations that the kernel still has.
    pub fn in_flight(&self) -> usize {
        self.operations.len() - self.free.len()
    }

    fn start(
        &mut self,
        key: u64,
        kind: OperationKind,
        buffer: Vec<u8>,
        socket: Option<Arc<OwnedFd>>,
        entry: io_uring::squeue::Entry,
    ) {
        let operation = Some(Operation { key, kind, buffer, _socket: socket });
        let index = match self.free.pop() {
            Some(index) => {
                self.operations[index] = operation;
                index
            }
            None => {
                self.operations.push(operation);
                self.operations.len() - 1
            }
        };
        self.unsubmitted.push_back(entry.user_data(index as u64));
    }

    fn fill_submissions(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.unsubmitted.pop_front() {
            // SAFETY: the entry points into the heap memory of a buffer that `operations` owns (moving a Vec does not
            // move it) and names a socket that it keeps open; both stay there, untouched, until the completion is
            // collected. `Drop` leaks what never completed.
            if unsafe { submission.push(&entry) }.is_err() {
                self.unsubmitted.push_front(entry);
                break;
            }
        }
    }

    fn collect(&mut self, completed: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let Some(slot) = usize::try_from(entry.user_data()).ok().filter(|i| *i < self.operations.len())
            else {
                continue;
            };
            let Some(Operation { key, kind, mut buffer, _socket: _ }) = self.operations[slot].take() else {
                continue;
            };
            self.free.push(slot);
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            if let (OperationKind::Recv, Ok(got)) = (kind, &result) {
                let length = (buffer.len() + got).min(buffer.capacity());
                // SAFETY: the kernel has written `got` bytes from the old length on, within the capacity.
                unsafe { buffer.set_len(length) };
            }
            completed.push(Completion { key, kind, result, buffer });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may write to these after the ring's descriptor is closed. Threads end with nothing in flight but
        // their poll; this is for a thread that panics.
        for operation in self.operations.drain(..).flatten() {
            std::mem::forget(operation);
        }
    }
}
