//! One link: what its control connection, its lanes and its sessions share.
//!
//! The node that connected (the *initiator*) sends chunks; the other (the *responder*) receives them. Messages go both
//! ways. A link ends once: whoever finds a reason says it by [`LinkCore::fault`], and the control task ends the link
//! ([`LinkCore::end`]), so that handlers hear of it from one place.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use crate::config::{Limits, NodeConfig, Timeouts};
use crate::error::{Lost, MessageError, OpenError};
use crate::events::{RxEvents, TxEvents};
use crate::lane::rx::Progress;
use crate::meter::RttMeter;
use crate::names::{Epoch, LaneId, PeerName, SessionId};
use crate::outbox::Outbox;
use crate::queue::TxQueue;
use crate::rx_session::RxAccount;
use crate::seal::LinkSecret;
use crate::session::{LinkStats, TxSession};
use crate::suite::Suite;
use crate::wire::control::{Message, Start, Started};
use crate::wire::frame::Header;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initiator,
    Responder,
}

pub struct LinkCore {
    pub peer: PeerName,
    pub role: Role,
    pub id: [u8; 16],
    pub secret: LinkSecret,
    /// What both sides hold themselves to.
    pub agreed: Started,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// The node's clock: milliseconds and nonces of pings count from here.
    pub clock: Instant,
    pub outbox: Outbox,
    /// Initiator: the chunks to send.
    pub queue: TxQueue,
    opening: Mutex<HashMap<u32, oneshot::Sender<OpenAnswer>>>,
    next_session: AtomicU32,
    /// Responder: the sessions that are open or asked for.
    received: Mutex<Received>,
    acks_due: AtomicBool,
    lanes: Mutex<HashMap<LaneId, Lane>>,
    lanes_up: AtomicU16,
    lane_bytes_sent: AtomicU64,
    rtt: Mutex<RttMeter>,
    fault: Mutex<Option<Lost>>,
    pub faulted: Notify,
    ended: OnceLock<Lost>,
}

#[derive(Default)]
struct Received {
    open: HashMap<u32, Arc<RxAccount>>,
    asked: HashSet<u32>,
    /// Sessions are numbered upwards; what is below and not here was closed.
    highest: u32,
}

struct Lane {
    epoch: Epoch,
    progress: Arc<Progress>,
}

pub enum OpenAnswer {
    Accepted { reply: Vec<u8> },
    Refused { code: u16, text: String },
}

impl LinkCore {
    pub fn new(
        peer: PeerName,
        role: Role,
        start: Start,
        suite: Suite,
        agreed: Started,
        config: &NodeConfig,
        clock: Instant,
    ) -> Self {
        let limits = config.limits.clone();
        Self {
            peer,
            role,
            id: start.link,
            secret: LinkSecret::new(start.secret, suite),
            agreed,
            timeouts: config.timeouts.clone(),
            clock,
            outbox: Outbox::new(limits.outbox_bytes),
            queue: TxQueue::new(limits.unsent_low_bytes),
            limits,
            opening: Mutex::default(),
            next_session: AtomicU32::new(1),
            received: Mutex::default(),
            acks_due: AtomicBool::new(false),
            lanes: Mutex::default(),
            lanes_up: AtomicU16::new(0),
            lane_bytes_sent: AtomicU64::new(0),
            rtt: Mutex::default(),
            fault: Mutex::default(),
            faulted: Notify::new(),
            ended: OnceLock::new(),
        }
    }

    // ---- the link's end

    /// Something is wrong with the link. The first reason counts.
    pub fn fault(&self, lost: Lost) {
        lock(&self.fault).get_or_insert(lost);
        self.faulted.notify_one();
    }

    pub fn first_fault(&self) -> Option<Lost> {
        lock(&self.fault).clone()
    }

    /// Ends the link and tells every session. Called by the control task, or when there is none any more.
    pub fn end(&self, lost: Lost) {
        if self.ended.set(lost.clone()).is_err() {
            return;
        }
        tracing::info!(peer = %self.peer, reason = %lost, "link ended");
        // Sessions that are added from now on see `ended` and take themselves out.
        let opening = std::mem::take(&mut *lock(&self.opening));
        for (session, events) in self.queue.remove_all() {
            // Who still waits for the answer gets the reason as an error.
            if !opening.contains_key(&session) {
                events.lost(lost.clone());
            }
        }
        drop(opening);
        let open: Vec<_> = lock(&self.received).open.drain().map(|(_, account)| account).collect();
        for account in open {
            account.lost(lost.clone());
        }
    }

    pub fn ended(&self) -> Option<&Lost> {
        self.ended.get()
    }

    // ---- lanes

    /// Responder: a lane proved its key. False: this epoch, or a later one, was seen before: a replay.
    pub fn admit_lane(&self, lane: LaneId, epoch: Epoch) -> Option<Arc<Progress>> {
        let mut lanes = lock(&self.lanes);
        if lane.0 >= self.agreed.lanes || lanes.get(&lane).is_some_and(|known| known.epoch >= epoch) {
            return None;
        }
        let progress = Arc::<Progress>::default();
        lanes.insert(lane, Lane { epoch, progress: progress.clone() });
        self.lanes_up.store(lanes.len() as u16, Ordering::Relaxed);
        Some(progress)
    }

    /// Initiator: so many lanes are up.
    pub fn set_lanes_up(&self, lanes: u16) {
        self.lanes_up.store(lanes, Ordering::Relaxed);
    }

    /// A lane that waits for the rest of a frame for too long.
    pub fn stuck_lane(&self) -> Option<LaneId> {
        let now_ms = self.clock.elapsed().as_millis() as u64;
        let bound_ms = self.timeouts.frame.as_millis() as u64;
        lock(&self.lanes)
            .iter()
            .find(|(_, lane)| lane.progress.stuck_for_ms(now_ms) > bound_ms)
            .map(|(id, _)| *id)
    }

    /// A lane's socket took so many bytes.
    pub fn sent(&self, bytes: usize) {
        self.lane_bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An authentic frame, from a lane thread. The error ends the link.
    pub fn deliver(&self, header: &Header, body: Vec<u8>) -> Result<(), String> {
        let account = {
            let received = lock(&self.received);
            match received.open.get(&header.session) {
                Some(account) => account.clone(),
                // Closed while the chunk was on its way.
                None if header.session <= received.highest => return Ok(()),
                None => return Err(format!("a chunk of session {}, which was never opened", header.session)),
            }
        };
        account.chunk(header.seq, header.after, body)
    }

    // ---- sessions, as their users drive them

    pub async fn open(
        self: &Arc<Self>,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
    ) -> Result<(TxSession, Vec<u8>), OpenError> {
        let limit = self.agreed.message_bytes_max as usize;
        if hello.len() > limit {
            return Err(OpenError::HelloTooLong { bytes: hello.len(), limit });
        }
        if self.queue.sessions() >= self.limits.sessions {
            return Err(OpenError::TooManySessions(self.limits.sessions));
        }
        let wire = self.next_session.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.opening).insert(wire, answer);
        let mut undo = Opening { link: self, wire, undecided: true };
        self.queue.add_session(wire, events);
        if let Some(lost) = self.ended() {
            undo.undecided = false;
            lock(&self.opening).remove(&wire);
            self.queue.remove_session(wire);
            return Err(lost.clone().into());
        }
        self.outbox.push(&Message::Open { session: wire, id: id.0, hello });
        let answer = tokio::time::timeout(self.timeouts.open, answered).await;
        match answer {
            Ok(Ok(OpenAnswer::Accepted { reply })) => {
                undo.undecided = false;
                Ok((TxSession::new(self.clone(), wire, id), reply))
            }
            Ok(Ok(OpenAnswer::Refused { code, text })) => {
                undo.undecided = false;
                self.queue.remove_session(wire);
                Err(OpenError::Refused { code, text })
            }
            Ok(Err(_)) => {
                undo.undecided = false;
                Err(self.ended().cloned().unwrap_or(Lost::Stopped).into())
            }
            Err(_) => Err(OpenError::Timeout(self.timeouts.open)),
        }
    }

    pub fn user_message(&self, session: u32, message: Vec<u8>) -> Result<(), MessageError> {
        let limit = self.agreed.message_bytes_max as usize;
        if message.len() > limit {
            return Err(MessageError::TooLong { bytes: message.len(), limit });
        }
        if self.ended().is_some() {
            return Err(MessageError::Closed);
        }
        if self.outbox.push_bounded(&Message::User { session, message }) {
            Ok(())
        } else {
            Err(MessageError::Full)
        }
    }

    pub fn send_close(&self, session: u32, code: u16, text: &str) {
        let text = shorten(text, self.agreed.message_bytes_max as usize);
        self.outbox.push(&Message::Close { session, code, text });
    }

    pub fn ack_soon(&self) {
        if !self.acks_due.swap(true, Ordering::AcqRel) {
            self.outbox.notify();
        }
    }

    pub fn last_ack(&self, account: &RxAccount) {
        if let Ok(Some(ack)) = account.ack() {
            self.outbox.push(&ack);
        }
    }

    pub fn forget_rx(&self, session: u32) {
        lock(&self.received).open.remove(&session);
    }

    /// Responder: a session that was asked for is accepted. `Err`: its opener is gone.
    pub fn accept(
        self: &Arc<Self>,
        session: u32,
        id: SessionId,
        reply: Vec<u8>,
        credit_bytes: u64,
        events: Arc<dyn RxEvents>,
    ) -> Result<Arc<RxAccount>, Option<Lost>> {
        let account = Arc::new(RxAccount::new(session, id, credit_bytes, self.limits.gaps, events));
        {
            let mut received = lock(&self.received);
            if let Some(lost) = self.ended() {
                return Err(Some(lost.clone()));
            }
            if !received.asked.remove(&session) {
                return Err(None);
            }
            received.open.insert(session, account.clone());
        }
        self.outbox.push(&Message::Accepted { session, credit: account.credit_bytes(), reply });
        Ok(account)
    }

    pub fn refuse(&self, session: u32, code: u16, text: &str) {
        if lock(&self.received).asked.remove(&session) {
            let text = shorten(text, self.agreed.message_bytes_max as usize);
            self.outbox.push(&Message::Refused { session, code, text });
        }
    }

    // ---- what the control connection brings

    /// Responder: registers a question. `Err` ends the link; `Ok(false)`: too many sessions, already refused.
    pub fn asked(&self, session: u32) -> Result<bool, String> {
        let mut received = lock(&self.received);
        if session <= received.highest {
            return Err(format!("session number {session} was used before"));
        }
        received.highest = session;
        if received.open.len() + received.asked.len() >= self.limits.sessions {
            drop(received);
            let text = format!("{} sessions are open, which is the limit", self.limits.sessions);
            self.outbox.push(&Message::Refused { session, code: crate::code::TOO_MANY, text });
            return Ok(false);
        }
        received.asked.insert(session);
        Ok(true)
    }

    pub fn answered(&self, session: u32, answer: OpenAnswer, credit: u64) {
        // An opener that gave up has told the peer so.
        if let Some(waiting) = lock(&self.opening).remove(&session) {
            self.queue.grant(session, credit);
            let _ = waiting.send(answer);
        }
    }

    pub fn ack(
        &self,
        session: u32,
        cumulative: u64,
        credit: u64,
        ranges: &[(u64, u64)],
    ) -> Result<(), String> {
        let rtt = lock(&self.rtt).smoothed;
        let acked =
            self.queue.acked(Instant::now(), session, cumulative, ranges, credit, rtt).map_err(|never| {
                format!("chunk {} of session {session} was acknowledged but never sent", never.seq)
            })?;
        if let Some(acked) = acked {
            acked.events.acked(cumulative, ranges);
            if acked.room {
                acked.events.room();
            }
        }
        Ok(())
    }

    pub fn user_message_came(&self, session: u32, message: Vec<u8>) {
        match self.role {
            Role::Initiator => {
                if let Some(events) = self.queue.events(session) {
                    events.message(message);
                }
            }
            Role::Responder => {
                let account = lock(&self.received).open.get(&session).cloned();
                if let Some(account) = account {
                    account.message(message);
                }
            }
        }
    }

    pub fn close_came(&self, session: u32, code: u16, text: String) {
        match self.role {
            Role::Initiator => {
                if let Some(events) = self.queue.remove_session(session) {
                    events.closed(code, text);
                }
            }
            Role::Responder => {
                let account = {
                    let mut received = lock(&self.received);
                    received.asked.remove(&session);
                    received.open.remove(&session)
                };
                if let Some(account) = account {
                    account.closed_by_peer(code, text);
                }
            }
        }
    }

    /// Acknowledgements that are due. `Err` ends the link.
    pub fn due_acks(&self) -> Result<Vec<Message>, String> {
        self.acks_due.store(false, Ordering::Release);
        let open: Vec<_> = lock(&self.received).open.values().cloned().collect();
        open.iter().filter_map(|account| account.ack().transpose()).collect()
    }

    pub fn acks_are_due(&self) -> bool {
        self.acks_due.load(Ordering::Acquire)
    }

    pub fn has_sessions(&self) -> bool {
        match self.role {
            Role::Initiator => self.queue.sessions() > 0,
            Role::Responder => !lock(&self.received).open.is_empty(),
        }
    }

    // ---- figures

    /// Microseconds of the link's clock: the number in a ping.
    pub fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    pub fn pong(&self, sent_us: u64) {
        let rtt = std::time::Duration::from_micros(self.now_us().saturating_sub(sent_us));
        lock(&self.rtt).sample(rtt);
    }

    pub fn stats(&self) -> LinkStats {
        let rtt = *lock(&self.rtt);
        LinkStats {
            rtt: rtt.smoothed,
            min_rtt: rtt.min,
            goodput_bytes_per_s: None,
            delivered_bytes: 0,
            lanes: self.lanes_up.load(Ordering::Relaxed),
            lane_bytes_sent: self.lane_bytes_sent.load(Ordering::Relaxed),
            ..LinkStats::default()
        }
    }
}

/// A question that nobody waits for any more is taken back.
struct Opening<'a> {
    link: &'a LinkCore,
    wire: u32,
    undecided: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.undecided {
            lock(&self.link.opening).remove(&self.wire);
            self.link.queue.remove_session(self.wire);
            self.link.send_close(self.wire, crate::code::GAVE_UP, "the opener stopped waiting");
        }
    }
}

/// Texts are for people; a message's limit is for machines.
fn shorten(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
