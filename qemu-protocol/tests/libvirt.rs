//! libvirt's packets: passed on as they are, looked at where they matter, and never kept without bound.

use hikyaku_qemu::libvirt::{
    Answer, Header, PACKET_BYTES_MAX, PONG, Part, Reader, RpcError, WHOLE_BYTES_MAX, finish_is_cancelled,
    procedure,
};

const REMOTE: u32 = 0x2000_8086;
const PING: [u8; 28] = *b"\0\0\0\x1ckeep\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0";

fn packet(program: u32, procedure: i32, kind: i32, serial: u32, status: i32, payload: &[u8]) -> Vec<u8> {
    let length = 28 + payload.len() as u32;
    let words = [length, program, 1, procedure as u32, kind as u32, serial, status as u32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

fn call(procedure: i32, serial: u32, payload: &[u8]) -> Vec<u8> {
    packet(REMOTE, procedure, 0, serial, 0, payload)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    passed: Vec<u8>,
    packets: Vec<(Header, Vec<u8>)>,
    pings: usize,
}

fn read(bytes: &[u8], piece: usize) -> (Told, Result<(), RpcError>, bool) {
    let (mut reader, mut told) = (Reader::default(), Told::default());
    let whole = |header: &Header| header.calls(procedure::FINISH) || header.calls(procedure::PREPARE);
    let result = bytes.chunks(piece).try_for_each(|piece| {
        reader.push(piece, whole, |part| match part {
            Part::Bytes(bytes) => told.passed.extend_from_slice(bytes),
            Part::Packet(header, bytes) => told.packets.push((header, bytes.to_vec())),
            Part::Ping => told.pings += 1,
        })
    });
    (told, result, reader.is_passing())
}

#[test]
fn packets_go_on_but_keepalive_however_they_are_cut() {
    let open = call(1, 1, b"\0\0\0\0\0\0\0\0");
    let event = packet(REMOTE, 315, 2, 0, 0, &[7; 5000]);
    let finish = call(procedure::FINISH, 9, b"params and a cookie\0\0\0\0\0");
    let bytes = [&open[..], &PING, &PONG, &event, &finish, &PING, &open].concat();
    for piece in [1, 2, 3, 27, 28, 29, 100, bytes.len()] {
        let (told, result, within) = read(&bytes, piece);
        assert_eq!(result, Ok(()));
        assert!(!within);
        assert_eq!(told.passed, [&open[..], &event, &open].concat(), "{piece}");
        assert_eq!(told.pings, 2);
        let [(header, whole)] = told.packets.as_slice() else { panic!("{:?}", told.packets) };
        assert_eq!((header.serial, whole), (9, &finish));
    }
}

#[test]
fn a_pong_is_what_libvirt_answers() {
    let mut ping = PING;
    ping[15] = 2;
    assert_eq!(PONG, ping);
}

#[test]
fn a_reply_belongs_to_its_call() {
    let header = |bytes: &[u8]| {
        let mut found = None;
        let read = Reader::default().push(bytes, |header| found.replace(*header).is_some(), |_| ());
        read.unwrap();
        found.unwrap()
    };
    assert_eq!(header(&packet(REMOTE, 306, 1, 9, 0, b"")).answers(9), Some(Answer::Done));
    assert_eq!(header(&packet(REMOTE, 306, 1, 9, 1, b"")).answers(9), Some(Answer::Failed));
    assert_eq!(header(&packet(REMOTE, 306, 1, 8, 0, b"")).answers(9), None);
    assert_eq!(header(&packet(REMOTE, 306, 0, 9, 0, b"")).answers(9), None, "a call");
    assert_eq!(header(&packet(0x2000_8087, 306, 1, 9, 0, b"")).answers(9), None, "another program");
    assert!(!header(&packet(0x2000_8087, 306, 0, 9, 0, b"")).calls(procedure::FINISH));
}

#[test]
fn what_a_finish_finishes_is_in_its_last_word() {
    assert!(!finish_is_cancelled(&call(procedure::FINISH, 1, b"cookie\0\0\0\0\0\0")));
    assert!(finish_is_cancelled(&call(procedure::FINISH, 1, b"cookie\0\0\0\0\0\x01")));
    assert!(!finish_is_cancelled(&call(procedure::FINISH, 1, b"")), "of nothing nothing is said");
}

#[test]
fn what_is_none_of_libvirt_s_is_refused_and_stays_so() {
    let refused = |bytes: &[u8], error: RpcError| {
        for piece in [1, bytes.len()] {
            assert_eq!(read(bytes, piece).1, Err(error));
        }
        let mut reader = Reader::default();
        assert!(reader.push(bytes, |_| true, |_| ()).is_err());
        assert_eq!(reader.push(&call(1, 1, b""), |_| true, |_| ()), Err(error));
    };
    let long = |length: u32, procedure: i32| {
        let mut bytes = call(procedure, 1, b"");
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    refused(&long(27, 1), RpcError::Length(27));
    let most = PACKET_BYTES_MAX as u32;
    refused(&long(most + 1, 1), RpcError::Length(most + 1));
    refused(
        &long(WHOLE_BYTES_MAX as u32 + 1, procedure::FINISH),
        RpcError::TooLong(WHOLE_BYTES_MAX as u32 + 1),
    );
    refused(&packet(REMOTE, 1, 4, 1, 0, b""), RpcError::Descriptors);
    refused(b"GET / HTTP/1.1\r\nHost: osaka\r\n\r\n", RpcError::Length(0x4745_5420));
    assert_eq!(read(&long(most, 1), 5).1, Ok(()), "it goes on as it comes");
}
