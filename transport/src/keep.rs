//! The initiator's care for a link: runs each bond to its end, and makes the next one while there are sessions to go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::bond::Bond;
use crate::config::{Peer, Timeouts};
use crate::control;
use crate::dial::{connect, explain, resolve, start};
use crate::error::{LinkError, Lost};
use crate::lanes::{self, Way};
use crate::link::LinkCore;
use crate::node::Shared;
use crate::noise::{self, Records};
use crate::seal::LinkSecret;
use crate::tend;
use crate::wire::control::Started;

/// Attempts to reach the peer that run at once. What is answered is answered within [`ATTEMPT_CONNECTS_FOR`]; the others wait
/// for a handshake with a peer that took the connection and says nothing, such as one that is stopped.
const ATTEMPTS_AT_ONCE: usize = 12;
/// The first packet of a connection that is lost is repeated by TCP after 1, 3, 7 s: too late for a path that is back. So
/// attempts are short, twice the round trip of the longest path there is, and overlap: with `redial_most` between them,
/// the path is tried that often for as long as it is out.
const ATTEMPT_CONNECTS_FOR: Duration = Duration::from_secs(2);

/// Runs a link from its first bond to its end.
pub async fn run(shared: Arc<Shared>, peer: Peer, mut bond: Arc<Bond>, mut records: Records, mut way: Way) {
    let link = bond.link.clone();
    loop {
        let lanes = tokio::spawn(lanes::keep(shared.clone(), bond.clone(), way));
        let tending = tokio::spawn(tend::run(bond.clone(), shared.config.sockets.clone()));
        let lost = control::run(&shared, &bond, records).await;
        tending.abort();
        link.detach(&bond, &lost);
        shared.lanes.close(&bond);
        // It sees that the bond is over; whatever it dials is dropped.
        lanes.abort();
        if link.ended().is_some() {
            return;
        }
        let goes_on = lost.may_pass() && link.holds_anything() && !link.timeouts.link.is_zero();
        if !goes_on {
            return link.end(lost);
        }
        link.tell_down(&lost);
        (bond, records, way) = match again(&shared, &peer, &link, lost).await {
            Ok(next) => next,
            Err(lost) => return link.end(lost),
        };
    }
}

/// Reaches the peer again. `Err`: the link is over.
async fn again(
    shared: &Arc<Shared>,
    peer: &Peer,
    link: &Arc<LinkCore>,
    why: Lost,
) -> Result<(Arc<Bond>, Records, Way), Lost> {
    let until = Instant::now() + link.timeouts.link;
    let mut pauses = Pauses::new(&link.timeouts);
    let mut attempts = JoinSet::new();
    let mut started: usize = 0;
    let mut next = Instant::now();
    loop {
        if link.ended().is_some() || !link.holds_anything() {
            return Err(why);
        }
        if Instant::now() >= until {
            return Err(Lost::Outage { why: Box::new(why), waited: link.timeouts.link });
        }
        let one_more = attempts.len() < ATTEMPTS_AT_ONCE;
        if one_more && Instant::now() >= next {
            attempts.spawn(reach(shared.clone(), peer.clone(), started));
            started += 1;
            // Whatever becomes of it: a refusal comes at once, the next question does not.
            next = Instant::now() + pauses.next();
        }
        let reached = tokio::select! {
            () = tokio::time::sleep_until(next), if one_more => continue,
            Some(reached) = attempts.join_next() => reached,
            // With nothing under way `one_more` holds.
            else => continue,
        };
        match reached {
            Ok(Ok(reached)) => {
                if let Some(next) = bind(shared, link, reached).await? {
                    return Ok(next);
                }
            }
            Ok(Err(LinkError::NotAllowedThere { text, .. })) => {
                return Err(Lost::Protocol { peer: peer.name.clone(), what: text });
            }
            Ok(Err(error)) => tracing::debug!(peer = %peer.name, %error, "not yet back"),
            Err(_) => {}
        }
    }
}

/// A peer that proved its key.
struct Reached {
    records: Records,
    address: SocketAddr,
    paths: Vec<SocketAddr>,
}

/// One attempt, at one of the peer's addresses.
async fn reach(shared: Arc<Shared>, peer: Peer, attempt: usize) -> Result<Reached, LinkError> {
    let mut tried = Vec::new();
    let paths = resolve(&shared, &peer, &mut tried).await;
    let unreachable = |tried| LinkError::Unreachable { peer: peer.name.clone(), tried };
    let Some(&address) = paths.get(attempt % paths.len().max(1)) else { return Err(unreachable(tried)) };
    let stream = timeout(ATTEMPT_CONNECTS_FOR, connect(&shared, address, false))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ATTEMPT_CONNECTS_FOR.as_secs())))
        .map_err(|what| unreachable(vec![(address.to_string(), what)]))?;
    let after = shared.config.timeouts.handshake;
    match timeout(after, noise::initiate(stream, &shared.config.key, &peer.public_key, shared.suites)).await {
        Ok(Ok(records)) => Ok(Reached { records, address, paths }),
        Ok(Err(error)) => Err(explain(&shared, &peer, address, error)),
        Err(_) => Err(LinkError::Timeout {
            peer: peer.name.clone(),
            address: address.to_string(),
            what: "the handshake",
            after,
        }),
    }
}

/// Asks for the link to go on. `Ok(None)`: the connection died again. `Err`: it does not go on.
async fn bind(
    shared: &Arc<Shared>,
    link: &Arc<LinkCore>,
    reached: Reached,
) -> Result<Option<(Arc<Bond>, Records, Way)>, Lost> {
    let Reached { mut records, address, paths } = reached;
    let (told, secret) = watch::channel(None);
    let early = lanes::dial_early(shared, address, &paths, &secret);
    let asked = start(shared, &mut records, Some(link.name), &told);
    let asked = timeout(shared.config.timeouts.handshake, asked).await;
    let (start, started) = match asked {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(error)) => {
            tracing::debug!(peer = %link.peer, %error, "reached, and lost again");
            return Ok(None);
        }
        Err(_) => return Ok(None),
    };
    if !started.resumed {
        return Err(Lost::Forgotten { peer: link.peer.clone() });
    }
    if started != (Started { resumed: true, ..link.agreed.clone() }) {
        let what = "it goes on with other limits than before".to_owned();
        return Err(Lost::Protocol { peer: link.peer.clone(), what });
    }
    let bond = Bond::new(link.clone(), start.link, LinkSecret::new(start.secret, records.suite));
    if !link.attach(&bond) {
        return Err(Lost::Stopped);
    }
    link.send_list(&bond);
    let way = Way { control: address, paths, early, why_not: lanes::Reason::default() };
    Ok(Some((bond, records, way)))
}

/// Growing pauses with some chance in them, so that not all links of a host come back at once.
pub struct Pauses {
    next: Duration,
    most: Duration,
}

impl Pauses {
    pub fn new(timeouts: &Timeouts) -> Self {
        Self { next: timeouts.redial_first, most: timeouts.redial_most }
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let mut byte = [128];
        // Without chance it is the pause itself.
        let _ = getrandom::fill(&mut byte);
        let pause = self.next.mul_f64(0.75 + f64::from(byte[0]) / 512.0);
        self.next = self.next.mul_f64(1.5).min(self.most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let timeouts = Timeouts::default();
        let mut pauses = Pauses::new(&timeouts);
        let first = pauses.next();
        assert!(first >= timeouts.redial_first.mul_f64(0.75) && first <= timeouts.redial_first.mul_f64(1.25));
        let last = (0..50).map(|_| pauses.next()).last().unwrap();
        assert!(last >= timeouts.redial_most.mul_f64(0.75) && last <= timeouts.redial_most.mul_f64(1.25));
    }
}
