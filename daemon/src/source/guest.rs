//! The guest at its source, through QMP: what is asked of its QEMU, and in which state each call leaves the guest.

use super::{SourceError, gate, throttle};
use crate::process::ProcessId;
use crate::protocol::GuestFacts;
use crate::settings::{Settings, Store};
use crate::sys::{QEMU_SOCKET_BYTES, hold_unread};
use hikyaku_qemu::qmp::{
    Capabilities, Client, ClientConfig, MigrateInfo, Overdue, QmpError, RunState, within,
};
use serde_json::{Value, json};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The name under which QEMU gets its end of the socket pair.
const FD_NAME: &str = "hikyaku-out";
/// Capabilities that change the stream or who decides: off, where QEMU knows them. The engine does better.
const OFF: [&str; 11] = [
    "xbzrle",
    "multifd",
    "compress",
    "postcopy-ram",
    throttle::AUTO_CONVERGE,
    "x-colo",
    "background-snapshot",
    "zero-copy-send",
    "mapped-ram",
    "x-ignore-shared",
    "dirty-limit",
];
/// While QEMU is held back: it stops the guest by itself only with less dirty than it writes in this time.
const HELD_DOWNTIME_MS: u64 = 1;
/// The most that QEMU takes: 32 MiB are hashed of each GiB.
const SAMPLE_PAGES_PER_GIB: u32 = 4096;
/// A migration that was cancelled closes its socket first, and is called cancelled some milliseconds later.
const SAYS_WHY_WITHIN: Duration = Duration::from_millis(500);
const FORGET_SOON: Duration = Duration::from_secs(2);
/// A QEMU that ends frees the guest's memory before its sockets are closed.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error("the QEMU on this QMP socket waits for an incoming migration; it holds no guest to move")]
    Waits,
    #[error("{}", cannot_be_moved(.0))]
    State(String),
    #[error("this QEMU is already migrating the guest ({0})")]
    Migrating(String),
    #[error("this QEMU knows no return path; it is older than 2.10")]
    NoReturnPath,
    #[error("this QEMU cannot be told how much to slow its guest down; it is older than 3.1")]
    NoThrottle,
    #[error("its QEMU cannot migrate it: {0}")]
    Blocked(String),
    #[error("no socket pair: {0}")]
    SocketPair(io::Error),
    #[error("QEMU gave the migration up: {0}")]
    Failed(String),
    #[error("QEMU did not {0} in time")]
    Slow(&'static str),
    #[error("its QEMU is {0}: it does not hold the guest that was stopped")]
    NotHeld(String),
    #[error("its QEMU has ended")]
    Ended,
}

impl GuestError {
    /// QEMU is gone, or at least its control socket.
    pub fn is_gone(&self) -> bool {
        matches!(self, GuestError::Qmp(error) if error.is_closed())
    }
}

/// Its QEMU waits for nobody at the end of its stream, continues it by itself if nobody takes it, and, once its migration is over, does not
/// survive being told to.
pub const ASLEEP: &str = "the guest sleeps (S3) and cannot be moved now: wake it first";

fn cannot_be_moved(state: &str) -> String {
    match state {
        "postmigrate" => "this QEMU has given its guest away, or keeps it stopped since it tried to (postmigrate); hikyaku list \
                          says whether it was moved from here"
            .to_owned(),
        "suspended" => ASLEEP.to_owned(),
        "prelaunch" => "the guest has not been started (prelaunch): tell its QEMU to cont first".to_owned(),
        state => format!("the guest is {state} and cannot be moved now"),
    }
}

/// How QEMU is kept from stopping the guest by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// SWITCHOVER_ACK is withheld (8.1 and later).
    Ack,
    /// Its socket is read in grants (older).
    Gate,
}

pub struct SourceGuest {
    pub(super) qmp: Client,
    pub facts: GuestFacts,
    pub process: Option<ProcessId>,
    pub hold: Hold,
    /// It runs, so it is to run afterwards.
    pub runs: bool,
    /// Its time may be taken from it if it does not converge.
    may_throttle: bool,
    /// What was set before we came, to be set again if the guest stays.
    before: Settings,
    kept_in: Option<Store>,
    /// All of its migration parameters.
    parameters: Value,
}

impl SourceGuest {
    /// Looks, and changes nothing. `may_throttle`: the guest may have to be slowed down.
    pub async fn connect(
        socket: &Path,
        timeout: Duration,
        may_throttle: bool,
    ) -> Result<SourceGuest, GuestError> {
        let config = ClientConfig { command_timeout: timeout, ..ClientConfig::default() };
        let qmp = Client::connect(socket, config).await?;
        let state = qmp.query_status().await?;
        match state.status.as_str() {
            "inmigrate" => return Err(GuestError::Waits),
            "running" | "paused" => {}
            other => return Err(GuestError::State(other.to_owned())),
        }
        let migration = qmp.query_migrate().await?;
        if let Some(status) = migration.status.as_deref()
            && !migration.is_final()
            && status != "none"
        {
            return Err(GuestError::Migrating(status.to_owned()));
        }
        let capabilities = qmp.query_migrate_capabilities().await?;
        if capabilities.get("return-path").is_none() {
            return Err(GuestError::NoReturnPath);
        }
        let hold = hold(&capabilities);
        let parameters: Value = qmp.query_migrate_parameters().await?;
        let throttle = if may_throttle { &throttle::PARAMETERS[..] } else { &[] };
        let set = ["max-bandwidth", "downtime-limit"].iter().chain(throttle);
        let before = Settings {
            capabilities: capabilities.iter().map(|(name, on)| (name.to_owned(), on)).collect(),
            parameters: set
                .filter_map(|name| Some(((*name).to_owned(), parameters.get(name)?.clone())))
                .collect(),
        };
        let facts = facts(&qmp).await?;
        let process = ProcessId::behind(&qmp);
        let runs = state.lives();
        let guest =
            SourceGuest { qmp, facts, process, hold, runs, may_throttle, before, kept_in: None, parameters };
        if may_throttle && !guest.can_be_throttled() {
            return Err(GuestError::NoThrottle);
        }
        Ok(guest)
    }

    /// This QEMU has this capability.
    pub(super) fn knows(&self, capability: &str) -> bool {
        self.before.capabilities.contains_key(capability)
    }

    /// What a migration parameter was before we came. None: this QEMU does not know it.
    pub(super) fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.get(name)
    }

    /// A daemon that comes after this one finds what was set before; what an earlier one has left here it left set.
    pub async fn keep_settings(&mut self, store: &Store, socket: &Path) -> Result<(), SourceError> {
        let Some(process) = self.process else { return Ok(()) };
        if let Some(earlier) = store.of(process).await {
            self.before.capabilities.extend(earlier.capabilities);
            self.before.parameters.extend(earlier.parameters);
        }
        self.kept_in = Some(store.clone());
        Ok(store.keep(process, socket, &self.before).await?)
    }

    pub(super) async fn set_parameters(
        &self,
        parameters: serde_json::Map<String, Value>,
    ) -> Result<(), GuestError> {
        Ok(self.qmp.migrate_set_parameters(Value::Object(parameters)).await?)
    }

    /// Begins QEMU's migration into the socket that is returned. The guest runs on.
    pub async fn begin(&self) -> Result<UnixStream, GuestError> {
        let mut wanted: Vec<_> = OFF.iter().map(|name| (*name, false)).collect();
        wanted.extend([("return-path", true), ("events", true)]);
        match self.hold {
            Hold::Ack => wanted.extend([("switchover-ack", true), ("pause-before-switchover", false)]),
            Hold::Gate => wanted.push(("pause-before-switchover", true)),
        }
        if self.may_throttle {
            wanted.retain(|(name, _)| *name != throttle::AUTO_CONVERGE);
            wanted.push((throttle::AUTO_CONVERGE, true));
        }
        self.qmp.migrate_set_capabilities(&wanted).await?;
        if self.may_throttle {
            self.hold_throttle().await?;
        }
        let parameters = json!({ "max-bandwidth": 0, "downtime-limit": HELD_DOWNTIME_MS });
        self.qmp.migrate_set_parameters(parameters).await?;
        let (ours, theirs) = UnixStream::pair().map_err(GuestError::SocketPair)?;
        hold_unread(&theirs, if self.hold == Hold::Gate { gate::SOCKET_BYTES } else { QEMU_SOCKET_BYTES });
        self.qmp.getfd(FD_NAME, OwnedFd::from(theirs)).await?;
        self.qmp.migrate_fd(FD_NAME).await?;
        Ok(ours)
    }

    /// QEMU may be completing, and answers when its socket has been drained.
    pub async fn state(&self, timeout: Duration) -> Result<RunState, GuestError> {
        Ok(self.qmp.execute_within("query-status", (), timeout).await?)
    }

    /// Somebody else has stopped it, or it has ended.
    pub fn stands(&self, state: &RunState) -> bool {
        stood_before(&state.status, self.hold)
    }

    /// On `Ok` the guest is stopped, by us: it stays stopped whatever becomes of QEMU's migration. On `Err` it may be. QEMU
    /// may begin to complete before it answers, and then answers when its socket has been drained.
    pub async fn stop(&self, timeout: Duration) -> Result<(), GuestError> {
        let _: Value = self.qmp.execute_within("stop", (), timeout).await?;
        Ok(())
    }

    pub async fn look(&self) -> Result<MigrateInfo, GuestError> {
        let info = self.qmp.query_migrate().await?;
        match info.status.as_deref() {
            Some("failed") => {
                Err(GuestError::Failed(info.error_desc.unwrap_or_else(|| "it does not say why".into())))
            }
            Some("cancelled") => Err(GuestError::Failed("somebody cancelled it in QEMU".into())),
            _ => Ok(info),
        }
    }

    /// After its socket closed: why, if it says so soon.
    pub async fn why_closed(&self) -> Option<GuestError> {
        let said = within(SAYS_WHY_WITHIN, async {
            loop {
                match self.look().await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error @ GuestError::Failed(_)) => return Some(error),
                    Err(_) => return None,
                }
            }
        });
        said.await.ok().flatten()
    }

    /// After RAM's end was read it has written its whole stream, when it answers: while it writes, it answers nothing.
    pub async fn answers(&self, timeout: Duration) -> Result<(), GuestError> {
        let _: Value = self.qmp.execute_within("query-status", (), timeout).await?;
        Ok(())
    }

    /// QEMU older than 8.1, stopped by us and waiting for leave to finish.
    pub async fn finish_when_asked(&self, timeout: Duration) -> Result<(), GuestError> {
        self.comes_to("pre-switchover", timeout)
            .await
            .unwrap_or(Err(GuestError::Slow("come to its switch-over")))?;
        Ok(self.qmp.migrate_continue("pre-switchover").await?)
    }

    /// QEMU's sample of how fast the guest dirties memory, over one second. None: it cannot tell.
    pub async fn dirty_bytes_per_s(&self) -> Option<f64> {
        // As many pages as it takes (6.1 and later); with its 512 per GiB a small guest is told from an idle one by luck.
        let finely = json!({ "calc-time": 1, "sample-pages": SAMPLE_PAGES_PER_GIB });
        let mut begun: Result<Value, _> = self.qmp.execute("calc-dirty-rate", finely).await;
        if begun.as_ref().is_err_and(QmpError::is_refusal) {
            begun = self.qmp.execute("calc-dirty-rate", json!({ "calc-time": 1 })).await;
        }
        begun.ok()?;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let answer: Value = self.qmp.execute("query-dirty-rate", ()).await.ok()?;
            if answer["status"] == "measured" {
                return answer["dirty-rate"].as_f64().map(|mib| mib * 1048576.0);
            }
        }
        None
    }

    /// The guest was taken over by the destination and QEMU has been told: waits until it has noticed.
    pub async fn completed(&self, timeout: Duration) -> Result<(), GuestError> {
        self.comes_to("completed", timeout).await.unwrap_or(Err(GuestError::Slow("end its migration")))
    }

    /// Ends the QEMU, which is of no use any more.
    pub async fn quit(&self) {
        if let Err(error) = self.qmp.quit().await {
            tracing::warn!(%error, "the QEMU is not ended");
        }
    }

    async fn comes_to(&self, status: &str, timeout: Duration) -> Result<Result<(), GuestError>, Overdue> {
        within(timeout, async {
            while !self.look().await?.is(status) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
        .await
    }

    /// Ends QEMU's migration, if one is under way, and makes the guest run if `run`. To be called when its socket has
    /// been closed. On `Ok` the guest is as it was before we came.
    pub async fn give_back(&self, run: bool, timeout: Duration) -> Result<(), GuestError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let late = || tokio::time::Instant::now() > deadline;
        // A QEMU that is completing answers only when its write to the closed socket has failed.
        if let Err(error) = self.qmp.migrate_cancel().await {
            tracing::debug!(%error, "migrate_cancel");
        }
        loop {
            let info = self.qmp.query_migrate().await?;
            if info.is_final() || info.status.as_deref().is_none_or(|s| s == "none") {
                break;
            }
            if late() {
                return Err(GuestError::Slow("give its migration up"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let are_set_back = self.before.set_back(&self.qmp).await;
        let mut said = String::new();
        while run && !self.qmp.query_status().await?.lives() {
            // Disks that are being re-activated can refuse the first attempts.
            if let Err(error) = self.qmp.cont().await {
                if late() {
                    return Err(error.into());
                }
                if error.to_string() != said {
                    said = error.to_string();
                    tracing::warn!(%error, "the guest cannot be continued yet");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            } else if late() {
                return Err(GuestError::Slow("continue the guest"));
            }
        }
        if are_set_back {
            self.forget_settings().await;
        }
        Ok(())
    }

    /// What was set before is set again, or is of no use any more.
    pub async fn forget_settings(&self) {
        if let Some((store, process)) = self.kept_in.clone().zip(self.process) {
            let forgetting = tokio::task::spawn_local(async move { store.forget(process).await });
            // A disk that hangs holds up nobody.
            let _ = tokio::time::timeout(FORGET_SOON, forgetting).await;
        }
    }
}

pub async fn facts(qmp: &Client) -> Result<GuestFacts, QmpError> {
    let version = qmp.query_version().await?.qemu;
    let memory = qmp.query_memory_size_summary().await?;
    Ok(GuestFacts {
        version: (version.major, version.minor, version.micro),
        machine: qmp.machine_type().await?,
        ram_bytes: memory.base_bytes,
    })
}

/// Makes a guest run that a daemon before us left stopped. On `Ok` it runs. Long after, another QEMU may answer on the socket,
/// or the same one after a later migration: only one that merely stands is told to run.
pub async fn continue_guest(
    socket: &Path,
    process: Option<ProcessId>,
    timeout: Duration,
) -> Result<(), GuestError> {
    match continue_held(socket, process, timeout).await {
        Err(error) if has_ended(&error, socket).await => Err(GuestError::Ended),
        result => result,
    }
}

/// Whether `error` came of a QEMU that is no more, and not only of a connection that broke. One that ends closes its connections first, and
/// its listening socket when it has put everything else away.
pub async fn has_ended(error: &GuestError, socket: &Path) -> bool {
    if !error.is_gone() {
        return false;
    }
    let until = tokio::time::Instant::now() + ENDS_WITHIN;
    while !nobody_listens(socket).await {
        if tokio::time::Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

async fn continue_held(
    socket: &Path,
    process: Option<ProcessId>,
    timeout: Duration,
) -> Result<(), GuestError> {
    let config = ClientConfig { command_timeout: timeout, ..ClientConfig::default() };
    let qmp = Client::connect(socket, config).await?;
    if process.is_some_and(|process| process.is_not_behind(&qmp)) {
        return Err(GuestError::Ended);
    }
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        let state = qmp.query_status().await?;
        if state.lives() {
            return Ok(());
        }
        let migration = qmp.query_migrate().await?;
        let hold = hold(&qmp.query_migrate_capabilities().await?);
        if !is_held(&state.status, migration.status.as_deref(), hold) {
            return Err(GuestError::NotHeld(state.status));
        }
        let refused = qmp.cont().await.err();
        if tokio::time::Instant::now() > deadline {
            return Err(refused.map_or(GuestError::Slow("continue the guest"), GuestError::from));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A QMP socket that is not there, or that a process left behind. A permission that is missing is neither.
async fn nobody_listens(socket: &Path) -> bool {
    let found = tokio::net::UnixStream::connect(socket).await.map_err(|e| e.kind());
    matches!(found, Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

fn hold(capabilities: &Capabilities) -> Hold {
    if capabilities.get("switchover-ack").is_some() { Hold::Ack } else { Hold::Gate }
}

/// Whether a QEMU whose guest stands may be told to run it. One that waits for a guest would start it by itself on arrival, and
/// one that completed a migration has given its guest away, unless it is one that is made to complete before its guest is
/// let go. (The state is no help there: before 8.1 `postmigrate` is also what a stopped guest is in after a migration that failed.)
fn is_held(state: &str, migration: Option<&str>, hold: Hold) -> bool {
    state != "inmigrate" && (migration != Some("completed") || hold == Hold::Gate)
}

/// Whether a guest in this state stands by another's hand. One that sleeps runs on; and a QEMU that is not held by its ACK may
/// have stopped it by itself, on its way to the end.
fn stood_before(state: &str, hold: Hold) -> bool {
    match state {
        "running" | "suspended" => false,
        "finish-migrate" => hold == Hold::Ack,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_qemu_that_still_puts_its_memory_away_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // The connection goes at once, the socket 300 ms later.
        let client = ClientConfig::default();
        let server = std::thread::spawn(move || {
            drop(listener.accept().unwrap());
            std::thread::sleep(Duration::from_millis(300));
        });
        let error = Client::connect(&socket, client).await.map(drop).unwrap_err();
        assert!(has_ended(&error.into(), &socket).await);
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_qemu_that_ended_is_told_from_one_that_cannot_be_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (left, busy) = (dir.path().join("left"), dir.path().join("busy"));
        drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
        let _listens = std::os::unix::net::UnixListener::bind(&busy).unwrap();
        assert!(nobody_listens(&dir.path().join("never")).await);
        assert!(nobody_listens(&left).await);
        assert!(!nobody_listens(&busy).await);
        let ended = continue_guest(&left, None, Duration::from_secs(1)).await;
        assert!(matches!(ended, Err(GuestError::Ended)), "{ended:?}");
    }

    #[test]
    fn only_a_guest_that_merely_stands_is_continued() {
        for hold in [Hold::Ack, Hold::Gate] {
            assert!(is_held("paused", Some("failed"), hold));
            assert!(is_held("postmigrate", Some("cancelled"), hold));
            assert!(is_held("finish-migrate", Some("device"), hold));
            assert!(!is_held("inmigrate", None, hold));
        }
        assert!(!is_held("postmigrate", Some("completed"), Hold::Ack));
        assert!(is_held("postmigrate", Some("completed"), Hold::Gate));
    }

    #[test]
    fn who_stopped_the_guest_is_told_by_its_state() {
        assert!(!stood_before("running", Hold::Ack));
        assert!(!stood_before("suspended", Hold::Ack));
        assert!(stood_before("paused", Hold::Ack));
        assert!(stood_before("paused", Hold::Gate));
        assert!(stood_before("io-error", Hold::Ack));
        assert!(stood_before("finish-migrate", Hold::Ack));
        assert!(!stood_before("finish-migrate", Hold::Gate));
    }
}
