//! Any two pages: the engine's delta is one that QEMU's rules allow, and makes the one of the other.
//!
//! Input: changes to a page, as `{ u16 at, u8 length, u8 value }`.
#![no_main]

use hikyaku_engine::PAGE_BYTES;
use hikyaku_engine::codec::xbzrle::{self, Encoding};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|changes: &[u8]| {
    let base: [u8; PAGE_BYTES] = std::array::from_fn(|i| (i / 7) as u8);
    let mut page = base;
    for [low, high, length, value] in changes.as_chunks().0 {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % PAGE_BYTES;
        let end = (at + usize::from(*length)).min(PAGE_BYTES);
        page[at..end].fill(*value);
    }
    let mut delta = Vec::new();
    let encoding = xbzrle::encode(&base, &page, PAGE_BYTES, &mut delta);
    assert_eq!(encoding == Encoding::Same, base == page);
    if let Encoding::Delta(bytes) = encoding {
        assert_eq!(bytes, delta.len());
        assert!(xbzrle::check(&delta).is_ok());
        let mut rebuilt = base;
        hikyaku_qemu::stream::xbzrle::decode(&mut rebuilt, &delta).expect("a delta QEMU takes");
        assert!(rebuilt == page);
    }
});
