//! What a source may do next: to its guest, to its record, and to the peer.
//!
//! ```text
//!          mark          durable         stop          cede         durable        go
//!  Free ─────────▶ Marking ──▶ Marked ──────▶ Stopped ──────▶ Ceding ──▶ Ceded ──────────▶ LetGo ──arrived──▶ Taken ──▶ Moved
//!   ▲ │              │           │               │               │          │   ◀─never left─┘ │
//!   └─┼──────────────┼──unmark───┤               │               │          │                  │ refused
//!     │              │           │               └──── fail ─────┴──────────┴──▶ Returned ◀────┘ ──continued──▶ Kept
//!     └───── fail ───┴───────────┴──────────────────────────────────────────────────────────────────────────────▶ Kept
//!
//!                                     here                settled
//!                             LetGo ────────▶ Reclaiming ─────────▶ Returned
//! ```
//!
//! Each step is asked for before it is done; one that this table does not have is refused, and nothing is done. The table is small enough to be
//! explored with every crash and every loss in it (`ownership/explore`).

use super::Forbidden;
use crate::records;

/// Where a source stands with its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nobody but QEMU and its operator has stopped the guest.
    Free,
    /// *Stopped* is on its way to the disk, or failed on it and may be there.
    Marking,
    /// *Stopped* is durable: a daemon that comes after us continues the guest.
    Marked,
    /// QEMU was told to stop the guest.
    Stopped,
    /// *Ceded* is on its way to the disk, or failed on it and may be there.
    Ceding,
    /// *Ceded* is durable, and GO has not left.
    Ceded,
    /// GO has left, or may have: only the destination can tell.
    LetGo,
    /// Somebody who has fenced the destination says that the guest is here: *Stopped* is on its way to the disk, over *Ceded*.
    Reclaiming,
    /// The destination has it.
    Taken,
    /// The guest is ours for good, and may have to be continued.
    Returned,
    /// It is as it was.
    Kept,
    /// It is gone from here.
    Moved,
}

/// What a source does, or hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// *Stopped* is written.
    Mark,
    /// It is durable.
    Marked,
    /// The guest is not stopped after all.
    Unmark,
    /// QEMU is told to stop the guest.
    Stop,
    /// *Ceded* is written.
    Cede,
    /// It is durable.
    Ceded,
    /// GO is given to the link.
    Go,
    /// The link refused it: it never left and never will.
    NeverLeft,
    /// The destination has the guest: that is durable there.
    Arrived,
    /// The destination will never have the guest: that is durable there.
    Refused,
    /// Somebody says that the destination does not have the guest, and never will: *Stopped* is written again.
    Here,
    /// That is durable, or the disk does not take it: the guest does not wait for it, and a daemon that comes after us asks once more.
    Settled,
    /// Something failed.
    Fail,
    /// QEMU was told to continue the guest, if it ran, and does.
    Continued,
    /// QEMU was told that its migration is done.
    Released,
}

impl Source {
    /// One that finds `record`. None: it has nothing to do with that.
    pub fn found(record: records::Phase) -> Option<Source> {
        match record {
            // The guest stands or not; it is ours.
            records::Phase::Stopped => Some(Source::Returned),
            records::Phase::Ceded => Some(Source::LetGo),
            records::Phase::Kept
            | records::Phase::Moved
            | records::Phase::Starting
            | records::Phase::Arrived
            | records::Phase::Refused => None,
        }
    }

    pub fn after(self, step: Step) -> Result<Source, Forbidden> {
        use Source::*;
        Ok(match (self, step) {
            (Free, Step::Mark) => Marking,
            // Who stopped the guest is seen late: it is written again.
            (Marked, Step::Mark) => Marking,
            (Marking, Step::Marked) => Marked,
            (Marked, Step::Unmark) => Free,
            (Marked, Step::Stop) => Stopped,
            (Stopped, Step::Cede) => Ceding,
            (Ceding, Step::Ceded) => Ceded,
            (Ceded, Step::Go) => LetGo,
            (LetGo, Step::NeverLeft) => Ceded,
            (LetGo, Step::Arrived) => Taken,
            (LetGo, Step::Refused) => Returned,
            (LetGo, Step::Here) => Reclaiming,
            (Reclaiming, Step::Settled) => Returned,
            // It is not ours to continue: whoever has stopped it was not us.
            (Free | Marking | Marked, Step::Fail) => Kept,
            (Stopped | Ceding | Ceded, Step::Fail) => Returned,
            (Returned, Step::Continued) => Kept,
            (Taken, Step::Released) => Moved,
            _ => return Err(Forbidden { state: format!("{self:?}"), step: format!("{step:?}") }),
        })
    }

    pub fn step(&mut self, step: Step) -> Result<(), Forbidden> {
        *self = self.after(step)?;
        Ok(())
    }

    /// The guest may stand, because of us.
    pub fn holds(self) -> bool {
        !matches!(self, Source::Free | Source::Kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Source; 12] = {
        use Source::*;
        [Free, Marking, Marked, Stopped, Ceding, Ceded, LetGo, Reclaiming, Taken, Returned, Kept, Moved]
    };

    #[test]
    fn after_go_only_the_verdict_decides() {
        assert!(Source::LetGo.after(Step::Fail).is_err());
        let continued: Vec<_> = ALL.into_iter().filter(|s| s.after(Step::Continued).is_ok()).collect();
        assert_eq!(continued, [Source::Returned]);
    }

    #[test]
    fn whatever_fails_before_go_the_guest_is_ours() {
        for state in ALL {
            let before_go = matches!(
                state,
                Source::Free
                    | Source::Marking
                    | Source::Marked
                    | Source::Stopped
                    | Source::Ceding
                    | Source::Ceded
            );
            assert_eq!(state.after(Step::Fail).is_ok(), before_go, "{state:?}");
        }
    }

    #[test]
    fn nothing_is_done_before_it_is_durable() {
        assert!(Source::Marking.after(Step::Stop).is_err());
        assert!(Source::Ceding.after(Step::Go).is_err());
        let error = Source::Ceding.after(Step::Go).unwrap_err();
        assert!(error.to_string().contains("Go must not follow Ceding"), "{error}");
    }
}
