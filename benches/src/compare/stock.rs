//! Stock QEMU: the two QEMUs talk to each other over TCP, from within the hosts, as without us.
//!
//! Everything is QEMU's default but the bandwidth, which is not limited, and what the peer's name says. All say so on both
//! sides, as an operator's tools do.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::peer::{Carried, Carrier, DOWNTIME, HOSTS, Peer, Whereabouts};
use crate::guest::Qemu;
use crate::guest::qemu::MigrateError;
use crate::link::Network;

/// Of the hosts, which are new: nobody else has it.
const PORT: u16 = 4446;
const CHANNELS: u32 = 8;
const ZSTD_LEVEL: u32 = 1;
/// Between two looks at a migration.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A guest that has left must run by then, and a move that was called off must be over.
const PATIENCE: Duration = Duration::from_secs(30);
/// What our daemon spends on bases of deltas by default: a quarter of the guest's memory, and at most this.
const MAX_CACHE_MIB: u32 = 1024;
const CACHE_SHARE: u32 = 4;

#[derive(Debug, Clone)]
pub struct Stock {
    name: String,
    capabilities: &'static [&'static str],
    parameters: Value,
}

impl Stock {
    pub fn named(name: &str, memory_mib: u32) -> Option<Stock> {
        let multifd = json!({ "multifd-channels": CHANNELS });
        let (capabilities, parameters): (&[&str], Value) = match name {
            "qemu" => (&[], json!({})),
            "qemu-xbzrle" => (&["xbzrle"], json!({ "xbzrle-cache-size": cache_bytes(memory_mib) })),
            "qemu-multifd" => (&["multifd"], multifd),
            "qemu-multifd-zstd" => (
                &["multifd"],
                json!({
                    "multifd-channels": CHANNELS,
                    "multifd-compression": "zstd",
                    "multifd-zstd-level": ZSTD_LEVEL,
                }),
            ),
            _ => return None,
        };
        Some(Stock { name: name.to_owned(), capabilities, parameters })
    }

    fn tell(&self, qemu: &mut Qemu) -> anyhow::Result<()> {
        let capabilities: Vec<_> =
            self.capabilities.iter().map(|name| json!({ "capability": name, "state": true })).collect();
        if !capabilities.is_empty() {
            qemu.qmp("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        }
        if self.parameters != json!({}) {
            qemu.qmp("migrate-set-parameters", self.parameters.clone())?;
        }
        qemu.qmp(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 0, "downtime-limit": DOWNTIME.as_millis() as u64 }),
        )?;
        Ok(())
    }
}

/// As much as our own base store has by default, so that neither wins by memory. QEMU wants a power of two.
fn cache_bytes(memory_mib: u32) -> u64 {
    let mib = (memory_mib / CACHE_SHARE).clamp(1, MAX_CACHE_MIB);
    (1 << mib.ilog2()) << 20
}

impl Peer for Stock {
    fn name(&self) -> &str {
        &self.name
    }

    fn set_up(&self, network: &Network) -> anyhow::Result<Box<dyn Carrier>> {
        let [_, there] = HOSTS.map(|name| network.host(name));
        Ok(Box::new(Pair { stock: self.clone(), uri: format!("tcp:{}:{PORT}", there.ip4()) }))
    }
}

/// Two hosts with nothing of ours on them.
#[derive(Debug)]
struct Pair {
    stock: Stock,
    /// Where the destination listens.
    uri: String,
}

impl Carrier for Pair {
    fn prepare(&mut self, here: &mut Qemu, there: &mut Qemu) -> anyhow::Result<()> {
        self.stock.tell(here).context("at the source")?;
        self.stock.tell(there).context("at the destination")?;
        there.qmp("migrate-incoming", json!({ "uri": self.uri }))?;
        Ok(())
    }

    fn carry(&mut self, here: &mut Qemu, there: &mut Qemu, limit: Duration) -> anyhow::Result<Carried> {
        let begun = Instant::now();
        here.qmp("migrate", json!({ "uri": self.uri }))?;
        while here.migration()? != "completed" {
            if begun.elapsed() > limit {
                return call_off(here, begun);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        // To have sent the last byte is not to have arrived.
        let deadline = Instant::now() + PATIENCE;
        while there.status()? != "running" {
            if Instant::now() > deadline {
                bail!("the guest has left and is {} at the destination", there.status()?);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(Carried { begun, ended: Instant::now(), guest: Whereabouts::There, said: None })
    }

    fn congestion(&self, network: &Network) -> anyhow::Result<String> {
        let [here, _] = HOSTS.map(|name| network.host(name));
        let output = here.command("cat").arg("/proc/sys/net/ipv4/tcp_congestion_control").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// A migration that has gone too far to be called off completes.
fn call_off(here: &mut Qemu, begun: Instant) -> anyhow::Result<Carried> {
    here.qmp("migrate_cancel", json!({}))?;
    let deadline = Instant::now() + PATIENCE;
    let carried = |guest| Carried { begun, ended: Instant::now(), guest, said: None };
    loop {
        match here.migration() {
            Ok(status) if status == "completed" => return Ok(carried(Whereabouts::There)),
            Err(MigrateError::Failed { .. }) => return Ok(carried(Whereabouts::Here)),
            Ok(status) if Instant::now() > deadline => bail!("cancelled and still {status}"),
            Ok(_) => std::thread::sleep(LOOK_AGAIN),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_a_quarter_of_memory_a_power_of_two_and_at_most_a_gibibyte() {
        let mib = |memory| cache_bytes(memory) >> 20;
        assert_eq!([512, 600, 1000, 16_384, 32, 2].map(mib), [128, 128, 128, 1024, 8, 1]);
    }
}
