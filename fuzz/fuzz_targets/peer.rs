//! Any bytes as what a peer's daemon or a local caller says: no panic, bounded memory; what was read as a message is written
//! and read again the same; items come out the same however their bytes are cut. The first byte chooses the parser and the cuts.
#![no_main]

use hikyaku_daemon::api::wire::Request;
use hikyaku_daemon::pages::{Item, ItemReader, PagesError};
use hikyaku_daemon::protocol::{self, Answer, Hello, Note, ToDestination, ToSource, Welcome, libvirt};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    match choice % 13 {
        0 => message::<Hello>(bytes),
        1 => message::<Welcome>(bytes),
        2 => message::<Answer>(bytes),
        3 => message::<ToDestination>(bytes),
        4 => message::<ToSource>(bytes),
        5 => message::<Note>(bytes),
        6 => drop(serde_json::from_slice::<Request>(bytes)),
        7 => message::<libvirt::Carried>(bytes),
        8 => message::<libvirt::Connected>(bytes),
        9 => message::<libvirt::ToFar>(bytes),
        10 => message::<libvirt::ToNear>(bytes),
        _ => {
            let whole = items(bytes, bytes.len().max(1));
            assert_eq!(items(bytes, usize::from(choice / 13) + 1), whole);
        }
    }
});

fn message<T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = protocol::decode::<T>(bytes) {
        let again =
            protocol::encode(&message).expect("what was short enough to read is short enough to write");
        assert_eq!(protocol::decode::<T>(&again).expect("it was read before"), message);
    }
}

/// What came out, as bytes, and whether all was understood.
fn items(bytes: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let (mut reader, mut out) = (ItemReader::default(), Vec::new());
    let fed = bytes.chunks(piece).try_for_each(|piece| {
        reader.feed::<PagesError>(piece, |item: Item<'_>| {
            item.write(&mut out);
            Ok(())
        })
    });
    (out, fed.is_ok())
}
