//! The daemon: what all its migrations share, and the two ways one begins.

use crate::api::wire::{MigrateArguments, ReceiveArguments, Role};
use crate::awaited::{self, Awaited};
use crate::config::{Config, Peer};
use crate::destination::{self, Armed, Arrival, WaitingGuest};
use crate::estimate::Estimates;
use crate::id::Id;
use crate::libvirt::{check, far, near};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::protocol::{self, Ask, Hello, Note, PROTOCOL, Refusal};
use crate::records::{Records, Shelf};
use crate::registry::Registry;
use crate::service::Keeper;
use crate::settings::Store;
use crate::source::{self, experience::Experience};
use crate::units::LIMIT_BYTES_PER_S_MIN;
use crate::workers::Workers;
use hikyaku_transport::{Acceptor, Incoming, Link, LinkError, Lost, Node, PeerName, RxEvents};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel};

/// Per peer. An honest one asks for one after each crash or outage at the worst moment.
const NEVER_CAME_MOST: usize = 256;
/// Records that are looked at, and removed, at once because a peer says so.
const OVERS_MOST: usize = 64;
/// Questions that are looked into at once.
const QUESTIONS_MOST: usize = 4;
const DOUBTS: usize = 16;
/// Sources that may wait at one armed QEMU's door; one is taken.
const DOOR: usize = 4;

pub struct Daemon {
    pub config: Config,
    pub node: Node,
    pub records: Records,
    pub settings: Store,
    /// At a source: what libvirts of peers were asked of guests that they are to let run.
    pub asked: Shelf,
    /// At a destination: what libvirt here was.
    pub delivered: Shelf,
    pub keeper: Keeper,
    pub registry: Registry,
    pub workers: Workers,
    /// What earlier moves have taught.
    pub experience: RefCell<Experience>,
    pub estimates: RefCell<Estimates>,
    /// At a source: what peers have said.
    pub awaited: Awaited,
    /// At a destination: guests of libvirt's.
    pub carriages: far::Carriages,
    /// At a source: those that leave by a peer's landing.
    pub leaving: near::landing::Leaving,
    armed: RefCell<HashMap<String, AtDoor>>,
    receiving: RefCell<HashSet<Id>>,
    /// By peer: what it asked for that never came, and has not said to be over.
    never_came: RefCell<HashMap<PeerName, HashSet<Id>>>,
    /// For peers' words that something is over.
    overs: Arc<Semaphore>,
    /// For peers' questions that take a while to answer.
    questions: Semaphore,
    /// For their questions what became of a guest, which may wait for a disk or for virsh.
    doubts: Semaphore,
    /// Held by whoever still has something to put away.
    tidying: Rc<()>,
}

impl Daemon {
    pub fn new(
        config: Config,
        node: Node,
        records: Records,
        settings: Store,
        shelves: [Shelf; 2],
        workers: Workers,
    ) -> Rc<Daemon> {
        let [asked, delivered] = shelves;
        Rc::new(Daemon {
            config,
            node,
            records,
            settings,
            asked,
            delivered,
            keeper: Keeper::of_this_process(),
            registry: Registry::default(),
            workers,
            experience: RefCell::default(),
            estimates: RefCell::default(),
            awaited: Awaited::default(),
            carriages: far::Carriages::default(),
            leaving: near::landing::Leaving::default(),
            armed: RefCell::default(),
            receiving: RefCell::default(),
            never_came: RefCell::default(),
            overs: Arc::new(Semaphore::new(OVERS_MOST)),
            doubts: Semaphore::new(DOUBTS),
            questions: Semaphore::new(QUESTIONS_MOST),
            tidying: Rc::default(),
        })
    }

    /// Something is put away, as long as what is returned lives.
    pub fn tidying(&self) -> Rc<()> {
        self.tidying.clone()
    }

    pub fn is_tidying(&self) -> bool {
        Rc::strong_count(&self.tidying) > 1
    }

    /// The link to a peer, under the limit that the configuration gives it: one that was made anew knows none.
    pub async fn link_to(&self, peer: &str) -> Result<Link, LinkError> {
        let link = self.node.link(&PeerName::from(peer)).await?;
        link.set_limit(self.config.peer(peer).and_then(|peer| peer.limit_bytes_per_s));
        Ok(link)
    }

    /// Begins to move a guest. `Err`: nothing was begun.
    pub fn migrate(self: &Rc<Self>, arguments: MigrateArguments) -> Result<Id, Outcome> {
        check_name(&arguments.guest)?;
        check_limit(arguments.limit_bytes_per_s)?;
        source::check(&arguments)?;
        let id = Id::random();
        let (guest, to) = (&arguments.guest, Some(arguments.to.as_str()));
        let entry = self.registry.enter(id, guest, Role::Source, to, Phase::Preparing)?;
        entry.set_sharing(Some(arguments.limit_bytes_per_s), Some(arguments.priority))?;
        let daemon = self.clone();
        tokio::task::spawn_local(async move {
            source::run(daemon.clone(), entry, arguments).await;
            daemon.rest();
        });
        Ok(id)
    }

    /// Arms a waiting QEMU. `Err`: it does not wait, or another one waits for this guest.
    pub async fn receive(self: &Rc<Self>, arguments: ReceiveArguments) -> Result<Id, Outcome> {
        check_name(&arguments.guest)?;
        if let Some(from) = &arguments.from
            && self.config.peer(from).is_none()
        {
            let desc = format!("no peer \"{from}\" in the configuration");
            return Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc));
        }
        let guest = WaitingGuest::connect(&arguments.qmp, self.config.guest.qmp_timeout)
            .await
            .map_err(|e| Outcome::new(Ending::Failed, Whereabouts::Untouched, e.to_string()))?;
        let id = Id::random();
        let (name, from) = (&arguments.guest, arguments.from.as_deref());
        let entry = self.registry.enter(id, name, Role::Destination, from, Phase::Armed)?;
        let (at_door, door) = channel(DOOR);
        let awaits = Note::Awaits { guest: name.clone(), welcome: destination::welcome(self, &guest, true) };
        self.tell_sources(from, &awaits);
        let at_door = AtDoor { door: at_door, from: arguments.from.clone(), awaits };
        self.armed.borrow_mut().insert(name.clone(), at_door);
        let daemon = self.clone();
        tokio::task::spawn_local(async move {
            destination::run(daemon.clone(), Armed { entry, arguments, guest, door }).await;
            daemon.rest();
        });
        Ok(id)
    }

    /// With no guest on its way the daemon gives back what it kept for speed.
    pub fn rest(&self) {
        if self.registry.unfinished().is_empty() {
            tokio::task::spawn_blocking(hikyaku_transport::release_freed_buffers);
        }
    }

    pub fn disarm(&self, guest: &str) {
        if let Some(AtDoor { from, .. }) = self.armed.borrow_mut().remove(guest) {
            self.tell_sources(from.as_deref(), &Note::AwaitsNoMore { guest: guest.to_owned() });
        }
    }

    /// To those who may send a guest that is awaited from `from`, or from anybody.
    fn tell_sources(&self, from: Option<&str>, note: &Note) {
        let sources = self.config.peers.iter().filter(|peer| peer.may_be_received_from());
        for peer in sources.filter(|peer| from.is_none_or(|from| from == peer.name)) {
            awaited::tell(&self.node, &peer.name, note);
        }
    }

    /// Until the node ends.
    pub async fn read_notes(self: Rc<Self>, mut notes: Receiver<(PeerName, Vec<u8>)>) {
        while let Some((peer, note)) = notes.recv().await {
            self.noted(peer, &note);
        }
    }

    fn noted(&self, peer: PeerName, note: &[u8]) {
        let known = self.config.peer(peer.as_str());
        match protocol::decode(note) {
            Ok(Note::Awaits { guest, welcome })
                if known.is_some_and(Peer::may_be_sent_to) && check_name(&guest).is_ok() =>
            {
                self.awaited.awaits(peer, guest, welcome);
            }
            Ok(Note::AwaitsNoMore { guest }) => self.awaited.no_more(&peer, &guest),
            Ok(Note::WhoIsAwaited) if known.is_some_and(Peer::may_be_received_from) => {
                let armed = self.armed.borrow();
                let its =
                    armed.values().filter(|at| at.from.as_deref().is_none_or(|from| from == peer.as_str()));
                its.for_each(|at| awaited::tell(&self.node, peer.as_str(), &at.awaits));
            }
            Ok(Note::Over { migration }) => {
                if let Some(ids) = self.never_came.borrow_mut().get_mut(&peer) {
                    ids.remove(&migration);
                }
                // A record that is kept for nothing is small; a peer that says so without end is not heard.
                let Ok(permit) = self.overs.clone().try_acquire_owned() else { return };
                let (records, delivered) = (self.records.clone(), self.delivered.clone());
                tokio::task::spawn_local(async move {
                    destination::over(&records, peer.as_str(), migration).await;
                    far::became::over(&delivered, peer.as_str(), migration).await;
                    drop(permit);
                });
            }
            Ok(Note::Kept { migration }) => {
                let its = self.registry.unfinished().into_iter().find(|entry| entry.migration() == migration);
                if let Some(entry) = its.filter(|entry| entry.is_from(peer.as_str())) {
                    entry.keep_at_source();
                }
            }
            other => tracing::debug!(%peer, ?other, "a note that means nothing here"),
        }
    }

    /// Whoever may send guests may ask for ever new ones that never were, and for each a refusal is recorded until he says that it is over.
    async fn may_ask(&self, peer: &PeerName, ask: &Ask) -> Result<(), String> {
        let known = self.is_receiving(ask.migration)
            || ask.incarnation != self.records.incarnation()
            || self.records.read(ask.migration).await.map_err(|error| error.to_string())?.is_some();
        if known {
            return Ok(());
        }
        let mut all = self.never_came.borrow_mut();
        let ids = all.entry(peer.clone()).or_default();
        if ids.len() >= NEVER_CAME_MOST && !ids.contains(&ask.migration) {
            return Err(format!(
                "{NEVER_CAME_MOST} guests that never came here are on record for this peer already"
            ));
        }
        ids.insert(ask.migration);
        Ok(())
    }

    /// What goes over all of the host's processes is done for a few at a time: records take their turns beside it.
    async fn in_turn<T>(&self, answer: impl Future<Output = T>) -> T {
        let _turn = self.questions.acquire().await;
        answer.await
    }

    /// Whether a migration is under way here as its destination.
    pub fn is_receiving(&self, id: Id) -> bool {
        self.receiving.borrow().contains(&id)
    }

    /// Enters a migration for as long as what is returned lives.
    pub fn receives(self: &Rc<Self>, id: Id) -> Receives {
        self.receiving.borrow_mut().insert(id);
        Receives { daemon: self.clone(), id }
    }

    /// Sends every source that knocks to its door. Runs until the node ends.
    pub async fn answer_the_door(self: Rc<Self>, mut knocks: UnboundedReceiver<Knock>) {
        while let Some(knock) = knocks.recv().await {
            let daemon = self.clone();
            tokio::task::spawn_local(async move { daemon.answer(knock).await });
        }
    }

    async fn answer(self: Rc<Self>, knock: Knock) {
        let Knock { peer, hello, incoming } = knock;
        let refuse = |incoming: Incoming, code: Refusal, text: String| {
            tracing::warn!(%peer, %text, "refused");
            incoming.refuse(code as u16, &text);
        };
        match protocol::decode(&hello) {
            Ok(Hello::Migrate(hello)) if hello.protocol != PROTOCOL => {
                let text = format!("this daemon speaks protocol {PROTOCOL}, the source {}", hello.protocol);
                refuse(incoming, Refusal::Protocol, text);
            }
            Ok(Hello::Migrate(hello)) if check_name(&hello.guest).is_err() => {
                refuse(incoming, Refusal::Protocol, "the guest's name is none".into());
            }
            Ok(Hello::Migrate(hello)) => {
                let door = self.armed.borrow().get(&hello.guest).map(|at| at.door.clone());
                let Some(door) = door else {
                    let text = format!("no QEMU here awaits a guest named \"{}\"", hello.guest);
                    return refuse(incoming, Refusal::NotAwaited, text);
                };
                if let Err(error) = door.try_send(Arrival { peer: peer.clone(), hello, incoming }) {
                    let (tokio::sync::mpsc::error::TrySendError::Full(arrival)
                    | tokio::sync::mpsc::error::TrySendError::Closed(arrival)) = error;
                    refuse(arrival.incoming, Refusal::NotAwaited, "another source was faster".into());
                }
            }
            Ok(Hello::Carry(hello)) => far::carry(&self, peer, &hello, incoming),
            Ok(Hello::Conduit(hello)) => far::conduit(&self, &peer, hello, incoming),
            Ok(Hello::WhoListens(hello)) => {
                match self.in_turn(far::who_listens(&self.config, &hello)).await {
                    Ok(reply) => drop(incoming.accept(reply, 0, Arc::new(Deaf))),
                    Err((code, text)) => refuse(incoming, code, text),
                }
            }
            Ok(Hello::Examine(_)) => match self.in_turn(check::answer(&self.config, peer.as_str())).await {
                Ok(reply) => drop(incoming.accept(reply, 0, Arc::new(Deaf))),
                Err(text) => refuse(incoming, Refusal::Other, text),
            },
            Ok(Hello::WhatBecame(what)) => {
                let answer = {
                    let _turn = self.doubts.acquire().await;
                    far::became::answer(&self, &peer, &what).await
                };
                tracing::info!(%peer, carriage = %what.carriage, ?answer, "was asked what became of a guest that libvirt moves");
                match answer.and_then(|answer| protocol::encode(&answer).map_err(|error| error.to_string())) {
                    Ok(reply) => drop(incoming.accept(reply, 0, Arc::new(Deaf))),
                    Err(text) => refuse(incoming, Refusal::Other, text),
                }
            }
            Ok(Hello::Ask(ask)) => {
                if let Err(text) = self.may_ask(&peer, &ask).await {
                    return refuse(incoming, Refusal::Other, text);
                }
                let answer =
                    destination::answer(&self.records, self.is_receiving(ask.migration), peer.as_str(), &ask)
                        .await;
                tracing::info!(%peer, migration = %ask.migration, ?answer, "was asked for a verdict");
                match answer
                    .map_err(|e| e.to_string())
                    .and_then(|a| protocol::encode(&a).map_err(|e| e.to_string()))
                {
                    Ok(reply) => drop(incoming.accept(reply, 0, Arc::new(Deaf))),
                    Err(text) => refuse(incoming, Refusal::Other, text),
                }
            }
            Err(error) => refuse(incoming, Refusal::Protocol, error.to_string()),
        }
    }
}

/// Where sources of an awaited guest come in.
struct AtDoor {
    door: Sender<Arrival>,
    /// From this peer alone.
    from: Option<String>,
    awaits: Note,
}

/// See [`Daemon::receives`].
pub struct Receives {
    daemon: Rc<Daemon>,
    id: Id,
}

impl Drop for Receives {
    fn drop(&mut self) {
        self.daemon.receiving.borrow_mut().remove(&self.id);
    }
}

/// A peer that wants to open a session.
pub struct Knock {
    peer: PeerName,
    hello: Vec<u8>,
    incoming: Incoming,
}

/// From the transport's threads to the daemon's.
pub struct Door {
    pub knocks: UnboundedSender<Knock>,
    /// Bounded: of more than can wait the rest is thrown away.
    pub notes: Sender<(PeerName, Vec<u8>)>,
}

impl Acceptor for Door {
    fn open(&self, peer: &PeerName, hello: Vec<u8>, incoming: Incoming) {
        // A daemon that is ending refuses by dropping it.
        let _ = self.knocks.send(Knock { peer: peer.clone(), hello, incoming });
    }

    fn note(&self, peer: &PeerName, note: Vec<u8>) {
        let _ = self.notes.try_send((peer.clone(), note));
    }
}

/// A question's session carries nothing but its answer.
struct Deaf;

impl RxEvents for Deaf {
    fn chunk(&self, _seq: u64, _after: u64, _payload: Vec<u8>) {}
    fn message(&self, _message: Vec<u8>) {}
    fn lost(&self, _lost: Lost) {}
    fn closed(&self, _code: u16, _text: String) {}
}

/// The command has said it already; programs have not read it.
pub fn check_limit(bytes_per_s: Option<u64>) -> Result<(), Outcome> {
    if bytes_per_s.is_none_or(|limit| limit >= LIMIT_BYTES_PER_S_MIN) {
        return Ok(());
    }
    let desc = format!("a limit is at least {LIMIT_BYTES_PER_S_MIN} bytes per second (2mbit)");
    Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc))
}

pub fn check_name(guest: &str) -> Result<(), Outcome> {
    let fits = (1..=256).contains(&guest.len()) && !guest.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    let desc = "a guest's name has 1 to 256 characters, none of them a control character";
    Err(Outcome::new(Ending::Usage, Whereabouts::Untouched, desc))
}
