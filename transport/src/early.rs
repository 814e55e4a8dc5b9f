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

#[derive(Default)]
pub struct Early {
    /// By session and number: a chunk may come twice, when the connection dies that it came on.
    waiting: BTreeMap<(u32, u64), (u64, Vec<u8>)>,
    charged: u64,
}

impl Early {
    /// Keeps a chunk. `Err`: that was more than `most`.
    pub fn keep(&mut self, session: u32, (seq, after, payload): Chunk, most: u64) -> Result<(), String> {
        let cost = charge(payload.len());
        let Entry::Vacant(place) = self.waiting.entry((session, seq)) else { return Ok(()) };
        if self.charged + cost > most {
            return Err(format!("session {session}: more was sent ahead of the answer than was agreed"));
        }
        self.charged += cost;
        place.insert((after, payload));
        Ok(())
    }

    /// What came of a session that is accepted now, in order.
    pub fn take(&mut self, session: u32) -> Vec<Chunk> {
        let later = self.waiting.split_off(&(session, 0));
        let (its, others) = later.into_iter().partition::<Vec<_>, _>(|((of, _), _)| *of == session);
        self.waiting.extend(others);
        let its: Vec<Chunk> =
            its.into_iter().map(|((_, seq), (after, payload))| (seq, after, payload)).collect();
        self.charged -= its.iter().map(|(_, _, payload)| charge(payload.len())).sum::<u64>();
        its
    }

    /// Only these sessions may still be accepted.
    pub fn retain(&mut self, may_come: impl Fn(u32) -> bool) {
        let charged = &mut self.charged;
        self.waiting.retain(|(session, _), (_, payload)| {
            let stays = may_come(*session);
            if !stays {
                *charged -= charge(payload.len());
            }
            stays
        });
    }
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
        early.retain(|session| session != 7);
        assert!(keep(&mut early, 9, 2) && !keep(&mut early, 9, 3));
        assert_eq!(early.take(1).len() + early.take(9).len(), 4);
        assert_eq!(early.charged, 0);
    }
}
