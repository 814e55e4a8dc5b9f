//! A guest travels while strangers knock at the daemon it travels to.

use std::net::SocketAddr;
use std::time::Duration;

use hikyaku_lab::link::{Link, Profile};
use hikyaku_tests::command::Running;
use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};
use hikyaku_tests::{binaries, site};

const ATTEMPTS: usize = 10_000;
/// Nearly as long as the move.
const LASTS: Duration = Duration::from_secs(6);
/// Noise: 96 MiB at this take 6.5 s, flooded or not, if the daemons have time for it.
const FLAGS: [&str; 2] = ["--limit", "128mbit"];
const MEMORY_MIB: u32 = 96;
/// Of the daemon's peak, over that of a move undisturbed: 256 connections that wait, and what the allocator keeps.
const GROWTH_BYTES: u64 = 16 << 20;
/// Of a move.
const SLOWER: f64 = 1.1;
/// Two cores are shared with the strangers, both daemons, both QEMUs, and whatever else the machine does.
const TRIES: usize = 3;
const FLOOD_LIMIT: Duration = Duration::from_secs(60);

/// Half of them come from the peer's own host, half from another.
fn flood(rig: &Rig) -> Vec<Running> {
    let start = |from: &str| {
        let to = SocketAddr::from((rig.network().host("b").ip4(), site::PORT));
        let mut command = rig.network().host(from).command(binaries::helper("flood"));
        command.args([to.to_string(), (ATTEMPTS / 2).to_string(), LASTS.as_secs_f64().to_string()]);
        Running::start(&mut command)
    };
    vec![start("a"), start("c")]
}

#[test]
fn ten_thousand_strangers_do_not_keep_a_guest_from_arriving() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    binaries::helper("flood");
    let profile = Profile::named("jgn").expect("a link");
    let network = Link::builder().hosts(["a", "b", "c"]).profile(profile).build().expect("a link");
    let plan = Plan::new("jgn", &qemu).kind(GuestKind::bare("noise@1")).memory_mib(MEMORY_MIB);
    let mut rig = Rig::on(plan, network, |_| {});

    rig.arm();
    let (undisturbed, _) = rig.migrate_disturbed(&FLAGS, |_, _| {});
    let usual_bytes = rig.destination_site().rss_peak_bytes();
    rig.turn_around();
    rig.migrate_live(&[]);
    rig.turn_around();

    for attempt in 1..=TRIES {
        // Its peak as a source is forgotten.
        rig.restart_destination_daemon();
        rig.arm();
        let mut strangers = Vec::new();
        let (disturbed, _) = rig.migrate_disturbed(&FLAGS, |rig, travel| {
            travel.wait_phase("copying");
            strangers = flood(rig);
        });
        let made: usize = strangers
            .into_iter()
            .map(|flood| flood.wait(FLOOD_LIMIT).expect_code(0).stdout.trim().parse().unwrap_or(0))
            .sum();
        let grown_bytes = rig.destination_site().rss_peak_bytes().saturating_sub(usual_bytes);
        println!(
            "{undisturbed:.2?} undisturbed, {disturbed:.2?} with {made} strangers; the daemon's peak grew by {} KiB from {} MiB",
            grown_bytes >> 10,
            usual_bytes >> 20
        );
        assert!(made > ATTEMPTS * 9 / 10, "{made} strangers could connect");
        assert!(grown_bytes < GROWTH_BYTES, "{grown_bytes}");
        if disturbed < undisturbed.mul_f64(SLOWER) {
            return;
        }
        assert!(attempt < TRIES, "{disturbed:.2?} with strangers, {undisturbed:.2?} without");
        rig.turn_around();
        rig.migrate_live(&[]);
        rig.turn_around();
    }
}
