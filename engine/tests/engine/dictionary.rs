//! Contents that a source has kept at the receiver, and refers to.

use std::collections::BTreeMap;

use crate::model::Rng;
use crate::payload::{Pair, first_byte, opaque, payload, stored_payload};
use crate::receiver::shuffle;
use hikyaku_engine::codec::DecodeError;
use hikyaku_engine::{ChunkSeq, PAGE_BYTES, ReceiveError, ReceiverConfig};
use proptest::prelude::*;

const SLOTS: u16 = 3;

#[derive(Debug, Clone)]
enum Step {
    Whole {
        page: u32,
        value: u8,
        store: Option<u16>,
    },
    /// A page that is to hold what a slot holds.
    Refer {
        page: u32,
        slot: u16,
    },
    /// The first byte of a page.
    Change {
        page: u32,
        value: u8,
    },
    /// The next steps go in another chunk.
    Chunk,
    /// Everything so far arrives and is acknowledged.
    Acknowledge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..8u32;
    let slot = 0..SLOTS;
    let step = prop_oneof![
        4 => (page.clone(), any::<u8>(), prop::option::of(slot.clone()))
            .prop_map(|(page, value, store)| Step::Whole { page, value, store }),
        4 => (page.clone(), slot).prop_map(|(page, slot)| Step::Refer { page, slot }),
        2 => (page, any::<u8>()).prop_map(|(page, value)| Step::Change { page, value }),
        4 => Just(Step::Chunk),
        1 => Just(Step::Acknowledge),
    ];
    prop::collection::vec(step, 1..80)
}

/// A source that keeps to the rule, and what it knows.
#[derive(Default)]
struct Honest {
    seq: u32,
    acked: u32,
    wholes: Vec<(u32, u8)>,
    deltas: Vec<(u32, u32, [u8; 3])>,
    refs: Vec<(u32, u32, u16)>,
    stores: Vec<(u16, u16)>,
    /// Of each slot, the value, the chunk that stored it, the last that spoke of it.
    slots: BTreeMap<u16, (u8, u32, u32)>,
    /// Of each page, its first byte, the others, the chunk that carried it.
    pages: BTreeMap<u32, (u8, u8, u32)>,
    sent: Vec<(u32, Vec<u8>)>,
}

impl Honest {
    fn step(&mut self, step: &Step) {
        // The chunk that is being filled.
        let seq = self.seq + 1;
        let in_chunk = |page: u32| self.pages.get(&page).is_some_and(|(_, _, carried)| *carried == seq);
        match *step {
            Step::Whole { page, value, store } if !in_chunk(page) => {
                let free = |slot: &u16| self.slots.get(slot).is_none_or(|(_, _, used)| *used <= self.acked);
                if let Some(slot) = store.filter(free) {
                    self.stores.push((self.wholes.len() as u16, slot));
                    self.slots.insert(slot, (value, seq, seq));
                }
                self.wholes.push((page, value));
                self.pages.insert(page, (value, value, seq));
            }
            Step::Refer { page, slot } if !in_chunk(page) => {
                if let Some((value, stored_in, used)) = self.slots.get_mut(&slot) {
                    *used = seq;
                    self.refs.push((page, *stored_in, slot));
                    self.pages.insert(page, (*value, *value, seq));
                }
            }
            Step::Change { page, value } if !in_chunk(page) => {
                if let Some((first, _, carried)) = self.pages.get_mut(&page) {
                    self.deltas.push((page, *carried, first_byte(value)));
                    (*first, *carried) = (value, seq);
                }
            }
            Step::Chunk => self.finish_chunk(),
            _ => {}
        }
    }

    fn finish_chunk(&mut self) {
        self.seq += 1;
        let deltas: Vec<_> =
            self.deltas.iter().map(|(page, base, delta)| (*page, *base, &delta[..])).collect();
        let payload = stored_payload(&[], &self.wholes, &deltas, &self.refs, &self.stores);
        self.sent.push((self.seq, payload));
        self.wholes.clear();
        self.deltas.clear();
        self.refs.clear();
        self.stores.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_source_that_keeps_to_the_rule_is_understood_in_any_order(steps in steps(), seed in any::<u64>()) {
        let mut source = Honest::default();
        let mut rng = Rng(seed);
        let mut pair = Pair::new(ReceiverConfig { dictionary_slots: SLOTS, ..ReceiverConfig::default() });
        for step in steps.iter().chain([&Step::Acknowledge]) {
            source.step(step);
            if !matches!(step, Step::Acknowledge) {
                continue;
            }
            source.finish_chunk();
            let mut arriving = std::mem::take(&mut source.sent);
            shuffle(&mut arriving, &mut rng);
            for (seq, payload) in arriving {
                pair.chunk(seq, 0, payload).unwrap();
            }
            prop_assert_eq!(pair.receiver.applied_through(), ChunkSeq(source.seq));
            source.acked = source.seq;
            for (page, (first, rest, _)) in &source.pages {
                let held = &pair.ram.pages[*page as usize];
                prop_assert!(held[0] == *first && held[1..].iter().all(|byte| byte == rest), "page {}", page);
            }
        }
    }
}

#[test]
fn a_reference_writes_what_a_chunk_stored_whichever_comes_first() {
    for store_first in [true, false] {
        let mut pair = Pair::new(ReceiverConfig::default());
        let store = stored_payload(&[], &[(1, 11), (2, 22)], &[], &[(3, 1, 9)], &[(1, 9)]);
        let refer = stored_payload(&[], &[(4, 44)], &[], &[(5, 1, 9), (6, 1, 9)], &[]);
        if store_first {
            pair.chunk(1, 0, store).unwrap();
            pair.chunk(2, 0, refer).unwrap();
        } else {
            pair.chunk(2, 0, refer).unwrap();
            assert_eq!((pair.receiver.parked_chunks(), pair.ram.pages[4]), (1, [44; PAGE_BYTES]));
            pair.chunk(1, 0, store).unwrap();
        }
        for (page, value) in [(1, 11), (2, 22), (3, 22), (4, 44), (5, 22), (6, 22)] {
            assert_eq!(pair.ram.pages[page], [value; PAGE_BYTES], "page {page}");
        }
        assert_eq!(pair.receiver.applied_through(), ChunkSeq(2));
    }
}

#[test]
fn what_a_page_brings_is_stored_though_the_page_has_something_newer() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(2, 0, payload(&[], &[(1, 2)], &[])).unwrap();
    pair.chunk(1, 0, stored_payload(&[], &[(1, 1)], &[], &[], &[(0, 0)])).unwrap();
    pair.chunk(3, 0, stored_payload(&[], &[], &[], &[(4, 1, 0)], &[])).unwrap();
    assert_eq!((pair.ram.pages[1], pair.ram.pages[4]), ([2; PAGE_BYTES], [1; PAGE_BYTES]));
}

#[test]
fn a_reference_is_dropped_when_something_newer_is_there() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(3, 0, payload(&[], &[(5, 3)], &[])).unwrap();
    pair.chunk(2, 0, stored_payload(&[], &[], &[], &[(5, 1, 0)], &[])).unwrap();
    pair.chunk(1, 0, stored_payload(&[], &[(6, 1)], &[], &[], &[(0, 0)])).unwrap();
    assert_eq!(pair.ram.pages[5], [3; PAGE_BYTES]);
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(3));
}

#[test]
fn what_a_waiting_chunk_stored_may_be_referred_to() {
    let mut pair = Pair::new(ReceiverConfig::default());
    let waits = stored_payload(&[], &[(1, 7)], &[(5, 1, &first_byte(2))], &[], &[(0, 3)]);
    pair.chunk(2, 0, waits).unwrap();
    pair.chunk(3, 0, stored_payload(&[], &[], &[], &[(6, 2, 3)], &[])).unwrap();
    assert_eq!((pair.receiver.parked_chunks(), pair.ram.pages[6]), (1, [7; PAGE_BYTES]));
    pair.chunk(1, 0, payload(&[], &[(5, 1)], &[])).unwrap();
    assert_eq!(pair.receiver.applied_through(), ChunkSeq(3));
}

#[test]
fn what_was_not_stored_is_an_error_and_never_another_content() {
    let pair = || {
        let mut pair = Pair::new(ReceiverConfig { dictionary_slots: 4, ..ReceiverConfig::default() });
        pair.chunk(1, 0, stored_payload(&[], &[(1, 1)], &[], &[], &[(0, 0)])).unwrap();
        pair
    };
    let refer = |stored_in, slot| stored_payload(&[], &[], &[], &[(9, stored_in, slot)], &[]);
    for (stored_in, slot) in [(0, 0), (0, 2), (1, 2), (3, 0), (7, 0)] {
        let mut pair = pair();
        let error = pair.chunk(3, 0, refer(stored_in, slot)).unwrap_err();
        assert_eq!(error, ReceiveError::NotStored { seq: 3, page: 9, stored_in, slot });
        assert!(pair.ram.pages[9] == pair.ram.pages[10], "something was written");
    }
    for outside in [refer(1, 4), stored_payload(&[], &[(1, 1)], &[], &[], &[(0, 4)])] {
        assert_eq!(pair().chunk(3, 0, outside), Err(ReceiveError::NoSlot { seq: 3, slot: 4, slots: 4 }));
    }
    // Comes, and does not store.
    let mut late = pair();
    late.chunk(3, 0, refer(2, 0)).unwrap();
    let error = late.chunk(2, 0, payload(&[], &[(1, 2)], &[])).unwrap_err();
    assert_eq!(error, ReceiveError::NotStored { seq: 3, page: 9, stored_in: 2, slot: 0 });
    // A later chunk stored it, though it came first.
    let mut early = pair();
    early.chunk(5, 0, stored_payload(&[], &[(1, 5)], &[], &[], &[(0, 1)])).unwrap();
    let error = early.chunk(3, 0, refer(5, 1)).unwrap_err();
    assert_eq!(error, ReceiveError::NotStored { seq: 3, page: 9, stored_in: 5, slot: 1 });
    // Two contents for one slot.
    let twice = stored_payload(&[], &[(1, 1), (2, 2)], &[], &[], &[(0, 1), (1, 1)]);
    let error = pair().chunk(2, 0, twice).unwrap_err();
    assert_eq!(error, ReceiveError::StoredOtherwise { seq: 2, slot: 1, stored_in: 2 });
}

/// The source must wait for acknowledgements before it stores anew.
#[test]
fn a_slot_stored_anew_too_early_is_an_error_whatever_the_order() {
    let store = |value| stored_payload(&[], &[(1, value)], &[], &[], &[(0, 0)]);
    let refer = || stored_payload(&[], &[], &[], &[(9, 1, 0)], &[]);
    let mut overtaken = Pair::new(ReceiverConfig::default());
    overtaken.chunk(3, 0, store(3)).unwrap();
    let error = overtaken.chunk(1, 0, store(1)).unwrap_err();
    assert_eq!(error, ReceiveError::StoredOtherwise { seq: 1, slot: 0, stored_in: 3 });
    let mut gone = Pair::new(ReceiverConfig::default());
    gone.chunk(1, 0, store(1)).unwrap();
    gone.chunk(3, 0, store(3)).unwrap();
    let error = gone.chunk(2, 0, refer()).unwrap_err();
    assert_eq!(error, ReceiveError::NotStored { seq: 2, page: 9, stored_in: 1, slot: 0 });
    let mut never = Pair::new(ReceiverConfig::default());
    never.chunk(3, 0, store(3)).unwrap();
    assert!(matches!(never.chunk(2, 0, refer()), Err(ReceiveError::NotStored { .. })));
}

#[test]
fn without_a_dictionary_nothing_may_be_stored_and_it_costs_nothing() {
    let mut pair = Pair::new(ReceiverConfig { dictionary_slots: 0, ..ReceiverConfig::default() });
    let error = pair.chunk(1, 0, stored_payload(&[], &[(1, 1)], &[], &[], &[(0, 0)])).unwrap_err();
    assert_eq!(error, ReceiveError::NoSlot { seq: 1, slot: 0, slots: 0 });
    let mut pair = Pair::new(ReceiverConfig::default());
    let before = pair.receiver.memory_bytes();
    pair.chunk(1, 0, stored_payload(&[], &[(1, 1)], &[], &[], &[(0, 0)])).unwrap();
    let grown = pair.receiver.memory_bytes() - before;
    assert!((PAGE_BYTES..PAGE_BYTES + (40 << 10)).contains(&grown), "{grown} bytes for one slot");
}

#[test]
fn a_small_chunk_cannot_ask_for_much_work() {
    let mut pair = Pair::new(ReceiverConfig { dictionary_slots: SLOTS, ..ReceiverConfig::default() });
    pair.chunk(1, 0, opaque(0, b"layout")).unwrap();
    // One page, stored again and again.
    let stores = [(0, 1); 2];
    let refused = pair.chunk(2, 0, stored_payload(&[], &[(0, 7)], &[], &[], &stores));
    let why = DecodeError::Stores { stores: 2, wholes: 1 };
    assert_eq!(refused, Err(ReceiveError::Payload { seq: 2, why }));
}

#[test]
fn what_waits_for_many_chunks_is_not_looked_at_for_each() {
    let mut pair = Pair::new(ReceiverConfig::default());
    pair.chunk(1, 0, opaque(0, b"layout")).unwrap();
    // Ten pages that are what ten chunks store, which come in the order in which it has to wait for all of them.
    let refs: Vec<_> = (0..10).map(|n| (n, 2 + n, n as u16)).collect();
    for seq in 20..24 {
        pair.chunk(seq, 0, stored_payload(&[], &[], &[], &refs, &[])).unwrap();
    }
    for n in (0..10).rev() {
        assert_eq!(pair.receiver.parked_chunks(), 4);
        pair.chunk(2 + n, 0, stored_payload(&[], &[(20, n as u8)], &[], &[], &[(0, n as u16)])).unwrap();
    }
    assert_eq!(pair.receiver.parked_chunks(), 0);
    assert!((0..10).all(|n| pair.ram.pages[n] == [n as u8; PAGE_BYTES]));
}
