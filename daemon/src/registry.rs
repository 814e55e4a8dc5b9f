//! The migrations this daemon has in hand, and the last ones it finished: what `list`, `status` and events show.
//!
//! It tells; it decides nothing. Each migration changes only its own [`Entry`].

mod entry;

pub use entry::{Entry, WaitsForHook, Wish};

use crate::api::wire::{Event, EventKind, Role, Status};
use crate::id::Id;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use entry::{lock, usage};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::broadcast;

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
        let entry = Arc::new(Entry::new(id, guest, role, peer, phase, self.events.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::{Priority, Resolution, Sharing};
    use std::time::Duration;

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
