//! The newest content of every page that was taken in and not yet sent.
//!
//! ```text
//! page table ──slot──▶ slots: [ page | class | newer | older | bytes ]
//!                        cold ─▶ … ─▶ …       the coldest first; of one class the oldest first
//!                        warm ─▶ …            a page that comes again goes to the end of its class
//!                        hot  ─▶ … ─▶ …   └─ bytes: Box from a pool, moved to a worker, never copied
//! ```
//!
//! Cold pages go first: a page that is sent and comes again has crossed in vain. One that waits in a hotter class is not
//! touched again until it comes again or is popped; then its class is what it is by now.
//!
//! Invariants: a slot is either in one queue and holds bytes, or free and holds none; a page has at most one slot, which
//! the page table knows. The table is the caller's to keep in step.

use crate::source::heat::Class;
use crate::source::pool::{BOX_OVERHEAD_BYTES, Pool};
use crate::types::{PAGE_BYTES, PageBytes, PageId};

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Memory of one staged page.
pub(super) const SLOT_COST_BYTES: usize = PAGE_BYTES + BOX_OVERHEAD_BYTES + size_of::<Slot>();

#[derive(Debug)]
struct Slot {
    page: PageId,
    class: Class,
    older: u32,
    newer: u32,
    bytes: Option<Box<PageBytes>>,
}

/// The ends of a queue, linked through the slots.
#[derive(Debug, Clone, Copy)]
struct Queue {
    oldest: u32,
    newest: u32,
    len: usize,
}

const EMPTY: Queue = Queue { oldest: NO_SLOT, newest: NO_SLOT, len: 0 };

/// See the module.
#[derive(Debug)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    /// Free slots, linked by `newer`.
    free: u32,
    queues: [Queue; Class::COUNT],
}

impl Staging {
    pub(super) fn new() -> Self {
        Staging { slots: Vec::new(), free: NO_SLOT, queues: [EMPTY; Class::COUNT] }
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.len).sum()
    }

    /// Memory beyond the page buffers, which are the pool's.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// Stages a page that has no slot; returns its slot.
    pub(super) fn push(&mut self, page: PageId, class: Class, content: &PageBytes, pool: &mut Pool) -> u32 {
        let new = Slot { page, class, older: NO_SLOT, newer: NO_SLOT, bytes: Some(pool.copy_of(content)) };
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(free) => {
                let slot = self.free;
                self.free = free.newer;
                *free = new;
                slot
            }
            None => {
                let slot = self.slots.len() as u32;
                self.slots.push(new);
                slot
            }
        };
        self.append(slot, class);
        slot
    }

    /// Replaces what `slot` holds; the page goes to the end of its class.
    pub(super) fn replace(&mut self, slot: u32, class: Class, content: &PageBytes) {
        if let Some(bytes) = self.slots.get_mut(slot as usize).and_then(|slot| slot.bytes.as_mut()) {
            bytes.copy_from_slice(content);
        }
        if self.queues[class as usize].newest != slot {
            self.unlink(slot);
            self.append(slot, class);
        }
    }

    /// Drops what `slot` holds.
    pub(super) fn remove(&mut self, slot: u32, pool: &mut Pool) {
        if let Some(bytes) = self.release(slot) {
            pool.give_back(bytes);
        }
    }

    /// The page that has waited longest, of the coldest class there is.
    pub(super) fn pop(&mut self) -> Option<(PageId, Box<PageBytes>)> {
        let slot = self.queues.iter().find(|queue| queue.len > 0)?.oldest;
        let page = self.slots.get(slot as usize)?.page;
        Some((page, self.release(slot)?))
    }

    /// The page that has waited longest, of the hottest class there is.
    pub(super) fn pop_hottest(&mut self) -> Option<(PageId, Box<PageBytes>)> {
        let slot = self.queues.iter().rfind(|queue| queue.len > 0)?.oldest;
        let page = self.slots.get(slot as usize)?.page;
        Some((page, self.release(slot)?))
    }

    fn release(&mut self, slot: u32) -> Option<Box<PageBytes>> {
        let bytes = self.slots.get_mut(slot as usize)?.bytes.take()?;
        self.unlink(slot);
        self.slots[slot as usize].newer = self.free;
        self.free = slot;
        if self.len() == 0 {
            self.slots = Vec::new();
            self.free = NO_SLOT;
        }
        Some(bytes)
    }

    fn append(&mut self, slot: u32, class: Class) {
        let queue = &mut self.queues[class as usize];
        let last = std::mem::replace(&mut queue.newest, slot);
        if last == NO_SLOT {
            queue.oldest = slot;
        }
        queue.len += 1;
        let entry = &mut self.slots[slot as usize];
        (entry.class, entry.older, entry.newer) = (class, last, NO_SLOT);
        if let Some(last) = self.slots.get_mut(last as usize) {
            last.newer = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { class, older, newer, .. } = self.slots[slot as usize];
        let queue = &mut self.queues[class as usize];
        queue.len -= 1;
        if older == NO_SLOT {
            queue.oldest = newer;
        }
        if newer == NO_SLOT {
            queue.newest = older;
        }
        if let Some(older) = self.slots.get_mut(older as usize) {
            older.newer = newer;
        }
        if let Some(newer) = self.slots.get_mut(newer as usize) {
            newer.older = older;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLASSES: [Class; Class::COUNT] = [Class::Cold, Class::Warm, Class::Hot];

    proptest! {
        /// Against a list that is sorted whenever it is asked.
        #[test]
        fn the_coldest_that_waited_longest_goes_first(
            steps in prop::collection::vec((0..12u32, 0..3usize, 0..5u8), 0..200)
        ) {
            let mut pool = Pool::new(0);
            let mut staging = Staging::new();
            let mut slots = [NO_SLOT; 12];
            // Page, class, turn, content.
            let mut model: Vec<(u32, Class, usize, u8)> = Vec::new();
            for (turn, (page, class, what)) in steps.into_iter().enumerate() {
                let (class, content) = (CLASSES[class], [turn as u8; PAGE_BYTES]);
                let slot = &mut slots[page as usize];
                match what {
                    0 => {
                        model.sort_by_key(|(_, class, turn, _)| (*class, *turn));
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        let popped = staging.pop();
                        prop_assert_eq!(
                            popped.as_ref().map(|(page, bytes)| (page.0, bytes[0])),
                            expected.map(|(page, _, _, content)| (page, content))
                        );
                        if let Some((page, bytes)) = popped {
                            slots[page.0 as usize] = NO_SLOT;
                            pool.give_back(bytes);
                        }
                    }
                    1 if *slot != NO_SLOT => {
                        staging.remove(*slot, &mut pool);
                        *slot = NO_SLOT;
                        model.retain(|(other, ..)| *other != page);
                    }
                    _ if *slot == NO_SLOT => {
                        *slot = staging.push(PageId(page), class, &content, &mut pool);
                        model.push((page, class, turn, turn as u8));
                    }
                    _ => {
                        staging.replace(*slot, class, &content);
                        model.retain(|(other, ..)| *other != page);
                        model.push((page, class, turn, turn as u8));
                    }
                }
                prop_assert_eq!(staging.len(), model.len());
            }
        }
    }
}
