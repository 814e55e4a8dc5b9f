//! Who owns the guest: what each side may do next ([`Source`], [`Destination`]), and what people are shown of it ([`Phase`]).
//!
//! ```text
//! source:       Preparing → Copying ⇄ LinkLost → Stopped → Ceded ──running──▶ Moved
//!                   │          │          │         │         └──refused──▶ Resumed
//!                   └──────────┴──────────┴─────────┴─ any failure ─▶ Failed
//! destination:  Armed → Filling ⇄ LinkLost → Loading → Starting → Running
//!                   └──────┴──────────┴─────────┴─▶ Refused
//! ```
//!
//! **Until `Ceded` the guest is the source's**: whatever fails, it runs on there. From `Starting` on it is the
//! destination's. Between the two nobody starts it but the destination, and the source asks until it knows.
//!
//! A guest of libvirt's is libvirt's all the time: `Copying → Handed → Moved`, and `Filling → Handed → Running`, are what was seen of it.

mod answer;
mod destination;
#[cfg(test)]
mod explore;
mod source;

pub use answer::{Known, known};
pub use destination::{Destination, Step as DestinationStep};
pub use source::{Source, Step as SourceStep};

use serde::{Deserialize, Serialize};
use std::fmt;

/// A step that must not follow. It was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a defect of hikyakud: {step} must not follow {state}, and was not done")]
pub struct Forbidden {
    state: String,
    step: String,
}

/// What people and programs are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    // At the source.
    /// QEMU and the peer are being asked; the guest is not touched, but that its pages may go ahead of the answer.
    Preparing,
    /// The guest runs; its pages travel.
    Copying,
    /// The guest runs (or is continued); the link is being sought.
    LinkLost,
    /// Stopped by us, and still ours.
    Stopped,
    /// Let go: only the destination's verdict says where it runs.
    Ceded,
    /// A guest of libvirt's, at either side: it stands, and where it goes on is libvirt's to say.
    Handed,
    /// The destination runs it (or holds it stopped, as asked).
    Moved,
    /// The destination refused it after Ceded; it runs here again.
    Resumed,
    /// Failed before Ceded; the guest runs on here.
    Failed,
    // At the destination.
    /// A QEMU waits for the guest.
    Armed,
    /// Pages are being written into that QEMU.
    Filling,
    /// Everything has arrived; QEMU loads the device state.
    Loading,
    /// The guest is ours and is being started.
    Starting,
    /// It runs here (or is held stopped, as asked).
    Running,
    /// Not taken, for good.
    Refused,
}

impl Phase {
    /// Whether `next` may follow. Everything else is a programming error, caught where phases are set.
    pub fn may_become(self, next: Phase) -> bool {
        use Phase::*;
        match self {
            Preparing => matches!(next, Copying | Failed),
            Copying => matches!(next, LinkLost | Stopped | Handed | Failed),
            // Handed: libvirt does not wait for the link.
            LinkLost => matches!(next, Copying | Filling | Handed | Failed | Refused),
            // Not back to Copying: QEMU's stream has come to its end, and another one needs another session.
            Stopped => matches!(next, Ceded | Failed),
            Ceded => matches!(next, Moved | Resumed),
            Handed => matches!(next, Moved | Failed | Running | Refused),
            Armed => matches!(next, Filling | Refused),
            Filling => matches!(next, LinkLost | Loading | Handed | Refused),
            Loading => matches!(next, Starting | Refused),
            // A guest that QEMU cannot run although it loaded: the verdict is *refused*, and the source may continue it,
            // because it never ran here.
            Starting => matches!(next, Running | Refused),
            Moved | Resumed | Failed | Running | Refused => false,
        }
    }

    pub fn is_final(self) -> bool {
        use Phase::*;
        matches!(self, Moved | Resumed | Failed | Running | Refused)
    }

    /// Whether an operator's `cancel` can still leave the guest where it was.
    pub fn can_be_cancelled(self) -> bool {
        use Phase::*;
        matches!(self, Preparing | Copying | LinkLost | Stopped | Armed | Filling)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Phase::*;
        f.write_str(match self {
            Preparing => "preparing",
            Copying => "copying",
            LinkLost => "link lost",
            Stopped => "stopped",
            Ceded => "ceded",
            Handed => "handed over",
            Moved => "moved",
            Resumed => "resumed here",
            Failed => "failed",
            Armed => "awaiting",
            Filling => "filling",
            Loading => "loading",
            Starting => "starting",
            Running => "arrived",
            Refused => "refused",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Phase::{self, *};

    const ALL: [Phase; 15] = [
        Preparing, Copying, LinkLost, Stopped, Ceded, Handed, Moved, Resumed, Failed, Armed, Filling,
        Loading, Starting, Running, Refused,
    ];

    #[test]
    fn after_ceded_only_the_verdict_decides() {
        let next: Vec<_> = ALL.into_iter().filter(|n| Ceded.may_become(*n)).collect();
        assert_eq!(next, [Moved, Resumed]);
        assert!(!Ceded.can_be_cancelled());
    }

    #[test]
    fn nothing_follows_an_ending() {
        for phase in ALL.into_iter().filter(|p| p.is_final()) {
            assert!(ALL.into_iter().all(|next| !phase.may_become(next)), "{phase}");
        }
    }

    #[test]
    fn every_phase_before_ceded_can_fail_and_leave_the_guest_here() {
        for phase in [Preparing, Copying, LinkLost, Stopped] {
            assert!(phase.may_become(Failed) && phase.can_be_cancelled(), "{phase}");
        }
        for phase in [Armed, Filling, LinkLost, Loading, Starting] {
            assert!(phase.may_become(Refused), "{phase}");
        }
    }

    #[test]
    fn an_outage_is_left_the_way_it_was_entered_or_for_good() {
        for copying in [Copying, Filling] {
            assert!(copying.may_become(LinkLost) && LinkLost.may_become(copying));
        }
        assert!(ALL.into_iter().filter(|p| p.may_become(LinkLost)).eq([Copying, Filling]));
        // A guest is not stopped, let go or started while the other side cannot be reached.
        for step in [Stopped, Ceded, Moved, Loading, Starting, Running] {
            assert!(!LinkLost.may_become(step), "{step}");
        }
    }

    #[test]
    fn the_guest_is_never_ceded_while_it_runs() {
        assert!(ALL.into_iter().filter(|p| p.may_become(Ceded)).eq([Stopped]));
        assert!(ALL.into_iter().filter(|p| p.may_become(Running)).eq([Handed, Starting]));
    }

    #[test]
    fn what_libvirt_decides_is_not_to_be_cancelled_here() {
        assert!(!Handed.can_be_cancelled());
        let next: Vec<_> = ALL.into_iter().filter(|n| Handed.may_become(*n)).collect();
        assert_eq!(next, [Moved, Failed, Running, Refused]);
        assert!(ALL.into_iter().filter(|p| p.may_become(Handed)).eq([Copying, LinkLost, Filling]));
    }
}
