//! The floor: what no move of a guest over a link can be faster than, physics and a good compressor given.
//!
//! ```text
//!   floor = U / rate + 2 round trips          U: bytes that the guest's memory needs at least
//! ```
//!
//! *U* is counted at the end of a move, in the QEMU that has the guest then: each distinct content of a page once, zero pages
//! not at all, compressed with zstd -3 in blocks of 64 KiB. *rate* is what TCP's payload gets of the link. It is a mark to
//! measure against, not a bound that is proven: a guest whose pages are alike without being equal has fewer bytes than *U*.

use std::collections::HashSet;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_128;
use zstd_safe::CCtx;

use crate::guest::Qemu;
use crate::guest::ram::{self, RamError};
use crate::link::Profile;

const LEVEL: i32 = 3;
const BLOCK_BYTES: usize = 64 << 10;
/// One to ask, one for the guest's last state and the word that it runs.
const ROUND_TRIPS: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    #[error(transparent)]
    Ram(#[from] RamError),
    #[error("zstd: {0}")]
    Compress(&'static str),
}

/// What is in a guest's memory, as far as a move has to carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Distinct pages that are not zero.
    pub pages: u64,
    /// Those, compressed: *U*.
    pub compressed_bytes: u64,
}

impl Content {
    /// Reads all memory of a guest that is stopped.
    pub fn of(qemu: &mut Qemu) -> Result<Content, FloorError> {
        let mut distinct = Distinct::default();
        let mut compressed = Ok(());
        ram::visit_pages(qemu, |page| {
            if compressed.is_ok() {
                compressed = distinct.add(page);
            }
        })?;
        compressed?;
        distinct.finish()
    }

    /// Of memory that is at hand, page by page.
    pub fn of_pages<'a>(pages: impl IntoIterator<Item = &'a [u8]>) -> Result<Content, FloorError> {
        let mut distinct = Distinct::default();
        pages.into_iter().try_for_each(|page| distinct.add(page))?;
        distinct.finish()
    }

    /// `None` for a link without a rate.
    pub fn floor(&self, link: &Profile) -> Option<Duration> {
        let bytes_per_s = link.rate?.payload_bit_per_s() as f64 / 8.0;
        let copy = Duration::from_secs_f64(self.compressed_bytes as f64 / bytes_per_s);
        Some(copy + link.rtt * ROUND_TRIPS)
    }
}

/// Takes pages in and counts what they come to.
struct Distinct {
    /// By hash: a guest of the laboratory does not choose collisions.
    seen: HashSet<u128>,
    block: Vec<u8>,
    scratch: Vec<u8>,
    compressor: CCtx<'static>,
    compressed_bytes: u64,
}

impl Default for Distinct {
    fn default() -> Self {
        Self {
            seen: HashSet::new(),
            block: Vec::with_capacity(BLOCK_BYTES),
            scratch: vec![0; zstd_safe::compress_bound(BLOCK_BYTES)],
            compressor: CCtx::create(),
            compressed_bytes: 0,
        }
    }
}

impl Distinct {
    fn add(&mut self, page: &[u8]) -> Result<(), FloorError> {
        if page.iter().all(|byte| *byte == 0) || !self.seen.insert(xxh3_128(page)) {
            return Ok(());
        }
        self.block.extend_from_slice(page);
        if self.block.len() >= BLOCK_BYTES { self.compress() } else { Ok(()) }
    }

    fn finish(mut self) -> Result<Content, FloorError> {
        if !self.block.is_empty() {
            self.compress()?;
        }
        Ok(Content { pages: self.seen.len() as u64, compressed_bytes: self.compressed_bytes })
    }

    fn compress(&mut self) -> Result<(), FloorError> {
        let written = self.compressor.compress(self.scratch.as_mut_slice(), &self.block, LEVEL);
        let written = written.map_err(|code| FloorError::Compress(zstd_safe::get_error_name(code)))?;
        self.compressed_bytes += written as u64;
        self.block.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 4096;

    fn content(pages: &[[u8; PAGE_BYTES]]) -> Content {
        Content::of_pages(pages.iter().map(|page| &page[..])).unwrap()
    }

    /// Bytes that do not compress, different for each seed.
    fn noise(seed: u64) -> [u8; PAGE_BYTES] {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
    }

    #[test]
    fn zero_pages_cost_nothing_and_equal_pages_count_once() {
        let zero = [0; PAGE_BYTES];
        assert_eq!(content(&[zero; 100]), Content { pages: 0, compressed_bytes: 0 });
        let (one, other) = (noise(1), noise(2));
        let once = content(&[one, other]);
        assert_eq!(once.pages, 2);
        assert_eq!(content(&[zero, one, other, one, zero, other]), once);
    }

    #[test]
    fn what_compresses_counts_compressed_and_what_does_not_counts_whole() {
        let noise: Vec<_> = (1..=40).map(noise).collect();
        let bytes = content(&noise).compressed_bytes;
        let raw = 40 * PAGE_BYTES as u64;
        assert!((raw..raw + raw / 100).contains(&bytes), "{bytes}");
        let text: Vec<_> =
            (0..40u8).map(|n| std::array::from_fn(|i| b"hikyaku"[(i + usize::from(n)) % 7] ^ n)).collect();
        assert!(content(&text).compressed_bytes < raw / 20);
    }

    #[test]
    fn the_floor_is_the_bytes_at_the_payload_rate_and_two_round_trips() {
        let content = Content { pages: 1, compressed_bytes: 125_000_000 };
        let us = Profile::named("us").unwrap();
        let floor = content.floor(&us).unwrap().as_secs_f64();
        assert!((floor - 1.24).abs() < 1e-6, "{floor}");
        assert_eq!(content.floor(&Profile::UNLIMITED), None);
    }
}
