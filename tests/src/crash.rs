//! One fault at one point of a move at which something has just been done, and what must hold after it.
//!
//! A daemon dies, stands still, or cannot write; the link is cut in both directions or in one. Whatever it is, the guest runs at one place in the end,
//! where the daemons say, with all of its memory, and never ran at two (docs/failures.md). The daemons are to be built with their fail points.

use std::path::PathBuf;
use std::time::Duration;

use hikyaku_lab::guest::Load;
use nix::sys::signal::Signal;

use crate::command::Running;
use crate::machine::{self, QemuBinary, need};
use crate::rig::{GuestKind, Plan, Rig, Side};

/// Where the guest has to be in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    Source,
    Destination,
    /// Either: what counts is that both sides agree.
    Agreed,
}

/// What happens at the point.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// The daemon dies, and is started again.
    Killed,
    /// It stands still for [`STILL`].
    Still,
    /// The link is cut for [`OUTAGE`].
    Cut,
    /// Nothing comes back from the destination for so long.
    Deaf,
    /// Nothing gets to the destination for so long, and what it says comes.
    Mute,
    /// The time of day jumps, at both hosts.
    Jump(&'static str),
    /// What is being written to the disk is not, or late: `eio`, `enospc`, or a time.
    Disk(&'static str),
}

use Ends::{Agreed, Destination, Source};
use What::{Cut, Deaf, Disk, Jump, Killed, Mute, Still};

/// The daemon's fail point, what happens there, and where the guest has to be in the end.
pub type Row = (&'static str, What, Ends);

pub const SAFE: &[&str] = &["--switchover", "safe"];

const MEMORY_MIB: u32 = 64;
/// Longer than `dead_after`.
const STILL: Duration = Duration::from_secs(5);
const OUTAGE: Duration = Duration::from_secs(5);
pub const REACHED: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);

const MOVED: i32 = 0;
const DAEMON_GONE: i32 = 1;
const UNREACHABLE: i32 = 4;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;

pub const KILLED: [Row; 18] = [
    ("source.answered", Killed, Source),
    ("source.begun", Killed, Source),
    ("source.marking", Killed, Source),
    ("source.marked", Killed, Source),
    ("source.stopped", Killed, Source),
    ("source.drained", Killed, Source),
    ("source.ceding", Killed, Source),
    ("source.ceded", Killed, Source),
    ("source.let-go", Killed, Agreed),
    ("source.verdict", Killed, Destination),
    ("source.forgotten", Killed, Destination),
    ("destination.accepted", Killed, Source),
    ("destination.go", Killed, Source),
    ("destination.complete", Killed, Source),
    ("destination.loaded", Killed, Agreed),
    ("destination.started", Killed, Destination),
    ("destination.running", Killed, Destination),
    ("destination.arrived", Killed, Destination),
];

pub const KILLED_SAFE: [Row; 9] = [
    ("source.stopped", Killed, Source),
    ("source.drained", Killed, Source),
    ("source.ceded", Killed, Source),
    ("source.let-go", Killed, Agreed),
    ("destination.complete", Killed, Source),
    ("destination.loaded", Killed, Source),
    ("destination.go", Killed, Source),
    ("destination.started", Killed, Destination),
    ("destination.running", Killed, Destination),
];

pub const STANDING_STILL: [Row; 12] = [
    ("source.begun", Still, Destination),
    ("source.marked", Still, Destination),
    ("source.stopped", Still, Agreed),
    ("source.drained", Still, Agreed),
    ("source.ceded", Still, Agreed),
    ("source.let-go", Still, Destination),
    ("source.verdict", Still, Destination),
    // Whose answer is lost as well asks again, and the QEMU there has been used.
    ("destination.accepted", Still, Agreed),
    ("destination.go", Still, Destination),
    ("destination.loaded", Still, Destination),
    ("destination.started", Still, Destination),
    ("destination.running", Still, Destination),
];

pub const CUT_OFF: [Row; 13] = [
    ("source.begun", Cut, Destination),
    ("source.marked", Cut, Agreed),
    // That the link is down shows later than the guest is let go.
    ("source.stopped", Cut, Agreed),
    ("source.drained", Cut, Agreed),
    ("source.ceded", Cut, Agreed),
    ("source.let-go", Cut, Destination),
    ("source.verdict", Cut, Destination),
    // Whose answer is lost as well asks again, and the QEMU there has been used.
    ("destination.accepted", Cut, Agreed),
    ("destination.go", Cut, Destination),
    ("destination.complete", Cut, Destination),
    ("destination.started", Cut, Destination),
    ("destination.running", Cut, Destination),
    ("destination.arrived", Cut, Destination),
];

pub const DEAF: [Row; 7] = [
    ("source.begun", Deaf, Destination),
    ("source.stopped", Deaf, Agreed),
    ("source.drained", Deaf, Agreed),
    ("source.let-go", Deaf, Destination),
    // Whose answer is lost as well asks again, and the QEMU there has been used.
    ("destination.accepted", Deaf, Agreed),
    ("destination.started", Deaf, Destination),
    ("destination.running", Deaf, Destination),
];

pub const MUTE: [Row; 6] = [
    ("source.begun", Mute, Destination),
    ("source.stopped", Mute, Agreed),
    ("source.drained", Mute, Agreed),
    ("source.let-go", Mute, Destination),
    ("destination.started", Mute, Destination),
    ("destination.running", Mute, Destination),
];

pub const JUMPS: [Row; 6] = [
    ("source.begun", Jump("+30d"), Destination),
    ("source.stopped", Jump("-30d"), Destination),
    ("source.ceded", Jump("+30d"), Destination),
    ("source.let-go", Jump("-30d"), Destination),
    ("destination.complete", Jump("+30d"), Destination),
    ("destination.started", Jump("-30d"), Destination),
];

/// The source writes *Stopped*, then *Ceded*; the destination *Starting*, then *Arrived*.
pub const DISKS: [(Side, Row); 12] = [
    (Side::Source, ("record.write", Disk("eio"), Source)),
    (Side::Source, ("record.write", Disk("enospc"), Source)),
    (Side::Source, ("record.write", Disk("3s"), Destination)),
    (Side::Source, ("record.write@2", Disk("eio"), Source)),
    (Side::Source, ("record.write@2", Disk("enospc"), Source)),
    (Side::Source, ("record.write@2", Disk("3s"), Destination)),
    (Side::Destination, ("record.write", Disk("eio"), Source)),
    (Side::Destination, ("record.write", Disk("enospc"), Source)),
    (Side::Destination, ("record.write", Disk("3s"), Destination)),
    (Side::Destination, ("record.write@2", Disk("eio"), Destination)),
    (Side::Destination, ("record.write@2", Disk("enospc"), Destination)),
    (Side::Destination, ("record.write@2", Disk("3s"), Destination)),
];

/// With a QEMU that completes before its guest is let go.
pub const KILLED_OLDER: [Row; 6] = [
    ("source.stopped", Killed, Source),
    ("source.drained", Killed, Source),
    ("source.ceding", Killed, Source),
    ("source.ceded", Killed, Source),
    ("source.let-go", Killed, Agreed),
    ("destination.started", Killed, Destination),
];

/// With the side whose point it is.
pub fn by_name(row: Row) -> (Side, Row) {
    (if row.0.starts_with("source") { Side::Source } else { Side::Destination }, row)
}

/// A small guest that changes pages all the time, over a long link.
pub fn rig() -> Option<Rig> {
    Some(rig_of(&need("QEMU", machine::qemu())?, None))
}

pub fn older_rig() -> Option<Rig> {
    Some(rig_of(&need("two QEMUs", machine::qemu_pair())?.0, None))
}

pub fn rig_with_clocks() -> Option<Rig> {
    let library = need("libfaketime", machine::fake_clock())?;
    Some(rig_of(&need("QEMU", machine::qemu())?, Some(library)))
}

fn rig_of(qemu: &QemuBinary, fake_clock: Option<PathBuf>) -> Rig {
    // All of it each second: after each fault it is waited for up to two rounds.
    let mut load = Load::preset("oltp@1").expect("a preset");
    load.sweep_pages_per_s = Some(MEMORY_MIB << 8);
    let plan = Plan::new("us", qemu).memory_mib(MEMORY_MIB).kind(GuestKind::Bare(load));
    Rig::with(plan, |settings| {
        settings.fake_clock = fake_clock.clone();
        settings.more = "[link]\ndead_after = \"3s\"\nconnect_timeout = \"3s\"\n".to_owned();
    })
}

/// One after the other, with one guest.
pub fn walk<const N: usize>(rig: Option<Rig>, rows: [(Side, Row); N], flags: &[&str]) {
    let Some(mut rig) = rig else { return };
    rows.into_iter().for_each(|row| survive(&mut rig, row, flags));
}

/// The rig is ready for another move afterwards.
pub fn survive(rig: &mut Rig, (side, (point, what, ends)): (Side, Row), flags: &[&str]) {
    println!("{side:?} {point} {what:?} {flags:?}");
    let wanted = match what {
        Killed => "kill",
        Still | Cut | Deaf | Mute | Jump(_) => "stop",
        Disk(what) => what,
    };
    let other = if side == Side::Source { Side::Destination } else { Side::Source };
    rig.restart_daemon(other, "");
    rig.restart_daemon(side, &format!("{point}:{wanted}"));
    rig.arm();
    let command = rig.migrate_beside(flags);
    happens(rig, side, what);
    examine(rig, command, ends);
}

fn happens(rig: &mut Rig, side: Side, what: What) {
    let goes_on = |rig: &mut Rig| {
        let site = if side == Side::Source { rig.source_site() } else { rig.destination_site() };
        site.signal(Signal::SIGCONT);
    };
    match what {
        Killed => {
            rig.wait_dead(side, REACHED);
            rig.restart_daemon(side, "");
        }
        Still => {
            rig.wait_still(side, REACHED);
            std::thread::sleep(STILL);
            goes_on(rig);
        }
        Cut => {
            rig.wait_still(side, REACHED);
            rig.network().set_outage(true);
            goes_on(rig);
            std::thread::sleep(OUTAGE);
            rig.network().set_outage(false);
        }
        Deaf => {
            rig.wait_still(side, REACHED);
            rig.set_return_outage(true);
            goes_on(rig);
            std::thread::sleep(OUTAGE);
            rig.set_return_outage(false);
        }
        Mute => {
            rig.wait_still(side, REACHED);
            rig.set_forward_outage(true);
            goes_on(rig);
            std::thread::sleep(OUTAGE);
            rig.set_forward_outage(false);
        }
        Jump(by) => {
            rig.wait_still(side, REACHED);
            rig.source_site().jump_clock(by);
            rig.destination_site().jump_clock(by);
            goes_on(rig);
        }
        Disk(_) => {}
    }
}

/// Where the guest is, what was said of it, and that its memory is whole. Then the rig is ready for another move.
pub fn examine(rig: &mut Rig, command: Running, ends: Ends) {
    let output = command.wait(COMMAND);
    let phase = rig.source_phase().map(|_| rig.wait_source_final(SETTLE));
    let side = rig.settles(SETTLE);
    match ends {
        Source => assert_eq!(side, Side::Source, "{output}"),
        Destination => assert_eq!(side, Side::Destination, "{output}"),
        Agreed => {}
    }
    match (output.code, side) {
        (Some(MOVED), Side::Destination) => assert_eq!(output.whereabouts(), "runs-at-destination"),
        (Some(FAILED | UNREACHABLE), Side::Source) => {
            let said = output.whereabouts();
            assert!(matches!(said.as_str(), "runs-at-source" | "untouched"), "{output}");
        }
        (Some(IN_DOUBT), _) => assert_eq!(output.whereabouts(), "in-doubt"),
        (Some(DAEMON_GONE), _) => {}
        _ => panic!("the guest is at the {side:?}; {output}"),
    }
    match (phase.as_deref(), side) {
        (Some("moved"), Side::Destination) | (Some("failed" | "resumed"), Side::Source) => {}
        // A daemon that found nothing on record knows of no move.
        (None, _) if output.code == Some(DAEMON_GONE) => {}
        (phase, side) => panic!("the guest is at the {side:?}, and the source says {phase:?}; {output}"),
    }
    rig.assert_whole(side);
    println!("  {:?}: exit code {:?}, {phase:?}", side, output.code);
    match side {
        Side::Source => rig.disarm(),
        Side::Destination => rig.turn_around(),
    }
}
