//! Any bytes as a control message or a verdict: no panic, no allocation that the bytes do not pay for (`fuzz/run` bounds
//! it), and what is understood is written back as the same bytes.
#![no_main]

use hikyaku_transport::wire::control::{Message, PLAIN_BYTES_MAX, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let data = &data[..data.len().min(PLAIN_BYTES_MAX)];
    if let Ok(message) = Message::decode(data) {
        assert_eq!(message.encode().as_deref(), Ok(data));
    }
    if let Ok(verdict) = Verdict::decode(data) {
        assert_eq!(verdict.encode().as_deref(), Ok(data));
    }
});
