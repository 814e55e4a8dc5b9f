//! The payload of a chunk: what is inside a sealed frame. `docs/wire-format.md`, section "Chunk payload", has the same table.
//!
//! Integers are little-endian. A payload is a header of 20 bytes; a body, compressed as one block or stored; and, in a pages chunk, whole
//! pages of which it was plain that they do not compress.
//!
//! | at | size | field |
//! |---|---|---|
//! | 0 | 1 | format version, 2 |
//! | 1 | 1 | kind: 1 pages, 2 opaque, 3 raw, 4 tail |
//! | 2 | 1 | compression of the body: 0 stored, 1 LZ4 block, 2 zstd frame |
//! | 3 | 1 | 0 |
//! | 4 | 4 | length of the body before compression |
//! | 8 | 12 | pages: u16 zero runs `z`, u16 whole pages `w` in the body, u16 deltas `d`, u16 plain pages `p` behind it, u16 references `r`, u16 stores `s`. Otherwise: u64 offset of the body in its stream, u32 0 |
//!
//! The body of a pages chunk is, without gaps: the columns of the records, the 4096 bytes of each of the `w` whole pages, the bytes of the
//! deltas. The columns, one after the other:
//!
//! | records | columns |
//! |---|---|
//! | `z` zero runs | page, u32 run |
//! | `w + p` whole pages | page |
//! | `d` deltas | page, base, u16 length |
//! | `r` references | page, chunk that stored the content, u16 slot |
//! | `s` stores | u16 index of the whole page, u16 slot |
//!
//! A column has the lowest bytes of all its values first, then all second bytes, and so on. Pages, bases and chunks are written as the
//! difference `n` to the one before, the first to 0, modulo 2^32, as `n << 1 ^ n >> 31` (a small number for a small difference of either sign). The
//! body of every other kind is bytes of the stream.
//!
//! A page occurs once in a chunk at most, so the order of records means nothing. The bodies stand apart from the records so that both
//! compress well.
//!
//! Decoding is for hostile bytes: each length is checked against a limit before anything is allocated, and every delta
//! is one QEMU's decoder accepts.
//!
//! | file | what it holds |
//! |---|---|
//! | `encode`, `decode` | payloads, to and fro |
//! | `columns` | records, so that they shrink |
//! | `sample` | whether it is worth trying to compress a page |
//! | `choice` | which method a chunk is compressed with |
//! | `xbzrle` | deltas |
//! | `page_pack`, `marks` | a page, made smaller to be kept; what tells where it changed, kept instead |

pub mod choice;
mod columns;
mod decode;
mod encode;
pub mod marks;
pub mod page_pack;
mod sample;
pub mod xbzrle;

pub use decode::{DecodeError, DecodeScratch, Decoded, Pages, decode};
pub use encode::{Encoder, Packed, PagesBody};
pub use sample::looks_compressible;

use crate::types::{PAGE_BYTES, PageBytes};

/// The version of this format.
pub const FORMAT_VERSION: u8 = 2;
/// Bytes of a payload's header.
pub const HEADER_BYTES: usize = 20;

const COMPRESSION_STORED: u8 = 0;
const COMPRESSION_LZ4: u8 = 1;
const COMPRESSION_ZSTD: u8 = 2;

/// How a chunk's body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Stored,
    Lz4,
    /// At one of this crate's levels, [`Method::ZSTD_LEVELS`].
    Zstd(i8),
}

impl Method {
    /// Those below 0 are fast. A denser one would take far more time than its bytes are worth.
    pub const ZSTD_LEVELS: [i8; 5] = [-2, -1, 1, 2, 3];
    /// All there are, the least dense first; of most contents the fastest first.
    pub const ALL: [Method; 7] = [
        Method::Stored,
        Method::Lz4,
        Method::Zstd(-2),
        Method::Zstd(-1),
        Method::Zstd(1),
        Method::Zstd(2),
        Method::Zstd(3),
    ];

    fn code(self) -> u8 {
        match self {
            Method::Stored => COMPRESSION_STORED,
            Method::Lz4 => COMPRESSION_LZ4,
            Method::Zstd(_) => COMPRESSION_ZSTD,
        }
    }
}

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
    use super::*;
    use crate::types::{ChunkSeq, PageId};

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
        let packed = Encoder::default().stream(Kind::Tail, 0x0102_0304_0506, b"hikyaku", Method::Zstd(1), 30);
        assert_eq!(packed.payload[..], *b"\x02\x04\0\0\x07\0\0\0\x06\x05\x04\x03\x02\x01\0\0\0\0\0\0hikyaku");
        assert_eq!((packed.method, packed.body_bytes, packed.packed_bytes), (Method::Stored, 7, 7));
    }

    #[test]
    fn the_bytes_of_a_pages_chunk() {
        let page: PageBytes = noise(PAGE_BYTES).try_into().unwrap();
        let plain = [7; PAGE_BYTES];
        let body = PagesBody {
            zero_runs: &[(PageId(0x10), 0x0203), (PageId(0x0400_0000), 1)],
            wholes: &[(PageId(0x21a2a3a4), &page)],
            plain: &[(PageId(0x21a2a3a2), &plain)],
            deltas: &[(PageId(7), ChunkSeq(0x0506_0708), 3), (PageId(8), ChunkSeq(0x0506_0707), 4)],
            delta_bytes: &[0, 1, 0xee, 9, 2, 1, 1],
            refs: &[(PageId(5), ChunkSeq(6), 0x0807)],
            stores: &[(1, 0x0102), (0, 3)],
        };
        let payload = Encoder::default().pages(&body, Method::Stored, 30).payload;
        #[rustfmt::skip]
        let records = [
            2, 1, 0, 0,  0x45, 0x10, 0, 0,  2, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 0,
            // Zero runs: pages 0x10 and 0x03ff_fff0 more, twice that; runs.
            0x20, 0xe0,  0, 0xff,  0, 0xff,  0, 0x07,
            0x03, 1,  0x02, 0,  0, 0,  0, 0,
            // Whole pages: the second is two before the first.
            0x48, 3,  0x47, 0,  0x45, 0,  0x43, 0,
            // Deltas: pages, bases, lengths.
            14, 2,  0, 0,  0, 0,  0, 0,
            0x10, 1,  0x0e, 0,  0x0c, 0,  0x0a, 0,
            3, 4,  0, 0,
            // The reference.
            10, 0, 0, 0,  12, 0, 0, 0,  7, 8,
            // Stores: whole pages, slots.
            1, 0,  0, 0,  2, 3,  1, 0,
        ];
        assert_eq!(payload[..records.len()], records);
        let (whole, rest) = payload[records.len()..].split_at(PAGE_BYTES);
        assert_eq!(whole, page);
        assert_eq!(rest[..7], *body.delta_bytes);
        assert_eq!(rest[7..], plain);
        assert_eq!(u32::from_le_bytes(payload[4..8].try_into().unwrap()) as usize, records.len() - 20 + 4103);
    }

    #[test]
    fn what_is_encoded_is_decoded_whatever_the_method() {
        let text: PageBytes = std::array::from_fn(|i| b"hikyaku ran from Edo to Kyoto; "[i % 31]);
        let page: PageBytes = noise(PAGE_BYTES).try_into().unwrap();
        let body = PagesBody {
            zero_runs: &[(PageId(9), 2), (PageId(0), u32::MAX)],
            wholes: &[(PageId(100), &text), (PageId(101), &text), (PageId(3), &text)],
            plain: &[(PageId(u32::MAX), &page)],
            deltas: &[(PageId(7), ChunkSeq(3), 3), (PageId(6), ChunkSeq(1), 3)],
            delta_bytes: &[0, 1, 0xee, 1, 1, 0xff],
            refs: &[(PageId(5), ChunkSeq(6), u16::MAX), (PageId(50), ChunkSeq(2), 0)],
            stores: &[(3, 8), (1, 0)],
        };
        let (mut encoder, mut scratch) = (Encoder::default(), DecodeScratch::default());
        for method in Method::ALL {
            let packed = encoder.pages(&body, method, 30);
            assert_eq!(packed.method, method);
            assert_eq!(packed.payload.len(), HEADER_BYTES + packed.packed_bytes + PAGE_BYTES);
            assert_eq!(packed.packed_bytes < packed.body_bytes / 10, method != Method::Stored);
            let decoded = decode(&packed.payload, packed.body_bytes + PAGE_BYTES, &mut scratch);
            let Ok(Decoded::Pages(pages)) = decoded else { panic!("{decoded:?}") };
            assert!(pages.zero_runs().eq(body.zero_runs.iter().copied()));
            assert!(pages.wholes().eq(body.wholes.iter().chain(body.plain).copied()));
            let deltas = [
                (PageId(7), ChunkSeq(3), &body.delta_bytes[..3]),
                (PageId(6), ChunkSeq(1), &body.delta_bytes[3..]),
            ];
            assert!(pages.deltas().eq(deltas));
            assert!(pages.refs().eq(body.refs.iter().copied()));
            assert!(pages.stores().eq([(8, &page), (0, &text)]));
            assert_eq!(pages.count(), u64::from(u32::MAX) + 2 + 4 + 2 + 2);
            let limit = packed.body_bytes + PAGE_BYTES - 1;
            let error = decode(&packed.payload, limit, &mut scratch).unwrap_err();
            assert_eq!(error, DecodeError::TooLarge { raw_len: limit as u64 + 1, limit });
        }
        assert!(scratch.memory_bytes() <= DecodeScratch::ZSTD_BYTES + 3 * PAGE_BYTES + 200);
    }

    #[test]
    fn what_does_not_compress_is_stored() {
        let (text, noise) = (b"hikyaku ran from Edo to Kyoto; ".repeat(3000), noise(90_000));
        let (mut encoder, mut scratch) = (Encoder::default(), DecodeScratch::default());
        for method in Method::ALL {
            for (bytes, used) in [(&text, method), (&noise, Method::Stored)] {
                let packed = encoder.stream(Kind::Raw, 5, bytes, method, 30);
                assert_eq!((packed.method, packed.body_bytes), (used, bytes.len()));
                assert_eq!(packed.payload.len(), HEADER_BYTES + packed.packed_bytes);
                assert_eq!(packed.packed_bytes < bytes.len() / 10, used != Method::Stored);
                match decode(&packed.payload, bytes.len(), &mut scratch) {
                    Ok(Decoded::Stream { kind: Kind::Raw, offset: 5, bytes: decoded }) => {
                        assert!(decoded == bytes)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn many_small_deltas_cost_little_more_than_their_bytes() {
        let changed = noise(64);
        let delta = [&[0x80, 1, 64][..], &changed].concat();
        let deltas: Vec<_> = (0..2000u32)
            .map(|i| (PageId(i * 65 + i * i % 61), ChunkSeq(900 + i * i % 64), delta.len() as u16))
            .collect();
        let delta_bytes = delta.repeat(deltas.len());
        let body = PagesBody { deltas: &deltas, delta_bytes: &delta_bytes, ..PagesBody::default() };
        for (method, most) in [(Method::Lz4, 3.5), (Method::Zstd(1), 3.0)] {
            let packed = Encoder::default().pages(&body, method, 30);
            let each = packed.packed_bytes as f64 / deltas.len() as f64;
            assert!(each < most, "{each} bytes each by {method:?}");
        }
    }

    /// A frame of zstd that says of itself what it likes.
    #[test]
    fn a_zstd_frame_cannot_make_the_decoder_allocate_nor_say_less_than_its_header() {
        let text = b"hikyaku ran from Edo to Kyoto; ".repeat(300);
        let good = Encoder::default().stream(Kind::Raw, 0, &text, Method::Zstd(1), 30).payload;
        let frame = &good[HEADER_BYTES..];
        let with = |frame: &[u8]| [&good[..HEADER_BYTES], frame].concat();
        let refused = |payload: Vec<u8>, why: DecodeError| {
            let mut scratch = DecodeScratch::default();
            assert_eq!(decode(&payload, 1 << 20, &mut scratch).unwrap_err(), why);
            assert!(scratch.memory_bytes() <= text.len() + DecodeScratch::ZSTD_BYTES);
        };
        refused(with(&[]), DecodeError::Corrupt);
        refused(with(&frame[..frame.len() - 1]), DecodeError::Corrupt);
        refused(with(&frame.repeat(2)), DecodeError::Corrupt);
        // No content size, and a window of 1 GiB.
        refused(with(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa0, 1, 0, 0]), DecodeError::Length);
        // A content of 2^32 - 1 bytes in one run of a byte.
        refused(
            with(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 7]),
            DecodeError::Length,
        );
        // The right content size, and less content.
        let mut less = frame[..7].to_vec();
        less.extend([3, 0, 0]);
        refused(with(&less), DecodeError::Corrupt);
        let mut longer = good.to_vec();
        longer[4] += 1;
        refused(longer, DecodeError::Length);
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
