//! The two ends of a transfer, each a node of the transport in a process of its own: what `lab bench transport end` is.
//!
//! An end reads its [`Plan`] from the standard input and says [`Said`] on the standard output. It waits without bounds where
//! the other end's silence is meant: who started both bounds them.

mod receive;
mod send;
mod usage;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use hikyaku_transport::{
    Congestion, NodeConfig, Payload, Peer, PeerName, PublicKey, StaticKey, Suite, Suites, keep_freed_buffers,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::plan::{Plan, Role, Said};

/// What each end calls the other.
const OTHER: &str = "other";

pub fn run() -> anyhow::Result<()> {
    // As the daemon does.
    keep_freed_buffers();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line).context("no plan on the standard input")?;
    match plan.role {
        Role::Receive => receive::receive(&plan),
        Role::Send => send::send(&plan),
    }
}

/// The transport's defaults, but for what the plan says.
fn config(plan: &Plan) -> anyhow::Result<NodeConfig> {
    let manner = &plan.manner;
    let mut config = NodeConfig::new(StaticKey::from_text(plan.secret_key.trim())?);
    let public_key: PublicKey = plan.peer.parse()?;
    let sends = plan.role == Role::Receive;
    let addresses = if sends { Vec::new() } else { vec![plan.address.to_string()] };
    let name = PeerName::from(OTHER);
    config.peers = vec![Peer { name, addresses, public_key, may_send: sends, may_receive: !sends }];
    if sends {
        config.listen = vec![plan.address];
    }
    if manner.autotune {
        config.sockets.send_buffer_bytes = None;
        config.sockets.receive_buffer_bytes = None;
    }
    if let Some(name) = &manner.congestion {
        config.sockets.congestion = Congestion::Named(name.clone());
    }
    if let Some(lanes) = manner.lanes {
        (config.lanes, config.lanes_most) = (lanes, lanes);
    }
    if let Some(id) = manner.suite {
        config.suites = Suites::Only(Suite::from_id(id).context("an unknown suite")?);
    }
    if let Some(threads) = manner.lane_threads {
        config.lane_threads = threads;
    }
    Ok(config)
}

fn say(what: &Said) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// Of a chunk at its place.
fn hash(seq: u64, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, seq)
}

fn hash_of(seq: u64, payload: &Payload) -> u64 {
    hash(seq, payload.as_ref())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
