//! Reading payloads that anyone may have written.

use zstd_safe::DCtx;

use crate::codec::columns::Column;
use crate::codec::xbzrle::{self, BadDelta};
use crate::codec::{
    COMPRESSION_LZ4, COMPRESSION_STORED, COMPRESSION_ZSTD, FORMAT_VERSION, HEADER_BYTES, Kind,
};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// Why a payload is not one. The peer's fault: what arrives has been authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a payload of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("payload format {0} is not known")]
    Version(u8),
    #[error("chunk kind {0} is not known")]
    Kind(u8),
    #[error("compression {0} is not known")]
    Compression(u8),
    #[error("a reserved field is not zero")]
    Reserved,
    #[error("a body of {raw_len} bytes is larger than the limit of {limit}")]
    TooLarge { raw_len: u64, limit: usize },
    #[error("the body's length is not what the header says")]
    Length,
    #[error("the body does not decompress")]
    Corrupt,
    #[error("the zero run at page {0} is empty or beyond the last page there can be")]
    ZeroRun(u32),
    #[error("the delta of page {page}: {why}")]
    Delta { page: u32, why: BadDelta },
    #[error("whole page {index} is stored, of {wholes}")]
    Store { index: u16, wholes: usize },
    #[error("{stores} stores of {wholes} whole pages")]
    Stores { stores: usize, wholes: usize },
}

/// Working space of [`decode`], kept between chunks.
#[derive(Default)]
pub struct DecodeScratch {
    body: Vec<u8>,
    /// Made for the first chunk that needs it.
    zstd: Option<DCtx<'static>>,
}

impl std::fmt::Debug for DecodeScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodeScratch").field("memory_bytes", &self.memory_bytes()).finish_non_exhaustive()
    }
}

impl DecodeScratch {
    /// Memory held, in bytes: the longest body so far, and [`DecodeScratch::ZSTD_BYTES`] at most beside it.
    pub fn memory_bytes(&self) -> usize {
        self.body.capacity() + self.zstd.as_ref().map_or(0, DCtx::sizeof)
    }

    /// What zstd keeps for itself at most, whatever a frame says.
    pub const ZSTD_BYTES: usize = 192 << 10;
}

/// A payload, decompressed and checked.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack; boxed it would be allocated per chunk"
)]
#[derive(Debug, Clone, Copy)]
pub enum Decoded<'a> {
    Pages(Pages<'a>),
    /// Bytes of one of the streams; never [`Kind::Pages`].
    Stream {
        kind: Kind,
        offset: u64,
        bytes: &'a [u8],
    },
}

/// The records of a pages chunk. Every run is at least 1 and ends below 2^32, every delta is valid XBZRLE; page numbers, chunk numbers
/// and slots are not checked here.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    zero_pages: Column<'a, 4>,
    zero_runs: Column<'a, 4>,
    whole_pages: Column<'a, 4>,
    deltas: Contents<'a>,
    refs: Contents<'a>,
    stored: Column<'a, 2>,
    stored_in: Column<'a, 2>,
    packed: &'a [PageBytes],
    delta_bytes: &'a [u8],
    plain: &'a [PageBytes],
}

/// Pages that are made of what a chunk brought before, and a number.
#[derive(Debug, Clone, Copy)]
struct Contents<'a> {
    pages: Column<'a, 4>,
    seqs: Column<'a, 4>,
    numbers: Column<'a, 2>,
}

impl<'a> Pages<'a> {
    /// First page and run.
    pub fn zero_runs(&self) -> impl Iterator<Item = (PageId, u32)> + 'a {
        self.zero_pages.steps().map(PageId).zip(self.zero_runs.numbers())
    }

    pub fn wholes(&self) -> impl Iterator<Item = (PageId, &'a PageBytes)> + 'a {
        self.whole_pages.steps().map(PageId).zip(self.packed.iter().chain(self.plain))
    }

    /// Page, base and delta.
    pub fn deltas(&self) -> impl Iterator<Item = (PageId, ChunkSeq, &'a [u8])> + 'a {
        let mut left = self.delta_bytes;
        self.deltas.iter().map(move |(page, base, len)| {
            let (delta, rest) = left.split_at_checked(len.into()).unwrap_or((&[], &[]));
            left = rest;
            (page, base, delta)
        })
    }

    /// Page, the chunk that stored its content, the slot.
    pub fn refs(&self) -> impl Iterator<Item = (PageId, ChunkSeq, u16)> + 'a {
        self.refs.iter()
    }

    /// What goes into which slot of the dictionary.
    pub fn stores(&self) -> impl Iterator<Item = (u16, &'a PageBytes)> + 'a {
        let (packed, plain) = (self.packed, self.plain);
        let content = move |index: usize| packed.get(index).or_else(|| plain.get(index - packed.len()));
        self.stored
            .numbers()
            .zip(self.stored_in.numbers())
            .filter_map(move |(index, slot)| Some((slot, content(index.into())?)))
    }

    /// Pages the records speak of.
    pub fn count(&self) -> u64 {
        let others = self.whole_pages.len() + self.deltas.pages.len() + self.refs.pages.len();
        self.zero_runs.numbers().map(u64::from).sum::<u64>() + others as u64
    }
}

impl<'a> Contents<'a> {
    fn take(rest: &mut &'a [u8], count: usize) -> Option<Self> {
        Some(Contents {
            pages: Column::take(rest, count)?,
            seqs: Column::take(rest, count)?,
            numbers: Column::take(rest, count)?,
        })
    }

    fn iter(self) -> impl Iterator<Item = (PageId, ChunkSeq, u16)> + 'a {
        let pages = self.pages.steps().map(PageId);
        let seqs = self.seqs.steps().map(ChunkSeq);
        pages.zip(seqs).zip(self.numbers.numbers()).map(|((page, seq), number)| (page, seq, number))
    }
}

/// Decompresses and checks a payload whose body may be `max_body_bytes` long, what stands plain included.
pub fn decode<'a>(
    payload: &'a [u8],
    max_body_bytes: usize,
    scratch: &'a mut DecodeScratch,
) -> Result<Decoded<'a>, DecodeError> {
    let Some((header, rest)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(DecodeError::Short(payload.len()));
    };
    let [version, kind, compression, reserved, l0, l1, l2, l3, words @ ..] = *header;
    if version != FORMAT_VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = Kind::of(kind).ok_or(DecodeError::Kind(kind))?;
    if reserved != 0 {
        return Err(DecodeError::Reserved);
    }
    let counts = Counts::of(words);
    let plain_bytes = if kind == Kind::Pages { counts.plain * PAGE_BYTES } else { 0 };
    let raw_len = u32::from_le_bytes([l0, l1, l2, l3]);
    let body_bytes = match usize::try_from(raw_len) {
        Ok(bytes) if bytes.saturating_add(plain_bytes) <= max_body_bytes => bytes,
        _ => {
            let raw_len = u64::from(raw_len) + plain_bytes as u64;
            return Err(DecodeError::TooLarge { raw_len, limit: max_body_bytes });
        }
    };
    let packed_bytes = rest.len().checked_sub(plain_bytes).ok_or(DecodeError::Length)?;
    let (packed, plain) = rest.split_at_checked(packed_bytes).ok_or(DecodeError::Length)?;
    let body = match compression {
        COMPRESSION_STORED if packed.len() == body_bytes => packed,
        COMPRESSION_STORED => return Err(DecodeError::Length),
        COMPRESSION_LZ4 => scratch.lz4(packed, body_bytes)?,
        COMPRESSION_ZSTD => scratch.zstd(packed, body_bytes)?,
        other => return Err(DecodeError::Compression(other)),
    };
    match (kind, words) {
        (Kind::Pages, _) => pages(&counts, body, plain.as_chunks().0).map(Decoded::Pages),
        (Kind::Opaque | Kind::Raw | Kind::Tail, [o0, o1, o2, o3, o4, o5, o6, o7, 0, 0, 0, 0]) => {
            let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
            Ok(Decoded::Stream { kind, offset, bytes: body })
        }
        (Kind::Opaque | Kind::Raw | Kind::Tail, _) => Err(DecodeError::Reserved),
    }
}

impl DecodeScratch {
    fn lz4(&mut self, packed: &[u8], body_bytes: usize) -> Result<&[u8], DecodeError> {
        let out = room(&mut self.body, body_bytes)?;
        match lz4_flex::block::decompress_into(packed, out) {
            Ok(len) if len == body_bytes => Ok(out),
            Ok(_) => Err(DecodeError::Length),
            Err(_) => Err(DecodeError::Corrupt),
        }
    }

    /// One frame that says how long its content is. Decompressed in one piece, so that no window is allocated, however large the frame
    /// wants it.
    fn zstd(&mut self, packed: &[u8], body_bytes: usize) -> Result<&[u8], DecodeError> {
        match zstd_safe::get_frame_content_size(packed) {
            Ok(Some(bytes)) if bytes == body_bytes as u64 => {}
            Ok(_) => return Err(DecodeError::Length),
            Err(_) => return Err(DecodeError::Corrupt),
        }
        if zstd_safe::find_frame_compressed_size(packed) != Ok(packed.len()) {
            return Err(DecodeError::Corrupt);
        }
        let out = room(&mut self.body, body_bytes)?;
        match self.zstd.get_or_insert_default().decompress(out, packed) {
            Ok(len) if len == body_bytes => Ok(out),
            Ok(_) => Err(DecodeError::Length),
            Err(_) => Err(DecodeError::Corrupt),
        }
    }
}

/// The first `bytes` of `body`, which grows to exactly so much if it is shorter.
fn room(body: &mut Vec<u8>, bytes: usize) -> Result<&mut [u8], DecodeError> {
    if let Some(more) = bytes.checked_sub(body.len()) {
        body.reserve_exact(more);
        body.resize(bytes, 0);
    }
    body.get_mut(..bytes).ok_or(DecodeError::Length)
}

/// How many records of each kind.
struct Counts {
    zero_runs: usize,
    wholes: usize,
    deltas: usize,
    plain: usize,
    refs: usize,
    stores: usize,
}

impl Counts {
    fn of(words: [u8; 12]) -> Self {
        let [z0, z1, w0, w1, d0, d1, p0, p1, r0, r1, s0, s1] = words;
        let count = |low, high| usize::from(u16::from_le_bytes([low, high]));
        Counts {
            zero_runs: count(z0, z1),
            wholes: count(w0, w1),
            deltas: count(d0, d1),
            plain: count(p0, p1),
            refs: count(r0, r1),
            stores: count(s0, s1),
        }
    }
}

fn pages<'a>(counts: &Counts, body: &'a [u8], plain: &'a [PageBytes]) -> Result<Pages<'a>, DecodeError> {
    let pages = split(counts, body, plain).ok_or(DecodeError::Length)?;
    for (page, run) in pages.zero_runs() {
        if run == 0 || page.0.checked_add(run).is_none() {
            return Err(DecodeError::ZeroRun(page.0));
        }
    }
    let delta_bytes: usize = pages.deltas.numbers.numbers().map(usize::from).sum();
    if delta_bytes != pages.delta_bytes.len() {
        return Err(DecodeError::Length);
    }
    for (page, _, delta) in pages.deltas() {
        xbzrle::check(delta).map_err(|why| DecodeError::Delta { page: page.0, why })?;
    }
    let (wholes, stores) = (pages.whole_pages.len(), pages.stored.len());
    // Each is compared with what the slot holds: no more work than the chunk has bytes.
    if stores > wholes {
        return Err(DecodeError::Stores { stores, wholes });
    }
    if let Some(index) = pages.stored.numbers().find(|index| usize::from(*index) >= wholes) {
        return Err(DecodeError::Store { index, wholes });
    }
    Ok(pages)
}

fn split<'a>(counts: &Counts, body: &'a [u8], plain: &'a [PageBytes]) -> Option<Pages<'a>> {
    let mut rest = body;
    let zero_pages = Column::take(&mut rest, counts.zero_runs)?;
    let zero_runs = Column::take(&mut rest, counts.zero_runs)?;
    let whole_pages = Column::take(&mut rest, counts.wholes + counts.plain)?;
    let deltas = Contents::take(&mut rest, counts.deltas)?;
    let refs = Contents::take(&mut rest, counts.refs)?;
    let stored = Column::take(&mut rest, counts.stores)?;
    let stored_in = Column::take(&mut rest, counts.stores)?;
    let (packed, delta_bytes) = rest.split_at_checked(counts.wholes * PAGE_BYTES)?;
    let packed = packed.as_chunks().0;
    Some(Pages {
        zero_pages,
        zero_runs,
        whole_pages,
        deltas,
        refs,
        stored,
        stored_in,
        packed,
        delta_bytes,
        plain,
    })
}
