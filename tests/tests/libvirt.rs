//! Guests that belong to libvirt, moved by `virsh migrate` over the emulated link, unpatched.

use std::time::{Duration, Instant};

use hikyaku_lab::guest::Timeline;
use hikyaku_tests::virt::{GUEST, Plan, Virt};

const MOVE: Duration = Duration::from_secs(120);

fn moves(words: &[&str], disk: bool) {
    let Some(plan) = Plan::here("jgn") else { return };
    moves_as(&plan, words, disk);
}

fn moves_as(plan: &Plan, words: &[&str], disk: bool) {
    let virt = Virt::new(&plan.clone().disk(disk));
    let began = Instant::now();
    let command = virt.hikyaku_beside(&[&["virsh-migrate", GUEST, "--to", "b"], words].concat());
    let there = virt.console_there();
    let output = command.wait(MOVE).expect_code(0);
    let total = began.elapsed();
    virt.check_moved(&there, disk);
    for site in [&virt.pair.a, &virt.pair.b] {
        site.hikyaku(["watch", GUEST], MOVE).expect_code(0);
    }
    let timeline = Timeline::merge(&[&virt.source, &there]);
    let gap = timeline.longest_gap(began..Instant::now()).length;
    println!("{words:?}: total {total:.2?}, gap {gap:.0?}\n{output}");
}

#[test]
fn virsh_moves_a_guest() {
    moves(&[], false);
}

#[test]
fn libvirt_moves_a_guest_by_itself() {
    moves(&["--p2p"], false);
}

#[test]
fn virsh_moves_a_guest_and_its_disk() {
    moves(&["--disks"], true);
}

#[test]
fn libvirt_moves_a_guest_and_its_disk_by_itself() {
    moves(&["--p2p", "--disks"], true);
}

/// Relayed as it is: pages come by connections of their own.
#[test]
fn virsh_moves_a_guest_by_several_connections() {
    moves(&["--parallel"], false);
}

/// Relayed as it is: what the guest asks for there comes behind it, and when it is let run is libvirt's to say.
#[test]
fn virsh_moves_a_guest_that_runs_there_before_all_of_it_is_there() {
    let Some(plan) = Plan::here("jgn") else { return };
    let virt = Virt::new(&plan);
    let began = Instant::now();
    let timeout = ["--limit", "60mbit", "--postcopy", "--timeout", "2", "--timeout-postcopy"];
    let command = virt.hikyaku_beside(&[&["virsh-migrate", GUEST, "--to", "b"], &timeout[..]].concat());
    let there = virt.console_there();
    there.wait(MOVE, |log| log.heartbeats.first().copied()).expect("it runs there");
    let ran = Instant::now();
    let output = command.wait(MOVE).expect_code(0);
    assert!(ran.elapsed() > Duration::from_secs(2), "{:?}: {output}", ran.elapsed());
    assert!(output.stderr.contains("with --postcopy its memory is carried as it is"), "{output}");
    virt.check_moved(&there, false);
    // Of what QEMU had given little was on the way when it stopped the guest.
    let gap = Timeline::merge(&[&virt.source, &there]).longest_gap(began..ran).length;
    assert!(gap < Duration::from_secs(3), "{gap:?}: {output}");
    println!("gap {gap:.0?}");
}

/// Debian 12's: libvirt 9.0 and QEMU 7.2, which stops its guest when it thinks that it is time.
#[test]
fn an_older_libvirt_moves_a_guest() {
    let Some(plan) = Plan::older("jgn") else { return };
    moves_as(&plan, &[], false);
    moves_as(&plan, &["--p2p"], false);
}

#[test]
fn an_older_libvirt_moves_a_guest_and_its_disk() {
    let Some(plan) = Plan::older("jgn") else { return };
    moves_as(&plan, &["--disks"], true);
    moves_as(&plan, &["--p2p", "--disks"], true);
}

#[test]
fn a_peer_without_hikyaku_is_told_before_anything_moves() {
    let Some(plan) = Plan::here("jgn") else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.b.kill();
    let began = Instant::now();
    let output = virt.hikyaku_beside(&["virsh-migrate", GUEST, "--to", "b"]).wait(MOVE).expect_code(4);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(output.stderr.contains("the guest was not touched"), "{output}");
    virt.check_stayed();
}

#[test]
fn a_job_that_is_aborted_leaves_the_guest_where_it_was() {
    let Some(plan) = Plan::here("cloudnet") else { return };
    let virt = Virt::new(&plan);
    let command = virt.hikyaku_beside(&["virsh-migrate", GUEST, "--to", "b", "--limit", "20mbit"]);
    let there = virt.console_there();
    std::thread::sleep(Duration::from_secs(2));
    // What libvirt can be asked and told meanwhile it still can.
    let info = virt.virsh_a(&["domjobinfo", GUEST]).expect_code(0);
    assert!(info.stdout.contains("Memory remaining"), "{info}");
    virt.virsh_a(&["migrate-setspeed", GUEST, "500"]).expect_code(0);
    virt.virsh_a(&["migrate-setmaxdowntime", GUEST, "400"]).expect_code(0);
    virt.virsh_a(&["domjobabort", GUEST]).expect_code(0);
    let output = command.wait(MOVE);
    assert_ne!(output.code, Some(0), "{output}");
    drop(there);
    virt.check_stayed();
}
