//! One guest, moved again and again, and what each move cost.
//!
//! It is moved as an operator moves it: a QEMU that waits, `hikyaku receive` there, `hikyaku migrate` here. What it says of a
//! move is seen from outside: on the guest's console, on the link, in both QEMUs.

use crate::child::Tied;
use crate::guest::{Console, GuestSpec, Heartbeat, Load, Qemu, Timeline};
use crate::link::Network;
use crate::site::Site;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// What the daemons call the guest.
pub const GUEST: &str = "courier";
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const SWEEP_LIMIT: Duration = Duration::from_secs(60);
/// From the end of the command until the guest is heard.
const HEARD_LIMIT: Duration = Duration::from_secs(10);
/// The guest is watched this long before it is moved, so that its own pauses are known.
const WARM_UP: Duration = Duration::from_millis(500);
/// An arrival that is not checked whole is listened to for so long: many heartbeats, on one console or on two.
const LISTEN: Duration = Duration::from_millis(300);

/// What `hikyaku migrate --policy` takes: wrong words are noticed before anything is built.
pub const POLICIES: [&str; 7] = hikyaku_engine::precopy::NAMES;

/// How a move is made and watched.
#[derive(Debug, Clone)]
pub struct Manner {
    pub policy: String,
    /// More words for `hikyaku migrate`.
    pub flags: Vec<String>,
    /// The command shows its progress; otherwise it is heard only when it fails.
    pub shown: bool,
    /// After the arrival the guest checks all of its memory; otherwise it is only listened to.
    pub swept: bool,
    /// The command has to end within this.
    pub limit: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Manner {
            policy: "adaptive".into(),
            flags: Vec::new(),
            shown: true,
            swept: true,
            limit: Duration::from_secs(300),
        }
    }
}

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
    /// Heartbeats that neither console showed.
    pub lost: Vec<u64>,
    /// If there are any: the ends of the consoles, where the line was cut.
    pub cut: String,
    /// Both consoles spoke at once, or both QEMUs said that they run.
    pub two_ran: bool,
}

impl Row {
    /// One guest, whole.
    pub fn is_whole(&self) -> bool {
        self.bad == 0 && self.lost.is_empty() && !self.two_ran
    }
}

/// What was seen of a guest that moved: on both consoles, and in both QEMUs. The fields are [`Row`]'s.
#[derive(Debug)]
pub struct Seen {
    pub gap: Duration,
    pub writes_per_s: f64,
    pub bad: u64,
    pub lost: Vec<u64>,
    pub cut: String,
    pub two_ran: bool,
}

impl Seen {
    /// Of a move that was asked for at `begun` and took `total`; `heard` is the last heartbeat that is looked at. `Err`: the
    /// guest does not run there.
    pub fn of(
        here: &mut Qemu,
        there: &mut Qemu,
        begun: Instant,
        total: Duration,
        heard: Heartbeat,
    ) -> anyhow::Result<Seen> {
        let status = there.status()?;
        if status != "running" {
            bail!("the guest that arrived is {status}");
        }
        // A QEMU that is gone runs no guest.
        let still_here = here.status().is_ok_and(|status| status == "running");
        let timeline = Timeline::merge(&[here.console(), there.console()]);
        let lost = timeline.lost();
        let cut = if lost.is_empty() { String::new() } else { cut(here.console(), there.console()) };
        Ok(Seen {
            gap: timeline.longest_gap(begun..heard.at).length,
            writes_per_s: timeline.writes_per_s(begun..begun + total),
            bad: timeline.bad().max(heard.bad),
            lost,
            cut,
            two_ran: still_here || timeline.overlap().is_some(),
        })
    }
}

/// Half of the longest round trip, and something.
const WORD_OF_MOUTH: Duration = Duration::from_millis(200);

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

    /// What the guest itself says of its first bad pages.
    pub fn reports(&self) -> Vec<String> {
        self.here.console().reports()
    }

    /// Moves the guest. On `Ok` it runs at `to`; on `Err` where it is has to be looked up.
    pub fn travel(
        &mut self,
        network: &Network,
        from: &Site,
        to: &Site,
        manner: &Manner,
    ) -> anyhow::Result<Row> {
        std::thread::sleep(WARM_UP);
        let mut there = Qemu::await_migration(&self.spec)?;
        await_guest(&there, from, to)?;
        let migrate = migrate(&self.here, from, to, manner);
        let wire_bytes = network.wire_bytes();
        let begun = Instant::now();
        let (status, said) = run_within(migrate, manner.shown, manner.limit)?;
        let total = begun.elapsed();
        let wire_bytes = network.wire_bytes() - wire_bytes;
        if !status.success() {
            let words = from.last_words(status);
            bail!("the move from {} to {} failed: {said}{words}", from.name(), to.name());
        }

        let heard = if manner.swept { there.wait_swept(SWEEP_LIMIT)? } else { hear(&there)? };
        let seen = Seen::of(&mut self.here, &mut there, begun, total, heard)
            .with_context(|| format!("at {}", to.name()))?;
        let row = Row {
            policy: manner.policy.clone(),
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            total,
            gap: seen.gap,
            wire_bytes,
            writes_per_s: seen.writes_per_s,
            bad: seen.bad,
            lost: seen.lost,
            cut: seen.cut,
            two_ran: seen.two_ran,
        };
        self.here = there;
        Ok(row)
    }
}

/// Has the daemon of `to` await the guest in `there`. Returns when word of that may have come to the source, as it has to whoever gives
/// the next command there.
pub fn await_guest(there: &Qemu, from: &Site, to: &Site) -> anyhow::Result<()> {
    let words = ["receive", GUEST, "--detach", "--from", from.name(), "--qmp"];
    let receive = words.map(OsString::from).into_iter().chain([there.qmp_path().into()]);
    to.hikyaku_quietly(receive).with_context(|| format!("{} does not await the guest", to.name()))?;
    std::thread::sleep(WORD_OF_MOUTH);
    Ok(())
}

/// The command that moves the guest out of `here`, not started yet.
pub fn migrate(here: &Qemu, from: &Site, to: &Site, manner: &Manner) -> Command {
    let words = ["migrate", GUEST, "--to", to.name(), "--policy", &manner.policy, "--qmp"];
    let mut migrate = from.hikyaku(words);
    migrate.arg(here.qmp_path()).args(&manner.flags);
    migrate
}

/// Listens to a guest that has arrived for as long as it takes to tell one from two; the last heartbeat of that time.
pub fn hear(there: &Qemu) -> anyhow::Result<Heartbeat> {
    there.wait_heartbeat(HEARD_LIMIT, "a heartbeat after the arrival", |_| true)?;
    std::thread::sleep(LISTEN);
    Ok(there.wait_heartbeat(HEARD_LIMIT, "a heartbeat", |_| true)?)
}

/// What the first console said last and the second said first, as far as it was no whole heartbeat.
fn cut(first: &Console, second: &Console) -> String {
    let others = |console: &Console| {
        console.look(|log| log.lines.iter().map(|(_, line)| line.clone()).collect::<Vec<_>>())
    };
    let lines = (others(first), others(second));
    let (first, second) = (first.snapshot(), second.snapshot());
    format!(
        "one console ended {:?} after {:?}, the other began {:?} before {:?}; other lines {:?} and {:?}",
        String::from_utf8_lossy(&first.unfinished),
        first.heartbeats.last().map(|beat| beat.number),
        second.first_line.as_ref().map(|(_, line)| line),
        second.heartbeats.first().map(|beat| beat.number),
        lines.0,
        lines.1,
    )
}

/// Runs a command to its end; what it said, if that was not shown.
fn run_within(mut command: Command, shown: bool, limit: Duration) -> anyhow::Result<(ExitStatus, String)> {
    if shown {
        let status = Tied::spawn(&mut command).context("hikyaku")?.wait_within(limit)?;
        return Ok((status, String::new()));
    }
    let mut words: File = tempfile::tempfile()?;
    command.stdout(words.try_clone()?).stderr(words.try_clone()?);
    let status = Tied::spawn(&mut command).context("hikyaku")?.wait_within(limit)?;
    let mut said = String::new();
    words.rewind()?;
    words.read_to_string(&mut said)?;
    Ok((status, said))
}
