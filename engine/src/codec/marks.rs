//! What tells which parts of a page have changed, where there is no room to keep the page: a hash of 64 bits of each 128 bytes.
//!
//! A delta from marks is a little longer than one from the page itself, for it has whole parts; but marks take a sixteenth of the memory.
//!
//! The hash is Lemire's and Kaser's *multilinear* family ("Strongly universal string hashing is fast", 2012): over 64-bit words `x` and random
//! 128-bit numbers `m`, the upper half of `m0 + m1 x1 + m2 x2 + …` modulo 2^128. Two contents, whatever they are, have the same hash with a
//! probability of 2^-64, over the choice of the numbers; which a guest cannot know, since nothing that depends on them leaves the process but
//! which parts are sent.

use std::hash::BuildHasher as _;

use crate::codec::xbzrle::{self, Encoding};
use crate::types::{PAGE_BYTES, PageBytes};

const PART_BYTES: usize = 128;
const PARTS: usize = PAGE_BYTES / PART_BYTES;
const PART_WORDS: usize = PART_BYTES / size_of::<u64>();

/// Of one page, and only to be compared by the [`Marker`] that made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks([u64; PARTS]);

impl Marks {
    pub const BYTES: usize = size_of::<Marks>();
}

/// A function of the family.
#[derive(Clone)]
pub struct Marker {
    first: u128,
    rest: [u128; PART_WORDS],
}

impl std::fmt::Debug for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Marker").finish_non_exhaustive()
    }
}

impl Marker {
    /// Any one of the family: nobody can tell which.
    pub fn any() -> Marker {
        // SipHash, keyed by the operating system's randomness.
        let random = std::hash::RandomState::new();
        let number = |n: u32| {
            let half = |half: u32| u128::from(random.hash_one((n, half)));
            half(0) << 64 | half(1)
        };
        Marker { first: number(0), rest: std::array::from_fn(|at| number(at as u32 + 1)) }
    }

    pub fn marks(&self, page: &PageBytes) -> Marks {
        let mut marks = [0; PARTS];
        for (mark, part) in marks.iter_mut().zip(page.as_chunks().0) {
            *mark = self.hash(part);
        }
        Marks(marks)
    }

    /// Appends a delta that makes `page` of the page that `marks` are of to `out`, if it is shorter than `limit` bytes.
    pub fn delta(&self, marks: &Marks, page: &PageBytes, limit: usize, out: &mut Vec<u8>) -> Encoding {
        let parts = marks.0.iter().zip(page.as_chunks().0).enumerate();
        let changed = parts
            .fold(0u32, |changed, (at, (mark, part))| changed | u32::from(*mark != self.hash(part)) << at);
        xbzrle::encode_parts(changed, page, limit, out)
    }

    #[inline]
    fn hash(&self, part: &[u8; PART_BYTES]) -> u64 {
        let words = part.as_chunks().0.iter().map(|word| u128::from(u64::from_le_bytes(*word)));
        let sum = words
            .zip(&self.rest)
            .fold(self.first, |sum, (word, number)| sum.wrapping_add(number.wrapping_mul(word)));
        (sum >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::xbzrle::apply;

    #[test]
    fn a_page_has_the_marks_of_itself_alone() {
        let marker = Marker::any();
        let zero = [0; PAGE_BYTES];
        let marks = marker.marks(&zero);
        assert_eq!(marker.delta(&marks, &zero, PAGE_BYTES, &mut Vec::new()), Encoding::Same);
        for at in 0..PAGE_BYTES * 8 {
            let mut page = zero;
            page[at / 8] ^= 1 << (at % 8);
            let mut delta = Vec::new();
            assert!(matches!(marker.delta(&marks, &page, PAGE_BYTES, &mut delta), Encoding::Delta(_)));
            let mut made = zero;
            apply(&delta, &mut made).unwrap();
            assert!(made == page, "bit {at}");
        }
    }

    #[test]
    fn no_two_markers_are_alike_and_halves_do_not_stand_for_each_other() {
        let page: PageBytes = std::array::from_fn(|at| (at * 7) as u8);
        let (one, other) = (Marker::any(), Marker::any());
        assert!(one.marks(&page).0.iter().zip(other.marks(&page).0).all(|(a, b)| *a != b));
        assert_eq!(one.marks(&page), one.clone().marks(&page));
        // Words that change places.
        let mut swapped = page;
        swapped.as_chunks_mut::<8>().0.swap(1, 9);
        assert_ne!(one.marks(&page), one.marks(&swapped));
    }

    #[test]
    fn what_changed_everywhere_makes_no_delta() {
        let marker = Marker::any();
        let marks = marker.marks(&[1; PAGE_BYTES]);
        let mut out = vec![9];
        assert_eq!(marker.delta(&marks, &[2; PAGE_BYTES], PAGE_BYTES, &mut out), Encoding::TooLong);
        assert_eq!(out, [9]);
    }

    proptest! {
        #[test]
        fn a_delta_from_marks_makes_the_page(
            seed in any::<[u8; 32]>(),
            changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..100),
            limit in 0..=PAGE_BYTES,
        ) {
            let marker = Marker::any();
            let base: PageBytes = std::array::from_fn(|i| seed[i % 32] ^ (i / 32) as u8);
            let mut page = base;
            for (at, value) in changes {
                page[at] = value;
            }
            let mut out = vec![7];
            match marker.delta(&marker.marks(&base), &page, limit, &mut out) {
                Encoding::Same => prop_assert!(base == page),
                Encoding::TooLong => prop_assert_eq!(out.len(), 1),
                Encoding::Delta(len) => {
                    prop_assert_eq!(out.len(), 1 + len);
                    prop_assert!(len < limit);
                    let mut made = base;
                    prop_assert_eq!(apply(&out[1..], &mut made), Ok(()));
                    prop_assert!(made == page);
                }
            }
        }
    }
}
