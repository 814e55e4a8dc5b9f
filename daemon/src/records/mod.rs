//! Who owns a guest, durably: one small file per migration in the state directory.
//!
//! ```text
//! STATE/lock             held by the daemon that owns the directory
//! STATE/incarnation          16 random bytes in hex; made once. Another one means: the records were lost.
//! STATE/migrations/ID.json   the last phase that had to be durable, and what a restart needs to finish it
//! STATE/libvirt-asked/, STATE/libvirt-delivered/   the same of guests that libvirt moves ([`Shelf`])
//! ```
//!
//! A record is written whole to a new file, fsynced, renamed over the old one, and the directory is fsynced:
//! `write` returning `Ok` means that a power cut does not undo it. One daemon owns the directory.
//!
//! A migration of which nothing has to be known any more has no record. At its source that is so as soon as it is over; at its destination
//! when the source has said that it will not ask again.

mod disk;
mod shelf;

use crate::fail;
use crate::id::Id;
use crate::process::ProcessId;
use disk::{Disk, Machine};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub use shelf::Shelf;

#[derive(Debug, thiserror::Error)]
#[error("state directory: {what} {path}: {source}")]
pub struct RecordError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Which way the guest travelled, and how far. Only phases that must survive the daemon are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: the guest was stopped by us and is still ours. A restarted daemon continues it.
    Stopped,
    /// Source: GO may have left. Only the destination's verdict releases or returns the guest.
    Ceded,
    /// Source: the verdict was *running*.
    Moved,
    /// Source: somebody has said that the guest stays here, and the destination has not heard it yet.
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
    /// The process that had the guest; not there if it could not be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<ProcessId>,
    /// Why, where that matters later: what a refusal said.
    #[serde(default)]
    pub why: String,
    /// Source: somebody has said that the guest stays here; *Kept* is to follow.
    #[serde(default, skip_serializing_if = "is_not")]
    pub resolved: bool,
}

fn is_not(what: &bool) -> bool {
    !what
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
            qemu: None,
            why: String::new(),
            resolved: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Records {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    incarnation: Id,
    /// Held as long as any clone lives.
    _lock: Option<Arc<Flock<File>>>,
}

impl Records {
    /// Opens the state directory, making it and its incarnation if they are not there.
    pub fn open(state: &Path) -> Result<Records, RecordError> {
        std::fs::create_dir_all(state).map_err(at("cannot make", state))?;
        let path = state.join("lock");
        let file = File::create(&path).map_err(at("cannot make", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| at("another daemon uses it:", &path)(errno.into()))?;
        let records = Records::on(Arc::new(Machine), state)?;
        Ok(Records { _lock: Some(Arc::new(lock)), ..records })
    }

    fn on(disk: Arc<dyn Disk>, state: &Path) -> Result<Records, RecordError> {
        let dir = state.join("migrations");
        disk.make_dir(&dir).map_err(at("cannot make", &dir))?;
        // What is found is acted on: a record whose name was not durable yet is to be so before it is read.
        for dir in [Some(&*dir), Some(state), state.parent()]
            .into_iter()
            .flatten()
            .filter(|dir| !dir.as_os_str().is_empty())
        {
            disk.sync_dir(dir).map_err(at("cannot write", dir))?;
        }
        let path = state.join("incarnation");
        let incarnation = match disk.read(&path) {
            Ok(text) => std::str::from_utf8(&text)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
                .and_then(|text| {
                    text.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
                })
                .map_err(at("damaged:", &path))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let id = Id::random();
                replace(&*disk, &path, id.to_string().as_bytes(), &Wanted::default())
                    .map_err(at("cannot write", &path))?;
                id
            }
            Err(e) => return Err(at("cannot read", &path)(e)),
        };
        let records = Records { disk, dir, incarnation, _lock: None };
        records.sweep()?;
        Ok(records)
    }

    /// Removes what a daemon that died while it wrote has left.
    fn sweep(&self) -> Result<(), RecordError> {
        for name in self.disk.names(&self.dir).map_err(at("cannot list", &self.dir))? {
            let path = self.dir.join(name);
            if path.extension().is_some_and(|end| end.to_string_lossy().starts_with(UNFINISHED)) {
                self.disk.remove(&path).map_err(at("cannot remove", &path))?;
            }
        }
        Ok(())
    }

    pub fn incarnation(&self) -> Id {
        self.incarnation
    }

    /// Makes `record` durable. On `Ok` it survives a power cut; on `Err` either the old record or this one is there.
    pub async fn write(&self, record: &Record) -> Result<(), RecordError> {
        self.write_while(record, &Wanted::default()).await
    }

    /// The same, unless it is withdrawn before it is there: then the old record is.
    pub async fn write_while(&self, record: &Record, wanted: &Wanted) -> Result<(), RecordError> {
        let (path, wanted) = (self.path(record.id), wanted.clone());
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).map_err(at("cannot encode", &path))?;
        self.beside(path, "cannot write", move |disk, path| replace(disk, path, &text, &wanted)).await
    }

    /// Nothing has to be known of it any more. On `Ok` that is durable.
    pub async fn forget(&self, id: Id) -> Result<(), RecordError> {
        self.beside(self.path(id), "cannot remove", |disk, path| {
            fail::io("record.remove")?;
            match disk.remove(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
        })
        .await
    }

    /// A thread of tokio's pool waits for the disk: the runtime goes on serving the other guests.
    async fn beside<T: Send + 'static>(
        &self,
        path: PathBuf,
        what: &'static str,
        job: impl FnOnce(&dyn Disk, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RecordError> {
        let (disk, of) = (self.disk.clone(), path.clone());
        let done = tokio::task::spawn_blocking(move || job(&*disk, &of)).await;
        done.map_err(io::Error::other).and_then(|done| done).map_err(at(what, &path))
    }

    pub async fn read(&self, id: Id) -> Result<Option<Record>, RecordError> {
        self.beside(self.path(id), "cannot read", read).await
    }

    /// Every record whose migration a restarted daemon has to finish. A damaged one is an error: guessing could start a
    /// second copy of a guest.
    pub async fn unfinished(&self) -> Result<Vec<Record>, RecordError> {
        self.of(|phase| !phase.is_final()).await
    }

    /// Every record whose destination is still to hear of it.
    pub async fn untold(&self) -> Result<Vec<Record>, RecordError> {
        self.of(|phase| phase == Phase::Kept).await
    }

    async fn of(&self, wanted: impl Fn(Phase) -> bool) -> Result<Vec<Record>, RecordError> {
        let names = self.beside(self.dir.clone(), "cannot list", |disk, dir| disk.names(dir)).await?;
        let ids = names.iter().filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok());
        let mut found = Vec::new();
        for id in ids {
            found.extend(self.read(id).await?.filter(|record| wanted(record.phase)));
        }
        Ok(found)
    }

    fn path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// How the names of files begin, behind the dot, that are being written.
const UNFINISHED: &str = "new";

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Record>> {
    fail::io("record.read")?;
    match disk.read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("damaged: {error}"))
        })?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a record that is on its way to a slow disk is still to be there.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<AtomicU8>);

impl Wanted {
    const OPEN: u8 = 0;
    const TAKEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// True: the record will never be there. False: it is, or may be.
    pub fn withdraw(&self) -> bool {
        self.decide(Self::WITHDRAWN)
    }

    /// True: it is put there now.
    fn take(&self) -> bool {
        self.decide(Self::TAKEN)
    }

    fn decide(&self, what: u8) -> bool {
        self.0.compare_exchange(Self::OPEN, what, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8], wanted: &Wanted) -> io::Result<()> {
    // Two may write one record at once; neither is to be renamed half written.
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let new = path.with_extension(format!("{UNFINISHED}{}", WRITERS.fetch_add(1, Ordering::Relaxed)));
    disk.write(&new, bytes)?;
    if !wanted.take() {
        disk.remove(&new)?;
        return Err(io::Error::other("nobody waited for it any longer"));
    }
    disk.rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}

pub fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::disk::volatile::{Survives, Volatile};
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
            qemu: None,
            why: String::new(),
            resolved: false,
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
        assert_eq!(next.read(moved.id).await.unwrap(), Some(moved));
        assert_eq!(next.unfinished().await.unwrap(), [ceded]);
        assert_eq!(next.read(Id::random()).await.unwrap(), None);
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
            assert_eq!(records.read(ceded.id).await.unwrap(), Some(ceded.clone()));
        }
    }

    /// The power is cut at every step of a migration's records, and of what was not synced nothing is left, or all, or names without
    /// contents: what `write` and `forget` have said is true, and what they had not said yet is so or as before.
    #[tokio::test]
    async fn a_power_cut_undoes_nothing_that_was_said() {
        let state = Path::new("/var/lib/hikyaku");
        let mut of = record(Phase::Stopped);
        for steps in 0.. {
            let disk = Arc::new(Volatile::with(Path::new("/var/lib")));
            disk.fail_after(steps);
            // What is known to be there, and what may be there instead.
            let (mut known, mut perhaps, mut incarnation) = (None, None, None);
            if let Ok(records) = Records::on(disk.clone(), state) {
                incarnation = Some(records.incarnation());
                for phase in [Some(Phase::Stopped), Some(Phase::Ceded), None, Some(Phase::Stopped)] {
                    perhaps = phase;
                    let done = match phase {
                        Some(phase) => {
                            of.phase = phase;
                            records.write(&of).await
                        }
                        None => records.forget(of.id).await,
                    };
                    if done.is_err() {
                        break;
                    }
                    known = phase;
                }
            }
            for survives in [Survives::Nothing, Survives::Names, Survives::Everything] {
                let records = Records::on(Arc::new(disk.after_power_cut(survives)), state).unwrap();
                assert!(
                    incarnation.is_none_or(|before| before == records.incarnation()),
                    "after {steps} steps"
                );
                let found = records.read(of.id).await.unwrap().map(|record| record.phase);
                assert!(
                    found == known || found == perhaps,
                    "after {steps} steps, {survives:?}: {found:?}, and neither {known:?} nor {perhaps:?}"
                );
                assert_eq!(records.unfinished().await.unwrap().len(), usize::from(found.is_some()));
                let left = records.disk.names(&records.dir).unwrap();
                assert_eq!(left.len(), usize::from(found.is_some()), "{left:?}");
            }
            if !disk.has_failed() {
                assert!(steps > 20, "only {steps} steps");
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_record_that_is_withdrawn_in_time_is_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let mut of = record(Phase::Stopped);
        records.write(&of).await.unwrap();
        of.phase = Phase::Ceded;
        let wanted = Wanted::default();
        assert!(wanted.withdraw());
        records.write_while(&of, &wanted).await.unwrap_err();
        assert_eq!(records.read(of.id).await.unwrap().map(|record| record.phase), Some(Phase::Stopped));
        assert_eq!(records.disk.names(&records.dir).unwrap().len(), 1);
        let wanted = Wanted::default();
        records.write_while(&of, &wanted).await.unwrap();
        assert!(!wanted.withdraw(), "it is there");
    }

    /// A daemon acts on the records that it finds; then they are to stay.
    #[tokio::test]
    async fn what_is_found_is_durable() {
        let (state, of) = (Path::new("/var/lib/hikyaku"), record(Phase::Starting));
        for steps in 0.. {
            let disk = Arc::new(Volatile::with(Path::new("/var/lib")));
            let first = Records::on(disk.clone(), state).unwrap();
            disk.fail_after(steps);
            let written = first.write(&of).await;
            disk.fail_after(usize::MAX);
            // The daemon died there, and the next one looks; later the power is cut.
            let next = Records::on(disk.clone(), state).unwrap();
            let found = next.read(of.id).await.unwrap();
            let later = Records::on(Arc::new(disk.after_power_cut(Survives::Nothing)), state).unwrap();
            assert_eq!(later.read(of.id).await.unwrap(), found, "after {steps} steps");
            if written.is_ok() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_damaged_record_is_an_error_and_never_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let ceded = record(Phase::Ceded);
        records.write(&ceded).await.unwrap();
        std::fs::write(records.path(ceded.id), b"{").unwrap();
        assert!(records.unfinished().await.unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_lost_state_directory_is_another_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::open(dir.path()).unwrap().incarnation();
        std::fs::remove_file(dir.path().join("incarnation")).unwrap();
        assert_ne!(Records::open(dir.path()).unwrap().incarnation(), first);
    }
}
