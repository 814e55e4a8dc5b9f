//! The thread of one host: reads what the host sends, keeps it in the paths, delivers what is due to other hosts.
//!
//! One thread does both, so a packet changes threads nowhere in the emulator; two hosts use two cores at most.
//! It sleeps in `ppoll` until a packet comes or one is due and never spins. It ends when told, or when the host's
//! interface is gone.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::unistd::{read, write};

use super::network::Counters;
use super::packet::{MAX_RAW_BYTES, Packet};
use super::path::{Emulation, Path};
use super::profile::Direction;
use super::reset::Resets;
use super::sys;
use super::window::Window;

/// What a path shares with the owner of the network.
#[derive(Debug)]
pub(super) struct Shared {
    wanted: Mutex<Wanted>,
    /// Counts the changes of `wanted`, so that the thread need not lock for each packet.
    changes: AtomicU64,
    delivered_bytes: AtomicU64,
    delivered_packets: AtomicU64,
    dropped_queue: AtomicU64,
    dropped_loss: AtomicU64,
    dropped_outage: AtomicU64,
    dropped_reset: AtomicU64,
    refused: AtomicU64,
    peak_bytes: AtomicU64,
    longest_queue_ns: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub direction: Direction,
    pub out: bool,
}

impl Shared {
    pub fn new(direction: Direction) -> Self {
        Self {
            wanted: Mutex::new(Wanted { direction, out: false }),
            changes: AtomicU64::new(0),
            delivered_bytes: AtomicU64::new(0),
            delivered_packets: AtomicU64::new(0),
            dropped_queue: AtomicU64::new(0),
            dropped_loss: AtomicU64::new(0),
            dropped_outage: AtomicU64::new(0),
            dropped_reset: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
            longest_queue_ns: AtomicU64::new(0),
        }
    }

    pub fn wanted(&self) -> Wanted {
        *self.lock()
    }

    pub fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.lock());
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            bytes: read(&self.delivered_bytes),
            packets: read(&self.delivered_packets),
            dropped_queue: read(&self.dropped_queue),
            dropped_loss: read(&self.dropped_loss),
            dropped_outage: read(&self.dropped_outage),
            dropped_reset: read(&self.dropped_reset),
            refused: read(&self.refused),
        }
    }

    /// The most that was delivered in any 10 ms since this was asked last.
    pub fn take_peak(&self) -> u64 {
        self.peak_bytes.swap(0, Ordering::Relaxed)
    }

    /// The longest queue since this was asked last.
    pub fn take_longest_queue(&self) -> Duration {
        Duration::from_nanos(self.longest_queue_ns.swap(0, Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // A plain value: whoever panicked while holding it cannot have left it half written.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A way from this thread's host to another.
#[derive(Debug)]
pub(super) struct Out {
    addresses: [IpAddr; 2],
    tun: Arc<OwnedFd>,
    path: Path,
    shared: Arc<Shared>,
    seen_changes: u64,
    is_out: bool,
    window: Window,
}

impl Out {
    pub fn new(addresses: [IpAddr; 2], tun: Arc<OwnedFd>, path: Path, shared: Arc<Shared>) -> Self {
        Self { addresses, tun, path, shared, seen_changes: 0, is_out: false, window: Window::default() }
    }

    fn refresh(&mut self) {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if changes != self.seen_changes {
            self.seen_changes = changes;
            let wanted = self.shared.wanted();
            self.is_out = wanted.out;
            self.path.set(&wanted.direction, wanted.out);
        }
    }

    fn enter(&mut self, now_ns: u64, packet: &Packet<'_>) {
        let fate = self.path.enter(now_ns, packet);
        self.shared.longest_queue_ns.fetch_max(self.path.queue_ns(now_ns), Ordering::Relaxed);
        let count = |counter: &AtomicU64, packets: u64| {
            if packets > 0 {
                counter.fetch_add(packets, Ordering::Relaxed);
            }
        };
        count(&self.shared.dropped_queue, fate.dropped_queue);
        count(&self.shared.dropped_loss, fate.dropped_loss);
        count(&self.shared.dropped_outage, fate.dropped_outage);
    }

    /// Whether there was any.
    fn deliver_due(&mut self, now_ns: u64, resets: &Resets) -> bool {
        let mut any = false;
        while let Some((held, bytes)) = self.path.front().filter(|(held, _)| held.due_ns <= now_ns) {
            let packets = u64::from(held.packets);
            let packet = if resets.any() { Packet::parse(bytes).ok() } else { None };
            let reset = packet.and_then(|packet| resets.to_receiver(&packet));
            if self.is_out {
                self.shared.dropped_outage.fetch_add(packets, Ordering::Relaxed);
            } else if let Some(reset) = reset {
                self.shared.dropped_reset.fetch_add(packets, Ordering::Relaxed);
                // A host that does not take it would not have taken the packet.
                let _ = write(&self.tun, &reset);
            } else {
                // Before it is written: who has received it finds it counted.
                self.shared.delivered_packets.fetch_add(packets, Ordering::Relaxed);
                self.shared.delivered_bytes.fetch_add(held.wire_bytes, Ordering::Relaxed);
                if write(&self.tun, bytes).is_ok() {
                    let recent_bytes = self.window.add(held.due_ns, held.wire_bytes);
                    self.shared.peak_bytes.fetch_max(recent_bytes, Ordering::Relaxed);
                } else {
                    self.shared.delivered_packets.fetch_sub(packets, Ordering::Relaxed);
                    self.shared.delivered_bytes.fetch_sub(held.wire_bytes, Ordering::Relaxed);
                    self.shared.refused.fetch_add(packets, Ordering::Relaxed);
                }
            }
            self.path.pop();
            any = true;
        }
        any
    }
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub tun: Arc<OwnedFd>,
    pub outs: Vec<Out>,
    pub resets: Arc<Resets>,
    pub emulation: Emulation,
    pub stop: Arc<AtomicBool>,
    /// Becomes readable when `stop` was set.
    pub wake: Arc<EventFd>,
    pub clock: Instant,
}

impl Forwarder {
    pub fn run(mut self) {
        sys::be_punctual(self.emulation.realtime);
        let mut raw = vec![0; MAX_RAW_BYTES];
        let mut handled = false;
        while !self.stop.load(Ordering::Acquire) {
            let now_ns = self.now_ns();
            for out in &mut self.outs {
                out.refresh();
                handled |= out.deliver_due(now_ns, &self.resets);
            }
            match read(&self.tun, &mut raw) {
                Ok(len) => {
                    self.enter(&raw[..len]);
                    handled = true;
                }
                Err(Errno::EAGAIN) => self.sleep(std::mem::take(&mut handled)),
                Err(Errno::EINTR) => {}
                // The host has removed its interface: nothing will come any more.
                Err(_) => return,
            }
        }
    }

    fn enter(&mut self, raw: &[u8]) {
        // What is no packet, or goes to nobody (multicast), ends here as it would at a router.
        let Ok(packet) = Packet::parse(raw) else { return };
        let destination = packet.destination();
        let now_ns = self.now_ns();
        let Some(out) = self.outs.iter_mut().find(|out| out.addresses.contains(&destination)) else { return };
        match self.resets.to_sender(&packet) {
            None => out.enter(now_ns, &packet),
            Some(reset) => {
                out.shared.dropped_reset.fetch_add(packet.packets() as u64, Ordering::Relaxed);
                let _ = write(&self.tun, &reset);
            }
        }
    }

    /// `busy`: where packets came and went, more will, and they are handled together.
    fn sleep(&self, busy: bool) {
        let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        // Interrupted or not, the loop looks at everything again.
        if busy {
            let nap = self.outs.iter().map(|out| out.path.granularity()).min();
            let _ = ppoll(&mut [wake], nap.map(TimeSpec::from_duration), None);
            return;
        }
        let next_ns = self.outs.iter().filter_map(|out| out.path.due_ns()).min();
        let timeout = next_ns.map(|due_ns| {
            TimeSpec::from_duration(Duration::from_nanos(due_ns.saturating_sub(self.now_ns())))
        });
        let _ = ppoll(&mut [PollFd::new(self.tun.as_fd(), PollFlags::POLLIN), wake], timeout, None);
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }
}
