//! Any bytes as libvirt's: no panic; the same parts however they are cut; nothing goes on twice or is left out, but keepalive packets.
//! The first byte chooses the cuts, the second which packets are looked at whole.
#![no_main]

use hikyaku_qemu::libvirt::{HEADER_BYTES, Header, Part, Reader, RpcError, WHOLE_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, PartialEq)]
struct Told {
    gone_on: Vec<u8>,
    packets: Vec<(Header, usize)>,
    pings: usize,
    result: Result<(), RpcError>,
}

fuzz_target!(|data: &[u8]| {
    let [cut, looks, bytes @ ..] = data else { return };
    let read = |piece: usize| {
        let mut reader = Reader::default();
        let (mut gone_on, mut packets, mut pings) = (Vec::new(), Vec::new(), 0);
        let result = bytes.chunks(piece).try_for_each(|piece| {
            let whole = |header: &Header| header.procedure as u8 & looks == 0;
            reader.push(piece, whole, |part| match part {
                Part::Bytes(bytes) => gone_on.extend_from_slice(bytes),
                Part::Packet(header, bytes) => {
                    assert_eq!(header.length as usize, bytes.len());
                    assert!(bytes.len() <= WHOLE_BYTES_MAX);
                    gone_on.extend_from_slice(bytes);
                    packets.push((header, bytes.len()));
                }
                Part::Ping => pings += 1,
            })
        });
        Told { gone_on, packets, pings, result }
    };
    let told = read(bytes.len().max(1));
    assert!(told.gone_on.len() + told.pings * HEADER_BYTES <= bytes.len());
    assert_eq!(read(usize::from(*cut) + 1), told);
});
