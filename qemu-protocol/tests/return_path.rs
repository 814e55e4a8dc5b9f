//! Return-path messages, both ways, in any pieces.

#![allow(clippy::unwrap_used)]

use hikyaku_qemu::return_path::{MAX_DATA_BYTES, Message, Reader, ReturnPathError};
use proptest::prelude::*;

fn read(bytes: &[u8], piece: usize) -> (Vec<Message>, Result<(), ReturnPathError>) {
    let (mut reader, mut out) = (Reader::new(), Vec::new());
    let result = bytes.chunks(piece).try_for_each(|p| reader.push(p, |m| out.push(m)));
    (out, result)
}

#[test]
fn messages_are_as_qemu_writes_them() {
    let cases: [(Message, &[u8]); 7] = [
        (Message::Shut(1), b"\0\x01\0\x04\0\0\0\x01"),
        (Message::Pong(7), b"\0\x02\0\x04\0\0\0\x07"),
        (Message::ReqPages { start: 0x1000, len: 0x2000 }, b"\0\x04\0\x0c\0\0\0\0\0\0\x10\0\0\0\x20\0"),
        (
            Message::ReqPagesId { start: 0, len: 0x1000, block: b"pc.ram".to_vec() },
            b"\0\x03\0\x13\0\0\0\0\0\0\0\0\0\0\x10\0\x06pc.ram",
        ),
        (Message::ResumeAck(1), b"\0\x06\0\x04\0\0\0\x01"),
        (Message::SwitchoverAck, b"\0\x07\0\0"),
        (Message::Unknown { kind: 9, data: b"ab".to_vec() }, b"\0\x09\0\x02ab"),
    ];
    let mut all = Vec::new();
    for (message, bytes) in &cases {
        assert_eq!(message.to_bytes().unwrap(), *bytes);
        all.extend_from_slice(bytes);
    }
    let want: Vec<_> = cases.into_iter().map(|(m, _)| m).collect();
    for piece in 1..all.len() {
        assert_eq!(read(&all, piece), (want.clone(), Ok(())));
    }
}

#[test]
fn a_message_too_long_for_qemu_is_refused_at_its_header() {
    let error = ReturnPathError::TooLong { kind: 9, len: MAX_DATA_BYTES + 1 };
    for piece in [1, 4] {
        assert_eq!(read(b"\0\x09\x02\x01", piece), (vec![], Err(error)));
    }
    let long = Message::Unknown { kind: 9, data: vec![0; MAX_DATA_BYTES + 1] };
    assert_eq!(long.to_bytes(), Err(error));
}

#[test]
fn nothing_is_read_behind_a_bitmap_message() {
    let mut bytes = Message::RecvBitmap { block: b"pc.ram".to_vec() }.to_bytes().unwrap();
    let mut reader = Reader::new();
    let mut seen = 0;
    reader.push(&bytes, |_| seen += 1).unwrap();
    assert_eq!(seen, 1);
    assert_eq!(reader.push(&[0], |_| seen += 1), Err(ReturnPathError::AfterBitmap));
    bytes.push(0);
    assert_eq!(read(&bytes, 3).1, Err(ReturnPathError::AfterBitmap));
}

proptest! {
    /// Whatever is read can be written again byte for byte: a relay may take messages apart.
    #[test]
    fn what_is_read_is_written_again(bytes in prop::collection::vec(0u8..8, 0..200), piece in 1usize..20) {
        let (messages, result) = read(&bytes, piece);
        prop_assert_eq!(&messages, &read(&bytes, bytes.len().max(1)).0);
        let mut again = Vec::new();
        for message in &messages {
            message.write(&mut again).unwrap();
        }
        prop_assert!(bytes.starts_with(&again));
        if result.is_ok() {
            prop_assert!(bytes.len() - again.len() < MAX_DATA_BYTES + 4);
        }
    }
}
