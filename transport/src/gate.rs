//! Bounds what peers that have not authenticated can hold: connections in all, and per address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Gate {
    inside: Mutex<Inside>,
    most: usize,
    most_per_address: usize,
}

#[derive(Default)]
struct Inside {
    total: usize,
    /// Only addresses with connections inside.
    by_address: HashMap<IpAddr, usize>,
}

/// A place inside, given back on drop.
pub struct Ticket {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { inside: Mutex::default(), most, most_per_address })
    }

    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Ticket> {
        let address = group(address);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let from_there = inside.by_address.get(&address).copied().unwrap_or(0);
        if inside.total >= self.most || from_there >= self.most_per_address {
            return None;
        }
        inside.total += 1;
        inside.by_address.insert(address, from_there + 1);
        Some(Ticket { gate: self.clone(), address })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.total -= 1;
        if let Some(count) = inside.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                inside.by_address.remove(&self.address);
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

    #[test]
    fn places_are_counted_per_address_and_in_all() {
        let gate = Gate::new(3, 2);
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "::ffff:192.0.2.1".parse().unwrap()];
        let first = gate.enter(a).unwrap();
        let _second = gate.enter(b).unwrap();
        assert!(gate.enter(a).is_none(), "the same host by another spelling");
        let _third = gate.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert!(gate.enter("2001:db8::2".parse().unwrap()).is_none(), "full");
        drop(first);
        assert!(gate.enter(a).is_some());
    }

    #[test]
    fn a_slash_64_is_one_address() {
        let gate = Gate::new(10, 1);
        let _one = gate.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert!(gate.enter("2001:db8::2".parse().unwrap()).is_none());
        assert!(gate.enter("2001:db8:0:1::2".parse().unwrap()).is_some());
    }
}
