//! Holding back a QEMU that knows no SWITCHOVER_ACK (before 8.1).
//!
//! Such a QEMU stops the guest by itself as soon as a bitmap sync leaves less than `bandwidth x downtime-limit` dirty. It cannot go
//! on while nobody reads its socket. So it is read in *grants*, each smaller than what QEMU must write before the pass
//! can end (nine bytes per dirty page, were they all zero), with a look at `query-migrate` in between:
//!
//! ```text
//! pass ──grant──grant──grant─┬ few pages left: the gate.
//!                            │   next pass expected to be short → stop the guest now (QMP `stop`), then read on
//!                            └─  else small grants across the sync, and on with the next pass
//! ```
//!
//! What is in its buffers and in the socket is out of reach: a short tail of zero pages may be all there. So nearer than that to
//! the end of a pass, the pass may end at any time, and QEMU stop its guest. That is made harmless: it is not led there
//! while the link is down, nor before what was read is nearly sent, so that a guest that QEMU stops there stands for as
//! short a time as one that we stop.
//!
//! Pure: time and the figures of QMP and of the link are arguments.

use std::time::Duration;

/// What the socket of such a QEMU is set to hold; Linux makes it twice that.
pub const SOCKET_BYTES: usize = 32 << 10;
/// A zero page's record in QEMU's stream: the least a dirty page takes.
const RECORD_BYTES: u64 = 9;
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
pub struct GateConfig {
    /// The least that is granted. Default 64 KiB: smaller ones only add QMP round trips; QEMU buffers 32 KiB itself.
    pub min_grant_bytes: u64,
    /// With fewer dirty pages than this left, the gate is reached. Default 512.
    pub gate_pages: u64,
    /// What QEMU may have written before anybody reads it: 32 KiB in its own buffer, and twice what the socket is set to hold.
    pub ahead_bytes: u64,
    /// Before the end of a pass it is waited so long, at most, for what was read to be sent. Default 5 s: pages that the guest
    /// changes faster than they can be sent are held back until the next pass.
    pub longest_wait: Duration,
    /// After a sync so many least grants follow, so that the policy sees the new pass before it is read. Default 3.
    pub small_grants_after_sync: u32,
    /// A next pass of at most this is short, whatever the link does. Default 1 MiB, eight times what makes QEMU stop at
    /// 1 Gbit/s.
    pub short_pass_bytes: u64,
}

impl Default for GateConfig {
    fn default() -> Self {
        GateConfig {
            min_grant_bytes: 64 << 10,
            gate_pages: 512,
            ahead_bytes: (32 << 10) + 2 * SOCKET_BYTES as u64,
            longest_wait: Duration::from_secs(5),
            small_grants_after_sync: 3,
            short_pass_bytes: 1 << 20,
        }
    }
}

/// What QMP and the link say at a look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Since the migration began.
    pub at: Duration,
    /// Dirty bytes QEMU has not written yet.
    pub remaining_bytes: u64,
    pub sync_count: u64,
    pub goodput_bytes_per_s: u64,
    /// What was read of QEMU and has not arrived.
    pub waiting_bytes: u64,
    /// The pass may come to its end, and the guest be stopped there.
    pub may_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look again before anything more is read.
    Wait,
    /// Read so many bytes, then look again.
    Grant(u64),
    /// Stop the guest before anything more is read.
    Switch,
}

#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    downtime_target: Duration,
    /// Measured before the first sync by QEMU's sampling, then pass by pass; None: not known.
    dirty_bytes_per_s: Option<f64>,
    pass_began: Duration,
    sync_count: u64,
    small_grants_left: u32,
    /// Since when the end of this pass is waited before.
    waits_since: Option<Duration>,
}

impl Gate {
    pub fn new(config: GateConfig, downtime_target: Duration) -> Gate {
        Gate {
            config,
            downtime_target,
            dirty_bytes_per_s: None,
            pass_began: Duration::ZERO,
            sync_count: 0,
            small_grants_left: 0,
            waits_since: None,
        }
    }

    /// QEMU's own sample of how fast the guest dirties memory. It sees whole megabytes: 0 means less than one.
    pub fn sampled(&mut self, bytes_per_s: f64) {
        self.dirty_bytes_per_s.get_or_insert(bytes_per_s);
    }

    pub fn look(&mut self, look: Look) -> Step {
        if look.sync_count != self.sync_count {
            let first = self.sync_count == 0;
            self.sync_count = look.sync_count;
            if !first {
                let lasted = look.at.saturating_sub(self.pass_began).as_secs_f64().max(1e-3);
                self.dirty_bytes_per_s = Some(look.remaining_bytes as f64 / lasted);
                self.small_grants_left = self.config.small_grants_after_sync;
            }
            self.pass_began = look.at;
            self.waits_since = None;
        }
        let least_left = look.remaining_bytes / PAGE_BYTES * RECORD_BYTES;
        if least_left <= self.config.ahead_bytes + self.config.min_grant_bytes && self.must_wait(look) {
            return Step::Wait;
        }
        if look.remaining_bytes / PAGE_BYTES < self.config.gate_pages && self.next_pass_is_short(look) {
            return Step::Switch;
        }
        if self.small_grants_left > 0 {
            self.small_grants_left -= 1;
            return Step::Grant(self.config.min_grant_bytes);
        }
        Step::Grant(least_left.saturating_sub(self.config.min_grant_bytes).max(self.config.min_grant_bytes))
    }

    /// The pass may end now.
    fn must_wait(&mut self, look: Look) -> bool {
        if !look.may_end {
            return true;
        }
        let since = *self.waits_since.get_or_insert(look.at);
        look.waiting_bytes as f64 > self.bearable_bytes(look)
            && look.at.saturating_sub(since) < self.config.longest_wait
    }

    /// What is left and what the next sync will find could be sent within the downtime that is aimed at.
    fn next_pass_is_short(&self, look: Look) -> bool {
        let Some(rate) = self.dirty_bytes_per_s else { return false };
        let lasted = look.at.saturating_sub(self.pass_began).as_secs_f64();
        let expected = rate * lasted + look.remaining_bytes as f64;
        expected <= self.bearable_bytes(look)
    }

    fn bearable_bytes(&self, look: Look) -> f64 {
        let bearable = look.goodput_bytes_per_s as f64 * self.downtime_target.as_secs_f64() / 2.0;
        bearable.max(self.config.short_pass_bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn gate() -> Gate {
        Gate::new(GateConfig::default(), Duration::from_millis(300))
    }

    fn look(ms: u64, remaining_bytes: u64, sync_count: u64) -> Look {
        let at = Duration::from_millis(ms);
        let (goodput_bytes_per_s, waiting_bytes, may_end) = (100_000_000, 0, true);
        Look { at, remaining_bytes, sync_count, goodput_bytes_per_s, waiting_bytes, may_end }
    }

    #[test]
    fn a_grant_never_lets_a_pass_of_zero_pages_end() {
        let mut gate = gate();
        let mut remaining = 1024 * MIB;
        while remaining / PAGE_BYTES > 20_000 {
            let Step::Grant(bytes) = gate.look(look(0, remaining, 1)) else { panic!("no rate is known") };
            assert!(bytes / RECORD_BYTES < remaining / PAGE_BYTES);
            remaining -= bytes / RECORD_BYTES * PAGE_BYTES;
        }
    }

    #[test]
    fn a_pass_does_not_end_before_what_was_read_is_sent() {
        let (full, mut gate) = (100 * MIB, gate());
        let behind = |ms, remaining| Look { waiting_bytes: full, ..look(ms, remaining, 1) };
        assert!(matches!(gate.look(behind(0, 512 * MIB)), Step::Grant(_)));
        assert_eq!(gate.look(behind(1000, 32 * MIB)), Step::Wait);
        assert!(matches!(gate.look(look(1100, 32 * MIB, 1)), Step::Grant(_)));
        // What the guest changes all the time is never sent.
        assert_eq!(gate.look(behind(5900, 30 * MIB)), Step::Wait);
        assert!(matches!(gate.look(behind(6100, 30 * MIB)), Step::Grant(_)));
    }

    #[test]
    fn a_pass_does_not_end_while_the_link_is_down() {
        let mut gate = gate();
        let down = |ms, remaining| Look { may_end: false, ..look(ms, remaining, 1) };
        assert!(matches!(gate.look(down(0, 512 * MIB)), Step::Grant(_)));
        assert_eq!(gate.look(down(1000, 32 * MIB)), Step::Wait);
        assert_eq!(gate.look(down(500_000, 32 * MIB)), Step::Wait);
    }

    #[test]
    fn an_idle_guest_is_stopped_before_its_first_pass_ends() {
        let mut gate = gate();
        gate.sampled(0.0);
        assert!(matches!(gate.look(look(0, 512 * MIB, 1)), Step::Grant(_)));
        assert_eq!(gate.look(look(5000, MIB, 1)), Step::Switch);
    }

    #[test]
    fn a_busy_guest_goes_on_into_the_next_pass() {
        let mut gate = gate();
        gate.sampled(50e6);
        gate.look(look(0, 512 * MIB, 1));
        assert!(matches!(gate.look(look(5000, MIB, 1)), Step::Grant(_)));
        // The next pass: its first grants are small, whatever its length.
        assert_eq!(gate.look(look(5010, 200 * MIB, 2)), Step::Grant(64 << 10));
    }

    #[test]
    fn passes_that_become_short_end_in_a_switch() {
        let mut gate = gate();
        gate.sampled(10e6);
        gate.look(look(0, 512 * MIB, 1));
        gate.look(look(5000, 40 * MIB, 2));
        assert_eq!(gate.look(look(5400, MIB, 2)), Step::Switch);
    }

    #[test]
    fn without_any_rate_the_gate_is_crossed_and_the_rate_learnt() {
        let mut gate = gate();
        gate.look(look(0, 512 * MIB, 1));
        assert!(matches!(gate.look(look(5000, 0, 1)), Step::Grant(_)));
        gate.look(look(5001, 2 * MIB, 2));
        assert_eq!(gate.look(look(5010, MIB, 2)), Step::Switch);
    }
}
