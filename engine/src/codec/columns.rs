//! The records of a chunk, column by column, and of each column first all lowest bytes, then all second ones, and so on.
//!
//! Page numbers and chunk numbers are written as differences to the one before. So all but the lowest bytes of nearly all
//! records are zero and stand together, and a record of ten bytes costs two or three once it is compressed. Every value has the same width: what is
//! malformed can only be the length.

/// Appends a column.
pub(super) fn put<const WIDTH: usize>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = [u8; WIDTH]>) {
    let start = out.len();
    let count = values.len();
    out.resize(start + WIDTH * count, 0);
    let Some(column) = out.get_mut(start..) else { return };
    for (at, value) in values.enumerate() {
        for (plane, byte) in value.into_iter().enumerate() {
            if let Some(target) = column.get_mut(plane * count + at) {
                *target = byte;
            }
        }
    }
}

/// Appends a column of numbers as differences, each to the one before it, the first to 0. Numbers that rise shrink best.
pub(super) fn put_steps(out: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = u32>) {
    let mut last = 0u32;
    put(
        out,
        numbers.map(|number| {
            let step = number.wrapping_sub(last).cast_signed();
            last = number;
            zigzag(step).to_le_bytes()
        }),
    );
}

/// A column of `count` values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a, const WIDTH: usize> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a, const WIDTH: usize> Column<'a, WIDTH> {
    /// Takes a column of `count` values off the front of `rest`, if there is so much.
    pub(super) fn take(rest: &mut &'a [u8], count: usize) -> Option<Self> {
        let (bytes, tail) = rest.split_at_checked(count.checked_mul(WIDTH)?)?;
        *rest = tail;
        Some(Column { bytes, count })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn values(self) -> impl Iterator<Item = [u8; WIDTH]> + 'a {
        (0..self.count).map(move |at| {
            std::array::from_fn(|plane| self.bytes.get(plane * self.count + at).copied().unwrap_or_default())
        })
    }
}

impl<'a> Column<'a, 2> {
    pub(super) fn numbers(self) -> impl Iterator<Item = u16> + 'a {
        self.values().map(u16::from_le_bytes)
    }
}

impl<'a> Column<'a, 4> {
    pub(super) fn numbers(self) -> impl Iterator<Item = u32> + 'a {
        self.values().map(u32::from_le_bytes)
    }

    /// The numbers that [`put_steps`] wrote.
    pub(super) fn steps(self) -> impl Iterator<Item = u32> + 'a {
        self.numbers().scan(0u32, |last, step| {
            *last = last.wrapping_add_signed(unzigzag(step));
            Some(*last)
        })
    }
}

/// A small number for a small difference, whatever its sign.
fn zigzag(step: i32) -> u32 {
    (step << 1 ^ step >> 31).cast_unsigned()
}

fn unzigzag(code: u32) -> i32 {
    (code >> 1).cast_signed() ^ -(code & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_column_has_its_lowest_bytes_first() {
        let mut out = vec![9];
        put(&mut out, [0x0102u16, 0x0304].into_iter().map(u16::to_le_bytes));
        assert_eq!(out, [9, 2, 4, 1, 3]);
    }

    #[test]
    fn steps_are_twice_the_difference_and_odd_when_they_go_back() {
        let mut out = Vec::new();
        put_steps(&mut out, [5, 6, 4, 0x0001_0004].into_iter());
        assert_eq!(out, [10, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn what_is_put_is_taken(numbers in prop::collection::vec(any::<u32>(), 0..40), more in 0..3usize) {
            let mut out = Vec::new();
            put_steps(&mut out, numbers.iter().copied());
            put(&mut out, numbers.iter().map(|number| number.to_le_bytes()));
            put(&mut out, numbers.iter().map(|number| (*number as u16).to_le_bytes()));
            out.resize(out.len() + more, 1);
            let mut rest = &out[..];
            let steps = Column::<4>::take(&mut rest, numbers.len()).unwrap();
            let wide = Column::<4>::take(&mut rest, numbers.len()).unwrap();
            let narrow = Column::<2>::take(&mut rest, numbers.len()).unwrap();
            prop_assert_eq!(steps.steps().collect::<Vec<_>>(), &numbers[..]);
            prop_assert_eq!(wide.numbers().collect::<Vec<_>>(), &numbers[..]);
            prop_assert!(narrow.numbers().eq(numbers.iter().map(|number| *number as u16)));
            prop_assert_eq!(rest.len(), more);
            prop_assert!(Column::<2>::take(&mut rest, 2).is_none());
        }
    }
}
