//! `hikyaku link PEER`: what an operator reads of a link, idle and at work.

use std::time::Duration;

use hikyaku_lab::steady::{claim, timed};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};
use serde_json::Value;

const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Until a limit holds, or a queue stands.
const SETTLE: Duration = Duration::from_secs(2);
/// `cloudnet`: 100 Mbit/s of TCP's payload, 20 ms.
const LINK: &str = "cloudnet";

fn report(rig: &Rig) -> (Value, String) {
    let json = rig.source_site().hikyaku(["--json", "link", "b"], COMMAND_LIMIT).expect_code(0).stdout;
    let report: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    println!("{report}");
    let limited = report["limited_by"].as_str().unwrap_or_default().to_owned();
    (report, limited)
}

fn mbit(report: &Value) -> f64 {
    report["bytes_per_s"].as_f64().expect("a rate") * 8e-6
}

#[test]
fn a_link_that_is_made_to_be_measured_keeps_the_peers_limit() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let rig = Rig::with(Plan::new(LINK, &qemu), |settings| settings.more = "limit = \"20mbit\"\n".to_owned());
    let (idle, _) = report(&rig);
    let [padding_bytes, took_ms] =
        ["padding_bytes", "took_ms"].map(|figure| idle["warmed"][figure].as_f64().expect("a figure"));
    let mbit = padding_bytes * 8e-3 / took_ms;
    assert!((5.0..22.0).contains(&mbit), "{mbit} Mbit/s: {idle}");
}

#[test]
fn it_says_what_the_path_is_and_what_limits_it() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    timed(3, "what it says", || says_what_the_path_is_and_what_limits_it(&qemu));
}

fn says_what_the_path_is_and_what_limits_it(qemu: &QemuBinary) {
    let mut rig = Rig::new(Plan::new(LINK, qemu).kind(GuestKind::bare("noise@1")));

    // Idle: opened, warmed, measured.
    let (idle, limited) = report(&rig);
    assert_eq!((idle["peer"].as_str(), idle["sessions"].as_u64()), (Some("b"), Some(0)));
    // Found in pieces of a few milliseconds: a machine that stands still for one of them finds so much more or less.
    claim((50.0..160.0).contains(&mbit(&idle)), format!("{idle}"));
    claim((19_000..30_000).contains(&idle["min_rtt_us"].as_u64().unwrap_or(0)), format!("{idle}"));
    assert!(idle["warmed"]["padding_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{idle}");
    assert_eq!(limited, "", "an idle link is limited by nothing");
    let lanes = idle["lanes"].as_array().expect("lanes");
    assert_eq!(lanes.len(), 4);
    let address = format!("{}:4707", rig.network().host("b").ip4());
    let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    let has_bbr = known.is_ok_and(|known| known.split_whitespace().any(|name| name == "bbr"));
    for lane in lanes {
        assert_eq!(lane["address"], address.as_str());
        assert_eq!(lane["congestion"], if has_bbr { "bbr" } else { "cubic" });
        assert!(lane["window_bytes"].as_u64().is_some_and(|bytes| bytes >= 14_480), "{lane}");
    }
    let text = rig.source_site().hikyaku(["link", "b"], COMMAND_LIMIT).expect_code(0).stdout;
    println!("{text}");
    for words in
        ["to b: up, ", "round trip  ", "of padding", "LANE  ADDRESS", "limited by nothing: it was idle"]
    {
        assert!(text.contains(words), "no {words:?}:\n{text}");
    }

    // At work: watched, and not disturbed.
    rig.arm();
    rig.migrate(&["--detach"]).expect_code(0);
    std::thread::sleep(SETTLE);
    let (full, limited) = report(&rig);
    assert_eq!((full["sessions"].as_u64(), &full["warmed"]), (Some(1), &Value::Null));
    claim((80.0..110.0).contains(&mbit(&full)), format!("{full}"));
    claim(limited.starts_with("the path: it is full, with "), limited);
    rig.source_site().hikyaku(["set", rig.guest_name(), "--limit", "20mbit"], COMMAND_LIMIT).expect_code(0);
    std::thread::sleep(SETTLE);
    let (set, limited) = report(&rig);
    claim((17.0..21.0).contains(&mbit(&set)), format!("{set}"));
    assert_eq!(limited, "the limit that was set, 20.0 Mbit/s on the wire");
    let text = rig.source_site().hikyaku(["link", "b"], COMMAND_LIMIT).expect_code(0).stdout;
    assert!(text.contains("1 migration\n") && text.contains("limited by the limit that was set"), "{text}");
    rig.source_site().hikyaku(["cancel", rig.guest_name()], COMMAND_LIMIT).expect_code(0);
    rig.assert_runs_at_source();

    let unknown = rig.source_site().hikyaku(["link", "nobody"], COMMAND_LIMIT).expect_code(2);
    assert!(unknown.text().contains("no peer \"nobody\""), "{unknown}");
}
