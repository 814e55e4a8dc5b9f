//! The commands a migration needs, typed. Every field that some QEMU may leave out is an `Option`.

use std::os::fd::OwnedFd;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::codec::Triple;
use super::error::{ErrorKind, QmpError};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Version {
    pub qemu: Triple,
    #[serde(default)]
    pub package: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// `running`, `paused`, `inmigrate`, `postmigrate`, …
    pub status: String,
    pub running: bool,
}

impl RunState {
    /// It runs, or sleeps and runs on when it is woken: QEMU does not call that running.
    pub fn lives(&self) -> bool {
        self.running || self.status == "suspended"
    }
}

/// `query-migrate`. Without any field: no migration was ever begun.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrateInfo {
    pub status: Option<String>,
    pub ram: Option<RamInfo>,
    #[serde(rename = "total-time")]
    pub total_time_ms: Option<u64>,
    #[serde(rename = "setup-time")]
    pub setup_time_ms: Option<u64>,
    /// As QEMU sees it: until it has handed over, not until the guest runs elsewhere.
    #[serde(rename = "downtime")]
    pub downtime_ms: Option<u64>,
    #[serde(rename = "expected-downtime")]
    pub expected_downtime_ms: Option<u64>,
    pub cpu_throttle_percentage: Option<u64>,
    pub error_desc: Option<String>,
    pub blocked_reasons: Vec<String>,
}

impl MigrateInfo {
    pub fn is(&self, status: &str) -> bool {
        self.status.as_deref() == Some(status)
    }

    /// It is over, well or badly.
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_deref(), Some("completed" | "failed" | "cancelled"))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RamInfo {
    #[serde(rename = "transferred")]
    pub transferred_bytes: Option<u64>,
    #[serde(rename = "remaining")]
    pub remaining_bytes: Option<u64>,
    #[serde(rename = "total")]
    pub total_bytes: Option<u64>,
    #[serde(rename = "duplicate")]
    pub zero_pages: Option<u64>,
    #[serde(rename = "normal")]
    pub normal_pages: Option<u64>,
    pub dirty_sync_count: Option<u64>,
    /// Pages per second.
    pub dirty_pages_rate: Option<u64>,
    /// Mbit/s.
    pub mbps: Option<f64>,
    pub page_size: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySummary {
    #[serde(rename = "base-memory")]
    pub base_bytes: u64,
    #[serde(rename = "plugged-memory", default)]
    pub plugged_bytes: u64,
}

/// Migration capabilities by name, as this QEMU knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<(String, bool)>);

impl Capabilities {
    /// `None`: this QEMU does not know it.
    pub fn get(&self, name: &str) -> Option<bool> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, on)| *on)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().map(|(name, on)| (name.as_str(), *on))
    }
}

#[derive(Deserialize, Serialize)]
struct Capability {
    capability: String,
    state: bool,
}

impl Client {
    pub async fn query_version(&self) -> Result<Version, QmpError> {
        self.execute("query-version", ()).await
    }

    pub async fn query_status(&self) -> Result<RunState, QmpError> {
        self.execute("query-status", ()).await
    }

    pub async fn query_migrate(&self) -> Result<MigrateInfo, QmpError> {
        self.execute("query-migrate", ()).await
    }

    pub async fn query_migrate_capabilities(&self) -> Result<Capabilities, QmpError> {
        let all: Vec<Capability> = self.execute("query-migrate-capabilities", ()).await?;
        Ok(Capabilities(all.into_iter().map(|c| (c.capability, c.state)).collect()))
    }

    /// Sets those that this QEMU knows, in one step, and answers the others. On an error none was changed.
    pub async fn migrate_set_capabilities(&self, wanted: &[(&str, bool)]) -> Result<Vec<String>, QmpError> {
        let known = self.query_migrate_capabilities().await?;
        let (set, unknown): (Vec<_>, Vec<_>) = wanted.iter().partition(|(name, _)| known.get(name).is_some());
        if !set.is_empty() {
            let capabilities: Vec<_> =
                set.into_iter().map(|(name, state)| Capability { capability: name.into(), state }).collect();
            self.done("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
        }
        Ok(unknown.into_iter().map(|(name, _)| name.to_owned()).collect())
    }

    pub async fn query_migrate_parameters(&self) -> Result<Value, QmpError> {
        self.execute("query-migrate-parameters", ()).await
    }

    /// `parameters` is an object by QEMU's names.
    pub async fn migrate_set_parameters(&self, parameters: Value) -> Result<(), QmpError> {
        self.done("migrate-set-parameters", parameters).await
    }

    /// Gives QEMU a descriptor under a name, for [`Self::migrate_fd`].
    pub async fn getfd(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute_with_fd("getfd", json!({ "fdname": name }), fd).await?;
        Ok(())
    }

    /// Begins the migration. Whether it goes well is [`Self::query_migrate`]'s to say.
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.done("migrate", json!({ "uri": uri })).await
    }

    pub async fn migrate_fd(&self, name: &str) -> Result<(), QmpError> {
        self.migrate(&format!("fd:{name}")).await
    }

    /// For a QEMU started with `-incoming defer`.
    pub async fn migrate_incoming_fd(&self, name: &str) -> Result<(), QmpError> {
        self.done("migrate-incoming", json!({ "uri": format!("fd:{name}") })).await
    }

    /// Asks QEMU to give the migration up. Unless the guest was stopped by [`Self::stop`], QEMU resumes it.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.done("migrate_cancel", ()).await
    }

    /// Leaves the state `pre-switchover`.
    pub async fn migrate_continue(&self, state: &str) -> Result<(), QmpError> {
        self.done("migrate-continue", json!({ "state": state })).await
    }

    /// On `Ok` the guest is stopped, and QEMU will not start it by itself. On an error it may run or not.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.done("stop", ()).await
    }

    /// On `Ok` QEMU has taken the wish; whether the guest runs is [`Self::query_status`]'s to say (a QEMU that
    /// waits for a migration only notes it).
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.done("cont", ()).await
    }

    /// Tells the networks where the guest is now: five frames from each of its network cards, within a second and a half. (4.0 and later.)
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        self.done("announce-self", json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 })).await
    }

    /// QEMU is gone or going.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.done("quit", ()).await {
            Err(e) if matches!(e.kind, ErrorKind::Closed) => Ok(()),
            other => other,
        }
    }

    pub async fn query_memory_size_summary(&self) -> Result<MemorySummary, QmpError> {
        self.execute("query-memory-size-summary", ()).await
    }

    /// What the guest has left itself of its memory. None: it has no balloon.
    pub async fn balloon_bytes(&self) -> Result<Option<u64>, QmpError> {
        #[derive(Deserialize)]
        struct Balloon {
            actual: u64,
        }
        match self.execute::<Balloon>("query-balloon", ()).await {
            Ok(balloon) => Ok(Some(balloon.actual)),
            Err(error) if error.is_refusal() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn query_name(&self) -> Result<Option<String>, QmpError> {
        #[derive(Deserialize)]
        struct Name {
            name: Option<String>,
        }
        let name: Name = self.execute("query-name", ()).await?;
        Ok(name.name)
    }

    pub async fn query_uuid(&self) -> Result<String, QmpError> {
        #[derive(Deserialize)]
        struct Uuid {
            #[serde(rename = "UUID")]
            uuid: String,
        }
        let uuid: Uuid = self.execute("query-uuid", ()).await?;
        Ok(uuid.uuid)
    }

    pub async fn qom_get(&self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.execute("qom-get", json!({ "path": path, "property": property })).await
    }

    /// With its version, as `pc-q35-10.0`: what the stream's configuration section says too.
    pub async fn machine_type(&self) -> Result<String, QmpError> {
        let value = self.qom_get("/machine", "type").await?;
        match value.as_str() {
            Some(name) => Ok(name.strip_suffix("-machine").unwrap_or(name).to_owned()),
            None => Err(self.error("qom-get", ErrorKind::Answer(format!("a machine type of {value}")))),
        }
    }

    async fn done(&self, command: &'static str, args: impl Serialize) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(command, args).await?;
        Ok(())
    }
}
