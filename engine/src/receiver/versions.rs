//! Per page, the number of the chunk applied last: 4 bytes, allocated for 2 MiB of the guest when its first page comes.

use crate::types::{ChunkSeq, PageId};

/// Pages of one allocation: 2 MiB of the guest.
const BLOCK_PAGES: u32 = 512;

type Block = [ChunkSeq; BLOCK_PAGES as usize];

/// See the module.
#[derive(Debug)]
pub(super) struct Versions {
    pages: u32,
    blocks: Vec<Option<Box<Block>>>,
    allocated: usize,
}

impl Versions {
    pub(super) fn new(pages: u32) -> Self {
        let blocks = (0..pages.div_ceil(BLOCK_PAGES)).map(|_| None).collect();
        Versions { pages, blocks, allocated: 0 }
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Option<Box<Block>>>() + self.allocated * size_of::<Block>()
    }

    /// The version of a page of the guest; None outside it.
    pub(super) fn get_mut(&mut self, page: PageId) -> Option<&mut ChunkSeq> {
        if page.0 >= self.pages {
            return None;
        }
        self.block_mut(page.0).get_mut((page.0 % BLOCK_PAGES) as usize)
    }

    /// Makes `seq` the version of those of `run` pages from `first` on that are older, and calls `each` with the runs they form.
    /// The pages must be the guest's.
    pub(super) fn advance_run<E>(
        &mut self,
        first: PageId,
        run: u32,
        seq: ChunkSeq,
        mut each: impl FnMut(PageId, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = first.0.saturating_add(run).min(self.pages);
        let mut at = first.0;
        let mut older: Option<(u32, u32)> = None;
        while at < end {
            let offset = (at % BLOCK_PAGES) as usize;
            let here = (BLOCK_PAGES - at % BLOCK_PAGES).min(end - at);
            let block = self.block_mut(at);
            for version in block.iter_mut().skip(offset).take(here as usize) {
                if *version < seq {
                    *version = seq;
                    older = Some(older.map_or((at, 1), |(start, len)| (start, len + 1)));
                } else if let Some((start, len)) = older.take() {
                    each(PageId(start), len)?;
                }
                at += 1;
            }
        }
        match older {
            Some((start, len)) => each(PageId(start), len),
            None => Ok(()),
        }
    }

    fn block_mut(&mut self, page: u32) -> &mut Block {
        let slot = &mut self.blocks[(page / BLOCK_PAGES) as usize];
        slot.get_or_insert_with(|| {
            self.allocated += 1;
            Box::new([ChunkSeq::NONE; BLOCK_PAGES as usize])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advance(versions: &mut Versions, first: u32, run: u32, seq: u32) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        let each = |page: PageId, run| {
            runs.push((page.0, run));
            Ok::<_, ()>(())
        };
        assert_eq!(versions.advance_run(PageId(first), run, ChunkSeq(seq), each), Ok(()));
        runs
    }

    #[test]
    fn runs_skip_what_is_newer_and_cross_allocations() {
        let mut versions = Versions::new(1300);
        *versions.get_mut(PageId(600)).unwrap() = ChunkSeq(9);
        assert_eq!(advance(&mut versions, 500, 700, 5), [(500, 100), (601, 599)]);
        assert_eq!(advance(&mut versions, 500, 700, 5), []);
        assert_eq!(advance(&mut versions, 1299, 1, 5), [(1299, 1)]);
        assert_eq!(versions.get_mut(PageId(600)), Some(&mut ChunkSeq(9)));
        assert_eq!(versions.get_mut(PageId(1300)), None);
    }

    #[test]
    fn a_page_costs_four_bytes_and_only_where_pages_came() {
        let pages = 1 << 20;
        let mut versions = Versions::new(pages);
        assert!(versions.memory_bytes() <= pages as usize / 64);
        advance(&mut versions, 0, pages, 1);
        let per_page = versions.memory_bytes() as f64 / f64::from(pages);
        assert!(per_page <= 4.02, "{per_page} bytes per page");
    }
}
