//! How each lane does, as its socket's kernel says: one reading, and sums over time that redialled lanes do not break.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use crate::fit::BY_RATE;
use crate::names::{Epoch, LaneId};
use crate::sys::tcp_info;

/// Packets under way of a lane that looks for the shortest round trip.
const LOOKS_WITH: u64 = 4;

/// One lane of a sending link, now. Counters are since its connection was made.
#[derive(Clone, Debug)]
pub struct LaneStats {
    pub lane: LaneId,
    /// How often it was dialled under this link's present connection.
    pub epoch: Epoch,
    pub peer: Option<SocketAddr>,
    /// Congestion control, by the kernel's name.
    pub congestion: String,
    /// What congestion control lets be in flight.
    pub window_bytes: u64,
    /// It is still in slow start.
    pub slow_start: bool,
    /// Smoothed, of the lane's own packets.
    pub rtt: Duration,
    pub min_rtt: Duration,
    pub segment_bytes: u64,
    pub sent_segments: u64,
    pub resent_segments: u64,
    pub acked_bytes: u64,
    /// What arrived, with what lies behind a hole, in whole segments.
    pub arrived_bytes: u64,
    pub in_flight_bytes: u64,
    /// In the socket, never sent.
    pub unsent_bytes: u64,
    /// As the kernel paces it. `None`: it does not.
    pub pacing_bytes_per_s: Option<u64>,
    /// It would send faster if it were let.
    pub held: bool,
    pub delivery_bytes_per_s: u64,
    /// As the kernel counts, its bookkeeping included: about half of it is data.
    pub send_buffer_bytes: u64,
    /// The window that the peer's receive buffer gives. 0: this kernel does not say.
    pub receive_window_bytes: u64,
    /// How long something was under way.
    pub busy: Duration,
    /// How long of this the peer's window was full.
    pub receive_limited: Duration,
    /// How long of this the send buffer was full.
    pub buffer_limited: Duration,
}

impl LaneStats {
    /// `None`: the connection ended meanwhile.
    pub(crate) fn read(lane: LaneId, epoch: Epoch, socket: &OwnedFd) -> Option<Self> {
        let info = tcp_info(socket.as_fd()).ok()?;
        let us = |us: u64| Duration::from_micros(us);
        let congestion = getsockopt(&socket, sockopt::TcpCongestion).unwrap_or_default();
        let stream = nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(raw(socket)).ok();
        let peer = stream.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
        });
        let mss = u64::from(info.snd_mss);
        let in_flight = info.unacked.saturating_sub(info.sacked + info.lost) + info.retrans;
        Some(Self {
            lane,
            epoch,
            peer,
            congestion: congestion.to_string_lossy().trim_end_matches('\0').to_owned(),
            window_bytes: u64::from(info.snd_cwnd) * mss,
            slow_start: info.snd_cwnd < info.snd_ssthresh,
            rtt: us(info.rtt_us.into()),
            min_rtt: us(if info.min_rtt_us == u32::MAX { 0 } else { info.min_rtt_us.into() }),
            segment_bytes: mss,
            sent_segments: info.data_segs_out.into(),
            resent_segments: info.total_retrans.into(),
            acked_bytes: info.bytes_acked,
            // Kernels before 4.18 do not say.
            arrived_bytes: if info.delivered > 0 {
                u64::from(info.delivered) * mss
            } else {
                info.bytes_acked
            },
            in_flight_bytes: u64::from(in_flight) * mss,
            unsent_bytes: info.notsent_bytes.into(),
            pacing_bytes_per_s: Some(info.pacing_rate).filter(|rate| *rate != u64::MAX && *rate != 0),
            held: info.max_pacing_rate != u64::MAX && info.pacing_rate >= info.max_pacing_rate,
            delivery_bytes_per_s: info.delivery_rate,
            send_buffer_bytes: getsockopt(&socket, sockopt::SndBuf).unwrap_or(0) as u64,
            receive_window_bytes: info.snd_wnd.into(),
            busy: us(info.busy_us),
            receive_limited: us(info.rwnd_limited_us),
            buffer_limited: us(info.sndbuf_limited_us),
        })
    }

    /// It goes by rate and looks for the shortest round trip: lets four packets be under way. One that ran out of data in its
    /// look has that window until it has something to send again, and looks for nothing; one that lost everything begins
    /// with less.
    pub(crate) fn looks(&self) -> bool {
        let at_work = self.in_flight_bytes > 0 || self.unsent_bytes > 0;
        self.congestion == BY_RATE && self.window_bytes == LOOKS_WITH * self.segment_bytes && at_work
    }

    /// It goes by rate and its next look may be put off: it has a window worth keeping.
    pub(crate) fn may_put_off(&self) -> bool {
        self.congestion == BY_RATE && self.window_bytes > LOOKS_WITH * self.segment_bytes
    }
}

fn raw(socket: &OwnedFd) -> std::os::fd::RawFd {
    use std::os::fd::AsRawFd;
    socket.as_raw_fd()
}

/// Sums over all lanes of a link, past and present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub acked_bytes: u64,
    pub arrived_bytes: u64,
    pub sent_segments: u64,
    pub resent_segments: u64,
    pub busy: Duration,
    pub receive_limited: Duration,
    pub buffer_limited: Duration,
}

impl Sums {
    /// What came to it since `before`.
    pub fn since(&self, before: &Sums) -> Sums {
        Sums {
            acked_bytes: self.acked_bytes.saturating_sub(before.acked_bytes),
            arrived_bytes: self.arrived_bytes.saturating_sub(before.arrived_bytes),
            sent_segments: self.sent_segments.saturating_sub(before.sent_segments),
            resent_segments: self.resent_segments.saturating_sub(before.resent_segments),
            busy: self.busy.saturating_sub(before.busy),
            receive_limited: self.receive_limited.saturating_sub(before.receive_limited),
            buffer_limited: self.buffer_limited.saturating_sub(before.buffer_limited),
        }
    }

    /// Sent again, of what was sent.
    pub fn loss(&self) -> f64 {
        if self.sent_segments == 0 { 0.0 } else { self.resent_segments as f64 / self.sent_segments as f64 }
    }

    fn of(lane: &LaneStats) -> Sums {
        Sums {
            acked_bytes: lane.acked_bytes,
            arrived_bytes: lane.arrived_bytes,
            sent_segments: lane.sent_segments,
            resent_segments: lane.resent_segments,
            busy: lane.busy,
            receive_limited: lane.receive_limited,
            buffer_limited: lane.buffer_limited,
        }
    }

    fn add(&mut self, more: &Sums) {
        self.acked_bytes += more.acked_bytes;
        self.arrived_bytes += more.arrived_bytes;
        self.sent_segments += more.sent_segments;
        self.resent_segments += more.resent_segments;
        self.busy += more.busy;
        self.receive_limited += more.receive_limited;
        self.buffer_limited += more.buffer_limited;
    }
}

/// Adds up what lanes do, whichever connections they have.
#[derive(Debug, Default)]
pub struct Adder {
    sums: Sums,
    last: HashMap<(LaneId, Epoch), Sums>,
}

impl Adder {
    pub fn add(&mut self, lanes: &[LaneStats]) -> Sums {
        let now: HashMap<_, _> = lanes.iter().map(|lane| ((lane.lane, lane.epoch), Sums::of(lane))).collect();
        for (connection, sums) in &now {
            let before = self.last.get(connection).copied().unwrap_or_default();
            self.sums.add(&sums.since(&before));
        }
        self.last = now;
        self.sums
    }
}

/// A lane to change in tests.
#[cfg(test)]
pub(crate) fn some_lane(lane: u16) -> LaneStats {
    LaneStats {
        lane: LaneId(lane),
        epoch: Epoch(1),
        peer: None,
        congestion: "cubic".into(),
        window_bytes: 2_000_000,
        slow_start: false,
        rtt: Duration::from_millis(120),
        min_rtt: Duration::from_millis(120),
        segment_bytes: 1448,
        sent_segments: 0,
        resent_segments: 0,
        acked_bytes: 0,
        arrived_bytes: 0,
        in_flight_bytes: 0,
        unsent_bytes: 0,
        pacing_bytes_per_s: None,
        held: false,
        delivery_bytes_per_s: 0,
        send_buffer_bytes: 8 << 20,
        receive_window_bytes: 4 << 20,
        busy: Duration::ZERO,
        receive_limited: Duration::ZERO,
        buffer_limited: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_connection_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut there, address) = (listener.accept().unwrap().0, listener.local_addr().unwrap());
        stream.write_all(&[0; 1000]).unwrap();
        there.read_exact(&mut [0; 1000]).unwrap();
        // The answer acknowledges what came before it.
        there.write_all(&[1]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let lane = LaneStats::read(LaneId(3), Epoch(2), &stream.into()).unwrap();
        assert_eq!((lane.lane, lane.epoch, lane.peer), (LaneId(3), Epoch(2), Some(address)));
        // The connection's first packet counts as a byte.
        assert_eq!((lane.acked_bytes, lane.sent_segments, lane.unsent_bytes), (1001, 1, 0));
        assert!(lane.window_bytes > 10_000 && lane.send_buffer_bytes > 10_000, "{lane:?}");
        assert!(
            !lane.congestion.is_empty() && lane.rtt > Duration::ZERO && lane.rtt < Duration::from_secs(1)
        );
    }

    #[test]
    fn sums_go_on_when_a_lane_is_dialled_again() {
        let mut adder = Adder::default();
        let mut lanes = vec![some_lane(0), some_lane(1)];
        lanes[0].acked_bytes = 100;
        assert_eq!(adder.add(&lanes).acked_bytes, 100);
        lanes[0].acked_bytes = 150;
        lanes[1].acked_bytes = 50;
        assert_eq!(adder.add(&lanes).acked_bytes, 200);
        (lanes[0].epoch, lanes[0].acked_bytes) = (Epoch(2), 10);
        assert_eq!(adder.add(&lanes).acked_bytes, 210);
        assert_eq!(adder.add(&lanes).acked_bytes, 210);
    }

    #[test]
    fn a_lane_looks_for_the_shortest_round_trip_while_it_has_something_to_send() {
        let mut lane = LaneStats { congestion: BY_RATE.into(), window_bytes: 4 * 1448, ..some_lane(0) };
        assert!(!lane.looks(), "it ran out of data in its look, and goes on from there");
        lane.unsent_bytes = 1;
        assert!(lane.looks());
        (lane.unsent_bytes, lane.in_flight_bytes) = (0, 1448);
        assert!(lane.looks());
        lane.window_bytes = 1448;
        assert!(!lane.looks(), "it lost all that was under way");
        assert!(!lane.may_put_off());
        lane.window_bytes = 5 * 1448;
        assert!(!lane.looks() && lane.may_put_off());
    }
}
