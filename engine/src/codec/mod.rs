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
