//! A large guest by a smaller one: one simulated page stands for `k` real ones.
//!
//! | divided by `k` | as it is |
//! |---|---|
//! | memory, working set, drift, writes per second | time: round trips, stop costs, intervals |
//! | rate, credit, windows | what a page holds, bytes changed in it, so what it compresses to |
//! | what the host and a worker do per second | ratios: dirtied to sent, encoded to raw |
//! | staging, bases | contents in the dictionary: the guest has as many |
//!
//! Exact are total, bytes and passes of what is proportional to memory. Not exact: a chunk takes `k` times as long on the wire, so all that
//! depends on a single chunk is coarse (the end of a pass, the gap: by two or three chunks); staging has room for a few chunks
//! however large `k` is; a Zipf law over fewer pages has a shorter tail; the tail of the stream and the smallest pass are a page.
//!
//! A policy sees real numbers: what it is shown is multiplied, what it answers divided.

use hikyaku_engine::precopy::{Encodings, Pass};
use hikyaku_engine::{Decision, Delta, PAGE_BYTES, Policy, Time, View};

use super::Setup;

/// Real pages per simulated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale(u32);

/// From here on chunks are smaller, so that what depends on one of them is less coarse. Smaller ones would compress less.
const SMALLER_CHUNKS_FROM: u32 = 16;
const SMALLER_CHUNK_BYTES: usize = 64 << 10;

impl Scale {
    /// So that a guest of `mib` is held in `held_mib`.
    pub fn to_hold(mib: u64, held_mib: u64) -> Self {
        Scale(u32::try_from(mib.div_ceil(held_mib.max(1))).unwrap_or(u32::MAX).max(1))
    }

    pub fn factor(self) -> u32 {
        self.0
    }

    /// The setup of a real guest, for the simulated one. Its `guest.pages` is the simulated one's already.
    pub fn apply(self, real: Setup) -> Setup {
        let Scale(k) = self;
        if k == 1 {
            return real;
        }
        let by = f64::from(k);
        let mut setup = real;
        setup.guest.pages_per_s /= by;
        let load = &mut setup.guest.load;
        load.set_pages = if load.set_pages == u32::MAX { u32::MAX } else { load.set_pages.div_ceil(k) };
        load.drift_pages_per_s /= k;
        setup.host.bytes_per_s /= by;
        setup.host.zero_bytes_per_s /= by;
        setup.host.peek_pages = setup.host.peek_pages.div_ceil(k.into());
        setup.encode = setup.encode.divided(by);
        setup.link.bytes_per_s /= by;
        setup.link.first_window_bytes /= by;
        let source = &mut setup.source;
        if k >= SMALLER_CHUNKS_FROM {
            source.chunk_bytes = source.chunk_bytes.min(SMALLER_CHUNK_BYTES);
        }
        let few_chunks = source.chunk_bytes * (2 * source.encode_jobs).max(8);
        let divided = |bytes: usize| bytes / k as usize;
        source.staging_bytes = divided(source.staging_bytes).max(few_chunks);
        source.raw_staging_bytes = divided(source.raw_staging_bytes).max(few_chunks);
        source.pool_bytes = divided(source.pool_bytes).max(few_chunks);
        // Nobody's workers are as slow as these; it would be long before that is believed.
        source.choice.first_guess.iter_mut().for_each(|(_, mb_per_s)| *mb_per_s /= by);
        source.choice.opening_bytes_per_s /= u64::from(k);
        // A chunk takes `k` times as long to encode, and may be more than the window's time on the wire.
        source.window_bytes = source.window_bytes.max((source.chunk_bytes * source.encode_jobs) as u64);
        let budget_bytes = match source.delta {
            Delta::Off => 0,
            delta => delta.budget_bytes(setup.guest.pages.saturating_mul(k)) / k as usize,
        };
        source.delta = match source.delta {
            Delta::Off => Delta::Off,
            _ => Delta::Always { base_budget_bytes: budget_bytes.max(PAGE_BYTES * 16) },
        };
        let few_chunks = few_chunks as u64 * 2;
        setup.link.credit_bytes = (setup.link.credit_bytes / u64::from(k)).max(few_chunks);
        setup.stop.tail_bytes = (setup.stop.tail_bytes / k as usize).max(64);
        setup
    }

    /// The policy, shown real numbers.
    pub fn policy(self, inner: Box<dyn Policy>) -> Box<dyn Policy> {
        if self.0 == 1 { inner } else { Box::new(Scaled { inner, k: self.0.into() }) }
    }
}

struct Scaled {
    inner: Box<dyn Policy>,
    k: u64,
}

impl Policy for Scaled {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn decide(&mut self, view: &View) -> Decision {
        let times = |figure: u64| figure.saturating_mul(self.k);
        let mut view = *view;
        let Pass { sent, skipped, dirty, duration_ns } = view.pass.last;
        view.pass.carried = times(view.pass.carried);
        view.pass.sent = times(view.pass.sent);
        view.pass.last =
            Pass { sent: times(sent), skipped: times(skipped), dirty: dirty.map(times), duration_ns };
        view.link.goodput_bytes_per_s = times(view.link.goodput_bytes_per_s);
        view.link.unsent_bytes = times(view.link.unsent_bytes);
        view.link.in_flight_bytes = times(view.link.in_flight_bytes);
        view.link.credit_bytes = times(view.link.credit_bytes);
        view.residual.pages = times(view.residual.pages);
        view.residual.raw_bytes = times(view.residual.raw_bytes);
        view.residual.encoded_bytes = times(view.residual.encoded_bytes);
        view.pages_total = times(view.pages_total);
        view.pages_sent = times(view.pages_sent);
        self.inner.decide(&view)
    }

    fn staging_bytes(&self, configured: usize) -> usize {
        let real = configured.saturating_mul(self.k as usize);
        let wanted = self.inner.staging_bytes(real);
        // What it wants less of is small anyhow; some chunks must fit.
        if wanted >= real { configured } else { configured.min(SMALLER_CHUNK_BYTES * 8) }
    }

    fn encodings(&self) -> Encodings {
        self.inner.encodings()
    }

    fn paces_passes(&self) -> bool {
        self.inner.paces_passes()
    }

    fn skips_redirtied(&self) -> bool {
        self.inner.skips_redirtied()
    }

    fn limit_bytes_per_s(&self) -> Option<u64> {
        self.inner.limit_bytes_per_s().map(|limit| (limit / self.k).max(1))
    }

    fn resumed(&mut self, now: Time) {
        self.inner.resumed(now);
    }
}
