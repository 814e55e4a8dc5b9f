//! How hot a page is: how often it came again lately. Two bytes a page.
//!
//! A page's count goes up by one each time it comes again and is halved once per *epoch* (a stretch of time); the epochs that went by
//! since it was touched last are applied when it is touched next, so nothing walks the table.

use std::time::Duration;

use crate::types::Time;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Heat {
    count: u8,
    /// The low byte of the epoch in which `count` was true. One that was 256 epochs ago looks fresh: a page that was hot
    /// then waits a little for nothing.
    epoch: u8,
}

/// What a page's heat means for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Came once, or not for long: what is sent now stays true.
    Cold,
    /// Comes again now and then.
    Warm,
    /// Comes again in nearly every pass: what is sent now is soon sent again.
    Hot,
}

impl Class {
    pub(super) const COUNT: usize = 3;
}

/// From this count on a page is warm, and hot.
const WARM: u8 = 2;
const HOT: u8 = 5;

impl Heat {
    pub(super) const NONE: Heat = Heat { count: 0, epoch: 0 };

    /// The page has come again.
    pub(super) fn touch(&mut self, epoch: Epoch) {
        self.count = self.at(epoch).saturating_add(1);
        self.epoch = epoch.0;
    }

    pub(super) fn class(self, epoch: Epoch) -> Class {
        match self.at(epoch) {
            HOT.. => Class::Hot,
            WARM.. => Class::Warm,
            _ => Class::Cold,
        }
    }

    /// It came again at all, not long ago.
    pub(super) fn any(self, epoch: Epoch) -> bool {
        self.at(epoch) > 0
    }

    fn at(self, epoch: Epoch) -> u8 {
        self.count.checked_shr(u32::from(epoch.0.wrapping_sub(self.epoch))).unwrap_or(0)
    }
}

/// The low byte of the number of half-lives since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Epoch(u8);

impl Epoch {
    pub(super) fn of(now: Time, half_life: Duration) -> Epoch {
        let half_life_ns = u64::try_from(half_life.as_nanos()).unwrap_or(u64::MAX).max(1);
        Epoch((now.0 / half_life_ns) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_keeps_coming_is_hot_and_cools_when_left_alone() {
        let half_life = Duration::from_secs(1);
        let epoch = |ms: u64| Epoch::of(Time(ms * 1_000_000), half_life);
        let mut heat = Heat::default();
        assert_eq!((heat.class(epoch(0)), heat.any(epoch(0))), (Class::Cold, false));
        heat.touch(epoch(0));
        assert_eq!((heat.class(epoch(0)), heat.any(epoch(0))), (Class::Cold, true));
        for ms in (0..900).step_by(100) {
            heat.touch(epoch(ms));
        }
        assert_eq!(heat.class(epoch(950)), Class::Hot);
        assert_eq!(heat.class(epoch(1500)), Class::Hot);
        assert_eq!(heat.class(epoch(2500)), Class::Warm);
        assert_eq!(heat.class(epoch(3500)), Class::Cold);
        assert!(!heat.any(epoch(9500)));
        for _ in 0..1000 {
            heat.touch(epoch(9500));
        }
        assert_eq!(heat.class(epoch(9500)), Class::Hot, "a count that is full stays so");
    }
}
