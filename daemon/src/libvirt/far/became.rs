//! What became of a guest that libvirt here was asked to let run, for a source that has not heard it.
//!
//! ```text
//!  Open ──Finish──▶ Asking ──on record──▶ Asked: handed to libvirt ──▶ its answer, on record
//!    │                 └──it is not, or nobody waits for that any longer──▶ Closed
//!    └──the source asks, or the carriage is over, before it is on record──▶ Closed: a Finish that comes later goes no further
//! ```
//! So *never asked* is said only of a guest that libvirt will never be asked to let run. Of one that it was asked for without that
//! its answer is on record, its domain here says what came of it.

use crate::daemon::Daemon;
use crate::id::Id;
use crate::libvirt::tap::{Finishing, Gate, Released};
use crate::protocol::PROTOCOL;
use crate::protocol::libvirt::{Became, WhatBecame};
use crate::records::{RecordError, Shelf};
use hikyaku_qemu::libvirt::{Answer, Uuid};
use hikyaku_transport::PeerName;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use tokio::process::Command;

/// A disk that does not take the record by then does not get it.
const PUT_TIMEOUT: Duration = Duration::from_secs(10);
const GET_TIMEOUT: Duration = Duration::from_secs(10);
/// virsh is asked for no longer.
const VIRSH_TIMEOUT: Duration = Duration::from_secs(10);

/// How far Finish has come here, of one carriage. It is there as long as one may come.
#[derive(Debug, Default)]
pub struct Finish {
    door: Cell<Door>,
    /// Connections by which it comes, or came.
    guards: Cell<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Door {
    #[default]
    Open,
    Asking,
    Asked,
    Closed,
}

impl Finish {
    /// One that is not on record goes no further.
    pub fn close(&self) {
        if self.door.get() != Door::Asked {
            self.door.set(Door::Closed);
        }
    }
}

/// A Finish that was handed to libvirt here, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    pub peer: String,
    pub guest: String,
    /// Of its domain.
    pub uuid: Option<String>,
    /// What libvirt has answered: that it runs, or that it does not.
    pub runs: Option<bool>,
}

/// Puts Finish on record before libvirt here is asked.
pub struct Guard {
    pub shelf: Shelf,
    pub carriage: Id,
    pub peer: PeerName,
    pub guest: String,
    finish: Rc<Finish>,
    /// It is this one's Finish that is put on record.
    asking: Cell<bool>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish.guards.update(|guards| guards - 1);
        if self.asking.get() {
            self.finish.close();
        }
    }
}

impl Guard {
    pub fn new(shelf: Shelf, carriage: Id, peer: PeerName, guest: String, finish: Rc<Finish>) -> Guard {
        finish.guards.update(|guards| guards + 1);
        Guard { shelf, carriage, peer, guest, finish, asking: Cell::new(false) }
    }

    fn delivered(&self, uuid: Option<Uuid>, runs: Option<bool>) -> Delivered {
        let uuid = uuid.map(|uuid| uuid.to_string());
        Delivered { peer: self.peer.as_str().to_owned(), guest: self.guest.clone(), uuid, runs }
    }
}

impl Gate for Guard {
    async fn before(&self, finishing: Finishing) -> io::Result<()> {
        if self.finish.door.get() != Door::Open {
            return Err(io::Error::other("it was given up, or asked before: libvirt here is not asked"));
        }
        self.finish.door.set(Door::Asking);
        self.asking.set(true);
        let delivered = self.delivered(finishing.uuid, None);
        let put =
            self.shelf.put_within(self.carriage, &delivered, PUT_TIMEOUT).await.map_err(io::Error::other);
        self.asking.set(false);
        if put.is_ok() && self.finish.door.get() == Door::Asking {
            self.finish.door.set(Door::Asked);
            return Ok(());
        }
        self.finish.close();
        // What is on record of it, if anything is, is not what comes of it. Nobody waits for a disk that hangs.
        let (shelf, carriage) = (self.shelf.clone(), self.carriage);
        tokio::task::spawn_local(async move { shelf.take_away(carriage).await });
        put.and_then(|()| Err(io::Error::other("it was given up: libvirt here is not asked")))
    }

    /// What libvirt here was asked it does; nobody is held.
    async fn released(&self) -> Released {
        Released::Close
    }

    async fn freed(&self) {}
}

/// libvirt here has answered.
pub async fn answered(shelf: &Shelf, carriage: Id, answer: Answer) {
    let noted = async {
        let Some(delivered) = shelf.get::<Delivered>(carriage).await? else { return Ok(()) };
        shelf.put(carriage, &Delivered { runs: Some(answer == Answer::Done), ..delivered }).await
    };
    let noted: Result<(), RecordError> = noted.await;
    if let Err(error) = noted {
        tracing::warn!(%error, "what libvirt has answered is not on record: its domain says it");
    }
}

pub async fn answer(daemon: &Daemon, peer: &PeerName, what: &WhatBecame) -> Result<Became, String> {
    if what.protocol != PROTOCOL {
        return Err(format!("this daemon speaks protocol {PROTOCOL}, the source {}", what.protocol));
    }
    let unclear = |why: &str| Ok(Became::Unclear { why: why.to_owned() });
    if what.incarnation != daemon.records.incarnation() {
        return unclear("what was on record there at that time is lost");
    }
    let finish = daemon.carriages.finish(what.carriage, peer);
    // Whoever comes from now on is turned back.
    finish.iter().for_each(|finish| finish.close());
    let door = finish.as_ref().map(|finish| finish.door.get());
    if door == Some(Door::Closed) {
        return Ok(Became::NeverAsked);
    }
    let found = tokio::time::timeout(GET_TIMEOUT, daemon.delivered.get::<Delivered>(what.carriage)).await;
    let found = found.map_err(|_| "the disk there does not answer".to_owned())?;
    let delivered = match (found.map_err(|error| error.to_string())?, door) {
        (Some(delivered), _) if delivered.peer == peer.as_str() => delivered,
        (Some(_), _) => return unclear("libvirt there was asked to run it for a host of another name"),
        (None, Some(_)) => return unclear("its source has said before that it would not ask"),
        (None, None) => return Ok(Became::NeverAsked),
    };
    let is_waited_for = finish.is_some_and(|finish| finish.guards.get() > 0);
    match delivered.runs {
        Some(false) => Ok(Became::Failed),
        None if is_waited_for => Ok(Became::Pending),
        runs => {
            let Some(uuid) = delivered.uuid else { return unclear("its domain is not known there") };
            let domain = Domain { socket: &daemon.config.libvirt.socket, uuid: &uuid };
            let state = domain.ask("domstate").await;
            match (state.as_deref(), runs) {
                (Ok("running"), _) | (_, Some(true)) => {
                    let name = domain.ask("domname").await.unwrap_or(delivered.guest);
                    let id = domain.ask("domid").await.ok().and_then(|id| id.parse().ok()).unwrap_or(-1);
                    Ok(Became::Runs { name, id })
                }
                (Ok(state), _) => unclear(&format!("libvirt there was asked to run it, and it is {state}")),
                (Err(why), _) => {
                    unclear(&format!("libvirt there was asked to run it, and virsh says: {why}"))
                }
            }
        }
    }
}

struct Domain<'a> {
    socket: &'a Path,
    uuid: &'a str,
}

impl Domain<'_> {
    async fn ask(&self, what: &str) -> Result<String, String> {
        let uri = format!("qemu+unix:///system?socket={}", self.socket.display());
        let asked = Command::new("virsh")
            .args(["-q", "-c", &uri, what, self.uuid])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(VIRSH_TIMEOUT, asked)
            .await
            .map_err(|_| format!("nothing within {} s", VIRSH_TIMEOUT.as_secs()))?
            .map_err(|error| format!("it cannot be run: {error}"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }
}

/// A source has heard it, and will not ask again.
pub async fn over(shelf: &Shelf, peer: &str, carriage: Id) {
    let forgotten = match shelf.get::<Delivered>(carriage).await {
        Ok(Some(delivered)) if delivered.peer == peer => shelf.take_away(carriage).await,
        other => other.map(drop),
    };
    if let Err(error) = forgotten {
        tracing::warn!(%error, %carriage, "a record that nobody needs is kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Records;

    struct Rig {
        shelf: Shelf,
        finish: Rc<Finish>,
        guard: Guard,
        _state: tempfile::TempDir,
    }

    const FINISHING: Finishing = Finishing { serial: 6, uuid: None };

    fn rig() -> Rig {
        let state = tempfile::tempdir().unwrap();
        let shelf = Records::open(state.path()).unwrap().shelf("delivered").unwrap();
        let finish = Rc::new(Finish::default());
        let guard = Guard::new(shelf.clone(), Id([7; 16]), "tokyo".into(), "web".into(), finish.clone());
        Rig { shelf, finish, guard, _state: state }
    }

    fn within<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(test));
    }

    async fn is_on_record(shelf: &Shelf) -> bool {
        shelf.get::<Delivered>(Id([7; 16])).await.unwrap().is_some()
    }

    #[test]
    fn libvirt_is_asked_once_and_only_when_that_is_on_record() {
        within(async {
            let rig = rig();
            rig.guard.before(FINISHING).await.unwrap();
            assert!(is_on_record(&rig.shelf).await);
            rig.finish.close();
            assert_eq!(rig.finish.door.get(), Door::Asked, "what has gone on is not undone");
            rig.guard.before(FINISHING).await.unwrap_err();
            assert_eq!(rig.finish.door.get(), Door::Asked, "another one does not undo it");
        });
    }

    #[test]
    fn a_source_that_was_told_that_libvirt_was_never_asked_was_told_the_truth() {
        within(async {
            let rig = rig();
            rig.finish.close();
            rig.guard.before(FINISHING).await.unwrap_err();
            assert!(!is_on_record(&rig.shelf).await);
        });
    }

    /// The carriage is over, or the source asks, while the disk is at it.
    #[test]
    fn what_is_closed_while_it_is_put_on_record_goes_no_further() {
        within(async {
            let rig = rig();
            let before = async { rig.guard.before(FINISHING).await };
            let close = async {
                while rig.finish.door.get() == Door::Open {
                    tokio::task::yield_now().await;
                }
                rig.finish.close();
            };
            let (before, ()) = tokio::join!(before, close);
            before.unwrap_err();
            assert_eq!(rig.finish.door.get(), Door::Closed);
        });
    }

    #[test]
    fn a_connection_that_ends_while_it_is_put_on_record_has_asked_nobody() {
        within(async {
            let Rig { guard, finish, .. } = rig();
            let asking = tokio::task::spawn_local(async move { guard.before(FINISHING).await });
            while finish.door.get() == Door::Open {
                tokio::task::yield_now().await;
            }
            asking.abort();
            assert!(asking.await.is_err());
            assert_eq!((finish.door.get(), finish.guards.get()), (Door::Closed, 0));
        });
    }
}
