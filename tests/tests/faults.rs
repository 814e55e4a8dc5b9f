//! What goes wrong is said clearly, with the right exit code, and the guest runs on at the source.

use std::time::Duration;

use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::proxy::{Connections, Fault, Kind};
use hikyaku_tests::rig::{Plan, Rig};
use hikyaku_tests::site::{self, Settings};

const UNREACHABLE: i32 = 4;
const NOT_ALLOWED: i32 = 5;
const COMMAND: std::time::Duration = std::time::Duration::from_secs(30);
const INCOMPATIBLE: i32 = 6;
const FAILED: i32 = 9;

/// Where a fault hits a lane: behind the handshake, in the midst of pages.
const IN_THE_PAGES_BYTES: u64 = 1_000_000;
/// The greeting is `HKYK`, the newest version and the oldest.
const VERSIONS_AT: u64 = 4;
/// Of the control connection: behind the greeting.
const IN_THE_HANDSHAKE_BYTES: u64 = 60;
/// Of the control connection: among its messages.
const BEHIND_THE_HANDSHAKE_BYTES: u64 = 600;

fn qemu() -> Option<QemuBinary> {
    need("QEMU", machine::qemu())
}

/// A move between daemons where `a` finds `b` through a proxy with this fault, which must have happened by its end.
fn with_fault(fault: Fault, check: impl FnOnce(&mut Rig)) {
    let Some(qemu) = qemu() else { return };
    let plan = Plan::new("jgn", &qemu);
    let network = site::network(plan.link);
    let mut through_proxy = site::through_proxy(&network);
    let proxy = site::faulty_proxy(&network, fault);
    let mut rig = Rig::on(plan, network, |settings: &mut Settings| {
        through_proxy(settings);
        // The first connection is the migration's.
        settings.more += "[link]\nstanding = \"off\"\n";
    });
    rig.arm();
    check(&mut rig);
    let said = proxy.end();
    assert!(said.stdout.contains("fault"), "nothing was damaged; {said}");
}

#[test]
fn a_peer_with_the_wrong_key() {
    let Some(qemu) = qemu() else { return };
    // `a` takes `b` for somebody whose key nobody there has.
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let stranger = site::make_key(&scratch.path().join("key"));
    let mut rig = Rig::with(Plan::new("jgn", &qemu), |settings: &mut Settings| {
        if settings.name == "a" {
            settings.peers[0].public_key = stranger.clone();
        }
    });
    rig.arm();
    rig.migrate_fails(&[], NOT_ALLOWED);
}

#[test]
fn a_peer_that_does_not_know_us() {
    let Some(qemu) = qemu() else { return };
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let stranger = site::make_key(&scratch.path().join("key"));
    let mut rig = Rig::with(Plan::new("jgn", &qemu), |settings: &mut Settings| {
        if settings.name == "b" {
            settings.peers[0].public_key = stranger.clone();
        }
    });
    rig.arm();
    rig.migrate_fails(&[], NOT_ALLOWED);
}

#[test]
fn a_peer_that_may_not_send() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::with(Plan::new("jgn", &qemu), |settings: &mut Settings| {
        if settings.name == "b" {
            settings.peers[0].allow = vec!["send"];
        }
    });
    rig.arm();
    rig.migrate_fails(&[], NOT_ALLOWED);
}

#[test]
fn nobody_listens_at_the_peer() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    rig.destination_site_mut().kill();
    rig.migrate_fails(&[], UNREACHABLE);
}

#[test]
fn no_guest_is_awaited() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    rig.migrate_fails(&[], FAILED);
}

#[test]
fn a_peer_of_another_version() {
    let fault = Fault { on: Connections::First, at_bytes: VERSIONS_AT, kind: Kind::Xor([2, 0, 2, 0]) };
    with_fault(fault, |rig| {
        rig.migrate_fails(&[], INCOMPATIBLE);
    });
}

#[test]
fn a_wrong_qmp_path() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    rig.arm();
    let nowhere = rig.source_site().directory().join("no-such-socket");
    let arguments = ["migrate", rig.guest_name(), "--to", "b", "--qmp"].map(Into::into);
    let output = rig
        .source_site()
        .hikyaku(arguments.into_iter().chain([nowhere.clone().into_os_string()]), Duration::from_secs(30));
    assert!(output.text().contains("no-such-socket"), "the message names the path; {output}");
    rig.assert_failed(&output, FAILED);
    // Nothing was spoilt by it: the same guest can still be moved.
    rig.migrate_live_armed(&[]);
}

#[test]
fn a_destination_with_another_machine_type() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu).destination_machine("pc"));
    rig.arm();
    rig.migrate_fails(&[], INCOMPATIBLE);
}

#[test]
fn a_destination_with_less_ram() {
    let Some(qemu) = qemu() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu).destination_memory_mib(96));
    rig.arm();
    rig.migrate_fails(&[], INCOMPATIBLE);
    // Whoever waits there sees it, too.
    let status = rig.destination_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
    assert!(status.text().contains("MiB of RAM, the waiting QEMU 96 MiB; still awaiting"), "{status}");
}

#[test]
fn a_byte_flipped_on_a_lane() {
    let fault = Fault { on: Connections::Later, at_bytes: IN_THE_PAGES_BYTES, kind: Kind::Xor([1, 0, 0, 0]) };
    with_fault(fault, |rig| {
        rig.migrate_fails(&[], FAILED);
    });
}

/// Other lanes carry what it had, and it is dialled again.
#[test]
fn a_lane_that_ends_early() {
    let fault = Fault { on: Connections::Later, at_bytes: IN_THE_PAGES_BYTES, kind: Kind::Truncate };
    with_fault(fault, |rig| rig.migrate_live_armed(&[]));
}

#[test]
fn a_control_connection_that_ends_in_the_handshake() {
    let fault = Fault { on: Connections::First, at_bytes: IN_THE_HANDSHAKE_BYTES, kind: Kind::Truncate };
    with_fault(fault, |rig| {
        rig.migrate_fails(&[], UNREACHABLE);
    });
}

#[test]
fn a_control_connection_that_ends_during_the_move() {
    let fault = Fault { on: Connections::First, at_bytes: BEHIND_THE_HANDSHAKE_BYTES, kind: Kind::Truncate };
    with_fault(fault, |rig| rig.migrate_live_armed(&[]));
}
