//! What the machine offers to the tests, and what to do when it does not.
//!
//! `tests/run` installs and unpacks everything and says in the environment where it is; a test started by hand finds
//! the same things in the cache. What is missing is a *skip*: said aloud, written where `tests/run` counts it, and a
//! failure under `HIKYAKU_TESTS=all`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hikyaku_lab::guest::Kvm;

/// A QEMU that can be started without further flags.
#[derive(Debug, Clone)]
pub struct QemuBinary {
    pub path: PathBuf,
    pub version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The machine's QEMU: `$HIKYAKU_QEMU`, else the one on the `PATH`.
pub fn qemu() -> Option<QemuBinary> {
    let path = std::env::var_os("HIKYAKU_QEMU").map(PathBuf::from);
    QemuBinary::probe(path.unwrap_or_else(|| "qemu-system-x86_64".into()))
}

/// The other of the pair: `$HIKYAKU_QEMU_OTHER`, else the one unpacked in the cache.
pub fn other_qemu() -> Option<QemuBinary> {
    let path = std::env::var_os("HIKYAKU_QEMU_OTHER").map(PathBuf::from);
    QemuBinary::probe(path.unwrap_or_else(|| cache().join("qemu-other/qemu")))
}

/// A library that shows a program another time of day.
pub fn fake_clock() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?.flatten();
    libraries.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// Both QEMUs, the older first.
pub fn qemu_pair() -> Option<(QemuBinary, QemuBinary)> {
    let (one, other) = (qemu()?, other_qemu()?);
    Some(if one.version <= other.version { (one, other) } else { (other, one) })
}

/// KVM, where the machine has it. One without is a machine like another: nothing is missing, and it is no skip that the
/// tests of KVM do not apply.
#[track_caller]
pub fn kvm() -> Option<()> {
    match Kvm::probe() {
        Kvm::Usable => Some(()),
        Kvm::Absent => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            eprintln!("not applicable: {test}: no KVM on this machine");
            None
        }
        Kvm::Refused(error) => need(&format!("the right to use /dev/kvm ({error})"), None),
    }
}

/// The directory with the Linux guest's kernel and busybox.
pub(crate) fn linux_parts() -> PathBuf {
    std::env::var_os("HIKYAKU_LINUX").map_or_else(|| cache().join("linux"), PathBuf::from)
}

impl QemuBinary {
    fn probe(path: PathBuf) -> Option<QemuBinary> {
        let output = Command::new(&path).arg("--version").output().ok()?;
        let version = Version::parse(&String::from_utf8_lossy(&output.stdout))?;
        Some(QemuBinary { path, version })
    }
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let numbers = text.strip_prefix("QEMU emulator version ")?;
        let mut parts = numbers.split(['.', ' ', '\n']);
        Some(Version { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute());
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    base.map_or_else(home, PathBuf::from).join("hikyaku-tests")
}

/// Passes on what is there; what is not ends the test as skipped, or fails it under `HIKYAKU_TESTS=all`.
///
/// Used with `let … else { return }`: a skipped test never looks like one that was made.
#[track_caller]
pub fn need<T>(what: &str, found: Option<T>) -> Option<T> {
    if found.is_some() {
        return found;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert_ne!(
        std::env::var("HIKYAKU_TESTS").as_deref(),
        Ok("all"),
        "{test} needs {what}, which is not here: tests/run installs it"
    );
    eprintln!("skipped: {test} needs {what}");
    if let Some(log) = std::env::var_os("HIKYAKU_SKIP_LOG") {
        let written = OpenOptions::new().append(true).create(true).open(log);
        let _ = written.and_then(|mut log| writeln!(log, "{test}: needs {what}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let new = Version::parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright").unwrap();
        let old = Version::parse("QEMU emulator version 7.2.22\n").unwrap();
        assert_eq!((new.major, new.minor), (10, 0));
        assert!(old < new);
        assert_eq!(Version::parse("something else 7.2"), None);
    }
}
