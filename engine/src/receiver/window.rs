//! A set of chunk numbers: all up to some number, and some of the next few thousand.

use crate::types::ChunkSeq;

/// See the module. Memory is fixed: one bit per number it can look ahead.
#[derive(Debug)]
pub(super) struct SeqWindow {
    through: u32,
    ahead: u32,
    bits: Vec<u64>,
}

impl SeqWindow {
    /// Looks ahead `ahead` numbers, at least one.
    pub(super) fn new(ahead: u32) -> Self {
        let ahead = ahead.max(1);
        SeqWindow { through: 0, ahead, bits: vec![0; ahead.div_ceil(64) as usize] }
    }

    /// All numbers up to this one are in the set.
    pub(super) fn through(&self) -> ChunkSeq {
        ChunkSeq(self.through)
    }

    /// Whether the set can hold `seq`.
    pub(super) fn in_reach(&self, seq: ChunkSeq) -> bool {
        u64::from(seq.0) <= u64::from(self.through) + u64::from(self.ahead)
    }

    pub(super) fn contains(&self, seq: ChunkSeq) -> bool {
        seq.0 <= self.through || (self.in_reach(seq) && self.bit(seq.0))
    }

    /// Adds a number in reach; whether it was not in the set.
    pub(super) fn mark(&mut self, seq: ChunkSeq) -> bool {
        if self.contains(seq) || !self.in_reach(seq) {
            return false;
        }
        self.flip(seq.0);
        while let Some(next) = self.through.checked_add(1)
            && self.bit(next)
        {
            self.flip(next);
            self.through = next;
        }
        true
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bits.capacity() * size_of::<u64>()
    }

    fn bit(&self, seq: u32) -> bool {
        let at = seq % self.ahead;
        self.bits.get(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn flip(&mut self, seq: u32) {
        let at = seq % self.ahead;
        if let Some(word) = self.bits.get_mut(at as usize / 64) {
            *word ^= 1 << (at % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(seqs in prop::collection::vec(1..40u32, 0..80), ahead in 1..20u32) {
            let mut window = SeqWindow::new(ahead);
            let mut model = BTreeSet::new();
            for seq in seqs {
                let through = window.through().0;
                prop_assert_eq!(window.in_reach(ChunkSeq(seq)), seq <= through + ahead);
                let new = seq <= through + ahead && model.insert(seq);
                prop_assert_eq!(window.mark(ChunkSeq(seq)), new);
                let expected = (1..).take_while(|seq| model.contains(seq)).last().unwrap_or(0);
                prop_assert_eq!(window.through(), ChunkSeq(expected));
                for seq in 1..60 {
                    prop_assert_eq!(window.contains(ChunkSeq(seq)), model.contains(&seq));
                }
            }
        }
    }

    #[test]
    fn the_last_number_there_is_ends_it() {
        let mut window = SeqWindow { through: u32::MAX - 1, ahead: 64, bits: vec![0] };
        assert!(window.mark(ChunkSeq(u32::MAX)));
        assert_eq!(window.through(), ChunkSeq(u32::MAX));
        assert!(!window.mark(ChunkSeq(u32::MAX)));
    }
}
