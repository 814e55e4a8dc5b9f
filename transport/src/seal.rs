//! Sealing and opening frames, under a key of one lane, direction and epoch.
//!
//! The nonce is the number of frames before this one under the same key; it is not sent, since TCP keeps the order. A
//! key lives as long as one connection at most, so a nonce is never used twice. After a failure to open, the key is dead.
//!
//! After [`FRAMES_PER_KEY`] frames both sides go on with the next key, which is derived from the one before.

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use crate::names::{Epoch, LaneId};
use crate::suite::Suite;
use crate::sys::Wiped;
use crate::wire::frame::{HEADER_BYTES, Header, TAG_BYTES};

/// Frames that one key seals. With frames of 288 KiB that is 2^34 AES blocks, at which an attacker's advantage over an
/// ideal cipher is below 2^-60 (the bound of TLS 1.3), and far from the 2^32 frames at which GCM ends.
pub const FRAMES_PER_KEY: u32 = 1 << 20;

/// The secret of a link, from which every lane's keys come, and what they are keys of.
pub struct LinkSecret {
    secret: Zeroizing<[u8; 32]>,
    suite: Suite,
}

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
    pub fn new(secret: [u8; 32], suite: Suite) -> Self {
        Self { secret: Zeroizing::new(secret), suite }
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    fn key(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> Key {
        let mut material = Zeroizing::new(Vec::with_capacity(64));
        material.extend_from_slice(&self.secret[..]);
        material.extend_from_slice(link);
        material.extend_from_slice(&lane.0.to_le_bytes());
        material.extend_from_slice(&epoch.0.to_le_bytes());
        material.push(direction as u8);
        Key::new(self.suite, Zeroizing::new(blake3::derive_key("hikyaku v1 lane key", &material)))
    }

    pub fn sealer(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> Sealer {
        Sealer { key: self.key(link, lane, epoch, direction) }
    }

    pub fn opener(&self, link: &[u8; 16], lane: LaneId, epoch: Epoch, direction: Direction) -> Opener {
        Opener { key: self.key(link, lane, epoch, direction), frames: 0 }
    }
}

/// Seals the frames of one lane in one direction.
pub struct Sealer {
    key: Key,
}

/// Opens them.
pub struct Opener {
    key: Key,
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
        let nonce = self.key.next_nonce();
        tag.copy_from_slice(&self.key.cipher.seal(nonce, &header, body, sealed));
        total
    }
}

impl Opener {
    /// Opens `sealed` (ciphertext and tag) in place and cuts the tag off.
    pub fn open(&mut self, header: &[u8; HEADER_BYTES], sealed: &mut Vec<u8>) -> Result<(), Forged> {
        let nonce = self.key.next_nonce();
        let body_bytes = self.key.cipher.open(nonce, header, sealed)?;
        self.frames += 1;
        sealed.truncate(body_bytes);
        Ok(())
    }

    /// Frames opened so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }
}

/// A key and the number of frames under it; wiped when it is dropped or replaced.
struct Key {
    suite: Suite,
    secret: Zeroizing<[u8; 32]>,
    cipher: Cipher,
    frames: u32,
}

impl Key {
    fn new(suite: Suite, secret: Zeroizing<[u8; 32]>) -> Self {
        let cipher = Cipher::new(suite, &secret);
        Self { suite, secret, cipher, frames: 0 }
    }

    /// Never gives the same nonce twice for the same key.
    fn next_nonce(&mut self) -> [u8; 12] {
        if self.frames == FRAMES_PER_KEY {
            let next = blake3::derive_key("hikyaku v1 next lane key", &self.secret[..]);
            *self = Self::new(self.suite, Zeroizing::new(next));
        }
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&u64::from(self.frames).to_le_bytes());
        self.frames += 1;
        nonce
    }
}

/// Each suite by who does it best. `ring` does not wipe its keys by itself.
enum Cipher {
    /// Wipes its key: its feature `zeroize` is on.
    ChaCha(Box<ChaCha20Poly1305>),
    Aes(Wiped<LessSafeKey>),
}

impl Cipher {
    #[expect(clippy::expect_used, reason = "a key of 32 bytes has 32 bytes")]
    fn new(suite: Suite, secret: &[u8; 32]) -> Self {
        match suite {
            Suite::ChaCha20Poly1305 => Cipher::ChaCha(Box::new(ChaCha20Poly1305::new(secret.into()))),
            Suite::Aes256Gcm => {
                let key = UnboundKey::new(&AES_256_GCM, secret).expect("32 bytes");
                Cipher::Aes(Wiped::new(LessSafeKey::new(key)))
            }
        }
    }

    /// From `body` to `sealed`, which has its length. The tag.
    #[expect(
        clippy::expect_used,
        reason = "both ciphers take 64 GiB, and no body has 4; lengths are the caller's promise"
    )]
    fn seal(
        &self,
        nonce: [u8; 12],
        header: &[u8; HEADER_BYTES],
        body: &[u8],
        sealed: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        match self {
            Cipher::ChaCha(cipher) => {
                let buffer = InOutBuf::new(body, sealed).expect("equal lengths");
                cipher.encrypt_inout_detached(&nonce.into(), header, buffer).expect("short enough").into()
            }
            Cipher::Aes(cipher) => {
                // It works in place. The copy costs little: it brings the body into the cache, which has to be done anyway.
                sealed.copy_from_slice(body);
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
                let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(header), sealed);
                let mut bytes = [0; TAG_BYTES];
                bytes.copy_from_slice(tag.expect("short enough").as_ref());
                bytes
            }
        }
    }

    /// Opens ciphertext and tag in place; the length of the body.
    fn open(&self, nonce: [u8; 12], header: &[u8; HEADER_BYTES], sealed: &mut [u8]) -> Result<usize, Forged> {
        match self {
            Cipher::ChaCha(cipher) => {
                let (body, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(Forged)?;
                cipher
                    .decrypt_inout_detached(&nonce.into(), header, InOutBuf::from(&mut *body), &(*tag).into())
                    .map_err(|_| Forged)?;
                Ok(body.len())
            }
            Cipher::Aes(cipher) => {
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
                let body = cipher.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| Forged)?;
                Ok(body.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameType;
    use zeroize::ZeroizeOnDrop;

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

    fn secret(suite: Suite) -> LinkSecret {
        LinkSecret::new([7; 32], suite)
    }

    fn pair(suite: Suite) -> (Sealer, Opener) {
        let secret = secret(suite);
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

    fn what_was_sealed_opens_in_order(suite: Suite) {
        let (mut sealer, mut opener) = pair(suite);
        let mut frame = Vec::new();
        for body in [&b"first"[..], b"", &[9; 70_000], b"last"] {
            let bytes = sealer.seal(&header(body.len() as u32), body, &mut frame);
            assert_eq!(bytes, HEADER_BYTES + body.len() + TAG_BYTES);
            assert_eq!(open(&mut opener, &frame[..bytes]).unwrap(), body);
        }
        assert_eq!(opener.frames(), 4);
    }

    /// Computed once, by two implementations, and pinned: a change here is a change of the protocol.
    #[test]
    fn a_sealed_frame_has_its_documented_bytes() {
        for (suite, golden) in [
            (Suite::ChaCha20Poly1305, "110156cfaa05e470a3826af17be5c45e6c3cc0"),
            (Suite::Aes256Gcm, "fa1216df5eebe9e40688e6592daa01414376d7"),
        ] {
            let (mut sealer, _) = pair(suite);
            let mut frame = Vec::new();
            sealer.seal(&header(3), b"abc", &mut frame);
            assert_eq!(frame[..HEADER_BYTES], header(3).encode());
            assert_eq!(hex(&frame[HEADER_BYTES..]), golden, "{suite}");
        }
    }

    fn every_changed_bit_is_seen(suite: Suite) {
        let (mut sealer, _) = pair(suite);
        let mut frame = Vec::new();
        sealer.seal(&header(5), b"hello", &mut frame);
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut pair(suite).1, &changed), Err(Forged), "bit {bit}");
        }
        for bytes in HEADER_BYTES..frame.len() {
            assert_eq!(open(&mut pair(suite).1, &frame[..bytes]), Err(Forged), "cut to {bytes}");
        }
    }

    fn a_frame_opens_only_in_its_place_lane_epoch_direction_and_suite(suite: Suite) {
        let (mut sealer, mut opener) = pair(suite);
        let mut frame = Vec::new();
        sealer.seal(&header(1), b"a", &mut frame);
        for (lane, epoch, direction) in [
            (LaneId(0), Epoch(2), Direction::FromInitiator),
            (LaneId(1), Epoch(1), Direction::FromInitiator),
            (LaneId(1), Epoch(2), Direction::FromResponder),
        ] {
            assert_eq!(open(&mut secret(suite).opener(&LINK, lane, epoch, direction), &frame), Err(Forged));
        }
        let other = match suite {
            Suite::ChaCha20Poly1305 => Suite::Aes256Gcm,
            Suite::Aes256Gcm => Suite::ChaCha20Poly1305,
        };
        assert_eq!(open(&mut pair(other).1, &frame), Err(Forged));
        open(&mut opener, &frame).unwrap();
        assert_eq!(open(&mut opener, &frame), Err(Forged), "the same frame again");
    }

    /// What a key's owner promises about its memory; without the crate's feature this does not compile.
    const _: fn(&ChaCha20Poly1305) -> &dyn ZeroizeOnDrop = |cipher| cipher;

    fn both_sides_change_the_key_long_before_it_is_worn(suite: Suite) {
        let (mut sealer, mut opener) = pair(suite);
        let mut frame = Vec::new();
        sealer.seal(&header(1), b"a", &mut frame);
        let first = frame.clone();
        open(&mut opener, &frame).unwrap();
        let key = opener.key.secret.clone();
        for _ in 1..FRAMES_PER_KEY {
            sealer.seal(&header(1), b"a", &mut frame);
            open(&mut opener, &frame).unwrap();
        }
        assert_eq!(opener.key.secret, key);
        // The nonce begins at 0 again, so it must be under another key: the same plaintext is another ciphertext.
        sealer.seal(&header(1), b"a", &mut frame);
        assert_ne!(frame, first);
        open(&mut opener, &frame).unwrap();
        assert_ne!(opener.key.secret, key);
        assert_eq!((opener.key.frames, opener.frames()), (1, u64::from(FRAMES_PER_KEY) + 1));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    macro_rules! with_each_suite {
        ($($behaviour:ident)*) => {
            mod chacha20_poly1305 {
                $(#[test] fn $behaviour() { super::$behaviour(super::Suite::ChaCha20Poly1305); })*
            }
            mod aes_256_gcm {
                $(#[test] fn $behaviour() { super::$behaviour(super::Suite::Aes256Gcm); })*
            }
        };
    }
    with_each_suite! {
        what_was_sealed_opens_in_order
        every_changed_bit_is_seen
        a_frame_opens_only_in_its_place_lane_epoch_direction_and_suite
        both_sides_change_the_key_long_before_it_is_worn
    }
}
