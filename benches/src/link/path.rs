//! One direction between two hosts: queue, serialisation, loss, delay. Time is an argument; there is no I/O.
//!
//! ```text
//!  enter ─▶ cut? ─▶ room in the queue? ─▶ serialised at `busy_until` ─▶ lost? ─▶ + delay ─▶ front / pop
//!            no: whole     no: dropped_queue                       yes: dropped_loss
//! ```
//!
//! The queue is not kept as packets but as the instant until which the bottleneck is busy: what is queued is that
//! instant less now, times the rate. Each MTU-sized packet is asked for apart, so of a super-packet that does not
//! fit its first packets enter and the rest is dropped. A lost packet has used the bottleneck: it is lost behind it.
//!
//! Changes made while packets are under way: rate, queue and loss hold for packets that enter afterwards; a delay
//! too, but never so that a packet overtakes an earlier one. A link that is out loses what enters it and also what
//! would have come out of it.

use std::ops::Range;
use std::time::Duration;

use super::fifo::{Fifo, Held};
use super::packet::Packet;
use super::profile::{Direction, Queue};
use super::{LINK_OVERHEAD_BYTES, MTU_BYTES};

/// How the emulator goes about it, the same for all its paths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Emulation {
    /// A super-packet is cut into pieces whose serialisation takes no longer than this (a single packet may), since
    /// a piece is delivered when its last packet has arrived. 200 µs: 17 packets at 1 Gbit/s, so the first byte
    /// is late by less than a fifth of the millisecond by which a round trip may differ.
    pub piece: Duration,
    /// A thread that has handled packets sleeps at least this long, so that 10 Gbit/s is not 150,000 wake-ups per
    /// second, each of which costs whoever shares the machine. Packets are late by twice this at most; the clock of the bottleneck does not
    /// drift by it. Where a way is longer than 200 times this it is a 200th of the way, up to 500 µs.
    pub granularity: Duration,
    /// Memory for the packets under way in one direction; beyond it they are dropped as if by the queue. 512 MiB is
    /// three times what `jgn-10g` holds with a full queue.
    pub held_limit_bytes: u64,
    /// Seed of the loss. `None`: another one for each network.
    pub seed: Option<u64>,
    /// Ask for a real-time priority, so that a busy host does not make the link late. Without the right to it the
    /// emulator runs on without.
    pub realtime: bool,
}

impl Default for Emulation {
    fn default() -> Self {
        Self {
            piece: Duration::from_micros(200),
            granularity: Duration::from_micros(50),
            held_limit_bytes: 512 << 20,
            seed: None,
            realtime: true,
        }
    }
}

/// See [`Emulation::granularity`].
const GRANULES_PER_WAY: u32 = 200;
const GRANULARITY_MOST: Duration = Duration::from_micros(500);

/// What became of the MTU-sized packets of a packet that entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fate {
    pub dropped_queue: u64,
    pub dropped_loss: u64,
    pub dropped_outage: u64,
}

#[derive(Debug)]
pub(super) struct Path {
    emulation: Emulation,
    limits: Limits,
    out: bool,
    /// The bottleneck has serialised everything by then. Picoseconds, since a byte at 10 Gbit/s takes 760 of them.
    busy_until_ps: u64,
    last_due_ns: u64,
    dice: Dice,
    fifo: Fifo,
}

/// A [`Direction`] in the units of the algorithm.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// 0: no rate, hence no queue.
    ps_per_byte: u64,
    queue_ps: u64,
    piece_ps: u64,
    delay_ns: u64,
    granularity: Duration,
}

impl Path {
    pub fn new(direction: &Direction, emulation: Emulation, seed: u64) -> Self {
        let limits = Limits::of(direction, &emulation);
        let dice = Dice::new(seed, direction.loss);
        Self { emulation, limits, out: false, busy_until_ps: 0, last_due_ns: 0, dice, fifo: Fifo::default() }
    }

    /// Holds for the packets that enter from now on.
    pub fn set(&mut self, direction: &Direction, out: bool) {
        self.limits = Limits::of(direction, &self.emulation);
        self.dice.set(direction.loss);
        self.out = out;
    }

    pub fn enter(&mut self, now_ns: u64, packet: &Packet<'_>) -> Fate {
        let mut fate = Fate::default();
        let packets = packet.packets();
        if self.out {
            fate.dropped_outage = packets as u64;
            return fate;
        }
        let now_ps = now_ns.saturating_mul(1000);
        self.busy_until_ps = self.busy_until_ps.max(now_ps);
        let memory_full = self.fifo.held_bytes() >= self.emulation.held_limit_bytes;
        let mut piece = Piece::default();
        for index in 0..packets {
            let wire_bytes = packet.ip_bytes(index) as u64 + u64::from(LINK_OVERHEAD_BYTES);
            let takes_ps = wire_bytes * self.limits.ps_per_byte;
            if memory_full || self.busy_until_ps - now_ps + takes_ps > self.limits.queue_ps {
                fate.dropped_queue += 1;
                self.hold(&mut piece, packet);
                continue;
            }
            self.busy_until_ps += takes_ps;
            if self.dice.lost() {
                fate.dropped_loss += 1;
                self.hold(&mut piece, packet);
                continue;
            }
            if piece.takes_ps + takes_ps > self.limits.piece_ps {
                self.hold(&mut piece, packet);
            }
            piece.add(index, wire_bytes, takes_ps, self.busy_until_ps);
        }
        self.hold(&mut piece, packet);
        fate
    }

    /// How long what enters now waits before it is serialised.
    pub fn queue_ns(&self, now_ns: u64) -> u64 {
        (self.busy_until_ps / 1000).saturating_sub(now_ns)
    }

    /// How late a packet may be handled.
    pub fn granularity(&self) -> Duration {
        self.limits.granularity
    }

    /// When the next packet is to be delivered.
    pub fn due_ns(&self) -> Option<u64> {
        self.fifo.front().map(|(held, _)| held.due_ns)
    }

    /// The next packet, whether it is due or not, and its bytes.
    pub fn front(&self) -> Option<(Held, &[u8])> {
        self.fifo.front()
    }

    /// Forgets the next packet.
    pub fn pop(&mut self) {
        self.fifo.pop();
    }

    fn hold(&mut self, piece: &mut Piece, packet: &Packet<'_>) {
        let Piece { range, wire_bytes, done_ps, .. } = std::mem::take(piece);
        if range.is_empty() {
            return;
        }
        let due_ns = (done_ps.div_ceil(1000) + self.limits.delay_ns).max(self.last_due_ns);
        self.last_due_ns = due_ns;
        let held = Held { due_ns, packets: range.len() as u32, wire_bytes };
        self.fifo.push(held, packet.cut_bytes(&range), |out| packet.cut(&range, out));
    }
}

/// Packets that are delivered together.
#[derive(Debug, Default)]
struct Piece {
    range: Range<usize>,
    wire_bytes: u64,
    takes_ps: u64,
    done_ps: u64,
}

impl Piece {
    fn add(&mut self, index: usize, wire_bytes: u64, takes_ps: u64, done_ps: u64) {
        if self.range.is_empty() {
            self.range.start = index;
        }
        self.range.end = index + 1;
        self.wire_bytes += wire_bytes;
        self.takes_ps += takes_ps;
        self.done_ps = done_ps;
    }
}

impl Limits {
    fn of(direction: &Direction, emulation: &Emulation) -> Self {
        let of_the_way = (direction.delay / GRANULES_PER_WAY).min(GRANULARITY_MOST);
        let granularity = emulation.granularity.max(of_the_way);
        const PS_PER_S: u128 = 1_000_000_000_000;
        let ps_per_byte = match direction.rate {
            Some(rate) => (8 * PS_PER_S / u128::from(rate.line_bit_per_s().max(1))) as u64,
            None => 0,
        };
        let packet_ps = u64::from(MTU_BYTES + LINK_OVERHEAD_BYTES).saturating_mul(ps_per_byte);
        let queue_ps = match direction.queue {
            _ if ps_per_byte == 0 => u64::MAX,
            Queue::Time(time) => picoseconds(time),
            Queue::Bytes(bytes) => bytes.saturating_mul(ps_per_byte),
        };
        Self {
            ps_per_byte,
            // The packet that is being serialised is not in the queue: a queue of nothing passes one at a time.
            queue_ps: queue_ps.max(packet_ps),
            piece_ps: picoseconds(emulation.piece).max(packet_ps),
            delay_ns: direction.delay.as_nanos().try_into().unwrap_or(u64::MAX / 2),
            granularity,
        }
    }
}

fn picoseconds(time: Duration) -> u64 {
    (time.as_nanos() * 1000).try_into().unwrap_or(u64::MAX)
}

/// Independent loss. Draws how many packets pass until the next is lost, rather than one number per packet.
#[derive(Debug)]
struct Dice {
    state: u64,
    loss: f64,
    passing: u64,
}

impl Dice {
    fn new(seed: u64, loss: f64) -> Self {
        let mut dice = Self { state: seed, loss, passing: 0 };
        dice.draw();
        dice
    }

    fn set(&mut self, loss: f64) {
        // What was drawn for a loss holds as long as it does.
        if loss != self.loss {
            self.loss = loss;
            self.draw();
        }
    }

    fn lost(&mut self) -> bool {
        if self.passing > 0 {
            self.passing -= u64::from(self.loss > 0.0);
            return false;
        }
        self.draw();
        true
    }

    /// Geometric: `P(passing ≥ n) = (1 - loss)^n`. No loss is never drawn against.
    fn draw(&mut self) {
        self.passing = match self.loss {
            loss if loss <= 0.0 => u64::MAX,
            loss if loss >= 1.0 => 0,
            loss => (self.uniform().ln() / (-loss).ln_1p()) as u64,
        };
    }

    /// In `(0, 1]`. SplitMix64: 53 good bits are all that is asked of it.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{tcp, udp};
    use super::super::profile::{Profile, Rate};
    use super::*;

    const MSS: usize = 1448;
    const MS_NS: u64 = 1_000_000;

    fn direction(rate: Option<Rate>, delay_ms: u64, queue: Queue, loss: f64) -> Direction {
        Direction { rate, delay: Duration::from_millis(delay_ms), queue, loss }
    }

    fn path(direction: &Direction) -> Path {
        Path::new(direction, Emulation::default(), 4)
    }

    fn enter(path: &mut Path, now_ns: u64, raw: &[u8]) -> Fate {
        path.enter(now_ns, &Packet::parse(raw).unwrap())
    }

    fn drain(path: &mut Path) -> Vec<Held> {
        std::iter::from_fn(|| {
            let held = path.front()?.0;
            path.pop();
            Some(held)
        })
        .collect()
    }

    #[test]
    fn an_unlimited_path_passes_a_super_packet_whole_after_the_delay() {
        let mut path = path(&direction(None, 60, Queue::Time(Duration::ZERO), 0.0));
        let raw = tcp(4, 40 * MSS, MSS);
        assert_eq!(enter(&mut path, 5, &raw), Fate::default());
        let (held, bytes) = path.front().unwrap();
        assert_eq!((held.due_ns, held.packets, held.wire_bytes), (5 + 60 * MS_NS, 40, 40 * 1526));
        assert_eq!(bytes, raw);
    }

    #[test]
    fn the_last_byte_leaves_at_the_rate_and_the_first_is_not_held_for_it() {
        let rate = Rate::line(100_000_000);
        let mut path = path(&direction(Some(rate), 10, Queue::Time(Duration::from_millis(100)), 0.0));
        enter(&mut path, 0, &tcp(4, 40 * MSS, MSS));
        let pieces = drain(&mut path);
        let packet_ns = 1526 * 80;
        assert_eq!(pieces.last().unwrap().due_ns, 10 * MS_NS + 40 * packet_ns);
        assert_eq!(pieces[0].due_ns, 10 * MS_NS + u64::from(pieces[0].packets) * packet_ns);
        assert!(pieces.iter().all(|piece| u64::from(piece.packets) * packet_ns <= 200_000));
        assert_eq!(pieces.iter().map(|piece| piece.packets).sum::<u32>(), 40);
        assert_eq!(pieces.iter().map(|piece| piece.wire_bytes).sum::<u64>(), 40 * 1526);
    }

    #[test]
    fn tcp_payload_moves_at_the_rate_that_was_asked_for() {
        for asked in [100_000_000, 1_000_000_000, 10_000_000_000] {
            let mut path =
                path(&direction(Some(Rate::payload(asked)), 0, Queue::Time(Duration::from_secs(1)), 0.0));
            let (count, raw) = (100_u64, tcp(4, 40 * MSS, MSS));
            for _ in 0..count {
                assert_eq!(enter(&mut path, 0, &raw), Fate::default());
            }
            let last = drain(&mut path).last().unwrap().due_ns;
            let payload_bit = (count * 40 * MSS as u64 * 8) as f64;
            let measured = payload_bit / (last as f64 / 1e9);
            assert!((measured / asked as f64 - 1.0).abs() < 0.002, "{asked}: {measured}");
        }
    }

    #[test]
    fn a_full_queue_drops_the_packets_that_do_not_fit_and_empties_at_the_rate() {
        // 8 Mbit/s: a byte per microsecond.
        let rate = Some(Rate::line(8_000_000));
        let mut path = path(&direction(rate, 0, Queue::Bytes(10 * 1526), 0.0));
        assert_eq!(path.queue_ns(0), 0);
        assert_eq!(enter(&mut path, 0, &tcp(4, 15 * MSS, MSS)).dropped_queue, 5);
        assert_eq!(path.queue_ns(1_526_000), 9 * 1_526_000);
        assert_eq!(enter(&mut path, 0, &tcp(4, MSS, MSS)).dropped_queue, 1);
        assert_eq!(enter(&mut path, 3 * 1526 * 1000, &tcp(4, 4 * MSS, MSS)).dropped_queue, 1);
        let pieces = drain(&mut path);
        assert_eq!(pieces.iter().map(|piece| piece.packets).sum::<u32>(), 13);
        assert_eq!(pieces.last().unwrap().due_ns, 13 * 1526 * 1000);
    }

    #[test]
    fn a_queue_of_nothing_passes_one_packet_at_a_time() {
        let mut path = path(&direction(Some(Rate::line(8_000_000)), 0, Queue::Bytes(0), 0.0));
        assert_eq!(enter(&mut path, 0, &tcp(4, 3 * MSS, MSS)).dropped_queue, 2);
        assert_eq!(enter(&mut path, 1526 * 1000, &tcp(4, MSS, MSS)).dropped_queue, 0);
    }

    #[test]
    fn memory_is_bounded_also_without_a_rate() {
        let emulation = Emulation { held_limit_bytes: 200_000, ..Emulation::default() };
        let mut path = Path::new(&Profile::UNLIMITED.direction(), emulation, 4);
        let dropped: u64 = (0..10).map(|_| enter(&mut path, 0, &tcp(4, 40 * MSS, MSS)).dropped_queue).sum();
        assert_eq!(dropped, 6 * 40);
        assert!(path.fifo.held_bytes() < 300_000);
    }

    #[test]
    fn loss_is_drawn_per_packet_and_splits_super_packets() {
        for loss in [0.0001, 0.01, 0.3] {
            let mut path = path(&direction(None, 0, Queue::Bytes(0), loss));
            let (mut lost, mut pieces, mut passed) = (0, 0_u64, 0);
            let entered = (4000.0 / loss) as u64 / 40;
            let raw = udp(6, 40 * 100, 100);
            for now_ns in 0..entered {
                lost += enter(&mut path, now_ns, &raw).dropped_loss;
                for piece in drain(&mut path) {
                    passed += u64::from(piece.packets);
                    pieces += 1;
                }
            }
            assert_eq!(lost + passed, entered * 40);
            let measured = lost as f64 / (entered * 40) as f64;
            assert!((measured / loss - 1.0).abs() < 0.08, "{loss}: {measured}");
            assert!(pieces > entered, "a loss within a super-packet leaves two pieces");
        }
    }

    #[test]
    fn certain_loss_and_none_are_certain() {
        let mut path = path(&direction(None, 0, Queue::Bytes(0), 1.0));
        assert_eq!(enter(&mut path, 0, &tcp(4, 10 * MSS, MSS)).dropped_loss, 10);
        path.set(&direction(None, 0, Queue::Bytes(0), 0.0), false);
        for _ in 0..1000 {
            assert_eq!(enter(&mut path, 0, &tcp(4, 40 * MSS, MSS)), Fate::default());
        }
    }

    #[test]
    fn nothing_overtakes_when_the_delay_shrinks() {
        let mut path = path(&direction(None, 100, Queue::Bytes(0), 0.0));
        enter(&mut path, 0, &tcp(4, MSS, MSS));
        path.set(&direction(None, 1, Queue::Bytes(0), 0.0), false);
        enter(&mut path, 0, &tcp(4, MSS, MSS));
        assert!(drain(&mut path).iter().all(|held| held.due_ns == 100 * MS_NS));
        enter(&mut path, 200 * MS_NS, &tcp(4, MSS, MSS));
        assert_eq!(path.due_ns(), Some(201 * MS_NS));
    }

    #[test]
    fn a_link_that_is_out_takes_nothing_in() {
        let mut path = path(&Profile::UNLIMITED.direction());
        path.set(&Profile::UNLIMITED.direction(), true);
        assert_eq!(enter(&mut path, 0, &tcp(4, 10 * MSS, MSS)).dropped_outage, 10);
        assert_eq!(path.due_ns(), None);
    }
}
