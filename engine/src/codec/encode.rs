//! Building payloads.

use std::sync::Arc;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd_safe::zstd_sys::ZSTD_strategy as Strategy;
use zstd_safe::{CCtx, CParameter, ParamSwitch, SafeResult};

use crate::codec::{FORMAT_VERSION, HEADER_BYTES, Kind, Method, columns};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// 4096 positions.
const LZ4_TABLE_BYTES: usize = 16 << 10;

/// Of zstd: as large as the largest chunk a source makes.
const WINDOW_LOG: u32 = 18;

/// The records of a pages chunk to be built. No list may have more than `u16::MAX` entries. Records whose pages rise shrink best.
#[derive(Debug, Clone, Copy, Default)]
pub struct PagesBody<'a> {
    /// First page and run.
    pub zero_runs: &'a [(PageId, u32)],
    /// Whole pages worth compressing.
    pub wholes: &'a [(PageId, &'a PageBytes)],
    /// Whole pages that are not: they stand uncompressed behind the rest.
    pub plain: &'a [(PageId, &'a PageBytes)],
    /// Page, base, length of the delta; the deltas themselves follow one another in `delta_bytes`.
    pub deltas: &'a [(PageId, ChunkSeq, u16)],
    pub delta_bytes: &'a [u8],
    /// Page, the chunk that stored its content, the slot.
    pub refs: &'a [(PageId, ChunkSeq, u16)],
    /// Which whole page, counted over `wholes` and then `plain`, goes into which slot of the dictionary. No slot twice, unless with the
    /// same content.
    pub stores: &'a [(u16, u16)],
}

/// A payload.
#[derive(Debug, Clone)]
pub struct Packed {
    pub payload: Arc<[u8]>,
    /// How the body was compressed in the end: [`Method::Stored`] where the method that was asked for did not pay.
    pub method: Method,
    /// Bytes there were to compress: what stands plain does not count.
    pub body_bytes: usize,
    /// What became of them.
    pub packed_bytes: usize,
}

/// Builds payloads. Kept between chunks: it holds the tables of the compressors and the memory they write to.
pub struct Encoder {
    /// A header to be, and what there is to compress.
    body: Vec<u8>,
    /// The same compressed. As long as it ever was: clearing it for each chunk would be felt.
    out: Vec<u8>,
    lz4: CompressTable,
    zstd: Zstd,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder { body: Vec::new(), out: Vec::new(), lz4: CompressTable::large(), zstd: Zstd::default() }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("memory_bytes", &self.memory_bytes()).finish_non_exhaustive()
    }
}

impl Encoder {
    /// The payload of a pages chunk, compressed with `method` if that saves `min_saving_permille` of what there is to
    /// compress.
    pub fn pages(&mut self, pages: &PagesBody<'_>, method: Method, min_saving_permille: u32) -> Packed {
        let counts = [
            pages.zero_runs.len(),
            pages.wholes.len(),
            pages.deltas.len(),
            pages.plain.len(),
            pages.refs.len(),
            pages.stores.len(),
        ];
        let mut words = [0; 12];
        for (word, count) in words.as_chunks_mut().0.iter_mut().zip(counts) {
            debug_assert!(count <= usize::from(u16::MAX));
            *word = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
        }
        self.body.clear();
        self.body.extend([0; HEADER_BYTES]);
        pages.write(&mut self.body);
        self.finish(Kind::Pages, words, pages.plain, method, min_saving_permille)
    }

    /// The payload of a piece of a stream that begins at `offset`, likewise.
    pub fn stream(
        &mut self,
        kind: Kind,
        offset: u64,
        bytes: &[u8],
        method: Method,
        min_saving_permille: u32,
    ) -> Packed {
        debug_assert!(kind != Kind::Pages);
        let mut words = [0; 12];
        words[..8].copy_from_slice(&offset.to_le_bytes());
        self.body.clear();
        self.body.extend([0; HEADER_BYTES]);
        self.body.extend_from_slice(bytes);
        self.finish(kind, words, &[], method, min_saving_permille)
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let zstd = self.zstd.context.as_ref().map_or(0, CCtx::sizeof);
        self.body.capacity() + self.out.capacity() + LZ4_TABLE_BYTES + zstd
    }

    /// Compresses the body if that pays, and puts header and plain pages to it.
    fn finish(
        &mut self,
        kind: Kind,
        words: [u8; 12],
        plain: &[(PageId, &PageBytes)],
        method: Method,
        min_saving_permille: u32,
    ) -> Packed {
        let body_bytes = self.body.len() - HEADER_BYTES;
        let plain_bytes = plain.len() * PAGE_BYTES;
        let header = |method: Method| {
            let mut header = [0; HEADER_BYTES];
            header[..4].copy_from_slice(&[FORMAT_VERSION, kind as u8, method.code(), 0]);
            header[4..8].copy_from_slice(&u32::try_from(body_bytes).unwrap_or(u32::MAX).to_le_bytes());
            header[8..].copy_from_slice(&words);
            header
        };
        let packed = self.compress(plain_bytes, method);
        match packed.filter(|packed_bytes| pays(body_bytes, *packed_bytes, min_saving_permille)) {
            Some(packed_bytes) => {
                let end = HEADER_BYTES + packed_bytes;
                self.out[..HEADER_BYTES].copy_from_slice(&header(method));
                let targets = self.out[end..].as_chunks_mut::<PAGE_BYTES>().0;
                for (target, (_, page)) in targets.iter_mut().zip(plain) {
                    *target = **page;
                }
                let payload = Arc::from(&self.out[..end + plain_bytes]);
                Packed { payload, method, body_bytes, packed_bytes }
            }
            None => {
                self.body[..HEADER_BYTES].copy_from_slice(&header(Method::Stored));
                for (_, page) in plain {
                    self.body.extend_from_slice(&page[..]);
                }
                let payload = Arc::from(&self.body[..]);
                Packed { payload, method: Method::Stored, body_bytes, packed_bytes: body_bytes }
            }
        }
    }

    /// Compresses the body to where it stands in a payload, with room for plain pages behind it; its length there.
    fn compress(&mut self, plain_bytes: usize, method: Method) -> Option<usize> {
        if method == Method::Stored {
            return None;
        }
        let body = self.body.get(HEADER_BYTES..)?;
        let room = HEADER_BYTES + bound(body.len()) + plain_bytes;
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let out = self.out.get_mut(HEADER_BYTES..)?;
        match method {
            Method::Stored => None,
            Method::Lz4 => compress_into_with_table(body, out, &mut self.lz4).ok(),
            Method::Zstd(level) => self.zstd.compress(body, out, level).ok(),
        }
    }
}

#[derive(Default)]
struct Zstd {
    /// Made for the first chunk that asks for it.
    context: Option<CCtx<'static>>,
    /// What it is set to; 0 = nothing.
    level: i8,
}

impl Zstd {
    fn compress(&mut self, body: &[u8], out: &mut [u8], level: i8) -> SafeResult {
        let context = self.context.get_or_insert_default();
        if self.level != level {
            self.level = 0;
            for parameter in parameters(level) {
                context.set_parameter(parameter)?;
            }
            self.level = level;
        }
        context.compress2(out, body)
    }
}

/// What the levels are. Not zstd's own of these numbers: those change with the length of what is compressed, at 128 KiB of all lengths, beyond
/// which its level 3 makes more of text than its level 1 does. `cargo lab bench pipeline` shows what they cost and save.
fn parameters(level: i8) -> [CParameter; 8] {
    // With a target length zstd's fastest search goes ahead in steps of it, and would leave literals as they are.
    let (strategy, hash_log, chain_log, search_log, min_match, target_length) = match level {
        ..=-2 => (Strategy::ZSTD_fast, 13, 14, 1, 7, 8),
        -1 => (Strategy::ZSTD_fast, 13, 14, 1, 7, 2),
        0 | 1 => (Strategy::ZSTD_fast, 14, 14, 1, 5, 0),
        2 => (Strategy::ZSTD_dfast, 15, 14, 1, 5, 0),
        3.. => (Strategy::ZSTD_lazy, 15, 15, 2, 5, 0),
    };
    [
        CParameter::Strategy(strategy),
        CParameter::WindowLog(WINDOW_LOG),
        CParameter::HashLog(hash_log),
        CParameter::ChainLog(chain_log),
        CParameter::SearchLog(search_log),
        CParameter::MinMatch(min_match),
        CParameter::TargetLength(target_length),
        CParameter::LiteralCompressionMode(ParamSwitch::Enable),
    ]
}

impl PagesBody<'_> {
    /// Appends what is to be compressed.
    fn write(&self, out: &mut Vec<u8>) {
        columns::put_steps(out, self.zero_runs.iter().map(|(page, _)| page.0));
        columns::put(out, self.zero_runs.iter().map(|(_, run)| run.to_le_bytes()));
        let whole = |at: usize| self.wholes.get(at).or_else(|| self.plain.get(at - self.wholes.len()));
        let all = 0..self.wholes.len() + self.plain.len();
        columns::put_steps(out, all.map(|at| whole(at).map_or(0, |(page, _)| page.0)));
        for of_content in [self.deltas, self.refs] {
            columns::put_steps(out, of_content.iter().map(|(page, _, _)| page.0));
            columns::put_steps(out, of_content.iter().map(|(_, seq, _)| seq.0));
            columns::put(out, of_content.iter().map(|(_, _, number)| number.to_le_bytes()));
        }
        columns::put(out, self.stores.iter().map(|(index, _)| index.to_le_bytes()));
        columns::put(out, self.stores.iter().map(|(_, slot)| slot.to_le_bytes()));
        for (_, bytes) in self.wholes {
            out.extend_from_slice(&bytes[..]);
        }
        out.extend_from_slice(self.delta_bytes);
    }
}

fn pays(body_bytes: usize, packed_bytes: usize, min_saving_permille: u32) -> bool {
    packed_bytes < body_bytes
        && (body_bytes - packed_bytes) as u64 * 1000 >= body_bytes as u64 * u64::from(min_saving_permille)
}

/// The most bytes any method makes of so many.
fn bound(body_bytes: usize) -> usize {
    get_maximum_output_size(body_bytes).max(zstd_safe::compress_bound(body_bytes))
}
