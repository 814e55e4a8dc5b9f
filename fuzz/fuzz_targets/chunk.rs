//! Any chunks in any order: no panic, no memory beyond the budget, nothing outside the guest, and no delta that QEMU would
//! refuse.
//!
//! Input: chunks, one after the other, as `{ u8 seq, u8 after, u16 length, payload }`, little-endian.
#![no_main]

use std::convert::Infallible;

use hikyaku_engine::codec::DecodeScratch;
use hikyaku_engine::{ChunkSeq, PageBytes, PageId, Receiver, ReceiverConfig, Sink};
use libfuzzer_sys::fuzz_target;

const PAGES: u32 = 700;

#[derive(Default)]
struct Guest {
    opaque_bytes: usize,
}

impl Sink for Guest {
    type Error = Infallible;

    fn layout(&self) -> Option<u32> {
        (self.opaque_bytes > 0).then_some(PAGES)
    }
    fn opaque(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.opaque_bytes += bytes.len();
        Ok(())
    }
    fn zero(&mut self, page: PageId, run: u32) -> Result<(), Infallible> {
        assert!(self.layout().is_some() && run > 0 && page.0 + run <= PAGES);
        Ok(())
    }
    fn page(&mut self, page: PageId, _: &PageBytes) -> Result<(), Infallible> {
        assert!(self.layout().is_some() && page.0 < PAGES);
        Ok(())
    }
    fn delta(&mut self, page: PageId, xbzrle: &[u8]) -> Result<(), Infallible> {
        assert!(page.0 < PAGES);
        hikyaku_qemu::stream::xbzrle::validate(xbzrle).expect("a delta QEMU takes");
        Ok(())
    }
    fn raw(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn tail(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let config = ReceiverConfig {
        park_budget_bytes: 1 << 16,
        max_ahead: 100,
        max_chunk_bytes: 1 << 17,
        max_pages: PAGES,
        dictionary_slots: 8,
    };
    let dictionary_bytes = usize::from(config.dictionary_slots) * 5000;
    let allowed = config.park_budget_bytes
        + config.max_chunk_bytes
        + DecodeScratch::ZSTD_BYTES
        + dictionary_bytes
        + (1 << 14);
    let mut receiver = Receiver::new(config);
    let mut guest = Guest::default();
    let mut applied = Vec::new();
    let mut rest = input;
    while let [seq, after, low, high, tail @ ..] = rest {
        let bytes = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (payload, left) = tail.split_at(bytes);
        rest = left;
        let through = receiver.applied_through();
        let taken = receiver.chunk(
            ChunkSeq(u32::from(*seq)),
            ChunkSeq(u32::from(*after)),
            payload.to_vec(),
            &mut guest,
        );
        if taken.is_err() {
            return;
        }
        assert!(receiver.applied_through() >= through);
        assert!(receiver.memory_bytes() <= allowed);
        applied.clear();
        receiver.take_applied(&mut applied);
        for (seq, _) in &applied {
            assert!(*seq > through, "reported twice");
        }
    }
});
