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
mod tests {
    use super::*;
    use crate::lane_stats::some_lane;

    const RTT: Duration = Duration::from_millis(120);

    /// Eight lanes over a path of `rate` bytes/s, which send as fast as their pace lets them, but not more than doubles in each round.
    struct Path {
        now: Instant,
        lanes: Vec<LaneStats>,
        rate: f64,
        sends: f64,
        queued: f64,
        /// Of somebody else.
        others: Duration,
        /// The path got longer by this.
        longer: Duration,
        /// Something waits for a lane all the time.
        busy: bool,
        /// Of what could be sent, what there is to send.
        has: f64,
        hold: Hold,
    }

    impl Path {
        fn new(rate: f64, found: Option<f64>) -> Self {
            let (now, mut lanes): (_, Vec<_>) = (Instant::now(), (0..8).map(some_lane).collect());
            lanes.iter_mut().for_each(|lane| lane.window_bytes = 1 << 30);
            let hold = Hold::new(found, now, &lanes);
            let sends = found.unwrap_or(rate / 100.0);
            Self {
                now,
                lanes,
                rate,
                sends,
                queued: 0.0,
                others: Duration::ZERO,
                longer: Duration::ZERO,
                busy: true,
                has: 1.0,
                hold,
            }
        }

        /// What arrived, of what the path carries, and its queue.
        fn round(&mut self) -> (f64, Duration) {
            self.now += RTT;
            let pace = self.hold.look(self.now, &self.lanes, self.busy);
            let pace = pace.map_or(f64::MAX, |pace| pace as f64 * 8.0);
            self.sends = (2.0 * self.sends).min(2.0 * self.rate).min(pace);
            let sent = self.has * self.sends * RTT.as_secs_f64() + self.queued;
            let arrived = sent.min(self.rate * RTT.as_secs_f64());
            self.queued = (sent - arrived).min(0.1 * self.rate);
            let queue = Duration::from_secs_f64(self.queued / self.rate).max(self.others);
            for lane in &mut self.lanes {
                lane.arrived_bytes += (arrived / 8.0) as u64;
                lane.rtt = RTT + self.longer + queue;
            }
            (arrived / RTT.as_secs_f64() / self.rate, queue)
        }

        /// A quarter of one, in which the machine, or the path, stands for a while: what it holds up then comes later.
        fn jump(&mut self, stands: Duration) -> f64 {
            let quarter = RTT / 4;
            self.now += quarter;
            let pace = self.hold.look(self.now, &self.lanes, self.busy);
            let pace = pace.map_or(f64::MAX, |pace| pace as f64 * 8.0);
            self.sends = (1.2 * self.sends).min(2.0 * self.rate).min(pace);
            let sent = self.sends * quarter.as_secs_f64() + self.queued;
            let arrived = sent.min(self.rate * quarter.saturating_sub(stands).as_secs_f64());
            self.queued = (sent - arrived).min(0.1 * self.rate);
            let queue = Duration::from_secs_f64(self.queued / self.rate) + stands;
            for lane in &mut self.lanes {
                lane.arrived_bytes += (arrived / 8.0) as u64;
                lane.rtt = RTT + queue;
            }
            arrived / quarter.as_secs_f64() / self.rate
        }

        fn rounds(&mut self, rounds: u32) -> (f64, Duration) {
            let each: Vec<_> = (0..rounds).map(|_| self.round()).collect();
            let mean = each.iter().map(|(arrived, _)| arrived).sum::<f64>() / f64::from(rounds);
            (mean, each.iter().map(|(_, queue)| *queue).max().unwrap_or_default())
        }
    }

    #[test]
    fn a_path_is_kept_full_and_its_queue_short() {
        for (rate, found) in
            [(12.5e6, None), (125e6, None), (125e6, Some(100e6)), (125e6, Some(140e6)), (125e6, Some(250e6))]
        {
            let mut path = Path::new(rate, found);
            let full = (0..20).position(|_| path.round().0 > 0.95).expect("it is filled");
            assert!(full < 16, "{full}");
            path.rounds(12);
            let (mean, longest) = path.rounds(200);
            assert!(mean > 0.95 && !path.hold.take_outgrown(path.now), "{mean}");
            assert!(longest < Duration::from_millis(40), "{longest:?}");
        }
    }

    #[test]
    fn a_path_that_gets_narrower_or_wider_is_followed() {
        let mut path = Path::new(125e6, Some(120e6));
        path.rounds(30);
        path.rate = 60e6;
        path.rounds(200);
        let (mean, longest) = path.rounds(50);
        assert!(mean > 0.9 && longest < Duration::from_millis(40), "{mean} {longest:?}");
        path.rate = 120e6;
        path.rounds(40);
        assert!(path.rounds(30).0 > 0.95);
    }

    #[test]
    fn somebody_else_s_queue_is_no_reason_to_send_less_and_less() {
        let mut path = Path::new(125e6, Some(120e6));
        path.others = Duration::from_millis(80);
        path.rounds(14);
        assert_eq!(path.hold.ceiling(), None);
        path.rounds(70);
        assert_eq!(path.hold.ceiling(), None, "for ten seconds");
        path.others = Duration::ZERO;
        path.rounds(30);
        let (mean, longest) = path.rounds(50);
        assert!(mean > 0.95 && longest < Duration::from_millis(40), "{mean} {longest:?}");
    }

    #[test]
    fn a_path_that_got_longer_is_no_queue() {
        for longer in [40, 80].map(Duration::from_millis) {
            let mut path = Path::new(125e6, Some(120e6));
            path.rounds(30);
            path.longer = longer;
            path.rounds(25);
            for _ in 0..20 {
                let (mean, _) = path.rounds(40);
                assert!(mean > 0.9, "{longer:?}: {mean}");
            }
            let (mean, longest) = path.rounds(100);
            assert!(mean > 0.95 && longest < Duration::from_millis(40), "{longer:?}: {mean} {longest:?}");
            path.longer = Duration::ZERO;
            path.rounds(30);
            let (mean, longest) = path.rounds(100);
            assert!(mean > 0.95 && longest < Duration::from_millis(40), "{longer:?}: {mean} {longest:?}");
        }
    }

    #[test]
    fn a_path_that_got_longer_than_the_lanes_remember_is_outgrown() {
        // Of what the path carries, how much the lanes send, so many of them over twice the round trip; after so many rounds it is noticed.
        for (share, longer, after) in [(0.4, 8, Some(4..=7)), (0.95, 8, None), (0.4, 5, None)] {
            let mut path = Path::new(125e6, Some(120e6));
            path.rounds(30);
            let noticed = (1..50).find(|_| {
                path.now += RTT;
                path.hold.look(path.now, &path.lanes, true);
                for (n, lane) in path.lanes.iter_mut().enumerate() {
                    lane.arrived_bytes += (share * 125e6 / 8.0 * RTT.as_secs_f64()) as u64;
                    lane.rtt = if n < longer { 2 * RTT } else { RTT };
                }
                path.hold.take_outgrown(path.now)
            });
            match (noticed, after) {
                (Some(noticed), Some(after)) => assert!(after.contains(&noticed), "{noticed}"),
                (noticed, after) => assert!(noticed.is_none() && after.is_none(), "{noticed:?} {after:?}"),
            }
        }
    }

    /// As on a host whose processors are taken from it for moments: what was held up is no queue of ours, and sending less does not help.
    #[test]
    fn a_path_that_stands_for_moments_is_kept_full() {
        for found in [None, Some(120e6), Some(21e6)] {
            let mut path = Path::new(125e6, found);
            let mut word = 0x9e37_79b9_u32;
            let mut each = Vec::new();
            for _ in 0..1600 {
                word ^= word << 13;
                word ^= word >> 17;
                word ^= word << 5;
                let stands = if word % 10 < 3 { word >> 8 & 31 } else { 0 };
                each.push(path.jump(Duration::from_millis(stands.into()).min(RTT / 4)));
            }
            for (n, second) in each.chunks(32).enumerate().skip(4) {
                let mean = second.iter().sum::<f64>() / 32.0;
                println!("{found:?} {n}: {mean:.3}");
                assert!(mean > 0.6, "{found:?} {n}: {mean}");
            }
            let mean = each[128..].iter().sum::<f64>() / (each.len() - 128) as f64;
            println!("{found:?}: {mean:.3}");
            assert!(mean > 0.75, "{found:?}: {mean}");
        }
    }

    #[test]
    fn what_is_held_up_for_a_moment_is_no_queue() {
        let mut path = Path::new(125e6, Some(120e6));
        for n in 0..400 {
            path.jump(Duration::ZERO);
            // As the last of four looks sees it.
            let held_up = Duration::from_millis(if n % 4 == 3 { 25 } else { 0 });
            path.lanes.iter_mut().for_each(|lane| lane.rtt += held_up);
            assert!(
                path.hold.ceiling().is_some_and(|ceiling| ceiling > 110e6),
                "{n}: {:?}",
                path.hold.ceiling()
            );
        }
    }

    #[test]
    fn lanes_that_are_slower_than_they_may_be_are_told_once() {
        let mut path = Path::new(125e6, Some(100e6));
        let mut told = 0;
        for n in 0..100 {
            path.now += RTT;
            path.hold.look(path.now, &path.lanes, true);
            // Now and then one brings as much as it may.
            let rate = if n % 4 == 3 { 95e6 } else { 70e6 };
            path.lanes[0].arrived_bytes += (rate * RTT.as_secs_f64()) as u64;
            let outgrown = path.hold.take_outgrown(path.now);
            assert!(!outgrown || path.hold.ceiling().is_none() && n < 20, "{n}");
            told += u32::from(outgrown);
        }
        assert_eq!(told, 1);
    }

    #[test]
    fn somebody_else_s_short_queue_takes_little() {
        // As it stands, and as a loss-based stream makes it.
        for grows in [false, true] {
            let mut path = Path::new(125e6, Some(120e6));
            path.rounds(30);
            let mut each = Vec::new();
            for n in 0..1000 {
                path.others = Duration::from_millis(if grows { 10 + n % 40 } else { 40 });
                each.push(path.round().0);
            }
            for (n, second) in each.chunks(50).enumerate().skip(1) {
                let mean = second.iter().sum::<f64>() / 50.0;
                println!("{grows} {n}: {mean:.3}");
                assert!(mean > 0.85, "{grows} {n}: {mean}");
            }
        }
    }

    #[test]
    fn a_lane_that_carries_nothing_knows_of_no_queue() {
        let mut path = Path::new(125e6, Some(100e6));
        path.lanes.iter_mut().skip(1).for_each(|lane| lane.rtt = 2 * RTT);
        for _ in 0..50 {
            path.now += RTT;
            path.lanes[0].arrived_bytes += 12_000_000;
            path.hold.look(path.now, &path.lanes, true);
        }
        assert!(path.hold.ceiling().is_none_or(|ceiling| ceiling > 100e6));
    }

    #[test]
    fn lanes_that_have_little_or_nothing_to_send_change_nothing() {
        let mut path = Path::new(125e6, Some(100e6));
        for _ in 0..50 {
            path.now += RTT;
            path.lanes[0].arrived_bytes += 1_000_000;
            path.hold.look(path.now, &path.lanes, false);
        }
        assert_eq!(path.hold.ceiling(), Some(100e6 * MORE));
        let before = path.hold.ceiling();
        for _ in 0..500 {
            path.now += RTT;
            path.lanes
                .iter_mut()
                .for_each(|lane| (lane.arrived_bytes, lane.rtt) = (lane.arrived_bytes + 300, 2 * RTT));
            path.hold.look(path.now, &path.lanes, false);
        }
        assert_eq!(path.hold.ceiling(), before);
    }

    /// What waits for a lane is gone now and then; all the same more is sent than the path carries, and the warm-up was deceived.
    #[test]
    fn a_source_that_sends_in_bursts_makes_no_queue_that_stays() {
        let mut path = Path::new(125e6, Some(300e6));
        path.busy = false;
        path.rounds(12);
        let (mean, longest) = path.rounds(100);
        assert!(mean > 0.9 && longest < Duration::from_millis(40), "{mean} {longest:?}");
    }

    /// As with the engine, which keeps next to nothing waiting, so that what it sends is of the last moment.
    #[test]
    fn a_warm_up_that_was_deceived_is_soon_forgotten_though_at_times_there_is_little_to_send() {
        for found in [16e6, 21e6, 100e6] {
            let mut path = Path::new(125e6, Some(found));
            let rounds = (0..60).position(|n| {
                path.busy = n % 3 == 0;
                path.has = if n % 4 == 3 { 0.8 } else { 1.0 };
                path.round().0 > 0.95
            });
            assert!(rounds.is_some_and(|rounds| rounds < 20), "{found}: {rounds:?}");
            path.has = 1.0;
            path.rounds(12);
            let (mean, longest) = path.rounds(200);
            assert!(mean > 0.95 && longest < Duration::from_millis(40), "{found}: {mean} {longest:?}");
        }
    }

    #[test]
    fn what_a_source_that_falls_off_sends_is_no_path() {
        let mut path = Path::new(125e6, Some(120e6));
        path.rounds(20);
        for sends in (1..=12).map(|n| 100e6 * 0.75_f64.powi(n)) {
            for _ in 0..80 {
                path.now += RTT;
                path.lanes[0].arrived_bytes += (sends * RTT.as_secs_f64()) as u64;
                path.hold.look(path.now, &path.lanes, false);
            }
        }
        assert!(path.hold.ceiling().unwrap() > 115e6);
        // Though there always is something, as with a receiver that is slow: not below the floor.
        for _ in 0..500 {
            path.now += RTT;
            path.lanes
                .iter_mut()
                .for_each(|lane| (lane.arrived_bytes, lane.rtt) = (lane.arrived_bytes + 300, 3 * RTT / 2));
            path.hold.look(path.now, &path.lanes, true);
            assert!(path.hold.ceiling().is_none_or(|ceiling| ceiling > 30e6));
        }
    }

    #[test]
    fn a_queue_that_is_too_short_to_be_seen_shows_by_its_losses() {
        let mut path = Path::new(125e6, Some(160e6));
        let mut last = 0.0;
        for _ in 0..300 {
            path.now += RTT;
            let sends = path.hold.look(path.now, &path.lanes, true).map_or(200e6, |pace| pace as f64 * 8.0);
            last = sends / path.rate;
            let lost = (1.0 - path.rate / sends).max(0.0);
            for lane in &mut path.lanes {
                lane.arrived_bytes += (sends.min(path.rate) * RTT.as_secs_f64() / 8.0) as u64;
                lane.sent_segments += 1000;
                lane.resent_segments += (1000.0 * lost) as u64;
            }
        }
        assert!((0.9..1.08).contains(&last), "{last}");
    }
}
