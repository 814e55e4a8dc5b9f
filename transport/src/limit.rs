//! What holds a link's rate where it is, from two readings of it; in words for people.
//!
//! [`what_limits`] is a pure function: no socket, no clock. Its order is its meaning: what is set comes before what was
//! found, what is ours before what is the path's.

use std::fmt;
use std::time::{Duration, Instant};

use crate::fit::BY_RATE;
use crate::lane_stats::{Adder, LaneStats, Sums};
use crate::throttle::wire_bytes;

/// Shares of the time between two readings from which something counts as the cause.
const MOST: f64 = 0.9;
const MUCH: f64 = 0.2;
/// A round trip longer than the shortest by this share and this time has a queue in it.
const QUEUE_SHARE: f64 = 0.25;
const QUEUE_LEAST: Duration = Duration::from_millis(2);

/// All that is known of a sending link at one instant.
#[derive(Clone, Debug)]
pub struct Reading {
    pub at: Instant,
    pub lanes: Vec<LaneStats>,
    /// Time that each lane thread ran or wanted to, since it began.
    pub threads: Vec<Duration>,
    pub rtt: Option<Duration>,
    pub min_rtt: Option<Duration>,
    /// Payload that waits for a lane.
    pub unsent_bytes: u64,
    /// Something waits, and every session that has something waits for its receiver.
    pub waits_for_peer: bool,
    /// The least limit that holds for all, bytes per second on the wire.
    pub limit_bytes_per_s: Option<u64>,
}

/// What holds the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// There is less to send than would go.
    Source,
    /// A limit that was set, bytes per second on the wire.
    Set(u64),
    /// The receiver takes no more: its credit is used up.
    Peer,
    /// The lane threads have no more time.
    Cpu,
    /// The sockets' send buffers are full.
    SendBuffer,
    /// The windows of the peer's receive buffers are full.
    ReceiveBuffer,
    /// The path is full: packets queue before its narrowest place.
    Path { queue: Duration },
    /// Losses keep the windows small, though no queue is full. Packets sent again, of all.
    Losses { share: f64 },
    /// The windows are still growing.
    Growing,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Source => f.write_str("nothing here: there is less to send than the link would take"),
            Limit::Set(rate) => {
                write!(f, "the limit that was set, {:.1} Mbit/s on the wire", *rate as f64 * 8e-6)
            }
            Limit::Peer => f.write_str("the peer: it applies no faster what it has received"),
            Limit::Cpu => f.write_str("CPU: this host's lane threads have no more time"),
            Limit::SendBuffer => f.write_str("buffers: this host's send buffers are full"),
            Limit::ReceiveBuffer => {
                f.write_str("buffers: the windows of the peer's receive buffers are full")
            }
            Limit::Path { queue } => {
                write!(f, "the path: it is full, with {:.0} ms of packets queued", queue.as_secs_f64() * 1e3)
            }
            Limit::Losses { share } => write!(
                f,
                "the path: it loses packets ({:.3} % were sent again), which keeps the windows small",
                share * 100.0
            ),
            Limit::Growing => f.write_str("time: the congestion windows are still growing"),
        }
    }
}

/// A queue in a round trip, if there is one.
pub fn queue_in(rtt: Duration, min_rtt: Duration) -> Option<Duration> {
    (rtt > min_rtt.mul_f64(1.0 + QUEUE_SHARE) + QUEUE_LEAST).then(|| rtt - min_rtt)
}

/// Payload and frames that arrived between two readings, bytes per second.
pub fn rate(before: &Reading, after: &Reading) -> f64 {
    let elapsed = after.at.saturating_duration_since(before.at).as_secs_f64();
    if elapsed == 0.0 { 0.0 } else { went(before, after).acked_bytes as f64 / elapsed }
}

fn went(before: &Reading, after: &Reading) -> Sums {
    let mut adder = Adder::default();
    let first = adder.add(&before.lanes);
    adder.add(&after.lanes).since(&first)
}

/// What limited the rate between two readings of a link.
pub fn what_limits(before: &Reading, after: &Reading) -> Limit {
    let elapsed = after.at.saturating_duration_since(before.at).as_secs_f64();
    if elapsed == 0.0 || after.lanes.is_empty() {
        return Limit::Source;
    }
    let went = went(before, after);
    if let Some(limit) = after.limit_bytes_per_s
        && wire_bytes(went.acked_bytes) as f64 >= MOST * elapsed * limit as f64
    {
        return Limit::Set(limit);
    }
    if before.waits_for_peer && after.waits_for_peer {
        return Limit::Peer;
    }
    if before.unsent_bytes == 0 && after.unsent_bytes == 0 {
        return Limit::Source;
    }
    let threads = after.threads.iter().zip(&before.threads);
    if threads.map(|(after, before)| after.saturating_sub(*before).as_secs_f64()).fold(0.0, f64::max)
        >= MOST * elapsed
    {
        return Limit::Cpu;
    }
    let busy = went.busy.as_secs_f64();
    if went.buffer_limited.as_secs_f64() > MUCH * busy {
        return Limit::SendBuffer;
    }
    if went.receive_limited.as_secs_f64() > MUCH * busy {
        return Limit::ReceiveBuffer;
    }
    if let (Some(rtt), Some(min)) = (after.rtt, after.min_rtt)
        && let Some(queue) = queue_in(rtt, min)
    {
        return Limit::Path { queue };
    }
    if let (Some(rtt), Some(min)) = (after.rtt, after.min_rtt)
        && after.lanes.iter().all(|lane| lane.congestion == BY_RATE && (lane.held || !lane.slow_start))
    {
        // Its queue is kept short, by the lanes themselves or by the ceiling over them.
        return Limit::Path { queue: rtt.saturating_sub(min) };
    }
    if went.resent_segments > 0 {
        return Limit::Losses { share: went.loss() };
    }
    Limit::Growing
}

/// Of eight lanes over 120 ms that have something to send, to change in tests.
#[cfg(test)]
pub(crate) fn some_reading() -> Reading {
    let rtt = Duration::from_millis(120);
    Reading {
        at: Instant::now(),
        lanes: (0..8).map(crate::lane_stats::some_lane).collect(),
        threads: vec![Duration::ZERO; 2],
        rtt: Some(rtt),
        min_rtt: Some(rtt),
        unsent_bytes: 1 << 20,
        waits_for_peer: false,
        limit_bytes_per_s: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A second at 1 Gbit/s over eight lanes that no one holds up, with something left to send.
    fn second() -> (Reading, Reading) {
        let before = some_reading();
        let mut after = before.clone();
        after.at += 1000 * MS;
        after.threads = vec![300 * MS; 2];
        for lane in &mut after.lanes {
            lane.acked_bytes = 15_000_000;
            lane.sent_segments = 10_500;
            lane.busy = 1000 * MS;
        }
        (before, after)
    }

    fn found(change: impl Fn(&mut Reading)) -> Limit {
        let (mut before, mut after) = second();
        change(&mut after);
        (before.unsent_bytes, before.waits_for_peer) = (after.unsent_bytes, after.waits_for_peer);
        what_limits(&before, &after)
    }

    #[test]
    fn each_cause_is_found() {
        assert_eq!(found(|_| {}), Limit::Growing);
        assert_eq!(found(|now| now.unsent_bytes = 0), Limit::Source);
        assert_eq!(found(|now| now.waits_for_peer = true), Limit::Peer);
        assert_eq!(found(|now| now.limit_bytes_per_s = Some(130_000_000)), Limit::Set(130_000_000));
        assert_eq!(found(|now| now.limit_bytes_per_s = Some(200_000_000)), Limit::Growing);
        assert_eq!(found(|now| now.threads[1] = 950 * MS), Limit::Cpu);
        assert_eq!(found(|now| now.rtt = Some(200 * MS)), Limit::Path { queue: 80 * MS });
        assert_eq!(found(|now| now.lanes[3].buffer_limited = 1000 * MS), Limit::Growing);
        assert_eq!(
            found(|now| now.lanes.iter_mut().for_each(|lane| lane.buffer_limited = 300 * MS)),
            Limit::SendBuffer
        );
        assert_eq!(
            found(|now| now.lanes.iter_mut().for_each(|lane| lane.receive_limited = 300 * MS)),
            Limit::ReceiveBuffer
        );
        assert_eq!(found(|now| now.lanes[0].resent_segments = 84), Limit::Losses { share: 0.001 });
    }

    #[test]
    fn lanes_that_would_send_faster_than_they_are_let_are_as_fast_as_the_path() {
        let starting = |now: &mut Reading, held| {
            for lane in &mut now.lanes {
                (lane.congestion, lane.slow_start, lane.held) = (BY_RATE.into(), true, held);
            }
        };
        assert_eq!(found(|now| starting(now, false)), Limit::Growing);
        assert_eq!(found(|now| starting(now, true)), Limit::Path { queue: Duration::ZERO });
    }

    #[test]
    fn a_full_path_explains_its_losses_and_a_set_limit_everything() {
        let full = |now: &mut Reading| {
            now.rtt = Some(220 * MS);
            now.lanes[0].resent_segments = 84;
        };
        assert_eq!(found(full), Limit::Path { queue: 100 * MS });
        let limited = |now: &mut Reading| {
            full(now);
            now.limit_bytes_per_s = Some(126_000_000);
        };
        assert_eq!(found(limited), Limit::Set(126_000_000));
    }

    #[test]
    fn a_link_without_lanes_or_time_has_no_limit_to_name() {
        let (before, after) = second();
        assert_eq!(what_limits(&after, &after), Limit::Source);
        let none = Reading { lanes: Vec::new(), ..after };
        assert_eq!(what_limits(&before, &none), Limit::Source);
    }
}
