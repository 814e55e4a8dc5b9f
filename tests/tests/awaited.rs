//! A destination says what it awaits: pages go behind the question whether it takes them.

use std::time::{Duration, Instant};

use hikyaku_tests::command::Output;
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{Plan, Rig, Side};
use hikyaku_tests::site::Settings;

/// For a word to cross, and a link to be made.
const WORD: Duration = Duration::from_millis(700);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How a source says that it does not wait for the answer, and that it was wrong.
const AHEAD: &str = "its pages go behind the question";
const FAILED: i32 = 9;
const AGAIN: &str = "begun again";

fn rig(link: &'static str, qemu: &QemuBinary) -> Rig {
    let rig = Rig::with(Plan::new(link, qemu), |settings: &mut Settings| {
        settings.more += "[link]\nstanding = \"up\"\n";
    });
    std::thread::sleep(WORD);
    rig
}

/// How often the source has said so.
fn said(rig: &Rig, what: &str) -> usize {
    rig.source_site().log().matches(what).count()
}

/// Nothing that either side says reaches the other while the destination's daemon is killed and started again.
fn restart_unseen(rig: &mut Rig, rearm: bool) {
    rig.network().set_outage(true);
    rig.restart_destination_daemon();
    if rearm {
        rig.receive(&[]);
    }
    rig.network().set_outage(false);
}

#[test]
fn a_guest_that_is_awaited_does_not_wait_for_the_answer() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("us", &qemu);
    rig.arm();
    std::thread::sleep(WORD);
    rig.migrate_live_armed(&[]);
    assert_eq!((said(&rig, AHEAD), said(&rig, AGAIN)), (1, 0));
    // Back, with nobody told: the word is on its way while the command is.
    rig.turn_around();
    rig.migrate_live(&[]);
    assert_eq!(said(&rig, AHEAD), 0);
}

#[test]
fn word_of_a_guest_that_was_awaited_before_the_link_stood_is_asked_for() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("jgn", &qemu);
    rig.arm();
    rig.restart_source_daemon();
    std::thread::sleep(2 * WORD);
    rig.migrate_live_armed(&[]);
    assert_eq!(said(&rig, AHEAD), 1);
}

#[test]
fn a_guest_that_is_refused_though_it_was_awaited_runs_on() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("eu", &qemu);
    rig.arm();
    std::thread::sleep(WORD);
    let guest = rig.guest_name();
    // Word that it is not awaited any more comes when the guest is on its way.
    rig.set_return_outage(true);
    rig.destination_site().hikyaku(["cancel", guest], COMMAND_LIMIT);
    let command = rig.migrate_beside(&[]);
    let deadline = Instant::now() + 3 * WORD;
    while said(&rig, AHEAD) == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.set_return_outage(false);
    let output: Output = command.wait(COMMAND_LIMIT).expect_code(FAILED);
    rig.assert_runs_at_source();
    assert!(output.text().contains("awaits"), "{output}");
    assert_eq!((said(&rig, AHEAD), said(&rig, AGAIN)), (1, 0));
    rig.migrate_live(&[]);
}

#[test]
fn a_link_that_dies_before_the_answer_has_the_guest_begun_again() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("us", &qemu);
    rig.arm();
    std::thread::sleep(WORD);
    restart_unseen(&mut rig, true);
    rig.migrate_live_armed(&[]);
    assert_eq!((said(&rig, AHEAD), said(&rig, AGAIN)), (1, 1));
}

/// Its QEMU, whose stream ends with the session, is asked how it does before anybody hears of the link.
#[test]
fn nor_does_its_qemu_have_the_last_word_of_it() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("us", &qemu);
    rig.restart_daemon(Side::Source, "source.looking:1s");
    rig.arm();
    std::thread::sleep(2 * WORD);
    restart_unseen(&mut rig, true);
    rig.migrate_live_armed(&[]);
    assert_eq!((said(&rig, AHEAD), said(&rig, AGAIN)), (1, 1));
}

#[test]
fn of_a_destination_that_forgot_the_guest_one_is_told() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = rig("us", &qemu);
    rig.arm();
    std::thread::sleep(WORD);
    restart_unseen(&mut rig, false);
    let output = rig.migrate_fails(&[], FAILED);
    assert!(output.text().contains("awaits"), "{output}");
    assert_eq!((said(&rig, AHEAD), said(&rig, AGAIN)), (1, 1));
}
