//! Deltas in QEMU's XBZRLE format, so that the destination's QEMU applies them to its own RAM.
//!
//! A delta is `{ unchanged-run, changed-run, changed bytes }*` with both runs as ULEB128. QEMU's decoder sets the limits: at
//! most two bytes to a number, only the first unchanged-run may be 0, no changed-run may be, nothing beyond the page. A delta
//! does not end with an unchanged-run. *Changed* bytes may equal the old ones, so a short gap is bridged.

use crate::types::{PAGE_BYTES, PageBytes};

const WORD_BYTES: usize = 8;
/// A gap of unchanged bytes at least this long ends a changed-run: shorter ones cost less than the two numbers
/// they would save.
const MIN_GAP_BYTES: usize = 4;

/// What became of a page against its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The page equals its base.
    Same,
    /// A delta of so many bytes was appended.
    Delta(usize),
    /// A delta would not be smaller than the limit; nothing was appended.
    TooLong,
}

/// Why a delta is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDelta {
    #[error("it is empty or longer than a page")]
    Length,
    #[error("a number is longer than two bytes or cut off")]
    Number,
    #[error("a run is empty that must not be")]
    EmptyRun,
    #[error("it reaches beyond the page")]
    BeyondPage,
    #[error("changed bytes are cut off")]
    CutOff,
}

/// Appends the delta that makes `page` of `base` to `out`, if it is shorter than `limit` bytes.
pub fn encode(base: &PageBytes, page: &PageBytes, limit: usize, out: &mut Vec<u8>) -> Encoding {
    let start = out.len();
    let limit = limit.min(PAGE_BYTES);
    let mut at = 0;
    while let Some(changed) = next_difference(base, page, at) {
        let end = end_of_change(base, page, changed);
        put_number(out, changed - at);
        put_number(out, end - changed);
        if out.len() - start + (end - changed) >= limit {
            out.truncate(start);
            return Encoding::TooLong;
        }
        out.extend_from_slice(&page[changed..end]);
        at = end;
    }
    match out.len() - start {
        0 => Encoding::Same,
        len => Encoding::Delta(len),
    }
}

/// Checks that QEMU's decoder takes `delta`, whatever the base.
pub fn check(delta: &[u8]) -> Result<(), BadDelta> {
    walk(delta, |_, _| ())
}

/// Makes the new page of the base in `page`. On an error `page` is partly changed.
pub fn apply(delta: &[u8], page: &mut PageBytes) -> Result<(), BadDelta> {
    walk(delta, |at, changed| {
        if let Some(target) = page.get_mut(at..at + changed.len()) {
            target.copy_from_slice(changed);
        }
    })
}

fn walk(delta: &[u8], mut change: impl FnMut(usize, &[u8])) -> Result<(), BadDelta> {
    if delta.is_empty() || delta.len() > PAGE_BYTES {
        return Err(BadDelta::Length);
    }
    let mut rest = delta;
    let mut at = 0;
    let mut first = true;
    while !rest.is_empty() {
        let unchanged = take_number(&mut rest)?;
        let changed = take_number(&mut rest)?;
        if changed == 0 || (unchanged == 0 && !first) {
            return Err(BadDelta::EmptyRun);
        }
        if at + unchanged + changed > PAGE_BYTES {
            return Err(BadDelta::BeyondPage);
        }
        let (bytes, left) = rest.split_at_checked(changed).ok_or(BadDelta::CutOff)?;
        change(at + unchanged, bytes);
        at += unchanged + changed;
        rest = left;
        first = false;
    }
    Ok(())
}

/// The first byte at or after `at` that differs.
fn next_difference(base: &PageBytes, page: &PageBytes, mut at: usize) -> Option<usize> {
    while at < PAGE_BYTES {
        let Some(x) = xor_word(base, page, at) else {
            return (at..PAGE_BYTES).find(|&i| base[i] != page[i]);
        };
        if x != 0 {
            return Some(at + leading_equal_bytes(x));
        }
        at += WORD_BYTES;
    }
    None
}

/// The end of the changed-run that begins at `start`: past its last differing byte before a gap.
fn end_of_change(base: &PageBytes, page: &PageBytes, start: usize) -> usize {
    let mut last = start;
    let mut at = start + 1;
    while at < PAGE_BYTES && at - last <= MIN_GAP_BYTES {
        match xor_word(base, page, at) {
            Some(0) => break,
            Some(x) if no_zero_byte(x) => {
                last = at + WORD_BYTES - 1;
                at += WORD_BYTES;
            }
            _ => {
                if base[at] != page[at] {
                    last = at;
                }
                at += 1;
            }
        }
    }
    last + 1
}

/// The differences of the eight bytes from `at` on, the first in the lowest byte.
fn xor_word(base: &PageBytes, page: &PageBytes, at: usize) -> Option<u64> {
    let old = base.get(at..)?.first_chunk::<WORD_BYTES>()?;
    let new = page.get(at..)?.first_chunk::<WORD_BYTES>()?;
    Some(u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new))
}

fn leading_equal_bytes(x: u64) -> usize {
    x.trailing_zeros() as usize / 8
}

fn no_zero_byte(x: u64) -> bool {
    x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080 == 0
}

/// ULEB128 of a number below 2^14, as every offset in a page is.
fn put_number(out: &mut Vec<u8>, number: usize) {
    debug_assert!(number <= PAGE_BYTES);
    if number < 0x80 {
        out.push(number as u8);
    } else {
        out.push((number & 0x7f) as u8 | 0x80);
        out.push((number >> 7) as u8);
    }
}

fn take_number(rest: &mut &[u8]) -> Result<usize, BadDelta> {
    match **rest {
        [low, ref tail @ ..] if low & 0x80 == 0 => {
            *rest = tail;
            Ok(low.into())
        }
        [low, high, ref tail @ ..] if high & 0x80 == 0 => {
            *rest = tail;
            Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        _ => Err(BadDelta::Number),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delta(base: &PageBytes, page: &PageBytes) -> (Encoding, Vec<u8>) {
        let mut out = Vec::new();
        let encoding = encode(base, page, PAGE_BYTES, &mut out);
        (encoding, out)
    }

    #[test]
    fn known_changes_give_known_bytes() {
        let base = [7; PAGE_BYTES];
        let mut page = base;
        page[0] = 1;
        page[300] = 2;
        page[301] = 3;
        page[4095] = 4;
        let (encoding, bytes) = delta(&base, &page);
        assert_eq!(bytes, [0, 1, 1, 0x80 | 43, 2, 2, 2, 3, 0x80 | (3793 & 0x7f) as u8, 29, 1, 4]);
        assert_eq!(encoding, Encoding::Delta(bytes.len()));
        assert_eq!(delta(&base, &base), (Encoding::Same, vec![]));
    }

    #[test]
    fn a_page_that_differs_everywhere_is_too_long() {
        let (encoding, bytes) = delta(&[0; PAGE_BYTES], &[1; PAGE_BYTES]);
        assert_eq!((encoding, bytes.len()), (Encoding::TooLong, 0));
    }

    #[test]
    fn what_qemu_refuses_is_refused() {
        let long_number = [0x80, 0x80, 1, 1, 9];
        for (bytes, why) in [
            (&[][..], BadDelta::Length),
            (&[0; PAGE_BYTES + 1], BadDelta::Length),
            (&long_number, BadDelta::Number),
            (&[5], BadDelta::Number),
            (&[0, 0], BadDelta::EmptyRun),
            (&[0, 1, 9, 0, 1, 9], BadDelta::EmptyRun),
            (&[0, 2, 9], BadDelta::CutOff),
            (&[0x80, 0x20, 1, 9], BadDelta::BeyondPage),
            (&[0, 1, 9, 4], BadDelta::Number),
        ] {
            assert_eq!(check(bytes), Err(why), "{bytes:?}");
        }
        assert_eq!(check(&[0xff, 0x1f, 1, 9]), Ok(()), "the last byte of the page may change");
    }

    proptest! {
        #[test]
        fn a_delta_makes_the_page_of_its_base(
            seed in any::<[u8; 16]>(),
            changes in prop::collection::vec((0..PAGE_BYTES, 1..200usize, any::<u8>()), 0..40),
        ) {
            let base: PageBytes = std::array::from_fn(|i| seed[i % 16] ^ (i / 16) as u8);
            let mut page = base;
            for (at, len, value) in changes {
                let end = (at + len).min(PAGE_BYTES);
                page[at..end].fill(value);
            }
            let (encoding, bytes) = delta(&base, &page);
            match encoding {
                Encoding::Same => prop_assert_eq!(&base[..], &page[..]),
                Encoding::TooLong => prop_assert!(bytes.is_empty()),
                Encoding::Delta(len) => {
                    prop_assert_eq!(len, bytes.len());
                    prop_assert!(len < PAGE_BYTES);
                    let mut rebuilt = base;
                    prop_assert_eq!(apply(&bytes, &mut rebuilt), Ok(()));
                    prop_assert_eq!(&rebuilt[..], &page[..]);
                }
            }
        }

        #[test]
        fn any_bytes_are_checked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut page = [0; PAGE_BYTES];
            prop_assert_eq!(check(&bytes), apply(&bytes, &mut page));
        }
    }
}
