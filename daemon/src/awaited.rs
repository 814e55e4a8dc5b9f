//! What peers have said that they await, so that a guest that will be taken need not wait for being told so.
//!
//! ```text
//!  destination                              source
//!    hikyaku receive GUEST ── Awaits ──────▶  kept, by peer and guest
//!    not any more ─────────── AwaitsNoMore ─▶ forgotten
//!    ◀──────────────────────── WhoIsAwaited   of a link that was just made
//!                                             hikyaku migrate GUEST: its chunks go behind the question
//! ```
//! A hint, and nothing else: what it says may be old, and the destination's answer alone counts. Whoever is refused all the same has
//! moved nothing.

use crate::protocol::{self, GuestFacts, Note, PROTOCOL, Welcome};
use hikyaku_transport::{Node, PeerName};
use std::cell::RefCell;
use std::collections::HashMap;

/// Of one peer. Guests beyond that wait for their answers.
const MOST: usize = 256;

/// At the source.
#[derive(Default)]
pub struct Awaited(RefCell<HashMap<PeerName, HashMap<String, Welcome>>>);

impl Awaited {
    pub fn awaits(&self, peer: PeerName, guest: String, welcome: Welcome) {
        let mut by_peer = self.0.borrow_mut();
        let its = by_peer.entry(peer).or_default();
        if its.len() < MOST || its.contains_key(&guest) {
            its.insert(guest, welcome);
        }
    }

    pub fn no_more(&self, peer: &PeerName, guest: &str) {
        if let Some(its) = self.0.borrow_mut().get_mut(peer) {
            its.remove(guest);
        }
    }

    /// What the peer will answer, as far as it has said so, if it awaits this guest as it is. Good for one migration.
    pub fn take(&self, peer: &str, guest: &str, here: &GuestFacts) -> Option<Welcome> {
        let welcome = self.0.borrow_mut().get_mut(&PeerName::from(peer))?.remove(guest)?;
        (welcome.protocol == PROTOCOL && here.fits(&welcome.qemu)).then_some(welcome)
    }
}

/// At the destination: says it to a peer, if there is a link. One that does not hear of it asks, as everybody did.
pub fn tell(node: &Node, peer: &str, note: &Note) {
    let told = protocol::encode(note).is_ok_and(|note| node.note(&PeerName::from(peer), &note));
    tracing::debug!(%peer, ?note, told, "awaited");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    fn facts(ram_bytes: u64) -> GuestFacts {
        GuestFacts { version: (10, 0, 2), machine: "q35".into(), ram_bytes }
    }

    fn welcome(ram_bytes: u64) -> Welcome {
        let incarnation = Id([1; 16]);
        Welcome {
            protocol: PROTOCOL,
            incarnation,
            qemu: facts(ram_bytes),
            sends_ack: true,
            dictionary_slots: 7,
        }
    }

    #[test]
    fn a_guest_that_is_awaited_as_it_is_goes_ahead_once() {
        let awaited = Awaited::default();
        awaited.awaits("osaka".into(), "web".into(), welcome(1 << 30));
        assert_eq!(awaited.take("tokyo", "web", &facts(1 << 30)), None);
        assert_eq!(awaited.take("osaka", "db", &facts(1 << 30)), None);
        assert_eq!(awaited.take("osaka", "web", &facts(1 << 30)), Some(welcome(1 << 30)));
        assert_eq!(awaited.take("osaka", "web", &facts(1 << 30)), None);
        awaited.awaits("osaka".into(), "web".into(), welcome(1 << 30));
        assert_eq!(awaited.take("osaka", "web", &facts(1 << 29)), None, "it would be refused");
        awaited.awaits("osaka".into(), "web".into(), welcome(1 << 30));
        awaited.no_more(&"osaka".into(), "web");
        assert_eq!(awaited.take("osaka", "web", &facts(1 << 30)), None);
    }

    #[test]
    fn a_peer_that_awaits_everything_takes_little_memory() {
        let awaited = Awaited::default();
        for n in 0..10 * MOST {
            awaited.awaits("osaka".into(), n.to_string(), welcome(1));
        }
        assert_eq!(awaited.0.borrow()[&PeerName::from("osaka")].len(), MOST);
        awaited.awaits("osaka".into(), "1".into(), welcome(2));
        assert!(awaited.take("osaka", "1", &facts(2)).is_some(), "the newer word counts");
    }
}
