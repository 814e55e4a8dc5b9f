//! `[link] standing`: links that are there before a guest is to be moved.

use std::time::Duration;

use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{Plan, Rig};
use hikyaku_tests::site::Settings;

/// A link that is lost is seen within a second and made again a second later, in three round trips; half as much again. Also by the
/// side that was about to fill it: the source, here.
const STANDS_AGAIN: Duration = Duration::from_secs(4);

/// A link of 120 ms, and a peer that was restarted a while ago.
fn rig(qemu: &QemuBinary, standing: &str) -> Rig {
    let mut rig = Rig::with(Plan::new("us", qemu), |settings: &mut Settings| {
        settings.more += &format!("[link]\nstanding = {standing:?}\n");
    });
    rig.restart_destination_daemon();
    std::thread::sleep(STANDS_AGAIN);
    rig
}

/// Milliseconds from the request until pages may go.
fn opening_ms(rig: &mut Rig) -> u64 {
    rig.arm();
    let output = rig.migrate(&[]).expect_code(0);
    let words = output.stdout.lines().find(|line| line.contains(" phase=copying ")).unwrap_or_default();
    let ms = words.split(' ').find_map(|word| word.strip_prefix("elapsed_ms=")?.parse().ok());
    ms.unwrap_or_else(|| panic!("no time of copying: {output}"))
}

#[test]
fn a_move_waits_for_one_round_trip_also_when_the_peer_was_restarted() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    timed(2, "the opening over a link that stands", || {
        let ms = opening_ms(&mut rig(&qemu, "warm"));
        assert!(ms >= 120, "{ms}");
        claim(ms < 2 * 120, format!("{ms} ms"));
    });
}

#[test]
fn without_it_a_link_is_made_for_the_first_move() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let ms = opening_ms(&mut rig(&qemu, "off"));
    assert!(ms >= 4 * 120, "{ms}");
}
