//! The payload of a chunk: what is inside a sealed frame. `docs/wire-format.md`, section "Chunk payload", has the same table.
//!
//! Integers are little-endian. A payload is a header of 16 bytes and a body, compressed as one block or stored.
//!
//! | at | size | field |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | kind: 1 pages, 2 opaque, 3 raw, 4 tail |
//! | 2 | 1 | compression of the body: 0 stored, 1 LZ4 block |
//! | 3 | 1 | 0 |
//! | 4 | 4 | length of the body before compression |
//! | 8 | 8 | pages: u16 zero runs, u16 whole pages, u16 deltas, u16 0. Otherwise: offset of the body in its stream |
//!
//! The body of a pages chunk is, without gaps: zero runs `{u32 page, u32 run}`, whole pages `{u32 page}`, deltas
//! `{u32 page, u32 base, u16 length}`, then the whole pages' 4096 bytes each, then the deltas' bytes. The records stand apart from
//! the bodies so that both compress well and neither needs a length. A page occurs once in a chunk at most, so
//! the order of records means nothing. The body of every other kind is bytes of the stream.
//!
//! Decoding is for hostile bytes: each length is checked against a limit before anything is allocated, and every delta
//! is one QEMU's decoder accepts.

mod decode;
mod encode;
pub mod xbzrle;

pub use decode::{DecodeError, DecodeScratch, Decoded, Pages, decode};
pub(crate) use encode::{PagesBody, finish, stream_body};

use crate::types::{PAGE_BYTES, PageBytes};

/// The version of this format.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes of a payload's header.
pub const HEADER_BYTES: usize = 16;

const ZERO_RUN_BYTES: usize = 8;
const WHOLE_BYTES: usize = 4;
const DELTA_BYTES: usize = 10;

const COMPRESSION_STORED: u8 = 0;
const COMPRESSION_LZ4: u8 = 1;

/// What a chunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Pages, in any order.
    Pages = 1,
    /// Stream bytes before the end of RAM.
    Opaque = 2,
    /// Stream bytes relayed without being understood.
    Raw = 3,
    /// Stream bytes after the end of RAM.
    Tail = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Pages),
            2 => Some(Kind::Opaque),
            3 => Some(Kind::Raw),
            4 => Some(Kind::Tail),
            _ => None,
        }
    }
}

/// Whether a page is all zero. Leaves at the first difference in 64 bytes.
pub fn is_zero(page: &PageBytes) -> bool {
    const LINE_BYTES: usize = 64;
    const { assert!(PAGE_BYTES.is_multiple_of(LINE_BYTES)) };
    page.as_chunks::<LINE_BYTES>().0.iter().all(|line| line.iter().fold(0, |or, byte| or | byte) == 0)
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::CompressTable;

    use super::*;
    use crate::types::{ChunkSeq, PageId};

    fn finished(mut written: Vec<u8>) -> Vec<u8> {
        finish(&mut written, &mut Vec::new(), &mut CompressTable::large(), 30).to_vec()
    }

    /// Bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut x = 1u64;
        std::iter::repeat_with(|| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn the_bytes_of_a_stream_chunk() {
        let mut written = Vec::new();
        stream_body(&mut written, Kind::Tail, 0x0102_0304_0506, b"hikyaku");
        assert_eq!(finished(written), b"\x01\x04\0\0\x07\0\0\0\x06\x05\x04\x03\x02\x01\0\0hikyaku");
    }

    #[test]
    fn the_bytes_of_a_pages_chunk() {
        let page: PageBytes = noise(PAGE_BYTES).try_into().unwrap();
        let body = PagesBody {
            zero_runs: &[(PageId(0x10), 0x0203), (PageId(0x0400_0000), 1)],
            wholes: &[(PageId(0xa1a2a3a4), &page)],
            deltas: &[(PageId(7), ChunkSeq(0x0506_0708), 3)],
            delta_bytes: &[0, 1, 0xee],
        };
        let mut written = Vec::new();
        body.write(&mut written);
        let payload = finished(written);
        #[rustfmt::skip]
        let records = [
            1, 1, 0, 0,  0x21, 0x10, 0, 0,  2, 0, 1, 0, 1, 0, 0, 0,
            0x10, 0, 0, 0, 0x03, 0x02, 0, 0,
            0, 0, 0, 4, 1, 0, 0, 0,
            0xa4, 0xa3, 0xa2, 0xa1,
            7, 0, 0, 0, 8, 7, 6, 5, 3, 0,
        ];
        assert_eq!(payload[..records.len()], records);
        assert_eq!(payload[records.len()..][..PAGE_BYTES], page);
        assert_eq!(payload[records.len() + PAGE_BYTES..], [0, 1, 0xee]);

        let mut scratch = DecodeScratch::default();
        let Ok(Decoded::Pages(pages)) = decode(&payload, 1 << 20, &mut scratch) else {
            panic!("not decoded as pages");
        };
        assert_eq!(pages.zero_runs().collect::<Vec<_>>(), body.zero_runs);
        assert_eq!(pages.wholes().collect::<Vec<_>>(), body.wholes);
        assert_eq!(
            pages.deltas().collect::<Vec<_>>(),
            [(PageId(7), ChunkSeq(0x0506_0708), &[0, 1, 0xee][..])]
        );
        assert_eq!(pages.count(), 0x0204 + 2);
    }

    #[test]
    fn what_compresses_is_compressed_and_comes_back() {
        let text = b"hikyaku ran from Edo to Kyoto; ".repeat(3000);
        for (bytes, compression) in [(text, COMPRESSION_LZ4), (noise(90_000), COMPRESSION_STORED)] {
            let mut written = Vec::new();
            stream_body(&mut written, Kind::Raw, 5, &bytes);
            let payload = finished(written);
            assert_eq!(payload[2], compression);
            assert!(payload.len() <= HEADER_BYTES + bytes.len());
            assert_eq!(payload.len() < bytes.len() / 10, compression == COMPRESSION_LZ4);
            let mut scratch = DecodeScratch::default();
            match decode(&payload, bytes.len(), &mut scratch) {
                Ok(Decoded::Stream { kind: Kind::Raw, offset: 5, bytes: decoded }) => {
                    assert!(decoded == bytes)
                }
                other => panic!("{other:?}"),
            }
            let error = decode(&payload, bytes.len() - 1, &mut scratch).unwrap_err();
            assert_eq!(error, DecodeError::TooLarge { raw_len: bytes.len() as u64, limit: bytes.len() - 1 });
        }
    }

    #[test]
    fn a_zero_page_is_one_without_any_other_byte() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in [0, 63, 64, 2000, PAGE_BYTES - 1] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }
}
