//! One line of log per second about connections that were turned away, whoever sends however many.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Calm(Mutex<Since>);

#[derive(Default)]
struct Since {
    last: Option<Instant>,
    unsaid: u64,
}

impl Calm {
    /// Says that the connection of `from` ended, and how many others did since the last line; or counts it.
    pub fn turned_away(&self, from: SocketAddr, why: impl Display) {
        if let Some(others) = self.due(Instant::now()) {
            tracing::info!(%from, %why, others, "connection turned away");
        }
    }

    fn due(&self, now: Instant) -> Option<u64> {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.last.is_some_and(|last| now < last + PAUSE) {
            since.unsaid += 1;
            return None;
        }
        since.last = Some(now);
        Some(std::mem::take(&mut since.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_one_line_per_second_with_a_count() {
        let (calm, began) = (Calm::default(), Instant::now());
        let lines: Vec<_> =
            (0..10_000).filter_map(|ms| calm.due(began + Duration::from_millis(ms))).collect();
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], 0);
        assert!(lines[1..].iter().all(|others| *others == 999));
    }
}
