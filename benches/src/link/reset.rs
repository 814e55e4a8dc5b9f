//! TCP connections that the path has stopped carrying: whoever still uses one is answered with a reset.
//!
//! It is what a firewall does whose state was lost, and needs to know nothing of a connection but its two ends:
//!
//! | a packet of the connection | becomes | its sequence number |
//! |---|---|---|
//! | enters the link | a reset to its sender | what the packet acknowledges: what its sender expects next |
//! | would leave the link | a reset to its receiver | the packet's own: what its receiver expects next, if nothing is missing before it |
//!
//! A receiver to which something is missing does not believe the second (RFC 5961) and asks; its question enters the link and gets
//! the first. A connection that is opened anew with the same ends is carried again.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::packet::{Packet, VNET_BYTES, fold, put_be16, sum};

const TCP: u8 = 6;
const TCP_HEADER_BYTES: usize = 20;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const HOP_LIMIT: u8 = 64;

/// The connections of a network that are not carried any more.
#[derive(Debug, Default)]
pub(super) struct Resets {
    /// Nearly always none: packets then cost no lock.
    any: AtomicBool,
    connections: Mutex<HashSet<[SocketAddr; 2]>>,
}

impl Resets {
    pub fn add(&self, ends: [SocketAddr; 2]) {
        self.lock().insert(key(ends));
        self.any.store(true, Ordering::Release);
    }

    /// Whether there are any at all.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// What the sender of a packet that enters gets in its place, if its connection is one of these.
    pub fn to_sender(&self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let segment = self.of_these(packet)?;
        // A reset is not answered.
        (segment.flags & RST == 0)
            .then(|| reset([segment.to, segment.from], segment.acknowledged, segment.next()))
    }

    /// What the receiver of a packet that would leave gets in its place, if its connection is one of these.
    pub fn to_receiver(&self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let segment = self.of_these(packet)?;
        Some(reset([segment.from, segment.to], segment.sequence, segment.acknowledged))
    }

    fn of_these(&self, packet: &Packet<'_>) -> Option<Segment> {
        if !self.any() {
            return None;
        }
        let segment = Segment::of(packet)?;
        let mut connections = self.lock();
        if segment.flags & (SYN | ACK) == SYN {
            connections.remove(&key([segment.from, segment.to]));
            self.any.store(!connections.is_empty(), Ordering::Release);
            return None;
        }
        connections.contains(&key([segment.from, segment.to])).then_some(segment)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<[SocketAddr; 2]>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same for both directions.
fn key(mut ends: [SocketAddr; 2]) -> [SocketAddr; 2] {
    ends.sort();
    ends
}

/// What a TCP packet says of itself.
#[derive(Debug, Clone, Copy)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload_bytes: u32,
}

impl Segment {
    /// `None`: not TCP, or no packet that a host's own TCP would make.
    fn of(packet: &Packet<'_>) -> Option<Segment> {
        let (ip, destination) = (packet.ip(), packet.destination());
        let (header, protocol, source): (usize, u8, IpAddr) = if destination.is_ipv4() {
            let source: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
            (usize::from(ip.first()? & 0x0f) * 4, *ip.get(9)?, source.into())
        } else {
            let source: [u8; 16] = ip.get(8..24)?.try_into().ok()?;
            (40, *ip.get(6)?, source.into())
        };
        let tcp = ip.get(header..).filter(|tcp| protocol == TCP && tcp.len() >= TCP_HEADER_BYTES)?;
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let payload = tcp.len().checked_sub(usize::from(tcp[12] >> 4) * 4)?;
        Some(Segment {
            from: SocketAddr::new(source, port(0)),
            to: SocketAddr::new(destination, port(2)),
            sequence: number(4),
            acknowledged: number(8),
            flags: tcp[13],
            payload_bytes: payload as u32,
        })
    }

    /// What its receiver would acknowledge.
    fn next(&self) -> u32 {
        self.sequence.wrapping_add(self.payload_bytes)
    }
}

/// A reset from one end to the other, as a TUN device takes it.
fn reset([from, to]: [SocketAddr; 2], sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut tcp = [0; TCP_HEADER_BYTES];
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12] = (TCP_HEADER_BYTES as u8 / 4) << 4;
    tcp[13] = RST | ACK;
    let mut raw = vec![0; VNET_BYTES];
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = [0; 20];
            ip[0] = 0x45;
            put_be16(&mut ip, 2, 20 + TCP_HEADER_BYTES);
            ip[8] = HOP_LIMIT;
            ip[9] = TCP;
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            let checksum = !fold(sum(&ip));
            put_be16(&mut ip, 10, usize::from(checksum));
            raw.extend(ip);
            VNET_BYTES + 12
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let mut ip = [0; 8];
            ip[0] = 0x60;
            put_be16(&mut ip, 4, TCP_HEADER_BYTES);
            ip[6] = TCP;
            ip[7] = HOP_LIMIT;
            raw.extend(ip);
            raw.extend(octets(from));
            raw.extend(octets(to));
            VNET_BYTES + 8
        }
    };
    let pseudo = sum(&raw[addresses..]) + u64::from(TCP) + TCP_HEADER_BYTES as u64;
    let checksum = !fold(pseudo + sum(&tcp));
    put_be16(&mut tcp, 16, usize::from(checksum));
    raw.extend(tcp);
    raw
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{tcp, udp};
    use super::*;

    fn ends(packet: &Packet<'_>) -> [SocketAddr; 2] {
        let segment = Segment::of(packet).unwrap();
        [segment.to, segment.from]
    }

    fn checksum_is_right(raw: &[u8], version: u8) -> bool {
        let ip = &raw[VNET_BYTES..];
        let (header, addresses) = if version == 4 { (20, 12..20) } else { (40, 8..40) };
        let pseudo = sum(&ip[addresses]) + u64::from(TCP) + (ip.len() - header) as u64;
        fold(pseudo + sum(&ip[header..])) == 0xffff && (version == 6 || fold(sum(&ip[..20])) == 0xffff)
    }

    #[test]
    fn a_packet_of_such_a_connection_becomes_a_reset_that_its_ends_believe() {
        for version in [4, 6] {
            let raw = tcp(version, 5000, 1448);
            let packet = Packet::parse(&raw).unwrap();
            let resets = Resets::default();
            assert!(resets.to_sender(&packet).is_none() && resets.to_receiver(&packet).is_none());
            resets.add(ends(&packet));
            let seen = Segment::of(&packet).unwrap();

            let back = resets.to_sender(&packet).unwrap();
            assert!(checksum_is_right(&back, version));
            let reset = Segment::of(&Packet::parse(&back).unwrap()).unwrap();
            assert_eq!((reset.from, reset.to, reset.flags), (seen.to, seen.from, RST | ACK));
            assert_eq!(reset.sequence, seen.acknowledged);
            assert_eq!(reset.acknowledged, seen.sequence.wrapping_add(5000));

            let on = resets.to_receiver(&packet).unwrap();
            assert!(checksum_is_right(&on, version));
            let reset = Segment::of(&Packet::parse(&on).unwrap()).unwrap();
            assert_eq!((reset.from, reset.to), (seen.from, seen.to));
            assert_eq!(reset.sequence, seen.sequence);
            assert!(resets.to_sender(&Packet::parse(&on).unwrap()).is_none(), "no reset answers a reset");
        }
    }

    #[test]
    fn other_packets_and_a_connection_opened_anew_pass() {
        let raw = tcp(4, 100, 1448);
        let resets = Resets::default();
        resets.add(ends(&Packet::parse(&raw).unwrap()));
        let datagram = udp(4, 100, 1000);
        assert!(resets.to_sender(&Packet::parse(&datagram).unwrap()).is_none());
        let mut other = raw.clone();
        other[VNET_BYTES + 20 + 1] ^= 1;
        assert!(resets.to_sender(&Packet::parse(&other).unwrap()).is_none(), "another port");

        let mut opening = raw.clone();
        opening[VNET_BYTES + 20 + 13] = SYN;
        assert!(resets.to_sender(&Packet::parse(&opening).unwrap()).is_none());
        assert!(resets.to_sender(&Packet::parse(&raw).unwrap()).is_none(), "it is carried again");
    }

    #[test]
    fn what_is_cut_short_is_nobody_s() {
        let raw = tcp(4, 100, 1448);
        for len in VNET_BYTES + 20..VNET_BYTES + 52 {
            if let Ok(packet) = Packet::parse(&raw[..len]) {
                assert!(Segment::of(&packet).is_none(), "{len}");
            }
        }
    }
}
