//! A packet as a TUN device with `IFF_VNET_HDR` gives it: perhaps a super-packet, which stands for many.
//!
//! ```text
//! virtio_net_hdr, 10 bytes, little-endian (TUNSETVNETLE)      IP packet
//!  0 flags        bit 0: checksum from csum_start is open      headers | payload = packets x gso_size, the last shorter
//!  1 gso_type     0 none, 1 TCP/IPv4, 4 TCP/IPv6, 5 UDP
//!  2 hdr_len      6 csum_start
//!  4 gso_size     8 csum_offset
//! ```
//!
//! [`Packet::cut`] writes a range of those packets as a packet (or super-packet) of its own, with the headers a real
//! sender would have put there: sequence number, lengths, IPv4 identification and checksum, flags that belong to
//! the first or last packet only. The transport checksum stays open, holding the pseudo-header's sum.
//!
//! Packets come from the kernel, but commands in a host may write anything to a raw socket: nothing is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

pub(super) const VNET_BYTES: usize = 10;
/// A super-packet of the largest size with its header; reads of less would cut it.
pub(super) const MAX_RAW_BYTES: usize = VNET_BYTES + 65_536;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Segments {
    /// It stands for itself.
    One,
    Tcp,
    Udp,
}

/// Bytes that are no packet this emulator carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("shorter than its headers")]
    Short,
    #[error("neither IPv4 nor IPv6")]
    NotIp,
    #[error("a super-packet of an unknown kind")]
    UnknownGso,
    #[error("a super-packet whose header contradicts it")]
    BadGso,
}

/// A packet read from a TUN device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    raw: &'a [u8],
    version: u8,
    segments: Segments,
    /// Start of the TCP or UDP header in the IP packet; 0 when there is one packet.
    transport: usize,
    /// IP and transport headers; 0 when there is one packet.
    headers: usize,
    /// Payload per packet; the whole packet when there is one.
    payload_each: usize,
}

impl<'a> Packet<'a> {
    pub fn parse(raw: &'a [u8]) -> Result<Self, Malformed> {
        let ip = raw.get(VNET_BYTES..).ok_or(Malformed::Short)?;
        let version = ip.first().ok_or(Malformed::Short)? >> 4;
        let ip_header = match version {
            4 => IPV4_HEADER_BYTES,
            6 => IPV6_HEADER_BYTES,
            _ => return Err(Malformed::NotIp),
        };
        if ip.len() < ip_header {
            return Err(Malformed::Short);
        }
        let segments = match (raw[1], version) {
            (GSO_NONE, _) => {
                let payload_each = ip.len();
                return Ok(Self {
                    raw,
                    version,
                    segments: Segments::One,
                    transport: 0,
                    headers: 0,
                    payload_each,
                });
            }
            (GSO_TCPV4, 4) | (GSO_TCPV6, 6) => Segments::Tcp,
            (GSO_UDP_L4, _) => Segments::Udp,
            _ => return Err(Malformed::UnknownGso),
        };
        let transport = le16(raw, 6);
        let payload_each = le16(raw, 4);
        if raw[0] & NEEDS_CSUM == 0 || transport < ip_header || payload_each == 0 {
            return Err(Malformed::BadGso);
        }
        let headers = transport
            + match segments {
                Segments::Tcp => {
                    let data_offset = ip.get(transport + 12).ok_or(Malformed::Short)?;
                    usize::from(data_offset >> 4) * 4
                }
                _ => UDP_HEADER_BYTES,
            };
        if segments == Segments::Tcp && headers < transport + TCP_HEADER_BYTES {
            return Err(Malformed::BadGso);
        }
        if ip.len() <= headers {
            return Err(Malformed::Short);
        }
        Ok(Self { raw, version, segments, transport, headers, payload_each })
    }

    /// Where it goes.
    pub fn destination(&self) -> IpAddr {
        let ip = self.ip();
        // `parse` has seen that the header is there.
        if self.version == 4 {
            let mut octets = [0; 4];
            octets.copy_from_slice(&ip[16..20]);
            IpAddr::V4(Ipv4Addr::from(octets))
        } else {
            let mut octets = [0; 16];
            octets.copy_from_slice(&ip[24..40]);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    }

    /// How many packets it stands for.
    pub fn packets(&self) -> usize {
        self.payload().div_ceil(self.payload_each)
    }

    /// IP bytes of packet `index`.
    pub fn ip_bytes(&self, index: usize) -> usize {
        self.headers + self.payload_each.min(self.payload() - index * self.payload_each)
    }

    /// Bytes that [`cut`](Self::cut) writes for this range.
    pub fn cut_bytes(&self, range: &Range<usize>) -> usize {
        let (from, to) = self.payload_range(range);
        VNET_BYTES + self.headers + (to - from)
    }

    /// Writes the packets of `range` as one packet into `out`, which is [`cut_bytes`](Self::cut_bytes) long.
    pub fn cut(&self, range: &Range<usize>, out: &mut [u8]) {
        if range.start == 0 && range.end == self.packets() {
            out.copy_from_slice(self.raw);
            return;
        }
        // Only a super-packet has a part, so there are headers.
        let (from, to) = self.payload_range(range);
        let ip = self.ip();
        let head = VNET_BYTES + self.headers;
        out[..head].copy_from_slice(&self.raw[..head]);
        out[head..].copy_from_slice(&ip[self.headers + from..self.headers + to]);

        let (vnet, cut) = out.split_at_mut(VNET_BYTES);
        put_le16(vnet, 2, self.headers);
        if range.len() == 1 {
            vnet[1] = GSO_NONE;
            put_le16(vnet, 4, 0);
        }
        self.set_ip(range, cut);
        self.set_transport(range, cut);
    }

    fn set_ip(&self, range: &Range<usize>, cut: &mut [u8]) {
        let len = cut.len();
        if self.version == 4 {
            put_be16(cut, 2, len);
            let id = usize::from(u16::from_be_bytes([cut[4], cut[5]]).wrapping_add(range.start as u16));
            put_be16(cut, 4, id);
            put_be16(cut, 10, 0);
            let header = (usize::from(cut[0] & 0x0f) * 4).clamp(IPV4_HEADER_BYTES, self.transport);
            let checksum = !fold(sum(&cut[..header]));
            put_be16(cut, 10, usize::from(checksum));
        } else {
            put_be16(cut, 4, len - IPV6_HEADER_BYTES);
        }
    }

    fn set_transport(&self, range: &Range<usize>, cut: &mut [u8]) {
        let transport = self.transport;
        let len = cut.len() - transport;
        let (protocol, checksum_at) = match self.segments {
            Segments::Udp => {
                put_be16(cut, transport + 4, len);
                (17, transport + 6)
            }
            _ => {
                let sequence = &mut cut[transport + 4..transport + 8];
                let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
                let moved = first.wrapping_add((range.start * self.payload_each) as u32);
                sequence.copy_from_slice(&moved.to_be_bytes());
                if range.end < self.packets() {
                    cut[transport + 13] &= !(TCP_FIN | TCP_PSH);
                }
                if range.start > 0 {
                    cut[transport + 13] &= !TCP_CWR;
                }
                (6, transport + 16)
            }
        };
        let addresses = if self.version == 4 { &cut[12..20] } else { &cut[8..40] };
        let pseudo = fold(sum(addresses) + protocol + len as u64);
        put_be16(cut, checksum_at, usize::from(pseudo));
    }

    pub fn ip(&self) -> &'a [u8] {
        &self.raw[VNET_BYTES..]
    }

    fn payload(&self) -> usize {
        self.raw.len() - VNET_BYTES - self.headers
    }

    fn payload_range(&self, range: &Range<usize>) -> (usize, usize) {
        let end = self.payload();
        ((range.start * self.payload_each).min(end), (range.end * self.payload_each).min(end))
    }
}

fn le16(from: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([from[at], from[at + 1]]))
}

/// `value` is a length or a checksum, below 64 Ki by the size of what was read.
fn put_le16(to: &mut [u8], at: usize, value: usize) {
    to[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

pub(super) fn put_be16(to: &mut [u8], at: usize, value: usize) {
    to[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Sum of 16-bit words, not yet folded.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low))).sum()
}

pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MSS: usize = 1448;

    /// A TCP super-packet as Linux makes it, with the timestamp option, FIN and PSH; payload counts up.
    pub(crate) fn tcp(version: u8, payload: usize, mss: usize) -> Vec<u8> {
        let ip_header = if version == 4 { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        let headers = ip_header + 32;
        let mut ip = vec![0; headers];
        ip.extend((0..payload).map(|i| (i / 7) as u8));
        ip_head(version, 6, &mut ip);
        let transport = ip_header;
        ip[transport + 4..transport + 8].copy_from_slice(&0xffff_f000_u32.to_be_bytes());
        ip[transport + 12] = 8 << 4;
        ip[transport + 13] = 0x10 | TCP_FIN | TCP_PSH | TCP_CWR;
        let gso = match version {
            4 => GSO_TCPV4,
            _ => GSO_TCPV6,
        };
        with_vnet(if payload > mss { gso } else { GSO_NONE }, headers, mss, transport, 16, ip)
    }

    pub(crate) fn udp(version: u8, payload: usize, each: usize) -> Vec<u8> {
        let ip_header = if version == 4 { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        let mut ip = vec![0; ip_header + UDP_HEADER_BYTES];
        ip.extend((0..payload).map(|i| (i / 7) as u8));
        ip_head(version, 17, &mut ip);
        let len = ip.len() - ip_header;
        put_be16(&mut ip, ip_header + 4, len);
        let gso = if payload > each { GSO_UDP_L4 } else { GSO_NONE };
        with_vnet(gso, ip_header + UDP_HEADER_BYTES, each, ip_header, 6, ip)
    }

    fn ip_head(version: u8, protocol: u8, ip: &mut [u8]) {
        let len = ip.len();
        if version == 4 {
            ip[0] = 0x45;
            put_be16(ip, 2, len);
            put_be16(ip, 4, 0xfffe);
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&[198, 18, 0, 1]);
            ip[16..20].copy_from_slice(&[198, 18, 0, 2]);
            let checksum = usize::from(!fold(sum(&ip[..20])));
            put_be16(ip, 10, checksum);
        } else {
            ip[0] = 0x60;
            put_be16(ip, 4, len - IPV6_HEADER_BYTES);
            ip[6] = protocol;
            ip[8..24].copy_from_slice(&Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1).octets());
            ip[24..40].copy_from_slice(&Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 2).octets());
        }
    }

    fn with_vnet(gso: u8, hdr: usize, size: usize, start: usize, offset: usize, ip: Vec<u8>) -> Vec<u8> {
        let mut raw = vec![0; VNET_BYTES];
        raw[0] = NEEDS_CSUM;
        raw[1] = gso;
        put_le16(&mut raw, 2, hdr);
        put_le16(&mut raw, 4, if gso == GSO_NONE { 0 } else { size });
        put_le16(&mut raw, 6, start);
        put_le16(&mut raw, 8, offset);
        raw.extend(ip);
        raw
    }

    fn cut(packet: &Packet<'_>, range: Range<usize>) -> Vec<u8> {
        let mut out = vec![0xaa; packet.cut_bytes(&range)];
        packet.cut(&range, &mut out);
        out
    }

    #[test]
    fn a_super_packet_counts_as_the_packets_it_stands_for() {
        let raw = tcp(4, 3 * MSS + 10, MSS);
        let packet = Packet::parse(&raw).unwrap();
        assert_eq!(packet.packets(), 4);
        assert_eq!((packet.ip_bytes(0), packet.ip_bytes(3)), (1500, 62));
        let raw = udp(6, 3 * 1000, 1000);
        let packet = Packet::parse(&raw).unwrap();
        assert_eq!((packet.packets(), packet.ip_bytes(2)), (3, 1048));
        let raw = tcp(6, 100, MSS);
        let packet = Packet::parse(&raw).unwrap();
        assert_eq!((packet.packets(), packet.ip_bytes(0)), (1, 172));
        assert_eq!(packet.destination(), "2001:2::2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn the_whole_range_is_the_packet_unchanged() {
        for raw in [tcp(4, 5000, MSS), tcp(6, 100, MSS), udp(4, 3000, 1000)] {
            let packet = Packet::parse(&raw).unwrap();
            assert_eq!(cut(&packet, 0..packet.packets()), raw);
        }
    }

    #[test]
    fn a_cut_tcp_packet_has_the_headers_a_sender_would_have_put_there() {
        for version in [4, 6] {
            let raw = tcp(version, 5 * MSS + 100, MSS);
            let packet = Packet::parse(&raw).unwrap();
            for range in [0..1, 0..3, 2..4, 5..6, 3..6] {
                let out = cut(&packet, range.clone());
                let piece = Packet::parse(&out).unwrap();
                assert_eq!(piece.packets(), range.len(), "{range:?}");
                assert_eq!(out[1] == GSO_NONE, range.len() == 1);
                let ip = &out[VNET_BYTES..];
                let at = packet.transport;
                check_ip(version, &raw, ip, range.start);
                let sequence = u32::from_be_bytes([ip[at + 4], ip[at + 5], ip[at + 6], ip[at + 7]]);
                assert_eq!(sequence, 0xffff_f000_u32.wrapping_add((range.start * MSS) as u32));
                let flags = ip[at + 13];
                assert_eq!(flags & (TCP_FIN | TCP_PSH) != 0, range.end == 6, "FIN and PSH only at the end");
                assert_eq!(flags & TCP_CWR != 0, range.start == 0, "CWR only at the start");
                check_transport(version, 6, at, at + 16, ip);
                let from = range.start * MSS;
                assert_eq!(
                    ip[packet.headers..],
                    packet.ip()[packet.headers + from..][..ip.len() - packet.headers]
                );
            }
        }
    }

    #[test]
    fn a_cut_udp_packet_has_its_own_length() {
        for version in [4, 6] {
            let raw = udp(version, 3 * 1200 + 1, 1200);
            let packet = Packet::parse(&raw).unwrap();
            for range in [0..1, 1..3, 3..4] {
                let out = cut(&packet, range.clone());
                let ip = &out[VNET_BYTES..];
                let at = packet.transport;
                check_ip(version, &raw, ip, range.start);
                assert_eq!(usize::from(u16::from_be_bytes([ip[at + 4], ip[at + 5]])), ip.len() - at);
                check_transport(version, 17, at, at + 6, ip);
            }
        }
    }

    fn check_ip(version: u8, raw: &[u8], ip: &[u8], first: usize) {
        if version == 4 {
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
            let id =
                u16::from_be_bytes([raw[VNET_BYTES + 4], raw[VNET_BYTES + 5]]).wrapping_add(first as u16);
            assert_eq!(u16::from_be_bytes([ip[4], ip[5]]), id);
            assert_eq!(fold(sum(&ip[..20])), 0xffff, "IPv4 header checksum");
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - IPV6_HEADER_BYTES);
        }
    }

    /// What an offloading card would do: the field holds the pseudo-header's sum, summed on with the segment.
    fn check_transport(version: u8, protocol: u64, at: usize, field: usize, ip: &[u8]) {
        let addresses = if version == 4 { &ip[12..20] } else { &ip[8..40] };
        let pseudo = fold(sum(addresses) + protocol + (ip.len() - at) as u64);
        assert_eq!(u16::from_be_bytes([ip[field], ip[field + 1]]), pseudo);
        let mut closed = ip.to_vec();
        let checksum = usize::from(!fold(sum(&ip[at..])));
        put_be16(&mut closed, field, checksum);
        assert_eq!(fold(sum(addresses) + protocol + (ip.len() - at) as u64 + sum(&closed[at..])), 0xffff);
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        assert_eq!(Packet::parse(&[]).unwrap_err(), Malformed::Short);
        assert_eq!(Packet::parse(&[0; VNET_BYTES]).unwrap_err(), Malformed::Short);
        assert_eq!(Packet::parse(&[0; 100]).unwrap_err(), Malformed::NotIp);
        let whole = tcp(4, 5000, MSS);
        for len in VNET_BYTES + 1..VNET_BYTES + 53 {
            assert_eq!(Packet::parse(&whole[..len]).unwrap_err(), Malformed::Short, "{len}");
        }
        let changed = |at: usize, value: u8| {
            let mut raw = tcp(4, 5000, MSS);
            raw[at] = value;
            Packet::parse(&raw).err()
        };
        assert_eq!(changed(1, 3), Some(Malformed::UnknownGso));
        assert_eq!(changed(1, GSO_TCPV6), Some(Malformed::UnknownGso));
        assert_eq!(changed(0, 0), Some(Malformed::BadGso));
        assert_eq!(changed(6, 3), Some(Malformed::BadGso));
        assert_eq!(changed(7, 0xff), Some(Malformed::Short));
        assert_eq!(changed(VNET_BYTES + 20 + 12, 0), Some(Malformed::BadGso));
    }
}
