//! `hikyaku check`: how a move would go, before it; and `hikyaku report`: what came of it.

use std::time::Duration;

use hikyaku_lab::steady::{asserted, claim, timed};
use hikyaku_tests::machine::{self, QemuBinary, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig};
use serde_json::{Value, json};

const COMMAND_LIMIT: Duration = Duration::from_secs(30);

fn check(rig: &mut Rig, flags: &[&str]) -> hikyaku_tests::command::Output {
    let qmp = rig.source().qmp_path().to_str().expect("UTF-8").to_owned();
    let (name, site) = (rig.guest_name(), rig.source_site());
    let arguments = [&["check", "b", "--guest", name, "--qmp", &qmp], flags].concat();
    site.hikyaku(arguments, COMMAND_LIMIT)
}

fn checked(rig: &mut Rig, flags: &[&str], code: i32) -> Value {
    let output = check(rig, &[flags, &["--json"]].concat()).expect_code(code);
    println!("{}", output.stdout.trim());
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"))
}

/// All of QEMU that a migration changes.
fn settings(rig: &mut Rig) -> [Value; 3] {
    ["query-migrate-parameters", "query-migrate-capabilities", "query-migrate"]
        .map(|question| rig.source().qmp(question, json!({})).expect("QMP"))
}

#[test]
fn what_is_foretold_stands_beside_what_comes_of_it_and_the_guest_is_not_touched_for_it() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    timed(2, "what is foretold", || foretold_and_measured(&qemu));
}

fn foretold_and_measured(qemu: &QemuBinary) {
    let mut rig = Rig::new(Plan::new("us", qemu));
    let before = settings(&mut rig);
    let report = checked(&mut rig, &[], 0);
    assert_eq!(settings(&mut rig), before, "the guest's QEMU was changed");
    rig.assert_runs_at_source();
    assert_eq!(report["ram_bytes"], 160 << 20);
    let used = report["used_bytes"].as_u64().expect("QEMU is a process like others");
    assert!((100 << 20..=160 << 20).contains(&used), "{used}");
    assert_eq!(report["estimate"]["verdict"], "converges");
    let text = check(&mut rig, &[]).expect_code(0).stdout;
    println!("{text}");
    for words in ["guest  ", "dirties  ", "path  ", "assumed  ", "not checked", "\nwould move in about "] {
        assert!(text.contains(words), "no {words:?}:\n{text}");
    }

    rig.migrate_live(&[]);
    let told =
        rig.source_site().hikyaku(["report", rig.guest_name(), "--json"], COMMAND_LIMIT).expect_code(0);
    let told: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|e| panic!("{e}: {told}"));
    println!("{told}");
    let report = &told["report"];
    let ms = |value: &Value| value.as_f64().expect("a time");
    let [foretold, measured] = ["predicted", "measured"].map(|stop| ms(&report[stop]["total_ms"]));
    assert!(measured >= 60.0, "a stop shorter than the way: {report}");
    claim((foretold - measured).abs() <= f64::max(20.0, 0.3 * measured), format!("{report}"));
    let [guessed, total] = [ms(&report["estimate"]["total_ms"]), ms(&report["total_ms"])];
    claim((0.4..2.5).contains(&(guessed / total)), format!("{report}"));
    for stop in ["predicted", "measured"].map(|stop| &report[stop]) {
        let terms = ["pause_ms", "residual_ms", "forward_ms", "state_ms", "resume_ms"];
        let sum: f64 = terms.iter().map(|term| ms(&stop[*term])).sum();
        assert!((sum - ms(&stop["total_ms"])).abs() < 1.0, "{stop}");
    }
    let text = rig.source_site().hikyaku(["report", rig.guest_name()], COMMAND_LIMIT).expect_code(0).stdout;
    for words in ["moved to b in ", "estimate: would move in about ", "stop foretold: ", "stop measured: "] {
        assert!(text.contains(words), "no {words:?}:\n{text}");
    }
    // There is no report where it arrived.
    rig.destination_site().hikyaku(["report", rig.guest_name()], COMMAND_LIMIT).expect_code(1);

    // Back, nothing was asked before; the waiting command says the same as the report.
    rig.turn_around();
    rig.arm();
    let output = rig.migrate(&[]).expect_code(0);
    println!("{output}");
    assert!(output.stdout.contains("stop measured: ") && !output.stdout.contains("estimate: "), "{output}");
}

#[test]
fn a_guest_that_dirties_more_than_the_path_carries_is_told_before() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    // What the path carries is found in a second of it.
    asserted(2, "what is foretold", || would_not_converge(&qemu));
}

fn would_not_converge(qemu: &QemuBinary) {
    let mut rig = Rig::new(Plan::new("cloudnet", qemu).kind(GuestKind::bare("noise@120")));
    let report = checked(&mut rig, &[], 7);
    assert_eq!(report["estimate"]["verdict"], "dirties-too-fast");
    let text = check(&mut rig, &[]).expect_code(7).stdout;
    assert!(text.contains("would not converge: it dirties ") && text.contains("throttle"), "{text}");
    rig.assert_runs_at_source();
}

#[test]
fn a_guest_of_an_old_qemu_and_one_that_stands_are_looked_at_like_others() {
    let Some((old, _)) = need("two QEMUs", machine::qemu_pair()) else { return };
    let mut rig = Rig::new(Plan::new("jgn", &old));
    let report = checked(&mut rig, &["--limit", "200mbit"], 0);
    assert!(report["dirty_bytes_per_s"].as_u64().is_some_and(|rate| rate > 0), "{report}");
    assert!(report["goodput_bytes_per_s"].as_u64().is_some_and(|rate| rate <= 25_000_000), "{report}");
    rig.stop_guest();
    let report = checked(&mut rig, &[], 0);
    assert_eq!((&report["runs"], &report["dirty_bytes_per_s"]), (&json!(false), &json!(0)));
    assert_eq!(rig.source().status().expect("QMP"), "paused");
    let deadline = checked(&mut rig, &["--deadline", "100ms"], 7);
    assert_eq!(deadline["estimate"]["verdict"], "too-slow");
}

#[test]
fn what_would_stop_a_move_is_said() {
    let Some(qemu) = need("QEMU", machine::qemu()) else { return };
    let mut rig = Rig::new(Plan::new("jgn", &qemu));
    let name = rig.guest_name();
    let site = rig.source_site();
    let nowhere = site.directory().join("no-such-socket").to_str().expect("UTF-8").to_owned();
    let asked = ["check", "nobody", "--guest", name, "--qmp", &nowhere];
    assert!(site.hikyaku(asked, COMMAND_LIMIT).expect_code(2).text().contains("no peer \"nobody\""));
    let asked = ["check", "b", "--guest", name, "--qmp", &nowhere];
    assert!(site.hikyaku(asked, COMMAND_LIMIT).expect_code(9).text().contains("no-such-socket"));
    rig.arm();
    let waits = rig.destination().qmp_path().to_str().expect("UTF-8").to_owned();
    let asked = ["check", "a", "--guest", "another", "--qmp", &waits];
    let output = rig.destination_site().hikyaku(asked, COMMAND_LIMIT).expect_code(9);
    assert!(output.text().contains("no greeting"), "its daemon holds the socket: {output}");
    rig.migrate(&["--limit", "2mbit", "--detach"]).expect_code(0);
    assert!(check(&mut rig, &[]).expect_code(1).text().contains("is on its way"));
    rig.source_site().hikyaku(["cancel", name], COMMAND_LIMIT).expect_code(0);
    rig.assert_runs_at_source();
    rig.destination_site_mut().kill();
    let output = check(&mut rig, &[]).expect_code(4);
    assert!(output.text().contains("not touched"), "{output}");
    rig.assert_runs_at_source();
}
