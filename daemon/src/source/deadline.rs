//! How long a guest may be copied before somebody has to decide. Time in which the link was down does not count: an outage costs
//! itself, and nothing else.
//!
//! A clock it has not: it is told times.

use std::time::{Duration, Instant};

/// Without a deadline of the operator's: so long after all of memory was read once. The first time takes what the link takes, and
/// tells nothing of whether the guest converges.
const DEFAULT: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    /// None: it does not count yet.
    since: Option<Instant>,
    looked: Instant,
}

impl Deadline {
    /// `asked`: the operator's, from the beginning on.
    pub fn new(asked: Option<Duration>, begun: Instant) -> Deadline {
        Deadline { limit: asked.unwrap_or(DEFAULT), since: asked.map(|_| begun), looked: begun }
    }

    /// `whole`: all of memory has been read. The limit, once it has passed.
    pub fn look(&mut self, now: Instant, whole: bool, down: bool) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        if self.since.is_none() && whole {
            self.since = Some(now);
        }
        let since = self.since.as_mut()?;
        if down {
            *since += elapsed;
            return None;
        }
        (now.saturating_duration_since(*since) >= self.limit).then_some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Looks each second. After how many it has passed.
    fn passes(asked: Option<Duration>, whole_after: u32, down: std::ops::Range<u32>) -> Option<u32> {
        let begun = Instant::now();
        let mut deadline = Deadline::new(asked, begun);
        (1..5000).find(|n| deadline.look(begun + *n * S, *n >= whole_after, down.contains(n)).is_some())
    }

    #[test]
    fn an_operators_counts_from_the_beginning_and_not_while_the_link_is_down() {
        assert_eq!(passes(Some(8 * S), 1000, 0..0), Some(8));
        assert_eq!(passes(Some(8 * S), 1000, 3..503), Some(508));
        assert_eq!(passes(Some(8 * S), 1000, 3..10_000), None);
    }

    #[test]
    fn without_one_there_are_ten_minutes_after_all_was_read_once() {
        assert_eq!(passes(None, 900, 0..0), Some(1500));
        assert_eq!(passes(None, 900, 1000..1100), Some(1600));
        assert_eq!(passes(None, 10_000, 0..0), None);
    }
}
