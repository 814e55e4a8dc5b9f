//! Hooks around a move: called at both ends, in order, and believed when they refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hikyaku_tests::machine::{self, need};
use hikyaku_tests::rig::{GuestKind, Plan, Rig, Side};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const NOT_CONVERGED: i32 = 7;
const FAILED: i32 = 9;
const IN_DOUBT: i32 = 10;
const COMMAND: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);
/// The ethertype of what QEMU says for a guest that has moved.
const RARP: [u8; 2] = [0x80, 0x35];
const NAMES: [&str; 4] = ["before-copy", "before-switchover", "after-switchover", "after-failure"];

/// Both hosts' hooks: each writes down that it was called.
struct Hooks {
    scratch: TempDir,
}

impl Hooks {
    fn new() -> Hooks {
        let hooks = Hooks { scratch: tempfile::tempdir().expect("a temporary directory") };
        for side in ["a", "b"] {
            fs::create_dir(hooks.directory(side)).expect("a directory");
            NAMES.into_iter().for_each(|name| hooks.script(side, name, ""));
        }
        hooks
    }

    fn directory(&self, side: &str) -> PathBuf {
        self.scratch.path().join(side)
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// What the hook does besides.
    fn script(&self, side: &str, name: &str, more: &str) {
        let text =
            format!("#!/bin/sh\ncat >/dev/null\necho {side} {name} >>{}\n{more}\n", self.log().display());
        write_program(&self.directory(side).join(name), &text);
    }

    fn called(&self) -> Vec<String> {
        fs::read_to_string(self.log()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Those that hold up nobody may come a little later.
    fn wait_called(&self, wanted: &[&str]) {
        let deadline = std::time::Instant::now() + COMMAND;
        while self.called().len() < wanted.len() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (mut called, mut wanted) = (self.called(), wanted.to_vec());
        called.sort();
        wanted.sort_unstable();
        assert_eq!(called, wanted);
    }

    fn wait_for(&self, what: &str) {
        let deadline = Instant::now() + COMMAND;
        while !self.called().iter().any(|line| line == what) {
            assert!(Instant::now() < deadline, "not called: {:?}", self.called());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn rig(&self, more: &str) -> Option<Rig> {
        self.rig_with(more, |plan| plan)
    }

    fn rig_with(&self, more: &str, adjust: impl FnOnce(Plan) -> Plan) -> Option<Rig> {
        let qemu = need("QEMU", machine::qemu())?;
        let plan = Plan::new("jgn", &qemu).memory_mib(64).kind(GuestKind::bare("oltp@1"));
        Some(Rig::with(adjust(plan), |settings| {
            let directory = self.directory(&settings.name);
            settings.more = format!("[hooks]\ndirectory = {:?}\n{more}\n", directory.display().to_string());
        }))
    }
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).expect("a script can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("and made a program");
}

#[test]
fn both_ends_are_called_on_the_way() {
    let hooks = Hooks::new();
    let Some(mut rig) = hooks.rig("") else { return };
    rig.migrate_live(&[]);
    let both = ["before-copy", "before-switchover", "after-switchover"];
    let wanted: Vec<_> =
        ["a", "b"].iter().flat_map(|side| both.map(|name| format!("{side} {name}"))).collect();
    hooks.wait_called(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    let called = hooks.called();
    let at = |what: &str| called.iter().position(|line| line == what).expect("it was called");
    assert!(at("a before-copy") < at("a before-switchover"), "{called:?}");
    assert!(at("b before-copy") < at("b before-switchover"), "{called:?}");
}

#[test]
fn one_that_fails_before_the_copy_refuses_the_move() {
    for side in ["a", "b"] {
        let hooks = Hooks::new();
        hooks.script(side, "before-copy", "echo no storage there >&2; exit 1");
        let Some(mut rig) = hooks.rig("") else { return };
        rig.arm();
        let output = rig.migrate_fails(&[], FAILED);
        assert!(output.text().contains("no storage there"), "{output}");
    }
}

#[test]
fn one_that_fails_before_the_switch_over_leaves_the_guest_running() {
    let hooks = Hooks::new();
    hooks.script("a", "before-switchover", "exit 3");
    let Some(mut rig) = hooks.rig("") else { return };
    rig.arm();
    let output = rig.migrate_fails(&[], FAILED);
    assert!(output.text().contains("before-switchover"), "{output}");
    hooks.wait_called(&[
        "a before-copy",
        "b before-copy",
        "a before-switchover",
        "a after-failure",
        "b after-failure",
    ]);
}

/// What is declared so is waited for with the guest standing, and that is in the gap that is reported.
#[test]
fn what_has_to_be_done_before_the_guest_runs_is_part_of_the_gap() {
    let hooks = Hooks::new();
    hooks.script("b", "before-switchover", "sleep 0.7");
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]") else { return };
    rig.migrate_live(&[]);
    let stop = &rig.source_status()["report"]["measured"];
    let total_ms = stop["total_ms"].as_f64().expect("it is reported");
    assert!((700.0..2000.0).contains(&total_ms), "{stop}");
}

/// What one guest had to wait for is expected of the next; that no copying helps against it is said at once, and not at the deadline.
#[test]
fn a_guest_that_would_have_to_wait_too_long_is_not_copied_for_ever() {
    let hooks = Hooks::new();
    let mark = hooks.scratch.path().join("mark").display().to_string();
    hooks.script("b", "before-switchover", &format!("[ -e {mark} ] || {{ touch {mark}; sleep 1.5; }}"));
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]") else { return };
    rig.migrate_live(&[]);
    rig.turn_around();
    rig.migrate_live(&[]);
    rig.turn_around();
    rig.arm();
    let begun = Instant::now();
    let output = rig.migrate_fails(&[], NOT_CONVERGED);
    assert!(begun.elapsed() < Duration::from_secs(30), "after {:?}", begun.elapsed());
    assert!(output.text().contains("hooks that held it included"), "{output}");
    rig.arm();
    // Or whatever it takes.
    let output = rig.migrate(&["--on-deadline", "force"]).expect_code(0);
    assert!(output.text().contains("moved to"), "{output}");
}

#[test]
fn what_has_to_be_done_and_fails_gives_the_guest_back() {
    let hooks = Hooks::new();
    hooks.script("b", "before-switchover", "echo no route >&2; exit 1");
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]") else { return };
    rig.arm();
    let output = rig.migrate(&[]);
    assert_eq!(output.code, Some(FAILED), "{output}");
    assert!(output.text().contains("no route"), "{output}");
    assert_eq!(rig.settles(SETTLE), Side::Source);
}

/// The daemon is killed while the guest waits. Nobody knows how far the hook came: the next daemon calls it again, and again where it fails.
#[test]
fn what_has_to_be_done_is_done_again_by_the_next_daemon() {
    let hooks = Hooks::new();
    let mark = |name: &str| hooks.scratch.path().join(name).display().to_string();
    let (first, second) = (mark("first"), mark("second"));
    let script = format!(
        "[ -e {first} ] || {{ touch {first}; sleep 3; echo b first >>{log}; exit; }}\n[ -e {second} ] || {{ touch {second}; echo b second >>{log}; echo no route yet >&2; exit 1; }}\nsleep 0.5; echo b done >>{log}",
        log = hooks.log().display()
    );
    hooks.script("b", "before-switchover", &script);
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]") else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    let deadline = Instant::now() + COMMAND;
    while !Path::new(&first).exists() {
        assert!(Instant::now() < deadline, "it was not called: {:?}", hooks.called());
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = rig.destination_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
    assert!(status.text().contains("waiting for the hook before-switchover"), "{status}");
    rig.restart_destination_daemon();
    while !Path::new(&second).exists() {
        assert!(Instant::now() < deadline, "it was not called again: {:?}", hooks.called());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let status = rig.destination_site().hikyaku(["status", rig.guest_name()], COMMAND).expect_code(0);
    assert!(status.text().contains("no route yet"), "{status}");
    rig.assert_stands();
    assert_eq!(rig.settles(SETTLE), Side::Destination);
    let called = hooks.called();
    let done: Vec<_> =
        called.iter().filter(|line| ["b first", "b second", "b done"].contains(&line.as_str())).collect();
    // None is called beside the one that lives on.
    assert_eq!(done, ["b first", "b second", "b done"], "it runs before all was done: {called:?}");
    let output = command.wait(COMMAND);
    assert!([Some(0), Some(10)].contains(&output.code), "{output}");
}

/// Its daemon is killed and started again, the hook fails, and somebody has the source run the guest. It is not run, whatever becomes of the hook.
#[test]
fn a_guest_that_waits_for_a_hook_and_is_kept_at_its_source_is_not_run() {
    let hooks = Hooks::new();
    let (log, mark) = (hooks.log(), hooks.scratch.path().join("mark"));
    let script =
        format!("[ -e {} ] || {{ sleep 1; exit 1; }}; echo b done >>{}", mark.display(), log.display());
    hooks.script("b", "before-switchover", &script);
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]") else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    hooks.wait_for("b before-switchover");
    rig.restart_destination_daemon();
    let status = |rig: &Rig| rig.destination_site().hikyaku(["status", rig.guest_name()], COMMAND).text();
    let wait = |rig: &Rig, what: &str| {
        let deadline = Instant::now() + COMMAND;
        while !status(rig).contains(what) {
            assert!(Instant::now() < deadline, "{}", status(rig));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait(&rig, "it waits for a hook");
    command.wait(COMMAND).expect_code(IN_DOUBT);
    let resolve = ["resolve", rig.guest_name(), "--here", "--fenced"];
    rig.source_site().hikyaku(resolve, COMMAND).expect_code(0);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    wait(&rig, "its source keeps it");
    std::fs::write(&mark, "").expect("a mark");
    // It is not called any more, and if it were the guest would not be run.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(rig.settles(SETTLE), Side::Source);
    rig.signal_destination_qemu(Signal::SIGKILL);
    wait(&rig, "refused");
    rig.assert_whole(Side::Source);
}

/// The hook is slow, and the daemon lives: it hears that the guest is kept while that waits.
#[test]
fn a_guest_that_is_kept_at_its_source_while_a_slow_hook_holds_it_is_refused() {
    let hooks = Hooks::new();
    hooks.script("b", "before-switchover", "sleep 20");
    let Some(mut rig) = hooks.rig("hold = [\"before-switchover\"]\ntimeout = \"40s\"") else { return };
    rig.arm();
    let command = rig.migrate_beside(&[]);
    hooks.wait_for("b before-switchover");
    rig.set_return_outage(true);
    command.wait(COMMAND).expect_code(IN_DOUBT);
    let resolve = ["resolve", rig.guest_name(), "--here", "--fenced"];
    rig.source_site().hikyaku(resolve, COMMAND).expect_code(0);
    rig.set_return_outage(false);
    assert_eq!(rig.settles(SETTLE), Side::Source);
    let deadline = Instant::now() + COMMAND;
    let status = |rig: &Rig| rig.destination_site().hikyaku(["status", rig.guest_name()], COMMAND).text();
    while !status(&rig).contains("refused") {
        assert!(Instant::now() < deadline, "{}", status(&rig));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(status(&rig).contains("its source keeps it"), "{}", status(&rig));
    rig.assert_whole(Side::Source);
}

/// QEMU tells the guest's networks where it is when it has loaded it. What a hook did to the network only after that is told again.
#[test]
fn an_arrival_is_announced_when_the_guest_runs() {
    let hooks = Hooks::new();
    hooks.script("b", "before-switchover", "sleep 3");
    let network = |side: &str| hooks.scratch.path().join(format!("{side}.network"));
    let card = |side: &str| {
        let (own, wire) = (network(&format!("{side}.card")), network(side));
        let (own, wire) = (own.display(), wire.display());
        let local = format!("local.type=unix,local.path={own}");
        let netdev = format!("dgram,id=n,{local},remote.type=unix,remote.path={wire}");
        ["-netdev".to_owned(), netdev, "-device".to_owned(), "e1000,netdev=n,romfile=".to_owned()]
    };
    let _elsewhere = UnixDatagram::bind(network("a")).expect("a socket");
    let wire = UnixDatagram::bind(network("b")).expect("a socket");
    let (heard, announcements) = mpsc::channel();
    std::thread::spawn(move || {
        let mut frame = [0; 2048];
        while let Ok(length) = wire.recv(&mut frame) {
            if length > 14 && frame[12..14] == RARP && heard.send(Instant::now()).is_err() {
                break;
            }
        }
    });
    let (here, there) = (card("a"), card("b"));
    let (here, there) = (here.each_ref().map(String::as_str), there.each_ref().map(String::as_str));
    let rig = hooks.rig_with("hold = [\"before-switchover\"]", |plan| plan.args(&here, &there));
    let Some(mut rig) = rig else { return };
    rig.migrate_live(&[]);
    let ran = rig.destination().console().snapshot().heartbeats[0].at;

    let (mut before, mut after) = (0, 0);
    while after < 3 {
        let at = announcements.recv_timeout(SETTLE);
        let at =
            at.unwrap_or_else(|_| panic!("announced {before} times before the guest ran, {after} after"));
        if at < ran { before += 1 } else { after += 1 }
    }
    println!("announced {before} times before the guest ran");
}
