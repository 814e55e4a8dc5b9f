//! A guest received with `--paused` has, page for page, the memory the stopped source has: RAM, VGA and ROMs.

use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};

fn arrives_equal(plan: Plan, flags: &[&str]) {
    let mut rig = Rig::new(plan);
    let output = rig.migrate_paused(flags);
    let finished = output.events("finished").pop().unwrap_or_else(|| panic!("no end is told; {output}"));
    let deltas = finished["data"]["numbers"]["delta_pages"].as_u64().expect("a count of deltas");
    if flags.contains(&"off") || flags.contains(&"--raw") {
        assert_eq!(deltas, 0, "pages went as deltas");
    }
    rig.assert_memory_equal();
    // A comparison that cannot fail shows nothing: the guest works on, and then the memories differ.
    rig.assert_memory_differs_once_it_works_on();
}

#[test]
fn native() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives_equal(Plan::new("jgn", &qemu), &[]);
}

#[test]
fn native_to_another_continent() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    for link in ["us", "eu"] {
        arrives_equal(Plan::new(link, &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1")), &[]);
    }
}

#[test]
fn raw_relay() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives_equal(Plan::new("jgn", &qemu), &["--raw"]);
}

#[test]
fn without_deltas() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives_equal(Plan::new("jgn", &qemu), &["--delta", "off"]);
}

#[test]
fn native_between_old_qemus() {
    let Some((old, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives_equal(Plan::new("lan", &old), &[]);
}

#[test]
fn without_deltas_between_old_qemus() {
    let Some((old, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives_equal(Plan::new("lan", &old), &["--delta", "off"]);
}

#[test]
fn native_from_an_old_qemu_to_a_new_one() {
    let Some((old, new)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives_equal(Plan::new("lan", &old).to(&new), &[]);
}

#[test]
fn raw_from_an_old_qemu_to_a_new_one() {
    let Some((old, new)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives_equal(Plan::new("lan", &old).to(&new), &["--raw"]);
}

/// A guest that was stopped before it was moved arrives stopped, whatever was asked at the destination.
#[test]
fn a_guest_that_stood_arrives_standing() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    rig.stop_guest();
    rig.arm();
    rig.migrate(&[]).expect_code(0);
    assert_eq!(rig.destination().status().expect("QMP"), "paused");
    rig.assert_memory_equal();
    rig.assert_memory_differs_once_it_works_on();
}

#[test]
fn a_linux_guest() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let Some(linux) = need("a Linux kernel and busybox", GuestKind::linux()) else { return };
    arrives_equal(Plan::new("jgn", &qemu).kind(linux), &[]);
}

#[test]
fn a_linux_guest_relayed_raw() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let Some(linux) = need("a Linux kernel and busybox", GuestKind::linux()) else { return };
    arrives_equal(Plan::new("jgn", &qemu).kind(linux), &["--raw"]);
}
