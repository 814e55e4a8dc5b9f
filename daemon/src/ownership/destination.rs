//! What a destination may do next: to the QEMU that waits, to its record, and to the source.
//!
//! ```text
//!            go          durable         run                seen
//!  Filling ─────▶ Given ──────────▶ Ours ─────▶ Told ─────────────▶ Arrived
//!     │             │                │  ▲         │
//!     │             │                │  └─obeyed  │ QEMU says that it never had all of the guest
//!     │             │                │    nothing─┤
//!     └──────────── refuse ──────────┴────────────┴──▶ Refusing ──durable──▶ Refused
//! ```
//!
//! A daemon that finds *Starting* on record begins at *Told*: whether its QEMU has heard is not known, and it may be told again.
//!
//! The guest runs here only after *Starting* is durable, and is refused only if it cannot have run: what may have been obeyed is neither.

use super::Forbidden;
use crate::records;

/// Where a destination stands with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The guest is the source's.
    Filling,
    /// GO is here; *Starting* is on its way to the disk, or failed on it and may be there.
    Given,
    /// *Starting* is durable.
    Ours,
    /// QEMU was told to run the guest, or may have been.
    Told,
    /// It is as it was to be.
    Arrived,
    /// *Refused* is on its way to the disk.
    Refusing,
    /// That is durable; or it was never given.
    Refused,
}

/// What a destination does, or hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The source lets go. *Starting* may be written.
    Go,
    /// That is durable.
    Durable,
    /// QEMU, which has loaded all of the guest, is told to run it.
    Run,
    /// QEMU refused every order: the guest has not run.
    Disobeyed,
    /// The guest runs, or stands as it was to.
    Seen,
    /// The guest is not taken.
    Refuse,
    /// QEMU itself says that it never had all of the guest; or its process is gone, and a person or the source says so.
    NeverLoaded,
    /// *Refused* is durable.
    RefusedDurable,
}

impl Destination {
    /// One that finds `record`. None: there is nothing left to do.
    pub fn found(record: records::Phase) -> Option<Destination> {
        match record {
            records::Phase::Starting => Some(Destination::Told),
            records::Phase::Arrived
            | records::Phase::Refused
            | records::Phase::Stopped
            | records::Phase::Ceded
            | records::Phase::Moved
            | records::Phase::Kept => None,
        }
    }

    pub fn after(self, step: Step) -> Result<Destination, Forbidden> {
        use Destination::*;
        Ok(match (self, step) {
            (Filling, Step::Go) => Given,
            (Given, Step::Durable) => Ours,
            (Ours | Told, Step::Run) => Told,
            (Told, Step::Disobeyed) => Ours,
            // One that is to stand is not told anything.
            (Ours | Told, Step::Seen) => Arrived,
            // It was never given: there is nothing to say.
            (Filling, Step::Refuse) => Refused,
            (Given | Ours, Step::Refuse) => Refusing,
            (Told, Step::NeverLoaded) => Refusing,
            (Refusing, Step::RefusedDurable) => Refused,
            _ => return Err(Forbidden { state: format!("{self:?}"), step: format!("{step:?}") }),
        })
    }

    pub fn step(&mut self, step: Step) -> Result<(), Forbidden> {
        *self = self.after(step)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_run_is_not_refused() {
        assert!(Destination::Told.after(Step::Refuse).is_err());
        assert!(Destination::Arrived.after(Step::Refuse).is_err());
        assert_eq!(Destination::found(records::Phase::Starting), Some(Destination::Told));
    }

    #[test]
    fn it_runs_only_once_that_is_durable() {
        for state in [Destination::Filling, Destination::Given, Destination::Refusing, Destination::Refused] {
            assert!(state.after(Step::Run).is_err(), "{state:?}");
        }
    }
}
