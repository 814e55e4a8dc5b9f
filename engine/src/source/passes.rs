//! What is known of QEMU's passes: how many, how dirty, how fast pages come back.

use std::time::Duration;

use crate::precopy::PassStats;
use crate::source::SyncInfo;
use crate::types::Time;

/// See the module.
#[derive(Debug)]
pub(super) struct Passes {
    pub stats: PassStats,
    /// QEMU's own count of bitmap syncs, as last told.
    sync_count: u64,
    /// When the bitmap was last synced, as far as is known.
    synced_at: Time,
    /// Pages dirty in QEMU at that time and not taken in since.
    pending: u64,
    /// Pages that came again, since `rate_at`.
    came_again: u64,
    rate_at: Time,
    /// Pages that come again per second, smoothed.
    pub dirty_pages_per_s: f64,
}

impl Passes {
    pub(super) fn new() -> Self {
        Passes {
            stats: PassStats::default(),
            sync_count: 0,
            synced_at: Time::default(),
            pending: 0,
            came_again: 0,
            rate_at: Time::default(),
            dirty_pages_per_s: 0.0,
        }
    }

    pub(super) fn started(&mut self, now: Time, pages: u32) {
        self.pending = pages.into();
        self.synced_at = now;
        self.rate_at = now;
    }

    pub(super) fn took_in(&mut self, pages: u64, again: u64) {
        self.stats.taken_in += pages;
        self.pending = self.pending.saturating_sub(pages);
        self.came_again += again;
    }

    /// A pass has ended. The sync before the first page is no pass.
    pub(super) fn synced(&mut self, now: Time, info: SyncInfo) -> bool {
        self.sync_count = info.count.unwrap_or(self.sync_count).max(self.sync_count);
        let ended = self.stats.taken_in > 0;
        if ended {
            self.stats.ended += 1;
            self.stats.dirty_pages = info.dirty_pages.unwrap_or(self.stats.taken_in);
            self.stats.taken_in = 0;
        }
        self.pending = info.dirty_pages.unwrap_or(self.pending);
        self.synced_at = now;
        ended
    }

    pub(super) fn idle(&mut self, now: Time) {
        self.pending = 0;
        self.synced_at = now;
    }

    /// QEMU has gone over all of RAM at least once.
    pub(super) fn first_pass_done(&self) -> bool {
        self.sync_count >= 2
    }

    /// Brings the dirty rate up to `now`.
    pub(super) fn measure(&mut self, now: Time, window: Duration) {
        let elapsed_s = now.since(self.rate_at) as f64 / 1e9;
        if elapsed_s <= 0.0 {
            return;
        }
        let weight = 1.0 - (-elapsed_s / window.as_secs_f64().max(1e-3)).exp();
        let rate = self.came_again as f64 / elapsed_s;
        self.dirty_pages_per_s += weight * (rate - self.dirty_pages_per_s);
        self.came_again = 0;
        self.rate_at = now;
    }

    /// Pages dirty in QEMU now: those known, and those the guest has dirtied since at its usual rate.
    pub(super) fn dirty_in_qemu(&self, now: Time, pages_total: u64) -> u64 {
        let since_s = now.since(self.synced_at) as f64 / 1e9;
        let fresh = (self.dirty_pages_per_s * since_s) as u64;
        self.pending.saturating_add(fresh).min(pages_total)
    }
}
