//! More that has to survive a power cut: one small file for each migration, in a directory of its own beside the records.
//!
//! Written, found and removed as they are: whole, synced, renamed.

use super::{RecordError, Records, UNFINISHED, Wanted, at, disk::Disk, replace};
use crate::id::Id;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// By whoever does not wait for it any longer.
struct Withdrawn(Wanted);

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

#[derive(Debug, Clone)]
pub struct Shelf {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// What is asked for later is done later, whoever still waits for it.
    order: Arc<Mutex<()>>,
}

impl Records {
    /// The directory of this name, made if it is not there.
    pub fn shelf(&self, name: &str) -> Result<Shelf, RecordError> {
        let state = self.dir.parent().unwrap_or(&self.dir);
        let (disk, dir) = (self.disk.clone(), state.join(name));
        disk.make_dir(&dir).map_err(at("cannot make", &dir))?;
        for dir in [&dir, state] {
            disk.sync_dir(dir).map_err(at("cannot write", dir))?;
        }
        let shelf = Shelf { disk, dir, order: Arc::default() };
        shelf.sweep();
        Ok(shelf)
    }
}

impl Shelf {
    /// On `Ok` it survives a power cut; on `Err` either what was there before or this is there.
    pub async fn put<T: Serialize>(&self, id: Id, what: &T) -> Result<(), RecordError> {
        self.put_while(id, what, &Wanted::default()).await
    }

    /// The same, for somebody who waits no longer than that; if it is not waited for to the end it is withdrawn, unless it is being put there
    /// already.
    pub async fn put_within<T: Serialize>(
        &self,
        id: Id,
        what: &T,
        limit: Duration,
    ) -> Result<(), RecordError> {
        let wanted = Withdrawn(Wanted::default());
        let put = tokio::time::timeout(limit, self.put_while(id, what, &wanted.0)).await;
        put.unwrap_or_else(|_| {
            Err(at("no answer to what is written to", &self.path(id))(io::ErrorKind::TimedOut.into()))
        })
    }

    async fn put_while<T: Serialize>(&self, id: Id, what: &T, wanted: &Wanted) -> Result<(), RecordError> {
        let (path, wanted) = (self.path(id), wanted.clone());
        let text = serde_json::to_vec(what).map_err(io::Error::from).map_err(at("cannot encode", &path))?;
        self.beside(id, "cannot write", move |disk, path| replace(disk, path, &text, &wanted)).await
    }

    /// A damaged one is an error: guessing could start a second copy of a guest.
    pub async fn get<T: DeserializeOwned + Send + 'static>(&self, id: Id) -> Result<Option<T>, RecordError> {
        self.beside(id, "cannot read", |disk, path| match disk.read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    pub async fn take_away(&self, id: Id) -> Result<(), RecordError> {
        self.beside(id, "cannot remove", |disk, path| match disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir)),
        })
        .await
    }

    /// One that cannot be read, and that nobody needs any more: it stays beside, for whoever looks why.
    pub async fn set_aside(&self, id: Id) -> Result<(), RecordError> {
        self.beside(id, "cannot set aside", |disk, path| {
            match disk.rename(path, &path.with_extension("damaged")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir)),
            }
        })
        .await
    }

    /// Of which migrations something is there.
    pub async fn ids(&self) -> Result<Vec<Id>, RecordError> {
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let names = tokio::task::spawn_blocking(move || disk.names(&dir)).await;
        let names =
            names.map_err(io::Error::other).and_then(|names| names).map_err(at("cannot list", &self.dir))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok()).collect())
    }

    /// Removes what a daemon that died while it wrote has left.
    fn sweep(&self) {
        for name in self.disk.names(&self.dir).into_iter().flatten() {
            let path = self.dir.join(name);
            if path.extension().is_some_and(|end| end.to_string_lossy().starts_with(UNFINISHED)) {
                let _ = self.disk.remove(&path);
            }
        }
    }

    fn path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    async fn beside<T: Send + 'static>(
        &self,
        id: Id,
        what: &'static str,
        job: impl FnOnce(&dyn Disk, &std::path::Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RecordError> {
        let (disk, path) = (self.disk.clone(), self.path(id));
        let of = path.clone();
        let turn = self.order.clone().lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            job(&*disk, &of)
        });
        let done = done.await;
        done.map_err(io::Error::other).and_then(|done| done).map_err(at(what, &path))
    }
}
