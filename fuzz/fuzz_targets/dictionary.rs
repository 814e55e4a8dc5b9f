//! Whole pages, deltas, stores and references by a source that may break every rule, in any order: each content that is written is
//! the one that the source meant, and if nothing was refused every page ends with the newest.
//!
//! Input: `{ u8 chunks }`, the records of each chunk as `{ u8 records, { u8 kind, u8 page, u8 seq, u8 slot }* }`, then a byte per chunk for the
//! order of arrival. Bytes that are missing are 0.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use hikyaku_engine::codec::{Encoder, Method, PagesBody, xbzrle};
use hikyaku_engine::{ChunkSeq, PAGE_BYTES, PageBytes, PageId, Receiver, ReceiverConfig, Sink};
use libfuzzer_sys::fuzz_target;

const PAGES: u32 = 6;
const SLOTS: u16 = 3;

#[derive(Debug, Clone, Copy)]
enum Record {
    Whole,
    Delta { base: u32 },
    Refer { stored_in: u32, slot: u16 },
}

/// What the source said, and so what every page may hold.
#[derive(Default)]
struct Script {
    /// By page and chunk.
    records: BTreeMap<(u32, u32), Record>,
    /// By chunk and slot, the page whose content it is. Two in one slot are refused.
    stores: BTreeMap<(u32, u16), u32>,
}

impl Script {
    fn content(&self, page: u32, seq: u32) -> Option<PageBytes> {
        match *self.records.get(&(page, seq))? {
            Record::Whole => Some([whole(page, seq); PAGE_BYTES]),
            Record::Delta { base } if base < seq => {
                let mut bytes = self.content(page, base)?;
                xbzrle::apply(&change(seq), &mut bytes).expect("a delta");
                Some(bytes)
            }
            Record::Refer { stored_in, slot } if stored_in <= seq => {
                self.content(*self.stores.get(&(stored_in, slot))?, stored_in)
            }
            _ => None,
        }
    }

    fn newest(&self, page: u32) -> Option<PageBytes> {
        let (page_and_seq, _) = self.records.range((page, 0)..=(page, u32::MAX)).next_back()?;
        self.content(page, page_and_seq.1)
    }
}

/// Another one for each page and chunk.
fn whole(page: u32, seq: u32) -> u8 {
    (1 + seq * PAGES + page) as u8
}

/// Two bytes, elsewhere for each chunk.
fn change(seq: u32) -> [u8; 4] {
    [3 * seq as u8, 2, 0xee, seq as u8]
}

struct Guest<'a> {
    script: &'a Script,
    ram: BTreeMap<u32, PageBytes>,
}

impl Guest<'_> {
    fn write(&mut self, page: u32, bytes: PageBytes) {
        let said = self.script.records.range((page, 0)..=(page, u32::MAX));
        let meant = said.map(|((_, seq), _)| *seq).any(|seq| self.script.content(page, seq) == Some(bytes));
        assert!(meant, "page {page} got a content that nobody meant");
        self.ram.insert(page, bytes);
    }
}

impl Sink for Guest<'_> {
    type Error = Infallible;

    fn opaque(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn zero(&mut self, _: PageId, _: u32) -> Result<(), Infallible> {
        Ok(())
    }
    fn page(&mut self, page: PageId, bytes: &PageBytes) -> Result<(), Infallible> {
        self.write(page.0, *bytes);
        Ok(())
    }
    fn delta(&mut self, page: PageId, delta: &[u8]) -> Result<(), Infallible> {
        let mut bytes = *self.ram.get(&page.0).expect("a base");
        xbzrle::apply(delta, &mut bytes).expect("a delta");
        self.write(page.0, bytes);
        Ok(())
    }
    fn raw(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn tail(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::default();
}

fuzz_target!(|input: &[u8]| {
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or_default();
    let chunks = 1 + u32::from(next()) % 12;
    let mut script = Script::default();
    let mut arriving = Vec::new();
    for seq in 1..=chunks {
        let (mut wholes, mut deltas, mut refs, mut stores) = (vec![], vec![], vec![], vec![]);
        for _ in 0..next() % 6 {
            let kind = next() % 4;
            let page = u32::from(next()) % PAGES;
            let other = u32::from(next()) % (chunks + 2);
            let slot = u16::from(next()) % (SLOTS + 1);
            if script.records.contains_key(&(page, seq)) {
                continue;
            }
            let record = match kind {
                0 | 1 => {
                    if kind == 1 {
                        stores.push((wholes.len() as u16, slot));
                        script.stores.insert((seq, slot), page);
                    }
                    wholes.push((PageId(page), [whole(page, seq); PAGE_BYTES]));
                    Record::Whole
                }
                2 => {
                    deltas.push((PageId(page), ChunkSeq(other), 4));
                    Record::Delta { base: other }
                }
                _ => {
                    refs.push((PageId(page), ChunkSeq(other), slot));
                    Record::Refer { stored_in: other, slot }
                }
            };
            script.records.insert((page, seq), record);
        }
        let wholes: Vec<_> = wholes.iter().map(|(page, bytes)| (*page, bytes)).collect();
        let (packed, plain) = wholes.split_at(wholes.len() / 2);
        let body = PagesBody {
            wholes: packed,
            plain,
            deltas: &deltas,
            delta_bytes: &change(seq).repeat(deltas.len()),
            refs: &refs,
            stores: &stores,
            ..PagesBody::default()
        };
        let packed = ENCODER.with_borrow_mut(|encoder| encoder.pages(&body, Method::Lz4, 30));
        arriving.push((seq, packed.payload.to_vec()));
    }
    for at in (1..arriving.len()).rev() {
        arriving.swap(at, usize::from(next()) % (at + 1));
    }

    let config = ReceiverConfig { dictionary_slots: SLOTS, max_ahead: 64, ..ReceiverConfig::default() };
    let mut receiver = Receiver::new(config);
    receiver.layout(PAGES).expect("a layout");
    let mut guest = Guest { script: &script, ram: BTreeMap::new() };
    for (seq, payload) in arriving {
        if receiver.chunk(ChunkSeq(seq), ChunkSeq::NONE, payload, &mut guest).is_err() {
            return;
        }
    }
    assert_eq!((receiver.parked_chunks(), receiver.applied_through()), (0, ChunkSeq(chunks)));
    for page in 0..PAGES {
        assert!(
            guest.ram.get(&page) == script.newest(page).as_ref(),
            "page {page} has not the newest content"
        );
    }
});
