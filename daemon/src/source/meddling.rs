//! Somebody else who continues a guest that we hold stopped.
//!
//! Until GO the guest is the source's, and runs on as that somebody wants; after GO it may run at the destination, and is stopped again at once.

use super::guest::SourceGuest;
use hikyaku_qemu::qmp::Events;

/// Listens from the stop on.
pub struct Meddling(Option<Events>);

impl Meddling {
    /// Nobody is listened to yet.
    pub fn none() -> Meddling {
        Meddling(None)
    }

    pub fn begin(guest: &SourceGuest) -> Meddling {
        Meddling(Some(guest.qmp.events()))
    }

    /// It was continued, and nobody has been told of that yet.
    pub fn seen(&mut self) -> bool {
        let Some(events) = &mut self.0 else { return false };
        std::iter::from_fn(|| events.try_next()).any(|event| event.name == RESUMED)
    }

    /// Returns when it is continued; never, if that cannot be heard.
    pub async fn next(&mut self) {
        if let Some(events) = &mut self.0 {
            while let Some(event) = events.next().await {
                if event.name == RESUMED {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}

const RESUMED: &str = "RESUME";
