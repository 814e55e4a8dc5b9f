//! Contents of pages that the source had kept here. Which are worth it, and which make room for others, is the source's to say.

use crate::types::{ChunkSeq, PageBytes};

/// See the module. A content costs memory when its slot is first used, and then for good.
#[derive(Debug)]
pub(super) struct Dictionary {
    slots: u16,
    /// Empty until the first store.
    entries: Vec<Option<Box<Entry>>>,
    used: usize,
}

#[derive(Debug)]
struct Entry {
    /// The chunk that brought the content.
    seq: ChunkSeq,
    bytes: PageBytes,
}

/// The source may not do this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreRefused {
    Outside,
    /// The slot holds what this chunk stored, which is a later one, or the same one with another content.
    Otherwise(ChunkSeq),
}

impl Dictionary {
    pub(super) fn new(slots: u16) -> Self {
        Dictionary { slots, entries: Vec::new(), used: 0 }
    }

    /// How many there are; they count from 0.
    pub(super) fn slots(&self) -> u16 {
        self.slots
    }

    /// Keeps what chunk `seq` brought. A chunk that waited stores again when it is applied again, and nothing changes.
    pub(super) fn store(&mut self, slot: u16, seq: ChunkSeq, bytes: &PageBytes) -> Result<(), StoreRefused> {
        if self.entries.is_empty() {
            self.entries.resize_with(self.slots.into(), || None);
        }
        match self.entries.get_mut(usize::from(slot)) {
            None => Err(StoreRefused::Outside),
            Some(empty @ None) => {
                *empty = Some(Box::new(Entry { seq, bytes: *bytes }));
                self.used += 1;
                Ok(())
            }
            Some(Some(entry)) if entry.seq < seq => {
                entry.seq = seq;
                entry.bytes = *bytes;
                Ok(())
            }
            Some(Some(entry)) if entry.seq == seq && entry.bytes == *bytes => Ok(()),
            Some(Some(entry)) => Err(StoreRefused::Otherwise(entry.seq)),
        }
    }

    /// What chunk `seq` stored in `slot`, if it is there.
    pub(super) fn get(&self, slot: u16, seq: ChunkSeq) -> Option<&PageBytes> {
        self.entry(slot).filter(|entry| entry.seq == seq).map(|entry| &entry.bytes)
    }

    /// The chunk that stored what is in `slot`.
    pub(super) fn stored_in(&self, slot: u16) -> ChunkSeq {
        self.entry(slot).map_or(ChunkSeq::NONE, |entry| entry.seq)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        const ENTRY_OVERHEAD_BYTES: usize = 16;
        self.entries.capacity() * size_of::<Option<Box<Entry>>>()
            + self.used * (size_of::<Entry>() + ENTRY_OVERHEAD_BYTES)
    }

    fn entry(&self, slot: u16) -> Option<&Entry> {
        self.entries.get(usize::from(slot))?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PAGE_BYTES;

    #[test]
    fn a_slot_holds_what_the_latest_chunk_stored_and_knows_which() {
        let mut dictionary = Dictionary::new(2);
        let (a, b) = ([1; PAGE_BYTES], [2; PAGE_BYTES]);
        assert_eq!(dictionary.memory_bytes(), 0);
        assert_eq!(dictionary.get(0, ChunkSeq(0)), None);
        assert_eq!(dictionary.store(2, ChunkSeq(1), &a), Err(StoreRefused::Outside));
        assert_eq!(dictionary.store(1, ChunkSeq(3), &a), Ok(()));
        assert_eq!(dictionary.store(1, ChunkSeq(3), &a), Ok(()), "applied again");
        assert_eq!(dictionary.store(1, ChunkSeq(3), &b), Err(StoreRefused::Otherwise(ChunkSeq(3))));
        assert_eq!(dictionary.store(1, ChunkSeq(2), &b), Err(StoreRefused::Otherwise(ChunkSeq(3))));
        assert_eq!(dictionary.get(1, ChunkSeq(3)), Some(&a));
        assert_eq!(dictionary.store(1, ChunkSeq(5), &b), Ok(()));
        assert_eq!((dictionary.get(1, ChunkSeq(3)), dictionary.get(1, ChunkSeq(5))), (None, Some(&b)));
        assert_eq!((dictionary.stored_in(0), dictionary.stored_in(1)), (ChunkSeq(0), ChunkSeq(5)));
        assert!(dictionary.memory_bytes() < PAGE_BYTES + 100);
    }

    #[test]
    fn without_slots_nothing_is_kept() {
        let mut dictionary = Dictionary::new(0);
        assert_eq!(dictionary.store(0, ChunkSeq(1), &[1; PAGE_BYTES]), Err(StoreRefused::Outside));
        assert_eq!((dictionary.memory_bytes(), dictionary.get(0, ChunkSeq(1))), (0, None));
    }
}
