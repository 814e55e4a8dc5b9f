//! The destination: chunks come in any order and more than once; pages go out right.
//!
//! | file | what it holds |
//! |---|---|
//! | `versions` | per page, the number of the chunk applied last |
//! | `window` | which chunks have come, which have been applied |
//! | `parking` | chunks that wait for another, within a budget |
//! | `dictionary` | contents that the source had kept here, to refer to them |
//!
//! Rules, page by page: a whole page (or zero) is written if its chunk is newer than what the page has. A delta is written if the page has
//! exactly its base, waits while the base has not come, and is dropped when something newer is there. Different
//! pages commute. A chunk with `after` waits until everything up to that number has been applied; raw and tail bytes wait for
//! everything before them. Pages wait until the layout is known.
//!
//! What a chunk stores goes into the dictionary first, whatever its pages have; then its pages are written. A reference is written as a whole page
//! is: dropped when something newer is there; it waits while the chunk that stored its content has not come, which may be its own. The **source** sees
//! to it that a slot is stored anew only when every chunk that stored or refers to what it held has been
//! acknowledged: then no order of arrival takes a content away that is still needed. A source that breaks this gets an error, never another
//! content than the one it meant, for a slot knows which chunk stored it.
//!
//! A chunk that waits is kept as it came, compressed, so that what is parked never exceeds what the peer was allowed to
//! send. One of which some pages have been written and some wait is simply applied again: what was written is not
//! newer any more.
//!
//! Nothing here trusts the peer: whatever it sends, memory stays within [`ReceiverConfig`], a page outside the layout is an
//! error, and the worst it can do is a wrong page in its own guest.

mod dictionary;
mod parking;
mod versions;
mod window;

use dictionary::{Dictionary, StoreRefused};
use parking::{Held, Parking, Wait};
use versions::Versions;
use window::SeqWindow;

use crate::codec::{DecodeError, DecodeScratch, Decoded, Kind, Pages, decode};
use crate::config::ReceiverConfig;
use crate::types::{ChunkSeq, PageBytes, PageId};

/// Where a [`Receiver`] writes what is in order. May block; an error ends the migration.
pub trait Sink {
    type Error;

    /// The guest's pages, once the opaque bytes written so far tell. Asked before a page is written; until it is known,
    /// here or by [`Receiver::layout`], pages are held.
    fn layout(&self) -> Option<u32> {
        None
    }

    /// Stream bytes before the end of RAM, in order.
    fn opaque(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// `run` pages from `page` on are zero.
    fn zero(&mut self, page: PageId, run: u32) -> Result<(), Self::Error>;
    /// A whole page.
    fn page(&mut self, page: PageId, bytes: &PageBytes) -> Result<(), Self::Error>;
    /// A page as an XBZRLE delta (one that QEMU's decoder takes) against what was written of it last.
    fn delta(&mut self, page: PageId, xbzrle: &[u8]) -> Result<(), Self::Error>;
    /// Raw relay bytes, in order; everything sent before has been written.
    fn raw(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Bytes after the end of RAM, in order; everything sent before has been written.
    fn tail(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// A chunk could not be taken. Nothing can be received after it. All but [`ReceiveError::Sink`] are the peer's fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError<E> {
    #[error("writing failed")]
    Sink(E),
    #[error("chunk {seq}: {why}")]
    Payload { seq: u32, why: DecodeError },
    #[error("chunk {seq} may not come after chunk {after}")]
    Order { seq: u32, after: u32 },
    #[error("chunk {seq} is too far beyond {through}, the last one complete")]
    TooFarAhead { seq: u32, through: u32 },
    #[error("chunks that wait for others exceed {budget_bytes} bytes")]
    ParkBudget { budget_bytes: usize },
    #[error("chunk {seq}: page {page} is outside the guest's {pages} pages")]
    PageOutsideLayout { seq: u32, page: u32, pages: u32 },
    #[error("chunk {seq} speaks of more pages than the guest's {pages}")]
    TooManyRecords { seq: u32, pages: u32 },
    #[error("chunk {seq}: the delta of page {page} is against chunk {base}, which the page does not have")]
    NoBase { seq: u32, page: u32, base: u32 },
    #[error("chunk {seq}: slot {slot} is outside the dictionary of {slots}")]
    NoSlot { seq: u32, slot: u16, slots: u16 },
    #[error("chunk {seq} stores in slot {slot} what chunk {stored_in} stored otherwise")]
    StoredOtherwise { seq: u32, slot: u16, stored_in: u32 },
    #[error(
        "chunk {seq}: page {page} is what chunk {stored_in} stored in slot {slot}, which does not hold it"
    )]
    NotStored { seq: u32, page: u32, stored_in: u32, slot: u16 },
    #[error("chunk {seq}: {what} bytes at {got}, expected at {expected}")]
    Gap { seq: u32, what: &'static str, expected: u64, got: u64 },
    #[error(transparent)]
    Layout(#[from] LayoutRefused),
}

/// The layout was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutRefused {
    #[error("the guest has {pages} pages, at most {max_pages} are allowed")]
    TooManyPages { pages: u32, max_pages: u32 },
    #[error("the guest had {before} pages and now has {pages}")]
    Changed { before: u32, pages: u32 },
}

/// See the module.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    versions: Option<Versions>,
    /// Chunks that have come, parked or applied.
    come: SeqWindow,
    applied: SeqWindow,
    parking: Parking,
    dictionary: Dictionary,
    reported: Vec<(ChunkSeq, u64)>,
    scratch: DecodeScratch,
    opaque_offset: u64,
    raw_offset: u64,
    tail_offset: u64,
}

/// What became of a chunk.
enum Outcome {
    Applied,
    Waits(Wait),
}

impl Receiver {
    pub fn new(config: ReceiverConfig) -> Self {
        Receiver {
            versions: None,
            come: SeqWindow::new(config.max_ahead),
            applied: SeqWindow::new(config.max_ahead),
            parking: Parking::new(config.park_budget_bytes),
            dictionary: Dictionary::new(config.dictionary_slots),
            reported: Vec::new(),
            scratch: DecodeScratch::default(),
            opaque_offset: 0,
            raw_offset: 0,
            tail_offset: 0,
            config,
        }
    }

    /// The guest has `pages` pages; what was held for want of it is written by the next [`Receiver::chunk`] or
    /// [`Receiver::resume`].
    pub fn layout(&mut self, pages: u32) -> Result<(), LayoutRefused> {
        match &self.versions {
            Some(versions) if versions.pages() != pages => {
                Err(LayoutRefused::Changed { before: versions.pages(), pages })
            }
            Some(_) => Ok(()),
            None if pages > self.config.max_pages => {
                Err(LayoutRefused::TooManyPages { pages, max_pages: self.config.max_pages })
            }
            None => {
                self.versions = Some(Versions::new(pages));
                Ok(())
            }
        }
    }

    /// Writes what this chunk and those it unblocks allow, keeps the rest. A chunk that has come before is ignored.
    ///
    /// On `Err` the receiver is of no further use.
    pub fn chunk<S: Sink>(
        &mut self,
        seq: ChunkSeq,
        after: ChunkSeq,
        payload: Vec<u8>,
        sink: &mut S,
    ) -> Result<(), ReceiveError<S::Error>> {
        if after >= seq {
            return Err(ReceiveError::Order { seq: seq.0, after: after.0 });
        }
        if !self.come.in_reach(seq) || !self.applied.in_reach(seq) {
            return Err(ReceiveError::TooFarAhead { seq: seq.0, through: self.applied.through().0 });
        }
        if !self.come.mark(seq) {
            return Ok(());
        }
        self.take(Held { seq, after, payload, looks: 0 }, sink)?;
        self.resume(sink)
    }

    /// Writes what was held and need not be held any more.
    pub fn resume<S: Sink>(&mut self, sink: &mut S) -> Result<(), ReceiveError<S::Error>> {
        loop {
            if self.parking.waits_for_layout() && self.layout_known(sink)? {
                self.parking.layout_known();
            }
            let Some(held) = self.parking.next_ready() else { return Ok(()) };
            self.take(held, sink)?;
        }
    }

    /// Moves the chunks applied since the last call to `out`, with the bytes of their payloads: what may be
    /// acknowledged.
    pub fn take_applied(&mut self, out: &mut Vec<(ChunkSeq, u64)>) {
        out.append(&mut self.reported);
    }

    /// Everything up to this chunk has been applied.
    pub fn applied_through(&self) -> ChunkSeq {
        self.applied.through()
    }

    /// Chunks that have come and wait for another.
    pub fn parked_chunks(&self) -> usize {
        self.parking.len()
    }

    /// Memory held, in bytes, overhead included.
    pub fn memory_bytes(&self) -> usize {
        self.metadata_bytes()
            + self.come.memory_bytes()
            + self.applied.memory_bytes()
            + self.parking.memory_bytes()
            + self.dictionary.memory_bytes()
            + self.scratch.memory_bytes()
            + self.reported.capacity() * size_of::<(ChunkSeq, u64)>()
    }

    /// Of it, what grows with the guest: at most 4 bytes per page, resident where pages came.
    pub fn metadata_bytes(&self) -> usize {
        self.versions.as_ref().map_or(0, Versions::memory_bytes)
    }

    /// Applies a chunk, or parks it for what it waits for.
    fn take<S: Sink>(&mut self, held: Held, sink: &mut S) -> Result<(), ReceiveError<S::Error>> {
        let outcome = if held.after > self.applied.through() {
            Outcome::Waits(Wait::Through(held.after))
        } else {
            self.apply(&held, sink)?
        };
        match outcome {
            Outcome::Applied => {
                self.applied.mark(held.seq);
                self.reported.push((held.seq, held.payload.len() as u64));
                self.parking.applied(held.seq, self.applied.through());
                Ok(())
            }
            Outcome::Waits(wait) => self
                .parking
                .park(held, wait)
                .map_err(|()| ReceiveError::ParkBudget { budget_bytes: self.config.park_budget_bytes }),
        }
    }

    fn apply<S: Sink>(&mut self, held: &Held, sink: &mut S) -> Result<Outcome, ReceiveError<S::Error>> {
        let seq = held.seq;
        // Decoded pages borrow the scratch; it comes back below.
        let mut scratch = std::mem::take(&mut self.scratch);
        let decoded = decode(&held.payload, self.config.max_chunk_bytes, &mut scratch)
            .map_err(|why| ReceiveError::Payload { seq: seq.0, why })?;
        let outcome = match decoded {
            Decoded::Pages(pages) if self.layout_known(sink)? => self.apply_pages(seq, &pages, sink),
            Decoded::Pages(_) => Ok(Outcome::Waits(Wait::Layout)),
            Decoded::Stream { kind, offset, bytes } => {
                self.apply_stream(held, kind, offset, bytes, sink).map(|()| Outcome::Applied)
            }
        };
        self.scratch = scratch;
        outcome
    }

    fn apply_stream<S: Sink>(
        &mut self,
        held: &Held,
        kind: Kind,
        offset: u64,
        bytes: &[u8],
        sink: &mut S,
    ) -> Result<(), ReceiveError<S::Error>> {
        let (what, at) = match kind {
            Kind::Raw => ("raw", &mut self.raw_offset),
            Kind::Tail => ("tail", &mut self.tail_offset),
            Kind::Opaque | Kind::Pages => ("opaque", &mut self.opaque_offset),
        };
        let seq = held.seq.0;
        if kind != Kind::Opaque && held.after != held.seq.previous() {
            return Err(ReceiveError::Order { seq, after: held.after.0 });
        }
        if offset != *at {
            return Err(ReceiveError::Gap { seq, what, expected: *at, got: offset });
        }
        *at += bytes.len() as u64;
        let written = match kind {
            Kind::Raw => sink.raw(bytes),
            Kind::Tail => sink.tail(bytes),
            Kind::Opaque | Kind::Pages => sink.opaque(bytes),
        };
        written.map_err(ReceiveError::Sink)
    }

    fn apply_pages<S: Sink>(
        &mut self,
        seq: ChunkSeq,
        pages: &Pages<'_>,
        sink: &mut S,
    ) -> Result<Outcome, ReceiveError<S::Error>> {
        let Some(versions) = &mut self.versions else { return Ok(Outcome::Waits(Wait::Layout)) };
        let total = versions.pages();
        // Each page at most once: bounds the work one small chunk can ask for.
        if pages.count() > u64::from(total) {
            return Err(ReceiveError::TooManyRecords { seq: seq.0, pages: total });
        }
        let outside =
            |page: PageId| ReceiveError::PageOutsideLayout { seq: seq.0, page: page.0, pages: total };

        for (slot, bytes) in pages.stores() {
            self.dictionary.store(slot, seq, bytes).map_err(|refused| match refused {
                StoreRefused::Outside => {
                    ReceiveError::NoSlot { seq: seq.0, slot, slots: self.dictionary.slots() }
                }
                StoreRefused::Otherwise(by) => {
                    ReceiveError::StoredOtherwise { seq: seq.0, slot, stored_in: by.0 }
                }
            })?;
        }
        for (first, run) in pages.zero_runs() {
            if u64::from(first.0) + u64::from(run) > u64::from(total) {
                return Err(outside(first));
            }
            versions
                .advance_run(first, run, seq, |page, run| sink.zero(page, run))
                .map_err(ReceiveError::Sink)?;
        }
        for (page, bytes) in pages.wholes() {
            let version = versions.get_mut(page).ok_or_else(|| outside(page))?;
            if *version < seq.0 {
                sink.page(page, bytes).map_err(ReceiveError::Sink)?;
                *version = seq.0;
            }
        }
        let mut waits_for = None;
        for (page, stored_in, slot) in pages.refs() {
            let version = versions.get_mut(page).ok_or_else(|| outside(page))?;
            if slot >= self.dictionary.slots() {
                return Err(ReceiveError::NoSlot { seq: seq.0, slot, slots: self.dictionary.slots() });
            }
            if *version >= seq.0 {
                continue;
            }
            // Not what a later chunk stored, though it may have come first.
            if stored_in <= seq
                && let Some(bytes) = self.dictionary.get(slot, stored_in)
            {
                sink.page(page, bytes).map_err(ReceiveError::Sink)?;
                *version = seq.0;
                continue;
            }
            // What was stored over, or by a chunk that has come and did not, will not come any more.
            let may_come = stored_in < seq
                && self.dictionary.stored_in(slot) < stored_in
                && !self.applied.contains(stored_in);
            if !may_come {
                let stored_in = stored_in.0;
                return Err(ReceiveError::NotStored { seq: seq.0, page: page.0, stored_in, slot });
            }
            waits_for = waits_for.max(Some(stored_in));
        }
        for (page, base, delta) in pages.deltas() {
            let version = versions.get_mut(page).ok_or_else(|| outside(page))?;
            if *version >= seq.0 {
                continue;
            }
            if *version == base.0 && base != ChunkSeq::NONE {
                sink.delta(page, delta).map_err(ReceiveError::Sink)?;
                *version = seq.0;
                continue;
            }
            // Older than the base, which may still come; or between the two, which no source does.
            let may_come = *version < base.0 && base < seq && !self.applied.contains(base);
            if !may_come {
                return Err(ReceiveError::NoBase { seq: seq.0, page: page.0, base: base.0 });
            }
            waits_for = waits_for.max(Some(base));
        }
        Ok(waits_for.map_or(Outcome::Applied, |base| Outcome::Waits(Wait::One(base))))
    }

    fn layout_known<S: Sink>(&mut self, sink: &S) -> Result<bool, LayoutRefused> {
        if self.versions.is_none()
            && let Some(pages) = sink.layout()
        {
            self.layout(pages)?;
        }
        Ok(self.versions.is_some())
    }
}
