//! Which chunk is made next, and what happens when it comes back encoded.

use crate::codec::{Kind, is_zero};
use crate::precopy::AbortReason;
use crate::source::bases::{Base, Content, Keep, Used};
use crate::source::dictionary::Verdict;
use crate::source::job::{Carried, Cost, EncodeJob, Encoded, PageWork, PagesWork, Work};
use crate::source::staging::NO_SLOT;
use crate::source::window::Pace;
use crate::source::{Chunk, Phase, Source};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId, Time};

impl Source {
    /// The result of an [`crate::Action::Encode`].
    pub fn encoded(&mut self, _now: Time, encoded: Encoded) {
        let Encoded { chunk, raw_bytes, most_bytes, pages, cost, took, spent } = encoded;
        self.window.job_done(most_bytes);
        match pages {
            Some(work) => {
                self.encoding_pages -= work.pages.len();
                self.learn(chunk.payload.len(), raw_bytes, &cost);
                self.speed.learn(raw_bytes, &cost, took, spent);
                self.take_back(&chunk, work);
            }
            None => self.encoding_stream_bytes -= raw_bytes,
        }
        self.counts.bytes_encoded += chunk.payload.len() as u64;
        self.ready_bytes += chunk.payload.len();
        self.window.encoded(chunk.payload.len());
        self.limiter.sent(chunk.payload.len());
        self.ready.insert(chunk.seq, chunk);
    }

    /// The next chunk to encode, if one is due and there is room for it.
    pub(super) fn next_job(&mut self) -> Option<EncodeJob> {
        let pace = self.issue_pace();
        let open = pace == Pace::Hurry || self.limiter.is_open();
        if !open || !self.window.has_room(&self.config, self.ratio, pace) {
            return None;
        }
        if let Some((offset, bytes)) = self.opaque.pop() {
            let job = self.stream_job(Kind::Opaque, offset, bytes, self.last_opaque)?;
            self.last_opaque = job.seq;
            return Some(job);
        }
        if self.pages_are_due() {
            return self.pages_job();
        }
        if self.staging.len() > 0 || self.table.zeros.len() > 0 {
            return None;
        }
        let dry = self.window.is_dry();
        if self.raw.has_whole_piece() || (!self.raw.is_empty() && (dry || self.tail_complete)) {
            let (offset, bytes) = self.raw.pop()?;
            return self.stream_job(Kind::Raw, offset, bytes, self.window.issued);
        }
        if !self.raw.is_empty() {
            return None;
        }
        let goes = self.tail_complete || dry && self.config.tail_as_it_comes;
        if self.tail.has_whole_piece() || (!self.tail.is_empty() && goes) {
            let (offset, bytes) = self.tail.pop()?;
            return self.stream_job(Kind::Tail, offset, bytes, self.window.issued);
        }
        None
    }

    pub(super) fn issue_pace(&self) -> Pace {
        if self.phase == Phase::Stopped {
            return Pace::Hurry;
        }
        let opening_ns = self.config.ahead_round_trips * self.window.link.min_rtt_ns;
        let opens = self.layout_at.is_some_and(|begun| self.polled_at.since(begun) < opening_ns);
        // A policy that counts passes has its source at the rate of the link.
        if opens && self.paces_passes() {
            return Pace::Ahead;
        }
        self.lead_bytes().map_or(Pace::Late, |unsent_bytes| Pace::Early { unsent_bytes })
    }

    /// What may wait for the wire when the last pages are encoded. They all came before, and their differences take the workers longer than
    /// the wire: a worker that waits until the wire is empty would still be at work when the guest is to be stopped. What comes once more meanwhile
    /// has cost the wire little.
    fn lead_bytes(&self) -> Option<u64> {
        if self.staged_again == 0 || self.staged_again < self.staging.len() || self.bases.is_none() {
            return None;
        }
        let raw_bytes = (self.staged_again * PAGE_BYTES) as f64;
        let encoded_s = raw_bytes / self.speed.again_bytes_per_s()?.max(1) as f64;
        let lead_bytes =
            encoded_s * self.window.link.goodput_bytes_per_s as f64 - raw_bytes * self.ratio_again?;
        (lead_bytes > 0.0).then_some(lead_bytes as u64)
    }

    /// A chunk full of pages, or some pages and a reason not to wait for more.
    fn pages_are_due(&self) -> bool {
        let staged = self.staging.len();
        if staged == 0 && self.table.zeros.len() == 0 {
            return false;
        }
        staged >= self.pages_per_chunk()
            || self.window.is_dry()
            || self.phase == Phase::Stopped
            || self.raw.begun()
            || self.tail.begun()
            || self.tail_complete
            || self.intake_room() == 0
    }

    fn pages_per_chunk(&self) -> usize {
        (self.config.chunk_bytes / PAGE_BYTES).clamp(1, usize::from(u16::MAX))
    }

    fn pages_job(&mut self) -> Option<EncodeJob> {
        let seq = self.next_seq()?;
        let mut work = self.spare_work.pop().unwrap_or_default();
        work.marker = self.bases.as_ref().map(|bases| bases.marker().clone());
        let max_runs = self.config.chunk_zero_runs.clamp(1, usize::from(u16::MAX));
        self.table.zeros.take_runs(max_runs, &mut work.zero_runs);
        for &(first, run) in &work.zero_runs {
            for page in (first.0..first.0 + run).map(PageId) {
                if let Some(meta) = self.table.get_mut(page) {
                    meta.sent = seq;
                    meta.set_sent_zero(true);
                }
                if let Some(bases) = &mut self.bases {
                    bases.forget(page, &mut self.pool);
                }
            }
            self.counts.pages_sent += u64::from(run);
        }
        let sample = self.sample_is_due();
        if sample {
            self.sampled_at = Some(self.polled_at);
        }
        // What costs the wire next to nothing ends a chunk late, but it does: a page may turn out to be zero, or a reference.
        while work.pages.len() < self.pages_per_chunk()
            && work.refs.len() < self.config.chunk_refs
            && work.zero_runs.len() < max_runs
        {
            let next = if sample { self.staging.pop_hottest() } else { self.staging.pop() };
            let Some((page, bytes)) = next else { break };
            self.add(page, bytes, seq, &mut work);
        }
        self.encoding_pages += work.pages.len();
        self.encoding_again += work.pages.iter().filter(|page| page.again).count();
        Some(self.job(seq, self.last_opaque, Work::Pages(work)))
    }

    /// What comes again waits until all else has gone, and what it costs then makes most of the stop: some of it goes before its turn, or nobody
    /// could foretell that.
    fn sample_is_due(&self) -> bool {
        self.phase == Phase::Live
            && self.bases.is_some()
            && self.staged_again >= self.pages_per_chunk()
            && self.sampled_at.is_none_or(|last| self.polled_at.since(last) >= SAMPLE_INTERVAL_NS)
    }

    /// Puts a page that was staged into a chunk, in the cheapest form that can be told without an encoder.
    fn add(&mut self, page: PageId, bytes: Box<PageBytes>, seq: ChunkSeq, work: &mut PagesWork) {
        let Some(meta) = self.table.get_mut(page) else { return self.pool.give_back(bytes) };
        let again = meta.sent != ChunkSeq::NONE;
        meta.slot = NO_SLOT;
        meta.sent = seq;
        self.staged_again -= usize::from(again);
        if self.encodings.zero && is_zero(&bytes) {
            meta.set_sent_zero(true);
            if let Some(bases) = &mut self.bases {
                bases.forget(page, &mut self.pool);
            }
            self.pool.give_back(bytes);
            match work.zero_runs.last_mut() {
                Some((first, run)) if first.0.checked_add(*run) == Some(page.0) => *run += 1,
                _ => work.zero_runs.push((page, 1)),
            }
            self.counts.pages_sent += 1;
            return;
        }
        meta.set_sent_zero(false);
        let hot = meta.heat.any(self.epoch);
        let without_base = meta.goes_without_base();
        let base = match &mut self.bases {
            Some(bases) if without_base => {
                bases.forget(page, &mut self.pool);
                None
            }
            bases => bases.as_mut().and_then(|bases| bases.take(page)),
        };
        let mut store = None;
        if base.is_none() {
            let applied = self.window.acked_through();
            match self.dictionary.look(&bytes, seq, applied, &mut self.pool) {
                Verdict::Named { stored_in, slot } => {
                    work.refs.push((page, stored_in, slot));
                    self.counts.pages_sent += 1;
                    self.counts.refs_sent += 1;
                    return self.keep(page, Base { seq, content: Content::Plain(bytes) }, used(hot, None));
                }
                Verdict::Store { slot } => store = Some(slot),
                Verdict::Unknown => {}
            }
        }
        let keep = match &self.bases {
            // With the guest stopped nothing comes again, and what is done for it is part of the stop.
            Some(bases) if !without_base && self.phase != Phase::Stopped => bases.keep(hot),
            _ => Keep::No,
        };
        work.pages.push(PageWork {
            page,
            bytes,
            base,
            store,
            again,
            keep,
            kept: None,
            carried: Carried::Whole,
        });
    }

    fn keep(&mut self, page: PageId, base: Base, used: Used) {
        match &mut self.bases {
            Some(bases) => bases.put(page, base, used, &mut self.pool),
            None => base.content.discard(&mut self.pool),
        }
    }

    fn stream_job(&mut self, kind: Kind, offset: u64, bytes: Vec<u8>, after: ChunkSeq) -> Option<EncodeJob> {
        let seq = self.next_seq()?;
        self.encoding_stream_bytes += bytes.len();
        Some(self.job(seq, after, Work::Stream { kind, offset, bytes }))
    }

    fn job(&mut self, seq: ChunkSeq, after: ChunkSeq, work: Work) -> EncodeJob {
        let method = self.method();
        let min_saving_permille = self.config.min_saving_permille;
        let job = EncodeJob { seq, after, method, min_saving_permille, work };
        self.window.job_issued(job.most_bytes());
        job
    }

    fn next_seq(&mut self) -> Option<ChunkSeq> {
        let seq = self.window.issue(self.polled_at);
        if seq.is_none() {
            self.fault = Some(AbortReason::SequenceExhausted);
        }
        seq
    }

    /// Takes the pages' memory back, as bases or for the pool.
    fn take_back(&mut self, chunk: &Chunk, mut work: PagesWork) {
        for PageWork { page, bytes, base, again, keep, kept, carried, .. } in work.pages.drain(..) {
            self.encoding_again -= usize::from(again);
            match carried {
                Carried::Same => self.counts.unchanged += 1,
                Carried::Delta => self.counts.deltas_sent += 1,
                Carried::Whole | Carried::Plain => {}
            }
            self.counts.pages_sent += u64::from(carried != Carried::Same);
            if let (Some(_), Some(bases)) = (&base, &mut self.bases) {
                bases.back();
            }
            let Some(meta) = self.table.get_mut(page) else { continue };
            // A newer version was issued meanwhile, without a base: this one is no base any more.
            let newest = meta.sent == chunk.seq;
            let hot = meta.heat.any(self.epoch);
            let before = base.as_ref().map(|base| base.seq);
            let whole = base.as_ref().is_some_and(|base| base.content.is_whole());
            if whole && matches!(carried, Carried::Whole | Carried::Plain) {
                meta.delta_did_not_pay();
            }
            let (bytes, base) = match (carried, kept) {
                (Carried::Same, _) => (Some(bytes), base),
                (_, Some(content)) => {
                    base.into_iter().for_each(|base| base.content.discard(&mut self.pool));
                    (Some(bytes), Some(Base { seq: chunk.seq, content }))
                }
                (_, None) => {
                    base.into_iter().for_each(|base| base.content.discard(&mut self.pool));
                    (None, Some(Base { seq: chunk.seq, content: Content::Plain(bytes) }))
                }
            };
            bytes.into_iter().for_each(|bytes| self.pool.give_back(bytes));
            let Some(base) = base else { continue };
            if newest && keep != Keep::No {
                self.keep(page, base, used(hot, before));
            } else {
                base.content.discard(&mut self.pool);
            }
        }
        work.zero_runs.clear();
        work.refs.clear();
        if self.spare_work.len() < self.config.encode_jobs {
            self.spare_work.push(work);
        }
    }

    /// What a page costs on the wire, of the last chunks: one that was never sent, and one that was.
    fn learn(&mut self, payload_bytes: usize, raw_bytes: usize, cost: &Cost) {
        let weight = |raw_bytes: usize| {
            let full = raw_bytes as f64 / self.config.chunk_bytes.max(1) as f64;
            (f64::from(self.config.ratio_weight_permille) / 1000.0 * full).min(1.0)
        };
        let again = (cost.again_bytes.min(payload_bytes), cost.again_raw_bytes);
        let fresh = (payload_bytes - again.0, raw_bytes.saturating_sub(again.1));
        if fresh.1 > 0 {
            self.ratio += weight(fresh.1) * (fresh.0 as f64 / fresh.1 as f64 - self.ratio);
        }
        if again.1 > 0 {
            // Known first when pages begin to come again, which may be few: they count from the first on.
            let weight = if self.ratio_again.is_none() { 1.0 } else { weight(again.1) };
            if again.1 * 2 >= self.config.chunk_bytes {
                self.sampled_at = Some(self.polled_at);
            }
            let ratio = self.ratio_again.get_or_insert(0.0);
            *ratio += weight * (again.0 as f64 / again.1 as f64 - *ratio);
        }
    }
}

/// For so long what is known of pages that come again is believed. A chunk of them in that time is a part in a thousand of a slow link.
const SAMPLE_INTERVAL_NS: u64 = 400_000_000;

fn used(hot: bool, before: Option<ChunkSeq>) -> Used {
    if hot { Used::Again { before: before.unwrap_or(ChunkSeq::NONE) } } else { Used::Once }
}
