//! Whatever fails, and whenever: never two guests, and never none for good (docs/failures.md).
//!
//! Each fault is put where the daemons' own events say that the move is. Afterwards the guest must work at exactly one
//! place, and the command must have said which.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hikyaku_lab::guest::locate::QemuBinary as Located;
use hikyaku_lab::guest::{GuestSpec, Load, Qemu, Timeline};
use hikyaku_lab::link::{self, Profile};
use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::command::{Output, Running};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use hikyaku_tests::site::{self, Held, Pair, Settings};
use nix::sys::signal::Signal;
use serde_json::json;

const OTHER: i32 = 1;
const NOT_CONVERGED: i32 = 7;
const CANCELLED: i32 = 8;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;

/// Pages have arrived, and most of them have not.
const SOME_PAGES_BYTES: u64 = 2 << 20;
/// For a guest to be given back, or its fate to be found out: some seconds of [`impatient`], and more for a busy machine.
const SETTLE: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(60);

/// A small guest that changes pages all the time, over a link slow enough to meet it on its way.
fn plan(link: &'static str, qemu: &QemuBinary) -> Plan {
    Plan::new(link, qemu).memory_mib(64).kind(GuestKind::bare("oltp@1"))
}

/// It dirties three times what the link carries.
fn never_converging(qemu: &QemuBinary) -> Plan {
    Plan::new("cloudnet", qemu).memory_mib(64).kind(GuestKind::bare("noise@36"))
}

/// Silence is noticed soon: the tests cut links on purpose.
fn impatient(settings: &mut Settings) {
    settings.more = "[link]\ndead_after = \"3s\"\nconnect_timeout = \"3s\"\n".to_owned();
}

/// QEMUs that are given up soon, too: the tests make them hang on purpose.
fn hasty(settings: &mut Settings) {
    impatient(settings);
    settings.more += "[guest]\nqmp_timeout = \"3s\"\nload_timeout = \"4s\"\n";
}

fn armed(link: &'static str) -> Option<Rig> {
    armed_with(link, impatient)
}

fn armed_with(link: &'static str, adjust: fn(&mut Settings)) -> Option<Rig> {
    let qemu = need("QEMU", machine::qemu())?;
    let mut rig = Rig::with(plan(link, &qemu), adjust);
    rig.arm();
    Some(rig)
}

#[track_caller]
fn ends(command: Running, code: i32, whereabouts: &str) -> Output {
    let output = command.wait(COMMAND).expect_code(code);
    assert_eq!(output.whereabouts(), whereabouts, "{output}");
    output
}

// ---- before anything travels

#[test]
fn a_guest_that_is_no_longer_awaited() {
    let Some(mut rig) = armed("jgn") else { return };
    let there = rig.watch_destination();
    rig.signal_destination_qemu(Signal::SIGKILL);
    there.wait(COMMAND).expect_code(FAILED);
    rig.arm();
    let there = rig.watch_destination();
    rig.destination_site().hikyaku(["cancel", rig.guest_name()], COMMAND).expect_code(0);
    there.wait(COMMAND).expect_code(CANCELLED);
    rig.migrate_fails(&[], FAILED);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// The disk is slow, and meanwhile it is not to be awaited any more.
#[test]
fn a_guest_that_is_no_longer_awaited_when_it_has_knocked() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::with(plan("jgn", &qemu), impatient);
    rig.restart_daemon(Side::Destination, "record.read:6s");
    rig.arm();
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    std::thread::sleep(Duration::from_secs(2));
    rig.destination_site().hikyaku(["cancel", rig.guest_name()], COMMAND).expect_code(0);
    there.wait(Duration::from_secs(2)).expect_code(CANCELLED);
    command.wait(COMMAND).expect_code(FAILED);
    assert_eq!(rig.destination().status().expect("QMP"), "inmigrate", "its QEMU was touched");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

// ---- while pages travel

#[test]
fn the_destinations_qemu_ends_while_pages_come() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.signal_destination_qemu(Signal::SIGKILL);
    ends(command, FAILED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// Its stream is cut wherever it was.
#[test]
fn the_sources_qemu_ends_while_pages_go() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.kill_source_qemu();
    ends(command, FAILED, "ended-at-source");
    there.wait(COMMAND).expect_code(FAILED);
    rig.assert_stands();
}

#[test]
fn somebody_cancels_the_migration_in_the_sources_qemu() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source().qmp("migrate_cancel", json!({})).expect("QMP");
    let output = ends(command, FAILED, "runs-at-source");
    assert!(output.text().contains("somebody cancelled it in QEMU"), "the reason is not said; {output}");
    there.wait(COMMAND).expect_code(FAILED);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// It is sought, and when it is back it knows nothing of the guest: `outages.rs` has that. Nobody has to wait for it.
#[test]
fn the_destinations_daemon_is_killed_while_pages_come() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.destination_site_mut().kill();
    command.wait_phase("link-lost");
    assert_eq!(rig.settles(SETTLE), Side::Source);
    cancel(&rig).expect_code(0);
    ends(command, CANCELLED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn the_sources_daemon_is_killed_while_pages_go() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source_site_mut().kill();
    command.wait(COMMAND).expect_code(OTHER);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    there.wait_phase("link-lost");

    // The next daemon brings a link of its own, and the old one is over.
    rig.restart_source_daemon();
    rig.migrate_fails(&[], FAILED);
    there.wait_phase("refused");
    // It moves the guest all the same, to a QEMU that has seen nothing of it.
    rig.network().set_profile(&Profile::named("jgn").expect("a link"));
    rig.migrate_live(&[]);
}

#[test]
fn a_cancelled_move_leaves_the_guest_at_the_source() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    cancel(&rig).expect_code(0);
    ends(command, CANCELLED, "runs-at-source");
    there.wait_phase("refused");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn a_source_daemon_that_is_told_to_end_gives_the_guest_back() {
    let Some(mut rig) = armed("cloudnet") else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source_site().tell_to_end();
    assert_eq!(rig.source_site_mut().stop(), Some(0), "the daemon's exit code");
    let output = ends(command, CANCELLED, "runs-at-source");
    assert!(output.text().contains("hikyakud was told to end"), "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// What is under way ends first; nothing is begun any more.
#[test]
fn a_daemon_that_is_told_to_end_lets_its_moves_end() {
    for side in [Side::Source, Side::Destination] {
        let Some(mut rig) = armed("cloudnet") else { return };
        let command = rig.migrate_beside(&[]);
        command.wait_acked(SOME_PAGES_BYTES);
        let site = if side == Side::Source { rig.source_site() } else { rig.destination_site() };
        site.tell_to_end();
        let refused = site.hikyaku(["receive", "other", "--qmp", "/nowhere"], COMMAND);
        assert_ne!(refused.code, Some(0), "{refused}");
        ends(command, 0, "runs-at-destination");
        let site = if side == Side::Source { rig.source_site_mut() } else { rig.destination_site_mut() };
        assert_eq!(site.stop(), Some(0), "the daemon's exit code");
        assert_eq!(rig.settles(SETTLE), Side::Destination);
    }
}

#[test]
fn a_daemon_whose_moves_do_not_end_in_time_gives_them_back() {
    let Some(mut rig) = armed_with("cloudnet", |settings| settings.drain = Some("1s")) else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.source_site().tell_to_end();
    ends(command, CANCELLED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// In each phase, from the wish to the guest's next word.
#[test]
fn a_guest_whose_move_is_cancelled_works_on_at_once() {
    timed(3, "the guest's silence", || {
        let limit = CANCELLED_WITHIN + Duration::from_millis(200);
        let Some(mut rig) = armed("eu") else { return };
        let command = rig.migrate_beside(&[]);
        command.wait_acked(SOME_PAGES_BYTES);
        let wished = cancelled(&rig, command);
        assert_silent_for_less(&mut rig, wished, limit);

        // The guest stands, and the link is cut.
        rig.arm();
        let command = stopped_and_cut_off(&rig);
        let wished = cancelled(&rig, command);
        rig.network().set_outage(false);
        assert_silent_for_less(&mut rig, wished, limit);

        // It stands, its last pages are under way, and the link is as it was.
        rig.arm();
        let command = rig.migrate_beside(SAFE);
        command.wait_phase("stopped");
        let begun = Instant::now();
        let wish = cancel(&rig);
        let output = command.wait(COMMAND);
        assert_eq!(
            rig.settles(SETTLE),
            if output.code == Some(0) { Side::Destination } else { Side::Source }
        );
        println!("{:?} {:?}: {:?}", wish.code, output.code, begun.elapsed());
        if output.code == Some(CANCELLED) {
            assert_silent_for_less(&mut rig, begun, limit);
        }
    });
}

/// What one cancelled move left behind, three would have left three times.
#[test]
fn a_cancelled_move_leaves_nothing_behind() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::with(plan("jgn", &qemu), impatient);
    let held = |rig: &Rig| [rig.source_site(), rig.destination_site()].map(|site| site.held());
    let mut after_one = None;
    for _ in 0..3 {
        rig.arm();
        let command = rig.migrate_beside(&[]);
        command.wait_acked(SOME_PAGES_BYTES);
        cancelled(&rig, command);
        rig.disarm();
        assert_eq!(rig.settles(SETTLE), Side::Source);
        after_one.get_or_insert_with(|| held(&rig));
    }
    let after_one = after_one.expect("one was cancelled");
    let deadline = Instant::now() + SETTLE;
    let more = |now: [Held; 2]| now.iter().zip(&after_one).any(|(now, then)| now.exceeds(then));
    while more(held(&rig)) {
        assert!(Instant::now() < deadline, "{:?}, and after one {after_one:?}", held(&rig));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(held(&rig).map(|held| held.records), [0, 0]);
}

const CANCELLED_WITHIN: Duration = Duration::from_millis(200);
const SAFE: &[&str] = &["--switchover", "safe"];

/// When it was wished.
fn cancelled(rig: &Rig, command: Running) -> Instant {
    let wished = Instant::now();
    cancel(rig).expect_code(0);
    ends(command, CANCELLED, "runs-at-source");
    wished
}

#[track_caller]
fn assert_silent_for_less(rig: &mut Rig, since: Instant, limit: Duration) {
    assert_eq!(rig.settles(SETTLE), Side::Source);
    let beats = rig.source().console().snapshot().heartbeats;
    let next = beats.iter().map(|beat| beat.at).find(|at| *at > since).expect("it works");
    let gap = rig.source().console().longest_gap(next..Instant::now()).length;
    println!("{:?}, and {gap:?} at most later", next - since);
    claim(next - since < limit && gap < limit, format!("silent for {:?}, then {gap:?}", next - since));
}

#[test]
fn a_move_that_does_not_converge_aborts_at_its_deadline() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::new(never_converging(&qemu));
    rig.arm();
    let begun = Instant::now();
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&["--deadline", "3s", "--on-deadline", "abort"]);
    ends(command, NOT_CONVERGED, "runs-at-source");
    ends(there, NOT_CONVERGED, "stays-at-source");
    assert!(begun.elapsed() >= Duration::from_secs(3), "it gave up after {:?}", begun.elapsed());
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// Relayed raw, nobody but QEMU knows what is left; and what is left says nothing to Xen's policy.
#[test]
fn the_deadline_holds_whoever_decides() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    for flags in [&["--raw"][..], &["--policy", "xen-3"]] {
        let mut rig = Rig::new(never_converging(&qemu));
        rig.arm();
        let deadline = ["--deadline", "3s", "--on-deadline", "abort"];
        let command = rig.migrate_beside(&[flags, &deadline].concat());
        ends(command, NOT_CONVERGED, "runs-at-source");
        assert_eq!(rig.settles(SETTLE), Side::Source);
    }
}

#[test]
fn an_outage_does_not_count_towards_the_deadline() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::with(never_converging(&qemu), impatient);
    rig.arm();
    let (begun, deadline, outage) = (Instant::now(), Duration::from_secs(4), Duration::from_secs(6));
    let command = rig.migrate_beside(&["--deadline", "4s", "--on-deadline", "abort"]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.network().set_outage(true);
    command.wait_phase("link-lost");
    std::thread::sleep(outage);
    let status = rig.source_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
    assert!(status.stdout.contains("link lost"), "{status}");
    rig.network().set_outage(false);
    ends(command, NOT_CONVERGED, "runs-at-source");
    assert!(begun.elapsed() > deadline + outage, "{:?}", begun.elapsed());
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// It is not ours to continue: here, or there.
#[test]
fn a_guest_that_somebody_stops_on_its_way_arrives_standing() {
    for flags in [&["--raw"][..], &[]] {
        let Some(mut rig) = armed("cloudnet") else { return };
        let command = rig.migrate_beside(flags);
        command.wait_acked(SOME_PAGES_BYTES);
        rig.stop_guest();
        ends(command, 0, "stopped-at-destination");
        assert_eq!(rig.destination().status().expect("QMP"), "paused");
        rig.assert_stands();
    }
}

// ---- while the guest stands, and is the source's

/// The guest stands until `READY` comes, which it cannot: every direction is cut.
fn stopped_and_cut_off(rig: &Rig) -> Running {
    let command = rig.migrate_beside(&["--switchover", "safe"]);
    command.wait_phase("stopped");
    rig.network().set_outage(true);
    command
}

#[test]
fn an_outage_while_the_guest_stands() {
    let Some(mut rig) = armed("eu") else { return };
    let begun = Instant::now();
    let command = stopped_and_cut_off(&rig);
    ends(command, FAILED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
    let gap = Timeline::merge(&[rig.source().console()]).longest_gap(begun..Instant::now());
    assert!(gap.length > Duration::from_millis(100), "it never stood: {gap:?}");
    assert!(gap.length < Duration::from_secs(10), "it stood for too long: {gap:?}");
    rig.network().set_outage(false);
    // What was under way arrives late and changes nothing.
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// Without a confirmation the guest may have been let go before anybody could know that the link was out. Then GO comes
/// when the link is back.
#[test]
fn an_outage_while_the_guest_is_let_go() {
    let Some(mut rig) = armed("eu") else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_phase("stopped");
    rig.network().set_outage(true);
    let output = command.wait(COMMAND);
    match output.code {
        Some(FAILED) => assert_eq!(output.whereabouts(), "runs-at-source", "{output}"),
        Some(IN_DOUBT) => {
            assert_eq!(output.whereabouts(), "in-doubt", "{output}");
            rig.assert_stands();
        }
        _ => panic!("neither failed nor in doubt; {output}"),
    }
    println!("exit code {:?}", output.code);
    rig.network().set_outage(false);
    let side = rig.settles(SETTLE);
    let phase = rig.wait_source_final(SETTLE);
    match output.code {
        Some(IN_DOUBT) => assert_eq!((side, phase.as_str()), (Side::Destination, "moved")),
        _ => assert_eq!((side, phase.as_str()), (Side::Source, "failed")),
    }
    assert_eq!(rig.settles(SETTLE), side);
}

#[test]
fn a_cancelled_move_whose_guest_stands_continues_it() {
    let Some(mut rig) = armed("eu") else { return };
    let command = stopped_and_cut_off(&rig);
    cancel(&rig).expect_code(0);
    ends(command, CANCELLED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn a_source_daemon_killed_while_the_guest_stands_continues_it() {
    let Some(mut rig) = armed("eu") else { return };
    let command = stopped_and_cut_off(&rig);
    rig.source_site_mut().kill();
    command.wait(COMMAND).expect_code(OTHER);
    // Nobody is there to continue it.
    rig.assert_stands();
    rig.restart_source_daemon();
    assert_eq!(rig.settles(SETTLE), Side::Source);
    assert_eq!(rig.wait_source_final(SETTLE), "failed");
    rig.network().set_outage(false);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

// ---- after it was let go

/// The destination starts the guest, and its verdict is lost on the way back.
fn started_and_unheard(rig: &mut Rig) -> Running {
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    // The verdict needs 100 ms to get to the source: what is under way is lost, too.
    there.wait_phase("starting");
    rig.set_return_outage(true);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    command
}

#[test]
fn a_verdict_that_is_lost_is_asked_for() {
    let Some(mut rig) = armed("eu") else { return };
    let command = started_and_unheard(&mut rig);
    let output = ends(command, IN_DOUBT, "in-doubt");
    assert_eq!(rig.source_status()["phase"], "ceded", "{output}");
    assert!(cancel(&rig).text().contains("too late"), "a guest that was let go cannot be called back");
    rig.set_return_outage(false);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.source().status().expect("QMP"), "postmigrate");
}

#[test]
fn a_source_daemon_killed_after_ceded_asks() {
    let Some(mut rig) = armed("eu") else { return };
    let command = started_and_unheard(&mut rig);
    rig.source_site_mut().kill();
    command.wait(COMMAND).expect_code(OTHER);
    rig.restart_source_daemon();
    // Its record says that only the destination can tell, and the destination cannot be heard.
    assert_eq!(rig.source_status()["phase"], "ceded");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    rig.set_return_outage(false);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

/// The daemon dies with the guest in its hands. Whether QEMU had all of it by then decides where the guest goes on; the
/// two daemons must agree.
#[test]
fn a_destination_daemon_killed_while_qemu_loads_finishes_it() {
    let Some(mut rig) = armed("eu") else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    there.wait_phase("loading");
    rig.signal_destination_qemu(Signal::SIGSTOP);
    rig.destination_site_mut().kill();
    rig.signal_destination_qemu(Signal::SIGCONT);
    ends(command, IN_DOUBT, "in-doubt");
    rig.restart_destination_daemon();
    let side = rig.settles(SETTLE);
    let phase = rig.wait_source_final(SETTLE);
    assert_eq!(phase, if side == Side::Source { "resumed" } else { "moved" });
    assert_eq!(rig.settles(SETTLE), side);
}

#[test]
fn a_destination_daemon_killed_after_it_took_the_guest_is_asked_again() {
    let Some(mut rig) = armed("eu") else { return };
    let command = started_and_unheard(&mut rig);
    rig.destination_site_mut().kill();
    // Only then is the link mended: a verdict that was said goes on trying to arrive after the daemon's end.
    ends(command, IN_DOUBT, "in-doubt");
    rig.set_return_outage(false);
    rig.restart_destination_daemon();
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

/// All that the destination has to do takes time; what was let go comes all the same.
#[test]
fn a_cancel_at_the_destination_that_comes_behind_go_is_too_late() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::with(plan("eu", &qemu), impatient);
    rig.restart_daemon(Side::Source, "source.stopped:stop");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_still(Side::Source, COMMAND);
    rig.signal_destination_qemu(Signal::SIGSTOP);
    rig.source_site().signal(Signal::SIGCONT);
    command.wait_phase("ceded");
    std::thread::sleep(Duration::from_secs(1));
    let refused = rig.destination_site().hikyaku(["cancel", rig.guest_name()], COMMAND).expect_code(OTHER);
    assert!(refused.text().contains("too late"), "{refused}");
    rig.signal_destination_qemu(Signal::SIGCONT);
    ends(command, 0, "runs-at-destination");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

/// It may have run the guest: it is not refused.
#[test]
fn a_destination_qemu_that_the_next_daemon_cannot_ask_is_not_given_up() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::with(plan("eu", &qemu), hasty);
    rig.restart_daemon(Side::Destination, "destination.started:kill");
    rig.arm();
    let command = rig.migrate_beside(&[]);
    rig.wait_dead(Side::Destination, COMMAND);
    rig.signal_destination_qemu(Signal::SIGSTOP);
    rig.restart_daemon(Side::Destination, "");
    ends(command, IN_DOUBT, "in-doubt");
    // As long as a QEMU may take to load a guest, and to answer.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(rig.source_status()["phase"], "ceded");
    assert_ne!(rig.source().status().expect("QMP"), "running");
    rig.signal_destination_qemu(Signal::SIGCONT);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    rig.assert_whole(Side::Destination);
}

/// It cannot have run: it arrives stopped, and nobody told it to run.
#[test]
fn a_destination_qemu_that_hangs_while_it_is_filled_is_given_up() {
    let Some(mut rig) = armed_with("eu", hasty) else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_phase("stopped");
    rig.signal_destination_qemu(Signal::SIGSTOP);
    ends(command, FAILED, "runs-at-source");
    rig.signal_destination_qemu(Signal::SIGCONT);
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// It will carry the order out when it wakes, so nobody may take the order for a failure.
#[test]
fn a_destination_qemu_that_hangs_when_told_to_run_is_not_given_up() {
    let Some(mut rig) = armed_with("eu", hasty) else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&["--switchover", "safe"]);
    // It has loaded the guest; the order to run it is still on its way.
    command.wait_phase("ceded");
    rig.signal_destination_qemu(Signal::SIGSTOP);
    there.wait_line("doubt", COMMAND, |line| line.contains("\"ending\":\"in-doubt\""));
    ends(command, IN_DOUBT, "in-doubt");
    assert_ne!(rig.source().status().expect("QMP"), "running");
    rig.signal_destination_qemu(Signal::SIGCONT);
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

// ---- without any fault

#[test]
fn a_guest_that_stands_arrives_standing() {
    let Some(mut rig) = armed("jgn") else { return };
    rig.stop_guest();
    let command = rig.migrate_beside(&[]);
    ends(command, 0, "stopped-at-destination");
    assert_eq!(rig.destination().status().expect("QMP"), "paused");
    rig.assert_stands();
    rig.assert_memory_equal();
    // Who comes late is told how it ended, too.
    let said = rig.source_site().hikyaku(["--json", "watch", rig.guest_name()], COMMAND).expect_code(0);
    assert!(said.stdout.contains(r#""event":"finished""#), "{said}");
    // It was only asleep.
    rig.destination().cont().expect("QMP");
    assert_eq!(rig.settles(SETTLE), Side::Destination);
}

#[test]
fn many_guests_at_once() {
    const GUESTS: usize = 4;
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let network = site::network("jgn");
    let pair = Pair::start(&network);
    let guests: Vec<_> = (0..GUESTS).map(|n| Traveller::start(n, &qemu)).collect();
    for guest in &guests {
        pair.b.hikyaku(guest.receive(), COMMAND).expect_code(0);
    }
    let commands: Vec<_> = guests.iter().map(|guest| pair.a.hikyaku_beside(guest.migrate())).collect();
    for command in commands {
        ends(command, 0, "runs-at-destination");
    }
    for mut guest in guests {
        assert_eq!(guest.source.status().expect("QMP"), "postmigrate", "{}", guest.name);
        let swept = guest.destination.wait_swept(COMMAND).unwrap_or_else(|e| panic!("{}: {e}", guest.name));
        assert_eq!(swept.bad, 0, "bad pages of {}", guest.name);
        let timeline = Timeline::merge(&[guest.source.console(), guest.destination.console()]);
        assert_eq!(timeline.overlap(), None, "{} ran twice", guest.name);
    }
}

/// One of many guests on one link: its memory is like no other's.
struct Traveller {
    name: String,
    source: Qemu,
    destination: Qemu,
}

impl Traveller {
    fn start(number: usize, qemu: &QemuBinary) -> Traveller {
        let load = Load::preset("oltp@1").expect("a preset").with_seed(100 + number as u64);
        let spec = GuestSpec::new(64, load).qemu(Located::at(&qemu.path));
        let source = Qemu::start_with(&spec, tied).unwrap_or_else(|e| panic!("source {number}: {e}"));
        source.wait_heartbeat(COMMAND, "a heartbeat", |_| true).unwrap_or_else(|e| panic!("{e}"));
        let destination = Qemu::await_migration_with(&spec, "defer", tied);
        let destination = destination.unwrap_or_else(|e| panic!("destination {number}: {e}"));
        Traveller { name: format!("courier-{number}"), source, destination }
    }

    fn receive(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<_> =
            ["receive", &self.name, "--detach", "--qmp"].into_iter().map(Into::into).collect();
        arguments.push(self.destination.qmp_path().into());
        arguments
    }

    fn migrate(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<_> =
            ["--json", "migrate", &self.name, "--to", "b", "--qmp"].into_iter().map(Into::into).collect();
        arguments.push(self.source.qmp_path().into());
        arguments
    }
}

/// A QEMU that dies with the test.
fn tied(program: &Path) -> Command {
    let mut command = Command::new(program);
    link::die_with_parent(&mut command);
    command
}

fn cancel(rig: &Rig) -> Output {
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND)
}
