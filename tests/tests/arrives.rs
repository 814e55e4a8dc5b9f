//! A guest that keeps working arrives, over every kind of link, between every pair of QEMUs, and more than once.

use std::time::Duration;

use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};
use serde_json::Value;

const COMMAND: Duration = Duration::from_secs(30);

/// Moved live: it works on at the destination, nothing is missing, the source has let go.
fn arrives(plan: Plan, flags: &[&str]) {
    let mut rig = Rig::new(plan);
    rig.migrate_live(flags);
}

fn over(link: &'static str) {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives(Plan::new(link, &qemu), &[]);
}

#[test]
fn over_a_campus() {
    over("lan");
}

/// And both sides say what there is to say.
#[test]
fn over_40_ms() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    rig.migrate_live(&[]);
    let said = rig.source_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
    assert!(said.text().contains("The stopped copy here"), "{said}");
    let there = ["--json", "status", rig.guest_name()];
    let there = rig.destination_site().hikyaku(there, COMMAND).expect_code(0);
    let there: Value = serde_json::from_str(&there.stdout).expect("JSON");
    assert_eq!(there["numbers"]["pages_done"], there["numbers"]["pages_total"], "{there}");
}

#[test]
fn over_120_ms() {
    over("us");
}

#[test]
fn over_200_ms() {
    over("eu");
}

#[test]
fn from_a_qemu_without_switchover_ack_to_another() {
    let Some((old, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives(Plan::new("us", &old), &[]);
}

#[test]
fn from_an_old_qemu_to_a_new_one() {
    let Some((old, new)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives(Plan::new("jgn", &old).to(&new), &[]);
}

#[test]
fn relayed_as_it_is() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives(Plan::new("jgn", &qemu), &["--raw"]);
}

#[test]
fn with_the_policy_of_xen_3() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives(Plan::new("jgn", &qemu), &["--policy", "xen-3"]);
}

#[test]
fn handed_over_after_a_confirmation() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives(Plan::new("jgn", &qemu), &["--switchover", "safe"]);
}

/// There live; back for the comparison of every page.
#[test]
fn a_kvm_guest_over_40_ms() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let Some(()) = machine::kvm() else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu).kvm());
    rig.migrate_live(&[]);
    rig.turn_around();
    rig.migrate_paused(&[]);
    rig.assert_memory_equal();
    rig.assert_memory_differs_once_it_works_on();
}

fn linux_over(link: &'static str) {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let Some(linux) = need("a Linux kernel and busybox", GuestKind::linux()) else { return };
    arrives(Plan::new(link, &qemu).kind(linux), &[]);
}

#[test]
fn a_linux_guest_over_a_campus() {
    linux_over("lan");
}

#[test]
fn a_linux_guest_over_120_ms() {
    linux_over("us");
}

#[test]
fn a_linux_guest_over_200_ms() {
    linux_over("eu");
}

#[test]
fn a_linux_guest_there_and_back_three_times() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let Some(linux) = need("a Linux kernel and busybox", GuestKind::linux()) else { return };
    there_and_back_three_times_as(Plan::new("jgn", &qemu).kind(linux));
}

#[test]
fn a_linux_guest_from_an_old_qemu_to_a_new_one() {
    let Some((old, new)) = need("two QEMUs", machine::qemu_pair()) else { return };
    let Some(linux) = need("a Linux kernel and busybox", GuestKind::linux()) else { return };
    arrives(Plan::new("jgn", &old).to(&new).kind(linux), &[]);
}

#[test]
fn there_and_back_three_times() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    there_and_back_three_times_as(Plan::new("jgn", &qemu));
}

fn there_and_back_three_times_as(plan: Plan) {
    let mut rig = Rig::new(plan);
    for _ in 0..3 {
        rig.migrate_live(&[]);
        rig.turn_around();
        rig.migrate_live(&[]);
        rig.turn_around();
    }
}
