//! The measurement of the transport measures: every part runs, says its figures and its criteria, and ends.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::io::Write;
use std::process::{Command, Output};

use hikyaku_lab::steady::asserted;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

fn transport(arguments: &[&str]) -> Output {
    let output = Command::new(LAB).args(["bench", "transport"]).args(arguments).output().unwrap();
    eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

fn criteria(output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stdout);
    let is_criterion = |line: &&str| line.starts_with("PASS") || line.starts_with("FAIL");
    said.lines().filter(is_criterion).map(str::to_owned).collect()
}

#[test]
fn each_part_ends_with_its_criteria() {
    let output = transport(&["--quick", "--only", "memory,cores,ten", "--link", "jgn"]);
    assert!(output.status.success(), "what is not required does not fail");
    let criteria = criteria(&output);
    for what in
        ["jgn: memory of the sender", "jgn: memory of the receiver", "seal and send", "receive and open"]
    {
        assert!(criteria.iter().any(|line| line.contains(what) && !line.contains("not measured")), "{what}");
    }
    let all_arrived = "PASS  ten sessions: runs in which all of it arrived as it was sent";
    assert!(criteria.iter().any(|line| line.starts_with(all_arrived)));
}

#[test]
fn plain_tcp_is_measured_beside_it() {
    let missing = Command::new("iperf3").arg("--version").output().is_err();
    if missing {
        assert_ne!(
            std::env::var("HIKYAKU_TESTS").as_deref(),
            Ok("all"),
            "iperf3 is missing: tests/run installs it"
        );
        if let Some(log) = std::env::var_os("HIKYAKU_SKIP_LOG") {
            let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
            writeln!(log, "plain_tcp_is_measured_beside_it: needs iperf3").unwrap();
        }
        return;
    }
    let output = transport(&["--quick", "--only", "goodput", "--link", "jgn"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    for row in [
        "hikyaku ",
        "hikyaku, cubic only",
        "hikyaku, kernel's buffers",
        "iperf3, 1 stream",
        "iperf3, as many as lanes",
    ] {
        assert!(said.lines().any(|line| line.trim_start().starts_with(row)), "{row}");
    }
    assert_eq!(criteria(&output).len(), 3);
}

#[test]
fn a_criterion_that_is_required_and_not_met_shows_in_the_exit_code() {
    // Where the machine stands still, it may take too long.
    asserted(1, "the exit code", || {
        // One lane cannot hold so long a link, and a second is too short for it to begin.
        let output = transport(&["--quick", "--require", "--only", "ten", "--lanes", "1"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(criteria(&output).iter().any(|line| line.starts_with("FAIL")));
    });
}
