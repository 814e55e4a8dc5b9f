//! Contents that occur on many pages: kept at both ends, sent once, then named.
//!
//! The source decides what is in it. A content seen for the first time leaves a mark; seen again, it goes whole once more and is
//! *stored* into a slot of the dictionary at both ends; from then on a page that holds it is a *reference*.
//!
//! ```text
//!  page ─▶ hash ─▶ in a slot, and the same byte for byte? ─yes─▶ reference (slot, the chunk that stored it)
//!                     │ no
//!                     └─▶ its mark is there? ─yes─▶ store it, in a slot that nobody needs any more
//!                              │ no
//!                              └─▶ leave a mark
//! ```
//!
//! Invariants:
//! * Two pages are the same only if their bytes were compared: the hash finds candidates, and a guest may choose collisions.
//! * A slot is filled anew only when every chunk that stored or named its old content has been applied by the peer. So a reference
//!   finds at the peer what it found here, whatever overtakes what.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::source::pool::Pool;
use crate::types::{ChunkSeq, PageBytes};

/// Marks are as many as a power of two up to half of the guest's pages: at most two bytes a page. And at most so many.
const MARKS_MOST: usize = 1 << 20;
/// Slots looked at for one that may be filled anew. More would only make a full dictionary slow.
const TRIES: usize = 32;

#[derive(Debug)]
struct Entry {
    hash: u64,
    bytes: Box<PageBytes>,
    stored_in: ChunkSeq,
    /// The last chunk that stored or named it.
    last_used: ChunkSeq,
    /// Named since the hand of the clock went by.
    recent: bool,
}

/// What the dictionary makes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The peer has it in this slot, from this chunk on.
    Named { stored_in: ChunkSeq, slot: u16 },
    /// Send it whole; both ends keep it in this slot.
    Store { slot: u16 },
    /// Send it whole.
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dictionary {
    limit: usize,
    entries: Vec<Entry>,
    index: HashMap<u64, u16>,
    /// High halves of the hashes of contents seen once, by their low bits; 0: none.
    marks: Vec<u32>,
    hand: usize,
}

impl Dictionary {
    /// Of at most `slots` contents, for a guest of `pages`.
    pub(super) fn new(slots: u16, pages: u32) -> Self {
        let marks = match (pages as usize / 2).checked_ilog2() {
            Some(log2) if slots > 0 => MARKS_MOST.min(1 << log2),
            _ => 0,
        };
        Dictionary {
            limit: slots.into(),
            entries: Vec::new(),
            index: HashMap::new(),
            marks: vec![0; marks],
            hand: 0,
        }
    }

    /// `content` is about to go in chunk `seq`; the peer has applied all chunks up to `applied`.
    pub(super) fn look(
        &mut self,
        content: &PageBytes,
        seq: ChunkSeq,
        applied: ChunkSeq,
        pool: &mut Pool,
    ) -> Verdict {
        if self.marks.is_empty() {
            return Verdict::Unknown;
        }
        let hash = xxh3_64(content);
        if let Some(&slot) = self.index.get(&hash)
            && let Some(entry) = self.entries.get_mut(usize::from(slot))
        {
            if *entry.bytes != *content {
                return Verdict::Unknown;
            }
            (entry.last_used, entry.recent) = (seq, true);
            return Verdict::Named { stored_in: entry.stored_in, slot };
        }
        // A mark is never 0.
        let mark = (hash >> 32) as u32 | 1;
        let at = hash as usize & (self.marks.len() - 1);
        match self.marks.get_mut(at) {
            Some(seen) if *seen == mark => {}
            Some(seen) => {
                *seen = mark;
                return Verdict::Unknown;
            }
            None => return Verdict::Unknown,
        }
        match self.store(hash, content, seq, applied, pool) {
            Some(slot) => Verdict::Store { slot },
            None => Verdict::Unknown,
        }
    }

    /// Memory of the slots, beyond the page buffers, which are the pool's.
    pub(super) fn entries_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.index.capacity() * (size_of::<(u64, u16)>() + 1)
    }

    /// Memory of the marks, which are as many as the guest is large.
    pub(super) fn marks_bytes(&self) -> usize {
        self.marks.capacity() * size_of::<u32>()
    }

    fn store(
        &mut self,
        hash: u64,
        content: &PageBytes,
        seq: ChunkSeq,
        applied: ChunkSeq,
        pool: &mut Pool,
    ) -> Option<u16> {
        if self.entries.len() < self.limit {
            let slot = self.entries.len() as u16;
            let bytes = pool.copy_of(content);
            self.entries.push(Entry { hash, bytes, stored_in: seq, last_used: seq, recent: false });
            self.index.insert(hash, slot);
            return Some(slot);
        }
        let slot = self.free_slot(applied)?;
        let entry = self.entries.get_mut(usize::from(slot))?;
        self.index.remove(&entry.hash);
        entry.bytes.copy_from_slice(content);
        (entry.hash, entry.stored_in, entry.last_used, entry.recent) = (hash, seq, seq, false);
        self.index.insert(hash, slot);
        Some(slot)
    }

    /// The next slot that was not named lately and that no chunk under way needs.
    fn free_slot(&mut self, applied: ChunkSeq) -> Option<u16> {
        for _ in 0..TRIES.min(self.entries.len()) {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = self.entries.get_mut(slot)?;
            if !std::mem::take(&mut entry.recent) && entry.last_used <= applied {
                return Some(slot as u16);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PAGE_BYTES;

    const NOTHING: ChunkSeq = ChunkSeq::NONE;

    struct Rig {
        dictionary: Dictionary,
        pool: Pool,
    }

    impl Rig {
        fn new(slots: u16) -> Rig {
            Rig { dictionary: Dictionary::new(slots, 4096), pool: Pool::new(0) }
        }

        fn look(&mut self, content: u8, seq: u32, applied: u32) -> Verdict {
            let (seq, applied) = (ChunkSeq(seq), ChunkSeq(applied));
            self.dictionary.look(&[content; PAGE_BYTES], seq, applied, &mut self.pool)
        }
    }

    #[test]
    fn what_is_seen_twice_is_stored_and_named_from_then_on() {
        let mut rig = Rig::new(4);
        assert_eq!(rig.look(7, 1, 0), Verdict::Unknown);
        assert_eq!(rig.look(8, 1, 0), Verdict::Unknown);
        assert_eq!(rig.look(7, 2, 0), Verdict::Store { slot: 0 });
        assert_eq!(rig.look(7, 2, 0), Verdict::Named { stored_in: ChunkSeq(2), slot: 0 });
        assert_eq!(rig.look(8, 9, 0), Verdict::Store { slot: 1 });
        assert_eq!(rig.look(7, 9, 9), Verdict::Named { stored_in: ChunkSeq(2), slot: 0 });
    }

    #[test]
    fn a_slot_is_not_filled_anew_before_the_last_chunk_that_names_it_was_applied() {
        let mut rig = Rig::new(1);
        for seq in 1..=2 {
            rig.look(1, seq, 0);
            rig.look(2, seq, 0);
        }
        assert_eq!(rig.look(1, 5, 2), Verdict::Named { stored_in: ChunkSeq(2), slot: 0 });
        for seq in 6..20 {
            assert_eq!(
                rig.look(2, seq, 4),
                Verdict::Unknown,
                "chunk 5 names it and may not have been applied"
            );
        }
        assert_eq!(rig.look(2, 20, 5), Verdict::Store { slot: 0 });
        assert_eq!(rig.look(1, 21, 20), Verdict::Store { slot: 0 });
    }

    #[test]
    fn the_same_hash_is_not_the_same_page() {
        let mut rig = Rig::new(4);
        rig.look(1, 1, 0);
        rig.look(1, 2, 0);
        rig.dictionary.entries[0].bytes[17] ^= 1;
        assert_eq!(rig.look(1, 3, 0), Verdict::Unknown);
    }

    #[test]
    fn without_slots_nothing_is_kept() {
        let mut dictionary = Dictionary::new(0, 1 << 20);
        for seq in 1..5 {
            let content = [1; PAGE_BYTES];
            let verdict = dictionary.look(&content, ChunkSeq(seq), NOTHING, &mut Pool::new(0));
            assert_eq!(verdict, Verdict::Unknown);
        }
        assert_eq!(dictionary.entries_bytes() + dictionary.marks_bytes(), 0);
    }
}
