//! A set of chunk numbers, kept as ranges: what was applied, in whatever order.

use std::collections::BTreeMap;

/// Numbers from 1 on. Contiguous ones cost nothing; memory is per gap.
#[derive(Debug, Default)]
pub struct RangeSet {
    /// Everything from 1 to this is in.
    cumulative: u64,
    /// First to last of the ranges above it: ascending, disjoint, not adjacent.
    above: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `n`; false if it was in.
    pub fn insert(&mut self, n: u64) -> bool {
        if n <= self.cumulative {
            return false;
        }
        if n == self.cumulative + 1 {
            self.cumulative = n;
            if let Some(first) = self.above.first_entry()
                && *first.key() == n + 1
            {
                self.cumulative = first.remove();
            }
            return true;
        }
        let below = self.above.range(..=n).next_back().map(|(&first, &last)| (first, last));
        if below.is_some_and(|(_, last)| last >= n) {
            return false;
        }
        let last = n.checked_add(1).and_then(|next| self.above.remove(&next)).unwrap_or(n);
        let first = below.filter(|(_, last)| last + 1 == n).map_or(n, |(first, _)| first);
        self.above.insert(first, last);
        true
    }

    /// Takes over another set's parts: its `cumulative` and some of its ranges, which follow all that is in. False, and
    /// nothing is promised of the set: they do not.
    pub fn extend(&mut self, cumulative: u64, ranges: &[(u64, u64)]) -> bool {
        if cumulative < self.cumulative || cumulative > self.cumulative && !self.above.is_empty() {
            return false;
        }
        self.cumulative = cumulative;
        let mut highest = self.above.last_key_value().map_or(cumulative, |(_, &last)| last);
        for &(first, last) in ranges {
            // One number between, at least.
            if first <= highest || first - highest < 2 || last < first {
                return false;
            }
            self.above.insert(first, last);
            highest = last;
        }
        true
    }

    pub fn contains(&self, n: u64) -> bool {
        n <= self.cumulative || self.above.range(..=n).next_back().is_some_and(|(_, &last)| last >= n)
    }

    pub fn cumulative(&self) -> u64 {
        self.cumulative
    }

    /// The ranges above `cumulative`, lowest first.
    pub fn above(&self) -> impl Iterator<Item = (u64, u64)> {
        self.above.iter().map(|(&first, &last)| (first, last))
    }

    pub fn gaps(&self) -> usize {
        self.above.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_inserted(numbers in prop::collection::vec(1u64..40, 0..80)) {
            let mut ranges = RangeSet::default();
            let mut model = BTreeSet::new();
            for n in numbers {
                prop_assert_eq!(ranges.insert(n), model.insert(n));
            }
            for n in 1..41 {
                prop_assert_eq!(ranges.contains(n), model.contains(&n));
            }
            let mut held: Vec<u64> = (1..=ranges.cumulative()).collect();
            let mut previous_last = ranges.cumulative();
            for (first, last) in ranges.above() {
                prop_assert!(first > previous_last + 1, "ranges that touch are one");
                held.extend(first..=last);
                previous_last = last;
            }
            prop_assert_eq!(held, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_set_is_put_together_from_its_parts() {
        let mut ranges = RangeSet::default();
        assert!(ranges.extend(5, &[(7, 8), (10, 10)]));
        assert!(ranges.extend(5, &[(12, 20)]));
        assert!(ranges.contains(20) && ranges.contains(5) && !ranges.contains(6) && !ranges.contains(21));
        for wrong in [&[(21, 22)][..], &[(30, 29)], &[(15, 16)], &[(22, 23), (24, 25)], &[(0, u64::MAX)]] {
            let mut ranges = RangeSet::default();
            assert!(ranges.extend(5, &[(7, 20)]));
            assert!(!ranges.extend(5, wrong), "{wrong:?}");
        }
        assert!(!ranges.extend(6, &[]), "it cannot grow under ranges that are in");
    }

    #[test]
    fn the_last_number_of_all_fits() {
        let mut ranges = RangeSet::default();
        assert!(ranges.insert(u64::MAX));
        assert!(ranges.insert(u64::MAX - 1));
        assert!(!ranges.insert(u64::MAX));
        assert_eq!(ranges.above().collect::<Vec<_>>(), [(u64::MAX - 1, u64::MAX)]);
    }
}
