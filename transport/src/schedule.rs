//! Whose turn it is: a fair order of the sessions of one link. No bytes, no time, no limits.
//!
//! Every session has a clock that advances by what it sent, the slower the heavier its weight is. Of those that have
//! something to offer the one whose clock is behind goes next ("start-time fair queueing"), so each gets its share to
//! within one chunk. A session that had nothing to offer for a while starts at the time of the others: what it did
//! not use is not saved up.
//!
//! Urgent sessions come before all others, in turn among themselves, and do not advance their clocks.

use std::collections::BTreeMap;

/// How sessions share a link. A link full of work is divided by weight among those that have something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Priority {
    /// Weight 1.
    Low,
    /// Weight 4.
    #[default]
    Normal,
    /// Weight 16.
    High,
    /// Before all that are not, which get nothing meanwhile. For the seconds in which a guest stands still.
    Urgent,
}

const HEAVIEST: u64 = 16;

impl Priority {
    /// `None`: strictly first.
    fn weight(self) -> Option<u64> {
        match self {
            Priority::Low => Some(1),
            Priority::Normal => Some(4),
            Priority::High => Some(HEAVIEST),
            Priority::Urgent => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Schedule {
    sessions: BTreeMap<u32, Clock>,
    /// The clock of who went last.
    time: u64,
    turns: u64,
}

#[derive(Debug, Default)]
struct Clock {
    priority: Priority,
    time: u64,
    /// The turn at which it went last.
    last: u64,
    /// It had nothing to offer when it was asked last.
    idle: bool,
}

impl Schedule {
    pub fn add(&mut self, session: u32) {
        self.sessions.insert(session, Clock { time: self.time, idle: true, ..Clock::default() });
    }

    pub fn remove(&mut self, session: u32) {
        self.sessions.remove(&session);
    }

    pub fn clear(&mut self) {
        self.sessions.clear();
    }

    pub fn priority(&self, session: u32) -> Priority {
        self.sessions.get(&session).map_or(Priority::default(), |clock| clock.priority)
    }

    pub fn set_priority(&mut self, session: u32, priority: Priority) {
        if let Some(clock) = self.sessions.get_mut(&session) {
            *clock = Clock { priority, time: self.time.max(clock.time), ..*clock };
            if clock.priority == Priority::Urgent {
                clock.time = self.time;
            }
        }
    }

    /// Who goes next of those that `offers` says yes for.
    pub fn next(&mut self, mut offers: impl FnMut(u32, Priority) -> bool) -> Option<u32> {
        let mut best = None;
        for (session, clock) in &mut self.sessions {
            if !offers(*session, clock.priority) {
                clock.idle = true;
                continue;
            }
            if std::mem::take(&mut clock.idle) {
                clock.time = clock.time.max(self.time);
            }
            let order = match clock.priority {
                Priority::Urgent => (false, 0, clock.last),
                _ => (true, clock.time, clock.last),
            };
            if best.is_none_or(|(least, _)| order < least) {
                best = Some((order, *session));
            }
        }
        best.map(|(_, session)| session)
    }

    /// It sent so much.
    pub fn went(&mut self, session: u32, bytes: u64) {
        self.turns += 1;
        let Some(clock) = self.sessions.get_mut(&session) else { return };
        clock.last = self.turns;
        if let Some(weight) = clock.priority.weight() {
            self.time = clock.time;
            // An empty chunk is a turn, too.
            clock.time += bytes.max(1) * HEAVIEST / weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn schedule(priorities: &[Priority]) -> Schedule {
        let mut schedule = Schedule::default();
        for (session, priority) in (1..).zip(priorities) {
            schedule.add(session);
            schedule.set_priority(session, *priority);
        }
        schedule
    }

    /// Bytes that each got in so many turns; `chunk` gives the size of its next, or nothing.
    fn run(
        schedule: &mut Schedule,
        turns: usize,
        mut chunk: impl FnMut(usize, u32) -> Option<u64>,
    ) -> HashMap<u32, u64> {
        let mut got = HashMap::new();
        for turn in 0..turns {
            let Some(session) = schedule.next(|session, _| chunk(turn, session).is_some()) else { continue };
            let bytes = chunk(turn, session).unwrap();
            schedule.went(session, bytes);
            *got.entry(session).or_default() += bytes;
        }
        got
    }

    #[test]
    fn ten_sessions_with_chunks_of_all_sizes_get_a_tenth_each() {
        let mut schedule = schedule(&[Priority::Normal; 10]);
        let got = run(&mut schedule, 10_000, |_, session| Some(10_000 * u64::from(session)));
        let all: u64 = got.values().sum();
        for (session, bytes) in got {
            let share = bytes as f64 / all as f64;
            assert!((0.099..0.101).contains(&share), "{session}: {share}");
        }
    }

    #[test]
    fn shares_are_as_the_weights_and_the_light_one_is_not_starved() {
        let mut schedule = schedule(&[Priority::Low, Priority::Normal, Priority::High]);
        let got = run(&mut schedule, 2_100, |_, _| Some(100));
        assert_eq!((got[&1], got[&2], got[&3]), (10_000, 40_000, 160_000));
    }

    #[test]
    fn urgent_goes_first_and_the_others_go_on_when_it_has_nothing() {
        let mut schedule = schedule(&[Priority::High, Priority::Urgent, Priority::Urgent]);
        let got = run(&mut schedule, 100, |turn, session| (session == 1 || turn < 60).then_some(100));
        assert_eq!((got[&1], got[&2], got[&3]), (4_000, 3_000, 3_000));
    }

    #[test]
    fn who_was_urgent_neither_pays_for_it_nor_is_paid() {
        let mut schedule = schedule(&[Priority::Normal, Priority::Normal]);
        run(&mut schedule, 100, |_, _| Some(100));
        schedule.set_priority(1, Priority::Urgent);
        run(&mut schedule, 1_000, |_, _| Some(100));
        schedule.set_priority(1, Priority::Normal);
        let got = run(&mut schedule, 100, |_, _| Some(100));
        assert_eq!((got[&1], got[&2]), (5_000, 5_000));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut schedule = schedule(&[Priority::Normal, Priority::Normal]);
        run(&mut schedule, 1_000, |_, session| (session == 1).then_some(100));
        let got = run(&mut schedule, 100, |_, _| Some(100));
        assert_eq!((got[&1], got[&2]), (5_000, 5_000));
    }

    #[test]
    fn a_change_holds_from_the_next_turn_on() {
        let mut schedule = schedule(&[Priority::Normal, Priority::Normal]);
        run(&mut schedule, 100, |_, _| Some(100));
        schedule.set_priority(2, Priority::High);
        let got = run(&mut schedule, 100, |_, _| Some(100));
        assert_eq!((got[&1], got[&2]), (2_000, 8_000));
    }
}
