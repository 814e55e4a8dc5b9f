//! The writer: rebuilds a stream that a waiting QEMU takes, from pages in any order.
//!
//! It appends to a `Vec<u8>` and does no I/O. Where copying a page costs too much, [`Writer::page_header`] writes
//! only what stands before the page: the caller then sends the header bytes and its own page with `writev`.
//!
//! | phase | allowed | left by |
//! |---|---|---|
//! | `Live` | `opaque`, `zero`, `page`, `page_header`, `xbzrle`, `select_block`, `close_section` | `finish_ram` → `Ended`, `begin_relay` → `Relay` |
//! | `Ended` | `tail` | |
//! | `Relay` | nothing: the caller appends the bytes it relays | |
//!
//! Invariants:
//! * a call that fails has written nothing and changed nothing;
//! * `last` is the block QEMU would take a CONTINUE record for, at every moment;
//! * a record is only written for a page that lies in a listed block, whoever asked for it.

use thiserror::Error;

use super::wire::{self, item, ram};
use super::xbzrle::{self, XbzrleError};
use super::{Block, BlockIdx, PAGE_BYTES, RamLayout, Resume};

#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// A section of RAM is closed at the first record that takes it past this size. Smaller costs 22 bytes per
    /// section; larger gains nothing. Default 4 MiB.
    pub section_bytes: usize,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { section_bytes: 4 << 20 }
    }
}

/// Whoever asked for the record is at fault; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    #[error("RAM block {0} is not listed")]
    UnknownBlock(u16),
    #[error("{pages} pages at {offset:#x} do not lie in RAM block {block}")]
    OutsideBlock { block: u16, offset: u64, pages: u64 },
    #[error("a delta that QEMU would refuse: {0}")]
    Delta(#[from] XbzrleError),
    #[error("{what} is not possible now: {phase}")]
    Phase { what: &'static str, phase: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Live,
    Ended,
    Relay,
}

impl Phase {
    fn says(self) -> &'static str {
        match self {
            Phase::Live => "RAM has not ended",
            Phase::Ended => "RAM has ended",
            Phase::Relay => "the stream is being relayed verbatim",
        }
    }
}

#[derive(Debug)]
pub struct Writer {
    config: WriterConfig,
    layout: RamLayout,
    phase: Phase,
    /// Bytes in the open PART section.
    open: Option<usize>,
    last: Option<BlockIdx>,
}

impl Writer {
    /// For the stream whose prefix, up to RAM's set-up section and its footer, the caller has already passed on.
    pub fn new(layout: RamLayout, config: WriterConfig) -> Self {
        Self { config, layout, phase: Phase::Live, open: None, last: None }
    }

    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Bytes of the stream that are neither RAM's pages nor the tail.
    pub fn opaque(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), WriteError> {
        self.must_be(Phase::Live, "a section")?;
        self.close(out);
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// `run_pages` pages of zeros from `offset` on.
    pub fn zero(
        &mut self,
        out: &mut Vec<u8>,
        block: BlockIdx,
        offset: u64,
        run_pages: u64,
    ) -> Result<(), WriteError> {
        self.must_hold(block, offset, run_pages)?;
        for n in 0..run_pages {
            self.record(out, block, offset + n * PAGE_BYTES as u64, ram::ZERO, 1);
            out.push(0);
        }
        Ok(())
    }

    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: BlockIdx,
        offset: u64,
        data: &[u8; PAGE_BYTES],
    ) -> Result<(), WriteError> {
        self.page_header(out, block, offset)?;
        out.extend_from_slice(data);
        Ok(())
    }

    /// What stands before a page. The caller must send exactly [`PAGE_BYTES`] of the page after `out`'s bytes and
    /// before any byte of the next call.
    pub fn page_header(&mut self, out: &mut Vec<u8>, block: BlockIdx, offset: u64) -> Result<(), WriteError> {
        self.must_hold(block, offset, 1)?;
        self.record(out, block, offset, ram::PAGE, PAGE_BYTES);
        Ok(())
    }

    /// A delta against what the receiving QEMU's RAM holds; see [`xbzrle`] for what it takes.
    pub fn xbzrle(
        &mut self,
        out: &mut Vec<u8>,
        block: BlockIdx,
        offset: u64,
        encoded: &[u8],
    ) -> Result<(), WriteError> {
        self.must_hold(block, offset, 1)?;
        xbzrle::validate(encoded)?;
        self.delta(out, block, offset, encoded);
        Ok(())
    }

    /// Makes `block` the one that a record which says "same block as before" would mean. See
    /// [`super::Events::select_block`].
    pub fn select_block(&mut self, out: &mut Vec<u8>, block: BlockIdx) -> Result<(), WriteError> {
        self.must_hold(block, 0, 1)?;
        if self.last != Some(block) {
            // A delta of no bytes names the block and changes nothing.
            self.delta(out, block, 0, &[]);
        }
        Ok(())
    }

    /// Closes an open section, so that QEMU has everything up to here and waits between two items.
    pub fn close_section(&mut self, out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.must_be(Phase::Live, "a section's end")?;
        self.close(out);
        Ok(())
    }

    /// All pages were written: RAM's END section.
    pub fn finish_ram(&mut self, out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.must_be(Phase::Live, "RAM's end")?;
        self.close(out);
        self.begin_section(out, item::END);
        self.end_section(out);
        self.phase = Phase::Ended;
        Ok(())
    }

    pub fn tail(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), WriteError> {
        self.must_be(Phase::Ended, "the tail")?;
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// Brings the stream to the state in which the source's bytes can follow verbatim. Nothing else may be
    /// written afterwards.
    pub fn begin_relay(&mut self, out: &mut Vec<u8>, resume: Resume) -> Result<(), WriteError> {
        self.must_be(Phase::Live, "a verbatim relay")?;
        let last_block = match resume {
            Resume::Verbatim => None,
            Resume::Item { last_block } | Resume::InRam { last_block } => last_block,
        };
        if let Some(block) = last_block {
            self.select_block(out, block)?;
        }
        match resume {
            Resume::Verbatim | Resume::Item { .. } => self.close(out),
            Resume::InRam { .. } => self.open(out),
        }
        self.phase = Phase::Relay;
        Ok(())
    }

    fn must_be(&self, phase: Phase, what: &'static str) -> Result<(), WriteError> {
        if self.phase == phase { Ok(()) } else { Err(WriteError::Phase { what, phase: self.phase.says() }) }
    }

    fn must_hold(&self, block: BlockIdx, offset: u64, pages: u64) -> Result<(), WriteError> {
        self.must_be(Phase::Live, "a page")?;
        let listed = self.layout.block(block).ok_or(WriteError::UnknownBlock(block.0))?;
        let last = pages
            .checked_sub(1)
            .and_then(|n| n.checked_mul(PAGE_BYTES as u64))
            .and_then(|n| n.checked_add(offset));
        match last {
            Some(last) if listed.holds_page(offset) && listed.holds_page(last) => Ok(()),
            _ => Err(WriteError::OutsideBlock { block: block.0, offset, pages }),
        }
    }

    fn delta(&mut self, out: &mut Vec<u8>, block: BlockIdx, offset: u64, encoded: &[u8]) {
        self.record(out, block, offset, ram::XBZRLE, encoded.len());
        out.push(wire::XBZRLE_ENCODING);
        // `validate` held the length below a page.
        out.extend_from_slice(&(encoded.len() as u16).to_be_bytes());
        out.extend_from_slice(encoded);
    }

    /// The head of a record with `body_bytes` to come, in an open section.
    #[inline]
    fn record(&mut self, out: &mut Vec<u8>, block: BlockIdx, offset: u64, flag: u64, body_bytes: usize) {
        if self.open.is_some_and(|n| n >= self.config.section_bytes) {
            self.close(out);
        }
        self.open(out);
        let before = out.len();
        if self.last == Some(block) {
            out.extend_from_slice(&(offset | flag | ram::CONTINUE).to_be_bytes());
        } else {
            out.extend_from_slice(&(offset | flag).to_be_bytes());
            if let Some(Block { name, .. }) = self.layout.block(block) {
                out.push(name.len_u8());
                out.extend_from_slice(name.as_bytes());
            }
            self.last = Some(block);
        }
        let len = out.len() - before + body_bytes;
        self.open = self.open.map(|n| n.saturating_add(len));
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        if self.open.is_none() {
            self.begin_section(out, item::PART);
            self.open = Some(0);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.end_section(out);
        }
    }

    fn begin_section(&self, out: &mut Vec<u8>, kind: u8) {
        out.push(kind);
        out.extend_from_slice(&self.layout.section_id.to_be_bytes());
    }

    fn end_section(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&ram::EOS.to_be_bytes());
        out.push(item::FOOTER);
        out.extend_from_slice(&self.layout.section_id.to_be_bytes());
    }
}
