//! What goes wrong while libvirt moves a guest by us: the table of docs/libvirt.md.

use std::time::Duration;

use hikyaku_tests::command::Running;
use hikyaku_tests::virt::{GUEST, Plan, Virt};

const MOVE: Duration = Duration::from_secs(180);
const SETTLE: Duration = Duration::from_secs(60);

/// Slow enough for something to happen in its midst.
fn begin(virt: &Virt, more: &[&str]) -> Running {
    let words = ["virsh-migrate", GUEST, "--to", "b"];
    virt.hikyaku_beside(&[&words[..], more].concat())
}

fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + limit;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copies(virt: &Virt) {
    wait_until("copying", SETTLE, || virt.pair.a.log().contains("to=copying"));
    std::thread::sleep(Duration::from_millis(500));
}

fn survives_a_cut_of_a_minute(more: &[&str]) {
    let Some(plan) = Plan::here("jgn") else { return };
    let virt = Virt::new(&plan);
    let command = begin(&virt, &[&["--limit", "60mbit"], more].concat());
    let there = virt.console_there();
    copies(&virt);
    virt.network.set_outage(true);
    std::thread::sleep(Duration::from_secs(60));
    virt.network.set_outage(false);
    command.wait(MOVE).expect_code(0);
    virt.check_moved(&there, false);
}

#[test]
fn a_link_that_is_cut_for_a_minute_is_survived() {
    survives_a_cut_of_a_minute(&[]);
}

#[test]
fn a_link_that_is_cut_for_a_minute_is_survived_by_two_libvirts() {
    survives_a_cut_of_a_minute(&["--p2p"]);
}

#[test]
fn a_daemon_dies_at_the_source() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    let command = begin(&virt, &["--limit", "20mbit"]);
    copies(&virt);
    virt.pair.a.kill();
    let output = command.wait(MOVE);
    assert_ne!(output.code, Some(0), "{output}");
    assert_eq!(virt.state("a").as_deref(), Some("running"));
    // Until then the destination waits for it, as for a link that is cut.
    virt.pair.a.restart(virt.network.host("a"));
    virt.check_stays(SETTLE);
}

#[test]
fn a_daemon_dies_at_the_destination() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    let command = begin(&virt, &["--limit", "20mbit"]);
    copies(&virt);
    virt.pair.b.restart(virt.network.host("b"));
    let output = command.wait(MOVE);
    assert_eq!(output.code, Some(9), "{output}");
    virt.check_stays(SETTLE);
}

#[test]
fn the_destination_has_no_room_for_its_disk() {
    let Some(plan) = Plan::here("jgn") else { return };
    let virt = Virt::new(&plan.disk(true));
    std::fs::remove_file(virt.b.inside("/run/t/disk")).expect("a disk");
    std::fs::create_dir(virt.b.inside("/run/t/disk")).expect("a directory in its place");
    let output = begin(&virt, &["--disks"]).wait(MOVE);
    assert_eq!(output.code, Some(9), "{output}");
    assert!(output.stderr.contains("virsh says: "), "{output}");
    virt.check_stays(SETTLE);
}

/// All of the guest is there, and nobody hears so.
#[test]
fn the_last_word_of_the_waiting_qemu_is_lost() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.shut:kill");
    let command = begin(&virt, &[]);
    wait_until("the daemon dies", SETTLE, || !virt.pair.b.is_running());
    virt.pair.b.restart(virt.network.host("b"));
    let output = command.wait(MOVE);
    assert_eq!(output.code, Some(9), "{output}");
    virt.check_stays(SETTLE);
}

/// libvirt there lets the guest run, and the one here is not told: it waits, for it would let it run, too.
#[test]
fn the_answer_to_finish_is_lost() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.finish:kill");
    let command = begin(&virt, &[]);
    let there = virt.console_there();
    wait_until("the daemon dies", SETTLE, || !virt.pair.b.is_running());
    virt.pair.b.restart(virt.network.host("b"));
    let output = command.wait(MOVE);
    assert_eq!(output.code, Some(10), "{output}");
    wait_until("the guest runs there", SETTLE, || virt.state("b").as_deref() == Some("running"));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "at the source");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "at the source");
    virt.hikyaku_beside(&["resolve", GUEST, "--there", "--fenced"]).wait(MOVE).expect_code(0);
    virt.virsh_a(&["destroy", GUEST]).expect_code(0);
    virt.check_moved(&there, false);
}
