//! The side that connects: finds the peer, proves the keys, brings the lanes up.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::Peer;
use crate::control;
use crate::error::{LinkError, Lost};
use crate::hello;
use crate::lane::engine::{Core, NewLane};
use crate::lane::tx::TxLane;
use crate::link::{LinkCore, Role};
use crate::names::{Epoch, LaneId};
use crate::node::Shared;
use crate::noise::{self, HandshakeError, Records};
use crate::socket;
use crate::wire::control::{Message, Start, Started};
use crate::wire::greeting::VERSIONS;

/// A link to `peer` over the first of its addresses that gives one. An address where nobody answers, or somebody else,
/// is passed over; a peer that proved its key and said no is final.
pub async fn link(shared: &Arc<Shared>, peer: &Peer) -> Result<Arc<LinkCore>, LinkError> {
    let mut tried = Vec::new();
    let mut worse = None;
    for name in &peer.addresses {
        let found = match timeout(shared.config.timeouts.connect, tokio::net::lookup_host(name)).await {
            Ok(Ok(found)) => found.collect::<Vec<_>>(),
            Ok(Err(error)) => {
                tried.push((name.clone(), error.to_string()));
                continue;
            }
            Err(_) => {
                tried.push((name.clone(), "the name was not resolved in time".into()));
                continue;
            }
        };
        for address in found {
            let stream = match connect(shared, address, false).await {
                Ok(stream) => stream,
                Err(error) => {
                    tried.push((address.to_string(), error));
                    continue;
                }
            };
            match open(shared, peer, address, stream).await {
                Ok(link) => return Ok(link),
                Err(error @ LinkError::NotAllowedThere { .. }) => return Err(error),
                Err(error) => {
                    tracing::info!(%error, "no link by this address");
                    worse.get_or_insert(error);
                }
            }
        }
    }
    Err(worse.unwrap_or(LinkError::Unreachable { peer: peer.name.clone(), tried }))
}

async fn open(
    shared: &Arc<Shared>,
    peer: &Peer,
    address: SocketAddr,
    stream: TcpStream,
) -> Result<Arc<LinkCore>, LinkError> {
    let bound = shared.config.timeouts.handshake;
    // The lanes' connections are made during the handshake: that saves a round trip.
    let mut streams = JoinSet::new();
    for _ in 0..shared.config.lanes {
        let shared = shared.clone();
        streams.spawn(async move { connect(&shared, address, true).await });
    }
    let late = |what| LinkError::Timeout {
        peer: peer.name.clone(),
        address: address.to_string(),
        what,
        after: bound,
    };
    let failed = |error: HandshakeError| explain(shared, peer, address, error);
    let (link, records) = timeout(bound, handshake(shared, peer, stream))
        .await
        .map_err(|_| late("the handshake"))?
        .map_err(failed)?;
    shared.remember(&link);
    let task = (shared.clone(), link.clone());
    tokio::spawn(async move {
        let (shared, link) = task;
        control::run(link.clone(), records, shared.acceptor.clone()).await;
        shared.forget(&link);
    });

    let lanes = timeout(bound, lanes(shared, &link, streams)).await;
    let error = match lanes {
        Ok(Ok(())) => {
            let (lanes, suite) = (link.agreed.lanes, link.secret.suite());
            tracing::info!(peer = %peer.name, %address, lanes, %suite, "link open");
            return match link.ended() {
                None => Ok(link),
                Some(lost) => Err(lost.clone().into()),
            };
        }
        Ok(Err(what)) => LinkError::Protocol {
            peer: peer.name.clone(),
            address: address.to_string(),
            text: format!("the control connection is up, but {what}"),
        },
        Err(_) => late("bringing the lanes up"),
    };
    // The peer is told, too.
    link.fault(Lost::Protocol { peer: peer.name.clone(), what: error.to_string() });
    Err(error)
}

async fn handshake(
    shared: &Shared,
    peer: &Peer,
    stream: TcpStream,
) -> Result<(Arc<LinkCore>, Records), HandshakeError> {
    let config = &shared.config;
    let mut records = noise::initiate(stream, &config.key, &peer.public_key, shared.suites).await?;
    let mut start = Start {
        link: [0; 16],
        secret: [0; 32],
        lanes: config.lanes,
        chunk_bytes_max: config.limits.chunk_bytes,
        message_bytes_max: config.limits.message_bytes as u32,
    };
    for random in [&mut start.link[..], &mut start.secret[..]] {
        getrandom::fill(random)
            .map_err(|e| HandshakeError::Protocol(format!("the system gave no random numbers: {e}")))?;
    }
    let protocol = |error: noise::RecordError| HandshakeError::Protocol(error.to_string());
    records.writer.send(&Message::Start(start.clone())).await.map_err(protocol)?;
    let agreed = match records.reader.read().await.map_err(protocol)? {
        Message::Started(agreed) => agreed,
        _ => return Err(HandshakeError::Protocol("its first message is no answer to a start".into())),
    };
    let asked = Started {
        lanes: start.lanes,
        chunk_bytes_max: start.chunk_bytes_max,
        message_bytes_max: start.message_bytes_max,
    };
    if agreed.lanes == 0
        || agreed.lanes > asked.lanes
        || agreed.chunk_bytes_max > asked.chunk_bytes_max
        || agreed.message_bytes_max > asked.message_bytes_max
    {
        return Err(HandshakeError::Protocol("it agreed to what was not asked".into()));
    }
    let link =
        LinkCore::new(peer.name.clone(), Role::Initiator, start, records.suite, agreed, config, shared.clock);
    Ok((Arc::new(link), records))
}

/// All lanes at once, over connections that are being made. Those that the peer does not want are closed.
async fn lanes(
    shared: &Arc<Shared>,
    link: &Arc<LinkCore>,
    mut streams: JoinSet<Result<TcpStream, String>>,
) -> Result<(), String> {
    let mut hellos = JoinSet::new();
    for lane in (0..link.agreed.lanes).map(LaneId) {
        let stream = match streams.join_next().await {
            Some(Ok(stream)) => stream.map_err(|error| format!("{lane} is not: {error}"))?,
            _ => return Err("its lanes could not be dialled".into()),
        };
        let link = link.clone();
        hellos.spawn(async move {
            introduce(&link, stream, lane).await.map_err(|error| format!("{lane} is not: {error}"))
        });
    }
    let mut up = Vec::new();
    while let Some(done) = hellos.join_next().await {
        up.push(done.map_err(|error| error.to_string())??);
    }
    link.set_lanes_up(link.agreed.lanes);
    for lane in up {
        shared.lanes.add(lane);
    }
    Ok(())
}

async fn introduce(link: &Arc<LinkCore>, mut stream: TcpStream, lane: LaneId) -> Result<NewLane, String> {
    // Dialled again, a lane would take the next epoch.
    let epoch = Epoch(1);
    let (bytes, sealer) = hello::hello(&link.secret, &link.id, lane, epoch);
    let mut answer = [0; hello::ACCEPTED_BYTES];
    let exchange = async {
        stream.write_all(&bytes).await?;
        stream.read_exact(&mut answer).await
    };
    exchange.await.map_err(|error| error.to_string())?;
    if !hello::is_accepted(&link.secret, &link.id, lane, epoch, &answer) {
        return Err("its answer failed authentication".into());
    }
    let socket = stream.into_std().map_err(|error| error.to_string())?.into();
    let core = Core::Tx(TxLane::new(lane, epoch, link.queue.new_carrier(), sealer));
    Ok(NewLane { link: link.clone(), socket, core })
}

/// Options before the connection: buffers decide the window scale.
async fn connect(shared: &Shared, address: SocketAddr, lane: bool) -> Result<TcpStream, String> {
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

fn explain(shared: &Shared, peer: &Peer, address: SocketAddr, error: HandshakeError) -> LinkError {
    let peer = peer.name.clone();
    let address = address.to_string();
    match error {
        HandshakeError::Version(theirs) => LinkError::Version { peer, address, theirs, ours: VERSIONS },
        HandshakeError::WrongKey(text) => LinkError::WrongKey { peer, address, text: text.into() },
        HandshakeError::NoSuite => LinkError::Suite { peer, address, ours: shared.suites.to_string() },
        HandshakeError::No(text) => LinkError::NotAllowedThere { peer, text },
        HandshakeError::Protocol(text) => LinkError::Protocol { peer, address, text },
        HandshakeError::Io(error) => LinkError::Protocol {
            peer,
            address,
            text: match error.kind() {
                std::io::ErrorKind::UnexpectedEof => "it closed the connection".into(),
                _ => error.to_string(),
            },
        },
    }
}
