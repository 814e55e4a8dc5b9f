//! A destination whose QEMU cannot have the guest, or cannot run it: the guest works on at its source, soon, and QEMU's own reason is told.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use hikyaku_lab::guest::Timeline;
use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;

const USAGE: i32 = 2;
const CANCELLED: i32 = 8;
const FAILED: i32 = 9;
const COMMAND: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);
/// From the stop to the guest's next heartbeat, where all of it crossed 120 ms of link, was refused, and the refusal came back.
const GIVEN_BACK: Duration = Duration::from_millis(1500);

fn plan() -> Option<Plan> {
    let qemu = need("QEMU", machine::qemu())?;
    Some(Plan::new("us", &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1")))
}

/// It stood for no longer than this, as heard on its console.
fn assert_given_back(rig: &mut Rig, begun: Instant) {
    assert_eq!(rig.settles(SETTLE), Side::Source);
    let gap = Timeline::merge(&[rig.source().console()]).longest_gap(begun..Instant::now()).length;
    println!("it stood for {gap:?}");
    assert!(gap < GIVEN_BACK, "it stood for {gap:?}");
    rig.assert_whole(Side::Source);
}

#[test]
fn a_peer_that_nobody_knows() {
    let Some(plan) = plan() else { return };
    let mut rig = Rig::new(plan);
    let (qmp, guest) = (rig.source().qmp_path().display().to_string(), rig.guest_name());
    let words = ["migrate", guest, "--to", "nara", "--qmp", &qmp];
    let output = rig.source_site().hikyaku(words, COMMAND).expect_code(USAGE);
    assert!(output.text().contains("nara"), "{output}");
    rig.assert_runs_at_source();
}

/// Device state comes last: it is found out when the guest stands already.
#[test]
fn a_device_that_is_missing_there() {
    for flags in [&[][..], &["--switchover", "safe"]] {
        let Some(plan) = plan() else { return };
        let mut rig = Rig::new(plan.args(&["-device", "virtio-rng-pci"], &[]));
        rig.arm();
        let begun = Instant::now();
        let output = rig.migrate(flags).expect_code(FAILED);
        assert!(output.text().contains("virtio-rng"), "QEMU's own reason is not told; {output}");
        assert_given_back(&mut rig, begun);
    }
}

/// Another one than it has here, in the same place.
#[test]
fn another_model_of_a_device_there() {
    let Some(plan) = plan() else { return };
    let card = |model: &str| ["-device".to_owned(), format!("{model},addr=5,romfile=")];
    let (here, there) = (card("e1000"), card("rtl8139"));
    let mut rig =
        Rig::new(plan.args(&here.each_ref().map(String::as_str), &there.each_ref().map(String::as_str)));
    rig.arm();
    let begun = Instant::now();
    let output = rig.migrate(&[]).expect_code(FAILED);
    assert!(output.text().contains("e1000"), "QEMU's own reason is not told; {output}");
    assert_given_back(&mut rig, begun);
}

#[test]
fn a_qemu_that_dies_while_it_loads() {
    let Some(plan) = plan() else { return };
    let mut rig = Rig::new(plan);
    rig.restart_daemon(Side::Destination, "destination.complete:stop");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Destination, COMMAND);
    rig.signal_destination_qemu(Signal::SIGKILL);
    rig.destination_site().signal(Signal::SIGCONT);
    command.wait(COMMAND).expect_code(FAILED);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.assert_whole(Side::Source);
}

/// Both QEMUs have the same image, and a third program has a hand on it: neither may run the guest until it lets go.
#[test]
fn an_image_that_is_locked() {
    let Some(plan) = plan() else { return };
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let image = scratch.path().join("disk.raw");
    fs::write(&image, vec![0; 1 << 20]).expect("an image can be written");
    let drive = format!("if=none,id=d,format=raw,file.locking=on,file={}", image.display());
    let disk = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d"];
    let mut rig = Rig::with(plan.args(&disk, &disk), |settings| {
        settings.more = "[guest]\nqmp_timeout = \"2s\"\n".to_owned();
    });
    // It can be moved, as long as nobody meddles.
    rig.migrate_live(&[]);
    rig.turn_around();

    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("copying");
    let lock = share_nothing(&image);
    command.wait_line("the guest is stuck", COMMAND, |line| line.contains("stuck-at-source"));
    rig.assert_stands();
    drop(lock);
    let output = command.wait(COMMAND).expect_code(FAILED);
    assert!(output.text().contains("lock"), "QEMU's own reason is not told; {output}");
    assert_eq!(output.whereabouts(), "stuck-at-source", "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.assert_whole(Side::Source);
}

/// As a QEMU does that lets nobody else write: a lock on the byte that stands for it. It is gone with the file.
fn share_nothing(image: &Path) -> File {
    /// `RAW_LOCK_SHARED_BASE` and the bit of `BLK_PERM_WRITE`.
    const NOT_SHARED: libc::off_t = 200 + 1;
    let file = File::options().read(true).write(true).open(image).expect("the image is there");
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: NOT_SHARED,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else holds it");
    file
}

// ---- what becomes of the QEMUs

#[test]
fn qemus_that_are_of_no_use_any_more_are_ended_if_that_is_wished() {
    let Some(plan) = plan() else { return };
    let mut rig = Rig::with(plan, |settings| {
        settings.more = "[guest]\nquit_moved = true\nquit_refused = true\n".to_owned();
    });
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("copying");
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND).expect_code(0);
    command.wait(COMMAND).expect_code(CANCELLED);
    wait_gone(|| rig.destination().status().is_err());
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.arm();
    rig.migrate(&[]).expect_code(0);
    wait_gone(|| rig.source().status().is_err());
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

#[track_caller]
fn wait_gone(mut gone: impl FnMut() -> bool) {
    let deadline = Instant::now() + SETTLE;
    while !gone() {
        assert!(Instant::now() < deadline, "the QEMU is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}
