//! Two guests travel over one link: fairly, by priority, and before all others while one of them stands still.
//!
//! The host's limit makes the link slow enough to be watched.

use std::time::{Duration, Instant};

use hikyaku_lab::guest::{GuestSpec, Load, Qemu};
use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::command::Running;
use hikyaku_tests::machine::{self, need};
use hikyaku_tests::site::{self, Pair, Settings};
use serde_json::Value;

const LIMIT: &str = "[link]\nlimit = \"100mbit\"\n";
const LIMIT_BYTES_PER_S: f64 = 100e6 / 8.0;
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// What was queued before a change has left.
const SETTLE: Duration = Duration::from_millis(1500);
const WATCHED: Duration = Duration::from_secs(3);
/// Measured again when the machine did something else meanwhile.
const ATTEMPTS: usize = 3;
/// The one that is stopped dirties more than its share, so it is not before.
const DEADLINE: Duration = Duration::from_secs(16);

struct Traveller {
    name: &'static str,
    source: Qemu,
    _destination: Qemu,
    travel: Running,
}

/// Noise, of which so much is rewritten at so many MB/s.
fn load(set_mib: u32, mb_per_s: f64) -> Load {
    Load { set_pages: set_mib << 8, ..Load::preset("noise").expect("a preset").with_rate_mb_per_s(mb_per_s) }
}

impl Traveller {
    fn set_out(pair: &Pair, name: &'static str, memory_mib: u32, load: Load, flags: &[&str]) -> Traveller {
        let spec = GuestSpec::new(memory_mib, load);
        let source = Qemu::start(&spec).unwrap_or_else(|e| panic!("{e}"));
        source.wait_ready(BOOT_LIMIT).unwrap_or_else(|e| panic!("{e}"));
        let destination = Qemu::await_migration(&spec).unwrap_or_else(|e| panic!("{e}"));
        let path = |qemu: &Qemu| qemu.qmp_path().display().to_string();
        let receive = ["receive", name, "--from", "a", "--detach", "--qmp", &path(&destination)];
        pair.b.hikyaku(receive, COMMAND_LIMIT).expect_code(0);
        let migrate = ["--json", "migrate", name, "--to", "b", "--qmp", &path(&source)];
        let travel = pair.a.hikyaku_beside([&migrate[..], flags].concat());
        travel.wait_phase("copying");
        Traveller { name, source, _destination: destination, travel }
    }

    fn acked(&self, pair: &Pair) -> f64 {
        let output = pair.a.hikyaku(["--json", "status", self.name], COMMAND_LIMIT).expect_code(0);
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}; {output}"));
        status["numbers"]["acked_bytes"].as_f64().unwrap_or_else(|| panic!("{status}"))
    }
}

/// Bytes per second that each gets.
fn rates<const N: usize>(pair: &Pair, of: [&Traveller; N], lasts: Duration) -> [f64; N] {
    let before = of.map(|one| (Instant::now(), one.acked(pair)));
    std::thread::sleep(lasts);
    std::array::from_fn(|n| (of[n].acked(pair) - before[n].1) / before[n].0.elapsed().as_secs_f64())
}

fn claim_share(pair: &Pair, of: [&Traveller; 2], asked: f64) {
    std::thread::sleep(SETTLE);
    let shared = (0..ATTEMPTS).any(|_| {
        let [one, other] = rates(pair, of, WATCHED);
        let all = (one + other) / LIMIT_BYTES_PER_S;
        println!("{:.2} and {:.2} MB/s, asked {asked}; {all:.2} of the limit", one / 1e6, other / 1e6);
        (0.8..1.25).contains(&(one / other / asked)) && (0.85..1.0).contains(&all)
    });
    claim(shared, format!("not {asked} times as much, or not all of the limit"));
}

#[test]
fn two_are_fair_one_of_high_priority_has_four_fifths_and_one_that_stands_has_all() {
    let Some(_) = need("QEMU", machine::qemu()) else { return };
    timed(1, "shares", two_share);
}

fn two_share() {
    let network = site::network("jgn");
    let pair = Pair::start_with(&network, |settings: &mut Settings| settings.more = LIMIT.to_owned());
    let calm = Traveller::set_out(&pair, "calm", 256, load(1, 0.1), &[]);
    let deadline = format!("{}s", DEADLINE.as_secs());
    let busy = ["--deadline", &deadline, "--on-deadline", "force"];
    let busy = Traveller::set_out(&pair, "busy", 96, load(24, 40.0), &busy);

    claim_share(&pair, [&busy, &calm], 1.0);
    pair.a.hikyaku(["set", "busy", "--priority", "high"], COMMAND_LIMIT).expect_code(0);
    claim_share(&pair, [&busy, &calm], 4.0);

    // Some 20 MiB are left when it is stopped: two seconds, if it need not share.
    busy.travel.wait_phase("stopped");
    // What lanes held at that moment is still of both.
    std::thread::sleep(Duration::from_millis(200));
    let [calm_rate] = rates(&pair, [&calm], Duration::from_millis(800));
    println!("{:.2} MB/s for the other meanwhile", calm_rate / 1e6);
    claim(calm_rate < 0.05 * LIMIT_BYTES_PER_S, format!("{calm_rate} B/s while the other stood"));
    let output = busy.travel.wait(COMMAND_LIMIT).expect_code(0);
    assert_eq!(output.whereabouts(), "runs-at-destination");

    // It has the link again.
    std::thread::sleep(SETTLE / 3);
    let [calm_rate] = rates(&pair, [&calm], Duration::from_secs(1));
    claim(calm_rate > 0.7 * LIMIT_BYTES_PER_S, format!("{calm_rate} B/s afterwards"));
    pair.a.hikyaku(["cancel", "calm"], COMMAND_LIMIT).expect_code(0);
    let mut source = calm.source;
    assert_eq!(source.status().expect("QMP"), "running");
}
