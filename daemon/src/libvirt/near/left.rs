//! What a daemon before this one has left: libvirts that wait for what becomes of a guest of theirs.
//!
//! The service manager has kept their connections, and what was asked is on record. The destination is asked what became of it: then that is
//! said on the connection, or it is closed, and libvirt continues the guest. A connection without a record is closed: its Finish never left.

use super::asked::{
    Asked, Known, NAME, ask, cannot_be_told, doubt, ends_soon, has_ended, over, said, until_settled, untold,
};
use crate::api::wire::{Resolution, Role};
use crate::daemon::Daemon;
use crate::id::Id;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::records::RecordError;
use crate::registry::Entry;
use hikyaku_qemu::libvirt::{PONG, Part, Reader};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Until libvirt takes a few bytes that it waits for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// To be called before anybody is let in.
pub async fn take_up(daemon: &Rc<Daemon>, kept: Vec<(String, OwnedFd)>) -> Result<(), RecordError> {
    let mut callers: Vec<_> = kept
        .into_iter()
        .filter_map(|(name, caller)| Some((named(&name)?, Caller::of(name, caller)?)))
        .collect();
    for id in daemon.asked.ids().await? {
        let caller = callers.iter().position(|((_, of), _)| *of == id).map(|at| callers.remove(at).1);
        let daemon = daemon.clone();
        match daemon.asked.get::<Asked>(id).await {
            Ok(None) => callers.extend(caller.map(|caller| ((daemon.records.incarnation(), id), caller))),
            Ok(Some(asked)) => {
                tracing::warn!(guest = %asked.guest, %id, is_held = caller.is_some(), "libvirt waited for what becomes of it; taking it up");
                let entry =
                    daemon.registry.take_up(id, &asked.guest, Role::Source, &asked.peer, Phase::Handed);
                entry.set_outcome(doubt(&asked.guest, &asked.peer, "this daemon has just been started"));
                let caller = caller.map(|caller| caller.stream);
                tokio::task::spawn_local(async move { finish(&daemon, &entry, &asked, caller).await });
            }
            Err(error) => hold_unknown(&daemon, id, caller, &error.to_string()),
        }
    }
    for ((incarnation, id), caller) in callers {
        if incarnation == daemon.records.incarnation() {
            // Its Finish never left: libvirt here continues the guest.
            caller.end(daemon);
        } else {
            let why = "what was on record of it here is lost";
            hold_unknown(daemon, id, Some(caller), why);
        }
    }
    Ok(())
}

/// Whoever asked, as the manager has kept him.
struct Caller {
    name: String,
    stream: UnixStream,
}

impl Caller {
    fn of(name: String, caller: OwnedFd) -> Option<Caller> {
        let caller = std::os::unix::net::UnixStream::from(caller);
        let stream = caller.set_nonblocking(true).and_then(|()| UnixStream::from_std(caller));
        Some(Caller { name, stream: stream.ok()? })
    }

    /// The manager has a copy, which would hold it open.
    fn end(self, daemon: &Daemon) {
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Write);
        daemon.keeper.let_go(&self.name);
    }
}

/// Of a guest of which nobody here knows which it is: a person has to say what became of it.
fn hold_unknown(daemon: &Rc<Daemon>, id: Id, caller: Option<Caller>, why: &str) {
    const GUEST: &str = "a guest of libvirt's";
    tracing::error!(%id, %why, is_held = caller.is_some(), "libvirt waits for what becomes of a guest, and nobody knows which");
    let entry = daemon.registry.take_up(id, GUEST, Role::Source, "its peer", Phase::Handed);
    let desc =
        format!("libvirt at a peer was asked to run a guest, and which and what it did is not known: {why}");
    entry.set_outcome(Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, desc).advise(
        "Find out which: virsh list --all has it paused here. If it runs at the peer, end the copy here: virsh destroy; hikyaku resolve ID --there. If not, and never will: hikyaku resolve ID --here",
    ));
    let daemon = daemon.clone();
    tokio::task::spawn_local(async move {
        let mut caller = caller;
        let resolution = loop {
            tokio::select! {
                resolution = entry.resolved() => break resolution,
                () = hold(caller.as_mut().map(|caller| &mut caller.stream)) => caller = None,
            }
        };
        let (phase, ending, guest) = match resolution {
            Resolution::Here => (Phase::Failed, Ending::Failed, Whereabouts::AsItWas),
            Resolution::There => (Phase::Moved, Ending::Moved, Whereabouts::LeftToDestination),
        };
        entry.finish(phase, Outcome::new(ending, guest, "as somebody has said"));
        if let Some(mut caller) = caller {
            if resolution == Resolution::There {
                hold(Some(&mut caller.stream)).await;
            }
            caller.end(&daemon);
        }
        if let Err(error) = daemon.asked.set_aside(id).await {
            tracing::warn!(%error, "the next daemon asks once more");
        }
    });
}

async fn finish(daemon: &Rc<Daemon>, entry: &Arc<Entry>, asked: &Asked, mut caller: Option<UnixStream>) {
    let known = match asked.resolved {
        Some(resolution) => Err(resolution),
        None => {
            let mut asking = std::pin::pin!(ask(daemon, entry, entry.id, asked));
            loop {
                tokio::select! {
                    known = &mut asking => break Ok(known),
                    resolution = entry.resolved() => break Err(resolution),
                    () = hold(caller.as_mut()) => caller = None,
                }
            }
        }
    };
    if asked.resolved.is_none()
        && let Err(resolution) = known
    {
        said(daemon, entry.id, asked, resolution).await;
    }
    let (peer, guest) = (&asked.peer, &asked.guest);
    let moved = |whereabouts, desc: String| (Phase::Moved, Outcome::new(Ending::Moved, whereabouts, desc));
    let (rest, (phase, outcome)) = match known {
        Ok(Known::Runs { name, id }) => match answer(caller.as_mut(), asked.answer(&name, id)).await {
            Heard::Told => {
                let desc = format!("moved to {peer}, by libvirt");
                (Rest::Heard, moved(Whereabouts::RunsAtDestination, desc))
            }
            Heard::CannotBe => (Rest::Held, (Phase::Moved, cannot_be_told(guest, peer))),
            Heard::Gone if ends_soon(asked.qemu).await => {
                (Rest::None, moved(Whereabouts::RunsAtDestination, format!("moved to {peer}, by libvirt")))
            }
            // Nobody has kept libvirt here from taking it for one that failed.
            Heard::Gone => (Rest::None, (Phase::Failed, untold(entry.id, guest, peer))),
        },
        Ok(Known::Not) => {
            let (desc, whereabouts) = match (&caller, asked.qemu) {
                (_, Some(qemu)) if !qemu.is_there() => {
                    ("and its QEMU here has ended", Whereabouts::EndedAtSource)
                }
                (Some(_), _) => ("the one here continues it", Whereabouts::RunsAtSource),
                (None, _) => (
                    "the one here was gone, and continues it, or has left it paused (virsh domstate, virsh resume)",
                    Whereabouts::AsItWas,
                ),
            };
            let desc = format!("libvirt at {peer} has not run it; {desc}");
            (Rest::None, (Phase::Failed, Outcome::new(Ending::Failed, whereabouts, desc)))
        }
        Err(Resolution::There) => {
            let desc = format!("given up here, for somebody has said that it is {peer}'s");
            (Rest::Held, moved(Whereabouts::LeftToDestination, desc))
        }
        Err(Resolution::Here) => {
            let desc = "libvirt here continues it, as somebody has said";
            let outcome = Outcome::new(Ending::Failed, Whereabouts::RunsAtSource, desc);
            (Rest::None, (Phase::Failed, outcome))
        }
    };
    let is_told = outcome.guest != Whereabouts::AtBoth;
    if !is_told {
        entry.unresolve();
    }
    entry.finish(phase, outcome);
    match (rest, &mut caller) {
        (Rest::Heard, Some(caller)) => answer_pings(caller, true).await,
        (Rest::Held, Some(caller)) => tokio::select! {
            () = hold(Some(caller)) => {}
            () = has_ended(asked.qemu) => {}
        },
        _ => {}
    }
    if let Some(caller) = caller {
        // The manager has a copy, which would hold it open.
        let _ = shutdown(caller.as_raw_fd(), Shutdown::Write);
    }
    if !is_told {
        until_settled(entry).await;
    }
    over(daemon, entry.id, peer).await;
}

/// The incarnation, and the carriage.
fn named(name: &str) -> Option<(Id, Id)> {
    let (incarnation, carriage) = name.strip_prefix(NAME)?.split_once('-')?;
    Some((incarnation.parse().ok()?, carriage.parse().ok()?))
}

/// How long libvirt's connection is there, once everything is said.
enum Rest {
    /// It is ended: libvirt continues the guest.
    None,
    /// Until libvirt closes it, which it does.
    Heard,
    /// Until libvirt closes it, or has nothing left to continue.
    Held,
}

enum Heard {
    Told,
    /// The answer is not known.
    CannotBe,
    /// libvirt is not there.
    Gone,
}

async fn answer(caller: Option<&mut UnixStream>, answer: Option<Vec<u8>>) -> Heard {
    match (caller, answer) {
        (None, _) => Heard::Gone,
        (Some(_), None) => Heard::CannotBe,
        (Some(caller), Some(answer)) => {
            match tokio::time::timeout(ANSWER_TIMEOUT, caller.write_all(&answer)).await {
                Ok(Ok(())) => Heard::Told,
                _ => Heard::Gone,
            }
        }
    }
}

/// Until who asked is gone, whatever else he says. Never, if nobody is there.
async fn hold(caller: Option<&mut UnixStream>) {
    match caller {
        Some(caller) => answer_pings(caller, false).await,
        None => std::future::pending().await,
    }
}

/// Until who asked is gone, or, `heard`, asks something else.
async fn answer_pings(caller: &mut UnixStream, heard: bool) {
    let (mut reader, mut buffer) = (Reader::default(), [0; 4096]);
    loop {
        let Ok(got @ 1..) = caller.read(&mut buffer).await else { return };
        let (mut pings, mut others) = (0, false);
        let read = reader.push(
            &buffer[..got],
            |_| false,
            |part| match part {
                Part::Ping => pings += 1,
                Part::Bytes(_) | Part::Packet(..) => others = true,
            },
        );
        if heard && (read.is_err() || others) {
            return;
        }
        for _ in 0..pings {
            if caller.write_all(&PONG).await.is_err() {
                return;
            }
        }
    }
}
