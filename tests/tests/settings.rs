//! What a move sets in a source's QEMU is set back, though the daemon that set it was killed.

use std::time::{Duration, Instant};

use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use serde_json::{Value, json};

const OTHER: i32 = 1;
const CANCELLED: i32 = 8;
const SETTLE: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(60);

/// Its operator has set this and that.
fn rig(link: &'static str) -> Option<(Rig, [Value; 2])> {
    let qemu = need("QEMU", machine::qemu())?;
    let mut rig = Rig::new(Plan::new(link, &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1")));
    let set = json!({ "downtime-limit": 777, "max-bandwidth": 123_456_789, "max-cpu-throttle": 66 });
    rig.source().qmp("migrate-set-parameters", set).expect("QMP");
    let before = settings(&mut rig);
    rig.arm();
    Some((rig, before))
}

fn settings(rig: &mut Rig) -> [Value; 2] {
    ["query-migrate-parameters", "query-migrate-capabilities"]
        .map(|question| rig.source().qmp(question, json!({})).expect("QMP"))
}

#[track_caller]
fn wait_set_back(rig: &mut Rig, before: &[Value; 2]) {
    let deadline = Instant::now() + SETTLE;
    while settings(rig) != *before {
        assert!(Instant::now() < deadline, "{:?} and not {before:?}", settings(rig));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_daemon_that_is_killed_while_pages_go_leaves_nothing_set_for_good() {
    let Some((mut rig, before)) = rig("cloudnet") else { return };
    let command = rig.migrate_beside(&["--deadline", "10m", "--on-deadline", "throttle"]);
    command.wait_acked(2 << 20);
    rig.source_site_mut().kill();
    command.wait(COMMAND).expect_code(OTHER);
    assert_ne!(settings(&mut rig), before, "it was killed in the midst");
    rig.restart_source_daemon();
    wait_set_back(&mut rig, &before);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn nor_one_that_is_killed_while_the_guest_stands() {
    let Some((mut rig, before)) = rig("jgn") else { return };
    rig.restart_daemon(Side::Source, "source.stopped:stop");
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Source, COMMAND);
    rig.source_site_mut().kill();
    command.wait(COMMAND).expect_code(OTHER);
    rig.restart_source_daemon();
    assert_eq!(rig.settles(SETTLE), Side::Source);
    wait_set_back(&mut rig, &before);
}

/// What became of the guest is told whether the disk lets go of what was kept or not.
#[test]
fn a_disk_that_does_not_let_go_of_them_holds_up_nobody() {
    let soon = Duration::from_secs(20);
    for (cancelled, code, ends) in [(false, 0, Side::Destination), (true, CANCELLED, Side::Source)] {
        let Some((mut rig, _)) = rig("jgn") else { return };
        rig.restart_daemon(Side::Source, "settings.remove:60s");
        let command = rig.migrate_beside(if cancelled { &["--limit", "4mbit"] } else { &[] });
        if cancelled {
            command.wait_acked(1 << 20);
            rig.source_site().hikyaku(["cancel", rig.guest_name()], soon).expect_code(0);
        }
        command.wait(soon).expect_code(code);
        assert_eq!(rig.settles(soon), ends);
    }
}
