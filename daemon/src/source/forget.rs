//! The record of a migration that is over.

use super::kept;
use crate::awaited;
use crate::daemon::Daemon;
use crate::protocol::Note;
use crate::records::{Phase, Record, RecordError};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// At the source nothing has to be known of a migration any more; the destination is told so, once that is durable. But of a guest of which
/// somebody has said that it stays here, the destination is told that until it has heard it.
pub async fn forget(daemon: &Rc<Daemon>, record: &Record) {
    forget_behind(daemon, None, record.clone()).await;
}

/// `writing`: on its way to the disk, and not to be overtaken. A disk that hangs or fails is waited for a moment, and beside after that: the
/// guest's fate is known, and is to be told.
pub async fn forget_behind(daemon: &Rc<Daemon>, writing: Option<Writing>, record: Record) {
    let (daemon, tidying) = (daemon.clone(), daemon.tidying());
    let forgetting = tokio::task::spawn_local(async move {
        if let Some(writing) = writing {
            let _ = writing.await;
        }
        let kept = record.resolved.then(|| Record { phase: Phase::Kept, ..record.clone() });
        let mut said = false;
        while let Err(error) = put_away(&daemon, &record, kept.as_ref()).await {
            if !std::mem::replace(&mut said, true) {
                tracing::error!(%error, "until its record is removed, a restart of this daemon looks into this migration again");
            }
            tokio::time::sleep(FORGET_AGAIN).await;
        }
        match kept {
            Some(kept) => kept::tell(&daemon, kept),
            None => awaited::tell(&daemon.node, &record.peer, &Note::Over { migration: record.id }),
        }
        drop(tidying);
    });
    let _ = tokio::time::timeout(FORGET_SOON, forgetting).await;
}

async fn put_away(daemon: &Daemon, record: &Record, kept: Option<&Record>) -> Result<(), RecordError> {
    match kept {
        Some(kept) => daemon.records.write(kept).await,
        None => daemon.records.forget(record.id).await,
    }
}

/// A record on its way to the disk.
pub type Writing = JoinHandle<Result<(), RecordError>>;

const FORGET_SOON: Duration = Duration::from_secs(2);
/// Between two attempts to remove a record from a disk that does not let it go.
const FORGET_AGAIN: Duration = Duration::from_secs(5);
