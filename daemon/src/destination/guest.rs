//! The waiting QEMU at the destination, through QMP.

use super::words::Words;
use crate::process::ProcessId;
use crate::protocol::GuestFacts;
use crate::source::facts;
use crate::sys::{QEMU_SOCKET_BYTES, hold_unread};
use hikyaku_qemu::qmp::{Client, ClientConfig, QmpError, within};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// The name under which QEMU gets its end of the socket pair.
const FD_NAME: &str = "hikyaku-in";
/// Between two looks at a QEMU that loads: small beside every stop worth measuring.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, thiserror::Error)]
pub enum WaitingError {
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error(
        "the QEMU on this QMP socket is {0}: it does not wait for a guest. Start it with -incoming defer"
    )]
    NotWaiting(String),
    #[error("the QEMU on this QMP socket is already receiving a guest ({0})")]
    Busy(String),
    #[error("no socket pair: {0}")]
    SocketPair(io::Error),
    #[error("QEMU could not load the guest: {0}")]
    Load(String),
    #[error("QEMU did not {what} within {} s", .after.as_secs_f32())]
    Slow { what: &'static str, after: Duration },
    #[error("the guest does not run here: {0}")]
    DoesNotRun(String),
    /// QEMU was told to run the guest, and nobody knows whether it does, did, or will.
    #[error("whether the guest runs here cannot be seen: {0}")]
    Unclear(String),
}

impl WaitingError {
    /// The guest may run here, now or later: it must not be refused.
    pub fn is_unclear(&self) -> bool {
        matches!(self, WaitingError::Unclear(_))
    }
}

#[derive(Debug)]
pub struct WaitingGuest {
    qmp: Client,
    words: Option<Words>,
    pub facts: GuestFacts,
    pub process: Option<ProcessId>,
    /// It can send SWITCHOVER_ACK.
    pub knows_ack: bool,
}

impl WaitingGuest {
    /// Looks, and changes nothing.
    pub async fn connect(socket: &Path, timeout: Duration) -> Result<WaitingGuest, WaitingError> {
        let config = ClientConfig { command_timeout: timeout, ..ClientConfig::default() };
        let qmp = Client::connect(socket, config).await?;
        let state = qmp.query_status().await?;
        if state.status != "inmigrate" {
            return Err(WaitingError::NotWaiting(state.status));
        }
        let migration = qmp.query_migrate().await?;
        if let Some(status) = migration.status.filter(|s| s != "none") {
            return Err(WaitingError::Busy(status));
        }
        let knows_ack = qmp.query_migrate_capabilities().await?.get("switchover-ack").is_some();
        let facts = facts(&qmp).await?;
        let process = ProcessId::behind(&qmp);
        let words = match process {
            Some(process) => Words::of(process).await,
            None => None,
        };
        Ok(WaitingGuest { words, qmp, facts, process, knows_ack })
    }

    /// Makes QEMU read its guest from the socket that is returned.
    pub async fn begin(&self, sends_ack: bool) -> Result<UnixStream, WaitingError> {
        let mut wanted = vec![
            ("return-path", true),
            ("events", true),
            ("multifd", false),
            ("postcopy-ram", false),
            ("compress", false),
            ("mapped-ram", false),
            ("x-ignore-shared", false),
        ];
        if self.knows_ack {
            wanted.push(("switchover-ack", sends_ack));
        }
        self.qmp.migrate_set_capabilities(&wanted).await?;
        // Of a QEMU that waits for its guest it means: not to be started on arrival, whatever the stream says of it.
        self.qmp.stop().await?;
        let (ours, theirs) = UnixStream::pair().map_err(WaitingError::SocketPair)?;
        hold_unread(&ours, QEMU_SOCKET_BYTES);
        self.qmp.getfd(FD_NAME, OwnedFd::from(theirs)).await?;
        self.qmp.migrate_incoming_fd(FD_NAME).await?;
        Ok(ours)
    }

    /// Whether QEMU has loaded everything. `Err`: it never will.
    pub async fn has_loaded(&self) -> Result<bool, WaitingError> {
        let info = match self.qmp.query_migrate().await {
            Err(error) if error.is_closed() => {
                return Err(WaitingError::Load(self.why("it ended").await));
            }
            other => other?,
        };
        match info.status.as_deref() {
            Some("completed") => Ok(true),
            Some("failed") => {
                Err(WaitingError::Load(self.why(info.error_desc.as_deref().unwrap_or("it failed")).await))
            }
            _ => Ok(false),
        }
    }

    /// It says more to its log than to QMP, and a little later.
    async fn why(&self, what: &str) -> String {
        let Some(words) = &self.words else { return format!("{what}; its own log says why") };
        for _ in 0..20 {
            if let Some(said) = words.said().await {
                return format!("{what}: {said}");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        format!("{what}; its own log says nothing")
    }

    /// Waits until QEMU has loaded everything it was given; the guest stands, stopped.
    pub async fn loaded(&self, timeout: Duration) -> Result<(), WaitingError> {
        let loaded = within(timeout, async {
            while !self.has_loaded().await? {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            Ok(())
        });
        loaded.await.unwrap_or(Err(WaitingError::Slow { what: "load the guest", after: timeout }))
    }

    /// On `Ok` the guest runs. On `Unclear` it may run, now or later: a QEMU that hangs carries an order out when it wakes.
    /// On any other `Err` it does not, and has not run: QEMU refused every order.
    pub async fn start(&self, timeout: Duration) -> Result<(), WaitingError> {
        let deadline = Instant::now() + timeout;
        let mut obeyed = false;
        loop {
            // Images that the source has not quite released refuse the first attempts.
            let refused = match self.qmp.cont().await {
                Ok(()) => None,
                Err(error) if error.is_refusal() => Some(error.to_string()),
                Err(error) => return Err(WaitingError::Unclear(error.to_string())),
            };
            obeyed |= refused.is_none();
            let state = match self.qmp.query_status().await {
                Ok(state) if state.lives() => return Ok(()),
                Ok(state) => state.status,
                Err(error) => return Err(WaitingError::Unclear(error.to_string())),
            };
            if Instant::now() > deadline {
                return Err(match refused {
                    Some(error) if !obeyed => WaitingError::DoesNotRun(error),
                    _ => WaitingError::Unclear(format!("it is {state}")),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Switches and neighbours learn where it is, once more: what QEMU told them by itself it told when it had loaded the guest, and hooks
    /// may have changed the network since.
    pub async fn announce(&self) {
        if let Err(error) = self.qmp.announce_self().await {
            tracing::warn!(%error, "the guest's arrival is not announced to its networks again");
        }
    }

    /// Ends the QEMU, which is of no use any more.
    pub async fn quit(&self) {
        if let Err(error) = self.qmp.quit().await {
            tracing::warn!(%error, "the QEMU is not ended");
        }
    }

    /// Returns when the QEMU is gone.
    pub async fn gone(&self) {
        let mut events = self.qmp.events();
        while events.next().await.is_some() {}
    }
}
