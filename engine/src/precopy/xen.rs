//! Xen 3's loop, as a baseline: 29 live passes, three times the guest's RAM, or a pass of fewer than 50 pages.
//!
//! QEMU's passes are its passes, so staging is kept small and QEMU runs at the rate of the link. Xen skips pages of a pass that are
//! dirty again when their turn comes; here a page is skipped that comes again while it is staged, which with so little
//! staging happens less often.

use crate::precopy::{Decision, Policy, View};

/// Xen 3's constants.
#[derive(Debug, Clone)]
pub struct Xen3Config {
    /// Passes with the guest running. Default 29.
    pub live_passes: u32,
    /// Pages sent, in multiples of the guest's pages. Default 3.
    pub ram_factor: u64,
    /// A pass of fewer pages than this ends it. Default 50.
    pub few_pages: u64,
    /// Staging, in bytes. Default 1 MiB: eight chunks, enough to keep two workers busy.
    pub staging_bytes: usize,
}

impl Default for Xen3Config {
    fn default() -> Self {
        Xen3Config { live_passes: 29, ram_factor: 3, few_pages: 50, staging_bytes: 1 << 20 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Xen3 {
    config: Xen3Config,
}

impl Xen3 {
    pub fn new(config: Xen3Config) -> Self {
        Xen3 { config }
    }
}

impl Policy for Xen3 {
    fn name(&self) -> &'static str {
        "xen-3"
    }

    fn decide(&mut self, view: &View) -> Decision {
        if !view.pass_ended || !view.whole_guest_seen {
            return Decision::Continue;
        }
        let enough = view.pass.ended >= self.config.live_passes
            || view.pages_sent > self.config.ram_factor.saturating_mul(view.pages_total)
            || view.pass.carried < self.config.few_pages;
        if enough { Decision::SwitchOver } else { Decision::Continue }
    }

    fn paces_passes(&self) -> bool {
        false
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        self.config.staging_bytes.min(configured)
    }
}
