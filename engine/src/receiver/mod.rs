//! The destination: chunks come in any order and more than once; pages go out right.

use crate::config::ReceiverConfig;
use crate::types::{ChunkSeq, PageBytes, PageId};

/// Where a [`Receiver`] writes what is in order. May block; an error ends the migration.
pub trait Sink {
    type Error;

    /// The guest's pages, once the opaque bytes written so far tell. Asked before the first page is written; until it is
    /// known, here or by [`Receiver::layout`], pages are held.
    fn layout(&self) -> Option<u32> {
        None
    }

    /// Stream bytes before the end of RAM, in order.
    fn opaque(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// `run` pages from `page` on are zero.
    fn zero(&mut self, page: PageId, run: u32) -> Result<(), Self::Error>;
    /// A whole page.
    fn page(&mut self, page: PageId, bytes: &PageBytes) -> Result<(), Self::Error>;
    /// A page as an XBZRLE delta (validated) against what was written of it last.
    fn delta(&mut self, page: PageId, xbzrle: &[u8]) -> Result<(), Self::Error>;
    /// Raw relay bytes, in order; everything sent before has been written.
    fn raw(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Bytes after the end of RAM, in order; everything sent before has been written.
    fn tail(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// A chunk could not be taken. Nothing can be received after it.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError<E> {
    #[error("writing failed")]
    Sink(E),
}

/// See the module.
#[derive(Debug)]
pub struct Receiver {
    _config: ReceiverConfig,
}

impl Receiver {
    pub fn new(config: ReceiverConfig) -> Self {
        Receiver { _config: config }
    }

    /// The guest has `pages` pages; what was held for want of it is written by the next [`Receiver::chunk`] or
    /// [`Receiver::resume`].
    pub fn layout<E>(&mut self, _pages: u32) -> Result<(), ReceiveError<E>> {
        Ok(())
    }

    /// Writes what this chunk and those it unblocks allow, keeps the rest.
    pub fn chunk<S: Sink>(
        &mut self,
        _seq: ChunkSeq,
        _after: ChunkSeq,
        _payload: Vec<u8>,
        _sink: &mut S,
    ) -> Result<(), ReceiveError<S::Error>> {
        Ok(())
    }

    /// Writes what was held and need not be held any more.
    pub fn resume<S: Sink>(&mut self, _sink: &mut S) -> Result<(), ReceiveError<S::Error>> {
        Ok(())
    }

    /// Moves the chunks applied since the last call to `out`, with the bytes of their payloads: what may be acknowledged.
    pub fn take_applied(&mut self, _out: &mut Vec<(ChunkSeq, u64)>) {}

    /// Everything up to this chunk has been applied.
    pub fn applied_through(&self) -> ChunkSeq {
        ChunkSeq::NONE
    }

    /// Memory held, in bytes, overhead included.
    pub fn memory_bytes(&self) -> usize {
        0
    }
}
