//! Chunks that came before their session was answered.
//!
//! A sender that knows it is awaited need not stand idle for the round trip that an answer takes: it sends what is agreed for the
//! link (`Started::early_bytes`) behind its question. Lanes and the control connection race, so a chunk may even come before the
//! question. What came waits here until the session is accepted, and is forgotten when it is not.
//!
//! Invariant: what waits, with its overhead, never passes what was agreed; a peer that sends more has broken the protocol.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::session::charge;

/// A chunk's number, what is to be applied before it, and its payload.
pub type Chunk = (u64, u64, Vec<u8>);

/// By number: a chunk may come twice, when the connection dies that it came on.
type Came = BTreeMap<u64, (u64, Vec<u8>)>;

#[derive(Default)]
pub struct Early {
    waiting: BTreeMap<u32, Came>,
    charged: u64,
}

impl Early {
    /// Keeps a chunk. `Err`: that was more than `most`.
    pub fn keep(&mut self, session: u32, (seq, after, payload): Chunk, most: u64) -> Result<(), String> {
        let cost = charge(payload.len());
        let fits = self.charged + cost <= most;
        let too_much =
            || Err(format!("session {session}: more was sent ahead of the answer than was agreed"));
        let came = match self.waiting.entry(session) {
            Entry::Occupied(came) => came.into_mut(),
            Entry::Vacant(_) if !fits => return too_much(),
            Entry::Vacant(place) => place.insert(Came::new()),
        };
        match came.entry(seq) {
            Entry::Occupied(_) => return Ok(()),
            Entry::Vacant(_) if !fits => return too_much(),
            Entry::Vacant(place) => place.insert((after, payload)),
        };
        self.charged += cost;
        Ok(())
    }

    /// What came of a session that is accepted now, in order.
    pub fn take(&mut self, session: u32) -> Vec<Chunk> {
        let came = self.waiting.remove(&session).unwrap_or_default();
        self.charged -= cost(&came);
        came.into_iter().map(|(seq, (after, payload))| (seq, after, payload)).collect()
    }

    /// Of the sessions up to `highest` only these may still be accepted. It takes no longer than there are such, and what is forgotten: a
    /// peer says when it is called.
    pub fn forget(&mut self, highest: u32, but: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self
            .waiting
            .range(..=highest)
            .map(|(session, _)| *session)
            .filter(|session| !but(*session))
            .collect();
        for session in gone {
            self.take(session);
        }
    }
}

fn cost(came: &Came) -> u64 {
    came.values().map(|(_, payload)| charge(payload.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 400;

    fn keep(early: &mut Early, session: u32, seq: u64) -> bool {
        early.keep(session, (seq, seq - 1, vec![session as u8; 36]), MOST).is_ok()
    }

    #[test]
    fn what_waits_is_bounded_and_makes_room_when_it_goes() {
        let mut early = Early::default();
        assert!((1..=4).all(|seq| keep(&mut early, 1 + seq as u32 % 2, seq)));
        assert!(!keep(&mut early, 3, 1), "four of 100 bytes");
        assert!(keep(&mut early, 2, 3), "a second time");
        let came = early.take(2);
        assert_eq!(came, [(1, 0, vec![2; 36]), (3, 2, vec![2; 36])]);
        assert_eq!(early.take(2), []);
        assert!(keep(&mut early, 7, 1) && keep(&mut early, 9, 1) && !keep(&mut early, 9, 2));
        early.forget(8, |session| session != 7);
        assert!(keep(&mut early, 9, 2) && !keep(&mut early, 9, 3));
        early.forget(8, |_| true);
        assert_eq!(early.take(1).len() + early.take(9).len(), 4);
        assert_eq!(early.charged, 0);
    }
}
