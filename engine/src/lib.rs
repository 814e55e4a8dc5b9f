//! Live migration decided and encoded without any I/O: pages, versions, codecs, policies.
//!
//! The engine is fed events with a time stamp and answers with [`Action`]s; it knows no socket, file,
//! thread, clock, nor QEMU. So a whole migration over a 200 ms link runs in a test in milliseconds of
//! virtual time, and the same events always give the same actions.
//!
//! ```text
//!  source host                                             destination host
//!  page / zero ─▶ staging ─▶ Action::Encode ─▶ (a worker)
//!                    ▲              encoded() ◀──┘
//!  newest version    │                 │
//!  only              │           Action::Send(chunk) ─ ─ ─ ─ ─▶ Receiver::chunk ─▶ Sink
//!                 Policy                                         order, versions
//! ```
//!
//! | module | what it gives |
//! |---|---|
//! | [`source`] | [`Source`]: staging, versions, the window of chunks under way |
//! | [`receiver`] | [`Receiver`]: puts chunks that come in any order in order, page by page |
//! | [`codec`] | the payload of a chunk, and QEMU's XBZRLE deltas |
//! | [`precopy`] | when to stop the guest: [`Policy`] and the policies that ship |
//!
//! What it does not do: carry anything, retransmit, encrypt (the transport's), or parse a QEMU stream.
#![forbid(unsafe_code)]

pub mod codec;
pub mod config;
pub mod precopy;
pub mod receiver;
pub mod source;
mod types;

pub use config::{Delta, HoldBack, ReceiverConfig, SourceConfig};
pub use precopy::{AbortReason, Decision, OnDeadline, Policy, Terms, View};
pub use receiver::{ReceiveError, Receiver, Sink};
pub use source::{Action, Chunk, EncodeJob, EncodeScratch, Encoded, LayoutError, Progress, Source, SyncInfo};
pub use types::{ChunkSeq, LinkStats, PAGE_BYTES, PageBytes, PageId, Time};
