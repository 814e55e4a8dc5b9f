//! A guest that does not converge is slowed down, as far as the operator allows: it arrives, or runs on at full speed.

use std::time::Duration;

use hikyaku_lab::guest::Load;
use hikyaku_lab::guest::load::Renewal;
use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};

const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const CANCELLED: i32 = 8;
const NOT_CONVERGED: i32 = 7;
/// A pass over an older QEMU's guest goes at the rate of the link: about a second.
const MEMORY_MIB: u32 = 64;
const WATCHED: Duration = Duration::from_secs(2);
/// 40 MB/s, and the guest below rewrites 120. Without nineteen twentieths of its time it cannot.
const LIMIT: [&str; 2] = ["--limit", "320mbit"];

/// Whole pages of noise, as fast as a guest gets at them under TCG: nothing but less of its time helps.
fn plan(qemu: &QemuBinary) -> Plan {
    let mut load = Load::preset("rand@120").expect("a preset");
    (load.change_bytes, load.renewal) = ((4096, 4096), Renewal::Random);
    load.sweep_pages_per_s = Some(2000);
    Plan::new("jgn", qemu).kind(GuestKind::Bare(load)).memory_mib(MEMORY_MIB)
}

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--deadline", "4s", "--on-deadline", "throttle"], &LIMIT[..], more].concat()
}

fn writes_per_s(rig: &mut Rig) -> f64 {
    let writes = |rig: &mut Rig| {
        let beats = rig.source().console().snapshot().heartbeats;
        beats.last().map(|beat| (beat.at, beat.writes)).expect("a heartbeat")
    };
    let (from, before) = writes(rig);
    std::thread::sleep(WATCHED);
    let (until, after) = writes(rig);
    (after - before) as f64 / (until - from).as_secs_f64()
}

fn arrives(qemu: &QemuBinary) {
    let mut rig = Rig::new(plan(qemu));
    rig.arm();
    rig.migrate_disturbed(&flags(&["--throttle-max", "97"]), |_, command| command.wait_throttled(20));
}

#[test]
fn a_guest_that_does_not_converge_is_slowed_down_and_arrives() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    arrives(&qemu);
}

#[test]
fn a_guest_of_an_old_qemu_is_slowed_down_and_arrives() {
    let Some((old, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    arrives(&old);
}

#[test]
fn a_guest_that_was_slowed_down_and_stays_runs_at_full_speed() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    timed(2, "the guest's speed", || stays_at_full_speed(&qemu));
}

fn stays_at_full_speed(qemu: &QemuBinary) {
    let mut rig = Rig::new(plan(qemu));
    let parameters = rig.source().qmp("query-migrate-parameters", serde_json::json!({})).expect("QMP");
    let capabilities = rig.source().qmp("query-migrate-capabilities", serde_json::json!({})).expect("QMP");
    let before = writes_per_s(&mut rig);
    rig.arm();
    let command = rig.migrate_beside(&flags(&["--throttle-max", "99", "--downtime", "1ms"]));
    command.wait_throttled(90);
    let slowed = writes_per_s(&mut rig);
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND_LIMIT).expect_code(0);
    let output = command.wait(COMMAND_LIMIT);
    assert_eq!((output.code, output.whereabouts().as_str()), (Some(CANCELLED), "runs-at-source"), "{output}");
    rig.assert_runs_at_source();
    let after = writes_per_s(&mut rig);
    println!("writes/s: {before:.0} before, {slowed:.0} slowed down, {after:.0} after");
    claim(slowed < 0.8 * before, format!("{slowed} writes/s at a tenth of its time, {before} before"));
    claim(after > 0.8 * before, format!("{after} writes/s afterwards, {before} before"));
    assert_eq!(rig.source().qmp("query-migrate-parameters", serde_json::json!({})).expect("QMP"), parameters);
    assert_eq!(
        rig.source().qmp("query-migrate-capabilities", serde_json::json!({})).expect("QMP"),
        capabilities
    );
}

#[test]
fn a_guest_for_which_all_that_may_be_taken_is_not_enough_runs_on() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::new(plan(&qemu));
    rig.arm();
    let output = rig.migrate_fails(&flags(&["--throttle-max", "25"]), NOT_CONVERGED);
    assert!(
        output.text().contains("slowed down by 25 %") && output.text().contains("--throttle-max"),
        "{output}"
    );
}

#[test]
fn what_cannot_be_slowed_down_is_refused_before_anything_is_touched() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let rig = Rig::new(plan(&qemu));
    for more in [
        &["--on-deadline", "throttle", "--raw"][..],
        &["--on-deadline", "throttle", "--policy", "xen-3"],
        &["--throttle-max", "50"],
    ] {
        rig.migrate(more).expect_code(2);
    }
    let output = rig.migrate(&["--policy", "best"]).expect_code(2);
    assert!(output.text().contains("adaptive") && output.text().contains("xen-3"), "{output}");
}
