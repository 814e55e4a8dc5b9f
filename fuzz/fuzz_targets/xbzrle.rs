//! Any bytes as a delta: what is validated is decoded, whatever the page; what is refused leaves the page alone.
#![no_main]

use hikyaku_qemu::stream::{PAGE_BYTES, xbzrle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|delta: &[u8]| {
    let page: [u8; PAGE_BYTES] = std::array::from_fn(|i| (i * 31) as u8);
    let mut next = page;
    let decoded = xbzrle::decode(&mut next, delta);
    assert_eq!(decoded, xbzrle::validate(delta));
    let changed = next.iter().zip(&page).filter(|(a, b)| a != b).count();
    assert!(changed <= decoded.unwrap_or(0));
});
