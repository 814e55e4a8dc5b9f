//! The side that is connected to.
//!
//! Until its peer has proved its key a connection holds a ticket of the gate, a timer and a task of a few KiB, and may lose
//! its place to a newer one; nobody else learns of it before.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bond::Bond;
use crate::config::CHUNK_BYTES_CEILING;
use crate::control;
use crate::error::Lost;
use crate::gate::Ticket;
use crate::hello;
use crate::lane::engine::{Core, NewLane};
use crate::lane::rx::RxLane;
use crate::link::{LinkCore, Role};
use crate::node::Shared;
use crate::noise::{self, HandshakeError, Records};
use crate::seal::LinkSecret;
use crate::socket;
use crate::suite::SuiteSet;
use crate::wire::control::{Message, Started};
use crate::wire::greeting::{GREETING_BYTES, Greeting, Kind, Refusal};

/// After accept itself failed (no descriptors): long enough to free some.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// Connections accepted before the others' tasks have their turn: far fewer than the gate has places, so that nobody loses
/// his place before his first bytes were looked at.
const ACCEPTED_IN_A_ROW: usize = 8;
/// No message is shorter than what a peer must be able to send us.
const MESSAGE_BYTES_LEAST: u32 = 1024;

pub async fn run(shared: Arc<Shared>, listener: TcpListener) {
    for accepted in 1_usize.. {
        if accepted.is_multiple_of(ACCEPTED_IN_A_ROW) {
            tokio::task::yield_now().await;
        }
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let ticket = shared.gate.enter(from.ip());
        tokio::spawn(meet(shared.clone(), stream, from, ticket));
    }
}

/// One connection, from its first byte; a control connection to its end.
async fn meet(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr, mut ticket: Ticket) {
    let driven_out = ticket.driven_out();
    let bound = shared.config.timeouts.handshake;
    let arrived = tokio::select! {
        arrived = tokio::time::timeout(bound, arrive(&shared, stream, from, &mut ticket)) => arrived,
        () = driven_out => {
            shared.calm.turned_away(from, "its place was taken by a newer connection before it had authenticated");
            return;
        }
    };
    drop(ticket);
    match arrived {
        // Boxed: a connection that has not authenticated shall not have the memory of a link.
        Ok(Ok(Some((bond, records)))) => Box::pin(serve(&shared, bond, records)).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => shared.calm.turned_away(from, error),
        Err(_) => shared.calm.turned_away(from, "it did not authenticate in time"),
    }
}

type NewBond = (Arc<Bond>, Records);

/// Runs a bond to its end. If it ended for no fault of anybody, its sessions wait for the next.
async fn serve(shared: &Arc<Shared>, bond: Arc<Bond>, records: Records) {
    let link = bond.link.clone();
    let bonds = link.bonds();
    let lost = control::run(shared, &bond, records).await;
    let was_the_links = link.detach(&bond, &lost);
    shared.forget_bond(&bond);
    if !was_the_links {
        // Another bond's, or it has ended.
        if link.ended().is_some() {
            shared.forget(&link);
        }
        return;
    }
    if lost.may_pass() && link.holds_anything() && !link.timeouts.link.is_zero() {
        link.tell_down(&lost);
        let waited = link.timeouts.link;
        let waiting = tokio::time::timeout(waited, link.bound_again(bonds)).await;
        if waiting.is_ok() && link.ended().is_none() {
            return;
        }
        // Unless it ended while it was down: its peer opened another.
        link.end(Lost::Outage { why: Box::new(lost), waited });
    } else {
        link.end(lost);
    }
    shared.forget(&link);
}

/// `Some`: a new bond.
async fn arrive(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    from: SocketAddr,
    ticket: &mut Ticket,
) -> Result<Option<NewBond>, HandshakeError> {
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await?;
    let greeting = Greeting::decode(&bytes).map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    match greeting.kind {
        Kind::Control { suites } => {
            control_connection(shared, stream, &bytes, suites, ticket).await.map(Some)
        }
        Kind::Lane => lane(shared, stream, &bytes, from).await.map(|()| None),
        Kind::Foreign => {
            noise::refuse(&mut stream, Refusal::Version).await?;
            Err(HandshakeError::Version(greeting.versions))
        }
        Kind::GoOn | Kind::Refused(_) => Err(HandshakeError::Protocol("an answer to nothing".into())),
    }
}

async fn control_connection(
    shared: &Arc<Shared>,
    stream: TcpStream,
    greeting: &[u8; GREETING_BYTES],
    suites: SuiteSet,
    ticket: &mut Ticket,
) -> Result<NewBond, HandshakeError> {
    socket::prepare_control(&stream, &shared.config.sockets)?;
    let who = |key| match shared.peer_of(&key) {
        Some(peer) if peer.may_send => {
            ticket.vouch(key);
            Ok(peer.name.clone())
        }
        Some(peer) => Err(format!("{} may not send here", peer.name)),
        None => Err(format!("the key {key} is not among the peers there")),
    };
    let (mut records, peer) = noise::respond(stream, greeting, suites, &shared.responder, who).await?;
    let first = records.reader.read().await.map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    let Message::Start(start) = first else {
        return Err(HandshakeError::Protocol("the first message is no start".into()));
    };
    let limits = &shared.config.limits;
    if start.lanes == 0
        || start.chunk_bytes_max == 0
        || start.chunk_bytes_max > CHUNK_BYTES_CEILING
        || start.message_bytes_max < MESSAGE_BYTES_LEAST
    {
        return Err(HandshakeError::Protocol(format!("{peer} asks for a link that cannot work")));
    }
    let agreed = Started {
        resumed: false,
        lanes: start.lanes.min(limits.lanes),
        chunk_bytes_max: start.chunk_bytes_max.min(limits.chunk_bytes),
        message_bytes_max: start.message_bytes_max.min(limits.message_bytes as u32),
        early_bytes: limits.early_bytes,
    };
    let known = start
        .resumes
        .and_then(|name| shared.inbound_link(&name))
        .filter(|link| link.peer == peer && link.agreed == agreed && link.ended().is_none());
    let resumed = known.is_some();
    let link = known.unwrap_or_else(|| {
        Arc::new(LinkCore::new(
            peer.clone(),
            Role::Responder,
            start.link,
            agreed.clone(),
            &shared.config,
            shared.clock,
        ))
    });
    let bond = Bond::new(link.clone(), start.link, LinkSecret::new(start.secret, records.suite));
    // Lanes may come as soon as the answer is out.
    if shared.add_inbound(&bond).is_err() {
        return Err(HandshakeError::Protocol("the link's id is taken".into()));
    }
    let undo = Forget { shared, bond: Some(&bond), is_new: !resumed };
    records
        .writer
        .send(&Message::Started(Started { resumed, ..agreed }))
        .await
        .map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    if !link.attach(&bond) {
        return Err(HandshakeError::Protocol("the link ended meanwhile".into()));
    }
    undo.keep();
    shared.inbound_came.notify_waiters();
    if resumed {
        link.send_list(&bond);
    } else {
        tracing::info!(%peer, suite = %records.suite, "link opened by the peer");
    }
    Ok((bond, records))
}

/// Takes a bond out again whose opening fails or runs out of time, and a link that has no other.
struct Forget<'a> {
    shared: &'a Arc<Shared>,
    bond: Option<&'a Arc<Bond>>,
    is_new: bool,
}

impl Forget<'_> {
    fn keep(mut self) {
        self.bond = None;
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(bond) = self.bond {
            self.shared.forget_bond(bond);
            if self.is_new || bond.link.ended().is_some() {
                self.shared.forget(&bond.link);
            }
        }
    }
}

async fn lane(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    greeting: &[u8; GREETING_BYTES],
    from: SocketAddr,
) -> Result<(), HandshakeError> {
    let mut rest = [0; hello::REST_BYTES];
    stream.read_exact(&mut rest).await?;
    let wrong = |what: &str| HandshakeError::Protocol(format!("lane hello: {what}"));
    let bond = shared.inbound_soon(&hello::claimed_link(&rest)).await;
    let (lane, epoch, opener) =
        hello::open(&bond.secret, greeting, &rest).ok_or_else(|| wrong("failed authentication"))?;
    let (progress, old) = bond.admit(lane, epoch).ok_or_else(|| wrong("a replay, or a lane too many"))?;
    if let Some(old) = old {
        shared.lanes.close_lane(&bond, lane, old);
    }
    socket::prepare_lane(&stream, &shared.config.sockets)?;
    stream.write_all(&hello::accepted(&bond.secret, &bond.id, lane, epoch)).await?;
    let core = RxLane::new(lane, epoch, opener, bond.link.agreed.chunk_bytes_max, progress);
    let socket = stream.into_std()?;
    tracing::debug!(peer = %bond.link.peer, %lane, %from, "lane up");
    shared.lanes.add(NewLane { bond, socket, core: Core::Rx(core) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::{NodeConfig, Peer};
    use crate::events::Acceptor;
    use crate::incoming::Incoming;
    use crate::key::StaticKey;
    use crate::model::{User, bond, link};
    use crate::names::{PeerName, SessionId};
    use crate::node::Node;

    /// Lets everybody in.
    struct Open;

    impl Acceptor for Open {
        fn open(&self, _: &PeerName, _: Vec<u8>, incoming: Incoming) {
            let session = incoming.accept(Vec::new(), 1 << 20, Arc::<User>::default());
            std::mem::forget(session);
        }
    }

    fn peer(name: &str, key: &StaticKey, addresses: Vec<String>) -> Peer {
        Peer { name: name.into(), addresses, public_key: key.public(), may_send: true, may_receive: true }
    }

    fn node(key: &StaticKey, peer: Peer) -> Node {
        let mut config = NodeConfig::new(key.clone());
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.peers = vec![peer];
        (config.lanes, config.lane_threads) = (1, 1);
        Node::start(config, Arc::new(Open)).unwrap()
    }

    #[tokio::test]
    async fn a_link_that_ends_while_it_is_down_is_forgotten() {
        let (tokyo, osaka) = (StaticKey::generate().unwrap(), StaticKey::generate().unwrap());
        let there = node(&osaka, peer("tokyo", &tokyo, vec![]));
        let address = there.addresses()[0].to_string();
        let here = || node(&tokyo, peer("osaka", &osaka, vec![address.clone()]));
        let (first, second) = (here(), here());
        let link = first.link(&"osaka".into()).await.unwrap();
        let _session = link.open(SessionId([1; 16]), vec![], Arc::<User>::default()).await.unwrap();
        let shared = there.shared();
        let [inbound] = &shared.inbound_links()[..] else { panic!("one link") };
        // A fault of nobody: its sessions wait.
        let silent = Lost::Silent { peer: "tokyo".into(), silent_for: Duration::ZERO };
        inbound.bond().unwrap().fault(silent);
        let patience = Instant::now() + Duration::from_secs(10);
        while inbound.bond().is_some() {
            assert!(Instant::now() < patience);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(inbound.ended().is_none());
        second.link(&"osaka".into()).await.unwrap();
        while shared.inbound_links().len() > 1 {
            assert!(Instant::now() < patience, "the dead link is kept");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(inbound.ended().is_some());
    }

    #[test]
    fn a_link_whose_first_answer_was_not_written_is_forgotten() {
        let key = StaticKey::generate().unwrap();
        let node = node(&key, peer("tokyo", &StaticKey::generate().unwrap(), vec![]));
        let shared = node.shared();
        let link = link(Role::Responder);
        let (first, next) = (bond(&link, 1), bond(&link, 2));
        for (bond, is_new) in [(&next, false), (&first, true)] {
            shared.add_inbound(bond).unwrap();
            drop(Forget { shared, bond: Some(bond), is_new });
            assert_eq!(
                (shared.inbound(&bond.id).is_none(), shared.inbound_links().is_empty()),
                (true, is_new)
            );
        }
    }
}
