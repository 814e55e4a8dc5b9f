//! Events in the order of virtual time, from the request until the guest runs at the destination.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::time::Duration;

use hikyaku_engine::precopy::Terms;
use hikyaku_engine::{
    Action, Chunk, ChunkSeq, EncodeScratch, Encoded, LayoutError, Policy, Progress, ReceiveError, Receiver,
    Source, Time,
};

use super::guest::{Guest, GuestError};
use super::host::{Fed, Host, HostKind, PassTrace};
use super::link::{Link, ns};
use super::ram::Ram;
use super::rng::Rng;
use super::{End, Report, Setup};

/// How often the guest writes, the host puts out, and what waits for time is looked at.
const TICK_NS: u64 = 1_000_000;
const PREFIX: &[u8] = b"header, configuration, START of ram";
const TAIL: &[u8] = b"END of ram, device state, EOF. ";

/// The simulation itself failed: a defect of it or of the engine.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("the receiver refused a chunk: {0}")]
    Received(#[from] ReceiveError<Infallible>),
    #[error("the source sent more than the peer has room for")]
    Credit,
}

enum Event {
    Tick,
    Encoded(Encoded),
    Arrives(Chunk),
    Acks { applied: Vec<(ChunkSeq, u64)>, through: ChunkSeq },
    Stopped,
    Tail,
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
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What was seen when the policy wanted the guest stopped.
struct Switch {
    at: u64,
    /// Passes that were over, and how far the next one had come.
    passes: usize,
    under_way: PassTrace,
    predicted_ms: Option<u64>,
}

struct Sim {
    setup: Setup,
    now: u64,
    events: BinaryHeap<Reverse<At>>,
    order: u64,
    rng: Rng,
    guest: Guest,
    host: Host,
    source: Source,
    scratch: EncodeScratch,
    worker_free: Vec<u64>,
    link: Link,
    receiver: Receiver,
    ram: Ram,
    arrivals: Vec<(u64, Chunk)>,
    switch: Option<Switch>,
    switches: u32,
    /// Until the queue is gone, at the latest.
    ebbs_until: Option<u64>,
    stopped_at: Option<u64>,
    tail_due: bool,
    tail_fed: bool,
    /// When it is woken for the engine, and for the link.
    wakes_at: Option<u64>,
    leaves_at: Option<u64>,
    last_arrived: ChunkSeq,
    reordered: u64,
    source_peak_bytes: usize,
    receiver_peak_bytes: usize,
}

/// Runs a migration from beginning to end.
pub fn run(setup: &Setup, policy: Box<dyn Policy>) -> Result<Report, SimError> {
    let guest = Guest::new(&setup.guest)?;
    let kind = HostKind {
        skips: policy.skips_redirtied() && !setup.over_qemu,
        tells_passes: !policy.paces_passes() && !setup.over_qemu,
        knows_zero: policy.encodings().zero,
    };
    let mut source = Source::new(setup.source.clone(), policy);
    source.set_terms(Terms {
        pause: setup.stop.pause,
        state: setup.stop.state,
        resume: setup.stop.resume,
        ..Terms::default()
    });
    let mut sim = Sim {
        now: 0,
        events: BinaryHeap::new(),
        order: 0,
        rng: Rng::new(setup.seed, 0),
        host: Host::new(setup.host.clone(), &guest, kind),
        source,
        scratch: EncodeScratch::default(),
        worker_free: vec![0; setup.source.workers.max(1)],
        link: Link::new(setup.link.clone()),
        receiver: Receiver::new(setup.receiver.clone()),
        ram: Ram::new(guest.len()),
        guest,
        arrivals: Vec::new(),
        switch: None,
        switches: 0,
        ebbs_until: None,
        stopped_at: None,
        tail_due: false,
        tail_fed: false,
        wakes_at: None,
        leaves_at: None,
        last_arrived: ChunkSeq::NONE,
        reordered: 0,
        source_peak_bytes: 0,
        receiver_peak_bytes: 0,
        setup: setup.clone(),
    };
    let end = sim.run()?;
    Ok(sim.report(end))
}

impl Sim {
    fn run(&mut self) -> Result<End, SimError> {
        self.source.opaque(PREFIX);
        self.source.layout(Time(0), self.guest.len())?;
        let stats = self.link.stats(0);
        self.source.link(Time(0), stats);
        self.at(0, Event::Tick);
        while let Some(Reverse(At(when, _, event))) = self.events.pop() {
            if when > ns(self.setup.limit) {
                break;
            }
            self.now = when;
            self.handle(event)?;
            self.feed();
            let stats = self.link.stats(self.now);
            self.source.link(Time(self.now), stats);
            if let Some(end) = self.act()? {
                return Ok(end);
            }
            self.leave();
            let source_bytes = self.source.memory_bytes() - self.source.metadata_bytes();
            self.source_peak_bytes = self.source_peak_bytes.max(source_bytes);
            let receiver_bytes = self.receiver.memory_bytes() - self.receiver.metadata_bytes();
            self.receiver_peak_bytes = self.receiver_peak_bytes.max(receiver_bytes);
            // GO names the last number; everything up to it is applied.
            if self.source.last_seq().is_some_and(|last| self.receiver.applied_through() >= last) {
                return Ok(End::Moved);
            }
        }
        Ok(End::Unfinished)
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse(At(when, self.order, event)));
    }

    fn handle(&mut self, event: Event) -> Result<(), SimError> {
        let now = Time(self.now);
        match event {
            Event::Tick => self.tick(),
            Event::Encoded(encoded) => self.source.encoded(now, encoded),
            Event::Arrives(chunk) => self.arrives(chunk)?,
            Event::Acks { applied, through } => {
                applied.iter().for_each(|(seq, _)| self.link.acked(self.now, *seq));
                let mut ranges: Vec<_> =
                    applied.iter().map(|(seq, _)| (*seq, *seq)).filter(|(seq, _)| *seq > through).collect();
                ranges.sort_unstable();
                self.source.acked(now, through, &ranges);
            }
            Event::Stopped if self.stopped_at.is_none() => {
                self.stopped_at = Some(self.now);
                self.source.guest_stopped(now);
                self.host.guest_stopped();
                self.host.busy(self.now, ns(self.setup.stop.pause));
                self.link.ebb(false);
            }
            Event::Tail => {
                let tail = TAIL.iter().copied().cycle().take(self.setup.stop.tail_bytes);
                self.source.tail(&tail.collect::<Vec<_>>());
                self.source.tail_done();
                self.tail_fed = true;
            }
            Event::Stopped | Event::Wake => {}
        }
        Ok(())
    }

    fn tick(&mut self) {
        match self.stopped_at {
            None => self.guest.run(Duration::from_nanos(TICK_NS)),
            Some(at) => {
                let fails = self.setup.first_stop_fails_after;
                if fails.is_some_and(|limit| self.now - at >= ns(limit)) && !self.tail_due {
                    self.setup.first_stop_fails_after = None;
                    self.stopped_at = None;
                    self.source.guest_resumed(Time(self.now));
                }
            }
        }
        if let Some(until) = self.ebbs_until
            && (self.now >= until
                || self.link.queue_ns(self.now) <= ns(self.setup.link.rtt / 20).max(EBBED_NS))
        {
            self.ebbs_until = None;
            self.at(self.now + ns(self.setup.stop.wish), Event::Stopped);
        }
        self.at(self.now + TICK_NS, Event::Tick);
    }

    fn feed(&mut self) {
        if self.tail_due || self.host.feed(self.now, &mut self.guest, &mut self.source) != Fed::Clean {
            return;
        }
        match self.stopped_at {
            None => self.source.idle(Time(self.now)),
            Some(_) if self.setup.first_stop_fails_after.is_some() => {}
            Some(_) => {
                self.tail_due = true;
                self.at(self.now + ns(self.setup.stop.state / 2), Event::Tail);
            }
        }
    }

    fn arrives(&mut self, chunk: Chunk) -> Result<(), SimError> {
        self.reordered += u64::from(chunk.seq < self.last_arrived);
        self.last_arrived = self.last_arrived.max(chunk.seq);
        self.receiver.chunk(chunk.seq, chunk.after, chunk.payload.to_vec(), &mut self.ram)?;
        let mut applied = Vec::new();
        self.receiver.take_applied(&mut applied);
        let through = self.receiver.applied_through();
        self.at(self.now + ns(self.setup.link.rtt / 2), Event::Acks { applied, through });
        Ok(())
    }

    fn leave(&mut self) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let next_at = self.link.leave(self.now, &mut self.rng, &mut arrivals);
        if let Some(next_at) = next_at
            && self.leaves_at.replace(next_at) != Some(next_at)
        {
            self.at(next_at, Event::Wake);
        }
        for (when, chunk) in arrivals.drain(..) {
            self.at(when, Event::Arrives(chunk));
        }
        self.arrivals = arrivals;
    }

    /// Does what the engine asks for; how it ended, if it has given up.
    fn act(&mut self) -> Result<Option<End>, SimError> {
        while let Some(action) = self.source.poll(Time(self.now)) {
            match action {
                Action::Encode(job) => self.encode(job),
                Action::Send(chunk) => {
                    if !self.link.send(chunk) {
                        return Err(SimError::Credit);
                    }
                }
                Action::Switch => {
                    self.switches += 1;
                    self.switch = Some(Switch {
                        at: self.now,
                        passes: self.host.passes.len(),
                        under_way: self.host.under_way(self.now),
                        predicted_ms: self.source.progress().predicted_stop_ms,
                    });
                    self.link.ebb(true);
                    let queue = Duration::from_nanos(self.link.queue_ns(self.now));
                    self.ebbs_until = Some(self.now + ns(self.setup.link.rtt * 3 + queue * 2));
                }
                Action::Throttle(share) => self.guest.throttle(share),
                Action::Abort(why) => return Ok(Some(End::Aborted(why))),
                Action::WakeAt(when) => {
                    let when = when.0.max(self.now + 1);
                    if self.wakes_at.replace(when) != Some(when) {
                        self.at(when, Event::Wake);
                    }
                }
            }
        }
        Ok(None)
    }

    fn encode(&mut self, job: hikyaku_engine::EncodeJob) {
        let (method, raw_bytes) = (job.method(), job.raw_bytes());
        let encoded = job.run(&mut self.scratch);
        let takes = self.setup.encode.takes(method, raw_bytes, encoded.body_bytes());
        let now = self.now;
        // There is always a worker.
        let done = match self.worker_free.iter_mut().min() {
            Some(free) => {
                *free = now.max(*free) + ns(takes);
                *free
            }
            None => now,
        };
        self.at(done, Event::Encoded(encoded.took(takes)));
    }

    fn report(self, end: End) -> Report {
        let stop = &self.setup.stop;
        let moved = matches!(end, End::Moved);
        let runs_ns = self.now + ns(stop.state / 2 + stop.resume);
        let passes = trace(&self.host, self.switch.as_ref(), self.now);
        let progress: Progress = self.source.progress();
        Report {
            memory_equal: self.ram.equals(&self.guest)
                && self.ram.opaque == PREFIX
                && self.ram.tail.len() == stop.tail_bytes,
            end,
            // A round trip to ask, and half of one for the word that it runs.
            total: Duration::from_nanos(runs_ns) + self.setup.link.rtt * 3 / 2,
            gap: self.stopped_at.filter(|_| moved).map(|at| Duration::from_nanos(runs_ns - at)),
            predicted_gap: self
                .switch
                .as_ref()
                .and_then(|switch| switch.predicted_ms)
                .map(Duration::from_millis),
            switches: self.switches,
            sent_bytes: self.link.sent_bytes,
            passes,
            pages_fed: self.host.pages_fed,
            writes: self.guest.writes,
            progress,
            source_peak_bytes: self.source_peak_bytes,
            receiver_peak_bytes: self.receiver_peak_bytes,
            reordered: self.reordered,
            ram: self.ram,
        }
    }
}

/// A queue this short is none.
const EBBED_NS: u64 = 5_000_000;

/// Passes with the guest running, and one for everything that was put out after the policy wanted it stopped.
fn trace(host: &Host, switch: Option<&Switch>, now: u64) -> Vec<PassTrace> {
    let Some(switch) = switch else { return host.passes.clone() };
    let live = host.passes.get(..switch.passes).unwrap_or_default();
    let rest = host.passes.get(switch.passes..).unwrap_or_default();
    let under_way = host.under_way(now);
    let counted = |of: fn(&PassTrace) -> u64| rest.iter().map(of).sum::<u64>() + of(&under_way);
    let last = PassTrace {
        sent: counted(|pass| pass.sent),
        skipped: counted(|pass| pass.skipped),
        dirty: 0,
        began_ns: switch.at - switch.under_way.duration_ns,
        duration_ns: now - (switch.at - switch.under_way.duration_ns),
    };
    live.iter().copied().chain([last]).collect()
}
