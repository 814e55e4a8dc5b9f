//! The receiving end: applies whatever comes, at once, and notes when it came.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::bail;
use hikyaku_transport::{Acceptor, Incoming, Lost, Node, PeerName, RxEvents, RxSession};

use super::super::PATIENCE;
use super::super::plan::{Arrivals, Manner, Plan, Received, Said, now_ns};
use super::usage::Before;
use super::{config, hash, lock, say};

/// As daemons give by default.
const CREDIT_BYTES: u64 = 128 << 20;

pub fn receive(plan: &Plan) -> anyhow::Result<()> {
    let host = Arc::new(Host {
        manner: plan.manner.clone(),
        start: OnceLock::new(),
        state: Mutex::default(),
        ended: Condvar::new(),
    });
    let node = Node::start(config(plan)?, Arc::new(Door(host.clone())))?;
    let before = Before::now()?;
    say(&Said::Ready)?;
    if let Some(why) = host.wait_for_end() {
        bail!("receiver: {why}");
    }
    let usage = before.until_now()?;
    drop(node);
    let sessions = std::mem::take(&mut lock(&host.state).sessions);
    say(&Said::Received(Received { sessions, usage }))
}

struct Host {
    manner: Manner,
    /// When the first session was accepted.
    start: OnceLock<Instant>,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    sessions: Vec<Arrivals>,
    closed: usize,
    /// Why, if it was not the sender's wish.
    failed: Option<String>,
}

impl Host {
    fn start(&self) -> Instant {
        *self.start.get_or_init(|| {
            let (now, at_ns) = (Instant::now(), now_ns());
            // Whoever does not read this ends this process.
            let _ = say(&Said::Started { at_ns });
            now
        })
    }

    /// One session is over.
    fn end(&self, why: Option<String>) {
        let mut state = lock(&self.state);
        state.closed += 1;
        state.failed = state.failed.take().or(why);
        self.ended.notify_all();
    }

    /// Until all sessions are over, or one has failed, or none has come for [`PATIENCE`].
    fn wait_for_end(&self) -> Option<String> {
        let all = usize::from(self.manner.sessions);
        let mut state = lock(&self.state);
        loop {
            if state.failed.is_some() || state.closed >= all {
                return state.failed.clone();
            }
            let waited = self.ended.wait_timeout(state, PATIENCE);
            let timeout;
            (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && self.start.get().is_none() {
                return Some(format!("no session came within {PATIENCE:?}"));
            }
        }
    }
}

struct Door(Arc<Host>);

impl Acceptor for Door {
    fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
        // The sender numbers its sessions.
        let index = usize::from(incoming.id().0[0]);
        let sessions = usize::from(self.0.manner.sessions);
        if index >= sessions {
            return incoming.refuse(1, "more sessions than were planned");
        }
        lock(&self.0.state).sessions.resize_with(sessions, Arrivals::default);
        let sink =
            Arc::new(Sink { index, host: self.0.clone(), start: self.0.start(), session: OnceLock::new() });
        match incoming.accept(Vec::new(), CREDIT_BYTES, sink.clone()) {
            Ok(session) => drop(sink.session.set(session)),
            Err(error) => self.0.end(Some(error.to_string())),
        }
    }
}

struct Sink {
    index: usize,
    host: Arc<Host>,
    start: Instant,
    session: OnceLock<RxSession>,
}

impl RxEvents for Sink {
    fn chunk(&self, seq: u64, _: u64, payload: Vec<u8>) {
        let bytes = payload.len() as u64;
        let hash = if self.host.manner.checked { hash(seq, &payload) } else { 0 };
        drop(payload);
        // Its first chunks may come while `open` still has the session in its hands.
        self.session.wait().applied(seq, bytes);
        let at = self.start.elapsed();
        if let Some(arrivals) = lock(&self.host.state).sessions.get_mut(self.index) {
            arrivals.series.add(at, bytes);
            arrivals.chunks += 1;
            arrivals.hash = arrivals.hash.wrapping_add(hash);
        }
    }
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, lost: Lost) {
        self.host.end(Some(lost.to_string()));
    }
    fn closed(&self, code: u16, text: String) {
        self.host.end((code != 0).then_some(text));
    }
}
