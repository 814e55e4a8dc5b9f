//! Bounds what peers that have not authenticated can hold: connections in all, and per address.
//!
//! Nobody is refused for want of a place: whoever comes takes the place of the one that waits longest, of its own address
//! first. A flood so only drives out itself: a peer's first flight arrives with its connection, and once it has opened,
//! the peer's place cannot be taken any more ([`Ticket::vouch`]). A lane's connection that waits for its link's handshake can be driven
//! out; it is dialled again then, and speaks at once.
//!
//! Invariants: at most `most` connections wait, at most `most_per_address` of them from one IPv4 address or IPv6 /64; at most
//! [`VOUCHED_PER_KEY`] connections per key are vouched for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::key::PublicKey;

/// A peer that reaches for a link again has some connections on their way, and goes on with the first that answers. All of
/// them may come at once, after an outage: the next must not drive out the one that the peer goes on with. More than
/// `keep::ATTEMPTS_AT_ONCE`.
const VOUCHED_PER_KEY: usize = 16;

pub struct Gate {
    inside: Mutex<Inside>,
    most: usize,
    most_per_address: usize,
}

/// Places by number: who came later has the higher.
#[derive(Default)]
struct Inside {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Only addresses that have connections waiting.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    /// The latest last.
    vouched: HashMap<PublicKey, VecDeque<(u64, Arc<Notify>)>>,
}

struct Waiting {
    address: IpAddr,
    leave: Arc<Notify>,
}

/// A place inside, given back on drop.
pub struct Ticket {
    gate: Arc<Gate>,
    place: u64,
    vouched_for: Option<PublicKey>,
    leave: Arc<Notify>,
}

impl Gate {
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { inside: Mutex::default(), most, most_per_address })
    }

    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Ticket {
        let address = group(address);
        let mut inside = self.lock();
        let own = inside.by_address.get(&address);
        let oldest = if own.is_some_and(|own| own.len() >= self.most_per_address) {
            own.and_then(|own| own.first().copied())
        } else if inside.waiting.len() >= self.most {
            inside.waiting.keys().next().copied()
        } else {
            None
        };
        if let Some(waiting) = oldest.and_then(|place| inside.take_out(place)) {
            waiting.leave.notify_one();
        }
        let place = inside.next;
        inside.next += 1;
        let leave = Arc::new(Notify::new());
        inside.waiting.insert(place, Waiting { address, leave: leave.clone() });
        inside.by_address.entry(address).or_default().insert(place);
        Ticket { gate: self.clone(), place, vouched_for: None, leave }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn take_out(&mut self, place: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&place)?;
        if let Some(own) = self.by_address.get_mut(&waiting.address) {
            own.remove(&place);
            if own.is_empty() {
                self.by_address.remove(&waiting.address);
            }
        }
        Some(waiting)
    }
}

impl Ticket {
    /// Completes when another connection took the place: then this one has to end.
    pub fn driven_out(&self) -> impl Future<Output = ()> + use<> {
        let leave = self.leave.clone();
        async move { leave.notified().await }
    }

    /// The connection has shown what only the holder of `key` can have made just now. From here on only the same key's
    /// later connections take its place.
    pub fn vouch(&mut self, key: PublicKey) {
        let mut inside = self.gate.lock();
        // Driven out at the same moment: it stays so.
        if inside.take_out(self.place).is_none() {
            return;
        }
        self.vouched_for = Some(key);
        let own = inside.vouched.entry(key).or_default();
        own.push_back((self.place, self.leave.clone()));
        if own.len() > VOUCHED_PER_KEY
            && let Some((_, oldest)) = own.pop_front()
        {
            oldest.notify_one();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        inside.take_out(self.place);
        if let Some(key) = self.vouched_for
            && let Some(own) = inside.vouched.get_mut(&key)
        {
            own.retain(|(place, _)| *place != self.place);
            if own.is_empty() {
                inside.vouched.remove(&key);
            }
        }
    }
}

/// One subscriber has a whole IPv6 /64.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn has_to_leave(ticket: &Ticket) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(ticket.driven_out()).poll(&mut context) == Poll::Ready(())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn whoever_comes_takes_the_place_of_who_waits_longest() {
        let gate = Gate::new(2, 2);
        let first = gate.enter(ip("192.0.2.1"));
        let second = gate.enter(ip("192.0.2.2"));
        assert!(!has_to_leave(&first));
        let third = gate.enter(ip("192.0.2.3"));
        assert!(has_to_leave(&first) && !has_to_leave(&second) && !has_to_leave(&third));
        // The place of who left by himself is free.
        drop(second);
        let fourth = gate.enter(ip("192.0.2.4"));
        assert!(!has_to_leave(&third) && !has_to_leave(&fourth));
    }

    #[test]
    fn an_address_that_has_its_share_drives_out_its_own() {
        let gate = Gate::new(10, 2);
        let elsewhere = gate.enter(ip("2001:db8::1"));
        let mine = [gate.enter(ip("192.0.2.1")), gate.enter(ip("::ffff:192.0.2.1"))];
        let another = gate.enter(ip("192.0.2.1"));
        assert!(!has_to_leave(&elsewhere), "older, but of another address");
        assert!(has_to_leave(&mine[0]), "the same host by another spelling");
        assert!(!has_to_leave(&mine[1]) && !has_to_leave(&another));
    }

    #[test]
    fn a_slash_64_is_one_address() {
        let gate = Gate::new(10, 1);
        let one = gate.enter(ip("2001:db8::1"));
        let beside = gate.enter(ip("2001:db8:0:1::2"));
        let _two = gate.enter(ip("2001:db8::2"));
        assert!(has_to_leave(&one) && !has_to_leave(&beside));
    }

    #[test]
    fn who_is_vouched_for_gives_way_to_nobody_but_itself() {
        let gate = Gate::new(2, 2);
        let mut peer = gate.enter(ip("192.0.2.1"));
        peer.vouch(key(1));
        let flood: Vec<_> = (0..100).map(|_| gate.enter(ip("192.0.2.1"))).collect();
        assert!(!has_to_leave(&peer));
        assert_eq!(flood.iter().filter(|ticket| has_to_leave(ticket)).count(), 98);
        let mut other = gate.enter(ip("192.0.2.1"));
        other.vouch(key(2));
        assert!(!has_to_leave(&peer));
        let vouched_again = || {
            let mut again = gate.enter(ip("192.0.2.1"));
            again.vouch(key(1));
            again
        };
        let mut again: Vec<_> = (1..VOUCHED_PER_KEY).map(|_| vouched_again()).collect();
        assert!(!has_to_leave(&peer), "not yet so many");
        again.push(vouched_again());
        assert!(has_to_leave(&peer) && !again.iter().any(has_to_leave) && !has_to_leave(&other));
        // What the older one leaves behind is not the newer one's.
        drop(peer);
        assert_eq!(gate.lock().vouched.len(), 2);
        drop((again, other, flood));
        let inside = gate.lock();
        assert!(inside.vouched.is_empty() && inside.waiting.is_empty() && inside.by_address.is_empty());
    }
}
