//! Sealing and opening frames: ChaCha20-Poly1305 under a key of one lane, direction and epoch.
//!
//! The nonce is the number of frames before this one under the same key; it is not sent, since TCP keeps the order. A
//! key lives as long as one connection, so a nonce is never used twice. After a failure to open, the key is dead.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use zeroize::Zeroizing;

use crate::names::{Epoch, LaneId};
use crate::wire::frame::{HEADER_BYTES, Header, TAG_BYTES};

/// The secret of a link, from which every lane's keys come.
pub struct LinkSecret(Zeroizing<[u8; 32]>);

/// Who seals with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    FromInitiator = 0,
    FromResponder = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame failed authentication")]
pub struct Forged;

impl LinkSecret {
    pub fn new(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    fn key(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> ChaCha20Poly1305 {
        let mut material = Zeroizing::new(Vec::with_capacity(64));
        material.extend_from_slice(&self.0[..]);
        material.extend_from_slice(link);
        material.extend_from_slice(&lane.0.to_le_bytes());
        material.extend_from_slice(&epoch.0.to_le_bytes());
        material.push(direction as u8);
        let key = Zeroizing::new(blake3::derive_key("hikyaku v1 lane key", &material));
        ChaCha20Poly1305::new((&*key).into())
    }

    pub fn sealer(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> Sealer {
        Sealer { cipher: self.key(link, lane, epoch, direction), frames: 0 }
    }

    pub fn opener(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> Opener {
        Opener { cipher: self.key(link, lane, epoch, direction), frames: 0 }
    }
}

/// Seals the frames of one lane in one direction.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    frames: u64,
}

/// Opens them.
pub struct Opener {
    cipher: ChaCha20Poly1305,
    frames: u64,
}

impl Sealer {
    /// Writes the frame (header, ciphertext of `body`, tag) to the start of `out`, which grows where it must and is never
    /// shortened, and returns the frame's length. `header.body_bytes` must be the body's length.
    pub fn seal(&mut self, header: &Header, body: &[u8], out: &mut Vec<u8>) -> usize {
        debug_assert_eq!(header.body_bytes as usize, body.len());
        let header = header.encode();
        let total = HEADER_BYTES + body.len() + TAG_BYTES;
        if out.len() < total {
            out.resize(total, 0);
        }
        let (head, rest) = out[..total].split_at_mut(HEADER_BYTES);
        let (sealed, tag) = rest.split_at_mut(body.len());
        head.copy_from_slice(&header);
        #[expect(
            clippy::expect_used,
            reason = "lengths are equal by construction; the cipher's limit is 256 GiB"
        )]
        let computed = {
            let buffer = InOutBuf::new(body, sealed).expect("equal lengths");
            self.cipher.encrypt_inout_detached(&nonce(self.frames), &header, buffer).expect("short enough")
        };
        tag.copy_from_slice(&computed);
        self.frames += 1;
        total
    }
}

impl Opener {
    /// Opens `sealed` (ciphertext and tag) in place and cuts the tag off.
    pub fn open(&mut self, header: &[u8; HEADER_BYTES], sealed: &mut Vec<u8>) -> Result<(), Forged> {
        let body_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(Forged)?;
        let (body, tag) = sealed.split_at_mut(body_bytes);
        let tag = Tag::try_from(&*tag).map_err(|_| Forged)?;
        self.cipher
            .decrypt_inout_detached(&nonce(self.frames), header, InOutBuf::from(body), &tag)
            .map_err(|_| Forged)?;
        self.frames += 1;
        sealed.truncate(body_bytes);
        Ok(())
    }

    /// Frames opened so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }
}

fn nonce(frames: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&frames.to_le_bytes());
    nonce.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameType;

    const LINK: [u8; 16] = [5; 16];

    fn header(body_bytes: u32) -> Header {
        Header {
            kind: FrameType::Chunk,
            lane: LaneId(1),
            epoch: Epoch(2),
            session: 3,
            body_bytes,
            seq: 4,
            after: 0,
        }
    }

    fn pair() -> (Sealer, Opener) {
        let secret = LinkSecret::new([7; 32]);
        (
            secret.sealer(&LINK, LaneId(1), Epoch(2), Direction::FromInitiator),
            secret.opener(&LINK, LaneId(1), Epoch(2), Direction::FromInitiator),
        )
    }

    fn open(opener: &mut Opener, frame: &[u8]) -> Result<Vec<u8>, Forged> {
        let mut body = frame[HEADER_BYTES..].to_vec();
        opener.open(frame[..HEADER_BYTES].try_into().unwrap(), &mut body)?;
        Ok(body)
    }

    #[test]
    fn what_was_sealed_opens_in_order() {
        let (mut sealer, mut opener) = pair();
        let mut frame = Vec::new();
        for body in [&b"first"[..], b"", &[9; 70_000], b"last"] {
            let bytes = sealer.seal(&header(body.len() as u32), body, &mut frame);
            assert_eq!(bytes, HEADER_BYTES + body.len() + TAG_BYTES);
            assert_eq!(open(&mut opener, &frame[..bytes]).unwrap(), body);
        }
    }

    #[test]
    fn a_sealed_frame_has_its_documented_bytes() {
        let (mut sealer, _) = pair();
        let mut frame = Vec::new();
        sealer.seal(&header(3), b"abc", &mut frame);
        assert_eq!(frame[..HEADER_BYTES], header(3).encode());
        // Key, nonce and tag computed once and pinned: a change here is a change of the protocol.
        assert_eq!(hex(&frame[HEADER_BYTES..]), "110156cfaa05e470a3826af17be5c45e6c3cc0");
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let (mut sealer, _) = pair();
        let mut frame = Vec::new();
        sealer.seal(&header(5), b"hello", &mut frame);
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut pair().1, &changed), Err(Forged), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_opens_only_in_its_place_lane_epoch_and_direction() {
        let secret = LinkSecret::new([7; 32]);
        let (mut sealer, mut opener) = pair();
        let mut frame = Vec::new();
        sealer.seal(&header(1), b"a", &mut frame);
        for (lane, epoch, direction) in [
            (LaneId(0), Epoch(2), Direction::FromInitiator),
            (LaneId(1), Epoch(1), Direction::FromInitiator),
            (LaneId(1), Epoch(2), Direction::FromResponder),
        ] {
            assert_eq!(open(&mut secret.opener(&LINK, lane, epoch, direction), &frame), Err(Forged));
        }
        open(&mut opener, &frame).unwrap();
        assert_eq!(open(&mut opener, &frame), Err(Forged), "the same frame again");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}
