//! Any bytes as a greeting or a frame's header: no panic, no length beyond the limit, and what is understood is written
//! back as the same bytes.
#![no_main]

use hikyaku_transport::wire::frame::{HEADER_BYTES, Header};
use hikyaku_transport::wire::greeting::{GREETING_BYTES, Greeting, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = data.first_chunk::<GREETING_BYTES>()
        && let Ok(greeting) = Greeting::decode(bytes)
        && greeting.kind != Kind::Foreign
    {
        assert_eq!(greeting.encode(), *bytes);
    }
    let Some((limit, rest)) = data.split_first_chunk::<4>() else { return };
    let limit = u32::from_le_bytes(*limit);
    if let Some(bytes) = rest.first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::decode(bytes, limit)
    {
        assert!(header.body_bytes <= limit);
        assert_eq!(header.encode(), *bytes);
    }
});
