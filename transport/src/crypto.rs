//! What the Noise handshake computes with. `snow` has the state machine alone: its own X25519 and ChaCha20-Poly1305 leave
//! their keys in freed memory.
//!
//! Wiped on drop: the static key's copies, the ephemeral key, the two keys of the records. Not wiped: `snow`'s chaining
//! key and the state of its hash, which live as long as the handshake, and copies that a function left on its stack.

use blake2::{Blake2s256, Digest};
use curve25519_dalek::montgomery::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize, Zeroizing};

use crate::sys::Wiped;
use crate::wire::frame::TAG_BYTES;

pub const KEY_BYTES: usize = 32;

/// The primitives of the one pattern that is spoken.
pub struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::<X25519>::default()),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::Blake2s => Some(Box::<Blake2s>::default()),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::<ChaChaPoly>::default()),
            _ => None,
        }
    }
}

/// The public half of `secret`.
pub fn public_of(secret: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    MontgomeryPoint::mul_base_clamped(*secret).to_bytes()
}

#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; KEY_BYTES]>,
    public: [u8; KEY_BYTES],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    fn set(&mut self, secret: &[u8]) {
        // The only callers hand over keys of this length.
        if secret.len() == KEY_BYTES {
            self.secret.copy_from_slice(secret);
        }
        self.public = public_of(&self.secret);
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        random.try_fill_bytes(&mut self.secret[..])?;
        self.public = public_of(&self.secret);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.secret[..]
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let theirs = theirs.first_chunk::<KEY_BYTES>().ok_or(Error::Dh)?;
        let mut shared = MontgomeryPoint(*theirs).mul_clamped(*self.secret);
        // A point of low order, which no honest peer has: the secret would be known to everybody.
        let known_to_all = shared.0 == [0; KEY_BYTES];
        out.get_mut(..KEY_BYTES).ok_or(Error::Dh)?.copy_from_slice(&shared.0);
        shared.0.zeroize();
        if known_to_all { Err(Error::Dh) } else { Ok(()) }
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        getrandom::fill(bytes).map_err(|_| Error::Rng)
    }
}

#[derive(Default)]
struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

#[derive(Default)]
struct ChaChaPoly(Option<Wiped<LessSafeKey>>);

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(|key| Wiped::new(LessSafeKey::new(key)));
    }

    #[expect(clippy::expect_used, reason = "the trait has no error; records are shorter than 64 KiB")]
    fn encrypt(&self, number: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let key = self.0.as_ref().expect("the handshake sets a key before it seals");
        let (sealed, tag) = out.split_at_mut(plaintext.len());
        sealed.copy_from_slice(plaintext);
        let computed =
            key.seal_in_place_separate_tag(nonce(number), Aad::from(authtext), sealed).expect("short enough");
        tag[..TAG_BYTES].copy_from_slice(computed.as_ref());
        plaintext.len() + TAG_BYTES
    }

    fn decrypt(
        &self,
        number: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let (sealed, tag) = ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..sealed.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(sealed);
        key.open_in_place_separate_tag(nonce(number), Aad::from(authtext), (*tag).into(), out, 0..)
            .map_err(|_| Error::Decrypt)?;
        Ok(sealed.len())
    }
}

/// As Noise has it for this cipher.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    /// RFC 7748, 6.1.
    #[test]
    fn x25519_is_that_of_the_rfc() {
        let mut alice = X25519::default();
        alice.set(&bytes::<32>("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        assert_eq!(alice.public, bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        let bob = bytes::<32>("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let mut shared = [0; 32];
        alice.dh(&bob, &mut shared).unwrap();
        assert_eq!(shared, bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
    }

    #[test]
    fn a_public_key_that_makes_the_secret_known_is_refused() {
        let mut ours = X25519::default();
        ours.set(&[9; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        for low_order in [[0; 32], one] {
            assert!(matches!(ours.dh(&low_order, &mut [0; 32]), Err(Error::Dh)));
        }
    }

    #[test]
    fn what_is_sealed_opens_once_and_unchanged() {
        let mut cipher = ChaChaPoly::default();
        cipher.set(&[3; 32]);
        let mut sealed = [0; 5 + TAG_BYTES];
        assert_eq!(cipher.encrypt(7, b"head", b"hello", &mut sealed), 21);
        let mut plain = [0; 5];
        assert_eq!(cipher.decrypt(7, b"head", &sealed, &mut plain).unwrap(), 5);
        assert_eq!(&plain, b"hello");
        assert!(cipher.decrypt(8, b"head", &sealed, &mut plain).is_err());
        assert!(cipher.decrypt(7, b"heed", &sealed, &mut plain).is_err());
        for bytes in 0..sealed.len() {
            assert!(cipher.decrypt(7, b"head", &sealed[..bytes], &mut plain).is_err(), "{bytes} bytes");
        }
        assert!(cipher.decrypt(7, b"head", &sealed, &mut plain[..4]).is_err());
    }
}
