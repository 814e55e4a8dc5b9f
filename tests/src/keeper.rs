//! In a service manager's place: keeps a daemon's sockets while it is not there, as systemd does with `FileDescriptorStoreMax=`.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// So often it is looked whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

type Kept = Arc<Mutex<Vec<(String, OwnedFd)>>>;

#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    kept: Kept,
    ends: Arc<AtomicBool>,
    listens: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `path`: where it is told what to keep.
    pub fn start(path: &Path) -> Keeper {
        let socket = UnixDatagram::bind(path).expect("a socket can be made");
        socket.set_read_timeout(Some(LOOK_INTERVAL)).expect("a timeout");
        let (kept, ends) = (Kept::default(), Arc::new(AtomicBool::new(false)));
        let listens = std::thread::spawn({
            let (kept, ends) = (kept.clone(), ends.clone());
            move || {
                while !ends.load(Ordering::Relaxed) {
                    hear(&socket, &kept);
                }
            }
        });
        Keeper { path: path.to_owned(), kept, ends, listens: Some(listens) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn names(&self) -> Vec<String> {
        lock(&self.kept).iter().map(|(name, _)| name.clone()).collect()
    }

    /// Copies of what is kept, for a daemon that is started.
    pub fn copies(&self) -> Vec<(String, OwnedFd)> {
        lock(&self.kept).iter().map(|(name, fd)| (name.clone(), fd.try_clone().expect("a copy"))).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(listens) = self.listens.take() {
            let _ = listens.join();
        }
    }
}

fn hear(socket: &UnixDatagram, kept: &Kept) {
    let (mut text, mut space) = ([0; 4096], nix::cmsg_space!([RawFd; 4]));
    let mut into = [IoSliceMut::new(&mut text)];
    let heard = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let Ok(heard) = heard else { return };
    let mut fds = Vec::new();
    for part in heard.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(came) = part {
            // SAFETY: the kernel has just made them for this process, and nobody else knows them.
            fds.extend(came.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let bytes = heard.bytes;
    let said = String::from_utf8_lossy(&text[..bytes]).into_owned();
    let name = said.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
    if said.lines().any(|line| line == "FDSTORE=1") {
        lock(kept).extend(fds.into_iter().map(|fd| (name.clone(), fd)));
    } else if said.lines().any(|line| line == "FDSTOREREMOVE=1") {
        lock(kept).retain(|(its, _)| *its != name);
    }
    // What came with anything else is closed: BARRIER=1 waits for that.
}

fn lock(kept: &Kept) -> std::sync::MutexGuard<'_, Vec<(String, OwnedFd)>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
