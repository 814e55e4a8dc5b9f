//! The whole table of faults, once: `hikyaku_tests::crash`.

use hikyaku_tests::crash::{
    CUT_OFF, DEAF, DISKS, Ends, JUMPS, KILLED, KILLED_OLDER, KILLED_SAFE, MUTE, REACHED, SAFE,
    STANDING_STILL, by_name, examine, older_rig, rig, rig_with_clocks, walk,
};
use hikyaku_tests::rig::Side;
use std::time::Duration;

#[test]
fn a_daemon_dies() {
    walk(rig(), KILLED.map(by_name), &[]);
}

#[test]
fn a_daemon_dies_in_the_safe_switch_over() {
    walk(rig(), KILLED_SAFE.map(by_name), SAFE);
}

#[test]
fn a_daemon_dies_beside_an_older_qemu() {
    walk(older_rig(), KILLED_OLDER.map(by_name), &[]);
}

#[test]
fn a_daemon_stands_still() {
    walk(rig(), STANDING_STILL.map(by_name), &[]);
}

#[test]
fn the_link_is_cut() {
    walk(rig(), CUT_OFF.map(by_name), &[]);
}

#[test]
fn nothing_comes_back() {
    walk(rig(), DEAF.map(by_name), &[]);
}

#[test]
fn nothing_gets_through() {
    walk(rig(), MUTE.map(by_name), &[]);
}

/// No decision goes by the time of day.
#[test]
fn the_clock_jumps() {
    walk(rig_with_clocks(), JUMPS.map(by_name), &[]);
}

#[test]
fn a_disk_takes_nothing() {
    walk(rig(), DISKS, &[]);
}

/// A guest does not stand for as long as a disk does: it is given back after a while, or when somebody wants it back.
#[test]
fn a_disk_that_hangs_gives_the_guest_back() {
    let Some(mut rig) = rig() else { return };
    // At *Stopped* it still runs, at *Ceded* it stands.
    for (hangs, phase) in [("record.write:40s", "copying"), ("record.write@2:40s", "stopped")] {
        rig.restart_daemon(Side::Source, hangs);
        rig.arm();
        let command = rig.migrate_beside(&[]);
        command.wait_phase(phase);
        std::thread::sleep(Duration::from_secs(4));
        rig.source_site().hikyaku(["cancel", rig.guest_name()], REACHED).expect_code(0);
        assert_eq!(rig.settles(Duration::from_secs(5)), Side::Source);
        command.wait(Duration::from_secs(5)).expect_code(8);
        rig.disarm();
    }
}

/// It was given back, and whatever the disk does afterwards the next daemon finds it where it is.
#[test]
fn a_record_that_nobody_waited_for_is_not_there_later() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Source, "record.write@2:8s");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("stopped");
    std::thread::sleep(Duration::from_secs(1));
    rig.source_site().hikyaku(["cancel", rig.guest_name()], REACHED).expect_code(0);
    command.wait(REACHED).expect_code(8);
    rig.source_site_mut().stop();
    assert_eq!(rig.source_site().records(), 0);
    rig.restart_daemon(Side::Source, "");
    assert_eq!(rig.source_phase(), None);
    assert_eq!(rig.settles(Duration::from_secs(5)), Side::Source);
}

/// What became of the guest is known, and is told.
#[test]
fn a_disk_that_does_not_let_go_of_a_record_holds_up_nobody() {
    let soon = Duration::from_secs(15);
    let cancelled = "record.write@2:30s,record.remove:60s";
    for (points, code, ends) in [("record.remove:60s", 0, Side::Destination), (cancelled, 8, Side::Source)] {
        let Some(mut rig) = rig() else { return };
        rig.restart_daemon(Side::Source, points);
        rig.arm();
        let there = rig.watch_destination();
        let command = rig.migrate_beside(&[]);
        if code != 0 {
            command.wait_phase("stopped");
            rig.source_site().hikyaku(["cancel", rig.guest_name()], soon).expect_code(0);
        }
        command.wait(soon).expect_code(code);
        there.wait(soon).expect_code(code);
        assert_eq!(rig.settles(soon), ends);
    }
}

/// Whoever reads a record waits for the disk, and nobody else.
#[test]
fn a_disk_that_is_slow_to_read_holds_up_nobody_else() {
    let Some(mut rig) = rig() else { return };
    rig.restart_daemon(Side::Destination, "record.read:10s");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    std::thread::sleep(Duration::from_secs(2));
    rig.destination_site().hikyaku(["list"], Duration::from_secs(2)).expect_code(0);
    command.wait(REACHED).expect_code(0);
    assert_eq!(rig.settles(Duration::from_secs(5)), Side::Destination);
}

/// The destination refuses after GO, because its disk is full; and whoever has to deal with that dies.
#[test]
fn a_daemon_dies_in_a_refusal() {
    const FULL: &str = "record.write:enospc";
    let Some(mut rig) = rig() else { return };
    let killed = |what: &str| format!("{FULL},{what}:kill");
    for (source, destination, dies) in [
        ("source.returning:kill", FULL.to_owned(), Side::Source),
        ("source.continued:kill", FULL.to_owned(), Side::Source),
        ("", killed("destination.refusing"), Side::Destination),
        ("", killed("destination.refused"), Side::Destination),
    ] {
        println!("{source} {destination}");
        rig.restart_daemon(Side::Source, source);
        rig.restart_daemon(Side::Destination, &destination);
        rig.arm();
        let command = rig.migrate_beside(&[]);
        rig.wait_dead(dies, REACHED);
        rig.restart_daemon(dies, "");
        examine(&mut rig, command, Ends::Source);
    }
    // The next daemon there dies when it is asked, before it has answered.
    rig.restart_daemon(Side::Source, "");
    rig.restart_daemon(Side::Destination, "destination.go:kill");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_dead(Side::Destination, REACHED);
    rig.restart_daemon(Side::Destination, "destination.asked:kill");
    rig.wait_dead(Side::Destination, REACHED);
    rig.restart_daemon(Side::Destination, "");
    examine(&mut rig, command, Ends::Source);
}
