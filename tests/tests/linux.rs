//! The Linux guest by itself: it boots, it is never wrong, it can be saved and restored, and it would notice damage.
//! Without that, the tests that move it would show nothing.

use std::time::{Duration, Instant};

use hikyaku_lab::guest::locate::QemuBinary as LabQemu;
use hikyaku_lab::guest::{GuestSpec, Load, Qemu};
use hikyaku_tests::linux::{LinuxGuest, MEMORY_MIB};
use hikyaku_tests::machine::{self, QemuBinary, need};

const BOOT_LIMIT: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);

fn spec(qemu: &QemuBinary, guest: &LinuxGuest) -> GuestSpec {
    let load = Load::preset("idle").expect("a preset");
    GuestSpec::new(MEMORY_MIB, load).qemu(LabQemu::at(&qemu.path)).args(guest.qemu_arguments())
}

fn prepare(scratch: &tempfile::TempDir) -> Option<LinuxGuest> {
    need(
        "a Linux kernel and busybox",
        LinuxGuest::prepare(scratch.path()).expect("the initramfs can be written"),
    )
}

fn boots_and_survives(qemu: &QemuBinary) {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let Some(guest) = prepare(&scratch) else { return };
    let spec = spec(qemu, &guest);
    let state = scratch.path().join("state");

    let began = Instant::now();
    let mut source = Qemu::start(&spec).expect("QEMU starts");
    source.wait_heartbeat(BOOT_LIMIT, "the first heartbeat", |_| true).expect("it boots in time");
    println!("QEMU {}: booted in {:?}", qemu.version, began.elapsed());
    let swept = source.wait_swept(LIMIT).expect("it verifies its files");
    assert_eq!(swept.bad, 0);

    source.migrate(&format!("exec:cat > {}", state.display()), LIMIT).expect("it can be saved");
    let last = source.console().snapshot().heartbeats.last().copied().expect("heartbeats");
    let uri = format!("exec:cat {}", state.display());
    let mut restored = Qemu::await_migration_with(&spec, &uri, |program| std::process::Command::new(program))
        .expect("QEMU starts");
    restored.wait_migrated(LIMIT).expect("it can be restored");
    let swept = restored.wait_swept(LIMIT).expect("it goes on");
    assert_eq!(swept.bad, 0);
    let beats = restored.console().snapshot().heartbeats;
    let first = beats.first().copied().expect("heartbeats");
    assert!(first.number <= last.number + 2, "it went on at {} after {}", first.number, last.number);

    // The beats are close enough to see a short stop between them.
    let mut gaps: Vec<_> = beats.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    gaps.sort_unstable();
    let median = gaps[gaps.len() / 2];
    assert!(median < Duration::from_millis(50), "{median:?} between heartbeats");
}

#[test]
fn it_boots_and_survives_being_saved_and_restored() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    boots_and_survives(&qemu);
}

#[test]
fn it_does_so_on_the_other_qemu() {
    let Some(qemu) = need("a second QEMU", machine::other_qemu()) else { return };
    boots_and_survives(&qemu);
}

#[test]
fn it_notices_a_damaged_file() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let Some(mut guest) = prepare(&scratch) else { return };
    guest.corrupt_after_writes = Some(3);
    let running = Qemu::start(&spec(&qemu, &guest)).expect("QEMU starts");
    running.wait_heartbeat(LIMIT, "bad > 0", |beat| beat.bad > 0).expect("the damage is noticed");
}
