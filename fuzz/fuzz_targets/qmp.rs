//! Any bytes as what a QMP server says: no panic, no line beyond the limit, the same messages however they are
//! cut. The first byte chooses the cuts.
#![no_main]

use hikyaku_qemu::qmp::codec::{Lines, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let read = |piece: usize| {
        let (mut lines, mut out) = (Lines::new(4096), Vec::<Message>::new());
        let result = bytes.chunks(piece).try_for_each(|p| lines.push(p, |m| out.push(m)));
        (out, result)
    };
    let whole = read(bytes.len().max(1));
    let cut = read(usize::from(cut) + 1);
    assert_eq!(cut.0, whole.0);
    assert_eq!(cut.1.is_ok(), whole.1.is_ok());
});
