//! What was last sent of pages, for deltas: bounded, and what pays is kept.
//!
//! | tier | which pages | kept | dropped |
//! |---|---|---|---|
//! | hot | came again after they were sent, or while they waited | as they are while there is room, then packed by a worker | last, the longest unused first |
//! | cold | sent once | as they are, while there is room to spare | first, the oldest first |
//!
//! A cold page costs nothing to keep: its buffer is the one it was sent from. Which of them will come again is not known; when one does,
//! it moves to the hot tier. A page whose deltas do not pay is not kept (`PageMeta::no_delta`).
//!
//! A base is always the bytes that were *sent*, never what RAM held. An entry taken for a job is out of the store until the
//! job comes back; a page without one goes whole.

use std::collections::HashMap;

use crate::source::pool::{BOX_OVERHEAD_BYTES, Pool};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// Memory of one entry beside its content: itself, and its place in the index.
const ENTRY_COST_BYTES: usize = size_of::<Entry>() + BOX_OVERHEAD_BYTES + 32;
/// Of the budget, in 1/1000, what is filled before hot pages are packed and cold ones refused.
const PRESSURE_PERMILLE: usize = 750;

/// What was last sent of a page.
#[derive(Debug)]
pub(super) struct Base {
    pub seq: ChunkSeq,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Plain(Box<PageBytes>),
    /// By [`crate::codec::page_pack`].
    Packed(Box<[u8]>),
}

impl Content {
    pub(super) fn discard(self, pool: &mut Pool) {
        if let Content::Plain(bytes) = self {
            pool.give_back(bytes);
        }
    }

    fn len(&self) -> usize {
        match self {
            Content::Plain(_) => PAGE_BYTES,
            Content::Packed(bytes) => bytes.len(),
        }
    }

    fn packed_bytes(&self) -> usize {
        match self {
            Content::Plain(_) => 0,
            Content::Packed(bytes) => bytes.len(),
        }
    }
}

/// In which form a page that is about to be sent is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    No,
    Plain,
    Packed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Cold,
    Hot,
}

#[derive(Debug)]
struct Entry {
    page: PageId,
    tier: Tier,
    older: u32,
    newer: u32,
    /// None: the entry is free, and `newer` is the next free one.
    base: Option<Base>,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

const NONE: u32 = u32::MAX;
const EMPTY: Ends = Ends { oldest: NONE, newest: NONE };

/// See the module.
#[derive(Debug)]
pub(super) struct Bases {
    budget_bytes: usize,
    used_bytes: usize,
    /// Of them, contents that are packed.
    packed_bytes: usize,
    index: HashMap<PageId, u32>,
    entries: Vec<Entry>,
    free: u32,
    tiers: [Ends; 2],
}

impl Bases {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Bases {
            budget_bytes,
            used_bytes: 0,
            packed_bytes: 0,
            index: HashMap::new(),
            entries: Vec::new(),
            free: NONE,
            tiers: [EMPTY; 2],
        }
    }

    /// How a page is to be kept that is being sent now.
    pub(super) fn keep(&self, hot: bool) -> Keep {
        if self.used_bytes + ENTRY_COST_BYTES + PAGE_BYTES <= self.budget_bytes / 1000 * PRESSURE_PERMILLE {
            Keep::Plain
        } else if hot && self.budget_bytes > 0 {
            Keep::Packed
        } else {
            Keep::No
        }
    }

    pub(super) fn take(&mut self, page: PageId) -> Option<Base> {
        let at = self.index.remove(&page)?;
        self.remove(at)
    }

    /// The page has come again: its base, if there is one, is worth keeping.
    pub(super) fn came_again(&mut self, page: PageId) {
        if let Some(&at) = self.index.get(&page)
            && self.entries.get(at as usize).is_some_and(|entry| entry.tier == Tier::Cold)
        {
            self.unlink(at);
            self.append(at, Tier::Hot);
        }
    }

    /// Keeps `base`, if there is room or something worth less.
    pub(super) fn put(&mut self, page: PageId, base: Base, hot: bool, pool: &mut Pool) {
        // What was kept of it is not what the peer has any more.
        self.forget(page, pool);
        let cost = base.content.len() + ENTRY_COST_BYTES;
        while self.used_bytes + cost > self.budget_bytes {
            let cold = self.tiers[Tier::Cold as usize].oldest;
            let victim = match cold {
                NONE if hot => self.tiers[Tier::Hot as usize].oldest,
                cold => cold,
            };
            let Some(entry) = self.entries.get(victim as usize) else { return base.content.discard(pool) };
            self.forget(entry.page, pool);
        }
        self.used_bytes += cost;
        self.packed_bytes += base.content.packed_bytes();
        let entry = Entry { page, tier: Tier::Cold, older: NONE, newer: NONE, base: Some(base) };
        let at = match self.entries.get_mut(self.free as usize) {
            Some(free) => std::mem::replace(&mut self.free, std::mem::replace(free, entry).newer),
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.append(at, if hot { Tier::Hot } else { Tier::Cold });
        self.index.insert(page, at);
    }

    /// Forgets the page's base.
    pub(super) fn forget(&mut self, page: PageId, pool: &mut Pool) {
        if let Some(base) = self.take(page) {
            base.content.discard(pool);
        }
    }

    /// Memory beyond the page buffers, which are the pool's.
    pub(super) fn memory_bytes(&self) -> usize {
        self.packed_bytes
            + self.index.capacity() * (size_of::<(PageId, u32)>() + 1)
            + self.entries.capacity() * size_of::<Entry>()
    }

    /// What counts against the budget.
    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn remove(&mut self, at: u32) -> Option<Base> {
        self.unlink(at);
        let entry = self.entries.get_mut(at as usize)?;
        let base = entry.base.take()?;
        entry.newer = std::mem::replace(&mut self.free, at);
        self.used_bytes -= base.content.len() + ENTRY_COST_BYTES;
        self.packed_bytes -= base.content.packed_bytes();
        Some(base)
    }

    fn append(&mut self, at: u32, tier: Tier) {
        let ends = &mut self.tiers[tier as usize];
        let last = std::mem::replace(&mut ends.newest, at);
        if last == NONE {
            ends.oldest = at;
        }
        if let Some(last) = self.entries.get_mut(last as usize) {
            last.newer = at;
        }
        let entry = &mut self.entries[at as usize];
        (entry.tier, entry.older, entry.newer) = (tier, last, NONE);
    }

    fn unlink(&mut self, at: u32) {
        let Entry { tier, older, newer, .. } = self.entries[at as usize];
        let ends = &mut self.tiers[tier as usize];
        if older == NONE {
            ends.oldest = newer;
        }
        if newer == NONE {
            ends.newest = older;
        }
        if let Some(older) = self.entries.get_mut(older as usize) {
            older.newer = newer;
        }
        if let Some(newer) = self.entries.get_mut(newer as usize) {
            newer.older = older;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn plain(byte: u8, pool: &mut Pool) -> Content {
        Content::Plain(pool.copy_of(&[byte; PAGE_BYTES]))
    }

    #[test]
    fn cold_pages_go_before_hot_ones() {
        let mut pool = Pool::new(0);
        let mut bases = Bases::new(4 * (PAGE_BYTES + ENTRY_COST_BYTES));
        for page in 0..4 {
            let base = Base { seq: ChunkSeq(1), content: plain(page as u8, &mut pool) };
            bases.put(PageId(page), base, page == 0, &mut pool);
        }
        bases.came_again(PageId(2));
        for page in 4..6 {
            let base = Base { seq: ChunkSeq(2), content: plain(page as u8, &mut pool) };
            bases.put(PageId(page), base, true, &mut pool);
        }
        let kept: Vec<u32> = (0..6).filter(|page| bases.index.contains_key(&PageId(*page))).collect();
        assert_eq!(kept, [0, 2, 4, 5], "of the cold ones none is left");
        // Only hot ones are left: a cold one is worth less, a hot one replaces the oldest.
        let base = Base { seq: ChunkSeq(3), content: plain(7, &mut pool) };
        bases.put(PageId(7), base, false, &mut pool);
        assert!(bases.take(PageId(7)).is_none());
        let base = Base { seq: ChunkSeq(3), content: plain(8, &mut pool) };
        bases.put(PageId(8), base, true, &mut pool);
        assert!(bases.take(PageId(0)).is_none() && bases.take(PageId(8)).is_some());
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_what_is_taken_is_what_was_put(
            budget in 0..(20 * 4200usize),
            steps in prop::collection::vec((0..30u32, 0..5u8, any::<bool>(), 1..4000usize), 0..200),
        ) {
            let mut pool = Pool::new(0);
            let mut bases = Bases::new(budget);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (seq, (page, what, hot, len)) in steps.into_iter().enumerate() {
                let (id, seq) = (PageId(page), seq as u32);
                match what {
                    0 => {
                        if let Some(base) = bases.take(id) {
                            prop_assert_eq!(Some(base.seq.0), model.remove(&page));
                            base.content.discard(&mut pool);
                        }
                    }
                    1 => {
                        bases.forget(id, &mut pool);
                        model.remove(&page);
                    }
                    2 => bases.came_again(id),
                    3 => {
                        let content = Content::Packed(vec![0; len].into());
                        bases.put(id, Base { seq: ChunkSeq(seq), content }, hot, &mut pool);
                        model.insert(page, seq);
                    }
                    _ => {
                        let content = plain(page as u8, &mut pool);
                        bases.put(id, Base { seq: ChunkSeq(seq), content }, hot, &mut pool);
                        model.insert(page, seq);
                    }
                }
                prop_assert!(bases.used_bytes() <= budget);
            }
            for page in 0..30 {
                if let Some(base) = bases.take(PageId(page)) {
                    prop_assert_eq!(Some(&base.seq.0), model.get(&page));
                    base.content.discard(&mut pool);
                }
            }
            prop_assert_eq!((bases.used_bytes, bases.packed_bytes), (0, 0));
        }
    }
}
