//! Somebody else, or QEMU itself, has a hand on the guest while it is moved.

use std::time::Duration;

use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use nix::sys::signal::Signal;
use serde_json::json;

const CANCELLED: i32 = 8;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;
const COMMAND: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);
/// Pages have arrived, and most of them have not.
const SOME_PAGES_BYTES: u64 = 2 << 20;
/// The power button of a q35, as its firmware sets it up: what a guest writes to be switched off.
const POWER_OFF: &str = "o /w 0x604 0x2000";

fn older(guest: &str) -> Option<Rig> {
    let (older, _) = need("two QEMUs", machine::qemu_pair())?;
    Some(Rig::new(Plan::new("lan", &older).memory_mib(64).kind(GuestKind::bare(guest))))
}

// ---- a QEMU that stops its guest continues it, too, if its migration fails; and the guest's stream says that it ran

#[test]
fn an_older_qemu_has_no_time_to_stop_its_guest_by_itself() {
    let Some(mut rig) = older("oltp@1") else { return };
    rig.restart_daemon(Side::Source, "source.stopping:500ms");
    rig.migrate_paused(&[]);
    rig.assert_memory_equal();
}

/// It is as well moved then: its migration is over before the guest is let go.
#[test]
fn an_older_qemu_that_stops_its_guest_by_itself() {
    let Some(mut rig) = older("rand@20") else { return };
    rig.arm();
    let command = rig.migrate_beside(&["--downtime", "1ms"]);
    command.wait_phase("copying");
    rig.source().qmp("migrate-set-parameters", json!({ "downtime-limit": 2_000_000 })).expect("QMP");
    command.wait(COMMAND).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    rig.assert_whole(Side::Destination);
}

/// Nobody has noticed yet that the link is out: the guest is let go, and comes with the link. Or QEMU is held until the link is back.
#[test]
fn an_older_qemu_that_stops_its_guest_while_the_link_is_out() {
    let Some(mut rig) = older("rand@20") else { return };
    rig.arm();
    let command = rig.migrate_beside(&["--downtime", "1ms"]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.network().set_outage(true);
    rig.source().qmp("migrate-set-parameters", json!({ "downtime-limit": 2_000_000 })).expect("QMP");
    std::thread::sleep(Duration::from_secs(6));
    rig.network().set_outage(false);
    let output = command.wait(COMMAND);
    assert!(matches!(output.code, Some(0 | IN_DOUBT)), "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    rig.assert_whole(Side::Destination);
}

/// What is left of an idle guest may all be in the socket when it is stopped.
#[test]
fn an_idle_guest_of_an_older_qemu_is_moved() {
    let Some(mut rig) = older("idle") else { return };
    for _ in 0..6 {
        rig.arm();
        rig.migrate(&[]).expect_code(0);
        rig.settles(SETTLE);
        rig.turn_around();
    }
}

// ---- somebody sends QMP commands of his own

/// Nothing of it was let go: it is his. (A QEMU whose migration is not over refuses him; an older one's is over by then.)
#[test]
fn who_continues_a_stopped_guest_keeps_it() {
    let Some(mut rig) = older("oltp@1") else { return };
    rig.restart_daemon(Side::Source, "source.ceded:stop");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Source, COMMAND);
    rig.source().cont().expect("QMP");
    rig.source_site().signal(Signal::SIGCONT);
    let output = command.wait(COMMAND).expect_code(FAILED);
    println!("{}", output.stderr);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.assert_whole(Side::Source);
}

/// We were about to, and did not.
#[test]
fn who_stops_a_guest_before_we_do_keeps_it_stopped() {
    let Some(mut rig) = busy(&[]) else { return };
    rig.restart_daemon(Side::Source, "record.write:40s");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("copying");
    std::thread::sleep(Duration::from_secs(4));
    rig.source().stop().expect("QMP");
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND).expect_code(0);
    command.wait(COMMAND).expect_code(CANCELLED);
    rig.assert_stands();
    rig.source().cont().expect("QMP");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

// ---- the guest itself

/// The same, to be put to sleep (S3).
const SLEEP: &str = "o /w 0x604 0x2400";

/// Its QEMU waits for nobody at the end, and would not survive being told to continue it.
#[test]
fn a_guest_that_sleeps_is_not_moved() {
    let Some(mut rig) = busy(&[]) else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source().hmp(SLEEP).expect("HMP");
    let output = command.wait(COMMAND).expect_code(FAILED);
    assert!(output.text().contains("sleeps"), "{output}");
    assert_eq!(rig.source().status().expect("QMP"), "suspended");
    rig.disarm();
    rig.arm();
    let output = rig.migrate(&[]).expect_code(FAILED);
    assert!(output.text().contains("sleeps"), "{output}");
    assert_eq!(rig.source().status().expect("QMP"), "suspended");
    // It wakes, which resets a guest that knows nothing of sleep.
    rig.source().qmp("system_wakeup", json!({})).expect("QMP");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

fn busy(args: &[&str]) -> Option<Rig> {
    let qemu = need("QEMU", machine::qemu())?;
    let plan = Plan::new("cloudnet", &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1"));
    Some(Rig::new(plan.args(args, args)))
}

#[test]
fn a_guest_that_reboots_while_its_pages_go_is_moved() {
    let Some(mut rig) = busy(&[]) else { return };
    rig.migrate_paused_disturbed(&[], |rig, command| {
        command.wait_acked(SOME_PAGES_BYTES);
        rig.source().qmp("system_reset", json!({})).expect("QMP");
    });
    rig.assert_memory_equal();
}

/// Its QEMU stays, for that is how it was started, and the guest is what it was: shut down.
#[test]
fn a_guest_that_shuts_down_while_its_pages_go_arrives_shut_down() {
    let Some(mut rig) = busy(&["-no-shutdown"]) else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source().hmp(POWER_OFF).expect("HMP");
    let output = command.wait(COMMAND).expect_code(0);
    assert_eq!(output.whereabouts(), "stopped-at-destination", "{output}");
    assert_eq!(rig.destination().status().expect("QMP"), "shutdown");
    rig.assert_stands();
}

/// Its QEMU ends with it.
#[test]
fn a_guest_that_shuts_down_for_good_is_not_moved() {
    let Some(mut rig) = busy(&[]) else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    // It ends before it answers.
    let _ = rig.source().hmp(POWER_OFF);
    let output = command.wait(COMMAND).expect_code(FAILED);
    assert_eq!(output.whereabouts(), "ended-at-source", "{output}");
    rig.assert_stands();
}
