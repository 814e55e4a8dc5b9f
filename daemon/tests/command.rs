//! The command itself, as a shell sees it.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

fn hikyaku() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hikyaku"))
}

/// The writing end of a pipe that nobody reads any more.
fn nobody() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let made = hikyaku().args(["keygen", "--out"]).arg(&key).stdout(nobody()).output().unwrap();
    assert_eq!((made.status.code(), String::from_utf8_lossy(&made.stderr).as_ref()), (Some(0), ""));
    assert!(key.exists());
}

#[test]
fn a_daemon_that_goes_away_leaves_the_question_where_the_guest_is_and_says_how_to_answer_it() {
    let dir = tempfile::tempdir().unwrap();
    let api = dir.path().join("api.sock");
    let listener = UnixListener::bind(&api).unwrap();
    let daemon = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let stream = stream.unwrap();
            writeln!(&stream, r#"{{"hikyaku": {{"version": "0.1.0", "schema": 1}}}}"#).unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        }
    });
    let ask =
        |json: &[&str]| hikyaku().arg("--api").arg(&api).args(json).args(["status", "web"]).output().unwrap();
    let (plain, json) = (ask(&[]), ask(&["--json"]));
    daemon.join().unwrap();
    let said = String::from_utf8_lossy(&plain.stderr);
    assert_eq!(plain.status.code(), Some(1));
    assert!(said.contains("hikyakud closed the connection") && said.contains("hikyaku list"), "{said}");
    let said: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((said["class"].as_str(), said["guest"].as_str()), (Some("other"), Some("unknown")));
}
