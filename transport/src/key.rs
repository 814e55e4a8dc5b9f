//! A node's identity: an X25519 key pair.
//!
//! Texts: a public key is 64 hexadecimal digits. A secret key is `HIKYAKU-SECRET-KEY-` and 64 digits, so that one can
//! never be taken for the other. Reading and writing files, and their modes, is the daemon's business.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::crypto::{KEY_BYTES, public_of};

const SECRET_PREFIX: &str = "HIKYAKU-SECRET-KEY-";

/// A key pair. The secret half is wiped from memory on drop and is never printed by `Debug`.
#[derive(Clone)]
pub struct StaticKey {
    secret: Zeroizing<[u8; KEY_BYTES]>,
    public: PublicKey,
}

/// The half that peers know a node by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the system gave no random numbers: {0}")]
    NoRandomness(String),
    #[error("a secret key begins with {SECRET_PREFIX}")]
    NotSecret,
    #[error("this is a secret key where a public key belongs; do not publish it")]
    SecretForPublic,
    #[error("a key has 64 hexadecimal digits, this one has {0} characters")]
    Length(usize),
    #[error("character {0} of the key is not a hexadecimal digit")]
    Digit(usize),
}

impl StaticKey {
    pub fn generate() -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *secret).map_err(|e| KeyError::NoRandomness(e.to_string()))?;
        Self::from_secret(secret)
    }

    /// Reads what [`StaticKey::to_text`] made; white space around it is ignored.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().strip_prefix(SECRET_PREFIX).ok_or(KeyError::NotSecret)?;
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        from_hex(digits, &mut secret)?;
        Self::from_secret(secret)
    }

    /// The text to keep in a file that only its owner can read.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + 2 * KEY_BYTES));
        text.push_str(SECRET_PREFIX);
        push_hex(&self.secret[..], &mut text);
        text
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn secret(&self) -> &[u8; KEY_BYTES] {
        &self.secret
    }

    fn from_secret(secret: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, KeyError> {
        let public = PublicKey(public_of(&secret));
        Ok(Self { secret, public })
    }
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticKey(public {})", self.public)
    }
}

impl PublicKey {
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A short form for people to compare: four groups of four digits of the key's BLAKE3 hash.
    pub fn fingerprint(&self) -> String {
        let hash = blake3::hash(&self.0);
        let mut text = String::new();
        for (i, pair) in hash.as_bytes()[..8].chunks(2).enumerate() {
            if i > 0 {
                text.push('-');
            }
            push_hex(pair, &mut text);
        }
        text
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.starts_with(SECRET_PREFIX) {
            return Err(KeyError::SecretForPublic);
        }
        let mut key = [0; KEY_BYTES];
        from_hex(text, &mut key)?;
        Ok(Self(key))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

fn push_hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for b in bytes {
        text.push(DIGITS[usize::from(b >> 4)].into());
        text.push(DIGITS[usize::from(b & 15)].into());
    }
}

fn from_hex(text: &str, out: &mut [u8; KEY_BYTES]) -> Result<(), KeyError> {
    if text.len() != 2 * KEY_BYTES {
        return Err(KeyError::Length(text.chars().count()));
    }
    for (i, digit) in text.bytes().enumerate() {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return Err(KeyError::Digit(i + 1)),
        };
        out[i / 2] = out[i / 2] << 4 | value;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text() {
        let key = StaticKey::generate().unwrap();
        let again = StaticKey::from_text(&format!(" {}\n", *key.to_text())).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(key.secret(), again.secret());
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
    }

    #[test]
    fn the_public_half_is_x25519_of_the_secret() {
        let secret: String = (0..32).map(|b| format!("{b:02x}")).collect();
        let key = StaticKey::from_text(&format!("{SECRET_PREFIX}{secret}")).unwrap();
        // Computed apart from this crate, after RFC 7748.
        assert_eq!(
            key.public().to_string(),
            "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
        );
    }

    #[test]
    fn a_secret_is_neither_printed_nor_taken_for_a_public_key() {
        let key = StaticKey::generate().unwrap();
        let digits = key.to_text()[SECRET_PREFIX.len()..].to_owned();
        assert!(!format!("{key:?}").contains(&digits));
        assert_eq!(key.to_text().parse::<PublicKey>(), Err(KeyError::SecretForPublic));
        assert!(matches!(StaticKey::from_text(&digits), Err(KeyError::NotSecret)));
    }

    #[test]
    fn a_bad_text_is_an_error_that_says_where() {
        assert_eq!("ab".parse::<PublicKey>(), Err(KeyError::Length(2)));
        let mut digits = "0".repeat(64);
        digits.replace_range(9..10, "x");
        assert_eq!(digits.parse::<PublicKey>(), Err(KeyError::Digit(10)));
    }
}
