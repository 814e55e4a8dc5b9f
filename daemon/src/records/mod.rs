//! Who owns a guest, durably: one small file per migration in the state directory.
//!
//! ```text
//! STATE/lock             held by the daemon that owns the directory
//! STATE/incarnation          16 random bytes in hex; made once. Another one means: the records were lost.
//! STATE/migrations/ID.json   the last phase that had to be durable, and what a restart needs to finish it
//! ```
//!
//! A record is written whole to a new file, fsynced, renamed over the old one, and the directory is fsynced:
//! `write` returning `Ok` means that a power cut does not undo it. One daemon owns the directory.

use crate::id::Id;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, thiserror::Error)]
#[error("state directory: {what} {path}: {source}")]
pub struct RecordError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Which way the guest travelled, and how far. Only phases that must survive the daemon are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: the guest was stopped by us and is still ours. A restarted daemon continues it.
    Stopped,
    /// Source: GO may have left. Only the destination's verdict releases or returns the guest.
    Ceded,
    /// Source: the verdict was *running*.
    Moved,
    /// Source: the guest was given back (verdict *refused*, or a failure before Ceded).
    Kept,
    /// Destination: GO was there; the guest is being started and will not be refused any more.
    Starting,
    /// Destination: the guest arrived (running, or stopped as asked).
    Arrived,
    /// Destination: refused for good; a later GO is ignored.
    Refused,
}

impl Phase {
    /// Nothing is left to do for it.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Moved | Phase::Kept | Phase::Arrived | Phase::Refused)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: Id,
    pub phase: Phase,
    pub guest: String,
    pub qmp: PathBuf,
    pub peer: String,
    /// The guest ran before the migration stopped it, so it is to run afterwards.
    pub run: bool,
    /// The peer's incarnation when the session was opened.
    pub peer_incarnation: Id,
    /// Why, where that matters later: what a refusal said.
    #[serde(default)]
    pub why: String,
}

impl Record {
    /// A refusal of a migration of which nothing else may be known here.
    pub fn refused(id: Id, peer: &str) -> Record {
        Record {
            id,
            phase: Phase::Refused,
            guest: String::new(),
            qmp: PathBuf::new(),
            peer: peer.to_owned(),
            run: false,
            peer_incarnation: Id([0; 16]),
            why: String::new(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
    incarnation: Id,
    /// Held as long as any clone lives.
    _lock: Arc<Flock<File>>,
}

impl Records {
    /// Opens the state directory, making it and its incarnation if they are not there.
    pub fn open(state: &Path) -> Result<Records, RecordError> {
        let dir = state.join("migrations");
        std::fs::create_dir_all(&dir).map_err(at("cannot make", &dir))?;
        let path = state.join("lock");
        let file = File::create(&path).map_err(at("cannot make", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| at("another daemon uses it:", &path)(errno.into()))?;
        let path = state.join("incarnation");
        let incarnation = match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
                .map_err(at("damaged:", &path))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let id = Id::random();
                replace(&path, id.to_string().as_bytes()).map_err(at("cannot write", &path))?;
                id
            }
            Err(e) => return Err(at("cannot read", &path)(e)),
        };
        Ok(Records { dir, incarnation, _lock: Arc::new(lock) })
    }

    pub fn incarnation(&self) -> Id {
        self.incarnation
    }

    /// Makes `record` durable. On `Ok` it survives a power cut; on `Err` either the old record or this one is there.
    pub async fn write(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(record.id);
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).map_err(at("cannot encode", &path))?;
        let target = path.clone();
        // A thread of tokio's pool waits for the disk: the runtime goes on serving the other guests.
        tokio::task::spawn_blocking(move || replace(&target, &text))
            .await
            .map_err(io::Error::other)
            .and_then(|r| r)
            .map_err(at("cannot write", &path))
    }

    pub fn read(&self, id: Id) -> Result<Option<Record>, RecordError> {
        let path = self.path(id);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let record =
                    serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(at("damaged:", &path))?;
                Ok(Some(record))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("cannot read", &path)(e)),
        }
    }

    /// Every record whose migration a restarted daemon has to finish. A damaged one is an error: guessing could start a
    /// second copy of a guest.
    pub fn unfinished(&self) -> Result<Vec<Record>, RecordError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(at("cannot list", &self.dir))? {
            let name = entry.map_err(at("cannot list", &self.dir))?.file_name();
            let Some(id) = name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse().ok())
            else {
                continue;
            };
            found.extend(self.read(id)?.filter(|record| !record.phase.is_final()));
        }
        Ok(found)
    }

    fn path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Two may write one record at once; neither is to be renamed half written.
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let new = path.with_extension(format!("new{}", WRITERS.fetch_add(1, Ordering::Relaxed)));
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase) -> Record {
        Record {
            id: Id::random(),
            phase,
            guest: "web".into(),
            qmp: "/run/web.qmp".into(),
            peer: "osaka".into(),
            run: true,
            peer_incarnation: Id::random(),
            why: String::new(),
        }
    }

    #[tokio::test]
    async fn what_was_written_is_there_for_the_next_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (ceded, moved) = (record(Phase::Ceded), record(Phase::Moved));
        records.write(&ceded).await.unwrap();
        records.write(&moved).await.unwrap();

        let incarnation = records.incarnation();
        assert!(Records::open(dir.path()).unwrap_err().to_string().contains("another daemon"));
        drop(records);
        let next = Records::open(dir.path()).unwrap();
        assert_eq!(next.incarnation(), incarnation);
        assert_eq!(next.read(moved.id).unwrap(), Some(moved));
        assert_eq!(next.unfinished().unwrap(), [ceded]);
        assert_eq!(next.read(Id::random()).unwrap(), None);
    }

    /// The next daemon may be of another version: what is written here must be read for ever.
    #[tokio::test]
    async fn a_record_keeps_its_text() {
        let text = r#"{
  "id": "09090909090909090909090909090909",
  "phase": "ceded",
  "guest": "web",
  "qmp": "/run/web.qmp",
  "peer": "osaka",
  "run": true,
  "peer_incarnation": "08080808080808080808080808080808",
  "why": "no lock"
}"#;
        let mut ceded = record(Phase::Ceded);
        (ceded.id, ceded.peer_incarnation, ceded.why) = (Id([9; 16]), Id([8; 16]), "no lock".into());
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let path = dir.path().join("migrations/09090909090909090909090909090909.json");
        records.write(&ceded).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

        for (phase, word) in [
            (Phase::Stopped, "stopped"),
            (Phase::Ceded, "ceded"),
            (Phase::Moved, "moved"),
            (Phase::Kept, "kept"),
            (Phase::Starting, "starting"),
            (Phase::Arrived, "arrived"),
            (Phase::Refused, "refused"),
        ] {
            ceded.phase = phase;
            std::fs::write(&path, text.replace("ceded", word)).unwrap();
            assert_eq!(records.read(ceded.id).unwrap(), Some(ceded.clone()));
        }
    }

    #[tokio::test]
    async fn a_damaged_record_is_an_error_and_never_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let ceded = record(Phase::Ceded);
        records.write(&ceded).await.unwrap();
        std::fs::write(records.path(ceded.id), b"{").unwrap();
        assert!(records.unfinished().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_lost_state_directory_is_another_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::open(dir.path()).unwrap().incarnation();
        std::fs::remove_file(dir.path().join("incarnation")).unwrap();
        assert_ne!(Records::open(dir.path()).unwrap().incarnation(), first);
    }
}
