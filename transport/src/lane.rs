//! Lanes: the connections that carry chunks.
//!
//! ```text
//!   TxQueue ──take──▶ TxLane ──bytes──▶ socket ═══════ socket ──bytes──▶ RxLane ──frame──▶ LinkCore::deliver
//!                     seals                                              opens
//! ```
//! [`tx`] and [`rx`] are the cores: they hold one frame, know nothing of sockets and can be stepped by hand. [`engine`]
//! owns the threads; each thread has some lanes of every link and drives them through [`plain`] (epoll) or [`uring`].
//! Both backends do the same, so both pass the same tests.
//!
//! A thread sleeps only when no socket and no queue has anything for it. Queueing a chunk costs a system call only
//! then ([`waker`]).

pub mod engine;
pub mod plain;
pub mod rx;
pub mod tx;
pub mod uring;
pub mod waker;
