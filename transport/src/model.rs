//! A model of the whole: two links, their lanes and control connections without sockets, under whatever a network does.
//!
//! The steps are drawn by chance: chunks and messages are queued, lanes send, frames and control messages arrive in any
//! interleaving, the receiver applies in an allowed order, connections die with what is on them, alone or all at once,
//! and on the two sides at different times. In the end the network is left in peace, and then
//!
//! * every chunk came as it was sent, once, and was applied after everything that it had to come after;
//! * every message came once and in order, in both directions;
//! * the sender knows that all was applied, and has its whole credit back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;

use crate::bond::Bond;
use crate::config::NodeConfig;
use crate::control::handle;
use crate::error::Lost;
use crate::events::{Acceptor, RxEvents, TxEvents};
use crate::hello;
use crate::incoming::Incoming;
use crate::key::StaticKey;
use crate::lane::engine::{After, received};
use crate::lane::rx::RxLane;
use crate::lane::tx::{Load, TxLane};
use crate::link::{LinkCore, OpenAnswer, Role, lock};
use crate::names::{LaneId, PeerName, SessionId};
use crate::queue::Carrier;
use crate::ranges::RangeSet;
use crate::seal::LinkSecret;
use crate::session::{Chunk, charge};
use crate::suite::Suite;
use crate::wire::control::{Message, Started};

const LANES: u16 = 3;
/// Less than a session's credit.
pub const EARLY_BYTES: u64 = 2000;
const SESSIONS: u32 = 2;
const CREDIT_BYTES: u64 = 4000;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Queue a chunk of so many bytes that may be applied after the one so far before it.
    Chunk {
        session: u32,
        bytes: usize,
        behind: u64,
    },
    /// Say something, in one direction.
    Say {
        session: u32,
        from_source: bool,
    },
    /// A lane seals its next frame.
    Send {
        lane: u16,
    },
    /// So many frames of a lane arrive.
    Arrive {
        lane: u16,
        frames: usize,
    },
    /// A lane's connection dies, with what is on it.
    LaneDies {
        lane: u16,
    },
    LaneComesUp {
        lane: u16,
    },
    /// The receiver applies one of the chunks that it may.
    Apply {
        session: u32,
        which: usize,
    },
    /// What both sides have to say goes on the control connection.
    Speak,
    /// So many control messages arrive.
    Hear {
        at_source: bool,
        messages: usize,
    },
    /// Everything dies; one side sees it first.
    LinkDies {
        source_first: bool,
    },
    /// The other side sees it, too.
    BothSeeIt,
    LinkComesBack,
}

fn step() -> impl Strategy<Value = Step> {
    let session = 1..=SESSIONS;
    let lane = 0..LANES;
    prop_oneof![
        8 => (session.clone(), 0usize..900, 1u64..6).prop_map(|(session, bytes, behind)| Step::Chunk { session, bytes, behind }),
        3 => (session.clone(), any::<bool>()).prop_map(|(session, from_source)| Step::Say { session, from_source }),
        12 => lane.clone().prop_map(|lane| Step::Send { lane }),
        8 => (lane.clone(), 1usize..4).prop_map(|(lane, frames)| Step::Arrive { lane, frames }),
        3 => lane.clone().prop_map(|lane| Step::LaneDies { lane }),
        4 => lane.prop_map(|lane| Step::LaneComesUp { lane }),
        8 => (session, 0usize..8).prop_map(|(session, which)| Step::Apply { session, which }),
        6 => Just(Step::Speak),
        8 => (any::<bool>(), 1usize..6).prop_map(|(at_source, messages)| Step::Hear { at_source, messages }),
        1 => any::<bool>().prop_map(|source_first| Step::LinkDies { source_first }),
        2 => Just(Step::BothSeeIt),
        3 => Just(Step::LinkComesBack),
    ]
}

/// What a user wrote down of one session.
#[derive(Default)]
struct Heard {
    chunks: BTreeMap<u64, (u64, Vec<u8>)>,
    twice: usize,
    messages: Vec<Vec<u8>>,
    acked: u64,
    over: Option<String>,
}

#[derive(Default)]
pub struct User(Mutex<Heard>);

impl User {
    /// Numbers, and what each is to be applied after.
    pub fn chunks(&self) -> Vec<(u64, u64)> {
        lock(&self.0).chunks.iter().map(|(seq, (after, _))| (*seq, *after)).collect()
    }

    pub fn messages(&self) -> Vec<Vec<u8>> {
        lock(&self.0).messages.clone()
    }
}

macro_rules! what_both_ends_hear {
    () => {
        fn message(&self, message: Vec<u8>) {
            lock(&self.0).messages.push(message);
        }
        fn lost(&self, lost: Lost) {
            lock(&self.0).over = Some(lost.to_string());
        }
        fn closed(&self, _: u16, text: String) {
            lock(&self.0).over = Some(text);
        }
    };
}

impl TxEvents for User {
    fn acked(&self, cumulative: u64, _: &[(u64, u64)]) {
        lock(&self.0).acked = cumulative;
    }
    fn room(&self) {}
    what_both_ends_hear!();
}

impl RxEvents for User {
    fn chunk(&self, seq: u64, after: u64, payload: Vec<u8>) {
        let mut heard = lock(&self.0);
        heard.twice += usize::from(heard.chunks.insert(seq, (after, payload)).is_some());
    }
    what_both_ends_hear!();
}

struct NoQuestions;

impl Acceptor for NoQuestions {
    fn open(&self, _: &PeerName, _: Vec<u8>, _: Incoming) {
        panic!("nobody asks");
    }
}

/// One direction of a control connection: queued by its speaker, then on the way.
type Wire = VecDeque<Vec<u8>>;

struct Lane {
    tx: TxLane,
    rx: RxLane,
    on_the_way: VecDeque<Vec<u8>>,
}

struct Net {
    source: Arc<LinkCore>,
    destination: Arc<LinkCore>,
    /// Each side's bond, while it believes in it.
    bonds: (Option<Arc<Bond>>, Option<Arc<Bond>>),
    /// Of the bond that both made last; nothing passes when it is dead.
    to_destination: Wire,
    to_source: Wire,
    alive: bool,
    lanes: Vec<Option<Lane>>,
    born: u8,
    sessions: BTreeMap<u32, Session>,
}

#[derive(Default)]
struct Session {
    sender: Arc<User>,
    receiver: Arc<User>,
    sent: Vec<(u64, Vec<u8>)>,
    applied: RangeSet,
    applied_count: u64,
    said: [Vec<Vec<u8>>; 2],
}

pub fn link(role: Role) -> Arc<LinkCore> {
    let config = NodeConfig::new(StaticKey::generate().unwrap());
    let agreed = Started {
        resumed: false,
        lanes: LANES,
        chunk_bytes_max: 1000,
        message_bytes_max: 1024,
        early_bytes: EARLY_BYTES,
    };
    Arc::new(LinkCore::new("peer".into(), role, [1; 16], agreed, &config, Instant::now()))
}

/// A link's n-th bond, with the same secret on both sides.
pub fn bond(link: &Arc<LinkCore>, n: u8) -> Arc<Bond> {
    Bond::new(link.clone(), [n; 16], LinkSecret::new([n; 32], Suite::ChaCha20Poly1305))
}

impl Net {
    fn new() -> Self {
        let mut net = Net {
            source: link(Role::Initiator),
            destination: link(Role::Responder),
            bonds: (None, None),
            to_destination: Wire::new(),
            to_source: Wire::new(),
            alive: false,
            lanes: (0..LANES).map(|_| None).collect(),
            born: 0,
            sessions: BTreeMap::new(),
        };
        net.bind();
        for session in 1..=SESSIONS {
            let made = Session::default();
            net.source.queue.add_session(session, made.sender.clone());
            net.destination.asked(session).unwrap();
            let id = SessionId([session as u8; 16]);
            let accepted =
                net.destination.accept(session, id, Vec::new(), CREDIT_BYTES, made.receiver.clone());
            assert!(accepted.is_ok());
            let waiting = net.source.expect_answer(session);
            net.source.answered(session, OpenAnswer::Accepted { reply: Vec::new() }, CREDIT_BYTES);
            drop(waiting);
            net.sessions.insert(session, made);
        }
        // The answers that were queued are those just given.
        net.bonds.1.as_ref().unwrap().outbox.take();
        net
    }

    fn bind(&mut self) {
        self.born += 1;
        let (source, destination) = (bond(&self.source, self.born), bond(&self.destination, self.born));
        // Whoever still believed in the old one learns it now.
        self.lanes_die(|_| true);
        if let Some(old) = self.bonds.0.take() {
            self.source.detach(&old, &Lost::Stopped);
        }
        assert!(self.destination.attach(&destination) && self.source.attach(&source));
        if self.born > 1 {
            self.source.send_list(&source);
            self.destination.send_list(&destination);
        }
        self.bonds = (Some(source), Some(destination));
        (self.to_source, self.to_destination) = (Wire::new(), Wire::new());
        self.alive = true;
    }

    fn lanes_die(&mut self, which: impl Fn(usize) -> bool) {
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            if which(n)
                && let Some(lane) = lane.take()
            {
                self.source.queue.give_back(lane.tx.carrier);
            }
        }
    }

    fn lane_comes_up(&mut self, n: u16) {
        let (Some(source), Some(destination)) = &self.bonds else { return };
        if !self.alive || self.lanes[usize::from(n)].is_some() {
            return;
        }
        let lane = LaneId(n);
        let epoch = source.next_epoch(lane);
        let (bytes, sealer) = hello::hello(&source.secret, &source.id, lane, epoch);
        let (greeting, rest) = (bytes[..12].try_into().unwrap(), bytes[12..].try_into().unwrap());
        let (_, _, opener) = hello::open(&destination.secret, &greeting, &rest).unwrap();
        let (progress, _) = destination.admit(lane, epoch).unwrap();
        assert!(destination.admit(lane, epoch).is_none(), "an epoch is good once");
        let carrier: Carrier = self.source.queue.new_carrier();
        self.lanes[usize::from(n)] = Some(Lane {
            tx: TxLane::new(lane, epoch, carrier, sealer, 1 << 20),
            rx: RxLane::new(lane, epoch, opener, 1000, progress),
            on_the_way: VecDeque::new(),
        });
    }

    fn send(&mut self, n: u16) {
        let Some(lane) = &mut self.lanes[usize::from(n)] else { return };
        if lane.tx.load(&self.source.queue) == Load::Ready {
            let frame = lane.tx.unsent().to_vec();
            lane.tx.advance(frame.len());
            lane.on_the_way.push_back(frame);
        }
    }

    fn arrive(&mut self, n: u16, frames: usize) {
        let (Some(lane), Some(bond)) = (&mut self.lanes[usize::from(n)], &self.bonds.1) else { return };
        let frames = frames.min(lane.on_the_way.len());
        for frame in lane.on_the_way.drain(..frames) {
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let (buffer, want) = lane.rx.space();
                let some = rest.len().min(want - buffer.len());
                buffer.extend_from_slice(&rest[..some]);
                rest = &rest[some..];
                assert!(received(bond, &mut lane.rx, 0) == After::GoOn);
            }
        }
    }

    fn speak(&mut self) {
        if let Some(bond) = &self.bonds.1 {
            for ack in self.destination.due_acks().unwrap() {
                bond.outbox.push(&ack);
            }
            self.to_source.extend(bond.outbox.take());
        }
        if let Some(bond) = &self.bonds.0 {
            for heard in self.source.due_acks().unwrap() {
                bond.outbox.push(&heard);
            }
            self.to_destination.extend(bond.outbox.take());
        }
        if !self.alive {
            self.to_source.clear();
            self.to_destination.clear();
        }
    }

    fn hear(&mut self, at_source: bool, messages: usize) {
        let (bond, wire) = match at_source {
            true => (&self.bonds.0, &mut self.to_source),
            false => (&self.bonds.1, &mut self.to_destination),
        };
        let Some(bond) = bond else { return };
        let messages = messages.min(wire.len());
        for bytes in wire.drain(..messages) {
            let message = Message::decode(&bytes).unwrap();
            let shown = format!("{message:?}");
            assert_eq!(handle(&NoQuestions, bond, message), Ok(()), "{shown}");
        }
    }

    fn dies(&mut self, source_first: bool) {
        self.alive = false;
        (self.to_source, self.to_destination) = (Wire::new(), Wire::new());
        // Frames on the way are lost; who does not know it yet goes on sending into the void.
        for lane in self.lanes.iter_mut().flatten() {
            lane.on_the_way.clear();
        }
        self.sees(source_first);
    }

    fn sees(&mut self, source: bool) {
        if source {
            if let Some(bond) = self.bonds.0.take() {
                self.lanes_die(|_| true);
                self.source.detach(&bond, &Lost::Stopped);
            }
        } else if let Some(bond) = self.bonds.1.take() {
            self.destination.detach(&bond, &Lost::Stopped);
        }
    }

    fn apply(&mut self, session: u32, which: usize) -> bool {
        let Some(account) = lock(&self.destination.received).open.get(&session).cloned() else {
            return false;
        };
        let session = self.sessions.get_mut(&session).unwrap();
        let heard = lock(&session.receiver.0);
        let may: Vec<_> = heard
            .chunks
            .iter()
            .filter(|(seq, (after, _))| {
                !session.applied.contains(**seq) && *after <= session.applied.cumulative()
            })
            .map(|(seq, (_, payload))| (*seq, payload.len() as u64))
            .collect();
        drop(heard);
        if may.is_empty() {
            return false;
        }
        let (seq, bytes) = may[which % may.len()];
        assert!(session.applied.insert(seq));
        session.applied_count += 1;
        if account.applied(seq, bytes) {
            self.destination.ack_soon();
        }
        true
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Chunk { session, bytes, behind } => {
                let made = self.sessions.get_mut(&session).unwrap();
                let seq = made.sent.len() as u64 + 1;
                let payload = vec![(seq as u8).wrapping_mul(31).wrapping_add(session as u8); bytes];
                let after = seq.saturating_sub(behind);
                made.sent.push((after, payload.clone()));
                self.source.queue.push(session, Chunk { seq, after, payload: payload.into() }).unwrap();
            }
            Step::Say { session, from_source } => {
                let made = self.sessions.get_mut(&session).unwrap();
                let said = &mut made.said[usize::from(from_source)];
                let message = (said.len() as u32).to_le_bytes().to_vec();
                said.push(message.clone());
                let link = if from_source { &self.source } else { &self.destination };
                link.user_message(session, message).unwrap();
            }
            Step::Send { lane } => self.send(lane),
            Step::Arrive { lane, frames } => self.arrive(lane, frames),
            Step::LaneDies { lane } => self.lanes_die(|n| n == usize::from(lane)),
            Step::LaneComesUp { lane } => self.lane_comes_up(lane),
            Step::Apply { session, which } => {
                self.apply(session, which);
            }
            Step::Speak => self.speak(),
            Step::Hear { at_source, messages } => self.hear(at_source, messages),
            Step::LinkDies { source_first } => self.dies(source_first),
            Step::BothSeeIt => {
                if !self.alive {
                    self.sees(true);
                    self.sees(false);
                }
            }
            Step::LinkComesBack => {
                if !self.alive {
                    self.bind();
                }
            }
        }
    }

    /// The network is left in peace until nothing moves any more.
    fn settle(&mut self) {
        if !self.alive {
            self.bind();
        }
        // Each round moves something while there is anything to move.
        for _ in 0..3 * self.sessions.values().map(|made| made.sent.len()).sum::<usize>() + 30 {
            for lane in 0..LANES {
                self.lane_comes_up(lane);
                self.send(lane);
                self.arrive(lane, 10);
            }
            for session in 1..=SESSIONS {
                while self.apply(session, 0) {}
            }
            self.speak();
            self.hear(true, 1000);
            self.hear(false, 1000);
        }
    }

    fn check(&self) {
        for (number, made) in &self.sessions {
            let (sender, receiver) = (lock(&made.sender.0), lock(&made.receiver.0));
            assert_eq!((&sender.over, &receiver.over), (&None, &None));
            assert_eq!(receiver.twice, 0, "a chunk came twice");
            let came: Vec<_> = receiver.chunks.values().cloned().collect();
            assert_eq!(came, made.sent);
            assert_eq!(made.applied_count, made.sent.len() as u64);
            assert_eq!((sender.acked, made.applied.cumulative()), (made.applied_count, made.applied_count));
            assert_eq!([sender.messages.clone(), receiver.messages.clone()], made.said);
            let figures = self.source.queue.figures(*number).unwrap();
            assert_eq!((figures.unsent_bytes, figures.in_flight_bytes), (0, 0));
            assert_eq!(figures.credit_left, CREDIT_BYTES);
            let charged: BTreeSet<_> = made.sent.iter().map(|(_, payload)| charge(payload.len())).collect();
            assert!(charged.iter().all(|cost| *cost < CREDIT_BYTES), "the model itself");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_dies_everything_comes_once_and_in_an_allowed_order(steps in prop::collection::vec(step(), 0..250)) {
        let mut net = Net::new();
        for step in steps {
            net.run(step);
        }
        net.settle();
        net.check();
    }
}
