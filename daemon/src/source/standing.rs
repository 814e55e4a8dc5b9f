//! How long a guest that we stopped may stand: as long as the link moves, and a while.
//!
//! A clock it has not: it is told times.

use std::time::{Duration, Instant};

/// The pump reports ten times a second: in a longer silence it was this process that stood still, nobody else.
const LOOKS: Duration = Duration::from_millis(500);

/// See the module. For a guest that still runs it says nothing of interest.
#[derive(Debug)]
pub struct Standing {
    /// When the link last moved something, or had nothing to move.
    moved: Instant,
    /// Since when it has had nothing to move.
    idle: Instant,
    looked: Instant,
    acked_bytes: u64,
    /// A link that came back has had its time once; one that comes and goes gets no more.
    came_back: bool,
}

/// What has to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlong {
    /// The link had something to move, or was down, and moved nothing.
    Link,
    /// It had nothing to move: QEMU, here or there, has not done its part.
    Qemu,
}

/// How long is too long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub link: Duration,
    pub qemu: Duration,
}

impl Standing {
    /// It stands from now on.
    pub fn new(now: Instant) -> Standing {
        Standing { moved: now, idle: now, looked: now, acked_bytes: 0, came_back: false }
    }

    /// Looks at a link. `waits`: something is under way on it, or to be sent, or it is down.
    pub fn look(
        &mut self,
        now: Instant,
        waits: bool,
        acked_bytes: u64,
        patience: Patience,
    ) -> Option<Overlong> {
        let missed = now.saturating_duration_since(self.looked).saturating_sub(LOOKS);
        self.looked = now;
        self.moved += missed;
        self.idle += missed;
        if waits {
            self.idle = now;
        }
        if !waits || acked_bytes != self.acked_bytes {
            self.moved = now;
        }
        self.acked_bytes = acked_bytes;
        if now.saturating_duration_since(self.moved) > patience.link {
            return Some(Overlong::Link);
        }
        (now.saturating_duration_since(self.idle) > patience.qemu).then_some(Overlong::Qemu)
    }

    /// The link is up again.
    pub fn came_back(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.came_back, true) {
            self.moved = now;
        }
    }

    /// Something came that was waited for.
    pub fn went_on(&mut self, now: Instant) {
        (self.moved, self.idle) = (now, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PATIENCE: Patience = Patience { link: Duration::from_secs(2), qemu: Duration::from_secs(60) };

    /// Looks ten times a second until it is over: when that is, and what.
    fn stand(mut at_each: impl FnMut(&mut Standing, Instant, u32) -> (bool, u64)) -> (u32, Overlong) {
        let begun = Instant::now();
        let mut standing = Standing::new(begun);
        for tenths in 1..10_000 {
            let now = begun + tenths * 100 * MS;
            let (waits, acked) = at_each(&mut standing, now, tenths);
            if let Some(over) = standing.look(now, waits, acked, PATIENCE) {
                return (tenths, over);
            }
        }
        panic!("it stands for ever");
    }

    #[test]
    fn a_link_that_moves_is_waited_for_and_one_that_stands_is_not() {
        assert_eq!(stand(|_, _, _| (true, 0)), (21, Overlong::Link));
        assert_eq!(stand(|_, _, tenths| (true, u64::from(tenths.min(100)))), (121, Overlong::Link));
    }

    #[test]
    fn a_qemu_that_takes_everything_and_says_nothing_is_not_waited_for() {
        assert_eq!(stand(|_, _, tenths| (tenths < 10, u64::from(tenths))), (610, Overlong::Qemu));
    }

    #[test]
    fn a_link_that_comes_and_goes_gets_its_time_once() {
        let flaps = |standing: &mut Standing, now, tenths: u32| {
            if tenths.is_multiple_of(15) {
                standing.came_back(now);
            }
            (true, 0)
        };
        assert_eq!(stand(flaps), (36, Overlong::Link));
    }

    #[test]
    fn time_in_which_this_process_stood_still_counts_for_nothing() {
        let begun = Instant::now();
        let mut standing = Standing::new(begun);
        for seconds in [0, 20, 21, 100] {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(standing.look(now, true, 0, PATIENCE), None, "{seconds}");
        }
    }

    #[test]
    fn what_was_waited_for_begins_a_new_time() {
        let ready = |standing: &mut Standing, now, tenths| {
            if tenths == 300 {
                standing.went_on(now);
            }
            (false, 0)
        };
        assert_eq!(stand(ready), (901, Overlong::Qemu));
    }
}
