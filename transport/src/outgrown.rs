//! A path that becomes longer than its lanes remember.
//!
//! `bbr` has no more under way than twice what arrived in the shortest round trip, which it remembers for ten seconds. On a path that is
//! much longer than that less arrives, then less is sent, and so on: connections that remember nothing are needed. Then the others are
//! given time to forget.

use std::time::{Duration, Instant};

/// More than this times the round trip that is remembered is longer.
const LONGER: f64 = 1.5;
/// Less than this of the best arrived, over so many round trips.
const ARRIVES: f64 = 0.7;
const ROUND_TRIPS: u32 = 2;
const FORGETS: Duration = Duration::from_secs(15);
/// Of the ceiling there was, from which on it was that which kept it low.
const USED: f64 = 0.85;

#[derive(Default)]
pub struct Outgrown {
    longer: Option<Longer>,
    state: State,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    No,
    Untold,
    Told {
        until: Instant,
    },
}

/// Since when round trips are longer, what had arrived then, and the lowest ceiling meanwhile.
struct Longer {
    since: Instant,
    arrived: u64,
    ceiling: f64,
}

/// A round of lanes that always had something to send.
pub struct Round {
    pub at: Instant,
    pub rtt: Duration,
    /// What the lanes remember.
    pub known: Duration,
    /// Ever, bytes.
    pub arrived: u64,
    /// What they were kept to, and the most that ever arrived, bytes per second.
    pub ceiling: f64,
    pub best: f64,
}

impl Outgrown {
    /// What is under way arrives in pieces then: whole round trips tell how much it is. The answer is that, bytes per second, if the path is
    /// outgrown.
    pub fn look(&mut self, round: &Round) -> Option<f64> {
        let at = round.at;
        if matches!(self.state, State::Told { until } if at >= until) {
            self.state = State::No;
        }
        if round.rtt <= round.known.mul_f64(LONGER) || self.state != State::No {
            self.longer = None;
            return None;
        }
        let begun = Longer { since: at, arrived: round.arrived, ceiling: round.ceiling };
        let longer = self.longer.get_or_insert(begun);
        longer.ceiling = longer.ceiling.min(round.ceiling);
        let elapsed = at.saturating_duration_since(longer.since);
        if elapsed < ROUND_TRIPS * round.rtt {
            return None;
        }
        let rate = round.arrived.saturating_sub(longer.arrived) as f64 / elapsed.as_secs_f64();
        let held = rate >= USED * longer.ceiling;
        self.longer = None;
        let outgrown = rate < ARRIVES * round.best && !held;
        if outgrown {
            self.state = State::Untold;
        }
        outgrown.then_some(rate)
    }

    /// The lanes are slow though the path is as long as it was.
    pub fn by_themselves(&mut self) {
        if self.state == State::No {
            self.state = State::Untold;
        }
    }

    /// There was not always something to send.
    pub fn interrupted(&mut self) {
        self.longer = None;
    }

    /// Told once.
    pub fn take(&mut self, at: Instant) -> bool {
        let untold = self.state == State::Untold;
        if untold {
            self.state = State::Told { until: at + FORGETS };
        }
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Duration = Duration::from_millis(40);

    /// Rounds over a path of so many times the known round trip, over which such a share of the best arrives; under this ceiling.
    fn rounds(outgrown: &mut Outgrown, times: f64, share: f64, ceiling: f64) -> Option<f64> {
        let (start, rtt) = (Instant::now(), KNOWN.mul_f64(times));
        (0..6).find_map(|n| {
            let arrived = (f64::from(n) * 100e6 * share * rtt.as_secs_f64()) as u64;
            let round = Round { at: start + n * rtt, rtt, known: KNOWN, arrived, ceiling, best: 100e6 };
            outgrown.look(&round)
        })
    }

    #[test]
    fn a_longer_path_over_which_little_arrives_is_outgrown_once() {
        let mut outgrown = Outgrown::default();
        let rate = rounds(&mut outgrown, 3.0, 0.4, f64::MAX).expect("outgrown");
        assert!((39e6..41e6).contains(&rate), "{rate}");
        let now = Instant::now();
        assert!(outgrown.take(now) && !outgrown.take(now));
        assert_eq!(rounds(&mut outgrown, 3.0, 0.4, f64::MAX), None, "the others are to forget first");
    }

    #[test]
    fn a_path_that_is_as_long_or_carries_as_much_or_is_held_is_not() {
        for (times, share, ceiling) in [(1.4, 0.4, f64::MAX), (3.0, 0.9, f64::MAX), (3.0, 0.4, 45e6)] {
            assert_eq!(rounds(&mut Outgrown::default(), times, share, ceiling), None, "{times} {share}");
        }
    }
}
