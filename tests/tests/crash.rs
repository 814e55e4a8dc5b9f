//! The whole table of faults, once: `hikyaku_tests::crash`.

use hikyaku_tests::crash::{
    CUT_OFF, DEAF, DISKS, Ends, JUMPS, KILLED, KILLED_OLDER, KILLED_SAFE, MUTE, REACHED, SAFE,
    STANDING_STILL, by_name, examine, older_rig, rig, rig_with_clocks, walk,
};
use hikyaku_tests::rig::Side;

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
    rig.restart_daemon(Side::Source, "record.write@2:40s");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("stopped");
    std::thread::sleep(std::time::Duration::from_secs(1));
    rig.source_site().hikyaku(["cancel", rig.guest_name()], REACHED).expect_code(0);
    assert_eq!(rig.settles(std::time::Duration::from_secs(5)), Side::Source);
    command.wait(REACHED).expect_code(8);
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
