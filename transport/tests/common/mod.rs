//! Two nodes on loopback, and users that write down what they are told.
#![allow(dead_code)]

pub mod proxy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hikyaku_transport::*;

/// Longer than anything in these tests takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// A value that changes and can be waited for.
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T: Default> Default for Watched<T> {
    fn default() -> Self {
        Self { value: Mutex::default(), changed: Condvar::new() }
    }
}

impl<T> Watched<T> {
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.value.lock().unwrap());
        self.changed.notify_all();
        result
    }

    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.value.lock().unwrap())
    }

    /// Waits until `look` gives something; panics after [`LONG`].
    pub fn wait<R>(&self, what: &str, look: impl Fn(&T) -> Option<R>) -> R {
        self.wait_for(LONG, look).unwrap_or_else(|| panic!("waited in vain for {what}"))
    }

    pub fn wait_for<R>(&self, bound: Duration, look: impl Fn(&T) -> Option<R>) -> Option<R> {
        let until = Instant::now() + bound;
        let mut value = self.value.lock().unwrap();
        loop {
            if let Some(found) = look(&value) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            value = self.changed.wait_timeout(value, left).unwrap().0;
        }
    }
}

#[derive(Default)]
pub struct Sent {
    pub cumulative: u64,
    pub acked: std::collections::BTreeSet<u64>,
    pub rooms: u64,
    pub messages: Vec<Vec<u8>>,
    pub lost: Vec<Lost>,
    pub closed: Vec<(u16, String)>,
    /// Times the link went down, and came up again.
    pub down: usize,
    pub up: usize,
}

/// A sender's events.
#[derive(Default)]
pub struct Sender(pub Watched<Sent>);

impl TxEvents for Sender {
    fn acked(&self, cumulative: u64, ranges: &[(u64, u64)]) {
        self.0.update(|sent| {
            sent.cumulative = sent.cumulative.max(cumulative);
            sent.acked.extend(ranges.iter().flat_map(|range| range.0..=range.1));
        });
    }
    fn room(&self) {
        self.0.update(|sent| sent.rooms += 1);
    }
    fn message(&self, message: Vec<u8>) {
        self.0.update(|sent| sent.messages.push(message));
    }
    fn link_down(&self, _why: Lost) {
        self.0.update(|sent| sent.down += 1);
    }
    fn link_up(&self) {
        self.0.update(|sent| sent.up += 1);
    }
    fn lost(&self, lost: Lost) {
        self.0.update(|sent| sent.lost.push(lost));
    }
    fn closed(&self, code: u16, text: String) {
        self.0.update(|sent| sent.closed.push((code, text)));
    }
}

#[derive(Default)]
pub struct Got {
    /// By number: `after` and a hash of the payload.
    pub chunks: BTreeMap<u64, (u64, u64)>,
    pub payload_bytes: u64,
    pub out_of_order: u64,
    pub highest: u64,
    pub twice: u64,
    /// Chunks that were not applied.
    pub held: Vec<(u64, u64)>,
    pub held_bytes: u64,
    pub held_bytes_max: u64,
    pub messages: Vec<Vec<u8>>,
    pub lost: Vec<Lost>,
    pub closed: Vec<(u16, String)>,
    /// Times the link went down, and came up again.
    pub down: usize,
    pub up: usize,
}

/// A receiver's events.
#[derive(Default)]
pub struct Receiver {
    pub got: Watched<Got>,
    /// Applies at once; else holds.
    pub session: Mutex<Option<RxSession>>,
    pub applies: bool,
}

impl RxEvents for Receiver {
    fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>) {
        let bytes = payload.len() as u64;
        let sum = checksum(&payload);
        self.got.update(|got| {
            got.twice += u64::from(got.chunks.insert(seq, (after, sum)).is_some());
            got.payload_bytes += bytes;
            got.out_of_order += u64::from(seq < got.highest);
            got.highest = got.highest.max(seq);
            if !self.applies {
                got.held.push((seq, bytes));
                got.held_bytes += bytes;
                got.held_bytes_max = got.held_bytes_max.max(got.held_bytes);
            }
        });
        if self.applies
            && let Some(session) = &*self.session.lock().unwrap()
        {
            session.applied(seq, bytes);
        }
    }
    fn message(&self, message: Vec<u8>) {
        self.got.update(|got| got.messages.push(message));
    }
    fn link_down(&self, _why: Lost) {
        self.got.update(|got| got.down += 1);
    }
    fn link_up(&self) {
        self.got.update(|got| got.up += 1);
    }
    fn lost(&self, lost: Lost) {
        self.got.update(|got| got.lost.push(lost));
    }
    fn closed(&self, code: u16, text: String) {
        self.got.update(|got| got.closed.push((code, text)));
    }
}

/// A quick sum in which every byte and place counts.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}

/// What the receiving node answers.
pub enum Answer {
    Accept { credit_bytes: u64, applies: bool },
    Refuse(u16, &'static str),
    Nothing,
}

pub struct Host {
    pub answer: Mutex<Answer>,
    pub asked: Watched<Vec<(PeerName, Vec<u8>)>>,
    pub sessions: Watched<Vec<(RxSession, Arc<Receiver>)>>,
    pub kept: Mutex<Vec<Incoming>>,
    pub notes: Watched<Vec<(PeerName, Vec<u8>)>>,
}

impl Host {
    pub fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer),
            asked: Watched::default(),
            sessions: Watched::default(),
            kept: Mutex::default(),
            notes: Watched::default(),
        })
    }

    pub fn session(&self, n: usize) -> (RxSession, Arc<Receiver>) {
        self.sessions.wait("a session", |sessions| sessions.get(n).cloned())
    }
}

impl Acceptor for Host {
    fn note(&self, peer: &PeerName, note: Vec<u8>) {
        self.notes.update(|notes| notes.push((peer.clone(), note)));
    }
    fn open(&self, peer: &PeerName, hello: Vec<u8>, incoming: Incoming) {
        let reply = [b"re: ", &hello[..]].concat();
        self.asked.update(|asked| asked.push((peer.clone(), hello)));
        match *self.answer.lock().unwrap() {
            Answer::Accept { credit_bytes, applies } => {
                let receiver = Arc::new(Receiver { applies, ..Receiver::default() });
                let session = incoming.accept(reply, credit_bytes, receiver.clone()).unwrap();
                *receiver.session.lock().unwrap() = Some(session.clone());
                self.sessions.update(|sessions| sessions.push((session, receiver)));
            }
            Answer::Refuse(code, text) => incoming.refuse(code, text),
            Answer::Nothing => self.kept.lock().unwrap().push(incoming),
        }
    }
}

pub struct Pair {
    pub source: Node,
    pub destination: Node,
    pub host: Arc<Host>,
    /// The source's, which nobody asks.
    pub source_host: Arc<Host>,
    pub source_key: StaticKey,
    pub destination_key: StaticKey,
}

#[derive(Clone)]
pub struct Setup {
    pub io: Io,
    pub listen: SocketAddr,
    /// Where the source believes the destination to be; `None`: where it is.
    pub via: Option<Vec<String>>,
    pub may_send: bool,
    pub change: fn(&mut NodeConfig),
}

impl Setup {
    pub fn new(io: Io) -> Self {
        Self { io, listen: "127.77.0.1:0".parse().unwrap(), via: None, may_send: true, change: |_| {} }
    }

    pub fn pair(&self, answer: Answer) -> Pair {
        let (source_key, destination_key) = (StaticKey::generate().unwrap(), StaticKey::generate().unwrap());
        let host = Host::new(answer);
        let mut config = NodeConfig::new(destination_key.clone());
        config.listen = vec![self.listen];
        config.io = self.io;
        config.lane_threads = 1;
        config.peers = vec![Peer {
            name: "tokyo".into(),
            addresses: vec![],
            public_key: source_key.public(),
            may_send: self.may_send,
            may_receive: false,
        }];
        (self.change)(&mut config);
        let destination = Node::start(config, host.clone()).unwrap();
        let mut config = NodeConfig::new(source_key.clone());
        config.io = self.io;
        // As many whoever runs this.
        (config.lanes, config.lanes_most) = (8, 8);
        config.lane_threads = 1;
        let there = destination.addresses().iter().map(ToString::to_string).collect();
        config.peers = vec![Peer {
            name: "osaka".into(),
            addresses: self.via.clone().unwrap_or(there),
            public_key: destination_key.public(),
            may_send: false,
            may_receive: true,
        }];
        (self.change)(&mut config);
        let source_host = Host::new(Answer::Nothing);
        let source = Node::start(config, source_host.clone()).unwrap();
        Pair { source, destination, host, source_host, source_key, destination_key }
    }
}

impl Pair {
    pub async fn open(&self) -> (TxSession, Arc<Sender>, RxSession, Arc<Receiver>) {
        let link = self.source.link(&"osaka".into()).await.unwrap();
        let sender = Arc::new(Sender::default());
        let before = self.host.sessions.read(Vec::len);
        let (tx, reply) = link.open(SessionId([7; 16]), b"hello".to_vec(), sender.clone()).await.unwrap();
        assert_eq!(reply, b"re: hello");
        let (rx, receiver) = self.host.session(before);
        assert_eq!(rx.id(), SessionId([7; 16]));
        (tx, sender, rx, receiver)
    }
}

/// An address that nobody listens at, and which stays free: connections go out from 127.0.0.1, and what they take
/// a port of is not this.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.77.0.1:0").unwrap().local_addr().unwrap()
}

pub const ACCEPT: Answer = Answer::Accept { credit_bytes: 64 << 20, applies: true };

/// Bytes that do not repeat, from a number.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Runs the body over both backends.
#[macro_export]
macro_rules! over_both {
    ($($(#[$attribute:meta])* async fn $name:ident($io:ident: Io) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($io: Io) $body

            #[tokio::test]
            async fn plain() {
                body(Io::Plain).await;
            }

            #[tokio::test]
            async fn uring() {
                body(Io::Uring).await;
            }
        }
    )*};
}
