//! Chunks that have come and wait: for everything up to a number, for one chunk, or for the layout.

use std::collections::{BTreeMap, VecDeque};

use crate::types::ChunkSeq;

/// A chunk as it came.
#[derive(Debug)]
pub(super) struct Held {
    pub seq: ChunkSeq,
    pub after: ChunkSeq,
    pub payload: Vec<u8>,
    /// How often it was looked at.
    pub looks: u32,
}

/// What a chunk waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Everything up to this chunk.
    Through(ChunkSeq),
    /// This chunk: it carries the base of a delta.
    One(ChunkSeq),
    Layout,
}

/// Memory of a parked chunk beside its payload: itself, and its place in a map.
const HELD_OVERHEAD_BYTES: usize = size_of::<Held>() + 64;

/// So often a chunk is looked at again for each that it waits for.
const LOOKS: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Parking {
    budget_bytes: usize,
    used_bytes: usize,
    through: BTreeMap<ChunkSeq, Vec<Held>>,
    one: BTreeMap<ChunkSeq, Vec<Held>>,
    layout: Vec<Held>,
    ready: VecDeque<Held>,
    parked: usize,
}

impl Parking {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Parking {
            budget_bytes,
            used_bytes: 0,
            through: BTreeMap::new(),
            one: BTreeMap::new(),
            layout: Vec::new(),
            ready: VecDeque::new(),
            parked: 0,
        }
    }

    /// Keeps a chunk; one that has waited for several others already, for all that came before the next of them: each look costs what it costs to
    /// decode the chunk. An error if the budget does not allow it.
    pub(super) fn park(&mut self, mut held: Held, wait: Wait) -> Result<(), ()> {
        // A buffer made for the largest frame must not hold a small one for long.
        held.payload.shrink_to_fit();
        let cost = cost_bytes(&held);
        if self.used_bytes.saturating_add(cost) > self.budget_bytes {
            return Err(());
        }
        self.used_bytes += cost;
        self.parked += 1;
        held.looks += 1;
        match wait {
            Wait::One(seq) if held.looks > LOOKS => self.through.entry(seq).or_default().push(held),
            Wait::Through(seq) => self.through.entry(seq).or_default().push(held),
            Wait::One(seq) => self.one.entry(seq).or_default().push(held),
            Wait::Layout => self.layout.push(held),
        }
        Ok(())
    }

    /// `seq` has been applied, and now everything up to `through`.
    pub(super) fn applied(&mut self, seq: ChunkSeq, through: ChunkSeq) {
        if let Some(held) = self.one.remove(&seq) {
            self.ready.extend(held);
        }
        while let Some(first) = self.through.first_entry()
            && *first.key() <= through
        {
            self.ready.extend(first.remove());
        }
    }

    pub(super) fn waits_for_layout(&self) -> bool {
        !self.layout.is_empty()
    }

    pub(super) fn layout_known(&mut self) {
        self.ready.extend(self.layout.drain(..));
    }

    /// A chunk that need not wait any more for what it waited for; it is not parked any more.
    pub(super) fn next_ready(&mut self) -> Option<Held> {
        let held = self.ready.pop_front()?;
        self.used_bytes -= cost_bytes(&held);
        self.parked -= 1;
        Some(held)
    }

    pub(super) fn len(&self) -> usize {
        self.parked
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.used_bytes
    }
}

fn cost_bytes(held: &Held) -> usize {
    held.payload.capacity() + HELD_OVERHEAD_BYTES
}
