//! This host's private key on disk: one line of text, readable by its owner only.

use hikyaku_transport::StaticKey;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read the key {path}: {source}. One is made with: hikyaku keygen --out {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} can be read by others (mode {mode:o}): chmod 600 {path}")]
    Open { path: PathBuf, mode: u32 },
    #[error("{path} holds no key: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("{path} is there already; a key in use is not overwritten")]
    Exists { path: PathBuf },
    #[error("cannot write the key {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("no key can be made: {0}")]
    Generate(String),
}

pub fn read(path: &Path) -> Result<StaticKey, KeyFileError> {
    let at = |source| KeyFileError::Read { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(at)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(at)?);
    StaticKey::from_text(text.trim())
        .map_err(|e| KeyFileError::Damaged { path: path.to_owned(), why: e.to_string() })
}

/// Makes a key and writes it where nothing was before. On `Ok` it is on disk.
pub fn generate(path: &Path) -> Result<StaticKey, KeyFileError> {
    let key = StaticKey::generate().map_err(|e| KeyFileError::Generate(e.to_string()))?;
    let at = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => KeyFileError::Write { path: path.to_owned(), source },
    };
    // As the first command on a new host: the directory is not there yet.
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(at)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at)?;
    writeln!(file, "{}", &*key.to_text()).and_then(|()| file.sync_all()).map_err(at)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/hikyaku/key");
        let key = generate(&path).unwrap();
        assert_eq!(read(&path).unwrap().public(), key.public());
        assert!(matches!(generate(&path), Err(KeyFileError::Exists { .. })));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        generate(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Open { mode: 0o644, .. })));
    }
}
