//! When to stop the guest: what a policy sees, what it answers, and the prediction it may use.
//!
//! A policy never acts: the engine turns its answer into an [`crate::Action`], and the caller stops the guest. It is
//! asked at the end of every pass of QEMU and every [`crate::SourceConfig::policy_interval`] in between, as long as the
//! guest runs and no switch-over is under way.

mod adaptive;
pub mod historical;
mod predict;
mod qemu;
mod registry;
mod smart_stop;
mod xen;

pub use adaptive::{Adaptive, AdaptiveConfig};
pub use predict::{Prediction, Terms};
pub use qemu::{Qemu, QemuConfig};
pub use registry::{Common, NAMES, by_name};
pub use smart_stop::{SmartStop, SmartStopConfig};
pub use xen::{Xen3, Xen3Config, Xen3Limiter, Xen46, Xen46Config};

use crate::types::{LinkStats, Time};

/// Decides when the guest is stopped.
pub trait Policy: Send {
    /// The name users choose it by.
    fn name(&self) -> &'static str;

    /// What to do now.
    fn decide(&mut self, view: &View) -> Decision;

    /// The staging budget it wants, of the `configured` one. A policy that takes QEMU's passes for its own wants a
    /// small one, so that QEMU runs at the rate of the link.
    fn staging_bytes(&self, configured: usize) -> usize {
        configured
    }

    /// Which of the engine's encodings are used. A policy that stands for another program has what that program has.
    fn encodings(&self) -> Encodings {
        Encodings::default()
    }

    /// Whether the source's passes are begun when what waits has shrunk, and not one after the other. Not for a policy that stands for a
    /// program which counts passes.
    fn paces_passes(&self) -> bool {
        true
    }

    /// Whether a page that is dirty again when its turn in a pass comes is to be left to the next one: a request to whoever feeds the engine
    /// and can tell, who then reports it ([`crate::Source::skipped`]). QEMU's stream cannot.
    fn skips_redirtied(&self) -> bool {
        false
    }

    /// What may be sent per second, payload, while the guest runs, if the policy has a limiter of its own. Asked before everything that is
    /// sent; may change whenever the policy has been asked.
    fn limit_bytes_per_s(&self) -> Option<u64> {
        None
    }

    /// The switch-over it asked for was given up and the guest runs on here; or it was not asked for a while.
    fn resumed(&mut self, _now: Time) {}

    /// The deadline has come, by the clock of a caller that has its own.
    fn late(&mut self, _now: Time) {}

    /// Of the guest's time this share is really being taken: a guest may obey [`Decision::Throttle`] late.
    fn throttled(&mut self, _now: Time, _share: f32) {}
}

/// The engine's encodings: all of them, unless a policy says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encodings {
    /// Pages of zeros go as runs.
    pub zero: bool,
    /// Contents that occur on many pages go as references.
    pub dictionary: bool,
    /// Pages that were sent before go as deltas, or not at all if they are what was sent.
    pub delta: bool,
    /// Chunks are compressed.
    pub compression: bool,
}

impl Encodings {
    /// Every page whole, as it is.
    pub const NONE: Encodings =
        Encodings { zero: false, dictionary: false, delta: false, compression: false };
}

impl Default for Encodings {
    fn default() -> Self {
        Encodings { zero: true, dictionary: true, delta: true, compression: true }
    }
}

/// What a policy sees.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub now: Time,
    /// When the layout was known.
    pub started: Time,
    /// Asked because a pass has just ended.
    pub pass_ended: bool,
    pub pass: PassStats,
    pub link: LinkStats,
    pub residual: Residual,
    pub prediction: Prediction,
    /// Every page of the guest has been taken in, and what the guest dirtied meanwhile as well.
    pub whole_guest_seen: bool,
    pub pages_total: u64,
    /// Pages sent so far, zero pages included, every version counted.
    pub pages_sent: u64,
}

/// The source's passes over all of RAM so far. A pass goes over the pages that were dirty when it began, in the order of their
/// numbers; the next one over those that became dirty meanwhile.
///
/// What the engine is fed makes them: a page number that is not larger than the one before begins a pass ([`crate::Source::page`],
/// [`crate::Source::zero`], [`crate::Source::skipped`]), [`crate::Source::pass_ended`] ends one, and [`crate::Source::idle`] one over nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassStats {
    /// Passes that have ended.
    pub ended: u32,
    /// Pages the last of them went over, skipped ones included; if several have ended since the policy was last asked, the fewest.
    pub carried: u64,
    /// Pages that all of them sent, skipped ones not counted.
    pub sent: u64,
    /// The last of them.
    pub last: Pass,
}

/// One pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pass {
    /// Pages taken in. With the small staging of a policy that counts passes this is what was sent, but for what staging holds.
    pub sent: u64,
    /// Pages left to the next pass because they were dirty again when their turn came.
    pub skipped: u64,
    /// Pages dirty at its end: what the next one goes over. None if that was not told, by a [`crate::SyncInfo`] between the last page of
    /// this pass and the first of the next.
    pub dirty: Option<u64>,
    /// From its first page to the first of the next one. The first pass begins with the layout.
    pub duration_ns: u64,
}

/// What would have to cross after the guest had been stopped now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residual {
    /// Pages staged, being encoded, or dirty in QEMU.
    pub pages: u64,
    /// The same in bytes before encoding.
    pub raw_bytes: u64,
    /// What of it will have to cross the link, by the ratio seen so far, plus what is encoded and unsent.
    pub encoded_bytes: u64,
}

/// A policy's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Go on copying.
    Continue,
    /// Slow the guest down: the share of its time taken from it, 0.0-0.99.
    Throttle(f32),
    /// Stop the guest now.
    SwitchOver,
    /// Give up; the guest stays here.
    Abort(AbortReason),
}

/// Why the engine gives up. The guest has not been touched.
#[derive(Debug, Clone, PartialEq, Eq, Copy, thiserror::Error)]
pub enum AbortReason {
    /// The guest dirties memory faster than the link carries it, and the deadline has come.
    #[error(
        "not converging: stopping the guest now would take {predicted_ms} ms, {target_ms} ms are allowed"
    )]
    NotConverging { predicted_ms: u64, target_ms: u64 },
    /// The caller fed a page outside the layout it had given. A defect of the caller.
    #[error("page {page} is outside the guest's {pages} pages")]
    PageOutsideLayout { page: u32, pages: u32 },
    /// The caller fed pages or ordered bytes after raw relay or the tail had begun. A defect of the caller.
    #[error("{what} fed after {after}")]
    OutOfOrder { what: &'static str, after: &'static str },
    /// The chunk numbers of a session (2^32) are used up.
    #[error("the session's chunk numbers are used up")]
    SequenceExhausted,
    /// An encoder met a state that cannot be. A defect of the engine.
    #[error("encoding failed: {0}")]
    Encoding(&'static str),
}

/// What happens when the deadline comes and the stop would still be too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeadline {
    /// Stop the guest however long it takes.
    Force,
    /// Slow the guest down, step by step; give up if that does not help either.
    Throttle,
    /// Give up; the guest stays here.
    #[default]
    Abort,
}

#[cfg(test)]
mod testing {
    use super::*;

    /// What a policy sees of a guest of so many pages when a pass has just ended.
    pub(super) fn view(pages_total: u64) -> View {
        View {
            now: Time(0),
            started: Time(0),
            pass_ended: true,
            pass: PassStats { ended: 1, carried: pages_total, ..PassStats::default() },
            link: LinkStats::default(),
            residual: Residual::default(),
            prediction: Prediction::default(),
            whole_guest_seen: false,
            pages_total,
            pages_sent: 0,
        }
    }
}
