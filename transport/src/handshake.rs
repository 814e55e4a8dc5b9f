//! The handshake of a control connection without its connection: bytes in, bytes out.
//!
//! ```text
//! initiator                                            responder
//!   greeting, u16 length, Noise message 1 ───────────▶   knows the key? (else: refused, handshake)
//!   ◀─────────── go on, u16 length, Noise message 2       with a Verdict inside
//!   records ◀────────────────────────────────────────▶   u16 length, ciphertext
//! ```
//! `Noise_IK_25519_ChaChaPoly_BLAKE2s`; the prologue is the initiator's greeting. Message 1 may be a replay, so its
//! payload is empty and the responder keeps nothing but the handshake until the first record opens; a replay of one
//! that was seen lately ([`Replays`]) is not even answered.
//!
//! Everything here can be called with an attacker's bytes. Timeouts, and how long which bytes are waited for, are
//! `noise`'s business.

use std::io;
use std::sync::Arc;

use snow::{Builder, HandshakeState, StatelessTransportState};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::Resolver;
use crate::error::Versions;
use crate::key::{PublicKey, StaticKey};
use crate::replay::Replays;
use crate::suite::{Suite, SuiteSet};
use crate::wire::control::{ControlError, Message, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, Verdict};
use crate::wire::greeting::{GREETING_BYTES, Greeting, Kind, Refusal, VERSIONS, choose};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
/// Ephemeral key, sealed static key, tag of the empty payload.
pub const MESSAGE_1_BYTES: usize = 32 + 48 + 16;
/// Longest second message: ephemeral key, verdict with a text, tag.
pub const MESSAGE_2_BYTES_MAX: usize = 1024;
const VERDICT_TEXT_BYTES_MAX: usize = 512;
/// Longest first record of either side, a start or the answer to it: what is read on the word of somebody who may have
/// replayed another's handshake.
pub const FIRST_RECORD_BYTES_MAX: usize = 256;

/// Why a handshake did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it speaks {0}")]
    Version(Versions),
    #[error("{0}")]
    WrongKey(&'static str),
    /// The two sides' sets have no suite in common.
    #[error("no cipher suite in common")]
    NoSuite,
    /// The other side proved its key, and said no.
    #[error("{0}")]
    No(String),
    #[error("{0}")]
    Protocol(String),
}

impl From<snow::Error> for HandshakeError {
    fn from(error: snow::Error) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("a record of {bytes} bytes, the limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("a record failed authentication: bytes were changed on the way")]
    Forged,
    #[error("{0}")]
    Message(#[from] ControlError),
}

/// The keys that a handshake ended with.
#[derive(Clone)]
pub struct Keys {
    /// What both take for the lanes.
    pub suite: Suite,
    noise: Arc<StatelessTransportState>,
}

impl Keys {
    fn new(noise: HandshakeState, suite: Suite) -> Result<Self, HandshakeError> {
        Ok(Self { suite, noise: Arc::new(noise.into_stateless_transport_mode()?) })
    }
}

/// The connecting side, between its first flight and the answer.
pub struct Initiation {
    noise: HandshakeState,
    suites: SuiteSet,
}

impl Initiation {
    /// And what to send.
    pub fn new(
        ours: &StaticKey,
        theirs: &PublicKey,
        suites: SuiteSet,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let greeting = Greeting::ours(Kind::Control { suites }).encode();
        let mut noise = builder(ours, &greeting)?.remote_public_key(theirs.as_bytes())?.build_initiator()?;
        let mut message = [0; MESSAGE_1_BYTES];
        let bytes = noise.write_message(&[], &mut message)?;
        Ok((Self { noise, suites }, flight(&greeting, &message[..bytes])))
    }

    /// Whether a second message follows the answer's greeting.
    pub fn greeted(answer: &[u8; GREETING_BYTES]) -> Result<(), HandshakeError> {
        let answer = Greeting::decode(answer).map_err(|e| HandshakeError::Protocol(e.to_string()))?;
        match answer.kind {
            Kind::GoOn => Ok(()),
            Kind::Foreign | Kind::Refused(Refusal::Version) => Err(HandshakeError::Version(answer.versions)),
            Kind::Refused(Refusal::Handshake) => {
                Err(HandshakeError::WrongKey("it cannot read what is sealed for that key"))
            }
            Kind::Refused(Refusal::Suite) => Err(HandshakeError::NoSuite),
            Kind::Refused(Refusal::Other(reason)) => {
                Err(HandshakeError::Protocol(format!("it refused for a reason unknown here ({reason})")))
            }
            Kind::Control { .. } | Kind::Lane => {
                Err(HandshakeError::Protocol("it answered a greeting with a greeting".into()))
            }
        }
    }

    /// `Ok` only if the peer proved that it holds the key, and let us in.
    pub fn finish(mut self, second: &[u8]) -> Result<Keys, HandshakeError> {
        let mut payload = [0; MESSAGE_2_BYTES_MAX];
        let bytes = (self.noise.read_message(second, &mut payload))
            .map_err(|_| HandshakeError::WrongKey("its answer is not sealed with that key"))?;
        match Verdict::decode(&payload[..bytes]) {
            Ok(Verdict::Welcome { version, suite }) => {
                let known = choose(Versions { oldest: version, newest: version });
                let offered = Suite::from_id(suite).filter(|suite| self.suites.contains(*suite));
                let suite = known.and(offered).ok_or_else(|| {
                    HandshakeError::Protocol(format!("it chose version {version}, suite {suite}"))
                })?;
                Keys::new(self.noise, suite)
            }
            Ok(Verdict::No { text }) => Err(HandshakeError::No(text)),
            Err(error) => Err(HandshakeError::Protocol(error.to_string())),
        }
    }
}

/// What a node answers with.
pub struct Responder {
    key: StaticKey,
    suites: SuiteSet,
    replays: Replays,
}

/// An answer to a first flight that was sealed for this node.
pub struct Answer<T> {
    /// To be sent in any case.
    pub flight: Vec<u8>,
    /// `Ok` means that *somebody once* sealed message 1 with the key, and that it was not seen before: only the first
    /// record proves that the peer is there. `Err`: why the key may not open links; the flight says so.
    pub decision: Result<(Keys, T), String>,
}

impl Responder {
    pub fn new(key: StaticKey, suites: SuiteSet) -> Self {
        Self { key, suites, replays: Replays::default() }
    }

    /// The suite for who offers `theirs`.
    pub fn choose(&self, theirs: SuiteSet) -> Option<Suite> {
        self.suites.choose(theirs)
    }

    /// `who` says whether a key may open links. [`HandshakeError::WrongKey`]: not sealed for this node.
    pub fn answer<T>(
        &self,
        greeting: &[u8; GREETING_BYTES],
        suite: Suite,
        first: &[u8; MESSAGE_1_BYTES],
        who: impl FnOnce(PublicKey) -> Result<T, String>,
    ) -> Result<Answer<T>, HandshakeError> {
        let mut ephemeral = [0; 32];
        ephemeral.copy_from_slice(&first[..32]);
        if self.replays.was_seen(&ephemeral) {
            return Err(HandshakeError::Protocol("its first message is a replay".into()));
        }
        let mut noise = builder(&self.key, greeting)?.build_responder()?;
        noise
            .read_message(first, &mut [])
            .map_err(|_| HandshakeError::WrongKey("its first message is not sealed for this node's key"))?;
        let key = noise.get_remote_static().and_then(|key| <[u8; 32]>::try_from(key).ok());
        let key = key.ok_or_else(|| HandshakeError::Protocol("no static key".into()))?;
        let decision = who(PublicKey::from_bytes(key));
        if decision.is_ok() {
            self.replays.note(ephemeral);
        }
        let verdict = match &decision {
            Ok(_) => Verdict::Welcome { version: VERSIONS.newest, suite: suite.id() },
            Err(text) => Verdict::No { text: text.chars().take(VERDICT_TEXT_BYTES_MAX / 4).collect() },
        };
        let verdict = verdict.encode().map_err(|e| HandshakeError::Protocol(e.to_string()))?;
        let mut message = [0; MESSAGE_2_BYTES_MAX];
        let bytes = noise.write_message(&verdict, &mut message)?;
        let flight = flight(&Greeting::ours(Kind::GoOn).encode(), &message[..bytes]);
        let decision = match decision {
            Ok(who) => Ok((Keys::new(noise, suite)?, who)),
            Err(text) => Err(text),
        };
        Ok(Answer { flight, decision })
    }
}

/// Opens a connection's records, in order.
pub struct RecordOpener {
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    plain: Vec<u8>,
    /// Longest record that is read now.
    most_bytes: usize,
}

impl RecordOpener {
    pub fn new(keys: &Keys) -> Self {
        let noise = keys.noise.clone();
        Self { noise, nonce: 0, plain: Vec::new(), most_bytes: FIRST_RECORD_BYTES_MAX }
    }

    /// Checks a length before anything is allocated for it.
    pub fn announced(&self, bytes: u16) -> Result<usize, RecordError> {
        match usize::from(bytes) {
            bytes if bytes > self.most_bytes => Err(RecordError::TooLong { bytes, limit: self.most_bytes }),
            bytes => Ok(bytes),
        }
    }

    pub fn open(&mut self, sealed: &[u8]) -> Result<Message, RecordError> {
        self.plain.resize(sealed.len(), 0);
        let bytes = (self.noise.read_message(self.nonce, sealed, &mut self.plain))
            .map_err(|_| RecordError::Forged)?;
        self.nonce += 1;
        let message = Message::decode(&self.plain[..bytes]);
        if self.most_bytes == FIRST_RECORD_BYTES_MAX {
            // The peer is there and has the key. A start holds a secret.
            self.most_bytes = RECORD_BYTES_MAX;
            self.plain.zeroize();
        }
        Ok(message?)
    }
}

/// Seals them.
pub struct RecordSealer {
    noise: Arc<StatelessTransportState>,
    nonce: u64,
}

impl RecordSealer {
    pub fn new(keys: &Keys) -> Self {
        Self { noise: keys.noise.clone(), nonce: 0 }
    }

    /// Appends a message's record to `out`.
    pub fn seal(&mut self, message: &Message, out: &mut Vec<u8>) -> Result<(), ControlError> {
        // A start holds a secret.
        self.seal_encoded(&Zeroizing::new(message.encode()?), out);
        Ok(())
    }

    pub fn seal_encoded(&mut self, message: &[u8], out: &mut Vec<u8>) {
        debug_assert!(message.len() <= PLAIN_BYTES_MAX);
        let start = out.len();
        out.resize(start + 2 + RECORD_BYTES_MAX.min(message.len() + 16), 0);
        match self.noise.write_message(self.nonce, message, &mut out[start + 2..]) {
            Ok(bytes) => {
                self.nonce += 1;
                out[start..start + 2].copy_from_slice(&(bytes as u16).to_le_bytes());
                out.truncate(start + 2 + bytes);
            }
            Err(error) => {
                tracing::error!(%error, "a control message could not be sealed");
                out.truncate(start);
            }
        }
    }
}

fn builder<'a>(ours: &'a StaticKey, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(PATTERN.parse()?, Box::new(Resolver))
        .local_private_key(ours.secret())?
        .prologue(prologue)
}

fn flight(greeting: &[u8; GREETING_BYTES], message: &[u8]) -> Vec<u8> {
    let mut bytes = greeting.to_vec();
    bytes.extend_from_slice(&(message.len() as u16).to_le_bytes());
    bytes.extend_from_slice(message);
    bytes
}
