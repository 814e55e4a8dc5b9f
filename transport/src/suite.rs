//! Cipher suites of the lanes: which there are, which this node offers, which of them two nodes take.
//!
//! ```text
//! initiator's greeting: the set it offers        the prologue of the handshake: changed in transit, nothing opens
//! responder's verdict:  the one that is taken    sealed by the handshake
//! ```
//! A node offers AES-256-GCM only where the CPU has instructions for it and it was measured to be the faster of the two,
//! so a link takes it where both ends gain. The handshake itself and the control connection always use ChaCha20-Poly1305.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::names::{Epoch, LaneId};
use crate::seal::{Direction, LinkSecret};
use crate::wire::frame::{FrameType, Header};

/// How a link's lanes are sealed. The number is the suite's on the wire: its bit in a set, and its name in a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// As fast on every CPU, so every node has it.
    ChaCha20Poly1305 = 1,
    /// Several times faster where the CPU has instructions for AES and carry-less multiplication.
    Aes256Gcm = 2,
}

/// Best first.
const PREFERENCE: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

impl Suite {
    /// `None`: a suite that this code does not know.
    pub fn from_id(id: u8) -> Option<Self> {
        PREFERENCE.into_iter().find(|suite| suite.id() == id)
    }

    pub fn id(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Suite::Aes256Gcm => "AES-256-GCM",
        })
    }
}

/// The suites that a node offers, as on the wire. Bits that this code does not know are kept, and never chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuiteSet(u8);

impl SuiteSet {
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn contains(self, suite: Suite) -> bool {
        self.0 & suite.id() != 0
    }

    /// What two nodes take that offer these sets; the same from either side.
    pub fn choose(self, other: SuiteSet) -> Option<Suite> {
        PREFERENCE.into_iter().find(|suite| self.contains(*suite) && other.contains(*suite))
    }
}

impl FromIterator<Suite> for SuiteSet {
    fn from_iter<I: IntoIterator<Item = Suite>>(suites: I) -> Self {
        Self(suites.into_iter().fold(0, |bits, suite| bits | suite.id()))
    }
}

impl fmt::Display for SuiteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = PREFERENCE.into_iter().filter(|suite| self.contains(*suite));
        f.write_str(&known.map(|suite| suite.to_string()).collect::<Vec<_>>().join(", "))
    }
}

/// What this machine does best: [`Suite::ChaCha20Poly1305`], and [`Suite::Aes256Gcm`] if it is faster here. Measured
/// once per process, by the thread that asks first, within some milliseconds.
pub fn best_here() -> SuiteSet {
    static MEASURED: OnceLock<SuiteSet> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let chacha = [Suite::ChaCha20Poly1305];
        if !cpu_has_aes() {
            tracing::info!("no AES instructions here: ChaCha20-Poly1305 alone is offered");
            return chacha.into_iter().collect();
        }
        let [aes_ns, chacha_ns] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].map(|s| time(s).as_nanos());
        tracing::info!(aes_ns, chacha_ns, sample_bytes = SAMPLE_BYTES, "cipher suites measured");
        let aes = (aes_ns < chacha_ns).then_some(Suite::Aes256Gcm);
        chacha.into_iter().chain(aes).collect()
    })
}

/// A usual chunk.
const SAMPLE_BYTES: usize = 64 * 1024;
/// The best of them counts: interruptions only make a sample slower.
const SAMPLES: usize = 8;

fn time(suite: Suite) -> Duration {
    let (lane, epoch) = (LaneId(0), Epoch(1));
    let secret = LinkSecret::new([0; 32], suite);
    let mut sealer = secret.sealer(&[0; 16], lane, epoch, Direction::FromInitiator);
    let (body, mut frame) = (vec![0; SAMPLE_BYTES], Vec::new());
    let body_bytes = SAMPLE_BYTES as u32;
    let header = Header { kind: FrameType::Chunk, lane, epoch, session: 0, body_bytes, seq: 0, after: 0 };
    let mut sample = || {
        let began = Instant::now();
        sealer.seal(&header, &body, &mut frame);
        began.elapsed()
    };
    // The first one faults the buffer in.
    sample();
    (0..SAMPLES).map(|_| sample()).min().unwrap_or(Duration::MAX)
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(suites: &[Suite]) -> SuiteSet {
        suites.iter().copied().collect()
    }

    #[test]
    fn aes_is_taken_only_where_both_offer_it() {
        let (chacha, aes) = (set(&[Suite::ChaCha20Poly1305]), set(&[Suite::Aes256Gcm]));
        let both = set(&PREFERENCE);
        for (ours, theirs, expected) in [
            (both, both, Some(Suite::Aes256Gcm)),
            (both, chacha, Some(Suite::ChaCha20Poly1305)),
            (both, aes, Some(Suite::Aes256Gcm)),
            (chacha, chacha, Some(Suite::ChaCha20Poly1305)),
            (chacha, aes, None),
            (both, SuiteSet::from_bits(0), None),
            (both, SuiteSet::from_bits(0xfc), None),
            (both, SuiteSet::from_bits(0xfd), Some(Suite::ChaCha20Poly1305)),
        ] {
            assert_eq!(ours.choose(theirs), expected, "{ours:?} {theirs:?}");
            assert_eq!(theirs.choose(ours), expected, "{theirs:?} {ours:?}");
        }
    }

    #[test]
    fn suites_have_their_documented_ids() {
        assert_eq!(PREFERENCE.map(Suite::id), [2, 1]);
        assert_eq!(Suite::from_id(1), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suite::from_id(2), Some(Suite::Aes256Gcm));
        for unknown in [0, 3, 4, 255] {
            assert_eq!(Suite::from_id(unknown), None);
        }
        assert_eq!(set(&PREFERENCE).to_string(), "AES-256-GCM, ChaCha20-Poly1305");
    }

    #[test]
    fn every_machine_offers_chacha_and_aes_only_with_its_instructions() {
        let began = Instant::now();
        let here = best_here();
        assert!(began.elapsed() < Duration::from_secs(1), "measuring took {:?}", began.elapsed());
        assert!(here.contains(Suite::ChaCha20Poly1305));
        assert!(cpu_has_aes() || !here.contains(Suite::Aes256Gcm));
        assert_eq!(best_here(), here);
    }
}
