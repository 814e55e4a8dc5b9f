//! First handshake messages that were seen: a recorded one is worth nothing, not even the work of opening it.
//!
//! Of a message its ephemeral key is kept, and only if the message opened under the key of a peer that may open links: so
//! nobody else can push it out again. Bounded; who has recorded more handshakes than are kept here costs the responder
//! one answer for each, and holds one of the places that the key has for its connections (`gate.rs`).

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

/// An ephemeral key, of which every handshake has its own.
type Ephemeral = [u8; 32];

/// Links are opened some times an hour; 32 KiB and the set.
const KEPT: usize = 1024;

#[derive(Default)]
pub struct Replays(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    set: HashSet<Ephemeral>,
    oldest_first: VecDeque<Ephemeral>,
}

impl Replays {
    pub fn was_seen(&self, ephemeral: &Ephemeral) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).set.contains(ephemeral)
    }

    /// False: it had been seen.
    pub fn note(&self, ephemeral: Ephemeral) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.set.insert(ephemeral) {
            return false;
        }
        seen.oldest_first.push_back(ephemeral);
        if seen.oldest_first.len() > KEPT
            && let Some(oldest) = seen.oldest_first.pop_front()
        {
            seen.set.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: usize) -> Ephemeral {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn what_was_noted_is_known_and_the_oldest_is_forgotten_when_there_is_no_room() {
        let replays = Replays::default();
        for n in 0..KEPT {
            assert!(!replays.was_seen(&numbered(n)));
            assert!(replays.note(numbered(n)));
            assert!(!replays.note(numbered(n)));
        }
        assert!((0..KEPT).all(|n| replays.was_seen(&numbered(n))));
        assert!(replays.note(numbered(KEPT)));
        assert!(!replays.was_seen(&numbered(0)) && replays.was_seen(&numbered(1)));
        assert_eq!(replays.0.lock().unwrap().set.len(), KEPT);
    }
}
