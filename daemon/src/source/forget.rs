//! The record of a migration that is over.

use crate::awaited;
use crate::daemon::Daemon;
use crate::id::Id;
use crate::protocol::Note;
use crate::records::RecordError;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// At the source nothing has to be known of a migration any more; the destination is told so, once that is durable.
pub async fn forget(daemon: &Rc<Daemon>, id: Id, peer: &str) {
    forget_behind(daemon, None, id, peer).await;
}

/// `writing`: on its way to the disk, and not to be overtaken. A disk that hangs or fails is waited for a moment, and beside after that: the
/// guest's fate is known, and is to be told.
pub(super) async fn forget_behind(daemon: &Rc<Daemon>, writing: Option<Writing>, id: Id, peer: &str) {
    let (daemon, peer, tidying) = (daemon.clone(), peer.to_owned(), daemon.tidying());
    let forgetting = tokio::task::spawn_local(async move {
        if let Some(writing) = writing {
            let _ = writing.await;
        }
        let mut said = false;
        while let Err(error) = daemon.records.forget(id).await {
            if !std::mem::replace(&mut said, true) {
                tracing::error!(%error, "until its record is removed, a restart of this daemon looks into this migration again");
            }
            tokio::time::sleep(FORGET_AGAIN).await;
        }
        awaited::tell(&daemon.node, &peer, &Note::Over { migration: id });
        drop(tidying);
    });
    let _ = tokio::time::timeout(FORGET_SOON, forgetting).await;
}

/// A record on its way to the disk.
pub(super) type Writing = JoinHandle<Result<(), RecordError>>;

const FORGET_SOON: Duration = Duration::from_secs(2);
/// Between two attempts to remove a record from a disk that does not let it go.
const FORGET_AGAIN: Duration = Duration::from_secs(5);
