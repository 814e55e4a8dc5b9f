//! Building payloads.

use std::sync::Arc;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::codec::{COMPRESSION_LZ4, COMPRESSION_STORED, FORMAT_VERSION, HEADER_BYTES, Kind};
use crate::types::{ChunkSeq, PageBytes, PageId};

/// The records of a pages chunk being built. `zero_runs`, `wholes` and `deltas` hold at most `u16::MAX` entries each.
#[derive(Debug)]
pub(crate) struct PagesBody<'a> {
    pub zero_runs: &'a [(PageId, u32)],
    pub wholes: &'a [(PageId, &'a PageBytes)],
    /// Page, base, length of the delta; the deltas themselves follow one another in `delta_bytes`.
    pub deltas: &'a [(PageId, ChunkSeq, u16)],
    pub delta_bytes: &'a [u8],
}

impl PagesBody<'_> {
    /// Writes header and body, uncompressed, to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let counts = [count(self.zero_runs.len()), count(self.wholes.len()), count(self.deltas.len()), 0];
        let mut words = [0; 8];
        for (word, count) in words.as_chunks_mut::<2>().0.iter_mut().zip(counts) {
            *word = count.to_le_bytes();
        }
        header(out, Kind::Pages, words);
        for (page, run) in self.zero_runs {
            out.extend_from_slice(&page.0.to_le_bytes());
            out.extend_from_slice(&run.to_le_bytes());
        }
        for (page, _) in self.wholes {
            out.extend_from_slice(&page.0.to_le_bytes());
        }
        for (page, base, len) in self.deltas {
            out.extend_from_slice(&page.0.to_le_bytes());
            out.extend_from_slice(&base.0.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        for (_, bytes) in self.wholes {
            out.extend_from_slice(&bytes[..]);
        }
        out.extend_from_slice(self.delta_bytes);
    }
}

/// Writes header and body of a piece of a stream, uncompressed, to `out`.
pub(crate) fn stream_body(out: &mut Vec<u8>, kind: Kind, offset: u64, bytes: &[u8]) {
    header(out, kind, offset.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Compresses what [`PagesBody::write`] or [`stream_body`] wrote, where that saves at least `min_saving_permille`, and completes
/// the header. `compressed` is working space.
pub(crate) fn finish(
    written: &mut [u8],
    compressed: &mut Vec<u8>,
    table: &mut CompressTable,
    min_saving_permille: u32,
) -> Arc<[u8]> {
    let (header, body) = written.split_at_mut(HEADER_BYTES);
    let raw_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    header[4..8].copy_from_slice(&raw_len.to_le_bytes());

    let room = HEADER_BYTES + get_maximum_output_size(body.len());
    if compressed.len() < room {
        compressed.resize(room, 0);
    }
    let packed = compress_into_with_table(body, &mut compressed[HEADER_BYTES..], table).ok();
    let worth_it =
        |len: usize| (body.len() - len) as u64 * 1000 >= body.len() as u64 * u64::from(min_saving_permille);
    match packed {
        Some(len) if len < body.len() && worth_it(len) => {
            header[2] = COMPRESSION_LZ4;
            compressed[..HEADER_BYTES].copy_from_slice(header);
            Arc::from(&compressed[..HEADER_BYTES + len])
        }
        _ => {
            header[2] = COMPRESSION_STORED;
            Arc::from(&*written)
        }
    }
}

/// Compression and length come with [`finish`].
fn header(out: &mut Vec<u8>, kind: Kind, word: [u8; 8]) {
    out.clear();
    out.extend_from_slice(&[FORMAT_VERSION, kind as u8, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&word);
}

fn count(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX));
    u16::try_from(len).unwrap_or(u16::MAX)
}
