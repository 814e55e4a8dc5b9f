//! Whether it is worth trying to compress a page: by how many different bytes there are among a few.

use crate::types::{PAGE_BYTES, PageBytes};

/// Words that are looked at in one round, one in each eighth of the page.
const WORDS: usize = 8;
const WORD_BYTES: usize = 8;
/// For each round, how many different bytes at most the page is sure to have if it compresses, and at least if it does not; between them the next round
/// decides. Of 64 random bytes 56.6 are different on average (deviation 2.3), where a quarter of the page is all the same 44.7 (1.8); of
/// 128 bytes 100.9 (3.7) and 81.0 (3.2).
const ROUNDS: [(u64, u64); 2] = [(43, 53), (88, 89)];

/// Whether a compressor would make the page smaller by more than a tenth or so. Costs less than copying the page.
///
/// Random bytes are taken for compressible, and a page that compresses by a quarter for random, about one time in a thousand. Not seen:
/// random bytes that occur twice.
pub fn looks_compressible(page: &PageBytes) -> bool {
    const STRIDE: usize = PAGE_BYTES / WORD_BYTES / WORDS;
    let words = page.as_chunks::<WORD_BYTES>().0;
    // A byte for each value, not a bit: writing one need not wait for another.
    let mut seen = [0u8; 256];
    for (round, (few, many)) in ROUNDS.into_iter().enumerate() {
        for (at, part) in words.chunks_exact(STRIDE).enumerate() {
            // Not the same place in each part: records have lengths that are powers of two. Nor the first: pages begin with headers.
            for byte in part[(at * 13 + 7 + round * STRIDE / 2) % STRIDE] {
                seen[usize::from(byte)] = 1;
            }
        }
        // Eight sums side by side, none of which passes 32, and then their sum.
        let sums = seen.as_chunks().0.iter().fold(0u64, |sums, seen| sums + u64::from_le_bytes(*seen));
        let different = sums.wrapping_mul(0x0101_0101_0101_0101) >> 56;
        if different <= few {
            return true;
        }
        if different >= many {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Encoder, Kind, Method};

    const PAGES: usize = 2000;

    /// How many of 1000 pages, made from random ones, look compressible; and the share that zstd saves, in 1/1000.
    fn looks(mut make: impl FnMut(&mut PageBytes)) -> (usize, usize) {
        let mut x = 5u64;
        let (mut looks, mut saved) = (0, 0);
        let mut encoder = Encoder::default();
        for _ in 0..PAGES {
            let mut page = [0; PAGE_BYTES];
            for word in page.as_chunks_mut::<8>().0 {
                x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                *word = (z ^ z >> 31).to_le_bytes();
            }
            make(&mut page);
            looks += usize::from(looks_compressible(&page));
            let packed = encoder.stream(Kind::Raw, 0, &page, Method::Zstd(1), 0);
            saved += packed.body_bytes - packed.packed_bytes;
        }
        (looks * 1000 / PAGES, saved * 1000 / PAGES / PAGE_BYTES)
    }

    #[test]
    fn random_pages_do_not_look_compressible() {
        let (looks, saved) = looks(|_| ());
        assert!(looks <= 3 && saved == 0, "{looks}, saved {saved}");
    }

    #[test]
    fn what_compresses_by_a_quarter_and_more_looks_so() {
        type Make = fn(&mut PageBytes);
        let kinds: [(&str, usize, Make); 9] = [
            ("half zero", 450, |page| page[2048..].fill(0)),
            ("a quarter zero", 200, |page| page[1024..2048].fill(0)),
            ("records, half of each the same", 400, |page| {
                page.as_chunks_mut::<256>().0.iter_mut().for_each(|record| record[128..].fill(7));
            }),
            ("small numbers", 300, |page| {
                page.as_chunks_mut::<4>().0.iter_mut().for_each(|word| word[2..].fill(0));
            }),
            ("pointers into a heap", 500, |page| {
                page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| {
                    word[0] &= 0xf8;
                    word[3..].copy_from_slice(&[0x5c, 0x3a, 0x7f, 0, 0]);
                });
            }),
            ("structures with pointers and empty fields", 300, |page| {
                page.as_chunks_mut::<64>().0.iter_mut().for_each(|object| {
                    object[16..24].fill(0);
                    object[24..32].copy_from_slice(&0xffff_8880_1234_5000u64.to_le_bytes());
                    object[40..48].fill(0);
                });
            }),
            ("text", 300, |page| {
                page.iter_mut().for_each(|byte| *byte = b"etaoin shrdlucmf"[usize::from(*byte % 16)])
            }),
            ("base 64", 200, |page| {
                page.iter_mut().for_each(|byte| *byte = b'0' + *byte % 64);
            }),
            ("code: some bytes far more often than others", 150, |page| {
                page.iter_mut().enumerate().for_each(|(at, byte)| {
                    if at % 3 != 0 {
                        *byte = [0, 0x48, 0x8b, 0xff, 0x0f, 0x24, 0x89, 0xe8][usize::from(*byte % 8)];
                    }
                });
            }),
        ];
        for (name, least_saved, make) in kinds {
            let (looks, saved) = looks(make);
            assert!(saved >= least_saved, "{name}: zstd saves {saved}");
            assert!(looks >= 990, "{name}: {looks} of 1000 look compressible, zstd saves {saved}");
        }
    }

    #[test]
    fn what_is_nearly_random_is_a_matter_of_chance_and_costs_little_either_way() {
        let (_, saved) = looks(|page| page[..512].fill(0));
        assert!(saved < 125, "zstd saves {saved}");
        let (looks, saved) = looks(|page| page[..64].fill(0));
        assert!(looks < 100 && saved < 20, "{looks}, saved {saved}");
    }

    #[test]
    fn random_bytes_that_occur_twice_are_not_seen() {
        let (looks, saved) = looks(|page| page.copy_within(..2048, 2048));
        assert!(looks < 10 && saved > 450, "{looks}, saved {saved}");
    }
}
