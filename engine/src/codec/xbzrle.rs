//! Deltas in QEMU's XBZRLE format, so that the destination's QEMU applies them to its own RAM.
//!
//! A delta is `{ unchanged-run, changed-run, changed bytes }*` with both runs as ULEB128. QEMU's decoder sets the limits: at
//! most two bytes to a number, only the first unchanged-run may be 0, no changed-run may be, nothing beyond the page. A delta
//! does not end with an unchanged-run. *Changed* bytes may equal the old ones, so a short gap is bridged.

use std::ops::Range;

use crate::types::{PAGE_BYTES, PageBytes};

/// What is compared at once; its differing bytes fit one mask.
const LINE_BYTES: usize = 64;
/// A gap of unchanged bytes at least this long ends a changed-run: shorter ones cost about as much as the two numbers
/// they would save, and make fewer runs for the decoder.
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
    let mut delta = Delta { start: out.len(), limit: limit.min(PAGE_BYTES), at: 0, out };
    let (old_lines, new_lines) = (base.as_chunks().0, page.as_chunks().0);
    let mut differing = differing_lines(old_lines, new_lines);
    if differing == 0 {
        return Encoding::Same;
    }
    // The changed-run that may still grow.
    let mut run = 0..0;
    while differing != 0 {
        let line = differing.trailing_zeros() as usize;
        differing &= differing - 1;
        let mut changed = bridged(differing_bytes(&old_lines[line], &new_lines[line]));
        while changed != 0 {
            let from = changed.trailing_zeros() as usize;
            let bytes = (changed >> from).trailing_ones() as usize;
            // Carries through the lowest run of ones, and so clears it.
            changed &= changed.wrapping_add(1 << from);
            let start = line * LINE_BYTES + from;
            if run.is_empty() {
                run.start = start;
            } else if start - run.end >= MIN_GAP_BYTES {
                if !delta.put(run, page) {
                    return Encoding::TooLong;
                }
                run = start..start;
            }
            run.end = start + bytes;
        }
    }
    if !delta.put(run, page) {
        return Encoding::TooLong;
    }
    Encoding::Delta(delta.out.len() - delta.start)
}

/// The same, if all that is known of the base is in which parts the page differs: a bit for each of as many equal ones, the page's first part's
/// the lowest.
pub fn encode_parts(mut differing: u32, page: &PageBytes, limit: usize, out: &mut Vec<u8>) -> Encoding {
    const PART_BYTES: usize = PAGE_BYTES / u32::BITS as usize;
    let mut delta = Delta { start: out.len(), limit: limit.min(PAGE_BYTES), at: 0, out };
    if differing == 0 {
        return Encoding::Same;
    }
    while differing != 0 {
        let first = differing.trailing_zeros();
        let parts = (differing >> first).trailing_ones();
        // Carries through the lowest run of ones, and so clears it.
        differing &= differing.wrapping_add(1 << first);
        let from = first as usize * PART_BYTES;
        if !delta.put(from..from + parts as usize * PART_BYTES, page) {
            return Encoding::TooLong;
        }
    }
    Encoding::Delta(delta.out.len() - delta.start)
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

/// A delta being written.
struct Delta<'a> {
    out: &'a mut Vec<u8>,
    /// Where it begins in `out`.
    start: usize,
    limit: usize,
    /// The end of the last run in the page.
    at: usize,
}

impl Delta<'_> {
    /// Appends a changed-run; false, and the delta is gone, if it would not be shorter than the limit.
    fn put(&mut self, run: Range<usize>, page: &PageBytes) -> bool {
        put_number(self.out, run.start - self.at);
        put_number(self.out, run.len());
        if self.out.len() - self.start + run.len() >= self.limit {
            self.out.truncate(self.start);
            return false;
        }
        self.at = run.end;
        let changed = &page[run];
        if changed.len() <= MIN_GAP_BYTES {
            // Less than calling what copies many bytes.
            changed.iter().for_each(|byte| self.out.push(*byte));
        } else {
            self.out.extend_from_slice(changed);
        }
        true
    }
}

type Line = [u8; LINE_BYTES];

/// A bit for each line of the page that is not the same. Nearly all of a page is passed here, so nothing but whole lines is looked at, without
/// a branch: that becomes vector instructions.
fn differing_lines(old: &[Line], new: &[Line]) -> u64 {
    const { assert!(PAGE_BYTES / LINE_BYTES == u64::BITS as usize) };
    old.iter().zip(new).enumerate().fold(0, |mask, (at, (old, new))| {
        let differs = old.iter().zip(new).fold(0, |all, (old, new)| all | (old ^ new));
        mask | u64::from(differs != 0) << at
    })
}

/// A bit for each byte that is not the same.
fn differing_bytes(old: &Line, new: &Line) -> u64 {
    // Gathers the lowest bits of eight bytes in the highest byte, the first byte's lowest.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut differs = [0u8; LINE_BYTES];
    for ((differs, old), new) in differs.iter_mut().zip(old).zip(new) {
        *differs = u8::from(old != new);
    }
    let words = differs.as_chunks().0.iter().enumerate();
    words
        .fold(0, |mask, (at, word)| mask | (u64::from_le_bytes(*word).wrapping_mul(GATHER) >> 56) << (8 * at))
}

/// The same with gaps too short to end a run filled, as far as they lie within the line.
fn bridged(changed: u64) -> u64 {
    const { assert!(MIN_GAP_BYTES == 4) };
    let near = changed | changed << 1;
    let near = near | near << 2;
    let within = near & near >> 1;
    changed | within & within >> 2
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

    /// Byte by byte what [`encode`] does line by line.
    fn naive(base: &PageBytes, page: &PageBytes) -> Vec<u8> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for at in (0..PAGE_BYTES).filter(|at| base[*at] != page[*at]) {
            match runs.last_mut() {
                Some(run) if at - run.end < MIN_GAP_BYTES => run.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
        let (mut out, mut end) = (Vec::new(), 0);
        for run in runs {
            put_number(&mut out, run.start - end);
            put_number(&mut out, run.len());
            end = run.end;
            out.extend_from_slice(&page[run]);
        }
        out
    }

    proptest! {
        #[test]
        fn scattered_changes_are_found_and_joined_where_it_pays(
            changes in prop::collection::vec((0..PAGE_BYTES, 1..12usize), 0..300),
        ) {
            let base: PageBytes = std::array::from_fn(|i| (i / 5) as u8);
            let mut page = base;
            for (at, len) in changes {
                let end = (at + len).min(PAGE_BYTES);
                page[at..end].iter_mut().step_by(1 + len % 5).for_each(|byte| *byte ^= 0x40);
            }
            prop_assert_eq!(delta(&base, &page).1, naive(&base, &page));
        }

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
