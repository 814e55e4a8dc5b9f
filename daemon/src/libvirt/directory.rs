//! Where the sockets of one carriage are: a directory of their own, which ends with it.

use crate::id::Id;
use crate::protocol::libvirt::Place;
use nix::unistd::{User, chown};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Of the id, in a directory's name: enough not to meet another, and few enough for a socket's path.
const DIGITS: usize = 16;
/// Of a socket's path, what the kernel takes.
const PATH_BYTES_MOST: usize = 107;
const PLACES: [Place; 3] = [Place::Rpc, Place::Ram, Place::Disks];

#[derive(Debug)]
pub struct Directory(PathBuf);

/// Of both hosts, for this carriage.
pub fn path(root: &Path, id: Id) -> PathBuf {
    root.join(&id.to_string()[..DIGITS])
}

/// Whether sockets in directories below it have paths that the kernel takes.
pub fn fits(root: &Path) -> bool {
    root.is_absolute() && root.as_os_str().len() + DIGITS + "//ctl".len() <= PATH_BYTES_MOST
}

impl Directory {
    /// At the source: whoever may connect to what is in it is decided by the sockets.
    pub fn open_to_all(root: &Path, id: Id) -> io::Result<Directory> {
        Directory::make(root, id, 0o755)
    }

    /// At the destination: QEMU makes its sockets there, as this user.
    pub fn of_user(root: &Path, id: Id, user: Option<&User>) -> io::Result<Directory> {
        let made = Directory::make(root, id, 0o700)?;
        if let Some(user) = user {
            chown(&made.0, Some(user.uid), Some(user.gid))?;
        }
        Ok(made)
    }

    fn make(root: &Path, id: Id, mode: u32) -> io::Result<Directory> {
        let path = path(root, id);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(root)?;
        // Not one that is there: what somebody put into it would be taken for ours.
        fs::DirBuilder::new().mode(mode).create(&path)?;
        let made = Directory(path);
        // Whatever the umask is.
        fs::set_permissions(&made.0, fs::Permissions::from_mode(mode))?;
        Ok(made)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn socket(&self, place: Place) -> PathBuf {
        self.0.join(match place {
            Place::Rpc => "ctl",
            Place::Ram => "ram",
            Place::Disks => "nbd",
        })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A QEMU that was killed leaves its sockets there; one that ended has removed them.
        for place in PLACES {
            let _ = fs::remove_file(self.socket(place));
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "left behind");
        }
    }
}

/// Removes what a daemon that was killed has left below `root`: directories in whose sockets nobody listens or waits.
pub fn sweep(root: &Path) {
    let used = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for file in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = file.path();
        let is_ours = file
            .file_name()
            .to_str()
            .is_some_and(|name| name.len() == DIGITS && name.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let within = format!(" {}/", path.display());
        if is_ours && !used.lines().any(|line| line.contains(&within)) {
            drop(Directory(path));
        }
    }
}

/// Whose QEMUs libvirt starts: this user, or the one that distributions make for it. None: root's.
pub fn qemu_user(named: Option<&str>) -> io::Result<Option<User>> {
    let find = |name: &str| User::from_name(name).map_err(io::Error::from);
    match named {
        Some(name) => match find(name)? {
            Some(user) => Ok(Some(user)),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no user \"{name}\" here"))),
        },
        None => {
            for name in ["libvirt-qemu", "qemu"] {
                if let Some(user) = find(name)? {
                    return Ok(Some(user));
                }
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_qemu_left_goes_with_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let id = Id::random();
        let directory = Directory::open_to_all(root.path(), id).unwrap();
        assert_eq!(directory.path(), path(root.path(), id));
        let _listener = UnixListener::bind(directory.socket(Place::Ram)).unwrap();
        let path = directory.path().to_owned();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_daemon_left_is_removed_unless_it_is_used() {
        let root = tempfile::tempdir().unwrap();
        let make = || {
            let directory = Directory::open_to_all(root.path(), Id::random()).unwrap();
            let listener = UnixListener::bind(directory.socket(Place::Ram)).unwrap();
            (std::mem::ManuallyDrop::new(directory), listener)
        };
        let ((left, listener), (used, _listener)) = (make(), make());
        drop(listener);
        let other = root.path().join("0123456789abcdef-not");
        fs::create_dir(&other).unwrap();
        sweep(root.path());
        assert!(!left.path().exists());
        assert!(used.path().exists() && other.exists());
    }

    #[test]
    fn one_that_is_there_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let id = Id::random();
        let first = Directory::open_to_all(root.path(), id).unwrap();
        let second = Directory::of_user(root.path(), id, None);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(first.path().exists());
    }

    #[test]
    fn a_path_that_the_kernel_would_not_take_is_told_before() {
        assert!(fits(Path::new("/run/hikyaku/m")));
        assert!(!fits(Path::new("run/hikyaku/m")));
        assert!(!fits(&Path::new("/run").join("x".repeat(90))));
        let longest = Path::new("/").join("x".repeat(PATH_BYTES_MOST - DIGITS - 6));
        assert!(fits(&longest));
        assert_eq!(path(&longest, Id::random()).join("ctl").as_os_str().len(), PATH_BYTES_MOST);
    }

    #[test]
    fn a_user_that_is_named_must_be_there() {
        assert!(qemu_user(Some("no-such-user-here")).is_err());
        assert!(qemu_user(Some("root")).unwrap().is_some());
    }
}
