//! One migration, as it is shown: what its task tells of it, and what others wish of that.

use crate::api::wire::{
    self, Event, EventKind, Numbers, Priority, Resolution, Role, SCHEMA, Sharing, Status, StopTimes,
};
use crate::hooks::Hook;
use crate::id::Id;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::report::Report;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, watch};

/// Why a migration is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Cancel,
    /// The daemon has been told to end.
    End,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wish::Cancel => "cancelled",
            Wish::End => "given up, for its hikyakud was told to end",
        })
    }
}

#[derive(Debug)]
pub struct Entry {
    pub id: Id,
    pub guest: String,
    pub role: Role,
    begun: Instant,
    state: Mutex<State>,
    /// At a destination: the source runs the guest, for somebody has said so there.
    kept: AtomicBool,
    wish: watch::Sender<Option<Wish>>,
    resolution: watch::Sender<Option<Resolution>>,
    /// And whether it is urgent just now.
    sharing: watch::Sender<(Sharing, bool)>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Clone)]
struct State {
    phase: Phase,
    /// The entry's own, but at a destination that awaited it.
    migration: Id,
    peer: Option<String>,
    numbers: Numbers,
    throttle_percent: u64,
    throttle_most: u64,
    report: Option<Report>,
    outage: Option<Outage>,
    /// Since when, and how long it may take.
    hook: Option<(Hook, Instant, Duration)>,
    stop: Option<StopTimes>,
    /// At a destination: who came, and was not let in.
    turned_away: Option<String>,
    outcome: Option<Outcome>,
    let_go: bool,
    ended: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Outage {
    why: String,
    since: Instant,
    over: Option<Instant>,
    timeout: Duration,
    count: u32,
}

impl Entry {
    pub(super) fn new(
        id: Id,
        guest: &str,
        role: Role,
        peer: Option<&str>,
        phase: Phase,
        events: broadcast::Sender<Event>,
    ) -> Entry {
        let state = State {
            phase,
            migration: id,
            peer: peer.map(str::to_owned),
            let_go: false,
            numbers: Numbers::default(),
            throttle_percent: 0,
            throttle_most: 0,
            report: None,
            outage: None,
            turned_away: None,
            hook: None,
            stop: None,
            outcome: None,
            ended: None,
        };
        Entry {
            id,
            guest: guest.to_owned(),
            role,
            begun: Instant::now(),
            state: Mutex::new(state),
            kept: AtomicBool::new(false),
            wish: watch::channel(None).0,
            resolution: watch::channel(None).0,
            sharing: watch::channel(Default::default()).0,
            events,
        }
    }

    pub fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Moves on to `next`. A step that the ownership table does not have is logged as the defect it is, and not taken.
    pub fn advance(&self, next: Phase) {
        let mut state = lock(&self.state);
        if state.phase == next {
            return;
        }
        if !state.phase.may_become(next) {
            tracing::error!(id = %self.id, from = %state.phase, to = %next, "a step that must not happen was refused");
            debug_assert!(false, "{} -> {next}", state.phase);
            return;
        }
        tracing::info!(id = %self.id.short(), guest = %self.guest, from = %state.phase, to = %next, "phase");
        state.phase = next;
        if next.is_final() {
            state.ended = Some(Instant::now());
        }
        drop(state);
        self.publish(EventKind::Phase);
    }

    pub(super) fn is_moving(&self) -> bool {
        let state = lock(&self.state);
        state.phase != Phase::Armed && !state.phase.is_final() && state.outcome.is_none()
    }

    /// The guest that is awaited comes from there, by this migration.
    pub fn set_source(&self, peer: &str, migration: Id) {
        let mut state = lock(&self.state);
        (state.peer, state.migration, state.turned_away) = (Some(peer.to_owned()), migration, None);
    }

    /// By which both sides know it.
    pub fn migration(&self) -> Id {
        lock(&self.state).migration
    }

    pub fn is_from(&self, peer: &str) -> bool {
        self.role == Role::Destination && lock(&self.state).peer.as_deref() == Some(peer)
    }

    /// It is not to be run here any more.
    pub fn keep_at_source(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    pub fn is_kept_at_source(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// How long the guest would stand if it were stopped now, as far as that is known.
    pub fn predicted_stop(&self) -> Option<Duration> {
        let ms = lock(&self.state).numbers.predicted_stop_ms;
        (ms > 0).then(|| Duration::from_millis(ms))
    }

    /// Of the guest, as QEMU wrote it, and on the wire.
    pub fn raw_and_sent(&self) -> (u64, u64) {
        let numbers = lock(&self.state).numbers;
        (numbers.raw_bytes, numbers.sent_bytes)
    }

    pub fn staged_bytes(&self) -> u64 {
        lock(&self.state).numbers.staged_bytes
    }

    pub fn set_numbers(&self, numbers: Numbers) {
        lock(&self.state).numbers = numbers;
        self.publish(EventKind::Progress);
    }

    /// The move waits for this hook, which may take so long, until what is returned is dropped.
    pub fn waits_for(self: &Arc<Self>, hook: Hook, timeout: Duration) -> WaitsForHook {
        lock(&self.state).hook = Some((hook, Instant::now(), timeout));
        self.still_waits();
        WaitsForHook(self.clone())
    }

    /// For those who look on.
    pub fn still_waits(&self) {
        if !self.phase().is_final() {
            self.publish(EventKind::Progress);
        }
    }

    /// Pages that were never written to are not sent.
    pub fn all_is_here(&self) {
        let numbers = &mut lock(&self.state).numbers;
        numbers.pages_done = numbers.pages_total;
    }

    /// Somebody's guest is refused, and another one is still awaited.
    pub fn turned_away(&self, peer: &str, why: &str) {
        lock(&self.state).turned_away = Some(format!("{peer}: {why}"));
        self.publish(EventKind::Progress);
    }

    pub fn set_throttle(&self, percent: u64) {
        let mut state = lock(&self.state);
        state.throttle_percent = percent;
        state.throttle_most = state.throttle_most.max(percent);
    }

    /// The move was made. What the entry knows of it, it adds.
    pub fn set_report(&self, report: Report) {
        let mut state = lock(&self.state);
        state.report = Some(Report {
            total_ms: self.begun.elapsed().as_millis() as u64,
            sent_bytes: state.numbers.sent_bytes,
            passes: state.numbers.pass,
            throttle_percent: state.throttle_most,
            ..report
        });
    }

    /// The peer is not reached any more; it is sought for `timeout`.
    pub fn link_down(&self, why: &str, timeout: Duration) {
        let mut state = lock(&self.state);
        let count = state.outage.as_ref().map_or(0, |outage| outage.count) + 1;
        let why = why.to_owned();
        state.outage = Some(Outage { why, since: Instant::now(), over: None, timeout, count });
        drop(state);
        self.publish(EventKind::LinkDown);
    }

    /// It is reached again.
    pub fn link_up(&self) {
        let mut state = lock(&self.state);
        let Some(outage) = state.outage.as_mut().filter(|outage| outage.over.is_none()) else { return };
        outage.over = Some(Instant::now());
        let lasted_s = outage.since.elapsed().as_secs_f64();
        drop(state);
        tracing::info!(id = %self.id.short(), guest = %self.guest, lasted_s, "the link is back");
        self.publish(EventKind::LinkUp);
    }

    pub fn set_stop(&self, stop: StopTimes) {
        lock(&self.state).stop = Some(stop);
    }

    /// The last word: ends the phases and tells everybody.
    pub fn finish(&self, phase: Phase, outcome: Outcome) {
        match outcome.ending {
            Ending::Moved => tracing::info!(id = %self.id.short(), guest = %self.guest, "{outcome}"),
            _ => tracing::warn!(id = %self.id.short(), guest = %self.guest, "{outcome}"),
        }
        lock(&self.state).outcome = Some(outcome);
        self.advance(phase);
        self.publish(EventKind::Finished);
    }

    /// Says something that is not the end (in doubt), for `status` and the waiting command.
    pub fn set_outcome(&self, outcome: Outcome) {
        lock(&self.state).outcome = Some(outcome);
        self.publish(EventKind::Phase);
    }

    pub fn status(&self) -> Status {
        let state = lock(&self.state).clone();
        let elapsed = state.ended.unwrap_or_else(Instant::now) - self.begun;
        // With the migration ends the search.
        let outage = state.outage.filter(|outage| outage.over.is_some() || state.ended.is_none());
        Status {
            id: self.id,
            guest: self.guest.clone(),
            role: self.role,
            peer: state.peer,
            phase: state.phase,
            elapsed_ms: elapsed.as_millis() as u64,
            numbers: Numbers { throttle_percent: state.throttle_percent, ..state.numbers },
            link: outage.map(|outage| wire::Outage {
                down: outage.over.is_none(),
                for_ms: (outage.over.unwrap_or_else(Instant::now) - outage.since).as_millis() as u64,
                timeout_ms: outage.timeout.as_millis() as u64,
                count: outage.count,
                why: outage.why,
            }),
            hook: state.hook.filter(|_| state.ended.is_none()).map(|(name, since, timeout)| wire::HookWait {
                name,
                for_ms: since.elapsed().as_millis() as u64,
                timeout_ms: timeout.as_millis() as u64,
            }),
            stop: state.stop,
            turned_away: state.turned_away.filter(|_| state.phase == Phase::Armed),
            report: state.report,
            outcome: state.outcome,
            sharing: (self.role == Role::Source).then(|| self.sharing().0),
        }
    }

    /// Changes how it shares the link, from now on. `None` leaves it as it is.
    pub fn set_sharing(
        &self,
        limit_bytes_per_s: Option<Option<u64>>,
        priority: Option<Priority>,
    ) -> Result<(), Outcome> {
        let phase = self.phase();
        if phase.is_final() {
            return Err(usage(format!("migration {} has already ended: {phase}", self.id.short())));
        }
        if self.role == Role::Destination {
            let desc = format!("migration {} comes here: its source decides how fast", self.id.short());
            return Err(usage(desc).advise("Set it there"));
        }
        self.sharing.send_modify(|(sharing, _)| {
            sharing.limit_bytes_per_s = limit_bytes_per_s.unwrap_or(sharing.limit_bytes_per_s);
            sharing.priority = priority.unwrap_or(sharing.priority);
        });
        self.publish(EventKind::Progress);
        Ok(())
    }

    /// A guest stands still for it, or no longer.
    pub fn set_urgent(&self, urgent: bool) {
        self.sharing.send_modify(|(_, is_urgent)| *is_urgent = urgent);
    }

    pub fn sharing(&self) -> (Sharing, bool) {
        *self.sharing.borrow()
    }

    pub fn sharing_changes(&self) -> watch::Receiver<(Sharing, bool)> {
        self.sharing.subscribe()
    }

    /// At a destination: the source has let go of the guest, which comes here unless it is refused.
    pub fn set_let_go(&self) {
        lock(&self.state).let_go = true;
    }

    /// It is not in doubt any more, and not over either.
    pub fn withdraw_doubt(&self) {
        let mut state = lock(&self.state);
        if state.outcome.as_ref().is_some_and(|outcome| outcome.ending == Ending::InDoubt) {
            state.outcome = None;
        }
    }

    /// Asks the migration to end; it does so at its next step that can be undone.
    pub fn cancel(&self) -> Result<(), Outcome> {
        self.wish(Wish::Cancel)
    }

    /// The same, for this daemon is to end.
    pub fn give_up(&self) -> Result<(), Outcome> {
        self.wish(Wish::End)
    }

    fn wish(&self, wish: Wish) -> Result<(), Outcome> {
        let phase = self.phase();
        if phase.is_final() {
            return Err(usage(format!("migration {} has already ended: {phase}", self.id.short())));
        }
        if let Some(outcome) = self.outcome().filter(|outcome| outcome.guest == Whereabouts::StuckAtSource) {
            // It was given up already, and what is left to do is not to be given up.
            return Err(outcome);
        }
        if self.is_let_go() {
            let (whereabouts, what) = match (self.is_in_doubt(), self.role) {
                (true, _) => (Whereabouts::InDoubt, "the guest may have been let go"),
                (false, Role::Source) => (Whereabouts::AsItWas, "the guest has been let go, and goes there"),
                (false, Role::Destination) => {
                    (Whereabouts::AsItWas, "the guest has been let go, and comes here")
                }
            };
            let desc = format!("too late: migration {} is {phase}: {what}", self.id.short());
            return Err(Outcome::new(Ending::Other, whereabouts, desc));
        }
        self.wish.send_if_modified(|wished| {
            let is_first = wished.is_none();
            wished.get_or_insert(wish);
            is_first
        });
        Ok(())
    }

    /// No cancelling leaves the guest where it was any more.
    pub(super) fn is_let_go(&self) -> bool {
        !self.phase().can_be_cancelled() || lock(&self.state).let_go
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.outcome().is_some_and(|outcome| outcome.ending == Ending::InDoubt)
    }

    pub fn wished(&self) -> Option<Wish> {
        *self.wish.borrow()
    }

    pub async fn cancelled(&self) -> Wish {
        let mut wish = self.wish.subscribe();
        // The sender lives in `self`.
        match wish.wait_for(Option::is_some).await.map(|wish| *wish) {
            Ok(Some(wish)) => wish,
            _ => std::future::pending().await,
        }
    }

    /// A person says where a guest is that is in doubt. `fenced`: and has done what that takes.
    pub fn resolve(&self, guest_is: Resolution, fenced: bool) -> Result<(), Outcome> {
        let phase = self.phase();
        let is_open = matches!(phase, Phase::Ceded | Phase::Handed | Phase::Starting) && self.is_in_doubt();
        if !is_open && !self.is_at_both() {
            let desc = format!("migration {} is not in doubt: it is {phase}", self.id.short());
            return Err(Outcome::new(Ending::Usage, Whereabouts::AsItWas, desc));
        }
        if !fenced {
            let desc = "not confirmed (by the guest's name at a terminal, or --fenced), so nothing was done";
            return Err(Outcome::new(Ending::Usage, Whereabouts::InDoubt, desc));
        }
        self.resolution.send_replace(Some(guest_is));
        Ok(())
    }

    /// What somebody has said of it was not so.
    pub(super) fn is_at_both(&self) -> bool {
        self.outcome().is_some_and(|outcome| outcome.guest == Whereabouts::AtBoth)
    }

    fn outcome(&self) -> Option<Outcome> {
        lock(&self.state).outcome.clone()
    }

    /// What was said cannot be taken; it may be said again.
    pub fn unresolve(&self) {
        self.resolution.send_replace(None);
    }

    /// What somebody has said, if that was believed.
    pub fn told(&self) -> Option<Resolution> {
        *self.resolution.borrow()
    }

    /// Returns when somebody has said so.
    pub async fn resolved(&self) -> Resolution {
        let mut told = self.resolution.subscribe();
        // The sender lives in `self`.
        match told.wait_for(Option::is_some).await.map(|told| *told) {
            Ok(Some(resolution)) => resolution,
            _ => std::future::pending().await,
        }
    }

    pub(super) fn publish(&self, event: EventKind) {
        // Nobody listening is no error.
        let _ = self.events.send(Event { event, v: SCHEMA, data: self.status() });
    }
}

/// See [`Entry::waits_for`].
pub struct WaitsForHook(Arc<Entry>);

impl Drop for WaitsForHook {
    fn drop(&mut self) {
        lock(&self.0.state).hook = None;
        self.0.still_waits();
    }
}

pub(super) fn usage(desc: String) -> Outcome {
    Outcome::new(Ending::Usage, Whereabouts::AsItWas, desc)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is plain data: whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
