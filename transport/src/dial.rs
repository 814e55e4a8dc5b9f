//! The side that connects: finds the peer and proves the keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::bond::Bond;
use crate::config::Peer;
use crate::error::{LinkError, Lost};
use crate::keep;
use crate::lanes;
use crate::link::{LinkCore, Role};
use crate::node::Shared;
use crate::noise::{self, HandshakeError, Records};
use crate::seal::LinkSecret;
use crate::socket;
use crate::wire::control::{Message, Start, Started};
use crate::wire::greeting::VERSIONS;

/// A new link opens with the lanes that are up after this, if not all are: some paths may be down.
const LANES_PATIENCE: Duration = Duration::from_secs(1);

/// A link to `peer` over the first of its addresses that gives one. An address where nobody answers, or somebody else,
/// is passed over; a peer that proved its key and said no is final.
pub async fn link(shared: &Arc<Shared>, peer: &Peer) -> Result<Arc<LinkCore>, LinkError> {
    let mut tried = Vec::new();
    let mut worse = None;
    let paths = resolve(shared, peer, &mut tried).await;
    for &address in &paths {
        let stream = match connect(shared, address, false).await {
            Ok(stream) => stream,
            Err(error) => {
                tried.push((address.to_string(), error));
                continue;
            }
        };
        match open(shared, peer, address, &paths, stream).await {
            Ok(link) => return Ok(link),
            Err(error @ LinkError::NotAllowedThere { .. }) => return Err(error),
            Err(error) => {
                tracing::info!(%error, "no link by this address");
                worse.get_or_insert(error);
            }
        }
    }
    Err(worse.unwrap_or(LinkError::Unreachable { peer: peer.name.clone(), tried }))
}

/// Where the peer's names lead, in their order. What is wrong with the others is added to `tried`.
pub async fn resolve(shared: &Shared, peer: &Peer, tried: &mut Vec<(String, String)>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for name in &peer.addresses {
        match timeout(shared.config.timeouts.connect, tokio::net::lookup_host(name)).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            Ok(Err(error)) => tried.push((name.clone(), error.to_string())),
            Err(_) => tried.push((name.clone(), "the name was not resolved in time".into())),
        }
    }
    found
}

async fn open(
    shared: &Arc<Shared>,
    peer: &Peer,
    address: SocketAddr,
    paths: &[SocketAddr],
    stream: TcpStream,
) -> Result<Arc<LinkCore>, LinkError> {
    let bound = shared.config.timeouts.handshake;
    // The lanes' connections are made during the handshake, and say hello with the start: that saves two round trips.
    let (told, secret) = watch::channel(None);
    let early = lanes::dial_early(shared, address, paths, &secret);
    let late = |what| LinkError::Timeout {
        peer: peer.name.clone(),
        address: address.to_string(),
        what,
        after: bound,
    };
    let failed = |error: HandshakeError| explain(shared, peer, address, error);
    let handshake = async {
        let mut records =
            noise::initiate(stream, &shared.config.key, &peer.public_key, shared.suites).await?;
        let (start, started) = start(shared, &mut records, None, &told).await?;
        Ok((start, started, records))
    };
    let (start, agreed, records) =
        timeout(bound, handshake).await.map_err(|_| late("the handshake"))?.map_err(failed)?;
    let link = Arc::new(LinkCore::new(
        peer.name.clone(),
        Role::Initiator,
        start.link,
        agreed,
        &shared.config,
        shared.clock,
    ));
    let bond = Bond::new(link.clone(), start.link, LinkSecret::new(start.secret, records.suite));
    link.attach(&bond);
    shared.remember(&link);
    let why_not = lanes::Reason::default();
    tokio::spawn(keep::run(
        shared.clone(),
        peer.clone(),
        bond.clone(),
        records,
        lanes::Way { control: address, paths: paths.to_vec(), early, why_not: why_not.clone() },
    ));

    let _ = timeout(LANES_PATIENCE.min(bound), bond.lanes_are_up(lanes::first(shared, &link))).await;
    let error = match timeout(bound, bond.lanes_are_up(1)).await {
        Ok(()) => {
            return match link.ended() {
                None => {
                    let (lanes, suite) = (bond.lanes_up(), bond.secret.suite());
                    tracing::info!(peer = %peer.name, %address, lanes, %suite, "link open");
                    Ok(link)
                }
                Some(lost) => Err(lost.clone().into()),
            };
        }
        Err(_) => match why_not.take() {
            Some(what) => LinkError::Protocol {
                peer: peer.name.clone(),
                address: address.to_string(),
                text: format!("the control connection is up, but {what}"),
            },
            None => late("bringing the lanes up"),
        },
    };
    // The peer is told, too.
    bond.fault(Lost::Protocol { peer: peer.name.clone(), what: error.to_string() });
    Err(error)
}

/// Asks for a bond: a new link's, or one more of the link that is named. As soon as that is said the lanes are told what
/// they prove themselves by; the peer holds their hellos until it has heard it.
pub async fn start(
    shared: &Shared,
    records: &mut Records,
    resumes: Option<[u8; 16]>,
    told: &watch::Sender<Option<lanes::Introduction>>,
) -> Result<(Start, Started), HandshakeError> {
    let config = &shared.config;
    let mut start = Start {
        link: [0; 16],
        resumes,
        secret: [0; 32],
        lanes: config.lanes.max(config.lanes_most),
        chunk_bytes_max: config.limits.chunk_bytes,
        message_bytes_max: config.limits.message_bytes as u32,
    };
    for random in [&mut start.link[..], &mut start.secret[..]] {
        getrandom::fill(random)
            .map_err(|e| HandshakeError::Protocol(format!("the system gave no random numbers: {e}")))?;
    }
    let protocol = |error| match error {
        noise::RecordError::Io(error) => HandshakeError::Io(error),
        other => HandshakeError::Protocol(other.to_string()),
    };
    records.writer.send(&Message::Start(start.clone())).await.map_err(protocol)?;
    let secret = Arc::new(LinkSecret::new(start.secret, records.suite));
    told.send_replace(Some(lanes::Introduction { bond: start.link, secret }));
    let agreed = match records.reader.read().await.map_err(protocol)? {
        Message::Started(agreed) => agreed,
        _ => return Err(HandshakeError::Protocol("its first message is no answer to a start".into())),
    };
    if agreed.lanes == 0
        || agreed.lanes > start.lanes
        || agreed.chunk_bytes_max > start.chunk_bytes_max
        || agreed.message_bytes_max > start.message_bytes_max
        || agreed.resumed && start.resumes.is_none()
    {
        return Err(HandshakeError::Protocol("it agreed to what was not asked".into()));
    }
    Ok((start, agreed))
}

/// Options before the connection: buffers decide the window scale.
pub async fn connect(shared: &Shared, address: SocketAddr, lane: bool) -> Result<TcpStream, String> {
    let config = &shared.config;
    let connect = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if lane {
            socket::prepare_lane(&socket, &config.sockets)?;
        } else {
            socket::prepare_control(&socket, &config.sockets)?;
        }
        socket.connect(address).await
    };
    match timeout(config.timeouts.connect, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", config.timeouts.connect.as_secs_f32())),
    }
}

pub fn explain(shared: &Shared, peer: &Peer, address: SocketAddr, error: HandshakeError) -> LinkError {
    let peer = peer.name.clone();
    let address = address.to_string();
    match error {
        HandshakeError::Version(theirs) => LinkError::Version { peer, address, theirs, ours: VERSIONS },
        HandshakeError::WrongKey(text) => LinkError::WrongKey { peer, address, text: text.into() },
        HandshakeError::NoSuite => LinkError::Suite { peer, address, ours: shared.suites.to_string() },
        HandshakeError::No(text) => LinkError::NotAllowedThere { peer, text },
        HandshakeError::Protocol(text) => LinkError::Protocol { peer, address, text },
        HandshakeError::Io(error) => {
            let what = match error.kind() {
                std::io::ErrorKind::UnexpectedEof => "closed".into(),
                _ => error.to_string(),
            };
            let tried = vec![(address, format!("the connection ended in the handshake: {what}"))];
            LinkError::Unreachable { peer, tried }
        }
    }
}
