//! What is kept of every page of the guest: 12 bytes and one bit.

use crate::source::heat::Heat;
use crate::source::staging::NO_SLOT;
use crate::types::{ChunkSeq, PageId};

/// Kept of one page. Three words: five pages to a cache line, 3 MiB to a guest of 1 GiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageMeta {
    /// Where its content is staged, or [`NO_SLOT`].
    pub slot: u32,
    /// The last chunk that took it.
    pub sent: ChunkSeq,
    pub heat: Heat,
    pub seen: bool,
    /// [`SENT_ZERO`], and how many more times the page goes without a base, from [`WITHOUT_BASE`] on.
    bits: u8,
}

const _: () = assert!(size_of::<PageMeta>() <= 12);

const FRESH: PageMeta =
    PageMeta { slot: NO_SLOT, sent: ChunkSeq::NONE, heat: Heat::NONE, seen: false, bits: 0 };

const SENT_ZERO: u8 = 1;
const WITHOUT_BASE: u8 = 2;
/// How often a page goes without a base after a delta did not pay: such a page is most often renewed as a whole.
const TIMES_WITHOUT_BASE: u8 = 7;

impl PageMeta {
    /// What `sent` carries is zero.
    pub(super) fn sent_zero(&self) -> bool {
        self.bits & SENT_ZERO != 0
    }

    pub(super) fn set_sent_zero(&mut self, zero: bool) {
        self.bits = (self.bits & !SENT_ZERO) | u8::from(zero);
    }

    /// Its peer's content is known to be of no use for deltas, this time.
    pub(super) fn goes_without_base(&mut self) -> bool {
        let left = self.bits / WITHOUT_BASE;
        self.bits -= if left > 0 { WITHOUT_BASE } else { 0 };
        left > 0
    }

    /// A delta did not pay.
    pub(super) fn delta_did_not_pay(&mut self) {
        self.bits = (self.bits & SENT_ZERO) | (TIMES_WITHOUT_BASE * WITHOUT_BASE);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct PageTable {
    meta: Vec<PageMeta>,
    /// Pages whose newest content is zero and not yet sent; such a page has no slot.
    pub zeros: ZeroSet,
}

impl PageTable {
    pub(super) fn new(pages: u32) -> Self {
        PageTable { meta: vec![FRESH; pages as usize], zeros: ZeroSet::new(pages) }
    }

    pub(super) fn len(&self) -> u32 {
        self.meta.len() as u32
    }

    pub(super) fn get_mut(&mut self, page: PageId) -> Option<&mut PageMeta> {
        self.meta.get_mut(page.0 as usize)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.meta.capacity() * size_of::<PageMeta>() + self.zeros.words.capacity() * size_of::<u64>()
    }
}

/// A set of pages, one bit each, that is taken out as runs.
#[derive(Debug)]
pub(super) struct ZeroSet {
    words: Vec<u64>,
    len: usize,
    /// No word outside `first..end` has a bit.
    first: usize,
    end: usize,
}

impl ZeroSet {
    fn new(pages: u32) -> Self {
        let words = vec![0; pages.div_ceil(64) as usize];
        ZeroSet { first: words.len(), words, len: 0, end: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a page of the guest; whether it was not in the set.
    pub(super) fn insert(&mut self, page: PageId) -> bool {
        let at = page.0 as usize / 64;
        let bit = 1 << (page.0 % 64);
        let Some(word) = self.words.get_mut(at) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(new);
        self.first = self.first.min(at);
        self.end = self.end.max(at + 1);
        new
    }

    /// Takes a page out; whether it was in the set.
    pub(super) fn remove(&mut self, page: PageId) -> bool {
        if self.len == 0 {
            return false;
        }
        let bit = 1 << (page.0 % 64);
        match self.words.get_mut(page.0 as usize / 64) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.len -= 1;
                true
            }
            _ => false,
        }
    }

    /// Moves up to `max` runs, the lowest pages first, to `out`.
    pub(super) fn take_runs(&mut self, max: usize, out: &mut Vec<(PageId, u32)>) {
        while out.len() < max && self.len > 0 {
            while self.words.get(self.first) == Some(&0) {
                self.first += 1;
            }
            let Some(word) = self.words.get(self.first) else { return };
            let start = self.first as u32 * 64 + word.trailing_zeros();
            let run = self.take_run(start);
            out.push((PageId(start), run));
        }
        if self.len == 0 {
            self.first = self.words.len();
            self.end = 0;
        }
    }

    /// Clears the bits from `start` on that follow one another; how many they were.
    fn take_run(&mut self, start: u32) -> u32 {
        let mut run = 0;
        let mut at = start;
        while let Some(word) = self.words.get_mut(at as usize / 64) {
            let offset = at % 64;
            let ones = (*word >> offset).trailing_ones();
            if ones == 0 {
                break;
            }
            let mask = (u64::MAX >> (64 - ones)) << offset;
            *word &= !mask;
            run += ones;
            at += ones;
            if !at.is_multiple_of(64) {
                break;
            }
        }
        self.len -= run as usize;
        run
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_set_and_are_as_long_as_can_be(
            pages in 1..400u32,
            inserted in prop::collection::vec((0..400u32, 1..130u32), 0..20),
            removed in prop::collection::vec(0..400u32, 0..20),
        ) {
            let mut model = vec![false; pages as usize];
            let mut set = ZeroSet::new(pages);
            for page in inserted.iter().flat_map(|(page, run)| *page..page + run).filter(|page| *page < pages) {
                prop_assert_eq!(set.insert(PageId(page)), !model[page as usize]);
                model[page as usize] = true;
            }
            for page in removed.into_iter().filter(|page| *page < pages) {
                prop_assert_eq!(set.remove(PageId(page)), model[page as usize]);
                model[page as usize] = false;
            }
            prop_assert_eq!(set.len(), model.iter().filter(|zero| **zero).count());
            let mut runs = Vec::new();
            set.take_runs(3, &mut runs);
            prop_assert!(runs.len() <= 3);
            set.take_runs(usize::MAX, &mut runs);
            let mut expected: Vec<(PageId, u32)> = Vec::new();
            for page in (0..pages).filter(|page| model[*page as usize]) {
                match expected.last_mut() {
                    Some((first, run)) if first.0 + *run == page => *run += 1,
                    _ => expected.push((PageId(page), 1)),
                }
            }
            prop_assert_eq!(runs, expected);
            prop_assert_eq!(set.len(), 0);
        }
    }
}
