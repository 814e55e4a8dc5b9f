//! Connections to where a peer's guests land: libvirt here was told by the one there to make them, and nobody told either of hikyaku.
//!
//! ```text
//!  libvirtd, QEMU ─▶ the peer's alias, which is this host ─▶ who is awaited at that port there? ─▶ that guest's carriage
//! ```
//! Which guest it is for nobody says here; who waits there does. Nobody answers at the peer: nothing listens there but what QEMU made.

use super::carrier::{Beginning, begins};
use super::{Came, Way, begin};
use crate::api::wire::CarryArguments;
use crate::daemon::Daemon;
use crate::id::Id;
use crate::libvirt::directory::qemu_user;
use crate::libvirt::sockets;
use crate::libvirt::watch::{AskError, ask_peer};
use crate::protocol::libvirt::{Listens, Place, WhoListens};
use crate::protocol::{self, Hello, PROTOCOL, ProtocolError};
use hikyaku_transport::{Priority, SessionId, Share};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// QEMU speaks first on a connection for memory, and waits to be spoken to on one for a disk. libvirt connects just before it has it speak.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);
/// At a port that is most likely one for disks.
const MAY_SPEAK_WITHIN: Duration = Duration::from_millis(50);
/// Between two attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Of those that are not known yet, in all.
const STRANGERS_MOST: usize = 64;

/// Carriages that are under way, by peer and guest.
#[derive(Default)]
pub struct Leaving(RefCell<HashMap<(String, String), UnboundedSender<Came>>>);

/// Why a connection is not carried.
#[derive(Debug, thiserror::Error)]
enum NotCarried {
    #[error("made as user {0}, who is neither root nor whom libvirt's QEMUs run as")]
    User(u32),
    #[error("nobody knows who made it")]
    Nobody,
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Listens at every peer's landing until the daemon ends.
pub fn listen(daemon: &Rc<Daemon>) {
    let strangers = Rc::new(());
    for peer in daemon.config.peers.iter().filter(|peer| peer.may_be_sent_to()) {
        let Some(landing) = &peer.landing else { continue };
        tracing::info!(peer = %peer.name, address = %landing.address, ports = %landing.ports, "libvirt's guests leave for it here");
        for port in landing.ports.all() {
            let at = SocketAddrV4::new(landing.address, port);
            tokio::task::spawn_local(listen_at(daemon.clone(), peer.name.clone(), at, strangers.clone()));
        }
    }
}

async fn listen_at(daemon: Rc<Daemon>, peer: String, at: SocketAddrV4, strangers: Rc<()>) {
    let listeners = Rc::strong_count(&strangers);
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(%peer, %at, %error, "libvirt's guests cannot leave here: is it among this host's own ports (hikyaku libvirt check)? Tried again");
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    };
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(came) => came,
            Err(error) => {
                tracing::warn!(%peer, %at, %error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let SocketAddr::V4(from) = from else { continue };
        if Rc::strong_count(&strangers) >= listeners + STRANGERS_MOST {
            tracing::warn!(%peer, %at, "more than {STRANGERS_MOST} connections at once: closed");
            continue;
        }
        let (daemon, peer, stranger) = (daemon.clone(), peer.clone(), strangers.clone());
        tokio::task::spawn_local(async move {
            if let Err(why) = came(&daemon, &peer, at, stream, from).await {
                tracing::warn!(%peer, %at, %why, "a connection is not carried");
            }
            drop(stranger);
        });
    }
}

async fn came(
    daemon: &Rc<Daemon>,
    peer: &str,
    at: SocketAddrV4,
    stream: TcpStream,
    from: SocketAddrV4,
) -> Result<(), NotCarried> {
    let named = daemon.config.libvirt.qemu_user.clone();
    let who = tokio::task::spawn_blocking(move || {
        Ok::<_, io::Error>((sockets::who_connected(from, at), qemu_user(named.as_deref())?))
    });
    let (who, qemu) = who.await.map_err(|_| NotCarried::Nobody)??;
    match who {
        Some(uid) if uid == 0 || qemu.is_some_and(|user| user.uid.as_raw() == uid) => {}
        Some(uid) => return Err(NotCarried::User(uid)),
        None => return Err(NotCarried::Nobody),
    }
    let stream = sockets::connection(stream)?;
    let Listens { guest, first } = who_listens(daemon, peer, at.port()).await?;
    // QEMU stands still, and its guest with it, until a disk's connection is made.
    let place = match begins(&stream, if first { SPEAKS_WITHIN } else { MAY_SPEAK_WITHIN }).await {
        Beginning::Word(_) => Place::Ram,
        Beginning::Silence => Place::Disks,
        Beginning::Closed => return Ok(()),
    };
    leave(daemon, peer, guest, Came { place, port: Some(at.port()), stream });
    Ok(())
}

/// The peer looks whose QEMU listens there.
async fn who_listens(daemon: &Daemon, peer: &str, port: u16) -> Result<Listens, NotCarried> {
    let hello = protocol::encode(&Hello::WhoListens(WhoListens { protocol: PROTOCOL, port }))?;
    let share = Share { priority: Priority::Urgent, ..Share::default() };
    let (session, reply, _) = ask_peer(daemon, peer, SessionId(Id::random().0), hello, share).await?;
    session.close(protocol::Refusal::Done as u16, "answered");
    Ok(protocol::decode(&reply)?)
}

/// To the guest's carriage; the first connection begins one.
fn leave(daemon: &Rc<Daemon>, peer: &str, guest: String, mut came: Came) {
    let key = (peer.to_owned(), guest);
    let mut leaving = daemon.leaving.0.borrow_mut();
    if let Some(carriage) = leaving.get(&key) {
        match carriage.send(came) {
            Ok(()) => return,
            // It is ending.
            Err(back) => came = back.0,
        }
    }
    let (at_door, door) = unbounded_channel();
    let _ = at_door.send(came);
    leaving.insert(key.clone(), at_door.clone());
    let daemon = daemon.clone();
    tokio::task::spawn_local(async move {
        let arguments = CarryArguments {
            guest: key.1.clone(),
            to: key.0.clone(),
            downtime_ms: None,
            limit_bytes_per_s: None,
            priority: crate::api::wire::Priority::default(),
        };
        match begin(&daemon, arguments, Way::Landing(door)).await {
            Ok(carriage) => carriage.run().await,
            Err(outcome) => {
                tracing::warn!(peer = %key.0, guest = %key.1, why = %outcome.desc, "libvirt's guest is not carried")
            }
        }
        let mut leaving = daemon.leaving.0.borrow_mut();
        if leaving.get(&key).is_some_and(|other| other.same_channel(&at_door)) {
            leaving.remove(&key);
        }
    });
}
