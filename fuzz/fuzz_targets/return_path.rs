//! Any bytes as a return path: no panic; the same messages however they are cut; what was read is written again
//! byte for byte. The first byte chooses the cuts.
#![no_main]

use hikyaku_qemu::return_path::{MAX_DATA_BYTES, Message, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let read = |piece: usize| {
        let (mut reader, mut out) = (Reader::new(), Vec::<Message>::new());
        let result = bytes.chunks(piece).try_for_each(|p| reader.push(p, |m| out.push(m)));
        (out, result)
    };
    let (messages, result) = read(bytes.len().max(1));
    assert_eq!(read(usize::from(cut) + 1), (messages.clone(), result));
    let mut again = Vec::new();
    for message in &messages {
        message.write(&mut again).unwrap();
    }
    assert!(bytes.starts_with(&again));
    if result.is_ok() {
        assert!(bytes.len() - again.len() < MAX_DATA_BYTES + 4);
    }
});
