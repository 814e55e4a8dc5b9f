//! Whatever the order in which pages change, jobs are done, chunks come and are acknowledged, the receiver ends with what the guest had.

use std::time::Duration;

use crate::model::{ModelRam, Rng};
use hikyaku_engine::precopy::{Adaptive, AdaptiveConfig};
use hikyaku_engine::{
    Action, Chunk, Delta, EncodeJob, EncodeScratch, Encoded, LinkStats, PAGE_BYTES, PageBytes, PageId,
    Receiver, ReceiverConfig, Source, SourceConfig, Time,
};

const STEPS: u32 = 300;

struct Run {
    rng: Rng,
    now: u64,
    source: Source,
    receiver: Receiver,
    guest: Vec<PageBytes>,
    there: ModelRam,
    scratch: EncodeScratch,
    /// Jobs that are not begun, those that are done, and chunks on their way.
    jobs: Vec<EncodeJob>,
    done: Vec<Encoded>,
    wire: Vec<Chunk>,
}

fn take<T>(from: &mut Vec<T>, rng: &mut Rng) -> Option<T> {
    let at = rng.below(from.len().max(1) as u64) as usize;
    (at < from.len()).then(|| from.swap_remove(at))
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng(seed);
        let pages = 4 + rng.below(28) as u32;
        let mut one_of = |choices: &[usize]| choices[rng.below(choices.len() as u64) as usize];
        let config = SourceConfig {
            delta: Delta::Always {
                base_budget_bytes: one_of(&[400, 999, 3000, 12_000, 30_000, 60_000, 1 << 20]),
            },
            chunk_bytes: one_of(&[4096, 8192, 32_768]),
            encode_jobs: one_of(&[1, 2, 3, 8]),
            pool_bytes: one_of(&[0, 20_000, 40_000]),
            dictionary_slots: one_of(&[0, 1, 2, 3]) as u16,
            chunk_zero_runs: one_of(&[1, 2, 4]),
            chunk_refs: one_of(&[1, 2, 4]),
            heat_half_life: Duration::from_millis(one_of(&[1, 5, 50]) as u64),
            ..SourceConfig::default()
        };
        let dictionary_slots = config.dictionary_slots;
        let mut source = Source::new(config, Box::new(Adaptive::new(AdaptiveConfig::default())));
        source.opaque(b"prefix");
        source.layout(Time(0), pages).expect("a layout");
        source.zero(Time(0), PageId(0), pages);
        Run {
            rng,
            now: 0,
            source,
            receiver: Receiver::new(ReceiverConfig { dictionary_slots, ..ReceiverConfig::default() }),
            guest: vec![[0; PAGE_BYTES]; pages as usize],
            there: ModelRam::new(pages),
            scratch: EncodeScratch::default(),
            jobs: Vec::new(),
            done: Vec::new(),
            wire: Vec::new(),
        }
    }

    /// What the guest makes of a page: a little changed, half, all; what other pages hold; nothing; what it was.
    fn renew(&mut self, page: usize) {
        let (rng, content) = (&mut self.rng, &mut self.guest[page]);
        match rng.below(12) {
            0..=4 => {
                for _ in 0..=rng.below(4) {
                    content[rng.below(PAGE_BYTES as u64) as usize] = rng.next() as u8;
                }
            }
            5 => {}
            6 | 7 => {
                let value = rng.below(5) as u8;
                *content = std::array::from_fn(|at| value.wrapping_mul(at as u8 | 1));
            }
            8 | 9 => content.fill_with(|| rng.next() as u8),
            10 => *content = [rng.next() as u8; PAGE_BYTES],
            _ => {
                let half = rng.below(2) as usize * PAGE_BYTES / 2;
                content[half..half + PAGE_BYTES / 2].fill_with(|| rng.next() as u8);
            }
        }
        self.source.page(Time(self.now), PageId(page as u32), &self.guest[page]);
    }

    fn write(&mut self) {
        let pages = self.guest.len() as u64;
        match self.rng.below(6) {
            0..=2 => {
                for _ in 0..=self.rng.below(5) {
                    let among = if self.rng.below(2) == 0 { 3 } else { pages };
                    let page = self.rng.below(among) as usize;
                    self.renew(page);
                }
            }
            3 => {
                let first = self.rng.below(pages) as u32;
                let run = (1 + self.rng.below(4) as u32).min(pages as u32 - first);
                self.guest[first as usize..(first + run) as usize].fill([0; PAGE_BYTES]);
                self.source.zero(Time(self.now), PageId(first), run);
            }
            _ => {}
        }
    }

    fn step(&mut self) {
        let now = Time(self.now);
        for _ in 0..self.rng.below(6) {
            match self.source.poll(now) {
                Some(Action::Encode(job)) => self.jobs.push(job),
                Some(Action::Send(chunk)) => {
                    self.wire.push(chunk);
                    self.source.link(now, LinkStats::default());
                }
                Some(Action::Abort(why)) => panic!("{why}"),
                Some(_) => {}
                None => break,
            }
        }
        for _ in 0..self.rng.below(3) {
            let begun = take(&mut self.jobs, &mut self.rng);
            self.done.extend(begun.map(|job| job.run(&mut self.scratch)));
        }
        for _ in 0..self.rng.below(3) {
            if let Some(encoded) = take(&mut self.done, &mut self.rng) {
                let took = Duration::from_micros(1 + self.rng.below(3000));
                self.source.encoded(now, encoded.took(took));
            }
        }
        for _ in 0..self.rng.below(4) {
            if let Some(chunk) = take(&mut self.wire, &mut self.rng) {
                let again = self.rng.below(8) == 0;
                let payload = chunk.payload.to_vec();
                self.receiver.chunk(chunk.seq, chunk.after, payload, &mut self.there).expect("a chunk");
                // It was not acknowledged in time.
                self.wire.extend(again.then_some(chunk));
            }
        }
        if self.rng.below(3) == 0 {
            self.source.acked(now, self.receiver.applied_through(), &[]);
        }
        self.now += self.rng.below(2_000_000);
    }

    fn is_over(&self) -> bool {
        self.jobs.is_empty() && self.done.is_empty() && self.wire.is_empty() && self.source.is_drained()
    }
}

#[test]
fn the_receiver_ends_with_what_the_guest_had() {
    let (mut deltas, mut refs, mut unchanged) = (0, 0, 0);
    for seed in 0..1500 {
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            run.write();
            run.step();
        }
        run.source.guest_stopped(Time(run.now));
        run.source.tail(b"tail");
        run.source.tail_done();
        for _ in 0..100_000 {
            run.step();
            if run.is_over() {
                break;
            }
        }
        assert!(run.is_over(), "seed {seed}: something never went");
        assert_eq!(run.receiver.parked_chunks(), 0, "seed {seed}");
        for (page, (guest, there)) in run.guest.iter().zip(&run.there.pages).enumerate() {
            assert!(guest == there, "seed {seed}: page {page} differs");
        }
        assert_eq!(run.there.tail, b"tail");
        let progress = run.source.progress();
        deltas += progress.deltas_sent;
        refs += progress.refs_sent;
        unchanged += progress.unchanged;
    }
    assert!(deltas > 20_000 && refs > 5_000 && unchanged > 20_000, "{deltas}, {refs}, {unchanged}");
}
