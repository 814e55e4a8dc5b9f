//! A QEMU process with the test guest in it.
//!
//! It starts paused, so that not a byte of the console is lost, and is continued when the console is being read.
//! Its end is the handle's: dropping it kills the process; so does the end of this process, however it comes.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::console::{Console, Heartbeat, Ready};
use super::locate::{LocateError, QemuBinary};
use super::qmp::{Qmp, QmpError};
use super::runs::Runs;
use super::spec::{Files, GuestSpec};
use super::sys::spawn_tied;

/// The guest, as `build.rs` made it; empty where it cannot be made.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// QEMU makes its sockets within 100 ms; a machine that is busy takes longer.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Qemu {
    child: Child,
    pid: i32,
    files: Files,
    control: Qmp,
    console: Console,
    /// When the guest was first let run; for an incoming one, when QEMU was there.
    started: Instant,
    /// Removed with everything in it after the process is gone.
    _folder: TempDir,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error("the test guest was not built: it is a program for x86-64")]
    NoImage,
    #[error("cannot start {program}: {cause}")]
    Spawn { program: PathBuf, cause: io::Error },
    #[error("QEMU ended while it started: {0}")]
    Ended(String),
    #[error("QEMU made no socket within {SOCKET_TIMEOUT:?}: {0}")]
    Silent(String),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("starting QEMU: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("{what} did not happen within {timeout:?}; console: {console}; QEMU: {stderr}")]
pub struct WaitError {
    what: String,
    timeout: Duration,
    console: String,
    stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("migration {status}: {reason}")]
    Failed { status: String, reason: String },
    #[error("migration still {status} after {timeout:?}")]
    Timeout { status: String, timeout: Duration },
}

impl Qemu {
    /// Starts the guest.
    pub fn start(spec: &GuestSpec) -> Result<Qemu, StartError> {
        Qemu::start_with(spec, |program| Command::new(program))
    }

    /// The same, in a process that `command` makes: it is given the program to run and may wrap it (`ip netns exec …`).
    pub fn start_with(spec: &GuestSpec, command: impl FnOnce(&Path) -> Command) -> Result<Qemu, StartError> {
        let mut qemu = Qemu::spawn(spec, &["-S"], command)?;
        qemu.started = Instant::now();
        qemu.control.call("cont", json!({}))?;
        Ok(qemu)
    }

    /// A QEMU that waits for a guest (`-incoming defer`).
    pub fn await_migration(spec: &GuestSpec) -> Result<Qemu, StartError> {
        Qemu::await_migration_with(spec, "defer", |program| Command::new(program))
    }

    /// A QEMU that takes its guest from `uri`, in a process that `command` makes.
    pub fn await_migration_with(
        spec: &GuestSpec,
        uri: &str,
        command: impl FnOnce(&Path) -> Command,
    ) -> Result<Qemu, StartError> {
        Qemu::spawn(spec, &["-incoming", uri], command)
    }

    fn spawn(
        spec: &GuestSpec,
        start: &[&str],
        command: impl FnOnce(&Path) -> Command,
    ) -> Result<Qemu, StartError> {
        if IMAGE.is_empty() {
            return Err(StartError::NoImage);
        }
        let binary = spec.qemu.clone().map_or_else(QemuBinary::find, Ok)?;
        let folder = tempfile::Builder::new().prefix("hikyaku-guest-").tempdir()?;
        let files = Files::inside(folder.path());
        fs::write(&files.kernel, IMAGE)?;
        let mut command = command(&binary.path);
        command
            .args(spec.arguments(&files, &binary, start))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&files.stderr)?);
        let mut child =
            spawn_tied(command).map_err(|cause| StartError::Spawn { program: binary.path.clone(), cause })?;
        let connected = connect(&mut child, &files);
        let (console, control) = match connected {
            Ok(both) => both,
            Err(error) => {
                end(&mut child);
                return Err(error);
            }
        };
        // Whatever `command` wrapped around it: the process that listens is QEMU.
        let pid = match getsockopt(control.socket(), PeerCredentials) {
            Ok(peer) => peer.pid(),
            Err(error) => {
                end(&mut child);
                return Err(StartError::Io(error.into()));
            }
        };
        Ok(Qemu { child, pid, files, control, console, started: Instant::now(), _folder: folder })
    }

    pub fn console(&self) -> &Console {
        &self.console
    }

    /// A QMP socket that nobody uses yet: for a daemon.
    pub fn qmp_path(&self) -> &Path {
        &self.files.qmp
    }

    /// QEMU's own process, not that of a wrapper.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.control.call(command, arguments)
    }

    /// A command of the human monitor, for what QMP lacks.
    pub fn hmp(&mut self, line: &str) -> Result<String, QmpError> {
        let reply = self.control.call("human-monitor-command", json!({ "command-line": line }))?;
        Ok(reply.as_str().unwrap_or_default().to_owned())
    }

    /// QEMU's run state: `running`, `paused`, `inmigrate`, `postmigrate`, …
    pub fn status(&mut self) -> Result<String, QmpError> {
        let reply = self.control.call("query-status", json!({}))?;
        Ok(reply["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// When it ran its guest, as of the last command.
    pub fn runs(&self) -> &Runs {
        self.control.runs()
    }

    pub fn stop(&mut self) -> Result<(), QmpError> {
        self.control.call("stop", json!({})).map(drop)
    }

    pub fn cont(&mut self) -> Result<(), QmpError> {
        self.control.call("cont", json!({})).map(drop)
    }

    /// Sends the guest to `uri` and waits until QEMU says `completed`; without a bandwidth limit.
    pub fn migrate(&mut self, uri: &str, timeout: Duration) -> Result<(), MigrateError> {
        self.control.call("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
        self.control.call("migrate", json!({ "uri": uri }))?;
        self.wait_migrated(timeout)
    }

    /// Waits until a migration that someone began, out or in, is `completed`.
    pub fn wait_migrated(&mut self, timeout: Duration) -> Result<(), MigrateError> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.migration()?;
            match status.as_str() {
                "completed" => return Ok(()),
                _ if Instant::now() > deadline => return Err(MigrateError::Timeout { status, timeout }),
                _ => thread::sleep(POLL * 5),
            }
        }
    }

    /// What QEMU says of the migration that is or was last: `setup`, `active`, `device`, `completed`, … One that failed or was
    /// cancelled is an error.
    pub fn migration(&mut self) -> Result<String, MigrateError> {
        let reply = self.control.call("query-migrate", json!({}))?;
        let status = reply["status"].as_str().unwrap_or("not begun").to_owned();
        match status.as_str() {
            "failed" | "cancelled" => {
                let reason = reply["error-desc"].as_str().unwrap_or("no reason given").to_owned();
                Err(MigrateError::Failed { status, reason })
            }
            _ => Ok(status),
        }
    }

    /// Waits for the guest's first line.
    pub fn wait_ready(&self, timeout: Duration) -> Result<Ready, WaitError> {
        self.console.wait(timeout, |log| log.ready.clone()).ok_or_else(|| self.wait_error("ready", timeout))
    }

    /// Waits for a heartbeat that satisfies `wanted`, among those still to come and the last that came.
    pub fn wait_heartbeat(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Heartbeat) -> bool,
    ) -> Result<Heartbeat, WaitError> {
        self.console
            .wait(timeout, |log| log.heartbeats.last().copied().filter(&wanted))
            .ok_or_else(|| self.wait_error(what, timeout))
    }

    /// Waits until the guest has checked all of its memory, from beginning to end, after this call.
    pub fn wait_swept(&self, timeout: Duration) -> Result<Heartbeat, WaitError> {
        let deadline = Instant::now() + timeout;
        let now = self.wait_heartbeat(timeout, "a heartbeat", |_| true)?;
        let left = deadline.saturating_duration_since(Instant::now());
        // The sweep that is under way has passed some pages already: the next one counts.
        self.wait_heartbeat(left, "a whole sweep", |beat| beat.sweeps >= now.sweeps + 2)
    }

    /// The window of the last `length`.
    pub fn last(length: Duration) -> Range<Instant> {
        let now = Instant::now();
        now.checked_sub(length).unwrap_or(now)..now
    }

    /// Writes into the guest's memory behind its back, to see it noticed. `address` is physical.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let reply = self.hmp(&format!("gpa2hva {address:#x}"))?;
        let place =
            reply.rsplit_once("0x").and_then(|(_, digits)| u64::from_str_radix(digits.trim(), 16).ok());
        let place = place.ok_or_else(|| anyhow::anyhow!("gpa2hva: {reply}"))?;
        let memory = File::options().write(true).open(format!("/proc/{}/mem", self.pid))?;
        memory.write_all_at(bytes, place)?;
        Ok(())
    }

    /// What QEMU complained about.
    pub fn stderr(&self) -> String {
        complaints(&self.files)
    }

    fn wait_error(&self, what: &str, timeout: Duration) -> WaitError {
        let console = self.console.look(|log| match (log.lines.last(), log.heartbeats.last()) {
            (Some((_, line)), _) => line.clone(),
            (None, Some(beat)) => format!("heartbeat {} (bad={})", beat.number, beat.bad),
            (None, None) => "silent".into(),
        });
        WaitError { what: what.into(), timeout, console, stderr: self.stderr() }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if self.pid > 0 && u32::try_from(self.pid) != Ok(self.child.id()) {
            // Gone already: nothing to do.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        end(&mut self.child);
    }
}

fn connect(child: &mut Child, files: &Files) -> Result<(Console, Qmp), StartError> {
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    let console = loop {
        if let Ok(stream) = UnixStream::connect(&files.console) {
            break Console::read_from(stream)?;
        }
        if child.try_wait()?.is_some() {
            return Err(StartError::Ended(complaints(files)));
        }
        if Instant::now() > deadline {
            return Err(StartError::Silent(complaints(files)));
        }
        thread::sleep(POLL);
    };
    // QEMU may listen on the console and end before it serves the monitor.
    loop {
        match Qmp::connect(&files.control) {
            Ok(control) => return Ok((console, control)),
            Err(_) if child.try_wait()?.is_some() => return Err(StartError::Ended(complaints(files))),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Kills and reaps; a process that is gone already is no error.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn complaints(files: &Files) -> String {
    let text = fs::read_to_string(&files.stderr).unwrap_or_default();
    if text.trim().is_empty() { "nothing said".into() } else { text.trim().to_owned() }
}
