//! XBZRLE, QEMU's delta: `{ uleb128 unchanged-run, uleb128 changed-run, changed bytes }*` against the page as
//! the receiver has it.
//!
//! Only the reading side: to check what a peer sent before QEMU sees it, and as the tests' reference. The rules
//! are those of QEMU's decoder, and a little stricter: an encoded page that QEMU might refuse is refused here.
//!
//! * at most [`PAGE_BYTES`] encoded bytes; no bytes at all is a delta that changes nothing;
//! * a run is one or two uleb128 bytes, so at most 0x3fff;
//! * only the first unchanged run may be 0, no changed run may; the last run is a changed one;
//! * the runs end within the page.

use thiserror::Error;

use super::PAGE_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XbzrleError {
    #[error("a delta of {0} bytes, longer than a page")]
    TooLong(usize),
    #[error("a delta that ends inside a run")]
    Truncated,
    #[error("a run length of more than two bytes")]
    LongRun,
    #[error("an empty run where none may be")]
    EmptyRun,
    #[error("a run that leaves the page")]
    Overflow,
}

/// Applies `encoded` to `page` and answers how many bytes it wrote. On an error `page` is unchanged.
pub fn decode(page: &mut [u8; PAGE_BYTES], encoded: &[u8]) -> Result<usize, XbzrleError> {
    let mut next = *page;
    let changed = walk(encoded, |at, bytes| {
        next.get_mut(at..at + bytes.len()).ok_or(XbzrleError::Overflow)?.copy_from_slice(bytes);
        Ok(())
    })?;
    *page = next;
    Ok(changed)
}

/// Whether QEMU will take `encoded`, whatever the page holds; answers how many bytes it would write.
pub fn validate(encoded: &[u8]) -> Result<usize, XbzrleError> {
    walk(encoded, |_, _| Ok(()))
}

fn walk(
    encoded: &[u8],
    mut changed_run: impl FnMut(usize, &[u8]) -> Result<(), XbzrleError>,
) -> Result<usize, XbzrleError> {
    if encoded.len() > PAGE_BYTES {
        return Err(XbzrleError::TooLong(encoded.len()));
    }
    let (mut rest, mut at, mut changed) = (encoded, 0, 0);
    while !rest.is_empty() {
        let (same, after) = uleb128(rest)?;
        if same == 0 && rest.len() != encoded.len() {
            return Err(XbzrleError::EmptyRun);
        }
        let (run, after) = uleb128(after)?;
        if run == 0 {
            return Err(XbzrleError::EmptyRun);
        }
        at += same;
        if at + run > PAGE_BYTES {
            return Err(XbzrleError::Overflow);
        }
        let (bytes, after) = after.split_at_checked(run).ok_or(XbzrleError::Truncated)?;
        changed_run(at, bytes)?;
        at += run;
        changed += run;
        rest = after;
    }
    Ok(changed)
}

fn uleb128(buf: &[u8]) -> Result<(usize, &[u8]), XbzrleError> {
    const MORE: u8 = 0x80;
    match buf {
        [low, rest @ ..] if low & MORE == 0 => Ok((usize::from(*low), rest)),
        [low, high, rest @ ..] if high & MORE == 0 => {
            Ok((usize::from(low & !MORE) | usize::from(*high) << 7, rest))
        }
        [_, _, ..] => Err(XbzrleError::LongRun),
        _ => Err(XbzrleError::Truncated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> [u8; PAGE_BYTES] {
        std::array::from_fn(|i| (i * 7) as u8)
    }

    #[test]
    fn nothing_changes_nothing() {
        let mut p = page();
        assert_eq!(decode(&mut p, &[]), Ok(0));
        assert_eq!(p, page());
    }

    #[test]
    fn runs_are_applied_where_they_say() {
        let mut p = page();
        // 0 unchanged, 2 changed; 300 (two bytes) unchanged, 1 changed.
        let delta = [0, 2, 0xaa, 0xbb, 0xac, 0x02, 1, 0xcc];
        assert_eq!(decode(&mut p, &delta), Ok(3));
        let mut want = page();
        want[..2].copy_from_slice(&[0xaa, 0xbb]);
        want[302] = 0xcc;
        assert_eq!(p, want);
    }

    #[test]
    fn the_last_byte_of_the_page_can_be_changed_and_the_next_cannot() {
        let mut p = page();
        let delta = |same: usize| [(same & 0x7f) as u8 | 0x80, (same >> 7) as u8, 1, 0xee];
        assert_eq!(decode(&mut p, &delta(PAGE_BYTES - 1)), Ok(1));
        assert_eq!(p[PAGE_BYTES - 1], 0xee);
        assert_eq!(validate(&delta(PAGE_BYTES)), Err(XbzrleError::Overflow));
    }

    #[test]
    fn what_qemu_refuses_is_refused_and_leaves_the_page_alone() {
        let cases: [(&[u8], XbzrleError); 8] = [
            (&[1, 1, 9, 0, 1, 9], XbzrleError::EmptyRun),
            (&[1, 0], XbzrleError::EmptyRun),
            (&[1], XbzrleError::Truncated),
            (&[1, 1, 9, 5], XbzrleError::Truncated),
            (&[1, 3, 9, 9], XbzrleError::Truncated),
            (&[0x80, 0x80, 0x01, 1, 9], XbzrleError::LongRun),
            (&[0xff, 0x7f, 1, 9], XbzrleError::Overflow),
            (&[0; PAGE_BYTES + 1], XbzrleError::TooLong(PAGE_BYTES + 1)),
        ];
        for (delta, want) in cases {
            let mut p = page();
            assert_eq!(decode(&mut p, delta), Err(want), "{delta:02x?}");
            assert_eq!(p, page());
        }
    }
}
