//! Guests that libvirt moves without anybody telling it of hikyaku: its configuration and the names of hosts lead them through the link.

use std::time::{Duration, Instant};

use hikyaku_lab::guest::Timeline;
use hikyaku_tests::virt::{GUEST, Plan, Virt};

const MOVE: Duration = Duration::from_secs(120);

fn words(virt: &Virt, more: &[&str]) -> Vec<String> {
    let to = format!("qemu+tcp://{}/system", virt.network.host("b").ip4());
    let words = ["migrate", "--live", GUEST, to.as_str()];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

/// As virt-manager and others do: no address is given, and none of ours.
fn moves(plan: Option<Plan>, more: &[&str], disk: bool) {
    let Some(plan) = plan else { return };
    let virt = Virt::new(&plan.landings().disk(disk));
    virt.hikyaku_beside(&["libvirt", "check", "b"]).wait(MOVE).expect_code(0);
    let began = Instant::now();
    let words = words(&virt, more);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let command = virt.a.virsh_beside(virt.network.host("a"), &words);
    let there = virt.console_there();
    let output = command.wait(MOVE).expect_code(0);
    let total = began.elapsed();
    virt.check_moved(&there, disk);
    for site in [&virt.pair.a, &virt.pair.b] {
        site.hikyaku(["watch", GUEST], MOVE).expect_code(0);
        let report = site.hikyaku(["list"], MOVE).expect_code(0);
        println!("{report}");
    }
    let log = virt.pair.a.log();
    assert!(!log.contains("relayed as it is"), "its memory went through the engine: {log}");
    let timeline = Timeline::merge(&[&virt.source, &there]);
    let gap = timeline.longest_gap(began..Instant::now()).length;
    println!("{more:?}: total {total:.2?}, gap {gap:.0?}\n{output}");
}

#[test]
fn virsh_moves_a_guest() {
    moves(Plan::here("jgn"), &[], false);
}

#[test]
fn libvirt_moves_a_guest_by_itself() {
    moves(Plan::here("jgn"), &["--p2p"], false);
}

#[test]
fn virsh_moves_a_guest_and_its_disk() {
    moves(Plan::here("jgn"), &["--copy-storage-all"], true);
}

#[test]
fn libvirt_moves_a_guest_and_its_disk_by_itself() {
    moves(Plan::here("jgn"), &["--p2p", "--copy-storage-all"], true);
}

#[test]
fn an_older_libvirt_moves_a_guest_and_its_disk() {
    moves(Plan::older("jgn"), &["--p2p", "--copy-storage-all"], true);
}

/// Nothing is known of a stream that is not looked into, and yet where the guest is.
#[test]
fn a_stream_that_is_relayed_as_it_is_arrives() {
    let Some(plan) = Plan::here("jgn").map(Plan::landings) else { return };
    let virt = Virt::new(&plan);
    let words = words(&virt, &["--parallel"]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let command = virt.a.virsh_beside(virt.network.host("a"), &words);
    let there = virt.console_there();
    command.wait(MOVE).expect_code(0);
    virt.check_moved(&there, false);
    virt.pair.a.hikyaku(["watch", GUEST], MOVE).expect_code(0);
}

/// Nothing listens where the guest is to leave, so nothing of it does.
#[test]
fn without_our_daemon_nothing_leaves() {
    let Some(plan) = Plan::here("jgn").map(Plan::landings) else { return };
    let mut virt = Virt::new(&plan);
    virt.pair.a.kill();
    let words = words(&virt, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let output = virt.a.virsh_beside(virt.network.host("a"), &words).wait(MOVE);
    assert_ne!(output.code, Some(0), "{output}");
    virt.check_stayed();
}

/// libvirt's hook is where a guest is turned away before anything of it has moved.
#[test]
fn a_guest_that_does_not_fit_is_turned_away() {
    let Some(plan) = Plan::here("cloudnet").map(Plan::landings) else { return };
    let virt = Virt::with(&plan, |settings| settings.more.push_str("room = \"100000GiB\"\n"));
    let words = words(&virt, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let output = virt.a.virsh_beside(virt.network.host("a"), &words).wait(MOVE);
    assert_ne!(output.code, Some(0), "{output}");
    assert!(output.stderr.contains("MiB are to be left"), "{output}");
    virt.check_stayed();
}

#[test]
fn what_is_not_set_up_is_found() {
    let Some(plan) = Plan::here("cloudnet").map(Plan::landings) else { return };
    let virt = Virt::new(&plan);
    std::fs::write(virt.a.inside("/etc/hosts"), "127.0.0.1 localhost\n").expect("a file");
    let conf = virt.b.inside("/etc/libvirt/qemu.conf");
    let text = std::fs::read_to_string(&conf).expect("a file");
    std::thread::sleep(Duration::from_millis(3100));
    std::fs::write(&conf, text.replace("migration_port_min = 49168", "migration_port_min = 49152"))
        .expect("a file");
    let output = virt.hikyaku_beside(&["libvirt", "check", "b"]).wait(MOVE).expect_code(6);
    for words in [
        "b.hikyaku means nothing at this host, not 127.77.0.2",
        "migration_port_min is 49152, not 49168",
        "libvirtd was started before /etc/libvirt/qemu.conf was last changed",
    ] {
        assert!(output.stdout.contains(words), "{words}: {output}");
    }
}
