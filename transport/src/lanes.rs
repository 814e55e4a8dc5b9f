//! The initiator's care for its lanes: brings them up, dials those that fell, spreads them over the peer's addresses.
//!
//! A lane belongs to the path (address) of its number, and lives on the next one that answers while its own does not.
//! How much each path carries needs no plan: lanes take chunks as fast as their path takes them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::bond::Bond;
use crate::config::NodeConfig;
use crate::dial::connect;
use crate::fit::{self, Fit};
use crate::hello;
use crate::keep::Pauses;
use crate::lane::engine::{Core, NewLane};
use crate::lane::tx::TxLane;
use crate::link::{LinkCore, lock};
use crate::names::{Epoch, LaneId};
use crate::node::Shared;
use crate::seal::{LinkSecret, Sealer};
use crate::socket::sets_send_buffers;

/// How often lanes that live elsewhere try their own path again.
const HOME_AGAIN: Duration = Duration::from_secs(5);

/// How a bond's lanes reach the peer.
pub struct Way {
    /// Where the control connection went: this one answers.
    pub control: SocketAddr,
    /// All of the peer's addresses.
    pub paths: Vec<SocketAddr>,
    /// Connections that are being made already, for the first lanes.
    pub early: VecDeque<Early>,
    /// Why the last lane that failed did.
    pub why_not: Reason,
}

impl Way {
    /// The path that a lane belongs to.
    fn home(&self, lane: LaneId) -> SocketAddr {
        path(&self.paths, self.control, lane, 0)
    }
}

pub type Early = JoinHandle<Result<Connection, String>>;

/// What the lanes of a bond that is being asked for prove themselves by.
#[derive(Clone)]
pub struct Introduction {
    pub bond: [u8; 16],
    pub secret: Arc<LinkSecret>,
}

/// A lane's connection, and what it has said already.
pub struct Connection {
    stream: TcpStream,
    said: Option<(Epoch, Sealer)>,
}

/// What a task that dialled a lane has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialled {
    /// It is up, there.
    Up(LaneId, SocketAddr),
    /// Its own path does not take it yet: it stays on this connection.
    StillAway(LaneId, Epoch),
}

/// The last reason, for whoever gives up waiting.
#[derive(Clone, Default)]
pub struct Reason(Arc<Mutex<Option<String>>>);

impl Reason {
    pub fn take(&self) -> Option<String> {
        lock(&self.0).take()
    }

    fn set(&self, what: String) {
        *lock(&self.0) = Some(what);
    }
}

/// The lanes that a bond begins with; more may come ([`fit`]).
pub fn first(shared: &Shared, link: &LinkCore) -> u16 {
    to_begin_with(&shared.config, sets_send_buffers).min(link.agreed.lanes)
}

/// Twice as many where the kernel decides how long their send buffers are: it lets them grow slowly, and not far.
fn to_begin_with(config: &NodeConfig, may_set: impl FnOnce() -> bool) -> u16 {
    let set = config.sockets.send_buffer_bytes.is_some() && may_set();
    if set { config.lanes } else { config.lanes.saturating_mul(2).min(config.lanes_most).max(config.lanes) }
}

/// Starts to connect every lane that a bond may begin with, to the path it belongs to, and to say hello as soon as there is a
/// secret for it.
pub fn dial_early(
    shared: &Arc<Shared>,
    control: SocketAddr,
    paths: &[SocketAddr],
    secret: &watch::Receiver<Option<Introduction>>,
) -> VecDeque<Early> {
    (0..to_begin_with(&shared.config, sets_send_buffers))
        .map(|lane| {
            let (shared, address) = (shared.clone(), path(paths, control, LaneId(lane), 0));
            tokio::spawn(greet(shared, address, LaneId(lane), secret.clone()))
        })
        .collect()
}

async fn greet(
    shared: Arc<Shared>,
    address: SocketAddr,
    lane: LaneId,
    mut secret: watch::Receiver<Option<Introduction>>,
) -> Result<Connection, String> {
    let mut stream = connect(&shared, address, true).await?;
    let Introduction { bond, secret } = match secret.wait_for(Option::is_some).await {
        Ok(told) => told.clone().ok_or("no secret")?,
        Err(_) => return Err("the link did not come about".into()),
    };
    let (bytes, sealer) = hello::hello(&secret, &bond, lane, Epoch::FIRST);
    let patience = shared.config.timeouts.handshake;
    match timeout(patience, stream.write_all(&bytes)).await {
        Ok(Ok(())) => Ok(Connection { stream, said: Some((Epoch::FIRST, sealer)) }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its hello was not taken in time".into()),
    }
}

/// Where a lane is dialled at its n-th attempt: at its own path first, then at all others in turn.
fn path(paths: &[SocketAddr], control: SocketAddr, lane: LaneId, attempt: usize) -> SocketAddr {
    if paths.is_empty() { control } else { paths[(usize::from(lane.0) + attempt) % paths.len()] }
}

/// Keeps the lanes of a bond up until it is over.
pub async fn keep(shared: Arc<Shared>, bond: Arc<Bond>, mut way: Way) {
    let early = std::mem::take(&mut way.early);
    let way = Arc::new(way);
    let mut dialling = JoinSet::new();
    let mut early = early.into_iter();
    let mut lanes = first(&shared, &bond.link);
    for lane in (0..lanes).map(LaneId) {
        dialling.spawn(bring_up(shared.clone(), bond.clone(), way.clone(), lane, early.next()));
    }
    // The peer wants no more of them.
    early.for_each(|connecting| connecting.abort());
    let mut away: Vec<LaneId> = Vec::new();
    let mut home_again = tokio::time::interval(HOME_AGAIN);
    home_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first lanes say how long the path is.
    let mut fitted = false;
    let sockets = &shared.config.sockets;
    let mut fit = Fit::new(&bond, lanes);
    let mut look = tokio::time::interval(fit::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        for lane in bond.take_fallen() {
            fit.fell();
            away.retain(|known| *known != lane);
            dialling.spawn(bring_up(shared.clone(), bond.clone(), way.clone(), lane, None));
        }
        if bond.is_over() {
            return;
        }
        let mut more = 0;
        tokio::select! {
            () = bond.stirred.notified() => more = fit.stirred(&bond),
            Some(up) = dialling.join_next() => {
                let lives_away = match up {
                    Ok(Some(Dialled::Up(lane, at))) => (at != way.home(lane)).then_some(lane),
                    // If it fell meanwhile it is being dialled, and will tell where it lives then.
                    Ok(Some(Dialled::StillAway(lane, epoch))) => (bond.epoch(lane) == Some(epoch)).then_some(lane),
                    Ok(None) | Err(_) => None,
                };
                away.extend(lives_away);
                if !fitted && dialling.is_empty() {
                    fitted = true;
                    more = fit.first(&bond, sockets);
                }
            }
            _ = look.tick() => more = fit.look(&bond, sockets),
            _ = home_again.tick(), if !away.is_empty() => {
                for lane in std::mem::take(&mut away) {
                    dialling.spawn(go_home(shared.clone(), bond.clone(), way.clone(), lane));
                }
            }
        }
        for lane in (lanes..lanes + more).map(LaneId) {
            dialling.spawn(bring_up(shared.clone(), bond.clone(), way.clone(), lane, None));
        }
        lanes += more;
    }
}

/// Dials a lane until it is up. `None`: the bond is over.
async fn bring_up(
    shared: Arc<Shared>,
    bond: Arc<Bond>,
    way: Arc<Way>,
    lane: LaneId,
    mut early: Option<Early>,
) -> Option<Dialled> {
    let mut pauses = Pauses::new(&shared.config.timeouts);
    for attempt in 0.. {
        let address = path(&way.paths, way.control, lane, attempt);
        let stream = match early.take() {
            Some(early) => early.await.unwrap_or_else(|error| Err(error.to_string())),
            None => connect(&shared, address, true).await.map(|stream| Connection { stream, said: None }),
        };
        if bond.is_over() {
            return None;
        }
        let up = match stream {
            Ok(connection) => introduce(&shared, &bond, connection, lane).await,
            Err(what) => Err(what),
        };
        match up {
            Ok(new) => {
                shared.lanes.add(new);
                return Some(Dialled::Up(lane, address));
            }
            Err(what) => {
                tracing::debug!(peer = %bond.link.peer, %lane, %address, what, "the lane is not up");
                way.why_not.set(format!("{lane} is not: {what}"));
            }
        }
        // The other paths are tried without waiting.
        if attempt + 1 >= way.paths.len() {
            pauses.wait().await;
        }
    }
    None
}

/// A lane that lives elsewhere tries its own path once.
async fn go_home(shared: Arc<Shared>, bond: Arc<Bond>, way: Arc<Way>, lane: LaneId) -> Option<Dialled> {
    // `None`: it fell, and is being dialled.
    let old = bond.epoch(lane)?;
    let home = way.home(lane);
    let up = match connect(&shared, home, true).await {
        Ok(_) if bond.is_over() => return None,
        Ok(stream) => introduce(&shared, &bond, Connection { stream, said: None }, lane).await,
        Err(what) => Err(what),
    };
    match up {
        Ok(new) => {
            shared.lanes.close_lane(&bond, lane, old);
            shared.lanes.add(new);
            Some(Dialled::Up(lane, home))
        }
        Err(what) => {
            tracing::debug!(peer = %bond.link.peer, %lane, %home, what, "the lane is not home yet");
            Some(Dialled::StillAway(lane, old))
        }
    }
}

/// Proves that a connection is this lane of the bond.
async fn introduce(
    shared: &Shared,
    bond: &Arc<Bond>,
    Connection { mut stream, said }: Connection,
    lane: LaneId,
) -> Result<NewLane, String> {
    let link = &bond.link;
    let epoch = bond.next_epoch(lane);
    let (bytes, sealer) = match said {
        Some((said, sealer)) if said == epoch => (Vec::new(), sealer),
        // A connection says one hello.
        Some(_) => return Err("its hello came too late".into()),
        None => hello::hello(&bond.secret, &bond.id, lane, epoch),
    };
    let mut answer = [0; hello::ACCEPTED_BYTES];
    let exchange = async {
        stream.write_all(&bytes).await?;
        stream.read_exact(&mut answer).await
    };
    match timeout(shared.config.timeouts.handshake, exchange).await {
        Ok(done) => done.map_err(|error| error.to_string())?,
        Err(_) => return Err("its hello was not answered in time".into()),
    };
    if !hello::is_accepted(&bond.secret, &bond.id, lane, epoch, &answer) {
        return Err("its answer failed authentication".into());
    }
    let socket = stream.into_std().map_err(|error| error.to_string())?;
    bond.lane_up(lane, epoch);
    let core =
        Core::Tx(TxLane::new(lane, epoch, link.queue.new_carrier(), sealer, link.agreed.chunk_bytes_max));
    Ok(NewLane { bond: bond.clone(), socket, core })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::StaticKey;

    #[test]
    fn where_the_kernel_decides_about_send_buffers_a_bond_begins_with_more_lanes() {
        let mut config = NodeConfig::new(StaticKey::generate().unwrap());
        assert_eq!((to_begin_with(&config, || true), to_begin_with(&config, || false)), (4, 8));
        config.sockets.send_buffer_bytes = None;
        assert_eq!(to_begin_with(&config, || true), 8);
        (config.lanes, config.lanes_most) = (3, 3);
        assert_eq!(to_begin_with(&config, || false), 3, "as it was told");
        config.lanes_most = 1;
        assert_eq!(to_begin_with(&config, || false), 3, "as it was told");
    }
}
