//! Limits as an operator sets them, counted where they matter: at the link.
//!
//! A guest of 160 MiB takes long enough at 20-60 Mbit/s to be watched; what its pages compress to does not matter.

use std::time::{Duration, Instant};

use hikyaku_lab::steady::asserted;
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};
use hikyaku_tests::site::Settings;

const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const NOT_CONVERGED: i32 = 7;
/// Frames that were begun, and TCP's own start.
const SETTLE: Duration = Duration::from_secs(2);
const WATCHED: Duration = Duration::from_secs(4);
/// Measured again when the machine did something else meanwhile.
const ATTEMPTS: usize = 3;

fn qemu() -> Option<QemuBinary> {
    need("QEMU", machine::qemu())
}

/// Noise does not compress: there is always something to send.
fn plan(qemu: &QemuBinary) -> Plan {
    Plan::new("jgn", qemu).kind(GuestKind::bare("noise@1"))
}

/// What crosses from `a` to `b` is the limit, to a twentieth.
#[track_caller]
fn assert_kept(rig: &Rig, mbit: u32) {
    std::thread::sleep(SETTLE);
    asserted(ATTEMPTS, &format!("{mbit} Mbit/s"), || {
        let sent = || rig.network().counters_of("a", "b").bytes;
        let (began, before) = (Instant::now(), sent());
        std::thread::sleep(WATCHED);
        let rate = (sent() - before) as f64 * 8e-6 / began.elapsed().as_secs_f64();
        println!("{rate:.2} Mbit/s of {mbit}");
        assert!((rate / f64::from(mbit) - 1.0).abs() <= 0.05, "{rate:.2} Mbit/s crossed");
    });
}

fn detached(rig: &mut Rig, flags: &[&str]) {
    rig.arm();
    rig.migrate(&[flags, &["--detach"]].concat()).expect_code(0);
}

fn set(rig: &Rig, flags: &[&str]) -> String {
    let arguments = [&["set", rig.guest_name()], flags].concat();
    rig.source_site().hikyaku(arguments, COMMAND_LIMIT).expect_code(0).stdout
}

#[test]
fn a_limit_is_kept_and_changed_while_the_guest_travels() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(plan(&qemu));
    detached(&mut rig, &["--limit", "40mbit", "--priority", "low"]);
    assert_kept(&rig, 40);
    let said = set(&rig, &["--limit", "20mbit"]);
    assert!(said.contains("at most 20 Mbit/s, priority low"), "{said}");
    assert_kept(&rig, 20);
    let said = set(&rig, &["--limit", "none", "--priority", "high"]);
    assert!(said.contains("no limit of its own, priority high"), "{said}");
    rig.source_site().hikyaku(["watch", rig.guest_name()], COMMAND_LIMIT).expect_code(0);
    assert_eq!(rig.destination().status().expect("QMP"), "running");
    let too_late = rig.source_site().hikyaku(["set", rig.guest_name(), "--limit", "9mbit"], COMMAND_LIMIT);
    assert!(too_late.expect_code(2).text().contains("already ended"));
}

#[test]
fn the_smallest_limit_of_migration_peer_and_host_holds() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::with(plan(&qemu), |settings: &mut Settings| {
        // The peer's table is the last: what follows is still of it.
        settings.more = "limit = \"40mbit\"\n[link]\nlimit = \"60mbit\"\n".to_owned();
    });
    detached(&mut rig, &["--limit", "20mbit"]);
    assert_kept(&rig, 20);
    set(&rig, &["--limit", "none"]);
    assert_kept(&rig, 40);
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND_LIMIT).expect_code(0);
    rig.assert_runs_at_source();
}

#[test]
fn a_limit_below_what_the_guest_dirties_does_not_converge_and_does_not_hang() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu).kind(GuestKind::bare("noise@5")));
    rig.arm();
    let flags = ["--limit", "10mbit", "--deadline", "8s", "--on-deadline", "abort"];
    rig.migrate_fails(&flags, NOT_CONVERGED);
}

#[test]
fn a_limit_that_is_none_is_refused_with_an_example() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("lan", &qemu));
    rig.arm();
    let output = rig.migrate(&["--limit", "500MB"]).expect_code(2);
    assert!(output.text().contains("500mbit"), "{output}");
}
