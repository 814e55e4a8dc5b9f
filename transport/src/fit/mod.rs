//! Fits a bond's lanes to its path, by what is found of it: their number ([`widen`]) and their send [`buffers`]. What to do is said by
//! these two, of figures alone; [`tuning`] does it.

mod buffers;
mod tuning;
mod widen;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::bond::Bond;
use crate::config::{Congestion, Sockets};
use crate::lane_stats::LaneStats;
use crate::limit::{Reading, rate};
use crate::warm::min_rtt;

pub use tuning::Tuning;
use widen::Widening;

/// Between two looks: some round trips of a long path. What slow start sent too much is repaired within two of them.
pub const LOOK: Duration = Duration::from_secs(1);

/// A congestion control that goes by what arrives. [`Hold`](crate::hold::Hold) keeps it off the path's queue.
pub const BY_RATE: &str = "bbr";
/// Those that are there to fill windows: the first that the host lets us have.
const SLOW_START: [&str; 2] = ["cubic", "reno"];

/// What one bond's lanes went through.
pub struct Fit {
    widening: Widening,
    before: Option<Reading>,
}

impl Fit {
    /// A bond that begins with so many lanes.
    pub fn new(bond: &Bond, lanes: u16) -> Self {
        Self { widening: Widening::new(lanes, bond.link.agreed.lanes), before: None }
    }

    /// A lane's connection ended.
    pub fn fell(&mut self) {
        self.widening.fell();
    }

    /// The first lanes are up, and say how long the path is. How many more there are to be.
    pub fn first(&mut self, bond: &Bond, config: &Sockets) -> u16 {
        raise_buffers(bond, config, 0.0);
        self.widening.found(0.0, &bond.lane_stats(), send_buffer_most())
    }

    /// A warm-up may have found what the path carries, or the path became longer. How many more lanes there are to be.
    pub fn stirred(&mut self, bond: &Bond) -> u16 {
        if bond.take_outgrown() {
            let more = self.widening.outgrown();
            if more == 0 {
                return 0;
            }
            tracing::info!(peer = %bond.link.peer, lanes = bond.lanes_up() + more, "more lanes: the path became longer");
            return more;
        }
        let found = bond.link.wish.found().and_then(|probe| probe.path());
        found.map_or(0, |found| self.widening.found(found as f64, &bond.lane_stats(), send_buffer_most()))
    }

    /// Looks how the link does. How many more lanes there are to be.
    pub fn look(&mut self, bond: &Bond, config: &Sockets) -> u16 {
        let link = &bond.link;
        if !link.has_sessions() {
            self.widening.rest();
            self.before = None;
            return 0;
        }
        let now = link.reading();
        if let Some(before) = self.before.replace(now.clone()) {
            raise_buffers(bond, config, rate(&before, &now));
        }
        let more = self.widening.look(now);
        if more > 0 {
            tracing::info!(peer = %link.peer, lanes = bond.lanes_up() + more, "more lanes: the path keeps each small");
        }
        more
    }
}

/// For a connection that was not made yet: slow start fills the first windows, and the pieces in which that sends tell the bandwidth.
/// What once went by rate is paced for good, and has none.
pub fn before_first(socket: &impl AsFd) {
    let now = getsockopt(socket, sockopt::TcpCongestion).unwrap_or_default();
    if now.to_string_lossy().trim_end_matches('\0') == BY_RATE {
        let _ =
            SLOW_START.iter().any(|name| setsockopt(socket, sockopt::TcpCongestion, &(*name).into()).is_ok());
    }
}

/// When the first windows are filled, and from then on. True: the lanes go by rate, and not by losses.
pub fn while_working(bond: &Bond, config: &Sockets) -> bool {
    match &config.congestion {
        Congestion::Auto => {}
        Congestion::Named(name) if name == BY_RATE => {}
        Congestion::Named(_) => return false,
    }
    bond.tuning.set_congestion(BY_RATE, || sockets(bond))
}

/// Lanes that go by rate look for the shortest round trip anew when they have not seen it for ten seconds: for 200 ms and a round trip
/// or two they have next to nothing under way. Those that do not just now will not for ten seconds.
pub fn put_off_looks(bond: &Bond) -> Looks {
    let lanes = bond.lane_stats();
    let others = lanes.iter().filter(|lane| lane.may_put_off());
    let others: Vec<_> = others.map(|lane| (lane.lane, lane.epoch)).collect();
    let mut sockets = bond.sockets();
    sockets.retain(|(lane, epoch, _)| others.contains(&(*lane, *epoch)));
    let sockets: Vec<_> = sockets.into_iter().map(|(_, _, socket)| socket).collect();
    bond.tuning.renew(&sockets, SLOW_START[1]);
    Looks { some: lanes.iter().any(LaneStats::looks), put_off: !sockets.is_empty() }
}

/// What lanes do about the shortest round trip.
#[derive(Default)]
pub struct Looks {
    /// Some look for it.
    pub some: bool,
    /// Some put it off, and begin anew: with the window that they had, and by sending twice what arrives.
    pub put_off: bool,
}

/// Whether some still do.
pub fn look_for_shortest(bond: &Bond) -> bool {
    bond.lane_stats().iter().any(LaneStats::looks)
}

fn sockets(bond: &Bond) -> Vec<Arc<OwnedFd>> {
    bond.sockets().into_iter().map(|(_, _, socket)| socket).collect()
}

/// Send buffers for a path that carries so many bytes per second, as far as is known.
pub fn raise_buffers(bond: &Bond, config: &Sockets, found: f64) {
    let Some(bounds) = &config.send_buffer_bytes else { return };
    let lanes = bond.lane_stats();
    if let Some(rtt) = min_rtt(&lanes) {
        let bytes = buffers::wanted(found, rtt, lanes.len(), bounds);
        bond.tuning.raise_send_buffers(bytes, || sockets(bond));
    }
}

/// What the kernel lets a send buffer grow to by itself, bytes.
fn send_buffer_most() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    text.split_whitespace().nth(2).and_then(|most| most.parse().ok()).unwrap_or(u64::MAX)
}
