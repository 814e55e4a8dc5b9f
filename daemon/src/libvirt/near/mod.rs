//! A carriage at its source: libvirt and QEMU connect here, and each connection is made once more at the destination.
//!
//! ```text
//!  open ─▶ nobody has come ─▶ libvirt there prepares ─▶ disks, memory ─▶ the guest stands ─▶ Finish is answered ─▶ closed
//! ```

pub mod conduit;
pub mod ram;
mod seen;

use super::directory::{self, Directory};
use super::tap::{self, Passed};
use super::watch::Watch;
use crate::api::wire::{CarryArguments, Carrying, Resolution, Role};
use crate::daemon::{Daemon, check_limit, check_name};
use crate::id::Id;
use crate::mailbox::{FromPeer, Mailbox, mailbox};
use crate::outage;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::protocol::libvirt::{Carried, Carry, Place};
use crate::protocol::{self, Hello, PROTOCOL, Refusal};
use crate::registry::Entry;
use crate::report::Report;
use crate::source::sharing;
use conduit::ConduitError;
use hikyaku_engine::precopy::AdaptiveConfig;
use hikyaku_transport::{OpenError, Priority, SessionId, Share, TxSession};
use nix::sys::socket::{MsgFlags, recv};
use seen::Seen;
use std::io;
use std::os::fd::AsRawFd;
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
/// Between the last word on a guest and the end of the connections that brought it.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Until what begins a connection is there; QEMU says it at once.
const BEGINNING: Duration = Duration::from_secs(2);
/// Connections of one carriage: disks have one each, and a guest's memory may come in several.
const CONDUITS_MOST: usize = 64;
/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How QEMU's stream begins.
const MAGIC: &[u8; 4] = b"QEVM";

/// Makes the sockets by which libvirt moves the guest. `Err`: nothing was made.
pub async fn open(daemon: &Rc<Daemon>, arguments: CarryArguments) -> Result<Carrying, Outcome> {
    let usage = |desc: String| Outcome::new(Ending::Usage, Whereabouts::Untouched, desc);
    check_name(&arguments.guest)?;
    check_limit(arguments.limit_bytes_per_s)?;
    let root = &daemon.config.libvirt.directory;
    if daemon.config.peer(&arguments.to).is_none() {
        return Err(usage(format!("no peer \"{}\" in the configuration", arguments.to)));
    }
    let id = Id::random();
    let to = Some(arguments.to.as_str());
    let entry = daemon.registry.enter(id, &arguments.guest, Role::Source, to, Phase::Preparing)?;
    entry.set_sharing(Some(arguments.limit_bytes_per_s), Some(arguments.priority))?;
    let asked = tokio::time::timeout(OPEN_TIMEOUT, ask(daemon, &entry, &arguments, root));
    let carriage = match asked.await {
        Ok(Ok(carriage)) => carriage,
        Ok(Err(outcome)) => {
            entry.finish(Phase::Failed, outcome.clone());
            return Err(outcome);
        }
        Err(_) => {
            let desc = format!("{} did not answer within {} s", arguments.to, OPEN_TIMEOUT.as_secs());
            let outcome = Outcome::new(Ending::Unreachable, Whereabouts::Untouched, desc)
                .advise(format!("See how the link does with: hikyaku link {}", arguments.to));
            entry.finish(Phase::Failed, outcome.clone());
            return Err(outcome);
        }
    };
    let carrying =
        Carrying { id, directory: carriage.directory.path().to_owned(), rpc: carriage.carried.rpc };
    tokio::task::spawn_local(carriage.run());
    Ok(carrying)
}

async fn ask(
    daemon: &Rc<Daemon>,
    entry: &Arc<Entry>,
    arguments: &CarryArguments,
    root: &Path,
) -> Result<Carriage, Outcome> {
    let directory = directory::path(root, entry.id);
    let hello = Hello::Carry(Carry {
        protocol: PROTOCOL,
        guest: arguments.guest.clone(),
        incarnation: daemon.records.incarnation(),
        directory: directory.display().to_string(),
    });
    let failed = |desc: String| Outcome::new(Ending::Failed, Whereabouts::Untouched, desc);
    let unreachable = |desc: String| Outcome::new(Ending::Unreachable, Whereabouts::Untouched, desc);
    let hello = protocol::encode(&hello).map_err(|error| failed(error.to_string()))?;
    let (slot, mailbox) = mailbox();
    let link = daemon.link_to(&arguments.to).await.map_err(|error| unreachable(error.to_string()))?;
    let session = SessionId(entry.id.0);
    let opened = link.open_sharing(session, hello, Arc::new(Watch(slot)), sharing::share(entry)).await;
    let (session, carried) = opened.map_err(|error| refused(&arguments.to, error))?;
    let carried: Carried = protocol::decode(&carried).map_err(|error| failed(error.to_string()))?;
    let made = Directory::open_to_all(root, entry.id).and_then(|directory| {
        Ok((
            listen(&directory, Place::Rpc)?,
            listen(&directory, Place::Ram)?,
            listen(&directory, Place::Disks)?,
            directory,
        ))
    });
    let (rpc, ram, disks, directory) =
        made.map_err(|error| failed(format!("no sockets in {}: {error}", directory.display())))?;
    let (passed, passes) = unbounded_channel();
    let (ended, ends) = unbounded_channel();
    let (ram_told, ram_tells) = unbounded_channel();
    let told = Told { passed, ended, ram: ram_told };
    Ok(Carriage {
        daemon: daemon.clone(),
        entry: entry.clone(),
        arguments: arguments.clone(),
        session,
        mailbox,
        carried,
        directory,
        doors: Doors { rpc, ram, disks },
        told,
        passes,
        ends,
        ram_tells,
        seen: Seen::default(),
        stop: watch::channel(Stop::No).0,
        rests_until: tokio::time::Instant::now(),
    })
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

struct Doors {
    rpc: UnixListener,
    ram: UnixListener,
    disks: UnixListener,
}

type Came = io::Result<(UnixStream, tokio::net::unix::SocketAddr)>;

impl Doors {
    async fn next(&self, rests_until: tokio::time::Instant) -> (Place, Came) {
        tokio::time::sleep_until(rests_until).await;
        tokio::select! {
            door = self.rpc.accept() => (Place::Rpc, door),
            door = self.disks.accept() => (Place::Disks, door),
            door = self.ram.accept() => (Place::Ram, door),
        }
    }
}

/// What conduits tell.
#[derive(Clone)]
struct Told {
    passed: UnboundedSender<Passed>,
    ended: UnboundedSender<(Place, Result<(), ConduitError>)>,
    ram: UnboundedSender<ram::Told>,
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
    directory: Directory,
    doors: Doors,
    told: Told,
    passes: UnboundedReceiver<Passed>,
    ends: UnboundedReceiver<(Place, Result<(), ConduitError>)>,
    ram_tells: UnboundedReceiver<ram::Told>,
    seen: Seen,
    stop: watch::Sender<Stop>,
    /// No connection is taken until then.
    rests_until: tokio::time::Instant,
}

impl Carriage {
    async fn run(mut self) {
        while !self.seen.is_over() {
            let unused = self.seen.is_unused();
            let entry = self.entry.clone();
            tokio::select! {
                biased;
                () = entry.cancelled(), if !self.seen.cancelled => {
                    self.seen.cancelled = true;
                    self.stop.send_replace(Stop::Ram);
                }
                Some(passed) = self.passes.recv() => self.passed(passed),
                Some(told) = self.ram_tells.recv() => self.ram_told(told),
                Some((place, ended)) = self.ends.recv() => self.conduit_ended(place, ended),
                message = self.mailbox.next() => self.handle_peer(message),
                resolution = entry.resolved(), if self.seen.in_doubt => self.resolved(resolution),
                (place, door) = self.doors.next(self.rests_until) => self.came(place, door),
                () = tokio::time::sleep(UNUSED_FOR), if unused => self.seen.cancelled = true,
            }
        }
        self.end().await;
    }

    fn came(&mut self, place: Place, door: Came) {
        let stream = match door {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: they come back when others end.
                tracing::warn!(id = %self.entry.id.short(), ?place, %error, "a connection could not be taken");
                self.rests_until = tokio::time::Instant::now() + ACCEPT_AGAIN;
                return;
            }
        };
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
        };
        tokio::task::spawn_local(async move {
            let ended = carrier.carry(place, stream).await;
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
        if place == Place::Rpc {
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
        }
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
        let (phase, outcome) = self.seen.outcome(&self.entry.guest, &self.arguments.to);
        if phase == Phase::Moved {
            self.entry.set_report(Report::default());
            if self.entry.phase() != Phase::Handed {
                // A stream that was not looked into.
                self.entry.advance(Phase::Copying);
                self.entry.advance(Phase::Handed);
            }
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
        if self.seen.resolved != Some(Resolution::There) {
            self.stop.send_replace(Stop::All);
        }
        self.session.close(Refusal::Done as u16, "closed");
    }
}

/// What one connection is carried with.
struct Carrier {
    daemon: Rc<Daemon>,
    entry: Arc<Entry>,
    to: String,
    downtime: Option<Duration>,
    told: Told,
    stop: watch::Receiver<Stop>,
}

impl Carrier {
    async fn carry(&self, place: Place, stream: UnixStream) -> Result<(), ConduitError> {
        match place {
            Place::Rpc => self.rpc(stream).await,
            Place::Disks => self.relayed(place, stream).await,
            Place::Ram => {
                match begins_with(&stream, MAGIC).await {
                    Some(true) => return self.ram(stream).await,
                    Some(false) => {}
                    // Somebody looked. The waiting QEMU would take that for its guest.
                    None => return Ok(()),
                }
                tracing::warn!(
                    id = %self.entry.id.short(),
                    "a connection for the guest's memory that is none of QEMU's plain streams (--parallel, --tls, --postcopy): it is relayed as it is, without deltas; leave those out"
                );
                self.relayed(place, stream).await
            }
        }
    }

    fn share(&self, urgent: bool) -> Share {
        let share = sharing::share(&self.entry);
        if urgent { Share { priority: Priority::Urgent, ..share } } else { share }
    }

    async fn relayed(&self, place: Place, stream: UnixStream) -> Result<(), ConduitError> {
        let opened =
            conduit::open(&self.daemon, &self.to, self.entry.id, place, false, self.share(false)).await?;
        let socket = stream.into_std().map_err(ConduitError::Resources)?;
        tokio::select! {
            ended = conduit::run(&self.daemon, socket, opened) => ended,
            () = self.stopped(Stop::Ram) => Ok(()),
        }
    }

    async fn ram(&self, stream: UnixStream) -> Result<(), ConduitError> {
        let opened =
            conduit::open(&self.daemon, &self.to, self.entry.id, Place::Ram, true, self.share(false)).await?;
        if self.entry.phase() == Phase::Preparing {
            self.entry.advance(Phase::Copying);
        }
        let sharing = sharing::Follower::start(opened.session.clone(), self.entry.clone());
        let socket = stream.into_std().map_err(ConduitError::Resources)?;
        let plan = ram::Plan {
            downtime: self.downtime.unwrap_or(AdaptiveConfig::default().downtime_target),
            told: self.told.ram.clone(),
        };
        let ended = tokio::select! {
            ended = ram::run(&self.daemon, socket, opened, plan) => ended,
            () = self.stopped(Stop::Ram) => Ok(()),
        };
        drop(sharing);
        ended
    }

    async fn rpc(&self, stream: UnixStream) -> Result<(), ConduitError> {
        let opened =
            conduit::open(&self.daemon, &self.to, self.entry.id, Place::Rpc, false, self.share(true)).await?;
        let (ours, carried) = std::os::unix::net::UnixStream::pair().map_err(ConduitError::Resources)?;
        let ours = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
        let ours = ours.map_err(ConduitError::Resources)?;
        let tap = tap::run(stream, ours, self.told.passed.clone(), self.stopped(Stop::All));
        let (tapped, carried) = tokio::join!(tap, conduit::run(&self.daemon, carried, opened));
        tapped?;
        carried
    }

    /// Returns when so much, or more, is to stop.
    async fn stopped(&self, what: Stop) {
        let mut stop = self.stop.clone();
        let is_told = |told: &Stop| match what {
            Stop::No => true,
            Stop::Ram => *told != Stop::No,
            Stop::All => *told == Stop::All,
        };
        if stop.wait_for(is_told).await.is_err() {
            // The carriage is gone, and with it whoever could say so.
            std::future::pending().await
        }
    }
}

/// Looks, and takes nothing away. None: it was closed.
async fn begins_with(stream: &UnixStream, bytes: &[u8; 4]) -> Option<bool> {
    let looked = tokio::time::timeout(BEGINNING, async {
        let mut there = [0; 4];
        loop {
            stream.readable().await.ok()?;
            match recv(stream.as_raw_fd(), &mut there, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
                Ok(4) => return Some(&there == bytes),
                Ok(0) => return None,
                // Readable it stays: it is looked at again a little later.
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(nix::Error::EAGAIN) => {
                    let _ = stream.try_io(tokio::io::Interest::READABLE, || {
                        Err::<(), _>(io::ErrorKind::WouldBlock.into())
                    });
                }
                Err(_) => return None,
            }
        }
    });
    // One who says nothing first is none of QEMU's streams.
    looked.await.unwrap_or(Some(false))
}
