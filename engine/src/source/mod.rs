//! The source of a migration: what was taken in and not sent, and what is under way.

mod job;

use std::sync::Arc;

pub use job::{EncodeJob, EncodeScratch, Encoded};

use crate::config::SourceConfig;
use crate::precopy::{AbortReason, Policy, Terms};
use crate::types::{ChunkSeq, LinkStats, PageBytes, PageId, Time};

/// What the caller has to do.
#[derive(Debug)]
pub enum Action {
    /// Run this on any thread and give the result to [`Source::encoded`].
    Encode(EncodeJob),
    /// Hand this to the transport.
    Send(Chunk),
    /// Stop the guest now; then [`Source::guest_stopped`].
    Switch,
    /// Take this share (0.0-0.99) of its time from the guest.
    Throttle(f32),
    /// Give up; the guest stays here. Nothing else follows.
    Abort(AbortReason),
    /// Call [`Source::poll`] at this time if nothing happens before. Replaces the last one.
    WakeAt(Time),
}

/// A chunk, immutable: if it has to be sent again it goes with the same number and the same payload.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub seq: ChunkSeq,
    /// Everything up to this number has to be applied before; [`ChunkSeq::NONE`] if nothing.
    pub after: ChunkSeq,
    pub payload: Arc<[u8]>,
}

/// What is known of a dirty-bitmap sync of QEMU: the end of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncInfo {
    /// QEMU's `dirty-sync-count`: 1 at the start, 2 after the first pass over all of RAM.
    pub count: Option<u64>,
    /// Pages QEMU found dirty and has not emitted yet.
    pub dirty_pages: Option<u64>,
}

/// Where a migration stands. Counts are since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    pub pages_total: u64,
    /// Distinct pages taken in at least once.
    pub pages_seen: u64,
    pub pages_staged: u64,
    pub bytes_raw_in: u64,
    pub bytes_encoded: u64,
    pub pages_sent: u64,
    /// Staged versions that were replaced and never crossed the link.
    pub superseded: u64,
    pub zero_pages: u64,
    pub pass: u32,
    pub residual_bytes_encoded: u64,
    /// None as long as it cannot be told.
    pub predicted_stop_ms: Option<u64>,
    pub dirty_pages_per_s: u64,
    /// Encoded bytes per raw byte, of the last chunks.
    pub ratio: f64,
}

/// The layout was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("the guest has {pages} pages, at most {max_pages} are allowed")]
    TooManyPages { pages: u32, max_pages: u32 },
    #[error("the guest's layout is already known")]
    Known,
}

/// See the module.
pub struct Source {
    config: SourceConfig,
    policy: Box<dyn Policy>,
}

impl Source {
    pub fn new(config: SourceConfig, policy: Box<dyn Policy>) -> Self {
        Source { config, policy }
    }

    /// The guest has `pages` pages. Before it only [`Source::opaque`] and [`Source::raw`] are allowed.
    pub fn layout(&mut self, _now: Time, pages: u32) -> Result<(), LayoutError> {
        if pages > self.config.max_pages {
            return Err(LayoutError::TooManyPages { pages, max_pages: self.config.max_pages });
        }
        Ok(())
    }

    /// Stream bytes to be carried verbatim, in order with each other. Pages fed later are applied after them.
    pub fn opaque(&mut self, _bytes: &[u8]) {}

    /// Page `page` now holds `bytes`. Replaces what is staged of it.
    pub fn page(&mut self, _now: Time, _page: PageId, _bytes: &PageBytes) {}

    /// `run` pages from `page` on are now zero.
    pub fn zero(&mut self, _now: Time, _page: PageId, _run: u32) {}

    /// Bytes that may be fed before staging is full. Feeding more is allowed and makes it 0.
    pub fn intake_room(&self) -> usize {
        self.policy.staging_bytes(self.config.staging_bytes)
    }

    /// The source had nothing dirty: leave it alone until then.
    pub fn intake_resumes_at(&self) -> Option<Time> {
        None
    }

    /// Raw relay: stream bytes applied after everything fed before. No pages may follow.
    pub fn raw(&mut self, _bytes: &[u8]) {}

    /// A pass of QEMU has ended.
    pub fn sync(&mut self, _now: Time, _info: SyncInfo) {}

    /// The source said that nothing is dirty (an empty PART).
    pub fn idle(&mut self, _now: Time) {}

    /// The guest stands still: everything goes out as fast as it can, the policy is asked no more.
    pub fn guest_stopped(&mut self, _now: Time) {}

    /// The guest runs on here after all; the tail fed so far, if any, must not have left (see [`Source::tail`]).
    pub fn guest_resumed(&mut self, _now: Time) {}

    /// Bytes after the end of RAM, applied after everything fed before.
    pub fn tail(&mut self, _bytes: &[u8]) {}

    /// The tail is complete.
    pub fn tail_done(&mut self) {}

    /// After [`Source::tail_done`] and once everything fed is in numbered chunks: the last number, for GO to name.
    pub fn last_seq(&self) -> Option<ChunkSeq> {
        None
    }

    /// The peer has applied all chunks up to `cumulative`, and `ranges` (both ends included).
    pub fn acked(&mut self, _now: Time, _cumulative: ChunkSeq, _ranges: &[(ChunkSeq, ChunkSeq)]) {}

    /// The peer has applied everything that was fed; nothing is under way.
    pub fn is_drained(&self) -> bool {
        true
    }

    /// The result of an [`Action::Encode`].
    pub fn encoded(&mut self, _now: Time, _encoded: Encoded) {}

    /// What the transport knows now.
    pub fn link(&mut self, _now: Time, _stats: LinkStats) {}

    /// What the caller has measured of the stop outside the engine.
    pub fn terms(&mut self, _terms: Terms) {}

    /// What has to be done; call it until it is None, after every event or after all events of one wake-up.
    pub fn poll(&mut self, _now: Time) -> Option<Action> {
        None
    }

    pub fn progress(&self) -> Progress {
        Progress::default()
    }

    /// Memory held, in bytes, overhead included.
    pub fn memory_bytes(&self) -> usize {
        0
    }
}
