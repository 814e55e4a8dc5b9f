//! The laboratory: what hikyaku is measured with, and nothing the daemon needs.
//!
//! | module | what it gives |
//! |---|---|
//! | [`link`] | hosts (network namespaces) joined by an emulated long-fat link |
//! | [`guest`] | the bare-metal test guest and a QEMU that runs it |
//! | [`pipeline`] | GB/s per core of each stage a page goes through |
//! | [`site`] | daemons at the ends of a link |
//! | [`travel`] | a guest that is moved again and again, and what each move cost |
//! | [`compare`] | hikyaku beside its peers, the same guest over the same link |
//! | [`floor`] | what no move of a guest over a link can be faster than |
//! | [`bytes`] | what a move puts on the wire, encoding by encoding, beside an oracle's |
//! | [`switchover`] | the fast switch-over beside the safe one |
//! | [`gap`] | how long a guest is silent that is moved over a link whose queue is full |
//! | [`memory`] | what the daemons hold while a guest moves, beside their budgets |
//! | [`transport`] | the transport beside plain TCP, and the criteria it has to meet |
//! | [`goodput`] | the same transport with a fixed volume |
//! | [`sim`] | a whole move in virtual time, on the engine itself |
//! | [`soak`] | a guest that goes there and back, many times |
//! | [`libvirt`] | a guest that belongs to libvirt |
//! | `verdict` | criteria, medians, spreads |
//! | [`steady`] | claims about time, judged only while the machine gives the time |
//! | [`demo`] | a guest that crosses an ocean and comes back |
//! | [`cli`] | `cargo lab …` |
//!
//! Only tests may depend on this crate.
#![deny(unsafe_code)]

pub mod backed;
pub mod bench;
pub mod bytes;
mod child;
pub mod cli;
pub mod compare;
pub mod demo;
pub mod floor;
pub mod gap;
pub mod goodput;
pub mod guest;
pub mod libvirt;
pub mod link;
pub mod memory;
pub mod pipeline;
pub mod sim;
pub mod site;
pub mod soak;
pub mod steady;
pub mod switchover;
pub mod transport;
pub mod travel;
pub mod verdict;

// What the test guest's pages hold, from its own program; the three know each other by these names.
#[path = "../guest/page.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod page;
#[path = "../guest/rng.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod rng;
#[path = "../guest/text.rs"]
mod text;
