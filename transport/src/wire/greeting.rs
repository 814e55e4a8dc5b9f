//! The first bytes of every connection, in the clear, and the plain answer to them.
//!
//! ```text
//! 0  4  "HKYK"
//! 4  2  newest protocol version the sender of these bytes speaks
//! 6  2  oldest
//! 8  1  kind: 1 control, 2 lane, 3 go on, 4 refused
//! 9  1  control: set of cipher suites (1 ChaCha20-Poly1305, 2 AES-256-GCM); refused: reason; else 0
//! 10 2  0
//! ```
//! The initiator's greeting is the prologue of the Noise handshake: who changes it in transit breaks the handshake, so
//! neither version nor suite can be talked down. A refusal is not authenticated: it explains a failure, no more.

use super::u16_at;
use crate::error::Versions;
use crate::suite::SuiteSet;

pub const GREETING_BYTES: usize = 12;
pub const MAGIC: [u8; 4] = *b"HKYK";
/// The protocol versions this code speaks.
pub const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub versions: Versions,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Noise's first message follows.
    Control { suites: SuiteSet },
    /// A sealed lane hello follows.
    Lane,
    /// The answer to [`Kind::Control`]: Noise's second message follows.
    GoOn,
    /// The answer to either: nothing follows.
    Refused(Refusal),
    /// From a peer with which we share no version: nothing but its versions is understood.
    Foreign,
}

/// Why a connection was refused before anybody proved anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Version,
    Suite,
    /// The first handshake message was not made for the key of the node that answers.
    Handshake,
    /// Anything a newer peer may say.
    Other(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    #[error("these are not the first bytes of a hikyaku connection")]
    Magic,
    #[error("versions {newest} to {oldest} are no span")]
    Versions { oldest: u16, newest: u16 },
    #[error("connection kind {0} is unknown")]
    Kind(u8),
    #[error("reserved bytes are not 0")]
    Reserved,
}

impl Greeting {
    /// One of this code's own versions.
    pub fn ours(kind: Kind) -> Self {
        Self { versions: VERSIONS, kind }
    }

    pub fn encode(&self) -> [u8; GREETING_BYTES] {
        let (kind, detail) = match self.kind {
            Kind::Control { suites } => (1, suites.bits()),
            Kind::Lane => (2, 0),
            Kind::GoOn => (3, 0),
            Kind::Refused(Refusal::Version) => (4, 1),
            Kind::Refused(Refusal::Suite) => (4, 2),
            Kind::Refused(Refusal::Handshake) => (4, 3),
            Kind::Refused(Refusal::Other(reason)) => (4, reason),
            Kind::Foreign => (0, 0),
        };
        let mut out = [0; GREETING_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.versions.newest.to_le_bytes());
        out[6..8].copy_from_slice(&self.versions.oldest.to_le_bytes());
        out[8] = kind;
        out[9] = detail;
        out
    }

    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, GreetingError> {
        if bytes[..4] != MAGIC {
            return Err(GreetingError::Magic);
        }
        let versions = Versions { newest: u16_at(bytes, 4), oldest: u16_at(bytes, 6) };
        if versions.oldest > versions.newest {
            return Err(GreetingError::Versions { oldest: versions.oldest, newest: versions.newest });
        }
        // What follows the versions may be laid out differently by a version we do not speak.
        if choose(versions).is_none() {
            return Ok(Self { versions, kind: Kind::Foreign });
        }
        if bytes[10..12] != [0, 0] {
            return Err(GreetingError::Reserved);
        }
        let kind = match (bytes[8], bytes[9]) {
            (1, bits) => Kind::Control { suites: SuiteSet::from_bits(bits) },
            (2, 0) => Kind::Lane,
            (3, 0) => Kind::GoOn,
            (4, 1) => Kind::Refused(Refusal::Version),
            (4, 2) => Kind::Refused(Refusal::Suite),
            (4, 3) => Kind::Refused(Refusal::Handshake),
            (4, reason) => Kind::Refused(Refusal::Other(reason)),
            (2 | 3, _) => return Err(GreetingError::Reserved),
            (kind, _) => return Err(GreetingError::Kind(kind)),
        };
        Ok(Self { versions, kind })
    }
}

/// The newest version that both speak.
pub fn choose(theirs: Versions) -> Option<u16> {
    let newest = theirs.newest.min(VERSIONS.newest);
    (newest >= theirs.oldest && newest >= VERSIONS.oldest).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_have_their_documented_bytes() {
        let control = Greeting::ours(Kind::Control { suites: SuiteSet::from_bits(3) });
        assert_eq!(control.encode(), *b"HKYK\x01\x00\x01\x00\x01\x03\x00\x00");
        let lane = Greeting::ours(Kind::Lane);
        assert_eq!(lane.encode(), *b"HKYK\x01\x00\x01\x00\x02\x00\x00\x00");
        let refused = Greeting::ours(Kind::Refused(Refusal::Version));
        assert_eq!(refused.encode(), *b"HKYK\x01\x00\x01\x00\x04\x01\x00\x00");
        for greeting in [control, lane, refused, Greeting::ours(Kind::GoOn)] {
            assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        }
    }

    #[test]
    fn a_peer_of_another_version_is_understood_as_far_as_its_versions() {
        let greeting = Greeting::decode(b"HKYK\x09\x00\x07\x00\xee\xee\xee\xee").unwrap();
        assert_eq!(greeting.versions, Versions { oldest: 7, newest: 9 });
        assert_eq!(choose(greeting.versions), None);
        assert_eq!(choose(Versions { oldest: 1, newest: 9 }), Some(1));
    }

    #[test]
    fn other_protocols_are_told_apart() {
        assert_eq!(Greeting::decode(b"GET / HTTP/1"), Err(GreetingError::Magic));
        assert_eq!(Greeting::decode(b"HKYK\x01\x00\x01\x00\x09\x00\x00\x00"), Err(GreetingError::Kind(9)));
        assert_eq!(
            Greeting::decode(b"HKYK\x01\x00\x02\x00\x01\x00\x00\x00").unwrap_err(),
            GreetingError::Versions { oldest: 2, newest: 1 }
        );
    }
}
