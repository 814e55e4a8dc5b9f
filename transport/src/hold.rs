//! A ceiling for lanes whose congestion control goes by what arrives, and not by losses.
//!
//! ```text
//!            a queue                              no queue: what arrived at most, and a little more
//!  (none) ──────────▶ holding ───────────────────┐
//!    ▲                 ▲   └─────────────────────┘ a queue: what arrived at most; less, until it is gone
//!    └─────────────────┘
//!   it does not go: it is not ours, for a while
//! ```
//! Connections of `bbr` keep up to two bandwidths × round trips under way together. Where the path's queue is shorter than its round
//! trip it is always full then, and every tenth packet is lost, those of others too. What a path carries has been seen to arrive when
//! there was a queue; as much, and less until the queue is gone, arrives at once, losses or not.
//!
//! A queue that stays although less is sent, and less arrives, is not ours; nor is it one at all, if the path got longer. What round
//! trip there was then is taken for the path's, and looked at again after a while.
//!
//! What arrived at most in the last seconds is remembered, so a queue that others make never takes more than a part of our share.
//!
//! [`Hold`] is told times and figures: no socket, no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::lane_stats::{Adder, LaneStats, Sums};
use crate::lead::{begun, round, share};
use crate::meter::Most;
use crate::names::{Epoch, LaneId};
use crate::outgrown::{self, Outgrown};
use crate::warm::usual_rtt;

/// Of the ceiling, from which on it is used.
const USED: f64 = 0.85;
/// After so many rounds in which it was, without a queue, the path carries more than what is remembered.
const ROUNDS_USED: u32 = 8;
/// After so many, of what a warm-up found, there is more; without a queue that was seen it may have been deceived.
const ROUNDS_HINT: u32 = 3;
/// The ceiling is not lower than this, bytes per second, nor than this share of the most that ever arrived: it is there for queues, and
/// what makes none needs none.
const FLOOR: f64 = 5e6;
const FLOOR_OF_BEST: f64 = 0.25;
/// Packets sent again, of all, that are a queue, too: one that is too short to be seen, or none at all, as a policer has.
const LOSSES: f64 = 0.02;
/// Of what arrived at most, without a queue: before a path was found, and later.
const MORE_FAST: f64 = 1.25;
const MORE: f64 = 1.05;
/// A queue is to be gone after so many rounds; but not less, or more, is left away for it.
const GONE_AFTER: f64 = 2.0;
const LESS: (f64, f64) = (0.03, 0.25);
/// Of what arrives, how much is the last round's.
const LAST: f64 = 0.5;
/// A queue is not ours if it is that long after so many rounds in which as much as may be was left away; or if it is there at all when
/// everything that was remembered arrived beside it.
const ROUNDS_LESS: u32 = 10;
const NOT_OURS_AFTER: Duration = Duration::from_secs(12);
/// Then as much as may be is left away for it in any case. If less than this of what had arrived arrives, none of the queue is ours, which
/// so many rounds must show.
const ARRIVES_LESS: f64 = 0.9;
const ROUNDS_OTHERS: u32 = 2;
/// A queue for so many rounds is not what the warm-up left.
const ROUNDS_SEEN: u32 = 4;
/// Of the round before: what grows as much is not full, whoever's the queue is.
const GROWS: f64 = 1.6;
/// Rounds without a queue, more than others, in which less arrived than the ceiling lets, though there always was something to send: the lanes
/// themselves keep it low. `bbr` takes a path for full that does not bring more for three rounds, as one that stood still, and then hardly grows.
const ROUNDS_TRAPPED: u32 = 6;
/// How long somebody else's queue, or a longer path, is taken to stay.
const OTHERS: Duration = Duration::from_secs(10);
/// It costs some system calls for each lane.
const AGAIN_LEAST: Duration = Duration::from_millis(10);

pub struct Hold {
    state: State,
    /// Smoothed, bytes per second.
    arrives: f64,
    most: Most,
    /// What is remembered was found by a warm-up, which may have been deceived, and was not seen since.
    hint: bool,
    /// Rounds, not in a row, in which as much was used without a queue.
    hint_used: u32,
    /// The most that ever arrived.
    best: f64,
    /// The round trip of a path that got longer, or has somebody else's queue, and until when that is taken to be so. The kernel remembers
    /// the shorter one for minutes.
    base: Option<(Duration, Instant)>,
    outgrown: Outgrown,
    trapped: u32,
    /// Told once: a host that has no time to send looks alike.
    trap_told: bool,
    /// The shortest round trip in the second half of this round: what is held up for a moment is no queue.
    shortest: Option<Duration>,
    /// Since this round began there always was something to send.
    busy: bool,
    /// There was a queue when it began.
    was_full: bool,
    /// Rounds in which the ceiling was used without a queue.
    used: u32,
    adder: Adder,
    round_begun: Instant,
    before: Sums,
    /// What had arrived of each connection when this round began.
    had: HashMap<(LaneId, Epoch), u64>,
}

enum State {
    /// No ceiling. Somebody else's queue is taken to stay until then.
    Free { until: Instant },
    /// `found`: a queue was seen that did not come while everything still doubled. `queue`: there is one.
    Holding { found: bool, queue: Option<Queue> },
}

/// One that there is.
struct Queue {
    since: Instant,
    /// What is left away for it.
    less: f64,
    /// For how many rounds that is as much as may be.
    rounds: u32,
    /// For how many rounds there is one.
    seen: u32,
    /// The most that arrived in the first rounds of it, bytes per second.
    arrived: f64,
    /// For how many rounds it holds nothing of ours, and the shortest round trip of them.
    others_rounds: u32,
    shortest: Duration,
}

/// A round in which there was a queue.
struct Full {
    /// What is to be left away for it.
    less: f64,
    rtt: Duration,
    loses: bool,
}

impl Hold {
    /// `found`: what the path carries, bytes per second, if that is known.
    pub fn new(found: Option<f64>, at: Instant, lanes: &[LaneStats]) -> Self {
        let mut adder = Adder::default();
        let before = adder.add(lanes);
        let rate = found.unwrap_or_default();
        Self {
            state: match found {
                Some(_) => State::Holding { found: true, queue: None },
                None => State::Free { until: at },
            },
            arrives: rate,
            most: Most::new(at, rate),
            hint: found.is_some(),
            hint_used: 0,
            best: 0.0,
            base: None,
            outgrown: Outgrown::default(),
            trapped: 0,
            trap_told: false,
            shortest: None,
            busy: false,
            was_full: false,
            used: 0,
            adder,
            round_begun: at,
            before,
            had: arrived(lanes),
        }
    }

    /// When to look again.
    pub fn again(lanes: &[LaneStats]) -> Duration {
        (round(lanes) / 4).max(AGAIN_LEAST)
    }

    /// How the lanes do; what each is to be paced at, bytes per second.
    ///
    /// `busy`: something waits for a lane. What arrives in a round in which that was not always so tells nothing of the path,
    /// unless there was a queue all the time, or it is the ceiling that holds it.
    pub fn look(&mut self, at: Instant, lanes: &[LaneStats], busy: bool) -> Option<u64> {
        let sums = self.adder.add(lanes);
        self.busy &= busy;
        let elapsed = at.saturating_duration_since(self.round_begun);
        let round = round(lanes);
        // What a lane knows that carries nothing is of another time.
        let at_work: Vec<_> = lanes.iter().filter(|lane| self.has_more(lane)).cloned().collect();
        if elapsed >= round / 2
            && let Some(rtt) = usual_rtt(&at_work)
        {
            self.shortest = Some(self.shortest.map_or(rtt, |shortest| shortest.min(rtt)));
        }
        if elapsed >= round {
            let went = sums.since(&self.before);
            let rtt = self.shortest.take().unwrap_or_default();
            let base = self.base.as_mut().filter(|(_, until)| at < *until).map(|(base, _)| {
                *base = rtt.min(*base);
                *base
            });
            let queue = rtt.saturating_sub(base.unwrap_or_default().max(round));
            let loses = went.loss() > LOSSES;
            let full = (queue > begun(round) || loses).then(|| Full { less: less(queue, round), rtt, loses });
            let rate = went.arrived_bytes as f64 / elapsed.as_secs_f64();
            // Beside a queue that stays, as much arrives as the path carries, whatever waits here; if it is ours.
            let stays = std::mem::replace(&mut self.was_full, full.is_some()) && full.is_some();
            if std::mem::replace(&mut self.busy, busy) || stays && rate >= (USED * self.best).max(FLOOR) {
                // Of several paths the shortest tells: a longer one is no path that became longer.
                if let Some(rtt) = at_work.iter().map(|lane| lane.rtt).min() {
                    let (arrived, ceiling) = (sums.arrived_bytes, self.ceiling().unwrap_or(f64::MAX));
                    let seen = outgrown::Round { at, rtt, known: round, arrived, ceiling, best: self.best };
                    self.best = self.outgrown.look(&seen).unwrap_or(self.best);
                }
                self.look_for_a_trap(at, rate, full.is_some());
                self.round(at, rate, full);
            } else {
                self.outgrown.interrupted();
                if full.is_none() && self.ceiling().is_some_and(|ceiling| rate >= USED * ceiling) {
                    self.used_at_times(at, rate);
                } else {
                    self.clear();
                }
            }
            (self.round_begun, self.before, self.had) = (at, sums, arrived(lanes));
        }
        self.ceiling().map(|ceiling| share(ceiling, lanes))
    }

    /// There always was something to send.
    fn look_for_a_trap(&mut self, at: Instant, rate: f64, full: bool) {
        let slow = !full && self.ceiling().is_some_and(|ceiling| rate < USED * ceiling);
        self.trapped = if slow { self.trapped + 1 } else { self.trapped.saturating_sub(1) };
        if self.trapped >= ROUNDS_TRAPPED && !std::mem::replace(&mut self.trap_told, true) {
            self.outgrown.by_themselves();
            // Connections that remember nothing find out what the path carries.
            self.state = State::Free { until: at };
        }
    }

    /// What the lanes remember of the path keeps them from filling it: connections that remember nothing are needed. Told once.
    pub fn take_outgrown(&mut self, at: Instant) -> bool {
        self.outgrown.take(at)
    }

    /// Something of this lane arrived in this round.
    fn has_more(&self, lane: &LaneStats) -> bool {
        self.had.get(&(lane.lane, lane.epoch)).copied().unwrap_or(0) < lane.arrived_bytes
    }

    fn ceiling(&self) -> Option<f64> {
        let of_the_most = match &self.state {
            State::Free { .. } => return None,
            State::Holding { queue: Some(queue), .. } => 1.0 - queue.less,
            State::Holding { queue: None, found: true }
                if self.used <= ROUNDS_USED && self.hint_used < ROUNDS_HINT =>
            {
                MORE
            }
            State::Holding { queue: None, .. } => MORE_FAST,
        };
        Some((self.most.get() * of_the_most).max(FLOOR).max(self.best * FLOOR_OF_BEST))
    }

    /// A round in which the ceiling is used, without a queue: if it is a warm-up's, that was deceived when there are more of them.
    fn outgrows_hint(&mut self) -> bool {
        self.hint_used += u32::from(self.hint);
        self.hint_used >= ROUNDS_HINT
    }

    /// There is no queue, or what there is says nothing.
    fn clear(&mut self) {
        self.used = 0;
        if let State::Holding { queue, .. } = &mut self.state {
            *queue = None;
        }
    }

    /// A round without a queue is over in which as much arrived as the ceiling lets, though at times nothing waited for a lane: the path
    /// carries that; less it may be the source's.
    fn used_at_times(&mut self, at: Instant, rate: f64) {
        self.arrives +=
            if self.outgrows_hint() && rate > self.arrives { 1.0 } else { LAST } * (rate - self.arrives);
        if self.arrives >= self.most.get() {
            self.most.add(at, self.arrives);
        }
        let rounds = self.used + 1;
        self.clear();
        self.used = rounds;
    }

    /// A round is over in which so much arrived, bytes per second. `full`: there is a queue.
    fn round(&mut self, at: Instant, rate: f64, full: Option<Full>) {
        // What grows is believed at once while it grows freely.
        let free = matches!(self.state, State::Free { .. });
        let grows = free && rate > GROWS * self.arrives;
        let used = self.ceiling().is_none_or(|ceiling| rate >= USED * ceiling);
        let at_once = (free || used && full.is_none() && self.outgrows_hint()) && rate > self.arrives;
        self.arrives += if at_once { 1.0 } else { LAST } * (rate - self.arrives);
        self.best = self.best.max(rate.min(self.arrives));
        if used || full.is_some() {
            self.most.add(at, self.arrives);
        }
        let Some(Full { less, rtt, loses }) = full.filter(|_| !grows) else {
            self.base = self.base.filter(|(_, until)| at < *until);
            let rounds = if used { self.used + 1 } else { 0 };
            self.clear();
            self.used = rounds;
            return;
        };
        self.used = 0;
        // What was somebody else's is looked at at once.
        let seen = if self.base.is_some() { ROUNDS_LESS } else { 1 };
        match &mut self.state {
            State::Free { until } if at < *until => {}
            State::Free { .. } => {
                self.state = State::Holding { found: false, queue: Some(Queue::new(at, less, rate, seen)) };
            }
            State::Holding { found, queue: queue @ None } => {
                // What the warm-up found is forgotten if there was more.
                self.hint &= self.hint_used < ROUNDS_HINT;
                self.hint_used = 0;
                (*found, *queue) = (true, Some(Queue::new(at, less, rate, seen)));
            }
            State::Holding { queue: Some(queue), .. } => {
                queue.less = less;
                queue.seen += 1;
                if self.hint && queue.seen >= ROUNDS_SEEN {
                    // As much as the path carries arrives beside a queue.
                    self.most = Most::new(at, rate.max(self.best));
                    self.hint = false;
                }
                queue.rounds = if less < LESS.1 { 0 } else { queue.rounds + 1 };
                if !loses {
                    queue.look(rate, rtt);
                }
                let others = queue.others_rounds >= ROUNDS_OTHERS;
                if others {
                    self.base = Some((queue.shortest, at + OTHERS));
                }
                let long = at.saturating_duration_since(queue.since) > NOT_OURS_AFTER;
                let free = long || queue.rounds > ROUNDS_LESS;
                if free {
                    self.state = State::Free { until: at + OTHERS };
                } else if others {
                    self.clear();
                }
            }
        }
    }
}

impl Queue {
    fn new(since: Instant, less: f64, rate: f64, seen: u32) -> Self {
        Self { since, less, rounds: 0, seen, arrived: rate, others_rounds: 0, shortest: Duration::MAX }
    }

    /// While something of ours waits in a queue, as much arrives as before, whatever we leave away. A queue that stays beside less is
    /// somebody else's, or none: the path got longer.
    fn look(&mut self, rate: f64, rtt: Duration) {
        if self.seen <= ROUNDS_LESS {
            self.arrived = self.arrived.max(rate);
        } else if rate < ARRIVES_LESS * self.arrived {
            self.others_rounds += 1;
            self.shortest = self.shortest.min(rtt);
        }
        if self.seen >= ROUNDS_LESS {
            self.less = LESS.1;
        }
    }
}

fn arrived(lanes: &[LaneStats]) -> HashMap<(LaneId, Epoch), u64> {
    lanes.iter().map(|lane| ((lane.lane, lane.epoch), lane.arrived_bytes)).collect()
}

fn less(queue: Duration, round: Duration) -> f64 {
    (queue.as_secs_f64() / round.as_secs_f64() / GONE_AFTER).clamp(LESS.0, LESS.1)
}

#[cfg(test)]
mod tests;
