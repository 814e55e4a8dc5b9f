//! QEMU's passes over the guest: how many, how dirty, how fast pages come back.
//!
//! QEMU goes through RAM in the order of page numbers, round and round, and syncs its dirty bitmap whenever little
//! seems to be left, in the middle of a round as well. So neither a sync nor its count says that all of RAM has been gone
//! over; a page number that is not larger than the one before does. That is a pass here; one that found nothing is
//! told by an empty PART. (A guest that dirties memory in order is gone over without a step back: then a pass is what
//! takes QEMU once round its memory.) A source that is not QEMU may know, and tell.

use std::time::Duration;

use crate::precopy::{Pass, PassStats};
use crate::source::SyncInfo;
use crate::types::{PageId, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Passes {
    stats: PassStats,
    /// A pass has ended since the policy was asked.
    pub ended_unasked: bool,
    /// Pages taken in during this pass and pages left to the next one, the last of both, and when it began.
    taken_in: u64,
    skipped: u64,
    last: Option<u32>,
    began_at: Time,
    /// Pages that were dirty at a sync after which no page has come.
    dirty: Option<u64>,
    /// When the bitmap was last synced, as far as is known.
    synced_at: Time,
    /// QEMU's count of syncs, as last told.
    sync_count: Option<u64>,
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
            ended_unasked: false,
            taken_in: 0,
            skipped: 0,
            last: None,
            began_at: Time::default(),
            dirty: None,
            synced_at: Time::default(),
            sync_count: None,
            pending: 0,
            came_again: 0,
            rate_at: Time::default(),
            dirty_pages_per_s: 0.0,
        }
    }

    pub(super) fn started(&mut self, now: Time, pages: u32) {
        self.pending = pages.into();
        self.began_at = now;
        self.synced_at = now;
        self.rate_at = now;
    }

    /// `run` pages from `first` on were taken in, `again` of them not for the first time.
    pub(super) fn took_in(&mut self, now: Time, first: PageId, run: u32, again: u64) {
        if !self.went_on(now, first, run) {
            return;
        }
        self.taken_in += u64::from(run);
        self.pending = self.pending.saturating_sub(run.into());
        self.came_again += again;
    }

    /// `run` pages from `first` on are left to the next pass: they are dirty again.
    pub(super) fn skipped(&mut self, now: Time, first: PageId, run: u32) {
        if self.went_on(now, first, run) {
            self.skipped += u64::from(run);
        }
    }

    /// The source has come to these pages; false if there are none.
    fn went_on(&mut self, now: Time, first: PageId, run: u32) -> bool {
        if run == 0 {
            return false;
        }
        if self.last.is_some_and(|last| first.0 <= last) {
            self.end(now);
        }
        self.last = Some(first.0.saturating_add(run - 1));
        self.dirty = None;
        true
    }

    pub(super) fn synced(&mut self, now: Time, info: SyncInfo) {
        // Told before: what was left then is not what is left now.
        if info.count.is_some() && info.count == self.sync_count {
            return;
        }
        self.sync_count = info.count.or(self.sync_count);
        if let Some(dirty_pages) = info.dirty_pages {
            self.pending = dirty_pages;
            self.dirty = Some(dirty_pages);
            self.synced_at = now;
        }
    }

    /// An empty PART: whatever was dirty has been taken in. Before the first page it means nothing.
    pub(super) fn idle(&mut self, now: Time) {
        if self.last.is_some() || self.stats.ended > 0 {
            self.end(now);
            self.last = None;
            self.pending = 0;
        }
    }

    /// The source says that its pass is over.
    pub(super) fn told_end(&mut self, now: Time) {
        if self.last.take().is_some() {
            self.end(now);
        }
    }

    /// All of RAM was gone over, and since then everything that became dirty meanwhile: what is left is what the guest
    /// dirties now.
    pub(super) fn whole_guest_seen(&self) -> bool {
        self.stats.ended >= 2
    }

    /// The passes so far; those that ended since the last call count as one.
    pub(super) fn take_stats(&mut self) -> PassStats {
        self.ended_unasked = false;
        self.stats
    }

    pub(super) fn ended(&self) -> u32 {
        self.stats.ended
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

    fn end(&mut self, now: Time) {
        let last = Pass {
            sent: std::mem::take(&mut self.taken_in),
            skipped: std::mem::take(&mut self.skipped),
            dirty: self.dirty.take(),
            duration_ns: now.since(self.began_at),
        };
        let carried = last.sent + last.skipped;
        self.stats.carried = if self.ended_unasked { self.stats.carried.min(carried) } else { carried };
        self.stats.ended = self.stats.ended.saturating_add(1);
        self.stats.sent += last.sent;
        self.stats.last = last;
        self.ended_unasked = true;
        self.began_at = now;
        // If it was not told what is dirty: what the guest dirties in the time that the pass took, and no more than came in it, for what is dirtied
        // twice comes once. A pass after a longer one is none to go by; the first, over all of RAM, is like no other.
        self.pending = match last.dirty {
            Some(dirty) => dirty,
            None if self.stats.ended > 1 => {
                carried.min((self.dirty_pages_per_s * (last.duration_ns as f64 / 1e9)).ceil() as u64)
            }
            None => 0,
        };
        self.synced_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_ends_where_the_page_numbers_begin_again() {
        let mut passes = Passes::new();
        passes.started(Time(0), 100);
        for (first, run) in [(0, 50), (50, 49), (99, 1)] {
            passes.took_in(Time(1), PageId(first), run, 0);
        }
        assert_eq!((passes.ended(), passes.ended_unasked), (0, false));
        passes.took_in(Time(2), PageId(7), 1, 1);
        let stats = passes.take_stats();
        assert_eq!((stats.ended, stats.carried, stats.sent), (1, 100, 100));
        assert!(!passes.whole_guest_seen(), "what became dirty meanwhile has not come yet");
        passes.took_in(Time(3), PageId(7), 1, 1);
        assert!(passes.whole_guest_seen());
        passes.took_in(Time(3), PageId(9), 3, 3);
        passes.idle(Time(4));
        let stats = passes.take_stats();
        assert_eq!((stats.ended, stats.carried, stats.sent), (3, 1, 105), "the smaller of the two counts");
        passes.idle(Time(5));
        let stats = passes.take_stats();
        assert_eq!((stats.ended, stats.carried, stats.sent), (4, 0, 105));
    }

    #[test]
    fn a_source_that_tells_ends_a_pass_where_the_numbers_go_on() {
        let mut passes = Passes::new();
        passes.started(Time(0), 100);
        passes.took_in(Time(1), PageId(0), 50, 0);
        passes.synced(Time(2), SyncInfo { count: Some(2), dirty_pages: Some(10) });
        passes.told_end(Time(2));
        passes.told_end(Time(2));
        passes.took_in(Time(3), PageId(50), 10, 10);
        let stats = passes.take_stats();
        assert_eq!((stats.ended, stats.carried, stats.last.dirty), (1, 50, Some(10)));
    }

    #[test]
    fn pages_that_are_skipped_belong_to_their_pass_and_may_be_all_of_it() {
        let mut passes = Passes::new();
        passes.started(Time(0), 100);
        passes.took_in(Time(1), PageId(0), 60, 0);
        passes.skipped(Time(2), PageId(60), 40);
        passes.synced(Time(3), SyncInfo { count: Some(2), dirty_pages: Some(40) });
        passes.skipped(Time(5), PageId(60), 40);
        assert_eq!(passes.take_stats().last, Pass { sent: 60, skipped: 40, dirty: Some(40), duration_ns: 5 });
        assert_eq!(passes.dirty_in_qemu(Time(5), 100), 40);
        passes.took_in(Time(9), PageId(60), 1, 1);
        let stats = passes.take_stats();
        assert_eq!((stats.ended, stats.carried, stats.sent), (2, 40, 60));
        assert_eq!(stats.last, Pass { sent: 0, skipped: 40, dirty: None, duration_ns: 4 });
    }

    #[test]
    fn what_is_left_after_a_pass_is_what_was_dirtied_while_it_went_on() {
        let ms = |ms: u64| Time(ms * 1_000_000);
        let mut passes = Passes::new();
        passes.started(Time(0), 10_000);
        passes.took_in(ms(2000), PageId(0), 10_000, 0);
        // 1000 pages a second, for two seconds; then the passes are short.
        passes.took_in(ms(2000), PageId(0), 2000, 2000);
        passes.measure(ms(2100), Duration::from_secs(1));
        passes.took_in(ms(2100), PageId(0), 1, 1);
        let left = passes.dirty_in_qemu(ms(2100), 10_000);
        assert!((50..=150).contains(&left), "{left}");
        passes.measure(ms(4100), Duration::from_secs(1));
        passes.took_in(ms(4100), PageId(0), 1, 1);
        assert_eq!(passes.dirty_in_qemu(ms(4100), 10_000), 0, "one came, and is dirty again");
    }

    #[test]
    fn an_empty_part_before_the_first_page_is_no_pass() {
        let mut passes = Passes::new();
        passes.started(Time(0), 100);
        passes.idle(Time(1));
        assert_eq!((passes.ended(), passes.dirty_in_qemu(Time(1), 100)), (0, 100));
    }
}
