//! A carriage at its source: libvirt and QEMU connect here, and each connection is made once more at the destination.
//!
//! ```text
//!  open ─▶ nobody has come ─▶ libvirt there prepares ─▶ disks, memory ─▶ the guest stands ─▶ Finish is answered ─▶ closed
//! ```

mod asked;
mod carrier;
pub mod conduit;
pub mod landing;
pub mod left;
pub mod ram;
mod seen;

use super::directory::{self, Directory};
use super::sockets;
use super::tap::Passed;
use super::watch::{AskError, ask_peer};
use crate::api::wire::{CarryArguments, Carrying, Resolution, Role};
use crate::daemon::{Daemon, check_limit, check_name};
use crate::id::Id;
use crate::mailbox::{FromPeer, Mailbox};
use crate::outage;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::process::ProcessId;
use crate::protocol::libvirt::{Carried, Carry, Place};
use crate::protocol::{self, Hello, PROTOCOL, Refusal};
use crate::registry::Entry;
use crate::report::Report;
use crate::source::sharing;
use asked::{Asked, Known};
use carrier::Carrier;
use conduit::ConduitError;
use hikyaku_qemu::libvirt::Answer;
use hikyaku_transport::{OpenError, SessionId, TxSession};
use seen::Seen;
use std::cell::Cell;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// Nobody waits longer to be told that a peer is not there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(4);
/// A carriage that nobody uses is not kept.
const UNUSED_FOR: Duration = Duration::from_secs(600);
/// One that begins with the first connection has ended when there is none for so long.
const LEFT_FOR: Duration = Duration::from_secs(20);
/// Between the last word on a guest and the end of the connections that brought it.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Connections of one carriage: disks have one each, and a guest's memory may come in several.
const CONDUITS_MOST: usize = 64;
/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// From the waiting QEMU's last word until libvirt has ended the one here, or keeps it.
const LIBVIRT_DECIDES: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Makes the sockets by which libvirt moves the guest. `Err`: nothing was made.
pub async fn open(daemon: &Rc<Daemon>, arguments: CarryArguments) -> Result<Carrying, Outcome> {
    let root = &daemon.config.libvirt.directory;
    let carriage = begin(daemon, arguments, Way::Sockets(root)).await?;
    let id = carriage.entry.id;
    let carrying = Carrying { id, directory: directory::path(root, id), rpc: carriage.carried.rpc };
    tokio::task::spawn_local(carriage.run());
    Ok(carrying)
}

/// How libvirt and QEMU come to a carriage.
enum Way<'a> {
    /// By sockets in a directory below this one.
    Sockets(&'a Path),
    /// By the peer's landing.
    Landing(UnboundedReceiver<Came>),
}

async fn begin(daemon: &Rc<Daemon>, arguments: CarryArguments, way: Way<'_>) -> Result<Carriage, Outcome> {
    check_name(&arguments.guest)?;
    check_limit(arguments.limit_bytes_per_s)?;
    if daemon.config.peer(&arguments.to).is_none() {
        let desc = format!("no peer \"{}\" in the configuration", arguments.to);
        return Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc));
    }
    let to = Some(arguments.to.as_str());
    let entry = daemon.registry.enter(Id::random(), &arguments.guest, Role::Source, to, Phase::Preparing)?;
    entry.set_sharing(Some(arguments.limit_bytes_per_s), Some(arguments.priority))?;
    let asked = tokio::time::timeout(OPEN_TIMEOUT, ask(daemon, &entry, &arguments, way));
    let outcome = match asked.await {
        Ok(Ok(carriage)) => return Ok(carriage),
        Ok(Err(outcome)) => outcome,
        Err(_) => {
            let desc = format!("{} did not answer within {} s", arguments.to, OPEN_TIMEOUT.as_secs());
            Outcome::new(Ending::Unreachable, Whereabouts::Untouched, desc)
                .advise(format!("See how the link does with: hikyaku link {}", arguments.to))
        }
    };
    entry.finish(Phase::Failed, outcome.clone());
    Err(outcome)
}

async fn ask(
    daemon: &Rc<Daemon>,
    entry: &Arc<Entry>,
    arguments: &CarryArguments,
    way: Way<'_>,
) -> Result<Carriage, Outcome> {
    let directory = match way {
        Way::Sockets(root) => directory::path(root, entry.id).display().to_string(),
        Way::Landing(_) => String::new(),
    };
    let hello = Hello::Carry(Carry {
        protocol: PROTOCOL,
        guest: arguments.guest.clone(),
        incarnation: daemon.records.incarnation(),
        directory,
    });
    let failed = |desc: String| Outcome::new(Ending::Failed, Whereabouts::Untouched, desc);
    let unreachable = |desc: String| Outcome::new(Ending::Unreachable, Whereabouts::Untouched, desc);
    let hello = protocol::encode(&hello).map_err(|error| failed(error.to_string()))?;
    let asked = ask_peer(daemon, &arguments.to, SessionId(entry.id.0), hello, sharing::share(entry)).await;
    let (session, carried, mailbox) = asked.map_err(|error| match error {
        AskError::Link(error) => unreachable(error.to_string()),
        AskError::Open(error) => refused(&arguments.to, error),
    })?;
    let carried: Carried = protocol::decode(&carried).map_err(|error| failed(error.to_string()))?;
    let doors = match way {
        Way::Sockets(root) => Doors::make(root, entry.id).map_err(|error| {
            failed(format!("no sockets in {}: {error}", directory::path(root, entry.id).display()))
        })?,
        Way::Landing(door) => Doors::Landing(door),
    };
    let (passed, passes) = unbounded_channel();
    let (ended, ends) = unbounded_channel();
    let (ram_told, ram_tells) = unbounded_channel();
    let (asked_told, asks) = unbounded_channel();
    let (found, finds) = unbounded_channel();
    let told = Told { passed, ended, ram: ram_told, asked: asked_told };
    let qemu = qemu_of(daemon, &arguments.guest, None).await;
    Ok(Carriage {
        daemon: daemon.clone(),
        entry: entry.clone(),
        arguments: arguments.clone(),
        session,
        mailbox,
        carried,
        doors,
        told,
        passes,
        ends,
        ram_tells,
        asks,
        asked: None,
        found,
        finds,
        known: watch::channel(None).0,
        seen: Seen::default(),
        qemu,
        stop: watch::channel(Stop::No).0,
        others: Rc::default(),
        first: Rc::default(),
        rests_until: tokio::time::Instant::now(),
    })
}

/// The guest's, here.
async fn qemu_of(daemon: &Daemon, guest: &str, uuid: Option<String>) -> Option<ProcessId> {
    let (guest, named) = (guest.to_owned(), daemon.config.libvirt.qemu_user.clone());
    let found = tokio::task::spawn_blocking(move || {
        let user = directory::qemu_user(named.as_deref()).ok().flatten().map(|user| user.uid);
        sockets::qemu_of(&guest, uuid.as_deref(), user)
    });
    found.await.ok().flatten()
}

fn refused(to: &str, error: OpenError) -> Outcome {
    let (ending, advice) = match &error {
        OpenError::Refused { code, .. } => match Refusal::from(*code) {
            Refusal::NotAllowed => (Ending::NotAllowed, ""),
            Refusal::Incompatible => (Ending::Incompatible, ""),
            Refusal::Protocol => {
                (Ending::Incompatible, "An older hikyaku there carries no guests of libvirt's: upgrade it")
            }
            _ => (Ending::Failed, ""),
        },
        _ => (Ending::Unreachable, ""),
    };
    Outcome::new(ending, Whereabouts::Untouched, format!("{to}: {error}")).advise(advice)
}

fn listen(directory: &Directory, place: Place) -> io::Result<UnixListener> {
    let path = directory.socket(place);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// A connection that somebody made, to be carried.
pub struct Came {
    pub place: Place,
    /// Of the peer's landing, if it came there.
    pub port: Option<u16>,
    pub stream: UnixStream,
}

enum Doors {
    Sockets {
        rpc: UnixListener,
        ram: UnixListener,
        disks: UnixListener,
        /// Goes with them.
        _directory: Directory,
    },
    Landing(UnboundedReceiver<Came>),
}

impl Doors {
    fn make(root: &Path, id: Id) -> io::Result<Doors> {
        let directory = Directory::open_to_all(root, id)?;
        Ok(Doors::Sockets {
            rpc: listen(&directory, Place::Rpc)?,
            ram: listen(&directory, Place::Ram)?,
            disks: listen(&directory, Place::Disks)?,
            _directory: directory,
        })
    }

    /// So long nobody need come.
    fn unused_for(&self) -> Duration {
        match self {
            Doors::Sockets { .. } => UNUSED_FOR,
            Doors::Landing(_) => LEFT_FOR,
        }
    }

    /// Whoever comes now begins another carriage.
    fn close(&mut self) {
        if let Doors::Landing(door) = self {
            door.close();
        }
    }

    async fn next(&mut self, rests_until: tokio::time::Instant) -> Result<Came, (Place, io::Error)> {
        tokio::time::sleep_until(rests_until).await;
        let (rpc, ram, disks) = match self {
            Doors::Sockets { rpc, ram, disks, .. } => (rpc, ram, disks),
            Doors::Landing(door) => match door.recv().await {
                Some(came) => return Ok(came),
                None => std::future::pending().await,
            },
        };
        let (place, door) = tokio::select! {
            door = rpc.accept() => (Place::Rpc, door),
            door = disks.accept() => (Place::Disks, door),
            door = ram.accept() => (Place::Ram, door),
        };
        door.map(|(stream, _)| Came { place, port: None, stream }).map_err(|error| (place, error))
    }
}

/// What conduits tell.
#[derive(Clone)]
struct Told {
    passed: UnboundedSender<Passed>,
    ended: UnboundedSender<(Place, Result<(), ConduitError>)>,
    ram: UnboundedSender<ram::Told>,
    asked: UnboundedSender<Asked>,
}

/// What conduits are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// The migration is given up: libvirt sees the guest's memory end.
    Ram,
    /// Nobody waits for an answer any more.
    All,
}

struct Carriage {
    daemon: Rc<Daemon>,
    entry: Arc<Entry>,
    arguments: CarryArguments,
    session: TxSession,
    mailbox: Mailbox,
    carried: Carried,
    doors: Doors,
    told: Told,
    passes: UnboundedReceiver<Passed>,
    ends: UnboundedReceiver<(Place, Result<(), ConduitError>)>,
    ram_tells: UnboundedReceiver<ram::Told>,
    asks: UnboundedReceiver<Asked>,
    /// libvirt there was asked to let the guest run.
    asked: Option<Asked>,
    found: UnboundedSender<Known>,
    finds: UnboundedReceiver<Known>,
    known: watch::Sender<Option<Known>>,
    seen: Seen,
    /// The guest's, here.
    qemu: Option<ProcessId>,
    stop: watch::Sender<Stop>,
    others: Rc<Cell<usize>>,
    first: Rc<Cell<bool>>,
    /// No connection is taken until then.
    rests_until: tokio::time::Instant,
}

impl Carriage {
    async fn run(mut self) {
        while !self.seen.is_over() {
            let (unused, unused_for) = (self.seen.is_unused(), self.doors.unused_for());
            let entry = self.entry.clone();
            tokio::select! {
                biased;
                _ = entry.cancelled(), if !self.seen.cancelled => {
                    self.seen.cancelled = true;
                    self.stop.send_replace(Stop::Ram);
                }
                // Before that it has passed on is seen.
                Some(asked) = self.asks.recv() => self.asked = Some(asked),
                Some(passed) = self.passes.recv() => self.passed(passed),
                Some(known) = self.finds.recv() => self.found(known),
                Some(told) = self.ram_tells.recv() => self.ram_told(told),
                Some((place, ended)) = self.ends.recv() => self.conduit_ended(place, ended),
                message = self.mailbox.next() => self.handle_peer(message),
                resolution = entry.resolved(), if self.seen.in_doubt => self.resolved(resolution),
                came = self.doors.next(self.rests_until) => self.came(came),
                () = tokio::time::sleep(unused_for), if unused => self.seen.cancelled = true,
            }
        }
        self.end().await;
    }

    fn came(&mut self, came: Result<Came, (Place, io::Error)>) {
        let came = match came {
            Ok(came) => came,
            Err((place, error)) => {
                // Out of descriptors, most likely: they come back when others end.
                tracing::warn!(id = %self.entry.id.short(), ?place, %error, "a connection could not be taken");
                self.rests_until = tokio::time::Instant::now() + ACCEPT_AGAIN;
                return;
            }
        };
        let place = came.place;
        if self.seen.conduits >= CONDUITS_MOST {
            tracing::warn!(id = %self.entry.id.short(), ?place, "more than {CONDUITS_MOST} connections: closed");
            return;
        }
        self.seen.came(place);
        let carrier = Carrier {
            daemon: self.daemon.clone(),
            entry: self.entry.clone(),
            to: self.arguments.to.clone(),
            downtime: self.arguments.downtime_ms.map(Duration::from_millis),
            told: self.told.clone(),
            stop: self.stop.subscribe(),
            known: self.known.subscribe(),
            incarnation: self.carried.incarnation,
            first: self.first.clone(),
            others: self.others.clone(),
        };
        tokio::task::spawn_local(async move {
            let ended = carrier.carry(came).await;
            let _ = carrier.told.ended.send((place, ended));
        });
    }

    fn passed(&mut self, passed: Passed) {
        tracing::info!(id = %self.entry.id.short(), guest = %self.entry.guest, ?passed, "libvirt");
        self.seen.passed(passed);
        match passed {
            // The guest stands, whether its stream was looked into or not.
            Passed::Finish { cancelled: false } if self.entry.phase() != Phase::Handed => {
                self.entry.advance(Phase::Copying);
                self.entry.advance(Phase::Handed);
            }
            Passed::Unanswered => self.doubt(),
            _ => {}
        }
        if passed == Passed::Tunnel {
            tracing::warn!(
                id = %self.entry.id.short(),
                "the guest's memory comes in libvirt's own packets (--tunnelled): it is relayed as it is, at the speed of one connection; leave --tunnelled out"
            );
        }
    }

    fn ram_told(&mut self, told: ram::Told) {
        match told {
            ram::Told::Numbers(numbers) => self.entry.set_numbers(numbers),
            ram::Told::WentRaw(why) => {
                tracing::warn!(id = %self.entry.id.short(), %why, "the rest of the stream is relayed as it is");
            }
            ram::Told::Relayed => self.seen.relayed = true,
            ram::Told::Stands => self.entry.advance(Phase::Handed),
            ram::Told::Shut(error) => self.seen.shut = Some(error),
        }
    }

    fn conduit_ended(&mut self, place: Place, ended: Result<(), ConduitError>) {
        match &ended {
            Ok(()) => tracing::info!(id = %self.entry.id.short(), ?place, "a connection has ended"),
            Err(error) => {
                tracing::warn!(id = %self.entry.id.short(), ?place, %error, "a connection has ended")
            }
        }
        self.seen.ended(place, ended.err().map(|error| error.to_string()));
        if place == Place::Rpc && self.seen.rpc.open == 0 {
            let runs = matches!(*self.known.borrow(), Some(Known::Runs { .. }));
            if runs && self.seen.answer.is_none() {
                self.seen.passed(Passed::Unheard(Answer::Done));
            }
            self.doubt();
        }
    }

    fn handle_peer(&mut self, message: Option<FromPeer>) {
        match message {
            Some(FromPeer::LinkDown(why)) => {
                self.entry.link_down(&outage::words(&why), self.daemon.config.link.timeout);
                if self.entry.phase() == Phase::Copying {
                    self.entry.advance(Phase::LinkLost);
                }
            }
            Some(FromPeer::LinkUp) => {
                self.entry.link_up();
                if self.entry.phase() == Phase::LinkLost {
                    self.entry.advance(Phase::Copying);
                }
            }
            // There is nothing to be said in it.
            Some(FromPeer::Message(_)) => {}
            Some(FromPeer::Lost(lost)) => self.lost(lost.to_string()),
            Some(FromPeer::Closed { text, .. }) => self.lost(text),
            Some(FromPeer::Flood) => self.lost("more messages than can wait".into()),
            None => self.lost("the destination ended it without a word".into()),
        }
    }

    /// Nothing more is heard of the destination.
    fn lost(&mut self, why: String) {
        self.seen.lost = Some(why);
        self.stop.send_replace(Stop::Ram);
        self.doubt();
    }

    /// Says so, if libvirt there may be running the guest and cannot be heard.
    fn doubt(&mut self) {
        let doubt = self.seen.doubt(&self.entry.guest, &self.arguments.to);
        if let Some(outcome) = doubt.filter(|_| !self.seen.in_doubt) {
            self.seen.in_doubt = true;
            self.entry.set_outcome(outcome);
            if let Some(asked) = self.asked.clone() {
                let (daemon, entry, found) = (self.daemon.clone(), self.entry.clone(), self.found.clone());
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        known = asked::ask(&daemon, &entry, entry.id, &asked) => drop(found.send(known)),
                        // A person was faster.
                        () = found.closed() => {}
                    }
                });
            }
        }
    }

    /// The destination says what became of the guest.
    fn found(&mut self, known: Known) {
        if self.seen.answer.is_some() || self.seen.resolved.is_some() {
            return;
        }
        let (listens, answer) = (self.seen.rpc.open > 0, asked::answer_of(&known));
        match known {
            _ if !listens => self.seen.passed(Passed::Unheard(answer)),
            Known::Not => self.seen.passed(Passed::Finished(answer)),
            // Whoever waits is told now, and what comes of that passes.
            Known::Runs { .. } if self.asked.as_ref().is_some_and(|asked| asked.uuid.is_some()) => {}
            Known::Runs { .. } => {
                self.seen.held = true;
                self.seen.passed(Passed::Finished(answer));
            }
        }
        self.known.send_replace(Some(known));
    }

    fn resolved(&mut self, resolution: Resolution) {
        self.seen.resolved = Some(resolution);
        if resolution == Resolution::Here {
            // libvirt takes it for a Finish that failed, and continues the guest.
            self.stop.send_replace(Stop::All);
        }
    }

    /// Says what came of it, and leaves the connections that are still there time to end by themselves.
    async fn end(mut self) {
        self.doors.close();
        // Nobody asks any more.
        self.finds.close();
        if let Ok(asked) = self.asks.try_recv() {
            self.asked = Some(asked);
        }
        if self.seen.is_unsaid() {
            self.seen.kept = self.keeps().await;
        }
        if let (Some(asked), Some(resolution)) = (&self.asked, self.seen.resolved) {
            asked::said(&self.daemon, self.entry.id, asked, resolution).await;
        }
        let (guest, to) = (self.entry.guest.clone(), self.arguments.to.clone());
        let (mut phase, mut outcome) = self.seen.outcome(&guest, &to);
        let copy = self.asked.as_ref().and_then(|asked| asked.qemu);
        let is_at_both = self.seen.is_at_both() && !asked::ends_soon(copy).await;
        if is_at_both {
            (phase, outcome) = (Phase::Failed, asked::untold(self.entry.id, &guest, &to));
        } else if self.seen.held {
            outcome = asked::cannot_be_told(&guest, &to);
        }
        if phase == Phase::Moved {
            self.entry.set_report(Report::default());
            if self.entry.phase() != Phase::Handed {
                // A stream that was not looked into.
                self.entry.advance(Phase::Copying);
                self.entry.advance(Phase::Handed);
            }
        }
        let is_held = self.seen.held || self.seen.resolved == Some(Resolution::There);
        // What is on record would be taken up by the next daemon.
        let tidying = (self.asked.is_some() && !is_held && !is_at_both).then(|| self.daemon.tidying());
        if is_at_both {
            self.entry.unresolve();
        }
        self.entry.finish(phase, outcome);
        let last = async {
            while self.seen.conduits > 0 {
                let Some((place, ended)) = self.ends.recv().await else { return };
                self.conduit_ended(place, ended);
            }
        };
        // One who is held holds only himself.
        if tokio::time::timeout(LAST_WORDS, last).await.is_err() {
            tracing::info!(id = %self.entry.id.short(), conduits = self.seen.conduits, "still connected");
        }
        if !is_held {
            self.stop.send_replace(Stop::All);
        }
        self.session.close(Refusal::Done as u16, "closed");
        self.daemon.rest();
        if self.asked.is_none() {
            return;
        }
        // One who is still held would continue the guest if the next daemon knew nothing of him.
        while self.seen.rpc.open > 0 {
            tokio::select! {
                Some((place, ended)) = self.ends.recv() => self.conduit_ended(place, ended),
                () = asked::has_ended(copy), if *self.stop.borrow() != Stop::All => {
                    self.stop.send_replace(Stop::All);
                }
            }
        }
        if is_at_both {
            asked::until_settled(&self.entry).await;
        }
        asked::over(&self.daemon, self.entry.id, &to).await;
        drop(tidying);
    }

    /// Libvirt's calls were not carried. Whether it keeps the guest here shows by its QEMU: it ends one whose guest runs elsewhere.
    async fn keeps(&self) -> Option<bool> {
        let qemu = self.qemu?;
        let deadline = tokio::time::Instant::now() + LIBVIRT_DECIDES;
        while qemu.is_there() {
            if tokio::time::Instant::now() >= deadline {
                return Some(true);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Some(false)
    }
}
