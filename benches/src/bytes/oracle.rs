//! What one would send who knows beforehand which pages will change, and into what: each page once, and of those that changed while the guest was
//! moved one delta each, between what it was at the beginning and what it was at the end.
//!
//! The pages are *U* ([`Content`](crate::floor::Content)); this is the deltas. A delta that is longer than what zstd makes of the page is the page.

use hikyaku_engine::codec::xbzrle::{self, Encoding};
use hikyaku_engine::{PAGE_BYTES, PageBytes};
use zstd_safe::CCtx;

/// As *U*'s.
const LEVEL: i32 = 3;
const BLOCK_BYTES: usize = 64 << 10;

/// The deltas between two contents of a guest's memory, compressed in blocks.
pub struct Deltas {
    block: Vec<u8>,
    delta: Vec<u8>,
    scratch: Vec<u8>,
    compressor: CCtx<'static>,
    pub pages: u64,
    pub compressed_bytes: u64,
}

impl Default for Deltas {
    fn default() -> Self {
        Deltas {
            block: Vec::with_capacity(BLOCK_BYTES + PAGE_BYTES),
            delta: Vec::with_capacity(PAGE_BYTES),
            scratch: vec![0; zstd_safe::compress_bound(BLOCK_BYTES + PAGE_BYTES)],
            compressor: CCtx::create(),
            pages: 0,
            compressed_bytes: 0,
        }
    }
}

impl Deltas {
    /// A page held `before`, and holds `after`.
    pub fn add(&mut self, before: &PageBytes, after: &PageBytes) {
        if before == after {
            return;
        }
        self.pages += 1;
        self.delta.clear();
        let encoding = xbzrle::encode(before, after, PAGE_BYTES, &mut self.delta);
        match encoding {
            Encoding::Delta(_) if self.delta.len() < self.packed(after) => {
                self.block.extend_from_slice(&self.delta)
            }
            _ => self.block.extend_from_slice(after),
        }
        if self.block.len() >= BLOCK_BYTES {
            self.compress();
        }
    }

    /// What the last ones come to is counted.
    pub fn finish(mut self) -> Deltas {
        self.compress();
        self
    }

    fn packed(&mut self, page: &PageBytes) -> usize {
        self.compressor.compress(self.scratch.as_mut_slice(), page, LEVEL).unwrap_or(PAGE_BYTES)
    }

    fn compress(&mut self) {
        if !self.block.is_empty() {
            let packed = self.compressor.compress(self.scratch.as_mut_slice(), &self.block, LEVEL);
            self.compressed_bytes += packed.unwrap_or(self.block.len()) as u64;
            self.block.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(PageBytes, PageBytes)]) -> Deltas {
        let mut deltas = Deltas::default();
        pairs.iter().for_each(|(before, after)| deltas.add(before, after));
        deltas.finish()
    }

    #[test]
    fn what_did_not_change_costs_nothing_and_a_page_that_is_new_costs_no_more_than_itself() {
        let mut state = 1u64;
        let mut noise = || -> PageBytes {
            std::array::from_fn(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
        };
        let (one, other) = (noise(), noise());
        let same = of(&[(one, one)]);
        assert_eq!((same.pages, same.compressed_bytes), (0, 0));
        let mut changed = one;
        changed[100..164].copy_from_slice(&other[100..164]);
        let small = of(&[(one, changed)]);
        assert_eq!(small.pages, 1);
        assert!((64..100).contains(&small.compressed_bytes), "{}", small.compressed_bytes);
        let whole = of(&[(one, other)]);
        assert!((4096..4130).contains(&whole.compressed_bytes), "{}", whole.compressed_bytes);
        let text = [b'a'; PAGE_BYTES];
        assert!(of(&[(one, text)]).compressed_bytes < 40);
    }
}
