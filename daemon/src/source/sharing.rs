//! How a migration shares the link: what was asked for, applied to its session whenever it changes.

use crate::api::wire::{Priority, Sharing};
use crate::registry::Entry;
use hikyaku_transport::{Share, TxSession};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Applies what the entry says, now and as it changes, until dropped.
pub struct Follower {
    session: TxSession,
    entry: Arc<Entry>,
    task: JoinHandle<()>,
}

impl Follower {
    pub fn start(session: TxSession, entry: Arc<Entry>) -> Follower {
        let mut changes = entry.sharing_changes();
        apply(&session, &entry);
        let (follows, of) = (session.clone(), entry.clone());
        let task = tokio::task::spawn_local(async move {
            while changes.changed().await.is_ok() {
                apply(&follows, &of);
            }
        });
        Follower { session, entry, task }
    }

    /// While a guest stands still for it, a migration goes before all that are not. Its limit holds all the same.
    pub fn hurry(&self, urgent: bool) {
        self.entry.set_urgent(urgent);
        // Not when the task comes to it: every chunk counts from now on.
        apply(&self.session, &self.entry);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn apply(session: &TxSession, entry: &Entry) {
    let share = share(entry);
    session.set_limit(share.limit_bytes_per_s);
    session.set_priority(share.priority);
}

/// What its session begins with, so that the link is not warmed past it.
pub fn share(entry: &Entry) -> Share {
    let (sharing, urgent) = entry.sharing();
    Share { limit_bytes_per_s: sharing.limit_bytes_per_s, priority: priority(sharing, urgent) }
}

fn priority(sharing: Sharing, urgent: bool) -> hikyaku_transport::Priority {
    match sharing.priority {
        _ if urgent => hikyaku_transport::Priority::Urgent,
        Priority::Low => hikyaku_transport::Priority::Low,
        Priority::Normal => hikyaku_transport::Priority::Normal,
        Priority::High => hikyaku_transport::Priority::High,
    }
}
