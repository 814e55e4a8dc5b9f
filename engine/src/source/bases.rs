//! What was last sent of pages, for deltas: bounded, and what pays is kept.
//!
//! | tier | which pages | kept |
//! |---|---|---|
//! | cold | sent once | as they are, while there is room to spare |
//! | hot | came again after they were sent, or while they waited | as they are while there is room to spare, then packed by a worker |
//! | marked | all others | by their [`Marks`] alone |
//!
//! A cold page costs nothing to keep: its buffer is the one it was sent from. Which of them will come again is not known; when one does, it
//! moves to the hot tier. Where room is wanted, the oldest cold page is marked, then, for a hot one, the oldest hot page, if it has not come again for longer than
//! that one took to: else a guest that goes round in more pages than there is room for would never find one of them whole. When nothing is left to be
//! marked, the oldest marks go, by the same rule. Marks make a longer delta, but a page without a base goes whole. A page whose deltas do not pay is
//! not kept (`PageMeta::goes_without_base`).
//!
//! A base is always of the bytes that were *sent*, never what RAM held. An entry taken for a job is out of the store until the
//! job comes back; a page without one goes whole.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crate::codec::marks::{Marker, Marks};
use crate::codec::page_pack::unpack;
use crate::source::pool::{BOX_OVERHEAD_BYTES, Pool};
use crate::types::{ChunkSeq, PAGE_BYTES, PageBytes, PageId};

/// Memory of one entry beside its content: itself, and its place in the index.
const ENTRY_COST_BYTES: usize = size_of::<Entry>() + BOX_OVERHEAD_BYTES + 32;
const MARKED_COST_BYTES: usize = Marks::BYTES + ENTRY_COST_BYTES;
/// Of the budget, in 1/1000, what is filled before hot pages are packed and cold ones marked.
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
    Marked(Box<Marks>),
}

impl Content {
    /// Whether it is all of the page.
    pub(super) fn is_whole(&self) -> bool {
        !matches!(self, Content::Marked(_))
    }

    pub(super) fn discard(self, pool: &mut Pool) {
        if let Content::Plain(bytes) = self {
            pool.give_back(bytes);
        }
    }

    fn len(&self) -> usize {
        match self {
            Content::Plain(_) => PAGE_BYTES,
            Content::Packed(bytes) => bytes.len(),
            Content::Marked(_) => Marks::BYTES,
        }
    }

    /// What is not the pool's.
    fn own_bytes(&self) -> usize {
        if let Content::Plain(_) = self { 0 } else { self.len() }
    }
}

/// In which form a page that is about to be sent is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    No,
    Plain,
    Packed,
    Marked,
}

/// How a page is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Used {
    Once,
    /// It came again; the time before, this chunk took it, if that is known.
    Again {
        before: ChunkSeq,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Cold,
    Hot,
    Marked,
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
    /// Of them, contents that are not in the pool's buffers.
    own_bytes: usize,
    /// Entries that are out for a job: room for the marks of each is held.
    taken: usize,
    /// By a function that is always the same: what is held is a figure that virtual time reproduces, and its keys are numbers.
    index: HashMap<PageId, u32, BuildHasherDefault<DefaultHasher>>,
    entries: Vec<Entry>,
    free: u32,
    tiers: [Ends; 3],
    marker: Arc<Marker>,
}

impl Bases {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Bases {
            budget_bytes,
            used_bytes: 0,
            own_bytes: 0,
            taken: 0,
            index: HashMap::default(),
            entries: Vec::new(),
            free: NONE,
            tiers: [EMPTY; 3],
            marker: Arc::new(Marker::any()),
        }
    }

    /// How a page is to be kept that is being sent now.
    pub(super) fn keep(&self, hot: bool) -> Keep {
        if self.used_bytes + ENTRY_COST_BYTES + PAGE_BYTES <= self.budget_bytes / 1000 * PRESSURE_PERMILLE {
            Keep::Plain
        } else if hot && self.budget_bytes > 0 {
            Keep::Packed
        } else if self.used_bytes + MARKED_COST_BYTES <= self.budget_bytes
            || self.oldest(Tier::Cold).is_some()
        {
            Keep::Marked
        } else {
            Keep::No
        }
    }

    /// What all marks here are made by.
    pub(super) fn marker(&self) -> &Arc<Marker> {
        &self.marker
    }

    /// Takes a base out for a job, until [`Bases::back`].
    pub(super) fn take(&mut self, page: PageId) -> Option<Base> {
        let at = *self.index.get(&page)?;
        let base = self.remove(at)?;
        self.taken += 1;
        Some(base)
    }

    /// A job is done with a base: what becomes of it, or of what came in its place, is put now or never.
    pub(super) fn back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }

    /// The page has come again: its base, if there is one, is worth keeping, and will be wanted.
    pub(super) fn came_again(&mut self, page: PageId) {
        if let Some(&at) = self.index.get(&page)
            && let Some(tier) = self.entries.get(at as usize).map(|entry| entry.tier)
        {
            self.unlink(at);
            self.append(at, if tier == Tier::Cold { Tier::Hot } else { tier });
        }
    }

    /// Keeps `base`, if there is room or something worth less.
    pub(super) fn put(&mut self, page: PageId, base: Base, used: Used, pool: &mut Pool) {
        // What was kept of it is not what the peer has any more.
        self.forget(page, pool);
        let mut base = base;
        let (hot, before) = match used {
            Used::Once => (false, ChunkSeq::NONE),
            Used::Again { before } => (true, before),
        };
        let unknown = before == ChunkSeq::NONE;
        // Else whole pages would take the room of those that are on their way, which then come back to none.
        let taken = self.taken * MARKED_COST_BYTES;
        while self.used_bytes + taken + base.content.len() + ENTRY_COST_BYTES > self.budget_bytes {
            let rarer = |at: &u32| self.seq(*at) < before;
            let whole = self.oldest(Tier::Cold).or(self.oldest(Tier::Hot).filter(rarer));
            if let Some(at) = whole {
                self.mark(at, pool);
            } else if base.content.len() > Marks::BYTES {
                let Some(marked) = self.marked(base, pool) else { return };
                base = marked;
            } else if hot
                && let Some(at) = self.oldest(Tier::Marked).filter(|at| unknown || self.seq(*at) < before)
            {
                self.remove(at).into_iter().for_each(|base| base.content.discard(pool));
            } else {
                return base.content.discard(pool);
            }
        }
        let tier = match base.content {
            Content::Marked(_) => Tier::Marked,
            _ if hot => Tier::Hot,
            _ => Tier::Cold,
        };
        let cost = base.content.len() + ENTRY_COST_BYTES;
        self.used_bytes += cost;
        self.own_bytes += base.content.own_bytes();
        let entry = Entry { page, tier, older: NONE, newer: NONE, base: Some(base) };
        let at = match self.entries.get_mut(self.free as usize) {
            Some(free) => std::mem::replace(&mut self.free, std::mem::replace(free, entry).newer),
            None => {
                if self.entries.len() == self.entries.capacity() {
                    // Twice as many, as it would be by itself, is more than the budget has.
                    self.entries.reserve_exact(self.entries.len() / 8 + 16);
                }
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.append(at, tier);
        self.index.insert(page, at);
    }

    /// Forgets the page's base.
    pub(super) fn forget(&mut self, page: PageId, pool: &mut Pool) {
        if let Some(&at) = self.index.get(&page) {
            self.remove(at).into_iter().for_each(|base| base.content.discard(pool));
        }
    }

    /// Memory beyond the page buffers, which are the pool's.
    pub(super) fn memory_bytes(&self) -> usize {
        self.own_bytes
            + self.index.capacity() * (size_of::<(PageId, u32)>() + 1)
            + self.entries.capacity() * size_of::<Entry>()
    }

    /// What counts against the budget.
    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn seq(&self, at: u32) -> ChunkSeq {
        self.entries
            .get(at as usize)
            .and_then(|entry| entry.base.as_ref())
            .map_or(ChunkSeq::NONE, |base| base.seq)
    }

    fn oldest(&self, tier: Tier) -> Option<u32> {
        Some(self.tiers[tier as usize].oldest).filter(|at| *at != NONE)
    }

    /// Of a base that is here whole, keeps marks alone.
    fn mark(&mut self, at: u32, pool: &mut Pool) {
        let Some(base) = self.remove_content(at) else { return };
        match self.marked(base, pool) {
            Some(base) => {
                self.used_bytes += base.content.len();
                self.own_bytes += base.content.own_bytes();
                self.unlink(at);
                self.append(at, Tier::Marked);
                self.entries[at as usize].base = Some(base);
            }
            None => self.remove_entry(at),
        }
    }

    /// None: what was kept is damaged.
    fn marked(&self, base: Base, pool: &mut Pool) -> Option<Base> {
        let marks = match &base.content {
            Content::Plain(bytes) => self.marker.marks(bytes),
            Content::Packed(packed) if packed.len() > Marks::BYTES => {
                let mut bytes = [0; PAGE_BYTES];
                unpack(packed, &mut bytes).ok()?;
                self.marker.marks(&bytes)
            }
            Content::Packed(_) | Content::Marked(_) => return Some(base),
        };
        base.content.discard(pool);
        Some(Base { seq: base.seq, content: Content::Marked(Box::new(marks)) })
    }

    fn remove(&mut self, at: u32) -> Option<Base> {
        let base = self.remove_content(at)?;
        self.remove_entry(at);
        Some(base)
    }

    fn remove_content(&mut self, at: u32) -> Option<Base> {
        let base = self.entries.get_mut(at as usize)?.base.take()?;
        self.used_bytes -= base.content.len();
        self.own_bytes -= base.content.own_bytes();
        Some(base)
    }

    fn remove_entry(&mut self, at: u32) {
        self.unlink(at);
        let Some(entry) = self.entries.get_mut(at as usize) else { return };
        self.index.remove(&entry.page);
        entry.newer = std::mem::replace(&mut self.free, at);
        self.used_bytes -= ENTRY_COST_BYTES;
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
    use crate::codec::page_pack::PagePacker;

    fn plain(byte: u8, pool: &mut Pool) -> Content {
        Content::Plain(pool.copy_of(&[byte; PAGE_BYTES]))
    }

    /// Rarely, if again.
    fn used(hot: bool) -> Used {
        if hot { Used::Again { before: ChunkSeq(u32::MAX) } } else { Used::Once }
    }

    /// Which of the first pages are kept whole, and which by their marks.
    fn kept(bases: &Bases) -> (Vec<u32>, Vec<u32>) {
        let of = |whole: bool| {
            let those = (0..20).filter(|page| {
                let entry = bases.index.get(&PageId(*page)).map(|at| &bases.entries[*at as usize]);
                entry
                    .and_then(|entry| entry.base.as_ref())
                    .is_some_and(|base| base.content.is_whole() == whole)
            });
            those.collect()
        };
        (of(true), of(false))
    }

    #[test]
    fn cold_pages_are_marked_before_hot_ones_and_marks_go_last() {
        let mut pool = Pool::new(0);
        let mut bases = Bases::new(4 * (PAGE_BYTES + ENTRY_COST_BYTES) + 4 * MARKED_COST_BYTES);
        let put = |bases: &mut Bases, pool: &mut Pool, page: u32, hot: bool| {
            let base = Base { seq: ChunkSeq(page + 1), content: plain(page as u8, pool) };
            bases.put(PageId(page), base, used(hot), pool);
        };
        (0..4).for_each(|page| put(&mut bases, &mut pool, page, page == 0));
        bases.came_again(PageId(2));
        put(&mut bases, &mut pool, 4, true);
        assert_eq!(kept(&bases), (vec![0, 2, 3, 4], vec![1]), "the oldest cold one");
        put(&mut bases, &mut pool, 5, true);
        assert_eq!(kept(&bases), (vec![0, 2, 4, 5], vec![1, 3]));
        // Only hot ones are left whole: a cold one is worth less, a hot one replaces the oldest.
        put(&mut bases, &mut pool, 7, false);
        put(&mut bases, &mut pool, 8, true);
        assert_eq!(kept(&bases), (vec![2, 4, 5, 8], vec![0, 1, 3, 7]));
        let base = bases.take(PageId(7)).unwrap();
        let Content::Marked(marks) = &base.content else { panic!("{base:?}") };
        assert_eq!((base.seq, &**marks), (ChunkSeq(8), &bases.marker.marks(&[7; PAGE_BYTES])));
        assert!(bases.take(PageId(8)).is_some_and(|base| base.content.is_whole()));

        // With room for marks alone the oldest go for a hot one, and a cold one goes itself.
        let mut bases = Bases::new(3 * MARKED_COST_BYTES);
        (0..3).for_each(|page| put(&mut bases, &mut pool, page, false));
        put(&mut bases, &mut pool, 3, false);
        bases.came_again(PageId(0));
        put(&mut bases, &mut pool, 4, true);
        assert_eq!(kept(&bases), (vec![], vec![0, 2, 4]));
    }

    #[test]
    fn the_base_of_a_page_that_waits_is_not_the_first_to_be_marked() {
        let mut pool = Pool::new(0);
        let mut bases = Bases::new(5 * (PAGE_BYTES + ENTRY_COST_BYTES));
        let mut put = |bases: &mut Bases, page: u32| {
            let base = Base { seq: ChunkSeq(page + 1), content: plain(page as u8, &mut pool) };
            bases.put(PageId(page), base, used(true), &mut pool);
        };
        (0..4).for_each(|page| put(&mut bases, page));
        bases.came_again(PageId(0));
        (4..6).for_each(|page| put(&mut bases, page));
        assert_eq!(kept(&bases).0, [0, 3, 4, 5]);
    }

    #[test]
    fn many_marks_take_no_more_memory_than_the_budget() {
        let mut pool = Pool::new(0);
        let pages = (1 << 15) + 1;
        let mut bases = Bases::new(pages as usize * MARKED_COST_BYTES);
        let marks = bases.marker.marks(&[1; PAGE_BYTES]);
        for page in 0..pages + 100 {
            let base = Base { seq: ChunkSeq(1), content: Content::Marked(Box::new(marks.clone())) };
            bases.put(PageId(page), base, Used::Once, &mut pool);
        }
        let memory_bytes = bases.memory_bytes() + pages as usize * BOX_OVERHEAD_BYTES;
        assert!(memory_bytes <= bases.budget_bytes, "{memory_bytes} of {}", bases.budget_bytes);
    }

    #[test]
    fn what_is_packed_smaller_than_its_marks_stays_so_and_what_is_damaged_goes() {
        let mut pool = Pool::new(0);
        let mut x = 1u64;
        let half: PageBytes = std::array::from_fn(|at| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if at < PAGE_BYTES / 2 { (x >> 56) as u8 } else { 0 }
        });
        let packed = |page| Content::Packed(PagePacker::default().pack(page).unwrap().into());
        let (small, large) = (packed(&[5; PAGE_BYTES]), packed(&half));
        let damaged = || Content::Packed(vec![0xff; 1000].into());
        assert!(small.len() < Marks::BYTES && large.len() > 1000 + Marks::BYTES);
        let mut bases = Bases::new(small.len() + large.len() + 3 * ENTRY_COST_BYTES);
        for (page, content) in [small, large, damaged()].into_iter().enumerate() {
            bases.put(PageId(page as u32), Base { seq: ChunkSeq(1), content }, used(true), &mut pool);
        }
        assert_eq!(kept(&bases), (vec![0, 2], vec![1]));
        let content = Content::Packed(
            vec![0xff; bases.budget_bytes - bases.used_bytes() - ENTRY_COST_BYTES + 1].into(),
        );
        bases.put(PageId(3), Base { seq: ChunkSeq(1), content }, used(true), &mut pool);
        assert_eq!(kept(&bases), (vec![0, 3], vec![1]));
        let marks = bases.marker.marks(&half);
        assert!(matches!(bases.take(PageId(1)).unwrap().content, Content::Marked(of) if *of == marks));
    }

    /// Lists, index and figures say the same.
    fn audit(bases: &Bases) {
        let mut listed = 0;
        for tier in [Tier::Cold, Tier::Hot, Tier::Marked] {
            let Ends { oldest, newest } = bases.tiers[tier as usize];
            let (mut at, mut before) = (oldest, NONE);
            while at != NONE {
                let entry = &bases.entries[at as usize];
                assert_eq!((entry.tier, entry.older, bases.index[&entry.page]), (tier, before, at));
                listed += 1;
                (before, at) = (at, entry.newer);
            }
            assert_eq!(newest, before);
        }
        assert_eq!(listed, bases.index.len());
        let contents = bases.entries.iter().filter_map(|entry| entry.base.as_ref()).map(|base| &base.content);
        let (used, own) = contents.fold((0, 0), |(used, own), content| {
            (used + content.len() + ENTRY_COST_BYTES, own + content.own_bytes())
        });
        assert_eq!((bases.used_bytes, bases.own_bytes), (used, own));
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_what_is_taken_is_what_was_put(
            budget in 0..(20 * 4200usize),
            steps in prop::collection::vec((0..30u32, 0..5u8, any::<Option<u32>>(), 1..4000usize), 0..200),
        ) {
            let mut pool = Pool::new(0);
            let mut bases = Bases::new(budget);
            let mut model: HashMap<u32, u32> = HashMap::new();
            let mut taken = 0;
            for (seq, (page, what, hot, len)) in steps.into_iter().enumerate() {
                let (id, seq) = (PageId(page), seq as u32);
                let before = |before| Used::Again { before: ChunkSeq(before % 200) };
                let used = hot.map_or(Used::Once, before);
                match what {
                    0 => {
                        if let Some(base) = bases.take(id) {
                            prop_assert_eq!(Some(base.seq.0), model.remove(&page));
                            base.content.discard(&mut pool);
                            taken += 1;
                        }
                    }
                    1 => {
                        bases.forget(id, &mut pool);
                        model.remove(&page);
                    }
                    2 if taken > 0 => {
                        bases.back();
                        taken -= 1;
                    }
                    2 => bases.came_again(id),
                    3 => {
                        let len = if len % 3 == 0 { len } else { len / 16 };
                        let content = Content::Packed(vec![0; len].into());
                        bases.put(id, Base { seq: ChunkSeq(seq), content }, used, &mut pool);
                        model.insert(page, seq);
                    }
                    _ => {
                        let content = plain(page as u8, &mut pool);
                        bases.put(id, Base { seq: ChunkSeq(seq), content }, used, &mut pool);
                        model.insert(page, seq);
                    }
                }
                prop_assert!(bases.used_bytes() <= budget);
                audit(&bases);
            }
            for page in 0..30 {
                if let Some(base) = bases.take(PageId(page)) {
                    prop_assert_eq!(Some(&base.seq.0), model.get(&page));
                    base.content.discard(&mut pool);
                }
            }
            prop_assert_eq!((bases.used_bytes, bases.own_bytes), (0, 0));
            prop_assert!(bases.taken >= taken);
        }
    }
}
