//! A guest in doubt, and a person who decides.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hikyaku_tests::command::{Output, Running};
use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use nix::sys::signal::Signal;
use serde_json::json;

const USAGE: i32 = 2;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;
const COMMAND: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);

fn rig() -> Option<Rig> {
    let qemu = need("QEMU", machine::qemu())?;
    let plan = Plan::new("eu", &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1"));
    let mut rig = Rig::with(plan, |settings| {
        settings.more = "[link]\ndead_after = \"3s\"\nconnect_timeout = \"3s\"\n".to_owned();
    });
    rig.arm();
    Some(rig)
}

/// The destination's host goes down with the guest in its hands, before it ran there.
fn lost_with_its_host(rig: &mut Rig) -> Running {
    rig.restart_daemon(Side::Destination, "destination.go:stop");
    rig.receive(&[]);
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Destination, COMMAND);
    rig.destination_site_mut().kill();
    rig.signal_destination_qemu(Signal::SIGKILL);
    command
}

fn resolve(rig: &Rig, flags: &[&str]) -> Output {
    rig.source_site().hikyaku([&["resolve", rig.guest_name()], flags].concat(), COMMAND)
}

/// It has arrived, and the source does not hear so.
fn runs_there_unheard(rig: &mut Rig) {
    let command = rig.migrate_beside(&[]);
    let there = rig.watch_destination();
    there.wait_phase("starting");
    rig.set_return_outage(true);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    command.wait(COMMAND).expect_code(IN_DOUBT);
}

fn there(rig: &Rig, words: &[&str]) -> Output {
    rig.destination_site().hikyaku([&[words[0], rig.guest_name()], &words[1..]].concat(), COMMAND)
}

#[test]
fn a_guest_whose_destination_is_gone_goes_on_here() {
    let Some(mut rig) = rig() else { return };
    let output = lost_with_its_host(&mut rig).wait(COMMAND).expect_code(IN_DOUBT);
    assert_eq!(output.whereabouts(), "in-doubt", "{output}");
    rig.assert_stands();
    // Not by accident.
    let refused = resolve(&rig, &["--here"]).expect_code(USAGE);
    assert!(refused.text().contains("not confirmed"), "{refused}");
    rig.assert_stands();
    resolve(&rig, &["--here", "--fenced"]).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    assert_eq!(rig.wait_source_final(SETTLE), "resumed");
    rig.assert_whole(Side::Source);
    resolve(&rig, &["--here", "--fenced"]).expect_code(USAGE);
    // The next daemon is not in doubt, and tells the destination when that is back.
    rig.restart_source_daemon();
    assert_eq!(rig.source_site().records(), 1);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.restart_destination_daemon();
    wait_told(&rig);
    rig.assert_whole(Side::Source);
}

/// Nothing is on record of it any more, at either side.
#[track_caller]
fn wait_told(rig: &Rig) {
    let deadline = Instant::now() + SETTLE;
    while rig.source_site().records() + rig.destination_site().records() > 0 {
        assert!(Instant::now() < deadline, "{}", there(rig, &["list"]));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Its destination was starting it, and would be in doubt for ever.
#[test]
fn a_destination_that_comes_back_hears_that_the_guest_was_kept() {
    let Some(mut rig) = rig() else { return };
    let command = started_and_lost(&mut rig);
    command.wait(COMMAND).expect_code(IN_DOUBT);
    resolve(&rig, &["--here", "--fenced"]).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    assert_eq!((rig.source_site().records(), rig.destination_site().records()), (1, 1));
    rig.restart_destination_daemon();
    wait_told(&rig);
    let status = there(&rig, &["status"]);
    assert!(status.text().contains("its source keeps it"), "{status}");
    rig.assert_whole(Side::Source);
}

/// The destination's host goes down when it has told its QEMU to run the guest.
fn started_and_lost(rig: &mut Rig) -> Running {
    rig.disarm();
    rig.restart_daemon(Side::Destination, "destination.started:stop");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Destination, COMMAND);
    rig.destination_site_mut().kill();
    rig.signal_destination_qemu(Signal::SIGKILL);
    command
}

/// What somebody has said was not so: it runs there.
#[test]
fn a_guest_that_was_said_to_be_here_and_runs_there_is_told_to_be_at_both() {
    let Some(mut rig) = rig() else { return };
    runs_there_unheard(&mut rig);
    resolve(&rig, &["--here", "--fenced"]).expect_code(0);
    assert_eq!(rig.wait_source_final(SETTLE), "resumed");
    rig.set_return_outage(false);
    wait_at_both(&rig);
    // By the next daemon, too, until somebody has ended one of them and says so.
    rig.restart_source_daemon();
    wait_at_both(&rig);
    let list = rig.source_site().hikyaku(["list"], COMMAND).expect_code(0);
    assert!(list.stdout.contains("AT BOTH"), "{list}");
    resolve(&rig, &["--there"]).expect_code(USAGE);
    resolve(&rig, &["--there", "--fenced"]).expect_code(0);
    wait_told(&rig);
    assert_eq!(rig.source_status()["outcome"]["guest"], "left-to-destination");
}

#[track_caller]
fn wait_at_both(rig: &Rig) {
    let deadline = Instant::now() + SETTLE;
    while rig.source_status()["outcome"]["guest"] != "at-both" {
        assert!(Instant::now() < deadline, "{}", rig.source_status());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The link is back, and the guest is being started there.
#[test]
fn what_is_not_in_doubt_any_more_is_not_resolved() {
    let Some(mut rig) = rig() else { return };
    rig.disarm();
    rig.restart_daemon(Side::Destination, "record.write:30s");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("ceded");
    rig.network().set_outage(true);
    command.wait(COMMAND).expect_code(IN_DOUBT);
    assert_eq!(rig.source_status()["outcome"]["ending"], "in-doubt");
    rig.network().set_outage(false);
    let deadline = Instant::now() + Duration::from_secs(10);
    while rig.source_status()["outcome"].is_object() {
        assert!(Instant::now() < deadline, "{}", rig.source_status());
        std::thread::sleep(Duration::from_millis(50));
    }
    resolve(&rig, &["--here", "--fenced"]).expect_code(USAGE);
    assert_eq!(rig.settles(2 * SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
}

#[test]
fn a_guest_that_is_the_other_hosts_is_given_up_here() {
    let Some(mut rig) = rig() else { return };
    runs_there_unheard(&mut rig);
    let said = resolve(&rig, &["--there", "--fenced"]).expect_code(0);
    assert!(said.text().contains("given up here") && !said.text().contains("IN DOUBT"), "{said}");
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_eq!(
        rig.source_status()["outcome"]["guest"],
        "left-to-destination",
        "nobody has seen it run there"
    );
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.source().status().expect("QMP"), "postmigrate");
}

/// It was the destination's, and its QEMU is gone before the daemon there is back.
#[test]
fn a_guest_whose_qemu_has_ended_where_it_went_is_said_to_have_ended() {
    let Some(mut rig) = rig() else { return };
    let command = started_and_lost(&mut rig);
    rig.restart_destination_daemon();
    command.wait(COMMAND).expect_code(IN_DOUBT);
    wait_in_doubt(&rig, "");
    // Whoever says so there learns at once what that means.
    let said = there(&rig, &["resolve", "--here", "--fenced"]).expect_code(0);
    assert!(said.text().contains("has ended, and the guest with it"), "{said}");
    assert!(!said.text().contains("IN DOUBT"), "{said}");
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_ne!(rig.source().status().expect("QMP"), "running");
}

/// Another QEMU has been started in its place, with the same socket.
#[test]
fn a_guest_whose_qemu_has_ended_is_not_taken_for_what_answers_in_its_place() {
    let Some(mut rig) = rig() else { return };
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let command = started_and_lost(&mut rig);
    command.wait(COMMAND).expect_code(IN_DOUBT);
    let socket = format!("unix:{},server=on,wait=off", rig.destination().qmp_path().display());
    let options = ["-machine", "none", "-display", "none", "-qmp", &socket];
    let _other = Other(Command::new(&qemu.path).args(options).spawn().expect("QEMU"));
    rig.restart_destination_daemon();
    wait_in_doubt(&rig, "another QEMU answers on its socket");
    let said = there(&rig, &["resolve", "--here", "--fenced"]).expect_code(0);
    assert!(said.text().contains("has ended, and the guest with it"), "{said}");
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
}

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Somebody stops it as often as it is told to run.
#[test]
fn a_guest_that_is_told_to_run_and_does_not_is_in_doubt_until_it_does() {
    let Some(mut rig) = rig() else { return };
    rig.disarm();
    rig.restart_daemon(Side::Destination, "destination.started:stop");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Destination, COMMAND);
    rig.restart_destination_daemon();
    let deadline = Instant::now() + SETTLE;
    while !there(&rig, &["status"]).text().contains("told to run, and does not run yet") {
        assert!(Instant::now() < deadline, "{}", there(&rig, &["status"]));
        for _ in 0..40 {
            rig.destination().qmp("stop", json!({})).expect("QMP");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    let output = command.wait(COMMAND);
    assert!([Some(0), Some(IN_DOUBT)].contains(&output.code), "{output}");
}

#[track_caller]
fn wait_in_doubt(rig: &Rig, why: &str) {
    let deadline = Instant::now() + SETTLE;
    loop {
        let status = there(rig, &["status"]).text();
        if status.contains("IN DOUBT") && status.contains(why) {
            return;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A QEMU that is about to end its migration does not obey (10.0); of one that does the guest stays, for until GO it is the source's.
#[test]
fn who_continues_a_guest_that_is_held_stopped_does_not_make_two() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Source, "source.drained:stop");
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Source, COMMAND);
    let obeyed = rig.source().qmp("cont", json!({})).is_ok();
    rig.source_site().signal(Signal::SIGCONT);
    if obeyed {
        let output = command.wait(COMMAND).expect_code(FAILED);
        assert!(output.text().contains("somebody continued the guest"), "{output}");
        assert_eq!(rig.settles(SETTLE), Side::Source);
    } else {
        command.wait(COMMAND).expect_code(0);
        assert_eq!(rig.settles(SETTLE), Side::Destination);
    }
}

#[test]
fn a_migration_that_is_cancelled_in_qemu_while_the_guest_stands_gives_it_back() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Source, "source.stopped:stop");
    let command = rig.migrate_beside(&["--switchover", "safe"]);
    rig.wait_still(Side::Source, COMMAND);
    rig.source().qmp("migrate_cancel", json!({})).expect("QMP");
    rig.source_site().signal(Signal::SIGCONT);
    let output = command.wait(COMMAND);
    let side = rig.settles(SETTLE);
    match output.code {
        Some(FAILED) => assert_eq!(side, Side::Source, "{output}"),
        // QEMU was done before it was told.
        Some(0) => assert_eq!(side, Side::Destination, "{output}"),
        _ => panic!("{output}"),
    }
}

/// The link goes while GO is on its way; whoever says meanwhile that the guest is here is believed, whatever comes later.
#[test]
fn a_go_that_was_not_heard_is_not_said_after_resolve() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Source, "source.ceded:stop");
    let command = rig.migrate_beside(&["--switchover", "safe"]);
    rig.wait_still(Side::Source, COMMAND);
    rig.network().set_outage(true);
    rig.source_site().signal(Signal::SIGCONT);
    let output = command.wait(COMMAND);
    if output.code == Some(FAILED) {
        // It was seen in time that the link was down: nothing was let go.
        return assert_eq!(rig.settles(SETTLE), Side::Source);
    }
    assert_eq!(output.code, Some(IN_DOUBT), "{output}");
    rig.assert_stands();
    resolve(&rig, &["--here", "--fenced"]).expect_code(0);
    assert_eq!(rig.wait_source_final(SETTLE), "resumed");
    assert_eq!(rig.settles(SETTLE), Side::Source);
    let there = rig.watch_destination();
    rig.network().set_outage(false);
    there.wait(COMMAND).expect_code(FAILED);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// An older QEMU obeys: its migration is over before its guest is let go.
#[test]
fn who_continues_a_guest_that_is_let_go_is_stopped_again() {
    let Some((older, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    let plan = Plan::new("eu", &older).memory_mib(64).kind(GuestKind::bare("oltp@1"));
    let mut rig = Rig::with(plan, |settings| {
        settings.more =
            "[link]\ndead_after = \"3s\"\nconnect_timeout = \"3s\"\ntimeout = \"5s\"\n".to_owned();
    });
    rig.arm();
    // The destination never gets to it, and the source asks in vain.
    let command = lost_with_its_host(&mut rig);
    command.wait(COMMAND).expect_code(IN_DOUBT);
    for restarts in [false, true] {
        if restarts {
            rig.restart_source_daemon();
        }
        std::thread::sleep(Duration::from_secs(3));
        rig.assert_stands();
        rig.source().cont().expect("it obeys");
        let deadline = std::time::Instant::now() + SETTLE;
        while rig.source().status().expect("QMP") == "running" {
            assert!(std::time::Instant::now() < deadline, "it runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
        rig.assert_stands();
    }
    resolve(&rig, &["--here", "--fenced"]).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// What an earlier move left on record of the guest's QEMU would have the next daemon continue it here, wherever it has gone.
#[test]
fn no_guest_is_moved_over_a_record_of_it() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Source, "source.stopped:kill");
    let command = rig.migrate_beside(&[]);
    rig.wait_dead(Side::Source, COMMAND);
    drop(command);
    let left_over = rig.source_site().read_records();
    assert_eq!(left_over.len(), 1);
    rig.restart_source_daemon();
    assert_eq!(rig.settles(SETTLE), Side::Source);
    assert_eq!(rig.wait_source_final(SETTLE), "failed");
    // As if it had not been removed then.
    rig.source_site().write_records(&left_over);
    rig.arm();
    rig.migrate(&[]).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.source_site().records(), 0);
    rig.restart_source_daemon();
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}
