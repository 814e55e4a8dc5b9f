//! Links that break under a move: it waits, goes on where it was, and is done as soon as the link lets it.
//!
//! Undisturbed moves of the same guest over the same link, in the same run, say what "as soon" means.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hikyaku_lab::link::Rate;
use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::command::{Output, Running};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use hikyaku_tests::site::{self, PORT, Settings};
use nix::sys::signal::Signal;

const CANCELLED: i32 = 8;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;

/// Pages have arrived, and most of them have not.
const SOME_PAGES_BYTES: u64 = 2 << 20;
/// After an outage, until the move is where it would have been: a connection, two handshakes, TCP's slow start.
const RECOVERY: Duration = Duration::from_secs(2);
/// A path is missed after four seconds of silence; TCP gives its connections up after five.
const PATH_MISSED: Duration = Duration::from_secs(5);
/// Silence on the link until it is down, and a little more.
const NOTICED: Duration = Duration::from_secs(15);
const SETTLE: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(60);

fn qemu() -> Option<QemuBinary> {
    need("QEMU", machine::qemu())
}

fn rig(link: &'static str) -> Option<Rig> {
    Some(Rig::new(Plan::new(link, &qemu()?)))
}

/// A small guest on a slow link, armed: it can be met on its way for seconds.
fn slow(adjust: impl FnMut(&mut Settings)) -> Option<Rig> {
    let plan = Plan::new("cloudnet", &qemu()?).memory_mib(64).kind(GuestKind::bare("oltp@1"));
    let mut rig = Rig::with(plan, adjust);
    rig.arm();
    Some(rig)
}

/// How long a move takes that nothing disturbs. The guest is back where it was.
fn undisturbed(rig: &mut Rig) -> Duration {
    let there = live(rig, |_, _| {}).0;
    rig.turn_around();
    let back = live(rig, |_, _| {}).0;
    rig.turn_around();
    there.max(back)
}

fn live(rig: &mut Rig, disturb: impl FnOnce(&mut Rig, &Running)) -> (Duration, Output) {
    rig.arm();
    rig.migrate_disturbed(&[], |rig, command| {
        command.wait_acked(SOME_PAGES_BYTES);
        disturb(rig, command);
    })
}

/// Arrives paused, every page equal to the source's; then it works on, and finds nothing bad.
fn equal(rig: &mut Rig, disturb: impl FnOnce(&mut Rig, &Running)) -> (Duration, Output) {
    let moved = rig.migrate_paused_disturbed(&[], |rig, command| {
        command.wait_acked(SOME_PAGES_BYTES);
        disturb(rig, command);
    });
    rig.assert_memory_equal();
    rig.works_on();
    moved
}

fn cut_for(rig: &Rig, outage: Duration) {
    rig.network().set_outage(true);
    std::thread::sleep(outage);
    rig.network().set_outage(false);
}

fn stand(site: &site::Site, how_long: Duration) {
    site.signal(Signal::SIGSTOP);
    std::thread::sleep(how_long);
    site.signal(Signal::SIGCONT);
}

#[track_caller]
fn assert_prompt(total: Duration, undisturbed: Duration, outage: Duration) {
    println!("{total:.2?} with up to {outage:?} lost, {undisturbed:.2?} without");
    let late = format!("{total:?}; undisturbed {undisturbed:?}, out {outage:?}");
    claim(total <= undisturbed + outage + RECOVERY, late);
}

#[track_caller]
fn ends(command: Running, code: i32, whereabouts: &str) -> Output {
    let output = command.wait(COMMAND).expect_code(code);
    assert_eq!(output.whereabouts(), whereabouts, "{output}");
    output
}

fn cancel(site: &site::Site, guest: &str) {
    site.hikyaku(["cancel", guest], COMMAND).expect_code(0);
}

// ---- the link is out, and comes back

#[test]
fn a_total_outage_of_45_s_while_copying() {
    timed(1, "the total", || {
        let Some(mut rig) = rig("jgn") else { return };
        let undisturbed = undisturbed(&mut rig);
        let outage = Duration::from_secs(45);
        let (total, output) = equal(&mut rig, |rig, command| {
            rig.network().set_outage(true);
            let out = Instant::now();
            command.wait_event("link-down", NOTICED);
            command.wait_phase("link-lost");
            rig.assert_runs_at_source();
            let status = rig.source_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
            for words in
                ["link lost: nothing came for 4 s", "the guest runs on here", "again (for", "of 600 s)"]
            {
                assert!(status.stdout.contains(words), "\"{words}\" is not said; {status}");
            }
            std::thread::sleep(outage.saturating_sub(out.elapsed()));
            rig.network().set_outage(false);
        });
        assert_prompt(total, undisturbed, outage);
        let up = output.events("link-up");
        assert_eq!(up.len(), 1, "{output}");
        let link = &up[0]["data"]["link"];
        assert_eq!((&link["down"], &link["timeout_ms"]), (&false.into(), &600_000.into()), "{link}");
        assert!(link["for_ms"].as_u64().is_some_and(|ms| (38_000..45_000).contains(&ms)), "{link}");
    });
}

/// It stops its guest by itself when it is read too far, and is read in grants: none leads it there over an outage.
#[test]
fn an_older_qemu_is_held_back_over_an_outage() {
    let Some((older, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    let mut rig = Rig::new(Plan::new("jgn", &older));
    let (total, output) = live(&mut rig, |rig, _| cut_for(rig, Duration::from_secs(8)));
    println!("{total:.2?}");
    assert_eq!(output.events("link-up").len(), 1, "{output}");
}

#[test]
fn a_daemon_that_stands_still() {
    timed(1, "the total", || {
        let Some(mut rig) = rig("jgn") else { return };
        let undisturbed = undisturbed(&mut rig);
        let outage = Duration::from_secs(9);
        let (total, _) = equal(&mut rig, |rig, _| stand(rig.source_site(), outage));
        assert_prompt(total, undisturbed, outage);
        rig.turn_around();
        let (total, _) = equal(&mut rig, |rig, _| stand(rig.destination_site(), outage));
        assert_prompt(total, undisturbed, outage);
    });
}

/// The link is given up at the other side meanwhile, and back before the guest would have to go on here.
#[test]
fn a_source_daemon_that_stands_still_with_its_guest() {
    let Some(mut rig) = rig("us") else { return };
    rig.arm();
    let (_, output) = rig.migrate_disturbed(&["--switchover", "safe"], |rig, command| {
        command.wait_phase("stopped");
        stand(rig.source_site(), Duration::from_secs(6));
    });
    assert_eq!(output.events("link-up").len(), 1, "{output}");
}

// ---- the path changes

#[test]
fn one_of_two_paths_goes_dark_for_good() {
    timed(1, "the total", || {
        let Some(qemu) = qemu() else { return };
        let plan = Plan::new("jgn", &qemu);
        let network = site::network(plan.link);
        let host = network.host("b");
        let paths = [SocketAddr::from((host.ip6(), PORT)), SocketAddr::from((host.ip4(), PORT))];
        let mut rig = Rig::on(plan, network, |settings| {
            if settings.name == "a" {
                settings.peers[0].addresses = paths.map(|path| path.to_string()).to_vec();
            }
        });
        let undisturbed = undisturbed(&mut rig);
        let (total, output) = equal(&mut rig, |rig, _| {
            let off = || fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            rig.network().host("b").within(off).expect("its network").expect("IPv6 can be switched off");
        });
        println!("{} outages", output.events("link-down").len());
        assert_prompt(total, undisturbed, PATH_MISSED);
    });
}

/// Judged by a move that has the new path from its beginning. A path that becomes longer alone: `benches/tests/limits.rs`.
#[test]
fn the_path_becomes_longer_and_slower() {
    timed(1, "the total", || {
        let Some(mut rig) = rig("jgn") else { return };
        let (total, output) = equal(&mut rig, |rig, _| {
            rig.network().set_rtt(Duration::from_millis(250));
            rig.network().set_rate(Some(Rate::payload(300_000_000)));
        });
        assert!(output.events("link-down").is_empty(), "nothing was out; {output}");
        rig.turn_around();
        let (undisturbed, _) = live(&mut rig, |_, _| {});
        assert_prompt(total, undisturbed, Duration::ZERO);
    });
}

// ---- the switch-over

#[test]
fn an_outage_right_after_go_has_left() {
    let Some(mut rig) = rig("eu") else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("ceded");
    rig.network().set_outage(true);
    let output = ends(command, IN_DOUBT, "in-doubt");
    assert!(output.text().contains("nothing came for"), "the reason is not said; {output}");
    assert_eq!(rig.source_status()["phase"], "ceded");
    rig.assert_stands();
    rig.network().set_outage(false);
    let mended = Instant::now();
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    assert_eq!(rig.wait_source_final(SETTLE), "moved");
    println!("moved {:.2?} after the link was back", mended.elapsed());
    rig.assert_one_verdict();
}

/// The session is given up, and the source asks on links of its own.
#[test]
fn a_link_that_does_not_come_back_in_time_after_go() {
    let adjust = |settings: &mut Settings| {
        settings.more =
            "[link]\ntimeout = \"4s\"\ndead_after = \"3s\"\nconnect_timeout = \"3s\"\n".to_owned();
    };
    let Some(qemu) = qemu() else { return };
    let plan = Plan::new("eu", &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1"));
    let mut rig = Rig::with(plan, adjust);
    rig.arm();
    let command = rig.migrate_beside(&[]);
    command.wait_phase("ceded");
    rig.network().set_outage(true);
    ends(command, IN_DOUBT, "in-doubt");
    // Longer than the session lives.
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(rig.source_status()["phase"], "ceded");
    assert_ne!(rig.source().status().expect("QMP"), "running");
    rig.network().set_outage(false);
    let phase = rig.wait_source_final(SETTLE);
    let side = rig.settles(SETTLE);
    assert_eq!(phase, if side == Side::Source { "resumed" } else { "moved" });
    rig.assert_whole(side);
}

// ---- what does not come back

#[test]
fn a_destination_daemon_that_is_restarted_has_forgotten() {
    let Some(mut rig) = slow(|_| {}) else { return };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.restart_destination_daemon();
    let output = ends(command, FAILED, "runs-at-source");
    assert!(output.text().contains("its daemon was restarted"), "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn a_link_that_does_not_come_back_in_time() {
    let Some(mut rig) = slow(|settings| settings.more = "[link]\ntimeout = \"5s\"\n".to_owned()) else {
        return;
    };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    let out = Instant::now();
    rig.network().set_outage(true);
    let output = ends(command, FAILED, "runs-at-source");
    assert!(output.text().contains("did not come back within 5 s"), "{output}");
    assert!(out.elapsed() < Duration::from_secs(12), "{:?}", out.elapsed());
    there.wait_phase("refused");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn a_link_that_may_not_be_out_at_all() {
    let Some(mut rig) = slow(|settings| settings.more = "[link]\ntimeout = \"0\"\n".to_owned()) else {
        return;
    };
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.network().set_outage(true);
    let output = ends(command, FAILED, "runs-at-source");
    assert!(output.events("link-down").is_empty(), "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

#[test]
fn a_cancel_at_the_destination_reaches_the_source_with_the_link() {
    let Some(mut rig) = slow(|_| {}) else { return };
    let there = rig.watch_destination();
    let command = rig.migrate_beside(&[]);
    command.wait_acked(SOME_PAGES_BYTES);
    rig.network().set_outage(true);
    there.wait_phase("link-lost");
    cancel(rig.destination_site(), rig.guest_name());
    there.wait(COMMAND).expect_code(CANCELLED);
    command.wait_phase("link-lost");
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.network().set_outage(false);
    ends(command, CANCELLED, "runs-at-source");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}
