//! `cargo lab sim`: a whole migration in virtual time, on the engine itself.
//!
//! ```text
//!  guest ─ writes ─▶ host: passes ─▶ Source ─▶ workers ─▶ link ─▶ Receiver ─▶ memory
//!  (the test guest's      (QEMU's,     (the engine's,     (window, rate,   (the engine's)
//!   own code)              Xen's)       real encoding)     queue, delay)
//! ```
//!
//! Pages, chunks, deltas and what the compressors make of them are real; time is not. So a run depends on nothing of the machine, the
//! same setup gives the same run, and memory is compared in the end, page for page.
//!
//! | file | what it holds |
//! |---|---|
//! | `guest`, `bitmap` | the test guest's memory and writes |
//! | `host` | QEMU's passes, or Xen's |
//! | `cost` | what encoding takes |
//! | `link` | window, bottleneck, round trip, credit |
//! | `ram` | the destination's memory |
//! | `driver` | the order of events |
//! | `scale` | a large guest by a smaller one |
//! | `report`, `matrix`, `cli` | `cargo lab sim` |
//!
//! Not modelled: what single losses do to single lanes, the destination's processor, QMP, disks. Every assumption is a field of
//! [`Setup`].

mod bitmap;
pub mod cli;
mod cost;
mod driver;
mod guest;
mod host;
mod link;
mod matrix;
mod ram;
mod report;
mod scale;

// The test guest's own. Not all of it is used here: the guest damages itself when asked, and checks itself.
#[allow(dead_code, reason = "shared with the test guest")]
#[path = "../../guest/params.rs"]
mod params;
#[path = "../../guest/pattern.rs"]
mod pattern;
#[allow(dead_code, reason = "shared with the test guest")]
#[path = "../../guest/plan.rs"]
mod plan;

pub use cost::EncodeSpeed;
pub use driver::{SimError, run};
pub(crate) use guest::Guest;
pub use guest::{GuestConfig, GuestError};
pub use host::{HostConfig, PassTrace};
pub use link::LinkConfig;
pub use ram::Ram;
pub use scale::Scale;

use std::time::Duration;

use hikyaku_engine::precopy::Terms;
use hikyaku_engine::{AbortReason, Progress, ReceiverConfig, SourceConfig};

// By these names the guest's modules know each other.
use crate::{page, rng};

/// Everything a run depends on, but for the policy.
#[derive(Debug, Clone)]
pub struct Setup {
    pub guest: GuestConfig,
    pub host: HostConfig,
    pub link: LinkConfig,
    /// `workers` is how many there are.
    pub source: SourceConfig,
    pub receiver: ReceiverConfig,
    pub encode: EncodeSpeed,
    pub stop: StopCost,
    /// A source host as QEMU is, whatever the policy wishes: nothing is skipped.
    pub over_qemu: bool,
    /// The first stop is given up when the guest has stood still for so long.
    pub first_stop_fails_after: Option<Duration>,
    /// It is given up after so long. Default 10 min.
    pub limit: Duration,
    pub seed: u64,
}

impl Setup {
    pub fn new(guest: GuestConfig, link: LinkConfig) -> Self {
        Setup {
            guest,
            host: HostConfig::default(),
            link,
            source: SourceConfig::default(),
            receiver: ReceiverConfig::default(),
            encode: EncodeSpeed::default(),
            stop: StopCost::default(),
            over_qemu: false,
            first_stop_fails_after: None,
            limit: Duration::from_secs(600),
            seed: 1,
        }
    }
}

/// What stopping and starting the guest takes. The engine is told the same terms.
#[derive(Debug, Clone)]
pub struct StopCost {
    /// From the wish until the guest stands still; it works meanwhile. Default 1 ms.
    pub wish: Duration,
    /// From then until the last dirty pages are put out. Default that of [`Terms`].
    pub pause: Duration,
    /// Device state: half to save it, half to load it. Default that of [`Terms`].
    pub state: Duration,
    pub tail_bytes: usize,
    /// From the loaded state until the guest runs. Default that of [`Terms`].
    pub resume: Duration,
}

impl Default for StopCost {
    fn default() -> Self {
        let Terms { pause, state, resume, .. } = Terms::default();
        StopCost { wish: Duration::from_millis(1), pause, state, resume, tail_bytes: 177_000 }
    }
}

impl StopCost {
    /// Nothing but the link.
    pub fn none() -> Self {
        let zero = Duration::ZERO;
        StopCost { wish: zero, pause: zero, state: zero, resume: zero, tail_bytes: 64 }
    }
}

/// How it ended.
#[derive(Debug, Clone)]
pub enum End {
    /// The guest runs at the destination.
    Moved,
    Aborted(AbortReason),
    /// The limit came first.
    Unfinished,
}

/// What a run came to.
pub struct Report {
    pub end: End,
    /// Every page arrived as it was when the guest stopped.
    pub memory_equal: bool,
    pub total: Duration,
    /// None: it was not moved.
    pub gap: Option<Duration>,
    /// What was predicted when the policy wanted the guest stopped.
    pub predicted_gap: Option<Duration>,
    pub switches: u32,
    /// TCP payload.
    pub sent_bytes: u64,
    /// The passes of the source; the last one with the guest stopped.
    pub passes: Vec<PassTrace>,
    pub pages_fed: u64,
    /// The guest's writes until it stood still.
    pub writes: u64,
    pub progress: Progress,
    /// The most memory beyond metadata.
    pub source_peak_bytes: usize,
    pub receiver_peak_bytes: usize,
    pub reordered: u64,
    /// The destination's memory.
    pub ram: Ram,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report")
            .field("end", &self.end)
            .field("memory_equal", &self.memory_equal)
            .field("total", &self.total)
            .field("gap", &self.gap)
            .field("predicted_gap", &self.predicted_gap)
            .field("switches", &self.switches)
            .field("sent_bytes", &self.sent_bytes)
            .field("passes", &self.passes.len())
            .field("pages_fed", &self.pages_fed)
            .field("writes", &self.writes)
            .field("source_peak_bytes", &self.source_peak_bytes)
            .field("receiver_peak_bytes", &self.receiver_peak_bytes)
            .field("reordered", &self.reordered)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}
