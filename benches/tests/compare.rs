//! `cargo lab compare` as it is used, with small guests: both sides move one, what they did is told, nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Compares with `qemu` alone, once; the runs and what was said.
fn compare(arguments: &[&str]) -> (Output, Vec<Value>) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("runs");
    let output = Command::new(LAB)
        .args(["compare", "--mem", "64", "--repeats", "1", "--peer", "qemu", "--json"])
        .arg(&json)
        .args(arguments)
        // Whatever is left of it is then left here.
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let runs = fs::read_to_string(&json).unwrap_or_default();
    fs::remove_file(&json).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "something is left behind");
    assert!(!runs_with(directory.path()), "a process is left behind");
    (output, runs.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Is there a process that was told of this directory?
fn runs_with(directory: &Path) -> bool {
    let name = directory.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|words| String::from_utf8_lossy(&words).contains(name))
}

fn peers(runs: &[Value]) -> Vec<&str> {
    runs.iter().map(|run| run["peer"].as_str().unwrap_or("nobody")).collect()
}

#[test]
fn a_guest_is_moved_by_us_and_by_a_peer_and_both_are_judged() {
    let (output, runs) = compare(&["--link", "lan", "--load", "oltp@5"]);
    assert!(output.status.success(), "what is not required does not fail");
    assert_eq!(peers(&runs), ["hikyaku", "qemu"]);
    for run in &runs {
        assert_eq!(
            (&run["arrived"], &run["bad_pages"], &run["two_ran"]),
            (&true.into(), &0.into(), &false.into())
        );
        let figure = |name: &str| run[name].as_f64().unwrap_or_else(|| panic!("{name} of {run}"));
        assert!(
            figure("gap_s") > 0.0 && figure("gap_s") < figure("total_s") && figure("score") > 0.0,
            "{run}"
        );
        // A guest of 64 MiB of which nine tenths are not zero, and half of that compresses well.
        assert!((8e6..60e6).contains(&figure("content_bytes")), "{run}");
        assert!(figure("wire_bytes") > 8e6, "{run}");
    }
    assert!(runs[0]["daemon_cpu_s"].is_array() && runs[1]["daemon_cpu_s"].is_null());
    assert_eq!(runs[1]["congestion"], "cubic");
    assert_eq!(runs[0]["said"]["data"]["guest"], "courier", "its own account lies beside what was seen");
    let said = String::from_utf8_lossy(&output.stdout);
    let criteria: Vec<_> =
        said.lines().filter(|line| line.starts_with("PASS") || line.starts_with("FAIL")).collect();
    assert_eq!(criteria.len(), 7);
    assert!(criteria.iter().all(|line| !line.contains("not measured")), "{criteria:?}");
    assert!(criteria.iter().any(|line| line.starts_with("PASS  bad pages in all runs of hikyaku: 0")));
}

#[test]
fn a_move_that_takes_too_long_is_called_off_and_the_guest_runs_on() {
    // Dirtied twenty times as fast as the link carries.
    let (output, runs) = compare(&["--link", "cloudnet", "--load", "noise", "--limit", "1s", "--require"]);
    assert_eq!(output.status.code(), Some(1), "what is required and not met fails");
    assert_eq!(peers(&runs), ["hikyaku", "qemu"]);
    for run in &runs {
        // What has figures was heard to run on, and has checked its memory.
        assert_eq!(
            (&run["arrived"], &run["bad_pages"], &run["two_ran"]),
            (&false.into(), &0.into(), &false.into())
        );
        assert_eq!(
            (&run["total_s"], &run["gap_s"], &run["score"]),
            (&1.0.into(), &Value::Null, &Value::Null)
        );
        assert!(run["writes_per_s"].as_f64().unwrap() > 1000.0, "{run}");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("FAIL  cloudnet noise: total by the limit of 1s, no peer converged: 1.00"));
}

#[test]
fn a_name_that_nobody_has_is_refused_before_anything_is_built() {
    for wrong in [["--peer", "qemu-tape"], ["--load", "dance"], ["--link", "unlimited"]] {
        let output = Command::new(LAB).arg("compare").args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
