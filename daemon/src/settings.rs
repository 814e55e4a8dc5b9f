//! What was set in a source's QEMU before we set what a migration needs, kept until that is set back: a daemon that is killed leaves its settings in
//! QEMU, and the next one finds here what they were.
//!
//! ```text
//! STATE/settings/PID-STARTED.json   one QEMU's, from before its migration until its settings are what they were
//! ```
//!
//! They end with their QEMU, and so with the host: nothing is synced, and nobody's guest hangs on it.

use crate::fail;
use crate::process::ProcessId;
use crate::records::{self, RecordError};
use hikyaku_qemu::qmp::{Client, ClientConfig, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at a QEMU that cannot be asked, or whose migration is not over: at first, for one whose daemon was killed is over as
/// soon as QEMU has noticed, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(300);

/// Of one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub capabilities: BTreeMap<String, bool>,
    pub parameters: Map<String, Value>,
}

/// And where that QEMU is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    process: ProcessId,
    qmp: PathBuf,
    settings: Settings,
}

#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Settings {
    /// Best effort: these are settings, not the guest. False: some stay as we set them.
    pub async fn set_back(&self, qmp: &Client) -> bool {
        let capabilities: Vec<_> = self.capabilities.iter().map(|(name, on)| (name.as_str(), *on)).collect();
        let capabilities = qmp.migrate_set_capabilities(&capabilities).await;
        if let Err(error) = &capabilities {
            tracing::warn!(%error, "QEMU's migration capabilities stay as we set them");
        }
        let parameters = qmp.migrate_set_parameters(Value::Object(self.parameters.clone())).await;
        if let Err(error) = &parameters {
            tracing::warn!(%error, "QEMU's migration parameters stay as we set them");
        }
        capabilities.is_ok() && parameters.is_ok()
    }
}

impl Store {
    pub fn open(state: &Path) -> Result<Store, RecordError> {
        let dir = state.join("settings");
        std::fs::create_dir_all(&dir).map_err(records::at("cannot make", &dir))?;
        // What a daemon that died while it wrote has left.
        let files = std::fs::read_dir(&dir).map_err(records::at("cannot list", &dir))?;
        for file in files.flatten().filter(|file| read(&file.path()).is_none()) {
            let path = file.path();
            std::fs::remove_file(&path).map_err(records::at("cannot remove", &path))?;
        }
        Ok(Store { dir })
    }

    /// On `Ok` a daemon that comes after this one sets them back.
    pub async fn keep(&self, process: ProcessId, qmp: &Path, settings: &Settings) -> Result<(), RecordError> {
        let (path, kept) =
            (self.path(process), Kept { process, qmp: qmp.to_owned(), settings: settings.clone() });
        let to = path.clone();
        let job = move || {
            fail::io("settings.write")?;
            let new = to.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(&kept)?)?;
            std::fs::rename(&new, &to)
        };
        tokio::task::spawn_blocking(job)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(records::at("cannot write", &path))
    }

    /// What an earlier migration of this QEMU found, and nobody has set back.
    pub async fn of(&self, process: ProcessId) -> Option<Settings> {
        let path = self.path(process);
        tokio::task::spawn_blocking(move || read(&path)).await.ok().flatten().map(|kept| kept.settings)
    }

    /// They are what they were, or nobody's any more.
    pub async fn forget(&self, process: ProcessId) {
        let path = self.path(process);
        let job = move || fail::io("settings.remove").and_then(|()| std::fs::remove_file(path));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(job).await {
            tracing::debug!(%error, "settings that were kept");
        }
    }

    /// Of which QEMUs settings are kept.
    pub async fn all(&self) -> Vec<ProcessId> {
        let dir = self.dir.clone();
        let found = tokio::task::spawn_blocking(move || {
            let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
            files.filter_map(|file| Some(read(&file.path())?.process)).collect()
        });
        found.await.unwrap_or_default()
    }

    /// Sets back what a daemon before this one left set, as soon as that can be. `qmp_timeout`: for each answer.
    pub async fn set_back(&self, process: ProcessId, qmp_timeout: Duration) {
        let mut again = AGAIN;
        loop {
            let path = self.path(process);
            // A migration that was begun since does it.
            let Some(kept) = tokio::task::spawn_blocking(move || read(&path)).await.ok().flatten() else {
                return;
            };
            if !process.is_there() {
                break;
            }
            match kept.set_back(qmp_timeout).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, %process, "settings to be set back"),
            }
            tokio::time::sleep(again).await;
            again = AGAIN_MOST.min(again.mul_f64(1.5));
        }
        self.forget(process).await;
    }

    fn path(&self, process: ProcessId) -> PathBuf {
        self.dir.join(format!("{}.json", process.name()))
    }
}

impl Kept {
    /// False: its migration is not over, or not everything was taken.
    async fn set_back(&self, qmp_timeout: Duration) -> Result<bool, QmpError> {
        let config = ClientConfig { command_timeout: qmp_timeout, ..ClientConfig::default() };
        let qmp = Client::connect(&self.qmp, config).await?;
        if self.process.is_not_behind(&qmp) {
            // It listens elsewhere now.
            return Ok(true);
        }
        let migration = qmp.query_migrate().await?;
        let under_way =
            !migration.is_final() && migration.status.as_deref().is_some_and(|status| status != "none");
        if under_way || !self.settings.set_back(&qmp).await {
            return Ok(false);
        }
        tracing::info!(process = %self.process, "QEMU's migration settings are what they were before a move that a daemon left behind");
        Ok(true)
    }
}

fn read(path: &Path) -> Option<Kept> {
    let kept = std::fs::read(path).ok()?;
    serde_json::from_slice(&kept).ok()
}
