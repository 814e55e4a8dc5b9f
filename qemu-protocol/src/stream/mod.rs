//! QEMU's migration stream, read and rebuilt.
//!
//! ```text
//!   QEMU ──bytes──▶ Parser ──Events──▶ (whatever carries them) ──▶ Writer ──bytes──▶ QEMU -incoming
//!                     │ prefix: opaque | page, zero | tail: opaque
//!                     └ NotUnderstood: from that byte on, relay verbatim
//! ```
//!
//! A migration is a *prefix* (header, configuration, set-up sections), RAM pages in sections of their own, and,
//! after the footer of RAM's END section, a *tail* of device state. Only the pages are taken apart. Nothing
//! but a device's own description delimits its section, so everything else is carried as it came.
//!
//! The module does no I/O, keeps no page, and never decides what to send.
//!
//! Invariants:
//! * any split of the input gives the same events (adjacent `opaque` and `tail` slices count as joined);
//! * a unit (record, header, list entry) is reported whole or not at all, so at a [`NotUnderstood`] every event
//!   that was reported is valid and every byte before it is accounted for;
//! * what the input claims never sizes an allocation beyond [`ParserConfig`]'s limits.

mod parser;
mod scan;
mod tail;
mod wire;
mod writer;

pub mod replay;
pub mod xbzrle;

use std::fmt;

pub use parser::{NotUnderstood, Parser, ParserConfig, Truncated, Why};
pub use tail::TailScanner;
pub use writer::{WriteError, Writer, WriterConfig};

/// The unit of RAM in the stream, whatever backs the block: x86's target page.
pub const PAGE_BYTES: usize = 4096;

/// More than the largest unit the parser must see whole. A caller whose buffer holds this much beyond what was
/// not yet consumed always makes progress.
pub const MAX_UNIT_BYTES: usize = 32 << 10;

/// A RAM block's name as QEMU sends it: 1 to 255 bytes that mean nothing here.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockName(Box<[u8]>);

impl BlockName {
    /// `None` if the length does not fit the stream's length byte, or is zero.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (1..=usize::from(u8::MAX)).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The length byte; `new` made sure it fits.
    pub(crate) fn len_u8(&self) -> u8 {
        self.0.len() as u8
    }
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A RAM block, as the set-up section lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub name: BlockName,
    pub used_bytes: u64,
    /// Guest-physical address; present with `x-ignore-shared`.
    pub gpa: Option<u64>,
}

impl Block {
    /// Bytes that pages may cover: a last, partly used page is sent whole.
    pub fn span_bytes(&self) -> u64 {
        self.used_bytes.div_ceil(PAGE_BYTES as u64).saturating_mul(PAGE_BYTES as u64)
    }

    pub(crate) fn holds_page(&self, offset: u64) -> bool {
        offset.is_multiple_of(PAGE_BYTES as u64) && offset < self.span_bytes()
    }
}

/// A block's place in [`RamLayout::blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIdx(pub u16);

/// What a [`Writer`] must know of the stream it goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLayout {
    /// QEMU's number for the section "ram" in this stream.
    pub section_id: u32,
    pub blocks: Vec<Block>,
}

impl RamLayout {
    pub fn block(&self, block: BlockIdx) -> Option<&Block> {
        self.blocks.get(usize::from(block.0))
    }
}

/// What the parser tells, in the stream's order.
pub trait Events {
    /// To be carried verbatim and in order: header, configuration, commands, the set-up of RAM, whole foreign
    /// sections. Never RAM's pages or their section headers and footers.
    fn opaque(&mut self, bytes: &[u8]);

    /// RAM's set-up section has been read to its footer; its bytes were in `opaque` just before.
    fn blocks(&mut self, layout: &RamLayout);

    /// The page holds zeros.
    fn zero(&mut self, block: BlockIdx, offset: u64);

    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]);

    /// `opaque` bytes of a foreign section follow, whose end may not be recognised; whatever lies beyond it
    /// would then pass verbatim. Pass it to [`Writer::select_block`] before those bytes, so that records which
    /// say "same block as before" still mean `block`.
    fn select_block(&mut self, block: BlockIdx);

    /// A PART section of RAM ended, which had `pages` records. None: QEMU found nothing dirty.
    fn ram_part(&mut self, pages: u64);

    /// The END section of RAM ended, which had `pages` records (reported before). Only the tail follows.
    fn ram_end(&mut self, pages: u64);

    /// Device state, to be carried verbatim. See [`TailScanner`] for where it ends.
    fn tail(&mut self, bytes: &[u8]);
}

/// Where a verbatim relay takes over, and so how the rebuilt stream must stand; see [`Writer::begin_relay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Right after the last `opaque` byte: nothing to do.
    Verbatim,
    /// Between two items of the stream.
    Item { last_block: Option<BlockIdx> },
    /// Before a record inside a PART or END section of RAM.
    InRam { last_block: Option<BlockIdx> },
}
