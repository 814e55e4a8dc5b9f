//! Reading payloads that anyone may have written.

use crate::codec::xbzrle::{self, BadDelta};
use crate::codec::{
    COMPRESSION_LZ4, COMPRESSION_STORED, DELTA_BYTES, FORMAT_VERSION, HEADER_BYTES, Kind, WHOLE_BYTES,
    ZERO_RUN_BYTES,
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
}

/// Working space of [`decode`], kept between chunks.
#[derive(Debug, Default)]
pub struct DecodeScratch {
    body: Vec<u8>,
}

impl DecodeScratch {
    pub(crate) fn memory_bytes(&self) -> usize {
        self.body.capacity()
    }
}

/// A payload, decompressed and checked.
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

/// The records of a pages chunk. Every run is at least 1 and ends below 2^32, every delta is valid XBZRLE; page numbers and bases
/// are not checked here.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    zero_runs: &'a [[u8; ZERO_RUN_BYTES]],
    wholes: &'a [[u8; WHOLE_BYTES]],
    deltas: &'a [[u8; DELTA_BYTES]],
    bodies: &'a [PageBytes],
    delta_bytes: &'a [u8],
}

impl<'a> Pages<'a> {
    pub fn zero_runs(&self) -> impl Iterator<Item = (PageId, u32)> + 'a {
        self.zero_runs.iter().map(|[p0, p1, p2, p3, r0, r1, r2, r3]| {
            (PageId(u32::from_le_bytes([*p0, *p1, *p2, *p3])), u32::from_le_bytes([*r0, *r1, *r2, *r3]))
        })
    }

    pub fn wholes(&self) -> impl Iterator<Item = (PageId, &'a PageBytes)> + 'a {
        self.wholes.iter().map(|page| PageId(u32::from_le_bytes(*page))).zip(self.bodies)
    }

    /// Page, base and delta.
    pub fn deltas(&self) -> impl Iterator<Item = (PageId, ChunkSeq, &'a [u8])> + 'a {
        let mut left = self.delta_bytes;
        self.deltas.iter().map(move |record| {
            let (page, base, len) = delta_record(record);
            let (delta, rest) = left.split_at_checked(len).unwrap_or((&[], &[]));
            left = rest;
            (page, base, delta)
        })
    }

    /// Pages the records speak of.
    pub fn count(&self) -> u64 {
        self.zero_runs().map(|(_, run)| u64::from(run)).sum::<u64>()
            + self.wholes.len() as u64
            + self.deltas.len() as u64
    }
}

/// Decompresses and checks a payload whose body may be `max_body_bytes` long.
pub fn decode<'a>(
    payload: &'a [u8],
    max_body_bytes: usize,
    scratch: &'a mut DecodeScratch,
) -> Result<Decoded<'a>, DecodeError> {
    let Some((header, packed)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(DecodeError::Short(payload.len()));
    };
    let [version, kind, compression, reserved, l0, l1, l2, l3, word @ ..] = *header;
    if version != FORMAT_VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = Kind::of(kind).ok_or(DecodeError::Kind(kind))?;
    if reserved != 0 {
        return Err(DecodeError::Reserved);
    }
    let raw_len = u32::from_le_bytes([l0, l1, l2, l3]);
    let raw_bytes = match usize::try_from(raw_len) {
        Ok(bytes) if bytes <= max_body_bytes => bytes,
        _ => return Err(DecodeError::TooLarge { raw_len: raw_len.into(), limit: max_body_bytes }),
    };
    let body = match compression {
        COMPRESSION_STORED if packed.len() == raw_bytes => packed,
        COMPRESSION_STORED => return Err(DecodeError::Length),
        COMPRESSION_LZ4 => decompress(packed, raw_bytes, scratch)?,
        other => return Err(DecodeError::Compression(other)),
    };
    match kind {
        Kind::Pages => pages(word, body).map(Decoded::Pages),
        Kind::Opaque | Kind::Raw | Kind::Tail => {
            Ok(Decoded::Stream { kind, offset: u64::from_le_bytes(word), bytes: body })
        }
    }
}

fn decompress<'a>(
    packed: &[u8],
    raw_bytes: usize,
    scratch: &'a mut DecodeScratch,
) -> Result<&'a [u8], DecodeError> {
    if scratch.body.len() < raw_bytes {
        scratch.body.resize(raw_bytes, 0);
    }
    let out = scratch.body.get_mut(..raw_bytes).ok_or(DecodeError::Length)?;
    match lz4_flex::block::decompress_into(packed, out) {
        Ok(len) if len == raw_bytes => Ok(out),
        Ok(_) => Err(DecodeError::Length),
        Err(_) => Err(DecodeError::Corrupt),
    }
}

fn pages(word: [u8; 8], body: &[u8]) -> Result<Pages<'_>, DecodeError> {
    let [z0, z1, w0, w1, d0, d1, 0, 0] = word else {
        return Err(DecodeError::Reserved);
    };
    let count = |low, high| usize::from(u16::from_le_bytes([low, high]));
    let (zero_runs, wholes, deltas) = (count(z0, z1), count(w0, w1), count(d0, d1));

    let mut rest = body;
    let pages = Pages {
        zero_runs: split(&mut rest, zero_runs * ZERO_RUN_BYTES)?.as_chunks().0,
        wholes: split(&mut rest, wholes * WHOLE_BYTES)?.as_chunks().0,
        deltas: split(&mut rest, deltas * DELTA_BYTES)?.as_chunks().0,
        bodies: split(&mut rest, wholes * PAGE_BYTES)?.as_chunks().0,
        delta_bytes: rest,
    };

    for (page, run) in pages.zero_runs() {
        if run == 0 || page.0.checked_add(run).is_none() {
            return Err(DecodeError::ZeroRun(page.0));
        }
    }
    let delta_bytes: usize = pages.deltas.iter().map(|record| delta_record(record).2).sum();
    if delta_bytes != pages.delta_bytes.len() {
        return Err(DecodeError::Length);
    }
    for (page, _, delta) in pages.deltas() {
        xbzrle::check(delta).map_err(|why| DecodeError::Delta { page: page.0, why })?;
    }
    Ok(pages)
}

/// Takes `len` bytes off the front of `rest`.
fn split<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (head, tail) = rest.split_at_checked(len).ok_or(DecodeError::Length)?;
    *rest = tail;
    Ok(head)
}

fn delta_record(record: &[u8; DELTA_BYTES]) -> (PageId, ChunkSeq, usize) {
    let [p0, p1, p2, p3, b0, b1, b2, b3, l0, l1] = *record;
    (
        PageId(u32::from_le_bytes([p0, p1, p2, p3])),
        ChunkSeq(u32::from_le_bytes([b0, b1, b2, b3])),
        usize::from(u16::from_le_bytes([l0, l1])),
    )
}
