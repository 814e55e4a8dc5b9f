//! Which QEMU: `$HIKYAKU_QEMU`, else the first known name on the `PATH`.
//!
//! A QEMU that was unpacked somewhere needs its firmware named: `$HIKYAKU_QEMU_DATA`, directories separated by `:`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

const NAMES: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBinary {
    pub path: PathBuf,
    /// For `-L`; none for an installed QEMU.
    pub data: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LocateError {
    #[error("$HIKYAKU_QEMU is {0:?}, which is not a file")]
    NotThere(PathBuf),
    #[error("no QEMU on this machine: `apt-get install qemu-system-x86` (or set HIKYAKU_QEMU to its path)")]
    None,
}

impl QemuBinary {
    pub fn find() -> Result<QemuBinary, LocateError> {
        QemuBinary::find_in(
            env::var_os("HIKYAKU_QEMU"),
            env::var_os("HIKYAKU_QEMU_DATA"),
            &env::var_os("PATH").unwrap_or_default(),
        )
    }

    /// A QEMU that needs no `-L`.
    pub fn at(path: impl Into<PathBuf>) -> QemuBinary {
        QemuBinary { path: path.into(), data: Vec::new() }
    }

    fn find_in(
        named: Option<OsString>,
        data: Option<OsString>,
        search: &std::ffi::OsStr,
    ) -> Result<QemuBinary, LocateError> {
        let data = data.map(|list| env::split_paths(&list).collect()).unwrap_or_default();
        if let Some(path) = named.map(PathBuf::from) {
            // A bare name is looked up as a shell would.
            let found = if path.components().count() > 1 {
                is_file(&path).then(|| path.clone())
            } else {
                on(search, &path)
            };
            return found.map(|path| QemuBinary { path, data }).ok_or(LocateError::NotThere(path));
        }
        let path = NAMES.iter().find_map(|name| on(search, Path::new(name)));
        path.map(|path| QemuBinary { path, data }).ok_or(LocateError::None)
    }
}

fn on(search: &std::ffi::OsStr, name: &Path) -> Option<PathBuf> {
    env::split_paths(search).map(|folder| folder.join(name)).find(|path| is_file(path))
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_names_wins_over_the_path_and_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let installed = dir.path().join("qemu-system-x86_64");
        fs::write(&installed, "").unwrap();
        let own = dir.path().join("own");
        let search = dir.path().as_os_str();

        let found = QemuBinary::find_in(None, None, search).unwrap();
        assert_eq!(found, QemuBinary::at(&installed));
        assert_eq!(
            QemuBinary::find_in(Some(own.clone().into()), None, search),
            Err(LocateError::NotThere(own.clone()))
        );
        fs::write(&own, "").unwrap();
        let found = QemuBinary::find_in(Some(own.clone().into()), Some("/a:/b".into()), search).unwrap();
        assert_eq!(found, QemuBinary { path: own, data: vec!["/a".into(), "/b".into()] });
    }

    #[test]
    fn without_any_qemu_the_error_says_how_to_get_one() {
        let error = QemuBinary::find_in(None, None, "/nonexistent".as_ref()).unwrap_err();
        assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");
    }
}
