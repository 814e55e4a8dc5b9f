//! Per page, the number of the chunk applied last: 4 bytes, in one allocation of zeros, which the allocator gets from the kernel
//! untouched: it becomes resident where pages came.

use crate::types::{ChunkSeq, PageId};

/// See the module.
#[derive(Debug)]
pub(super) struct Versions {
    /// [`ChunkSeq`]s, as plain numbers: only those are known to the allocator as zeros.
    versions: Vec<u32>,
}

impl Versions {
    pub(super) fn new(pages: u32) -> Self {
        Versions { versions: vec![ChunkSeq::NONE.0; pages as usize] }
    }

    pub(super) fn pages(&self) -> u32 {
        self.versions.len() as u32
    }

    /// At most: what no page has come for is not resident.
    pub(super) fn memory_bytes(&self) -> usize {
        self.versions.capacity() * size_of::<u32>()
    }

    /// The version of a page of the guest, a [`ChunkSeq`]'s number; None outside it.
    pub(super) fn get_mut(&mut self, page: PageId) -> Option<&mut u32> {
        self.versions.get_mut(page.0 as usize)
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
        let end = first.0.saturating_add(run).min(self.pages());
        let mut older: Option<(u32, u32)> = None;
        for at in first.0..end {
            let version = &mut self.versions[at as usize];
            if *version < seq.0 {
                *version = seq.0;
                older = Some(older.map_or((at, 1), |(start, len)| (start, len + 1)));
            } else if let Some((start, len)) = older.take() {
                each(PageId(start), len)?;
            }
        }
        match older {
            Some((start, len)) => each(PageId(start), len),
            None => Ok(()),
        }
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
    fn runs_skip_what_is_newer() {
        let mut versions = Versions::new(1300);
        *versions.get_mut(PageId(600)).unwrap() = 9;
        assert_eq!(advance(&mut versions, 500, 700, 5), [(500, 100), (601, 599)]);
        assert_eq!(advance(&mut versions, 500, 700, 5), []);
        assert_eq!(advance(&mut versions, 1299, 1, 5), [(1299, 1)]);
        assert_eq!(versions.get_mut(PageId(600)), Some(&mut 9));
        assert_eq!(versions.get_mut(PageId(1300)), None);
    }

    #[test]
    fn a_page_costs_four_bytes() {
        let pages = 1 << 20;
        let mut versions = Versions::new(pages);
        advance(&mut versions, 0, pages, 1);
        assert_eq!(versions.memory_bytes(), 4 * pages as usize);
    }
}
