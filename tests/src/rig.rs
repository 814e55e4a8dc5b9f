//! A whole move, ready to be made: an emulated link, a daemon at either end, a guest that works at the source.
//!
//! ```text
//!   Plan ──▶ Rig::new ──▶ arm (the destination's QEMU awaits) ──▶ migrate… ──▶ checks ──▶ turn_around ──▶ …
//! ```
//!
//! The checks are those of an operator who trusts nobody: what QEMU says on both sides, what the guest's console shows,
//! what is in both memories.

mod fault;

pub use fault::Side;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hikyaku_lab::guest::console::Log;
use hikyaku_lab::guest::{GuestSpec, Load, Qemu, RamImage, Timeline};
use hikyaku_lab::link::{self, Network};
use tempfile::TempDir;

use crate::command::{Output, Running};
use crate::linux::{self, LinuxGuest};
use crate::machine::{QemuBinary, Version};
use crate::site::{self, Pair, Settings, Site};

const GUEST: &str = "courier";
/// Enough for a working set of 100 MiB, small enough for a machine with two cores.
const BARE_MEMORY_MIB: u32 = 160;
const KVM_MEMORY_MIB: u32 = 16;
/// 100-500 bytes per page, Zipf: what deltas and superseding are made for.
const BARE_LOAD: &str = "oltp";
/// All of its memory each second, instead of each fourth: a test waits for up to two rounds after each move.
const BARE_SWEEP_PAGES_PER_S: u32 = BARE_MEMORY_MIB << 8;
/// A machine type that both QEMUs of a pair know.
const COMMON_MACHINE: &str = "pc-q35-7.2";

/// QEMU before this loses writes under TCG, in its own stream, whoever carries it, if the guest's memory is a whole number of
/// 256 KiB (docs/qemu.md): it gets a little more.
const TCG_KEEPS_EVERY_WRITE_FROM: Version = Version { major: 9, minor: 0 };

const BOOT_LIMIT: Duration = Duration::from_secs(60);
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const BEAT_LIMIT: Duration = Duration::from_secs(20);
/// A guest under a KVM that emulates every instruction takes most of it.
const SWEEP_LIMIT: Duration = Duration::from_secs(120);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// How long a guest is watched before it is believed to work.
const WORK: Duration = Duration::from_millis(500);

/// What runs in the guest.
#[derive(Debug)]
pub enum GuestKind {
    /// The bare-metal test guest.
    Bare(Load),
    /// The directory holds its initramfs.
    Linux(LinuxGuest, TempDir),
}

impl GuestKind {
    pub fn bare(preset: &str) -> GuestKind {
        GuestKind::Bare(Load::preset(preset).unwrap_or_else(|e| panic!("{preset}: {e}")))
    }

    /// `None` when the kernel or busybox are not on this machine.
    pub fn linux() -> Option<GuestKind> {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let guest = LinuxGuest::prepare(scratch.path()).expect("the initramfs can be written")?;
        Some(GuestKind::Linux(guest, scratch))
    }
}

/// What is moved, where, between which QEMUs.
#[derive(Debug)]
pub struct Plan {
    pub link: &'static str,
    source: QemuBinary,
    destination: QemuBinary,
    machine: String,
    memory_mib: u32,
    accel: &'static str,
    kind: GuestKind,
    destination_machine: Option<String>,
    destination_memory_mib: Option<u32>,
    source_args: Vec<String>,
    destination_args: Vec<String>,
}

impl Plan {
    /// The bare-metal guest, over the link of this name, between two QEMUs of one version.
    pub fn new(link: &'static str, qemu: &QemuBinary) -> Plan {
        let mut bare = Load::preset(BARE_LOAD).expect("a preset");
        bare.sweep_pages_per_s = Some(BARE_SWEEP_PAGES_PER_S);
        Plan {
            link,
            source: qemu.clone(),
            destination: qemu.clone(),
            machine: "q35".to_owned(),
            memory_mib: BARE_MEMORY_MIB,
            accel: "tcg",
            kind: GuestKind::Bare(bare),
            destination_machine: None,
            destination_memory_mib: None,
            source_args: Vec::new(),
            destination_args: Vec::new(),
        }
    }

    /// More of QEMU's options, for where the guest starts and for where it is moved first.
    pub fn args(mut self, source: &[&str], destination: &[&str]) -> Plan {
        let owned = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect();
        (self.source_args, self.destination_args) = (owned(source), owned(destination));
        self
    }

    /// To another QEMU than it starts in.
    pub fn to(mut self, qemu: &QemuBinary) -> Plan {
        self.destination = qemu.clone();
        self.machine = COMMON_MACHINE.to_owned();
        self
    }

    pub fn kind(mut self, kind: GuestKind) -> Plan {
        if let GuestKind::Linux(..) = kind {
            self.memory_mib = linux::MEMORY_MIB;
        }
        self.kind = kind;
        self
    }

    pub fn memory_mib(mut self, memory_mib: u32) -> Plan {
        self.memory_mib = memory_mib;
        self
    }

    /// Under KVM, with less memory and less to do: there are KVMs that are slower than TCG.
    pub fn kvm(mut self) -> Plan {
        self.accel = "kvm";
        self.memory_mib = KVM_MEMORY_MIB;
        let mut load = Load::preset("idle").expect("a preset");
        (load.dup_permille, load.text_permille, load.random_permille) = (10, 20, 20);
        load.rate_pages_per_s = 100;
        self.kind = GuestKind::Bare(load);
        self
    }

    /// A mistake of the operator's.
    pub fn destination_machine(mut self, machine: &str) -> Plan {
        self.destination_machine = Some(machine.to_owned());
        self
    }

    /// A mistake of the operator's.
    pub fn destination_memory_mib(mut self, memory_mib: u32) -> Plan {
        self.destination_memory_mib = Some(memory_mib);
        self
    }

    fn spec(&self, qemu: &QemuBinary) -> GuestSpec {
        let load = match &self.kind {
            GuestKind::Bare(load) => load.clone(),
            // Replaced by a kernel of its own.
            GuestKind::Linux(..) => Load::preset("idle").expect("a preset"),
        };
        let spec = GuestSpec::new(self.memory_mib, load)
            .machine(&self.machine)
            .accel(self.accel)
            .qemu(hikyaku_lab::guest::locate::QemuBinary::at(&qemu.path));
        let oldest = self.source.version.min(self.destination.version);
        let uneven = self.accel == "tcg" && oldest < TCG_KEEPS_EVERY_WRITE_FROM;
        let spec = GuestSpec { uneven, ..spec };
        match &self.kind {
            GuestKind::Bare(_) => spec,
            GuestKind::Linux(guest, _) => spec.args(guest.qemu_arguments()),
        }
    }
}

/// Fields end in this order: guests, daemons, the link.
#[derive(Debug)]
pub struct Rig {
    plan: Plan,
    source: Qemu,
    destination: Option<Qemu>,
    pair: Pair,
    network: Network,
    /// Where the guest is: the source of the next move.
    here: &'static str,
    there: &'static str,
}

impl Rig {
    /// Everything but the destination's QEMU is started; the guest works.
    pub fn new(plan: Plan) -> Rig {
        Rig::with(plan, |_| {})
    }

    pub fn with(plan: Plan, adjust: impl FnMut(&mut Settings)) -> Rig {
        let network = site::network(plan.link);
        Rig::on(plan, network, adjust)
    }

    pub fn on(plan: Plan, network: Network, adjust: impl FnMut(&mut Settings)) -> Rig {
        let pair = Pair::start_with(&network, adjust);
        let source = Qemu::start_with(&plan.spec(&plan.source).args(&plan.source_args), process)
            .unwrap_or_else(|e| panic!("the source: {e}"));
        source.wait_heartbeat(BOOT_LIMIT, "a heartbeat", |_| true).unwrap_or_else(|e| panic!("{e}"));
        Rig { plan, source, destination: None, pair, network, here: "a", there: "b" }
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn guest_name(&self) -> &'static str {
        GUEST
    }

    pub fn source(&mut self) -> &mut Qemu {
        &mut self.source
    }

    pub fn destination(&mut self) -> &mut Qemu {
        self.destination.as_mut().expect("the rig is armed")
    }

    pub fn source_site(&self) -> &Site {
        self.pair.site(self.here)
    }

    pub fn destination_site(&self) -> &Site {
        self.pair.site(self.there)
    }

    pub fn destination_site_mut(&mut self) -> &mut Site {
        if self.there == "a" { &mut self.pair.a } else { &mut self.pair.b }
    }

    /// A QEMU awaits the guest at the destination, and the daemon there knows.
    pub fn arm(&mut self) {
        self.arm_with(&[]);
    }

    pub fn arm_with(&mut self, flags: &[&str]) {
        let plan = &self.plan;
        let mut spec = plan.spec(&plan.destination).args(&plan.destination_args);
        if let Some(machine) = &plan.destination_machine {
            spec = spec.machine(machine);
        }
        if let Some(memory_mib) = plan.destination_memory_mib {
            spec.memory_mib = memory_mib;
        }
        let qemu = Qemu::await_migration_with(&spec, "defer", process)
            .unwrap_or_else(|e| panic!("destination: {e}"));
        self.destination = Some(qemu);
        self.receive(flags);
    }

    /// The destination's daemon is told of the QEMU that awaits the guest.
    pub fn receive(&mut self, flags: &[&str]) {
        let mut arguments = words(&["receive", GUEST, "--from", self.here, "--detach", "--qmp"]);
        arguments.push(self.destination().qmp_path().into());
        arguments.extend(words(flags));
        self.destination_site().hikyaku(arguments, COMMAND_LIMIT).expect_code(0);
    }

    /// `hikyaku migrate`, to its end.
    pub fn migrate(&self, flags: &[&str]) -> Output {
        let mut arguments = words(&["migrate", GUEST, "--to", self.there, "--qmp"]);
        arguments.push(self.source.qmp_path().into());
        arguments.extend(words(flags));
        self.source_site().hikyaku(arguments, MIGRATE_LIMIT)
    }

    /// Moves the guest while it works, and believes nothing.
    pub fn migrate_live(&mut self, flags: &[&str]) {
        self.arm();
        self.migrate_live_armed(flags);
    }

    pub fn migrate_live_armed(&mut self, flags: &[&str]) {
        self.migrate_disturbed(flags, |_, _| {});
    }

    /// The same, with something done on the way; how long the move took.
    pub fn migrate_disturbed(
        &mut self,
        flags: &[&str],
        disturb: impl FnOnce(&mut Rig, &Running),
    ) -> (Duration, Output) {
        let began = Instant::now();
        let wire_before_bytes = self.network.wire_bytes();
        let command = self.migrate_beside(flags);
        disturb(self, &command);
        let output = command.wait(MIGRATE_LIMIT).expect_code(0);
        let total = began.elapsed();
        let destination = self.destination.as_mut().expect("the rig is armed");
        assert_eq!(destination.status().expect("QMP"), "running", "at the destination; {output}");
        assert_stopped(&mut self.source);
        // It has checked all of its memory since it arrived.
        let swept = destination.wait_swept(SWEEP_LIMIT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(swept.bad, 0, "bad pages");
        assert_stopped(&mut self.source);

        let timeline = Timeline::merge(&[self.source.console(), destination.console()]);
        assert_eq!(timeline.overlap(), None, "two guests ran");
        assert_eq!(timeline.bad(), 0, "bad pages");
        assert_goes_on(&self.source.console().snapshot(), &destination.console().snapshot());
        println!(
            "{} {} to {}: total {total:.2?}, gap {:.0?}, {:.1} MB on the wire, daemons' peaks {} and {} MiB",
            self.plan.link,
            self.plan.source.version,
            self.plan.destination.version,
            timeline.longest_gap(began..swept.at).length,
            (self.network.wire_bytes() - wire_before_bytes) as f64 / 1e6,
            self.source_site().rss_peak_bytes() >> 20,
            self.destination_site().rss_peak_bytes() >> 20,
        );
        self.destination_site().hikyaku(["watch", GUEST], COMMAND_LIMIT).expect_code(0);
        (total, output)
    }

    /// Moves the guest and leaves it stopped at the destination.
    pub fn migrate_paused(&mut self, flags: &[&str]) -> Output {
        self.migrate_paused_disturbed(flags, |_, _| {}).1
    }

    /// The same, with something done on the way; how long the move took.
    pub fn migrate_paused_disturbed(
        &mut self,
        flags: &[&str],
        disturb: impl FnOnce(&mut Rig, &Running),
    ) -> (Duration, Output) {
        self.arm_with(&["--paused"]);
        let began = Instant::now();
        let command = self.migrate_beside(flags);
        disturb(self, &command);
        let output = command.wait(MIGRATE_LIMIT).expect_code(0);
        let total = began.elapsed();
        assert_eq!(self.destination().status().expect("QMP"), "paused", "at the destination; {output}");
        assert_stopped(&mut self.source);
        assert!(self.destination().console().snapshot().heartbeats.len() <= 1, "it ran before it was let");
        (total, output)
    }

    /// The arrived guest becomes the source of a move in the other direction.
    pub fn turn_around(&mut self) {
        self.source = self.destination.take().expect("the guest has arrived");
        std::mem::swap(&mut self.here, &mut self.there);
        std::mem::swap(&mut self.plan.source, &mut self.plan.destination);
        std::mem::swap(&mut self.plan.source_args, &mut self.plan.destination_args);
    }

    /// The move fails with this exit code, says where the guest is, and the guest runs on at the source.
    #[track_caller]
    pub fn migrate_fails(&mut self, flags: &[&str], code: i32) -> Output {
        let output = self.migrate(flags);
        self.assert_failed(&output, code);
        output
    }

    /// The same of a move that was tried already.
    #[track_caller]
    pub fn assert_failed(&mut self, output: &Output, code: i32) {
        assert_eq!(output.code, Some(code), "{output}");
        let text = output.text();
        assert!(
            text.contains("runs on at the source") || text.contains("was not touched"),
            "it is not said where the guest is; {output}"
        );
        println!("exit code {code}: {}", text.trim());
        self.assert_runs_at_source();
    }

    /// The guest works at the source, and nowhere else.
    #[track_caller]
    pub fn assert_runs_at_source(&mut self) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        while self.source.status().expect("QMP") != "running" {
            assert!(Instant::now() < deadline, "the guest does not run at the source");
            std::thread::sleep(POLL);
        }
        let before = self.source.console().snapshot().heartbeats.len();
        std::thread::sleep(WORK);
        let beats = self.source.console().snapshot().heartbeats;
        assert!(beats.len() > before + 5, "{} heartbeats in {WORK:?}", beats.len() - before);
        assert_eq!(beats.last().map(|beat| beat.bad), Some(0), "bad pages");
        if let Some(destination) = &mut self.destination {
            // A QEMU that refused the guest may be gone.
            let status = destination.status().unwrap_or_else(|_| "gone".to_owned());
            assert_ne!(status, "running", "at the destination");
        }
    }

    /// Stops the guest where it is, before it is moved.
    pub fn stop_guest(&mut self) {
        self.source.stop().expect("QMP");
    }

    /// Every page of every RAM block of both QEMUs.
    #[track_caller]
    pub fn assert_memory_equal(&mut self) {
        let (here, there) = self.memories();
        let differences = here.compare(&there);
        let shown: Vec<_> = differences.iter().take(20).collect();
        assert!(
            differences.is_empty(),
            "{} differences in {} pages, the first: {shown:?}",
            differences.len(),
            here.pages()
        );
        assert!(
            here.pages() as u64 >= u64::from(self.plan.memory_mib) << 8,
            "only {} pages compared",
            here.pages()
        );
    }

    /// Lets a guest that arrived paused work, until it has checked all of its memory.
    #[track_caller]
    pub fn works_on(&mut self) {
        let destination = self.destination();
        destination.cont().expect("QMP");
        let swept = destination.wait_swept(SWEEP_LIMIT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(swept.bad, 0, "bad pages");
    }

    /// Lets the arrived guest work for a moment.
    #[track_caller]
    pub fn assert_memory_differs_once_it_works_on(&mut self) {
        let destination = self.destination();
        destination.cont().expect("QMP");
        destination.wait_heartbeat(BEAT_LIMIT, "a heartbeat", |_| true).unwrap_or_else(|e| panic!("{e}"));
        std::thread::sleep(WORK);
        destination.stop().expect("QMP");
        let (here, there) = self.memories();
        assert!(!here.compare(&there).is_empty(), "a guest that worked has changed nothing");
    }

    fn memories(&mut self) -> (RamImage, RamImage) {
        let here = RamImage::read(&mut self.source).unwrap_or_else(|e| panic!("the source: {e}"));
        let there = RamImage::read(self.destination()).unwrap_or_else(|e| panic!("the destination: {e}"));
        (here, there)
    }
}

#[track_caller]
fn assert_stopped(qemu: &mut Qemu) {
    let status = qemu.status().expect("QMP");
    assert!(matches!(status.as_str(), "paused" | "postmigrate"), "the guest is {status} at the source");
}

/// The count goes on where it was: nothing was done twice, nothing was left out. One beat may be torn by the move. (A guest
/// gives up a byte that a busy host does not take, so a beat may be missing elsewhere.)
#[track_caller]
fn assert_goes_on(source: &Log, destination: &Log) {
    let last = source.heartbeats.last().map_or(0, |beat| beat.number);
    let first = destination.heartbeats.first().map_or(0, |beat| beat.number);
    assert!(
        (last + 1..=last + 2).contains(&first),
        "beat {first} follows {last}; the source's last words: {:?}, the destination's first: {:?}",
        String::from_utf8_lossy(&source.unfinished),
        destination.first_line,
    );
}

/// A QEMU that dies with the test.
fn process(program: &Path) -> Command {
    let mut command = Command::new(program);
    link::die_with_parent(&mut command);
    command
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
