//! Programs of the operator's that are called as a guest moves: networks and storage around it are changed there.
//!
//! `DIRECTORY/NAME`, if it is there, is run with the migration as one JSON object on its standard input. It may take so long, and is killed
//! with its children then.
//!
//! | NAME | at the source | at the destination |
//! |---|---|---|
//! | `before-copy` | before its QEMU is touched; refuses the move by failing | before its QEMU is touched; the same |
//! | `before-switchover` | while the guest still runs; ends the move by failing | once all of the guest is there. Waited for, and part of the gap, only if `hold` has it; refuses the guest by failing then |
//! | `after-switchover` | the guest runs there | the guest runs here |
//! | `after-failure` | it runs on here, or would | it is not taken |
//!
//! What comes after holds up nobody.

mod orphan;

use crate::api::wire::Status;
use crate::config;
use crate::registry::Entry;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// In a hook's environment: what it is called for.
const HOOK: &str = "HIKYAKU_HOOK";
const GUEST: &str = "HIKYAKU_GUEST";
/// Its own file, by which one host's are told from another's.
const PROGRAM: &str = "HIKYAKU_HOOK_PROGRAM";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    BeforeCopy,
    BeforeSwitchover,
    AfterSwitchover,
    AfterFailure,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::BeforeCopy => "before-copy",
            Hook::BeforeSwitchover => "before-switchover",
            Hook::AfterSwitchover => "after-switchover",
            Hook::AfterFailure => "after-failure",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the hook {path} could not be run: {source}")]
    Start { path: PathBuf, source: std::io::Error },
    #[error("the hook {path} failed ({status}){words}")]
    Failed { path: PathBuf, status: String, words: String },
    #[error("the hook {path} took longer than {} s and was ended", .after.as_secs_f32())]
    Slow { path: PathBuf, after: Duration },
}

/// What a hook reads.
#[derive(Serialize)]
struct Session<'a> {
    hook: Hook,
    qmp: &'a Path,
    #[serde(flatten)]
    status: Status,
}

/// What it may say that is shown.
const WORDS_BYTES: u64 = 4096;
/// For words that are still in the pipe when it has ended: its children may hold that open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Between two looks of those who watch a move that waits for one.
const TICK: Duration = Duration::from_secs(1);

/// One that can be called.
#[derive(Debug)]
pub struct Called {
    hook: Hook,
    guest: String,
    path: PathBuf,
    input: Vec<u8>,
    timeout: Duration,
}

/// The program of this name, if there is one.
pub fn call(config: &config::Hooks, hook: Hook, entry: &Entry, qmp: &Path) -> Option<Called> {
    let path = config.directory.join(hook.to_string());
    path.exists().then(|| {
        let session = Session { hook, qmp, status: entry.status() };
        // Our own types, with string keys: this cannot fail.
        let mut input = serde_json::to_vec(&session).unwrap_or_default();
        input.push(b'\n');
        Called { hook, guest: entry.guest.clone(), path, input, timeout: config.timeout }
    })
}

/// Returns when no daemon before this one has left such a hook of this guest's running. One that does not end in the time that it has is
/// ended, as by the daemon that called it.
pub async fn orphans_end(config: &config::Hooks, hook: Hook, entry: &Arc<Entry>) {
    let until = tokio::time::Instant::now() + config.timeout;
    let mut waits = None;
    while let Some(pid) = orphan::running(&config.directory.join(hook.to_string()), &entry.guest).await {
        waits.get_or_insert_with(|| entry.waits_for(hook, config.timeout));
        if tokio::time::Instant::now() > until {
            tracing::warn!(%hook, pid, "one that a daemon before this one called took too long, and is ended");
            drop(Group(u32::try_from(pid).ok()));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The same, for others to come behind.
pub fn behind_orphans(config: &config::Hooks, hook: Hook, entry: &Arc<Entry>) -> JoinHandle<()> {
    let (config, entry) = (config.clone(), entry.clone());
    tokio::task::spawn_local(async move { orphans_end(&config, hook, &entry).await })
}

pub fn is_there(config: &config::Hooks, hook: Hook) -> bool {
    config.directory.join(hook.to_string()).exists()
}

/// One that holds up nobody; what comes of it is in the log. It is called when those `behind` which it comes have ended.
pub fn call_beside(
    config: &config::Hooks,
    hook: Hook,
    entry: &Entry,
    qmp: &Path,
    behind: Option<JoinHandle<()>>,
) -> Option<JoinHandle<()>> {
    let called = call(config, hook, entry, qmp)?;
    Some(tokio::task::spawn_local(async move {
        if let Some(behind) = behind {
            let _ = behind.await;
        }
        if let Err(error) = called.run().await {
            tracing::error!(%error, "a hook");
        }
    }))
}

impl Called {
    /// The move waits for it, and says so.
    pub async fn run_for(self, entry: &Arc<Entry>) -> Result<(), HookError> {
        let waits = entry.waits_for(self.hook, self.timeout);
        let mut running = std::pin::pin!(self.run());
        let done = loop {
            tokio::select! {
                biased;
                done = &mut running => break done,
                () = tokio::time::sleep(TICK) => entry.still_waits(),
            }
        };
        drop(waits);
        done
    }

    pub async fn run(self) -> Result<(), HookError> {
        let Called { hook, guest, path, input, timeout } = self;
        let begun = tokio::time::Instant::now();
        let mut child = Command::new(&path)
            .env(HOOK, hook.to_string())
            .env(GUEST, guest)
            .env(PROGRAM, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| HookError::Start { path: path.clone(), source })?;
        let group = Group(child.id());
        let ended = tokio::time::timeout(timeout, converse(&mut child, &input)).await;
        let took_ms = begun.elapsed().as_millis() as u64;
        match ended {
            Err(_) => Err(HookError::Slow { path, after: timeout }),
            Ok(Err(source)) => Err(HookError::Start { path, source }),
            Ok(Ok((status, words))) if status.success() => {
                tracing::info!(%hook, took_ms, words = words.trim(), "a hook");
                // What it has left running on purpose is left.
                std::mem::forget(group);
                Ok(())
            }
            Ok(Ok((status, words))) => {
                let words = match words.trim() {
                    "" => String::new(),
                    words => format!(": {words}"),
                };
                Err(HookError::Failed { path, status: status.to_string(), words })
            }
        }
    }
}

/// The hook's process group is killed when this is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // It has ended, in most cases.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn converse(child: &mut Child, input: &[u8]) -> std::io::Result<(std::process::ExitStatus, String)> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // One that does not want to know closes it.
            let _ = stdin.write_all(input).await;
        }
    };
    let mut said = Vec::new();
    let listen = async {
        if let Some(stderr) = stderr {
            let _ = stderr.take(WORDS_BYTES).read_to_end(&mut said).await;
        }
    };
    let status = {
        let mut both = std::pin::pin!(async { tokio::join!(tell, listen) });
        tokio::select! {
            status = child.wait() => {
                let _ = tokio::time::timeout(LAST_WORDS, &mut both).await;
                status
            }
            // It has said enough, or closed what it says it on.
            _ = &mut both => child.wait().await,
        }?
    };
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::Role;
    use crate::id::Id;
    use crate::ownership::Phase;
    use crate::registry::Registry;
    use std::os::unix::fs::PermissionsExt;

    struct Bench {
        directory: tempfile::TempDir,
        config: config::Hooks,
    }

    impl Bench {
        fn new(script: &str) -> Bench {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("before-copy");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let config = config::Hooks {
                directory: directory.path().to_owned(),
                timeout: Duration::from_millis(700),
                ..config::Hooks::default()
            };
            Bench { directory, config }
        }

        async fn run(&self, hook: Hook) -> Result<bool, HookError> {
            let entry = Registry::default();
            let entry =
                entry.enter(Id::random(), "web", Role::Source, Some("osaka"), Phase::Preparing).unwrap();
            match call(&self.config, hook, &entry, Path::new("/run/web.qmp")) {
                Some(called) => called.run().await.map(|()| true),
                None => Ok(false),
            }
        }

        fn left(&self) -> String {
            std::fs::read_to_string(self.directory.path().join("out")).unwrap()
        }
    }

    #[tokio::test]
    async fn it_reads_what_is_being_done() {
        let bench = Bench::new("cat >$(dirname $0)/out; echo $HIKYAKU_HOOK >>$(dirname $0)/out");
        assert!(bench.run(Hook::BeforeCopy).await.unwrap());
        let left = bench.left();
        let (json, name) = left.trim().split_once('\n').unwrap();
        let said: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(name, "before-copy");
        for (key, value) in [
            ("hook", "before-copy"),
            ("guest", "web"),
            ("peer", "osaka"),
            ("role", "source"),
            ("qmp", "/run/web.qmp"),
        ] {
            assert_eq!(said[key], value, "{said}");
        }
    }

    #[tokio::test]
    async fn one_that_is_not_there_is_not_called() {
        assert!(!Bench::new("exit 1").run(Hook::AfterFailure).await.unwrap());
    }

    #[tokio::test]
    async fn one_that_fails_says_why() {
        let error = Bench::new("echo no route to osaka >&2; exit 3").run(Hook::BeforeCopy).await.unwrap_err();
        assert!(error.to_string().ends_with("failed (exit status: 3): no route to osaka"), "{error}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_its_children() {
        let bench = Bench::new("sleep 60 & echo $! >$(dirname $0)/out; wait");
        let error = bench.run(Hook::BeforeCopy).await.unwrap_err();
        assert!(error.to_string().contains("took longer than 0.7 s"), "{error}");
        let child: i32 = bench.left().trim().parse().unwrap();
        for _ in 0..100 {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("its child lives");
    }

    #[tokio::test]
    async fn what_it_leaves_running_does_not_hold_it_up() {
        let bench = Bench::new("sleep 3 & echo $! >$(dirname $0)/out");
        let begun = std::time::Instant::now();
        assert!(bench.run(Hook::BeforeCopy).await.unwrap());
        assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
        let _ = nix::sys::signal::kill(Pid::from_raw(bench.left().trim().parse().unwrap()), Signal::SIGKILL);
    }
}
