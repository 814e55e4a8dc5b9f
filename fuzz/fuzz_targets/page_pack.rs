//! Any page, packed and unpacked, is the same; any bytes unpack to a page or to an error.
//!
//! Input: the beginning of a page, which is repeated to its end; also taken for a packed page.
#![no_main]

use hikyaku_engine::PAGE_BYTES;
use hikyaku_engine::codec::page_pack::{MAX_PACKED_BYTES, PagePacker, unpack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut unpacked = [0; PAGE_BYTES];
    let _ = unpack(input, &mut unpacked);
    let mut page = [0; PAGE_BYTES];
    page.iter_mut().zip(input.iter().cycle()).for_each(|(byte, given)| *byte = *given);
    let mut packer = PagePacker::default();
    // The second time its table is not new.
    for _ in 0..2 {
        if let Some(packed) = packer.pack(&page) {
            assert!(packed.len() <= MAX_PACKED_BYTES);
            unpack(packed, &mut unpacked).expect("what was packed");
            assert!(unpacked == page);
        }
    }
});
