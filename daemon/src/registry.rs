//! The migrations this daemon has in hand, and the last ones it finished: what `list`, `status` and events show.
//!
//! It tells; it decides nothing. Each migration changes only its own [`Entry`].

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

/// Finished migrations that are still shown.
const FINISHED_KEPT: usize = 64;
/// Events a slow reader may lag behind before it misses some; `status` always tells the whole.
const EVENTS_HELD: usize = 256;

#[derive(Debug)]
pub struct Registry {
    entries: Mutex<Vec<Arc<Entry>>>,
    /// Nothing is begun any more.
    closed: AtomicBool,
    events: broadcast::Sender<Event>,
}

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

impl Default for Registry {
    fn default() -> Self {
        Registry {
            entries: Mutex::default(),
            closed: AtomicBool::default(),
            events: broadcast::channel(EVENTS_HELD).0,
        }
    }
}

impl Registry {
    /// Enters a migration, unless this guest is already on its way in the same direction.
    pub fn enter(
        &self,
        id: Id,
        guest: &str,
        role: Role,
        peer: Option<&str>,
        phase: Phase,
    ) -> Result<Arc<Entry>, Outcome> {
        if self.closed.load(Ordering::Relaxed) {
            let desc = "this daemon has been told to end, and begins nothing any more";
            return Err(Outcome::new(Ending::Other, Whereabouts::Untouched, desc)
                .advise("Try again when it has been started anew"));
        }
        let entries = lock(&self.entries);
        if let Some(other) =
            entries.iter().find(|e| e.guest == guest && e.role == role && !e.phase().is_final())
        {
            let what = match role {
                Role::Source => "is already being moved",
                Role::Destination => "is already awaited here",
            };
            let desc =
                format!("guest \"{guest}\" {what} (migration {}, {})", other.id.short(), other.phase());
            let id = other.id.short();
            let (whereabouts, advice) = if other.is_in_doubt() {
                (Whereabouts::InDoubt, format!("See it with: hikyaku status {id}"))
            } else if other.is_let_go() {
                (Whereabouts::AsItWas, format!("It ends by itself; see it with: hikyaku status {id}"))
            } else {
                let advice = format!("See it with: hikyaku status {id}; end it with: hikyaku cancel {id}");
                (Whereabouts::Untouched, advice)
            };
            return Err(Outcome::new(Ending::Other, whereabouts, desc).advise(advice));
        }
        Ok(self.add(entries, id, guest, role, peer, phase))
    }

    pub fn of(&self, id: Id) -> Option<Arc<Entry>> {
        lock(&self.entries).iter().find(|entry| entry.id == id).cloned()
    }

    /// Enters a migration that another daemon left unfinished, whatever else goes on: each has to be finished.
    pub fn take_up(&self, id: Id, guest: &str, role: Role, peer: &str, phase: Phase) -> Arc<Entry> {
        self.add(lock(&self.entries), id, guest, role, Some(peer), phase)
    }

    fn add(
        &self,
        mut entries: MutexGuard<'_, Vec<Arc<Entry>>>,
        id: Id,
        guest: &str,
        role: Role,
        peer: Option<&str>,
        phase: Phase,
    ) -> Arc<Entry> {
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
        let entry = Arc::new(Entry {
            id,
            guest: guest.to_owned(),
            role,
            begun: Instant::now(),
            state: Mutex::new(state),
            kept: AtomicBool::new(false),
            wish: watch::channel(None).0,
            resolution: watch::channel(None).0,
            sharing: watch::channel(Default::default()).0,
            events: self.events.clone(),
        });
        entries.push(entry.clone());
        let finished = entries.iter().filter(|e| e.phase().is_final()).count();
        if finished > FINISHED_KEPT
            && let Some(oldest) = entries.iter().position(|e| e.phase().is_final() && !e.is_at_both())
        {
            entries.remove(oldest);
        }
        drop(entries);
        entry.publish(EventKind::Phase);
        entry
    }

    pub fn statuses(&self) -> Vec<Status> {
        lock(&self.entries).iter().map(|e| e.status()).collect()
    }

    pub fn unfinished(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).iter().filter(|e| !e.phase().is_final()).cloned().collect()
    }

    /// From now on nothing is begun, and nothing is awaited that is not on its way.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for entry in self.unfinished().iter().filter(|entry| entry.phase() == Phase::Armed) {
            let _ = entry.give_up();
        }
    }

    /// Those that go on by themselves. What is in doubt may be so for ever.
    pub fn moving(&self) -> usize {
        self.unfinished().iter().filter(|entry| entry.is_moving()).count()
    }

    /// By id, by a unique beginning of one, or by guest (the newest).
    pub fn find(&self, which: &str) -> Result<Arc<Entry>, Outcome> {
        let entries = lock(&self.entries);
        if let Some(entry) = entries.iter().rev().find(|e| e.guest == which || e.id.to_string() == which) {
            return Ok(entry.clone());
        }
        let begins: Vec<_> =
            entries.iter().filter(|e| !which.is_empty() && e.id.to_string().starts_with(which)).collect();
        match begins.as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => Err(usage(format!("no migration \"{which}\" is known here")).advise("See: hikyaku list")),
            _ => Err(usage(format!("\"{which}\" begins more than one id")).advise("Give more digits")),
        }
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

impl Entry {
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

    fn is_moving(&self) -> bool {
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
    fn is_let_go(&self) -> bool {
        !self.phase().can_be_cancelled() || lock(&self.state).let_go
    }

    fn is_in_doubt(&self) -> bool {
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
    fn is_at_both(&self) -> bool {
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

    fn publish(&self, event: EventKind) {
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

fn usage(desc: String) -> Outcome {
    Outcome::new(Ending::Usage, Whereabouts::AsItWas, desc)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is plain data: whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(registry: &Registry, guest: &str) -> Result<Arc<Entry>, Outcome> {
        registry.enter(Id::random(), guest, Role::Source, Some("osaka"), Phase::Preparing)
    }

    #[test]
    fn one_guest_travels_once_at_a_time() {
        let registry = Registry::default();
        let first = entered(&registry, "web").unwrap();
        assert!(entered(&registry, "web").is_err());
        assert!(entered(&registry, "db").is_ok());
        first.finish(Phase::Failed, Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "x"));
        assert!(entered(&registry, "web").is_ok());
    }

    #[test]
    fn two_that_were_left_unfinished_are_both_taken_up() {
        let registry = Registry::default();
        let ids = [Id::random(), Id::random()];
        let phases = [Phase::Stopped, Phase::Ceded];
        for (id, phase) in ids.into_iter().zip(phases) {
            registry.take_up(id, "web", Role::Source, "osaka", phase);
        }
        assert!(registry.unfinished().iter().map(|entry| entry.id).eq(ids));
        assert!(entered(&registry, "web").is_err());
    }

    #[test]
    fn a_migration_is_found_by_id_beginning_and_guest() {
        let registry = Registry::default();
        let entry = entered(&registry, "web").unwrap();
        for which in [entry.id.to_string(), entry.id.short(), "web".into()] {
            assert_eq!(registry.find(&which).unwrap().id, entry.id);
        }
        assert!(registry.find("").is_err());
        assert!(registry.find("nobody").is_err());
    }

    #[test]
    fn cancelling_is_refused_once_the_guest_was_let_go() {
        let registry = Registry::default();
        let entry = entered(&registry, "web").unwrap();
        for phase in [Phase::Copying, Phase::Stopped, Phase::Ceded] {
            entry.advance(phase);
        }
        assert!(entry.cancel().unwrap_err().desc.contains("too late"));
        assert_eq!(entry.wished(), None);
    }

    #[tokio::test]
    async fn only_what_is_in_doubt_is_resolved_and_only_by_who_has_fenced_the_other_host() {
        let registry = Registry::default();
        let entry = entered(&registry, "web").unwrap();
        assert!(entry.resolve(Resolution::Here, true).unwrap_err().desc.contains("not in doubt"));
        for phase in [Phase::Copying, Phase::Stopped, Phase::Ceded] {
            entry.advance(phase);
        }
        assert!(entry.resolve(Resolution::Here, true).is_err(), "it may be answered at any moment");
        entry.set_outcome(Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, "nothing is heard"));
        assert_eq!(entry.resolve(Resolution::Here, false).unwrap_err().guest, Whereabouts::InDoubt);
        entry.resolve(Resolution::There, true).unwrap();
        assert_eq!(entry.resolved().await, Resolution::There);
    }

    #[test]
    fn what_is_not_set_stays_and_the_ended_cannot_be_set() {
        let registry = Registry::default();
        let entry = entered(&registry, "web").unwrap();
        entry.set_sharing(Some(Some(1_000_000)), None).unwrap();
        entry.set_urgent(true);
        entry.set_sharing(None, Some(Priority::Low)).unwrap();
        let sharing = Sharing { limit_bytes_per_s: Some(1_000_000), priority: Priority::Low };
        assert_eq!((entry.sharing(), entry.status().sharing), ((sharing, true), Some(sharing)));
        entry.set_sharing(Some(None), None).unwrap();
        assert_eq!(entry.sharing().0.limit_bytes_per_s, None);
        entry.finish(Phase::Failed, Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "x"));
        assert!(entry.set_sharing(Some(None), None).is_err());
    }

    #[test]
    fn an_outage_is_told_while_it_lasts_and_when_it_is_over() {
        let registry = Registry::default();
        let mut events = registry.subscribe();
        let entry = entered(&registry, "web").unwrap();
        entry.link_up();
        entry.link_down("nothing came", Duration::from_secs(600));
        let link = entry.status().link.unwrap();
        assert_eq!((link.down, link.why.as_str(), link.timeout_ms), (true, "nothing came", 600_000));
        entry.link_up();
        entry.link_down("closed", Duration::from_secs(600));
        entry.link_up();
        let link = entry.status().link.unwrap();
        assert_eq!((link.down, link.count), (false, 2));
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.event).collect();
        use EventKind::{LinkDown, LinkUp, Phase};
        assert_eq!(told, [Phase, LinkDown, LinkUp, LinkDown, LinkUp]);
        // Nobody seeks the peer of a migration that has ended.
        entry.link_down("closed", Duration::from_secs(600));
        entry.finish(super::Phase::Failed, Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "x"));
        assert_eq!(entry.status().link, None);
    }

    #[test]
    fn the_finished_are_forgotten_in_the_end() {
        let registry = Registry::default();
        for _ in 0..3 * FINISHED_KEPT {
            let entry = entered(&registry, "web").unwrap();
            entry.finish(Phase::Failed, Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, "x"));
        }
        assert!(registry.statuses().len() <= FINISHED_KEPT + 2);
    }
}
