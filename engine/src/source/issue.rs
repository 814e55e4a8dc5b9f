//! Which chunk is made next, and what happens when it comes back encoded.

use crate::codec::Kind;
use crate::precopy::AbortReason;
use crate::source::job::{Base, Carried, EncodeJob, Encoded, PageWork, PagesWork, Work};
use crate::source::staging::NO_SLOT;
use crate::source::{Chunk, Phase, Source};
use crate::types::{ChunkSeq, PAGE_BYTES, PageId, Time};

impl Source {
    /// The result of an [`crate::Action::Encode`].
    pub fn encoded(&mut self, _now: Time, encoded: Encoded) {
        let Encoded { chunk, raw_bytes, pages } = encoded;
        self.window.job_done(raw_bytes);
        match pages {
            Some(work) => {
                self.encoding_pages -= work.pages.len();
                self.learn_ratio(raw_bytes, chunk.payload.len());
                self.take_back(&chunk, work);
            }
            None => self.encoding_stream_bytes -= raw_bytes,
        }
        self.counts.bytes_encoded += chunk.payload.len() as u64;
        self.ready_bytes += chunk.payload.len();
        self.window.encoded(chunk.payload.len());
        self.ready.insert(chunk.seq, chunk);
    }

    /// The next chunk to encode, if one is due and there is room for it.
    pub(super) fn next_job(&mut self) -> Option<EncodeJob> {
        let hurry = self.phase == Phase::Stopped;
        if !self.window.has_room(&self.config, self.ratio, hurry) {
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
        if self.tail.has_whole_piece() || (!self.tail.is_empty() && self.tail_complete) {
            let (offset, bytes) = self.tail.pop()?;
            return self.stream_job(Kind::Tail, offset, bytes, self.window.issued);
        }
        None
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
        // A page found to be zero by the worker becomes a run of its own.
        let max_runs = self.config.chunk_zero_runs.min(usize::from(u16::MAX) - self.pages_per_chunk());
        self.table.zeros.take_runs(max_runs.max(1), &mut work.zero_runs);
        for &(first, run) in &work.zero_runs {
            for page in (first.0..first.0 + run).map(PageId) {
                if let Some(meta) = self.table.get_mut(page) {
                    meta.sent = seq;
                    meta.sent_zero = true;
                }
                if let Some(bases) = &mut self.bases {
                    bases.forget(page, &mut self.pool);
                }
            }
            self.counts.pages_sent += u64::from(run);
        }
        while work.pages.len() < self.pages_per_chunk() {
            let Some((page, bytes)) = self.staging.pop() else { break };
            if let Some(meta) = self.table.get_mut(page) {
                meta.slot = NO_SLOT;
                meta.sent = seq;
                meta.sent_zero = false;
            }
            let base = self.bases.as_mut().and_then(|bases| bases.take(page));
            work.pages.push(PageWork { page, bytes, base, carried: Carried::Whole });
        }
        self.encoding_pages += work.pages.len();
        Some(self.job(seq, self.last_opaque, Work::Pages(work)))
    }

    fn stream_job(&mut self, kind: Kind, offset: u64, bytes: Vec<u8>, after: ChunkSeq) -> Option<EncodeJob> {
        let seq = self.next_seq()?;
        self.encoding_stream_bytes += bytes.len();
        Some(self.job(seq, after, Work::Stream { kind, offset, bytes }))
    }

    fn job(&mut self, seq: ChunkSeq, after: ChunkSeq, work: Work) -> EncodeJob {
        let job = EncodeJob { seq, after, min_saving_permille: self.config.min_saving_permille, work };
        self.window.job_issued(job.raw_bytes());
        job
    }

    fn next_seq(&mut self) -> Option<ChunkSeq> {
        match self.window.issued.0.checked_add(1) {
            Some(seq) => {
                self.window.issued = ChunkSeq(seq);
                Some(ChunkSeq(seq))
            }
            None => {
                self.fault = Some(AbortReason::SequenceExhausted);
                None
            }
        }
    }

    /// Takes the pages' memory back, as bases or for the pool.
    fn take_back(&mut self, chunk: &Chunk, mut work: PagesWork) {
        for PageWork { page, bytes, base, carried } in work.pages.drain(..) {
            match carried {
                Carried::Same => self.counts.unchanged += 1,
                Carried::Delta => {
                    self.counts.deltas_sent += 1;
                    self.counts.pages_sent += 1;
                }
                Carried::Whole | Carried::Zero => self.counts.pages_sent += 1,
            }
            // A newer version was issued meanwhile, without a base: this one is no base any more.
            let newest = self.table.get_mut(page).filter(|meta| meta.sent == chunk.seq);
            let kept = match (newest, carried) {
                (None, _) => None,
                (Some(meta), Carried::Zero) => {
                    meta.sent_zero = true;
                    None
                }
                (Some(_), Carried::Same) => base.as_ref().map(|base| base.seq),
                (Some(_), Carried::Whole | Carried::Delta) => Some(chunk.seq),
            };
            if let Some(base) = base {
                self.pool.give_back(base.bytes);
            }
            match (&mut self.bases, kept) {
                (Some(bases), Some(seq)) => bases.put(page, Base { seq, bytes }, &mut self.pool),
                _ => self.pool.give_back(bytes),
            }
        }
        work.zero_runs.clear();
        if self.spare_work.len() < self.config.encode_jobs {
            self.spare_work.push(work);
        }
    }

    fn learn_ratio(&mut self, raw_bytes: usize, payload_bytes: usize) {
        if raw_bytes > 0 {
            let full = raw_bytes as f64 / self.config.chunk_bytes.max(1) as f64;
            let weight = (f64::from(self.config.ratio_weight_permille) / 1000.0 * full).min(1.0);
            self.ratio += weight * (payload_bytes as f64 / raw_bytes as f64 - self.ratio);
        }
    }
}
