//! The link emulator: network namespaces ("hosts") joined by a user-space long-fat link.
//!
//! It needs a TUN device and nothing else of the kernel: no `sch_netem`, no `tbf`, no bridge.
//! It models the path between two sites, not the sites: a host's own card is infinitely fast, there is no
//! reordering, no jitter, no cross traffic, no ECN marking, and (IPv4 and IPv6 apart) no other protocol crosses.
//!
//! ```text
//!  host a (netns)                        this process, one thread per host                     host b (netns)
//!  TCP ─▶ wan0 (TUN) ──read──▶ drop-tail queue ─▶ serialise at rate ─▶ loss ─▶ delay ──write──▶ wan0 (TUN) ─▶ TCP
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `profile` | what a link is: rate, round trip, queue, loss; the named links; parsing of units |
//! | `packet`  | a super-packet as the packets it stands for, and cutting a range of them out |
//! | `fifo`    | packets held in memory, in order |
//! | `path`    | one direction: queue, serialisation, loss, delay, in virtual time; no I/O |
//! | `reset`   | connections that are carried no more |
//! | `forward` | the thread that moves packets between TUN devices through the paths |
//! | `window`  | the most bytes in any 10 ms |
//! | `hosts`   | making the namespaces, commands inside them |
//! | `network` | builder, live changes, counters, teardown |
//! | `probe`   | small senders and receivers, run inside the hosts |
//! | `measure` | measuring a network with them |
//! | `check`   | the self-test: asked and measured |
//! | `cli`     | `cargo lab link` |
//!
//! Invariants:
//! * TUN devices carry super-packets (`IFF_VNET_HDR`, TSO, USO), but everything is charged, queued, lost and counted
//!   as the MTU-sized packets they stand for, each with its own headers and [`LINK_OVERHEAD_BYTES`].
//! * A packet is never delivered early. A super-packet is delivered when the *last* of its packets would have
//!   arrived; so that its first byte is not late by more than [`Emulation::piece`], it is cut before that.
//! * Packets of one direction of one pair of hosts stay in order.
//! * Namespaces have no name and devices are not persistent: when the process ends, however it ends, they are gone
//!   as soon as the last command inside them is.

mod check;
pub mod cli;
mod fifo;
mod forward;
mod hosts;
pub mod measure;
mod network;
mod packet;
mod path;
mod probe;
mod profile;
mod reset;
mod sys;
mod window;

pub use hosts::{Host, HostSettings};
pub use network::{BuildError, Builder, Counters, Link, Network};
pub use path::Emulation;
pub use profile::{
    Direction, ParseError, Profile, Queue, Rate, parse_bytes, parse_duration, parse_loss, parse_rate,
};
pub(crate) use sys::be_punctual;
pub use sys::{die_with_parent, pass_from_3};
pub use window::WINDOW;

/// What a packet costs on the wire beside its IP bytes: preamble 8, Ethernet header 14, frame check sequence 4.
pub const LINK_OVERHEAD_BYTES: u32 = 26;
/// MTU of the hosts' interfaces.
pub const MTU_BYTES: u32 = 1500;
/// TCP payload of a full packet: IPv4 and TCP headers and the timestamp option taken off.
pub const TCP_PAYLOAD_BYTES: u32 = MTU_BYTES - 20 - 20 - 12;
