//! Xen's loops, as baselines. The guest's passes are theirs: the source goes over what is dirty, then over what became dirty
//! meanwhile, and they count.
//!
//! | | live passes | ends earlier | pages dirty again at their turn |
//! |---|---|---|---|
//! | Xen 3 | 29 | three times the guest's memory sent, or a pass over fewer than 50 pages | skipped, where the source can |
//! | Xen 4.6 | 5 | a pass over 50 pages or fewer | sent |
//!
//! Xen 3 in some builds has a limiter, see [`Xen3Limiter`]. All constants are in [`super::historical`].
//!
//! Whether the source can skip is not theirs to say: [`Policy::skips_redirtied`] asks for it. QEMU's stream cannot; over it a page is
//! skipped only if it comes again while it is staged, so more is sent than Xen would have sent.

use crate::precopy::historical as h;
use crate::precopy::{Decision, Encodings, PassStats, Policy, View};
use crate::types::PAGE_BYTES;

/// Xen 3's constants.
#[derive(Debug, Clone)]
pub struct Xen3Config {
    /// Passes with the guest running.
    pub live_passes: u32,
    /// Pages sent, in multiples of the guest's pages.
    pub ram_factor: u64,
    /// A pass over fewer pages than this ends it.
    pub few_pages: u64,
    /// The limiter of builds that have one. Default none.
    pub limiter: Option<Xen3Limiter>,
    /// Staging, in bytes.
    pub staging_bytes: usize,
}

impl Default for Xen3Config {
    fn default() -> Self {
        Xen3Config {
            live_passes: h::XEN_3_LIVE_PASSES,
            ram_factor: h::XEN_3_RAM_FACTOR,
            few_pages: h::XEN_3_FEW_PAGES,
            limiter: None,
            staging_bytes: h::STAGING_BYTES,
        }
    }
}

/// It begins slowly. After a pass in which the guest dirtied more per second than the limit, the limit is that and a step more;
/// it never falls. With the guest stopped there is none.
#[derive(Debug, Clone)]
pub struct Xen3Limiter {
    /// Of Xen's megabits ([`h::XEN_3_LIMIT_BYTES_PER_MBIT`]) per second, all three.
    pub start_mbit: u64,
    pub step_mbit: u64,
    pub most_mbit: u64,
}

impl Default for Xen3Limiter {
    fn default() -> Self {
        Xen3Limiter {
            start_mbit: h::XEN_3_START_MBIT,
            step_mbit: h::XEN_3_STEP_MBIT,
            most_mbit: h::XEN_3_MOST_MBIT,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Xen3 {
    config: Xen3Config,
    limit_mbit: u64,
    /// What the pass before the last one sent; the first is compared with all of memory.
    sent_before: Option<u64>,
}

impl Xen3 {
    pub fn new(config: Xen3Config) -> Self {
        let limit_mbit = config.limiter.as_ref().map_or(0, |limiter| limiter.start_mbit);
        Xen3 { config, limit_mbit, sent_before: None }
    }

    /// Whether the pass that has just ended was the last one with the guest running.
    pub(super) fn is_enough(&mut self, view: &View) -> bool {
        let pass = &view.pass;
        let grows = pass.last.sent > self.sent_before.unwrap_or(view.pages_total);
        self.sent_before = Some(pass.last.sent);
        let at_its_most =
            self.config.limiter.as_ref().is_some_and(|limiter| self.limit_mbit >= limiter.most_mbit);
        (grows && at_its_most)
            || pass.ended >= self.config.live_passes
            || pass.carried < self.config.few_pages
            || pass.sent > self.config.ram_factor.saturating_mul(view.pages_total)
    }

    fn raise_limit(&mut self, view: &View) {
        let Some(limiter) = &self.config.limiter else { return };
        let dirtied_mbit = mbit_per_s(dirtied(view), view.pass.last.duration_ns);
        if dirtied_mbit > self.limit_mbit {
            self.limit_mbit = (dirtied_mbit + limiter.step_mbit).min(limiter.most_mbit);
        }
    }
}

impl Policy for Xen3 {
    fn name(&self) -> &'static str {
        if self.config.limiter.is_some() { "xen-3-limited" } else { "xen-3" }
    }

    fn decide(&mut self, view: &View) -> Decision {
        if !view.pass_ended {
            return Decision::Continue;
        }
        let enough = self.is_enough(view);
        self.raise_limit(view);
        if enough { Decision::SwitchOver } else { Decision::Continue }
    }

    fn encodings(&self) -> Encodings {
        Encodings::NONE
    }

    fn paces_passes(&self) -> bool {
        false
    }

    fn skips_redirtied(&self) -> bool {
        true
    }

    fn limit_bytes_per_s(&self) -> Option<u64> {
        self.config.limiter.as_ref().map(|_| self.limit_mbit * h::XEN_3_LIMIT_BYTES_PER_MBIT)
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.config.staging_bytes.min(configured)
    }
}

/// Xen 4.6's constants.
#[derive(Debug, Clone)]
pub struct Xen46Config {
    /// Passes with the guest running.
    pub live_passes: u32,
    /// A pass over no more pages than this ends it.
    pub few_pages: u64,
    /// Staging, in bytes.
    pub staging_bytes: usize,
}

impl Default for Xen46Config {
    fn default() -> Self {
        Xen46Config {
            live_passes: h::XEN_46_LIVE_PASSES,
            few_pages: h::XEN_46_FEW_PAGES,
            staging_bytes: h::STAGING_BYTES,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Xen46 {
    config: Xen46Config,
}

impl Xen46 {
    pub fn new(config: Xen46Config) -> Self {
        Xen46 { config }
    }
}

impl Policy for Xen46 {
    fn name(&self) -> &'static str {
        "xen-4.6"
    }

    fn decide(&mut self, view: &View) -> Decision {
        let PassStats { ended, carried, last, .. } = view.pass;
        let enough =
            ended >= self.config.live_passes || carried <= self.config.few_pages || last.dirty == Some(0);
        if view.pass_ended && enough { Decision::SwitchOver } else { Decision::Continue }
    }

    fn encodings(&self) -> Encodings {
        Encodings::NONE
    }

    fn paces_passes(&self) -> bool {
        false
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.config.staging_bytes.min(configured)
    }
}

/// Pages the guest dirtied during the last pass: told, or what is left.
pub(super) fn dirtied(view: &View) -> u64 {
    view.pass.last.dirty.unwrap_or(view.residual.pages)
}

/// As Xen counts: whole milliseconds, whole megabits.
fn mbit_per_s(pages: u64, duration_ns: u64) -> u64 {
    let bits = pages.saturating_mul(PAGE_BYTES as u64 * 8);
    let ms = (duration_ns / 1_000_000).max(1);
    bits / (ms * (h::XEN_3_DIRTIED_BITS_PER_MBIT / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::Pass;
    use crate::precopy::testing::view;

    /// Passes end, `(sent, skipped)` each; the number of the one that the policy stops after.
    fn stops_after(policy: &mut dyn Policy, passes: impl IntoIterator<Item = (u64, u64)>) -> Option<u32> {
        let mut view = view(32_768);
        for (ended, (sent, skipped)) in (1..).zip(passes) {
            view.pass.ended = ended;
            view.pass.carried = sent + skipped;
            view.pass.sent += sent;
            view.pass.last = Pass { sent, skipped, dirty: Some(1000), duration_ns: 1_000_000_000 };
            match policy.decide(&view) {
                Decision::Continue => {}
                Decision::SwitchOver => return Some(ended),
                other => panic!("{other:?}"),
            }
        }
        None
    }

    fn xen_3() -> Xen3 {
        Xen3::new(Xen3Config::default())
    }

    #[test]
    fn xen_3_makes_29_live_passes() {
        let passes = std::iter::once((32_768, 0)).chain(std::iter::repeat((2000, 50)));
        assert_eq!(stops_after(&mut xen_3(), passes), Some(29));
    }

    #[test]
    fn xen_3_sends_three_times_the_memory_and_skipped_pages_are_not_sent() {
        let passes = |sent| std::iter::once((32_768, 0)).chain(std::iter::repeat((sent, 0)));
        assert_eq!(stops_after(&mut xen_3(), passes(8192)), Some(10), "3 x 32768 is not more than that");
        assert_eq!(stops_after(&mut xen_3(), passes(8193)), Some(9));
        let skipping = std::iter::once((32_768, 0)).chain(std::iter::repeat((2000, 30_000)));
        assert_eq!(stops_after(&mut xen_3(), skipping), Some(29));
    }

    #[test]
    fn xen_3_stops_after_a_pass_over_fewer_than_50_pages_sent_or_skipped() {
        let passes = |last: (u64, u64)| [(32_768, 0), (500, 0), last, (500, 0)];
        assert_eq!(stops_after(&mut xen_3(), passes((49, 0))), Some(3));
        assert_eq!(stops_after(&mut xen_3(), passes((9, 40))), Some(3));
        assert_eq!(stops_after(&mut xen_3(), passes((9, 41))), None);
    }

    #[test]
    fn xen_4_6_makes_five_passes_or_stops_after_one_over_50_pages() {
        let xen = || Xen46::new(Xen46Config::default());
        assert_eq!(stops_after(&mut xen(), std::iter::repeat_n((32_768, 0), 9)), Some(5));
        assert_eq!(stops_after(&mut xen(), [(32_768, 0), (51, 0), (50, 0), (50, 0)]), Some(3));
    }

    #[test]
    fn the_limit_follows_what_the_guest_dirties_up_to_500() {
        let mut xen =
            Xen3::new(Xen3Config { limiter: Some(Xen3Limiter::default()), ..Xen3Config::default() });
        assert_eq!((xen.name(), xen.limit_bytes_per_s()), ("xen-3-limited", Some(100 << 17)));
        let mut pass = |ended, sent, dirty, ms: u64| {
            let mut view = view(32_768);
            view.pass.ended = ended;
            view.pass.carried = sent;
            view.pass.last = Pass { sent, skipped: 0, dirty: Some(dirty), duration_ns: ms * 1_000_000 };
            (xen.decide(&view), xen.limit_bytes_per_s().map(|bytes| bytes >> 17))
        };
        // 1000 pages in a second: 32 Mbit/s.
        assert_eq!(pass(1, 32_768, 1000, 1000), (Decision::Continue, Some(100)));
        // 6104 pages: 200 Mbit/s.
        assert_eq!(pass(2, 1000, 6104, 1000), (Decision::Continue, Some(250)));
        assert_eq!(pass(3, 6104, 1000, 1000), (Decision::Continue, Some(250)), "it never falls");
        assert_eq!(pass(4, 1000, 20_000, 1000), (Decision::Continue, Some(500)));
        assert_eq!(pass(5, 900, 20_000, 1000), (Decision::Continue, Some(500)));
        assert_eq!(
            pass(6, 901, 20_000, 1000).0,
            Decision::SwitchOver,
            "at its most, a pass that grows ends it"
        );
    }

    #[test]
    fn between_passes_nothing_is_decided() {
        let mut view = view(32_768);
        view.pass_ended = false;
        view.pass.ended = 100;
        assert_eq!(xen_3().decide(&view), Decision::Continue);
        assert_eq!(Xen46::new(Xen46Config::default()).decide(&view), Decision::Continue);
    }
}
