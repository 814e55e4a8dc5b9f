//! What a peer is: something that moves a guest from one host to another.
//!
//! A kind of peer is a file beside this one. It implements [`Peer`], which is a name and what has to be set up on the hosts, and
//! [`Carrier`], which moves one guest. [`named`] knows all of them.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::ours::Ours;
use super::stock::Stock;
use crate::guest::Qemu;
use crate::link::Network;
use crate::site::Programs;
use crate::travel::POLICIES;

/// The hosts: the guest is on the first, and goes to the second.
pub const HOSTS: [&str; 2] = ["tokyo", "seattle"];
/// What the operator asks for, whoever moves the guest.
pub const DOWNTIME: Duration = Duration::from_millis(300);
/// The name of ours, with its own policy.
pub const OURS: &str = "hikyaku";
/// Those that are compared with unless others are asked for.
pub const PEERS: [&str; 4] = ["qemu", "qemu-xbzrle", "qemu-multifd", "qemu-multifd-zstd"];

pub trait Peer {
    fn name(&self) -> &str;

    /// Makes everything on the hosts that is there before a guest moves. It ends with what is returned.
    fn set_up(&self, network: &Network) -> anyhow::Result<Box<dyn Carrier>>;
}

pub trait Carrier {
    /// What has to be said before a guest can be moved into `there`, which waits (`-incoming defer`). It takes its time, and the guest is to be asked
    /// to move at one age, whoever moves it.
    fn prepare(&mut self, here: &mut Qemu, there: &mut Qemu) -> anyhow::Result<()>;

    /// Moves the guest of `here` into `there`. A move that is not over after `limit` is called
    /// off. `Err`: it failed; where the guest is has to be looked up.
    fn carry(&mut self, here: &mut Qemu, there: &mut Qemu, limit: Duration) -> anyhow::Result<Carried>;

    /// CPU time so far of what is ours, at the source and at the destination.
    fn cpu_time(&self) -> anyhow::Result<Option<[Duration; 2]>> {
        Ok(None)
    }

    /// The congestion control that carried it. It is asked after the move and may use the link.
    fn congestion(&self, network: &Network) -> anyhow::Result<String>;
}

/// How a move ended.
#[derive(Debug, Clone)]
pub struct Carried {
    /// When it was asked for.
    pub begun: Instant,
    /// When it was over: the guest runs at the destination and the source has let go, or it was called off.
    pub ended: Instant,
    pub guest: Whereabouts,
    /// The mover's own account of it, if it gives one: for the JSON file, where what it predicted lies beside what was seen.
    pub said: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// At the destination.
    There,
    /// Still at the source.
    Here,
}

/// As a peer: nobody.
const NONE: &str = "none";

/// Ours first, then those that are asked for; each once.
pub fn with_ours(asked: &[String]) -> Vec<String> {
    let mut names = vec![OURS.to_owned()];
    for name in asked {
        if name != NONE && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Wrong names are noticed before anything is built.
pub fn check(names: &[String]) -> anyhow::Result<()> {
    names.iter().try_for_each(|name| kind(name).map(drop))
}

/// The peer of this name, for a guest of so much memory.
pub fn named(name: &str, memory_mib: u32, programs: &Programs) -> anyhow::Result<Box<dyn Peer>> {
    Ok(match kind(name)? {
        Kind::Ours(policy) => Box::new(Ours::new(name, policy, programs.clone())),
        Kind::Stock => Box::new(Stock::named(name, memory_mib).context("a stock QEMU")?),
    })
}

enum Kind<'a> {
    /// With this policy.
    Ours(&'a str),
    Stock,
}

fn kind(name: &str) -> anyhow::Result<Kind<'_>> {
    let policy = match name.strip_prefix(OURS) {
        Some("") => POLICIES.first().copied(),
        Some(rest) => rest.strip_prefix(':').filter(|policy| POLICIES.contains(policy)),
        None => None,
    };
    match policy {
        Some(policy) => Ok(Kind::Ours(policy)),
        None if PEERS.contains(&name) => Ok(Kind::Stock),
        None => bail!(
            "no peer is called {name:?}; there are: {}, {OURS}, and {OURS}:POLICY with one of {}",
            PEERS.join(", "),
            POLICIES.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn ours_is_always_there_and_nobody_twice() {
        assert_eq!(with_ours(&list(&["qemu", "hikyaku", "qemu"])), list(&["hikyaku", "qemu"]));
    }

    #[test]
    fn every_peer_and_policy_has_a_name_and_others_have_none() {
        check(&with_ours(&list(&PEERS))).unwrap();
        check(&list(&["hikyaku:xen-3", "hikyaku:adaptive"])).unwrap();
        for wrong in ["qemu-tape", "hikyaku:", "hikyaku:guess", "hikyakuadaptive", ""] {
            assert!(check(&list(&[wrong])).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_stock_qemu_is_known_by_every_name_in_the_list() {
        for name in PEERS {
            assert!(Stock::named(name, 512).is_some(), "{name}");
        }
    }
}
