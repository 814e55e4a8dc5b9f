//! What the service manager keeps for us while we are not there: sockets that must not be closed because this daemon ends.
//!
//! ```text
//!  FDSTORE=1, FDNAME=… ──(NOTIFY_SOCKET)──▶ the manager keeps a copy ──(LISTEN_FDS, LISTEN_FDNAMES)──▶ the next daemon
//!  FDSTOREREMOVE=1, FDNAME=… ──▶ it is kept no longer
//! ```
//!
//! systemd keeps them for a unit with `FileDescriptorStoreMax=` and `NotifyAccess=main`.

use crate::sys;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use nix::unistd::pipe2;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// The manager has taken what it was sent when it has closed what came behind it. One that does not, is old, or stands.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_millis(20);

/// Who keeps sockets for this process, if anybody does.
#[derive(Debug, Default, Clone)]
pub struct Keeper(Option<PathBuf>);

impl Keeper {
    pub fn of_this_process() -> Keeper {
        Keeper(std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from))
    }

    /// On `Ok` the next daemon gets it by this name, as long as its other end lives; or there is nobody who keeps it.
    pub async fn keep(&self, name: &str, what: BorrowedFd<'_>) -> io::Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        // Its queue may be full for a moment.
        let deadline = tokio::time::Instant::now() + TAKEN_WITHIN;
        loop {
            match self.say(&format!("FDSTORE=1\nFDNAME={name}"), Some(what)) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(SAY_AGAIN).await;
                }
                said => break said?,
            }
        }
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        self.say("BARRIER=1", Some(theirs.as_fd()))?;
        drop(theirs);
        let mut ours = Receiver::from_owned_fd(ours)?;
        // Nothing is ever written to it.
        let mut nothing = [0; 1];
        let closed = ours.read(&mut nothing);
        match tokio::time::timeout(TAKEN_WITHIN, closed).await {
            Ok(closed) => closed.map(drop),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the service manager does not say that it keeps it",
            )),
        }
    }

    pub fn let_go(&self, name: &str) {
        if let Err(error) = self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None) {
            tracing::debug!(%error, "the service manager keeps a socket that nobody needs");
        }
    }

    fn say(&self, what: &str, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(path)?,
        };
        let socket = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        let fds: Vec<_> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(what.as_bytes())],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            Some(&address),
        )?;
        Ok(())
    }
}

/// What was kept for this process, by name. To be called once, before anything else is opened.
pub fn kept() -> Vec<(String, OwnedFd)> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let fds = sys::passed_descriptors(number("LISTEN_FDS").unwrap_or(0));
    names.split(':').zip(fds).filter_map(|(name, fd)| Some((name.to_owned(), fd?))).collect()
}
