//! One link: what its sessions share, for as long as they live.
//!
//! The node that connected (the *initiator*) sends chunks; the other (the *responder*) receives them. Messages go both
//! ways. A link is tied to its peer by one [`Bond`] at a time:
//!
//! ```text
//!            attach, both sides' lists                    detach: the connections died
//!   (new) ─────────────────────────────▶ up ────────────────────────────────────────────▶ down
//!                                        ▲                                                 │ no bond within
//!                                        └───────────────── attach, lists ─────────────────┤ `Timeouts::link`
//!   end: once, for good; every session is told why ◀───────────────────────────────────────┘ or a reason to give up
//! ```
//! While it is down, sessions queue chunks and keep messages, and nothing is lost. Who detaches and ends a link: the
//! initiator's keeper (`keep.rs`) and the responder's (`listen.rs`); whoever else finds a reason says it by
//! [`Bond::fault`].

mod heard;
mod opening;

pub use opening::Opening;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::bond::Bond;
use crate::config::{Limits, NodeConfig, Sockets, Timeouts};
use crate::early::Early;
use crate::error::{Lost, MessageError};
use crate::lane::engine::ThreadTimes;
use crate::limit::Reading;
use crate::meter::RttMeter;
use crate::names::PeerName;
use crate::queue::TxQueue;
use crate::resume::Lists;
use crate::rx_session::RxAccount;
use crate::session::LinkStats;
use crate::tend::Wish;
use crate::voice::Voice;
use crate::wire::control::{Message, Started};
use crate::wire::frame::Header;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initiator,
    Responder,
}

pub struct LinkCore {
    pub peer: PeerName,
    pub role: Role,
    /// By which its initiator asks for it again: the id of its first bond.
    pub name: [u8; 16],
    /// What both sides hold themselves to.
    pub agreed: Started,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub sockets: Sockets,
    /// The node's clock: milliseconds and nonces of pings count from here.
    pub clock: Instant,
    /// Initiator: the chunks to send.
    pub queue: TxQueue,
    /// Initiator: to be warm.
    pub wish: Wish,
    warm_up: bool,
    state: Mutex<State>,
    /// `state` changed.
    changed: Notify,
    /// What each session says on the control connection. Locked before `state`.
    pub(crate) voices: Mutex<HashMap<u32, Voice>>,
    pub(crate) lists: Mutex<Lists>,
    opening: Mutex<HashMap<u32, opening::Asked>>,
    next_session: AtomicU32,
    /// Responder: the sessions that are open or asked for.
    pub(crate) received: Mutex<Received>,
    acks_due: AtomicBool,
    lane_bytes_sent: AtomicU64,
    stuck_frames: AtomicU32,
    rtt: Mutex<RttMeter>,
    /// Of the node's lane threads.
    pub thread_times: OnceLock<Arc<ThreadTimes>>,
    ended: OnceLock<Lost>,
}

#[derive(Default)]
struct State {
    bond: Option<Arc<Bond>>,
    /// Why there is none.
    down: Option<Lost>,
    /// Bonds so far.
    bonds: u64,
}

#[derive(Default)]
pub struct Received {
    pub open: HashMap<u32, Arc<RxAccount>>,
    /// Questions that wait for their user's answer.
    asked: HashSet<u32>,
    /// Those of them that were taken back. Their user holds them still, so they count.
    withdrawn: HashSet<u32>,
    /// What came of sessions that are not answered.
    early: Early,
    /// Sessions are numbered upwards; what is below and not here was closed.
    highest: u32,
}

impl Received {
    /// The session is asked for, or its question is still on its way.
    fn may_come(&self, session: u32) -> bool {
        session > self.highest || self.asked.contains(&session)
    }

    fn forget_early(&mut self) {
        self.early.forget(self.highest, |session| self.asked.contains(&session));
    }
}

pub enum OpenAnswer {
    Accepted { reply: Vec<u8> },
    Refused { code: u16, text: String },
}

impl LinkCore {
    pub fn new(
        peer: PeerName,
        role: Role,
        name: [u8; 16],
        agreed: Started,
        config: &NodeConfig,
        clock: Instant,
    ) -> Self {
        let limits = config.limits.clone();
        Self {
            peer,
            role,
            name,
            agreed,
            timeouts: config.timeouts.clone(),
            clock,
            queue: TxQueue::new(limits.unsent_low_bytes),
            limits,
            sockets: config.sockets.clone(),
            wish: Wish::default(),
            warm_up: config.warm_up,
            state: Mutex::default(),
            changed: Notify::new(),
            voices: Mutex::default(),
            lists: Mutex::default(),
            opening: Mutex::default(),
            next_session: AtomicU32::new(1),
            received: Mutex::default(),
            acks_due: AtomicBool::new(false),
            lane_bytes_sent: AtomicU64::new(0),
            stuck_frames: AtomicU32::new(0),
            rtt: Mutex::default(),
            thread_times: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }

    // ---- its bond, and its end

    /// The link has a new bond; one that it had is over. False: the link has ended.
    pub fn attach(&self, bond: &Arc<Bond>) -> bool {
        if let Some(old) = self.bond() {
            let replaced = Lost::Replaced { peer: self.peer.clone() };
            self.detach(&old, &replaced);
            old.fault(replaced);
        }
        let mut lists = lock(&self.lists);
        let mut state = lock(&self.state);
        *lists = Lists::of(bond, state.bonds > 0);
        drop(lists);
        if self.ended().is_some() {
            return false;
        }
        state.bond = Some(bond.clone());
        state.down = None;
        state.bonds += 1;
        drop(state);
        // It may be another path.
        *lock(&self.rtt) = RttMeter::default();
        self.changed.notify_waiters();
        true
    }

    /// The bond is over. True: it was the link's, which now has none; its sessions go on without.
    pub fn detach(&self, bond: &Arc<Bond>, why: &Lost) -> bool {
        bond.set_over();
        {
            let mut voices = lock(&self.voices);
            let mut state = lock(&self.state);
            if !state.bond.as_ref().is_some_and(|current| Arc::ptr_eq(current, bond)) {
                return false;
            }
            state.bond = None;
            state.down = Some(why.clone());
            voices.values_mut().for_each(|voice| voice.live = false);
        }
        self.queue.pause();
        self.changed.notify_waiters();
        // Questions are not asked twice: their hellos may be stale by then.
        for (session, _unanswered) in std::mem::take(&mut *lock(&self.opening)) {
            self.queue.remove_session(session);
        }
        let mut received = lock(&self.received);
        let unanswered = std::mem::take(&mut received.asked);
        received.withdrawn.extend(unanswered);
        received.early = Early::default();
        true
    }

    pub fn bond(&self) -> Option<Arc<Bond>> {
        lock(&self.state).bond.clone()
    }

    /// Bonds so far: tells one outage from the next.
    pub fn bonds(&self) -> u64 {
        lock(&self.state).bonds
    }

    /// Why it is down, or that it ended.
    pub fn why_down(&self) -> Option<Lost> {
        self.ended().cloned().or_else(|| lock(&self.state).down.clone())
    }

    /// Waits until the link is up, or has ended.
    pub async fn up(&self) {
        self.until(|state| state.bond.is_some()).await;
    }

    /// Waits until the link has had more bonds than `bonds`, or has ended.
    pub async fn bound_again(&self, bonds: u64) {
        self.until(|state| state.bonds > bonds).await;
    }

    /// Waits until the link has not the bond any more that was its `bonds`-th.
    pub async fn not_bound(&self, bonds: u64) {
        self.until(|state| state.bonds != bonds || state.bond.is_none()).await;
    }

    async fn until(&self, is_so: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.ended().is_some() || is_so(&lock(&self.state)) {
                return;
            }
            changed.await;
        }
    }

    /// Tells the sessions that the link is down.
    pub fn tell_down(&self, why: &Lost) {
        tracing::warn!(peer = %self.peer, reason = %why, "link down; its sessions wait");
        self.queue.all_events().iter().for_each(|events| events.link_down(why.clone()));
        self.accounts().iter().for_each(|account| account.link_down(why));
    }

    /// Tells the sessions that it is up again.
    pub fn tell_up(&self) {
        tracing::info!(peer = %self.peer, "link up again; its sessions go on");
        self.queue.all_events().iter().for_each(|events| events.link_up());
        self.accounts().iter().for_each(|account| account.link_up());
    }

    /// Ends the link and tells every session.
    pub fn end(&self, lost: Lost) {
        if self.ended.set(lost.clone()).is_err() {
            return;
        }
        if let Some(bond) = self.bond() {
            self.detach(&bond, &lost);
        }
        self.changed.notify_waiters();
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

    /// A lane's socket took so many bytes.
    pub fn sent(&self, bytes: usize) {
        self.lane_bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame stopped in its midst. How many did.
    pub fn count_stuck_frame(&self) -> u32 {
        self.stuck_frames.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An authentic frame, from a lane thread. The error ends the link.
    pub fn deliver(&self, header: &Header, body: Vec<u8>) -> Result<(), String> {
        let account = {
            let mut received = lock(&self.received);
            match received.open.get(&header.session) {
                Some(account) => account.clone(),
                None if received.may_come(header.session) => {
                    let chunk = (header.seq, header.after, body);
                    return received.early.keep(header.session, chunk, self.agreed.early_bytes);
                }
                // Closed, or refused, while the chunk was on its way.
                None => return Ok(()),
            }
        };
        account.chunk(header.seq, header.after, body)
    }

    // ---- what is said

    /// A message of the transport's own, on the bond that is there; without one it is not worth keeping.
    pub fn push(&self, message: &Message) {
        if let Some(bond) = self.bond() {
            bond.outbox.push(message);
        }
    }

    /// Says a thing within a session: now, or when the link is up again. False: it cannot be encoded, or there is no
    /// such session.
    fn say(&self, session: u32, message: &Message, last: bool) -> bool {
        let Some(encoded) = crate::outbox::encoded(message) else { return false };
        let mut voices = lock(&self.voices);
        let Some(voice) = voices.get_mut(&session).filter(|voice| !voice.ended_here) else { return false };
        voice.ended_here = last;
        voice.say(encoded.clone());
        if voice.live
            && let Some(bond) = self.bond()
        {
            bond.outbox.push_encoded(encoded);
        }
        true
    }

    /// The other side heard so many things of a session. `Err` ends the link.
    pub fn heard_there(&self, session: u32, number: u64) -> Result<(), String> {
        let mut voices = lock(&self.voices);
        let Some(voice) = voices.get_mut(&session) else { return Ok(()) };
        voice.heard_there(number).map_err(|_| format!("session {session}: it heard what was never said"))?;
        if voice.is_over() {
            voices.remove(&session);
        }
        Ok(())
    }

    /// One more thing of a session came.
    fn heard(&self, session: u32, last: bool) {
        let mut voices = lock(&self.voices);
        let Some(voice) = voices.get_mut(&session) else { return };
        voice.ended_there |= last;
        if voice.heard() {
            drop(voices);
            self.ack_soon();
        }
    }

    // ---- sessions, as their users drive them

    /// Registers a question as [`LinkCore::open`] does.
    #[cfg(test)]
    pub fn expect_answer(&self, session: u32) -> tokio::sync::oneshot::Receiver<OpenAnswer> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        lock(&self.opening).insert(session, opening::Asked { answer, early: false });
        answered
    }

    pub fn user_message(&self, session: u32, message: Vec<u8>) -> Result<(), MessageError> {
        let limit = self.agreed.message_bytes_max as usize;
        if message.len() > limit {
            return Err(MessageError::TooLong { bytes: message.len(), limit });
        }
        if self.ended().is_some() {
            return Err(MessageError::Closed);
        }
        let kept: usize = lock(&self.voices).values().map(Voice::unheard_bytes).sum();
        if kept + message.len() > self.limits.outbox_bytes {
            return Err(MessageError::Full);
        }
        if self.say(session, &Message::User { session, message }, false) {
            Ok(())
        } else {
            Err(MessageError::Closed)
        }
    }

    pub fn send_close(&self, session: u32, code: u16, text: &str) {
        let text = shorten(text, self.agreed.message_bytes_max as usize);
        self.say(session, &Message::Close { session, code, text }, true);
    }

    /// Forgets what was said in a session, if nothing of it is on its way: no link is there. False: it may be.
    pub fn unsay(&self, session: u32) -> bool {
        let mut voices = lock(&self.voices);
        let waits = voices.get(&session).is_some_and(|voice| !voice.live);
        if waits {
            voices.remove(&session);
        }
        waits
    }

    pub fn ack_soon(&self) {
        if !self.acks_due.swap(true, Ordering::AcqRel)
            && let Some(bond) = self.bond()
        {
            bond.outbox.notify();
        }
    }

    pub fn last_ack(&self, account: &RxAccount) {
        if let Ok(Some(ack)) = account.ack() {
            self.push(&ack);
        }
    }

    pub fn forget_rx(&self, session: u32) {
        lock(&self.received).open.remove(&session);
    }

    fn accounts(&self) -> Vec<Arc<RxAccount>> {
        lock(&self.received).open.values().cloned().collect()
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

    /// Something would be lost with the link: a session, or the end of one that the peer has not heard of.
    pub fn holds_anything(&self) -> bool {
        self.has_sessions() || !lock(&self.voices).is_empty()
    }

    // ---- figures

    /// Microseconds of the link's clock: the number in a ping.
    pub fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    /// A ping came back. What the peer says was sent later than now, or so long ago that it would have been silent, is no
    /// round trip.
    pub fn pong(&self, sent_us: u64) {
        let rtt = self.now_us().checked_sub(sent_us).map(std::time::Duration::from_micros);
        let Some(rtt) = rtt.filter(|rtt| *rtt <= self.timeouts.dead_after) else { return };
        // A responder does not know what is under way to it.
        let quiet = self.role == Role::Initiator && !self.queue.has_work();
        lock(&self.rtt).sample(rtt, quiet);
    }

    pub fn round_trips(&self) -> RttMeter {
        *lock(&self.rtt)
    }

    pub fn reading(&self) -> Reading {
        let rtt = *lock(&self.rtt);
        let pressure = self.queue.pressure();
        let lanes = self.bond().map_or_else(Vec::new, |bond| bond.lane_stats());
        Reading {
            at: Instant::now(),
            waits_for_peer: pressure.waits_for_peer(&lanes),
            lanes,
            threads: self.thread_times.get().map_or_else(Vec::new, |times| times.read()),
            rtt: rtt.smoothed,
            min_rtt: rtt.min,
            unsent_bytes: pressure.unsent_bytes,
            limit_bytes_per_s: pressure.limit_bytes_per_s,
        }
    }

    pub fn stats(&self) -> LinkStats {
        let rtt = *lock(&self.rtt);
        LinkStats {
            rtt: rtt.smoothed,
            rtt_latest: rtt.latest,
            min_rtt: rtt.min,
            goodput_bytes_per_s: None,
            path_bytes_per_s: self.wish.found().and_then(|probe| probe.path()),
            delivered_bytes: 0,
            lanes: self.bond().map_or(0, |bond| bond.lanes_up()),
            lane_bytes_sent: self.lane_bytes_sent.load(Ordering::Relaxed),
            padding_bytes: self.queue.padded().0,
            ..LinkStats::default()
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

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
