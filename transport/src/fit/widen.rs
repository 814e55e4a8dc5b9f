//! More lanes where the path keeps them small.
//!
//! A congestion control that takes every loss for a full queue holds a connection to a window that the loss rate decides, whatever
//! the path could carry: with cubic, a round trip of 120 ms and one loss in ten thousand packets, to about 20 Mbit/s. More
//! connections are what helps, and only there: a link begins with `NodeConfig::lanes`, and gets half as many again for each
//! look in which losses without a queue held its rate, as in the look before. The same where
//! the kernel's bounds on buffers do: a lane has no more under way than they let it. Where the path ends a quarter of its connections within
//! a look, and more than one, it gets as many again at once: each that is made anew begins with a small window. They stay until
//! the link's connection ends. It does not look at what a path with a queue drops: there all lanes share what it carries.

use super::BY_RATE;
use super::buffers::{DATA, RATE};
use crate::lane_stats::LaneStats;
use crate::limit::{Limit, Reading, queue_in, what_limits};
use crate::warm::min_rtt;

/// Looks that must agree.
const IN_A_ROW: u32 = 2;

/// How many lanes fill a path that carries so many bytes per second, as far as is known: a lane has no more under way than its buffer
/// holds, which is `send_buffer_most` if the kernel chooses.
fn needed(found: f64, up: &[LaneStats], send_buffer_most: u64) -> f64 {
    let buffer = up.iter().map(|lane| lane.send_buffer_bytes.max(send_buffer_most)).min();
    let (Some(rtt), Some(buffer)) = (min_rtt(up), buffer) else { return 0.0 };
    (found.max(RATE) * rtt.as_secs_f64() / (DATA * buffer.max(1) as f64)).ceil()
}

/// What one bond's lanes went through.
pub struct Widening {
    lanes: u16,
    most: u16,
    before: Option<Reading>,
    in_a_row: u32,
    fallen: u16,
}

impl Widening {
    /// A bond that begins with so many lanes and may have `most`.
    pub fn new(lanes: u16, most: u16) -> Self {
        Self { lanes, most, before: None, in_a_row: 0, fallen: 0 }
    }

    /// How long the path is, and perhaps what it carries, was found: how many lanes it is to get.
    pub fn found(&mut self, found: f64, up: &[LaneStats], send_buffer_most: u64) -> u16 {
        let needed = needed(found, up, send_buffer_most).min(f64::from(self.most)) as u16;
        self.add(needed.saturating_sub(self.lanes))
    }

    /// What the lanes remember of the path is not true any more: as many again that remember nothing.
    pub fn outgrown(&mut self) -> u16 {
        self.add(self.lanes)
    }

    /// A lane's connection ended.
    pub fn fell(&mut self) {
        self.fallen = self.fallen.saturating_add(1);
    }

    /// Nothing is being sent: there is nothing to learn.
    pub fn rest(&mut self) {
        *self = Self::new(self.lanes, self.most);
    }

    /// How the link does now; how many lanes it is to get.
    pub fn look(&mut self, now: Reading) -> u16 {
        let fallen = std::mem::take(&mut self.fallen);
        let Some(before) = self.before.replace(now.clone()) else { return 0 };
        let queue = now.rtt.zip(now.min_rtt).and_then(|(rtt, min)| queue_in(rtt, min));
        let held = match what_limits(&before, &now) {
            // That one's windows are not decided by losses.
            Limit::Losses { .. } => now.lanes.iter().all(|lane| lane.congestion != BY_RATE),
            Limit::SendBuffer | Limit::ReceiveBuffer => queue.is_none(),
            _ => false,
        };
        self.in_a_row = if held { self.in_a_row + 1 } else { 0 };
        let killed = fallen > 1 && u32::from(fallen) * 4 >= u32::from(self.lanes);
        if killed {
            self.add(self.lanes)
        } else if self.in_a_row >= IN_A_ROW {
            self.add((self.lanes / 2).max(1))
        } else {
            0
        }
    }

    /// So many more, if there may be.
    fn add(&mut self, lanes: u16) -> u16 {
        let more = lanes.min(self.most.saturating_sub(self.lanes));
        self.lanes += more;
        more
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::LOOK;
    use super::*;
    use crate::lane_stats::some_lane;
    use crate::limit::some_reading;

    const MS: Duration = Duration::from_millis(1);

    /// A link of 120 ms that always has something to send, second by second.
    struct Path {
        now: Reading,
        widening: Widening,
    }

    impl Path {
        fn new() -> Self {
            let mut path = Self { now: some_reading(), widening: Widening::new(8, 32) };
            path.widening.look(path.now.clone());
            path
        }

        /// A second in which each lane sent so many packets again, with a queue of this length.
        fn second(&mut self, resent: u64, queue: Duration) -> u16 {
            self.now.at += LOOK;
            self.now.rtt = Some(120 * MS + queue);
            for lane in &mut self.now.lanes {
                lane.acked_bytes += 10_000_000;
                lane.sent_segments += 7000;
                lane.resent_segments += resent;
                lane.busy += LOOK;
            }
            self.widening.look(self.now.clone())
        }
    }

    #[test]
    fn losses_without_a_queue_bring_more_lanes_up_to_the_most() {
        let mut path = Path::new();
        let got: Vec<_> = (0..8).map(|_| path.second(1, Duration::ZERO)).collect();
        assert_eq!(got, [0, 4, 6, 9, 5, 0, 0, 0]);
    }

    #[test]
    fn losses_are_no_reason_for_a_control_that_does_not_go_by_them() {
        let mut path = Path::new();
        path.now.lanes.iter_mut().for_each(|lane| lane.congestion = BY_RATE.into());
        assert!((0..8).all(|_| path.second(100, Duration::ZERO) == 0));
    }

    #[test]
    fn a_path_too_long_for_the_kernels_buffers_begins_with_more_lanes() {
        let with = |buffer, rtt| {
            let mut lanes: Vec<_> = (0..8).map(some_lane).collect();
            lanes.iter_mut().for_each(|lane| (lane.send_buffer_bytes, lane.min_rtt) = (buffer, rtt));
            Widening::new(8, 32).found(0.0, &lanes, 4 << 20)
        };
        assert_eq!(with(87_000, 200 * MS), 4);
        assert_eq!(with(87_000, 120 * MS), 0);
        assert_eq!(with(8 << 20, 200 * MS), 0, "forced");
        assert_eq!(with(87_000, 5000 * MS), 24, "no more than there may be");
        assert_eq!(Widening::new(8, 32).found(0.0, &[], 4 << 20), 0);
    }

    #[test]
    fn a_path_that_carries_more_than_its_lanes_hold_gets_more_of_them_once() {
        let mut lanes: Vec<_> = (0..8).map(some_lane).collect();
        lanes.iter_mut().for_each(|lane| (lane.send_buffer_bytes, lane.min_rtt) = (16 << 20, 120 * MS));
        let mut widening = Widening::new(8, 32);
        let mut found = |gbit: f64| widening.found(gbit * 125e6, &lanes, 4 << 20);
        assert_eq!((found(1.0), found(5.0), found(10.0)), (0, 0, 7));
        assert_eq!((found(10.0), found(1.0), found(100.0)), (0, 0, 17), "those that are not up yet count");
    }

    #[test]
    fn buffers_that_are_too_small_for_the_path_bring_more_lanes_as_long_as_it_is_not_full() {
        let held = |queue| {
            let mut path = Path::new();
            let mut second = || {
                path.now.lanes.iter_mut().for_each(|lane| lane.receive_limited += LOOK / 2);
                path.second(0, queue)
            };
            (second(), second())
        };
        assert_eq!(held(Duration::ZERO), (0, 4));
        assert_eq!(held(100 * MS), (0, 0));
    }

    #[test]
    fn a_path_that_is_full_or_clean_keeps_its_lanes() {
        let mut path = Path::new();
        assert!((0..5).all(|_| path.second(10, 100 * MS) == 0), "its queue drops them");
        assert!((0..5).all(|_| path.second(0, Duration::ZERO) == 0));
    }

    #[test]
    fn what_slow_start_lost_is_no_reason() {
        let mut path = Path::new();
        assert_eq!(path.second(500, 100 * MS), 0);
        assert_eq!(path.second(20, Duration::ZERO), 0, "repaired, with the queue empty again");
        assert_eq!(path.second(0, Duration::ZERO), 0);
        assert_eq!(path.second(20, Duration::ZERO), 0, "and another time");
    }

    #[test]
    fn a_path_that_ends_connections_gets_more_of_them() {
        let mut path = Path::new();
        let mut second = |fallen| {
            (0..fallen).for_each(|_| path.widening.fell());
            path.second(0, Duration::ZERO)
        };
        assert_eq!((second(1), second(1), second(0)), (0, 0, 0), "one in a while");
        assert_eq!((second(2), second(3), second(10), second(10)), (8, 0, 16, 0));
        path.widening = Widening::new(4, 32);
        let mut second = |fallen| {
            (0..fallen).for_each(|_| path.widening.fell());
            path.second(0, Duration::ZERO)
        };
        assert_eq!((second(0), second(1), second(1), second(2)), (0, 0, 0, 4), "a quarter of them, but one");
    }

    #[test]
    fn a_rest_forgets_what_was_seen_and_keeps_what_there_is() {
        let mut path = Path::new();
        assert_eq!((path.second(1, Duration::ZERO), path.second(1, Duration::ZERO)), (0, 4));
        path.widening.rest();
        assert_eq!((path.second(1, Duration::ZERO), path.second(1, Duration::ZERO)), (0, 0));
        assert_eq!(path.second(1, Duration::ZERO), 6);
    }
}
