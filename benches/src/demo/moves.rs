//! One guest, moved again and again, and what each move cost.

use crate::guest::{GuestSpec, Load, Qemu, Timeline};
use crate::link::Network;
use crate::site::Site;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::time::{Duration, Instant};

const GUEST: &str = "courier";
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const SWEEP_LIMIT: Duration = Duration::from_secs(60);
/// The guest is watched this long before it is moved, so that its own pauses are known.
const WARM_UP: Duration = Duration::from_millis(500);

/// What a move cost, as seen from outside.
#[derive(Debug, Clone)]
pub struct Row {
    pub policy: String,
    pub from: String,
    pub to: String,
    /// From the request until the command returned.
    pub total: Duration,
    /// The longest silence of the guest's console.
    pub gap: Duration,
    /// Both directions, headers included.
    pub wire_bytes: u64,
    pub writes_per_s: f64,
    pub bad: u64,
    /// Both consoles spoke at once.
    pub two_ran: bool,
}

pub struct Traveller {
    spec: GuestSpec,
    here: Qemu,
}

impl Traveller {
    /// Returns when the guest has filled its memory and works.
    pub fn start(memory_mib: u32, load: &Load) -> anyhow::Result<Traveller> {
        let spec = GuestSpec::new(memory_mib, load.clone());
        let here = Qemu::start(&spec).context("the guest does not start")?;
        here.wait_ready(BOOT_LIMIT)?;
        Ok(Traveller { spec, here })
    }

    /// Moves the guest, showing the command's own progress.
    pub fn travel(&mut self, network: &Network, from: &Site, to: &Site, policy: &str) -> anyhow::Result<Row> {
        std::thread::sleep(WARM_UP);
        let there = Qemu::await_migration(&self.spec)?;
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut receive = words(&["receive", GUEST, "--detach", "--from", from.name(), "--qmp"]);
        receive.push(there.qmp_path().into());
        to.hikyaku_quietly(receive).with_context(|| format!("{} does not await the guest", to.name()))?;

        let mut migrate = words(&["migrate", GUEST, "--to", to.name(), "--policy", policy, "--qmp"]);
        migrate.push(self.here.qmp_path().into());
        let wire_bytes = network.wire_bytes();
        let begun = Instant::now();
        let status = from.hikyaku(migrate).status()?;
        let total = begun.elapsed();
        let wire_bytes = network.wire_bytes() - wire_bytes;
        if !status.success() {
            bail!("the move from {} to {} failed {}", from.name(), to.name(), from.last_words(status));
        }
        let swept = there.wait_swept(SWEEP_LIMIT)?;
        let timeline = Timeline::merge(&[self.here.console(), there.console()]);
        let row = Row {
            policy: policy.to_owned(),
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            total,
            gap: timeline.longest_gap(begun..swept.at).length,
            wire_bytes,
            writes_per_s: timeline.writes_per_s(begun..begun + total),
            bad: timeline.bad().max(swept.bad),
            two_ran: timeline.overlap().is_some(),
        };
        self.here = there;
        Ok(row)
    }
}
