//! What ties a link to its peer just now: one control connection and the lanes that were made under its secret.
//!
//! A bond ends with its control connection; the link, its sessions and what they have in flight outlive it and get
//! another bond, with another secret. So everything that depends on keys or connections is here, and nothing else is.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Notify;

use crate::error::Lost;
use crate::fit::Tuning;
use crate::lane::rx::Progress;
use crate::lane_stats::LaneStats;
use crate::link::{LinkCore, Role, lock};
use crate::names::{Epoch, LaneId};
use crate::outbox::Outbox;
use crate::seal::LinkSecret;
use crate::sys::tcp_info;

pub struct Bond {
    /// The link and its bond hold each other until [`LinkCore::detach`].
    pub link: Arc<LinkCore>,
    /// Named by the hellos of its lanes.
    pub id: [u8; 16],
    pub secret: LinkSecret,
    pub outbox: Outbox,
    /// Of its lanes' sockets.
    pub tuning: Tuning,
    lanes: Mutex<HashMap<LaneId, Lane>>,
    fallen: Mutex<Vec<LaneId>>,
    /// Its lanes remember another path than there is.
    outgrown: AtomicBool,
    /// A lane fell or came up, more may be needed, or the bond is over.
    pub stirred: Notify,
    lanes_changed: Notify,
    fault: Mutex<Option<Lost>>,
    faulted: Notify,
    over: AtomicBool,
}

struct Lane {
    /// That of its last connection. A responder takes none that is not above it.
    epoch: Epoch,
    up: bool,
    /// Initiator: the last that was given, to a connection that is perhaps not taken: the one before lives on meanwhile.
    given: Epoch,
    progress: Arc<Progress>,
    /// What had come of its connection when it was last seen inside a frame.
    came_bytes: u64,
    /// Its thread's, to be asked how it does.
    socket: Weak<OwnedFd>,
}

impl Lane {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, up: false, given: epoch, progress: Arc::default(), came_bytes: 0, socket: Weak::new() }
    }
}

impl Bond {
    pub fn new(link: Arc<LinkCore>, id: [u8; 16], secret: LinkSecret) -> Arc<Self> {
        let outbox = Outbox::new(link.limits.outbox_bytes);
        Arc::new(Self {
            link,
            id,
            secret,
            outbox,
            tuning: Tuning::default(),
            lanes: Mutex::default(),
            fallen: Mutex::default(),
            outgrown: AtomicBool::new(false),
            stirred: Notify::new(),
            lanes_changed: Notify::new(),
            fault: Mutex::default(),
            faulted: Notify::new(),
            over: AtomicBool::new(false),
        })
    }

    // ---- its end

    /// Something is wrong with it. The first reason counts.
    pub fn fault(&self, lost: Lost) {
        lock(&self.fault).get_or_insert(lost);
        self.faulted.notify_one();
    }

    /// Waits for the first reason.
    pub async fn faulted(&self) -> Lost {
        loop {
            if let Some(lost) = lock(&self.fault).clone() {
                return lost;
            }
            self.faulted.notified().await;
        }
    }

    /// Its control connection is gone, or another bond took its place.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Release);
        self.stirred.notify_one();
        self.lanes_changed.notify_waiters();
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    // ---- lanes

    /// Responder: a lane proved its key. The epoch that it replaces is over. `None`: this epoch, or a later one, was seen
    /// before: a replay.
    pub fn admit(&self, lane: LaneId, epoch: Epoch) -> Option<(Arc<Progress>, Option<Epoch>)> {
        let mut lanes = lock(&self.lanes);
        if lane.0 >= self.link.agreed.lanes || lanes.get(&lane).is_some_and(|known| known.epoch >= epoch) {
            return None;
        }
        let progress = Arc::<Progress>::default();
        let known = Lane { up: true, progress: progress.clone(), ..Lane::new(epoch) };
        let old = lanes.insert(lane, known);
        Some((progress, old.filter(|old| old.up).map(|old| old.epoch)))
    }

    /// Initiator: the epoch of the lane's next connection. Each is given once.
    pub fn next_epoch(&self, lane: LaneId) -> Epoch {
        let mut lanes = lock(&self.lanes);
        let known = lanes.entry(lane).or_insert_with(|| Lane::new(Epoch(0)));
        known.given = Epoch(known.given.0 + 1);
        known.given
    }

    /// The epoch of the lane's connection. `None`: it has none.
    pub fn epoch(&self, lane: LaneId) -> Option<Epoch> {
        lock(&self.lanes).get(&lane).filter(|known| known.up).map(|known| known.epoch)
    }

    /// Initiator: the peer took the lane, and gave up the connection that it had.
    pub fn lane_up(&self, lane: LaneId, epoch: Epoch) {
        if let Some(known) = lock(&self.lanes).get_mut(&lane).filter(|known| known.epoch < epoch) {
            (known.epoch, known.up) = (epoch, true);
            known.socket = Weak::new();
        }
        self.lanes_changed.notify_waiters();
    }

    /// Its thread has this connection.
    pub fn lane_has(&self, lane: LaneId, epoch: Epoch, socket: &Arc<OwnedFd>) {
        if let Some(known) = lock(&self.lanes).get_mut(&lane).filter(|known| known.epoch == epoch) {
            known.socket = Arc::downgrade(socket);
        }
        self.tuning.apply(socket);
    }

    /// The lanes that are up, and their connections, by number.
    pub fn sockets(&self) -> Vec<(LaneId, Epoch, Arc<OwnedFd>)> {
        let lanes = lock(&self.lanes);
        let up = lanes.iter().filter(|(_, lane)| lane.up);
        let mut sockets: Vec<_> = up
            .filter_map(|(id, lane)| lane.socket.upgrade().map(|socket| (*id, lane.epoch, socket)))
            .collect();
        sockets.sort_by_key(|(id, ..)| *id);
        sockets
    }

    /// How they do.
    pub fn lane_stats(&self) -> Vec<LaneStats> {
        let sockets = self.sockets();
        sockets.iter().filter_map(|(lane, epoch, socket)| LaneStats::read(*lane, *epoch, socket)).collect()
    }

    /// Waits until so many lanes are up.
    pub async fn lanes_are_up(&self, lanes: u16) {
        loop {
            let changed = self.lanes_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lanes_up() >= lanes || self.is_over() {
                return;
            }
            changed.await;
        }
    }

    /// Its connection ended; the initiator dials it again.
    pub fn lane_down(&self, lane: LaneId, epoch: Epoch, what: &str) {
        {
            let mut lanes = lock(&self.lanes);
            let Some(known) = lanes.get_mut(&lane).filter(|known| known.epoch == epoch && known.up) else {
                return;
            };
            known.up = false;
            known.progress = Arc::default();
        }
        if self.is_over() {
            return;
        }
        tracing::info!(peer = %self.link.peer, %lane, what, "a lane's connection ended");
        if self.link.role == Role::Initiator {
            lock(&self.fallen).push(lane);
            self.stirred.notify_one();
        }
    }

    /// Lanes that went down since the last call.
    pub fn take_fallen(&self) -> Vec<LaneId> {
        std::mem::take(&mut lock(&self.fallen))
    }

    /// Lanes are needed that remember nothing of the path.
    pub fn outgrow(&self) {
        self.outgrown.store(true, Ordering::Release);
        self.stirred.notify_one();
    }

    pub fn take_outgrown(&self) -> bool {
        self.outgrown.swap(false, Ordering::AcqRel)
    }

    pub fn lanes_up(&self) -> u16 {
        lock(&self.lanes).values().filter(|lane| lane.up).count() as u16
    }

    /// A lane that waits for the rest of a frame for too long. Told once.
    pub fn stuck_lane(&self) -> Option<(LaneId, Epoch)> {
        let now_ms = self.link.clock.elapsed().as_millis() as u64;
        let bound_ms = self.link.timeouts.frame.as_millis() as u64;
        let mut lanes = lock(&self.lanes);
        for lane in lanes.values_mut().filter(|lane| lane.progress.stuck_for_ms(now_ms) > 0) {
            // A lane thread may hear of a frame's body only when all of it is there.
            let info = lane.socket.upgrade().and_then(|socket| tcp_info(socket.as_fd()).ok());
            let came_bytes = info.map_or(0, |info| info.bytes_received);
            if came_bytes > lane.came_bytes {
                lane.came_bytes = came_bytes;
                lane.progress.came(now_ms);
            }
        }
        let stuck = lanes.iter_mut().find(|(_, lane)| lane.progress.stuck_for_ms(now_ms) > bound_ms);
        stuck.map(|(id, lane)| {
            lane.progress = Arc::default();
            (*id, lane.epoch)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{bond, link};

    #[test]
    fn a_lane_whose_next_connection_was_not_taken_is_dialled_when_its_own_ends() {
        let bond = bond(&link(Role::Initiator), 1);
        let lane = LaneId(1);
        let lives = bond.next_epoch(lane);
        bond.lane_up(lane, lives);
        let refused = bond.next_epoch(lane);
        assert_eq!((bond.epoch(lane), bond.lanes_up()), (Some(lives), 1));
        bond.lane_down(lane, refused, "it never was up");
        assert_eq!((bond.take_fallen(), bond.lanes_up()), (vec![], 1));
        bond.lane_down(lane, lives, "its peer went");
        assert_eq!((bond.take_fallen(), bond.epoch(lane)), (vec![lane], None));
    }

    #[test]
    fn the_end_of_a_connection_that_was_replaced_is_none_of_the_lane() {
        let bond = bond(&link(Role::Initiator), 1);
        let lane = LaneId(0);
        let (old, new) = (bond.next_epoch(lane), bond.next_epoch(lane));
        bond.lane_up(lane, new);
        bond.lane_up(lane, old);
        assert_eq!(bond.epoch(lane), Some(new), "what comes late is not newer");
        bond.lane_down(lane, old, "replaced");
        assert_eq!((bond.take_fallen(), bond.lanes_up()), (vec![], 1));
    }
}
