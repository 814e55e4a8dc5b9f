//! The handshake of a control connection, and its sealed records.
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

use std::io;
use std::sync::Arc;

use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
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
const MESSAGE_1_BYTES: usize = 32 + 48 + 16;
/// Longest second message: ephemeral key, verdict with a text, tag.
const MESSAGE_2_BYTES_MAX: usize = 1024;
const VERDICT_TEXT_BYTES_MAX: usize = 512;

/// Longest first record of either side, a start or the answer to it: what is read on the word of somebody who may have
/// replayed another's handshake.
const FIRST_RECORD_BYTES_MAX: usize = 256;

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

/// The sealed records of a connection whose handshake is done.
pub struct Records {
    /// What both take for the lanes.
    pub suite: Suite,
    pub reader: RecordReader,
    pub writer: RecordWriter,
}

pub struct RecordReader {
    half: BufReader<OwnedReadHalf>,
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    /// Longest record that is read now.
    most_bytes: usize,
}

pub struct RecordWriter {
    half: OwnedWriteHalf,
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    buffer: Vec<u8>,
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

/// Connects two nodes' keys. `Ok` only after the peer proved that it holds `theirs` and let us in.
pub async fn initiate(
    mut stream: TcpStream,
    ours: &StaticKey,
    theirs: &PublicKey,
    suites: SuiteSet,
) -> Result<Records, HandshakeError> {
    let greeting = Greeting::ours(Kind::Control { suites }).encode();
    let mut noise = builder(ours, &greeting)?.remote_public_key(theirs.as_bytes())?.build_initiator()?;
    let mut message = [0; MESSAGE_2_BYTES_MAX];
    let bytes = noise.write_message(&[], &mut message)?;
    let mut first = greeting.to_vec();
    first.extend_from_slice(&(bytes as u16).to_le_bytes());
    first.extend_from_slice(&message[..bytes]);
    stream.write_all(&first).await?;

    let mut answer = [0; GREETING_BYTES];
    stream.read_exact(&mut answer).await?;
    let answer = Greeting::decode(&answer).map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    match answer.kind {
        Kind::GoOn => {}
        Kind::Foreign | Kind::Refused(Refusal::Version) => {
            return Err(HandshakeError::Version(answer.versions));
        }
        Kind::Refused(Refusal::Handshake) => {
            return Err(HandshakeError::WrongKey("it cannot read what is sealed for that key"));
        }
        Kind::Refused(Refusal::Suite) => {
            return Err(HandshakeError::NoSuite);
        }
        Kind::Refused(Refusal::Other(reason)) => {
            return Err(HandshakeError::Protocol(format!("it refused for a reason unknown here ({reason})")));
        }
        Kind::Control { .. } | Kind::Lane => {
            return Err(HandshakeError::Protocol("it answered a greeting with a greeting".into()));
        }
    }
    let bytes = usize::from(stream.read_u16_le().await?);
    let second = message
        .get_mut(..bytes)
        .ok_or_else(|| HandshakeError::Protocol(format!("a handshake message of {bytes} bytes")))?;
    stream.read_exact(second).await?;
    let mut payload = [0; MESSAGE_2_BYTES_MAX];
    let bytes = noise
        .read_message(second, &mut payload)
        .map_err(|_| HandshakeError::WrongKey("its answer is not sealed with that key"))?;
    let suite = match Verdict::decode(&payload[..bytes]) {
        Ok(Verdict::Welcome { version, suite }) => {
            let known = choose(Versions { oldest: version, newest: version });
            let offered = Suite::from_id(suite).filter(|suite| suites.contains(*suite));
            known.and(offered).ok_or_else(|| {
                HandshakeError::Protocol(format!("it chose version {version}, suite {suite}"))
            })?
        }
        Ok(Verdict::No { text }) => return Err(HandshakeError::No(text)),
        Err(error) => return Err(HandshakeError::Protocol(error.to_string())),
    };
    records(stream, noise, suite)
}

/// What a node answers with.
pub struct Responder {
    pub key: StaticKey,
    pub suites: SuiteSet,
    pub replays: Replays,
}

/// Answers a control greeting that offers `theirs` of the suites. `who` says whether a key may open links. `Ok` means that *somebody once* sealed message
/// 1 with that key: only the first record proves that the peer is there.
pub async fn respond<T>(
    mut stream: TcpStream,
    greeting: &[u8; GREETING_BYTES],
    theirs: SuiteSet,
    ours: &Responder,
    who: impl FnOnce(PublicKey) -> Result<T, String>,
) -> Result<(Records, T), HandshakeError> {
    let Some(suite) = ours.suites.choose(theirs) else {
        refuse(&mut stream, Refusal::Suite).await?;
        return Err(HandshakeError::NoSuite);
    };
    let bytes = usize::from(stream.read_u16_le().await?);
    if bytes != MESSAGE_1_BYTES {
        return Err(HandshakeError::Protocol(format!("a first handshake message of {bytes} bytes")));
    }
    let mut first = [0; MESSAGE_1_BYTES];
    stream.read_exact(&mut first).await?;
    let mut ephemeral = [0; 32];
    ephemeral.copy_from_slice(&first[..32]);
    if ours.replays.was_seen(&ephemeral) {
        return Err(HandshakeError::Protocol("its first message is a replay".into()));
    }
    let mut noise = builder(&ours.key, greeting)?.build_responder()?;
    if noise.read_message(&first, &mut []).is_err() {
        refuse(&mut stream, Refusal::Handshake).await?;
        return Err(HandshakeError::WrongKey("its first message is not sealed for this node's key"));
    }
    let key = noise.get_remote_static().and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.ok_or_else(|| HandshakeError::Protocol("no static key".into()))?;
    let decision = who(PublicKey::from_bytes(key));
    if decision.is_ok() {
        ours.replays.note(ephemeral);
    }
    let verdict = match &decision {
        Ok(_) => Verdict::Welcome { version: VERSIONS.newest, suite: suite.id() },
        Err(text) => Verdict::No { text: text.chars().take(VERDICT_TEXT_BYTES_MAX / 4).collect() },
    };
    let verdict = verdict.encode().map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    let mut message = [0; MESSAGE_2_BYTES_MAX];
    let bytes = noise.write_message(&verdict, &mut message)?;
    let mut second = Greeting::ours(Kind::GoOn).encode().to_vec();
    second.extend_from_slice(&(bytes as u16).to_le_bytes());
    second.extend_from_slice(&message[..bytes]);
    stream.write_all(&second).await?;
    match decision {
        Ok(who) => Ok((records(stream, noise, suite)?, who)),
        Err(text) => {
            // Let the verdict arrive before the connection ends.
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut [0; 64]).await;
            Err(HandshakeError::No(text))
        }
    }
}

/// Explains, in the clear, why a connection ends.
pub async fn refuse(stream: &mut TcpStream, why: Refusal) -> io::Result<()> {
    stream.write_all(&Greeting::ours(Kind::Refused(why)).encode()).await?;
    stream.shutdown().await?;
    // Unread bytes would turn the end into a reset, which may overtake the refusal.
    let mut rest = [0; 512];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn builder<'a>(ours: &'a StaticKey, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(PATTERN.parse()?, Box::new(Resolver))
        .local_private_key(ours.secret())?
        .prologue(prologue)
}

fn records(stream: TcpStream, noise: HandshakeState, suite: Suite) -> Result<Records, HandshakeError> {
    let noise = Arc::new(noise.into_stateless_transport_mode()?);
    let (read, write) = stream.into_split();
    Ok(Records {
        suite,
        reader: RecordReader {
            half: BufReader::new(read),
            noise: noise.clone(),
            nonce: 0,
            sealed: Vec::new(),
            plain: Vec::new(),
            most_bytes: FIRST_RECORD_BYTES_MAX,
        },
        writer: RecordWriter { half: write, noise, nonce: 0, buffer: Vec::new() },
    })
}

impl RecordReader {
    pub async fn read(&mut self) -> Result<Message, RecordError> {
        let bytes = usize::from(self.half.read_u16_le().await?);
        if bytes > self.most_bytes {
            return Err(RecordError::TooLong { bytes, limit: self.most_bytes });
        }
        self.sealed.resize(bytes, 0);
        self.half.read_exact(&mut self.sealed).await?;
        self.plain.resize(bytes, 0);
        let bytes = self
            .noise
            .read_message(self.nonce, &self.sealed, &mut self.plain)
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

impl RecordWriter {
    /// Adds an encoded message to what the next [`RecordWriter::flush`] writes.
    pub fn add(&mut self, message: &[u8]) {
        debug_assert!(message.len() <= PLAIN_BYTES_MAX);
        let start = self.buffer.len();
        self.buffer.resize(start + 2 + RECORD_BYTES_MAX.min(message.len() + 16), 0);
        let sealed = self.noise.write_message(self.nonce, message, &mut self.buffer[start + 2..]);
        match sealed {
            Ok(bytes) => {
                self.nonce += 1;
                self.buffer[start..start + 2].copy_from_slice(&(bytes as u16).to_le_bytes());
                self.buffer.truncate(start + 2 + bytes);
            }
            Err(error) => {
                tracing::error!(%error, "a control message could not be sealed");
                self.buffer.truncate(start);
            }
        }
    }

    /// Not to be cancelled: half a record would be on the wire.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.half.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    pub fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    pub async fn finish(&mut self) {
        let _ = self.half.shutdown().await;
    }

    pub async fn send(&mut self, message: &Message) -> Result<(), RecordError> {
        // A start holds a secret.
        self.add(&Zeroizing::new(message.encode()?));
        Ok(self.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    struct Sides {
        initiator: StaticKey,
        responder: Responder,
    }

    fn sides() -> Sides {
        let key = StaticKey::generate().unwrap();
        let suites = [Suite::ChaCha20Poly1305].into_iter().collect();
        let responder = Responder { key, suites, replays: Replays::default() };
        Sides { initiator: StaticKey::generate().unwrap(), responder }
    }

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    async fn answer(sides: &Sides, mut stream: TcpStream) -> Result<Records, HandshakeError> {
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).await?;
        let Ok(Greeting { kind: Kind::Control { suites }, .. }) = Greeting::decode(&greeting) else {
            panic!("{greeting:?}")
        };
        respond(stream, &greeting, suites, &sides.responder, |_| Ok(())).await.map(|(records, ())| records)
    }

    async fn records_of(sides: &Sides) -> (Records, Records) {
        let (near, far) = connection().await;
        let (key, suites) = (sides.responder.key.public(), sides.responder.suites);
        let (theirs, ours) = tokio::join!(initiate(near, &sides.initiator, &key, suites), answer(sides, far));
        (theirs.unwrap(), ours.unwrap())
    }

    #[tokio::test]
    async fn a_long_first_record_is_refused_before_anything_is_allocated() {
        let (mut theirs, mut ours) = records_of(&sides()).await;
        theirs.writer.half.write_all(&u16::MAX.to_le_bytes()).await.unwrap();
        let read = tokio::time::timeout(std::time::Duration::from_secs(10), ours.reader.read()).await;
        let error = read.expect("it does not wait for the record's bytes").unwrap_err();
        assert!(matches!(error, RecordError::TooLong { bytes: 65_535, limit: 256 }), "{error}");
        assert_eq!((ours.reader.sealed.capacity(), ours.reader.plain.capacity()), (0, 0));
    }

    #[tokio::test]
    async fn records_after_the_first_may_be_long() {
        let (mut theirs, mut ours) = records_of(&sides()).await;
        let long = Message::User { session: 1, message: vec![5; crate::config::MESSAGE_BYTES_CEILING] };
        for message in [Message::Ping(1), long] {
            let (sent, read) = tokio::join!(theirs.writer.send(&message), ours.reader.read());
            sent.unwrap();
            assert_eq!(read.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_replayed_first_flight_is_not_answered() {
        let sides = sides();
        let (near, mut recorder) = connection().await;
        let suites = sides.responder.suites;
        let mut flight = [0; GREETING_BYTES + 2 + MESSAGE_1_BYTES];
        let key = sides.responder.key.public();
        let (_, recorded) = tokio::join!(
            tokio::time::timeout(
                std::time::Duration::from_millis(200),
                initiate(near, &sides.initiator, &key, suites)
            ),
            recorder.read_exact(&mut flight)
        );
        recorded.unwrap();
        for replayed in [false, true] {
            let (mut near, far) = connection().await;
            near.write_all(&flight).await.unwrap();
            let answered = answer(&sides, far).await;
            assert_eq!(answered.is_err(), replayed);
            drop(answered);
            let mut heard = Vec::new();
            let _ = near.read_to_end(&mut heard).await;
            assert_eq!(heard.is_empty(), replayed);
        }
    }
}
