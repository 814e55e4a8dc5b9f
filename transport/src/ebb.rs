//! Before a guest stands still: the queue before the path's narrowest place is left to run empty.
//!
//! A path that is kept full has a queue, and whatever the stopped guest still has to send waits behind it: 100 ms of buffer
//! are 100 ms of standing. So shortly before, the link sends half of what the path carries:
//!
//! ```text
//!  ebb ──▶ no queue: returns at once
//!      └─▶ half the goodput ──▶ RTT near its least, or it falls no more, or time is up ──▶ 0.9 of it ──▶ dropped: no pace
//! ```
//! Half drains a queue in twice its time. What is not sent meanwhile waits here instead of there: newer versions can still
//! replace it, and it need not have crossed before the guest's last pages do. Another guest that stands already is not
//! held up: its frames are urgent, and those are not paced.
//!
//! Lanes that go by rate have next to nothing under way for some 200 ms every ten seconds, to see the shortest round trip. So before all
//! that those that do are waited for, and the others put it off (`fit/`). These begin anew, by sending twice what arrives: from then on
//! 0.9 of the goodput is the most, queue or not.
//!
//! [`Course`] is told times and round trips; no socket, no clock. The pace shows nowhere as a limit.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fit::{look_for_shortest, put_off_looks};
use crate::link::LinkCore;
use crate::throttle::{Holder, wire_bytes};
use crate::wire::control::Message;

/// Of the goodput: while the queue runs empty, and until the guest stands, so that none builds.
const EBBING: f64 = 0.5;
const HELD: f64 = 0.9;
/// A round trip is near its least within this and a twentieth of it.
const NEAR: Duration = Duration::from_millis(5);
/// A queue that is shorter than this beyond that is not worth a guest's work of a round trip.
const WORTH_IT: Duration = Duration::from_millis(10);
/// How often the round trip is measured meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// A round trip that was not shorter for so long, and for one of itself, falls no more.
const STILL: Duration = Duration::from_millis(60);
/// So long, and two round trips, lanes look for the shortest round trip at most.
const LOOKS_FOR: Duration = Duration::from_millis(220);

/// The link sends less than its path carries, until this and all others of the link are dropped.
pub struct Ebb {
    link: Arc<LinkCore>,
    holder: Holder,
    /// The queue at the beginning, as time.
    pub queue: Duration,
    /// What was left of it at the end.
    pub left: Duration,
    pub took: Duration,
}

impl fmt::Debug for Ebb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ebb({:?} of queue, {:?} after {:?})", self.queue, self.left, self.took)
    }
}

impl Drop for Ebb {
    fn drop(&mut self) {
        self.link.queue.set_ebb(self.holder, None, Instant::now());
    }
}

/// Leaves the queue of a link's path to run empty. Returns within three round trips and twice the queue; or, where lanes just look for
/// the shortest round trip, five and some 200 ms more.
pub(crate) async fn ebb(link: &Arc<LinkCore>) -> Ebb {
    let begun = Instant::now();
    let holder = Holder::new();
    let none = Duration::ZERO;
    let mut ebb = Ebb { link: link.clone(), holder, queue: none, left: none, took: none };
    let goodput = link.queue.goodput();
    let pace = |share: f64| {
        let rate = goodput.map(|goodput| wire_bytes((goodput as f64 * share) as u64));
        link.queue.set_ebb(holder, rate, Instant::now());
    };
    none_looks(link, begun, || pace(HELD)).await;
    ebb.took = begun.elapsed();
    let draining = Instant::now();
    let rtt = link.round_trips();
    let (Some(latest), Some(smoothed), Some(min)) = (rtt.latest, rtt.smoothed, rtt.min) else { return ebb };
    // One that is long alone was late on a busy machine.
    let latest = latest.min(smoothed);
    ebb.queue = latest.saturating_sub(min);
    ebb.left = ebb.queue;
    let Some(mut course) = Course::begin(draining, latest, min).filter(|_| goodput.is_some()) else {
        return ebb;
    };
    pace(EBBING);
    loop {
        link.push(&Message::Ping(link.now_us()));
        tokio::time::sleep(LOOK).await;
        let rtt = link.round_trips();
        // A bond that is new begins with another path, and without a queue.
        let Some((latest, min)) = rtt.latest.zip(rtt.min) else { break };
        ebb.left = latest.saturating_sub(min);
        if !course.goes_on(Instant::now(), latest) {
            break;
        }
    }
    pace(HELD);
    ebb.took = begun.elapsed();
    ebb
}

/// No lane looks for the shortest round trip now, nor soon. `hold`: some lanes begin anew.
async fn none_looks(link: &LinkCore, begun: Instant, hold: impl FnOnce()) {
    let looks = link.bond().map(|bond| put_off_looks(&bond)).unwrap_or_default();
    if looks.put_off {
        hold();
    }
    let mut some = looks.some;
    let until = begun + LOOKS_FOR + 2 * link.round_trips().smoothed.unwrap_or_default();
    while some && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        some = link.bond().is_some_and(|bond| look_for_shortest(&bond));
    }
}

struct Course {
    enough: Duration,
    until: Instant,
    least: Duration,
    least_at: Instant,
}

impl Course {
    /// `None`: there is no queue to speak of.
    fn begin(now: Instant, latest: Duration, min: Duration) -> Option<Self> {
        let enough = min + min / 20 + NEAR;
        let until = now + 3 * min + 2 * latest.saturating_sub(min);
        (latest > enough + WORTH_IT).then_some(Self { enough, until, least: latest, least_at: now })
    }

    fn goes_on(&mut self, now: Instant, latest: Duration) -> bool {
        if latest < self.least {
            (self.least, self.least_at) = (latest, now);
        }
        // What is measured now left one round trip ago, and one more has to pass before the pace shows.
        let still = now.saturating_duration_since(self.least_at) > self.least + STILL;
        latest > self.enough && now < self.until && !still
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Role;
    use crate::model;
    use crate::names::LaneId;
    use crate::session::Chunk;

    const MS: Duration = Duration::from_millis(1);

    /// A path of `min` whose queue drains at half the rate once `delay` has passed, down to `stays`. How long it took.
    fn run(min: Duration, queue: Duration, stays: Duration, known_min: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut course = Course::begin(start, min + queue, known_min)?;
        let mut queues = vec![queue];
        for n in 1.. {
            let now = n * 10 * MS;
            queues.push(queues[n as usize - 1].saturating_sub(5 * MS).max(stays));
            // What is measured now was in the queue a round trip ago, at most.
            let seen =
                now.checked_sub(min + queue).map_or(queue, |then| queues[(then.as_millis() / 10) as usize]);
            if !course.goes_on(start + now, min + seen) {
                return Some(now);
            }
        }
        None
    }

    #[test]
    fn without_a_queue_there_is_nothing_to_wait_for() {
        assert_eq!(run(40 * MS, 15 * MS, Duration::ZERO, 40 * MS), None);
    }

    #[test]
    fn a_full_queue_is_waited_for_until_it_is_seen_empty_and_not_longer() {
        for min in [40 * MS, 120 * MS, 200 * MS] {
            let took = run(min, 100 * MS, Duration::ZERO, min).unwrap();
            let bound = 3 * min + 200 * MS;
            assert!(took > 200 * MS && took <= bound, "{took:?} on {min:?}");
        }
    }

    #[test]
    fn a_queue_of_others_and_a_path_that_got_longer_end_it_early() {
        let full = run(120 * MS, 100 * MS, 100 * MS, 120 * MS).unwrap();
        assert!(full < 300 * MS, "{full:?}");
        let longer = run(120 * MS, Duration::ZERO, Duration::ZERO, 20 * MS).unwrap();
        assert!(longer < 200 * MS, "{longer:?}");
    }

    #[tokio::test]
    async fn lanes_that_begin_anew_are_held_until_the_ebb_is_dropped() {
        for (control, is_held) in [("bbr", true), ("cubic", false)] {
            let link = model::link(Role::Initiator);
            let bond = model::bond(&link, 1);
            assert!(link.attach(&bond));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (lane, socket) = (LaneId(0), Arc::new(stream.into()));
            let epoch = bond.next_epoch(lane);
            bond.lane_up(lane, epoch);
            bond.lane_has(lane, epoch, &socket);
            if !bond.tuning.set_congestion(control, || vec![socket.clone()]) {
                eprintln!("skipped: this host does not let us have {control}");
                assert_ne!(std::env::var("HIKYAKU_TESTS").as_deref(), Ok("all"));
                continue;
            }
            let (queue, now) = (&link.queue, Instant::now());
            queue.add_session(1, Arc::<model::User>::default());
            queue.grant(1, u64::MAX);
            let carrier = queue.new_carrier();
            for seq in 1..=2 {
                queue.push(1, Chunk { seq, after: 0, payload: vec![0; 1000].into() }).unwrap();
                queue.take(carrier, now).unwrap();
            }
            queue.acked(now + 10 * MS, 1, 1, &[], 0, None).unwrap().unwrap();
            let pace = || queue.slice(carrier, 1, 50_000, Instant::now()).pace;
            let held = ebb(&link).await;
            assert_eq!((held.queue, pace().is_some()), (Duration::ZERO, is_held), "{control}");
            drop(held);
            assert_eq!(pace(), None);
        }
    }
}
