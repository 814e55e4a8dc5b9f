//! Which method compresses the next chunk.
//!
//! The denser one pays while the wire is what everything waits for, the faster one while the workers are. The rate at which guest memory goes
//! is the lesser of what the wire carries, times what a byte on it stands for, and what the workers get done; the method with the best rate
//! is the one to use, where of two that are nearly as good the one that leaves more of the workers counts more. That is only as good as the
//! figures it is made of, and two methods in turn are often better than any one; so the queue has the last word:
//!
//! | encoded and waiting for the wire | workers | then |
//! |---|---|---|
//! | less than [`ChooserConfig::dry`], and not rising | all at work | a step to what is faster; two, if next to nothing waits |
//! | more than [`ChooserConfig::plenty`], and not falling | | a step to what is denser, if it is worth it ([`ChooserConfig::min_gain`], [`ChooserConfig::min_return`]) |
//! | less than [`ChooserConfig::dry`] | some idle | nothing was there to send: where the queue had asked for what is faster, a step back |
//! | else | | as before; or, when the figures have come to say something else, a step to that |
//!
//! It is asked every few chunks, so that the effect of the last change can be seen. The steps lie on a *ladder* ([`ladder`]).
//!
//! How dense and how fast methods are depends on the content, much more than they differ from each other, and only one of them sees a chunk. So what is
//! learned of one is taken to be true of the content, and only a small part of it of the method. Now and then a chunk
//! goes by a neighbour of the method in use, so that it is not forgotten. A worker that shares its core with the guest takes longer for a chunk by
//! any method; so how methods differ is learned from what their chunks took of the processor, where that is known.
//!
//! Knows no clock: how long a chunk took is an argument.

mod ladder;

use std::time::Duration;

use crate::codec::Method;
use crate::codec::choice::ladder::{Ladder, STEPS};

/// The knobs of a [`Chooser`].
#[derive(Debug, Clone)]
pub struct ChooserConfig {
    /// Of what waits for the wire, as time at the link's goodput: below this the wire is about to run dry. Default 2 ms: longer than a
    /// chunk is encoded.
    pub dry: Duration,
    /// Above this the wire has plenty. Default 8 ms: less than half of what a source lets wait ([`crate::SourceConfig::window`]).
    pub plenty: Duration,
    /// A denser method has to save so much of the bytes, or it is not worth the workers' time, idle or not. Default 0.005.
    pub min_gain: f64,
    /// And so much of the wire's time for the workers' time that it takes. Default an eighth: idle workers are not for nothing, since the guest and
    /// its QEMU want the same cores.
    pub min_return: f64,
    /// A method has to be so much better by the figures to replace another. Default 0.05: figures waver.
    pub min_advantage: f64,
    /// How much of a method's rate counts for nothing where it leaves nothing of two workers; of more, as much less. Default 0.45: the machine has
    /// other things to do than to encode, the path and QEMU's thread among them, and they take about as much of many cores as of two.
    pub busy_discount: f64,
    /// What a wire is taken to carry at least while it opens: what is encoded ahead of it is not made denser at the cost of how much that is.
    /// Default 100 MB/s.
    pub opening_bytes_per_s: u64,
    /// Chunks between two looks at the queue, per worker. Default 2: those under way, and as many to see what they do.
    pub settle_chunks_per_worker: usize,
    /// One chunk in so many goes by a neighbour of the method in use. Default 64.
    pub probe_interval: u32,
    /// Weight of a full chunk in what is known of the content. Default 1/16: the last few megabytes count.
    pub content_weight: f64,
    /// The same, if it did not go by the method in use. Default 1/8: where that is to store, such chunks are all there is to
    /// see.
    pub probe_weight: f64,
    /// The same in what is known of a method. Default 1/256: contents differ more than methods.
    pub method_weight: f64,
    /// Bytes of a chunk with the full weight. Default 64 KiB: half of one as large as they come.
    pub full_chunk_bytes: usize,
    /// Of [`Method::ALL`] except to store, before anything is known: bytes left of one, and 10^6 bytes per second of one worker. Default: what one
    /// core of a small server does with text-like pages (`cargo lab bench pipeline`).
    pub first_guess: [(f64, f64); METHODS - 1],
}

const FIRST_GUESS: [(f64, f64); METHODS - 1] =
    [(0.52, 400.0), (0.471, 490.0), (0.393, 335.0), (0.361, 270.0), (0.359, 220.0), (0.344, 89.0)];

impl Default for ChooserConfig {
    fn default() -> Self {
        ChooserConfig {
            dry: Duration::from_millis(2),
            plenty: Duration::from_millis(8),
            min_gain: 0.005,
            min_return: 0.12,
            min_advantage: 0.05,
            busy_discount: 0.45,
            opening_bytes_per_s: 100_000_000,
            settle_chunks_per_worker: 2,
            probe_interval: 64,
            content_weight: 1.0 / 16.0,
            probe_weight: 1.0 / 8.0,
            method_weight: 1.0 / 256.0,
            full_chunk_bytes: 64 << 10,
            first_guess: FIRST_GUESS,
        }
    }
}

/// Where the chunk will go.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// Payload the path carries per second. 0 = not known yet.
    pub goodput_bytes_per_s: u64,
    /// Encoded, and not taken by a lane yet.
    pub unsent_bytes: u64,
    /// Threads that encode.
    pub workers: usize,
    /// Of them, those with nothing to do.
    pub idle_workers: usize,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Chooser {
    config: ChooserConfig,
    figures: [Figure; METHODS],
    /// What the content makes of every method's size and time.
    size_factor: f64,
    time_factor: f64,
    /// The same of its time on the processor.
    spent_factor: f64,
    /// What the figures say: an index of [`Method::ALL`].
    best: usize,
    /// What the queue makes of it, in steps of the ladder.
    offset: isize,
    /// The figures have come to say something else, and the queue has not contradicted yet.
    drawn: bool,
    /// Chunks before the queue is asked again.
    settle: usize,
    /// The queue when it was last asked.
    waited: Duration,
    chosen: u32,
}

/// What is known of a method, for content like that of the defaults.
#[derive(Debug, Clone, Copy)]
struct Figure {
    /// Bytes left of one.
    size: f64,
    /// Of one worker, for one byte.
    ns: f64,
}

/// What a chunk took of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// By the clock.
    pub ns: u64,
    /// Of the processor; the same, where that is not known.
    pub spent_ns: u64,
}

const METHODS: usize = Method::ALL.len();
const STORED: usize = 0;
const LZ4: usize = 1;
/// To store is to copy. It need not be known better than that.
const COPY_MB_PER_S: f64 = 5000.0;

impl Default for Chooser {
    fn default() -> Self {
        Chooser::new(ChooserConfig::default())
    }
}

impl Chooser {
    pub fn new(config: ChooserConfig) -> Self {
        let mut figures = [Figure { size: 1.0, ns: 1000.0 / COPY_MB_PER_S }; METHODS];
        for (figure, (size, mb_per_s)) in figures.iter_mut().skip(LZ4).zip(config.first_guess) {
            *figure = Figure { size, ns: 1000.0 / mb_per_s };
        }
        Chooser {
            config,
            figures,
            size_factor: 1.0,
            time_factor: 1.0,
            spent_factor: 1.0,
            best: LZ4,
            offset: 0,
            drawn: false,
            settle: 0,
            waited: Duration::ZERO,
            chosen: 0,
        }
    }

    /// A chunk was compressed by `method`, also if it did not pay and was stored in the end: of `body_bytes` it made `packed_bytes`. What stands plain
    /// does not count.
    pub fn record(&mut self, method: Method, body_bytes: usize, packed_bytes: usize, took: Took) {
        let at = index(method);
        let Some(figure) = self.figures.get(at).copied() else { return };
        if at == STORED || body_bytes == 0 {
            return;
        }
        let bytes = body_bytes as f64;
        let part = (bytes / self.config.full_chunk_bytes as f64).min(1.0);
        let content_weight =
            if self.is_in_use(at) { self.config.content_weight } else { self.config.probe_weight } * part;
        // A worker that was interrupted, or a chunk of a thousand equal pages, does not turn everything round.
        let error = |seen: f64, expected: f64| (seen / expected).clamp(0.25, 4.0) - 1.0;
        let size = error(packed_bytes as f64 / bytes, (figure.size * self.size_factor).min(1.0));
        let time = error(took.ns as f64 / bytes, figure.ns * self.time_factor);
        let spent = error(took.spent_ns as f64 / bytes, figure.ns * self.spent_factor);
        self.size_factor = (self.size_factor * (1.0 + content_weight * size)).clamp(0.01, 3.0);
        self.time_factor = (self.time_factor * (1.0 + content_weight * time)).clamp(0.01, 100.0);
        self.spent_factor = (self.spent_factor * (1.0 + content_weight * spent)).clamp(0.01, 100.0);
        if let Some(figure) = self.figures.get_mut(at) {
            figure.size *= 1.0 + self.config.method_weight * part * size;
            figure.ns *= 1.0 + self.config.method_weight * part * spent;
        }
    }

    /// The method for the next chunk.
    pub fn choose(&mut self, wire: &Wire) -> Method {
        if wire.goodput_bytes_per_s == 0 {
            return Method::Lz4;
        }
        self.ask_figures(wire);
        let waits = wire.unsent_bytes as f64 / wire.goodput_bytes_per_s as f64;
        let waits = Duration::try_from_secs_f64(waits).unwrap_or(Duration::MAX);
        self.ask_queue(waits, wire);
        self.chosen = self.chosen.wrapping_add(1);
        let at = self.in_turn(self.chosen as usize % STEPS);
        if self.chosen.is_multiple_of(self.config.probe_interval) && waits >= self.config.dry {
            let denser =
                self.chosen.checked_div(self.config.probe_interval).is_some_and(|nth| nth.is_multiple_of(2));
            return method(if denser { (at + 1).min(METHODS - 1) } else { at.saturating_sub(1).max(LZ4) });
        }
        method(at)
    }

    fn ask_figures(&mut self, wire: &Wire) {
        let worth: [f64; METHODS] = std::array::from_fn(|at| self.worth(at, wire));
        let of = |at: usize| worth.get(at).copied().unwrap_or_default();
        let mut best = (0..METHODS).fold(self.best, |best, at| if of(at) > of(best) { at } else { best });
        if self.chosen > 0 && of(best) <= of(self.best) * (1.0 + self.config.min_advantage) {
            best = self.best;
        }
        while let Some(faster) = (0..best).rev().find(|faster| self.ns(*faster) < self.ns(best))
            && !self.gains(faster, best, wire)
        {
            best = faster;
        }
        if self.chosen == 0 {
            self.best = best;
            self.settle_down(wire);
        } else if best != self.best {
            let ladder = self.ladder();
            let at = ladder.step_of(self.best).saturating_add_signed(self.offset);
            self.offset = at.cast_signed() - ladder.step_of(best).cast_signed();
            self.best = best;
            self.drawn = true;
        }
    }

    fn ask_queue(&mut self, waits: Duration, wire: &Wire) {
        if self.settle > 0 {
            self.settle -= 1;
            return;
        }
        let ladder = self.ladder();
        let (here, top) = (ladder.step_of(self.best), ladder.top());
        let at = here.saturating_add_signed(self.offset).min(top);
        let (falls, rises) = (waits < self.waited, waits > self.waited);
        let (dry, plenty) = (waits < self.config.dry, waits > self.config.plenty);
        let to = if plenty && !falls {
            let (rung, next) = (ladder.rung(at / STEPS), ladder.rung(at / STEPS + 1));
            if self.gains(rung, next, wire) { at + 1 } else { at }
        } else if dry && wire.idle_workers == 0 && !rises {
            at.saturating_sub(if waits < self.config.dry / 4 { 2 } else { 1 })
        } else if dry && wire.idle_workers > 0 {
            at.max(here.min(at + 1))
        } else if !dry && !plenty && self.drawn {
            at.saturating_add_signed((here.cast_signed() - at.cast_signed()).clamp(-1, 1))
        } else {
            at
        };
        self.drawn &= !dry && !plenty && to != here;
        self.offset = to.min(top).cast_signed() - here.cast_signed();
        self.waited = waits;
        self.settle_down(wire);
    }

    fn settle_down(&mut self, wire: &Wire) {
        self.settle = self.config.settle_chunks_per_worker * wire.workers.max(1);
    }

    /// The method of the `nth` of as many chunks as there are steps from rung to rung.
    fn in_turn(&self, nth: usize) -> usize {
        if self.offset == 0 {
            return self.best;
        }
        let ladder = self.ladder();
        let at = ladder.step_of(self.best).saturating_add_signed(self.offset);
        ladder.rung(at / STEPS + usize::from(nth < at % STEPS))
    }

    fn is_in_use(&self, at: usize) -> bool {
        self.in_turn(0) == at || self.in_turn(STEPS - 1) == at
    }

    fn ladder(&self) -> Ladder {
        Ladder::new(std::array::from_fn(|at| Figure { size: self.size(at), ns: self.ns(at) }))
    }

    /// Guest memory per second, less a part of it where little is left of the workers.
    fn worth(&self, at: usize, wire: &Wire) -> f64 {
        let workers = wire.workers.max(1) as f64;
        let encoded = workers * 1e9 / self.ns(at);
        let rate = encoded.min(wire.goodput_bytes_per_s as f64 / self.size(at));
        let discount = self.config.busy_discount * (2.0 / workers).min(1.0);
        rate * (1.0 - discount * (rate / encoded).powi(2))
    }

    /// Whether the denser of two methods is worth its time.
    fn gains(&self, at: usize, denser: usize, wire: &Wire) -> bool {
        let wire_ns = (self.size(at) - self.size(denser)) * 1e9 / wire.goodput_bytes_per_s.max(1) as f64;
        let workers_ns = (self.ns(denser) - self.ns(at)) / wire.workers.max(1) as f64;
        self.size(denser) < self.size(at) * (1.0 - self.config.min_gain)
            && wire_ns >= workers_ns * self.config.min_return
    }

    fn size(&self, at: usize) -> f64 {
        match self.figures.get(at) {
            Some(figure) if at != STORED => (figure.size * self.size_factor).clamp(1e-4, 1.0),
            _ => 1.0,
        }
    }

    fn ns(&self, at: usize) -> f64 {
        let factor = if at == STORED { 1.0 } else { self.time_factor };
        self.figures.get(at).map_or(1.0, |figure| figure.ns * factor).max(1e-3)
    }
}

fn index(wanted: Method) -> usize {
    Method::ALL.iter().position(|method| *method == wanted).unwrap_or(METHODS - 1)
}

fn method(at: usize) -> Method {
    Method::ALL.get(at).copied().unwrap_or(Method::Lz4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK_BYTES: usize = 128 << 10;
    const MBIT: u64 = 125_000;

    /// What a machine does: size and MB/s of one worker, for each method.
    pub(super) type Machine = [(f64, f64); METHODS];
    /// Text-like pages, as in the defaults.
    pub(super) const TEXT: Machine = {
        let [lz4, fastest, fast, first, second, third] = FIRST_GUESS;
        [(1.0, 5000.0), lz4, fastest, fast, first, second, third]
    };
    /// Memory of a real machine.
    pub(super) const REAL: Machine = [
        (1.0, 5000.0),
        (0.434, 868.0),
        (0.39, 700.0),
        (0.335, 590.0),
        (0.320, 530.0),
        (0.3165, 442.0),
        (0.303, 147.0),
    ];

    /// A queue of between dry and plenty.
    fn calm(mbit_per_s: u64, workers: usize) -> Wire {
        let goodput_bytes_per_s = mbit_per_s * MBIT;
        Wire { goodput_bytes_per_s, unsent_bytes: goodput_bytes_per_s / 200, workers, idle_workers: 0 }
    }

    fn record(chooser: &mut Chooser, machine: &Machine, method: Method, noise: f64) {
        let (size, mb_per_s) = machine[index(method)];
        let packed = (CHUNK_BYTES as f64 * (size * noise).min(1.0)) as usize;
        let ns = (CHUNK_BYTES as f64 * 1000.0 / mb_per_s * noise) as u64;
        chooser.record(method, CHUNK_BYTES, packed, Took { ns, spent_ns: ns });
    }

    #[test]
    fn a_slow_wire_gets_the_densest_and_a_fast_one_what_the_workers_manage() {
        let first = |mbit_per_s, workers| Chooser::default().choose(&calm(mbit_per_s, workers));
        assert!(matches!(first(100, 2), Method::Zstd(2..=3)));
        assert_eq!(first(1000, 2), Method::Zstd(-1));
        assert_eq!(first(10_000, 2), Method::Stored);
        assert_eq!(first(10_000, 8), Method::Zstd(-2));
        // Eight in ten of so many leave enough for everything else.
        assert_eq!(first(10_000, 16), Method::Zstd(1));
        assert!(matches!(first(10_000, 64), Method::Zstd(2..=3)));
    }

    #[test]
    fn as_long_as_the_wire_is_not_known_lz4_is_used() {
        assert_eq!(Chooser::default().choose(&calm(0, 2)), Method::Lz4);
    }

    #[test]
    fn what_does_not_compress_is_not_worth_the_workers_time() {
        let mut chooser = Chooser::default();
        let wire = calm(1000, 2);
        for _ in 0..100 {
            let method = chooser.choose(&wire);
            record(&mut chooser, &[(1.0, 400.0); METHODS], method, 1.0);
        }
        assert_eq!(chooser.choose(&wire), Method::Stored);
        // Until it compresses again.
        for _ in 0..600 {
            let method = chooser.choose(&wire);
            record(&mut chooser, &TEXT, method, 1.0);
        }
        assert!(matches!(chooser.choose(&wire), Method::Zstd(_)));
    }

    #[test]
    fn a_starving_wire_gets_a_faster_method_within_a_few_chunks() {
        let mut chooser = Chooser::default();
        assert!(matches!(chooser.choose(&calm(100, 2)), Method::Zstd(2..=3)));
        let dry = Wire { unsent_bytes: 0, ..calm(100, 2) };
        let chosen: Vec<_> = (0..64).map(|_| chooser.choose(&dry)).collect();
        assert!(index(chosen[4]) < index(chosen[0]), "{chosen:?}");
        assert_eq!(chosen.last(), Some(&Method::Stored), "{chosen:?}");
    }

    #[test]
    fn a_wire_that_is_dry_because_nothing_is_there_changes_nothing() {
        let mut chooser = Chooser::default();
        let idle = Wire { unsent_bytes: 0, idle_workers: 1, ..calm(1000, 2) };
        assert!((0..200).all(|_| chooser.choose(&idle) == Method::Zstd(-1)));
    }

    #[test]
    fn it_does_not_flap() {
        let mut chooser = Chooser::default();
        let mut x = 1u32;
        let mut changes = 0;
        let mut last = None;
        for at in 1..=4000u32 {
            let method = chooser.choose(&calm(1000, 2));
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Content from a third to three times as dense and as fast.
            let noise = 3f64.powf(f64::from(x >> 8) / f64::from(1 << 23) - 1.0);
            record(&mut chooser, &TEXT, method, noise);
            if at % 64 != 0 {
                changes += usize::from(last.is_some_and(|last| last != method));
                last = Some(method);
            }
        }
        assert!(changes <= 20, "{changes} changes");
    }

    #[test]
    fn neighbours_are_tried_now_and_then() {
        let mut chooser = Chooser::default();
        let chosen: Vec<_> = (0..1280).map(|_| chooser.choose(&calm(1000, 2))).collect();
        let of = |wanted| chosen.iter().filter(|method| **method == wanted).count();
        assert_eq!((of(Method::Zstd(-2)), of(Method::Zstd(-1)), of(Method::Zstd(1))), (10, 1260, 10));
    }

    #[test]
    fn beyond_the_densest_there_is_nothing_to_try() {
        let mut chooser = Chooser::default();
        let plenty = Wire { unsent_bytes: 1 << 20, idle_workers: 2, ..calm(10, 4) };
        let chosen: Vec<_> = (0..4000).map(|_| chooser.choose(&plenty)).skip(2000).collect();
        assert!(chosen.iter().all(|method| matches!(method, Method::Zstd(2..=3))), "{chosen:?}");
    }

    /// Guest memory per second that gets through: `workers` encode what `chooser` says, for a window of 20 ms, and the wire takes it.
    fn carried_mb_per_s(
        machine: &Machine,
        mbit_per_s: u64,
        workers: usize,
        mut choose: impl FnMut(&Wire) -> Method,
    ) -> f64 {
        let goodput = (mbit_per_s * MBIT) as f64;
        let window = (goodput * 0.02).max(512e3);
        let (mut now, mut raw) = (0.0f64, 0.0f64);
        let (mut unsent, mut drained_at) = (0.0f64, 0.0f64);
        // Of each worker, when it is done with how many bytes.
        let mut busy: Vec<(f64, f64)> = Vec::new();
        while now < 1.0 {
            while busy.len() < workers && unsent + busy.iter().map(|(_, bytes)| bytes).sum::<f64>() < window {
                let method = choose(&Wire {
                    goodput_bytes_per_s: goodput as u64,
                    unsent_bytes: unsent as u64,
                    workers,
                    idle_workers: workers - busy.len() - 1,
                });
                let (size, mb_per_s) = machine[index(method)];
                raw += CHUNK_BYTES as f64;
                busy.push((now + CHUNK_BYTES as f64 / mb_per_s / 1e6, CHUNK_BYTES as f64 * size));
            }
            // To the next worker that is done; or, if all wait for the window, a little.
            busy.sort_by(|a, b| a.0.total_cmp(&b.0));
            let full = busy.len() < workers;
            now = match busy.first() {
                Some((done, _)) if !full || *done < now + 1e-4 => *done,
                _ => now + 1e-4,
            };
            unsent = (unsent - (now - drained_at) * goodput).max(0.0);
            drained_at = now;
            busy.retain(|(done, bytes)| {
                if *done <= now {
                    unsent += bytes;
                }
                *done > now
            });
        }
        (raw - unsent) / 1e6
    }

    #[test]
    fn it_carries_as_much_as_the_best_of_all_methods_and_more_where_two_in_turn_are_better() {
        for (name, machine) in [("text", TEXT), ("real", REAL)] {
            for (mbit_per_s, workers, least) in [
                (100, 2, 0.96),
                // There the densest takes half of the workers, for a twentieth of the bytes.
                (300, 2, 0.95),
                (1000, 1, 0.96),
                (1000, 2, 0.96),
                (3000, 2, 0.96),
                (10_000, 2, 1.05),
                (10_000, 16, 0.96),
            ] {
                let alone =
                    Method::ALL.map(|method| carried_mb_per_s(&machine, mbit_per_s, workers, |_| method));
                let best = alone.into_iter().fold(0.0, f64::max);
                let mut chooser = Chooser::default();
                let got = carried_mb_per_s(&machine, mbit_per_s, workers, |wire| {
                    let method = chooser.choose(wire);
                    record(&mut chooser, &machine, method, 1.0);
                    method
                });
                assert!(
                    got > best * least,
                    "{name} at {mbit_per_s} Mbit/s with {workers}: {got:.0} of {best:.0} MB/s"
                );
            }
        }
    }

    #[test]
    fn workers_that_share_their_cores_do_not_make_it_store_what_compresses() {
        // The guest, its QEMU and the path leave them a quarter, or a sixth, now and then all of a core.
        for (name, machine) in [("text", TEXT), ("real", REAL)] {
            for share in [3.0, 4.0, 6.0] {
                let shared = machine.map(|(size, mb_per_s)| (size, mb_per_s / share));
                let alone = Method::ALL.map(|method| carried_mb_per_s(&shared, 1000, 2, |_| method));
                let best = alone.into_iter().fold(0.0, f64::max);
                let mut chooser = Chooser::default();
                let (mut nth, mut of) = (0_u32, [0_u32; METHODS]);
                let got = carried_mb_per_s(&shared, 1000, 2, |wire| {
                    let chosen = chooser.choose(wire);
                    nth += 1;
                    of[index(chosen)] += 1;
                    let (size, mb_per_s) = machine[index(chosen)];
                    let spent_ns = CHUNK_BYTES as f64 * 1000.0 / mb_per_s;
                    // One in four is not interrupted.
                    let ns = if nth.is_multiple_of(4) { spent_ns } else { spent_ns * share };
                    let took = Took { ns: ns as u64, spent_ns: spent_ns as u64 };
                    chooser.record(chosen, CHUNK_BYTES, (CHUNK_BYTES as f64 * size) as usize, took);
                    chosen
                });
                assert!(got > best * 0.9, "{name} by {share}: {got:.0} of {best:.0} MB/s, {of:?}");
                // What no mixture of two others beats, and its neighbours now and then.
                assert!(name == "real" || of[LZ4] * 50 < nth, "{name} by {share}: {of:?}");
            }
        }
    }
}
