//! A lane's first bytes: they prove that the lane belongs to the link, and are good once.
//!
//! ```text
//! initiator: greeting (12) | link id (16) | frame LaneHello, body = the same 28 bytes, sealed
//! responder: frame LaneAccepted, empty body, sealed under the other direction's key
//! ```
//! The keys contain the lane's number and epoch; the responder takes each epoch of a lane once, and only rising ones.

use crate::names::{Epoch, LaneId};
use crate::seal::{Direction, LinkSecret, Opener, Sealer};
use crate::wire::frame::{FrameType, HEADER_BYTES, Header, TAG_BYTES};
use crate::wire::greeting::{GREETING_BYTES, Greeting, Kind};

pub const LINK_ID_BYTES: usize = 16;
const BODY_BYTES: usize = GREETING_BYTES + LINK_ID_BYTES;
/// What follows the greeting.
pub const REST_BYTES: usize = LINK_ID_BYTES + HEADER_BYTES + BODY_BYTES + TAG_BYTES;
pub const ACCEPTED_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// The hello of a lane, and the sealer for what follows it.
pub fn hello(secret: &LinkSecret, link: &[u8; 16], lane: LaneId, epoch: Epoch) -> (Vec<u8>, Sealer) {
    let mut bytes = Greeting::ours(Kind::Lane).encode().to_vec();
    bytes.extend_from_slice(link);
    let mut sealer = secret.sealer(link, lane, epoch, Direction::FromInitiator);
    let mut frame = Vec::new();
    let length =
        sealer.seal(&header(FrameType::LaneHello, lane, epoch, BODY_BYTES as u32), &bytes, &mut frame);
    bytes.extend_from_slice(&frame[..length]);
    (bytes, sealer)
}

/// The link that a hello names. Nothing is proved yet.
pub fn claimed_link(rest: &[u8; REST_BYTES]) -> [u8; LINK_ID_BYTES] {
    let mut link = [0; LINK_ID_BYTES];
    link.copy_from_slice(&rest[..LINK_ID_BYTES]);
    link
}

/// Opens a hello under the keys of the link that it names. `None`: it was not made by who has them.
pub fn open(
    secret: &LinkSecret,
    greeting: &[u8; GREETING_BYTES],
    rest: &[u8; REST_BYTES],
) -> Option<(LaneId, Epoch, Opener)> {
    let (link, frame) = rest.split_first_chunk::<LINK_ID_BYTES>()?;
    let (head, body) = frame.split_first_chunk::<HEADER_BYTES>()?;
    let header = Header::decode(head, BODY_BYTES as u32).ok()?;
    if header.kind != FrameType::LaneHello || header.body_bytes as usize != BODY_BYTES {
        return None;
    }
    let mut opener = secret.opener(link, header.lane, header.epoch, Direction::FromInitiator);
    let mut body = body.to_vec();
    opener.open(head, &mut body).ok()?;
    (body[..GREETING_BYTES] == greeting[..] && body[GREETING_BYTES..] == link[..]).then_some((
        header.lane,
        header.epoch,
        opener,
    ))
}

pub fn accepted(secret: &LinkSecret, link: &[u8; 16], lane: LaneId, epoch: Epoch) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut sealer = secret.sealer(link, lane, epoch, Direction::FromResponder);
    sealer.seal(&header(FrameType::LaneAccepted, lane, epoch, 0), &[], &mut frame);
    frame
}

pub fn is_accepted(
    secret: &LinkSecret,
    link: &[u8; 16],
    lane: LaneId,
    epoch: Epoch,
    answer: &[u8; ACCEPTED_BYTES],
) -> bool {
    let mut opener = secret.opener(link, lane, epoch, Direction::FromResponder);
    let expected = header(FrameType::LaneAccepted, lane, epoch, 0).encode();
    answer.starts_with(&expected) && opener.open(&expected, &mut answer[HEADER_BYTES..].to_vec()).is_ok()
}

fn header(kind: FrameType, lane: LaneId, epoch: Epoch, body_bytes: u32) -> Header {
    Header { kind, lane, epoch, session: 0, body_bytes, seq: 0, after: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Suite;

    const LINK: [u8; 16] = [9; 16];

    fn secret_of(byte: u8) -> LinkSecret {
        LinkSecret::new([byte; 32], Suite::ChaCha20Poly1305)
    }

    fn split(bytes: &[u8]) -> ([u8; GREETING_BYTES], [u8; REST_BYTES]) {
        (bytes[..GREETING_BYTES].try_into().unwrap(), bytes[GREETING_BYTES..].try_into().unwrap())
    }

    #[test]
    fn a_hello_opens_with_the_links_secret_only() {
        let secret = secret_of(1);
        let (bytes, _) = hello(&secret, &LINK, LaneId(2), Epoch(3));
        let (greeting, rest) = split(&bytes);
        assert_eq!(claimed_link(&rest), LINK);
        let (lane, epoch, _) = open(&secret, &greeting, &rest).unwrap();
        assert_eq!((lane, epoch), (LaneId(2), Epoch(3)));
        assert!(open(&secret_of(2), &greeting, &rest).is_none());
    }

    #[test]
    fn every_changed_bit_of_a_hello_is_seen() {
        let secret = secret_of(1);
        let (bytes, _) = hello(&secret, &LINK, LaneId(2), Epoch(3));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let (greeting, rest) = split(&changed);
            assert!(open(&secret, &greeting, &rest).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn only_the_answer_to_this_hello_counts() {
        let secret = secret_of(1);
        let answer: [u8; ACCEPTED_BYTES] = accepted(&secret, &LINK, LaneId(2), Epoch(3)).try_into().unwrap();
        assert!(is_accepted(&secret, &LINK, LaneId(2), Epoch(3), &answer));
        assert!(!is_accepted(&secret, &LINK, LaneId(2), Epoch(4), &answer));
        let (reflected, _) = hello(&secret, &LINK, LaneId(2), Epoch(3));
        assert!(!is_accepted(
            &secret,
            &LINK,
            LaneId(2),
            Epoch(3),
            reflected[..ACCEPTED_BYTES].try_into().unwrap()
        ));
    }
}
