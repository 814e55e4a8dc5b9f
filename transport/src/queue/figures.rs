//! What the queue of a link says of its sessions, and of what waits in it.

use super::TxQueue;
use crate::lane_stats::LaneStats;
use crate::schedule::Priority;
use crate::throttle::{least, socket_bytes};

/// A session's figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub unsent_bytes: u64,
    pub in_flight_bytes: u64,
    pub credit_left: u64,
    pub goodput_bytes_per_s: Option<u64>,
    /// There was always too little to send.
    pub goodput_is_least: bool,
    pub delivered_bytes: u64,
    pub priority: Priority,
    /// On the wire: the least of the session's, the link's and the host's.
    pub limit_bytes_per_s: Option<u64>,
}

/// What waits for a lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    pub unsent_bytes: u64,
    /// Taken, and not acknowledged.
    pub under_way_bytes: u64,
    /// All that waits waits for credit.
    pub without_credit: bool,
    /// Or for what is under way to be applied.
    pub full: bool,
    /// The least of the link, the host and, if each has one, of the sessions together.
    pub limit_bytes_per_s: Option<u64>,
}

impl Pressure {
    /// All that waits waits for the peer to apply what it has. What is under way is as much as may be also where the path holds it: then
    /// the lanes have it.
    pub fn waits_for_peer(&self, lanes: &[LaneStats]) -> bool {
        let of_lanes: u64 = lanes.iter().map(|lane| lane.in_flight_bytes + lane.unsent_bytes).sum();
        self.without_credit || self.full && of_lanes < self.under_way_bytes / 2
    }
}

impl TxQueue {
    pub fn figures(&self, session: u32) -> Option<Figures> {
        let state = self.lock();
        let account = state.sessions.get(&session)?;
        let limit_bytes_per_s = least(account.limit.rate(), state.throttle.shared_rate());
        // What was measured before a limit was lowered cannot be reached any more.
        let goodput = account.goodput.bytes_per_s();
        let goodput =
            goodput.map(|rate| limit_bytes_per_s.map_or(rate, |limit| rate.min(socket_bytes(limit))));
        Some(Figures {
            unsent_bytes: account.unsent_bytes,
            in_flight_bytes: account.in_flight_bytes,
            credit_left: account.credit - account.charged,
            goodput_bytes_per_s: goodput,
            goodput_is_least: account.goodput.is_least(),
            delivered_bytes: account.goodput.delivered_bytes(),
            priority: state.schedule.priority(session),
            limit_bytes_per_s,
        })
    }

    /// Of those sessions together that have something to send or under way.
    pub fn goodput(&self) -> Option<u64> {
        let state = self.lock();
        let at_work = state.sessions.values().filter(|account| account.is_at_work());
        at_work.filter_map(|account| account.goodput.bytes_per_s()).reduce(u64::saturating_add)
    }

    /// What waits, and for what.
    pub fn pressure(&self) -> Pressure {
        let state = self.lock();
        let mut waiting = state.sessions.values().filter(|account| account.has_some()).peekable();
        let any = waiting.peek().is_some();
        let (mut without_credit, mut full) = (any, any);
        for account in waiting {
            without_credit &= !account.may_send();
            full &= !account.may_send() || account.is_full();
        }
        Pressure {
            unsent_bytes: state.sessions.values().map(|a| a.unsent_bytes + a.again_bytes).sum(),
            under_way_bytes: state.sessions.values().map(|a| a.in_flight_bytes - a.again_bytes).sum(),
            without_credit,
            full,
            limit_bytes_per_s: least(state.limits_of_all(), state.throttle.shared_rate()),
        }
    }

    /// The least limit of the link, the host and, if each has one, of the sessions together.
    pub fn limit(&self) -> Option<u64> {
        let state = self.lock();
        least(state.limits_of_all(), state.throttle.shared_rate())
    }
}
