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

/// libvirt there lets the guest run, and the one here is not told: it waits, for it would let it run, too, until the daemon there can be asked.
#[test]
fn the_answer_to_finish_is_lost() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.finish:kill");
    let command = begin(&virt, &[]);
    let there = virt.console_there();
    wait_until("the daemon dies", SETTLE, || !virt.pair.b.is_running());
    wait_until("the guest runs there", SETTLE, || virt.state("b").as_deref() == Some("running"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "at the source");
    virt.pair.b.restart(virt.network.host("b"));
    let output = command.wait(MOVE);
    assert!([Some(0), Some(10)].contains(&output.code), "{output}");
    wait_until("libvirt here hears of it", SETTLE, || virt.state("a").is_none());
    assert_eq!(outcome(&virt), "runs-at-destination");
    virt.check_moved(&there, false);
}

/// Its daemon does not come back, and somebody has looked.
#[test]
fn a_finish_that_nobody_can_be_asked_about_is_a_persons_to_resolve() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.finish:kill");
    let command = begin(&virt, &[]);
    let there = virt.console_there();
    wait_until("the daemon dies", SETTLE, || !virt.pair.b.is_running());
    // One that knows nothing of what was before.
    std::fs::remove_dir_all(virt.pair.b.directory().join("state")).expect("its state");
    virt.pair.b.restart(virt.network.host("b"));
    let output = command.wait(MOVE);
    assert_eq!(output.code, Some(10), "{output}");
    wait_until("the guest runs there", SETTLE, || virt.state("b").as_deref() == Some("running"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "at the source");
    virt.hikyaku_beside(&["resolve", GUEST, "--there", "--fenced"]).wait(MOVE).expect_code(0);
    virt.virsh_a(&["destroy", GUEST]).expect_code(0);
    virt.check_moved(&there, false);
}

/// What is said of the guest at `a`.
fn outcome(virt: &Virt) -> String {
    let output = virt.hikyaku_beside(&["--json", "status", GUEST]).wait(SETTLE);
    let status: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    status["outcome"]["guest"].as_str().unwrap_or_default().to_owned()
}

/// The daemon of `a` dies at `point`, while libvirt waits for what becomes of its guest; its service manager keeps the connection.
fn source_dies(point: &str, more: &[&str]) -> Option<(Virt, Running)> {
    let plan = Plan::here("jgn")?;
    let mut virt = Virt::with(&plan, |settings| settings.kept = true);
    virt.pair.a.restart_failing(virt.network.host("a"), point);
    let command = begin(&virt, more);
    wait_until("the daemon dies", SETTLE, || !virt.pair.a.is_running());
    Some((virt, command))
}

/// Before Finish has left, whether that it is to leave is on record or not.
#[test]
fn a_source_daemon_that_dies_before_finish_has_left_leaves_the_guest_there() {
    for point in ["libvirt.keeping:kill", "libvirt.asked:kill"] {
        let Some((mut virt, command)) = source_dies(point, &[]) else { return };
        assert_eq!(virt.pair.a.kept().len(), 1, "{point}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(virt.state("a").as_deref(), Some("paused"), "{point}: its connection is kept");
        virt.pair.a.restart(virt.network.host("a"));
        virt.check_stays(SETTLE);
        assert_eq!(virt.pair.a.kept(), [""; 0], "{point}");
        drop(command);
    }
}

/// The destination stands still when it is asked, and goes on when the daemon here is dead.
fn survives_the_sources_daemon(more: &[&str]) {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::with(&plan, |settings| settings.kept = true);
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.finish:stop");
    let command = begin(&virt, more);
    let there = virt.console_there();
    wait_until("the daemon there stands", SETTLE, || virt.pair.b.stands());
    virt.pair.a.kill();
    virt.pair.b.signal(nix::sys::signal::Signal::SIGCONT);
    wait_until("the guest runs there", SETTLE, || virt.state("b").as_deref() == Some("running"));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "its connection is kept");
    virt.pair.a.restart(virt.network.host("a"));
    wait_until("libvirt here hears of it", SETTLE, || virt.state("a").is_none());
    assert_eq!(outcome(&virt), "runs-at-destination");
    wait_until("nothing is kept", SETTLE, || virt.pair.a.kept().is_empty());
    virt.check_moved(&there, false);
    drop(command);
}

#[test]
fn a_source_daemon_that_dies_while_finish_is_under_way_is_survived() {
    survives_the_sources_daemon(&[]);
}

#[test]
fn a_source_daemon_that_dies_while_finish_is_under_way_is_survived_by_two_libvirts() {
    survives_the_sources_daemon(&["--p2p"]);
}

/// It is told to end while nobody can say where the guest runs; and again, after somebody has said it.
#[test]
fn a_source_daemon_that_is_told_to_end_in_doubt_leaves_libvirt_waiting() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::with(&plan, |settings| {
        settings.kept = true;
        settings.drain = Some("500ms");
    });
    virt.pair.b.restart_failing(virt.network.host("b"), "libvirt.finish:kill");
    let command = begin(&virt, &[]);
    let there = virt.console_there();
    wait_until("the daemon dies", SETTLE, || !virt.pair.b.is_running());
    wait_until("the guest runs there", SETTLE, || virt.state("b").as_deref() == Some("running"));
    let waits = |virt: &mut Virt, when: &str| {
        assert_eq!(virt.pair.a.stop(), Some(0), "{when}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(virt.state("a").as_deref(), Some("paused"), "{when}");
        virt.pair.a.restart(virt.network.host("a"));
    };
    waits(&mut virt, "in doubt");
    assert_eq!(outcome(&virt), "in-doubt");
    // One that knows nothing of what was before.
    std::fs::remove_dir_all(virt.pair.b.directory().join("state")).expect("its state");
    virt.pair.b.restart(virt.network.host("b"));
    virt.hikyaku_beside(&["resolve", GUEST, "--there", "--fenced"]).wait(MOVE).expect_code(0);
    waits(&mut virt, "resolved");
    assert_eq!(outcome(&virt), "left-to-destination");
    virt.virsh_a(&["destroy", GUEST]).expect_code(0);
    wait_until("nothing is kept", SETTLE, || virt.pair.a.kept().is_empty());
    virt.check_moved(&there, false);
    drop(command);
}

/// Nobody here knows of which guest it is: libvirt waits, for it may run elsewhere, and a person says.
#[test]
fn a_finish_whose_record_is_damaged_holds_libvirt() {
    let Some((mut virt, command)) = source_dies("libvirt.asked:kill", &[]) else { return };
    let asked = virt.pair.a.directory().join("state/libvirt-asked");
    let record = std::fs::read_dir(asked).expect("records").next().expect("one").expect("it is read").path();
    std::fs::write(&record, b"{").expect("it is written");
    virt.pair.a.restart(virt.network.host("a"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(virt.state("a").as_deref(), Some("paused"), "its connection is kept");
    let id = record.file_stem().expect("a name").to_string_lossy().into_owned();
    let status = virt.hikyaku_beside(&["list"]).wait(SETTLE);
    assert!(status.stdout.contains("a guest of libvirt's"), "{status}");
    virt.hikyaku_beside(&["resolve", &id, "--here", "--fenced"]).wait(MOVE).expect_code(0);
    virt.check_stays(SETTLE);
    assert_eq!(virt.pair.a.kept(), [""; 0]);
    drop(command);
}
