//! The newest content of every page that was taken in and not yet sent.
//!
//! ```text
//! page table ──slot──▶ slots: [ page | newer | older | bytes ]   oldest first out; a page dirtied again goes last
//!                                                       └─ Box from a pool: moved to a worker, never copied
//! ```
//!
//! Invariants: a slot is either in the queue and holds bytes, or free and holds none; a page has at most one slot, which
//! the page table knows. The table is the caller's to keep in step.

use crate::source::pool::{BOX_OVERHEAD_BYTES, Pool};
use crate::types::{PAGE_BYTES, PageBytes, PageId};

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Memory of one staged page.
pub(super) const SLOT_COST_BYTES: usize = PAGE_BYTES + BOX_OVERHEAD_BYTES + size_of::<Slot>();

#[derive(Debug)]
struct Slot {
    page: PageId,
    older: u32,
    newer: u32,
    bytes: Option<Box<PageBytes>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    /// Free slots, linked by `newer`.
    free: u32,
    oldest: u32,
    newest: u32,
    staged: usize,
}

impl Staging {
    pub(super) fn new() -> Self {
        Staging { slots: Vec::new(), free: NO_SLOT, oldest: NO_SLOT, newest: NO_SLOT, staged: 0 }
    }

    /// Pages staged.
    pub(super) fn len(&self) -> usize {
        self.staged
    }

    /// Memory of the slots themselves; their bytes are the pool's.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// Stages a page that has no slot; returns its slot.
    pub(super) fn push(&mut self, page: PageId, content: &PageBytes, pool: &mut Pool) -> u32 {
        let bytes = Some(pool.copy_of(content));
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(free) => {
                let slot = self.free;
                self.free = free.newer;
                *free = Slot { page, older: NO_SLOT, newer: NO_SLOT, bytes };
                slot
            }
            None => {
                let slot = self.slots.len() as u32;
                self.slots.push(Slot { page, older: NO_SLOT, newer: NO_SLOT, bytes });
                slot
            }
        };
        self.append(slot);
        self.staged += 1;
        slot
    }

    /// Replaces what `slot` holds; the page goes to the end of the queue.
    pub(super) fn replace(&mut self, slot: u32, content: &PageBytes) {
        if let Some(bytes) = self.slots.get_mut(slot as usize).and_then(|slot| slot.bytes.as_mut()) {
            bytes.copy_from_slice(content);
        }
        if self.newest != slot {
            self.unlink(slot);
            self.append(slot);
        }
    }

    /// Drops what `slot` holds.
    pub(super) fn remove(&mut self, slot: u32, pool: &mut Pool) {
        if let Some(bytes) = self.release(slot) {
            pool.give_back(bytes);
        }
    }

    /// The page that has waited longest.
    pub(super) fn pop(&mut self) -> Option<(PageId, Box<PageBytes>)> {
        let slot = self.oldest;
        let page = self.slots.get(slot as usize)?.page;
        Some((page, self.release(slot)?))
    }

    fn release(&mut self, slot: u32) -> Option<Box<PageBytes>> {
        let bytes = self.slots.get_mut(slot as usize)?.bytes.take()?;
        self.unlink(slot);
        self.slots[slot as usize].newer = self.free;
        self.free = slot;
        self.staged -= 1;
        if self.staged == 0 {
            self.slots = Vec::new();
            self.free = NO_SLOT;
        }
        Some(bytes)
    }

    fn append(&mut self, slot: u32) {
        let last = self.newest;
        self.slots[slot as usize].older = last;
        self.slots[slot as usize].newer = NO_SLOT;
        match self.slots.get_mut(last as usize) {
            Some(last) => last.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { older, newer, .. } = self.slots[slot as usize];
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}
