//! The few things that records need of a file system.

use crate::fail;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A file system, as far as records go. A name is durable once its directory was synced.
pub trait Disk: Debug + Send + Sync {
    /// And those above it. What was there stays.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A new file, whose contents are durable on `Ok`. Its name is not yet.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The machine's.
#[derive(Debug)]
pub struct Machine;

impl Disk for Machine {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        fail::io("record.write")?;
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// A disk whose power can be cut at every step, and that keeps only what was synced: files *and* directories.
#[cfg(test)]
pub mod volatile {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;
    use std::sync::Mutex;

    /// What a power cut leaves of what was not synced.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Survives {
        Nothing,
        /// Of files whose names were written behind their contents: empty ones.
        Names,
        Everything,
    }

    #[derive(Debug, Clone, Default)]
    struct State {
        /// By number, so that a name may change: contents now, and those that are durable.
        files: Vec<(Vec<u8>, Vec<u8>)>,
        names: BTreeMap<PathBuf, usize>,
        durable_names: BTreeMap<PathBuf, usize>,
        dirs: BTreeSet<PathBuf>,
        durable_dirs: BTreeSet<PathBuf>,
        /// Before the power fails.
        steps_left: Option<usize>,
    }

    #[derive(Debug, Default)]
    pub struct Volatile(Mutex<State>);

    impl Volatile {
        /// The directories of `path` are there, and durable.
        pub fn with(path: &Path) -> Volatile {
            let mut state = State::default();
            state.dirs.extend(path.ancestors().map(Path::to_owned));
            state.durable_dirs = state.dirs.clone();
            Volatile(Mutex::new(state))
        }

        /// The power fails after so many steps.
        pub fn fail_after(&self, steps: usize) {
            self.0.lock().unwrap().steps_left = Some(steps);
        }

        pub fn has_failed(&self) -> bool {
            self.0.lock().unwrap().steps_left == Some(0)
        }

        /// The disk as the next boot finds it.
        pub fn after_power_cut(&self, survives: Survives) -> Volatile {
            let mut state = self.0.lock().unwrap().clone();
            state.steps_left = None;
            if survives != Survives::Everything {
                state.files.iter_mut().for_each(|(now, durable)| now.clone_from(durable));
            }
            if survives == Survives::Nothing {
                state.names = state.durable_names.clone();
                state.dirs = state.durable_dirs.clone();
                let dirs = state.dirs.clone();
                state.names.retain(|path, _| path.parent().is_some_and(|dir| dirs.contains(dir)));
            }
            state.durable_names = state.names.clone();
            state.durable_dirs = state.dirs.clone();
            state.files.iter_mut().for_each(|(now, durable)| durable.clone_from(now));
            Volatile(Mutex::new(state))
        }

        fn step<T>(&self, step: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
            let mut state = self.0.lock().unwrap();
            match &mut state.steps_left {
                Some(0) => return Err(io::Error::other("the power is cut")),
                Some(left) => *left -= 1,
                None => {}
            }
            step(&mut state)
        }
    }

    fn none() -> io::Error {
        io::ErrorKind::NotFound.into()
    }

    impl Disk for Volatile {
        fn make_dir(&self, dir: &Path) -> io::Result<()> {
            self.step(|state| {
                state.dirs.extend(dir.ancestors().map(Path::to_owned));
                Ok(())
            })
        }

        fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
            let state = self.0.lock().unwrap();
            let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
            Ok(inside.filter_map(|path| path.file_name()).map(OsString::from).collect())
        }

        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            let state = self.0.lock().unwrap();
            let number = state.names.get(path).ok_or_else(none)?;
            Ok(state.files[*number].0.clone())
        }

        fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            let number = self.step(|state| {
                let dir = path.parent().unwrap();
                if !state.dirs.contains(dir) {
                    return Err(none());
                }
                state.files.push(Default::default());
                state.names.insert(path.to_owned(), state.files.len() - 1);
                Ok(state.files.len() - 1)
            })?;
            for part in [bytes.len() / 2, bytes.len()] {
                self.step(|state| {
                    state.files[number].0 = bytes[..part].to_vec();
                    Ok(())
                })?;
            }
            self.step(|state| {
                let (now, durable) = &mut state.files[number];
                durable.clone_from(now);
                Ok(())
            })
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step(|state| {
                let number = state.names.remove(from).ok_or_else(none)?;
                state.names.insert(to.to_owned(), number);
                Ok(())
            })
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.step(|state| state.names.remove(path).map(drop).ok_or_else(none))
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.step(|state| {
                let inside = |path: &PathBuf| path.parent() == Some(dir);
                state.durable_names.retain(|path, _| !inside(path));
                let now = state.names.iter().filter(|(path, _)| inside(path));
                state.durable_names.extend(now.map(|(path, number)| (path.clone(), *number)));
                state.durable_dirs.retain(|path| !inside(path));
                let now: Vec<_> = state.dirs.iter().filter(|path| inside(path)).cloned().collect();
                state.durable_dirs.extend(now);
                Ok(())
            })
        }
    }
}
