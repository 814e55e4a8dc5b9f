//! A whole migration in virtual time: a guest that writes, QEMU's passes, encoding workers, a long link whose lanes reorder and
//! repeat, and a receiver that writes to a model of RAM.

pub mod guest;
pub mod link;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use guest::{Guest, ModelRam, Rng};
use hikyaku_engine::{
    AbortReason, Action, Chunk, ChunkSeq, EncodeScratch, Encoded, LinkStats, PAGE_BYTES, Policy, Progress,
    Receiver, ReceiverConfig, Source, SourceConfig, SyncInfo, Time,
};
use link::{Link, LinkConfig};

pub const MS: u64 = 1_000_000;
const TICK_NS: u64 = MS;
const PREFIX: &[u8] = b"header, configuration, START of ram";
const TAIL: &[u8] = b"END of ram, device state, EOF";

#[derive(Clone)]
pub struct Setup {
    pub guest: guest::GuestConfig,
    pub link: LinkConfig,
    pub source: SourceConfig,
    pub receiver: ReceiverConfig,
    /// What QEMU puts out.
    pub qemu_bytes_per_s: u64,
    /// From Switch until the guest stands still.
    pub stop_ns: u64,
    pub workers: usize,
    pub encode_bytes_per_s: u64,
    /// The first stop is given up when the guest has stood still for so long.
    pub first_stop_fails_after_ns: Option<u64>,
    pub limit_ns: u64,
    pub seed: u64,
}

impl Setup {
    pub fn new(guest: guest::GuestConfig, link: LinkConfig) -> Self {
        Setup {
            guest,
            link,
            source: SourceConfig::default(),
            receiver: ReceiverConfig::default(),
            qemu_bytes_per_s: 2_000_000_000,
            stop_ns: 10 * MS,
            workers: 2,
            encode_bytes_per_s: 600_000_000,
            first_stop_fails_after_ns: None,
            limit_ns: 120_000 * MS,
            seed: 1,
        }
    }
}

#[derive(Debug)]
pub enum End {
    /// Everything has arrived.
    Moved,
    Aborted(AbortReason),
    /// The limit came first.
    Unfinished,
}

#[derive(Debug)]
pub struct Report {
    pub end: End,
    pub ram_equal: bool,
    pub total_ns: u64,
    /// From the guest's stop until everything is applied.
    pub down_ns: u64,
    /// What was predicted when the switch was asked for.
    pub predicted_ms: Option<u64>,
    pub switches: u32,
    /// Passes that had ended when the switch was asked for.
    pub switched_in_pass: u32,
    pub payload_bytes: u64,
    pub pages_fed: u64,
    pub progress: Progress,
    /// The most memory beyond metadata.
    pub source_peak_bytes: usize,
    pub receiver_peak_bytes: usize,
    pub reordered: u64,
}

enum Event {
    Tick,
    Encoded(Encoded),
    Arrives(Chunk),
    Acks { applied: Vec<(ChunkSeq, u64)>, through: ChunkSeq },
    Stopped,
    Wake,
}

struct At(u64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Sim {
    setup: Setup,
    now: u64,
    events: BinaryHeap<Reverse<At>>,
    order: u64,
    rng: Rng,
    guest: Guest,
    source: Source,
    scratch: EncodeScratch,
    worker_free: Vec<u64>,
    link: Link,
    receiver: Receiver,
    ram: ModelRam,
    stopped_at: Option<u64>,
    tail_fed: bool,
    report: Report,
    last_arrived: ChunkSeq,
}

/// Runs a migration from beginning to end.
pub fn run(setup: Setup, policy: Box<dyn Policy>) -> Report {
    let mut sim = Sim {
        now: 0,
        events: BinaryHeap::new(),
        order: 0,
        rng: Rng(setup.seed),
        guest: Guest::new(&setup.guest, setup.seed),
        source: Source::new(setup.source.clone(), policy),
        scratch: EncodeScratch::default(),
        worker_free: vec![0; setup.workers],
        link: Link::new(setup.link.clone()),
        receiver: Receiver::new(setup.receiver.clone()),
        ram: ModelRam::new(setup.guest.pages),
        stopped_at: None,
        tail_fed: false,
        report: Report {
            end: End::Unfinished,
            ram_equal: false,
            total_ns: 0,
            down_ns: 0,
            predicted_ms: None,
            switches: 0,
            switched_in_pass: 0,
            payload_bytes: 0,
            pages_fed: 0,
            progress: Progress::default(),
            source_peak_bytes: 0,
            receiver_peak_bytes: 0,
            reordered: 0,
        },
        last_arrived: ChunkSeq::NONE,
        setup,
    };
    sim.run();
    sim.report.progress = sim.source.progress();
    sim.report.total_ns = sim.now;
    sim.report.ram_equal =
        sim.ram.pages == sim.guest.pages && sim.ram.opaque == PREFIX && sim.ram.tail == TAIL;
    sim.report
}

impl Sim {
    fn run(&mut self) {
        self.source.opaque(PREFIX);
        self.source.layout(Time(0), self.setup.guest.pages).expect("a layout");
        self.source.link(Time(0), self.link.stats(0));
        self.at(0, Event::Tick);
        while let Some(Reverse(At(when, _, event))) = self.events.pop() {
            if when > self.setup.limit_ns {
                return;
            }
            self.now = when;
            self.handle(event);
            if !self.act() {
                return;
            }
            let source_bytes = self.source.memory_bytes() - self.source.metadata_bytes();
            self.report.source_peak_bytes = self.report.source_peak_bytes.max(source_bytes);
            let receiver_bytes = self.receiver.memory_bytes() - self.receiver.metadata_bytes();
            self.report.receiver_peak_bytes = self.report.receiver_peak_bytes.max(receiver_bytes);
            if self.arrived() {
                self.report.end = End::Moved;
                self.report.down_ns = self.now - self.stopped_at.unwrap_or(self.now);
                return;
            }
        }
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse(At(when, self.order, event)));
    }

    /// GO has come and everything it names is applied.
    fn arrived(&self) -> bool {
        self.source.last_seq().is_some_and(|last| self.receiver.applied_through() >= last)
    }

    fn handle(&mut self, event: Event) {
        let now = Time(self.now);
        match event {
            Event::Tick => self.tick(),
            Event::Encoded(encoded) => self.source.encoded(now, encoded),
            Event::Arrives(chunk) => self.arrives(chunk),
            Event::Acks { applied, through } => {
                for (seq, bytes) in &applied {
                    self.link.acked(self.now, *seq, *bytes);
                }
                let mut ranges: Vec<_> =
                    applied.iter().map(|(seq, _)| (*seq, *seq)).filter(|(seq, _)| *seq > through).collect();
                ranges.sort_unstable();
                self.source.acked(now, through, &ranges);
            }
            Event::Stopped => {
                if self.stopped_at.is_none() {
                    self.stopped_at = Some(self.now);
                    self.source.guest_stopped(now);
                }
            }
            Event::Wake => {}
        }
        self.source.link(now, self.link.stats(self.now));
    }

    fn tick(&mut self) {
        let now = Time(self.now);
        match self.stopped_at {
            None => self.guest.write(TICK_NS),
            Some(at) => {
                if self.setup.first_stop_fails_after_ns.is_some_and(|limit| self.now - at >= limit)
                    && !self.tail_fed
                {
                    self.setup.first_stop_fails_after_ns = None;
                    self.stopped_at = None;
                    self.source.guest_resumed(now);
                }
            }
        }
        self.feed();
        self.at(self.now + TICK_NS, Event::Tick);
    }

    /// What QEMU puts out in one tick.
    fn feed(&mut self) {
        let now = Time(self.now);
        let mut left = self.setup.qemu_bytes_per_s * TICK_NS / 1_000_000_000;
        while left > 0 && !self.tail_fed {
            if self.source.intake_resumes_at().is_some_and(|at| at > now)
                || self.source.intake_room() < PAGE_BYTES
            {
                return;
            }
            match self.guest.next_dirty() {
                Some((page, content)) => {
                    if content.iter().all(|byte| *byte == 0) {
                        self.source.zero(now, page, 1);
                    } else {
                        self.source.page(now, page, content);
                    }
                    self.report.pages_fed += 1;
                    left = left.saturating_sub(PAGE_BYTES as u64);
                }
                None => {
                    let dirty = self.guest.sync();
                    let info = SyncInfo { count: Some(self.guest.syncs), dirty_pages: Some(dirty) };
                    self.source.sync(now, info);
                    if dirty == 0 && self.stopped_at.is_some() {
                        if self.setup.first_stop_fails_after_ns.is_some() {
                            return;
                        }
                        self.source.tail(TAIL);
                        self.source.tail_done();
                        self.tail_fed = true;
                    } else if dirty == 0 {
                        self.source.idle(now);
                    }
                    // Finding the dirty pages takes the rest of the tick: the guest writes on.
                    return;
                }
            }
        }
    }

    fn arrives(&mut self, chunk: Chunk) {
        if chunk.seq < self.last_arrived {
            self.report.reordered += 1;
        }
        self.last_arrived = self.last_arrived.max(chunk.seq);
        self.receiver
            .chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut self.ram)
            .expect("an honest chunk");
        let mut applied = Vec::new();
        self.receiver.take_applied(&mut applied);
        let back = self.now + self.setup.link.rtt_ns / 2;
        let through = self.receiver.applied_through();
        self.at(back, Event::Acks { applied, through });
    }

    /// Does what the engine asks for; false when it has given up.
    fn act(&mut self) -> bool {
        loop {
            match self.source.poll(Time(self.now)) {
                Some(Action::Encode(job)) => {
                    let worker =
                        (0..self.worker_free.len()).min_by_key(|i| self.worker_free[*i]).expect("a worker");
                    let takes =
                        (job.raw_bytes() as u64 + 4096) * 1_000_000_000 / self.setup.encode_bytes_per_s;
                    let done = self.worker_free[worker].max(self.now) + takes;
                    self.worker_free[worker] = done;
                    let encoded = job.run(&mut self.scratch);
                    self.at(done, Event::Encoded(encoded));
                }
                Some(Action::Send(chunk)) => {
                    self.report.payload_bytes += chunk.payload.len() as u64;
                    for (when, chunk) in self.link.send(self.now, chunk, &mut self.rng) {
                        self.at(when, Event::Arrives(chunk));
                    }
                }
                Some(Action::Switch) => {
                    self.report.switches += 1;
                    self.report.predicted_ms = self.source.progress().predicted_stop_ms;
                    self.report.switched_in_pass = self.source.progress().pass;
                    self.at(self.now + self.setup.stop_ns, Event::Stopped);
                }
                Some(Action::Throttle(share)) => self.guest.throttle(share),
                Some(Action::Abort(why)) => {
                    self.report.end = End::Aborted(why);
                    return false;
                }
                Some(Action::WakeAt(when)) => self.at(when.0.max(self.now + 1), Event::Wake),
                None => {
                    // The transport's books, as the next event will find them.
                    let _: LinkStats = self.link.stats(self.now);
                    return true;
                }
            }
        }
    }
}
