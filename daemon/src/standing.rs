//! Links that are there before a guest is to be moved: to every peer that guests may be sent to, from the daemon's start on.
//!
//! What a link needs at its beginning is round trips: three to prove the keys and bring up the lanes, and as many again until their windows hold
//! what the path carries. A guest that is to be moved waits for all of them; a link that stands has them behind it. Lanes that go by rate
//! (`bbr`) keep what they know for as long as they live, so one warm-up does.

use crate::awaited;
use crate::daemon::Daemon;
use crate::protocol::Note;
use hikyaku_transport::{Link, LinkError, Lost, PublicKey};
use serde::Deserialize;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Links without a migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// A link is made for the first migration, and stays for the next.
    Off,
    /// It stands from the start on.
    Up,
    /// And is filled with padding once, for its lanes to know the path.
    #[default]
    Warm,
}

/// Between two attempts to reach a peer, at first and in the end. A link that is lost and a peer that is switched off are nobody's hurry, and
/// a migration dials for itself.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// So long the side with the larger key lets the other one fill its link first: twice what the longest path takes.
const YIELDS_FOR: Duration = Duration::from_secs(4);
/// How often it is seen that a link was lost.
const LOOK: Duration = Duration::from_secs(1);
/// A link that is lost again and again is not filled each time.
const WARM_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Keeps the links standing that the configuration wants so, for as long as the daemon runs.
pub fn begin(daemon: &Rc<Daemon>, own: &PublicKey) {
    if daemon.config.link.standing == Standing::Off {
        return;
    }
    for peer in daemon.config.peers.iter().filter(|peer| peer.may_be_sent_to()) {
        // Each side's padding would make the other's acknowledgements late.
        let yields = own.to_string() > peer.public_key.to_string();
        tokio::task::spawn_local(keep(daemon.clone(), peer.name.clone(), yields));
    }
}

async fn keep(daemon: Rc<Daemon>, peer: String, yields: bool) {
    let [mut pause, most] = PAUSES;
    let mut warmed: Option<Instant> = None;
    let mut told = None;
    loop {
        match daemon.link_to(&peer).await {
            Ok(link) => {
                tracing::info!(%peer, "the link stands");
                awaited::tell(&daemon.node, &peer, &Note::WhoIsAwaited);
                (pause, told) = (PAUSES[0], None);
                if daemon.config.link.standing == Standing::Warm
                    && warmed.is_none_or(|at| at.elapsed() > WARM_AGAIN_AFTER)
                {
                    // A link that is lost meanwhile is not waited with.
                    let yields_for = if yields { YIELDS_FOR } else { Duration::ZERO };
                    if timeout(yields_for, until_lost(&link)).await.is_err() {
                        warmed = warm(&link).await.then(Instant::now).or(warmed);
                    }
                }
                let lost = until_lost(&link).await;
                tracing::info!(%peer, %lost, "the link is lost");
            }
            Err(LinkError::Stopped) => return,
            Err(error) => {
                let why = error.to_string();
                if told.as_ref() != Some(&why) {
                    tracing::warn!(%peer, %error, "not reached; tried again, and by each migration");
                    told = Some(why);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(most);
    }
}

/// False: the link was lost meanwhile.
async fn warm(link: &Link) -> bool {
    match link.warm_up().await {
        Ok(probe) => {
            let mbit_per_s = probe.bandwidth_bytes_per_s.map(|bytes| bytes * 8 / 1_000_000);
            tracing::info!(peer = %link.peer(), ?mbit_per_s, rtt = ?probe.min_rtt, padding_bytes = probe.padding_bytes, "the link is warm");
            true
        }
        Err(error) => {
            tracing::debug!(peer = %link.peer(), %error, "not warmed");
            false
        }
    }
}

async fn until_lost(link: &Link) -> Lost {
    loop {
        if let Some(lost) = link.lost() {
            return lost;
        }
        sleep(LOOK).await;
    }
}
