//! The work of encoding one chunk, apart from the state machine so that any thread may do it.

use crate::codec::xbzrle::{self, Encoding};
use crate::codec::{Encoder, Kind, Method, Packed, PagesBody, is_zero};
use crate::source::Chunk;
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// One chunk to be encoded.
#[derive(Debug)]
pub struct EncodeJob {
    pub(super) seq: ChunkSeq,
    pub(super) after: ChunkSeq,
    pub(super) min_saving_permille: u32,
    pub(super) work: Work,
}

/// What the chunk is to carry.
#[derive(Debug)]
pub(super) enum Work {
    Pages(PagesWork),
    Stream { kind: Kind, offset: u64, bytes: Vec<u8> },
}

/// The pages of a chunk. Goes to the worker and back, so that its memory is used again.
#[derive(Debug, Default)]
pub(super) struct PagesWork {
    pub zero_runs: Vec<(PageId, u32)>,
    pub pages: Vec<PageWork>,
}

#[derive(Debug)]
pub(super) struct PageWork {
    pub page: PageId,
    pub bytes: Box<PageBytes>,
    /// What the peer has or will have when this chunk is applied.
    pub base: Option<Base>,
    pub carried: Carried,
}

/// What was last sent of a page.
#[derive(Debug)]
pub(super) struct Base {
    pub seq: ChunkSeq,
    pub bytes: Box<PageBytes>,
}

/// How a page went, filled in by the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    Whole,
    Delta,
    Zero,
    /// Not at all: the peer has it.
    Same,
}

/// What a worker keeps between jobs.
#[derive(Default)]
pub struct EncodeScratch {
    encoder: Encoder,
    zero_runs: Vec<(PageId, u32)>,
    deltas: Vec<(PageId, ChunkSeq, u16)>,
    delta_bytes: Vec<u8>,
}

/// An encoded chunk, on its way back to [`crate::Source::encoded`].
#[derive(Debug)]
pub struct Encoded {
    pub(super) chunk: Chunk,
    pub(super) raw_bytes: usize,
    pub(super) pages: Option<PagesWork>,
}

impl EncodeJob {
    /// Raw bytes to be encoded: what the job costs.
    pub fn raw_bytes(&self) -> usize {
        match &self.work {
            Work::Pages(work) => work.pages.len() * PAGE_BYTES,
            Work::Stream { bytes, .. } => bytes.len(),
        }
    }

    /// Encodes. Never fails: what cannot be made smaller is stored.
    pub fn run(self, scratch: &mut EncodeScratch) -> Encoded {
        let raw_bytes = self.raw_bytes();
        let (packed, pages) = match self.work {
            Work::Pages(mut work) => (scratch.encode_pages(&mut work, self.min_saving_permille), Some(work)),
            Work::Stream { kind, offset, bytes } => {
                let encoder = &mut scratch.encoder;
                (encoder.stream(kind, offset, &bytes, Method::Lz4, self.min_saving_permille), None)
            }
        };
        let payload = packed.payload;
        Encoded { chunk: Chunk { seq: self.seq, after: self.after, payload }, raw_bytes, pages }
    }
}

impl EncodeScratch {
    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.encoder.memory_bytes() + self.delta_bytes.capacity()
    }

    fn encode_pages(&mut self, work: &mut PagesWork, min_saving_permille: u32) -> Packed {
        self.zero_runs.clear();
        self.zero_runs.extend_from_slice(&work.zero_runs);
        self.deltas.clear();
        self.delta_bytes.clear();
        for page in &mut work.pages {
            page.carried = self.choose(page);
        }
        let mut wholes = Vec::with_capacity(work.pages.len());
        wholes.extend(
            work.pages
                .iter()
                .filter(|page| page.carried == Carried::Whole)
                .map(|page| (page.page, &*page.bytes)),
        );
        let body = PagesBody {
            zero_runs: &self.zero_runs,
            wholes: &wholes,
            deltas: &self.deltas,
            delta_bytes: &self.delta_bytes,
            ..PagesBody::default()
        };
        self.encoder.pages(&body, Method::Lz4, min_saving_permille)
    }

    /// The cheapest form of one page.
    fn choose(&mut self, work: &PageWork) -> Carried {
        if is_zero(&work.bytes) {
            self.zero_runs.push((work.page, 1));
            return Carried::Zero;
        }
        let Some(base) = &work.base else { return Carried::Whole };
        match xbzrle::encode(&base.bytes, &work.bytes, PAGE_BYTES, &mut self.delta_bytes) {
            Encoding::Same => Carried::Same,
            Encoding::TooLong => Carried::Whole,
            Encoding::Delta(len) => match u16::try_from(len) {
                Ok(len) => {
                    self.deltas.push((work.page, base.seq, len));
                    Carried::Delta
                }
                Err(_) => Carried::Whole,
            },
        }
    }
}
