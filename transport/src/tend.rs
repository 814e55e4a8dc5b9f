//! The initiator's care for how full its pipe is: warms it when a session is asked for, or somebody wants to know the path.
//! What to do, and how long, is said by `warm.rs`, and what follows by `hold.rs`, or `lead.rs` where the lanes go by losses.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::bond::Bond;
use crate::config::Sockets;
use crate::fit::{raise_buffers, while_working};
use crate::hold::Hold;
use crate::lane_stats::LaneStats;
use crate::lead::Lead;
use crate::link::{LinkCore, lock};
use crate::under_way::{Path, UnderWay};
use crate::warm::{Probe, Sight, Step, Warmth};

/// How often it is noticed that a link works, and so is warm.
const NOTICED: Duration = Duration::from_millis(100);
/// A connection that was idle for longer than this and a round trip has lost its window (RTO is at least 200 ms).
const COLD_AFTER: Duration = Duration::from_millis(200);
/// One that goes by rate keeps what it knows; but the path may change.
const BY_RATE_COLD_AFTER: Duration = Duration::from_secs(30);
/// A session that was at work so shortly before is not disturbed by padding.
const IN_USE: Duration = Duration::from_secs(1);

/// Where those who want a warm link, and the task that warms it, meet.
pub struct Wish {
    asked: std::sync::Mutex<Asked>,
    notify: Notify,
    /// Warm-ups that ended, and what the last one found.
    done: watch::Sender<(u64, Probe)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    #[default]
    Nothing,
    /// If it pays.
    Opening,
    InAnyCase,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            asked: Default::default(),
            notify: Notify::new(),
            done: watch::Sender::new(Default::default()),
        }
    }
}

impl Wish {
    /// A session is being opened.
    pub fn opening(&self) {
        self.ask(Asked::Opening);
    }

    /// A session is being opened on a link that is not to be warmed.
    pub fn stir(&self) {
        self.notify.notify_one();
    }

    /// Warms the link, or waits for the warm-up that is under way, and says what it found.
    pub async fn warm_up(&self) -> Probe {
        let mut done = self.done.subscribe();
        let (before, _) = *done.borrow_and_update();
        self.ask(Asked::InAnyCase);
        match done.wait_for(|(number, _)| *number > before).await {
            Ok(done) => done.1,
            Err(_) => Probe::default(),
        }
    }

    /// What the last warm-up found.
    pub fn found(&self) -> Option<Probe> {
        let (number, probe) = *self.done.borrow();
        (number > 0).then_some(probe)
    }

    fn ask(&self, what: Asked) {
        let mut asked = lock(&self.asked);
        *asked = (*asked).max(what);
        drop(asked);
        self.notify.notify_one();
    }

    fn take(&self) -> Asked {
        std::mem::take(&mut *lock(&self.asked))
    }

    #[cfg(test)]
    pub fn is_asked(&self) -> bool {
        *lock(&self.asked) != Asked::Nothing
    }

    fn answer(&self, probe: Probe) {
        self.done.send_modify(|(number, found)| {
            *number += 1;
            *found = probe;
        });
    }
}

/// Until the bond is over.
pub async fn run(bond: Arc<Bond>, sockets: Sockets) {
    let link = bond.link.clone();
    let mut warmth = Warmth::default();
    // A bond's lanes are cold.
    let mut warm_at: Option<Instant> = None;
    let mut lead: Option<Lead> = None;
    let mut hold: Option<Hold> = None;
    let mut under_way = UnderWay::default();
    link.queue.set_pace(None);
    // Somebody waits for what the warm-up finds.
    let mut awaited = false;
    loop {
        let works = link.queue.has_work();
        bound(&bond, &mut under_way);
        let asked = link.wish.take();
        let pause = if asked != Asked::Nothing || warmth.is_under_way() {
            let lanes = bond.lane_stats();
            let (padding_bytes, chunks_queued) = link.queue.padded();
            let in_any_case = asked == Asked::InAnyCase;
            awaited |= in_any_case;
            let wanted = awaited || link.has_sessions();
            let sight = Sight { at: Instant::now(), lanes: &lanes, padding_bytes, chunks_queued, wanted };
            let rtt = link.stats().rtt.unwrap_or_default();
            let cold_after = if hold.is_some() { BY_RATE_COLD_AFTER } else { COLD_AFTER + rtt };
            let is_warm = works || warm_at.is_some_and(|at| at.elapsed() < cold_after);
            if !warmth.is_under_way() && !is_warm {
                hold = None;
            }
            let in_use = works || link.has_sessions() && warm_at.is_some_and(|at| at.elapsed() < IN_USE);
            if !warmth.is_under_way()
                && (in_use || is_warm && !in_any_case || !warmth.begin(sight, in_any_case))
            {
                if std::mem::take(&mut awaited) {
                    link.wish.answer(rough(&link));
                }
                continue;
            }
            if let Some(rate) = warmth.peak() {
                raise_buffers(&bond, &sockets, rate);
            }
            match warmth.step(sight) {
                Step::Pad { up_to_bytes, pace, again } => {
                    link.queue.set_pace(pace);
                    link.queue.allow_padding(up_to_bytes, chunks_queued);
                    again
                }
                Step::Done(probe) => {
                    link.queue.allow_padding(0, chunks_queued);
                    awaited = false;
                    tracing::debug!(peer = %link.peer, ?probe, "link warmed up");
                    warm_at = wanted.then(Instant::now);
                    // What was found under a limit says nothing of the path, and the limit may go.
                    let limited = link.queue.limit().is_some();
                    if while_working(&bond, &sockets) {
                        let found = probe.path().filter(|_| probe.queued && !limited);
                        hold = Some(Hold::new(found.map(|found| found as f64), sight.at, &lanes));
                    } else {
                        lead = Lead::new(&probe, sight.at, &lanes).filter(|_| !limited);
                        link.queue.set_pace(lead.as_ref().map(|lead| lead.pace(&lanes)));
                    }
                    link.wish.answer(probe);
                    // It may need more lanes.
                    bond.stirred.notify_one();
                    continue;
                }
            }
        } else if let Some(leading) = lead.as_mut().filter(|_| link.has_sessions()) {
            let lanes = bond.lane_stats();
            if works {
                warm_at = Some(Instant::now());
            }
            if leading.look(Instant::now(), &lanes) {
                link.queue.set_pace(Some(leading.pace(&lanes)));
            } else {
                link.queue.set_pace(None);
                lead = None;
            }
            Lead::again(&lanes)
        } else if link.has_sessions() {
            if works {
                warm_at = Some(Instant::now());
            }
            let by_rate = while_working(&bond, &sockets);
            if link.queue.limit().is_some() {
                // What arrives says nothing of the path then, and one lane may carry all of it.
                hold = None;
                link.queue.set_pace(None);
                NOTICED
            } else if by_rate {
                let (at, lanes) = (Instant::now(), bond.lane_stats());
                if paths(&lanes) > 1 {
                    // One ceiling for all lanes would be that of the narrowest path.
                    hold = None;
                    link.queue.set_pace(None);
                    wait(&link, NOTICED).await;
                    continue;
                }
                let hold = hold.get_or_insert_with(|| Hold::new(None, at, &lanes));
                let pressure = link.queue.pressure();
                let busy = pressure.unsent_bytes > 0 && !pressure.waits_for_peer(&lanes);
                link.queue.set_pace(hold.look(at, &lanes, busy));
                if hold.take_outgrown(at) {
                    bond.outgrow();
                }
                if works { Hold::again(&lanes) } else { NOTICED }
            } else {
                NOTICED
            }
        } else {
            Duration::from_secs(3600)
        };
        wait(&link, pause).await;
    }
}

/// Until then, or somebody wishes something.
async fn wait(link: &LinkCore, pause: Duration) {
    let _ = tokio::time::timeout(pause, link.wish.notify.notified()).await;
}

/// Sets how much may be under way.
fn bound(bond: &Bond, under_way: &mut UnderWay) {
    let (link, now) = (&bond.link, Instant::now());
    let rtt = link.round_trips();
    let mut path = Path {
        found_bytes_per_s: link.wish.found().and_then(|probe| probe.path()),
        rtt: rtt.smoothed.unwrap_or_default(),
        min_rtt: rtt.min.unwrap_or_default(),
    };
    // The control connection goes by one of several paths.
    let lanes = bond.lane_stats();
    if paths(&lanes) > 1 {
        path.rtt = lanes.iter().map(|lane| lane.rtt).fold(path.rtt, Duration::max);
        path.min_rtt = lanes.iter().map(|lane| lane.min_rtt).fold(path.min_rtt, Duration::max);
    }
    link.queue.bound_under_way(now, |at_work| under_way.most(now, at_work, path));
}

/// How many of the peer's addresses lanes go to.
fn paths(lanes: &[LaneStats]) -> usize {
    lanes.iter().filter_map(|lane| lane.peer).collect::<HashSet<_>>().len()
}

/// What is known of a path that is not to be disturbed.
fn rough(link: &LinkCore) -> Probe {
    let stats = link.stats();
    Probe { rtt: stats.rtt, min_rtt: stats.min_rtt, ..Probe::default() }
}
