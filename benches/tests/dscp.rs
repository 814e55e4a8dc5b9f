//! What the network sees of `sockets.dscp`: every packet that goes to and comes from a peer has it, the very first as well.
//!
//! Needs root: threads of this process enter the hosts.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hikyaku_lab::link::{Link, Profile};
use hikyaku_transport::{Acceptor, Incoming, Node, NodeConfig, Peer, PeerName, StaticKey};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const DSCP: u8 = 10;
const PORT: u16 = 4707;
const TCP: u8 = 6;
const SYN: u8 = 2;

struct Door;

impl Acceptor for Door {
    fn open(&self, _: &PeerName, _: Vec<u8>, _: Incoming) {}
}

/// A TCP packet over IPv4 that goes to or comes from the node's port.
struct Seen {
    to_node: bool,
    first: bool,
    dscp: u8,
}

fn seen(packet: &[u8]) -> Option<Seen> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    if packet[0] >> 4 != 4 || *packet.get(9)? != TCP {
        return None;
    }
    let tcp = packet.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let to_node = port(2)? == PORT;
    (to_node || port(0)? == PORT).then_some(Seen {
        to_node,
        first: tcp.get(13)? & SYN != 0,
        dscp: packet[1] >> 2,
    })
}

#[test]
fn every_packet_of_a_link_has_the_code_point_both_ways() {
    let network = Link::builder().profile(Profile::named("lan").unwrap()).build().unwrap();
    let (a, b) = (network.host("a"), network.host("b"));
    let tap = b
        .within(|| socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthAll))
        .unwrap()
        .unwrap();
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::milliseconds(300)).unwrap();

    let keys = [(); 2].map(|()| StaticKey::generate().unwrap());
    let node = |own: usize, addresses: Vec<String>, listen: Vec<String>| {
        let mut config = NodeConfig::new(keys[own].clone());
        config.sockets.dscp = Some(DSCP);
        config.listen = listen.iter().map(|address| address.parse().unwrap()).collect();
        config.peers = vec![Peer {
            name: "other".into(),
            may_send: addresses.is_empty(),
            may_receive: !addresses.is_empty(),
            addresses,
            public_key: keys[1 - own].public(),
        }];
        Node::start(config, Arc::new(Door)).unwrap()
    };
    let address = format!("{}:{PORT}", b.ip4());
    let _there = b.within(|| node(1, vec![], vec![address.clone()])).unwrap();
    let here = a.within(|| node(0, vec![address], vec![])).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let link = runtime.block_on(here.link(&"other".into())).unwrap();
    runtime.block_on(link.warm_up()).unwrap();

    let (mut counts, begun, mut bytes) = ([[0; 2]; 2], Instant::now(), [0; 65536]);
    while let Ok(length) = recv(tap.as_raw_fd(), &mut bytes, MsgFlags::empty())
        && begun.elapsed() < Duration::from_secs(3)
    {
        if let Some(seen) = seen(&bytes[..length]) {
            assert_eq!(seen.dscp, DSCP, "to the node: {}, of the handshake: {}", seen.to_node, seen.first);
            counts[usize::from(seen.to_node)][usize::from(seen.first)] += 1;
        }
    }
    assert!(counts.iter().flatten().all(|count| *count > 0), "{counts:?}");
}
