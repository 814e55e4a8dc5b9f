//! The handshake of a control connection, and its sealed records, over TCP. What is said is `handshake`'s business.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub use crate::handshake::{HandshakeError, RecordError, Responder};
use crate::handshake::{Initiation, Keys, MESSAGE_1_BYTES, MESSAGE_2_BYTES_MAX, RecordOpener, RecordSealer};
use crate::key::{PublicKey, StaticKey};
use crate::suite::{Suite, SuiteSet};
use crate::wire::control::Message;
use crate::wire::greeting::{GREETING_BYTES, Greeting, Kind, Refusal};

/// The sealed records of a connection whose handshake is done.
pub struct Records {
    /// What both take for the lanes.
    pub suite: Suite,
    pub reader: RecordReader,
    pub writer: RecordWriter,
}

pub struct RecordReader {
    half: BufReader<OwnedReadHalf>,
    opener: RecordOpener,
    sealed: Vec<u8>,
}

pub struct RecordWriter {
    half: OwnedWriteHalf,
    sealer: RecordSealer,
    buffer: Vec<u8>,
}

/// Connects two nodes' keys. `Ok` only after the peer proved that it holds `theirs` and let us in.
pub async fn initiate(
    mut stream: TcpStream,
    ours: &StaticKey,
    theirs: &PublicKey,
    suites: SuiteSet,
) -> Result<Records, HandshakeError> {
    let (initiation, first) = Initiation::new(ours, theirs, suites)?;
    stream.write_all(&first).await?;
    let mut answer = [0; GREETING_BYTES];
    stream.read_exact(&mut answer).await?;
    Initiation::greeted(&answer)?;
    let bytes = usize::from(stream.read_u16_le().await?);
    let mut message = [0; MESSAGE_2_BYTES_MAX];
    let second = message
        .get_mut(..bytes)
        .ok_or_else(|| HandshakeError::Protocol(format!("a handshake message of {bytes} bytes")))?;
    stream.read_exact(second).await?;
    Ok(records(stream, &initiation.finish(second)?))
}

/// Answers a control greeting that offers `theirs` of the suites. `who` says whether a key may open links. What `Ok`
/// means, and does not: [`Answer::decision`](crate::handshake::Answer::decision).
pub async fn respond<T>(
    mut stream: TcpStream,
    greeting: &[u8; GREETING_BYTES],
    theirs: SuiteSet,
    ours: &Responder,
    who: impl FnOnce(PublicKey) -> Result<T, String>,
) -> Result<(Records, T), HandshakeError> {
    let Some(suite) = ours.choose(theirs) else {
        refuse(&mut stream, Refusal::Suite).await?;
        return Err(HandshakeError::NoSuite);
    };
    let bytes = usize::from(stream.read_u16_le().await?);
    if bytes != MESSAGE_1_BYTES {
        return Err(HandshakeError::Protocol(format!("a first handshake message of {bytes} bytes")));
    }
    let mut first = [0; MESSAGE_1_BYTES];
    stream.read_exact(&mut first).await?;
    let answer = match ours.answer(greeting, suite, &first, who) {
        Err(error @ HandshakeError::WrongKey(_)) => {
            refuse(&mut stream, Refusal::Handshake).await?;
            return Err(error);
        }
        other => other?,
    };
    stream.write_all(&answer.flight).await?;
    match answer.decision {
        Ok((keys, who)) => Ok((records(stream, &keys), who)),
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

fn records(stream: TcpStream, keys: &Keys) -> Records {
    let (read, write) = stream.into_split();
    let opener = RecordOpener::new(keys);
    Records {
        suite: keys.suite,
        reader: RecordReader { half: BufReader::new(read), opener, sealed: Vec::new() },
        writer: RecordWriter { half: write, sealer: RecordSealer::new(keys), buffer: Vec::new() },
    }
}

impl RecordReader {
    pub async fn read(&mut self) -> Result<Message, RecordError> {
        let bytes = self.opener.announced(self.half.read_u16_le().await?)?;
        self.sealed.resize(bytes, 0);
        self.half.read_exact(&mut self.sealed).await?;
        self.opener.open(&self.sealed)
    }
}

impl RecordWriter {
    /// Adds an encoded message to what the next [`RecordWriter::flush`] writes.
    pub fn add(&mut self, message: &[u8]) {
        self.sealer.seal_encoded(message, &mut self.buffer);
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
        self.sealer.seal(message, &mut self.buffer)?;
        Ok(self.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    struct Sides {
        initiator: StaticKey,
        public: PublicKey,
        suites: SuiteSet,
        responder: Responder,
    }

    fn sides() -> Sides {
        let key = StaticKey::generate().unwrap();
        let suites = [Suite::ChaCha20Poly1305].into_iter().collect();
        let (public, responder) = (key.public(), Responder::new(key, suites));
        Sides { initiator: StaticKey::generate().unwrap(), public, suites, responder }
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
        let (key, suites) = (sides.public, sides.suites);
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
        assert_eq!(ours.reader.sealed.capacity(), 0);
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
        let suites = sides.suites;
        let mut flight = [0; GREETING_BYTES + 2 + MESSAGE_1_BYTES];
        let key = sides.public;
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
