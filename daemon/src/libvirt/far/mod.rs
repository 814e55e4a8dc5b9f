//! A carriage at its destination: a directory for the waiting QEMU's sockets, and connections to them and to libvirt.

pub mod became;
pub mod conduit;

use super::directory::{self, Directory, qemu_user};
use super::sockets::{self, connection};
use super::tap::{self, Passed};
use super::watch::Watch;
use crate::api::wire::{Numbers, Role};
use crate::config::{Allow, Config};
use crate::daemon::{Daemon, check_name};
use crate::fail;
use crate::id::Id;
use crate::mailbox::{FromPeer, Mailbox, mailbox};
use crate::outage;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::protocol::libvirt::{Carried, Carry, Conduit, Listens, Place, WhoListens};
use crate::protocol::{self, PROTOCOL, Refusal};
use crate::registry::Entry;
use became::{Finish, Guard};
use conduit::{ConduitError, Shape, Told};
use hikyaku_engine::{PAGE_BYTES, ReceiverConfig};
use hikyaku_qemu::libvirt::Answer;
use hikyaku_transport::{Incoming, PeerName, RxSession};
use nix::unistd::SysconfVar;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};

/// Of one peer.
const CARRIAGES_MOST: usize = 64;
/// Of one carriage.
const CONDUITS_MOST: usize = 64;
/// Conduits that may wait to be looked at.
const DOOR: usize = 8;
/// What the calls between two libvirts may hold here.
const RPC_CREDIT_BYTES: u64 = 4 << 20;
/// libvirt connects to a waiting QEMU as soon as it waits; a connection here is made as late.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// Between libvirt's last word on a guest and the end of the connection that brought it.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Those that are there, by the session they came with.
#[derive(Default)]
pub struct Carriages {
    here: RefCell<HashMap<Id, AtDoor>>,
    /// Of these, and of those that are over and have connections left.
    finishes: RefCell<HashMap<Id, (PeerName, Weak<Finish>)>>,
}

struct AtDoor {
    peer: PeerName,
    door: Sender<(Conduit, Incoming)>,
}

impl Carriages {
    fn enter(&self, carriage: Id, at_door: AtDoor) -> Rc<Finish> {
        let finish = Rc::new(Finish::default());
        let mut finishes = self.finishes.borrow_mut();
        finishes.retain(|_, (_, finish)| finish.strong_count() > 0);
        finishes.insert(carriage, (at_door.peer.clone(), Rc::downgrade(&finish)));
        self.here.borrow_mut().insert(carriage, at_door);
        finish
    }

    /// How far Finish has come of one, if it may come, or came by a connection that is still there.
    fn finish(&self, carriage: Id, peer: &PeerName) -> Option<Rc<Finish>> {
        self.finishes.borrow().get(&carriage).filter(|(its, _)| its == peer)?.1.upgrade()
    }
}

/// A peer wants its libvirt's guest carried here.
pub fn carry(daemon: &Rc<Daemon>, peer: PeerName, hello: &Carry, incoming: Incoming) {
    match begin(daemon, &peer, hello, &incoming) {
        Ok(begun) => accept(daemon, peer, begun, incoming),
        Err((code, text)) => {
            tracing::warn!(%peer, guest = %hello.guest, %text, "refused");
            incoming.refuse(code as u16, &text);
        }
    }
}

/// A connection of one that is carried.
pub fn conduit(daemon: &Daemon, peer: &PeerName, hello: Conduit, incoming: Incoming) {
    use tokio::sync::mpsc::error::TrySendError::{Closed, Full};
    let door = {
        let carriages = daemon.carriages.here.borrow();
        carriages.get(&hello.carriage).filter(|at| at.peer == *peer).map(|at| at.door.clone())
    };
    let Some(door) = door else {
        return incoming
            .refuse(Refusal::NotAwaited as u16, "its guest is not being carried here, or not any more");
    };
    if let Err(Full((_, incoming)) | Closed((_, incoming))) = door.try_send((hello, incoming)) {
        incoming.refuse(Refusal::Other as u16, "more connections at once than can be made here");
    }
}

struct Begun {
    entry: Arc<Entry>,
    directory: Option<Directory>,
    rpc: bool,
}

const NO_LANDING: &str =
    "libvirt's guests land nowhere here: there is no landing under [libvirt] in the configuration";

/// A peer's libvirt was told to connect to a port of the landing here. What is said to the peer.
pub async fn who_listens(config: &Config, hello: &WhoListens) -> Result<Vec<u8>, (Refusal, String)> {
    if hello.protocol != PROTOCOL {
        let text = format!("this daemon speaks protocol {PROTOCOL}, the source {}", hello.protocol);
        return Err((Refusal::Protocol, text));
    }
    let Some(landing) = &config.libvirt.landing else {
        return Err((Refusal::Incompatible, NO_LANDING.into()));
    };
    if !landing.ports.contains(hello.port) {
        let text = format!("port {} is none of the landing's here, which are {}", hello.port, landing.ports);
        return Err((Refusal::Incompatible, text));
    }
    let at = SocketAddrV4::new(landing.address, hello.port);
    let ports = landing.ports.all();
    let found = tokio::task::spawn_blocking(move || sockets::who_listens(at, &ports)).await.ok().flatten();
    let nobody = || (Refusal::NotAwaited, format!("no QEMU waits at {at}"));
    let sockets::Listener { guest, first } = found.ok_or_else(nobody)?;
    let reply = protocol::encode(&Listens { guest, first });
    reply.map_err(|error| (Refusal::Other, error.to_string()))
}

fn begin(
    daemon: &Rc<Daemon>,
    peer: &PeerName,
    hello: &Carry,
    incoming: &Incoming,
) -> Result<Begun, (Refusal, String)> {
    let id = Id(incoming.id().0);
    let config = &daemon.config.libvirt;
    if hello.protocol != PROTOCOL {
        let text = format!("this daemon speaks protocol {PROTOCOL}, the source {}", hello.protocol);
        return Err((Refusal::Protocol, text));
    }
    if check_name(&hello.guest).is_err() {
        return Err((Refusal::Protocol, "the guest's name is none".into()));
    }
    let directory = directory::path(&config.directory, id);
    let lands = hello.directory.is_empty();
    if lands && config.landing.is_none() {
        return Err((Refusal::Incompatible, NO_LANDING.into()));
    }
    if !lands && directory.as_os_str() != hello.directory.as_str() {
        let text = format!(
            "its sockets would be in {}, there they are in {}: give both daemons the same [libvirt] directory",
            directory.display(),
            hello.directory
        );
        return Err((Refusal::Incompatible, text));
    }
    let its = daemon.carriages.here.borrow().values().filter(|at| at.peer == *peer).count();
    if its >= CARRIAGES_MOST {
        return Err((
            Refusal::Other,
            format!("{CARRIAGES_MOST} guests are being carried for this peer already"),
        ));
    }
    let rpc = daemon.config.peer(peer.as_str()).is_some_and(|peer| peer.allow.contains(&Allow::Libvirt));
    let make = || {
        let user = qemu_user(config.qemu_user.as_deref())?;
        Directory::of_user(&config.directory, id, user.as_ref())
    };
    let made = (!lands).then(make).transpose();
    let directory =
        made.map_err(|error| (Refusal::Other, format!("no directory {}: {error}", directory.display())))?;
    let name = Some(peer.as_str());
    let entry = daemon.registry.enter(id, &hello.guest, Role::Destination, name, Phase::Armed);
    let entry = entry.map_err(|outcome| (Refusal::NotAwaited, outcome.desc))?;
    Ok(Begun { entry, directory, rpc })
}

fn accept(daemon: &Rc<Daemon>, peer: PeerName, begun: Begun, incoming: Incoming) {
    let Begun { entry, directory, rpc } = begun;
    let reply = Carried { protocol: PROTOCOL, incarnation: daemon.records.incarnation(), rpc };
    let (slot, mailbox) = mailbox();
    let session = protocol::encode(&reply).map_err(|error| error.to_string()).and_then(|reply| {
        incoming.accept(reply, 0, Arc::new(Watch(slot))).map_err(|error| error.to_string())
    });
    let session = match session {
        Ok(session) => session,
        Err(text) => {
            let outcome = Outcome::new(Ending::Failed, Whereabouts::StaysAtSource, text);
            return entry.finish(Phase::Refused, outcome);
        }
    };
    let (at_door, door) = channel(DOOR);
    let last = daemon.carriages.enter(entry.id, AtDoor { peer: peer.clone(), door: at_door });
    let (ended, ends) = unbounded_channel();
    let (passed, passes) = unbounded_channel();
    let (told, tells) = unbounded_channel();
    let carriage = Carriage {
        daemon: daemon.clone(),
        peer,
        last: last.clone(),
        entry,
        directory: directory.map(Rc::new),
        session,
        mailbox,
        rpc,
        door,
        conduits: 0,
        ended,
        ends,
        passed,
        passes,
        told,
        tells,
        finish: None,
        answer: None,
        shut: None,
        ram: false,
        prepared: false,
    };
    tokio::task::spawn_local(async move {
        let (daemon, id) = (carriage.daemon.clone(), carriage.entry.id);
        carriage.run().await;
        daemon.carriages.here.borrow_mut().remove(&id);
        last.close();
        daemon.rest();
    });
}

struct Carriage {
    daemon: Rc<Daemon>,
    peer: PeerName,
    last: Rc<Finish>,
    entry: Arc<Entry>,
    directory: Option<Rc<Directory>>,
    session: RxSession,
    mailbox: Mailbox,
    /// The peer may talk to the libvirt here.
    rpc: bool,
    door: Receiver<(Conduit, Incoming)>,
    conduits: usize,
    ended: UnboundedSender<(Place, Result<(), String>)>,
    ends: UnboundedReceiver<(Place, Result<(), String>)>,
    passed: UnboundedSender<Passed>,
    passes: UnboundedReceiver<Passed>,
    told: UnboundedSender<Told>,
    tells: UnboundedReceiver<Told>,
    /// libvirt was asked to finish: cancelled, or not.
    finish: Option<bool>,
    answer: Option<Answer>,
    shut: Option<u32>,
    /// Its memory came, or began to.
    ram: bool,
    /// libvirt's calls were carried.
    prepared: bool,
}

impl Carriage {
    async fn run(mut self) {
        let entry = self.entry.clone();
        let why = loop {
            tokio::select! {
                biased;
                wish = entry.cancelled() => break Some(format!("{wish}, at the destination")),
                Some(passed) = self.passes.recv() => self.passed(passed),
                Some(told) = self.tells.recv() => self.tell(told),
                Some((place, ended)) = self.ends.recv() => self.conduit_ended(place, &ended),
                message = self.mailbox.next() => match message {
                    Some(FromPeer::LinkDown(why)) => {
                        self.entry.link_down(&outage::words(&why), self.daemon.config.link.timeout);
                        if self.entry.phase() == Phase::Filling {
                            self.entry.advance(Phase::LinkLost);
                        }
                    }
                    Some(FromPeer::LinkUp) => {
                        self.entry.link_up();
                        if self.entry.phase() == Phase::LinkLost {
                            self.entry.advance(Phase::Filling);
                        }
                    }
                    Some(FromPeer::Message(_)) => {}
                    Some(FromPeer::Closed { .. }) => break None,
                    Some(FromPeer::Lost(lost)) => break Some(lost.to_string()),
                    Some(FromPeer::Flood) => break Some("more messages than can wait".into()),
                    None => break None,
                },
                Some((hello, incoming)) = self.door.recv() => self.connect(&hello, incoming),
            }
        };
        self.end(why).await;
    }

    fn connect(&mut self, hello: &Conduit, incoming: Incoming) {
        let place = hello.to;
        if hello.protocol != PROTOCOL {
            return incoming.refuse(Refusal::Protocol as u16, "another protocol than that of its carriage");
        }
        if place == Place::Rpc && !self.rpc {
            let text = "this peer may not talk to the libvirt here: allow it by \"libvirt\" among what the peer is allowed in the configuration";
            return incoming.refuse(Refusal::NotAllowed as u16, text);
        }
        if self.conduits >= CONDUITS_MOST {
            return incoming.refuse(Refusal::Other as u16, "more connections than can be made here");
        }
        let to = match (place, hello.port, &self.directory, &self.daemon.config.libvirt.landing) {
            (Place::Rpc, None, ..) => To::Socket(self.daemon.config.libvirt.socket.clone()),
            (_, None, Some(directory), _) => To::Socket(directory.socket(place)),
            (Place::Ram | Place::Disks, Some(port), None, Some(landing)) if landing.ports.contains(port) => {
                To::Landing(SocketAddrV4::new(landing.address, port), landing.ports.all())
            }
            _ => return incoming.refuse(Refusal::Protocol as u16, "there is no such place"),
        };
        self.conduits += 1;
        self.ram |= place == Place::Ram;
        let begins = place == Place::Ram || hello.port.is_some();
        if begins && self.entry.phase() == Phase::Armed {
            self.entry.advance(Phase::Filling);
        }
        let memory = &self.daemon.config.memory;
        let receiver = ReceiverConfig {
            park_budget_bytes: memory.credit as usize + (32 << 20),
            max_pages: pages_most(),
            dictionary_slots: memory.dictionary_slots(),
            ..ReceiverConfig::default()
        };
        let shape = Shape {
            credit: if place == Place::Rpc { RPC_CREDIT_BYTES } else { memory.credit },
            receiver,
            native: hello.native && place == Place::Ram,
            dictionary_slots: memory.dictionary_slots(),
        };
        let (ended, told) = (self.ended.clone(), self.told.clone());
        // What QEMU has in it is still to be read when the carriage has ended.
        let directory = self.directory.clone();
        let guest = self.entry.guest.clone();
        let calls = (place == Place::Rpc).then(|| {
            let (shelf, peer, last) = (self.daemon.delivered.clone(), self.peer.clone(), self.last.clone());
            Calls {
                passed: self.passed.clone(),
                guard: Guard::new(shelf, self.entry.id, peer, guest.clone(), last),
            }
        });
        tokio::task::spawn_local(async move {
            let result = carry_one(guest, calls, to, shape, incoming, told).await;
            drop(directory);
            let _ = ended.send((place, result));
        });
    }

    fn passed(&mut self, passed: Passed) {
        tracing::info!(id = %self.entry.id.short(), guest = %self.entry.guest, ?passed, "libvirt");
        match passed {
            Passed::Prepare | Passed::Tunnel => {
                self.prepared = true;
                if self.entry.phase() == Phase::Armed {
                    self.entry.advance(Phase::Filling);
                }
            }
            Passed::Unanswered => {}
            Passed::Finish { cancelled } => {
                fail::point("libvirt.finish");
                self.finish = Some(cancelled);
            }
            Passed::Finished(answer) | Passed::Unheard(answer) => {
                self.answer = Some(answer);
                if self.finish == Some(false) {
                    let (shelf, id) = (self.daemon.delivered.clone(), self.entry.id);
                    tokio::task::spawn_local(async move { became::answered(&shelf, id, answer).await });
                }
            }
        }
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Progress { pages_total, pages_written, payload_bytes } => {
                let stats = self.session.stats();
                self.entry.set_numbers(Numbers {
                    pages_total,
                    pages_done: pages_written.min(pages_total),
                    sent_bytes: payload_bytes,
                    raw_bytes: pages_written * PAGE_BYTES as u64,
                    rtt_us: stats.rtt.map_or(0, |d| d.as_micros() as u64),
                    goodput_bytes_per_s: stats.goodput_bytes_per_s.unwrap_or(0),
                    ..Numbers::default()
                });
            }
            Told::Shut(error) => {
                self.shut = Some(error);
                if error == 0 && matches!(self.entry.phase(), Phase::Filling | Phase::LinkLost) {
                    self.entry.advance(Phase::Handed);
                }
            }
        }
    }

    fn conduit_ended(&mut self, place: Place, ended: &Result<(), String>) {
        self.conduits -= 1;
        match ended {
            Ok(()) => tracing::info!(id = %self.entry.id.short(), ?place, "a connection has ended"),
            Err(error) => {
                tracing::warn!(id = %self.entry.id.short(), ?place, %error, "a connection has ended");
            }
        }
    }

    /// The source has said that it is over, or is not heard any more. What libvirt was asked to do it does all the same, and says so here.
    async fn end(mut self, why: Option<String>) {
        let finishing = self.finish == Some(false);
        if finishing && self.answer.is_none() {
            let _ = tokio::time::timeout(LAST_WORDS, self.answered()).await;
        }
        self.session.close(Refusal::Done as u16, "closed");
        let guest = &self.entry.guest;
        let came = self.entry.phase() == Phase::Handed;
        let (phase, outcome) = match (self.finish, self.answer) {
            (Some(false), Some(Answer::Done)) => {
                let desc = "libvirt here runs it";
                (Phase::Running, Outcome::new(Ending::Moved, Whereabouts::RunsAtDestination, desc))
            }
            (Some(false), Some(Answer::Failed)) => {
                let desc = format!("libvirt here could not run {guest}");
                (Phase::Refused, Outcome::new(Ending::Failed, Whereabouts::StaysAtSource, desc))
            }
            (Some(false), None) => {
                let desc = format!("libvirt here was asked to run {guest}, and has not answered");
                let outcome = Outcome::new(Ending::InDoubt, Whereabouts::InDoubt, desc);
                (Phase::Refused, outcome.advise(format!("Look here: virsh domstate {guest}")))
            }
            (None, _) if self.shut == Some(0) && !self.prepared => {
                let desc = "all of it is here; whether it runs is libvirt's to say, which was not carried";
                (Phase::Running, Outcome::new(Ending::Moved, Whereabouts::StoppedAtDestination, desc))
            }
            (None, _) if self.ram && self.shut.is_none() && !self.prepared => {
                let desc = "its connections have ended; whether it runs here is libvirt's to say, which was not carried";
                let outcome = Outcome::new(Ending::Failed, Whereabouts::Unknown, desc);
                (Phase::Refused, outcome.advise(format!("Look here: virsh domstate {guest}")))
            }
            _ => {
                let desc = why.unwrap_or_else(|| "libvirt gave it up".into());
                (Phase::Refused, Outcome::new(Ending::Failed, Whereabouts::StaysAtSource, desc))
            }
        };
        if phase == Phase::Running && !came {
            // It came by a stream that was not looked into.
            self.entry.advance(Phase::Filling);
            self.entry.advance(Phase::Handed);
        }
        self.entry.finish(phase, outcome);
        if finishing && self.answer.is_none() {
            // It comes late, and is put on record all the same: the source asks for it.
            tokio::task::spawn_local(async move { self.answered().await });
        }
    }

    async fn answered(&mut self) {
        while self.answer.is_none() && self.conduits > 0 {
            tokio::select! {
                biased;
                Some(passed) = self.passes.recv() => self.passed(passed),
                Some((place, ended)) = self.ends.recv() => self.conduit_ended(place, &ended),
            }
        }
    }
}

/// What is connected to.
#[derive(Debug)]
enum To {
    Socket(PathBuf),
    /// Of these ports, one.
    Landing(SocketAddrV4, RangeInclusive<u16>),
}

impl To {
    /// A port may be another guest's by now, or may always have been.
    async fn check(&self, guest: &str) -> io::Result<()> {
        let To::Landing(at, ports) = self else { return Ok(()) };
        let (at, ports) = (*at, ports.clone());
        let found =
            tokio::task::spawn_blocking(move || sockets::who_listens(at, &ports)).await.ok().flatten();
        match found {
            Some(found) if found.guest == guest => Ok(()),
            _ => Err(io::Error::other(format!("no QEMU waits there for {guest}"))),
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        match self {
            To::Socket(path) => UnixStream::connect(path).await,
            To::Landing(at, _) => connection(TcpStream::connect(at).await?),
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Socket(path) => path.display().fmt(f),
            To::Landing(at, _) => at.fmt(f),
        }
    }
}

/// Of a connection that carries libvirt's calls.
struct Calls {
    passed: UnboundedSender<Passed>,
    guard: Guard,
}

async fn carry_one(
    guest: String,
    calls: Option<Calls>,
    to: To,
    shape: Shape,
    incoming: Incoming,
    told: UnboundedSender<Told>,
) -> Result<(), String> {
    let stream = match connect(&to, &guest).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("{to}: {error}");
            incoming.refuse(Refusal::QemuFailed as u16, &text);
            return Err(text);
        }
    };
    let ended = match calls {
        Some(calls) => rpc(stream, shape, incoming, calls, told).await,
        None => match stream.into_std() {
            Ok(socket) => conduit::run(incoming, socket, shape, told).await,
            Err(error) => Err(ConduitError::Resources(error)),
        },
    };
    ended.map_err(|error| error.to_string())
}

async fn rpc(
    stream: UnixStream,
    shape: Shape,
    incoming: Incoming,
    calls: Calls,
    told: UnboundedSender<Told>,
) -> Result<(), ConduitError> {
    let pair = std::os::unix::net::UnixStream::pair().and_then(|(ours, carried)| {
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, carried))
    });
    let (ours, carried) = pair.map_err(ConduitError::Resources)?;
    // What the source says is what libvirt here is asked.
    let tap = tap::run(ours, stream, calls.passed, &calls.guard);
    let (tapped, carried) = tokio::join!(tap, conduit::run(incoming, carried, shape, told));
    if let Err(error) = tapped {
        tracing::warn!(%error, "what libvirt says to libvirt");
    }
    carried
}

/// QEMU may be about to listen. Nothing is tried that would be a connection to one who does.
async fn connect(to: &To, guest: &str) -> io::Result<UnixStream> {
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    loop {
        to.check(guest).await?;
        match to.connect().await {
            Ok(stream) => return Ok(stream),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) =>
            {
                tokio::time::sleep(CONNECT_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// No guest has more than twice this host's memory.
fn pages_most() -> u32 {
    let default = ReceiverConfig::default().max_pages;
    let sysconf = |what| nix::unistd::sysconf(what).ok().flatten().and_then(|n| u64::try_from(n).ok());
    let (pages, bytes) = (sysconf(SysconfVar::_PHYS_PAGES), sysconf(SysconfVar::PAGE_SIZE));
    let ours = pages.zip(bytes).map(|(pages, bytes)| 2 * pages * bytes / PAGE_BYTES as u64);
    ours.and_then(|pages| u32::try_from(pages).ok()).map_or(default, |pages| pages.min(default))
}
