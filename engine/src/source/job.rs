//! The work of encoding one chunk, apart from the state machine so that any thread may do it.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::marks::Marker;
use crate::codec::page_pack::{PagePacker, unpack};
use crate::codec::xbzrle::{self, Encoding};
use crate::codec::{Encoder, HEADER_BYTES, Kind, Method, PagesBody, looks_compressible};
use crate::config::SourceConfig;
use crate::source::Chunk;
use crate::source::bases::{Base, Content, Keep};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// One chunk to be encoded.
#[derive(Debug)]
pub struct EncodeJob {
    pub(super) seq: ChunkSeq,
    pub(super) after: ChunkSeq,
    pub(super) method: Method,
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
    /// Page, the chunk that stored its content, the slot of the dictionary.
    pub refs: Vec<(PageId, ChunkSeq, u16)>,
    pub pages: Vec<PageWork>,
    /// Of the bases' marks.
    pub marker: Option<Arc<Marker>>,
}

#[derive(Debug)]
pub(super) struct PageWork {
    pub page: PageId,
    pub bytes: Box<PageBytes>,
    /// What the peer has or will have when this chunk is applied.
    pub base: Option<Base>,
    /// The slot of the dictionary it goes into as well.
    pub store: Option<u16>,
    /// It was sent before.
    pub again: bool,
    pub keep: Keep,
    /// What is kept of it in the place of itself; filled in by the worker where that is wanted and pays.
    pub kept: Option<Content>,
    /// Filled in by the worker.
    pub carried: Carried,
}

/// How a page went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// Among those that are compressed.
    Whole,
    /// As it is: it would not get smaller.
    Plain,
    Delta,
    /// Not at all: the peer has it.
    Same,
}

/// What a worker keeps between jobs.
pub struct EncodeScratch {
    encoder: Encoder,
    deltas: Vec<(PageId, ChunkSeq, u16)>,
    delta_bytes: Vec<u8>,
    base: Box<PageBytes>,
    packer: PagePacker,
}

impl Default for EncodeScratch {
    fn default() -> Self {
        EncodeScratch {
            encoder: Encoder::default(),
            deltas: Vec::new(),
            delta_bytes: Vec::new(),
            base: Box::new([0; PAGE_BYTES]),
            packer: PagePacker::default(),
        }
    }
}

/// An encoded chunk, on its way back to [`crate::Source::encoded`].
#[derive(Debug)]
pub struct Encoded {
    pub(super) chunk: Chunk,
    pub(super) raw_bytes: usize,
    /// As [`EncodeJob::most_bytes`] had it.
    pub(super) most_bytes: usize,
    pub(super) pages: Option<PagesWork>,
    pub(super) cost: Cost,
    pub(super) took: Option<Duration>,
    pub(super) spent: Option<Duration>,
}

/// What became of the bytes of a chunk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub method: Option<Method>,
    /// What was compressed, and to how much.
    pub body_bytes: usize,
    pub packed_bytes: usize,
    /// Of the payload, what is due to pages that were sent before; theirs, raw.
    pub again_bytes: usize,
    pub again_raw_bytes: usize,
}

impl EncodeJob {
    /// Raw bytes to be encoded: what the job costs.
    pub fn raw_bytes(&self) -> usize {
        match &self.work {
            Work::Pages(work) => work.pages.len() * PAGE_BYTES,
            Work::Stream { bytes, .. } => bytes.len(),
        }
    }

    /// What the payload takes at most.
    pub(super) fn most_bytes(&self) -> usize {
        let records = match &self.work {
            Work::Pages(work) => {
                work.zero_runs.len() * ZERO_RUN_BYTES
                    + work.refs.len() * REFERENCE_BYTES
                    + work.pages.len() * PAGE_BYTES_BESIDE
            }
            Work::Stream { .. } => 0,
        };
        HEADER_BYTES + records + self.raw_bytes()
    }

    /// How the chunk will be compressed, for a caller that models what it costs.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Encodes. Never fails: what cannot be made smaller is stored.
    pub fn run(self, scratch: &mut EncodeScratch) -> Encoded {
        let (raw_bytes, most_bytes) = (self.raw_bytes(), self.most_bytes());
        let (payload, pages, cost) = match self.work {
            Work::Pages(mut work) => {
                let (payload, cost) = scratch.pages(&mut work, self.method, self.min_saving_permille);
                (payload, Some(work), cost)
            }
            Work::Stream { kind, offset, bytes } => {
                let packed =
                    scratch.encoder.stream(kind, offset, &bytes, self.method, self.min_saving_permille);
                (packed.payload, None, Cost::default())
            }
        };
        let chunk = Chunk { seq: self.seq, after: self.after, payload };
        Encoded { chunk, raw_bytes, most_bytes, pages, cost, took: None, spent: None }
    }
}

impl Encoded {
    /// How long [`EncodeJob::run`] took, by the clock: the choice of methods learns from it.
    pub fn took(self, took: Duration) -> Encoded {
        Encoded { took: Some(took), ..self }
    }

    /// What of the processor it took: a worker does not always have one to itself.
    pub fn spent(self, spent: Duration) -> Encoded {
        Encoded { spent: Some(spent), ..self }
    }

    /// Of what the job carried, bytes that went through the compressor, for a caller that models what it costs.
    pub fn body_bytes(&self) -> usize {
        self.cost.body_bytes
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.chunk.payload.len()
    }
}

impl EncodeScratch {
    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.encoder.memory_bytes()
            + self.delta_bytes.capacity()
            + self.deltas.capacity() * size_of::<(PageId, ChunkSeq, u16)>()
            + PAGE_BYTES
    }

    fn pages(
        &mut self,
        work: &mut PagesWork,
        method: Method,
        min_saving_permille: u32,
    ) -> (std::sync::Arc<[u8]>, Cost) {
        self.deltas.clear();
        self.delta_bytes.clear();
        // Records whose pages rise take the least.
        work.zero_runs.sort_unstable();
        work.refs.sort_unstable();
        work.pages.sort_unstable_by_key(|page| page.page);
        let marker = work.marker.as_deref();
        for page in &mut work.pages {
            page.carried = self.choose(page, marker, method);
            page.kept = self.kept(page, marker);
        }
        let of = |carried: Carried| {
            let those = work.pages.iter().filter(move |page| page.carried == carried);
            those.map(|page| (page.page, &*page.bytes)).collect::<Vec<_>>()
        };
        let (wholes, plain) = (of(Carried::Whole), of(Carried::Plain));
        let whole = |page: &&PageWork| page.carried == Carried::Whole;
        let is_plain = |page: &&PageWork| page.carried == Carried::Plain;
        let stores: Vec<(u16, u16)> = work
            .pages
            .iter()
            .filter(whole)
            .chain(work.pages.iter().filter(is_plain))
            .zip(0..)
            .filter_map(|(page, at)| Some((at, page.store?)))
            .collect();
        let body = PagesBody {
            zero_runs: &work.zero_runs,
            wholes: &wholes,
            plain: &plain,
            deltas: &self.deltas,
            delta_bytes: &self.delta_bytes,
            refs: &work.refs,
            stores: &stores,
        };
        let packed = self.encoder.pages(&body, method, min_saving_permille);
        let again = |carried: Carried| {
            work.pages.iter().filter(|page| page.again && page.carried == carried).count() * PAGE_BYTES
        };
        let again_raw_bytes = work.pages.iter().filter(|page| page.again).count() * PAGE_BYTES;
        let again_body_bytes = again(Carried::Whole) + self.delta_bytes.len();
        let cost = Cost {
            method: Some(packed.method),
            body_bytes: packed.body_bytes,
            packed_bytes: packed.packed_bytes,
            again_bytes: again(Carried::Plain)
                + again_body_bytes * packed.packed_bytes / packed.body_bytes.max(1),
            again_raw_bytes,
        };
        (packed.payload, cost)
    }

    /// The cheapest form of one page.
    fn choose(&mut self, work: &PageWork, marker: Option<&Marker>, method: Method) -> Carried {
        if let Some(base) = &work.base
            && let Some(carried) = self.delta(work, base, marker)
        {
            return carried;
        }
        if method == Method::Stored || !looks_compressible(&work.bytes) {
            Carried::Plain
        } else {
            Carried::Whole
        }
    }

    /// None: a delta does not pay.
    fn delta(&mut self, work: &PageWork, base: &Base, marker: Option<&Marker>) -> Option<Carried> {
        let out = &mut self.delta_bytes;
        let encoding = match &base.content {
            Content::Plain(bytes) => xbzrle::encode(bytes, &work.bytes, MAX_DELTA_BYTES, out),
            Content::Packed(packed) => {
                unpack(packed, &mut self.base).ok()?;
                xbzrle::encode(&self.base, &work.bytes, MAX_DELTA_BYTES, out)
            }
            Content::Marked(marks) => marker?.delta(marks, &work.bytes, MAX_DELTA_BYTES, out),
        };
        match encoding {
            Encoding::Same => Some(Carried::Same),
            Encoding::TooLong => None,
            Encoding::Delta(len) => {
                self.deltas.push((work.page, base.seq, u16::try_from(len).ok()?));
                Some(Carried::Delta)
            }
        }
    }

    /// The page's new content for the base store, if it is to be kept otherwise than as it is and that pays.
    fn kept(&mut self, work: &PageWork, marker: Option<&Marker>) -> Option<Content> {
        match (work.keep, work.carried) {
            (_, Carried::Same) | (Keep::No | Keep::Plain, _) | (Keep::Packed, Carried::Plain) => None,
            (Keep::Packed, _) => Some(Content::Packed(self.packer.pack(&work.bytes)?.into())),
            (Keep::Marked, _) => Some(Content::Marked(Box::new(marker?.marks(&work.bytes)))),
        }
    }
}

/// What a record takes before it is compressed; a page's as a delta.
const ZERO_RUN_BYTES: usize = 8;
const REFERENCE_BYTES: usize = 10;
const PAGE_BYTES_BESIDE: usize = 10;

/// What the payload of any chunk of pages takes at most.
pub(super) fn chunk_most_bytes(config: &SourceConfig) -> usize {
    let pages = config.chunk_bytes / PAGE_BYTES;
    HEADER_BYTES
        + config.chunk_bytes
        + pages * PAGE_BYTES_BESIDE
        + config.chunk_zero_runs * ZERO_RUN_BYTES
        + config.chunk_refs * REFERENCE_BYTES
}

/// A delta longer than this is not worth its base: a page of which nearly all has changed compresses better as a whole.
const MAX_DELTA_BYTES: usize = PAGE_BYTES * 7 / 8;
