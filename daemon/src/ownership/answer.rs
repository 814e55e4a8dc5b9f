//! What a destination knows of a guest that its source asks about: what is on record, and nothing else.

use crate::records::Phase;

/// What can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    Running,
    Paused,
    /// For good.
    Refused,
    /// It is being taken; that will be known.
    Pending,
    /// It never came. To be refused for good, durably, before that is said: a GO that comes later finds it refused.
    NeverCame,
    /// Nothing: it went the other way, or the records are another's.
    Nothing,
}

/// `record`: of that migration, and whether the guest is to run. `under_way`: it is being received just now.
pub fn known(record: Option<(Phase, bool)>, under_way: bool) -> Known {
    match record {
        None if under_way => Known::Pending,
        None => Known::NeverCame,
        Some((Phase::Starting, _)) => Known::Pending,
        Some((Phase::Arrived, true)) => Known::Running,
        Some((Phase::Arrived, false)) => Known::Paused,
        Some((Phase::Refused, _)) => Known::Refused,
        Some((Phase::Stopped | Phase::Ceded | Phase::Moved | Phase::Kept, _)) => Known::Nothing,
    }
}
