//! libvirt at the destination is asked to let the guest run, and this daemon may end before the answer is here.
//!
//! libvirt here takes a connection that ends for a Finish that failed, and continues the guest. So before Finish leaves, the service manager keeps
//! the connection of who asked, and what was asked is on record. The next daemon finds both (`left.rs`).

use super::Stop;
use super::carrier::stopped;
use crate::api::wire::Resolution;
use crate::awaited;
use crate::daemon::Daemon;
use crate::fail;
use crate::id::Id;
use crate::libvirt::tap::{Finishing, Gate, Released};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::process::ProcessId;
use crate::protocol::libvirt::{Became, WhatBecame};
use crate::protocol::{self, Hello, Note, PROTOCOL};
use crate::registry::Entry;
use hikyaku_qemu::libvirt::{Answer, Uuid, finished};
use hikyaku_transport::SessionId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// Between two questions, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A disk that does not take the record by then does not get it: libvirt, whose keepalive is not answered meanwhile, would give up by itself.
const PUT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a person has said is acted on, whether it is on record by then or not.
const SAID_TIMEOUT: Duration = Duration::from_secs(2);
/// Until the guest's QEMU here is found.
const FOUND_WITHIN: Duration = Duration::from_secs(2);
/// Until a QEMU whose guest was moved has ended, most often.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub guest: String,
    pub peer: String,
    /// The peer's when the carriage was begun.
    pub incarnation: Id,
    pub serial: u32,
    pub uuid: Option<String>,
    /// The guest's, here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<ProcessId>,
    /// What somebody has said became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolution>,
}

impl Asked {
    /// What libvirt there says, or would have said, of a guest that runs.
    pub fn answer(&self, name: &str, id: i32) -> Option<Vec<u8>> {
        let uuid: Uuid = self.uuid.as_deref()?.parse().ok()?;
        Some(finished(self.serial, name, uuid, id))
    }
}

/// What became of a guest, as the destination says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Runs { name: String, id: i32 },
    Not,
}

/// Holds Finish until it survives this daemon, and whoever asked until it is known what came of it.
pub(super) struct Holding {
    pub daemon: Rc<Daemon>,
    pub entry: Arc<Entry>,
    pub peer: String,
    pub incarnation: Id,
    /// Whose call it is.
    pub caller: OwnedFd,
    /// One Finish has come, of those of this carriage.
    pub first: Rc<Cell<bool>>,
    pub stop: watch::Receiver<Stop>,
    pub known: watch::Receiver<Option<Known>>,
    /// Something is kept, or on record.
    pub begun: Cell<bool>,
    /// It is on record, and goes on.
    pub asked: RefCell<Option<Asked>>,
    pub told: UnboundedSender<Asked>,
}

impl Gate for Holding {
    async fn before(&self, finishing: Finishing) -> io::Result<()> {
        if self.first.replace(true) {
            return Err(io::Error::other("a second Finish in one migration"));
        }
        let uuid = finishing.uuid.map(|uuid| uuid.to_string());
        // A process whose memory is on a disk that hangs may hold up whoever looks at it.
        let qemu = super::qemu_of(&self.daemon, &self.entry.guest, uuid.clone());
        let qemu = tokio::time::timeout(FOUND_WITHIN, qemu).await.ok().flatten();
        let asked = Asked {
            qemu,
            uuid,
            guest: self.entry.guest.clone(),
            peer: self.peer.clone(),
            incarnation: self.incarnation,
            serial: finishing.serial,
            resolved: None,
        };
        self.begun.set(true);
        if let Err(error) =
            self.daemon.keeper.keep(&name(&self.daemon, self.entry.id), self.caller.as_fd()).await
        {
            tracing::warn!(id = %self.entry.id.short(), %error, "the service manager does not keep libvirt's connection: it would end with this daemon");
        }
        fail::point("libvirt.keeping");
        let put = self.daemon.asked.put_within(self.entry.id, &asked, PUT_TIMEOUT);
        put.await.map_err(io::Error::other)?;
        fail::point("libvirt.asked");
        // It has given the migration up by itself, and continues the guest: nobody is to run it elsewhere.
        if has_gone(&self.caller) {
            return Err(io::Error::other("libvirt here has not waited"));
        }
        let _ = self.told.send(asked.clone());
        self.asked.replace(Some(asked));
        Ok(())
    }

    async fn released(&self) -> Released {
        let mut known = self.known.clone();
        let known = async {
            match known.wait_for(Option::is_some).await.map(|known| known.clone()) {
                Ok(Some(known)) => known,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            known = known => match known {
                Known::Not => Released::Close,
                Known::Runs { name, id } => {
                    let asked = self.asked.borrow().clone();
                    let qemu = asked.as_ref().and_then(|asked| asked.qemu);
                    match asked.and_then(|asked| asked.answer(&name, id)) {
                        Some(answer) => Released::Answer(answer),
                        // Nobody can answer for a guest whose UUID was not seen. It is held until a person has ended the copy here.
                        None => {
                            has_ended(qemu).await;
                            Released::Close
                        }
                    }
                }
            },
            () = stopped(&self.stop, Stop::All) => Released::Close,
        }
    }

    async fn freed(&self) {
        let qemu = self.asked.borrow().as_ref().and_then(|asked| asked.qemu);
        has_ended(qemu).await;
    }
}

impl Holding {
    /// The connection is over. Of a Finish that has not gone on nobody needs to know anything.
    pub fn tidy(&self) {
        if self.begun.get() && self.asked.borrow().is_none() {
            let (daemon, carriage, peer) = (self.daemon.clone(), self.entry.id, self.peer.clone());
            // Nobody waits for a disk that hangs.
            tokio::task::spawn_local(async move { over(&daemon, carriage, &peer).await });
        }
    }
}

fn has_gone(caller: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(caller.as_fd(), PollFlags::empty())];
    // What is asked for without being asked for: that nobody is there any more.
    poll(&mut asked, PollTimeout::ZERO).is_ok() && asked[0].revents().is_some_and(|seen| !seen.is_empty())
}

/// Under which the manager keeps it. A daemon of another incarnation has lost what is on record of it.
fn name(daemon: &Daemon, carriage: Id) -> String {
    format!("{NAME}{}-{carriage}", daemon.records.incarnation())
}

pub(super) const NAME: &str = "finish-";

/// Nobody will ask what came of it, here or there.
pub(super) async fn over(daemon: &Daemon, carriage: Id, peer: &str) {
    // While there is a record, there is the connection.
    if let Err(error) = daemon.asked.take_away(carriage).await {
        tracing::error!(%error, "until it is removed, a restart of this daemon looks into this migration again");
        return;
    }
    daemon.keeper.let_go(&name(daemon, carriage));
    awaited::tell(&daemon.node, peer, &Note::Over { migration: carriage });
}

/// Asks the destination until it knows. `entry`: is told what is heard meanwhile.
pub async fn ask(daemon: &Daemon, entry: &Entry, carriage: Id, asked: &Asked) -> Known {
    let (mut wait, mut said) = (FIRST_WAIT, String::new());
    loop {
        let answer = ask_once(daemon, carriage, asked).await;
        if answer.is_ok() {
            entry.link_up();
        }
        let why = match answer {
            Ok(Became::NeverAsked | Became::Failed) => return Known::Not,
            Ok(Became::Runs { name, id }) => return Known::Runs { name, id },
            Ok(Became::Pending) => format!("libvirt at {} is at it", asked.peer),
            Ok(Became::Unclear { why }) | Err(why) => why,
        };
        if why != said {
            entry.set_outcome(doubt(&asked.guest, &asked.peer, &why));
            tracing::warn!(guest = %asked.guest, peer = %asked.peer, %why, "what became of a guest that libvirt moves; asking again");
            said = why;
        }
        tokio::time::sleep(wait).await;
        wait = LONGEST_WAIT.min(wait * 2);
    }
}

/// What is said as long as nobody knows.
pub fn doubt(guest: &str, to: &str, why: &str) -> Outcome {
    let desc = format!("libvirt at {to} was asked to run {guest}, and what it did is not known: {why}");
    Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, desc).advise(format!(
        "{to} is asked until it says. If it cannot: look there, virsh domstate {guest}. If it runs there, end the copy here: virsh destroy {guest}; hikyaku resolve ID --there. If not, and never will: hikyaku resolve ID --here"
    ))
}

async fn ask_once(daemon: &Daemon, carriage: Id, asked: &Asked) -> Result<Became, String> {
    let link = daemon.link_to(&asked.peer).await.map_err(|error| error.to_string())?;
    let what = WhatBecame { protocol: PROTOCOL, carriage, incarnation: asked.incarnation };
    let hello = protocol::encode(&Hello::WhatBecame(what)).map_err(|error| error.to_string())?;
    let answer = link.ask(SessionId(Id::random().0), hello).await.map_err(|error| error.to_string())?;
    protocol::decode(&answer).map_err(|error| error.to_string())
}

/// A guest runs there, and libvirt here waits for an answer that nobody can give.
pub(super) fn cannot_be_told(guest: &str, peer: &str) -> Outcome {
    let desc =
        format!("moved to {peer}, by libvirt; the one here cannot be told so, and its connection is held");
    Outcome::new(Ending::Moved, Whereabouts::RunsAtDestination, desc)
        .advise(format!("End the copy here: virsh destroy {guest}"))
}

/// A guest runs there, and libvirt here is gone from where it could have been told so.
pub(super) fn untold(carriage: Id, guest: &str, peer: &str) -> Outcome {
    let desc =
        format!("{guest} runs at {peer}, and libvirt here was not told so: it may have continued it here");
    Outcome::new(Ending::Failed, Whereabouts::AtBoth, desc).advise(format!(
        "Look at both hosts: virsh domstate {guest}. If it runs here, too, end one of the two: virsh destroy {guest}, and check its disks. Then say which one is left: hikyaku resolve {} --here or --there",
        carriage.short()
    ))
}

/// Shown, by daemons after this one too, until somebody says that it is not so any more.
pub(super) async fn until_settled(entry: &Entry) {
    let left = match entry.resolved().await {
        Resolution::Here => Whereabouts::AsItWas,
        Resolution::There => Whereabouts::LeftToDestination,
    };
    let desc = "it may have been at both, and somebody has seen to it that it is at one";
    entry.set_outcome(Outcome::new(Ending::Failed, left, desc));
}

/// A daemon that comes after us does not ask any more.
pub(super) async fn said(daemon: &Daemon, carriage: Id, asked: &Asked, resolution: Resolution) {
    let asked = Asked { resolved: Some(resolution), ..asked.clone() };
    if let Err(error) = daemon.asked.put_within(carriage, &asked, SAID_TIMEOUT).await {
        tracing::error!(%error, "what was said of the guest is not on record");
    }
}

/// libvirt was told before it went away, and ends the copy here; or a person has.
pub(super) async fn ends_soon(qemu: Option<ProcessId>) -> bool {
    qemu.is_some() && tokio::time::timeout(ENDS_WITHIN, has_ended(qemu)).await.is_ok()
}

/// Until there is no copy here any more that libvirt could continue. Never, if it was not seen.
pub(super) async fn has_ended(qemu: Option<ProcessId>) {
    while qemu.is_none_or(|qemu| qemu.is_there()) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) fn answer_of(known: &Known) -> Answer {
    match known {
        Known::Runs { .. } => Answer::Done,
        Known::Not => Answer::Failed,
    }
}
