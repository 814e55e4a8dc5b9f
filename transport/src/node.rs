//! A node: its listeners, its links, its threads.
//!
//! A node runs on threads of its own (one for control connections, some for lanes), so a user that is busy does not
//! delay acknowledgements, and its futures can be awaited under any executor. When the last [`Node`] is dropped all its
//! links end ([`Lost::Stopped`](crate::Lost::Stopped)).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::bond::Bond;
use crate::calm::Calm;
use crate::config::{CHUNK_BYTES_CEILING, Io, MESSAGE_BYTES_CEILING, NodeConfig, Peer, Sockets};
use crate::dial;
use crate::error::{LinkError, Lost, OpenError, StartError};
use crate::events::{Acceptor, TxEvents};
use crate::gate::Gate;
use crate::key::PublicKey;
use crate::lane::engine::LaneEngine;
use crate::lane_stats::LaneStats;
use crate::limit::Reading;
use crate::link::{LinkCore, Opening};
use crate::listen;
use crate::names::{PeerName, SessionId};
use crate::noise::Responder;
use crate::session::{Deaf, LinkStats, Share, TxSession};
use crate::socket::set_dscp;
use crate::suite::{Suite, SuiteSet};
use crate::throttle::HostLimit;
use crate::warm::Probe;
use crate::wire::control::Message;

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<Guard>);

/// Stops everything when the last handle goes.
struct Guard {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    addresses: Vec<SocketAddr>,
}

/// What the node's tasks share.
pub(crate) struct Shared {
    pub config: NodeConfig,
    pub clock: Instant,
    pub lanes: LaneEngine,
    pub acceptor: Arc<dyn Acceptor>,
    pub gate: Arc<Gate>,
    pub calm: Calm,
    pub responder: Responder,
    /// What this node offers for its lanes.
    pub suites: SuiteSet,
    /// By name; the lock is held while a link is being opened, so that two askers share one.
    outbound: HashMap<PeerName, Outbound>,
    by_key: HashMap<PublicKey, Peer>,
    /// The bonds of links that peers opened, by the id that lanes name.
    inbound: Mutex<HashMap<[u8; 16], Arc<Bond>>>,
    /// There is one more.
    pub inbound_came: Notify,
    /// Those links, by the name under which they go on.
    inbound_links: Mutex<HashMap<[u8; 16], Arc<LinkCore>>>,
    /// Control connections that run.
    pub running: tokio::sync::watch::Sender<usize>,
    /// Every link that may still live, for the end.
    all: Mutex<Vec<Weak<LinkCore>>>,
    limit: Arc<HostLimit>,
}

struct Outbound {
    peer: Peer,
    link: tokio::sync::Mutex<Option<Arc<LinkCore>>>,
}

impl Node {
    /// Starts listening and the threads. On `Err` nothing is left running.
    pub fn start(config: NodeConfig, acceptor: Arc<dyn Acceptor>) -> Result<Node, StartError> {
        let mut outbound = HashMap::new();
        let mut by_key = HashMap::<_, Peer>::new();
        check(&config)?;
        let suites = config.suites.offered();
        for peer in &config.peers {
            if let Some(other) = by_key.insert(peer.public_key, peer.clone()) {
                return Err(StartError::SameKey(other.name, peer.name.clone()));
            }
            let slot = Outbound { peer: peer.clone(), link: tokio::sync::Mutex::default() };
            if outbound.insert(peer.name.clone(), slot).is_some() {
                return Err(StartError::PeerTwice(peer.name.clone()));
            }
        }
        let listeners = config
            .listen
            .iter()
            .map(|address| bind(address, &config.sockets))
            .collect::<Result<Vec<_>, _>>()?;
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let clock = Instant::now();
        let lanes = LaneEngine::start(threads(config.lane_threads), config.io, clock)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("hikyaku-link")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let gate = Gate::new(config.limits.pending, config.limits.pending_per_address);
        let responder = Responder::new(config.key.clone(), suites);
        let shared = Arc::new(Shared {
            config,
            clock,
            lanes,
            acceptor,
            gate,
            calm: Calm::default(),
            responder,
            suites,
            outbound,
            by_key,
            inbound: Mutex::default(),
            inbound_came: Notify::new(),
            inbound_links: Mutex::default(),
            running: tokio::sync::watch::Sender::new(0),
            all: Mutex::default(),
            limit: Arc::default(),
        });
        {
            let _inside = runtime.enter();
            for listener in listeners {
                let address = listener.local_addr();
                let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
                tracing::debug!(?address, "listening");
                tokio::spawn(listen::run(shared.clone(), listener));
            }
        }
        Ok(Node(Arc::new(Guard { shared, runtime: Some(runtime), addresses })))
    }

    /// Where this node listens: port 0 of the configuration is resolved.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// [`Io::Uring`] or [`Io::Plain`], as it was decided at the start.
    pub fn io(&self) -> Io {
        self.0.shared.lanes.io()
    }

    /// What all links of this node send together at most, bytes per second on the wire; see [`Link::set_limit`].
    pub fn set_limit(&self, bytes_per_s: Option<u64>) {
        let shared = &self.0.shared;
        shared.limit.set_rate(bytes_per_s, Instant::now());
        lock(&shared.all).iter().filter_map(Weak::upgrade).for_each(|link| link.queue.wake());
    }

    /// Tells `peer` something outside of any session, over a link that is there, whoever opened it. It is not repeated when it is
    /// lost on its way. False: there is no link, or it is longer than a message may be, or the peer does not read.
    pub fn note(&self, peer: &PeerName, note: &[u8]) -> bool {
        let bonds = lock(&self.0.shared.all).iter().filter_map(Weak::upgrade).collect::<Vec<_>>().into_iter();
        let mut bonds = bonds.filter(|link| link.peer == *peer).filter_map(|link| link.bond());
        let fits = |bond: &Arc<Bond>| {
            note.len() <= bond.link.agreed.message_bytes_max as usize && !bond.outbox.is_flooded()
        };
        let Some(bond) = bonds.next().filter(fits) else { return false };
        bond.outbox.push(&Message::Note(note.to_vec()));
        true
    }

    /// The link to `peer`: the one that is open, or a new one. `Ok` means that the peer proved its key and every lane
    /// is up.
    pub async fn link(&self, peer: &PeerName) -> Result<Link, LinkError> {
        let Some(runtime) = &self.0.runtime else { return Err(LinkError::Stopped) };
        let shared = self.0.shared.clone();
        let name = peer.clone();
        let task = runtime.spawn(async move { shared.link(&name).await });
        Ok(Link(task.await.map_err(|_| LinkError::Stopped)??))
    }
}

#[cfg(test)]
impl Node {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let links: Vec<_> = lock(&self.shared.all).drain(..).filter_map(|link| link.upgrade()).collect();
        for link in links {
            let bond = link.bond();
            link.end(Lost::Stopped);
            if let Some(bond) = bond {
                self.shared.lanes.close(&bond);
                // The control task tells the peer.
                bond.fault(Lost::Stopped);
            }
        }
        let Some(runtime) = self.runtime.take() else { return };
        let bound = self.shared.config.timeouts.last_words;
        let mut running = self.shared.running.subscribe();
        // The last words need the runtime for a moment more, and a drop must not wait for them.
        let farewell = std::thread::Builder::new().name("hikyaku-farewell".into()).spawn(move || {
            runtime.block_on(async {
                let _ = tokio::time::timeout(bound, running.wait_for(|bonds| *bonds == 0)).await;
            });
            runtime.shutdown_background();
        });
        if let Err(error) = farewell {
            tracing::debug!(%error, "the peers are not told that this node stops");
        }
    }
}

impl Shared {
    async fn link(self: &Arc<Self>, name: &PeerName) -> Result<Arc<LinkCore>, LinkError> {
        let slot = self.outbound.get(name).ok_or_else(|| LinkError::UnknownPeer(name.clone()))?;
        if !slot.peer.may_receive {
            return Err(LinkError::NotAllowedHere(name.clone()));
        }
        let known = slot.link.lock().await.clone();
        if let Some(link) = known.filter(|link| link.ended().is_none()) {
            // While it is down its keeper dials; nobody else does. Whoever else asks waits beside us.
            let bound = self.config.timeouts.connect + self.config.timeouts.handshake;
            if tokio::time::timeout(bound, link.up()).await.is_err() {
                return Err(link.why_down().unwrap_or(Lost::Stopped).into());
            }
            if link.ended().is_none() {
                return Ok(link);
            }
        }
        let mut current = slot.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| link.ended().is_none()) {
            return Ok(link.clone());
        }
        *current = None;
        let link = dial::link(self, &slot.peer).await?;
        *current = Some(link.clone());
        Ok(link)
    }

    pub fn peer_of(&self, key: &PublicKey) -> Option<&Peer> {
        self.by_key.get(key)
    }

    /// A bond of a link that a peer opened; another link that it had ends. `Err`: its id is taken.
    pub fn add_inbound(&self, bond: &Arc<Bond>) -> Result<(), ()> {
        let mut inbound = lock(&self.inbound);
        if inbound.contains_key(&bond.id) {
            return Err(());
        }
        inbound.insert(bond.id, bond.clone());
        drop(inbound);
        let link = &bond.link;
        let mut links = lock(&self.inbound_links);
        let old: Vec<_> =
            links.values().filter(|old| old.peer == link.peer && !Arc::ptr_eq(old, link)).cloned().collect();
        links.insert(link.name, link.clone());
        drop(links);
        for old in old {
            let replaced = Lost::Replaced { peer: link.peer.clone() };
            match old.bond() {
                // Its control task ends it, and tells the peer.
                Some(bond) => bond.fault(replaced),
                None => old.end(replaced),
            }
        }
        self.remember(link);
        Ok(())
    }

    pub fn inbound(&self, id: &[u8; 16]) -> Option<Arc<Bond>> {
        lock(&self.inbound).get(id).cloned()
    }

    /// Waits for it: lanes say hello while the start of their link is on its way. Whoever calls this bounds it.
    pub async fn inbound_soon(&self, id: &[u8; 16]) -> Arc<Bond> {
        loop {
            let came = self.inbound_came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            if let Some(bond) = self.inbound(id) {
                return bond;
            }
            came.await;
        }
    }

    pub fn inbound_link(&self, name: &[u8; 16]) -> Option<Arc<LinkCore>> {
        lock(&self.inbound_links).get(name).cloned()
    }

    #[cfg(test)]
    pub fn inbound_links(&self) -> Vec<Arc<LinkCore>> {
        lock(&self.inbound_links).values().cloned().collect()
    }

    pub fn remember(&self, link: &Arc<LinkCore>) {
        link.queue.join_host(self.limit.clone());
        let _ = link.thread_times.set(self.lanes.times());
        let mut all = lock(&self.all);
        all.retain(|link| link.strong_count() > 0);
        all.push(Arc::downgrade(link));
    }

    /// After a bond's control task is done.
    pub fn forget_bond(&self, bond: &Arc<Bond>) {
        lock(&self.inbound).remove(&bond.id);
        self.lanes.close(bond);
    }

    /// After a link that a peer opened has ended.
    pub fn forget(&self, link: &Arc<LinkCore>) {
        lock(&self.inbound_links).retain(|_, known| !Arc::ptr_eq(known, link));
    }
}

/// A link to a peer that may receive from us. Clones are the same link; it stays open when they are dropped, for the
/// next migration.
#[derive(Clone)]
pub struct Link(Arc<LinkCore>);

impl Link {
    /// Opens a session. `hello` goes to the peer's [`Acceptor`], whose reply comes back. On `Err` no event will come.
    pub async fn open(
        &self,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
    ) -> Result<(TxSession, Vec<u8>), OpenError> {
        self.open_sharing(id, hello, events, Share::default()).await
    }

    /// The same. What it says of sharing the link holds before the first byte that is sent for this session, padding included.
    pub async fn open_sharing(
        &self,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
        share: Share,
    ) -> Result<(TxSession, Vec<u8>), OpenError> {
        self.0.open(id, hello, events, share, true).await
    }

    /// The same, without waiting for the answer: what the peer lets us send ahead of it goes at once, if the session is the
    /// only one on the link that does so. On `Err`, and when the [`Opening`] is one, the session is gone and no event but
    /// `room` came. Messages
    /// can be sent in it once it is answered.
    pub fn open_early(
        &self,
        id: SessionId,
        hello: Vec<u8>,
        events: Arc<dyn TxEvents>,
        share: Share,
    ) -> Result<(TxSession, Opening), OpenError> {
        self.0.open_early(id, hello, events, share)
    }

    /// Opens a session for its answer alone, and closes it. The link is not warmed for it.
    pub async fn ask(&self, id: SessionId, hello: Vec<u8>) -> Result<Vec<u8>, OpenError> {
        // Where each of the others has a limit, padding stays under theirs.
        let share = Share { limit_bytes_per_s: Some(0), ..Share::default() };
        let (session, answer) = self.0.open(id, hello, Arc::new(Deaf), share, false).await?;
        session.close(0, "answered");
        Ok(answer)
    }

    /// What all sessions of this link send together at most, bytes per second on the wire, from now on. A new link has
    /// no limit of its own.
    pub fn set_limit(&self, bytes_per_s: Option<u64>) {
        self.0.queue.set_link_limit(bytes_per_s, Instant::now());
    }

    pub fn peer(&self) -> &PeerName {
        &self.0.peer
    }

    /// How its lanes are sealed. `None`: it is down.
    pub fn suite(&self) -> Option<Suite> {
        self.0.bond().map(|bond| bond.secret.suite())
    }

    pub fn stats(&self) -> LinkStats {
        self.0.stats()
    }

    /// Sessions that are open, or asked for.
    pub fn sessions(&self) -> usize {
        self.0.queue.sessions()
    }

    /// How each of its lanes does, by the kernel's account. Empty: it is down.
    pub fn lanes(&self) -> Vec<LaneStats> {
        self.0.bond().map_or_else(Vec::new, |bond| bond.lane_stats())
    }

    /// All that is known of it now; two of them say [what limits](crate::what_limits) its rate.
    pub fn reading(&self) -> Reading {
        self.0.reading()
    }

    /// Fills the path with padding, as far as it goes without a queue, and says what was found; or waits for the warm-up
    /// that is under way. While chunks are under way nothing is sent, and only round trips are known. `Err`: the link is
    /// down, or ended.
    pub async fn warm_up(&self) -> Result<Probe, LinkError> {
        let down = || self.0.why_down().unwrap_or(Lost::Stopped);
        let Some(bonds) = self.0.bond().map(|_| self.0.bonds()) else { return Err(down().into()) };
        tokio::select! {
            probe = self.0.wish.warm_up() => Ok(probe),
            () = self.0.not_bound(bonds) => Err(down().into()),
        }
    }

    /// What the last warm-up found.
    pub fn probe(&self) -> Option<Probe> {
        self.0.wish.found()
    }

    /// Why the link ended, if it has.
    pub fn lost(&self) -> Option<Lost> {
        self.0.ended().cloned()
    }
}

fn check(config: &NodeConfig) -> Result<(), StartError> {
    let wrong = |what| Err(StartError::Config(what));
    if config.lanes == 0 || config.lanes.max(config.lanes_most) > config.limits.lanes {
        return wrong("lanes must be at least 1, and with lanes_most at most limits.lanes");
    }
    if config.sockets.dscp.is_some_and(|dscp| dscp > 63) {
        return wrong("sockets.dscp must be at most 63");
    }
    if config.limits.chunk_bytes == 0 || config.limits.chunk_bytes > CHUNK_BYTES_CEILING {
        return wrong("limits.chunk_bytes must be 1 byte to 4 MiB");
    }
    if config.limits.message_bytes > MESSAGE_BYTES_CEILING {
        return wrong("limits.message_bytes must be at most 60 KiB");
    }
    if config.timeouts.dead_after <= config.timeouts.ping_idle {
        return wrong("timeouts.dead_after must be longer than timeouts.ping_idle");
    }
    Ok(())
}

/// A connection's first answer is the listener's.
fn bind(address: &SocketAddr, sockets: &Sockets) -> Result<std::net::TcpListener, StartError> {
    let failed = |error| StartError::Listen { address: *address, error };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    set_dscp(&listener, sockets);
    Ok(listener)
}

/// Half the CPUs, for the other half encodes: at least one, and four are more than a 10 Gbit/s link needs.
fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).clamp(1, 4)),
        some => some,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
