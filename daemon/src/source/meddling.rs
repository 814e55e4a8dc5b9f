//! Somebody else who continues a guest that we hold stopped.
//!
//! Until GO the guest is the source's, and runs on as that somebody wants; after GO it may run at the destination, and is stopped again at once.

use super::guest::SourceGuest;
use crate::process::ProcessId;
use hikyaku_qemu::qmp::{Client, ClientConfig, Events, QmpError};
use std::path::Path;
use std::time::Duration;

/// Listens from the stop on.
pub struct Meddling(Option<Events>);

impl Meddling {
    /// Nobody is listened to yet.
    pub fn none() -> Meddling {
        Meddling(None)
    }

    pub fn begin(guest: &SourceGuest) -> Meddling {
        Meddling(Some(guest.qmp.events()))
    }

    /// It was continued, and nobody has been told of that yet.
    pub fn seen(&mut self) -> bool {
        let Some(events) = &mut self.0 else { return false };
        std::iter::from_fn(|| events.try_next()).any(|event| event.name == RESUMED)
    }

    /// Returns when it is continued; never, if that cannot be heard.
    pub async fn next(&mut self) {
        if let Some(events) = &mut self.0 {
            while let Some(event) = events.next().await {
                if event.name == RESUMED {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}

const RESUMED: &str = "RESUME";

/// It is let go.
pub async fn stop_again(guest: &SourceGuest, name: &str, timeout: Duration) {
    tracing::error!(guest = name, "somebody continued the guest, which is let go: it is stopped again");
    if let Err(error) = guest.stop(timeout).await {
        tracing::error!(%error, "it cannot be stopped again");
    }
}

/// Between two attempts to listen to a QEMU.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// The same for a daemon that found a guest on record that was let go. One that it finds running is left alone: the record may
/// be older than that. Never returns.
pub async fn stop_again_whoever_continues(socket: &Path, process: Option<ProcessId>, timeout: Duration) {
    loop {
        if let Err(error) = listen(socket, process, timeout).await {
            tracing::debug!(%error, "a guest that is let go is not heard");
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn listen(socket: &Path, process: Option<ProcessId>, timeout: Duration) -> Result<(), QmpError> {
    let qmp = connect(socket, timeout).await?;
    if !is_it(&qmp, process) {
        return Ok(());
    }
    let mut events = qmp.events();
    while let Some(event) = events.next().await {
        if event.name == RESUMED {
            tracing::error!(qmp = %socket.display(), "somebody continued a guest that is let go: it is stopped again");
            qmp.stop().await?;
        }
    }
    Ok(())
}

/// It runs at the destination: a copy that runs here all the same is stopped. True: one did.
pub async fn stop_copy(
    socket: &Path,
    process: Option<ProcessId>,
    timeout: Duration,
) -> Result<bool, QmpError> {
    let qmp = connect(socket, timeout).await?;
    if !is_it(&qmp, process) || !qmp.query_status().await?.lives() {
        return Ok(false);
    }
    tracing::error!(qmp = %socket.display(), "the guest runs at the destination, and its copy here ran, too: it is stopped");
    qmp.stop().await?;
    Ok(true)
}

/// For sure: by now the guest may have come back, and another QEMU listen where the one did that gave it away.
fn is_it(qmp: &Client, process: Option<ProcessId>) -> bool {
    process.is_some() && ProcessId::behind(qmp) == process
}

async fn connect(socket: &Path, timeout: Duration) -> Result<Client, QmpError> {
    Client::connect(socket, ClientConfig { command_timeout: timeout, ..ClientConfig::default() }).await
}
