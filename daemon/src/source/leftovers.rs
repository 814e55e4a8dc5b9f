//! Records of earlier migrations of the guest that is to be moved now.
//!
//! One that was kept because a disk failed would be taken up by the next daemon, and say of a guest that has moved on since that it is to be continued
//! here. So no guest is moved over such a one.

use super::SourceError;
use crate::daemon::Daemon;
use crate::process::ProcessId;
use crate::records::{Phase, Record};
use std::path::Path;

/// On `Ok` no record says anything of the guest of this QEMU. `Err`: one does, and nothing was touched.
pub async fn clear(daemon: &Daemon, qmp: &Path, process: Option<ProcessId>) -> Result<(), SourceError> {
    for record in daemon.records.unfinished().await?.into_iter().filter(|record| is_of(record, qmp, process))
    {
        if daemon.registry.unfinished().iter().any(|entry| entry.id == record.id) {
            return Err(SourceError::InHand { id: record.id.short(), phase: record.phase });
        }
        tracing::warn!(id = %record.id, phase = ?record.phase, "a record that was left over is cleared away");
        match record.phase {
            // It came here, or it would not be moved away.
            Phase::Starting => daemon.records.write(&Record { phase: Phase::Arrived, ..record }).await?,
            _ => daemon.records.forget(record.id).await?,
        }
    }
    Ok(())
}

fn is_of(record: &Record, qmp: &Path, process: Option<ProcessId>) -> bool {
    match (record.qemu, process) {
        (Some(then), Some(now)) => then == now,
        _ => record.qmp == qmp,
    }
}
