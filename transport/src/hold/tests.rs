//! The ceiling over a path of which everything is known.

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
        assert!(path.hold.ceiling().is_some_and(|ceiling| ceiling > 110e6), "{n}: {:?}", path.hold.ceiling());
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
