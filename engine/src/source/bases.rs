//! What was last sent of pages, for deltas: bounded, the oldest dropped first.
//!
//! A base is always the bytes that were *sent*, never what RAM held. An entry taken for a job is out of the store until the
//! job comes back; a page without one goes whole.

use std::collections::{HashMap, VecDeque};

use crate::source::job::Base;
use crate::source::pool::{BOX_OVERHEAD_BYTES, Pool};
use crate::types::{PAGE_BYTES, PageId};

/// Memory of one entry: its page, its place in the map, and two places in the queue.
const ENTRY_COST_BYTES: usize = PAGE_BYTES + BOX_OVERHEAD_BYTES + 64;

#[derive(Debug)]
struct Entry {
    base: Base,
    stamp: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bases {
    max_entries: usize,
    entries: HashMap<PageId, Entry>,
    /// Entries by age; one whose stamp is not the entry's is stale.
    age: VecDeque<(PageId, u64)>,
    stamp: u64,
}

impl Bases {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Bases {
            max_entries: budget_bytes / ENTRY_COST_BYTES,
            entries: HashMap::new(),
            age: VecDeque::new(),
            stamp: 0,
        }
    }

    pub(super) fn take(&mut self, page: PageId) -> Option<Base> {
        self.entries.remove(&page).map(|entry| entry.base)
    }

    /// Keeps `base` of a page that has none.
    pub(super) fn put(&mut self, page: PageId, base: Base, pool: &mut Pool) {
        if self.max_entries == 0 {
            pool.give_back(base.bytes);
            return;
        }
        while self.entries.len() >= self.max_entries {
            self.drop_oldest(pool);
        }
        self.stamp += 1;
        self.age.push_back((page, self.stamp));
        if let Some(old) = self.entries.insert(page, Entry { base, stamp: self.stamp }) {
            pool.give_back(old.base.bytes);
        }
        if self.age.len() > 2 * self.max_entries {
            self.age
                .retain(|(page, stamp)| self.entries.get(page).is_some_and(|entry| entry.stamp == *stamp));
        }
    }

    /// Forgets the page's base.
    pub(super) fn forget(&mut self, page: PageId, pool: &mut Pool) {
        if let Some(base) = self.take(page) {
            pool.give_back(base.bytes);
        }
    }

    /// Memory beyond the page buffers, which are the pool's.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * (size_of::<Entry>() + size_of::<PageId>() + 1)
            + self.age.capacity() * size_of::<(PageId, u64)>()
    }

    fn drop_oldest(&mut self, pool: &mut Pool) {
        while let Some((page, stamp)) = self.age.pop_front() {
            if self.entries.get(&page).is_some_and(|entry| entry.stamp == stamp) {
                self.forget(page, pool);
                return;
            }
        }
    }
}
